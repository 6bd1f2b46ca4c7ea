//! API keys: of environments (server, browser) and of edges. Shown once, kept as their hashes.
//!
//! A key is rotated by making its successor, with the same settings, while it goes on being valid for
//! a while. The two are of one line, and no line has more than two valid keys. Edges know from their
//! snapshot when a key expires, so they need nobody to tell them once it does.

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use serde_json::{Value, json};

use crate::audit::{self, Entry};
use crate::authorize::{NamespaceScope, Scope};
use crate::change::{Change, Passage, Touches};
use crate::environments;
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, check_name, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, now_us, rfc3339};

const EDGE_KEYS_MAX: i64 = 10_000;
const ORIGINS_MAX: usize = 100;
/// More is no limit to any edge.
pub const PER_SECOND_MAX: u32 = 1_000_000;
/// Valid keys of one line: the one that is replaced, and its successor.
const LIVE_MAX: usize = 2;
pub const OVERLAP_SECONDS_DEFAULT: i64 = 24 * 60 * 60;
/// Whoever needs longer does not rotate.
pub const OVERLAP_SECONDS_MAX: i64 = 90 * 24 * 60 * 60;
/// An expired key is shown for as long, so that whoever still comes with it can be told which it was.
const EXPIRED_KEPT_US: i64 = 30 * 24 * 60 * 60 * 1_000_000;

const PAGE: &str = "SELECT k.id, k.kind, k.name, k.origins, k.created_at, k.expires_at, \
    k.per_second, k.line, k.replaces, u.last_minute FROM api_key k \
    LEFT JOIN api_key_use u ON u.api_key_id = k.id \
    WHERE k.environment_id = $1 AND k.id > $2 ORDER BY k.id LIMIT $3";
const ONE: &str = "SELECT k.id, k.kind, k.name, k.origins, k.created_at, k.expires_at, \
    k.per_second, k.line, k.replaces, u.last_minute FROM api_key k \
    LEFT JOIN api_key_use u ON u.api_key_id = k.id WHERE k.environment_id = $1 AND k.id = $2";
const LIVE: &str = "SELECT id FROM api_key WHERE environment_id = $1 AND (id = $2 OR line = $2) \
    AND (expires_at IS NULL OR expires_at > $3) ORDER BY id";
const COUNT: &str = "SELECT COUNT(*) FROM api_key WHERE environment_id = $1";
const INSERT: &str = "INSERT INTO api_key (id, environment_id, kind, name, origins, hash, \
    created_at, expires_at, per_second, line, replaces) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
const UPDATE: &str = "UPDATE api_key SET name = $1, origins = $2, expires_at = $3, per_second = $4 \
    WHERE environment_id = $5 AND id = $6";
const DELETE: &str = "DELETE FROM api_key WHERE environment_id = $1 AND id = $2";
const FORGET: &str = "DELETE FROM api_key WHERE environment_id = $1 AND expires_at < $2";

const EDGE_PAGE: &str = "SELECT id, name, all_namespaces, created_at, expires_at, line, replaces, \
    last_used_at FROM edge_key WHERE id > $1 ORDER BY id LIMIT $2";
const EDGE_ONE: &str = "SELECT id, name, all_namespaces, created_at, expires_at, line, replaces, \
    last_used_at FROM edge_key WHERE id = $1";
const EDGE_NAMESPACES: &str = "SELECT n.key FROM edge_key_namespace e \
    JOIN namespace n ON n.id = e.namespace_id WHERE e.edge_key_id = $1 ORDER BY n.id";
const EDGE_COUNT: &str = "SELECT COUNT(*) FROM edge_key";
const EDGE_LIVE: &str = "SELECT id FROM edge_key WHERE (id = $1 OR line = $1) \
    AND (expires_at IS NULL OR expires_at > $2) ORDER BY id";
/// Also takes the row's lock: of two rotations at once the second sees what the first made.
const EDGE_LOCK: &str = "UPDATE edge_key SET name = name WHERE id = $1 OR line = $1";
const EDGE_INSERT: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at, \
    expires_at, line, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const EDGE_FIRST: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING";
