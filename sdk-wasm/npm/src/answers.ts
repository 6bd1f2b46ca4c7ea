/** Answers as apps see them, and as OFREP writes them. */
import { freeze, type Answer, type JsonValue } from './engine.js';

/** One of `flags` in an OFREP bulk answer. */
export interface OfrepAnswer {
  readonly key: string;
  readonly value?: JsonValue;
  readonly variant?: string;
  readonly reason?: string;
  readonly errorCode?: string;
  readonly errorDetails?: string;
  readonly metadata?: Record<string, string | number | boolean>;
}

const NOTHING = Object.freeze({});

export function fromOfrep(one: OfrepAnswer, reason?: string): Answer {
  const { value, variant, errorCode, errorDetails, metadata } = one;
  // Callers share it, as they share those of the engine.
  return freeze({
    ...(value === undefined ? {} : { value }),
    ...(variant ? { variant } : {}),
    reason: errorCode ? 'ERROR' : (reason ?? one.reason ?? 'UNKNOWN'),
    ...(errorCode ? { errorCode, errorMessage: errorDetails ?? errorCode } : {}),
    flagMetadata: metadata ?? NOTHING,
  });
}

export function toOfrep(key: string, answer: Answer): OfrepAnswer {
  const { value, variant, reason, errorCode, errorMessage, flagMetadata } = answer;
  return {
    key,
    ...(value === undefined ? {} : { value }),
    ...(errorCode ? { errorCode, errorDetails: errorMessage ?? '' } : { variant: variant ?? '', reason }),
    metadata: flagMetadata,
  };
}

export function failed(errorCode: string, errorMessage: string): Answer {
  return Object.freeze({ reason: 'ERROR', errorCode, errorMessage, flagMetadata: NOTHING });
}

/** Whether an app could tell them apart by anything but how they came about. */
export function same(one: Answer | undefined, other: Answer | undefined): boolean {
  if (one === other) return true;
  if (!one || !other) return false;
  return (
    one.variant === other.variant &&
    one.errorCode === other.errorCode &&
    JSON.stringify(one.value) === JSON.stringify(other.value) &&
    JSON.stringify(one.flagMetadata) === JSON.stringify(other.flagMetadata)
  );
}
