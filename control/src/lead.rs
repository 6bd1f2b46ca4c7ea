//! Who publishes: one control at a time, for economy. Correctness does not rest on it.
//!
//! A lease in the database, or an election elsewhere, says who leads; neither is proof, since a
//! process can be paused for longer than its lease. So every write of a leader begins with
//! [`write`], which finds the leader's own epoch in the database and locks it until the commit:
//! what a former leader writes late is refused, and a takeover waits for a write that is under way
//! (a second at most for one whose process is paused).
//!
//! The database has one coordinator at a time: itself, which counts epochs in `take`, or one etcd,
//! whose revisions `record` adds to a base (`etcd.rs` runs the election). Another one, which a
//! wiped etcd is, leads nobody until an operator adopts it (`adopt`), and the epoch never falls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Store, Tx};

/// The one task that has a leader: relay, reconciler and timers go together.
const TASK: &str = "publisher";
/// Epochs that this database counts itself.
pub const DATABASE: &str = "database";
/// What the names of other coordinators begin with.
const ETCD: &str = "etcd:";
const COORDINATOR_BYTES_MAX: usize = 100;

/// So long may a lease that was given back lie there.
const CAMPAIGN: Duration = Duration::from_secs(1);
/// A lease that is not given back keeps others waiting.
const RESIGN_TRIES: usize = 3;

const TAKE: &str = "INSERT INTO leader (name, epoch, coordinator, holder, expires_at) \
    VALUES ($1, 1, $2, $3, $5) ON CONFLICT (name) DO UPDATE SET epoch = leader.epoch + 1, \
    holder = excluded.holder, expires_at = excluded.expires_at \
    WHERE leader.coordinator = $2 AND (leader.expires_at <= $4 OR leader.holder = $3) \
    RETURNING epoch";
const RENEW: &str =
    "UPDATE leader SET expires_at = $4 WHERE name = $1 AND holder = $2 AND epoch = $3";
const RECORD: &str = "INSERT INTO leader (name, epoch, coordinator, holder, expires_at, base) \
    VALUES ($1, $2, $3, $4, 0, 0) ON CONFLICT (name) DO UPDATE SET \
    epoch = leader.base + excluded.epoch, holder = excluded.holder, expires_at = 0 \
    WHERE leader.coordinator = excluded.coordinator \
    AND leader.epoch < leader.base + excluded.epoch RETURNING epoch";
const RECORDED: &str = "SELECT coordinator, epoch FROM leader WHERE name = $1";
const ADOPT: &str = "INSERT INTO leader (name, epoch, coordinator, holder, expires_at, base) \
    VALUES ($1, 1, $2, '', 0, 1) ON CONFLICT (name) DO UPDATE SET \
    coordinator = excluded.coordinator, holder = '', expires_at = 0, \
    epoch = leader.epoch + 1, base = leader.epoch + 1 RETURNING epoch";
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

/// What became of an election that was won elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    Leads(Epoch),
    /// The database has seen a later epoch of the same coordinator: this winner is late, or the
    /// coordinator has been set back.
    Stale(Epoch),
    /// The database has another coordinator.
    NotAdopted(String),
}

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error(
        "{0:?} is no coordinator: \"database\", or \"etcd:…\" as control's log and /readyz name it"
    )]
    Name(String),
    #[error("the database did not take it")]
    Store(#[from] sqlx::Error),
}

/// Who says from now on who leads; for operators. Whoever led before is refused from here on, and
/// the epoch goes on from where it was, however small the new coordinator's own numbers are. Also
/// for an etcd that was set back to an older state of itself. Returns the epoch that nobody has.
pub async fn adopt(store: &Store, coordinator: &str) -> Result<Epoch, AdoptError> {
    let is_etcd = coordinator.strip_prefix(ETCD).is_some_and(|id| !id.is_empty());
    if coordinator != DATABASE && !is_etcd || coordinator.len() > COORDINATOR_BYTES_MAX {
        return Err(AdoptError::Name(coordinator.to_owned()));
    }
    let mut tx = store.write_briefly().await?;
    let epoch = query_scalar(ADOPT).bind(TASK).bind(coordinator).fetch_one(&mut tx).await?;
    tx.commit().await?;
    Ok(Epoch(epoch))
}

/// The coordinator that the database has, and the newest epoch. None: nobody has led yet.
pub async fn recorded(store: &Store) -> Result<Option<(String, Epoch)>, sqlx::Error> {
    let mut read = store.read().await?;
    let row: Option<(String, i64)> =
        query_as(RECORDED).bind(TASK).fetch_optional(&mut read).await?;
    Ok(row.map(|(coordinator, epoch)| (coordinator, Epoch(epoch))))
}

/// Why a coordinator leads nobody, and what to do about it.
pub fn not_adopted(recorded: &str, ours: &str) -> String {
    format!(
        "the database is coordinated by {recorded}, not by {ours}; nobody publishes through the \
         latter until `tidegate control adopt-coordinator {ours}` is run"
    )
}

