//! Answers of writes that named an `Idempotency-Key`, kept in the write's own transaction for a
//! day: the same request again gets the same answer, and nothing is done twice.

use sha2::{Digest as _, Sha256};

use crate::refusal::Refusal;
use crate::store::query::{query, query_as};
use crate::store::{Connection, now_us};

pub const KEY_BYTES_MAX: usize = 255;
const AGE_US: i64 = 24 * 60 * 60 * 1_000_000;
/// An answer that is longer is not kept, and its request is done again.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Of one actor; the oldest go first.
const KEPT_MAX: i64 = 10_000;

const FIND: &str = "SELECT request_hash, status, etag, location, body FROM idempotency \
    WHERE actor = $1 AND key = $2 AND created_at >= $3";
const EXPIRE: &str = "DELETE FROM idempotency WHERE created_at < $1";
const CROWD: &str = "DELETE FROM idempotency WHERE actor = $1 AND created_at < (SELECT created_at \
    FROM idempotency WHERE actor = $1 ORDER BY created_at DESC LIMIT 1 OFFSET $2)";
const KEEP: &str = "INSERT INTO idempotency (actor, key, request_hash, status, etag, location, \
    body, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub actor: String,
    pub key: String,
    pub hash: Vec<u8>,
}

pub fn request_hash(method: &str, target: &str, if_match: &str, body: &[u8]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for part in [method.as_bytes(), target.as_bytes(), if_match.as_bytes(), body] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_vec()
}

pub async fn find(tx: &mut Connection, request: &Request) -> Result<Option<Answer>, Refusal> {
    type Row = (Vec<u8>, i64, Option<String>, Option<String>, Vec<u8>);
    let row: Option<Row> = query_as(FIND)
        .bind(&request.actor)
        .bind(&request.key)
        .bind(now_us() - AGE_US)
        .fetch_optional(tx)
        .await?;
    let Some((hash, status, etag, location, body)) = row else { return Ok(None) };
    if hash != request.hash {
        return Err(Refusal::KeyReused);
    }
    Ok(Some(Answer { status: u16::try_from(status).unwrap_or(500), etag, location, body }))
}

pub async fn keep(tx: &mut Connection, request: &Request, answer: &Answer) -> Result<(), Refusal> {
    let now = now_us();
    query(EXPIRE).bind(now - AGE_US).execute(&mut *tx).await?;
    query(CROWD).bind(&request.actor).bind(KEPT_MAX).execute(&mut *tx).await?;
    if answer.body.len() > BODY_BYTES_MAX {
        return Ok(());
    }
    query(KEEP)
        .bind(&request.actor)
        .bind(&request.key)
        .bind(&request.hash)
        .bind(i64::from(answer.status))
        .bind(&answer.etag)
        .bind(&answer.location)
        .bind(&answer.body)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}
