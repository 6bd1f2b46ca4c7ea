// Runs the conformance corpus on the evaluator's wasm in Node and compares every byte with what the
// native evaluator answered.
//
//   cargo run -p rules --example corpus target/corpus
//   node sdk-wasm/tests/node/parity.mjs target/wasm/evaluator.wasm target/corpus
//
// The host here is the whole of what a JavaScript host has to be: see `sdk-wasm/src/abi.rs`.

import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const [wasmPath, folder] = process.argv.slice(2);
if (!wasmPath || !folder) {
  console.error('usage: node parity.mjs EVALUATOR.wasm FOLDER');
  process.exit(2);
}

const ONE = 1, ALL = 2, ONE_JSON = 3, ALL_JSON = 4;
const module = new WebAssembly.Module(readFileSync(wasmPath));
const bytes = (base64) => Buffer.from(base64, 'base64');

class Guest {
  constructor(ruleset, lists, policies) {
    const members = lists.map((ids) => new Set(ids));
    const list_contains = (list, start, length) =>
      members[list]?.has(this.text(start, length)) ? 1 : 0;
    // A policy plays its part: it answers, or it fails as `rules::policy::PolicyFault::code` says.
    const policy = (index, start, length, out, room) => {
      const { input, answer, fault } = policies[index];
      if (input !== null && input !== this.text(start, length)) return -1;
      if (fault !== null) return fault;
      const bytes = Buffer.from(answer);
      if (bytes.length > room) return -6;
      new Uint8Array(this.exports.memory.buffer).set(bytes, out);
      return bytes.length;
    };
    const policy_refused = () => {};
    const tidegate = { list_contains, policy, policy_refused };
    this.exports = new WebAssembly.Instance(module, { tidegate }).exports;
    if (this.exports.tg_abi() !== 1) throw new Error('another ABI');
    const error = this.call(ruleset, (length) => this.exports.tg_load(length));
    if (error.length > 0) throw new Error(error.toString());
  }

  text(start, length) {
    return Buffer.from(this.exports.memory.buffer, start, length).toString();
  }

  call(input, run) {
    const start = this.exports.tg_buffer(input.length) >>> 0;
    new Uint8Array(this.exports.memory.buffer).set(input, start);
    const packed = BigInt.asUintN(64, run(input.length));
    const [at, length] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
    return Buffer.from(new Uint8Array(this.exports.memory.buffer, at, length));
  }

  evaluate(op, browser, key, context, nowMs) {
    const name = Buffer.from(key);
    const head = Buffer.from([op, browser ? 1 : 0, name.length & 255, name.length >> 8]);
    const request = Buffer.concat([head, name, context]);
    const answer = this.call(request, (length) => this.exports.tg_evaluate(length, BigInt(nowMs)));
    return { status: answer.readUInt16LE(0), body: answer.subarray(2) };
  }
}

// A little below what there were when this was written, those that the core takes counted again, so that none
// go missing unseen.
const CASES_MIN = 2_600;
const CHECKS_PER_CASE = 4;

let cases = 0;
let passed = 0;
let failed = 0;
function check(place, got, status, expected) {
  if (got.status === status && got.body.equals(expected)) {
    passed += 1;
    return;
  }
  failed += 1;
  if (failed <= 10) {
    console.error(`${place}\n  node:   ${got.status} ${got.body}\n  native: ${status} ${expected}`);
  }
}

for (const name of readdirSync(folder).filter((name) => name.endsWith('.json')).sort()) {
  const file = JSON.parse(readFileSync(join(folder, name), 'utf8'));
  const guest = new Guest(bytes(file.ruleset), file.lists, file.policies);
  cases += file.cases.length;
  for (const c of file.cases) {
    const place = `${file.file}: ${c.name}`;
    const [one, all] = [bytes(c.one), bytes(c.all)];
    for (const [ops, context] of [[[ONE, ALL], c.compact], [[ONE_JSON, ALL_JSON], c.json]]) {
      const ask = (op) => guest.evaluate(op, c.browser, c.flag, bytes(context), c.nowMs);
      check(`${place} (op ${ops[0]})`, ask(ops[0]), c.status, one);
      check(`${place} (op ${ops[1]})`, ask(ops[1]), 200, all);
    }
  }
}
console.log(`${passed} passed, ${failed} failed, of ${cases} cases`);
if (cases < CASES_MIN) console.error(`fewer than ${CASES_MIN} cases: some of the corpus is missing`);
process.exit(passed === CHECKS_PER_CASE * cases && cases >= CASES_MIN ? 0 : 1);
