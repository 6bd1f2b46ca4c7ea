//! One clause against one attribute: every operator under every policy (INTEROP 3.3).
//!
//! The order of decisions: an attribute that is missing, or null, is settled by `missing` and
//! `negation`; an array by `array`; what is left is one value against each of the clause's
//! values, any of which may match. Null counts as missing, because that is what SDKs send for
//! what they do not know, except where the clause names null: `is_null`, `type_is`, a value null.
//!
//! With native policies nothing here allocates, apart from folding the case of text that is not
//! ASCII. `exists` is `not missing` and asks no policy.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;

use crate::context::Value;
use crate::date;
use crate::limits;
use crate::model::{ArrayMode, BadArg, Coerce, DateForm, Missing, Negation, Op, VersionRule};
use crate::ruleset::{Arg, Clause, NONE, Ruleset, Text, slice};
use crate::version;

/// What clauses need compiled, made once when a ruleset is loaded.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// For each clause the index of its first value in `values`, or `NONE`.
    runs: Vec<u32>,
    values: Vec<Ready>,
}

#[derive(Debug)]
enum Ready {
    /// The compiler promised better; the clause is an error, its neighbours are not.
    Invalid,
    Regex(regex_lite::Regex),
    Range(version::Range),
    Padded(String),
    Json(serde_json::Value),
}

/// The clause cannot be decided; the rule's `on_error` says what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClauseError {
    /// `bad_arg` is `Error` and the attribute is not what the operator takes.
    WrongType(&'static str),
    /// A pattern, range or value that this build cannot read.
    Unusable,
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
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.to_lowercase())
    }
}

/// The one way in which patterns are compiled, for the compiler's check and the evaluator.
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

