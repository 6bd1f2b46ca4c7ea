// A prototype for ADR 10: policies that carry their own budget, so that a host without fuel can run them.
//
//   cargo xtask test --only policies && node sdk-wasm/bench/instrument.mjs target/policies policies/vectors.json
//
// `instrument` rewrites a core module: two globals, `fuel` and `depth`, are added and exported; every
// straight piece of code pays for its instructions where it begins, every function and every turn of a
// loop looks whether either is below zero and traps, every call gives its level back when it returns, and
// `memory.fill`, `memory.copy` and `memory.grow` pay through a function. Indices of the module stay.
// Not a product: it measures, and nothing loads what it makes. It trusts its input: admission looked at it.

import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';

const FUEL = 1_000_000;
const DEPTH = 1_000;
const GROW_COST = 255;
const [TYPE, IMPORT, FUNCTION, GLOBAL, EXPORT, CODE] = [1, 2, 3, 6, 7, 10];
const ORDER = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11];
const I32 = 0x7f;

const unsigned = (value) => {
  const bytes = [];
  do {
    bytes.push((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
    value >>>= 7;
  } while (value > 0);
  return bytes;
};
const signed = (value) => {
  const bytes = [];
  for (;;) {
    const byte = value & 0x7f;
    value >>= 7;
    if ((value === 0 && !(byte & 0x40)) || (value === -1 && byte & 0x40)) return [...bytes, byte];
    bytes.push(byte | 0x80);
  }
};
const text = (value) => [...unsigned(value.length), ...new TextEncoder().encode(value)];

class Reader {
  constructor(bytes, at = 0) {
    Object.assign(this, { bytes, at });
  }
  leb() {
    let [value, shift, byte] = [0, 0, 0];
    do {
      byte = this.bytes[this.at++];
      value |= (byte & 0x7f) << shift;
      shift += 7;
    } while (byte & 0x80);
    return value >>> 0;
  }
  skip(lebs) {
    for (let n = 0; n < lebs; n += 1) this.leb();
  }
  /** One instruction: its opcode (with 0xfc00 added for the bulk ones), the place moved behind it. */
  instruction() {
    const op = this.bytes[this.at++];
    if (op === 0xfc) {
      const bulk = this.leb();
      this.skip([8, 10, 12, 14].includes(bulk) ? 2 : bulk > 7 ? 1 : 0);
      return 0xfc00 + bulk;
    }
    if (op === 0x0e) this.skip(this.leb() + 1);
    else if (op === 0x1c) this.skip(this.leb());
    else if (op === 0x11 || (op >= 0x28 && op <= 0x3e)) this.skip(2);
    else if (op === 0x43) this.at += 4;
    else if (op === 0x44) this.at += 8;
    else if ([0x02, 0x03, 0x04, 0x0c, 0x0d, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x3f, 0x40, 0x41, 0x42, 0xd0, 0xd2].includes(op)) this.skip(1);
    return op;
  }
}

export function instrument(bytes) {
  const sections = new Map();
  const reader = new Reader(bytes, 8);
  while (reader.at < bytes.length) {
    const id = bytes[reader.at++];
    const size = reader.leb();
    if (id !== 0) sections.set(id, bytes.subarray(reader.at, reader.at + size));
    reader.at += size;
  }
  const counted = (id) => {
    const from = new Reader(sections.get(id) ?? new Uint8Array([0]));
    const count = from.leb();
    return { count, body: from.bytes.subarray(from.at) };
  };
  // A policy imports functions only, so globals are the module's own.
  const [types, functions, globals, exported] = [TYPE, FUNCTION, GLOBAL, EXPORT].map(counted);
  const imported = counted(IMPORT).count;
  const [fuel, depth] = [globals.count, globals.count + 1];
  const [fill, copy, grow] = [0, 1, 2].map((n) => imported + functions.count + n);
  const look = [0x23, ...unsigned(fuel), 0x23, ...unsigned(depth), 0x72, 0x41, 0, 0x48, 0x04, 0x40, 0x00, 0x0b];
  const pay = (cost) => (cost === 0 ? [] : [0x23, ...unsigned(fuel), 0x41, ...signed(cost), 0x6b, 0x24, ...unsigned(fuel)]);
  const down = [0x23, ...unsigned(depth), 0x41, 1, 0x6b, 0x24, ...unsigned(depth)];
  const up = [0x23, ...unsigned(depth), 0x41, 1, 0x6a, 0x24, ...unsigned(depth)];

  const body = (code) => {
    const from = new Reader(code);
    for (let groups = from.leb(); groups > 0; groups -= 1) from.skip(2);
    const out = [...code.subarray(0, from.at), ...down];
    let [piece, cost, checks] = [[], 0, true];
    const flush = (next) => {
      out.push(...pay(cost), ...(checks ? look : []), ...piece);
      [piece, cost, checks] = [[], 0, next];
    };
    while (from.at < code.length) {
      const start = from.at;
      const op = from.instruction();
      const raw = code.subarray(start, from.at);
      if (op === 0xfc0b) piece.push(0x10, ...unsigned(fill));
      else if (op === 0xfc0a) piece.push(0x10, ...unsigned(copy));
      else if (op === 0x40) piece.push(0x10, ...unsigned(grow));
      else piece.push(...raw);
      if (op === 0x10 || op === 0x11) piece.push(...up);
      // block, loop and end cost nothing, a division four.
      if (![0x01, 0x02, 0x03, 0x05, 0x0b, 0x1a].includes(op)) cost += [0x6d, 0x6e, 0x6f, 0x70, 0x7f, 0x80, 0x81, 0x82].includes(op) ? 4 : 1;
      if ([0x03, 0x04, 0x05, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f].includes(op)) flush(op === 0x03);
    }
    flush(false);
    return [...unsigned(out.length), ...out];
  };

  const code = counted(CODE);
  const bodies = [];
  const from = new Reader(code.body);
  for (let n = 0; n < code.count; n += 1) {
    const size = from.leb();
    bodies.push(...body(code.body.subarray(from.at, from.at + size)));
    from.at += size;
  }
  // As many units as bytes, and nothing for a length that is "negative": that traps by itself.
  const bulk = (op) => {
    const get = (local) => [0x20, local];
    const inner = [0, 0x23, ...unsigned(fuel), ...get(2), 0x41, 0, ...get(2), 0x41, 0, 0x4e, 0x1b, 0x6b, 0x24, ...unsigned(fuel), ...look, ...get(0), ...get(1), ...get(2), ...op, 0x0b];
    return [...unsigned(inner.length), ...inner];
  };
  const growing = [0, ...pay(GROW_COST), ...look, 0x20, 0, 0x40, 0, 0x0b];
  bodies.push(...bulk([0xfc, 11, 0]), ...bulk([0xfc, 10, 0, 0]), ...unsigned(growing.length), ...growing);

  const [triple, single] = [types.count, types.count + 1];
  const vector = (count, ...parts) => [...unsigned(count), ...parts.flatMap((part) => [...part])];
  sections.set(TYPE, vector(types.count + 2, types.body, [0x60, 3, I32, I32, I32, 0], [0x60, 1, I32, 1, I32]));
  sections.set(FUNCTION, vector(functions.count + 3, functions.body, unsigned(triple), unsigned(triple), unsigned(single)));
  sections.set(GLOBAL, vector(globals.count + 2, globals.body, [I32, 1, 0x41, 0, 0x0b], [I32, 1, 0x41, 0, 0x0b]));
  sections.set(EXPORT, vector(exported.count + 2, exported.body, [...text('fuel'), 3, ...unsigned(fuel)], [...text('depth'), 3, ...unsigned(depth)]));
  sections.set(CODE, vector(code.count + 3, bodies));
  const out = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];
  for (const id of ORDER) {
    const section = sections.get(id);
    if (section) out.push(id, ...unsigned(section.length), ...section);
  }
  return new Uint8Array(out);
}

/** One call as the ABI has it: fresh memory, the input, the answer; and what it took of the budget. */
export function call(module, input, fuel = FUEL) {
  const { exports } = new WebAssembly.Instance(module, { 'tidegate.v1': { log() {} } });
  if (exports.fuel) [exports.fuel.value, exports.depth.value] = [fuel, DEPTH];
  const at = exports.tidegate_alloc(input.length) >>> 0;
  new Uint8Array(exports.memory.buffer).set(input, at);
  const packed = BigInt.asUintN(64, exports.evaluate(at, input.length));
  const [where, len] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
  const answer = new TextDecoder().decode(new Uint8Array(exports.memory.buffer, where, len));
  return { answer, used: exports.fuel && fuel - exports.fuel.value };
}

function main([folder, vectorsPath]) {
  const vectors = JSON.parse(readFileSync(vectorsPath, 'utf8')).map(({ input }) => new TextEncoder().encode(JSON.stringify(input)));
  console.log('| policy | bytes | gzip | instrumented | gzip | units a call | µs a call | instrumented |\n|---|---:|---:|---:|---:|---:|---:|---:|');
  for (const name of readdirSync(folder).filter((name) => name.endsWith('.wasm')).sort()) {
    const bytes = readFileSync(join(folder, name));
    const rewritten = instrument(bytes);
    const [plain, metered] = [bytes, rewritten].map((code) => new WebAssembly.Module(code));
    let used = 0;
    for (const input of vectors) {
      const [before, after] = [call(plain, input), call(metered, input)];
      if (before.answer !== after.answer) throw new Error(`${name}: ${after.answer}, not ${before.answer}`);
      used = Math.max(used, after.used);
      // One unit less than it needs is a trap, and exactly what it needs is none.
      call(metered, input, after.used);
      let trapped = false;
      try {
        call(metered, input, Math.floor(after.used / 2));
      } catch (error) {
        trapped = error instanceof WebAssembly.RuntimeError;
      }
      if (!trapped) throw new Error(`${name}: half of its fuel was enough`);
    }
    const times = [[], []];
    for (let round = 0; round < 21; round += 1) {
      for (const [which, module] of [plain, metered].entries()) {
        const start = performance.now();
        for (let n = 0; n < 300; n += 1) call(module, vectors[n % vectors.length]);
        times[which].push(((performance.now() - start) / 300) * 1_000);
      }
    }
    const [slow, metering] = times.map((found) => found.sort((a, b) => a - b)[10].toFixed(1));
    console.log(`| ${[name, bytes.length, gzipSync(bytes).length, rewritten.length, gzipSync(rewritten).length, used, slow, metering].join(' | ')} |`);
  }
  bomb();
}

/** A loop without an end, and what a long one costs: a multiplication and a branch for each turn. */
function bomb() {
  const code = [1, 1, I32, 0x03, 0x40, 0x20, 1, 0x41, ...signed(1664525), 0x6c, 0x41, 1, 0x6a, 0x21, 1, 0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b, 0x20, 1, 0x0b];
  const section = (id, body) => [id, ...unsigned(body.length), ...body];
  const bytes = new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(TYPE, [1, 0x60, 1, I32, 1, I32]), ...section(FUNCTION, [1, 0]), ...section(5, [1, 1, 1, 1]),
    ...section(EXPORT, [1, ...text('spin'), 0, 0]), ...section(CODE, [1, ...unsigned(code.length), ...code]),
  ]);
  const turn = (code, fuel, turns) => {
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(code));
    if (exports.fuel) [exports.fuel.value, exports.depth.value] = [fuel, DEPTH];
    const start = performance.now();
    let ended = 'ended';
    try {
      exports.spin(turns);
    } catch (error) {
      ended = error.message;
    }
    return { ms: performance.now() - start, ended };
  };
  const rewritten = instrument(bytes);
  const [turns, rounds] = [100_000_000, 7];
  const whole = (code) => {
    const { ms, ended } = turn(code, 2 ** 31 - 1, turns);
    if (ended !== 'ended') throw new Error(ended);
    return ms;
  };
  const found = [bytes, rewritten].map((code) => Array.from({ length: rounds }, () => whole(code)).sort((a, b) => a - b)[rounds >> 1]);
  console.log(`${turns} turns of a tight loop: ${found[0].toFixed(0)} ms, instrumented ${found[1].toFixed(0)} ms`);
  const { ms, ended } = turn(rewritten, FUEL, 0);
  console.log(`four thousand million turns on ${FUEL} units: ${ended}, after ${ms.toFixed(2)} ms`);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(process.argv.slice(2));
