//! Whether a policy is admitted: its shape, what it says about itself, and the author's test
//! vectors, each run twice under the budget of production. Runs in the helper process.
//!
//! A vector's input is the ABI's document; what it leaves out is filled in, and attributes that the
//! policy does not declare are taken out, as an edge would.

use std::time::Instant;

use rules::blob::Digest;
use rules::limits::{POLICY_ATTRIBUTE_BYTES_MAX, POLICY_ATTRIBUTES_MAX, POLICY_VECTORS_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wasmtime::Module;

use super::answer::{self, Wanted};
use super::run::{Called, Fault, Policy, PolicyEngine};
use super::shape::{Refused, check};
use crate::chain;

/// A run that only the machine's load stopped is tried again, since admission must not depend on it.
/// Nothing that a module does reaches the deadline before it runs out of fuel on a free machine.
const DEADLINE_TRIES: u32 = 20;
/// What is run when the author gave nothing: shows the fuel and whether two runs agree.
const NOTHING_GIVEN: &str = "(no vectors: an empty context)";

/// One case of the author's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    pub name: String,
    /// The ABI's input; fields that are left out get defaults.
    #[serde(default)]
    pub input: Value,
    /// The answer, compared as JSON; without it any answer will do that the flag accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VectorResult {
    pub name: String,
    pub passed: bool,
    pub fuel: u64,
    pub took_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

/// What is stored with a version and shown to its author.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub admitted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// Dotted paths that the policy reads; no others are given to it.
    pub attributes: Vec<String>,
    pub compile_ms: u64,
    pub code_bytes: u64,
    /// Of memory, that admission took at its height; nothing where the system does not say.
    #[serde(default)]
    pub peak_bytes: u64,
    pub vectors: Vec<VectorResult>,
    /// The engine that it was admitted with.
    pub engine: String,
}

impl Verdict {
    pub(crate) fn refused(refused: Refused) -> Verdict {
        Verdict { refused: Some(refused), ..Verdict::default() }
    }
}

/// Everything but the process around it.
pub(crate) fn admit(
    engine: &std::sync::Arc<PolicyEngine>,
    wasm: &[u8],
    vectors: &[Vector],
) -> Verdict {
    let mut verdict =
        Verdict { engine: crate::cache::engine_name(&engine.engine), ..Verdict::default() };
    match run(engine, wasm, vectors, &mut verdict) {
        Ok(()) => verdict.admitted = true,
        Err(refused) => verdict.refused = Some(refused),
    }
    verdict
}

/// The module without what only tools read.
pub(crate) fn compile(engine: &PolicyEngine, wasm: &[u8]) -> Result<Module, Refused> {
    check(wasm)?;
    let stripped = strip(wasm);
    Module::new(&engine.engine, stripped)
        .map_err(|error| Refused::new("compile", shortened(&chain(&error))))
}

fn run(
    engine: &std::sync::Arc<PolicyEngine>,
    wasm: &[u8],
    vectors: &[Vector],
    verdict: &mut Verdict,
) -> Result<(), Refused> {
    if vectors.len() > POLICY_VECTORS_MAX {
        let what = format!("{} test vectors; {POLICY_VECTORS_MAX} are allowed", vectors.len());
        return Err(Refused::new("vectors", what));
    }
    let started = Instant::now();
    let module = compile(engine, wasm)?;
    verdict.compile_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let image = module.image_range();
    verdict.code_bytes = (image.end as usize).saturating_sub(image.start as usize) as u64;
    let unlinked = |error: wasmtime::Error| Refused::new("link", shortened(&chain(&error)));
    let policy = engine.policy(&module, Digest::of(wasm)).map_err(unlinked)?;
    let version = patiently(|| policy.abi()).outcome;
    let version = version.map_err(|fault| Refused::new("abi", format!("tidegate_abi: {fault}")))?;
    let version = version.first_chunk().map_or(0, |four| u32::from_le_bytes(*four));
    if version != 1 {
        return Err(Refused::new("abi", format!("it speaks ABI {version}, this house speaks 1")));
    }
    verdict.attributes = describe(&policy)?;
    let nothing_given =
        [Vector { name: NOTHING_GIVEN.to_owned(), input: Value::Null, expect: None }];
    let given = if vectors.is_empty() { &nothing_given[..] } else { vectors };
    for vector in given {
        let (result, agrees) = vector_twice(&policy, vector, &verdict.attributes)?;
        verdict.vectors.push(result);
        if !agrees {
            let what = format!("two runs of {:?} gave different bytes", shortened(&vector.name));
            return Err(Refused::new("nondeterministic", what));
        }
    }
    let failed = verdict.vectors.iter().find(|result| !result.passed);
    match failed {
        // Nobody said what it should do with an empty context; its fault is shown, not held
        // against it.
        Some(result) if !vectors.is_empty() => {
            let why = result.fault.as_deref().unwrap_or("it did not pass");
            Err(Refused::new("vectors", format!("{:?}: {why}", shortened(&result.name))))
        }
        _ => Ok(()),
    }
}

