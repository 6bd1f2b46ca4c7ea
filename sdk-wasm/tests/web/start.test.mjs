// How a page begins: from nothing, from what was kept, from what its server rendered; and whose answers it gives.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { BLANK, openPage, startClient, startWorld, until } from './world.mjs';

let [world, tidegate, wire, site, browser] = [];
const contexts = [];

before(async () => {
  world = await startWorld();
  ({ tidegate, wire, site, browser } = world);
});
after(() => world?.stop());
beforeEach(async () => {
  for (const context of contexts.splice(0)) await context.close();
  wire.reset();
});

const options = (more = {}) => ({
  edgeUrl: wire.url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key,
  context: { targetingKey: 'user-1', plan: 'pro' }, contextSeconds: 60, ...more,
});

async function profile() {
  const context = await browser.newContext();
  contexts.push(context);
  return context;
}

const kept = (page) => page.evaluate(() => Object.entries(localStorage).filter(([key]) => key.startsWith('tidegate:')).map(([, text]) => text));

/** The environment has no flags of the edge any more, until what this gives is called. */
async function loseEdgeFlags() {
  const put = (key, definition, match) =>
    tidegate.admin('PUT', `${tidegate.namespace}/flags/${key}?wait=live&timeout=60`, definition, { 'if-match': match });
  const definitions = new Map();
  for (const key of ['checkout', 'discount-rate']) {
    const { body, etag } = await tidegate.admin('GET', `${tidegate.namespace}/flags/${key}`);
    const { type, variants, description, metadata, tags, salt } = body;
    const parts = Object.entries({ key, type, variants, description, metadata, tags, salt });
    const definition = Object.fromEntries(parts.filter(([, part]) => part !== undefined));
    definitions.set(key, { ...definition, clients: 'edge' });
    await put(key, { ...definition, clients: 'none' }, etag);
  }
  return async () => {
    for (const [key, definition] of definitions) await put(key, definition, '*');
  };
}

/** What a page answers in the same turn in which it makes its client. */
const atOnce = (page, options) => page.evaluate(async (options) => {
  const { createClient } = await import('@tidegate/web');
  const client = createClient(options);
  window.client = client;
  const first = { state: client.state, limit: client.evaluate('upload-limit-mb'), checkout: client.evaluate('checkout'), age: client.ageMs };
  await client.ready().catch(() => {});
  return first;
}, options);

test('a reload with the edge away begins with the last good flags, and says how old they are', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  await until('the flags are kept', async () => (await kept(page)).length === 1);
  wire.fail();
  await page.reload();
  const first = await atOnce(page, options());
  assert.deepEqual([first.state, first.limit.value, first.limit.reason], ['STALE', 250, 'CACHED']);
  assert.equal(first.checkout.value, 'three-pages', 'flags of the edge, too');
  assert(first.age >= 0 && first.age < 60_000);
  await until('the evaluator took over', async () => (await page.evaluate(() => client.evaluate('upload-limit-mb').reason)) === 'TARGETING_MATCH');
  assert.equal(await page.evaluate(() => client.state), 'STALE');
  // Local rules go on answering for other contexts; answers of the edge for somebody else are not given.
  const other = await page.evaluate(async () => {
    await client.setContext({ targetingKey: 'user-2', plan: 'enterprise' });
    return [client.evaluate('upload-limit-mb').value, client.evaluate('checkout')];
  });
  assert.equal(other[0], 2000);
  assert.equal(other[1].value, undefined);
  wire.mend();
  // A stream that was tried before the wire was mended may fail after it.
  await until('it is confirmed', () => page.evaluate(() => client.sync().then(() => client.state === 'READY')));
  assert.equal(await page.evaluate(() => client.string('checkout', '?')), 'three-pages');
});

test('another person on the same browser does not get the answers of the one before', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  await until('the flags are kept', async () => (await kept(page)).length === 1);
  assert(!(await kept(page))[0].includes('user-1'), 'nothing of a context is kept');
  wire.fail();
  await page.reload();
  const first = await atOnce(page, options({ context: { targetingKey: 'user-2' } }));
  assert.equal(first.limit.errorCode, 'PROVIDER_NOT_READY');
  assert.equal(first.checkout.errorCode, 'PROVIDER_NOT_READY');
  await until('the rules answer', async () => (await page.evaluate(() => client.number('upload-limit-mb', -1))) === 10);
  assert.equal(await page.evaluate(() => client.string('checkout', 'default')), 'default');
});

