//! Hostile modules, kept as text in `bombs/`: what becomes of each is written in its first lines,
//! and a real helper process has to come to the same verdict.
//!
//! `cargo test --release -p sandbox --test bombs -- --nocapture` prints what each cost. Of memory
//! each has a cap of ten times what was measured. Times are only printed: that admission took too long
//! is a verdict of its own (`time`), and only the worst that the limits let through may have it, on a
//! slow machine.

mod in_time;
mod text;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rules::blob::Digest;
use rules::limits::*;
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{LoadError, Policies, Policy, PolicyConfig, Vector, Verdict, check};
use serde_json::Value;

/// Ten times what a helper took for half of them: the process itself and a small module. What the worst
/// took is in docs/adr/0007; ten times the largest is more than the 512 MiB that the kernel gives them.
const PEAK_BYTES_MAX: u64 = 10 * 17 * 1024 * 1024;
const WORST_PEAK_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// What this process may grow by, in so many rounds in which everything that was admitted is loaded and
/// called. One page of memory that each call kept would be ten times as much.
const GROWTH_BYTES_MAX: u64 = 16 * 1024 * 1024;
const ROUNDS: usize = 30;

struct Bomb {
    name: String,
    expect: Expect,
    input: Option<Value>,
    wasm: Vec<u8>,
}

#[derive(Debug)]
enum Expect {
    Refused(String),
    /// Admitted without vectors; the fault's text contains this.
    Fault(String),
    Answer(Value),
    Admitted,
    /// The worst that the shape's limits let through. How long it takes is the machine's business
    /// (5 s hold everywhere); that it stays within the process's memory is not.
    Bounded,
}

fn helper() -> Helper {
    Helper { program: env!("CARGO_BIN_EXE_tidegate-sandbox-helper").into(), arguments: Vec::new() }
}

fn bombs() -> Vec<Bomb> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bombs");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Bomb {
    let name = file.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap();
    let said = |what: &str| {
        let prefix = format!(";; {what}: ");
        text.lines().find_map(|line| line.strip_prefix(&prefix))
    };
    let expect = said("expect").unwrap_or_else(|| panic!("{name} expects nothing"));
    let expect = match expect.split_once(' ') {
        Some(("refused", rule)) => Expect::Refused(rule.to_owned()),
        Some(("fault", text)) => Expect::Fault(text.to_owned()),
        Some(("answer", json)) => Expect::Answer(serde_json::from_str(json).unwrap()),
        None if expect == "admitted" => Expect::Admitted,
        None if expect == "bounded" => Expect::Bounded,
        _ => panic!("{name} expects {expect:?}"),
    };
    let input = said("vector").map(|json| serde_json::from_str(json).unwrap());
    let wasm = wat::parse_str(text::expanded(&text)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Bomb { name, expect, input, wasm }
}

impl Bomb {
    fn vectors(&self) -> Vec<Vector> {
        let Expect::Answer(answer) = &self.expect else { return Vec::new() };
        let input = self.input.clone().unwrap_or_default();
        vec![Vector { name: self.name.clone(), input, expect: Some(answer.clone()) }]
    }

    fn verdict_is_wrong(&self, verdict: &Verdict) -> bool {
        let refused = verdict.refused.as_ref().map(|refused| refused.rule.as_ref());
        let fault = verdict.vectors.first().and_then(|result| result.fault.as_deref());
        match &self.expect {
            Expect::Refused(rule) => verdict.admitted || refused != Some(rule),
            Expect::Fault(text) => {
                !verdict.admitted || !fault.is_some_and(|fault| fault.contains(text.as_str()))
            }
            Expect::Bounded => !verdict.admitted && refused != Some("time"),
            Expect::Answer(_) | Expect::Admitted => !verdict.admitted || fault.is_some(),
        }
    }
}

/// That it took too long says something of the machine, unless the module is one of the worst.
fn verdict(bomb: &Bomb) -> Verdict {
    let (helper, vectors) = (helper(), bomb.vectors());
    let verdict = match bomb.expect {
        Expect::Bounded => helper.admit(&bomb.wasm, &vectors),
        _ => in_time::admit(&helper, &bomb.wasm, &vectors),
    };
    verdict.unwrap()
}

/// Of a bomb that is admitted, so that it is no fault of the module if compiling it takes too long.
fn loaded(policies: &Policies, bomb: &Bomb) -> Arc<Policy> {
    let load = || policies.load(Digest::of(&bomb.wasm), &bomb.wasm);
    let is_late = |loaded: &Result<Arc<Policy>, LoadError>| {
        matches!(loaded, Err(LoadError::Compile(HelperError::Time)))
    };
    in_time::in_time(load, is_late).unwrap()
}

