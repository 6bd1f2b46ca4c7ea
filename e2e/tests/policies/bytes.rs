//! The same policy and the same context give the same bytes in every run, and from everybody who
//! runs one: the CLI, control's dry run, the edge.

use std::path::Path;

use e2e::http::{Admin, until};
use e2e::process::Process;
use e2e::world::{World, workspace};
use serde_json::{Value, json};

use crate::support::{asked, use_policy};

/// The one time that dry runs are asked for, so that two of them have the same input.
const NOW: &str = "2026-01-01T00:00:00Z";

/// The author kits: the text, and those of other languages where they were built.
fn kits() -> Vec<(&'static str, Vec<u8>)> {
    let text = wat::parse_file(workspace().join("policies/wat/policy.wat")).expect("valid text");
    let mut kits = vec![("wat", text)];
    for name in ["rust", "assemblyscript", "c"] {
        let file = workspace().join(format!("target/policies/{name}.wasm"));
        match std::fs::read(&file) {
            Ok(wasm) => kits.push((name, wasm)),
            Err(_) if std::env::var_os("TIDEGATE_TEST_KITS").is_none() => {
                let file = file.display();
                eprintln!("without {file}: `cargo xtask test --only policies` builds it");
            }
            Err(error) => panic!("{}: {error}", file.display()),
        }
    }
    kits
}

fn contexts() -> Vec<Value> {
    let scores = [
        json!(0),
        json!(3),
        json!(4),
        json!(5),
        json!(6),
        json!(7),
        json!(-1),
        json!(1_000_000),
        json!(9_007_199_254_740_991_i64),
        json!(5.5),
        json!(6.0),
        json!("7"),
        json!(true),
        json!(null),
        json!([7]),
        json!({ "max": 0 }),
        json!("größe \"🌊\"\n"),
    ];
    let of = |score: &Value| json!({ "targetingKey": "u-1", "user": { "score": score } });
    let mut contexts: Vec<Value> = scores.iter().map(of).collect();
    contexts.extend([
        json!({}),
        json!({ "targetingKey": "größe \"🌊\"", "user": { "score": 7, "name": "not declared" } }),
        json!({ "targetingKey": 7, "user": "not an object", "note": "\"score\":9" }),
        json!({ "user.score": 7, "user": { "score": 8 } }),
    ]);
    contexts
}

/// The answer of a policy, what it cost and what it logged.
fn said(of: &Value) -> String {
    let log = of["log"].as_str().unwrap_or_default();
    format!("{} {} {log:?}", of["answer"], of["fuel"])
}

async fn dry(admin: &Admin, flag: &str, context: &Value) -> Value {
    let path = format!("{}/evaluate", admin.environment_path());
    let body = json!({ "flag": flag, "context": context, "now": NOW });
    admin.post(&path, &body).await.ok().json()["results"][0].clone()
}

/// Asks until the clock has cut off neither the policy nor its compiler, which is the one thing
/// that may differ.
async fn uncut<F: Future<Output = (String, bool)>>(ask: impl Fn() -> F) -> String {
    let seen = std::cell::RefCell::new(String::new());
    until("an answer that the clock did not cut off", async || {
        let (text, is_cut) = ask().await;
        seen.replace(text.clone());
        if is_cut { Err(text) } else { Ok(()) }
    })
    .await;
    seen.into_inner()
}

/// Its helper has five seconds of the wall's clock, which a busy machine may be too slow for.
async fn cli(module: &Path, vectors: &Path) -> Value {
    const TRIES_MAX: usize = 3;
    let (module, vectors) = (module.to_str().expect("UTF-8"), vectors.to_str().expect("UTF-8"));
    let test = ["policy", "test", module, "--vectors", vectors, "--output", "json"];
    let mut said = String::new();
    for _ in 0..TRIES_MAX {
        let (code, told) = Process::exit(&test, &[]).await;
        if code == 0 {
            // Whatever it said beside the verdict comes after it.
            let mut values = serde_json::Deserializer::from_str(&told).into_iter::<Value>();
            return values.next().expect("a verdict").expect("JSON");
        }
        assert!(told.contains("took longer than"), "{test:?}: {code} {told}");
        said = told;
    }
    panic!("{test:?}, {TRIES_MAX} times: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_runs_a_policy_gets_the_same_bytes_in_every_run() {
    let world = World::start().await;
    let (admin, ofrep) = (&world.admin, world.ofrep());
    let (kits, contexts) = (kits(), contexts());
    for (kit, wasm) in &kits {
        use_policy(admin, kit, wasm).await;
        let definition = json!({ "key": kit, "type": "string",
            "variants": { "direct": "D", "review": "R", "failed": "F" } });
        let config = json!({ "enabled": true, "fallthrough": { "variant": "direct" },
            "rules": [{ "id": "guard", "policy": { "name": kit, "params": { "max": 5 },
                "fallback": { "variant": "failed" } } }] });
        admin.flag(&definition, &config).await;
        ofrep.serves(kit, &json!({ "user": { "score": 7 } }), &json!("R")).await;
    }
    let mut asked_for = 0;
    for (kit, wasm) in &kits {
        let mut traces = Vec::new();
        for context in &contexts {
            let run = || async {
                let result = dry(admin, kit, context).await;
                let fault = asked(&result)["fault"].as_str().unwrap_or_default();
                let is_cut = ["deadline", "unavailable"].contains(&fault);
                (result.to_string(), is_cut)
            };
            let (first, second) = (uncut(run).await, uncut(run).await);
            assert_eq!(first, second, "{kit}: two dry runs of {context}");
            let mut result: Value = serde_json::from_str(&first).expect("JSON");
            traces.push(asked(&result).clone());

            let is_failed = asked(&result)["fault"].is_string();
            let run = || async {
                let text = ofrep.one(kit, context).await.ok().text;
                let is_cut = !is_failed && text.contains(r#""variant":"failed""#);
                (text, is_cut)
            };
            let (first, second) = (uncut(run).await, uncut(run).await);
            assert_eq!(first, second, "{kit}: two answers of the edge to {context}");
            result.as_object_mut().expect("an object").shift_remove("trace");
            assert_eq!(first, result.to_string(), "{kit}: control and the edge of {context}");
        }

        // What the CLI is given is what the dry run says that the policy was given.
        let vector =
            |(n, trace): (usize, &Value)| json!({ "name": n.to_string(), "input": trace["input"] });
        let vectors: Vec<Value> = traces.iter().enumerate().map(vector).collect();
        let module = world.folder().join(format!("{kit}.wasm"));
        let file = world.folder().join(format!("{kit}.json"));
        std::fs::write(&module, wasm).expect("written");
        std::fs::write(&file, json!(vectors).to_string()).expect("written");
        let (first, second) = (cli(&module, &file).await, cli(&module, &file).await);
        let results = |verdict: &Value| {
            let results = verdict["vectors"].as_array().expect("results").clone();
            results.iter().map(said).collect::<Vec<_>>()
        };
        assert_eq!(results(&first), results(&second), "{kit}: two runs of the CLI");
        let of_control: Vec<String> = traces.iter().map(said).collect();
        assert_eq!(results(&first), of_control, "{kit}: the CLI and control");
        asked_for += traces.len();
        // They do not agree by saying nothing.
        for answer in [r#"{"abstain":true}"#, r#""variant":"review""#] {
            let count = of_control.iter().filter(|said| said.contains(answer)).count();
            assert!(count >= 3, "{kit}: {answer} {count} times in {of_control:?}");
        }
    }
    assert!(asked_for >= 20 * kits.len());
    world.stop().await;
}
