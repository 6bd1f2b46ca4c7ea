//! `tidegate audit`: shows who changed what, writes the whole record to a file, and checks a record,
//! from control or from such a file, without believing either.

use std::path::{Path, PathBuf};

use control::anchors::{self, AnchorError, SignedAnchor};
use control::audit::{Broken, Walk, Walked};
use control::http::record::{AuditExport, ExportedRow};
use rules::head::PublicKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::Client;
use crate::connection::{Connection, api_path, percent_encoded};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::paint::{Output, Paint, print, print_json, table};

#[derive(Debug, clap::Subcommand)]
pub enum Audit {
    /// Shows who changed what, newest first.
    List(List),
    /// Writes the whole record and what was signed of it, one JSON object a line.
    Export(Export),
    /// Checks that no row was changed, taken out, added or cut off, and that the record is what was
    /// signed.
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct Chain {
    /// Namespace.
    #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
    namespace: Option<String>,
    /// The installation's own record instead: accounts, operators, namespaces, keys of edges.
    #[arg(long)]
    instance: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate audit list --object checkout
  tidegate audit list --action 'flag.*' --from 2026-11-01T00:00:00Z")]
pub struct List {
    /// Who: their name, or their id.
    #[arg(long)]
    actor: Option<String>,
    /// What was done: flag.create; flag.* for all that begins so.
    #[arg(long)]
    action: Option<String>,
    /// On what: the key or the id of a flag, a segment, a key.
    #[arg(long)]
    object: Option<String>,
    /// From this time on (RFC 3339).
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How many at most.
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    #[command(flatten)]
    chain: Chain,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate audit export --file audit.jsonl
  tidegate audit export --instance > instance.jsonl")]
pub struct Export {
    /// Where to; standard output unless given.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    chain: Chain,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate audit verify
  tidegate audit verify --file audit.jsonl --anchors audit-anchors.jsonl --public-key ed25519:…

Anchors from elsewhere (control's file audit-anchors.jsonl, the broker, webhooks) and a public key that
was noted elsewhere show also what somebody did who could write to control's database.
Exit code 4: the record is not what was written.")]
pub struct Verify {
    /// An export; control is not asked. - is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// More anchors, one JSON object a line, as control keeps them in DIR/audit-anchors.jsonl.
    #[arg(long, value_name = "FILE")]
    anchors: Vec<PathBuf>,
    /// What anchors are signed with, ed25519:…; also one of before. Unless given, the one that control
    /// or the export names.
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
    #[command(flatten)]
    chain: Chain,
}

/// The lines of an export. A contract: exports are kept for years.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Chain(ChainLine),
    Row(Box<ExportedRow>),
    Anchor(SignedAnchor),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChainLine {
    chain: String,
    name: String,
    sequence: i64,
    hash: String,
    public_key: String,
}

pub async fn run(command: Audit, output: Output) -> Result<(), Failure> {
    match command {
        Audit::List(command) => list(command, output).await,
        Audit::Export(command) => export(command).await,
        Audit::Verify(command) => verify(command, output).await,
    }
}

impl Chain {
    fn namespace(&self) -> Result<Option<String>, Failure> {
        if self.instance {
            return Ok(None);
        }
        let dev = self.connection.dev_file()?.map(|dev| dev.namespace);
        self.namespace.clone().or(dev).map(Some).ok_or_else(|| {
            Failure::usage("which namespace?")
                .mend("give --namespace or TIDEGATE_NAMESPACE, or --instance")
        })
    }

    fn path(&self, rest: &[&str]) -> Result<String, Failure> {
        let namespace = self.namespace()?;
        let mut segments = match &namespace {
            Some(namespace) => vec!["namespaces", namespace, "audit"],
            None => vec!["audit"],
        };
        segments.extend(rest);
        Ok(api_path(&segments))
    }
}

async fn list(command: List, output: Output) -> Result<(), Failure> {
    let client = command.chain.connection.client()?;
    let mut path = format!("{}?limit={}", command.chain.path(&[])?, command.limit);
    let filters = [
        ("actor", &command.actor),
        ("action", &command.action),
        ("object", &command.object),
        ("from", &command.from),
        ("to", &command.to),
    ];
    for (name, value) in filters {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", percent_encoded(value)));
        }
    }
    let body = client.get(&path).await?.body;
    let rows = body["items"].as_array().cloned().unwrap_or_default();
    if output == Output::Json {
        print_json(&body);
        return Ok(());
    }
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let sequence = row["sequence"].to_string();
            vec![
                sequence,
                text("at"),
                text("actor"),
                text("action"),
                text("target"),
                text("environment"),
            ]
        })
        .collect();
    let head = ["ROW", "AT", "BY", "ACTION", "ON", "ENVIRONMENT"];
    print(&table(Paint::of_stdout(), &head, &shown));
    Ok(())
}

async fn export(command: Export) -> Result<(), Failure> {
    let client = command.chain.connection.client()?;
    let mut lines = String::new();
    let (head, rows, anchors) = whole(&client, &command.chain).await?;
    let all = std::iter::once(Line::Chain(head))
        .chain(rows.into_iter().map(|row| Line::Row(Box::new(row))))
        .chain(anchors.into_iter().map(Line::Anchor));
    for line in all {
        let line = serde_json::to_string(&line).map_err(anyhow::Error::from)?;
        lines.push_str(&line);
        lines.push('\n');
    }
    files::write(command.file.as_deref(), &lines)
}

type Whole = (ChainLine, Vec<ExportedRow>, Vec<SignedAnchor>);

/// The rows that there were when it began, however many come meanwhile.
async fn whole(client: &Client, chain: &Chain) -> Result<Whole, Failure> {
    let path = chain.path(&["export"])?;
    let mut head: Option<ChainLine> = None;
    let (mut rows, mut anchors) = (Vec::<ExportedRow>::new(), Vec::new());
    loop {
        let after = rows.last().map_or(0, |row| row.sequence);
        let body = client.get(&format!("{path}?after={after}")).await?.body;
        let part: AuditExport = serde_json::from_value(body).map_err(anyhow::Error::from)?;
        let end = head.get_or_insert(ChainLine {
            chain: part.chain,
            name: part.name,
            sequence: part.sequence,
            hash: part.hash,
            public_key: part.public_key,
        });
        anchors.extend(part.anchors);
        let before = rows.len();
        rows.extend(part.rows.into_iter().filter(|row| row.sequence <= end.sequence));
        if rows.len() == before || rows.last().is_some_and(|row| row.sequence <= after) {
            let end = end.clone();
            let is_within = |signed: &SignedAnchor| {
                signed.claims().is_none_or(|anchor| anchor.sequence <= end.sequence)
            };
            anchors.retain(is_within);
            return Ok((end, rows, anchors));
        }
    }
}

fn read_export(text: &str) -> Result<Whole, Failure> {
    let refused = |line: usize, what: &str| {
        Failure::new(Exit::Refused, format!("line {line} of the export {what}"))
    };
    let mut head = None;
    let (mut rows, mut anchors) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(Line::Chain(line)) if head.is_none() => head = Some(line),
            Ok(Line::Chain(_)) => return Err(refused(index + 1, "begins another export")),
            Ok(Line::Row(row)) => rows.push(*row),
            Ok(Line::Anchor(anchor)) => anchors.push(anchor),
            Err(error) => return Err(refused(index + 1, &format!("cannot be read: {error}"))),
        }
    }
    let head = head.ok_or_else(|| refused(1, "is no export of an audit log"))?;
    Ok((head, rows, anchors))
}

