//! From a write over HTTP to what an edge fetches, against a real server and a real database.

use rules::head::{Heads, PublicKey};
use serde_json::{Value, json};

mod world;

use world::{World, read};

fn environments(heads: &Heads, key: &PublicKey) -> Vec<String> {
    let verified = |head: &rules::head::SignedHead| {
        head.verify(std::slice::from_ref(key)).expect("a signature that holds").namespace
    };
    heads.heads.iter().map(verified).collect()
}

#[tokio::test]
async fn what_is_written_is_published_signed_and_seen_only_by_edges_of_its_namespace() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.namespace("theirs").await;
    assert_eq!(world.flag("ours", "a/b ü").await.0, 201);
    let path = "/api/v1/namespaces/ours/environments/production/flags/a%2Fb%20%C3%BC";
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let (status, body) = read(world.ask("PUT", path).json(&config)).await;
    assert_eq!((status, &body["version"]), (200, &json!(1)), "{body}");
    world.published("ours").await;
    world.published("theirs").await;

    let (ours, theirs) =
        (world.edge_key(json!(["ours"])).await, world.edge_key(json!(["theirs"])).await);
    let key = world.control.public_key.clone();
    assert_eq!(environments(&world.heads(&ours).await, &key), ["ours"]);
    assert_eq!(environments(&world.heads(&theirs).await, &key), ["theirs"]);
    assert_eq!(
        environments(&world.heads(&world.edge_key(json!("all")).await).await, &key).len(),
        2
    );

    let head = world.heads(&ours).await.heads[0].verify(&[key]).expect("a head");
    let blob = |key: String, digest: String| {
        let request = world.http.get(format!("{}/edge/v1/blobs/{digest}", world.url));
        async move {
            let answer = request.bearer_auth(key).send().await.expect("an answer");
            (answer.status().as_u16(), answer.bytes().await.expect("a body"))
        }
    };
    let digest = head.snapshot.digest;
    let (status, bytes) = blob(ours, digest.to_string()).await;
    assert_eq!((status, rules::blob::Digest::of(&bytes)), (200, digest));
    let (manifest, ruleset) = rules::blob::decode_blob(&bytes).expect("a blob");
    assert_eq!((manifest.namespace.as_str(), manifest.flag_count), ("ours", 1));
    assert!(rules::eval::Evaluator::load(ruleset).expect("a ruleset").flag("a/b ü").is_some());
    // Another's blob and none at all are the same answer.
    let foreign = blob(theirs.clone(), digest.to_string()).await;
    assert_eq!(foreign.0, 404);
    assert_eq!(foreign, blob(theirs, "0".repeat(64)).await);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_long_poll_answers_when_the_heads_differ_and_a_known_etag_is_not_modified() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.published("ours").await;
    let key = world.edge_key(json!("all")).await;
    let ask = |wait: u32, etag: &str| {
        let url = format!("{}/edge/v1/heads?wait={wait}", world.url);
        world.http.get(url).bearer_auth(&key).header("if-none-match", etag).send()
    };
    let first = ask(0, "\"none\"").await.expect("an answer");
    let etag = first.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(ask(0, &etag).await.expect("an answer").status(), 304);
    let (answer, flag) = tokio::join!(ask(30, &etag), world.flag("ours", "late"));
    assert_eq!(flag.0, 201);
    assert_eq!(answer.expect("an answer").status(), 200);
    world.control.shutdown().await;
}

#[tokio::test]
async fn versions_settle_races_and_the_loser_is_told_what_won() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.flag("ours", "f").await;
    let path = "/api/v1/namespaces/ours/environments/production/flags/f";
    let config = |variant: &str| json!({ "enabled": true, "fallthrough": { "variant": variant } });
    let put = |version: &'static str, variant: &'static str| {
        read(world.ask("PUT", path).header("if-match", version).json(&config(variant)))
    };
    assert_eq!(put("\"0\"", "on").await.0, 200);
    assert_eq!(read(world.ask("PUT", path).json(&config("off"))).await.0, 428);
    let (one, other) = tokio::join!(put("\"1\"", "on"), put("\"1\"", "off"));
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{one:?} {other:?}");
    let loser = if one.0 == 412 { one.1 } else { other.1 };
    assert_eq!(loser["current"]["version"], 2, "{loser}");
    let (status, body) = put("*", "nope").await;
    assert_eq!(
        (status, &body["errors"][0]["pointer"]),
        (422, &json!("/fallthrough/variant")),
        "{body}"
    );
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_repeated_request_is_done_once_and_another_under_its_key_is_refused() {
    let world = World::new().await;
    world.namespace("ours").await;
    let send = |key: &'static str| {
        let path = "/api/v1/namespaces/ours/environments";
        read(world.ask("POST", path).header("idempotency-key", "k1").json(&json!({ "key": key })))
    };
    let first = send("staging").await;
    assert_eq!(first.0, 201, "{first:?}");
    assert_eq!(send("staging").await, first);
    assert_eq!(send("other").await.0, 422);
    let (_, listed) = world.get("/api/v1/namespaces/ours/environments").await;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2), "{listed}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn revisions_of_concurrent_writers_have_no_gap_and_the_audit_chain_holds() {
    let world = World::new().await;
    world.namespace("ours").await;
    let keys: Vec<String> = (0..12).map(|index| format!("f{index}")).collect();
    let writes = keys.iter().map(|key| world.flag("ours", key));
    for (status, body) in futures_util::future::join_all(writes).await {
        assert_eq!(status, 201, "{body}");
    }
    // One for the environment itself.
    assert_eq!(world.published("ours").await, 13);
    let (_, first) = world.get("/api/v1/namespaces/ours/flags?limit=5").await;
    world.flag("ours", "f00").await;
    let cursor = first["nextCursor"].as_str().expect("a cursor");
    let (_, next) =
        world.get(&format!("/api/v1/namespaces/ours/flags?limit=200&cursor={cursor}")).await;
    assert_eq!(next["items"].as_array().map(Vec::len), Some(7), "nothing doubled, nothing lost");

    let mut read = world.control.store.read().await.expect("a read");
    let id: String =
        control::store::query::query_scalar("SELECT id FROM namespace WHERE key = 'ours'")
            .fetch_one(&mut read)
            .await
            .expect("an id");
    let verified = control::audit::verify(&mut read, &id).await.expect("a walk");
    assert_eq!(verified, Ok(15), "namespace, environment, 13 flags");
    drop(read);
    world.control.shutdown().await;
}

