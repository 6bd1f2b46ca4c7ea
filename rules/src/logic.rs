//! JSONLogic trees with flagd's operators: one kind of expression.
//!
//! `lower` turns a tree's JSON into nodes, once, in the compiler; `evaluate` runs nodes against a
//! context. Operators mean what jsonlogic.com's reference implementation in JavaScript does
//! (loose equality, number conversion, truthiness), with these differences, all on purpose:
//!
//! - A path is tried as one literal top-level key before its segments, as everywhere here.
//! - `substr` counts characters, not UTF-16 units, as flagd's Go engine does.
//! - Arrays and objects are equal to nothing, not even to themselves: there are no references.
//! - Unknown operators, wrong numbers of arguments and unresolved `$ref`s are found by `lower`.
//!
//! Evaluation ends: it takes `LOGIC_STEPS_MAX` steps at most, where a step is a node, an element
//! or 64 bytes of text built, copied, compared or parsed, so time and memory are both bounded.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io::Write as _;
use std::rc::Rc;

use serde_json::Value as Json;

use crate::context::{Context, Items, Value};
use crate::hash::{self, cbor};
use crate::limits::{LOGIC_NODES_MAX, LOGIC_STEPS_MAX, NESTING_MAX};
use crate::model::{Fractional, TARGETING_KEY, VersionRule};
use crate::ruleset::{Arg, Logic, LogicOp, Ruleset, Span, Text, slice};
use crate::version;

/// Bytes of a text that a tree may build; as long as a context may be.
const TEXT_BYTES_MAX: usize = crate::limits::CONTEXT_BYTES_MAX;
/// Nesting of arrays that a tree may build: a reduction can wrap its accumulator at each element,
/// and dropping a very deep one would overflow the stack.
const BUILT_DEPTH_MAX: u16 = 64;
/// Values that `Dyn::to_json` writes; the rest is null. Shared parts count each time.
const JSON_VALUES_MAX: u32 = 10_000;
/// The largest sum of weights that `fractional` takes (INTEROP 2.1).
const FRACTIONAL_TOTAL_MAX: i64 = i32::MAX as i64;

/// Where `lower` puts what it makes.
pub trait LogicSink {
    fn text(&mut self, text: &str) -> Text;
    /// Appends to `Ruleset::logic_refs`.
    fn refs(&mut self, children: &[u32]) -> Span;
    /// Appends to `Ruleset::logic`; the node's index.
    fn node(&mut self, node: Logic) -> u32;
}

/// A ruleset's own arenas; texts are appended, not shared.
impl LogicSink for Ruleset {
    fn text(&mut self, text: &str) -> Text {
        let start = self.text.len() as u32;
        self.text.push_str(text);
        Text { start, len: text.len() as u32 }
    }

    fn refs(&mut self, children: &[u32]) -> Span {
        let start = self.logic_refs.len() as u32;
        self.logic_refs.extend_from_slice(children);
        Span { start, len: children.len() as u32 }
    }

    fn node(&mut self, node: Logic) -> u32 {
        self.logic.push(node);
        (self.logic.len() as u32).wrapping_sub(1)
    }
}

/// What is wrong with a tree, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at {pointer:?})")]
pub struct LogicProblem {
    /// RFC 6901, from the tree's root.
    pub pointer: String,
    /// A lower-case fragment.
    pub message: String,
}

#[derive(Debug, Clone, Copy)]
pub struct LogicInput<'a> {
    pub rules: &'a Ruleset,
    pub flag_key: &'a str,
    pub context: Context<'a>,
    pub now_ms: i64,
}

/// Why an evaluation has no result. OpenFeature's PARSE_ERROR, as in flagd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogicError {
    #[error("the logic tree takes more than {LOGIC_STEPS_MAX} steps")]
    Steps,
    #[error("the logic tree is nested deeper than {NESTING_MAX} levels")]
    Depth,
    #[error("the logic tree builds a text or an array beyond its limits")]
    Size,
    #[error("the logic tree is damaged")]
    Broken,
}

/// A value at run time. Cloning is cheap unless it is a text that the tree built.
#[derive(Debug, Clone)]
pub enum Dyn<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
    Array(List<'a>),
    Object(Map<'a>),
}

#[derive(Debug, Clone)]
pub enum List<'a> {
    Context(Items<'a>),
    Built(Rc<BuiltList<'a>>),
}

#[derive(Debug)]
pub struct BuiltList<'a> {
    items: Vec<Dyn<'a>>,
    depth: u16,
}

#[derive(Debug, Clone)]
pub enum Map<'a> {
    Context(Items<'a>),
    Built(Rc<BuiltMap<'a>>),
}

#[derive(Debug)]
pub struct BuiltMap<'a> {
    entries: Vec<(Cow<'a, str>, Dyn<'a>)>,
    depth: u16,
}

/// Lowers a tree into `sink`; the index of its root. `fractional` is what that operator means.
pub fn lower(
    tree: &Json,
    fractional: Fractional,
    sink: &mut dyn LogicSink,
) -> Result<u32, LogicProblem> {
    let mut lowering = Lowering { fractional, sink, nodes: 0, at: Vec::new() };
    lowering.node(tree, 1, false).map_err(|message| LogicProblem {
        pointer: lowering.at.iter().map(|part| format!("/{part}")).collect(),
        message,
    })
}

struct Lowering<'s> {
    fractional: Fractional,
    sink: &'s mut dyn LogicSink,
    nodes: usize,
    /// Escaped segments of the pointer; left standing at a problem.
    at: Vec<String>,
}

impl Lowering<'_> {
    /// `quoted`: inside of an object that is no operation everything is data.
    fn node(&mut self, tree: &Json, depth: usize, quoted: bool) -> Result<u32, String> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > LOGIC_NODES_MAX {
            return Err(format!("the tree has more than {LOGIC_NODES_MAX} nodes"));
        }
        if depth > NESTING_MAX && (tree.is_array() || tree.is_object()) {
            return Err(format!("the tree is nested deeper than {NESTING_MAX} levels"));
        }
        let deeper = depth.saturating_add(1);
        let node = match tree {
            Json::Null => Logic::Literal(Arg::Null),
            Json::Bool(value) => Logic::Literal(Arg::Bool(*value)),
            Json::Number(number) => Logic::Literal(match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Arg::Int(number),
                (None, Some(number)) => Arg::Float(number),
                (None, None) => Arg::Null,
            }),
            Json::String(text) => Logic::Literal(Arg::Str(self.sink.text(text))),
            Json::Array(items) => Logic::Array(self.children(items, deeper, quoted)?),
            Json::Object(entries) => match (entries.len(), entries.iter().next()) {
                (1, Some((name, args))) if !quoted => {
                    self.at.push(escape(name));
                    let op = LogicOp::named(name).ok_or_else(|| unknown(name, args))?;
                    let args = match args {
                        Json::Array(args) => {
                            check_arity(op, name, args.len())?;
                            self.children(args, deeper, false)?
                        }
                        one => {
                            check_arity(op, name, 1)?;
                            let one = self.node(one, deeper, false)?;
                            self.sink.refs(&[one])
                        }
                    };
                    self.at.pop();
                    Logic::Call { op, args, fractional: self.fractional }
                }
                _ => {
                    let mut children = Vec::with_capacity(entries.len().saturating_mul(2));
                    for (key, value) in entries {
                        self.at.push(escape(key));
                        let key = self.sink.text(key);
                        children.push(self.sink.node(Logic::Literal(Arg::Str(key))));
                        children.push(self.node(value, deeper, true)?);
                        self.nodes = self.nodes.saturating_add(1);
                        self.at.pop();
                    }
                    Logic::Object(self.sink.refs(&children))
                }
            },
        };
        Ok(self.sink.node(node))
    }

    fn children(&mut self, items: &[Json], depth: usize, quoted: bool) -> Result<Span, String> {
        let mut children = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            self.at.push(index.to_string());
            children.push(self.node(item, depth, quoted)?);
            self.at.pop();
        }
        Ok(self.sink.refs(&children))
    }
}

