// The package in Chromium against a running edge: first load, updates, what may and may not be believed.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { openPage, startClient, startWorld, until } from './world.mjs';

let [world, tidegate, wire, site, browser] = [];
const pages = [];

before(async () => {
  world = await startWorld();
  ({ tidegate, wire, site, browser } = world);
  // What no browser may ever see, and what only the edge may know of a flag.
  await tidegate.create(
    { key: 'hidden-merger', type: 'string', variants: { yes: 'buys-globex-in-may', no: 'nothing-doing' }, clients: 'none' },
    { enabled: true, off: 'no', rules: [{ id: 'hidden-rule', when: { attr: 'hidden-attribute', op: 'eq', value: 'hidden-operand' }, serve: { variant: 'yes' } }], fallthrough: { variant: 'no' } },
  );
  await tidegate.create(
    { key: 'edge-secret-rule', type: 'string', variants: { gold: 'golden', plain: 'plain' }, clients: 'edge' },
    { enabled: true, off: 'plain', rules: [{ id: 'secret-rule-id', when: { attr: 'secret-attribute', op: 'eq', value: 'secret-operand' }, serve: { variant: 'gold' } }], fallthrough: { variant: 'plain' } },
  );
});
after(() => world?.stop());
beforeEach(async () => {
  for (const page of pages.splice(0)) await page.context().close();
  await until('no stream is left', () => wire.streams.size === 0);
  wire.reset();
});

const options = (more = {}) => ({
  edgeUrl: wire.url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key,
  context: { targetingKey: 'user-1' }, pollSeconds: 5, contextSeconds: 60, ...more,
});

async function open(more, ready = true, context = undefined, path = '/') {
  const page = await openPage(browser, site.url + path, { context });
  pages.push(page);
  await startClient(page, options(more), ready);
  return page;
}

const value = (page, key) => page.evaluate((key) => window.client.evaluate(key), key);
const state = (page) => page.evaluate(() => window.client.state);
const toggle = (enabled) => (config) => ({ ...config, enabled });
/** A stream of a page before may be on its way yet; the one that counts is what this test asked for. */
const listens = () => until('the stream is open', () =>
  wire.of('/sdk/v1/stream', 'GET').length > 0 && wire.streams.size === 1);

test('every answer is the one that the edge gives over OFREP, for many contexts', async () => {
  const page = await open();
  const contexts = [
    {}, { targetingKey: 'user-1' }, { targetingKey: 'ann', email: 'ann@example.com', plan: 'pro', country: 'DE', app: { version: '2.4.0' } },
    { targetingKey: 'bo', plan: 'enterprise', groups: ['beta'] }, { targetingKey: 'contractor-ana', session: 's-1' },
    { targetingKey: 'c', plan: 7, groups: 'beta', 'app.version': '2.3.0', country: 'FR' },
    { targetingKey: 'ünïcode 🌊', plan: 'team', groups: ['alpha', 'beta'], nothing: null, number: 1.5e300 },
  ];
  for (let n = 0; n < 20; n += 1) contexts.push({ targetingKey: `user-${n}`, country: 'DE', app: { version: '9.0.0' } });
  for (const context of contexts) {
    const here = await page.evaluate(async (context) => {
      await client.setContext(context);
      return client.keys().map((key) => ({ key, ...client.evaluate(key) }));
    }, context);
    const there = (await tidegate.ofrep(context)).map(({ metadata, errorDetails, errorCode, reason, variant, ...rest }) => ({
      ...rest, flagMetadata: metadata, reason: errorCode ? 'ERROR' : reason, ...(variant ? { variant } : {}),
      ...(errorCode ? { errorCode, errorMessage: errorDetails } : {}),
    }));
    assert.deepEqual(here, there, JSON.stringify(context));
  }
  assert.deepEqual(page.threw, []);
});

