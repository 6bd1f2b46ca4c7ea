//! `tidegate flag …`: reads flags, and changes what they do in one environment.
//!
//! A change is read, modify, write over the version that was read; a lost race is tried again on
//! what the winner wrote, a few times, because `--enabled` means the same on top of it. A whole
//! file does not (`--file`): it would undo what somebody else did, so it is a conflict.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use indexmap::IndexMap;
use reqwest::StatusCode;
use rules::model::{Clients, FlagConfig, FlagDefinition, FlagType, Serve};
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::connection::{Environment, Place, api_path};
use crate::failure::{Exit, Failure};
use crate::paint::{Output, Paint, print, print_json, table};
use crate::{files, lifecycle, readable};

#[derive(Debug, Subcommand)]
pub enum Flag {
    /// Lists the flags of an environment.
    #[command(after_help = "Examples:
  tidegate flag list
  tidegate flag list --output json | jq -r '.[].flag'")]
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Shows one flag: its variants and whom it serves what.
    #[command(after_help = "Examples:
  tidegate flag get checkout
  tidegate flag get checkout --output json | jq .config > checkout.json")]
    Get {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        place: Place,
    },
    /// Shows how often a flag was used in the last day, by whom, and when last.
    #[command(after_help = "Examples:
  tidegate flag usage checkout
  tidegate flag usage checkout --output json | jq .buckets")]
    Usage {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        place: Place,
    },
    /// Makes a flag, which is off in every environment until something else is set.
    #[command(after_help = "Examples:
  tidegate flag create new-menu                       # on and off
  tidegate flag create checkout --type string --variant express --variant classic
  tidegate flag create page-size --type integer --variant small=20 --variant large=100")]
    Create {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        definition: Definition,
        #[command(flatten)]
        place: Place,
    },
    /// Changes what a flag does in an environment.
    #[command(after_help = "Examples:
  tidegate flag set checkout --enabled --variant express
  tidegate flag set checkout --off classic
  tidegate flag set checkout --file checkout.json   # the whole configuration, - for standard input")]
    Set {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        place: Place,
    },
    /// Turns a flag on; the same as `set --enabled`.
    On {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        place: Place,
    },
    /// Turns a flag off; the same as `set --disabled`.
    Off {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        place: Place,
    },
    /// Turns a flag off in an emergency, past the approvals that the environment takes.
    #[command(after_help = "Examples:
  tidegate flag kill checkout --reason 'checkout is down' --now")]
    Kill {
        /// The flag's key.
        key: String,
        /// Why; the audit keeps it.
        #[arg(long)]
        reason: String,
        /// It comes to all edges at once, past the stages of a rollout.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Shows what a flag did in an environment before, newest first, or one version of it.
    #[command(after_help = "Examples:
  tidegate flag history checkout
  tidegate flag history checkout --version 3                # and what it changed
  tidegate flag history checkout --version 7 --against 3")]
    History {
        /// The flag's key.
        key: String,
        /// This version, with its difference from the one before.
        #[arg(long)]
        version: Option<u64>,
        /// Its difference from this one instead.
        #[arg(long, requires = "version")]
        against: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// Makes a flag do what it did at a version, as a new version.
    Restore {
        /// The flag's key.
        key: String,
        /// The version whose content comes back.
        #[arg(long)]
        version: u64,
        #[command(flatten)]
        place: Place,
    },
    /// Lists flags that look as if nobody needed them any more, and why.
    #[command(after_help = "Reasons:
  ended     it is temporary, and the day that it was expected to be gone by is past
  old       it is temporary, nobody said until when, and it was made 90 days ago
  unused    it was not evaluated for 30 days, while others were
  settled   it is temporary, and everybody has had the same for 30 days

Examples:
  tidegate flag stale
  tidegate flag stale --reason unused --unused-days 60
  tidegate flag stale --owner payments --output json | jq -r '.[].key'")]
    Stale {
        /// For this reason.
        #[arg(long, default_value = "any")]
        reason: lifecycle::Why,
        /// After how many days without evaluation a flag is unused.
        #[arg(long, value_name = "DAYS")]
        unused_days: Option<u16>,
        /// Only those of this owner.
        #[arg(long)]
        owner: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Says what a flag is for, whose it is and how long it is meant to stay; callers get what they got.
    #[command(after_help = "Examples:
  tidegate flag describe new-menu --owner ann@example.com --expected-end 2027-01-31
  tidegate flag describe checkout-limit --lifetime permanent --tag payments")]
    Describe {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        words: lifecycle::Words,
        #[command(flatten)]
        place: Place,
    },
    /// Shows what refers to a flag: flags that need it, change sets that would change it.
    References {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        place: Place,
    },
    /// Puts a flag away: callers get their own default, as if it were deleted, in all environments.
    #[command(
        after_help = "It is refused while another flag needs it. `tidegate flag unarchive` takes it back."
    )]
    Archive {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        place: Place,
    },
    /// Takes an archived flag back, as it was.
    Unarchive {
        /// The flag's key.
        key: String,
        #[command(flatten)]
        place: Place,
    },
    /// Deletes a flag for good; its key is never used again.
    Delete {
        /// The flag's key.
        key: String,
        /// Yes, for good.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Takes over what flags do in another environment.
    #[command(after_help = "Examples:
  tidegate flag promote checkout banner --from staging --dry-run
  tidegate flag promote checkout --from staging --to production
  tidegate flag promote checkout --from staging --change-set   # for others to approve")]
    Promote {
        /// The flags' keys.
        #[arg(required = true)]
        keys: Vec<String>,
        /// The environment that is taken over from.
        #[arg(long)]
        from: String,
        /// The environment that changes [default: the one of --environment].
        #[arg(long)]
        to: Option<String>,
        /// Only say what would change.
        #[arg(long, conflicts_with = "change_set")]
        dry_run: bool,
        /// Make a change set of it.
        #[arg(long)]
        change_set: bool,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub struct Definition {
    /// What its values are.
    #[arg(long = "type", default_value = "boolean")]
    kind: Kind,
    /// A variant and its value as JSON, NAME=VALUE; a string needs no quotes, and without a value it
    /// is the name [default for boolean: on=true and off=false].
    #[arg(long = "variant", value_name = "NAME[=VALUE]")]
    variants: Vec<String>,
    /// What it is for.
    #[arg(long, default_value = "")]
    description: String,
    /// What browsers may have of it: nothing, its values, or its rules too.
    #[arg(long, default_value = "none")]
    clients: Audience,
    /// Who answers for it: a person's address, or a team's name [default: whoever makes it].
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// A tag, once for each.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// How long it is meant to stay.
    #[arg(long, default_value = "temporary")]
    lifetime: lifecycle::Lifetime,
    /// The day by which a temporary flag is meant to be gone, as 2027-01-31.
    #[arg(long, value_name = "DAY")]
    expected_end: Option<String>,
}

/// `rules::model::FlagType`, for the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Boolean,
    String,
    Integer,
    Float,
    Object,
}

/// `rules::model::Clients`, for the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Audience {
    None,
    Edge,
    Local,
}

#[derive(Debug, Clone, Default, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Change {
    /// Turns it on.
    #[arg(long, conflicts_with = "disabled")]
    enabled: bool,
    /// Turns it off.
    #[arg(long)]
    disabled: bool,
    /// The variant for everybody whom no rule takes (the fallthrough).
    #[arg(long, value_name = "VARIANT")]
    variant: Option<String>,
    /// The variant while it is off.
    #[arg(long, value_name = "VARIANT")]
    off: Option<String>,
    /// The whole configuration from a JSON file; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["enabled", "disabled", "variant", "off"])]
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Wait {
    /// Waits until every edge serves the change, so many seconds at most [10 if not said]; fails if
    /// some do not by then. The change stays.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "10",
        value_parser = clap::value_parser!(u64).range(1..=60)
    )]
    wait: Option<u64>,
    /// The change comes to all edges at once, past the stages of a rollout: for a switch that has to
    /// be off now. Whatever is being rolled out in the environment comes with it.
    #[arg(long)]
    now: bool,
}