/// A segment of a JSON pointer.
pub(crate) fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

fn unknown(name: &str, args: &Json) -> String {
    match (name, args) {
        ("$ref", Json::String(target)) => format!("$ref {target:?} names no evaluator"),
        _ => format!("unknown operator {name:?}; known: {}", LogicOp::names()),
    }
}

fn check_arity(op: LogicOp, name: &str, count: usize) -> Result<(), String> {
    let (min, max) = op.arity();
    if (min..=max).contains(&count) {
        return Ok(());
    }
    let wanted = match (min, max) {
        (min, max) if min == max => format!("{min}"),
        (min, usize::MAX) => format!("at least {min}"),
        (min, max) => format!("{min} to {max}"),
    };
    Err(format!("{name:?} takes {wanted} arguments, not {count}"))
}

impl LogicOp {
    const NAMES: [(&'static str, LogicOp); 39] = [
        ("var", LogicOp::Var),
        ("missing", LogicOp::Missing),
        ("missing_some", LogicOp::MissingSome),
        ("if", LogicOp::If),
        ("?:", LogicOp::If),
        ("==", LogicOp::Eq),
        ("===", LogicOp::StrictEq),
        ("!=", LogicOp::Ne),
        ("!==", LogicOp::StrictNe),
        ("!", LogicOp::Not),
        ("!!", LogicOp::Truthy),
        ("or", LogicOp::Or),
        ("and", LogicOp::And),
        (">", LogicOp::Gt),
        (">=", LogicOp::Gte),
        ("<", LogicOp::Lt),
        ("<=", LogicOp::Lte),
        ("max", LogicOp::Max),
        ("min", LogicOp::Min),
        ("+", LogicOp::Add),
        ("-", LogicOp::Subtract),
        ("*", LogicOp::Multiply),
        ("/", LogicOp::Divide),
        ("%", LogicOp::Remainder),
        ("map", LogicOp::Map),
        ("reduce", LogicOp::Reduce),
        ("filter", LogicOp::Filter),
        ("all", LogicOp::All),
        ("none", LogicOp::None),
        ("some", LogicOp::Some),
        ("merge", LogicOp::Merge),
        ("in", LogicOp::In),
        ("cat", LogicOp::Cat),
        ("substr", LogicOp::Substr),
        ("log", LogicOp::Log),
        ("fractional", LogicOp::Fractional),
        ("sem_ver", LogicOp::SemVer),
        ("starts_with", LogicOp::StartsWith),
        ("ends_with", LogicOp::EndsWith),
    ];

    pub fn named(name: &str) -> Option<LogicOp> {
        LogicOp::NAMES.iter().find(|(known, _)| *known == name).map(|(_, op)| *op)
    }

    pub fn names() -> String {
        LogicOp::NAMES.map(|(name, _)| name).join(", ")
    }

    /// The numbers of arguments that make sense. flagd's operators take any: they answer null.
    fn arity(self) -> (usize, usize) {
        match self {
            LogicOp::Eq
            | LogicOp::StrictEq
            | LogicOp::Ne
            | LogicOp::StrictNe
            | LogicOp::Gt
            | LogicOp::Gte
            | LogicOp::Divide
            | LogicOp::Remainder
            | LogicOp::Map
            | LogicOp::Filter
            | LogicOp::All
            | LogicOp::None
            | LogicOp::Some
            | LogicOp::In
            | LogicOp::MissingSome => (2, 2),
            LogicOp::Lt | LogicOp::Lte | LogicOp::Substr | LogicOp::Reduce => (2, 3),
            LogicOp::Not | LogicOp::Truthy | LogicOp::Log => (1, 1),
            LogicOp::Subtract => (1, 2),
            LogicOp::Var => (0, 2),
            LogicOp::Multiply | LogicOp::And | LogicOp::Or => (1, usize::MAX),
            LogicOp::Missing
            | LogicOp::If
            | LogicOp::Max
            | LogicOp::Min
            | LogicOp::Add
            | LogicOp::Merge
            | LogicOp::Cat
            | LogicOp::Fractional
            | LogicOp::SemVer
            | LogicOp::StartsWith
            | LogicOp::EndsWith => (0, usize::MAX),
        }
    }
}

/// The result of the tree at `node`. `scratch` is a buffer to reuse; its content means nothing.
/// The common shapes (`if`, comparisons, `in`, `fractional`) allocate nothing beside it.
pub fn evaluate<'a>(
    input: &LogicInput<'a>,
    node: u32,
    scratch: &mut Vec<u8>,
) -> Result<Dyn<'a>, LogicError> {
    let mut machine =
        Machine { input: *input, steps: LOGIC_STEPS_MAX, scratch: std::mem::take(scratch) };
    let result = machine.run(node, Scope::Context, 1);
    *scratch = machine.scratch;
    result
}

/// What `var` reads.
#[derive(Clone, Copy)]
enum Scope<'s, 'a> {
    Context,
    Item(&'s Dyn<'a>),
    Fold { current: &'s Dyn<'a>, accumulator: &'s Dyn<'a> },
}

struct Machine<'a> {
    input: LogicInput<'a>,
    /// Left to take.
    steps: u32,
    scratch: Vec<u8>,
}

type Run<'a> = Result<Dyn<'a>, LogicError>;

