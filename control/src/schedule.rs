//! Applies change sets when their time has come: durable timers, in the change sets' own rows.
//!
//! The leader looks for them, for economy; that each fires once does not rest on it, but on the set's
//! state, which is read and moved under the namespace's lock in the transaction that applies it. Whoever
//! dies before the commit has done nothing, and the next look finds it due; whoever dies after it finds
//! it applied. Time is the database's, so it fires late if nobody looks, and never early.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::authorize::callers;
use crate::change_sets::{self, Outcome};
use crate::lead::Lead;
use crate::refusal::Refusal;
use crate::relay::{Doorbell, jittered};
use crate::store::query::query_as;
use crate::store::{Store, is_passing};

/// Of one pass; what is left waits for the next, which comes at once.
const PASS_MAX: i64 = 100;
/// Between looks, if something is due sooner than the tick: a timer is late by this at most.
const LOOK_MIN: Duration = Duration::from_millis(5);

const DUE: &str = "SELECT n.key, c.number, c.apply_at FROM change_set c \
    JOIN namespace n ON n.id = c.namespace_id WHERE c.state = 'scheduled' \
    ORDER BY c.apply_at, c.namespace_id, c.number LIMIT $1";

/// Until told to stop.
pub async fn run(
    store: Store,
    lead: Arc<Lead>,
    doorbell: Doorbell,
    tick: Duration,
    stop: CancellationToken,
) {
    loop {
        let pause = match pass(&store, &lead, &doorbell).await {
            Ok(next) => next.map_or_else(|| jittered(tick), |next| next.clamp(LOOK_MIN, tick)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "scheduled change sets wait; they are tried again");
                jittered(tick)
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// When the next one is due, if one is scheduled.
pub async fn pass(
    store: &Store,
    lead: &Lead,
    doorbell: &Doorbell,
) -> Result<Option<Duration>, Refusal> {
    if lead.epoch().is_none() {
        return Ok(None);
    }
    let (now, scheduled) = {
        let mut read = store.read().await?;
        let now = read.clock_us().await?;
        let scheduled: Vec<(String, i64, i64)> =
            query_as(DUE).bind(PASS_MAX).fetch_all(&mut read).await?;
        (now, scheduled)
    };
    let mut failed = None;
    for (namespace, number, at) in scheduled {
        if at > now {
            let wait = Duration::from_micros(u64::try_from(at - now).unwrap_or(0));
            return failed.map_or(Ok(Some(wait)), Err);
        }
        // One that cannot be told applies to holds nobody else up.
        match fire(store, &namespace, number).await {
            Ok(true) => doorbell.ring(),
            Ok(false) => {}
            Err(refusal) => {
                count("interrupted");
                failed = Some(refusal);
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// Whether something was written.
async fn fire(store: &Store, namespace: &str, number: i64) -> Result<bool, Refusal> {
    let mut tx = store.write().await?;
    let scope = match callers::of_control(&mut tx, namespace).await {
        // Deleted meanwhile, and with it all that was scheduled in it.
        Err(Refusal::NotFound(_)) => return Ok(false),
        scope => scope?,
    };
    let why = match change_sets::apply_due(&mut tx, &scope, number).await {
        Ok(None) => return Ok(false),
        Ok(Some(Outcome::Applied(_))) => {
            fail_at("schedule::commit")?;
            tx.commit().await?;
            fail_at("schedule::committed")?;
            count("applied");
            tracing::info!(namespace, number, "a change set was applied as scheduled");
            return Ok(true);
        }
        Ok(Some(Outcome::Conflict(of))) => {
            // What it raised is taken back before it is said.
            drop(tx);
            let mut tx = store.write().await?;
            change_sets::collide(&mut tx, &scope, number, &of).await?;
            tx.commit().await?;
            count("conflict");
            tracing::warn!(namespace, number, "a scheduled change set is in conflict");
            return Ok(true);
        }
        Err(Refusal::NotFound(_)) => return Ok(false),
        // Another time it may work, and it is due then too.
        Err(Refusal::Store(error)) if is_passing(&error) => return Err(error.into()),
        Err(refusal) => told(&refusal),
    };
    drop(tx);
    let mut tx = store.write().await?;
    let written = change_sets::fail_due(&mut tx, &scope, number, &why).await?;
    if written {
        tx.commit().await?;
        count("failed");
        tracing::warn!(namespace, number, why, "a scheduled change set could not be applied");
    }
    Ok(written)
}

fn count(outcome: &'static str) {
    metrics::counter!("tidegate_control_schedules_total", "outcome" => outcome).increment(1);
}

/// For people, at most as long as anything that is said of a change set.
fn told(refusal: &Refusal) -> String {
    let mut why = match refusal {
        Refusal::Invalid(problems) => problems
            .iter()
            .map(|problem| format!("{}: {}", problem.pointer, problem.message))
            .collect::<Vec<_>>()
            .join("; "),
        // The store's own words may hold data of others.
        Refusal::Store(_) | Refusal::Internal(_) => {
            tracing::error!(error = refusal as &dyn std::error::Error, "a schedule failed");
            "control failed".to_owned()
        }
        refusal => refusal.to_string(),
    };
    let end = (0..=change_sets::TEXT_BYTES_MAX).rev().find(|at| why.is_char_boundary(*at));
    why.truncate(end.unwrap_or(0));
    why
}

/// Where tests let the process die. Nothing is left of it in a build without failpoints.
fn fail_at(_name: &'static str) -> Result<(), Refusal> {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| Err(Refusal::Internal(format!("it died at {_name}"))));
    Ok(())
}
