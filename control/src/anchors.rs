//! Signed ends of audit chains: somebody who can write to the database can write a whole chain anew,
//! and cannot sign it.
//!
//! The leader signs the end of each chain that has grown, after so many rows or so much time, with the
//! key that heads are signed with. An anchor is kept in the database, in a file beside the signing key,
//! with the broker, and is told to webhooks: who alters the chain would have to alter all of these.
//! Nothing is signed that does not follow from the anchor before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rules::head::PublicKey;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::audit::{self, Row, hex};
use crate::bus::nats::NatsBus;
use crate::lead;
use crate::publisher::{PublishError, Publisher};
use crate::refusal::Refusal;
use crate::relay::jittered;
use crate::store::query::{query, query_as};
use crate::store::{Connection, now_us};

/// Chains of one pass; what is left waits for the next.
const PASS_MAX: i64 = 200;
/// Rows read at once.
const CHUNK: i64 = 1000;
/// What a signed text begins with: no head does.
const PREFIX: &str = "tidegate audit anchor\n";

const GROWN: &str = "SELECT c.id, c.name, c.audit_sequence, \
    COALESCE((SELECT MAX(a.sequence) FROM audit_anchor a WHERE a.namespace_id = c.id), 0) AS anchored \
    FROM (SELECT id, key AS name, audit_sequence FROM namespace \
        UNION ALL SELECT id, name, audit_sequence FROM audit_chain) AS c \
    WHERE c.audit_sequence > \
        COALESCE((SELECT MAX(a.sequence) FROM audit_anchor a WHERE a.namespace_id = c.id), 0) \
    AND (c.audit_sequence >= $2 + \
            COALESCE((SELECT MAX(a.sequence) FROM audit_anchor a WHERE a.namespace_id = c.id), 0) \
        OR EXISTS (SELECT 1 FROM audit r WHERE r.namespace_id = c.id AND r.at <= $1 AND r.sequence = 1 + \
            COALESCE((SELECT MAX(a.sequence) FROM audit_anchor a WHERE a.namespace_id = c.id), 0))) \
    ORDER BY c.id LIMIT $3";
const INSERT: &str = "INSERT INTO audit_anchor (namespace_id, sequence, hash, at, key_id, signature, \
    name) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
const OF_CHAIN: &str = "SELECT namespace_id, sequence, hash, at, key_id, signature, name \
    FROM audit_anchor WHERE namespace_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
const NEWEST: &str = "SELECT a.namespace_id, a.sequence, a.hash, a.at, a.key_id, a.signature, a.name \
    FROM audit_anchor a WHERE a.sequence = (SELECT MAX(b.sequence) FROM audit_anchor b \
    WHERE b.namespace_id = a.namespace_id) ORDER BY a.namespace_id";
const LAST: &str = "SELECT namespace_id, sequence, hash, at, key_id, signature, name \
    FROM audit_anchor WHERE namespace_id = $1 ORDER BY sequence DESC LIMIT 1";

/// What is signed. A contract: it is in files, on brokers and with receivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Anchor {
    /// The namespace's id, or "instance".
    pub chain: String,
    /// The namespace's key, or "instance".
    pub name: String,
    pub sequence: i64,
    /// Of that row, hexadecimal.
    pub hash: String,
    /// When it was signed, in microseconds since 1970.
    pub at: i64,
}

/// An anchor as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignedAnchor {
    /// The anchor as JSON. What is signed is "tidegate audit anchor", a line feed, and this text.
    pub anchor: String,
    /// The first 8 bytes of the public key's SHA-256, hexadecimal.
    pub key_id: String,
    /// Ed25519, base64.
    pub signature: String,
}

#[derive(Debug, sqlx::FromRow)]
struct Stored {
    namespace_id: String,
    sequence: i64,
    hash: Vec<u8>,
    at: i64,
    key_id: String,
    signature: Vec<u8>,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    #[error("it is signed with a key that is not known here")]
    UnknownKey,
    #[error("its signature does not hold")]
    BadSignature,
    #[error("it is malformed")]
    Malformed,
}

impl SignedAnchor {
    /// What it says, unverified.
    pub fn claims(&self) -> Option<Anchor> {
        serde_json::from_str(&self.anchor).ok()
    }

    pub fn verify(&self, trusted: &[PublicKey]) -> Result<Anchor, AnchorError> {
        let key = trusted.iter().find(|key| key.id() == self.key_id);
        let key = key.ok_or(AnchorError::UnknownKey)?;
        key.verify(format!("{PREFIX}{}", self.anchor).as_bytes(), &self.signature)
            .map_err(|_| AnchorError::BadSignature)?;
        self.claims().ok_or(AnchorError::Malformed)
    }
}

