//! `tidegate control` and `tidegate edge`: either server as a process of its own, and what both
//! share with `dev`: logs, the announcement on standard output, and the end.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use control::config::FirstKeys;
use control::http::walls::{Rate, Walls, network};
use control::outgoing::Reach;
use control::store::Database;
use edge::config::Register;
use edge::feed::nats::NatsFeed;
use edge::feed::{Feed, HttpFeed};
use rules::bus::Broker;
use rules::etcd::{self, Etcd};
use rules::head::PublicKey;
use rules::keys::{ApiKey, KeyKind};
use rules::secret::Secret;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::connection::secret_from_file;
use crate::failure::{Exit, Failure};
use crate::paint::{Output, print, print_json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logs (on standard error)")]
pub struct Logs {
    /// What is logged: a level, or `target=level` pairs with commas.
    #[arg(long, env = "TIDEGATE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// One line of text or one JSON object per event.
    #[arg(long, env = "TIDEGATE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

impl Logs {
    /// Sets up logging for the process.
    pub fn start(&self) -> Result<(), Failure> {
        // PostgreSQL's notices say what sqlx does on purpose.
        let filter = format!("sqlx::postgres::notice=error,{}", self.log);
        let filter = tracing_subscriber::EnvFilter::try_new(filter)
            .map_err(|error| Failure::usage(format!("--log {:?}: {error}", self.log)))?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let done = match self.log_format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
        done.map_err(|error| Failure::new(Exit::Failed, format!("cannot set up logs: {error}")))
    }
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Example:
  tidegate control --data-dir /var/lib/tidegate

On its first start it makes a signing key and a setup token; the token is in DIR/setup-token, which
only this user can read, and makes the first owner (`tidegate setup`), once. Edges need the public key that is printed here, and an edge key
(POST /api/v1/edge-keys).")]
pub struct ControlArgs {
    /// Where the admin API and the edges' routes are served; port 0 takes a free one.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    pub store: Store,
    #[command(subcommand)]
    task: Option<ControlTask>,
    /// File of the key that snapshots are signed with, made if it is not there; replicas share a
    /// copy [default: DIR/signing-key].
    #[arg(long, env = "TIDEGATE_SIGNING_KEY_FILE", value_name = "FILE")]
    signing_key_file: Option<PathBuf>,
    /// File of the key that secrets in the database are sealed with, made on the first start; replicas
    /// share a copy [default: secrets-key beside the signing key].
    #[arg(long, env = "TIDEGATE_SECRETS_KEY_FILE", value_name = "FILE")]
    secrets_key_file: Option<PathBuf>,
    /// File of the setup token that makes the first owner, instead of one that is made. Only a new
    /// database takes it.
    #[arg(long, env = "TIDEGATE_FIRST_SETUP_TOKEN_FILE", value_name = "FILE")]
    first_setup_token_file: Option<PathBuf>,
    /// File of an edge key to begin with; it sees all namespaces. Only a new database takes it.
    #[arg(long, env = "TIDEGATE_FIRST_EDGE_KEY_FILE", value_name = "FILE")]
    first_edge_key_file: Option<PathBuf>,
    /// Seconds that another control waits for the one that publishes, once that one is silent.
    #[arg(long, env = "TIDEGATE_LEASE_SECONDS", value_name = "S", default_value_t = 5)]
    lease_seconds: u64,
    /// Stages in which a new snapshot comes to the edges before it comes to all: `one:5s,25%:10s` is
    /// one edge for at least 5 s, then a quarter of them for 10 s; `off` is all at once [default:
    /// one:2s,25%:3s on PostgreSQL, else off].
    #[arg(long, env = "TIDEGATE_ROLLOUT_STAGES", value_name = "STAGES")]
    rollout_stages: Option<String>,
    /// Lets webhooks go to private addresses and without TLS: whoever administers a namespace can then
    /// have control ask whatever it can reach.
    #[arg(long, env = "TIDEGATE_WEBHOOK_ALLOW_PRIVATE")]
    webhook_allow_private: bool,
    #[command(flatten)]
    walls: WallsArgs,
    #[command(flatten)]
    oidc: Oidc,
    #[command(flatten)]
    nats: Nats,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    logs: Logs,
}

#[derive(Debug, clap::Args)]
struct WallsArgs {
    /// Requests a second of one account or service token, and how many at once after a rest; or `off`.
    #[arg(long, env = "TIDEGATE_CALLER_RATE", value_name = "RATE:BURST", default_value = "20:100")]
    caller_rate: String,
    /// Requests a second of one address, whoever asks, and how many at once after a rest; or `off`.
    #[arg(
        long,
        env = "TIDEGATE_ADDRESS_RATE",
        value_name = "RATE:BURST",
        default_value = "100:1000"
    )]
    address_rate: String,
    /// Connections of one address, of IPv6 of one /64; more are closed at once.
    #[arg(long, env = "TIDEGATE_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 200)]
    connections_per_address: usize,
    /// Networks of proxies, whose X-Forwarded-For says who asks and which have no limit themselves.
    #[arg(long, env = "TIDEGATE_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxy: Vec<String>,
    /// Exact origins whose pages may use the admin API with a token of theirs, as
    /// https://tools.example.com.
    #[arg(long, env = "TIDEGATE_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Tells browsers to come over HTTPS alone, for a control behind a proxy that has it.
    #[arg(long, env = "TIDEGATE_HTTPS_ONLY")]
    https_only: bool,
}

impl WallsArgs {
    fn walls(self) -> Result<Walls, Failure> {
        let rate = |setting: &str, text: &str| match text {
            "off" => Ok(None),
            text => match text.parse::<Rate>() {
                Ok(rate) => Ok(Some(rate)),
                Err(error) => Err(Failure::usage(format!("{setting}: {error}, or off"))),
            },
        };
        // An empty variable, as container files set them, is one that is not set.
        let given = |list: Vec<String>| list.into_iter().filter(|one| !one.is_empty());
        let to_network = |text: String| {
            network(&text).ok_or_else(|| {
                Failure::usage(format!("--trusted-proxy: {text:?} is no network, as 10.0.0.0/8"))
            })
        };
        let origin = |text: String| match control::keys::is_exact_origin(&text) {
            true => Ok(text),
            false => Err(Failure::usage(format!(
                "--cors-origin: {text:?} is no exact origin, as https://tools.example.com"
            ))),
        };
        Ok(Walls {
            caller: rate("--caller-rate", &self.caller_rate)?,
            address: rate("--address-rate", &self.address_rate)?,
            connections_per_address: self.connections_per_address.max(1),
            trusted_proxies: given(self.trusted_proxy).map(to_network).collect::<Result<_, _>>()?,
            cors_origins: given(self.cors_origin).map(origin).collect::<Result<_, _>>()?,
            https_only: self.https_only,
        })
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sign-in with an identity provider (OpenID Connect)")]
struct Oidc {
    /// Address of the provider, as its tokens say it: https, or http on this machine.
    #[arg(long, env = "TIDEGATE_OIDC_ISSUER", value_name = "URL")]
    oidc_issuer: Option<String>,
    /// Who control is to the provider. What it may redirect to: URL/api/v1/oidc/callback.
    #[arg(long, env = "TIDEGATE_OIDC_CLIENT_ID", value_name = "ID")]
    oidc_client_id: Option<String>,
    /// File of the client's secret; none for a public client.
    #[arg(long, env = "TIDEGATE_OIDC_CLIENT_SECRET_FILE", value_name = "FILE")]
    oidc_client_secret_file: Option<PathBuf>,
    /// Domains of e-mail addresses whose people get an account, without roles, at their first sign-in.
    /// Others have to have one.
    #[arg(
        long = "oidc-allowed-domain",
        env = "TIDEGATE_OIDC_ALLOWED_DOMAINS",
        value_name = "DOMAIN",
        value_delimiter = ','
    )]
    oidc_allowed_domains: Vec<String>,
    /// Where browsers find control.
    #[arg(long, env = "TIDEGATE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
}

impl Oidc {
    fn settings(&self) -> Result<Option<control::oidc::Settings>, Failure> {
        // An empty variable, as container files set them, is one that is not set.
        let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let Some(issuer) = said(&self.oidc_issuer) else { return Ok(None) };
        let (Some(client_id), Some(public_url)) =
            (said(&self.oidc_client_id), said(&self.public_url))
        else {
            let message = "--oidc-issuer needs --oidc-client-id and --public-url";
            return Err(Failure::usage(message));
        };
        let secret = match &self.oidc_client_secret_file {
            Some(file) => Some(Secret::new(secret_from_file(file)?)),
            None => None,
        };
        let domains = self.oidc_allowed_domains.clone();
        control::oidc::Settings::new(&issuer, &client_id, secret, &public_url, domains)
            .map(Some)
            .map_err(|error| Failure::usage(error.to_string()))
    }
}

/// What operators do to control's state.
#[derive(Debug, clap::Subcommand)]
enum ControlTask {
    /// After a restore of the database: makes what is published from now on newer than whatever
    /// edges serve.
    RaiseGeneration(RaiseGeneration),
    /// Says which coordinator elects the control that publishes, after it was changed, wiped or
    /// restored.
    AdoptCoordinator(AdoptCoordinator),
    /// Makes a key to sign snapshots with, for a change of keys, and prints its public half.
    NewSigningKey(NewSigningKey),
    /// When the secrets key is lost: gives up what was sealed with it, so that control starts with
    /// another one.
    ForgetSecrets(ForgetSecrets),
    /// While nobody owns the installation: makes another setup token for one that was lost.
    NewSetupToken(NewSetupToken),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate control new-setup-token --database-url-file /etc/tidegate/database-url --file setup-token
  tidegate setup --token-file setup-token --email ann@example.com

The lost one is void from then on. Refused (exit code 5) once there is an owner. Control may run meanwhile.")]
struct NewSetupToken {
    #[command(flatten)]
    store: Store,
    /// Where to [default: DIR/setup-token]; what is there is written over.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

async fn new_setup_token(arguments: NewSetupToken, output: Output) -> Result<(), Failure> {
    let database = arguments.store.database()?;
    let failed = |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"));
    let store =
        control::store::Store::open(&database).await.map_err(|error| failed(error.into()))?;
    let file = arguments.file.unwrap_or_else(|| arguments.store.data_dir.join("setup-token"));
    let keep = |key: &ApiKey| {
        control::signing::write_private(&file, format!("{}\n", key.reveal()).as_bytes()).map_err(
            |error| {
                let place = file.display();
                control::refusal::Refusal::Internal(format!("{place} cannot be written: {error}"))
            },
        )
    };
    let made = control::users::begin_anew(&store, keep).await;
    store.close().await;
    made.map_err(|error| match error {
        control::users::AnewError::Owned => Failure::new(Exit::Conflict, error.to_string())
            .mend("an operator invites people: POST /api/v1/users, or tidegate member set"),
        error => failed(error.into()),
    })?;
    match output {
        Output::Json => print_json(&json!({ "file": file.display().to_string() })),
        Output::Text => print(&format!(
            "made {}; next: tidegate setup --token-file {}",
            file.display(),
            file.display()
        )),
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate control forget-secrets --database-url-file /etc/tidegate/database-url

End every control first. Webhooks are disabled until their secrets are rotated; nothing else was sealed.
A backup of the key is worth looking for before: with it in its place, nothing is lost.")]
struct ForgetSecrets {
    #[command(flatten)]
    store: Store,
}

async fn forget_secrets(arguments: ForgetSecrets, output: Output) -> Result<(), Failure> {
    let database = arguments.store.database()?;
    let store = control::store::Store::open(&database)
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::from(error))))?;
    let forgot = control::webhooks::forget_secrets(&store).await;
    store.close().await;
    let webhooks = forgot.map_err(|refusal| Failure::new(Exit::Failed, refusal.to_string()))?;
    match output {
        Output::Json => print_json(&json!({ "webhooks": webhooks })),
        Output::Text => print(&format!(
            "{webhooks} webhook(s) are disabled until their secrets are rotated; control starts with another key"
        )),
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate control new-signing-key /etc/tidegate/signing-key.next

Let every edge trust the public key beside the old one, then move the file to where control has its
signing key; it is noticed, and what is published is signed anew. docs/KEYS.md has every step.")]
struct NewSigningKey {
    /// Where to; a file that exists is left alone.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

fn new_signing_key(arguments: &NewSigningKey, output: Output) -> Result<(), Failure> {
    let file = arguments.file.display();
    let failed = |error: control::signing::SigningError| {
        Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::from(error)))
    };
    if arguments.file.exists() {
        return Err(Failure::new(Exit::Conflict, format!("{file} exists already"))
            .mend("name another file; a signing key that is overwritten is gone"));
    }
    let key = control::signing::load_or_make(&arguments.file).map_err(failed)?;
    let public_key = PublicKey::of(&key);
    match output {
        Output::Json => print_json(&json!({ "file": arguments.file, "key": public_key.id(),
            "public_key": public_key.to_string() })),
        Output::Text => print(&format!(
            "made {file}\nedges trust it by {public_key}  (key {})\nnext: let every edge trust it beside \
             the old key, then move the file to where control has its signing key",
            public_key.id()
        )),
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate control raise-generation --database-url-file /etc/tidegate/database-url

Edges never go back, so after a restore they refuse what control publishes until its revisions have
caught up. A higher generation is newer at once. Control may run meanwhile.")]
struct RaiseGeneration {
    #[command(flatten)]
    store: Store,
    /// The new generation [default: one more than the highest that the database or an edge knows].
    #[arg(long, value_name = "N")]
    to: Option<i64>,
}

async fn raise_generation(arguments: RaiseGeneration, output: Output) -> Result<(), Failure> {
    let database = arguments.store.database()?;
    let store = control::store::Store::open(&database)
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::from(error))))?;
    let raised = control::generation::raise(&store, arguments.to).await;
    store.close().await;
    let (generation, environments) =
        raised.map_err(|refusal| Failure::new(Exit::Failed, refusal.to_string()))?;
    match output {
        Output::Json => {
            print_json(&json!({ "generation": generation, "environments": environments }));
        }
        Output::Text => print(&format!(
            "{environments} environment(s) have generation {generation} now; control publishes them"
        )),
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate control adopt-coordinator --database-url-file /etc/tidegate/database-url \\
    etcd:cdf818194e3a8c32:0199c0de-0000-7000-8000-000000000000
  tidegate control adopt-coordinator database

The first coordinator of a database is adopted by itself, every other one only so, because a wiped
etcd would count epochs from the start. Until then nobody publishes: writes are taken and wait, and
edges serve what they have. Controls log the name of an etcd that waits for this, and tell it as
`obstacle` of /readyz. Whoever led before is refused from then on. Control may run meanwhile.")]
struct AdoptCoordinator {
    #[command(flatten)]
    store: Store,
    /// `database`, or the etcd that control's log and /readyz name: etcd:….
    #[arg(value_name = "COORDINATOR")]
    coordinator: String,
}

async fn adopt_coordinator(arguments: AdoptCoordinator, output: Output) -> Result<(), Failure> {
    let database = arguments.store.database()?;
    let failed = |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"));
    let store =
        control::store::Store::open(&database).await.map_err(|error| failed(error.into()))?;
    let adopted = control::lead::adopt(&store, &arguments.coordinator).await;
    store.close().await;
    let epoch = adopted.map_err(|error| match error {
        control::lead::AdoptError::Name(_) => Failure::usage(error.to_string()),
        error => failed(error.into()),
    })?;
    let (coordinator, epoch) = (arguments.coordinator, epoch.0);
    match output {
        Output::Json => print_json(&json!({ "coordinator": coordinator, "epoch": epoch })),
        Output::Text => print(&format!(
            "{coordinator} says from now on who publishes; epochs up to {epoch} are over"
        )),
    }
    Ok(())
}

/// How the broker is reached, the same for control and edges.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "NATS (deploy/nats.conf says what each user needs)")]
pub struct Nats {
    /// Address of a NATS server, nats://host:port or tls://host:port; several of a cluster with
    /// commas. Without it everything goes over HTTP.
    #[arg(long, env = "TIDEGATE_NATS_URL", value_name = "URL", value_delimiter = ',')]
    nats_url: Vec<String>,
    /// Name to log in to NATS with.
    #[arg(long, env = "TIDEGATE_NATS_USER", value_name = "NAME", requires = "nats_url")]
    nats_user: Option<String>,
    /// File that holds the password. The password itself can be in TIDEGATE_NATS_PASSWORD; there is
    /// no argument for it, since other users can read command lines.
    #[arg(long, env = "TIDEGATE_NATS_PASSWORD_FILE", value_name = "FILE", requires = "nats_user")]
    nats_password_file: Option<PathBuf>,
}

impl Nats {
    /// None if no address is given.
    fn broker(self) -> Result<Option<Broker>, Failure> {
        // An empty variable, as container files set them, is one that is not set.
        let urls: Vec<String> = self.nats_url.into_iter().filter(|url| !url.is_empty()).collect();
        if urls.is_empty() {
            return Ok(None);
        }
        let password = match &self.nats_password_file {
            Some(path) => Some(secret_from_file(path)?),
            None => std::env::var("TIDEGATE_NATS_PASSWORD").ok().filter(|text| !text.is_empty()),
        };
        let user = self.nats_user.unwrap_or_default();
        Broker::new(urls, user, password.map(Secret::new))
            .map(Some)
            .map_err(|error| Failure::usage(format!("--nats-url: {error}")))
    }
}

/// How etcd is reached, the same for control and edges.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "etcd (for several controls; optional)")]
struct EtcdArgs {
    /// Address of an etcd, http://host:port or https://host:port; several of a cluster with commas.
    /// With it etcd elects the control that publishes, and edges register there; without it a lease
    /// in the database serves.
    #[arg(long, env = "TIDEGATE_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// Name to log in to etcd with.
    #[arg(long, env = "TIDEGATE_ETCD_USER", value_name = "NAME", requires = "etcd_endpoints")]
    etcd_user: Option<String>,
    /// File that holds the password. The password itself can be in TIDEGATE_ETCD_PASSWORD; there is
    /// no argument for it, since other users can read command lines.
    #[arg(long, env = "TIDEGATE_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// PEM file of the certificates that https:// addresses are checked by [default: the system's].
    #[arg(long, env = "TIDEGATE_ETCD_CA_FILE", value_name = "FILE", requires = "etcd_endpoints")]
    etcd_ca_file: Option<PathBuf>,
    /// What all keys in etcd begin with; every Tidegate on one etcd has one of its own.
    #[arg(
        long,
        env = "TIDEGATE_ETCD_PREFIX",
        value_name = "PATH",
        default_value = etcd::PREFIX_DEFAULT
    )]
    etcd_prefix: String,
}

impl EtcdArgs {
    /// None if no address is given.
    fn etcd(self) -> Result<Option<Etcd>, Failure> {
        // An empty variable, as container files set them, is one that is not set.
        let endpoints = self.etcd_endpoints.into_iter().filter(|url| !url.is_empty());
        let endpoints: Vec<String> = endpoints.collect();
        if endpoints.is_empty() {
            return Ok(None);
        }
        let password = match &self.etcd_password_file {
            Some(path) => Some(secret_from_file(path)?),
            None => std::env::var("TIDEGATE_ETCD_PASSWORD").ok().filter(|text| !text.is_empty()),
        };
        let user = self.etcd_user.unwrap_or_default();
        let etcd = Etcd::new(endpoints, self.etcd_prefix, user, password.map(Secret::new));
        let mut etcd =
            etcd.map_err(|error| Failure::usage(format!("--etcd-endpoints: {error}")))?;
        if let Some(file) = &self.etcd_ca_file {
            let roots = std::fs::read_to_string(file).map_err(|error| {
                Failure::usage(format!("--etcd-ca-file {}: {error}", file.display()))
            })?;
            etcd.roots = Some(roots);
        }
        Ok(Some(etcd))
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate migrate --data-dir /var/lib/tidegate

`tidegate control` does the same at its start. A database that a newer tidegate has migrated is
refused, and left as it is.")]
pub struct MigrateArgs {
    #[command(flatten)]
    store: Store,
}

pub async fn migrate(arguments: MigrateArgs, output: Output) -> Result<(), Failure> {
    let database = arguments.store.database()?;
    let versions = control::migrate(&database).await.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Failure::new(Exit::Failed, text)
    })?;
    let newest = versions.last().copied().unwrap_or(0);
    match output {
        Output::Json => print_json(&json!({ "database": database.place(), "schema": newest })),
        Output::Text => {
            print(&format!("the database {} has schema {newest}", database.place()));
        }
    }
    Ok(())
}

/// Where control keeps what it knows.
#[derive(Debug, Clone, clap::Args)]
pub struct Store {
    /// PostgreSQL instead of the embedded database: postgres://user:password@host/database. Prefer
    /// the variable or the file: other users can read command lines.
    #[arg(long, env = "TIDEGATE_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// File that holds the database URL.
    #[arg(
        long,
        env = "TIDEGATE_DATABASE_URL_FILE",
        value_name = "FILE",
        conflicts_with = "database_url"
    )]
    database_url_file: Option<PathBuf>,
    /// Folder of the database and of the keys; made if it is not there.
    #[arg(long, env = "TIDEGATE_DATA_DIR", value_name = "DIR", default_value = "control-data")]
    pub data_dir: PathBuf,
}

