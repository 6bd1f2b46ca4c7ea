//! Wasm policies: uploaded to a namespace, immutable by digest, pinned per environment.
//!
//! A pin is a change of its environment as any other: it is compiled and checked, audited and
//! published. What is uploaded was admitted before (`admission.rs`); nothing is run here. Going
//! back is pinning the version before; a version that somebody needs is not deleted.

use rules::blob::Digest;
use rules::compile::PolicyState;
use rules::head::PolicyReport;
use rules::limits::{POLICIES_MAX, SPLIT_TOTAL};
use sandbox::policy::Verdict;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::authorize::callers;
use crate::change::{Change, Expected, Passage, Touches};
use crate::environments::{self, Environment};
use crate::page::{Page, Paged};
use crate::references;
use crate::refusal::{Refusal, check_slug, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Store, Tx, new_id, rfc3339};

/// Of one namespace.
pub const NAMES_MAX: usize = 1_000;
/// Of one policy: what is pinned nowhere can be deleted.
pub const VERSIONS_MAX: usize = 200;

const ONE: &str = "SELECT id, name, created_at FROM policy WHERE namespace_id = $1 AND name = $2";
const PAGE: &str = "SELECT id, name, created_at FROM policy WHERE namespace_id = $1 AND name > $2 \
    ORDER BY name LIMIT $3";
const COUNT: &str = "SELECT COUNT(*) FROM policy WHERE namespace_id = $1";
const INSERT: &str =
    "INSERT INTO policy (id, namespace_id, name, created_at) VALUES ($1, $2, $3, $4)";
const VERSION: &str = "SELECT digest, bytes, attributes, verdict, uploaded_by, uploaded_at \
    FROM policy_version WHERE policy_id = $1 AND digest = $2";
const VERSIONS: &str = "SELECT digest, bytes, attributes, verdict, uploaded_by, uploaded_at \
    FROM policy_version WHERE policy_id = $1 ORDER BY uploaded_at DESC, digest";
const VERSION_COUNT: &str = "SELECT COUNT(*) FROM policy_version WHERE policy_id = $1";
const VERSION_INSERT: &str = "INSERT INTO policy_version (policy_id, digest, bytes, attributes, \
    verdict, uploaded_by, uploaded_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const VERDICT_SET: &str =
    "UPDATE policy_version SET verdict = $3 WHERE policy_id = $1 AND digest = $2";
const VERSION_DELETE: &str = "DELETE FROM policy_version WHERE policy_id = $1 AND digest = $2";
const PREVIOUS_FORGET: &str =
    "UPDATE policy_pin SET previous_digest = NULL WHERE policy_id = $1 AND previous_digest = $2";
const POLICY_DELETE: &str = "DELETE FROM policy WHERE id = $1";
const BLOB_ADD: &str = "INSERT INTO blob (digest, bytes, created_at) VALUES ($1, $2, $3) \
    ON CONFLICT (digest) DO NOTHING";
const NEEDED: &str = "SELECT e.key FROM policy_pin n JOIN environment e ON e.id = n.environment_id \
    WHERE n.policy_id = $1 AND (n.digest = $2 OR n.shadow_digest = $2) ORDER BY e.key";
const PINNED: &str = "SELECT e.key, n.digest FROM policy_pin n \
    JOIN environment e ON e.id = n.environment_id WHERE n.policy_id = $1 ORDER BY e.key";
const PIN: &str = "SELECT digest, previous_digest, shadow_digest, shadow_share, reverted, version, \
    updated_at FROM policy_pin WHERE environment_id = $1 AND policy_id = $2";
const PINS: &str = "SELECT p.name, n.digest, n.previous_digest, n.shadow_digest, n.shadow_share, \
    n.reverted, n.version, n.updated_at FROM policy_pin n JOIN policy p ON p.id = n.policy_id \
    WHERE n.environment_id = $1 ORDER BY p.name";
const PIN_COUNT: &str = "SELECT COUNT(*) FROM policy_pin WHERE environment_id = $1";
const PIN_SET: &str = "INSERT INTO policy_pin (environment_id, policy_id, digest, previous_digest, \
    shadow_digest, shadow_share, reverted, version, updated_at) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8) ON CONFLICT (environment_id, policy_id) DO UPDATE \
    SET digest = excluded.digest, previous_digest = excluded.previous_digest, \
    shadow_digest = excluded.shadow_digest, shadow_share = excluded.shadow_share, \
    reverted = excluded.reverted, version = policy_pin.version + 1, \
    updated_at = excluded.updated_at";
