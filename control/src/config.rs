//! What control is started with. Values only: reading them from arguments and the environment is
//! the CLI's business.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rules::bus::Broker;
use rules::etcd::Etcd;
use rules::keys::ApiKey;
use sandbox::policy::helper::Helper;

use crate::anchors::Due;
use crate::guard::Timeouts;
use crate::http::walls::Walls;
use crate::outgoing::Reach;
use crate::rollout::Schedule;
use crate::store::{Database, Patience};
use crate::webhooks::SCHEDULE;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the admin API and the edges' routes are served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Holds the signing key, the secrets key, the first token and, if it is SQLite, the database. Made if
    /// it is missing.
    pub data_dir: PathBuf,
    pub database: Database,
    pub database_patience: Patience,
    /// The key that heads are signed with; replicas of one control share it. Made if it is missing.
    pub signing_key_file: PathBuf,
    /// The key that secrets in the database are sealed with; replicas share it. Made if neither it nor
    /// such a secret is there. None: `secrets-key` beside the signing key.
    pub secrets_key_file: Option<PathBuf>,
    pub first: FirstKeys,
    /// Makes a token that may do everything, and takes it: for `tidegate dev` and for tests, which
    /// have nobody who could choose a password.
    pub bootstrap: bool,
    /// Who else says who people are.
    pub oidc: Option<crate::oidc::Settings>,
    /// Connections beyond this are closed at once.
    pub connections_max: usize,
    /// Rates, addresses and what browsers are told.
    pub walls: Walls,
    /// How long requests may take to end once a shutdown has begun.
    pub drain: Duration,
    /// The relay looks for forgotten work this often (± 50 %).
    pub tick: Duration,
    /// What is desired, published and reported is compared this often (± 50 %).
    pub reconcile: Duration,
    /// How long another control waits for the one that publishes, once that one is silent.
    pub lease: Duration,
    /// Who elects the control that publishes, and where edges register. None: the database.
    pub etcd: Option<Etcd>,
    /// Time for all of a request's headers to come, also of a connection's first one.
    pub header_timeout: Duration,
    /// In which stages a new snapshot comes to edges.
    pub rollout: Schedule,
    /// Where heads and blobs are carried to, for edges that follow there. None: edges ask over HTTP.
    pub broker: Option<Broker>,
    /// What lies on the broker is compared with what was published this often (± 50 %).
    pub broker_tick: Duration,
    /// Which addresses webhooks may have.
    pub webhook_reach: Reach,
    /// The pauses after a webhook's failures; after the last it is given up.
    pub webhook_schedule: Arc<[Duration]>,
    /// When the end of an audit chain that has grown is signed.
    pub anchors: Due,
    /// Time for each next piece of a request's body.
    pub body_timeout: Duration,
    /// Time that a connection may rest between two requests.
    pub idle_timeout: Duration,
    /// Time for a peer to take up what is sent to it.
    pub write_timeout: Duration,
    /// Looks at uploaded policies and compiles them, in a process of its own.
    pub policy_helper: Helper,
    /// Of one namespace, and as many runs of test vectors: each may take the helper seconds.
    pub policy_uploads_per_minute: NonZeroU32,
}

/// What a new database begins with, for who sets up several processes at once and cannot ask the
/// first one for keys. A database that somebody can enter takes neither: what was revoked stays so.
#[derive(Debug, Clone, Default)]
pub struct FirstKeys {
    /// Makes the first owner. Made if it is none.
    pub setup: Option<ApiKey>,
    /// Of all namespaces.
    pub edge: Option<ApiKey>,
}

impl Config {
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts { header: self.header_timeout, idle: self.idle_timeout, write: self.write_timeout }
    }

    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Config {
        let data_dir = data_dir.into();
        Config {
            listen,
            database: Database::embedded(&data_dir),
            database_patience: Patience::default(),
            signing_key_file: data_dir.join("signing-key"),
            secrets_key_file: None,
            data_dir,
            first: FirstKeys::default(),
            bootstrap: false,
            oidc: None,
            connections_max: 10_000,
            walls: Walls::default(),
            drain: Duration::from_secs(10),
            tick: Duration::from_millis(500),
            reconcile: Duration::from_secs(5),
            lease: Duration::from_secs(5),
            etcd: None,
            header_timeout: Duration::from_secs(5),
            rollout: Schedule::default(),
            broker: None,
            broker_tick: Duration::from_secs(30),
            anchors: Due::default(),
            webhook_reach: Reach::Public,
            webhook_schedule: SCHEDULE.into(),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            policy_helper: Helper::of_this_program(),
            policy_uploads_per_minute: const { NonZeroU32::new(10).unwrap() },
        }
    }
}
