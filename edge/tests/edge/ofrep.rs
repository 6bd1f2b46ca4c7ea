//! What real OFREP clients need (INTEROP 1.2 and 1.3), each as a test.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use crate::world::{
    DEADLINE, Shop, World, browser_key, config, fixed, server_key, until_limited, version,
};

fn bearer() -> String {
    format!("Bearer {}", server_key().reveal())
}

#[tokio::test]
async fn a_flag_is_answered_with_every_member_that_strict_clients_read() {
    let world = World::new().await;
    let answer = world.one("banner", r#"{"context":{"targetingKey":"u1"}}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"key": "banner", "value": true, "variant": "on", "reason": "STATIC",
               "metadata": {"owner": "shop"}})
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("vary"), Some("Authorization, X-API-Key, Origin"));
}

#[tokio::test]
async fn a_code_default_has_no_value_and_an_empty_variant() {
    let world = World::new().await;
    let body = world.one("own-default", "{}").await.json();
    assert!(body.get("value").is_none(), "{body}");
    assert_eq!(body["variant"], "");
}

#[tokio::test]
async fn a_floats_value_is_written_with_its_fraction() {
    let world = World::new().await;
    let answer = world.one("ratio", "{}").await;
    assert!(answer.text().contains(r#""value":3.0"#), "{}", answer.text());
}

#[tokio::test]
async fn a_key_with_a_slash_is_found_raw_and_encoded() {
    let world = World::new().await;
    for path in ["a/b%20%C3%A4", "a%2Fb%20%c3%a4", "a%2fb%20%C3%A4"] {
        let body = world.one(path, "{}").await.json();
        assert_eq!(body["value"], "slash", "{path}: {body}");
        assert_eq!(body["key"], "a/b ä", "{path}");
    }
}

#[tokio::test]
async fn a_missing_body_or_context_fails_only_flags_that_hash_a_unit() {
    let world = World::new().await;
    for body in ["", "{}", r#"{"context":null}"#, r#"{"context":{}}"#, r#"{"x":1}"#] {
        assert_eq!(world.one("banner", body).await.status, 200, "{body:?}");
        let failed = world.one("rollout", body).await;
        failed.failure_with_metadata(400, "TARGETING_KEY_MISSING", "rollout");
        let all = world.all(body).await;
        assert_eq!(all.status, 200, "{body:?}");
        let all = all.json();
        let failed: Vec<&Value> = all["flags"]
            .as_array()
            .expect("flags")
            .iter()
            .filter(|flag| flag.get("errorCode").is_some())
            .collect();
        assert_eq!(failed.len(), 1, "{all}");
        assert_eq!(failed[0]["key"], "rollout");
    }
}

#[tokio::test]
async fn a_segments_id_list_is_asked_outside_of_the_evaluator() {
    let world = World::new().await;
    for (unit, value) in [("vip-1", true), ("vip-2", false)] {
        let body = format!(r#"{{"context":{{"targetingKey":"{unit}"}}}}"#);
        assert_eq!(world.one("vip", &body).await.json()["value"], value, "{unit}");
    }
}

#[tokio::test]
async fn an_unknown_flag_is_a_404_with_key_and_code() {
    let world = World::new().await;
    world.one("no%22such", "{}").await.failure(404, "FLAG_NOT_FOUND", Some("no\"such"));
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_a_parse_error_that_names_the_key() {
    let world = World::new().await;
    for body in ["{", "nonsense", "[]", "1", r#"{"context":{"a":}}"#, "\u{1}"] {
        world.one("banner", body).await.failure(400, "PARSE_ERROR", Some("banner"));
        world.all(body).await.failure(400, "PARSE_ERROR", None);
    }
    let not_text = b"{\"context\":{\"a\":\"\xff\"}}";
    let answer = world
        .send("POST", "/ofrep/v1/evaluate/flags/banner", &[("Authorization", &bearer())], not_text)
        .await;
    answer.failure(400, "PARSE_ERROR", Some("banner"));
}

#[tokio::test]
async fn a_context_that_is_not_an_object_is_an_invalid_context() {
    let world = World::new().await;
    for context in ["[]", "1", "\"u1\"", "true"] {
        let body = format!(r#"{{"context":{context}}}"#);
        world.one("banner", &body).await.failure(400, "INVALID_CONTEXT", Some("banner"));
        world.all(&body).await.failure(400, "INVALID_CONTEXT", None);
    }
}

#[tokio::test]
async fn a_body_over_its_limit_is_a_400_that_every_client_understands() {
    let world = World::new().await;
    let padded = |bytes: usize| {
        let bare = r#"{"pad":"","context":{}}"#.len();
        format!(r#"{{"pad":"{}","context":{{}}}}"#, "x".repeat(bytes - bare))
    };
    let limit = rules::limits::EVALUATION_BODY_BYTES_MAX;
    assert_eq!(world.one("banner", &padded(limit)).await.status, 200);
    let over = world.one("banner", &padded(limit + 1)).await;
    over.failure(400, "INVALID_CONTEXT", Some("banner"));
    world.all(&padded(limit + 200_000)).await.failure(400, "INVALID_CONTEXT", None);
}

#[tokio::test]
async fn a_context_over_its_limit_is_refused_and_one_at_the_limit_is_not() {
    let world = World::new().await;
    let with = |bytes: usize| {
        let context = format!(r#"{{"pad":"{}"}}"#, "x".repeat(bytes - r#"{"pad":""}"#.len()));
        format!(r#"{{"context":{context}}}"#)
    };
    let limit = rules::limits::CONTEXT_BYTES_MAX;
    assert_eq!(world.one("banner", &with(limit)).await.status, 200);
    let over = world.one("banner", &with(limit + 1)).await;
    over.failure(400, "INVALID_CONTEXT", Some("banner"));
}

#[tokio::test]
async fn another_method_is_refused_with_a_body_for_clients_that_parse_first() {
    let world = World::new().await;
    let answer = world.get("/ofrep/v1/evaluate/flags/banner").await;
    answer.failure(405, "GENERAL", Some("banner"));
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    world.get("/ofrep/v1/evaluate/flags").await.failure(405, "GENERAL", None);
    world.get("/ofrep/v1/nothing").await.failure(404, "GENERAL", None);
}

#[tokio::test]
async fn a_request_without_a_known_key_is_a_401_with_a_body() {
    let world = World::new().await;
    let server = server_key().reveal().to_owned();
    let other = rules::keys::ApiKey::new(rules::keys::KeyKind::Server, &[9; 38]);
    let long = "x".repeat(5000);
    let headers: [&[(&str, &str)]; 6] = [
        &[],
        &[("Authorization", &format!("Bearer {}", other.reveal()))],
        &[("Authorization", &format!("Basic {server}"))],
        &[("X-API-Key", &server[..server.len() - 1])],
        &[("X-API-Key", &long)],
        &[("Authorization", "Bearer")],
    ];
    for headers in headers {
        let path = "/ofrep/v1/evaluate/flags/banner";
        let answer = world.send("POST", path, headers, b"{}").await;
        answer.failure(401, "GENERAL", Some("banner"));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
}

#[tokio::test]
async fn a_key_is_taken_from_either_header_and_a_proxys_authorization_does_not_hide_it() {
    let world = World::new().await;
    let key = server_key().reveal().to_owned();
    let headers: [&[(&str, &str)]; 4] = [
        &[("X-API-Key", &key)],
        &[("authorization", &format!("bearer {key}"))],
        &[("Authorization", "Basic cHJveHk6"), ("X-API-Key", &key)],
        &[("Authorization", "Bearer of-a-proxy"), ("X-API-Key", &key)],
    ];
    for headers in headers {
        let answer = world.send("POST", "/ofrep/v1/evaluate/flags/banner", headers, b"{}").await;
        assert_eq!(answer.status, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn a_browser_key_sees_only_flags_for_clients() {
    let world = World::new().await;
    let key = browser_key().reveal().to_owned();
    let ask = |path: &'static str| {
        let key = key.clone();
        let world = &world;
        async move { world.send("POST", path, &[("X-API-Key", &key)], b"{}").await }
    };
    assert_eq!(ask("/ofrep/v1/evaluate/flags/banner").await.status, 200);
    let hidden = ask("/ofrep/v1/evaluate/flags/secret").await;
    let absent = ask("/ofrep/v1/evaluate/flags/absent").await;
    hidden.failure(404, "FLAG_NOT_FOUND", Some("secret"));
    assert_eq!(hidden.text().replace("secret", "absent"), absent.text());
    let all = ask("/ofrep/v1/evaluate/flags").await.json();
    let keys: Vec<&str> = all["flags"]
        .as_array()
        .expect("flags")
        .iter()
        .filter_map(|flag| flag["key"].as_str())
        .collect();
    assert_eq!(keys, ["banner", "ratio"]);
}

#[tokio::test]
async fn a_browser_key_answers_its_own_origins_only() {
    let world = World::new().await;
    let key = browser_key().reveal().to_owned();
    let path = "/ofrep/v1/evaluate/flags";
    let from = |origin: &'static str| [("X-API-Key", key.clone()), ("Origin", origin.to_owned())];
    let own = from("https://shop.example");
    let own: Vec<(&str, &str)> = own.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let answer = world.send("POST", path, &own, b"{}").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(answer.header("access-control-expose-headers"), Some("ETag, Retry-After"));
    let other = from("https://evil.example");
    let other: Vec<(&str, &str)> = other.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let answer = world.send("POST", path, &other, b"{}").await;
    answer.failure(403, "GENERAL", None);
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_page_can_read_why_it_was_refused() {
    let world = World::new().await;
    let headers = [("Origin", "https://shop.example"), ("X-API-Key", "tg_browser_revoked")];
    let answer = world.send("POST", "/ofrep/v1/evaluate/flags", &headers, b"{}").await;
    answer.failure(401, "GENERAL", None);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
}

#[tokio::test]
async fn a_preflight_allows_the_headers_that_the_web_provider_sends() {
    let world = World::new().await;
    let asked = |origin: &'static str| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")];
        let world = &world;
        async move { world.send("OPTIONS", "/ofrep/v1/evaluate/flags", &headers, b"").await }
    };
    let answer = asked("https://shop.example").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    let allowed = answer.header("access-control-allow-headers").expect("allowed headers");
    for name in ["content-type", "authorization", "x-api-key", "if-none-match"] {
        assert!(allowed.split(", ").any(|one| one == name), "{name} in {allowed}");
    }
    assert!(answer.header("access-control-max-age").is_some());
    assert_eq!(asked("https://evil.example").await.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn all_flags_come_in_key_order_with_a_strong_etag_and_a_stream() {
    let world = World::new().await;
    for path in ["/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/"] {
        let answer = world.post(path, r#"{"context":{"targetingKey":"u1"}}"#).await;
        assert_eq!(answer.status, 200);
        let etag = answer.header("etag").expect("an etag");
        assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 10, "{etag}");
        let body = answer.json();
        let flags = body["flags"].as_array().expect("flags");
        let keys: Vec<&str> = flags.iter().filter_map(|flag| flag["key"].as_str()).collect();
        assert!(keys.is_sorted() && keys.len() == 9, "{keys:?}");
        let stream = &body["eventStreams"][0];
        assert_eq!(stream["type"], "sse");
        assert!(stream["inactivityDelaySec"].as_u64() >= Some(1));
        assert!(stream.get("url").is_none() && stream["endpoint"].get("origin").is_none());
        let uri = stream["endpoint"]["requestUri"].as_str().expect("a uri");
        assert!(uri.starts_with("/ofrep/v1/events?token="), "{uri}");
    }
}

#[tokio::test]
async fn an_answer_that_is_known_is_a_304_and_one_for_another_context_is_not() {
    let world = World::new().await;
    let path = "/ofrep/v1/evaluate/flags";
    let bearer = bearer();
    let first = world.all(r#"{"context":{"targetingKey":"vip-1"}}"#).await;
    let etag = first.header("etag").expect("an etag").to_owned();
    for sent in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}")] {
        let headers = [("Authorization", bearer.as_str()), ("If-None-Match", sent.as_str())];
        let body = br#"{"context":{"targetingKey":"vip-1"}}"#;
        let again = world.send("POST", path, &headers, body).await;
        assert_eq!(again.status, 304, "{sent}");
        assert_eq!(again.header("etag"), Some(etag.as_str()));
        assert!(again.body.is_empty());
        let body = br#"{"context":{"targetingKey":"somebody else"}}"#;
        assert_eq!(world.send("POST", path, &headers, body).await.status, 200);
    }
}

#[tokio::test]
async fn the_etag_changes_with_the_snapshots_values_and_with_the_stream_url() {
    let world = World::new().await;
    let etag = |answer: &crate::world::Answer| answer.header("etag").expect("etag").to_owned();
    let first = etag(&world.all("{}").await);
    let mut shop = Shop::new();
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", fixed("off"));
    world.source.publish(&shop.snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    let second = etag(&world.all("{}").await);
    assert_ne!(first, second);
    shop.secret = [1; 32];
    world.source.publish(&shop.snapshot(), version(1, 3));
    world.serves(version(1, 3)).await;
    assert_ne!(etag(&world.all("{}").await), second, "an old stream URL would be kept for ever");
}

#[tokio::test]
async fn config_parameters_of_a_refetch_are_metadata_and_no_condition() {
    let world = World::new().await;
    for query in [
        "flagConfigEtag=1.1.0&flagConfigLastModified=1771622898",
        "flagConfigEtag=%22cfg-2%22",
        "flagConfigLastModified=2026-01-01T00:00:00Z",
        "flagConfigEtag=",
    ] {
        let answer = world.post(&format!("/ofrep/v1/evaluate/flags?{query}"), "{}").await;
        assert_eq!(answer.status, 200, "{query}");
    }
}

#[tokio::test]
async fn a_refetch_waits_for_the_version_that_its_client_was_told_of() {
    let mut config = config(None);
    config.catch_up = DEADLINE;
    let world = World::with(config).await;
    let mut shop = Shop::new();
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", fixed("off"));
    let snapshot = shop.snapshot();
    let ask = world.post("/ofrep/v1/evaluate/flags?flagConfigEtag=1.2.0", "{}");
    let publish = async {
        tokio::task::yield_now().await;
        world.source.publish(&snapshot, version(1, 2));
        world.serves(version(1, 2)).await;
    };
    let (answer, ()) = tokio::join!(ask, publish);
    let body = answer.json();
    let banner = &body["flags"].as_array().expect("flags")[1];
    assert_eq!((&banner["key"], &banner["value"]), (&json!("banner"), &json!(false)), "{body}");
}

#[tokio::test]
async fn too_many_requests_are_told_to_wait_a_whole_number_of_seconds() {
    let mut config = config(None);
    config.server_rate_per_s = NonZeroU32::new(1);
    let world = World::with(config).await;
    let limited = until_limited(async || world.one("banner", "{}").await).await;
    limited.failure(429, "GENERAL", Some("banner"));
    let wait: u64 = limited.header("retry-after").expect("a wait").parse().expect("an integer");
    assert!(wait >= 1);
    let key = browser_key().reveal().to_owned();
    let path = "/ofrep/v1/evaluate/flags/banner";
    let other = world.send("POST", path, &[("X-API-Key", &key)], b"{}").await;
    assert_eq!(other.status, 200, "one key's limit is not another's");
}

#[tokio::test]
async fn an_edge_that_never_had_a_snapshot_says_later_and_not_forbidden() {
    let world = World::start(config(None), crate::world::Source::new()).await;
    let answer = world.one("banner", "{}").await;
    answer.failure(503, "GENERAL", Some("banner"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    world.all("{}").await.failure(503, "GENERAL", None);
    assert_eq!(world.get("/readyz").await.status, 503);
    assert_eq!(world.get("/healthz").await.status, 200);
}

impl crate::world::Answer {
    /// A flag's own failure carries the flag's metadata.
    fn failure_with_metadata(&self, status: u16, code: &str, key: &str) {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        assert_eq!(body["errorCode"], code, "{body}");
        assert_eq!(body["key"], key, "{body}");
        assert!(body["errorDetails"].is_string() && body["metadata"].is_object(), "{body}");
    }
}
