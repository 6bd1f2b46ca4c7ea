//! Every published bucketing vector, through the same data and code that flags use: a profile of
//! `hash::profiles`, lowered into a ruleset, asked with `split::choose`. Those of flagd also as an
//! imported flag has them: in a `fractional` tree, which has a walk of its own.

use std::collections::BTreeMap;

use rules::answer::{Audience, write_one};
use rules::compile::{EnvironmentState, compile};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, NoHost, Scratch};
use rules::flagd::{self, ImportOptions};
use rules::hash::profiles;
use rules::model::{
    Algorithm, Arithmetic, Fractional, HashPart, HashSpec, MissingUnit, PastEnd, Project, UnitTypes,
};
use rules::ruleset::{self, NONE, Ruleset, Serve, Span, Text};
use rules::split::{self, Unit};
use serde_json::{Value, json};

/// Rows of the file and of each profile: a row that vanishes is a failure.
const ROWS: usize = 159;
const PROFILES: usize = 17;

struct Case {
    spec: HashSpec,
    flag: &'static str,
    salt: String,
    seed: String,
    weights: Vec<f64>,
}

impl Case {
    fn of(spec: HashSpec) -> Case {
        Case { spec, flag: "", salt: String::new(), seed: String::new(), weights: vec![1.0] }
    }

    /// A ruleset of one split, as the compiler lays it out.
    fn ruleset(&self) -> Ruleset {
        let mut rules = Ruleset::default();
        let text = |text: &str, all: &mut String| {
            let start = all.len() as u32;
            all.push_str(text);
            Text { start, len: text.len() as u32 }
        };
        for part in &self.spec.input {
            let part = match part {
                HashPart::Literal(literal) => {
                    ruleset::HashPart::Literal(text(literal, &mut rules.text))
                }
                HashPart::FlagKey => ruleset::HashPart::FlagKey,
                HashPart::Salt => ruleset::HashPart::Salt,
                HashPart::Seed => ruleset::HashPart::Seed,
                HashPart::Unit => ruleset::HashPart::Unit,
                HashPart::SegmentKey => ruleset::HashPart::SegmentKey,
            };
            rules.hash_parts.push(part);
        }
        rules.hashes.push(ruleset::Hash {
            input: Span { start: 0, len: rules.hash_parts.len() as u32 },
            encode: self.spec.encode,
            algorithm: self.spec.algorithm.clone(),
            project: self.spec.project.clone(),
            arithmetic: self.spec.arithmetic,
            compare: self.spec.compare,
            bound: self.spec.bound,
            order: self.spec.order,
        });
        rules.serves.push(Serve::Next);
        let mut bound = 0u32;
        for weight in &self.weights {
            bound += *weight as u32;
            let ranges = Span::default();
            rules.arms.push(ruleset::Arm { serve: 0, bound, weight: *weight, ranges });
        }
        let salt = text(&self.salt, &mut rules.text);
        let seed = text(&self.seed, &mut rules.text);
        rules.splits.push(ruleset::Split {
            units: Span::default(),
            unit_types: UnitTypes::Any,
            missing_unit: MissingUnit::Error,
            hash: 0,
            salt,
            seed,
            arms: Span { start: 0, len: rules.arms.len() as u32 },
            total: bound,
            shards: Span::default(),
            past_end: PastEnd::Skip,
            ramp: NONE,
        });
        rules
    }

    fn choose(&self, unit: Unit<'_>) -> split::Choice {
        let rules = self.ruleset();
        split::choose(&rules, &rules.splits[0], self.flag, unit, 0, &mut Vec::new())
    }
}

fn unit(value: &Value) -> Unit<'_> {
    match value {
        Value::String(text) => Unit::Str(text),
        Value::Bool(value) => Unit::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Unit::Int(number),
            None => Unit::Float(number.as_f64().unwrap()),
        },
        other => panic!("no unit: {other}"),
    }
}

fn text(inputs: &Value, name: &str) -> String {
    match &inputs[name] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => panic!("{name} is {other}"),
    }
}

