//! Environments: named deployments of a namespace, and the whole state of one, as the compiler
//! and the publisher want it.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use rules::blob::KeyTerms;
use rules::compile::{Compiled, FlagState, Problem, SegmentState};
use rules::keys::{KeyKind, KeyRecord};
use rules::model::{FlagConfig, Metadata, Serve};
use serde_json::json;

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Passage, Touches};
use crate::fleet;
use crate::outbox::Raised;
use crate::page::{Page, Paged};
use crate::parsed::{Flags, Parsed, Stamp, State};
use crate::policies::{self, Pinned};
use crate::refusal::{Refusal, check_name, check_slug, stored};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, now_us, rfc3339};

/// A change of a flag's definition locks and compiles every environment of its namespace.
pub const ENVIRONMENTS_MAX: usize = 100;

const IDS: &str = "SELECT id FROM environment WHERE namespace_id = $1 ORDER BY id";
const ONE: &str = "SELECT e.id, e.key, e.name, e.generation, e.revision, e.created_at, e.updated_at, \
    p.generation AS published_generation, p.revision AS published_revision, p.published_at, \
    (SELECT s.rejected FROM snapshot s WHERE s.environment_id = e.id AND s.generation = e.generation \
     AND s.revision = e.revision) AS rejected \
    FROM environment e LEFT JOIN publication p ON p.environment_id = e.id \
    WHERE e.namespace_id = $1 AND e.key = $2";
const PAGE: &str = "SELECT e.id, e.key, e.name, e.generation, e.revision, e.created_at, e.updated_at, \
    p.generation AS published_generation, p.revision AS published_revision, p.published_at, \
    (SELECT s.rejected FROM snapshot s WHERE s.environment_id = e.id AND s.generation = e.generation \
     AND s.revision = e.revision) AS rejected \
    FROM environment e LEFT JOIN publication p ON p.environment_id = e.id \
    WHERE e.namespace_id = $1 AND e.key > $2 ORDER BY e.key LIMIT $3";
const COUNT: &str = "SELECT COUNT(*) FROM environment WHERE namespace_id = $1";
const RETIRED: &str = "SELECT generation, revision FROM retired_environment \
    WHERE namespace_key = $1 AND environment_key = $2";
const RETIRE: &str = "INSERT INTO retired_environment (namespace_key, environment_key, generation, \
    revision) SELECT n.key, e.key, e.generation, e.revision FROM environment e \
    JOIN namespace n ON n.id = e.namespace_id WHERE e.id = $1 \
    ON CONFLICT (namespace_key, environment_key) DO UPDATE SET generation = excluded.generation, \
    revision = excluded.revision";
const INSERT: &str = "INSERT INTO environment (id, namespace_id, key, name, generation, revision, \
    metadata, growth_allowed, stream_secret, created_at, updated_at) \
    VALUES ($1, $2, $3, $4, $5, $6, '{}', 0, $7, $8, $8) \
    ON CONFLICT (namespace_id, key) DO NOTHING";
const DELETE: &str = "DELETE FROM environment WHERE id = $1";
const ALLOW_GROWTH: &str = "UPDATE environment SET growth_allowed = revision WHERE id = $1";
const SET_METADATA: &str = "UPDATE environment SET metadata = $2 WHERE id = $1";
const HEADER: &str = "SELECT n.id, n.key, e.key, e.generation, e.revision, e.metadata, \
    e.stream_secret, e.growth_allowed FROM environment e JOIN namespace n ON n.id = e.namespace_id \
    WHERE e.id = $1";
const STAMPS: &str = "SELECT f.id, f.version, f.updated_at, COALESCE(c.version, 0), \
    COALESCE(c.updated_at, 0) FROM flag f LEFT JOIN flag_config c \
    ON c.flag_id = f.id AND c.environment_id = $1 WHERE f.namespace_id = $2 ORDER BY f.key";
const FLAGS: &str = "SELECT f.id, f.definition, c.config FROM flag f LEFT JOIN flag_config c \
    ON c.flag_id = f.id AND c.environment_id = $1 WHERE f.namespace_id = $2";
const FLAG: &str = "SELECT f.id, f.definition, c.config FROM flag f LEFT JOIN flag_config c \
    ON c.flag_id = f.id AND c.environment_id = $1 WHERE f.id = $2";
const SEGMENTS: &str = "SELECT id, definition FROM segment WHERE environment_id = $1 ORDER BY key";
const LISTS: &str = "SELECT s.key, l.kind, l.digest, l.bytes, l.id_count FROM segment_list l \
    JOIN segment s ON s.id = l.segment_id WHERE s.environment_id = $1 ORDER BY s.key, l.kind";
