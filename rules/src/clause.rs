//! One clause against one attribute: every operator under every policy (INTEROP 3.3).
//!
//! The order of decisions: an attribute that is missing, or null, is settled by `missing` and
//! `negation`; an array by `array`; what is left is one value against each of the clause's
//! values, any of which may match. Null counts as missing, because that is what SDKs send for
//! what they do not know, except where the clause names null: `is_null`, `type_is`, a value null.
//!
//! With native policies nothing here allocates, apart from folding the case of text that is not
//! ASCII. `exists` is `not missing` and asks no policy.

use alloc::borrow::{Cow, ToOwned as _};
use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::IpAddr;

use crate::FULL;
use crate::context::{Value, same_text};
use crate::date;
use crate::limits;
use crate::model::{ArrayMode, BadArg, Coerce, DateForm, Missing, Negation, Op, VersionRule};
use crate::ruleset::{Arg, Cel, Clause, NONE, Ruleset, Text, slice};
use crate::version;

/// What clauses need compiled, made once when a ruleset is loaded.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Of CEL's nodes.
    #[cfg(feature = "full")]
    pub(crate) patterns: Patterns,
    /// For each clause the index of its first value in `values`, or `NONE`.
    runs: Vec<u32>,
    values: Vec<Ready>,
}

/// Compiled patterns by their text; what does not compile is not here.
#[cfg(feature = "full")]
#[derive(Debug, Default)]
pub(crate) struct Patterns(std::collections::HashMap<Text, regex_lite::Regex>);

#[cfg(feature = "full")]
impl Patterns {
    fn new(rules: &Ruleset) -> Patterns {
        let mut patterns = Patterns::default();
        for node in &rules.cel {
            if let Cel::Matches { pattern, .. } = node
                && !patterns.0.contains_key(pattern)
                && let Ok(regex) = compile_regex(rules.str(*pattern), false)
            {
                patterns.0.insert(*pattern, regex);
            }
        }
        patterns
    }

    pub(crate) fn get(&self, pattern: Text) -> Option<&regex_lite::Regex> {
        self.0.get(&pattern)
    }
}

#[derive(Debug)]
enum Ready {
    /// The compiler promised better; the clause is an error, its neighbours are not.
    Invalid,
    #[cfg(feature = "full")]
    Regex(Box<regex_lite::Regex>),
    #[cfg(feature = "full")]
    Range(version::Range),
    /// Nearly every version is three small numbers: then nothing is parsed at evaluation but the
    /// attribute.
    Plain([u64; 3]),
    /// Any other version: its text is in the clause's value.
    Version,
    #[cfg(feature = "full")]
    Padded(String),
    #[cfg(feature = "full")]
    Json(Box<serde_json::Value>),
}

/// The clause cannot be decided; the rule's `on_error` says what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClauseError {
    /// `bad_arg` is `Error` and the attribute is not what the operator takes.
    WrongType,
    /// A pattern, range or value that this build cannot read.
    Unusable,
}

/// The orderings that satisfy an operator. Bits, not closures: one copy of each comparison.
#[derive(Clone, Copy)]
struct Wanted(u8);

impl Wanted {
    const EQUAL: Wanted = Wanted(2);
    const LESS: Wanted = Wanted(1);
    const LESS_OR_EQUAL: Wanted = Wanted(3);
    const GREATER: Wanted = Wanted(4);
    const GREATER_OR_EQUAL: Wanted = Wanted(6);

    fn has(self, order: Ordering) -> bool {
        let bit = match order {
            Ordering::Less => Wanted::LESS.0,
            Ordering::Equal => Wanted::EQUAL.0,
            Ordering::Greater => Wanted::GREATER.0,
        };
        self.0 & bit != 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Test {
    Yes,
    No,
    WrongType,
}

impl From<bool> for Test {
    fn from(yes: bool) -> Test {
        if yes { Test::Yes } else { Test::No }
    }
}

/// As every side of a case-insensitive comparison is folded, by the compiler and here.
pub fn fold_case(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    #[cfg(feature = "full")]
    return Cow::Owned(text.to_lowercase());
    #[cfg(not(feature = "full"))]
    Cow::Owned(fold_for_ascii(text))
}

/// As `str::to_lowercase`, as far as values in ASCII can tell: the core has no others where case is
/// ignored (`Tier`), and Unicode's tables would be 11 kB of its 24. Of all characters beyond ASCII
/// only these two become or begin with one in it; what else the others become is beyond it too.
#[cfg(any(test, not(feature = "full")))]
fn fold_for_ascii(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{212a}' => folded.push('k'),
            '\u{130}' => folded.push_str("i\u{307}"),
            other => folded.push(other.to_ascii_lowercase()),
        }
    }
    folded
}

/// The one way in which patterns are compiled, for the compiler's check and the evaluator.
#[cfg(feature = "full")]
pub fn compile_regex(source: &str, ignore_case: bool) -> Result<regex_lite::Regex, String> {
    if source.len() > limits::REGEX_SOURCE_BYTES_MAX {
        return Err(format!(
            "the pattern is {} bytes long, the limit is {}",
            source.len(),
            limits::REGEX_SOURCE_BYTES_MAX
        ));
    }
    regex_lite::RegexBuilder::new(source)
        .case_insensitive(ignore_case)
        .size_limit(limits::REGEX_COMPILED_BYTES_MAX)
        .nest_limit(limits::REGEX_NESTING_MAX)
        .build()
        .map_err(|error| error.to_string())
}

fn ready_version(text: &str, rule: VersionRule) -> Ready {
    match (rule, version::parse_plain(text, rule)) {
        #[cfg(feature = "full")]
        (VersionRule::Padded, _) => Ready::Padded(version::padded(text)),
        (_, Some(numbers)) => Ready::Plain(numbers),
        (_, None) if version::parse(text, rule).is_some() => Ready::Version,
        (_, None) => Ready::Invalid,
    }
}

impl Prepared {
    pub(crate) fn new(rules: &Ruleset) -> Prepared {
        let mut prepared = Prepared {
            #[cfg(feature = "full")]
            patterns: Patterns::new(rules),
            ..Prepared::default()
        };
        prepared.runs.reserve(rules.clauses.len());
        // Patterns are shared text, and whole rulesets repeat a few: compile each once.
        #[cfg(feature = "full")]
        let mut seen = std::collections::HashMap::<(Text, bool), regex_lite::Regex>::new();
        for clause in &rules.clauses {
            let args = slice(&rules.args, clause.args);
            let needs = |arg: &Arg| {
                matches!(arg, Arg::Regex(_) | Arg::VersionRange(_) | Arg::Json(_) | Arg::Version(_))
            };
            if !args.iter().any(needs) {
                prepared.runs.push(NONE);
                continue;
            }
            prepared.runs.push(prepared.values.len() as u32);
            prepared.values.extend(args.iter().map(|arg| {
                match arg {
                    #[cfg(feature = "full")]
                    Arg::Regex(source) => match seen.get(&(*source, clause.ignore_case)) {
                        Some(regex) => Some(Ready::Regex(Box::new(regex.clone()))),
                        None => compile_regex(rules.str(*source), clause.ignore_case).ok().map(
                            |regex| {
                                seen.insert((*source, clause.ignore_case), regex.clone());
                                Ready::Regex(Box::new(regex))
                            },
                        ),
                    },
                    #[cfg(feature = "full")]
                    Arg::VersionRange(text) => {
                        version::parse_range(rules.str(*text)).map(Ready::Range)
                    }
                    Arg::Version(text) => Some(ready_version(rules.str(*text), clause.version)),
                    #[cfg(feature = "full")]
                    Arg::Json(text) => serde_json::from_str(rules.str(*text))
                        .ok()
                        .map(|json| Ready::Json(Box::new(json))),
                    _ => None,
                }
                .unwrap_or(Ready::Invalid)
            }));
        }
        prepared
    }

