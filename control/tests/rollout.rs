//! How a staged rollout moves, and what stops it; on either database. Edges are played: what real
//! ones do is tested in `e2e/tests/rollout.rs`.

mod store;

use std::sync::Arc;
use std::time::Duration;

use control::authorize::NamespaceScope;
use control::authorize::callers;
use control::bus::{Bus, InProcessBus};
use control::lead::Lead;
use control::publisher::{PublishError, Publisher};
use control::rollout::{self, Order, State};
use control::store::Store;
use control::store::query::query;
use control::{blobs, edges, flags, fleet, keys, relay};
use rules::head::{Head, Receipt, Receipts, Rejection, STAGE_ALL, Version, place};

const LONG: Duration = Duration::from_secs(600);

struct World {
    publisher: Publisher,
    scope: NamespaceScope,
    environment: String,
    edge_key: rules::keys::ApiKey,
    _dir: tempfile::TempDir,
}

fn publisher(store: &Store, lead: Arc<Lead>, stages: &str) -> Publisher {
    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let mut publisher = Publisher::new(store.clone(), bus, key, lead);
    publisher.schedule = stages.parse().expect("a schedule");
    publisher
}

/// Edges in the order in which a rollout comes to them.
fn names() -> [String; 4] {
    let mut names = [1, 2, 3, 4].map(|index| format!("edge-{index}"));
    names.sort_by_key(|name| place("ours", "production", name));
    names
}

impl World {
    /// Four edges that serve 1.1.
    async fn new(stages: &str) -> World {
        let dir = tempfile::tempdir().expect("a folder");
        let store = store::open(&dir).await;
        let (admin, scope, environment) = store::furnish(&store).await;
        let mut tx = store.write().await.expect("a write");
        let (edge_key, _) =
            keys::edge_create(&mut tx, &admin, "", &keys::Sees::All, None).await.expect("a key");
        tx.commit().await.expect("a commit");
        let lead = Arc::new(Lead::new(store.clone(), "one".to_owned(), LONG));
        lead.take().await.expect("asked").expect("the first");
        let publisher = publisher(&store, lead, stages);
        let world = World { publisher, scope, environment, edge_key, _dir: dir };
        world.publish().await;
        world.all_serve(1).await;
        world
    }

    /// A write, published; its revision.
    async fn write(&self, flag: &str) -> u64 {
        self.write_for(flag, "none").await
    }

    /// As `write`, of a flag that browsers get or not.
    async fn write_for(&self, flag: &str, clients: &str) -> u64 {
        let mut tx = self.publisher.store.write().await.expect("a write");
        let definition = serde_json::json!({ "key": flag, "type": "boolean", "variants": { "on": true },
                "clients": clients });
        let definition = serde_json::from_value(definition).expect("a definition");
        flags::create(&mut tx, &self.scope, &definition).await.expect("a flag");
        tx.commit().await.expect("a commit");
        self.publish().await;
        self.head().await.version.revision
    }

    async fn publish(&self) {
        relay::pass(&self.publisher, &mut relay::Retries::default()).await.expect("published");
    }

    async fn pass(&self) {
        rollout::pass(&self.publisher).await.expect("a pass");
    }

    async fn report(&self, edge: &str, revision: u64, rejected: Option<Rejection>) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        let scope = callers::edge(&mut tx, Some(self.edge_key.reveal())).await.expect("an edge");
        let receipt = Receipt {
            edge: edge.to_owned(),
            namespace: "ours".to_owned(),
            environment: "production".to_owned(),
            version: Version { generation: 1, revision },
            digest: rules::blob::Digest([0; 32]),
            reader: 1,
            rejected,
            policies: Vec::new(),
        };
        let receipts = Receipts { receipts: vec![receipt] };
        edges::receive(&mut tx, &scope, &receipts).await.expect("received");
        tx.commit().await.expect("a commit");
    }

    async fn refuses(&self, edge: &str, serving: u64, refused: u64) {
        let version = Version { generation: 1, revision: refused };
        let rejected = Rejection { version, reason: "no".to_owned(), unfetched: false };
        self.report(edge, serving, Some(rejected)).await;
    }

    async fn all_serve(&self, revision: u64) {
        for edge in names() {
            self.report(&edge, revision, None).await;
        }
    }

    async fn head(&self) -> Head {
        let heads = self.publisher.bus.heads().await.expect("heads");
        heads[0].signed.claims().expect("a head")
    }

    /// Whom the head has come to.
    async fn reached(&self) -> usize {
        let head = self.head().await;
        names().iter().filter(|name| head.reaches(name)).count()
    }

    async fn state(&self) -> State {
        let mut read = self.publisher.store.read().await.expect("a read");
        rollout::one(&mut read, &self.environment).await.expect("read").expect("one").state
    }

    async fn order(&self, order: Order) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        rollout::order(&mut tx, &self.scope, "production", order).await.expect("ordered");
        tx.commit().await.expect("a commit");
    }

    async fn sql(&self, statement: &'static str) {
        let mut tx = self.publisher.store.write().await.expect("a write");
        query(statement).execute(&mut tx).await.expect("done");
        tx.commit().await.expect("a commit");
    }
}

