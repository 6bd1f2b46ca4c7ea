//! `cargo xtask load`: what an edge carries over loopback, beside a bare hyper server that answers
//! a constant body of the same size. Both are processes of their own and take turns in one run, so
//! that what the machine does meanwhile happens to both.
//!
//! Client and server share the machine's cores, so the figures compare the two servers; they do
//! not say what an edge could carry alone. Bounded: rounds times seconds times cases times two.
//! `bombs.rs` measures hostile policies beside everybody else instead.

mod bombs;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

const USAGE: &str = "\
Usage: cargo xtask load [bombs] [-- OPTIONS]
  --rounds N        rounds of each case [5]
  --seconds S       seconds of one round [3]
  --connections N   keep-alive connections, one request at a time on each [16]
  --flags N         flags of the big environment [5000]
  --json FILE       also writes the figures as JSON";

struct Options {
    tidegate: PathBuf,
    rounds: usize,
    round: Duration,
    connections: usize,
    flags: usize,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, sizes)) if first == "--floor" => floor(sizes),
        Some((first, rest)) if first == "bombs" => {
            options(rest).and_then(|options| bombs::drive(&options))
        }
        _ => options(&arguments).and_then(|options| drive(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        tidegate: PathBuf::new(),
        rounds: 5,
        round: Duration::from_secs(3),
        connections: 16,
        flags: 5_000,
        json: None,
    };
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let value = rest.next().with_context(|| format!("{name} has no value\n{USAGE}"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{name} {value}"));
        match name.as_str() {
            "--tidegate" => options.tidegate = value.into(),
            "--rounds" => options.rounds = number()?.clamp(1, 100),
            "--seconds" => options.round = Duration::from_secs(number()?.clamp(1, 60) as u64),
            "--connections" => options.connections = number()?.clamp(1, 1_000),
            "--flags" => options.flags = number()?.clamp(1, 10_000),
            "--json" => options.json = Some(value.into()),
            _ => bail!("unknown option {name}\n{USAGE}"),
        }
    }
    ensure!(options.tidegate.exists(), "--tidegate names no program\n{USAGE}");
    Ok(options)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio")
}

// ---- the floor: hyper and nothing else ----

/// Answers `POST /N` with the constant body of the Nth size.
fn floor(sizes: &[String]) -> anyhow::Result<()> {
    let bodies: Vec<Bytes> = sizes
        .iter()
        .map(|size| Ok(Bytes::from(vec![b'x'; size.parse()?])))
        .collect::<anyhow::Result<_>>()?;
    runtime()?.block_on(async move {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        println!("{}", json!({"address": listener.local_addr()?.to_string()}));
        std::io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let body = request
                        .uri()
                        .path()
                        .get(1..)
                        .and_then(|nth| nth.parse::<usize>().ok())
                        .and_then(|nth| bodies.get(nth).cloned())
                        .unwrap_or_default();
                    async move {
                        // A request's body is read by whoever answers it; so it is here.
                        let _ = request.into_body().collect().await;
                        let answer = hyper::Response::builder()
                            .header("content-type", "application/json")
                            .body(Full::new(body));
                        Ok::<_, Infallible>(answer.unwrap_or_default())
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

// ---- processes ----

/// A process that is ended when it goes out of scope; the line it announced itself with.
struct Server {
    child: Child,
    said: Value,
}

impl Server {
    fn start(command: &mut Command) -> anyhow::Result<Server> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut server = Server { child, said: Value::Null };
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        reader.read_line(&mut line)?;
        server.said = serde_json::from_str(&line)
            .with_context(|| format!("{command:?} said {line:?} instead of where it listens"))?;
        Ok(server)
    }

    fn text(&self, name: &str) -> anyhow::Result<&str> {
        self.said[name].as_str().with_context(|| format!("{name} in {}", self.said))
    }

    fn rss_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Server {
    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

struct World {
    tidegate: PathBuf,
    folder: tempfile::TempDir,
    control: Server,
    http: reqwest::Client,
    token: String,
}

/// Keys of one environment and of an edge that serves it alone.
struct Environment {
    namespace: String,
    server_key: String,
    edge_key: String,
}

impl World {
    async fn start(tidegate: &Path) -> anyhow::Result<World> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir()?;
        let control = Server::start(
            Command::new(tidegate)
                .args(["control", "--output", "json", "--listen", "127.0.0.1:0", "--data-dir"])
                .arg(folder.path().join("control"))
                .env("TIDEGATE_LOG", "error"),
        )?;
        let (url, token) = (control.text("control_url")?, folder.path().join("owner-token"));
        let password = folder.path().join("password");
        std::fs::write(&password, "correct horse battery")?;
        let made = Command::new(tidegate)
            .args(["setup", "--url", url, "--email", "owner@example.com"])
            .args(["--token-file", control.text("setup_token_file")?])
            .args(["--password-file".as_ref(), password.as_os_str()])
            .args(["--personal-token-file".as_ref(), token.as_os_str()])
            .status()?;
        ensure!(made.success(), "no owner was made: {made}");
        let token = std::fs::read_to_string(token)?.trim().to_owned();
        let http = reqwest::Client::builder().tls_certs_only([]).build()?;
        Ok(World { tidegate: tidegate.to_owned(), folder, control, http, token })
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}/{path}", self.control.text("control_url")?);
        let answer = self.http.post(url).bearer_auth(&self.token).json(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    async fn environment(&self, name: &str, flags: &Value) -> anyhow::Result<Environment> {
        self.post("api/v1/namespaces", &json!({"key": name})).await?;
        let at = format!("api/v1/namespaces/{name}/environments");
        self.post(&at, &json!({"key": "load"})).await?;
        let import = format!("{at}/load/import?format=tidegate&dry_run=false");
        let imported = self.post(&import, flags).await?;
        let refused = imported["flags"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|flag| flag["result"] == "refused");
        ensure!(refused.is_none(), "refused: {refused:?}");
        let key = |body: Value| body["key"].as_str().map(str::to_owned).context("no key");
        let server_key =
            key(self.post(&format!("{at}/load/keys"), &json!({"kind": "server"})).await?)?;
        let edge_key = key(self
            .post("api/v1/edge-keys", &json!({"namespaces": [name], "name": "load"}))
            .await?)?;
        Ok(Environment { namespace: name.to_owned(), server_key, edge_key })
    }

    /// An edge of its own for one environment, once it is ready; and how long that took.
    async fn edge(&self, of: &Environment) -> anyhow::Result<(Server, Duration)> {
        let started = Instant::now();
        let edge = Server::start(
            Command::new(&self.tidegate)
                .args(["edge", "--output", "json", "--listen", "127.0.0.1:0"])
                .args(["--control-url", self.control.text("control_url")?])
                .args(["--trust", self.control.text("public_key")?, "--data-dir"])
                .arg(self.folder.path().join(&of.namespace))
                .env("TIDEGATE_EDGE_KEY", &of.edge_key)
                .env("TIDEGATE_SERVER_RATE", "0")
                // It is killed again and again, and no snapshot shall be blamed and set aside for it.
                .env("TIDEGATE_HEALTHY_AFTER_SECONDS", "0")
                .env("TIDEGATE_LOG", "error"),
        )?;
        let url = format!("{}/readyz", edge.text("edge_url")?);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.http.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok((edge, started.elapsed()));
            }
            ensure!(Instant::now() < deadline, "the edge was not ready within a minute");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The answer of an edge once its newest flags have arrived.
async fn answer(
    world: &World,
    address: SocketAddr,
    path: &str,
    key: &str,
    body: &Bytes,
) -> anyhow::Result<Bytes> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = world
            .http
            .post(format!("http://{address}{path}"))
            .bearer_auth(key)
            .header("content-type", "application/json")
            .body(body.clone())
            .send()
            .await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        let value: Value = serde_json::from_slice(&bytes)?;
        // What is measured must be the right answer, not a fast error.
        let first = value.pointer("/flags/0").unwrap_or(&value);
        if status.is_success() && first["variant"] == "beta" {
            return Ok(bytes);
        }
        ensure!(Instant::now() < deadline, "{path}: {status} {first}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ---- the environments ----

/// Three rules over ten attributes, none of which matches before the last.
fn three_rules(key: &str, salt: usize) -> Value {
    json!({
        "definition": {
            "key": key, "type": "string",
            "variants": {"express": "one-page", "classic": "three-pages", "beta": "beta-page"}
        },
        "config": {
            "enabled": true,
            "rules": [
                {"id": "staff", "serve": {"variant": "express"},
                 "when": {"attr": "email", "op": "ends_with", "value": "@staff.example.com"}},
                {"id": "america", "serve": {"variant": "express"}, "when": {"all": [
                    {"attr": "country", "op": "in", "value": ["US", "CA", "MX"]},
                    {"attr": "version", "op": "semver_gte", "value": "2.3.0"}]}},
                {"id": "gold", "serve": {"variant": "beta"}, "when": {"all": [
                    {"attr": "plan", "op": "eq", "value": "gold"},
                    {"attr": "age", "op": "gt", "value": 30 + salt % 5}]}}
            ],
            "fallthrough": {"variant": "classic"}
        }
    })
}

fn plain(key: &str, on: bool) -> Value {
    json!({
        "definition": {"key": key, "type": "boolean", "variants": {"on": true, "off": false}},
        "config": {"enabled": true, "fallthrough": {"variant": if on { "on" } else { "off" }}}
    })
}

/// `count` flags: every fourth has three rules, the others none.
fn flags(count: usize) -> Value {
    let flags: serde_json::Map<String, Value> = (0..count)
        .map(|nth| {
            let key = format!("flag-{nth:05}");
            let flag =
                if nth % 4 == 0 { three_rules(&key, nth) } else { plain(&key, nth % 2 == 0) };
            (key, flag)
        })
        .collect();
    json!({"flags": flags})
}

fn context() -> Value {
    json!({"context": {
        "targetingKey": "user-4711", "email": "someone@example.com", "country": "DE",
        "version": "2.10.1", "plan": "gold", "age": 44, "language": "de", "platform": "web",
        "beta": false, "tenant": "shop-12"
    }})
}

// ---- the drive ----

struct Case {
    name: &'static str,
    path: String,
    body: Bytes,
    answer_bytes: usize,
}

#[derive(Default)]
struct Figures {
    /// One per round.
    per_second: Vec<f64>,
    micros: Option<Histogram<u64>>,
}

impl Figures {
    fn median(&self) -> f64 {
        let mut sorted = self.per_second.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    fn at(&self, quantile: f64) -> u64 {
        self.micros.as_ref().map_or(0, |micros| micros.value_at_quantile(quantile))
    }
}

/// One round: every connection sends, waits for the whole answer, sends again.
async fn round(
    address: SocketAddr,
    path: &str,
    key: &str,
    body: &Bytes,
    answer_bytes: usize,
    options: &Options,
) -> anyhow::Result<(f64, Histogram<u64>)> {
    let until = Instant::now() + options.round;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..options.connections {
        let (path, key, body) = (path.to_owned(), key.to_owned(), body.clone());
        tasks.spawn(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let mut micros = Histogram::<u64>::new_with_max(60_000_000, 3)?;
            while Instant::now() < until {
                let request = hyper::Request::post(&path)
                    .header("host", "127.0.0.1")
                    .header("content-type", "application/json")
                    .header("authorization", format!("Bearer {key}"))
                    .body(Full::new(body.clone()))?;
                let sent = Instant::now();
                let answer = sender.send_request(request).await?;
                ensure!(answer.status() == 200, "{path}: {}", answer.status());
                let got = answer.into_body().collect().await?.to_bytes();
                micros.saturating_record(sent.elapsed().as_micros() as u64);
                ensure!(got.len() == answer_bytes, "{path}: {} bytes answered", got.len());
            }
            driver.abort();
            anyhow::Ok(micros)
        });
    }
    let started = Instant::now();
    let mut all = Histogram::<u64>::new_with_max(60_000_000, 3)?;
    while let Some(micros) = tasks.join_next().await {
        all.add(micros??)?;
    }
    let took = started.elapsed().max(options.round).as_secs_f64();
    Ok((all.len() as f64 / took, all))
}

fn drive(options: &Options) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        eprintln!("starting control and filling it");
        let mut world = World::start(&options.tidegate).await?;
        let small = world.environment("small", &flags(100)).await?;
        let big = world.environment("big", &flags(options.flags)).await?;
        let (edge, _) = world.edge(&small).await?;
        let address: SocketAddr = edge
            .text("edge_url")?
            .strip_prefix("http://")
            .context("edge_url")?
            .parse()?;

        let body = Bytes::from(context().to_string());
        let mut cases = Vec::new();
        for (name, path) in [
            ("one flag, three rules", "/ofrep/v1/evaluate/flags/flag-00000"),
            ("100 flags, bulk", "/ofrep/v1/evaluate/flags"),
        ] {
            let answer = answer(&world, address, path, &small.server_key, &body).await?;
            let value: Value = serde_json::from_slice(&answer)?;
            if let Some(flags) = value["flags"].as_array() {
                ensure!(flags.len() == 100, "{} flags answered", flags.len());
            }
            cases.push(Case { name, path: path.to_owned(), body: body.clone(), answer_bytes: answer.len() });
        }

        let this = std::env::current_exe()?;
        let floor = Server::start(
            Command::new(this)
                .arg("--floor")
                .args(cases.iter().map(|case| case.answer_bytes.to_string())),
        )?;
        let floor_address: SocketAddr = floor.text("address")?.parse()?;

        let mut figures: BTreeMap<(usize, bool), Figures> = BTreeMap::new();
        for nth in 0..options.rounds {
            eprintln!("round {} of {}", nth + 1, options.rounds);
            for (at, case) in cases.iter().enumerate() {
                // Who goes first changes with each round.
                for is_edge in [nth % 2 == 0, nth % 2 != 0] {
                    let (address, path) = if is_edge {
                        (address, case.path.clone())
                    } else {
                        (floor_address, format!("/{at}"))
                    };
                    let key = &small.server_key;
                    let (per_second, micros) =
                        round(address, &path, key, &case.body, case.answer_bytes, options).await?;
                    let entry = figures.entry((at, is_edge)).or_default();
                    entry.per_second.push(per_second);
                    match &mut entry.micros {
                        Some(all) => all.add(micros)?,
                        None => entry.micros = Some(micros),
                    }
                }
            }
        }
        let rss_loaded = edge.rss_mib()?;
        let floor_rss = floor.rss_mib()?;
        drop(edge);

        let (big_edge, first_ready) = world.edge(&big).await?;
        let big_idle = big_edge.rss_mib()?;
        let big_address: SocketAddr =
            big_edge.text("edge_url")?.strip_prefix("http://").context("edge_url")?.parse()?;
        let path = "/ofrep/v1/evaluate/flags/flag-00000";
        let answer = answer(&world, big_address, path, &big.server_key, &body).await?;
        round(
            big_address,
            path,
            &big.server_key,
            &body,
            answer.len(),
            options,
        )
        .await?;
        let big_loaded = big_edge.rss_mib()?;
        drop(big_edge);
        // From here on control is gone: what is ready now, is ready from disk.
        world.control.stop();
        let mut from_disk = Vec::new();
        for _ in 0..options.rounds {
            from_disk.push(world.edge(&big).await?.1.as_secs_f64() * 1e3);
        }
        from_disk.sort_by(f64::total_cmp);
        let from_disk = from_disk[from_disk.len() / 2];

        let mut rows = Vec::new();
        println!(
            "\n{:<24} {:>8}  {:>11} {:>8} {:>8}  {:>11} {:>8} {:>8}  {:>7}",
            "case", "bytes", "edge req/s", "p50 µs", "p99 µs", "hyper req/s", "p50 µs", "p99 µs", "ratio"
        );
        for (at, case) in cases.iter().enumerate() {
            let (Some(edge), Some(bare)) = (figures.get(&(at, true)), figures.get(&(at, false))) else {
                continue;
            };
            let ratio = edge.median() / bare.median();
            println!(
                "{:<24} {:>8}  {:>11.0} {:>8} {:>8}  {:>11.0} {:>8} {:>8}  {:>6.1}%",
                case.name, case.answer_bytes, edge.median(), edge.at(0.5), edge.at(0.99),
                bare.median(), bare.at(0.5), bare.at(0.99), ratio * 100.0
            );
            rows.push(json!({
                "case": case.name, "answerBytes": case.answer_bytes,
                "edge": {"perSecond": edge.median(), "p50Micros": edge.at(0.5), "p99Micros": edge.at(0.99)},
                "hyper": {"perSecond": bare.median(), "p50Micros": bare.at(0.5), "p99Micros": bare.at(0.99)},
                "ratio": ratio
            }));
        }
        let count = options.flags;
        println!("\nmemory (VmRSS)");
        println!("  edge, 100 flags, after the load        {rss_loaded:>7.1} MiB");
        println!("  edge, {count} flags, ready               {big_idle:>7.1} MiB");
        println!("  edge, {count} flags, after a round       {big_loaded:>7.1} MiB");
        println!("  bare hyper, after the load             {floor_rss:>7.1} MiB");
        println!("\nready, from the start of the process");
        println!("  {count} flags, from control              {:>7.0} ms", first_ready.as_secs_f64() * 1e3);
        println!("  {count} flags, from disk, control gone   {from_disk:>7.0} ms");
        let machine = std::thread::available_parallelism().map_or(0, usize::from);
        println!(
            "\n{} rounds of {} s a case, medians; {} connections; {machine} cores shared by client and server",
            options.rounds, options.round.as_secs(), options.connections
        );
        if let Some(path) = &options.json {
            let document = json!({
                "cases": rows, "cores": machine, "connections": options.connections,
                "rounds": options.rounds, "seconds": options.round.as_secs(), "flags": count,
                "rssMib": {"smallLoaded": rss_loaded, "bigReady": big_idle, "bigLoaded": big_loaded, "hyper": floor_rss},
                "readyMs": {"fromControl": first_ready.as_secs_f64() * 1e3, "fromDisk": from_disk}
            });
            std::fs::write(path, format!("{document:#}\n"))?;
        }
        Ok(())
    })
}