    fn get(&self, clause: u32, arg: usize) -> &Ready {
        let first = self.runs.get(clause as usize).copied().unwrap_or(NONE) as usize;
        self.values.get(first.saturating_add(arg)).unwrap_or(&Ready::Invalid)
    }
}

/// Whether `clause`, the one at `index`, holds for `value`, which the context has or has not.
#[inline]
pub(crate) fn holds(
    rules: &Ruleset,
    prepared: &Prepared,
    index: u32,
    clause: &Clause,
    value: Option<&Value<'_>>,
) -> Result<bool, ClauseError> {
    let test = Tester { rules, prepared, index, clause, args: slice(&rules.args, clause.args) };
    let plain = clause.coerce == Coerce::Strict && !clause.ignore_case;
    let yes = match (value, clause.op) {
        (None | Some(Value::Null), _) => return test.missing(value.is_some()),
        // The clauses of every day, first: text against text under native policies.
        (Some(Value::Str(text)), Op::Eq | Op::In) if plain => test.equals_text(text),
        (Some(Value::Str(text)), Op::StartsWith) if plain => {
            test.texts().any(|arg| text.starts_with(arg))
        }
        (Some(Value::Str(text)), Op::EndsWith) if plain => {
            test.texts().any(|arg| text.ends_with(arg))
        }
        (Some(Value::Array(items)), op) if !takes_arrays(op) => test.array(value, *items)?,
        (Some(value), _) => test.decide(value)?,
    };
    Ok(yes != clause.negate)
}

fn takes_arrays(op: Op) -> bool {
    matches!(op, Op::Exists | Op::IsNull | Op::TypeIs | Op::Size)
}

struct Tester<'a> {
    rules: &'a Ruleset,
    prepared: &'a Prepared,
    index: u32,
    clause: &'a Clause,
    args: &'a [Arg],
}

