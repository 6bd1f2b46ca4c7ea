//! A small change of a big environment is a small thing on the wire.

use std::sync::Arc;

use e2e::http::{Ofrep, until};
use e2e::tap::Tap;
use e2e::world::World;
use edge::feed::HttpFeed;
use rules::keys::ApiKey;
use serde_json::{Map, Value, json};

const FLAGS: usize = 3_000;

fn document() -> Value {
    let flag = |n: usize| {
        let rule = |r: usize| {
            json!({ "id": format!("r{r}"),
                "when": { "all": [
                    { "attr": "country", "op": "in", "value": [format!("C{}", (n * 7 + r) % 200), "DE"] },
                    { "attr": "app.version", "op": "semver_gte", "value": format!("{r}.{}.0", n % 50) }] },
                "serve": { "variant": "on" } })
        };
        json!({ "definition": { "type": "boolean", "variants": { "on": true, "off": false } },
            "config": { "enabled": true, "off": "off", "rules": [rule(0), rule(1), rule(2)],
                "fallthrough": { "variant": "off" } } })
    };
    let flags: Map<String, Value> = (0..FLAGS).map(|n| (format!("flag-{n}"), flag(n))).collect();
    json!({ "flags": flags })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flag_of_thousands_costs_a_thousandth_of_the_snapshot_on_the_wire() {
    let world = World::start().await;
    let path = format!("{}/import?format=tidegate", world.admin.environment_path());
    world.admin.post(&path, &document()).await.ok();
    // Published, or the other edge would begin with what was there before, and this be a difference.
    world.ofrep().serves("flag-7", &json!({}), &json!(false)).await;

    let tap = Tap::before(&world.admin.url).await;
    let folder = tempfile::tempdir().unwrap();
    let local = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    let mut config = edge::config::Config::new(local, "edge-2", vec![world.public_key.clone()]);
    config.data_dir = Some(folder.path().to_owned());
    config.sandbox.cache_dir = e2e::run::compiled_dir();
    let feed = HttpFeed::new(&tap.url, ApiKey::parse(&world.edge_key).unwrap()).unwrap();
    let edge = edge::start(config, Arc::new(feed)).await.unwrap();
    let ofrep = Ofrep::new(&format!("http://{}", edge.address), &world.server_key);
    until("the edge having its first snapshot", async || {
        match ofrep.one("flag-7", &json!({})).await {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.text),
        }
    })
    .await;
    let whole = tap.bytes();
    assert!(whole > 500_000, "the snapshot came over the wire: {whole} bytes");

    for (n, on) in [(7, true), (1_500, true), (7, false)] {
        let before = tap.bytes();
        let variant = if on { "on" } else { "off" };
        let config =
            json!({ "enabled": true, "off": "off", "fallthrough": { "variant": variant } });
        world.admin.configure(&format!("flag-{n}"), &config).await.ok();
        ofrep.serves(&format!("flag-{n}"), &json!({}), &json!(on)).await;
        let change = tap.bytes() - before;
        println!("one flag of {FLAGS}: {change} bytes, the whole {whole}");
    }
    // Nothing but a switch: no offset in the snapshot moves.
    let before = tap.bytes();
    let config = json!({ "enabled": true, "off": "off", "fallthrough": { "variant": "on" } });
    world.admin.configure("flag-7", &config).await.ok();
    ofrep.serves("flag-7", &json!({}), &json!(true)).await;
    let change = tap.bytes() - before;
    assert!(change < 4_096, "heads and delta came to {change} of {whole} bytes");
    edge.shutdown().await;
    tap.finish(0);
    world.stop().await;
}
