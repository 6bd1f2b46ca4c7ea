//! Tokens of the admin API: personal ones act as one person, within scopes; service tokens are callers
//! of their own, with roles in one namespace. Shown once, kept as their hashes.

use rules::keys::{ApiKey, KeyKind};
use serde_json::json;

use crate::audit::Entry;
use crate::authorize::callers::Caller;
use crate::authorize::{NamespaceScope, Permission, Permissions};
use crate::change::{Change, Touches};
use crate::members::{self, Holder, Roles};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, check_name, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, now_us, rfc3339};
use crate::users;

pub const DAYS_DEFAULT: i64 = 90;
pub const DAYS_MAX: i64 = 366;
const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;
/// Of one person, and of one namespace.
const TOKENS_MAX: i64 = 200;

const OF_USER: &str = "SELECT id, name, scopes, expires_at, last_used_at, created_by, created_at \
    FROM access_token WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3";
const OF_NAMESPACE: &str = "SELECT id, name, scopes, expires_at, last_used_at, created_by, \
    created_at FROM access_token WHERE namespace_id = $1 AND id > $2 ORDER BY id LIMIT $3";
const ONE_OF_NAMESPACE: &str = "SELECT id, name, scopes, expires_at, last_used_at, created_by, \
    created_at FROM access_token WHERE namespace_id = $1 AND id = $2";
const COUNT_USER: &str = "SELECT COUNT(*) FROM access_token WHERE user_id = $1";
const COUNT_NAMESPACE: &str = "SELECT COUNT(*) FROM access_token WHERE namespace_id = $1";
const INSERT: &str = "INSERT INTO access_token (id, user_id, namespace_id, name, scopes, hash, \
    expires_at, created_by, created_at, maker_key) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const DELETE_USER: &str = "DELETE FROM access_token WHERE user_id = $1 AND id = $2";
const DELETE: &str = "DELETE FROM access_token WHERE namespace_id = $1 AND id = $2";

/// What a token may at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenScope {
    Read,
    Write,
    Approve,
    Kill,
    Admin,
}

impl TokenScope {
    pub const ALL: [TokenScope; 5] = [
        TokenScope::Read,
        TokenScope::Write,
        TokenScope::Approve,
        TokenScope::Kill,
        TokenScope::Admin,
    ];

    pub fn name(self) -> &'static str {
        match self {
            TokenScope::Read => "read",
            TokenScope::Write => "write",
            TokenScope::Approve => "approve",
            TokenScope::Kill => "kill",
            TokenScope::Admin => "admin",
        }
    }

    fn permissions(self) -> Permissions {
        use Permission::{Account, Approve, Configure, Kill, Read, Write};
        match self {
            TokenScope::Read => Permissions::of(&[Account, Read]),
            TokenScope::Write => Permissions::of(&[Account, Read, Write, Configure]),
            TokenScope::Approve => Permissions::of(&[Account, Read, Approve]),
            TokenScope::Kill => Permissions::of(&[Account, Read, Kill]),
            TokenScope::Admin => Permissions::ALL,
        }
    }
}

/// What stored scopes allow; one that this build does not know allows nothing.
pub fn allowed(scopes: &str) -> Result<Permissions, Refusal> {
    let names: Vec<String> = stored("list of scopes", scopes)?;
    let known =
        TokenScope::ALL.into_iter().filter(|scope| names.iter().any(|name| name == scope.name()));
    Ok(known.fold(Permissions::NONE, |all, scope| all.and(scope.permissions())))
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub scopes: String,
    pub expires_at: Option<i64>,
    pub last_used_at: Option<i64>,
    pub created_by: String,
    pub created_at: i64,
}

impl Token {
    pub fn scopes(&self) -> Vec<String> {
        stored("list of scopes", &self.scopes).unwrap_or_default()
    }
}

fn expiry(days: Option<i64>, now: i64) -> Result<i64, Refusal> {
    match days.unwrap_or(DAYS_DEFAULT) {
        days @ 1..=DAYS_MAX => Ok(now + days * DAY_US),
        _ => Err(Refusal::invalid("/expiresInDays", format!("1 to {DAYS_MAX} days"))),
    }
}

fn named(name: &str) -> Result<(), Refusal> {
    check_name("/name", name)?;
    match name.trim().is_empty() {
        true => Err(Refusal::invalid("/name", "say what it is for")),
        false => Ok(()),
    }
}

pub async fn personal_page(
    read: &mut Connection,
    user_id: &str,
    page: &Page,
) -> Result<Paged<Token>, Refusal> {
    page.of(read, OF_USER, user_id, |row: &Token| row.id.clone()).await
}