/// A flag in one environment, as the API gives it.
struct Live {
    definition: FlagDefinition,
    config: FlagConfig,
    version: Option<u64>,
    etag: Option<String>,
    body: Value,
}

/// How often a lost race is run again.
const RACES_MAX: usize = 5;

pub async fn run(command: Flag, output: Output) -> Result<(), Failure> {
    match command {
        Flag::List { place } => list(&place, output).await,
        Flag::Get { key, place } => get(&key, &place, output).await,
        Flag::Usage { key, place } => usage(&key, &place, output).await,
        Flag::Create { key, definition, place } => create(&key, &definition, &place, output).await,
        Flag::Set { key, change, wait, place } => set(&key, &change, &wait, &place, output).await,
        Flag::On { key, wait, place } => {
            let on = Change { enabled: true, ..Change::default() };
            set(&key, &on, &wait, &place, output).await
        }
        Flag::Off { key, wait, place } => {
            let off = Change { disabled: true, ..Change::default() };
            set(&key, &off, &wait, &place, output).await
        }
        Flag::Kill { key, reason, now, place } => {
            let (client, environment) = place.resolve()?;
            let before = read(&client, &environment, &key).await?;
            let query = if now { "?rollout=now" } else { "" };
            let path = format!("{}{query}", environment.path(&["flags", &key, "kill"]));
            let answer = client.post(&path, &json!({ "reason": reason })).await?;
            report(&key, &before, answer, output)
        }
        Flag::History { key, version, against, place } => {
            history(&key, version, against, &place, output).await
        }
        Flag::Restore { key, version, place } => {
            let (client, environment) = place.resolve()?;
            let before = read(&client, &environment, &key).await?;
            let etag = before.etag.clone().unwrap_or_default();
            let path =
                environment.path(&["flags", &key, "versions", &version.to_string(), "restore"]);
            let answer = client.post_over(&path, &json!({}), &etag).await?;
            report(&key, &before, answer, output)
        }
        Flag::Stale { reason, unused_days, owner, place } => {
            lifecycle::stale(reason, unused_days, owner.as_deref(), &place, output).await
        }
        Flag::Describe { key, words, place } => {
            lifecycle::describe(&key, &words, &place, output).await
        }
        Flag::References { key, place } => lifecycle::references(&key, &place, output).await,
        Flag::Archive { key, place } => {
            lifecycle::step(&key, "archive", "archived", &place, output).await
        }
        Flag::Unarchive { key, place } => {
            lifecycle::step(&key, "unarchive", "is back", &place, output).await
        }
        Flag::Delete { key, yes, place } => lifecycle::delete(&key, yes, &place, output).await,
        Flag::Promote { keys, from, to, dry_run, change_set, place } => {
            let (client, environment) = place.resolve()?;
            let to = to.unwrap_or_else(|| environment.environment.clone());
            let body = json!({ "from": from, "to": to, "flags": keys, "dryRun": dry_run,
                "asChangeSet": change_set });
            let path = api_path(&["namespaces", &environment.namespace, "promotions"]);
            promoted(&client.post(&path, &body).await?.body, output);
            Ok(())
        }
    }
}

