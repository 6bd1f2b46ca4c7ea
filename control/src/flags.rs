//! Flags: what a flag is in every environment of its namespace.

use rules::model::{FlagConfig, FlagDefinition};
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Passage, Touches, pointer_segment, relative};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, rfc3339};
use crate::versions;

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
    // A flag that is new is off everywhere and gives callers what they get without it: their own
    // default. That needs nobody's approval; turning it on does.
    let change = Change::begin_by(tx, scope, Touches::All, Passage::Judged).await?;
    let (made, entry) = create_within(tx, scope, &change, definition).await?;
    let prefix = prefix(&definition.key);
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix))?;
    Ok(made)
}

/// Part of a change that has raised all environments; the row of it in the audit is the caller's.
pub async fn create_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    definition: &FlagDefinition,
) -> Result<(FlagRow, Entry), Refusal> {
    let key = &definition.key;
    if !insert(tx, scope, change, definition).await? {
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
    Ok((made, entry))
}

/// Whether no environment answers anybody differently for the one than for the other: they differ
/// in words for people alone.
pub fn serves_the_same(one: &FlagDefinition, other: &FlagDefinition) -> bool {
    let without_words = |definition: &FlagDefinition| FlagDefinition {
        description: String::new(),
        tags: Vec::new(),
        ..definition.clone()
    };
    let (one, other) = (without_words(one), without_words(other));
    // The order of variants means something to some formats, and maps do not compare it.
    one == other && one.variants.keys().eq(other.variants.keys())
}

/// Whether it was not there. Part of a change that holds the namespace's lock.
pub async fn insert(
    tx: &mut Connection,
    scope: &NamespaceScope,
    change: &Change,
    definition: &FlagDefinition,
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
    let id = new_id();
    let done = query(INSERT)
        .bind(&id)
        .bind(scope.id())
        .bind(&definition.key)
        .bind(written("flag definition", definition)?)
        .bind(change.at)
        .execute(&mut *tx)
        .await?;
    if done == 1 {
        versions::keep_definition(tx, change, &id).await?;
    }
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
    write(tx, scope, key, expected, definition, "flag.update").await
}

/// As `update`, under another name in the audit.
pub async fn write(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
    definition: &FlagDefinition,
    action: &'static str,
) -> Result<FlagRow, Refusal> {
    let change = Change::begin_by(tx, scope, Touches::All, Passage::Judged).await?;
    let before = get(tx, scope, key).await?.definition()?;
    if !serves_the_same(&before, definition) {
        change.gate_all(tx).await?;
    }
    let (after, entry) = update_within(tx, scope, &change, key, expected, definition).await?;
    let entry = Entry { action, ..entry };
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix(key)))?;
    Ok(after)
}

/// Part of a change that has raised all environments; the row of it in the audit is the caller's.
pub async fn update_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    key: &str,
    expected: Expected,
    definition: &FlagDefinition,
) -> Result<(FlagRow, Entry), Refusal> {
    let before = get(tx, scope, key).await?;
    expected.check(before.version, || before.state())?;
    if definition.key != key {
        return Err(Refusal::invalid("/key", format!("a flag keeps its key, {key:?}")));
    }
    if definition.kind != before.definition()?.kind {
        return Err(Refusal::invalid("/type", "a flag keeps its type: callers rely on it"));
    }
    replace(tx, change, &before.id, definition).await?;
    let after = get(tx, scope, key).await?;
    let entry = Entry {
        action: "flag.update",
        target: key.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: Some(after.state()),
    };
    Ok((after, entry))
}

/// Part of a change that holds the namespace's lock: the row, and the version that is kept of it.
pub async fn replace(
    tx: &mut Connection,
    change: &Change,
    id: &str,
    definition: &FlagDefinition,
) -> Result<(), Refusal> {
    let text = written("flag definition", definition)?;
    query(UPDATE).bind(id).bind(text).bind(change.at).execute(&mut *tx).await?;
    versions::keep_definition(tx, change, id).await
}

/// Refused while others need it as their prerequisite. The key's type stays reserved.
pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::All).await?;
    let entry = delete_within(tx, scope, &change, key, expected).await?;
    change.finish(tx, entry).await?;
    Ok(())
}

/// Part of a change that has raised all environments; the row of it in the audit is the caller's.
pub async fn delete_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    key: &str,
    expected: Expected,
) -> Result<Entry, Refusal> {
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
    Ok(entry)
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
