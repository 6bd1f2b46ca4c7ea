//! Names, functions and types: a syntax tree becomes an expression that means something, or a list
//! of mistakes.

use super::{At, Form, Mistake, Tree};
use crate::limits::CEL_NESTING_MAX;
use crate::ruleset::{CelLoop, CelOp};

/// A checked expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ex {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Str(String),
    /// A dotted path.
    Attr(String),
    HasAttr(String),
    AttrIsNull(String),
    Now,
    FlagKey,
    Var(u32),
    List(Vec<Ex>),
    Map(Vec<Ex>),
    Select(Box<Ex>, String),
    Has(Box<Ex>, String),
    Matches(Box<Ex>, String),
    Call(CelOp, Vec<Ex>),
    Loop {
        kind: CelLoop,
        over: Box<Ex>,
        filter: Option<Box<Ex>>,
        body: Box<Ex>,
    },
}

/// What is known of a value before there is a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ty {
    Dyn,
    Null,
    Bool,
    Int,
    Double,
    String,
    List,
    Map,
    Timestamp,
    Duration,
}

impl Ty {
    fn name(self) -> &'static str {
        match self {
            Ty::Dyn => "dyn",
            Ty::Null => "null",
            Ty::Bool => "bool",
            Ty::Int => "int",
            Ty::Double => "double",
            Ty::String => "string",
            Ty::List => "list",
            Ty::Map => "map",
            Ty::Timestamp => "timestamp",
            Ty::Duration => "duration",
        }
    }

    fn may_be(self, wanted: &[Ty]) -> bool {
        self == Ty::Dyn || wanted.contains(&self)
    }

    fn is_number(self) -> bool {
        matches!(self, Ty::Int | Ty::Double)
    }
}

const FUNCTIONS: &str = "size, int, double, string, bool, timestamp, duration, dyn and has";
const METHODS: &str = "contains, startsWith, endsWith, matches, size, lowerAscii, upperAscii, trim, \
                       charAt, indexOf, lastIndexOf, substring, replace, split, join, getFullYear, \
                       getMonth, getDate, getDayOfMonth, getDayOfWeek, getDayOfYear, getHours, \
                       getMinutes, getSeconds, getMilliseconds, all, exists, exists_one, filter and \
                       map";

/// `condition`: the result must be a boolean, as far as is known.
pub(crate) fn check(tree: &Tree, condition: bool) -> (Ex, Vec<Mistake>) {
    let mut checker = Checker { vars: Vec::new(), mistakes: Vec::new() };
    let (ex, ty) = checker.ex(tree, 1);
    if condition && !ty.may_be(&[Ty::Bool]) {
        let message = format!("a condition is a bool, and this is a {}", ty.name());
        checker.type_mistake(tree.at, message);
    }
    checker.mistakes.sort_by_key(|mistake| mistake.at);
    (ex, checker.mistakes)
}

struct Checker<'t> {
    /// Variables of the loops around, the innermost last.
    vars: Vec<&'t str>,
    mistakes: Vec<Mistake>,
}

type Checked = (Ex, Ty);
/// Stands for what is wrong and was told.
const WRONG: Checked = (Ex::Null, Ty::Dyn);

impl<'t> Checker<'t> {
    fn mistake(&mut self, at: At, message: impl Into<String>) -> Checked {
        self.mistakes.push(Mistake::new(at, message));
        WRONG
    }

    fn type_mistake(&mut self, at: At, message: impl Into<String>) {
        self.mistakes.push(Mistake { is_type: true, ..Mistake::new(at, message) });
    }

