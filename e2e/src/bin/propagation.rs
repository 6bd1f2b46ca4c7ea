//! `cargo xtask load propagation`: how long a change takes from the HTTP write being sent to the edge
//! serving it and to every client of an event stream hearing of it, with PostgreSQL and NATS between.
//!
//! Everything runs on one machine over loopback and shares its cores with the clients, which are one
//! process here. Times are taken in this process by one monotonic clock. Bounded: sizes times
//! changes; what it started it stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use e2e::http::{Admin, Ofrep, until};
use e2e::nats::NatsServer;
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::world::{admin_of, edge_of, furnish};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const USAGE: &str = "\
Usage: cargo xtask load propagation [-- OPTIONS]
  --clients LIST    event-stream clients, one figure each [1,1000,5000,10000]
  --flags LIST      flags of the environment, one block each [1000,10000]
  --changes N       changes of each figure [40]
  --no-nats         edges follow over HTTP alone";

const CHANGE_MAX: Duration = Duration::from_secs(30);
/// Of the kernel's queue of connections that nobody has accepted yet.
const OPENING_AT_ONCE: usize = 64;

struct Options {
    clients: Vec<usize>,
    flags: Vec<usize>,
    changes: usize,
    nats: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        clients: vec![1, 1_000, 5_000, 10_000],
        flags: vec![1_000, 10_000],
        changes: 40,
        nats: true,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--no-nats" {
            options.nats = false;
            continue;
        }
        let value = arguments.next().with_context(|| format!("{name} has no value\n{USAGE}"))?;
        let list = |max: usize| -> anyhow::Result<Vec<usize>> {
            let parse = |part: &str| Ok(part.trim().parse::<usize>()?.clamp(1, max));
            value.split(',').map(parse).collect()
        };
        match name.as_str() {
            "--clients" => options.clients = list(15_000)?,
            "--flags" => options.flags = list(10_000)?,
            "--changes" => options.changes = list(1_000)?.first().copied().unwrap_or(1),
            // As xtask gives it to every load command; the binary beside this one is used.
            "--tidegate" => {}
            _ => bail!("unknown option {name}\n{USAGE}"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(options))
}

fn rule(n: usize, r: usize) -> Value {
    json!({ "id": format!("r{r}"), "when": { "all": [
        { "attr": "country", "op": "in", "value": [format!("C{}", (n * 7 + r) % 200), "DE"] },
        { "attr": "app.version", "op": "semver_gte", "value": format!("{r}.{}.0", n % 50) }] },
        "serve": { "variant": "on" } })
}

fn document(flags: usize) -> Value {
    let flag = |n: usize| {
        json!({ "definition": { "type": "boolean", "variants": { "on": true, "off": false } },
            "config": { "enabled": true, "off": "off", "rules": (0..5).map(|r| rule(n, r))
                .collect::<Vec<_>>(), "fallthrough": { "variant": "off" } } })
    };
    let flags: Map<String, Value> = (1..flags).map(|n| (format!("flag-{n}"), flag(n))).collect();
    json!({ "flags": flags })
}

fn switched(on: bool) -> Value {
    let variant = if on { "on" } else { "off" };
    json!({ "enabled": true, "fallthrough": { "variant": variant } })
}

struct Fleet {
    admin: Admin,
    ofrep: Ofrep,
    control: Process,
    edge: Process,
    _nats: Option<NatsServer>,
    _postgres: PostgresServer,
    _folder: tempfile::TempDir,
}

