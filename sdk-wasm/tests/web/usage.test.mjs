// What a page uses is counted, sent when it goes, and shown per flag by control, beside what servers use.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { held } from './ofrep.mjs';
import { openPage, startClient, startWorld, until } from './world.mjs';

let [world, tidegate, wire, site, browser] = [];

before(async () => {
  world = await startWorld();
  ({ tidegate, wire, site, browser } = world);
});
after(() => world?.stop());

const options = (more = {}) => ({
  edgeUrl: wire.url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key,
  context: { targetingKey: 'person-4711', email: 'somebody@example.org', plan: 'pro' }, ...more,
});
const sent = () => wire.of('/sdk/v1/events', 'POST').map(({ asked }) => Buffer.concat(asked).toString());
const usage = async (flag) => (await tidegate.admin('GET', `${tidegate.environment}/flags/${flag}/usage?bucket=minute`)).body;
const counted = (report, source) => report.buckets.filter((one) => one.source === source).reduce((sum, one) => sum + one.count, 0);

test('what a page used arrives when it is hidden, and control shows it per variant and source', async () => {
  const page = await openPage(browser, site.url);
  await startClient(page, options());
  await page.evaluate(() => {
    for (let n = 0; n < 40; n += 1) client.number('upload-limit-mb', 10);
    for (let n = 0; n < 3; n += 1) client.string('checkout', '?');
    client.boolean('no-such-flag', false);
    client.track('purchase', 12.5);
    client.track('purchase', 7.5);
  });
  // Not closed: a browser that is busy may end a page that closes before it has said what it used.
  await page.evaluate(() => {
    Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => 'hidden' });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await until('the beacon came', () => sent().length > 0);
  const batches = sent().map((text) => JSON.parse(text));
  const rows = batches.flatMap((batch) => batch.usage);
  const of = (flag) => rows.filter((row) => row.flag === flag).reduce((sum, row) => sum + row.count, 0);
  assert.deepEqual([of('upload-limit-mb'), of('checkout'), of('no-such-flag')], [40, 3, 0]);
  // A row is of a minute, and the two may have been in two.
  const tracks = {};
  for (const { name, count, sum } of batches.flatMap((batch) => batch.tracks)) {
    const [counted, summed] = tracks[name] ?? [0, 0];
    tracks[name] = [counted + count, summed + sum];
  }
  assert.deepEqual(tracks, { purchase: [2, 20] });
  for (const text of sent()) assert(!text.includes('person-4711') && !text.includes('somebody@example.org'), 'something of the context was sent');
  await until('the edge took it', () => wire.of('/sdk/v1/events', 'POST').some(({ status }) => status === 202));

  // A server uses it too.
  for (let n = 0; n < 5; n += 1) {
    await held(await fetch(`${tidegate.dev.edge_url}/ofrep/v1/evaluate/flags/upload-limit-mb`, {
      method: 'POST',
      headers: { authorization: `Bearer ${tidegate.dev.server_key}`, 'content-type': 'application/json' },
      body: JSON.stringify({ context: { targetingKey: 'x', plan: 'enterprise' } }),
    }));
  }
  const report = await until('control shows both', async () => {
    const report = await usage('upload-limit-mb');
    return counted(report, 'browser') === 40 && counted(report, 'server') === 5 && report;
  });
  const variants = report.buckets.map(({ source, variant }) => `${source} ${variant}`);
  assert.deepEqual([...new Set(variants)].sort(), ['browser pro', 'server enterprise']);
  assert(Date.now() - Date.parse(report.lastEvaluatedAt) < 180_000, report.lastEvaluatedAt);
  await page.context().close();
});

test('with usage switched off nothing is counted or sent', async () => {
  wire.reset();
  const page = await openPage(browser, site.url);
  await startClient(page, options({ usage: false }));
  await page.evaluate(() => {
    for (let n = 0; n < 10; n += 1) client.number('upload-limit-mb', 10);
    client.track('purchase', 1);
    client.close();
  });
  await page.close({ runBeforeUnload: true });
  // What would have been sent comes before what is asked for now.
  const next = await openPage(browser, site.url);
  await startClient(next, options({ usage: false }));
  assert.deepEqual(sent(), []);
});

test('a flood of kinds is bounded, and says what it left out', async () => {
  wire.reset();
  const page = await openPage(browser, site.url);
  await startClient(page, options());
  await page.evaluate(() => {
    for (let n = 0; n < 5_000; n += 1) client.track(`made-up-${n}`);
    client.close();
  });
  const tracks = () => sent().map((text) => JSON.parse(text).tracks.length).reduce((sum, count) => sum + count, 0);
  await until('all batches came', () => tracks() >= 1_000);
  assert.equal(tracks(), 1_000);
  for (const text of sent()) assert(text.length < 64 * 1024);
  await until('it is told', () => page.said.some((line) => /4000 .*not counted/.test(line)));
});

test('a page that is closed says what it used', async () => {
  wire.reset();
  // Chromium ends a page that does not close within half a second, and then it has said nothing: some twenty
  // pages, of which a busy machine lets one close in time. The last test: a beacon that comes late is nobody's.
  await until('a page that closes sends its beacon', async () => {
    const page = await openPage(browser, site.url);
    await startClient(page, options());
    await page.evaluate(() => client.track('closed'));
    await page.close({ runBeforeUnload: true });
    return until('its beacon', () => sent().some((text) => text.includes('"closed"')), 5_000);
  }, 40_000);
});
