//! `tidegate policy …`: wasm policies, from a template to what edges counted.
//!
//! `check` and `test` ask nobody: they run the sandbox that control admits with and edges run with,
//! in the same helper process. A module may be given as wasm or in its text format.

mod diff;
mod kits;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{Vector, Verdict};
use serde_json::{Value, json};

use crate::client::Client;
use crate::connection::{Environment, Place, api_path};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::paint::{Output, Paint, grouped, print, print_json, table};

use kits::Language;

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Writes a policy that works, with its test vectors, into a new folder: a template to start from.
    #[command(after_help = "Examples:
  tidegate policy new fraud-guard --language rust
  tidegate policy new fraud-guard && tidegate policy test fraud-guard/policy.wat")]
    New {
        /// The folder, which is made.
        folder: PathBuf,
        /// What it is written in.
        #[arg(short, long, default_value = "wat")]
        language: Language,
    },
    /// Looks at a module's shape, without compiling it.
    Check {
        /// A module, as wasm or in its text format.
        module: PathBuf,
    },
    /// Runs a module as control would to admit it: each vector twice, under the budget of production.
    Test {
        /// A module, as wasm or in its text format.
        module: PathBuf,
        /// A JSON list of `{name, input, expect?}`.
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
    },
    /// Uploads a module as a version of a policy; with vectors, control runs them too.
    #[command(after_help = "Examples:
  tidegate policy upload fraud-guard policy.wasm --vectors vectors.json
  tidegate policy upload fraud-guard policy.wasm --vectors vectors.json --pin")]
    Upload {
        /// The policy's name.
        name: String,
        /// A module, as wasm or in its text format.
        module: PathBuf,
        /// A JSON list of `{name, input, expect?}`.
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
        /// Pins the version in the environment at once, if it is admitted.
        #[arg(long)]
        pin: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Pins a version in an environment: rules call it from then on.
    Pin {
        /// The policy's name.
        name: String,
        /// The version's digest, or as much of its beginning as no other version has.
        digest: String,
        #[command(flatten)]
        place: Place,
    },
    /// Unpins a policy that no rule calls.
    Unpin {
        /// The policy's name.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Runs a version beside the pinned one, on a share of its calls; nothing of it is served.
    #[command(after_help = "Examples:
  tidegate policy shadow fraud-guard 3f9a --percent 10
  tidegate policy stats
  tidegate policy promote fraud-guard")]
    Shadow {
        /// The policy's name.
        name: String,
        /// The version's digest or its beginning; without one, the shadow that runs is ended.
        digest: Option<String>,
        /// Of the calls.
        #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100))]
        percent: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Pins the version that runs as the shadow.
    Promote {
        /// The policy's name.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Pins the version that was pinned before.
    Rollback {
        /// The policy's name.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Lists policies, or the versions of one.
    List {
        /// The policy's name; all policies without it.
        name: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Shows what differs between two versions: what they read, their size, their fuel.
    #[command(after_help = "Examples:
  tidegate policy diff fraud-guard 3f9a         # the version that is pinned, and 3f9a
  tidegate policy diff fraud-guard 3f9a 77c0")]
    Diff {
        /// The policy's name.
        name: String,
        /// A version's digest or its beginning.
        digest: String,
        /// Another one; without it, DIGEST is compared with the version that is pinned.
        other: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// What edges counted of the policies that an environment pins.
    Stats {
        #[command(flatten)]
        place: Place,
    },
}

pub async fn run(command: Policy, output: Output) -> Result<(), Failure> {
    match command {
        Policy::New { folder, language } => new(&folder, language, output),
        Policy::Check { module } => check(&module, output),
        Policy::Test { module, vectors } => test(&module, vectors.as_deref(), output),
        Policy::Upload { name, module, vectors, pin, place } => {
            upload(&name, &module, vectors.as_deref(), pin, &place, output).await
        }
        Policy::Pin { name, digest, place } => {
            let (client, environment) = place.resolve()?;
            let digest = whole(&client, &environment, &name, &digest).await?;
            pin(&client, &environment, &name, &json!({ "digest": digest }), output).await
        }
        Policy::Unpin { name, place } => {
            let (client, environment) = place.resolve()?;
            client.delete(&environment.path(&["policies", &name])).await?;
            said(&format!("{name} is not pinned any more"), &json!({}), output);
            Ok(())
        }
        Policy::Shadow { name, digest, percent, place } => {
            shadow(&name, digest.as_deref(), percent, &place, output).await
        }
        Policy::Promote { name, place } => act(&name, "promote", &place, output).await,
        Policy::Rollback { name, place } => act(&name, "rollback", &place, output).await,
        Policy::List { name, place } => list(name.as_deref(), &place, output).await,
        Policy::Diff { name, digest, other, place } => {
            diff(&name, &digest, other.as_deref(), &place, output).await
        }
        Policy::Stats { place } => stats(&place, output).await,
    }
}

fn said(text: &str, body: &Value, output: Output) {
    match output {
        Output::Text => print(text),
        Output::Json => print_json(body),
    }
}

fn new(folder: &Path, language: Language, output: Output) -> Result<(), Failure> {
    let next = kits::write(folder, language)?;
    said(&next.join("\n  "), &json!({ "folder": folder, "next": next[1..] }), output);
    Ok(())
}

fn module(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = files::read(path)?;
    if bytes.starts_with(b"\0asm") {
        return Ok(bytes);
    }
    let parsed = wat::parse_bytes(&bytes).map(std::borrow::Cow::into_owned);
    parsed.map_err(|error| {
        let what = format!("{} is neither wasm nor its text format: {error}", path.display());
        Failure::new(Exit::Refused, what)
    })
}

fn read_vectors(path: Option<&Path>) -> Result<Vec<Vector>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    serde_json::from_value(files::read_json(path)?).map_err(|error| {
        let what = format!("{} is no list of vectors: {error}", path.display());
        Failure::new(Exit::Refused, what)
    })
}

fn check(path: &Path, output: Output) -> Result<(), Failure> {
    match sandbox::policy::check(&module(path)?) {
        Ok(shape) => {
            let text = format!("the shape is fine: {} functions", shape.functions);
            said(&text, &json!(shape), output);
            Ok(())
        }
        Err(refused) => Err(Failure::new(Exit::Refused, refused.to_string())),
    }
}

fn test(path: &Path, vectors: Option<&Path>, output: Output) -> Result<(), Failure> {
    let (wasm, vectors) = (module(path)?, read_vectors(vectors)?);
    let verdict = match Helper::of_this_program().admit(&wasm, &vectors) {
        Ok(verdict) => verdict,
        Err(HelperError::Refused(refused)) => {
            return Err(Failure::new(Exit::Refused, refused.to_string()));
        }
        Err(error) => return Err(Failure::new(Exit::Failed, error.to_string())),
    };
    match output {
        Output::Json => print_json(&json!(verdict)),
        Output::Text => print(&told(&verdict)),
    }
    match verdict.admitted {
        true => Ok(()),
        false => {
            let why = verdict.refused.map(|refused| refused.to_string());
            Err(Failure::new(Exit::Refused, why.unwrap_or_else(|| "not admitted".to_owned())))
        }
    }
}

fn told(verdict: &Verdict) -> String {
    let paint = Paint::of_stdout();
    let mut text = String::new();
    for vector in &verdict.vectors {
        let fuel = grouped(vector.fuel);
        let (mark, name) = (paint.mark(vector.passed), &vector.name);
        text.push_str(&format!("{mark} {name}  {fuel} fuel, {} µs\n", vector.took_us));
        if let Some(fault) = &vector.fault {
            text.push_str(&format!("    {fault}\n"));
        }
        if !vector.log.is_empty() {
            text.push_str(&format!("    log: {}\n", vector.log));
        }
    }
    let reads = match verdict.attributes.is_empty() {
        true => "no attributes".to_owned(),
        false => verdict.attributes.join(", "),
    };
    text.push_str(&format!("reads {reads}; compiled in {} ms", verdict.compile_ms));
    text
}

async fn upload(
    name: &str,
    path: &Path,
    vectors: Option<&Path>,
    pinned: bool,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (wasm, vectors) = (module(path)?, read_vectors(vectors)?);
    let (client, environment) = place.resolve()?;
    let namespace = environment.namespace.as_str();
    let versions = api_path(&["namespaces", namespace, "policies", name, "versions"]);
    let mut body = client.post_wasm(&versions, wasm).await?.body;
    let digest = body["digest"].as_str().unwrap_or_default().to_owned();
    if !vectors.is_empty() {
        let path = format!("{versions}/{digest}/vectors");
        body = client.put(&path, &json!({ "vectors": vectors }), None).await?.body;
    }
    let mut text = format!("{name} {digest}");
    if pinned {
        body["pin"] = put_pin(&client, &environment, name, &json!({ "digest": digest })).await?;
        text = format!("{text}\n{}", pinned_at(name, &body["pin"]));
    }
    said(&text, &body, output);
    Ok(())
}

/// A digest from its beginning.
async fn whole(
    client: &Client,
    environment: &Environment,
    name: &str,
    begins: &str,
) -> Result<String, Failure> {
    if begins.len() == 64 {
        return Ok(begins.to_owned());
    }
    let path = api_path(&["namespaces", &environment.namespace, "policies", name]);
    let body = client.get(&path).await?.body;
    let versions = body["versions"].as_array().cloned().unwrap_or_default();
    let digests: Vec<&str> =
        versions.iter().filter_map(|version| version["digest"].as_str()).collect();
    let found: Vec<&&str> = digests.iter().filter(|digest| digest.starts_with(begins)).collect();
    match found.as_slice() {
        [one] => Ok((**one).to_owned()),
        [] => {
            let what = format!("no version of {name} begins with {begins:?}");
            Err(Failure::new(Exit::NotFound, what)
                .mend(format!("`tidegate policy list {name}` shows them")))
        }
        more => {
            let what = format!("{} versions of {name} begin with {begins:?}", more.len());
            Err(Failure::usage(what))
        }
    }
}

/// What is pinned, or none.
async fn pinned(
    client: &Client,
    environment: &Environment,
    name: &str,
) -> Result<Option<Value>, Failure> {
    let body = client.get(&environment.path(&["policies"])).await?.body;
    let items = body["items"].as_array().cloned().unwrap_or_default();
    Ok(items.into_iter().find(|item| item["name"] == name))
}

async fn pin(
    client: &Client,
    environment: &Environment,
    name: &str,
    body: &Value,
    output: Output,
) -> Result<(), Failure> {
    let pin = put_pin(client, environment, name, body).await?;
    said(&pinned_at(name, &pin), &pin, output);
    Ok(())
}

/// A pin says the whole of what is pinned, so it means the same over whatever is there.
async fn put_pin(
    client: &Client,
    environment: &Environment,
    name: &str,
    body: &Value,
) -> Result<Value, Failure> {
    let path = environment.path(&["policies", name]);
    Ok(client.put(&path, body, Some("*")).await?.body)
}

fn pinned_at(name: &str, pin: &Value) -> String {
    format!("{name} is pinned at {}", short(&pin["digest"]))
}

async fn shadow(
    name: &str,
    digest: Option<&str>,
    percent: u32,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let there = pinned(&client, &environment, name).await?.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("{name} is not pinned in this environment"))
    })?;
    let mut body = json!({ "digest": there["digest"] });
    if let Some(digest) = digest {
        let digest = whole(&client, &environment, name, digest).await?;
        body["shadow"] = json!({ "digest": digest, "share": percent * 1_000 });
    }
    pin(&client, &environment, name, &body, output).await
}

async fn act(name: &str, what: &str, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let path = environment.path(&["policies", name, what]);
    let body = client.post(&path, &json!({})).await?.body;
    said(&pinned_at(name, &body), &body, output);
    Ok(())
}

fn short(digest: &Value) -> String {
    digest.as_str().unwrap_or_default().chars().take(12).collect()
}

async fn list(name: Option<&str>, place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let policies = ["namespaces", environment.namespace.as_str(), "policies"];
    let paint = Paint::of_stdout();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(name) = name else {
        let items = client.list(&api_path(&policies)).await?;
        let rows: Vec<Vec<String>> =
            items.iter().map(|item| vec![text(&item["name"]), text(&item["createdAt"])]).collect();
        said(&table(paint, &["POLICY", "SINCE"], &rows), &json!(items), output);
        return Ok(());
    };
    let path = api_path(&[policies.as_slice(), &[name]].concat());
    let body = client.get(&path).await?.body;
    let pins = body["pins"].as_array().cloned().unwrap_or_default();
    let versions = body["versions"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = versions
        .iter()
        .map(|version| {
            let at: Vec<String> = pins
                .iter()
                .filter(|pin| pin["digest"] == version["digest"])
                .map(|pin| text(&pin["environment"]))
                .collect();
            vec![
                short(&version["digest"]),
                version["bytes"].to_string(),
                text(&version["uploadedAt"]),
                text(&version["uploadedBy"]),
                at.join(", "),
            ]
        })
        .collect();
    let head = ["VERSION", "BYTES", "UPLOADED", "BY", "PINNED IN"];
    said(&table(paint, &head, &rows), &body, output);
    Ok(())
}

async fn diff(
    name: &str,
    digest: &str,
    other: Option<&str>,
    place: &Place,
    output: Output,
) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let (before, after) = match other {
        Some(other) => (digest.to_owned(), other),
        None => {
            let there = pinned(&client, &environment, name).await?.ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("{name} is not pinned in this environment"))
                    .mend("name both versions")
            })?;
            (there["digest"].as_str().unwrap_or_default().to_owned(), digest)
        }
    };
    let mut versions = Vec::new();
    for digest in [before.as_str(), after] {
        let digest = whole(&client, &environment, name, digest).await?;
        let policy = ["namespaces", &environment.namespace, "policies", name];
        let path = api_path(&[policy.as_slice(), &["versions", &digest]].concat());
        versions.push(client.get(&path).await?.body);
    }
    let told = match versions.as_slice() {
        [before, after] => diff::table_of(before, after),
        _ => None,
    };
    let text = told.unwrap_or_else(|| "they are the same in all that is known of them".to_owned());
    said(&text, &json!(versions), output);
    Ok(())
}

