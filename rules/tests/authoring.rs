//! The native authoring format as authors see it: the example environment and every example of
//! the guide are read, written back the same and compiled, and a ruleset that an earlier build
//! recorded still loads and answers as it did.

use std::num::NonZeroU32;
use std::path::PathBuf;

use rules::answer::{Audience, write_all};
use rules::blob::lists::IdList;
use rules::blob::{
    Digest, FORMAT, KeyTerms, ListRef, Manifest, PolicyBlob, PolicyPin, Shadow, decode_blob,
    encode_blob, encode_ruleset,
};
use rules::compile::{EnvironmentState, FlagState, PolicyState, SegmentState, compile, parse};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Host, Input, Scratch};
use rules::keys::{KeyKind, KeyRecord};
use rules::model::{Condition, FlagConfig, FlagDefinition, Metadata, Op, Segment, Serve};
use rules::policy::PolicyFault;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    let path = file(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Read, written and read again.
#[track_caller]
fn there_and_back<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    json: &Value,
) -> T {
    let read = |bytes: &[u8]| {
        parse::<T>(bytes).unwrap_or_else(|problem| panic!("{problem:?} in {json:#}"))
    };
    let first = read(json.to_string().as_bytes());
    let written = serde_json::to_value(&first).unwrap();
    assert_eq!(read(written.to_string().as_bytes()), first);
    // Writing is stable, and writes nothing that reading would drop.
    assert_eq!(serde_json::to_value(read(written.to_string().as_bytes())).unwrap(), written);
    first
}

fn example() -> EnvironmentState {
    let document: Value = serde_json::from_str(&text("tests/data/native-example.json")).unwrap();
    let entries = |name: &str| document[name].as_object().unwrap().clone().into_iter();
    EnvironmentState {
        flags: entries("flags")
            .map(|(key, mut flag)| {
                flag["definition"]["key"] = json!(key);
                FlagState {
                    definition: there_and_back::<FlagDefinition>(&flag["definition"]),
                    config: there_and_back::<FlagConfig>(&flag["config"]),
                }
            })
            .collect(),
        segments: entries("segments")
            .map(|(key, mut segment)| {
                segment["key"] = json!(key);
                SegmentState {
                    segment: there_and_back::<Segment>(&segment),
                    has_included: key == "blocked",
                    has_excluded: false,
                }
            })
            .collect(),
        metadata: there_and_back::<Metadata>(&document["metadata"]),
        ..EnvironmentState::default()
    }
}

/// List 0 of the example is `blocked`; its policy takes orders from Germany, and has no number for
/// anybody else.
struct Blocked;

impl Host for Blocked {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        list == 0 && id == "mallory"
    }

    fn policy(&self, policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        let input: Value = serde_json::from_slice(input).unwrap();
        let answer = match (policy, input["attributes"]["country"].as_str()) {
            (0, Some("DE")) if input["attributes"]["app"]["version"] == "2.4.0" => {
                r#"{"value":5.0,"reason":"from Germany"}"#
            }
            (0, None) => r#"{"abstain":true}"#,
            _ => return Err(PolicyFault::Fuel),
        };
        out.extend_from_slice(answer.as_bytes());
        Ok(())
    }
}