test('a page whose server rendered the answers never shows a default', async () => {
  const context = await profile();
  const whom = { targetingKey: 'user-1', plan: 'pro' };
  const answers = { flags: await tidegate.ofrep(whom) };
  const bootstrap = { answers, context: whom };
  const page = await openPage(browser, site.url, { context });
  const first = await atOnce(page, options({ bootstrap, storage: false }));
  assert.deepEqual([first.state, first.limit.value, first.checkout.value], ['READY', 250, 'three-pages']);
  await until('the evaluator took over', () => page.evaluate(() => client.evaluatedAt('upload-limit-mb') === 'here' && client.evaluatedAt('checkout') === 'edge'));
  // For somebody else they are not used.
  const other = await openPage(browser, site.url, { context });
  const second = await atOnce(other, options({ bootstrap, storage: false, context: { targetingKey: 'user-2' } }));
  assert.equal(second.limit.errorCode, 'PROVIDER_NOT_READY');
});

test('a page that its server gave the snapshot works without asking for it, and checks it all the same', async () => {
  const context = await profile();
  const answer = await fetch(`${tidegate.dev.edge_url}/sdk/v1/snapshot`, { headers: { authorization: `Bearer ${tidegate.dev.browser_key}` } });
  const bytes = Buffer.from(await answer.arrayBuffer());
  wire.fail();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options({ bootstrap: { snapshot: bytes.toString('base64') }, storage: false }));
  assert.deepEqual(await page.evaluate(() => [client.state, client.number('upload-limit-mb', -1)]), ['STALE', 250]);
  bytes[bytes.length - 30] ^= 1;
  const spoilt = await openPage(browser, site.url, { context });
  await startClient(spoilt, options({ bootstrap: { snapshot: bytes.toString('base64') }, storage: false }), false);
  await until('it is not used', () => spoilt.evaluate(() => client.state === 'ERROR'));
});

test('what was kept and is damaged is not used', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  await until('the flags are kept', async () => (await kept(page)).length === 1);
  // It keeps nothing any more, over what is damaged here.
  await page.evaluate(() => client.close());
  wire.fail();
  for (const damage of [
    (text) => text.slice(0, text.length / 2),
    () => 'no JSON',
    (text) => JSON.stringify({ ...JSON.parse(text), answers: [], container: JSON.parse(text).container.replace(/.{8}$/, 'AAAAAAAA') }),
    (text) => JSON.stringify({ ...JSON.parse(text), format: 99 }),
  ]) {
    const before = (await kept(page))[0];
    const damaged = damage(before);
    await page.evaluate((text) => {
      const key = Object.keys(localStorage).find((key) => key.startsWith('tidegate:'));
      localStorage.setItem(key, text);
    }, damaged);
    const next = await openPage(browser, `${site.url}/other`, { context });
    const first = await atOnce(next, options());
    assert.equal(first.limit.errorCode, 'PROVIDER_NOT_READY');
    assert.equal(await next.evaluate(() => client.state), 'ERROR');
    assert.deepEqual(next.threw, []);
    await next.close();
    await page.evaluate((text) => {
      const key = Object.keys(localStorage).find((key) => key.startsWith('tidegate:'));
      localStorage.setItem(key, text);
    }, before);
  }
});

test('a full storage costs the next visit\'s head start and nothing else', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await page.evaluate(() => {
    for (let size = 1 << 20; size > 0; size >>= 1) {
      try {
        for (let n = 0; ; n += 1) localStorage.setItem(`fill-${size}-${n}`, 'x'.repeat(size));
      } catch {
        // That size is too much by now.
      }
    }
  });
  await startClient(page, options());
  const told = await until('it is told', () => page.evaluate(() => window.events.find((event) => event.type === 'error')?.error));
  assert.equal(told.kind, 'UNSUPPORTED');
  assert.match(told.message, /not kept/);
  assert.deepEqual(await page.evaluate(() => [client.state, client.number('upload-limit-mb', -1)]), ['READY', 250]);
  assert.deepEqual(await kept(page), []);
});

