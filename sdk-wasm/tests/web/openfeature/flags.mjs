// The flags that OpenFeature's scenarios speak of (`test-flags.json` of its specification), as Tidegate's
// admin API takes them.

const BALLMER = { attr: 'email', op: 'eq', value: 'ballmer@macrosoft.com' };
const TEMPLATE = { showImages: true, title: 'Check out these pics!', imagesPerPage: 100 };

const KINDS = {
  boolean: { on: true, off: false, serves: 'on', zero: { zero: false, 'non-zero': true } },
  string: { greeting: 'hi', parting: 'bye', serves: 'greeting', zero: { zero: '', 'non-zero': 'str' } },
  integer: { one: 1, ten: 10, serves: 'ten', zero: { zero: 0, 'non-zero': 1 } },
  float: { tenth: 0.1, half: 0.5, serves: 'half', zero: { zero: 0.0, 'non-zero': 1.0 } },
  object: { empty: {}, template: TEMPLATE, serves: 'template', zero: { zero: {}, 'non-zero': TEMPLATE } },
};

/** `[definition, configuration]` of every flag, for browsers as `clients` says. */
export function flags(clients) {
  const made = [];
  const add = (key, type, variants, config, more = {}) =>
    made.push([{ key, type, variants, clients, ...more }, { enabled: true, rules: [], ...config }]);
  for (const [type, { serves, zero, ...variants }] of Object.entries(KINDS)) {
    add(`${type}-flag`, type, variants, { fallthrough: { variant: serves } });
    // Without an off variant: the caller's default, as the scenarios want it.
    add(`${type}-disabled-flag`, type, variants, { enabled: false, fallthrough: { variant: serves } });
    add(`${type}-zero-flag`, type, zero, { fallthrough: { variant: 'zero' } });
    // A rule that gives the same value as no rule: only the reason tells them apart.
    add(`${type}-targeted-zero-flag`, type, zero, {
      rules: [{ id: 'ballmer', when: BALLMER, serve: { variant: 'zero' } }],
      fallthrough: { variant: 'zero' },
    });
  }
  add('complex-targeted', 'string', { internal: 'INTERNAL', external: 'EXTERNAL' }, {
    rules: [{
      id: 'internal',
      when: { all: [{ not: { attr: 'customer', op: 'eq', value: true } }, BALLMER, { attr: 'age', op: 'gt', value: 10 }] },
      serve: { variant: 'internal' },
    }],
    fallthrough: { variant: 'external' },
  });
  add('metadata-flag', 'boolean', { on: true, off: false }, { fallthrough: { variant: 'on' } }, {
    metadata: { string: '1.0.2', integer: 2, boolean: true, float: 0.1 },
  });
  add('wrong-flag', 'string', { one: 'uno', two: 'dos' }, { fallthrough: { variant: 'one' } });
  return made;
}