/// Contexts and times that reach every rule of the example.
fn questions() -> Vec<(Value, i64)> {
    const FEBRUARY: i64 = 1_769_904_000_000;
    const CHRISTMAS: i64 = 1_798_200_000_000;
    let eu = |key: &str| json!({ "targetingKey": key, "country": "DE", "app.version": "2.4.0" });
    let mut questions = vec![
        (json!({}), FEBRUARY),
        (json!({ "email": "Ada@Example.com" }), FEBRUARY),
        (json!({ "email": "ada@shop.example", "app": { "version": "2.0.0" } }), FEBRUARY),
        (json!({ "targetingKey": "mallory", "country": "DE", "app.version": "2.4.0" }), FEBRUARY),
        (json!({ "country": "DE", "app.version": "2.4.0", "userAgent": "Googlebot" }), CHRISTMAS),
        (json!({ "app.version": "2.4.0", "targetingKey": "x" }), CHRISTMAS),
        (
            json!({ "ip": "10.1.2.3", "signupAt": "2025-05-05T05:05:05Z", "orders": 3,
                    "app.version": "2.9.7", "groups": ["a", "b"] }),
            FEBRUARY,
        ),
    ];
    questions.extend((0..40).map(|n| (eu(&format!("user-{n}")), FEBRUARY)));
    questions.extend(
        (0..40)
            .map(|n| (json!({ "companyId": n, "app.version": "1.0.0", "kind": "bot" }), FEBRUARY)),
    );
    questions
}

fn answers(ruleset: &[u8]) -> Value {
    let evaluator = Evaluator::load(ruleset).unwrap();
    questions()
        .into_iter()
        .map(|(context, now_ms)| {
            let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
            let input = Input { context: context.view(), now_ms, host: &Blocked };
            let mut out = Vec::new();
            write_all(&evaluator, Audience::Server, &input, &mut Scratch::default(), &mut out);
            serde_json::from_slice::<Value>(&out).unwrap()
        })
        .collect()
}

#[test]
fn the_example_environment_compiles_and_uses_every_form() {
    let compiled = compile(&example()).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let rules = &compiled.ruleset;
    let kinds: std::collections::BTreeSet<String> =
        rules.flags.iter().map(|flag| format!("{:?}", flag.kind)).collect();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    let (mut variants, mut reasons) = (std::collections::BTreeSet::new(), Vec::new());
    for answer in answers(&encode_ruleset(rules)).as_array().unwrap() {
        for flag in answer["flags"].as_array().unwrap() {
            variants.insert(format!("{} {}", flag["key"], flag["variant"]));
            reasons.push(flag["reason"].as_str().unwrap_or("ERROR").to_owned());
        }
    }
    for wanted in [
        "\"checkout\" \"express\"",
        "\"checkout\" \"classic\"",
        "\"price-factor\" \"lower\"",
        "\"price-factor\" \"normal\"",
        "\"page-size\" \"large\"",
        "\"theme/größe 🌊\" \"plain\"",
    ] {
        assert!(variants.contains(wanted), "nobody got {wanted}: {variants:?}");
    }
    for wanted in ["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "DISABLED"] {
        assert!(reasons.iter().any(|reason| reason == wanted), "no answer was {wanted}");
    }
}