test('an admin write changes the page without a reload, and the event names that flag alone', async () => {
  const page = await open();
  await listens();
  assert.equal((await value(page, 'payments-up')).value, true);
  await page.evaluate(() => (window.events.length = 0));
  await tidegate.configure('payments-up', toggle(false));
  const told = () => page.evaluate(() => window.events.find(({ type }) => type === 'change')?.flags);
  const shown = await until('the page is told', told);
  // The flag, and the one of the edge that has it as prerequisite may follow in a change of its own.
  assert.deepEqual(shown, ['payments-up']);
  const answer = await value(page, 'payments-up');
  assert.deepEqual([answer.value, answer.reason], [false, 'DISABLED']);
  await tidegate.configure('payments-up', toggle(true));
  await until('it is on again', async () => (await value(page, 'payments-up')).value === true);
  assert.equal(wire.of('/sdk/v1/snapshot', 'GET').length, 1, 'the change came as a delta, the snapshot was fetched once');
});

test('a flag of the edge changes too, and says so', async () => {
  const page = await open();
  assert.equal((await value(page, 'edge-secret-rule')).value, 'plain');
  await tidegate.configure('edge-secret-rule', (config) => ({ ...config, fallthrough: { variant: 'gold' } }));
  await until('the edge answers gold', async () => (await value(page, 'edge-secret-rule')).value === 'golden');
  const events = await page.evaluate(() => window.events.filter((event) => event.type === 'change').map((event) => event.flags));
  assert.deepEqual(events.at(-1), ['edge-secret-rule']);
  await tidegate.configure('edge-secret-rule', (config) => ({ ...config, fallthrough: { variant: 'plain' } }));
  await until('and plain again', async () => (await value(page, 'edge-secret-rule')).value === 'plain');
});

test('what a key may not see is in no byte that the browser received', async () => {
  const page = await open({ context: { targetingKey: 'user-1', 'secret-attribute': 'other' } });
  await listens();
  assert.equal((await value(page, 'hidden-merger')).errorCode, 'FLAG_NOT_FOUND');
  const before = wire.seen.length;
  // Also of what changes.
  await tidegate.configure('hidden-merger', (config) => ({ ...config, fallthrough: { variant: 'yes' } }));
  await tidegate.configure('edge-secret-rule', (config) => ({ ...config, enabled: false }));
  await until('the edge flag is off', async () => (await value(page, 'edge-secret-rule')).reason === 'DISABLED');
  await tidegate.configure('edge-secret-rule', (config) => ({ ...config, enabled: true }));
  await tidegate.configure('payments-up', toggle(false));
  await until('a delta came', async () => (await value(page, 'payments-up')).value === false);
  await tidegate.configure('payments-up', toggle(true));
  await until('and another', async () => (await value(page, 'payments-up')).value === true);
  assert(wire.seen.length > before);
  const received = Buffer.concat(wire.seen.flatMap(({ raw, body, headers }) => [...raw, body ?? Buffer.alloc(0), Buffer.from(JSON.stringify(headers))]));
  // Deltas travel as base64.
  const deltas = [...received.toString('latin1').matchAll(/"patch":"([^"]*)"/g)].map(([, patch]) => Buffer.from(patch, 'base64'));
  assert(deltas.length >= 2, 'no delta came, so none was searched');
  const everything = Buffer.concat([received, ...deltas]);
  const secrets = [
    'hidden-merger', 'globex', 'nothing-doing', 'hidden-rule', 'hidden-attribute', 'hidden-operand',
    'secret-rule-id', 'secret-attribute', 'secret-operand', 'golden',
    tidegate.dev.server_key, tidegate.dev.admin_token, 'search/ranking', 'embedding-small', 'staff',
  ];
  for (const secret of secrets) assert(!everything.includes(secret), `the browser received ${secret}`);
  // The search would find what is there.
  for (const known of ['payments-up', 'edge-secret-rule', 'upload-limit-mb']) assert(everything.includes(known), known);
});

