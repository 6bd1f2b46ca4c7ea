// The conformance corpus through the browsers' door, compared byte for byte with the native answers.
// Runs in Node (`node/browser.mjs`) and in a page alike: it gets what it needs and reads nothing.
//
// `files` are the documents that `cargo run -p rules --example corpus FOLDER` writes. Left out, and
// counted: files with id lists or policies, which never travel to browsers, and cases asked with a
// browser's key, because the door answers from a snapshot that holds only what its key may see.

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const text = (base64) => new TextDecoder().decode(bytes(base64));
const equal = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);

/**
 * `engine` is what `npm/src/engine.ts` exports, `tier` the module's own: "core" or "full".
 * Answers `{tier, passed, failed, leftOut, refused, written, failures}`; `refused` counts files of the
 * full tier that the core refused, as it must, `written` contexts that TypeScript encoded itself.
 */
export function check({ Engine, answerOf }, module, tier, files) {
  const result = { tier, passed: 0, failed: 0, leftOut: 0, refused: 0, written: 0, failures: [] };
  const expect = (place, good, found) => {
    if (good) {
      result.passed += 1;
      return;
    }
    result.failed += 1;
    if (result.failures.length < 10) result.failures.push(`${place}: ${found()}`);
  };
  for (const file of files) {
    if (file.lists.length > 0 || file.policies.length > 0) {
      result.leftOut += file.cases.length;
      continue;
    }
    if (tier === 'core' && file.tier === 'full') {
      const refusal = thrown(() => Engine.create(module, bytes(file.ruleset)));
      expect(file.file, /full/.test(refusal?.message), () => `was not refused: ${refusal}`);
      result.refused += 1;
      continue;
    }
    const engine = Engine.create(module, bytes(file.ruleset));
    for (const c of file.cases) {
      if (c.browser) {
        result.leftOut += 1;
        continue;
      }
      const place = `${file.file}: ${c.name}`;
      const now = Number(c.nowMs);
      const [one, all, compact, json] = [text(c.one), text(c.all), bytes(c.compact), text(c.json)];
      const answers = (how) => {
        const got = engine.answerJson(c.flag, now);
        expect(`${place} (${how})`, got === one, () => `\n  here:   ${got}\n  native: ${one}`);
        const list = engine.keys.map((key) => engine.answerJson(key, now)).join();
        const every = `{"flags":[${list}],"metadata":`;
        expect(`${place} (${how}, all)`, all.startsWith(every), () => `\n  here:   ${every}\n  native: ${all}`);
        const [answer, again] = [engine.evaluate(c.flag, now), engine.evaluate(c.flag, now)];
        const wanted = JSON.stringify(answerOf(one));
        const same = answer.errorCode !== undefined || answer === again;
        expect(`${place} (${how}, evaluate)`, same && JSON.stringify(answer) === wanted, () =>
          `\n  here:   ${JSON.stringify(answer)}\n  native: ${wanted}`);
      };
      engine.setCompactContext(compact);
      answers('compact');
      // `3.0` and `1e2` are texts that JavaScript does not write.
      const value = json.trim() === '' ? undefined : JSON.parse(json);
      if (value === undefined || JSON.stringify(value) === json) {
        result.written += 1;
        engine.setContext(value);
        answers('written');
        const encoded = engine.encode(value);
        expect(`${place} (context)`, equal(encoded, compact), () => `${json} as ${encoded}, not ${compact}`);
      }
    }
    const before = engine.answerJson(engine.keys[0], 0);
    for (const refused of [[], 1, 'x', true, { a: 1n }, { a: '\ud800' }]) {
      const error = thrown(() => engine.setContext(refused));
      expect(file.file, error?.code === 'INVALID_CONTEXT', () => `a context that is none: ${error}`);
    }
    expect(file.file, engine.answerJson(engine.keys[0], 0) === before, () => 'the context did not stay');
    expect(file.file, engine.evaluate('no such flag', 0).errorCode === 'FLAG_NOT_FOUND', () => 'found');
    engine.free();
    expect(file.file, engine.evaluate(engine.keys[0], 0).errorCode === 'FLAG_NOT_FOUND', () => 'not freed');
  }
  const damaged = bytes(files[0].ruleset);
  damaged[damaged.length >> 1] ^= 1;
  for (const bad of [damaged, new Uint8Array(), new Uint8Array(100)]) {
    const refusal = thrown(() => Engine.create(module, bad));
    expect('damage', refusal?.code === 'INVALID_RULESET', () => `was not refused: ${refusal}`);
  }
  const empty = new WebAssembly.Module(new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]));
  const refusal = thrown(() => Engine.create(empty, bytes(files[0].ruleset)));
  expect('another module', refusal?.name === 'EngineError', () => `was not refused: ${refusal}`);
  return result;
}

function thrown(run) {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}