const PIN_DELETE: &str = "DELETE FROM policy_pin WHERE environment_id = $1 AND policy_id = $2";
const LOADED: &str = "SELECT p.name, n.digest, v.bytes, v.attributes, n.shadow_digest, s.bytes, \
    n.shadow_share FROM policy_pin n JOIN policy p ON p.id = n.policy_id \
    JOIN policy_version v ON v.policy_id = n.policy_id AND v.digest = n.digest \
    LEFT JOIN policy_version s ON s.policy_id = n.policy_id AND s.digest = n.shadow_digest \
    WHERE n.environment_id = $1 ORDER BY p.name";
const REPORTS: &str = "SELECT name, edge, report, received_at FROM policy_report \
    WHERE environment_id = $1 ORDER BY name, edge";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PolicyRow {
    pub id: String,
    pub name: String,
    pub created_at: i64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct VersionRow {
    pub digest: String,
    pub bytes: i64,
    pub attributes: String,
    pub verdict: String,
    pub uploaded_by: String,
    pub uploaded_at: i64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PinRow {
    pub digest: String,
    pub previous_digest: Option<String>,
    pub shadow_digest: Option<String>,
    pub shadow_share: i64,
    pub reverted: Option<String>,
    pub version: i64,
    pub updated_at: i64,
}

/// The body of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<PinShadow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinShadow {
    pub digest: String,
    /// Of 100,000 calls, as weights are.
    pub share: u32,
}

/// A pin as people see it, in the API and in the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PinState {
    pub name: String,
    pub digest: String,
    /// The ETag.
    pub version: i64,
    pub updated_at: String,
    /// What a rollback pins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<PinShadow>,
    /// Why control itself went back to this version, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverted: Option<String>,
}

/// A policy with its versions, newest first, and the environments and digests that it is pinned at.
#[derive(Debug, Clone)]
pub struct Shown {
    pub policy: PolicyRow,
    pub versions: Vec<VersionRow>,
    pub pins: Vec<(String, String)>,
}

/// What an edge reported of a policy.
#[derive(Debug, Clone)]
pub struct Reported {
    pub edge: String,
    pub report: PolicyReport,
    pub received_at: i64,
}

/// What an environment pins, as the publisher wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pinned {
    pub state: PolicyState,
    pub bytes: u32,
    pub shadow: Option<rules::blob::Shadow>,
}

impl PinRow {
    pub fn pin(&self) -> Pin {
        let share = u32::try_from(self.shadow_share).unwrap_or(0);
        let shadow = self.shadow_digest.clone();
        Pin {
            digest: self.digest.clone(),
            shadow: shadow.map(|digest| PinShadow { digest, share }),
        }
    }

    pub fn state(&self, name: &str) -> PinState {
        let Pin { digest, shadow } = self.pin();
        PinState {
            name: name.to_owned(),
            digest,
            version: self.version,
            updated_at: rfc3339(self.updated_at),
            previous_digest: self.previous_digest.clone(),
            shadow,
            reverted: self.reverted.clone(),
        }
    }
}

async fn find(
    read: &mut Connection,
    scope: &NamespaceScope,
    name: &str,
) -> Result<PolicyRow, Refusal> {
    let row = query_as(ONE).bind(scope.id()).bind(name).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("policy"))
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<PolicyRow>, Refusal> {
    page.of(read, PAGE, scope.id(), |row: &PolicyRow| row.name.clone()).await
}

/// With its versions, newest first, and where it is pinned.
pub async fn shown(
    read: &mut Connection,
    scope: &NamespaceScope,
    name: &str,
) -> Result<Shown, Refusal> {
    let policy = find(read, scope, name).await?;
    let versions = query_as(VERSIONS).bind(&policy.id).fetch_all(&mut *read).await?;
    let pins = query_as(PINNED).bind(&policy.id).fetch_all(read).await?;
    Ok(Shown { policy, versions, pins })
}

pub async fn version(
    read: &mut Connection,
    scope: &NamespaceScope,
    name: &str,
    digest: &str,
) -> Result<VersionRow, Refusal> {
    let row = find(read, scope, name).await?;
    find_version(read, &row.id, digest).await
}

