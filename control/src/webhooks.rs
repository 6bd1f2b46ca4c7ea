//! Webhooks: endpoints of a namespace are told of its changes, in order, at least once.
//!
//! An endpoint is a cursor over the namespace's audit. The leader writes down what is to be delivered
//! (`webhook_delivery`), sends the oldest, writes down what became of it, and only then looks at the
//! next: what waits behind one that fails keeps its place. Nothing is locked while something is sent;
//! who dies between sending and writing it down sends it again, under the same id. What fails through
//! the whole schedule is kept (dead), and the endpoint rests until somebody says that it goes on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use standardwebhooks::Webhook as Signer;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::ToSchema;

use crate::anchors;
use crate::audit::{self, Entry};
use crate::authorize::NamespaceScope;
use crate::change::{Change, Expected, Touches};
use crate::events::{self, Event};
use crate::lead::{self, FenceError, Lead};
use crate::outgoing::{Outgoing, Reply, SendError};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, stored, written};
use crate::relay::jittered;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Store, Tx, new_id, now_us, rfc3339};
use crate::vault::{self, Shut, Vault};

const WEBHOOKS_MAX: i64 = 20;
const LISTED_MAX: usize = 100;
/// Of one transaction in which secrets are sealed.
const SEALED_MAX: i64 = 100;
const SECRET_BYTES: usize = 32;
const OVERLAP_SECONDS_MAX: i64 = 7 * 24 * 60 * 60;
/// Of one request, its answer included.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Requests under way at once.
const AT_ONCE: usize = 64;
/// Endpoints of one pass; what is left waits for the next.
const PASS_MAX: i64 = 500;
/// Audit rows that are looked at, and so deliveries that are made, in one transaction.
const ROWS_MAX: i64 = 50;
/// Attempts that a delivery remembers.
const LOG_MAX: usize = 10;
/// Deliveries that are over are kept so long, and so many of an endpoint.
const KEPT_US: i64 = 30 * 24 * 60 * 60 * 1_000_000;
const KEPT_MAX: i64 = 1000;
/// The most that a receiver may put off its next attempt.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// After each failure the next pause; after the last the delivery is dead.
pub const SCHEDULE: [Duration; 9] = {
    const HOUR: u64 = 60 * 60;
    [
        Duration::from_secs(5),
        Duration::from_secs(5 * 60),
        Duration::from_secs(30 * 60),
        Duration::from_secs(2 * HOUR),
        Duration::from_secs(5 * HOUR),
        Duration::from_secs(10 * HOUR),
        Duration::from_secs(14 * HOUR),
        Duration::from_secs(20 * HOUR),
        Duration::from_secs(24 * HOUR),
    ]
};

macro_rules! hooks {
    ($rest:literal) => {
        concat!(
            "SELECT id, namespace_id, url, description, actions, environments, secret, \
            secret_before, secret_before_until, enabled, disabled_reason, cursor, anchored, ordinal, \
            version, created_by, created_at, updated_at FROM webhook ",
            $rest
        )
    };
}
macro_rules! deliveries {
    ($rest:literal) => {
        concat!(
            "SELECT id, webhook_id, ordinal, event, sequence, body, state, attempts, next_at, log, \
            created_at, finished_at FROM webhook_delivery ",
            $rest
        )
    };
}

const PAGE: &str = hooks!("WHERE namespace_id = $1 AND id > $2 ORDER BY id LIMIT $3");
const ONE: &str = hooks!("WHERE namespace_id = $1 AND id = $2");
const BY_ID: &str = hooks!("WHERE id = $1");
const COUNT: &str = "SELECT COUNT(*) FROM webhook WHERE namespace_id = $1";
const INSERT: &str = "INSERT INTO webhook (id, namespace_id, url, description, actions, \
    environments, secret, enabled, cursor, anchored, ordinal, version, created_by, created_at, \
    updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 0, 1, $10, $11, $11)";
const UPDATE: &str = "UPDATE webhook SET url = $2, description = $3, actions = $4, \
    environments = $5, enabled = $6, disabled_reason = $7, version = version + 1, updated_at = $8 \
    WHERE id = $1";
