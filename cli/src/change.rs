//! `tidegate change …`: change sets, from a draft to their application.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::Client;
use crate::connection::{Environment, Place, api_path};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::paint::{Output, Paint, print, print_json, table};

#[derive(Debug, Subcommand)]
pub enum Change {
    /// Lists change sets, newest first.
    #[command(after_help = "Examples:
  tidegate change list
  tidegate change list --state review")]
    List {
        /// Only those in this state: draft, review, approved, scheduled, applied, rejected, conflict,
        /// failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Shows a change set: what it changes, who approved it, what was said.
    Show {
        #[command(flatten)]
        set: Set,
    },
    /// Makes a draft from a file.
    #[command(after_help = "The file holds the items, or the whole body of POST …/change-sets:
  [{\"kind\": \"config\", \"environment\": \"production\", \"key\": \"checkout\",
    \"value\": {\"enabled\": true, \"fallthrough\": {\"variant\": \"express\"}}}]

Examples:
  tidegate change create --title 'New checkout' --file items.json")]
    Create {
        /// What it is, for those who approve it.
        #[arg(long)]
        title: Option<String>,
        /// More about it.
        #[arg(long)]
        description: Option<String>,
        /// Its items as JSON; - is standard input.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Who would be answered differently if a change set were applied now: all of its items together.
    #[command(after_help = "Examples:
  tidegate change impact 7 --recent 1000
  tidegate change impact 7 --in production --contexts contexts.json")]
    Impact {
        #[command(flatten)]
        set: Set,
        /// In which environment; the only one that its items name, unless said.
        #[arg(long = "in", value_name = "ENVIRONMENT")]
        place_of: Option<String>,
        /// For these evaluation contexts: a file with a JSON array of at most 1,000; - is standard input.
        #[arg(
            long,
            value_name = "FILE",
            required_unless_present = "recent",
            conflicts_with = "recent"
        )]
        contexts: Option<PathBuf>,
        /// For so many of the newest contexts that edges sampled there, at most 1,000.
        #[arg(long, value_name = "COUNT")]
        recent: Option<u32>,
    },
    /// Hands a draft in for review; what could not be applied is refused with its place.
    Submit {
        #[command(flatten)]
        set: Set,
    },
    /// Approves a change set as it is shown, or at the version that was looked at.
    Approve {
        #[command(flatten)]
        set: Set,
        /// The version that was looked at; a later one is not approved.
        #[arg(long = "version")]
        looked_at: Option<u64>,
        /// What to say with it.
        #[arg(long, default_value = "")]
        text: String,
    },
    /// Says no to a change set.
    Reject {
        #[command(flatten)]
        set: Set,
        /// Why.
        #[arg(long)]
        text: String,
    },
    /// Says something about a change set.
    Comment {
        #[command(flatten)]
        set: Set,
        /// What.
        #[arg(long)]
        text: String,
    },
    /// Makes the same edits on what is there now; it is a draft again.
    Rebase {
        #[command(flatten)]
        set: Set,
    },
    /// Applies a change set: all of it, or nothing.
    Apply {
        #[command(flatten)]
        set: Set,
    },
    /// Has it applied later.
    #[command(after_help = "Examples:
  tidegate change schedule 7 --at 2027-01-01T06:00:00Z
  tidegate change schedule 7 --never")]
    Schedule {
        #[command(flatten)]
        set: Set,
        /// When, RFC 3339.
        #[arg(long, required_unless_present = "never", conflicts_with = "never")]
        at: Option<String>,
        /// Not any more.
        #[arg(long)]
        never: bool,
    },
    /// Gives a change set up.
    Cancel {
        #[command(flatten)]
        set: Set,
        /// Why.
        #[arg(long, default_value = "")]
        text: String,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub struct Set {
    /// The change set's number.
    number: u64,
    #[command(flatten)]
    place: Place,
}

impl Set {
    fn resolve(&self) -> Result<(Client, String), Failure> {
        let (client, environment) = self.place.resolve()?;
        Ok((client, path(&environment, Some(self.number))))
    }
}

fn path(environment: &Environment, number: Option<u64>) -> String {
    let sets = api_path(&["namespaces", &environment.namespace, "change-sets"]);
    number.map_or(sets.clone(), |number| format!("{sets}/{number}"))
}

pub async fn run(command: Change, output: Output) -> Result<(), Failure> {
    let none = json!({});
    match command {
        Change::List { state, place } => list(state.as_deref(), &place, output).await,
        Change::Show { set } => {
            let (client, path) = set.resolve()?;
            show(&client.get(&path).await?.body, output);
            Ok(())
        }
        Change::Create { title, description, file, place } => {
            let mut body = match files::read_json(&file)? {
                Value::Array(items) => json!({ "items": items }),
                body => body,
            };
            if let Value::Object(fields) = &mut body {
                for (name, given) in [("title", title), ("description", description)] {
                    if let Some(given) = given {
                        fields.insert(name.to_owned(), json!(given));
                    }
                }
            }
            let (client, environment) = place.resolve()?;
            show(&client.post(&path(&environment, None), &body).await?.body, output);
            Ok(())
        }
        Change::Impact { set, place_of, contexts, recent } => {
            let mut body = json!({});
            if let Some(environment) = place_of {
                body["environment"] = json!(environment);
            }
            if let Some(recent) = recent {
                body["recent"] = json!(recent);
            }
            if let Some(file) = contexts {
                body["contexts"] = files::read_json(&file)?;
            }
            let (client, path) = set.resolve()?;
            let told = client.post(&format!("{path}/impact"), &body).await?.body;
            match output {
                Output::Json => print_json(&told),
                Output::Text => print(&impact(Paint::of_stdout(), &told)),
            }
            Ok(())
        }
        Change::Submit { set } => step(&set, "submit", &none, output).await,
        Change::Approve { set, looked_at, text } => {
            let (client, path) = set.resolve()?;
            let etag = match looked_at {
                Some(version) => format!("\"{version}\""),
                None => {
                    let seen = client.get(&path).await?;
                    if output == Output::Text {
                        show(&seen.body, output);
                    }
                    seen.etag.unwrap_or_default()
                }
            };
            let body = json!({ "text": text });
            let done = client.post_over(&format!("{path}/approve"), &body, &etag).await?;
            told(&done.body, output);
            Ok(())
        }
        Change::Reject { set, text } => {
            step(&set, "reject", &json!({ "text": text }), output).await
        }
        Change::Comment { set, text } => {
            step(&set, "comment", &json!({ "text": text }), output).await
        }
        Change::Rebase { set } => step(&set, "rebase", &none, output).await,
        Change::Apply { set } => step(&set, "apply", &none, output).await,
        Change::Schedule { set, at, .. } => {
            step(&set, "schedule", &json!({ "applyAt": at }), output).await
        }
        Change::Cancel { set, text } => {
            step(&set, "cancel", &json!({ "text": text }), output).await
        }
    }
}

async fn step(set: &Set, step: &str, body: &Value, output: Output) -> Result<(), Failure> {
    let (client, path) = set.resolve()?;
    let done =
        client.post(&format!("{path}/{step}"), body).await.map_err(|failure| {
            match failure.exit {
                Exit::Conflict => failure.mend(format!("tidegate change show {}", set.number)),
                _ => failure,
            }
        })?;
    told(&done.body, output);
    Ok(())
}

async fn list(state: Option<&str>, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let mut items = client.list(&path(&environment, None)).await?;
    if let Some(state) = state {
        items.retain(|item| item["state"] == state);
    }
    if output == Output::Json {
        print_json(&Value::Array(items));
        return Ok(());
    }
    let text = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let number = item["number"].to_string();
            vec![number, text(item, "state"), text(item, "title"), text(item, "author")]
        })
        .collect();
    match rows.is_empty() {
        true => print("no change sets"),
        false => print(&table(Paint::of_stdout(), &["NUMBER", "STATE", "TITLE", "BY"], &rows)),
    }
    Ok(())
}

/// In one line, after a step.
fn told(set: &Value, output: Output) {
    if output == Output::Json {
        print_json(set);
        return;
    }
    let paint = Paint::of_stdout();
    let state = set["state"].as_str().unwrap_or_default();
    let mut line =
        format!("{} is {}", paint.bold(&set["number"].to_string()), coloured(paint, state));
    if let Some(at) = set["applyAt"].as_str() {
        line.push_str(&format!(" for {at}"));
    }
    for (environment, revision) in set["revisions"].as_object().into_iter().flatten() {
        line.push_str(&format!("; {environment} is at revision {revision}"));
    }
    print(&line);
}

fn coloured(paint: Paint, state: &str) -> String {
    match state {
        "approved" | "applied" => paint.good(state),
        "rejected" | "conflict" | "failed" => paint.bad(state),
        _ => paint.warn(state),
    }
}

fn show(set: &Value, output: Output) {
    if output == Output::Json {
        print_json(set);
        return;
    }
    let paint = Paint::of_stdout();
    print(&readable(paint, set));
}

fn readable(paint: Paint, set: &Value) -> String {
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![format!(
        "{}  {}  {} (version {}) by {}",
        paint.bold(&set["number"].to_string()),
        set["title"].as_str().unwrap_or_default(),
        coloured(paint, &text(set, "state")),
        set["version"],
        text(set, "author"),
    )];
    for name in ["description", "reason"] {
        let said = text(set, name);
        if !said.is_empty() {
            lines.push(format!("  {said}"));
        }
    }
    for item in set["items"].as_array().into_iter().flatten() {
        let place = item["environment"].as_str().map(|key| format!(" in {key}"));
        lines.push(format!(
            "  {} {}{}{}",
            text(item, "kind"),
            paint.bold(&text(item, "key")),
            place.unwrap_or_default(),
            match item["conflict"].as_bool() {
                Some(true) => paint.bad(&format!(
                    "  made on version {}, at {} now",
                    item["baseVersion"], item["currentVersion"]
                )),
                _ => String::new(),
            }
        ));
        for operation in item["diff"].as_array().into_iter().flatten() {
            let value = match &operation["value"] {
                Value::Null => String::new(),
                value => format!(" {value}"),
            };
            lines.push(format!("    {} {}{value}", text(operation, "op"), text(operation, "path")));
        }
    }
    for approval in set["approvals"].as_array().into_iter().flatten() {
        let by: Vec<&str> =
            approval["by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        lines.push(format!(
            "  {}: {} of {} approvals{}",
            text(approval, "environment"),
            by.len(),
            approval["required"],
            if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) }
        ));
    }
    for event in set["events"].as_array().into_iter().flatten() {
        let said = text(event, "text");
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let line = format!(
            "{} {} by {}{said}",
            text(event, "at"),
            text(event, "kind"),
            text(event, "actor")
        );
        lines.push(format!("  {}", paint.dim(&line)));
    }
    lines.join("\n")
}

