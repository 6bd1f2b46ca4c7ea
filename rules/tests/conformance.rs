//! The native run of the conformance corpus, and what the corpus must contain.
//!
//! The data was written from the specification; where it and the evaluator differ, one of them is
//! wrong, and neither may be changed without saying which.

mod corpus;

use std::collections::{BTreeMap, BTreeSet};

use rules::answer::{Audience, write_all};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, NoHost, Scratch};
use rules::model::{Clause, Condition, ConditionDoc, FlagConfig, Op};
use rules::ruleset::{LogicOp, Tier};
use serde_json::{Value, json};

#[test]
fn every_case_answers_as_the_specification_says() {
    let only = std::env::var("TIDEGATE_CASE").ok();
    let mut failures = Vec::new();
    let mut count = 0;
    for (name, document) in corpus::documents() {
        // A file that does not compile hides no other file's result.
        let opened = std::panic::catch_unwind(|| corpus::open(&name, document));
        let Ok(file) = opened else {
            failures.push(format!("{name} cannot be opened, see above"));
            continue;
        };
        let evaluator = Evaluator::load(&file.ruleset).unwrap();
        for case in &file.cases {
            if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                continue;
            }
            count += 1;
            if let Err(why) = run(&file, &evaluator, case) {
                failures.push(format!("{} / {}: {why}", file.name, case.name));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} cases differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn run(file: &corpus::File, evaluator: &Evaluator, case: &corpus::Case) -> Result<(), String> {
    let context = ContextBuf::from_json(&case.context).map_err(|error| error.to_string())?;
    let input = Input { context: context.view(), now_ms: case.now_ms, host: &file.host };
    let mut body = Vec::new();
    let status = rules::answer::write_one(
        evaluator,
        &case.flag,
        case.audience,
        &input,
        &mut Scratch::default(),
        &mut body,
    );
    let text = String::from_utf8(body).map_err(|error| error.to_string())?;
    let mut answer: Value =
        serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}: {text}"))?;
    if case.expect.get("errorCode").is_some()
        && let Some(members) = answer.as_object_mut()
    {
        let details = members.shift_remove("errorDetails");
        if details.as_ref().and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(format!("an error without details: {text}"));
        }
    }
    if answer != case.expect || status as u16 != case.status {
        return Err(format!(
            "\n    context {}\n    expects {} {}\n    answers {} {text}",
            String::from_utf8_lossy(&case.context),
            case.status,
            case.expect,
            status as u16,
        ));
    }
    match &case.text {
        Some(part) if !text.contains(part.as_str()) => Err(format!("no {part} in {text}")),
        _ => Ok(()),
    }
}

#[test]
fn a_bulk_answer_is_the_single_answers_in_key_order() {
    for file in corpus::load() {
        let evaluator = Evaluator::load(&file.ruleset).unwrap();
        let mut keys: Vec<&str> =
            file.state.flags.iter().map(|flag| flag.definition.key.as_str()).collect();
        keys.sort_unstable();
        let mut seen = BTreeSet::new();
        for case in &file.cases {
            if !seen.insert((case.context.clone(), case.now_ms, case.audience as u8)) {
                continue;
            }
            let context = ContextBuf::from_json(&case.context).unwrap();
            let input = Input { context: context.view(), now_ms: case.now_ms, host: &file.host };
            let mut scratch = Scratch::default();
            let mut bulk = Vec::new();
            rules::answer::write_all(&evaluator, case.audience, &input, &mut scratch, &mut bulk);
            let bulk: Value = serde_json::from_slice(&bulk).unwrap();
            let mut singles = Vec::new();
            for key in &keys {
                let mut one = Vec::new();
                let status = rules::answer::write_one(
                    &evaluator,
                    key,
                    case.audience,
                    &input,
                    &mut scratch,
                    &mut one,
                );
                // To this audience a flag that is not found does not exist in bulk either.
                if status as u16 != 404 {
                    singles.push(serde_json::from_slice::<Value>(&one).unwrap());
                }
            }
            assert_eq!(bulk["flags"], json!(singles), "{} / {}", file.name, case.name);
            assert!(bulk["metadata"].is_object(), "{} / {}", file.name, case.name);
        }
    }
}

