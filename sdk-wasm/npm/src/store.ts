/**
 * The last good flags, kept for the next visit: what makes a reload start with values instead of
 * defaults, and an app work offline.
 *
 * A storage that is full, forbidden or damaged costs that and nothing else. No context is kept, only a
 * hash of it, so that one person's values are not given to the next.
 */
import type { OfrepAnswer } from './answers.js';
import { decodeBase64, encodeBase64, isOlder, type Version } from './snapshot.js';

/** What `localStorage` offers; anything with these may stand in for it. */
export interface TextStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface Stored extends Version {
  /** When the edge last said that this is the newest; milliseconds since the epoch. */
  readonly confirmedMs: number;
  readonly etag: string | undefined;
  /** The container, or nothing where it was too long. */
  readonly container: Uint8Array | undefined;
  /** `contextHash` of whom `answers` are for. */
  readonly context: string;
  readonly answers: readonly OfrepAnswer[];
}

const FORMAT = 1;
/** Longer ones would crowd out what else an origin keeps in its five megabytes. */
const TEXT_CHARS_MAX = 1_500_000;

interface Written extends Omit<Stored, 'container'> {
  readonly format: number;
  readonly container: string | undefined;
}

export class Store {
  readonly #storage: TextStorage | undefined;
  readonly #name: string;

  /** By edge and key: two apps of one origin do not see each other's. */
  constructor(storage: TextStorage | false | undefined, edgeUrl: string, key: string) {
    this.#storage = storage === false ? undefined : (storage ?? browserStorage());
    this.#name = `tidegate:${hash(`${edgeUrl}\n${key}`)}`;
  }

  read(): Stored | undefined {
    try {
      const text = this.#storage?.getItem(this.#name);
      if (!text) return undefined;
      const { format, container, ...rest } = JSON.parse(text) as Written;
      if (format !== FORMAT || !Array.isArray(rest.answers)) return undefined;
      return { ...rest, container: container === undefined ? undefined : decodeBase64(container) };
    } catch {
      // Damaged: the next write replaces it.
      return undefined;
    }
  }

  /** Why it was not kept, if it was not. */
  write(stored: Stored): Error | undefined {
    if (!this.#storage) return undefined;
    try {
      const there = this.read();
      // Another tab may be further.
      if (there && isOlder(stored, there)) return undefined;
      const container = stored.container && encodeBase64(stored.container);
      const short = container !== undefined && container.length <= TEXT_CHARS_MAX;
      const written: Written = { ...stored, format: FORMAT, container: short ? container : undefined };
      this.#storage.setItem(this.#name, JSON.stringify(written));
      return undefined;
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }

  clear(): void {
    try {
      this.#storage?.removeItem(this.#name);
    } catch {
      // Forbidden storage has nothing to clear.
    }
  }
}

function browserStorage(): TextStorage | undefined {
  try {
    return globalThis.localStorage;
  } catch {
    // Reading the property throws where storage is blocked.
    return undefined;
  }
}

/** The same for the same context, whatever the order of its members. */
export function contextHash(context: unknown): string {
  return hash(JSON.stringify(sorted(context)) ?? '');
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== 'object' || value instanceof Date) return value;
  const entries = Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1));
  return Object.fromEntries(entries.map(([key, inner]) => [key, sorted(inner)]));
}

/** FNV-1a in two lanes. Tells contexts of one browser apart; no secret and no proof. */
function hash(text: string): string {
  let [low, high] = [0x811c9dc5, 0x1000193];
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    low = Math.imul(low ^ unit, 0x01000193);
    high = Math.imul(high ^ unit ^ (low >>> 13), 0x85ebca6b);
  }
  return [low, high].map((lane) => (lane >>> 0).toString(16).padStart(8, '0')).join('');
}
