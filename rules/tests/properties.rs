//! What holds for every configuration and for any bytes: the same state gives the same bytes,
//! what is written is read back, and nothing that is damaged loads or panics.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use rules::answer::{Audience, write_all};
use rules::blob::lists::IdList;
use rules::blob::{
    Digest, KeyTerms, ListRef, LoadError, Manifest, PolicyBlob, PolicyPin, Shadow, decode_blob,
    decode_ruleset, encode_blob, encode_ruleset,
};
use rules::cel::{At, Mistake, Tree};
use rules::compile::{
    Compiled, EnvironmentState, FlagState, PolicyState, SegmentState, compile_with, parse,
};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Host, Input, Scratch};
use rules::keys::{KeyKind, KeyRecord};
use rules::model::{FlagConfig, FlagDefinition, Segment};
use rules::policy::PolicyFault;
use rules::ruleset::Ruleset;
use serde_json::{Value, json};

// ── Random valid configurations ─────────────────────────────────────────────────────────────────

const ATTRS: [&str; 6] = ["targetingKey", "email", "app.version", "country", "größe", "n"];
const VARIANTS: [&str; 3] = ["a", "b", "c/🌊"];
const SEGMENTS: [&str; 3] = ["s0", "s1", "s2"];
const FLAGS: [&str; 4] = ["f0", "f1", "f2", "f3"];

fn text() -> impl Strategy<Value = Value> {
    "[a-zA-Z0-9@./ äß🌊\"\\\\]{0,12}".prop_map(Value::from)
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-1_000_000i64..1_000_000).prop_map(Value::from),
        (-1e6f64..1e6).prop_map(Value::from),
        Just(json!(9007199254740991u64)),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![text(), number(), any::<bool>().prop_map(Value::from), Just(Value::Null)]
}

fn clause() -> impl Strategy<Value = Value> {
    let version = "[0-9]{1,3}\\.(0|[1-9][0-9]?)\\.(0|[1-9])(-beta\\.1)?"
        .prop_map(|text| json!(text.trim_start_matches('0').to_owned()))
        .prop_map(
            |text| if text.as_str().unwrap().starts_with('.') { json!("1.2.3") } else { text },
        );
    let tested = prop_oneof![
        (select(vec!["eq", "in", "not_in"]), vec(scalar(), 1..12))
            .prop_map(|(op, values)| json!({ "op": op, "value": values })),
        (select(vec!["starts_with", "not_ends_with", "contains"]), vec(text(), 1..4))
            .prop_map(|(op, values)| json!({ "op": op, "value": values })),
        (select(vec!["lt", "lte", "gt", "not_gte"]), number())
            .prop_map(|(op, value)| json!({ "op": op, "value": value })),
        (select(vec!["semver_eq", "semver_lt", "not_semver_gte"]), version)
            .prop_map(|(op, value)| json!({ "op": op, "value": value })),
        select(vec!["exists", "not_exists", "is_null"]).prop_map(|op| json!({ "op": op })),
        select(vec!["^a.*z$", "(b|c)+", "[0-9]{2,4}"])
            .prop_map(|value| json!({ "op": "matches", "value": value })),
        (0i64..4_000_000_000_000).prop_map(|value| json!({ "op": "before", "value": value })),
        (any::<u32>(), 0u32..=32).prop_map(|(bits, prefix)| {
            let network = bits & u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            let address = std::net::Ipv4Addr::from_bits(network);
            json!({ "op": "cidr", "value": format!("{address}/{prefix}") })
        }),
        select(vec![">=1.2, <2", "^1.2", "~1.2.3"])
            .prop_map(|value| json!({ "op": "semver_range", "value": value })),
        select(vec!["string", "null"]).prop_map(|value| json!({ "op": "type_is", "value": value })),
        (0u32..5).prop_map(|value| json!({ "op": "size", "value": value })),
    ];
    let policy = prop_oneof![
        3 => Just(json!({})),
        1 => (select(vec!["true", "asNull", "asEmpty"]), select(vec!["all", "scalar"]), any::<bool>())
            .prop_map(|(missing, array, bad)| json!({
                "missing": missing, "array": array, "negation": "afterAll",
                "badArg": if bad { "error" } else { "false" }, "ignoreCase": bad })),
    ];
    (select(ATTRS.to_vec()), tested, policy).prop_map(|(attr, mut clause, policy)| {
        clause["attr"] = json!(attr);
        clause["policy"] = policy;
        clause
    })
}