    fn ex(&mut self, tree: &'t Tree, depth: usize) -> Checked {
        if depth > CEL_NESTING_MAX {
            return self.mistake(
                tree.at,
                format!(
                    "nested deeper than {CEL_NESTING_MAX} levels; each operand of a long chain of \
                     one operator is a level, but for && and ||"
                ),
            );
        }
        if let Some(path) = self.path(tree) {
            return (Ex::Attr(path), Ty::Dyn);
        }
        let inner = depth.saturating_add(1);
        match &tree.is {
            Form::Null => (Ex::Null, Ty::Null),
            Form::Bool(value) => (Ex::Bool(*value), Ty::Bool),
            Form::Int(value) => (Ex::Int(*value), Ty::Int),
            Form::Double(value) => (Ex::Double(*value), Ty::Double),
            Form::String(text) => (Ex::Str(text.clone()), Ty::String),
            Form::Name(name) => self.name(tree.at, name),
            Form::Unsupported(what) => self.mistake(tree.at, what.clone()),
            Form::Select(of, field) => {
                if let Some(checked) = self.special(tree.at, of, field) {
                    return checked;
                }
                let (of_ex, ty) = self.ex(of, inner);
                if !ty.may_be(&[Ty::Map]) {
                    let message = format!("a {} has no fields, so no {field:?}", ty.name());
                    self.type_mistake(tree.at, message);
                }
                (Ex::Select(Box::new(of_ex), field.clone()), Ty::Dyn)
            }
            Form::List(items) => {
                let items = items.iter().map(|item| self.ex(item, inner).0).collect();
                (Ex::List(items), Ty::List)
            }
            Form::Map(entries) => {
                let mut flat = Vec::new();
                for (key, value) in entries {
                    let (key_ex, ty) = self.ex(key, inner);
                    if !ty.may_be(&[Ty::String, Ty::Int, Ty::Bool]) {
                        let message =
                            format!("a map's keys are strings, ints or bools, not {}", ty.name());
                        self.type_mistake(key.at, message);
                    }
                    flat.push(key_ex);
                    flat.push(self.ex(value, inner).0);
                }
                (Ex::Map(flat), Ty::Map)
            }
            Form::Call(name, target, args) => {
                self.call(tree.at, name, target.as_deref(), args, depth)
            }
        }
    }

    /// The attribute that a chain of names is, if it is one.
    fn path(&self, tree: &Tree) -> Option<String> {
        let (of, field) = match &tree.is {
            Form::Name(name) => {
                let plain = name.strip_prefix('.').unwrap_or(name);
                let bound = self.vars.contains(&name.as_str());
                let special = matches!(plain, "now" | "context" | "flag");
                return (!bound && !special).then(|| plain.to_owned());
            }
            Form::Select(of, field) => (of.as_ref(), field),
            Form::Call(name, None, args) if name == "_[_]" => match args.as_slice() {
                [of, Tree { is: Form::String(field), .. }] => (of, field),
                _ => return None,
            },
            _ => return None,
        };
        if self.is_context(of) {
            return (!field.is_empty()).then(|| field.clone());
        }
        // A dot inside of a name would be taken for another level.
        if field.contains('.') {
            return None;
        }
        let mut path = self.path(of)?;
        path.push('.');
        path.push_str(field);
        Some(path)
    }

    fn is_context(&self, tree: &Tree) -> bool {
        let Form::Name(name) = &tree.is else { return false };
        name.strip_prefix('.').unwrap_or(name) == "context" && !self.vars.contains(&name.as_str())
    }

    fn name(&mut self, at: At, name: &str) -> Checked {
        let bound = self.vars.iter().rposition(|var| *var == name);
        if let Some(slot) = bound {
            return (Ex::Var(u32::try_from(slot).unwrap_or(u32::MAX)), Ty::Dyn);
        }
        match name.strip_prefix('.').unwrap_or(name) {
            "now" => (Ex::Now, Ty::Timestamp),
            "context" => self.mistake(
                at,
                "context is no value of its own; name an attribute of it, as in context.country or \
                 context['with space']",
            ),
            _ => self.mistake(at, "flag has a key and nothing else: flag.key"),
        }
    }

    /// `flag.key`.
    fn special(&mut self, at: At, of: &Tree, field: &str) -> Option<Checked> {
        let Form::Name(name) = &of.is else { return None };
        if name.strip_prefix('.').unwrap_or(name) != "flag" || self.vars.contains(&name.as_str()) {
            return None;
        }
        Some(match field {
            "key" => (Ex::FlagKey, Ty::String),
            _ => self.mistake(at, format!("flag has a key and nothing else, so no {field:?}")),
        })
    }