/// The token, which is nowhere else, and its row.
pub async fn personal(
    tx: &mut Tx,
    caller: &Caller,
    user_id: &str,
    name: &str,
    scopes: &[TokenScope],
    days: Option<i64>,
) -> Result<(ApiKey, Token), Refusal> {
    named(name)?;
    let count: i64 = query_scalar(COUNT_USER).bind(user_id).fetch_one(tx).await?;
    if count >= TOKENS_MAX {
        return Err(Refusal::TooMany { what: "tokens", max: TOKENS_MAX as usize });
    }
    let mut names: Vec<&str> = TokenScope::ALL
        .into_iter()
        .filter(|scope| scopes.contains(scope))
        .map(TokenScope::name)
        .collect();
    names.dedup();
    if names.is_empty() {
        return Err(Refusal::invalid("/scopes", "name at least one"));
    }
    let now = now_us();
    let (key, token) = made(KeyKind::Personal, name, &names, expiry(days, now)?, caller, now)?;
    insert(tx, &key, &token, Owner::User(user_id)).await?;
    let after = json!({ "name": token.name, "scopes": names,
        "expiresAt": token.expires_at.map(rfc3339) });
    users::record(tx, caller, "token.create", &token.id, None, Some(after)).await?;
    Ok((key, token))
}

fn made(
    kind: KeyKind,
    name: &str,
    scopes: &[&str],
    expires_at: i64,
    caller: &Caller,
    now: i64,
) -> Result<(ApiKey, Token), Refusal> {
    let key = crate::keys::random(kind)?;
    let token = Token {
        id: key.id.clone(),
        name: name.to_owned(),
        scopes: written("list of scopes", &scopes)?,
        expires_at: Some(expires_at),
        last_used_at: None,
        created_by: caller.name.clone(),
        created_at: now,
    };
    Ok((key, token))
}

/// Whose a token is.
enum Owner<'a> {
    User(&'a str),
    /// Whoever makes it answers for what it does.
    Namespace {
        id: &'a str,
        maker_key: &'a str,
    },
}

async fn insert(tx: &mut Tx, key: &ApiKey, token: &Token, owner: Owner<'_>) -> Result<(), Refusal> {
    let (user_id, namespace_id, maker_key) = match owner {
        Owner::User(id) => (Some(id), None, None),
        Owner::Namespace { id, maker_key } => (None, Some(id), Some(maker_key)),
    };
    query(INSERT)
        .bind(&token.id)
        .bind(user_id)
        .bind(namespace_id)
        .bind(&token.name)
        .bind(&token.scopes)
        .bind(key.hash().to_vec())
        .bind(token.expires_at)
        .bind(&token.created_by)
        .bind(token.created_at)
        .bind(maker_key)
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn personal_delete(
    tx: &mut Tx,
    caller: &Caller,
    user_id: &str,
    id: &str,
) -> Result<(), Refusal> {
    match query(DELETE_USER).bind(user_id).bind(id).execute(tx).await? {
        0 => Err(Refusal::NotFound("token")),
        _ => users::record(tx, caller, "token.delete", id, None, None).await,
    }
}

/// With their roles.
pub async fn service_page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<(Token, Roles)>, Refusal> {
    let paged = page.of(read, OF_NAMESPACE, scope.id(), |row: &Token| row.id.clone()).await?;
    let mut items = Vec::with_capacity(paged.items.len());
    for token in paged.items {
        let roles = members::roles(read, scope, &Holder::Token(token.id.clone())).await?;
        items.push((token, roles));
    }
    Ok(Paged { items, next_cursor: paged.next_cursor })
}

pub async fn service(
    tx: &mut Tx,
    scope: &NamespaceScope,
    name: &str,
    roles: &Roles,
    days: Option<i64>,
) -> Result<(ApiKey, Token), Refusal> {
    named(name)?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let count: i64 = query_scalar(COUNT_NAMESPACE).bind(scope.id()).fetch_one(tx).await?;
    if count >= TOKENS_MAX {
        return Err(Refusal::TooMany { what: "tokens", max: TOKENS_MAX as usize });
    }
    if roles.is_none() {
        return Err(Refusal::invalid("/role", "a token without any role may do nothing"));
    }
    let caller = scope.caller().clone();
    let until = expiry(days, change.at)?;
    // What it may is what its roles give.
    let scopes = [TokenScope::Admin.name()];
    let (key, token) = made(KeyKind::Service, name, &scopes, until, &caller, change.at)?;
    let maker_key = caller.responsible();
    insert(tx, &key, &token, Owner::Namespace { id: scope.id(), maker_key: &maker_key }).await?;
    let holder = Holder::Token(token.id.clone());
    members::give(tx, scope, &holder, &Roles::default(), roles, change.at).await?;
    let entry = Entry {
        action: "token.create",
        target: token.id.clone(),
        environment: None,
        before: None,
        after: Some(json!({ "name": token.name, "roles": roles.state(),
            "expiresAt": token.expires_at.map(rfc3339) })),
    };
    change.finish(tx, entry).await?;
    Ok((key, token))
}

pub async fn service_delete(tx: &mut Tx, scope: &NamespaceScope, id: &str) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let token: Option<Token> =
        query_as(ONE_OF_NAMESPACE).bind(scope.id()).bind(id).fetch_optional(tx).await?;
    let token = token.ok_or(Refusal::NotFound("token"))?;
    // Who could not have given its roles does not take them away.
    let holder = Holder::Token(token.id.clone());
    let roles = members::roles(tx, scope, &holder).await?;
    members::give(tx, scope, &holder, &roles, &Roles::default(), change.at).await?;
    query(DELETE).bind(scope.id()).bind(id).execute(tx).await?;
    let entry = Entry {
        action: "token.delete",
        target: token.id,
        environment: None,
        before: Some(json!({ "name": token.name, "roles": roles.state() })),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}
