//! Proves what evaluation relies on, for a ruleset that came from outside: every index hits, no
//! text cuts a character, nothing loops, and nothing takes longer than the limits allow. A ruleset
//! that the compiler made passes; one that was damaged and given a new checksum does not, or it
//! evaluates without a panic.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{
    Arg, Arm, Attr, Cel, Clause, Expr, Flag, HashPart, Logic, NONE, Ruleset, Serve, Span, Split,
    Text, slice,
};
use crate::FULL;
use crate::chain;
use crate::frame::LoadError;
use crate::limits::{
    CEL_NESTING_MAX, CHAIN_MAX, CONDITION_STEPS_MAX, FLAGS_MAX, NESTING_MAX, POLICIES_MAX,
    POLICY_ATTRIBUTES_MAX, POLICY_PARAMS_BYTES_MAX, PREREQUISITES_MAX, REGEX_SOURCE_BYTES_MAX,
    RULES_PER_FLAG_MAX, SEGMENTS_MAX, SNAPSHOT_BYTES_MAX, SPLIT_TOTAL, VARIANTS_PER_FLAG_MAX,
};
use crate::model::{Algorithm, Project};

type Checked = Result<(), LoadError>;

/// Depth of a rule's expression: a segment joins its rules by one more level.
const EXPR_DEPTH_MAX: usize = NESTING_MAX + 1;

/// The core says only that: the texts of everything that nobody has ever seen are long.
fn malformed(what: impl FnOnce() -> String) -> LoadError {
    let what = if FULL { what() } else { "it breaks an invariant".into() };
    LoadError::Malformed { part: "ruleset", what }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(malformed(what)) }
}

fn limit(what: &str, count: usize, most: usize) -> Checked {
    if count <= most {
        return Ok(());
    }
    let what = if FULL { format!("{count} {what}, the limit is {most}") } else { what.into() };
    Err(LoadError::OverLimit { part: "ruleset", what })
}

impl Ruleset {
    /// Proves the invariants that this module's documentation names.
    #[inline(never)]
    pub fn check(&self) -> Checked {
        limit("bytes of text", self.text.len(), SNAPSHOT_BYTES_MAX)?;
        limit("flags", self.flags.len(), FLAGS_MAX)?;
        limit("segments", self.segments.len(), SEGMENTS_MAX)?;
        self.check_text(self.metadata, "metadata", 0)?;
        for (index, attr) in self.attrs.iter().enumerate() {
            self.check_attr(index, attr)?;
        }
        for (index, clause) in self.clauses.iter().enumerate() {
            self.check_clause(index, clause)?;
        }
        self.check_exprs()?;
        if FULL {
            self.check_logic()?;
            self.check_cel()?;
        }
        self.check_splits()?;
        for (index, serve) in self.serves.iter().enumerate() {
            let (kind, at, len) = match serve {
                Serve::Variant(at) => ("variant", *at, self.variants.len()),
                Serve::Split(at) => ("split", *at, self.splits.len()),
                Serve::Logic(at) => ("logic node", *at, self.logic.len()),
                Serve::Policy(at) => ("policy call", *at, self.policy_calls.len()),
                Serve::CodeDefault | Serve::Next => continue,
            };
            ensure((at as usize) < len, || format!("serve {index}: there is no {kind} {at}"))?;
        }
        if FULL {
            self.check_policies()?;
        }
        for (index, variant) in self.variants.iter().enumerate() {
            for text in [variant.key, variant.json, variant.value] {
                self.check_text(text, "variant", index)?;
            }
        }
        for (index, segment) in self.segments.iter().enumerate() {
            self.check_text(segment.key, "segment", index)?;
            self.check_index(segment.by, self.attrs.len(), "segment", index, "attr")?;
            self.check_optional(segment.when, self.exprs.len(), "segment", index, "expr")?;
            for list in [segment.included, segment.excluded] {
                self.check_optional(list, self.list_count as usize, "segment", index, "list")?;
            }
        }
        limit("id lists", self.list_count as usize, SEGMENTS_MAX.saturating_mul(2))?;
        for (index, flag) in self.flags.iter().enumerate() {
            self.check_flag(index, flag)?;
        }
        let keys = self.flags.iter().map(|flag| self.str(flag.key).as_bytes());
        ensure(keys.is_sorted_by(|one, next| one < next), || {
            "flags are not sorted by key and unique".into()
        })?;
        self.check_prerequisite_chains()?;
        self.check_condition_steps()
    }

