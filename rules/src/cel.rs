//! CEL conditions. `control` parses the text, because no parser travels to edges or browsers; what
//! comes in here is its syntax tree. `check` resolves names and types, `lower` writes whatever a
//! condition of clauses can say as exactly that, and the rest as CEL nodes, which `run` evaluates.
//!
//! docs/CEL.md is the language as authors see it. What holds everywhere here:
//!
//! - An error (an attribute that is missing, a wrong type, a division by zero) is never true. CEL
//!   lets `false && error` be false and `true || error` be true; since a condition in the end only
//!   asks whether all is true, an error may count as false wherever no `!` stands above it. So
//!   negations are pushed down to the leaves, and lowered leaves are false if CEL's are errors.
//! - An evaluation ends: a flag's CEL takes `CEL_STEPS_MAX` steps at most, where a step is a node, an
//!   element, or 64 bytes of text; what is built is bounded by the same steps.

mod check;
pub(crate) mod lower;
pub(crate) mod print;
mod run;
mod time;
mod value;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::eval::Evaluator;
use crate::limits::CEL_STEPS_MAX;
use crate::ruleset::{CelOp, Ruleset, Span, Text};

pub(crate) use run::{Machine, Stop};
pub use value::Val;

/// Where in the source, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At {
    pub line: u32,
    pub column: u32,
}

/// A syntax tree, macros not expanded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    #[serde(with = "pair")]
    pub at: At,
    pub is: Form,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    String(String),
    /// A name; one that begins with a dot is never a loop's variable.
    Name(String),
    Select(Box<Tree>, String),
    /// Operators are named as CEL names them: `_&&_`, `!_`, `_?_:_`, `_[_]`, `@in`.
    Call(String, Option<Box<Tree>>, Vec<Tree>),
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    /// What the language has and conditions do not, in words.
    Unsupported(String),
}

mod pair {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::At;

    pub fn serialize<S: Serializer>(at: &At, to: S) -> Result<S::Ok, S::Error> {
        (at.line, at.column).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<At, D::Error> {
        <(u32, u32)>::deserialize(from).map(|(line, column)| At { line, column })
    }
}

/// What is wrong with a source, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: {message}", at.line, at.column)]
pub struct Mistake {
    pub at: At,
    /// A lower-case fragment.
    pub message: String,
    /// Of types only: in CEL this would be found by its checker, and evaluate to an error without.
    pub is_type: bool,
}

impl Mistake {
    pub fn new(at: At, message: impl Into<String>) -> Mistake {
        Mistake { at, message: message.into(), is_type: false }
    }
}

/// How sources become trees; see `compile::compile_with`.
pub type Parse<'p> = dyn Fn(&str) -> Result<Arc<Tree>, Vec<Mistake>> + 'p;

/// For who has no parser.
pub fn no_parser(_source: &str) -> Result<Arc<Tree>, Vec<Mistake>> {
    let message = "this program has no parser for CEL; write the rule through control";
    Err(vec![Mistake::new(At { line: 1, column: 1 }, message)])
}

/// Where `lower` puts what it makes.
pub(crate) trait Sink {
    fn text(&mut self, text: &str) -> Text;
    fn attr(&mut self, path: &str) -> u32;
    /// Appends to `Ruleset::cel_refs`.
    fn refs(&mut self, children: &[u32]) -> Span;
    /// Appends to `Ruleset::cel`; the node's index.
    fn node(&mut self, node: crate::ruleset::Cel) -> u32;
}

impl CelOp {
    /// How many arguments it takes, the receiver among them.
    pub(crate) fn arity(self) -> (usize, usize) {
        use CelOp::*;
        match self {
            And | Or => (1, usize::MAX),
            If => (3, 3),
            Replace => (3, 4),
            Not | Negate | Size | LowerAscii | UpperAscii | Trim | ToInt | ToDouble | ToString
            | ToBool | ToTimestamp | ToDuration => (1, 1),
            IndexOf | LastIndexOf | Substring | Split => (2, 3),
            Join | FullYear | Month | Date | DayOfMonth | DayOfWeek | DayOfYear | Hours
            | Minutes | Seconds | Milliseconds => (1, 2),
            Eq | Ne | Lt | Lte | Gt | Gte | In | Add | Subtract | Multiply | Divide | Remainder
            | Index | Contains | StartsWith | EndsWith | CharAt => (2, 2),
        }
    }