impl Stored {
    fn signed(self) -> SignedAnchor {
        let anchor = Anchor {
            chain: self.namespace_id,
            name: self.name,
            sequence: self.sequence,
            hash: hex(&self.hash),
            at: self.at,
        };
        SignedAnchor {
            anchor: text_of(&anchor),
            key_id: self.key_id,
            signature: String::from_utf8(self.signature).unwrap_or_default(),
        }
    }
}

fn text_of(anchor: &Anchor) -> String {
    serde_json::to_string(anchor).unwrap_or_default()
}

/// Those of a chain beyond row `after`, oldest first.
pub async fn of_chain(
    read: &mut Connection,
    chain: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<SignedAnchor>, Refusal> {
    let rows = query_as::<Stored>(OF_CHAIN).bind(chain).bind(after).bind(limit);
    Ok(rows.fetch_all(read).await?.into_iter().map(Stored::signed).collect())
}

/// All of a chain that one of `trusted` signed, from the database and from this control's own file:
/// who can write to the one need not be able to write to the other.
pub async fn trusted(
    read: &mut Connection,
    chain: &str,
    file: &Path,
    trusted: &[PublicKey],
) -> Result<Vec<Anchor>, Refusal> {
    let mut signed = in_file(file, chain).await?;
    let mut after = 0;
    loop {
        let more = of_chain(read, chain, after, CHUNK).await?;
        let Some(last) = more.last().and_then(SignedAnchor::claims) else { break };
        after = last.sequence;
        signed.extend(more);
    }
    Ok(signed.iter().filter_map(|anchor| anchor.verify(trusted).ok()).collect())
}

async fn in_file(file: &Path, chain: &str) -> Result<Vec<SignedAnchor>, Refusal> {
    let (file, chain) = (file.to_owned(), chain.to_owned());
    let read = move || match std::fs::read_to_string(&file) {
        Ok(text) => parse_lines(&text, Some(&chain)),
        Err(_) => Vec::new(),
    };
    let read = seam::blocking(read).await;
    read.map_err(|error| Refusal::Internal(format!("the file of anchors: {error}")))
}

/// Signed anchors, one JSON object a line; what is none is left aside.
pub fn parse_lines(text: &str, chain: Option<&str>) -> Vec<SignedAnchor> {
    let of_chain = |signed: &SignedAnchor| match (chain, signed.claims()) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(chain), Some(anchor)) => anchor.chain == chain,
    };
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(of_chain).collect()
}

/// When a chain that has grown is signed.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    pub rows: i64,
    pub age: Duration,
}

impl Default for Due {
    fn default() -> Due {
        Due { rows: 1000, age: Duration::from_secs(10 * 60) }
    }
}

pub struct Anchors {
    publisher: Arc<Publisher>,
    due: Due,
    file: PathBuf,
    broker: Option<Arc<NatsBus>>,
    /// Chains whose newest anchor the broker may lack; none: nobody knows.
    unsent: Option<BTreeSet<String>>,
    /// Chains that are not what was signed, so that it is said once.
    broken: BTreeMap<String, i64>,
}

impl Anchors {
    pub fn new(
        publisher: Arc<Publisher>,
        due: Due,
        file: PathBuf,
        broker: Option<Arc<NatsBus>>,
    ) -> Anchors {
        Anchors { publisher, due, file, broker, unsent: None, broken: BTreeMap::new() }
    }