#[tokio::test]
async fn who_is_not_known_is_told_so_and_what_is_foreign_looks_like_what_is_not_there() {
    let world = World::new().await;
    world.namespace("ours").await;
    let bare = |token: &str| {
        read(world.http.get(format!("{}/api/v1/namespaces", world.url)).bearer_auth(token))
    };
    assert_eq!(bare("nonsense").await.0, 401);
    assert_eq!(bare(&world.edge_key(json!("all")).await).await.0, 403);
    assert_eq!(world.get("/api/v1/namespaces/nowhere/flags").await.0, 404);
    let unknown = json!({ "key": "x", "nome": "typo" });
    let (status, body) = world.post("/api/v1/namespaces", unknown).await;
    assert_eq!(status, 422, "{body}");
    assert!(
        body["errors"][0]["message"].as_str().is_some_and(|text| text.contains("nome")),
        "{body}"
    );
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_restart_publishes_the_same_heads_with_the_same_key_and_token() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.published("ours").await;
    let key = world.edge_key(json!("all")).await;
    let before = world.heads(&key).await;
    let World { control, dir, .. } = world;
    control.shutdown().await;
    let world = World::on(dir).await;
    assert_eq!(world.heads(&key).await, before);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_dry_run_of_an_import_changes_nothing_and_the_import_itself_only_what_differs() {
    let world = World::new().await;
    world.namespace("ours").await;
    let place = "/api/v1/namespaces/ours/environments/production";
    let document = json!({ "flags": {
        "good": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on" },
        "bad": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "missing" } } });
    let import = |dry: bool| {
        let path = format!("{place}/import?format=flagd&dry_run={dry}");
        let document = document.clone();
        let world = &world;
        async move { world.post(&path, document).await }
    };
    let results = |body: &Value| -> Vec<String> {
        let flags = body["flags"].as_array().expect("flags").iter();
        flags.map(|flag| flag["result"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let (_, before) = world.get(place).await;
    let (status, body) = import(true).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(results(&body), ["created", "refused"], "{body}");
    assert_eq!(world.get(place).await.1["revision"], before["revision"]);
    let (_, flags) = world.get("/api/v1/namespaces/ours/flags").await;
    assert_eq!(flags["items"], json!([]));

    let (_, body) = import(false).await;
    assert_eq!(results(&body), ["created", "refused"], "{body}");
    assert_eq!(results(&import(false).await.1), ["unchanged", "refused"]);
    let asked = json!({ "flag": "good", "context": { "targetingKey": "a" } });
    let (status, body) = world.post(&format!("{place}/evaluate"), asked).await;
    assert_eq!((status, &body["results"][0]["value"]), (200, &json!(true)), "{body}");
    let (status, body) = world.get(&format!("{place}/export?format=flagd")).await;
    assert_eq!((status, &body["flags"]["good"]["state"]), (200, &json!("ENABLED")), "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_segment_with_ids_decides_and_cannot_go_while_a_flag_needs_it() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.flag("ours", "f").await;
    let place = "/api/v1/namespaces/ours/environments/production";
    let segment = json!({ "key": "beta", "included": ["ann", "bob"] });
    let (status, body) = world.post(&format!("{place}/segments"), segment).await;
    assert_eq!((status, &body["includedCount"]), (201, &json!(2)), "{body}");
    let config = json!({ "enabled": true, "fallthrough": { "variant": "off" }, "rules": [
        { "id": "r", "when": { "segment": "beta" }, "serve": { "variant": "on" } } ] });
    let path = format!("{place}/flags/f");
    let (status, body) = read(world.ask("PUT", &path).json(&config)).await;
    assert_eq!(status, 200, "{body}");
    for (who, value) in [("ann", true), ("eve", false)] {
        let asked = json!({ "flag": "f", "context": { "targetingKey": who } });
        let (_, body) = world.post(&format!("{place}/evaluate"), asked).await;
        assert_eq!(body["results"][0]["value"], json!(value), "{who}: {body}");
    }
    let gone = world.ask("DELETE", &format!("{place}/segments/beta")).header("if-match", "*");
    let (status, body) = read(gone).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:in-use")), "{body}");
    world.published("ours").await;
    world.control.shutdown().await;
}

#[test]
fn every_described_operation_has_a_permission_and_every_permission_a_route() {
    let described: Value = serde_json::from_str(&control::openapi()).expect("JSON");
    assert!(described["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let operations = control::http::operations(&described);
    for (method, path) in &operations {
        assert!(control::authorize::routes::permission(method, path).is_some(), "{method} {path}");
    }
    for (method, path) in control::authorize::routes::guarded() {
        assert!(
            operations.contains(&(method.clone(), path.clone())),
            "{method} {path} has no route"
        );
    }
}
