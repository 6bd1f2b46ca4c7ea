//! Modules to upload, helpers that misbehave, and the calls that every test here makes.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use e2e::http::{Admin, Answer, send, until};
use e2e::world::{ENVIRONMENT, NAMESPACE, World};
use http::Method;
use rules::blob::Digest;
use sandbox::policy::helper::Helper;
use serde_json::{Value, json};

/// Declares to read `country`, traps if there is a `!` in its input, and else answers `answer`.
pub fn module(answer: &str) -> Vec<u8> {
    let look = "(block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $len)))
        (if (i32.eq (i32.load8_u (i32.add (local.get $start) (local.get $at))) (i32.const 33))
          (then unreachable))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))";
    evaluating(look, answer)
}

/// Traps on every call.
pub fn trapping() -> Vec<u8> {
    evaluating("unreachable", "{}")
}

/// Answers `answer` after `work`, which may use `$start`, `$len` and a number `$at`.
fn evaluating(work: &str, answer: &str) -> Vec<u8> {
    let describe = r#"{"attributes":["country"]}"#;
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let text = format!(
        r#"(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  (memory (export "memory") 2 4)
  (data (i32.const 16) "{}")
  (data (i32.const 256) "{}")
  (func (export "tidegate_abi") (result i32) i32.const 1)
  (func (export "tidegate_alloc") (param $len i32) (result i32) i32.const 8192)
  (func (export "tidegate_describe") (result i64)
    (i64.or (i64.shl (i64.const 16) (i64.const 32)) (i64.const {})))
  (func (export "evaluate") (param $start i32) (param $len i32) (result i64)
    (local $at i32)
    (call $log (i32.const 256) (i32.const 9))
    {work}
    (i64.or (i64.shl (i64.const 256) (i64.const 32)) (i64.const {}))))"#,
        quoted(describe),
        quoted(answer),
        describe.len(),
        answer.len()
    );
    wat::parse_str(text).expect("valid text")
}

pub fn digest(wasm: &[u8]) -> String {
    Digest::of(wasm).to_string()
}

