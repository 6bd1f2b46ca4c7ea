//! API keys: of environments (server, browser) and of edges. Shown once, kept as their hashes.

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use serde_json::json;

use crate::audit::{self, Entry};
use crate::authorize::{NamespaceScope, Scope};
use crate::change::{Change, Touches};
use crate::environments;
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, check_name, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, now_us};

const EDGE_KEYS_MAX: i64 = 10_000;
const ORIGINS_MAX: usize = 100;

const PAGE: &str = "SELECT id, kind, name, origins, created_at FROM api_key \
    WHERE environment_id = $1 AND id > $2 ORDER BY id LIMIT $3";
const ONE: &str = "SELECT id, kind, name, origins, created_at FROM api_key \
    WHERE environment_id = $1 AND id = $2";
const COUNT: &str = "SELECT COUNT(*) FROM api_key WHERE environment_id = $1";
const INSERT: &str = "INSERT INTO api_key (id, environment_id, kind, name, origins, hash, \
    created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const DELETE: &str = "DELETE FROM api_key WHERE environment_id = $1 AND id = $2";

const EDGE_PAGE: &str = "SELECT id, name, all_namespaces, created_at FROM edge_key \
    WHERE id > $1 ORDER BY id LIMIT $2";
const EDGE_NAMESPACES: &str = "SELECT n.key FROM edge_key_namespace e \
    JOIN namespace n ON n.id = e.namespace_id WHERE e.edge_key_id = $1 ORDER BY n.id";
const EDGE_COUNT: &str = "SELECT COUNT(*) FROM edge_key";
const EDGE_INSERT: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at) \
    VALUES ($1, $2, $3, $4, $5)";
const EDGE_FIRST: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING";
const EDGE_ADD: &str = "INSERT INTO edge_key_namespace (edge_key_id, namespace_id) VALUES ($1, $2)";
const EDGE_DELETE: &str = "DELETE FROM edge_key WHERE id = $1";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct KeyRow {
    pub id: String,
    pub kind: String,
    pub name: String,
    pub origins: String,
    pub created_at: i64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct EdgeKeyRow {
    pub id: String,
    pub name: String,
    pub all_namespaces: bool,
    pub created_at: i64,
}

pub fn random(kind: KeyKind) -> Result<ApiKey, Refusal> {
    let mut entropy = [0u8; KEY_ENTROPY_BYTES];
    seam::random(&mut entropy)
        .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    Ok(ApiKey::new(kind, &entropy))
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    page: &Page,
) -> Result<Paged<KeyRow>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    page.of(read, PAGE, &environment.id, |row: &KeyRow| row.id.clone()).await
}

/// The key, which is nowhere else, and its row.
pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    kind: KeyKind,
    name: &str,
    origins: &[String],
) -> Result<(ApiKey, KeyRow), Refusal> {
    check_name("/name", name)?;
    check_origins(kind, origins)?;
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let count: i64 = query_scalar(COUNT).bind(&environment.id).fetch_one(tx).await?;
    if count >= rules::limits::KEYS_MAX as i64 {
        return Err(Refusal::TooMany { what: "keys", max: rules::limits::KEYS_MAX });
    }
    let key = random(kind)?;
    let row = KeyRow {
        id: key.id.clone(),
        kind: kind.name().to_owned(),
        name: name.to_owned(),
        origins: written("list of origins", &origins)?,
        created_at: change.at,
    };
    query(INSERT)
        .bind(&row.id)
        .bind(&environment.id)
        .bind(&row.kind)
        .bind(&row.name)
        .bind(&row.origins)
        .bind(key.hash().to_vec())
        .bind(row.created_at)
        .execute(tx)
        .await?;
    let entry = Entry {
        action: "key.create",
        target: row.id.clone(),
        environment: Some(environment.key),
        before: None,
        after: Some(json!({ "kind": row.kind, "name": row.name, "origins": origins })),
    };
    change.finish(tx, entry).await?;
    Ok((key, row))
}

fn check_origins(kind: KeyKind, origins: &[String]) -> Result<(), Refusal> {
    if kind != KeyKind::Browser && !origins.is_empty() {
        return Err(Refusal::invalid("/origins", "only browser keys have origins"));
    }
    if origins.len() > ORIGINS_MAX {
        return Err(Refusal::invalid("/origins", format!("the limit is {ORIGINS_MAX}")));
    }
    for (index, origin) in origins.iter().enumerate() {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let exact = rest.is_some_and(|rest| {
            !rest.is_empty()
                && rest.len() <= 255
                && !rest.contains(['/', '*', '?', '#', '@', ' '])
                && rest.is_ascii()
        });
        if !exact {
            return Err(Refusal::invalid(
                format!("/origins/{index}"),
                "an origin is exact: scheme, host and perhaps port, as https://app.example.com",
            ));
        }
    }
    Ok(())
}

pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    id: &str,
) -> Result<(), Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let row: Option<KeyRow> =
        query_as(ONE).bind(&environment.id).bind(id).fetch_optional(tx).await?;
    let row = row.ok_or(Refusal::NotFound("key"))?;
    query(DELETE).bind(&environment.id).bind(id).execute(tx).await?;
    let entry = Entry {
        action: "key.delete",
        target: id.to_owned(),
        environment: Some(environment.key),
        before: Some(json!({ "kind": row.kind, "name": row.name })),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// Which namespaces a new edge key may see.
#[derive(Debug, Clone)]
pub enum Sees {
    All,
    Namespaces(Vec<String>),
}

pub async fn edge_page(
    read: &mut Connection,
    _scope: &Scope,
    page: &Page,
) -> Result<Paged<(EdgeKeyRow, Vec<String>)>, Refusal> {
    let rows: Vec<EdgeKeyRow> =
        query_as(EDGE_PAGE).bind(&page.after).bind(page.fetch()).fetch_all(&mut *read).await?;
    let paged = page.cut(rows, |row| row.id.clone());
    let mut items = Vec::with_capacity(paged.items.len());
    for row in paged.items {
        let namespaces = query_scalar(EDGE_NAMESPACES).bind(&row.id).fetch_all(&mut *read).await?;
        items.push((row, namespaces));
    }
    Ok(Paged { items, next_cursor: paged.next_cursor })
}

/// Recorded in the audit of the installation and of each namespace that it names.
pub async fn edge_create(
    tx: &mut Tx,
    scope: &Scope,
    name: &str,
    sees: &Sees,
) -> Result<(ApiKey, EdgeKeyRow), Refusal> {
    check_name("/name", name)?;
    let count: i64 = query_scalar(EDGE_COUNT).fetch_one(tx).await?;
    if count >= EDGE_KEYS_MAX {
        return Err(Refusal::TooMany { what: "edge keys", max: EDGE_KEYS_MAX as usize });
    }
    let key = random(KeyKind::Edge)?;
    let row = EdgeKeyRow {
        id: key.id.clone(),
        name: name.to_owned(),
        all_namespaces: matches!(sees, Sees::All),
        created_at: now_us(),
    };
    query(EDGE_INSERT)
        .bind(&row.id)
        .bind(&row.name)
        .bind(row.all_namespaces)
        .bind(key.hash().to_vec())
        .bind(row.created_at)
        .execute(tx)
        .await?;
    if let Sees::Namespaces(keys) = sees {
        if keys.is_empty() {
            return Err(Refusal::invalid("/namespaces", "name at least one, or \"all\""));
        }
        let mut scopes = Vec::new();
        for (index, namespace) in keys.iter().enumerate() {
            let pointer = format!("/namespaces/{index}");
            let unknown = |refusal| match refusal {
                Refusal::NotFound(_) => {
                    Refusal::invalid(pointer, format!("there is no namespace {namespace:?}"))
                }
                other => other,
            };
            scopes.push(scope.namespace(tx, namespace).await.map_err(unknown)?);
        }
        scopes.sort_by(|one, next| one.id().cmp(next.id()));
        scopes.dedup_by(|one, next| one.id() == next.id());
        for scope in scopes {
            let change = Change::begin(tx, &scope, Touches::Nothing).await?;
            query(EDGE_ADD).bind(&row.id).bind(scope.id()).execute(tx).await?;
            let entry = Entry {
                action: "edge-key.create",
                target: row.id.clone(),
                environment: None,
                before: None,
                after: Some(json!({ "name": row.name })),
            };
            change.finish(tx, entry).await?;
        }
    }
    let namespaces = match sees {
        Sees::All => json!("all"),
        Sees::Namespaces(keys) => json!(keys),
    };
    let entry = Entry {
        action: "edge-key.create",
        target: row.id.clone(),
        environment: None,
        before: None,
        after: Some(json!({ "name": row.name, "namespaces": namespaces })),
    };
    audit::record_instance(tx, scope.caller(), entry).await?;
    tracing::info!(actor = scope.actor(), edge_key = %row.id, "an edge key was made");
    Ok((key, row))
}

/// The edge key that a new database begins with. Two controls may bring it at once.
pub async fn edge_first(tx: &mut Tx, key: &ApiKey) -> Result<(), Refusal> {
    query(EDGE_FIRST)
        .bind(&key.id)
        .bind("first")
        .bind(true)
        .bind(key.hash().to_vec())
        .bind(now_us())
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn edge_delete(tx: &mut Tx, scope: &Scope, id: &str) -> Result<(), Refusal> {
    let namespaces: Vec<String> = query_scalar(EDGE_NAMESPACES).bind(id).fetch_all(tx).await?;
    for namespace in namespaces {
        let scope = scope.namespace(tx, &namespace).await?;
        let change = Change::begin(tx, &scope, Touches::Nothing).await?;
        let entry = Entry {
            action: "edge-key.delete",
            target: id.to_owned(),
            environment: None,
            before: None,
            after: None,
        };
        change.finish(tx, entry).await?;
    }
    let done = query(EDGE_DELETE).bind(id).execute(tx).await?;
    match done {
        0 => Err(Refusal::NotFound("edge key")),
        _ => {
            let entry = Entry {
                action: "edge-key.delete",
                target: id.to_owned(),
                environment: None,
                before: None,
                after: None,
            };
            audit::record_instance(tx, scope.caller(), entry).await?;
            tracing::info!(actor = scope.actor(), edge_key = id, "an edge key was deleted");
            Ok(())
        }
    }
}
