//! The real binary, run as a person or a script would: its output, its exit codes, its processes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ofrep_schema::OfrepSchema;

/// Generous: a debug build compiles the evaluator's wasm when it starts.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `tidegate` with none of this process's settings.
pub fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        // But for where the compiled evaluator is, which is one for all tests.
        let name = name.to_string_lossy();
        if name.starts_with("TIDEGATE_") && name != "TIDEGATE_COMPILED_DIR" {
            command.env_remove(&*name);
        }
    }
    // One machine asks for everybody, as fast as it can.
    command.env("TIDEGATE_CALLER_RATE", "off").env("TIDEGATE_ADDRESS_RATE", "off");
    command.stdin(Stdio::null());
    command
}

#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    pub fn json_error(&self) -> Value {
        serde_json::from_str(&self.err)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Whether the helper process of policies ran out of its time.
    pub fn is_late(&self) -> bool {
        [&self.out, &self.err].iter().any(|text| text.contains("took longer than"))
    }

    #[track_caller]
    pub fn ok(self) -> Done {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    #[track_caller]
    pub fn failed(self, code: i32) -> Done {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// As `run`, for what asks for the helper process of policies: that has five seconds of the wall's
/// clock, which a busy machine may be too slow for.
pub fn run_in_time(command: &mut Command) -> Done {
    const TRIES_MAX: usize = 3;
    let mut done = run(command);
    for _ in 1..TRIES_MAX {
        if !done.is_late() {
            break;
        }
        done = run(command);
    }
    done
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A server process; ended when it goes out of scope.
pub struct Server {
    child: Child,
    /// What it announced on standard output.
    pub said: Value,
}

impl Server {
    /// Waits for the announcement; a server that ends instead is shown with its log.
    pub fn start(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        // Read all the time, or a full pipe would stop the server.
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            let _ = err.read_to_end(&mut log);
            String::from_utf8_lossy(&log).into_owned()
        });
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            let status = child.wait().unwrap();
            panic!("{command:?} ended with {status}: {}", log.join().unwrap());
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let said = serde_json::from_str(&line).unwrap_or_else(|_| panic!("announced {line:?}"));
        Server { child, said }
    }

    pub fn text(&self, name: &str) -> &str {
        self.said[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.said))
    }

    /// As an operator ends it; gives the exit code.
    pub fn terminate(mut self) -> i32 {
        let done = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
        until("the server ended", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    /// As a crash ends it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// `tidegate dev` in a folder of its own, on free ports.
pub struct Dev {
    pub server: Server,
    pub dir: PathBuf,
}

impl Dev {
    pub fn start(dir: &Path) -> Dev {
        Dev::start_in(&dir.join("state"))
    }

    /// With its state in exactly this folder.
    pub fn start_in(dir: &Path) -> Dev {
        Dev::start_on(dir, 0)
    }

    /// And its control on this port.
    pub fn start_on(dir: &Path, control_port: u16) -> Dev {
        let dir = dir.to_owned();
        let server = Server::start(
            tidegate()
                .args(["dev", "--control-port", &control_port.to_string()])
                .args(["--edge-port", "0", "--output", "json", "--log", "warn", "--dir"])
                .arg(&dir),
        );
        Dev { server, dir }
    }

    /// A command against it.
    pub fn tidegate(&self, arguments: &[&str]) -> Done {
        run(tidegate().args(arguments).env("TIDEGATE_DIR", &self.dir))
    }

    /// What the edge answers: status and body.
    pub fn ofrep(&self, key: &str, flag: &str, context: Value) -> (u16, Value) {
        let key = self.server.text(key).to_owned();
        ofrep(self.server.text("edge_url"), &key, flag, context)
    }
}

/// Makes the owner of a control, as its operator would: the file of a personal token of theirs.
pub fn owner(control: &Server, folder: &Path) -> PathBuf {
    let (password, token) = (folder.join("password"), folder.join("owner-token"));
    std::fs::write(&password, "correct horse battery").unwrap();
    let mut command = tidegate();
    command
        .args(["setup", "--url", control.text("control_url"), "--email", "owner@example.com"])
        .args(["--token-file", control.text("setup_token_file"), "--password-file"])
        .arg(&password)
        .arg("--personal-token-file")
        .arg(&token);
    run(&mut command).ok();
    token
}

/// One evaluation over OFREP, as curl would ask it.
pub fn ofrep(edge_url: &str, key: &str, flag: &str, context: Value) -> (u16, Value) {
    let (status, body) = http(
        "POST",
        &format!("{edge_url}/ofrep/v1/evaluate/flags/{flag}"),
        key,
        &serde_json::json!({"context": context}).to_string(),
    );
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status} {body:?}")))
}

/// A whole HTTP/1.1 exchange over a socket: nothing of ours between the test and the server.
pub fn http(method: &str, url: &str, bearer: &str, body: &str) -> (u16, String) {
    use std::io::Write as _;
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {bearer}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    if path.starts_with("ofrep/") {
        let path = format!("/{path}");
        let checked = OfrepSchema::shared().check(&path, method, status, body.as_bytes());
        checked.unwrap_or_else(|why| panic!("{method} {path}: {why}"));
    }
    (status, body)
}

fn unchunked(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap();
    }
    whole
}
