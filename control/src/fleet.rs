//! What edges report, for people and pipelines: which edge serves what, and whether a change is
//! live.
//!
//! Only edges that were heard of lately count: one that is gone must not hold up a pipeline, and is
//! shown with the time when it was last heard of. Receipts come in through `edges.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use rules::head::place;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::authorize::{NamespaceScope, Scope};
use crate::environments;
use crate::page::{Page, Paged};
use crate::refusal::Refusal;
use crate::registrations::{EdgeName, Registrations};
use crate::store::query::{query_as, query_scalar};
use crate::store::{Connection, Store, Touched, now_us, rfc3339};

/// Edges report with every round of anti-entropy, at most 45 s apart by default; after two lost
/// ones they count as gone.
pub const HEARD_US: i64 = 100 * 1_000_000;
/// How long a write may wait for the fleet.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
pub const WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// Receipts come to any control, so their coming is not signalled here.
const WAIT_POLL: Duration = Duration::from_millis(50);

const EDGES: &str = "SELECT DISTINCT edge, edge_key_id FROM receipt \
    WHERE edge > $1 OR (edge = $1 AND edge_key_id > $2) ORDER BY edge, edge_key_id LIMIT $3";
const OF_EDGE: &str = "SELECT r.edge, r.edge_key_id, n.key AS namespace, e.key AS environment, \
    r.generation, r.revision, r.digest, r.reader, r.rejected, r.received_at, \
    p.generation AS published_generation, p.revision AS published_revision, o.stage \
    FROM receipt r JOIN environment e ON e.id = r.environment_id \
    JOIN namespace n ON n.id = e.namespace_id LEFT JOIN publication p ON p.environment_id = e.id \
    LEFT JOIN rollout o ON o.environment_id = e.id AND o.state <> 'done' \
    WHERE r.edge = $1 AND r.edge_key_id = $2 ORDER BY n.key, e.key";
const OF_ENVIRONMENT: &str = "SELECT r.edge, r.edge_key_id, n.key AS namespace, \
    e.key AS environment, r.generation, r.revision, r.digest, r.reader, r.rejected, r.received_at, \
    p.generation AS published_generation, p.revision AS published_revision, o.stage \
    FROM receipt r JOIN environment e ON e.id = r.environment_id \
    JOIN namespace n ON n.id = e.namespace_id LEFT JOIN publication p ON p.environment_id = e.id \
    LEFT JOIN rollout o ON o.environment_id = e.id AND o.state <> 'done' \
    WHERE r.environment_id = $1 AND (r.edge > $2 OR (r.edge = $2 AND r.edge_key_id > $3)) \
    ORDER BY r.edge, r.edge_key_id LIMIT $4";
/// A stopped rollout of this revision, or of one that has it inside.
const HALTED: &str = "SELECT COUNT(*) FROM rollout WHERE environment_id = $1 AND state = 'halted' \
    AND (generation > $2 OR (generation = $2 AND revision >= $3))";
const COUNT: &str = "SELECT COUNT(*), COUNT(CASE WHEN generation > $2 OR (generation = $2 AND \
    revision >= $3) THEN 1 END), COUNT(CASE WHEN rejected IS NOT NULL THEN 1 END) FROM receipt \
    WHERE environment_id = $1 AND received_at >= $4";
const PUBLISHED: &str = "SELECT COUNT(*) FROM publication WHERE environment_id = $1 \
    AND (generation > $2 OR (generation = $2 AND revision >= $3))";

/// One edge's report of one environment.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Report {
    pub edge: String,
    pub edge_key_id: String,
    pub namespace: String,
    pub environment: String,
    pub generation: i64,
    pub revision: i64,
    pub digest: String,
    pub reader: i64,
    pub rejected: Option<String>,
    pub received_at: i64,
    pub published_generation: Option<i64>,
    pub published_revision: Option<i64>,
    /// Of a rollout that is not done.
    pub stage: Option<i64>,
}

impl Report {
    /// As the API shows it. `status` is one word for people: live, waiting, behind, rejected or
    /// silent.
    pub fn state(&self, now_us: i64) -> Value {
        let text = self.rejected.as_deref();
        let rejected = text.map(|text| serde_json::from_str::<Value>(text).unwrap_or_default());
        let published = (self.published_generation, self.published_revision);
        let behind = published > (Some(self.generation), Some(self.revision));
        let status = match () {
            () if self.received_at < now_us - HEARD_US => "silent",
            () if rejected.is_some() => "rejected",
            () if behind && self.stage.is_some_and(|stage| self.place() >= stage) => "waiting",
            () if behind => "behind",
            () => "live",
        };
        json!({ "edge": self.edge, "edgeKey": self.edge_key_id, "namespace": self.namespace,
            "environment": self.environment, "status": status, "generation": self.generation,
            "revision": self.revision, "digest": self.digest, "reader": self.reader,
            "publishedRevision": self.published_revision, "rejected": rejected,
            "lastSeen": rfc3339(self.received_at),
            "ageSeconds": (now_us - self.received_at).max(0) / 1_000_000 })
    }

