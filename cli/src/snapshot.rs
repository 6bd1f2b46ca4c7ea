//! `tidegate snapshot …`: what is in a snapshot, and whether an edge would take it. From the files
//! of an edge's data folder, or as control publishes it. What is secret in it is counted, not shown.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Subcommand;
use edge::disk::{self, Role, Stored};
use edge::feed::{Feed as _, HttpFeed};
use rules::blob::{self, Digest, FORMAT, ListRef, Manifest, lists::IdList};
use rules::eval::Evaluator;
use rules::head::{BlobRef, Head, PublicKey, SignedHead, Version};
use rules::keys::{ApiKey, KeyKind};
use rules::limits::SNAPSHOT_BYTES_MAX;
use rules::ruleset::{Flag, Ruleset, Text};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::connection::secret_from_file;
use crate::failure::{Exit, Failure};
use crate::paint::{Output, Paint, grouped, print, print_json, table};

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Shows what is in snapshots: their heads, whose signature they have, what they hold.
    #[command(after_help = "Examples:
  tidegate snapshot inspect /var/lib/tidegate-edge
  tidegate snapshot inspect /var/lib/tidegate-edge/snapshot.shop.production.1.7 --flags
  TIDEGATE_EDGE_KEY=tg_edge_… tidegate snapshot inspect --control-url https://control.example.com

Secrets in a snapshot (hashes of keys, the secret of event streams) are counted and not shown.")]
    Inspect(Of),
    /// Checks snapshots as an edge does before it serves them: exit code 0 if it would take all of
    /// them, 4 if there is one that it would not.
    #[command(after_help = "Examples:
  tidegate snapshot verify /var/lib/tidegate-edge --trust ed25519:…
  tidegate snapshot verify --control-url https://control.example.com --trust ed25519:… --output json")]
    Verify(Of),
}

#[derive(Debug, Clone, clap::Args)]
pub struct Of {
    /// Snapshot files of an edge's data folder, or such a folder: then all that are in it.
    #[arg(
        value_name = "PATH",
        required_unless_present = "control_url",
        conflicts_with = "control_url"
    )]
    paths: Vec<PathBuf>,
    /// Address of control, to see what it publishes; needs an edge key.
    #[arg(long, env = "TIDEGATE_CONTROL_URL", value_name = "URL")]
    control_url: Option<String>,
    /// File that holds the edge key; the key itself can be in TIDEGATE_EDGE_KEY.
    #[arg(long, env = "TIDEGATE_EDGE_KEY_FILE", value_name = "FILE")]
    edge_key_file: Option<PathBuf>,
    /// Only this environment, as namespace/environment.
    #[arg(long, value_name = "NAMESPACE/ENVIRONMENT")]
    only: Option<String>,
    /// Public key that snapshots must be signed with (ed25519:…); several with commas.
    #[arg(long, env = "TIDEGATE_TRUST", value_name = "KEY", value_delimiter = ',')]
    trust: Vec<PublicKey>,
    /// Lists the flags too.
    #[arg(long)]
    flags: bool,
}

/// Heads and blobs of control are asked for with this much patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// A snapshot to be looked at.
struct Found {
    /// File or address.
    place: String,
    head: SignedHead,
    role: Role,
    blob: Bytes,
    lists: Vec<List>,
}