impl Tester<'_> {
    #[inline(never)]
    fn missing(&self, is_null: bool) -> Result<bool, ClauseError> {
        let clause = self.clause;
        let named = match clause.op {
            Op::Exists => return Ok(clause.negate),
            Op::IsNull | Op::TypeIs => is_null,
            Op::Eq | Op::In => is_null && self.args.contains(&Arg::Null),
            _ => false,
        };
        let value = match clause.missing {
            _ if named => Value::Null,
            Missing::False | Missing::True => {
                let base = clause.missing == Missing::True;
                let flip = clause.negate && clause.negation == Negation::AfterAll;
                return Ok(base != flip);
            }
            Missing::AsNull => Value::Null,
            Missing::AsEmpty => Value::Str(""),
        };
        Ok(self.decide(&value)? != clause.negate)
    }

    fn array(
        &self,
        whole: Option<&Value<'_>>,
        items: crate::context::Items<'_>,
    ) -> Result<bool, ClauseError> {
        if let (Op::Eq | Op::In, Some(whole)) = (self.clause.op, whole)
            && self.test(whole)? == Test::Yes
        {
            return Ok(true);
        }
        match self.clause.array {
            ArrayMode::Any => {
                for item in items.iter() {
                    if self.decide(&item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            ArrayMode::All => {
                for item in items.iter() {
                    if !self.decide(&item)? {
                        return Ok(false);
                    }
                }
                Ok(!items.is_empty())
            }
            ArrayMode::Scalar => self.settle(Test::WrongType),
        }
    }

    #[inline]
    fn decide(&self, value: &Value<'_>) -> Result<bool, ClauseError> {
        let test = self.test(value)?;
        self.settle(test)
    }

    #[inline]
    fn settle(&self, test: Test) -> Result<bool, ClauseError> {
        match test {
            Test::Yes => Ok(true),
            Test::WrongType if self.clause.bad_arg == BadArg::Error => Err(ClauseError::WrongType),
            Test::No | Test::WrongType => Ok(false),
        }
    }

    fn test(&self, value: &Value<'_>) -> Result<Test, ClauseError> {
        let clause = self.clause;
        Ok(match clause.op {
            Op::Eq | Op::In => return self.equals(value),
            Op::StartsWith => self.text(value, |text, arg| text.starts_with(arg)),
            Op::EndsWith => self.text(value, |text, arg| text.ends_with(arg)),
            Op::Contains => self.text(value, |text, arg| text.contains(arg)),
            #[cfg(feature = "full")]
            Op::Matches => return self.matches(value),
            Op::Lt => self.order(value, Wanted::LESS),
            Op::Lte => self.order(value, Wanted::LESS_OR_EQUAL),
            Op::Gt => self.order(value, Wanted::GREATER),
            Op::Gte => self.order(value, Wanted::GREATER_OR_EQUAL),
            Op::Before => self.date(value, Wanted::LESS),
            Op::After => self.date(value, Wanted::GREATER),
            Op::SemverEq => return self.version(value, Wanted::EQUAL),
            Op::SemverLt => return self.version(value, Wanted::LESS),
            Op::SemverLte => return self.version(value, Wanted::LESS_OR_EQUAL),
            Op::SemverGt => return self.version(value, Wanted::GREATER),
            Op::SemverGte => return self.version(value, Wanted::GREATER_OR_EQUAL),
            #[cfg(feature = "full")]
            Op::SemverRange => return self.range(value),
            #[cfg(feature = "full")]
            Op::Cidr => self.cidr(value),
            #[cfg(not(feature = "full"))]
            Op::Matches | Op::SemverRange | Op::Cidr => return Err(ClauseError::Unusable),
            // A value that is missing or null does not come here for this operator, unless
            // `missing` made something of it.
            Op::Exists => Test::from(*value != Value::Null),
            Op::IsNull => Test::from(*value == Value::Null),
            Op::TypeIs => self.type_is(value),
            Op::Size => self.size(value),
        })
    }

    fn texts(&self) -> impl Iterator<Item = &str> + '_ {
        self.args.iter().filter_map(|arg| match arg {
            Arg::Str(text) => Some(self.rules.str(*text)),
            _ => None,
        })
    }

    #[inline]
    fn equals_text(&self, text: &str) -> bool {
        if self.clause.sorted && self.args.len() > 8 {
            let rules = self.rules;
            let order = |arg: &Arg| match arg {
                Arg::Str(arg) => rules.str(*arg).cmp(text),
                _ => Ordering::Less,
            };
            return self.args.binary_search_by(order).is_ok();
        }
        self.texts().any(|arg| same_text(arg, text))
    }

    /// The value's text, as the clause's coercion allows, in the clause's case.
    fn text_of<'v>(&self, value: &Value<'v>) -> Option<Cow<'v, str>> {
        let text = match (*value, self.clause.coerce) {
            (Value::Str(text), _) => Cow::Borrowed(text),
            (_, Coerce::Strict) => return None,
            _ if !FULL => return None,
            (Value::Null, Coerce::Js) => Cow::Borrowed("null"),
            (Value::Bool(true), _) => Cow::Borrowed("true"),
            (Value::Bool(false), _) => Cow::Borrowed("false"),
            (Value::Int(number), _) => Cow::Owned(number.to_string()),
            #[cfg(feature = "full")]
            (Value::Float(number), _) => Cow::Owned(number_text(number)),
            #[cfg(not(feature = "full"))]
            (Value::Float(_), _) => return None,
            (Value::Null | Value::Array(_) | Value::Object(_), _) => return None,
        };
        Some(if !self.clause.ignore_case {
            text
        } else {
            match text {
                Cow::Borrowed(text) => fold_case(text),
                Cow::Owned(text) => Cow::Owned(fold_case(&text).into_owned()),
            }
        })
    }

    fn arg_text(&self, arg: &Arg) -> Option<Cow<'_, str>> {
        match arg {
            Arg::Str(text) => Some(Cow::Borrowed(self.rules.str(*text))),
            _ if !FULL => None,
            Arg::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
            Arg::Int(number) => Some(Cow::Owned(number.to_string())),
            #[cfg(feature = "full")]
            Arg::Float(number) => Some(Cow::Owned(number_text(*number))),
            _ => None,
        }
    }

    fn equals(&self, value: &Value<'_>) -> Result<Test, ClauseError> {
        let texts_only = matches!(
            self.clause.coerce,
            Coerce::Strict | Coerce::String | Coerce::ByOperator | Coerce::Js
        );
        if self.clause.sorted && texts_only {
            return Ok(self.text_of(value).is_some_and(|text| self.equals_text(&text)).into());
        }
        for (place, arg) in self.args.iter().enumerate() {
            if self.equals_arg(value, place, arg)? {
                return Ok(Test::Yes);
            }
        }
        Ok(Test::No)
    }

    fn equals_arg(&self, value: &Value<'_>, place: usize, arg: &Arg) -> Result<bool, ClauseError> {
        if let Arg::Json(_) = arg {
            #[cfg(feature = "full")]
            if let Ready::Json(json) = self.prepared.get(self.index, place) {
                return Ok(equals_json(value, json));
            }
            return Err(ClauseError::Unusable);
        }
        let texts = || match (self.text_of(value), self.arg_text(arg)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        let coerce = if FULL { self.clause.coerce } else { Coerce::Strict };
        Ok(match (coerce, arg) {
            (Coerce::String, Arg::Null) | (Coerce::Js, Arg::Null) => *value == Value::Null,
            (Coerce::String, _) => texts(),
            (Coerce::ByOperator, Arg::Str(_) | Arg::Bool(_)) => texts(),
            (Coerce::ByOperator, Arg::Int(_) | Arg::Float(_)) => self.numbers_equal(value, arg),
            (Coerce::Js, Arg::Str(_)) => texts(),
            (Coerce::Js, Arg::Int(_) | Arg::Float(_)) => self.numbers_equal(value, arg),
            (Coerce::Js, Arg::Bool(wanted)) => *value != Value::Null && truthy(value) == *wanted,
            (Coerce::Loose, Arg::Null) => *value == Value::Null,
            (Coerce::Loose, _) => match (*value, arg) {
                (Value::Null, _) => false,
                (Value::Str(_), Arg::Str(_)) => texts(),
                _ => self.numbers_equal(value, arg),
            },
            (_, arg) => match (*value, arg) {
                (Value::Null, Arg::Null) => true,
                (Value::Bool(a), Arg::Bool(b)) => a == *b,
                (Value::Str(_), Arg::Str(_)) => texts(),
                (Value::Int(_) | Value::Float(_), Arg::Int(_) | Arg::Float(_)) => {
                    self.numbers_equal(value, arg)
                }
                _ => false,
            },
        })
    }

    fn numbers_equal(&self, value: &Value<'_>, arg: &Arg) -> bool {
        let coerce = self.clause.coerce;
        match (number_of(value, coerce), number_of(&self.arg_value(arg), coerce)) {
            (Some(a), Some(b)) => a.compare(b) == Some(Ordering::Equal),
            _ => false,
        }
    }

    fn arg_value(&self, arg: &Arg) -> Value<'_> {
        match arg {
            Arg::Bool(value) => Value::Bool(*value),
            Arg::Int(number) | Arg::Date(number) => Value::Int(*number),
            Arg::Float(number) => Value::Float(*number),
            Arg::Str(text) => Value::Str(self.rules.str(*text)),
            _ => Value::Null,
        }
    }

    fn text(&self, value: &Value<'_>, test: impl Fn(&str, &str) -> bool) -> Test {
        match self.text_of(value) {
            Some(text) => self.args.iter().any(|arg| match arg {
                Arg::Str(arg) => test(&text, self.rules.str(*arg)),
                arg => self.arg_text(arg).is_some_and(|arg| test(&text, &arg)),
            }),
            None => return Test::WrongType,
        }
        .into()
    }

    #[cfg(feature = "full")]
    fn matches(&self, value: &Value<'_>) -> Result<Test, ClauseError> {
        // Not folded: the pattern itself ignores case.
        let text = match *value {
            Value::Str(text) => Cow::Borrowed(text),
            _ => match self.text_of(value) {
                Some(text) => text,
                None => return Ok(Test::WrongType),
            },
        };
        if text.len() > limits::REGEX_HAYSTACK_BYTES_MAX {
            return Ok(Test::No);
        }
        for place in 0..self.args.len() {
            match self.prepared.get(self.index, place) {
                Ready::Regex(regex) if regex.is_match(&text) => return Ok(Test::Yes),
                Ready::Regex(_) => {}
                _ => return Err(ClauseError::Unusable),
            }
        }
        Ok(Test::No)
    }

    fn order(&self, value: &Value<'_>, wanted: Wanted) -> Test {
        let coerce = self.clause.coerce;
        if let (Value::Str(text), Coerce::Js | Coerce::Loose) = (*value, coerce)
            && FULL
            && self.args.iter().all(|arg| matches!(arg, Arg::Str(_)))
        {
            // JavaScript compares UTF-16 code units, and has characters beyond U+FFFF come first.
            let order = |arg: &str| text.encode_utf16().cmp(arg.encode_utf16());
            return self.texts().any(|arg| wanted.has(order(arg))).into();
        }
        let Some(number) = number_of(value, coerce) else { return Test::WrongType };
        let args = self.args.iter();
        let mut args = args.filter_map(|arg| number_of(&self.arg_value(arg), coerce));
        args.any(|arg| number.compare(arg).is_some_and(|order| wanted.has(order))).into()
    }

    fn date(&self, value: &Value<'_>, wanted: Wanted) -> Test {
        let clause = self.clause;
        let found = match (*value, clause.date) {
            (Value::Str(text), DateForm::Both | DateForm::Rfc3339)
                if let Some(date) = date::parse_rfc3339(text) =>
            {
                Some(date)
            }
            (Value::Str(text), DateForm::Both | DateForm::Millis)
                if FULL && clause.coerce != Coerce::Strict =>
            {
                text.parse().ok()
            }
            (Value::Int(millis), DateForm::Both | DateForm::Millis) => Some(millis),
            // Saturates, which compares right.
            (Value::Float(millis), DateForm::Both | DateForm::Millis) => {
                (!millis.is_nan()).then_some(floor(millis))
            }
            _ => None,
        };
        let Some(found) = found else { return Test::WrongType };
        self.args
            .iter()
            .any(|arg| matches!(arg, Arg::Date(date) if wanted.has(found.cmp(date))))
            .into()
    }

    fn version_text<'v>(&self, value: &Value<'v>) -> Option<Cow<'v, str>> {
        match (*value, self.clause.coerce) {
            (Value::Str(text), _) => Some(Cow::Borrowed(text)),
            (_, Coerce::Strict) => None,
            _ if !FULL => None,
            (Value::Int(number), _) => Some(Cow::Owned(number.to_string())),
            #[cfg(feature = "full")]
            (Value::Float(number), _) => Some(Cow::Owned(number_text(number))),
            _ => None,
        }
    }

    fn version(&self, value: &Value<'_>, wanted: Wanted) -> Result<Test, ClauseError> {
        let rule = self.clause.version;
        #[cfg(feature = "full")]
        if rule == VersionRule::Padded {
            // Whatever is no text compares as "0": there are no wrong versions here.
            let found = version::padded(&self.version_text(value).unwrap_or(Cow::Borrowed("0")));
            for place in 0..self.args.len() {
                match self.prepared.get(self.index, place) {
                    Ready::Padded(arg) if wanted.has(found.as_str().cmp(arg)) => {
                        return Ok(Test::Yes);
                    }
                    Ready::Padded(_) => {}
                    _ => return Err(ClauseError::Unusable),
                }
            }
            return Ok(Test::No);
        }
        let text = self.version_text(value);
        let Some(text) = text.as_deref() else { return Ok(Test::WrongType) };
        if let Some(found) = version::parse_plain(text, rule) {
            let first = self.prepared.get(self.index, 0);
            if let (Ready::Plain(arg), [_]) = (first, self.args) {
                return Ok(wanted.has(found.cmp(arg)).into());
            }
        }
        let Some(found) = version::parse(text, rule) else { return Ok(Test::WrongType) };
        for arg in self.args {
            let Arg::Version(text) = arg else { continue };
            let Some(arg) = version::parse(self.rules.str(*text), rule) else {
                return Err(ClauseError::Unusable);
            };
            if wanted.has(version::compare(&found, &arg, rule)) {
                return Ok(Test::Yes);
            }
        }
        Ok(Test::No)
    }

    #[cfg(feature = "full")]
    fn range(&self, value: &Value<'_>) -> Result<Test, ClauseError> {
        let text = self.version_text(value);
        let parse = |text| version::parse(text, self.clause.version);
        let Some(found) = text.as_deref().and_then(parse) else { return Ok(Test::WrongType) };
        for place in 0..self.args.len() {
            match self.prepared.get(self.index, place) {
                Ready::Range(range) if version::in_range(&found, range) => return Ok(Test::Yes),
                Ready::Range(_) => {}
                _ => return Err(ClauseError::Unusable),
            }
        }
        Ok(Test::No)
    }

    #[cfg(feature = "full")]
    fn cidr(&self, value: &Value<'_>) -> Test {
        let Value::Str(text) = value else { return Test::WrongType };
        let Some(address) = parse_ip(text) else { return Test::WrongType };
        self.args
            .iter()
            .any(|arg| match arg {
                Arg::Cidr { network, prefix } => in_network(address, *network, *prefix),
                _ => false,
            })
            .into()
    }

    fn type_is(&self, value: &Value<'_>) -> Test {
        let integral = match *value {
            Value::Int(_) => true,
            Value::Float(number) => is_whole(number),
            _ => false,
        };
        let name = value.type_name();
        self.texts().any(|wanted| wanted == name || (integral && wanted == "integer")).into()
    }

    fn size(&self, value: &Value<'_>) -> Test {
        let Value::Array(items) = value else { return Test::WrongType };
        let len = Number::Int(i64::try_from(items.len()).unwrap_or(i64::MAX));
        let mut args = self.args.iter().filter_map(|arg| match arg {
            Arg::Int(_) | Arg::Float(_) => number_of(&self.arg_value(arg), Coerce::Strict),
            _ => None,
        });
        args.any(|arg| len.compare(arg) == Some(Ordering::Equal)).into()
    }
}