impl Prepared {
    pub(crate) fn new(rules: &Ruleset) -> Prepared {
        let mut prepared = Prepared::default();
        prepared.runs.reserve(rules.clauses.len());
        // Patterns are shared text, and whole rulesets repeat a few: compile each once.
        let mut seen = std::collections::HashMap::<(Text, bool), regex_lite::Regex>::new();
        for clause in &rules.clauses {
            let args = slice(&rules.args, clause.args);
            let needs = |arg: &Arg| match arg {
                Arg::Regex(_) | Arg::VersionRange(_) | Arg::Json(_) => true,
                Arg::Version(_) => clause.version == VersionRule::Padded,
                _ => false,
            };
            if !args.iter().any(needs) {
                prepared.runs.push(NONE);
                continue;
            }
            prepared.runs.push(prepared.values.len() as u32);
            prepared.values.extend(args.iter().map(|arg| {
                match arg {
                    Arg::Regex(source) => match seen.get(&(*source, clause.ignore_case)) {
                        Some(regex) => Some(Ready::Regex(regex.clone())),
                        None => compile_regex(rules.str(*source), clause.ignore_case).ok().map(
                            |regex| {
                                seen.insert((*source, clause.ignore_case), regex.clone());
                                Ready::Regex(regex)
                            },
                        ),
                    },
                    Arg::VersionRange(text) => {
                        version::parse_range(rules.str(*text)).map(Ready::Range)
                    }
                    Arg::Version(text) => Some(Ready::Padded(version::padded(rules.str(*text)))),
                    Arg::Json(text) => serde_json::from_str(rules.str(*text)).ok().map(Ready::Json),
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
    value: Option<Value<'_>>,
) -> Result<bool, ClauseError> {
    let test = Tester { rules, prepared, index, clause, args: slice(&rules.args, clause.args) };
    let yes = match value {
        // The clause of every day, first: text against text.
        Some(Value::Str(text))
            if clause.coerce == Coerce::Strict
                && !clause.ignore_case
                && matches!(clause.op, Op::Eq | Op::In) =>
        {
            test.equals_text(text)
        }
        Some(Value::Null) | None => return test.missing(value.is_some()),
        Some(Value::Array(items)) if !test.takes_arrays() => test.array(value, items)?,
        Some(value) => test.decide(value)?,
    };
    Ok(yes != clause.negate)
}

struct Tester<'a> {
    rules: &'a Ruleset,
    prepared: &'a Prepared,
    index: u32,
    clause: &'a Clause,
    args: &'a [Arg],
}

impl Tester<'_> {
    fn takes_arrays(&self) -> bool {
        matches!(self.clause.op, Op::Exists | Op::IsNull | Op::TypeIs | Op::Size)
    }

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
        Ok(self.decide(value)? != clause.negate)
    }

    fn array(
        &self,
        whole: Option<Value<'_>>,
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
                    if self.decide(item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            ArrayMode::All => {
                for item in items.iter() {
                    if !self.decide(item)? {
                        return Ok(false);
                    }
                }
                Ok(!items.is_empty())
            }
            ArrayMode::Scalar => self.settle(Test::WrongType, "array"),
        }
    }

    #[inline]
    fn decide(&self, value: Value<'_>) -> Result<bool, ClauseError> {
        let test = self.test(value)?;
        self.settle(test, value.type_name())
    }

    #[inline]
    fn settle(&self, test: Test, found: &'static str) -> Result<bool, ClauseError> {
        match test {
            Test::Yes => Ok(true),
            Test::WrongType if self.clause.bad_arg == BadArg::Error => {
                Err(ClauseError::WrongType(found))
            }
            Test::No | Test::WrongType => Ok(false),
        }
    }

    fn test(&self, value: Value<'_>) -> Result<Test, ClauseError> {
        let clause = self.clause;
        Ok(match clause.op {
            Op::Eq | Op::In => return self.equals(value),
            Op::StartsWith => self.text(value, |text, arg| text.starts_with(arg)),
            Op::EndsWith => self.text(value, |text, arg| text.ends_with(arg)),
            Op::Contains => self.text(value, |text, arg| text.contains(arg)),
            Op::Matches => return self.matches(value),
            Op::Lt => self.order(value, Ordering::is_lt),
            Op::Lte => self.order(value, Ordering::is_le),
            Op::Gt => self.order(value, Ordering::is_gt),
            Op::Gte => self.order(value, Ordering::is_ge),
            Op::Before => self.date(value, Ordering::is_lt),
            Op::After => self.date(value, Ordering::is_gt),
            Op::SemverEq => return self.version(value, Ordering::is_eq),
            Op::SemverLt => return self.version(value, Ordering::is_lt),
            Op::SemverLte => return self.version(value, Ordering::is_le),
            Op::SemverGt => return self.version(value, Ordering::is_gt),
            Op::SemverGte => return self.version(value, Ordering::is_ge),
            Op::SemverRange => return self.range(value),
            Op::Cidr => self.cidr(value),
            // A value that is missing or null does not come here for this operator, unless
            // `missing` made something of it.
            Op::Exists => Test::from(value != Value::Null),
            Op::IsNull => Test::from(value == Value::Null),
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
        self.texts().any(|arg| arg == text)
    }

    /// The value's text, as the clause's coercion allows, in the clause's case.
    fn text_of<'v>(&self, value: Value<'v>) -> Option<Cow<'v, str>> {
        let text = match (value, self.clause.coerce) {
            (Value::Str(text), _) => Cow::Borrowed(text),
            (_, Coerce::Strict) => return None,
            (Value::Null, Coerce::Js) => Cow::Borrowed("null"),
            (Value::Bool(true), _) => Cow::Borrowed("true"),
            (Value::Bool(false), _) => Cow::Borrowed("false"),
            (Value::Int(number), _) => Cow::Owned(number.to_string()),
            (Value::Float(number), _) => Cow::Owned(number_text(number)),
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
            Arg::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
            Arg::Int(number) => Some(Cow::Owned(number.to_string())),
            Arg::Float(number) => Some(Cow::Owned(number_text(*number))),
            _ => None,
        }
    }

    fn equals(&self, value: Value<'_>) -> Result<Test, ClauseError> {
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

    fn equals_arg(&self, value: Value<'_>, place: usize, arg: &Arg) -> Result<bool, ClauseError> {
        if let Arg::Json(_) = arg {
            let Ready::Json(json) = self.prepared.get(self.index, place) else {
                return Err(ClauseError::Unusable);
            };
            return Ok(equals_json(value, json));
        }
        let texts = || match (self.text_of(value), self.arg_text(arg)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        Ok(match (self.clause.coerce, arg) {
            (Coerce::String, Arg::Null) | (Coerce::Js, Arg::Null) => value == Value::Null,
            (Coerce::String, _) => texts(),
            (Coerce::ByOperator, Arg::Str(_) | Arg::Bool(_)) => texts(),
            (Coerce::ByOperator, Arg::Int(_) | Arg::Float(_)) => self.numbers_equal(value, arg),
            (Coerce::Js, Arg::Str(_)) => texts(),
            (Coerce::Js, Arg::Int(_) | Arg::Float(_)) => self.numbers_equal(value, arg),
            (Coerce::Js, Arg::Bool(wanted)) => value != Value::Null && truthy(value) == *wanted,
            (Coerce::Loose, Arg::Null) => value == Value::Null,
            (Coerce::Loose, _) => match (value, arg) {
                (Value::Null, _) => false,
                (Value::Str(_), Arg::Str(_)) => texts(),
                _ => self.numbers_equal(value, arg),
            },
            (_, arg) => match (value, arg) {
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

    fn numbers_equal(&self, value: Value<'_>, arg: &Arg) -> bool {
        let coerce = self.clause.coerce;
        match (number_of(value, coerce), number_of(self.arg_value(arg), coerce)) {
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

    fn text(&self, value: Value<'_>, test: impl Fn(&str, &str) -> bool) -> Test {
        match self.text_of(value) {
            Some(text) => self.args.iter().any(|arg| match arg {
                Arg::Str(arg) => test(&text, self.rules.str(*arg)),
                arg => self.arg_text(arg).is_some_and(|arg| test(&text, &arg)),
            }),
            None => return Test::WrongType,
        }
        .into()
    }

    fn matches(&self, value: Value<'_>) -> Result<Test, ClauseError> {
        // Not folded: the pattern itself ignores case.
        let text = match value {
            Value::Str(text) => Cow::Borrowed(text),
            value => match self.text_of(value) {
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

    fn order(&self, value: Value<'_>, wanted: impl Fn(Ordering) -> bool) -> Test {
        let coerce = self.clause.coerce;
        if let (Value::Str(text), Coerce::Js | Coerce::Loose) = (value, coerce)
            && self.args.iter().all(|arg| matches!(arg, Arg::Str(_)))
        {
            // JavaScript compares UTF-16 code units, and has characters beyond U+FFFF come first.
            let order = |arg: &str| text.encode_utf16().cmp(arg.encode_utf16());
            return self.texts().any(|arg| wanted(order(arg))).into();
        }
        let Some(number) = number_of(value, coerce) else { return Test::WrongType };
        let args = self.args.iter();
        let mut args = args.filter_map(|arg| number_of(self.arg_value(arg), coerce));
        args.any(|arg| number.compare(arg).is_some_and(&wanted)).into()
    }

    fn date(&self, value: Value<'_>, wanted: impl Fn(Ordering) -> bool) -> Test {
        let clause = self.clause;
        let found = match (value, clause.date) {
            (Value::Str(text), DateForm::Both | DateForm::Rfc3339)
                if let Some(date) = date::parse_rfc3339(text) =>
            {
                Some(date)
            }
            (Value::Str(text), DateForm::Both | DateForm::Millis)
                if clause.coerce != Coerce::Strict =>
            {
                text.parse().ok()
            }
            (Value::Int(millis), DateForm::Both | DateForm::Millis) => Some(millis),
            // Saturates, which compares right.
            (Value::Float(millis), DateForm::Both | DateForm::Millis) => {
                (!millis.is_nan()).then_some(millis.floor() as i64)
            }
            _ => None,
        };
        let Some(found) = found else { return Test::WrongType };
        self.args.iter().any(|arg| matches!(arg, Arg::Date(date) if wanted(found.cmp(date)))).into()
    }

    fn version_text<'v>(&self, value: Value<'v>) -> Option<Cow<'v, str>> {
        match (value, self.clause.coerce) {
            (Value::Str(text), _) => Some(Cow::Borrowed(text)),
            (_, Coerce::Strict) => None,
            (Value::Int(number), _) => Some(Cow::Owned(number.to_string())),
            (Value::Float(number), _) => Some(Cow::Owned(number_text(number))),
            _ => None,
        }
    }

    fn version(
        &self,
        value: Value<'_>,
        wanted: impl Fn(Ordering) -> bool,
    ) -> Result<Test, ClauseError> {
        let rule = self.clause.version;
        if rule == VersionRule::Padded {
            // Whatever is no text compares as "0": there are no wrong versions here.
            let found = version::padded(&self.version_text(value).unwrap_or(Cow::Borrowed("0")));
            for place in 0..self.args.len() {
                match self.prepared.get(self.index, place) {
                    Ready::Padded(arg) if wanted(found.as_str().cmp(arg)) => return Ok(Test::Yes),
                    Ready::Padded(_) => {}
                    _ => return Err(ClauseError::Unusable),
                }
            }
            return Ok(Test::No);
        }
        let text = self.version_text(value);
        let Some(found) = text.as_deref().and_then(|text| version::parse(text, rule)) else {
            return Ok(Test::WrongType);
        };
        for arg in self.args {
            let Arg::Version(text) = arg else { continue };
            let Some(arg) = version::parse(self.rules.str(*text), rule) else {
                return Err(ClauseError::Unusable);
            };
            if wanted(version::compare(&found, &arg, rule)) {
                return Ok(Test::Yes);
            }
        }
        Ok(Test::No)
    }

    fn range(&self, value: Value<'_>) -> Result<Test, ClauseError> {
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

    fn cidr(&self, value: Value<'_>) -> Test {
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

    fn type_is(&self, value: Value<'_>) -> Test {
        let integral = match value {
            Value::Int(_) => true,
            Value::Float(number) => number.fract() == 0.0,
            _ => false,
        };
        let name = value.type_name();
        self.texts().any(|wanted| wanted == name || (integral && wanted == "integer")).into()
    }

    fn size(&self, value: Value<'_>) -> Test {
        let Value::Array(items) = value else { return Test::WrongType };
        let len = Number::Int(i64::try_from(items.len()).unwrap_or(i64::MAX));
        let mut args = self.args.iter().filter_map(|arg| match arg {
            Arg::Int(_) | Arg::Float(_) => number_of(self.arg_value(arg), Coerce::Strict),
            _ => None,
        });
        args.any(|arg| len.compare(arg) == Some(Ordering::Equal)).into()
    }
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

fn compare_mixed(a: i64, b: f64) -> Option<Ordering> {
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
    let whole = b.trunc();
    Some(a.cmp(&(whole as i64)).then(whole.total_cmp(&b)))
}

fn number_of(value: Value<'_>, coerce: Coerce) -> Option<Number> {
    match (value, coerce) {
        (Value::Int(number), _) => Some(Number::Int(number)),
        (Value::Float(number), _) => Some(Number::Float(number)),
        (_, Coerce::Strict) => None,
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

fn truthy(value: Value<'_>) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => value,
        Value::Int(number) => number != 0,
        Value::Float(number) => number != 0.0 && !number.is_nan(),
        Value::Str(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// Deep equality; 3 and 3.0 are one number, objects have no order.
fn equals_json(value: Value<'_>, json: &serde_json::Value) -> bool {
    fn equal(value: Value<'_>, json: &serde_json::Value, depth: usize) -> bool {
        use serde_json::Value as Json;
        let deeper = depth.saturating_add(1);
        if depth > limits::NESTING_MAX {
            return false;
        }
        match (value, json) {
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
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b, deeper))
            }
            (Value::Object(a), Json::Object(b)) => {
                a.len() == b.len()
                    && a.entries().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b, deeper)))
            }
            _ => false,
        }
    }
    equal(value, json, 0)
}