/// JSONLogic trees with loops, fractions and data.
fn tree() -> impl Strategy<Value = Value> {
    select(vec![
        json!({ "if": [{ "in": ["@", { "var": "email" }] }, "a", null] }),
        json!({ "fractional": [{ "cat": [{ "var": "$flagd.flagKey" }, { "var": "email" }] },
                               ["a", 30], ["b", 70]] }),
        json!({ "some": [{ "var": "n" }, { ">": [{ "var": "" }, 1] }] }),
        json!({ "reduce": [[1, 2, { "var": "n" }],
                           { "+": [{ "var": "current" }, { "var": "accumulator" }] }, 0] }),
        json!({ "map": [{ "merge": [{ "var": "n" }, [1, "x"]] }, { "substr": [{ "var": "" }, -1] }] }),
        json!({ "sem_ver": [{ "var": "app.version" }, "^", "1.2.3"] }),
        json!({ "missing_some": [1, ["email", "n", "app.version"]] }),
        json!({ "%": [{ "var": ["n", 7] }, 0] }),
    ])
}

/// What control's parser makes of CEL, for the sources that the evaluator's cases use.
static CEL: LazyLock<BTreeMap<String, Arc<Tree>>> = LazyLock::new(|| {
    let trees: BTreeMap<String, Tree> =
        serde_json::from_str(include_str!("data/cel-trees.json")).unwrap();
    trees.into_iter().map(|(source, tree)| (source, Arc::new(tree))).collect()
});

fn tree_of(source: &str) -> Result<Arc<Tree>, Vec<Mistake>> {
    CEL.get(source).cloned().ok_or_else(|| vec![Mistake::new(At::default(), "not recorded")])
}

fn compile(state: &EnvironmentState) -> Compiled {
    compile_with(state, &tree_of).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn cel() -> impl Strategy<Value = Value> {
    select(CEL.keys().cloned().collect::<Vec<_>>()).prop_map(|source| json!({ "cel": source }))
}

/// A condition that may ask for the first `segments` segments.
fn condition(segments: usize) -> BoxedStrategy<Value> {
    let leaf = match segments {
        0 => prop_oneof![
            5 => clause(),
            1 => any::<bool>().prop_map(|on| json!({ "always": on })),
            1 => tree().prop_map(|tree| json!({ "logic": tree })),
            1 => cel(),
        ]
        .boxed(),
        _ => prop_oneof![
            5 => clause(),
            1 => any::<bool>().prop_map(|on| json!({ "always": on })),
            1 => tree().prop_map(|tree| json!({ "logic": tree })),
            1 => cel(),
            2 => vec(select(SEGMENTS[..segments].to_vec()), 1..3)
                .prop_map(|keys| json!({ "segment": keys })),
        ]
        .boxed(),
    };
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..4).prop_map(|parts| json!({ "all": parts })),
            vec(inner.clone(), 1..4).prop_map(|parts| json!({ "any": parts })),
            inner.prop_map(|part| json!({ "not": part })),
        ]
    })
    .boxed()
}

