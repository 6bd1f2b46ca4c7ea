//! A nats-server of a test's own, on a free port, with its store in a temporary folder. It can be
//! killed, started again where it was, and made to lose its store or to go back to an older one.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rules::bus::Broker;
use rules::secret::Secret;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::http::until;
use crate::{ports, run};

pub struct NatsServer {
    child: Option<Child>,
    address: SocketAddr,
    config: Option<PathBuf>,
    settings: Vec<(String, String)>,
    folder: tempfile::TempDir,
}

/// Debian puts it where only root's PATH looks.
fn binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
        .expect("there is no nats-server: run `cargo xtask test`, or apt-get install nats-server")
}

impl NatsServer {
    /// A place for a server that nobody has started yet.
    pub async fn nowhere() -> NatsServer {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = ports::free().expect("a free port");
        NatsServer { child: None, address, config: None, settings: Vec::new(), folder }
    }

    /// Without users: everybody may do everything.
    pub async fn start() -> NatsServer {
        let mut server = NatsServer::nowhere().await;
        server.run().await;
        server
    }

    /// For the next start: this file and these variables. Port and store stay the test's own.
    pub fn configure(&mut self, config: PathBuf, settings: &[(&str, &str)]) {
        self.config = Some(config);
        let owned = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.settings = owned.collect();
        run::settings(settings);
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub fn broker(&self) -> Broker {
        Broker::new(vec![self.url()], "", None).expect("an address")
    }

    pub fn broker_as(&self, user: &str, password: &str) -> Broker {
        run::secret("broker password", password);
        let password = Some(Secret::new(password.to_owned()));
        Broker::new(vec![self.url()], user, password).expect("an address")
    }

    /// Starts it, or starts it again where it was, and waits until it answers.
    pub async fn run(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(binary());
        command.args(["--addr", "127.0.0.1", "--port", &self.address.port().to_string()]);
        match &self.config {
            Some(config) => command.arg("--config").arg(config),
            None => command.arg("--jetstream").arg("--store_dir").arg(self.store()),
        };
        command.env("TIDEGATE_NATS_STORE", self.store());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("nats-server starts");
        let mut said = BufReader::new(child.stderr.take().expect("its log")).lines();
        // What it says matters when a test fails, and only then is it shown.
        let mut log = run::log_of("nats-server").map(|log| File::create(log).expect("a log"));
        tokio::spawn(async move {
            while let Ok(Some(line)) = said.next_line().await {
                if let Some(log) = &mut log {
                    writeln!(log, "{line}").expect("a log");
                }
                println!("nats-server: {line}");
            }
        });
        let address = self.address;
        until("nats-server answering", async || {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            let mut line = String::new();
            let read = BufReader::new(stream).read_line(&mut line).await;
            match read.is_ok() && line.starts_with("INFO ") {
                true => Ok(()),
                false => Err(format!("{read:?} {line:?}")),
            }
        })
        .await;
        self.child = Some(child);
    }

    /// SIGKILL, to this server alone.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.expect("it was running");
    }

    /// What it has stored, for `roll_back`. The server must not run.
    pub fn keep_store(&self) -> tempfile::TempDir {
        assert!(self.child.is_none(), "a running server writes");
        let kept = tempfile::tempdir().expect("a temporary folder");
        copy(&self.store(), kept.path());
        kept
    }

    pub fn roll_back(&self, kept: &Path) {
        self.wipe();
        copy(kept, &self.store());
    }

    pub fn wipe(&self) {
        assert!(self.child.is_none(), "a running server would write it again");
        std::fs::remove_dir_all(self.store()).expect("its store");
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("its type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}