/// One that is lost (empty) is no secret before.
const ROTATE: &str = "UPDATE webhook SET secret = $2, \
    secret_before = CASE WHEN LENGTH(secret) > 0 THEN secret END, \
    secret_before_until = $3, version = version + 1, updated_at = $4 WHERE id = $1";
/// As controls from before there was a vault kept them: `SECRET_BYTES`, which nothing sealed has.
const PLAIN: &str = "SELECT id, secret, secret_before FROM webhook \
    WHERE id > $1 AND (LENGTH(secret) = 32 OR LENGTH(secret_before) = 32) ORDER BY id LIMIT $2";
const SEAL: &str =
    "UPDATE webhook SET secret = $3, secret_before = $4 WHERE id = $1 AND secret = $2";
const LOSE: &str = "UPDATE webhook SET secret = $1, secret_before = NULL, \
    secret_before_until = NULL, enabled = FALSE, disabled_reason = $2, version = version + 1, \
    updated_at = $3";
const DELETE: &str = "DELETE FROM webhook WHERE id = $1";
const NAMESPACE_KEY: &str = "SELECT key FROM namespace WHERE id = $1";

/// Endpoints with something to do: a delivery whose turn it is, or nothing that waits and news.
const DUE: &str = "SELECT w.id FROM webhook w JOIN namespace n ON n.id = w.namespace_id \
    WHERE w.enabled AND (EXISTS (SELECT 1 FROM webhook_delivery d WHERE d.webhook_id = w.id \
        AND d.state = 'waiting' AND d.next_at <= $1 AND NOT EXISTS (SELECT 1 FROM webhook_delivery e \
            WHERE e.webhook_id = w.id AND e.state = 'waiting' AND e.ordinal < d.ordinal)) \
    OR (NOT EXISTS (SELECT 1 FROM webhook_delivery d WHERE d.webhook_id = w.id \
            AND d.state = 'waiting') \
        AND (n.audit_sequence > w.cursor OR EXISTS (SELECT 1 FROM audit_anchor a \
            WHERE a.namespace_id = n.id AND a.sequence > w.anchored AND a.sequence <= w.cursor)))) \
    ORDER BY w.id LIMIT $2";
const LOCK: &str = "UPDATE webhook SET ordinal = ordinal WHERE id = $1 RETURNING ordinal";
const NEXT: &str = "UPDATE webhook SET ordinal = ordinal + 1 WHERE id = $1 RETURNING ordinal";
const MOVE: &str = "UPDATE webhook SET cursor = $2, anchored = $3, ordinal = $4 WHERE id = $1";
const DISABLE: &str = "UPDATE webhook SET enabled = FALSE, disabled_reason = $2 WHERE id = $1";
const ENABLE: &str = "UPDATE webhook SET enabled = TRUE, disabled_reason = NULL WHERE id = $1";
const ADD: &str = "INSERT INTO webhook_delivery (id, webhook_id, ordinal, event, sequence, body, \
    state, attempts, next_at, log, created_at) \
    VALUES ($1, $2, $3, $4, $5, $6, 'waiting', 0, $7, '[]', $7)";
const FIRST: &str =
    deliveries!("WHERE webhook_id = $1 AND state = 'waiting' ORDER BY ordinal LIMIT 1");
const DELIVERIES: &str =
    deliveries!("WHERE webhook_id = $1 AND ordinal < $2 ORDER BY ordinal DESC LIMIT $3");
const DELIVERY: &str = deliveries!("WHERE webhook_id = $1 AND id = $2");
const DONE: &str = "UPDATE webhook_delivery SET state = $3, attempts = $4, next_at = $5, log = $6, \
    finished_at = $7 WHERE id = $1 AND state = 'waiting' AND attempts = $2";
const AGAIN: &str = "UPDATE webhook_delivery SET state = 'waiting', attempts = 0, next_at = $2, \
    finished_at = NULL WHERE id = $1";