/// Every algorithm, encoding and projection, as far as the compiler allows them together. `parts_of` is
/// whether the projection itself says what a bucket is a part of: ranges need that, weights do not.
fn hash(parts_of: bool) -> impl Strategy<Value = Value> {
    let algorithm = prop_oneof![
        any::<u32>().prop_map(|seed| json!({ "murmur3": { "seed": seed } })),
        any::<u32>().prop_map(|seed| json!({ "murmur3SeededByHash": { "seed": seed } })),
        (1u8..=16).prop_map(|digits| json!({ "sha1Hex": { "digits": digits } })),
        select(vec!["fnv1a32", "fnv1a32Twice", "md5Be32", "crc32", "xxh3", "sha256Be64"])
            .prop_map(Value::from),
    ];
    let input = prop_oneof![
        select(vec![json!(["unit"]), json!(["flagKey", "unit"])]).prop_map(|input| ("cbor", input)),
        (
            select(vec!["utf8", "utf16"]),
            select(vec![
                json!(["unit"]),
                json!(["salt", { "literal": ":" }, "unit"]),
                json!(["seed", "unit", "flagKey"]),
                json!([{ "literal": "größe 🌊" }, "unit", "unit"]),
            ]),
        ),
    ];
    let n = prop_oneof![1u64..1_000, Just(u64::MAX)];
    let project = prop_oneof![
        (n.clone(), 0u64..3).prop_map(|(n, plus)| json!({ "modulo": { "n": n, "plus": plus } })),
        n.clone().prop_map(|n| json!({ "moduloFraction": { "n": n } })),
        n.prop_map(|divisor| json!({ "divide": { "divisor": divisor } })),
        Just(json!("absI32Percent")),
        select(match parts_of {
            true => vec![json!("absI32Percent")],
            false => vec![json!("mulShift32"), json!({ "modulo": { "n": 0, "plus": 1 } })],
        }),
    ];
    let walk = (
        select(vec!["int", "f32", "f64"]),
        select(vec!["less", "lessOrEqual"]),
        select(vec!["exact", "truncate", "round"]),
        select(vec!["asWritten", "nameDescending"]),
    );
    (algorithm, input, project, walk).prop_map(
        |(algorithm, (encode, input), project, (arithmetic, compare, bound, order))| {
            json!({ "algorithm": algorithm, "encode": encode, "input": input, "project": project,
                    "arithmetic": arithmetic, "compare": compare, "bound": bound, "order": order })
        },
    )
}

fn ranges() -> impl Strategy<Value = Value> {
    vec((0.0f64..2.0, 0.0f64..1_000.0), 1..4).prop_map(|ranges| {
        let ranges: Vec<Value> =
            ranges.iter().map(|(from, length)| json!([from, from + length])).collect();
        json!(ranges)
    })
}

/// Vendors' splits.
fn hashed_split() -> impl Strategy<Value = Value> {
    let arms_of = |name: &'static str, each: Vec<Value>| {
        let arms: Vec<Value> = each
            .into_iter()
            .zip(VARIANTS.iter().cycle())
            .map(|(value, key)| json!({ "serve": { "variant": key }, name: value }))
            .collect();
        json!(arms)
    };
    let weights = vec(prop_oneof![0.01f64..1.0, (1u32..1_000).prop_map(f64::from)], 1..5);
    let weighed = (hash(false), weights).prop_map(move |(hash, weights)| {
        let arms = arms_of("weight", weights.into_iter().map(Value::from).collect());
        json!({ "hash": hash, "arms": arms })
    });
    let ranged = (hash(true), vec(ranges(), 1..4))
        .prop_map(move |(hash, each)| json!({ "hash": hash, "arms": arms_of("ranges", each) }));
    let shards = vec((hash(true), ranges(), any::<bool>()), 0..3).prop_map(|shards| {
        let shards = shards.into_iter().map(|(hash, ranges, salted)| {
            let mut shard = json!({ "hash": hash, "ranges": ranges });
            if salted {
                shard["salt"] = json!("traffic");
            }
            shard
        });
        shards.collect::<Vec<Value>>()
    });
    let units = (
        select(vec![json!("targetingKey"), json!(["n", "email", "targetingKey"])]),
        select(vec!["stringOrInteger", "string", "any"]),
        select(vec!["error", "skip", "bucketZero"]),
        select(vec!["skip", "lastArm"]),
    );
    (prop_oneof![weighed, ranged], shards, units).prop_map(
        |(mut split, shards, (by, types, missing, past_end))| {
            split["allOf"] = json!(shards);
            split["by"] = by;
            split["unitTypes"] = json!(types);
            split["missingUnit"] = json!(missing);
            split["pastEnd"] = json!(past_end);
            split["seed"] = json!("s");
            split
        },
    )
}

