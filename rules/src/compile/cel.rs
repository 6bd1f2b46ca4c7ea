//! CEL conditions to expressions: clauses as any other condition's, and CEL nodes.

use super::place::Place;
use super::{Builder, append, len32};
use crate::cel::lower::{self, Lowered};
use crate::cel::{Mistake, Sink};
use crate::limits::{CEL_BYTES_MAX, NESTING_MAX};
use crate::ruleset::{Cel, Expr, Span, Text};

impl Builder<'_> {
    /// A condition in CEL at this depth of the rule's condition; its expr.
    pub(super) fn cel(&mut self, source: &str, depth: usize, at: &Place<'_>) -> u32 {
        let bytes = source.len();
        if bytes > CEL_BYTES_MAX {
            self.problem(at, format!("{bytes} bytes of CEL, the limit is {CEL_BYTES_MAX}"));
            return 0;
        }
        let lowered = (self.parse_cel)(source).and_then(|tree| lower::condition(&tree));
        match lowered {
            Ok(lowered) => self.lowered(&lowered, depth, at),
            Err(mistakes) => {
                for Mistake { at: place, message, .. } in mistakes {
                    let (line, column) = (place.line, place.column);
                    self.problem(at, format!("line {line}, column {column}: {message}"));
                }
                0
            }
        }
    }

    fn lowered(&mut self, lowered: &Lowered, depth: usize, at: &Place<'_>) -> u32 {
        if depth > NESTING_MAX {
            self.problem(at, format!("conditions are nested deeper than {NESTING_MAX} levels"));
            return 0;
        }
        match lowered {
            Lowered::All(parts) => {
                let exprs = self.lowered_parts(parts, depth, at);
                let span = self.refs(&exprs);
                self.expr(Expr::All(span))
            }
            Lowered::Any(parts) => {
                let exprs = self.lowered_parts(parts, depth, at);
                let span = self.refs(&exprs);
                self.expr(Expr::Any(span))
            }
            Lowered::Const(value) => {
                self.leaves = self.leaves.saturating_add(1);
                self.expr(Expr::Const(*value))
            }
            Lowered::Clause(clause) => {
                self.leaves = self.leaves.saturating_add(1);
                let index = self.clause(clause, at);
                self.expr(Expr::Clause(index))
            }
            Lowered::Cel(ex) => {
                self.leaves = self.leaves.saturating_add(1);
                let root = lower::node(ex, &mut At(self));
                self.expr(Expr::Cel(root))
            }
        }
    }

    fn lowered_parts(&mut self, parts: &[Lowered], depth: usize, at: &Place<'_>) -> Vec<u32> {
        let inner = depth.saturating_add(1);
        parts.iter().map(|part| self.lowered(part, inner, at)).collect()
    }
}

struct At<'b, 'a>(&'b mut Builder<'a>);

impl Sink for At<'_, '_> {
    fn text(&mut self, text: &str) -> Text {
        self.0.text(text)
    }

    fn attr(&mut self, path: &str) -> u32 {
        // A source is shorter than a path may be, and a path of nothing is none.
        self.0.attr(path, &Place::Root)
    }

    fn refs(&mut self, children: &[u32]) -> Span {
        append(&mut self.0.rules.cel_refs, children.iter().copied())
    }

    fn node(&mut self, node: Cel) -> u32 {
        let index = len32(self.0.rules.cel.len());
        self.0.rules.cel.push(node);
        index
    }
}
