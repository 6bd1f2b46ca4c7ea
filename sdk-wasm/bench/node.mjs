// cargo xtask wasm --browser && cargo run -p rules --example corpus target/corpus
// npm ci --prefix sdk-wasm/bench && node sdk-wasm/bench/node.mjs target/browser target/corpus
//
// `page.mjs` does the same in Chromium.

import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

import { contenders, first, run } from './evaluate.mjs';

/** Prints what `first` found of each tier, and `run` of everybody. */
export function table(firsts, results) {
  const ms = (value) => `${value.toFixed(2)} ms`;
  for (const [tier, { first: once, median, most }] of Object.entries(firsts)) {
    console.log(`${tier}: bytes to first answer ${ms(once)} the first time, median ${ms(median)}, most ${ms(most)}`);
  }
  const base = results.find(({ name }) => name === 'tidegate core').perSecond;
  console.log('| | evaluations a second | ns | of tidegate core |\n|---|---:|---:|---:|');
  for (const { name, perSecond } of results) {
    const cells = [Math.round(perSecond).toLocaleString('en'), Math.round(1e9 / perSecond), (perSecond / base).toFixed(2)];
    console.log(`| ${[name, ...cells].join(' | ')} |`);
  }
}

async function main([browser, corpus]) {
  if (!browser || !corpus) {
    console.error('usage: node node.mjs FOLDER CORPUS');
    process.exit(2);
  }
  const engine = await import(pathToFileURL(resolve(browser, 'engine.js')));
  const file = JSON.parse(readFileSync(join(corpus, 'three-rules.json'), 'utf8'));
  const ruleset = new Uint8Array(Buffer.from(file.ruleset, 'base64'));
  const [modules, firsts] = [{}, {}];
  for (const tier of ['core', 'full']) {
    modules[tier] = readFileSync(join(browser, `${tier}.wasm`));
    firsts[tier] = await first(engine, modules[tier], ruleset);
  }
  table(firsts, run(contenders(engine, modules, ruleset)));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main(process.argv.slice(2));
