//! One flag for one context: the evaluator. Pure; reads arenas, writes nothing but scratch.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use crate::FULL;
use crate::answer;
#[cfg(feature = "full")]
use crate::cel;
use crate::clause::{self, ClauseError, Prepared};
use crate::context::{Context, Place, Value, key_hash};
use crate::frame::LoadError;
use crate::limits;
#[cfg(feature = "full")]
use crate::logic::{self, Dyn, LogicInput};
#[cfg(feature = "full")]
use crate::model::UnitTypes;
use crate::model::{MissingUnit, OnError, OnFail, RuleReason};
#[cfg(feature = "full")]
use crate::policy::{self, Decision, PolicyFault, Told};
use crate::ruleset::{
    Arg, Attr, Clause, Expr, Flag, NONE, Prerequisite, Rule, Ruleset, Serve, Split, slice,
};
use crate::split::{self, Unit};
#[cfg(feature = "full")]
use crate::trace::{Step, Trace};

/// A step for the trace, which the core does not have.
macro_rules! step {
    ($run:ident, $make:expr) => {
        #[cfg(feature = "full")]
        $run.probe.step($make);
    };
}

/// A loaded ruleset with what is derived from it once: the key index and compiled patterns.
#[derive(Debug)]
pub struct Evaluator {
    rules: Ruleset,
    /// Open addressing by `key_hash` of the flag's key: flag indices or `NONE`. The length is a
    /// power of two and at least twice the number of flags, so a probe ends soon.
    index: Vec<u32>,
    prepared: Prepared,
}

/// An index into `Ruleset::flags`, checked at look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlagId(pub u32);

/// What the evaluator asks of whoever runs it: id lists and wasm policies are kept outside.
pub trait Host {
    /// Whether `id` is in list `list` of this ruleset.
    fn list_contains(&self, list: u32, id: &str) -> bool;

    /// Calls policy `policy` of this ruleset and appends its answer to `out`, which is empty; after
    /// a fault, `out` may hold what a trace shall say about it.
    #[cfg(feature = "full")]
    fn policy(&self, policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        let _ = (policy, input, out);
        Err(PolicyFault::Unavailable)
    }

    /// What the last call cost and logged, for a trace. A host that explains nothing knows nothing.
    #[cfg(feature = "full")]
    fn policy_told(&self) -> Option<Told> {
        None
    }

    /// The answer of `policy`'s last call was none that a rule can take, which is a fault that only
    /// the evaluator sees.
    #[cfg(feature = "full")]
    fn policy_refused(&self, policy: u32) {
        let _ = policy;
    }
}

/// A host of nothing: every list is empty, and no policy is there.
#[derive(Debug, Clone, Copy)]
pub struct NoHost;

impl Host for NoHost {
    fn list_contains(&self, _list: u32, _id: &str) -> bool {
        false
    }
}

pub struct Input<'a> {
    pub context: Context<'a>,
    /// Milliseconds since the epoch.
    pub now_ms: i64,
    pub host: &'a dyn Host,
}

/// Buffers that are reused from one evaluation to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    pub bytes: Vec<u8>,
    /// What flags serve that were asked for as prerequisites; made at the first one. Without it
    /// a DAG of prerequisites of depth 16 would be walked along each of its paths.
    served: Vec<Served>,
    /// Flags whose `served` is known.
    touched: Vec<u32>,
    /// Where the context has each attr, for an evaluation of all flags: most of them ask for the same
    /// few. Empty otherwise: one flag hardly asks for anything twice.
    attrs: Vec<Seen>,
    #[cfg(feature = "full")]
    policy: PolicyScratch,
}

#[cfg(feature = "full")]
#[derive(Debug, Default)]
struct PolicyScratch {
    /// Calls of this request so far.
    calls: u32,
    input: Vec<u8>,
    answer: Vec<u8>,
    /// Of `Pick::Value`: it does not fit into a register.
    value: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Served {
    #[default]
    Unknown,
    /// Being evaluated; met again, it is a cycle.
    Running,
    Variant(u32, Reason),
    Nothing(&'static str),
}

#[derive(Debug, Clone, Copy, Default)]
enum Seen {
    #[default]
    Unknown,
    Missing,
    There(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Static,
    Default,
    TargetingMatch,
    Split,
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    FlagNotFound,
    ParseError,
    TargetingKeyMissing,
    InvalidContext,
    TypeMismatch,
    General,
}

/// The answer, before it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// An absolute index into `Ruleset::variants`.
    Variant {
        variant: u32,
        reason: Reason,
    },
    /// A policy's value that no variant has, as JSON.
    Value {
        value: String,
        reason: Reason,
    },
    /// The caller's own default.
    CodeDefault {
        reason: Reason,
    },
    Error {
        code: ErrorCode,
        details: String,
    },
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Static => "STATIC",
            Reason::Default => "DEFAULT",
            Reason::TargetingMatch => "TARGETING_MATCH",
            Reason::Split => "SPLIT",
            Reason::Disabled => "DISABLED",
        }
    }
}

impl ErrorCode {
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::FlagNotFound => "FLAG_NOT_FOUND",
            ErrorCode::ParseError => "PARSE_ERROR",
            ErrorCode::TargetingKeyMissing => "TARGETING_KEY_MISSING",
            ErrorCode::InvalidContext => "INVALID_CONTEXT",
            ErrorCode::TypeMismatch => "TYPE_MISMATCH",
            ErrorCode::General => "GENERAL",
        }
    }
}

impl Scratch {
    /// Forgets what flags serve: the context, the time or the ruleset is another.
    pub(crate) fn forget(&mut self) {
        #[cfg(feature = "full")]
        {
            self.policy.calls = 0;
        }
        for flag in self.touched.drain(..) {
            if let Some(served) = self.served.get_mut(flag as usize) {
                *served = Served::Unknown;
            }
        }
        self.attrs.clear();
    }

    /// As `forget`, before many flags of `rules` are evaluated for one context.
    pub(crate) fn begin_many(&mut self, rules: &Ruleset) {
        self.forget();
        self.attrs.resize(rules.attrs.len(), Seen::Unknown);
    }
}

/// Conditions inside of segments inside of conditions: what the limits allow, and a bound on the
/// stack for a ruleset that nobody checked.
const EXPR_DEPTH_MAX: usize = 2 * limits::NESTING_MAX * limits::CHAIN_MAX;

impl Evaluator {
    /// From the bytes of a ruleset (`blob::encode_ruleset`): checks the frame and every index,
    /// compiles patterns and builds the key index. Any flipped byte is an error.
    pub fn load(bytes: &[u8]) -> Result<Evaluator, LoadError> {
        Evaluator::new(crate::frame::decode_ruleset(bytes)?)
    }

