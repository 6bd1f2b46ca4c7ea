/** The OpenFeature web provider: `OpenFeature.setProvider(new TidegateProvider({ edgeUrl, key, publicKey }))`. */
import { createClient } from './index.js';
import { BaseProvider, type ProviderOptions } from './provider.js';

export type { ProviderOptions } from './provider.js';

export class TidegateProvider extends BaseProvider {
  constructor(options: ProviderOptions) {
    super((context) => createClient({ ...options, context }));
  }
}
