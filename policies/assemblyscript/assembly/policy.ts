// Fraud guard: somebody whose score is above `params.max` is sent to `params.variant`, everybody
// else is left to the next rule.

import { Answer, Input, describe, packed } from "./tidegate";

const READS = ["user.score"];

function decide(input: Input): string {
  const score = input.number("attributes.user.score");
  const max = input.number("params.max", 3);
  if (!(score > max)) return Answer.abstain();
  return Answer.variant(input.text("params.variant", "review"), "the score is above the maximum");
}

// What the host calls. Every call has a memory of its own, so nothing is freed.
export function tidegate_abi(): i32 {
  return 1;
}
export function tidegate_alloc(len: i32): usize {
  return heap.alloc(len);
}
export function tidegate_describe(): u64 {
  return packed(describe(READS));
}
export function evaluate(at: usize, len: i32): u64 {
  return packed(decide(Input.read(at, len)));
}
