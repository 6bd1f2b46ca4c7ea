//! Evaluates CEL nodes. Recursion is bounded by the depth of nodes, which the ruleset's check
//! bounds, and work by steps.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::time;
use super::value::{List, Map, Val};
use crate::clause::Patterns;
use crate::context::{Context, Value};
use crate::limits::{CEL_NESTING_MAX, REGEX_HAYSTACK_BYTES_MAX};
use crate::ruleset::{Cel, CelLoop, CelOp, NONE, Ruleset, Span, slice};

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// CEL's own kind of error, which `&&`, `||` and the condition around it take for false.
    Error(Wrong),
    /// No more steps: the condition is not decided.
    Steps,
    /// The nodes are not what a compiler makes.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// An attr.
    Missing(u32),
    /// Types of the operands, as far as they matter.
    NoOverload(CelOp, &'static str, &'static str),
    NotBool(&'static str),
    NotIterable(&'static str),
    NoSuchField,
    NoSuchIndex,
    Overflow,
    DivisionByZero,
    NotConvertible(CelOp),
    TwiceTheKey,
    TooDeep,
}

impl Stop {
    #[cold]
    pub(crate) fn message(self, rules: &Ruleset) -> String {
        let wrong = match self {
            Stop::Steps => {
                return format!("its CEL takes more than {} steps", crate::limits::CEL_STEPS_MAX);
            }
            Stop::Broken => return "its CEL is damaged".to_owned(),
            Stop::Error(wrong) => wrong,
        };
        match wrong {
            Wrong::Missing(attr) => {
                let path = rules.attrs.get(attr as usize).map_or("", |attr| rules.str(attr.path));
                format!("the context has no {path:?}")
            }
            Wrong::NoOverload(op, one, "") => format!("{} does not take {one}", op.name()),
            Wrong::NoOverload(op, one, two) => {
                format!("{} does not take {one} and {two}", op.name())
            }
            Wrong::NotBool(found) => format!("a bool was wanted, and there is a {found}"),
            Wrong::NotIterable(found) => format!("no loop goes over a {found}"),
            Wrong::NoSuchField => "the map has no such key".to_owned(),
            Wrong::NoSuchIndex => "the list or text has no such place".to_owned(),
            Wrong::Overflow => "the result is out of its type's range".to_owned(),
            Wrong::DivisionByZero => "a division by zero".to_owned(),
            Wrong::NotConvertible(op) => format!("{}(…) cannot convert this value", op.name()),
            Wrong::TwiceTheKey => "a map has the same key twice".to_owned(),
            Wrong::TooDeep => "lists or maps are built too deep".to_owned(),
        }
    }
}

type Run<'a> = Result<Val<'a>, Stop>;

fn error<T>(wrong: Wrong) -> Result<T, Stop> {
    Err(Stop::Error(wrong))
}

pub(crate) struct Machine<'a, 's> {
    rules: &'a Ruleset,
    patterns: &'a Patterns,
    flag_key: &'a str,
    context: Context<'a>,
    now_ms: i64,
    /// Left to take.
    steps: &'s mut u32,
    vars: Vec<Val<'a>>,
}

impl<'a, 's> Machine<'a, 's> {
    pub(crate) fn new(
        rules: &'a Ruleset,
        patterns: &'a Patterns,
        flag_key: &'a str,
        context: Context<'a>,
        now_ms: i64,
        steps: &'s mut u32,
    ) -> Machine<'a, 's> {
        Machine { rules, patterns, flag_key, context, now_ms, steps, vars: Vec::new() }
    }

    pub(crate) fn run(&mut self, node: u32) -> Run<'a> {
        self.value(node, 0)
    }

    /// Of a condition.
    pub(crate) fn truth(&mut self, node: u32) -> Result<bool, Stop> {
        self.bool(node, 0)
    }

    fn take(&mut self, steps: usize) -> Result<(), Stop> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps.checked_sub(steps));
        match left {
            Some(left) => {
                *self.steps = left;
                Ok(())
            }
            None => {
                *self.steps = 0;
                Err(Stop::Steps)
            }
        }
    }

    fn take_text(&mut self, bytes: usize) -> Result<(), Stop> {
        if bytes >= 64 { self.take(bytes / 64) } else { Ok(()) }
    }

    fn bool(&mut self, node: u32, depth: usize) -> Result<bool, Stop> {
        match self.value(node, depth)? {
            Val::Bool(value) => Ok(value),
            other => error(Wrong::NotBool(other.type_name())),
        }
    }

    fn attr(&self, attr: u32) -> Result<Option<Value<'a>>, Stop> {
        let found = self.rules.attrs.get(attr as usize).ok_or(Stop::Broken)?;
        Ok(self.context.get(self.rules, found))
    }

    fn children(&self, span: Span) -> &'a [u32] {
        slice(&self.rules.cel_refs, span)
    }

    fn value(&mut self, node: u32, depth: usize) -> Run<'a> {
        self.take(1)?;
        // One more than an author may write: a negation that was pushed down to its leaf.
        if depth > CEL_NESTING_MAX.saturating_add(1) {
            return Err(Stop::Broken);
        }
        let rules = self.rules;
        let inner = depth.saturating_add(1);
        Ok(match *rules.cel.get(node as usize).ok_or(Stop::Broken)? {
            Cel::Null => Val::Null,
            Cel::Bool(value) => Val::Bool(value),
            Cel::Int(number) => Val::Int(number),
            Cel::Double(number) => Val::Double(number),
            Cel::Str(text) => Val::Str(Cow::Borrowed(rules.str(text))),
            Cel::Attr(attr) => match self.attr(attr)? {
                None | Some(Value::Null) => return error(Wrong::Missing(attr)),
                Some(value) => Val::from_context(value),
            },
            Cel::HasAttr(attr) => Val::Bool(!matches!(self.attr(attr)?, None | Some(Value::Null))),
            Cel::AttrIsNull(attr) => match self.attr(attr)? {
                None => return error(Wrong::Missing(attr)),
                Some(value) => Val::Bool(value == Value::Null),
            },
            Cel::Now => match time::timestamp_of_millis(self.now_ms) {
                Some(nanos) => Val::Timestamp(nanos),
                None => return error(Wrong::Overflow),
            },
            Cel::FlagKey => Val::Str(Cow::Borrowed(self.flag_key)),
            Cel::Var(slot) => self.vars.get(slot as usize).cloned().ok_or(Stop::Broken)?,
            Cel::List(items) => {
                let mut built = Vec::new();
                for item in self.children(items) {
                    built.push(self.value(*item, inner)?);
                }
                built_list(built)?
            }
            Cel::Map(entries) => self.map(entries, inner)?,
            Cel::Select { of, field } => match self.value(of, inner)? {
                Val::Map(map) => {
                    self.take(lookup_cost(&map))?;
                    match map.field(rules.str(field)) {
                        Some(value) => value,
                        None => return error(Wrong::NoSuchField),
                    }
                }
                other => return no_overload(CelOp::Index, &other, None),
            },
            Cel::Has { of, field } => match self.value(of, inner)? {
                Val::Map(map) => {
                    self.take(lookup_cost(&map))?;
                    Val::Bool(map.field(rules.str(field)).is_some())
                }
                other => return no_overload(CelOp::Index, &other, None),
            },
            Cel::Matches { of, pattern } => match self.value(of, inner)? {
                Val::Str(text) => {
                    let source = rules.str(pattern).len().saturating_add(16);
                    self.take_text(text.len().saturating_mul(source))?;
                    let regex = self.patterns.get(pattern).ok_or(Stop::Broken)?;
                    let short = text.len() <= REGEX_HAYSTACK_BYTES_MAX;
                    Val::Bool(short && regex.is_match(&text))
                }
                other => return error(Wrong::NotBool(other.type_name())),
            },
            Cel::Call { op, args } => return self.call(op, self.children(args), inner),
            Cel::Loop { kind, over, filter, body } => {
                return self.iterate(kind, over, filter, body, inner);
            }
        })
    }

    fn map(&mut self, entries: Span, depth: usize) -> Run<'a> {
        let mut built: Vec<(Val<'a>, Val<'a>)> = Vec::new();
        for pair in self.children(entries).chunks_exact(2) {
            let [key, value] = pair else { return Err(Stop::Broken) };
            let key = self.value(*key, depth)?;
            if !matches!(key, Val::Str(_) | Val::Int(_) | Val::Bool(_)) {
                return no_overload(CelOp::Index, &key, None);
            }
            self.take(built.len())?;
            if built.iter().any(|(known, _)| known.order(&key) == Some(Ordering::Equal)) {
                return error(Wrong::TwiceTheKey);
            }
            let value = self.value(*value, depth)?;
            built.push((key, value));
        }
        Val::map(built).ok_or(Stop::Error(Wrong::TooDeep))
    }

    fn call(&mut self, op: CelOp, args: &'a [u32], depth: usize) -> Run<'a> {
        match (op, args) {
            (CelOp::And | CelOp::Or, _) => {
                // An error is nothing if another operand decides.
                let decides = op == CelOp::Or;
                let mut failed = None;
                for arg in args {
                    match self.bool(*arg, depth) {
                        Ok(value) if value == decides => return Ok(Val::Bool(decides)),
                        Ok(_) => {}
                        Err(Stop::Error(wrong)) => failed = failed.or(Some(wrong)),
                        Err(stop) => return Err(stop),
                    }
                }
                match failed {
                    None => Ok(Val::Bool(!decides)),
                    Some(wrong) => error(wrong),
                }
            }
            (CelOp::If, [test, yes, no]) => {
                let chosen = if self.bool(*test, depth)? { yes } else { no };
                self.value(*chosen, depth)
            }
            (CelOp::Not, [of]) => Ok(Val::Bool(!self.bool(*of, depth)?)),
            (_, [one]) => {
                let one = self.value(*one, depth)?;
                self.unary(op, one)
            }
            (_, [one, two]) => {
                let one = self.value(*one, depth)?;
                let two = self.value(*two, depth)?;
                self.binary(op, one, two)
            }
            (_, [one, more @ ..]) => {
                let one = self.value(*one, depth)?;
                let mut rest = Vec::with_capacity(more.len());
                for arg in more {
                    rest.push(self.value(*arg, depth)?);
                }
                self.with_more(op, one, &rest)
            }
            (_, []) => Err(Stop::Broken),
        }
    }

    fn unary(&mut self, op: CelOp, one: Val<'a>) -> Run<'a> {
        if let Val::Str(text) = &one {
            self.take_text(text.len())?;
        }
        let converted =
            |value: Option<Val<'a>>| value.ok_or(Stop::Error(Wrong::NotConvertible(op)));
        Ok(match (op, one) {
            (CelOp::Negate, Val::Int(number)) => Val::Int(in_range(number.checked_neg())?),
            (CelOp::Negate, Val::Double(number)) => Val::Double(-number),
            (CelOp::Size, Val::Str(text)) => Val::Int(length(text.chars().count())),
            (CelOp::Size, Val::List(list)) => Val::Int(length(list.len())),
            (CelOp::Size, Val::Map(map)) => Val::Int(length(map.len())),
            (CelOp::LowerAscii, Val::Str(text)) => Val::text(text.to_ascii_lowercase()),
            (CelOp::UpperAscii, Val::Str(text)) => Val::text(text.to_ascii_uppercase()),
            (CelOp::Trim, Val::Str(text)) => Val::text(text.trim().to_owned()),
            (CelOp::Join, Val::List(list)) => self.join(&list, "")?,
            (CelOp::ToInt, one @ Val::Int(_))
            | (CelOp::ToDouble, one @ Val::Double(_))
            | (CelOp::ToString, one @ Val::Str(_))
            | (CelOp::ToBool, one @ Val::Bool(_))
            | (CelOp::ToTimestamp, one @ Val::Timestamp(_))
            | (CelOp::ToDuration, one @ Val::Duration(_)) => one,
            (CelOp::ToInt, Val::Double(number)) => {
                // Both ends themselves are out: the upper one is no i64, and CEL takes neither.
                const END: f64 = 9_223_372_036_854_775_808.0;
                let holds = number > -END && number < END;
                in_range(holds.then_some(Val::Int(number as i64)))?
            }
            (CelOp::ToInt, Val::Str(text)) => converted(text.parse().ok().map(Val::Int))?,
            (CelOp::ToInt, Val::Timestamp(nanos)) => Val::Int(time::seconds(nanos)),
            (CelOp::ToDouble, Val::Int(number)) => Val::Double(number as f64),
            (CelOp::ToDouble, Val::Str(text)) => converted(text.parse().ok().map(Val::Double))?,
            (CelOp::ToString, Val::Bool(value)) => Val::text(value.to_string()),
            (CelOp::ToString, Val::Int(number)) => Val::text(number.to_string()),
            (CelOp::ToString, Val::Double(number)) => {
                let mut out = Vec::new();
                crate::logic::write_float(number, &mut out);
                Val::text(String::from_utf8(out).unwrap_or_default())
            }
            (CelOp::ToString, Val::Timestamp(nanos)) => Val::text(time::timestamp_text(nanos)),
            (CelOp::ToString, Val::Duration(nanos)) => Val::text(time::duration_text(nanos)),
            (CelOp::ToBool, Val::Str(text)) => converted(match text.as_ref() {
                "1" | "t" | "true" | "TRUE" | "True" => Some(Val::Bool(true)),
                "0" | "f" | "false" | "FALSE" | "False" => Some(Val::Bool(false)),
                _ => None,
            })?,
            (CelOp::ToTimestamp, Val::Str(text)) => {
                converted(time::timestamp(&text).map(Val::Timestamp))?
            }
            (CelOp::ToTimestamp, Val::Int(seconds)) => {
                in_range(time::timestamp_of_seconds(seconds).map(Val::Timestamp))?
            }
            (CelOp::ToDuration, Val::Str(text)) => {
                converted(time::duration(&text).map(Val::Duration))?
            }
            (op, Val::Timestamp(nanos)) if op.is_part() => part(op, nanos)?,
            (op, Val::Duration(nanos)) if op.is_part() => part_of_duration(op, nanos)?,
            (op, one) => return no_overload(op, &one, None),
        })
    }

    fn binary(&mut self, op: CelOp, one: Val<'a>, two: Val<'a>) -> Run<'a> {
        Ok(match (op, one, two) {
            (CelOp::Eq, one, two) => Val::Bool(self.equal(&one, &two, 0)?),
            (CelOp::Ne, one, two) => Val::Bool(!self.equal(&one, &two, 0)?),
            (CelOp::Lt | CelOp::Lte | CelOp::Gt | CelOp::Gte, one, two) => {
                let alike = one.type_name() == two.type_name()
                    || matches!(
                        (&one, &two),
                        (Val::Int(_), Val::Double(_)) | (Val::Double(_), Val::Int(_))
                    );
                let ordered = !matches!(one, Val::Null | Val::List(_) | Val::Map(_));
                if !alike || !ordered {
                    return no_overload(op, &one, Some(&two));
                }
                self.take_text(text_len(&one).min(text_len(&two)))?;
                // None is a NaN, which is in no order with anything.
                Val::Bool(one.order(&two).is_some_and(|order| match op {
                    CelOp::Lt => order.is_lt(),
                    CelOp::Lte => order.is_le(),
                    CelOp::Gt => order.is_gt(),
                    _ => order.is_ge(),
                }))
            }
            (CelOp::In, one, Val::List(list)) => {
                for index in 0..list.len() {
                    self.take(1)?;
                    let Some(item) = list.at(index) else { break };
                    if self.equal(&item, &one, 0)? {
                        return Ok(Val::Bool(true));
                    }
                }
                Val::Bool(false)
            }
            // An object of the context is asked with has(); see docs/CEL.md.
            (CelOp::In, one, Val::Map(map @ Map::Built(_))) => {
                self.take(lookup_cost(&map))?;
                Val::Bool(map.get(&one).is_some())
            }
            (CelOp::Index, Val::List(list), index) => {
                let place = match &index {
                    Val::Int(place) => usize::try_from(*place).ok(),
                    Val::Double(place) if place.fract() == 0.0 && *place >= 0.0 => {
                        Some(*place as usize)
                    }
                    Val::Double(_) => None,
                    other => return no_overload(op, other, None),
                };
                let found = place.and_then(|place| list.at(place));
                found.ok_or(Stop::Error(Wrong::NoSuchIndex))?
            }
            (CelOp::Index, Val::Map(map), key) => {
                self.take(lookup_cost(&map))?;
                map.get(&key).ok_or(Stop::Error(Wrong::NoSuchField))?
            }
            (CelOp::Contains, Val::Str(text), Val::Str(part)) => {
                self.take_text(text.len())?;
                Val::Bool(text.contains(part.as_ref()))
            }
            (CelOp::StartsWith, Val::Str(text), Val::Str(part)) => {
                self.take_text(part.len())?;
                Val::Bool(text.starts_with(part.as_ref()))
            }
            (CelOp::EndsWith, Val::Str(text), Val::Str(part)) => {
                self.take_text(part.len())?;
                Val::Bool(text.ends_with(part.as_ref()))
            }
            (CelOp::CharAt, Val::Str(text), Val::Int(place)) => {
                self.take_text(text.len())?;
                let from = byte_at(&text, place)?;
                let found = text.get(from..).and_then(|rest| rest.chars().next());
                Val::text(found.map(String::from).unwrap_or_default())
            }
            (CelOp::IndexOf | CelOp::LastIndexOf, Val::Str(text), Val::Str(part)) => {
                self.take_text(text.len())?;
                let last = op == CelOp::LastIndexOf;
                let found = if last { text.rfind(part.as_ref()) } else { text.find(part.as_ref()) };
                Val::Int(chars_before(&text, found))
            }
            (CelOp::Substring, Val::Str(text), Val::Int(from)) => {
                self.take_text(text.len())?;
                let from = byte_at(&text, from)?;
                Val::text(text.get(from..).unwrap_or_default().to_owned())
            }
            (CelOp::Split, Val::Str(text), Val::Str(separator)) => {
                self.split(&text, &separator, -1)?
            }
            (CelOp::Join, Val::List(list), Val::Str(separator)) => self.join(&list, &separator)?,
            (op, Val::Timestamp(nanos), Val::Str(zone)) if op.is_part() => {
                let offset = time::offset(&zone).ok_or(Stop::Error(Wrong::NotConvertible(op)))?;
                part(op, in_range(nanos.checked_add(offset))?)?
            }
            (op, one, two) => return self.arithmetic(op, one, two),
        })
    }

    fn arithmetic(&mut self, op: CelOp, one: Val<'a>, two: Val<'a>) -> Run<'a> {
        let moment =
            |nanos: Option<i128>| in_range(nanos.and_then(time::timestamp_of).map(Val::Timestamp));
        let span =
            |nanos: Option<i128>| in_range(nanos.and_then(time::duration_of).map(Val::Duration));
        match (op, one, two) {
            (op, Val::Int(a), Val::Int(b)) => ints(op, a, b),
            (op, Val::Double(a), Val::Double(b)) => doubles(op, a, b),
            // JSON has one kind of number, and most clients write 3.0 as 3.
            (op, Val::Int(a), Val::Double(b)) => doubles(op, a as f64, b),
            (op, Val::Double(a), Val::Int(b)) => doubles(op, a, b as f64),
            (CelOp::Add, Val::Str(a), Val::Str(b)) => {
                let bytes = a.len().saturating_add(b.len());
                self.take_text(bytes)?;
                let mut text = String::with_capacity(bytes);
                text.push_str(&a);
                text.push_str(&b);
                Ok(Val::text(text))
            }
            (CelOp::Add, Val::List(a), Val::List(b)) => {
                self.take(a.len().saturating_add(b.len()))?;
                built_list(a.iter().chain(b.iter()).collect())
            }
            (CelOp::Add, Val::Timestamp(a), Val::Duration(b))
            | (CelOp::Add, Val::Duration(a), Val::Timestamp(b)) => moment(a.checked_add(b)),
            (CelOp::Add, Val::Duration(a), Val::Duration(b)) => span(a.checked_add(b)),
            (CelOp::Subtract, Val::Timestamp(a), Val::Duration(b)) => moment(a.checked_sub(b)),
            (CelOp::Subtract, Val::Timestamp(a), Val::Timestamp(b))
            | (CelOp::Subtract, Val::Duration(a), Val::Duration(b)) => span(a.checked_sub(b)),
            (op, one, two) => no_overload(op, &one, Some(&two)),
        }
    }

    fn with_more(&mut self, op: CelOp, one: Val<'a>, rest: &[Val<'a>]) -> Run<'a> {
        let Val::Str(text) = &one else { return no_overload(op, &one, rest.first()) };
        self.take_text(text.len())?;
        match (op, rest) {
            (CelOp::IndexOf, [Val::Str(part), Val::Int(from)]) => {
                let from = byte_at(text, *from)?;
                let found = text.get(from..).and_then(|rest| rest.find(part.as_ref()));
                Ok(Val::Int(chars_before(text, found.map(|at| at.saturating_add(from)))))
            }
            (CelOp::LastIndexOf, [Val::Str(part), Val::Int(from)]) => {
                let from = byte_at(text, *from)?;
                // The last that begins at `from` or before it.
                let end = from.saturating_add(part.len()).min(text.len());
                let end = (from..=end).rev().find(|end| text.is_char_boundary(*end));
                let found =
                    end.and_then(|end| text.get(..end)).and_then(|head| head.rfind(part.as_ref()));
                Ok(Val::Int(chars_before(text, found.filter(|at| *at <= from))))
            }
            (CelOp::Substring, [Val::Int(from), Val::Int(to)]) => {
                if from > to {
                    return error(Wrong::NoSuchIndex);
                }
                let (from, to) = (byte_at(text, *from)?, byte_at(text, *to)?);
                Ok(Val::text(text.get(from..to).unwrap_or_default().to_owned()))
            }
            (CelOp::Replace, [Val::Str(old), Val::Str(new)]) => self.replace(text, old, new, -1),
            (CelOp::Replace, [Val::Str(old), Val::Str(new), Val::Int(most)]) => {
                self.replace(text, old, new, *most)
            }
            (CelOp::Split, [Val::Str(separator), Val::Int(most)]) => {
                self.split(text, separator, *most)
            }
            (op, rest) => no_overload(op, &one, rest.first()),
        }
    }

    fn replace(&mut self, text: &str, old: &str, new: &str, most: i64) -> Run<'a> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // As many as there are places for it: between all characters if it is empty.
        let places = match old.is_empty() {
            true => text.chars().count().saturating_add(1),
            false => text.len().checked_div(old.len()).unwrap_or(0),
        };
        let grown = places.min(most).saturating_mul(new.len());
        self.take_text(text.len().saturating_add(grown))?;
        Ok(Val::text(text.replacen(old, new, most)))
    }

    /// At most so many parts, the last of which holds the rest; all if negative.
    fn split(&mut self, text: &str, separator: &str, most: i64) -> Run<'a> {
        self.take(text.len() / 8)?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut parts = Vec::new();
        if separator.is_empty() {
            let mut rest = text;
            while !rest.is_empty() && parts.len() < most {
                let first = rest.chars().next().map_or(0, char::len_utf8);
                let last = parts.len().saturating_add(1) == most;
                let (part, after) = if last {
                    (rest, "")
                } else {
                    rest.split_at_checked(first).unwrap_or((rest, ""))
                };
                self.take(1)?;
                parts.push(Val::text(part.to_owned()));
                rest = after;
            }
        } else if most > 0 {
            for part in text.splitn(most, separator) {
                self.take(1)?;
                parts.push(Val::text(part.to_owned()));
            }
        }
        built_list(parts)
    }

    fn join(&mut self, list: &List<'a>, separator: &str) -> Run<'a> {
        let mut text = String::new();
        for index in 0..list.len() {
            let Some(item) = list.at(index) else { break };
            let Val::Str(part) = &item else { return no_overload(CelOp::Join, &item, None) };
            self.take(1)?;
            self.take_text(part.len().saturating_add(separator.len()))?;
            if index > 0 {
                text.push_str(separator);
            }
            text.push_str(part);
        }
        Ok(Val::text(text))
    }

    fn equal(&mut self, one: &Val<'a>, two: &Val<'a>, depth: usize) -> Result<bool, Stop> {
        self.take(1)?;
        // Deeper than a context and what is built on it can be.
        if depth > 128 {
            return error(Wrong::TooDeep);
        }
        let inner = depth.saturating_add(1);
        match (one, two) {
            (Val::Null, Val::Null) => Ok(true),
            (Val::Str(a), Val::Str(b)) => {
                if a.len() == b.len() {
                    self.take_text(a.len())?;
                }
                Ok(a == b)
            }
            (Val::List(a), Val::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for index in 0..a.len() {
                    let (Some(a), Some(b)) = (a.at(index), b.at(index)) else { return Ok(false) };
                    if !self.equal(&a, &b, inner)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Val::Map(a), Val::Map(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for index in 0..a.len() {
                    self.take(lookup_cost(b))?;
                    let Some((key, value)) = a.entry(index) else { return Ok(false) };
                    let Some(other) = b.get(&key) else { return Ok(false) };
                    if !self.equal(&value, &other, inner)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(one.order(two) == Some(Ordering::Equal)),
        }
    }

    fn iterate(
        &mut self,
        kind: CelLoop,
        over: u32,
        filter: u32,
        body: u32,
        depth: usize,
    ) -> Run<'a> {
        let range = self.value(over, depth)?;
        let len = match &range {
            Val::List(list) => list.len(),
            Val::Map(map) => map.len(),
            other => return error(Wrong::NotIterable(other.type_name())),
        };
        let level = self.vars.len();
        let result = self.elements(kind, &range, len, (filter, body), depth);
        self.vars.truncate(level);
        result
    }

    fn elements(
        &mut self,
        kind: CelLoop,
        range: &Val<'a>,
        len: usize,
        (filter, body): (u32, u32),
        depth: usize,
    ) -> Run<'a> {
        let level = self.vars.len();
        let mut failed = None;
        let mut count = 0usize;
        let mut built = Vec::new();
        for index in 0..len {
            self.take(1)?;
            let item = match range {
                Val::List(list) => list.at(index),
                Val::Map(map) => map.entry(index).map(|(key, _)| key),
                _ => None,
            };
            let Some(item) = item else { break };
            self.vars.truncate(level);
            self.vars.push(item);
            if filter != NONE && !self.bool(filter, depth)? {
                continue;
            }
            match kind {
                CelLoop::All | CelLoop::Exists => {
                    // As && and || of all elements.
                    let decides = kind == CelLoop::Exists;
                    match self.bool(body, depth) {
                        Ok(value) if value == decides => return Ok(Val::Bool(decides)),
                        Ok(_) => {}
                        Err(Stop::Error(wrong)) => failed = failed.or(Some(wrong)),
                        Err(stop) => return Err(stop),
                    }
                }
                CelLoop::ExistsOne => {
                    if self.bool(body, depth)? {
                        count = count.saturating_add(1);
                    }
                }
                CelLoop::Filter => {
                    if self.bool(body, depth)? {
                        built.extend(self.vars.get(level).cloned());
                    }
                }
                CelLoop::Map => built.push(self.value(body, depth)?),
            }
        }
        if let Some(wrong) = failed {
            return error(wrong);
        }
        Ok(match kind {
            CelLoop::All => Val::Bool(true),
            CelLoop::Exists => Val::Bool(false),
            CelLoop::ExistsOne => Val::Bool(count == 1),
            CelLoop::Filter | CelLoop::Map => built_list(built)?,
        })
    }
}

fn built_list(items: Vec<Val<'_>>) -> Run<'_> {
    Val::list(items).ok_or(Stop::Error(Wrong::TooDeep))
}

#[cold]
fn no_overload<'a>(op: CelOp, one: &Val<'_>, two: Option<&Val<'_>>) -> Run<'a> {
    error(Wrong::NoOverload(op, one.type_name(), two.map_or("", Val::type_name)))
}

fn in_range<T>(value: Option<T>) -> Result<T, Stop> {
    value.ok_or(Stop::Error(Wrong::Overflow))
}

fn length(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn text_len(value: &Val<'_>) -> usize {
    match value {
        Val::Str(text) => text.len(),
        _ => 0,
    }
}

/// Maps are searched in a row where they are small or built here.
fn lookup_cost(map: &Map<'_>) -> usize {
    map.len() / 16
}

/// The byte where the character of this number begins; the end of the text is one too.
fn byte_at(text: &str, place: i64) -> Result<usize, Stop> {
    let wanted = usize::try_from(place).map_err(|_| Stop::Error(Wrong::NoSuchIndex))?;
    let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    places.nth(wanted).ok_or(Stop::Error(Wrong::NoSuchIndex))
}

/// How many characters come before a byte; -1 if nothing was found.
fn chars_before(text: &str, found: Option<usize>) -> i64 {
    match found.and_then(|at| text.get(..at)) {
        Some(head) => length(head.chars().count()),
        None => -1,
    }
}

fn ints<'a>(op: CelOp, a: i64, b: i64) -> Run<'a> {
    if b == 0 && matches!(op, CelOp::Divide | CelOp::Remainder) {
        return error(Wrong::DivisionByZero);
    }
    Ok(Val::Int(in_range(match op {
        CelOp::Add => a.checked_add(b),
        CelOp::Subtract => a.checked_sub(b),
        CelOp::Multiply => a.checked_mul(b),
        CelOp::Divide => a.checked_div(b),
        CelOp::Remainder => a.checked_rem(b),
        _ => return no_overload(op, &Val::Int(a), Some(&Val::Int(b))),
    })?))
}

fn doubles<'a>(op: CelOp, a: f64, b: f64) -> Run<'a> {
    Ok(Val::Double(match op {
        CelOp::Add => a + b,
        CelOp::Subtract => a - b,
        CelOp::Multiply => a * b,
        CelOp::Divide => a / b,
        _ => return no_overload(op, &Val::Double(a), Some(&Val::Double(b))),
    }))
}

/// Of a timestamp. Months and days of the month count from 0, but `getDate` from 1.
fn part<'a>(op: CelOp, nanos: i128) -> Run<'a> {
    let civil = time::civil(nanos);
    Ok(Val::Int(match op {
        CelOp::FullYear => civil.year,
        CelOp::Month => civil.month.saturating_sub(1),
        CelOp::Date => civil.day,
        CelOp::DayOfMonth => civil.day.saturating_sub(1),
        CelOp::DayOfWeek => civil.day_of_week,
        CelOp::DayOfYear => civil.day_of_year,
        CelOp::Hours => civil.hour,
        CelOp::Minutes => civil.minute,
        CelOp::Seconds => civil.second,
        CelOp::Milliseconds => civil.nanos.checked_div(1_000_000).unwrap_or_default(),
        _ => return no_overload(op, &Val::Timestamp(nanos), None),
    }))
}

/// Of a duration: the whole of it in hours, minutes or seconds; the milliseconds of its last second.
fn part_of_duration<'a>(op: CelOp, nanos: i128) -> Run<'a> {
    let unit: i128 = match op {
        CelOp::Hours => 3_600_000_000_000,
        CelOp::Minutes => 60_000_000_000,
        CelOp::Seconds => 1_000_000_000,
        CelOp::Milliseconds => 1_000_000,
        _ => return no_overload(op, &Val::Duration(nanos), None),
    };
    let of = match op {
        CelOp::Milliseconds => nanos.checked_rem(1_000_000_000),
        _ => Some(nanos),
    };
    let number = of.and_then(|of| of.checked_div(unit)).and_then(|n| i64::try_from(n).ok());
    Ok(Val::Int(in_range(number)?))
}
