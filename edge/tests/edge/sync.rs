//! What an edge takes for a snapshot, what it refuses, and what survives a restart.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use rules::blob::Digest;
use rules::head::{Previous, PublicKey, STAGE_ALL, SignedHead};
use serde_json::json;

use crate::world::{DEADLINE, Shop, Snapshot, Source, World, config, fixed, signing_key, version};

/// `banner` is off; everything else as in `Shop::new`.
fn off() -> Snapshot {
    let mut shop = Shop::new();
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", fixed("off"));
    shop.snapshot()
}

fn sign(head: &rules::head::Head) -> SignedHead {
    SignedHead::sign(head, &signing_key()).expect("signed")
}

async fn banner(world: &World) -> serde_json::Value {
    world.one("banner", "{}").await.json()["value"].clone()
}

#[tokio::test]
async fn a_head_that_no_trusted_key_signed_is_refused_and_reported() {
    let world = World::new().await;
    let snapshot = off();
    world.source.store(&snapshot);
    let good = sign(&snapshot.head(version(1, 2)));
    let strangers = SigningKey::from_bytes(&[8; 32]);
    let stranger = SignedHead::sign(&snapshot.head(version(1, 2)), &strangers).expect("signed");
    let mut borrowed = stranger.clone();
    borrowed.key_id = good.key_id.clone();
    let mut changed = good.clone();
    changed.head = changed.head.replace("\"revision\":2", "\"revision\":3");
    let mut unsigned = good.clone();
    unsigned.signature = String::new();
    for (head, reason) in [
        (stranger, "not trusted"),
        (borrowed, "signature does not hold"),
        (changed, "signature does not hold"),
        (unsigned, "signature does not hold"),
    ] {
        world.source.head(head);
        let receipt = world.source.reports_refusal(reason).await;
        assert_eq!(receipt.version, version(1, 1), "the last good one stays");
        assert_eq!(banner(&world).await, true);
        // Back to good, so that the next refusal is seen to be a new one.
        world.source.publish(&Shop::new().snapshot(), version(1, 1));
        world.source.reports(|all| all.iter().all(|one| one.rejected.is_none())).await;
    }
    world.source.head(good);
    world.serves(version(1, 2)).await;
}

#[tokio::test]
async fn an_older_head_never_replaces_a_newer_one_and_a_higher_generation_does() {
    let world = World::new().await;
    world.source.publish(&off(), version(1, 5));
    world.serves(version(1, 5)).await;
    let shop = Shop::new().snapshot();
    world.source.publish(&shop, version(1, 4));
    let older = "result=\"older\"} 1";
    let seen = async { while !world.get("/metrics").await.text().contains(older) {} };
    tokio::time::timeout(DEADLINE, seen).await.expect("the older head was not looked at");
    assert_eq!((world.serving(), banner(&world).await), (Some(version(1, 5)), json!(false)));
    world.source.publish(&shop, version(2, 1));
    world.serves(version(2, 1)).await;
    assert_eq!(banner(&world).await, true);
}

#[tokio::test]
async fn two_snapshots_with_one_version_are_a_divergence_and_the_first_stays() {
    let world = World::new().await;
    world.source.publish(&off(), version(1, 1));
    let receipt = world.source.reports_refusal("another digest").await;
    assert_eq!(receipt.digest, Shop::new().snapshot().digest());
    assert_eq!(banner(&world).await, true);
}

#[tokio::test]
async fn a_snapshot_for_newer_readers_is_refused() {
    let world = World::new().await;
    let snapshot = off();
    world.source.store(&snapshot);
    let mut head = snapshot.head(version(1, 2));
    head.min_reader = rules::blob::FORMAT + 1;
    world.source.head(sign(&head));
    world.source.reports_refusal("needs reader").await;
    assert_eq!(world.serving(), Some(version(1, 1)));
}

#[tokio::test]
async fn a_snapshot_that_is_announced_too_long_is_not_even_fetched() {
    let world = World::new().await;
    let before = world.source.fetched();
    let mut head = off().head(version(1, 2));
    head.snapshot.bytes = rules::limits::SNAPSHOT_BYTES_MAX as u64 + 1;
    world.source.head(sign(&head));
    world.source.reports_refusal("the limit is").await;
    assert_eq!(world.source.fetched(), before);
}