async fn find_version(
    read: &mut Connection,
    policy_id: &str,
    digest: &str,
) -> Result<VersionRow, Refusal> {
    let row = query_as(VERSION).bind(policy_id).bind(digest).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("version"))
}

/// Keeps an admitted module. The same bytes again are the version that is there: it never changes.
/// Whether it is new.
pub async fn upload(
    tx: &mut Tx,
    scope: &NamespaceScope,
    name: &str,
    wasm: &[u8],
    verdict: &Verdict,
) -> Result<(VersionRow, bool), Refusal> {
    check_slug("/policy", name)?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let digest = Digest::of(wasm).to_string();
    let policy = match find(tx, scope, name).await {
        Ok(policy) => policy,
        Err(Refusal::NotFound(_)) => {
            let count: i64 = query_scalar(COUNT).bind(scope.id()).fetch_one(tx).await?;
            if count >= NAMES_MAX as i64 {
                return Err(Refusal::TooMany { what: "policies", max: NAMES_MAX });
            }
            let insert = query(INSERT).bind(new_id()).bind(scope.id()).bind(name).bind(change.at);
            insert.execute(tx).await?;
            find(tx, scope, name).await?
        }
        Err(refusal) => return Err(refusal),
    };
    match find_version(tx, &policy.id, &digest).await {
        Ok(there) => return Ok((there, false)),
        Err(Refusal::NotFound(_)) => {}
        Err(refusal) => return Err(refusal),
    }
    let count: i64 = query_scalar(VERSION_COUNT).bind(&policy.id).fetch_one(tx).await?;
    if count >= VERSIONS_MAX as i64 {
        return Err(Refusal::TooMany { what: "versions", max: VERSIONS_MAX });
    }
    query(BLOB_ADD).bind(&digest).bind(wasm.to_vec()).bind(change.at).execute(tx).await?;
    query(VERSION_INSERT)
        .bind(&policy.id)
        .bind(&digest)
        .bind(wasm.len() as i64)
        .bind(written("list of attributes", &verdict.attributes)?)
        .bind(written("verdict", verdict)?)
        .bind(scope.actor())
        .bind(change.at)
        .execute(tx)
        .await?;
    let entry = Entry {
        action: "policy.upload",
        target: name.to_owned(),
        environment: None,
        before: None,
        after: Some(json!({ "digest": digest, "bytes": wasm.len() })),
    };
    change.finish(tx, entry).await?;
    Ok((find_version(tx, &policy.id, &digest).await?, true))
}

/// The verdict of an admission with the author's vectors, in the place of the one before.
pub async fn set_verdict(
    tx: &mut Tx,
    scope: &NamespaceScope,
    name: &str,
    digest: &str,
    verdict: &Verdict,
) -> Result<VersionRow, Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let policy = find(tx, scope, name).await?;
    find_version(tx, &policy.id, digest).await?;
    let text = written("verdict", verdict)?;
    query(VERDICT_SET).bind(&policy.id).bind(digest).bind(text).execute(tx).await?;
    let passed = verdict.vectors.iter().filter(|vector| vector.passed).count();
    let entry = Entry {
        action: "policy.vectors",
        target: name.to_owned(),
        environment: None,
        before: None,
        after: Some(
            json!({ "digest": digest, "passed": passed, "vectors": verdict.vectors.len() }),
        ),
    };
    change.finish(tx, entry).await?;
    find_version(tx, &policy.id, digest).await
}

/// Refused while an environment pins it or runs it as a shadow. With its last version, the policy
/// is gone.
pub async fn delete_version(
    tx: &mut Tx,
    scope: &NamespaceScope,
    name: &str,
    digest: &str,
) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let policy = find(tx, scope, name).await?;
    let before = find_version(tx, &policy.id, digest).await?;
    let by: Vec<String> =
        query_scalar(NEEDED).bind(&policy.id).bind(digest).fetch_all(&mut *tx).await?;
    if !by.is_empty() {
        return Err(Refusal::InUse { by });
    }
    query(PREVIOUS_FORGET).bind(&policy.id).bind(digest).execute(tx).await?;
    query(VERSION_DELETE).bind(&policy.id).bind(digest).execute(tx).await?;
    let left: i64 = query_scalar(VERSION_COUNT).bind(&policy.id).fetch_one(tx).await?;
    if left == 0 {
        query(POLICY_DELETE).bind(&policy.id).execute(tx).await?;
    }
    let entry = Entry {
        action: "policy.delete",
        target: name.to_owned(),
        environment: None,
        before: Some(json!({ "digest": digest, "bytes": before.bytes })),
        after: None,
    };
    change.finish(tx, entry).await.map(drop)
}

