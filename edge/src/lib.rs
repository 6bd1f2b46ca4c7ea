//! Where flags are answered: HTTP, feed, sync, wasm.
//!
//! Promises: an answer from the last good snapshot that this edge ever had, whoever else is down;
//! a version that never falls while it runs; one snapshot per request; nothing unsigned served.
//! Never: a database, a question to control on the way of a request, code from the network.
//!
//! Reading order: `sync` (how a snapshot gets here), `state` (what is served), `ofrep` (answers),
//! `events` (that something changed), `sdk` and `client` (browsers), `serve` (connections), `disk`, `breaker`, `auth`, `feed`.

mod addresses;
pub mod auth;
mod breaker;
mod client;
pub mod config;
pub mod disk;
mod events;
pub mod feed;
mod metrics;
mod ofrep;
mod policies;
#[cfg(feature = "etcd")]
mod register;
mod samples;
mod sdk;
mod serve;
#[cfg(feature = "failpoints")]
pub mod simulated;
mod state;
mod sync;
mod usage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rules::blob::Digest;
use rules::head::Version;
use sandbox::{Sandbox, SandboxError};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::disk::Disk;
use crate::feed::Feed;
use crate::serve::{Serving, Shared};
use crate::state::{Rates, State};
use crate::sync::Sync;

const UPKEEP: Duration = Duration::from_secs(1);
/// An instance that nobody used for so long gives its memory back; making one again takes
/// milliseconds.
const INSTANCE_IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the data folder {} cannot be used", .path.display())]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("the sandbox does not start")]
    Sandbox(#[from] SandboxError),
    #[error(
        "this tidegate was built without etcd; `cargo build -p cli --features etcd` builds it with \
         it, and needs protoc"
    )]
    NoEtcd,
    #[error("the metrics cannot be set up")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
}

/// A running edge. Dropped, it stops at once; `shutdown` lets it finish.
pub struct Edge {
    pub address: SocketAddr,
    shared: Shared,
    tasks: TaskTracker,
    _stop: DropGuard,
}

/// Serves what the disk has, then follows the feed. Returns as soon as requests are answered; it
/// does not wait for control, which may be down for good.
pub async fn start(config: Config, feed: Arc<dyn Feed>) -> Result<Edge, StartError> {
    let mut sandboxed = config.sandbox.clone();
    if sandboxed.cache_dir.is_none() {
        sandboxed.cache_dir = config.data_dir.as_ref().map(|folder| folder.join("compiled"));
    }
    // Nobody who asks for a flag without policies waits for an instance that a policy has.
    sandboxed.workers = sandboxed.workers.saturating_add(policies::workers());
    let sandbox = Sandbox::new(sandboxed)?;
    start_in(sandbox, config, feed).await
}

/// As `start`, in a sandbox that is there already: compiling the evaluator takes a while, and one
/// sandbox serves a whole process. `config.sandbox` is not read.
pub async fn start_in(
    sandbox: Arc<Sandbox>,
    config: Config,
    feed: Arc<dyn Feed>,
) -> Result<Edge, StartError> {
    if config.register.is_some() && cfg!(not(feature = "etcd")) {
        return Err(StartError::NoEtcd);
    }
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
    let disk = match config.data_dir.clone() {
        Some(path) => Some(Disk::open(&path).map_err(|source| StartError::Disk { path, source })?),
        None => None,
    };
    let metrics = metrics::Metrics::new().map_err(StartError::Metrics)?;
    let state = Arc::new(State::new(Rates {
        server_per_s: config.server_rate_per_s,
        browser_per_s: config.browser_rate_per_s,
    }));
    let reporter = usage::Reporter {
        edge_id: config.edge_id.clone(),
        every: config.usage_every,
        feed: feed.clone(),
        state: state.clone(),
        metrics: metrics.clone(),
    };
    let courier = samples::Courier {
        edge_id: config.edge_id.clone(),
        every: config.samples_every,
        feed: feed.clone(),
        state: state.clone(),
    };
    let sync = Sync::new(&config, feed, sandbox.clone(), state.clone(), disk, metrics.clone());
    let shared = Serving::new(&config, state, metrics, sync.progress.clone());
    sync.restore().await;
    let stopping: CancellationToken = shared.stopping.clone();
    let tasks = TaskTracker::new();
    let per_address = config.connections_per_address.map(addresses::Addresses::new);
    let connections_max = config.connections_max;
    let listening =
        serve::listen(shared.clone(), listener, connections_max, per_address, config.drain);
    tasks.spawn(listening);
    tasks.spawn(events::watch_boundaries(shared.clone()));
    tasks.spawn(upkeep(shared.clone(), sandbox));
    let until = stopping.clone();
    tasks.spawn(async move {
        tokio::join!(sync.run(until.clone()), sync.look_for_rot(until));
    });
    tasks.spawn(reporter.run(stopping.clone()));
    tasks.spawn(courier.run(stopping.clone()));
    #[cfg(feature = "etcd")]
    if let Some(register) = config.register {
        let started_at_us = now_ms().saturating_mul(1_000);
        let said = rules::etcd::Registration {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: Some(address.to_string()),
            started_at_us,
            registered_at_us: started_at_us,
        };
        tasks.spawn(register::run(register, said, stopping.clone()));
    }
    tasks.close();
    Ok(Edge { address, shared, tasks, _stop: stopping.drop_guard() })
}

impl Edge {
    /// What is served of an environment right now.
    pub fn serving(&self, namespace: &str, environment: &str) -> Option<(Version, Digest)> {
        let table = self.shared.state.table();
        table.environment(namespace, environment).map(|served| (served.version, served.digest))
    }

    /// Changes with every swap of a snapshot; for whoever waits for one.
    pub fn swaps(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.state.swaps()
    }

    /// Ends event streams, answers the requests that have begun, closes the rest.
    pub async fn shutdown(self) {
        self.shared.stopping.cancel();
        self.tasks.wait().await;
    }
}

async fn upkeep(shared: Shared, sandbox: Arc<Sandbox>) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = tick.tick() => {
                shared.metrics.upkeep();
                sandbox.trim(INSTANCE_IDLE);
            }
        }
    }
}

/// Milliseconds since the epoch. Before 1970 is 1970.
fn now_ms() -> i64 {
    seam::now_us() / 1000
}
