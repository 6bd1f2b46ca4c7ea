//! The part of an environment whose rules travel to browsers.
//!
//! Left out here is absent there: what is not in the state cannot get into the ruleset, whatever the
//! compiler does with it.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use super::{
    Builder, Compiled, EnvironmentState, FlagState, PROBLEMS_MAX, Parts, Problem, Quarantine,
};
use crate::cel::Parse;
use crate::limits::NESTING_MAX;
use crate::model::{Clients, Condition};
use crate::references::segments_of;

/// What a broken flag answers in a browser. The compiler's own words may name other flags.
const BROKEN: &str = "the flag's configuration does not compile";

/// The flags whose `clients` is `local`, the segments that they ask for, and the set's metadata, which
/// is part of every answer. No policies: such flags have none.
pub fn client_state<F: Borrow<FlagState> + Clone>(
    state: &EnvironmentState<F>,
) -> EnvironmentState<F> {
    let is_local = |flag: &&F| {
        let definition = &(*flag).borrow().definition;
        definition.clients == Clients::Local && !definition.archived
    };
    let flags: Vec<F> = state.flags.iter().filter(is_local).cloned().collect();
    let conditions = flags.iter().flat_map(|flag| {
        let rules = &flag.borrow().config.rules;
        rules.iter().filter_map(|rule| rule.when.as_ref())
    });
    let mut used = BTreeSet::new();
    let mut asked: Vec<&Condition> = conditions.collect();
    while let Some(condition) = asked.pop() {
        let mut keys = Vec::new();
        segments_of(condition, NESTING_MAX, &mut keys);
        for key in keys {
            if used.insert(key) {
                let named = state.segments.iter().filter(|one| one.segment.key == *key);
                asked.extend(named.flat_map(|one| &one.segment.rules));
            }
        }
    }
    let segments = state.segments.iter().filter(|one| used.contains(one.segment.key.as_str()));
    EnvironmentState {
        segments: segments.cloned().collect(),
        policies: Vec::new(),
        metadata: state.metadata.clone(),
        flags,
    }
}

/// As `compile_lenient_with`, of what `client_state` gives; what is quarantined does not say why.
pub fn compile_clients_with<F: Borrow<FlagState>>(
    state: &EnvironmentState<F>,
    parse_cel: &Parse<'_>,
) -> Result<Compiled, Vec<Problem>> {
    let parts = Parts::of(state);
    let mut quarantine = Quarantine::default();
    let mut problems = Vec::new();
    for _ in 0..PROBLEMS_MAX {
        let attempt = Builder::new(&parts, &quarantine, parse_cel).build();
        if attempt.problems.is_empty() {
            return Ok(attempt.compiled);
        }
        problems = attempt.problems;
        if attempt.hopeless {
            break;
        }
        quarantine.absorb(attempt.faulty);
        for text in quarantine.flags.values_mut() {
            BROKEN.clone_into(text);
        }
    }
    Err(problems)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::blob::encode_ruleset;
    use crate::compile::{SegmentState, compile};

    fn flag(key: &str, clients: &str, rules: Value, prerequisites: Value) -> FlagState {
        let definition = json!({ "key": key, "type": "string", "clients": clients,
            "variants": { format!("{key}-variant"): format!("{key}-value") },
            "metadata": { "of": format!("{key}-metadata") } });
        let config = json!({ "enabled": true, "rules": rules, "prerequisites": prerequisites,
            "fallthrough": { "variant": format!("{key}-variant") } });
        FlagState {
            definition: serde_json::from_value(definition).unwrap(),
            config: serde_json::from_value(config).unwrap(),
        }
    }

    fn rule(key: &str, when: Value) -> Value {
        json!([{ "id": format!("{key}-rule"), "when": when,
            "serve": { "variant": format!("{key}-variant") } }])
    }

    fn state() -> EnvironmentState {
        let attr = |text: &str| json!({ "attr": "country", "op": "eq", "value": text });
        let mut state = EnvironmentState::default();
        for (key, clients) in [("seen", "local"), ("distant", "edge"), ("hidden", "none")] {
            let when = json!({ "all": [{ "segment": format!("{key}-outer") }, attr("DE")] });
            state.flags.push(flag(key, clients, rule(key, when), json!([])));
            for (name, when) in [
                ("outer", json!({ "not": { "segment": format!("{key}-inner") } })),
                ("inner", attr(&format!("{key}-country"))),
            ] {
                let segment = json!({ "key": format!("{key}-{name}"), "rules": [when] });
                state.segments.push(SegmentState {
                    segment: serde_json::from_value(segment).unwrap(),
                    has_included: false,
                    has_excluded: false,
                });
            }
        }
        state
    }

    fn holds(bytes: &[u8], text: &str) -> bool {
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    }

    #[test]
    fn nothing_of_other_flags_is_in_the_bytes() {
        let whole = state();
        let all = encode_ruleset(&compile(&whole).unwrap().ruleset);
        let compiled = compile(&client_state(&whole)).unwrap();
        assert_eq!(
            compiled,
            compile_clients_with(&client_state(&whole), &crate::cel::no_parser).unwrap()
        );
        let bytes = encode_ruleset(&compiled.ruleset);
        for text in ["variant", "value", "metadata", "outer", "inner", "country"] {
            assert!(holds(&bytes, &format!("seen-{text}")), "seen-{text}");
            for other in ["distant", "hidden"] {
                let text = format!("{other}-{text}");
                assert!(holds(&all, &text), "this test looks for nothing: {text}");
                assert!(!holds(&bytes, &text), "{text}");
            }
        }
        assert!(!holds(&bytes, "distant") && !holds(&bytes, "hidden"));
    }

    #[test]
    fn hidden_changes_change_no_byte() {
        let one = state();
        let mut other = one.clone();
        other.flags.retain(|flag| flag.definition.key != "hidden");
        other.segments.retain(|one| !one.segment.key.starts_with("distant"));
        other.flags.reverse();
        let bytes = |state: &EnvironmentState| {
            encode_ruleset(&compile(&client_state(state)).unwrap().ruleset)
        };
        assert_eq!(bytes(&one), bytes(&other));
    }

    #[test]
    fn a_broken_flag_does_not_tell_which_hidden_one_it_wanted() {
        let mut state = state();
        let wants = json!([{ "flag": "hidden", "variants": ["hidden-variant"] }]);
        state.flags.push(flag("broken", "local", json!([]), wants));
        let clients = client_state(&state);
        assert!(compile(&clients).is_err());
        let compiled = compile_clients_with(&clients, &crate::cel::no_parser).unwrap();
        let bytes = encode_ruleset(&compiled.ruleset);
        assert!(holds(&bytes, "broken") && holds(&bytes, BROKEN) && holds(&bytes, "seen-value"));
        assert!(!holds(&bytes, "hidden"));
    }
}
