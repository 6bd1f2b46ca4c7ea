//! schemathesis against every operation of the OpenAPI document, as every kind of caller: no 5xx, no
//! answer that the document does not describe, and no byte of another tenant.
//!
//! Short in a test run; `TIDEGATE_SCHEMATHESIS_EXAMPLES=60` and more for a long one (docs/FAULTS.md).

use std::process::Stdio;

use e2e::http::Admin;
use e2e::world::{World, workspace};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Cases for each operation and caller, of each of the phases.
const EXAMPLES: u32 = 4;
/// In all that the other tenant has, and nowhere else.
const CANARY: &str = "zqcanary";

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,nothing_of_another_tenant";

struct Caller {
    name: &'static str,
    bearer: Option<String>,
    /// Operators see every tenant.
    sees_all: bool,
}

/// Two tenants with something in everything; what can be named of the first.
async fn furnish(admin: &Admin) -> Value {
    let mut keys = Vec::new();
    for (namespace, mark) in [("ours", ""), ("theirs", CANARY)] {
        let base = format!("/api/v1/namespaces/{namespace}");
        let named = |key: &str| json!({ "key": key, "name": mark });
        admin.post("/api/v1/namespaces", &named(namespace)).await.ok();
        admin.post(&format!("{base}/environments"), &named("production")).await.ok();
        admin.post(&format!("{base}/environments"), &named("staging")).await.ok();
        for key in ["banner", "checkout"] {
            let key = format!("{mark}{key}");
            let flag = json!({ "key": key, "type": "string", "description": mark,
                "variants": { "on": format!("{mark}on"), "off": "off" } });
            admin.post(&format!("{base}/flags"), &flag).await.ok();
            let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
            let path = format!("{base}/environments/production/flags/{key}");
            admin.put(&path, &config).await.ok();
        }
        let segment = json!({ "key": format!("{mark}vip"), "name": mark, "rules": [] });
        admin.post(&format!("{base}/environments/production/segments"), &segment).await;
        let key = json!({ "kind": "server", "name": mark });
        let path = format!("{base}/environments/production/keys");
        keys.push(admin.post(&path, &key).await.ok().json()["id"].clone());
    }
    let digest = "0".repeat(64);
    json!({ "namespace": ["ours", "ours", "ours", "theirs"], "environment": ["production", "staging"],
        "flag": ["banner", "checkout"], "segment": ["vip"], "list": ["included", "excluded"],
        "policy": ["guard"], "digest": [digest], "id": [keys[0]], "version": [1, 2] })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_keeps_to_its_document_for_every_kind_of_caller() {
    let program = workspace().join(".venv/bin/schemathesis");
    assert!(
        program.exists(),
        "schemathesis is not installed: run `cargo xtask test` (or make .venv with \
         e2e/interop/schemathesis/requirements.txt)"
    );
    let examples = std::env::var("TIDEGATE_SCHEMATHESIS_EXAMPLES")
        .map_or(EXAMPLES, |text| text.parse().expect("a number"));
    let world = World::start().await;
    let known = furnish(&world.admin).await;
    let mut requests = 0;
    for caller in callers(&world).await {
        requests += run(&world, &program, &caller, &known, examples).await;
    }
    println!("{requests} requests in all");
    world.stop().await;
}

async fn callers(world: &World) -> Vec<Caller> {
    let of = |name, bearer, sees_all| Caller { name, bearer, sees_all };
    vec![
        of("operator", Some(world.admin.token.clone()), true),
        of("edge", Some(world.edge_key.clone()), false),
        of("nobody", None, false),
    ]
}

/// How many requests were made.
async fn run(
    world: &World,
    program: &std::path::Path,
    caller: &Caller,
    known: &Value,
    examples: u32,
) -> u64 {
    let mut command = tokio::process::Command::new(program);
    command
        .current_dir(workspace().join("e2e/interop/schemathesis"))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", ".")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIDEGATE_KNOWN", known.to_string())
        .args(["run", &format!("{}/api/v1/openapi.json", world.admin.url)])
        .args(["--max-examples", &examples.to_string(), "--checks", CHECKS])
        .args(["--phases", "coverage,fuzzing", "--workers", "1", "--no-color"])
        // Two workers in one Python 3.11 end in "AST constructor recursion depth mismatch".
        // An event stream answers for as long as one listens.
        .args(["--exclude-path", "/api/v1/events"])
        .args(["--continue-on-failure", "--request-timeout", "30"])
        // The same cases on every machine; another seed is another run.
        .args(["--seed", "1", "--generation-database", "none"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(bearer) = &caller.bearer {
        command.arg("-H").arg(format!("Authorization: Bearer {bearer}"));
    }
    if !caller.sees_all {
        command.env("TIDEGATE_FORBIDDEN", CANARY);
    }
    let mut child = command.spawn().expect("schemathesis starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        said.push(line);
    }
    let output = child.wait_with_output().await.expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = said.join("\n");
    // Its last words hold the token; its report does not.
    assert!(output.status.success(), "as {}:\n{said}\n{errors}", caller.name);
    let made = said.lines().find_map(|line| {
        let (number, _) = line.trim().split_once(" generated")?;
        number.replace(',', "").parse::<u64>().ok()
    });
    let made = made.unwrap_or_else(|| panic!("no count in:\n{said}"));
    println!("{}: {made} requests", caller.name);
    made
}
