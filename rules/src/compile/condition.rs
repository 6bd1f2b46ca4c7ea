//! Conditions to expressions, and clauses' values to what their operators compare with.

use serde_json::Value;

use super::place::Place;
use super::{Builder, Subject, append, len32, listed, render};
use crate::clause;
use crate::limits::{CLAUSES_PER_RULE_MAX, NESTING_MAX, VALUES_PER_CLAUSE_MAX};
use crate::logic::{self, LogicSink};
use crate::model::{self, Clients, Coerce, Condition, DateForm, Fractional, Op, VersionRule};
use crate::ruleset::{Arg, Expr, Logic, Span, Text};
use crate::version;

pub fn rfc3339_ms(text: &str) -> Option<i64> {
    crate::date::parse_rfc3339(text)
}

impl<'a> Builder<'a> {
    /// The condition of one rule, of `subject` or of a segment; its expr.
    pub(super) fn rule_condition(
        &mut self,
        condition: &'a Condition,
        subject: Option<Subject<'a>>,
        at: &Place<'_>,
    ) -> u32 {
        self.leaves = 0;
        let expr = self.condition(condition, subject, 1, at);
        let leaves = self.leaves;
        if leaves > CLAUSES_PER_RULE_MAX {
            self.problem(
                at,
                format!(
                    "{leaves} clauses, a rule may have {CLAUSES_PER_RULE_MAX}; a segment can hold \
                     some of them"
                ),
            );
        }
        expr
    }

    fn condition(
        &mut self,
        condition: &'a Condition,
        subject: Option<Subject<'a>>,
        depth: usize,
        at: &Place<'_>,
    ) -> u32 {
        if depth > NESTING_MAX {
            self.problem(at, format!("conditions are nested deeper than {NESTING_MAX} levels"));
            return 0;
        }
        let inner = depth.saturating_add(1);
        match condition {
            Condition::All(parts) => {
                let exprs = self.parts(parts, subject, inner, &at.key("all"));
                let span = self.refs(&exprs);
                self.expr(Expr::All(span))
            }
            Condition::Any(parts) => {
                let exprs = self.parts(parts, subject, inner, &at.key("any"));
                let span = self.refs(&exprs);
                self.expr(Expr::Any(span))
            }
            Condition::Not(part) => {
                let expr = self.condition(part, subject, inner, &at.key("not"));
                self.expr(Expr::Not(expr))
            }
            Condition::Clause(clause) => {
                self.leaves = self.leaves.saturating_add(1);
                let index = self.clause(clause, at);
                self.expr(Expr::Clause(index))
            }
            Condition::Segment(keys) => {
                self.leaves = self.leaves.saturating_add(1);
                let span = self.segment_refs(keys, subject, &at.key("segment"));
                self.expr(Expr::Segments(span))
            }
            Condition::Logic(tree) => {
                self.leaves = self.leaves.saturating_add(1);
                let root = self.logic(tree, Fractional::default(), &at.key("logic"));
                self.expr(Expr::Logic(root))
            }
            Condition::Cel(source) => self.cel(source, depth, &at.key("cel")),
            Condition::Always(always) => {
                self.leaves = self.leaves.saturating_add(1);
                self.expr(Expr::Const(*always))
            }
        }
    }