/// The guide's JSON blocks, each with what its fence says it is.
fn guide_examples() -> Vec<(String, Value)> {
    let guide = text("../docs/RULES.md");
    let mut examples = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```json") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let block = block.join("\n");
        let value = serde_json::from_str(&block).unwrap_or_else(|e| panic!("{e}: {block}"));
        examples.push((kind.trim().to_owned(), value));
    }
    examples
}

/// An environment around one piece of the guide.
fn around(config: FlagConfig, definition: Option<FlagDefinition>) -> EnvironmentState {
    let definition_of = |json: Value| there_and_back::<FlagDefinition>(&json);
    let served = definition_of(json!({ "key": "checkout", "type": "string",
        "variants": { "express": "e", "classic": "c" } }));
    let segment = |key: &str| SegmentState {
        segment: there_and_back::<Segment>(&json!({ "key": key })),
        has_included: true,
        has_excluded: true,
    };
    EnvironmentState {
        flags: vec![
            FlagState { definition: definition.unwrap_or(served), config },
            FlagState {
                definition: definition_of(json!({ "key": "payments-up", "type": "boolean",
                    "variants": { "on": true, "off": false } })),
                config: there_and_back(&json!({ "enabled": true,
                    "fallthrough": { "variant": "on" } })),
            },
        ],
        segments: ["beta", "blocked", "bots", "crawlers"].map(segment).to_vec(),
        policies: vec![PolicyState {
            name: "fraud-guard".to_owned(),
            digest: Digest::of(b"fraud-guard"),
            attributes: vec!["orders".to_owned()],
        }],
        ..EnvironmentState::default()
    }
}

#[test]
fn every_example_of_the_guide_is_what_it_says_and_compiles() {
    let examples = guide_examples();
    assert!(examples.len() >= 12, "only {} examples were found", examples.len());
    let rule = |rule: Value| {
        let config = json!({ "enabled": true, "rules": [rule], "fallthrough": "codeDefault" });
        around(there_and_back(&config), None)
    };
    let plain = || {
        let config = json!({ "enabled": true, "fallthrough": "codeDefault" });
        there_and_back::<FlagConfig>(&config)
    };
    for (kind, value) in examples {
        let state = match kind.as_str() {
            "definition" => around(plain(), Some(there_and_back(&value))),
            "config" => around(there_and_back(&value), None),
            "condition" => {
                there_and_back::<Condition>(&value);
                rule(json!({ "id": "r", "when": value, "serve": { "variant": "express" } }))
            }
            "rule" => rule(value.clone()),
            "serve" => {
                there_and_back::<Serve>(&value);
                rule(json!({ "id": "r", "serve": value }))
            }
            "segment" => {
                let mut state = around(plain(), None);
                let segment = there_and_back::<Segment>(&value);
                state.segments.retain(|known| known.segment.key != segment.key);
                state.segments.push(SegmentState {
                    segment,
                    has_included: false,
                    has_excluded: false,
                });
                state
            }
            other => panic!("a JSON example is of no known kind: {other:?}"),
        };
        if let Err(problems) = compile(&state) {
            panic!("{problems:#?} in {value:#}");
        }
    }
}

#[test]
fn the_guide_names_every_operator() {
    let guide = text("../docs/RULES.md");
    for op in Op::ALL {
        assert!(guide.contains(&format!("`{}`", op.name())), "{} is missing", op.name());
    }
}

#[test]
fn the_guide_tells_the_limits_as_they_are() {
    use rules::limits;
    let guide = text("../docs/RULES.md");
    let thousands = |number: usize| {
        let digits = number.to_string();
        let mut out = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    };
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    for (what, limit) in [
        ("Flags, segments of an environment", format!("{} each", thousands(limits::FLAGS_MAX))),
        ("Rules of a flag or segment", limits::RULES_PER_FLAG_MAX.to_string()),
        ("Clauses of a rule", limits::CLAUSES_PER_RULE_MAX.to_string()),
        ("Values of a clause", thousands(limits::VALUES_PER_CLAUSE_MAX)),
        ("Variants of a flag", limits::VARIANTS_PER_FLAG_MAX.to_string()),
        ("Tags of a flag", limits::TAGS_PER_FLAG_MAX.to_string()),
        ("Arms of a split", limits::ARMS_PER_SPLIT_MAX.to_string()),
        ("Attributes that a split is by", limits::UNITS_PER_SPLIT_MAX.to_string()),
        ("Entries of `allOf`", limits::SHARDS_PER_SPLIT_MAX.to_string()),
        ("Parts of a hash's input", limits::PARTS_PER_HASH_MAX.to_string()),
        ("Ranges of an arm or of an entry of `allOf`", thousands(limits::RANGES_PER_ARM_MAX)),
        ("Sum of the weights of `arms`", thousands(limits::SPLIT_WEIGHTS_MAX as usize)),
        ("Prerequisites of a flag or rule", limits::PREREQUISITES_MAX.to_string()),
        ("Nesting of conditions, trees and object values", limits::NESTING_MAX.to_string()),
        ("Chains of prerequisites, segments in segments", limits::CHAIN_MAX.to_string()),
        (
            "Steps of one condition, with the segments inside it",
            thousands(limits::CONDITION_STEPS_MAX),
        ),
        ("A key", format!("{} bytes", limits::KEY_BYTES_MAX)),
        ("A string, an attribute's path", kib(limits::STRING_BYTES_MAX)),
        ("An object value", kib(limits::VALUE_BYTES_MAX)),
        ("Metadata of a flag or environment, as JSON", kib(limits::METADATA_BYTES_MAX)),
        (
            "A regular expression",
            format!(
                "{} bytes, {} compiled, {} levels",
                limits::REGEX_SOURCE_BYTES_MAX,
                kib(limits::REGEX_COMPILED_BYTES_MAX),
                limits::REGEX_NESTING_MAX
            ),
        ),
        ("A JSONLogic tree", format!("{} nodes", thousands(limits::LOGIC_NODES_MAX))),
        ("Ids of a segment's list", thousands(limits::SEGMENT_IDS_MAX)),
        (
            "The compiled environment",
            format!("{} MiB", limits::SNAPSHOT_BYTES_MAX / 16 * 15 / 1024 / 1024),
        ),
    ] {
        let line = format!("| {what} | {limit} |");
        assert!(guide.contains(&line), "the guide lacks {line:?}");
    }
}

/// Each format's sample, never recorded again once the format exists.
const FORMATS: [u16; 2] = [1, 2];
/// Of blobs, whose manifests changed once more.
const BLOB_FORMATS: [u16; 3] = [1, 2, 3];

fn sample(format: u16, what: &str) -> PathBuf {
    file(&format!("tests/data/{}", what.replace('#', &format.to_string())))
}

const SAMPLE: &str = "ruleset-v#.bin";
const SAMPLE_ANSWERS: &str = "ruleset-v#.answers.json";
const BLOB_SAMPLE: &str = "blob-v#.bin";

/// What a control plane of an earlier format has published, an edge of today must read.
#[test]
fn a_ruleset_that_was_recorded_still_loads_and_answers_the_same() {
    for format in FORMATS {
        let recorded = std::fs::read(sample(format, SAMPLE)).unwrap();
        let expected = std::fs::read_to_string(sample(format, SAMPLE_ANSWERS)).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let got = answers(&recorded);
        for ((question, expected), got) in
            questions().iter().zip(expected.as_array().unwrap()).zip(got.as_array().unwrap())
        {
            assert_eq!(got, expected, "format {format}: {question:?}");
        }
        assert_eq!(expected.as_array().unwrap().len(), questions().len());
    }
}

/// What format 2 has and format 1 has not: a flag that a policy decides.
fn example_of_today() -> EnvironmentState {
    let mut state = example();
    state.flags.push(FlagState {
        definition: there_and_back(&json!({ "key": "guarded", "type": "integer",
            "variants": { "low": 1, "high": 9 } })),
        config: there_and_back(&json!({ "enabled": true,
            "rules": [{ "id": "guard", "policy": { "name": "guard", "params": { "b": 1, "a": [] },
                                                   "fallback": { "variant": "low" } } }],
            "fallthrough": { "variant": "high" } })),
    });
    state.policies.push(PolicyState {
        name: "guard".to_owned(),
        digest: Digest::of(b"guard"),
        attributes: vec!["app.version".to_owned(), "country".to_owned()],
    });
    state
}

fn sample_manifest(format: u16) -> Manifest {
    let key = |id: &str, kind, origins: &[&str]| KeyRecord {
        id: id.to_owned(),
        kind,
        hash: [id.len() as u8; 32],
        origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
    };
    let list = IdList::from_ids(["mallory"]).encode();
    let version = |bytes: &[u8]| PolicyBlob { digest: Digest::of(bytes), bytes: 70_000 };
    Manifest {
        namespace: "shop".to_owned(),
        environment: "größe".to_owned(),
        keys: vec![
            key("b", KeyKind::Browser, &["https://shop.example"]),
            key("server", KeyKind::Server, &[]),
        ],
        stream_secret: [200; 32],
        lists: vec![ListRef { digest: Digest::of(&list), bytes: list.len() as u64, ids: 1 }],
        boundaries_ms: vec![i64::MIN, -1, 1_767_225_600_000],
        flag_count: 5,
        policies: match format {
            1 => Vec::new(),
            _ => vec![PolicyPin {
                name: "guard".to_owned(),
                version: version(b"guard"),
                shadow: Some(Shadow { version: version(b"next"), share: 2_500 }),
            }],
        },
        terms: match format {
            1 | 2 => Vec::new(),
            _ => vec![KeyTerms {
                key: 1,
                expires_at_ms: Some(1_790_000_000_123),
                per_second: NonZeroU32::new(300),
            }],
        },
    }
}

#[test]
fn a_blob_that_was_recorded_is_still_read() {
    for format in BLOB_FORMATS {
        let recorded = std::fs::read(sample(format, BLOB_SAMPLE)).unwrap();
        let (manifest, ruleset) = decode_blob(&recorded).unwrap();
        assert_eq!(manifest, sample_manifest(format));
        assert_eq!(ruleset, std::fs::read(sample(format.min(2), SAMPLE)).unwrap());
    }
}

#[test]
fn a_blob_without_terms_is_still_written_as_older_edges_read_it() {
    let recorded = std::fs::read(sample(2, BLOB_SAMPLE)).unwrap();
    let ruleset = std::fs::read(sample(2, SAMPLE)).unwrap();
    assert_eq!(encode_blob(&sample_manifest(2), &ruleset), recorded);
    assert_eq!((sample_manifest(2).min_reader(), sample_manifest(3).min_reader()), (2, 3));
    // The manifest's frame follows the blob's header: its magic number, its format, what it needs.
    let newer = std::fs::read(sample(3, BLOB_SAMPLE)).unwrap();
    assert_eq!(newer.get(12..20), Some(&b"TGMF\x03\0\x03\0"[..]));
    assert_eq!(recorded.get(12..20), Some(&b"TGMF\x02\0\x02\0"[..]));
}

#[test]
fn terms_of_keys_that_are_not_there_are_refused() {
    let ruleset = std::fs::read(sample(2, SAMPLE)).unwrap();
    let of = |key| KeyTerms { key, expires_at_ms: Some(1), per_second: None };
    for terms in [vec![of(2)], vec![of(1), of(0)], vec![of(0), of(0)], vec![of(u32::MAX)]] {
        let manifest = Manifest { terms, ..sample_manifest(3) };
        assert!(decode_blob(&encode_blob(&manifest, &ruleset)).is_err(), "{:?}", manifest.terms);
    }
    let manifest = sample_manifest(3);
    let terms: Vec<_> = manifest.keys().map(|(key, terms)| (key.id.as_str(), terms)).collect();
    assert_eq!(terms, [("b", None), ("server", manifest.terms.first())]);
}

#[test]
#[ignore = "records the sample of a new format: cargo test -p rules --test authoring -- --ignored"]
fn record_a_sample() {
    let ruleset = encode_ruleset(&compile(&example_of_today()).unwrap().ruleset);
    let lines: Vec<String> =
        answers(&ruleset).as_array().unwrap().iter().map(Value::to_string).collect();
    let [.., last] = FORMATS;
    let recorded = std::fs::read(sample(last, SAMPLE)).unwrap_or_default();
    // A blob's format may be newer than its ruleset's, which then is the recorded one.
    let ruleset = if recorded.is_empty() { ruleset } else { recorded };
    let blob = encode_blob(&sample_manifest(FORMAT), &ruleset);
    std::fs::write(sample(FORMAT, BLOB_SAMPLE), blob).unwrap();
    if !sample(last, SAMPLE_ANSWERS).exists() {
        std::fs::write(sample(last, SAMPLE), ruleset).unwrap();
        let answers = format!("[\n{}\n]\n", lines.join(",\n"));
        std::fs::write(sample(last, SAMPLE_ANSWERS), answers).unwrap();
    }
}
