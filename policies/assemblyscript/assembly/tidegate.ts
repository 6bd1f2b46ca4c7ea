// The ABI of Tidegate's policies, version 1, and the little JSON that a policy needs.
// Your policy is `policy.ts`; nothing in here has to be changed.

// @ts-ignore: decorator
@external("tidegate.v1", "log")
declare function hostLog(at: usize, len: usize): void;

/** Up to 256 bytes of one call are kept and shown in the trace; each call costs fuel. */
export function log(text: string): void {
  const bytes = String.UTF8.encode(text);
  hostLog(changetype<usize>(bytes), bytes.byteLength);
}

/** The bytes of a text, as the host wants an answer: `pointer << 32 | length`. */
export function packed(text: string): u64 {
  const bytes = String.UTF8.encode(text);
  return ((changetype<usize>(bytes) as u64) << 32) | (bytes.byteLength as u64);
}

/** The JSON of what the policy reads. */
export function describe(attributes: string[]): string {
  let text = '{"attributes":[';
  for (let i = 0; i < attributes.length; i++) {
    if (i > 0) text += ",";
    text += quoted(attributes[i]);
  }
  return text + "]}";
}

export class Answer {
  /** This variant of the flag. */
  static variant(name: string, reason: string): string {
    return '{"variant":' + quoted(name) + ',"reason":' + quoted(reason) + "}";
  }
  /** A value as JSON, of the flag's type. */
  static value(json: string, reason: string): string {
    return '{"value":' + json + ',"reason":' + quoted(reason) + "}";
  }
  /** No opinion: the next rule decides. */
  static abstain(): string {
    return '{"abstain":true}';
  }
}

/** What the host gave. A path is dotted: `attributes.user.score`, `params.max`, `targetingKey`. */
export class Input {
  constructor(private json: string) {}

  static read(at: usize, len: usize): Input {
    return new Input(String.UTF8.decodeUnsafe(at, len));
  }

  has(path: string): bool {
    const place = this.find(path);
    return place >= 0 && this.json.substr(place, 4) != "null";
  }

  /** The number at the path, or `otherwise` if there is none. */
  number(path: string, otherwise: f64 = NaN): f64 {
    const place = this.find(path);
    if (place < 0) return otherwise;
    const first = this.json.charCodeAt(place);
    if (first != MINUS && (first < ZERO || first > NINE)) return otherwise;
    return parseFloat(this.json.substring(place, skipped(this.json, place)));
  }

  bool(path: string, otherwise: bool = false): bool {
    const place = this.find(path);
    if (place < 0) return otherwise;
    const first = this.json.charCodeAt(place);
    return first == T ? true : first == F ? false : otherwise;
  }

  /** The text at the path as it is written in JSON, without its quotes; escapes stay escapes. */
  text(path: string, otherwise: string = ""): string {
    const place = this.find(path);
    if (place < 0 || this.json.charCodeAt(place) != QUOTE) return otherwise;
    return this.json.substring(place + 1, skipped(this.json, place) - 1);
  }

  /** Where the value at the path begins, or -1. */
  private find(path: string): i32 {
    const steps = path.split(".");
    const json = this.json;
    let at = spaces(json, 0);
    for (let step = 0; step < steps.length; step++) {
      if (json.charCodeAt(at) != OPEN) return -1;
      at = spaces(json, at + 1);
      let found = false;
      while (at < json.length && json.charCodeAt(at) == QUOTE) {
        const end = skipped(json, at);
        const name = json.substring(at + 1, end - 1);
        at = spaces(json, spaces(json, end) + 1);
        if (name == steps[step]) {
          found = true;
          break;
        }
        at = spaces(json, skipped(json, at));
        if (json.charCodeAt(at) == COMMA) at = spaces(json, at + 1);
      }
      if (!found) return -1;
    }
    return at;
  }
}

const QUOTE = 34, COMMA = 44, MINUS = 45, ZERO = 48, NINE = 57, BACKSLASH = 92;
const OPEN = 123, CLOSE = 125, OPEN_LIST = 91, CLOSE_LIST = 93, T = 116, F = 102;

function spaces(json: string, at: i32): i32 {
  while (at < json.length && json.charCodeAt(at) <= 32) at++;
  return at;
}

/** Behind the value that begins at `at`. */
function skipped(json: string, at: i32): i32 {
  const first = json.charCodeAt(at);
  if (first == QUOTE) {
    for (at++; at < json.length && json.charCodeAt(at) != QUOTE; at++) {
      if (json.charCodeAt(at) == BACKSLASH) at++;
    }
    return at + 1;
  }
  if (first == OPEN || first == OPEN_LIST) {
    let depth = 0;
    while (at < json.length) {
      const c = json.charCodeAt(at);
      if (c == QUOTE) {
        at = skipped(json, at);
        continue;
      }
      if (c == OPEN || c == OPEN_LIST) depth++;
      if (c == CLOSE || c == CLOSE_LIST) depth--;
      at++;
      if (depth == 0) break;
    }
    return at;
  }
  while (at < json.length) {
    const c = json.charCodeAt(at);
    if (c == COMMA || c == CLOSE || c == CLOSE_LIST || c <= 32) break;
    at++;
  }
  return at;
}

function quoted(text: string): string {
  let out = '"';
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c == QUOTE || c == BACKSLASH) out += "\\" + String.fromCharCode(c);
    else if (c < 32) out += " ";
    else out += String.fromCharCode(c);
  }
  return out + '"';
}
