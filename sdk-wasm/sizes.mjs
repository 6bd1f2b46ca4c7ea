// Prints what a module weighs as it is and compressed as web servers do at their best:
// node sizes.mjs MODULE.wasm

import { readFileSync } from 'node:fs';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const module = readFileSync(process.argv[2]);
const gzip = gzipSync(module, { level: 9 });
const brotli = brotliCompressSync(module, {
  params: {
    [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
    [constants.BROTLI_PARAM_SIZE_HINT]: module.length,
  },
});
console.log(`${module.length} bytes, ${gzip.length} gzip, ${brotli.length} brotli`);