/// What has to be done, in lines.
fn operations(diff: &Value) -> Vec<String> {
    let line = |operation: &Value| {
        let text = |name: &str| operation[name].as_str().unwrap_or_default();
        let value = match &operation["value"] {
            Value::Null => String::new(),
            value => format!(" {value}"),
        };
        format!("  {} {}{value}", text("op"), text("path"))
    };
    diff.as_array().into_iter().flatten().map(line).collect()
}

async fn history(
    key: &str,
    version: Option<u64>,
    against: Option<u64>,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let paint = Paint::of_stdout();
    let who =
        |row: &Value| row["actor"].as_str().unwrap_or("(before versions were kept)").to_owned();
    let Some(version) = version else {
        let items = client.list(&environment.path(&["flags", key, "versions"])).await?;
        if output == Output::Json {
            print_json(&Value::Array(items));
            return Ok(());
        }
        let row = |item: &Value| {
            let set = item["changeSet"].as_i64().map_or(String::new(), |set| set.to_string());
            let at = item["at"].as_str().unwrap_or_default().to_owned();
            vec![item["version"].to_string(), at, who(item), set]
        };
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        match rows.is_empty() {
            true => print(&format!("{key} was never configured in {}", environment.environment)),
            false => print(&table(paint, &["VERSION", "AT", "BY", "CHANGE SET"], &rows)),
        }
        return Ok(());
    };
    let mut path = environment.path(&["flags", key, "versions", &version.to_string()]);
    if let Some(against) = against {
        path.push_str(&format!("?against={against}"));
    }
    let body = client.get(&path).await?.body;
    if output == Output::Json {
        print_json(&body);
        return Ok(());
    }
    let at = body["at"].as_str().unwrap_or_default();
    let mut lines = vec![format!("{} version {version}, {at} by {}", paint.bold(key), who(&body))];
    lines.push(match body["against"].as_i64() {
        Some(against) => format!("from version {against}:"),
        None => "the first that is kept:".to_owned(),
    });
    lines.extend(operations(&body["diff"]));
    print(&lines.join("\n"));
    Ok(())
}