/// The flags that change somebody's answer, with whose and by which rule.
fn impact(paint: Paint, told: &Value) -> String {
    let mut lines = vec![format!(
        "{} of {} contexts are answered differently",
        paint.bold(&told["changed"].to_string()),
        told["contexts"],
    )];
    if told["complete"] == false {
        lines.push(paint.warn("  there was no time for all of them"));
    }
    for flag in told["flags"].as_array().into_iter().flatten() {
        if flag["changed"] == 0 {
            continue;
        }
        lines.push(format!(
            "  {}: {}{}",
            paint.bold(flag["flag"].as_str().unwrap_or_default()),
            flag["changed"],
            if flag["inDraft"] == true { "" } else { ", since it needs what changes" },
        ));
        for transition in flag["transitions"].as_array().into_iter().flatten() {
            let (from, to) = (served(&transition["from"]), served(&transition["to"]));
            lines.push(format!("    {from} → {to}: {}", transition["contexts"]));
            for example in transition["examples"].as_array().into_iter().flatten() {
                lines.push(paint.dim(&format!("      {example}")));
            }
        }
        if flag["others"].as_u64().is_some_and(|others| others > 0) {
            lines.push(format!("    in other ways: {}", flag["others"]));
        }
    }
    if let Some(count) = told["flagsLeftOut"].as_u64() {
        lines.push(paint.warn(&format!("  {count} more flags need what changes; not compared")));
    }
    lines.join("\n")
}

