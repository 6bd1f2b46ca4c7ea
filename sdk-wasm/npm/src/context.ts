// Contexts in the compact form of `rules/src/context.rs`, which is the specification of the layout
// (its version: `MARK`): the evaluator then reads them in place and needs no JSON parser.
//
// A context means what `JSON.stringify` makes of it, and the bytes are those that Rust makes of that
// text: `sdk-wasm/tests/contexts.mjs` compares them. What Rust refuses is refused here.

/** A context was refused; the message says why. */
export class ContextError extends Error {
  override readonly name = 'ContextError';
}

/** The hash of a key by which the evaluator finds it: `rules::context::key_hash` of its UTF-8 bytes. */
export type KeyHash = (key: string) => number;

// "Ct", and version 1 of the layout.
const MARK = 0x1_7443;
const HEADER = 16;
const CELL = 20;
const INDEXED_FROM = 33;
/** As `limits::CONTEXT_BYTES_MAX` and `NESTING_MAX`. */
const BYTES_MAX = 65_536;
const NESTING_MAX = 16;
const [NULL, BOOL, INT, FLOAT, STR, ARRAY, OBJECT] = [0, 1, 2, 3, 4, 5, 6] as const;

const utf8 = new TextEncoder();

/** A value without a key: a tag and eight bytes as two numbers. */
interface Cell {
  hash: number;
  start: number;
  len: number;
  tag: number;
  low: number;
  high: number;
}

/** The compact form; no bytes for `undefined` and null, which are the empty context. */
export function encode(context: unknown, hash: KeyHash): Uint8Array {
  const json = stringify(context);
  if (json === undefined || json === 'null') return new Uint8Array();
  // No character has more than three bytes for each of its UTF-16 units.
  if (json.length * 3 > BYTES_MAX) {
    const bytes = json.length > BYTES_MAX ? json.length : utf8.encode(json).length;
    if (bytes > BYTES_MAX) {
      throw new ContextError(`the context is over ${BYTES_MAX} bytes long as JSON, which is the limit`);
    }
  }
  const value: unknown = JSON.parse(json);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const what = Array.isArray(value) ? 'an array' : `a ${typeof value}`;
    throw new ContextError(`the context must be an object, not ${what}`);
  }
  const writer = new Writer(hash);
  const root = writer.value(value, 0);
  return writer.finish(root);
}

function stringify(context: unknown): string | undefined {
  try {
    return JSON.stringify(context);
  } catch (error) {
    // BigInt, a circle, a nesting without an end, a `toJSON` or a getter that throws.
    throw new ContextError(`the context cannot be written as JSON: ${(error as Error).message}`);
  }
}

class Writer {
  #cells: Cell[] = [];
  // Encoded once, at the end: each call of a text encoder costs a browser a microsecond.
  #text = '';
  #used = 0;
  #hash: KeyHash;
  // A number's eight bytes as two halves, in the order of the layout.
  #number = new DataView(new ArrayBuffer(8));

  constructor(hash: KeyHash) {
    this.#hash = hash;
  }

  value(value: unknown, depth: number): Cell {
    if (value === null) return cell(NULL, 0, 0);
    switch (typeof value) {
      case 'boolean':
        return cell(BOOL, value ? 1 : 0, 0);
      case 'number':
        return this.#numeric(value);
      case 'string':
        return cell(STR, ...this.#store(value));
      default:
        return this.#container(value as object, depth + 1);
    }
  }

  #numeric(value: number): Cell {
    if (Number.isSafeInteger(value)) return cell(INT, value >>> 0, Math.floor(value / 2 ** 32) >>> 0);
    const view = this.#number;
    // Below 2^63; beyond 2^53 JSON's digits are not the number's own, and Rust reads the digits.
    if (Number.isInteger(value) && Math.abs(value) < 1e19) {
      const exact = BigInt(String(value));
      if (BigInt.asIntN(64, exact) === exact) {
        view.setBigInt64(0, exact, true);
        return cell(INT, view.getUint32(0, true), view.getUint32(4, true));
      }
    }
    view.setFloat64(0, value, true);
    return cell(FLOAT, view.getUint32(0, true), view.getUint32(4, true));
  }

  #store(text: string): [start: number, len: number] {
    const start = this.#used;
    let len = text.length;
    if (/[^\x00-\x7f]/.test(text)) {
      // Half a pair: no UTF-8 has it, and Rust refuses it.
      if (/[\ud800-\udfff]/u.test(text)) {
        throw new ContextError('the context has a text with half of a surrogate pair');
      }
      len = utf8.encode(text).length;
    }
    this.#text += text;
    this.#used += len;
    return [start, len];
  }

  #container(value: object, depth: number): Cell {
    if (depth > NESTING_MAX) {
      throw new ContextError(`the context is nested deeper than ${NESTING_MAX} levels`);
    }
    let own: Cell[];
    const array = Array.isArray(value);
    if (array) {
      own = value.map((item) => this.value(item, depth));
    } else {
      const keys: string[] = [];
      own = Object.entries(value).map(([key, item]) => {
        const [start, len] = this.#store(key);
        keys.push(key);
        return { ...this.value(item, depth), hash: this.#hash(key), start, len };
      });
      if (own.length >= INDEXED_FROM) this.#index(own, keys);
    }
    const start = this.#cells.length;
    for (const entry of own) this.#cells.push(entry);
    return cell(array ? ARRAY : OBJECT, start, own.length);
  }

  /** The entries' numbers in the order of hash and key, before the entries of a large object. */
  #index(own: Cell[], keys: string[]): void {
    const order = own.map((_, at) => at);
    order.sort((a, b) => own[a]!.hash - own[b]!.hash || compare(keys[a]!, keys[b]!));
    const words = CELL / 4;
    for (let at = 0; at < order.length; at += words) {
      const [a = 0, b = 0, c = 0, d = 0, e = 0] = order.slice(at, at + words);
      // The five words of a cell, whatever they are called there.
      this.#cells.push({ hash: a, start: b, len: c & 0xffffff, tag: c >>> 24, low: d, high: e });
    }
  }

  finish(root: Cell): Uint8Array {
    const cells = this.#cells;
    const bytes = new Uint8Array(HEADER + cells.length * CELL + this.#used);
    const view = new DataView(bytes.buffer);
    [MARK, cells.length, root.low, root.high].forEach((word, at) => view.setUint32(at * 4, word, true));
    cells.forEach(({ hash, start, len, tag, low, high }, index) => {
      const at = HEADER + index * CELL;
      view.setUint32(at, hash, true);
      view.setUint32(at + 4, start, true);
      view.setUint32(at + 8, len | (tag << 24), true);
      view.setUint32(at + 12, low, true);
      view.setUint32(at + 16, high, true);
    });
    utf8.encodeInto(this.#text, bytes.subarray(HEADER + cells.length * CELL));
    return bytes;
  }
}

function cell(tag: number, low: number, high: number): Cell {
  return { hash: 0, start: 0, len: 0, tag, low, high };
}

/** By their bytes, as Rust does; only keys of one hash are compared. */
function compare(a: string, b: string): number {
  const [x, y] = [utf8.encode(a), utf8.encode(b)];
  const at = x.findIndex((byte, place) => byte !== y[place]);
  return at < 0 ? x.length - y.length : x[at]! - (y[at] ?? -1);
}
