/** What can go wrong between an app and its flags, by what can be done about it. */
export type ErrorKind =
  /** The edge did not answer, or not in time; it is tried again. */
  | 'NETWORK'
  /** The edge does not know the key, or the key is not for this page's origin. */
  | 'UNAUTHORIZED'
  /** What came is not what the pinned key signed, or older than what is there. It was not used. */
  | 'REFUSED'
  /** This page or browser lacks something; the text says what. */
  | 'UNSUPPORTED'
  /** The options that were given. */
  | 'OPTIONS'
  | 'INVALID_CONTEXT';

export class TidegateError extends Error {
  readonly kind: ErrorKind;
  /** Of an answer that asked for it: when to try again. */
  readonly retryAfterSeconds: number | undefined;

  constructor(kind: ErrorKind, message: string, more: { cause?: unknown; retryAfterSeconds?: number } = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = 'TidegateError';
    this.kind = kind;
    this.retryAfterSeconds = more.retryAfterSeconds;
  }
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
