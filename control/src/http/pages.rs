//! Routes that everybody may read: start page, health, metrics, the API's description, limits.

use std::sync::LazyLock;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use rules::limits;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Shared, boxed};
use super::problem::Stop;

const START: &str = include_str!("start.html");
/// The page has no script and one style sheet, which stands in it and is named by its hash.
static START_POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = START.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>"));
    let hash = Sha256::digest(style.map_or("", |(style, _)| style));
    let hash = STANDARD.encode(hash);
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; frame-ancestors 'none'; base-uri 'none'; \
         form-action 'none'"
    )
});

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(prometheus))
        .routes(routes!(description))
        .routes(routes!(limits_table))
}

/// All that there is before control has its database: alive, and what it waits for.
pub fn waiting(what: String) -> axum::Router {
    let ready = json!({ "status": what, "leading": false }).to_string();
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    axum::Router::new()
        .route("/healthz", axum::routing::get(healthz))
        .route(
            "/readyz",
            axum::routing::get(async move || (StatusCode::SERVICE_UNAVAILABLE, headers, ready)),
        )
        .fallback(async move || Stop::new(StatusCode::SERVICE_UNAVAILABLE, "starting", what))
}

/// What this is, for people.
#[utoipa::path(get, path = "/", tag = "server", responses((status = 200, content_type = "text/html", body = String)))]
#[boxed]
async fn start() -> Response {
    ([(CONTENT_SECURITY_POLICY, START_POLICY.as_str())], Html(START)).into_response()
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, content_type = "text/plain", body = String)))]
#[boxed]
async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers and the server is not about to stop. `obstacle` says why this control
/// cannot come to publish, if there is a reason; it serves all the same.
#[utoipa::path(get, path = "/readyz", tag = "server", responses((status = 200, body = Value), (status = 503, body = Value)))]
#[boxed]
async fn readyz(State(shared): State<Shared>) -> Response {
    let store = shared.store.read().await.is_ok();
    let status = match (shared.stopping.is_cancelled(), store) {
        (true, _) => "stopping",
        (false, false) => "the store does not answer",
        (false, true) => "ready",
    };
    let code = match status {
        "ready" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let epoch = shared.lead.epoch().map(|epoch| epoch.0);
    let body = json!({ "status": status, "leading": epoch.is_some(), "epoch": epoch,
        "obstacle": shared.lead.obstacle() });
    let body = body.to_string();
    (code, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body).into_response()
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, content_type = "text/plain", body = String)))]
#[boxed]
async fn prometheus(State(shared): State<Shared>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.metrics.render())
        .into_response()
}

/// This description.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "server", responses((status = 200, body = Value)))]
#[boxed]
async fn description() -> Response {
    ([(CONTENT_TYPE, "application/json")], super::openapi()).into_response()
}

/// The limits that control, edges and SDKs share.
#[utoipa::path(get, path = "/api/v1/limits", tag = "server", responses((status = 200, body = Value)))]
#[boxed]
async fn limits_table() -> Response {
    let body: serde_json::Map<String, Value> =
        limits().map(|(name, value, _)| (name.to_owned(), json!(value))).collect();
    ([(CONTENT_TYPE, "application/json")], Value::Object(body).to_string()).into_response()
}

/// Name, value and meaning: the table that all parts share, and what is control's own.
pub fn limits() -> impl Iterator<Item = (&'static str, u64, &'static str)> {
    let shared = limits::TABLE.iter().map(|limit| (limit.name, limit.value, limit.about.trim()));
    let environments = crate::environments::ENVIRONMENTS_MAX as u64;
    shared.chain([("environments", environments, "Environments of one namespace.")])
}
