//! What an edge is told when it starts. Values only: reading them from the environment or the
//! command line is the binary's part.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use rules::etcd::Etcd;
use rules::head::PublicKey;
use tokio::sync::watch;

/// All the streams that an edge has by default are told in five seconds.
const BOUNDARY_TELLS_PER_S: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

#[derive(Debug, Clone)]
pub struct Config {
    /// Where evaluations are answered; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where snapshots survive a restart. Without it an edge that starts alone has nothing to say.
    pub data_dir: Option<PathBuf>,
    /// How this edge is called in receipts. It also decides when a staged rollout reaches it.
    pub edge_id: String,
    /// Keys that heads may be signed with. With none, nothing is ever served.
    /// What it says may change while the edge runs.
    pub trusted: watch::Receiver<Vec<PublicKey>>,
    pub sandbox: sandbox::SandboxConfig,
    /// Compiles policies, in a process of its own.
    pub policy_helper: sandbox::policy::helper::Helper,
    /// How often heads are asked for although no change was announced; each time ± 50 %, so that a
    /// fleet that started together does not ask together.
    pub anti_entropy: Duration,
    /// A new snapshot that has been served for so long is not suspected of a later crash;
    /// zero suspects none.
    pub healthy_after: Duration,
    /// How often what is served and what is on disk is hashed again, to notice rot; each time ± 50 %.
    pub verify_every: Duration,
    /// Connections at once; further ones are closed at once rather than left waiting.
    pub connections_max: usize,
    /// Connections of one address (of IPv6: of one /64) at once; further ones are closed at once. None: as
    /// many as of all (`addresses.rs`).
    pub connections_per_address: Option<NonZeroUsize>,
    /// Event streams at once; each costs a connection and about 2 KiB.
    pub streams_max: usize,
    /// How long an event stream lives; each ± 50 %, so that a fleet of clients that reconnected
    /// together spreads again.
    pub stream_life: Duration,
    /// A stream that is silent for so long gets a comment: proxies cut what is silent for 30 s or 60 s.
    pub stream_keep_alive: Duration,
    /// Between a client's bulk answer and the opening of its stream something may have changed. A stream
    /// that opens without saying what its client knows begins with the last change if that is no older.
    pub stream_recalls: Duration,
    /// When a time boundary passes, all streams of all edges are due at one instant, and each client that
    /// is told asks again. So many streams are told in a second, in an order that is drawn anew each time.
    pub boundary_tells_per_s: NonZeroU32,
    /// How long a client that was told of a version by another edge waits for it here; then it gets
    /// what there is.
    pub catch_up: Duration,
    /// Evaluation requests per second of one server key, the same again as a burst. None: no limit.
    pub server_rate_per_s: Option<NonZeroU32>,
    /// As above, of one browser key, which all users of a site share.
    pub browser_rate_per_s: Option<NonZeroU32>,
    /// How often usage is reported to control; each time ± 50 %.
    pub usage_every: Duration,
    /// How often control is asked whose contexts to sample, and brought those; each time ± 50 %.
    pub samples_every: Duration,
    /// How long a shutdown waits for requests that are being answered.
    pub drain: Duration,
    pub timeouts: Timeouts,
    /// Where this edge says that it is there. None: nowhere.
    pub register: Option<Register>,
}

/// How an edge registers in etcd.
#[derive(Debug, Clone)]
pub struct Register {
    pub etcd: Etcd,
    /// Of the key that it reports with: edges of other keys may have the same name.
    pub edge_key_id: String,
    pub edge_id: String,
    /// An edge that is gone without a word is registered for so long.
    pub lease: Duration,
}

impl Register {
    pub fn new(etcd: Etcd, edge_key_id: impl Into<String>, edge_id: impl Into<String>) -> Register {
        let (edge_key_id, edge_id) = (edge_key_id.into(), edge_id.into());
        Register { etcd, edge_key_id, edge_id, lease: Duration::from_secs(10) }
    }
}

/// Against clients that hold a connection without using it.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the accept, or from a later request's first byte, to the end of its headers.
    pub headers: Duration,
    /// Of a request's body.
    pub body: Duration,
    /// Between two requests of a connection: it is closed after this long, or twice as long.
    pub idle: Duration,
    /// For a client that does not read what it is sent.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            headers: Duration::from_secs(5),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// The defaults around what has none.
    pub fn new(listen: SocketAddr, edge_id: impl Into<String>, trusted: Vec<PublicKey>) -> Config {
        Config {
            listen,
            data_dir: None,
            edge_id: edge_id.into(),
            // A receiver says the last value when its sender is gone.
            trusted: watch::channel(trusted).1,
            sandbox: sandbox::SandboxConfig::default(),
            policy_helper: sandbox::policy::helper::Helper::of_this_program(),
            anti_entropy: Duration::from_secs(30),
            healthy_after: Duration::from_secs(30),
            verify_every: Duration::from_secs(600),
            connections_max: 10_000,
            connections_per_address: None,
            streams_max: 5_000,
            stream_life: Duration::from_secs(600),
            stream_keep_alive: Duration::from_secs(15),
            stream_recalls: Duration::from_secs(60),
            boundary_tells_per_s: BOUNDARY_TELLS_PER_S,
            catch_up: Duration::from_secs(1),
            // Far above what one service asks, far below what starves its neighbours.
            server_rate_per_s: NonZeroU32::new(100_000),
            browser_rate_per_s: NonZeroU32::new(5_000),
            usage_every: Duration::from_secs(60),
            samples_every: Duration::from_secs(15),
            drain: Duration::from_secs(10),
            timeouts: Timeouts::default(),
            register: None,
        }
    }
}
