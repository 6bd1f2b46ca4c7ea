// OpenFeature's evaluation scenarios against the web provider, once with flags that are evaluated here and
// once with flags that the edge evaluates: the two paths have to agree, and nobody may notice which it was.
//
// Every state of a provider is brought about by what would cause it: an edge that is silent, away, or does
// not know the key.

import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { COUNTS, examples } from './openfeature/scenarios.mjs';
import { flags } from './openfeature/flags.mjs';
import { packageFolder, startTidegate, until, wireTo } from './world.mjs';

// The package's own copy, so that there is one.
const load = (path) => import(pathToFileURL(join(packageFolder, path)).href);
const { OpenFeature } = await load('node_modules/@openfeature/web-sdk/dist/esm/index.js');
const { TidegateProvider } = await load('dist/openfeature.node.js');

const METHODS = {
  Boolean: 'getBooleanDetails', String: 'getStringDetails', Integer: 'getNumberDetails', Float: 'getNumberDetails', Object: 'getObjectDetails',
};

test('every example of the specification is here, and those that cannot hold are these', () => {
  const counts = {};
  for (const { feature } of examples) counts[feature] = (counts[feature] ?? 0) + 1;
  assert.deepEqual(counts, COUNTS);
  assert.deepEqual(examples.filter(({ unlike }) => unlike).map(({ name, flag }) => `${name}: ${flag}`), [
    'CACHED reason: boolean-flag', 'CACHED reason: string-flag', 'Error message in evaluation details: missing-flag',
  ]);
});

