//! What differs between database, bus and edges is found, mended and recorded; on either database.

mod store;

use std::sync::Arc;
use std::time::Duration;

use control::authorize::callers;
use control::authorize::{NamespaceScope, Scope};
use control::bus::{Bus, InProcessBus};
use control::change::Expected;
use control::lead::Lead;
use control::page::Page;
use control::publisher::{PublishError, Publisher};
use control::reconciler::{self, Drift};
use control::store::now_us;
use control::store::query::query;
use control::{edges, flags, keys, policies, relay};
use rules::head::{PolicyHealth, PolicyReport, Receipt, Receipts, Version};

struct World {
    publisher: Publisher,
    admin: Scope,
    scope: NamespaceScope,
    edge_key: rules::keys::ApiKey,
    _dir: tempfile::TempDir,
}

impl World {
    /// One environment, published.
    async fn new() -> World {
        let dir = tempfile::tempdir().expect("a folder");
        let store = store::open(&dir).await;
        let (admin, scope, _) = store::furnish(&store).await;
        let mut tx = store.write().await.expect("a write");
        let (edge_key, _) =
            keys::edge_create(&mut tx, &admin, "", &keys::Sees::All, None).await.expect("a key");
        tx.commit().await.expect("a commit");
        let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
        let lead = Lead::new(store.clone(), "one".to_owned(), Duration::from_secs(600));
        let lead = Arc::new(lead);
        lead.take().await.expect("asked").expect("the first");
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let publisher = Publisher::new(store, bus, key, lead);
        relay::pass(&publisher, &mut relay::Retries::default()).await.expect("published");
        World { publisher, admin, scope, edge_key, _dir: dir }
    }

    async fn write(&self, flag: &str) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        let definition =
            serde_json::json!({ "key": flag, "type": "boolean", "variants": { "on": true } });
        let definition = serde_json::from_value(definition).expect("a definition");
        flags::create(&mut tx, &self.scope, &definition).await.expect("a flag");
        tx.commit().await.expect("a commit");
    }

    async fn sql(&self, statement: &'static str) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        query(statement).execute(&mut tx).await.expect("done");
        tx.commit().await.expect("a commit");
    }

    async fn pass(&self) -> usize {
        reconciler::pass(&self.publisher).await.expect("a pass")
    }

    async fn drift(&self) -> Vec<Drift> {
        let mut read = self.publisher.store.read().await.expect("a read");
        let page = Page::new(Some(100), None).expect("a page");
        reconciler::page(&mut read, &self.admin, &page).await.expect("drift").items
    }

    async fn head(&self) -> Option<Version> {
        let heads = self.publisher.bus.heads().await.expect("heads");
        heads.first().map(|head| head.version)
    }

    /// A version of the policy `guard`, uploaded and pinned.
    async fn pin(&self, wasm: &[u8]) -> rules::blob::Digest {
        let mut tx = self.publisher.store.write().await.expect("a write");
        let verdict = sandbox::policy::Verdict { admitted: true, ..Default::default() };
        policies::upload(&mut tx, &self.scope, "guard", wasm, &verdict).await.expect("a version");
        let digest = rules::blob::Digest::of(wasm);
        let pin = policies::Pin { digest: digest.to_string(), shadow: None };
        let (to, expected) = (policies::Move::To(pin), Expected::Any);
        let pinned = policies::pin(&mut tx, &self.scope, "production", "guard", expected, to).await;
        pinned.expect("a pin");
        tx.commit().await.expect("a commit");
        digest
    }

    /// What is pinned as `guard`, and why control went back to it.
    async fn pinned(&self) -> (String, Option<String>) {
        let mut read = self.publisher.store.read().await.expect("a read");
        let pins = policies::pins(&mut read, &self.scope, "production").await.expect("pins");
        let (pin, _) = pins.into_iter().next().expect("a pin");
        (pin.digest, pin.reverted)
    }

    /// That `edge` called the version so often, and each call trapped or none.
    async fn says(&self, edge: &str, digest: rules::blob::Digest, state: PolicyHealth, calls: u64) {
        let traps = if state == PolicyHealth::Open { calls } else { 0 };
        let report = PolicyReport {
            name: "guard".to_owned(),
            digest,
            state,
            calls,
            faults: [("trap".to_owned(), traps)].into(),
            fuel: 0,
            micros: 0,
            shadow: None,
        };
        let receipt = Receipt { edge: edge.to_owned(), policies: vec![report], ..receipt(1) };
        self.receive(receipt).await;
    }

    async fn receive(&self, receipt: Receipt) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        let scope = callers::edge(&mut tx, Some(self.edge_key.reveal())).await.expect("an edge");
        let receipts = Receipts { receipts: vec![receipt] };
        edges::receive(&mut tx, &scope, &receipts).await.expect("received");
        tx.commit().await.expect("a commit");
    }

    async fn report(&self, revision: u64, digest: rules::blob::Digest) {
        self.receive(Receipt { digest, ..receipt(revision) }).await;
    }
}

fn receipt(revision: u64) -> Receipt {
    Receipt {
        edge: "edge-1".to_owned(),
        namespace: "ours".to_owned(),
        environment: "production".to_owned(),
        version: Version { generation: 1, revision },
        digest: rules::blob::Digest([0; 32]),
        reader: 1,
        rejected: None,
        policies: Vec::new(),
    }
}

#[tokio::test]
async fn where_nothing_differs_nothing_is_found() {
    let world = World::new().await;
    world.write("a").await;
    assert_eq!(world.pass().await, 0, "the outbox says so: that is the relay's work, not drift");
    relay::pass(&world.publisher, &mut relay::Retries::default()).await.expect("published");
    assert_eq!(world.pass().await, 0);
    assert!(world.drift().await.is_empty());
}

