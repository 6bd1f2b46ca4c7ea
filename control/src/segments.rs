//! Segments of one environment: rules, and lists of ids, which are blobs of their own.

use rules::blob::Digest;
use rules::blob::lists::IdList;
use rules::limits::{SEGMENT_IDS_MAX, STRING_BYTES_MAX};
use rules::model::Segment;
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Touches, pointer_segment, relative};
use crate::environments::{self, Environment};
use crate::page::{Page, Paged};
use crate::references;
use crate::refusal::{Refusal, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, rfc3339};

/// Ids that travel inside of a segment's own JSON; longer lists go up by themselves.
pub const INLINE_IDS_MAX: usize = 10_000;

const ONE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM segment \
    WHERE environment_id = $1 AND key = $2";
const PAGE: &str = "SELECT id, key, definition, version, created_at, updated_at FROM segment \
    WHERE environment_id = $1 AND key > $2 ORDER BY key LIMIT $3";
const INSERT: &str = "INSERT INTO segment (id, environment_id, key, definition, version, created_at, \
    updated_at) VALUES ($1, $2, $3, $4, 1, $5, $5) ON CONFLICT (environment_id, key) DO NOTHING";
const UPDATE: &str = "UPDATE segment SET definition = $2, version = version + 1, updated_at = $3 \
    WHERE id = $1";
const DELETE: &str = "DELETE FROM segment WHERE id = $1";
const COUNTS: &str = "SELECT kind, id_count FROM segment_list WHERE segment_id = $1";
const IDS: &str = "SELECT ids FROM segment_list WHERE segment_id = $1 AND kind = $2";
const LIST_SET: &str = "INSERT INTO segment_list (segment_id, kind, digest, bytes, id_count, ids) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (segment_id, kind) DO UPDATE SET \
    digest = excluded.digest, bytes = excluded.bytes, id_count = excluded.id_count, \
    ids = excluded.ids";
const LIST_DELETE: &str = "DELETE FROM segment_list WHERE segment_id = $1 AND kind = $2";
const BLOB_ADD: &str = "INSERT INTO blob (digest, bytes, created_at) VALUES ($1, $2, $3) \
    ON CONFLICT (digest) DO NOTHING";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SegmentRow {
    pub id: String,
    pub key: String,
    pub definition: String,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

/// A segment as a body says it: its own fields and, beside them, `included` and `excluded`.
pub fn parse(mut body: serde_json::Map<String, Value>) -> Result<(Segment, Ids), Refusal> {
    let mut take = |name: &str| match body.remove(name) {
        None => Ok(None),
        Some(value) => {
            let ids: Vec<String> = serde_json::from_value(value)
                .map_err(|error| Refusal::invalid(format!("/{name}"), error.to_string()))?;
            match ids.len() > INLINE_IDS_MAX {
                true => {
                    let message =
                        format!("the limit is {INLINE_IDS_MAX}; PUT longer lists by themselves");
                    Err(Refusal::invalid(format!("/{name}"), message))
                }
                false => Ok(Some(ids)),
            }
        }
    };
    let ids = Ids { included: take("included")?, excluded: take("excluded")? };
    let segment = rules::compile::parse(Value::Object(body).to_string().as_bytes())
        .map_err(|problem| Refusal::Invalid(vec![problem]))?;
    Ok((segment, ids))
}

/// What a write says about the lists; None leaves one as it is.
#[derive(Debug, Default)]
pub struct Ids {
    pub included: Option<Vec<String>>,
    pub excluded: Option<Vec<String>>,
}

impl SegmentRow {
    /// As the API shows it, without ids.
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

/// With its ids, as far as they travel inline, and their counts.
pub async fn shown(read: &mut Connection, row: &SegmentRow) -> Result<Value, Refusal> {
    let mut state = row.state();
    let counts: Vec<(String, i64)> = query_as(COUNTS).bind(&row.id).fetch_all(&mut *read).await?;
    for (kind, count) in counts {
        state[format!("{kind}Count")] = json!(count);
        if count <= INLINE_IDS_MAX as i64 {
            let ids: String =
                query_scalar(IDS).bind(&row.id).bind(&kind).fetch_one(&mut *read).await?;
            state[kind] = json!(ids.lines().collect::<Vec<_>>());
        }
    }
    Ok(state)
}

pub async fn find(
    read: &mut Connection,
    environment_id: &str,
    key: &str,
) -> Result<SegmentRow, Refusal> {
    let row = query_as(ONE).bind(environment_id).bind(key).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("segment"))
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    key: &str,
) -> Result<SegmentRow, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    find(read, &environment.id, key).await
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    page: &Page,
) -> Result<Paged<SegmentRow>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    page.of(read, PAGE, &environment.id, |row: &SegmentRow| row.key.clone()).await
}

/// Makes it (`expected` is None) or replaces it.
pub async fn put(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    expected: Option<Expected>,
    segment: &Segment,
    ids: &Ids,
) -> Result<SegmentRow, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let (row, entry) = put_within(tx, &change, &environment, expected, segment, ids).await?;
    let prefix = format!("/segments/{}", pointer_segment(&segment.key));
    change.finish(tx, entry).await.map_err(|refusal| relative(refusal, &prefix))?;
    Ok(row)
}

