//! Compares what is desired (database), published (bus) and reported (edges), mends what differs and
//! records that it did.
//!
//! It decides by state that it reads again, never by events, and mends through the same function
//! that the relay publishes with. Only the control that leads does it, and it does nothing at all
//! when the database cannot be read. Next: `publisher.rs` (how), `fleet.rs` (what people see).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authorize::Scope;
use crate::fleet::HEARD_US;
use crate::lead;
use crate::page::{Page, Paged};
use crate::publisher::{PublishError, Publisher};
use crate::refusal::Refusal;
use crate::relay::jittered;
use crate::revert;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, now_us, rfc3339};

/// An edge that is this long behind what was published is drifting, and not just on its way.
const EDGE_GRACE_US: i64 = 60 * 1_000_000;
const KEPT_MAX: i64 = 10_000;
/// Of one pass; what is left waits for the next.
const FOUND_MAX: i64 = 100;

/// Committed, not published, not refused, and no outbox row says so.
const UNPUBLISHED: &str = "SELECT e.id, n.key, e.key, e.generation, e.revision FROM environment e \
    JOIN namespace n ON n.id = e.namespace_id \
    LEFT JOIN publication p ON p.environment_id = e.id \
    WHERE (p.environment_id IS NULL OR p.generation < e.generation \
        OR (p.generation = e.generation AND p.revision < e.revision)) \
    AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.environment_id = e.id) \
    AND NOT EXISTS (SELECT 1 FROM snapshot s WHERE s.environment_id = e.id \
        AND s.generation = e.generation AND s.revision = e.revision AND s.rejected IS NOT NULL) \
    ORDER BY e.id LIMIT $1";
const PUBLISHED: &str = "SELECT p.environment_id, n.key, e.key, p.generation, p.revision \
    FROM publication p JOIN environment e ON e.id = p.environment_id \
    JOIN namespace n ON n.id = e.namespace_id ORDER BY p.environment_id";
/// Silent edges do not drift: they are shown as silent. Nor do those that a rollout has not come to.
const EDGES_BEHIND: &str = "SELECT r.environment_id, r.edge || ' ' || r.edge_key_id, r.generation, \
    r.revision, p.generation, p.revision FROM receipt r \
    JOIN publication p ON p.environment_id = r.environment_id \
    WHERE r.received_at >= $1 AND p.published_at < $2 AND (r.generation < p.generation \
        OR (r.generation = p.generation AND r.revision < p.revision)) \
    AND NOT EXISTS (SELECT 1 FROM rollout o WHERE o.environment_id = r.environment_id \
        AND (o.state <> 'done' OR o.ended_at >= $2) AND (r.generation > o.previous_generation \
        OR (r.generation = o.previous_generation AND r.revision >= o.previous_revision))) \
    ORDER BY r.environment_id, r.edge LIMIT $3";
const EDGES_DIVERGED: &str = "SELECT r.environment_id, r.edge || ' ' || r.edge_key_id, \
    r.generation, r.revision, s.generation, s.revision FROM receipt r \
    JOIN snapshot s ON s.environment_id = r.environment_id AND s.generation = r.generation \
        AND s.revision = r.revision \
    WHERE r.received_at >= $1 AND s.rejected IS NULL AND s.digest <> r.digest \
    ORDER BY r.environment_id, r.edge LIMIT $2";
/// More than was ever committed: the database was restored, and somebody has to say so.
const EDGES_AHEAD: &str = "SELECT r.environment_id, r.edge || ' ' || r.edge_key_id, r.generation, \
    r.revision, e.generation, e.revision FROM receipt r \
    JOIN environment e ON e.id = r.environment_id \
    WHERE r.received_at >= $1 AND (r.generation > e.generation \
        OR (r.generation = e.generation AND r.revision > e.revision)) \
    ORDER BY r.environment_id, r.edge LIMIT $2";
const HALTED: &str = "SELECT o.environment_id, n.key, e.key, o.generation, o.revision, o.reason \
    FROM rollout o JOIN environment e ON e.id = o.environment_id \
    JOIN namespace n ON n.id = e.namespace_id WHERE o.state = 'halted' \
    ORDER BY o.environment_id LIMIT $1";
const OPEN: &str = "INSERT INTO drift (environment_id, kind, subject, detail, found_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
const STILL_OPEN: &str = "SELECT environment_id, kind, subject FROM drift WHERE mended_at IS NULL";
const MEND: &str = "UPDATE drift SET mended_at = $4 WHERE environment_id = $1 AND kind = $2 \
    AND subject = $3 AND mended_at IS NULL";
const ENVIRONMENT: &str = "SELECT e.id FROM environment e JOIN namespace n ON n.id = e.namespace_id \
    WHERE n.key = $1 AND e.key = $2";
const MENDED: &str = "INSERT INTO drift (environment_id, kind, subject, detail, found_at, mended_at) \
    VALUES ($1, $2, $3, $4, $5, $6)";