#[tokio::test]
async fn a_committed_write_whose_outbox_row_is_lost_is_published_all_the_same() {
    let world = World::new().await;
    world.write("a").await;
    world.sql("DELETE FROM outbox").await;
    assert_eq!(
        relay::pass(&world.publisher, &mut relay::Retries::default()).await.expect("a pass"),
        0,
        "the relay knows nothing"
    );
    assert_eq!(world.pass().await, 1);
    assert_eq!(world.head().await.map(|head| head.revision), Some(2));
    assert_eq!(world.pass().await, 0);
    let drift = world.drift().await;
    assert_eq!(drift.len(), 1);
    assert_eq!(
        (drift[0].kind.as_str(), drift[0].environment.as_deref()),
        ("unpublished", Some("production"))
    );
    assert!(drift[0].mended_at.is_some_and(|at| at >= drift[0].found_at), "{drift:?}");
}

#[tokio::test]
async fn a_bus_that_forgot_a_head_gets_it_again() {
    let world = World::new().await;
    world.publisher.bus.remove_head("ours", "production").await.expect("forgotten");
    assert_eq!(world.pass().await, 1);
    assert_eq!(world.head().await.map(|head| head.revision), Some(1));
    assert_eq!(world.pass().await, 0);
    assert_eq!(world.drift().await[0].kind, "bus-missing");
}

#[tokio::test]
async fn an_edge_that_stays_behind_or_serves_other_bytes_is_drift_until_it_catches_up() {
    let world = World::new().await;
    world.write("a").await;
    relay::pass(&world.publisher, &mut relay::Retries::default()).await.expect("published");
    world.report(1, rules::blob::Digest([0; 32])).await;
    assert_eq!(world.pass().await, 1, "the bytes of 1.1 are others");
    assert_eq!(world.drift().await[0].kind, "edge-diverged");
    // It was published two minutes ago, and the edge speaks.
    let ago = now_us() - 120 * 1_000_000;
    let mut tx = world.publisher.store.write().await.expect("a write");
    query("UPDATE publication SET published_at = $1")
        .bind(ago)
        .execute(&mut tx)
        .await
        .expect("done");
    tx.commit().await.expect("a commit");
    assert_eq!(world.pass().await, 1);
    assert_eq!(world.drift().await[0].kind, "edge-behind");
    assert!(world.drift().await.iter().all(|drift| drift.mended_at.is_none()));

    let head = world.publisher.bus.heads().await.expect("heads").remove(0);
    let key = world.publisher.public_key();
    let digest = head.signed.verify(&[key]).expect("signed").snapshot.digest;
    world.report(2, digest).await;
    assert_eq!(world.pass().await, 0);
    assert!(world.drift().await.iter().all(|drift| drift.mended_at.is_some()));
}

#[tokio::test]
async fn control_goes_back_from_a_policy_when_two_edges_say_so_and_not_by_what_was_said_before() {
    use PolicyHealth::{Open, Running};
    let world = World::new().await;
    let (old, new) = (world.pin(b"old").await, world.pin(b"new").await);
    let is_pinned = async |digest: rules::blob::Digest, why: Option<&str>| {
        let (pinned, reverted) = world.pinned().await;
        assert_eq!(pinned, digest.to_string(), "{reverted:?}");
        match (why, &reverted) {
            (None, None) => {}
            (Some(why), Some(reverted)) if reverted.contains(why) => {}
            _ => panic!("{why:?}, it says {reverted:?}"),
        }
    };
    // The rollout has not come to the other one, then it has and nothing is wrong there.
    world.says("edge-2", old, Running, 70).await;
    world.says("edge-1", new, Open, 5).await;
    world.pass().await;
    is_pinned(new, None).await;
    world.says("edge-2", new, Running, 300).await;
    world.pass().await;
    is_pinned(new, None).await;
    world.says("edge-2", new, Open, 6).await;
    world.pass().await;
    is_pinned(old, Some("11 of 11 calls failed (11 trap)")).await;
    world.pass().await;
    is_pinned(old, Some("open at 2 of 2 edges")).await;

    // Somebody pins it again: what edges said before is about the pin before.
    world.pin(b"new").await;
    world.pass().await;
    is_pinned(new, None).await;
    world.says("edge-1", new, Open, 5).await;
    world.pass().await;
    is_pinned(new, None).await;
    // Who is silent for long is no edge any more.
    world
        .sql("UPDATE policy_report SET received_at = received_at - 101000000 WHERE edge = 'edge-2'")
        .await;
    world.pass().await;
    is_pinned(old, Some("5 of 5 calls failed (5 trap)")).await;
    let mut read = world.publisher.store.read().await.expect("a read");
    let rows = control::audit::page(
        &mut read,
        world.scope.id(),
        &control::audit::Filter::default(),
        i64::MAX,
        100,
    )
    .await
    .expect("rows");
    let reverts = rows.iter().filter(|row| row.action == "policy.revert").count();
    assert_eq!(reverts, 2);
}

#[tokio::test]
async fn a_control_that_does_not_lead_mends_nothing() {
    let world = World::new().await;
    world.write("a").await;
    world.sql("DELETE FROM outbox").await;
    world.publisher.lead.resign().await.expect("resigned");
    let passed = reconciler::pass(&world.publisher).await;
    assert!(matches!(passed, Err(PublishError::NotLeading)), "{passed:?}");
    assert!(world.drift().await.is_empty());
}
