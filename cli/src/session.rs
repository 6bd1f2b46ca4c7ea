//! Sessions that `tidegate login` began, one for each control, in a file of this user alone.
//!
//! A refresh token is good once, and two commands may run at once: whoever refreshes holds the file's
//! lock meanwhile, and first looks whether another one has done it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client;
use crate::failure::{Exit, Failure};
use crate::files::{make_private_folder, write_private};

/// What is good for less is refreshed before it is used.
const SPARE_S: u64 = 30;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    pub email: String,
    pub access_token: String,
    pub refresh_token: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

type Sessions = BTreeMap<String, Kept>;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `TIDEGATE_SESSIONS_FILE`, or where this user's settings are.
fn file() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = set("TIDEGATE_SESSIONS_FILE") {
        return Ok(PathBuf::from(file));
    }
    let folder = match (set("XDG_CONFIG_HOME"), set("HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(home)) => PathBuf::from(home).join(".config"),
        (None, None) => {
            return Err(Failure::usage("there is no home folder to keep a session in")
                .mend("set TIDEGATE_SESSIONS_FILE"));
        }
    };
    Ok(folder.join("tidegate").join("sessions.json"))
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}

fn load(path: &Path) -> Result<Sessions, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            failed(path, error).mend("remove the file, and sign in again: `tidegate login`")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Sessions::new()),
        Err(error) => Err(failed(path, error)),
    }
}

fn store(path: &Path, sessions: &Sessions) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(sessions).map_err(|error| failed(path, error))?;
    write_private(path, &bytes)
}

/// Held until it is dropped. Beside the file, which is replaced whole.
fn lock(path: &Path) -> Result<File, Failure> {
    if let Some(folder) = path.parent() {
        make_private_folder(folder)?;
    }
    let beside = path.with_extension("lock");
    let lock = File::create(&beside).map_err(|error| failed(&beside, error))?;
    lock.lock().map_err(|error| failed(&beside, error))?;
    Ok(lock)
}

/// Whether there is one for this control.
pub fn is_kept(url: &str) -> bool {
    file().and_then(|path| load(&path)).is_ok_and(|sessions| sessions.contains_key(url))
}

/// From the answer that began it or that it goes on with.
pub fn of_answer(answer: &Value) -> Option<Kept> {
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    Some(Kept {
        email: answer["user"]["email"].as_str()?.to_owned(),
        access_token: text("accessToken")?,
        refresh_token: text("refreshToken")?,
        expires_at: now_s() + answer["expiresIn"].as_u64()?,
    })
}

pub fn keep(url: &str, kept: Option<Kept>) -> Result<(), Failure> {
    let path = file()?;
    let _lock = lock(&path)?;
    let mut sessions = load(&path)?;
    match kept {
        Some(kept) => drop(sessions.insert(url.to_owned(), kept)),
        None => drop(sessions.remove(url)),
    }
    store(&path, &sessions)
}

/// A token that is good for a while, of the session with this control.
pub async fn access_token(url: &str) -> Result<String, Failure> {
    let path = file()?;
    let over = || {
        Failure::new(Exit::Failed, format!("the session with {url} is over"))
            .mend("sign in again: `tidegate login`")
    };
    let fresh = |sessions: &Sessions| {
        sessions.get(url).filter(|kept| kept.expires_at > now_s() + SPARE_S).cloned()
    };
    if let Some(kept) = fresh(&load(&path)?) {
        return Ok(kept.access_token);
    }
    let _lock = lock(&path)?;
    let mut sessions = load(&path)?;
    if let Some(kept) = fresh(&sessions) {
        return Ok(kept.access_token);
    }
    let Some(kept) = sessions.get(url) else { return Err(over()) };
    let answer = client::http(url)?
        .post(format!("{url}/api/v1/sessions/refresh"))
        .json(&json!({ "refreshToken": kept.refresh_token }))
        .send()
        .await
        .map_err(|error| client::unreachable(url, &error))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| client::unreachable(url, &error))?;
    if status == StatusCode::UNAUTHORIZED {
        sessions.remove(url);
        store(&path, &sessions)?;
        return Err(over());
    }
    if !status.is_success() {
        return Err(client::problem(status, &body, url));
    }
    let next = serde_json::from_slice(&body).ok().and_then(|body| of_answer(&body));
    let next = next.ok_or_else(|| failed(Path::new(url), "it answered with no session"))?;
    let token = next.access_token.clone();
    sessions.insert(url.to_owned(), next);
    store(&path, &sessions)?;
    Ok(token)
}
