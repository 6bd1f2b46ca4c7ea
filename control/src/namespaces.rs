//! Namespaces: the units of tenancy.

use serde_json::{Value, json};

use crate::audit::{self, Entry};
use crate::authorize::{NamespaceScope, Scope};
use crate::change::{Change, Expected, Passage, Touches};
use crate::environments;
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, check_name, check_slug};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, now_us, rfc3339};

/// Sized for one installation; each costs every list of them.
const NAMESPACES_MAX: i64 = 10_000;

const COLUMNS: &str =
    "SELECT id, key, name, version, created_at, updated_at FROM namespace WHERE key = $1";
const PAGE: &str = "SELECT id, key, name, version, created_at, updated_at FROM namespace \
    WHERE key > $1 ORDER BY key LIMIT $2";
const PAGE_OF: &str = "SELECT id, key, name, version, created_at, updated_at FROM namespace n \
    WHERE key > $1 AND EXISTS (SELECT 1 FROM role_binding b WHERE b.namespace_id = n.id \
    AND (b.user_id = $3 OR b.token_id = $3)) ORDER BY key LIMIT $2";
const COUNT: &str = "SELECT COUNT(*) FROM namespace";
const INSERT: &str = "INSERT INTO namespace (id, key, name, version, audit_sequence, audit_hash, \
    created_at, updated_at) VALUES ($1, $2, $3, 1, 0, $4, $5, $5) ON CONFLICT (key) DO NOTHING";
const RENAME: &str = "UPDATE namespace SET name = $2, version = version + 1, updated_at = $3 \
    WHERE id = $1";
const DELETE: &str = "DELETE FROM namespace WHERE id = $1";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Namespace {
    pub id: String,
    pub key: String,
    pub name: String,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

impl Namespace {
    fn state(&self) -> Value {
        json!({ "key": self.key, "name": self.name, "version": self.version,
            "createdAt": rfc3339(self.created_at), "updatedAt": rfc3339(self.updated_at) })
    }
}

/// Those that the caller has a role in.
pub async fn page(
    read: &mut Connection,
    scope: &Scope,
    page: &Page,
) -> Result<Paged<Namespace>, Refusal> {
    let rows = match scope.bound_to() {
        None => query_as(PAGE).bind(&page.after).bind(page.fetch()).fetch_all(read).await?,
        Some(who) => {
            let page_of = query_as(PAGE_OF).bind(&page.after).bind(page.fetch()).bind(who);
            page_of.fetch_all(read).await?
        }
    };
    Ok(page.cut(rows, |row: &Namespace| row.key.clone()))
}

pub async fn get(read: &mut Connection, scope: &NamespaceScope) -> Result<Namespace, Refusal> {
    let row = query_as(COLUMNS).bind(scope.key()).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("namespace"))
}

pub async fn create(
    tx: &mut Tx,
    scope: &Scope,
    key: &str,
    name: &str,
) -> Result<Namespace, Refusal> {
    check_slug("/key", key)?;
    check_name("/name", name)?;
    let count: i64 = query_scalar(COUNT).fetch_one(tx).await?;
    if count >= NAMESPACES_MAX {
        return Err(Refusal::TooMany { what: "namespaces", max: NAMESPACES_MAX as usize });
    }
    let done = query(INSERT)
        .bind(new_id())
        .bind(key)
        .bind(name)
        .bind(vec![0u8; 32])
        .bind(now_us())
        .execute(tx)
        .await?;
    if done == 0 {
        return Err(Refusal::Exists { what: "namespace", key: key.to_owned() });
    }
    let scope = scope.namespace(tx, key).await?;
    let change = Change::begin(tx, &scope, Touches::Nothing).await?;
    let made = get(tx, &scope).await?;
    let entry = Entry {
        action: "namespace.create",
        target: key.to_owned(),
        environment: None,
        before: None,
        after: Some(made.state()),
    };
    change.finish(tx, entry.clone()).await?;
    audit::record_instance(tx, scope.caller(), entry).await?;
    Ok(made)
}

pub async fn rename(
    tx: &mut Tx,
    scope: &NamespaceScope,
    expected: Expected,
    name: &str,
) -> Result<Namespace, Refusal> {
    check_name("/name", name)?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = get(tx, scope).await?;
    expected.check(before.version, || before.state())?;
    query(RENAME).bind(scope.id()).bind(name).bind(change.at).execute(tx).await?;
    let after = get(tx, scope).await?;
    let entry = Entry {
        action: "namespace.rename",
        target: scope.key().to_owned(),
        environment: None,
        before: Some(before.state()),
        after: Some(after.state()),
    };
    change.finish(tx, entry).await?;
    Ok(after)
}

/// With everything in it, once no edge answers for it. Its audit rows stay.
pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    expected: Expected,
) -> Result<(), Refusal> {
    let change = Change::begin_by(tx, scope, Touches::All, Passage::Gone).await?;
    let before = get(tx, scope).await?;
    expected.check(before.version, || before.state())?;
    for raised in &change.raised {
        environments::check_unserved(tx, raised).await?;
    }
    for raised in change.raised.clone() {
        environments::retire(tx, scope, &raised).await?;
    }
    let entry = Entry {
        action: "namespace.delete",
        target: scope.key().to_owned(),
        environment: None,
        before: Some(before.state()),
        after: None,
    };
    change.finish_deleting(tx, entry.clone()).await?;
    audit::retire(tx, scope.id()).await?;
    query(DELETE).bind(scope.id()).execute(tx).await?;
    audit::record_instance(tx, scope.caller(), entry).await
}
