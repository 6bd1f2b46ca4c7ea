//! Whether a log of the tests' processes holds a secret: one that a test made or was given, whole or its
//! telling part, or anything that is a secret by its form.
//!
//! `e2e/src/run.rs` writes what is searched and what is searched for. A search that finds nothing because
//! there was nothing to find is worth nothing, so too few logs, or too few secrets of a kind, are a
//! failure too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use anyhow::{Context as _, bail, ensure};

use crate::postgres::run::{LOGS, SECRETS, by_form};
use crate::target_dir;

/// What a whole run has at least, each once: about half of what most of the tests of the whole system had
/// when this was written.
const LOGS_MIN: usize = 100;
const SECRETS_MIN: [(&str, usize); 20] = [
    ("admin", 15),
    ("broker password", 2),
    ("browser", 25),
    ("client secret", 2),
    ("code", 5),
    ("database password", 2),
    ("edge", 25),
    ("invite", 4),
    ("password", 3),
    ("personal", 10),
    ("refresh", 5),
    ("secrets-key", 2),
    ("server", 25),
    ("service", 1),
    ("session", 5),
    ("setup", 8),
    ("sign-in cookie", 5),
    ("signing-key", 2),
    ("stream token", 10),
    ("webhook secret", 4),
];
/// Shorter ones would be found by chance.
const SECRET_BYTES_MIN: usize = 10;
/// A line of a log; what is beyond is the next one's.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// What is told of what was found.
const TOLD_MAX: usize = 20;

/// In target/, which nobody publishes.
pub fn folder() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("test-run"))
}

/// Forgets the run before.
pub fn begin() -> anyhow::Result<()> {
    let folder = folder()?;
    match folder.exists() {
        true => std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string()),
        false => Ok(()),
    }
}

/// Whether tests have said of any secret. Part of them may start no process that has one.
pub fn are_there(folder: &Path) -> bool {
    folder.join(SECRETS).exists()
}

/// Of `whole` runs, also whether there was enough to find.
pub fn search(folder: &Path, whole: bool) -> anyhow::Result<String> {
    let secrets = std::fs::read_to_string(folder.join(SECRETS))
        .with_context(|| format!("no secrets were registered in {}", folder.display()))?;
    let mut needles: BTreeMap<&str, &str> = BTreeMap::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let registered: BTreeSet<&str> = secrets.lines().collect();
    for line in registered {
        let (kind, secret) = line.split_once('\t').context("a line without a tab")?;
        *counts.entry(kind).or_default() += 1;
        for part in [Some(secret), telling_part(secret)].into_iter().flatten() {
            ensure!(part.len() >= SECRET_BYTES_MIN, "a secret of kind {kind:?} is too short");
            needles.insert(part, kind);
        }
    }
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder.join(LOGS)).context("there are no logs")? {
        logs.push(entry?.path());
    }
    logs.sort();
    let (texts, kinds): (Vec<&str>, Vec<&str>) = needles.into_iter().unzip();
    let finder = AhoCorasick::new(&texts).context("too many secrets")?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for log in &logs {
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut lines = BufReader::new(std::fs::File::open(log)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            bytes += read;
            let text = String::from_utf8_lossy(&line);
            let known = finder.find(text.as_ref());
            let known = known.and_then(|hit| kinds.get(hit.pattern().as_usize()).copied());
            let kind = known.or_else(|| by_form(&text).next().map(|(kind, _)| kind));
            if let Some(kind) = kind {
                found.push(format!("{name}, line {number}: {kind}"));
            }
        }
    }
    if !found.is_empty() {
        let more = found.len().saturating_sub(TOLD_MAX);
        found.truncate(TOLD_MAX);
        bail!(
            "secrets are in the logs below {}, with {more} lines more:\n{}",
            folder.display(),
            found.join("\n")
        );
    }
    ensure!(bytes > 0, "the logs are empty");
    if whole {
        ensure!(logs.len() >= LOGS_MIN, "{} logs are too few, at least {LOGS_MIN}", logs.len());
        for (kind, min) in SECRETS_MIN {
            let count = counts.get(kind).copied().unwrap_or(0);
            ensure!(count >= min, "{count} secrets of kind {kind:?} are too few, at least {min}");
        }
    }
    let (secrets, megabytes) = (counts.values().sum::<usize>(), bytes / 1_000_000);
    let shown: Vec<_> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    eprintln!("    {}", shown.join(", "));
    Ok(format!("none of {secrets} secrets is in {} logs ({megabytes} MB)", logs.len()))
}

/// The part that is worth as much as the whole: of a key its secret digits, of a session its signature.
fn telling_part(secret: &str) -> Option<&str> {
    if secret.starts_with("tg_") {
        return secret.split('_').nth(3);
    }
    if secret.starts_with("eyJ") {
        return secret.rsplit('.').next();
    }
    secret.strip_prefix("whsec_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "tg_server_Ab3dEf9h_0123456789012345678901234567890123456789012_a1b2c3";

    fn run(secrets: &str, logs: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(LOGS)).unwrap();
        std::fs::write(folder.path().join(SECRETS), secrets).unwrap();
        for (name, text) in logs {
            std::fs::write(folder.path().join(LOGS).join(name), text).unwrap();
        }
        folder
    }

    fn found(secrets: &str, log: &str) -> String {
        let folder = run(secrets, &[("a.log", "nothing\n"), ("b.log", log)]);
        match search(folder.path(), false) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_leak_is_told_by_process_line_and_kind_and_never_by_itself() {
        let secrets = format!("server\t{KEY}\npassword\tcorrect horse battery\n");
        assert_eq!(found(&secrets, "all is well\n"), "");
        let whole = format!("well\nwith {KEY}.\n");
        let part = format!("well\nwith {}\n", telling_part(KEY).unwrap());
        for log in [whole, part] {
            let said = found(&secrets, &log);
            assert!(said.ends_with("b.log, line 2: server"), "{said}");
            assert!(!said.contains(telling_part(KEY).unwrap()), "{said}");
        }
        assert!(found(&secrets, "x=correct horse battery\n").ends_with("line 1: password"));
        // Not registered, and a secret all the same.
        let other = KEY.replace("0123", "9999");
        assert!(found(&secrets, &format!("{other}\n")).ends_with("line 1: server"));
    }

    #[test]
    fn a_search_that_could_find_nothing_is_a_failure() {
        let secrets = format!("server\t{KEY}\n");
        let nothing = tempfile::tempdir().unwrap();
        assert!(search(nothing.path(), false).is_err());
        assert!(search(run(&secrets, &[]).path(), false).is_err(), "no logs");
        assert!(search(run(&secrets, &[("a.log", "")]).path(), false).is_err(), "empty logs");
        assert!(search(run("password\tshort\n", &[("a.log", "x")]).path(), false).is_err());
        assert!(search(run(&secrets, &[("a.log", "x")]).path(), false).is_ok());
        let error = search(run(&secrets, &[("a.log", "x")]).path(), true).unwrap_err().to_string();
        assert!(error.contains("1 logs are too few"), "{error}");
        let names: Vec<String> = (0..LOGS_MIN).map(|number| format!("{number}.log")).collect();
        let logs: Vec<_> = names.iter().map(|name| (name.as_str(), "x")).collect();
        let error = search(run(&secrets, &logs).path(), true).unwrap_err().to_string();
        assert!(error.contains("of kind \"admin\" are too few"), "{error}");
    }
}