impl<'a> Machine<'a> {
    fn take(&mut self, steps: usize) -> Result<(), LogicError> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps.checked_sub(steps));
        self.steps = left.ok_or(LogicError::Steps)?;
        Ok(())
    }

    /// Before a text is copied, compared or parsed as a whole.
    fn take_text(&mut self, value: &Dyn<'a>) -> Result<(), LogicError> {
        match value {
            Dyn::Str(text) if text.len() >= 64 => self.take(text.len() / 64),
            _ => Ok(()),
        }
    }

    fn node(&self, index: u32) -> Result<&'a Logic, LogicError> {
        self.input.rules.logic.get(index as usize).ok_or(LogicError::Broken)
    }

    fn children(&self, span: Span) -> &'a [u32] {
        slice(&self.input.rules.logic_refs, span)
    }

    fn run(&mut self, index: u32, scope: Scope<'_, 'a>, depth: usize) -> Run<'a> {
        self.take(1)?;
        match *self.node(index)? {
            Logic::Literal(arg) => Ok(self.literal(arg)),
            _ if depth > NESTING_MAX => Err(LogicError::Depth),
            Logic::Array(items) => {
                let children = self.children(items);
                let mut items = Vec::with_capacity(children.len());
                for child in children {
                    items.push(self.run(*child, scope, depth.saturating_add(1))?);
                }
                Dyn::list(items)
            }
            Logic::Object(entries) => {
                let children = self.children(entries);
                let mut entries = Vec::with_capacity(children.len() / 2);
                for pair in children.chunks_exact(2) {
                    let [key, value] = pair else { return Err(LogicError::Broken) };
                    let Dyn::Str(key) = self.run(*key, scope, depth.saturating_add(1))? else {
                        return Err(LogicError::Broken);
                    };
                    entries.push((key, self.run(*value, scope, depth.saturating_add(1))?));
                }
                Dyn::map(entries)
            }
            Logic::Call { op, args, fractional } => {
                let mut call = Call { machine: self, scope, depth: depth.saturating_add(1) };
                call.run(op, args, fractional)
            }
        }
    }

    fn literal(&self, arg: Arg) -> Dyn<'a> {
        match arg {
            Arg::Bool(value) => Dyn::Bool(value),
            Arg::Int(number) => Dyn::Int(number),
            Arg::Float(number) => Dyn::Float(number),
            Arg::Str(text) => Dyn::Str(Cow::Borrowed(self.input.rules.str(text))),
            _ => Dyn::Null,
        }
    }

    /// The value at a path, as `scope` has it.
    fn lookup(&self, scope: Scope<'_, 'a>, path: &str) -> Option<Dyn<'a>> {
        let item;
        let value = match scope {
            Scope::Context => return self.lookup_context(path),
            Scope::Item(value) => value,
            Scope::Fold { current, accumulator } => {
                let (first, rest) = match path.split_once('.') {
                    Some((first, rest)) => (first, Some(rest)),
                    None => (path, None),
                };
                item = match first {
                    "current" => current,
                    "accumulator" => accumulator,
                    _ => return None,
                };
                match rest {
                    None => return Some(item.clone()),
                    Some(rest) => return walk(item, rest),
                }
            }
        };
        value.entry(path).or_else(|| walk(value, path))
    }

    fn lookup_context(&self, path: &str) -> Option<Dyn<'a>> {
        if let Some(rest) = path.strip_prefix("$flagd")
            && (rest.is_empty() || rest.starts_with('.'))
        {
            // The caller's own `$flagd` is not looked at.
            return match rest {
                ".flagKey" => Some(Dyn::Str(Cow::Borrowed(self.input.flag_key))),
                ".timestamp" => Some(Dyn::Int(self.seconds())),
                "" => self.own_properties().ok(),
                _ => None,
            };
        }
        let root = self.input.context.root();
        root.get(path).map(Dyn::from_context).or_else(|| {
            let (first, rest) = path.split_once('.')?;
            walk(&Dyn::from_context(root.get(first)?), rest)
        })
    }

    fn seconds(&self) -> i64 {
        self.input.now_ms.div_euclid(1_000)
    }

    fn own_properties(&self) -> Run<'a> {
        Dyn::map(vec![
            (Cow::Borrowed("flagKey"), Dyn::Str(Cow::Borrowed(self.input.flag_key))),
            (Cow::Borrowed("timestamp"), Dyn::Int(self.seconds())),
        ])
    }

    /// All that `var ""` sees.
    fn everything(&mut self, scope: Scope<'_, 'a>) -> Run<'a> {
        match scope {
            Scope::Item(value) => Ok(value.clone()),
            Scope::Fold { current, accumulator } => Dyn::map(vec![
                (Cow::Borrowed("current"), current.clone()),
                (Cow::Borrowed("accumulator"), accumulator.clone()),
            ]),
            Scope::Context => {
                let root = self.input.context.root();
                self.take(root.len())?;
                let mut entries: Vec<_> = root
                    .entries()
                    .filter(|(key, _)| *key != "$flagd" && !key.starts_with("$flagd."))
                    .map(|(key, value)| (Cow::Borrowed(key), Dyn::from_context(value)))
                    .collect();
                entries.push((Cow::Borrowed("$flagd"), self.own_properties()?));
                Dyn::map(entries)
            }
        }
    }

    /// Appends JavaScript's `String(value)`; `joined` writes null as nothing, as `join` does.
    fn write(
        &mut self,
        value: &Dyn<'a>,
        joined: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), LogicError> {
        let before = out.len();
        match value {
            Dyn::Null if joined => {}
            Dyn::Null => out.extend_from_slice(b"null"),
            Dyn::Bool(true) => out.extend_from_slice(b"true"),
            Dyn::Bool(false) => out.extend_from_slice(b"false"),
            // Writing to a vector cannot fail.
            Dyn::Int(number) => drop(write!(out, "{number}")),
            Dyn::Float(number) => write_float(*number, out),
            Dyn::Str(text) => out.extend_from_slice(text.as_bytes()),
            Dyn::Object(_) => out.extend_from_slice(b"[object Object]"),
            Dyn::Array(list) => {
                for (index, item) in list.iter().enumerate() {
                    self.take(1)?;
                    if index > 0 {
                        out.push(b',');
                    }
                    self.write(&item, true, out)?;
                }
            }
        }
        self.take(out.len().saturating_sub(before) / 64)?;
        if out.len() > TEXT_BYTES_MAX { Err(LogicError::Size) } else { Ok(()) }
    }

    fn text_of(&mut self, value: &Dyn<'a>) -> Result<Cow<'a, str>, LogicError> {
        if let Dyn::Str(text) = value {
            self.take_text(value)?;
            return Ok(text.clone());
        }
        let mut out = Vec::new();
        self.write(value, false, &mut out)?;
        String::from_utf8(out).map(Cow::Owned).map_err(|_| LogicError::Broken)
    }

    /// Arrays and objects as the text that JavaScript compares them by.
    fn primitive(&mut self, value: Dyn<'a>) -> Run<'a> {
        match value {
            Dyn::Array(_) | Dyn::Object(_) => Ok(Dyn::Str(self.text_of(&value)?)),
            value => Ok(value),
        }
    }

    /// JavaScript's `Number(value)`.
    fn number(&mut self, value: &Dyn<'a>) -> Result<f64, LogicError> {
        self.take_text(value)?;
        Ok(match value {
            Dyn::Array(_) => parse_number(&self.text_of(value)?),
            other => other.plain_number(),
        })
    }

    /// JavaScript's `parseFloat(value)`.
    fn parsed_float(&mut self, value: &Dyn<'a>) -> Result<f64, LogicError> {
        self.take_text(value)?;
        Ok(match value {
            Dyn::Int(number) => *number as f64,
            Dyn::Float(number) => *number,
            Dyn::Str(text) => parse_float(text),
            Dyn::Array(_) => parse_float(&self.text_of(value)?),
            Dyn::Null | Dyn::Bool(_) | Dyn::Object(_) => f64::NAN,
        })
    }

    fn loosely_equal(&mut self, a: Dyn<'a>, b: Dyn<'a>) -> Result<bool, LogicError> {
        match (&a, &b) {
            (Dyn::Null, Dyn::Null) => return Ok(true),
            (Dyn::Null, _) | (_, Dyn::Null) => return Ok(false),
            (Dyn::Array(_) | Dyn::Object(_), Dyn::Array(_) | Dyn::Object(_)) => return Ok(false),
            _ => {}
        }
        let (a, b) = (self.primitive(a)?, self.primitive(b)?);
        self.take_text(&a)?;
        self.take_text(&b)?;
        Ok(match (&a, &b) {
            (Dyn::Str(a), Dyn::Str(b)) => a == b,
            (Dyn::Int(a), Dyn::Int(b)) => a == b,
            _ => a.plain_number() == b.plain_number(),
        })
    }

    /// `None` where a side is no number.
    fn order(&mut self, a: Dyn<'a>, b: Dyn<'a>) -> Result<Option<Ordering>, LogicError> {
        let (a, b) = (self.primitive(a)?, self.primitive(b)?);
        self.take_text(&a)?;
        self.take_text(&b)?;
        Ok(match (&a, &b) {
            (Dyn::Str(a), Dyn::Str(b)) => Some(a.encode_utf16().cmp(b.encode_utf16())),
            (Dyn::Int(a), Dyn::Int(b)) => Some(a.cmp(b)),
            _ => a.plain_number().partial_cmp(&b.plain_number()),
        })
    }
}

/// One operation with what its arguments are evaluated in.
struct Call<'m, 's, 'a> {
    machine: &'m mut Machine<'a>,
    scope: Scope<'s, 'a>,
    depth: usize,
}