/// An id list that the snapshot names, as far as it could be had.
struct List {
    of: ListRef,
    bytes: Result<Bytes, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signature {
    Holds,
    Unchecked,
    Bad,
}

/// What came out of it.
struct Report {
    place: String,
    head: Option<Head>,
    role: Role,
    key_id: String,
    signature: Signature,
    blob_bytes: usize,
    digest: Option<Digest>,
    manifest: Option<Manifest>,
    rules: Option<Ruleset>,
    /// Why an edge would not take it.
    problems: Vec<String>,
}

pub async fn run(command: Snapshot, output: Output) -> Result<(), Failure> {
    let (of, verifying) = match command {
        Snapshot::Inspect(of) => (of, false),
        Snapshot::Verify(of) => (of, true),
    };
    if verifying && of.trust.is_empty() {
        return Err(Failure::usage("a signature holds or not by a key that is trusted")
            .mend("give the public key that control prints at its start: --trust ed25519:…"));
    }
    let mut reports = match &of.control_url {
        Some(url) if of.paths.is_empty() => from_control(url, &of).await?,
        _ => from_files(&of)?,
    };
    if let Some(only) = &of.only {
        reports.retain(|report| report.name().as_ref() == Some(only));
    }
    if reports.is_empty() {
        return Err(Failure::new(Exit::NotFound, "there is no snapshot"));
    }
    match output {
        Output::Json => {
            let shown: Vec<Value> = reports.iter().map(|report| report.json(of.flags)).collect();
            print_json(&Value::Array(shown));
        }
        Output::Text if verifying => {
            let paint = Paint::of_stdout();
            let lines: Vec<String> = reports.iter().map(|report| report.line(paint)).collect();
            print(&lines.join("\n"));
        }
        Output::Text => {
            let paint = Paint::of_stdout();
            let shown: Vec<String> =
                reports.iter().map(|report| report.text(paint, of.flags)).collect();
            print(&shown.join("\n"));
        }
    }
    let bad = reports.iter().filter(|report| !report.problems.is_empty()).count();
    if verifying && bad > 0 {
        let what = format!("{bad} of {} snapshot(s) would not be served by an edge", reports.len());
        return Err(Failure::new(Exit::Refused, what));
    }
    Ok(())
}

fn from_files(of: &Of) -> Result<Vec<Report>, Failure> {
    let unreadable = |path: &Path, error: &std::io::Error| {
        Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
    };
    let mut files = Vec::new();
    for path in &of.paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
        let named = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("snapshot.") && !name.ends_with(".bad")
        };
        let found = entries.flatten().filter(named).map(|entry| entry.path());
        let before = files.len();
        files.extend(found);
        files[before..].sort();
    }
    let mut reports = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        let place = path.display().to_string();
        reports.push(match disk::decode(Bytes::from(bytes)) {
            Ok(Stored { head, role, blob }) => {
                let folder = path.parent().unwrap_or(Path::new("."));
                let lists = lists_of(&blob, |list| {
                    let name = format!("list.{}", list.digest);
                    std::fs::read(folder.join(&name))
                        .map(Bytes::from)
                        .map_err(|error| format!("{name}: {error}"))
                });
                examine(Found { place, head, role, blob, lists }, &of.trust)
            }
            Err(why) => Report::unreadable(place, why),
        });
    }
    Ok(reports)
}

fn lists_of(blob: &Bytes, mut read: impl FnMut(&ListRef) -> Result<Bytes, String>) -> Vec<List> {
    let named = blob::decode_blob(blob).map(|(manifest, _)| manifest.lists).unwrap_or_default();
    named.into_iter().map(|of| List { bytes: read(&of), of }).collect()
}

async fn from_control(url: &str, of: &Of) -> Result<Vec<Report>, Failure> {
    let key = match (&of.edge_key_file, std::env::var("TIDEGATE_EDGE_KEY").ok()) {
        (Some(path), _) => secret_from_file(path)?,
        (None, Some(key)) if !key.trim().is_empty() => key.trim().to_owned(),
        _ => {
            return Err(Failure::usage("no edge key")
                .mend("set TIDEGATE_EDGE_KEY or --edge-key-file; control makes one: POST /api/v1/edge-keys"));
        }
    };
    let key =
        ApiKey::parse(&key).map_err(|error| Failure::usage(format!("the edge key is {error}")))?;
    let feed = HttpFeed::new(url, key).map_err(|error| Failure::usage(error.to_string()))?;
    let failed = |error: edge::feed::FeedError| {
        let error = format!("{:#}", anyhow::Error::from(error));
        Failure::new(Exit::Unreachable, format!("{url} does not give its heads: {error}"))
    };
    let asked = tokio::time::timeout(PATIENCE, feed.heads(None)).await;
    let asked = asked.map_err(|_| Failure::new(Exit::Unreachable, format!("{url} is too slow")))?;
    let heads = asked.map_err(failed)?.map(|(heads, _)| heads.heads).unwrap_or_default();
    let mut reports = Vec::new();
    for signed in heads {
        let claims = signed.claims();
        let place = url.to_owned();
        let Some(claims) = claims else {
            reports.push(Report::unreadable(place, "the head is none"));
            continue;
        };
        let previous = claims.previous.as_ref().map(|of| (Role::Previous, of.snapshot.clone()));
        let newest = Some((Role::Newest, claims.snapshot.clone()));
        for (role, named) in [newest, previous].into_iter().flatten() {
            let fetched = fetch(&feed, &claims.namespace, named.digest, named.bytes).await;
            let (place, head) = (place.clone(), signed.clone());
            let blob = match fetched {
                Ok(blob) => blob,
                Err(why) => {
                    reports.push(Report::unreadable(place, &format!("no blob: {why}")));
                    continue;
                }
            };
            let mut lists = Vec::new();
            let manifest = blob::decode_blob(&blob).map(|(manifest, _)| manifest);
            for list in manifest.map(|manifest| manifest.lists).unwrap_or_default() {
                let bytes = fetch(&feed, &claims.namespace, list.digest, list.bytes).await;
                lists.push(List { of: list, bytes });
            }
            reports.push(examine(Found { place, head, role, blob, lists }, &of.trust));
        }
    }
    Ok(reports)
}

