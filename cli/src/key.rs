//! `tidegate key …` and `tidegate edge-key …`: what callers show to edges, and edges to control.
//!
//! A key is shown once, on standard output, by the command that makes it.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::client::Client;
use crate::connection::{Connection, Place, api_path};
use crate::failure::Failure;
use crate::paint::Output;
use crate::tenant::{done, listed, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// For services: all flags.
    Server,
    /// For pages: flags whose `clients` lets them.
    Browser,
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Lists the keys of an environment, and when each was used last.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Makes a key, and shows it once.
    #[command(after_help = "Examples:
  tidegate key create server --name checkout
  tidegate key create browser --name web --origin https://shop.example.com --expires-at 2027-06-30T00:00:00Z")]
    Create {
        kind: Kind,
        /// For people.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Of browser keys: an origin that may use it, once for each; none: every origin may.
        #[arg(long = "origin")]
        origins: Vec<String>,
        /// From when on edges refuse it, RFC 3339.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        /// Requests in a second at each edge, instead of what that edge allows every key.
        #[arg(long, value_name = "REQUESTS")]
        rate_per_second: Option<u32>,
        #[command(flatten)]
        place: Place,
    },
    /// Makes a key's successor, and shows it once; the old key stays valid for a while.
    Rotate {
        /// The key's id.
        id: String,
        /// For how long both are valid [default: a day].
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u32>,
        #[command(flatten)]
        place: Place,
    },
    /// Revokes a key: edges refuse it with the next snapshot.
    Delete {
        /// The key's id.
        id: String,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
pub enum EdgeKey {
    /// Lists the keys of edges, and when each was used last.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes a key for edges, and shows it once.
    #[command(after_help = "Examples:
  tidegate edge-key create --name edge-1 --namespace shop
  tidegate edge-key create --name edge-2 --all")]
    Create {
        /// For people.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// A namespace that its edges may have, once for each.
        #[arg(long = "namespace", value_name = "KEY", required_unless_present = "all")]
        namespaces: Vec<String>,
        /// Its edges may have all namespaces, those too that are made later.
        #[arg(long, conflicts_with = "namespaces")]
        all: bool,
        /// From when on control refuses it, RFC 3339.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes a key's successor, and shows it once; the old key stays valid for a while.
    Rotate {
        /// The key's id.
        id: String,
        /// For how long both are valid [default: a day].
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u32>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Revokes a key: control refuses its edges from now on.
    Delete {
        /// The key's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub async fn key(command: Key, output: Output) -> Result<(), Failure> {
    match command {
        Key::List { place } => {
            let (client, environment) = place.resolve()?;
            let items = client.list(&environment.path(&["keys"])).await?;
            let row = |item: &Value| {
                vec![
                    text(item, "id"),
                    text(item, "kind"),
                    text(item, "name"),
                    until(item),
                    last_used(item),
                ]
            };
            let head = ["ID", "KIND", "NAME", "VALID UNTIL", "LAST USED"];
            listed(&items, &head, row, "no keys", output);
            Ok(())
        }
        Key::Create { kind, name, origins, expires_at, rate_per_second, place } => {
            let (client, environment) = place.resolve()?;
            let kind = match kind {
                Kind::Server => "server",
                Kind::Browser => "browser",
            };
            let mut body = json!({ "kind": kind, "name": name, "origins": origins });
            given(&mut body, "expiresAt", expires_at);
            given(&mut body, "ratePerSecond", rate_per_second);
            make(&client, &environment.path(&["keys"]), &body, output).await
        }
        Key::Rotate { id, overlap, place } => {
            let (client, environment) = place.resolve()?;
            rotate(&client, &environment.path(&["keys", &id, "rotate"]), overlap, output).await
        }
        Key::Delete { id, place } => {
            let (client, environment) = place.resolve()?;
            let gone = client.delete(&environment.path(&["keys", &id])).await?.body;
            done(&gone, &format!("{id} is revoked"), output);
            Ok(())
        }
    }
}

pub async fn edge_key(command: EdgeKey, output: Output) -> Result<(), Failure> {
    match command {
        EdgeKey::List { connection } => {
            let items = connection.client()?.list(&api_path(&["edge-keys"])).await?;
            let row = |item: &Value| {
                let namespaces = match &item["namespaces"] {
                    Value::String(all) => all.clone(),
                    names => {
                        let names = names.as_array().into_iter().flatten();
                        names.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
                    }
                };
                vec![text(item, "id"), text(item, "name"), namespaces, until(item), last_used(item)]
            };
            let head = ["ID", "NAME", "NAMESPACES", "VALID UNTIL", "LAST USED"];
            listed(&items, &head, row, "no keys of edges", output);
            Ok(())
        }
        EdgeKey::Create { name, namespaces, all, expires_at, connection } => {
            let namespaces = if all { json!("all") } else { json!(namespaces) };
            let mut body = json!({ "name": name, "namespaces": namespaces });
            given(&mut body, "expiresAt", expires_at);
            make(&connection.client()?, &api_path(&["edge-keys"]), &body, output).await
        }
        EdgeKey::Rotate { id, overlap, connection } => {
            let path = api_path(&["edge-keys", &id, "rotate"]);
            rotate(&connection.client()?, &path, overlap, output).await
        }
        EdgeKey::Delete { id, connection } => {
            let gone = connection.client()?.delete(&api_path(&["edge-keys", &id])).await?.body;
            done(&gone, &format!("{id} is revoked"), output);
            Ok(())
        }
    }
}

fn given<T: serde::Serialize>(body: &mut Value, name: &str, value: Option<T>) {
    if let Some(value) = value {
        body[name] = json!(value);
    }
}

fn until(item: &Value) -> String {
    match (item["expiresAt"].as_str(), item["expired"] == true) {
        (None, _) => "it is deleted".to_owned(),
        (Some(at), false) => at.to_owned(),
        (Some(at), true) => format!("{at} (over)"),
    }
}

fn last_used(item: &Value) -> String {
    item["lastUsedAt"].as_str().unwrap_or("never").to_owned()
}

async fn rotate(
    client: &Client,
    path: &str,
    overlap: Option<u32>,
    output: Output,
) -> Result<(), Failure> {
    let mut body = json!({});
    given(&mut body, "overlapSeconds", overlap);
    make(client, path, &body, output).await
}

async fn make(client: &Client, path: &str, body: &Value, output: Output) -> Result<(), Failure> {
    let made = client.post(path, body).await?.body;
    let told = format!("{}\nkey, shown once: {}", text(&made, "id"), text(&made, "key"));
    done(&made, &told, output);
    Ok(())
}
