//! `tidegate dev`: control and edge in one process, with demo flags, for trying and developing.
//!
//! Everything is what it is in production but two things: heads and blobs go through memory
//! instead of HTTP (`Joined` lays the bus of control on the feed of the edge), and keys stand in
//! `dev.json`, readable by this user only, so that the other commands find them.

mod page;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::bus::Bus;
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::blob::Digest;
use rules::head::{Heads, Receipts};
use rules::sample::{SampleOrders, SampleReport};
use rules::usage::UsageReport;
use serde_json::json;
use tokio::sync::{Mutex, watch};

use crate::client::Client;
use crate::connection::{DEV_FILE, DevFile, read_dev_file};
use crate::demo;
use crate::failure::{Exit, Failure};
use crate::files::{make_private_folder, write_private};
use crate::paint::{Output, Paint, print, print_json};
use crate::serve::{Compiled, Logs, asked_to_end, start_embedded, start_failure};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate dev
  tidegate dev --control-port 0 --edge-port 0 --dir /tmp/try      # free ports, state elsewhere
  rm -r .tidegate                                                 # start afresh

DIR holds the database, the edge's snapshots and dev.json (control_url, edge_url, namespace,
environment, admin_token, server_key, browser_key, public_key, demo_url). State survives a restart.")]
pub struct Dev {
    /// Port of control on 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "TIDEGATE_CONTROL_PORT", value_name = "PORT", default_value_t = 8080)]
    control_port: u16,
    /// Port of the edge on 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "TIDEGATE_EDGE_PORT", value_name = "PORT", default_value_t = 8016)]
    edge_port: u16,
    /// Where everything is kept.
    #[arg(long, env = "TIDEGATE_DIR", value_name = "DIR", default_value = ".tidegate")]
    dir: PathBuf,
    /// Folder of the demo page, as `cargo xtask dev` builds it; without one there is no page.
    #[arg(long, env = "TIDEGATE_DEMO_DIR", value_name = "DIR")]
    demo_dir: Option<PathBuf>,
    /// Port of the demo page on 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "TIDEGATE_DEMO_PORT", value_name = "PORT", default_value_t = 8017)]
    demo_port: u16,
    #[command(flatten)]
    compiled: Compiled,
    #[command(flatten)]
    logs: Logs,
}

/// Stands in the folder once the demo flags were written; without it they are written (again).
const SEEDED: &str = "seeded";

pub async fn run(arguments: Dev, output: Output) -> Result<(), Failure> {
    arguments.logs.start()?;
    let dir = &arguments.dir;
    make_private_folder(dir)?;
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));

    let listen = local(arguments.control_port);
    let (control, admin_token) = start_embedded(listen, dir.join("control")).await?;
    let control_url = format!("http://{}", control.address);
    let client = Client::new(control_url.clone(), &admin_token)?;

    // Before the flags are written: a port that is taken is then the first thing one hears.
    let listen = local(arguments.edge_port);
    let mut config = edge::config::Config::new(listen, "dev", vec![control.public_key.clone()]);
    config.data_dir = Some(dir.join("edge"));
    config.sandbox.cache_dir = arguments.compiled.compiled_dir;
    // Who tries things out looks at the counts right away.
    config.usage_every = Duration::from_secs(2);
    config.samples_every = Duration::from_secs(2);
    let feed = Arc::new(Joined::new(&control));
    let edge = edge::start(config, feed)
        .await
        .map_err(|error| start_failure("the edge", listen, error))?;

    let demo = match &arguments.demo_dir {
        Some(folder) => Some((folder, page::listen(folder, local(arguments.demo_port)).await?)),
        None => None,
    };
    let demo_url = match &demo {
        Some((_, listener)) => {
            listener.local_addr().ok().map(|address| format!("http://{address}"))
        }
        None => None,
    };

    let first = !dir.join(SEEDED).exists();
    if first {
        if output == Output::Text {
            print("writing the demo flags …");
        }
        demo::seed(&client).await?;
        write_private(&dir.join(SEEDED), b"the demo flags were written\n")?;
    }
    let known = read_dev_file(dir)?;
    let (server_key, browser_key) = match known {
        Some(known) => (known.server_key, known.browser_key),
        None => (demo::key(&client, "server").await?, demo::key(&client, "browser").await?),
    };

    let file = DevFile {
        control_url,
        edge_url: format!("http://{}", edge.address),
        namespace: demo::NAMESPACE.to_owned(),
        environment: demo::ENVIRONMENT.to_owned(),
        admin_token,
        server_key,
        browser_key,
        public_key: control.public_key.to_string(),
        demo_url,
    };
    served(&edge, &file).await?;
    let demo = demo.map(|(folder, listener)| page::serve(listener, folder.clone(), &file));
    let path = dir.join(DEV_FILE);
    let text = serde_json::to_vec_pretty(&file)
        .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display())))?;
    write_private(&path, &text)?;
    match output {
        Output::Text => print(&welcome(Paint::of_stdout(), &file, &path)),
        Output::Json => print_json(&json!(file)),
    }

    asked_to_end().await?;
    if let Some(demo) = demo {
        demo.abort();
    }
    edge.shutdown().await;
    control.shutdown().await;
    // The addresses are gone; the keys stay good.
    Ok(())
}

