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
    /// are arrays or objects, values beyond ASCII where case is ignored, coercion between types,
    /// versions compared as padded text, and units that may be fractions.
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
        let arg = |arg: &Arg| match arg {
            Arg::VersionRange(_) | Arg::Cidr { .. } | Arg::Regex(_) | Arg::Json(_) => false,
            Arg::Str(text) => !clause.ignore_case || self.str(*text).is_ascii(),
            _ => true,
        };
        op && clause.coerce == Coerce::Strict
            && clause.version != VersionRule::Padded
            && slice(&self.args, clause.args).iter().all(arg)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::compile::{EnvironmentState, FlagState, compile};

    fn tier(config: Value) -> Tier {
        let definition =
            json!({"key": "f", "type": "boolean", "variants": {"on": true, "off": false}});
        let flag = FlagState {
            definition: serde_json::from_value(definition).unwrap(),
            config: serde_json::from_value(config).unwrap(),
        };
        let state = EnvironmentState { flags: vec![flag], ..EnvironmentState::default() };
        compile(&state).unwrap().ruleset.tier()
    }

    fn when(condition: Value) -> Tier {
        tier(json!({"enabled": true, "fallthrough": {"variant": "off"},
            "rules": [{"id": "r", "when": condition, "serve": {"variant": "on"}}]}))
    }

    fn split(more: Value) -> Tier {
        let mut split = json!({"weights": {"on": 50_000, "off": 50_000}});
        split.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tier(json!({"enabled": true, "fallthrough": {"split": split}}))
    }

    #[test]
    fn what_flags_use_every_day_is_of_the_core_tier() {
        for (op, value) in [
            ("eq", json!("x")),
            ("in", json!(["x", 3, true, null, 1.5])),
            ("not_in", json!(["x"])),
            ("starts_with", json!("x")),
            ("ends_with", json!("x")),
            ("contains", json!("x")),
            ("lt", json!(5)),
            ("gte", json!(1.5)),
            ("before", json!("2026-01-01T00:00:00Z")),
            ("semver_gte", json!("1.2.3")),
            ("type_is", json!(["string"])),
            ("size", json!(2)),
        ] {
            assert_eq!(when(json!({"attr": "a.b", "op": op, "value": value})), Tier::Core, "{op}");
        }
        assert_eq!(when(json!({"attr": "a", "op": "exists"})), Tier::Core);
        let folded =
            json!({"attr": "a", "op": "in", "value": ["X", "y"], "policy": {"ignoreCase": true}});
        assert_eq!(when(folded), Tier::Core);
        assert_eq!(split(json!({})), Tier::Core);
        assert_eq!(split(json!({"by": ["account", "targetingKey"]})), Tier::Core);
        assert_eq!(Ruleset::default().tier(), Tier::Core);
    }

    #[test]
    fn each_thing_that_the_core_leaves_out_is_of_the_full_tier() {
        for condition in [
            json!({"attr": "a", "op": "matches", "value": "^x"}),
            json!({"attr": "a", "op": "cidr", "value": "10.0.0.0/8"}),
            json!({"attr": "a", "op": "semver_range", "value": "^1.2"}),
            json!({"attr": "a", "op": "eq", "value": [[1, 2]]}),
            json!({"attr": "a", "op": "eq", "value": "\u{e4}", "policy": {"ignoreCase": true}}),
            json!({"attr": "a", "op": "lt", "value": 5, "policy": {"coerce": "string"}}),
            json!({"attr": "a", "op": "semver_eq", "value": "1.0.0", "policy": {"version": "padded"}}),
            json!({"not": {"all": [{"attr": "a", "op": "matches", "value": "x"}]}}),
            json!({"logic": {"==": [{"var": "a"}, 1]}}),
        ] {
            assert_eq!(when(condition.clone()), Tier::Full, "{condition}");
        }
        assert_eq!(split(json!({"unitTypes": "any"})), Tier::Full);
    }
}