test('nothing new is a 304, for the snapshot and for the edge\'s answers', async () => {
  const page = await open({ updates: 'off' });
  await page.evaluate(() => client.sync());
  const statuses = (path) => wire.of(path).filter((one) => one.method !== 'OPTIONS').map((one) => one.status);
  assert.deepEqual(statuses('/sdk/v1/snapshot'), [200, 304]);
  assert.deepEqual(statuses('/sdk/v1/evaluate'), [200, 304]);
  const [first, second] = wire.of('/sdk/v1/snapshot', 'GET');
  assert.equal(second.raw.length, 0);
  assert(['gzip', 'zstd', 'br'].includes(first.headers['content-encoding']), 'the snapshot is compressed');
  assert.equal(await state(page), 'READY');
});

for (const [what, spoil] of [
  ['a flipped byte in its rules', (body) => { body[body.length - 40] ^= 1; return body; }],
  ['a flipped byte in its signed head', (body) => { body[20] ^= 1; return body; }],
  ['its last byte missing', (body) => body.subarray(0, body.length - 1)],
  ['a byte too many', (body) => Buffer.concat([body, Buffer.from([0])])],
  ['another format', (body) => { body[4] = 9; return body; }],
  ['nothing in it', () => Buffer.alloc(0)],
  ['an error page for a body', () => Buffer.from('<html>proxy</html>')],
]) {
  test(`a snapshot with ${what} is refused, and the last good one stays`, async () => {
    const fresh = { updates: 'off', storage: false };
    wire.alter = (exchange) => {
      if (exchange.path === '/sdk/v1/snapshot' && exchange.status === 200) exchange.body = spoil(Buffer.from(exchange.body));
    };
    const first = await open(fresh, false);
    await until('it is refused', async () => (await state(first)) === 'ERROR');
    const error = await first.evaluate(() => ({ kind: client.error.kind, message: client.error.message }));
    assert.equal(error.kind, 'REFUSED', error.message);
    assert.equal(await first.evaluate(() => client.boolean('payments-up', false)), false, 'only the default is answered');
    wire.alter = undefined;
    await first.evaluate(() => client.sync());
    assert.equal(await state(first), 'READY');

    await tidegate.configure('upload-limit-mb', (config) => ({ ...config, fallthrough: { variant: config.fallthrough.variant === 'free' ? 'pro' : 'free' } }));
    const had = (await value(first, 'upload-limit-mb')).value;
    wire.alter = (exchange) => {
      if (exchange.path === '/sdk/v1/snapshot' && exchange.status === 200) exchange.body = spoil(Buffer.from(exchange.body));
    };
    await first.evaluate(() => client.sync());
    assert.deepEqual([await state(first), (await value(first, 'upload-limit-mb')).value], ['STALE', had]);
    wire.alter = undefined;
    await first.evaluate(() => client.sync());
    assert.notEqual((await value(first, 'upload-limit-mb')).value, had);
  });
}

test('an older snapshot that was signed once is refused, and so is one that another key signed', async () => {
  const page = await open({ updates: 'off' });
  const [old] = wire.of('/sdk/v1/snapshot', 'GET');
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: false }));
  await page.evaluate(() => client.sync());
  assert.equal((await value(page, 'upload-limit-mb')).reason, 'DISABLED');
  wire.alter = (exchange) => {
    if (exchange.path !== '/sdk/v1/snapshot') return;
    exchange.status = 200;
    exchange.body = Buffer.from(old.body);
  };
  await page.evaluate(() => client.sync());
  assert.match(await page.evaluate(() => client.error.message), /older/);
  assert.equal((await value(page, 'upload-limit-mb')).reason, 'DISABLED');
  wire.alter = undefined;
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: true }));

  const other = `ed25519:${Buffer.alloc(32, 7).toString('base64')}`;
  const stranger = await open({ publicKey: other, storage: false }, false);
  await until('its key is not pinned', async () => /not pinned/.test(await stranger.evaluate(() => client.error?.message)));
  assert.equal(await state(stranger), 'ERROR');
  const rotating = await open({ publicKey: [other, tidegate.dev.public_key], storage: false });
  assert.equal(await state(rotating), 'READY');
});

