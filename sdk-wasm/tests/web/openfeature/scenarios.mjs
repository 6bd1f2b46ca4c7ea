// OpenFeature's evaluation scenarios (specification/assets/gherkin: evaluation_v2, hooks and metadata, as of
// autumn 2026), stated as data: names, flags, defaults and what is expected are the specification's; the
// wording and the form are ours. `COUNTS` is what the specification's files hold.
//
// A row: [flag, type, default, expected value]; `then` adds what every row of the scenario expects.
// `unlike` names what cannot hold here, and why; the test shows that it does not, and what holds instead.

export const COUNTS = { evaluation_v2: 86, hooks: 3, metadata: 5 };

const TEMPLATE = { showImages: true, title: 'Check out these pics!', imagesPerPage: 100 };
const BALLMER = { email: 'ballmer@macrosoft.com' };
const DEFAULTS = [['Boolean', false], ['String', 'bye'], ['Integer', 1], ['Float', 0.1], ['Object', { a: 1 }]];

const VALUES = [
  ['boolean-flag', 'Boolean', false, true],
  ['string-flag', 'String', 'bye', 'hi'],
  ['integer-flag', 'Integer', 1, 10],
  ['float-flag', 'Float', 0.1, 0.5],
  ['object-flag', 'Object', {}, TEMPLATE],
];
const VARIANTS = ['on', 'greeting', 'ten', 'half', 'template'];
const zero = (kind) => [
  [`boolean-${kind}`, 'Boolean', true, false],
  [`string-${kind}`, 'String', 'hi', ''],
  [`integer-${kind}`, 'Integer', 1, 0],
  [`float-${kind}`, 'Float', 0.1, 0],
  [`object-${kind}`, 'Object', { a: 1 }, {}],
];
/** Every row expects its default. */
const ownDefault = (rows) => rows.map(([flag, type, otherwise]) => [flag, type, otherwise, otherwise]);
const plain = (kind) => ownDefault(DEFAULTS.map(([type, otherwise]) => [`${type.toLowerCase()}-${kind}`, type, otherwise]));

