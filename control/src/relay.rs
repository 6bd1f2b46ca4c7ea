//! Carries what was committed to the bus: publishes each environment that the outbox names.
//!
//! Woken by a signal (`wake.rs` brings those of other processes) and by a jittered tick, so a signal that got lost costs a tick.
//! It registers interest before it queries, so no signal falls between the two. A burst of writes
//! is published once: rows of one environment are grouped, and what comes while it is published
//! is seen by the next pass. An environment that could not be published is tried again after a
//! pause of its own, which grows with each failure; the others do not wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::outbox;
use crate::publisher::{PublishError, Published, Publisher};

/// After a pass that published something, so that a burst comes as a few passes, not as many.
const REST: Duration = Duration::from_millis(10);
/// After an environment's first failure; doubled with each further one (± 50 %).
const RETRY_FIRST: Duration = Duration::from_millis(5);
/// An environment that fails for hours is tried this often, and mended this late.
const RETRY_MAX: Duration = Duration::from_secs(120);

/// Environments of one pass; what is left waits for the next.
const PASS_MAX: usize = 100;
/// Before a pass that failed is tried again, however seldom the relay looks otherwise.
const FAILED_MAX: Duration = Duration::from_secs(1);

/// Environments that could not be published, and when each is tried again. Bounded by the
/// environments there are: one that the outbox no longer names is forgotten.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<String, Retry>);

#[derive(Debug)]
struct Retry {
    failures: u32,
    due: Instant,
}

impl Retries {
    fn is_due(&self, environment_id: &str, now: Instant) -> bool {
        self.0.get(environment_id).is_none_or(|retry| retry.due <= now)
    }

    fn failed(&mut self, environment_id: &str, now: Instant) -> Duration {
        let retry =
            self.0.entry(environment_id.to_owned()).or_insert(Retry { failures: 0, due: now });
        let pause = jittered(pause_after(retry.failures));
        retry.failures = retry.failures.saturating_add(1);
        retry.due = now + pause;
        pause
    }

    /// A pause that ends with the first retry that is due, but never at once: nothing here may spin.
    fn shorten(&self, pause: Duration) -> Duration {
        let now = Instant::now();
        let next = self.0.values().map(|retry| retry.due.saturating_duration_since(now)).min();
        next.map_or(pause, |next| pause.min(next.max(RETRY_FIRST / 2)))
    }
}

/// Before jitter.
fn pause_after(failures_before: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1u32.checked_shl(failures_before).unwrap_or(u32::MAX)).min(RETRY_MAX)
}

#[derive(Debug, Clone, Default)]
pub struct Doorbell {
    here: Arc<Notify>,
    others: Arc<Notify>,
    news: watch::Sender<u64>,
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
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Tells everybody else in this process who wants to know that something was committed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
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
    let mut retries = Retries::default();
    while !stop.is_cancelled() {
        let rung = doorbell.here.notified();
        leading.mark_unchanged();
        let done = match publisher.lead.epoch() {
            Some(_) => pass(&publisher, &mut retries).await,
            None => {
                // They are the next leader's to try.
                retries = Retries::default();
                publisher.follow().await.map(|()| 0)
            }
        };
        let (busy, pause) = match done {
            Ok(0) => (false, retries.shorten(jittered(tick))),
            Ok(_) => (true, retries.shorten(REST)),
            Err(error) => {
                // Retries that are due wait too: the pass did not come to them.
                tracing::error!(error = &error as &dyn std::error::Error, "the relay failed");
                (false, jittered(tick.min(FAILED_MAX)))
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = rung, if !busy => {}
            // Beginning to lead, there may be work that the one before left.
            _ = leading.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How many environments it was able to do something about.
pub async fn pass(publisher: &Publisher, retries: &mut Retries) -> Result<usize, PublishError> {
    let pending = {
        let mut read = publisher.store.read().await?;
        // Those that only wait for their next try take nobody's place.
        outbox::pending(&mut read, PASS_MAX + retries.0.len()).await?
    };
    retries.0.retain(|environment_id, _| pending.contains(environment_id));
    metrics::gauge!("tidegate_control_outbox_environments").set(pending.len() as f64);
    let mut done = 0;
    for environment_id in pending {
        if seam::planted("failed-is-forgotten") && retries.0.contains_key(&environment_id) {
            continue;
        }
        if !retries.is_due(&environment_id, Instant::now()) {
            continue;
        }
        match publisher.publish(&environment_id).await {
            Ok(published) => {
                done += 1;
                retries.0.remove(&environment_id);
                if let Published::Moved(version) = published {
                    tracing::debug!(environment_id, ?version, "published");
                }
            }
            Err(PublishError::NotLeading) => break,
            Err(error) => {
                metrics::counter!("tidegate_control_publish_failed_total").increment(1);
                let pause = retries.failed(&environment_id, Instant::now());
                tracing::error!(
                    environment_id,
                    error = &error as &dyn std::error::Error,
                    ?pause,
                    "an environment was not published and is tried again after a pause"
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
    let _ = seam::random(&mut byte);
    tick.mul_f64(0.5 + f64::from(byte[0]) / 256.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_5_ms_to_two_minutes_and_never_beyond() {
        let pauses: Vec<u128> = (0..17).map(|failures| pause_after(failures).as_millis()).collect();
        assert_eq!(pauses[..5], [5, 10, 20, 40, 80]);
        assert_eq!(pauses[14..], [81_920, 120_000, 120_000]);
        for failures in [31, 32, 64, u32::MAX] {
            assert_eq!(pause_after(failures), RETRY_MAX, "{failures}");
        }
    }

    #[test]
    fn an_environment_that_fails_waits_and_the_others_do_not() {
        let mut retries = Retries::default();
        let now = Instant::now();
        let mut last = Duration::ZERO;
        for failures in 0..20 {
            last = retries.failed("broken", now);
            let (least, most) = (pause_after(failures) / 2, pause_after(failures) * 3 / 2);
            assert!((least..=most).contains(&last), "{failures}: {last:?}");
        }
        assert!(!retries.is_due("broken", now));
        assert!(retries.is_due("broken", now + last));
        assert!(retries.is_due("other", now));
        let hour = Duration::from_secs(3600);
        assert!(retries.shorten(hour) <= last, "it is not waited for longer than that");
        assert_eq!(Retries::default().shorten(hour), hour);
        retries.0.values_mut().for_each(|retry| retry.due = now);
        assert_eq!(retries.shorten(hour), RETRY_FIRST / 2, "what is overdue does not spin");
    }
}