#[tokio::test]
async fn bytes_that_are_not_those_of_the_digest_are_refused_until_the_store_is_mended() {
    let world = World::new().await;
    let snapshot = off();
    let mut rotten = snapshot.blob.to_vec();
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    for bytes in [rotten, snapshot.blob[..middle].to_vec(), Vec::new()] {
        world.source.corrupt(snapshot.digest(), Bytes::from(bytes));
        world.source.head(sign(&snapshot.head(version(1, 2))));
        world.source.reports_refusal("bytes are not those").await;
        assert_eq!(world.serving(), Some(version(1, 1)));
    }
    world.source.store(&snapshot);
    world.serves(version(1, 2)).await;
    world.source.reports(|all| all.iter().all(|one| one.rejected.is_none())).await;
}

#[tokio::test]
async fn a_blob_that_could_not_be_fetched_is_asked_for_again_long_before_the_next_tick() {
    let source = Source::new();
    let snapshot = Shop::new().snapshot();
    source.head(sign(&snapshot.head(version(1, 1))));
    let mut config = config(None);
    config.anti_entropy = DEADLINE * 10;
    let world = World::start(config, source).await;
    world.source.reports_refusal("could not be fetched").await;
    let nothing = version(0, 0);
    world.source.reports(|all| all.iter().all(|one| one.version == nothing)).await;
    // No bell: nothing but the edge's own next try brings it.
    world.source.store(&snapshot);
    world.serves(version(1, 1)).await;
}

#[tokio::test]
async fn a_signed_snapshot_that_does_not_load_is_refused_once_and_not_fetched_again() {
    let world = World::new().await;
    let garbage = Snapshot {
        blob: Bytes::from_static(b"signed, delivered, nonsense"),
        lists: Vec::new(),
        environment: "production".to_owned(),
        client: Bytes::new(),
    };
    world.source.publish(&garbage, version(1, 2));
    let receipt = world.source.reports_refusal("does not load").await;
    assert_eq!(receipt.rejected.expect("refused").version, version(1, 2));
    let fetched = world.source.fetched();
    // Another environment's head makes the edge go through all heads again.
    let mut staging = Shop::new();
    staging.environment = "staging".to_owned();
    let staging = staging.snapshot();
    let lists = staging.lists.len();
    world.source.publish(&staging, version(1, 1));
    world.source.reports(|all| all.iter().any(|one| one.environment == "staging")).await;
    assert_eq!(world.source.fetched(), fetched + 1 + lists, "only what staging needs");
    assert_eq!(banner(&world).await, true);
    // And the next good one is taken.
    world.source.publish(&off(), version(1, 3));
    world.serves(version(1, 3)).await;
}

#[tokio::test]
async fn a_blob_of_another_environment_is_refused_whoever_signed_its_head() {
    let world = World::new().await;
    let mut staging = Shop::new();
    staging.environment = "staging".to_owned();
    let mut snapshot = staging.snapshot();
    snapshot.environment = "production".to_owned();
    world.source.publish(&snapshot, version(1, 2));
    world.source.reports_refusal("another environment").await;
    assert_eq!(world.serving(), Some(version(1, 1)));
}

