//! The whole path: a write at control becomes an answer at the edge.

use e2e::http::{Ofrep, segment, send, until};
use e2e::world::{Setup, World, workspace};
use serde_json::{Value, json};

fn demo_flags() -> Value {
    let path = workspace().join("rules/tests/data/otel-demo.flagd.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn boolean(key: &str) -> Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } })
}

fn serving(variant: &str) -> Value {
    json!({ "enabled": true, "fallthrough": { "variant": variant } })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_opentelemetry_demo_flags_are_imported_and_answered_with_their_types() {
    let world = World::start().await;
    let document = demo_flags();
    let flags = document["flags"].as_object().unwrap();
    assert!(flags.len() >= 14, "{} flags", flags.len());
    let path = format!("{}/import?format=flagd", world.admin.environment_path());

    let dry = world.admin.post(&format!("{path}&dry_run=true"), &document).await.ok().json();
    assert_eq!(dry["dryRun"], true, "{dry}");
    let listed = dry["flags"].as_array().unwrap();
    assert_eq!(listed.len(), flags.len(), "{dry}");
    assert!(listed.iter().all(|flag| flag["result"] == "created"), "{dry}");
    let unknown = world.ofrep().one("adFailure", &json!({})).await;
    assert_eq!(unknown.status, 404, "a dry run changes nothing: {}", unknown.text);

    let done = world.admin.post(&format!("{path}&dry_run=false"), &document).await.ok().json();
    assert!(done["flags"].as_array().unwrap().iter().all(|f| f["result"] == "created"), "{done}");
    let again = world.admin.post(&format!("{path}&dry_run=false"), &document).await.ok().json();
    let unchanged = again["flags"].as_array().unwrap().iter().all(|f| f["result"] == "unchanged");
    assert!(unchanged, "a second import changes nothing: {again}");

    let ofrep = world.ofrep();
    ofrep.serves("adFailure", &json!({}), &json!(false)).await;
    for (key, flag) in flags {
        let answer = ofrep.one(key, &json!({ "targetingKey": "user-1" })).await.ok();
        let body = answer.json();
        assert_eq!(body["key"], json!(key));
        if key == "productCatalogFailure" {
            // Its targeting always names a variant.
            assert_eq!(body["reason"], "TARGETING_MATCH", "{body}");
        } else {
            assert_eq!(body["reason"], "STATIC", "{body}");
            assert_eq!(body["variant"], flag["defaultVariant"], "{body}");
        }
        let wanted = &flag["variants"][body["variant"].as_str().unwrap()];
        if flag["variants"].as_object().unwrap().values().any(Value::is_f64) {
            // One variant with a fraction makes the flag a float, and then each is written as one.
            assert_eq!(body["value"].as_f64(), wanted.as_f64(), "{body}");
            assert!(body["value"].is_f64(), "{key} is a float: {}", answer.text);
        } else {
            assert_eq!(body["value"], *wanted, "{body}");
        }
    }
    let bulk = ofrep.all(&json!({ "targetingKey": "user-1" })).await.ok().json();
    assert_eq!(bulk["flags"].as_array().unwrap().len(), flags.len(), "{bulk}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_edge_and_an_event_client_without_a_restart() {
    let world = World::start().await;
    let definition = json!({ "key": "banner", "type": "string", "clients": "edge",
        "variants": { "a": "A", "b": "B" } });
    world.admin.flag(&definition, &serving("a")).await;
    let browser = Ofrep::new(&world.edge_url(), &world.browser_key);
    let context = json!({ "targetingKey": "user-1" });
    let body = json!({ "context": context }).to_string();
    browser.serves("banner", &context, &json!("A")).await;

    let before = browser.all(&context).await.ok();
    let etag = before.header("etag").to_owned();
    assert!(etag.starts_with('"'), "{etag:?}");
    let bulk = "/ofrep/v1/evaluate/flags";
    let unchanged = browser.raw(bulk, body.clone(), &[("if-none-match", &etag)]).await;
    assert_eq!(unchanged.status, 304, "{}", unchanged.text);

    let mut events = browser.events(&context).await;
    // The change before was a moment ago, and may have come between the answer and the stream.
    let known = events.next().await;
    world.admin.configure("banner", &serving("b")).await.ok();
    let event = events.next().await;
    assert_ne!(event.id, known.id);
    let data: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(data["type"], "refetchEvaluation");
    assert!(!event.id.is_empty(), "events can be resumed: {event:?}");

    // The event comes only after the edge has the change: no waiting here.
    let version = data["etag"].as_str().map(|etag| format!("?flagConfigEtag={}", segment(etag)));
    let path = format!("{bulk}{}", version.unwrap_or_default());
    let after = browser.raw(&path, body, &[("if-none-match", &etag)]).await;
    assert_eq!(after.status, 200, "{}", after.text);
    assert_eq!(after.json()["flags"][0]["value"], "B", "{}", after.text);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_working_at_the_edge() {
    let world = World::start().await;
    world.admin.flag(&boolean("f"), &serving("on")).await;
    let path = format!("{}/keys", world.admin.environment_path());
    let made = world.admin.post(&path, &json!({ "kind": "server", "name": "short" })).await;
    let made = made.ok().json();
    let ofrep = Ofrep::new(&world.edge_url(), made["key"].as_str().unwrap());
    until("the new key being known", async || match ofrep.one("f", &json!({})).await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text),
    })
    .await;
    let path = format!("{path}/{}", made["id"].as_str().unwrap());
    let revoke = world.admin.request(http::Method::DELETE, &path).header("if-match", "*");
    send(revoke).await.ok();
    until("the key being refused", async || match ofrep.one("f", &json!({})).await {
        answer if answer.status == 401 => Ok(()),
        answer => Err(answer.text),
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_do_not_see_each_other() {
    let world = World::start().await;
    world.admin.flag(&boolean("f"), &serving("on")).await;
    let path = format!("/api/v1/namespaces/{}/environments", world.admin.namespace);
    world.admin.post(&path, &json!({ "key": "staging" })).await.ok();
    let mut staging = world.admin.clone();
    staging.environment = "staging".to_owned();
    let there = Ofrep::new(&world.edge_url(), &staging.key("server").await);
    world.ofrep().serves("f", &json!({}), &json!(true)).await;
    // A flag is off in an environment until it is configured there.
    until("staging being served", async || match there.one("f", &json!({})).await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text),
    })
    .await;
    let body = there.one("f", &json!({})).await.json();
    assert_eq!(body["reason"], "DISABLED", "{body}");
    assert!(body.get("value").is_none(), "{body}");
    staging.configure("f", &serving("off")).await.ok();
    there.serves("f", &json!({}), &json!(false)).await;
    assert_eq!(world.ofrep().one("f", &json!({})).await.json()["value"], true);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_flag_is_not_found_by_anybody_until_it_is_back() {
    let world = World::start().await;
    let mut local = boolean("menu");
    local["clients"] = json!("local");
    // What it alone asks for has no business in a browser either.
    let path = format!("{}/segments", world.admin.environment_path());
    let staff = json!({ "key": "staff", "rules": [{ "attr": "team", "op": "eq", "value": "x" }] });
    world.admin.post(&path, &staff).await.ok();
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" },
        "rules": [{ "id": "r", "when": { "segment": "staff" }, "serve": { "variant": "off" } }] });
    world.admin.flag(&local, &config).await;
    let (ofrep, browser) = (world.ofrep(), Ofrep::new(&world.edge_url(), &world.browser_key));
    ofrep.serves("menu", &json!({}), &json!(true)).await;
    let flag = format!("/api/v1/namespaces/{}/flags/menu", world.admin.namespace);
    let step = |step: &str| {
        let request = world.admin.request(http::Method::POST, &format!("{flag}/{step}"));
        send(request.header("if-match", "*"))
    };
    step("archive").await.ok();
    for asked in [&ofrep, &browser] {
        until("the flag being gone", async || match asked.one("menu", &json!({})).await {
            answer if answer.status == 404 => Ok(()),
            answer => Err(answer.text),
        })
        .await;
        let body = asked.one("menu", &json!({})).await.json();
        assert_eq!(body["errorCode"], "FLAG_NOT_FOUND", "{body}");
        assert_eq!(asked.all(&json!({})).await.ok().json()["flags"], json!([]));
    }
    let request = e2e::http::client().get(format!("{}/sdk/v1/snapshot", world.edge_url()));
    let snapshot = request.bearer_auth(&world.browser_key).send().await.unwrap();
    let bytes = snapshot.bytes().await.unwrap();
    for gone in ["menu", "staff"] {
        assert!(!bytes.windows(gone.len()).any(|part| part == gone.as_bytes()), "{gone}");
    }
    step("unarchive").await.ok();
    ofrep.serves("menu", &json!({ "team": "x" }), &json!(false)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_with_id_lists_reach_the_edge_and_follow_changes() {
    let world = World::start().await;
    let path = format!("{}/segments", world.admin.environment_path());
    let vips = json!({ "key": "vips", "included": ["ann", "größe-🌊"], "excluded": ["eve"],
        "rules": [{ "attr": "plan", "op": "eq", "value": "gold" }] });
    world.admin.post(&path, &vips).await.ok();
    let config = json!({ "enabled": true, "fallthrough": { "variant": "off" },
        "rules": [{ "id": "vips", "when": { "segment": "vips" }, "serve": { "variant": "on" } }] });
    world.admin.flag(&boolean("lounge"), &config).await;
    let ofrep = world.ofrep();
    ofrep.serves("lounge", &json!({ "targetingKey": "ann" }), &json!(true)).await;
    for (context, inside) in [
        (json!({ "targetingKey": "größe-🌊" }), true),
        (json!({ "targetingKey": "bob" }), false),
        (json!({ "targetingKey": "bob", "plan": "gold" }), true),
        (json!({ "targetingKey": "eve", "plan": "gold" }), false),
        (json!({ "plan": "gold" }), true),
        (json!({}), false),
    ] {
        let body = ofrep.one("lounge", &context).await.ok().json();
        assert_eq!(body["value"], json!(inside), "{context}: {body}");
    }
    let put = world.admin.request(http::Method::PUT, &format!("{path}/vips/included"));
    let put = put.header("content-type", "text/plain").header("if-match", "*");
    send(put.body("bob\ncarol\n")).await.ok();
    ofrep.serves("lounge", &json!({ "targetingKey": "bob" }), &json!(true)).await;
    assert_eq!(ofrep.one("lounge", &json!({ "targetingKey": "ann" })).await.json()["value"], false);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_in_cel_is_refused_with_its_place_or_decides_at_the_edge() {
    let world = World::start().await;
    let with = |source: &str| {
        json!({ "enabled": true, "fallthrough": { "variant": "off" },
            "rules": [{ "id": "vip", "when": { "cel": source }, "serve": { "variant": "on" } }] })
    };
    let source = "user.score > 0.7 && user.groups.exists(g, g.startsWith('vip'))";
    world.admin.flag(&boolean("lounge"), &with(source)).await;
    let ofrep = world.ofrep();
    let vip = json!({ "user": { "score": 0.8, "groups": ["new", "vip-eu"] } });
    ofrep.serves("lounge", &vip, &json!(true)).await;
    for context in [
        json!({ "user": { "score": 0.8, "groups": ["new"] } }),
        json!({ "user": { "score": 0.5, "groups": ["vip-eu"] } }),
        json!({ "user": { "score": 0.8, "groups": 3 } }),
        json!({}),
    ] {
        let body = ofrep.one("lounge", &context).await.ok().json();
        assert_eq!((&body["value"], &body["reason"]), (&json!(false), &json!("DEFAULT")), "{body}");
    }
    let refused = world.admin.configure("lounge", &with("user.score >\n  lower(1)")).await;
    refused.problem(
        422,
        &["/rules/0/when/cel", "line 2, column 8: there is no function", "size, int"],
    );
    ofrep.serves("lounge", &vip, &json!(true)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_its_flags_and_what_it_used_is_counted() {
    let mut world = World::start().await;
    let of = |key: &str, clients: &str| {
        json!({ "key": key, "type": "boolean", "clients": clients,
            "variants": { format!("{key}-on"): true, format!("{key}-off"): false } })
    };
    for (key, clients) in [("seen", "local"), ("distant", "edge"), ("hidden", "none")] {
        world.admin.flag(&of(key, clients), &serving(&format!("{key}-on"))).await;
    }
    let browser = Ofrep::new(&world.edge_url(), &world.browser_key);
    browser.serves("distant", &json!({}), &json!(true)).await;
    let snapshot = |url: String, key: String| async move {
        let request = e2e::http::client().get(format!("{url}/sdk/v1/snapshot")).bearer_auth(key);
        request.send().await.unwrap().bytes().await.unwrap()
    };
    let trusted = [world.public_key.clone()];
    let bytes = snapshot(world.edge_url(), world.browser_key.clone()).await;
    let (_, blob) = rules::client::verify_container(&bytes, &trusted).unwrap();
    let (manifest, ruleset) = rules::client::decode_blob(blob).unwrap();
    assert_eq!((manifest.flags, manifest.edge), (1, true));
    let evaluator = rules::eval::Evaluator::load(ruleset).unwrap();
    assert!(evaluator.flag("seen").is_some());
    for hidden in ["hidden", "distant"] {
        let absent = !bytes.windows(hidden.len()).any(|part| part == hidden.as_bytes());
        assert!(absent, "{hidden} travels to browsers");
    }
    let asked = e2e::http::client().post(format!("{}/sdk/v1/evaluate", world.edge_url()));
    let answers = send(asked.bearer_auth(&world.browser_key).body("{}")).await.ok().json();
    assert_eq!(answers["flags"].as_array().unwrap().len(), 1, "{answers}");
    assert_eq!(answers["flags"][0]["key"], "distant");

    // What it used, as `sendBeacon` sends it; and a service beside it.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let minute = now.as_secs() / 60;
    let body = json!({ "key": world.browser_key, "usage": [
        { "flag": "seen", "variant": "seen-on", "minute": minute, "count": 41 },
        { "flag": "hidden", "variant": "hidden-on", "minute": minute, "count": 1 }] });
    let events = format!("{}/sdk/v1/events", world.edge_url());
    let told = e2e::http::client().post(events).body(body.to_string());
    let told = send(told).await;
    assert_eq!((told.status, told.json()), (202, json!({ "accepted": 1, "refused": 1 })));
    world.ofrep().one("seen", &json!({})).await.ok();
    let path = format!("{}/flags/seen/usage", world.admin.environment_path());
    // An edge that ends tells what it has.
    world.stop_edge().await;
    let usage = world.admin.get(&path).await.ok().json();
    let wanted = json!([
        { "variant": "seen-on", "source": "browser", "count": 41 },
        { "variant": "seen-on", "source": "server", "count": 1 }]);
    assert_eq!(usage["totals"], wanted, "{usage}");
    assert!(usage["lastEvaluatedAt"].is_string(), "{usage}");

    // It starts again from disk, and browsers get the same bytes.
    world.start_edge(|_| {}).await;
    let again = snapshot(world.edge_url(), world.browser_key.clone()).await;
    assert!(again == bytes);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_services_send_are_sampled_when_ordered_and_show_what_a_draft_would_change() {
    let often = |config: &mut edge::config::Config| {
        config.samples_every = std::time::Duration::from_millis(50);
    };
    let world = World::with(Setup { edge: &often, ..Setup::default() }).await;
    world.admin.flag(&boolean("banner"), &serving("off")).await;
    let ofrep = world.ofrep();
    let secret = json!({ "targetingKey": "anna", "country": "DE", "email": "anna@example.com" });
    ofrep.serves("banner", &secret, &json!(false)).await;
    let at = world.admin.environment_path();
    let order = json!({ "perMinute": 600, "keep": ["country"], "minutes": 5 });
    world.admin.put(&format!("{at}/sampling"), &order).await.ok();
    // Until the edge has heard of it and has brought one.
    let contexts = format!("{at}/contexts");
    until("a sampled context", || async {
        ofrep.serves("banner", &secret, &json!(false)).await;
        let body = world.admin.get(&contexts).await.ok().json();
        match body["items"].as_array().is_some_and(|items| !items.is_empty()) {
            true => Ok(()),
            false => Err(body.to_string()),
        }
    })
    .await;
    let body = world.admin.get(&contexts).await.ok().json();
    let context = &body["items"][0]["context"];
    assert_eq!(context["country"], "DE", "{body}");
    assert!(context["targetingKey"].as_str().is_some_and(|key| key.len() == 16), "{body}");
    assert!(!body.to_string().contains("anna"), "{body}");
    let draft = json!({ "flags": { "banner": { "config": serving("on") } }, "recent": 10 });
    let impact = world.admin.post(&format!("{at}/impact"), &draft).await.ok().json();
    assert_eq!(impact["flags"][0]["transitions"][0]["examples"][0], *context, "{impact}");
    world.stop().await;
}