const PRUNE: &str = "DELETE FROM webhook_delivery WHERE webhook_id = $1 AND state <> 'waiting' \
    AND (ordinal <= $2 OR finished_at < $3)";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Webhook {
    pub id: String,
    pub namespace_id: String,
    pub url: String,
    pub description: String,
    actions: String,
    environments: String,
    /// Sealed, of `secret_of` this endpoint; empty once it is lost.
    secret: Vec<u8>,
    /// Sealed too.
    secret_before: Option<Vec<u8>>,
    secret_before_until: Option<i64>,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    cursor: i64,
    anchored: i64,
    ordinal: i64,
    pub version: i64,
    pub created_by: String,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Delivery {
    pub id: String,
    webhook_id: String,
    pub ordinal: i64,
    pub event: String,
    pub sequence: Option<i64>,
    pub body: String,
    pub state: String,
    pub attempts: i64,
    pub next_at: i64,
    log: String,
    pub created_at: i64,
    pub finished_at: Option<i64>,
}

/// An attempt and its end.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// RFC 3339
    pub at: String,
    /// What was answered, if anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub milliseconds: u64,
}

/// What people say of an endpoint.
#[derive(Debug, Clone)]
pub struct Settings {
    pub url: String,
    pub description: String,
    pub actions: Vec<String>,
    pub environments: Vec<String>,
    pub enabled: bool,
}

impl Webhook {
    pub fn actions(&self) -> Vec<String> {
        serde_json::from_str(&self.actions).unwrap_or_default()
    }

    pub fn environments(&self) -> Vec<String> {
        serde_json::from_str(&self.environments).unwrap_or_default()
    }

    /// Until when the secret before is valid beside this one.
    pub fn overlap_until(&self) -> Option<i64> {
        self.secret_before.as_ref().and(self.secret_before_until)
    }

    pub fn settings(&self) -> Settings {
        Settings {
            url: self.url.clone(),
            description: self.description.clone(),
            actions: self.actions(),
            environments: self.environments(),
            enabled: self.enabled,
        }
    }

    /// As the audit keeps it: no secret, and of the URL, which may hold one, no more than its host.
    fn state(&self) -> Value {
        let url: Option<url::Url> = self.url.parse().ok();
        let host = url.and_then(|url| url.host_str().map(str::to_owned));
        json!({ "id": self.id, "host": host, "description": self.description,
            "actions": self.actions(), "environments": self.environments(),
            "enabled": self.enabled, "version": self.version })
    }
}

impl Delivery {
    pub fn attempts(&self) -> Vec<Attempt> {
        serde_json::from_str(&self.log).unwrap_or_default()
    }
}

/// As it is shown, once.
fn shown(secret: &[u8]) -> String {
    use base64::Engine as _;
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(secret))
}

fn new_secret() -> Result<Vec<u8>, Refusal> {
    let mut secret = vec![0u8; SECRET_BYTES];
    seam::random(&mut secret)
        .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    Ok(secret)
}

/// What a sealed secret is bound to.
fn secret_of(id: &str) -> String {
    format!("webhook {id}")
}

/// A stored secret, also one that waits to be sealed.
fn opened(vault: &Vault, id: &str, stored: &[u8]) -> Result<Vec<u8>, Shut> {
    match stored.len() {
        SECRET_BYTES => Ok(stored.to_vec()),
        _ => vault.unseal(&secret_of(id), stored),
    }
}

/// Seals what lies there in plain; how many endpoints had such secrets. Beside other controls that do the
/// same: what was changed meanwhile is left to whoever changed it.
pub async fn seal_plain(store: &Store, vault: &Vault) -> Result<u64, Refusal> {
    let (mut sealed, mut after) = (0, String::new());
    loop {
        let mut tx = store.write().await?;
        tx.take_turn("secrets key").await?;
        let rows: Vec<(String, Vec<u8>, Option<Vec<u8>>)> =
            query_as(PLAIN).bind(&after).bind(SEALED_MAX).fetch_all(&mut tx).await?;
        let Some((last, ..)) = rows.last() else { return Ok(sealed) };
        after.clone_from(last);
        for (id, secret, before) in rows {
            let seal = |stored: &[u8]| match stored.len() {
                SECRET_BYTES => vault.seal(&secret_of(&id), stored),
                _ => Ok(stored.to_vec()),
            };
            let new = seal(&secret)?;
            let new_before = before.as_deref().map(seal).transpose()?;
            let seal = query(SEAL).bind(&id).bind(&secret).bind(new).bind(new_before);
            sealed += seal.execute(&mut tx).await?;
        }
        tx.commit().await?;
    }
}

