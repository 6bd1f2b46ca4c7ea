//! What the compiler refuses, where it says so and how; what it makes of what it takes; and the
//! limits at n and n + 1.

use rules::blob::Digest;
use rules::compile::{
    Compiled, EnvironmentState, FlagState, PROBLEMS_MAX, PolicyState, Problem, SegmentState,
    compile, compile_lenient, parse,
};
use rules::limits;
use rules::model::{Condition, FlagConfig, FlagDefinition, Metadata, Segment};
use rules::ruleset::{Arg, Serve};
use serde_json::{Value, json};

/// `{flags: {key: {definition, config}}, segments: {key: {…, included?}}, policies: {name:
/// [attribute]}, metadata}`.
fn state(document: &Value) -> EnvironmentState {
    let with_key = |key: &str, value: &Value| {
        let mut value = value.clone();
        value["key"] = json!(key);
        value
    };
    let entries = |name: &str| document[name].as_object().cloned().unwrap_or_default();
    EnvironmentState {
        flags: entries("flags")
            .iter()
            .map(|(key, flag)| FlagState {
                definition: read::<FlagDefinition>(&with_key(key, &flag["definition"])),
                config: read::<FlagConfig>(&flag["config"]),
            })
            .collect(),
        segments: entries("segments")
            .iter()
            .map(|(key, segment)| {
                let mut document = with_key(key, segment);
                let included = document.as_object_mut().unwrap().remove("included");
                let excluded = document.as_object_mut().unwrap().remove("excluded");
                SegmentState {
                    segment: read::<Segment>(&document),
                    has_included: included.is_some(),
                    has_excluded: excluded.is_some(),
                }
            })
            .collect(),
        policies: entries("policies")
            .iter()
            .map(|(name, attributes)| PolicyState {
                name: name.clone(),
                digest: Digest::of(name.as_bytes()),
                attributes: serde_json::from_value(attributes.clone()).unwrap(),
            })
            .collect(),
        metadata: match &document["metadata"] {
            Value::Null => Metadata::default(),
            metadata => read(metadata),
        },
    }
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    parse(value.to_string().as_bytes()).unwrap_or_else(|problem| panic!("{problem:?}: {value}"))
}

/// A flag `f` with the variants `a` and `b`, another flag `g`, a segment `s`.
fn base() -> Value {
    let plain = json!({ "definition": { "type": "string", "variants": { "a": "A", "b": "B" } },
                        "config": { "enabled": true, "fallthrough": { "variant": "a" } } });
    json!({ "flags": { "f": plain, "g": plain },
            "segments": { "s": { "rules": [{ "attr": "x", "op": "eq", "value": 1 }] } },
            "policies": { "guard": ["country"] } })
}

/// `base` with one thing changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = base();
    put(&mut document, pointer, value);
    document
}

/// Sets what `pointer` names, making objects on the way.
fn put(document: &mut Value, pointer: &str, value: Value) {
    let mut at = document;
    for key in pointer.split('/').skip(1) {
        at = match at {
            Value::Array(items) => &mut items[key.parse::<usize>().unwrap()],
            object => &mut object[key],
        };
    }
    *at = value;
}

fn problems(document: &Value) -> Vec<Problem> {
    compile(&state(document)).err().unwrap_or_default()
}

