//! Who publishes, and what becomes of what a former leader writes late; on either database.

mod store;

use std::sync::Arc;
use std::time::Duration;

use control::bus::{Bus, InProcessBus};
use control::lead::{self, AdoptError, Epoch, FenceError, Lead, Recorded};
use control::publisher::{PublishError, Published, Publisher};
use control::store::{Patience, Store};

const LONG: Duration = Duration::from_secs(600);
/// Over as soon as it is taken.
const OVER: Duration = Duration::ZERO;

fn lead(store: &Store, holder: &str, lease: Duration) -> Arc<Lead> {
    Arc::new(Lead::new(store.clone(), holder.to_owned(), lease))
}

fn publisher(store: &Store, lead: &Arc<Lead>) -> Publisher {
    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    Publisher::new(store.clone(), bus, key, lead.clone())
}

#[tokio::test]
async fn one_control_leads_until_it_resigns_and_each_leader_has_a_higher_epoch() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let (one, other) = (lead(&store, "one", LONG), lead(&store, "other", LONG));
    assert_eq!(one.take().await.expect("asked"), Some(Epoch(1)));
    assert_eq!(other.take().await.expect("asked"), None);
    assert_eq!(one.take().await.expect("renewed"), Some(Epoch(1)), "renewing is not a takeover");
    assert_eq!((one.epoch(), other.epoch()), (Some(Epoch(1)), None));
    one.resign().await.expect("resigned");
    assert_eq!(one.epoch(), None);
    assert_eq!(other.take().await.expect("asked"), Some(Epoch(2)), "it need not wait");
    assert_eq!(one.take().await.expect("asked"), None);
}

#[tokio::test]
async fn a_leader_that_was_restarted_leads_at_once_and_its_former_self_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let before = lead(&store, "one", LONG);
    assert_eq!(before.take().await.expect("asked"), Some(Epoch(1)));
    let after = lead(&store, "one", LONG);
    assert_eq!(after.take().await.expect("asked"), Some(Epoch(2)));
    let late = lead::write(&store, Epoch(1)).await.err();
    assert!(matches!(late, Some(FenceError::Over(1))), "{late:?}");
}

#[tokio::test]
async fn a_lease_that_ran_out_is_taken_and_what_the_former_leader_writes_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let (_, _, environment) = store::furnish(&store).await;
    // It was paused for longer than its lease, and does not know.
    let paused = lead(&store, "paused", LONG);
    paused.take().await.expect("asked").expect("the first");
    let short = lead(&store, "paused", OVER);
    short.take().await.expect("asked").expect("the same holder");
    let other = lead(&store, "other", LONG);
    assert_eq!(other.take().await.expect("asked"), Some(Epoch(3)));
    assert_eq!(paused.epoch(), Some(Epoch(1)), "it still believes");

    let late = publisher(&store, &paused);
    let refused = late.publish(&environment).await;
    assert!(matches!(refused, Err(PublishError::NotLeading)), "{refused:?}");
    assert_eq!(paused.epoch(), None, "now it knows");
    assert!(late.bus.heads().await.expect("heads").is_empty(), "nothing came of it");

    let now = publisher(&store, &other);
    let published = now.publish(&environment).await.expect("published");
    assert!(matches!(published, Published::Moved(_)), "{published:?}");
    let head = &now.bus.heads().await.expect("heads")[0];
    assert!(head.signed.head.contains("\"epoch\":3"), "{}", head.signed.head);

    late.follow().await.expect("followed");
    assert_eq!(late.bus.heads().await.expect("heads"), now.bus.heads().await.expect("heads"));
}

#[tokio::test]
async fn a_takeover_waits_for_a_leaders_write_that_is_under_way() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let one = lead(&store, "one", OVER);
    let epoch = one.take().await.expect("asked").expect("the first");
    let tx = lead::write(&store, epoch).await.expect("it leads");
    let other = lead(&store, "other", LONG);
    let takeover = tokio::spawn(async move { other.take().await });
    // It cannot end before the commit; that it waits at all is what the database promises.
    tokio::task::yield_now().await;
    assert!(!takeover.is_finished(), "it took over in the middle of a write");
    tx.commit().await.expect("a commit");
    let taken = takeover.await.expect("joined").expect("asked");
    assert_eq!(taken, Some(Epoch(2)));
}

#[tokio::test]
async fn a_leader_that_stops_in_the_middle_of_a_write_holds_nobody_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let patience = Patience { connection: LONG, ..Patience::default() };
    let store = store::open_with(&dir, patience).await;
    if !store.has_others() {
        return; // SQLite has one process, and with it nobody to hold up.
    }
    let one = lead(&store, "one", OVER);
    let epoch = one.take().await.expect("asked").expect("the first");
    let tx = lead::write(&store, epoch).await.expect("it leads");
    // Waits for the row, and gives up after the five seconds of `lock_timeout`.
    let other = lead(&store, "other", LONG);
    let taken = match other.take().await {
        // After a stall both are due at once: the end of the silent write, and of its patience.
        Err(error) if control::store::is_passing(&error) => other.take().await,
        taken => taken,
    };
    assert_eq!(taken.expect("asked"), Some(Epoch(2)));
    tx.commit().await.expect_err("what it wrote was taken back");
}

