//! From a unit to an arm: percentage rollouts, native ones and every vendor's.
//!
//! The number comes from `hash.rs`; here are the walks over arms. Weights mean what the
//! projection of the split's hash gives:
//!
//! | projection | a weight is | the walk |
//! |---|---|---|
//! | native, `mulShift32`, `modulo` with `n` 0 | a part of the sum of the weights | whole numbers |
//! | `modulo` with `n`, integer | a part of `n` | whole numbers |
//! | `modulo` with `n`, floating | a share of the sum, in percent | f32 or f64, scaled to `n` |
//! | `divide`, `moduloFraction` in f32 | a part of 100,000 (LaunchDarkly's writing) | f32 |
//! | `divide`, `moduloFraction` in f64 | a share of one | f64 |
//! | `absI32Percent` | a part of the sum | f64, in percent |
//!
//! Bounds are the cumulated weights, truncated or rounded where the hash says so. If any arm has
//! ranges, all walk by ranges, which are half-open and in the unit of the projected number.

use alloc::vec::Vec;
use core::cmp;

use crate::context::Value;
use crate::decimal;
#[cfg(feature = "full")]
use crate::hash::cbor;
use crate::hash::{self, Number, Parts};
use crate::limits::SPLIT_TOTAL;
use crate::model::{Arithmetic, Bound, Compare, Order, PastEnd, Project, UnitTypes};
use crate::ruleset::{Arm, Hash, NONE, Ramp, Range, Ruleset, Serve, Split, slice};

/// What is hashed, as the split's `unitTypes` allow it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit<'a> {
    Str(&'a str),
    Int(i64),
    Float(f64),
    Bool(bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// An absolute index into `Ruleset::arms`; `None` takes nobody: go on to the next rule.
    pub arm: Option<u32>,
    /// The projected hash.
    pub bucket: f64,
    /// The share that the ramp has reached, of 100,000.
    pub ramp: Option<u32>,
}

/// The unit that `value` is, or `None` if it counts as missing. An empty string is nobody's name.
pub fn unit_of<'a>(value: Value<'a>, types: UnitTypes) -> Option<Unit<'a>> {
    match (value, types) {
        (Value::Str(""), _) => None,
        (Value::Str(text), _) => Some(Unit::Str(text)),
        (Value::Int(number), UnitTypes::StringOrInteger | UnitTypes::Any) => {
            Some(Unit::Int(number))
        }
        (Value::Float(number), UnitTypes::StringOrInteger) => integral(number).map(Unit::Int),
        // 3 and 3.0 are one unit, as they are one number to JavaScript.
        (Value::Float(number), UnitTypes::Any) => {
            Some(integral(number).map_or(Unit::Float(number), Unit::Int))
        }
        (Value::Bool(value), UnitTypes::Any) => Some(Unit::Bool(value)),
        _ => None,
    }
}

/// The integer that a float is, where floats still tell neighbours apart.
fn integral(number: f64) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (number as i64 as f64 == number && number.abs() <= EXACT_MAX).then_some(number as i64)
}

impl Unit<'_> {
    /// As JSON writes it, strings without quotes.
    pub fn write_to(self, out: &mut Vec<u8>) {
        match self {
            Unit::Str(text) => out.extend_from_slice(text.as_bytes()),
            Unit::Int(number) => decimal::write(number, out),
            // Writing to a vector cannot fail.
            #[cfg(feature = "full")]
            Unit::Float(number) => drop(serde_json::to_writer(out, &number)),
            // Of splits that need the full tier.
            #[cfg(not(feature = "full"))]
            Unit::Float(_) => {}
            Unit::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        }
    }

    #[cfg(feature = "full")]
    pub fn write_cbor(self, out: &mut Vec<u8>) {
        match self {
            Unit::Str(text) => cbor::text(text, out),
            Unit::Int(number) => cbor::int(number, out),
            Unit::Float(number) => cbor::float(number, out),
            Unit::Bool(value) => cbor::bool(value, out),
        }
    }
}

/// The arm of a unit at a time. Native splits without shards allocate nothing once `scratch` has
/// grown to a key's length.
#[inline]
pub fn choose(
    rules: &Ruleset,
    split: &Split,
    flag_key: &str,
    unit: Unit<'_>,
    now_ms: i64,
    scratch: &mut Vec<u8>,
) -> Choice {
    let salt = rules.str(split.salt);
    let parts = Parts { flag_key, salt, seed: rules.str(split.seed), unit };
    let ramp = ramp_share(rules, split, now_ms);
    #[cfg_attr(not(feature = "full"), expect(unused_mut))]
    let mut within = ramp.is_none_or(|share| ramp_place(salt, unit, scratch) < share);
    #[cfg(feature = "full")]
    for shard in slice(&rules.shards, split.shards) {
        let Some(hash) = rules.hashes.get(shard.hash as usize) else { return nobody(ramp) };
        let parts = Parts { salt: rules.str(shard.salt), ..parts };
        let number = hash::number(rules, hash, &parts, 0, scratch);
        within = within && in_ranges(slice(&rules.ranges, shard.ranges), number);
    }
    if split.hash == NONE {
        let bucket = hash::native(salt, unit, split.total, scratch);
        let arm = if within { native_arm(rules, split, bucket) } else { None };
        return Choice { arm, bucket: f64::from(bucket), ramp };
    }
    #[cfg(not(feature = "full"))]
    return nobody(ramp);
    #[cfg(feature = "full")]
    vendor(rules, split, &parts, ramp, within, scratch)
}