/// How a pin moves.
#[derive(Debug, Clone)]
pub enum Move {
    /// To what the body says.
    To(Pin),
    /// To the version before, which can be gone back to in turn.
    Back,
    /// To what ran as its shadow.
    Promote,
}

/// Pins a version in an environment, or moves the pin that is there.
pub async fn pin(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    name: &str,
    expected: Expected,
    to: Move,
) -> Result<PinRow, Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    // Whether it is there is said first, as before.
    find(tx, scope, name).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let (after, entry) = pin_within(tx, scope, &change, &environment, name, expected, to).await?;
    change.finish(tx, entry).await?;
    Ok(after)
}

/// Part of a change that has raised the environment; the row of it in the audit is the caller's.
pub async fn pin_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    environment: &Environment,
    name: &str,
    expected: Expected,
    to: Move,
) -> Result<(PinRow, Entry), Refusal> {
    let policy = find(tx, scope, name).await?;
    let before = find_pin(tx, &environment.id, &policy.id).await?;
    let state = || json!(before.as_ref().map(|pin| pin.state(name)));
    match &to {
        Move::To(_) => {
            expected.check(before.as_ref().map_or(0, |pin| pin.version), state)?;
        }
        // What it moves to is said by what is there, so nothing can be overwritten unseen.
        Move::Back | Move::Promote => {}
    }
    let action = match &to {
        Move::To(_) => "policy.pin",
        Move::Back => "policy.rollback",
        Move::Promote => "policy.promote",
    };
    let next = match (to, &before) {
        (Move::To(pin), _) => pin,
        (_, None) => return Err(Refusal::NotFound("pin")),
        (Move::Back, Some(pin)) => {
            let previous = pin.previous_digest.clone();
            let digest = previous.ok_or_else(|| {
                Refusal::invalid(
                    "",
                    "no version was pinned before, so there is nothing to go back to",
                )
            })?;
            Pin { digest, shadow: None }
        }
        (Move::Promote, Some(pin)) => {
            let shadow = pin.shadow_digest.clone();
            let digest = shadow.ok_or_else(|| {
                Refusal::invalid("", "no version runs as its shadow, so there is none to promote")
            })?;
            Pin { digest, shadow: None }
        }
    };
    check_pin(tx, &policy, &next).await?;
    if before.is_none() {
        let count: i64 = query_scalar(PIN_COUNT).bind(&environment.id).fetch_one(tx).await?;
        if count >= POLICIES_MAX as i64 {
            return Err(Refusal::TooMany { what: "policies", max: POLICIES_MAX });
        }
    }
    let previous = match &before {
        Some(pin) if pin.digest == next.digest => pin.previous_digest.clone(),
        Some(pin) => Some(pin.digest.clone()),
        None => None,
    };
    set_pin(tx, &environment.id, &policy.id, &next, previous, None, change.at).await?;
    let after = find_pin(tx, &environment.id, &policy.id).await?;
    let after = after.ok_or(Refusal::NotFound("pin"))?;
    let entry = Entry {
        action,
        target: name.to_owned(),
        environment: Some(environment.key.clone()),
        before: before.as_ref().map(|pin| json!(pin.state(name))),
        after: Some(json!(after.state(name))),
    };
    Ok((after, entry))
}

async fn find_pin(
    read: &mut Connection,
    environment_id: &str,
    policy_id: &str,
) -> Result<Option<PinRow>, Refusal> {
    Ok(query_as(PIN).bind(environment_id).bind(policy_id).fetch_optional(read).await?)
}