    /// From a ruleset whose indices hold (`Ruleset::check`). A pattern that does not compile here
    /// is an error of its rule, not of the ruleset.
    pub fn new(rules: Ruleset) -> Result<Evaluator, LoadError> {
        // The core is asked by place.
        let named = if FULL { rules.flags.as_slice() } else { &[] };
        let slots = named.len().saturating_mul(2).next_power_of_two().max(2);
        let mut index = vec![NONE; slots];
        for (flag, id) in named.iter().zip(0u32..) {
            let hash = key_hash(rules.str(flag.key));
            if let Some(slot) = probe_slots(hash, slots)
                .find(|slot| index.get(*slot).is_some_and(|taken| *taken == NONE))
                .and_then(|slot| index.get_mut(slot))
            {
                *slot = id;
            }
        }
        let prepared = Prepared::new(&rules);
        Ok(Evaluator { rules, index, prepared })
    }

    pub fn rules(&self) -> &Ruleset {
        &self.rules
    }

    #[cfg(feature = "full")]
    pub(crate) fn patterns(&self) -> &clause::Patterns {
        &self.prepared.patterns
    }

    pub fn flag(&self, key: &str) -> Option<FlagId> {
        for slot in probe_slots(key_hash(key), self.index.len()) {
            let id = *self.index.get(slot)?;
            let flag = self.rules.flags.get(id as usize)?;
            if self.rules.str(flag.key) == key {
                return Some(FlagId(id));
            }
        }
        None
    }

    /// Every flag, in key order.
    pub fn flags(&self) -> impl Iterator<Item = FlagId> + use<> {
        (0..self.rules.flags.len() as u32).map(FlagId)
    }

    pub fn evaluate(&self, flag: FlagId, input: &Input<'_>, scratch: &mut Scratch) -> Outcome {
        scratch.forget();
        self.evaluate_again(flag, input, scratch)
    }

    /// As `evaluate`, for the input of the call before: what prerequisites serve is still known.
    pub(crate) fn evaluate_again(
        &self,
        flag: FlagId,
        input: &Input<'_>,
        scratch: &mut Scratch,
    ) -> Outcome {
        let mut run = Run {
            evaluator: self,
            rules: &self.rules,
            input,
            scratch,
            probe: NoProbe,
            failure: None,
            steps: 0,
            #[cfg(feature = "full")]
            cel_steps: limits::CEL_STEPS_MAX,
        };
        run.flag(flag.0, 0)
    }

    /// As `evaluate`, with the explanation.
    #[cfg(feature = "full")]
    pub fn explain(
        &self,
        flag: FlagId,
        input: &Input<'_>,
        scratch: &mut Scratch,
    ) -> (Outcome, Trace) {
        scratch.forget();
        let probe = Recorder { steps: Vec::new() };
        let mut run = Run {
            evaluator: self,
            rules: &self.rules,
            input,
            scratch,
            probe,
            failure: None,
            steps: 0,
            cel_steps: limits::CEL_STEPS_MAX,
        };
        let outcome = run.flag(flag.0, 0);
        let key = self.rules.flags.get(flag.0 as usize).map(|flag| self.rules.str(flag.key));
        let trace = Trace {
            flag: key.unwrap_or("").to_owned(),
            now_ms: input.now_ms,
            steps: run.probe.steps,
        };
        (outcome, trace)
    }
}

/// Linear probing: each of `slots` (a power of two) once, from where `hash` points.
fn probe_slots(hash: u32, slots: usize) -> impl Iterator<Item = usize> {
    let mask = slots.wrapping_sub(1);
    (0..slots).map(move |step| (hash as usize).wrapping_add(step) & mask)
}

/// Where an explanation is written. A type, not a flag: without one, not a byte of it is compiled
/// into the path, and the guest does not carry it.
trait Probe {
    #[cfg(feature = "full")]
    fn step(&mut self, make: impl FnOnce() -> Step);
}

struct NoProbe;

impl Probe for NoProbe {
    #[cfg(feature = "full")]
    #[inline(always)]
    fn step(&mut self, _make: impl FnOnce() -> Step) {}
}

#[cfg(feature = "full")]
struct Recorder {
    steps: Vec<Step>,
}

#[cfg(feature = "full")]
impl Probe for Recorder {
    fn step(&mut self, make: impl FnOnce() -> Step) {
        self.steps.push(make());
    }
}

/// Why a rule could not be evaluated. It waits in `Run::failure`: what the functions of a run
/// return fits into a register, which made an evaluation a fifth faster.
#[derive(Debug)]
struct Failure {
    code: ErrorCode,
    details: String,
}

/// Look into `Run::failure`.
#[derive(Debug, Clone, Copy)]
struct Failed;

/// What a serve came to, and through what.
#[derive(Debug, Clone, Copy)]
enum Pick {
    Variant(u32, How),
    /// `PolicyScratch::value`.
    Value(How),
    CodeDefault(How),
    /// Nobody here: the next rule, and after the last one the fallthrough.
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Named,
    Split,
    Logic,
    Policy,
}

struct Run<'r, 's, P> {
    evaluator: &'r Evaluator,
    rules: &'r Ruleset,
    input: &'r Input<'r>,
    scratch: &'s mut Scratch,
    probe: P,
    failure: Option<Failure>,
    /// Left to the condition of this rule. `Ruleset::check` allows no ruleset that takes more; the
    /// core does not check, and counts.
    steps: u32,
    /// Left to all CEL of this flag, that of its segments included.
    #[cfg(feature = "full")]
    cel_steps: u32,
}

