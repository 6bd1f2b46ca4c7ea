//! What a draft would change is told before it is made: for whom, from what to what, by which rule.

use serde_json::{Value, json};

use crate::world::World;

const IMPACT: &str = "/api/v1/namespaces/ours/environments/production/impact";

fn banner(countries: &[&str]) -> Value {
    json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "off" },
        "rules": [
            { "id": "home", "when": { "attr": "country", "op": "in", "value": countries },
                "serve": { "variant": "on" } },
            { "id": "staff", "when": { "attr": "email", "op": "ends_with", "value": "@example.com" },
                "serve": { "variant": "on" } } ] })
}

/// `banner` is on for Germany and staff; `shelf` needs it.
async fn world() -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    for key in ["banner", "shelf", "other"] {
        assert_eq!(world.flag("ours", key).await.0, 201);
    }
    let config = "/api/v1/namespaces/ours/environments/production/flags";
    let (status, body) = world.put(&format!("{config}/banner"), banner(&["DE"])).await;
    assert_eq!(status, 200, "{body}");
    let needs = json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" },
        "prerequisites": [{ "flag": "banner", "variants": ["on"] }] });
    let (status, body) = world.put(&format!("{config}/shelf"), needs).await;
    assert_eq!(status, 200, "{body}");
    world
}

fn contexts() -> Value {
    json!([
        { "targetingKey": "anna", "country": "DE" },
        { "targetingKey": "bert", "country": "FR" },
        { "targetingKey": "cara", "country": "FR", "email": "cara@example.com" },
        { "targetingKey": "dora", "country": "FR" },
        { "targetingKey": "emil" },
    ])
}

