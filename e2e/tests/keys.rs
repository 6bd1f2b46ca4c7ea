//! The signing key is changed while everything runs (docs/KEYS.md, step by step): no edge stops
//! following, and in the end the old key alone is worth nothing.

use std::path::Path;

use e2e::http::{Admin, Ofrep, client, until};
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, furnish};
use rules::head::{Heads, SignedHead};
use serde_json::{Value, json};

fn flag(value: u64) -> Value {
    json!({ "key": "n", "type": "integer", "variants": { "n": value } })
}

async fn edge(
    admin: &Admin,
    name: &str,
    folder: &Path,
    edge_key: &str,
    trust: [&str; 2],
) -> Process {
    let data = folder.join(name);
    let arguments = ["edge", "--listen", "127.0.0.1:0", "--control-url", &admin.url];
    let more = ["--data-dir", data.to_str().unwrap(), "--edge-id", name];
    let settings = [("TIDEGATE_EDGE_KEY", edge_key), ("TIDEGATE_ANTI_ENTROPY_SECONDS", "1")];
    Process::start(&[&arguments[..], &more, &trust].concat(), &settings).await
}

async fn set(admin: &Admin, value: u64) {
    admin.put(&format!("/api/v1/namespaces/{NAMESPACE}/flags/n"), &flag(value)).await.ok();
}

async fn head(admin: &Admin, edge_key: &str) -> SignedHead {
    let asked = client().get(format!("{}/edge/v1/heads", admin.url)).bearer_auth(edge_key).send();
    asked.await.unwrap().json::<Heads>().await.unwrap().heads.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_changed_and_no_edge_stops_following() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let data = path("control");
    let arguments = ["control", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let control = Process::start(&arguments, &[]).await;
    let old = control.text("public_key");
    let admin = admin_of(&control, &control).await;
    let (server_key, _, edge_key) = furnish(&admin).await;
    let on = json!({ "enabled": true, "fallthrough": { "variant": "n" } });
    admin.flag(&flag(1), &on).await;

    let file = path("trust");
    std::fs::write(&file, format!("{old}\n")).unwrap();
    let by_file = ["--trust-file", file.to_str().unwrap()];
    let mut follows = Vec::new();
    for name in ["a", "b"] {
        let edge = edge(&admin, name, folder.path(), &edge_key, by_file).await;
        follows.push((Ofrep::new(&edge.text("edge_url"), &server_key), edge));
    }
    let by_old = edge(&admin, "old-only", folder.path(), &edge_key, ["--trust", &old]).await;
    let old_only = Ofrep::new(&by_old.text("edge_url"), &server_key);
    let everywhere = async |value: u64| {
        for (ofrep, _) in &follows {
            ofrep.serves("n", &json!({}), &json!(value)).await;
        }
    };
    everywhere(1).await;
    old_only.serves("n", &json!({}), &json!(1)).await;

    // Step 1 and 2: a new key, trusted beside the old one.
    let next = path("next");
    let made = Process::run(&["control", "new-signing-key", next.to_str().unwrap()]).await;
    let new = made["public_key"].as_str().unwrap().to_owned();
    std::fs::write(&file, format!("{old}   # until the change is over\n{new}\n")).unwrap();
    set(&admin, 2).await;
    everywhere(2).await;
    old_only.serves("n", &json!({}), &json!(2)).await;

    // Step 3: control signs with it, without a restart and under the same version.
    let before = head(&admin, &edge_key).await;
    std::fs::rename(&next, data.join("signing-key")).unwrap();
    until("heads being signed anew", async || {
        let now = head(&admin, &edge_key).await;
        if now.key_id == made["key"] { Ok(()) } else { Err(now.key_id) }
    })
    .await;
    let after = head(&admin, &edge_key).await;
    let [was, is] = [before, after].map(|head| head.claims().unwrap());
    assert_eq!(
        (was.version, was.snapshot, was.issued_at_ms),
        (is.version, is.snapshot, is.issued_at_ms)
    );

    // Step 4: who has not heard of it keeps the last good one, and says so.
    until("the edge that does not trust it saying so", async || {
        let edges = admin.get(&format!("{}/edges", admin.environment_path())).await.ok();
        let told = edges.json()["items"].as_array().is_some_and(|items| {
            items.iter().any(|item| item["edge"] == "old-only" && item["status"] == "rejected")
        });
        if told && edges.text.contains("not trusted") { Ok(()) } else { Err(edges.text) }
    })
    .await;
    set(&admin, 3).await;
    everywhere(3).await;
    assert_eq!(old_only.one("n", &json!({})).await.json()["value"], 2);

    // Step 5: the old key is worth nothing any more.
    set(&admin, 4).await;
    everywhere(4).await;
    std::fs::write(&file, format!("{new}\n")).unwrap();
    set(&admin, 5).await;
    everywhere(5).await;
    // Nor is it needed: an edge starts from files that were signed anew, without control.
    control.kill().await;
    let (_, b) = follows.pop().unwrap();
    b.kill().await;
    let b = edge(&admin, "b", folder.path(), &edge_key, by_file).await;
    let ofrep = Ofrep::new(&b.text("edge_url"), &server_key);
    assert_eq!(ofrep.one("n", &json!({})).await.json()["value"], 5, "at once, from disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_old_key_signed_are_signed_anew_though_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let data = path("control");
    let arguments = ["control", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let control = Process::start(&arguments, &[]).await;
    let old = control.text("public_key");
    let admin = admin_of(&control, &control).await;
    let (server_key, _, edge_key) = furnish(&admin).await;
    admin.flag(&flag(1), &json!({ "enabled": true, "fallthrough": { "variant": "n" } })).await;
    let next = path("next");
    let made = Process::run(&["control", "new-signing-key", next.to_str().unwrap()]).await;
    let new = made["public_key"].as_str().unwrap().to_owned();
    let both = format!("{old},{new}");
    let first = edge(&admin, "a", folder.path(), &edge_key, ["--trust", &both]).await;
    Ofrep::new(&first.text("edge_url"), &server_key).serves("n", &json!({}), &json!(1)).await;
    std::fs::rename(&next, data.join("signing-key")).unwrap();
    until("the edge's newest file being signed anew", async || {
        let newest = std::fs::read_dir(path("a"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snapshot."))
            .max_by_key(|path| {
                path.to_str().unwrap().rsplit('.').next().unwrap().parse::<u64>().unwrap()
            });
        let bytes = std::fs::read(newest.expect("a file")).unwrap();
        let key = made["key"].as_str().unwrap().as_bytes();
        let found = bytes.windows(key.len()).any(|part| part == key);
        if found { Ok(()) } else { Err("signed with the old key".to_owned()) }
    })
    .await;
    first.kill().await;
    control.kill().await;
    let again = edge(&admin, "a", folder.path(), &edge_key, ["--trust", &new]).await;
    let ofrep = Ofrep::new(&again.text("edge_url"), &server_key);
    assert_eq!(ofrep.one("n", &json!({})).await.json()["value"], 1, "at once, from disk");
}
