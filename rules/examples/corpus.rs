//! Writes the conformance corpus for hosts that are not Rust: `cargo run -p rules --example corpus
//! FOLDER` makes one JSON file for each corpus file, with the compiled ruleset, the contexts and
//! the bytes that the native evaluator answers. `sdk-wasm/tests/node/parity.mjs` reads them.
//! `corpus --contexts` instead reads a context's JSON from each line of standard input and writes its
//! compact form in hexadecimal digits, or `error: …`.

#[path = "../tests/corpus/mod.rs"]
mod corpus;

use std::collections::HashSet;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rules::answer::{Audience, write_all, write_one};
use rules::compile::{EnvironmentState, FlagState, SegmentState, compile};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use rules::ruleset::{Ruleset, Tier};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("say which folder to write to")?;
    if folder == "--contexts" {
        return contexts();
    }
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    for file in corpus::load() {
        write(&folder, &file)?;
        if let Some(part) = core_part(&file) {
            write(&folder, &part)?;
        }
    }
    Ok(())
}

fn write(folder: &Path, file: &corpus::File) -> Result<(), Box<dyn std::error::Error>> {
    let evaluator = Evaluator::load(&file.ruleset)?;
    let cases: Vec<Value> =
        file.cases.iter().filter_map(|case| answered(&evaluator, file, case)).collect();
    let document = json!({
        "file": file.name,
        "tier": evaluator.rules().tier().name(),
        "ruleset": BASE64.encode(&file.ruleset),
        "lists": file.host.ids().map(sorted).collect::<Vec<_>>(),
        "policies": file.host.policies().iter().map(played).collect::<Vec<_>>(),
        "cases": cases,
    });
    Ok(std::fs::write(folder.join(format!("{}.json", file.name)), document.to_string())?)
}

/// Of a file that as a whole needs the full tier, the flags that alone do not, as a file of its own;
/// the core would see nothing of most files otherwise. What such a flag misses of the others, its
/// prerequisites among them, is an answer like any other: the native one to this same ruleset.
fn core_part(file: &corpus::File) -> Option<corpus::File> {
    let compiled = |flags: Vec<FlagState>, segments: Vec<SegmentState>| {
        let state =
            EnvironmentState { flags, segments, policies: Vec::new(), ..file.state.clone() };
        Some((compile(&state).ok()?.ruleset, state))
    };
    let is_core = |(ruleset, _): (Ruleset, EnvironmentState)| ruleset.tier() == Tier::Core;
    let (whole, _) = compiled(file.state.flags.clone(), file.state.segments.clone())?;
    if whole.tier() == Tier::Core {
        return None;
    }
    let segments: Vec<SegmentState> = file
        .state
        .segments
        .iter()
        .filter(|segment| compiled(Vec::new(), vec![(*segment).clone()]).is_some_and(is_core))
        .cloned()
        .collect();
    let alone = |flag: &&FlagState| compiled(vec![(*flag).clone()], segments.clone());
    let flags = file.state.flags.iter();
    let flags: Vec<FlagState> =
        flags.filter(|flag| alone(flag).is_some_and(is_core)).cloned().collect();
    let keys: HashSet<String> = flags.iter().map(|flag| flag.definition.key.clone()).collect();
    let (ruleset, state) = compiled(flags, segments)?;
    let cases = file.cases.iter().filter(|case| keys.contains(&case.flag)).cloned();
    let cases: Vec<corpus::Case> = cases.collect();
    (!cases.is_empty()).then(|| corpus::File {
        name: format!("{}.core", file.name),
        ruleset: rules::blob::encode_ruleset(&ruleset),
        state,
        host: corpus::Played::default(),
        cases,
        document: Value::Null,
    })
}

fn contexts() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        match ContextBuf::from_json(line?.as_bytes()) {
            Ok(context) => {
                for byte in context.as_bytes() {
                    write!(out, "{byte:02x}")?;
                }
                writeln!(out)?;
            }
            Err(error) => writeln!(out, "error: {error}")?,
        }
    }
    Ok(out.flush()?)
}

fn played(policy: &corpus::Policy) -> Value {
    let (answer, fault) = match &policy.answer {
        Ok(answer) => (Some(answer), None),
        Err(fault) => (None, Some(fault.code())),
    };
    json!({ "input": policy.input, "answer": answer, "fault": fault })
}

/// The same files each time.
fn sorted(ids: &HashSet<String>) -> Vec<&String> {
    let mut ids: Vec<&String> = ids.iter().collect();
    ids.sort_unstable();
    ids
}

/// None where the context cannot be decoded: it never reaches an evaluator.
fn answered(evaluator: &Evaluator, file: &corpus::File, case: &corpus::Case) -> Option<Value> {
    let context = ContextBuf::from_json(&case.context).ok()?;
    let input = Input { context: context.view(), now_ms: case.now_ms, host: &file.host };
    let (mut scratch, mut one, mut all) = (Scratch::default(), Vec::new(), Vec::new());
    let status = write_one(evaluator, &case.flag, case.audience, &input, &mut scratch, &mut one);
    write_all(evaluator, case.audience, &input, &mut scratch, &mut all);
    Some(json!({
        "name": case.name,
        "flag": case.flag,
        "json": BASE64.encode(&case.context),
        "compact": BASE64.encode(context.as_bytes()),
        "nowMs": case.now_ms.to_string(),
        "browser": case.audience == Audience::Browser,
        "status": status as u16,
        "one": BASE64.encode(&one),
        "all": BASE64.encode(&all),
    }))
}
