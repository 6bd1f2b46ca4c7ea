//! `tidegate snapshot`: what a person sees, and a clear reason for each kind of damage.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::{Done, Server, http, owner, run, tidegate, until};

/// A control and an edge as processes, and what is in the edge's folder once it serves a flag.
struct Kept {
    control: Server,
    edge_key: String,
    trust: String,
    snapshot: PathBuf,
    _folder: tempfile::TempDir,
}

fn post(url: &str, token: &str, path: &str, body: Value) -> Value {
    let (status, answer) = http("POST", &format!("{url}{path}"), token, &body.to_string());
    assert_eq!(status, 201, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

impl Kept {
    fn new() -> Kept {
        let folder = tempfile::tempdir().unwrap();
        let control = Server::start(
            tidegate()
                .args(["control", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"])
                .arg("--data-dir")
                .arg(folder.path().join("control")),
        );
        let url = control.text("control_url").to_owned();
        let token = std::fs::read_to_string(owner(&control, folder.path())).unwrap();
        let token = token.trim();
        post(&url, token, "/api/v1/namespaces", json!({ "key": "shop" }));
        let environments = "/api/v1/namespaces/shop/environments";
        post(&url, token, environments, json!({ "key": "production" }));
        let keys = format!("{environments}/production/keys");
        post(&url, token, &keys, json!({ "kind": "server" }));
        let flag = json!({ "key": "checkout", "type": "boolean", "variants": { "on": true } });
        post(&url, token, "/api/v1/namespaces/shop/flags", flag);
        let made = post(&url, token, "/api/v1/edge-keys", json!({ "namespaces": "all" }));
        let edge_key = made["key"].as_str().unwrap().to_owned();
        let trust = control.text("public_key").to_owned();
        let data = folder.path().join("edge");
        let edge = Server::start(
            tidegate()
                .args(["edge", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"])
                .args(["--control-url", &url, "--trust", &trust, "--data-dir"])
                .arg(&data)
                .env("TIDEGATE_EDGE_KEY", &edge_key),
        );
        let snapshot = until("the edge keeping the flag", || {
            let shown = run(tidegate().args(["snapshot", "inspect", "--flags"]).arg(&data));
            let files: Vec<PathBuf> = std::fs::read_dir(&data)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snapshot."))
                .collect();
            let newest = files.into_iter().max_by_key(|path| {
                path.to_string_lossy().rsplit('.').next().unwrap().parse::<u64>().unwrap_or(0)
            });
            newest.filter(|_| shown.out.contains("checkout"))
        });
        edge.kill();
        Kept { control, edge_key, trust, snapshot, _folder: folder }
    }

    fn verify(&self, path: &Path) -> Done {
        run(tidegate().args(["snapshot", "verify", "--trust", &self.trust]).arg(path))
    }
}

/// `bytes` in a file of its own.
fn file(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("snapshot.shop.production.1.9");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_snapshot_is_shown_and_each_kind_of_damage_has_its_reason() {
    let kept = Kept::new();
    let shown = run(tidegate().args(["snapshot", "inspect", "--flags"]).arg(&kept.snapshot)).ok();
    for part in [
        "shop/production 1.",
        "not checked",
        "1 flag, 1 server and 0 browser",
        "all edges",
        &format!("reader {}", rules::blob::MIN_READER),
        "checkout",
        "boolean",
    ] {
        assert!(shown.out.contains(part), "{part:?} is not in\n{}", shown.out);
    }
    let inspect = ["snapshot", "inspect", "--output", "json", "--flags", "--trust", &kept.trust];
    let shown = run(tidegate().args(inspect).arg(&kept.snapshot)).ok();
    let json = &shown.json()[0];
    assert_eq!((&json["valid"], &json["signature"]["state"]), (&json!(true), &json!("holds")));
    assert_eq!(json["manifest"]["serverKeys"], 1, "{json}");
    assert_eq!(json["flags"][0]["key"], "checkout", "{json}");
    assert!(!shown.out.contains("hash") && !shown.out.contains("ecret"), "a secret: {}", shown.out);

    let verified = kept.verify(&kept.snapshot).ok();
    assert!(verified.out.starts_with("✓ shop/production 1."), "{verified:?}");
    kept.verify(kept.snapshot.parent().unwrap()).ok();

    let whole = std::fs::read(&kept.snapshot).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let (head, blob) = (60, whole.len() - 30);
    for (bytes, why) in [
        (flipped(0), "does not begin as a snapshot's does"),
        (flipped(head), "does not have the checksum"),
        (flipped(blob), "not those that its head names"),
        (whole[..whole.len() / 2].to_vec(), "cut short"),
        (whole[..5].to_vec(), "cut short"),
        (Vec::new(), "cut short"),
        ([&whole[..], b"more"].concat(), "more follows"),
    ] {
        let done = kept.verify(&file(&folder, &bytes)).failed(4);
        assert!(done.out.contains(why), "{why:?} is not in {done:?}");
        assert!(done.err.contains("1 of 1"), "{done:?}");
    }

    // Another key; none at all.
    let next = folder.path().join("next");
    let made = ["control", "new-signing-key", "--output", "json"];
    let made = run(tidegate().args(made).arg(&next)).ok().json();
    let other = made["public_key"].as_str().unwrap();
    let done = run(tidegate().args(["snapshot", "verify", "--trust", other]).arg(&kept.snapshot));
    assert!(done.failed(4).out.contains("is not trusted here"));
    run(tidegate().args(["snapshot", "verify"]).arg(&kept.snapshot)).failed(2);
    run(tidegate().args(["control", "new-signing-key"]).arg(&next)).failed(5);
    run(tidegate().args(["snapshot", "inspect"]).arg(folder.path().join("none"))).failed(1);
    run(tidegate().args(["snapshot", "inspect"])).failed(2);

    // As control publishes it.
    let url = kept.control.text("control_url");
    let from_control = |command: &str, more: &[&str]| {
        let mut asked = tidegate();
        asked.args(["snapshot", command, "--control-url", url, "--trust", &kept.trust]).args(more);
        run(asked.env("TIDEGATE_EDGE_KEY", &kept.edge_key))
    };
    let done = from_control("verify", &[]).ok();
    assert!(done.out.starts_with("✓ shop/production 1."), "{done:?}");
    let done = from_control("inspect", &["--output", "json", "--only", "shop/production"]).ok();
    assert_eq!(done.json()[0]["valid"], true, "{done:?}");
    from_control("inspect", &["--only", "shop/nowhere"]).failed(3);
    let nobody = ["snapshot", "inspect", "--control-url", "http://127.0.0.1:1"];
    run(tidegate().args(nobody).env("TIDEGATE_EDGE_KEY", &kept.edge_key)).failed(6);
}