impl Store {
    fn database(&self) -> Result<Database, Failure> {
        let url = match (&self.database_url, &self.database_url_file) {
            (Some(url), _) => url.trim().to_owned(),
            (None, Some(path)) => secret_from_file(path)?,
            (None, None) => return Ok(Database::embedded(&self.data_dir)),
        };
        Ok(Database::Postgres(Secret::new(url)))
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  TIDEGATE_EDGE_KEY=tg_edge_… tidegate edge --control-url https://control.example.com \\
    --trust ed25519:… --data-dir /var/lib/tidegate-edge

Without control it serves the last good snapshots of --data-dir.")]
pub struct EdgeArgs {
    /// Where evaluations are answered; port 0 takes a free one.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8016")]
    listen: SocketAddr,
    /// Address of control.
    #[arg(long, env = "TIDEGATE_CONTROL_URL", value_name = "URL")]
    control_url: String,
    /// Edge key (tg_edge_…). Prefer the variable or the file: other users can read command lines.
    #[arg(long, env = "TIDEGATE_EDGE_KEY", value_name = "KEY", hide_env_values = true)]
    edge_key: Option<String>,
    /// File that holds the edge key.
    #[arg(long, env = "TIDEGATE_EDGE_KEY_FILE", value_name = "FILE", conflicts_with = "edge_key")]
    edge_key_file: Option<PathBuf>,
    /// Public key that snapshots must be signed with (ed25519:…); several with commas.
    #[arg(
        long,
        env = "TIDEGATE_TRUST",
        value_name = "KEY",
        value_delimiter = ',',
        required_unless_present = "trust_file"
    )]
    trust: Vec<PublicKey>,
    /// File of further such keys, one a line, # begins a comment. It is read again when it changes, so
    /// that keys are changed without a restart.
    #[arg(long, env = "TIDEGATE_TRUST_FILE", value_name = "FILE")]
    trust_file: Option<PathBuf>,
    /// Folder where snapshots survive a restart. Without it, an edge that starts while control is
    /// away has nothing to serve.
    #[arg(long, env = "TIDEGATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    compiled: Compiled,
    /// How this edge is called in its receipts [default: the machine's name].
    #[arg(long, env = "TIDEGATE_EDGE_ID", value_name = "NAME")]
    edge_id: Option<String>,
    /// Evaluation requests per second of one server key; 0 is no limit.
    #[arg(long, env = "TIDEGATE_SERVER_RATE", value_name = "N", default_value_t = 100_000)]
    server_rate: u32,
    /// Evaluation requests per second of one browser key; 0 is no limit.
    #[arg(long, env = "TIDEGATE_BROWSER_RATE", value_name = "N", default_value_t = 5_000)]
    browser_rate: u32,
    /// Connections at once.
    #[arg(long, env = "TIDEGATE_CONNECTIONS_MAX", value_name = "N", default_value_t = 10_000)]
    connections_max: usize,
    /// Connections of one address at once, of IPv6 of one /64; 0 is no limit. Behind a proxy, and where
    /// many people share an address, it would close what is none of anybody's fault.
    #[arg(long, env = "TIDEGATE_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 0)]
    connections_per_address: usize,
    /// Event streams at once.
    #[arg(long, env = "TIDEGATE_STREAMS_MAX", value_name = "N", default_value_t = 5_000)]
    streams_max: usize,
    /// Seconds between looks for news that were not announced, ± 50 %.
    #[arg(long, env = "TIDEGATE_ANTI_ENTROPY_SECONDS", value_name = "S", default_value_t = 30)]
    anti_entropy_seconds: u64,
    /// Seconds after which a new snapshot is no longer suspected when this process ends without
    /// saying so. One that is suspected twice is set aside for ten minutes; 0 suspects none.
    #[arg(long, env = "TIDEGATE_HEALTHY_AFTER_SECONDS", value_name = "S", default_value_t = 30)]
    healthy_after_seconds: u64,
    /// Seconds that a shutdown waits for requests that are being answered.
    #[arg(long, env = "TIDEGATE_DRAIN_SECONDS", value_name = "S", default_value_t = 10)]
    drain_seconds: u64,
    #[command(flatten)]
    nats: Nats,
    /// Namespaces to follow on NATS from the start, with commas. Those that control names are
    /// followed anyway; an edge that has to start without control needs them here.
    #[arg(
        long,
        env = "TIDEGATE_NATS_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        help_heading = "NATS (deploy/nats.conf says what each user needs)"
    )]
    nats_namespaces: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    logs: Logs,
}