/// Begins a write of the leader of that epoch; all of a leader's writes begin so.
pub async fn write(store: &Store, epoch: Epoch) -> Result<Tx, FenceError> {
    let mut tx = store.write_briefly().await?;
    if seam::planted("no-fence") {
        return Ok(tx);
    }
    match query(FENCE).bind(TASK).bind(epoch.0).execute(&mut tx).await? {
        0 => Err(FenceError::Over(epoch.0)),
        _ => Ok(tx),
    }
}

/// This process's part in it.
pub struct Lead {
    pub(crate) store: Store,
    /// The same after a restart, so that a restarted leader need not wait for its own lease.
    pub(crate) holder: String,
    pub(crate) lease: Duration,
    /// While it leads, and by its own clock only for as long as the lease.
    held: Mutex<Option<(Epoch, Instant)>>,
    changes: watch::Sender<Option<Epoch>>,
    /// Why this process cannot come to lead, for people.
    obstacle: Mutex<Option<String>>,
}

impl Lead {
    pub fn new(store: Store, holder: String, lease: Duration) -> Lead {
        let (held, obstacle) = (Mutex::new(None), Mutex::new(None));
        Lead { store, holder, lease, held, changes: watch::Sender::new(None), obstacle }
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

    /// Why this process cannot come to lead. None: it leads, or another one does.
    pub fn obstacle(&self) -> Option<String> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logged when it changes, not with every try.
    pub(crate) fn set_obstacle(&self, now: Option<String>) {
        let mut obstacle = self.obstacle.lock().unwrap_or_else(PoisonError::into_inner);
        if *obstacle != now {
            match &now {
                Some(text) => tracing::warn!("this control cannot lead: {text}"),
                None => tracing::info!("this control can lead again"),
            }
            *obstacle = now;
        }
    }

    /// Writes down that this process won an election elsewhere. It does not lead by that yet.
    pub async fn record(&self, coordinator: &str, revision: i64) -> Result<Recorded, sqlx::Error> {
        let mut tx = self.store.write_briefly().await?;
        let record = query_scalar::<i64>(RECORD).bind(TASK).bind(revision).bind(coordinator);
        if let Some(epoch) = record.bind(&self.holder).fetch_optional(&mut tx).await? {
            tx.commit().await?;
            return Ok(Recorded::Leads(Epoch(epoch)));
        }
        let (recorded, epoch): (String, i64) =
            query_as(RECORDED).bind(TASK).fetch_one(&mut tx).await?;
        Ok(match recorded == coordinator {
            true => Recorded::Stale(Epoch(epoch)),
            false => Recorded::NotAdopted(recorded),
        })
    }

    /// Leads as `epoch`, until then by its own clock.
    pub fn begin(&self, epoch: Epoch, until: Instant) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, until));
        self.tell(Some(epoch));
    }

    /// Leads for longer; false if it does not lead as `epoch` any more.
    pub fn extend(&self, epoch: Epoch, until: Instant) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some((now, end)) if *now == epoch => {
                *end = until;
                true
            }
            _ => false,
        }
    }

    /// Does not lead from here on.
    pub fn lose(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.tell(None);
    }

    /// Takes the lease if it is free, or keeps the one that it has.
    pub async fn take(&self) -> Result<Option<Epoch>, sqlx::Error> {
        // Read before the lease is: what the database needs for it counts against us.
        let asked = Instant::now();
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let led = held.map(|(epoch, _)| epoch);
        let mut tx = self.store.write_briefly().await?;
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
        let mut obstacle = None;
        let epoch = match led.filter(|_| kept) {
            Some(epoch) => Some(epoch),
            None => {
                let now = if seam::planted("lease-ignored") { i64::MAX } else { now };
                let take = query_scalar::<i64>(TAKE).bind(TASK).bind(DATABASE).bind(&self.holder);
                let taken = take.bind(now).bind(until).fetch_optional(&mut tx).await?.map(Epoch);
                if taken.is_none() {
                    let (by, _): (String, i64) =
                        query_as(RECORDED).bind(TASK).fetch_one(&mut tx).await?;
                    obstacle = (by != DATABASE).then(|| not_adopted(&by, DATABASE));
                }
                taken
            }
        };
        tx.commit().await?;
        self.set_obstacle(obstacle);
        let asked = if seam::planted("lease-from-the-answer") { Instant::now() } else { asked };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) =
            epoch.map(|epoch| (epoch, asked + self.lease));
        if held.is_some_and(|(_, until)| until <= asked) {
            // Whoever saw it lapse looks again.
            self.tell(None);
        }
        self.tell(epoch);
        Ok(epoch)
    }

    /// Lets another one in at once.
    pub async fn resign(&self) -> Result<(), sqlx::Error> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tell(None);
        let Some((epoch, _)) = held else { return Ok(()) };
        for _ in 1..RESIGN_TRIES {
            if self.give_back(epoch).await.is_ok() {
                return Ok(());
            }
        }
        self.give_back(epoch).await
    }

    async fn give_back(&self, epoch: Epoch) -> Result<(), sqlx::Error> {
        let mut tx = self.store.write_briefly().await?;
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
                biased;
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
