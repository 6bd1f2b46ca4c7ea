//! Wakes the relays of the other controls on the same PostgreSQL by NOTIFY, and is woken by theirs.
//!
//! A hint and nothing else: a lost one costs the relay's tick. NOTIFY takes a lock that the whole
//! database shares, so it is never part of a write; a burst of writes is cried once in a while.
//! Nothing to do on SQLite, where one process is all there is.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::relay::{Doorbell, jittered};
use crate::store::Store;
use crate::store::query::query_scalar;

const CHANNEL: &str = "tidegate_changed";
const CRY: &str = "SELECT pg_notify($1, '') IS NULL";
/// Between two cries of one process.
const CRY_REST: Duration = Duration::from_millis(50);
/// Until listening is tried again.
const LISTEN_REST: Duration = Duration::from_secs(1);

pub async fn run(store: Store, doorbell: Doorbell, stop: CancellationToken) {
    let both = async { tokio::join!(cry(&store, &doorbell), listen(&store, &doorbell)) };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = both => {}
    }
}

async fn cry(store: &Store, doorbell: &Doorbell) {
    if !store.has_others() {
        return;
    }
    loop {
        doorbell.rung_for_others().await;
        let cried = async {
            let mut tx = store.write().await?;
            query_scalar::<bool>(CRY).bind(CHANNEL).fetch_one(&mut tx).await?;
            tx.commit().await
        };
        if let Err(error) = cried.await {
            tracing::debug!(%error, "the other controls were not woken; their ticks do it");
        }
        tokio::time::sleep(CRY_REST).await;
    }
}

async fn listen(store: &Store, doorbell: &Doorbell) {
    while let Some(connected) = store.listener().await {
        match connected {
            Ok(mut listener) => {
                let heard = async {
                    listener.listen(CHANNEL).await?;
                    // What was cried while nobody listened.
                    doorbell.ring_here();
                    loop {
                        listener.recv().await?;
                        doorbell.ring_here();
                    }
                };
                let ended: Result<(), sqlx::Error> = heard.await;
                if let Err(error) = ended {
                    tracing::debug!(%error, "the database's notifications broke off");
                }
            }
            Err(error) => tracing::debug!(%error, "the database's notifications are not to be had"),
        }
        tokio::time::sleep(jittered(LISTEN_REST)).await;
    }
}
