//! `tidegate eval`: what would this subject get, and why. Asks control, which evaluates with the
//! code that edges run; nothing is counted or stored. `--at-edge` asks the edge itself instead.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::client;
use crate::connection::{Place, percent_encoded};
use crate::failure::{Exit, Failure};
use crate::paint::{Output, Paint, print, print_json};
use crate::{files, trace};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate eval checkout --targeting-key user-1 --attr country=DE --attr age=41 --explain
  tidegate eval --context '{\"targetingKey\": \"user-1\", \"plan\": \"gold\"}'
  tidegate eval checkout --draft checkout.json --explain    # before it is live
  tidegate eval checkout --targeting-key user-1 --at-edge

An attribute's value is read as JSON if it is JSON (41, true, [\"a\"]), else as text.")]
pub struct Eval {
    /// The flag's key; every flag unless given.
    flag: Option<String>,
    /// Prints every step that led to the answer.
    #[arg(long)]
    explain: bool,
    /// The context as a JSON object.
    #[arg(short, long, value_name = "JSON", conflicts_with = "context_file")]
    context: Option<String>,
    /// The context from a file; - is standard input.
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,
    /// The subject; the context's targetingKey.
    #[arg(short = 'k', long, value_name = "KEY")]
    targeting_key: Option<String>,
    /// An attribute of the context; may be given many times.
    #[arg(short, long = "attr", value_name = "NAME=VALUE")]
    attributes: Vec<String>,
    /// The time to evaluate for, RFC 3339; the server's now unless given.
    #[arg(long, value_name = "TIME")]
    now: Option<String>,
    /// A configuration of the flag that is not live yet.
    #[arg(long, value_name = "FILE", requires = "flag")]
    draft: Option<PathBuf>,
    /// Asks the edge over OFREP instead, with a server or browser key.
    #[arg(long, conflicts_with_all = ["explain", "draft", "now"])]
    at_edge: bool,
    /// Address of the edge, for --at-edge.
    #[arg(long, env = "TIDEGATE_EDGE_URL", value_name = "URL", requires = "at_edge")]
    edge_url: Option<String>,
    /// Server or browser key, for --at-edge. Prefer the variable.
    #[arg(long, env = "TIDEGATE_KEY", value_name = "KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub async fn run(command: Eval, output: Output) -> Result<(), Failure> {
    let context = context(&command)?;
    if command.at_edge {
        return at_edge(&command, &context, output).await;
    }
    let (client, environment) = command.place.resolve()?;
    let mut body = Map::new();
    if let Some(flag) = &command.flag {
        body.insert("flag".to_owned(), json!(flag));
    }
    body.insert("context".to_owned(), context);
    if let Some(now) = &command.now {
        body.insert("now".to_owned(), json!(now));
    }
    if let Some(draft) = &command.draft {
        body.insert("draft".to_owned(), json!({"config": files::read_json(draft)?}));
    }
    let body = client.post(&environment.path(&["evaluate"]), &Value::Object(body)).await?.body;
    let results = body.get("results").and_then(Value::as_array).cloned().unwrap_or_default();
    if output == Output::Json {
        print_json(&body);
    } else {
        let paint = Paint::of_stdout();
        let texts: Vec<String> = results
            .iter()
            .map(|result| {
                if command.explain {
                    trace::explained(paint, result)
                } else {
                    trace::answer(paint, result) + "\n"
                }
            })
            .collect();
        print(&texts.join(if command.explain { "\n" } else { "" }));
    }
    match &command.flag {
        Some(_) => exit_of(results.first()),
        None => Ok(()),
    }
}

/// One flag that could not be evaluated fails the command, so that a script notices.
fn exit_of(result: Option<&Value>) -> Result<(), Failure> {
    let Some(code) = result.and_then(|result| result.get("errorCode")).and_then(Value::as_str)
    else {
        return Ok(());
    };
    let exit = if code == "FLAG_NOT_FOUND" { Exit::NotFound } else { Exit::Failed };
    Err(Failure::new(exit, format!("the evaluation gave {code}")))
}

fn context(command: &Eval) -> Result<Value, Failure> {
    let given = match (&command.context, &command.context_file) {
        (Some(text), _) => serde_json::from_str(text)
            .map_err(|error| Failure::usage(format!("--context is not JSON: {error}")))?,
        (None, Some(path)) => files::read_json(path)?,
        (None, None) => Value::Object(Map::new()),
    };
    let Value::Object(mut context) = given else {
        return Err(Failure::usage("the context must be a JSON object"));
    };
    if let Some(key) = &command.targeting_key {
        context.insert("targetingKey".to_owned(), json!(key));
    }
    for attribute in &command.attributes {
        let (name, value) = attribute.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--attr {attribute:?} is not written NAME=VALUE"))
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        context.insert(name.to_owned(), value);
    }
    Ok(Value::Object(context))
}

async fn at_edge(command: &Eval, context: &Value, output: Output) -> Result<(), Failure> {
    let dev = command.place.connection.dev_file()?;
    let url = match (&command.edge_url, &dev) {
        (Some(url), _) => url.clone(),
        (None, Some(dev)) => dev.edge_url.clone(),
        (None, None) => return Err(Failure::usage("which edge?").mend("give --edge-url")),
    };
    let url = url.trim_end_matches('/').to_owned();
    let dev = dev.filter(|dev| dev.edge_url.trim_end_matches('/') == url);
    let key = match (&command.key, dev) {
        (Some(key), _) => key.clone(),
        (None, Some(dev)) => dev.server_key,
        (None, None) => {
            return Err(Failure::usage(format!("no key for {url}")).mend("set TIDEGATE_KEY"));
        }
    };
    let mut path = format!("{url}/ofrep/v1/evaluate/flags");
    if let Some(flag) = &command.flag {
        path.push('/');
        path.push_str(&percent_encoded(flag));
    }
    let answer = client::http(&url)?
        .post(&path)
        .bearer_auth(&key)
        .json(&json!({"context": context}))
        .send()
        .await
        .map_err(|error| client::unreachable(&url, &error))?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(|error| client::unreachable(&url, &error))?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let of_a_flag = body.get("key").is_some();
    if !status.is_success() && !of_a_flag {
        return Err(client::problem(status, &bytes, &url));
    }
    let results = match body.get("flags").and_then(Value::as_array) {
        Some(flags) => flags.clone(),
        None => vec![body.clone()],
    };
    match output {
        Output::Json => print_json(&body),
        Output::Text => {
            let paint = Paint::of_stdout();
            let lines: Vec<String> =
                results.iter().map(|result| trace::answer(paint, result)).collect();
            print(&lines.join("\n"));
        }
    }
    match &command.flag {
        Some(_) => exit_of(results.first()),
        None => Ok(()),
    }
}
