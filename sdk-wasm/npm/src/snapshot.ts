/**
 * What an edge sends to browsers, read and believed only when the pinned key signed it.
 *
 * A container is `"TGCS" | format u16 | head_len u16 | JSON {head, key_id, signature} | blob`, a blob
 * `"TGCL" | format u16 | 0 u16 | manifest_len u32 | manifest JSON | ruleset`; numbers are little endian.
 * The signature (Ed25519) is over the bytes of `head`, which names the blob by its SHA-256. Shapes:
 * `rules/src/client.rs`.
 */
import { TidegateError } from './errors.js';

const FORMAT = 1;
const CONTAINER_HEADER = 8;
const BLOB_HEADER = 12;
/** The limit of the table in `rules`: what no honest edge exceeds. */
export const SNAPSHOT_BYTES_MAX = 32 * 1024 * 1024;

/** Order of snapshots: generation first. */
export interface Version {
  readonly generation: number;
  readonly revision: number;
}

/** The text that is signed. */
export interface Head extends Version {
  readonly namespace: string;
  readonly environment: string;
  /** SHA-256 of the blob, hexadecimal. */
  readonly digest: string;
  readonly bytes: number;
  readonly issuedAtMs: number;
}

export interface Signed {
  readonly head: string;
  readonly key_id: string;
  /** Base64. */
  readonly signature: string;
}

export interface Manifest {
  readonly namespace: string;
  readonly environment: string;
  /** Which of the two evaluators its rules need. */
  readonly tier: 'core' | 'full';
  readonly flags: number;
  /** Whether there are flags that the edge evaluates for browsers. */
  readonly edge: boolean;
  /** When answers change without a new snapshot; sorted, in milliseconds since the epoch. */
  readonly boundariesMs: readonly number[];
}

/** A snapshot that the pinned key signed. */
export interface Snapshot {
  readonly head: Head;
  readonly signed: Signed;
  readonly blob: Uint8Array;
  readonly manifest: Manifest;
  readonly ruleset: Uint8Array;
}

const refused = (why: string, cause?: unknown) =>
  new TidegateError('REFUSED', `the snapshot is refused: ${why}`, { cause });

export function isOlder(one: Version, than: Version): boolean {
  return one.generation < than.generation || (one.generation === than.generation && one.revision < than.revision);
}

export function decodeBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

export function encodeBase64(bytes: Uint8Array): string {
  const parts: string[] = [];
  // As many as a call may have arguments, in every engine.
  for (let at = 0; at < bytes.length; at += 8192) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 8192)));
  }
  return btoa(parts.join(''));
}

const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

/** The public keys that an app pins, ready to check with. */
export class Trust {
  readonly #keys: Promise<Map<string, CryptoKey>>;

  /** `ed25519:` and base64, as `tidegate` prints them. Throws if a text is no such key. */
  constructor(texts: readonly string[]) {
    const raw = texts.map((text) => {
      const wrong = () =>
        new TidegateError(
          'OPTIONS',
          `publicKey: ${JSON.stringify(text)} is not "ed25519:" and the base64 of 32 bytes, as \`tidegate\` prints it`,
        );
      if (typeof text !== 'string' || !text.startsWith('ed25519:')) throw wrong();
      let bytes: Uint8Array;
      try {
        bytes = decodeBase64(text.slice(8));
      } catch {
        throw wrong();
      }
      if (bytes.length !== 32) throw wrong();
      return bytes;
    });
    if (raw.length === 0) throw new TidegateError('OPTIONS', 'publicKey: at least one key has to be pinned');
    this.#keys = importKeys(raw);
    // Whoever asks hears of it; nobody may ask.
    this.#keys.catch(() => {});
  }

  async verify(signed: Signed, blob: Uint8Array): Promise<Snapshot> {
    const key = (await this.#keys).get(signed.key_id);
    if (!key) throw refused(`it is signed with the key ${signed.key_id}, which is not pinned here`);
    let signature: Uint8Array;
    try {
      signature = decodeBase64(signed.signature);
    } catch (error) {
      throw refused('its signature is not base64', error);
    }
    const text = new TextEncoder().encode(signed.head);
    if (!(await crypto.subtle.verify('Ed25519', key, own(signature), own(text)))) {
      throw refused('its signature does not hold');
    }
    const head = parse<Head>(signed.head, 'head');
    const digest = hex(new Uint8Array(await crypto.subtle.digest('SHA-256', own(blob))));
    if (digest !== head.digest) throw refused('its bytes are not those that were signed');
    const { manifest, ruleset } = readBlob(blob);
    if (manifest.namespace !== head.namespace || manifest.environment !== head.environment) {
      throw refused('its head names another environment than its manifest');
    }
    return { head, signed, blob, manifest, ruleset };
  }
}

async function importKeys(raw: Uint8Array[]): Promise<Map<string, CryptoKey>> {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) {
    throw new TidegateError(
      'UNSUPPORTED',
      'signatures cannot be checked on this page, because it is no secure context: serve it over https, or from localhost',
    );
  }
  const keys = new Map<string, CryptoKey>();
  for (const bytes of raw) {
    const id = hex(new Uint8Array(await subtle.digest('SHA-256', own(bytes)))).slice(0, 16);
    try {
      keys.set(id, await subtle.importKey('raw', own(bytes), { name: 'Ed25519' }, false, ['verify']));
    } catch (error) {
      const text = 'this browser cannot check Ed25519 signatures (Chrome 137, Firefox 129, Safari 17 and newer can)';
      throw new TidegateError('UNSUPPORTED', text, { cause: error });
    }
  }
  return keys;
}