async fn fleet(options: &Options, flags: usize) -> anyhow::Result<Fleet> {
    let folder = tempfile::tempdir()?;
    let postgres = PostgresServer::start(&folder.path().join("postgres"))?;
    let nats = match options.nats {
        true => Some(NatsServer::start().await),
        false => None,
    };
    let nats_url = nats.as_ref().map(NatsServer::url).unwrap_or_default();
    let database = postgres.url("postgres");
    let data = folder.path().join("control");
    let mut settings = vec![("TIDEGATE_DATABASE_URL", database.as_str()), ("TIDEGATE_LOG", "warn")];
    if options.nats {
        settings.push(("TIDEGATE_NATS_URL", nats_url.as_str()));
    }
    let data = data.to_string_lossy().into_owned();
    // A write on its way to all edges at once is what is measured, with one edge as with many.
    let arguments = ["control", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let stages = ["--rollout-stages", "off"];
    let arguments = [&arguments[..], &stages].concat();
    let control = Process::start(&arguments, &settings).await;
    let admin = admin_of(&control, &control).await;
    let (server_key, _, edge_key) = furnish(&admin).await;
    let path = format!("{}/import?format=tidegate", admin.environment_path());
    admin.post(&path, &document(flags)).await.ok();
    let switch = json!({ "key": "switch", "type": "boolean",
        "variants": { "on": true, "off": false } });
    admin.flag(&switch, &switched(false)).await;

    let mut settings = vec![("TIDEGATE_EDGE_KEY", edge_key.as_str()), ("TIDEGATE_LOG", "warn")];
    if options.nats {
        settings.push(("TIDEGATE_NATS_URL", nats_url.as_str()));
    }
    let started = Instant::now();
    let more = ["--streams-max", "16000", "--connections-max", "18000", "--server-rate", "0"];
    let edge = edge_of(&control, &folder.path().join("edge"), &more, &settings).await;
    let ofrep = Ofrep::new(&edge.text("edge_url"), &server_key);
    until("the edge serving", async || match ofrep.one("switch", &json!({})).await {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text),
    })
    .await;
    println!(
        "a cold edge serves {flags} flags {:.0} ms after its start",
        started.elapsed().as_secs_f64() * 1e3
    );
    Ok(Fleet { admin, ofrep, control, edge, _nats: nats, _postgres: postgres, _folder: folder })
}

