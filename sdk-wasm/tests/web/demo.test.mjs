// The demo page, as `cargo xtask dev` serves it: what it shows, and what it looks like. Screenshots go to
// target/screenshots; those in docs/images are of these.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { openPage, root, startChromium, startTidegate, until, wireTo } from './world.mjs';

const pictures = join(root, 'target/screenshots');
let [tidegate, wire, browser] = [];

before(async () => {
  assert(process.env.TIDEGATE_DEMO, 'TIDEGATE_DEMO names the page that `cargo xtask` builds to target/demo');
  mkdirSync(pictures, { recursive: true });
  tidegate = await startTidegate(['--demo-dir', process.env.TIDEGATE_DEMO, '--demo-port', '0']);
  wire = await wireTo(tidegate.dev.edge_url);
  browser = await startChromium();
});
after(async () => {
  await browser?.close();
  await wire?.stop();
  await tidegate?.stop();
});

/** The page with its edge behind the wire, so that a test can take the edge away. */
async function open({ width = 1180, height = 860, dark = false, config = {} } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: dark ? 'dark' : 'light', bypassCSP: true });
  await context.route('**/config.json', async (route) => {
    const answer = await route.fetch();
    await route.fulfill({ json: { ...(await answer.json()), edgeUrl: wire.url, ...config } });
  });
  const page = await openPage(browser, tidegate.dev.demo_url, { context });
  return page;
}

const picture = (page, name) => page.screenshot({ path: join(pictures, `demo-${name}.png`), fullPage: true });
const text = (page, key) => page.locator(`[data-key="${key}"] summary`).innerText();
const live = (page) => until('the page is live', async () => (await page.locator('#state-word').innerText()) === 'live');

/** Nothing sticks out sideways, whatever the width. */
async function fits(page) {
  const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert(wide <= room, `the page is ${wide} px wide in a window of ${room}`);
}

test('it shows what every flag answers, why, and follows a change', async () => {
  const page = await open();
  await live(page);
  assert.match(await text(page, 'upload-limit-mb'), /250/);
  assert.match(await text(page, 'checkout'), /edge/);
  await page.locator('[data-key="upload-limit-mb"] summary').click();
  const steps = page.locator('[data-key="upload-limit-mb"] .steps');
  await until('it is explained', async () => /plan is one of "pro", "team"/.test(await steps.innerText()));
  assert.match(await steps.innerText(), /it is "pro"/);
  await page.locator('[data-key="new-navigation"] summary').click();
  await until('so is the other one', async () => (await page.locator('[data-key="new-navigation"] .steps li').count()) > 2);
  await tidegate.configure('payments-up', (config) => ({ ...config, enabled: false }));
  await until('the change is shown', async () => /false/.test(await text(page, 'payments-up')));
  await until('and told', async () => /payments-up answers otherwise/.test(await page.locator('#log').innerText()));
  await page.waitForTimeout(1700); // the flash of a change is over
  await picture(page, 'wide');
  await fits(page);
  await tidegate.configure('payments-up', (config) => ({ ...config, enabled: true }));
  assert.deepEqual(page.threw, []);
  assert.deepEqual(page.said.filter((line) => line.startsWith('error')), []);
  await page.context().close();
});

test('the page runs under its own content security policy', async () => {
  const context = await browser.newContext();
  const page = await openPage(browser, tidegate.dev.demo_url, { context });
  await live(page);
  assert.deepEqual(page.said.filter((line) => /error|Content Security/.test(line)), []);
  await context.close();
});

test('another context gives other answers, and one that is none is refused with the reason', async () => {
  const page = await open();
  await live(page);
  await page.getByRole('button', { name: 'Staff' }).click();
  await until('a staff member sees the express checkout', async () => /one-page/.test(await text(page, 'checkout')));
  assert.match(await text(page, 'upload-limit-mb'), /2000/);
  await page.locator('#context').fill('{ "plan": ');
  await until('it is refused', async () => /Not used/.test(await page.locator('#context-problem').innerText()));
  assert.match(await text(page, 'upload-limit-mb'), /2000/, 'the answers before stay');
  await page.locator('#filter').fill('limit');
  assert.equal(await page.locator('.flag:visible').count(), 1);
  await page.context().close();
});

test('it is as good when it is narrow, and when it is dark', async () => {
  const narrow = await open({ width: 390, height: 844 });
  await live(narrow);
  await narrow.locator('[data-key="payments-up"] summary').click();
  await until('it is explained', async () => (await narrow.locator('[data-key="payments-up"] .steps li').count()) > 0);
  await fits(narrow);
  await picture(narrow, 'narrow');
  await narrow.context().close();
  const dark = await open({ dark: true });
  await live(dark);
  await dark.locator('[data-key="upload-limit-mb"] summary').click();
  await until('it is explained', async () => (await dark.locator('[data-key="upload-limit-mb"] .steps li').count()) > 2);
  await picture(dark, 'dark');
  await dark.context().close();
});

test('a key that is refused is told in the page, with what it means', async () => {
  const page = await open({ config: { browserKey: tidegate.dev.browser_key.replace(/.{4}$/, 'zzzz') } });
  await until('it is told', async () => (await page.locator('#state-word').innerText()) === 'no flags');
  assert.match(await page.locator('#banner').innerText(), /401/);
  await picture(page, 'error');
  await fits(page);
  await page.context().close();
});

test('with the edge away it shows the last good flags and their age, also after a reload', async () => {
  const page = await open();
  await live(page);
  await until('the flags are kept', () => page.evaluate(() => Object.keys(localStorage).some((key) => key.startsWith('tidegate:'))));
  wire.fail();
  await page.reload();
  await until('it says so', async () => (await page.locator('#state-word').innerText()) === 'not confirmed');
  await until('with the reason', async () => /does not answer/.test(await page.locator('#banner').innerText()));
  await until('the rules answer', async () => /targeting match/.test(await text(page, 'upload-limit-mb')));
  assert.match(await text(page, 'upload-limit-mb'), /250/);
  assert.match(await page.locator('#state-note').innerText(), /last confirmed \d+ (s|min) ago/);
  await picture(page, 'offline');
  await fits(page);
  wire.mend();
  await page.evaluate(() => globalThis.tidegate.sync());
  await live(page);
  await page.context().close();
});