fn split() -> impl Strategy<Value = Value> {
    let ramp = (0u32..50_000, 50_000u32..=100_000, 0u32..5_000).prop_map(|(from, to, step)| {
        json!({ "from": from, "to": to, "start": "2026-01-01T00:00:00Z",
                "end": "2026-01-03T00:00:00+01:00", "stepSeconds": step })
    });
    let weights = (0u32..=100_000).prop_map(
        |share| json!({ "weights": { "a": share, "b": 100_000 - share }, "missingUnit": "skip" }),
    );
    let arms = (vec(0u32..1_000, 1..5), any::<bool>()).prop_map(|(weights, truncate)| {
        let arms: Vec<Value> = weights
            .iter()
            .zip(VARIANTS.iter().cycle())
            .map(|(weight, key)| json!({ "serve": { "variant": key }, "weight": weight + 1 }))
            .collect();
        json!({ "arms": arms, "by": ["n", "targetingKey"], "unitTypes": "any", "seed": "s",
                "pastEnd": "lastArm",
                "hash": { "input": ["seed", { "literal": "." }, "unit"],
                          "algorithm": { "sha1Hex": { "digits": 8 } },
                          "project": { "modulo": { "n": 10000, "plus": 0 } },
                          "bound": if truncate { "truncate" } else { "exact" } } })
    });
    let ranges = (0.0f64..1.0, 0.0f64..1.0).prop_map(|(a, b)| {
        let (from, to) = if a < b { (a, b) } else { (b, a) };
        json!({ "arms": [{ "serve": { "variant": "a" }, "ranges": [[from, to]] },
                         { "serve": "codeDefault", "ranges": [[to, 1.0]] }],
                "hash": { "input": ["unit", "salt"], "algorithm": "fnv1a32Twice",
                          "project": { "moduloFraction": { "n": 10000 } } } })
    });
    let any_hash = hashed_split();
    let split = prop_oneof![1 => weights, 1 => arms, 1 => ranges, 2 => any_hash];
    (split, proptest::option::of(ramp)).prop_map(|(mut split, ramp)| {
        if let Some(ramp) = ramp {
            split["ramp"] = ramp;
        }
        split
    })
}

fn serve() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(VARIANTS.to_vec()).prop_map(|key| json!({ "variant": key })),
        split().prop_map(|split| json!({ "split": split })),
        (tree(), select(vec!["v1", "v2", "v3"])).prop_map(|(tree, fractional)| {
            json!({ "logic": { "tree": tree, "fractional": fractional } })
        }),
        Just(json!("codeDefault")),
        Just(json!("next")),
    ]
}

/// Of the flags before `index`, so that they form no cycle.
fn prerequisites(index: usize) -> BoxedStrategy<Value> {
    if index == 0 {
        return Just(json!([])).boxed();
    }
    let one = (
        select(FLAGS[..index].to_vec()),
        vec(select(VARIANTS.to_vec()), 1..3),
        select(vec!["off", "offAsDefault", "fail"]),
    );
    vec(one, 0..3)
        .prop_map(|all| {
            let all: Vec<Value> = all
                .iter()
                .map(|(flag, variants, on_fail)| {
                    json!({ "flag": flag, "variants": variants, "onFail": on_fail })
                })
                .collect();
            json!(all)
        })
        .boxed()
}

fn rule(index: usize) -> impl Strategy<Value = Value> {
    let window = select(vec![
        json!({}),
        json!({ "from": "2026-01-01T00:00:00Z" }),
        json!({ "from": "2025-01-01T00:00:00Z", "to": "2026-06-01T00:00:00.5Z", "inclusive": true }),
    ]);
    let then = prop_oneof![
        4 => serve().prop_map(|serve| ("serve", serve)),
        1 => policy().prop_map(|policy| ("policy", policy)),
    ];
    (condition(SEGMENTS.len()), then, window, prerequisites(index), select(vec!["fail", "skip"]))
        .prop_map(|(when, (what, then), active, prerequisites, on_error)| {
            json!({ "when": when, what: then, "active": active,
                    "prerequisites": prerequisites, "onError": on_error })
        })
}

const POLICIES: [&str; 2] = ["guard", "other"];

fn policy() -> impl Strategy<Value = Value> {
    let params = prop_oneof![scalar(), text().prop_map(|text| json!({ "max": 3, "text": text }))];
    (select(POLICIES.to_vec()), params, proptest::option::of(serve())).prop_map(
        |(name, params, fallback)| {
            let mut policy = json!({ "name": name, "params": params });
            if let Some(fallback) = fallback {
                policy["fallback"] = fallback;
            }
            policy
        },
    )
}