impl<'a> Call<'_, '_, 'a> {
    fn eval(&mut self, node: u32) -> Run<'a> {
        self.machine.run(node, self.scope, self.depth)
    }

    /// The argument at `index`; null where there is none.
    fn arg(&mut self, args: &[u32], index: usize) -> Run<'a> {
        args.get(index).map_or(Ok(Dyn::Null), |node| self.eval(*node))
    }

    fn pair(&mut self, args: &[u32]) -> Result<(Dyn<'a>, Dyn<'a>), LogicError> {
        Ok((self.arg(args, 0)?, self.arg(args, 1)?))
    }

    fn run(&mut self, op: LogicOp, args: Span, fractional: Fractional) -> Run<'a> {
        let args = self.machine.children(args);
        match op {
            LogicOp::Var => self.var(args),
            LogicOp::Missing => self.missing(args),
            LogicOp::MissingSome => self.missing_some(args),
            LogicOp::If => self.choose(args),
            LogicOp::Eq => self.equal(args).map(Dyn::Bool),
            LogicOp::Ne => self.equal(args).map(|equal| Dyn::Bool(!equal)),
            LogicOp::StrictEq => self.same(args).map(Dyn::Bool),
            LogicOp::StrictNe => self.same(args).map(|same| Dyn::Bool(!same)),
            LogicOp::Not => self.arg(args, 0).map(|value| Dyn::Bool(!value.truthy())),
            LogicOp::Truthy => self.arg(args, 0).map(|value| Dyn::Bool(value.truthy())),
            LogicOp::Or => self.first(args, true),
            LogicOp::And => self.first(args, false),
            LogicOp::Gt => self.ordered(args, Ordering::is_gt),
            LogicOp::Gte => self.ordered(args, Ordering::is_ge),
            LogicOp::Lt => self.ordered(args, Ordering::is_lt),
            LogicOp::Lte => self.ordered(args, Ordering::is_le),
            LogicOp::Max => self.extreme(args, f64::NEG_INFINITY, |best, next| next > best),
            LogicOp::Min => self.extreme(args, f64::INFINITY, |best, next| next < best),
            LogicOp::Add => self.fold_numbers(args, 0.0, |a, b| a + b),
            LogicOp::Multiply => self.fold_numbers(args, 1.0, |a, b| a * b),
            LogicOp::Subtract => {
                let first = self.arg(args, 0)?;
                let first = self.machine.number(&first)?;
                match args.get(1) {
                    None => Ok(Dyn::number(-first)),
                    Some(second) => {
                        let second = self.eval(*second)?;
                        Ok(Dyn::number(first - self.machine.number(&second)?))
                    }
                }
            }
            LogicOp::Divide => self.binary(args, |a, b| a / b),
            LogicOp::Remainder => self.binary(args, |a, b| a % b),
            LogicOp::Map => {
                let mut out = Vec::new();
                self.each(args, |item, result| {
                    let _ = item;
                    out.push(result);
                    true
                })?;
                Dyn::list(out)
            }
            LogicOp::Filter => {
                let mut out = Vec::new();
                self.each(args, |item, result| {
                    if result.truthy() {
                        out.push(item.clone());
                    }
                    true
                })?;
                Dyn::list(out)
            }
            LogicOp::All => {
                let (mut any, mut all) = (false, true);
                self.each(args, |_, result| {
                    any = true;
                    all = result.truthy();
                    all
                })?;
                Ok(Dyn::Bool(any && all))
            }
            LogicOp::None | LogicOp::Some => {
                let mut some = false;
                self.each(args, |_, result| {
                    some = result.truthy();
                    !some
                })?;
                Ok(Dyn::Bool(some == (op == LogicOp::Some)))
            }
            LogicOp::Reduce => self.reduce(args),
            LogicOp::Merge => {
                let mut out = Vec::new();
                for node in args {
                    match self.eval(*node)? {
                        Dyn::Array(list) => {
                            for item in list.iter() {
                                self.machine.take(1)?;
                                self.machine.take_text(&item)?;
                                out.push(item);
                            }
                        }
                        value => out.push(value),
                    }
                }
                Dyn::list(out)
            }
            LogicOp::In => self.contains(args),
            LogicOp::Cat => {
                let mut out = Vec::new();
                self.cat_into(args, &mut out)?;
                let text = String::from_utf8(out).map_err(|_| LogicError::Broken)?;
                Ok(Dyn::Str(Cow::Owned(text)))
            }
            LogicOp::Substr => self.substr(args),
            LogicOp::Log => self.arg(args, 0),
            LogicOp::Fractional => self.fractional(args, fractional),
            LogicOp::SemVer => self.sem_ver(args),
            LogicOp::StartsWith => self.affix(args, |text, affix| text.starts_with(affix)),
            LogicOp::EndsWith => self.affix(args, |text, affix| text.ends_with(affix)),
        }
    }

    fn var(&mut self, args: &[u32]) -> Run<'a> {
        let found = match self.arg(args, 0)? {
            Dyn::Null => return self.machine.everything(self.scope),
            Dyn::Str(path) if path.is_empty() => return self.machine.everything(self.scope),
            Dyn::Str(path) => self.machine.lookup(self.scope, &path),
            other => {
                let path = self.machine.text_of(&other)?;
                self.machine.lookup(self.scope, &path)
            }
        };
        let Some(found) = found else { return self.arg(args, 1) };
        if let Dyn::Str(Cow::Owned(_)) = found {
            self.machine.take_text(&found)?;
        }
        Ok(found)
    }

    /// The keys of `missing`: its arguments, or the array that its only argument is.
    fn missing(&mut self, args: &[u32]) -> Run<'a> {
        let first = self.arg(args, 0)?;
        if let Dyn::Array(keys) = first {
            return self.missing_of(keys.iter());
        }
        let mut keys = Vec::with_capacity(args.len());
        if !args.is_empty() {
            keys.push(first);
        }
        for node in args.iter().skip(1) {
            keys.push(self.eval(*node)?);
        }
        self.missing_of(keys.into_iter())
    }

    fn missing_of(&mut self, keys: impl Iterator<Item = Dyn<'a>>) -> Run<'a> {
        let mut missing = Vec::new();
        for key in keys {
            self.machine.take(1)?;
            let path = self.machine.text_of(&key)?;
            let there = match self.machine.lookup(self.scope, &path) {
                None | Some(Dyn::Null) => false,
                Some(Dyn::Str(text)) => !text.is_empty(),
                Some(_) => true,
            };
            if !there {
                missing.push(key);
            }
        }
        Dyn::list(missing)
    }

    fn missing_some(&mut self, args: &[u32]) -> Run<'a> {
        let (need, options) = self.pair(args)?;
        let Dyn::Array(options) = options else { return Dyn::list(Vec::new()) };
        let count = options.len();
        let missing = self.missing_of(options.iter())?;
        let gone = if let Dyn::Array(missing) = &missing { missing.len() } else { 0 };
        let need = self.machine.number(&need)?;
        if count.saturating_sub(gone) as f64 >= need { Dyn::list(Vec::new()) } else { Ok(missing) }
    }

    fn choose(&mut self, args: &[u32]) -> Run<'a> {
        let mut args = args.iter();
        while let Some(condition) = args.next() {
            let Some(then) = args.next() else { return self.eval(*condition) };
            if self.eval(*condition)?.truthy() {
                return self.eval(*then);
            }
        }
        Ok(Dyn::Null)
    }

    fn equal(&mut self, args: &[u32]) -> Result<bool, LogicError> {
        let (a, b) = self.pair(args)?;
        self.machine.loosely_equal(a, b)
    }

    fn same(&mut self, args: &[u32]) -> Result<bool, LogicError> {
        let (a, b) = self.pair(args)?;
        self.machine.take_text(&a)?;
        Ok(a.strictly_equals(&b))
    }

    /// The first argument that is truthy (`or`) or falsy (`and`), or the last.
    fn first(&mut self, args: &[u32], wanted: bool) -> Run<'a> {
        let mut last = Dyn::Null;
        for node in args {
            last = self.eval(*node)?;
            if last.truthy() == wanted {
                break;
            }
        }
        Ok(last)
    }

    /// Two arguments, or three of which the middle one lies between.
    fn ordered(&mut self, args: &[u32], test: fn(Ordering) -> bool) -> Run<'a> {
        let (a, b) = self.pair(args)?;
        let holds = self.machine.order(a, b.clone())?.is_some_and(test);
        match args.get(2) {
            Some(third) if holds => {
                let third = self.eval(*third)?;
                Ok(Dyn::Bool(self.machine.order(b, third)?.is_some_and(test)))
            }
            _ => Ok(Dyn::Bool(holds)),
        }
    }

    fn extreme(&mut self, args: &[u32], start: f64, better: fn(f64, f64) -> bool) -> Run<'a> {
        let mut best = start;
        for node in args {
            let value = self.eval(*node)?;
            let value = self.machine.number(&value)?;
            if value.is_nan() {
                return Ok(Dyn::Float(f64::NAN));
            }
            if better(best, value) {
                best = value;
            }
        }
        Ok(Dyn::number(best))
    }

    fn fold_numbers(&mut self, args: &[u32], start: f64, step: fn(f64, f64) -> f64) -> Run<'a> {
        let mut sum = start;
        for node in args {
            let value = self.eval(*node)?;
            sum = step(sum, self.machine.parsed_float(&value)?);
        }
        Ok(Dyn::number(sum))
    }

    fn binary(&mut self, args: &[u32], step: fn(f64, f64) -> f64) -> Run<'a> {
        let (a, b) = self.pair(args)?;
        Ok(Dyn::number(step(self.machine.number(&a)?, self.machine.number(&b)?)))
    }

    /// Evaluates the second argument for every element of the first, until `visit` says false.
    fn each(
        &mut self,
        args: &[u32],
        mut visit: impl FnMut(&Dyn<'a>, Dyn<'a>) -> bool,
    ) -> Result<(), LogicError> {
        let Dyn::Array(list) = self.arg(args, 0)? else { return Ok(()) };
        for item in list.iter() {
            self.machine.take(1)?;
            self.machine.take_text(&item)?;
            let result = match args.get(1) {
                Some(node) => self.machine.run(*node, Scope::Item(&item), self.depth)?,
                None => Dyn::Null,
            };
            if !visit(&item, result) {
                break;
            }
        }
        Ok(())
    }

    fn reduce(&mut self, args: &[u32]) -> Run<'a> {
        let list = self.arg(args, 0)?;
        let mut accumulator = self.arg(args, 2)?;
        let (Dyn::Array(list), Some(step)) = (list, args.get(1)) else { return Ok(accumulator) };
        for item in list.iter() {
            self.machine.take(1)?;
            self.machine.take_text(&item)?;
            let scope = Scope::Fold { current: &item, accumulator: &accumulator };
            accumulator = self.machine.run(*step, scope, self.depth)?;
        }
        Ok(accumulator)
    }

    fn contains(&mut self, args: &[u32]) -> Run<'a> {
        let needle = self.arg(args, 0)?;
        let Some(within) = args.get(1) else { return Ok(Dyn::Bool(false)) };
        // An array that is written out is walked in place.
        if let Logic::Array(items) = self.machine.node(*within)? {
            self.machine.take(1)?;
            for node in self.machine.children(*items) {
                let item = self.machine.run(*node, self.scope, self.depth.saturating_add(1))?;
                self.machine.take_text(&item)?;
                if item.strictly_equals(&needle) {
                    return Ok(Dyn::Bool(true));
                }
            }
            return Ok(Dyn::Bool(false));
        }
        Ok(Dyn::Bool(match self.eval(*within)? {
            Dyn::Array(list) => {
                let mut found = false;
                for item in list.iter() {
                    self.machine.take(1)?;
                    self.machine.take_text(&item)?;
                    found = item.strictly_equals(&needle);
                    if found {
                        break;
                    }
                }
                found
            }
            // JavaScript's `"".indexOf` is not asked: an empty text is falsy.
            Dyn::Str(text) if !text.is_empty() => {
                self.machine.take(text.len() / 64)?;
                let needle = self.machine.text_of(&needle)?;
                text.contains(needle.as_ref())
            }
            _ => false,
        }))
    }

    fn cat_into(&mut self, args: &[u32], out: &mut Vec<u8>) -> Result<(), LogicError> {
        for node in args {
            let value = self.eval(*node)?;
            self.machine.write(&value, true, out)?;
        }
        Ok(())
    }

    fn substr(&mut self, args: &[u32]) -> Run<'a> {
        let (source, start) = self.pair(args)?;
        let source = self.machine.text_of(&source)?;
        self.machine.take(source.len() / 64)?;
        let count = source.chars().count() as i64;
        let start = whole(self.machine.number(&start)?);
        let from = if start < 0 { count.saturating_add(start).max(0) } else { start.min(count) };
        let to = match args.get(2) {
            None => count,
            Some(node) => {
                let length = self.eval(*node)?;
                let length = whole(self.machine.number(&length)?);
                if length < 0 { count.saturating_add(length) } else { from.saturating_add(length) }
            }
        };
        let byte = |place: i64| {
            let place = usize::try_from(place).unwrap_or(0);
            source.char_indices().nth(place).map_or(source.len(), |(byte, _)| byte)
        };
        let (from, to) = (byte(from), byte(to.max(from)));
        Ok(Dyn::Str(match source {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(from..to).unwrap_or("")),
            Cow::Owned(ref text) => Cow::Owned(text.get(from..to).unwrap_or("").to_owned()),
        }))
    }

    fn affix(&mut self, args: &[u32], test: fn(&str, &str) -> bool) -> Run<'a> {
        if args.len() != 2 {
            return Ok(Dyn::Null);
        }
        Ok(match self.pair(args)? {
            (Dyn::Str(text), Dyn::Str(affix)) => Dyn::Bool(test(&text, &affix)),
            _ => Dyn::Null,
        })
    }

    fn sem_ver(&mut self, args: &[u32]) -> Run<'a> {
        let [a, op, b] = args else { return Ok(Dyn::Null) };
        let (a, op, b) = (self.eval(*a)?, self.eval(*op)?, self.eval(*b)?);
        let (a, op, b) =
            (self.machine.text_of(&a)?, self.machine.text_of(&op)?, self.machine.text_of(&b)?);
        Ok(compare_versions(&a, &op, &b).map_or(Dyn::Null, Dyn::Bool))
    }

    /// flagd's rollout (INTEROP 2.1 and 2.2). Null where it cannot decide.
    fn fractional(&mut self, args: &[u32], version: Fractional) -> Run<'a> {
        let mut bytes = std::mem::take(&mut self.machine.scratch);
        bytes.clear();
        let chosen = self.fractional_entry(args, version, &mut bytes);
        self.machine.scratch = bytes;
        let Some(entry) = chosen? else { return Ok(Dyn::Null) };
        match self.machine.node(entry)? {
            Logic::Array(parts) => match self.machine.children(*parts).first() {
                Some(variant) => self.eval_entry(*variant),
                None => Ok(Dyn::Null),
            },
            // The same again as when it was weighed: nothing changes within an evaluation.
            _ => match self.eval(entry)? {
                Dyn::Array(parts) => Ok(parts.iter().next().unwrap_or(Dyn::Null)),
                _ => Ok(Dyn::Null),
            },
        }
    }

    /// Entries stand in an array in the arguments, one level below them.
    fn eval_entry(&mut self, node: u32) -> Run<'a> {
        self.machine.run(node, self.scope, self.depth.saturating_add(1))
    }

    /// The node of the entry that the unit falls to. An entry is an array, as it stands there or as
    /// what an operation gives: flagd evaluates all arguments first.
    fn fractional_entry(
        &mut self,
        args: &[u32],
        version: Fractional,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<u32>, LogicError> {
        let Some((first, rest)) = args.split_first() else { return Ok(None) };
        let entries = match self.bucket_key(*first, version, bytes)? {
            Key::Given => rest,
            Key::Implicit { first_is_entry } => {
                if !self.implicit_key(version, bytes) {
                    return Ok(None);
                }
                if first_is_entry { args } else { rest }
            }
            Key::Wrong => return Ok(None),
        };
        let mut inline = [0i64; 16];
        let mut spilled = Vec::new();
        let weights = match inline.get_mut(..entries.len()) {
            Some(weights) => weights,
            None => {
                spilled.resize(entries.len(), 0i64);
                spilled.as_mut_slice()
            }
        };
        let mut total = 0i64;
        for (entry, to) in entries.iter().zip(weights.iter_mut()) {
            let Some(weight) = self.weight(*entry, version)? else { return Ok(None) };
            *to = weight;
            total = total.saturating_add(weight);
        }
        if total <= 0 || total > FRACTIONAL_TOTAL_MAX {
            return Ok(None);
        }
        let Some(place) = bucket(version, hash::murmur3(bytes, 0), total, weights) else {
            return Ok(None);
        };
        Ok(entries.get(place).copied())
    }

    /// Writes the bytes to hash if the first argument gives them.
    fn bucket_key(
        &mut self,
        first: u32,
        version: Fractional,
        bytes: &mut Vec<u8>,
    ) -> Result<Key, LogicError> {
        let cbor = version == Fractional::V3;
        match *self.machine.node(first)? {
            Logic::Array(_) => return Ok(Key::Implicit { first_is_entry: true }),
            // The usual salted key needs no text of its own.
            Logic::Call { op: LogicOp::Cat, args, .. } if !cbor => {
                self.machine.take(1)?;
                let args = self.machine.children(args);
                let mut inner = Call {
                    machine: &mut *self.machine,
                    scope: self.scope,
                    depth: self.depth.saturating_add(1),
                };
                inner.cat_into(args, bytes)?;
                return Ok(Key::Given);
            }
            _ => {}
        }
        let value = self.eval(first)?;
        Ok(match (&value, cbor) {
            (Dyn::Null, _) => Key::Implicit { first_is_entry: false },
            (Dyn::Array(_), _) => Key::Implicit { first_is_entry: true },
            (Dyn::Str(text), false) => {
                bytes.extend_from_slice(text.as_bytes());
                Key::Given
            }
            (_, false) => Key::Wrong,
            (Dyn::Str(text), true) => {
                cbor::text(text, bytes);
                Key::Given
            }
            (_, true) => {
                self.machine.write_cbor(&value, bytes)?;
                Key::Given
            }
        })
    }

    /// Of the flag's key and the targeting key; false without one.
    fn implicit_key(&mut self, version: Fractional, bytes: &mut Vec<u8>) -> bool {
        let Some(Value::Str(key)) = self.machine.input.context.root().get(TARGETING_KEY) else {
            return false;
        };
        if key.is_empty() {
            return false;
        }
        bytes.clear();
        if version == Fractional::V3 {
            cbor::head(cbor::ARRAY, 2, bytes);
            cbor::text(self.machine.input.flag_key, bytes);
            cbor::text(key, bytes);
        } else {
            bytes.extend_from_slice(self.machine.input.flag_key.as_bytes());
            bytes.extend_from_slice(key.as_bytes());
        }
        true
    }

    /// The weight of an entry: 1 unless given, at least 0; `None` if it is no entry. A part of one was
    /// cut off by flagd before its second version, which takes whole numbers.
    fn weight(&mut self, entry: u32, version: Fractional) -> Result<Option<i64>, LogicError> {
        let weight = match self.machine.node(entry)? {
            Logic::Array(parts) => match self.machine.children(*parts) {
                [] => return Ok(None),
                [_] => return Ok(Some(1)),
                [_, weight, ..] => self.eval_entry(*weight)?,
            },
            _ => {
                let Dyn::Array(parts) = self.eval(entry)? else { return Ok(None) };
                let mut parts = parts.iter();
                match (parts.next(), parts.next()) {
                    (None, _) => return Ok(None),
                    (_, None) => return Ok(Some(1)),
                    (_, Some(weight)) => weight,
                }
            }
        };
        Ok(match weight {
            Dyn::Int(weight) => Some(weight.max(0)),
            Dyn::Float(weight) if !weight.is_finite() => None,
            Dyn::Float(weight) if weight.fract() != 0.0 && version != Fractional::V1 => None,
            Dyn::Float(weight) => Some(whole(weight).max(0)),
            _ => None,
        })
    }
}

