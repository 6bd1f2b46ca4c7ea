//! The compiled form of an environment's rules: flat, typed arenas joined by indices.
//!
//! It is the wire form (postcard, in the order of the fields) and the run-time form at once, so
//! loading is one pass without a translation. `compile.rs` writes it, `eval.rs` reads it.
//! Changing a type here changes the format: raise `blob::FORMAT` and record a new sample.
//!
//! Invariants that `Ruleset::check` proves on load, so that evaluation cannot loop or miss:
//! every index is inside its arena; expressions and logic nodes point only at smaller indices;
//! flags are sorted by key and unique; prerequisites and segments form DAGs of bounded depth.
//! Evaluation still reads with `get` and answers GENERAL where an index misses.

mod check;
mod tier;

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::model::{
    Algorithm, ArrayMode, Bound, Compare, DateForm, Encode, FlagType, Fractional, MissingUnit,
    OnError, OnFail, Op, Order, PastEnd, Project, RuleReason, UnitTypes, VersionRule,
};
use crate::model::{Arithmetic, BadArg, Clients, Coerce, Missing, Negation};
#[cfg(not(feature = "full"))]
use crate::wire::read_nothing;
use crate::wire::{read_fields, read_variants, read_words};
pub use tier::Tier;

/// A slice of the text pool, in bytes; always whole UTF-8 characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Text {
    pub start: u32,
    pub len: u32,
}

/// A slice of an arena, in elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub len: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ruleset {
    /// Every string once.
    pub text: String,
    pub flags: Vec<Flag>,
    pub variants: Vec<Variant>,
    pub prerequisites: Vec<Prerequisite>,
    pub rules: Vec<Rule>,
    pub exprs: Vec<Expr>,
    /// Children of `Expr::All` and `Any` (exprs), of `Expr::Segments` (segments), of
    /// `Prerequisite` (variants of the flag it names).
    pub refs: Vec<u32>,
    pub clauses: Vec<Clause>,
    pub args: Vec<Arg>,
    pub attrs: Vec<Attr>,
    /// Path segments of attributes.
    pub attr_parts: Vec<Text>,
    pub serves: Vec<Serve>,
    pub splits: Vec<Split>,
    pub arms: Vec<Arm>,
    pub shards: Vec<Shard>,
    pub ranges: Vec<Range>,
    pub hashes: Vec<Hash>,
    pub hash_parts: Vec<HashPart>,
    pub ramps: Vec<Ramp>,
    pub logic: Vec<Logic>,
    /// Children of logic nodes.
    pub logic_refs: Vec<u32>,
    pub segments: Vec<Segment>,
    /// Id lists, by the order of `Segment::included` and `excluded`; the host holds them.
    pub list_count: u32,
    /// The flag set's metadata as a JSON object.
    pub metadata: Text,
    /// Since format 2, as all that follows: sequences at the end, which a ruleset of format 1 is
    /// read with as empty ones (`blob::Frame`).
    pub cel: Vec<Cel>,
    /// Children of CEL nodes.
    pub cel_refs: Vec<u32>,
    pub policies: Vec<Policy>,
    pub policy_calls: Vec<PolicyCall>,
}

/// Everything that an answer repeats is rendered at compile time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flag {
    pub key: Text,
    pub kind: FlagType,
    pub clients: Clients,
    pub enabled: bool,
    /// Reason STATIC where a flag has nothing to decide by (no rules, no prerequisites).
    pub is_static: bool,
    /// `{"key":"…"`
    pub json_head: Text,
    /// `,"metadata":{…}}`: the set's metadata, overlaid with the flag's. Ends every answer.
    pub json_tail: Text,
    pub variants: Span,
    /// A serve; what a disabled flag and a failed prerequisite answer.
    pub off: u32,
    pub prerequisites: Span,
    pub rules: Span,
    /// A serve.
    pub fallthrough: u32,
    pub salt: Text,
    /// Set when the compiler quarantined the flag: it answers GENERAL with this text.
    pub broken: Option<Text>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    pub key: Text,
    /// `,"value":…,"variant":"…"`
    pub json: Text,
    /// The value alone, as JSON.
    pub value: Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prerequisite {
    /// A flag; `NONE` where it does not exist (an import may say so: it then fails).
    pub flag: u32,
    /// Into `refs`: variants (absolute indices into `Ruleset::variants`) that satisfy it.
    pub variants: Span,
    pub on_fail: OnFail,
}

