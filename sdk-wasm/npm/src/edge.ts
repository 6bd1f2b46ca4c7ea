/** The edge over HTTP: snapshot, answers, stream, events. One request each; who asks again, and when, is `updates.ts`. */
import type { OfrepAnswer } from './answers.js';
import { TidegateError, asError } from './errors.js';
import { SNAPSHOT_BYTES_MAX, type Signed } from './snapshot.js';

const REQUEST_MS_MAX = 15_000;
/** An event holds at most a delta of half a snapshot, as base64. */
const EVENT_CHARS_MAX = SNAPSHOT_BYTES_MAX;

export interface Fetched<T> {
  /** Nothing new since the ETag that was sent. */
  readonly unchanged: boolean;
  readonly body: T | undefined;
  readonly etag: string | undefined;
}

export interface StateEvent {
  readonly type: 'state';
  readonly id: string | undefined;
  readonly sequence: number;
  /** The digest of the newest client snapshot. */
  readonly snapshot: string;
  readonly edge: boolean;
}

export interface DeltaEvent extends Omit<StateEvent, 'type'> {
  readonly type: 'delta';
  readonly base: string;
  readonly signed: Signed;
  readonly patch: string;
}

export type StreamEvent = StateEvent | DeltaEvent;

export interface StreamHandlers {
  opened(): void;
  event(event: StreamEvent): void;
  /** Something came, be it a comment: the connection lives. */
  alive(): void;
}

export class Edge {
  readonly url: string;
  readonly #key: string;
  readonly #fetch: typeof fetch;

  constructor(url: string, key: string, fetcher: typeof fetch | undefined) {
    this.url = url.replace(/\/+$/, '');
    this.#key = key;
    // `fetch` insists on its own `this`.
    this.#fetch = fetcher ?? ((input, init) => fetch(input, init));
  }

  async snapshot(etag: string | undefined, signal: AbortSignal): Promise<Fetched<Uint8Array>> {
    const answer = await this.#ask('/sdk/v1/snapshot', { headers: conditional(etag) }, signal);
    return fetched(answer, async () => {
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if (bytes.length > SNAPSHOT_BYTES_MAX) throw new TidegateError('REFUSED', 'the snapshot is longer than any may be');
      return bytes;
    });
  }

  /** `limitMs` counts if it is more than any request has. */
  async answers(
    context: unknown, etag: string | undefined, signal: AbortSignal, limitMs: number,
  ): Promise<Fetched<OfrepAnswer[]>> {
    const init = {
      method: 'POST',
      headers: { ...conditional(etag), 'content-type': 'application/json' },
      body: JSON.stringify({ context }),
    };
    const answer = await this.#ask('/sdk/v1/evaluate', init, signal, Math.max(REQUEST_MS_MAX, limitMs));
    return fetched(answer, async () => {
      const { flags } = (await answer.json()) as { flags?: OfrepAnswer[] };
      if (!Array.isArray(flags)) throw new TidegateError('NETWORK', 'what answered is no edge: its answer has no flags');
      return flags;
    });
  }

  /** Ends when the edge ends it, or throws when it broke; `signal` ends it at once. */
  async stream(lastEventId: string | undefined, signal: AbortSignal, handlers: StreamHandlers): Promise<void> {
    const headers: Record<string, string> = { accept: 'text/event-stream' };
    if (lastEventId) headers['last-event-id'] = lastEventId;
    const answer = await this.#ask('/sdk/v1/stream', { headers }, signal, 0);
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    if (!reader) throw new TidegateError('NETWORK', 'the stream has no body');
    handlers.opened();
    const parser = new EventParser((event) => handlers.event(event));
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      handlers.alive();
      parser.feed(value);
    }
  }

  /** Whether it was taken for sending: there is no answer, since the page may be on its way out. */
  beacon(body: object): boolean {
    const text = JSON.stringify({ key: this.#key, ...body });
    const url = `${this.url}/sdk/v1/events`;
    // As text: a JSON beacon would need a preflight, which a page that closes does not wait for.
    const kind = 'text/plain;charset=UTF-8';
    if (typeof navigator !== 'undefined' && typeof navigator.sendBeacon === 'function') {
      return navigator.sendBeacon(url, new Blob([text], { type: kind }));
    }
    this.#fetch(url, { method: 'POST', body: text, headers: { 'content-type': kind } }).catch(() => {});
    return true;
  }

  async #ask(path: string, init: RequestInit, signal: AbortSignal, limitMs = REQUEST_MS_MAX): Promise<Response> {
    const headers = { authorization: `Bearer ${this.#key}`, ...(init.headers as Record<string, string>) };
    const signals = limitMs > 0 ? AbortSignal.any([signal, AbortSignal.timeout(limitMs)]) : signal;
    let answer: Response;
    try {
      // Credentials are for the app's own server; an edge knows keys only. And the browser's own cache
      // would answer a 304 with whatever body it kept, be it one that was refused.
      answer = await this.#fetch(this.url + path, { credentials: 'omit', cache: 'no-store', ...init, headers, signal: signals });
    } catch (error) {
      signal.throwIfAborted();
      throw new TidegateError('NETWORK', `${this.url} does not answer: ${asError(error).message}`, { cause: error });
    }
    if (answer.ok || answer.status === 304) return answer;
    throw await refusal(answer, this.url + path);
  }
}