fn compiled(document: &Value) -> Compiled {
    compile(&state(document)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The one problem of `document` is at `pointer`, and its text has all of `words`.
#[track_caller]
fn refused(document: &Value, pointer: &str, words: &[&str]) {
    let problems = problems(document);
    let [problem] = problems.as_slice() else { panic!("not one problem: {problems:#?}") };
    assert_eq!(problem.pointer, pointer, "{problem:?}");
    for word in words {
        assert!(problem.message.contains(word), "{:?} lacks {word:?}", problem.message);
    }
    assert!(!problem.message.starts_with(char::is_uppercase), "{}", problem.message);
}

#[track_caller]
fn rule_refused(rule: Value, pointer: &str, words: &[&str]) {
    let mut rule = rule;
    if rule.get("id").is_none() {
        rule["id"] = json!("r");
    }
    if rule.get("serve").is_none() && rule.get("policy").is_none() {
        rule["serve"] = json!({ "variant": "a" });
    }
    let document = with("/flags/f/config/rules", json!([rule]));
    refused(&document, &format!("/flags/f/config/rules/0{pointer}"), words);
}

#[track_caller]
fn clause_refused(clause: Value, pointer: &str, words: &[&str]) {
    rule_refused(json!({ "when": clause }), &format!("/when{pointer}"), words);
}

#[track_caller]
fn clause_taken(clause: Value) -> Vec<Arg> {
    let rules = json!([{ "id": "r", "when": clause, "serve": { "variant": "a" } }]);
    let compiled = compiled(&with("/flags/f/config/rules", rules));
    // The first clause is the segment's.
    let clause = compiled.ruleset.clauses[1];
    rules::ruleset::slice(&compiled.ruleset.args, clause.args).to_vec()
}

#[track_caller]
fn split_refused(split: Value, pointer: &str, words: &[&str]) {
    rule_refused(json!({ "serve": { "split": split } }), &format!("/serve/split{pointer}"), words);
}

fn variants(kind: &str, value: Value) -> Value {
    let mut document = with("/flags/f/definition/type", json!(kind));
    put(&mut document, "/flags/f/definition/variants", json!({ "a": value }));
    document
}

fn rendered(kind: &str, value: Value) -> String {
    let compiled = compiled(&variants(kind, value));
    compiled.ruleset.str(compiled.ruleset.variants[0].value).to_owned()
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_number_is_written_as_its_flags_type_says() {
    assert_eq!(rendered("float", json!(1)), "1.0");
    assert_eq!(rendered("float", json!(0.1)), "0.1");
    assert_eq!(rendered("float", json!(-0.0)), "-0.0");
    assert_eq!(rendered("float", json!(1e300)), "1e+300");
    assert_eq!(rendered("integer", json!(3)), "3");
    assert_eq!(rendered("integer", json!(3.0)), "3");
    assert_eq!(rendered("integer", json!(9007199254740991u64)), "9007199254740991");
    assert_eq!(rendered("integer", json!(-9007199254740991i64)), "-9007199254740991");
}

#[test]
fn an_object_keeps_its_authors_order() {
    assert_eq!(
        rendered("object", json!({ "z": 1, "a": [true, null] })),
        r#"{"z":1,"a":[true,null]}"#
    );
}

#[test]
fn a_value_that_is_not_of_the_flags_type_is_refused() {
    let at = "/flags/f/definition/variants/a";
    for (kind, value, words) in [
        ("boolean", json!("true"), ["boolean", "a string"]),
        ("string", json!(1), ["string", "the number 1"]),
        ("integer", json!(1.5), ["integer", "1.5"]),
        ("integer", json!("1"), ["integer", "a string"]),
        ("float", json!(true), ["float", "the boolean true"]),
        ("object", json!("x"), ["object", "a string"]),
        ("object", json!(null), ["object", "null"]),
    ] {
        refused(&variants(kind, value), at, &words);
    }
}

#[test]
fn an_integer_that_javascript_would_change_is_refused_wherever_it_is() {
    let at = "/flags/f/definition/variants/a";
    for (kind, value) in [
        ("integer", json!(9007199254740992u64)),
        ("integer", json!(-9007199254740992i64)),
        ("integer", json!(1e17)),
        ("float", json!(u64::MAX)),
        ("object", json!({ "deep": [9007199254740992u64] })),
    ] {
        let problems = problems(&variants(kind, value));
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].pointer, at);
    }
    refused(
        &with("/flags/f/definition/metadata", json!({ "n": 9007199254740993u64 })),
        "/flags/f/definition/metadata/n",
        &["9007199254740991", "string"],
    );
    clause_refused(
        json!({ "attr": "x", "op": "eq", "value": 9007199254740993u64 }),
        "/value",
        &["write it as a string"],
    );
}

#[test]
fn metadata_is_laid_set_under_definition_under_origin() {
    let mut document = with("/metadata", json!({ "set": 1, "both": "set", "all": "set" }));
    put(
        &mut document,
        "/flags/f/definition/metadata",
        json!({ "both": "flag", "all": "flag", "own": true }),
    );
    put(
        &mut document,
        "/flags/f/config/origin",
        json!({ "format": "flagd", "metadata": { "all": 0.5 } }),
    );
    let rules = compiled(&document).ruleset;
    assert_eq!(
        rules.str(rules.flags[0].json_tail),
        r#","metadata":{"set":1,"both":"flag","all":0.5,"own":true}}"#
    );
    assert_eq!(rules.str(rules.metadata), r#"{"set":1,"both":"set","all":"set"}"#);
    assert_eq!(rules.str(rules.flags[0].json_head), r#"{"key":"f""#);
    assert_eq!(rules.str(rules.variants[0].json), r#","value":"A","variant":"a""#);
}

// ── Names ───────────────────────────────────────────────────────────────────────────────────────

#[test]
fn every_place_that_names_a_variant_is_checked() {
    let serve = json!({ "variant": "c" });
    let words = ["no variant \"c\"", "\"a\", \"b\""];
    refused(&with("/flags/f/config/off", json!("c")), "/flags/f/config/off", &words);
    refused(
        &with("/flags/f/config/fallthrough", serve.clone()),
        "/flags/f/config/fallthrough/variant",
        &words,
    );
    rule_refused(json!({ "serve": serve }), "/serve/variant", &words);
    split_refused(json!({ "weights": { "a": 50000, "c": 50000 } }), "/weights/c", &words);
    split_refused(
        json!({ "arms": [{ "serve": serve, "weight": 1 }] }),
        "/arms/0/serve/variant",
        &words,
    );
    refused(
        &with("/flags/f/config/prerequisites", json!([{ "flag": "g", "variants": ["a", "c"] }])),
        "/flags/f/config/prerequisites/0/variants/1",
        &words,
    );
}

#[test]
fn a_flag_without_variants_is_refused() {
    let mut document = with("/flags/f/definition/variants", json!({}));
    put(&mut document, "/flags/f/config/fallthrough", json!("codeDefault"));
    refused(&document, "/flags/f/definition/variants", &["at least one variant"]);
}

#[test]
fn what_is_not_there_is_named() {
    refused(
        &with("/flags/f/config/prerequisites", json!([{ "flag": "h", "variants": ["a"] }])),
        "/flags/f/config/prerequisites/0/flag",
        &["no flag \"h\""],
    );
    clause_refused(json!({ "segment": "t" }), "/segment", &["no segment \"t\"", "\"s\""]);
    clause_refused(json!({ "segment": ["s", "t"] }), "/segment/1", &["no segment \"t\""]);
}

#[test]
fn an_imported_flag_may_wait_for_a_flag_that_is_not_there() {
    let mut document =
        with("/flags/f/config/prerequisites", json!([{ "flag": "h", "variants": ["a"] }]));
    put(&mut document, "/flags/f/config/origin", json!({ "format": "flagd" }));
    assert_eq!(compiled(&document).ruleset.prerequisites[0].flag, rules::ruleset::NONE);
}

#[test]
fn keys_are_any_text_without_control_characters() {
    let plain = base()["flags"]["f"].clone();
    for key in ["größe/🌊", "a/b~c", " ", "\u{ad}"] {
        let mut document = base();
        document["flags"][key] = plain.clone();
        compiled(&document);
    }
    for (key, word) in [("", "empty"), ("a\nb", "U+000A"), ("a\u{7f}", "U+007F")] {
        let mut document = base();
        document["flags"][key] = plain.clone();
        refused(&document, &format!("/flags/{key}"), &["flag's key", word]);
        let mut document = base();
        document["segments"][key] = json!({});
        refused(&document, &format!("/segments/{key}"), &["segment's key", word]);
        let mut document = base();
        document["flags"]["f"]["definition"]["variants"][key] = json!("x");
        let pointer = format!("/flags/f/definition/variants/{key}");
        refused(&document, &pointer, &["variant's key", word]);
        rule_refused(json!({ "id": key }), "/id", &["rule's key", word]);
    }
}

#[test]
fn a_pointer_escapes_what_a_key_may_contain() {
    let mut document = base();
    document["flags"]["a/b~c"] = base()["flags"]["f"].clone();
    document["flags"]["a/b~c"]["config"]["off"] = json!("nope");
    refused(&document, "/flags/a~1b~0c/config/off", &["nope"]);
}

#[test]
fn two_of_one_name_are_refused() {
    let mut twice = state(&base());
    twice.flags.push(twice.flags[0].clone());
    twice.segments.push(twice.segments[0].clone());
    let problems = compile(&twice).unwrap_err();
    let places: Vec<&str> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
    assert_eq!(places, ["/flags/f", "/segments/s"]);
    let serve = json!({ "variant": "a" });
    let rules = json!([{ "id": "x", "serve": serve }, { "id": "y", "serve": serve },
                       { "id": "x", "serve": serve }]);
    refused(
        &with("/flags/f/config/rules", rules),
        "/flags/f/config/rules/2/id",
        &["rule 0's already"],
    );
}

// ── Rules and serves ────────────────────────────────────────────────────────────────────────────

#[test]
fn a_rule_says_once_what_it_serves() {
    let rule = json!([{ "id": "r" }]);
    refused(&with("/flags/f/config/rules", rule), "/flags/f/config/rules/0", &["add serve"]);
    let both = json!({ "policy": { "name": "guard" }, "serve": { "variant": "a" } });
    rule_refused(both, "", &["serve or policy, not both"]);
}

#[test]
fn a_rule_calls_only_a_policy_that_is_pinned_and_falls_back_to_what_the_flag_has() {
    let call = |policy: Value| json!({ "policy": policy });
    rule_refused(call(json!({ "name": "p" })), "/policy/name", &["\"p\"", "pinned: \"guard\""]);
    let elsewhere = json!({ "name": "guard", "fallback": { "variant": "z" } });
    rule_refused(call(elsewhere), "/policy/fallback/variant", &["no variant \"z\""]);
    let long = json!({ "name": "guard", "params": "x".repeat(limits::POLICY_PARAMS_BYTES_MAX) });
    rule_refused(call(long), "/policy/params", &["8194 bytes", "8192"]);
    let longest =
        json!({ "name": "guard", "params": "x".repeat(limits::POLICY_PARAMS_BYTES_MAX - 2) });
    let mut document = with("/flags/f/config/rules", json!([{ "id": "r", "policy": longest }]));
    compile(&state(&document)).unwrap();
    document["flags"]["f"]["definition"]["clients"] = json!("local");
    refused(&document, "/flags/f/config/rules/0/policy", &["run at the edge only"]);
}

#[test]
fn a_policy_gets_its_attributes_once_and_in_order_and_only_called_ones_are_in_the_ruleset() {
    let mut document = base();
    document["policies"] = json!({ "unused": ["x"],
        "guard": ["user.score", "country", "user", "user.name", "a.b.c", "a.b", "country"] });
    let call = |max: u32| json!({ "name": "guard", "params": { "max": max, "also": [1.0] } });
    let rules = json!([{ "id": "one", "policy": call(1) }, { "id": "two", "policy": call(2) }]);
    document["flags"]["f"]["config"]["rules"] = rules;
    let compiled = compile(&state(&document)).unwrap();
    assert_eq!(compiled.policies, ["guard"]);
    let rules = &compiled.ruleset;
    let [policy] = rules.policies.as_slice() else { panic!("{:?}", rules.policies) };
    let attrs: Vec<&str> = rules::ruleset::slice(&rules.refs, policy.attrs)
        .iter()
        .map(|attr| rules.str(rules.attrs[*attr as usize].path))
        .collect();
    assert_eq!(attrs, ["a.b", "country", "user"]);
    assert_eq!(rules.str(policy.digest), Digest::of(b"guard").to_string());
    let params: Vec<&str> = rules.policy_calls.iter().map(|call| rules.str(call.params)).collect();
    assert_eq!(params, [r#"{"also":[1.0],"max":1}"#, r#"{"also":[1.0],"max":2}"#]);
}

#[test]
fn who_calls_a_policy_is_known_through_prerequisites_too() {
    let mut document = base();
    let flag = base()["flags"]["f"].clone();
    let after = |needed: &str| {
        let mut flag = flag.clone();
        flag["config"]["prerequisites"] = json!([{ "flag": needed, "variants": ["a"] }]);
        flag
    };
    document["flags"]["caller"] = flag.clone();
    document["flags"]["caller"]["config"]["rules"] =
        json!([{ "id": "r", "policy": { "name": "guard" } }]);
    document["flags"]["after"] = after("caller");
    document["flags"]["long-after"] = after("after");
    document["flags"]["in-a-rule"] = flag.clone();
    document["flags"]["in-a-rule"]["config"]["rules"] = json!([{ "id": "r",
        "prerequisites": [{ "flag": "after", "variants": ["a"] }], "serve": { "variant": "a" } }]);
    document["flags"]["elsewhere"] = after("f");
    let compiled = compile(&state(&document)).unwrap();
    let mut callers = compiled.ruleset.policy_callers();
    callers.sort();
    assert_eq!(callers, ["after", "caller", "in-a-rule", "long-after"]);
    assert!(compile(&state(&base())).unwrap().ruleset.policy_callers().is_empty());
}

#[test]
fn a_hundred_policies_may_be_pinned_and_no_more() {
    let pinned = |n: usize| {
        let mut document = base();
        for index in 0..n {
            document["policies"][format!("p{index}")] = json!(["x"]);
        }
        document["policies"].as_object_mut().unwrap().shift_remove("guard");
        compile(&state(&document))
    };
    pinned(limits::POLICIES_MAX).unwrap();
    let problems = pinned(limits::POLICIES_MAX + 1).unwrap_err();
    assert_eq!(problems[0].pointer, "/policies");
    assert!(problems[0].message.contains("101 policies"), "{problems:?}");
}

#[test]
fn cel_is_refused_where_there_is_no_parser() {
    clause_refused(json!({ "cel": "a > 1" }), "/cel", &["no parser for CEL"]);
}

#[test]
fn nothing_comes_after_a_fallthrough() {
    let at = "/flags/f/config/fallthrough";
    refused(&with(at, json!("next")), at, &["codeDefault"]);
    let ramp = json!({ "from": 0, "to": 100000, "start": "2026-01-01T00:00:00Z",
                       "end": "2026-02-01T00:00:00Z" });
    let split = json!({ "split": { "weights": { "a": 100000 }, "ramp": ramp } });
    refused(&with(at, split), &format!("{at}/split/ramp"), &["write the split as a rule"]);
    let split = json!({ "split": { "arms": [{ "serve": "next", "weight": 1 }] } });
    refused(&with(at, split), &format!("{at}/split/arms/0/serve"), &["next"]);
}

#[test]
fn a_window_opens_before_it_closes() {
    let early = "2026-01-01T00:00:00Z";
    rule_refused(json!({ "active": { "from": early, "to": early } }), "/active", &["never opens"]);
    rule_refused(
        json!({ "active": { "from": "yesterday" } }),
        "/active/from",
        &["\"yesterday\"", "RFC 3339"],
    );
    let rule = json!([{ "id": "r", "serve": { "variant": "a" },
                        "active": { "from": early, "to": early, "inclusive": true } }]);
    let compiled = compiled(&with("/flags/f/config/rules", rule));
    assert_eq!(compiled.boundaries_ms, [1_767_225_600_000, 1_767_225_600_001]);
}

#[test]
fn weights_add_up_and_say_their_sum_if_not() {
    split_refused(
        json!({ "weights": { "a": 50000, "b": 49999 } }),
        "/weights",
        &["99999", "100000"],
    );
    split_refused(json!({}), "", &["needs weights"]);
    let arm = json!([{ "serve": { "variant": "a" }, "weight": 1 }]);
    split_refused(json!({ "weights": { "a": 100000 }, "arms": arm }), "", &["not both"]);
    split_refused(json!({ "weights": { "a": 100000 }, "by": [] }), "/by", &["one attribute"]);
    split_refused(json!({ "weights": { "a": 100000 }, "by": "" }), "/by", &["needs a name"]);
}

#[test]
fn an_arm_has_a_weight_or_ranges_like_its_neighbours() {
    let a = json!({ "variant": "a" });
    let hash = json!({ "input": ["salt", "unit"], "algorithm": { "murmur3": { "seed": 0 } },
                       "project": { "moduloFraction": { "n": 10000 } } });
    let arms = |arms: Value| json!({ "arms": arms, "hash": hash });
    split_refused(arms(json!([{ "serve": a }])), "/arms/0", &["neither"]);
    split_refused(
        arms(json!([{ "serve": a, "weight": 1, "ranges": [[0, 1]] }])),
        "/arms/0",
        &["not both"],
    );
    split_refused(
        arms(json!([{ "serve": a, "ranges": [[0, 1]] }, { "serve": a, "weight": 1 }])),
        "/arms/1/weight",
        &["ranges"],
    );
    split_refused(
        arms(json!([{ "serve": a, "ranges": [[0, 0.5], [1, 0.5]] }])),
        "/arms/0/ranges/1",
        &["from 1 to 0.5"],
    );
    split_refused(arms(json!([{ "serve": a, "weight": -1 }])), "/arms/0/weight", &["0 or more"]);
    split_refused(arms(json!([{ "serve": a, "weight": 0 }])), "/arms", &["nobody"]);
    split_refused(arms(json!([{ "serve": a, "weight": 3e9 }])), "/arms", &["2147483646"]);
    let nested = json!({ "split": { "weights": { "a": 100000 } } });
    split_refused(
        arms(json!([{ "serve": nested, "weight": 1 }, { "serve": a, "weight": 1 }])),
        "/arms/0/serve",
        &["not another split"],
    );
}

#[test]
fn the_native_hash_takes_whole_weights_and_no_ranges() {
    let arm =
        |key: &str, value: Value| json!({ "arms": [{ "serve": { "variant": "a" }, key: value }] });
    split_refused(arm("weight", json!(0.5)), "/arms/0/weight", &["whole"]);
    split_refused(arm("ranges", json!([[0, 1]])), "/arms/0/ranges", &["need a hash"]);
}

#[test]
fn a_hash_that_makes_no_number_is_refused() {
    let split = |hash: Value| json!({ "arms": [{ "serve": { "variant": "a" }, "weight": 1 }], "hash": hash });
    let hash = |key: &str, value: Value| {
        let mut hash = json!({ "input": ["salt", "unit"], "algorithm": { "murmur3": { "seed": 0 } },
                               "project": "mulShift32" });
        hash[key] = value;
        split(hash)
    };
    split_refused(hash("input", json!(["salt"])), "/hash/input", &["unit is not hashed"]);
    split_refused(hash("input", json!(["seed", "unit"])), "/hash/input/0", &["no seed"]);
    split_refused(hash("input", json!(["segmentKey", "unit"])), "/hash/input/0", &["segmentKey"]);
    split_refused(hash("encode", json!("cbor")), "/hash/input", &["cbor"]);
    split_refused(
        hash("algorithm", json!({ "sha1Hex": { "digits": 17 } })),
        "/hash/algorithm/sha1Hex/digits",
        &["17", "16"],
    );
    split_refused(
        hash("project", json!({ "moduloFraction": { "n": 0 } })),
        "/hash/project/moduloFraction/n",
        &["1 or more"],
    );
    split_refused(
        hash("project", json!({ "divide": { "divisor": 0 } })),
        "/hash/project/divide/divisor",
        &["1 or more"],
    );
}

#[test]
fn a_ramp_only_grows() {
    let ramp = |from: u32, to: u32, start: &str, end: &str| {
        json!({ "weights": { "a": 100000 },
                "ramp": { "from": from, "to": to, "start": start, "end": end } })
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    split_refused(ramp(5, 4, early, late), "/ramp", &["only grows"]);
    split_refused(ramp(0, 100_001, early, late), "/ramp/to", &["100001", "100000"]);
    split_refused(ramp(0, 1, late, early), "/ramp", &["not before"]);
    split_refused(ramp(0, 1, "soon", late), "/ramp/start", &["\"soon\""]);
}

#[test]
fn boundaries_are_few_and_lie_on_the_ramps_steps() {
    let ramp = |enabled: bool, step: u32| {
        let mut document = with("/flags/f/config/enabled", json!(enabled));
        let rules = json!([{ "id": "r", "serve": { "split": { "weights": { "a": 100000 },
            "ramp": { "from": 0, "to": 100000, "start": "1970-01-01T00:00:00Z",
                      "end": "1970-01-02T00:00:00Z", "stepSeconds": step } } } }]);
        put(&mut document, "/flags/f/config/rules", rules);
        compiled(&document).boundaries_ms
    };
    assert_eq!(ramp(true, 43_200), [0, 43_200_000, 86_400_000]);
    assert_eq!(ramp(true, 0).len(), 101);
    let thinned = ramp(true, 1);
    assert!(thinned.len() > 900 && thinned.len() <= 1_001, "{}", thinned.len());
    assert!(thinned.iter().all(|at| at % 1_000 == 0) && thinned.is_sorted());
    assert_eq!(thinned.last(), Some(&86_400_000));
    assert!(ramp(false, 43_200).is_empty(), "a disabled flag's answer does not change");
}

#[test]
fn only_a_flag_with_nothing_to_decide_is_static() {
    let is_static = |document: &Value| compiled(document).ruleset.flags[0].is_static;
    assert!(is_static(&base()));
    assert!(is_static(&with("/flags/f/config/enabled", json!(false))));
    assert!(!is_static(&with("/flags/f/config/fallthrough", json!("codeDefault"))));
    let rule = json!([{ "id": "r", "serve": { "variant": "a" } }]);
    assert!(!is_static(&with("/flags/f/config/rules", rule)));
    let prerequisite = json!([{ "flag": "g", "variants": ["a"] }]);
    assert!(!is_static(&with("/flags/f/config/prerequisites", prerequisite)));
}

#[test]
fn without_an_off_variant_the_caller_has_its_own() {
    let rules = compiled(&base()).ruleset;
    assert_eq!(rules.serves[rules.flags[0].off as usize], Serve::CodeDefault);
}

// ── Chains ──────────────────────────────────────────────────────────────────────────────────────

fn flag_waiting_for(flags: &[&str]) -> Value {
    let mut flag = base()["flags"]["f"].clone();
    let wanted: Vec<Value> =
        flags.iter().map(|key| json!({ "flag": key, "variants": ["a"] })).collect();
    flag["config"]["prerequisites"] = json!(wanted);
    flag
}

#[test]
fn a_cycle_of_prerequisites_is_shown() {
    let mut document = base();
    for (key, waits_for) in [("x", "y"), ("y", "z"), ("z", "x"), ("w", "x")] {
        document["flags"][key] = flag_waiting_for(&[waits_for]);
    }
    refused(&document, "/flags/x/config/prerequisites", &["\"x\" → \"y\" → \"z\" → \"x\""]);
    let mut document = base();
    document["flags"]["f"]["config"]["rules"] = json!([{ "id": "r", "serve": { "variant": "a" },
        "prerequisites": [{ "flag": "f", "variants": ["a"] }] }]);
    refused(&document, "/flags/f/config/prerequisites", &["\"f\" → \"f\""]);
}

#[test]
fn a_cycle_of_segments_is_shown() {
    let mut document = base();
    document["segments"]["t"] = json!({ "rules": [{ "all": [{ "segment": "u" }] }] });
    document["segments"]["u"] = json!({ "rules": [{ "not": { "segment": ["s", "t"] } }] });
    refused(&document, "/segments/t/rules", &["\"t\" → \"u\" → \"t\""]);
}

#[test]
fn chains_are_as_deep_as_the_limit_and_no_deeper() {
    let key = |index: usize| format!("k{index:02}");
    let prerequisites = |depth: usize| {
        let mut document = base();
        document["flags"][key(0)] = flag_waiting_for(&[]);
        for index in 1..depth {
            document["flags"][key(index)] = flag_waiting_for(&[&key(index - 1)]);
        }
        document
    };
    compiled(&prerequisites(limits::CHAIN_MAX));
    refused(
        &prerequisites(limits::CHAIN_MAX + 1),
        &format!("/flags/{}/config/prerequisites", key(limits::CHAIN_MAX)),
        &["17", "16"],
    );
    let segments = |depth: usize| {
        let mut document = base();
        document["segments"][key(0)] = json!({});
        for index in 1..depth {
            document["segments"][key(index)] = json!({ "rules": [{ "segment": key(index - 1) }] });
        }
        document
    };
    compiled(&segments(limits::CHAIN_MAX));
    refused(
        &segments(limits::CHAIN_MAX + 1),
        &format!("/segments/{}/rules", key(limits::CHAIN_MAX)),
        &["17", "16"],
    );
}

#[test]
fn segments_that_multiply_each_other_are_refused_before_they_cost_anyone_a_second() {
    let mut document = base();
    for level in 0..12 {
        for side in ["x", "y", "z"] {
            let inner: Vec<Value> = ["x", "y", "z"]
                .iter()
                .filter(|_| level > 0)
                .map(|side| json!({ "segment": format!("{side}{}", level - 1) }))
                .chain([json!({ "attr": "a", "op": "exists" })])
                .collect();
            document["segments"][format!("{side}{level}")] = json!({ "rules": inner });
        }
    }
    let problems = problems(&document);
    assert!(!problems.is_empty());
    assert!(problems.iter().all(|problem| problem.pointer.starts_with("/segments/")
        && problem.message.contains("steps, the limit is 100000")));
    assert!(compile_lenient(&state(&document)).is_ok());
}

// ── Clauses ─────────────────────────────────────────────────────────────────────────────────────

#[test]
fn an_operator_says_what_it_compares_with() {
    for (op, value, words) in [
        ("starts_with", json!(1), "a string, not with the number 1"),
        ("contains", json!(null), "not with null"),
        ("matches", json!(true), "a regular expression"),
        ("lt", json!("3"), "a number, not with the string \"3\""),
        ("gte", json!([1, []]), "not with an array"),
        ("before", json!("tomorrow"), "no RFC 3339 time"),
        ("after", json!(1.5), "milliseconds"),
        ("semver_gt", json!("one"), "no version, such as 1.2"),
        ("semver_eq", json!(1), "a version in a string"),
        ("semver_range", json!(">=a"), "no version range"),
        ("semver_range", json!("1.0.0 || 2.0.0"), "several values are alternatives"),
        ("cidr", json!("10.0.0.0/33"), "no IP network"),
        ("cidr", json!("10.0.0.1/8"), "begins at 10.0.0.0"),
        ("cidr", json!("2001:db8::1/32"), "begins at 2001:db8::"),
        ("cidr", json!("10.0.0/8"), "no IP network"),
        ("cidr", json!("10.0.0.0/+8"), "no IP network"),
        ("cidr", json!(10), "an IP network"),
        ("type_is", json!("text"), "one of null, boolean"),
        ("size", json!(-1), "a number of elements"),
        ("size", json!(1.5), "a number of elements"),
    ] {
        let problems = problems(&with(
            "/flags/f/config/rules",
            json!([{ "id": "r", "serve": { "variant": "a" },
                     "when": { "attr": "x", "op": op, "value": value } }]),
        ));
        let [problem] = problems.as_slice() else { panic!("{op}: {problems:#?}") };
        assert!(problem.message.contains(words), "{op}: {}", problem.message);
    }
}

#[test]
fn an_operator_needs_a_value_or_takes_none() {
    clause_refused(json!({ "attr": "x", "op": "eq" }), "/value", &["eq needs a value"]);
    clause_refused(json!({ "attr": "x", "op": "in", "value": [] }), "/value", &["in needs"]);
    clause_refused(
        json!({ "attr": "x", "op": "exists", "value": true }),
        "/value",
        &["takes no value", "not_exists"],
    );
    clause_refused(json!({ "attr": "", "op": "exists" }), "/attr", &["needs a name"]);
    clause_refused(
        json!({ "attr": "x", "op": "in", "value": ["a", 9007199254740993u64] }),
        "/value/1",
        &["9007199254740991"],
    );
}

#[test]
fn patterns_that_need_another_engine_are_told_so() {
    for (pattern, word) in [
        ("(?=a)", "look-ahead"),
        ("(?<!a)", "look-behind"),
        (r"\p{L}", "Unicode classes"),
        (r"(a)\1", "back-references"),
        ("(", "does not compile"),
        ("[z-a]", "does not compile"),
        ("(?:a{1000}){1000}", "does not compile"),
    ] {
        clause_refused(
            json!({ "attr": "x", "op": "matches", "value": pattern }),
            "/value",
            &["regular expression", word],
        );
    }
}

#[test]
fn values_are_parsed_once_here() {
    let clause = |op: &str, value: Value| json!({ "attr": "x", "op": op, "value": value });
    assert_eq!(clause_taken(clause("before", json!("1970-01-01T00:00:01Z"))), [Arg::Date(1000)]);
    assert_eq!(clause_taken(clause("before", json!(1000))), [Arg::Date(1000)]);
    assert_eq!(
        clause_taken(clause("cidr", json!("10.0.0.0/8"))),
        [Arg::Cidr { network: 0xffff_0a00_0000, prefix: 104 }]
    );
    assert_eq!(clause_taken(clause("cidr", json!("::/0"))), [Arg::Cidr { network: 0, prefix: 0 }]);
    assert_eq!(clause_taken(clause("size", json!(2))), [Arg::Int(2)]);
    assert_eq!(clause_taken(clause("in", json!(["b", "a", "b"]))).len(), 2);
    let mut folded = clause("eq", json!(["Ä", "ä"]));
    folded["policy"] = json!({ "ignoreCase": true });
    assert_eq!(clause_taken(folded).len(), 1);
}

#[test]
fn a_condition_is_not_empty() {
    clause_refused(json!({ "all": [] }), "/all", &["write always"]);
    clause_refused(json!({ "any": [] }), "/any", &["write always"]);
    clause_refused(json!({ "segment": [] }), "/segment", &["no segment"]);
}

// ── Browsers ────────────────────────────────────────────────────────────────────────────────────

#[test]
fn rules_that_travel_to_browsers_carry_no_id_lists() {
    let mut document = with("/flags/f/definition/clients", json!("local"));
    put(&mut document, "/segments/t", json!({ "included": ["id"] }));
    put(&mut document, "/segments/u", json!({ "rules": [{ "segment": "t" }] }));
    put(
        &mut document,
        "/flags/f/config/rules",
        json!([{ "id": "r", "when": { "segment": "u" }, "serve": { "variant": "a" } }]),
    );
    refused(&document, "/flags/f/config/rules/0/when/segment", &["\"u\"", "guessed", "edge"]);
    put(&mut document, "/flags/f/definition/clients", json!("edge"));
    assert_eq!(compiled(&document).lists.len(), 1);
}

#[test]
fn rules_that_travel_to_browsers_wait_only_for_such() {
    let mut document = with("/flags/f/definition/clients", json!("local"));
    put(
        &mut document,
        "/flags/f/config/prerequisites",
        json!([{ "flag": "g", "variants": ["a"] }]),
    );
    refused(&document, "/flags/f/config/prerequisites/0/flag", &["local"]);
    put(&mut document, "/flags/g/definition/clients", json!("local"));
    compiled(&document);
}

// ── Many problems ───────────────────────────────────────────────────────────────────────────────

#[test]
fn all_problems_are_told_and_too_many_are_counted() {
    let mut document = base();
    document["flags"]["f"]["config"]["off"] = json!("x");
    document["flags"]["f"]["config"]["fallthrough"] = json!({ "variant": "y" });
    document["flags"]["g"]["definition"]["variants"]["a"] = json!(1);
    assert_eq!(problems(&document).len(), 3);
    for index in 0..300 {
        document["flags"]["f"]["definition"]["variants"][format!("v{index}")] = json!(1);
    }
    let problems = problems(&document);
    assert_eq!(problems.len(), PROBLEMS_MAX);
    assert!(problems.last().unwrap().message.contains("more problems"));
}

#[test]
fn a_flag_that_does_not_compile_leaves_its_neighbours_serving() {
    let mut document = base();
    document["flags"]["f"]["config"]["off"] = json!("x");
    document["flags"]["x"] = flag_waiting_for(&["y"]);
    document["flags"]["y"] = flag_waiting_for(&["x"]);
    document["flags"]["z"] = flag_waiting_for(&["x"]);
    document["segments"]["bad"] =
        json!({ "rules": [{ "attr": "a", "op": "matches", "value": "(" }], "included": ["i"] });
    document["flags"]["asks"] = base()["flags"]["f"].clone();
    document["flags"]["asks"]["config"]["rules"] =
        json!([{ "id": "r", "when": { "segment": "bad" }, "serve": { "variant": "b" } }]);
    document["metadata"] = json!({ "n": 9007199254740993u64 });
    let (compiled, problems) = compile_lenient(&state(&document)).unwrap();
    assert!(problems.len() >= 4, "{problems:#?}");
    let rules = &compiled.ruleset;
    let broken: Vec<&str> = rules
        .flags
        .iter()
        .filter(|flag| flag.broken.is_some())
        .map(|flag| rules.str(flag.key))
        .collect();
    assert_eq!(broken, ["asks", "f", "x", "y"]);
    assert!(compiled.lists.is_empty());
    let told = rules.str(rules.flags[1].broken.unwrap());
    assert!(told.contains("no variant \"x\"") && told.contains("/flags/f/config/off"), "{told}");
    rules::blob::decode_ruleset(&rules::blob::encode_ruleset(rules)).unwrap();
}

#[test]
fn lenient_and_strict_agree_where_nothing_is_wrong() {
    let (lenient, problems) = compile_lenient(&state(&base())).unwrap();
    assert!(problems.is_empty());
    assert_eq!(lenient, compiled(&base()));
}

// ── Limits ──────────────────────────────────────────────────────────────────────────────────────

/// `n` compiles; `n + 1` has one problem, which names the limit.
#[track_caller]
fn limit(most: usize, document: impl Fn(usize) -> Value) {
    let at_limit = problems(&document(most));
    assert!(at_limit.is_empty(), "{at_limit:#?}");
    let over = problems(&document(most + 1));
    let [problem] = over.as_slice() else { panic!("not one problem: {over:#?}") };
    assert!(problem.message.contains(&most.to_string()), "{}", problem.message);
}

fn rule_with(when: Value) -> Value {
    with("/flags/f/config/rules", json!([{ "id": "r", "when": when, "serve": { "variant": "a" } }]))
}

fn nested(levels: usize) -> Value {
    (1..levels).fold(json!({ "always": true }), |inner, _| json!({ "not": inner }))
}

#[test]
fn every_limit_holds_at_n_and_not_at_n_plus_1() {
    let serve = json!({ "variant": "a" });
    limit(limits::RULES_PER_FLAG_MAX, |n| {
        let rules: Vec<Value> =
            (0..n).map(|index| json!({ "id": index.to_string(), "serve": serve })).collect();
        with("/flags/f/config/rules", json!(rules))
    });
    limit(limits::CLAUSES_PER_RULE_MAX, |n| {
        let clause = json!({ "attr": "x", "op": "exists" });
        rule_with(json!({ "all": vec![clause; n] }))
    });
    limit(limits::VALUES_PER_CLAUSE_MAX, |n| {
        rule_with(json!({ "attr": "x", "op": "in", "value": (0..n).collect::<Vec<_>>() }))
    });
    limit(limits::VARIANTS_PER_FLAG_MAX, |n| {
        let variants: serde_json::Map<String, Value> = (0..n)
            .map(|index| (if index == 0 { "a".into() } else { index.to_string() }, json!("v")))
            .collect();
        with("/flags/f/definition/variants", json!(variants))
    });
    limit(limits::PREREQUISITES_MAX, |n| {
        let prerequisite = json!({ "flag": "g", "variants": ["a"] });
        with("/flags/f/config/prerequisites", json!(vec![prerequisite; n]))
    });
    limit(limits::TAGS_PER_FLAG_MAX, |n| with("/flags/f/definition/tags", json!(vec!["tag"; n])));
    let split = |split: Value| {
        let rule = json!({ "id": "r", "serve": { "split": split } });
        with("/flags/f/config/rules", json!([rule]))
    };
    let hash = json!({ "input": ["unit"], "algorithm": "crc32",
                       "project": { "modulo": { "n": 10, "plus": 0 } } });
    let hashed = |n: usize| {
        json!({ "input": vec!["unit"; n], "algorithm": "crc32",
                                    "project": { "modulo": { "n": 10, "plus": 0 } } })
    };
    let whole = json!({ "a": 100_000 });
    limit(limits::ARMS_PER_SPLIT_MAX, |n| {
        split(json!({ "arms": vec![json!({ "serve": serve, "weight": 1 }); n] }))
    });
    limit(limits::UNITS_PER_SPLIT_MAX, |n| {
        split(json!({ "by": vec!["targetingKey"; n], "weights": whole }))
    });
    limit(limits::SHARDS_PER_SPLIT_MAX, |n| {
        let shard = json!({ "hash": hash, "ranges": [[0, 1]] });
        split(json!({ "weights": whole, "allOf": vec![shard; n] }))
    });
    limit(limits::PARTS_PER_HASH_MAX, |n| {
        split(json!({ "arms": [{ "serve": serve, "weight": 1 }], "hash": hashed(n) }))
    });
    limit(limits::RANGES_PER_ARM_MAX, |n| {
        split(json!({ "arms": [{ "serve": serve, "ranges": vec![[0, 1]; n] }], "hash": hash }))
    });
    limit(limits::SPLIT_WEIGHTS_MAX as usize, |n| {
        let arm = |weight: usize| json!({ "serve": serve, "weight": weight });
        split(json!({ "arms": [arm(n - 1), arm(1)] }))
    });
    limit(limits::NESTING_MAX, |n| rule_with(nested(n)));
    limit(limits::STRING_BYTES_MAX, |n| {
        with("/flags/f/definition/variants/a", json!("x".repeat(n)))
    });
    limit(limits::STRING_BYTES_MAX, |n| {
        rule_with(json!({ "attr": "x", "op": "eq", "value": "x".repeat(n) }))
    });
    limit(limits::STRING_BYTES_MAX, |n| {
        rule_with(json!({ "attr": "x".repeat(n), "op": "exists" }))
    });
    limit(limits::STRING_BYTES_MAX, |n| with("/metadata", json!({ "m": "x".repeat(n) })));
    limit(limits::STRING_BYTES_MAX, |n| {
        with("/flags/f/definition/description", json!("x".repeat(n)))
    });
    limit(limits::KEY_BYTES_MAX, |n| {
        let mut document = base();
        document["flags"]["k".repeat(n)] = base()["flags"]["f"].clone();
        document
    });
    limit(limits::VALUE_BYTES_MAX, |n| {
        variants("object", json!({ "k": "x".repeat(n - r#"{"k":""}"#.len()) }))
    });
    limit(limits::NESTING_MAX, |n| {
        variants("object", (1..n).fold(json!([]), |inner, _| json!([inner])))
    });
    limit(limits::METADATA_BYTES_MAX, |n| {
        let rest = n - r#"{"a":"","b":"","c":""}"#.len();
        let third = |len: usize| json!("x".repeat(len));
        let metadata = json!({ "a": third(8_000), "b": third(8_000), "c": third(rest - 16_000) });
        with("/flags/f/definition/metadata", metadata)
    });
    limit(limits::LOGIC_NODES_MAX, |n| {
        // The operator, its list and the literals.
        rule_with(json!({ "logic": { "merge": vec![1; n - 1] } }))
    });
    limit(limits::REGEX_SOURCE_BYTES_MAX, |n| {
        rule_with(json!({ "attr": "x", "op": "matches", "value": "x".repeat(n) }))
    });
}

#[test]
fn an_environment_has_so_many_flags_and_segments_and_no_more() {
    let flags = |n: usize| {
        let one = state(&base()).flags.remove(0);
        EnvironmentState {
            flags: (0..n)
                .map(|index| {
                    let mut flag = one.clone();
                    flag.definition.key = index.to_string();
                    flag
                })
                .collect(),
            ..EnvironmentState::default()
        }
    };
    assert!(compile(&flags(limits::FLAGS_MAX)).is_ok());
    let problems = compile(&flags(limits::FLAGS_MAX + 1)).unwrap_err();
    assert!(problems[0].pointer == "/flags" && problems[0].message.contains("10000"));
    assert!(compile_lenient(&flags(limits::FLAGS_MAX + 1)).is_err());

    let segments = |n: usize| EnvironmentState::<FlagState> {
        segments: (0..n)
            .map(|index| SegmentState {
                segment: read(&json!({ "key": index.to_string() })),
                has_included: true,
                has_excluded: true,
            })
            .collect(),
        ..EnvironmentState::default()
    };
    assert!(compile(&segments(limits::SEGMENTS_MAX)).is_ok());
    let problems = compile(&segments(limits::SEGMENTS_MAX + 1)).unwrap_err();
    assert!(problems[0].pointer == "/segments" && problems[0].message.contains("10000"));
}

#[test]
fn an_environment_that_compiles_to_too_much_is_refused() {
    let mut one = state(&variants("string", json!("x".repeat(8_000)))).flags.remove(0);
    let mut large = EnvironmentState::default();
    for index in 0..4_500 {
        one.definition.key = format!("k{index}");
        let text = format!("{index:08}{}", "x".repeat(7_900));
        one.definition.variants.insert("a".to_owned(), json!(text));
        large.flags.push(one.clone());
    }
    let problems = compile(&large).unwrap_err();
    assert!(problems[0].pointer.is_empty() && problems[0].message.contains("bytes, the limit is"));
}

// ── Parsing ─────────────────────────────────────────────────────────────────────────────────────

#[track_caller]
fn unparsable<T: serde::de::DeserializeOwned>(json: &str, pointer: &str, words: &[&str]) {
    let Err(problem) = parse::<T>(json.as_bytes()) else { panic!("{json} was taken") };
    assert_eq!(problem.pointer, pointer, "{problem:?}");
    for word in words {
        assert!(problem.message.contains(word), "{:?} lacks {word:?}", problem.message);
    }
}

#[test]
fn what_cannot_be_read_is_named_with_its_place_and_what_is_known() {
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": "codeDefault", "prerequisite": []}"#,
        "/prerequisite",
        &["unknown field `prerequisite`", "`prerequisites`", "line 1"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": "yes", "fallthrough": "codeDefault"}"#,
        "/enabled",
        &["expected a boolean"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": {"variants": "a"}}"#,
        "/fallthrough",
        &["unknown variant `variants`", "`variant`", "`codeDefault`"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": "codeDefault",
            "rules": [{"id": "r", "when": {"all": [{"attr": "a", "op": "startswith"}]}}]}"#,
        "/rules/0/when/all/0/op",
        &["unknown operator \"startswith\"", "starts_with", "semver_range"],
    );
    unparsable::<Condition>(
        r#"{"not": {"attr": "a", "op": "not_equal", "value": 1}}"#,
        "/not/op",
        &["unknown operator \"not_equal\""],
    );
    unparsable::<Condition>(r#"{"attr": "a", "op": 1}"#, "/op", &["expected a string"]);
    // What is left out has no place of its own: as of every field, the place is what lacks it.
    unparsable::<Condition>(
        r#"{"any": [{"attr": "a", "value": 1}]}"#,
        "/any/0",
        &["the condition on \"a\" has no op"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": "codeDefault",
            "rules": [{"id": "r", "when": {"any": [{"attr": "a", "segment": "s"}]}}]}"#,
        "/rules/0/when/any/0",
        &["one form, not attr and segment"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": "codeDefault",
            "rules": [{"id": "r", "serve": {"split": {"by": 1}}}]}"#,
        "/rules/0/serve/split/by",
        &["an attribute's path or a list of them"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": "codeDefault",
            "rules": [{"id": "r", "serve": {"split": {"weights": {"a": 0.5}}}}]}"#,
        "/rules/0/serve/split/weights/a",
        &["expected u32"],
    );
    unparsable::<FlagDefinition>(
        r#"{"key": "f", "type": "number", "variants": {}}"#,
        "/type",
        &["unknown variant `number`", "`integer`", "`float`"],
    );
    unparsable::<FlagDefinition>(
        r#"{"key": "f", "type": "string", "variants": {}, "metadata": {"a": []}}"#,
        "/metadata/a",
        &["a boolean, a number or a string"],
    );
    unparsable::<FlagDefinition>(r#"{"key": "f", "type": "#, "/type", &["EOF"]);
    unparsable::<Condition>(r#"{"always": true} {}"#, "", &["trailing characters"]);
    unparsable::<Condition>("{}", "", &["needs one of all, any"]);
    unparsable::<Condition>("3", "", &["invalid type"]);
    let deep = "{\"not\":".repeat(10_000);
    unparsable::<Condition>(&deep, &"/not".repeat(127), &["recursion limit"]);
}

#[test]
fn what_is_given_twice_is_refused_and_not_the_last_one_kept() {
    unparsable::<FlagDefinition>(
        r#"{"key": "f", "type": "string", "variants": {"a": "x", "b": "y", "a": "z"}}"#,
        "/variants/a",
        &["\"a\" is given twice"],
    );
    unparsable::<FlagConfig>(
        r#"{"enabled": true, "fallthrough": {"split": {"arms": [], "weights": {"a": 1, "a": 2}}}}"#,
        "/fallthrough/split/weights/a",
        &["twice"],
    );
    unparsable::<FlagDefinition>(
        r#"{"key": "f", "type": "object", "variants": {"v": [{}, {"x/y": {"z": 1, "z": 1}}]}}"#,
        "/variants/v/1/x~1y/z",
        &["twice"],
    );
}

/// Serde's derived readers would take each of these.
#[test]
fn an_array_in_the_place_of_an_object_is_refused_with_its_place() {
    let expected = "invalid type: sequence, expected struct";
    unparsable::<FlagConfig>(
        r#"[true, null, [], [], {"variant": "on"}]"#,
        "",
        &["expected struct FlagConfig", "line 1"],
    );
    unparsable::<FlagDefinition>(r#"["f", "boolean", {"on": true}]"#, "", &[expected]);
    let ruled = |rule: &str| {
        format!(r#"{{"enabled": true, "fallthrough": "codeDefault", "rules": [{rule}]}}"#)
    };
    for (rule, place) in [
        (r#"["r", "", {"always": true}]"#, ""),
        (r#"{"id": "r", "when": [[{"always": true}]]}"#, "/when"),
        (r#"{"id": "r", "when": {"not": [null, [{"always": true}]]}}"#, "/when/not"),
        (r#"{"id": "r", "when": {"attr": "a", "op": "exists", "policy": []}}"#, "/when/policy"),
        (r#"{"id": "r", "active": ["2026-01-01T00:00:00Z"]}"#, "/active"),
        (r#"{"id": "r", "prerequisites": [["f", ["on"]]]}"#, "/prerequisites/0"),
        (r#"{"id": "r", "policy": ["p"]}"#, "/policy"),
        (r#"{"id": "r", "serve": {"split": ["targetingKey", {"on": 100000}]}}"#, "/serve/split"),
        (r#"{"id": "r", "serve": {"logic": [true]}}"#, "/serve/logic"),
        (
            r#"{"id": "r", "serve": {"split": {"arms": [["codeDefault", 1]]}}}"#,
            "/serve/split/arms/0",
        ),
    ] {
        unparsable::<FlagConfig>(&ruled(rule), &format!("/rules/0{place}"), &[expected]);
    }
    let hash = r#"{"input": ["unit"], "algorithm": {"murmur3": [7]}, "project": "mulShift32"}"#;
    let split = format!(r#"{{"id": "r", "serve": {{"split": {{"hash": {hash}}}}}}}"#);
    let place = "/rules/0/serve/split/hash/algorithm/murmur3";
    unparsable::<FlagConfig>(&ruled(&split), place, &["sequence, expected struct variant"]);
    unparsable::<rules::model::Segment>(r#"["s", "", "id"]"#, "", &[expected]);
    // Lists are lists, and objects what they were.
    let config: FlagConfig = parse(
        ruled(
            r#"{"id": "r", "when": {"any": [{"attr": "a", "op": "in", "value": [[1], {"x": []}]}]},
            "serve": {"split": {"by": ["a", "b"], "arms": [{"serve": "next", "ranges": [[0, 1]]}],
            "hash": {"input": [{"literal": "x"}, "unit"], "algorithm": {"murmur3": {"seed": 7}},
                "project": {"modulo": {"n": 10, "plus": 0}}}}}}"#,
        )
        .as_bytes(),
    )
    .unwrap();
    assert_eq!(config.rules.len(), 1);
}

#[test]
fn an_archived_flag_is_compiled_into_nothing_and_nobody_may_wait_for_it() {
    let flag = |archived: bool, prerequisites: Value| {
        json!({ "definition": { "type": "boolean", "variants": { "on": true },
            "archived": archived },
            "config": { "enabled": true, "fallthrough": { "variant": "on" },
                "prerequisites": prerequisites } })
    };
    // What it asks for itself is not there, and nobody minds.
    let absent = json!([{ "flag": "nobody", "variants": ["on"] }]);
    let put_away = flag(true, absent);
    let alone = json!({ "flags": { "a": put_away, "b": flag(false, json!([])) } });
    let compiled = compile(&state(&alone)).unwrap();
    assert_eq!(compiled.ruleset.flags.len(), 1);
    let needs = flag(false, json!([{ "flag": "a", "variants": ["on"] }]));
    let waiting = json!({ "flags": { "a": put_away, "b": needs } });
    let problems = compile(&state(&waiting)).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].pointer, "/flags/b/config/prerequisites/0/flag");
    assert_eq!(problems[0].message, "the flag \"a\" is archived");
}
