//! Who changed what: a row for each change, in the change's own transaction, chained by hashes
//! per namespace, so that a row that was altered or taken out shows.
//!
//! What belongs to no namespace (accounts, operators, keys of all edges) is in the installation's own
//! chain, [`INSTANCE`]. A chain's sequence has no gap and is in the order of commits, since its end is
//! locked from the first statement of a write to the commit; so it is also the log of events, and
//! whoever tells others of changes is a cursor over it.
//!
//! Against somebody who writes a whole chain anew, or its end, there are signed anchors: `anchors.rs`.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::anchors::Anchor;
use crate::authorize::callers::Caller;
use crate::refusal::Refusal;
use crate::store::query::{query, query_as};
use crate::store::{Connection, now_us};

macro_rules! rows {
    ($($rest:literal),*) => {
        concat!("SELECT namespace_id, sequence, form, at, actor, actor_kind, actor_id, via, address, \
            user_agent, change_set, action, target, environment, before, after, previous, hash \
            FROM audit WHERE namespace_id = $1 ", $($rest),*)
    };
}
macro_rules! filtered {
    ($target:literal) => {
        rows!("AND sequence < $2 AND ", $target, " AND ($5 IS NULL OR actor = $5 OR actor_id = $5) \
            AND ($6 IS NULL OR action = $6) AND ($7 IS NULL OR substr(action, 1, length($7)) = $7) \
            AND ($8 IS NULL OR environment = $8) AND ($9 IS NULL OR at >= $9) \
            AND ($10 IS NULL OR at < $10) AND ($11 IS NULL OR change_set = $11) \
            ORDER BY sequence DESC LIMIT $3")
    };
}

const LOCK: &str = "UPDATE namespace SET audit_sequence = audit_sequence WHERE id = $1 \
    RETURNING audit_sequence, audit_hash";
const MOVE: &str = "UPDATE namespace SET audit_sequence = $2, audit_hash = $3 WHERE id = $1";
const LOCK_INSTANCE: &str = "UPDATE audit_chain SET audit_sequence = audit_sequence WHERE id = $1 \
    RETURNING audit_sequence, audit_hash";
const MOVE_INSTANCE: &str =
    "UPDATE audit_chain SET audit_sequence = $2, audit_hash = $3 WHERE id = $1";
const RETIRE: &str = "INSERT INTO audit_chain (id, name, audit_sequence, audit_hash) \
    SELECT id, key, audit_sequence, audit_hash FROM namespace WHERE id = $1";
const INSERT: &str = "INSERT INTO audit (namespace_id, sequence, form, at, actor, actor_kind, \
    actor_id, via, address, user_agent, change_set, action, target, environment, before, after, \
    previous, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
    $17, $18)";
// Two texts, since only one that names the target outright is answered from its index.
const FILTERED: &str = filtered!("$4 IS NULL");
const FILTERED_BY_TARGET: &str = filtered!("target = $4");
const CHAIN: &str = rows!("AND sequence > $2 ORDER BY sequence LIMIT $3");
const END: &str = "SELECT audit_sequence, audit_hash FROM namespace WHERE id = $1 \
    UNION ALL SELECT audit_sequence, audit_hash FROM audit_chain WHERE id = $1";

/// The installation's own chain, where a namespace's has its id.
pub const INSTANCE: &str = "instance";
/// Which fields a row's hash is of. Rows of form 1 were written before there were accounts.
const FORM: i64 = 2;
/// Rows read at once.
const CHUNK: i64 = 1000;

/// The end of a chain, locked: nobody else writes to it until the commit.
#[derive(Debug)]
pub struct Head {
    chain: String,
    sequence: i64,
    previous: Vec<u8>,
    /// The change set that the rows are a part of.
    pub change_set: Option<String>,
}

