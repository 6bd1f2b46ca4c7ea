//! `tidegate flag stale|describe|references|archive|unarchive|delete`: whose flags are, which of them
//! nobody seems to need, and how they go.

use clap::ValueEnum;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::connection::{Place, api_path, percent_encoded};
use crate::failure::{Exit, Failure};
use crate::paint::{Output, Paint, print, print_json, table};

/// `rules::model::Lifetime`, for the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lifetime {
    Temporary,
    Permanent,
}

impl From<Lifetime> for rules::model::Lifetime {
    fn from(lifetime: Lifetime) -> rules::model::Lifetime {
        match lifetime {
            Lifetime::Temporary => rules::model::Lifetime::Temporary,
            Lifetime::Permanent => rules::model::Lifetime::Permanent,
        }
    }
}

/// Why a flag is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Why {
    Any,
    Ended,
    Old,
    Unused,
    Settled,
}

/// Words for people; what is not given stays as it is.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Words {
    /// What it is for.
    #[arg(long)]
    description: Option<String>,
    /// Who answers for it: a person's address, or a team's name; '' takes it away.
    #[arg(long)]
    owner: Option<String>,
    /// A tag; all of them, once for each.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// How long it is meant to stay.
    #[arg(long)]
    lifetime: Option<Lifetime>,
    /// The day by which a temporary flag is meant to be gone, as 2027-01-31; '' takes it away.
    #[arg(long, value_name = "DAY")]
    expected_end: Option<String>,
}

impl Words {
    fn put_into(&self, definition: &mut Value) {
        let text = |value: &mut Value, given: &Option<String>| {
            if let Some(given) = given {
                *value = json!(given);
            }
        };
        text(&mut definition["description"], &self.description);
        text(&mut definition["owner"], &self.owner);
        if !self.tags.is_empty() {
            definition["tags"] = json!(self.tags);
        }
        if let Some(lifetime) = self.lifetime {
            definition["lifetime"] = json!(rules::model::Lifetime::from(lifetime));
            if lifetime == Lifetime::Permanent {
                definition["expectedEnd"] = Value::Null;
            }
        }
        if let Some(day) = &self.expected_end {
            definition["expectedEnd"] = if day.is_empty() { Value::Null } else { json!(day) };
        }
        if let Value::Object(fields) = definition {
            fields.retain(|_, value| !value.is_null());
        }
    }
}

fn resolved(place: &Place, rest: &[&str]) -> Result<(Client, String), Failure> {
    let (client, environment) = place.resolve()?;
    let mut segments = vec!["namespaces", &environment.namespace, "flags"];
    segments.extend(rest);
    Ok((client, api_path(&segments)))
}

pub async fn stale(
    why: Why,
    unused_days: Option<u16>,
    owner: Option<&str>,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, path) = resolved(place, &[])?;
    let why = why.to_possible_value().map(|value| value.get_name().to_owned());
    let mut path = format!("{path}?stale={}", why.unwrap_or_default());
    if let Some(days) = unused_days {
        path.push_str(&format!("&unused_days={days}"));
    }
    if let Some(owner) = owner {
        path.push_str(&format!("&owner={}", percent_encoded(owner)));
    }
    let items = client.list(&path).await?;
    if output == Output::Json {
        print_json(&Value::Array(items));
        return Ok(());
    }
    let mut rows = Vec::new();
    for item in &items {
        let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
        // One line for each reason; the flag's own words only in the first.
        let mut own = Some((text("key"), text("owner")));
        for stale in item["stale"].as_array().into_iter().flatten() {
            let (key, owner) = own.take().unwrap_or_default();
            let of = |name: &str| stale[name].as_str().unwrap_or_default().to_owned();
            rows.push(vec![key, owner, of("reason"), of("detail")]);
        }
    }
    match rows.is_empty() {
        true => print("no flag is stale"),
        false => print(&table(Paint::of_stdout(), &["KEY", "OWNER", "STALE", "BECAUSE"], &rows)),
    }
    Ok(())
}

pub async fn references(key: &str, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, path) = resolved(place, &[key, "references"])?;
    let body = client.get(&path).await?.body;
    if output == Output::Json {
        print_json(&body);
        return Ok(());
    }
    let row = |item: &Value| {
        let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
        let rules = item["rules"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let rules: Vec<&str> = rules.collect();
        let needs = if item["blocks"] == true { "yes" } else { "no" };
        let kind = text("kind").replace('-', " ");
        vec![kind, text("key"), text("environment"), rules.join(", "), needs.to_owned()]
    };
    let rows: Vec<Vec<String>> = body["items"].as_array().into_iter().flatten().map(row).collect();
    match rows.is_empty() {
        true => print(&format!("nothing refers to {key}")),
        false => {
            let head = ["WHAT", "KEY", "ENVIRONMENT", "IN RULES", "NEEDS IT"];
            print(&table(Paint::of_stdout(), &head, &rows));
        }
    }
    if body["more"] == true {
        print("and more");
    }
    Ok(())
}

pub async fn describe(
    key: &str,
    words: &Words,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, path) = resolved(place, &[key])?;
    let before = client.get(&path).await?;
    let mut definition = before.body;
    if let Value::Object(fields) = &mut definition {
        // What the server keeps beside what an author writes.
        for kept in ["version", "createdAt", "updatedAt", "stale", "lastEvaluatedAt"] {
            fields.remove(kept);
        }
    }
    words.put_into(&mut definition);
    let answer = client.put(&path, &definition, before.etag.as_deref()).await?;
    if answer.status == StatusCode::PRECONDITION_FAILED {
        let what = format!("somebody else changed {key:?} meanwhile");
        return Err(Failure::new(Exit::Conflict, what).mend("try again"));
    }
    done(key, answer, "described", output);
    Ok(())
}

/// Puts away, or takes back.
pub async fn step(
    key: &str,
    step: &str,
    told: &str,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, path) = resolved(place, &[key])?;
    let etag = client.get(&path).await?.etag.unwrap_or_default();
    let answer = client.post_over(&format!("{path}/{step}"), &json!({}), &etag).await?;
    done(key, answer, told, output);
    Ok(())
}

pub async fn delete(key: &str, yes: bool, place: &Place, output: Output) -> Result<(), Failure> {
    if !yes {
        let what = format!("{key} would be deleted for good, and its key never used again");
        return Err(Failure::usage(what)
            .mend("say --yes, or put it away so that it can come back: `tidegate flag archive`"));
    }
    let (client, path) = resolved(place, &[key])?;
    let answer = client.delete(&path).await?;
    done(key, answer, "deleted", output);
    Ok(())
}

fn done(key: &str, answer: Answer, told: &str, output: Output) {
    match output {
        Output::Json => print_json(&answer.body),
        Output::Text => print(&format!("{}  {told}", Paint::of_stdout().bold(key))),
    }
}