/// The secrets key is lost, and what was sealed with it: endpoints rest until they have another secret.
/// How many there are.
pub async fn forget_secrets(store: &Store) -> Result<u64, Refusal> {
    let mut tx = store.write().await?;
    vault::forget(&mut tx).await?;
    let reason = "its secret was lost with the secrets key; rotate it, then enable it";
    let lost = query(LOSE).bind(Vec::<u8>::new()).bind(reason).bind(now_us());
    let lost = lost.execute(&mut tx).await?;
    tx.commit().await?;
    Ok(lost)
}

fn check(settings: &Settings, outgoing: &Outgoing) -> Result<(), Refusal> {
    outgoing.check(&settings.url).map_err(|error| Refusal::invalid("/url", error.to_string()))?;
    crate::refusal::check_name("/description", &settings.description)?;
    let lists = [("/actions", &settings.actions), ("/environments", &settings.environments)];
    for (pointer, list) in lists {
        if list.len() > LISTED_MAX {
            let message = format!("{} entries, the limit is {LISTED_MAX}", list.len());
            return Err(Refusal::invalid(pointer, message));
        }
        for (index, text) in list.iter().enumerate() {
            let plain = text.strip_suffix('*').unwrap_or(text);
            let fits = (1..=64).contains(&text.len())
                && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
                && (pointer == "/actions" || plain == text);
            if !fits {
                let message =
                    "1 to 64 letters, digits, '-', '_' and '.'; an action may end with '*'";
                return Err(Refusal::invalid(format!("{pointer}/{index}"), message));
            }
        }
    }
    Ok(())
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<Webhook>, Refusal> {
    page.of(read, PAGE, scope.id(), |row: &Webhook| row.id.clone()).await
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    id: &str,
) -> Result<Webhook, Refusal> {
    let row = query_as(ONE).bind(scope.id()).bind(id).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("webhook"))
}

/// With its secret, which nobody is shown again. It is told of what comes after it.
pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    outgoing: &Outgoing,
    vault: &Vault,
    settings: &Settings,
) -> Result<(Webhook, String), Refusal> {
    check(settings, outgoing)?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let count: i64 = query_scalar(COUNT).bind(scope.id()).fetch_one(tx).await?;
    if count >= WEBHOOKS_MAX {
        return Err(Refusal::TooMany { what: "webhooks", max: WEBHOOKS_MAX as usize });
    }
    let (id, secret) = (new_id(), new_secret()?);
    // Its own row is the first that it is told of.
    let (cursor, _) = audit::end(tx, scope.id()).await?;
    query(INSERT)
        .bind(&id)
        .bind(scope.id())
        .bind(&settings.url)
        .bind(&settings.description)
        .bind(written("list", &settings.actions)?)
        .bind(written("list", &settings.environments)?)
        .bind(vault.seal(&secret_of(&id), &secret)?)
        .bind(settings.enabled)
        .bind(cursor)
        .bind(scope.actor())
        .bind(change.at)
        .execute(tx)
        .await?;
    let made = get(tx, scope, &id).await?;
    let entry = Entry {
        action: "webhook.create",
        target: id,
        environment: None,
        before: None,
        after: Some(made.state()),
    };
    change.finish(tx, entry).await?;
    Ok((made, shown(&secret)))
}