fn promoted(body: &Value, output: Output) {
    if output == Output::Json {
        print_json(body);
        return;
    }
    let paint = Paint::of_stdout();
    let problem = |problem: &Value| {
        let text = |name: &str| problem[name].as_str().unwrap_or_default();
        format!("  {} {} {}", paint.bad("problem"), text("pointer"), text("message"))
    };
    let mut lines = Vec::new();
    for flag in body["flags"].as_array().into_iter().flatten() {
        let key = paint.bold(flag["flag"].as_str().unwrap_or_default());
        let differs = flag["changed"] == true;
        lines.push(if differs { key } else { format!("{key}  the same already") });
        lines.extend(operations(&flag["diff"]));
        lines.extend(flag["problems"].as_array().into_iter().flatten().map(problem));
    }
    lines.extend(body["problems"].as_array().into_iter().flatten().map(problem));
    let to = body["to"].as_str().unwrap_or_default();
    lines.push(match (body["changeSet"].as_i64(), body["revision"].as_i64()) {
        (Some(number), _) => format!("change set {number}: `tidegate change submit {number}`"),
        (None, Some(revision)) => format!("{to} is at revision {revision}"),
        (None, None) => "nothing was changed".to_owned(),
    });
    print(&lines.join("\n"));
}

async fn list(place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let items = client.list(&environment.path(&["flags"])).await?;
    if output == Output::Json {
        print_json(&Value::Array(items));
        return Ok(());
    }
    let paint = Paint::of_stdout();
    let mut rows = Vec::new();
    for item in items {
        let flag = live(item, None)?;
        let state = if flag.config.enabled { "on" } else { "off" };
        let kind = json!(flag.definition.kind);
        rows.push(vec![
            flag.definition.key.clone(),
            kind.as_str().unwrap_or_default().to_owned(),
            state.to_owned(),
            flag.config.rules.len().to_string(),
            readable::serves(&flag.config),
        ]);
    }
    if rows.is_empty() {
        print(&format!(
            "no flags in {}/{}; `tidegate import` brings some",
            environment.namespace, environment.environment
        ));
        return Ok(());
    }
    print(&table(paint, &["KEY", "TYPE", "STATE", "RULES", "EVERYBODY ELSE"], &rows));
    Ok(())
}

async fn get(key: &str, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let flag = read(&client, &environment, key).await?;
    match output {
        Output::Json => print_json(&flag.body),
        Output::Text => {
            print(&readable::flag(Paint::of_stdout(), &flag.definition, &flag.config, flag.version))
        }
    }
    Ok(())
}