fn weights(inputs: &Value) -> Vec<f64> {
    inputs["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect()
}

/// The row's answer and the one expected, both as numbers in double precision.
fn check(row: &Value) {
    let profile = row["profile"].as_str().unwrap();
    let inputs = &row["inputs"];
    let expected = &row["expected"];
    let is_bucket = |case: &Case, name: &str| {
        let bucket = case.choose(unit(&inputs[name])).bucket;
        assert_eq!(bucket.to_bits(), expected.as_f64().unwrap().to_bits(), "{row}: {bucket}");
    };
    let is_arm = |case: &Case, name: &str| {
        let arm = case.choose(unit(&inputs[name])).arm;
        assert_eq!(arm.map(u64::from), expected.as_u64(), "{row}");
    };
    // The vectors give LaunchDarkly's quotient in double precision. Its SDKs divide in single,
    // and so do our profiles: both are checked.
    let launchdarkly = |mut case: Case| {
        let single = case.choose(unit(&inputs["unit"])).bucket;
        assert_eq!(case.spec.arithmetic, Arithmetic::F32);
        assert_eq!(single, f64::from(single as f32), "{row}: not in single precision");
        assert!((single - expected.as_f64().unwrap()).abs() <= 1.2e-7, "{row}: {single}");
        case.spec.arithmetic = Arithmetic::F64;
        is_bucket(&case, "unit");
    };
    let mut case;
    match profile {
        "murmur3_x86_32" => {
            case = Case::of(profiles::flagd_v2());
            case.spec.algorithm =
                Algorithm::Murmur3 { seed: inputs["seed"].as_u64().unwrap() as u32 };
            case.spec.project = Project::Modulo { n: 1 << 32, plus: 0 };
            is_bucket(&case, "bytes_utf8");
        }
        "flagd-fractional-v1" | "flagd-fractional-v2" | "flagd-fractional-v3" => {
            case = Case::of(match profile {
                "flagd-fractional-v1" => profiles::flagd_v1(),
                "flagd-fractional-v2" => profiles::flagd_v2(),
                _ => profiles::flagd_v3(),
            });
            case.weights = weights(inputs);
            is_arm(&case, "value");
        }
        "flagd-fractional-v3-implicit" => {
            case = Case::of(profiles::flagd_v3_implicit());
            case.weights = weights(inputs);
            case.flag = "my-flag";
            assert_eq!(inputs["flag"], case.flag);
            is_arm(&case, "targetingKey");
        }
        "unleash-rollout" => {
            case = Case::of(profiles::unleash_rollout());
            case.salt = text(inputs, "groupId");
            is_bucket(&case, "unit");
        }
        "unleash-variant" => {
            case = Case::of(profiles::unleash_variant());
            case.salt = text(inputs, "groupId");
            case.weights = vec![inputs["total_weight"].as_f64().unwrap()];
            is_bucket(&case, "unit");
        }
        "launchdarkly-salt" => {
            case = Case::of(profiles::launchdarkly_salt());
            case.flag = "my-flag";
            assert_eq!(inputs["key"], case.flag);
            case.salt = text(inputs, "salt");
            launchdarkly(case);
        }
        "launchdarkly-seed" => {
            case = Case::of(profiles::launchdarkly_seed());
            case.seed = text(inputs, "seed");
            launchdarkly(case);
        }
        "growthbook-v1" | "growthbook-v2" => {
            case = Case::of(match profile {
                "growthbook-v1" => profiles::growthbook_v1(),
                _ => profiles::growthbook_v2(),
            });
            case.seed = text(inputs, "seed");
            is_bucket(&case, "unit");
        }
        "eppo-md5-shard" => {
            case = Case::of(profiles::eppo(inputs["totalShards"].as_u64().unwrap()));
            case.salt = text(inputs, "salt");
            is_bucket(&case, "subject");
        }
        "flipt-variant-crc32" | "flipt-threshold-crc32" => {
            case = Case::of(match profile {
                "flipt-variant-crc32" => profiles::flipt_variant(),
                _ => profiles::flipt_threshold(),
            });
            case.flag = "my-flag";
            assert_eq!(inputs["flag"], case.flag);
            is_bucket(&case, "entityId");
        }
        "goff-fnv1a32" => {
            case = Case::of(profiles::go_feature_flag());
            case.flag = "my-flag";
            assert_eq!(inputs["flag"], case.flag);
            case.weights = vec![inputs["max"].as_f64().unwrap()];
            is_bucket(&case, "key");
        }
        "configcat-sha1" => {
            case = Case::of(profiles::configcat());
            case.flag = "my-flag";
            assert_eq!(inputs["key"], case.flag);
            is_bucket(&case, "unit");
        }
        "devcycle" => {
            let bucket = |spec: HashSpec| {
                let mut case = Case::of(spec);
                case.salt = text(inputs, "target");
                case.choose(unit(&inputs["user"])).bucket
            };
            let rollout = bucket(profiles::devcycle_rollout());
            let variation = bucket(profiles::devcycle_variation());
            assert_eq!(Some(rollout), expected["rollout"].as_f64(), "{row}");
            assert_eq!(Some(variation), expected["variation"].as_f64(), "{row}");
        }
        unknown => panic!("no profile for {unknown}"),
    }
}

#[test]
fn every_published_vector_is_reproduced_through_a_profile() {
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("data/bucketing-vectors.json")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &rows {
        check(row);
        *counts.entry(row["profile"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(rows.len(), ROWS);
    assert_eq!(counts.len(), PROFILES, "{counts:?}");
    for (profile, count) in counts {
        assert_eq!(count, if profile == "flagd-fractional-v3" { 15 } else { 9 }, "{profile}");
    }
}

/// What a flagd flag with such a tree serves: its variants are named 0, 1, 2; `none` is the default.
fn imported(fractional: Fractional, key: &str, tree: &Value, context: &Value) -> String {
    let flag = json!({ "state": "ENABLED", "defaultVariant": "none", "targeting": tree,
        "variants": { "0": "0", "1": "1", "2": "2", "none": "none" } });
    let document = json!({ "flags": { key: flag } }).to_string();
    let imported = flagd::import(document.as_bytes(), ImportOptions { fractional }).unwrap();
    assert_eq!(imported.refused, []);
    let state = EnvironmentState { flags: imported.flags, ..EnvironmentState::default() };
    let evaluator = Evaluator::new(compile(&state).unwrap().ruleset).unwrap();
    let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms: 0, host: &NoHost };
    let mut out = Vec::new();
    write_one(&evaluator, key, Audience::Server, &input, &mut Scratch::default(), &mut out);
    let answer: Value = serde_json::from_slice(&out).unwrap();
    answer["variant"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn every_vector_of_flagd_is_reproduced_by_the_tree_of_an_imported_flag() {
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("data/bucketing-vectors.json")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &rows {
        let profile = row["profile"].as_str().unwrap();
        let Some(version) = profile.strip_prefix("flagd-fractional-") else { continue };
        let inputs = &row["inputs"];
        let entries = inputs["weights"].as_array().unwrap().iter().enumerate();
        let entries = entries.map(|(place, weight)| json!([place.to_string(), weight]));
        let mut args: Vec<Value> = entries.collect();
        let fractional = match version {
            "v1" => Fractional::V1,
            "v2" => Fractional::V2,
            "v3" | "v3-implicit" => Fractional::V3,
            unknown => panic!("no fractional {unknown}"),
        };
        let mut expected = row["expected"].to_string();
        let (key, context) = match inputs.get("value") {
            Some(value) => {
                args.insert(0, json!({ "var": "value" }));
                ("some-flag", json!({ "value": value, "targetingKey": "somebody" }))
            }
            None => {
                // An empty targeting key is none (INTEROP 2.1): the formula has an answer, flagd not.
                if inputs["targetingKey"] == "" {
                    expected = "none".to_owned();
                }
                let context = json!({ "targetingKey": inputs["targetingKey"] });
                (inputs["flag"].as_str().unwrap(), context)
            }
        };
        let tree = json!({ "fractional": args });
        assert_eq!(imported(fractional, key, &tree, &context), expected, "{row}");
        *counts.entry(version).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([("v1", 9), ("v2", 9), ("v3", 15), ("v3-implicit", 9)]));
}

#[test]
#[should_panic(expected = "no profile for")]
fn a_vector_of_an_unknown_profile_fails() {
    check(&json!({ "profile": "nobody", "inputs": {}, "expected": 1 }));
}

fn native(weights: &[u32]) -> Ruleset {
    let mut case = Case::of(profiles::native());
    case.salt = "checkout".to_owned();
    case.weights = weights.iter().map(|weight| f64::from(*weight)).collect();
    let mut rules = case.ruleset();
    rules.splits[0].hash = NONE;
    rules
}

#[test]
fn the_native_path_answers_as_the_native_formula_written_as_data() {
    let mut case = Case::of(profiles::native());
    case.salt = "checkout".to_owned();
    case.weights = vec![10_000.0, 20_000.0, 70_000.0];
    let rules = native(&[10_000, 20_000, 70_000]);
    let mut scratch = Vec::new();
    let mut seen = [0u32; 3];
    for number in 0..10_000 {
        let key = format!("user-{number}");
        let fast = split::choose(&rules, &rules.splits[0], "", Unit::Str(&key), 0, &mut scratch);
        assert_eq!(fast, case.choose(Unit::Str(&key)), "{key}");
        seen[fast.arm.unwrap() as usize] += 1;
    }
    assert!((900..1100).contains(&seen[0]) && (1850..2150).contains(&seen[1]), "{seen:?}");
}

#[test]
fn a_native_split_does_not_grow_its_scratch_twice() {
    let rules = native(&[50_000, 50_000]);
    let mut scratch = Vec::with_capacity(64);
    let place = scratch.as_ptr();
    for number in 0..100 {
        split::choose(&rules, &rules.splits[0], "", Unit::Int(number), 0, &mut scratch);
    }
    assert_eq!((scratch.as_ptr(), scratch.capacity()), (place, 64));
}

#[test]
fn a_ramp_reaches_units_of_every_arm_alike_and_keeps_them() {
    let mut rules = native(&[50_000, 50_000]);
    let ramp = ruleset::Ramp { from: 0, to: 100_000, start_ms: 0, end_ms: 1_000, step_ms: 0 };
    rules.ramps.push(ramp);
    rules.splits[0].ramp = 0;
    let mut scratch = Vec::new();
    let mut reached = [[0u32; 2]; 11];
    for number in 0..4_000 {
        let key = format!("user-{number}");
        let mut first = None;
        for (step, reached) in reached.iter_mut().enumerate() {
            let choice = split::choose(
                &rules,
                &rules.splits[0],
                "",
                Unit::Str(&key),
                step as i64 * 100,
                &mut scratch,
            );
            assert_eq!(choice.ramp, Some(step as u32 * 10_000));
            assert!(first.is_none() || first == choice.arm, "{key} was moved or lost");
            first = first.or(choice.arm);
            if let Some(arm) = choice.arm {
                reached[arm as usize] += 1;
            }
        }
    }
    assert_eq!(reached[0], [0, 0]);
    assert_eq!(reached[10][0] + reached[10][1], 4_000);
    for (step, [a, b]) in reached.iter().enumerate().skip(1) {
        let half = 200 * step as u32;
        assert!(a.abs_diff(half) < 120 && b.abs_diff(half) < 120, "{step}: {a} {b}");
    }
}

#[test]
fn a_stepped_ramp_moves_at_whole_steps_and_ends_on_time() {
    let ramp = ruleset::Ramp { from: 10, to: 110, start_ms: 1_000, end_ms: 2_000, step_ms: 300 };
    let shares = [0, 1_000, 1_299, 1_300, 1_899, 1_900, 1_999, 2_000, i64::MAX, i64::MIN];
    let expected = [10, 10, 10, 40, 70, 100, 100, 110, 110, 10];
    for (now, share) in shares.into_iter().zip(expected) {
        assert_eq!(split::share_at(&ramp, now), share, "at {now}");
    }
    let wide = ruleset::Ramp { start_ms: i64::MIN, end_ms: i64::MAX, step_ms: 0, ..ramp };
    assert_eq!(split::share_at(&wide, 0), 60);
}

#[test]
fn arms_ordered_by_name_are_walked_downwards() {
    let mut case = Case::of(profiles::go_feature_flag());
    case.flag = "my-flag";
    case.weights = vec![20_000.0, 30_000.0, 50_000.0];
    let mut rules = case.ruleset();
    rules.serves.clear();
    for (number, name) in ["a", "c", "b"].into_iter().enumerate() {
        let key = Text { start: rules.text.len() as u32, len: 1 };
        rules.text.push_str(name);
        rules.variants.push(ruleset::Variant { key, json: key, value: key });
        rules.serves.push(Serve::Variant(number as u32));
        rules.arms[number].serve = number as u32;
    }
    // Downwards: c to 30,000, b to 80,000, a to the end. Buckets as the vectors give them.
    for (unit, bucket, arm) in [("user-1", 33_501.0, 2), ("user-42", 804.0, 1)] {
        let choice =
            split::choose(&rules, &rules.splits[0], "my-flag", Unit::Str(unit), 0, &mut Vec::new());
        assert_eq!((choice.bucket, choice.arm), (bucket, Some(arm)), "{unit}");
    }
}

#[test]
fn units_are_strings_and_integral_numbers_unless_the_split_says_otherwise() {
    use rules::context::Value;
    let rows = [
        (Value::Str("a"), UnitTypes::String, Some(Unit::Str("a"))),
        (Value::Str(""), UnitTypes::Any, None),
        (Value::Int(3), UnitTypes::String, None),
        (Value::Int(3), UnitTypes::StringOrInteger, Some(Unit::Int(3))),
        (Value::Float(3.0), UnitTypes::StringOrInteger, Some(Unit::Int(3))),
        (Value::Float(3.5), UnitTypes::StringOrInteger, None),
        (Value::Float(1e300), UnitTypes::StringOrInteger, None),
        (Value::Float(3.5), UnitTypes::Any, Some(Unit::Float(3.5))),
        (Value::Bool(true), UnitTypes::StringOrInteger, None),
        (Value::Bool(true), UnitTypes::Any, Some(Unit::Bool(true))),
        (Value::Null, UnitTypes::Any, None),
    ];
    for (value, types, expected) in rows {
        assert_eq!(split::unit_of(value, types), expected, "{value:?} {types:?}");
    }
}