    fn check_text(&self, text: Text, what: &str, index: usize) -> Checked {
        let start = text.start as usize;
        let end = start.saturating_add(text.len as usize);
        ensure(self.text.get(start..end).is_some(), || {
            format!("{what} {index}: bytes {start}..{end} are no text")
        })
    }

    fn check_index(&self, at: u32, len: usize, what: &str, index: usize, kind: &str) -> Checked {
        ensure((at as usize) < len, || format!("{what} {index}: there is no {kind} {at}"))
    }

    fn check_optional(&self, at: u32, len: usize, what: &str, index: usize, kind: &str) -> Checked {
        if at == NONE { Ok(()) } else { self.check_index(at, len, what, index, kind) }
    }

    fn check_span(&self, span: Span, len: usize, what: &str, index: usize, kind: &str) -> Checked {
        let end = (span.start as usize).saturating_add(span.len as usize);
        ensure(end <= len, || {
            format!("{what} {index}: there are no {kind} {}..{end}, only {len}", span.start)
        })
    }

    /// A span of `refs` whose entries are all less than `len`.
    fn check_refs(
        &self,
        span: Span,
        len: usize,
        what: &str,
        index: usize,
        kind: &str,
    ) -> Result<&[u32], LoadError> {
        self.check_span(span, self.refs.len(), what, index, "refs")?;
        let refs = slice(&self.refs, span);
        for at in refs {
            self.check_index(*at, len, what, index, kind)?;
        }
        Ok(refs)
    }

    fn check_attr(&self, index: usize, attr: &Attr) -> Checked {
        self.check_text(attr.path, "attr", index)?;
        self.check_span(attr.parts, self.attr_parts.len(), "attr", index, "parts")?;
        let parts = slice(&self.attr_parts, attr.parts);
        for part in parts {
            self.check_text(*part, "attr", index)?;
        }
        let path = self.str(attr.path);
        let split = path.split('.').eq(parts.iter().map(|part| self.str(*part)));
        let first = path.split('.').next().unwrap_or_default();
        let hashed = attr.path_hash == crate::context::key_hash(path)
            && attr.first_hash == crate::context::key_hash(first);
        ensure(split && hashed, || format!("attr {index}: its parts are not those of its path"))
    }

    fn check_clause(&self, index: usize, clause: &Clause) -> Checked {
        self.check_index(clause.attr, self.attrs.len(), "clause", index, "attr")?;
        self.check_span(clause.args, self.args.len(), "clause", index, "args")?;
        let args = slice(&self.args, clause.args);
        for arg in args {
            self.check_arg(arg, "clause", index)?;
        }
        let text = |arg: &Arg| match arg {
            Arg::Str(text) => Some(self.str(*text).as_bytes()),
            _ => None,
        };
        let sorted = args.iter().all(|arg| text(arg).is_some())
            && args.is_sorted_by(|one, next| text(one) < text(next));
        ensure(!clause.sorted || sorted, || format!("clause {index}: its values are not sorted"))
    }

    fn check_arg(&self, arg: &Arg, what: &str, index: usize) -> Checked {
        match arg {
            Arg::Null | Arg::Bool(_) | Arg::Int(_) | Arg::Date(_) => Ok(()),
            Arg::Float(number) => {
                ensure(number.is_finite(), || format!("{what} {index}: {number} is no number"))
            }
            Arg::Str(text) | Arg::Version(text) | Arg::VersionRange(text) | Arg::Json(text) => {
                self.check_text(*text, what, index)
            }
            Arg::Regex(text) => {
                self.check_text(*text, what, index)?;
                limit("bytes of a pattern", text.len as usize, REGEX_SOURCE_BYTES_MAX)
            }
            Arg::Cidr { prefix, .. } => {
                ensure(*prefix <= 128, || format!("{what} {index}: no network of /{prefix}"))
            }
        }
    }

