// Random JavaScript values as contexts, from a seed: every kind that JSON.stringify knows, numbers at
// the borders of integers and floats, texts of every length of UTF-8, objects on both sides of where
// they get an index, and now and then what is refused.

/** mulberry32. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const NUMBERS = [
  0, -0, 1, -1, 0.1, 1e21, 1e20, 1e-7, 5e-324, 1.7976931348623157e308, 2 ** 53, 2 ** 53 + 2, -(2 ** 53) - 2,
  2 ** 60, 2 ** 63, 2 ** 63 - 1024, -(2 ** 63), -(2 ** 63) - 2048, 2 ** 64, 9.5e18, 1e19, NaN, Infinity,
];
const TEXTS = ['', 'a', 'user-1', 'é', '€', '🌊', 'a.b', '\u0000', '"\\\n', 'x'.repeat(300), '\u{1f30a}ß€x'];

export function randomValues(seed, count) {
  const next = random(seed);
  const below = (limit) => Math.floor(next() * limit);
  const one = (of) => of[below(of.length)];
  const text = () => {
    if (next() < 0.001) return 'half \udc00';
    if (next() < 0.3) return one(TEXTS);
    return Array.from({ length: below(12) }, () => String.fromCodePoint(below(0xd800))).join('');
  };
  const number = () => {
    const kind = below(4);
    if (kind === 0) return one(NUMBERS);
    if (kind === 1) return below(1_000_000) - 500_000;
    return (next() - 0.5) * 10 ** (below(40) - 10);
  };
  const object = (depth) => {
    const entries = next() < 0.03 ? 30 + below(60) : below(7);
    const made = {};
    for (let at = 0; at < entries; at += 1) made[next() < 0.1 ? String(below(50)) : text()] = value(depth + 1);
    return made;
  };
  const value = (depth) => {
    const kind = below(depth > 18 ? 7 : 10);
    if (kind < 2) return text();
    if (kind < 4) return number();
    if (kind === 4) return next() < 0.5;
    if (kind === 5) return one([null, undefined, () => 1, Symbol('x')]);
    if (kind === 6) return new Date(below(2 ** 40));
    if (kind === 7) return Array.from({ length: below(5) }, () => value(depth + 1));
    return object(depth);
  };
  return Array.from({ length: count }, () => {
    if (next() < 0.01) return one([null, [], 'text', 5, true]);
    if (next() < 0.01) return nested(10 + below(12));
    return object(0);
  });
}

function nested(levels) {
  let inner = {};
  for (let level = 1; level < levels; level += 1) inner = level % 2 ? [inner] : { inner };
  return levels % 2 ? inner : { inner };
}
