//! flagd's documents in and out: what is taken over, what is refused and where, and that a
//! document which was written serves what the flags did.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use rules::answer::{self, Audience};
use rules::compile::{EnvironmentState, FlagState, SegmentState, compile};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, NoHost, Scratch};
use rules::flagd::{self, IGNORED_MAX, Ignored, ImportOptions, Imported};
use rules::model::{FlagConfig, FlagDefinition, FlagType, Fractional, Scalar, Serve};
use serde_json::{Value, json};

const DEMO: &str = include_str!("data/otel-demo.flagd.json");

fn import(document: &Value) -> Imported {
    import_as(document, Fractional::V2)
}

fn import_as(document: &Value, fractional: Fractional) -> Imported {
    let options = ImportOptions { fractional };
    flagd::import(document.to_string().as_bytes(), options).unwrap_or_else(|e| panic!("{e}"))
}

fn evaluator(flags: Vec<FlagState>, metadata: rules::model::Metadata) -> Evaluator {
    let state = EnvironmentState { flags, metadata, ..EnvironmentState::default() };
    let compiled = compile(&state).unwrap_or_else(|problems| panic!("{problems:?}"));
    Evaluator::new(compiled.ruleset).unwrap()
}

fn answer(evaluator: &Evaluator, key: &str, context: &Value, now_ms: i64) -> Value {
    let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms, host: &NoHost };
    let mut out = Vec::new();
    let mut scratch = Scratch::default();
    answer::write_one(evaluator, key, Audience::Server, &input, &mut scratch, &mut out);
    serde_json::from_slice(&out).unwrap()
}

/// flagd's published schemas, loaded from files: nothing is fetched.
fn validator() -> jsonschema::Validator {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let base = "https://flagd.dev/schema/v0";
    let registry = jsonschema::Registry::new()
        .add(format!("{base}/flags.json"), read(include_str!("data/flagd-schema/flags.json")))
        .unwrap()
        .add(
            format!("{base}/targeting.json"),
            read(include_str!("data/flagd-schema/targeting.json")),
        )
        .unwrap()
        .prepare()
        .unwrap();
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": format!("{base}/flags.json"),
    });
    jsonschema::options().with_registry(&registry).build(&schema).unwrap()
}

