//! Raises environments and says that they changed, in the change's own transaction.
//!
//! An outbox row says *that* an environment changed, never *what* changed: the publisher reads
//! the state that it finds. A lost, doubled or late row costs time, never correctness.

use crate::refusal::Refusal;
use crate::store::Connection;
use crate::store::query::{query, query_as, query_scalar};

const RAISE: &str = "UPDATE environment SET revision = revision + 1, updated_at = $2 \
    WHERE id = $1 RETURNING generation, revision, key";
const ADD: &str = "INSERT INTO outbox (environment_id, revision, trace_context, created_at) \
    VALUES ($1, $2, $3, $4)";
const PENDING: &str = "SELECT environment_id FROM outbox GROUP BY environment_id \
    ORDER BY MIN(id) LIMIT $1";
const FORGET: &str = "DELETE FROM outbox WHERE environment_id = $1 AND revision <= $2";

/// An environment whose row this transaction has locked and raised.
#[derive(Debug, Clone)]
pub struct Raised {
    pub environment_id: String,
    pub key: String,
    pub generation: i64,
    pub revision: i64,
}

/// Callers pass the ids in ascending order: it is the order of locks.
pub async fn raise(
    tx: &mut Connection,
    environment_ids: &[String],
    at: i64,
) -> Result<Vec<Raised>, Refusal> {
    debug_assert!(environment_ids.is_sorted(), "locks are taken in the order of ids");
    let mut raised = Vec::with_capacity(environment_ids.len());
    for id in environment_ids {
        let (generation, revision, key) = query_as::<(i64, i64, String)>(RAISE)
            .bind(id)
            .bind(at)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(Refusal::NotFound("environment"))?;
        raised.push(Raised { environment_id: id.clone(), key, generation, revision });
    }
    Ok(raised)
}

pub async fn add(
    tx: &mut Connection,
    raised: &Raised,
    trace_context: Option<&str>,
    at: i64,
) -> Result<(), Refusal> {
    if seam::planted("no-outbox-row") {
        return Ok(());
    }
    query(ADD)
        .bind(&raised.environment_id)
        .bind(raised.revision)
        .bind(trace_context)
        .bind(at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Environments with unpublished changes, the longest waiting first.
pub async fn pending(read: &mut Connection, max: usize) -> Result<Vec<String>, sqlx::Error> {
    query_scalar(PENDING).bind(i64::try_from(max).unwrap_or(i64::MAX)).fetch_all(read).await
}

pub async fn forget(
    tx: &mut Connection,
    environment_id: &str,
    revision: i64,
) -> Result<(), sqlx::Error> {
    query(FORGET).bind(environment_id).bind(revision).execute(tx).await?;
    Ok(())
}
