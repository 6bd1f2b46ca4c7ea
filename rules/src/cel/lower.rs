//! From a checked expression to clauses where a condition of clauses says the same for every
//! context, and to CEL nodes elsewhere.

use serde_json::Value;

use super::check::{self, Ex};
use super::{Mistake, Sink, Tree};
use crate::model::{ArrayMode, Clause, ClausePolicy, Op};
use crate::ruleset::{Cel, CelOp, NONE};

/// A condition without negations: they are in the leaves.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lowered {
    Const(bool),
    All(Vec<Lowered>),
    Any(Vec<Lowered>),
    Clause(Clause),
    Cel(Ex),
}

pub(crate) fn condition(tree: &Tree) -> Result<Lowered, Vec<Mistake>> {
    let (ex, mistakes) = check::check(tree, true);
    if mistakes.is_empty() { Ok(lower(&ex, false)) } else { Err(mistakes) }
}

fn lower(ex: &Ex, negated: bool) -> Lowered {
    match ex {
        Ex::Bool(value) => Lowered::Const(*value != negated),
        Ex::Call(CelOp::Not, args) if let [inner] = args.as_slice() => lower(inner, !negated),
        Ex::Call(op @ (CelOp::And | CelOp::Or), parts) => {
            let parts = parts.iter().map(|part| lower(part, negated));
            if (*op == CelOp::And) == negated { any(parts) } else { all(parts) }
        }
        Ex::Call(CelOp::If, parts) if let [test, yes, no] = parts.as_slice() => {
            let (on, off) = (lower(test, false), lower(test, true));
            let (yes, no) = (lower(yes, negated), lower(no, negated));
            // The test is there twice: only a plain one, or a chain of them would double each time.
            match is_leaf(&on) && is_pure(&on) && is_pure(&off) && is_pure(&yes) && is_pure(&no) {
                true => any([all([on, yes].into_iter()), all([off, no].into_iter())].into_iter()),
                false => cel(ex, negated),
            }
        }
        _ => match clauses(ex, negated) {
            Some(lowered) => lowered,
            None => cel(ex, negated),
        },
    }
}

fn cel(ex: &Ex, negated: bool) -> Lowered {
    Lowered::Cel(if negated { Ex::Call(CelOp::Not, vec![ex.clone()]) } else { ex.clone() })
}

fn is_leaf(lowered: &Lowered) -> bool {
    matches!(lowered, Lowered::Const(_) | Lowered::Clause(_))
}

fn is_pure(lowered: &Lowered) -> bool {
    match lowered {
        Lowered::Const(_) | Lowered::Clause(_) => true,
        Lowered::All(parts) | Lowered::Any(parts) => parts.iter().all(is_pure),
        Lowered::Cel(_) => false,
    }
}

/// Groups inside of groups of the same kind are one group.
fn all(parts: impl Iterator<Item = Lowered>) -> Lowered {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Lowered::All(inner) => flat.extend(inner),
            part => flat.push(part),
        }
    }
    Lowered::All(flat)
}

fn any(parts: impl Iterator<Item = Lowered>) -> Lowered {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Lowered::Any(inner) => flat.extend(inner),
            part => flat.push(part),
        }
    }
    Lowered::Any(flat)
}

/// CEL knows no "any element" but where it says so.
const SCALAR: ClausePolicy = ClausePolicy {
    missing: crate::model::Missing::False,
    negation: crate::model::Negation::AfterPresent,
    array: ArrayMode::Scalar,
    coerce: crate::model::Coerce::Strict,
    version: crate::model::VersionRule::Loose,
    date: crate::model::DateForm::Both,
    ignore_case: false,
    bad_arg: crate::model::BadArg::False,
};

fn clause(attr: &str, op: Op, negate: bool, values: Vec<Value>) -> Lowered {
    let policy = match op {
        Op::Exists | Op::IsNull | Op::TypeIs => ClausePolicy::default(),
        _ => SCALAR,
    };
    Lowered::Clause(Clause { attr: attr.to_owned(), op, negate, values, policy })
}

/// In CEL a method of what is no string is an error, and so is its negation.
fn of_text(attr: &str, op: Op, negated: bool, text: &str) -> Lowered {
    let test = clause(attr, op, negated, vec![Value::from(text)]);
    match negated {
        false => test,
        true => {
            let is_text = clause(attr, Op::TypeIs, false, vec![Value::from("string")]);
            Lowered::All(vec![is_text, test])
        }
    }
}

fn clauses(ex: &Ex, negated: bool) -> Option<Lowered> {
    match ex {
        Ex::Attr(path) => Some(clause(path, Op::Eq, false, vec![Value::from(!negated)])),
        Ex::HasAttr(path) => Some(clause(path, Op::Exists, negated, Vec::new())),
        Ex::AttrIsNull(path) => {
            // A missing one is an error, so that its opposite asks for one that is there.
            let op = if negated { Op::Exists } else { Op::IsNull };
            Some(clause(path, op, false, Vec::new()))
        }
        Ex::Matches(of, pattern) => match of.as_ref() {
            Ex::Attr(path) => Some(of_text(path, Op::Matches, negated, pattern)),
            _ => None,
        },
        Ex::Call(op, args) => {
            let [a, b] = args.as_slice() else { return None };
            binary(*op, a, b, negated)
        }
        _ => None,
    }
}

