// Runs the conformance corpus through the door that browsers use (wasm-bindgen, built for Node) and
// compares every byte with what the native evaluator answered, as parity.mjs does for the raw door.
//
//   cargo xtask test --only browser
//   node sdk-wasm/tests/node/browser.mjs target/browser/nodejs/evaluator.js target/corpus
//
// Left out, and counted: files with id lists or policies, which never travel to browsers, and cases asked with
// a browser's key, because this door answers from a snapshot that holds only what its key may see.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';

const [program, folder] = process.argv.slice(2);
if (!program || !folder) {
  console.error('usage: node browser.mjs EVALUATOR.js FOLDER');
  process.exit(2);
}
const { Evaluator } = createRequire(import.meta.url)(resolve(program));
const bytes = (base64) => Buffer.from(base64, 'base64');

let [passed, failed, leftOut] = [0, 0, 0];
function check(place, got, expected) {
  if (Buffer.from(got).equals(expected)) {
    passed += 1;
    return;
  }
  failed += 1;
  if (failed <= 10) console.error(`${place}\n  bindgen: ${got}\n  native:  ${expected}`);
}

for (const name of readdirSync(folder).filter((name) => name.endsWith('.json')).sort()) {
  const file = JSON.parse(readFileSync(join(folder, name), 'utf8'));
  if (file.lists.length > 0 || file.policies.length > 0) {
    leftOut += 2 * file.cases.length;
    continue;
  }
  const evaluator = new Evaluator(bytes(file.ruleset));
  for (const c of file.cases) {
    if (c.browser) {
      leftOut += 2;
      continue;
    }
    const place = `${file.file}: ${c.name}`;
    const [context, now] = [bytes(c.json).toString(), Number(c.nowMs)];
    assert(Number.isSafeInteger(now), `${place}: a time that JavaScript cannot hold`);
    check(`${place} (one)`, evaluator.evaluate(c.flag, context, now), bytes(c.one));
    check(`${place} (all)`, evaluator.evaluateAll(context, now), bytes(c.all));
  }
  // What cannot be decoded is an answer for one flag and an exception for all.
  const answer = JSON.parse(evaluator.evaluate('any', '{"targetingKey"', 0));
  assert.equal(answer.errorCode, 'INVALID_CONTEXT');
  assert.throws(() => evaluator.evaluateAll('{"targetingKey"', 0), Error);
  evaluator.free();
}
assert.throws(() => new Evaluator(Buffer.from('no ruleset')), Error);

console.log(`${passed} passed, ${failed} failed, ${leftOut} left out`);
process.exit(failed > 0 || passed < 1000 ? 1 : 0);
