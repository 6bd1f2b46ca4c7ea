// The demo page: every flag that the browser key may see, for a context that you edit, with the
// explanation of each answer. Plain JavaScript on the package as a page gets it; served by `cargo xtask dev`.

// An app says '@tidegate/web'; this page has no bundler, and the package beside it.
import { createClient } from './tidegate/index.js';

const find = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const PEOPLE = {
  Visitor: { targetingKey: 'visitor-7', country: 'US' },
  Customer: { targetingKey: 'user-42', plan: 'pro', country: 'DE', app: { version: '2.4.0' } },
  Beta: { targetingKey: 'user-77', plan: 'team', groups: ['beta'], country: 'FR' },
  Staff: { targetingKey: 'ann', email: 'ann@example.com', plan: 'enterprise' },
};
const LOG_MAX = 50;
const KEPT = 'tidegate-demo:context';

const started = performance.now();
const config = await fetch('config.json').then((answer) => answer.json());
const begin = kept() ?? PEOPLE.Customer;
const client = createClient({
  edgeUrl: config.edgeUrl, key: config.browserKey, publicKey: config.publicKey, context: begin, pollSeconds: 15,
});
// For whoever tries things in the console, and for the tests.
globalThis.tidegate = client;

find('where').textContent = `${config.namespace} / ${config.environment}, from ${new URL(config.edgeUrl).host}`;
find('context').value = JSON.stringify(begin, null, 2);
const rows = new Map();

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? undefined;
  } catch {
    return undefined;
  }
}

// ---- who asks

for (const [name, context] of Object.entries(PEOPLE)) {
  const button = make('button', { type: 'button', textContent: name });
  button.addEventListener('click', () => {
    find('context').value = JSON.stringify(context, null, 2);
    take();
  });
  find('people').append(button);
}

function pressed(context) {
  const text = JSON.stringify(context);
  for (const button of find('people').children) {
    button.setAttribute('aria-pressed', String(JSON.stringify(PEOPLE[button.textContent]) === text));
  }
}

let taking;
find('context').addEventListener('input', () => {
  clearTimeout(taking);
  taking = setTimeout(take, 150);
});

async function take() {
  const [field, problem] = [find('context'), find('context-problem')];
  let context;
  try {
    context = JSON.parse(field.value || '{}');
    if (typeof context !== 'object' || context === null || Array.isArray(context)) throw new Error('a context is an object: { … }');
    await client.setContext(context);
  } catch (error) {
    field.setAttribute('aria-invalid', 'true');
    problem.textContent = `Not used: ${error.message}`;
    return;
  }
  field.removeAttribute('aria-invalid');
  problem.textContent = '';
  sessionStorage.setItem(KEPT, JSON.stringify(context));
  pressed(context);
  show();
}

// ---- flags

const shortly = (value) => (typeof value === 'string' ? JSON.stringify(value) : JSON.stringify(value));

function show(changed = []) {
  const keys = client.keys();
  const list = find('flags');
  for (const [key, row] of rows) {
    if (!keys.includes(key)) {
      row.remove();
      rows.delete(key);
    }
  }
  const needle = find('filter').value.toLowerCase();
  let shown = 0;
  keys.forEach((key, at) => {
    let row = rows.get(key);
    if (!row) {
      row = make('details', { className: 'flag' }, make('summary'), make('div', { className: 'inside' }));
      row.dataset.key = key;
      row.addEventListener('toggle', () => row.open && explain(row, key));
      rows.set(key, row);
    }
    if (list.children[at]?.firstChild !== row) list.insertBefore(make('li', {}, row), list.children[at] ?? null);
    row.parentNode.hidden = !key.toLowerCase().includes(needle);
    shown += row.parentNode.hidden ? 0 : 1;
    summarize(row, key);
    if (row.open) explain(row, key);
    if (changed.includes(key)) {
      row.classList.remove('flash');
      requestAnimationFrame(() => row.classList.add('flash'));
    }
  });
  for (const item of [...list.children]) if (!item.firstChild) item.remove();
  find('count').textContent = keys.length > 0 ? (needle ? `${shown} of ${keys.length}` : keys.length) : '';
  const empty = find('empty');
  empty.hidden = shown > 0;
  empty.textContent = keys.length > 0
    ? `No flag has “${find('filter').value}” in its key.`
    : client.state === 'NOT_READY' ? 'The flags are on their way …' : 'There are no flags here yet. An app would show its defaults.';
}

