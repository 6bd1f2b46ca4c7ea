//! What a configuration or a segment asks for: other flags, segments, policies.
//!
//! By name, as an author wrote it; whether they are there is the compiler's question.

use crate::limits::NESTING_MAX;
use crate::model::{Condition, FlagConfig, Segment};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target<'c> {
    Flag(&'c str),
    Segment(&'c str),
    Policy(&'c str),
}

/// By a flag's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference<'c> {
    pub to: Target<'c>,
    /// The id of the rule that asks for it; None: the flag itself, for all its rules.
    pub rule: Option<&'c str>,
}

/// In the order that they are written in. A rule that asks for the same twice refers to it twice.
pub fn of_config(config: &FlagConfig) -> Vec<Reference<'_>> {
    let own = config.prerequisites.iter().map(|one| Target::Flag(&one.flag));
    let mut all: Vec<Reference<'_>> = own.map(|to| Reference { to, rule: None }).collect();
    for rule in &config.rules {
        let rule_id = Some(rule.id.as_str());
        let mut segments = Vec::new();
        if let Some(when) = &rule.when {
            segments_of(when, NESTING_MAX, &mut segments);
        }
        let flags = rule.prerequisites.iter().map(|one| Target::Flag(&one.flag));
        let segments = segments.into_iter().map(Target::Segment);
        let policy = rule.policy.iter().map(|policy| Target::Policy(&policy.name));
        let targets = flags.chain(segments).chain(policy);
        all.extend(targets.map(|to| Reference { to, rule: rule_id }));
    }
    all
}

/// Keys of other segments.
pub fn of_segment(segment: &Segment) -> Vec<&str> {
    let mut keys = Vec::new();
    for rule in &segment.rules {
        segments_of(rule, NESTING_MAX, &mut keys);
    }
    keys
}

/// The segments that a condition asks for, as far down as the compiler goes.
pub fn segments_of<'c>(condition: &'c Condition, levels: usize, keys: &mut Vec<&'c str>) {
    let Some(levels) = levels.checked_sub(1) else { return };
    match condition {
        Condition::All(parts) | Condition::Any(parts) => {
            for part in parts {
                segments_of(part, levels, keys);
            }
        }
        Condition::Not(part) => segments_of(part, levels, keys),
        Condition::Segment(segments) => keys.extend(segments.iter().map(String::as_str)),
        Condition::Clause(_) | Condition::Logic(_) | Condition::Cel(_) | Condition::Always(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_can_name_another_is_found() {
        let config = json!({
            "enabled": true,
            "prerequisites": [ { "flag": "base", "variants": ["on"] } ],
            "rules": [
                { "id": "a", "serve": { "variant": "on" },
                  "prerequisites": [ { "flag": "other", "variants": ["on"] } ],
                  "when": { "all": [ { "not": { "segment": ["staff"] } },
                      { "any": [ { "segment": ["beta", "staff"] }, { "always": true } ] } ] } },
                { "id": "b", "policy": { "name": "guard" } }
            ],
            "fallthrough": { "variant": "on" }
        });
        let config: FlagConfig = serde_json::from_value(config).unwrap();
        let at = |rule| move |to| Reference { to, rule };
        let of_rule = at(Some("a"));
        assert_eq!(
            of_config(&config),
            [
                at(None)(Target::Flag("base")),
                of_rule(Target::Flag("other")),
                of_rule(Target::Segment("staff")),
                of_rule(Target::Segment("beta")),
                of_rule(Target::Segment("staff")),
                at(Some("b"))(Target::Policy("guard")),
            ]
        );
        let segment = json!({ "key": "all", "rules": [ { "segment": ["a"] },
            { "not": { "segment": ["b"] } } ] });
        let segment: Segment = serde_json::from_value(segment).unwrap();
        assert_eq!(of_segment(&segment), ["a", "b"]);
    }
}
