//! `cargo xtask load bombs`: what hostile policies do to everybody else on an edge.
//!
//! A neighbour asks for the flags of hostile policies while sixteen connections ask for a flag
//! with three rules; in the next round the neighbour asks for a plain flag instead, and the two take
//! turns. What counts is the 99th percentile of the sixteen, with the bombs beside them and without.
//! The bombs are those of `sandbox/tests/bombs` that admission lets through, and policies that use all
//! of their fuel and answer, so that no breaker ends them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{Environment, Options, World, answer, context, flags, round, runtime};

#[path = "../../../../sandbox/tests/text/mod.rs"]
mod text;

/// Uploads to one namespace; there are that many a minute.
const UPLOADS: usize = 8;
const MEASURED: &str = "/ofrep/v1/evaluate/flags/flag-00000";
const ALL: &str = "/ofrep/v1/evaluate/flags";

/// Nearly all of its fuel, and then an answer.
const BURN: &str = r#"(module
  <<abi>>
  (func (export "evaluate") (param $at i32) (param $len i32) (result i64)
    (local $left i32)
    (local.set $left (i32.const 190000))
    (loop $again
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    i64.const 16))"#;

struct Bomb {
    name: String,
    wasm: Vec<u8>,
}

fn modules(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Bomb>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("{} (run this from a checkout)", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.sort();
    let mut bombs = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
        let bomb = std::fs::read_to_string(&file)?;
        if wanted(&name) && !bomb.contains(";; expect: refused") {
            let wasm = wat::parse_str(text::expanded(&bomb)).with_context(|| name.clone())?;
            bombs.push(Bomb { name, wasm });
        }
    }
    ensure!(!bombs.is_empty(), "no bombs in {}", folder.display());
    Ok(bombs)
}

/// An environment whose flags ask the policies that were uploaded to its namespace.
struct Armed {
    environment: Environment,
    digests: Vec<(String, String)>,
}

impl World {
    async fn arm(&self, name: &str, bombs: &[Bomb], pinned: bool) -> anyhow::Result<Armed> {
        let environment = self.environment(name, &flags(1)).await?;
        let mut digests = Vec::new();
        for bomb in bombs {
            let path = format!("api/v1/namespaces/{name}/policies/{}/versions", bomb.name);
            let url = format!("{}/{path}", self.control.text("control_url")?);
            let sent = self.http.post(url).bearer_auth(&self.token);
            let sent = sent.header("content-type", "application/wasm").body(bomb.wasm.clone());
            let answer = sent.send().await?;
            let status = answer.status();
            let body: Value = answer.json().await?;
            ensure!(status.is_success(), "{}: {status} {body}", bomb.name);
            let digest = body["digest"].as_str().context("a digest")?.to_owned();
            if pinned {
                self.pin(name, &bomb.name, &digest).await?;
            }
            digests.push((bomb.name.clone(), digest));
        }
        Ok(Armed { environment, digests })
    }

    async fn pin(&self, namespace: &str, policy: &str, digest: &str) -> anyhow::Result<()> {
        let base = self.control.text("control_url")?;
        let at = format!("api/v1/namespaces/{namespace}/environments/load/policies/{policy}");
        let sent = self.http.put(format!("{base}/{at}")).bearer_auth(&self.token);
        let sent = sent.header("if-match", "*").json(&json!({ "digest": digest }));
        let answer = sent.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{at}: {status} {}", answer.text().await?);
        Ok(())
    }

    async fn import(&self, namespace: &str, flags: &Value) -> anyhow::Result<()> {
        let at = format!("api/v1/namespaces/{namespace}/environments/load");
        let import = format!("{at}/import?format=tidegate&dry_run=false");
        let imported = self.post(&import, flags).await?;
        let refused = imported["flags"].as_array().into_iter().flatten();
        let refused = refused.filter(|flag| flag["result"] == "refused").collect::<Vec<_>>();
        ensure!(refused.is_empty(), "refused: {refused:?}");
        Ok(())
    }
}

/// A flag that the policy decides; who is told `fallback` was told that it failed.
fn asking(policy: &str) -> Value {
    json!({
        "definition": { "key": policy, "type": "string",
            "variants": { "fallback": "fallback", "beta": "beta" } },
        "config": { "enabled": true, "fallthrough": { "variant": "beta" },
            "rules": [{ "id": "bomb",
                "policy": { "name": policy, "fallback": { "variant": "fallback" } } }] }
    })
}