/// What was published is what the database says, so that whoever follows serves the same stage.
async fn stored_is_what_is_out(world: &World) {
    let store = &world.publisher.store;
    let follower = Arc::new(Lead::new(store.clone(), "other".to_owned(), LONG));
    let follower = publisher(store, follower, "off");
    follower.follow().await.expect("followed");
    let heads = follower.bus.heads().await.expect("heads");
    assert_eq!(heads, world.publisher.bus.heads().await.expect("heads"));
}

#[tokio::test]
async fn it_comes_to_one_edge_then_to_half_then_to_all_as_edges_report_it() {
    let world = World::new("one:0s,50%:0s").await;
    assert_eq!(world.head().await.previous, None, "the first snapshot has none before it");
    let revision = world.write("a").await;
    let [first, second, ..] = names();
    for (edge, reached) in [(&first, 1), (&second, 2)] {
        world.pass().await;
        assert_eq!((world.reached().await, world.state().await), (reached, State::Running));
        let head = world.head().await;
        assert_eq!((head.version.revision, head.stage() < STAGE_ALL), (revision, true));
        assert_eq!(head.previous.expect("one before").version.revision, 1);
        stored_is_what_is_out(&world).await;
        world.report(edge, revision, None).await;
    }
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));
    assert_eq!(world.head().await.previous, None);
    stored_is_what_is_out(&world).await;
}

#[tokio::test]
async fn a_refusal_halts_it_and_the_next_write_begins_anew_from_the_last_that_came_to_all() {
    let world = World::new("one:0s,50%:0s").await;
    let bad = world.write("bad").await;
    let [first, ..] = names();
    world.refuses(&first, 1, bad).await;
    for _ in 0..3 {
        world.pass().await;
    }
    assert_eq!((world.reached().await, world.state().await), (1, State::Halted));
    let mut read = world.publisher.store.read().await.expect("a read");
    let revision = i64::try_from(bad).expect("small");
    let live = fleet::live(&mut read, &world.environment, 1, revision).await.expect("read");
    assert!(live.halted && !live.everywhere(), "{live:?}");
    drop(read);

    let good = world.write("good").await;
    let head = world.head().await;
    assert_eq!((world.reached().await, world.state().await), (1, State::Running));
    assert_eq!(head.previous.expect("one before").version.revision, 1, "never the refused one");
    world.pass().await;
    assert_eq!(world.state().await, State::Running, "the old refusal is not of this version");
    world.all_serve(good).await;
    world.pass().await;
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));
}

#[tokio::test]
async fn a_write_in_the_middle_replaces_it_and_the_previous_snapshot_is_kept_for_who_needs_it() {
    let world = World::new("one:1m").await;
    // More than the revisions that are kept otherwise.
    for write in 0..15 {
        world.write(&format!("f{write}")).await;
        world.sql("UPDATE blob SET created_at = 0").await;
    }
    let previous = world.head().await.previous.expect("one before");
    assert_eq!((previous.version.revision, world.reached().await), (1, 1));
    let kept = blobs::stored(&world.publisher.store, previous.snapshot.digest).await;
    assert!(kept.expect("read").is_some(), "edges that it has not come to could not start");
}

#[tokio::test]
async fn an_urgent_write_comes_to_all_and_ends_what_is_under_way() {
    let world = World::new("one:1m").await;
    let slow = world.write("slow").await;
    assert_eq!(world.reached().await, 1);
    let mut tx = world.publisher.store.write().await.expect("a write");
    let next = i64::try_from(slow + 1).expect("small");
    rollout::urge(&mut tx, &world.environment, next).await.expect("noted");
    tx.commit().await.expect("a commit");
    let urgent = world.write("kill-switch").await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));
    assert_eq!(world.head().await.previous, None);
    // And no later one is.
    world.all_serve(urgent).await;
    world.write("next").await;
    assert_eq!(world.reached().await, 1);
    assert_eq!(world.head().await.previous.expect("one").version.revision, urgent);
}