fn describe(policy: &Policy) -> Result<Vec<String>, Refused> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Described {
        attributes: Vec<String>,
    }
    let refused = |what: String| Refused::new("describe", format!("tidegate_describe: {what}"));
    let (first, second) = (patiently(|| policy.describe()), patiently(|| policy.describe()));
    let text = first.outcome.map_err(|fault| refused(fault.to_string()))?;
    if second.outcome.as_ref() != Ok(&text) {
        return Err(Refused::new("nondeterministic", "two runs of tidegate_describe differ"));
    }
    let described: Described =
        serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
    let attributes = described.attributes;
    if attributes.len() > POLICY_ATTRIBUTES_MAX {
        let (found, allowed) = (attributes.len(), POLICY_ATTRIBUTES_MAX);
        return Err(refused(format!("{found} attributes; {allowed} are allowed")));
    }
    for (index, path) in attributes.iter().enumerate() {
        if path.len() > POLICY_ATTRIBUTE_BYTES_MAX {
            let (found, allowed) = (path.len(), POLICY_ATTRIBUTE_BYTES_MAX);
            return Err(refused(format!("a path of {found} bytes; {allowed} are allowed")));
        }
        if path.split('.').any(str::is_empty) || path.chars().any(char::is_control) {
            return Err(refused(format!("{path:?} is not a dotted path")));
        }
        if attributes.iter().take(index).any(|other| other == path) {
            return Err(refused(format!("{path:?} is named twice")));
        }
    }
    Ok(attributes)
}

fn vector_twice(
    policy: &Policy,
    vector: &Vector,
    attributes: &[String],
) -> Result<(VectorResult, bool), Refused> {
    let input = completed(&vector.input, attributes).map_err(|what| {
        Refused::new("vectors", format!("{:?}: {what}", shortened(&vector.name)))
    })?;
    let bytes = input.to_string().into_bytes();
    let (first, second) = (patiently(|| policy.call(&bytes)), patiently(|| policy.call(&bytes)));
    // What only the clock stopped says nothing about the two runs; it is shown as the fault it is.
    let stopped = |called: &Called| called.outcome == Err(Fault::Deadline);
    let agrees = stopped(&first)
        || stopped(&second)
        || first.outcome == second.outcome && first.log == second.log && first.fuel == second.fuel;
    let mut result = VectorResult {
        name: vector.name.clone(),
        passed: false,
        fuel: first.fuel,
        took_us: u64::try_from(first.took.as_micros()).unwrap_or(u64::MAX),
        answer: None,
        fault: None,
        log: first.log,
    };
    match first.outcome {
        Err(fault) => result.fault = Some(fault.to_string()),
        Ok(bytes) => match answer::check(&bytes, &Wanted::of(&input)) {
            Err(what) => result.fault = Some(Fault::Output(what).to_string()),
            Ok(answer) => {
                match &vector.expect {
                    Some(expected) if *expected != answer => {
                        result.fault =
                            Some(format!("it answered {answer}, expected was {expected}"));
                    }
                    _ => result.passed = true,
                }
                result.answer = Some(answer);
            }
        },
    }
    Ok((result, agrees))
}

fn patiently(run: impl Fn() -> Called) -> Called {
    let mut called = run();
    for _ in 1..DEADLINE_TRIES {
        if called.outcome != Err(Fault::Deadline) {
            break;
        }
        called = run();
    }
    called
}

