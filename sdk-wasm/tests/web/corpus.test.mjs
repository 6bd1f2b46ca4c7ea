// The conformance corpus in Chromium, through the files of the package: the bytes that the native evaluator
// answers. What is left out is exactly what no browser may have.
//
//   cargo run -p rules --example corpus target/corpus     makes the corpus, with the native answers

import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { openPage, root, servePages, startChromium } from './world.mjs';

const CORPUS = join(root, 'target/corpus');
/** Id lists and policies never travel to browsers. */
const WHOLE = ['policies', 'segments'];
/** Cases asked with a browser's key, which the native evaluator answers by looking at what that may see. */
const BY_KEY = { prerequisites: 1, types: 4 };

let [site, browser, page, files] = [];

before(async () => {
  assert(existsSync(CORPUS), 'the corpus is not there; `cargo xtask test --only sdk` makes it');
  files = readdirSync(CORPUS).filter((name) => name.endsWith('.json')).sort()
    .map((name) => ({ name, ...JSON.parse(readFileSync(join(CORPUS, name), 'utf8')) }));
  site = await servePages();
  browser = await startChromium();
  page = await openPage(browser, site.url);
});
after(async () => {
  await browser?.close();
  await site?.stop();
});

const travels = (file) => file.lists.length === 0 && file.policies.length === 0;
const byKey = (file) => file.cases.filter((one) => one.browser).length;

test('what is left out is this', () => {
  assert.deepEqual(files.filter((file) => !travels(file)).map(({ file }) => file), WHOLE);
  const found = files.filter((file) => travels(file) && byKey(file) > 0).map((file) => [file.file, byKey(file)]);
  assert.deepEqual(Object.fromEntries(found), BY_KEY);
});

for (const tier of ['core', 'full']) {
  test(`the ${tier} evaluator gives the native bytes`, async () => {
    const { passed, failed, failures, leftOut, refused, written } = await page.evaluate(async ([tier, names]) => {
      const [engine, { check }] = await Promise.all([import('/pkg/engine.js'), import('/tests/corpus.mjs')]);
      const module = await WebAssembly.compileStreaming(fetch(`/pkg/evaluator-${tier}.wasm`));
      const files = await Promise.all(names.map(async (name) => (await fetch(`/corpus/${name}`)).json()));
      return check(engine, module, tier, files);
    }, [tier, files.map(({ name }) => name)]);
    assert.equal(failed, 0, failures.join('\n'));
    const travelling = files.filter(travels);
    const served = travelling.filter((file) => tier === 'full' || file.tier === 'core');
    assert.equal(refused, travelling.length - served.length, 'files of the full tier, which the core refuses');
    const out = files.filter((file) => !travels(file)).reduce((sum, file) => sum + file.cases.length, 0);
    assert.equal(leftOut, out + served.reduce((sum, file) => sum + byKey(file), 0));
    const cases = served.reduce((sum, file) => sum + file.cases.length - byKey(file), 0);
    assert(cases > (tier === 'full' ? 1_500 : 500), `${cases} cases: the corpus is not there`);
    // Three checks for each way that a context goes in, and one for the way itself.
    assert(passed >= 3 * cases + 4 * written && written > cases / 2, `${passed} checks of ${cases} cases, ${written} written`);
    assert.deepEqual(page.threw, []);
  });
}
