//! Every step of writing a snapshot, failing as a full or dying disk does. Needs the feature
//! `failpoints`; a binary of its own, because failpoints are the whole process's.

#[path = "../../e2e/src/ofrep_schema.rs"]
mod ofrep_schema;
#[path = "edge/world.rs"]
#[allow(dead_code)]
mod world;

use std::fs;
use std::time::Duration;

use fail::FailScenario;
use serde_json::json;

use world::{Shop, Source, World, config, fixed, version};

const STEPS: [&str; 5] = [
    "edge-disk-create",
    "edge-disk-write",
    "edge-disk-sync",
    "edge-disk-rename",
    "edge-disk-sync-dir",
];

#[tokio::test]
async fn whichever_step_fails_the_new_snapshot_is_served_and_a_restart_finds_a_whole_one() {
    let scenario = FailScenario::setup();
    let mut shop = Shop::new();
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", fixed("off"));
    shop.ids = vec!["vip-9".to_owned()];
    let off = shop.snapshot();
    for step in STEPS {
        // Skipping some calls first makes lists succeed and the snapshot's own file fail.
        for skipped in 0..4 {
            for kind in ["full", "eio"] {
                let place = format!("{step}, {skipped} skipped, {kind}");
                let dir = tempfile::tempdir().expect("a folder");
                let world = World::with(config(Some(dir.path()))).await;
                let old = fs::read(dir.path().join("snapshot.shop.production.1.1"));
                let actions = format!("{skipped}*off->return({kind})");
                fail::cfg(step, &actions).expect("a failpoint");
                world.source.publish(&off, version(1, 2));
                world.serves(version(1, 2)).await;
                let answer = world.one("banner", "{}").await;
                assert_eq!(answer.json()["value"], false, "{place}");
                let ready = world.get("/readyz").await;
                assert_eq!(ready.status, 200, "{place}");
                if skipped == 0 {
                    assert_eq!(ready.json()["unsaved"], 1, "{place}: the step did not fail");
                }
                world.edge.shutdown().await;
                fail::remove(step);
                let kept = fs::read(dir.path().join("snapshot.shop.production.1.1"));
                assert_eq!(kept.expect("kept"), old.expect("written"), "{place}");
                let source = Source::new();
                source.set_down(true);
                let alone = World::start(config(Some(dir.path())), source).await;
                let found = alone.serving();
                assert!(
                    found == Some(version(1, 1)) || found == Some(version(1, 2)),
                    "{place}: {found:?}"
                );
                alone.edge.shutdown().await;
            }
        }
    }
    scenario.teardown();
}

#[tokio::test]
async fn what_rots_in_memory_is_found_and_loaded_anew() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(Some(dir.path()));
    config.verify_every = Duration::from_millis(50);
    let world = World::with(config).await;
    let mut swaps = world.edge.swaps();
    swaps.borrow_and_update();
    // The ruleset, or the list, once.
    fail::cfg("edge-memory-rot", "1*return").expect("a failpoint");
    let loaded = tokio::time::timeout(world::DEADLINE, swaps.changed()).await;
    loaded.expect("it was not loaded anew").expect("an edge");
    assert_eq!(world.serving(), Some(version(1, 1)));
    assert_eq!(world.one("banner", "{}").await.json()["value"], true);
    let rotted = "tidegate_edge_rotted_total{place=\"memory\"} 1";
    let metrics = world.get("/metrics").await.text();
    assert!(metrics.lines().any(|line| line == rotted), "{metrics}");
    world.edge.shutdown().await;
    scenario.teardown();
}