fn policies() -> Vec<PolicyState> {
    let attributes: [&[&str]; 2] = [&["country", "app.version"], &[]];
    let policies = POLICIES.iter().zip(attributes);
    policies
        .map(|(name, attributes)| PolicyState {
            name: (*name).to_owned(),
            digest: Digest::of(name.as_bytes()),
            attributes: attributes.iter().map(|path| (*path).to_owned()).collect(),
        })
        .collect()
}

fn values() -> impl Strategy<Value = (&'static str, [Value; 3])> {
    prop_oneof![
        Just(("boolean", [json!(true), json!(false), json!(true)])),
        [text(), text(), text()].prop_map(|values| ("string", values)),
        [0i64..9, -9i64..9, -9i64..9].prop_map(|n| ("integer", n.map(Value::from))),
        [number(), number(), number()].prop_map(|values| ("float", values)),
        scalar().prop_map(|inner| {
            ("object", [json!({ "in": inner }), json!([inner]), json!({ "x": { "y": {} } })])
        }),
    ]
}

fn flag(index: usize) -> impl Strategy<Value = FlagState> {
    let metadata = btree_map("[a-z]{1,4}", prop_oneof![text(), number()], 0..3);
    let shape = (values(), metadata, select(vec!["none", "edge"]), any::<bool>());
    let behaviour = (vec(rule(index), 0..4), prerequisites(index), proptest::option::of(0usize..3));
    (shape, behaviour).prop_map(move |((values, metadata, clients, enabled), behaviour)| {
        let ((kind, values), (mut rules, prerequisites, off)) = (values, behaviour);
        for (position, rule) in rules.iter_mut().enumerate() {
            rule["id"] = json!(format!("r{position}"));
        }
        let variants: serde_json::Map<String, Value> =
            VARIANTS.iter().map(|key| (*key).to_owned()).zip(values).collect();
        FlagState {
            definition: read::<FlagDefinition>(&json!({
                "key": FLAGS[index], "type": kind, "variants": variants, "metadata": metadata,
                "clients": clients })),
            config: read::<FlagConfig>(&json!({
                "enabled": enabled, "off": off.map(|off| VARIANTS[off]), "rules": rules,
                "prerequisites": prerequisites, "fallthrough": { "variant": "a" } })),
        }
    })
}

fn segment(index: usize) -> impl Strategy<Value = SegmentState> {
    (vec(condition(index), 0..3), any::<bool>(), any::<bool>()).prop_map(
        move |(rules, has_included, has_excluded)| SegmentState {
            segment: read::<Segment>(&json!({ "key": SEGMENTS[index], "rules": rules })),
            has_included,
            has_excluded,
        },
    )
}

fn environment() -> impl Strategy<Value = EnvironmentState> {
    let metadata = btree_map("[a-z]{1,4}", prop_oneof![text(), number()], 0..3);
    ((flag(0), flag(1), flag(2), flag(3)), (segment(0), segment(1), segment(2)), metadata).prop_map(
        |(flags, segments, metadata)| EnvironmentState {
            flags: vec![flags.0, flags.1, flags.2, flags.3],
            segments: vec![segments.0, segments.1, segments.2],
            metadata: read(&json!(metadata)),
            policies: policies(),
        },
    )
}

fn context() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        4 => scalar(),
        1 => vec(scalar(), 0..3).prop_map(Value::from),
        1 => scalar().prop_map(|inner| json!({ "version": inner })),
    ];
    btree_map(
        select(vec!["targetingKey", "email", "app", "app.version", "country", "größe", "n"]),
        value,
        0..6,
    )
    .prop_map(|context| json!(context))
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    parse(value.to_string().as_bytes()).unwrap_or_else(|problem| panic!("{problem:?}: {value}"))
}

/// Lists and policies that answer each their way, by what they are asked alone.
struct Even;

impl Host for Even {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        (list as usize).wrapping_add(id.len()).is_multiple_of(2)
    }

    fn policy(&self, index: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        let answers = [
            r#"{"abstain":true}"#,
            r#"{"variant":"a","reason":"so"}"#,
            r#"{"value":true}"#,
            r#"{"value":{"x":[1]},"reason":"\u0000"}"#,
            "{}",
            "nonsense",
        ];
        let which = input.len().wrapping_add(index as usize) % (answers.len() + 1);
        let Some(answer) = answers.get(which) else { return Err(PolicyFault::Deadline) };
        out.extend_from_slice(answer.as_bytes());
        Ok(())
    }
}

