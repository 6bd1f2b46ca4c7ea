// Prints what files weigh as they are and compressed as web servers do at their best; several files
// are rows of a Markdown table, and a name may stand before each, and the sum below:
// node sizes.mjs [NAME=]FILE …

import { readFileSync } from 'node:fs';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const rows = process.argv.slice(2).map((argument) => {
  const [name, path = name] = argument.split('=');
  const bytes = readFileSync(path);
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  const gzip = gzipSync(bytes, { level: 9 }).length;
  return [name, bytes.length, gzip, brotliCompressSync(bytes, { params }).length];
});
if (rows.length === 1) {
  const [[, raw, gzip, brotli]] = rows;
  console.log(`${raw} bytes, ${gzip} gzip, ${brotli} brotli`);
} else {
  const number = (value) => value.toLocaleString('en');
  console.log('| what | bytes | gzip -9 | brotli |\n|---|---:|---:|---:|');
  for (const [name, ...sizes] of rows) console.log(`| ${[name, ...sizes.map(number)].join(' | ')} |`);
}
