//! Rates, proxies, and what answers tell browsers.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;
use control::http::walls::Walls;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::world::{World, read};

async fn world(change: impl FnOnce(&mut Walls)) -> World {
    World::with(tempfile::tempdir().expect("a folder"), |config| change(&mut config.walls)).await
}

fn client(from: Ipv4Addr) -> reqwest::Client {
    let client = reqwest::Client::builder().local_address(IpAddr::V4(from));
    client.build().expect("a client")
}

const NEAR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test]
async fn a_caller_who_asks_too_often_is_told_when_to_come_again_and_edges_are_not_counted() {
    let world = world(|walls| walls.caller = Some("1:12".parse().expect("a rate"))).await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!(["ours"])).await;
    let mut refused = None;
    for _ in 0..60 {
        let answer = world.ask("GET", "/api/v1/namespaces").send().await.expect("an answer");
        if answer.status() == 429 {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status(), 200);
    }
    let refused = refused.expect("the burst has an end");
    let wait = refused.headers()["retry-after"].to_str().expect("text").to_owned();
    assert!(wait.parse::<u64>().is_ok_and(|seconds| (1..=3).contains(&seconds)), "{wait:?}");
    let body: Value = refused.json().await.expect("a problem");
    assert_eq!(body["type"], "urn:tidegate:problem:too-often", "{body}");
    for _ in 0..30 {
        // It asserts that it is answered with 200.
        world.heads(&edge).await;
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_refused_before_its_key_is_looked_at() {
    let world = world(|walls| walls.address = Some("1:10".parse().expect("a rate"))).await;
    let (near, far) = (client(NEAR), client(FAR));
    let ask = async |from: &reqwest::Client, forwarded: Option<String>| {
        let mut request = from.get(format!("{}/api/v1/namespaces", world.url));
        if let Some(forwarded) = forwarded {
            request = request.header("x-forwarded-for", forwarded);
        }
        read(request.bearer_auth("nonsense")).await.0
    };
    // Where a request takes longer than a second, the next one is let through again.
    let until_refused = async |forwarded: &dyn Fn(usize) -> Option<String>| {
        for at in 0..40 {
            match ask(&near, forwarded(at)).await {
                429 => return true,
                status => assert_eq!(status, 401),
            }
        }
        false
    };
    assert!(until_refused(&|_| None).await);
    // What a stranger says of itself changes nothing, and another address is another.
    assert!(until_refused(&|at| Some(format!("198.51.100.{at}"))).await, "it is believed");
    assert_eq!(ask(&far, None).await, 401);
    world.control.shutdown().await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_is_counted_by_itself() {
    let world = world(|walls| {
        walls.address = Some("1:10".parse().expect("a rate"));
        walls.trusted_proxies = vec!["127.0.0.1".parse::<IpAddr>().expect("one").into()];
    })
    .await;
    let client = client(NEAR);
    let ask = async |forwarded: &str| {
        let request = client.get(format!("{}/api/v1/limits", world.url));
        read(request.header("x-forwarded-for", forwarded)).await.0
    };
    let mut last = 0;
    for _ in 0..40 {
        // What the client made up before the proxy's own word is not believed.
        last = ask("203.0.113.9, 198.51.100.1").await;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    assert_eq!(ask("198.51.100.2").await, 200);
    assert_eq!(ask("203.0.113.9").await, 200);
    // The proxy's own probes have no limit.
    for _ in 0..30 {
        let answer = client.get(format!("{}/readyz", world.url)).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    world.control.shutdown().await;
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("text"))
}

#[tokio::test]
async fn every_answer_says_to_browsers_what_they_may_do_with_it() {
    let world = world(|walls| walls.https_only = true).await;
    for path in ["/", "/healthz", "/metrics", "/api/v1/limits", "/api/v1/namespaces", "/nowhere"] {
        let answer = world.http.get(format!("{}{path}", world.url)).send().await.expect("one");
        let headers = answer.headers();
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("strict-transport-security", "max-age=63072000; includeSubDomains"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(header(headers, name), Some(value), "{path} {name}");
        }
        let policy = header(headers, "content-security-policy").expect("a policy");
        for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(header(headers, "access-control-allow-origin"), None, "{path}");
        assert_eq!(header(headers, "server"), None, "{path}");
    }
    // The start page's style is the one that its policy names.
    let answer = world.http.get(format!("{}/", world.url)).send().await.expect("a page");
    let policy = header(answer.headers(), "content-security-policy").expect("one").to_owned();
    let page = answer.text().await.expect("a page");
    let (_, style) = page.split_once("<style>").expect("a style");
    let (style, _) = style.split_once("</style>").expect("its end");
    let hash = base64::prelude::BASE64_STANDARD.encode(sha2::Sha256::digest(style));
    assert!(policy.contains(&format!("style-src 'sha256-{hash}'")), "{policy}");
    assert!(!page.contains("style=") && !page.contains("<script"), "nothing else is inline");
    world.control.shutdown().await;
}

#[tokio::test]
async fn only_pages_of_origins_that_are_named_may_read_the_admin_api_and_never_with_cookies() {
    let tools = "https://tools.example.com";
    let world = world(|walls| walls.cors_origins = vec![tools.to_owned()]).await;
    let preflight = async |path: &str, origin: &str| {
        let url = format!("{}{path}", world.url);
        let request = world.http.request(reqwest::Method::OPTIONS, url).header("origin", origin);
        request.header("access-control-request-method", "PUT").send().await.expect("an answer")
    };
    let answer = preflight("/api/v1/namespaces", tools).await;
    assert_eq!(answer.status(), 204);
    let headers = answer.headers();
    assert_eq!(header(headers, "access-control-allow-origin"), Some(tools));
    assert!(header(headers, "access-control-allow-methods").is_some_and(|all| all.contains("PUT")));
    assert_eq!(header(headers, "access-control-allow-credentials"), None);
    assert!(header(headers, "vary").is_some_and(|vary| vary.contains("origin")));
    for (path, origin) in [
        ("/api/v1/namespaces", "https://tools.example.com.evil.example"),
        ("/api/v1/namespaces", "http://tools.example.com"),
        ("/api/v1/namespaces", "https://tools.example.com:444"),
        ("/api/v1/namespaces", "null"),
        ("/edge/v1/heads", tools),
    ] {
        let answer = preflight(path, origin).await;
        assert_eq!(answer.status(), 405, "{path} {origin}");
        let allowed = header(answer.headers(), "access-control-allow-origin");
        assert_eq!(allowed, None, "{path} {origin}");
    }
    let ask = world.ask("GET", "/api/v1/namespaces").header("origin", tools);
    let answer = ask.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(header(answer.headers(), "access-control-allow-origin"), Some(tools));
    world.control.shutdown().await;
}