/// All answers; panics where an answer is not JSON.
fn answers(evaluator: &Evaluator, context: &Value, now_ms: i64) -> Vec<u8> {
    let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms, host: &Even };
    let mut out = Vec::new();
    write_all(evaluator, Audience::Server, &input, &mut Scratch::default(), &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_valid_configuration_compiles_loads_and_answers(
        state in environment(), context in context(), now in 1_700_000_000_000i64..1_800_000_000_000,
    ) {
        let compiled = compile(&state);
        let bytes = encode_ruleset(&compiled.ruleset);
        let loaded = decode_ruleset(&bytes).unwrap();
        prop_assert_eq!(&loaded, &compiled.ruleset);
        prop_assert_eq!(encode_ruleset(&loaded), bytes.clone());
        let evaluator = Evaluator::load(&bytes).unwrap();
        let out = answers(&evaluator, &context, now);
        let parsed: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(parsed["flags"].as_array().unwrap().len(), state.flags.len());
        prop_assert_eq!(out, answers(&evaluator, &context, now));
        prop_assert!(compiled.boundaries_ms.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn the_same_state_gives_the_same_bytes_in_whatever_order_it_was_read(
        state in environment(), rotate in 0usize..4, reverse in any::<bool>(),
    ) {
        let mut shuffled = state.clone();
        shuffled.flags.rotate_left(rotate);
        shuffled.segments.rotate_left(rotate % 3);
        if reverse {
            shuffled.flags.reverse();
            shuffled.segments.reverse();
        }
        let (one, other) = (compile(&state), compile(&shuffled));
        prop_assert_eq!(encode_ruleset(&one.ruleset), encode_ruleset(&other.ruleset));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn what_an_author_wrote_is_written_back_the_same(state in environment()) {
        for flag in &state.flags {
            let definition = serde_json::to_vec(&flag.definition).unwrap();
            prop_assert_eq!(&parse::<FlagDefinition>(&definition).unwrap(), &flag.definition);
            let config = serde_json::to_vec(&flag.config).unwrap();
            prop_assert_eq!(&parse::<FlagConfig>(&config).unwrap(), &flag.config);
        }
    }

    #[test]
    fn a_damaged_ruleset_with_a_mended_checksum_is_refused_or_answers(
        state in environment(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        context in context(),
    ) {
        let bytes = encode_ruleset(&compile(&state).ruleset);
        let mut body = body_of(&bytes).to_vec();
        for (at, value) in damage {
            let at = at.index(body.len());
            body[at] = value;
        }
        survives(&reframed(&bytes, &body), &context);
    }

    #[test]
    fn random_bytes_load_as_nothing(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_blob(&bytes).is_err());
        prop_assert!(decode_ruleset(&bytes).is_err());
        prop_assert!(IdList::decode(&bytes).is_err());
        survives(&reframed(&encode_ruleset(&Ruleset::default()), &bytes), &json!({}));
    }

    #[test]
    fn random_text_parses_as_nothing_or_as_what_it_says(text in "[\\[\\]{}:,\"a-z0-9 ]{0,60}") {
        let _ = parse::<FlagDefinition>(text.as_bytes());
        if let Ok(config) = parse::<FlagConfig>(text.as_bytes()) {
            prop_assert_eq!(parse::<FlagConfig>(&serde_json::to_vec(&config).unwrap()).unwrap(), config);
        }
    }
}

/// Loads it and, if that is possible, asks it everything, and to explain itself.
fn survives(bytes: &[u8], context: &Value) {
    if let Ok(evaluator) = Evaluator::load(bytes) {
        for now in [i64::MIN, 0, 1_767_300_000_000, i64::MAX] {
            answers(&evaluator, context, now);
        }
        let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
        let input = Input { context: context.view(), now_ms: 0, host: &Even };
        for flag in evaluator.flags() {
            let (_, trace) = evaluator.explain(flag, &input, &mut Scratch::default());
            serde_json::to_string(&trace).unwrap();
        }
    }
}

// ── Damage to a real blob ───────────────────────────────────────────────────────────────────────

struct Sample {
    blob: Vec<u8>,
    ruleset: Vec<u8>,
    list: Vec<u8>,
    manifest: Manifest,
}

/// Every kind of node that CEL is lowered to: loops, lists and maps, text, time, arithmetic.
const SAMPLE_CEL: [&str; 8] = [
    "[3, 1, 2].map(x, [x, x * x].map(y, y + x)) == [[6, 12], [2, 2], [4, 6]]",
    "[1, 2] + [3] == [1, 2, 3.0] && {'a': 1}.a == 1 && 'a' in {'a': 1}",
    "orders.exists_one(o, o.total > 50 && has(o.gift))",
    "email.substring(0, 3).upperAscii() == 'ADA' && email.lastIndexOf('e') == 10",
    "flag.key.matches('^c2[0-9]$')",
    "string(timestamp(created) + duration('1500ms')) == '2026-01-31T08:00:01.5Z'",
    "now.getFullYear() == 2026 && now.getHours('+02:00') == 14 && now.getDayOfWeek() == 0",
    "beta ? age > 30 : age < 30",
];

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let mut rules = vec![
        json!({ "id": "eu", "serve": { "split": { "weights": {
                    "express": 40000, "classic": 60000 } } },
                "when": { "all": [ { "attr": "country", "op": "in", "value": ["DE", "FR"] },
                                   { "segment": "beta" } ] } }),
        json!({ "id": "guard", "policy": { "name": "guard", "params": { "max": 3 },
                                           "fallback": { "variant": "classic" } } }),
        json!({ "id": "other", "policy": { "name": "other" } }),
    ];
    for (index, source) in SAMPLE_CEL.iter().enumerate() {
        rules.insert(
            0,
            json!({ "id": format!("cel{index}"), "when": { "cel": source },
                                "serve": { "variant": "express" } }),
        );
    }
    let state = EnvironmentState {
        flags: vec![FlagState {
            definition: read(&json!({ "key": "checkout", "type": "string",
                "variants": { "express": "e", "classic": "c" } })),
            config: read(&json!({ "enabled": true, "off": "classic",
                "rules": rules,
                "fallthrough": { "variant": "classic" } })),
        }],
        segments: vec![SegmentState {
            segment: read(&json!({ "key": "beta" })),
            has_included: true,
            has_excluded: false,
        }],
        policies: policies(),
        ..EnvironmentState::default()
    };
    let compiled = compile(&state);
    let ruleset = encode_ruleset(&compiled.ruleset);
    let list = IdList::from_ids(["ada", "grace", "barbara"]).encode();
    let manifest = Manifest {
        namespace: "shop".to_owned(),
        environment: "production".to_owned(),
        keys: vec![KeyRecord {
            id: "k1".to_owned(),
            kind: KeyKind::Browser,
            hash: [7; 32],
            origins: vec!["https://shop.example".to_owned()],
        }],
        stream_secret: [9; 32],
        lists: vec![ListRef { digest: Digest::of(&list), bytes: list.len() as u64, ids: 3 }],
        boundaries_ms: vec![-1, 0, i64::MAX],
        flag_count: 1,
        policies: vec![PolicyPin {
            name: "guard".to_owned(),
            version: PolicyBlob { digest: Digest::of(b"guard"), bytes: 5 },
            shadow: Some(Shadow {
                version: PolicyBlob { digest: Digest::of(b"next"), bytes: 4 },
                share: 1_000,
            }),
        }],
        terms: vec![KeyTerms { key: 0, expires_at_ms: Some(-1), per_second: None }],
    };
    Sample { blob: encode_blob(&manifest, &ruleset), ruleset, list, manifest }
});

/// Every byte string that is one bit or one cut away from `bytes`, or has a byte more.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let flipped = (0..bytes.len() * 8).map(move |bit| {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        damaged
    });
    let cut = (0..bytes.len()).map(move |len| bytes[..len].to_vec());
    flipped.chain(cut).chain([0u8, 255].into_iter().map(move |byte| [bytes, &[byte]].concat()))
}