test('a lost event is noticed by its number, and everything is asked for again', async () => {
  const page = await open();
  await listens();
  let dropped = 0;
  wire.event = (event) => (event.includes('event: delta') && dropped++ === 0 ? null : event);
  await tidegate.configure('payments-up', toggle(false));
  await until('a delta was lost', () => dropped === 1);
  await tidegate.configure('payments-up', toggle(true));
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: false }));
  await until('the page has both changes', async () =>
    (await value(page, 'upload-limit-mb')).reason === 'DISABLED' && (await value(page, 'payments-up')).value === true);
  await until('the gap was mended by the whole', () => wire.of('/sdk/v1/snapshot', 'GET').length >= 2);
  await tidegate.configure('upload-limit-mb', (config) => ({ ...config, enabled: true }));
});

test('a delta that does not lead to what was signed is thrown away for the whole', async () => {
  const page = await open();
  await listens();
  let spoilt = 0;
  wire.event = (event) => event.replace(/"patch":"([^"]+)"/, (_, patch) => {
    spoilt += 1;
    const bytes = Buffer.from(patch, 'base64');
    bytes[bytes.length - 1] ^= 1;
    return `"patch":"${bytes.toString('base64')}"`;
  });
  await tidegate.configure('payments-up', toggle(false));
  await until('the page has the change', async () => (await value(page, 'payments-up')).value === false);
  assert.equal(spoilt, 1);
  await until('it is confirmed', async () => (await state(page)) === 'READY');
  wire.event = undefined;
  await tidegate.configure('payments-up', toggle(true));
  await until('and goes on', async () => (await value(page, 'payments-up')).value === true);
});

test('an edge that is slow with its own answers holds up no change of rules, also after a gap', async () => {
  const page = await open();
  await listens();
  let release;
  const held = new Promise((resolve) => (release = resolve));
  wire.hold = ({ path, method }) => (path === '/sdk/v1/evaluate' && method === 'POST' ? held : undefined);
  try {
    // What it brings does not fit, and then what it stands on.
    const spoil = ['patch', 'base'];
    let deltas = 0;
    wire.event = (event) => {
      if (!event.includes('event: delta')) return event;
      const part = spoil[deltas++];
      return part ? event.replace(new RegExp(`"${part}":"[^"]+"`), `"${part}":"AAAA"`) : event;
    };
    await tidegate.configure('payments-up', toggle(false));
    await until('the whole brings it', async () => (await value(page, 'payments-up')).value === false);
    await tidegate.configure('upload-limit-mb', toggle(false));
    await until('again', async () => (await value(page, 'upload-limit-mb')).reason === 'DISABLED');
    await tidegate.configure('payments-up', toggle(true));
    await until('a delta brings the next', async () => (await value(page, 'payments-up')).value === true);
    assert.equal(deltas, 3);
    release();
    await until('it is confirmed', async () => (await state(page)) === 'READY');
  } finally {
    release();
    await tidegate.configure('payments-up', toggle(true));
    await tidegate.configure('upload-limit-mb', toggle(true));
  }
});

test('a stream that is cut is taken up where it ended', async () => {
  const page = await open();
  await listens();
  // That the wire has a stream does not mean that the page has heard it.
  await tidegate.configure('payments-up', toggle(false));
  await until('the page has heard a change', async () => (await value(page, 'payments-up')).value === false);
  wire.cut();
  await until('it is open again', () => wire.of('/sdk/v1/stream', 'GET').length >= 2 && wire.streams.size === 1);
  assert(wire.of('/sdk/v1/stream', 'GET').at(-1).request['last-event-id'], 'it says what it heard last');
  // The cut made it stale, too.
  await until('it is confirmed again', async () => (await state(page)) === 'READY');
  // What happened while it was away.
  wire.fail();
  await until('the page notices', async () => (await state(page)) === 'STALE');
  await tidegate.configure('payments-up', toggle(true));
  wire.mend();
  await until('the page has what it missed', async () => (await value(page, 'payments-up')).value === true, 60_000);
  await until('it is confirmed', async () => (await state(page)) === 'READY');
});