/// The helper that everybody uses, once the file `gate` is there. `/bin/sleep` is only how a shell waits
/// for a state; the helper's own wall clock bounds it.
pub fn gated(gate: &Path) -> Helper {
    shell(r#"while [ ! -e "$0" ]; do /bin/sleep 0.02; done; exec "$1""#, gate)
}

/// The helper that everybody uses, if the file `gate` is there; before, it fails.
pub fn failing_without(gate: &Path) -> Helper {
    shell(r#"[ -e "$0" ] || exit 1; exec "$1""#, gate)
}

/// The helper that everybody uses, and a line in the file `log` each time, which stands for what it
/// was asked.
pub fn counted(log: &Path) -> Helper {
    shell(r#"cat > "$0.$$"; sha256sum < "$0.$$" >> "$0"; exec "$1" < "$0.$$""#, log)
}

fn shell(script: &str, file: &Path) -> Helper {
    let real = Helper::beside_this_test().program;
    assert!(real.is_file(), "there is no {}: build the whole workspace", real.display());
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let arguments = vec!["-c".to_owned(), script.to_owned(), text(file), text(&real)];
    Helper { program: "/bin/sh".into(), arguments }
}

/// How often a counted helper was started.
pub fn starts(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().count()
}

/// How many different things a counted helper was asked: one that was too late is asked the same
/// again.
pub fn questions(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().collect::<HashSet<_>>().len()
}

/// Whether the helper ran out of its time. Its clock is the wall's, and a busy machine may be too
/// slow for it.
pub fn is_late(answer: &Answer) -> bool {
    answer.status == 422 && answer.text.contains(r#""rule":"time""#)
}

pub async fn upload(admin: &Admin, name: &str, wasm: &[u8]) -> Answer {
    for _ in 0..3 {
        let answer = upload_as(admin, name, wasm, &[]).await;
        if !is_late(&answer) {
            return answer;
        }
    }
    upload_as(admin, name, wasm, &[]).await
}

pub async fn upload_as(admin: &Admin, name: &str, wasm: &[u8], headers: &[(&str, &str)]) -> Answer {
    let path = format!("/api/v1/namespaces/{}/policies/{name}/versions", admin.namespace);
    let mut request = admin.request(Method::POST, &path).header("content-type", "application/wasm");
    for (header, value) in headers {
        request = request.header(*header, *value);
    }
    send(request.body(wasm.to_vec())).await
}

pub async fn pin(admin: &Admin, name: &str, body: &Value) -> Answer {
    let path = format!("{}/policies/{name}", admin.environment_path());
    send(admin.request(Method::PUT, &path).header("if-match", "*").json(body)).await
}

pub async fn act(admin: &Admin, method: Method, rest: &str) -> Answer {
    let path = format!("{}/policies/{rest}", admin.environment_path());
    send(admin.request(method, &path).header("if-match", "*")).await
}

/// Uploaded and pinned; its digest.
pub async fn use_policy(admin: &Admin, name: &str, wasm: &[u8]) -> String {
    upload(admin, name, wasm).await.ok();
    pin(admin, name, &json!({ "digest": digest(wasm) })).await.ok();
    digest(wasm)
}

/// The flag `checkout`: what `guard` says, or F, and C if it abstains.
pub fn definition() -> Value {
    json!({ "key": "checkout", "type": "string", "clients": "edge",
        "variants": { "express": "E", "classic": "C", "fallback": "F" } })
}

pub fn asking(policy: &str) -> Value {
    json!({ "enabled": true, "fallthrough": { "variant": "classic" },
        "rules": [{ "id": "guard", "policy": { "name": policy, "params": { "max": 3 },
            "fallback": { "variant": "fallback" } } }] })
}

pub fn express() -> Vec<u8> {
    module(r#"{"variant":"express"}"#)
}

pub fn german() -> Value {
    json!({ "targetingKey": "u", "country": "DE" })
}

/// What the environment pins as `name`, with what edges report of it.
pub async fn pinned(admin: &Admin, name: &str) -> Value {
    let path = format!("{}/policies", admin.environment_path());
    let body = admin.get(&path).await.ok().json();
    let found = body["items"].as_array().and_then(|items| items.iter().find(|i| i["name"] == name));
    found.cloned().unwrap_or_default()
}

/// Waits until the one edge reports of `name` what `is` looks for.
pub async fn reports(admin: &Admin, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let seen = RefCell::new(Value::Null);
    until(what, async || {
        let pin = pinned(admin, name).await;
        let found = is(&pin["edges"][0]);
        let told = pin.to_string();
        seen.replace(pin);
        if found { Ok(()) } else { Err(told) }
    })
    .await;
    seen.into_inner()
}

/// A figure of the edge's, of the policy and with all of `labels`; 0 if it is not there.
pub async fn figure(world: &World, metric: &str, policy: &str, label: &str) -> f64 {
    let url = format!("{}/metrics", world.edge_url());
    let text = reqwest::get(url).await.expect("metrics").text().await.expect("text");
    let policy = format!("policy=\"{policy}\"");
    let line = text
        .lines()
        .find(|line| line.starts_with(metric) && line.contains(&policy) && line.contains(label));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

pub async fn ready(world: &World) -> Value {
    let answer = reqwest::get(format!("{}/readyz", world.edge_url())).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    answer.json().await.expect("JSON")
}

/// How `/readyz` names a policy.
pub fn named(policy: &str) -> Value {
    json!(format!("{NAMESPACE}/{ENVIRONMENT}/{policy}"))
}

/// Control's dry run of `checkout`: its one result.
pub async fn dry_run(admin: &Admin, context: &Value) -> Value {
    dry_run_of(admin, "checkout", context).await
}

/// A busy machine may cut a call off, or the compiler before it, which is the one thing that may
/// differ from run to run; then it is asked again.
pub async fn dry_run_of(admin: &Admin, flag: &str, context: &Value) -> Value {
    let path = format!("{}/evaluate", admin.environment_path());
    let body = json!({ "flag": flag, "context": context });
    let seen = RefCell::new(Value::Null);
    until("a dry run that the clock does not cut off", async || {
        let result = admin.post(&path, &body).await.ok().json()["results"][0].clone();
        let told = result.to_string();
        seen.replace(result);
        let cut_off = [r#""fault":"deadline""#, r#""fault":"unavailable""#];
        if cut_off.iter().any(|fault| told.contains(fault)) { Err(told) } else { Ok(()) }
    })
    .await;
    seen.into_inner()
}

/// The step of its trace at which a policy was asked.
pub fn asked(result: &Value) -> &Value {
    let steps = result["trace"]["steps"].as_array().expect("a trace");
    steps.iter().find(|step| step["step"] == "policy").expect("a policy was asked")
}