#[tokio::test]
async fn a_snapshot_whose_id_list_is_damaged_waits_for_a_whole_one() {
    let world = World::new().await;
    let mut shop = Shop::new();
    shop.ids = vec!["vip-2".to_owned()];
    let snapshot = shop.snapshot();
    world.source.store(&snapshot);
    for list in &snapshot.lists {
        world.source.corrupt(Digest::of(list), Bytes::from_static(b"not a list"));
    }
    world.source.head(sign(&snapshot.head(version(1, 2))));
    world.source.reports_refusal("the id list's bytes").await;
    assert_eq!(world.serving(), Some(version(1, 1)));
    world.source.store(&snapshot);
    world.serves(version(1, 2)).await;
    let vip = world.one("vip", r#"{"context":{"targetingKey":"vip-2"}}"#).await.json();
    assert_eq!(vip["value"], true);
}

#[tokio::test]
async fn a_staged_rollout_reaches_this_edge_at_its_stage_and_not_before() {
    let world = World::new().await;
    let (old, new) = (Shop::new().snapshot(), off());
    world.source.store(&new);
    let mut head = new.head(version(1, 3));
    let staged = |stage: u16| Previous {
        version: version(1, 2),
        snapshot: old.head(version(1, 2)).snapshot,
        client: None,
        stage,
    };
    head.previous = Some(staged(0));
    world.source.head(sign(&head));
    world.serves(version(1, 2)).await;
    assert_eq!(banner(&world).await, true);
    head.previous = Some(staged(STAGE_ALL));
    world.source.head(sign(&head));
    world.serves(version(1, 3)).await;
    assert_eq!(banner(&world).await, false);
}

#[tokio::test]
async fn an_edge_that_loses_control_goes_on_answering_and_catches_up_later() {
    let world = World::new().await;
    world.source.set_down(true);
    let said = "\"connected\":false";
    let seen = async { while !world.get("/readyz").await.text().contains(said) {} };
    tokio::time::timeout(DEADLINE, seen).await.expect("the loss was not noticed");
    assert_eq!(world.get("/readyz").await.status, 200);
    assert_eq!(banner(&world).await, true);
    world.source.publish(&off(), version(1, 2));
    world.source.set_down(false);
    world.serves(version(1, 2)).await;
}

/// An edge with a data folder that has served 1.1 and then 1.2 (`off`), stopped.
async fn after_two_snapshots(dir: &Path) {
    let world = World::with(config(Some(dir))).await;
    world.source.publish(&off(), version(1, 2));
    world.serves(version(1, 2)).await;
    world.edge.shutdown().await;
}

/// An edge that starts alone.
async fn alone(dir: &Path) -> World {
    let source = Source::new();
    source.set_down(true);
    World::start(config(Some(dir)), source).await
}

fn file(dir: &Path, revision: u64) -> PathBuf {
    dir.join(format!("snapshot.shop.production.1.{revision}"))
}

fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a folder")
        .map(|file| file.expect("a file").file_name().into_string().expect("text"))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_edge_that_starts_alone_answers_from_disk_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    after_two_snapshots(dir.path()).await;
    let world = alone(dir.path()).await;
    assert_eq!(world.serving(), Some(version(1, 2)), "ready when `start` returns");
    assert_eq!(banner(&world).await, false);
    let vip = world.one("vip", r#"{"context":{"targetingKey":"vip-1"}}"#).await.json();
    assert_eq!(vip["value"], true, "id lists survive too");
    assert_eq!(world.get("/readyz").await.status, 200);
    let unknown = [("X-API-Key", "tg_server_unknown")];
    let answer = world.send("POST", "/ofrep/v1/evaluate/flags", &unknown, b"{}").await;
    answer.failure(401, "GENERAL", None);
}

#[tokio::test]
async fn a_damaged_snapshot_is_set_aside_and_the_one_before_is_served() {
    let dir = tempfile::tempdir().expect("a folder");
    after_two_snapshots(dir.path()).await;
    let whole = fs::read(file(dir.path(), 2)).expect("a snapshot");
    let mut damages: Vec<Vec<u8>> = [0, 1, 8, 20, 21, 300, whole.len() / 2, whole.len() - 1]
        .iter()
        .map(|len| whole[..*len].to_vec())
        .collect();
    let step = (whole.len() / 40).max(1);
    for at in (0..21).chain((21..whole.len()).step_by(step)) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        damages.push(flipped);
    }
    let mut surplus = whole.clone();
    surplus.push(0);
    damages.push(surplus);
    let bad = dir.path().join("snapshot.shop.production.1.2.bad");
    for damaged in damages {
        let _ = fs::remove_file(&bad);
        fs::write(file(dir.path(), 2), &damaged).expect("written");
        let world = alone(dir.path()).await;
        let place = whole.iter().zip(&damaged).position(|(a, b)| a != b);
        assert_eq!(world.serving(), Some(version(1, 1)), "{} bytes, {place:?}", damaged.len());
        assert_eq!(banner(&world).await, true);
        assert!(!file(dir.path(), 2).exists(), "{} bytes, {place:?}", damaged.len());
        world.edge.shutdown().await;
        assert!(bad.exists(), "not set aside: {} bytes, {place:?}", damaged.len());
    }
}