impl Head {
    /// Of the row that comes next.
    pub fn next_sequence(&self) -> i64 {
        self.sequence + 1
    }
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
    pub form: i64,
    pub at: i64,
    pub actor: String,
    pub actor_kind: Option<String>,
    pub actor_id: Option<String>,
    pub via: Option<String>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
    pub change_set: Option<String>,
    pub action: String,
    pub target: String,
    pub environment: Option<String>,
    pub before: Option<String>,
    pub after: Option<String>,
    pub previous: Vec<u8>,
    pub hash: Vec<u8>,
}

/// The first lock of every write in a namespace.
pub async fn lock(tx: &mut Connection, namespace_id: &str) -> Result<Head, Refusal> {
    let (sequence, previous) = query_as::<(i64, Vec<u8>)>(LOCK)
        .bind(namespace_id)
        .fetch_optional(tx)
        .await?
        .ok_or(Refusal::NotFound("namespace"))?;
    Ok(Head { chain: namespace_id.to_owned(), sequence, previous, change_set: None })
}

/// A row, or one more of the same transaction.
pub async fn append(
    tx: &mut Connection,
    head: &mut Head,
    caller: &Caller,
    at: i64,
    entry: Entry,
) -> Result<(), Refusal> {
    let text = |value: Option<Value>| value.map(|value| value.to_string());
    let mut row = Row {
        namespace_id: head.chain.clone(),
        sequence: head.sequence + 1,
        form: FORM,
        at,
        actor: caller.name.clone(),
        actor_kind: Some(caller.kind.name().to_owned()),
        actor_id: Some(caller.id.clone()),
        via: caller.via.clone(),
        address: caller.address.map(|address| address.to_string()),
        user_agent: caller.user_agent.clone(),
        change_set: head.change_set.clone(),
        action: entry.action.to_owned(),
        target: entry.target,
        environment: entry.environment,
        before: text(entry.before),
        after: text(entry.after),
        previous: head.previous.clone(),
        hash: Vec::new(),
    };
    row.hash = row.expected_hash();
    if seam::planted("no-audit-row") && row.action == "environment.publish" {
        return Ok(());
    }
    query(INSERT)
        .bind(&row.namespace_id)
        .bind(row.sequence)
        .bind(row.form)
        .bind(row.at)
        .bind(&row.actor)
        .bind(&row.actor_kind)
        .bind(&row.actor_id)
        .bind(&row.via)
        .bind(&row.address)
        .bind(&row.user_agent)
        .bind(&row.change_set)
        .bind(&row.action)
        .bind(&row.target)
        .bind(&row.environment)
        .bind(&row.before)
        .bind(&row.after)
        .bind(&row.previous)
        .bind(&row.hash)
        .execute(&mut *tx)
        .await?;
    let to = if head.chain == INSTANCE { MOVE_INSTANCE } else { MOVE };
    query(to).bind(&row.namespace_id).bind(row.sequence).bind(&row.hash).execute(tx).await?;
    (head.sequence, head.previous) = (row.sequence, row.hash);
    Ok(())
}

/// A row of the installation's own chain, as the last thing but the commit: who has a namespace's
/// lock may take this one after it, never the other way around.
pub async fn record_instance(
    tx: &mut Connection,
    caller: &Caller,
    entry: Entry,
) -> Result<(), Refusal> {
    let (sequence, previous) = query_as::<(i64, Vec<u8>)>(LOCK_INSTANCE)
        .bind(INSTANCE)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or_else(|| Refusal::Internal("the installation's audit chain is gone".to_owned()))?;
    let mut head = Head { chain: INSTANCE.to_owned(), sequence, previous, change_set: None };
    append(tx, &mut head, caller, now_us(), entry).await
}

