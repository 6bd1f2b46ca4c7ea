//! Embeds the evaluator if it has been built (`cargo xtask wasm`). Never builds it: a build script
//! that calls cargo is slow, surprising, and cannot say what went wrong.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(evaluator_embedded)");
    let Some(manifest_dir) = env::var_os("CARGO_MANIFEST_DIR") else { return };
    let evaluator = PathBuf::from(manifest_dir).join("../target/wasm/evaluator.wasm");
    println!("cargo::rerun-if-changed={}", evaluator.display());
    if evaluator.is_file() {
        println!("cargo::rustc-cfg=evaluator_embedded");
        println!("cargo::rustc-env=TIDEGATE_EVALUATOR_WASM={}", evaluator.display());
    }
}
