//! The flags that `tidegate dev` starts with, written through the admin API like anybody's; and
//! `tidegate demo`, which writes them to a control that runs elsewhere.

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::connection::{Connection, Environment, api_path};
use crate::failure::{Exit, Failure};
use crate::paint::{Output, print, print_json};

pub const NAMESPACE: &str = "demo";
pub const ENVIRONMENT: &str = "production";

/// The OpenTelemetry demo's real flags (Apache-2.0, see NOTICE).
const OTEL_DEMO: &str = include_str!("../demo/otel-demo.flagd.json");
/// Flags that show targeting, splits, segments and prerequisites.
const NATIVE: &str = include_str!("../demo/native.json");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Native {
    segments: Vec<Value>,
    flags: Vec<Flag>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flag {
    definition: Value,
    config: Value,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate demo --url http://127.0.0.1:8080 --token-file owner-token

It makes the namespace `demo` with the environment `production`, and new keys each time. What is there
already stays as it is.")]
pub struct Demo {
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(command: Demo, output: Output) -> Result<(), Failure> {
    let client = command.connection.client()?;
    seed(&client).await?;
    let (server, browser) = (key(&client, "server").await?, key(&client, "browser").await?);
    match output {
        Output::Json => print_json(&json!({ "namespace": NAMESPACE, "environment": ENVIRONMENT,
            "server_key": server, "browser_key": browser })),
        Output::Text => print(&format!(
            "flags of    {NAMESPACE} / {ENVIRONMENT}\nserver key  {server}\nbrowser key {browser}"
        )),
    }
    Ok(())
}

pub fn environment() -> Environment {
    Environment { namespace: NAMESPACE.to_owned(), environment: ENVIRONMENT.to_owned() }
}

/// Writes namespace, environment, segments and flags. What is there already is left as it is, so
/// that a first start that was interrupted can be repeated.
pub async fn seed(client: &Client) -> Result<(), Failure> {
    let native: Native = serde_json::from_str(NATIVE)
        .map_err(|error| Failure::new(Exit::Failed, format!("the demo flags: {error}")))?;
    let at = environment();
    create(client, &api_path(&["namespaces"]), &json!({"key": NAMESPACE, "name": "Demo"})).await?;
    let environments = api_path(&["namespaces", NAMESPACE, "environments"]);
    create(client, &environments, &json!({"key": ENVIRONMENT, "name": "Production"})).await?;
    let import = format!("{}?format=flagd&dry_run=false", at.path(&["import"]));
    let imported = client.post_bytes(&import, OTEL_DEMO.as_bytes().to_vec()).await;
    let imported = imported.map_err(|failure| at_path(failure, &import))?.body;
    if let Some(refused) =
        imported["flags"].as_array().into_iter().flatten().find(|flag| flag["result"] == "refused")
    {
        return Err(Failure::new(Exit::Failed, format!("a demo flag was refused: {refused}")));
    }
    for segment in &native.segments {
        create(client, &at.path(&["segments"]), segment).await?;
    }
    for flag in &native.flags {
        create(client, &api_path(&["namespaces", NAMESPACE, "flags"]), &flag.definition).await?;
    }
    // Configurations after all definitions, because prerequisites name other flags.
    for flag in &native.flags {
        let key = flag.definition["key"].as_str().unwrap_or_default();
        let path = at.path(&["flags", key]);
        let etag = client.get(&path).await?.etag;
        let answer = client.put(&path, &flag.config, etag.as_deref()).await?;
        if answer.status == StatusCode::PRECONDITION_FAILED {
            return Err(Failure::new(Exit::Conflict, format!("{key} was changed meanwhile")));
        }
    }
    Ok(())
}

async fn create(client: &Client, path: &str, body: &Value) -> Result<(), Failure> {
    match client.post(path, body).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.exit == Exit::Conflict => Ok(()),
        Err(failure) => Err(at_path(failure, path)),
    }
}

fn at_path(mut failure: Failure, path: &str) -> Failure {
    failure.message = format!("the demo flags could not be written: {path}: {}", failure.message);
    failure
}

/// A new key of the demo environment, as its holder gets it.
pub async fn key(client: &Client, kind: &str) -> Result<String, Failure> {
    let body = json!({"kind": kind, "name": format!("demo, {kind}")});
    let answer = client.post(&environment().path(&["keys"]), &body).await?.body;
    answer["key"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(Exit::Failed, "control made a key and did not show it"))
}

#[cfg(test)]
mod tests {
    use rules::compile::{EnvironmentState, FlagState, SegmentState};

    use super::*;

    #[test]
    fn the_demo_flags_compile() {
        let native: Native = serde_json::from_str(NATIVE).unwrap();
        let mut state = EnvironmentState::default();
        for flag in native.flags {
            state.flags.push(FlagState {
                definition: serde_json::from_value(flag.definition).unwrap(),
                config: serde_json::from_value(flag.config).unwrap(),
            });
        }
        for mut segment in native.segments {
            let fields = segment.as_object_mut().unwrap();
            let has_included = fields.remove("included").is_some();
            let has_excluded = fields.remove("excluded").is_some();
            let segment = serde_json::from_value(segment).unwrap();
            state.segments.push(SegmentState { segment, has_included, has_excluded });
        }
        assert!(state.flags.len() >= 5);
        rules::compile::compile(&state).unwrap();
    }
}
