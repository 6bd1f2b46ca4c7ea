/**
 * Feature flags in a page: `createClient`. With OpenFeature: `@tidegate/web/openfeature`.
 *
 * The evaluators are files beside this one, found by `import.meta.url`, which bundlers and browsers both
 * know; only the smaller one is fetched unless rules need the larger.
 */
import { Client, type ClientOptions, type Tier } from './client.js';
import { TidegateError, asError } from './errors.js';

export type { Answer, Bootstrap, Client, ClientOptions, Context, Events, JsonValue, State, Tier } from './client.js';
export type { OfrepAnswer } from './answers.js';
export type { TextStorage } from './store.js';
export { TidegateError, type ErrorKind } from './errors.js';

/** Begins to fetch flags at once. Throws only for options that cannot work. */
export function createClient(options: ClientOptions): Client {
  return new Client(options, loadModule);
}

/** The evaluator of a tier, fetched and compiled; for whoever wants it before the first client. */
export async function loadModule(tier: Tier): Promise<WebAssembly.Module> {
  // Written out twice: bundlers look for exactly this.
  const url =
    tier === 'core' ? new URL('./evaluator-core.wasm', import.meta.url) : new URL('./evaluator-full.wasm', import.meta.url);
  let answer: Response;
  try {
    answer = await fetch(url, { credentials: 'same-origin' });
  } catch (error) {
    throw new TidegateError('NETWORK', `the evaluator ${url} cannot be fetched: ${asError(error).message}`, { cause: error });
  }
  if (!answer.ok) throw new TidegateError('NETWORK', `the evaluator ${url} cannot be fetched: status ${answer.status}`);
  // Streaming wants application/wasm, which not every server says.
  if (answer.headers.get('content-type')?.startsWith('application/wasm')) return WebAssembly.compileStreaming(answer);
  return WebAssembly.compile(await answer.arrayBuffer());
}