const EDGE_ADD: &str = "INSERT INTO edge_key_namespace (edge_key_id, namespace_id) VALUES ($1, $2)";
const EDGE_UPDATE: &str = "UPDATE edge_key SET name = $1, expires_at = $2 WHERE id = $3";
const EDGE_USED: &str = "UPDATE edge_key SET last_used_at = $1 \
    WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $3)";
const EDGE_DELETE: &str = "DELETE FROM edge_key WHERE id = $1";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct KeyRow {
    pub id: String,
    pub kind: String,
    pub name: String,
    pub origins: String,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub per_second: Option<i64>,
    /// The first key of its line; none: itself.
    pub line: Option<String>,
    pub replaces: Option<String>,
    pub last_minute: Option<i64>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct EdgeKeyRow {
    pub id: String,
    pub name: String,
    pub all_namespaces: bool,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub line: Option<String>,
    pub replaces: Option<String>,
    pub last_used_at: Option<i64>,
}

/// What a new key is to be.
#[derive(Debug, Clone)]
pub struct NewKey<'a> {
    pub kind: KeyKind,
    pub name: &'a str,
    pub origins: &'a [String],
    /// Microseconds.
    pub expires_at: Option<i64>,
    /// Requests at one edge.
    pub per_second: Option<u32>,
}

/// What is said of it; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct KeyChanges {
    pub name: Option<String>,
    pub origins: Option<Vec<String>>,
    pub expires_at: Option<Option<i64>>,
    pub per_second: Option<Option<u32>>,
}

/// For how long the old key stays valid, and until when the new one is.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub overlap_seconds: i64,
    /// Unsaid: for as long as the old one was made for.
    pub expires_at: Option<i64>,
}

impl KeyRow {
    /// As the audit has it.
    fn said(&self) -> Value {
        let origins: Value = serde_json::from_str(&self.origins).unwrap_or_default();
        json!({ "kind": self.kind, "name": self.name, "origins": origins,
            "expiresAt": self.expires_at.map(rfc3339), "ratePerSecond": self.per_second,
            "replaces": self.replaces })
    }

    fn line(&self) -> &str {
        self.line.as_deref().unwrap_or(&self.id)
    }
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

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    id: &str,
) -> Result<KeyRow, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    one(read, &environment.id, id).await
}

async fn one(read: &mut Connection, environment_id: &str, id: &str) -> Result<KeyRow, Refusal> {
    let row = query_as(ONE).bind(environment_id).bind(id).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("key"))
}

/// The key, which is nowhere else, and its row.
pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    new: NewKey<'_>,
) -> Result<(ApiKey, KeyRow), Refusal> {
    check_name("/name", new.name)?;
    check_origins(new.kind, new.origins)?;
    check_terms(new.expires_at, new.per_second)?;
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin_by(tx, scope, Touches::One(&environment.id), Passage::Keys).await?;
    make_room(tx, &environment.id, change.at).await?;
    let key = random(new.kind)?;
    let row = KeyRow {
        id: key.id.clone(),
        kind: new.kind.name().to_owned(),
        name: new.name.to_owned(),
        origins: written("list of origins", &new.origins)?,
        created_at: change.at,
        expires_at: new.expires_at,
        per_second: new.per_second.map(i64::from),
        line: None,
        replaces: None,
        last_minute: None,
    };
    insert(tx, &environment.id, &key, &row).await?;
    let entry = Entry {
        action: "key.create",
        target: row.id.clone(),
        environment: Some(environment.key),
        before: None,
        after: Some(row.said()),
    };
    change.finish(tx, entry).await?;
    Ok((key, row))
}

async fn insert(
    tx: &mut Tx,
    environment_id: &str,
    key: &ApiKey,
    row: &KeyRow,
) -> Result<(), Refusal> {
    query(INSERT)
        .bind(&row.id)
        .bind(environment_id)
        .bind(&row.kind)
        .bind(&row.name)
        .bind(&row.origins)
        .bind(key.hash().to_vec())
        .bind(row.created_at)
        .bind(row.expires_at)
        .bind(row.per_second)
        .bind(row.line.as_deref())
        .bind(row.replaces.as_deref())
        .execute(tx)
        .await?;
    Ok(())
}

