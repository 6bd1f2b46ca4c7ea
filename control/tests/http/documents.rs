//! Deletion and what must outlive it; documents in and out.

use serde_json::{Value, json};

use crate::world::World;

const FLAGS: &str = "/api/v1/namespaces/ours/flags";
const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

#[tokio::test]
async fn the_key_of_a_deleted_flag_is_never_used_again() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.namespace("theirs").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    assert_eq!(world.delete(&format!("{FLAGS}/f")).await.0, 204);
    let (status, body) = world.flag("ours", "f").await;
    assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/key")), "{body}");
    let reason = body["errors"][0]["message"].as_str().expect("a reason");
    assert!(reason.contains("choose another"), "{reason}");
    for (format, flag) in [
        (
            "flagd",
            json!({ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" }),
        ),
        (
            "tidegate",
            json!({ "definition": { "type": "boolean", "variants": { "on": true } },
                "config": { "enabled": true, "fallthrough": { "variant": "on" } } }),
        ),
    ] {
        let document = json!({ "flags": { "f": flag } });
        let (status, body) = world.post(&format!("{PLACE}/import?format={format}"), document).await;
        assert_eq!((status, &body["flags"][0]["result"]), (200, &json!("refused")), "{body}");
        assert!(body["flags"][0]["reason"].to_string().contains("choose another"), "{body}");
    }
    let definition = json!({ "key": "f", "type": "boolean", "variants": { "on": true } });
    let set = json!({ "title": "again", "items": [
        { "kind": "definition", "key": "f", "value": definition } ] });
    let (status, body) = world.post("/api/v1/namespaces/ours/change-sets", set).await;
    assert_eq!(status, 201, "{body}");
    let submit = "/api/v1/namespaces/ours/change-sets/1/submit";
    let (status, body) = world.post(submit, json!({})).await;
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["errors"][0]["pointer"], "/items/0/value/key", "{body}");
    assert_eq!(world.get(&format!("{FLAGS}/f")).await.0, 404);
    // Another namespace is another world.
    assert_eq!(world.flag("theirs", "f").await.0, 201);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_flag_that_others_need_is_not_deleted_and_they_are_named() {
    let world = World::new().await;
    world.namespace("ours").await;
    for key in ["base", "needs", "rule-needs"] {
        assert_eq!(world.flag("ours", key).await.0, 201);
    }
    let needed = json!([ { "flag": "base", "variants": ["on"] } ]);
    let config = json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" },
        "prerequisites": needed });
    let (status, body) = world.put(&format!("{PLACE}/flags/needs"), config).await;
    assert_eq!(status, 200, "{body}");
    let config = json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" },
        "rules": [ { "id": "r", "prerequisites": needed, "serve": { "variant": "off" } } ] });
    let (status, body) = world.put(&format!("{PLACE}/flags/rule-needs"), config).await;
    assert_eq!(status, 200, "{body}");

    let (status, body) = world.delete(&format!("{FLAGS}/base")).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:in-use")), "{body}");
    for key in ["\"needs\"", "\"rule-needs\""] {
        assert!(body["detail"].as_str().is_some_and(|text| text.contains(key)), "{body}");
    }
    for key in ["needs", "rule-needs", "base"] {
        assert_eq!(world.delete(&format!("{FLAGS}/{key}")).await.0, 204, "{key}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_same_state_compiles_to_the_same_rules_in_two_servers() {
    let document = json!({ "flags": {
        "b": { "definition": { "type": "string", "variants": { "x": "1", "y": "2" } },
            "config": { "enabled": true, "off": "x", "fallthrough": { "variant": "y" },
                "rules": [ { "id": "r", "when": { "attr": "email", "op": "ends_with",
                    "value": "@example.com" }, "serve": { "split": { "by": "targetingKey",
                    "weights": { "x": 30000, "y": 70000 } } } } ] } },
        "a": { "definition": { "type": "boolean", "variants": { "on": true, "off": false } },
            "config": { "enabled": true, "fallthrough": { "variant": "on" } } } } });
    let mut reversed = document.clone();
    let flags = reversed["flags"].as_object_mut().expect("flags");
    let first = flags.remove("b").expect("b");
    flags.insert("b".to_owned(), first);

    let mut rulesets = Vec::new();
    for document in [document, reversed] {
        let world = World::new().await;
        world.namespace("ours").await;
        let (status, body) = world.post(&format!("{PLACE}/import?format=tidegate"), document).await;
        assert_eq!(status, 200, "{body}");
        world.published("ours").await;
        let edge = world.edge_key(json!("all")).await;
        let trusted = [world.control.public_key.clone()];
        let head = world.heads(&edge).await.heads[0].verify(&trusted).expect("a head");
        let url = format!("{}/edge/v1/blobs/{}", world.url, head.snapshot.digest);
        let blob = world.http.get(url).bearer_auth(&edge).send().await.expect("an answer");
        let blob = blob.bytes().await.expect("a blob");
        // The snapshot itself also holds the environment's own stream secret, which is random.
        let (manifest, ruleset) = rules::blob::decode_blob(&blob).expect("a blob");
        assert_eq!(manifest.flag_count, 2);
        rulesets.push(rules::blob::Digest::of(ruleset));
        // Nor does publishing the same state again change it, in the same server.
        let path = format!("{PLACE}/publish");
        assert_eq!(world.post(&path, json!({})).await.0, 202);
        world.published("ours").await;
        let again = world.heads(&edge).await.heads[0].verify(&trusted).expect("a head");
        assert_eq!(again.snapshot.digest, head.snapshot.digest);
        assert!(again.version > head.version);
        world.control.shutdown().await;
    }
    assert_eq!(rulesets[0], rulesets[1]);
}

#[tokio::test]
async fn an_export_to_flagd_names_what_flagd_cannot_express_and_leaves_it_out_only_when_told_to() {
    let world = World::new().await;
    world.namespace("ours").await;
    for key in ["plain", "base", "needs"] {
        assert_eq!(world.flag("ours", key).await.0, 201);
    }
    let config = json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" },
        "prerequisites": [ { "flag": "base", "variants": ["on"] } ] });
    assert_eq!(world.put(&format!("{PLACE}/flags/needs"), config).await.0, 200);
    let export = format!("{PLACE}/export?format=flagd");
    let (status, body) = world.get(&export).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(body["type"], "urn:tidegate:problem:inexpressible", "{body}");
    let places: Vec<&str> = body["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    assert!(places.iter().any(|place| place.contains("needs")), "{body}");
    let (status, body): (u16, Value) = world.get(&format!("{export}&partial=true")).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["flags"]["plain"].is_object() && body["flags"]["needs"].is_null(), "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_import_names_the_fields_that_nothing_was_made_of() {
    let world = World::new().await;
    world.namespace("ours").await;
    let document = json!({ "note": 1, "flags": { "a/b": { "state": "ENABLED", "variants": { "on": true },
        "defaultVariant": "on", "targetting": { "if": [true, "on"] } } } });
    for dry_run in [true, false] {
        let path = format!("{PLACE}/import?format=flagd&dry_run={dry_run}");
        let (status, body) = world.post(&path, document.clone()).await;
        assert_eq!((status, &body["flags"][0]["result"]), (200, &json!("created")), "{body}");
        assert_eq!(body["ignored"], json!(["/note", "/flags/a~1b/targetting"]), "{body}");
        assert_eq!(body["ignoredMore"], 0, "{body}");
    }
    let native = json!({ "flags": {} });
    let (_, body) = world.post(&format!("{PLACE}/import?format=tidegate"), native).await;
    assert_eq!(body["ignored"], json!([]), "{body}");
    world.control.shutdown().await;
}