/// Waits until the edge has compiled what it was given: what is absent cannot explode.
async fn loaded(world: &World, address: SocketAddr, policies: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let text = world.http.get(format!("http://{address}/metrics")).send().await?.text().await?;
        let lines = text.lines().filter(|line| line.starts_with("tidegate_edge_policy_loaded{"));
        let there = lines.filter(|line| line.ends_with(" 1")).count();
        if there >= policies {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{there} of {policies} policies were compiled");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What the neighbour's requests go to.
struct Target {
    path: String,
    key: String,
}

#[derive(Default)]
struct Neighbour {
    answers: u64,
    fallbacks: u64,
}

/// Asks in turn until the time is over, one request at a time.
async fn neighbour(
    world: &World,
    address: SocketAddr,
    targets: &[Target],
    round: Duration,
) -> anyhow::Result<Neighbour> {
    let until = Instant::now() + round;
    let mut neighbour = Neighbour::default();
    let body = context().to_string();
    for target in targets.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        let sent = world.http.post(format!("http://{address}{}", target.path));
        let sent = sent.bearer_auth(&target.key).header("content-type", "application/json");
        let answer = sent.body(body.clone()).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{}: {status}", target.path);
        neighbour.answers += 1;
        neighbour.fallbacks += u64::from(answer.text().await?.contains("\"fallback\""));
    }
    Ok(neighbour)
}

struct Case {
    name: &'static str,
    targets: Vec<Target>,
    /// Pinned one after the other, a round each, in the environment of that name.
    compiled: Vec<(String, String)>,
}

#[derive(Default)]
struct Turns {
    /// One per round: per second, and the 99th percentile in microseconds.
    with: Vec<(f64, u64)>,
    without: Vec<(f64, u64)>,
    all_with: Option<Histogram<u64>>,
    all_without: Option<Histogram<u64>>,
    neighbour: Neighbour,
}

fn add(all: &mut Option<Histogram<u64>>, more: Histogram<u64>) -> anyhow::Result<()> {
    match all {
        Some(all) => Ok(all.add(more)?),
        None => {
            *all = Some(more);
            Ok(())
        }
    }
}

fn targets(armed: &Armed) -> Vec<Target> {
    let target = |(name, _): &(String, String)| Target {
        path: format!("{ALL}/{name}"),
        key: armed.environment.server_key.clone(),
    };
    armed.digests.iter().map(target).collect()
}

pub fn drive(options: &Options) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sandbox/tests/bombs");
        let hostile = modules(&folder, |name| !name.starts_with("worst-"))?;
        let worst = modules(&folder, |name| name.starts_with("worst-"))?;
        let burn = wat::parse_str(text::expanded(BURN))?;
        eprintln!(
            "starting control; {} bombs and {} worst modules are admitted",
            hostile.len(),
            worst.len()
        );
        let world = World::start(&options.tidegate).await?;

        let mut namespaces = vec!["quiet".to_owned(), "burning".to_owned(), "bulk".to_owned()];
        let quiet = world.environment("quiet", &flags(100)).await?;
        let mut corpus = Vec::new();
        for (nth, bombs) in hostile.chunks(UPLOADS).enumerate() {
            let name = format!("bombs-{nth}");
            let armed = world.arm(&name, bombs, true).await?;
            let flags: serde_json::Map<String, Value> =
                bombs.iter().map(|bomb| (bomb.name.clone(), asking(&bomb.name))).collect();
            world.import(&name, &json!({ "flags": flags })).await?;
            corpus.extend(targets(&armed));
            namespaces.push(name);
        }
        // In the environment of the sixteen themselves: its instances are shared with them.
        let own = Bomb { name: "burn".to_owned(), wasm: burn.clone() };
        let burning = world.arm("burning", std::slice::from_ref(&own), true).await?;
        let mut here = flags(100);
        here["flags"]["burn"] = asking("burn");
        world.import("burning", &here).await?;
        let bulk = world.arm("bulk", &[own], true).await?;
        let many: serde_json::Map<String, Value> = (0..64)
            .map(|nth| {
                let mut flag = asking("burn");
                flag["definition"]["key"] = json!(format!("burn-{nth}"));
                (format!("burn-{nth}"), flag)
            })
            .collect();
        world.import("bulk", &json!({ "flags": many })).await?;
        let mut compiled = Vec::new();
        for (nth, bombs) in worst.chunks(UPLOADS).enumerate() {
            let name = format!("worst-{nth}");
            let armed = world.arm(&name, bombs, false).await?;
            compiled.extend(
                armed
                    .digests
                    .into_iter()
                    .map(|(policy, digest)| (format!("{name}/{policy}"), digest)),
            );
            namespaces.push(name);
        }
        let created = world
            .post("api/v1/edge-keys", &json!({ "namespaces": namespaces, "name": "bombs" }))
            .await?;
        let edge_key = created["key"].as_str().context("an edge key")?.to_owned();
        let (edge, _) = world
            .edge(&Environment {
                namespace: "edge-of-all".to_owned(),
                server_key: String::new(),
                edge_key,
            })
            .await?;
        let address: SocketAddr =
            edge.text("edge_url")?.strip_prefix("http://").context("edge_url")?.parse()?;

        let body = Bytes::from(context().to_string());
        let plain = |environment: &Environment| {
            let path = format!("{ALL}/flag-00001");
            vec![Target { path, key: environment.server_key.clone() }]
        };
        let cases = [
            Case { name: "every admitted bomb, in turn", targets: corpus, compiled: Vec::new() },
            Case {
                name: "one that burns its fuel and answers",
                targets: targets(&burning),
                compiled: Vec::new(),
            },
            Case {
                name: "64 of these in each request",
                targets: vec![Target {
                    path: ALL.to_owned(),
                    key: bulk.environment.server_key.clone(),
                }],
                compiled: Vec::new(),
            },
            Case { name: "compiling the worst that is admitted", targets: plain(&quiet), compiled },
        ];
        let measured_key = &burning.environment.server_key;
        let answer_bytes = answer(&world, address, MEASURED, measured_key, &body).await?.len();
        // What burns has to answer, or its breaker and not its budget is measured.
        answer(&world, address, &format!("{ALL}/burn"), measured_key, &body).await?;
        loaded(&world, address, hostile.len() + 2).await?;
        let baseline = plain(&burning.environment);
        let rss_before = edge.rss_mib()?;
        let mut turns: Vec<Turns> = cases.iter().map(|_| Turns::default()).collect();
        for nth in 0..options.rounds {
            eprintln!("round {} of {}", nth + 1, options.rounds);
            for (case, turns) in cases.iter().zip(&mut turns) {
                for with in [nth % 2 == 0, nth % 2 != 0] {
                    let asked = if with { case.targets.as_slice() } else { &baseline };
                    let pinned = async {
                        let Some((policy, digest)) =
                            case.compiled.get(nth % case.compiled.len().max(1)).filter(|_| with)
                        else {
                            return Ok(());
                        };
                        let (namespace, policy) = policy.split_once('/').unwrap_or_default();
                        world.pin(namespace, policy, digest).await
                    };
                    let (measured, beside, pinned) = tokio::join!(
                        round(address, MEASURED, measured_key, &body, answer_bytes, options),
                        neighbour(&world, address, asked, options.round),
                        pinned,
                    );
                    pinned?;
                    let ((per_second, micros), beside) = (measured?, beside?);
                    let figures = (per_second, micros.value_at_quantile(0.99));
                    if with {
                        turns.with.push(figures);
                        add(&mut turns.all_with, micros)?;
                        turns.neighbour.answers += beside.answers;
                        turns.neighbour.fallbacks += beside.fallbacks;
                    } else {
                        turns.without.push(figures);
                        add(&mut turns.all_without, micros)?;
                    }
                }
            }
        }
        let rss_after = edge.rss_mib()?;
        report(options, &cases, &turns, rss_before, rss_after)
    })
}

