//! Splits, hashes and ramps.

use super::place::Place;
use super::{Builder, Parts, Subject, append, len32};
use crate::limits::{
    ARMS_PER_SPLIT_MAX, PARTS_PER_HASH_MAX, RANGES_PER_ARM_MAX, SHARDS_PER_SPLIT_MAX, SPLIT_TOTAL,
    SPLIT_WEIGHTS_MAX, UNITS_PER_SPLIT_MAX,
};
use crate::model::{self, Algorithm, Bound, Encode, HashPart, Project, Units};
use crate::ruleset::{self, NONE, Span};

/// Boundaries that all ramps of an environment add together.
const RAMP_BOUNDARIES_MAX: i64 = 100_000;
/// Boundaries that one ramp adds.
const RAMP_STEPS_MAX: i64 = 1_000;
/// Parts of a ramp that has no steps: clients that evaluate again at each of a hundred parts are
/// never more than one per cent of the way behind.
const RAMP_PARTS: i64 = 100;

pub fn ramp_steps_max(state: &Parts<'_>) -> i64 {
    let is_ramp = |serve: &model::Serve| match serve {
        model::Serve::Split(split) => split.ramp.is_some(),
        _ => false,
    };
    let ramps = state
        .flags
        .iter()
        .flat_map(|flag| flag.config.rules.iter())
        .filter(|rule| rule.serve.as_ref().is_some_and(is_ramp))
        .count();
    let share = RAMP_BOUNDARIES_MAX.checked_div(i64::try_from(ramps).unwrap_or(i64::MAX));
    share.unwrap_or(RAMP_STEPS_MAX).clamp(1, RAMP_STEPS_MAX)
}

impl<'a> Builder<'a> {
    /// Its index.
    pub(super) fn split(
        &mut self,
        subject: Subject<'a>,
        split: &'a model::Split,
        at: &Place<'_>,
    ) -> u32 {
        let units = self.units(&split.by, &at.key("by"));
        let hash = match &split.hash {
            Some(hash) => {
                let at = at.key("hash");
                self.check_hash(hash, split, &at);
                self.hash(hash)
            }
            None => NONE,
        };
        for (name, text) in [("salt", &split.salt), ("seed", &split.seed)] {
            if let Some(text) = text {
                self.check_string(text, &at.key(name));
            }
        }
        let flag_salt =
            subject.definition.salt.as_deref().unwrap_or(subject.definition.key.as_str());
        let salt_text = split.salt.as_deref().unwrap_or(flag_salt);
        let salt = self.text(salt_text);
        let seed = self.text(split.seed.as_deref().unwrap_or_default());

        let arms = self.arms(subject, split, at);
        let total = arms.iter().map(|arm| arm.bound).max().unwrap_or(0);

        if split.all_of.len() > SHARDS_PER_SPLIT_MAX {
            let count = split.all_of.len();
            self.problem(
                &at.key("allOf"),
                format!("{count} further hashes, the limit is {SHARDS_PER_SPLIT_MAX}"),
            );
        }
        let mut shards = Vec::new();
        for (index, shard) in split.all_of.iter().enumerate() {
            let all_of = at.key("allOf");
            let at = all_of.index(index);
            let hash_at = at.key("hash");
            self.check_hash(&shard.hash, split, &hash_at);
            if matches!(shard.hash.project, Project::MulShift32 | Project::Modulo { n: 0, .. }) {
                self.problem(
                    &hash_at.key("project"),
                    "a shard has no weights that could give the total; write modulo with its n",
                );
            }
            if shard.ranges.is_empty() {
                self.problem(&at.key("ranges"), "no ranges, so nobody would be in this shard");
            }
            if let Some(salt) = &shard.salt {
                self.check_string(salt, &at.key("salt"));
            }
            let hash = self.hash(&shard.hash);
            let salt = self.text(shard.salt.as_deref().unwrap_or(salt_text));
            let ranges = self.ranges(&shard.ranges, &at.key("ranges"));
            shards.push(ruleset::Shard { hash, salt, ranges });
        }
        let ramp = match &split.ramp {
            Some(ramp) => self.ramp(ramp, subject.enabled, &at.key("ramp")),
            None => NONE,
        };
        let compiled = ruleset::Split {
            units,
            unit_types: split.unit_types,
            missing_unit: split.missing_unit,
            hash,
            salt,
            seed,
            arms: append(&mut self.rules.arms, arms),
            total,
            shards: append(&mut self.rules.shards, shards),
            past_end: split.past_end,
            ramp,
        };
        let index = len32(self.rules.splits.len());
        self.rules.splits.push(compiled);
        index
    }