const ONE: &str = "etcd:0000000000000001:one";
const OTHER: &str = "etcd:0000000000000001:other";

#[tokio::test]
async fn an_epoch_that_is_not_higher_is_refused_whoever_brings_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let (winner, late) = (lead(&store, "winner", LONG), lead(&store, "late", LONG));
    assert_eq!(winner.record(ONE, 7).await.expect("asked"), Recorded::Leads(Epoch(7)));
    for revision in [7, 6, 1, 0, -1, i64::MIN] {
        let recorded = late.record(ONE, revision).await.expect("asked");
        assert_eq!(recorded, Recorded::Stale(Epoch(7)), "{revision}");
    }
    let known = lead::recorded(&store).await.expect("read");
    assert_eq!(known, Some((ONE.to_owned(), Epoch(7))));
    let tx = lead::write(&store, Epoch(7)).await.expect("it leads");
    drop(tx);
    assert_eq!(late.record(ONE, 9).await.expect("asked"), Recorded::Leads(Epoch(9)));
    let over = lead::write(&store, Epoch(7)).await.err();
    assert!(matches!(over, Some(FenceError::Over(7))), "{over:?}");
}

#[tokio::test]
async fn another_coordinator_leads_nobody_until_it_is_adopted_and_the_epoch_never_falls() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let one = lead(&store, "one", LONG);
    assert_eq!(one.record(ONE, 1_000).await.expect("asked"), Recorded::Leads(Epoch(1_000)));
    // An etcd that was wiped, however far it has come meanwhile.
    for revision in [3, 5_000] {
        let recorded = one.record(OTHER, revision).await.expect("asked");
        assert_eq!(recorded, Recorded::NotAdopted(ONE.to_owned()));
    }
    assert_eq!(one.take().await.expect("asked"), None, "nor by the database's lease");
    let obstacle = one.obstacle().expect("it says why");
    assert!(obstacle.contains(ONE) && obstacle.contains("adopt-coordinator"), "{obstacle}");

    assert_eq!(lead::adopt(&store, OTHER).await.expect("adopted"), Epoch(1_001));
    let over = lead::write(&store, Epoch(1_000)).await.err();
    assert!(matches!(over, Some(FenceError::Over(1_000))), "{over:?}");
    let recorded = one.record(ONE, 2_000).await.expect("asked");
    assert_eq!(recorded, Recorded::NotAdopted(OTHER.to_owned()), "the former one is over");
    assert_eq!(one.record(OTHER, 3).await.expect("asked"), Recorded::Leads(Epoch(1_004)));
    assert_eq!(one.record(OTHER, 2).await.expect("asked"), Recorded::Stale(Epoch(1_004)));

    // Set back to an older state of itself: adopted again, it goes on above what there was.
    assert_eq!(lead::adopt(&store, OTHER).await.expect("adopted"), Epoch(1_005));
    assert_eq!(one.record(OTHER, 1).await.expect("asked"), Recorded::Leads(Epoch(1_006)));

    assert_eq!(lead::adopt(&store, lead::DATABASE).await.expect("adopted"), Epoch(1_007));
    assert_eq!(one.take().await.expect("asked"), Some(Epoch(1_008)));
    assert_eq!(one.obstacle(), None);
    assert_eq!(lead::adopt(&store, ONE).await.expect("adopted"), Epoch(1_009));
    assert_eq!(one.take().await.expect("asked"), None, "it was the database's leader");
    assert_eq!(one.epoch(), None);

    for wrong in ["", "etcd:", "postgres", "Database", &format!("etcd:{}", "1".repeat(100))] {
        let refused = lead::adopt(&store, wrong).await;
        assert!(matches!(refused, Err(AdoptError::Name(_))), "{wrong:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_leader_whose_epoch_was_refused_does_not_come_back_by_a_longer_lease() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let lead = lead(&store, "one", LONG);
    let later = tokio::time::Instant::now() + LONG;
    lead.begin(Epoch(4), later);
    assert!(lead.extend(Epoch(4), later));
    assert!(!lead.extend(Epoch(3), later));
    lead.is_over(Epoch(4));
    assert!(!lead.extend(Epoch(4), later));
    assert_eq!(lead.epoch(), None);
    lead.begin(Epoch(5), tokio::time::Instant::now());
    assert_eq!(lead.epoch(), None, "its time is over by its own clock");
}
