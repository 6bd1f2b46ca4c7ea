// The same in a browser: bundles `evaluate.mjs`, serves it to a headless Chromium on the loopback
// interface, and prints what the page reports.
//
//   CHROMIUM=chromium node sdk-wasm/bench/page.mjs target/browser target/corpus
//
// It checks the corpus there too, with `tests/corpus.mjs`: both modules, byte for byte.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

import { table } from './node.mjs';

const [browser, corpus] = process.argv.slice(2);
if (!browser || !corpus) {
  console.error('usage: node page.mjs FOLDER CORPUS');
  process.exit(2);
}
const here = dirname(fileURLToPath(import.meta.url));
const bundle = (entry) => {
  const esbuild = join(here, '../node_modules/.bin/esbuild');
  const flags = ['--bundle', '--format=esm', '--platform=browser', '--target=es2022', '--log-level=warning'];
  const { status, stdout, stderr } = spawnSync(esbuild, [entry, ...flags], { maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(String(stderr));
  return stdout;
};
const files = readdirSync(corpus).filter((name) => name.endsWith('.json')).sort();
const PAGE = `<!doctype html><script type="module">
  const report = (path, value) => fetch(path, { method: 'POST', body: JSON.stringify(value) });
  try {
    const bench = await import('/evaluate.js');
    const { check } = await import('/corpus.js');
    const engine = await import('/engine.js');
    const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
    const modules = { core: await bytes('/core.wasm'), full: await bytes('/full.wasm') };
    const cases = await (await fetch('/corpus.json')).json();
    const { ruleset } = cases.find((file) => file.file === 'three-rules');
    const framed = Uint8Array.from(atob(ruleset), (character) => character.charCodeAt(0));
    const found = { agent: navigator.userAgent, first: {}, corpus: [] };
    for (const tier of ['core', 'full']) found.first[tier] = await bench.first(engine, modules[tier], framed);
    found.results = bench.run(bench.contenders(engine, modules, framed));
    for (const tier of ['core', 'full']) {
      found.corpus.push(check(engine, await WebAssembly.compile(modules[tier]), tier, cases));
    }
    await report('/done', found);
  } catch (error) {
    await report('/failed', String(error.stack ?? error));
  }
</script>`;
const answers = {
  '/': ['text/html', PAGE],
  '/evaluate.js': ['text/javascript', bundle(join(here, 'evaluate.mjs'))],
  '/corpus.js': ['text/javascript', bundle(join(here, '../tests/corpus.mjs'))],
  '/engine.js': ['text/javascript', readFileSync(resolve(browser, 'engine.js'))],
  '/core.wasm': ['application/wasm', readFileSync(resolve(browser, 'core.wasm'))],
  '/full.wasm': ['application/wasm', readFileSync(resolve(browser, 'full.wasm'))],
  '/corpus.json': ['application/json', `[${files.map((name) => readFileSync(join(corpus, name), 'utf8')).join()}]`],
};

const reported = Promise.withResolvers ? Promise.withResolvers() : deferred();
const server = createServer((request, response) => {
  if (request.method === 'POST') {
    let body = '';
    request.on('data', (part) => (body += part)).on('end', () => {
      response.end();
      const value = JSON.parse(body);
      if (request.url === '/done') reported.resolve(value);
      else reported.reject(new Error(value));
    });
    return;
  }
  const [type, body] = answers[request.url] ?? ['text/plain', ''];
  // Isolated, so that its clock counts in steps of 5 µs and not of 100.
  const headers = { 'content-type': type, 'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp' };
  response.writeHead(request.url in answers ? 200 : 404, headers).end(body);
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const profile = mkdtempSync(join(tmpdir(), 'tidegate-bench-'));
const chromium = spawn(process.env.CHROMIUM ?? 'chromium', [
  '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', `--user-data-dir=${profile}`,
  `http://127.0.0.1:${server.address().port}/`,
], { stdio: 'ignore' });
chromium.on('error', reported.reject);
const late = setTimeout(() => reported.reject(new Error('no report within three minutes')), 180_000);
try {
  const { agent, first, results, corpus: checked } = await reported.promise;
  console.log(agent);
  table(first, results);
  for (const { tier, passed, failed, failures } of checked) {
    console.log(`corpus, ${tier}: ${passed} passed, ${failed} failed`);
    for (const failure of failures) console.error(failure);
    if (failed > 0 || passed < 1_000) process.exitCode = 1;
  }
} finally {
  clearTimeout(late);
  chromium.kill();
  server.close();
  server.closeAllConnections();
  await new Promise((ended) => chromium.once('close', ended));
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}
