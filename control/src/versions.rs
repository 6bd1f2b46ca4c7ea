//! Every version of a flag's definition and of its configurations: who made it, when, what it changed,
//! and the way back, which is a new version with the old content.
//!
//! A version is written in the transaction that makes it, by the functions that write the row itself
//! (`configs::put`, `flags::insert`, `flags::replace`), so there is none that is missing.

use rules::model::{FlagConfig, FlagDefinition};
use serde_json::Value;

use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected};
use crate::configs::{self, Configured};
use crate::environments;
use crate::flags::{self, FlagRow};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, stored};
use crate::store::query::{query, query_as};
use crate::store::{Connection, Tx};

/// Of one flag's definition, or of its configuration in one environment. The oldest go.
pub const KEPT_MAX: i64 = 1_000;

const DEFINITION_ADD: &str = "INSERT INTO flag_version (flag_id, version, definition, at, actor, \
    audit_sequence, change_set) SELECT id, version, definition, $2, $3, $4, $5 FROM flag \
    WHERE id = $1";
const DEFINITION_FORGET: &str = "DELETE FROM flag_version WHERE flag_id = $1 AND version <= \
    (SELECT version FROM flag WHERE id = $1) - $2";
const CONFIG_ADD: &str = "INSERT INTO config_version (environment_id, flag_id, version, config, at, \
    actor, audit_sequence, change_set) SELECT environment_id, flag_id, version, config, $3, $4, $5, \
    $6 FROM flag_config WHERE environment_id = $1 AND flag_id = $2";
const CONFIG_FORGET: &str = "DELETE FROM config_version WHERE environment_id = $1 AND flag_id = $2 \
    AND version <= (SELECT version FROM flag_config WHERE environment_id = $1 AND flag_id = $2) - $3";
const DEFINITIONS: &str = "SELECT version, definition AS content, at, actor, audit_sequence, \
    change_set FROM flag_version WHERE flag_id = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
const DEFINITION: &str = "SELECT version, definition AS content, at, actor, audit_sequence, \
    change_set FROM flag_version WHERE flag_id = $1 AND version = $2";
const CONFIGS: &str = "SELECT version, config AS content, at, actor, audit_sequence, change_set \
    FROM config_version WHERE environment_id = $1 AND flag_id = $2 AND version < $3 \
    ORDER BY version DESC LIMIT $4";
const CONFIG: &str = "SELECT version, config AS content, at, actor, audit_sequence, change_set \
    FROM config_version WHERE environment_id = $1 AND flag_id = $2 AND version = $3";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct VersionRow {
    pub version: i64,
    /// JSON of the definition or of the configuration.
    pub content: String,
    pub at: i64,
    /// Empty: it is older than versions are kept.
    pub actor: String,
    pub audit_sequence: Option<i64>,
    pub change_set: Option<i64>,
}

impl VersionRow {
    pub fn content(&self) -> Value {
        serde_json::from_str(&self.content).unwrap_or_default()
    }
}

/// One version, and what it is compared with: another that was asked for, or the one before.
#[derive(Debug, Clone)]
pub struct Compared {
    pub row: VersionRow,
    /// None: it is the first, or the one before is not kept any more.
    pub against: Option<VersionRow>,
}

/// What has to be done to `from` to have `to`: RFC 6902.
pub fn diff(from: &Value, to: &Value) -> Value {
    serde_json::to_value(json_patch::diff(from, to)).unwrap_or_default()
}

impl Compared {
    pub fn diff(&self) -> Value {
        let from = self.against.as_ref().map_or(Value::Null, VersionRow::content);
        diff(&from, &self.row.content())
    }
}

/// Keeps a definition as it has just been written.
pub async fn keep_definition(
    tx: &mut Connection,
    change: &Change,
    flag_id: &str,
) -> Result<(), Refusal> {
    query(DEFINITION_ADD)
        .bind(flag_id)
        .bind(change.at)
        .bind(change.actor())
        .bind(change.audit_sequence())
        .bind(change.change_set)
        .execute(&mut *tx)
        .await?;
    query(DEFINITION_FORGET).bind(flag_id).bind(KEPT_MAX).execute(tx).await?;
    Ok(())
}