pub const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub id: Text,
    /// An expr; `NONE` matches every context.
    pub when: u32,
    /// Milliseconds since the epoch; `i64::MIN` and `MAX` where open.
    pub from_ms: i64,
    pub to_ms: i64,
    /// Whether `to_ms` itself is in.
    pub to_inclusive: bool,
    pub prerequisites: Span,
    pub serve: u32,
    pub on_error: OnError,
    pub reason: Option<RuleReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Expr {
    Const(bool),
    Not(u32),
    /// Spans of `refs`.
    All(Span),
    Any(Span),
    /// A clause.
    Clause(u32),
    /// A span of `refs`: in any of these segments.
    Segments(Span),
    /// A logic node: true if its result is truthy.
    Logic(u32),
    /// A CEL node: true if its result is; an error is false.
    Cel(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Clause {
    /// An attr.
    pub attr: u32,
    pub op: Op,
    pub negate: bool,
    pub missing: Missing,
    pub negation: Negation,
    pub array: ArrayMode,
    pub coerce: Coerce,
    pub version: VersionRule,
    pub date: DateForm,
    pub ignore_case: bool,
    pub bad_arg: BadArg,
    /// Into `args`. All of them `Arg::Str`, sorted by bytes and unique when `sorted`.
    pub args: Span,
    pub sorted: bool,
}

/// A value of a clause or a literal of a logic tree, parsed as its operator needs it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Arg {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Lower-cased already where the clause ignores case.
    Str(Text),
    /// Milliseconds since the epoch.
    Date(i64),
    /// The text of a version, known to parse under the clause's rule.
    Version(Text),
    /// A semver range, known to parse.
    VersionRange(Text),
    /// Network and prefix length; IPv4 is mapped into `::ffff:0:0/96`.
    Cidr {
        network: u128,
        prefix: u8,
    },
    /// Source of a regular expression, known to compile within its limits.
    Regex(Text),
    /// A JSON value that is no scalar: its canonical text.
    Json(Text),
}

/// An attribute of the context. `parts` are the dotted path's segments; a context that has the
/// whole dotted path as one literal top-level key is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Attr {
    pub path: Text,
    /// `context::key_hash(path)`.
    pub path_hash: u32,
    /// Into `attr_parts`.
    pub parts: Span,
    /// `context::key_hash(parts[0])`.
    pub first_hash: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Serve {
    /// An absolute index into `variants`.
    Variant(u32),
    Split(u32),
    /// A logic node whose result names a variant of the flag.
    Logic(u32),
    CodeDefault,
    Next,
    /// A policy call.
    Policy(u32),
}

impl Ruleset {
    /// The flag's own and its rules'.
    pub(crate) fn prerequisites_of(&self, flag: &Flag) -> impl Iterator<Item = &Prerequisite> {
        let of_rules = slice(&self.rules, flag.rules)
            .iter()
            .flat_map(|rule| slice(&self.prerequisites, rule.prerequisites));
        slice(&self.prerequisites, flag.prerequisites).iter().chain(of_rules)
    }

    /// Keys of the flags whose evaluation may call a policy, for their own rules or for a
    /// prerequisite's. Sorted by their place.
    #[cfg(feature = "full")]
    pub fn policy_callers(&self) -> Vec<&str> {
        let calls = |serve: u32| matches!(self.serves.get(serve as usize), Some(Serve::Policy(_)));
        let mut callers: Vec<bool> = self
            .flags
            .iter()
            .map(|flag| {
                let rules = slice(&self.rules, flag.rules).iter().map(|rule| rule.serve);
                rules.chain([flag.fallthrough, flag.off]).any(calls)
            })
            .collect();
        // Chains of prerequisites are short, and one turn follows all of them by a step.
        for _ in 0..self.flags.len() {
            let needs = |flag: &Flag| {
                self.prerequisites_of(flag)
                    .any(|needed| callers.get(needed.flag as usize).copied().unwrap_or(false))
            };
            let more: Vec<usize> = (0..)
                .zip(&self.flags)
                .filter(|(at, flag)| !callers.get(*at).copied().unwrap_or(true) && needs(flag))
                .map(|(at, _)| at)
                .collect();
            if more.is_empty() {
                break;
            }
            for at in more {
                if let Some(caller) = callers.get_mut(at) {
                    *caller = true;
                }
            }
        }
        let called = self.flags.iter().zip(callers).filter(|(_, calls)| *calls);
        called.map(|(flag, _)| self.str(flag.key)).collect()
    }
}

/// A wasm policy. The host holds the module, under this one's index in `Ruleset::policies`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub name: Text,
    /// The version's digest in hexadecimal digits, for traces.
    pub digest: Text,
    /// Into `refs`: the attrs that it gets, sorted by their parts, none under another.
    pub attrs: Span,
}

