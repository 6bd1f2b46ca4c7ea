/** A client as an OpenFeature web provider. How it gets its evaluators is the entry's business. */
import {
  ErrorCode, OpenFeatureEventEmitter, ProviderEvents, ProviderFatalError, StandardResolutionReasons,
  type EvaluationContext, type JsonValue, type Provider, type ResolutionDetails, type TrackingEventDetails,
} from '@openfeature/web-sdk';
import type { Client, ClientOptions, Context } from './client.js';
import type { ErrorKind } from './errors.js';

/** As for `createClient`, without the context: OpenFeature brings it. */
export type ProviderOptions = Omit<ClientOptions, 'context'>;

type TypeName = 'boolean' | 'string' | 'number' | 'object';

export class BaseProvider implements Provider {
  readonly metadata = { name: 'tidegate' } as const;
  readonly runsOn = 'client' as const;
  readonly events = new OpenFeatureEventEmitter();
  readonly #create: (context: Context) => Client;
  #client: Client | undefined;

  constructor(create: (context: Context) => Client) {
    this.#create = create;
  }

  /** The client behind it, once OpenFeature has begun to use it: state, age, explanations. */
  get client(): Client | undefined {
    return this.#client;
  }

  async initialize(context: EvaluationContext = {}): Promise<void> {
    this.#client?.close();
    const client = this.#create(context);
    this.#client = client;
    try {
      await client.ready();
    } catch (error) {
      // The rest of its life goes on: flags that come later make it ready.
      this.#tell(client);
      const { kind, message } = error as { kind?: ErrorKind; message: string };
      const fatal = kind === 'UNAUTHORIZED' || kind === 'OPTIONS' || kind === 'UNSUPPORTED';
      throw fatal ? new ProviderFatalError(message, { cause: error }) : error;
    }
    this.#tell(client);
    // After OpenFeature has said that it is ready.
    if (client.state === 'STALE') queueMicrotask(() => client.state === 'STALE' && this.events.emit(ProviderEvents.Stale));
  }

  #tell(client: Client): void {
    client.on('change', ({ flags }) => this.events.emit(ProviderEvents.ConfigurationChanged, { flagsChanged: [...flags] }));
    client.on('state', ({ state, error }) => {
      const message = error?.message;
      const details = message === undefined ? {} : { message };
      if (state === 'READY') this.events.emit(ProviderEvents.Ready, details);
      else if (state === 'STALE') this.events.emit(ProviderEvents.Stale, details);
      else if (state === 'ERROR') this.events.emit(ProviderEvents.Error, details);
    });
  }

  /** Nothing to wait for, and no state of reconciling, where every flag is evaluated here. */
  onContextChange(_old: EvaluationContext, context: EvaluationContext): Promise<void> | void {
    return this.#client?.setContext(context);
  }

  async onClose(): Promise<void> {
    this.#client?.close();
    this.#client = undefined;
  }

  resolveBooleanEvaluation(key: string, otherwise: boolean): ResolutionDetails<boolean> {
    return this.#resolve(key, 'boolean', otherwise);
  }

  resolveStringEvaluation(key: string, otherwise: string): ResolutionDetails<string> {
    return this.#resolve(key, 'string', otherwise);
  }

  resolveNumberEvaluation(key: string, otherwise: number): ResolutionDetails<number> {
    return this.#resolve(key, 'number', otherwise);
  }

  resolveObjectEvaluation<T extends JsonValue>(key: string, otherwise: T): ResolutionDetails<T> {
    return this.#resolve(key, 'object', otherwise);
  }

  /** Counted by name and minute, with the sum of `value`; nothing of the context or the other details is sent. */
  track(name: string, _context?: EvaluationContext, details?: TrackingEventDetails): void {
    this.#client?.track(name, details?.value);
  }

  #resolve<T>(key: string, type: TypeName, otherwise: T): ResolutionDetails<T> {
    const answer = this.#client?.evaluate(key);
    if (!answer) return failure(otherwise, ErrorCode.PROVIDER_NOT_READY, 'the provider is not initialized', {});
    const { value, variant, reason, errorCode, errorMessage, flagMetadata } = answer;
    if (errorCode) return failure(otherwise, errorCode as ErrorCode, errorMessage ?? errorCode, flagMetadata);
    // The flag says: the caller's own default.
    if (value === undefined) return { value: otherwise, reason, flagMetadata };
    const found = value === null ? 'null' : typeof value;
    if (found !== type) {
      return failure(otherwise, ErrorCode.TYPE_MISMATCH, `the flag ${JSON.stringify(key)} is of type ${found}, not ${type}`, flagMetadata);
    }
    return { value: value as T, reason, flagMetadata, ...(variant === undefined ? {} : { variant }) };
  }
}

function failure<T>(
  value: T, errorCode: ErrorCode, errorMessage: string, flagMetadata: ResolutionDetails<T>['flagMetadata'] & object,
): ResolutionDetails<T> {
  return { value, reason: StandardResolutionReasons.ERROR, errorCode, errorMessage, flagMetadata };
}
