//! Limits as they are published, and what happens at n and at n + 1.

use rules::limits::TABLE;
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, read};

const FLAGS: &str = "/api/v1/namespaces/ours/flags";
const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

/// A world, and its published limits.
async fn limited() -> (World, Value) {
    let world = World::new().await;
    world.namespace("ours").await;
    let (status, limits) = world.get("/api/v1/limits").await;
    assert_eq!(status, 200);
    (world, limits)
}

fn of(limits: &Value, name: &str) -> usize {
    let limit = limits[name].as_u64().unwrap_or_else(|| panic!("{name} is not published"));
    usize::try_from(limit).expect("a size")
}

fn definition(key: &str) -> Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } })
}

/// `when` as the condition of the one rule of flag `f`.
async fn rule(world: &World, when: Value) -> (u16, Value) {
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" },
        "rules": [ { "id": "r", "when": when, "serve": { "variant": "off" } } ] });
    world.put(&format!("{PLACE}/flags/f"), config).await
}

/// n passes; one more is refused with the limit in the message.
fn judge(what: &str, max: usize, at: (u16, Value), beyond: (u16, Value)) {
    assert!(matches!(at.0, 200 | 201), "{what}: {max} pass: {at:?}");
    assert_eq!(beyond.0, 422, "{what}: {max} + 1 do not: {}", beyond.1);
    let message = beyond.1["errors"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains(&max.to_string()), "{what}: {max} is named: {}", beyond.1);
}

