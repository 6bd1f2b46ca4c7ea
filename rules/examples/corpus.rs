//! Writes the conformance corpus for hosts that are not Rust: `cargo run -p rules --example corpus
//! FOLDER` makes one JSON file for each corpus file, with the compiled ruleset, the contexts and
//! the bytes that the native evaluator answers. `sdk-wasm/tests/node/parity.mjs` reads them.
//! `corpus --contexts` instead reads a context's JSON from each line of standard input and writes its
//! compact form in hexadecimal digits, or `error: …`.

#[path = "../tests/corpus/mod.rs"]
mod corpus;

use std::collections::HashSet;
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rules::answer::{Audience, write_all, write_one};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("say which folder to write to")?;
    if folder == "--contexts" {
        return contexts();
    }
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    for file in corpus::load() {
        let evaluator = Evaluator::load(&file.ruleset)?;
        let cases: Vec<Value> =
            file.cases.iter().filter_map(|case| answered(&evaluator, &file, case)).collect();
        let document = json!({
            "file": file.name,
            "ruleset": BASE64.encode(&file.ruleset),
            "lists": file.host.ids().map(sorted).collect::<Vec<_>>(),
            "policies": file.host.policies().iter().map(played).collect::<Vec<_>>(),
            "cases": cases,
        });
        std::fs::write(folder.join(format!("{}.json", file.name)), document.to_string())?;
    }
    Ok(())
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