/// The ABI's document with what the vector leaves out.
fn completed(given: &Value, attributes: &[String]) -> Result<Value, String> {
    let nothing = Map::new();
    let given = match given {
        Value::Null => &nothing,
        Value::Object(fields) => fields,
        _ => return Err("its input is not a JSON object".to_owned()),
    };
    let default = |field: &str| match field {
        "flag" => json!("example"),
        "type" => json!("boolean"),
        "variants" => json!(["on", "off"]),
        "now" => json!(1_760_000_000_000_i64),
        "attributes" => json!({}),
        _ => Value::Null,
    };
    let mut input = Map::new();
    for field in ["flag", "type", "variants", "targetingKey", "attributes", "params", "now"] {
        let value = given.get(field).cloned().unwrap_or_else(|| default(field));
        match field {
            "targetingKey" if value.is_null() => {}
            "attributes" => {
                let mut read = Value::Object(Map::new());
                for path in attributes {
                    copy(&value, &mut read, path);
                }
                input.insert(field.to_owned(), read);
            }
            _ => {
                input.insert(field.to_owned(), value);
            }
        }
    }
    if let Some(unknown) =
        given.keys().find(|field| !input.contains_key(*field) && *field != "targetingKey")
    {
        return Err(format!("its input has an unknown field {unknown:?}"));
    }
    Ok(Value::Object(input))
}

/// One dotted path, nested as in the context.
fn copy(from: &Value, to: &mut Value, path: &str) {
    let Some(found) = path.split('.').try_fold(from, |at, step| at.get(step)) else { return };
    let mut place = to;
    for step in path.split('.') {
        let Value::Object(fields) = place else { return };
        place = fields.entry(step).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = found.clone();
}

/// A message that quotes what a stranger wrote.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Cuts off custom sections: names and debugging information, which nobody here reads. Only called
/// with what `check` has read, so a surprise means that the rest is kept as it is.
fn strip(wasm: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(wasm.len());
    let (head, mut rest) = wasm.split_at_checked(8).unwrap_or((wasm, &[]));
    kept.extend_from_slice(head);
    while let Some(section) = section(rest) {
        let (whole, after) = rest.split_at(section.bytes);
        if !section.is_custom {
            kept.extend_from_slice(whole);
        }
        rest = after;
    }
    kept.extend_from_slice(rest);
    kept
}

struct Section {
    is_custom: bool,
    bytes: usize,
}

fn section(bytes: &[u8]) -> Option<Section> {
    let (id, rest) = bytes.split_first()?;
    let (mut len, mut shift, mut read) = (0u64, 0u32, 0usize);
    loop {
        let byte = *rest.get(read)?;
        len |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift = shift.checked_add(7)?;
        read = read.checked_add(1)?;
        if byte & 0x80 == 0 {
            break;
        }
        if read > 5 {
            return None;
        }
    }
    let bytes_all = usize::try_from(len).ok()?.checked_add(read)?.checked_add(1)?;
    (bytes_all <= bytes.len()).then_some(Section { is_custom: *id == 0, bytes: bytes_all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_given_what_it_leaves_out_and_not_what_the_policy_does_not_read() {
        let given = json!({
            "flag": "checkout",
            "attributes": { "country": "DE", "user": { "score": 3, "name": "x" }, "secret": 1 },
            "params": { "max": 3 },
        });
        let reads = ["user.score".to_owned(), "plan".to_owned()];
        assert_eq!(
            completed(&given, &reads).unwrap().to_string(),
            r#"{"flag":"checkout","type":"boolean","variants":["on","off"],"attributes":{"user":{"score":3}},"params":{"max":3},"now":1760000000000}"#
        );
        assert!(completed(&json!({ "falg": "x" }), &reads).unwrap_err().contains("falg"));
        assert!(completed(&json!([]), &reads).is_err());
    }

    #[test]
    fn stripping_takes_custom_sections_and_nothing_else() {
        let module = wat::parse_str(r#"(module $name (func $f (export "f")) (@custom "x" "yz"))"#);
        let module = module.unwrap();
        let bare = wat::parse_str(r#"(module (func (export "f")))"#).unwrap();
        // The unnamed text gives no name section, the other one two custom sections.
        assert_eq!(strip(&module), strip(&bare));
        assert!(strip(&module).len() < module.len());
        for end in 0..module.len() {
            // Whatever is cut short is carried along, never lost by surprise.
            assert!(strip(&module[..end]).len() <= end);
        }
    }
}