/// Over nine keys each two of the three generations give two variants to somebody.
#[tokio::test]
async fn an_export_says_what_fractional_means_and_an_import_that_is_told_gives_everybody_the_same()
{
    let tree = json!({ "fractional": [{ "var": "targetingKey" }, ["a", 1], ["b", 1], ["c", 1]] });
    let document = json!({ "flags": { "f": { "state": "ENABLED", "targeting": tree,
        "variants": { "a": 1, "b": 2, "c": 3 }, "defaultVariant": "a" } } });
    let world = World::new().await;
    let mut answers = Vec::new();
    for version in ["v1", "v2", "v3"] {
        let (from, to) = (format!("from-{version}"), format!("to-{version}"));
        world.namespace(&from).await;
        world.namespace(&to).await;
        let place =
            |namespace: &str| format!("/api/v1/namespaces/{namespace}/environments/production");
        let import = format!("{}/import?format=flagd&fractional={version}", place(&from));
        let (status, body) = world.post(&import, document.clone()).await;
        assert_eq!((status, &body["flags"][0]["result"]), (200, &json!("created")), "{body}");

        let export = format!("{}/export?format=flagd", place(&from));
        let exported = world.ask("GET", &export).send().await.expect("an answer");
        let told = exported.headers()["tidegate-fractional"].to_str().expect("text").to_owned();
        assert_eq!(told, version);
        let exported: Value = exported.json().await.expect("a document");
        let import = format!("{}/import?format=flagd&fractional={told}", place(&to));
        let (status, body) = world.post(&import, exported).await;
        assert_eq!((status, &body["flags"][0]["result"]), (200, &json!("created")), "{body}");

        let mut variants = Vec::new();
        for user in 0..9 {
            let asked =
                json!({ "flag": "f", "context": { "targetingKey": format!("user-{user}") } });
            let mut both = Vec::new();
            for namespace in [&from, &to] {
                let path = format!("{}/evaluate", place(namespace));
                let (status, body) = world.post(&path, asked.clone()).await;
                assert_eq!(status, 200, "{body}");
                both.push(body["results"][0]["variant"].clone());
            }
            assert_eq!(both[0], both[1], "user-{user} with {version}");
            variants.push(both[0].clone());
        }
        assert!(!answers.contains(&variants), "{version} is told apart by nobody: {variants:?}");
        answers.push(variants);
    }
    let export = "/api/v1/namespaces/to-v1/environments/production/export?format=tidegate";
    let native = world.ask("GET", export).send().await.expect("an answer");
    assert!(!native.headers().contains_key("tidegate-fractional"), "each tree says it itself");
    world.control.shutdown().await;
}