pub async fn update(
    tx: &mut Tx,
    scope: &NamespaceScope,
    outgoing: &Outgoing,
    expected: Expected,
    id: &str,
    settings: impl FnOnce(Settings) -> Settings,
) -> Result<Webhook, Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = get(tx, scope, id).await?;
    expected.check(before.version, || before.state())?;
    let settings = settings(before.settings());
    check(&settings, outgoing)?;
    let reason = match (before.enabled, settings.enabled) {
        (true, false) => Some("disabled by hand".to_owned()),
        (false, false) => before.disabled_reason.clone(),
        (_, true) => None,
    };
    query(UPDATE)
        .bind(id)
        .bind(&settings.url)
        .bind(&settings.description)
        .bind(written("list", &settings.actions)?)
        .bind(written("list", &settings.environments)?)
        .bind(settings.enabled)
        .bind(reason)
        .bind(change.at)
        .execute(tx)
        .await?;
    let after = get(tx, scope, id).await?;
    let entry = Entry {
        action: "webhook.update",
        target: id.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: Some(after.state()),
    };
    change.finish(tx, entry).await?;
    Ok(after)
}

/// A new secret; for `overlap_seconds` bodies are signed with both.
pub async fn rotate(
    tx: &mut Tx,
    scope: &NamespaceScope,
    vault: &Vault,
    id: &str,
    overlap_seconds: i64,
) -> Result<(Webhook, String), Refusal> {
    if !(0..=OVERLAP_SECONDS_MAX).contains(&overlap_seconds) {
        let message = format!("0 to {OVERLAP_SECONDS_MAX} seconds");
        return Err(Refusal::invalid("/overlapSeconds", message));
    }
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = get(tx, scope, id).await?;
    let secret = new_secret()?;
    let until = tx.clock_us().await? + overlap_seconds * 1_000_000;
    let sealed = vault.seal(&secret_of(id), &secret)?;
    let rotate = query(ROTATE).bind(id).bind(sealed).bind(until).bind(change.at);
    rotate.execute(tx).await?;
    let after = get(tx, scope, id).await?;
    let entry = Entry {
        action: "webhook.rotate",
        target: id.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: Some(after.state()),
    };
    change.finish(tx, entry).await?;
    Ok((after, shown(&secret)))
}

/// With its deliveries.
pub async fn delete(
    tx: &mut Tx,
    scope: &NamespaceScope,
    expected: Expected,
    id: &str,
) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = get(tx, scope, id).await?;
    expected.check(before.version, || before.state())?;
    query(DELETE).bind(id).execute(tx).await?;
    let entry = Entry {
        action: "webhook.delete",
        target: id.to_owned(),
        environment: None,
        before: Some(before.state()),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// Newest first.
pub async fn deliveries(
    read: &mut Connection,
    scope: &NamespaceScope,
    id: &str,
    page: &Page,
) -> Result<Paged<Delivery>, Refusal> {
    let webhook = get(read, scope, id).await?;
    let before = match page.after.as_str() {
        "" => i64::MAX,
        cursor => {
            cursor.parse().map_err(|_| Refusal::invalid("/cursor", "not a cursor of this list"))?
        }
    };
    let rows = query_as(DELIVERIES).bind(&webhook.id).bind(before).bind(page.fetch());
    Ok(page.cut(rows.fetch_all(read).await?, |row: &Delivery| row.ordinal.to_string()))
}

pub async fn delivery(
    read: &mut Connection,
    scope: &NamespaceScope,
    id: &str,
    delivery: &str,
) -> Result<Delivery, Refusal> {
    let webhook = get(read, scope, id).await?;
    let row = query_as(DELIVERY).bind(&webhook.id).bind(delivery).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("delivery"))
}

/// Sends it once more, under the id that it had, before whatever waits; an endpoint that rests goes on.
pub async fn redeliver(
    tx: &mut Tx,
    scope: &NamespaceScope,
    id: &str,
    delivery_id: &str,
) -> Result<Delivery, Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = delivery(tx, scope, id, delivery_id).await?;
    let now = tx.clock_us().await?;
    query(AGAIN).bind(delivery_id).bind(now).execute(tx).await?;
    query(ENABLE).bind(id).execute(tx).await?;
    let entry = Entry {
        action: "webhook.redeliver",
        target: id.to_owned(),
        environment: None,
        before: None,
        after: Some(json!({ "delivery": before.id, "event": before.event })),
    };
    change.finish(tx, entry).await?;
    delivery(tx, scope, id, delivery_id).await
}

