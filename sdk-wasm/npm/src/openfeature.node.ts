/** The OpenFeature web provider under Node, for tests and for rendering pages. */
import { createClient } from './node.js';
import { BaseProvider, type ProviderOptions } from './provider.js';

export type { ProviderOptions } from './provider.js';

export class TidegateProvider extends BaseProvider {
  constructor(options: ProviderOptions) {
    super((context) => createClient({ ...options, context }));
  }
}