enum Key {
    Given,
    Implicit { first_is_entry: bool },
    Wrong,
}

/// The place of a hash among weights.
fn bucket(version: Fractional, hash: u32, total: i64, weights: &[i64]) -> Option<usize> {
    if version == Fractional::V1 {
        let percent = f64::from((hash as i32).unsigned_abs()) / f64::from(i32::MAX) * 100.0;
        let mut sum = 0.0;
        return weights.iter().position(|weight| {
            sum += 100.0 * *weight as f64 / total as f64;
            percent < sum
        });
    }
    // The total is below 2^31: the product fits.
    let place = (i64::from(hash).wrapping_mul(total)) >> 32;
    let mut sum = 0i64;
    weights.iter().position(|weight| {
        sum = sum.saturating_add(*weight);
        place < sum
    })
}

/// flagd's `sem_ver`; `None` for what is no version or no operator. `^` is the same major, `~`
/// the same major and minor version: not npm's ranges.
fn compare_versions(a: &str, op: &str, b: &str) -> Option<bool> {
    let rule = VersionRule::GoMod;
    let (a, b) = (version::parse(a, rule)?, version::parse(b, rule)?);
    let order = version::compare(&a, &b, rule);
    Some(match op {
        "=" => order.is_eq(),
        "!=" => order.is_ne(),
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        ">=" => order.is_ge(),
        "^" => a.major() == b.major(),
        "~" => a.major() == b.major() && a.minor() == b.minor(),
        _ => return None,
    })
}