/// As `f64::floor`, of which only `std` knows, and then `as i64`, which saturates.
fn floor(number: f64) -> i64 {
    let whole = number as i64;
    if whole as f64 > number { whole.saturating_sub(1) } else { whole }
}

/// Whether nothing stands behind the point; floats beyond an `i64` have no room for it.
fn is_whole(number: f64) -> bool {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    number as i64 as f64 == number || (number.is_finite() && number.abs() >= TWO_TO_63)
}

/// An address as 128 bits; IPv4 in `::ffff:0:0/96`, so that both ways to write one are equal.
pub fn parse_ip(text: &str) -> Option<u128> {
    Some(match text.parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    })
}

fn in_network(address: u128, network: u128, prefix: u8) -> bool {
    let Some(host_bits) = 128u32.checked_sub(u32::from(prefix)) else { return false };
    (address ^ network).checked_shr(host_bits).unwrap_or(0) == 0
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    /// Exact also where an integer has no `f64`.
    fn compare(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
            (Number::Int(a), Number::Float(b)) => compare_mixed(a, b),
            (Number::Float(a), Number::Int(b)) => compare_mixed(b, a).map(Ordering::reverse),
        }
    }
}

pub(crate) fn compare_mixed(a: i64, b: f64) -> Option<Ordering> {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    if b.is_nan() {
        return None;
    }
    if b >= TWO_TO_63 {
        return Some(Ordering::Less);
    }
    if b < -TWO_TO_63 {
        return Some(Ordering::Greater);
    }
    // Cut off towards zero.
    let whole = b as i64;
    Some(a.cmp(&whole).then((whole as f64).partial_cmp(&b)?))
}

fn number_of(value: &Value<'_>, coerce: Coerce) -> Option<Number> {
    match (*value, coerce) {
        (Value::Int(number), _) => Some(Number::Int(number)),
        (Value::Float(number), _) => Some(Number::Float(number)),
        (_, Coerce::Strict) => None,
        _ if !FULL => None,
        (Value::Str(text), Coerce::String | Coerce::ByOperator) => parse_number(text),
        (Value::Str(text), Coerce::Js | Coerce::Loose) => js_number(text),
        (Value::Null, Coerce::Js | Coerce::Loose) => Some(Number::Int(0)),
        (Value::Bool(value), Coerce::Js | Coerce::Loose) => Some(Number::Int(i64::from(value))),
        _ => None,
    }
}