/// Of any length: the record of years.
fn text_of(file: &Path) -> Result<String, Failure> {
    let read = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    read.map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot read {}: {error}", file.display()))
    })
}

async fn verify(command: Verify, output: Output) -> Result<(), Failure> {
    let (head, rows, mut anchors) = match &command.file {
        Some(file) => read_export(&text_of(file)?)?,
        None => whole(&command.chain.connection.client()?, &command.chain).await?,
    };
    let wanted = match command.file.is_some() && command.chain.namespace.is_none() {
        true => None,
        false => command.chain.namespace()?,
    };
    if let Some(wanted) = wanted
        && wanted != head.name
    {
        let message = format!("this is the record of {:?}, not of {wanted:?}", head.name);
        return Err(Failure::new(Exit::Refused, message));
    }
    for file in &command.anchors {
        anchors.extend(anchors::parse_lines(&text_of(file)?, Some(&head.chain)));
    }
    let keys = match command.public_key.is_empty() {
        false => command.public_key,
        true => vec![head.public_key.parse().map_err(|error| {
            Failure::new(Exit::Refused, format!("the export names no public key: {error}"))
        })?],
    };
    match check(&head, rows, &anchors, &keys) {
        Ok((Walked { rows, anchors }, unknown)) => {
            if output == Output::Json {
                print_json(&json!({ "valid": true, "chain": head.chain, "name": head.name,
                    "rows": rows, "anchors": anchors, "anchorsOfUnknownKeys": unknown }));
                return Ok(());
            }
            let mut text = format!(
                "{}: {rows} rows, as they were written; {anchors} anchors agree",
                head.name
            );
            if anchors == 0 {
                text.push_str(
                    "\nnothing of it was signed: a record that was written anew would not show",
                );
            }
            if unknown > 0 {
                text.push_str(&format!(
                    "\n{unknown} anchors are signed with other keys; give those with --public-key"
                ));
            }
            print(&text);
            Ok(())
        }
        Err(problem) => {
            let mut failure = Failure::new(Exit::Refused, format!("{}: {problem}", head.name));
            failure.mend = Some("keep this record and compare it with an older export".to_owned());
            Err(failure)
        }
    }
}

/// What the chain is, and how many anchors nobody can check; or what is wrong.
fn check(
    head: &ChainLine,
    rows: Vec<ExportedRow>,
    anchors: &[SignedAnchor],
    keys: &[PublicKey],
) -> Result<(Walked, usize), String> {
    let (mut trusted, mut unknown) = (Vec::new(), 0);
    for signed in anchors {
        match signed.verify(keys) {
            Ok(anchor) if anchor.chain == head.chain && anchor.name == head.name => {
                trusted.push(anchor);
            }
            Ok(anchor) => return Err(format!("an anchor is of {:?}", anchor.name)),
            Err(AnchorError::UnknownKey) => unknown += 1,
            Err(error) => {
                let row = signed.claims().map_or(Value::Null, |anchor| json!(anchor.sequence));
                return Err(format!("the anchor of row {row}: {error}"));
            }
        }
    }
    let mut walk = Walk::new(&head.chain, &trusted);
    for row in rows {
        let sequence = row.sequence;
        let row = row.row().ok_or_else(|| format!("row {sequence} has no hash"))?;
        walk.step(&row).map_err(|broken| broken.to_string())?;
    }
    let hash = (0..head.hash.len())
        .step_by(2)
        .map(|at| head.hash.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
        .collect::<Option<Vec<u8>>>();
    let end = hash.map(|hash| (head.sequence, hash)).ok_or("the export names no end")?;
    walk.end(Some(end)).map(|walked| (walked, unknown)).map_err(|broken: Broken| broken.to_string())
}