/// Towards zero, as JavaScript's `ToInteger`; what is no number is 0.
fn whole(number: f64) -> i64 {
    number as i64
}

/// A value below another by the segments of a path.
fn walk<'a>(from: &Dyn<'a>, path: &str) -> Option<Dyn<'a>> {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let value = from.entry(first)?;
    match rest {
        None => Some(value),
        Some(rest) => walk(&value, rest),
    }
}

impl<'a> Dyn<'a> {
    pub fn from_context(value: Value<'a>) -> Dyn<'a> {
        match value {
            Value::Null => Dyn::Null,
            Value::Bool(value) => Dyn::Bool(value),
            Value::Int(number) => Dyn::Int(number),
            Value::Float(number) => Dyn::Float(number),
            Value::Str(text) => Dyn::Str(Cow::Borrowed(text)),
            Value::Array(items) => Dyn::Array(List::Context(items)),
            Value::Object(items) => Dyn::Object(Map::Context(items)),
        }
    }

    /// Integral results are integers again, so that 1 + 1 names the variant "2".
    fn number(number: f64) -> Dyn<'a> {
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        if number.fract() == 0.0 && number.abs() <= EXACT_MAX {
            Dyn::Int(number as i64)
        } else {
            Dyn::Float(number)
        }
    }

    fn list(items: Vec<Dyn<'a>>) -> Run<'a> {
        let depth = deeper(items.iter())?;
        Ok(Dyn::Array(List::Built(Rc::new(BuiltList { items, depth }))))
    }

    fn map(entries: Vec<(Cow<'a, str>, Dyn<'a>)>) -> Run<'a> {
        let depth = deeper(entries.iter().map(|(_, value)| value))?;
        Ok(Dyn::Object(Map::Built(Rc::new(BuiltMap { entries, depth }))))
    }

