// A running Tidegate, a wire to its edge that tests can tamper with, pages, and a Chromium.
//
//   TIDEGATE=path/to/tidegate node --test sdk-wasm/tests/web/
//
// Everything is real: `tidegate dev` with its own database and edge, the package as `build.mjs` makes it,
// Debian's Chromium. The wire only passes on what they say, and keeps a copy.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer, request as httpRequest } from 'node:http';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import zlib from 'node:zlib';
import { chromium } from 'playwright-core';
import { held } from './ofrep.mjs';

export const here = dirname(fileURLToPath(import.meta.url));
export const root = join(here, '../../..');
export const packageFolder = join(root, 'sdk-wasm/npm');
const DEADLINE_MS = 30_000;
/** For what starts a program: a cold or busy machine takes its time. */
export const START_MS_MAX = 120_000;
/** What one look and the pause after it use up of a deadline at most. */
const STEP_MS_MAX = 2_000;

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const CHROMIUM_FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

/**
 * Waits until `probe` gives something true; a failure shows what it gave last. While the machine stands
 * still, so does what is waited for: a stall costs one step, however long it is.
 */
export async function until(what, probe, deadlineMs = DEADLINE_MS) {
  let [last, spentMs] = [undefined, 0];
  for (;;) {
    const began = Date.now();
    try {
      last = await probe();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (spentMs > deadlineMs) {
      throw new Error(`${what}: not within ${deadlineMs} ms; last: ${String(last?.stack ?? JSON.stringify(last))}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 25));
    spentMs += Math.min(Date.now() - began, STEP_MS_MAX);
  }
}

/** `tidegate dev` on free ports, with its state in a folder of its own. */
export async function startTidegate(more = []) {
  const program = process.env.TIDEGATE;
  assert(program && existsSync(program), 'TIDEGATE names the tidegate binary; `cargo xtask test --only sdk` sets it');
  const dir = mkdtempSync(join(tmpdir(), 'tidegate-web-'));
  const child = spawn(program, ['dev', '--control-port', '0', '--edge-port', '0', '--dir', dir, ...more], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, RUST_LOG: 'warn' },
  });
  let [log, ended] = ['', false];
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (log = (log + data).slice(-20_000)));
  const exited = new Promise((resolve) => child.on('exit', resolve)).then(() => (ended = true));
  async function end(signal) {
    child.kill(signal);
    const killer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await exited;
    clearTimeout(killer);
    rmSync(dir, { recursive: true, force: true });
  }
  const file = join(dir, 'dev.json');
  try {
    await until('tidegate dev writes dev.json', () => {
      if (ended) throw new Error(`tidegate dev ended: ${log}`);
      return existsSync(file) && log.includes('Tidegate is running');
    }, START_MS_MAX);
  } catch (error) {
    await end('SIGKILL');
    throw error;
  }
  const dev = JSON.parse(readFileSync(file, 'utf8'));
  const environment = `/api/v1/namespaces/${dev.namespace}/environments/${dev.environment}`;
  const namespace = `/api/v1/namespaces/${dev.namespace}`;

  async function admin(method, path, body, headers = {}) {
    const answer = await fetch(dev.control_url + path, {
      method,
      headers: { authorization: `Bearer ${dev.admin_token}`, 'content-type': 'application/json', ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    assert(answer.ok, `${method} ${path}: ${answer.status} ${text}`);
    const live = answer.headers.get('tidegate-live');
    // Waiting for the edges ends well also when they did not come in time.
    if (path.includes('wait=live')) assert.match(String(live), /^live=\?1\b/, `${method} ${path}: ${live}`);
    return { body: text ? JSON.parse(text) : undefined, etag: answer.headers.get('etag'), live };
  }

  /** Replaces a flag's configuration by what `edit` makes of it, and waits until the edge serves it. */
  async function configure(key, edit) {
    const path = `${environment}/flags/${encodeURIComponent(key)}`;
    const { body, etag } = await admin('GET', path);
    const config = edit(structuredClone(body.config ?? body));
    return admin('PUT', `${path}?wait=live&timeout=60`, config, { 'if-match': etag });
  }

  async function create(definition, config) {
    await admin('POST', `${namespace}/flags`, definition);
    await configure(definition.key, () => config);
  }

  /** What the edge says of every flag to `key`: the judge of what the package answers. */
  async function ofrep(context, key = dev.browser_key) {
    const answer = await fetch(`${dev.edge_url}/ofrep/v1/evaluate/flags`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: JSON.stringify({ context }),
    });
    assert.equal(answer.status, 200);
    return (await held(answer)).flags;
  }

  try {
    // Who waits for all edges waits for those that control has heard of.
    const reported = async () => (await admin('GET', '/api/v1/edges')).body.items.length > 0;
    await until('the edge has reported', reported, START_MS_MAX);
  } catch (error) {
    await end('SIGKILL');
    throw error;
  }

  return {
    dev, dir, admin, configure, create, ofrep, environment, namespace,
    log: () => log,
    stop: () => end('SIGTERM'),
  };
}

function decoded(buffer, encoding) {
  try {
    if (encoding === 'gzip') return zlib.gunzipSync(buffer);
    if (encoding === 'br') return zlib.brotliDecompressSync(buffer);
    if (encoding === 'zstd' && zlib.zstdDecompressSync) return zlib.zstdDecompressSync(buffer);
  } catch {
    // Cut off in the middle; the raw bytes are kept beside.
  }
  return buffer;
}

/**
 * A proxy before the edge. `seen` has every request with what came back, decoded; `alter(exchange)` may
 * change `exchange.body` (whole answers) before it goes on, `hold(exchange)` may make it wait; `event(text)`
 * may change or drop (`null`) one event of a stream; `down` refuses connections as a dead edge does.
 */
export async function wireTo(edgeUrl) {
  const target = new URL(edgeUrl);
  const sockets = new Set();
  const streams = new Set();
  const wire = { seen: [], alter: undefined, hold: undefined, event: undefined, down: false, mute: false, streams };
  const server = createServer((incoming, outgoing) => {
    if (wire.down) return void incoming.socket.destroy();
    // An answer that comes late belongs to the test that asked.
    const { seen } = wire;
    const asked = [];
    incoming.on('data', (data) => asked.push(data));
    const headers = { ...incoming.headers, host: target.host };
    // Node 20 cannot read zstd, and what is recorded has to be read.
    if (!zlib.zstdDecompressSync && headers['accept-encoding']) {
      headers['accept-encoding'] = headers['accept-encoding'].split(',').filter((one) => !one.includes('zstd')).join(',');
    }
    const on = httpRequest({ host: target.hostname, port: target.port, method: incoming.method, path: incoming.url, headers });
    on.on('error', () => incoming.socket.destroy());
    outgoing.on('close', () => on.destroy());
    incoming.on('data', (data) => on.write(data));
    incoming.on('end', () => on.end());
    on.on('response', (answer) => {
      const exchange = {
        method: incoming.method, path: incoming.url, request: incoming.headers, asked,
        status: answer.statusCode, headers: answer.headers, raw: [], body: undefined,
      };
      seen.push(exchange);
      if (String(answer.headers['content-type']).startsWith('text/event-stream')) {
        outgoing.writeHead(answer.statusCode, answer.headers);
        outgoing.flushHeaders();
        const entry = { cut: () => incoming.socket.destroy(), path: incoming.url };
        streams.add(entry);
        let rest = '';
        answer.on('data', (data) => {
          exchange.raw.push(data);
          rest += data.toString('utf8');
          for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
            let event = rest.slice(0, end + 2);
            rest = rest.slice(end + 2);
            if (wire.event) event = wire.event(event);
            if (event && !wire.mute) outgoing.write(event);
          }
        });
        answer.on('end', () => outgoing.end());
        answer.on('error', () => incoming.socket.destroy());
        outgoing.on('close', () => streams.delete(entry));
        return;
      }
      answer.on('data', (data) => exchange.raw.push(data));
      answer.on('end', async () => {
        await wire.hold?.(exchange);
        exchange.body = decoded(Buffer.concat(exchange.raw), answer.headers['content-encoding']);
        const sent = { ...answer.headers };
        let body = Buffer.concat(exchange.raw);
        if (wire.alter) {
          const before = exchange.body;
          wire.alter(exchange);
          if (exchange.body !== before) {
            body = exchange.body;
            delete sent['content-encoding'];
            sent['content-length'] = String(body.length);
          }
        }
        if (incoming.method !== 'HEAD' && exchange.status !== 304 && exchange.status !== 204) sent['content-length'] = String(body.length);
        outgoing.writeHead(exchange.status, sent);
        outgoing.end(body);
      });
    });
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  wire.url = `http://127.0.0.1:${server.address().port}`;
  wire.of = (path, method) => wire.seen.filter((one) => one.path.startsWith(path) && (!method || one.method === method));
  wire.cut = () => streams.forEach((stream) => stream.cut());
  /** As if the edge's machine had lost its power. */
  wire.fail = () => {
    wire.down = true;
    for (const socket of sockets) socket.destroy();
  };
  wire.mend = () => (wire.down = false);
  wire.reset = () => {
    Object.assign(wire, { seen: [], alter: undefined, hold: undefined, event: undefined, down: false, mute: false });
  };
  wire.stop = async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return wire;
}

const KINDS = {
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css',
  '.json': 'application/json', '.wasm': 'application/wasm', '.map': 'application/json', '.svg': 'image/svg+xml',
};

/** Serves folders as a plain web server does: `{'/pkg/': folder}`; `pages` are texts. */
export async function serve(folders, pages = {}) {
  const server = createServer((request, answer) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    if (path in pages) {
      const text = typeof pages[path] === 'function' ? pages[path]() : pages[path];
      answer.writeHead(200, { 'content-type': KINDS[extname(path) || '.html'] ?? KINDS['.html'], 'cache-control': 'no-store' });
      return void answer.end(text);
    }
    const prefix = Object.keys(folders).sort((a, b) => b.length - a.length).find((one) => path.startsWith(one));
    if (!prefix) return void answer.writeHead(404).end();
    let file = join(folders[prefix], normalize(path.slice(prefix.length)));
    if (!file.startsWith(folders[prefix])) return void answer.writeHead(404).end();
    if (path.endsWith('/')) file = join(file, 'index.html');
    if (!existsSync(file)) return void answer.writeHead(404).end();
    answer.writeHead(200, { 'content-type': KINDS[extname(file)] ?? 'application/octet-stream', 'cache-control': 'no-cache' });
    answer.end(readFileSync(file));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    pages,
    stop: () => new Promise((resolve) => {
      server.closeAllConnections();
      server.close(resolve);
    }),
  };
}

/** A page that imports the package as a plain page does; tests go on in it. */
export const BLANK = `<!doctype html><meta charset="utf-8"><title>flags</title>
<script type="importmap">{"imports":{
  "@tidegate/web":"/pkg/index.js","@tidegate/web/openfeature":"/pkg/openfeature.js",
  "@openfeature/web-sdk":"/npm/@openfeature/web-sdk/dist/esm/index.js","@openfeature/core":"/npm/@openfeature/core/dist/esm/index.js"
}}</script><body></body>`;

export async function servePages(pages = {}) {
  return serve(
    { '/pkg/': join(packageFolder, 'dist'), '/npm/': join(here, 'node_modules'), '/tests/': join(here, '..'), '/corpus/': join(root, 'target/corpus') },
    { '/': BLANK, '/other': BLANK, ...pages },
  );
}

export async function startChromium() {
  return chromium.launch({ executablePath: CHROMIUM, headless: true, args: CHROMIUM_FLAGS });
}

/** A page of its own profile; what it says on its console and what it throws is kept. */
export async function openPage(browser, url, options = {}) {
  const context = options.context ?? (await browser.newContext(options.contextOptions));
  const page = await context.newPage();
  page.said = [];
  page.threw = [];
  page.on('console', (message) => page.said.push(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => page.threw.push(error));
  await page.goto(url);
  return page;
}

/** All that a test of pages needs; `stop` ends it, and so does a part that does not start. */
export async function startWorld() {
  const started = [];
  const stop = async () => {
    for (const part of started.splice(0).reverse()) await (part.stop ?? part.close).call(part);
  };
  const start = async (part) => {
    const running = await part;
    started.push(running);
    return running;
  };
  try {
    const tidegate = await start(startTidegate());
    const wire = await start(wireTo(tidegate.dev.edge_url));
    return { tidegate, wire, site: await start(servePages()), browser: await start(startChromium()), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Makes `window.client` and waits for its flags; every event is kept in `window.events`. */
export async function startClient(page, options, ready = true) {
  await page.evaluate(async ([options, ready]) => {
    const { createClient } = await import('@tidegate/web');
    const client = createClient(options);
    window.client = client;
    window.events = [];
    for (const type of ['change', 'state', 'error']) {
      client.on(type, (event) => window.events.push({ type, ...event, error: event.error && { kind: event.error.kind, message: event.error.message } }));
    }
    if (ready) await client.ready();
  }, [options, ready]);
}
