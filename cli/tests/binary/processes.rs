//! Control and edge as two processes, with HTTP between them.

use std::path::Path;

use crate::world::{Server, http, ofrep, owner, run, tidegate, until};
use serde_json::{Value, json};

fn control(folder: &Path) -> Server {
    Server::start(
        tidegate()
            .args(["control", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"])
            .arg("--data-dir")
            .arg(folder.join("control")),
    )
}

fn edge(folder: &Path, control_url: &str, public_key: &str, key: &str) -> Server {
    Server::start(
        tidegate()
            .args(["edge", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"])
            .args(["--control-url", control_url, "--trust", public_key, "--data-dir"])
            .arg(folder.join("edge"))
            .env("TIDEGATE_EDGE_KEY", key),
    )
}

/// A POST that must succeed.
fn post(control: &Server, token: &str, path: &str, body: &Value) -> Value {
    let url = format!("{}{path}", control.text("control_url"));
    let (status, text) = http("POST", &url, token, &body.to_string());
    assert!((200..300).contains(&status), "{path}: {status} {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn an_edge_answers_with_control_dead_and_after_a_restart_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let control = control(folder.path());
    let token_file = owner(&control, folder.path());
    let token = std::fs::read_to_string(&token_file).unwrap().trim().to_owned();
    post(&control, &token, "/api/v1/namespaces", &json!({"key": "shop"}));
    let at = "/api/v1/namespaces/shop/environments";
    post(&control, &token, at, &json!({"key": "live"}));
    let key = post(&control, &token, &format!("{at}/live/keys"), &json!({"kind": "server"}));
    let key = key["key"].as_str().unwrap().to_owned();
    let edge_key = json!({"namespaces": ["shop"], "name": "edge-1"});
    let edge_key = post(&control, &token, "/api/v1/edge-keys", &edge_key);
    let edge_key = edge_key["key"].as_str().unwrap().to_owned();

    let control_url = control.text("control_url").to_owned();
    let public_key = control.text("public_key").to_owned();
    let first = edge(folder.path(), &control_url, &public_key, &edge_key);
    let edge_url = first.text("edge_url").to_owned();

    let flag = json!({"key": "sale", "type": "boolean", "variants": {"on": true, "off": false}});
    post(&control, &token, "/api/v1/namespaces/shop/flags", &flag);
    let ask = |command: &mut std::process::Command| {
        command
            .env("TIDEGATE_URL", &control_url)
            .env("TIDEGATE_TOKEN_FILE", &token_file)
            .env("TIDEGATE_NAMESPACE", "shop")
            .env("TIDEGATE_ENVIRONMENT", "live")
            .current_dir(folder.path());
        run(command)
    };
    ask(tidegate().args(["flag", "set", "sale", "--enabled", "--variant", "on"])).ok();
    let served = |edge_url: &str| {
        let (_, body) = ofrep(edge_url, &key, "sale", json!({"targetingKey": "u"}));
        body["value"] == true
    };
    until("the edge serves the change", || served(&edge_url).then_some(()));

    control.kill();
    assert!(served(&edge_url), "the edge stopped answering with control");
    assert_eq!(first.terminate(), 0);

    let second = edge(folder.path(), &control_url, &public_key, &edge_key);
    let edge_url = second.text("edge_url").to_owned();
    until("the edge serves from disk", || served(&edge_url).then_some(()));
    let (ready, _) = http("GET", &format!("{edge_url}/readyz"), "", "");
    assert_eq!(ready, 200);
}

#[test]
fn an_edge_refuses_to_start_with_a_key_that_is_none() {
    let start = |key: &str| {
        run(tidegate()
            .args(["edge", "--control-url", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"])
            .args(["--trust", "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="])
            .env("TIDEGATE_EDGE_KEY", key))
    };
    let done = start("tg_edge_mistyped").failed(2);
    assert!(done.err.contains("the edge key is not a Tidegate key"), "{done:?}");
    assert!(!done.err.contains("mistyped"), "a secret in an error: {done:?}");
    let done = run(tidegate().args(["edge", "--control-url", "http://x", "--trust", "nonsense"]));
    assert!(done.failed(2).err.contains("ed25519:"));
}