    /// A part of a time, such as its hours: of UTC, or of the offset that it is given.
    pub(crate) fn is_part(self) -> bool {
        use CelOp::*;
        matches!(
            self,
            FullYear
                | Month
                | Date
                | DayOfMonth
                | DayOfWeek
                | DayOfYear
                | Hours
                | Minutes
                | Seconds
                | Milliseconds
        )
    }

    pub(crate) fn name(self) -> &'static str {
        use CelOp::*;
        match self {
            And => "&&",
            Or => "||",
            Not => "!",
            If => "? :",
            Eq => "==",
            Ne => "!=",
            Lt => "<",
            Lte => "<=",
            Gt => ">",
            Gte => ">=",
            In => "in",
            Add => "+",
            Subtract | Negate => "-",
            Multiply => "*",
            Divide => "/",
            Remainder => "%",
            Index => "[ ]",
            Size => "size",
            Contains => "contains",
            StartsWith => "startsWith",
            EndsWith => "endsWith",
            LowerAscii => "lowerAscii",
            UpperAscii => "upperAscii",
            Trim => "trim",
            CharAt => "charAt",
            IndexOf => "indexOf",
            LastIndexOf => "lastIndexOf",
            Substring => "substring",
            Replace => "replace",
            Split => "split",
            Join => "join",
            ToInt => "int",
            ToDouble => "double",
            ToString => "string",
            ToBool => "bool",
            ToTimestamp => "timestamp",
            ToDuration => "duration",
            FullYear => "getFullYear",
            Month => "getMonth",
            Date => "getDate",
            DayOfMonth => "getDayOfMonth",
            DayOfWeek => "getDayOfWeek",
            DayOfYear => "getDayOfYear",
            Hours => "getHours",
            Minutes => "getMinutes",
            Seconds => "getSeconds",
            Milliseconds => "getMilliseconds",
        }
    }
}

/// An expression by itself, of any type: for tools and for tests. Nothing of it is lowered to
/// clauses, so it also says what a condition would mean if nothing were.
#[derive(Debug)]
pub struct Expression {
    evaluator: Evaluator,
    root: u32,
}

impl Expression {
    /// `unchecked`: mistakes of types are left for the evaluation, as CEL without its checker does.
    pub fn new(tree: &Tree, unchecked: bool) -> Result<Expression, Vec<Mistake>> {
        let (ex, mut mistakes) = check::check(tree, false);
        mistakes.retain(|mistake| !(unchecked && mistake.is_type));
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let mut rules = Ruleset::default();
        let root = lower::node(&ex, &mut rules);
        let evaluator = Evaluator::new(rules)
            .map_err(|error| vec![Mistake::new(tree.at, error.to_string())])?;
        Ok(Expression { evaluator, root })
    }

    pub fn evaluate<'a>(
        &'a self,
        context: Context<'a>,
        flag_key: &'a str,
        now_ms: i64,
    ) -> Result<Val<'a>, String> {
        let rules = self.evaluator.rules();
        let mut steps = CEL_STEPS_MAX;
        let patterns = self.evaluator.patterns();
        let mut machine = Machine::new(rules, patterns, flag_key, context, now_ms, &mut steps);
        machine.run(self.root).map_err(|stop| stop.message(rules))
    }
}

/// A ruleset's own arenas; nothing is shared.
impl Sink for Ruleset {
    fn text(&mut self, text: &str) -> Text {
        crate::logic::LogicSink::text(self, text)
    }

    fn attr(&mut self, path: &str) -> u32 {
        let whole = Sink::text(self, path);
        let start = self.attr_parts.len() as u32;
        for part in path.split('.') {
            let part = Sink::text(self, part);
            self.attr_parts.push(part);
        }
        let len = (self.attr_parts.len() as u32).wrapping_sub(start);
        self.attrs.push(crate::ruleset::Attr {
            path: whole,
            path_hash: crate::context::key_hash(path),
            parts: Span { start, len },
            first_hash: crate::context::key_hash(path.split('.').next().unwrap_or_default()),
        });
        (self.attrs.len() as u32).wrapping_sub(1)
    }

    fn refs(&mut self, children: &[u32]) -> Span {
        let start = self.cel_refs.len() as u32;
        self.cel_refs.extend_from_slice(children);
        Span { start, len: children.len() as u32 }
    }

    fn node(&mut self, node: crate::ruleset::Cel) -> u32 {
        self.cel.push(node);
        (self.cel.len() as u32).wrapping_sub(1)
    }
}
