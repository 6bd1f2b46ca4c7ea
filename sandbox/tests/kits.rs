//! The author kits under `policies/`: one policy in each language, built by
//! `cargo xtask test --only policies` and admitted with the same test vectors.

mod in_time;

use std::path::{Path, PathBuf};

use rules::blob::Digest;
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{Fault, LoadError, Policies, PolicyConfig, Vector, Verdict};

fn helper() -> Helper {
    Helper { program: env!("CARGO_BIN_EXE_tidegate-sandbox-helper").into(), arguments: Vec::new() }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn vectors() -> Vec<Vector> {
    let text = std::fs::read(root().join("policies/vectors.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn admitted(name: &str, wasm: &[u8]) -> Verdict {
    let verdict = in_time::admit(&helper(), wasm, &vectors()).unwrap();
    assert!(verdict.admitted, "{name}: {verdict:#?}");
    assert_eq!(verdict.attributes, ["user.score"], "{name}");
    let fuel: Vec<u64> = verdict.vectors.iter().map(|result| result.fuel).collect();
    println!(
        "{name}: {} bytes, compiled in {} ms, fuel {}..{}",
        wasm.len(),
        verdict.compile_ms,
        fuel.iter().min().unwrap(),
        fuel.iter().max().unwrap()
    );
    verdict
}

/// The built module; nothing where nobody built it and nobody asked for it.
fn built(name: &str) -> Option<Vec<u8>> {
    let file = root().join(format!("target/policies/{name}.wasm"));
    match std::fs::read(&file) {
        Ok(wasm) => Some(wasm),
        Err(_) if std::env::var_os("TIDEGATE_TEST_KITS").is_none() => {
            eprintln!(
                "skipped: {} is not there; run `cargo xtask test --only policies`",
                file.display()
            );
            None
        }
        Err(error) => panic!("{}: {error}", file.display()),
    }
}

fn text() -> Vec<u8> {
    wat::parse_file(root().join("policies/wat/policy.wat")).unwrap()
}

#[test]
fn the_policy_in_the_text_format_is_admitted() {
    admitted("wat", &text());
}

#[test]
fn the_policy_in_rust_is_admitted() {
    built("rust").map(|wasm| admitted("rust", &wasm));
}

#[test]
fn the_policy_in_assemblyscript_is_admitted() {
    built("assemblyscript").map(|wasm| admitted("assemblyscript", &wasm));
}

#[test]
fn the_policy_in_c_is_admitted() {
    built("c").map(|wasm| admitted("c", &wasm));
}

/// Texts that end in the middle, empty ones, and noise: no kit may be led out of its budget.
#[test]
fn whatever_a_kit_is_given_it_answers_or_faults() {
    let policies = Policies::new(PolicyConfig { helper: helper(), cache_dir: None }).unwrap();
    let whole =
        br#"{"flag":"a","attributes":{"user":{"score":7}},"params":{"max":1,"variant":"\"x"}}"#;
    let mut kits = vec![("wat", text())];
    for name in ["rust", "assemblyscript", "c"] {
        kits.extend(built(name).map(|wasm| (name, wasm)));
    }
    for (name, wasm) in kits {
        let load = || policies.load(Digest::of(&wasm), &wasm);
        let is_late =
            |loaded: &Result<_, _>| matches!(loaded, Err(LoadError::Compile(HelperError::Time)));
        let policy = in_time::in_time(load, is_late).unwrap();
        // A call's time is the wall's: one that was not scheduled for a while is made again.
        let in_time = (0..100)
            .map(|_| policy.call(whole).outcome)
            .find(|outcome| !matches!(outcome, Err(Fault::Deadline)));
        assert!(matches!(in_time, Some(Ok(_))), "{name}: {in_time:?}");
        for end in 0..whole.len() {
            // Any outcome will do; what counts is that there is one.
            let _ = policy.call(&whole[..end]);
        }
        for byte in 0..=255u8 {
            let _ = policy.call(&[byte; 300]);
        }
    }
}