/// Where compiled code is.
#[derive(Debug, clap::Args)]
pub struct Compiled {
    /// Folder where the compiled evaluator is kept, which spares every start but the first one a second.
    /// Edges of one user on one machine may share it [default: `compiled` in the data folder].
    #[arg(long, env = "TIDEGATE_COMPILED_DIR", value_name = "DIR")]
    pub compiled_dir: Option<PathBuf>,
}

/// Starts control with its embedded defaults, and reads the bootstrap token that it made on its first
/// start.
pub async fn start_embedded(
    listen: SocketAddr,
    data_dir: PathBuf,
) -> Result<(control::Control, String), Failure> {
    let mut config = control::config::Config::new(listen, data_dir);
    config.bootstrap = true;
    // Who tries things out has receivers on the same machine.
    config.webhook_reach = Reach::Anywhere;
    config.walls = Walls::without_rates();
    let control =
        control::start(config).await.map_err(|error| start_failure("control", listen, error))?;
    let admin_token = secret_from_file(&control.admin_token_file)?;
    Ok((control, admin_token))
}

pub async fn control(arguments: ControlArgs, output: Output) -> Result<(), Failure> {
    arguments.logs.start()?;
    match arguments.task {
        Some(ControlTask::RaiseGeneration(task)) => return raise_generation(task, output).await,
        Some(ControlTask::AdoptCoordinator(task)) => return adopt_coordinator(task, output).await,
        Some(ControlTask::NewSigningKey(task)) => return new_signing_key(&task, output),
        Some(ControlTask::ForgetSecrets(task)) => return forget_secrets(task, output).await,
        Some(ControlTask::NewSetupToken(task)) => return new_setup_token(task, output).await,
        None => {}
    }
    let database = arguments.store.database()?;
    let mut config = control::config::Config::new(arguments.listen, arguments.store.data_dir);
    // An empty variable, as container files set them, is one that is not set.
    let stages = arguments.rollout_stages.filter(|stages| !stages.is_empty());
    let stages = stages.as_deref().unwrap_or(match &database {
        Database::Sqlite(_) => "off",
        Database::Postgres(_) => control::rollout::DEFAULT,
    });
    config.rollout =
        stages.parse().map_err(|error| Failure::usage(format!("--rollout-stages: {error}")))?;
    config.database = database;
    if arguments.webhook_allow_private {
        config.webhook_reach = Reach::Anywhere;
    }
    config.walls = arguments.walls.walls()?;
    config.broker = arguments.nats.broker()?;
    config.etcd = arguments.etcd.etcd()?;
    config.oidc = arguments.oidc.settings()?;
    config.lease = Duration::from_secs(arguments.lease_seconds.max(1));
    if let Some(file) = arguments.signing_key_file {
        config.signing_key_file = file;
    }
    config.secrets_key_file =
        arguments.secrets_key_file.filter(|file| !file.as_os_str().is_empty());
    config.first = FirstKeys {
        setup: first_key(arguments.first_setup_token_file.as_deref(), KeyKind::Setup)?,
        edge: first_key(arguments.first_edge_key_file.as_deref(), KeyKind::Edge)?,
    };
    let control = control::start(config)
        .await
        .map_err(|error| start_failure("control", arguments.listen, error))?;
    let url = format!("http://{}", control.address);
    // The replica that came first made the token and has its file.
    let token_file = arguments.first_setup_token_file.as_ref().unwrap_or(&control.setup_token_file);
    let token_file =
        (control.awaits_owner && token_file.exists()).then(|| token_file.display().to_string());
    let owner = match &token_file {
        Some(file) => format!("nobody owns it yet: tidegate setup --url {url} --token-file {file}"),
        None if control.awaits_owner => {
            "nobody owns it yet; the setup token is where the database was first used, or: \
             tidegate control new-setup-token"
                .to_owned()
        }
        None => "people sign in: tidegate login".to_owned(),
    };
    let public_key = control.public_key.to_string();
    announce(
        output,
        &format!("control listens on {url}\n{owner}\nedges trust {public_key}"),
        &json!({
            "control_url": url,
            "setup_token_file": token_file,
            "public_key": public_key,
        }),
    );
    asked_to_end().await?;
    control.shutdown().await;
    Ok(())
}