/// Something to send that says nothing, behind whatever waits.
pub async fn test(tx: &mut Tx, scope: &NamespaceScope, id: &str) -> Result<Delivery, Refusal> {
    get(tx, scope, id).await?;
    let ordinal: i64 = query_scalar(NEXT).bind(id).fetch_one(tx).await?;
    let now = tx.clock_us().await?;
    let data = json!({ "namespace": scope.key(), "webhook": id });
    let event = Event { kind: "webhook.test".to_owned(), timestamp: rfc3339(now), data };
    let delivery_id = add(tx, id, ordinal, &event, None, now).await?;
    delivery(tx, scope, id, &delivery_id).await
}

async fn add(
    tx: &mut Connection,
    webhook_id: &str,
    ordinal: i64,
    event: &Event,
    sequence: Option<i64>,
    now: i64,
) -> Result<String, Refusal> {
    let id = format!("msg_{}", new_id().replace('-', ""));
    query(ADD)
        .bind(&id)
        .bind(webhook_id)
        .bind(ordinal)
        .bind(&event.kind)
        .bind(sequence)
        .bind(written("event", event)?)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(id)
}

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error("this control does not lead")]
    NotLeading,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] sqlx::Error),
}

impl From<FenceError> for WorkError {
    fn from(error: FenceError) -> WorkError {
        match error {
            FenceError::Over(_) => WorkError::NotLeading,
            FenceError::Store(error) => WorkError::Store(error),
        }
    }
}

/// What became of one look at an endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    More,
    /// Nothing, or nothing yet.
    Rest,
}

/// Sends what is due, while this control leads.
#[derive(Clone)]
pub struct Worker {
    pub store: Store,
    pub lead: Arc<Lead>,
    pub outgoing: Outgoing,
    vault: Arc<Vault>,
    /// Of tests; `SCHEDULE` otherwise.
    pub schedule: Arc<[Duration]>,
    at_once: Arc<Semaphore>,
    /// Endpoints that a task is at.
    busy: Arc<Mutex<HashSet<String>>>,
}

impl Worker {
    pub fn new(
        store: Store,
        lead: Arc<Lead>,
        outgoing: Outgoing,
        vault: Arc<Vault>,
        schedule: Arc<[Duration]>,
    ) -> Worker {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        Worker { store, lead, outgoing, vault, schedule, at_once, busy: Arc::default() }
    }