async fn fetch(
    feed: &HttpFeed,
    namespace: &str,
    digest: Digest,
    bytes: u64,
) -> Result<Bytes, String> {
    match tokio::time::timeout(PATIENCE, feed.blob(namespace, digest, bytes)).await {
        Ok(fetched) => fetched.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        Err(_) => Err("it took too long".to_owned()),
    }
}

/// The checks of an edge, in its order; all of them, though an edge stops at the first.
fn examine(found: Found, trust: &[PublicKey]) -> Report {
    let mut problems = Vec::new();
    let verified = found.head.verify(trust);
    let (head, signature) = match (verified, trust.is_empty()) {
        (Ok(head), _) => (Some(head), Signature::Holds),
        (Err(_), true) => (found.head.claims(), Signature::Unchecked),
        (Err(error), false) => {
            problems.push(error.to_string());
            (found.head.claims(), Signature::Bad)
        }
    };
    let named = head.as_ref().and_then(|head| snapshot_of(head, found.role));
    match (&head, &named) {
        (None, _) if signature == Signature::Unchecked => {
            problems.push("the head cannot be read".to_owned());
        }
        (Some(_), None) => problems.push("the head names no previous snapshot".to_owned()),
        _ => {}
    }
    if let Some(head) = &head
        && found.role == Role::Newest
        && head.min_reader > FORMAT
    {
        let needs = head.min_reader;
        problems.push(format!("the head needs reader {needs}, this is reader {FORMAT}"));
    }
    let digest = Digest::of(&found.blob);
    if let Some(named) = &named {
        let have = found.blob.len() as u64;
        if named.bytes > SNAPSHOT_BYTES_MAX as u64 {
            problems.push(format!("{} bytes are over the limit", grouped(named.bytes)));
        }
        if have != named.bytes {
            let (have, named) = (grouped(have), grouped(named.bytes));
            problems.push(format!("the snapshot has {have} bytes, its head says {named}"));
        } else if digest != named.digest {
            problems.push("the snapshot's bytes are not those that its head names".to_owned());
        }
    }
    let (mut manifest, mut rules) = (None, None);
    match blob::decode_blob(&found.blob) {
        Err(error) => problems.push(error.to_string()),
        Ok((of, ruleset)) => {
            if let Some(head) = &head
                && (&of.namespace, &of.environment) != (&head.namespace, &head.environment)
            {
                let (namespace, environment) = (&of.namespace, &of.environment);
                problems.push(format!("the snapshot is of {namespace}/{environment}"));
            }
            match (blob::decode_ruleset(ruleset), Evaluator::load(ruleset)) {
                (Ok(decoded), Ok(_)) => rules = Some(decoded),
                (Err(error), _) | (_, Err(error)) => problems.push(error.to_string()),
            }
            manifest = Some(of);
        }
    }
    for List { of, bytes } in &found.lists {
        match bytes {
            Err(why) => problems.push(format!("an id list cannot be had: {why}")),
            Ok(bytes) if bytes.len() as u64 != of.bytes || Digest::of(bytes) != of.digest => {
                problems.push(format!("the bytes of id list {} are others", of.digest));
            }
            Ok(bytes) => {
                if let Err(error) = IdList::decode(bytes) {
                    problems.push(error.to_string());
                }
            }
        }
    }
    Report {
        place: found.place,
        role: found.role,
        key_id: found.head.key_id,
        signature,
        blob_bytes: found.blob.len(),
        digest: Some(digest),
        head,
        manifest,
        rules,
        problems,
    }
}