const SCENARIOS = [
  { feature: 'evaluation_v2', name: 'Resolve values', rows: VALUES },
  { feature: 'evaluation_v2', name: 'Resolves zero value', rows: zero('zero-flag'), then: { reason: 'STATIC' } },
  {
    feature: 'evaluation_v2', name: 'Resolves zero value with targeting', context: BALLMER,
    rows: zero('targeted-zero-flag'), then: { reason: 'TARGETING_MATCH' },
  },
  {
    feature: 'evaluation_v2', name: 'Resolves zero value with targeting using default', context: { email: 'ballmer@none.com' },
    rows: zero('targeted-zero-flag'), then: { reason: 'DEFAULT' },
  },
  {
    feature: 'evaluation_v2', name: 'Flag not found error',
    rows: DEFAULTS.map(([type, otherwise]) => ['non-existent-flag', type, otherwise, otherwise]),
    then: { reason: 'ERROR', errorCode: 'FLAG_NOT_FOUND' },
  },
  {
    feature: 'evaluation_v2', name: 'Type mismatch error',
    rows: ownDefault([
      ['boolean-flag', 'String', 'bye'], ['string-flag', 'Boolean', false], ['string-flag', 'Integer', 1], ['string-flag', 'Object', {}],
    ]),
    then: { reason: 'ERROR', errorCode: 'TYPE_MISMATCH' },
  },
  {
    feature: 'evaluation_v2', name: 'Provider not ready error', provider: 'not ready', rows: plain('flag'),
    then: { reason: 'ERROR', errorCode: 'PROVIDER_NOT_READY' },
  },
  {
    feature: 'evaluation_v2', name: 'Provider in fatal state error', provider: 'fatal', rows: plain('flag'),
    then: { reason: 'ERROR', errorCode: 'PROVIDER_FATAL' },
  },
  {
    feature: 'evaluation_v2', name: 'Complete evaluation details structure', rows: VALUES,
    then: (row) => ({ flagKey: row[0], variant: VARIANTS[VALUES.indexOf(row)], reason: 'STATIC' }),
  },
  {
    feature: 'evaluation_v2', name: 'Flag metadata in evaluation details', rows: [['metadata-flag', 'Boolean', true]],
    then: { flagMetadata: { string: '1.0.2', integer: 2, float: 0.1, boolean: true } },
  },
  { feature: 'evaluation_v2', name: 'Empty evaluation context', context: {}, rows: zero('targeted-zero-flag'), then: { reason: 'DEFAULT' } },
  {
    feature: 'evaluation_v2', name: 'Null context values', context: { email: null },
    rows: zero('targeted-zero-flag'), then: { reason: 'DEFAULT' },
  },
  {
    feature: 'evaluation_v2', name: 'Multiple context attributes targeting', context: { ...BALLMER, role: 'admin', age: 65, customer: false },
    rows: [['complex-targeted', 'String', 'false', 'INTERNAL']], then: { reason: 'TARGETING_MATCH' },
  },
  { feature: 'evaluation_v2', name: 'Structure flag evaluation', rows: [['object-flag', 'Object', {}, TEMPLATE]], then: { reason: 'STATIC' } },
  {
    feature: 'evaluation_v2', name: 'Variant field population', rows: VALUES.map(([flag, type, otherwise]) => [flag, type, otherwise]),
    then: ([flag]) => ({ variant: VARIANTS[VALUES.findIndex(([key]) => key === flag)] }),
  },
  {
    feature: 'evaluation_v2', name: 'CACHED reason', how: 'twice',
    rows: [['boolean-flag', 'Boolean', false], ['string-flag', 'String', 'bye']], then: { reason: 'CACHED' },
    unlike: {
      why: 'evaluating is as fast as a cache, so the second answer says why it is what it is, as the first does',
      then: { reason: 'STATIC' },
    },
  },
  { feature: 'evaluation_v2', name: 'DISABLED reason', rows: plain('disabled-flag'), then: { reason: 'DISABLED' } },
  {
    feature: 'evaluation_v2', name: 'Error message in evaluation details', rows: [['missing-flag', 'Boolean', false]],
    then: { reason: 'ERROR', errorMessage: 'flag missing-flag not found' },
    unlike: {
      why: 'the text is the one that every edge gives, which says the same in other words',
      then: { reason: 'ERROR', errorMessage: 'the flag does not exist' },
    },
  },
  ...[['stable', 'READY'], ['not ready', 'NOT_READY'], ['error', 'ERROR'], ['fatal', 'FATAL'], ['stale', 'STALE']].map(([provider, status]) => ({
    feature: 'evaluation_v2', name: 'Provider status accessibility', provider, how: 'status', rows: [[status]],
  })),
  { feature: 'evaluation_v2', name: 'Evaluation options with hooks', how: 'options', rows: [['boolean-flag', 'Boolean', false, true]] },
  {
    feature: 'evaluation_v2', name: 'Default value type validation',
    rows: ownDefault([
      ['string-flag', 'Boolean', false], ['boolean-flag', 'String', 'bye'], ['boolean-flag', 'Integer', 1], ['boolean-flag', 'Float', 0.1],
    ]),
    then: { errorCode: 'TYPE_MISMATCH' },
  },
  {
    feature: 'evaluation_v2', name: 'Evaluation context immutability', how: 'tampered', context: { ...BALLMER, nested: { list: [1, { two: 2 }] } },
    rows: [['boolean-flag', 'Boolean', false, true]],
  },
  { feature: 'evaluation_v2', name: 'Asynchronous flag evaluation', how: 'without waiting', rows: VALUES },

  {
    feature: 'hooks', name: 'Passes evaluation details to after and finally hooks', how: 'hooks', rows: [['boolean-flag', 'Boolean', false, true]],
    calls: ['before', 'after', 'finally'], then: { flagKey: 'boolean-flag', variant: 'on', reason: 'STATIC', errorCode: undefined },
  },
  {
    feature: 'hooks', name: 'Flag not found', how: 'hooks', rows: [['missing-flag', 'String', 'uh-oh', 'uh-oh']],
    calls: ['before', 'error', 'finally'], then: { flagKey: 'missing-flag', variant: undefined, reason: 'ERROR', errorCode: 'FLAG_NOT_FOUND' },
  },
  {
    feature: 'hooks', name: 'Type error', how: 'hooks', rows: [['wrong-flag', 'Boolean', false, false]],
    calls: ['before', 'error', 'finally'], then: { flagKey: 'wrong-flag', variant: undefined, reason: 'ERROR', errorCode: 'TYPE_MISMATCH' },
  },

  {
    feature: 'metadata', name: 'Returns metadata', rows: [['metadata-flag', 'Boolean', true]],
    then: { flagMetadata: { string: '1.0.2', integer: 2, float: 0.1, boolean: true } },
  },
  {
    feature: 'metadata', name: 'Returns no metadata',
    rows: [['boolean-flag', 'Boolean', true], ['integer-flag', 'Integer', 23], ['float-flag', 'Float', 2.3], ['string-flag', 'String', 'value']],
    then: { flagMetadata: {} },
  },
];

/** One for each example: `{feature, name, row, provider, context, how, then, unlike}`. */
export const examples = SCENARIOS.flatMap(({ rows, then = {}, provider = 'stable', context = {}, how = 'once', ...scenario }) =>
  rows.map((row) => {
    const [flag, type, otherwise] = row;
    const value = row.length > 3 ? { value: row[3] } : {};
    return { ...scenario, provider, context, how, flag, type, otherwise, then: { ...value, ...(typeof then === 'function' ? then(row) : then) } };
  }),
);
