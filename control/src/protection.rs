//! What an environment demands of changes before they come: approvals by others than those who made
//! them. What comes past it is named in `change::Passage`; `Change::begin` asks.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Touches};
use crate::environments;
use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, rfc3339};

/// More than this many people are not found on the day that it matters.
pub const APPROVALS_MAX: i64 = 5;

const APPROVALS: &str = "SELECT approvals FROM protection WHERE environment_id = $1";
const ONE: &str = "SELECT approvals, version, updated_at FROM protection WHERE environment_id = $1";
const SET: &str = "INSERT INTO protection (environment_id, approvals, version, updated_at) \
    VALUES ($1, $2, 1, $3) ON CONFLICT (environment_id) DO UPDATE SET \
    approvals = excluded.approvals, version = protection.version + 1, \
    updated_at = excluded.updated_at";
const OF_ALL: &str = "SELECT e.id, e.key, COALESCE(p.approvals, 0) FROM environment e \
    LEFT JOIN protection p ON p.environment_id = e.id WHERE e.namespace_id = $1 ORDER BY e.id";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Protection {
    /// Of a change set before it may be applied; 0: changes need none.
    #[schema(minimum = 0, maximum = 5)]
    pub approvals: i64,
    /// Whoever made or edited a change does not approve it: always.
    pub exclude_author: bool,
    /// The ETag; 0 until it is first set.
    pub version: i64,
    pub updated_at: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewProtection {
    #[schema(minimum = 0, maximum = 5)]
    pub approvals: i64,
    /// May be said, and is true.
    #[serde(default)]
    pub exclude_author: Option<bool>,
}

/// How many a change needs there.
pub async fn approvals(read: &mut Connection, environment_id: &str) -> Result<i64, Refusal> {
    let approvals: Option<i64> =
        query_scalar(APPROVALS).bind(environment_id).fetch_optional(read).await?;
    Ok(approvals.unwrap_or(0))
}

/// Id, key and approvals of every environment, in the order of locks.
pub async fn of_all(
    read: &mut Connection,
    scope: &NamespaceScope,
) -> Result<Vec<(String, String, i64)>, Refusal> {
    Ok(query_as(OF_ALL).bind(scope.id()).fetch_all(read).await?)
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
) -> Result<Protection, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    find(read, &environment.id).await
}

async fn find(read: &mut Connection, environment_id: &str) -> Result<Protection, Refusal> {
    let row: Option<(i64, i64, i64)> =
        query_as(ONE).bind(environment_id).fetch_optional(read).await?;
    let (approvals, version, updated_at) = row.unwrap_or((0, 0, 0));
    let updated_at = (version > 0).then(|| rfc3339(updated_at));
    Ok(Protection { approvals, exclude_author: true, version, updated_at })
}

/// Change sets that wait are measured by what is demanded when they are applied.
pub async fn set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    expected: Expected,
    new: NewProtection,
) -> Result<Protection, Refusal> {
    if !(0..=APPROVALS_MAX).contains(&new.approvals) {
        let message = format!("0 to {APPROVALS_MAX} approvals");
        return Err(Refusal::invalid("/approvals", message));
    }
    if new.exclude_author == Some(false) {
        let message = "whoever made a change never approves it";
        return Err(Refusal::invalid("/excludeAuthor", message));
    }
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = find(tx, &environment.id).await?;
    expected.check(before.version, || json!(before))?;
    query(SET).bind(&environment.id).bind(new.approvals).bind(change.at).execute(tx).await?;
    let after = find(tx, &environment.id).await?;
    let shown = |of: &Protection| json!({ "approvals": of.approvals, "excludeAuthor": true });
    let entry = Entry {
        action: "environment.protect",
        target: environment.key.clone(),
        environment: Some(environment.key),
        before: Some(shown(&before)),
        after: Some(shown(&after)),
    };
    change.finish(tx, entry).await?;
    Ok(after)
}
