//! Who changed what: a row for each change, in the change's own transaction, chained by hashes
//! per namespace, so that a row that was altered or taken out shows.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::authorize::Caller;
use crate::refusal::Refusal;
use crate::store::Connection;
use crate::store::query::{query, query_as};

const LOCK: &str = "UPDATE namespace SET audit_sequence = audit_sequence + 1 WHERE id = $1 \
    RETURNING audit_sequence, audit_hash";
const MOVE: &str = "UPDATE namespace SET audit_hash = $2 WHERE id = $1";
const INSERT: &str = "INSERT INTO audit (namespace_id, sequence, at, actor, action, target, \
    environment, before, after, previous, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
const PAGE: &str = "SELECT namespace_id, sequence, at, actor, action, target, environment, before, \
    after, previous, hash FROM audit WHERE namespace_id = $1 AND sequence < $2 \
    ORDER BY sequence DESC LIMIT $3";
const CHAIN: &str = "SELECT namespace_id, sequence, at, actor, action, target, environment, before, \
    after, previous, hash FROM audit WHERE namespace_id = $1 AND sequence > $2 \
    ORDER BY sequence LIMIT 1000";

const END: &str = "SELECT audit_sequence, audit_hash FROM namespace WHERE id = $1";

/// The end of a namespace's chain, locked: nobody else writes to the namespace until the commit.
#[derive(Debug)]
pub struct Head {
    namespace_id: String,
    sequence: i64,
    previous: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub action: &'static str,
    pub target: String,
    pub environment: Option<String>,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Row {
    pub namespace_id: String,
    pub sequence: i64,
    pub at: i64,
    pub actor: String,
    pub action: String,
    pub target: String,
    pub environment: Option<String>,
    pub before: Option<String>,
    pub after: Option<String>,
    pub previous: Vec<u8>,
    pub hash: Vec<u8>,
}

/// The first lock of every write.
pub async fn lock(tx: &mut Connection, namespace_id: &str) -> Result<Head, Refusal> {
    let (sequence, previous) = query_as::<(i64, Vec<u8>)>(LOCK)
        .bind(namespace_id)
        .fetch_optional(tx)
        .await?
        .ok_or(Refusal::NotFound("namespace"))?;
    Ok(Head { namespace_id: namespace_id.to_owned(), sequence, previous })
}

pub async fn append(
    tx: &mut Connection,
    head: Head,
    caller: &Caller,
    at: i64,
    entry: Entry,
) -> Result<(), Refusal> {
    let text = |value: Option<Value>| value.map(|value| value.to_string());
    let mut row = Row {
        namespace_id: head.namespace_id,
        sequence: head.sequence,
        at,
        actor: caller.name.clone(),
        action: entry.action.to_owned(),
        target: entry.target,
        environment: entry.environment,
        before: text(entry.before),
        after: text(entry.after),
        previous: head.previous,
        hash: Vec::new(),
    };
    row.hash = row.expected_hash();
    if seam::planted("no-audit-row") && row.action == "environment.publish" {
        return Ok(());
    }
    query(INSERT)
        .bind(&row.namespace_id)
        .bind(row.sequence)
        .bind(row.at)
        .bind(&row.actor)
        .bind(&row.action)
        .bind(&row.target)
        .bind(&row.environment)
        .bind(&row.before)
        .bind(&row.after)
        .bind(&row.previous)
        .bind(&row.hash)
        .execute(&mut *tx)
        .await?;
    query(MOVE).bind(&row.namespace_id).bind(&row.hash).execute(tx).await?;
    Ok(())
}

impl Row {
    /// Each field with its length before it, so that no two rows have one form.
    fn expected_hash(&self) -> Vec<u8> {
        let mut hasher = Sha256::new();
        hasher.update(&self.previous);
        let mut field = |bytes: Option<&[u8]>| {
            hasher.update([u8::from(bytes.is_some())]);
            let bytes = bytes.unwrap_or_default();
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        field(Some(self.namespace_id.as_bytes()));
        field(Some(&self.sequence.to_be_bytes()));
        field(Some(&self.at.to_be_bytes()));
        field(Some(self.actor.as_bytes()));
        field(Some(self.action.as_bytes()));
        field(Some(self.target.as_bytes()));
        field(self.environment.as_ref().map(|text| text.as_bytes()));
        field(self.before.as_ref().map(|text| text.as_bytes()));
        field(self.after.as_ref().map(|text| text.as_bytes()));
        hasher.finalize().to_vec()
    }
}

/// Newest first.
pub async fn page(
    read: &mut Connection,
    namespace_id: &str,
    before: i64,
    limit: i64,
) -> Result<Vec<Row>, Refusal> {
    Ok(query_as(PAGE).bind(namespace_id).bind(before).bind(limit).fetch_all(read).await?)
}

/// Walks the whole chain to where the namespace says that it ends, so that rows taken off its end
/// show too. How many rows there are, or the number of the first one that is not as it was.
pub async fn verify(
    read: &mut Connection,
    namespace_id: &str,
) -> Result<Result<i64, i64>, Refusal> {
    let (mut sequence, mut previous) = (0i64, vec![0u8; 32]);
    loop {
        let rows: Vec<Row> =
            query_as(CHAIN).bind(namespace_id).bind(sequence).fetch_all(&mut *read).await?;
        if rows.is_empty() {
            let end: (i64, Vec<u8>) =
                query_as(END).bind(namespace_id).fetch_one(&mut *read).await?;
            return Ok(match end.0 == sequence {
                true if end.1 == previous => Ok(sequence),
                // The newest row was written anew, its hash with it.
                true => Err(sequence),
                // Fewer rows than there were, or more.
                false => Err(sequence.min(end.0) + 1),
            });
        }
        for row in rows {
            let follows = row.sequence == sequence + 1
                && row.previous == previous
                && row.hash == row.expected_hash();
            if !follows {
                return Ok(Err(sequence + 1));
            }
            (sequence, previous) = (row.sequence, row.hash);
        }
    }
}