    fn units(&mut self, by: &'a Units, at: &Place<'_>) -> Span {
        let paths = match by {
            Units::One(path) => std::slice::from_ref(path),
            Units::Many(paths) => paths.as_slice(),
        };
        if paths.is_empty() || paths.len() > UNITS_PER_SPLIT_MAX {
            let most = UNITS_PER_SPLIT_MAX;
            self.problem(at, format!("a split is by one attribute, or by up to {most}"));
        }
        let mut attrs = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let at = match by {
                Units::One(_) => *at,
                Units::Many(_) => at.index(index),
            };
            attrs.push(self.attr(path, &at));
        }
        self.refs(&attrs)
    }

    fn arms(
        &mut self,
        subject: Subject<'a>,
        split: &'a model::Split,
        at: &Place<'_>,
    ) -> Vec<ruleset::Arm> {
        let (weights_at, arms_at) = (at.key("weights"), at.key("arms"));
        match (split.weights.is_empty(), split.arms.is_empty()) {
            (true, true) => {
                self.problem(
                    at,
                    format!("a split needs weights, which map variants to parts of {SPLIT_TOTAL}"),
                );
            }
            (false, false) => self.problem(at, "a split has weights or arms, not both"),
            _ => {}
        }
        let most = ARMS_PER_SPLIT_MAX;
        if split.weights.len().max(split.arms.len()) > most {
            self.problem(at, format!("a split may have {most} arms"));
        }
        let mut arms = Vec::new();
        if !split.weights.is_empty() {
            let sum: u64 = split.weights.values().map(|weight| u64::from(*weight)).sum();
            if sum != u64::from(SPLIT_TOTAL) {
                self.problem(
                    &weights_at,
                    format!("the weights add up to {sum}, not to {SPLIT_TOTAL}"),
                );
            }
            for (key, weight) in &split.weights {
                let serve = self.serve_variant(subject, key, &weights_at.key(key));
                arms.push((serve, f64::from(*weight), Span::default()));
            }
        } else {
            let by_ranges = split.arms.iter().any(|arm| !arm.ranges.is_empty());
            for (index, arm) in split.arms.iter().enumerate() {
                let at = arms_at.index(index);
                match (arm.weight, arm.ranges.is_empty()) {
                    (None, true) => self.problem(&at, "the arm has neither weight nor ranges"),
                    (Some(_), false) => self.problem(&at, "an arm has weight or ranges, not both"),
                    (Some(_), true) if by_ranges => self.problem(
                        &at.key("weight"),
                        "other arms of this split have ranges, so this one needs them too",
                    ),
                    (Some(weight), true) if !(weight.is_finite() && weight >= 0.0) => {
                        self.problem(&at.key("weight"), "a weight is 0 or more");
                    }
                    _ => {}
                }
                if matches!(arm.serve, model::Serve::Split(_) | model::Serve::Logic(_)) {
                    self.problem(
                        &at.key("serve"),
                        "an arm serves a variant, codeDefault or next, not another split or tree",
                    );
                    continue;
                }
                let ranges_of_a_total = match &split.hash {
                    None => true,
                    Some(hash) => {
                        matches!(hash.project, Project::MulShift32 | Project::Modulo { n: 0, .. })
                    }
                };
                if !arm.ranges.is_empty() && ranges_of_a_total {
                    self.problem(
                        &at.key("ranges"),
                        "ranges need a hash whose projection says what they are parts of, such as \
                         modulo with its n; this one takes the sum of the weights",
                    );
                }
                if split.hash.is_none() && arm.weight.is_some_and(|weight| weight.fract() != 0.0) {
                    self.problem(&at.key("weight"), "the native hash takes whole weights");
                }
                let serve = self.serve(subject, &arm.serve, &at.key("serve"));
                let ranges = self.ranges(&arm.ranges, &at.key("ranges"));
                arms.push((serve, arm.weight.unwrap_or(0.0), ranges));
            }
        }
        let bound = split.hash.as_ref().map_or(Bound::Exact, |hash| hash.bound);
        let mut sum = 0.0;
        let mut compiled = Vec::new();
        for (serve, weight, ranges) in arms {
            sum += weight;
            let bound = match bound {
                Bound::Exact | Bound::Truncate => sum.floor(),
                Bound::Round => sum.round(),
            };
            // Saturates; the check below refuses what does.
            compiled.push(ruleset::Arm { serve, bound: bound as u32, weight, ranges });
        }
        let weighed = split.arms.iter().any(|arm| arm.weight.is_some_and(|weight| weight >= 0.0));
        let by_range = compiled.iter().any(|arm| arm.ranges.len > 0);
        if weighed && !by_range && sum <= 0.0 {
            self.problem(&arms_at, "all weights are 0, so the split would reach nobody");
        }
        if sum > f64::from(SPLIT_WEIGHTS_MAX) {
            self.problem(
                &arms_at,
                format!("the weights add up to {sum}, the limit is {SPLIT_WEIGHTS_MAX}"),
            );
        }
        compiled
    }

    fn ranges(&mut self, ranges: &[(f64, f64)], at: &Place<'_>) -> Span {
        let mut compiled = Vec::new();
        if ranges.len() > RANGES_PER_ARM_MAX {
            let count = ranges.len();
            self.problem(at, format!("{count} ranges, the limit is {RANGES_PER_ARM_MAX}"));
        }
        for (index, (from, to)) in ranges.iter().copied().enumerate() {
            if !(from.is_finite() && to.is_finite() && from <= to) {
                let at = at.index(index);
                self.problem(&at, format!("a range goes up, from {from} to {to} does not"));
            }
            compiled.push(ruleset::Range { from, to });
        }
        append(&mut self.rules.ranges, compiled)
    }

    fn check_hash(&mut self, hash: &model::HashSpec, split: &model::Split, at: &Place<'_>) {
        let input_at = at.key("input");
        if !hash.input.contains(&HashPart::Unit) {
            self.problem(&input_at, "the unit is not hashed, so all would get the same arm");
        }
        if hash.input.len() > PARTS_PER_HASH_MAX {
            self.problem(&input_at, format!("a hash takes up to {PARTS_PER_HASH_MAX} parts"));
        }
        for (index, part) in hash.input.iter().enumerate() {
            match part {
                HashPart::Literal(text) => self.check_string(text, &input_at.index(index)),
                HashPart::SegmentKey => self.problem(
                    &input_at.index(index),
                    "segmentKey has a meaning only in a segment's split, which this version does \
                     not have",
                ),
                HashPart::Seed if split.seed.is_none() => {
                    self.problem(&input_at.index(index), "the split has no seed");
                }
                _ => {}
            }
        }
        let cbor_input: &[&[HashPart]] = &[&[HashPart::Unit], &[HashPart::FlagKey, HashPart::Unit]];
        if hash.encode == Encode::Cbor && !cbor_input.contains(&hash.input.as_slice()) {
            self.problem(&input_at, "cbor encodes the unit, or flagKey and unit, nothing else");
        }
        if let Algorithm::Sha1Hex { digits } = hash.algorithm
            && !(1..=16).contains(&digits)
        {
            self.problem(
                &at.key("algorithm").key("sha1Hex").key("digits"),
                format!("{digits} digits; 1 to 16 fit the 64 bits of a hash"),
            );
        }
        let project_at = at.key("project");
        match hash.project {
            Project::ModuloFraction { n: 0 } => {
                self.problem(&project_at.key("moduloFraction").key("n"), "n is 1 or more");
            }
            Project::Divide { divisor: 0 } => {
                self.problem(&project_at.key("divide").key("divisor"), "the divisor is 1 or more");
            }
            _ => {}
        }
    }

    /// Its index.
    fn hash(&mut self, hash: &model::HashSpec) -> u32 {
        let identity = serde_json::to_string(hash).unwrap_or_default();
        if let Some(known) = self.hashes.get(&identity) {
            return *known;
        }
        let parts: Vec<ruleset::HashPart> = hash
            .input
            .iter()
            .map(|part| match part {
                HashPart::Literal(text) => ruleset::HashPart::Literal(self.text(text)),
                HashPart::FlagKey => ruleset::HashPart::FlagKey,
                HashPart::Salt => ruleset::HashPart::Salt,
                HashPart::Seed => ruleset::HashPart::Seed,
                HashPart::Unit => ruleset::HashPart::Unit,
                HashPart::SegmentKey => ruleset::HashPart::SegmentKey,
            })
            .collect();
        let compiled = ruleset::Hash {
            input: append(&mut self.rules.hash_parts, parts),
            encode: hash.encode,
            algorithm: hash.algorithm.clone(),
            project: hash.project.clone(),
            arithmetic: hash.arithmetic,
            compare: hash.compare,
            bound: hash.bound,
            order: hash.order,
        };
        let index = len32(self.rules.hashes.len());
        self.rules.hashes.push(compiled);
        self.hashes.insert(identity, index);
        index
    }

    fn ramp(&mut self, ramp: &model::Ramp, enabled: bool, at: &Place<'_>) -> u32 {
        for (name, share) in [("from", ramp.from), ("to", ramp.to)] {
            if share > SPLIT_TOTAL {
                self.problem(&at.key(name), format!("{share} is more than all, {SPLIT_TOTAL}"));
            }
        }
        if ramp.from > ramp.to {
            self.problem(
                at,
                "a ramp only grows, because a unit once reached stays reached; to stop, disable \
                 the rule",
            );
        }
        let start = self.time(&ramp.start, &at.key("start"));
        let end = self.time(&ramp.end, &at.key("end"));
        let (Some(start_ms), Some(end_ms)) = (start, end) else { return NONE };
        if start_ms >= end_ms {
            self.problem(at, "start is not before end");
            return NONE;
        }
        let step_ms = i64::from(ramp.step_seconds).saturating_mul(1000);
        if enabled {
            self.ramp_boundaries(start_ms, end_ms, step_ms);
        }
        let index = len32(self.rules.ramps.len());
        self.rules.ramps.push(ruleset::Ramp {
            from: ramp.from,
            to: ramp.to,
            start_ms,
            end_ms,
            step_ms,
        });
        index
    }

    fn ramp_boundaries(&mut self, start_ms: i64, end_ms: i64, step_ms: i64) {
        let length = end_ms.saturating_sub(start_ms);
        let most = self.ramp_steps_max.max(1);
        let step = match step_ms {
            0 => length.checked_div(RAMP_PARTS.min(most)).unwrap_or(length).max(1),
            // Every k-th step, so that at most `most` are left; still whole steps.
            step => {
                let steps = length.checked_div(step).unwrap_or(0);
                let every = steps.checked_div(most).unwrap_or(0).saturating_add(1);
                step.saturating_mul(every)
            }
        };
        let mut at = start_ms;
        while at < end_ms {
            self.boundaries_ms.insert(at);
            at = at.saturating_add(step);
        }
        self.boundaries_ms.insert(end_ms);
    }
}