    fn built_depth(&self) -> u16 {
        match self {
            Dyn::Array(List::Built(list)) => list.depth,
            Dyn::Object(Map::Built(map)) => map.depth,
            _ => 0,
        }
    }

    /// JSONLogic's truth: `"0"`, `{}` and every other non-empty text are true; `[]` is not.
    pub fn truthy(&self) -> bool {
        match self {
            Dyn::Null => false,
            Dyn::Bool(value) => *value,
            Dyn::Int(number) => *number != 0,
            Dyn::Float(number) => *number != 0.0 && !number.is_nan(),
            Dyn::Str(text) => !text.is_empty(),
            Dyn::Array(list) => list.len() > 0,
            Dyn::Object(_) => true,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Dyn::Null)
    }

    /// The variant that a result names, as flagd writes it; `None` for null.
    pub fn variant_name(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Dyn::Null => return None,
            Dyn::Bool(true) => Cow::Borrowed("true"),
            Dyn::Bool(false) => Cow::Borrowed("false"),
            Dyn::Str(text) => Cow::Borrowed(text.as_ref()),
            Dyn::Int(number) => Cow::Owned(number.to_string()),
            Dyn::Float(number) => {
                let mut out = Vec::new();
                write_float(*number, &mut out);
                Cow::Owned(String::from_utf8(out).unwrap_or_default())
            }
            other => Cow::Owned(other.to_json().to_string()),
        })
    }

    /// For traces. Numbers that JSON does not know are null.
    pub fn to_json(&self) -> Json {
        self.to_json_within(&mut JSON_VALUES_MAX.clone())
    }

    fn to_json_within(&self, left: &mut u32) -> Json {
        let Some(fewer) = left.checked_sub(1) else { return Json::Null };
        *left = fewer;
        match self {
            Dyn::Null => Json::Null,
            Dyn::Bool(value) => Json::Bool(*value),
            Dyn::Int(number) => Json::from(*number),
            Dyn::Float(number) => Json::from(*number),
            Dyn::Str(text) => Json::String(text.as_ref().to_owned()),
            Dyn::Array(List::Context(items)) => Value::Array(*items).to_json(),
            Dyn::Object(Map::Context(items)) => Value::Object(*items).to_json(),
            Dyn::Array(List::Built(list)) => {
                let mut out = Vec::new();
                for item in &list.items {
                    if *left == 0 {
                        break;
                    }
                    out.push(item.to_json_within(left));
                }
                Json::Array(out)
            }
            Dyn::Object(Map::Built(map)) => {
                let mut out = serde_json::Map::new();
                for (key, value) in &map.entries {
                    if *left == 0 {
                        break;
                    }
                    out.insert(key.as_ref().to_owned(), value.to_json_within(left));
                }
                Json::Object(out)
            }
        }
    }

    fn strictly_equals(&self, other: &Dyn<'a>) -> bool {
        match (self, other) {
            (Dyn::Null, Dyn::Null) => true,
            (Dyn::Bool(a), Dyn::Bool(b)) => a == b,
            (Dyn::Int(a), Dyn::Int(b)) => a == b,
            (Dyn::Str(a), Dyn::Str(b)) => a == b,
            (Dyn::Int(a), Dyn::Float(b)) | (Dyn::Float(b), Dyn::Int(a)) => *a as f64 == *b,
            (Dyn::Float(a), Dyn::Float(b)) => a == b,
            _ => false,
        }
    }

    /// `Number(value)` of what is no array.
    fn plain_number(&self) -> f64 {
        match self {
            Dyn::Null => 0.0,
            Dyn::Bool(value) => f64::from(u8::from(*value)),
            Dyn::Int(number) => *number as f64,
            Dyn::Float(number) => *number,
            Dyn::Str(text) => parse_number(text),
            Dyn::Array(_) | Dyn::Object(_) => f64::NAN,
        }
    }

    /// A member by its name, an element by its index.
    fn entry(&self, key: &str) -> Option<Dyn<'a>> {
        match self {
            Dyn::Object(Map::Context(items)) => items.get(key).map(Dyn::from_context),
            Dyn::Object(Map::Built(map)) => {
                map.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
            }
            Dyn::Array(list) => {
                // "01" and "+1" name nothing in JavaScript.
                let plain = key == "0" || !key.starts_with(['0', '+']);
                key.parse().ok().filter(|_| plain).and_then(|index| list.at(index))
            }
            _ => None,
        }
    }
}