#[tokio::test]
async fn a_snapshot_signed_by_a_key_that_is_no_longer_trusted_is_not_served_and_not_thrown_away() {
    let dir = tempfile::tempdir().expect("a folder");
    after_two_snapshots(dir.path()).await;
    let mut config = config(Some(dir.path()));
    config.trusted =
        tokio::sync::watch::channel(vec![PublicKey::of(&SigningKey::from_bytes(&[8; 32]))]).1;
    let source = Source::new();
    source.set_down(true);
    let world = World::start(config, source).await;
    assert_eq!(world.serving(), None);
    assert!(file(dir.path(), 2).exists(), "trusting the key again must be enough");
}

#[tokio::test]
async fn a_snapshot_that_was_set_aside_is_fetched_again_when_control_is_back() {
    let dir = tempfile::tempdir().expect("a folder");
    after_two_snapshots(dir.path()).await;
    fs::write(file(dir.path(), 2), b"rotten").expect("written");
    let source = Source::new();
    source.publish(&off(), version(1, 2));
    let world = World::start(config(Some(dir.path())), source).await;
    world.serves(version(1, 2)).await;
    world.edge.shutdown().await;
    assert_eq!(alone(dir.path()).await.serving(), Some(version(1, 2)));
}

#[tokio::test]
async fn three_snapshots_are_kept_and_only_the_id_lists_that_they_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let world = World::with(config(Some(dir.path()))).await;
    for revision in 2..=6 {
        let mut shop = Shop::new();
        shop.ids = vec![format!("vip-{revision}")];
        world.source.publish(&shop.snapshot(), version(1, revision));
        world.serves(version(1, revision)).await;
    }
    world.edge.shutdown().await;
    let kept: Vec<String> =
        (4..=6).map(|revision| format!("snapshot.shop.production.1.{revision}")).collect();
    assert_eq!(files(dir.path(), "snapshot."), kept);
    // One of ids for each snapshot, unless the segment has an exclusion list; that one is shared.
    let lists = Shop::new().snapshot().lists.len();
    assert_eq!(files(dir.path(), "list.").len(), 3 + lists - 1);
    assert_eq!(files(dir.path(), "tmp."), Vec::<String>::new());
}

#[tokio::test]
async fn a_disk_that_fails_keeps_nobody_from_the_new_snapshot_and_is_reported() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let world = World::with(config(Some(&data))).await;
    // A file where the folder was: every write fails, for root too.
    fs::rename(&data, dir.path().join("aside")).expect("moved");
    fs::write(&data, b"").expect("written");
    world.source.publish(&off(), version(1, 2));
    world.serves(version(1, 2)).await;
    assert_eq!(banner(&world).await, false);
    let ready = world.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["unsaved"]), (200, &json!(1)));
    fs::remove_file(&data).expect("removed");
    fs::rename(dir.path().join("aside"), &data).expect("moved back");
    let seen = async { while world.get("/readyz").await.json()["unsaved"] != json!(0) {} };
    tokio::time::timeout(DEADLINE, seen).await.expect("it was not written when it could be");
    world.edge.shutdown().await;
    assert_eq!(alone(&data).await.serving(), Some(version(1, 2)));
}

#[tokio::test]
async fn files_that_a_crash_left_half_written_are_cleared_and_strangers_files_are_not() {
    let dir = tempfile::tempdir().expect("a folder");
    after_two_snapshots(dir.path()).await;
    fs::write(dir.path().join("tmp.snapshot.shop.production.1.3"), b"half").expect("written");
    fs::write(dir.path().join("notes.txt"), b"mine").expect("written");
    let world = alone(dir.path()).await;
    assert_eq!(world.serving(), Some(version(1, 2)));
    assert_eq!(files(dir.path(), "tmp."), Vec::<String>::new());
    assert!(dir.path().join("notes.txt").exists());
}