fn snapshot_of(head: &Head, role: Role) -> Option<BlobRef> {
    match role {
        Role::Newest => Some(head.snapshot.clone()),
        Role::Previous => head.previous.as_ref().map(|previous| previous.snapshot.clone()),
    }
}

fn name_of(head: &Head) -> String {
    format!("{}/{}", head.namespace, head.environment)
}

fn number(Version { generation, revision }: Version) -> String {
    format!("{generation}.{revision}")
}

fn rfc3339(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `5 s`, `3 min`, `2 h`, `9 days`.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl Report {
    fn unreadable(place: String, why: &str) -> Report {
        Report {
            place,
            head: None,
            role: Role::Newest,
            key_id: String::new(),
            signature: Signature::Bad,
            blob_bytes: 0,
            digest: None,
            manifest: None,
            rules: None,
            problems: vec![why.to_owned()],
        }
    }

    fn name(&self) -> Option<String> {
        self.head.as_ref().map(name_of)
    }

    fn version(&self) -> Option<Version> {
        let head = self.head.as_ref()?;
        match self.role {
            Role::Newest => Some(head.version),
            Role::Previous => head.previous.as_ref().map(|previous| previous.version),
        }
    }

    fn title(&self) -> String {
        match (self.name(), self.version()) {
            (Some(name), Some(version)) => format!("{name} {}", number(version)),
            (Some(name), None) => name,
            (None, _) => "no snapshot".to_owned(),
        }
    }

    fn line(&self, paint: Paint) -> String {
        let mark = paint.mark(self.problems.is_empty());
        let mut line = format!("{mark} {}  {}", self.title(), paint.dim(&self.place));
        for problem in &self.problems {
            line.push_str(&format!("\n    {}", paint.bad(problem)));
        }
        line
    }

    fn keys(&self) -> (usize, usize) {
        let keys = self.manifest.as_ref().map(|manifest| manifest.keys.as_slice());
        let of = |kind| keys.unwrap_or_default().iter().filter(|key| key.kind == kind).count();
        (of(KeyKind::Server), of(KeyKind::Browser))
    }

    fn text(&self, paint: Paint, with_flags: bool) -> String {
        let mut lines = vec![format!("{}  {}", paint.bold(&self.title()), paint.dim(&self.place))];
        let mut row = |name: &str, text: String| lines.push(format!("  {name:<11}{text}"));
        if let Some(head) = &self.head {
            let signature = match self.signature {
                Signature::Holds => paint.good("holds"),
                Signature::Unchecked => paint.warn("not checked; --trust says by which key"),
                Signature::Bad => paint.bad("is not to be trusted"),
            };
            row("signature", format!("{signature}  (key {})", self.key_id));
            let issued = (rfc3339(head.issued_at_ms), age(now_ms() - head.issued_at_ms));
            row("issued", format!("{}, {} ago, by leader {}", issued.0, issued.1, head.epoch));
            let stage = match &head.previous {
                None => "all edges".to_owned(),
                Some(previous) => format!(
                    "{} % of the edges serve {}, the others {}",
                    f64::from(previous.stage) / 100.0,
                    number(head.version),
                    number(previous.version)
                ),
            };
            row("stage", stage);
            row("needs", format!("reader {} (this is {FORMAT})", head.min_reader));
        }
        if let Some(digest) = self.digest {
            row("snapshot", format!("{digest}, {} bytes", grouped(self.blob_bytes as u64)));
        }
        if let Some(manifest) = &self.manifest {
            let (server, browser) = self.keys();
            let ids: u64 = manifest.lists.iter().map(|list| u64::from(list.ids)).sum();
            let lists = match manifest.lists.len() {
                0 => "no id lists".to_owned(),
                count => format!("{count} id list(s) with {} ids", grouped(ids)),
            };
            row(
                "holds",
                format!(
                    "{} flag{}, {server} server and {browser} browser key(s), {lists}",
                    grouped(u64::from(manifest.flag_count)),
                    if manifest.flag_count == 1 { "" } else { "s" }
                ),
            );
            let boundaries = match manifest.boundaries_ms.iter().find(|at| **at > now_ms()) {
                Some(next) => {
                    let count = manifest.boundaries_ms.len();
                    format!("{count} time(s) without a new snapshot, next {}", rfc3339(*next))
                }
                None => "not by time alone".to_owned(),
            };
            row("changes", boundaries);
        }
        for problem in &self.problems {
            row(&paint.bad("problem"), problem.clone());
        }
        let mut text = lines.join("\n");
        text.push('\n');
        if let (Some(rules), true) = (&self.rules, with_flags) {
            let rows: Vec<Vec<String>> = rules
                .flags
                .iter()
                .map(|flag| {
                    let state = match (&flag.broken, flag.enabled) {
                        (Some(_), _) => "quarantined",
                        (None, true) => "on",
                        (None, false) => "off",
                    };
                    let rules_of = flag.rules.len.to_string();
                    let kind = json!(flag.kind).as_str().unwrap_or_default().to_owned();
                    vec![piece(rules, flag.key).to_owned(), kind, state.to_owned(), rules_of]
                })
                .collect();
            text.push_str(&table(paint, &["KEY", "TYPE", "STATE", "RULES"], &rows));
        }
        text
    }

    fn json(&self, with_flags: bool) -> Value {
        let (server, browser) = self.keys();
        let signature = match self.signature {
            Signature::Holds => "holds",
            Signature::Unchecked => "unchecked",
            Signature::Bad => "bad",
        };
        let version = |version: Version| json!({ "generation": version.generation, "revision": version.revision });
        let mut shown = json!({
            "place": self.place,
            "valid": self.problems.is_empty() && self.signature == Signature::Holds,
            "problems": self.problems,
            "signature": { "state": signature, "key": self.key_id },
            "head": self.head.as_ref().map(|head| json!({
                "namespace": head.namespace, "environment": head.environment,
                "version": version(head.version),
                "previous": head.previous.as_ref().map(|previous| version(previous.version)),
                "stagePercent": f64::from(head.stage()) / 100.0,
                "issuedAt": rfc3339(head.issued_at_ms), "epoch": head.epoch,
                "minReader": head.min_reader })),
            "role": match self.role { Role::Newest => "newest", Role::Previous => "previous" },
            "version": self.version().map(version),
            "digest": self.digest.map(|digest| digest.to_string()),
            "bytes": self.blob_bytes,
            "manifest": self.manifest.as_ref().map(|manifest| json!({
                "flags": manifest.flag_count,
                "serverKeys": server, "browserKeys": browser,
                "lists": manifest.lists.iter().map(|list| json!({ "digest": list.digest.to_string(),
                    "bytes": list.bytes, "ids": list.ids })).collect::<Vec<_>>(),
                "boundaries": manifest.boundaries_ms.iter().map(|at| rfc3339(*at)).collect::<Vec<_>>() })),
        });
        if let (Some(rules), true, Value::Object(fields)) = (&self.rules, with_flags, &mut shown) {
            let flag = |flag: &Flag| {
                json!({ "key": piece(rules, flag.key), "type": flag.kind, "enabled": flag.enabled,
                    "rules": flag.rules.len, "quarantined": flag.broken.map(|why| piece(rules, why)) })
            };
            fields.insert("flags".to_owned(), rules.flags.iter().map(flag).collect());
        }
        shown
    }
}

fn piece(rules: &Ruleset, Text { start, len }: Text) -> &str {
    rules
        .text
        .get(start as usize..(start as usize).saturating_add(len as usize))
        .unwrap_or_default()
}
