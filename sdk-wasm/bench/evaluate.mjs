// One flag of three rules, evaluated over and over: Tidegate's modules beside two peers of npm, with
// the same rules written in each one's own way. The rounds of all take turns in one process, so that
// the ratios hold on a busy machine too. Runs in Node (`node.mjs`) and in a page alike.

import { GrowthBook } from '@growthbook/growthbook';
import { FlagdCore } from '@openfeature/flagd-core';

export const CONTEXT = {
  targetingKey: 'user-7c2f91ab', email: 'ada@tidegate.dev', country: 'DE', plan: 'business', age: 37,
  app: { version: '2.1.4', platform: 'ios' }, groups: ['beta', 'staff'], language: 'de-DE',
  device: 'iPhone15,2', sessions: 182,
};

const COUNTRIES = ['AT', 'CH', 'DE', 'FR'];
const NOW_MS = 1_780_000_000_000;

const FLAGD = {
  flags: {
    checkout: {
      state: 'ENABLED', variants: { on: true, off: false }, defaultVariant: 'off',
      targeting: {
        if: [
          { ends_with: [{ var: 'email' }, '@example.com'] }, 'on',
          { and: [
            { in: [{ var: 'country' }, COUNTRIES] },
            { sem_ver: [{ var: 'app.version' }, '>=', '2.3.0'] },
          ] }, 'on',
          { and: [{ '==': [{ var: 'plan' }, 'business'] }, { '>=': [{ var: 'age' }, 18] }] }, 'on',
          'off',
        ],
      },
    },
  },
};

const GROWTHBOOK = {
  checkout: {
    defaultValue: false,
    rules: [
      { condition: { email: { $regex: '@example\\.com$' } }, force: true },
      { condition: { country: { $in: COUNTRIES }, 'app.version': { $vgte: '2.3.0' } }, force: true },
      { condition: { plan: 'business', age: { $gte: 18 } }, force: true },
    ],
  },
};

const silent = { error() {}, warn() {}, info() {}, debug() {} };

/** `modules` are {core, full} as bytes, `ruleset` the framed ruleset of `three-rules`. */
export function contenders({ Engine }, modules, ruleset) {
  const made = {};
  for (const [tier, bytes] of Object.entries(modules)) {
    const engine = Engine.create(new WebAssembly.Module(bytes), ruleset);
    engine.setContext(CONTEXT);
    made[`tidegate ${tier}`] = () => engine.evaluate('checkout', NOW_MS).value;
    if (tier === 'core') {
      made['tidegate core, context encoded each time'] = () => {
        engine.setContext(CONTEXT);
        return engine.evaluate('checkout', NOW_MS).value;
      };
    }
  }
  const flagd = new FlagdCore(undefined, silent);
  flagd.setConfigurations(JSON.stringify(FLAGD));
  made['flagd-core'] = () => flagd.resolveBooleanEvaluation('checkout', false, CONTEXT, silent).value;
  const growthbook = new GrowthBook({ features: GROWTHBOOK, attributes: CONTEXT });
  made['growthbook'] = () => growthbook.evalFeature('checkout').value;
  return made;
}

/** Evaluations a second of each, the median of `rounds`; throws where one answers otherwise. */
export function run(made, { rounds = 15, roundMs = 60, clock = () => performance.now() } = {}) {
  const times = Object.entries(made).map(([name, evaluate]) => {
    if (evaluate() !== true) throw new Error(`${name} answers ${evaluate()}`);
    return { name, evaluate, found: [] };
  });
  for (let round = 0; round <= rounds; round += 1) {
    for (const { evaluate, found } of times) {
      let [count, good] = [0, 0];
      const start = clock();
      let end = start;
      while (end - start < roundMs) {
        for (let n = 0; n < 1_000; n += 1) good += evaluate() === true ? 1 : 0;
        count += 1_000;
        end = clock();
      }
      if (good !== count) throw new Error('another answer');
      // The first round warms up.
      if (round > 0) found.push((count / (end - start)) * 1_000);
    }
  }
  return times.map(({ name, found }) => ({ name, perSecond: median(found) }));
}

/** Milliseconds from the bytes of module and ruleset to the first answer, each time anew. */
export async function first({ Engine }, bytes, ruleset, { rounds = 15, clock = () => performance.now() } = {}) {
  const found = [];
  for (let round = 0; round < rounds; round += 1) {
    // Other bytes each time, or the engine takes the code that it compiled before.
    const fresh = new Uint8Array(bytes.length + 8);
    fresh.set(bytes);
    fresh.set([0, 6, 1, 110, round & 255, (round >> 8) & 255, (Math.random() * 256) | 0, 0], bytes.length);
    const start = clock();
    const engine = Engine.create(await WebAssembly.compile(fresh), ruleset);
    engine.setContext(CONTEXT);
    const { value } = engine.evaluate('checkout', NOW_MS);
    found.push(clock() - start);
    if (value !== true) throw new Error('another answer');
    engine.free();
  }
  return { first: found[0], median: median(found), most: Math.max(...found) };
}

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}
