// The same figures as node.mjs, in a page of Chromium: cargo xtask bench-browser
//
//   node sdk-wasm/bench/chromium.mjs target/browser target/corpus
//
// The page is isolated (COOP and COEP), or its clock would tick only every 100 µs.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { openPage, startChromium } from '../tests/web/world.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const { build } = createRequire(join(here, '../package.json'))('esbuild');
const [browser, corpus] = process.argv.slice(2);
if (!browser || !corpus) {
  console.error('usage: node chromium.mjs FOLDER CORPUS');
  process.exit(2);
}

const bundle = await build({
  entryPoints: [join(here, 'evaluate.mjs')], bundle: true, format: 'esm', platform: 'browser', minify: true, write: false, logLevel: 'warning',
});
const FILES = {
  '/': ['text/html', '<!doctype html><meta charset="utf-8"><title>bench</title>'],
  '/evaluate.js': ['text/javascript', bundle.outputFiles[0].contents],
  '/engine.js': ['text/javascript', readFileSync(join(browser, 'engine.js'))],
  '/core.wasm': ['application/wasm', readFileSync(join(browser, 'core.wasm'))],
  '/full.wasm': ['application/wasm', readFileSync(join(browser, 'full.wasm'))],
  '/rules.json': ['application/json', readFileSync(join(corpus, 'three-rules.json'))],
};
const server = createServer((request, answer) => {
  const [type, body] = FILES[request.url] ?? [];
  if (!type) return void answer.writeHead(404).end();
  const isolated = { 'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp' };
  answer.writeHead(200, { 'content-type': type, ...isolated }).end(body);
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const chromium = await startChromium();
let found;
try {
  const page = await openPage(chromium, `http://127.0.0.1:${server.address().port}/`);
  found = await page.evaluate(async () => {
    if (!crossOriginIsolated) throw new Error('the page is not isolated, its clock is too coarse');
    const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
    const [engine, { contenders, first, run }] = await Promise.all([import('/engine.js'), import('/evaluate.js')]);
    const file = await (await fetch('/rules.json')).json();
    const ruleset = Uint8Array.from(atob(file.ruleset), (character) => character.charCodeAt(0));
    const modules = { core: await bytes('/core.wasm'), full: await bytes('/full.wasm') };
    const starts = {};
    for (const tier of ['core', 'full']) starts[tier] = await first(engine, modules[tier], ruleset);
    return { starts, results: run(contenders(engine, modules, ruleset)) };
  });
} finally {
  await chromium.close();
  server.closeAllConnections();
  server.close();
}

console.log(`Chromium ${chromium.version()}, ${cpus().length} × ${cpus()[0].model}`);
for (const [tier, { first, median, most }] of Object.entries(found.starts)) {
  const ms = (value) => `${value.toFixed(2)} ms`;
  console.log(`${tier}: bytes to first answer ${ms(first)} the first time, median ${ms(median)}, most ${ms(most)}`);
}
const base = found.results.find(({ name }) => name === 'tidegate core').perSecond;
console.log('| | evaluations a second | ns | of tidegate core |\n|---|---:|---:|---:|');
for (const { name, perSecond } of found.results) {
  const cells = [Math.round(perSecond).toLocaleString('en'), Math.round(1e9 / perSecond), (perSecond / base).toFixed(2)];
  console.log(`| ${[name, ...cells].join(' | ')} |`);
}