#[test]
fn a_blob_gives_back_what_was_put_in() {
    let (manifest, ruleset) = decode_blob(&SAMPLE.blob).unwrap();
    assert_eq!(manifest, SAMPLE.manifest);
    assert_eq!(ruleset, SAMPLE.ruleset);
    let list = IdList::decode(&SAMPLE.list).unwrap();
    assert!(list.contains("grace") && !list.contains("Grace") && list.len() == 3);
}

#[test]
fn any_flipped_missing_or_surplus_bit_is_an_error() {
    for bytes in damaged(&SAMPLE.blob) {
        assert!(decode_blob(&bytes).is_err());
    }
    for bytes in damaged(&SAMPLE.ruleset) {
        assert!(decode_ruleset(&bytes).is_err());
    }
    for bytes in damaged(&SAMPLE.list) {
        assert!(IdList::decode(&bytes).is_err());
    }
}

#[test]
fn any_bit_of_a_ruleset_flipped_under_a_mended_checksum_is_refused_or_answers() {
    let body = body_of(&SAMPLE.ruleset);
    let context = json!({
        "country": "DE", "targetingKey": "ada", "email": "ada@example.org", "age": 36, "beta": true,
        "created": "2026-01-31T08:00:00Z", "orders": [{ "total": 70, "gift": "x" }, { "total": 1 }],
    });
    let mut loaded = 0;
    for bytes in damaged(body) {
        let bytes = reframed(&SAMPLE.ruleset, &bytes);
        loaded += usize::from(Evaluator::load(&bytes).is_ok());
        survives(&bytes, &context);
    }
    assert!(loaded > 0, "no damage got past the loader, so evaluation was not tried");
}