async fn stats(place: &Place, output: Output) -> Result<(), Failure> {
    let (client, environment) = place.resolve()?;
    let body = client.get(&environment.path(&["policies"])).await?.body;
    let mut rows = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for pin in body["items"].as_array().into_iter().flatten() {
        for edge in pin["edges"].as_array().into_iter().flatten() {
            let faults = edge["faults"].as_object().map_or(String::new(), |faults| {
                let each: Vec<String> =
                    faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
                each.join(", ")
            });
            let shadow = &edge["shadow"];
            let compared = match shadow.is_object() {
                true => format!("{} same, {} different", shadow["same"], shadow["different"]),
                false => String::new(),
            };
            let (calls, micros) =
                (edge["calls"].as_u64().unwrap_or(0), edge["micros"].as_u64().unwrap_or(0));
            rows.push(vec![
                text(&pin["name"]),
                text(&edge["edge"]),
                short(&edge["digest"]),
                text(&edge["state"]),
                grouped(calls),
                format!("{} µs", micros.checked_div(calls).unwrap_or(0)),
                faults,
                compared,
            ]);
        }
    }
    let head = ["POLICY", "EDGE", "VERSION", "STATE", "CALLS", "EACH", "FAULTS", "SHADOW"];
    said(&table(Paint::of_stdout(), &head, &rows), &body, output);
    Ok(())
}