/// By a hash that is not ours.
#[cfg(feature = "full")]
fn vendor(
    rules: &Ruleset,
    split: &Split,
    parts: &Parts<'_>,
    ramp: Option<u32>,
    within: bool,
    scratch: &mut Vec<u8>,
) -> Choice {
    let Some(hash) = rules.hashes.get(split.hash as usize) else { return nobody(ramp) };
    let total = whole_total(rules, split, hash);
    let number = hash::number(rules, hash, parts, total, scratch);
    let arm = if within { vendor_arm(rules, split, hash, number) } else { None };
    Choice { arm, bucket: number.as_f64(), ramp }
}

/// The first bucket, for splits whose missing unit goes there. Ramps and shards have nobody to
/// ask about and let it pass.
pub fn choose_bucket_zero(rules: &Ruleset, split: &Split, now_ms: i64) -> Choice {
    let ramp = ramp_share(rules, split, now_ms);
    #[cfg(feature = "full")]
    if split.hash != NONE {
        let arm = rules
            .hashes
            .get(split.hash as usize)
            .and_then(|hash| vendor_arm(rules, split, hash, Number::zero(hash.arithmetic)));
        return Choice { arm, bucket: 0.0, ramp };
    }
    let arm = native_arm(rules, split, 0);
    Choice { arm, bucket: 0.0, ramp }
}

fn nobody(ramp: Option<u32>) -> Choice {
    Choice { arm: None, bucket: 0.0, ramp }
}

#[inline]
fn native_arm(rules: &Ruleset, split: &Split, bucket: u32) -> Option<u32> {
    let arms = slice(&rules.arms, split.arms);
    let by_ranges = || {
        let number = Number::Int(u64::from(bucket));
        arms.iter().position(|arm| in_ranges(slice(&rules.ranges, arm.ranges), number))
    };
    let place = match arms.iter().position(|arm| bucket < arm.bound) {
        Some(place) => Some(place),
        None if arms.iter().any(|arm| arm.ranges.len > 0) => by_ranges(),
        None => None,
    };
    absolute(split, place.or_else(|| last_arm(split, arms.len())))
}

#[cfg(feature = "full")]
fn vendor_arm(rules: &Ruleset, split: &Split, hash: &Hash, number: Number) -> Option<u32> {
    let arms = slice(&rules.arms, split.arms);
    let place = if arms.iter().any(|arm| arm.ranges.len > 0) {
        arms.iter().position(|arm| in_ranges(slice(&rules.ranges, arm.ranges), number))
    } else {
        walk(rules, arms, hash, number)
    };
    let last = || match hash.order {
        Order::AsWritten => last_arm(split, arms.len()),
        Order::NameDescending => {
            last_arm(split, arms.len()).and(Ordered::new(rules, arms, hash.order).last())
        }
    };
    absolute(split, place.or_else(last))
}

fn last_arm(split: &Split, arms: usize) -> Option<usize> {
    match split.past_end {
        PastEnd::Skip => None,
        PastEnd::LastArm => arms.checked_sub(1),
    }
}

fn absolute(split: &Split, place: Option<usize>) -> Option<u32> {
    place.and_then(|place| split.arms.start.checked_add(u32::try_from(place).ok()?))
}

fn in_ranges(ranges: &[Range], number: Number) -> bool {
    let number = number.as_f64();
    ranges.iter().any(|range| range.from <= number && number < range.to)
}

/// What projections take for the sum of the weights.
#[cfg(feature = "full")]
fn whole_total(rules: &Ruleset, split: &Split, hash: &Hash) -> u64 {
    let arms = slice(&rules.arms, split.arms);
    match hash.project {
        Project::MulShift32 | Project::Modulo { n: 0, .. } => {
            bounded(arms.iter().map(|arm| arm.weight).sum(), hash.bound) as u64
        }
        _ => 0,
    }
}

#[cfg(feature = "full")]
fn bounded(number: f64, bound: Bound) -> f64 {
    match bound {
        Bound::Exact => number,
        Bound::Truncate => number.trunc(),
        Bound::Round => number.round(),
    }
}

