/** The same for Node, where the evaluators are read from the package's folder: for tests and for rendering pages. */
import { readFile } from 'node:fs/promises';
import { Client, type ClientOptions, type Tier } from './client.js';

export type { Answer, Bootstrap, Client, ClientOptions, Context, Events, JsonValue, State, Tier } from './client.js';
export type { OfrepAnswer } from './answers.js';
export type { TextStorage } from './store.js';
export { TidegateError, type ErrorKind } from './errors.js';

export function createClient(options: ClientOptions): Client {
  return new Client(options, loadModule);
}

export async function loadModule(tier: Tier): Promise<WebAssembly.Module> {
  return WebAssembly.compile(await readFile(new URL(`./evaluator-${tier}.wasm`, import.meta.url)));
}
