//! Bytes that rot on disk while the edge runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::config::Config;

use crate::world::{DEADLINE, Shop, Source, World, config, version};

fn looking(dir: &Path) -> Config {
    let mut config = config(Some(dir));
    config.verify_every = Duration::from_millis(100);
    config
}

fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // As rot does: in place, and not by a new file.
    fs::write(path, bytes).expect("writable");
}

fn snapshot(dir: &Path) -> PathBuf {
    dir.join("snapshot.shop.production.1.1")
}

fn list(dir: &Path) -> PathBuf {
    let names = fs::read_dir(dir).expect("the folder");
    let mut paths = names.map(|file| file.expect("a file").path());
    let is_list = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("list."))
    };
    paths.find(is_list).expect("a list")
}

async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let waits = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

async fn counts(world: &World, series: &str) -> u64 {
    let text = world.get("/metrics").await.text();
    let of = |line: &str| line.strip_prefix(series)?.trim().parse().ok();
    text.lines().find_map(of).unwrap_or_else(|| panic!("no {series} in {text}"))
}

const ON_DISK: &str = "tidegate_edge_rotted_total{place=\"disk\"}";

/// It finds the snapshot and its lists on disk without anybody's help.
async fn starts_alone(dir: &Path) {
    let source = Source::new();
    source.set_down(true);
    let alone = World::start(config(Some(dir)), source).await;
    assert_eq!(alone.serving(), Some(version(1, 1)));
    let vip = alone.one("vip", r#"{"context":{"targetingKey":"vip-1"}}"#).await;
    assert_eq!(vip.json()["value"], true, "by its id list");
    alone.edge.shutdown().await;
}

#[tokio::test]
async fn what_rots_on_disk_is_found_set_aside_and_written_anew_while_the_edge_serves() {
    for rots in [snapshot, list] {
        let dir = tempfile::tempdir().expect("a folder");
        let world = World::with(looking(dir.path())).await;
        let path = rots(dir.path());
        let whole = fs::read(&path).expect("written");
        flip_a_byte(&path);
        until("the rot to be counted", async || counts(&world, ON_DISK).await == 1).await;
        let is_whole = async || fs::read(&path).is_ok_and(|now| now == whole);
        until("it to be whole again", is_whole).await;
        assert_eq!(world.one("banner", "{}").await.status, 200);
        assert_eq!(world.serving(), Some(version(1, 1)));
        // What is whole is not mended for ever.
        let fetched = world.source.fetched();
        let looks = "tidegate_edge_verifications_total";
        let seen = counts(&world, looks).await;
        until("two more looks", async || counts(&world, looks).await >= seen + 2).await;
        assert_eq!((world.source.fetched(), counts(&world, ON_DISK).await), (fetched, 1));
        world.edge.shutdown().await;
        starts_alone(dir.path()).await;
    }
}

#[tokio::test]
async fn rot_that_control_is_not_there_to_mend_is_mended_when_it_is_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let world = World::with(looking(dir.path())).await;
    let whole = fs::read(snapshot(dir.path())).expect("written");
    world.source.set_down(true);
    flip_a_byte(&snapshot(dir.path()));
    until("the rot to be counted", async || counts(&world, ON_DISK).await == 1).await;
    until("the file to be set aside", async || !snapshot(dir.path()).exists()).await;
    assert_eq!(world.one("banner", "{}").await.status, 200, "it is served from memory");
    world.source.set_down(false);
    until("it to be whole again", async || {
        fs::read(snapshot(dir.path())).is_ok_and(|now| now == whole)
    })
    .await;
    world.edge.shutdown().await;
    starts_alone(dir.path()).await;
}

#[tokio::test]
async fn a_snapshots_file_that_is_gone_is_written_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let world = World::with(looking(dir.path())).await;
    fs::remove_file(snapshot(dir.path())).expect("removed");
    until("it to be there again", async || snapshot(dir.path()).exists()).await;
    world.edge.shutdown().await;
    starts_alone(dir.path()).await;
}

#[tokio::test]
async fn an_edge_without_a_folder_looks_at_its_memory_and_finds_nothing_wrong() {
    let mut config = config(None);
    config.verify_every = Duration::from_millis(20);
    let source = Source::new();
    source.publish_for_clients(&Shop::new().snapshot(), version(1, 1), version(1, 1));
    let world = World::start(config, source).await;
    world.serves(version(1, 1)).await;
    let looks = "tidegate_edge_verifications_total";
    until("three looks", async || counts(&world, looks).await >= 3).await;
    assert_eq!(counts(&world, "tidegate_edge_rotted_total{place=\"memory\"}").await, 0);
}
