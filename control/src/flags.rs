//! Flags: what a flag is in every environment of its namespace.

use rules::limits::FLAGS_MAX;
use rules::model::{FlagDefinition, Lifetime};
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Passage, Touches, pointer_segment, relative};
use crate::references;
use crate::refusal::{Refusal, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, rfc3339};
use crate::versions;

/// In all environments together, those that are archived among them; what is not archived has a limit
/// of its own.
pub const KEPT_MAX: usize = 3 * FLAGS_MAX;

const ONE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM flag \
    WHERE namespace_id = $1 AND key = $2";
const PAGE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM flag \
    WHERE namespace_id = $1 AND key > $2 ORDER BY key LIMIT $3";
const INSERT: &str = "INSERT INTO flag (id, namespace_id, key, definition, version, created_at, \
    updated_at) VALUES ($1, $2, $3, $4, 1, $5, $5) ON CONFLICT (namespace_id, key) DO NOTHING";
const UPDATE: &str = "UPDATE flag SET definition = $2, version = version + 1, updated_at = $3 \
    WHERE id = $1";
const DELETE: &str = "DELETE FROM flag WHERE id = $1";
const COUNT: &str = "SELECT COUNT(*) FROM flag WHERE namespace_id = $1";
const TOMBSTONE: &str =
    "SELECT deleted_at FROM flag_tombstone WHERE namespace_id = $1 AND key = $2";
/// Builds before took keys back with their type, so one may be buried already.
const BURY: &str = "INSERT INTO flag_tombstone (namespace_id, key, kind, deleted_at) \
    VALUES ($1, $2, $3, $4) ON CONFLICT (namespace_id, key) DO UPDATE SET kind = excluded.kind, \
    deleted_at = excluded.deleted_at";

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

/// At most so many, by key.
pub async fn after(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
    limit: i64,
) -> Result<Vec<FlagRow>, Refusal> {
    Ok(query_as(PAGE).bind(scope.id()).bind(key).bind(limit).fetch_all(read).await?)
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
/// in words for people alone, or neither is there for callers.
pub fn serves_the_same(one: &FlagDefinition, other: &FlagDefinition) -> bool {
    if one.archived && other.archived {
        return true;
    }
    let without_words = |definition: &FlagDefinition| FlagDefinition {
        description: String::new(),
        tags: Vec::new(),
        owner: String::new(),
        lifetime: Lifetime::default(),
        expected_end: None,
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
    if let Some(reason) = used_before(tx, scope, &definition.key).await? {
        return Err(Refusal::invalid("/key", reason));
    }
    let count: i64 = query_scalar(COUNT).bind(scope.id()).fetch_one(&mut *tx).await?;
    if count >= KEPT_MAX as i64 {
        return Err(Refusal::TooMany { what: "flags", max: KEPT_MAX });
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

/// Why a key is not to be had: a flag that was deleted had it.
pub async fn used_before(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<Option<String>, Refusal> {
    let deleted_at = query_scalar(TOMBSTONE).bind(scope.id()).bind(key);
    let deleted_at: Option<i64> = deleted_at.fetch_optional(read).await?;
    Ok(deleted_at.map(|at| {
        let at = rfc3339(at);
        format!(
            "a flag with this key was deleted at {at}; callers may still ask for it and mean that \
             one, so keys are not used again: choose another"
        )
    }))
}

fn kind_name(definition: &FlagDefinition) -> String {
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
    rewrite(tx, scope, key, expected, action, |_| definition.clone()).await
}

/// Puts a flag away: no environment has it any more, and its key stays taken. Refused while others
/// need it.
pub async fn archive(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
) -> Result<FlagRow, Refusal> {
    set_archived(tx, scope, key, expected, true).await
}

/// Takes it back: each environment has it again as it had it before.
pub async fn unarchive(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
) -> Result<FlagRow, Refusal> {
    set_archived(tx, scope, key, expected, false).await
}

/// What is so already stays as it is, and nothing is written.
async fn set_archived(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
    archived: bool,
) -> Result<FlagRow, Refusal> {
    let there = get(tx, scope, key).await?;
    if there.definition()?.archived == archived {
        expected.check(there.version, || there.state())?;
        return Err(Refusal::Already(there.state()));
    }
    let action = if archived { "flag.archive" } else { "flag.unarchive" };
    let to = |there| FlagDefinition { archived, ..there };
    rewrite(tx, scope, key, expected, action, to).await
}

async fn rewrite(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
    action: &'static str,
    to: impl FnOnce(FlagDefinition) -> FlagDefinition,
) -> Result<FlagRow, Refusal> {
    let change = Change::begin_by(tx, scope, Touches::All, Passage::Judged).await?;
    let before = get(tx, scope, key).await?.definition()?;
    let definition = to(before.clone());
    if !serves_the_same(&before, &definition) {
        change.gate_all(tx).await?;
    }
    let (after, entry) = update_within(tx, scope, &change, key, expected, &definition).await?;
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
    let there = before.definition()?;
    if definition.kind != there.kind {
        return Err(Refusal::invalid("/type", "a flag keeps its type: callers rely on it"));
    }
    if definition.archived && !there.archived {
        references::needing_flag(tx, scope, key).await?.refuse_if_needed()?;
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

/// Refused while others need it. Its key is never used again.
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
    references::needing_flag(tx, scope, key).await?.refuse_if_needed()?;
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

fn prefix(key: &str) -> String {
    format!("/flags/{}/definition", pointer_segment(key))
}
