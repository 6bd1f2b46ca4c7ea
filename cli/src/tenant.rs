//! `tidegate namespace …` and `tidegate environment …`: what flags live in.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::connection::{Connection, Place, api_path};
use crate::failure::Failure;
use crate::paint::{Output, Paint, print, print_json, table};

#[derive(Debug, Subcommand)]
pub enum Namespace {
    /// Lists the namespaces that one may see.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes a namespace.
    #[command(after_help = "Examples:
  tidegate namespace create shop --name 'The shop'")]
    Create {
        /// Its key: 1 to 64 of a-z, 0-9, '-', '_' and '.'.
        key: String,
        /// For people.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Deletes a namespace with all that is in it, once no key of its environments is valid.
    Delete {
        /// Its key.
        key: String,
        /// Yes, for good.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Subcommand)]
pub enum Environment {
    /// Lists the environments of a namespace, and what is published of them.
    List {
        /// Namespace.
        #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
        namespace: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes an environment, in which every flag is off at first.
    Create {
        /// Its key: 1 to 64 of a-z, 0-9, '-', '_' and '.'.
        key: String,
        /// For people.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Namespace.
        #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
        namespace: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Shows how many approvals a change of an environment takes, or says it.
    #[command(after_help = "Examples:
  tidegate environment protect --environment production
  tidegate environment protect --environment production --approvals 2
  tidegate environment protect --environment production --approvals 0   # as before")]
    Protect {
        /// How many people besides the author have to approve.
        #[arg(long, value_parser = clap::value_parser!(u8).range(0..=5))]
        approvals: Option<u8>,
        #[command(flatten)]
        place: Place,
    },
    /// Deletes an environment, once none of its keys is valid and its edges serve that.
    Delete {
        /// Its key.
        key: String,
        /// Yes, for good.
        #[arg(long)]
        yes: bool,
        /// Namespace.
        #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
        namespace: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub async fn namespace(command: Namespace, output: Output) -> Result<(), Failure> {
    match command {
        Namespace::List { connection } => {
            let items = connection.client()?.list(&api_path(&["namespaces"])).await?;
            let row = |item: &Value| vec![text(item, "key"), text(item, "name")];
            listed(&items, &["KEY", "NAME"], row, "no namespaces", output);
        }
        Namespace::Create { key, name, connection } => {
            let body = json!({ "key": key, "name": name });
            let made = connection.client()?.post(&api_path(&["namespaces"]), &body).await?.body;
            done(&made, &format!("{key} is made"), output);
        }
        Namespace::Delete { key, yes, connection } => {
            sure(yes, &key, "with its environments, flags and members")?;
            let gone = connection.client()?.delete(&api_path(&["namespaces", &key])).await?.body;
            done(&gone, &format!("{key} is deleted"), output);
        }
    }
    Ok(())
}

pub async fn environment(command: Environment, output: Output) -> Result<(), Failure> {
    match command {
        Environment::List { namespace, connection } => {
            let path = api_path(&["namespaces", &namespace, "environments"]);
            let items = connection.client()?.list(&path).await?;
            let row = |item: &Value| {
                let published = match &item["published"]["revision"] {
                    Value::Null => "nothing yet".to_owned(),
                    revision => revision.to_string(),
                };
                vec![text(item, "key"), text(item, "name"), item["revision"].to_string(), published]
            };
            let head = ["KEY", "NAME", "REVISION", "PUBLISHED"];
            listed(&items, &head, row, "no environments", output);
        }
        Environment::Create { key, name, namespace, connection } => {
            let path = api_path(&["namespaces", &namespace, "environments"]);
            let body = json!({ "key": key, "name": name });
            let made = connection.client()?.post(&path, &body).await?.body;
            done(&made, &format!("{key} is made in {namespace}"), output);
        }
        Environment::Protect { approvals, place } => {
            let (client, environment) = place.resolve()?;
            let path = environment.path(&["protection"]);
            let shown = match approvals {
                None => client.get(&path).await?.body,
                Some(approvals) => {
                    client.put(&path, &json!({ "approvals": approvals }), Some("*")).await?.body
                }
            };
            let told = match shown["approvals"].as_i64() {
                Some(0) => "takes changes without approval".to_owned(),
                Some(1) => "takes changes after 1 approval".to_owned(),
                approvals => format!("takes changes after {} approvals", approvals.unwrap_or(0)),
            };
            done(&shown, &format!("{} {told}", environment.environment), output);
        }
        Environment::Delete { key, yes, namespace, connection } => {
            sure(yes, &key, "with its configurations, segments and keys")?;
            let path = api_path(&["namespaces", &namespace, "environments", &key]);
            let gone = connection.client()?.delete(&path).await?.body;
            done(&gone, &format!("{key} is deleted"), output);
        }
    }
    Ok(())
}

fn sure(yes: bool, key: &str, with: &str) -> Result<(), Failure> {
    match yes {
        true => Ok(()),
        false => {
            let what = format!("{key} would be deleted for good, {with}");
            Err(Failure::usage(what).mend("say --yes"))
        }
    }
}

pub fn text(item: &Value, name: &str) -> String {
    item[name].as_str().unwrap_or_default().to_owned()
}

/// As a table for people, or as they came.
pub fn listed(
    items: &[Value],
    head: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
    none: &str,
    output: Output,
) {
    if output == Output::Json {
        return print_json(&json!(items));
    }
    match items.is_empty() {
        true => print(none),
        false => {
            let rows: Vec<Vec<String>> = items.iter().map(row).collect();
            print(&table(Paint::of_stdout(), head, &rows));
        }
    }
}

pub fn done(body: &Value, told: &str, output: Output) {
    match output {
        Output::Json => print_json(body),
        Output::Text => print(told),
    }
}
