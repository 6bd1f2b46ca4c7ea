//! schemathesis against every operation of the OpenAPI document, as every kind of caller: no 5xx, no
//! answer that the document does not describe, and no byte of another tenant.
//!
//! Short in a test run. `TIDEGATE_SCHEMATHESIS_EXAMPLES=4` is a long one, which walks through every
//! boundary of every schema as well: 67,775 requests (docs/FAULTS.md); `…_ONLY=viewer` is one caller.

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
        "policy": ["guard"], "digest": [digest], "id": [keys[0]], "version": [1, 2], "number": [1, 2], "user": ["viewer@example.com"] })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_keeps_to_its_document_for_every_kind_of_caller() {
    let program = workspace().join(".venv/bin/schemathesis");
    assert!(
        program.exists(),
        "schemathesis is not installed: run `cargo xtask test` (or make .venv with \
         e2e/interop/schemathesis/requirements.txt)"
    );
    let long = std::env::var("TIDEGATE_SCHEMATHESIS_EXAMPLES").ok();
    let examples = long.map_or((EXAMPLES, "fuzzing"), |text| {
        (text.parse().expect("a number"), "coverage,fuzzing")
    });
    let world = World::start().await;
    let known = furnish(&world.admin).await;
    let mut requests = 0;
    let only = std::env::var("TIDEGATE_SCHEMATHESIS_ONLY").ok();
    for caller in callers(&world).await {
        if only.as_deref().is_some_and(|only| only != caller.name) {
            continue;
        }
        requests += run(&world, &program, &caller, &known, examples).await;
    }
    println!("{requests} requests in all");
    world.stop().await;
}

/// One of each kind, all of `ours` but the stranger, who owns `theirs` and sees that.
async fn callers(world: &World) -> Vec<Caller> {
    let admin = &world.admin;
    let mut callers = Vec::new();
    for (name, role) in [
        ("owner", json!({ "role": "owner" })),
        ("admin", json!({ "role": "admin" })),
        ("editor", json!({ "role": "editor" })),
        ("approver", json!({ "role": "approver" })),
        ("viewer", json!({ "role": "viewer" })),
        ("environment", json!({ "environments": { "production": { "role": "admin" } } })),
    ] {
        let email = format!("{name}@example.com");
        let bearer = person(admin, &email).await;
        admin.put(&format!("/api/v1/namespaces/ours/members/{email}"), &role).await.ok();
        callers.push(Caller { name, bearer: Some(bearer), sees_all: false });
    }
    let of = |name, bearer: &str, sees_all| {
        let bearer = (!bearer.is_empty()).then(|| bearer.to_owned());
        Caller { name, bearer, sees_all }
    };
    let service = json!({ "name": "ci", "role": "editor" });
    let service = admin.post("/api/v1/namespaces/ours/tokens", &service).await.ok().json();
    callers.push(of("service", service["token"].as_str().expect("a token"), false));
    callers.push(of("edge", &world.edge_key, false));
    callers.push(of("nobody", "", false));
    // Last: what operators delete is gone for the others.
    callers.push(of("operator", &admin.token, true));
    callers
}

/// An account with a personal token, which no sign-out ends.
async fn person(admin: &Admin, email: &str) -> String {
    let made = admin.post("/api/v1/users", &json!({ "email": email })).await.ok().json();
    let password = "a long enough password";
    let accept = json!({ "token": made["invitation"]["token"], "password": password });
    let session = admin.post("/api/v1/invitations/accept", &accept).await.ok().json();
    let own = Admin {
        token: session["accessToken"].as_str().expect("a session").to_owned(),
        ..admin.clone()
    };
    let token = json!({ "name": "fuzz", "scopes": ["admin"] });
    let token = own.post("/api/v1/me/tokens", &token).await.ok().json();
    token["token"].as_str().expect("a token").to_owned()
}

/// How many requests were made.
async fn run(
    world: &World,
    program: &std::path::Path,
    caller: &Caller,
    known: &Value,
    (examples, phases): (u32, &str),
) -> u64 {
    // It keeps what it found in a folder below where it runs.
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = tokio::process::Command::new(program);
    command
        .current_dir(folder.path())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", workspace().join("e2e/interop/schemathesis"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIDEGATE_KNOWN", known.to_string())
        .args(["run", &format!("{}/api/v1/openapi.json", world.admin.url)])
        .args(["--max-examples", &examples.to_string(), "--checks", CHECKS])
        .args(["--phases", phases, "--workers", "1", "--no-color"])
        // Two workers in one Python 3.11 end in "AST constructor recursion depth mismatch".
        // An event stream answers for as long as one listens.
        .args(["--exclude-path", "/api/v1/events"])
        // How fast a busy machine answers, or makes up cases, is no matter of this test.
        .args(["--continue-on-failure", "--request-timeout", "300"])
        .args(["--suppress-health-check", "too_slow"])
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
