//! `tidegate health`: whether a server is ready, as an exit code. Container images have no curl.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::client::{http, unreachable};
use crate::failure::{Exit, Failure};
use crate::paint::{Output, print, print_json};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate health http://127.0.0.1:8080    # control
  tidegate health http://127.0.0.1:8016    # an edge")]
pub struct Health {
    /// Address of the server.
    #[arg(
        env = "TIDEGATE_HEALTH_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    /// Seconds to wait for its answer.
    #[arg(long, value_name = "S", default_value_t = 3)]
    timeout: u64,
}

pub async fn run(arguments: Health, output: Output) -> Result<(), Failure> {
    let url = format!("{}/readyz", arguments.url.trim_end_matches('/'));
    let asked = http(&url)?.get(&url).timeout(Duration::from_secs(arguments.timeout.max(1)));
    let unreachable = |error| Failure { mend: None, ..unreachable(&url, &error) };
    let answer = asked.send().await.map_err(unreachable)?;
    let status = answer.status();
    let text = answer.text().await.map_err(unreachable)?;
    let says = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if status != StatusCode::OK {
        return Err(Failure::new(Exit::Failed, format!("{url} is not ready ({status}): {says}")));
    }
    match output {
        Output::Text => print("ready"),
        Output::Json => print_json(&json!({ "ready": true, "says": says })),
    }
    Ok(())
}
