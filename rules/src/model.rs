//! What an author writes: the native format, as JSON. Every vendor difference is data here, with
//! native defaults that are left out when written.
//!
//! Shapes only, parsed strictly (an unknown field is an error). What the shapes mean together is
//! checked in `compile.rs`, which is also where errors get their JSON pointers.

#[cfg(feature = "full")]
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
#[cfg(feature = "full")]
use serde_json::Value;

use crate::wire::read_words;

/// The declared type of a flag. It decides how a number is written: `3` or `3.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlagType {
    Boolean,
    String,
    Integer,
    Float,
    Object,
}

/// How long a flag is meant to stay. Nothing is answered differently for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// For a release, an experiment, a migration: until everybody has the same.
    #[default]
    Temporary,
    /// A kill switch, a permission, a limit.
    Permanent,
}

/// What a browser may have of a flag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clients {
    /// Not for clients: to a browser key the flag does not exist.
    #[default]
    None,
    /// Evaluated at the edge; the rules never leave it.
    Edge,
    /// The rules travel to the browser.
    Local,
}

/// A metadata value. OFREP allows nothing else.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "metadata is a boolean, a number or a string")]
pub enum Scalar {
    Bool(bool),
    Number(serde_json::Number),
    String(String),
}

#[cfg(feature = "full")]
pub type Metadata = IndexMap<String, Scalar>;

/// What a flag is in every environment of its namespace.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlagDefinition {
    pub key: String,
    #[serde(rename = "type")]
    pub kind: FlagType,
    /// In the author's order, which some formats give a meaning to.
    pub variants: IndexMap<String, Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub clients: Clients,
    /// Returned with every answer.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub metadata: Metadata,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who answers for it: a person's address, or a team's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub lifetime: Lifetime,
    /// The day by which a temporary flag is meant to be gone from code, `2027-01-31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_end: Option<String>,
    /// Put away: it is compiled into nothing, so that to every caller it does not exist. What it is
    /// and does is kept, and comes back with it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub archived: bool,
    /// What splits hash beside the unit; the flag's key unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
}

#[cfg(feature = "full")]
impl FlagDefinition {
    /// With everything else as it is when it is left out.
    pub fn new(key: String, kind: FlagType, variants: IndexMap<String, Value>) -> FlagDefinition {
        FlagDefinition {
            key,
            kind,
            variants,
            description: String::new(),
            clients: Clients::default(),
            metadata: Metadata::new(),
            tags: Vec::new(),
            owner: String::new(),
            lifetime: Lifetime::default(),
            expected_end: None,
            archived: false,
            salt: None,
        }
    }
}

/// What a flag does in one environment.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlagConfig {
    pub enabled: bool,
    /// The variant that a disabled flag serves; without it, the caller's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prerequisites: Vec<Prerequisite>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    pub fallthrough: Serve,
    /// Where the configuration came from, so that an export can give back the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Origin {
    /// `flagd`, later others.
    pub format: String,
    /// Metadata of this flag in this environment's document, laid over the definition's.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub metadata: Metadata,
}

/// A flag that must be on and serve one of `variants`; else this flag serves its off variant.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prerequisite {
    pub flag: String,
    pub variants: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_fail: OnFail,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFail {
    /// Of a flag: serve its off variant, reason DISABLED. Of a rule: go on to the next rule.
    #[default]
    Off,
    /// As `off`, but reason DEFAULT (LaunchDarkly's PREREQUISITE_FAILED).
    OffAsDefault,
    /// An error, GENERAL.
    Fail,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Every context, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Condition>,
    /// The rule is skipped outside of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Window>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prerequisites: Vec<Prerequisite>,
    /// Exactly one of `serve` and `policy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRef>,
    /// What happens when evaluating the rule fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_error: OnError,
    /// Overrides the reason of a match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RuleReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RuleReason {
    Static,
    Default,
    TargetingMatch,
    Split,
    Disabled,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnError {
    /// The evaluation fails with the rule's error code.
    #[default]
    Fail,
    /// Go on to the next rule.
    Skip,
}

/// RFC 3339 times; `from` is in, `to` is out, unless `inclusive`.
#[cfg(feature = "full")]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub inclusive: bool,
}

