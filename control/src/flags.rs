//! Flags: what a flag is in every environment of its namespace.

use rules::model::{FlagConfig, FlagDefinition};
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Touches, pointer_segment, relative};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, rfc3339};

const ONE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM flag \
    WHERE namespace_id = $1 AND key = $2";
const PAGE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM flag \
    WHERE namespace_id = $1 AND key > $2 ORDER BY key LIMIT $3";
const INSERT: &str = "INSERT INTO flag (id, namespace_id, key, definition, version, created_at, \
    updated_at) VALUES ($1, $2, $3, $4, 1, $5, $5) ON CONFLICT (namespace_id, key) DO NOTHING";
const UPDATE: &str = "UPDATE flag SET definition = $2, version = version + 1, updated_at = $3 \
    WHERE id = $1";
const DELETE: &str = "DELETE FROM flag WHERE id = $1";
const TOMBSTONE: &str = "SELECT kind FROM flag_tombstone WHERE namespace_id = $1 AND key = $2";
const BURY: &str = "INSERT INTO flag_tombstone (namespace_id, key, kind, deleted_at) \
    VALUES ($1, $2, $3, $4) ON CONFLICT (namespace_id, key) DO UPDATE SET kind = excluded.kind, \
    deleted_at = excluded.deleted_at";
const CONFIGS: &str = "SELECT f.key, e.key, c.config FROM flag_config c \
    JOIN flag f ON f.id = c.flag_id JOIN environment e ON e.id = c.environment_id \
    WHERE f.namespace_id = $1 AND f.key <> $2 ORDER BY f.key, e.key";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct FlagRow {
    pub id: String,
    pub key: String,
    pub definition: String,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

impl FlagRow {
    pub fn definition(&self) -> Result<FlagDefinition, Refusal> {
        stored("flag definition", &self.definition)
    }

    /// As the API shows it.
    pub fn state(&self) -> Value {
        let mut state = serde_json::from_str::<Value>(&self.definition).unwrap_or_default();
        if let Value::Object(fields) = &mut state {
            fields.insert("version".to_owned(), json!(self.version));
            fields.insert("createdAt".to_owned(), json!(rfc3339(self.created_at)));
            fields.insert("updatedAt".to_owned(), json!(rfc3339(self.updated_at)));
        }
        state
    }
}

pub async fn find(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<Option<FlagRow>, Refusal> {
    Ok(query_as(ONE).bind(scope.id()).bind(key).fetch_optional(read).await?)
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<FlagRow, Refusal> {
    find(read, scope, key).await?.ok_or(Refusal::NotFound("flag"))
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<FlagRow>, Refusal> {
    page.of(read, PAGE, scope.id(), |row: &FlagRow| row.key.clone()).await
}

pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    definition: &FlagDefinition,
) -> Result<FlagRow, Refusal> {
    let change = Change::begin(tx, scope, Touches::All).await?;
    let key = &definition.key;
    if !insert(tx, scope, definition, change.at).await? {
        return Err(Refusal::Exists { what: "flag", key: key.clone() });
    }
    let made = get(tx, scope, key).await?;
    let entry = Entry {
        action: "flag.create",
        target: key.clone(),
        environment: None,
        before: None,
        after: Some(made.state()),
    };
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix(key)))?;
    Ok(made)
}

/// Whether it was not there. Part of a change that holds the namespace's lock.
pub async fn insert(
    tx: &mut Connection,
    scope: &NamespaceScope,
    definition: &FlagDefinition,
    at: i64,
) -> Result<bool, Refusal> {
    if let Some(kind) = tombstone(tx, scope, &definition.key).await?
        && kind != kind_name(definition)
    {
        return Err(Refusal::invalid(
            "/type",
            format!(
                "the key was used before for a {kind} flag, which callers may still ask for; \
                 it can come back with that type or under another key"
            ),
        ));
    }
    let done = query(INSERT)
        .bind(new_id())
        .bind(scope.id())
        .bind(&definition.key)
        .bind(written("flag definition", definition)?)
        .bind(at)
        .execute(tx)
        .await?;
    Ok(done == 1)
}

/// The type that a deleted flag with this key had.
pub async fn tombstone(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<Option<String>, Refusal> {
    Ok(query_scalar(TOMBSTONE).bind(scope.id()).bind(key).fetch_optional(read).await?)
}

pub fn kind_name(definition: &FlagDefinition) -> String {
    serde_json::to_value(definition.kind)
        .ok()
        .and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_default()
}

pub async fn update(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
    definition: &FlagDefinition,
) -> Result<FlagRow, Refusal> {
    let change = Change::begin(tx, scope, Touches::All).await?;
    let before = get(tx, scope, key).await?;
    expected.check(before.version, || before.state())?;
    if definition.key != key {
        return Err(Refusal::invalid("/key", format!("a flag keeps its key, {key:?}")));
    }
    if definition.kind != before.definition()?.kind {
        return Err(Refusal::invalid("/type", "a flag keeps its type: callers rely on it"));
    }
    replace(tx, &before.id, definition, change.at).await?;
    let after = get(tx, scope, key).await?;
    let entry = Entry {
        action: "flag.update",
        target: key.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: Some(after.state()),
    };
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix(key)))?;
    Ok(after)
}

/// Part of a change that holds the namespace's lock.
pub async fn replace(
    tx: &mut Connection,
    id: &str,
    definition: &FlagDefinition,
    at: i64,
) -> Result<(), Refusal> {
    let text = written("flag definition", definition)?;
    query(UPDATE).bind(id).bind(text).bind(at).execute(tx).await?;
    Ok(())
}

/// Refused while others need it as their prerequisite. The key's type stays reserved.
pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::All).await?;
    let before = get(tx, scope, key).await?;
    expected.check(before.version, || before.state())?;
    let by = needed_by(tx, scope, key).await?;
    if !by.is_empty() {
        return Err(Refusal::InUse { by });
    }
    query(BURY)
        .bind(scope.id())
        .bind(key)
        .bind(kind_name(&before.definition()?))
        .bind(change.at)
        .execute(tx)
        .await?;
    query(DELETE).bind(&before.id).execute(tx).await?;
    let entry = Entry {
        action: "flag.delete",
        target: key.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// At most 20 of them, each as `flag "a" in "production"`.
async fn needed_by(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<Vec<String>, Refusal> {
    let configs: Vec<(String, String, String)> =
        query_as(CONFIGS).bind(scope.id()).bind(key).fetch_all(read).await?;
    let mut by = Vec::new();
    for (flag, environment, config) in configs {
        let config: FlagConfig = stored("flag configuration", &config)?;
        let rules = config.rules.iter().flat_map(|rule| &rule.prerequisites);
        if config.prerequisites.iter().chain(rules).any(|needed| needed.flag == key) {
            by.push(format!("flag {flag:?} in {environment:?}"));
        }
        if by.len() == 20 {
            break;
        }
    }
    Ok(by)
}

fn prefix(key: &str) -> String {
    format!("/flags/{}/definition", pointer_segment(key))
}
