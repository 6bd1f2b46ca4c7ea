/**
 * When to ask the edge: once at the start, then as its stream says, and every so often where a stream
 * cannot be had. Rests while the page is hidden. What to ask and what to do with it is `client.ts`.
 */
import type { Edge, StreamEvent } from './edge.js';
import { TidegateError, asError } from './errors.js';

export type Mode = 'stream' | 'poll' | 'off';

export interface Timing {
  readonly mode: Mode;
  readonly pollMs: number;
  /** A hidden page keeps its stream so long: people switch tabs and come back. */
  readonly hiddenMs: number;
}

export interface Handlers {
  /** Ask for everything, as far as it is new. */
  sync(): Promise<void>;
  event(event: StreamEvent): void;
  alive(): void;
  /** Updates do not come for now. */
  broken(error: Error): void;
}

const BACK_OFF_MS_MIN = 1_000;
const BACK_OFF_MS_MAX = 60_000;
/** The edge sends a comment every 15 s; so long a silence is a dead connection. */
const SILENCE_MS_MAX = 45_000;
/** So many streams that never said a word, and this page polls: some proxies hold streams back. */
const MUTE_STREAMS_MAX = 3;
/** A page that polls tries again so often whether a stream can be had. */
const POLLS_PER_STREAM = 10;
/** A key that is refused may be allowed again; asking often would not hasten it. */
const DENIED_MS = 5 * 60_000;

export class Updates {
  readonly #edge: Edge;
  readonly #timing: Timing;
  readonly #handlers: Handlers;
  readonly #stop = new AbortController();
  /** Ends what runs now, to begin anew. */
  #turn = new AbortController();
  #hidden: ReturnType<typeof setTimeout> | undefined;
  #resting = false;
  #lastEventId: string | undefined;
  #wake: (() => void) | undefined;

  constructor(edge: Edge, timing: Timing, handlers: Handlers) {
    [this.#edge, this.#timing, this.#handlers] = [edge, timing, handlers];
  }

  /** Whether the page is hidden and nothing shall be asked. */
  get resting(): boolean {
    return this.#resting;
  }

  start(): void {
    if (this.#timing.mode === 'off') return;
    const page = globalThis.document;
    const signal = this.#stop.signal;
    page?.addEventListener('visibilitychange', () => this.#visibility(page.visibilityState === 'hidden'), { signal });
    globalThis.window?.addEventListener?.('online', () => this.#again(), { signal });
    if (page?.visibilityState === 'hidden') this.#visibility(true);
    void this.#run();
  }

  stop(): void {
    this.#stop.abort();
    this.#turn.abort();
    clearTimeout(this.#hidden);
    this.#wake?.();
  }

  #visibility(hidden: boolean): void {
    clearTimeout(this.#hidden);
    if (hidden) {
      this.#hidden = unheld(setTimeout(() => {
        this.#resting = true;
        this.#turn.abort();
      }, this.#timing.hiddenMs));
    } else if (this.#resting) {
      this.#resting = false;
      this.#again();
    }
  }

  /** Whatever it waits for, it begins anew now. */
  #again(): void {
    this.#turn.abort();
    this.#wake?.();
  }

  async #run(): Promise<void> {
    let failures = 0;
    let mute = 0;
    let polls = 0;
    let first = true;
    while (!this.#stop.signal.aborted) {
      if (this.#resting) {
        await this.#sleep(Number.POSITIVE_INFINITY);
        continue;
      }
      this.#turn = new AbortController();
      const polling = this.#timing.mode === 'poll' || (mute >= MUTE_STREAMS_MAX && polls < POLLS_PER_STREAM);
      try {
        if (polling) {
          polls += 1;
          // The client asked at its start.
          if (!first) await this.#handlers.sync();
          first = false;
          failures = 0;
          await this.#sleep(jittered(this.#timing.pollMs));
          continue;
        }
        polls = 0;
        first = false;
        const spoke = await this.#stream();
        mute = spoke ? 0 : mute + 1;
        failures = spoke ? 0 : failures + 1;
        // Edges end streams now and then, so that clients spread over them; all at once would not.
        if (spoke) {
          await this.#sleep(jittered(BACK_OFF_MS_MIN));
          continue;
        }
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (this.#turn.signal.aborted) continue;
        failures += 1;
        if (!polling && !(error instanceof TidegateError && error.kind === 'UNAUTHORIZED')) mute += 1;
        this.#handlers.broken(asError(error));
        await this.#sleep(backOff(failures, error));
        continue;
      }
      await this.#sleep(backOff(failures, undefined));
    }
  }

  /** Whether it said anything before it ended. */
  async #stream(): Promise<boolean> {
    const turn = this.#turn;
    let spoke = false;
    let sequence = 0;
    let silence: ReturnType<typeof setTimeout> | undefined;
    const listen = () => {
      clearTimeout(silence);
      silence = unheld(setTimeout(() => turn.abort(new TidegateError('NETWORK', 'the stream fell silent')), SILENCE_MS_MAX));
    };
    const signal = AbortSignal.any([this.#stop.signal, turn.signal]);
    listen();
    try {
      await this.#edge.stream(this.#lastEventId, signal, {
        opened: listen,
        alive: () => {
          listen();
          spoke = true;
          this.#handlers.alive();
        },
        event: (event) => {
          const missed = event.sequence !== sequence + 1;
          sequence = event.sequence;
          this.#lastEventId = event.id ?? this.#lastEventId;
          if (missed) void this.#handlers.sync();
          else this.#handlers.event(event);
        },
      });
    } catch (error) {
      // Proxies cut streams that worked; that is an end like another.
      if (!spoke || signal.aborted) throw error;
      this.#handlers.broken(asError(error));
    } finally {
      clearTimeout(silence);
    }
    return spoke;
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = Number.isFinite(ms) ? unheld(setTimeout(done, ms)) : undefined;
      const wake = done.bind(this);
      this.#wake = wake;
      function done(this: unknown): void {
        clearTimeout(timer);
        resolve();
      }
      if (this.#stop.signal.aborted) wake();
    });
  }
}

/** In Node a timer alone does not keep the program running. */
export function unheld<T>(timer: T): T {
  (timer as { unref?: () => void }).unref?.();
  return timer;
}

/** ± 50 %: clients that were cut off together come back apart. */
export function jittered(ms: number): number {
  return ms * (0.5 + Math.random());
}

/** How long to wait after so many failures in a row, this one the last. */
export function backOff(failures: number, error: unknown): number {
  if (error instanceof TidegateError && error.kind === 'UNAUTHORIZED') return DENIED_MS;
  const asked = error instanceof TidegateError ? (error.retryAfterSeconds ?? 0) * 1000 : 0;
  const ceiling = Math.min(BACK_OFF_MS_MAX, BACK_OFF_MS_MIN * 2 ** Math.min(failures, 10));
  return Math.max(Math.min(asked, BACK_OFF_MS_MAX * 10), ceiling * (0.5 + Math.random() / 2));
}