    /// Until told to stop; then what is being sent is given up, and sent again by whoever leads next.
    pub async fn run(
        self,
        mut news: watch::Receiver<u64>,
        tick: Duration,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        while !stop.is_cancelled() {
            news.borrow_and_update();
            if self.lead.epoch().is_some()
                && let Err(error) = self.pass(&tasks, &stop).await
            {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "webhooks were not looked at"
                );
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = news.changed() => {}
                () = tokio::time::sleep(jittered(tick)) => {}
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn pass(&self, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), WorkError> {
        let due: Vec<String> = {
            let mut read = self.store.read().await?;
            let now = read.clock_us().await?;
            query_scalar(DUE).bind(now).bind(PASS_MAX).fetch_all(&mut read).await?
        };
        for id in due {
            if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
                continue;
            }
            let (worker, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                let working = async {
                    let Ok(_turn) = worker.at_once.acquire().await else { return };
                    loop {
                        match worker.step(&id).await {
                            Ok(Step::More) => {}
                            Ok(Step::Rest) | Err(WorkError::NotLeading) => return,
                            Err(error) => {
                                let error = &error as &dyn std::error::Error;
                                tracing::warn!(
                                    error,
                                    webhook = id,
                                    "a webhook rests until the next pass"
                                );
                                return;
                            }
                        }
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = working => {}
                }
                worker.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            });
        }
        Ok(())
    }

    async fn step(&self, id: &str) -> Result<Step, WorkError> {
        let epoch = self.lead.epoch().ok_or(WorkError::NotLeading)?;
        let (webhook, first, now) = {
            let mut read = self.store.read().await?;
            let webhook: Option<Webhook> =
                query_as(BY_ID).bind(id).fetch_optional(&mut read).await?;
            let Some(webhook) = webhook.filter(|webhook| webhook.enabled) else {
                return Ok(Step::Rest);
            };
            let first: Option<Delivery> =
                query_as(FIRST).bind(id).fetch_optional(&mut read).await?;
            (webhook, first, read.clock_us().await?)
        };
        let Some(delivery) = first else { return self.write_down(epoch, &webhook).await };
        if delivery.next_at > now {
            return Ok(Step::Rest);
        }
        let started = std::time::Instant::now();
        let sent = self.send(&webhook, &delivery, now).await;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        fail_at("webhooks::sent")?;
        self.record(epoch, &delivery, sent, now, milliseconds).await
    }

    /// The next deliveries of an endpoint for which none waits.
    async fn write_down(&self, epoch: lead::Epoch, webhook: &Webhook) -> Result<Step, WorkError> {
        let mut tx = lead::write(&self.store, epoch).await?;
        let Some(mut ordinal) =
            query_scalar::<i64>(LOCK).bind(&webhook.id).fetch_optional(&mut tx).await?
        else {
            return Ok(Step::Rest);
        };
        if ordinal != webhook.ordinal {
            // A test came between.
            return Ok(Step::More);
        }
        let key: String =
            query_scalar(NAMESPACE_KEY).bind(&webhook.namespace_id).fetch_one(&mut tx).await?;
        let now = tx.clock_us().await?;
        let (actions, environments) = (webhook.actions(), webhook.environments());
        let chain = &webhook.namespace_id;
        let rows = audit::after(&mut tx, chain, webhook.cursor, ROWS_MAX).await?;
        let cursor = rows.last().map_or(webhook.cursor, |row| row.sequence);
        let anchors = anchors::of_chain(&mut tx, chain, webhook.anchored, ROWS_MAX).await?;
        let anchors: Vec<_> = anchors
            .into_iter()
            .filter_map(|signed| Some((signed.claims()?.sequence, signed)))
            .filter(|(sequence, _)| *sequence <= cursor)
            .collect();
        let anchored = anchors.last().map_or(webhook.anchored, |(sequence, _)| *sequence);
        // An anchor comes after the row that it is of.
        let mut events: Vec<(i64, u8, Event)> = Vec::new();
        for row in &rows {
            let of = row.environment.as_deref();
            if events::is_wanted(&actions, &environments, &row.action, of) {
                events.push((row.sequence, 0, events::of_row(&key, row)));
            }
        }
        for (sequence, signed) in &anchors {
            if events::is_wanted(&actions, &environments, "audit.anchor", None) {
                events.push((*sequence, 1, events::of_anchor(&key, signed)));
            }
        }
        events.sort_by_key(|(sequence, kind, _)| (*sequence, *kind));
        for (sequence, _, event) in &events {
            ordinal += 1;
            add(&mut tx, &webhook.id, ordinal, event, Some(*sequence), now).await?;
        }
        query(PRUNE)
            .bind(&webhook.id)
            .bind(ordinal - KEPT_MAX)
            .bind(now - KEPT_US)
            .execute(&mut tx)
            .await?;
        let moved = query(MOVE).bind(&webhook.id).bind(cursor).bind(anchored).bind(ordinal);
        moved.execute(&mut tx).await?;
        tx.commit().await?;
        let idle = rows.is_empty() && anchors.is_empty();
        Ok(if idle { Step::Rest } else { Step::More })
    }

    async fn send(
        &self,
        webhook: &Webhook,
        delivery: &Delivery,
        now: i64,
    ) -> Result<Reply, SendError> {
        let failed = |_| SendError::Failed("the body cannot be signed".to_owned());
        let timestamp = now / 1_000_000;
        let before = webhook
            .secret_before
            .clone()
            .filter(|_| webhook.secret_before_until.is_some_and(|until| until > now));
        let mut signatures = Vec::new();
        for stored in std::iter::once(webhook.secret.clone()).chain(before) {
            let shut = |shut: Shut| SendError::Failed(format!("{shut}; rotate it"));
            let secret = opened(&self.vault, &webhook.id, &stored).map_err(shut)?;
            let signer = Signer::from_bytes(secret).map_err(failed)?;
            let body = delivery.body.as_bytes();
            signatures.push(signer.sign(&delivery.id, timestamp, body).map_err(failed)?);
        }
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        set(HeaderName::from_static("webhook-id"), delivery.id.clone());
        set(HeaderName::from_static("webhook-timestamp"), timestamp.to_string());
        set(HeaderName::from_static("webhook-signature"), signatures.join(" "));
        set(CONTENT_TYPE, "application/json".to_owned());
        set(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")).to_owned());
        let body = delivery.body.clone().into_bytes();
        self.outgoing.post(&webhook.url, headers, body, TIMEOUT).await
    }

    async fn record(
        &self,
        epoch: lead::Epoch,
        delivery: &Delivery,
        sent: Result<Reply, SendError>,
        sent_at: i64,
        milliseconds: u64,
    ) -> Result<Step, WorkError> {
        let attempts = delivery.attempts + 1;
        let attempt = Attempt {
            at: rfc3339(sent_at),
            status: sent.as_ref().ok().map(|reply| reply.status.as_u16()),
            error: sent.as_ref().err().map(ToString::to_string),
            milliseconds,
        };
        let mut log: Vec<Attempt> = stored("log of a delivery", &delivery.log)?;
        log.push(attempt.clone());
        let log = log.split_off(log.len().saturating_sub(LOG_MAX));
        let delivered = sent.as_ref().is_ok_and(|reply| reply.status.is_success());
        let gone = sent.as_ref().is_ok_and(|reply| reply.status == StatusCode::GONE);
        let pause = usize::try_from(attempts - 1).ok().and_then(|at| self.schedule.get(at));
        let (state, next) = match (delivered, pause) {
            (true, _) => ("delivered", None),
            (false, Some(pause)) if !gone => {
                let asked = sent.as_ref().ok().and_then(retry_after).unwrap_or_default();
                // Later than the schedule says, never earlier.
                let jitter = jittered(*pause / 10);
                ("waiting", Some((*pause + jitter).max(asked.min(RETRY_AFTER_MAX))))
            }
            (false, _) => ("dead", None),
        };
        let mut tx = lead::write(&self.store, epoch).await?;
        let now = tx.clock_us().await?;
        let next_at = match next {
            Some(pause) => now + i64::try_from(pause.as_micros()).unwrap_or(i64::MAX / 2),
            None => delivery.next_at,
        };
        let finished = (state != "waiting").then_some(now);
        let done = query(DONE).bind(&delivery.id).bind(delivery.attempts).bind(state);
        let done = done.bind(attempts).bind(next_at).bind(written("log", &log)?).bind(finished);
        if done.execute(&mut tx).await? > 0 && state == "dead" {
            let reason = match (gone, &attempt.status, &attempt.error) {
                (true, ..) => "the receiver answered 410: it is gone for good".to_owned(),
                (_, Some(status), _) => format!("{attempts} attempts, the last answered {status}"),
                (_, _, error) => {
                    let error = error.as_deref().unwrap_or("no answer");
                    format!("{attempts} attempts, the last failed: {error}")
                }
            };
            tracing::warn!(
                webhook = delivery.webhook_id,
                delivery = delivery.id,
                reason,
                "a webhook is disabled"
            );
            query(DISABLE).bind(&delivery.webhook_id).bind(reason).execute(&mut tx).await?;
        }
        tx.commit().await?;
        metrics::counter!("tidegate_control_webhook_attempts_total", "end" => state).increment(1);
        Ok(if state == "delivered" { Step::More } else { Step::Rest })
    }
}

/// Where tests let the process die. Nothing is left of it in a build without failpoints.
fn fail_at(_name: &'static str) -> Result<(), WorkError> {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| Err(Refusal::Internal(format!("it died at {_name}")).into()));
    Ok(())
}

/// Whole seconds; a date is not looked at.
fn retry_after(reply: &Reply) -> Option<Duration> {
    let text = reply.headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(text.trim().parse().ok()?))
}
