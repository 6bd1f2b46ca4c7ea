//! Contexts that edges saw, for previews of changes: who switched it on, for how long, and the newest
//! of what came.
//!
//! Edges redact (`rules::sample`); control believes them no further: what nobody ordered is not
//! kept, and of an environment there are never more than `KEPT_MAX`.

use rules::sample::{
    KEEP_MAX, PER_MINUTE_MAX, REPORT_SAMPLES_MAX, SAMPLE_BYTES_MAX, SampleOrder, SampleOrders,
    SampleReport,
};
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::{EdgeScope, NamespaceScope};
use crate::change::{Change, Touches};
use crate::environments;
use crate::refusal::{Refusal, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, now_us, rfc3339};

/// Of one environment; the oldest go first.
pub const KEPT_MAX: i64 = 1_000;
pub const MINUTES_MAX: i64 = 24 * 60;
/// Nobody looks at them any longer.
const KEPT_US: i64 = 24 * 60 * MINUTE_US;
const MINUTE_US: i64 = 60 * 1_000_000;
const PATH_BYTES_MAX: usize = 256;

const ONE: &str = "SELECT per_minute, keep, until, set_by, set_at FROM sampling \
    WHERE environment_id = $1";
const SET: &str = "INSERT INTO sampling (environment_id, per_minute, keep, until, set_by, set_at) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (environment_id) DO UPDATE SET \
    per_minute = excluded.per_minute, keep = excluded.keep, until = excluded.until, \
    set_by = excluded.set_by, set_at = excluded.set_at";
const UNSET: &str = "DELETE FROM sampling WHERE environment_id = $1";
const FORGET: &str = "DELETE FROM context_sample WHERE environment_id = $1";
const FORGET_OLD: &str = "DELETE FROM context_sample WHERE at < $1";
const CROWD: &str = "DELETE FROM context_sample WHERE environment_id = $1 AND id < (SELECT id \
    FROM context_sample WHERE environment_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)";
const ORDERED: &str = "SELECT n.key, e.key, e.id, s.per_minute, s.keep, s.until FROM sampling s \
    JOIN environment e ON e.id = s.environment_id JOIN namespace n ON n.id = e.namespace_id \
    WHERE s.until > $1 ORDER BY e.id";
const KEEP: &str =
    "INSERT INTO context_sample (id, environment_id, at, context) VALUES ($1, $2, $3, $4)";
const NEWEST: &str = "SELECT at, context FROM context_sample WHERE environment_id = $1 \
    ORDER BY id DESC LIMIT $2";
const COUNT: &str = "SELECT COUNT(*) FROM context_sample WHERE environment_id = $1";

#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    per_minute: i64,
    keep: String,
    until: i64,
    set_by: String,
    set_at: i64,
}

/// What is asked of edges.
#[derive(Debug, Clone)]
pub struct Sampling {
    pub per_minute: i64,
    pub keep: Vec<String>,
    pub until: i64,
    pub set_by: String,
    pub set_at: i64,
}

/// None if it was never on, or was switched off; one that ended by itself is shown as it was.
pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
) -> Result<(Option<Sampling>, i64), Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let kept = query_scalar(COUNT).bind(&environment.id).fetch_one(&mut *read).await?;
    Ok((of(read, &environment.id).await?, kept))
}

async fn of(read: &mut Connection, environment_id: &str) -> Result<Option<Sampling>, Refusal> {
    let row: Option<Row> = query_as(ONE).bind(environment_id).fetch_optional(read).await?;
    let Some(row) = row else { return Ok(None) };
    let keep = stored("list of attributes", &row.keep)?;
    let Row { per_minute, until, set_by, set_at, .. } = row;
    Ok(Some(Sampling { per_minute, keep, until, set_by, set_at }))
}

fn state(of: &Sampling) -> Value {
    json!({ "perMinute": of.per_minute, "keep": of.keep, "until": rfc3339(of.until) })
}

