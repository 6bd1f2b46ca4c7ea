//! The change stream: what is done in a namespace, on the broker, for other systems.
//!
//! A cursor over the namespace's audit, kept in the database and moved once the broker has
//! acknowledged: at least once, in order. A broker that lost its store gets the newest rows again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::bus::nats::NatsBus;
use crate::events;
use crate::lead::{self, Epoch};
use crate::publisher::{PublishError, Publisher};
use crate::refusal::Refusal;
use crate::relay::jittered;
use crate::store::query::{query, query_as};

/// Namespaces of one pass; what is left waits for the next.
const PASS_MAX: i64 = 100;
/// Rows that are sent before the cursor is moved.
const CHUNK: i64 = 50;
/// What a stream that is new there begins with.
const AGAIN_MAX: i64 = 10_000;
const RETRY: Duration = Duration::from_secs(5);

const BEHIND: &str = "SELECT n.id, n.key, COALESCE(c.sequence, 0) AS told FROM namespace n \
    LEFT JOIN change_stream c ON c.namespace_id = n.id \
    WHERE n.audit_sequence > COALESCE(c.sequence, 0) ORDER BY n.id LIMIT $1";
const ALL: &str = "SELECT n.id, n.key, COALESCE(c.sequence, 0) AS told FROM namespace n \
    LEFT JOIN change_stream c ON c.namespace_id = n.id ORDER BY n.id";
const MOVE: &str = "INSERT INTO change_stream (namespace_id, sequence) \
    SELECT id, $2 FROM namespace WHERE id = $1 \
    ON CONFLICT (namespace_id) DO UPDATE SET sequence = excluded.sequence";

/// Until told to stop, while this control leads.
pub async fn run(
    publisher: Arc<Publisher>,
    broker: Arc<NatsBus>,
    mut news: watch::Receiver<u64>,
    tick: Duration,
    stop: CancellationToken,
) {
    let mut connects = broker.connects();
    // Nobody knows what the broker has before it was looked at.
    let mut known = false;
    while !stop.is_cancelled() {
        news.borrow_and_update();
        if connects.has_changed().unwrap_or(false) {
            connects.borrow_and_update();
            known = false;
        }
        let pause = match publisher.lead.epoch() {
            None => {
                known = false;
                RETRY
            }
            Some(_) => match pass(&publisher, &broker, !known).await {
                Ok(true) => continue,
                Ok(false) => {
                    known = true;
                    tick
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "the change stream is behind");
                    RETRY
                }
            },
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = news.changed(), if pause == tick => {}
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

/// Whether there may be more. `all`: also those that have nothing new, in case the broker lost them.
async fn pass(publisher: &Publisher, broker: &NatsBus, all: bool) -> Result<bool, PublishError> {
    let behind: Vec<(String, String, i64)> = {
        let mut read = publisher.store.read().await?;
        match all {
            true => query_as(ALL).fetch_all(&mut read).await?,
            false => query_as(BEHIND).bind(PASS_MAX).fetch_all(&mut read).await?,
        }
    };
    let mut more = false;
    for (chain, namespace, told) in behind {
        let is_new = all && broker.open_changes(&namespace).await?;
        let epoch = publisher.lead.epoch().ok_or(PublishError::NotLeading)?;
        let mut told = told;
        if is_new {
            told = told.saturating_sub(AGAIN_MAX).max(0);
            // Before the first of them is sent: a broker that has some is not new the next time.
            move_to(publisher, epoch, &chain, told).await?;
        }
        let rows = {
            let mut read = publisher.store.read().await?;
            audit::after(&mut read, &chain, told, CHUNK).await?
        };
        let Some(last) = rows.last() else { continue };
        more |= rows.len() == CHUNK as usize || is_new;
        let mut messages = Vec::with_capacity(rows.len());
        for row in &rows {
            let event = serde_json::to_vec(&events::of_row(&namespace, row))
                .map_err(|error| Refusal::Internal(format!("an event: {error}")))?;
            messages.push((format!("{chain}:{}", row.sequence), event));
        }
        broker.send_changes(&namespace, messages).await?;
        move_to(publisher, epoch, &chain, told.max(last.sequence)).await?;
    }
    Ok(more)
}

async fn move_to(
    publisher: &Publisher,
    epoch: Epoch,
    chain: &str,
    told: i64,
) -> Result<(), PublishError> {
    let mut tx = lead::write(&publisher.store, epoch).await?;
    query(MOVE).bind(chain).bind(told).execute(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}