    /// Until told to stop, while this control leads.
    pub async fn run(mut self, tick: Duration, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if self.publisher.lead.epoch().is_none() {
                self.unsent = None;
            } else if let Err(error) = self.pass().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "ends of audit chains were not signed; it is tried again");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(jittered(tick.min(self.due.age))) => {}
            }
        }
    }

    /// How many were signed.
    pub async fn pass(&mut self) -> Result<usize, PublishError> {
        let mut signed = 0;
        let grown: Vec<(String, String, i64, i64)> = {
            let mut read = self.publisher.store.read().await?;
            let age_us = i64::try_from(self.due.age.as_micros()).unwrap_or(i64::MAX);
            let until = now_us().saturating_sub(age_us);
            let grown = query_as(GROWN).bind(until).bind(self.due.rows).bind(PASS_MAX);
            grown.fetch_all(&mut read).await?
        };
        for (chain, name, _, _) in grown {
            if self.sign(&chain, &name).await? {
                signed += 1;
                if let Some(unsent) = &mut self.unsent {
                    unsent.insert(chain);
                }
            }
        }
        self.send().await;
        Ok(signed)
    }

    /// False if the chain is not what was signed before.
    async fn sign(&mut self, chain: &str, name: &str) -> Result<bool, PublishError> {
        let mut read = self.publisher.store.read().await?;
        let last: Option<Stored> = query_as(LAST).bind(chain).fetch_optional(&mut read).await?;
        let (mut sequence, mut hash) = match last {
            Some(last) => (last.sequence, last.hash),
            None => (0, vec![0u8; 32]),
        };
        let anchored = sequence;
        // The row that was signed is looked at too.
        let mut rows = audit::after(&mut read, chain, sequence - 1, CHUNK).await?;
        if sequence > 0 {
            let there = rows.first().filter(|row| row.sequence == sequence && row.hash == hash);
            if there.is_none_or(|row| !row.is_whole()) {
                self.found_broken(chain, name, sequence);
                return Ok(false);
            }
            rows.remove(0);
        }
        while !rows.is_empty() {
            for row in &rows {
                if !row.follows(sequence, &hash) {
                    self.found_broken(chain, name, sequence + 1);
                    return Ok(false);
                }
                (sequence, hash) = (row.sequence, row.hash.clone());
            }
            rows = audit::after(&mut read, chain, sequence, CHUNK).await?;
        }
        drop(read);
        if sequence == anchored {
            self.found_broken(chain, name, sequence + 1);
            return Ok(false);
        }
        self.broken.remove(chain);

        let epoch = self.publisher.lead.epoch().ok_or(PublishError::NotLeading)?;
        let anchor = Anchor {
            chain: chain.to_owned(),
            name: name.to_owned(),
            sequence,
            hash: hex(&hash),
            at: now_us(),
        };
        let text = text_of(&anchor);
        let (key_id, signature) = self.publisher.sign_message(format!("{PREFIX}{text}").as_bytes());
        let signed = SignedAnchor { anchor: text, key_id, signature };
        // First, so that what is in the database is in the file; one too many there is as true.
        self.append(&signed).await;
        let mut tx = lead::write(&self.publisher.store, epoch).await?;
        query(INSERT)
            .bind(chain)
            .bind(sequence)
            .bind(hash)
            .bind(anchor.at)
            .bind(&signed.key_id)
            .bind(signed.signature.as_bytes())
            .bind(name)
            .execute(&mut tx)
            .await?;
        tx.commit().await?;
        metrics::counter!("tidegate_control_audit_anchors_total").increment(1);
        Ok(true)
    }

    fn found_broken(&mut self, chain: &str, name: &str, row: i64) {
        metrics::counter!("tidegate_control_audit_broken_total").increment(1);
        if self.broken.insert(chain.to_owned(), row) != Some(row) {
            tracing::error!(
                chain,
                name,
                row,
                "the audit chain is not what was signed; nothing of it is signed any more"
            );
        }
    }

    async fn append(&self, signed: &SignedAnchor) {
        let file = self.file.clone();
        let line = format!("{}\n", serde_json::to_string(signed).unwrap_or_default());
        let append = move || {
            use std::os::unix::fs::OpenOptionsExt as _;
            let options = &mut std::fs::OpenOptions::new();
            let mut file = options.create(true).append(true).mode(0o600).open(file)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        match seam::blocking(append).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, file = %self.file.display(), "an anchor is not in the file");
            }
            Err(error) => tracing::error!(%error, "an anchor is not in the file"),
        }
    }

    /// The newest anchors to the broker; what it already has of a later row is left there.
    async fn send(&mut self) {
        let Some(broker) = &self.broker else { return };
        if self.unsent.as_ref().is_some_and(BTreeSet::is_empty) {
            return;
        }
        let newest = async {
            let mut read = self.publisher.store.read().await?;
            let rows: Vec<Stored> = query_as(NEWEST).fetch_all(&mut read).await?;
            Ok::<_, sqlx::Error>(rows)
        };
        let Ok(newest) = newest.await else { return };
        let mut left = BTreeSet::new();
        for stored in newest {
            if self.unsent.as_ref().is_some_and(|unsent| !unsent.contains(&stored.namespace_id)) {
                continue;
            }
            let (chain, sequence) = (stored.namespace_id.clone(), stored.sequence);
            let signed = stored.signed();
            match broker.put_anchor(&chain, &signed).await {
                Ok(None) => {}
                Ok(Some(there)) => {
                    tracing::error!(
                        chain,
                        broker = there,
                        database = sequence,
                        "the broker has an anchor of a later row; was the database restored?"
                    );
                }
                Err(error) => {
                    tracing::debug!(%error, chain, "an anchor is not with the broker yet");
                    left.insert(chain);
                }
            }
        }
        self.unsent = Some(left);
    }
}

impl Row {
    fn is_whole(&self) -> bool {
        self.follows(self.sequence - 1, &self.previous)
    }
}