    /// Backward references only, and no deeper than conditions may be.
    fn check_exprs(&self) -> Checked {
        let mut depths: Vec<usize> = Vec::with_capacity(self.exprs.len());
        for (index, expr) in self.exprs.iter().enumerate() {
            let deepest = match expr {
                Expr::Const(_) => 0,
                Expr::Not(child) => {
                    self.check_index(*child, index, "expr", index, "earlier expr")?;
                    depths.get(*child as usize).copied().unwrap_or(0)
                }
                Expr::All(children) | Expr::Any(children) => {
                    let children =
                        self.check_refs(*children, index, "expr", index, "earlier expr")?;
                    children
                        .iter()
                        .map(|child| depths.get(*child as usize).copied().unwrap_or(0))
                        .max()
                        .unwrap_or(0)
                }
                Expr::Clause(clause) => {
                    self.check_index(*clause, self.clauses.len(), "expr", index, "clause")?;
                    0
                }
                Expr::Segments(segments) => {
                    let len = self.segments.len();
                    self.check_refs(*segments, len, "expr", index, "segment")?;
                    0
                }
                Expr::Logic(node) => {
                    self.check_index(*node, self.logic.len(), "expr", index, "logic node")?;
                    0
                }
                Expr::Cel(node) => {
                    self.check_index(*node, self.cel.len(), "expr", index, "CEL node")?;
                    0
                }
            };
            let depth = deepest.saturating_add(1);
            limit("levels of conditions", depth, EXPR_DEPTH_MAX)?;
            depths.push(depth);
        }
        Ok(())
    }

    fn check_logic(&self) -> Checked {
        for (index, node) in self.logic.iter().enumerate() {
            let children = match node {
                Logic::Literal(arg) => {
                    self.check_arg(arg, "logic node", index)?;
                    continue;
                }
                Logic::Array(children) => *children,
                Logic::Object(entries) => {
                    ensure(entries.len % 2 == 0, || {
                        format!("logic node {index}: a key without a value")
                    })?;
                    *entries
                }
                Logic::Call { args, .. } => *args,
            };
            let len = self.logic_refs.len();
            self.check_span(children, len, "logic node", index, "logic refs")?;
            for child in slice(&self.logic_refs, children) {
                self.check_index(*child, index, "logic node", index, "earlier node")?;
            }
        }
        Ok(())
    }

    /// Backward references only, no deeper than authors may write, operators with their number of
    /// arguments.
    fn check_cel(&self) -> Checked {
        let mut depths: Vec<usize> = Vec::with_capacity(self.cel.len());
        for (index, node) in self.cel.iter().enumerate() {
            let what = "CEL node";
            let mut deepest = 0;
            let mut child = |at: u32| {
                self.check_index(at, index, what, index, "earlier node")?;
                deepest = deepest.max(depths.get(at as usize).copied().unwrap_or(0));
                Ok(())
            };
            let mut children = |span: Span| {
                let len = self.cel_refs.len();
                self.check_span(span, len, what, index, "CEL refs")?;
                slice(&self.cel_refs, span).iter().try_for_each(|at| child(*at))
            };
            match node {
                Cel::Null | Cel::Bool(_) | Cel::Int(_) | Cel::Now | Cel::FlagKey | Cel::Var(_) => {}
                Cel::Double(number) => {
                    ensure(number.is_finite(), || {
                        format!("{what} {index}: {number} is no number")
                    })?;
                }
                Cel::Str(text) => self.check_text(*text, what, index)?,
                Cel::Attr(attr) | Cel::HasAttr(attr) | Cel::AttrIsNull(attr) => {
                    self.check_index(*attr, self.attrs.len(), what, index, "attr")?;
                }
                Cel::List(items) => children(*items)?,
                Cel::Map(entries) => {
                    ensure(entries.len % 2 == 0, || {
                        format!("{what} {index}: a key without a value")
                    })?;
                    children(*entries)?;
                }
                Cel::Select { of, field } | Cel::Has { of, field } => {
                    self.check_text(*field, what, index)?;
                    child(*of)?;
                }
                Cel::Matches { of, pattern } => {
                    self.check_text(*pattern, what, index)?;
                    limit("bytes of a pattern", pattern.len as usize, REGEX_SOURCE_BYTES_MAX)?;
                    child(*of)?;
                }
                Cel::Call { op, args } => {
                    #[cfg(feature = "full")]
                    {
                        let (least, most) = op.arity();
                        ensure((least..=most).contains(&(args.len as usize)), || {
                            format!("{what} {index}: {} arguments of {}", args.len, op.name())
                        })?;
                    }
                    children(*args)?;
                }
                Cel::Loop { over, filter, body, .. } => {
                    child(*over)?;
                    child(*body)?;
                    if *filter != NONE {
                        child(*filter)?;
                    }
                }
            }
            let depth = deepest.saturating_add(1);
            limit("levels of CEL", depth, CEL_NESTING_MAX.saturating_add(1))?;
            depths.push(depth);
        }
        Ok(())
    }

