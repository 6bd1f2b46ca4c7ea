//! Bad input over HTTP: each gets a clear answer that names the place, and what was good stays.

use e2e::http::{Answer, Ofrep, segment, send};
use e2e::world::World;
use serde_json::{Value, json};

fn boolean(key: &str) -> Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } })
}

fn serving(variant: &str) -> Value {
    json!({ "enabled": true, "fallthrough": { "variant": variant } })
}

fn ruled(rule: Value) -> Value {
    json!({ "enabled": true, "rules": [rule], "fallthrough": { "variant": "on" } })
}

fn when(condition: Value) -> Value {
    ruled(json!({ "id": "r", "when": condition, "serve": { "variant": "off" } }))
}

fn split(split: Value) -> Value {
    ruled(json!({ "id": "r", "serve": { "split": split } }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_place_and_the_last_good_one_stays() {
    let world = World::start().await;
    world.admin.flag(&boolean("other"), &serving("on")).await;
    world.admin.flag(&boolean("target"), &serving("on")).await;
    let ofrep = world.ofrep();
    ofrep.serves("target", &json!({}), &json!(true)).await;

    // What is wrong, the configuration, and what the answer must name.
    let matrix: Vec<(&str, Value, &[&str])> = vec![
        (
            "unknown field",
            json!({ "enabled": true, "fallthru": {}, "fallthrough": { "variant": "on" } }),
            &["fallthru"],
        ),
        ("missing field", json!({ "enabled": true }), &["fallthrough"]),
        ("not an object", json!([1]), &[]),
        (
            "an array for an object",
            json!([true, null, [], [], { "variant": "on" }]),
            &["expected struct FlagConfig"],
        ),
        (
            "an array for a condition",
            when(json!([[{ "always": true }]])),
            &["/rules/0/when", "sequence"],
        ),
        (
            "wrong type",
            json!({ "enabled": "yes", "fallthrough": { "variant": "on" } }),
            &["enabled"],
        ),
        (
            "wrong type deep",
            ruled(json!({ "id": 7, "serve": { "variant": "on" } })),
            &["/rules/0/id"],
        ),
        ("unknown variant", serving("onn"), &["/fallthrough", "onn"]),
        (
            "unknown off variant",
            json!({ "enabled": false, "off": "gone", "fallthrough": { "variant": "on" } }),
            &["/off", "gone"],
        ),
        (
            "unknown variant in a rule",
            ruled(json!({ "id": "r", "serve": { "variant": "maybe" } })),
            &["/rules/0/serve", "maybe"],
        ),
        ("rule without serve", ruled(json!({ "id": "r" })), &["/rules/0", "serve"]),
        ("policy", ruled(json!({ "id": "r", "policy": { "name": "p" } })), &["/rules/0/policy"]),
        (
            "unknown operator",
            when(json!({ "attr": "a", "op": "resembles", "value": 1 })),
            &["/rules/0/when/op", "resembles", "starts_with"],
        ),
        ("no operator", when(json!({ "attr": "a", "value": 1 })), &["/rules/0/when", "no op"]),
        ("two forms", when(json!({ "all": [], "any": [] })), &["/rules/0/when", "all and any"]),
        (
            "unknown field of a condition",
            when(json!({ "attr": "a", "op": "eq", "vlaue": 1 })),
            &["/rules/0/when", "vlaue"],
        ),
        (
            "value of the wrong type",
            when(json!({ "attr": "a", "op": "lt", "value": "five" })),
            &["/rules/0/when", "lt"],
        ),
        (
            "not a version",
            when(json!({ "attr": "a", "op": "semver_gt", "value": "one.two" })),
            &["/rules/0/when", "one.two"],
        ),
        (
            "not a network",
            when(json!({ "attr": "a", "op": "cidr", "value": "10.0.0.0/64" })),
            &["/rules/0/when", "10.0.0.0/64"],
        ),
        (
            "not a date",
            when(json!({ "attr": "a", "op": "before", "value": "tomorrow" })),
            &["/rules/0/when", "tomorrow"],
        ),
        (
            "broken regex",
            when(json!({ "attr": "a", "op": "matches", "value": "(unclosed" })),
            &["/rules/0/when"],
        ),
        (
            "regex with too long a source",
            when(json!({ "attr": "a", "op": "matches", "value": "a".repeat(513) })),
            &["/rules/0/when", "512"],
        ),
        (
            "regex too big when compiled",
            when(json!({ "attr": "a", "op": "matches", "value": "((a{100}){100}){100}" })),
            &["/rules/0/when"],
        ),
        ("unknown segment", when(json!({ "segment": "nobody" })), &["/rules/0/when", "nobody"]),
        (
            "unknown JSONLogic operator",
            when(json!({ "logic": { "frobnicate": [1] } })),
            &["/rules/0/when/logic", "frobnicate"],
        ),
        (
            "weights below the total",
            split(json!({ "weights": { "on": 50000, "off": 49999 } })),
            &["/rules/0/serve/split/weights", "99999", "100000"],
        ),
        (
            "weights above the total",
            split(json!({ "weights": { "on": 50000, "off": 50001 } })),
            &["/rules/0/serve/split/weights", "100001"],
        ),
        (
            "weight of an unknown variant",
            split(json!({ "weights": { "on": 50000, "of": 50000 } })),
            &["/rules/0/serve/split/weights/of"],
        ),
        ("split of nothing", split(json!({})), &["/rules/0/serve/split"]),
        ("negative weight", split(json!({ "weights": { "on": -1, "off": 100001 } })), &["weights"]),
        (
            "ramp that ends before it starts",
            split(
                json!({ "weights": { "on": 100000 }, "ramp": { "from": 0, "to": 100000, "start": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z" } }),
            ),
            &["/rules/0/serve/split/ramp"],
        ),
        (
            "window that is no date",
            ruled(json!({ "id": "r", "active": { "from": "soon" }, "serve": { "variant": "on" } })),
            &["/rules/0/active/from", "soon"],
        ),
        (
            "two rules of one id",
            json!({ "enabled": true, "rules": [{ "id": "r", "serve": { "variant": "on" } }, { "id": "r", "serve": { "variant": "off" } }], "fallthrough": { "variant": "on" } }),
            &["/rules/1/id"],
        ),
        (
            "unknown prerequisite",
            json!({ "enabled": true, "prerequisites": [{ "flag": "ghost", "variants": ["on"] }], "fallthrough": { "variant": "on" } }),
            &["/prerequisites/0", "ghost"],
        ),
        (
            "unknown variant of a prerequisite",
            json!({ "enabled": true, "prerequisites": [{ "flag": "other", "variants": ["up"] }], "fallthrough": { "variant": "on" } }),
            &["/prerequisites/0/variants", "up"],
        ),
        (
            "prerequisite of itself",
            json!({ "enabled": true, "prerequisites": [{ "flag": "target", "variants": ["on"] }], "fallthrough": { "variant": "on" } }),
            &["/prerequisites", "target"],
        ),
        (
            "too many rules",
            json!({ "enabled": true, "rules": (0..201).map(|n| json!({ "id": format!("r{n}"), "serve": { "variant": "on" } })).collect::<Vec<_>>(), "fallthrough": { "variant": "on" } }),
            &["/rules", "200"],
        ),
        (
            "nested too deep",
            when((0..40).fold(json!({ "always": true }), |inner, _| json!({ "not": inner }))),
            &["/rules/0/when", "16"],
        ),
    ];
    let mut faults = Vec::new();
    for (what, config, names) in matrix {
        let answer = world.admin.configure("target", &config).await;
        if let Err(fault) = refused(&answer, names) {
            faults.push(format!("{what}: {fault}"));
        }
    }
    assert!(faults.is_empty(), "{} are not clear:\n{}", faults.len(), faults.join("\n"));

    // The edge serves on, and a good write after all of this still arrives.
    assert_eq!(ofrep.one("target", &json!({})).await.ok().json()["value"], true);
    world.admin.configure("target", &serving("off")).await.ok();
    ofrep.serves("target", &json!({}), &json!(false)).await;
    world.stop().await;
}

/// A client error with a problem document that names these.
fn refused(answer: &Answer, names: &[&str]) -> Result<(), String> {
    if !(400..500).contains(&answer.status) {
        return Err(format!("answered {} {}", answer.status, answer.text));
    }
    if answer.header("content-type") != "application/problem+json" {
        return Err(format!("{} is no problem document: {}", answer.status, answer.text));
    }
    match names.iter().find(|name| !answer.text.contains(*name)) {
        Some(name) => Err(format!("{name:?} is not named in {}", answer.text)),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_prerequisites_is_refused_when_it_is_closed() {
    let world = World::start().await;
    let needs = |flag: &str| {
        json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" },
        "prerequisites": [{ "flag": flag, "variants": ["on"] }] })
    };
    for key in ["a", "b", "c"] {
        world.admin.flag(&boolean(key), &serving("on")).await;
    }
    world.admin.configure("a", &needs("b")).await.ok();
    world.admin.configure("b", &needs("c")).await.ok();
    let closed = world.admin.configure("c", &needs("a")).await;
    refused(&closed, &["prerequisites", "a", "b", "c"]).unwrap();
    world.ofrep().serves("a", &json!({}), &json!(true)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_definition_is_refused_with_its_place() {
    let world = World::start().await;
    let matrix: Vec<(&str, Value, &[&str])> = vec![
        (
            "unknown field",
            json!({ "key": "f", "type": "boolean", "variants": { "on": true }, "colour": 1 }),
            &["colour"],
        ),
        (
            "unknown type",
            json!({ "key": "f", "type": "bool", "variants": { "on": true } }),
            &["type", "bool"],
        ),
        ("no key", json!({ "type": "boolean", "variants": { "on": true } }), &["key"]),
        (
            "empty key",
            json!({ "key": "", "type": "boolean", "variants": { "on": true } }),
            &["key"],
        ),
        (
            "long key",
            json!({ "key": "k".repeat(257), "type": "boolean", "variants": { "on": true } }),
            &["key", "256"],
        ),
        (
            "value of another type",
            json!({ "key": "f", "type": "boolean", "variants": { "on": "yes" } }),
            &["/variants/on"],
        ),
        (
            "fraction as integer",
            json!({ "key": "f", "type": "integer", "variants": { "half": 0.5 } }),
            &["/variants/half"],
        ),
        (
            "integer beyond exactness",
            json!({ "key": "f", "type": "integer", "variants": { "big": 9007199254740993_i64 } }),
            &["/variants/big"],
        ),
        (
            "metadata that is no scalar",
            json!({ "key": "f", "type": "boolean", "variants": { "on": true }, "metadata": { "a": {} } }),
            &["metadata"],
        ),
    ];
    let mut faults = Vec::new();
    for (what, definition, names) in matrix {
        let mut definition = definition;
        if definition["key"] == "f" {
            // A name of its own: one that is accepted by mistake must not hide the next.
            definition["key"] = json!(what);
        }
        let answer = world.admin.create_flag(&definition).await;
        if let Err(fault) = refused(&answer, names) {
            faults.push(format!("{what}: {fault}"));
        }
    }
    let path = format!("/api/v1/namespaces/{}/flags", world.admin.namespace);
    let cut = world.admin.request(http::Method::POST, &path);
    let cut = send(cut.header("content-type", "application/json").body("{\"key\": \"f\",")).await;
    if let Err(fault) = refused(&cut, &["line"]) {
        faults.push(format!("cut JSON: {fault}"));
    }
    assert!(faults.is_empty(), "{} are not clear:\n{}", faults.len(), faults.join("\n"));
    world.admin.create_flag(&boolean("f")).await.ok();
    let twice = world.admin.create_flag(&boolean("f")).await;
    refused(&twice, &["f"]).unwrap();
    assert_eq!(twice.status, 409, "{}", twice.text);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_without_or_with_a_stale_version_are_refused() {
    let world = World::start().await;
    world.admin.flag(&boolean("f"), &serving("on")).await;
    let path = format!("{}/flags/f", world.admin.environment_path());
    let without = world.admin.request(http::Method::PUT, &path).json(&serving("off"));
    refused(&send(without).await, &["If-Match"]).unwrap();
    let old = world.admin.get(&path).await.ok();
    let etag = old.header("etag").to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    world.admin.configure("f", &serving("off")).await.ok();
    let stale = world.admin.request(http::Method::PUT, &path).header("if-match", &etag);
    let stale = send(stale.json(&serving("on"))).await;
    stale.problem(412, &["off"]);
    world.ofrep().serves("f", &json!({}), &json!(false)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_are_no_objects_are_invalid_and_missing_ones_are_empty() {
    let world = World::start().await;
    world.admin.flag(&boolean("f"), &serving("on")).await;
    let ofrep = world.ofrep();
    ofrep.serves("f", &json!({}), &json!(true)).await;
    let one = "/ofrep/v1/evaluate/flags/f";
    let bulk = "/ofrep/v1/evaluate/flags";
    for path in [one, bulk] {
        for body in [
            "{\"context\": [1]}",
            "{\"context\": \"x\"}",
            "{\"context\": 3}",
            "{\"context\": true}",
        ] {
            let answer = ofrep.raw(path, body, &[]).await;
            assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
            assert_eq!(
                answer.json()["errorCode"],
                "INVALID_CONTEXT",
                "{path} {body}: {}",
                answer.text
            );
            assert!(
                answer.json()["errorDetails"].as_str().is_some_and(|text| text.contains("object")),
                "{}",
                answer.text
            );
        }
        for body in ["{", "[1]", "{\"context\": {}} x", "nonsense", "{\"context\": {\"a\": }}"] {
            let answer = ofrep.raw(path, body, &[]).await;
            assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
            let code = answer.json()["errorCode"].clone();
            assert!(
                code == "PARSE_ERROR" || code == "INVALID_CONTEXT",
                "{path} {body}: {}",
                answer.text
            );
        }
        // Python sends {} without a context, flagd's clients no body at all.
        for body in [
            "",
            "{}",
            "{\"context\": null}",
            "{\"context\": {}}",
            "{\"context\": {\"targetingKey\": null}}",
            "{\"other\": 1}",
        ] {
            let answer = ofrep.raw(path, body, &[]).await;
            assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text);
        }
    }
    let deep = format!("{{\"context\": {{\"a\": {}1{}}}}}", "[".repeat(60), "]".repeat(60));
    let answer = ofrep.raw(one, deep, &[]).await;
    assert_eq!(
        (answer.status, &answer.json()["errorCode"]),
        (400, &json!("INVALID_CONTEXT")),
        "{}",
        answer.text
    );
    let long = json!({ "context": { "a": "x".repeat(70 * 1024) } }).to_string();
    let answer = ofrep.raw(one, long, &[]).await;
    assert_eq!(
        (answer.status, &answer.json()["errorCode"]),
        (400, &json!("INVALID_CONTEXT")),
        "{}",
        answer.text
    );
    let huge = json!({ "context": { "a": "x".repeat(200 * 1024) } }).to_string();
    assert_eq!(ofrep.raw(one, huge, &[]).await.status, 400);
    assert_eq!(ofrep.one("f", &json!({})).await.status, 200);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_with_slashes_and_unicode_work_from_end_to_end() {
    let world = World::start().await;
    let ofrep = world.ofrep();
    let keys = [
        "team/checkout/button",
        "größe-日本-🌊",
        "with space",
        "per%2Fcent%",
        "a+b&c=d?e#f",
        "dots..and/../more",
        "quo\"te'",
    ];
    for key in keys {
        let created = world.admin.create_flag(&boolean(key)).await;
        if key.contains("..") && created.status == 422 {
            // A key that a URL library would rewrite may be refused, but then clearly.
            refused(&created, &["key"]).unwrap();
            continue;
        }
        created.ok();
        world.admin.configure(key, &serving("on")).await.ok();
        ofrep.serves(key, &json!({}), &json!(true)).await;
        let answer = ofrep.one(key, &json!({})).await.ok().json();
        assert_eq!(answer["key"], json!(key), "{answer}");
        let path = format!("/api/v1/namespaces/{}/flags/{}", world.admin.namespace, segment(key));
        assert_eq!(world.admin.get(&path).await.ok().json()["key"], json!(key));
    }
    // Python does not escape slashes.
    let plain = ofrep.raw("/ofrep/v1/evaluate/flags/team/checkout/button", "{}", &[]).await.ok();
    assert_eq!(plain.json()["key"], "team/checkout/button");
    let bulk = ofrep.all(&json!({})).await.ok().json();
    let listed: Vec<&str> =
        bulk["flags"].as_array().unwrap().iter().filter_map(|f| f["key"].as_str()).collect();
    assert!(listed.contains(&"größe-日本-🌊"), "{listed:?}");
    assert!(listed.is_sorted(), "{listed:?}");
    let unknown = ofrep.one("team/größe/🌊?", &json!({})).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["key"], "team/größe/🌊?", "{}", unknown.text);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_import_says_what_it_refused_and_changes_nothing_else() {
    let world = World::start().await;
    let path = format!("{}/import?format=flagd&dry_run=false", world.admin.environment_path());
    for (what, document) in [
        ("not an object", json!([1])),
        ("no flags", json!({ "metadata": {} })),
        ("flags of another shape", json!({ "flags": 3 })),
    ] {
        let answer = world.admin.post(&path, &document).await;
        refused(&answer, &[]).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    }
    let document = json!({ "flags": {
        "good": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on", "targetting": {} },
        "mixed": { "state": "ENABLED", "variants": { "on": true, "off": "no" }, "defaultVariant": "on" },
        "unknown": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "of" },
        "operator": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on", "targeting": { "frobnicate": [1] } },
        "reference": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on", "targeting": { "$ref": "nowhere" } },
        "state": { "state": "SLEEPING", "variants": { "on": true }, "defaultVariant": "on" },
    } });
    let answer = world.admin.post(&path, &document).await.ok().json();
    let of = |key: &str| {
        let flags = answer["flags"].as_array().unwrap();
        flags
            .iter()
            .find(|flag| flag["flag"] == key)
            .cloned()
            .unwrap_or_else(|| panic!("{key}: {answer}"))
    };
    assert_eq!(of("good")["result"], "created", "{answer}");
    assert_eq!(answer["ignored"], json!(["/flags/good/targetting"]), "{answer}");
    for key in ["mixed", "unknown", "operator", "reference", "state"] {
        let flag = of(key);
        assert_eq!(flag["result"], "refused", "{flag}");
        assert!(flag["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{flag}");
        let pointer = flag["pointer"].as_str().unwrap_or("");
        assert!(pointer.starts_with(&format!("/flags/{key}")), "{flag}");
    }
    let ofrep = world.ofrep();
    ofrep.serves("good", &json!({}), &json!(true)).await;
    assert_eq!(ofrep.one("mixed", &json!({})).await.status, 404);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_told_apart_from_missing_ones_in_json() {
    let world = World::start().await;
    world.admin.flag(&boolean("f"), &serving("on")).await;
    world.ofrep().serves("f", &json!({}), &json!(true)).await;
    for key in ["", "nonsense", "tg_server_00000000_x_y", &world.admin.token] {
        let stranger = Ofrep::new(&world.edge_url(), key);
        let answer = stranger.one("f", &json!({})).await;
        assert!(
            answer.status == 401 || answer.status == 403,
            "{key}: {} {}",
            answer.status,
            answer.text
        );
        let answer = stranger.all(&json!({})).await;
        assert!(
            answer.status == 401 || answer.status == 403,
            "{key}: {} {}",
            answer.status,
            answer.text
        );
    }
    for token in ["", "tg_admin_00000000_x_y", &world.server_key] {
        let mut stranger = world.admin.clone();
        stranger.token = token.to_owned();
        let answer = stranger.get("/api/v1/namespaces").await;
        assert!(
            answer.status == 401 || answer.status == 403,
            "{token}: {} {}",
            answer.status,
            answer.text
        );
        refused(&answer, &[]).unwrap();
    }
    world.stop().await;
}