async fn check_pin(read: &mut Connection, policy: &PolicyRow, pin: &Pin) -> Result<(), Refusal> {
    let unknown = |pointer: &str, digest: &str| {
        let message = format!("the policy {:?} has no version {digest:?}", policy.name);
        Refusal::invalid(pointer, message)
    };
    let versions = [
        ("/digest", Some(&pin.digest)),
        ("/shadow/digest", pin.shadow.as_ref().map(|shadow| &shadow.digest)),
    ];
    for (pointer, digest) in versions {
        let Some(digest) = digest else { continue };
        match find_version(read, &policy.id, digest).await {
            Ok(version) => {
                let verdict: Verdict = stored("verdict", &version.verdict)?;
                if !verdict.admitted {
                    let message = "its last admission refused this version; see its verdict";
                    return Err(Refusal::invalid(pointer, message));
                }
            }
            Err(Refusal::NotFound(_)) => return Err(unknown(pointer, digest)),
            Err(refusal) => return Err(refusal),
        }
    }
    match &pin.shadow {
        Some(shadow) if !(1..=SPLIT_TOTAL).contains(&shadow.share) => {
            let message = format!("a share is 1 to {SPLIT_TOTAL}, of 100,000 calls");
            Err(Refusal::invalid("/shadow/share", message))
        }
        Some(shadow) if shadow.digest == pin.digest => {
            Err(Refusal::invalid("/shadow/digest", "it is the pinned version itself"))
        }
        _ => Ok(()),
    }
}

