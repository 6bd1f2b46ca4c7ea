// One ruleset in one wasm instance: the only caller of `sdk-wasm/src/browser.rs`.
//
// An evaluation hands over two numbers and gets one back; texts cross only for an answer that was
// not given before. So what is frozen here is shared: equal answers of a flag are one object.

import { ContextError, encode } from './context.js';

export type JsonValue =
  | null
  | boolean
  | number
  | string
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue };

/** What a flag came to. Without `value` the caller's own default is meant. */
export interface Answer {
  readonly value?: JsonValue;
  readonly variant?: string;
  readonly reason: string;
  readonly errorCode?: string;
  readonly errorMessage?: string;
  readonly flagMetadata: Readonly<Record<string, string | number | boolean>>;
}

/** The ruleset or the context was refused. */
export class EngineError extends Error {
  override readonly name = 'EngineError';

  constructor(
    readonly code: 'INVALID_RULESET' | 'INVALID_CONTEXT',
    message: string,
  ) {
    super(message);
  }
}

interface Exports {
  readonly memory: WebAssembly.Memory;
  buffer(len: number): number;
  output(): number;
  load(len: number): number;
  flags(): number;
  hash(len: number): number;
  context(len: number): void;
  evaluate(flag: number, nowMs: number): number;
  answer(): number;
  explain?(flag: number, nowMs: number): number;
}

/** A flag, and its answer of the last time, which is mostly the next one too. */
interface Slot {
  readonly flag: number;
  code: number;
  answer: Answer;
  /** By code, once there was more than one. */
  others?: Map<number, Answer>;
}

/** Codes of errors: their text depends on more than their code. */
const isError = (code: number): boolean => (code & 15) >= 10;
/** Hashes of keys that are remembered: contexts have the same keys again and again. */
const HASHES_MAX = 1_000;

const utf8 = new TextEncoder();
const text = new TextDecoder();

export class Engine {
  readonly keys: readonly string[];
  /** The trace of an evaluation; only the full module has it. */
  readonly explain?: (key: string, nowMs: number) => unknown;

  #exports: Exports;
  #slots = new Map<string, Slot>();
  #hashes = new Map<string, number>();

  /** Throws EngineError with the reason if the bytes are no ruleset that this module can evaluate. */
  static create(module: WebAssembly.Module, ruleset: Uint8Array): Engine {
    try {
      return new Engine(new WebAssembly.Instance(module), ruleset);
    } catch (error) {
      if (error instanceof EngineError) throw error;
      // Not our module, or no memory for this ruleset.
      throw new EngineError('INVALID_RULESET', `the evaluator failed: ${(error as Error).message}`);
    }
  }

  private constructor(instance: WebAssembly.Instance, ruleset: Uint8Array) {
    const exports = (this.#exports = instance.exports as unknown as Exports);
    const refused = exports.load(this.#put(ruleset));
    if (refused > 0) throw new EngineError('INVALID_RULESET', this.#take(refused));
    const flags = JSON.parse(this.#take(exports.flags())) as { key: string }[];
    this.keys = flags.map(({ key }, flag) => {
      this.#slots.set(key, { flag, code: -1, answer: UNKNOWN });
      return key;
    });
    if (exports.explain) {
      this.explain = (key, nowMs) => {
        const slot = this.#slots.get(key);
        return slot && JSON.parse(this.#take(exports.explain!(slot.flag, nowMs)));
      };
    }
  }

  has(key: string): boolean {
    return this.#slots.has(key);
  }

  /** The context of every evaluation from now on. If it is refused, the one before stays. */
  setContext(context: unknown): void {
    let bytes: Uint8Array;
    try {
      bytes = this.encode(context);
    } catch (error) {
      if (error instanceof ContextError) throw new EngineError('INVALID_CONTEXT', error.message);
      throw error;
    }
    this.setCompactContext(bytes);
  }

  /** A context as the evaluator reads it; the same bytes for every engine of this version. */
  encode(context: unknown): Uint8Array {
    return encode(context, (key) => this.#hash(key));
  }

  /** As `setContext`, for what `encode` made. */
  setCompactContext(bytes: Uint8Array): void {
    this.#exports.context(this.#put(bytes));
  }

  evaluate(key: string, nowMs: number): Answer {
    const slot = this.#slots.get(key);
    if (slot === undefined) return UNKNOWN;
    const code = this.#exports.evaluate(slot.flag, nowMs);
    return code === slot.code ? slot.answer : this.#another(slot, code);
  }

  /** The answer of a code that is not the flag's last one. */
  #another(slot: Slot, code: number): Answer {
    if (isError(code)) return answerOf(this.#take(this.#exports.answer()));
    const others = (slot.others ??= new Map<number, Answer>());
    let answer = others.get(code);
    if (answer === undefined) {
      answer = answerOf(this.#take(this.#exports.answer()));
      others.set(code, answer);
    }
    slot.code = code;
    slot.answer = answer;
    return answer;
  }

  /** The OFREP answer, byte for byte what an edge answers. */
  answerJson(key: string, nowMs: number): string {
    const slot = this.#slots.get(key);
    if (slot === undefined) {
      const { errorCode, errorMessage: errorDetails } = UNKNOWN;
      return JSON.stringify({ key, errorCode, errorDetails, metadata: {} });
    }
    this.#exports.evaluate(slot.flag, nowMs);
    return this.#take(this.#exports.answer());
  }

  /** After it every flag is unknown. */
  free(): void {
    this.#slots.clear();
    // The instance goes with the engine, its memory with it.
    this.#exports.context(this.#put(new Uint8Array()));
  }

  #hash(key: string): number {
    let hash = this.#hashes.get(key);
    if (hash === undefined) {
      hash = this.#exports.hash(this.#put(utf8.encode(key))) >>> 0;
      if (this.#hashes.size >= HASHES_MAX) this.#hashes.clear();
      this.#hashes.set(key, hash);
    }
    return hash;
  }

  #put(bytes: Uint8Array): number {
    const start = this.#exports.buffer(bytes.length);
    // A view of its own each time: memory that grows leaves old ones empty.
    new Uint8Array(this.#exports.memory.buffer, start, bytes.length).set(bytes);
    return bytes.length;
  }

  #take(len: number): string {
    return text.decode(new Uint8Array(this.#exports.memory.buffer, this.#exports.output(), len));
  }
}

const UNKNOWN: Answer = Object.freeze({
  reason: 'ERROR',
  errorCode: 'FLAG_NOT_FOUND',
  errorMessage: 'the flag does not exist',
  flagMetadata: Object.freeze({}),
});

/** From OFREP's JSON; frozen all through, because callers share it. */
export function answerOf(ofrep: string): Answer {
  const { value, variant, reason, errorCode, errorDetails, metadata } = JSON.parse(ofrep);
  const flagMetadata = metadata ?? {};
  return freeze(
    errorCode === undefined
      ? { ...(value === undefined ? {} : { value }), ...(variant ? { variant } : {}), reason, flagMetadata }
      : { reason: 'ERROR', errorCode, errorMessage: errorDetails, flagMetadata },
  );
}

/** All through. */
export function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const part of Object.values(value)) freeze(part);
  }
  return value;
}