    fn call(
        &mut self,
        at: At,
        name: &'t str,
        target: Option<&'t Tree>,
        args: &'t [Tree],
        depth: usize,
    ) -> Checked {
        let inner = depth.saturating_add(1);
        match (name, target, args) {
            ("has", None, [of]) => return self.has(of, inner),
            ("dyn", None, [of]) => return (self.ex(of, depth).0, Ty::Dyn),
            ("_&&_" | "_||_", None, args) => {
                let op = if name == "_&&_" { CelOp::And } else { CelOp::Or };
                let mut flat = Vec::new();
                for arg in args {
                    self.logical(op, arg, depth, &mut flat);
                }
                return (Ex::Call(op, flat), Ty::Bool);
            }
            ("matches", Some(of), [pattern]) => return self.matches(of, pattern, inner),
            ("matches", None, [of, pattern]) => return self.matches(of, pattern, inner),
            ("_==_" | "_!=_", None, [a, b]) => {
                if let Some(checked) = self.null_test(name == "_!=_", a, b) {
                    return checked;
                }
            }
            _ => {}
        }
        if let (Some(target), Some(kind)) = (target, loop_named(name)) {
            return self.comprehension(at, name, kind, target, args, depth);
        }
        let Some(op) = op_named(name, target.is_some()) else {
            return self.unknown(at, name, target.is_some(), args.len());
        };
        let mut exs = Vec::new();
        let mut types = Vec::new();
        for arg in target.into_iter().chain(args) {
            let (ex, ty) = self.ex(arg, inner);
            exs.push(ex);
            types.push(ty);
        }
        let (least, most) = op.arity();
        if exs.len() < least || exs.len() > most {
            let own = usize::from(target.is_some());
            let (least, most) = (least.saturating_sub(own), most.saturating_sub(own));
            let wanted =
                if least == most { format!("{least}") } else { format!("{least} or {most}") };
            let count = args.len();
            return self.mistake(at, format!("{name} takes {wanted} arguments, not {count}"));
        }
        let ty = match result_of(op, &types) {
            Ok(ty) => ty,
            Err(wanted) => {
                let found: Vec<&str> = types.iter().map(|ty| ty.name()).collect();
                let found = found.join(" and ");
                self.type_mistake(at, format!("{} takes {wanted}, not {found}", op.name()));
                Ty::Dyn
            }
        };
        self.check_constants(at, op, &exs);
        (Ex::Call(op, exs), ty)
    }

    /// An operand, or the operands of the same operator inside of it: a long chain is one level.
    fn logical(&mut self, op: CelOp, tree: &'t Tree, depth: usize, into: &mut Vec<Ex>) {
        let name = if op == CelOp::And { "_&&_" } else { "_||_" };
        if let Form::Call(same, None, args) = &tree.is
            && same == name
        {
            // The parser balances these chains; what is deeper than its own depth limit is not from it.
            for arg in args {
                self.logical(op, arg, depth, into);
            }
            return;
        }
        let (ex, ty) = self.ex(tree, depth.saturating_add(1));
        if !ty.may_be(&[Ty::Bool]) {
            let message = format!("{} takes bools, and this is a {}", op.name(), ty.name());
            self.type_mistake(tree.at, message);
        }
        into.push(ex);
    }

    fn has(&mut self, of: &'t Tree, depth: usize) -> Checked {
        if let Some(path) = self.path(of) {
            return (Ex::HasAttr(path), Ty::Bool);
        }
        match &of.is {
            Form::Select(of, field) => {
                let (ex, ty) = self.ex(of, depth);
                if !ty.may_be(&[Ty::Map]) {
                    let message = format!("a {} has no fields, so no {field:?}", ty.name());
                    self.type_mistake(of.at, message);
                }
                (Ex::Has(Box::new(ex), field.clone()), Ty::Bool)
            }
            _ => self.mistake(of.at, "has takes an attribute or a field, as in has(user.email)"),
        }
    }

    fn matches(&mut self, of: &'t Tree, pattern: &'t Tree, depth: usize) -> Checked {
        let (ex, ty) = self.ex(of, depth);
        if !ty.may_be(&[Ty::String]) {
            self.type_mistake(of.at, format!("matches takes a string, not {}", ty.name()));
        }
        let Form::String(source) = &pattern.is else {
            return self.mistake(
                pattern.at,
                "the pattern of matches is a literal text, so that it can be checked here",
            );
        };
        if let Err(message) = crate::compile::check_pattern(source, false) {
            return self.mistake(pattern.at, message);
        }
        (Ex::Matches(Box::new(ex), source.clone()), Ty::Bool)
    }

    /// An attribute against the literal null.
    fn null_test(&mut self, differs: bool, a: &Tree, b: &Tree) -> Option<Checked> {
        let path = match (&a.is, &b.is) {
            (_, Form::Null) => self.path(a)?,
            (Form::Null, _) => self.path(b)?,
            _ => return None,
        };
        let test = Ex::AttrIsNull(path);
        let ex = if differs { Ex::Call(CelOp::Not, vec![test]) } else { test };
        Some((ex, Ty::Bool))
    }

