//! Who publishes, and what becomes of what a former leader writes late; on either database.

mod store;

use std::sync::Arc;
use std::time::Duration;

use control::bus::{Bus, InProcessBus};
use control::lead::{self, Epoch, FenceError, Lead};
use control::publisher::{PublishError, Published, Publisher};
use control::store::Store;

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
    let mut tx = store.write().await.expect("a write");
    let late = lead::fence(&mut tx, Epoch(1)).await;
    assert!(matches!(late, Err(FenceError::Over(1))), "{late:?}");
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
    let mut tx = store.write().await.expect("a write");
    lead::fence(&mut tx, epoch).await.expect("it leads");
    let other = lead(&store, "other", LONG);
    let takeover = tokio::spawn(async move { other.take().await });
    // It cannot end before the commit; that it waits at all is what the database promises.
    tokio::task::yield_now().await;
    assert!(!takeover.is_finished(), "it took over in the middle of a write");
    tx.commit().await.expect("a commit");
    let taken = takeover.await.expect("joined").expect("asked");
    assert_eq!(taken, Some(Epoch(2)));
}
