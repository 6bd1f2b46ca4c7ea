//! What an edge with many environments needs: `cargo run --release -p sandbox --example
//! fleet_memory`. 50 environments of 1,000 flags, as in the benchmarks: half without rules, a
//! quarter with three rules, a quarter with a split.

#[path = "../../rules/benches/fixtures/mod.rs"]
mod fixtures;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fixtures::{CONTEXT, NOW_MS, mixed, ruleset, thousand_ids};
use rules::answer::Audience;
use rules::context::ContextBuf;
use sandbox::{Environment, Sandbox, SandboxConfig};

const ENVIRONMENTS: usize = 50;
const FLAGS: usize = 1_000;
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let sandbox = Sandbox::new(SandboxConfig::default())?;
    println!("evaluator compiled in {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    let state: Arc<[u8]> = ruleset(mixed(FLAGS)).into();
    println!("one ruleset: {:.2} MiB", state.len() as f64 / MIB);
    show("before", &sandbox);

    let began = Instant::now();
    let environments: Vec<Arc<Environment>> = (0..ENVIRONMENTS)
        .map(|_| {
            // Copied, as each environment has bytes of its own.
            let own: Arc<[u8]> = state.to_vec().into();
            sandbox.load(own, Arc::new(thousand_ids()))
        })
        .collect::<Result<_, _>>()?;
    println!("{ENVIRONMENTS} loaded in {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    show("loaded, one instance each", &sandbox);

    let context = ContextBuf::from_json(CONTEXT)?;
    let mut out = Vec::new();
    for environment in &environments {
        out.clear();
        environment.evaluate_all(Audience::Server, &context, NOW_MS, &mut out)?;
    }
    show("after all flags of each, once", &sandbox);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut out = Vec::new();
                for environment in environments.iter().cycle().take(ENVIRONMENTS * 20) {
                    out.clear();
                    let answer =
                        environment.evaluate_all(Audience::Server, &context, NOW_MS, &mut out);
                    if let Err(error) = answer {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });
    show("after two threads", &sandbox);
    sandbox.trim(Duration::ZERO);
    show("idle instances dropped", &sandbox);
    Ok(())
}

fn show(when: &str, sandbox: &Sandbox) {
    println!(
        "{when:<32} {:>7.1} MiB resident, {:>7.1} MiB of guests' memory",
        resident_mib(),
        sandbox.memory_bytes() as f64 / MIB
    );
}

/// VmRSS of this process.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(f64::NAN);
    kib / 1024.0
}
