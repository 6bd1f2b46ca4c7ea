/**
 * A client: the newest snapshot that the pinned key signed, evaluated here, and beside it the answers of
 * the flags that the edge evaluates for browsers.
 *
 * Promises: what the edge sent is used only when its signature holds and it is not older than what is
 * there; answers are synchronous; one person's answers are never given to another; nothing that the
 * network, the storage or the edge does throws out of a method that reads a flag.
 */
import { failed, fromOfrep, same, toOfrep, type OfrepAnswer } from './answers.js';
import { ContextError, encode } from './context.js';
import { Edge, type StreamEvent } from './edge.js';
import { Engine, type Answer, type JsonValue } from './engine.js';
import { TidegateError, asError } from './errors.js';
import {
  Trust, applyPatch, decodeBase64, isOlder, readContainer, writeContainer, type Snapshot, type Version,
} from './snapshot.js';
import { Store, contextHash, type TextStorage } from './store.js';
import { Updates, backOff, unheld, type Mode } from './updates.js';
import { Usage } from './usage.js';

export type { Answer, JsonValue } from './engine.js';

/**
 * - `NOT_READY`: there are no flags yet; every flag has the caller's default.
 * - `READY`: there are flags, and the edge has confirmed them.
 * - `STALE`: there are flags, and whether they are the newest is not known (`ageMs` says since when).
 * - `ERROR`: there are no flags, and something is in the way (`error` says what). It is tried again.
 */
export type State = 'NOT_READY' | 'READY' | 'STALE' | 'ERROR';

export type Context = { readonly targetingKey?: string } & { readonly [attribute: string]: unknown };

/** What a server renders into its page, so that the page's flags are there from its first line. */
export interface Bootstrap {
  /** The answer of `POST /ofrep/v1/evaluate/flags` for `context`, as the server got it with the browser key. */
  readonly answers?: { readonly flags: readonly OfrepAnswer[] };
  /** Whom `answers` are for. They serve only while this is the context. */
  readonly context?: Context;
  /** The body of `GET /sdk/v1/snapshot`, as base64 or bytes: saves the page that request. Its signature is checked. */
  readonly snapshot?: string | Uint8Array;
}

export interface ClientOptions {
  /** Where an edge is: `https://flags.example.com`. */
  readonly edgeUrl: string;
  /** `tg_browser_…`. Public: it opens only what is marked for clients. */
  readonly key: string;
  /** Who may sign flags: `ed25519:…`, one or, while the key is being changed, several. */
  readonly publicKey: string | readonly string[];
  /** Who uses the app, as far as rules need it. */
  readonly context?: Context;
  readonly bootstrap?: Bootstrap;
  /** Where the last good flags are kept; default `localStorage`, `false` for nowhere. */
  readonly storage?: TextStorage | false;
  /** How changes arrive; default `stream`. */
  readonly updates?: Mode;
  /** Seconds between questions where there is no stream, ± 50 %; default 60, at least 5. */
  readonly pollSeconds?: number;
  /** Seconds for which a hidden page keeps its stream; default 60. */
  readonly hiddenSeconds?: number;
  /** Seconds that a change of context waits for the edge's answers at most; default 5. */
  readonly contextSeconds?: number;
  /** Whether evaluations are counted (per flag, variant and minute; nothing of a context) and the counts sent; default yes. */
  readonly usage?: boolean;
  /** The evaluators, already compiled; needed by `@tidegate/web/module` only. The full one can do all that the core one can. */
  readonly wasm?: Partial<Record<Tier, WebAssembly.Module | Promise<WebAssembly.Module>>>;
  readonly fetch?: typeof fetch;
}

export type Tier = 'core' | 'full';
export type LoadModule = (tier: Tier) => Promise<WebAssembly.Module>;

export interface Events {
  /** These flags answer otherwise than before, for this context. */
  change: { readonly flags: readonly string[] };
  state: { readonly state: State; readonly error: Error | undefined };
  /** Something went wrong; flags are still answered as well as can be. */
  error: { readonly error: Error };
}