/** WebCrypto's types refuse views of shared memory; ours never are. */
function own(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return bytes as Uint8Array<ArrayBuffer>;
}

function parse<T>(text: string, what: string): T {
  try {
    return JSON.parse(text) as T;
  } catch (error) {
    throw refused(`its ${what} is not JSON`, error);
  }
}

export function readContainer(bytes: Uint8Array): { signed: Signed; blob: Uint8Array } {
  const header = frame(bytes, 'TGCS', CONTAINER_HEADER);
  const end = CONTAINER_HEADER + header.getUint16(6, true);
  if (bytes.length < end) throw refused('it is cut short');
  const signed = parse<Signed>(new TextDecoder().decode(bytes.subarray(CONTAINER_HEADER, end)), 'signed head');
  for (const part of [signed.head, signed.key_id, signed.signature]) {
    if (typeof part !== 'string') throw refused('its signed head lacks a part');
  }
  return { signed, blob: bytes.subarray(end) };
}

export function writeContainer(signed: Signed, blob: Uint8Array): Uint8Array {
  const { head, key_id, signature } = signed;
  const text = new TextEncoder().encode(JSON.stringify({ head, key_id, signature }));
  const bytes = new Uint8Array(CONTAINER_HEADER + text.length + blob.length);
  bytes.set(new TextEncoder().encode('TGCS'));
  const view = new DataView(bytes.buffer);
  view.setUint16(4, FORMAT, true);
  view.setUint16(6, text.length, true);
  bytes.set(text, CONTAINER_HEADER);
  bytes.set(blob, CONTAINER_HEADER + text.length);
  return bytes;
}

function readBlob(bytes: Uint8Array): { manifest: Manifest; ruleset: Uint8Array } {
  const header = frame(bytes, 'TGCL', BLOB_HEADER);
  const end = BLOB_HEADER + header.getUint32(8, true);
  if (bytes.length < end) throw refused('its manifest is cut short');
  const manifest = parse<Manifest>(new TextDecoder().decode(bytes.subarray(BLOB_HEADER, end)), 'manifest');
  return { manifest, ruleset: bytes.subarray(end) };
}

function frame(bytes: Uint8Array, magic: string, header: number): DataView {
  if (bytes.length < header || String.fromCharCode(...bytes.subarray(0, 4)) !== magic) {
    throw refused('it is none: its first bytes are others');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, header);
  const format = view.getUint16(4, true);
  if (format !== FORMAT) throw refused(`its format is ${format}, this package reads ${FORMAT}: update @tidegate/web`);
  return view;
}

/**
 * A blob from the one before: operations `0, start u32, len u32` (from the base) and `1, len u32, bytes`.
 * What comes out is believed by its digest only.
 */
export function applyPatch(base: Uint8Array, patch: Uint8Array): Uint8Array {
  const view = new DataView(patch.buffer, patch.byteOffset, patch.byteLength);
  const parts: Uint8Array[] = [];
  let [at, length] = [0, 0];
  while (at < patch.length) {
    const copies = patch[at] === 0;
    if (!copies && patch[at] !== 1) throw refused('its delta has an unknown operation');
    if (at + (copies ? 9 : 5) > patch.length) throw refused('its delta is cut short');
    const source = copies ? base : patch;
    const start = copies ? view.getUint32(at + 1, true) : at + 5;
    const count = view.getUint32(at + (copies ? 5 : 1), true);
    if (start + count > source.length) throw refused('its delta points outside');
    parts.push(source.subarray(start, start + count));
    length += count;
    if (length > SNAPSHOT_BYTES_MAX) throw refused('its delta makes more than a snapshot may be');
    at = copies ? at + 9 : start + count;
  }
  const whole = new Uint8Array(length);
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}
