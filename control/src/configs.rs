//! Configurations: what a flag does in one environment.

use rules::model::FlagConfig;
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Passage, Touches, pointer_segment, relative};
use crate::environments::{self, Environment, absent_config};
use crate::flags::{self, FlagRow};
use crate::page::{Page, Paged};
use crate::protection;
use crate::refusal::{Refusal, stored, written};
use crate::store::query::{query, query_as};
use crate::store::{Connection, Tx, rfc3339};
use crate::versions;

/// Of why a flag was turned off.
const REASON_BYTES_MAX: usize = 1024;

const ONE: &str = "SELECT config, version, updated_at FROM flag_config \
    WHERE environment_id = $1 AND flag_id = $2";
const PAGE: &str = "SELECT f.id, f.key, f.definition, f.version, f.created_at, f.updated_at, \
    c.config, c.version AS config_version, c.updated_at AS config_updated_at \
    FROM flag f LEFT JOIN flag_config c ON c.flag_id = f.id AND c.environment_id = $2 \
    WHERE f.namespace_id = $1 AND f.key > $3 ORDER BY f.key LIMIT $4";
const SET: &str = "INSERT INTO flag_config (flag_id, environment_id, config, version, updated_at) \
    VALUES ($1, $2, $3, 1, $4) ON CONFLICT (environment_id, flag_id) DO UPDATE SET \
    config = excluded.config, version = flag_config.version + 1, updated_at = excluded.updated_at";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ConfigRow {
    pub config: String,
    pub version: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Configured {
    #[sqlx(flatten)]
    pub flag: FlagRow,
    pub config: Option<String>,
    pub config_version: Option<i64>,
    pub config_updated_at: Option<i64>,
}

impl Configured {
    pub fn version(&self) -> i64 {
        self.config_version.unwrap_or(0)
    }

    /// As the API shows it.
    pub fn state(&self) -> Value {
        let config = match &self.config {
            Some(config) => serde_json::from_str(config).unwrap_or_default(),
            None => serde_json::to_value(absent_config()).unwrap_or_default(),
        };
        json!({ "key": self.flag.key, "definition": self.flag.state(), "config": config,
            "version": self.version(), "updatedAt": self.config_updated_at.map(rfc3339) })
    }
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
) -> Result<Configured, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let flag = flags::get(read, scope, flag).await?;
    with_config(read, &environment.id, flag).await
}

pub async fn with_config(
    read: &mut Connection,
    environment_id: &str,
    flag: FlagRow,
) -> Result<Configured, Refusal> {
    let row: Option<ConfigRow> =
        query_as(ONE).bind(environment_id).bind(&flag.id).fetch_optional(read).await?;
    Ok(match row {
        Some(row) => Configured {
            flag,
            config: Some(row.config),
            config_version: Some(row.version),
            config_updated_at: Some(row.updated_at),
        },
        None => Configured { flag, config: None, config_version: None, config_updated_at: None },
    })
}

/// Without those that are archived. Call it in one transaction.
pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    page: &Page,
) -> Result<Paged<Configured>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let mut taken: Vec<Configured> = Vec::new();
    let mut after = page.after.clone();
    loop {
        let rows = query_as(PAGE).bind(scope.id()).bind(&environment.id);
        let rows = rows.bind(&after).bind(page.fetch()).fetch_all(&mut *read).await?;
        let is_last = (rows.len() as i64) < page.fetch();
        if let Some(Configured { flag: last, .. }) = rows.last() {
            after.clone_from(&last.key);
        }
        for row in rows {
            if !row.flag.definition()?.archived {
                taken.push(row);
            }
        }
        if is_last || taken.len() as i64 >= page.fetch() {
            return Ok(page.cut(taken, |row| row.flag.key.clone()));
        }
    }
}

pub async fn set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    expected: Expected,
    config: &FlagConfig,
) -> Result<Configured, Refusal> {
    write(tx, scope, environment, flag, expected, config, "config.set").await
}

/// As `set`, under another name in the audit.
pub async fn write(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    expected: Expected,
    config: &FlagConfig,
    action: &'static str,
) -> Result<Configured, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let (after, entry) =
        set_within(tx, scope, &change, &environment, flag, expected, config).await?;
    let prefix = format!("/flags/{}/config", pointer_segment(flag));
    let entry = Entry { action, ..entry };
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix))?;
    Ok(after)
}

/// Turns a flag off, past the environment's approvals, and does nothing else. What is off already
/// stays as it is, and nothing is written.
pub async fn kill(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    reason: &str,
) -> Result<Configured, Refusal> {
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX || reason.contains('\0') {
        let message = format!("say why, in 1 to {REASON_BYTES_MAX} bytes");
        return Err(Refusal::invalid("/reason", message));
    }
    let environment = environments::get(tx, scope, environment).await?;
    let touches = Touches::One(&environment.id);
    let change = Change::begin_by(tx, scope, touches, Passage::Kill).await?;
    let row = flags::get(tx, scope, flag).await?;
    let before = with_config(tx, &environment.id, row).await?;
    let Some(config) = &before.config else { return Err(Refusal::Already(before.state())) };
    let mut config: FlagConfig = stored("flag configuration", config)?;
    if !config.enabled {
        return Err(Refusal::Already(before.state()));
    }
    config.enabled = false;
    let approvals = protection::approvals(tx, &environment.id).await?;
    let (expected, place) = (Expected::Any, &environment);
    let (after, entry) = set_within(tx, scope, &change, place, flag, expected, &config).await?;
    let after_shown = json!({ "enabled": false, "reason": reason, "pastApprovals": approvals,
        "config": entry.after });
    let entry = Entry { action: "flag.kill", after: Some(after_shown), ..entry };
    change.finish(tx, entry).await?;
    Ok(after)
}

/// Part of a change that has raised the environment; the row of it in the audit is the caller's.
pub async fn set_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    environment: &Environment,
    flag: &str,
    expected: Expected,
    config: &FlagConfig,
) -> Result<(Configured, Entry), Refusal> {
    let row = flags::get(tx, scope, flag).await?;
    if row.definition()?.archived {
        return Err(Refusal::Archived { flag: row.key });
    }
    let before = with_config(tx, &environment.id, row).await?;
    expected.check(before.version(), || before.state())?;
    put(tx, change, &environment.id, &before.flag.id, config).await?;
    let after = with_config(tx, &environment.id, before.flag.clone()).await?;
    let shown = |of: &Configured| {
        of.config.as_ref().and_then(|config| serde_json::from_str::<Value>(config).ok())
    };
    let entry = Entry {
        action: "config.set",
        target: flag.to_owned(),
        environment: Some(environment.key.clone()),
        before: shown(&before),
        after: shown(&after),
    };
    Ok((after, entry))
}

/// Part of a change that holds the environment's lock: the row, and the version that is kept of it.
pub async fn put(
    tx: &mut Connection,
    change: &Change,
    environment_id: &str,
    flag_id: &str,
    config: &FlagConfig,
) -> Result<(), Refusal> {
    query(SET)
        .bind(flag_id)
        .bind(environment_id)
        .bind(written("flag configuration", config)?)
        .bind(change.at)
        .execute(&mut *tx)
        .await?;
    versions::keep_config(tx, change, environment_id, flag_id).await
}
