/**
 * What was evaluated, counted: per flag, variant and minute, never per person. Nothing of a context is
 * kept or sent.
 *
 * Bounded: so many rows, then what does not fit is dropped and its number told with the next batch's
 * console line; a batch is what a beacon may carry.
 */
import type { Answer } from './engine.js';

const ROWS_MAX = 1_000;
/** Browsers refuse beacons of more than 64 KiB in flight. */
const BATCH_CHARS_MAX = 56_000;
const MINUTE_MS = 60_000;

interface Row {
  readonly flag: string;
  readonly variant: string | null;
  readonly reason: string;
  readonly minute: number;
  count: number;
}

interface Track {
  readonly name: string;
  readonly minute: number;
  count: number;
  sum: number | undefined;
}

export class Usage {
  /** Of this minute, by the answers themselves: one look-up on the path of every evaluation. */
  #now = new Map<Answer, Map<string, number>>();
  #minute = 0;
  #rows = new Map<string, Row>();
  #tracks = new Map<string, Track>();
  #dropped = 0;

  count(flag: string, answer: Answer, nowMs: number): void {
    const minute = Math.floor(nowMs / MINUTE_MS);
    if (minute !== this.#minute) this.#fold(minute);
    const flags = this.#now.get(answer);
    if (flags) flags.set(flag, (flags.get(flag) ?? 0) + 1);
    else if (this.#now.size < ROWS_MAX) this.#now.set(answer, new Map([[flag, 1]]));
    else this.#dropped += 1;
  }

  track(name: string, value: number | undefined, nowMs: number): void {
    const minute = Math.floor(nowMs / MINUTE_MS);
    const key = `${minute}\n${name}`;
    const there = this.#tracks.get(key);
    if (there) {
      there.count += 1;
      if (value !== undefined) there.sum = (there.sum ?? 0) + value;
    } else if (this.#tracks.size < ROWS_MAX) {
      this.#tracks.set(key, { name, minute, count: 1, sum: value });
    } else {
      this.#dropped += 1;
    }
  }

  #fold(minute: number): void {
    for (const [answer, flags] of this.#now) {
      for (const [flag, count] of flags) {
        const variant = answer.variant ?? null;
        const key = JSON.stringify([this.#minute, flag, variant, answer.reason]);
        const there = this.#rows.get(key);
        if (there) there.count += count;
        else if (this.#rows.size < ROWS_MAX) {
          this.#rows.set(key, { flag, variant, reason: answer.reason, minute: this.#minute, count });
        } else this.#dropped += count;
      }
    }
    this.#now.clear();
    this.#minute = minute;
  }

  /** Gives what was counted to `send`, in batches; what it does not take is kept for the next time. */
  flush(nowMs: number, send: (batch: { usage: object[]; tracks: object[] }) => boolean): void {
    this.#fold(Math.floor(nowMs / MINUTE_MS));
    if (this.#dropped > 0) {
      console.warn(`tidegate: ${this.#dropped} evaluations or tracks were not counted, there were too many kinds of them`);
      this.#dropped = 0;
    }
    while (this.#rows.size + this.#tracks.size > 0) {
      const batch = { usage: [] as object[], tracks: [] as object[] };
      const taken: (() => void)[] = [];
      let chars = 0;
      const fits = (row: object) => {
        chars += JSON.stringify(row).length + 1;
        return chars <= BATCH_CHARS_MAX && batch.usage.length + batch.tracks.length < ROWS_MAX;
      };
      for (const [key, row] of this.#rows) {
        if (!fits(row)) break;
        batch.usage.push(row);
        taken.push(() => this.#rows.delete(key));
      }
      for (const [key, row] of this.#tracks) {
        if (!fits(row)) break;
        batch.tracks.push(row);
        taken.push(() => this.#tracks.delete(key));
      }
      if (taken.length === 0 || !send(batch)) return;
      for (const done of taken) done();
    }
  }
}
