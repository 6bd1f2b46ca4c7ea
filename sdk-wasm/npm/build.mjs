// Builds the package into dist/: entries as minified ES modules with source maps,
// types by tsc, the evaluators from target/browser, and the texts that npm wants beside them.
//
//   cargo xtask wasm --browser && node sdk-wasm/npm/build.mjs

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '../..');
const dist = join(here, 'dist');
const evaluators = join(root, 'target/browser');

for (const tier of ['core', 'full']) {
  const module = join(evaluators, `${tier}.wasm`);
  if (!existsSync(module)) {
    console.error(`${module} is not there; run: cargo xtask wasm --browser`);
    process.exit(1);
  }
}
rmSync(dist, { recursive: true, force: true });
mkdirSync(dist, { recursive: true });
// One file for each way in, so that a page fetches one; the providers take the client from its file.
for (const [entry, beside] of [
  ['index', []],
  ['node', []],
  ['module', []],
  ['engine', []],
  ['openfeature', ['./index.js']],
  ['openfeature.node', ['./node.js']],
]) {
  await build({
    absWorkingDir: here,
    entryPoints: [`src/${entry}.ts`],
    outfile: join(dist, `${entry}.js`),
    bundle: true,
    format: 'esm',
    target: 'es2022',
    platform: 'neutral',
    minify: true,
    sourcemap: true,
    sourcesContent: false,
    external: ['@openfeature/web-sdk', 'node:fs/promises'],
    plugins: [{
      name: 'beside',
      setup: (run) => run.onResolve({ filter: /^\.\/(index|node)\.js$/ }, ({ path }) => (beside.includes(path) ? { path, external: true } : undefined)),
    }],
    legalComments: 'none',
  });
}
for (const tier of ['core', 'full']) {
  cpSync(join(evaluators, `${tier}.wasm`), join(dist, `evaluator-${tier}.wasm`));
}
execFileSync(process.execPath, [join(here, 'node_modules/typescript/bin/tsc'), '-p', here], { stdio: 'inherit' });
for (const file of ['LICENSE', 'NOTICE']) cpSync(join(root, file), join(here, file));