fn first_key(file: Option<&Path>, kind: KeyKind) -> Result<Option<ApiKey>, Failure> {
    let Some(path) = file else { return Ok(None) };
    let key = ApiKey::parse(&secret_from_file(path)?)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    match key.kind == kind {
        true => Ok(Some(key)),
        false => {
            let (is, wanted) = (key.kind.name(), kind.name());
            Err(Failure::usage(format!("{}: a {is} key is no {wanted} key", path.display())))
        }
    }
}

pub async fn edge(arguments: EdgeArgs, output: Output) -> Result<(), Failure> {
    arguments.logs.start()?;
    let key = match (&arguments.edge_key, &arguments.edge_key_file) {
        (Some(key), _) => key.trim().to_owned(),
        (None, Some(path)) => secret_from_file(path)?,
        (None, None) => {
            return Err(Failure::usage("no edge key")
                .mend("set TIDEGATE_EDGE_KEY or --edge-key-file; control makes one: POST /api/v1/edge-keys"));
        }
    };
    let key =
        ApiKey::parse(&key).map_err(|error| Failure::usage(format!("the edge key is {error}")))?;
    if key.kind != KeyKind::Edge {
        return Err(Failure::usage(format!("a {} key is no edge key", key.kind.name())));
    }
    if arguments.data_dir.is_none() {
        tracing::warn!("no --data-dir: after a restart without control there is nothing to serve");
    }
    let anti_entropy = Duration::from_secs(arguments.anti_entropy_seconds.max(1));
    let key_id = key.id.clone();
    let http = HttpFeed::new(&arguments.control_url, key)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let feed: Arc<dyn Feed> = match arguments.nats.broker()? {
        None => Arc::new(http),
        Some(broker) => {
            let namespaces = arguments.nats_namespaces.into_iter().filter(|name| !name.is_empty());
            // What an interval can come to, at most.
            let poll_at_least = anti_entropy.mul_f64(1.5);
            let feed =
                NatsFeed::start(&broker, &key_id, namespaces, poll_at_least, Arc::new(http)).await;
            Arc::new(feed.map_err(|error| Failure::usage(format!("--nats-url: {error}")))?)
        }
    };
    let edge_id = arguments.edge_id.unwrap_or_else(machine_name);
    let mut config =
        edge::config::Config::new(arguments.listen, edge_id.clone(), arguments.trust.clone());
    if let Some(file) = arguments.trust_file {
        config.trusted = follow_trust(arguments.trust, file)?;
    }
    config.data_dir = arguments.data_dir;
    config.sandbox.cache_dir = arguments.compiled.compiled_dir;
    config.register =
        arguments.etcd.etcd()?.map(|etcd| Register::new(etcd, &key_id, edge_id.clone()));
    config.server_rate_per_s = NonZeroU32::new(arguments.server_rate);
    config.browser_rate_per_s = NonZeroU32::new(arguments.browser_rate);
    config.connections_max = arguments.connections_max;
    config.connections_per_address = NonZeroUsize::new(arguments.connections_per_address);
    config.streams_max = arguments.streams_max;
    config.healthy_after = Duration::from_secs(arguments.healthy_after_seconds);
    config.anti_entropy = anti_entropy;
    config.drain = Duration::from_secs(arguments.drain_seconds);
    let edge = edge::start(config, feed)
        .await
        .map_err(|error| start_failure("the edge", arguments.listen, error))?;
    announce(
        output,
        &format!("edge {edge_id} answers on http://{}", edge.address),
        &json!({"edge_url": format!("http://{}", edge.address), "edge_id": edge_id}),
    );
    asked_to_end().await?;
    edge.shutdown().await;
    Ok(())
}