fn validate(validator: &jsonschema::Validator, document: &Value) -> Result<(), String> {
    let line =
        |error: jsonschema::ValidationError<'_>| format!("{}: {error}", error.instance_path());
    let errors: Vec<String> = validator.iter_errors(document).map(line).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

#[test]
fn the_demo_of_opentelemetry_is_imported_whole_and_given_back() {
    let document: Value = serde_json::from_str(DEMO).unwrap();
    let imported = import(&document);
    assert_eq!((imported.refused.len(), imported.flags.len()), (0, 15));
    assert_eq!(imported.ignored, Ignored::default());
    let kinds = |key: &str| {
        imported.flags.iter().find(|flag| flag.definition.key == key).unwrap().definition.kind
    };
    assert_eq!(kinds("adFailure"), FlagType::Boolean);
    assert_eq!(kinds("cartFailure"), FlagType::Float);
    assert_eq!(kinds("emailMemoryLeak"), FlagType::Integer);
    let exported = flagd::export(&imported.flags, &[], &imported.metadata);
    assert!(exported.refused.is_empty());
    assert_eq!(exported.document, document);
    let schema = validator();
    validate(&schema, &exported.document).unwrap();
    let off = json!({ "state": "OFF", "variants": { "on": true } });
    assert!(validate(&schema, &json!({ "flags": { "a": off } })).is_err());
    let wrong = json!({ "if": [{ "nope": 1 }, "on"] });
    let wrong = json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": wrong });
    let message = "the schema of targeting is not applied";
    assert!(validate(&schema, &json!({ "flags": { "a": wrong } })).is_err(), "{message}");
}

#[test]
fn a_flag_that_cannot_be_taken_over_is_refused_with_its_place_and_the_others_are_not() {
    let on = json!({ "on": true });
    let with =
        |targeting: Value| json!({ "state": "ENABLED", "variants": on, "targeting": targeting });
    let rows = [
        (json!(1), "/flags/x", "must be an object"),
        (json!({ "variants": on }), "/flags/x", "no state"),
        (json!({ "state": "on", "variants": on }), "/flags/x/state", "ENABLED or DISABLED"),
        (json!({ "state": "ENABLED" }), "/flags/x", "no variants"),
        (json!({ "state": "ENABLED", "variants": {} }), "/flags/x/variants", "at least one"),
        (
            json!({ "state": "ENABLED", "variants": { "a/b": 1, "c": "1" } }),
            "/flags/x/variants/c",
            "one type",
        ),
        (
            json!({ "state": "ENABLED", "variants": { "a/b": null } }),
            "/flags/x/variants/a~1b",
            "not null",
        ),
        (json!({ "state": "ENABLED", "variants": { "": 1 } }), "/flags/x/variants/", "empty"),
        (
            json!({ "state": "ENABLED", "variants": on, "defaultVariant": "off" }),
            "/flags/x/defaultVariant",
            "no variant \"off\"",
        ),
        (
            json!({ "state": "ENABLED", "variants": on, "defaultVariant": true }),
            "/flags/x/defaultVariant",
            "a boolean",
        ),
        (
            json!({ "state": "ENABLED", "variants": on, "metadata": { "a": [] } }),
            "/flags/x/metadata/a",
            "an array",
        ),
        (with(json!("on")), "/flags/x/targeting", "must be an object"),
        (
            with(json!({ "if": [true, { "upper": "on" }] })),
            "/flags/x/targeting/if/1/upper",
            "unknown operator",
        ),
        (
            with(json!({ "if": [{ "$ref": "gone" }] })),
            "/flags/x/targeting/if/0/$ref",
            "no evaluator",
        ),
        (with(json!({ "if": [{ "$ref": "nested" }] })), "/$evaluators/nested", "\"plain\""),
        (with(json!({ "==": [1] })), "/flags/x/targeting/==", "takes 2"),
    ];
    for (flag, pointer, reason) in rows {
        let document = json!({
            "$evaluators": { "plain": { "var": "a" }, "nested": { "!": { "$ref": "plain" } } },
            "flags": { "before": { "state": "ENABLED", "variants": on }, "x": flag, "after": with(json!({ "$ref": "plain" })) },
        });
        let imported = import(&document);
        let [refused] = imported.refused.as_slice() else {
            panic!("{flag}: {:?}", imported.refused)
        };
        assert_eq!(
            (refused.flag.as_str(), refused.pointer.as_str()),
            ("x", pointer),
            "{refused:?}"
        );
        assert!(refused.reason.contains(reason), "{refused:?}");
        let keys: Vec<&str> =
            imported.flags.iter().map(|flag| flag.definition.key.as_str()).collect();
        assert_eq!(keys, ["before", "after"]);
    }
}

#[test]
fn flags_may_be_an_array_and_a_key_may_stand_there_once() {
    let flag = |key: Value| json!({ "key": key, "state": "ENABLED", "variants": { "a": 1 } });
    let document = json!({ "flags": [flag(json!("x")), flag(json!("y")), flag(json!("x")), flag(json!(null))] });
    let imported = import(&document);
    assert_eq!(imported.flags.len(), 2);
    let pointers: Vec<&str> =
        imported.refused.iter().map(|refused| refused.pointer.as_str()).collect();
    assert_eq!(pointers, ["/flags/2/key", "/flags/3"]);
}

/// The places that a document would have to have, of what was said of it.
#[track_caller]
fn has_place(document: &Value, pointer: &str) {
    assert!(document.pointer(pointer).is_some(), "{pointer:?} is nowhere in {document}");
}

#[test]
fn what_only_the_compiler_refuses_has_a_place_in_the_document_too() {
    let long = "x".repeat(8 * 1024 + 1);
    let with = |name: &str, value: Value| {
        let mut flag = json!({ "state": "ENABLED", "variants": { "on": "x" }, "targeting": {} });
        flag[name] = value;
        flag
    };
    let rows = [
        ("f", with("variants", json!({ "a/b": 9_007_199_254_740_992i64 })), "/variants/a~1b"),
        ("f", with("variants", json!({ "a\u{1}": true })), "/variants/a\u{1}"),
        ("f\u{1}", with("variants", json!({ "a": true })), ""),
        (
            "f",
            with(
                "metadata",
                json!({ "a": "x".repeat(6_000), "b": "x".repeat(6_000), "c": "x".repeat(6_000) }),
            ),
            "/metadata",
        ),
        ("f", with("metadata", json!({ "a~b": 9_007_199_254_740_992i64 })), "/metadata/a~0b"),
        ("f", with("metadata", json!({ "a\nb": 1 })), "/metadata/a\nb"),
        ("f", with("targeting", json!({ "if": [{ "==": [long, 1] }] })), "/targeting/if/0/==/0"),
        (
            "f",
            with("targeting", json!({ "if": [true, { "$ref": "long/text" }] })),
            "/$evaluators/long~1text/cat/1",
        ),
    ];
    for (key, flag, place) in rows {
        for array in [false, true] {
            let mut flag = flag.clone();
            let (at, flags) = if array {
                flag["key"] = json!(key);
                ("/flags/1".to_owned(), json!([with("key", json!("other")), flag]))
            } else {
                (
                    format!("/flags/{key}"),
                    json!({ "other": with("metadata", json!({})), key: flag }),
                )
            };
            let document = json!({ "flags": flags,
                "$evaluators": { "long/text": { "cat": ["x", long] } } });
            let imported = import(&document);
            assert_eq!(imported.refused, []);
            let (flags, metadata) = (imported.flags, imported.metadata);
            let state = EnvironmentState { flags, metadata, ..EnvironmentState::default() };
            let problems = compile(&state).unwrap_err();
            let [problem] = problems.as_slice() else { panic!("{problems:?}") };
            let said = problem.pointer.strip_prefix(&format!("/flags/{key}")).unwrap();
            let found = imported.sources[1].place_of(said);
            let expected = match place {
                "" if array => format!("{at}/key"),
                place if place.starts_with("/$evaluators") => place.to_owned(),
                place => format!("{at}{place}"),
            };
            assert_eq!(found, expected, "{problem:?}");
            has_place(&document, &found);
        }
    }
}

#[test]
fn a_problem_inside_of_an_evaluator_has_its_place_there() {
    let flag = json!({ "key": "f", "state": "ENABLED", "variants": { "on": true },
        "targeting": { "if": [{ "!": { "$ref": "bad" } }, "on"] } });
    let document =
        json!({ "flags": [flag], "$evaluators": { "bad": { "and": [true, { "nope": 1 }] } } });
    let imported = import(&document);
    assert_eq!(imported.refused[0].pointer, "/$evaluators/bad/and/1/nope");
    has_place(&document, "/$evaluators/bad/and/1/nope");
    // What stands for the whole targeting is one.
    let whole = |evaluator: Value| {
        let flag =
            json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": { "$ref": "e" } });
        import(&json!({ "flags": { "f": flag }, "$evaluators": { "e": evaluator } }))
    };
    for none in [json!({}), json!(null)] {
        assert_eq!(whole(none).flags[0].config.rules, []);
    }
    assert_eq!(whole(json!("on")).refused[0].pointer, "/$evaluators/e");
    let empty = json!({ "flags": [{ "key": "" }] });
    assert_eq!(import(&empty).refused[0].pointer, "/flags/0/key");
}

#[test]
fn a_document_that_is_none_is_an_error_with_its_place() {
    for (document, pointer) in [
        ("", ""),
        ("[]", ""),
        ("{}", ""),
        (r#"{"flags": 1}"#, "/flags"),
        (r#"{"flags": {}, "metadata": {"a": {}}}"#, "/metadata/a"),
        (r#"{"flags": {}, "$evaluators": []}"#, "/$evaluators"),
        // Readers of maps keep the last one, and whoever wrote two did not mean that.
        (r#"{"flags": {"a/b": {"state": "ENABLED", "state": "DISABLED"}}}"#, "/flags/a~1b/state"),
        (r#"{"flags": {"a": {}, "a": {}}}"#, "/flags/a"),
        (r#"{"flags": [{"key": "a", "variants": {"x": 1, "x": 2}}]}"#, "/flags/0/variants/x"),
        (r#"{"flags": {}, "flags": {}}"#, "/flags"),
    ] {
        let error = flagd::import(document.as_bytes(), ImportOptions::default()).unwrap_err();
        assert_eq!(error.pointer, pointer, "{document}: {error}");
    }
}

#[test]
fn unknown_fields_are_listed_and_known_ones_kept() {
    let document = json!({
        "$schema": "x", "note": 1, "metadata": { "flagSetId": "demo", "n": 1.5 },
        "flags": { "a/b": {
            "state": "DISABLED", "variants": { "x": 1, "y": 2.5 }, "description": "why", "owner": "me",
            "metadata": { "team": "core", "live": true },
        } },
    });
    let imported = import(&document);
    assert_eq!(imported.ignored.first, ["/note", "/flags/a~1b/owner"]);
    assert_eq!(imported.metadata["flagSetId"], Scalar::String("demo".to_owned()));
    let [flag] = imported.flags.as_slice() else { panic!() };
    assert_eq!(flag.definition.description, "why");
    assert_eq!(flag.definition.kind, FlagType::Float);
    assert_eq!((flag.config.enabled, &flag.config.off), (false, &None));
    assert_eq!(flag.config.fallthrough, Serve::CodeDefault);
    let exported = flagd::export(&imported.flags, &[], &imported.metadata).document;
    assert_eq!(exported["flags"]["a/b"]["metadata"], json!({ "team": "core", "live": true }));
    assert_eq!(exported["metadata"], document["metadata"]);
    assert_eq!(exported["flags"]["a/b"]["state"], json!("DISABLED"));
}

#[test]
fn of_a_great_many_unknown_fields_the_first_are_named_and_the_others_counted() {
    let mut flag = json!({ "state": "ENABLED", "variants": { "x": 1 } });
    for number in 0..IGNORED_MAX + 3 {
        flag[format!("f{number}")] = json!(null);
    }
    let ignored = import(&json!({ "flags": { "a": flag } })).ignored;
    assert_eq!((ignored.first.len(), ignored.more), (IGNORED_MAX, 3));
    assert_eq!(ignored.first[IGNORED_MAX - 1], format!("/flags/a/f{}", IGNORED_MAX - 1));
}

#[test]
fn documents_of_every_fractional_keep_their_meaning_and_do_not_mix() {
    let tree = json!({ "fractional": [{ "var": "id" }, ["a", 1], ["b", 1], ["c", 1]] });
    let flag =
        json!({ "state": "ENABLED", "variants": { "a": 1, "b": 2, "c": 3 }, "targeting": tree });
    let document = json!({ "flags": { "x": flag } });
    let mut all = Vec::new();
    for version in [Fractional::V1, Fractional::V2, Fractional::V3] {
        let mut imported = import_as(&document, version);
        let exported = flagd::export(&imported.flags, &[], &imported.metadata);
        assert_eq!((exported.fractional, exported.refused.len()), (version, 0));
        imported.flags[0].definition.key = format!("{version:?}");
        all.extend(imported.flags);
    }
    let exported = flagd::export(&all, &[], &Default::default());
    assert_eq!(exported.fractional, Fractional::V1);
    let refused: Vec<&str> = exported.refused.iter().map(|refused| refused.flag.as_str()).collect();
    assert_eq!(refused, ["V2", "V3"]);
}

fn native(config: Value) -> FlagState {
    native_of("string", json!({ "a": "A", "b": "B", "c": "C" }), config)
}

fn native_of(kind: &str, variants: Value, config: Value) -> FlagState {
    let definition = json!({ "key": "f", "type": kind, "variants": variants });
    FlagState {
        definition: serde_json::from_value::<FlagDefinition>(definition).unwrap(),
        config: serde_json::from_value::<FlagConfig>(config.clone())
            .unwrap_or_else(|e| panic!("{config}: {e}")),
    }
}

#[test]
fn what_flagd_cannot_say_is_refused_with_the_reason() {
    let when = |when: Value| json!({ "enabled": true, "rules": [{ "id": "r", "when": when, "serve": { "variant": "a" } }], "fallthrough": { "variant": "b" } });
    let serve = |serve: Value| json!({ "enabled": true, "rules": [{ "id": "r", "serve": serve }], "fallthrough": { "variant": "b" } });
    let clause = |op: &str, value: Value| when(json!({ "attr": "x", "op": op, "value": value }));
    let rows = [
        (clause("matches", json!("^a")), "/rules/0/when", "regular expressions"),
        (clause("cidr", json!("10.0.0.0/8")), "/rules/0/when", "networks"),
        (clause("before", json!("2026-01-01T00:00:00Z")), "/rules/0/when", "dates"),
        (clause("eq", json!(null)), "/rules/0/when", "compares"),
        (
            when(json!({ "any": [{ "always": true }, { "cel": "true" }] })),
            "/rules/0/when/any/1",
            "CEL",
        ),
        (when(json!({ "segment": "ids" })), "/rules/0/when", "id lists"),
        (when(json!({ "segment": "gone" })), "/rules/0/when", "no segment"),
        (
            when(
                json!({ "attr": "x", "op": "eq", "value": "a", "policy": { "ignoreCase": true } }),
            ),
            "/rules/0/when",
            "policy",
        ),
        (
            json!({ "enabled": true, "prerequisites": [{ "flag": "g", "variants": ["on"] }], "fallthrough": { "variant": "b" } }),
            "/prerequisites",
            "prerequisites",
        ),
        (serve(json!("codeDefault")), "/rules/0/serve", "caller"),
        (
            serve(
                json!({ "split": { "weights": { "a": 100000 }, "ramp": { "from": 0, "to": 1, "start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z" } } }),
            ),
            "/rules/0/serve/split/ramp",
            "ramps",
        ),
        (
            serve(json!({ "split": { "arms": [{ "serve": { "variant": "a" }, "weight": 0.5 }] } })),
            "/rules/0/serve/split/arms/0",
            "whole numbers",
        ),
        (
            json!({ "enabled": true, "rules": [{ "id": "r", "serve": { "logic": { "tree": null } } }, { "id": "s", "serve": { "variant": "a" } }], "fallthrough": { "variant": "b" } }),
            "/rules/0/serve",
            "last",
        ),
        (
            json!({ "enabled": true, "rules": [{ "id": "r", "active": { "from": "2026-01-01T00:00:00.5Z" }, "serve": { "variant": "a" } }], "fallthrough": { "variant": "b" } }),
            "/rules/0/active/from",
            "seconds",
        ),
    ];
    let segments = [SegmentState {
        segment: serde_json::from_value(json!({ "key": "ids" })).unwrap(),
        has_included: true,
        has_excluded: false,
    }];
    for (config, pointer, reason) in rows {
        let exported = flagd::export(&[native(config.clone())], &segments, &Default::default());
        let [refused] = exported.refused.as_slice() else {
            panic!("{config}: {}", exported.document)
        };
        assert_eq!(refused.pointer, pointer, "{refused:?}");
        assert!(refused.reason.contains(reason), "{refused:?}");
        assert_eq!(exported.document["flags"], json!({}));
    }
}

#[test]
fn rules_that_would_multiply_are_refused_before_they_do() {
    let next = json!({ "split": { "missingUnit": "skip", "arms": [{ "serve": "next", "weight": 1 }, { "serve": { "variant": "a" }, "weight": 1 }] } });
    let rules: Vec<Value> =
        (0..200).map(|number| json!({ "id": format!("r{number}"), "serve": next })).collect();
    let splits = json!({ "enabled": true, "rules": rules, "fallthrough": { "variant": "b" } });
    let inside = json!({ "id": "r", "when": { "segment": "s15" }, "serve": { "variant": "a" } });
    let nested = json!({ "enabled": true, "rules": [inside], "fallthrough": { "variant": "b" } });
    let segments: Vec<SegmentState> = (0..16)
        .map(|number| {
            let below = json!({ "segment": format!("s{}", number - 1) });
            let rules =
                if number == 0 { json!([{ "always": true }]) } else { json!(vec![below; 10]) };
            SegmentState {
                segment: serde_json::from_value(
                    json!({ "key": format!("s{number}"), "rules": rules }),
                )
                .unwrap(),
                has_included: false,
                has_excluded: false,
            }
        })
        .collect();
    for config in [splits, nested] {
        let exported = flagd::export(&[native(config)], &segments, &Default::default());
        assert_eq!(exported.refused.len(), 1);
    }
}

#[test]
fn many_references_to_a_large_evaluator_are_refused_before_they_are_written_out() {
    let refs = |count: usize| {
        let tree = json!({ "or": vec![json!({ "$ref": "large" }); count] });
        let flag = json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": tree });
        let large = json!({ "or": vec![json!(false); 900] });
        import(&json!({ "$evaluators": { "large": large }, "flags": { "x": flag } }))
    };
    assert_eq!(refs(11).refused, []);
    assert!(refs(5_000).refused[0].reason.contains("nodes"));
}

/// Attributes of random contexts; few names and few values, so that trees meet them.
fn contexts() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        (-3i64..12).prop_map(|number| json!(number)),
        (-4i64..8).prop_map(|number| json!(number as f64 / 2.0)),
        prop::sample::select(vec!["", "a", "b", "ab", "1", "1.2", "1.2.3", "2.0.0-rc.1", "x.y"])
            .prop_map(|text| json!(text)),
    ];
    let value = scalar.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|items| json!(items)),
            prop::collection::btree_map("[xyz]", inner, 0..3).prop_map(|entries| json!(entries)),
        ]
    });
    let list = prop::collection::vec(
        prop::sample::select(vec![json!("a"), json!("ab"), json!(1), json!("1.2.3"), json!(true)]),
        1..4,
    )
    .prop_map(|items| json!(items));
    let value = prop_oneof![3 => value, 1 => list];
    let key = prop::option::weighted(0.8, prop_oneof![3 => "[a-z0-9]{1,6}", 1 => ".{0,6}"]);
    (
        prop::collection::btree_map(prop::sample::select(vec!["x", "y", "z", "x.y"]), value, 0..4),
        key,
    )
        .prop_map(|(entries, key)| {
            let mut context = json!(entries);
            if let Some(key) = key {
                context["targetingKey"] = json!(key);
            }
            context
        })
}

/// Trees as flagd's schema allows them.
fn trees() -> impl Strategy<Value = Value> {
    let path = prop::sample::select(vec![
        "x",
        "y",
        "z",
        "x.y",
        "y.0",
        "targetingKey",
        "$flagd.flagKey",
        "$flagd.timestamp",
        "gone",
    ]);
    let leaf = prop_oneof![
        path.clone().prop_map(|path| json!({ "var": path })),
        (path, -1i64..3).prop_map(|(path, other)| json!({ "var": [path, other] })),
        Just(json!({ "missing": ["x", "targetingKey"] })),
        Just(json!({ "missing_some": [1, ["x", "y"]] })),
    ];
    let arg = |rule: BoxedStrategy<Value>| {
        prop_oneof![
            3 => rule,
            1 => prop::sample::select(vec![json!(null), json!(true), json!(1), json!(0.5), json!([1, "a"])]),
            3 => prop::sample::select(vec!["on", "off", "a", "1.2.3"]).prop_map(|text| json!(text)),
        ]
    };
    leaf.prop_recursive(3, 24, 4, move |rule| {
        let rule = rule.boxed();
        let one = arg(rule.clone()).boxed();
        let many = prop::collection::vec(one.clone(), 1..4);
        let two = prop::collection::vec(one.clone(), 2);
        let three = prop::collection::vec(one.clone(), 2..4);
        let entry = (one.clone(), prop::option::of(0u32..100)).prop_map(|(variant, weight)| match weight {
            Some(weight) => json!([variant, weight]),
            None => json!([variant]),
        });
        prop_oneof![
            4 => many.clone().prop_map(|args| json!({ "if": args })),
            2 => (prop::sample::select(vec!["==", "===", "!=", "!==", ">", ">=", "%", "/", "in"]), two.clone())
                .prop_map(|(op, args)| json!({ op: args })),
            1 => (prop::sample::select(vec!["map", "filter", "all", "none", "some"]), two)
                .prop_map(|(op, args)| json!({ op: args })),
            1 => (prop::sample::select(vec!["<", "<=", "substr"]), three).prop_map(|(op, args)| json!({ op: args })),
            1 => (prop::sample::select(vec!["!", "!!"]), one.clone()).prop_map(|(op, arg)| json!({ op: [arg] })),
            1 => (prop::sample::select(vec!["or", "and", "+", "max", "min", "merge", "cat"]), many)
                .prop_map(|(op, args)| json!({ op: args })),
            1 => (prop::sample::select(vec!["starts_with", "ends_with"]), rule.clone(), rule.clone())
                .prop_map(|(op, a, b)| json!({ op: [a, b] })),
            1 => (rule.clone(), prop::sample::select(vec!["=", ">=", "^", "~"]), one.clone())
                .prop_map(|(a, op, b)| json!({ "sem_ver": [a, op, b] })),
            1 => (rule.clone(), rule.clone(), one).prop_map(|(list, step, start)| {
                let step = json!({ "cat": [{ "var": "accumulator" }, { "var": "current" }, step] });
                json!({ "reduce": [list, step, start] })
            }),
            2 => (prop::option::of(rule), prop::collection::vec(entry, 1..4)).prop_map(|(key, entries)| {
                let args: Vec<Value> = key.into_iter().chain(entries).collect();
                json!({ "fractional": args })
            }),
        ]
    })
}

fn documents() -> impl Strategy<Value = Value> {
    let variants = prop_oneof![
        Just(json!({ "on": true, "off": false })),
        Just(json!({ "on": "x", "off": "y", "a": "", "true": "yes", "false": "no" })),
        Just(json!({ "on": 1, "off": 0, "2": 2, "0": 5 })),
        Just(json!({ "on": 1.5, "off": 0 })),
        Just(json!({ "on": {}, "off": { "a": [1, null] } })),
    ];
    let flag = (
        variants,
        prop::sample::select(vec!["ENABLED", "ENABLED", "ENABLED", "DISABLED"]),
        prop::sample::select(vec![json!("on"), json!("off"), json!(null)]),
        prop::option::weighted(0.9, trees()),
    )
        .prop_map(|(variants, state, default, targeting)| {
            let mut flag =
                json!({ "state": state, "variants": variants, "defaultVariant": default });
            if let Some(tree) = targeting {
                flag["targeting"] = tree;
            }
            flag["metadata"] = json!({ "n": 1 });
            flag
        });
    prop::collection::vec(flag, 1..4).prop_map(|flags| {
        let flags: serde_json::Map<String, Value> = flags
            .into_iter()
            .enumerate()
            .map(|(number, flag)| (format!("f{number}"), flag))
            .collect();
        json!({ "flags": flags, "metadata": { "flagSetId": "set" } })
    })
}

/// Documents with everything that flagd's format has: evaluators, references to them, and flags as an
/// array.
fn whole_documents() -> impl Strategy<Value = Value> {
    (documents(), any::<bool>(), any::<bool>()).prop_map(|(mut document, refers, array)| {
        document["$schema"] = json!("https://flagd.dev/schema/v0/flags.json");
        document["$evaluators"] = json!({
            "staff": { "ends_with": [{ "var": "x" }, "b"] },
            "pick": { "fractional": [["on", 1], ["off", 1]] },
        });
        let flags = document["flags"].as_object_mut().unwrap();
        for (number, flag) in flags.values_mut().enumerate().filter(|_| refers) {
            let before = flag.get("targeting").cloned().unwrap_or(json!("on"));
            flag["targeting"] = match number {
                0 => json!({ "if": [{ "$ref": "staff" }, before, { "$ref": "pick" }] }),
                _ => json!({ "$ref": "pick" }),
            };
        }
        if array {
            let keyed = flags.iter().map(|(key, flag)| {
                let mut flag = flag.clone();
                flag["key"] = json!(key);
                flag
            });
            document["flags"] = keyed.collect();
        }
        document
    })
}

/// What happens to one node of a document.
#[derive(Debug, Clone)]
enum Harm {
    Replace(Value),
    Drop,
    /// As the only argument of an operation, or the only entry of an object.
    Wrap(&'static str),
    /// In an array of its own.
    List,
    /// The node's key becomes this one, if it has a key.
    Rename(String),
}

fn harms() -> impl Strategy<Value = (prop::sample::Index, Harm)> {
    let value = prop_oneof![
        8 => prop::sample::select(vec![
            json!(null), json!(true), json!(0), json!(-1), json!(1.5), json!(9_007_199_254_740_993i64),
            json!(u64::MAX), json!(1e300), json!(""), json!("on"), json!("off"), json!("DISABLED"),
            json!("a\u{1}b"), json!([]), json!({}), json!([["on", 1], ["off"]]), json!({ "on": 1 }),
            json!({ "$ref": "staff" }), json!({ "$ref": "gone" }), json!({ "var": "x" }),
            json!({ "fractional": [["on", 2_147_483_647], ["off", 1]] }),
            json!({ "sem_ver": [{ "var": "x" }, "^", "1.2"] }), json!({ "nope": [] }),
        ]),
        1 => Just(json!("x".repeat(8 * 1024 + 1))),
        1 => (1usize..40).prop_map(|deep| (0..deep).fold(json!("on"), |inner, _| json!([inner]))),
        1 => trees(),
    ];
    let name = prop_oneof![
        prop::sample::select(vec![
            "$ref",
            "if",
            "!",
            "cat",
            "merge",
            "fractional",
            "sem_ver",
            "nope"
        ])
        .prop_map(str::to_owned),
        prop::sample::select(vec![
            "key",
            "state",
            "variants",
            "targeting",
            "metadata",
            "",
            "a/b~c",
            "\u{2}"
        ])
        .prop_map(str::to_owned),
        Just("k".repeat(257)),
    ];
    let harm = prop_oneof![
        4 => value.prop_map(Harm::Replace),
        2 => Just(Harm::Drop),
        2 => prop::sample::select(vec!["$ref", "if", "!", "merge", "fractional", "nope", "a"])
            .prop_map(Harm::Wrap),
        1 => Just(Harm::List),
        1 => name.prop_map(Harm::Rename),
    ];
    (any::<prop::sample::Index>(), harm)
}

/// Every node below the root, as the path to it.
fn paths(node: &Value, at: &str, into: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    let children: Vec<(String, &Value)> = match node {
        Value::Object(entries) => entries.iter().map(|(key, value)| (escape(key), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect()
        }
        _ => Vec::new(),
    };
    for (name, child) in children {
        let at = format!("{at}/{name}");
        paths(child, &at, into);
        into.push(at);
    }
}

fn harm(document: &mut Value, place: &prop::sample::Index, harm: &Harm) {
    let mut places = Vec::new();
    paths(document, "", &mut places);
    if places.is_empty() {
        return;
    }
    let path = place.get(&places);
    let (parent, name) = path.rsplit_once('/').unwrap();
    let name = name.replace("~1", "/").replace("~0", "~");
    let parent = document.pointer_mut(parent).unwrap();
    let is_wrapped = |node: Value| match harm {
        Harm::Replace(value) => Some(value.clone()),
        Harm::Drop => None,
        Harm::Wrap(key) => Some(json!({ *key: [node] })),
        Harm::List => Some(json!([node])),
        Harm::Rename(_) => Some(node),
    };
    match parent {
        Value::Object(entries) => {
            let node = entries.shift_remove(&name).unwrap();
            if let Some(node) = is_wrapped(node) {
                let name = if let Harm::Rename(name) = harm { name.clone() } else { name };
                entries.insert(name, node);
            }
        }
        Value::Array(items) => {
            let index: usize = name.parse().unwrap();
            match is_wrapped(items[index].take()) {
                Some(node) => items[index] = node,
                None => drop(items.remove(index)),
            }
        }
        _ => unreachable!(),
    }
}

/// A type and its values for three variants.
fn typed_variants() -> impl Strategy<Value = (&'static str, Value)> {
    let whole = || prop::sample::select(vec![json!(0), json!(1), json!(-7), json!(1e15)]);
    let broken = prop::sample::select(vec![json!(0.5), json!(-1.0), json!(2), json!(1e300)]);
    let of = |a: Value, b: Value, c: Value| json!({ "a": a, "b": b, "c": c });
    prop_oneof![
        2 => Just(("string", of(json!("A"), json!("B"), json!("C")))),
        1 => [whole(), whole(), whole()].prop_map(move |[a, b, c]| ("integer", of(a, b, c))),
        1 => [whole(), whole(), whole()].prop_map(move |[a, b, c]| ("float", of(a, b, c))),
        1 => [broken.clone(), broken.clone(), broken].prop_map(move |[a, b, c]| ("float", of(a, b, c))),
        1 => any::<bool>().prop_map(move |on| ("boolean", of(json!(on), json!(!on), json!(on)))),
    ]
}

/// Native conditions and configurations that flagd can express.
fn configs() -> impl Strategy<Value = Value> {
    let attr = prop::sample::select(vec!["x", "y", "z", "x.y", "targetingKey"]);
    let text = prop::sample::select(vec!["a", "b", "ab", "1"]);
    let number = (-2i64..6).prop_map(|number| json!(number as f64 / 2.0));
    let clause = prop_oneof![
        (
            attr.clone(),
            prop::sample::select(vec!["eq", "in"]),
            prop::collection::vec(
                prop_oneof![
                    text.clone().prop_map(|text| json!(text)),
                    number.clone(),
                    any::<bool>().prop_map(|b| json!(b))
                ],
                1..3
            )
        )
            .prop_map(|(attr, op, value)| json!({ "attr": attr, "op": op, "value": value })),
        (
            attr.clone(),
            prop::sample::select(vec!["starts_with", "ends_with", "contains"]),
            prop::collection::vec(text, 1..3)
        )
            .prop_map(|(attr, op, value)| json!({ "attr": attr, "op": op, "value": value })),
        (attr.clone(), prop::sample::select(vec!["lt", "lte", "gt", "gte"]), number)
            .prop_map(|(attr, op, value)| json!({ "attr": attr, "op": op, "value": value })),
        (
            attr.clone(),
            prop::sample::select(vec!["semver_eq", "semver_lt", "semver_gte"]),
            prop::sample::select(vec!["1.2.3", "1.2", "2"])
        )
            .prop_map(|(attr, op, value)| json!({ "attr": attr, "op": op, "value": value })),
        attr.prop_map(|attr| json!({ "attr": attr, "op": "exists" })),
        any::<bool>().prop_map(|always| json!({ "always": always })),
    ];
    let clause = (clause, any::<bool>()).prop_map(|(mut clause, negate)| {
        if negate && clause.get("attr").is_some() {
            clause["negate"] = json!(true);
        }
        clause
    });
    let condition = clause.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(|all| json!({ "all": all })),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|any| json!({ "any": any })),
            inner.prop_map(|not| json!({ "not": not })),
        ]
    });
    let split = (1u32..99_999, prop::sample::select(vec!["skip", "bucketZero", "error"]), any::<bool>(), any::<bool>())
        .prop_map(|(weight, missing, two, next)| {
            let by = if two { json!(["gone", "targetingKey"]) } else { json!("targetingKey") };
            let mut split = json!({ "by": by, "missingUnit": missing });
            if next {
                split["arms"] = json!([{ "serve": "next", "weight": weight }, { "serve": { "variant": "c" }, "weight": 100_000 - weight }]);
            } else {
                split["weights"] = json!({ "a": weight, "c": 100_000 - weight });
            }
            json!({ "split": split })
        });
    let serve = prop_oneof![
        prop::sample::select(vec!["a", "b"]).prop_map(|name| json!({ "variant": name })),
        split,
        Just(json!("next")),
    ];
    let rule = (prop::option::weighted(0.8, condition), serve, any::<bool>()).prop_map(
        |(when, serve, window)| {
            let mut rule = json!({ "serve": serve });
            if let Some(when) = when {
                rule["when"] = when;
            }
            if window {
                rule["active"] =
                    json!({ "from": "1970-01-01T00:00:05Z", "to": "1970-01-01T00:00:15Z" });
            }
            rule
        },
    );
    (
        prop::collection::vec(rule, 0..4),
        prop::sample::select(vec![json!({ "variant": "b" }), json!("codeDefault")]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(mut rules, fallthrough, enabled, off)| {
            for (number, rule) in rules.iter_mut().enumerate() {
                rule["id"] = json!(format!("r{number}"));
            }
            let mut config =
                json!({ "enabled": enabled, "rules": rules, "fallthrough": fallthrough });
            if off {
                config["off"] = json!("c");
            }
            config
        })
}

thread_local! {
    static SCHEMA: jsonschema::Validator = validator();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_document_that_was_written_evaluates_as_the_one_that_was_read(
        document in documents(),
        contexts in prop::collection::vec(contexts(), 4),
        version in prop::sample::select(vec![Fractional::V1, Fractional::V2, Fractional::V3]),
    ) {
        let first = import_as(&document, version);
        prop_assert!(first.refused.is_empty(), "{:?}", first.refused);
        let exported = flagd::export(&first.flags, &[], &first.metadata);
        prop_assert!(exported.refused.is_empty(), "{:?}", exported.refused);
        for (key, flag) in document["flags"].as_object().unwrap() {
            prop_assert_eq!(flag.get("targeting"), exported.document["flags"][key].get("targeting"));
        }
        // Without a tree that hashes, the version does not matter.
        let second = import_as(&exported.document, version);
        let keys: Vec<String> = first.flags.iter().map(|flag| flag.definition.key.clone()).collect();
        prop_assert_eq!(&first.flags, &second.flags);
        let before = evaluator(first.flags, first.metadata);
        let after = evaluator(second.flags, second.metadata);
        for context in &contexts {
            for key in &keys {
                prop_assert_eq!(answer(&before, key, context, 12_345), answer(&after, key, context, 12_345));
            }
        }
    }

    #[test]
    fn a_native_flag_that_was_written_for_flagd_serves_the_same_values(
        config in configs(),
        (kind, variants) in typed_variants(),
        contexts in prop::collection::vec(contexts(), 6),
        now_ms in 0i64..20_000,
    ) {
        let flag = native_of(kind, variants, config);
        let exported = flagd::export(std::slice::from_ref(&flag), &[], &Default::default());
        if let [refused] = exported.refused.as_slice() {
            // Splits within splits double what is left; beyond the limits it is refused.
            let too_big = refused.reason.contains("cannot be used") || refused.reason.contains("nodes");
            prop_assert!(too_big, "{:?}", refused);
            return Ok(());
        }
        SCHEMA.with(|schema| validate(schema, &exported.document)).map_err(TestCaseError::fail)?;
        let imported = import(&exported.document);
        prop_assert!(imported.refused.is_empty(), "{:?}", imported.refused);
        // An import over the flag that was exported would be refused if it were of another type.
        prop_assert_eq!(imported.flags[0].definition.kind, flag.definition.kind);
        let before = evaluator(vec![flag], Default::default());
        let after = evaluator(imported.flags, Default::default());
        for context in &contexts {
            let (native, flagd) = (answer(&before, "f", context, now_ms), answer(&after, "f", context, now_ms));
            let seen = |body: &Value| {
                (body.get("value").cloned(), body.get("variant").cloned(), body.get("errorCode").is_some())
            };
            prop_assert_eq!(seen(&native), seen(&flagd), "{} in {}", context, exported.document);
        }
    }

    #[test]
    fn damaged_documents_never_panic(cut in 0usize..4_300, flip in any::<u8>(), at in 0usize..4_200) {
        let mut bytes = DEMO.as_bytes().to_vec();
        bytes.truncate(cut.max(1));
        let place = at % bytes.len();
        bytes[place] ^= flip;
        let _ = flagd::import(&bytes, ImportOptions::default());
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = flagd::import(&bytes, ImportOptions::default());
    }
}

#[derive(Debug, Default)]
struct Seen {
    documents: Cell<usize>,
    read: Cell<usize>,
    taken: Cell<usize>,
    refused: Cell<usize>,
    compiled: Cell<usize>,
    refused_by_compiler: Cell<usize>,
}

fn one_more(count: &Cell<usize>) {
    count.set(count.get() + 1);
}

/// Bytes that were flipped are hardly ever JSON, so they say little of what comes after the parser.
/// Here nodes of the tree change their place, and the run as a whole has to reach the importer.
#[test]
fn documents_with_wrong_nodes_are_read_or_refused_and_what_was_taken_compiles_or_is_refused() {
    let seen = Seen::default();
    let config =
        ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() };
    let versions = prop::sample::select(vec![Fractional::V1, Fractional::V2, Fractional::V3]);
    let inputs = (
        whole_documents(),
        prop::collection::vec(harms(), 0..4),
        prop::collection::vec(contexts(), 2),
        versions,
    );
    let run =
        TestRunner::new(config).run(&inputs, |(mut document, harms, contexts, fractional)| {
            for (place, one) in &harms {
                harm(&mut document, place, one);
            }
            one_more(&seen.documents);
            let bytes = document.to_string();
            let imported = match flagd::import(bytes.as_bytes(), ImportOptions { fractional }) {
                Ok(imported) => imported,
                Err(error) => {
                    prop_assert!(
                        document.pointer(&error.pointer).is_some(),
                        "{error:?} in {document}"
                    );
                    return Ok(());
                }
            };
            one_more(&seen.read);
            let pointers = imported.refused.iter().map(|refused| &refused.pointer);
            for pointer in pointers.chain(&imported.ignored.first) {
                prop_assert!(document.pointer(pointer).is_some(), "{pointer} in {document}");
            }
            imported.refused.iter().for_each(|_| one_more(&seen.refused));
            imported.flags.iter().for_each(|_| one_more(&seen.taken));
            let exported = flagd::export(&imported.flags, &[], &imported.metadata);
            prop_assert!(exported.refused.is_empty(), "{:?}", exported.refused);
            let second = import_as(&exported.document, fractional);
            prop_assert!(
                second.refused.is_empty(),
                "{:?} in {}",
                second.refused,
                exported.document
            );
            let compile = |imported: Imported| {
                let Imported { flags, metadata, .. } = imported;
                compile(&EnvironmentState { flags, metadata, ..EnvironmentState::default() })
            };
            let keys: Vec<String> =
                imported.flags.iter().map(|flag| flag.definition.key.clone()).collect();
            let sources = imported.sources.clone();
            let (before, after) = (compile(imported), compile(second));
            for problem in before.as_ref().err().into_iter().flatten() {
                let place = keys.iter().zip(&sources).find_map(|(key, source)| {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    let rest = problem.pointer.strip_prefix(&format!("/flags/{key}"))?;
                    (rest.is_empty() || rest.starts_with('/')).then(|| source.place_of(rest))
                });
                // The set's metadata is where it was.
                let place = place.unwrap_or_else(|| problem.pointer.clone());
                prop_assert!(document.pointer(&place).is_some(), "{place} in {document}");
            }
            prop_assert_eq!(before.is_ok(), after.is_ok(), "{:?} {:?}", before.err(), after.err());
            let (Ok(before), Ok(after)) = (before, after) else {
                one_more(&seen.refused_by_compiler);
                return Ok(());
            };
            one_more(&seen.compiled);
            let (before, after) = (
                Evaluator::new(before.ruleset).map_err(|e| TestCaseError::fail(e.to_string()))?,
                Evaluator::new(after.ruleset).map_err(|e| TestCaseError::fail(e.to_string()))?,
            );
            for context in &contexts {
                for key in &keys {
                    let (one, other) =
                        (answer(&before, key, context, 0), answer(&after, key, context, 0));
                    prop_assert_eq!(one, other, "{} of {}", key, exported.document);
                }
            }
            Ok(())
        });
    match run {
        Ok(()) => {}
        Err(TestError::Fail(reason, (mut document, harms, contexts, _))) => {
            harms.iter().for_each(|(place, one)| harm(&mut document, place, one));
            panic!("{reason}: {document} asked with {contexts:?}");
        }
        Err(error) => panic!("{error}"),
    }
    // Of 40,000 documents 94 in 100 were read, 92 compiled and 2 were refused by the compiler; 140 flags
    // were taken and 48 refused in each hundred.
    let share = |count: &Cell<usize>| count.get() * 100 / seen.documents.get();
    assert!(share(&seen.read) >= 80 && share(&seen.compiled) >= 75, "{seen:?}");
    assert!(share(&seen.taken) >= 100 && share(&seen.refused) >= 25, "{seen:?}");
    assert!(seen.refused_by_compiler.get() >= 5, "{seen:?}");
}
