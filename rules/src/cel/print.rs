//! CEL nodes as text again, for traces.

use crate::ruleset::{Cel, CelLoop, CelOp, NONE, Ruleset, slice};

/// What is longer is cut: a damaged ruleset may share nodes as it likes.
const BYTES_MAX: usize = 1024;

pub(crate) fn print(rules: &Ruleset, node: u32) -> String {
    let mut printer = Printer { rules, out: String::new(), level: 0, attrs: Vec::new() };
    printer.node(node, 0);
    if printer.out.len() > BYTES_MAX {
        let end = (0..=BYTES_MAX).rev().find(|end| printer.out.is_char_boundary(*end));
        printer.out.truncate(end.unwrap_or(0));
        printer.out.push('…');
    }
    printer.out
}

/// The attrs that an expression asks for, in the order of asking, each once.
pub(crate) fn attrs(rules: &Ruleset, node: u32) -> Vec<u32> {
    let mut printer = Printer { rules, out: String::new(), level: 0, attrs: Vec::new() };
    printer.node(node, 0);
    printer.attrs
}

struct Printer<'r> {
    rules: &'r Ruleset,
    out: String,
    /// Loops around.
    level: usize,
    attrs: Vec<u32>,
}

/// How strongly an operator binds; what binds less inside of it needs brackets.
fn strength(op: CelOp) -> u8 {
    match op {
        CelOp::If => 1,
        CelOp::Or => 2,
        CelOp::And => 3,
        CelOp::Eq | CelOp::Ne | CelOp::Lt | CelOp::Lte | CelOp::Gt | CelOp::Gte | CelOp::In => 4,
        CelOp::Add | CelOp::Subtract => 5,
        CelOp::Multiply | CelOp::Divide | CelOp::Remainder => 6,
        CelOp::Not | CelOp::Negate => 7,
        _ => 8,
    }
}

impl Printer<'_> {
    fn attr(&mut self, attr: u32) {
        if !self.attrs.contains(&attr) {
            self.attrs.push(attr);
        }
        let path = self.rules.attrs.get(attr as usize).map_or("", |attr| self.rules.str(attr.path));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if path.split('.').all(plain) {
            self.out.push_str(path);
        } else {
            self.out.push_str(&format!("context[{path:?}]"));
        }
    }

    fn var(&mut self, slot: usize) {
        let names = ["x", "y", "z", "u", "v", "w"];
        match names.get(slot) {
            Some(name) => self.out.push_str(name),
            None => self.out.push_str(&format!("x{slot}")),
        }
    }

    /// Inside of something that binds as strongly as `around`.
    fn node(&mut self, node: u32, around: u8) {
        if self.out.len() > BYTES_MAX {
            return;
        }
        let rules = self.rules;
        let Some(made) = rules.cel.get(node as usize) else { return };
        match *made {
            Cel::Null => self.out.push_str("null"),
            Cel::Bool(value) => self.out.push_str(if value { "true" } else { "false" }),
            Cel::Int(number) => self.out.push_str(&number.to_string()),
            Cel::Double(number) => self.out.push_str(&format!("{number:?}")),
            Cel::Str(text) => self.out.push_str(&format!("{:?}", rules.str(text))),
            Cel::Attr(attr) => self.attr(attr),
            Cel::HasAttr(attr) => {
                self.out.push_str("has(");
                self.attr(attr);
                self.out.push(')');
            }
            Cel::AttrIsNull(attr) => {
                self.attr(attr);
                self.out.push_str(" == null");
            }
            Cel::Now => self.out.push_str("now"),
            Cel::FlagKey => self.out.push_str("flag.key"),
            Cel::Var(slot) => self.var(slot as usize),
            Cel::List(items) => {
                self.out.push('[');
                self.list(slice(&rules.cel_refs, items));
                self.out.push(']');
            }
            Cel::Map(entries) => {
                self.out.push('{');
                for (index, pair) in slice(&rules.cel_refs, entries).chunks(2).enumerate() {
                    if index > 0 {
                        self.out.push_str(", ");
                    }
                    for (place, part) in pair.iter().enumerate() {
                        if place > 0 {
                            self.out.push_str(": ");
                        }
                        self.node(*part, 0);
                    }
                }
                self.out.push('}');
            }
            Cel::Select { of, field } => {
                self.node(of, 8);
                self.out.push_str(&format!(".{}", rules.str(field)));
            }
            Cel::Has { of, field } => {
                self.out.push_str("has(");
                self.node(of, 8);
                self.out.push_str(&format!(".{})", rules.str(field)));
            }
            Cel::Matches { of, pattern } => {
                self.node(of, 8);
                self.out.push_str(&format!(".matches({:?})", rules.str(pattern)));
            }
            Cel::Call { op, args } => {
                let own = strength(op);
                let brackets = own < around;
                if brackets {
                    self.out.push('(');
                }
                self.call(op, slice(&rules.cel_refs, args), own);
                if brackets {
                    self.out.push(')');
                }
            }
            Cel::Loop { kind, over, filter, body } => {
                self.node(over, 8);
                let name = match kind {
                    CelLoop::All => "all",
                    CelLoop::Exists => "exists",
                    CelLoop::ExistsOne => "exists_one",
                    CelLoop::Map => "map",
                    CelLoop::Filter => "filter",
                };
                self.out.push_str(&format!(".{name}("));
                self.var(self.level);
                self.level = self.level.saturating_add(1);
                for part in [filter, body].into_iter().filter(|part| *part != NONE) {
                    self.out.push_str(", ");
                    self.node(part, 0);
                }
                self.level = self.level.saturating_sub(1);
                self.out.push(')');
            }
        }
    }

    fn list(&mut self, items: &[u32]) {
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(", ");
            }
            self.node(*item, 0);
        }
    }

    fn call(&mut self, op: CelOp, args: &[u32], own: u8) {
        match (op, args) {
            (CelOp::If, [test, yes, no]) => {
                self.node(*test, own.saturating_add(1));
                self.out.push_str(" ? ");
                self.node(*yes, own.saturating_add(1));
                self.out.push_str(" : ");
                self.node(*no, own);
            }
            (CelOp::Not | CelOp::Negate, [of]) => {
                self.out.push_str(op.name());
                self.node(*of, own);
            }
            (CelOp::Index, [of, index]) => {
                self.node(*of, own);
                self.out.push('[');
                self.node(*index, 0);
                self.out.push(']');
            }
            _ if own < 7 => {
                for (index, arg) in args.iter().enumerate() {
                    if index > 0 {
                        self.out.push_str(&format!(" {} ", op.name()));
                    }
                    self.node(*arg, own.saturating_add(u8::from(index > 0)));
                }
            }
            (
                CelOp::Size
                | CelOp::ToInt
                | CelOp::ToDouble
                | CelOp::ToString
                | CelOp::ToBool
                | CelOp::ToTimestamp
                | CelOp::ToDuration,
                args,
            ) => {
                self.out.push_str(op.name());
                self.out.push('(');
                self.list(args);
                self.out.push(')');
            }
            (_, [of, rest @ ..]) => {
                self.node(*of, 8);
                self.out.push_str(&format!(".{}(", op.name()));
                self.list(rest);
                self.out.push(')');
            }
            (_, []) => {}
        }
    }
}
