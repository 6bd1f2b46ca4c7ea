// The code of docs/BROWSER.md, to the letter, in a page: what a newcomer types has to work.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BLANK, openPage, root, startWorld, until } from './world.mjs';

let [world, tidegate, site, browser] = [];
const page = readFileSync(join(root, 'docs/BROWSER.md'), 'utf8');
const section = (title) => page.split(/^## /m).find((part) => part.startsWith(title)) ?? assert.fail(`docs/BROWSER.md has no section ${title}`);
const blocks = (title) => [...section(title).matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code);

before(async () => {
  world = await startWorld();
  ({ tidegate, site, browser } = world);
});
after(() => world?.stop());

/** With the values that the reader takes from dev.json. */
function filled(code) {
  const { edge_url, browser_key, public_key } = tidegate.dev;
  return code.replaceAll('http://127.0.0.1:8016', edge_url).replaceAll('tg_browser_…', browser_key).replaceAll('ed25519:…', public_key);
}

async function run(path, code) {
  const { edge_url: edgeUrl, browser_key: key, public_key: publicKey } = tidegate.dev;
  const given = `const { edgeUrl, key, publicKey } = ${JSON.stringify({ edgeUrl, key, publicKey })};
    const context = { targetingKey: 'user-42', plan: 'pro' };
    window.rendered = []; const render = (keys) => window.rendered.push(keys);`;
  site.pages[`${path}.js`] = `${given}\n${filled(code)}\nwindow.done = true;`;
  site.pages[path] = BLANK.replace('<body>', `<body><script type="module" src="${path}.js"></script>`);
  const tab = await openPage(browser, site.url + path);
  await until('the code of the page ran', () => tab.evaluate(() => window.done)).catch((error) => {
    throw new Error(`${error.message}; the page threw ${tab.threw.map(String)} and said ${tab.said}`);
  });
  return tab;
}

test('five minutes lead to a flag, its changes and another person', async () => {
  const [ask, follow, change] = blocks('In five minutes');
  assert(change.includes('setContext'), 'the blocks of the page are others than this test knows');
  // Without a name that two blocks would share: `edgeUrl: 'http…'` stands in the first.
  const tab = await run('/five', `${ask}\n${follow}\nwindow.first = document.title;\n${change}\nwindow.second = flags.number('upload-limit-mb', 10);`);
  assert.equal(await tab.evaluate(() => window.first), 'Upload up to 250 MB');
  assert.equal(await tab.evaluate(() => window.second), 250);
  await tidegate.configure('payments-up', (config) => ({ ...config, enabled: false }));
  await until('the change is rendered', () => tab.evaluate(() => window.rendered.some((keys) => keys.includes('payments-up'))));
});

test('the OpenFeature lines give a flag', async () => {
  const [code] = blocks('With OpenFeature');
  const tab = await run('/openfeature', code.replace('OpenFeature.getClient().', 'window.limit = OpenFeature.getClient().'));
  assert.equal(await tab.evaluate(() => window.limit), 250);
});

test('the server\'s lines make a page that begins with its answers', async () => {
  const [server, client] = blocks('How a page begins');
  const tab = await run('/rendered', `import { createClient } from '@tidegate/web';\n${server}\nwindow.flags = bootstrap;\n${client}\nwindow.atOnce = [flags.state, flags.number('upload-limit-mb', 10)];`);
  assert.deepEqual(await tab.evaluate(() => window.atOnce), ['READY', 250]);
});
