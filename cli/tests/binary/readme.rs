//! What somebody types who sees Tidegate for the first time: the lines that `tidegate dev` prints, and those
//! of README.md for a second terminal.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::ofrep_schema::{BULK, OfrepSchema, SINGLE};
use crate::world::{Done, run, tidegate};

/// `tidegate dev` as a person starts it, and all that it says until it waits.
struct Started {
    child: Child,
    said: String,
}

impl Started {
    fn in_folder(folder: &Path) -> Started {
        let mut dev = tidegate();
        dev.args(["dev", "--control-port", "0", "--edge-port", "0", "--log", "warn"]);
        let child = dev.current_dir(folder).stdout(Stdio::piped()).spawn().unwrap();
        let mut started = Started { child, said: String::new() };
        for line in BufReader::new(started.child.stdout.take().unwrap()).lines() {
            started.said.push_str(&line.unwrap());
            started.said.push('\n');
            if started.said.ends_with("ctrl-c ends it; the state stays.\n") {
                return started;
            }
        }
        panic!("it ended: {}", started.said);
    }

    /// What stands under a heading.
    fn under(&self, heading: &str) -> &str {
        let (_, rest) = self.said.split_once(&format!("\n{heading}\n")).expect("the heading");
        rest.split_once("\n\n").expect("an end").0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn typed(folder: &Path, script: &str) -> Done {
    let tools = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("set -eu\n{script}")).current_dir(folder);
    shell.env("PATH", format!("{}:{path}", tools.display())).stdin(Stdio::null());
    run(&mut shell)
}

/// Answers over OFREP that came one after the other, without anything between; each is held against the
/// protocol.
fn answers<const N: usize>(text: &str, paths: [&str; N]) -> [Value; N] {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    let values: Vec<Value> =
        values.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {text:?}"));
    for (path, value) in paths.iter().zip(&values) {
        let checked = OfrepSchema::shared().check(path, "POST", 200, value.to_string().as_bytes());
        checked.unwrap_or_else(|why| panic!("{path}: {why}: {value}"));
    }
    values.try_into().unwrap_or_else(|values| panic!("{N} answers wanted: {values:?}"))
}

#[test]
fn what_dev_prints_to_try_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Started::in_folder(folder.path());
    let tries = dev.under("Try");
    assert_eq!(tries.matches("curl -s ").count(), 3, "{tries}");
    let [checkout, limit, all] =
        answers(&typed(folder.path(), tries).ok().out, [SINGLE, SINGLE, BULK]);
    assert_eq!(checkout["key"], "checkout", "{checkout}");
    assert_eq!(checkout["reason"], "TARGETING_MATCH", "{checkout}");
    assert_eq!(limit["key"], "upload-limit-mb", "{limit}");
    assert!(limit["value"].is_number(), "{limit}");
    let all = all["flags"].as_array().unwrap();
    assert!(all.len() > 10 && all.iter().all(|flag| flag["errorCode"].is_null()), "{all:?}");

    let others = dev.under("Or, in another terminal");
    assert_eq!(others.lines().count(), 3, "{others}");
    let done = typed(folder.path(), others).ok();
    assert!(done.out.contains("payments-up"), "{done:?}");
}

#[test]
fn the_lines_of_the_readme_for_a_second_terminal_work() {
    const DOCUMENT: &str = r#"{"flags":{"mine":{"state":"ENABLED","variants":{"on":true,"off":false},
        "defaultVariant":"on"}}}"#;
    let page = include_str!("../../../README.md");
    let (_, page) = page.split_once("\nIn a second terminal").unwrap();
    let (page, _) = page.split_once("\nControl and edge as processes of their own").unwrap();
    let blocks: Vec<&str> = page
        .split("\n```sh\n")
        .skip(1)
        .map(|block| block.split_once("\n```").expect("an end").0)
        .collect();
    let [asked, commanded] = blocks[..] else { panic!("{} blocks", blocks.len()) };

    let folder = tempfile::tempdir().unwrap();
    let dev = Started::in_folder(folder.path());
    let file = folder.path().join(".tidegate/dev.json");
    let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for name in ["control_url", "admin_token", "browser_key"] {
        assert!(dev.said.contains(file[name].as_str().unwrap()), "{name} in {}", dev.said);
    }
    assert_eq!((&file["namespace"], &file["environment"]), (&"demo".into(), &"production".into()));

    // The port is the test's own, the rest stands there.
    let edge = file["edge_url"].as_str().unwrap();
    assert_eq!(asked.matches("http://127.0.0.1:8016").count(), 2, "{asked}");
    let asked = asked.replace("http://127.0.0.1:8016", edge);
    let [checkout, all] = answers(&typed(folder.path(), &asked).ok().out, [SINGLE, BULK]);
    assert_eq!((&checkout["key"], &checkout["variant"]), (&"checkout".into(), &"express".into()));
    assert!(all["flags"].as_array().unwrap().len() > 10, "{all}");

    // Whoever runs a release has it in the path already.
    let (alias, commanded) = commanded.split_once('\n').unwrap();
    assert!(alias.starts_with("alias tidegate="), "{alias}");
    std::fs::write(folder.path().join("my-flags.flagd.json"), DOCUMENT).unwrap();
    let done = typed(folder.path(), commanded).ok();
    for said in ["payments-up", "express", "mine"] {
        assert!(done.out.contains(said), "{said} in {done:?}");
    }
}
