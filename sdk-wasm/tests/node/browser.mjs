// Runs the conformance corpus under Node through the modules that browsers load, and compares every
// byte with what the native evaluator answered, as parity.mjs does for the raw door; then random
// contexts, whose compact form must be Rust's own.
//
//   cargo xtask test --only browser
//   node sdk-wasm/tests/node/browser.mjs target/browser target/corpus CORPUS-PROGRAM
//
// CORPUS-PROGRAM is the built `rules/examples/corpus.rs`: the Rust side of the contexts.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

import { check } from '../corpus.mjs';
import { randomValues } from '../contexts.mjs';

const [browser, corpus, program] = process.argv.slice(2);
if (!browser || !corpus || !program) {
  console.error('usage: node browser.mjs FOLDER CORPUS CORPUS-PROGRAM');
  process.exit(2);
}
const engine = await import(pathToFileURL(resolve(browser, 'engine.js')));
const read = (name) => JSON.parse(readFileSync(join(corpus, name), 'utf8'));
const files = readdirSync(corpus).filter((name) => name.endsWith('.json')).sort().map(read);
const compiled = (tier) => new WebAssembly.Module(readFileSync(join(browser, `${tier}.wasm`)));

for (const tier of ['core', 'full'].filter((tier) => existsSync(join(browser, `${tier}.wasm`)))) {
  const { passed, failed, failures, ...rest } = check(engine, compiled(tier), tier, files);
  for (const failure of failures) console.error(failure);
  console.log(`${tier}: ${passed} passed, ${failed} failed, ${JSON.stringify(rest)}`);
  assert.equal(failed, 0);
  assert(passed > (tier === 'full' ? 5_000 : 1_000), 'the corpus is not there');
}

// Random values against Rust's reading of what JSON.stringify writes.
const COUNT = 4_000;
const values = randomValues(5, COUNT);
const lines = values.map((value) => JSON.stringify(value));
const native = spawnSync(resolve(program), ['--contexts'], {
  input: lines.join('\n') + '\n',
  maxBuffer: 1 << 30,
});
assert.equal(native.status, 0, String(native.stderr));
const answers = native.stdout.toString().split('\n').slice(0, -1);
assert.equal(answers.length, COUNT);
const ruleset = Buffer.from(files.find((file) => file.file === 'types').ruleset, 'base64');
const one = engine.Engine.create(compiled('full'), ruleset);
let refused = 0;
for (const [at, value] of values.entries()) {
  let encoded;
  try {
    encoded = Buffer.from(one.encode(value)).toString('hex');
  } catch (error) {
    assert.equal(error.name, 'ContextError', `${lines[at]}: ${error.stack}`);
    assert.match(answers[at], /^error: /, `${lines[at]} was refused: ${error.message}`);
    refused += 1;
    continue;
  }
  assert.equal(encoded, answers[at], lines[at]);
}
assert(refused > 0 && refused < COUNT / 4, `${refused} refused`);
console.log(`${COUNT} random contexts as Rust encodes them, ${refused} of them refused by both`);