fn served(of: &Value) -> String {
    let text = |name: &str| of[name].as_str();
    let what = text("variant").or(text("errorCode")).unwrap_or("the caller's default");
    match text("rule") {
        Some(rule) => format!("{what} (rule {rule})"),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impact_names_the_flags_that_change_and_by_which_rule() {
        let told = json!({ "contexts": 5, "complete": true, "changed": 2, "flags": [
            { "flag": "banner", "inDraft": true, "changed": 2, "others": 1, "transitions": [
                { "from": { "variant": "off", "value": false },
                    "to": { "variant": "on", "value": true, "rule": "home" },
                    "contexts": 1, "examples": [{ "targetingKey": "bert" }] }] },
            { "flag": "same", "inDraft": true, "changed": 0, "others": 0, "transitions": [] },
            { "flag": "shelf", "inDraft": false, "changed": 1, "others": 0, "transitions": [
                { "from": {}, "to": { "errorCode": "FLAG_NOT_FOUND" }, "contexts": 1,
                    "examples": [] }] }] });
        assert_eq!(
            impact(Paint::plain(), &told),
            "2 of 5 contexts are answered differently\n  banner: 2\n    \
             off → on (rule home): 1\n      {\"targetingKey\":\"bert\"}\n    in other ways: 1\n  \
             shelf: 1, since it needs what changes\n    \
             the caller's default → FLAG_NOT_FOUND: 1"
        );
    }

    #[test]
    fn a_set_is_shown_with_its_differences_its_approvals_and_what_was_said() {
        let set = json!({ "number": 7, "title": "New checkout", "state": "conflict", "version": 4,
            "author": "ann", "description": "", "reason": "config \"a\" in \"production\"",
            "items": [{ "kind": "config", "environment": "production", "key": "a",
                "diff": [{ "op": "replace", "path": "/enabled", "value": true }],
                "conflict": true, "baseVersion": 1, "currentVersion": 2 }],
            "approvals": [{ "environment": "production", "required": 2, "by": ["bob"] }],
            "events": [{ "at": "2026-01-01T00:00:00Z", "kind": "commented", "actor": "eve",
                "text": "why?" }] });
        assert_eq!(
            readable(Paint::plain(), &set),
            "7  New checkout  conflict (version 4) by ann\n  config \"a\" in \"production\"\n  \
             config a in production  made on version 1, at 2 now\n    replace /enabled true\n  \
             production: 1 of 2 approvals (bob)\n  2026-01-01T00:00:00Z commented by eve: why?"
        );
    }
}