fn deeper<'v, 'a: 'v>(values: impl Iterator<Item = &'v Dyn<'a>>) -> Result<u16, LogicError> {
    let depth = values.map(Dyn::built_depth).max().unwrap_or(0).saturating_add(1);
    if depth > BUILT_DEPTH_MAX { Err(LogicError::Size) } else { Ok(depth) }
}

impl<'a> List<'a> {
    fn len(&self) -> usize {
        match self {
            List::Context(items) => items.len(),
            List::Built(list) => list.items.len(),
        }
    }

    fn at(&self, index: usize) -> Option<Dyn<'a>> {
        match self {
            List::Context(items) => items.at(index).map(Dyn::from_context),
            List::Built(list) => list.items.get(index).cloned(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Dyn<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.at(index))
    }
}

impl<'a> Machine<'a> {
    /// CBOR of a unit; a step for each value in it.
    fn write_cbor(&mut self, value: &Dyn<'a>, out: &mut Vec<u8>) -> Result<(), LogicError> {
        let before = out.len();
        self.take(1)?;
        match value {
            Dyn::Null => cbor::null(out),
            Dyn::Bool(value) => cbor::bool(*value, out),
            Dyn::Int(number) => cbor::int(*number, out),
            Dyn::Float(number) => cbor::float(*number, out),
            Dyn::Str(text) => cbor::text(text, out),
            Dyn::Array(List::Context(items)) => cbor::value(&Value::Array(*items), out),
            Dyn::Object(Map::Context(items)) => cbor::value(&Value::Object(*items), out),
            Dyn::Array(List::Built(list)) => {
                cbor::head(cbor::ARRAY, list.items.len() as u64, out);
                for item in &list.items {
                    self.write_cbor(item, out)?;
                }
            }
            Dyn::Object(Map::Built(map)) => {
                cbor::head(cbor::MAP, map.entries.len() as u64, out);
                let mut entries: Vec<_> = map.entries.iter().collect();
                entries.sort_by(|(a, _), (b, _)| cbor::key_order(a, b));
                for (key, value) in entries {
                    cbor::text(key, out);
                    self.write_cbor(value, out)?;
                }
            }
        }
        self.take(out.len().saturating_sub(before) / 16)?;
        if out.len() > TEXT_BYTES_MAX.saturating_mul(2) { Err(LogicError::Size) } else { Ok(()) }
    }
}

/// JavaScript's text of a number: no exponent between 1e-6 and 1e21, no `.0`.
pub(crate) fn write_float(number: f64, out: &mut Vec<u8>) {
    let size = number.abs();
    // Writing to a vector cannot fail.
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if number.is_infinite() {
        out.extend_from_slice(if number > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else if number == 0.0 {
        out.push(b'0');
    } else if size >= 1e21 {
        let text = format!("{number:e}").replace('e', "e+");
        out.extend_from_slice(text.as_bytes());
    } else if size < 1e-6 {
        let _ = write!(out, "{number:e}");
    } else {
        let _ = write!(out, "{number}");
    }
}

/// JavaScript's `Number(text)`: the whole text, blanks around it aside; empty is 0.
fn parse_number(text: &str) -> f64 {
    let text = text.trim();
    let radix = |prefix: [&str; 2], radix: u32| {
        let digits = prefix.iter().find_map(|prefix| text.strip_prefix(prefix))?;
        Some(u64::from_str_radix(digits, radix).map_or(f64::NAN, |number| number as f64))
    };
    if text.is_empty() {
        return 0.0;
    }
    if let Some(number) = radix(["0x", "0X"], 16)
        .or_else(|| radix(["0b", "0B"], 2))
        .or_else(|| radix(["0o", "0O"], 8))
    {
        return number;
    }
    if number_length(text) == text.len() { parse_float(text) } else { f64::NAN }
}

/// JavaScript's `parseFloat(text)`: the longest beginning that is a number.
fn parse_float(text: &str) -> f64 {
    let text = text.trim_start();
    let number = text.get(..number_length(text)).unwrap_or("");
    // Rust reads "Infinity" and all decimal forms of JavaScript alike.
    number.parse().unwrap_or(f64::NAN)
}

/// The bytes of the number that a text begins with.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or(&[]);
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let sign = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    if text.get(sign..).is_some_and(|rest| rest.starts_with("Infinity")) {
        return sign.saturating_add(8);
    }
    let whole = digits(sign);
    let mut end = sign.saturating_add(whole);
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        let after = end.saturating_add(1);
        fraction = digits(after);
        if whole > 0 || fraction > 0 {
            end = after.saturating_add(fraction);
        }
    }
    if whole == 0 && fraction == 0 {
        return 0;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let after = end.saturating_add(1);
        let signed = usize::from(matches!(bytes.get(after), Some(b'+' | b'-')));
        let from = after.saturating_add(signed);
        let exponent = digits(from);
        if exponent > 0 {
            end = from.saturating_add(exponent);
        }
    }
    end
}
