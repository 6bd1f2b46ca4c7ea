//! The database is restored from an older copy: edges keep what they serve until an operator raises
//! the generation, and then follow again.

use e2e::http::{Ofrep, until};
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, edge_of, furnish};
use serde_json::{Value, json};

async fn control(data: &str, listen: &str) -> Process {
    Process::start(&["control", "--listen", listen, "--data-dir", data], &[]).await
}

fn flag(value: u64) -> Value {
    json!({ "key": "n", "type": "integer", "variants": { "n": value } })
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_edges_keep_what_they_serve_until_the_generation_is_raised() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("control"), folder.path().join("backup"));
    let data_text = data.to_str().unwrap().to_owned();
    let first = control(&data_text, &e2e::ports::free().unwrap().to_string()).await;
    let admin = admin_of(&first, &first).await;
    let listen = admin.url.strip_prefix("http://").unwrap().to_owned();
    let (server_key, _, edge_key) = furnish(&admin).await;
    let more = ["--anti-entropy-seconds", "1"];
    let settings = [("TIDEGATE_EDGE_KEY", edge_key.as_str())];
    let edge = edge_of(&first, &folder.path().join("edge"), &more, &settings).await;
    let ofrep = Ofrep::new(&edge.text("edge_url"), &server_key);
    let on = json!({ "enabled": true, "fallthrough": { "variant": "n" } });
    admin.flag(&flag(1), &on).await;
    ofrep.serves("n", &json!({}), &json!(1)).await;

    first.kill().await;
    let copied = std::process::Command::new("cp").arg("-r").args([&data, &copy]).status();
    assert!(copied.unwrap().success());
    let second = control(&data_text, &listen).await;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
    for value in 2..6 {
        admin.put(&path, &flag(value)).await.ok();
    }
    ofrep.serves("n", &json!({}), &json!(5)).await;
    second.kill().await;

    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    let third = control(&data_text, &listen).await;
    admin.put(&path, &flag(100)).await.ok();
    // The edge speaks with the restored control, and control sees what is the matter.
    until("the drift being seen", async || {
        let drift = admin.get("/api/v1/drift").await.ok();
        if drift.text.contains("raise-generation") { Ok(()) } else { Err(drift.text) }
    })
    .await;
    let answer = ofrep.one("n", &json!({})).await;
    assert_eq!(answer.json()["value"], 5, "the edge went back: {}", answer.text);

    let raised = Process::run(&["control", "raise-generation", "--data-dir", &data_text]).await;
    assert_eq!(raised["environments"], 1, "{raised}");
    ofrep.serves("n", &json!({}), &json!(100)).await;
    until("the drift being over", async || {
        let drift = admin.get("/api/v1/drift").await.ok();
        let over = drift.json()["items"]
            .as_array()
            .is_some_and(|items| items.iter().all(|item| item["mendedAt"].is_string()));
        if over { Ok(()) } else { Err(drift.text) }
    })
    .await;
    third.kill().await;
}