/// Waits until the edge knows both keys, so that the first line somebody tries works.
async fn served(edge: &edge::Edge, file: &DevFile) -> Result<(), Failure> {
    const SECONDS_MAX: u64 = 60;
    let http = crate::client::http(&file.edge_url)?;
    let url = format!("{}/ofrep/v1/evaluate/flags", file.edge_url);
    let mut swaps = edge.swaps();
    let wait = async {
        for key in [&file.server_key, &file.browser_key] {
            loop {
                let answer = http.post(&url).bearer_auth(key).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    break;
                }
                // The swap may have come before we began to wait for it.
                let again = Duration::from_millis(200);
                let _ = tokio::time::timeout(again, swaps.changed()).await;
            }
        }
    };
    let limit = Duration::from_secs(SECONDS_MAX);
    tokio::time::timeout(limit, wait).await.map_err(|_| {
        Failure::new(Exit::Failed, format!("the edge did not get its flags in {SECONDS_MAX} s"))
            .mend("if dev.json holds keys of another database, remove it; new ones are made")
    })
}

fn welcome(paint: Paint, file: &DevFile, path: &Path) -> String {
    let DevFile { control_url, edge_url, server_key, .. } = file;
    let head = |text: &str| paint.bold(text);
    let label = |text: &str| paint.dim(&format!("{text:<12}"));
    let demo = match &file.demo_url {
        Some(url) => format!("  {} {url}\n", label("demo page")),
        None => String::new(),
    };
    let curl = |flag: &str, context: &str| {
        format!(
            "  curl -s {edge_url}/ofrep/v1/evaluate/flags{flag} \\\n    \
             -H 'Authorization: Bearer {server_key}' \\\n    \
             -H 'Content-Type: application/json' \\\n    -d '{{\"context\":{context}}}'"
        )
    };
    format!(
        "\n{}\n\n\
         \x20 {} {control_url}\n\
         \x20 {} {edge_url}\n\
         {}\
         \x20 {} {} / {}\n\n\
         \x20 {} {}\n\
         \x20 {} {}\n\
         \x20 {} {}\n\
         \x20 {} {}\n\
         \x20 {} {}\n\n\
         {}\n{}\n{}\n{}\n\n\
         {}\n\
         \x20 tidegate flag list\n\
         \x20 tidegate eval checkout -k user-1 --attr email=ann@example.com --explain\n\
         \x20 tidegate flag off payments-up\n\n\
         {}\n",
        head("Tidegate is running."),
        label("control"),
        label("edge"),
        demo,
        label("flags of"),
        file.namespace,
        file.environment,
        label("admin token"),
        file.admin_token,
        label("server key"),
        file.server_key,
        label("browser key"),
        file.browser_key,
        label("public key"),
        file.public_key,
        label("all of it in"),
        path.display(),
        head("Try"),
        curl("/checkout", r#"{"targetingKey":"user-1","email":"ann@example.com"}"#),
        curl("/upload-limit-mb", r#"{"targetingKey":"user-1","plan":"pro"}"#),
        curl("", r#"{"targetingKey":"user-1","country":"DE","app":{"version":"2.4.0"}}"#),
        head("Or, in another terminal"),
        paint.dim("ctrl-c ends it; the state stays."),
    )
}

/// The bus of control as the feed of an edge in the same process.
struct Joined {
    bus: Arc<dyn Bus>,
    reports: control::LocalReports,
    changed: Mutex<watch::Receiver<u64>>,
}

impl Joined {
    fn new(control: &control::Control) -> Joined {
        let changed = Mutex::new(control.bus.changed());
        Joined { bus: control.bus.clone(), reports: control.reports(), changed }
    }
}

impl Feed for Joined {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        Box::pin(async move {
            let heads =
                self.bus.heads().await.map_err(|error| FeedError::Unreachable(error.into()))?;
            let heads = Heads { heads: heads.into_iter().map(|head| head.signed).collect() };
            let bytes = serde_json::to_vec(&heads)
                .map_err(|error| FeedError::Malformed(error.to_string()))?;
            let now = Digest::of(&bytes).to_string();
            Ok((etag.as_ref() != Some(&now)).then_some((heads, now)))
        })
    }

    fn blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let blob = self.bus.blob(namespace, digest).await;
            let blob = blob.map_err(|error| FeedError::Unreachable(error.into()))?;
            let blob = blob.ok_or(FeedError::Status { status: 404 })?;
            if blob.len() as u64 > bytes_max {
                return Err(FeedError::TooLong { bytes_max });
            }
            Ok(blob)
        })
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            let taken = self.reports.take(&receipts).await;
            taken.map_err(|error| FeedError::Unreachable(error.into()))
        })
    }

    fn usage(&self, report: UsageReport) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            let taken = self.reports.take_usage(&report).await;
            taken.map_err(|error| FeedError::Unreachable(error.into()))
        })
    }

    fn samples(&self, report: SampleReport) -> BoxFuture<'_, Result<SampleOrders, FeedError>> {
        Box::pin(async move {
            let taken = self.reports.take_samples(&report).await;
            taken.map_err(|error| FeedError::Unreachable(error.into()))
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.changed.lock().await.changed().await.is_err() {
                // Control is shutting down and so are we: nothing will change any more.
                std::future::pending::<()>().await;
            }
        })
    }
}