fn report(
    options: &Options,
    cases: &[Case],
    turns: &[Turns],
    rss_before: f64,
    rss_after: f64,
) -> anyhow::Result<()> {
    let mut text = String::new();
    writeln!(
        text,
        "\n{:<38} {:>11} {:>9} {:>11} {:>9} {:>10}  {:>10} {:>10}",
        "beside",
        "with req/s",
        "p99 µs",
        "w/o req/s",
        "p99 µs",
        "p99 ratio",
        "its answers",
        "fallbacks"
    )?;
    let mut rows = Vec::new();
    for (case, turns) in cases.iter().zip(turns) {
        let per_second = |rounds: &[(f64, u64)]| {
            let mut sorted: Vec<f64> = rounds.iter().map(|round| round.0).collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        };
        let p99 = |all: &Option<Histogram<u64>>| {
            all.as_ref().map_or(0, |all| all.value_at_quantile(0.99))
        };
        let (with, without) = (p99(&turns.all_with), p99(&turns.all_without));
        let ratio = with as f64 / without.max(1) as f64;
        writeln!(
            text,
            "{:<38} {:>11.0} {:>9} {:>11.0} {:>9} {:>10.2}  {:>10} {:>10}",
            case.name,
            per_second(&turns.with),
            with,
            per_second(&turns.without),
            without,
            ratio,
            turns.neighbour.answers,
            turns.neighbour.fallbacks
        )?;
        rows.push(json!({
            "beside": case.name, "p99Ratio": ratio,
            "with": { "perSecond": per_second(&turns.with), "p99Micros": with,
                "rounds": turns.with },
            "without": { "perSecond": per_second(&turns.without), "p99Micros": without,
                "rounds": turns.without },
        }));
    }
    writeln!(
        text,
        "\nmemory of the edge (VmRSS): {rss_before:.1} MiB before, {rss_after:.1} MiB after"
    )?;
    let machine = std::thread::available_parallelism().map_or(0, usize::from);
    writeln!(
        text,
        "{} rounds of {} s a case; {} connections; {machine} cores shared by client and server",
        options.rounds,
        options.round.as_secs(),
        options.connections
    )?;
    print!("{text}");
    if let Some(path) = &options.json {
        let document =
            json!({ "cases": rows, "rssMib": [rss_before, rss_after], "cores": machine });
        std::fs::write(path, format!("{document:#}\n"))?;
    }
    Ok(())
}
