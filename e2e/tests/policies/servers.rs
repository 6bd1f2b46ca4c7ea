//! Policies where the database is a PostgreSQL and the edge hears of nothing but over a broker, with
//! every process as it is shipped, its helper included.

use e2e::http::{Ofrep, until};
use e2e::nats::NatsServer;
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, furnish, replica};
use http::Method;
use serde_json::json;

use crate::support::{
    act, asked, asking, definition, digest, dry_run, express, german, module, pin, pinned, reports,
    trapping, upload, use_policy,
};

/// Where nothing listens.
const NOWHERE: &str = "http://127.0.0.1:9";

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_and_a_broker_a_policy_answers_fails_and_goes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let postgres = PostgresServer::start(&folder.path().join("postgres")).expect("PostgreSQL");
    let (nats, database) = (NatsServer::start().await, postgres.url("postgres"));
    let url = nats.url();
    let broker = [("TIDEGATE_NATS_URL", url.as_str())];
    let control = replica(folder.path(), "control", &database, 2, &broker).await;
    let admin = admin_of(&control, &control).await;
    let (server_key, _, edge_key) = furnish(&admin).await;
    let (trust, data) = (control.text("public_key"), folder.path().join("edge"));
    let arguments =
        ["edge", "--listen", "127.0.0.1:0", "--control-url", NOWHERE, "--trust", &trust];
    let data = ["--data-dir", data.to_str().expect("UTF-8")];
    let follow = ["--nats-url", &url, "--nats-namespaces", NAMESPACE];
    // A compiler that was too late on a busy machine is asked again soon.
    let again = ["--anti-entropy-seconds", "1"];
    let arguments = [&arguments[..], &data, &follow, &again].concat();
    let edge = Process::start(&arguments, &[("TIDEGATE_EDGE_KEY", edge_key.as_str())]).await;
    let ofrep = Ofrep::new(&edge.text("edge_url"), &server_key);

    let good = express();
    let made = upload(&admin, "guard", &good).await;
    assert_eq!(made.status, 201, "{}", made.text);
    pin(&admin, "guard", &json!({ "digest": digest(&good) })).await.ok();
    admin.flag(&definition(), &asking("guard")).await;
    ofrep.serves("checkout", &german(), &json!("E")).await;
    let bad_input = json!({ "targetingKey": "u", "country": "!" });
    ofrep.serves("checkout", &bad_input, &json!("F")).await;
    assert_eq!(asked(&dry_run(&admin, &bad_input).await)["fault"], "trap");

    let other = use_policy(&admin, "guard", &module(r#"{"value":"other"}"#)).await;
    ofrep.serves("checkout", &german(), &json!("other")).await;
    let back = act(&admin, Method::POST, "guard/rollback").await.ok().json();
    assert_eq!((&back["digest"], &back["previousDigest"]), (&json!(digest(&good)), &json!(other)));
    ofrep.serves("checkout", &german(), &json!("E")).await;
    let heard = reports(&admin, "guard", "a receipt over the broker", |edge| {
        edge["state"] == "running" && edge["digest"] == json!(digest(&good))
    })
    .await;
    assert_eq!(heard["edges"].as_array().map(Vec::len), Some(1), "{heard}");

    let bad = use_policy(&admin, "guard", &trapping()).await;
    until("control going back by itself", async || {
        ofrep.one("checkout", &german()).await.ok();
        let pin = pinned(&admin, "guard").await;
        match pin["reverted"].is_string() {
            true => Ok(()),
            false => Err(pin.to_string()),
        }
    })
    .await;
    let pin = pinned(&admin, "guard").await;
    assert_eq!(
        (&pin["digest"], &pin["previousDigest"]),
        (&json!(digest(&good)), &json!(bad)),
        "{pin}"
    );
    ofrep.serves("checkout", &german(), &json!("E")).await;
    edge.kill().await;
    control.kill().await;
}