    fn parts(
        &mut self,
        parts: &'a [Condition],
        subject: Option<Subject<'a>>,
        depth: usize,
        at: &Place<'_>,
    ) -> Vec<u32> {
        if parts.is_empty() {
            self.problem(at, "no conditions here; write always for what always or never holds");
        }
        let mut exprs = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            exprs.push(self.condition(part, subject, depth, &at.index(index)));
        }
        exprs
    }

    fn segment_refs(
        &mut self,
        keys: &'a [String],
        subject: Option<Subject<'a>>,
        at: &Place<'_>,
    ) -> Span {
        if keys.is_empty() {
            self.problem(at, "no segment here; name one or several");
        }
        if keys.len() > VALUES_PER_CLAUSE_MAX {
            let count = keys.len();
            self.problem(at, format!("{count} segments, the limit is {VALUES_PER_CLAUSE_MAX}"));
        }
        let mut segments = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            let at = match keys.len() {
                1 => *at,
                _ => at.index(position),
            };
            let Some(index) = self.segment_index(key) else {
                let message = format!(
                    "there is no segment {key:?} in this environment; it has {}",
                    listed(self.segments.iter().map(|state| &state.segment.key))
                );
                self.problem(&at, message);
                continue;
            };
            if self.quarantine.segments.contains(&index) {
                self.problem(&at, format!("the segment {key:?} does not compile"));
            }
            let has_list = self.segment_has_list.get(index).copied().unwrap_or(false);
            if has_list && subject.is_some_and(|flag| flag.definition.clients == Clients::Local) {
                self.problem(
                    &at,
                    format!(
                        "this flag's rules travel to browsers (clients is local), and {key:?} has \
                         an id list, from which ids can be guessed; make clients edge"
                    ),
                );
            }
            segments.push(len32(index));
        }
        self.refs(&segments)
    }

    pub(super) fn clause(&mut self, clause: &model::Clause, at: &Place<'_>) -> u32 {
        let attr = self.attr(&clause.attr, &at.key("attr"));
        let value_at = at.key("value");
        let takes_none = matches!(clause.op, Op::Exists | Op::IsNull);
        let count = clause.values.len();
        let name = clause.op.name();
        if takes_none && count > 0 {
            self.problem(&value_at, format!("{name} takes no value; not_{name} is the opposite"));
        } else if !takes_none && count == 0 {
            self.problem(&value_at, format!("{name} needs a value, {}", wanted(clause)));
        }
        if count > VALUES_PER_CLAUSE_MAX {
            self.problem(
                &value_at,
                format!("{count} values, a clause may have {VALUES_PER_CLAUSE_MAX}"),
            );
        }
        if clause.op == Op::SemverRange && clause.policy.version == VersionRule::Padded {
            self.problem(&at.key("policy").key("version"), "padded versions have no ranges");
        }
        let mut args = Vec::with_capacity(count);
        for (index, value) in clause.values.iter().enumerate() {
            let at = match count {
                1 => value_at,
                _ => value_at.index(index),
            };
            match self.arg(clause, value) {
                Ok(arg) => args.push(arg),
                Err(message) => self.problem(&at, message),
            }
        }
        let sorted = matches!(clause.op, Op::Eq | Op::In)
            && args.iter().all(|arg| matches!(arg, Arg::Str(_)));
        if sorted {
            let rules = &self.rules;
            let text = |arg: &Arg| match arg {
                Arg::Str(text) => rules.str(*text).as_bytes(),
                _ => &[],
            };
            args.sort_by(|a, b| text(a).cmp(text(b)));
            // Interned, so equal texts are equal spans.
            args.dedup();
        }
        let policy = clause.policy;
        let compiled = crate::ruleset::Clause {
            attr,
            op: clause.op,
            negate: clause.negate,
            missing: policy.missing,
            negation: policy.negation,
            array: policy.array,
            coerce: policy.coerce,
            version: policy.version,
            date: policy.date,
            ignore_case: policy.ignore_case,
            bad_arg: policy.bad_arg,
            args: append(&mut self.rules.args, args),
            sorted,
        };
        let index = len32(self.rules.clauses.len());
        self.rules.clauses.push(compiled);
        index
    }

    /// One value, as the operator compares with it, or what is wrong with it.
    fn arg(&mut self, clause: &model::Clause, value: &Value) -> Result<Arg, String> {
        if let Value::String(text) = value
            && text.len() > crate::limits::STRING_BYTES_MAX
        {
            return Err(format!(
                "{} bytes of text, the limit is {}",
                text.len(),
                crate::limits::STRING_BYTES_MAX
            ));
        }
        if let Value::Number(number) = value {
            render::check_number(number)?;
        }
        let strict = clause.policy.coerce == Coerce::Strict;
        let mismatch = || {
            Err(format!(
                "{} compares with {}, not with {}",
                clause.op.name(),
                wanted(clause),
                described(value)
            ))
        };
        match clause.op {
            Op::Eq | Op::In => match value {
                Value::Array(_) | Value::Object(_) => {
                    check_depth(value, 1)?;
                    let text = render::canonical(value);
                    if text.len() > crate::limits::STRING_BYTES_MAX {
                        return Err(format!(
                            "{} bytes of JSON, the limit is {}",
                            text.len(),
                            crate::limits::STRING_BYTES_MAX
                        ));
                    }
                    Ok(Arg::Json(self.text(&text)))
                }
                scalar => Ok(self.scalar(clause, scalar)),
            },
            Op::StartsWith | Op::EndsWith | Op::Contains => match value {
                Value::String(_) => Ok(self.scalar(clause, value)),
                Value::Number(_) | Value::Bool(_) if !strict => Ok(self.scalar(clause, value)),
                _ => mismatch(),
            },
            Op::Matches => match value {
                Value::String(pattern) => {
                    check_pattern(pattern, clause.policy.ignore_case)?;
                    Ok(Arg::Regex(self.text(pattern)))
                }
                _ => mismatch(),
            },
            Op::Lt | Op::Lte | Op::Gt | Op::Gte => match (value, clause.policy.coerce) {
                (Value::Number(_), _) => Ok(self.scalar(clause, value)),
                (Value::String(_), Coerce::Js | Coerce::Loose) => Ok(self.scalar(clause, value)),
                (Value::Bool(_) | Value::Null, Coerce::Js | Coerce::Loose) => {
                    Ok(self.scalar(clause, value))
                }
                (Value::String(text), Coerce::String | Coerce::ByOperator) => {
                    match text.parse::<f64>() {
                        Ok(number) if number.is_finite() => Ok(self.scalar(clause, value)),
                        _ => Err(format!("{text:?} is no number")),
                    }
                }
                _ => mismatch(),
            },
            Op::Before | Op::After => match (value, clause.policy.date) {
                (Value::String(text), DateForm::Both | DateForm::Rfc3339)
                    if let Some(ms) = rfc3339_ms(text) =>
                {
                    Ok(Arg::Date(ms))
                }
                (Value::String(text), DateForm::Both | DateForm::Millis)
                    if !strict && let Ok(ms) = text.parse() =>
                {
                    Ok(Arg::Date(ms))
                }
                (Value::String(text), DateForm::Both | DateForm::Rfc3339) => {
                    Err(format!("{text:?} is no RFC 3339 time, such as 2026-01-31T08:00:00Z"))
                }
                (Value::Number(number), DateForm::Both | DateForm::Millis) => {
                    match (number.as_i64(), number.as_f64()) {
                        (Some(ms), _) => Ok(Arg::Date(ms)),
                        (None, Some(ms)) if ms.fract() == 0.0 && ms.abs() < 9e15 => {
                            Ok(Arg::Date(ms as i64))
                        }
                        _ => Err(format!("{number} is no whole number of milliseconds")),
                    }
                }
                _ => mismatch(),
            },
            Op::SemverEq | Op::SemverLt | Op::SemverLte | Op::SemverGt | Op::SemverGte => {
                let rule = clause.policy.version;
                let number;
                let text = match value {
                    Value::String(text) => text,
                    Value::Number(written) if !strict => {
                        number = written.to_string();
                        &number
                    }
                    _ => return mismatch(),
                };
                if rule != VersionRule::Padded && version::parse(text, rule).is_none() {
                    return Err(format!("{text:?} is no version, such as {}", example(rule)));
                }
                Ok(Arg::Version(self.text(text)))
            }
            Op::SemverRange => match value {
                Value::String(text) => match version::parse_range(text) {
                    Some(_) => Ok(Arg::VersionRange(self.text(text))),
                    None => Err(format!(
                        "{text:?} is no version range, such as \">=1.2.0, <2\", \"^1.2\" or \
                         \"~1.2.3\" (|| and hyphens are not known; several values are alternatives)"
                    )),
                },
                _ => mismatch(),
            },
            Op::Cidr => match value {
                Value::String(text) => cidr(text),
                _ => mismatch(),
            },
            Op::TypeIs => match value {
                Value::String(name) if TYPE_NAMES.contains(&name.as_str()) => {
                    Ok(Arg::Str(self.text(name)))
                }
                _ => mismatch(),
            },
            Op::Size => match value.as_u64() {
                Some(size) => Ok(Arg::Int(i64::try_from(size).unwrap_or(i64::MAX))),
                None => mismatch(),
            },
            Op::Exists | Op::IsNull => Ok(Arg::Null),
        }
    }

    fn scalar(&mut self, clause: &model::Clause, value: &Value) -> Arg {
        match value {
            Value::Bool(value) => Arg::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Arg::Int(integer),
                (None, Some(float)) => Arg::Float(float),
                (None, None) => Arg::Null,
            },
            Value::String(text) if clause.policy.ignore_case => {
                Arg::Str(self.text(&clause::fold_case(text)))
            }
            Value::String(text) => Arg::Str(self.text(text)),
            Value::Null | Value::Array(_) | Value::Object(_) => Arg::Null,
        }
    }

    /// A JSONLogic tree; its root node.
    pub(super) fn logic(&mut self, tree: &Value, fractional: Fractional, at: &Place<'_>) -> u32 {
        match logic::lower(tree, fractional, self) {
            Ok(root) => {
                // Lowered, so its depth is bounded.
                self.check_texts(tree, at);
                root
            }
            Err(problem) => {
                self.problem_at(format!("{}{}", at.pointer(), problem.pointer), problem.message);
                0
            }
        }
    }

    fn check_texts(&mut self, tree: &Value, at: &Place<'_>) {
        match tree {
            Value::String(text) => self.check_string(text, at),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check_texts(item, &at.index(index));
                }
            }
            Value::Object(entries) => {
                for (key, item) in entries {
                    self.check_string(key, at);
                    self.check_texts(item, &at.key(key));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

impl LogicSink for Builder<'_> {
    fn text(&mut self, text: &str) -> Text {
        Builder::text(self, text)
    }

    fn refs(&mut self, children: &[u32]) -> Span {
        append(&mut self.rules.logic_refs, children.iter().copied())
    }

    fn node(&mut self, node: Logic) -> u32 {
        let index = len32(self.rules.logic.len());
        self.rules.logic.push(node);
        index
    }
}

const TYPE_NAMES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];

