//! A policy's whole way: uploaded and admitted at control, pinned, published, compiled at the edge,
//! called by a rule, answered over OFREP; what is bad is refused where it comes in.

use e2e::http::send;
use e2e::world::World;
use http::Method;
use rules::blob::Digest;
use serde_json::json;

use crate::support::{
    act, asking, definition, dry_run, express, german, module, pin, upload, use_policy,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_was_uploaded_and_pinned_decides_at_the_edge_until_it_fails_or_is_rolled_back()
 {
    let world = World::start().await;
    let (first, second) = (
        module(r#"{"variant":"express","reason":"first"}"#),
        module(r#"{"value":"from the policy"}"#),
    );
    let (digest, other) = (Digest::of(&first).to_string(), Digest::of(&second).to_string());
    let made = upload(&world.admin, "guard", &first).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let version = made.json();
    assert_eq!((&version["digest"], &version["attributes"]), (&json!(digest), &json!(["country"])));
    assert_eq!(version["verdict"]["admitted"], true, "{version}");
    let again = upload(&world.admin, "guard", &first).await;
    assert_eq!(again.status, 200, "the same bytes are the version that is there: {}", again.text);

    world.admin.create_flag(&definition()).await.ok();
    let early = world.admin.configure("checkout", &asking("guard")).await;
    early.problem(422, &["no policy", "is pinned in this environment"]);
    pin(&world.admin, "guard", &json!({ "digest": digest })).await.ok();
    world.admin.configure("checkout", &asking("guard")).await.ok();

    let ofrep = world.ofrep();
    let german = json!({ "targetingKey": "u", "country": "DE" });
    ofrep.serves("checkout", &german, &json!("E")).await;
    e2e::http::until("the policy's answer", async || {
        let answer = ofrep.one("checkout", &german).await.json();
        match answer["reason"] == "TARGETING_MATCH" && answer["variant"] == "express" {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    })
    .await;

    // It traps on an exclamation mark: the rule's fallback is served, and the trace says why.
    let bad = json!({ "targetingKey": "u", "country": "!" });
    ofrep.serves("checkout", &bad, &json!("F")).await;
    let result = dry_run(&world.admin, &bad).await;
    assert_eq!(result["value"], "F", "{result}");
    let step = &result["trace"]["steps"][1];
    assert_eq!((&step["step"], &step["fault"]), (&json!("policy"), &json!("trap")), "{step}");
    assert_eq!((&step["name"], &step["digest"]), (&json!("guard"), &json!(digest)));
    // What it did not declare to read, it is not given.
    let dry = dry_run(&world.admin, &json!({ "note": "!", "country": "DE" })).await;
    assert_eq!(dry["value"], "E", "{dry}");

    assert_eq!(upload(&world.admin, "guard", &second).await.status, 201);
    pin(&world.admin, "guard", &json!({ "digest": other })).await.ok();
    ofrep.serves("checkout", &german, &json!("from the policy")).await;
    let back = act(&world.admin, Method::POST, "guard/rollback").await.ok().json();
    assert_eq!((&back["digest"], &back["previousDigest"]), (&json!(digest), &json!(other)));
    ofrep.serves("checkout", &german, &json!("E")).await;

    let shadow = json!({ "digest": digest, "shadow": { "digest": other, "share": 100_000 } });
    pin(&world.admin, "guard", &shadow).await.ok();
    let metrics = format!("{}/metrics", world.edge_url());
    e2e::http::until("the shadow being compared", async || {
        ofrep.one("checkout", &german).await.ok();
        let text = reqwest::get(&metrics).await.expect("metrics").text().await.expect("text");
        let line = text.lines().find(|line| {
            line.starts_with("tidegate_edge_policy_shadow_total") && line.contains("\"different\"")
        });
        match line.and_then(|line| line.rsplit(' ').next()) {
            Some(count) if count != "0" => Ok(()),
            _ => Err(format!("{line:?}")),
        }
    })
    .await;
    let answer = ofrep.one("checkout", &german).await.ok().json();
    assert_ne!(answer["value"], "from the policy", "nothing that a shadow says is served");
    ofrep.serves("checkout", &german, &json!("E")).await;
    act(&world.admin, Method::POST, "guard/promote").await.ok();
    ofrep.serves("checkout", &german, &json!("from the policy")).await;

    let needed = act(&world.admin, Method::DELETE, "guard").await;
    needed.problem(409, &["is needed by", "checkout", "guard"]);
    let version =
        format!("/api/v1/namespaces/{}/policies/guard/versions/{other}", world.admin.namespace);
    let pinned = send(world.admin.request(Method::DELETE, &version)).await;
    pinned.problem(409, &["needed by"]);
    world
        .admin
        .configure(
            "checkout",
            &json!({ "enabled": true,
        "fallthrough": { "variant": "classic" } }),
        )
        .await
        .ok();
    assert_eq!(act(&world.admin, Method::DELETE, "guard").await.status, 204);
    assert_eq!(send(world.admin.request(Method::DELETE, &version)).await.status, 204);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_policy_is_refused_at_the_upload() {
    let world = World::start().await;
    let large = upload(&world.admin, "large", &vec![0; rules::limits::POLICY_BYTES_MAX + 1]).await;
    large.problem(413, &["262144 bytes"]);
    assert_eq!(large.header("connection"), "close", "it was not read to its end");
    let garbage = upload(&world.admin, "garbage", b"this is no module").await;
    assert_eq!(garbage.status, 422, "{}", garbage.text);
    let verdict = &garbage.json()["verdict"];
    assert_eq!(verdict["admitted"], false, "{verdict}");
    assert!(verdict["refused"]["rule"].is_string(), "{verdict}");
    let foreign = r#"(module (import "env" "clock" (func)) (memory (export "memory") 1 1))"#;
    let foreign = upload(&world.admin, "foreign", &wat::parse_str(foreign).expect("valid")).await;
    assert_eq!(foreign.status, 422, "{}", foreign.text);
    let name = upload(&world.admin, "Not%20a%20slug", &module("{}")).await;
    assert_eq!(name.status, 422, "{}", name.text);
    let path = format!("/api/v1/namespaces/{}/policies/x/versions", world.admin.namespace);
    let json = send(world.admin.request(Method::POST, &path).json(&json!({}))).await;
    assert_eq!(json.status, 415, "{}", json.text);
    let unknown = pin(&world.admin, "nobody", &json!({ "digest": "0".repeat(64) })).await;
    assert_eq!(unknown.status, 404, "{}", unknown.text);
    let policies = format!("/api/v1/namespaces/{}/policies", world.admin.namespace);
    let listed = world.admin.get(&policies).await;
    assert_eq!(listed.ok().json()["items"], json!([]), "nothing refused is kept");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_set_that_pins_another_version_tells_whom_it_changes_and_then_changes_them() {
    let world = World::start().await;
    let second = module(r#"{"value":"from the policy"}"#);
    let other = Digest::of(&second).to_string();
    use_policy(&world.admin, "guard", &express()).await;
    world.admin.flag(&definition(), &asking("guard")).await;
    assert_eq!(upload(&world.admin, "guard", &second).await.status, 201);
    let sets = format!("/api/v1/namespaces/{}/change-sets", world.admin.namespace);
    let set = async |digest: &str| {
        let item = json!({ "kind": "policy-pin", "environment": world.admin.environment,
            "key": "guard", "value": { "digest": digest } });
        let body = json!({ "title": "Another guard", "items": [item] });
        let made = world.admin.post(&sets, &body).await.ok().json();
        format!("{sets}/{}", made["number"])
    };
    let pins = set(&other).await;
    let asked = json!({ "contexts": [german(), { "targetingKey": "u", "country": "FR" }] });
    // A call that a busy machine cuts off gives the fallback.
    e2e::http::until("a preview that the clock does not cut off", async || {
        let told = world.admin.post(&format!("{pins}/impact"), &asked).await.ok().json();
        let flag = &told["flags"][0];
        let place = (&flag["flag"], &flag["inDraft"]);
        assert_eq!(place, (&json!("checkout"), &json!(false)), "{told}");
        let moved = &flag["transitions"][0];
        let values = (&moved["from"]["value"], &moved["to"]["value"]);
        let whom = (&told["changed"], &moved["contexts"]);
        match (values, whom) == ((&json!("E"), &json!("from the policy")), (&json!(2), &json!(2))) {
            true => Ok(()),
            false => Err(told.to_string()),
        }
    })
    .await;
    for step in ["submit", "apply"] {
        world.admin.post(&format!("{pins}/{step}"), &json!({})).await.ok();
    }
    world.ofrep().serves("checkout", &german(), &json!("from the policy")).await;
    let none = set(&"0".repeat(64)).await;
    for step in ["impact", "submit"] {
        let refused = world.admin.post(&format!("{none}/{step}"), &json!({})).await;
        refused.problem(422, &["/items/0/value/digest", "has no version"]);
    }
}