    fn place(&self) -> i64 {
        i64::from(place(&self.namespace, &self.environment, &self.edge))
    }
}

/// How far a revision has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Edges that were heard of lately.
    pub edges: i64,
    /// Of them, those that serve the revision or a newer one.
    pub serving: i64,
    /// Of them, those that refused a snapshot.
    pub rejected: i64,
    /// Its head is out.
    pub published: bool,
    /// Its rollout is, so waiting is in vain.
    pub halted: bool,
}

impl Live {
    pub fn everywhere(self) -> bool {
        self.published && self.serving == self.edges
    }
}

/// Every edge that ever reported, or registered, and is not forgotten yet, with what it serves.
pub async fn edges(
    read: &mut Connection,
    _scope: &Scope,
    registrations: &Registrations,
    page: &Page,
) -> Result<Paged<(EdgeName, Vec<Report>)>, Refusal> {
    let after = after(page)?;
    let reported: Vec<EdgeName> =
        query_as(EDGES).bind(&after.0).bind(&after.1).bind(page.fetch()).fetch_all(read).await?;
    let registered = registrations.after(&after, page.fetch() as usize);
    let both: BTreeSet<EdgeName> = reported.into_iter().chain(registered).collect();
    let paged = page.cut(both.into_iter().collect(), |(edge, key)| format!("{edge}\n{key}"));
    let mut items = Vec::with_capacity(paged.items.len());
    for edge in paged.items {
        let reports = query_as(OF_EDGE).bind(&edge.0).bind(&edge.1).fetch_all(read).await?;
        items.push((edge, reports));
    }
    Ok(Paged { items, next_cursor: paged.next_cursor })
}

/// The edges that report of one environment.
pub async fn of_environment(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    page: &Page,
) -> Result<Paged<Report>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let (edge, key) = after(page)?;
    let rows = query_as(OF_ENVIRONMENT)
        .bind(&environment.id)
        .bind(edge)
        .bind(key)
        .bind(page.fetch())
        .fetch_all(read)
        .await?;
    Ok(page.cut(rows, |row: &Report| format!("{}\n{}", row.edge, row.edge_key_id)))
}

fn after(page: &Page) -> Result<(String, String), Refusal> {
    match page.after.split_once('\n') {
        Some((edge, key)) => Ok((edge.to_owned(), key.to_owned())),
        None if page.after.is_empty() => Ok((String::new(), String::new())),
        None => Err(Refusal::invalid("/cursor", "not a cursor of this list")),
    }
}

/// How far `revision` of an environment has come.
pub async fn live(
    read: &mut Connection,
    environment_id: &str,
    generation: i64,
    revision: i64,
) -> Result<Live, sqlx::Error> {
    let (edges, serving, rejected): (i64, i64, i64) = query_as(COUNT)
        .bind(environment_id)
        .bind(generation)
        .bind(revision)
        .bind(now_us() - HEARD_US)
        .fetch_one(read)
        .await?;
    let published: i64 = query_scalar(PUBLISHED)
        .bind(environment_id)
        .bind(generation)
        .bind(revision)
        .fetch_one(read)
        .await?;
    let halted: i64 = query_scalar(HALTED)
        .bind(environment_id)
        .bind(generation)
        .bind(revision)
        .fetch_one(read)
        .await?;
    Ok(Live { edges, serving, rejected, published: published > 0, halted: halted > 0 })
}

/// Until every edge serves what was touched, its rollout is halted, or the time is over; then as far
/// as they came: of several environments the one that came least far.
pub async fn wait(store: &Store, touched: &[Touched], wait: Duration) -> Result<Live, sqlx::Error> {
    let deadline = Instant::now() + wait.min(WAIT_MAX);
    loop {
        let mut least: Option<Live> = None;
        {
            let mut read = store.read().await?;
            for touched in touched {
                let Touched { environment_id, generation, revision } = touched;
                let now = live(&mut read, environment_id, *generation, *revision).await?;
                let missing = |of: Live| (!of.halted, of.published, of.serving - of.edges);
                if least.is_none_or(|least| missing(now) < missing(least)) {
                    least = Some(now);
                }
            }
        }
        // A write that changed nothing that edges serve is live already.
        let nothing = Live { edges: 0, serving: 0, rejected: 0, published: true, halted: false };
        let least = least.unwrap_or(nothing);
        if least.everywhere() || least.halted || Instant::now() >= deadline {
            return Ok(least);
        }
        tokio::time::sleep(WAIT_POLL.min(deadline - Instant::now())).await;
    }
}