test('answers of the edge may take as long as the page has said that it waits', async () => {
  const page = await open({ contextSeconds: 60 });
  await listens();
  // Longer than a request without such a word may take.
  wire.hold = ({ path, method }) =>
    path === '/sdk/v1/evaluate' && method === 'POST' && new Promise((resolve) => setTimeout(resolve, 17_000));
  const answer = await page.evaluate(async () => {
    await client.setContext({ targetingKey: 'user-2', 'secret-attribute': 'secret-operand' });
    return client.evaluate('edge-secret-rule');
  });
  assert.equal(answer.value, 'golden');
});

test('where streams say nothing, the page polls', async () => {
  wire.mute = true;
  // A proxy that holds back what is streamed ends the connection at last.
  const cutter = setInterval(() => wire.cut(), 200);
  try {
    const page = await open();
    await tidegate.configure('payments-up', toggle(false));
    await until('it has the change', async () => (await value(page, 'payments-up')).value === false, 60_000);
  } finally {
    clearInterval(cutter);
    wire.mute = false;
    await tidegate.configure('payments-up', toggle(true));
  }
});

test('a hidden tab rests, and catches up when it is shown', async () => {
  const page = await open({ hiddenSeconds: 0 });
  await listens();
  const show = (visibility) => page.evaluate((visibility) => {
    Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => visibility });
    document.dispatchEvent(new Event('visibilitychange'));
  }, visibility);
  await show('hidden');
  await until('the stream is closed', () => wire.streams.size === 0);
  const asked = wire.seen.length;
  await tidegate.configure('payments-up', toggle(false));
  assert.equal(wire.of('/sdk/v1/snapshot').length + wire.of('/sdk/v1/stream').length, wire.seen.slice(0, asked).filter((one) => /snapshot|stream/.test(one.path)).length);
  assert.equal((await value(page, 'payments-up')).value, true);
  await show('visible');
  await until('it has caught up', async () => (await value(page, 'payments-up')).value === false);
  await tidegate.configure('payments-up', toggle(true));
});

test('a key that is refused is an error that says so', async () => {
  const wrong = tidegate.dev.browser_key.replace(/.{6}$/, 'wrong1');
  const page = await open({ key: wrong }, false);
  await until('it is refused', async () => (await state(page)) === 'ERROR');
  const error = await page.evaluate(() => client.ready().catch(({ kind, message }) => ({ kind, message })));
  assert.equal(error.kind, 'UNAUTHORIZED');
  assert.match(error.message, /401/);
});

test('options that cannot work are refused with what is wrong', async () => {
  const page = await openPage(browser, site.url);
  pages.push(page);
  const told = await page.evaluate(async (good) => {
    const { createClient } = await import('@tidegate/web');
    const circle = {};
    circle.circle = circle;
    const cases = [
      undefined, {}, { ...good, edgeUrl: 'flags.example.com' }, { ...good, key: 'abc' }, { ...good, key: 'tg_server_abc' },
      { ...good, publicKey: undefined }, { ...good, publicKey: 'abc' }, { ...good, publicKey: 'ed25519:AAAA' }, { ...good, publicKey: [] },
      { ...good, context: circle }, { ...good, context: { big: 10n } },
    ];
    return cases.map((options) => {
      try {
        createClient(options);
        return 'it was taken';
      } catch (error) {
        return `${error.kind}: ${error.message}`;
      }
    });
  }, options());
  const wanted = [/options/, /edgeUrl/, /edgeUrl/, /key/, /server key/, /publicKey/, /publicKey/, /32 bytes/, /publicKey/, /INVALID_CONTEXT/, /INVALID_CONTEXT/];
  told.forEach((text, at) => assert.match(text, wanted[at]));
});