#[test]
fn every_bomb_gets_its_verdict_and_takes_nothing_with_it() {
    let bombs = bombs();
    assert!(bombs.len() >= 30);
    let mut table = String::from(
        "| Module | Bytes | Compiled in ms | Code bytes | Peak MiB | Fuel | Run in µs | Verdict |\n|---|--:|--:|--:|--:|--:|--:|---|\n",
    );
    let mut wrong = Vec::new();
    for bomb in &bombs {
        let verdict = verdict(bomb);
        table.push_str(&row(bomb, &verdict));
        if bomb.verdict_is_wrong(&verdict) {
            wrong.push(format!("{}: expected {:?}, got {verdict:?}", bomb.name, bomb.expect));
        }
        let is_worst = matches!(bomb.expect, Expect::Bounded);
        let peak_max = if is_worst { WORST_PEAK_BYTES_MAX } else { PEAK_BYTES_MAX };
        if verdict.peak_bytes > peak_max {
            wrong.push(format!("{}: {} bytes of memory", bomb.name, verdict.peak_bytes));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn row(bomb: &Bomb, verdict: &Verdict) -> String {
    let mut row = String::new();
    let run = verdict.vectors.first();
    let told = match (&verdict.refused, run.and_then(|run| run.fault.as_ref())) {
        (Some(refused), _) => format!("refused: {}", cut(&refused.to_string())),
        (None, Some(fault)) => format!("stopped: {}", cut(fault)),
        (None, None) => "admitted".to_owned(),
    };
    let shown =
        |number: Option<u64>| number.filter(|n| *n > 0).map_or("".into(), |n| n.to_string());
    let _ = writeln!(
        row,
        "| `{}` | {} | {} | {} | {} | {} | {} | {told} |",
        bomb.name,
        bomb.wasm.len(),
        shown(Some(verdict.compile_ms)),
        shown(Some(verdict.code_bytes)),
        shown(Some(verdict.peak_bytes / 1_048_576)),
        shown(run.map(|run| run.fuel)),
        shown(run.map(|run| run.took_us)),
    );
    row
}

fn cut(text: &str) -> String {
    let text = text.replace('|', "/");
    if text.chars().count() <= 90 {
        text
    } else {
        text.chars().take(90).collect::<String>() + "…"
    }
}

/// Control admits with exactly the limits that an edge runs with: a call in this process ends as
/// the helper's did.
#[test]
fn what_admission_saw_is_what_an_edge_does() {
    let policies = Policies::new(PolicyConfig { helper: helper(), cache_dir: None }).unwrap();
    for bomb in bombs() {
        let Expect::Fault(text) = &bomb.expect else { continue };
        let policy = loaded(&policies, &bomb);
        for input in [&b"{}"[..], &[b'x'; 16 * 1024], b""] {
            let called = policy.call(input);
            if let Err(fault) = called.outcome {
                let fault = fault.to_string();
                let is_deadline = fault.contains("longer than its");
                let sees_no_input = input.is_empty() && bomb.name.starts_with("alloc");
                assert!(
                    fault.contains(text.as_str()) || is_deadline || sees_no_input,
                    "{}: {fault}",
                    bomb.name
                );
            } else {
                // Looked at by whoever reads the answer, and by admission.
                assert!(
                    bomb.name.starts_with("answer_") || bomb.name.starts_with("alloc"),
                    "{}",
                    bomb.name
                );
            }
        }
    }
}

/// As an edge has them: loaded, called, thrown away, again and again.
#[test]
fn what_bombs_take_of_a_process_they_give_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache_dir = Some(folder.path().to_owned());
    let policies = Policies::new(PolicyConfig { helper: helper(), cache_dir }).unwrap();
    let admitted: Vec<Bomb> = bombs()
        .into_iter()
        .filter(|bomb| {
            matches!(bomb.expect, Expect::Fault(_) | Expect::Answer(_) | Expect::Admitted)
        })
        .collect();
    assert!(admitted.len() >= 40);
    let mut calls = 0;
    let mut after = Vec::new();
    for _ in 0..ROUNDS {
        for bomb in &admitted {
            let policy = loaded(&policies, bomb);
            for input in [&b"{}"[..], &[b'x'; 16 * 1024]] {
                let called = policy.call(input);
                assert!(called.memory_bytes <= POLICY_MEMORY_BYTES_MAX, "{}", bomb.name);
                calls += 1;
            }
        }
        after.push(resident_bytes());
    }
    println!("{calls} calls; resident after each round: {after:?}");
    let (warm, now) = (after[ROUNDS / 3], after[ROUNDS - 1]);
    assert!(now < warm + GROWTH_BYTES_MAX, "{after:?}");
}

/// Without pages of files, which come as the program's own code is first run.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Whatever a file is cut to, looking at it ends with a refusal.
#[test]
fn a_module_that_is_cut_short_is_refused() {
    let whole = bombs().into_iter().find(|bomb| bomb.name == "run_recursion_by_table").unwrap();
    assert!(check(&whole.wasm).is_ok());
    // Without its data and its names it is a module still.
    let still_whole = (0..whole.wasm.len()).filter(|end| check(&whole.wasm[..*end]).is_ok());
    assert!(still_whole.count() <= 2);
}

#[test]
fn a_refusal_names_the_rule_what_was_found_and_where() {
    let find = |name: &str| {
        let bomb = bombs().into_iter().find(|bomb| bomb.name == name).unwrap();
        check(&bomb.wasm).unwrap_err()
    };
    let refused = find("blocks_over");
    assert_eq!(refused.rule, "blocks");
    let at = refused.offset.unwrap();
    assert_eq!(refused.message, format!("2001 blocks of a function; 2000 are allowed (byte {at})"));
    let refused = find("memory_without_maximum");
    assert!(refused.message.contains("declares no maximum; at most 64 pages"), "{refused}");
    assert!(find("import_wasi").message.contains("only `log` of `tidegate.v1`"));
}

/// Each limit of the shape: its rule, its size, and a module with as much of it as asked for, of which the
/// ABI's own part is already counted in. Only looked at: what is within the limits is compiled above.
#[test]
fn every_limit_of_the_shape_passes_at_n_and_refuses_one_more() {
    type Make = fn(usize) -> String;
    let cases: [(&str, usize, Make); 20] = [
        ("size", POLICY_BYTES_MAX, |n| {
            // The shell, and a custom section whose length takes three bytes, of a name and the rest.
            let shell = wat::parse_str(text::expanded("(module <<shell>>)")).unwrap().len();
            format!("(module <<shell>> (@custom \"x\" \"<<{}:x>>\"))", n - shell - 6)
        }),
        ("functions", POLICY_FUNCTIONS_MAX, |n| format!("(module <<shell>> <<{}:(func)>>)", n - 4)),
        // Without locals: their number, the instructions, the end.
        ("body", POLICY_FUNCTION_BYTES_MAX, |n| {
            format!("(module <<shell>> (func <<{}:nop >>))", n - 2)
        }),
        ("locals", POLICY_LOCALS_MAX, |n| {
            format!("(module <<shell>> (func (param i32) (local <<{n}:i32 >>)))")
        }),
        ("nesting", POLICY_NESTING_MAX, |n| {
            format!("(module <<shell>> (func <<{n}:block >> <<{n}:end >>))")
        }),
        ("blocks", POLICY_BLOCKS_MAX, |n| format!("(module <<shell>> (func <<{n}:(block)>>))")),
        // The last is the default, which is not counted.
        ("br_table", POLICY_JUMP_TARGETS_MAX, |n| {
            format!("(module <<shell>> (func i32.const 0 br_table <<{}:0 >>))", n + 1)
        }),
        ("memory", POLICY_MEMORY_BYTES_MAX / 65_536, |n| {
            format!("(module <<functions>> (memory (export \"memory\") 1 {n}))")
        }),
        ("memory", POLICY_MEMORY_BYTES_MAX / 65_536, |n| {
            format!("(module <<functions>> (memory (export \"memory\") {n} {n}))")
        }),
        ("table", POLICY_TABLE_ELEMENTS_MAX, |n| {
            format!("(module <<shell>> (table 1 {n} funcref))")
        }),
        ("globals", POLICY_GLOBALS_MAX, |n| {
            format!("(module <<shell>> <<{n}:(global i32 (i32.const 0))>>)")
        }),
        ("data", POLICY_DATA_BYTES_MAX, |n| {
            format!("(module <<shell>> (data (i32.const 0) \"<<{}:x>>\"))", n - 33)
        }),
        ("segments", POLICY_SEGMENTS_MAX, |n| {
            format!("(module <<shell>> <<{}:(data (i32.const 0) \"\")>>)", n - 2)
        }),
        ("segments", POLICY_SEGMENTS_MAX, |n| {
            format!("(module <<shell>> (table 1 1 funcref) <<{n}:(elem (i32.const 0) func)>>)")
        }),
        ("elements", POLICY_SEGMENT_ELEMENTS_MAX, |n| {
            let rest = n - 3_000;
            format!(
                "(module <<shell>> (func $f) (table 1 1 funcref) \
                 (elem (i32.const 0) func <<3000:$f >>) (elem (i32.const 0) func <<{rest}:$f >>))"
            )
        }),
        ("types", POLICY_TYPES_MAX, |n| format!("(module <<shell>> <<{}:(type (func))>>)", n - 4)),
        ("parameters", POLICY_PARAMETERS_MAX, |n| {
            format!("(module <<shell>> (type (func (param <<{n}:i32 >>))))")
        }),
        ("results", POLICY_RESULTS_MAX, |n| {
            format!("(module <<shell>> (type (func (result <<{n}:i32 >>))))")
        }),
        ("exports", POLICY_EXPORTS_MAX, |n| {
            format!("(module <<shell>> <<{}:(func (export \"f#\"))>>)", n - 5)
        }),
        ("name", POLICY_EXPORT_BYTES_MAX, |n| {
            format!("(module <<shell>> (func (export \"<<{n}:x>>\")))")
        }),
    ];
    for (rule, limit, make) in cases {
        let at = wat::parse_str(text::expanded(&make(limit))).unwrap();
        assert_eq!(check(&at).err(), None, "{rule}: {limit} pass");
        let beyond = wat::parse_str(text::expanded(&make(limit + 1))).unwrap();
        let refused = check(&beyond).unwrap_err();
        assert_eq!(refused.rule, rule, "{refused}");
        assert!(refused.message.contains(&(limit + 1).to_string()), "{refused}");
        assert!(refused.message.contains(&format!("{limit} are allowed")), "{refused}");
    }
}
