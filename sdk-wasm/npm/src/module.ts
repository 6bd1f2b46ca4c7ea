/**
 * For runtimes that forbid compiling wasm and give modules ready-made instead, and for apps that bring the
 * evaluators their own way: `createClient({ …, wasm: { core, full } })`. Nothing is fetched but flags.
 */
import { Client, type ClientOptions } from './client.js';
import { TidegateError } from './errors.js';

export type { Answer, Bootstrap, Client, ClientOptions, Context, Events, JsonValue, State, Tier } from './client.js';
export type { OfrepAnswer } from './answers.js';
export type { TextStorage } from './store.js';
export { TidegateError, type ErrorKind } from './errors.js';

export function createClient(options: ClientOptions & { readonly wasm: NonNullable<ClientOptions['wasm']> }): Client {
  return new Client(options, (tier) =>
    Promise.reject(
      new TidegateError('OPTIONS', `wasm.${tier}: these flags need the ${tier} evaluator, and no module of it was given`),
    ),
  );
}