/// What an operator compares with, for messages.
fn wanted(clause: &model::Clause) -> &'static str {
    match clause.op {
        Op::Eq | Op::In => "a JSON value",
        Op::StartsWith | Op::EndsWith | Op::Contains => "a string",
        Op::Matches => "a regular expression in a string",
        Op::Lt | Op::Lte | Op::Gt | Op::Gte => "a number",
        Op::Before | Op::After => match clause.policy.date {
            DateForm::Both => "an RFC 3339 time or milliseconds since the epoch",
            DateForm::Rfc3339 => "an RFC 3339 time",
            DateForm::Millis => "milliseconds since the epoch",
        },
        Op::SemverEq | Op::SemverLt | Op::SemverLte | Op::SemverGt | Op::SemverGte => {
            "a version in a string"
        }
        Op::SemverRange => "a version range in a string",
        Op::Cidr => "an IP network in a string, such as 10.0.0.0/8",
        Op::TypeIs => "one of null, boolean, number, integer, string, array, object",
        Op::Size => "a number of elements",
        Op::Exists | Op::IsNull => "nothing",
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.len() <= 60 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn example(rule: VersionRule) -> &'static str {
    match rule {
        VersionRule::Loose => "1.2, 1.2.3 or 1.2.3-beta.1",
        VersionRule::GoMod => "v1.2.3, 1.2 or 1.2.3-beta.1",
        VersionRule::Strict | VersionRule::StrictWithBuild => "1.2.3 or 1.2.3-beta.1",
        VersionRule::Padded => "1.2.3",
    }
}