/// Forgets what expired long ago; refuses if there are too many still.
async fn make_room(tx: &mut Tx, environment_id: &str, now: i64) -> Result<(), Refusal> {
    query(FORGET).bind(environment_id).bind(now - EXPIRED_KEPT_US).execute(tx).await?;
    let count: i64 = query_scalar(COUNT).bind(environment_id).fetch_one(tx).await?;
    match count >= rules::limits::KEYS_MAX as i64 {
        true => Err(Refusal::TooMany { what: "keys", max: rules::limits::KEYS_MAX }),
        false => Ok(()),
    }
}

fn check_terms(expires_at: Option<i64>, per_second: Option<u32>) -> Result<(), Refusal> {
    if expires_at.is_some_and(|at| at <= now_us()) {
        return Err(Refusal::invalid("/expiresAt", "it is in the past"));
    }
    if per_second.is_some_and(|per_second| !(1..=PER_SECOND_MAX).contains(&per_second)) {
        let message = format!("a rate is 1 to {PER_SECOND_MAX} requests in a second");
        return Err(Refusal::invalid("/ratePerSecond", message));
    }
    Ok(())
}

fn check_origins(kind: KeyKind, origins: &[String]) -> Result<(), Refusal> {
    if kind != KeyKind::Browser && !origins.is_empty() {
        return Err(Refusal::invalid("/origins", "only browser keys have origins"));
    }
    if origins.len() > ORIGINS_MAX {
        return Err(Refusal::invalid("/origins", format!("the limit is {ORIGINS_MAX}")));
    }
    for (index, origin) in origins.iter().enumerate() {
        if !is_exact_origin(origin) {
            return Err(Refusal::invalid(
                format!("/origins/{index}"),
                "an origin is exact: scheme, host and perhaps port, as https://app.example.com",
            ));
        }
    }
    Ok(())
}

/// Scheme, host and perhaps port, as browsers send it.
pub fn is_exact_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.len() <= 255
            && !rest.contains(['/', '*', '?', '#', '@', ' '])
            && rest.is_ascii()
    })
}

pub async fn change(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    id: &str,
    changes: &KeyChanges,
) -> Result<KeyRow, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin_by(tx, scope, Touches::One(&environment.id), Passage::Keys).await?;
    let before = one(tx, &environment.id, id).await?;
    let mut after = before.clone();
    if let Some(name) = &changes.name {
        check_name("/name", name)?;
        after.name.clone_from(name);
    }
    if let Some(origins) = &changes.origins {
        let is_browser = before.kind == KeyKind::Browser.name();
        check_origins(if is_browser { KeyKind::Browser } else { KeyKind::Server }, origins)?;
        after.origins = written("list of origins", origins)?;
    }
    check_terms(changes.expires_at.flatten(), changes.per_second.flatten())?;
    if let Some(expires_at) = changes.expires_at {
        // It was told as dead; who has it may have been told so as well.
        if before.expires_at.is_some_and(|at| at <= change.at) {
            return Err(Refusal::Expired);
        }
        after.expires_at = expires_at;
    }
    if let Some(per_second) = changes.per_second {
        after.per_second = per_second.map(i64::from);
    }
    query(UPDATE)
        .bind(&after.name)
        .bind(&after.origins)
        .bind(after.expires_at)
        .bind(after.per_second)
        .bind(&environment.id)
        .bind(id)
        .execute(tx)
        .await?;
    check_line(tx, &environment.id, &after, change.at).await?;
    let entry = Entry {
        action: "key.update",
        target: id.to_owned(),
        environment: Some(environment.key),
        before: Some(before.said()),
        after: Some(after.said()),
    };
    change.finish(tx, entry).await?;
    Ok(after)
}

