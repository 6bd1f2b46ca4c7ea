//! An etcd of a test's own: in a temporary folder, on free ports of loopback, stopped by its pid. It
//! can be killed, paused, started again where it was, and made to lose its store. Only the standard
//! library, and `curl`-like questions go through its JSON gateway.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::postgres::{ports, run};

const START_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A running server; killed and removed when dropped.
pub struct EtcdServer {
    folder: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

/// Where `etcd` is.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join("etcd")).find(|file| file.is_file())
}

impl EtcdServer {
    /// A place for a server that nobody has started yet.
    pub fn nowhere(folder: &Path) -> io::Result<EtcdServer> {
        fs::create_dir_all(folder)?;
        let (client, peer) = (ports::free()?, ports::free()?);
        Ok(EtcdServer { folder: folder.to_owned(), client, peer, child: None })
    }

    /// With an empty store in `folder`.
    pub fn start(folder: &Path) -> io::Result<EtcdServer> {
        let mut server = EtcdServer::nowhere(folder)?;
        server.run()?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Starts it, or starts it again where it was, and waits until it answers.
    pub fn run(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "it runs");
        let program = program()
            .ok_or_else(|| io::Error::other("no etcd (Debian: apt-get install etcd-server)"))?;
        run::keep_log("etcd", &self.folder.join("log"));
        let log = fs::File::create(self.folder.join("log"))?;
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(self.store())
            .args(["--name", "one", "--initial-cluster", &format!("one={peer}")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            // No power is lost here, and a slow disk would cost leaders their leases.
            .arg("--unsafe-no-fsync")
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let end = Instant::now() + START_MAX;
        loop {
            let said = match self.ask("/v3/kv/range", r#"{"key":"AA=="}"#) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("etcd does not answer: {said}; {log}")));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// A question to its JSON gateway; what it answered, if that was 200.
    pub fn ask(&self, path: &str, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.client, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let (host, length) = (self.client, body.len());
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(io::Error::other(answer)),
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal by its name, to this server alone.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success(), "SIG{name} to {pid}");
    }

    /// SIGKILL, to this server alone.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Everything that it ever knew is gone; started again it has the same cluster id.
    pub fn wipe(&self) -> io::Result<()> {
        assert!(self.child.is_none(), "a running server would write it again");
        fs::remove_dir_all(self.store())
    }

    /// What it has stored, for `set_back`. The server must not run.
    pub fn keep_store(&self) -> io::Result<()> {
        assert!(self.child.is_none(), "a running server writes");
        copy(&self.store(), &self.folder.join("kept"))
    }

    /// To what was kept, as a restored backup or a lost disk would.
    pub fn set_back(&self) -> io::Result<()> {
        self.wipe()?;
        copy(&self.folder.join("kept"), &self.store())
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
        run::keep_log("etcd", &self.folder.join("log"));
        let _ = fs::remove_dir_all(&self.folder);
    }
}
