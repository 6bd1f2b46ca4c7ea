//! Carries what was committed to the bus: publishes each environment that the outbox names.
//!
//! Woken by a signal (`wake.rs` brings those of other processes) and by a jittered tick, so a signal that got lost costs a tick.
//! It registers interest before it queries, so no signal falls between the two. A burst of writes
//! is published once: rows of one environment are grouped, and what comes while it is published
//! is seen by the next pass. No retry here: the next tick is the retry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::outbox;
use crate::publisher::{PublishError, Published, Publisher};

/// After a pass that published something, so that a burst comes as a few passes, not as many.
const REST: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Default)]
pub struct Doorbell {
    here: Arc<Notify>,
    others: Arc<Notify>,
}

impl Doorbell {
    /// After a commit. Ringing twice before the relay looks is ringing once.
    pub fn ring(&self) {
        self.ring_here();
        self.others.notify_one();
    }

    /// For this process's relay alone: another one was told already.
    pub fn ring_here(&self) {
        self.here.notify_one();
    }

    /// Resolves when other controls should hear of a commit.
    pub async fn rung_for_others(&self) {
        self.others.notified().await;
    }
}

pub async fn run(
    publisher: Arc<Publisher>,
    doorbell: Doorbell,
    tick: Duration,
    stop: CancellationToken,
) {
    let mut leading = publisher.lead.changes();
    while !stop.is_cancelled() {
        let rung = doorbell.here.notified();
        leading.mark_unchanged();
        let done = match publisher.lead.epoch() {
            Some(_) => pass(&publisher).await,
            None => publisher.follow().await.map(|()| 0),
        };
        let busy = match done {
            Ok(published) => published,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the relay failed");
                0
            }
        };
        let pause = match busy {
            0 => jittered(tick),
            _ => REST,
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = rung, if busy == 0 => {}
            // Beginning to lead, there may be work that the one before left.
            _ = leading.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How many environments it was able to do something about.
pub async fn pass(publisher: &Publisher) -> Result<usize, PublishError> {
    let pending = {
        let mut read = publisher.store.read().await?;
        outbox::pending(&mut read).await?
    };
    metrics::gauge!("tidegate_control_outbox_environments").set(pending.len() as f64);
    let mut done = 0;
    for environment_id in pending {
        match publisher.publish(&environment_id).await {
            Ok(published) => {
                done += 1;
                if let Published::Moved(version) = published {
                    tracing::debug!(environment_id, ?version, "published");
                }
            }
            Err(PublishError::NotLeading) => break,
            Err(error) => {
                metrics::counter!("tidegate_control_publish_failed_total").increment(1);
                tracing::error!(
                    environment_id,
                    error = &error as &dyn std::error::Error,
                    "an environment was not published; the next tick tries again"
                );
            }
        }
    }
    Ok(done)
}

/// ± 50 %, so that many processes do not ask at once.
pub fn jittered(tick: Duration) -> Duration {
    let mut byte = [128u8; 1];
    // Without randomness the tick is merely regular.
    let _ = getrandom::fill(&mut byte);
    tick.mul_f64(0.5 + f64::from(byte[0]) / 256.0)
}
