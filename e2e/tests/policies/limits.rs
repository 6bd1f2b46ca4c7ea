//! The limits of policies over HTTP, each at n and at n + 1.

use std::time::Duration;

use e2e::http::{send, until};
use e2e::world::{Setup, World};
use http::Method;
use rules::limits::{
    POLICIES_MAX, POLICY_BYTES_MAX, POLICY_INPUT_BYTES_MAX, POLICY_OUTPUT_BYTES_MAX,
};
use serde_json::{Value, json};

use crate::support::{
    asked, asking, definition, digest, dry_run, express, german, is_late, module, pin, ready,
    upload, use_policy,
};

/// No test here is about how often one may upload.
fn unhurried(config: &mut control::config::Config) {
    config.policy_uploads_per_minute = std::num::NonZeroU32::MAX;
}

/// A compiler that was too late on a busy machine is asked again soon.
fn restless(config: &mut edge::config::Config) {
    config.anti_entropy = Duration::from_secs(1);
}

/// With a custom section that brings it to `bytes`.
fn padded(bytes: usize) -> Vec<u8> {
    let mut wasm = express();
    // Its id, five bytes of length, one of its name's length; the name is empty.
    let content = bytes - wasm.len() - 6;
    wasm.push(0);
    let mut rest = content;
    for place in 0..5 {
        let more = if place < 4 { 0x80 } else { 0 };
        wasm.push((rest & 0x7f) as u8 | more);
        rest >>= 7;
    }
    wasm.push(0);
    wasm.resize(bytes, 0);
    wasm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_the_largest_size_is_taken_and_one_byte_more_is_not() {
    let world = World::start().await;
    let most = padded(POLICY_BYTES_MAX);
    assert_eq!(most.len(), POLICY_BYTES_MAX);
    let taken = upload(&world.admin, "large", &most).await;
    assert_eq!(taken.status, 201, "{}", taken.text);
    let more = padded(POLICY_BYTES_MAX + 1);
    upload(&world.admin, "large", &more).await.problem(413, &["262144 bytes"]);
    // And where nobody says how long it will be.
    let path = format!("/api/v1/namespaces/{}/policies/large/versions", world.admin.namespace);
    let pieces = more.chunks(64 * 1024).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let pieces: Vec<_> = pieces.collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request =
        world.admin.request(Method::POST, &path).header("content-type", "application/wasm");
    send(request.body(body)).await.problem(413, &["262144 bytes"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_vectors_are_run_and_one_more_is_refused() {
    let world = World::start().await;
    let wasm = express();
    assert_eq!(upload(&world.admin, "guard", &wasm).await.status, 201);
    let namespace = &world.admin.namespace;
    let digest = digest(&wasm);
    let path = format!("/api/v1/namespaces/{namespace}/policies/guard/versions/{digest}/vectors");
    let vectors = |count: usize| {
        let vector = |n: usize| {
            json!({ "name": format!("v{n}"), "input":
            { "type": "string", "variants": ["express"] }, "expect": { "variant": "express" } })
        };
        json!({ "vectors": (0..count).map(vector).collect::<Vec<_>>() })
    };
    let mut ran = world.admin.put(&path, &vectors(100)).await;
    for _ in 0..3 {
        if !is_late(&ran) {
            break;
        }
        ran = world.admin.put(&path, &vectors(100)).await;
    }
    let ran = ran.ok().json();
    assert_eq!(ran["verdict"]["vectors"].as_array().map(Vec::len), Some(100), "{ran}");
    let refused = world.admin.put(&path, &vectors(101)).await;
    refused.problem(422, &["101 test vectors; 100 are allowed"]);
    // The verdict that is there stays.
    let version = path.strip_suffix("/vectors").expect("a version");
    let version = world.admin.get(version).await.ok().json();
    assert_eq!(version["verdict"]["vectors"].as_array().map(Vec::len), Some(100));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_pins_and_an_edge_runs_a_hundred_policies_and_one_more_is_refused() {
    let setup = Setup { control: &unhurried, edge: &restless, ..Setup::default() };
    let world = World::with(setup).await;
    let admin = &world.admin;
    let name = |n: usize| format!("p{n:03}");
    for n in 0..=POLICIES_MAX {
        // Each another module, so that the edge has to compile all of them.
        let wasm = module(&format!(r#"{{"value":"of {n}"}}"#));
        assert_eq!(upload(admin, &name(n), &wasm).await.status, 201);
        let pinned = pin(admin, &name(n), &json!({ "digest": digest(&wasm) })).await;
        match n < POLICIES_MAX {
            true => drop(pinned.ok()),
            false => pinned.problem(422, &["policies", "100"]),
        }
    }
    let rule = |n: usize| {
        json!({ "id": name(n), "when": { "attr": "country", "op": "eq", "value": n.to_string() },
            "policy": { "name": name(n) } })
    };
    let rules: Vec<Value> = (0..POLICIES_MAX).map(rule).collect();
    let config =
        json!({ "enabled": true, "fallthrough": { "variant": "classic" }, "rules": rules });
    admin.flag(&definition(), &config).await;
    let ofrep = world.ofrep();
    ofrep.serves("checkout", &german(), &json!("C")).await;
    // They are compiled one after the other; each step has its own deadline.
    for left in [80, 60, 40, 20, 0] {
        until("more of them being compiled", async || {
            let ready = ready(&world).await;
            let absent = ready["absentPolicies"].as_u64().unwrap_or(u64::MAX);
            let named = ready["absent"].as_array().map_or(0, Vec::len) as u64;
            assert_eq!(named, absent.min(20), "{ready}");
            if absent <= left { Ok(()) } else { Err(ready.to_string()) }
        })
        .await;
    }
    for n in [0, 50, POLICIES_MAX - 1] {
        let context = json!({ "targetingKey": "u", "country": n.to_string() });
        ofrep.serves("checkout", &context, &json!(format!("of {n}"))).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_of_the_largest_size_is_answered_and_one_byte_more_falls_back() {
    let world = World::start().await;
    let admin = &world.admin;
    admin.create_flag(&definition()).await.ok();
    use_policy(admin, "guard", &express()).await;
    admin.configure("checkout", &asking("guard")).await.ok();
    let context = |bytes: usize| json!({ "targetingKey": "u", "country": "x".repeat(bytes) });
    let bare = asked(&dry_run(admin, &context(0)).await)["input"].to_string().len();
    let most = POLICY_INPUT_BYTES_MAX - bare;
    let ofrep = world.ofrep();
    ofrep.serves("checkout", &german(), &json!("E")).await;

    let answered = dry_run(admin, &context(most)).await;
    assert_eq!(asked(&answered)["input"].to_string().len(), POLICY_INPUT_BYTES_MAX);
    assert_eq!((&answered["value"], &asked(&answered)["fault"]), (&json!("E"), &Value::Null));
    ofrep.serves("checkout", &context(most), &json!("E")).await;
    let refused = dry_run(admin, &context(most + 1)).await;
    assert_eq!((&refused["value"], &asked(&refused)["fault"]), (&json!("F"), &json!("input")));
    ofrep.serves("checkout", &context(most + 1), &json!("F")).await;
    // It is what it is given that counts: the rest of the context may be as large as any.
    let mut wide = german();
    wide["note"] = json!("x".repeat(POLICY_INPUT_BYTES_MAX));
    ofrep.serves("checkout", &wide, &json!("E")).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_largest_size_is_served_and_one_byte_more_falls_back() {
    let world = World::start().await;
    let admin = &world.admin;
    let of = |bytes: usize| "x".repeat(bytes - r#"{"value":""}"#.len());
    for (policy, flag, bytes) in
        [("most", "most", POLICY_OUTPUT_BYTES_MAX), ("more", "more", POLICY_OUTPUT_BYTES_MAX + 1)]
    {
        let answer = json!({ "value": of(bytes) }).to_string();
        assert_eq!(answer.len(), bytes);
        use_policy(admin, policy, &module(&answer)).await;
        let mut definition = definition();
        definition["key"] = json!(flag);
        admin.flag(&definition, &asking(policy)).await;
    }
    let ofrep = world.ofrep();
    ofrep.serves("most", &german(), &json!(of(POLICY_OUTPUT_BYTES_MAX))).await;
    ofrep.serves("more", &german(), &json!("F")).await;
    let dry = crate::support::dry_run_of(admin, "more", &german()).await;
    assert_eq!(asked(&dry)["fault"], "output", "{dry}");
    world.stop().await;
}
