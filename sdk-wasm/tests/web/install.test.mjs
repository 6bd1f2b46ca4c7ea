// The package as npm gives it to people: the packed file installed into empty projects, and what they read
// compared with what the edge says.
//
//   TIDEGATE_PACKAGE=path/to/tidegate-web-….tgz, which `npm pack` in sdk-wasm/npm makes

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify, stripVTControlCharacters } from 'node:util';
import { START_MS_MAX, openPage, packageFolder, root, serve, startChromium, startTidegate, until } from './world.mjs';

const run = promisify(execFile);
const tarball = process.env.TIDEGATE_PACKAGE;
const EXAMPLE = join(root, 'sdk-wasm/examples/react');
const VITE = JSON.parse(readFileSync(join(EXAMPLE, 'package.json'), 'utf8')).devDependencies.vite;
const WHO = { targetingKey: 'user-1', plan: 'pro', country: 'DE' };

let [tidegate, browser, folder, expected] = [];

before(async () => {
  assert(tarball && existsSync(tarball), 'TIDEGATE_PACKAGE names the packed package; `cargo xtask test --only sdk` sets it');
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'tidegate-install-')));
  tidegate = await startTidegate();
  browser = await startChromium();
  expected = Object.fromEntries((await tidegate.ofrep(WHO)).map(({ key, value, variant, reason }) => [key, { value, variant, reason }]));
  assert(Object.keys(expected).length >= 4, 'there are flags to compare');
});
after(async () => {
  await browser?.close();
  await tidegate?.stop();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

const options = () => ({
  edgeUrl: tidegate.dev.edge_url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key, context: WHO,
});

/** A project in a folder of its own; `files` by name, as text or, for JSON, as values. */
async function project(name, files) {
  const dir = join(folder, name);
  mkdirSync(dir, { recursive: true });
  for (const [file, content] of Object.entries(files)) {
    writeFileSync(join(dir, file), typeof content === 'string' ? content : JSON.stringify(content));
  }
  await install(dir);
  return dir;
}

/** What npm says of packages that do not fit together; asking again does not help. */
const UNFIT = /ERESOLVE|EBADENGINE/;

/**
 * The cache is npm's own: what another test of the same run fetched is not fetched again. A registry that
 * does not answer is asked three times. Packages that others float to may be deprecated any day.
 */
async function install(dir) {
  const args = ['install', '--prefer-offline', '--no-audit', '--no-fund', '--loglevel=error'];
  for (let tries = 1; ; tries += 1) {
    const { stderr, failed } = await run('npm', args, { cwd: dir }).catch((error) => ({ ...error, failed: error }));
    assert(!UNFIT.test(stderr), stderr);
    if (!failed) return;
    if (tries === 3) throw failed;
    await new Promise((resolve) => setTimeout(resolve, 5_000));
  }
}

const bin = (dir, name) => join(dir, 'node_modules', name);
const vite = (dir, args) => run(process.execPath, [bin(dir, 'vite/bin/vite.js'), ...args], { cwd: dir, env: { ...process.env, NO_COLOR: '1' } });

/** `vite` and `vite preview` serve until they are stopped; gives their address. */
async function serving(dir, args) {
  const child = spawn(process.execPath, [bin(dir, 'vite/bin/vite.js'), ...args, '--host', '127.0.0.1'], {
    cwd: dir, env: { ...process.env, NO_COLOR: '1' }, stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (said += data));
  const exited = new Promise((resolve) => child.on('exit', resolve));
  const stop = async () => {
    child.kill('SIGTERM');
    const killer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await exited;
    clearTimeout(killer);
  };
  try {
    const url = await until('vite says where it serves', () => {
      if (child.exitCode !== null) throw new Error(said);
      // With what follows it: the line may come in pieces.
      return /Local:\s+(http:\S+\/)\s/.exec(stripVTControlCharacters(said))?.[1];
    }, START_MS_MAX);
    return { url, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** What every way of loading the package comes down to. */
const READ = `
  const client = createClient(options);
  await client.ready();
  const answers = Object.fromEntries(client.keys().map((key) => {
    const { value, variant, reason } = client.evaluate(key);
    return [key, { value, variant, reason }];
  }));`;
const PAGE_SCRIPT = `
import { createClient } from '@tidegate/web';
const options = JSON.parse(new URLSearchParams(location.search).get('options'));
try {
  ${READ}
  window.answers = answers;
} catch (error) {
  window.failed = String(error);
}`;

/** Opens the page and gives the answers that it came to, and what it fetched. */
async function answersOf(url) {
  const fetched = [];
  const context = await browser.newContext();
  context.on('request', (request) => fetched.push(request.url()));
  const page = await openPage(browser, `${url}?options=${encodeURIComponent(JSON.stringify(options()))}`, { context });
  const answers = await until('the page has its answers', async () => {
    const { answers, failed } = await page.evaluate(() => ({ answers: window.answers, failed: window.failed }));
    if (failed) throw new Error(failed);
    return answers;
  }).finally(() => assert.deepEqual(page.threw, []));
  await context.close();
  return { answers, fetched };
}

const evaluators = (fetched) => fetched.filter((url) => /evaluator-\w+.*\.wasm/.test(url));

test('the package holds what it is made of, and nothing else', async () => {
  const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: packageFolder });
  const [{ files, bundled }] = JSON.parse(stdout);
  const sources = readdirSync(join(packageFolder, 'src')).map((file) => file.replace(/\.ts$/, ''));
  const entries = ['index', 'node', 'module', 'engine', 'openfeature', 'openfeature.node'];
  const wanted = [
    'LICENSE', 'NOTICE', 'package.json', 'README.md',
    'dist/evaluator-core.wasm', 'dist/evaluator-full.wasm',
    ...entries.flatMap((entry) => [`dist/${entry}.js`, `dist/${entry}.js.map`]),
    ...sources.flatMap((source) => [`dist/types/${source}.d.ts`, `src/${source}.ts`]),
  ];
  assert.deepEqual(files.map(({ path }) => path).sort(), wanted.sort());
  assert.deepEqual(bundled, []);
  const { exports, dependencies, scripts } = JSON.parse(readFileSync(join(packageFolder, 'package.json'), 'utf8'));
  assert.equal(dependencies, undefined);
  for (const name of ['preinstall', 'install', 'postinstall']) assert.equal(scripts[name], undefined, 'nothing runs when it is installed');
  const named = Object.values(exports).flatMap((one) => (typeof one === 'string' ? one : Object.values(one)));
  for (const path of named) assert(wanted.includes(path.slice(2)), `${path} is named and not there`);
});

describe('in an empty project', () => {
  let dir;
  before(async () => {
    dir = await project('plain', { 'package.json': { name: 'plain', private: true, type: 'module', dependencies: { '@tidegate/web': `file:${tarball}` } } });
  });

  test('nothing else is installed with it', () => {
    assert.deepEqual(readdirSync(join(dir, 'node_modules')).filter((one) => !one.startsWith('.')), ['@tidegate']);
    assert.deepEqual(readdirSync(join(dir, 'node_modules/@tidegate')), ['web']);
  });

  test('Node reads flags', async () => {
    writeFileSync(join(dir, 'read.js'), `
      import { createClient } from '@tidegate/web';
      const options = JSON.parse(process.argv[2]);
      ${READ}
      client.close();
      console.log(JSON.stringify(answers));`);
    const args = ['read.js', JSON.stringify(options())];
    const { stdout } = await run(process.execPath, args, { cwd: dir, timeout: START_MS_MAX });
    assert.deepEqual(JSON.parse(stdout), expected);
  });

  test('a page without any tool finds it by an import map', async () => {
    const html = `<!doctype html><meta charset="utf-8"><title>plain</title>
      <script type="importmap">{"imports":{"@tidegate/web":"/web/index.js"}}</script><script type="module">${PAGE_SCRIPT}</script>`;
    const site = await serve({ '/web/': join(dir, 'node_modules/@tidegate/web/dist') }, { '/': html });
    try {
      const { answers, fetched } = await answersOf(`${site.url}/`);
      assert.deepEqual(answers, expected);
      assert.equal(evaluators(fetched).length, 1, 'one of the two evaluators');
    } finally {
      await site.stop();
    }
  });
});

describe('in an empty Vite project', () => {
  let dir;
  before(async () => {
    dir = await project('vite', {
      'package.json': { name: 'empty', private: true, type: 'module', dependencies: { '@tidegate/web': `file:${tarball}` }, devDependencies: { vite: VITE } },
      'index.html': '<!doctype html><meta charset="utf-8"><title>vite</title><script type="module" src="/main.js"></script>',
      'main.js': PAGE_SCRIPT,
    });
  });

  for (const [how, args] of [['built', ['preview', '--port', '0']], ['under the dev server', ['--port', '0']]]) {
    test(`a page reads flags ${how}`, async () => {
      if (how === 'built') await vite(dir, ['build']);
      const { url, stop } = await serving(dir, args);
      try {
        const { answers, fetched } = await answersOf(url);
        assert.deepEqual(answers, expected);
        // The dev server may load a page anew, once it knows what the page needs.
        assert.equal(new Set(evaluators(fetched)).size, 1, 'one of the two evaluators');
      } finally {
        await stop();
      }
    });
  }
});

describe('in a project with the Vite before', () => {
  test('a page reads flags under the dev server, with the line that docs/BROWSER.md gives for it', async () => {
    const line = "optimizeDeps: { exclude: ['@tidegate/web'] }";
    assert(readFileSync(join(root, 'docs/BROWSER.md'), 'utf8').includes(line), 'it is there');
    const dir = await project('vite-7', {
      'package.json': { name: 'before', private: true, type: 'module', dependencies: { '@tidegate/web': `file:${tarball}` }, devDependencies: { vite: '7.3.8' } },
      'index.html': '<!doctype html><meta charset="utf-8"><title>vite 7</title><script type="module" src="/main.js"></script>',
      'main.js': PAGE_SCRIPT,
      'vite.config.js': `export default { ${line} };`,
    });
    const { url, stop } = await serving(dir, ['--port', '0']);
    try {
      assert.deepEqual((await answersOf(url)).answers, expected);
    } finally {
      await stop();
    }
  });
});

describe('in the React example', () => {
  let dir;
  before(async () => {
    dir = join(folder, 'react');
    cpSync(EXAMPLE, dir, { recursive: true, filter: (from) => !/(node_modules|dist|\.env.*)$/.test(from) });
    const manifest = join(dir, 'package.json');
    const text = readFileSync(manifest, 'utf8');
    assert(text.includes('"file:../../npm"'));
    writeFileSync(manifest, text.replace('"file:../../npm"', JSON.stringify(`file:${tarball}`)));
    const { edge_url: url, browser_key: key, public_key: pinned } = tidegate.dev;
    writeFileSync(join(dir, '.env.local'), `VITE_TIDEGATE_URL=${url}\nVITE_TIDEGATE_KEY=${key}\nVITE_TIDEGATE_PUBLIC_KEY=${pinned}\n`);
    await install(dir);
  });

  test('its types and those of every entry of the package hold, as bundlers and as Node look for them', async () => {
    const tsc = bin(dir, 'typescript/bin/tsc');
    await run(process.execPath, [tsc, '--noEmit'], { cwd: dir });
    writeFileSync(join(dir, 'entries.mts'), `
      import { OpenFeature } from '@openfeature/web-sdk';
      import { createClient, TidegateError, type Answer, type ClientOptions, type State } from '@tidegate/web';
      import { createClient as createWithModule } from '@tidegate/web/module';
      import { TidegateProvider } from '@tidegate/web/openfeature';
      declare const options: ClientOptions;
      declare const core: WebAssembly.Module;
      const client = createClient(options);
      export const state: State = client.state;
      export const [on, text, count]: [boolean, string, number] = [client.boolean('a', true), client.string('b', ''), client.number('c', 0)];
      export const answer: Answer = client.evaluate('a');
      export const kind: string = new TidegateError('NETWORK', 'x').kind;
      client.on('change', ({ flags }) => flags.map((key) => key.length));
      createWithModule({ ...options, wasm: { core } });
      await OpenFeature.setProviderAndWait(new TidegateProvider(options), { targetingKey: 'user-1' });
      // @ts-expect-error options cannot be left out
      createClient({ edgeUrl: 'x' });
      // @ts-expect-error and no other kind of default given
      client.boolean('a', 'yes');
    `);
    for (const [module, resolution] of [['esnext', 'bundler'], ['nodenext', 'nodenext']]) {
      const args = ['--noEmit', '--strict', '--target', 'es2022', '--lib', 'es2023,dom,dom.iterable', '--types', '', '--module', module, '--moduleResolution', resolution, 'entries.mts'];
      await run(process.execPath, [tsc, ...args, '--ignoreConfig'], { cwd: dir }).catch((error) => assert.fail(`${resolution}: ${error.stdout}`));
    }
  });

  for (const [how, args] of [['built', ['preview', '--port', '0']], ['under the dev server', ['--port', '0']]]) {
    test(`components follow a change of context and of a flag, ${how}`, async () => {
      if (how === 'built') await vite(dir, ['build']);
      const { url, stop } = await serving(dir, args);
      const context = await browser.newContext();
      try {
        const page = await openPage(browser, url, { context });
        const shows = async (plan) => {
          const flags = Object.fromEntries((await tidegate.ofrep({ targetingKey: 'user-1', plan })).map(({ key, value }) => [key, value]));
          const wanted = [String(flags['upload-limit-mb']), flags.checkout, !flags['payments-up']];
          await until(`the page shows ${wanted}`, async () => {
            // The dev server may load the page anew, which then begins with its first plan. To choose again
            // what is chosen would put the question to the edge anew, and never come to an answer.
            const chosen = await page.locator('select').inputValue({ timeout: 5_000 });
            if (chosen !== plan) await page.selectOption('select', plan, { timeout: 5_000 });
            const shown = await page.evaluate(() => [
              document.querySelector('#limit')?.textContent, document.querySelector('#checkout')?.textContent, document.querySelector('button')?.disabled,
            ]);
            return JSON.stringify(shown) === JSON.stringify(wanted) || Promise.reject(new Error(JSON.stringify(shown)));
          });
          return wanted[0];
        };
        const limits = [await shows('free')];
        limits.push(await shows('enterprise'));
        assert.notEqual(limits[0], limits[1], 'the plan makes a difference');
        try {
          await tidegate.configure('payments-up', (config) => ({ ...config, enabled: false }));
          await shows('enterprise');
        } finally {
          await tidegate.configure('payments-up', (config) => ({ ...config, enabled: true }));
        }
        await shows('enterprise');
        assert.deepEqual(page.threw, []);
      } finally {
        await context.close();
        await stop();
      }
    });
  }
});