const KEY_IDS: &str = "SELECT id FROM api_key WHERE environment_id = $1 \
    AND (expires_at IS NULL OR expires_at > $2) ORDER BY id LIMIT 20";
const KEYS: &str = "SELECT id, kind, origins, hash, expires_at, per_second FROM api_key \
    WHERE environment_id = $1 ORDER BY id";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Environment {
    pub id: String,
    pub key: String,
    pub name: String,
    pub generation: i64,
    pub revision: i64,
    pub created_at: i64,
    pub updated_at: i64,
    pub published_generation: Option<i64>,
    pub published_revision: Option<i64>,
    pub published_at: Option<i64>,
    pub rejected: Option<String>,
}

/// One environment as it stands, in one consistent read.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub environment_id: String,
    pub namespace_id: String,
    pub namespace: String,
    pub environment: String,
    pub generation: i64,
    pub revision: i64,
    pub growth_allowed: i64,
    pub stream_secret: [u8; 32],
    pub state: State,
    pub lists: Vec<StoredList>,
    pub policies: Vec<Pinned>,
    pub keys: Vec<KeyRecord>,
    pub terms: Vec<KeyTerms>,
}

/// Id, kind, origins, hash, when it expires, requests in a second.
type StoredKey = (String, String, String, Vec<u8>, Option<i64>, Option<i64>);

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct StoredList {
    pub key: String,
    pub kind: String,
    pub digest: String,
    pub bytes: i64,
    pub id_count: i64,
}

/// What a flag does where nobody has said: it is off and gives the caller's own default.
pub fn absent_config() -> FlagConfig {
    FlagConfig {
        enabled: false,
        off: None,
        prerequisites: Vec::new(),
        rules: Vec::new(),
        fallthrough: Serve::CodeDefault,
        origin: None,
    }
}

/// In the order of locks.
pub async fn ids(read: &mut Connection, scope: &NamespaceScope) -> Result<Vec<String>, Refusal> {
    Ok(query_scalar(IDS).bind(scope.id()).fetch_all(read).await?)
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<Environment, Refusal> {
    let row = query_as(ONE).bind(scope.id()).bind(key).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("environment"))
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<Environment>, Refusal> {
    page.of(read, PAGE, scope.id(), |row: &Environment| row.key.clone()).await
}

/// Its revisions go on where those of a deleted environment with the same keys ended.
pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    name: &str,
) -> Result<Environment, Refusal> {
    check_slug("/key", key)?;
    check_name("/name", name)?;
    // The namespace's lock, so that two creations do not both pass the limit. The environment
    // itself is not there yet to be raised: it begins at its first revision.
    let mut change = Change::begin(tx, scope, Touches::Nothing).await?;
    let count: i64 = query_scalar(COUNT).bind(scope.id()).fetch_one(tx).await?;
    if count >= ENVIRONMENTS_MAX as i64 {
        return Err(Refusal::TooMany { what: "environments", max: ENVIRONMENTS_MAX });
    }
    let retired: Option<(i64, i64)> =
        query_as(RETIRED).bind(scope.key()).bind(key).fetch_optional(tx).await?;
    let (generation, revision) = retired.unwrap_or((1, 0));
    let id = new_id();
    let mut secret = [0u8; 32];
    seam::random(&mut secret)
        .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    let done = query(INSERT)
        .bind(&id)
        .bind(scope.id())
        .bind(key)
        .bind(name)
        .bind(generation)
        .bind(revision + 1)
        .bind(secret.to_vec())
        .bind(now_us())
        .execute(tx)
        .await?;
    if done == 0 {
        return Err(Refusal::Exists { what: "environment", key: key.to_owned() });
    }
    change.raised.push(Raised {
        environment_id: id,
        key: key.to_owned(),
        generation,
        revision: revision + 1,
    });
    let entry = Entry {
        action: "environment.create",
        target: key.to_owned(),
        environment: Some(key.to_owned()),
        before: None,
        after: Some(json!({ "key": key, "name": name })),
    };
    change.finish(tx, entry).await?;
    get(tx, scope, key).await
}

pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    expected: Expected,
) -> Result<(), Refusal> {
    let seen = get(tx, scope, key).await?;
    let touches = Touches::One(&seen.id);
    let change = Change::begin_by(tx, scope, touches, Passage::Gone).await?;
    // Read again under the lock, which raised the revision by one: another may have come between.
    let mut before = get(tx, scope, key).await?;
    before.revision -= 1;
    before.updated_at = seen.updated_at;
    expected.check(before.revision, || {
        json!({ "key": before.key, "name": before.name, "revision": before.revision,
            "updatedAt": rfc3339(before.updated_at) })
    })?;
    for raised in &change.raised {
        check_unserved(tx, raised).await?;
    }
    for raised in change.raised.clone() {
        retire(tx, scope, &raised).await?;
    }
    let entry = Entry {
        action: "environment.delete",
        target: key.to_owned(),
        environment: Some(key.to_owned()),
        before: Some(
            json!({ "key": before.key, "name": before.name, "revision": before.revision }),
        ),
        after: None,
    };
    change.finish_deleting(tx, entry).await
}

/// Whether edges have stopped answering for it, as far as control can know: no key is valid, and
/// its last revision, which says so, is published and served by every edge that was heard of
/// lately. What is deleted is published no more, so an edge that is behind would stay there.
/// Call it under the environment's lock, which raised it by one.
pub async fn check_unserved(tx: &mut Tx, raised: &Raised) -> Result<(), Refusal> {
    let id = &raised.environment_id;
    let keys: Vec<String> = query_scalar(KEY_IDS).bind(id).bind(now_us()).fetch_all(tx).await?;
    if !keys.is_empty() {
        return Err(Refusal::KeysLeft { keys });
    }
    let revision = raised.revision - 1;
    match fleet::live(tx, id, raised.generation, revision).await?.everywhere() {
        true => Ok(()),
        false => Err(Refusal::NotLive { environment: raised.key.clone(), revision }),
    }
}

/// Deletes it and keeps its last revision.
pub async fn retire(tx: &mut Tx, _scope: &NamespaceScope, raised: &Raised) -> Result<(), Refusal> {
    query(RETIRE).bind(&raised.environment_id).execute(tx).await?;
    query(DELETE).bind(&raised.environment_id).execute(tx).await?;
    Ok(())
}

/// Publishes anew; with `allow_growth` past the gate that holds up a snapshot which grows or
/// shrinks too much at once.
pub async fn publish(
    tx: &mut Tx,
    scope: &NamespaceScope,
    key: &str,
    allow_growth: bool,
) -> Result<Environment, Refusal> {
    let before = get(tx, scope, key).await?;
    let touches = Touches::One(&before.id);
    let change = Change::begin_by(tx, scope, touches, Passage::Publish).await?;
    if allow_growth {
        query(ALLOW_GROWTH).bind(&before.id).execute(tx).await?;
    }
    let entry = Entry {
        action: "environment.publish",
        target: key.to_owned(),
        environment: Some(key.to_owned()),
        before: None,
        after: Some(json!({ "allowGrowth": allow_growth })),
    };
    change.finish(tx, entry).await?;
    get(tx, scope, key).await
}

pub async fn set_metadata(
    tx: &mut Connection,
    environment_id: &str,
    metadata: &Metadata,
) -> Result<(), Refusal> {
    let text = crate::refusal::written("metadata", metadata)?;
    query(SET_METADATA).bind(environment_id).bind(text).execute(tx).await?;
    Ok(())
}

/// As `load`, for who has nothing parsed.
pub async fn load_afresh(read: &mut Connection, environment_id: &str) -> Result<Loaded, Refusal> {
    load(read, &Parsed::default(), Read::Own, environment_id).await
}

/// Whose state is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Everybody's.
    Committed,
    /// That of a write, which may come to nothing.
    Own,
}