fn check_depth(value: &Value, depth: usize) -> Result<(), String> {
    let inner = depth.saturating_add(1);
    match value {
        Value::Array(_) | Value::Object(_) if depth > NESTING_MAX => {
            Err(format!("the value is nested deeper than {NESTING_MAX} levels"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_depth(item, inner)),
        Value::Object(entries) => entries.values().try_for_each(|item| check_depth(item, inner)),
        _ => Ok(()),
    }
}

pub(crate) fn check_pattern(pattern: &str, ignore_case: bool) -> Result<(), String> {
    let Err(error) = clause::compile_regex(pattern, ignore_case) else { return Ok(()) };
    // What people know from other engines and these rules cannot promise in linear time.
    let unknown = [
        ("(?=", "look-ahead"),
        ("(?!", "look-ahead"),
        ("(?<=", "look-behind"),
        ("(?<!", "look-behind"),
        ("(?>", "atomic groups"),
        ("\\p", "Unicode classes like \\p{L}"),
        ("\\P", "Unicode classes like \\P{L}"),
        ("\\1", "back-references"),
        ("\\k", "back-references"),
    ];
    match unknown.iter().find(|(syntax, _)| pattern.contains(syntax)) {
        Some((_, name)) => Err(format!(
            "the regular expression does not compile: {name} are not supported, so that matching \
             takes linear time everywhere ({error})"
        )),
        None => Err(format!(
            "the regular expression does not compile: {error} (its source may have {} bytes, its \
             compiled form {}, its groups {} levels)",
            crate::limits::REGEX_SOURCE_BYTES_MAX,
            crate::limits::REGEX_COMPILED_BYTES_MAX,
            crate::limits::REGEX_NESTING_MAX
        )),
    }
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address.
fn cidr(text: &str) -> Result<Arg, String> {
    let bad =
        || format!("{text:?} is no IP network, such as 10.0.0.0/8, 2001:db8::/32 or 10.1.2.3");
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let is_v4 = address.contains('.') && !address.contains(':');
    let bits = clause::parse_ip(address).ok_or_else(bad)?;
    let most: u8 = if is_v4 { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u8>().ok().filter(|length| *length <= most).ok_or_else(bad)?
        }
        Some(_) => return Err(bad()),
    };
    // IPv4 lives in the last 32 bits of ::ffff:0:0/96.
    let prefix = if is_v4 { length.saturating_add(96) } else { length };
    let host_bits = 128u32.saturating_sub(u32::from(prefix));
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    let network = bits & mask;
    if network != bits {
        return Err(format!(
            "{text:?} has bits beyond its prefix; the network of that length begins at {}",
            address_text(network, is_v4)
        ));
    }
    Ok(Arg::Cidr { network, prefix })
}

fn address_text(bits: u128, is_v4: bool) -> String {
    let address = std::net::Ipv6Addr::from_bits(bits);
    match address.to_ipv4_mapped() {
        Some(v4) if is_v4 => v4.to_string(),
        _ => address.to_string(),
    }
}