/// A wasm policy that is pinned in the environment. It names a variant, gives a value, or abstains:
/// then the next rule is asked.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRef {
    pub name: String,
    /// Handed to the policy as it is.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
    /// What the rule serves when the policy does not answer: it failed, ran out of its budget, or
    /// is not there. The next rule unless given.
    #[serde(default = "next", skip_serializing_if = "is_next")]
    pub fallback: Serve,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Serve {
    /// `{"variant": "on"}`
    Variant(String),
    /// `{"split": {…}}`
    Split(Box<Split>),
    /// `{"logic": {…}}`: a JSONLogic tree whose result names the variant; null goes on.
    Logic(LogicServe),
    /// `"codeDefault"`: no value; the caller uses its own default.
    CodeDefault,
    /// `"next"`: go on to the next rule (a split's arm that takes nobody).
    Next,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogicServe {
    pub tree: Value,
    /// Which flagd `fractional` the tree means.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fractional: Fractional,
}

/// The generations of flagd's `fractional` operator (INTEROP 2.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fractional {
    V1,
    #[default]
    V2,
    V3,
}

#[cfg(feature = "full")]
impl Fractional {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Fractional::V1 => "v1",
            Fractional::V2 => "v2",
            Fractional::V3 => "v3",
        }
    }
}

/// One attribute path or several, tried in order.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected an attribute's path or a list of them")]
pub enum Units {
    One(String),
    Many(Vec<String>),
}