    fn check_splits(&self) -> Checked {
        for (index, hash) in self.hashes.iter().enumerate() {
            self.check_span(hash.input, self.hash_parts.len(), "hash", index, "parts")?;
            let digits = match hash.algorithm {
                Algorithm::Sha1Hex { digits } => digits,
                _ => 1,
            };
            let divisor = match hash.project {
                Project::ModuloFraction { n } => n,
                Project::Divide { divisor } => divisor,
                _ => 1,
            };
            ensure((1..=16).contains(&digits) && divisor > 0, || {
                format!("hash {index}: its digits or its divisor make no number")
            })?;
        }
        for (index, part) in self.hash_parts.iter().enumerate() {
            if let HashPart::Literal(text) = part {
                self.check_text(*text, "hash part", index)?;
            }
        }
        for (index, range) in self.ranges.iter().enumerate() {
            ensure(range.from.is_finite() && range.to.is_finite(), || {
                format!("range {index}: its ends are no numbers")
            })?;
        }
        for (index, ramp) in self.ramps.iter().enumerate() {
            let good = ramp.from <= ramp.to
                && ramp.to <= SPLIT_TOTAL
                && ramp.start_ms < ramp.end_ms
                && ramp.step_ms >= 0;
            ensure(good, || format!("ramp {index}: it does not grow"))?;
        }
        for (index, shard) in self.shards.iter().enumerate() {
            self.check_text(shard.salt, "shard", index)?;
            self.check_optional(shard.hash, self.hashes.len(), "shard", index, "hash")?;
            self.check_span(shard.ranges, self.ranges.len(), "shard", index, "ranges")?;
        }
        for (index, arm) in self.arms.iter().enumerate() {
            self.check_arm(index, arm)?;
        }
        for (index, split) in self.splits.iter().enumerate() {
            self.check_split(index, split)?;
        }
        Ok(())
    }

