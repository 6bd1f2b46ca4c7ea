//! When tokens and people were last seen: noted here, and written a moment later for all together, to
//! the minute. A request that only reads writes nothing; a crash forgets a moment.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::query::query;
use crate::store::{Store, now_us};

const USER: &str = "UPDATE user_account SET last_seen_at = $2 WHERE id = $1 \
    AND (last_seen_at IS NULL OR last_seen_at < $2)";
const TOKEN: &str = "UPDATE access_token SET last_used_at = $2 WHERE id = $1 \
    AND (last_used_at IS NULL OR last_used_at < $2)";

const MINUTE_US: i64 = 60 * 1_000_000;
/// More in one go are forgotten: they come again.
const NOTED_MAX: usize = 10_000;
/// What comes in this time is written together.
const GATHER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    User,
    Token,
}

#[derive(Debug, Default)]
pub struct Seen {
    noted: Mutex<BTreeMap<(What, String), i64>>,
    come: Notify,
}

impl Seen {
    /// `last` is what is stored.
    pub fn note(&self, what: What, id: &str, last: Option<i64>) {
        let now = now_us();
        let minute = now - now.rem_euclid(MINUTE_US);
        if last.is_some_and(|last| last >= minute) {
            return;
        }
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < NOTED_MAX {
            noted.insert((what, id.to_owned()), minute);
            self.come.notify_one();
        }
    }

    async fn write(&self, store: &Store) -> Result<(), sqlx::Error> {
        let noted = std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        if noted.is_empty() {
            return Ok(());
        }
        let mut tx = store.write().await?;
        // In the order of the map: two controls that write the same rows do not lock each other out.
        for ((what, id), at) in noted {
            let sql = match what {
                What::User => USER,
                What::Token => TOKEN,
            };
            query(sql).bind(id).bind(at).execute(&mut tx).await?;
        }
        tx.commit().await
    }
}

pub async fn run(
    store: Store,
    seen: std::sync::Arc<crate::authorize::callers::Authority>,
    stop: CancellationToken,
) {
    let seen = &seen.seen;
    loop {
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = seen.come.notified() => false,
        };
        if !stopped {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
        }
        if let Err(error) = seen.write(&store).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "when tokens were last used was not written");
        }
        if stopped {
            return;
        }
    }
}
