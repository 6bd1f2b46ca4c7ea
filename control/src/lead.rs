//! Who publishes: one control at a time, for economy. Correctness does not rest on it.
//!
//! A lease in the database, or an election elsewhere, says who leads; neither is proof, since a
//! process can be paused for longer than its lease. So every write of a leader goes through
//! [`fence`], which finds the leader's own epoch in the database and locks it until the commit:
//! what a former leader writes late is refused, and a takeover waits for a write that is under way.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::query::{query, query_scalar};
use crate::store::{Connection, Store};

/// The one task that has a leader: relay, reconciler and timers go together.
const TASK: &str = "publisher";
/// Epochs that this database counts itself.
const DATABASE: &str = "database";

/// So long may a lease that was given back lie there.
const CAMPAIGN: Duration = Duration::from_secs(1);

const TAKE: &str = "INSERT INTO leader (name, epoch, coordinator, holder, expires_at) \
    VALUES ($1, 1, $2, $3, $5) ON CONFLICT (name) DO UPDATE SET epoch = leader.epoch + 1, \
    holder = excluded.holder, expires_at = excluded.expires_at \
    WHERE leader.coordinator = $2 AND (leader.expires_at <= $4 OR leader.holder = $3) \
    RETURNING epoch";
const RENEW: &str =
    "UPDATE leader SET expires_at = $4 WHERE name = $1 AND holder = $2 AND epoch = $3";
const FENCE: &str = "UPDATE leader SET epoch = epoch WHERE name = $1 AND epoch = $2";

/// Counts the leaders that there were; what carries a smaller one than the database's is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("epoch {0} is over: another control leads")]
    Over(i64),
    #[error(transparent)]
    Store(#[from] sqlx::Error),
}

/// The first statement of every write that a leader does.
pub async fn fence(tx: &mut Connection, epoch: Epoch) -> Result<(), FenceError> {
    match query(FENCE).bind(TASK).bind(epoch.0).execute(tx).await? {
        0 => Err(FenceError::Over(epoch.0)),
        _ => Ok(()),
    }
}

/// This process's part in it.
pub struct Lead {
    store: Store,
    /// The same after a restart, so that a restarted leader need not wait for its own lease.
    holder: String,
    lease: Duration,
    /// While it leads, and by its own clock only for as long as the lease.
    held: Mutex<Option<(Epoch, Instant)>>,
    changes: watch::Sender<Option<Epoch>>,
}

impl Lead {
    pub fn new(store: Store, holder: String, lease: Duration) -> Lead {
        Lead { store, holder, lease, held: Mutex::new(None), changes: watch::Sender::new(None) }
    }

    /// Leading, as far as this process can know.
    pub fn epoch(&self) -> Option<Epoch> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|(_, until)| Instant::now() < *until).map(|(epoch, _)| epoch)
    }

    /// Tells of every begin and end.
    pub fn changes(&self) -> watch::Receiver<Option<Epoch>> {
        self.changes.subscribe()
    }

    /// The database said so.
    pub fn is_over(&self, epoch: Epoch) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some_and(|(now, _)| now <= epoch) {
            *held = None;
            drop(held);
            self.tell(None);
        }
    }

    /// Takes the lease if it is free, or keeps the one that it has.
    pub async fn take(&self) -> Result<Option<Epoch>, sqlx::Error> {
        // Read before the lease is: what the database needs for it counts against us.
        let asked = Instant::now();
        let led = self.held.lock().unwrap_or_else(PoisonError::into_inner).map(|(epoch, _)| epoch);
        let mut tx = self.store.write().await?;
        let now = tx.clock_us().await?;
        let lease_us = i64::try_from(self.lease.as_micros()).unwrap_or(i64::MAX);
        let until = now.saturating_add(lease_us);
        let kept = match led {
            None => false,
            Some(epoch) => {
                let renew = query(RENEW).bind(TASK).bind(&self.holder).bind(epoch.0).bind(until);
                renew.execute(&mut tx).await? > 0
            }
        };
        let epoch = match led.filter(|_| kept) {
            Some(epoch) => Some(epoch),
            None => {
                let take = query_scalar::<i64>(TAKE).bind(TASK).bind(DATABASE).bind(&self.holder);
                take.bind(now).bind(until).fetch_optional(&mut tx).await?.map(Epoch)
            }
        };
        tx.commit().await?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) =
            epoch.map(|epoch| (epoch, asked + self.lease));
        self.tell(epoch);
        Ok(epoch)
    }

    /// Lets another one in at once.
    pub async fn resign(&self) -> Result<(), sqlx::Error> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tell(None);
        let Some((epoch, _)) = held else { return Ok(()) };
        let mut tx = self.store.write().await?;
        let resign = query(RENEW).bind(TASK).bind(&self.holder).bind(epoch.0).bind(0i64);
        resign.execute(&mut tx).await?;
        tx.commit().await
    }

    fn tell(&self, epoch: Option<Epoch>) {
        let changed = self.changes.send_if_modified(|told| {
            let changed = *told != epoch;
            *told = epoch;
            changed
        });
        if changed {
            match epoch {
                Some(Epoch(epoch)) => tracing::info!(epoch, "this control publishes"),
                None => tracing::info!("another control publishes, or none"),
            }
            metrics::gauge!("tidegate_control_leading").set(f64::from(u8::from(epoch.is_some())));
        }
    }

    /// Campaigns until told to stop, then resigns.
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.take().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the lease could not be taken or renewed; it is tried again"
                );
                if self.epoch().is_none() {
                    self.tell(None);
                }
            }
            // Each renewal is a write, so one that leads does it no oftener than it must.
            let pause = match self.epoch() {
                Some(_) => self.lease / 3,
                None => CAMPAIGN.min(self.lease / 3),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Err(error) = self.resign().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the lease was not given back; another control waits until it is over"
            );
        }
    }
}
