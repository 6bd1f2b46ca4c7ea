//! Where flags are decided: admin API, store, outbox, relay, publisher, and what edges fetch.
//!
//! Arrows: `http` → domain files (one noun each) → `outbox`, `audit`; `relay` → `publisher` →
//! `bus`; `carrier` → `publisher`, `bus`; `reports` → `edges`; never back. SQL is not in `http`, HTTP words are not in the domain files.
//!
//! Reading order: `change` (what every write does), `flags` and `configs` (two such nouns),
//! `publisher` (from state to head), `authorize` (who may), `http`.
#![forbid(unsafe_code)]

pub mod admission;
pub mod anchors;
pub mod attempts;
pub mod audit;
pub mod authorize;
pub mod blobs;
pub mod bus;
pub mod carrier;
pub mod cel;
pub mod change;
pub mod change_sets;
mod changes;
pub mod clients;
pub mod config;
pub mod configs;
pub mod delta;
pub mod edges;
pub mod environments;
#[cfg(feature = "etcd")]
mod etcd;
pub mod evaluate;
pub mod events;
pub mod flags;
pub mod fleet;
pub mod generation;
mod guard;
pub mod http;
pub mod idempotency;
pub mod impact;
pub mod imports;
pub mod keys;
pub mod lead;
pub mod lifecycle;
pub mod members;
pub mod namespaces;
pub mod oidc;
pub mod outbox;
pub mod outgoing;
pub mod page;
pub mod parsed;
pub mod passwords;
pub mod policies;
pub mod promotions;
pub mod protection;
pub mod publisher;
pub mod reconciler;
pub mod references;
pub mod refusal;
pub mod registrations;
pub mod relay;
pub mod reports;
mod revert;
pub mod rollout;
pub mod samples;
pub mod schedule;
pub mod seen;
pub mod segments;
mod serve;
pub mod sessions;
pub mod signing;
pub mod store;
pub mod tokens;
pub mod usage;
pub mod users;
pub mod vault;
pub mod versions;
mod wake;
pub mod webhooks;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};
use rules::head::PublicKey;
use rules::keys::KeyKind;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::authorize::callers;
use crate::bus::nats::NatsBus;
use crate::bus::{Bus, InProcessBus};
use crate::carrier::Carrier;
use crate::config::Config;
use crate::lead::Lead;
use crate::publisher::Publisher;
use crate::registrations::Registrations;
use crate::relay::Doorbell;
use crate::store::{Database, Store};