fn parse_number(text: &str) -> Option<Number> {
    if let Ok(number) = text.parse() {
        return Some(Number::Int(number));
    }
    text.parse().ok().filter(|number: &f64| number.is_finite()).map(Number::Float)
}

/// JavaScript's `Number(text)`; what is NaN there is no number here, and equals nothing either.
fn js_number(text: &str) -> Option<Number> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Number::Int(0));
    }
    let radix = match text.get(..2) {
        Some("0x" | "0X") => 16,
        Some("0o" | "0O") => 8,
        Some("0b" | "0B") => 2,
        _ => 10,
    };
    if radix != 10 {
        let digits = text.get(2..).filter(|digits| !digits.starts_with(['+', '-']))?;
        return i64::from_str_radix(digits, radix).ok().map(Number::Int);
    }
    match text {
        "Infinity" | "+Infinity" => Some(Number::Float(f64::INFINITY)),
        "-Infinity" => Some(Number::Float(f64::NEG_INFINITY)),
        // Rust reads `inf` and `nan` in any case, which JavaScript does not.
        text if text
            .bytes()
            .any(|byte| byte.is_ascii_alphabetic() && !matches!(byte, b'e' | b'E')) =>
        {
            None
        }
        text => parse_number(text).or_else(|| text.parse().ok().map(Number::Float)),
    }
}

/// A number as JavaScript's `String(number)` writes it; `3` for 3.0.
#[cfg(feature = "full")]
fn number_text(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() }
    } else if size == 0.0 {
        "0".to_owned()
    } else if (1e-6..1e21).contains(&size) {
        number.to_string()
    } else {
        let text = format!("{number:e}");
        if size < 1.0 { text } else { text.replace('e', "e+") }
    }
}

