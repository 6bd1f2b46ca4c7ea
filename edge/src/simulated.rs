//! An edge without sockets, for the simulation: the real sync, disk and sandbox, and what is served.

use std::path::Path;
use std::sync::Arc;

use rules::answer::Audience;
use rules::blob::Digest;
use rules::context::ContextBuf;
use rules::head::Version;
use sandbox::Sandbox;
use tokio_util::sync::CancellationToken;

use crate::StartError;
use crate::config::Config;
use crate::disk::Disk;
use crate::feed::Feed;
use crate::metrics::Metrics;
use crate::state::{Name, Rates, State};
use crate::sync::{Sync, lock};

pub struct Node {
    sync: Sync,
    state: Arc<State>,
}

/// One environment's snapshot, as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    pub name: Name,
    pub version: Version,
    pub digest: Digest,
    /// It could not be written, so that a restart may find an older one.
    pub unsaved: bool,
}

impl Node {
    /// As `edge::start_in` does: serves what the disk has, before anybody is asked.
    pub async fn start(
        sandbox: Arc<Sandbox>,
        config: &Config,
        data: &Path,
        feed: Arc<dyn Feed>,
    ) -> Result<Node, StartError> {
        let failed = |source| StartError::Disk { path: data.to_owned(), source };
        let disk = Disk::open(data).map_err(failed)?;
        let metrics = Metrics::new().map_err(StartError::Metrics)?;
        let state = Arc::new(State::new(Rates { server_per_s: None, browser_per_s: None }));
        let sync = Sync::new(config, feed, sandbox, state.clone(), Some(disk), metrics);
        sync.restore().await;
        Ok(Node { sync, state })
    }

    pub async fn follow(&self, stop: CancellationToken) {
        self.sync.run(stop).await;
    }

    pub fn serving(&self) -> Vec<Serving> {
        let unsaved = lock(&self.sync.progress).unsaved.clone();
        let table = self.state.table();
        let serving = table.environments().map(|served| Serving {
            name: served.tenant.name.clone(),
            version: served.version,
            digest: served.digest,
            unsaved: unsaved.contains_key(&served.tenant.name),
        });
        serving.collect()
    }

    /// Every flag's answer, as JSON; None: nothing is served under that name.
    pub fn answers(&self, namespace: &str, environment: &str) -> Option<Result<Vec<u8>, String>> {
        let table = self.state.table();
        let served = table.environment(namespace, environment)?;
        let mut out = Vec::new();
        let answered = ContextBuf::from_json(br#"{"targetingKey":"someone"}"#)
            .map_err(|error| error.to_string())
            .and_then(|context| {
                served
                    .evaluator
                    .evaluate_all(Audience::Server, &context, crate::now_ms(), &mut out)
                    .map_err(|error| error.to_string())
            });
        Some(answered.map(|()| out))
    }
}