test('storage that may not be read does not keep a page from its flags', async () => {
  const context = await profile();
  await context.addInitScript(() => {
    Object.defineProperty(window, 'localStorage', { get: () => { throw new DOMException('denied', 'SecurityError'); } });
  });
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  assert.equal(await page.evaluate(() => client.number('upload-limit-mb', -1)), 250);
});

test('two tabs each hear of a change, and the older one never overwrites what the newer one kept', async () => {
  const context = await profile();
  const [one, two] = [await openPage(browser, site.url, { context }), await openPage(browser, `${site.url}/other`, { context })];
  await startClient(one, options({ updates: 'off' }));
  await startClient(two, options());
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: false }));
  await until('the second tab has it', () => two.evaluate(() => client.evaluate('upload-limit-mb').reason === 'DISABLED'));
  const revision = async (tab) => JSON.parse((await kept(tab))[0]).revision;
  const newest = await two.evaluate(() => client.version.revision);
  await until('it is kept', async () => (await revision(two)) === newest);
  // Tabs may be processes of their own, and what one writes comes to the other a little later.
  await until('the first tab can read it', async () => (await revision(one)) === newest);
  await one.evaluate(() => client.close());
  assert.equal(await revision(one), newest, 'the first tab, which knows the older one only, left it alone');
  await one.reload();
  const first = await atOnce(one, options());
  assert.equal(first.limit.reason, 'CACHED');
  assert.equal(first.limit.value, 10);
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: true }));
  for (const tab of [one, two]) await until('both tabs have it', () => tab.evaluate(() => client.number('upload-limit-mb', -1) === 250));
});

test('a change of context changes every flag at once, those of the edge too', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  const seen = await page.evaluate(async () => {
    const both = () => [client.number('upload-limit-mb', -1), client.string('checkout', '?')].join();
    const seen = new Set([both()]);
    const changed = client.setContext({ targetingKey: 'contractor-ana', plan: 'enterprise' });
    const watch = setInterval(() => seen.add(both()), 1);
    await changed;
    clearInterval(watch);
    seen.add(both());
    return [...seen];
  });
  assert.deepEqual(seen, ['250,three-pages', '2000,one-page']);
});

test('of two changes of context the later one counts, whichever the edge answers first', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  const last = await page.evaluate(async () => {
    const first = client.setContext({ targetingKey: 'contractor-ana' });
    const second = client.setContext({ targetingKey: 'user-3', plan: 'enterprise' });
    await Promise.all([first, second]);
    return [client.context.targetingKey, client.string('checkout', '?'), client.number('upload-limit-mb', -1)];
  });
  assert.deepEqual(last, ['user-3', 'three-pages', 2000]);
});

test('an answer for the person before, which comes late, does not bring that person back', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options());
  let release;
  const held = new Promise((resolve) => (release = resolve));
  wire.hold = ({ path, method }) => (path === '/sdk/v1/evaluate' && method === 'POST' ? held : undefined);
  await page.evaluate(() => void (window.late = client.setContext({ targetingKey: 'contractor-ana', plan: 'enterprise' })));
  // Meanwhile the environment has no flags of the edge any more, so the next person waits for nobody.
  const giveBack = await loseEdgeFlags();
  await until('the page knows', () => page.evaluate(() => client.evaluate('checkout').errorCode === 'FLAG_NOT_FOUND'));
  await page.evaluate(() => client.setContext({ targetingKey: 'user-5', plan: 'pro' }));
  release();
  await page.evaluate(() => window.late);
  assert.deepEqual(await page.evaluate(() => [client.context.targetingKey, client.number('upload-limit-mb', -1)]), ['user-5', 250]);
  wire.hold = undefined;
  await giveBack();
});