/// No line has more valid keys than two, however one came to be valid for longer.
async fn check_line(
    tx: &mut Tx,
    environment_id: &str,
    of: &KeyRow,
    now: i64,
) -> Result<(), Refusal> {
    let live = query_scalar(LIVE).bind(environment_id).bind(of.line()).bind(now);
    let keys: Vec<String> = live.fetch_all(tx).await?;
    match keys.len() > LIVE_MAX {
        true => {
            Err(Refusal::TwoLive { keys: keys.into_iter().filter(|id| *id != of.id).collect() })
        }
        false => Ok(()),
    }
}

/// The key's successor, with the same settings, and its row; the old one expires after the overlap.
pub async fn rotate(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    id: &str,
    rotation: Rotation,
) -> Result<(ApiKey, KeyRow), Refusal> {
    check_terms(rotation.expires_at, None)?;
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin_by(tx, scope, Touches::One(&environment.id), Passage::Keys).await?;
    let old = one(tx, &environment.id, id).await?;
    let until = rotation.until(old.expires_at, change.at)?;
    make_room(tx, &environment.id, change.at).await?;
    let kind = match old.kind == KeyKind::Browser.name() {
        true => KeyKind::Browser,
        false => KeyKind::Server,
    };
    let key = random(kind)?;
    let row = KeyRow {
        id: key.id.clone(),
        created_at: change.at,
        expires_at: rotation.successor_expires_at((old.created_at, old.expires_at), change.at),
        line: Some(old.line().to_owned()),
        replaces: Some(old.id.clone()),
        last_minute: None,
        ..old.clone()
    };
    insert(tx, &environment.id, &key, &row).await?;
    query(UPDATE)
        .bind(&old.name)
        .bind(&old.origins)
        .bind(until)
        .bind(old.per_second)
        .bind(&environment.id)
        .bind(&old.id)
        .execute(tx)
        .await?;
    check_line(tx, &environment.id, &row, change.at).await?;
    let entry = Entry {
        action: "key.rotate",
        target: row.id.clone(),
        environment: Some(environment.key),
        before: Some(json!({ "id": old.id, "expiresAt": old.expires_at.map(rfc3339) })),
        after: Some(json!({ "replaces": old.id, "replacedExpiresAt": rfc3339(until),
            "expiresAt": row.expires_at.map(rfc3339) })),
    };
    change.finish(tx, entry).await?;
    Ok((key, row))
}

impl Rotation {
    /// When the old key ends; never later than it would have.
    fn until(self, expires_at: Option<i64>, now: i64) -> Result<i64, Refusal> {
        if !(0..=OVERLAP_SECONDS_MAX).contains(&self.overlap_seconds) {
            let message = format!("an overlap is 0 to {OVERLAP_SECONDS_MAX} seconds");
            return Err(Refusal::invalid("/overlapSeconds", message));
        }
        if expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::Expired);
        }
        let until = now + self.overlap_seconds * 1_000_000;
        Ok(expires_at.map_or(until, |at| at.min(until)))
    }

    fn successor_expires_at(self, (made, expires): (i64, Option<i64>), now: i64) -> Option<i64> {
        self.expires_at.or_else(|| expires.map(|at| now + (at - made)))
    }
}

pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    id: &str,
) -> Result<(), Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    let change = Change::begin_by(tx, scope, Touches::One(&environment.id), Passage::Keys).await?;
    let row = one(tx, &environment.id, id).await?;
    query(DELETE).bind(&environment.id).bind(id).execute(tx).await?;
    let entry = Entry {
        action: "key.delete",
        target: id.to_owned(),
        environment: Some(environment.key),
        before: Some(row.said()),
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

/// With the namespaces that it names.
pub async fn edge_get(
    read: &mut Connection,
    _scope: &Scope,
    id: &str,
) -> Result<(EdgeKeyRow, Vec<String>), Refusal> {
    let row: Option<EdgeKeyRow> = query_as(EDGE_ONE).bind(id).fetch_optional(&mut *read).await?;
    let row = row.ok_or(Refusal::NotFound("edge key"))?;
    let namespaces = query_scalar(EDGE_NAMESPACES).bind(id).fetch_all(read).await?;
    Ok((row, namespaces))
}

/// Recorded in the audit of the installation and of each namespace that it names.
pub async fn edge_create(
    tx: &mut Tx,
    scope: &Scope,
    name: &str,
    sees: &Sees,
    expires_at: Option<i64>,
) -> Result<(ApiKey, EdgeKeyRow), Refusal> {
    check_name("/name", name)?;
    check_terms(expires_at, None)?;
    let key = random(KeyKind::Edge)?;
    let row = EdgeKeyRow {
        id: key.id.clone(),
        name: name.to_owned(),
        all_namespaces: matches!(sees, Sees::All),
        created_at: now_us(),
        expires_at,
        line: None,
        replaces: None,
        last_used_at: None,
    };
    edge_insert(tx, &key, &row).await?;
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
            query(EDGE_ADD).bind(&row.id).bind(scope.id()).execute(tx).await?;
        }
    }
    let namespaces = match sees {
        Sees::All => json!("all"),
        Sees::Namespaces(keys) => json!(keys),
    };
    let said = json!({ "name": row.name, "namespaces": namespaces,
        "expiresAt": row.expires_at.map(rfc3339) });
    edge_record(tx, scope, &row.id, ("edge-key.create", "an edge key was made"), None, Some(said))
        .await?;
    Ok((key, row))
}

async fn edge_insert(tx: &mut Tx, key: &ApiKey, row: &EdgeKeyRow) -> Result<(), Refusal> {
    let count: i64 = query_scalar(EDGE_COUNT).fetch_one(tx).await?;
    if count >= EDGE_KEYS_MAX {
        return Err(Refusal::TooMany { what: "edge keys", max: EDGE_KEYS_MAX as usize });
    }
    query(EDGE_INSERT)
        .bind(&row.id)
        .bind(&row.name)
        .bind(row.all_namespaces)
        .bind(key.hash().to_vec())
        .bind(row.created_at)
        .bind(row.expires_at)
        .bind(row.line.as_deref())
        .bind(row.replaces.as_deref())
        .execute(tx)
        .await?;
    Ok(())
}

/// In the audit of each namespace that the key names, in one order, since each takes that one's lock,
/// and in the installation's.
async fn edge_record(
    tx: &mut Tx,
    scope: &Scope,
    id: &str,
    (action, told): (&'static str, &'static str),
    before: Option<Value>,
    after: Option<Value>,
) -> Result<(), Refusal> {
    let namespaces: Vec<String> = query_scalar(EDGE_NAMESPACES).bind(id).fetch_all(tx).await?;
    for namespace in namespaces {
        let scope = scope.namespace(tx, &namespace).await?;
        let change = Change::begin(tx, &scope, Touches::Nothing).await?;
        let entry = Entry {
            action,
            target: id.to_owned(),
            environment: None,
            before: before.clone(),
            after: after.clone(),
        };
        change.finish(tx, entry).await?;
    }
    let entry = Entry { action, target: id.to_owned(), environment: None, before, after };
    audit::record_instance(tx, scope.caller(), entry).await?;
    tracing::info!(actor = scope.actor(), edge_key = id, action, "{told}");
    Ok(())
}

/// Name and expiry; what it sees is another key's business.
pub async fn edge_change(
    tx: &mut Tx,
    scope: &Scope,
    id: &str,
    name: Option<&str>,
    expires_at: Option<Option<i64>>,
) -> Result<(EdgeKeyRow, Vec<String>), Refusal> {
    if let Some(name) = name {
        check_name("/name", name)?;
    }
    check_terms(expires_at.flatten(), None)?;
    let now = now_us();
    let (before, namespaces) = edge_lock(tx, scope, id).await?;
    let mut after = before.clone();
    if let Some(name) = name {
        name.clone_into(&mut after.name);
    }
    if let Some(expires_at) = expires_at {
        if before.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::Expired);
        }
        after.expires_at = expires_at;
    }
    let update = query(EDGE_UPDATE).bind(&after.name).bind(after.expires_at).bind(id);
    update.execute(tx).await?;
    edge_check_line(tx, &after, now).await?;
    let said = |row: &EdgeKeyRow| {
        Some(json!({ "name": row.name, "expiresAt": row.expires_at.map(rfc3339) }))
    };
    let what = ("edge-key.update", "an edge key was changed");
    edge_record(tx, scope, id, what, said(&before), said(&after)).await?;
    Ok((after, namespaces))
}