/// From now on, for so many minutes.
pub async fn set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    per_minute: i64,
    keep: &[String],
    minutes: i64,
) -> Result<(), Refusal> {
    if !(1..=i64::from(PER_MINUTE_MAX)).contains(&per_minute) {
        let message = format!("1 to {PER_MINUTE_MAX} contexts a minute");
        return Err(Refusal::invalid("/perMinute", message));
    }
    if !(1..=MINUTES_MAX).contains(&minutes) {
        return Err(Refusal::invalid("/minutes", format!("1 to {MINUTES_MAX} minutes")));
    }
    if keep.len() > KEEP_MAX {
        return Err(Refusal::invalid("/keep", format!("the limit is {KEEP_MAX} attributes")));
    }
    for (index, path) in keep.iter().enumerate() {
        if path.is_empty() || path.len() > PATH_BYTES_MAX {
            let message = format!("a path is 1 to {PATH_BYTES_MAX} bytes");
            return Err(Refusal::invalid(format!("/keep/{index}"), message));
        }
    }
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = of(tx, &environment.id).await?;
    query(SET)
        .bind(&environment.id)
        .bind(per_minute)
        .bind(written("list of attributes", &keep)?)
        .bind(change.at + minutes * MINUTE_US)
        .bind(scope.actor())
        .bind(change.at)
        .execute(tx)
        .await?;
    let after = of(tx, &environment.id).await?;
    let entry = Entry {
        action: "sampling.set",
        target: environment.key.clone(),
        environment: Some(environment.key),
        before: before.as_ref().map(state),
        after: after.as_ref().map(state),
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// Ends it, and forgets what came.
pub async fn unset(tx: &mut Tx, scope: &NamespaceScope, environment: &str) -> Result<(), Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = of(tx, &environment.id).await?.ok_or(Refusal::NotFound("sampling"))?;
    query(UNSET).bind(&environment.id).execute(tx).await?;
    query(FORGET).bind(&environment.id).execute(tx).await?;
    let entry = Entry {
        action: "sampling.unset",
        target: environment.key.clone(),
        environment: Some(environment.key),
        before: Some(state(&before)),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// The newest first: when, and what the edge let out.
pub async fn newest(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    limit: i64,
) -> Result<Vec<(i64, Value)>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let rows: Vec<(i64, String)> =
        query_as(NEWEST).bind(&environment.id).bind(limit).fetch_all(read).await?;
    rows.into_iter().map(|(at, context)| Ok((at, stored("context", &context)?))).collect()
}

/// What an edge shall take from now on, of environments that its key may see.
pub async fn orders(read: &mut Connection, scope: &EdgeScope) -> Result<SampleOrders, Refusal> {
    let mut orders = Vec::new();
    for (namespace, environment, _, per_minute, keep, until) in ordered(read).await? {
        if !scope.sees(&namespace) {
            continue;
        }
        orders.push(SampleOrder {
            namespace,
            environment,
            per_minute: u32::try_from(per_minute).unwrap_or(1),
            keep: stored("list of attributes", &keep)?,
            until_ms: until / 1_000,
        });
    }
    Ok(SampleOrders { orders })
}

type Ordered = (String, String, String, i64, String, i64);

async fn ordered(read: &mut Connection) -> Result<Vec<Ordered>, Refusal> {
    Ok(query_as(ORDERED).bind(now_us()).fetch_all(read).await?)
}

/// Keeps what was ordered; the rest is passed over, since its order may have ended on the way.
pub async fn receive(
    tx: &mut Connection,
    scope: &EdgeScope,
    report: &SampleReport,
) -> Result<(), Refusal> {
    let count: usize = report.environments.iter().map(|of| of.samples.len()).sum();
    if count > REPORT_SAMPLES_MAX {
        let message = format!("the limit is {REPORT_SAMPLES_MAX} contexts");
        return Err(Refusal::invalid("/environments", message));
    }
    if count == 0 {
        return Ok(());
    }
    let now = now_us();
    query(FORGET_OLD).bind(now - KEPT_US).execute(&mut *tx).await?;
    let ordered = ordered(tx).await?;
    for of in &report.environments {
        let found = ordered.iter().find(|one| one.0 == of.namespace && one.1 == of.environment);
        let Some((_, _, id, ..)) = found.filter(|_| scope.sees(&of.namespace)) else { continue };
        for sample in &of.samples {
            let text = sample.context.to_string();
            if !sample.context.is_object() || text.len() > SAMPLE_BYTES_MAX {
                continue;
            }
            // A clock that is ahead must not keep it for ever.
            let at = sample.at_ms.saturating_mul(1_000).min(now);
            query(KEEP).bind(new_id()).bind(id).bind(at).bind(text).execute(&mut *tx).await?;
        }
        query(CROWD).bind(id).bind(KEPT_MAX - 1).execute(&mut *tx).await?;
    }
    Ok(())
}