/// A changed file of keys is noticed within this time.
const TRUST_TICK: Duration = Duration::from_secs(1);

/// The keys of the command line and of a file, for as long as the process runs. A file that cannot be
/// read later on changes nothing: an edge that trusts nobody follows nobody.
fn follow_trust(
    given: Vec<PublicKey>,
    file: PathBuf,
) -> Result<watch::Receiver<Vec<PublicKey>>, Failure> {
    let all = move |file: &Path| -> Result<Vec<PublicKey>, Failure> {
        let mut keys = given.clone();
        keys.extend(read_trust(file)?);
        Ok(keys)
    };
    let (sender, receiver) = watch::channel(all(&file)?);
    tokio::spawn(async move {
        let mut told = None;
        loop {
            tokio::time::sleep(TRUST_TICK).await;
            match all(&file) {
                Ok(keys) => {
                    told = None;
                    let changed = sender.send_if_modified(|trusted| {
                        let changed = *trusted != keys;
                        *trusted = keys;
                        changed
                    });
                    if changed {
                        let trusted: Vec<String> =
                            sender.borrow().iter().map(PublicKey::id).collect();
                        tracing::info!(?trusted, "other keys are trusted from now on");
                    }
                }
                Err(failure) if told.as_ref() == Some(&failure.message) => {}
                Err(failure) => {
                    tracing::error!(reason = failure.message, "the keys that were trusted stay");
                    told = Some(failure.message);
                }
            }
        }
    });
    Ok(receiver)
}