/// The row, of which nobody else changes the line meanwhile.
async fn edge_lock(
    tx: &mut Tx,
    scope: &Scope,
    id: &str,
) -> Result<(EdgeKeyRow, Vec<String>), Refusal> {
    let (row, _) = edge_get(tx, scope, id).await?;
    let line = row.line.as_deref().unwrap_or(&row.id).to_owned();
    query(EDGE_LOCK).bind(line).execute(tx).await?;
    edge_get(tx, scope, id).await
}

async fn edge_check_line(tx: &mut Tx, of: &EdgeKeyRow, now: i64) -> Result<(), Refusal> {
    let line = of.line.as_deref().unwrap_or(&of.id);
    let keys: Vec<String> = query_scalar(EDGE_LIVE).bind(line).bind(now).fetch_all(tx).await?;
    match keys.len() > LIVE_MAX {
        true => {
            Err(Refusal::TwoLive { keys: keys.into_iter().filter(|id| *id != of.id).collect() })
        }
        false => Ok(()),
    }
}

/// As `rotate`, of an edge's key: the successor sees what it saw.
pub async fn edge_rotate(
    tx: &mut Tx,
    scope: &Scope,
    id: &str,
    rotation: Rotation,
) -> Result<(ApiKey, EdgeKeyRow, Vec<String>), Refusal> {
    check_terms(rotation.expires_at, None)?;
    let now = now_us();
    let (old, namespaces) = edge_lock(tx, scope, id).await?;
    let until = rotation.until(old.expires_at, now)?;
    let key = random(KeyKind::Edge)?;
    let row = EdgeKeyRow {
        id: key.id.clone(),
        created_at: now,
        expires_at: rotation.successor_expires_at((old.created_at, old.expires_at), now),
        line: Some(old.line.clone().unwrap_or_else(|| old.id.clone())),
        replaces: Some(old.id.clone()),
        last_used_at: None,
        ..old.clone()
    };
    edge_insert(tx, &key, &row).await?;
    for namespace in &namespaces {
        let scope = scope.namespace(tx, namespace).await?;
        query(EDGE_ADD).bind(&row.id).bind(scope.id()).execute(tx).await?;
    }
    query(EDGE_UPDATE).bind(&old.name).bind(until).bind(&old.id).execute(tx).await?;
    edge_check_line(tx, &row, now).await?;
    let before = json!({ "id": old.id, "expiresAt": old.expires_at.map(rfc3339) });
    let after = json!({ "replaces": old.id, "replacedExpiresAt": rfc3339(until),
        "expiresAt": row.expires_at.map(rfc3339) });
    let what = ("edge-key.rotate", "an edge key was rotated");
    edge_record(tx, scope, &row.id, what, Some(before), Some(after)).await?;
    Ok((key, row, namespaces))
}

/// That an edge came with it; written once a minute.
pub async fn edge_used(tx: &mut Connection, id: &str) -> Result<(), Refusal> {
    const MINUTE_US: i64 = 60 * 1_000_000;
    let minute = now_us().div_euclid(MINUTE_US) * MINUTE_US;
    query(EDGE_USED).bind(minute).bind(id).bind(minute).execute(tx).await?;
    Ok(())
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
    // Its row first, as in every change of it.
    edge_lock(tx, scope, id).await?;
    let what = ("edge-key.delete", "an edge key was deleted");
    edge_record(tx, scope, id, what, None, None).await?;
    match query(EDGE_DELETE).bind(id).execute(tx).await? {
        0 => Err(Refusal::NotFound("edge key")),
        _ => Ok(()),
    }
}

/// The origins of a key, as they were sent.
pub fn origins(row: &KeyRow) -> Vec<String> {
    stored("list of origins", &row.origins).unwrap_or_default()
}
