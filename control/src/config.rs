//! What control is started with. Values only: reading them from arguments and the environment is
//! the CLI's business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the admin API and the edges' routes are served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Holds the database, the signing key and the bootstrap admin token. Made if it is missing.
    pub data_dir: PathBuf,
    /// Connections beyond this are closed at once.
    pub connections_max: usize,
    /// How long requests may take to end once a shutdown has begun.
    pub drain: Duration,
    /// The relay looks for forgotten work this often (± 50 %).
    pub tick: Duration,
    /// Time for all of a request's headers to come, also of a connection's first one.
    pub header_timeout: Duration,
}

impl Config {
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Config {
        Config {
            listen,
            data_dir: data_dir.into(),
            connections_max: 10_000,
            drain: Duration::from_secs(10),
            tick: Duration::from_millis(500),
            header_timeout: Duration::from_secs(5),
        }
    }
}