/// Keeps where the chain of a namespace ends that is about to be deleted.
pub async fn retire(tx: &mut Connection, namespace_id: &str) -> Result<(), Refusal> {
    query(RETIRE).bind(namespace_id).execute(tx).await?;
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
        fn text(text: &Option<String>) -> Option<&[u8]> {
            text.as_ref().map(|text| text.as_bytes())
        }
        let form = self.form.to_be_bytes();
        // What a row of form 1 begins with is an id of 36 bytes, never this.
        let of_form: &[Option<&[u8]>] = match self.form {
            1 => &[],
            _ => &[Some(b"tidegate audit"), Some(&form)],
        };
        let of_caller: &[Option<&[u8]>] = match self.form {
            1 => &[],
            _ => &[
                text(&self.actor_kind),
                text(&self.actor_id),
                text(&self.via),
                text(&self.address),
                text(&self.user_agent),
                text(&self.change_set),
            ],
        };
        of_form.iter().for_each(|bytes| field(*bytes));
        field(Some(self.namespace_id.as_bytes()));
        field(Some(&self.sequence.to_be_bytes()));
        field(Some(&self.at.to_be_bytes()));
        field(Some(self.actor.as_bytes()));
        of_caller.iter().for_each(|bytes| field(*bytes));
        field(Some(self.action.as_bytes()));
        field(Some(self.target.as_bytes()));
        field(text(&self.environment));
        field(text(&self.before));
        field(text(&self.after));
        hasher.finalize().to_vec()
    }

    /// Whether this is the row after the one with `sequence` and `hash`, as it was written. A row of
    /// form 1 has nothing that its form does not know.
    pub(crate) fn follows(&self, sequence: i64, hash: &[u8]) -> bool {
        let known = match self.form {
            1 => [&self.actor_kind, &self.actor_id, &self.via, &self.address]
                .into_iter()
                .chain([&self.user_agent, &self.change_set])
                .all(Option::is_none),
            form => form == FORM,
        };
        known
            && self.sequence == sequence + 1
            && self.previous == hash
            && self.hash == self.expected_hash()
    }
}

/// Which rows are wanted; what is none is any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// By name, or by id.
    pub actor: Option<String>,
    /// `flag.create`; `flag.*` for all that begin so.
    pub action: Option<String>,
    pub target: Option<String>,
    /// By its key.
    pub environment: Option<String>,
    /// Microseconds, from this one on.
    pub from: Option<i64>,
    /// Microseconds, before this one.
    pub to: Option<i64>,
    pub change_set: Option<String>,
}

/// Newest first, from before the row `before`.
pub async fn page(
    read: &mut Connection,
    chain: &str,
    filter: &Filter,
    before: i64,
    limit: i64,
) -> Result<Vec<Row>, Refusal> {
    let (exact, prefix) = match &filter.action {
        Some(action) => match action.strip_suffix('*') {
            Some(prefix) => (None, Some(prefix)),
            None => (Some(action.as_str()), None),
        },
        None => (None, None),
    };
    let sql = if filter.target.is_some() { FILTERED_BY_TARGET } else { FILTERED };
    let rows = query_as(sql)
        .bind(chain)
        .bind(before)
        .bind(limit)
        .bind(&filter.target)
        .bind(&filter.actor)
        .bind(exact)
        .bind(prefix)
        .bind(&filter.environment)
        .bind(filter.from)
        .bind(filter.to)
        .bind(&filter.change_set);
    Ok(rows.fetch_all(read).await?)
}

/// Oldest first, from after the row `sequence`.
pub async fn after(
    read: &mut Connection,
    chain: &str,
    sequence: i64,
    limit: i64,
) -> Result<Vec<Row>, Refusal> {
    Ok(query_as(CHAIN).bind(chain).bind(sequence).bind(limit).fetch_all(read).await?)
}

/// Where a chain ends, by its namespace: sequence and hash.
pub async fn end(read: &mut Connection, chain: &str) -> Result<(i64, Vec<u8>), Refusal> {
    let end = query_as(END).bind(chain).fetch_optional(read).await?;
    end.ok_or(Refusal::NotFound("audit chain"))
}