    fn comprehension(
        &mut self,
        at: At,
        name: &str,
        kind: CelLoop,
        over: &'t Tree,
        args: &'t [Tree],
        depth: usize,
    ) -> Checked {
        let inner = depth.saturating_add(1);
        let (over_ex, ty) = self.ex(over, inner);
        if !ty.may_be(&[Ty::List, Ty::Map]) {
            let message = format!("{name} goes over a list or a map, not over a {}", ty.name());
            self.type_mistake(over.at, message);
        }
        let (var, filter, body) = match (kind, args) {
            (CelLoop::Map, [var, filter, body]) => (var, Some(filter), body),
            (_, [var, body]) => (var, None, body),
            _ => {
                let message =
                    format!("{name} takes a variable and an expression, as in {name}(x, …)");
                return self.mistake(at, message);
            }
        };
        let Form::Name(name) = &var.is else {
            return self.mistake(var.at, "the variable of a loop is a plain name");
        };
        if name.starts_with('.') || matches!(name.as_str(), "now" | "context" | "flag") {
            return self.mistake(var.at, format!("{name:?} cannot be a loop's variable"));
        }
        self.vars.push(name);
        let mut test = |tree: &'t Tree, is_test: bool| {
            let (ex, ty) = self.ex(tree, inner);
            if is_test && !ty.may_be(&[Ty::Bool]) {
                let message = format!("this decides about elements: a bool, not a {}", ty.name());
                self.type_mistake(tree.at, message);
            }
            Box::new(ex)
        };
        let filter = filter.map(|filter| test(filter, true));
        let body = test(body, kind != CelLoop::Map);
        self.vars.pop();
        let ty = match kind {
            CelLoop::Map | CelLoop::Filter => Ty::List,
            CelLoop::All | CelLoop::Exists | CelLoop::ExistsOne => Ty::Bool,
        };
        (Ex::Loop { kind, over: Box::new(over_ex), filter, body }, ty)
    }

    fn unknown(&mut self, at: At, name: &str, is_method: bool, count: usize) -> Checked {
        let other_form = op_named(name, !is_method).is_some()
            || (!is_method && loop_named(name).is_some())
            || matches!(name, "has" | "dyn" | "matches");
        let message = match name {
            "uint" | "bytes" | "type" => format!(
                "{name}() is not supported: contexts are JSON, which has neither unsigned numbers, \
                 bytes nor types as values"
            ),
            "format" | "quote" | "reverse" | "transformList" | "transformMap"
            | "transformMapEntry" | "existsOne2" | "sort" | "flatten" | "slice" | "distinct" => {
                format!("the extension function {name} is not supported; there are {METHODS}")
            }
            _ if other_form && is_method => {
                format!("{name} is no method, or not of {count} arguments; write {name}(…)")
            }
            _ if other_form => format!("{name} is a method; write x.{name}(…)"),
            _ if is_method => format!("there is no method {name:?}; there are {METHODS}"),
            _ => format!("there is no function {name:?}; there are {FUNCTIONS}, and methods"),
        };
        self.mistake(at, message)
    }

    /// Constants that can never work.
    fn check_constants(&mut self, at: At, op: CelOp, args: &[Ex]) {
        let message = match (op, args) {
            (CelOp::ToTimestamp, [Ex::Str(text)]) if super::time::timestamp(text).is_none() => {
                format!("{text:?} is no timestamp, such as 2026-01-31T08:00:00Z")
            }
            (CelOp::ToDuration, [Ex::Str(text)]) if super::time::duration(text).is_none() => {
                format!("{text:?} is no duration, such as 1h30m, 10s or 500ms")
            }
            (op, [_, Ex::Str(zone)]) if op.is_part() && super::time::offset(zone).is_none() => {
                format!(
                    "{zone:?} is no offset from UTC, such as +02:00; names of time zones are not \
                 supported, because the edges and browsers that evaluate this carry no table of them"
                )
            }
            _ => return,
        };
        self.type_mistake(at, message);
    }
}

fn loop_named(name: &str) -> Option<CelLoop> {
    Some(match name {
        "all" => CelLoop::All,
        "exists" => CelLoop::Exists,
        "exists_one" | "existsOne" => CelLoop::ExistsOne,
        "map" => CelLoop::Map,
        "filter" => CelLoop::Filter,
        _ => return None,
    })
}

