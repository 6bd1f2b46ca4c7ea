//! What edges ask for and report: heads, blobs, receipts; each only within its key's namespaces.

use bytes::Bytes;
use rules::blob::Digest;
use rules::head::{Heads, Receipt, Receipts};
use rules::limits::{KEY_BYTES_MAX, POLICIES_MAX};
use rules::policy::PolicyFault;

use crate::authorize::EdgeScope;
use crate::blobs;
use crate::bus::{Bus, BusError};
use crate::keys;
use crate::parsed::Parsed;
use crate::refusal::{Refusal, written};
use crate::store::query::{query, query_scalar};
use crate::store::{Connection, now_us};

/// Environments that one edge may report of at once.
pub const RECEIPTS_MAX: usize = 1_000;
/// Edges that one key may name, so that a leaked key cannot fill the table.
const EDGES_PER_KEY_MAX: i64 = 10_000;
const RECEIPT_AGE_US: i64 = 24 * 60 * 60 * 1_000_000;

const MAY_SEE: &str = "SELECT u.digest FROM blob_use u JOIN environment e ON e.id = u.environment_id \
    WHERE u.digest = $1 AND ($2 OR EXISTS (SELECT 1 FROM edge_key_namespace k \
    WHERE k.edge_key_id = $3 AND k.namespace_id = e.namespace_id)) LIMIT 1";
const ENVIRONMENT: &str = "SELECT e.id FROM environment e JOIN namespace n ON n.id = e.namespace_id \
    WHERE n.key = $1 AND e.key = $2";
const RECEIPT: &str = "INSERT INTO receipt (edge, edge_key_id, environment_id, generation, revision, \
    digest, reader, rejected, received_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
    ON CONFLICT (edge_key_id, edge, environment_id) DO UPDATE SET generation = excluded.generation, \
    revision = excluded.revision, digest = excluded.digest, reader = excluded.reader, \
    rejected = excluded.rejected, received_at = excluded.received_at";
const EDGES: &str =
    "SELECT COUNT(DISTINCT edge) FROM receipt WHERE edge_key_id = $1 AND edge <> $2";
const EXPIRE: &str = "DELETE FROM receipt WHERE received_at < $1";
const POLICY_EXPIRE: &str = "DELETE FROM policy_report WHERE received_at < $1";
const POLICY_FORGET: &str = "DELETE FROM policy_report WHERE edge_key_id = $1 AND edge = $2 \
    AND environment_id = $3";
const POLICY_REPORT: &str = "INSERT INTO policy_report (edge_key_id, edge, environment_id, name, \
    report, received_at) VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (edge_key_id, edge, environment_id, name) DO UPDATE SET \
    report = excluded.report, received_at = excluded.received_at";

pub async fn heads(bus: &dyn Bus, scope: &EdgeScope) -> Result<Heads, BusError> {
    let heads = bus.heads().await?;
    let seen = heads.into_iter().filter(|head| scope.sees(&head.namespace));
    Ok(Heads { heads: seen.map(|head| head.signed).collect() })
}

/// A blob that is not there and one that is another's are told apart by nobody.
pub async fn blob(
    read: &mut Connection,
    parsed: &Parsed,
    scope: &EdgeScope,
    digest: Digest,
) -> Result<Bytes, Refusal> {
    let seen: Option<String> = query_scalar(MAY_SEE)
        .bind(digest.to_string())
        .bind(scope.sees_all())
        .bind(scope.key_id())
        .fetch_optional(&mut *read)
        .await?;
    seen.ok_or(Refusal::NotFound("blob"))?;
    blobs::find(read, parsed, digest).await?.ok_or(Refusal::NotFound("blob"))
}

/// Reports of environments that the key may not see, or that are gone, are dropped.
pub async fn receive(
    tx: &mut Connection,
    scope: &EdgeScope,
    receipts: &Receipts,
) -> Result<(), Refusal> {
    if receipts.receipts.len() > RECEIPTS_MAX {
        return Err(Refusal::invalid("/receipts", format!("the limit is {RECEIPTS_MAX}")));
    }
    let now = now_us();
    for expire in [EXPIRE, POLICY_EXPIRE] {
        query(expire).bind(now - RECEIPT_AGE_US).execute(&mut *tx).await?;
    }
    keys::edge_used(tx, scope.key_id()).await?;
    for (index, receipt) in receipts.receipts.iter().enumerate() {
        if receipt.edge.is_empty() || receipt.edge.len() > 128 {
            let pointer = format!("/receipts/{index}/edge");
            return Err(Refusal::invalid(pointer, "an edge's id is 1 to 128 bytes"));
        }
        if !scope.sees(&receipt.namespace) {
            continue;
        }
        let environment: Option<String> = query_scalar(ENVIRONMENT)
            .bind(&receipt.namespace)
            .bind(&receipt.environment)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(environment) = environment else { continue };
        let others: i64 = query_scalar(EDGES)
            .bind(scope.key_id())
            .bind(&receipt.edge)
            .fetch_one(&mut *tx)
            .await?;
        if others >= EDGES_PER_KEY_MAX {
            return Err(Refusal::TooMany { what: "edges", max: EDGES_PER_KEY_MAX as usize });
        }
        let mut rejected = receipt.rejected.clone();
        if let Some(rejection) = &mut rejected {
            let cut = rejection.reason.floor_char_boundary(1024);
            rejection.reason.truncate(cut);
        }
        report_policies(tx, scope, receipt, &environment, now).await?;
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        query(RECEIPT)
            .bind(&receipt.edge)
            .bind(scope.key_id())
            .bind(environment)
            .bind(number(receipt.version.generation))
            .bind(number(receipt.version.revision))
            .bind(receipt.digest.to_string())
            .bind(i64::from(receipt.reader))
            .bind(rejected.map(|rejected| written("rejection", &rejected)).transpose()?)
            .bind(now)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

/// Replaces what this edge said of the environment's policies before.
async fn report_policies(
    tx: &mut Connection,
    scope: &EdgeScope,
    receipt: &Receipt,
    environment_id: &str,
    now: i64,
) -> Result<(), Refusal> {
    let forget = query(POLICY_FORGET).bind(scope.key_id()).bind(&receipt.edge);
    forget.bind(environment_id).execute(&mut *tx).await?;
    // An edge knows no more of them than a snapshot may have; what it says beyond is not kept.
    for report in receipt.policies.iter().take(POLICIES_MAX) {
        if report.name.len() > KEY_BYTES_MAX || report.faults.len() > PolicyFault::ALL.len() {
            continue;
        }
        query(POLICY_REPORT)
            .bind(scope.key_id())
            .bind(&receipt.edge)
            .bind(environment_id)
            .bind(&report.name)
            .bind(written("report", report)?)
            .bind(now)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
