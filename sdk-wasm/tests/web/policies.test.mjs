// Flags whose rules call an uploaded policy: the edge answers them for pages, beside the flags that the page
// answers itself, and the page cannot tell them apart but by asking.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { openPage, startClient, startWorld, until } from './world.mjs';

const run = promisify(execFile);
let [world, tidegate, wire, site, browser, page] = [];
const flag = { key: 'order-check', type: 'string', variants: { direct: 'direct', review: 'review' } };

/** For a policy that may run out of its time again and again. */
const BUSY_MS_MAX = 120_000;

function cli(...given) {
  return run(process.env.TIDEGATE, given, { cwd: tidegate.dir, env: { ...process.env, TIDEGATE_DIR: tidegate.dir } });
}

/**
 * On a busy machine a policy may run out of its time, and its rule's fallback is served: false then. If the
 * policy sent it to review, what the page answers at that moment; its events are counted from there.
 */
const review = (context) => page.evaluate(async (context) => {
  await client.setContext(context);
  const answer = client.evaluate('order-check');
  if (answer.value !== 'review') return false;
  window.events.length = 0;
  return { answer, limit: client.number('upload-limit-mb', -1) };
}, context);

before(async () => {
  world = await startWorld();
  ({ tidegate, wire, site, browser } = world);
  // As docs/POLICIES.md has it, in the language that needs no compiler.
  await cli('policy', 'new', 'fraud-guard', '--language', 'wat');
  const [module, vectors] = ['policy.wat', 'vectors.json'].map((file) => join(tidegate.dir, 'fraud-guard', file));
  // Control tries it out against the clock; what was taken already is taken again.
  await until('the policy is taken', () =>
    cli('policy', 'upload', 'fraud-guard', module, '--vectors', vectors, '--pin'), BUSY_MS_MAX);
  const config = {
    enabled: true,
    rules: [{ id: 'fraud', policy: { name: 'fraud-guard', params: { max: 5 }, fallback: { variant: 'direct' } } }],
    fallthrough: { variant: 'direct' },
  };
  await tidegate.create({ ...flag, clients: 'edge' }, config);
  page = await openPage(browser, site.url);
  await startClient(page, {
    edgeUrl: wire.url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key, context: { targetingKey: 'u-1', plan: 'pro', user: { score: 3 } }, contextSeconds: 60,
  });
});
after(() => world?.stop());

test('a policy\'s flag and a local one change with the context, at once', async () => {
  const both = () => page.evaluate(() => [client.string('order-check', '?'), client.number('upload-limit-mb', -1)]);
  assert.deepEqual(await both(), ['direct', 250]);
  assert.deepEqual(await page.evaluate(() => ['order-check', 'upload-limit-mb'].map((key) => client.evaluatedAt(key))), ['edge', 'here']);
  const person = { targetingKey: 'u-1', plan: 'enterprise', user: { score: 7 } };
  const { answer, limit } = await until('the policy decides', () => review(person), BUSY_MS_MAX);
  assert.equal(limit, 2000);
  assert.deepEqual([answer.variant, answer.reason], ['review', 'TARGETING_MATCH']);
});

test('the policy and its rule are in no byte that the page received', async () => {
  const received = Buffer.concat(wire.seen.flatMap(({ raw, body }) => [...raw, body ?? Buffer.alloc(0)]));
  assert(received.includes('order-check'));
  for (const secret of ['fraud-guard', '"max"', 'the score is above']) assert(!received.includes(secret), secret);
});

test('other parameters of the policy reach the page without a reload', async () => {
  await until('the policy decides', () => review({ targetingKey: 'u-1', user: { score: 7 } }), BUSY_MS_MAX);
  await tidegate.configure('order-check', (config) => {
    config.rules[0].policy.params.max = 9;
    return config;
  });
  const through = () => page.evaluate(() => client.string('order-check', '?') === 'direct');
  await until('it is let through', through, BUSY_MS_MAX);
  const changes = await page.evaluate(() => window.events.filter(({ type }) => type === 'change'));
  const told = changes.map(({ flags }) => flags);
  assert(told.length > 0, 'it was told');
  for (const flags of told) assert.deepEqual(flags, ['order-check']);
});

test('control refuses to let a flag with a policy travel', async () => {
  const path = `${tidegate.namespace}/flags/order-check`;
  const { etag } = await tidegate.admin('GET', path);
  await assert.rejects(tidegate.admin('PUT', path, { ...flag, clients: 'local' }, { 'if-match': etag }), /policies run at the edge only/);
});
