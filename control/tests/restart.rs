//! The publisher dies at each of its steps; what was committed is published by the next try.
//! Run with `--features failpoints`. One test: failpoints belong to the whole process.
#![cfg(feature = "failpoints")]

mod store;

use std::sync::Arc;
use std::time::Duration;

use control::bus::{Bus, InProcessBus};
use control::lead::Lead;
use control::publisher::{PublishError, Published, Publisher};
use control::{flags, relay};

#[tokio::test]
async fn a_committed_write_is_published_wherever_the_publisher_died() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store::open(&dir).await;
    let (_, scope, environment) = store::furnish(&store).await;

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
        let died = restart().await.publish(&environment).await;
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
        let again = publisher.publish(&environment).await.expect("published");
        assert!(matches!(again, Published::Already(_)), "{step}: {again:?}");
    }
}