fn op_named(name: &str, is_method: bool) -> Option<CelOp> {
    use CelOp::*;
    Some(match (name, is_method) {
        ("!_", false) => Not,
        ("_?_:_", false) => If,
        ("_==_", false) => Eq,
        ("_!=_", false) => Ne,
        ("_<_", false) => Lt,
        ("_<=_", false) => Lte,
        ("_>_", false) => Gt,
        ("_>=_", false) => Gte,
        ("@in", false) => In,
        ("_+_", false) => Add,
        ("_-_", false) => Subtract,
        ("_*_", false) => Multiply,
        ("_/_", false) => Divide,
        ("_%_", false) => Remainder,
        ("-_", false) => Negate,
        ("_[_]", false) => Index,
        ("size", _) => Size,
        ("int", false) => ToInt,
        ("double", false) => ToDouble,
        ("string", false) => ToString,
        ("bool", false) => ToBool,
        ("timestamp", false) => ToTimestamp,
        ("duration", false) => ToDuration,
        ("contains", true) => Contains,
        ("startsWith", true) => StartsWith,
        ("endsWith", true) => EndsWith,
        ("lowerAscii", true) => LowerAscii,
        ("upperAscii", true) => UpperAscii,
        ("trim", true) => Trim,
        ("charAt", true) => CharAt,
        ("indexOf", true) => IndexOf,
        ("lastIndexOf", true) => LastIndexOf,
        ("substring", true) => Substring,
        ("replace", true) => Replace,
        ("split", true) => Split,
        ("join", true) => Join,
        ("getFullYear", true) => FullYear,
        ("getMonth", true) => Month,
        ("getDate", true) => Date,
        ("getDayOfMonth", true) => DayOfMonth,
        ("getDayOfWeek", true) => DayOfWeek,
        ("getDayOfYear", true) => DayOfYear,
        ("getHours", true) => Hours,
        ("getMinutes", true) => Minutes,
        ("getSeconds", true) => Seconds,
        ("getMilliseconds", true) => Milliseconds,
        _ => return None,
    })
}