/// Resident memory of a process, in MiB.
fn memory_mib(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
    let line = status.unwrap_or_default();
    let kib = line.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Opens one stream and tells of every event until told to stop.
async fn listen(
    address: String,
    path: String,
    heard: mpsc::Sender<Instant>,
    opened: mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(&address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = [0u8; 1024];
    let mut open = false;
    loop {
        let read = stream.read(&mut buffer).await?;
        let now = Instant::now();
        ensure!(read > 0, "the edge closed a stream");
        let text = buffer.get(..read).unwrap_or_default();
        if !open {
            ensure!(text.starts_with(b"HTTP/1.1 200"), "a stream was refused");
            open = true;
            opened.send(()).await?;
        }
        if text.windows(5).any(|window| window == b"data:") {
            heard.send(now).await?;
        }
    }
}

/// Asks the edge all the time; the time of the first answer with the wanted value.
struct Prober {
    wanted: Arc<AtomicBool>,
    asks: Arc<AtomicU64>,
    seen: mpsc::Receiver<Instant>,
    task: tokio::task::JoinHandle<()>,
}

impl Prober {
    fn start(ofrep: Ofrep) -> Prober {
        let (wanted, asks) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (tell, seen) = mpsc::channel(1);
        let (want, ask) = (wanted.clone(), asks.clone());
        let task = tokio::spawn(async move {
            loop {
                if ask.load(Ordering::Acquire) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let answer = ofrep.one("switch", &json!({})).await;
                if answer.json()["value"] == want.load(Ordering::Acquire) {
                    ask.store(0, Ordering::Release);
                    if tell.send(Instant::now()).await.is_err() {
                        return;
                    }
                }
            }
        });
        Prober { wanted, asks, seen, task }
    }
}

#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    fn at(&mut self, share: f64) -> f64 {
        self.0.sort_by(f64::total_cmp);
        let last = self.0.len().saturating_sub(1);
        self.0.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let between = if options.nats { "PostgreSQL and NATS" } else { "PostgreSQL, HTTP alone" };
    println!("{between}; {} changes each; milliseconds since the write was sent", options.changes);
    for &flags in &options.flags {
        let fleet = fleet(&options, flags).await?;
        println!(
            "{:>7} {:>8} | {:>15} | {:>15} | {:>23} | {:>5} | {:>14}",
            "flags",
            "clients",
            "write answered",
            "edge serves",
            "clients hear",
            "lost",
            "MiB edge/ctrl"
        );
        println!(
            "{:>7} {:>8} | {:>7} {:>7} | {:>7} {:>7} | {:>7} {:>7} {:>7} |",
            "", "", "p50", "p99", "p50", "p99", "p50", "p99", "last"
        );
        for &clients in &options.clients {
            measure(&fleet, flags, clients, options.changes).await?;
        }
        fleet.edge.kill().await;
        fleet.control.kill().await;
    }
    Ok(())
}

async fn measure(
    fleet: &Fleet,
    flags: usize,
    clients: usize,
    changes: usize,
) -> anyhow::Result<()> {
    let bulk = fleet.ofrep.all(&json!({})).await.ok().json();
    let path = bulk["eventStreams"][0]["endpoint"]["requestUri"].as_str().context("a stream")?;
    let address = fleet.ofrep.url.trim_start_matches("http://").to_owned();
    let (tell, mut heard) = mpsc::channel(65_536);
    let (open, mut opened) = mpsc::channel(OPENING_AT_ONCE);
    let mut streams = tokio::task::JoinSet::new();
    for begun in 0..clients {
        if begun >= OPENING_AT_ONCE {
            opened.recv().await.context("a stream that opens")?;
        }
        streams.spawn(listen(address.clone(), path.to_owned(), tell.clone(), open.clone()));
    }
    for _ in 0..clients.min(OPENING_AT_ONCE) {
        let opens = tokio::time::timeout(CHANGE_MAX, opened.recv()).await;
        opens.context("a stream did not open")?.context("a stream that opens")?;
    }
    let mut prober = Prober::start(fleet.ofrep.clone());
    let (mut answered, mut serves, mut hear) =
        (Times::default(), Times::default(), Times::default());
    let (mut last, mut lost) = (Times::default(), 0);
    // Two to warm up; they also put the switch where it is known.
    for change in 0..changes + 2 {
        // What the opening or the change before still has to say.
        while tokio::time::timeout(Duration::from_millis(100), heard.recv()).await.is_ok() {}
        let on = change % 2 == 0;
        prober.wanted.store(on, Ordering::Release);
        prober.asks.store(1, Ordering::Release);
        let sent = Instant::now();
        let write = async {
            fleet.admin.configure("switch", &switched(on)).await.ok();
            sent.elapsed()
        };
        let hears = async {
            let mut times = Vec::with_capacity(clients);
            while times.len() < clients {
                match tokio::time::timeout(CHANGE_MAX, heard.recv()).await {
                    Ok(Some(at)) => times.push(at.saturating_duration_since(sent)),
                    _ => break,
                }
            }
            times
        };
        let (write, served, times) = tokio::join!(write, prober.seen.recv(), hears);
        if change < 2 {
            continue;
        }
        answered.add(write);
        serves.add(served.context("the edge")?.saturating_duration_since(sent));
        lost += clients - times.len();
        last.add(times.iter().max().copied().unwrap_or_default());
        times.into_iter().for_each(|time| hear.add(time));
    }
    println!(
        "{flags:>7} {clients:>8} | {:>7.1} {:>7.1} | {:>7.1} {:>7.1} | {:>7.1} {:>7.1} {:>7.1} | {lost:>5} | {:>6.0} {:>6.0}",
        answered.at(0.5),
        answered.at(0.99),
        serves.at(0.5),
        serves.at(0.99),
        hear.at(0.5),
        hear.at(0.99),
        last.at(1.0),
        memory_mib(&fleet.edge),
        memory_mib(&fleet.control),
    );
    prober.task.abort();
    streams.shutdown().await;
    Ok(())
}