async fn set_pin(
    tx: &mut Connection,
    environment_id: &str,
    policy_id: &str,
    pin: &Pin,
    previous: Option<String>,
    reverted: Option<&str>,
    at: i64,
) -> Result<(), Refusal> {
    let shadow = pin.shadow.as_ref();
    query(PIN_SET)
        .bind(environment_id)
        .bind(policy_id)
        .bind(&pin.digest)
        .bind(previous)
        .bind(shadow.map(|shadow| shadow.digest.clone()))
        .bind(shadow.map_or(0, |shadow| i64::from(shadow.share)))
        .bind(reverted.map(str::to_owned))
        .bind(at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Refused by the compiler's check while a rule calls it.
pub async fn unpin(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    name: &str,
    expected: Expected,
) -> Result<(), Refusal> {
    let environment = environments::get(tx, scope, environment).await?;
    // Whether it is there is said first, as before.
    find(tx, scope, name).await?;
    let change = Change::begin(tx, scope, Touches::One(&environment.id)).await?;
    let entry = unpin_within(tx, scope, &environment, name, expected).await?;
    change.finish(tx, entry).await?;
    Ok(())
}

/// Part of a change that has raised the environment; the row of it in the audit is the caller's.
pub async fn unpin_within(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &Environment,
    name: &str,
    expected: Expected,
) -> Result<Entry, Refusal> {
    let policy = find(tx, scope, name).await?;
    let before = find_pin(tx, &environment.id, &policy.id).await?;
    let before = before.ok_or(Refusal::NotFound("pin"))?;
    expected.check(before.version, || json!(before.state(name)))?;
    references::needing_pin(tx, scope, environment, name).await?.refuse_if_needed()?;
    query(PIN_DELETE).bind(&environment.id).bind(&policy.id).execute(tx).await?;
    Ok(Entry {
        action: "policy.unpin",
        target: name.to_owned(),
        environment: Some(environment.key.clone()),
        before: Some(json!(before.state(name))),
        after: None,
    })
}

/// What an environment pins of a policy; none if there is no such policy.
pub async fn pinned(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment_id: &str,
    name: &str,
) -> Result<Option<PinRow>, Refusal> {
    match find(read, scope, name).await {
        Ok(policy) => find_pin(read, environment_id, &policy.id).await,
        Err(Refusal::NotFound(_)) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// What an environment pins, by name, and what edges counted there.
pub async fn pins(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
) -> Result<Vec<(PinState, Vec<Reported>)>, Refusal> {
    #[derive(sqlx::FromRow)]
    struct Named {
        name: String,
        digest: String,
        previous_digest: Option<String>,
        shadow_digest: Option<String>,
        shadow_share: i64,
        reverted: Option<String>,
        version: i64,
        updated_at: i64,
    }
    let environment = environments::get(read, scope, environment).await?;
    let rows: Vec<Named> = query_as(PINS).bind(&environment.id).fetch_all(&mut *read).await?;
    let reports: Vec<(String, String, String, i64)> =
        query_as(REPORTS).bind(&environment.id).fetch_all(read).await?;
    let mut shown = Vec::with_capacity(rows.len());
    for row in rows {
        let Named { name, digest, previous_digest, shadow_digest, shadow_share, .. } = row;
        let (reverted, version, updated_at) = (row.reverted, row.version, row.updated_at);
        let pin = PinRow {
            digest,
            previous_digest,
            shadow_digest,
            shadow_share,
            reverted,
            version,
            updated_at,
        };
        let mut edges = Vec::new();
        for (_, edge, report, at) in reports.iter().filter(|report| report.0 == name) {
            let report = stored("report", report)?;
            edges.push(Reported { edge: edge.clone(), report, received_at: *at });
        }
        shown.push((pin.state(&name), edges));
    }
    Ok(shown)
}

/// Goes back to the version before, if `digest` is still the pinned one and nobody, control included,
/// has gone back from it. Why, for people. Whether it did.
pub async fn revert(
    store: &Store,
    namespace: &str,
    environment: &str,
    name: &str,
    digest: &str,
    why: &str,
) -> Result<bool, Refusal> {
    let mut tx = store.write().await?;
    let scope = callers::of_control(&mut tx, namespace).await?;
    let environment = environments::get(&mut tx, &scope, environment).await?;
    let policy = find(&mut tx, &scope, name).await?;
    let touches = Touches::One(&environment.id);
    let change = Change::begin_by(&mut tx, &scope, touches, Passage::Revert).await?;
    let before = find_pin(&mut tx, &environment.id, &policy.id).await?;
    // Somebody may have moved it meanwhile; then nothing of this is kept.
    let Some(before) = before.filter(|pin| pin.digest == digest && pin.reverted.is_none()) else {
        return Ok(false);
    };
    let Some(previous) = before.previous_digest.clone() else { return Ok(false) };
    let pin = Pin { digest: previous, shadow: None };
    let (id, at) = (&environment.id, change.at);
    set_pin(&mut tx, id, &policy.id, &pin, Some(digest.to_owned()), Some(why), at).await?;
    let after = find_pin(&mut tx, id, &policy.id).await?;
    let entry = Entry {
        action: "policy.revert",
        target: name.to_owned(),
        environment: Some(environment.key),
        before: Some(json!(before.state(name))),
        after: after.map(|pin| json!(pin.state(name))),
    };
    change.finish(&mut tx, entry).await?;
    tx.commit().await?;
    Ok(true)
}

/// What an environment pins, as the compiler and the publisher want it.
/// As `load` would give it if it were pinned: what runs as its shadow answers nobody, and is left out.
pub async fn would_pin(
    read: &mut Connection,
    scope: &NamespaceScope,
    name: &str,
    pin: &Pin,
) -> Result<Pinned, Refusal> {
    let policy = find(read, scope, name).await?;
    check_pin(read, &policy, pin).await?;
    let version = find_version(read, &policy.id, &pin.digest).await?;
    let digest = version.digest.parse::<Digest>();
    let digest =
        digest.map_err(|_| Refusal::Internal("a stored digest is malformed".to_owned()))?;
    let attributes = stored("list of attributes", &version.attributes)?;
    let state = PolicyState { name: name.to_owned(), digest, attributes };
    Ok(Pinned { state, bytes: u32::try_from(version.bytes).unwrap_or(u32::MAX), shadow: None })
}

pub async fn load(read: &mut Connection, environment_id: &str) -> Result<Vec<Pinned>, Refusal> {
    type Row = (String, String, i64, String, Option<String>, Option<i64>, i64);
    let rows: Vec<Row> = query_as(LOADED).bind(environment_id).fetch_all(read).await?;
    let digest = |text: &str| -> Result<Digest, Refusal> {
        text.parse().map_err(|_| Refusal::Internal("a stored digest is malformed".to_owned()))
    };
    let size = |bytes: i64| u32::try_from(bytes).unwrap_or(u32::MAX);
    rows.into_iter()
        .map(|(name, pinned, bytes, attributes, shadow, shadow_bytes, share)| {
            let shadow = match (shadow, shadow_bytes) {
                (Some(shadow), Some(bytes)) => Some(rules::blob::Shadow {
                    version: rules::blob::PolicyBlob {
                        digest: digest(&shadow)?,
                        bytes: size(bytes),
                    },
                    share: u32::try_from(share).unwrap_or(0),
                }),
                _ => None,
            };
            let attributes = stored("list of attributes", &attributes)?;
            let state = PolicyState { name, digest: digest(&pinned)?, attributes };
            Ok(Pinned { state, bytes: size(bytes), shadow })
        })
        .collect()
}
