//! A PostgreSQL server of a test's own: in a temporary folder, on a free port of loopback, stopped
//! by its pid. Only the standard library, since xtask and the tests of `control` include this file
//! by its path.

#[path = "ports.rs"]
pub mod ports;
#[path = "run.rs"]
#[allow(dead_code, reason = "each of those who include this takes what it needs")]
pub mod run;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const START_MAX: Duration = Duration::from_secs(60);
const PASSWORD: &str = "for-tests-only";

/// A running server; killed and removed when dropped.
pub struct PostgresServer {
    folder: PathBuf,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    child: Option<Child>,
}

/// Where `initdb` and `postgres` are: Debian keeps them out of the path.
pub fn programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    folders.sort();
    folders.reverse();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// PostgreSQL refuses to run as root: then as the user of Debian's package, or nobody.
fn user() -> io::Result<Option<(u32, u32)>> {
    let own = fs::metadata("/proc/self")?;
    if std::os::unix::fs::MetadataExt::uid(&own) != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in users.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(wanted)
                && let (Some(uid), Some(gid)) = (fields.nth(1), fields.next())
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
            {
                return Ok(Some((uid, gid)));
            }
        }
    }
    Err(io::Error::other("PostgreSQL does not run as root, and there is no user nobody"))
}

impl PostgresServer {
    /// With an empty cluster in `folder`, which is made and must not be there yet.
    pub fn start(folder: &Path) -> io::Result<PostgresServer> {
        let programs = programs()
            .ok_or_else(|| io::Error::other("no initdb (Debian: apt-get install postgresql)"))?;
        let user = user()?;
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        let password = folder.join("password");
        fs::write(&password, PASSWORD)?;
        if let Some((uid, gid)) = user {
            chown(folder, Some(uid), Some(gid))?;
            chown(&password, Some(uid), Some(gid))?;
        }
        let port = ports::free()?.port();
        let folder = folder.to_owned();
        let mut server = PostgresServer { folder, programs, user, port, child: None };
        let made = server
            .command("initdb")
            .args(["--username", "tidegate", "--auth", "scram-sha-256", "--encoding", "UTF8"])
            .args(["--locale", "C", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(server.data())
            .stdout(Stdio::null())
            .output()?;
        if !made.status.success() {
            return Err(io::Error::other(format!(
                "initdb: {}",
                String::from_utf8_lossy(&made.stderr)
            )));
        }
        server.restart()?;
        Ok(server)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts it again after `stop` or `kill`, on the same port and with the same data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        run::keep_log("postgres", &self.folder.join("log"));
        let log = fs::File::create(self.folder.join("log"))?;
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""])
            // Processes are killed here, machines are not: nothing needs to reach the disk.
            .args(["-c", "fsync=off", "-c", "max_connections=300"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let end = Instant::now() + START_MAX;
        while !self.answers() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("postgres does not answer: {log}")));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let ready = fs::read_to_string(self.data().join("postmaster.pid"))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|state| state.trim() == "ready"));
        ready && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    /// The address of one of its databases.
    pub fn url(&self, database: &str) -> String {
        run::secret("database password", PASSWORD);
        format!("postgres://tidegate:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGQUIT: it ends at once and every backend with it, as a crash would end it.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let asked = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
        let end = Instant::now() + Duration::from_secs(10);
        while asked.is_ok() && Instant::now() < end {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The setting by which xtask tells tests to run on PostgreSQL: the URL of one of its databases.
pub const TEST_POSTGRES: &str = "TIDEGATE_TEST_POSTGRES";

/// A new database for one test, if the tests are to run on PostgreSQL.
pub fn database_for_test() -> Option<String> {
    let server = std::env::var(TEST_POSTGRES).ok()?;
    Some(new_database(&server).expect("a new database on the tests' PostgreSQL"))
}

/// Makes a database beside the one that `url` names.
pub fn new_database(url: &str) -> io::Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Numbers of processes come again.
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.subsec_nanos());
    let name = format!("test_{}_{count}_{now}", std::process::id());
    let programs = programs().ok_or_else(|| io::Error::other("no PostgreSQL programs"))?;
    let done = Command::new(programs.join("psql"))
        .args(["--no-psqlrc", "--quiet", "--command", &format!("CREATE DATABASE {name}"), url])
        .stdin(Stdio::null())
        .output()?;
    let (server, _) = url.rsplit_once('/').ok_or_else(|| io::Error::other("no URL"))?;
    match done.status.success() {
        true => Ok(format!("{server}/{name}")),
        false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned())),
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
        run::keep_log("postgres", &self.folder.join("log"));
        let _ = fs::remove_dir_all(&self.folder);
    }
}