/// Keeps a configuration as it has just been written.
pub async fn keep_config(
    tx: &mut Connection,
    change: &Change,
    environment_id: &str,
    flag_id: &str,
) -> Result<(), Refusal> {
    query(CONFIG_ADD)
        .bind(environment_id)
        .bind(flag_id)
        .bind(change.at)
        .bind(change.actor())
        .bind(change.audit_sequence())
        .bind(change.change_set)
        .execute(&mut *tx)
        .await?;
    query(CONFIG_FORGET).bind(environment_id).bind(flag_id).bind(KEPT_MAX).execute(tx).await?;
    Ok(())
}

/// Newest first.
pub async fn definitions(
    read: &mut Connection,
    scope: &NamespaceScope,
    flag: &str,
    page: &Page,
) -> Result<Paged<VersionRow>, Refusal> {
    let before = page.number_before()?;
    let flag = flags::get(read, scope, flag).await?;
    let rows = query_as(DEFINITIONS).bind(flag.id).bind(before).bind(page.fetch());
    let rows: Vec<VersionRow> = rows.fetch_all(read).await?;
    Ok(page.cut(rows, |row| row.version.to_string()))
}

/// Newest first.
pub async fn configs(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    page: &Page,
) -> Result<Paged<VersionRow>, Refusal> {
    let before = page.number_before()?;
    let environment = environments::get(read, scope, environment).await?;
    let flag = flags::get(read, scope, flag).await?;
    let rows = query_as(CONFIGS).bind(environment.id).bind(flag.id).bind(before).bind(page.fetch());
    let rows: Vec<VersionRow> = rows.fetch_all(read).await?;
    Ok(page.cut(rows, |row| row.version.to_string()))
}

pub async fn definition(
    read: &mut Connection,
    scope: &NamespaceScope,
    flag: &str,
    version: i64,
    against: Option<i64>,
) -> Result<Compared, Refusal> {
    let flag = flags::get(read, scope, flag).await?;
    let row = find_definition(read, &flag.id, version).await?;
    let row = row.ok_or(Refusal::NotFound("version"))?;
    let other = find_definition(read, &flag.id, against.unwrap_or(version - 1)).await?;
    compared(row, other, against)
}

pub async fn config(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    version: i64,
    against: Option<i64>,
) -> Result<Compared, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let flag = flags::get(read, scope, flag).await?;
    let row = find_config(read, &environment.id, &flag.id, version).await?;
    let row = row.ok_or(Refusal::NotFound("version"))?;
    let other =
        find_config(read, &environment.id, &flag.id, against.unwrap_or(version - 1)).await?;
    compared(row, other, against)
}

/// One that was asked for has to be there.
fn compared(
    row: VersionRow,
    other: Option<VersionRow>,
    asked: Option<i64>,
) -> Result<Compared, Refusal> {
    match (other, asked) {
        (None, Some(_)) => Err(Refusal::NotFound("version")),
        (against, _) => Ok(Compared { row, against }),
    }
}

async fn find_definition(
    read: &mut Connection,
    flag_id: &str,
    version: i64,
) -> Result<Option<VersionRow>, Refusal> {
    Ok(query_as(DEFINITION).bind(flag_id).bind(version).fetch_optional(read).await?)
}

async fn find_config(
    read: &mut Connection,
    environment_id: &str,
    flag_id: &str,
    version: i64,
) -> Result<Option<VersionRow>, Refusal> {
    let row = query_as(CONFIG).bind(environment_id).bind(flag_id).bind(version);
    Ok(row.fetch_optional(read).await?)
}

pub async fn restore_definition(
    tx: &mut Tx,
    scope: &NamespaceScope,
    flag: &str,
    version: i64,
    expected: Expected,
) -> Result<FlagRow, Refusal> {
    let row = flags::get(tx, scope, flag).await?;
    let old = find_definition(tx, &row.id, version).await?;
    let old = old.ok_or(Refusal::NotFound("version"))?;
    let definition: FlagDefinition = stored("flag definition", &old.content)?;
    flags::write(tx, scope, flag, expected, &definition, "flag.restore").await
}

pub async fn restore_config(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    flag: &str,
    version: i64,
    expected: Expected,
) -> Result<Configured, Refusal> {
    let place = environments::get(tx, scope, environment).await?;
    let row = flags::get(tx, scope, flag).await?;
    let old = find_config(tx, &place.id, &row.id, version).await?;
    let old = old.ok_or(Refusal::NotFound("version"))?;
    let config: FlagConfig = stored("flag configuration", &old.content)?;
    configs::write(tx, scope, environment, flag, expected, &config, "config.restore").await
}