function summarize(row, key) {
  const answer = client.evaluate(key);
  const { value, variant, reason, errorCode } = answer;
  const kind = errorCode ? 'failed' : value === undefined ? 'none' : value === true || value === false ? String(value) : 'some';
  const text = errorCode ?? (value === undefined ? 'the caller’s default' : shortly(value));
  const name = make('span', { className: 'name' }, make('span', { textContent: key }));
  if (client.evaluatedAt(key) === 'edge') name.append(make('span', { className: 'tag edge', textContent: 'edge', title: 'evaluated at the edge: its rule never leaves it' }));
  row.firstChild.replaceChildren(
    name,
    make('span', { className: `value ${kind}`, textContent: text, title: text }),
    make('span', { className: 'reason', textContent: (reason ?? '').toLowerCase().replaceAll('_', ' '), title: variant ? `variant ${variant}` : '' }),
  );
}

async function explain(row, key) {
  const answer = client.evaluate(key);
  const inside = row.lastChild;
  const facts = make('dl');
  const fact = (name, value) => value !== undefined && facts.append(make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: value })));
  fact('variant', answer.variant);
  fact('reason', answer.reason);
  for (const [name, value] of Object.entries(answer.flagMetadata)) fact(name, String(value));
  const parts = [facts];
  if (answer.errorMessage) parts.push(make('p', { textContent: answer.errorMessage }));
  if (typeof answer.value === 'object') parts.push(make('pre', { textContent: JSON.stringify(answer.value, null, 2) }));
  if (client.evaluatedAt(key) === 'edge') {
    parts.push(make('p', { className: 'hint', textContent: 'The edge evaluates this flag for browsers, so its rule is not here to be explained. An operator sees it with: tidegate eval ' + key + ' --explain' }));
    return void inside.replaceChildren(...parts);
  }
  try {
    const trace = await client.explain(key);
    if (trace) parts.push(steps(trace));
  } catch (error) {
    parts.push(make('p', { className: 'problem', textContent: `It cannot be explained now: ${error.message}` }));
  }
  inside.replaceChildren(...parts);
}

const OPERATORS = {
  eq: 'is', in: 'is one of', startsWith: 'starts with', endsWith: 'ends with', contains: 'contains', matches: 'matches', exists: 'exists',
  gt: '>', gte: '≥', lt: '<', lte: '≤', before: 'is before', after: 'is after', cidr: 'is in network',
};

/** The steps of a trace (`rules/src/trace.rs`), each with what was wanted and what was there. */
function steps(trace) {
  const list = make('ol', { className: 'steps' });
  let inner = false;
  let open;
  const mark = (line, ok) => {
    line.classList.add(ok === undefined ? 'plain' : ok ? 'yes' : 'no');
    line.firstChild.textContent = ok === undefined ? '·' : ok ? '✓' : '✗';
  };
  const line = (ok, text, got) => {
    const body = make('span', {}, text);
    if (got) body.append(make('span', { className: 'got', textContent: `  ${got}` }));
    const item = make('li', { className: inner ? 'inner' : '' }, make('span', { className: 'mark' }), body);
    mark(item, ok);
    list.append(item);
    return item;
  };
  const time = (ms) => new Date(ms).toISOString().replace('.000', '');
  for (const step of trace.steps) {
    switch (step.step) {
      case 'disabled': line(false, 'the flag is off here'); break;
      case 'prerequisite':
        line(step.satisfied, `${step.flag} serves ${step.wanted.join(' or ')}`, step.got ? `it serves ${step.got}` : 'it serves nothing'); break;
      case 'rule': open = line(undefined, `rule ${step.id || step.index + 1}`); inner = true; break;
      case 'inactive':
        line(false, 'inside its window', [step.fromMs != null ? `from ${time(step.fromMs)}` : '', step.toMs != null ? `until ${time(step.toMs)}` : ''].join(' ')); break;
      case 'clause': {
        const op = OPERATORS[step.op] ?? step.op.replaceAll('_', ' ');
        const wanted = step.expected.map(shortly).join(', ');
        line(step.result, `${step.attribute} ${step.negated ? 'not: ' : ''}${op} ${wanted}`, 'actual' in step ? `it is ${shortly(step.actual)}` : 'it is not there'); break;
      }
      case 'segment': line(step.result, `in segment ${step.key}`, step.by === 'none' ? '' : `by ${step.by}`); break;
      case 'cel': line(step.result, step.expression, step.error ?? ''); break;
      case 'logic': line(undefined, `the rule gives ${shortly(step.result)}`); break;
      case 'split':
        line(
          undefined, `split by ${step.by ?? 'nothing'}`,
          `${step.unit ?? 'nobody'} falls on ${step.total ? `${step.bucket} of ${step.total}` : step.bucket}`
            + (step.ramp === undefined ? '' : `, the ramp has come to ${step.ramp / 1000} %`),
        ); break;
      case 'ruleEnd':
        inner = false;
        if (open) mark(open, step.matched);
        if (step.error) line(false, step.error);
        break;
      case 'fallthrough': line(true, 'no rule matched: fallthrough'); break;
      default: line(undefined, JSON.stringify(step));
    }
  }
  if (trace.steps.length === 0) line(true, 'nothing to decide: it serves the same to everybody');
  return list;
}