fn truthy(value: &Value<'_>) -> bool {
    match *value {
        Value::Null => false,
        Value::Bool(value) => value,
        Value::Int(number) => number != 0,
        Value::Float(number) => number != 0.0 && !number.is_nan(),
        Value::Str(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// Deep equality; 3 and 3.0 are one number, objects have no order.
#[cfg(feature = "full")]
fn equals_json(value: &Value<'_>, json: &serde_json::Value) -> bool {
    fn equal(value: &Value<'_>, json: &serde_json::Value, depth: usize) -> bool {
        use serde_json::Value as Json;
        let deeper = depth.saturating_add(1);
        if depth > limits::NESTING_MAX {
            return false;
        }
        match (*value, json) {
            (Value::Null, Json::Null) => true,
            (Value::Bool(a), Json::Bool(b)) => a == *b,
            (Value::Str(a), Json::String(b)) => a == b,
            (Value::Int(_) | Value::Float(_), Json::Number(number)) => {
                let number = match number.as_i64() {
                    Some(number) => Some(Number::Int(number)),
                    None => number.as_f64().map(Number::Float),
                };
                let value = number_of(value, Coerce::Strict);
                match (value, number) {
                    (Some(a), Some(b)) => a.compare(b) == Some(Ordering::Equal),
                    _ => false,
                }
            }
            (Value::Array(a), Json::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(&a, b, deeper))
            }
            (Value::Object(a), Json::Object(b)) => {
                a.len() == b.len()
                    && a.entries().all(|(key, a)| b.get(key).is_some_and(|b| equal(&a, b, deeper)))
            }
            _ => false,
        }
    }
    equal(value, json, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::context::ContextBuf;
    use crate::model::ClausePolicy;

    /// A ruleset of one clause, by hand: these tests are of the evaluator, not of the compiler.
    fn ruleset(
        op: Op,
        negate: bool,
        values: &[serde_json::Value],
        policy: ClausePolicy,
    ) -> Ruleset {
        let mut rules = Ruleset::default();
        let store = |rules: &mut Ruleset, text: &str| {
            let start = rules.text.len() as u32;
            rules.text.push_str(text);
            Text { start, len: text.len() as u32 }
        };
        for value in values {
            let text = value.as_str().unwrap_or("").to_owned();
            let arg = match (op, value) {
                (Op::Before | Op::After, value) => Arg::Date(match value.as_i64() {
                    Some(millis) => millis,
                    None => date::parse_rfc3339(&text).unwrap(),
                }),
                (Op::SemverRange, _) => Arg::VersionRange(store(&mut rules, &text)),
                (Op::SemverEq | Op::SemverLt | Op::SemverLte | Op::SemverGt | Op::SemverGte, _) => {
                    Arg::Version(store(&mut rules, &text))
                }
                (Op::Matches, _) => Arg::Regex(store(&mut rules, &text)),
                (Op::Cidr, _) => {
                    let (network, prefix) = text.split_once('/').unwrap();
                    let more = if network.contains(':') { 0 } else { 96 };
                    Arg::Cidr {
                        network: parse_ip(network).unwrap(),
                        prefix: prefix.parse::<u8>().unwrap() + more,
                    }
                }
                (_, serde_json::Value::Null) => Arg::Null,
                (_, serde_json::Value::Bool(value)) => Arg::Bool(*value),
                (_, serde_json::Value::Number(number)) => match number.as_i64() {
                    Some(number) => Arg::Int(number),
                    None => Arg::Float(number.as_f64().unwrap()),
                },
                (_, serde_json::Value::String(text)) if policy.ignore_case => {
                    Arg::Str(store(&mut rules, &fold_case(text)))
                }
                (_, serde_json::Value::String(text)) => Arg::Str(store(&mut rules, text)),
                (_, json) => Arg::Json(store(&mut rules, &json.to_string())),
            };
            rules.args.push(arg);
        }
        let all_text = rules.args.iter().all(|arg| matches!(arg, Arg::Str(_)));
        let sorted = matches!(op, Op::Eq | Op::In) && all_text && !rules.args.is_empty();
        if sorted {
            let mut args = std::mem::take(&mut rules.args);
            args.sort_by_key(|arg| match arg {
                Arg::Str(text) => rules.str(*text).to_owned(),
                _ => String::new(),
            });
            rules.args = args;
        }
        rules.clauses.push(Clause {
            attr: 0,
            op,
            negate,
            missing: policy.missing,
            negation: policy.negation,
            array: policy.array,
            coerce: policy.coerce,
            version: policy.version,
            date: policy.date,
            ignore_case: policy.ignore_case,
            bad_arg: policy.bad_arg,
            args: crate::ruleset::Span { start: 0, len: values.len() as u32 },
            sorted,
        });
        rules
    }

    fn decide(
        op: &str,
        values: serde_json::Value,
        policy: serde_json::Value,
        attribute: Option<serde_json::Value>,
    ) -> Result<bool, ClauseError> {
        let (name, negate) = match op.strip_prefix("not_") {
            Some(name) => (name, true),
            None => (op, false),
        };
        let op: Op = serde_json::from_value(json!(name)).unwrap();
        let values = match values {
            serde_json::Value::Array(values) => values,
            value => vec![value],
        };
        let rules = ruleset(op, negate, &values, serde_json::from_value(policy).unwrap());
        let prepared = Prepared::new(&rules);
        let context = match attribute {
            Some(attribute) => json!({ "x": attribute }).to_string(),
            None => "{}".to_owned(),
        };
        let context = ContextBuf::from_json(context.as_bytes()).unwrap();
        holds(&rules, &prepared, 0, &rules.clauses[0], context.view().root().get("x").as_ref())
    }

    /// `yes` and `no`: attributes that the clause holds for, and does not. Each of them is tried
    /// negated too, which must give the opposite.
    #[track_caller]
    fn check(
        op: &str,
        values: serde_json::Value,
        policy: serde_json::Value,
        yes: serde_json::Value,
        no: serde_json::Value,
    ) {
        for (wanted, attributes) in [(true, yes), (false, no)] {
            for attribute in attributes.as_array().unwrap() {
                let found = decide(op, values.clone(), policy.clone(), Some(attribute.clone()));
                assert_eq!(found, Ok(wanted), "{op} {values} {policy} for {attribute}");
                let negated = format!("not_{op}");
                let found =
                    decide(&negated, values.clone(), policy.clone(), Some(attribute.clone()));
                assert_eq!(found, Ok(!wanted), "{negated} {values} {policy} for {attribute}");
            }
        }
    }

    /// Values that no operator of the list takes, but for those that look at types.
    const EVERY_OP: [(&str, &str); 19] = [
        ("eq", r#"["a"]"#),
        ("in", r#"["a", "b"]"#),
        ("starts_with", r#"["a"]"#),
        ("ends_with", r#"["a"]"#),
        ("contains", r#"["a"]"#),
        ("matches", r#"["^a"]"#),
        ("lt", "[5]"),
        ("lte", "[5]"),
        ("gt", "[5]"),
        ("gte", "[5]"),
        ("before", r#"["2026-01-01T00:00:00Z"]"#),
        ("after", r#"["2026-01-01T00:00:00Z"]"#),
        ("semver_eq", r#"["1.0.0"]"#),
        ("semver_lt", r#"["1.0.0"]"#),
        ("semver_lte", r#"["1.0.0"]"#),
        ("semver_gt", r#"["1.0.0"]"#),
        ("semver_gte", r#"["1.0.0"]"#),
        ("semver_range", r#"["^1"]"#),
        ("cidr", r#"["10.0.0.0/8"]"#),
    ];

    fn every_op() -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        EVERY_OP.iter().map(|(op, values)| (*op, serde_json::from_str(values).unwrap()))
    }

    #[test]
    fn a_missing_attribute_is_false_even_negated_unless_the_policy_says_otherwise() {
        for (op, values) in every_op().chain([("size", json!([2])), ("type_is", json!(["null"]))]) {
            let not = format!("not_{op}");
            let found = |op: &str, policy| decide(op, values.clone(), policy, None);
            assert_eq!(found(op, json!({})), Ok(false), "{op}");
            assert_eq!(found(&not, json!({})), Ok(false), "{not}");
            assert_eq!(found(&not, json!({"negation": "afterAll"})), Ok(true), "{not}");
            assert_eq!(found(op, json!({"missing": "true"})), Ok(true), "{op}");
            assert_eq!(found(&not, json!({"missing": "true"})), Ok(true), "{not}");
            let both = json!({"missing": "true", "negation": "afterAll"});
            assert_eq!(found(&not, both), Ok(false), "{not}");
        }
    }

    #[test]
    fn null_is_missing_to_every_operator_that_does_not_name_it() {
        for (op, values) in every_op() {
            let not = format!("not_{op}");
            assert_eq!(decide(op, values.clone(), json!({}), Some(json!(null))), Ok(false), "{op}");
            assert_eq!(decide(&not, values, json!({}), Some(json!(null))), Ok(false), "{not}");
        }
        check("eq", json!([null]), json!({}), json!([null]), json!(["", 0, false]));
        check("is_null", json!([]), json!({}), json!([null]), json!(["", 0, [null]]));
        check("exists", json!([]), json!({}), json!(["", 0, false, [], {}]), json!([null]));
        assert_eq!(decide("exists", json!([]), json!({}), None), Ok(false));
        assert_eq!(decide("not_exists", json!([]), json!({}), None), Ok(true));
        assert_eq!(decide("is_null", json!([]), json!({}), None), Ok(false));
        assert_eq!(decide("is_null", json!([]), json!({"missing": "asNull"}), None), Ok(true));
    }

    #[test]
    fn a_value_of_the_wrong_type_does_not_match_or_is_an_error() {
        for (op, values) in every_op() {
            for wrong in [json!(true), json!({"a": 1})] {
                let found = decide(op, values.clone(), json!({}), Some(wrong.clone()));
                assert_eq!(found, Ok(false), "{op} for {wrong}");
                let policy = json!({"badArg": "error"});
                let found = decide(op, values.clone(), policy, Some(wrong.clone()));
                if matches!(op, "eq" | "in") {
                    assert_eq!(found, Ok(false), "{op} for {wrong}: nothing is wrong to compare");
                } else {
                    assert!(matches!(found, Err(ClauseError::WrongType)), "{op} for {wrong}");
                }
            }
        }
    }

    #[test]
    fn arrays_match_by_any_all_or_no_element() {
        for (op, values, good, bad) in [
            ("eq", json!("a"), json!("a"), json!("b")),
            ("in", json!(["a", 3]), json!(3), json!("3")),
            ("contains", json!("b"), json!("abc"), json!("x")),
            ("matches", json!("^a"), json!("ab"), json!("ba")),
            ("lt", json!(5), json!(4.5), json!(5)),
            ("after", json!(0), json!(1), json!("1969-01-01T00:00:00Z")),
            ("semver_range", json!("~1.2"), json!("1.2.9"), json!("1.3")),
            ("cidr", json!("10.0.0.0/8"), json!("10.1.1.1"), json!("::1")),
        ] {
            let any = (json!([[good, bad], [good]]), json!([[bad], []]));
            check(op, values.clone(), json!({}), any.0, any.1);
            let all = (json!([[good, good], good]), json!([[good, bad], [bad], [], bad]));
            check(op, values.clone(), json!({"array": "all"}), all.0, all.1);
            let scalar = (json!([good]), json!([[good], [], bad]));
            check(op, values.clone(), json!({"array": "scalar"}), scalar.0, scalar.1);
        }
        check("size", json!([0, 2]), json!({}), json!([[], [1, 2]]), json!([[1], "ab", {}]));
    }

    #[test]
    fn equality_keeps_types_apart_unless_coerced() {
        check("eq", json!(3), json!({}), json!([3, 3.0]), json!(["3", 3.5, true]));
        check(
            "eq",
            json!(9007199254740993i64),
            json!({}),
            json!([9007199254740993i64]),
            json!([9007199254740992i64, 9007199254740992.0]),
        );
        check(
            "eq",
            json!([[1, {"a": 2.0, "b": 1}]]),
            json!({}),
            json!([[1, {"b": 1, "a": 2}]]),
            json!([[1], [1, {"a": 2}], 1]),
        );
        check(
            "eq",
            json!("3"),
            json!({"coerce": "string"}),
            json!([3, "3", 3.0]),
            json!([4, true]),
        );
        check("eq", json!(3), json!({"coerce": "string"}), json!([3, "3"]), json!(["3.0", "x"]));
        check(
            "eq",
            json!(3),
            json!({"coerce": "byOperator"}),
            json!([3, "3", "3.0"]),
            json!(["x", true]),
        );
        check(
            "eq",
            json!("true"),
            json!({"coerce": "byOperator"}),
            json!([true, "true"]),
            json!([1, false]),
        );
        check(
            "eq",
            json!(1),
            json!({"coerce": "js", "missing": "asNull"}),
            json!([1, "1", " 1 ", true, "0x1", "1e0"]),
            json!(["", "one", 2, null, "inf"]),
        );
        check(
            "eq",
            json!(0),
            json!({"coerce": "js", "missing": "asNull"}),
            json!([0, "", null, false]),
            json!(["x", 1]),
        );
        check(
            "eq",
            json!(true),
            json!({"coerce": "js", "missing": "asNull"}),
            json!([true, 1, "x"]),
            json!([false, 0, "", null]),
        );
        check(
            "eq",
            json!("1e+21"),
            json!({"coerce": "js", "missing": "asNull"}),
            json!([1e21]),
            json!([1e20]),
        );
        check(
            "eq",
            json!("null"),
            json!({"coerce": "js", "missing": "asNull"}),
            json!([null, "null"]),
            json!(["", 0]),
        );
        check(
            "eq",
            json!(1),
            json!({"coerce": "loose", "missing": "asNull"}),
            json!([1, "1", true]),
            json!([null, "x"]),
        );
        check(
            "eq",
            json!(null),
            json!({"coerce": "loose", "missing": "asNull"}),
            json!([null]),
            json!([0, "", false]),
        );
    }

    #[test]
    fn long_lists_are_searched_by_halves_and_find_the_same() {
        let ids: Vec<String> = (0..1000).map(|id| format!("id-{id}")).collect();
        check(
            "in",
            json!(ids),
            json!({}),
            json!(["id-0", "id-999", ["x", "id-5"]]),
            json!(["id-", "id-1000", 5]),
        );
        check("in", json!(ids), json!({"ignoreCase": true}), json!(["ID-7"]), json!(["ID-"]));
    }

    #[test]
    fn case_is_folded_on_both_sides_beyond_ascii() {
        let policy = json!({"ignoreCase": true});
        check(
            "eq",
            json!("Stra\u{df}e"),
            policy.clone(),
            json!(["STRA\u{df}E"]),
            json!(["strasse"]),
        );
        check("starts_with", json!("AB"), policy.clone(), json!(["abc", "aBc"]), json!(["bab"]));
        check("contains", json!("\u{c4}"), policy.clone(), json!(["b\u{e4}r"]), json!(["bar"]));
        check("matches", json!("^AB+$"), policy, json!(["abb"]), json!(["abc"]));
    }

    #[test]
    fn beyond_ascii_only_two_characters_fold_into_it() {
        let into: Vec<char> = ('\u{80}'..=char::MAX)
            .filter(|character| character.to_lowercase().any(|lower| lower.is_ascii()))
            .collect();
        assert_eq!(into, ['\u{130}', '\u{212a}']);
    }

    #[test]
    fn numbers_compare_exactly_and_text_only_where_it_may() {
        check("lt", json!(5), json!({}), json!([4, 4.999, -1e300]), json!([5, 5.0, "4", 1e300]));
        check(
            "gte",
            json!(9007199254740993i64),
            json!({}),
            json!([9007199254740993i64, 9007199254740994.0]),
            json!([9007199254740992.0]),
        );
        check(
            "lt",
            json!(10),
            json!({"coerce": "string"}),
            json!(["9", "-1.5"]),
            json!(["11", "nine", "", "nan", "inf"]),
        );
        check(
            "lt",
            json!(10),
            json!({"coerce": "js", "missing": "asNull"}),
            json!(["9", "", null, true]),
            json!(["11", "nine", "Infinity"]),
        );
        check(
            "lt",
            json!("b"),
            json!({"coerce": "js", "missing": "asNull"}),
            json!(["a", "B"]),
            json!(["b", "c"]),
        );
        // U+10000 is two surrogates, which come before U+FF61 in UTF-16 and after it in UTF-8.
        check(
            "lt",
            json!("\u{ff61}"),
            json!({"coerce": "js", "missing": "asNull"}),
            json!(["\u{10000}"]),
            json!(["\u{ff62}"]),
        );
    }

    #[test]
    fn dates_are_text_or_milliseconds_as_the_policy_says() {
        let noon = json!("2026-01-01T12:00:00Z");
        check(
            "before",
            noon.clone(),
            json!({}),
            json!(["2026-01-01T12:00:00+01:00", 0, 1.5]),
            json!(["2026-01-01T12:00:00Z", "soon", "2026-01-01", 1e300]),
        );
        check(
            "after",
            noon.clone(),
            json!({"date": "rfc3339"}),
            json!(["2026-01-01T12:00:00.001Z"]),
            json!([1e300, 1867268800000i64]),
        );
        check(
            "after",
            noon,
            json!({"date": "millis", "coerce": "string"}),
            json!(["1867268800000", 1e300]),
            json!(["2027-01-01T12:00:00Z", "0"]),
        );
    }

    #[test]
    fn versions_compare_as_their_format_compares_them() {
        check(
            "semver_gte",
            json!("2.3.0"),
            json!({}),
            json!(["2.3", "v2.10.0", "3", "2.3.0+b"]),
            json!(["2.3.0-rc.1", "2.2.9", "two", "1.2.3.4", 3, "2.03.0"]),
        );
        check(
            "semver_gte",
            json!("2.3.0"),
            json!({"version": "strict"}),
            json!(["2.3.0", "2.10.0"]),
            json!(["2.4", "v2.4.0"]),
        );
        check(
            "semver_lt",
            json!("2.3.0+b"),
            json!({"version": "strictWithBuild"}),
            json!(["2.3.0", "2.3.0+a"]),
            json!(["2.3.0+b", "2.3.0+c"]),
        );
        check(
            "semver_eq",
            json!("1.2.0"),
            json!({"version": "goMod"}),
            json!(["v1.2", "1.2.0+x"]),
            json!(["1", "1.2-rc", "1.x"]),
        );
        check(
            "semver_lt",
            json!("1.10.0"),
            json!({"version": "padded"}),
            json!(["1.9.0", "1.10.0-rc.1", "v1.9"]),
            json!(["1.10.0", "1.11.0"]),
        );
        check(
            "semver_eq",
            json!("3.0.0"),
            json!({"coerce": "string"}),
            json!([3, "3"]),
            json!([3.1]),
        );
        check(
            "semver_range",
            json!(">=1.2.0, <2"),
            json!({}),
            json!(["1.2.0", "1.99", "v1.3.0"]),
            json!(["2.0.0", "1.1.9", "1.5.0-rc.1"]),
        );
        check("semver_range", json!("1.2.3"), json!({}), json!(["1.2.3"]), json!(["1.2.4"]));
        check("semver_range", json!(">= 1.2 < 2"), json!({}), json!(["1.2.0"]), json!(["2.0.0"]));
        check(
            "semver_gt",
            json!("1.0.0-alpha.1"),
            json!({}),
            json!([
                "1.0.0-alpha.2",
                "1.0.0-alpha.11",
                "1.0.0-alpha.beta",
                "1.0.0-beta",
                "1.0.0",
                "1.0.0-alpha.1.1"
            ]),
            json!(["1.0.0-alpha", "1.0.0-alpha.1"]),
        );
        check(
            "semver_gt",
            json!("99999999999999999999.0.0"),
            json!({}),
            json!(["100000000000000000000.0.0"]),
            json!(["1.0.0"]),
        );
        assert!(version::parse_range("1 || 2").is_none());
        assert!(version::parse_range(">").is_none());
        assert!(version::parse_range("").is_none());
    }

    #[test]
    fn networks_hold_addresses_of_both_families() {
        check(
            "cidr",
            json!(["10.0.0.0/8", "2001:db8::/32"]),
            json!({}),
            json!(["10.255.0.1", "::ffff:10.1.2.3", "2001:db8::5"]),
            json!(["11.0.0.1", "2001:db9::", "10", 10, "10.0.0.0/8"]),
        );
        check("cidr", json!("::/0"), json!({}), json!(["1.2.3.4", "::1"]), json!(["x"]));
        check("cidr", json!("1.2.3.4/32"), json!({}), json!(["1.2.3.4"]), json!(["1.2.3.5"]));
    }

    #[test]
    fn types_are_json_types_and_integral_numbers_are_integers_too() {
        check("type_is", json!(["integer"]), json!({}), json!([1, 1.0]), json!([1.5, "1"]));
        check(
            "type_is",
            json!(["number", "null"]),
            json!({}),
            json!([1, 1.5, null]),
            json!([true, []]),
        );
    }

    #[test]
    fn a_haystack_over_the_limit_does_not_match() {
        let long = |len: usize| json!(["a".repeat(len)]);
        let max = limits::REGEX_HAYSTACK_BYTES_MAX;
        check("matches", json!("^a+$"), json!({}), long(max), long(max + 1));
    }

    #[test]
    fn a_pattern_over_a_limit_is_refused_and_names_no_match_but_an_error() {
        assert!(compile_regex(&"a".repeat(limits::REGEX_SOURCE_BYTES_MAX), false).is_ok());
        assert!(compile_regex(&"a".repeat(limits::REGEX_SOURCE_BYTES_MAX + 1), false).is_err());
        assert!(compile_regex("(((a{100}){100}){100})", false).is_err());
        assert!(compile_regex(&format!("{}a{}", "(".repeat(60), ")".repeat(60)), false).is_err());
        assert_eq!(
            decide("matches", json!("("), json!({}), Some(json!("a"))),
            Err(ClauseError::Unusable)
        );
        assert_eq!(
            decide("semver_range", json!("x y z"), json!({}), Some(json!("1.0.0"))),
            Err(ClauseError::Unusable)
        );
    }

    #[test]
    fn a_hostile_pattern_takes_time_that_the_limits_bound() {
        // Backtracking engines take 2^n steps here; this one must not.
        let text = json!("a".repeat(limits::REGEX_HAYSTACK_BYTES_MAX - 1) + "!");
        assert_eq!(decide("matches", json!("^(a|a)*(a|aa)+$"), json!({}), Some(text)), Ok(false));
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|v| json!(v)),
            any::<i64>().prop_map(|v| json!(v)),
            any::<f64>().prop_map(|v| json!(v)),
            ".{0,12}".prop_map(|v| json!(v)),
            "[v0-9.+x*^~<>=-]{0,12}".prop_map(|v| json!(v)),
            "[0-9a-fTZ:.+-]{0,25}".prop_map(|v| json!(v)),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(|v| json!(v)),
                proptest::collection::hash_map(".{0,3}", inner, 0..4).prop_map(|v| json!(v)),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_attribute_makes_any_operator_panic(
            attribute in any_json(), op in 0..EVERY_OP.len(), coerce in 0..5usize, ignore_case: bool,
            version in 0..5usize, negate: bool,
        ) {
            let (op, values) = EVERY_OP[op];
            let policy = json!({
                "coerce": (["strict", "string", "js", "loose", "byOperator"][coerce]),
                "version": (["loose", "strict", "strictWithBuild", "goMod", "padded"][version]),
                "ignoreCase": ignore_case,
            });
            let op = if negate { format!("not_{op}") } else { op.to_owned() };
            let values = serde_json::from_str(values).unwrap();
            let found = decide(&op, values, policy, Some(attribute));
            // `strictWithBuild` and `strict` take "1.0.0", every version rule does.
            prop_assert!(found.is_ok());
        }

        #[test]
        fn the_quick_way_through_versions_orders_as_the_slow_one(
            a in "v?[0-9]{1,3}(\\.[0-9]{1,20}){0,3}(-[a-z0-9.]{1,4})?", b in "[0-9]{1,2}(\\.[0-9]{1,2}){0,2}",
        ) {
            for rule in [
                VersionRule::Loose, VersionRule::Strict, VersionRule::StrictWithBuild, VersionRule::GoMod,
            ] {
                let slow = (version::parse(&a, rule), version::parse(&b, rule));
                let quick = (version::parse_plain(&a, rule), version::parse_plain(&b, rule));
                prop_assert!(quick.0.is_none() || slow.0.is_some(), "{} {:?}", a, rule);
                prop_assert_eq!(quick.1.is_some(), slow.1.is_some(), "{} {:?}", b, rule);
                if let ((Some(x), Some(y)), (Some(p), Some(q))) = (slow, quick) {
                    prop_assert_eq!(version::compare(&x, &y, rule), p.cmp(&q));
                }
            }
        }

        #[test]
        fn values_in_ascii_cannot_tell_how_the_core_folds(
            text in "[aAkKiIsS\u{130}\u{212a}\u{3a3}\u{df}\u{307}\u{c4} ]{0,6}", any in ".{0,8}",
            value in "[akis ]{0,3}",
        ) {
            for text in [text, any] {
                let (full, core) = (text.to_lowercase(), fold_for_ascii(&text));
                prop_assert_eq!(full == value, core == value, "{:?}", text);
                prop_assert_eq!(full.starts_with(&value), core.starts_with(&value), "{:?}", text);
                prop_assert_eq!(full.ends_with(&value), core.ends_with(&value), "{:?}", text);
                prop_assert_eq!(full.contains(&value), core.contains(&value), "{:?}", text);
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}", near in "[v0-9.+x*^~<>=, -]{0,20}") {
            for text in [text.as_str(), near.as_str()] {
                let _ = (version::parse_range(text), date::parse_rfc3339(text), parse_ip(text));
                let _ = (version::padded(text), js_number(text), compile_regex(text, true).is_ok());
                for rule in [VersionRule::Loose, VersionRule::GoMod, VersionRule::StrictWithBuild] {
                    if let Some(version) = version::parse(text, rule) {
                        prop_assert!(version::compare(&version, &version, rule).is_eq());
                    }
                }
            }
        }
    }
}