#[tokio::test]
async fn the_route_and_the_description_publish_every_limit_of_the_one_table() {
    let (world, published) = limited().await;
    let (_, described) = world.get("/api/v1/openapi.json").await;
    let described = described["x-limits"].as_object().expect("limits");
    let published = published.as_object().expect("limits");
    for limit in TABLE {
        assert_eq!(published.get(limit.name), Some(&json!(limit.value)), "{}", limit.name);
    }
    for (name, value) in published {
        assert_eq!(&described[name]["value"], value, "{name}");
        let about = described[name]["description"].as_str().expect("a description");
        assert!(about.ends_with('.') && !about.starts_with(' '), "{name}: {about:?}");
    }
    assert_eq!(described.len(), published.len());
    assert_eq!(published.len(), TABLE.len() + 1, "control adds its own, environments");
    for name in ["conditionSteps", "metadataBytes", "regexNesting"] {
        assert!(published.contains_key(name), "{name}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_admin_body_of_a_mebibyte_is_read_and_one_byte_more_is_not() {
    let (world, limits) = limited().await;
    let max = of(&limits, "adminBodyBytes");
    let send = |key: &str, bytes: usize| {
        let mut body = definition(key).to_string();
        body.extend(std::iter::repeat_n(' ', bytes - body.len()));
        read(world.ask("POST", FLAGS).header("content-type", "application/json").body(body))
    };
    let (status, body) = send("beyond", max + 1).await;
    assert_eq!((status, &body["type"]), (413, &json!("urn:tidegate:problem:too-large")), "{body}");
    let (status, body) = send("at", max).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(world.get(&format!("{FLAGS}/beyond")).await.0, 404);
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_import_and_an_id_list_of_64_mebibytes_are_read_and_one_byte_more_is_not() {
    let (world, limits) = limited().await;
    let max = of(&limits, "importBytes");
    let (status, body) = world.post(&format!("{PLACE}/segments"), json!({ "key": "s" })).await;
    assert_eq!(status, 201, "{body}");
    let document = r#"{ "flags": {} }"#;
    let import = format!("{PLACE}/import?format=flagd");
    let list = format!("{PLACE}/segments/s/included");
    for (method, path, kind, text) in [
        ("POST", &import, "application/json", document),
        ("PUT", &list, "text/plain", "ann\nbob\n"),
    ] {
        for (bytes, expected) in [(max + 1, 413), (max, 200)] {
            let mut body = text.to_owned().into_bytes();
            body.resize(bytes, b'\n');
            let request = world.ask(method, path).header("content-type", kind);
            let (status, body) = read(request.header("if-match", "*").body(body)).await;
            assert_eq!(status, expected, "{path}, {bytes} bytes: {body}");
        }
    }
    let (_, segment) = world.get(&format!("{PLACE}/segments/s")).await;
    assert_eq!(segment["includedCount"], 2, "{segment}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn rules_clauses_values_and_patterns_have_their_limits() {
    let (world, limits) = limited().await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let clause = |index: usize| json!({ "attr": format!("a{index}"), "op": "eq", "value": "x" });

    let max = of(&limits, "rulesPerFlag");
    let rules = async |count: usize| {
        let rules: Vec<Value> = (0..count)
            .map(|index| {
                json!({ "id": format!("r{index}"), "when": clause(index),
                    "serve": { "variant": "off" } })
            })
            .collect();
        let config = json!({ "enabled": true, "fallthrough": { "variant": "on" }, "rules": rules });
        world.put(&format!("{PLACE}/flags/f"), config).await
    };
    judge("rules", max, rules(max).await, rules(max + 1).await);

    let max = of(&limits, "clausesPerRule");
    let clauses = async |count: usize| {
        rule(&world, json!({ "all": (0..count).map(clause).collect::<Vec<_>>() })).await
    };
    judge("clauses", max, clauses(max).await, clauses(max + 1).await);

    let max = of(&limits, "valuesPerClause");
    let values = async |count: usize| {
        let values: Vec<String> = (0..count).map(|value| format!("v{value}")).collect();
        rule(&world, json!({ "attr": "a", "op": "in", "value": values })).await
    };
    judge("values", max, values(max).await, values(max + 1).await);

    let max = of(&limits, "regexSourceBytes");
    let pattern = async |source: String| {
        rule(&world, json!({ "attr": "a", "op": "matches", "value": source })).await
    };
    judge("pattern", max, pattern("a".repeat(max)).await, pattern("a".repeat(max + 1)).await);

    let max = of(&limits, "regexNesting");
    let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    let (at, beyond) = (pattern(nested(max)).await, pattern(nested(max + 1)).await);
    assert_eq!((at.0, beyond.0), (200, 422), "nesting: {at:?} {beyond:?}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn strings_variants_keys_and_metadata_have_their_limits() {
    let (world, limits) = limited().await;
    let make = async |key: &str, change: Value| {
        let mut body = json!({ "key": key, "type": "string", "variants": { "v": "x" } });
        for (name, value) in change.as_object().expect("fields") {
            body[name] = value.clone();
        }
        world.post(FLAGS, body).await
    };

    let max = of(&limits, "stringBytes");
    let text = |bytes: usize| json!({ "variants": { "v": "x".repeat(bytes) } });
    judge("string", max, make("s0", text(max)).await, make("s1", text(max + 1)).await);

    let max = of(&limits, "variantsPerFlag");
    let variants = |count: usize| {
        let named = (0..count).map(|index| (format!("v{index}"), json!("x")));
        json!({ "variants": named.collect::<serde_json::Map<_, _>>() })
    };
    judge("variants", max, make("v0", variants(max)).await, make("v1", variants(max + 1)).await);

    let max = of(&limits, "keyBytes");
    let none = || json!({});
    let long = |bytes: usize| "k".repeat(bytes);
    judge("key", max, make(&long(max), none()).await, make(&long(max + 1), none()).await);

    let max = of(&limits, "metadataBytes");
    let metadata = |bytes: usize| {
        let frame = json!({ "a": "", "b": "", "c": "" }).to_string().len();
        let third = (bytes - frame) / 3;
        let rest = bytes - frame - 2 * third;
        json!({ "metadata": { "a": "x".repeat(third), "b": "x".repeat(third),
            "c": "x".repeat(rest) } })
    };
    judge("metadata", max, make("m0", metadata(max)).await, make("m1", metadata(max + 1)).await);
    world.control.shutdown().await;
}

#[tokio::test]
async fn ten_thousand_flags_are_an_environment_and_one_more_is_not() {
    let (world, limits) = limited().await;
    let max = of(&limits, "flags");
    let flags: serde_json::Map<String, Value> = (0..max)
        .map(|index| {
            let flag = json!({ "state": "ENABLED", "variants": { "on": true },
                "defaultVariant": "on" });
            (format!("f{index}"), flag)
        })
        .collect();
    let path = format!("{PLACE}/import?format=flagd");
    let (status, body) = world.post(&path, json!({ "flags": flags })).await;
    assert_eq!(status, 200, "{}", body["detail"]);
    let created = body["flags"].as_array().expect("flags").iter();
    assert_eq!(created.filter(|flag| flag["result"] == "created").count(), max);

    let (status, body) = world.flag("ours", "one-more").await;
    assert_eq!(status, 422, "{body}");
    assert!(body["detail"].as_str().is_some_and(|text| text.contains(&max.to_string())), "{body}");
    let one_more = json!({ "flags": { "another": { "state": "ENABLED",
        "variants": { "on": true }, "defaultVariant": "on" } } });
    let (status, body) = world.post(&path, one_more).await;
    let refused = status == 422 || body["flags"][0]["result"] == "refused";
    assert!(refused, "an import is held to it too: {status} {body}");
    assert_eq!(world.get(&format!("{FLAGS}/another")).await.0, 404);
    world.published_within("ours", "production", PATIENCE * 10).await;
    world.control.shutdown().await;
}