/// A percentage rollout. Exactly one of `weights` (native) and `arms` (vendors').
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Split {
    /// The attribute that is hashed.
    #[serde(default = "targeting_key")]
    pub by: Units,
    /// Variant to weight, out of 100,000 in total.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub weights: IndexMap<String, u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<Arm>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub missing_unit: MissingUnit,
    #[serde(default, skip_serializing_if = "is_default")]
    pub unit_types: UnitTypes,
    /// How the unit becomes a number; native unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashSpec>,
    /// Seed of formats that have one (`{"seed": true}` in the hash's input).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Salt of this split; the flag's salt unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// Further hashes that must all fall into their ranges (Eppo's shards, GrowthBook's filters).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub all_of: Vec<Shard>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub past_end: PastEnd,
    /// Grows the split's reach over time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arm {
    pub serve: Serve,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Half-open ranges of the projected hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(f64, f64)>,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shard {
    pub hash: HashSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    pub ranges: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MissingUnit {
    /// TARGETING_KEY_MISSING.
    #[default]
    Error,
    /// The first bucket (LaunchDarkly).
    BucketZero,
    /// The rule does not match.
    Skip,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnitTypes {
    /// Strings, and integral numbers written without a fraction.
    #[default]
    StringOrInteger,
    String,
    /// Any scalar, written as JSON writes it.
    Any,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PastEnd {
    /// The rule does not match.
    #[default]
    Skip,
    /// The last arm takes them (LaunchDarkly).
    LastArm,
}

/// A share of the units reached, from `from` to `to` (both 0 to 100,000), linear from `start` to
/// `end`. Units beyond the share go on to the next rule. A unit once reached stays reached.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ramp {
    pub from: u32,
    pub to: u32,
    pub start: String,
    pub end: String,
    /// The share moves only at whole multiples of this after `start`; 0 is every millisecond.
    #[serde(default, skip_serializing_if = "is_default")]
    pub step_seconds: u32,
}

/// How a unit becomes a number. Every format's formula is one value of this (INTEROP 3.1).
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashSpec {
    pub input: Vec<HashPart>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub encode: Encode,
    pub algorithm: Algorithm,
    pub project: Project,
    #[serde(default, skip_serializing_if = "is_default")]
    pub arithmetic: Arithmetic,
    #[serde(default, skip_serializing_if = "is_default")]
    pub compare: Compare,
    #[serde(default, skip_serializing_if = "is_default")]
    pub bound: Bound,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashPart {
    Literal(String),
    FlagKey,
    Salt,
    Seed,
    Unit,
    SegmentKey,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encode {
    #[default]
    Utf8,
    /// UTF-16 code units, each as one step of the hash (GrowthBook's FNV).
    Utf16,
    /// Deterministic CBOR (RFC 8949 4.2.1) of the unit, or of `[flagKey, unit]`.
    Cbor,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    Murmur3 {
        seed: u32,
    },
    /// MurmurHash3 seeded with the MurmurHash3 (seed `seed`) of the salt (DevCycle).
    Murmur3SeededByHash {
        seed: u32,
    },
    Fnv1a32,
    /// FNV-1a of the decimal text of the FNV-1a (GrowthBook v2).
    Fnv1a32Twice,
    /// The first `digits` hexadecimal digits of SHA-1.
    Sha1Hex {
        digits: u8,
    },
    Md5Be32,
    Crc32,
    Xxh3,
    Sha256Be64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Project {
    /// `(hash · total) >> 32`, total being the sum of the weights.
    MulShift32,
    /// `hash % n + plus`; `n` 0 means the sum of the weights.
    Modulo { n: u64, plus: u64 },
    /// `hash % n / n`.
    ModuloFraction { n: u64 },
    /// `hash / divisor`, divided as `arithmetic` says.
    Divide { divisor: u64 },
    /// `|i32(hash)| / 2147483647 · 100` (flagd v1).
    AbsI32Percent,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    #[default]
    Int,
    F32,
    F64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compare {
    /// `hash < bound`
    #[default]
    Less,
    /// `hash <= bound`
    LessOrEqual,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    #[default]
    Exact,
    Truncate,
    Round,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    #[default]
    AsWritten,
    NameDescending,
}

/// A segment of one environment. `included` and `excluded` name id lists, which travel as blobs
/// of their own: `list_ref` below says how an evaluator asks for membership.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    pub key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The attribute that the id lists hold.
    #[serde(default = "targeting_key_path", skip_serializing_if = "is_targeting_key")]
    pub by: String,
    /// A context that any of these matches is in the segment (unless excluded).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Condition>,
}

/// `value` is one value or an array of them; which, is the operator's business.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ConditionDoc", into = "ConditionDoc")]
pub enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Clause(Clause),
    /// In any of these segments.
    Segment(Vec<String>),
    Logic(Value),
    Cel(String),
    Always(bool),
}

#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq)]
pub struct Clause {
    pub attr: String,
    pub op: Op,
    pub negate: bool,
    pub values: Vec<Value>,
    pub policy: ClausePolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Equal to any of the values (`eq` with several is `in`).
    Eq,
    In,
    StartsWith,
    EndsWith,
    Contains,
    Matches,
    Lt,
    Lte,
    Gt,
    Gte,
    Before,
    After,
    SemverEq,
    SemverLt,
    SemverLte,
    SemverGt,
    SemverGte,
    /// npm-like ranges: `>=1.2.0, <2`, `^1.2`, `~1.2.3`.
    SemverRange,
    Cidr,
    Exists,
    IsNull,
    /// The attribute's JSON type is one of the values.
    TypeIs,
    /// The array's length is the value.
    Size,
}

/// How a clause treats what is not there or not of its type. Left-out fields are native.
#[cfg(feature = "full")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClausePolicy {
    #[serde(skip_serializing_if = "is_default")]
    pub missing: Missing,
    #[serde(skip_serializing_if = "is_default")]
    pub negation: Negation,
    #[serde(skip_serializing_if = "is_default")]
    pub array: ArrayMode,
    #[serde(skip_serializing_if = "is_default")]
    pub coerce: Coerce,
    #[serde(skip_serializing_if = "is_default")]
    pub version: VersionRule,
    #[serde(skip_serializing_if = "is_default")]
    pub date: DateForm,
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_case: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub bad_arg: BadArg,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Missing {
    /// The clause is false; `negation` says whether that is negated.
    #[default]
    False,
    True,
    /// The attribute counts as null.
    AsNull,
    /// The attribute counts as the empty string.
    AsEmpty,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Negation {
    /// A missing attribute makes the clause false even if negated (LaunchDarkly; native).
    #[default]
    AfterPresent,
    /// The result is flipped whatever it came from (Unleash).
    AfterAll,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ArrayMode {
    /// Any element matches any value (native, LaunchDarkly).
    #[default]
    Any,
    /// Every element must match; an empty array does not.
    All,
    /// An array matches nothing.
    Scalar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Coerce {
    /// JSON types must be the same (3 and 3.0 are one number).
    #[default]
    Strict,
    /// Both sides as strings (Unleash, Flipt).
    String,
    /// JavaScript's `==` and numeric conversion (GrowthBook).
    Js,
    /// JSONLogic's loose rules.
    Loose,
    /// A string is parsed into what the operator needs; numbers and booleans become strings
    /// where it needs one (Eppo).
    ByOperator,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VersionRule {
    /// Semantic Versioning 2.0 precedence; missing parts are 0, a leading `v` is allowed
    /// (LaunchDarkly without the `v`; native).
    #[default]
    Loose,
    /// Three parts, precedence; anything else does not match (Unleash).
    Strict,
    /// Three parts, ordered with build metadata (Eppo: Rust's `semver::Version` `Ord`).
    StrictWithBuild,
    /// Go's x/mod/semver: `v` optional, `1` and `1.2` allowed, build ignored (flagd).
    GoMod,
    /// Parts padded to five digits and compared as text (GrowthBook).
    Padded,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DateForm {
    /// RFC 3339 text, or a number of milliseconds since the epoch.
    #[default]
    Both,
    Rfc3339,
    Millis,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BadArg {
    /// An attribute of the wrong type does not match.
    #[default]
    False,
    /// It is an error: the rule's `onError` decides.
    Error,
}

/// The JSON of a condition: exactly one form may be used.
#[cfg(feature = "full")]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConditionDoc {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<Condition>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<Condition>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<Condition>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<WrittenOp>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub negate: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub policy: ClausePolicy,
    /// One segment's key, or several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<Units>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub logic: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub always: Option<bool>,
}

/// An operator's name; any may be written `not_…`, which negates it. Read here and not with the
/// condition as a whole, so that an error has the name's own place.
#[cfg(feature = "full")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenOp {
    pub op: Op,
    pub negated: bool,
}

#[cfg(feature = "full")]
impl<'de> Deserialize<'de> for WrittenOp {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<WrittenOp, D::Error> {
        let written = String::deserialize(from)?;
        let (name, negated) = match written.strip_prefix("not_") {
            Some(name) => (name, true),
            None => (written.as_str(), false),
        };
        match Op::ALL.into_iter().find(|op| op.name() == name) {
            Some(op) => Ok(WrittenOp { op, negated }),
            None => {
                let known = Op::names();
                let message = format!("unknown operator {written:?}; known: {known}");
                Err(serde::de::Error::custom(message))
            }
        }
    }
}

#[cfg(feature = "full")]
impl Serialize for WrittenOp {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.negated {
            true => to.collect_str(&format_args!("not_{}", self.op.name())),
            false => to.serialize_str(self.op.name()),
        }
    }
}

/// `null` given is not the same as a field left out.
#[cfg(feature = "full")]
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

#[cfg(feature = "full")]
impl TryFrom<ConditionDoc> for Condition {
    type Error = String;

    fn try_from(doc: ConditionDoc) -> Result<Self, String> {
        let forms = [
            ("all", doc.all.is_some()),
            ("any", doc.any.is_some()),
            ("not", doc.not.is_some()),
            ("attr", doc.attr.is_some()),
            ("segment", doc.segment.is_some()),
            ("logic", doc.logic.is_some()),
            ("cel", doc.cel.is_some()),
            ("always", doc.always.is_some()),
        ];
        let used: Vec<&str> = forms.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        match used.as_slice() {
            [_] => {}
            [] => {
                return Err("a condition needs one of all, any, not, attr, segment, logic, cel, \
                            always"
                    .to_owned());
            }
            more => return Err(format!("a condition has one form, not {}", more.join(" and "))),
        }
        let clause_only = doc.op.is_some()
            || doc.value.is_some()
            || doc.negate
            || doc.policy != ClausePolicy::default();
        let Some(attr) = doc.attr else {
            if clause_only {
                return Err("op, value, negate and policy go with attr".to_owned());
            }
            return if let Some(all) = doc.all {
                Ok(Condition::All(all))
            } else if let Some(any) = doc.any {
                Ok(Condition::Any(any))
            } else if let Some(not) = doc.not {
                Ok(Condition::Not(not))
            } else if let Some(segment) = doc.segment {
                Ok(Condition::Segment(match segment {
                    Units::One(key) => vec![key],
                    Units::Many(keys) => keys,
                }))
            } else if let Some(logic) = doc.logic {
                Ok(Condition::Logic(logic))
            } else if let Some(cel) = doc.cel {
                Ok(Condition::Cel(cel))
            } else {
                Ok(Condition::Always(doc.always.unwrap_or(false)))
            };
        };
        let Some(WrittenOp { op, negated }) = doc.op else {
            return Err(format!("the condition on {attr:?} has no op"));
        };
        Ok(Condition::Clause(Clause {
            attr,
            op,
            negate: doc.negate != negated,
            values: match doc.value {
                None => Vec::new(),
                Some(Value::Array(values)) => values,
                Some(value) => vec![value],
            },
            policy: doc.policy,
        }))
    }
}

#[cfg(feature = "full")]
impl From<Condition> for ConditionDoc {
    fn from(condition: Condition) -> Self {
        let mut doc = ConditionDoc::default();
        match condition {
            Condition::All(all) => doc.all = Some(all),
            Condition::Any(any) => doc.any = Some(any),
            Condition::Not(not) => doc.not = Some(not),
            Condition::Segment(mut keys) => {
                doc.segment = Some(match (keys.len(), keys.pop()) {
                    (1, Some(key)) => Units::One(key),
                    (_, last) => {
                        keys.extend(last);
                        Units::Many(keys)
                    }
                });
            }
            Condition::Logic(logic) => doc.logic = Some(logic),
            Condition::Cel(cel) => doc.cel = Some(cel),
            Condition::Always(always) => doc.always = Some(always),
            Condition::Clause(mut clause) => {
                doc.attr = Some(clause.attr);
                doc.op = Some(WrittenOp { op: clause.op, negated: false });
                doc.negate = clause.negate;
                doc.policy = clause.policy;
                let one_scalar = match clause.values.as_slice() {
                    [value] => !value.is_array() && clause.op != Op::In,
                    _ => false,
                };
                doc.value = match (one_scalar, clause.values.is_empty()) {
                    (true, _) => clause.values.pop(),
                    (false, true) => None,
                    (false, false) => Some(Value::Array(clause.values)),
                };
            }
        }
        doc
    }
}

impl Op {
    pub const ALL: [Op; 23] = [
        Op::Eq,
        Op::In,
        Op::StartsWith,
        Op::EndsWith,
        Op::Contains,
        Op::Matches,
        Op::Lt,
        Op::Lte,
        Op::Gt,
        Op::Gte,
        Op::Before,
        Op::After,
        Op::SemverEq,
        Op::SemverLt,
        Op::SemverLte,
        Op::SemverGt,
        Op::SemverGte,
        Op::SemverRange,
        Op::Cidr,
        Op::Exists,
        Op::IsNull,
        Op::TypeIs,
        Op::Size,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Op::Eq => "eq",
            Op::In => "in",
            Op::StartsWith => "starts_with",
            Op::EndsWith => "ends_with",
            Op::Contains => "contains",
            Op::Matches => "matches",
            Op::Lt => "lt",
            Op::Lte => "lte",
            Op::Gt => "gt",
            Op::Gte => "gte",
            Op::Before => "before",
            Op::After => "after",
            Op::SemverEq => "semver_eq",
            Op::SemverLt => "semver_lt",
            Op::SemverLte => "semver_lte",
            Op::SemverGt => "semver_gt",
            Op::SemverGte => "semver_gte",
            Op::SemverRange => "semver_range",
            Op::Cidr => "cidr",
            Op::Exists => "exists",
            Op::IsNull => "is_null",
            Op::TypeIs => "type_is",
            Op::Size => "size",
        }
    }

    #[cfg(feature = "full")]
    pub fn names() -> String {
        Op::ALL.map(Op::name).join(", ")
    }
}

// In the order of their declarations: that is the wire form.
read_words! {
    FlagType { Boolean, String, Integer, Float, Object }
    Clients { None, Edge, Local }
    OnFail { Off, OffAsDefault, Fail }
    RuleReason { Static, Default, TargetingMatch, Split, Disabled }
    OnError { Fail, Skip }
    MissingUnit { Error, BucketZero, Skip }
    UnitTypes { StringOrInteger, String, Any }
    PastEnd { Skip, LastArm }
    Op { Eq, In, StartsWith, EndsWith, Contains, Matches, Lt, Lte, Gt, Gte, Before, After, SemverEq, SemverLt, SemverLte, SemverGt, SemverGte, SemverRange, Cidr, Exists, IsNull, TypeIs, Size }
    Missing { False, True, AsNull, AsEmpty }
    Negation { AfterPresent, AfterAll }
    ArrayMode { Any, All, Scalar }
    Coerce { Strict, String, Js, Loose, ByOperator }
    VersionRule { Loose, Strict, StrictWithBuild, GoMod, Padded }
    DateForm { Both, Rfc3339, Millis }
    BadArg { False, Error }
}

#[cfg(feature = "full")]
read_words! {
    Fractional { V1, V2, V3 }
    Encode { Utf8, Utf16, Cbor }
    Arithmetic { Int, F32, F64 }
    Compare { Less, LessOrEqual }
    Bound { Exact, Truncate, Round }
    Order { AsWritten, NameDescending }
}

#[cfg(feature = "full")]
crate::wire::read_variants! {
    Algorithm or Algorithm::Crc32 => {
        Murmur3 { seed },
        Murmur3SeededByHash { seed },
        Fnv1a32,
        Fnv1a32Twice,
        Sha1Hex { digits },
        Md5Be32,
        Crc32,
        Xxh3,
        Sha256Be64,
    }
    Project or Project::MulShift32 => {
        MulShift32,
        Modulo { n, plus },
        ModuloFraction { n },
        Divide { divisor },
        AbsI32Percent,
    }
}

/// The context attribute that identifies the subject.
pub const TARGETING_KEY: &str = "targetingKey";

#[cfg(feature = "full")]
fn targeting_key() -> Units {
    Units::One(TARGETING_KEY.to_owned())
}

#[cfg(feature = "full")]
fn targeting_key_path() -> String {
    TARGETING_KEY.to_owned()
}

#[cfg(feature = "full")]
fn is_targeting_key(path: &str) -> bool {
    path == TARGETING_KEY
}

#[cfg(feature = "full")]
fn next() -> Serve {
    Serve::Next
}

#[cfg(feature = "full")]
fn is_next(serve: &Serve) -> bool {
    *serve == Serve::Next
}

#[cfg(feature = "full")]
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