/// A running control plane.
pub struct Control {
    pub address: SocketAddr,
    pub bus: Arc<dyn Bus>,
    /// What edges trust heads by.
    pub public_key: PublicKey,
    /// Holds the bootstrap token, mode 0600, of a control that takes one.
    pub admin_token_file: PathBuf,
    /// Holds the token that makes the first owner, mode 0600, if this control made one.
    pub setup_token_file: PathBuf,
    /// Whether there was no account yet when it started.
    pub awaits_owner: bool,
    pub store: Store,
    stopping: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the data folder {path} cannot be used")]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("nothing can be served on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] store::OpenError),
    #[error("the database's schema cannot be read")]
    Schema(#[source] sqlx::Error),
    #[error(transparent)]
    Signing(#[from] signing::SigningError),
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    #[error("the secrets of webhooks cannot be sealed")]
    Sealing(#[source] refusal::Refusal),
    #[error("the first token cannot be made")]
    Bootstrap(#[source] refusal::Refusal),
    #[error("the first token cannot be written to {path}")]
    TokenFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the identity provider cannot be spoken to")]
    Oidc(#[source] reqwest::Error),
    #[error(transparent)]
    Route(#[from] http::Unguarded),
    #[error("no client can be made for webhooks")]
    Outgoing(#[from] reqwest::Error),
    #[error(transparent)]
    Broker(#[from] bus::nats::ConnectError),
    #[error(
        "this tidegate was built without etcd; `cargo build -p cli --features etcd` builds it with \
         it, and needs protoc"
    )]
    NoEtcd,
}

/// Brings the database to this build's schema without serving anything. `start` does the same;
/// this is for who wants to see it done first. Returns the schema's versions.
pub async fn migrate(database: &Database) -> Result<Vec<i64>, StartError> {
    if let Database::Sqlite(path) = database
        && let Some(folder) = path.parent()
    {
        make_private_folder(folder)
            .map_err(|source| StartError::DataDir { path: folder.to_owned(), source })?;
    }
    let store = Store::open(database).await?;
    let versions = store.schema_versions().await;
    store.close().await;
    versions.map_err(StartError::Schema)
}

/// Between attempts to open a database that is not there yet (± 50 %).
const OPEN_PAUSE_FIRST: Duration = Duration::from_millis(100);
const OPEN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Somebody waits for it with a terminal in front of them.
const SIGNING_KEY_TICK: Duration = Duration::from_secs(1);
const LEASE_ALONE: Duration = Duration::from_secs(60);
/// Answers that say "not yet" are short.
const WAITING_DRAIN: Duration = Duration::from_millis(200);

pub async fn start(config: Config) -> Result<Control, StartError> {
    if config.etcd.is_some() && cfg!(not(feature = "etcd")) {
        return Err(StartError::NoEtcd);
    }
    // Before anything else, so that a taken port is the first thing one hears.
    let listening = |source| StartError::Listen { address: config.listen, source };
    let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;
    make_private_folder(&config.data_dir)
        .map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;

    let (listener, store) = open_store(listener, &config).await?;
    let key = signing::load_or_make(&config.signing_key_file)?;
    let secrets_key = config.secrets_key_file.clone();
    let secrets_key = secrets_key.unwrap_or_else(|| vault::beside(&config.signing_key_file));
    let vault = Arc::new(vault::Vault::open(&store, &secrets_key).await?);
    // Of a control from before there was a vault, or of one that still runs beside this one.
    let sealed = webhooks::seal_plain(&store, &vault).await.map_err(StartError::Sealing)?;
    if sealed > 0 {
        tracing::info!(webhooks = sealed, "secrets that lay in the database in plain are sealed");
    }
    let admin_token_file = config.data_dir.join("admin-token");
    let setup_token_file = config.data_dir.join("setup-token");
    let mut begin = Begin { first: &config.first, admin: None, setup: &setup_token_file };
    if config.bootstrap {
        begin.admin = Some(&admin_token_file);
    }
    let awaits_owner = begin.run(&store).await?;
    let sessions = sessions::Keys::of(&key);
    let provider = match config.oidc.clone() {
        Some(settings) => Some(oidc::Provider::new(settings).map_err(StartError::Oidc)?),
        None => None,
    };
    let authority = Arc::new(callers::Authority::new(config.bootstrap, sessions));

    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
    let public_key = PublicKey::of(&key);
    let holder = instance(&config.data_dir)?;
    // On SQLite nobody waits for the lease, and renewing it would wake a disk all day.
    let lease = match store.has_others() {
        true => config.lease,
        false => config.lease.max(LEASE_ALONE),
    };
    let lead = Arc::new(Lead::new(store.clone(), holder, lease));
    let mut publisher = Publisher::new(store.clone(), bus.clone(), key, lead.clone());
    publisher.schedule = config.rollout.clone();
    let publisher = Arc::new(publisher);
    if let Err(error) = publisher.restore().await {
        // The next publication of each environment mends it.
        tracing::error!(error = &error as &dyn std::error::Error, "heads were not restored");
    }

    let doorbell = Doorbell::default();
    let stopping = CancellationToken::new();
    let registrations = Registrations::default();
    let anchors_file = config.data_dir.join("audit-anchors.jsonl");
    let outgoing = outgoing::Outgoing::new(config.webhook_reach, outgoing::system_lookup())?;
    let walls = Arc::new(http::walls::Standing::new(config.walls.clone()));
    let app = Arc::new(http::App {
        store: store.clone(),
        authority: authority.clone(),
        passwords: passwords::Passwords::default(),
        attempts: attempts::Attempts::default(),
        publisher: publisher.clone(),
        anchors_file: anchors_file.clone(),
        outgoing: outgoing.clone(),
        vault: vault.clone(),
        streams: http::events::places(),
        provider,
        bus: bus.clone(),
        doorbell: doorbell.clone(),
        lead: lead.clone(),
        registrations: registrations.clone(),
        deltas: delta::Deltas::default(),
        admission: Arc::new(admission::Admission::new(
            config.policy_helper.clone(),
            config.policy_uploads_per_minute,
            config.data_dir.join("compiled"),
        )),
        metrics: recorder(),
        stopping: stopping.clone(),
        body_timeout: config.body_timeout,
        walls: walls.clone(),
    });
    let router = http::router(app)?.layer(
        tower_http::trace::TraceLayer::new_for_http()
            // Neither headers nor the query: both can hold keys.
            .make_span_with(|request: &Request<axum::body::Body>| {
                tracing::info_span!(
                    "request", method = %request.method(), path = request.uri().path()
                )
            })
            .on_request(())
            .on_response(
                |response: &Response<axum::body::Body>, latency: Duration, _: &tracing::Span| {
                    tracing::debug!(status = response.status().as_u16(), ?latency, "answered");
                },
            ),
    );
    let serving = tokio::spawn(serve::listen(
        listener,
        router,
        walls,
        config.connections_max,
        config.timeouts(),
        config.drain,
        stopping.clone(),
    ));
    let mut tasks = vec![serving];
    let mut on_broker = None;
    if let Some(broker) = &config.broker {
        let (broker, reports) = NatsBus::start(broker).await?;
        let broker = Arc::new(broker);
        on_broker = Some(broker.clone());
        let (telling, news, until) = (publisher.clone(), doorbell.news(), stopping.clone());
        let changes = changes::run(telling, broker.clone(), news, config.tick, until);
        tasks.push(tokio::spawn(changes));
        let carrier = Carrier::new(publisher.clone(), broker);
        tasks.push(tokio::spawn(carrier.run(config.broker_tick, stopping.clone())));
        tasks.push(tokio::spawn(reports::run(store.clone(), reports, stopping.clone())));
    }
    let schedule = config.webhook_schedule.clone();
    let telling = webhooks::Worker::new(store.clone(), lead.clone(), outgoing, vault, schedule);
    let (news, until) = (doorbell.news(), stopping.clone());
    tasks.push(tokio::spawn(telling.run(news, config.tick, until)));
    let (anchored, file) = (publisher.clone(), anchors_file);
    let anchors = anchors::Anchors::new(anchored, config.anchors, file, on_broker.clone());
    tasks.push(tokio::spawn(anchors.run(config.reconcile, stopping.clone())));
    tasks.push(tokio::spawn(wake::run(store.clone(), doorbell.clone(), stopping.clone())));
    let (reconciled, until) = (publisher.clone(), stopping.clone());
    tasks.push(tokio::spawn(reconciler::run(reconciled, config.reconcile, until)));
    let (rolled, until) = (publisher.clone(), stopping.clone());
    tasks.push(tokio::spawn(rollout::run(rolled, config.tick, until)));
    let (signing, until) = (publisher.clone(), stopping.clone());
    let file = config.signing_key_file.clone();
    let believed = authority.clone();
    tasks.push(tokio::spawn(signing::follow(signing, believed, file, SIGNING_KEY_TICK, until)));
    tasks.push(tokio::spawn(seen::run(store.clone(), authority, stopping.clone())));
    let (timed, rung, until) = (store.clone(), doorbell.clone(), stopping.clone());
    tasks.push(tokio::spawn(schedule::run(timed, lead.clone(), rung, config.tick, until)));
    tasks.push(tokio::spawn(relay::run(publisher, doorbell, config.tick, stopping.clone())));
    tasks.extend(coordinate(config.etcd, lead, registrations, &stopping));
    Ok(Control {
        address,
        bus,
        public_key,
        admin_token_file,
        setup_token_file,
        awaits_owner,
        store,
        stopping,
        tasks,
    })
}

/// Who says whether this control leads: etcd if there is one, else the database.
#[cfg_attr(not(feature = "etcd"), allow(unused_variables))]
fn coordinate(
    etcd: Option<rules::etcd::Etcd>,
    lead: Arc<Lead>,
    registrations: Registrations,
    stopping: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let until = stopping.clone();
    match etcd {
        #[cfg(feature = "etcd")]
        Some(etcd) => vec![
            tokio::spawn(etcd::elect(lead, etcd.clone(), until)),
            tokio::spawn(etcd::follow_edges(etcd, registrations, stopping.clone())),
        ],
        _ => vec![tokio::spawn(async move { lead.run(until).await })],
    }
}

/// Opens the database, and waits for one that is not there yet: processes start in any order.
/// Whoever asks meanwhile is told what is waited for.
async fn open_store(
    listener: tokio::net::TcpListener,
    config: &Config,
) -> Result<(tokio::net::TcpListener, Store), StartError> {
    let first = match Store::open_with(&config.database, config.database_patience).await {
        Ok(store) => return Ok((listener, store)),
        Err(error) if error.is_passing() => error,
        Err(error) => return Err(error.into()),
    };
    let place = config.database.place();
    tracing::warn!(error = &first as &dyn std::error::Error, "waiting for the database");
    let listening = |source| StartError::Listen { address: config.listen, source };
    let own = listener.into_std().map_err(listening)?;
    let lent = own.try_clone().and_then(tokio::net::TcpListener::from_std).map_err(listening)?;
    let over = CancellationToken::new();
    let walls = Arc::new(http::walls::Standing::new(config.walls.clone()));
    let waiting = tokio::spawn(serve::listen(
        lent,
        http::pages::waiting(format!("waiting for the database {place}"))
            .layer(axum::middleware::from_fn_with_state(walls.clone(), http::walls::stand)),
        walls,
        config.connections_max,
        config.timeouts(),
        WAITING_DRAIN,
        over.clone(),
    ));
    let mut pause = OPEN_PAUSE_FIRST;
    let opened: Result<Store, store::OpenError> = loop {
        tokio::time::sleep(relay::jittered(pause)).await;
        match Store::open_with(&config.database, config.database_patience).await {
            Ok(store) => break Ok(store),
            Err(error) if error.is_passing() => {
                tracing::info!(error = &error as &dyn std::error::Error, "still waiting");
            }
            Err(error) => break Err(error),
        }
        pause = (pause * 2).min(OPEN_PAUSE_MAX);
    };
    over.cancel();
    if let Err(error) = waiting.await {
        tracing::error!(%error, "a part of control panicked");
    }
    Ok((tokio::net::TcpListener::from_std(own).map_err(listening)?, opened?))
}

impl Control {
    /// What reports of an edge in this process go to.
    pub fn reports(&self) -> LocalReports {
        LocalReports { store: self.store.clone() }
    }

    /// Lets requests end, then stops. What is committed and not yet published waits in the outbox.
    pub async fn shutdown(self) {
        self.stopping.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of control panicked");
            }
        }
        self.store.close().await;
    }
}

/// Takes the reports of an edge in this process, as `POST /edge/v1/receipts` takes others'.
#[derive(Debug, Clone)]
pub struct LocalReports {
    store: Store,
}

impl LocalReports {
    pub async fn take(&self, receipts: &rules::head::Receipts) -> Result<(), authorize::Denied> {
        let mut tx = self.store.write().await?;
        let scope = callers::local_edge(&mut tx).await?;
        edges::receive(&mut tx, &scope, receipts).await?;
        Ok(tx.commit().await?)
    }

    /// As `POST /edge/v1/samples`.
    pub async fn take_samples(
        &self,
        report: &rules::sample::SampleReport,
    ) -> Result<rules::sample::SampleOrders, authorize::Denied> {
        let mut tx = self.store.write().await?;
        let scope = callers::local_edge(&mut tx).await?;
        samples::receive(&mut tx, &scope, report).await?;
        let orders = samples::orders(&mut tx, &scope).await?;
        tx.commit().await?;
        Ok(orders)
    }

    /// As `POST /edge/v1/usage`.
    pub async fn take_usage(
        &self,
        report: &rules::usage::UsageReport,
    ) -> Result<(), authorize::Denied> {
        let mut tx = self.store.write().await?;
        let scope = callers::local_edge(&mut tx).await?;
        usage::receive(&mut tx, &scope, report).await?;
        Ok(tx.commit().await?)
    }
}

/// The description of the HTTP API, OpenAPI 3.1 as JSON.
pub fn openapi() -> String {
    http::openapi()
}

/// What a new database begins with.
///
/// A token's file is written before its hash is committed: a crash between the two leaves a token that
/// does not work and is replaced on the next start, never a database that nobody can enter.
struct Begin<'a> {
    first: &'a config::FirstKeys,
    /// Where the bootstrap token goes, if there may be one.
    admin: Option<&'a std::path::Path>,
    /// Where the token goes that makes the first owner.
    setup: &'a std::path::Path,
}

impl Begin<'_> {
    /// Whether the installation has no owner yet.
    async fn run(&self, store: &Store) -> Result<bool, StartError> {
        let failed = |error: sqlx::Error| StartError::Bootstrap(error.into());
        let mut tx = store.write().await.map_err(failed)?;
        // Of replicas that start at once, one makes it.
        tx.take_turn(users::FIRST_TOKENS).await.map_err(failed)?;
        let without = callers::is_without_bootstrap(&mut tx).await.map_err(failed)?;
        let owned = users::is_owned(&mut tx).await.map_err(StartError::Bootstrap)?;
        let begun = owned || users::is_begun(&mut tx).await.map_err(StartError::Bootstrap)?;
        match self.admin {
            Some(file) if without => {
                let key = made(KeyKind::Admin, file)?;
                callers::begin(&mut tx, &key).await.map_err(StartError::Bootstrap)?;
            }
            None if !begun => {
                let key = match &self.first.setup {
                    Some(key) => key.clone(),
                    None => made(KeyKind::Setup, self.setup)?,
                };
                users::may_begin(&mut tx, &key).await.map_err(StartError::Bootstrap)?;
            }
            _ => {}
        }
        if without
            && !begun
            && let Some(edge) = &self.first.edge
        {
            keys::edge_first(&mut tx, edge).await.map_err(StartError::Bootstrap)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(!owned)
    }
}

fn made(kind: KeyKind, file: &std::path::Path) -> Result<rules::keys::ApiKey, StartError> {
    let key = keys::random(kind).map_err(StartError::Bootstrap)?;
    signing::write_private(file, format!("{}\n", key.reveal()).as_bytes())
        .map_err(|source| StartError::TokenFile { path: file.to_owned(), source })?;
    Ok(key)
}

/// How this control calls itself, also after a restart: made once, kept in its folder.
fn instance(data_dir: &std::path::Path) -> Result<String, StartError> {
    let path = data_dir.join("instance");
    if let Ok(name) = std::fs::read_to_string(&path)
        && !name.trim().is_empty()
    {
        return Ok(name.trim().to_owned());
    }
    let name = store::new_id();
    signing::write_private(&path, name.as_bytes())
        .map_err(|source| StartError::DataDir { path, source })?;
    Ok(name)
}

fn make_private_folder(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// One recorder for the process, whoever starts first; a second control in the same process
/// (tests) shares it.
fn recorder() -> metrics_exporter_prometheus::PrometheusHandle {
    use std::sync::OnceLock;
    static RECORDER: OnceLock<metrics_exporter_prometheus::PrometheusHandle> = OnceLock::new();
    let make = || {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics will be empty");
        }
        handle
    };
    RECORDER.get_or_init(make).clone()
}