const PRUNE: &str = "DELETE FROM drift WHERE id <= (SELECT MAX(id) FROM drift) - $1";
const PAGE: &str = "SELECT d.id, n.key AS namespace, e.key AS environment, d.kind, d.subject, \
    d.detail, d.found_at, d.mended_at FROM drift d LEFT JOIN environment e ON e.id = d.environment_id \
    LEFT JOIN namespace n ON n.id = e.namespace_id WHERE d.id < $1 ORDER BY d.id DESC LIMIT $2";

type Place = (String, &'static str, String);

/// What one pass found, with a sentence for people.
type Found = BTreeMap<Place, String>;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Drift {
    pub id: i64,
    pub namespace: Option<String>,
    pub environment: Option<String>,
    pub kind: String,
    pub subject: String,
    pub detail: String,
    pub found_at: i64,
    pub mended_at: Option<i64>,
}

impl Drift {
    /// As the API shows it.
    pub fn state(&self) -> Value {
        json!({ "id": self.id, "namespace": self.namespace, "environment": self.environment,
            "kind": self.kind, "subject": self.subject, "detail": self.detail,
            "foundAt": rfc3339(self.found_at), "mendedAt": self.mended_at.map(rfc3339) })
    }
}

/// Newest first.
pub async fn page(
    read: &mut Connection,
    _scope: &Scope,
    page: &Page,
) -> Result<Paged<Drift>, Refusal> {
    let before = match page.after.as_str() {
        "" => i64::MAX,
        id => id.parse().map_err(|_| Refusal::invalid("/cursor", "not a cursor of this list"))?,
    };
    let rows = query_as(PAGE).bind(before).bind(page.fetch()).fetch_all(read).await?;
    Ok(page.cut(rows, |row: &Drift| row.id.to_string()))
}

/// Every `tick` (± 50 %) until told to stop.
pub async fn run(publisher: Arc<Publisher>, tick: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered(tick)) => {}
        }
        match pass(&publisher).await {
            Ok(0) | Err(PublishError::NotLeading) => {}
            Ok(found) => tracing::warn!(found, "drift was found; GET /api/v1/drift lists it"),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "nothing was reconciled; the next pass tries again"
            ),
        }
    }
}

/// How many differences it found that were not known before.
pub async fn pass(publisher: &Publisher) -> Result<usize, PublishError> {
    let epoch = publisher.lead.epoch().ok_or(PublishError::NotLeading)?;
    let mut found = differing_heads(publisher).await?;
    if !found.is_empty() {
        // An environment that was deleted between the two looks is no drift.
        let again = differing_heads(publisher).await?;
        found.retain(|place, _| again.contains_key(place));
    }
    let unpublished: Vec<(String, String, String, i64, i64)>;
    {
        let mut read = publisher.store.read().await?;
        unpublished = query_as(UNPUBLISHED).bind(FOUND_MAX).fetch_all(&mut read).await?;
        for (id, namespace, environment, generation, revision) in &unpublished {
            let detail =
                format!("{namespace}/{environment} {generation}.{revision} is not published");
            found.insert((id.clone(), "unpublished", String::new()), detail);
        }
        compare_edges(&mut read, &mut found).await?;
    }
    let new = record(publisher, epoch, &found).await?;
    for what in revert::pass(&publisher.store).await? {
        tracing::warn!(what, "a policy went back to the version before");
    }
    // Mending is the same work as publishing, and its failures are the same: the next pass sees.
    for (id, ..) in &unpublished {
        publisher.publish(id).await?;
    }
    if found.keys().any(|(_, kind, _)| kind.starts_with("bus-")) {
        publisher.restore().await?;
    }
    Ok(new)
}

/// The database first: a head moves before it is marked, so the bus is never behind what was read.
async fn differing_heads(publisher: &Publisher) -> Result<Found, PublishError> {
    let rows: Vec<(String, String, String, i64, i64)> = {
        let mut read = publisher.store.read().await?;
        query_as(PUBLISHED).fetch_all(&mut read).await?
    };
    let bus = publisher.bus.heads().await?;
    let mut found = Found::new();
    let there: BTreeMap<(&str, &str), _> = bus
        .iter()
        .map(|head| ((head.namespace.as_str(), head.environment.as_str()), head.version))
        .collect();
    for (id, namespace, environment, generation, revision) in rows {
        let wanted = (unsigned(generation), unsigned(revision));
        let name = format!("{namespace}/{environment}");
        let (kind, detail) = match there.get(&(namespace.as_str(), environment.as_str())) {
            None => ("bus-missing", format!("the bus has no head of {name}")),
            Some(head) if (head.generation, head.revision) < wanted => (
                "bus-older",
                format!(
                    "the bus has {}.{} of {name}, {}.{} was published",
                    head.generation, head.revision, wanted.0, wanted.1
                ),
            ),
            Some(_) => continue,
        };
        found.insert((id, kind, String::new()), detail);
    }
    Ok(found)
}

