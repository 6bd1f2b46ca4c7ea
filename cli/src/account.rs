//! People: the first owner of an installation, signing in and out, tokens and members.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::connection::{Connection, DEFAULT_URL, api_path, checked_url, secret_from_file};
use crate::failure::{Exit, Failure};
use crate::files::write_private;
use crate::paint::{Output, print, print_json};
use crate::session;

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
    /// File of the owner's password, 12 to 128 characters [default: it is asked for, or the first line of
    /// standard input that is no terminal].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Makes a personal token of the owner that may do everything for 90 days, and writes it here.
    #[arg(long, value_name = "FILE")]
    personal_token_file: Option<PathBuf>,
}

/// Typed, and not shown.
fn typed(prompt: &str) -> Result<String, Failure> {
    let typed = rpassword::prompt_password(prompt)
        .map_err(|error| Failure::new(Exit::Failed, format!("no password: {error}")))?;
    match typed.is_empty() {
        true => Err(Failure::usage("no password").mend("type it, or give --password-file")),
        false => Ok(typed),
    }
}

fn password(file: Option<&Path>) -> Result<String, Failure> {
    if let Some(file) = file {
        return secret_from_file(file);
    }
    if std::io::stdin().is_terminal() {
        return typed("Password: ");
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

/// Of somebody who chooses it: what is typed unseen is typed twice.
fn new_password(file: Option<&Path>) -> Result<String, Failure> {
    let chosen = password(file)?;
    if file.is_none() && std::io::stdin().is_terminal() && typed("Once more: ")? != chosen {
        return Err(Failure::usage("the two passwords are not the same"));
    }
    Ok(chosen)
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
        "password": new_password(arguments.password_file.as_deref())?,
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

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate login --url https://tidegate.example.com --email ann@example.com
  tidegate login --email ann@example.com --password-file password

The session is kept for this user, in $XDG_CONFIG_HOME/tidegate/sessions.json or where
TIDEGATE_SESSIONS_FILE says, and is used for this control by every command that is given no token.")]
pub struct Login {
    #[command(flatten)]
    connection: Connection,
    /// Of the account.
    #[arg(long, env = "TIDEGATE_EMAIL", value_name = "ADDRESS")]
    email: String,
    /// File of the password [default: it is asked for, or the first line of standard input that is no
    /// terminal].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Logout {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct Whoami {
    #[command(flatten)]
    connection: Connection,
}

pub async fn login(arguments: Login, output: Output) -> Result<(), Failure> {
    let url = arguments.connection.url()?;
    let password = password(arguments.password_file.as_deref())?;
    let body = json!({ "email": arguments.email, "password": password });
    let answer = Client::anonymous(url.clone())?.post("/api/v1/sessions", &body).await;
    // What control says of a wrong password is more than what a missing token would need.
    let answer = answer.map_err(|failure| Failure { mend: None, ..failure })?.body;
    let kept = session::of_answer(&answer)
        .ok_or_else(|| Failure::new(Exit::Failed, format!("{url} answered with no session")))?;
    let email = kept.email.clone();
    session::keep(&url, Some(kept))?;
    match output {
        Output::Text => print(&format!("signed in to {url} as {email}")),
        Output::Json => print_json(&json!({ "url": url, "email": email })),
    }
    Ok(())
}

pub async fn logout(arguments: Logout, output: Output) -> Result<(), Failure> {
    let url = arguments.connection.url()?;
    let ended = match session::is_kept(&url) {
        // One that is over already is as good.
        true => Client::of_session(url.clone())?.delete("/api/v1/sessions/current").await,
        false => return Err(Failure::new(Exit::NotFound, format!("no session with {url}"))),
    };
    session::keep(&url, None)?;
    if let Err(failure) = ended
        && failure.exit == Exit::Unreachable
    {
        return Err(failure);
    }
    match output {
        Output::Text => print(&format!("signed out of {url}")),
        Output::Json => print_json(&json!({ "url": url })),
    }
    Ok(())
}

pub async fn whoami(arguments: Whoami, output: Output) -> Result<(), Failure> {
    let client = arguments.connection.client()?;
    let me = client.get("/api/v1/me").await?.body;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match output {
        Output::Json => print_json(&me),
        Output::Text => {
            let by = if client.is_session() { "a session" } else { "a token" };
            let mut lines = vec![format!(
                "{} ({}), by {by}, at {}",
                text(&me["name"]),
                text(&me["kind"]),
                client.url()
            )];
            if me["operator"] == true {
                lines.push("operator: may do everything everywhere".to_owned());
            }
            for (namespace, roles) in me["namespaces"].as_object().into_iter().flatten() {
                lines.push(format!("{namespace}: {}", shown(roles)));
            }
            print(&lines.join("\n"));
        }
    }
    Ok(())
}

/// Roles in a line: `editor, production: admin+kill`.
fn shown(roles: &Value) -> String {
    let one = |given: &Value| {
        let kill = if given["killSwitch"] == true { "+kill" } else { "" };
        given["role"].as_str().map(|role| format!("{role}{kill}"))
    };
    let there = roles["environments"].as_object().into_iter().flatten();
    let there = there.filter_map(|(key, given)| Some(format!("{key}: {}", one(given)?)));
    one(roles).into_iter().chain(there).collect::<Vec<_>>().join(", ")
}

/// Roles as they are given on a command line.
#[derive(Debug, Clone, clap::Args)]
struct Roles {
    /// Role in the whole namespace: owner, admin, editor, approver or viewer.
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// May turn flags off past approvals, in the whole namespace.
    #[arg(long)]
    kill_switch: bool,
    /// Role in one environment; `+kill` adds the kill switch there. May be given several times.
    #[arg(long = "in", value_name = "ENVIRONMENT=ROLE[+kill]")]
    environments: Vec<String>,
}

impl Roles {
    fn body(&self) -> Result<Map<String, Value>, Failure> {
        let mut environments = Map::new();
        for text in &self.environments {
            let (environment, role) = text.split_once('=').ok_or_else(|| {
                Failure::usage(format!("{text:?} is not ENVIRONMENT=ROLE, as production=editor"))
            })?;
            let (role, kill) = match role.strip_suffix("+kill") {
                Some(role) => (role, true),
                None => (role, false),
            };
            let given = json!({ "role": role, "killSwitch": kill });
            environments.insert(environment.to_owned(), given);
        }
        let mut body = Map::new();
        if let Some(role) = &self.role {
            body.insert("role".to_owned(), json!(role));
        }
        body.insert("killSwitch".to_owned(), json!(self.kill_switch));
        body.insert("environments".to_owned(), Value::Object(environments));
        Ok(body)
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Lists one's own tokens, or those of a namespace.
    #[command(after_help = "Examples:
  tidegate token list
  tidegate token list --namespace shop")]
    List(TokenList),
    /// Makes a token, and prints it once: one that acts as oneself, or one of a namespace.
    #[command(after_help = "Examples:
  tidegate token create laptop --scope write                     # acts as oneself, within scopes
  tidegate token create ci --namespace shop --in staging=editor  # of its own, with roles")]
    Create(TokenCreate),
    /// Deletes a token, at once.
    Delete(TokenDelete),
}

#[derive(Debug, clap::Args)]
pub struct TokenList {
    #[command(flatten)]
    connection: Connection,
    /// Namespace whose service tokens are meant [default: one's own tokens].
    #[arg(short, long, value_name = "KEY")]
    namespace: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct TokenCreate {
    /// What it is for.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    connection: Connection,
    /// Namespace that it is of, with roles of its own [default: it acts as oneself].
    #[arg(short, long, value_name = "KEY", conflicts_with = "scopes")]
    namespace: Option<String>,
    /// What a token of one's own may at most: read, write, approve, kill, admin. May be given several
    /// times.
    #[arg(long = "scope", value_name = "SCOPE", required_unless_present = "namespace")]
    scopes: Vec<String>,
    #[command(flatten)]
    roles: Roles,
    /// Days that it is good for, 1 to 366.
    #[arg(long, value_name = "N", default_value_t = 90)]
    days: i64,
}

#[derive(Debug, clap::Args)]
pub struct TokenDelete {
    /// The token's id, as the list shows it.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    connection: Connection,
    /// Namespace whose service token is meant [default: one's own].
    #[arg(short, long, value_name = "KEY")]
    namespace: Option<String>,
}

fn tokens_path(namespace: Option<&str>, id: Option<&str>) -> String {
    let mut segments = match namespace {
        Some(namespace) => vec!["namespaces", namespace, "tokens"],
        None => vec!["me", "tokens"],
    };
    segments.extend(id);
    api_path(&segments)
}

pub async fn token(command: Token, output: Output) -> Result<(), Failure> {
    match command {
        Token::List(TokenList { connection, namespace }) => {
            let path = tokens_path(namespace.as_deref(), None);
            let tokens = connection.client()?.list(&path).await?;
            match output {
                Output::Json => print_json(&json!(tokens)),
                Output::Text => {
                    let text = |token: &Value, name: &str| {
                        token[name].as_str().unwrap_or("never").to_owned()
                    };
                    for token in &tokens {
                        let may = match namespace {
                            Some(_) => shown(token),
                            None => {
                                let scopes = token["scopes"].as_array().into_iter().flatten();
                                let scopes = scopes.filter_map(Value::as_str);
                                scopes.collect::<Vec<_>>().join(", ")
                            }
                        };
                        print(&format!(
                            "{}  {}  {may}  until {}  used {}",
                            text(token, "id"),
                            text(token, "name"),
                            text(token, "expiresAt"),
                            text(token, "lastUsedAt"),
                        ));
                    }
                }
            }
        }
        Token::Create(TokenCreate { name, connection, namespace, scopes, roles, days }) => {
            let mut body = match namespace {
                Some(_) => roles.body()?,
                None => Map::from_iter([("scopes".to_owned(), json!(scopes))]),
            };
            body.insert("name".to_owned(), json!(name));
            body.insert("expiresInDays".to_owned(), json!(days));
            let path = tokens_path(namespace.as_deref(), None);
            let made = connection.client()?.post(&path, &Value::Object(body)).await?.body;
            match output {
                Output::Json => print_json(&made),
                // Nothing else, so that it can be written to a file.
                Output::Text => print(made["token"].as_str().unwrap_or_default()),
            }
        }
        Token::Delete(TokenDelete { id, connection, namespace }) => {
            let path = tokens_path(namespace.as_deref(), Some(&id));
            connection.client()?.delete(&path).await?;
            match output {
                Output::Json => print_json(&json!({ "deleted": id })),
                Output::Text => print(&format!("{id} is deleted")),
            }
        }
    }
    Ok(())
}

#[derive(Debug, clap::Subcommand)]
pub enum Member {
    /// Lists who has a role in a namespace.
    List(MemberList),
    /// Gives somebody exactly these roles in a namespace; an address without an account gets one.
    #[command(after_help = "Examples:
  tidegate member set bob@example.com --namespace shop --role viewer --in staging=editor
  tidegate member set eve@example.com --namespace shop --in production=approver+kill

Nobody gives more than they have. The invitation of a new account is shown to operators, once.")]
    Set(MemberSet),
    /// Takes all of somebody's roles in a namespace.
    Remove(MemberRemove),
}

#[derive(Debug, clap::Args)]
pub struct MemberList {
    #[command(flatten)]
    connection: Connection,
    /// Namespace.
    #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
    namespace: String,
}

#[derive(Debug, clap::Args)]
pub struct MemberSet {
    /// E-mail address, or id of an account.
    #[arg(value_name = "WHO")]
    who: String,
    #[command(flatten)]
    connection: Connection,
    /// Namespace.
    #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
    namespace: String,
    #[command(flatten)]
    roles: Roles,
}

#[derive(Debug, clap::Args)]
pub struct MemberRemove {
    /// E-mail address, or id of an account.
    #[arg(value_name = "WHO")]
    who: String,
    #[command(flatten)]
    connection: Connection,
    /// Namespace.
    #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
    namespace: String,
}

pub async fn member(command: Member, output: Output) -> Result<(), Failure> {
    match command {
        Member::List(MemberList { connection, namespace }) => {
            let path = api_path(&["namespaces", &namespace, "members"]);
            let members = connection.client()?.list(&path).await?;
            match output {
                Output::Json => print_json(&json!(members)),
                Output::Text => {
                    for member in &members {
                        let note = match (&member["disabled"], &member["invited"]) {
                            (Value::Bool(true), _) => "  (disabled)",
                            (_, Value::Bool(true)) => "  (invited)",
                            _ => "",
                        };
                        let email = member["email"].as_str().unwrap_or_default();
                        print(&format!("{email}  {}{note}", shown(member)));
                    }
                }
            }
        }
        Member::Set(MemberSet { who, connection, namespace, roles }) => {
            let path = api_path(&["namespaces", &namespace, "members", &who]);
            let body = Value::Object(roles.body()?);
            let set = connection.client()?.put(&path, &body, None).await?.body;
            match output {
                Output::Json => print_json(&set),
                Output::Text => {
                    let email = set["email"].as_str().unwrap_or_default();
                    print(&format!("{email}  {}", shown(&set)));
                    if let Some(token) = set["invitation"]["token"].as_str() {
                        print(&format!("invitation, shown once: {token}"));
                    }
                }
            }
        }
        Member::Remove(MemberRemove { who, connection, namespace }) => {
            let path = api_path(&["namespaces", &namespace, "members", &who]);
            connection.client()?.delete(&path).await?;
            match output {
                Output::Json => print_json(&json!({ "removed": who })),
                Output::Text => print(&format!("{who} has no role in {namespace}")),
            }
        }
    }
    Ok(())
}