const USAGE_MS = 60_000;
/** Timers hold no more than 24 days; a day is enough to look again. */
const TIMER_MS_MAX = 24 * 3600_000;

export class Client {
  readonly #options: ClientOptions;
  readonly #load: LoadModule;
  readonly #edge: Edge;
  readonly #trust: Trust;
  readonly #store: Store;
  readonly #usage: Usage | undefined;
  /** How long a change of context waits for the edge's answers. */
  readonly #contextMs: number;
  readonly #updates: Updates;
  readonly #stop = new AbortController();
  readonly #listeners: { [K in keyof Events]: Set<(event: Events[K]) => void> } = {
    change: new Set(), state: new Set(), error: new Set(),
  };
  readonly #modules = new Map<Tier, Promise<WebAssembly.Module>>();
  readonly #ready: Promise<void>;

  #context: Context;
  /** What is to be the context; another one only while the edge is asked for its answers. */
  #wanted: Context;
  #state: State = 'NOT_READY';
  #error: Error | undefined;
  #confirmedMs: number | undefined;

  #snapshot: Snapshot | undefined;
  #engine: Engine | undefined;
  #etag: string | undefined;
  /** Of flags that the edge evaluates, for `#context`; and what may answer until the engine is there. */
  #remote = new Map<string, Answer>();
  #remoteEtag: string | undefined;
  #remoteFor: Context | undefined;
  #early = new Map<string, Answer>();

  #asking: Promise<void> | undefined;
  #askAgain = false;
  #events: Promise<void> = Promise.resolve();
  /** Whether the edge has said that the snapshot is the newest, since it last failed to. */
  #current = false;
  #failures = 0;
  #told: string | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #remoteTurn: AbortController | undefined;
  #remoteRun: Promise<void> | undefined;
  #boundary: ReturnType<typeof setTimeout> | undefined;
  #saving: ReturnType<typeof setTimeout> | undefined;
  #saveFailed = false;

  constructor(options: ClientOptions, load: LoadModule) {
    check(options);
    this.#options = options;
    this.#load = load;
    this.#context = { ...options.context };
    checkContext(this.#context);
    this.#wanted = this.#context;
    this.#edge = new Edge(options.edgeUrl, options.key, options.fetch);
    const pinned = options.publicKey;
    this.#trust = new Trust(typeof pinned === 'string' ? [pinned] : pinned);
    this.#store = new Store(options.storage, this.#edge.url, options.key);
    this.#usage = options.usage === false ? undefined : new Usage();
    this.#contextMs = Math.min(Math.max(0, (options.contextSeconds ?? 5) || 0) * 1000, TIMER_MS_MAX);
    const timing = {
      mode: options.updates ?? 'stream',
      pollMs: Math.max(5, options.pollSeconds ?? 60) * 1000,
      hiddenMs: Math.max(0, options.hiddenSeconds ?? 60) * 1000,
    };
    this.#updates = new Updates(this.#edge, timing, {
      sync: () => this.sync(),
      // One after the other: a delta stands on the one before.
      event: (event) => (this.#events = this.#events.then(() => this.#streamed(event))),
      // Every change comes through here, so while it lives what is here is the newest.
      alive: () => {
        if (this.#state === 'READY') this.#confirmedMs = Date.now();
      },
      broken: (error) => this.#fell(error),
    });
    this.#ready = this.#start();
    // Whoever waits hears of it.
    this.#ready.catch(() => {});
    if (this.#usage) this.#reportUsage();
  }

  get state(): State {
    return this.#state;
  }

  /** Why the state is `ERROR` or `STALE`, if that is known. */
  get error(): Error | undefined {
    return this.#error;
  }

  /** Milliseconds since the edge last confirmed these flags; nothing before it ever did. */
  get ageMs(): number | undefined {
    return this.#confirmedMs === undefined ? undefined : Math.max(0, Date.now() - this.#confirmedMs);
  }

  get context(): Context {
    return this.#context;
  }

  /** Of the snapshot that is evaluated here. */
  get version(): Version | undefined {
    return this.#snapshot?.head;
  }

  /** Every flag that this key may see, as far as it is known, in order. */
  keys(): string[] {
    const keys = new Set([...(this.#engine?.keys ?? []), ...this.#remote.keys(), ...this.#early.keys()]);
    return [...keys].sort();
  }

  /** Where a flag is answered: here, or at the edge. */
  evaluatedAt(key: string): 'here' | 'edge' | undefined {
    if (this.#engine?.has(key)) return 'here';
    return this.#remote.has(key) ? 'edge' : undefined;
  }

  /** Resolves when there are flags, be they from storage; rejects with what is in the way of the first ones. */
  ready(): Promise<void> {
    return this.#ready;
  }

  /** The answer for the context, whole. Counted as one use of the flag. */
  evaluate(key: string): Answer {
    const now = Date.now();
    const answer = this.#peek(key, now);
    if (this.#usage && answer.errorCode !== 'FLAG_NOT_FOUND' && answer.errorCode !== 'PROVIDER_NOT_READY') {
      this.#usage.count(key, answer, now);
    }
    return answer;
  }

  boolean(key: string, otherwise: boolean): boolean {
    const { value } = this.evaluate(key);
    return typeof value === 'boolean' ? value : otherwise;
  }

  string(key: string, otherwise: string): string {
    const { value } = this.evaluate(key);
    return typeof value === 'string' ? value : otherwise;
  }

  number(key: string, otherwise: number): number {
    const { value } = this.evaluate(key);
    return typeof value === 'number' ? value : otherwise;
  }

  /** Objects and arrays. The value is shared and frozen; copy it to change it. */
  object<T extends JsonValue>(key: string, otherwise: T): T {
    const { value } = this.evaluate(key);
    return typeof value === 'object' && value !== null ? (value as T) : otherwise;
  }

  /**
   * Answers for somebody else from now on. Flags that are evaluated here answer at once for who it was
   * until the edge has answered for its flags too, so that all of them change together; that is waited
   * for some seconds, and then the edge's flags have the caller's default until it answers.
   */
  async setContext(context: Context): Promise<void> {
    const next = { ...context };
    // Before anything has changed.
    checkContext(next);
    this.#wanted = next;
    if (!this.#engine) {
      // Early answers are another person's from here on.
      if (contextHash(next) !== contextHash(this.#context)) {
        this.#changing(() => {
          this.#context = next;
          this.#early.clear();
        });
        if (this.#state !== 'ERROR') this.#become('NOT_READY', this.#error);
      }
      this.#context = next;
      return;
    }
    if (!this.#snapshot?.manifest.edge) {
      // An answer that is still on its way was asked for somebody before.
      this.#remoteTurn?.abort();
      this.#remoteTurn = this.#remoteRun = undefined;
      this.#changing(() => this.#use(next));
      return;
    }
    await this.#askAnswers();
  }

  /** Something happened that is worth counting: its name, how often, and the sum of its values. */
  track(name: string, value?: number): void {
    if (typeof name !== 'string' || name === '' || name.length > 256) return;
    this.#usage?.track(name, Number.isFinite(value) ? value : undefined, Date.now());
  }

  /**
   * Why a flag answers as it does: the trace of its rules. Of a flag that the edge evaluates there is
   * none, because its rules never leave the edge. Fetches the larger evaluator the first time.
   */
  async explain(key: string): Promise<unknown> {
    const snapshot = this.#snapshot;
    if (!snapshot || !this.#engine?.has(key)) return undefined;
    const engine = Engine.create(await this.#module('full'), snapshot.ruleset);
    try {
      engine.setContext(this.#context);
      return engine.explain?.(key, Date.now());
    } finally {
      engine.free();
    }
  }

  on<K extends keyof Events>(type: K, listener: (event: Events[K]) => void): () => void {
    const listeners = this.#listeners[type];
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Asks the edge now for whatever is new. Does not throw: what goes wrong is told as state and event. */
  async sync(): Promise<void> {
    await this.#syncRules();
    await this.#remoteRun;
  }

  /** As `sync`; the edge's answers are asked for, and not waited for. */
  #syncRules(): Promise<void> {
    this.#askAgain = true;
    this.#asking ??= (async () => {
      try {
        while (this.#askAgain && !this.#stop.signal.aborted) {
          this.#askAgain = false;
          try {
            await this.#ask();
          } catch (error) {
            // Who asked meanwhile is to have an answer of their own.
            if (!this.#askAgain) throw error;
          }
        }
      } catch (error) {
        this.#fell(asError(error));
        this.#tryLater(error);
      } finally {
        this.#asking = undefined;
      }
    })();
    return this.#asking;
  }

  /** Sends what was counted, and ends: no more updates. Answers stay. */
  close(): void {
    this.#flush();
    this.#save();
    this.#stop.abort();
    this.#updates.stop();
    this.#remoteTurn?.abort();
    clearTimeout(this.#boundary);
    clearTimeout(this.#retry);
    for (const listeners of Object.values(this.#listeners)) listeners.clear();
  }

  async #start(): Promise<void> {
    const { bootstrap } = this.#options;
    const stored = this.#store.read();
    const whom = contextHash(this.#context);
    if (bootstrap?.answers && contextHash(bootstrap.context ?? this.#context) === whom) {
      // The page is as much to be trusted as its scripts.
      this.#adopt(bootstrap.answers.flags, undefined);
      this.#confirmedMs = Date.now();
      this.#become('READY', undefined);
    } else if (stored && stored.answers.length > 0 && stored.context === whom) {
      this.#adopt(stored.answers, 'CACHED');
      this.#confirmedMs = stored.confirmedMs;
      this.#become('STALE', undefined);
    }
    const begin = async () => {
      // Beside the snapshot and not after it: most rules need no more than this one.
      if (!this.#options.wasm) this.#module('core').catch(() => {});
      const given = bootstrap?.snapshot;
      if (given) {
        const container = () => (typeof given === 'string' ? decodeBase64(given) : given);
        await this.#take(container, undefined, 'the bootstrap');
      }
      if (stored?.container) {
        const container = stored.container;
        const taken = await this.#take(() => container, stored.etag, 'the storage');
        if (taken) this.#confirmedMs ??= stored.confirmedMs;
      }
      await this.sync();
      this.#updates.start();
    };
    const began = begin().catch((error: unknown) => this.#fell(asError(error)));
    if (this.#state === 'READY' || this.#state === 'STALE') return;
    await Promise.race([began, this.#someFlags()]);
    if (!this.#engine) throw this.#error ?? new TidegateError('NETWORK', 'there are no flags yet');
  }

  #adopt(answers: readonly OfrepAnswer[], reason: string | undefined): void {
    for (const one of answers) this.#early.set(one.key, fromOfrep(one, reason));
  }

  #someFlags(): Promise<void> {
    return new Promise((resolve) => {
      const off = this.on('state', ({ state }) => {
        if (state === 'READY' || state === 'STALE') {
          off();
          resolve();
        }
      });
    });
  }

  /** Of what is kept or given: whether it serves. */
  async #take(container: () => Uint8Array, etag: string | undefined, from: string): Promise<boolean> {
    try {
      const { signed, blob } = readContainer(container());
      const snapshot = await this.#trust.verify(signed, blob);
      await this.#install(snapshot, etag);
      if (this.#state !== 'READY') this.#become('STALE', this.#error);
      return true;
    } catch (error) {
      if (error instanceof TidegateError && error.kind === 'UNSUPPORTED') throw error;
      this.#tell(new TidegateError('REFUSED', `what ${from} holds is not used: ${asError(error).message}`, { cause: error }));
      return false;
    }
  }

  async #ask(): Promise<void> {
    const before = this.#snapshot;
    const got = await this.#edge.snapshot(this.#etag, this.#stop.signal);
    if (got.body) {
      const { signed, blob } = readContainer(got.body);
      const snapshot = await this.#trust.verify(signed, blob);
      // The stream may have brought a newer one meanwhile; that is no reason to refuse this one aloud.
      const overtaken = this.#snapshot !== before && isOlder(snapshot.head, this.#snapshot!.head);
      if (!overtaken || (before && isOlder(snapshot.head, before.head))) await this.#install(snapshot, got.etag);
    }
    if (!this.#engine) throw new TidegateError('NETWORK', 'the edge says that nothing is new, and nothing is here');
    this.#complete();
  }

  async #streamed(event: StreamEvent): Promise<void> {
    try {
      const here = this.#snapshot;
      if (event.snapshot !== here?.head.digest) {
        if (event.type !== 'delta' || event.base !== here?.head.digest) return void (await this.#syncRules());
        const blob = applyPatch(here.blob, decodeBase64(event.patch));
        // The ETag is of the whole; the next question brings it.
        await this.#install(await this.#trust.verify(event.signed, blob), undefined);
      }
      this.#complete();
    } catch (error) {
      // A delta is a short cut: what it cannot bring, the whole can.
      this.#tell(asError(error));
      await this.#syncRules();
    }
  }

  /** Evaluates this one from now on, unless there is a newer one. */
  async #install(snapshot: Snapshot, etag: string | undefined): Promise<void> {
    const module = await this.#module(snapshot.manifest.tier);
    const there = this.#snapshot;
    if (there && isOlder(snapshot.head, there.head)) {
      throw new TidegateError('REFUSED', 'the snapshot is refused: it is older than the one that is here');
    }
    if (there?.head.digest === snapshot.head.digest) {
      this.#snapshot = snapshot;
      this.#etag = etag ?? this.#etag;
      return;
    }
    const engine = Engine.create(module, snapshot.ruleset);
    const before = this.#engine;
    this.#changing(() => {
      engine.setContext(this.#context);
      this.#engine = engine;
      this.#snapshot = snapshot;
      this.#etag = etag;
      if (!snapshot.manifest.edge) {
        this.#remote.clear();
        // When such flags are back, "nothing new" would be of answers that are not here any more.
        this.#remoteEtag = this.#remoteFor = undefined;
      }
    });
    before?.free();
    this.#awaitBoundary();
  }

  #module(tier: Tier): Promise<WebAssembly.Module> {
    const given = this.#options.wasm;
    const ready = given?.[tier] ?? given?.full;
    if (ready) return Promise.resolve(ready);
    let module = this.#modules.get(tier);
    if (!module) {
      module = this.#load(tier).catch((error: unknown) => {
        if (!(error instanceof WebAssembly.CompileError)) throw error;
        const text = `this page may not compile WebAssembly (${error.message}); allow 'wasm-unsafe-eval' in its content security policy`;
        throw new TidegateError('UNSUPPORTED', text, { cause: error });
      });
      this.#modules.set(tier, module);
      // The next one who needs it tries again.
      module.catch(() => this.#modules.delete(tier));
    }
    return module;
  }

  /** The edge's answers for the wanted context, which becomes the context with them; a question that runs is put anew. */
  #askAnswers(): Promise<void> {
    this.#remoteTurn?.abort();
    const turn = new AbortController();
    this.#remoteTurn = turn;
    return (this.#remoteRun = this.#askAnswersIn(turn, this.#wanted));
  }

  async #askAnswersIn(turn: AbortController, context: Context): Promise<void> {
    const signal = AbortSignal.any([this.#stop.signal, turn.signal]);
    const other = contextHash(context) !== contextHash(this.#context);
    const etag = this.#remoteFor && contextHash(this.#remoteFor) === contextHash(context) ? this.#remoteEtag : undefined;
    const tooLate = () => turn.abort(new TidegateError('NETWORK', 'the edge did not answer in time'));
    const late = other ? unheld(setTimeout(tooLate, this.#contextMs)) : undefined;
    try {
      const got = await this.#edge.answers(context, etag, signal, this.#contextMs);
      if (this.#remoteTurn !== turn) return this.#remoteRun;
      // The edge's flags may have gone while it answered.
      const wanted = this.#snapshot?.manifest.edge;
      this.#changing(() => {
        if (other) this.#use(context);
        if (wanted && got.body) this.#remote = new Map(got.body.map((one) => [one.key, fromOfrep(one)]));
      });
      if (wanted) [this.#remoteFor, this.#remoteEtag] = [context, got.etag];
      if (this.#current) this.#confirm();
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      // The later question has the answer for this one, too.
      if (this.#remoteTurn !== turn) return this.#remoteRun;
      if (other) {
        this.#changing(() => {
          this.#use(context);
          // They were for whoever it was before.
          this.#remote = new Map();
        });
        this.#remoteEtag = this.#remoteFor = undefined;
      }
      this.#fell(asError(error));
      this.#tryLater(error);
    } finally {
      clearTimeout(late);
      if (this.#remoteTurn === turn) this.#remoteTurn = undefined;
    }
  }

  #use(context: Context): void {
    this.#engine?.setContext(context);
    this.#context = context;
    this.#early.clear();
  }

  #peek(key: string, nowMs: number): Answer {
    const engine = this.#engine;
    if (engine?.has(key)) return engine.evaluate(key, nowMs);
    const answer = this.#remote.get(key) ?? this.#early.get(key);
    if (answer) return answer;
    if (!engine) return NOT_READY;
    // It may be one of the edge's, whose answers are on their way.
    if (this.#snapshot?.manifest.edge && !this.#remoteFor) return NOT_READY;
    return engine.evaluate(key, nowMs);
  }

  /** Makes a change and tells which flags answer otherwise for it. */
  #changing(change: () => void): void {
    const now = Date.now();
    const all = () => new Map(this.keys().map((key) => [key, this.#peek(key, now)]));
    const before = this.#listeners.change.size > 0 ? all() : undefined;
    change();
    if (!before) return;
    const after = all();
    const keys = [...new Set([...before.keys(), ...after.keys()])].sort();
    // What was not there and is a default yet is no change.
    const flags = keys.filter((key) => !same(known(before.get(key)), known(after.get(key))));
    if (flags.length > 0) this.#emit('change', { flags });
  }

  /** Schedules and ramps move at times that the snapshot lists. */
  #awaitBoundary(): void {
    clearTimeout(this.#boundary);
    const now = Date.now();
    const next = this.#snapshot?.manifest.boundariesMs.find((at) => at > now);
    if (next === undefined || this.#stop.signal.aborted) return;
    const before = new Map(this.#engine?.keys.map((key) => [key, this.#engine!.evaluate(key, now)]));
    this.#boundary = unheld(setTimeout(() => {
      const later = Date.now();
      const flags = [...before].filter(([key, answer]) => !same(answer, this.#engine?.evaluate(key, later)));
      if (flags.length > 0) this.#emit('change', { flags: flags.map(([key]) => key) });
      this.#awaitBoundary();
    }, Math.min(next - now, TIMER_MS_MAX)));
  }

  /**
   * The snapshot is the newest; the answers of the edge have to be so, too. They are not waited for: a slow
   * answer of the edge must not hold up the next change of rules.
   */
  #complete(): void {
    this.#current = true;
    if (this.#snapshot?.manifest.edge) void this.#askAnswers();
    else this.#confirm();
  }

  /** A failure that no stream will mend: it may live, and bring nothing. */
  #tryLater(error: unknown): void {
    clearTimeout(this.#retry);
    if (this.#options.updates === 'off' || this.#stop.signal.aborted) return;
    this.#failures += 1;
    this.#retry = unheld(setTimeout(() => this.#updates.resting || void this.sync(), backOff(this.#failures, error)));
  }

  #confirm(): void {
    this.#failures = 0;
    this.#told = undefined;
    clearTimeout(this.#retry);
    this.#confirmedMs = Date.now();
    this.#early.clear();
    this.#become('READY', undefined);
    this.#saveSoon();
  }

  #fell(error: Error): void {
    if (this.#stop.signal.aborted) return;
    this.#current = false;
    this.#become(this.#engine || this.#early.size > 0 ? 'STALE' : 'ERROR', error);
    // Once: an edge that is away is so at every attempt.
    if (error.message !== this.#told) this.#tell(error);
    this.#told = error.message;
  }

  #become(state: State, error: Error | undefined): void {
    this.#error = error;
    if (state === this.#state) return;
    this.#state = state;
    this.#emit('state', { state, error });
  }

  #tell(error: Error): void {
    if (this.#listeners.error.size === 0) console.warn(`tidegate: ${error.message}`);
    else this.#emit('error', { error });
  }

  #emit<K extends keyof Events>(type: K, event: Events[K]): void {
    for (const listener of [...this.#listeners[type]]) {
      try {
        listener(event);
      } catch (error) {
        // A listener's mistake is its own; flags go on.
        console.error(error);
      }
    }
  }

  /** A little later, so that a burst of changes is written once. */
  #saveSoon(): void {
    clearTimeout(this.#saving);
    this.#saving = unheld(setTimeout(() => this.#save(), 200));
  }

  #save(): void {
    clearTimeout(this.#saving);
    const snapshot = this.#snapshot;
    if (!snapshot || this.#confirmedMs === undefined) return;
    const now = Date.now();
    const answers = this.keys().map((key) => toOfrep(key, this.#peek(key, now)));
    const failure = this.#store.write({
      generation: snapshot.head.generation,
      revision: snapshot.head.revision,
      confirmedMs: this.#confirmedMs,
      etag: this.#etag,
      container: writeContainer(snapshot.signed, snapshot.blob),
      context: contextHash(this.#context),
      answers: answers.filter((one) => !one.errorCode),
    });
    if (failure && !this.#saveFailed) {
      this.#saveFailed = true;
      this.#tell(new TidegateError('UNSUPPORTED', `flags are not kept for the next visit: ${failure.message}`, { cause: failure }));
    }
  }

  #reportUsage(): void {
    const signal = this.#stop.signal;
    const timer = unheld(setInterval(() => this.#flush(), USAGE_MS));
    signal.addEventListener('abort', () => clearInterval(timer));
    // Both: a page that is closed from the switcher of a phone sees only the first.
    const page = globalThis.document;
    page?.addEventListener('visibilitychange', () => page.visibilityState === 'hidden' && this.#leave(), { signal });
    globalThis.window?.addEventListener?.('pagehide', () => this.#leave(), { signal });
  }

  #leave(): void {
    this.#flush();
    this.#save();
  }

  #flush(): void {
    this.#usage?.flush(Date.now(), (batch) => this.#edge.beacon(batch));
  }
}

const NOT_READY = failed('PROVIDER_NOT_READY', 'the flags are not here yet');

function known(answer: Answer | undefined): Answer | undefined {
  return answer === NOT_READY ? undefined : answer;
}

/** What the evaluator would refuse is refused where it is given. */
function checkContext(context: Context): void {
  try {
    encode(context, () => 0);
  } catch (error) {
    if (error instanceof ContextError) throw new TidegateError('INVALID_CONTEXT', error.message, { cause: error });
    throw error;
  }
}

function check(options: ClientOptions): void {
  const wrong = (what: string) => new TidegateError('OPTIONS', what);
  if (typeof options !== 'object' || options === null) throw wrong('options: an object is needed, with edgeUrl, key and publicKey');
  const { edgeUrl, key, publicKey } = options;
  if (typeof edgeUrl !== 'string' || !/^https?:\/\/[^/?#]/.test(edgeUrl)) {
    throw wrong(`edgeUrl: ${JSON.stringify(edgeUrl)} is no http or https address, such as https://flags.example.com`);
  }
  if (typeof key !== 'string' || !key.startsWith('tg_')) throw wrong('key: a key is needed that begins with tg_browser_');
  if (key.startsWith('tg_server_') && globalThis.document) {
    throw wrong('key: this is a server key, which is secret and must not be in a page; make a browser key');
  }
  if (publicKey === undefined) throw wrong('publicKey: the key that signs the flags has to be pinned, ed25519:…');
}
