//! Compiled code, kept beside the snapshots: compiling the evaluator takes most of an edge's start,
//! and a policy that is not compiled serves its fallback.
//!
//! wasmtime believes compiled code, so only what this machine wrote is read back: the file carries
//! an HMAC under a key that lies in the same folder, both readable by their owner only, and its
//! name carries the wasm's digest and the engine's settings and version. Whatever does not fit is
//! compiled anew and written over. Nothing that crossed the network is ever read here.
//!
//! There is one evaluator (`compiled.…`) and many policies (`policy.ENGINE.DIGEST`).
#![allow(unsafe_code)]

use std::fs;
use std::hash::{Hash as _, Hasher};
use std::io::{self, Write as _};
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use rules::blob;
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module};

const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const KEY_FILE: &str = "compiled.key";
/// The oldest is removed for the next. An environment pins 100 at the most, so this is enough for
/// the environments of an edge, and the worst module leaves some 2 MiB of code.
const POLICIES_MAX: usize = 512;

/// The module, from the cache if it is there and ours. A cache that fails costs time only.
pub(crate) fn module(engine: &Engine, wasm: &[u8], folder: &Path) -> wasmtime::Result<Module> {
    let name = format!("compiled.{}", identity(engine, wasm));
    let key = match key(folder) {
        Ok(key) => key,
        Err(error) => {
            tracing::warn!(%error, folder = %folder.display(), "compiled code cannot be kept");
            return Module::new(engine, wasm);
        }
    };
    if let Some(module) = read(engine, &folder.join(&name), &key, &name) {
        return Ok(module);
    }
    let module = Module::new(engine, wasm)?;
    let kept = module.serialize().and_then(|code| Ok(write(folder, &name, &key, &code)?));
    if let Err(error) = kept {
        tracing::warn!(%error, folder = %folder.display(), "compiled code cannot be kept");
    }
    Ok(module)
}

/// A policy's module, if the cache has it and it is ours.
pub(crate) fn kept_policy(engine: &Engine, digest: blob::Digest, folder: &Path) -> Option<Module> {
    let name = policy_name(engine, digest);
    let file = folder.join(&name);
    // Without a file there is no need for a key; most of the time a miss is a new policy.
    if !file.is_file() {
        return None;
    }
    let key = key(folder).ok()?;
    read(engine, &file, &key, &name)
}

/// A policy's module from code that the helper process gave just now, and kept for the next start.
/// A cache that fails costs time only.
pub(crate) fn fresh_policy(
    engine: &Engine,
    digest: blob::Digest,
    code: &[u8],
    folder: Option<&Path>,
) -> wasmtime::Result<Module> {
    // SAFETY: these bytes come from a pipe to a process that this one started from its own program
    // with wasm as its only input; nobody else writes to it. A helper that its input has taken over
    // could give any code, which is why it compiles only what `policy::check` lets through.
    let module = unsafe { Module::deserialize(engine, code) }?;
    if let Some(folder) = folder {
        let name = policy_name(engine, digest);
        let kept = key(folder).and_then(|key| {
            place(folder, &name, &key, code)?;
            drop_old_policies(folder, &engine_name(engine))
        });
        if let Err(error) = kept {
            tracing::warn!(%error, folder = %folder.display(), "compiled code cannot be kept");
        }
    }
    Ok(module)
}

fn policy_name(engine: &Engine, digest: blob::Digest) -> String {
    format!("policy.{}.{digest}", engine_name(engine))
}

fn drop_old_policies(folder: &Path, engine: &str) -> io::Result<()> {
    let ours = format!("policy.{engine}.");
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with(&ours) && !file.ends_with(".tmp") {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            kept.push((written.ok(), entry.path()));
        } else if file.starts_with("policy.") && !file.starts_with(&ours) {
            // Code of another version is never read again.
            let _ = fs::remove_file(entry.path());
        }
    }
    kept.sort();
    let too_many = kept.len().saturating_sub(POLICIES_MAX);
    for (_, path) in kept.into_iter().take(too_many) {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Of all but the wasm that decides what it compiles to.
pub(crate) fn engine_name(engine: &Engine) -> String {
    hex(hashed(engine, Sha256::new()), 8)
}

/// Of the wasm and of all that decides what it compiles to.
fn identity(engine: &Engine, wasm: &[u8]) -> String {
    hex(hashed(engine, Sha256::new_with_prefix(Sha256::digest(wasm))), 16)
}

fn hashed(engine: &Engine, start: Sha256) -> [u8; 32] {
    /// `std`'s hashers may change; this one gives SHA-256 whatever it is fed.
    struct Hashing(Sha256);
    impl Hasher for Hashing {
        fn finish(&self) -> u64 {
            0
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hashing = Hashing(start);
    engine.precompile_compatibility_hash().hash(&mut hashing);
    hashing.0.finalize().into()
}

fn hex(digest: [u8; 32], bytes: usize) -> String {
    digest.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

fn read(engine: &Engine, file: &Path, key: &[u8], name: &str) -> Option<Module> {
    let bytes = fs::read(file).ok()?;
    let (mac, code) = bytes.split_at_checked(MAC_BYTES)?;
    if keyed(key, name, code)?.verify_slice(mac).is_err() {
        tracing::warn!(file = %file.display(), "compiled code is damaged or not ours; compiling anew");
        return None;
    }
    // SAFETY: the MAC proves that this code was written by `place` below, under the same name
    // and so by the same version of wasmtime with the same settings, and was not changed since.
    let module = unsafe { Module::deserialize(engine, code) };
    module.inspect_err(|error| tracing::warn!(%error, "kept compiled code was refused")).ok()
}

fn write(folder: &Path, name: &str, key: &[u8], code: &[u8]) -> io::Result<()> {
    place(folder, name, key, code)?;
    // Code of older versions is never read again.
    for entry in fs::read_dir(folder)?.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with("compiled.") && file != name && file != KEY_FILE {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// The file is there whole or not at all.
fn place(folder: &Path, name: &str, key: &[u8], code: &[u8]) -> io::Result<()> {
    let mac = keyed(key, name, code).ok_or_else(|| io::Error::other("no MAC"))?;
    let temporary = folder.join(format!("{name}.{}.tmp", std::process::id()));
    let written = private(&temporary).and_then(|mut file| {
        file.write_all(&mac.finalize().into_bytes())?;
        file.write_all(code)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&temporary, folder.join(name)));
    if placed.is_err() {
        // The folder must not fill with halves; failing to remove one changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    placed
}

fn keyed(key: &[u8], name: &str, code: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(name.as_bytes());
    mac.update(code);
    Some(mac)
}

/// The folder's key, made if there is none.
fn key(folder: &Path) -> io::Result<Vec<u8>> {
    fs::create_dir_all(folder)?;
    let file = folder.join(KEY_FILE);
    if let Ok(key) = fs::read(&file)
        && key.len() == KEY_BYTES
    {
        return Ok(key);
    }
    let mut key = vec![0u8; KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
    // Two that start at once may each write one; whoever loses compiles once more.
    let temporary = folder.join(format!("{KEY_FILE}.{}.tmp", std::process::id()));
    let mut to = private(&temporary)?;
    to.write_all(&key)?;
    to.sync_all()?;
    fs::rename(&temporary, &file)?;
    Ok(key)
}

/// A new file that only its owner can read.
fn private(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