    fn check_policies(&self) -> Checked {
        limit("policies", self.policies.len(), POLICIES_MAX)?;
        for (index, policy) in self.policies.iter().enumerate() {
            self.check_text(policy.name, "policy", index)?;
            self.check_text(policy.digest, "policy", index)?;
            limit("attributes of a policy", policy.attrs.len as usize, POLICY_ATTRIBUTES_MAX)?;
            let attrs = self.check_refs(policy.attrs, self.attrs.len(), "policy", index, "attr")?;
            // The input is written in one pass that relies on it.
            let parts = |at: &u32| {
                let span = self.attrs.get(*at as usize).map(|attr| attr.parts).unwrap_or_default();
                slice(&self.attr_parts, span).iter().map(|part| self.str(*part))
            };
            let ordered = attrs.is_sorted_by(|one, next| {
                parts(one).lt(parts(next)) && !parts(next).take(parts(one).len()).eq(parts(one))
            });
            ensure(ordered, || format!("policy {index}: its attributes are not in order"))?;
        }
        for (index, call) in self.policy_calls.iter().enumerate() {
            self.check_index(call.policy, self.policies.len(), "policy call", index, "policy")?;
            self.check_text(call.params, "policy call", index)?;
            limit("bytes of params", call.params.len as usize, POLICY_PARAMS_BYTES_MAX)?;
            match self.serves.get(call.fallback as usize) {
                Some(Serve::Policy(_)) | None => {
                    return Err(malformed(|| format!("policy call {index}: its fallback is none")));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn check_arm(&self, index: usize, arm: &Arm) -> Checked {
        self.check_span(arm.ranges, self.ranges.len(), "arm", index, "ranges")?;
        ensure(arm.weight.is_finite() && arm.weight >= 0.0, || {
            format!("arm {index}: a weight of {}", arm.weight)
        })?;
        // No splits in splits: that is what keeps serving from going round.
        match self.serves.get(arm.serve as usize) {
            Some(Serve::Variant(_) | Serve::CodeDefault | Serve::Next) => Ok(()),
            Some(Serve::Split(_) | Serve::Logic(_) | Serve::Policy(_)) => {
                Err(malformed(|| format!("arm {index}: it serves another split, tree or policy")))
            }
            None => Err(malformed(|| format!("arm {index}: there is no serve {}", arm.serve))),
        }
    }

    fn check_split(&self, index: usize, split: &Split) -> Checked {
        self.check_refs(split.units, self.attrs.len(), "split", index, "attr")?;
        self.check_optional(split.hash, self.hashes.len(), "split", index, "hash")?;
        self.check_optional(split.ramp, self.ramps.len(), "split", index, "ramp")?;
        self.check_text(split.salt, "split", index)?;
        self.check_text(split.seed, "split", index)?;
        self.check_span(split.shards, self.shards.len(), "split", index, "shards")?;
        self.check_span(split.arms, self.arms.len(), "split", index, "arms")?;
        let arms = slice(&self.arms, split.arms);
        let rising = arms.is_sorted_by(|one, next| one.bound <= next.bound);
        let total = arms.last().map_or(0, |arm| arm.bound);
        ensure(rising && total == split.total, || {
            format!("split {index}: its bounds do not rise to its total")
        })
    }

    fn check_flag(&self, index: usize, flag: &Flag) -> Checked {
        for text in [flag.key, flag.json_head, flag.json_tail, flag.salt] {
            self.check_text(text, "flag", index)?;
        }
        if let Some(broken) = flag.broken {
            self.check_text(broken, "flag", index)?;
        }
        limit("variants of a flag", flag.variants.len as usize, VARIANTS_PER_FLAG_MAX)?;
        limit("rules of a flag", flag.rules.len as usize, RULES_PER_FLAG_MAX)?;
        self.check_span(flag.variants, self.variants.len(), "flag", index, "variants")?;
        self.check_span(flag.rules, self.rules.len(), "flag", index, "rules")?;
        self.check_prerequisites(flag.prerequisites, index)?;
        self.check_serve(flag, flag.off, index)?;
        self.check_serve(flag, flag.fallthrough, index)?;
        for rule in slice(&self.rules, flag.rules) {
            self.check_text(rule.id, "a rule of flag", index)?;
            self.check_optional(rule.when, self.exprs.len(), "a rule of flag", index, "expr")?;
            self.check_prerequisites(rule.prerequisites, index)?;
            self.check_serve(flag, rule.serve, index)?;
        }
        Ok(())
    }

    /// A flag answers with variants of its own only.
    fn check_serve(&self, flag: &Flag, serve: u32, index: usize) -> Checked {
        let own = |serve: &Serve| match serve {
            Serve::Variant(variant) => variant
                .checked_sub(flag.variants.start)
                .is_some_and(|position| position < flag.variants.len),
            _ => true,
        };
        let serve_of = |serve: u32| self.serves.get(serve as usize);
        let fallback = |call: &u32| Some(self.policy_calls.get(*call as usize)?.fallback);
        // What a policy's call may come to is its fallback, which is none itself.
        let reached = match serve_of(serve) {
            Some(Serve::Policy(call)) => fallback(call).and_then(serve_of),
            other => other,
        };
        let holds = match reached {
            Some(Serve::Split(split)) => {
                let arms = self.splits.get(*split as usize).map(|split| split.arms);
                slice(&self.arms, arms.unwrap_or_default())
                    .iter()
                    .all(|arm| self.serves.get(arm.serve as usize).is_some_and(own))
            }
            Some(serve) => own(serve),
            None => false,
        };
        ensure(holds, || format!("flag {index}: serve {serve} is missing or another flag's"))
    }

    fn check_prerequisites(&self, span: Span, index: usize) -> Checked {
        limit("prerequisites", span.len as usize, PREREQUISITES_MAX)?;
        self.check_span(span, self.prerequisites.len(), "flag", index, "prerequisites")?;
        for prerequisite in slice(&self.prerequisites, span) {
            let (at, len) = (prerequisite.flag, self.flags.len());
            self.check_optional(at, len, "a prerequisite of flag", index, "flag")?;
            let len = self.variants.len();
            self.check_refs(
                prerequisite.variants,
                len,
                "a prerequisite of flag",
                index,
                "variant",
            )?;
        }
        Ok(())
    }

    fn check_prerequisite_chains(&self) -> Checked {
        if self.prerequisites.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Vec<usize>> = self
            .flags
            .iter()
            .map(|flag| {
                self.prerequisites_of(flag)
                    .filter(|prerequisite| prerequisite.flag != NONE)
                    .map(|prerequisite| prerequisite.flag as usize)
                    .collect()
            })
            .collect();
        check_chains("prerequisites", &chain::order(&wanted))
    }

    /// How many nodes and segments one condition can take, with those of the segments that it asks
    /// for: the same segment may be reached on many ways, and each is walked.
    fn check_condition_steps(&self) -> Checked {
        let Some(steps) = self.condition_steps()? else { return Ok(()) };
        let heaviest = steps.into_iter().max().unwrap_or(0);
        limit("steps of one condition", heaviest, CONDITION_STEPS_MAX)
    }

    /// By expr; `None` where there are no conditions. Relies on the checks before it.
    pub(crate) fn condition_steps(&self) -> Result<Option<Vec<usize>>, LoadError> {
        if self.exprs.is_empty() {
            return Ok(None);
        }
        let mut steps: Vec<usize> = vec![0; self.exprs.len()];
        let mut of_segments: Vec<usize> = vec![1; self.segments.len()];
        if !self.segments.is_empty() {
            let nested = self.nested_segments();
            let order = chain::order(&nested);
            check_chains("segments", &order)?;
            for segment in order.sorted {
                let when = self.segments.get(segment).map_or(NONE, |segment| segment.when);
                if when == NONE {
                    continue;
                }
                // Bounded by the depth of exprs, and there are few: a walk from the root is fine,
                // while one pass over all would need segments that come later in the order.
                let own = self.steps_from(when, &of_segments, 0);
                if let Some(of_segment) = of_segments.get_mut(segment) {
                    *of_segment = own.saturating_add(1);
                }
            }
        }
        for (index, expr) in self.exprs.iter().enumerate() {
            let sum = match expr {
                Expr::Not(child) => steps.get(*child as usize).copied().unwrap_or(0),
                Expr::All(children) | Expr::Any(children) => sum(&steps, self.refs_of(*children)),
                Expr::Segments(segments) => sum(&of_segments, self.refs_of(*segments)),
                Expr::Const(_) | Expr::Clause(_) | Expr::Logic(_) | Expr::Cel(_) => 0,
            };
            if let Some(step) = steps.get_mut(index) {
                *step = sum.saturating_add(1);
            }
        }
        Ok(Some(steps))
    }

    fn refs_of(&self, span: Span) -> &[u32] {
        slice(&self.refs, span)
    }

    fn steps_from(&self, expr: u32, of_segments: &[usize], depth: usize) -> usize {
        if depth > EXPR_DEPTH_MAX {
            return usize::MAX;
        }
        let deeper = depth.saturating_add(1);
        let mut steps = 1usize;
        match self.exprs.get(expr as usize) {
            Some(Expr::Not(child)) => {
                steps = steps.saturating_add(self.steps_from(*child, of_segments, deeper));
            }
            Some(Expr::All(children) | Expr::Any(children)) => {
                for child in self.refs_of(*children) {
                    // Shared children could make this walk longer than what it measures.
                    if steps > CONDITION_STEPS_MAX {
                        break;
                    }
                    steps = steps.saturating_add(self.steps_from(*child, of_segments, deeper));
                }
            }
            Some(Expr::Segments(segments)) => {
                steps = steps.saturating_add(sum(of_segments, self.refs_of(*segments)));
            }
            Some(Expr::Const(_) | Expr::Clause(_) | Expr::Logic(_) | Expr::Cel(_)) | None => {}
        }
        steps
    }

    /// For each segment those that its rules ask for.
    fn nested_segments(&self) -> Vec<Vec<usize>> {
        // Each expr once, however often it is shared: by the segment that saw it last.
        let mut seen = vec![usize::MAX; self.exprs.len()];
        self.segments
            .iter()
            .enumerate()
            .map(|(index, segment)| {
                let (mut nested, mut open) = (Vec::new(), Vec::new());
                if segment.when != NONE {
                    open.push(segment.when);
                }
                while let Some(expr) = open.pop() {
                    match seen.get_mut(expr as usize) {
                        Some(seen) if *seen != index => *seen = index,
                        _ => continue,
                    }
                    match self.exprs.get(expr as usize) {
                        Some(Expr::Not(child)) => open.push(*child),
                        Some(Expr::All(children) | Expr::Any(children)) => {
                            open.extend_from_slice(self.refs_of(*children));
                        }
                        Some(Expr::Segments(segments)) => {
                            nested.extend(self.refs_of(*segments).iter().map(|at| *at as usize));
                        }
                        _ => {}
                    }
                }
                nested
            })
            .collect()
    }
}

fn sum(steps: &[usize], of: &[u32]) -> usize {
    of.iter().map(|at| steps.get(*at as usize).copied().unwrap_or(0)).fold(0, usize::saturating_add)
}

fn check_chains(what: &str, order: &chain::Order) -> Checked {
    ensure(order.circular.is_empty(), || format!("{what} go round in a circle"))?;
    let deepest = order.depths.iter().copied().max().unwrap_or(0);
    let what = if FULL { format!("levels of {what}") } else { what.into() };
    limit(&what, deepest, CHAIN_MAX)
}