impl<'r, P: Probe> Run<'r, '_, P> {
    #[cold]
    fn fail<T>(&mut self, code: ErrorCode, details: impl Into<String>) -> Result<T, Failed> {
        self.failure = Some(Failure { code, details: details.into() });
        Err(Failed)
    }

    #[cold]
    fn missing_index<T>(&mut self, what: &str) -> Result<T, Failed> {
        let details = ["the ruleset names a ", what, " that it does not have"].concat();
        self.fail(ErrorCode::General, details)
    }

    #[cold]
    fn failed(&mut self) -> Outcome {
        match self.failure.take() {
            Some(Failure { code, details }) => Outcome::Error { code, details },
            None => Outcome::Error { code: ErrorCode::General, details: "failed".to_owned() },
        }
    }

    fn flag(&mut self, id: u32, depth: usize) -> Outcome {
        let rules = self.rules;
        let Some(flag) = rules.flags.get(id as usize) else {
            return Outcome::Error {
                code: ErrorCode::FlagNotFound,
                details: "the flag does not exist".to_owned(),
            };
        };
        if let Some(why) = flag.broken {
            return Outcome::Error { code: ErrorCode::General, details: rules.str(why).to_owned() };
        }
        if !flag.enabled {
            step!(self, || Step::Disabled);
            return self.off(flag, Reason::Disabled);
        }
        for prerequisite in slice(&rules.prerequisites, flag.prerequisites) {
            if self.satisfied(prerequisite, depth) {
                continue;
            }
            return match prerequisite.on_fail {
                OnFail::Off => self.off(flag, Reason::Disabled),
                OnFail::OffAsDefault => self.off(flag, Reason::Default),
                OnFail::Fail => {
                    let Failed = self.prerequisite_failed(prerequisite);
                    self.failed()
                }
            };
        }
        let own = slice(&rules.rules, flag.rules).iter().take(limits::RULES_PER_FLAG_MAX);
        for (index, rule) in own.enumerate() {
            match self.rule(flag, rule, index, depth) {
                Ok(Pick::Next) => {}
                Ok(Pick::Variant(variant, how)) => {
                    return Outcome::Variant { variant, reason: rule_reason(rule, how) };
                }
                Ok(Pick::Value(how)) => return self.value(rule_reason(rule, how)),
                Ok(Pick::CodeDefault(how)) => {
                    return Outcome::CodeDefault { reason: rule_reason(rule, how) };
                }
                Err(_) if rule.on_error == OnError::Skip => {}
                Err(Failed) => return self.failed(),
            }
        }
        step!(self, || Step::Fallthrough);
        match self.serve(flag, flag.fallthrough, 0) {
            Ok(Pick::Variant(variant, how)) => Outcome::Variant {
                variant,
                reason: match how {
                    How::Named if flag.is_static => Reason::Static,
                    How::Named => Reason::Default,
                    How::Split => Reason::Split,
                    How::Logic | How::Policy => Reason::TargetingMatch,
                },
            },
            Ok(Pick::Value(_)) => self.value(Reason::TargetingMatch),
            // Never STATIC: what the caller gets is not known here (INTEROP 2.1, step 7).
            Ok(Pick::CodeDefault(_) | Pick::Next) => {
                Outcome::CodeDefault { reason: Reason::Default }
            }
            Err(Failed) => self.failed(),
        }
    }

    fn value(&mut self, reason: Reason) -> Outcome {
        #[cfg(feature = "full")]
        let value = mem::take(&mut self.scratch.policy.value);
        #[cfg(not(feature = "full"))]
        let value = String::new();
        Outcome::Value { value, reason }
    }

    fn off(&mut self, flag: &'r Flag, reason: Reason) -> Outcome {
        match self.serve(flag, flag.off, 0) {
            Ok(Pick::Variant(variant, _)) => Outcome::Variant { variant, reason },
            Ok(Pick::Value(_)) => self.value(reason),
            Ok(Pick::CodeDefault(_) | Pick::Next) => Outcome::CodeDefault { reason },
            Err(Failed) => self.failed(),
        }
    }

    fn rule(
        &mut self,
        flag: &'r Flag,
        rule: &'r Rule,
        index: usize,
        depth: usize,
    ) -> Result<Pick, Failed> {
        let rules = self.rules;
        step!(self, || Step::Rule { id: rules.str(rule.id).to_owned(), index });
        let pick = self.rule_pick(flag, rule, depth);
        let failure = &self.failure;
        step!(self, || Step::RuleEnd {
            id: rules.str(rule.id).to_owned(),
            matched: matches!(pick, Ok(Pick::Variant(..) | Pick::Value(_) | Pick::CodeDefault(_))),
            error: match (&pick, failure) {
                (Err(Failed), Some(failure)) => Some(failure.details.clone()),
                _ => None,
            },
        });
        pick
    }

    #[inline]
    fn rule_pick(&mut self, flag: &'r Flag, rule: &'r Rule, depth: usize) -> Result<Pick, Failed> {
        let now = self.input.now_ms;
        let over = if rule.to_inclusive { now > rule.to_ms } else { now >= rule.to_ms };
        // An open end is `i64::MAX`, which a clock that shows it has not reached either.
        if now < rule.from_ms || (over && rule.to_ms != i64::MAX) {
            step!(self, || Step::Inactive {
                from_ms: (rule.from_ms != i64::MIN).then_some(rule.from_ms),
                to_ms: (rule.to_ms != i64::MAX).then_some(rule.to_ms),
            });
            return Ok(Pick::Next);
        }
        for prerequisite in slice(&self.rules.prerequisites, rule.prerequisites) {
            if self.satisfied(prerequisite, depth) {
                continue;
            }
            return match prerequisite.on_fail {
                OnFail::Off | OnFail::OffAsDefault => Ok(Pick::Next),
                OnFail::Fail => Err(self.prerequisite_failed(prerequisite)),
            };
        }
        self.steps = limits::CONDITION_STEPS_MAX as u32;
        if rule.when != NONE && !self.expr(flag, rule.when, 0)? {
            return Ok(Pick::Next);
        }
        self.serve(flag, rule.serve, 0)
    }

    fn serve(&mut self, flag: &'r Flag, serve: u32, depth: usize) -> Result<Pick, Failed> {
        let rules = self.rules;
        match rules.serves.get(serve as usize) {
            Some(Serve::Variant(variant)) => Ok(Pick::Variant(*variant, How::Named)),
            Some(Serve::CodeDefault) => Ok(Pick::CodeDefault(How::Named)),
            Some(Serve::Next) => Ok(Pick::Next),
            Some(Serve::Split(split)) => match rules.splits.get(*split as usize) {
                Some(split) => self.split(flag, split, depth),
                None => self.missing_index("split"),
            },
            #[cfg(feature = "full")]
            Some(Serve::Logic(node)) => self.serve_logic(flag, *node),
            #[cfg(feature = "full")]
            Some(Serve::Policy(call)) => self.serve_policy(flag, *call, depth),
            #[cfg(not(feature = "full"))]
            Some(Serve::Logic(_) | Serve::Policy(_)) => self.missing_index("evaluator"),
            // A flag without an off variant.
            None if serve == NONE => Ok(Pick::CodeDefault(How::Named)),
            None => self.missing_index("serve"),
        }
    }

    fn prerequisite_failed(&mut self, prerequisite: &Prerequisite) -> Failed {
        let key = self.rules.flags.get(prerequisite.flag as usize).map(|flag| flag.key);
        let details = match key {
            Some(key) => {
                ["the prerequisite ", &quoted(self.rules.str(key)), " is not satisfied"].concat()
            }
            None => "a prerequisite names a flag that does not exist".to_owned(),
        };
        self.failure = Some(Failure { code: ErrorCode::General, details });
        Failed
    }

    /// Whether the other flag is on and serves one of the wanted variants.
    fn satisfied(&mut self, prerequisite: &Prerequisite, depth: usize) -> bool {
        let rules = self.rules;
        let served = self.served(prerequisite.flag, depth);
        let wanted = slice(&rules.refs, prerequisite.variants);
        let on = rules.flags.get(prerequisite.flag as usize).is_some_and(|flag| flag.enabled);
        let satisfied = on && matches!(served, Served::Variant(got, _) if wanted.contains(&got));
        step!(self, || {
            let variant = |index: u32| {
                rules.variants.get(index as usize).map(|v| rules.str(v.key).to_owned())
            };
            let (got, reason) = match served {
                Served::Variant(got, reason) => (variant(got), reason.name()),
                Served::Nothing(why) => (None, why),
                Served::Unknown | Served::Running => (None, "ERROR"),
            };
            let flag = rules.flags.get(prerequisite.flag as usize);
            Step::Prerequisite {
                flag: flag.map_or("", |flag| rules.str(flag.key)).to_owned(),
                wanted: wanted.iter().filter_map(|index| variant(*index)).collect(),
                got,
                reason,
                satisfied,
            }
        });
        satisfied
    }

    fn served(&mut self, flag: u32, depth: usize) -> Served {
        let depth = depth.saturating_add(1);
        if self.rules.flags.get(flag as usize).is_none() || depth > limits::CHAIN_MAX {
            return Served::Nothing("ERROR");
        }
        let scratch = &mut *self.scratch;
        if scratch.served.len() < self.rules.flags.len() {
            scratch.served.resize(self.rules.flags.len(), Served::Unknown);
        }
        match scratch.served.get_mut(flag as usize) {
            Some(known @ Served::Unknown) => *known = Served::Running,
            Some(known) => return *known,
            None => return Served::Nothing("ERROR"),
        }
        scratch.touched.push(flag);
        let (evaluator, rules, input) = (self.evaluator, self.rules, self.input);
        let mut run = Run {
            evaluator,
            rules,
            input,
            scratch: &mut *scratch,
            probe: NoProbe,
            failure: None,
            steps: 0,
            #[cfg(feature = "full")]
            cel_steps: limits::CEL_STEPS_MAX,
        };
        let served = match run.flag(flag, depth) {
            Outcome::Variant { variant, reason } => Served::Variant(variant, reason),
            // No variant has a policy's own value, so none that is wanted does.
            Outcome::Value { reason, .. } | Outcome::CodeDefault { reason } => {
                Served::Nothing(reason.name())
            }
            Outcome::Error { .. } => Served::Nothing("ERROR"),
        };
        if let Some(known) = self.scratch.served.get_mut(flag as usize) {
            *known = served;
        }
        served
    }

    fn expr(&mut self, flag: &'r Flag, index: u32, depth: usize) -> Result<bool, Failed> {
        let rules = self.rules;
        if depth > EXPR_DEPTH_MAX || self.steps == 0 {
            return self.fail(ErrorCode::General, "conditions are nested too deep");
        }
        self.steps = self.steps.saturating_sub(1);
        let deeper = depth.saturating_add(1);
        match rules.exprs.get(index as usize) {
            Some(Expr::Clause(clause)) => self.clause(*clause),
            Some(Expr::Const(value)) => Ok(*value),
            Some(Expr::Not(inner)) => Ok(!self.expr(flag, *inner, deeper)?),
            Some(Expr::All(children)) => {
                for child in slice(&rules.refs, *children) {
                    if !self.expr(flag, *child, deeper)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(Expr::Any(children)) => {
                for child in slice(&rules.refs, *children) {
                    if self.expr(flag, *child, deeper)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Some(Expr::Segments(segments)) => {
                for segment in slice(&rules.refs, *segments) {
                    if self.segment(flag, *segment, deeper)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            #[cfg(feature = "full")]
            Some(Expr::Logic(node)) => self.logic_truth(flag, *node),
            #[cfg(feature = "full")]
            Some(Expr::Cel(node)) => self.cel(flag, *node),
            #[cfg(not(feature = "full"))]
            Some(Expr::Logic(_) | Expr::Cel(_)) => self.missing_index("evaluator"),
            None => self.missing_index("condition"),
        }
    }

    #[inline]
    fn clause(&mut self, index: u32) -> Result<bool, Failed> {
        let rules = self.rules;
        let Some(clause) = rules.clauses.get(index as usize) else {
            return self.missing_index("clause");
        };
        let Some(attr) = rules.attrs.get(clause.attr as usize) else {
            return self.missing_index("attribute");
        };
        let value = self.value_of(clause.attr, attr);
        let result = clause::holds(rules, &self.evaluator.prepared, index, clause, value.as_ref());
        step!(self, || Step::Clause {
            attribute: rules.str(attr.path).to_owned(),
            op: clause.op.name(),
            negated: clause.negate,
            actual: value.as_ref().map(Value::to_json),
            expected: slice(&rules.args, clause.args).iter().map(|a| arg_json(rules, a)).collect(),
            result: result.unwrap_or(false),
        });
        match result {
            Ok(result) => Ok(result),
            Err(error) => self.clause_failed(clause, error),
        }
    }

    /// What the context has for `attr`, which is the one at `index`.
    #[inline]
    fn value_of(&mut self, index: u32, attr: &Attr) -> Option<Value<'r>> {
        let (rules, context) = (self.rules, self.input.context);
        let place = match self.scratch.attrs.get_mut(index as usize) {
            None => context.find(rules, attr),
            Some(Seen::Missing) => None,
            Some(Seen::There(place)) => Some(*place),
            Some(unknown) => {
                let found = context.find(rules, attr);
                *unknown = found.map_or(Seen::Missing, Seen::There);
                found
            }
        };
        context.at(place?)
    }

    #[cold]
    fn clause_failed(&mut self, clause: &Clause, error: ClauseError) -> Result<bool, Failed> {
        let rules = self.rules;
        let attr = rules.attrs.get(clause.attr as usize).map_or("", |a| rules.str(a.path));
        let op = clause.op.name();
        match error {
            // The caller's context is what is wrong here, not the flag.
            ClauseError::WrongType => self.fail(
                ErrorCode::InvalidContext,
                ["the attribute ", &quoted(attr), " is not of a type or form that ", op, " takes"]
                    .concat(),
            ),
            ClauseError::Unusable => self.fail(
                ErrorCode::General,
                [
                    "a value of the condition on ",
                    &quoted(attr),
                    " (",
                    op,
                    ") cannot be used by this build",
                ]
                .concat(),
            ),
        }
    }

    /// Excluded wins over included, included over the rules.
    fn segment(&mut self, flag: &'r Flag, index: u32, depth: usize) -> Result<bool, Failed> {
        let rules = self.rules;
        let Some(segment) = rules.segments.get(index as usize) else {
            return self.missing_index("segment");
        };
        let mut by = "none";
        let mut result = false;
        #[cfg(feature = "full")]
        if segment.excluded != NONE || segment.included != NONE {
            let attr = rules.attrs.get(segment.by as usize);
            let digits;
            let value = attr.and_then(|attr| self.value_of(segment.by, attr));
            let unit = value.and_then(|value| split::unit_of(value, UnitTypes::StringOrInteger));
            // Lists hold text; 3 and 3.0 are one id, as they are one unit of a split.
            let unit = match unit {
                Some(Unit::Str(unit)) => Some(unit),
                Some(Unit::Int(unit)) => {
                    digits = unit.to_string();
                    Some(digits.as_str())
                }
                _ => None,
            };
            if let Some(unit) = unit {
                let host = self.input.host;
                if segment.excluded != NONE && host.list_contains(segment.excluded, unit) {
                    by = "excluded";
                } else if segment.included != NONE && host.list_contains(segment.included, unit) {
                    (by, result) = ("included", true);
                }
            }
        }
        if by == "none" && segment.when != NONE && self.expr(flag, segment.when, depth)? {
            (by, result) = ("rule", true);
        }
        step!(self, || Step::Segment { key: rules.str(segment.key).to_owned(), by, result });
        Ok(result)
    }

    fn split(&mut self, flag: &'r Flag, split: &'r Split, depth: usize) -> Result<Pick, Failed> {
        let rules = self.rules;
        let found = slice(&rules.refs, split.units).iter().find_map(|index| {
            let attr = rules.attrs.get(*index as usize)?;
            let value = self.value_of(*index, attr)?;
            Some((attr, split::unit_of(value, split.unit_types)?))
        });
        let now = self.input.now_ms;
        let choice = match (found, split.missing_unit) {
            (Some((_, unit)), _) => {
                let key = rules.str(flag.key);
                split::choose(rules, split, key, unit, now, &mut self.scratch.bytes)
            }
            (None, MissingUnit::BucketZero) => split::choose_bucket_zero(rules, split, now),
            (None, MissingUnit::Skip) => return Ok(Pick::Next),
            (None, MissingUnit::Error) => return self.unit_missing(split),
        };
        step!(self, || Step::Split {
            by: found.map(|(attr, _)| rules.str(attr.path).to_owned()),
            unit: found.map(|(_, unit)| match unit {
                Unit::Str(text) => text.to_owned(),
                Unit::Int(number) => number.to_string(),
                Unit::Float(number) => number.to_string(),
                Unit::Bool(value) => value.to_string(),
            }),
            bucket: choice.bucket,
            total: split.total,
            arm: choice.arm.and_then(|arm| arm.checked_sub(split.arms.start)).map(|a| a as usize),
            ramp: choice.ramp,
        });
        let Some(arm) = choice.arm else { return Ok(Pick::Next) };
        let Some(arm) = rules.arms.get(arm as usize) else { return self.missing_index("arm") };
        if depth >= limits::NESTING_MAX {
            return self.fail(ErrorCode::General, "splits are nested too deep");
        }
        Ok(match self.serve(flag, arm.serve, depth.saturating_add(1))? {
            Pick::Variant(variant, _) => Pick::Variant(variant, How::Split),
            Pick::Value(_) => Pick::Value(How::Split),
            Pick::CodeDefault(_) => Pick::CodeDefault(How::Split),
            Pick::Next => Pick::Next,
        })
    }

    #[cold]
    fn unit_missing(&mut self, split: &Split) -> Result<Pick, Failed> {
        let rules = self.rules;
        let names: Vec<&str> = slice(&rules.refs, split.units)
            .iter()
            .filter_map(|attr| rules.attrs.get(*attr as usize))
            .map(|attr| rules.str(attr.path))
            .collect();
        self.fail(
            ErrorCode::TargetingKeyMissing,
            ["the context has no usable ", &names.join(" or "), " to split by"].concat(),
        )
    }

    #[cfg(feature = "full")]
    fn logic(&mut self, flag: &'r Flag, node: u32) -> Result<Dyn<'r>, Failed> {
        let input = LogicInput {
            rules: self.rules,
            flag_key: self.rules.str(flag.key),
            context: self.input.context,
            now_ms: self.input.now_ms,
        };
        match logic::evaluate(&input, node, &mut self.scratch.bytes) {
            Ok(result) => {
                step!(self, || Step::Logic { result: result.to_json() });
                Ok(result)
            }
            Err(error) => self.fail(ErrorCode::ParseError, error.to_string()),
        }
    }

    /// The result names a variant; null is nobody.
    #[cfg(feature = "full")]
    fn serve_logic(&mut self, flag: &'r Flag, node: u32) -> Result<Pick, Failed> {
        let rules = self.rules;
        let result = self.logic(flag, node)?;
        if matches!(result, Dyn::Null) {
            return Ok(Pick::Next);
        }
        let name = result.variant_name();
        let variants = slice(&rules.variants, flag.variants);
        let place = name
            .as_deref()
            .and_then(|name| variants.iter().position(|variant| rules.str(variant.key) == name));
        match place.and_then(|place| flag.variants.start.checked_add(u32::try_from(place).ok()?)) {
            Some(variant) => Ok(Pick::Variant(variant, How::Logic)),
            None => self.fail(
                ErrorCode::General,
                match name {
                    Some(name) => format!("the logic names {name:?}, which is no variant"),
                    None => "the logic's result cannot name a variant".to_owned(),
                },
            ),
        }
    }

    /// An error is false: whatever negates it is inside of the expression.
    #[cfg(feature = "full")]
    #[inline(never)]
    fn cel(&mut self, flag: &'r Flag, node: u32) -> Result<bool, Failed> {
        let rules = self.rules;
        let context = self.input.context;
        let patterns = &self.evaluator.prepared.patterns;
        let key = rules.str(flag.key);
        let now = self.input.now_ms;
        let mut machine =
            cel::Machine::new(rules, patterns, key, context, now, &mut self.cel_steps);
        let result = machine.truth(node);
        step!(self, || Step::Cel {
            expression: cel::print::print(rules, node),
            attributes: cel::print::attrs(rules, node)
                .into_iter()
                .filter_map(|attr| rules.attrs.get(attr as usize))
                .filter_map(|attr| {
                    let value = context.get(rules, attr)?;
                    Some((rules.str(attr.path).to_owned(), value.to_json()))
                })
                .collect(),
            result: result == Ok(true),
            error: result.err().map(|stop| stop.message(rules)),
        });
        match result {
            Ok(result) => Ok(result),
            Err(cel::Stop::Error(_)) => Ok(false),
            Err(stop) => self.fail(ErrorCode::General, stop.message(rules)),
        }
    }

    /// Out of line: a ruleset without policies pays for one arm of a match.
    #[cfg(feature = "full")]
    #[inline(never)]
    fn serve_policy(&mut self, flag: &'r Flag, index: u32, depth: usize) -> Result<Pick, Failed> {
        let rules = self.rules;
        let Some(call) = rules.policy_calls.get(index as usize) else {
            return self.missing_index("policy call");
        };
        let Some(policy) = rules.policies.get(call.policy as usize) else {
            return self.missing_index("policy");
        };
        let (input, host) = (self.input, self.input.host);
        let scratch = &mut self.scratch.policy;
        scratch.answer.clear();
        scratch.input.clear();
        policy::write_input(
            rules,
            flag,
            policy,
            call,
            input.context,
            input.now_ms,
            &mut scratch.input,
        );
        let (mut details, mut called) = (None, false);
        let answered = if scratch.calls >= limits::POLICY_CALLS_MAX {
            Err(PolicyFault::Calls)
        } else if scratch.input.len() > limits::POLICY_INPUT_BYTES_MAX {
            Err(PolicyFault::Input)
        } else {
            scratch.calls = scratch.calls.saturating_add(1);
            called = true;
            host.policy(call.policy, &scratch.input, &mut scratch.answer)
        };
        let decided = match answered {
            Ok(()) => policy::read_answer(rules, flag, &scratch.answer).map_err(|wrong| {
                host.policy_refused(call.policy);
                details = Some(wrong);
                PolicyFault::Answer
            }),
            Err(fault) => {
                if let Ok(said) = std::str::from_utf8(&scratch.answer)
                    && !said.is_empty()
                {
                    details = Some(said.to_owned());
                }
                Err(fault)
            }
        };
        step!(self, || {
            let json = |bytes: &[u8]| serde_json::from_slice(bytes).ok();
            let told = called.then(|| host.policy_told()).flatten().unwrap_or_default();
            Step::Policy {
                name: rules.str(policy.name).to_owned(),
                digest: rules.str(policy.digest).to_owned(),
                input: json(&scratch.input).unwrap_or_default(),
                answer: answered.ok().and_then(|()| json(&scratch.answer)),
                reason: decided.as_ref().ok().and_then(|(_, reason)| reason.clone()),
                fault: decided.as_ref().err().map(|fault| fault.name()),
                details,
                fuel: told.fuel,
                log: told.log,
            }
        });
        Ok(match decided {
            Ok((Decision::Variant(variant), _)) => Pick::Variant(variant, How::Policy),
            Ok((Decision::Value(value), _)) => {
                scratch.value = value;
                Pick::Value(How::Policy)
            }
            Ok((Decision::Abstain, _)) => Pick::Next,
            Err(_) if depth >= limits::NESTING_MAX => {
                return self.fail(ErrorCode::General, "fallbacks are nested too deep");
            }
            Err(_) => self.serve(flag, call.fallback, depth.saturating_add(1))?,
        })
    }

    #[cfg(feature = "full")]
    fn logic_truth(&mut self, flag: &'r Flag, node: u32) -> Result<bool, Failed> {
        Ok(self.logic(flag, node)?.truthy())
    }
}

fn rule_reason(rule: &Rule, how: How) -> Reason {
    match (rule.reason, how) {
        (Some(RuleReason::Static), _) => Reason::Static,
        (Some(RuleReason::Default), _) => Reason::Default,
        (Some(RuleReason::TargetingMatch), _) => Reason::TargetingMatch,
        (Some(RuleReason::Split), _) => Reason::Split,
        (Some(RuleReason::Disabled), _) => Reason::Disabled,
        (None, How::Split) => Reason::Split,
        (None, How::Named | How::Logic | How::Policy) => Reason::TargetingMatch,
    }
}

/// As JSON writes it.
fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    answer::write_json_string(text, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(feature = "full")]
fn arg_json(rules: &Ruleset, arg: &Arg) -> serde_json::Value {
    use serde_json::Value as Json;
    match arg {
        Arg::Null => Json::Null,
        Arg::Bool(value) => Json::from(*value),
        Arg::Int(value) | Arg::Date(value) => Json::from(*value),
        Arg::Float(value) => Json::from(*value),
        Arg::Str(text) | Arg::Version(text) | Arg::VersionRange(text) | Arg::Regex(text) => {
            Json::from(rules.str(*text))
        }
        Arg::Json(text) => serde_json::from_str(rules.str(*text)).unwrap_or(Json::Null),
        Arg::Cidr { network, prefix } => {
            let address = std::net::Ipv6Addr::from_bits(*network);
            Json::from(match (address.to_ipv4_mapped(), prefix.checked_sub(96)) {
                (Some(v4), Some(prefix)) => format!("{v4}/{prefix}"),
                _ => format!("{address}/{prefix}"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::compile::{EnvironmentState, FlagState, PolicyState, compile};
    use crate::context::ContextBuf;

    fn flag(key: &str, config: Json) -> FlagState {
        let definition =
            json!({"key": key, "type": "boolean", "variants": {"on": true, "off": false}});
        FlagState {
            definition: serde_json::from_value(definition).unwrap(),
            config: serde_json::from_value(config).unwrap(),
        }
    }

    fn ruleset(flags: Vec<FlagState>) -> Ruleset {
        compile(&EnvironmentState { flags, ..EnvironmentState::default() }).unwrap().ruleset
    }

    fn needs(keys: &[String]) -> Json {
        let wanted: Vec<Json> =
            keys.iter().map(|key| json!({"flag": key, "variants": ["on"]})).collect();
        json!({
            "enabled": true, "off": "off", "prerequisites": wanted, "fallthrough": {"variant": "on"},
        })
    }

    /// The variant or error code, and the reason; explained or not, it must be the same.
    fn answer(rules: Ruleset, key: &str, context: Json) -> (String, &'static str, Trace) {
        let evaluator = Evaluator::new(rules).unwrap();
        let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
        let input = Input { context: context.view(), now_ms: 0, host: &NoHost };
        let id = evaluator.flag(key).unwrap();
        let mut scratch = Scratch::default();
        let outcome = evaluator.evaluate(id, &input, &mut scratch);
        let (explained, trace) = evaluator.explain(id, &input, &mut scratch);
        assert_eq!(outcome, explained);
        match outcome {
            Outcome::Variant { variant, reason } => {
                let variant = &evaluator.rules().variants[variant as usize];
                (evaluator.rules().str(variant.key).to_owned(), reason.name(), trace)
            }
            Outcome::Value { value, reason } => (value, reason.name(), trace),
            Outcome::CodeDefault { reason } => (String::new(), reason.name(), trace),
            Outcome::Error { code, details } => (details, code.name(), trace),
        }
    }

    #[test]
    fn every_flag_is_found_by_its_key_and_no_other_key_is() {
        let flags = (0..500).map(|n| flag(&format!("flag/{n}/\u{1f30a}"), needs(&[]))).collect();
        let evaluator = Evaluator::new(ruleset(flags)).unwrap();
        for id in evaluator.flags() {
            let key = evaluator.rules().str(evaluator.rules().flags[id.0 as usize].key);
            assert_eq!(evaluator.flag(key), Some(id));
        }
        assert_eq!(evaluator.flag("flag/500/\u{1f30a}"), None);
        assert_eq!(evaluator.flag(""), None);
        assert_eq!(Evaluator::new(Ruleset::default()).unwrap().flag("x"), None);
    }

    #[test]
    fn a_lattice_of_prerequisites_is_walked_once_and_not_along_each_path() {
        // 8 to the 15th paths lead from the top to the bottom.
        let layers = limits::CHAIN_MAX;
        let layer = |n: usize| (0..8).map(move |at| format!("f{n:02}-{at}")).collect::<Vec<_>>();
        let mut flags = Vec::new();
        for n in 0..layers {
            let below = if n == 0 { Vec::new() } else { layer(n - 1) };
            flags.extend(layer(n).iter().map(|key| flag(key, needs(&below))));
        }
        let top = format!("f{:02}-0", layers - 1);
        let (variant, reason, _) = answer(ruleset(flags), &top, json!({}));
        assert_eq!((variant.as_str(), reason), ("on", "DEFAULT"));
    }

    #[test]
    fn a_cycle_that_no_compiler_lets_through_ends_in_the_off_variant() {
        let mut rules = ruleset(vec![flag("a", needs(&[])), flag("b", needs(&["a".to_owned()]))]);
        let prerequisite = rules.flags[1].prerequisites;
        rules.flags[0].prerequisites = prerequisite;
        rules.prerequisites[0].flag = 0;
        let (variant, reason, _) = answer(rules, "a", json!({}));
        assert_eq!((variant.as_str(), reason), ("off", "DISABLED"));
    }

    #[test]
    fn damaged_indices_answer_general_and_never_panic() {
        let config = json!({
            "enabled": true, "off": "off", "fallthrough": {"variant": "on"},
            "rules": [{"id": "r", "when": {"attr": "x", "op": "eq", "value": 1},
                       "serve": {"split": {"weights": {"on": 100_000}}}}],
        });
        let sound = || ruleset(vec![flag("a", config.clone())]);
        let context = json!({"x": 1, "targetingKey": "u"});
        let damages: [fn(&mut Ruleset); 7] = [
            |rules| rules.exprs.clear(),
            |rules| rules.clauses.clear(),
            |rules| rules.attrs.clear(),
            |rules| rules.serves.clear(),
            |rules| rules.splits.clear(),
            |rules| rules.rules[0].serve = 9_999,
            |rules| rules.exprs = vec![Expr::Not(0)],
        ];
        assert_eq!(answer(sound(), "a", context.clone()).1, "SPLIT");
        for damage in damages {
            let mut rules = sound();
            damage(&mut rules);
            assert_eq!(answer(rules, "a", context.clone()).1, "GENERAL");
        }
    }

    #[test]
    fn all_flags_at_once_answer_as_each_alone_whatever_was_asked_before() {
        let when = |attr: &str, value: Json| {
            let rule = json!({"id": "r", "when": {"attr": attr, "op": "eq", "value": value},
                "serve": {"variant": "on"}});
            json!({"enabled": true, "rules": [rule], "fallthrough": {"variant": "off"}})
        };
        let weights = json!({"split": {"weights": {"on": 50_000, "off": 50_000}}});
        let evaluator = Evaluator::new(ruleset(vec![
            flag("deep", when("app.version", json!(2))),
            flag("deep-too", when("app.version", json!(1))),
            flag("flat", when("plan", json!("pro"))),
            flag("missing", when("plan.name", json!("x"))),
            flag("split", json!({"enabled": true, "fallthrough": weights})),
        ]))
        .unwrap();
        let wide: serde_json::Map<String, Json> =
            (0..100).map(|n| (format!("k{n}"), json!(n))).collect();
        let contexts = [
            json!({"targetingKey": "u1", "plan": "pro", "app": {"platform": "ios", "version": 2}}),
            json!({"app.version": 1, "app": {"version": 2}, "targetingKey": "u2"}),
            json!({"targetingKey": "u3", "plan": {"name": "x"}, "app": wide}),
            json!({}),
            json!({"plan": "pro", "app": {"version": 2}, "wide": wide}),
        ];
        // One scratch: what it remembers of a context must not answer for the next one.
        let mut scratch = Scratch::default();
        let audience = crate::answer::Audience::Server;
        for context in contexts.iter().chain(&contexts) {
            let buffer = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
            let input = Input { context: buffer.view(), now_ms: 0, host: &NoHost };
            let mut all = Vec::new();
            crate::answer::write_all(&evaluator, audience, &input, &mut scratch, &mut all);
            let all: Json = serde_json::from_slice(&all).unwrap();
            for answer in all["flags"].as_array().unwrap() {
                let (mut one, key) = (Vec::new(), answer["key"].as_str().unwrap());
                let mut fresh = Scratch::default();
                for scratch in [&mut scratch, &mut fresh] {
                    one.clear();
                    crate::answer::write_one(&evaluator, key, audience, &input, scratch, &mut one);
                    assert_eq!(&serde_json::from_slice::<Json>(&one).unwrap(), answer, "{context}");
                }
            }
        }
    }

    #[test]
    fn an_id_of_a_list_is_text_or_a_whole_number_however_it_is_written() {
        struct Seven;
        impl Host for Seven {
            fn list_contains(&self, _list: u32, id: &str) -> bool {
                id == "7"
            }
        }
        let config = json!({
            "enabled": true, "fallthrough": {"variant": "off"},
            "rules": [{"id": "r", "when": {"segment": "chosen"}, "serve": {"variant": "on"}}],
        });
        let segment = crate::compile::SegmentState {
            segment: serde_json::from_value(json!({"key": "chosen"})).unwrap(),
            has_included: true,
            has_excluded: false,
        };
        let flags = vec![flag("a", config)];
        let state = EnvironmentState { flags, segments: vec![segment], ..Default::default() };
        let evaluator = Evaluator::new(compile(&state).unwrap().ruleset).unwrap();
        for (unit, wanted) in [
            (json!("7"), Reason::TargetingMatch),
            (json!(7), Reason::TargetingMatch),
            (json!(7.0), Reason::TargetingMatch),
            (json!(7.5), Reason::Default),
            (json!(true), Reason::Default),
            (json!(null), Reason::Default),
        ] {
            let context = json!({"targetingKey": unit}).to_string();
            let context = ContextBuf::from_json(context.as_bytes()).unwrap();
            let input = Input { context: context.view(), now_ms: 0, host: &Seven };
            let outcome = evaluator.evaluate(FlagId(0), &input, &mut Scratch::default());
            let Outcome::Variant { reason, .. } = outcome else { panic!("{unit}: {outcome:?}") };
            assert_eq!(reason, wanted, "{unit}");
        }
    }

    #[test]
    fn a_condition_that_doubles_with_every_level_ends_unchecked_too() {
        let config = json!({
            "enabled": true, "off": "off", "fallthrough": {"variant": "off"},
            "rules": [{"id": "r", "when": {"attr": "x", "op": "exists"}, "serve": {"variant": "on"}}],
        });
        let mut rules = ruleset(vec![flag("a", config)]);
        let mut last = rules.rules[0].when;
        for _ in 0..60 {
            let start = rules.refs.len() as u32;
            rules.refs.extend([last, last]);
            last = rules.exprs.len() as u32;
            rules.exprs.push(Expr::All(crate::ruleset::Span { start, len: 2 }));
        }
        rules.rules[0].when = last;
        assert!(rules.check().is_err(), "who checks does not come so far");
        assert_eq!(rules.tier(), crate::ruleset::Tier::Core);
        assert_eq!(answer(rules, "a", json!({"x": 1})).1, "GENERAL");
    }

    /// Answers by the attribute `say`, and counts.
    #[derive(Default)]
    struct Saying {
        calls: std::cell::Cell<u32>,
        refused: std::cell::Cell<u32>,
    }

    impl Host for Saying {
        fn list_contains(&self, _list: u32, _id: &str) -> bool {
            false
        }

        fn policy(&self, _policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
            self.calls.set(self.calls.get() + 1);
            let input: Json = serde_json::from_slice(input).unwrap();
            let said = input["attributes"]["say"].as_str().unwrap_or_default();
            out.extend_from_slice(said.as_bytes());
            if said.is_empty() { Err(PolicyFault::Deadline) } else { Ok(()) }
        }

        fn policy_told(&self) -> Option<Told> {
            let fuel = u64::from(self.calls.get());
            Some(Told { fuel: Some(fuel), log: "seen".to_owned() })
        }

        fn policy_refused(&self, _policy: u32) {
            self.refused.set(self.refused.get() + 1);
        }
    }

    fn asking(count: usize) -> Evaluator {
        let config = json!({
            "enabled": true, "fallthrough": {"variant": "off"},
            "rules": [{"id": "ask", "policy": {"name": "p", "fallback": {"variant": "off"}}}],
        });
        let state = EnvironmentState {
            flags: (0..count).map(|n| flag(&format!("f{n:03}"), config.clone())).collect(),
            policies: vec![PolicyState {
                name: "p".to_owned(),
                digest: crate::blob::Digest([7; 32]),
                attributes: vec!["say".to_owned()],
            }],
            ..EnvironmentState::default()
        };
        Evaluator::new(compile(&state).unwrap().ruleset).unwrap()
    }

    #[test]
    fn a_request_calls_sixty_four_policies_and_the_next_rules_fall_back() {
        let evaluator = asking(limits::POLICY_CALLS_MAX as usize + 1);
        let host = Saying::default();
        let context = ContextBuf::from_json(br#"{"say": "{\"variant\": \"on\"}"}"#).unwrap();
        let input = Input { context: context.view(), now_ms: 0, host: &host };
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            let mut out = Vec::new();
            let audience = crate::answer::Audience::Server;
            crate::answer::write_all(&evaluator, audience, &input, &mut scratch, &mut out);
            let answer: Json = serde_json::from_slice(&out).unwrap();
            let flags = answer["flags"].as_array().unwrap();
            let on = flags.iter().filter(|flag| flag["variant"] == "on").count();
            assert_eq!(on, limits::POLICY_CALLS_MAX as usize);
            assert_eq!(flags.last().unwrap()["variant"], "off");
            assert_eq!(host.calls.replace(0), limits::POLICY_CALLS_MAX);
        }
    }

    #[test]
    fn the_trace_names_the_policy_what_it_got_what_it_said_and_what_went_wrong() {
        let evaluator = asking(1);
        let explain = |say: &str| {
            let host = Saying::default();
            let context = json!({ "targetingKey": "u", "say": say, "secret": 1 }).to_string();
            let context = ContextBuf::from_json(context.as_bytes()).unwrap();
            let input = Input { context: context.view(), now_ms: 5, host: &host };
            let id = evaluator.flag("f000").unwrap();
            let (_, trace) = evaluator.explain(id, &input, &mut Scratch::default());
            let step = serde_json::to_value(&trace.steps[1]).unwrap();
            assert_eq!(step["step"], "policy");
            assert_eq!(step["name"], "p");
            assert_eq!(step["digest"], "07".repeat(32));
            assert_eq!(step["input"]["attributes"], json!({ "say": say }));
            (step, host.refused.get())
        };
        let (step, refused) = explain(r#"{"variant":"on","reason":"why not"}"#);
        assert_eq!((&step["reason"], &step["fault"], refused), (&json!("why not"), &Json::Null, 0));
        assert_eq!(step["answer"], json!({ "variant": "on", "reason": "why not" }));
        assert_eq!((&step["fuel"], &step["log"]), (&json!(1), &json!("seen")));
        let (step, refused) = explain(r#"{"variant":"maybe"}"#);
        assert_eq!((&step["fault"], refused), (&json!("answer"), 1));
        assert!(step["details"].as_str().unwrap().contains("\"maybe\""), "{step}");
        let (step, refused) = explain("");
        assert_eq!((&step["fault"], refused), (&json!("deadline"), 0));
        let (step, _) = explain(&"x".repeat(limits::POLICY_INPUT_BYTES_MAX));
        assert_eq!(
            (&step["fault"], &step["fuel"]),
            (&json!("input"), &Json::Null),
            "no call, no cost"
        );
    }

    #[test]
    fn the_trace_tells_the_steps_in_their_order() {
        let config = json!({
            "enabled": true, "off": "off", "fallthrough": {"variant": "off"},
            "prerequisites": [{"flag": "b", "variants": ["on"]}],
            "rules": [
                {"id": "late", "active": {"from": "2030-01-01T00:00:00Z"}, "serve": {"variant": "on"}},
                {"id": "adult", "when": {"attr": "age", "op": "gte", "value": 18},
                 "serve": {"split": {"weights": {"on": 100_000}}}},
            ],
        });
        let rules = || ruleset(vec![flag("a", config.clone()), flag("b", needs(&[]))]);
        let (variant, reason, trace) =
            answer(rules(), "a", json!({"age": 20, "targetingKey": "u"}));
        assert_eq!((variant.as_str(), reason), ("on", "SPLIT"));
        let steps = serde_json::to_value(&trace.steps).unwrap();
        let names: Vec<&str> =
            steps.as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
        let wanted =
            ["prerequisite", "rule", "inactive", "ruleEnd", "rule", "clause", "split", "ruleEnd"];
        assert_eq!(names, wanted);
        assert_eq!(steps[5]["actual"], json!(20));
        assert_eq!(steps[5]["expected"], json!([18]));
        assert_eq!(steps[6]["unit"], json!("u"));
        let (_, reason, trace) = answer(rules(), "a", json!({"age": 20}));
        assert_eq!(reason, "TARGETING_KEY_MISSING");
        let Some(Step::RuleEnd { error: Some(error), .. }) = trace.steps.last() else { panic!() };
        assert!(error.contains("targetingKey"), "{error}");
    }
}
