//! Which evaluator a ruleset needs.
//!
//! Browsers load one of two modules made from this source. The core has what flags of the native
//! format use every day; what few use and much code is behind needs the full one. A build without
//! the feature `full` refuses rulesets of that tier, so that it never answers otherwise.

use crate::model::{Coerce, Op, UnitTypes, VersionRule};
use crate::ruleset::{Arg, Clause, Expr, NONE, Ruleset, Serve, slice};

/// What a ruleset needs of an evaluator. The greater has what the lesser has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    Core,
    Full,
}

impl Tier {
    /// As the client snapshot's manifest says it, and the modules are called.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Core => "core",
            Tier::Full => "full",
        }
    }
}

impl Ruleset {
    /// The core leaves out: JSONLogic, CEL, policies, id lists, hashes of other products and what
    /// only they have (shards), regular expressions, networks, ranges of versions, values that
    /// are arrays or objects, comparing without regard to case, coercion between types, versions
    /// compared as padded text, and units that may be fractions.
    pub fn tier(&self) -> Tier {
        let empty = self.logic.is_empty()
            && self.cel.is_empty()
            && self.policies.is_empty()
            && self.policy_calls.is_empty()
            && self.hashes.is_empty()
            && self.hash_parts.is_empty()
            && self.shards.is_empty()
            && self.list_count == 0;
        let exprs = self.exprs.iter().all(|e| !matches!(e, Expr::Logic(_) | Expr::Cel(_)));
        let serves = self.serves.iter().all(|s| !matches!(s, Serve::Logic(_) | Serve::Policy(_)));
        let splits = self.splits.iter().all(|s| s.hash == NONE && s.unit_types != UnitTypes::Any);
        let clauses = self.clauses.iter().all(|clause| self.is_core(clause));
        if empty && exprs && serves && splits && clauses { Tier::Core } else { Tier::Full }
    }

    fn is_core(&self, clause: &Clause) -> bool {
        let op = !matches!(clause.op, Op::Matches | Op::SemverRange | Op::Cidr);
        let arg = |arg: &Arg| {
            !matches!(arg, Arg::VersionRange(_) | Arg::Cidr { .. } | Arg::Regex(_) | Arg::Json(_))
        };
        op && !clause.ignore_case
            && clause.coerce == Coerce::Strict
            && clause.version != VersionRule::Padded
            && slice(&self.args, clause.args).iter().all(arg)
    }
}