#[tokio::test]
async fn a_draft_is_compared_with_what_is_live_context_by_context() {
    let world = world().await;
    let before = world.published("ours").await;
    let asked =
        json!({ "flags": { "banner": { "config": banner(&["FR"]) } }, "contexts": contexts() });
    let (status, body) = world.post(IMPACT, asked.clone()).await;
    assert_eq!(status, 200, "{body}");
    // Anna loses it, Bert and Dora get it; Cara had it as staff and has it now by her country.
    assert_eq!((&body["contexts"], &body["changed"]), (&json!(5), &json!(3)), "{body}");
    assert_eq!(body["complete"], true);
    let flags = body["flags"].as_array().expect("flags");
    let names: Vec<_> = flags.iter().map(|flag| (&flag["flag"], &flag["inDraft"])).collect();
    assert_eq!(names, [(&json!("banner"), &json!(true)), (&json!("shelf"), &json!(false))]);
    let off = json!({ "variant": "off", "value": false, "reason": "DEFAULT" });
    let on = |rule: &str| json!({ "variant": "on", "value": true, "reason": "TARGETING_MATCH", "rule": rule });
    let gained = &flags[0]["transitions"][0];
    assert_eq!((&gained["from"], &gained["to"]), (&off, &on("home")), "{body}");
    assert_eq!(gained["contexts"], 2);
    assert_eq!(gained["examples"], json!([contexts()[1], contexts()[3]]));
    let lost = &flags[0]["transitions"][1];
    assert_eq!((&lost["from"], &lost["to"]), (&on("home"), &off), "{body}");
    // Who needs it changes with it.
    assert_eq!(flags[1]["changed"], 3, "{body}");
    // Nothing was written, and the same question has the same answer.
    assert_eq!(world.published("ours").await, before);
    assert_eq!(world.post(IMPACT, asked).await.1, body);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_new_flag_changes_what_edges_answer_for_it_and_a_same_draft_nothing() {
    let world = world().await;
    let same =
        json!({ "flags": { "banner": { "config": banner(&["DE"]) } }, "contexts": contexts() });
    let (_, body) = world.post(IMPACT, same).await;
    assert_eq!(
        (&body["changed"], &body["flags"][0]["transitions"]),
        (&json!(0), &json!([])),
        "{body}"
    );
    let new = json!({ "flags": { "fresh": {
        "definition": { "key": "fresh", "type": "boolean", "variants": { "on": true } },
        "config": { "enabled": true, "fallthrough": { "variant": "on" } } } },
        "contexts": contexts() });
    let (status, body) = world.post(IMPACT, new).await;
    assert_eq!((status, &body["changed"]), (200, &json!(5)), "{body}");
    let first = &body["flags"][0]["transitions"][0];
    assert_eq!(first["from"], json!({ "errorCode": "FLAG_NOT_FOUND" }), "{body}");
    assert_eq!(first["examples"].as_array().expect("examples").len(), 3);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_draft_that_would_be_refused_is_refused_with_the_place_in_the_request() {
    let world = world().await;
    let config = |variant: &str| json!({ "enabled": true, "fallthrough": { "variant": variant } });
    let table = [
        (json!({ "flags": {}, "contexts": [] }), 422, "/flags"),
        (
            json!({ "flags": { "banner": { "config": config("green") } }, "contexts": [] }),
            422,
            "/flags/banner/config/fallthrough",
        ),
        (
            json!({ "flags": { "none": { "config": config("on") } }, "contexts": [] }),
            422,
            "/flags/none",
        ),
        (json!({ "flags": { "banner": { "colour": 1 } }, "contexts": [] }), 422, "/flags/banner"),
        (
            json!({ "flags": { "banner": { "config": config("on") } }, "contexts": [3] }),
            422,
            "/contexts/0",
        ),
        (
            json!({ "flags": { "banner": { "config": config("on") } },
                "contexts": vec![json!({}); 1_001] }),
            422,
            "/contexts",
        ),
    ];
    for (asked, wanted, place) in table {
        let (status, body) = world.post(IMPACT, asked.clone()).await;
        let pointer = body["errors"][0]["pointer"].as_str().unwrap_or_default();
        assert_eq!(status, wanted, "{asked}: {body}");
        assert!(pointer.starts_with(place), "{asked}: {body}");
    }
    let most = json!({ "flags": { "banner": { "config": config("on") } },
        "contexts": vec![json!({ "country": "FR" }); 1_000] });
    let (status, body) = world.post(IMPACT, most).await;
    assert_eq!((status, &body["changed"]), (200, &json!(1_000)), "{body}");
    world.control.shutdown().await;
}

const SAMPLING: &str = "/api/v1/namespaces/ours/environments/production/sampling";
const CONTEXTS: &str = "/api/v1/namespaces/ours/environments/production/contexts";

/// What an edge brings of `ours` and `theirs`, and is told.
async fn bring(world: &World, key: &str, samples: Value) -> (u16, Value) {
    let of = |namespace: &str| json!({ "namespace": namespace, "environment": "production", "samples": samples });
    let body = json!({ "edge": "e", "environments": [of("ours"), of("theirs")] });
    let url = format!("{}/edge/v1/samples", world.url);
    crate::world::read(world.http.post(url).bearer_auth(key).json(&body)).await
}

#[tokio::test]
async fn nothing_is_sampled_until_it_is_ordered_and_only_so_much_is_kept() {
    let world = world().await;
    world.namespace("theirs").await;
    let key = world.edge_key(json!(["ours"])).await;
    let sample = |n: i64| json!({ "atMs": 1_900_000_000_000_i64, "context": { "n": n } });
    let (status, body) = bring(&world, &key, json!([sample(1)])).await;
    assert_eq!((status, body), (200, json!({ "orders": [] })));
    assert_eq!(world.get(SAMPLING).await.1, json!({ "on": false, "kept": 0 }));
    assert_eq!(world.delete(SAMPLING).await.0, 404);

    for namespace in ["ours", "theirs"] {
        let path = SAMPLING.replace("ours", namespace);
        let order = json!({ "perMinute": 60, "keep": ["country"], "minutes": 5 });
        let (status, body) = world.put(&path, order).await;
        assert_eq!((status, &body["on"]), (200, &json!(true)), "{body}");
    }
    // Told of its own namespace alone, and believed of no other.
    let (_, body) = bring(&world, &key, json!([sample(1), { "atMs": 0, "context": "no" }])).await;
    let orders = body["orders"].as_array().expect("orders");
    assert_eq!(orders.len(), 1, "{body}");
    assert_eq!(
        (&orders[0]["namespace"], &orders[0]["keep"]),
        (&json!("ours"), &json!(["country"]))
    );
    assert_eq!(world.get(SAMPLING).await.1["kept"], 1);
    assert_eq!(world.get(&SAMPLING.replace("ours", "theirs")).await.1["kept"], 0);

    for part in 0..6 {
        let samples: Vec<Value> = (0..200).map(|n| sample(part * 200 + n)).collect();
        assert_eq!(bring(&world, &key, json!(samples)).await.0, 422, "400 in one report");
        let url = format!("{}/edge/v1/samples", world.url);
        let body = json!({ "edge": "e", "environments": [
            { "namespace": "ours", "environment": "production", "samples": samples }] });
        let sent = world.http.post(url).bearer_auth(&key).json(&body);
        assert_eq!(crate::world::read(sent).await.0, 200);
    }
    assert_eq!(world.get(SAMPLING).await.1["kept"], 1_000);
    let (_, body) = world.get(&format!("{CONTEXTS}?limit=2")).await;
    let newest: Vec<_> = body["items"].as_array().expect("items").iter().collect();
    assert_eq!((newest.len(), &newest[0]["context"]), (2, &json!({ "n": 1_199 })), "{body}");

    let asked = json!({ "flags": { "banner": { "config":
        { "enabled": true, "fallthrough": { "variant": "on" } } } }, "recent": 300 });
    let (_, body) = world.post(IMPACT, asked).await;
    assert_eq!((&body["contexts"], &body["changed"]), (&json!(300), &json!(300)), "{body}");

    assert_eq!(world.delete(SAMPLING).await.0, 204);
    assert_eq!(world.get(SAMPLING).await.1, json!({ "on": false, "kept": 0 }));
    let (_, body) = world.get("/api/v1/namespaces/ours/audit?limit=2").await;
    let said: Vec<_> =
        body["items"].as_array().expect("items").iter().map(|one| &one["action"]).collect();
    assert_eq!(said, [&json!("sampling.unset"), &json!("sampling.set")]);
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_order_names_its_bounds() {
    let world = world().await;
    for (order, place) in [
        (json!({ "perMinute": 0, "keep": [], "minutes": 5 }), "/perMinute"),
        (json!({ "perMinute": 601, "keep": [], "minutes": 5 }), "/perMinute"),
        (json!({ "perMinute": 1, "keep": [""], "minutes": 5 }), "/keep/0"),
        (json!({ "perMinute": 1, "keep": vec!["a"; 51], "minutes": 5 }), "/keep"),
        (json!({ "perMinute": 1, "keep": [], "minutes": 1_441 }), "/minutes"),
    ] {
        let (status, body) = world.put(SAMPLING, order.clone()).await;
        assert_eq!(
            (status, &body["errors"][0]["pointer"]),
            (422, &json!(place)),
            "{order}: {body}"
        );
    }
    world.control.shutdown().await;
}

const SETS: &str = "/api/v1/namespaces/ours/change-sets";
const CONFIGS: &str = "/api/v1/namespaces/ours/environments/production/flags";

async fn set_of(world: &World, items: Value) -> String {
    let (status, body) = world.post(SETS, json!({ "title": "T", "items": items })).await;
    assert_eq!(status, 201, "{body}");
    format!("{SETS}/{}", body["number"])
}

/// What each flag gives each context: its value, or why there is none.
async fn answers(world: &World, flags: &[&str]) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for flag in flags {
        let mut of_flag = Vec::new();
        for context in contexts().as_array().expect("contexts") {
            let asked = json!({ "flag": flag, "context": context });
            let path = "/api/v1/namespaces/ours/environments/production/evaluate";
            let (status, body) = world.post(path, asked).await;
            of_flag.push(match status {
                200 => json!([body["results"][0]["variant"], body["results"][0]["value"]]),
                status => json!(status),
            });
        }
        all.push(of_flag);
    }
    all
}

/// Inside of `outer`, so that who asks for one asks for the other.
async fn segments(world: &World) {
    let path = "/api/v1/namespaces/ours/environments/production/segments";
    let beta = json!({ "key": "beta", "included": ["anna"] });
    let outer = json!({ "key": "outer", "rules": [{ "segment": "beta" }] });
    for segment in [beta, outer] {
        let (status, body) = world.post(path, segment).await;
        assert_eq!(status, 201, "{body}");
    }
    let rule =
        json!({ "id": "beta", "when": { "segment": "outer" }, "serve": { "variant": "on" } });
    let config = json!({ "enabled": true, "off": "off", "rules": [rule],
        "fallthrough": { "variant": "off" } });
    let (status, body) = world.put(&format!("{CONFIGS}/other"), config).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn of_a_change_set_all_items_count_together_and_its_application_does_what_was_told() {
    let world = world().await;
    segments(&world).await;
    world.environment("ours", "staging").await;
    let on_for = |segment: &str| {
        let rule =
            json!({ "id": "them", "when": { "segment": segment }, "serve": { "variant": "on" } });
        json!({ "enabled": true, "off": "off", "rules": [rule], "fallthrough": { "variant": "off" } })
    };
    let config = |environment: &str, key: &str, value: Value| json!({ "kind": "config", "environment": environment, "key": key, "value": value });
    let segment = |value: Value| {
        json!({ "kind": "segment", "environment": "production", "key": value["key"],
            "value": value })
    };
    let french = json!({ "attr": "country", "op": "eq", "value": "FR" });
    // `fresh` is new and needs `banner`, which asks for `new`, which is new and asks for `beta`, which
    // changes: `other` asks for that through `outer`, and is in no item; nor is `shelf`.
    let mut fresh = on_for("new");
    fresh["prerequisites"] = json!([{ "flag": "banner", "variants": ["on"] }]);
    let set = set_of(
        &world,
        json!([
            config("production", "fresh", fresh),
            config("production", "banner", on_for("new")),
            config("staging", "banner", banner(&["DE"])),
            segment(json!({ "key": "beta", "included": ["emil", "bert"] })),
            segment(json!({ "key": "new", "rules": [{ "all": [french, { "segment": "beta" }] }],
                "included": ["dora"] })),
            { "kind": "definition", "key": "fresh", "value": { "key": "fresh", "type": "boolean",
                "variants": { "on": true, "off": false } } },
        ]),
    )
    .await;
    let flags = ["fresh", "banner", "other", "shelf"];
    let live = (world.published("ours").await, answers(&world, &flags).await);
    let asked = json!({ "environment": "production", "contexts": contexts() });
    let (status, told) = world.post(&format!("{set}/impact"), asked.clone()).await;
    assert_eq!(status, 200, "{told}");
    let of_flags: Vec<_> = told["flags"]
        .as_array()
        .expect("flags")
        .iter()
        .map(|of| json!([of["flag"], of["inDraft"], of["changed"]]))
        .collect();
    assert_eq!(
        json!(of_flags),
        json!([["fresh", true, 5], ["banner", true, 4], ["other", false, 3], ["shelf", false, 4]])
    );
    assert_eq!((&told["contexts"], &told["changed"]), (&json!(5), &json!(5)), "{told}");
    let gained = &told["flags"][1]["transitions"][0];
    assert_eq!((&gained["to"]["rule"], &gained["contexts"]), (&json!("them"), &json!(2)), "{told}");
    assert_eq!(gained["examples"], json!([contexts()[1], contexts()[3]]));
    // Nothing was written.
    assert_eq!((world.published("ours").await, answers(&world, &flags).await), live);
    assert_eq!(world.get(&set).await.1["state"], "draft");

    for step in ["submit", "apply"] {
        let (status, body) = world.post(&format!("{set}/{step}"), json!({})).await;
        assert_eq!(status, 200, "{step}: {body}");
    }
    let after = answers(&world, &flags).await;
    let differ = |(before, after): (&Vec<Value>, &Vec<Value>)| {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    };
    let changed: Vec<usize> = live.1.iter().zip(&after).map(differ).collect();
    assert_eq!(changed, [5, 4, 3, 4], "{after:?}");
    // And once it is there it changes nothing.
    let (_, told) = world.post(&format!("{set}/impact"), asked).await;
    assert_eq!(told["changed"], 0, "{told}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_a_set_takes_away_is_previewed_as_gone_and_what_it_lacks_is_told_at_its_item() {
    let world = world().await;
    segments(&world).await;
    world.environment("ours", "staging").await;
    let at = |items: Value| {
        let world = &world;
        async move { format!("{}/impact", set_of(world, items).await) }
    };
    let gone = json!({ "kind": "definition", "key": "shelf", "value": null });
    let lists = json!({ "kind": "segment", "environment": "production", "key": "beta",
        "value": { "key": "beta", "included": [] } });
    let both = at(json!([gone, lists])).await;
    let (status, body) = world.post(&both, json!({ "contexts": contexts() })).await;
    assert_eq!(status, 200, "{body}");
    let flags = body["flags"].as_array().expect("flags");
    let shelf = &flags[0]["transitions"][0];
    assert_eq!(shelf["to"], json!({ "errorCode": "FLAG_NOT_FOUND" }), "{body}");
    assert_eq!((&flags[1]["flag"], &flags[1]["changed"]), (&json!("other"), &json!(1)), "{body}");

    let config = |key: &str, value: Value| json!({ "kind": "config", "environment": "production", "key": key, "value": value });
    let unused = json!({ "kind": "segment", "environment": "production", "key": "outer",
        "value": null });
    let pin = json!({ "kind": "policy-pin", "environment": "production", "key": "guard",
        "value": { "digest": "0".repeat(64) } });
    let green = json!({ "enabled": true, "fallthrough": { "variant": "green" } });
    let ids = json!({ "kind": "segment", "environment": "production", "key": "s",
        "value": { "key": "s", "included": ["one", ""] } });
    let ok = config("banner", banner(&["FR"]));
    let table = [
        (json!([ok, config("other", green)]), json!({}), "/items/1/value/fallthrough/variant"),
        (json!([ok, config("none", banner(&[]))]), json!({}), "/items/1"),
        (json!([unused]), json!({}), "/items"),
        (json!([ok, pin]), json!({}), "/items/1/value"),
        (json!([ok, ids]), json!({}), "/items/1/value/included/1"),
        (json!([ok]), json!({ "contexts": [3] }), "/contexts/0"),
        (json!([ok]), json!({ "contexts": vec![json!({}); 1_001] }), "/contexts"),
        (json!([ok]), json!({ "environment": "staging" }), "/environment"),
        (json!([gone]), json!({}), "/environment"),
        (json!([gone]), json!({ "environment": "production", "recent": 0 }), "/recent"),
    ];
    for (items, asked, pointer) in table {
        let (status, body) = world.post(&at(items.clone()).await, asked.clone()).await;
        assert_eq!(status, 422, "{items} {asked}: {body}");
        assert_eq!(body["errors"][0]["pointer"], pointer, "{items} {asked}: {body}");
    }
    assert_eq!(world.post(&format!("{SETS}/999/impact"), json!({})).await.0, 404);
    let nowhere = json!({ "environment": "nowhere" });
    assert_eq!(world.post(&at(json!([gone])).await, nowhere).await.0, 404);
    world.control.shutdown().await;
}