/// Walks the whole chain to where the namespace says that it ends, so that rows taken off its end
/// show too. How many rows there are, or the number of the first one that is not as it was.
pub async fn verify(read: &mut Connection, chain: &str) -> Result<Result<i64, i64>, Refusal> {
    let walked = verify_with(read, chain, &[]).await?;
    Ok(walked.map(|walked| walked.rows).map_err(|broken| broken.first_bad()))
}

/// As `verify`, and whether it is what was signed.
pub async fn verify_with(
    read: &mut Connection,
    chain: &str,
    anchors: &[Anchor],
) -> Result<Result<Walked, Broken>, Refusal> {
    let mut walk = Walk::new(chain, anchors);
    loop {
        let rows = after(read, chain, walk.sequence, CHUNK).await?;
        if rows.is_empty() {
            return Ok(walk.end(Some(end(read, chain).await?)));
        }
        for row in rows {
            if let Err(broken) = walk.step(&row) {
                return Ok(Err(broken));
            }
        }
    }
}

/// A walk along a chain from its first row on; where the rows come from is the caller's business.
#[derive(Debug)]
pub struct Walk {
    chain: String,
    anchors: BTreeMap<i64, Vec<String>>,
    anchored: usize,
    pub sequence: i64,
    hash: Vec<u8>,
}

/// A chain that is as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    pub rows: i64,
    /// Anchors that say so.
    pub anchors: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("row {0} is not as it was written, is missing, or is of another chain")]
    Row(i64),
    #[error("row {0} is not the one that was signed: the chain was written anew")]
    Anchor(i64),
    #[error("the chain ends after row {rows}, and row {anchored} was signed: its end was cut off")]
    Short { rows: i64, anchored: i64 },
}

impl Broken {
    /// The first row that is not as it was.
    pub fn first_bad(self) -> i64 {
        match self {
            Broken::Row(row) | Broken::Anchor(row) => row,
            Broken::Short { rows, .. } => rows + 1,
        }
    }
}

impl Walk {
    /// Anchors of other chains are left aside; that those of this one were signed, the caller knows.
    pub fn new(chain: &str, anchors: &[Anchor]) -> Walk {
        let mut of_chain = BTreeMap::<i64, Vec<String>>::new();
        for anchor in anchors.iter().filter(|anchor| anchor.chain == chain) {
            of_chain.entry(anchor.sequence).or_default().push(anchor.hash.clone());
        }
        let (chain, hash) = (chain.to_owned(), vec![0u8; 32]);
        Walk { chain, anchors: of_chain, anchored: 0, sequence: 0, hash }
    }

    /// The next row.
    pub fn step(&mut self, row: &Row) -> Result<(), Broken> {
        if row.namespace_id != self.chain || !row.follows(self.sequence, &self.hash) {
            return Err(Broken::Row(self.sequence + 1));
        }
        self.sequence = row.sequence;
        self.hash.clone_from(&row.hash);
        if let Some(signed) = self.anchors.remove(&row.sequence) {
            if signed.iter().any(|hash| *hash != hex(&row.hash)) {
                return Err(Broken::Anchor(row.sequence));
            }
            self.anchored += signed.len();
        }
        Ok(())
    }

    /// After the last row; with where the chain is said to end, if anybody says.
    pub fn end(self, said: Option<(i64, Vec<u8>)>) -> Result<Walked, Broken> {
        if let Some((sequence, hash)) = said {
            match sequence == self.sequence {
                true if hash == self.hash => {}
                // The newest row was written anew, its hash with it.
                true => return Err(Broken::Row(self.sequence)),
                // Fewer rows than there were, or more.
                false => return Err(Broken::Row(self.sequence.min(sequence) + 1)),
            }
        }
        match self.anchors.last_key_value() {
            Some((anchored, _)) => Err(Broken::Short { rows: self.sequence, anchored: *anchored }),
            None => Ok(Walked { rows: self.sequence, anchors: self.anchored }),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
