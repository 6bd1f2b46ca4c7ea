//! The author kits of `policies/`, as `tidegate policy new` writes them.

use std::io::Write as _;
use std::path::Path;

use clap::ValueEnum;

use crate::failure::{Exit, Failure};

/// What a policy is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// A crate with a macro; needs Rust 1.95 and its target wasm32-unknown-unknown.
    Rust,
    /// TypeScript's syntax, compiled to wasm; needs Node 20.
    Assemblyscript,
    /// C11 without a libc; needs clang 14 and lld.
    C,
    /// WebAssembly text; needs nothing, because every command here takes it as it is.
    Wat,
}

/// A file's path in its kit, and its text.
type File = (&'static str, &'static str);

macro_rules! files {
    ($kit:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../../../policies/", $kit, "/", $path)))),+]
    };
}

const RUST: &[File] = files!["rust":
    ".gitignore", "Cargo.toml", "Cargo.lock", "build.rs", "src/lib.rs", "tidegate-policy/Cargo.toml",
    "tidegate-policy/src/lib.rs"];
const ASSEMBLYSCRIPT: &[File] = files!["assemblyscript":
    ".gitignore", ".npmrc", "package.json", "package-lock.json", "build.mjs", "assembly/policy.ts",
    "assembly/tidegate.ts"];
const C: &[File] = files!["c": ".gitignore", "build.sh", "policy.c", "tidegate.h"];
const WAT: &[File] = files!["wat": "policy.wat"];
const VECTORS: File = ("vectors.json", include_str!("../../../policies/vectors.json"));

impl Language {
    fn files(self) -> &'static [File] {
        match self {
            Language::Rust => RUST,
            Language::Assemblyscript => ASSEMBLYSCRIPT,
            Language::C => C,
            Language::Wat => WAT,
        }
    }

    /// Where the policy itself is written.
    fn source(self) -> &'static str {
        match self {
            Language::Rust => "src/lib.rs",
            Language::Assemblyscript => "assembly/policy.ts",
            Language::C => "policy.c",
            Language::Wat => "policy.wat",
        }
    }

    /// What builds it in its folder, and where the module then is.
    fn build(self) -> (&'static [&'static str], &'static str) {
        match self {
            Language::Rust => (
                &["cargo build --release --target wasm32-unknown-unknown"],
                "target/wasm32-unknown-unknown/release/policy.wasm",
            ),
            Language::Assemblyscript => (&["npm ci", "npm run build"], "build/policy.wasm"),
            Language::C => (&["sh build.sh"], "build/policy.wasm"),
            Language::Wat => (&[], "policy.wat"),
        }
    }
}

/// Writes a kit; gives what to do next, a line each.
pub fn write(folder: &Path, language: Language) -> Result<Vec<String>, Failure> {
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
    };
    let files = || language.files().iter().chain([&VECTORS]);
    // Looked at before anything is written, so that no half of a kit is left beside another's work.
    if let Some((path, _)) = files().find(|(path, _)| folder.join(path).exists()) {
        let what = format!("{} is there already", folder.join(path).display());
        return Err(Failure::new(Exit::Conflict, what).mend("name a folder that is not there yet"));
    }
    for (path, text) in files() {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        let mut file = opened.map_err(|error| failed(&path, error))?;
        file.write_all(text.as_bytes()).map_err(|error| failed(&path, error))?;
    }
    Ok(next(folder, language))
}

fn next(folder: &Path, language: Language) -> Vec<String> {
    let (build, module) = language.build();
    let mut lines = vec![format!("cd {}", folder.display())];
    lines.extend(build.iter().map(|&line| line.to_owned()));
    lines.push(format!("tidegate policy test {module} --vectors vectors.json"));
    let made = format!("{} is a policy that works; write yours in", folder.display());
    lines.insert(0, format!("{made} {}, then", language.source()));
    lines
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn sources(folder: &Path, under: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder.join(under)).unwrap() {
            let entry = entry.unwrap();
            let path = PathBuf::from(under).join(entry.file_name());
            let path = path.to_str().unwrap();
            match entry.file_type().unwrap().is_dir() {
                true if ["node_modules", "build", "target"].contains(&path) => {}
                true => sources(folder, path, found),
                false => found.push(path.to_owned()),
            }
        }
    }

    #[test]
    fn a_kit_is_written_whole() {
        for (language, name) in [
            (Language::Rust, "rust"),
            (Language::Assemblyscript, "assemblyscript"),
            (Language::C, "c"),
            (Language::Wat, "wat"),
        ] {
            let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
            let mut there = Vec::new();
            sources(&kit, "", &mut there);
            let mut written: Vec<&str> = language.files().iter().map(|(path, _)| *path).collect();
            there.sort();
            written.sort();
            assert_eq!(written, there, "{name}");
            assert!(written.contains(&language.source()), "{name}");
        }
    }
}