#[test]
fn the_corpus_has_no_fewer_cases_than_it_had_each_with_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    let mut count = 0;
    for (file, document) in corpus::documents() {
        for case in document["cases"].as_array().unwrap() {
            count += 1;
            assert!(case["expect"].is_object(), "{file}: {}", case["name"]);
            let name = case["name"].as_str().unwrap().to_owned();
            assert!(names.insert((file.clone(), name)), "{file} has two {}", case["name"]);
        }
    }
    // A little below what there were when this was written, so that none go missing unseen.
    assert!(count >= 1_900, "{count} cases");
}

/// The situations in which operators differ between vendors.
const SITUATIONS: [&str; 8] = [
    "match",
    "no match",
    "missing",
    "missing negated",
    "wrong type",
    "negated",
    "array",
    "empty array",
];

#[test]
fn every_operator_meets_missing_wrong_typed_negated_and_array_attributes() {
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, document) in corpus::documents() {
        for case in document["cases"].as_array().unwrap() {
            let config = &document["state"]["flags"][case["flag"].as_str().unwrap()]["config"];
            let Some(clause) = only_clause(config) else { continue };
            let matched = case["expect"]["reason"] == "TARGETING_MATCH";
            let situations = seen.entry(clause.op.name()).or_default();
            match case["context"].get(&clause.attr) {
                None if clause.negate => drop(situations.insert("missing negated")),
                None => drop(situations.insert("missing")),
                Some(attribute) => {
                    if clause.negate {
                        situations.insert("negated");
                    } else {
                        situations.insert(if matched { "match" } else { "no match" });
                    }
                    match attribute {
                        Value::Array(items) if items.is_empty() => {
                            situations.insert("empty array");
                        }
                        Value::Array(_) => drop(situations.insert("array")),
                        scalar if wrong_type(&clause, scalar) => {
                            situations.insert("wrong type");
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let mut missing = Vec::new();
    for op in Op::ALL {
        let have = seen.remove(op.name()).unwrap_or_default();
        for situation in SITUATIONS {
            if !have.contains(situation) {
                missing.push(format!("{}: {situation}", op.name()));
            }
        }
    }
    assert!(missing.is_empty(), "the corpus lacks:\n{}", missing.join("\n"));
}

/// The clause of a configuration whose only decision it is.
fn only_clause(config: &Value) -> Option<Clause> {
    let config: FlagConfig = serde_json::from_value(config.clone()).ok()?;
    match config.rules.as_slice() {
        [rule] => match rule.when.clone() {
            Some(Condition::Clause(clause)) => Some(clause),
            _ => None,
        },
        _ => None,
    }
}

fn wrong_type(clause: &Clause, attribute: &Value) -> bool {
    let kind = std::mem::discriminant::<Value>;
    match clause.op {
        Op::Eq | Op::In => clause.values.iter().all(|value| kind(value) != kind(attribute)),
        Op::StartsWith | Op::EndsWith | Op::Contains | Op::Matches | Op::Cidr => {
            !attribute.is_string()
        }
        Op::SemverEq
        | Op::SemverLt
        | Op::SemverLte
        | Op::SemverGt
        | Op::SemverGte
        | Op::SemverRange => !attribute.is_string(),
        Op::Lt | Op::Lte | Op::Gt | Op::Gte => !attribute.is_number(),
        Op::Before | Op::After => !attribute.is_string() && !attribute.is_number(),
        Op::Size => !attribute.is_array(),
        // Any type will do; what others treat as falsy or absent stands for the wrong type.
        Op::Exists | Op::IsNull | Op::TypeIs => {
            *attribute == json!(false) || *attribute == json!(0) || *attribute == json!("")
        }
    }
}

/// What an argument of a JSONLogic operator may be beside what the operator is for.
const ARGUMENTS: [&str; 3] = ["missing", "wrong type", "array"];

#[test]
fn every_logic_operator_meets_missing_wrong_typed_and_array_arguments() {
    let mut seen: BTreeSet<(String, &str)> = BTreeSet::new();
    for (_, document) in corpus::documents() {
        for case in document["cases"].as_array().unwrap() {
            let key = case["flag"].as_str().unwrap();
            let mut trees = vec![&document["flagd"]["flags"][key]["targeting"]];
            logic_of(&document["state"]["flags"][key]["config"]["rules"], &mut trees);
            for tree in trees {
                meet(tree, &case["context"], false, &mut seen);
            }
        }
    }
    let names = LogicOp::names();
    let wanted = names.split(", ").flat_map(|name| ARGUMENTS.map(|kind| (name.to_owned(), kind)));
    let lacking: Vec<String> = wanted
        .filter(|wanted| !seen.contains(wanted))
        .map(|(name, kind)| format!("{name}: {kind}"))
        .collect();
    assert!(lacking.is_empty(), "the corpus lacks:\n{}", lacking.join("\n"));
}

/// The trees of rules and of conditions below `node`.
fn logic_of<'v>(node: &'v Value, into: &mut Vec<&'v Value>) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| logic_of(item, into)),
        Value::Object(entries) => {
            for (name, value) in entries {
                match name.as_str() {
                    "logic" => into.push(value.get("tree").unwrap_or(value)),
                    _ => logic_of(value, into),
                }
            }
        }
        _ => {}
    }
}

/// Notes what each operation of a tree gets in a context. `inside` of a loop, `var` reads its elements.
fn meet(node: &Value, context: &Value, inside: bool, seen: &mut BTreeSet<(String, &'static str)>) {
    if let Value::Array(items) = node {
        items.iter().for_each(|item| meet(item, context, inside, seen));
    }
    let Value::Object(entries) = node else { return };
    for (name, args) in entries {
        let Some(op) = LogicOp::named(name) else { continue };
        let args = args.as_array().map_or(std::slice::from_ref(args), Vec::as_slice);
        let known: Vec<Option<&Value>> =
            args.iter().map(|arg| value_of(arg, context, inside)).collect();
        for (place, value) in known.iter().enumerate() {
            let Some(value) = value else { continue };
            let others = known.iter().flatten().copied();
            let kind = match value {
                Value::Null => Some("missing"),
                Value::Array(_) => Some("array"),
                _ => None,
            };
            let wrong = is_wrong_type(op, place, value, others).then_some("wrong type");
            seen.extend(kind.into_iter().chain(wrong).map(|kind| (name.clone(), kind)));
        }
        let loops = matches!(
            op,
            LogicOp::Map
                | LogicOp::Filter
                | LogicOp::All
                | LogicOp::None
                | LogicOp::Some
                | LogicOp::Reduce
        );
        for (place, arg) in args.iter().enumerate() {
            meet(arg, context, inside || (loops && place == 1), seen);
        }
    }
}

/// What an argument is, if that can be told without evaluating: itself, or what it reads of the context.
fn value_of<'v>(arg: &'v Value, context: &'v Value, inside: bool) -> Option<&'v Value> {
    let Value::Object(operation) = arg else { return Some(arg) };
    let path = match operation.get("var")? {
        Value::String(path) if !path.is_empty() => path,
        Value::Array(one) if one.len() == 1 => one[0].as_str()?,
        _ => return None,
    };
    if inside || path.starts_with("$flagd") {
        return None;
    }
    let nested = || context.pointer(&format!("/{}", path.replace('.', "/")));
    Some(context.get(path).or_else(nested).unwrap_or(&Value::Null))
}

fn is_wrong_type<'v>(
    op: LogicOp,
    place: usize,
    value: &Value,
    mut all: impl Iterator<Item = &'v Value>,
) -> bool {
    let kind = std::mem::discriminant::<Value>;
    match op {
        _ if value.is_null() => false,
        LogicOp::MissingSome if place == 0 => !value.is_number(),
        LogicOp::MissingSome | LogicOp::Merge => !value.is_array(),
        LogicOp::Map
        | LogicOp::Filter
        | LogicOp::All
        | LogicOp::None
        | LogicOp::Some
        | LogicOp::Reduce => place == 0 && !value.is_array(),
        _ if value.is_array() => false,
        LogicOp::Var | LogicOp::Missing => !value.is_string() && !value.is_number(),
        // Any type will do; what is no boolean, or no text, stands for the wrong one.
        LogicOp::If | LogicOp::Not | LogicOp::Truthy | LogicOp::Or | LogicOp::And => {
            !value.is_boolean()
        }
        LogicOp::Cat | LogicOp::Log => !value.is_string() && !value.is_number(),
        LogicOp::Eq | LogicOp::StrictEq | LogicOp::Ne | LogicOp::StrictNe => {
            all.any(|other| !other.is_null() && !other.is_array() && kind(other) != kind(value))
        }
        LogicOp::Gt
        | LogicOp::Gte
        | LogicOp::Lt
        | LogicOp::Lte
        | LogicOp::Max
        | LogicOp::Min
        | LogicOp::Add
        | LogicOp::Subtract
        | LogicOp::Multiply
        | LogicOp::Divide
        | LogicOp::Remainder => !value.is_number(),
        LogicOp::In => place == 1 && !value.is_string(),
        LogicOp::Substr if place > 0 => !value.is_number(),
        LogicOp::Fractional => place == 0 && !value.is_string(),
        LogicOp::Substr | LogicOp::SemVer | LogicOp::StartsWith | LogicOp::EndsWith => {
            !value.is_string()
        }
    }
}

#[test]
fn a_condition_is_written_back_as_it_was_read() {
    for (file, document) in corpus::documents() {
        for (key, flag) in document["state"]["flags"].as_object().into_iter().flatten() {
            let config: FlagConfig = serde_json::from_value(flag["config"].clone())
                .unwrap_or_else(|error| panic!("{file}, {key}: {error}"));
            for rule in &config.rules {
                let Some(when) = &rule.when else { continue };
                let written = serde_json::to_value(ConditionDoc::from(when.clone())).unwrap();
                let read: Condition = serde_json::from_value(written.clone()).unwrap();
                assert_eq!(read, *when, "{file}, {key}: {written}");
            }
        }
    }
}

/// The core believes what a ruleset's indices say, and must not fall over them.
#[test]
fn a_core_ruleset_that_nobody_checked_answers_whatever_is_flipped_in_it() {
    let (mut read, mut answered) = (0, 0);
    for file in corpus::load() {
        let ruleset = rules::blob::decode_unchecked(&file.ruleset).unwrap();
        if ruleset.tier() == Tier::Full {
            continue;
        }
        let contexts: Vec<ContextBuf> = file
            .cases
            .iter()
            .step_by(file.cases.len().div_ceil(3))
            .filter_map(|case| ContextBuf::from_json(&case.context).ok())
            .collect();
        let body = 12..file.ruleset.len() - 8;
        // The text pool comes first and is long; what follows it are the arenas.
        for at in body.clone().skip(ruleset.text.len() * 9 / 10) {
            for flip in [0x01, 0x08, 0x40, 0xff] {
                let mut bytes = file.ruleset.clone();
                bytes[at] ^= flip;
                let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..body.end]);
                bytes[body.end..].copy_from_slice(&checksum.to_le_bytes());
                let Ok(ruleset) = rules::blob::decode_unchecked(&bytes) else { continue };
                read += 1;
                if ruleset.tier() == Tier::Full {
                    continue;
                }
                let evaluator = Evaluator::new(ruleset).unwrap();
                for context in &contexts {
                    let input =
                        Input { context: context.view(), now_ms: 1_767_300_000_000, host: &NoHost };
                    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
                    write_all(&evaluator, Audience::Server, &input, &mut scratch, &mut out);
                    answered += 1;
                }
            }
        }
    }
    assert!(read > 1_000 && answered > 1_000, "{read} read, {answered} answered");
}