#[test]
fn a_lying_length_is_an_error_and_not_an_allocation() {
    // A text of 4 GiB, and a list of flags as long.
    for body in [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0, 0xff, 0xff, 0xff, 0xff, 0x0f][..]] {
        let bytes = reframed(&SAMPLE.ruleset, body);
        assert!(matches!(decode_ruleset(&bytes), Err(LoadError::Malformed { .. })));
    }
    let mut frame = SAMPLE.ruleset.clone();
    frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode_ruleset(&frame), Err(LoadError::Truncated { .. })));
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let mut frame = SAMPLE.ruleset.clone();
    let newer = rules::blob::FORMAT + 1;
    frame[6..8].copy_from_slice(&newer.to_le_bytes());
    let body = body_of(&SAMPLE.ruleset).to_vec();
    let refused = decode_ruleset(&reframed(&frame, &body));
    assert!(matches!(refused, Err(LoadError::TooNew { needs, .. }) if needs == newer));
    // A newer writer whose format old readers still understand.
    let mut frame = SAMPLE.ruleset.clone();
    frame[4..6].copy_from_slice(&9u16.to_le_bytes());
    assert!(decode_ruleset(&reframed(&frame, &body)).is_ok());
    assert!(matches!(decode_ruleset(&SAMPLE.list), Err(LoadError::NotOurs { .. })));
}

#[test]
fn a_blob_over_its_limit_is_refused_unread() {
    let bytes = vec![0u8; rules::limits::SNAPSHOT_BYTES_MAX + 1];
    assert!(matches!(decode_blob(&bytes), Err(LoadError::OverLimit { .. })));
    assert!(matches!(decode_ruleset(&bytes), Err(LoadError::OverLimit { .. })));
}

#[test]
fn a_snapshot_that_more_than_doubles_halves_or_empties_is_held_up() {
    use rules::blob::{Growth, growth};
    assert_eq!(growth(100, 0), Ok(()));
    assert_eq!(growth(0, 10_000), Ok(()));
    assert_eq!(growth(101, 202), Ok(()));
    assert_eq!(growth(101, 203), Err(Growth::Doubles { from: 101, to: 203 }));
    assert_eq!(growth(200, 100), Ok(()));
    assert_eq!(growth(200, 99), Err(Growth::Halves { from: 200, to: 99 }));
    assert_eq!(growth(101, 0), Err(Growth::Empties { from: 101 }));
}

fn body_of(frame: &[u8]) -> &[u8] {
    &frame[12..frame.len() - 8]
}

/// `body` under the header of `frame`, with the length and the checksum that belong to it.
fn reframed(frame: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = frame[..8].to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}