/// Part of a change that has raised the environment; the row of it in the audit is the caller's.
pub async fn put_within(
    tx: &mut Tx,
    change: &Change,
    environment: &Environment,
    expected: Option<Expected>,
    segment: &Segment,
    ids: &Ids,
) -> Result<(SegmentRow, Entry), Refusal> {
    let text = written("segment", segment)?;
    let mut before = None;
    match expected {
        None => {
            let done = query(INSERT)
                .bind(new_id())
                .bind(&environment.id)
                .bind(&segment.key)
                .bind(text)
                .bind(change.at)
                .execute(tx)
                .await?;
            if done == 0 {
                return Err(Refusal::Exists { what: "segment", key: segment.key.clone() });
            }
        }
        Some(expected) => {
            let row = find(tx, &environment.id, &segment.key).await?;
            expected.check(row.version, || row.state())?;
            let update = query(UPDATE).bind(&row.id).bind(text).bind(change.at);
            update.execute(tx).await?;
            before = Some(row.state());
        }
    }
    let row = find(tx, &environment.id, &segment.key).await?;
    for (kind, list) in [("included", &ids.included), ("excluded", &ids.excluded)] {
        if let Some(list) = list {
            set_list(tx, &row.id, kind, list, change.at).await?;
        }
    }
    let entry = Entry {
        action: if before.is_some() { "segment.update" } else { "segment.create" },
        target: segment.key.clone(),
        environment: Some(environment.key.clone()),
        before,
        after: Some(row.state()),
    };
    Ok((row, entry))
}

/// Replaces one of its lists.
pub async fn put_list(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    key: &str,
    expected: Expected,
    kind: &'static str,
    ids: &[String],
) -> Result<SegmentRow, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let before = find(tx, &environment.id, key).await?;
    expected.check(before.version, || before.state())?;
    set_list(tx, &before.id, kind, ids, change.at).await?;
    let update = query(UPDATE).bind(&before.id).bind(&before.definition).bind(change.at);
    update.execute(tx).await?;
    let after = find(tx, &environment.id, key).await?;
    let entry = Entry {
        action: "segment.ids",
        target: key.to_owned(),
        environment: Some(environment.key),
        before: None,
        after: Some(json!({ "list": kind, "count": ids.len() })),
    };
    change.finish(tx, entry).await?;
    Ok(after)
}

/// One of its lists, as edges have it.
pub fn id_list(kind: &str, ids: &[String]) -> Result<IdList, Refusal> {
    if ids.len() > SEGMENT_IDS_MAX {
        return Err(Refusal::invalid(
            format!("/{kind}"),
            format!("{} ids, the limit is {SEGMENT_IDS_MAX}", ids.len()),
        ));
    }
    let is_bad =
        |id: &String| id.is_empty() || id.len() > STRING_BYTES_MAX || id.contains(['\n', '\r']);
    if let Some(index) = ids.iter().position(is_bad) {
        let message = format!("an id is one line of 1 to {STRING_BYTES_MAX} bytes");
        return Err(Refusal::invalid(format!("/{kind}/{index}"), message));
    }
    Ok(IdList::from_ids(ids.iter().map(String::as_str)))
}

async fn set_list(
    tx: &mut Connection,
    segment_id: &str,
    kind: &str,
    ids: &[String],
    at: i64,
) -> Result<(), Refusal> {
    if ids.is_empty() {
        query(LIST_DELETE).bind(segment_id).bind(kind).execute(tx).await?;
        return Ok(());
    }
    let list = id_list(kind, ids)?;
    let (bytes, count) = (list.encode(), list.len());
    let digest = Digest::of(&bytes).to_string();
    let length = bytes.len() as i64;
    let blob = query(BLOB_ADD).bind(&digest).bind(bytes).bind(at);
    blob.execute(&mut *tx).await?;
    query(LIST_SET)
        .bind(segment_id)
        .bind(kind)
        .bind(digest)
        .bind(length)
        .bind(count as i64)
        .bind(ids.join("\n"))
        .execute(tx)
        .await?;
    Ok(())
}

/// Refused while a flag or another segment needs it.
pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    key: &str,
    expected: Expected,
) -> Result<(), Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let entry = delete_within(tx, scope, &environment, key, expected).await?;
    change.finish(tx, entry).await?;
    Ok(())
}

/// Part of a change that has raised the environment; the row of it in the audit is the caller's.
pub async fn delete_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &Environment,
    key: &str,
    expected: Expected,
) -> Result<Entry, Refusal> {
    let before = find(tx, &environment.id, key).await?;
    expected.check(before.version, || before.state())?;
    references::needing_segment(tx, scope, environment, key).await?.refuse_if_needed()?;
    query(DELETE).bind(&before.id).execute(tx).await?;
    Ok(Entry {
        action: "segment.delete",
        target: key.to_owned(),
        environment: Some(environment.key.clone()),
        before: Some(before.state()),
        after: None,
    })
}