/// Call it in one transaction, or what it returns never was.
pub async fn load(
    read: &mut Connection,
    parsed: &Parsed,
    whose: Read,
    environment_id: &str,
) -> Result<Loaded, Refusal> {
    type Header = (String, String, String, i64, i64, String, Vec<u8>, i64);
    let header: Option<Header> =
        query_as(HEADER).bind(environment_id).fetch_optional(&mut *read).await?;
    let (namespace_id, namespace, environment, generation, revision, metadata, secret, growth) =
        header.ok_or(Refusal::NotFound("environment"))?;
    let flags = flags(read, parsed, whose, environment_id, &namespace_id).await?;
    let segments: Vec<(String, String)> =
        query_as(SEGMENTS).bind(environment_id).fetch_all(&mut *read).await?;
    let lists: Vec<StoredList> = query_as(LISTS).bind(environment_id).fetch_all(&mut *read).await?;
    let policies = policies::load(read, environment_id).await?;
    let keys: Vec<StoredKey> = query_as(KEYS).bind(environment_id).fetch_all(&mut *read).await?;

    let segments = segments
        .into_iter()
        .map(|(_, definition)| {
            let segment: rules::model::Segment = stored("segment", &definition)?;
            let has =
                |kind: &str| lists.iter().any(|list| list.key == segment.key && list.kind == kind);
            let (has_included, has_excluded) = (has("included"), has("excluded"));
            Ok(SegmentState { segment, has_included, has_excluded })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    let terms = keys
        .iter()
        .zip(0..)
        .map(|((_, _, _, _, expires_at, per_second), key)| KeyTerms {
            key,
            // Up to a millisecond early, never late.
            expires_at_ms: expires_at.map(|at| at.div_euclid(1000)),
            per_second: per_second
                .and_then(|per_second| u32::try_from(per_second).ok())
                .and_then(NonZeroU32::new),
        })
        .filter(|terms| terms.expires_at_ms.is_some() || terms.per_second.is_some())
        .collect();
    let keys = keys
        .into_iter()
        .map(|(id, kind, origins, hash, _, _)| {
            let kind = match kind.as_str() {
                "browser" => KeyKind::Browser,
                _ => KeyKind::Server,
            };
            let hash = hash
                .try_into()
                .map_err(|_| Refusal::Internal(format!("the hash of key {id} is not 32 bytes")))?;
            Ok(KeyRecord { id, kind, hash, origins: stored("list of origins", &origins)? })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    Ok(Loaded {
        environment_id: environment_id.to_owned(),
        namespace_id,
        namespace,
        environment,
        generation,
        revision,
        growth_allowed: growth,
        stream_secret: secret
            .try_into()
            .map_err(|_| Refusal::Internal("a stream secret is not 32 bytes".to_owned()))?,
        state: State {
            flags,
            segments,
            policies: policies.iter().map(|pinned| pinned.state.clone()).collect(),
            metadata: stored("metadata", &metadata)?,
        },
        lists,
        policies,
        keys,
        terms,
    })
}

/// In the order of their keys. Only those that changed since they were read last are read as a whole.
async fn flags(
    read: &mut Connection,
    parsed: &Parsed,
    whose: Read,
    environment_id: &str,
    namespace_id: &str,
) -> Result<Vec<Arc<FlagState>>, Refusal> {
    /// With more than these the whole is read at once.
    const ONE_BY_ONE_MAX: usize = 20;
    let stamps: Vec<(String, i64, i64, i64, i64)> =
        query_as(STAMPS).bind(environment_id).bind(namespace_id).fetch_all(&mut *read).await?;
    let known = parsed.flags(environment_id);
    let mut flags = Flags::with_capacity(stamps.len());
    let mut missing = Vec::new();
    for (id, version, at, config_version, config_at) in &stamps {
        let stamp = (*version, *at, *config_version, *config_at);
        match known.get(id) {
            Some(flag) if flag.0 == stamp => drop(flags.insert(id.clone(), flag.clone())),
            _ => missing.push((id, stamp)),
        }
    }
    let rows: Vec<(String, String, Option<String>)> = if missing.len() > ONE_BY_ONE_MAX {
        query_as(FLAGS).bind(environment_id).bind(namespace_id).fetch_all(&mut *read).await?
    } else {
        let mut rows = Vec::with_capacity(missing.len());
        for (id, _) in &missing {
            let flag = query_as(FLAG).bind(environment_id).bind(*id);
            rows.push(flag.fetch_one(&mut *read).await?);
        }
        rows
    };
    let missing: HashMap<&String, Stamp> = missing.into_iter().collect();
    for (id, definition, config) in rows {
        let Some(stamp) = missing.get(&id) else { continue };
        let config = match config {
            Some(config) => stored("flag configuration", &config)?,
            None => absent_config(),
        };
        let flag = FlagState { definition: stored("flag definition", &definition)?, config };
        flags.insert(id, (*stamp, Arc::new(flag)));
    }
    let in_order = stamps.iter().filter_map(|(id, ..)| flags.get(id));
    let in_order = in_order.map(|(_, flag)| flag.clone()).collect();
    if whose == Read::Committed && !missing.is_empty() {
        parsed.keep(environment_id, flags);
    }
    Ok(in_order)
}

/// Compiling thousands of flags takes long enough to be in the way of other requests.
pub async fn try_compile(
    parsed: Arc<Parsed>,
    environment_id: &str,
    state: State,
) -> Result<Result<Arc<Compiled>, Vec<Problem>>, Refusal> {
    let id = environment_id.to_owned();
    seam::blocking(move || parsed.compile(&id, &state))
        .await
        .map_err(|error| Refusal::Internal(format!("compiling failed: {error}")))
}