/// flagd has one type of number, and callers rely on a flag's type.
#[tokio::test]
async fn a_float_flag_stays_one_through_flagd_whatever_its_numbers_are() {
    let world = World::new().await;
    world.namespace("ours").await;
    let import = format!("{PLACE}/import?format=flagd");
    let document = |a: Value, b: Value| {
        json!({ "flags": { "f": { "state": "ENABLED", "variants": { "a": a, "b": b },
            "defaultVariant": "a" } } })
    };
    let served = async || {
        let asked = json!({ "flag": "f", "context": {} });
        let (status, body) = world.post(&format!("{PLACE}/evaluate"), asked).await;
        assert_eq!(status, 200, "{body}");
        body["results"][0]["value"].to_string()
    };
    // A native one with whole values, out and in again.
    let native = json!({ "flags": { "f": {
        "definition": { "type": "float", "variants": { "a": 1, "b": 2 } },
        "config": { "enabled": true, "fallthrough": { "variant": "a" } } } } });
    let (status, body) = world.post(&format!("{PLACE}/import?format=tidegate"), native).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(served().await, "1.0");
    let (_, exported) = world.get(&format!("{PLACE}/export?format=flagd")).await;
    assert_eq!(exported["flags"]["f"]["variants"].to_string(), r#"{"a":1.0,"b":2.0}"#);
    let (_, body) = world.post(&import, exported).await;
    // Changed, since it now says where it came from; after that there is nothing to change.
    assert_eq!(body["flags"][0]["result"], "changed", "{body}");
    for (a, b, result, serves) in [
        (json!(1.0), json!(2.0), "unchanged", "1.0"),
        (json!(1), json!(2), "unchanged", "1.0"),
        (json!(2.5), json!(2), "changed", "2.5"),
        (json!(2), json!(2), "changed", "2.0"),
    ] {
        let (status, body) = world.post(&import, document(a, b)).await;
        assert_eq!((status, &body["flags"][0]["result"]), (200, &json!(result)), "{body}");
        assert_eq!(served().await, serves);
    }
    // An integer flag does not become a float one.
    for (value, result) in [
        (json!(1), "created"),
        (json!(1.0), "unchanged"),
        (json!(2.0), "changed"),
        (json!(1.5), "refused"),
    ] {
        let flag = json!({ "state": "ENABLED", "variants": { "a": value } });
        let (_, body) = world.post(&import, json!({ "flags": { "n": flag } })).await;
        assert_eq!(body["flags"][0]["result"], result, "{body}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn every_pointer_of_an_import_names_a_place_of_the_document_as_it_was_sent() {
    let world = World::new().await;
    world.namespace("ours").await;
    let flag = |more: Value| {
        let mut flag =
            json!({ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" });
        flag.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        flag
    };
    assert_eq!(world.flag("ours", "typed").await.0, 201);
    let wrong = [
        (
            "big",
            json!({ "variants": { "a": 9_007_199_254_740_993i64 }, "defaultVariant": "a" }),
            "/variants/a",
        ),
        ("control\u{1}", json!({}), ""),
        (
            "long",
            json!({ "metadata": { "a": "x".repeat(8_000), "b": "x".repeat(8_000), "c": "x".repeat(8_000) } }),
            "/metadata",
        ),
        ("tree", json!({ "targeting": { "if": [true, { "nope": 1 }] } }), "/targeting/if/1/nope"),
        ("text", json!({ "targeting": { "if": [true, "x".repeat(9_000)] } }), "/targeting/if/1"),
        // It is a boolean flag.
        ("typed", json!({ "variants": { "on": "text" } }), "-"),
    ];
    let mut object = json!({ "good": flag(json!({})) });
    let mut array = vec![flag(json!({ "key": "better" }))];
    for (key, more, _) in &wrong {
        object[key] = flag(more.clone());
        array.push(flag(more.clone()));
        array.last_mut().expect("a flag")["key"] = json!(key);
    }
    for (document, is_array) in
        [(json!({ "flags": object }), false), (json!({ "flags": array }), true)]
    {
        let (status, body) =
            world.post(&format!("{PLACE}/import?format=flagd"), document.clone()).await;
        assert_eq!(status, 200, "{body}");
        let results = body["flags"].as_array().expect("flags");
        let of = |key: &str| results.iter().find(|flag| flag["flag"] == key).expect(key);
        assert_eq!(of(if is_array { "better" } else { "good" })["result"], "created", "{body}");
        for (index, (key, _, place)) in wrong.iter().enumerate() {
            let at = match is_array {
                true => format!("/flags/{}", index + 1),
                false => format!("/flags/{key}"),
            };
            let expected = match *place {
                "" if is_array => format!("{at}/key"),
                "-" => at,
                place => format!("{at}{place}"),
            };
            let refused = of(key);
            assert_eq!(
                (&refused["result"], &refused["pointer"]),
                (&json!("refused"), &json!(expected)),
                "{refused}"
            );
            assert!(document.pointer(&expected).is_some(), "{expected} is nowhere");
        }
    }
    // What concerns the document as a whole.
    let document = json!({ "flags": {}, "metadata": { "a\u{1}": 1 } });
    let (status, body) = world.post(&format!("{PLACE}/import?format=flagd"), document).await;
    assert_eq!(
        (status, &body["errors"][0]["pointer"]),
        (422, &json!("/metadata/a\u{1}")),
        "{body}"
    );
    // And what is elsewhere: a flag that was not sent waits for a variant which would be gone.
    let needs = json!({ "enabled": true, "fallthrough": { "variant": "on" },
        "prerequisites": [{ "flag": "good", "variants": ["on"] }] });
    let (status, body) = world.put(&format!("{PLACE}/flags/typed"), needs).await;
    assert_eq!(status, 200, "{body}");
    let other = json!({ "flags": { "good": flag(json!({ "variants": { "off": false }, "defaultVariant": "off" })) } });
    let (status, body) = world.post(&format!("{PLACE}/import?format=flagd"), other).await;
    assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("")), "{body}");
    let message = body["errors"][0]["message"].as_str().expect("a message");
    assert!(
        message
            .starts_with("at /flags/typed/config/prerequisites/0/variants/0 of the environment: "),
        "{message}"
    );
    world.control.shutdown().await;
}