for (const clients of ['local', 'edge']) {
  describe(`clients: ${clients}`, () => {
    let [tidegate, wire, lost, silent] = [];
    const domains = new Set();
    const held = new Set();

    before(async () => {
      tidegate = await startTidegate();
      for (const [definition, config] of flags(clients)) await tidegate.create(definition, config);
      wire = await wireTo(tidegate.dev.edge_url);
      lost = await wireTo(tidegate.dev.edge_url);
      silent = createServer((socket) => {
        held.add(socket);
        socket.on('error', () => {});
      });
      await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
    });
    after(async () => {
      await OpenFeature.close();
      for (const socket of held) socket.destroy();
      if (silent) await new Promise((resolve) => silent.close(resolve));
      await wire?.stop();
      await lost?.stop();
      await tidegate?.stop();
    });

    const options = (more) => ({
      edgeUrl: tidegate.dev.edge_url, key: tidegate.dev.browser_key, publicKey: tidegate.dev.public_key,
      contextSeconds: 60, ...more,
    });
    /** By state: how a provider comes into it, for a domain of its own. */
    const PROVIDERS = {
      async stable(domain) {
        const provider = new TidegateProvider(options());
        await OpenFeature.setProviderAndWait(domain, provider);
        const place = clients === 'edge' ? 'edge' : 'here';
        for (const [{ key }] of flags(clients)) assert.equal(provider.client.evaluatedAt(key), place, key);
      },
      async 'not ready'(domain) {
        const before = held.size;
        OpenFeature.setProvider(domain, new TidegateProvider(options({ edgeUrl: `http://127.0.0.1:${silent.address().port}` })));
        await until('it has asked the edge', () => held.size > before);
      },
      async error(domain) {
        const gone = await wireTo(tidegate.dev.edge_url);
        await gone.stop();
        await assert.rejects(OpenFeature.setProviderAndWait(domain, new TidegateProvider(options({ edgeUrl: gone.url }))), /does not answer/);
      },
      async fatal(domain) {
        const provider = new TidegateProvider(options({ key: `${tidegate.dev.browser_key.slice(0, -6)}wrong1` }));
        await assert.rejects(OpenFeature.setProviderAndWait(domain, provider), { code: 'PROVIDER_FATAL' });
      },
      async stale(domain) {
        await OpenFeature.setProviderAndWait(domain, new TidegateProvider(options({ edgeUrl: lost.url })));
        await until('it listens', () => lost.streams.size > 0);
        // For good: it would recover at once.
        lost.fail();
        await until('it is told', () => OpenFeature.getClient(domain).providerStatus !== 'READY');
      },
    };

    /** A client whose provider is in the state; those that last are shared. Nobody waits for an answer for ever. */
    async function client(state) {
      const domain = state === 'not ready' ? `${clients}, ${state} ${domains.size}` : `${clients}, ${state}`;
      if (!domains.has(domain)) {
        await PROVIDERS[state](domain);
        domains.add(domain);
      }
      return OpenFeature.getClient(domain);
    }

    function holds(details, then) {
      for (const [name, wanted] of Object.entries(then)) {
        if (name === 'errorMessage') assert(details.errorMessage?.includes(wanted), `errorMessage: ${details.errorMessage}`);
        else assert.deepEqual(details[name], wanted, name);
      }
    }

    const numbers = new Map();
    for (const example of examples) {
      const { feature, name, provider, context, how, flag, type, otherwise, then, unlike } = example;
      const number = (numbers.get(name) ?? 0) + 1;
      numbers.set(name, number);
      const row = how === 'status' ? provider : `${flag} as ${type}`;
      test(`${feature}: ${name}, ${number} (${row})${unlike ? `, unlike it: ${unlike.why}` : ''}`, async () => {
        const flagClient = await client(provider);
        if (how === 'status') {
          assert.equal(flagClient.providerStatus, flag);
          return;
        }
        if (provider === 'stable') await OpenFeature.setContext(`${clients}, ${provider}`, structuredClone(context));
        const evaluate = (more) => flagClient[METHODS[type]](flag, otherwise, more);
        const details = await HOW[how]({ ...example, flagClient, evaluate });
        if (unlike) {
          assert.throws(() => holds(details, then), assert.AssertionError, 'it holds now: take it off the list');
          holds(details, unlike.then);
        } else {
          assert(Object.keys(then).length > 0 || how !== 'once', 'something is expected');
          holds(details, then);
        }
      });
    }

    const HOW = {
      once: ({ evaluate }) => evaluate(),
      twice({ evaluate }) {
        evaluate();
        return evaluate();
      },
      /** Hooks of one evaluation: all run, each in its order. */
      options({ evaluate }) {
        const called = [];
        const hook = (name) => ({
          before: () => void called.push(`before ${name}`), after: () => called.push(`after ${name}`), finally: () => called.push(`finally ${name}`),
        });
        const details = evaluate({ hooks: [hook('one'), hook('two')] });
        assert.deepEqual(called, ['before one', 'before two', 'after two', 'after one', 'finally two', 'finally one']);
        return details;
      },
      hooks({ flagClient, evaluate, calls, then }) {
        const called = [];
        const record = (stage) => (hookContext, given) => void called.push([stage, given]);
        flagClient.clearHooks();
        flagClient.addHooks(Object.fromEntries(['before', 'after', 'error', 'finally'].map((stage) => [stage, record(stage)])));
        const details = evaluate();
        flagClient.clearHooks();
        assert.deepEqual(called.map(([stage]) => stage), calls);
        for (const [stage, given] of called) {
          if (stage === 'after' || stage === 'finally') holds(given, then);
          if (stage === 'error') assert.equal(given.code, then.errorCode);
        }
        return details;
      },
      /** What went in stays as it was, and what came out cannot change what comes out next. */
      tampered({ context, evaluate }) {
        const details = evaluate();
        assert.deepEqual(OpenFeature.getContext(`${clients}, stable`), context);
        assert(Object.isFrozen(details.flagMetadata));
        const before = structuredClone(details);
        Object.assign(details, { value: 'other', reason: 'other', variant: 'other' });
        assert.throws(() => Object.assign(details.flagMetadata, { other: 1 }), TypeError);
        const objects = OpenFeature.getClient(`${clients}, stable`).getObjectDetails('object-flag', {});
        assert.throws(() => Object.assign(objects.value, { title: 'other' }), TypeError);
        assert.deepEqual(structuredClone(evaluate()), before);
        return evaluate();
      },
      /** The answer is there in the same turn, and with nobody to ask. */
      async 'without waiting'({ context, flag, type, otherwise }) {
        const domain = `${clients}, alone`;
        if (!domains.has(domain)) {
          await OpenFeature.setProviderAndWait(domain, new TidegateProvider(options({ edgeUrl: wire.url, updates: 'off' })), context);
          domains.add(domain);
        }
        wire.fail();
        try {
          const details = OpenFeature.getClient(domain)[METHODS[type]](flag, otherwise);
          assert.equal(typeof details.then, 'undefined', 'it is the answer and no promise of it');
          return await Promise.resolve(details);
        } finally {
          wire.mend();
        }
      },
    };
  });
}