/// What one rule asks of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PolicyCall {
    pub policy: u32,
    /// JSON with sorted keys.
    pub params: Text,
    /// A serve that is no policy.
    pub fallback: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Into `refs`: attrs tried in order for the unit.
    pub units: Span,
    pub unit_types: UnitTypes,
    pub missing_unit: MissingUnit,
    /// A hash; `NONE` is the native one.
    pub hash: u32,
    pub salt: Text,
    pub seed: Text,
    pub arms: Span,
    /// The sum of integer weights.
    pub total: u32,
    pub shards: Span,
    pub past_end: PastEnd,
    /// A ramp or `NONE`.
    pub ramp: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// A serve.
    pub serve: u32,
    /// The sum of the weights up to and with this arm, for `hash < bound` walks on integers.
    pub bound: u32,
    /// The weight as written, for walks in floating point.
    pub weight: f64,
    /// Into `ranges`; if any arm has ranges, all walk by ranges.
    pub ranges: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub from: f64,
    pub to: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    pub hash: u32,
    pub salt: Text,
    pub ranges: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hash {
    /// Into `hash_parts`.
    pub input: Span,
    pub encode: Encode,
    pub algorithm: Algorithm,
    pub project: Project,
    pub arithmetic: Arithmetic,
    pub compare: Compare,
    pub bound: Bound,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashPart {
    Literal(Text),
    FlagKey,
    Salt,
    Seed,
    Unit,
    SegmentKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ramp {
    pub from: u32,
    pub to: u32,
    pub start_ms: i64,
    pub end_ms: i64,
    pub step_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Logic {
    Literal(Arg),
    /// A span of `logic_refs`.
    Array(Span),
    /// An object literal that is no operation: keys are literals; key, value, key, value …
    Object(Span),
    Call {
        op: LogicOp,
        /// A span of `logic_refs`.
        args: Span,
        /// What `fractional` means here.
        fractional: Fractional,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogicOp {
    Var,
    Missing,
    MissingSome,
    If,
    Eq,
    StrictEq,
    Ne,
    StrictNe,
    Not,
    Truthy,
    Or,
    And,
    Gt,
    Gte,
    Lt,
    Lte,
    Max,
    Min,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Map,
    Reduce,
    Filter,
    All,
    None,
    Some,
    Merge,
    In,
    Cat,
    Substr,
    Log,
    Fractional,
    SemVer,
    StartsWith,
    EndsWith,
}

/// What of a CEL condition no clause can say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Cel {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Str(Text),
    /// An attr's value; an error where it is missing or null.
    Attr(u32),
    /// Whether it is there, and not null.
    HasAttr(u32),
    /// Whether it is null; an error where it is missing.
    AttrIsNull(u32),
    Now,
    FlagKey,
    /// What the loop at this level, counted from the outermost, has at hand.
    Var(u32),
    /// A span of `cel_refs`, as all of these.
    List(Span),
    /// Key, value, key, value …
    Map(Span),
    Select {
        of: u32,
        field: Text,
    },
    /// Whether a map has the field.
    Has {
        of: u32,
        field: Text,
    },
    Matches {
        of: u32,
        pattern: Text,
    },
    Call {
        op: CelOp,
        args: Span,
    },
    Loop {
        kind: CelLoop,
        over: u32,
        /// Elements for which it is not true are left out; or `NONE`.
        filter: u32,
        body: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CelLoop {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CelOp {
    And,
    Or,
    Not,
    If,
    Eq,
    Ne,
    Lt,
    Lte,
    Gt,
    Gte,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Negate,
    Index,
    Size,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    UpperAscii,
    Trim,
    CharAt,
    IndexOf,
    LastIndexOf,
    Substring,
    Replace,
    Split,
    Join,
    ToInt,
    ToDouble,
    ToString,
    ToBool,
    ToTimestamp,
    ToDuration,
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub key: Text,
    /// An attr: what the id lists hold.
    pub by: u32,
    /// Lists of the host, or `NONE`.
    pub included: u32,
    pub excluded: u32,
    /// An expr, or `NONE` for lists only.
    pub when: u32,
}

// In the order of their declarations: that is the wire form, which serde writes.
read_fields! {
    Text { start, len }
    Span { start, len }
    Ruleset { text, flags, variants, prerequisites, rules, exprs, refs, clauses, args, attrs, attr_parts, serves, splits, arms, shards, ranges, hashes, hash_parts, ramps, logic, logic_refs, segments, list_count, metadata, cel, cel_refs, policies, policy_calls }
    Flag { key, kind, clients, enabled, is_static, json_head, json_tail, variants, off, prerequisites, rules, fallthrough, salt, broken }
    Variant { key, json, value }
    Prerequisite { flag, variants, on_fail }
    Rule { id, when, from_ms, to_ms, to_inclusive, prerequisites, serve, on_error, reason }
    Clause { attr, op, negate, missing, negation, array, coerce, version, date, ignore_case, bad_arg, args, sorted }
    Attr { path, path_hash, parts, first_hash }
    Split { units, unit_types, missing_unit, hash, salt, seed, arms, total, shards, past_end, ramp }
    Arm { serve, bound, weight, ranges }
    Range { from, to }
    Ramp { from, to, start_ms, end_ms, step_ms }
    Segment { key, by, included, excluded, when }
}
read_variants! {
    Expr or Expr::Const(false) => { Const(one), Not(one), All(one), Any(one), Clause(one), Segments(one), Logic(one), Cel(one), }
    Arg or Arg::Null => { Null, Bool(one), Int(one), Float(one), Str(one), Date(one), Version(one), VersionRange(one), Cidr { network, prefix }, Regex(one), Json(one), }
    Serve or Serve::Next => { Variant(one), Split(one), Logic(one), CodeDefault, Next, Policy(one), }
}
#[cfg(feature = "full")]
read_fields! {
    PolicyCall { policy, params, fallback }
    Policy { name, digest, attrs }
    Shard { hash, salt, ranges }
    Hash { input, encode, algorithm, project, arithmetic, compare, bound, order }
}
#[cfg(feature = "full")]
read_variants! {
    HashPart or HashPart::Unit => { Literal(one), FlagKey, Salt, Seed, Unit, SegmentKey, }
    Logic or Logic::Literal(Arg::Null) => { Literal(one), Array(one), Object(one), Call { op, args, fractional }, }
    Cel or Cel::Null => { Null, Bool(one), Int(one), Double(one), Str(one), Attr(one), HasAttr(one), AttrIsNull(one), Now, FlagKey, Var(one), List(one), Map(one), Select { of, field }, Has { of, field }, Matches { of, pattern }, Call { op, args }, Loop { kind, over, filter, body }, }
}
#[cfg(feature = "full")]
read_words! {
    LogicOp { Var, Missing, MissingSome, If, Eq, StrictEq, Ne, StrictNe, Not, Truthy, Or, And, Gt, Gte, Lt, Lte, Max, Min, Add, Subtract, Multiply, Divide, Remainder, Map, Reduce, Filter, All, None, Some, Merge, In, Cat, Substr, Log, Fractional, SemVer, StartsWith, EndsWith }
    CelLoop { All, Exists, ExistsOne, Map, Filter }
    CelOp { And, Or, Not, If, Eq, Ne, Lt, Lte, Gt, Gte, In, Add, Subtract, Multiply, Divide, Remainder, Negate, Index, Size, Contains, StartsWith, EndsWith, LowerAscii, UpperAscii, Trim, CharAt, IndexOf, LastIndexOf, Substring, Replace, Split, Join, ToInt, ToDouble, ToString, ToBool, ToTimestamp, ToDuration, FullYear, Month, Date, DayOfMonth, DayOfWeek, DayOfYear, Hours, Minutes, Seconds, Milliseconds }
}
#[cfg(not(feature = "full"))]
read_nothing! {
    PolicyCall = PolicyCall { policy: NONE, params: Text::default(), fallback: NONE };
    Policy = Policy { name: Text::default(), digest: Text::default(), attrs: Span::default() };
    Shard = Shard { hash: NONE, salt: Text::default(), ranges: Span::default() };
    Hash = Hash {
        input: Span::default(),
        encode: Encode::Utf8,
        algorithm: Algorithm::Crc32,
        project: Project::MulShift32,
        arithmetic: Arithmetic::Int,
        compare: Compare::Less,
        bound: Bound::Exact,
        order: Order::AsWritten,
    };
    HashPart = HashPart::Unit;
    Logic = Logic::Literal(Arg::Null);
    Cel = Cel::Null;
}

impl Ruleset {
    pub fn str(&self, text: Text) -> &str {
        let start = text.start as usize;
        start.checked_add(text.len as usize).and_then(|end| self.text.get(start..end)).unwrap_or("")
    }
}

/// The part of an arena that `span` names; empty where it names none.
pub fn slice<T>(arena: &[T], span: Span) -> &[T] {
    let start = span.start as usize;
    start.checked_add(span.len as usize).and_then(|end| arena.get(start..end)).unwrap_or(&[])
}
