//! docs/POLICIES.md as a rule author follows it: the very lines of the page, in each language, from
//! `policy new` to an answer over OFREP.
//!
//! What builds a language has to be there; `cargo xtask test` names the languages for which it is
//! in TIDEGATE_TEST_AUTHORS. The text format needs nothing and is always followed.

use std::path::Path;

use crate::ofrep_schema::{OfrepSchema, SINGLE};
use crate::world::{Dev, Done, run, tidegate};

const LANGUAGES: &str = "TIDEGATE_TEST_AUTHORS";

struct Block {
    language: String,
    text: String,
}

/// The fenced blocks of the page's section, in their order.
fn blocks() -> Vec<Block> {
    let page = include_str!("../../../docs/POLICIES.md");
    let (_, section) = page.split_once("\n## From a file to an answer\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut blocks = Vec::new();
    let mut rest = section;
    while let Some((_, fenced)) = rest.split_once("\n```") {
        let (language, fenced) = fenced.split_once('\n').unwrap();
        let (text, after) = fenced.split_once("\n```").unwrap();
        blocks.push(Block { language: language.to_owned(), text: text.to_owned() });
        rest = after;
    }
    blocks
}

/// What somebody types who writes in `language`, and the answer that the page promises.
fn page(language: &str) -> (String, String) {
    let mut script = "set -eu\n".to_owned();
    let (mut first_steps, mut promised) = (0, None);
    for block in blocks() {
        let begins = block.text.contains("tidegate policy new");
        match block.language.as_str() {
            "json" => promised = Some(block.text),
            "sh" if begins && !block.text.contains(&format!("--language {language}\n")) => {}
            "sh" => {
                first_steps += usize::from(begins);
                script.push_str(&block.text);
                script.push('\n');
            }
            other => panic!("a block of {other:?}"),
        }
    }
    assert_eq!(first_steps, 1, "one way to begin in {language}");
    // Ten seconds are enough for people, and not for every busy machine.
    assert!(script.contains(" --wait\n"), "{script}");
    (script.replace(" --wait\n", " --wait 60\n"), promised.unwrap())
}

fn followed(folder: &Path, script: &str) -> Done {
    let tools = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(script).current_dir(folder);
    shell.env("PATH", format!("{}:{path}", tools.display()));
    // What this run of cargo is told is nothing that an author's own would be.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let cargos = name.starts_with("CARGO") && name != "CARGO_HOME";
        if cargos || name.starts_with("TIDEGATE_") || name == "RUSTFLAGS" {
            shell.env_remove(&*name);
        }
    }
    run(&mut shell)
}

fn follow(language: &str) {
    if language != "wat" {
        let there = std::env::var(LANGUAGES).unwrap_or_default();
        if !there.split(',').any(|each| each == language) {
            eprintln!("skipped: {LANGUAGES} does not name {language}; see `cargo xtask test`");
            return;
        }
    }
    let (script, promised) = page(language);
    OfrepSchema::shared().check(SINGLE, "POST", 200, promised.as_bytes()).expect("OFREP");
    let follow = || {
        let folder = tempfile::tempdir().unwrap();
        let _dev = Dev::start_in(&folder.path().join(".tidegate"));
        followed(folder.path(), &script)
    };
    // On a busy machine a policy may run out of its time, and its rule's fallback is served; or the
    // process that compiles it, and the page ends there.
    let is_cut = |done: &Done| done.is_late() || done.out.contains(r#""variant":"direct""#);
    let done = (0..3).map(|_| follow()).find(|done| !is_cut(done)).expect("a call in time").ok();
    assert!(done.out.contains(&promised), "{promised} in {done:?}");
    assert!(done.out.contains("the maximum itself is not above it"), "{done:?}");
    assert!(done.out.contains("the score is above the maximum"), "the explanation: {done:?}");
}

#[test]
fn the_page_leads_from_a_new_policy_in_rust_to_its_answer() {
    follow("rust");
}

#[test]
fn the_page_leads_from_a_new_policy_in_assemblyscript_to_its_answer() {
    follow("assemblyscript");
}

#[test]
fn the_page_leads_from_a_new_policy_in_c_to_its_answer() {
    follow("c");
}

#[test]
fn the_page_leads_from_a_new_policy_in_wat_to_its_answer() {
    follow("wat");
}

#[test]
fn every_kit_builds_into_a_module_that_the_page_and_the_command_name_alike() {
    for language in ["rust", "assemblyscript", "c", "wat"] {
        let folder = tempfile::tempdir().unwrap();
        let mut new = tidegate();
        new.current_dir(folder.path()).args(["policy", "new", "fraud-guard", "-l", language]);
        let said = run(&mut new).ok().out;
        let tested =
            said.lines().find_map(|line| line.trim().strip_prefix("tidegate policy test "));
        let (module, _) = tested.unwrap().split_once(' ').unwrap();
        let (script, _) = page(language);
        assert!(script.contains(&format!("MODULE=fraud-guard/{module}\n")), "{said}");
    }
}
