//! Configurations: what a flag does in one environment.

use rules::model::FlagConfig;
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Touches, pointer_segment, relative};
use crate::environments::{self, absent_config};
use crate::flags::{self, FlagRow};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, written};
use crate::store::query::{query, query_as};
use crate::store::{Connection, Tx, rfc3339};

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

async fn with_config(
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

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    page: &Page,
) -> Result<Paged<Configured>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let rows = query_as(PAGE)
        .bind(scope.id())
        .bind(&environment.id)
        .bind(&page.after)
        .bind(page.fetch())
        .fetch_all(read)
        .await?;
    Ok(page.cut(rows, |row: &Configured| row.flag.key.clone()))
}

pub async fn set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    expected: Expected,
    config: &FlagConfig,
) -> Result<Configured, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let row = flags::get(tx, scope, flag).await?;
    let before = with_config(tx, &environment.id, row).await?;
    expected.check(before.version(), || before.state())?;
    put(tx, &environment.id, &before.flag.id, config, change.at).await?;
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
    let prefix = format!("/flags/{}/config", pointer_segment(flag));
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix))?;
    Ok(after)
}

/// Part of a change that holds the environment's lock.
pub async fn put(
    tx: &mut Connection,
    environment_id: &str,
    flag_id: &str,
    config: &FlagConfig,
    at: i64,
) -> Result<(), Refusal> {
    query(SET)
        .bind(flag_id)
        .bind(environment_id)
        .bind(written("flag configuration", config)?)
        .bind(at)
        .execute(tx)
        .await?;
    Ok(())
}