/// The first arm, in the hash's order, whose cumulated weight is beyond the number.
#[cfg(feature = "full")]
fn walk(rules: &Ruleset, arms: &[Arm], hash: &Hash, number: Number) -> Option<usize> {
    let sum: f64 = arms.iter().map(|arm| arm.weight).sum();
    let below = |number: f64, bound: f64| match hash.compare {
        Compare::Less => number < bound,
        Compare::LessOrEqual => number <= bound,
    };
    let single = hash.arithmetic == Arithmetic::F32;
    let value = number.as_f64();
    let (mut sum32, mut sum64) = (0f32, 0f64);
    Ordered::new(rules, arms, hash.order).find(|place| {
        let weight = arms.get(*place).map_or(0.0, |arm| arm.weight);
        let (step32, step64, scale) = match hash.project {
            Project::MulShift32 | Project::Modulo { n: 0, .. } => (weight as f32, weight, 1.0),
            Project::Modulo { .. } if hash.arithmetic == Arithmetic::Int => {
                (weight as f32, weight, 1.0)
            }
            Project::Modulo { n, .. } => {
                (weight as f32 / sum as f32 * 100.0, weight / sum * 100.0, n as f64 / 100.0)
            }
            Project::ModuloFraction { .. } | Project::Divide { .. } => {
                (weight as f32 / SPLIT_TOTAL as f32, weight, 1.0)
            }
            Project::AbsI32Percent => (0.0, 100.0 * weight / sum, 1.0),
        };
        // flagd's percentages are doubles whatever the data says.
        if single && hash.project != Project::AbsI32Percent {
            sum32 += step32;
            below(value, bounded(f64::from(sum32 * scale as f32), hash.bound))
        } else {
            sum64 += step64;
            below(value, bounded(sum64 * scale, hash.bound))
        }
    })
}

/// Places of arms in the order that a hash asks for, without sorting: splits are short.
struct Ordered<'a> {
    rules: &'a Ruleset,
    arms: &'a [Arm],
    order: Order,
    done: usize,
    before: Option<(&'a str, usize)>,
}

impl<'a> Ordered<'a> {
    fn new(rules: &'a Ruleset, arms: &'a [Arm], order: Order) -> Ordered<'a> {
        Ordered { rules, arms, order, done: 0, before: None }
    }

    /// The variant that an arm serves; other arms have no name and come last.
    fn name(&self, arm: &Arm) -> &'a str {
        let Some(Serve::Variant(variant)) = self.rules.serves.get(arm.serve as usize) else {
            return "";
        };
        self.rules.variants.get(*variant as usize).map_or("", |variant| self.rules.str(variant.key))
    }
}

impl Iterator for Ordered<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.done >= self.arms.len() {
            return None;
        }
        let place = match self.order {
            Order::AsWritten => self.done,
            Order::NameDescending => {
                // Downwards by name, upwards by place among equals.
                let key = |place: usize, arm: &Arm| (self.name(arm), cmp::Reverse(place));
                let after = |key: &(&str, cmp::Reverse<usize>)| {
                    self.before.is_none_or(|(name, place)| *key < (name, cmp::Reverse(place)))
                };
                let keys = self.arms.iter().enumerate().map(|(place, arm)| key(place, arm));
                let (name, place) = keys.filter(after).max()?;
                self.before = Some((name, place.0));
                place.0
            }
        };
        self.done = self.done.saturating_add(1);
        Some(place)
    }
}

/// A unit's place under ramps, of 100,000: the native hash of `ramp:salt:unit`. Not the arm's
/// hash, or a ramp would fill one arm before the next: a split of halves ramped to a half would
/// be all of the first.
fn ramp_place(salt: &str, unit: Unit<'_>, scratch: &mut Vec<u8>) -> u32 {
    scratch.clear();
    scratch.extend_from_slice(b"ramp:");
    scratch.extend_from_slice(salt.as_bytes());
    scratch.push(b':');
    unit.write_to(scratch);
    let place = u64::from(hash::murmur3(scratch, 0)).wrapping_mul(u64::from(SPLIT_TOTAL)) >> 32;
    place as u32
}

fn ramp_share(rules: &Ruleset, split: &Split, now_ms: i64) -> Option<u32> {
    if split.ramp == NONE {
        return None;
    }
    rules.ramps.get(split.ramp as usize).map(|ramp| share_at(ramp, now_ms))
}

/// The share that a ramp has reached, of 100,000: `from` until its start, `to` from its end.
pub fn share_at(ramp: &Ramp, now_ms: i64) -> u32 {
    let (start, end, now) =
        (i128::from(ramp.start_ms), i128::from(ramp.end_ms), i128::from(now_ms));
    if now >= end {
        return ramp.to;
    }
    let length = end.saturating_sub(start);
    let mut elapsed = now.saturating_sub(start);
    if elapsed <= 0 {
        return ramp.from;
    }
    if ramp.step_ms > 0 {
        let step = i128::from(ramp.step_ms);
        elapsed = elapsed.saturating_sub(elapsed.checked_rem(step).unwrap_or(0));
    }
    let (from, to) = (i128::from(ramp.from), i128::from(ramp.to));
    let grown = to.saturating_sub(from).saturating_mul(elapsed).checked_div_euclid(length);
    u32::try_from(from.saturating_add(grown.unwrap_or(0))).unwrap_or(ramp.from)
}