#[tokio::test]
async fn an_operator_halts_it_goes_on_and_finishes_it() {
    let world = World::new("one:0s").await;
    let revision = world.write("a").await;
    world.order(Order::Halt).await;
    world.report(&names()[0], revision, None).await;
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (1, State::Halted));
    world.order(Order::Resume).await;
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));

    let bad = world.write("bad").await;
    world.refuses(&names()[0], revision, bad).await;
    world.pass().await;
    assert_eq!(world.state().await, State::Halted);
    world.order(Order::Finish).await;
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));
}

#[tokio::test]
async fn what_a_former_leader_decides_late_moves_nothing_and_the_new_one_goes_on() {
    let world = World::new("one:0s").await;
    let revision = world.write("a").await;
    // Its lease is over and it does not know.
    let other = Arc::new(Lead::new(world.publisher.store.clone(), "other".to_owned(), LONG));
    world.sql("UPDATE leader SET expires_at = 0").await;
    other.take().await.expect("asked").expect("the lease ran out");
    world.report(&names()[0], revision, None).await;
    let late = rollout::pass(&world.publisher).await;
    assert!(matches!(late, Err(PublishError::NotLeading)), "{late:?}");
    assert_eq!((world.reached().await, world.state().await), (1, State::Running));
    let now = publisher(&world.publisher.store, other, "one:0s");
    now.follow().await.expect("followed");
    rollout::pass(&now).await.expect("a pass");
    let head = now.bus.heads().await.expect("heads")[0].signed.claims().expect("a head");
    assert_eq!((head.stage(), head.epoch), (STAGE_ALL, 2));
    assert_eq!(world.state().await, State::Done);
}

#[tokio::test]
async fn a_schedule_that_was_switched_off_ends_what_it_began() {
    let mut world = World::new("one:10m").await;
    let revision = world.write("a").await;
    world.pass().await;
    assert_eq!(world.reached().await, 1);
    world.publisher.schedule = "off".parse().expect("a schedule");
    world.report(&names()[0], revision, None).await;
    world.pass().await;
    assert_eq!((world.reached().await, world.state().await), (4, State::Done));
    world.write("b").await;
    assert_eq!(world.head().await.previous, None);
}

#[tokio::test]
async fn browsers_get_what_belongs_to_the_snapshot_that_their_edge_serves() {
    let world = World::new("one:10m").await;
    let before = world.head().await.client.expect("a client snapshot");
    let hidden = world.write("hidden").await;
    let head = world.head().await;
    let previous = head.previous.expect("one before").client.expect("its client snapshot");
    assert_eq!((head.version.revision, head.client.as_ref()), (hidden, Some(&before)));
    assert_eq!(previous, before, "hidden flags change nothing for browsers");

    world.write_for("seen", "local").await;
    let head = world.head().await;
    let client = head.client.clone().expect("a client snapshot");
    let previous = head.previous.clone().expect("one before").client.expect("its client snapshot");
    assert_ne!(client.digest, before.digest);
    assert_eq!(client.claims().expect("a head").version, head.version);
    assert_eq!(previous, before, "for edges that the rollout has not come to");
    for digest in [client.digest, previous.digest] {
        assert!(blobs::stored(&world.publisher.store, digest).await.expect("read").is_some());
    }

    // Another key: what lies in the database was signed with the old one.
    let key = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    let trusted = [rules::head::PublicKey::of(&key)];
    world.publisher.set_key(key);
    assert_eq!(world.publisher.sign_again().await.expect("signed"), 1);
    let is_signed_anew = |head: &Head| {
        let previous = head.previous.as_ref().and_then(|previous| previous.client.clone());
        let both = [head.client.clone(), previous];
        both.iter().flatten().count() == 2
            && both
                .iter()
                .flatten()
                .all(|client| client.verify(head, &trusted[0].id(), &trusted).is_ok())
    };
    assert!(is_signed_anew(&world.head().await));
    world.all_serve(head.version.revision).await;
    world.sql("UPDATE rollout SET step_at = step_at - 700000000").await;
    world.write_for("seen-too", "local").await;
    let head = world.head().await;
    assert!(is_signed_anew(&head), "{head:?}");
}
