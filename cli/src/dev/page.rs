//! The demo page of `tidegate dev --demo-dir`: files of one folder on an address of their own, and
//! `config.json`, which tells the page which edge, key and environment it shows. An origin apart from
//! control and edge, as an app's page is.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode, Uri};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::connection::DevFile;
use crate::failure::{Exit, Failure};
use crate::serve::start_failure;

/// The page's files are small; a larger one is not ours.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

struct Page {
    folder: PathBuf,
    config: String,
    policy: HeaderValue,
}

/// A place that is taken before the rest is started, so that a port in use is heard of first.
pub async fn listen(folder: &Path, address: SocketAddr) -> Result<TcpListener, Failure> {
    if !folder.join("index.html").is_file() {
        let text = format!("{} has no index.html", folder.display());
        return Err(Failure::new(Exit::Usage, text)
            .mend("`cargo xtask dev` builds the page and names its folder"));
    }
    TcpListener::bind(address).await.map_err(|error| start_failure("the demo page", address, error))
}

/// Serves until the task is aborted. Only what everybody may know is in the page's configuration.
pub fn serve(listener: TcpListener, folder: PathBuf, dev: &DevFile) -> JoinHandle<()> {
    let config = json!({ "edgeUrl": dev.edge_url, "browserKey": dev.browser_key,
        "publicKey": dev.public_key, "namespace": dev.namespace, "environment": dev.environment });
    // What an app has to allow, too: its edge, and to run wasm.
    let policy = format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; \
         connect-src 'self' {}; img-src 'self' data:; style-src 'self'; frame-ancestors 'none'",
        dev.edge_url
    );
    let policy =
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'self'"));
    let page = Arc::new(Page { folder, config: config.to_string(), policy });
    let app = axum::Router::new().fallback(answer).with_state(page);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the demo page is no longer served");
        }
    })
}

async fn answer(State(page): State<Arc<Page>>, method: Method, uri: Uri) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n").into_response();
    }
    let path = uri.path().trim_start_matches('/');
    let (kind, bytes) = match path {
        "config.json" => ("application/json", page.config.clone().into_bytes()),
        _ => match read(&page.folder, if path.is_empty() { "index.html" } else { path }).await {
            Some(found) => found,
            None => return (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
        },
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CONTENT_SECURITY_POLICY, page.policy.clone()),
    ];
    (headers, bytes).into_response()
}

async fn read(folder: &Path, path: &str) -> Option<(&'static str, Vec<u8>)> {
    // Names only: nothing that leads up or out. Names with percent signs do not exist.
    if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = folder.join(path);
    let kind = match file.extension()?.to_str()? {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "wasm" => "application/wasm",
        "map" | "json" => "application/json",
        _ => return None,
    };
    let about = tokio::fs::metadata(&file).await.ok()?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return None;
    }
    Some((kind, tokio::fs::read(&file).await.ok()?))
}
