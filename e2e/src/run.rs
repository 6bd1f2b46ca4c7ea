//! What a whole test run leaves for the search that ends it (`cargo xtask test`): the log of every
//! process that tests start, and every secret that they make or are given.
//!
//! Nothing is left unless xtask names a folder. Tests need not think of it: what they ask, what they are
//! answered and what they start goes through the helpers of this crate, and those come here. Only the
//! standard library, since xtask includes this file by its path.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// The variable by which xtask names the run's folder.
pub const TEST_RUN: &str = "TIDEGATE_TEST_RUN";
/// In the run's folder: a file for each process.
pub const LOGS: &str = "logs";
/// In the run's folder: a line for each secret, its kind, a tab and itself. Mode 0600.
pub const SECRETS: &str = "secrets";

const KINDS_OF_KEYS: [&str; 9] =
    ["server", "browser", "edge", "admin", "personal", "service", "refresh", "setup", "invite"];
/// Of the secret part of a key (`rules::keys`).
const KEY_DIGITS: usize = 43;
/// A session is three parts in base64, and longer.
const SESSION_MIN: usize = 100;

/// The variable by which xtask names a folder for the compiled evaluator, which is one for all tests:
/// with every test in a process of its own each would compile it, for seconds. `tidegate edge` reads it too.
pub const COMPILED_DIR: &str = "TIDEGATE_COMPILED_DIR";

/// Where an edge of a test keeps the compiled evaluator.
pub fn compiled_dir() -> Option<PathBuf> {
    std::env::var_os(COMPILED_DIR).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

pub fn folder() -> Option<PathBuf> {
    std::env::var_os(TEST_RUN).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// A file for the log of a process, which nobody else has.
pub fn log_of(what: &str) -> Option<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let logs = folder()?.join(LOGS);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&logs).expect("a folder of logs");
    let test = std::env::current_exe().ok()?;
    let test = test.file_stem()?.to_string_lossy().into_owned();
    let test = test.rsplit_once('-').map_or(test.as_str(), |(name, _)| name);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Some(logs.join(format!("{test}-{process}-{count}-{what}.log")))
}

/// Keeps a log that a server has written, which is about to be removed with its folder.
pub fn keep_log(what: &str, log: &Path) {
    if log.is_file()
        && let Some(kept) = log_of(what)
    {
        let _ = fs::copy(log, kept);
    }
}

/// Registers a secret that nothing in its form shows to be one.
pub fn secret(kind: &str, text: &str) {
    static KNOWN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Some(folder) = folder() else { return };
    let line = format!("{kind}\t{}\n", text.trim());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if text.trim().is_empty() || !known.get_or_insert_default().insert(line.clone()) {
        return;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).expect("the run's folder");
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(SECRETS));
    // One write, so that lines of processes do not mix.
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the run's secrets");
}

/// Registers what a process is given through its environment.
pub fn settings(settings: &[(&str, &str)]) {
    for (name, value) in settings {
        match *name {
            // postgres://user:password@host/database
            name if name.ends_with("DATABASE_URL") => {
                let authority = value.split("://").nth(1).and_then(|rest| rest.split('@').next());
                if let Some((_, password)) = authority.and_then(|user| user.split_once(':')) {
                    secret("database password", password);
                }
            }
            name if name.contains("NATS") && name.ends_with("PASSWORD") => {
                secret("broker password", value);
            }
            name if name.ends_with("PASSWORD") => secret("password", value),
            _ => secrets_in(value),
        }
    }
}

/// Registers what is a secret by its form, wherever it stands in a text.
pub fn secrets_in(text: &str) {
    if folder().is_none() {
        return;
    }
    for (kind, found) in by_form(text) {
        secret(kind, found);
    }
}

/// Keys, sessions and webhook secrets in a text, and the tokens of streams in its URLs.
pub fn by_form(text: &str) -> impl Iterator<Item = (&'static str, &str)> {
    let is_of_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+/".contains(&byte);
    let streams = text.split("/events?token=").skip(1).map(move |rest| {
        let end = rest.bytes().position(|byte| !is_of_word(byte)).unwrap_or(rest.len());
        ("stream token", rest.get(..end).unwrap_or_default())
    });
    let words = text.split(move |letter: char| !u8::try_from(letter).is_ok_and(is_of_word));
    let words = words.filter_map(|word| {
        let word = word.trim_matches(['.', '/', '-']);
        Some((kind_of(word)?, word))
    });
    words.chain(streams.filter(|(_, token)| token.len() > 8))
}

fn kind_of(word: &str) -> Option<&'static str> {
    if word.starts_with("whsec_") && word.len() > 20 {
        return Some("webhook secret");
    }
    if word.starts_with("eyJ") && word.len() >= SESSION_MIN && word.matches('.').count() == 2 {
        return Some("session");
    }
    let mut parts = word.strip_prefix("tg_")?.split('_');
    let kind = parts.next()?;
    let kind = KINDS_OF_KEYS.into_iter().find(|known| *known == kind)?;
    (parts.nth(1)?.len() == KEY_DIGITS).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_by_their_form_wherever_they_stand() {
        let key = format!("tg_server_Ab3dEf9h_{}_a1b2c3", "x".repeat(KEY_DIGITS));
        let session = format!("eyJh.{}.sig-_nature", "y".repeat(SESSION_MIN));
        let text = format!(
            r#"{{"key":"{key}", "secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw==","uri":"/x/events?token=abcdefghij&a=b"}}
            Bearer {session}. And tg_server_00000000_x_y, tg_server_Ab3dEf9h_***, eyJ.x.y, whsec_ and a/b.c."#
        );
        let found: Vec<_> = by_form(&text).collect();
        assert_eq!(
            found,
            [
                ("server", key.as_str()),
                ("webhook secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
                ("session", session.as_str()),
                ("stream token", "abcdefghij"),
            ]
        );
    }
}
