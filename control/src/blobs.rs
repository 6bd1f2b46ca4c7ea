//! Snapshots and id lists by their digest. Who may see one is asked by who shows it.

use bytes::Bytes;
use rules::blob::Digest;

use crate::parsed::Parsed;
use crate::store::query::query_scalar;
use crate::store::{Connection, Store};

const BLOB: &str = "SELECT bytes FROM blob WHERE digest = $1";

pub async fn stored(store: &Store, digest: Digest) -> Result<Option<Bytes>, sqlx::Error> {
    if let Some(bytes) = store.parsed().blob(digest) {
        return Ok(Some(bytes));
    }
    find(&mut *store.read().await?, store.parsed(), digest).await
}

pub async fn find(
    read: &mut Connection,
    parsed: &Parsed,
    digest: Digest,
) -> Result<Option<Bytes>, sqlx::Error> {
    if let Some(bytes) = parsed.blob(digest) {
        return Ok(Some(bytes));
    }
    let bytes: Option<Vec<u8>> =
        query_scalar(BLOB).bind(digest.to_string()).fetch_optional(read).await?;
    Ok(bytes.map(Bytes::from))
}