fn read_trust(file: &Path) -> Result<Vec<PublicKey>, Failure> {
    let text = secret_from_file(file)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let key = |(index, line): (usize, &str)| {
        line.parse::<PublicKey>().map_err(|error| {
            Failure::usage(format!("{}, line {}: {error}", file.display(), index + 1))
        })
    };
    let keys: Vec<PublicKey> = lines
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(key)
        .collect::<Result<_, _>>()?;
    match keys.is_empty() {
        false => Ok(keys),
        true => Err(Failure::usage(format!("{} holds no key", file.display()))),
    }
}

/// One line on standard output, for whoever started us.
pub fn announce(output: Output, text: &str, value: &Value) {
    match output {
        Output::Text => print(text),
        Output::Json => print_json(value),
    }
}

/// Resolves with SIGTERM or SIGINT. A second one ends the process at once, as impatience wants it.
pub async fn asked_to_end() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failed, format!("no signal handler: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "shutting down; once more ends it at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nothing is lost: what is committed is on disk, and edges write before they serve.
        std::process::abort();
    });
    Ok(())
}

/// Why a server did not start; a port that is taken gets its own words.
pub fn start_failure(
    what: &str,
    listen: SocketAddr,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Failure {
    let error = anyhow::Error::from(error);
    let in_use = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::AddrInUse)
    });
    if in_use {
        return Failure::new(
            Exit::Failed,
            format!("{what} cannot listen on {listen}: the port is in use"),
        )
        .mend(
            "another Tidegate may be running; end it, or choose another port (0 takes a free one)",
        );
    }
    Failure::new(Exit::Failed, format!("{what} did not start: {error:#}"))
}

fn machine_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "edge".to_owned())
}
