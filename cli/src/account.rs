//! `tidegate setup`: the first owner of an installation.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::client::Client;
use crate::connection::{DEFAULT_URL, checked_url, secret_from_file};
use crate::failure::{Exit, Failure};
use crate::files::write_private;
use crate::paint::{Output, print, print_json};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate setup --token-file /var/lib/tidegate/setup-token --email ann@example.com
  tidegate setup --token-file setup-token --email ann@example.com --password-file owner-password \\
    --personal-token-file owner-token

Control's first start makes the setup token and says where it is. It is good once. The second form asks
nobody anything, and does nothing where the personal token is there already.")]
pub struct Setup {
    /// Address of the control plane.
    #[arg(long, env = "TIDEGATE_URL", value_name = "URL", default_value = DEFAULT_URL)]
    url: String,
    /// File that holds the setup token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// What the owner signs in with.
    #[arg(long, value_name = "ADDRESS")]
    email: String,
    /// For people.
    #[arg(long, value_name = "NAME", default_value = "")]
    name: String,
    /// File of the owner's password, 12 to 128 characters [default: the first line of standard input].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Makes a personal token of the owner that may do everything for 90 days, and writes it here.
    #[arg(long, value_name = "FILE")]
    personal_token_file: Option<PathBuf>,
}

pub fn password(file: Option<&Path>) -> Result<String, Failure> {
    if let Some(file) = file {
        return secret_from_file(file);
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::new(Exit::Failed, format!("no password: {error}")))?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::usage("no password").mend("give --password-file, or a line of input")),
        password => Ok(password.to_owned()),
    }
}

pub async fn setup(arguments: Setup, output: Output) -> Result<(), Failure> {
    let url = checked_url(&arguments.url)?;
    let kept = arguments.personal_token_file.as_deref();
    if let Some(file) = kept.filter(|file| file.exists()) {
        secret_from_file(file)?;
        done(&format!("{} is there already; nothing was done", file.display()), kept, output);
        return Ok(());
    }
    let body = json!({
        "token": secret_from_file(&arguments.token_file)?,
        "email": arguments.email,
        "name": arguments.name,
        "password": password(arguments.password_file.as_deref())?,
    });
    let answer = Client::anonymous(url.clone())?.post("/api/v1/setup", &body).await?;
    let email = answer.body["user"]["email"].as_str().unwrap_or_default().to_owned();
    if let Some(file) = kept {
        let session = Client::new(url, answer.body["accessToken"].as_str().unwrap_or_default())?;
        let token = json!({ "name": "setup", "scopes": ["admin"] });
        let made = session.post("/api/v1/me/tokens", &token).await?.body;
        let token = made["token"].as_str().unwrap_or_default();
        write_private(file, format!("{token}\n").as_bytes())?;
        session.delete("/api/v1/sessions/current").await?;
    }
    done(&format!("{email} owns this installation"), kept, output);
    Ok(())
}

fn done(says: &str, token_file: Option<&Path>, output: Output) {
    match output {
        Output::Text => print(says),
        Output::Json => print_json(&json!({
            "done": says,
            "personal_token_file": token_file.map(|file| file.display().to_string()),
        })),
    }
}