async fn usage(key: &str, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let body = client.get(&environment.path(&["flags", key, "usage"])).await?.body;
    if output == Output::Json {
        print_json(&body);
        return Ok(());
    }
    let Some(last) = body["lastEvaluatedAt"].as_str() else {
        print(&format!("{key} was never used, as far as edges have told"));
        return Ok(());
    };
    let totals = body["totals"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = totals
        .map(|total| {
            let variant = total["variant"].as_str().unwrap_or("(the caller's default)");
            let source = total["source"].as_str().unwrap_or_default();
            vec![variant.to_owned(), source.to_owned(), total["count"].to_string()]
        })
        .collect();
    let paint = Paint::of_stdout();
    print(&format!("{}  last used {last}", paint.bold(key)));
    match rows.is_empty() {
        true => print("not in the last day"),
        false => print(&table(paint, &["VARIANT", "SOURCE", "USES IN A DAY"], &rows)),
    }
    Ok(())
}

async fn create(
    key: &str,
    definition: &Definition,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let definition = defined(key, definition)?;
    let (client, environment) = place.resolve()?;
    let path = api_path(&["namespaces", &environment.namespace, "flags"]);
    let answer = client.post(&path, &json!(definition)).await?;
    match output {
        Output::Json => print_json(&answer.body),
        Output::Text => {
            let names: Vec<&str> = definition.variants.keys().map(String::as_str).collect();
            let key = Paint::of_stdout().bold(key);
            let variants = names.join(", ");
            print(&format!("{key}  made with {variants}; `tidegate flag set` turns it on"));
        }
    }
    Ok(())
}

fn defined(key: &str, given: &Definition) -> Result<FlagDefinition, Failure> {
    let (kind, clients) = (given.kind.into(), given.clients.into());
    let mut variants = IndexMap::new();
    for variant in &given.variants {
        let (name, value) = match variant.split_once('=') {
            Some((name, value)) => (name, value),
            None => (variant.as_str(), variant.as_str()),
        };
        let value = match kind {
            FlagType::String => Value::String(value.to_owned()),
            _ => serde_json::from_str(value).map_err(|error| {
                Failure::usage(format!("the value of {variant:?} is no JSON: {error}"))
                    .mend(format!("as in --variant {name}=20"))
            })?,
        };
        if variants.insert(name.to_owned(), value).is_some() {
            return Err(Failure::usage(format!("the variant {name:?} is given twice")));
        }
    }
    match (variants.is_empty(), kind) {
        (false, _) => {}
        (true, FlagType::Boolean) => {
            variants.insert("on".to_owned(), Value::Bool(true));
            variants.insert("off".to_owned(), Value::Bool(false));
        }
        (true, _) => {
            return Err(Failure::usage("which variants?")
                .mend("give --variant NAME=VALUE, once for each of them"));
        }
    }
    Ok(FlagDefinition {
        description: given.description.clone(),
        clients,
        tags: given.tags.clone(),
        owner: given.owner.clone(),
        lifetime: given.lifetime.into(),
        expected_end: given.expected_end.clone(),
        ..FlagDefinition::new(key.to_owned(), kind, variants)
    })
}

impl From<Kind> for FlagType {
    fn from(kind: Kind) -> FlagType {
        match kind {
            Kind::Boolean => FlagType::Boolean,
            Kind::String => FlagType::String,
            Kind::Integer => FlagType::Integer,
            Kind::Float => FlagType::Float,
            Kind::Object => FlagType::Object,
        }
    }
}

impl From<Audience> for Clients {
    fn from(audience: Audience) -> Clients {
        match audience {
            Audience::None => Clients::None,
            Audience::Edge => Clients::Edge,
            Audience::Local => Clients::Local,
        }
    }
}

async fn set(
    key: &str,
    change: &Change,
    wait: &Wait,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let mut path = environment.path(&["flags", key]);
    let mut query = Vec::new();
    if let Some(seconds) = wait.wait {
        query.push(format!("wait=live&timeout={seconds}"));
    }
    if wait.now {
        query.push("rollout=now".to_owned());
    }
    if !query.is_empty() {
        path.push_str(&format!("?{}", query.join("&")));
    }
    let whole = change.file.as_ref().map(|path| files::read_json(path)).transpose()?;
    let races_max = if whole.is_some() { 1 } else { RACES_MAX };
    for _ in 0..races_max {
        let before = read(&client, &environment, key).await?;
        let body = match &whole {
            Some(config) => config.clone(),
            None => json!(changed(&before, change)?),
        };
        let answer = client.put(&path, &body, before.etag.as_deref()).await?;
        if answer.status != StatusCode::PRECONDITION_FAILED {
            let live = answer.live.clone();
            report(key, &before, answer, output)?;
            return match wait.wait {
                Some(seconds) => told_live(live.as_deref(), seconds, output),
                None => Ok(()),
            };
        }
    }
    let who = if whole.is_some() { "somebody else" } else { "others, again and again," };
    Err(Failure::new(Exit::Conflict, format!("{who} changed {key:?} meanwhile"))
        .mend("look at it with `tidegate flag get` and try again"))
}

/// What the answer's `Tidegate-Live` header says: `live=?1, serving=3, edges=3` (RFC 8941).
fn told_live(header: Option<&str>, seconds: u64, output: Output) -> Result<(), Failure> {
    let header = header.unwrap_or_default();
    let member = |name: &str| {
        header.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let count = |name: &str| member(name).unwrap_or("?").to_owned();
    let (serving, edges) = (count("serving"), count("edges"));
    if member("live") == Some("?1") {
        if output == Output::Text {
            print(&format!("live on {serving} of {edges} edges"));
        }
        return Ok(());
    }
    let made = format!("the change is made, but live on {serving} of {edges} edges");
    if member("rollout") == Some("halted") {
        return Err(Failure::new(Exit::Failed, format!("{made}, and its rollout is halted"))
            .mend("GET /api/v1/drift says why; the next change is rolled out anew"));
    }
    let what = format!("{made} after {seconds} s");
    Err(Failure::new(Exit::Failed, what).mend("GET /api/v1/edges says which edges are behind"))
}

fn report(key: &str, before: &Live, answer: Answer, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        print_json(&answer.body);
        return Ok(());
    }
    let paint = Paint::of_stdout();
    let after = live(answer.body, answer.etag)?;
    let mut changes = Vec::new();
    if before.config.enabled != after.config.enabled {
        let state = |on: bool| if on { paint.good("on") } else { paint.warn("off") };
        changes.push(format!("{} → {}", state(before.config.enabled), state(after.config.enabled)));
    }
    let default = |variant: &Option<String>| {
        variant.clone().unwrap_or_else(|| "the caller's default".to_owned())
    };
    if before.config.off != after.config.off {
        changes.push(format!(
            "while off: {} → {}",
            default(&before.config.off),
            default(&after.config.off)
        ));
    }
    if before.config.fallthrough != after.config.fallthrough {
        changes.push(format!(
            "everybody else: {} → {}",
            readable::serve(&before.config.fallthrough),
            readable::serve(&after.config.fallthrough)
        ));
    }
    if before.config.rules != after.config.rules {
        changes.push(format!(
            "rules: {} → {}",
            before.config.rules.len(),
            after.config.rules.len()
        ));
    }
    if before.config.prerequisites != after.config.prerequisites {
        changes.push("prerequisites changed".to_owned());
    }
    if changes.is_empty() {
        changes.push("unchanged".to_owned());
    }
    print(&format!("{}  {}", paint.bold(key), changes.join(", ")));
    Ok(())
}

/// The configuration with the change made; a variant that does not exist is refused here, where
/// the ones that do can be named.
fn changed(before: &Live, change: &Change) -> Result<FlagConfig, Failure> {
    let mut config = before.config.clone();
    for name in [&change.variant, &change.off].into_iter().flatten() {
        if !before.definition.variants.contains_key(name) {
            let known: Vec<&str> = before.definition.variants.keys().map(String::as_str).collect();
            return Err(Failure::new(
                Exit::Refused,
                format!("{:?} has no variant {name:?}", before.definition.key),
            )
            .mend(format!("it has {}", known.join(", "))));
        }
    }
    if change.enabled || change.disabled {
        config.enabled = change.enabled;
    }
    if let Some(variant) = &change.variant {
        config.fallthrough = Serve::Variant(variant.clone());
    }
    if change.off.is_some() {
        config.off.clone_from(&change.off);
    }
    Ok(config)
}

async fn read(client: &Client, environment: &Environment, key: &str) -> Result<Live, Failure> {
    let answer = client.get(&environment.path(&["flags", key])).await?;
    live(answer.body, answer.etag)
}

fn live(body: Value, etag: Option<String>) -> Result<Live, Failure> {
    let part = |name: &str| {
        let mut part = body.get(name).cloned().unwrap_or(Value::Null);
        if let Some(fields) = part.as_object_mut() {
            // What the server keeps beside what an author writes.
            for kept in ["version", "createdAt", "updatedAt"] {
                fields.remove(kept);
            }
        }
        part
    };
    let strange = |error: serde_json::Error| {
        Failure::new(Exit::Failed, format!("the server's flag cannot be read: {error}"))
            .mend("is the server of another version than this command?")
    };
    Ok(Live {
        definition: serde_json::from_value(part("definition")).map_err(strange)?,
        config: serde_json::from_value(part("config")).map_err(strange)?,
        version: body.get("version").and_then(Value::as_u64),
        etag,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag() -> Live {
        live(
            json!({
                "definition": {"key": "x", "type": "boolean", "variants": {"on": true, "off": false},
                    "version": 1, "createdAt": 5, "updatedAt": 5},
                "config": {"enabled": false, "off": "off", "fallthrough": {"variant": "off"}},
                "version": 4
            }),
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let change = Change { variant: Some("on".to_owned()), ..Change::default() };
        let config = changed(&flag(), &change).unwrap();
        assert!(!config.enabled);
        assert_eq!(config.fallthrough, Serve::Variant("on".to_owned()));
        assert_eq!(config.off.as_deref(), Some("off"));
    }

    fn given(kind: Kind, variants: &[&str]) -> Result<IndexMap<String, Value>, Failure> {
        let given = Definition {
            kind,
            variants: variants.iter().map(|&variant| variant.to_owned()).collect(),
            description: String::new(),
            clients: Audience::None,
            owner: String::new(),
            tags: Vec::new(),
            lifetime: lifecycle::Lifetime::Temporary,
            expected_end: None,
        };
        defined("x", &given).map(|definition| definition.variants)
    }

    #[test]
    fn variants_have_the_values_that_their_type_gives_them() {
        let is = |variants: IndexMap<String, Value>, json: Value| assert_eq!(json!(variants), json);
        is(given(Kind::Boolean, &[]).unwrap(), json!({ "on": true, "off": false }));
        is(given(Kind::String, &["a", "b=1=2"]).unwrap(), json!({ "a": "a", "b": "1=2" }));
        is(given(Kind::Integer, &["s=20"]).unwrap(), json!({ "s": 20 }));
        is(given(Kind::Object, &["o={\"a\":[]}"]).unwrap(), json!({ "o": { "a": [] } }));
        for (kind, variants) in
            [(Kind::String, &[][..]), (Kind::Integer, &["small"]), (Kind::String, &["a=1", "a=2"])]
        {
            assert_eq!(given(kind, variants).unwrap_err().exit, Exit::Usage, "{variants:?}");
        }
    }

    #[test]
    fn an_unknown_variant_is_refused_with_the_known_ones() {
        let change = Change { variant: Some("onn".to_owned()), ..Change::default() };
        let failure = changed(&flag(), &change).err().unwrap();
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(failure.mend.as_deref(), Some("it has on, off"));
    }
}
