//! Uploads under load: few a minute, few that wait, and none is looked at twice.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::http::{Admin, Answer, until};
use e2e::world::{Setup, World};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{counted, digest, express, gated, is_late, module, starts, upload, upload_as};

fn retry_after(answer: &Answer) -> u64 {
    let text = answer.header("retry-after");
    text.parse().unwrap_or_else(|_| panic!("Retry-After {text:?} in {}", answer.text))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_so_many_admissions_a_minute_and_repeated_requests_cost_none() {
    const TRIES_MAX: usize = 5;
    for _ in 0..TRIES_MAX {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("starts");
        let few = |config: &mut control::config::Config| {
            config.policy_helper = counted(&log);
            config.policy_uploads_per_minute = NonZeroU32::new(2).expect("not zero");
        };
        let world = World::with(Setup { control: &few, ..Setup::default() }).await;
        let in_time = few_a_minute(&world, &log).await;
        world.stop().await;
        if in_time.is_some() {
            return;
        }
    }
    panic!("{TRIES_MAX} times the machine was too slow");
}

/// Nothing if the machine was too slow to say: the helper ran out of its time, or half of what a
/// minute allows may be back, as it is after 30 s.
async fn few_a_minute(world: &World, log: &Path) -> Option<()> {
    const PATIENCE: Duration = Duration::from_secs(25);
    let begun = Instant::now();
    let in_time =
        |answer: Answer| (!is_late(&answer) && begun.elapsed() < PATIENCE).then_some(answer);
    let admin = &world.admin;
    let key = [("idempotency-key", "once")];
    let first = in_time(upload_as(admin, "guard", &express(), &key).await)?;
    assert_eq!(first.status, 201, "{}", first.text);
    // What is refused has cost the helper as much.
    let garbage = in_time(upload_as(admin, "garbage", b"this is no module", &[]).await)?;
    assert_eq!(garbage.status, 422, "{}", garbage.text);
    assert_eq!(starts(log), 2);
    let third = module(r#"{"abstain":true}"#);
    let early = in_time(upload_as(admin, "guard", &third, &[]).await)?;
    early.problem(429, &["2 a minute", "urn:tidegate:problem:too-often"]);
    assert!((1..=60).contains(&retry_after(&early)), "{}", early.header("retry-after"));
    assert_eq!(starts(log), 2, "the helper was not asked");

    let again = upload_as(admin, "guard", &express(), &key).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"));
    assert_eq!(again.text, first.text);
    let other = upload_as(admin, "guard", &third, &key).await;
    other.problem(422, &["urn:tidegate:problem:idempotency-key-reused"]);
    assert_eq!(upload(admin, "guard", &express()).await.status, 200, "it is there");
    assert_eq!(starts(log), 2, "none of these was looked at again");

    // Running vectors has a budget of its own, and so has another namespace.
    let version = format!(
        "/api/v1/namespaces/{}/policies/guard/versions/{}/vectors",
        admin.namespace,
        digest(&express())
    );
    let input = json!({ "type": "string", "variants": ["express"] });
    let vectors = json!({ "vectors": [{ "name": "any", "input": input }] });
    in_time(admin.put(&version, &vectors).await)?.ok();
    in_time(admin.put(&version, &vectors).await)?.ok();
    in_time(admin.put(&version, &vectors).await)?.problem(429, &["2 a minute"]);
    admin.post("/api/v1/namespaces", &json!({ "key": "other" })).await.ok();
    let elsewhere = Admin { namespace: "other".to_owned(), ..admin.clone() };
    let other = in_time(upload_as(&elsewhere, "guard", &third, &[]).await)?;
    assert_eq!(other.status, 201, "{}", other.text);
    assert_eq!(starts(log), 5);
    let missing = Admin { namespace: "nowhere".to_owned(), ..admin.clone() };
    assert_eq!(upload(&missing, "guard", &third).await.status, 404);
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_many_uploads_wait_the_next_is_told_to_come_again() {
    /// One that is looked at and eight that wait.
    const TAKEN: usize = 9;
    const MORE: usize = 3;
    const TRIES_MAX: usize = 3;
    let folder = tempfile::tempdir().expect("a folder");
    let gate = folder.path().join("gate");
    let slow = |config: &mut control::config::Config| {
        config.policy_helper = gated(&gate);
        config.policy_uploads_per_minute = NonZeroU32::MAX;
    };
    let world = World::with(Setup { control: &slow, ..Setup::default() }).await;
    let admin = &world.admin;
    for tried in 1..=TRIES_MAX {
        let one = async |n: usize| {
            let module = module(&format!(r#"{{"value":"{tried}-{n}"}}"#));
            upload_as(admin, &format!("p{tried}-{n}"), &module, &[]).await
        };
        let mut answers: futures_util::stream::FuturesUnordered<_> =
            (0..TAKEN + MORE).map(one).collect();
        let mut is_free = false;
        for _ in 0..MORE {
            let told = answers.next().await.expect("an answer");
            // If the helper's time is over before all have come, the first one's place is free.
            is_free |= is_late(&told);
            if !is_free {
                told.problem(503, &["uploads wait", "urn:tidegate:problem:busy"]);
                assert!(retry_after(&told) >= 1);
            }
        }
        // Others are served meanwhile.
        assert_eq!(admin.get("/api/v1/namespaces").await.status, 200);
        std::fs::write(&gate, "").expect("a gate");
        let mut admitted = 0;
        while let Some(answer) = answers.next().await {
            // Some may have waited longer than the helper's clock allows.
            match answer.status {
                201 => admitted += 1,
                503 if is_free => {}
                _ => answer.problem(422, &[r#""rule":"time""#]),
            }
        }
        if !is_free {
            assert!(admitted >= 1, "{admitted} of {TAKEN}");
            break;
        }
        assert!(tried < TRIES_MAX, "{TRIES_MAX} times the machine was too slow");
        std::fs::remove_file(&gate).expect("a gate");
    }
    // And the line is free again.
    let late = upload(admin, "late", &express()).await;
    assert_eq!(late.status, 201, "{}", late.text);
    world.stop().await;
}

/// Every answer of the routes is what their description says.
#[tokio::test(flavor = "multi_thread")]
async fn the_description_of_the_routes_says_what_they_answer() {
    let world = World::start().await;
    let admin = &world.admin;
    let described: Value = serde_json::from_str(&control::openapi()).expect("JSON");
    let check = |method: &str, path: &str, answer: &Answer| {
        let operation = &described["paths"][path][method];
        let response = &operation["responses"][answer.status.to_string()];
        let mut schema = response["content"]["application/json"]["schema"].clone();
        assert!(
            schema.is_object(),
            "{method} {path} says nothing of {}: {operation}",
            answer.status
        );
        schema["components"] = described["components"].clone();
        closed(&mut schema);
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let body = answer.json();
        let wrong: Vec<String> = validator.iter_errors(&body).map(|e| e.to_string()).collect();
        assert!(wrong.is_empty(), "{method} {path}: {wrong:?} in {body}");
        assert!(body.is_object());
    };
    let namespace = "/api/v1/namespaces/{namespace}/policies";
    let environment = "/api/v1/namespaces/{namespace}/environments/{environment}/policies";
    let (one, other) = (express(), module(r#"{"abstain":true}"#));
    let made = upload(admin, "guard", &one).await;
    check("post", &format!("{namespace}/{{policy}}/versions"), &made);
    let again = upload(admin, "guard", &one).await;
    check("post", &format!("{namespace}/{{policy}}/versions"), &again);
    upload(admin, "guard", &other).await.ok();
    let base = format!("/api/v1/namespaces/{}/policies", admin.namespace);
    check("get", namespace, &admin.get(&base).await);
    check("get", namespace, &admin.get(&format!("{base}?limit=1")).await);
    check("get", &format!("{namespace}/{{policy}}"), &admin.get(&format!("{base}/guard")).await);
    let version = format!("{base}/guard/versions/{}", digest(&one));
    let of_version = format!("{namespace}/{{policy}}/versions/{{digest}}");
    check("get", &of_version, &admin.get(&version).await);
    let vectors = json!({ "vectors": [{ "name": "any", "input": { "type": "string", "variants": ["express"] },
        "expect": { "variant": "express" } }] });
    let ran = admin.put(&format!("{version}/vectors"), &vectors).await;
    check("put", &format!("{of_version}/vectors"), &ran);

    let of_pin = format!("{environment}/{{policy}}");
    let pin = async |body: Value| crate::support::pin(admin, "guard", &body).await;
    check("put", &of_pin, &pin(json!({ "digest": digest(&one) })).await);
    let shadow = json!({ "digest": digest(&other), "share": 50_000 });
    let shadowed = pin(json!({ "digest": digest(&one), "shadow": shadow })).await;
    check("put", &of_pin, &shadowed);
    admin.flag(&crate::support::definition(), &crate::support::asking("guard")).await;
    world.ofrep().serves("checkout", &crate::support::german(), &json!("E")).await;
    let pins = format!("{}/policies", admin.environment_path());
    until("a receipt", async || {
        let answer = admin.get(&pins).await;
        match answer.json()["items"][0]["edges"][0].is_object() {
            true => Ok(()),
            false => Err(answer.text),
        }
    })
    .await;
    check("get", environment, &admin.get(&pins).await);
    for (act, path) in [("promote", "promote"), ("rollback", "rollback")] {
        let done = crate::support::act(admin, http::Method::POST, &format!("guard/{act}")).await;
        check("post", &format!("{of_pin}/{path}"), &done);
    }
    world.stop().await;
}

/// With every object closed to what its schema does not name, so that what is shown is described.
/// What others are put together from stays open, but where it is an answer itself.
fn closed(schema: &mut Value) {
    let parts = schema["components"].to_string();
    let is_part = |name: &str| {
        let reference = format!(r##"{{"$ref":"#/components/schemas/{name}"}},{{"type":"object""##);
        parts.contains(&reference)
    };
    for (name, component) in schema["components"]["schemas"].as_object_mut().into_iter().flatten() {
        if let (false, Some(fields)) = (is_part(name), component.as_object_mut())
            && (fields.contains_key("properties") || fields.contains_key("allOf"))
        {
            fields.insert("unevaluatedProperties".to_owned(), json!(false));
        }
    }
    schema["unevaluatedProperties"] = json!(false);
}