async fn compare_edges(read: &mut Connection, found: &mut Found) -> Result<(), sqlx::Error> {
    type Row = (String, String, i64, i64, i64, i64);
    let now = now_us();
    let behind: Vec<Row> = query_as(EDGES_BEHIND)
        .bind(now - HEARD_US)
        .bind(now - EDGE_GRACE_US)
        .bind(FOUND_MAX)
        .fetch_all(read)
        .await?;
    for (id, edge, generation, revision, of_generation, of_revision) in behind {
        let detail = format!(
            "edge {edge} serves {generation}.{revision}, {of_generation}.{of_revision} was published"
        );
        found.insert((id, "edge-behind", edge), detail);
    }
    let ahead: Vec<Row> =
        query_as(EDGES_AHEAD).bind(now - HEARD_US).bind(FOUND_MAX).fetch_all(read).await?;
    for (id, edge, generation, revision, of_generation, of_revision) in ahead {
        let detail = format!(
            "edge {edge} serves {generation}.{revision}, the database knows \
             {of_generation}.{of_revision}: if it was restored, run \
             `tidegate control raise-generation`"
        );
        found.insert((id, "edge-ahead", edge), detail);
    }
    let diverged: Vec<Row> =
        query_as(EDGES_DIVERGED).bind(now - HEARD_US).bind(FOUND_MAX).fetch_all(read).await?;
    for (id, edge, generation, revision, ..) in diverged {
        let detail = format!("edge {edge} serves other bytes as {generation}.{revision}");
        found.insert((id, "edge-diverged", edge), detail);
    }
    type Halted = (String, String, String, i64, i64, Option<String>);
    let halted: Vec<Halted> = query_as(HALTED).bind(FOUND_MAX).fetch_all(read).await?;
    for (id, namespace, environment, generation, revision, reason) in halted {
        let reason = reason.unwrap_or_default();
        let detail = format!(
            "the rollout of {namespace}/{environment} {generation}.{revision} is halted: {reason}"
        );
        found.insert((id, "rollout-halted", format!("{generation}.{revision}")), detail);
    }
    Ok(())
}

/// Opens what is new, closes what is no more.
async fn record(
    publisher: &Publisher,
    epoch: lead::Epoch,
    found: &Found,
) -> Result<usize, PublishError> {
    let open: Vec<(String, String, String)> = {
        let mut read = publisher.store.read().await?;
        query_as(STILL_OPEN).fetch_all(&mut read).await?
    };
    let known = |(id, kind, subject): &Place| {
        open.iter().any(|(of, is, about)| of == id && is == kind && about == subject)
    };
    let over = |(id, kind, subject): &&(String, String, String)| {
        !found.keys().any(|(of, is, about)| of == id && is == kind && about == subject)
    };
    let new: Vec<_> = found.iter().filter(|(place, _)| !known(place)).collect();
    let mended: Vec<_> = open.iter().filter(over).collect();
    if new.is_empty() && mended.is_empty() {
        return Ok(0);
    }
    let now = now_us();
    let mut tx = lead::write(&publisher.store, epoch).await?;
    for ((id, kind, subject), detail) in &new {
        tracing::warn!(kind, detail, "drift");
        metrics::counter!("tidegate_control_drift_total", "kind" => *kind).increment(1);
        let open = query(OPEN).bind(id).bind(*kind).bind(subject).bind(*detail).bind(now);
        open.execute(&mut tx).await?;
    }
    for (id, kind, subject) in &mended {
        query(MEND).bind(id).bind(kind).bind(subject).bind(now).execute(&mut tx).await?;
    }
    query(PRUNE).bind(KEPT_MAX).execute(&mut tx).await?;
    tx.commit().await?;
    Ok(new.len())
}

/// A difference that was mended where it was found: of a broker, by the carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    pub namespace: String,
    pub environment: String,
    pub kind: &'static str,
    pub detail: String,
}

/// Writes down what was found and mended in one go.
pub async fn record_mended(publisher: &Publisher, all: &[Mended]) -> Result<(), PublishError> {
    let epoch = publisher.lead.epoch().ok_or(PublishError::NotLeading)?;
    let now = now_us();
    let mut tx = lead::write(&publisher.store, epoch).await?;
    for mended in all.iter().take(FOUND_MAX as usize) {
        let id: Option<String> = query_scalar(ENVIRONMENT)
            .bind(&mended.namespace)
            .bind(&mended.environment)
            .fetch_optional(&mut tx)
            .await?;
        let Some(id) = id else { continue };
        metrics::counter!("tidegate_control_drift_total", "kind" => mended.kind).increment(1);
        query(MENDED)
            .bind(&id)
            .bind(mended.kind)
            .bind("")
            .bind(&mended.detail)
            .bind(now)
            .bind(now)
            .execute(&mut tx)
            .await?;
    }
    query(PRUNE).bind(KEPT_MAX).execute(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