test('flags of the edge that were away are answered again when they come back unchanged', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options({ updates: 'off' }));
  const checkout = () => page.evaluate(async () => {
    await client.sync();
    const { value, errorCode } = client.evaluate('checkout');
    return [client.state, value ?? errorCode];
  });
  assert.deepEqual(await checkout(), ['READY', 'three-pages']);
  const giveBack = await loseEdgeFlags();
  assert.deepEqual(await checkout(), ['READY', 'FLAG_NOT_FOUND']);
  await giveBack();
  assert.deepEqual(await checkout(), ['READY', 'three-pages']);
});

test('what the edge says of its flags after they went away is not kept for when they are back', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options({ updates: 'off' }));
  let [release, asked] = [];
  const held = new Promise((resolve) => (release = resolve));
  wire.hold = ({ path, method }) => {
    if (path !== '/sdk/v1/evaluate' || method !== 'POST') return undefined;
    asked = true;
    return held;
  };
  await page.evaluate(() => void (window.first = client.sync()));
  await until('the edge has answered', () => asked);
  const giveBack = await loseEdgeFlags();
  await page.evaluate(() => void (window.second = client.sync()));
  await until('the page knows', () => page.evaluate(() => client.evaluate('checkout').errorCode === 'FLAG_NOT_FOUND'));
  release();
  await page.evaluate(() => Promise.all([first, second]));
  assert.equal(await page.evaluate(() => client.evaluate('checkout').errorCode), 'FLAG_NOT_FOUND');
  wire.hold = undefined;
  await giveBack();
  await page.evaluate(() => client.sync());
  assert.equal(await page.evaluate(() => client.string('checkout', '?')), 'three-pages');
});

test('while the edge does not answer, a new person gets the defaults of the edge\'s flags and not the last person\'s', async () => {
  const context = await profile();
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options({ context: { targetingKey: 'contractor-ana' } }));
  assert.equal(await page.evaluate(() => client.string('checkout', '?')), 'one-page');
  wire.fail();
  await page.evaluate(() => client.setContext({ targetingKey: 'user-9' }));
  assert.equal(await page.evaluate(() => client.string('checkout', 'default')), 'default');
  assert.equal(await page.evaluate(() => client.state), 'STALE');
  wire.mend();
  await until('it answers again', () => page.evaluate(() => client.string('checkout', '?') === 'three-pages'), 60_000);
});

test('a page without a secure context is told what it lacks', async () => {
  const context = await profile();
  await context.addInitScript(() => Object.defineProperty(window.crypto, 'subtle', { value: undefined }));
  const page = await openPage(browser, site.url, { context });
  await startClient(page, options(), false);
  await until('it is told', () => page.evaluate(() => client.state === 'ERROR'));
  assert.match(await page.evaluate(() => client.error.message), /https/);
});

test('a page that forbids wasm is told what to allow', async () => {
  const policy = `script-src 'self' 'unsafe-inline'`;
  site.pages['/strict'] = BLANK.replace('<title>', `<meta http-equiv="content-security-policy" content="${policy}"><title>`);
  const context = await profile();
  const page = await openPage(browser, `${site.url}/strict`, { context });
  await startClient(page, options(), false);
  await until('it is told', () => page.evaluate(() => client.state === 'ERROR'));
  assert.deepEqual(await page.evaluate(() => [client.error.kind, /wasm-unsafe-eval/.test(client.error.message)]), ['UNSUPPORTED', true]);
});

test('a module that was compiled elsewhere serves, with nothing fetched but flags', async () => {
  site.pages['/module'] = BLANK.replace('"@tidegate/web":"/pkg/index.js"', '"@tidegate/web":"/pkg/module.js"');
  const context = await profile();
  const page = await openPage(browser, `${site.url}/module`, { context });
  const fetched = [];
  page.on('request', (request) => fetched.push(new URL(request.url()).pathname));
  const limit = await page.evaluate(async (options) => {
    const { createClient } = await import('@tidegate/web');
    const compiled = await WebAssembly.compile(await (await fetch('/pkg/evaluator-full.wasm')).arrayBuffer());
    const client = createClient({ ...options, wasm: { full: compiled } });
    await client.ready();
    return client.number('upload-limit-mb', -1);
  }, options());
  assert.equal(limit, 250);
  assert.equal(fetched.filter((path) => path.endsWith('.wasm')).length, 1, 'the test itself fetched it');
});