fn binary(op: CelOp, a: &Ex, b: &Ex, negated: bool) -> Option<Lowered> {
    match (op, a, b) {
        (CelOp::Eq | CelOp::Ne, Ex::Attr(path), other)
        | (CelOp::Eq | CelOp::Ne, other, Ex::Attr(path)) => {
            let value = scalar(other)?;
            Some(clause(path, Op::Eq, (op == CelOp::Ne) != negated, vec![value]))
        }
        (CelOp::Lt | CelOp::Lte | CelOp::Gt | CelOp::Gte, Ex::Attr(path), bound) => {
            Some(clause(path, order(op, negated, false)?, false, vec![number(bound)?]))
        }
        (CelOp::Lt | CelOp::Lte | CelOp::Gt | CelOp::Gte, bound, Ex::Attr(path)) => {
            Some(clause(path, order(op, negated, true)?, false, vec![number(bound)?]))
        }
        (CelOp::In, Ex::Attr(path), Ex::List(items)) => {
            let values: Vec<Value> = items.iter().map(scalar).collect::<Option<_>>()?;
            Some(match (values.is_empty(), negated) {
                (false, _) => clause(path, Op::In, negated, values),
                (true, true) => clause(path, Op::Exists, false, Vec::new()),
                (true, false) => Lowered::Const(false),
            })
        }
        (CelOp::In, item, Ex::Attr(path)) => {
            let is_list = clause(path, Op::TypeIs, false, vec![Value::from("array")]);
            let has = Clause {
                attr: path.clone(),
                op: Op::Eq,
                negate: negated,
                values: vec![scalar(item)?],
                policy: ClausePolicy::default(),
            };
            Some(Lowered::All(vec![is_list, Lowered::Clause(has)]))
        }
        (CelOp::StartsWith, Ex::Attr(path), Ex::Str(text)) => {
            Some(of_text(path, Op::StartsWith, negated, text))
        }
        (CelOp::EndsWith, Ex::Attr(path), Ex::Str(text)) => {
            Some(of_text(path, Op::EndsWith, negated, text))
        }
        (CelOp::Contains, Ex::Attr(path), Ex::Str(text)) => {
            Some(of_text(path, Op::Contains, negated, text))
        }
        _ => None,
    }
}

/// The operator of an attribute against a bound: turned round where the bound comes first, and the
/// opposite where it is negated, which for what is no number is as false as the operator itself.
fn order(op: CelOp, negated: bool, turned: bool) -> Option<Op> {
    let op = match (op, turned) {
        (CelOp::Lt, false) | (CelOp::Gt, true) => Op::Lt,
        (CelOp::Lte, false) | (CelOp::Gte, true) => Op::Lte,
        (CelOp::Gt, false) | (CelOp::Lt, true) => Op::Gt,
        (CelOp::Gte, false) | (CelOp::Lte, true) => Op::Gte,
        _ => return None,
    };
    Some(match (op, negated) {
        (op, false) => op,
        (Op::Lt, true) => Op::Gte,
        (Op::Lte, true) => Op::Gt,
        (Op::Gt, true) => Op::Lte,
        _ => Op::Lt,
    })
}

fn scalar(ex: &Ex) -> Option<Value> {
    match ex {
        Ex::Str(text) => Some(Value::from(text.as_str())),
        Ex::Bool(value) => Some(Value::from(*value)),
        other => number(other),
    }
}

fn number(ex: &Ex) -> Option<Value> {
    match ex {
        Ex::Int(value) => Some(Value::from(*value)),
        Ex::Double(value) => serde_json::Number::from_f64(*value).map(Value::Number),
        _ => None,
    }
}

/// Writes the nodes of an expression; its own comes last.
pub(crate) fn node(ex: &Ex, sink: &mut dyn Sink) -> u32 {
    let made = match ex {
        Ex::Null => Cel::Null,
        Ex::Bool(value) => Cel::Bool(*value),
        Ex::Int(value) => Cel::Int(*value),
        Ex::Double(value) => Cel::Double(*value),
        Ex::Str(text) => Cel::Str(sink.text(text)),
        Ex::Attr(path) => Cel::Attr(sink.attr(path)),
        Ex::HasAttr(path) => Cel::HasAttr(sink.attr(path)),
        Ex::AttrIsNull(path) => Cel::AttrIsNull(sink.attr(path)),
        Ex::Now => Cel::Now,
        Ex::FlagKey => Cel::FlagKey,
        Ex::Var(slot) => Cel::Var(*slot),
        Ex::List(items) => Cel::List(nodes(items, sink)),
        Ex::Map(entries) => Cel::Map(nodes(entries, sink)),
        Ex::Select(of, field) => Cel::Select { of: node(of, sink), field: sink.text(field) },
        Ex::Has(of, field) => Cel::Has { of: node(of, sink), field: sink.text(field) },
        Ex::Matches(of, pattern) => {
            Cel::Matches { of: node(of, sink), pattern: sink.text(pattern) }
        }
        Ex::Call(op, args) => Cel::Call { op: *op, args: nodes(args, sink) },
        Ex::Loop { kind, over, filter, body } => {
            let over = node(over, sink);
            let filter = filter.as_ref().map_or(NONE, |filter| node(filter, sink));
            Cel::Loop { kind: *kind, over, filter, body: node(body, sink) }
        }
    };
    sink.node(made)
}

fn nodes(of: &[Ex], sink: &mut dyn Sink) -> crate::ruleset::Span {
    let nodes: Vec<u32> = of.iter().map(|ex| node(ex, sink)).collect();
    sink.refs(&nodes)
}