/// The result's type, or what the operation takes instead.
fn result_of(op: CelOp, types: &[Ty]) -> Result<Ty, &'static str> {
    use Ty::*;
    let at = |index: usize| types.get(index).copied().unwrap_or(Dyn);
    let (a, b) = (at(0), at(1));
    let all = |wanted: &[Ty]| types.iter().all(|ty| ty.may_be(wanted));
    let then = |holds: bool, ty: Ty, wanted: &'static str| if holds { Ok(ty) } else { Err(wanted) };
    let text_and_numbers = a.may_be(&[String]) && b.may_be(&[String]) && at(2).may_be(&[Int]);
    match op {
        CelOp::And | CelOp::Or => then(all(&[Bool]), Bool, "bools"),
        CelOp::Not => then(all(&[Bool]), Bool, "a bool"),
        CelOp::If => {
            let (yes, no) = (at(1), at(2));
            then(a.may_be(&[Bool]), if yes == no { yes } else { Dyn }, "a bool before the ?")
        }
        CelOp::Eq | CelOp::Ne => {
            let comparable = a == b
                || [a, b].contains(&Dyn)
                || [a, b].contains(&Null)
                || (a.is_number() && b.is_number());
            then(comparable, Bool, "two values of one type")
        }
        CelOp::Lt | CelOp::Lte | CelOp::Gt | CelOp::Gte => {
            let ordered = [Int, Double, String, Bool, Timestamp, Duration];
            let alike = a == b || [a, b].contains(&Dyn) || (a.is_number() && b.is_number());
            let what = "two numbers, strings, bools, timestamps or durations";
            then(all(&ordered) && alike, Bool, what)
        }
        CelOp::In => then(b.may_be(&[List, Map]), Bool, "a list or a map on its right"),
        CelOp::Add => match (a, b) {
            (Int, Int) => Ok(Int),
            (Double, Double) => Ok(Double),
            (String, String) => Ok(String),
            (List, List) => Ok(List),
            (Duration, Duration) => Ok(Duration),
            (Timestamp, Duration) | (Duration, Timestamp) => Ok(Timestamp),
            (Dyn, other) | (other, Dyn)
                if other.may_be(&[Int, Double, String, List, Timestamp, Duration]) =>
            {
                Ok(if matches!(other, String | List) { other } else { Dyn })
            }
            _ => Err("two ints, doubles, strings, lists or durations, or a timestamp and a \
                      duration (int(…) and double(…) convert)"),
        },
        CelOp::Subtract => match (a, b) {
            (Int, Int) => Ok(Int),
            (Double, Double) => Ok(Double),
            (Duration, Duration) | (Timestamp, Timestamp) => Ok(Duration),
            (Timestamp, Duration) => Ok(Timestamp),
            (Dyn, other) if other.may_be(&[Int, Double, Timestamp, Duration]) => Ok(Dyn),
            (other, Dyn) if other.may_be(&[Int, Double, Timestamp, Duration]) => Ok(Dyn),
            _ => Err("two ints, doubles, durations or timestamps, or a timestamp and a duration \
                      (int(…) and double(…) convert)"),
        },
        CelOp::Multiply | CelOp::Divide => match (a, b) {
            (Int, Int) => Ok(Int),
            (Double, Double) => Ok(Double),
            (Dyn, other) | (other, Dyn) if other.may_be(&[Int, Double]) => Ok(Dyn),
            _ => Err("two ints or two doubles (int(…) and double(…) convert)"),
        },
        CelOp::Remainder => then(all(&[Int]), Int, "two ints"),
        CelOp::Negate => then(all(&[Int, Double]), a, "an int or a double"),
        CelOp::Index => match a {
            List => then(b.may_be(&[Int, Double]), Dyn, "an int to find an element of a list"),
            Map => then(b.may_be(&[String, Int, Bool, Double]), Dyn, "a key to find in a map"),
            Dyn => Ok(Dyn),
            _ => Err("a list or a map before it"),
        },
        CelOp::Size => then(a.may_be(&[String, List, Map]), Int, "a string, a list or a map"),
        CelOp::Contains | CelOp::StartsWith | CelOp::EndsWith => {
            then(all(&[String]), Bool, "strings")
        }
        CelOp::LowerAscii | CelOp::UpperAscii | CelOp::Trim => {
            then(all(&[String]), String, "a string")
        }
        CelOp::CharAt => {
            then(a.may_be(&[String]) && b.may_be(&[Int]), String, "a string and an int")
        }
        CelOp::IndexOf | CelOp::LastIndexOf => {
            then(text_and_numbers, Int, "a string, a text to find, and perhaps an int to begin at")
        }
        CelOp::Substring => {
            let holds = a.may_be(&[String]) && b.may_be(&[Int]) && at(2).may_be(&[Int]);
            then(holds, String, "a string and one or two ints")
        }
        CelOp::Replace => {
            let holds = text_and_numbers_of(types, 3);
            then(holds, String, "a string, what to replace by what, and perhaps how often")
        }
        CelOp::Split => then(text_and_numbers, List, "a string, a separator, and perhaps a limit"),
        CelOp::Join => {
            then(a.may_be(&[List]) && b.may_be(&[String]), String, "a list and perhaps a separator")
        }
        CelOp::ToInt => then(
            a.may_be(&[Int, Double, String, Timestamp]),
            Int,
            "a number, a string or a timestamp",
        ),
        CelOp::ToDouble => then(a.may_be(&[Int, Double, String]), Double, "a number or a string"),
        CelOp::ToString => then(
            a.may_be(&[Int, Double, String, Bool, Timestamp, Duration]),
            String,
            "a number, a bool, a string, a timestamp or a duration",
        ),
        CelOp::ToBool => then(a.may_be(&[Bool, String]), Bool, "a bool or a string"),
        CelOp::ToTimestamp => then(
            a.may_be(&[String, Int, Timestamp]),
            Timestamp,
            "a string, or an int of seconds since 1970",
        ),
        CelOp::ToDuration => then(a.may_be(&[String, Duration]), Duration, "a string"),
        CelOp::FullYear
        | CelOp::Month
        | CelOp::Date
        | CelOp::DayOfMonth
        | CelOp::DayOfWeek
        | CelOp::DayOfYear => then(
            a.may_be(&[Timestamp]) && b.may_be(&[String]),
            Int,
            "a timestamp, and perhaps an offset",
        ),
        CelOp::Hours | CelOp::Minutes | CelOp::Seconds | CelOp::Milliseconds => {
            let moment = a.may_be(&[Timestamp]) && b.may_be(&[String]);
            let span = types.len() < 2 && a.may_be(&[Duration]);
            then(moment || span, Int, "a timestamp, and perhaps an offset, or a duration")
        }
    }
}

/// So many strings, then perhaps an int.
fn text_and_numbers_of(types: &[Ty], texts: usize) -> bool {
    types
        .iter()
        .enumerate()
        .all(|(index, ty)| ty.may_be(if index < texts { &[Ty::String] } else { &[Ty::Int] }))
}