find('filter').addEventListener('input', () => show());

// ---- what happened

function log(text) {
  const at = new Date();
  find('log').prepend(make('li', {}, make('time', { textContent: at.toLocaleTimeString([], { hour12: false }), dateTime: at.toISOString() }), make('span', { textContent: text })));
  while (find('log').children.length > LOG_MAX) find('log').lastChild.remove();
}

const WORDS = { NOT_READY: 'starting', READY: 'live', STALE: 'not confirmed', ERROR: 'no flags' };

function age() {
  const ms = client.ageMs;
  if (ms === undefined || client.state !== 'STALE') return '';
  const s = Math.round(ms / 1000);
  return s < 90 ? `last confirmed ${s} s ago` : s < 5400 ? `last confirmed ${Math.round(s / 60)} min ago` : `last confirmed ${Math.round(s / 3600)} h ago`;
}

function status() {
  const { state, error } = client;
  find('state').dataset.state = state;
  find('state-word').textContent = WORDS[state];
  find('state-note').textContent = age();
  const banner = find('banner');
  banner.hidden = state === 'READY' || state === 'NOT_READY';
  if (banner.hidden) return;
  banner.dataset.tone = state === 'ERROR' ? 'bad' : 'warn';
  const [what, then] = error?.kind === 'UNAUTHORIZED'
    ? ['The edge refuses this key.', 'It is revoked, or of another installation, or not for this page’s origin. The page asks again every five minutes.']
    : state === 'ERROR' ? ['There are no flags.', 'An app shows its defaults; this page goes on trying.']
    : ['The edge does not answer.', 'These are the last good flags, and rules go on answering for whoever you put in; flags of the edge have no answer for somebody new.'];
  banner.replaceChildren(make('strong', { textContent: what }), ` ${then}`, make('span', { className: 'cause', textContent: error?.message ?? '' }));
}

client.on('state', ({ state }) => {
  log(WORDS[state]);
  status();
  show();
});
client.on('change', ({ flags }) => {
  const come = flags.filter((key) => !rows.has(key));
  const changed = flags.filter((key) => rows.has(key));
  const named = (keys) => (keys.length > 4 ? `${keys.length} flags` : keys.join(', '));
  if (come.length > 0) log(`${named(come)} came`);
  if (changed.length > 0) log(`${named(changed)} answer${changed.length > 1 ? '' : 's'} otherwise`);
  show(changed);
});
client.on('error', ({ error }) => {
  log(error.message);
  status();
});
let version;
setInterval(() => {
  status();
  // The evaluator took over from what was kept: the same values, and now their reasons.
  if (client.version !== version) {
    version = client.version;
    show();
  }
}, 1000);
pressed(begin);
status();
show();
log('the page asks for its flags');
client.ready().then(
  () => {
    find('numbers').textContent = `${client.keys().length} flags, ${Math.round(performance.now() - started)} ms from the script’s first line to the first answer`;
    show();
  },
  () => show(),
);