function conditional(etag: string | undefined): Record<string, string> {
  return etag ? { 'if-none-match': etag } : {};
}

async function fetched<T>(answer: Response, read: () => Promise<T>): Promise<Fetched<T>> {
  const etag = answer.headers.get('etag') ?? undefined;
  if (answer.status === 304) return { unchanged: true, body: undefined, etag };
  try {
    return { unchanged: false, body: await read(), etag };
  } catch (error) {
    if (error instanceof TidegateError) throw error;
    throw new TidegateError('NETWORK', `the answer broke off: ${asError(error).message}`, { cause: error });
  }
}

async function refusal(answer: Response, url: string): Promise<TidegateError> {
  const text = await answer.text().catch(() => '');
  let details = '';
  try {
    const body = JSON.parse(text) as { errorDetails?: string; detail?: string };
    details = body.errorDetails ?? body.detail ?? '';
  } catch {
    // A proxy's page; the status says enough.
  }
  const denied = answer.status === 401 || answer.status === 403;
  const seconds = Number.parseInt(answer.headers.get('retry-after') ?? '', 10);
  const message = `${url} answers ${answer.status}${details ? `: ${details}` : ''}`;
  return new TidegateError(denied ? 'UNAUTHORIZED' : 'NETWORK', message, {
    ...(seconds > 0 ? { retryAfterSeconds: seconds } : {}),
  });
}

/** Server-sent events, as the HTML standard reads them, of the kinds that are known here. */
export class EventParser {
  readonly #take: (event: StreamEvent) => void;
  #rest = '';
  #type = '';
  #data = '';
  #id: string | undefined;

  constructor(take: (event: StreamEvent) => void) {
    this.#take = take;
  }

  feed(text: string): void {
    this.#rest += text;
    if (this.#rest.length + this.#data.length > EVENT_CHARS_MAX) {
      throw new TidegateError('NETWORK', 'an event of the stream is longer than any may be');
    }
    for (;;) {
      const end = this.#rest.search(/\r\n|\n|\r/);
      if (end < 0) return;
      // A return at the very end may be the first half of a line's end.
      if (this.#rest[end] === '\r' && end + 1 === this.#rest.length) return;
      const line = this.#rest.slice(0, end);
      this.#rest = this.#rest.slice(this.#rest.startsWith('\r\n', end) ? end + 2 : end + 1);
      this.#line(line);
    }
  }

  #line(line: string): void {
    if (line === '') {
      const [type, data] = [this.#type, this.#data];
      this.#type = this.#data = '';
      if (data && (type === 'state' || type === 'delta')) this.#dispatch(type, data);
      return;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#type = value;
    else if (field === 'data') this.#data += this.#data ? `\n${value}` : value;
    else if (field === 'id') this.#id = value;
  }

  #dispatch(type: StreamEvent['type'], data: string): void {
    let event: StreamEvent;
    try {
      event = { ...(JSON.parse(data) as object), type, id: this.#id } as StreamEvent;
    } catch (error) {
      throw new TidegateError('NETWORK', 'an event of the stream is not JSON', { cause: error });
    }
    this.#take(event);
  }
}
