//! The publisher dies at each of its steps; what was committed is published by the next try.
//! Run with `--features failpoints`. One test: failpoints belong to the whole process.
#![cfg(feature = "failpoints")]

use std::sync::Arc;
use std::time::Duration;

use control::bus::{Bus, InProcessBus};
use control::lead::Lead;
use control::publisher::{PublishError, Published, Publisher};
use control::store::{Database, Store};
use control::{authorize, environments, flags, namespaces, relay};
use rules::secret::Secret;

#[path = "../../e2e/src/postgres.rs"]
#[allow(dead_code, reason = "the server is started by xtask")]
mod postgres;

#[tokio::test]
async fn a_committed_write_is_published_wherever_the_publisher_died() {
    let dir = tempfile::tempdir().expect("a folder");
    let database = match postgres::database_for_test() {
        Some(url) => Database::Postgres(Secret::new(url)),
        None => Database::embedded(dir.path()),
    };
    let store = Store::open(&database).await.expect("a store");
    let mut tx = store.write().await.expect("a write");
    let token = authorize::bootstrap(&mut tx).await.expect("a token").expect("the first");
    let manage = authorize::Permission::Manage;
    let scope = authorize::admin(&mut tx, Some(token.reveal()), manage, None).await.expect("in");
    namespaces::create(&mut tx, &scope, "ours", "").await.expect("a namespace");
    let scope = scope.namespace(&mut tx, "ours").await.expect("a scope");
    let made = environments::create(&mut tx, &scope, "production", "").await.expect("made");
    tx.commit().await.expect("a commit");

    for (step, revision) in ["compile", "blob", "head", "mark"].into_iter().zip(2u64..) {
        let name = format!("publisher::{step}");
        let mut tx = store.write().await.expect("a write");
        let definition = serde_json::from_value(serde_json::json!({
            "key": step, "type": "boolean", "variants": { "on": true } }))
        .expect("a definition");
        flags::create(&mut tx, &scope, &definition).await.expect("a flag");
        tx.commit().await.expect("a commit");

        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        // A new bus each time: what was in the process died with it.
        let restart = async || {
            let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
            let lead = Lead::new(store.clone(), "one".to_owned(), Duration::from_secs(60));
            let lead = Arc::new(lead);
            lead.take().await.expect("a lease").expect("its own lease again");
            Publisher::new(store.clone(), bus, key.clone(), lead)
        };
        fail::cfg(&name, "return").expect("a failpoint");
        let died = restart().await.publish(&made.id).await;
        assert!(matches!(died, Err(PublishError::Died(_))), "{step}: {died:?}");
        fail::remove(&name);

        let publisher = restart().await;
        publisher.restore().await.expect("restored");
        assert_eq!(
            relay::pass(&publisher, &mut relay::Retries::default()).await.expect("a pass"),
            1,
            "{step}"
        );
        let heads = publisher.bus.heads().await.expect("heads");
        assert_eq!(heads[0].version.revision, revision, "{step}");
        assert_eq!(
            relay::pass(&publisher, &mut relay::Retries::default()).await.expect("a pass"),
            0,
            "{step}: nothing is left"
        );
        let again = publisher.publish(&made.id).await.expect("published");
        assert!(matches!(again, Published::Already(_)), "{step}: {again:?}");
    }
}
