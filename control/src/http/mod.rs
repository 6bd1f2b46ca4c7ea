//! The way in over HTTP: every route, who may take it, and its description.
//!
//! No SQL here. A route without a permission in `authorize/routes.rs` does not start.

pub mod changes;
mod cookies;
pub mod edge;
pub mod events;
pub mod extract;
mod flags;
pub mod fleet;
pub mod identity;
pub mod impact;
pub mod keys;
pub mod members;
mod namespaces;
mod oidc;
pub mod pages;
pub mod policies;
mod policy_bodies;
pub mod problem;
pub mod promotions;
pub mod record;
pub mod segments;
mod shapes;
pub mod transfer;
pub mod usage;
pub mod versions;
pub mod walls;
mod webhooks;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt as _;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::admission::Admission;
use crate::attempts::Attempts;
use crate::authorize::callers::{self, Asking, Authority};
use crate::authorize::{Permission, routes};
use crate::bus::Bus;
use crate::delta::Deltas;
use crate::lead::Lead;
use crate::oidc::Provider;
use crate::outgoing::Outgoing;
use crate::passwords::Passwords;
use crate::publisher::Publisher;
use crate::registrations::Registrations;
use crate::relay::Doorbell;
use crate::store::Store;
use crate::vault::Vault;
use extract::{Shared, bearer, cookie};
use problem::Stop;

/// What every request can reach.
pub struct App {
    pub store: Store,
    pub authority: Arc<Authority>,
    pub passwords: Passwords,
    pub attempts: Attempts,
    pub publisher: Arc<Publisher>,
    pub anchors_file: PathBuf,
    pub outgoing: Outgoing,
    pub vault: Arc<Vault>,
    /// Of events.
    pub streams: Arc<Semaphore>,
    /// Of identities, if there is one.
    pub provider: Option<Provider>,
    pub bus: Arc<dyn Bus>,
    pub doorbell: Doorbell,
    pub lead: Arc<Lead>,
    pub registrations: Registrations,
    pub deltas: Deltas,
    pub admission: Arc<Admission>,
    pub metrics: PrometheusHandle,
    pub stopping: CancellationToken,
    /// Of each read of a request's body.
    pub body_timeout: Duration,
    pub walls: Arc<walls::Standing>,
}

#[derive(Debug, thiserror::Error)]
#[error("{method} {path} has no permission in authorize/routes.rs")]
pub struct Unguarded {
    pub method: String,
    pub path: String,
}

fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .merge(pages::router())
        .merge(identity::router())
        .merge(namespaces::router())
        .merge(flags::router())
        .merge(keys::router())
        .merge(members::router())
        .merge(oidc::router())
        .merge(transfer::router())
        .merge(segments::router())
        .merge(policies::router())
        .merge(impact::router())
        .merge(usage::router())
        .merge(record::router())
        .merge(webhooks::router())
        .merge(events::router())
        .merge(fleet::router())
        .merge(changes::router())
        .merge(versions::router())
        .merge(promotions::router())
        .merge(edge::router())
}

pub fn router(app: Shared) -> Result<axum::Router, Unguarded> {
    let (router, api) = routes().split_for_parts();
    let described = serde_json::to_value(&api).unwrap_or_default();
    for (method, path) in operations(&described) {
        if routes::permission(&method, &path).is_none() {
            return Err(Unguarded { method, path });
        }
    }
    Ok(router
        .route_layer(middleware::from_fn_with_state(app.clone(), let_in))
        .fallback(|| async {
            Stop::new(StatusCode::NOT_FOUND, "not-found", "there is no such path")
        })
        .method_not_allowed_fallback(|| async {
            let detail = "the path is there, but not with this method";
            Stop::new(StatusCode::METHOD_NOT_ALLOWED, "method", detail)
        })
        .layer(middleware::from_fn_with_state(app.walls.clone(), walls::stand))
        .with_state(app))
}

/// Every (method, path) of a description.
pub fn operations(described: &Value) -> Vec<(String, String)> {
    let mut operations = Vec::new();
    for (path, methods) in described["paths"].as_object().into_iter().flatten() {
        for (method, _) in methods.as_object().into_iter().flatten() {
            operations.push((method.to_uppercase(), path.clone()));
        }
    }
    operations
}

/// Whose connection a request came over.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

async fn let_in(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = match request.method() {
        &http::Method::HEAD => "GET",
        method => method.as_str(),
    };
    let permission = path.as_deref().and_then(|path| routes::permission(method, path));
    let known = match permission {
        None => Err(Stop::new(StatusCode::FORBIDDEN, "forbidden", "nobody may take this route")),
        Some(Permission::Public) => Ok(()),
        Some(permission) => identify(&app, &mut request, permission).await,
    };
    let known = known.and_then(|()| app.walls.admits(&request));
    let started = std::time::Instant::now();
    let response = match known {
        Ok(()) => next.run(request).await,
        Err(stop) => stop.into_response(),
    };
    // Of a long poll, the wait is not work.
    let route = path.unwrap_or_default();
    let status = response.status().as_u16().to_string();
    metrics::counter!("tidegate_control_requests_total", "route" => route.clone(), "status" => status)
        .increment(1);
    if route != "/edge/v1/heads" && route != "/api/v1/events" {
        metrics::histogram!("tidegate_control_request_seconds", "route" => route)
            .record(started.elapsed().as_secs_f64());
    }
    response
}

async fn identify(app: &App, request: &mut Request, permission: Permission) -> Result<(), Stop> {
    let mut read = app.store.read().await?;
    let of_page = bearer(request.headers()).is_none()
        && cookie(request.headers(), cookies::SESSION).is_some();
    let bearer = bearer_of(request.headers());
    if permission == Permission::Edge {
        let scope = callers::edge(&mut read, bearer.as_deref()).await?;
        request.extensions_mut().insert(scope);
    } else {
        let headers = request.headers();
        let trace_context = headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok())
            .filter(|value| value.len() == 55)
            .map(str::to_owned);
        let asking = Asking {
            bearer: bearer.as_deref(),
            address: request.extensions().get::<Peer>().map(|peer| peer.0),
            user_agent: headers.get(USER_AGENT).and_then(|value| value.to_str().ok()),
            trace_context,
        };
        let scope = callers::caller(&mut read, &app.authority, asking).await?;
        if of_page && !request.method().is_safe() {
            let (_, session) = scope.signed_in()?;
            cookies::check(&app.authority, session, request.uri(), request.headers())?;
        }
        let (namespace, environment) = places(request).await;
        scope.let_in(&mut read, permission, namespace.as_deref(), environment.as_deref()).await?;
        request.extensions_mut().insert(scope);
    }
    Ok(())
}

/// What a caller of the admin API says who they are with. Who names a key means it, whatever cookies
/// the browser adds.
fn bearer_of(headers: &HeaderMap) -> Option<String> {
    let paged = || cookie(headers, cookies::SESSION).filter(|token| token.contains('.'));
    bearer(headers).or_else(paged).map(str::to_owned)
}

/// The namespace and the environment that a request's path names.
async fn places(request: &mut Request) -> (Option<String>, Option<String>) {
    // A path whose escapes are no UTF-8 names nothing that is there: its handler says so.
    let Ok(places) = request.extract_parts::<RawPathParams>().await else { return (None, None) };
    let find = |wanted: &str| {
        places.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned())
    };
    (find("namespace"), find("environment"))
}

/// What a write may be asked beside its own parameters.
fn waiting() -> [Value; 3] {
    [
        json!({ "name": "wait", "in": "query", "required": false,
            "schema": { "type": "string", "enum": ["live"] },
            "description": "answer once every edge that was heard of lately serves the change, or \
                its rollout is halted, or the time is over; the answer's Tidegate-Live header says which: \
                live=?1, serving=3, edges=3" }),
        json!({ "name": "rollout", "in": "query", "required": false,
            "schema": { "type": "string", "enum": ["now"] },
            "description": "the change comes to all edges at once, with whatever is being rolled \
                out in the environment; for a kill switch that cannot wait for a staged rollout" }),
        json!({ "name": "timeout", "in": "query", "required": false,
            "schema": { "type": "integer", "minimum": 1,
                "maximum": crate::fleet::WAIT_MAX.as_secs(),
                "default": crate::fleet::WAIT_DEFAULT.as_secs() },
            "description": "seconds that wait=live waits at most" }),
    ]
}

/// OpenAPI 3.1, generated from the routes; what is the same everywhere (places in the path,
/// versions, idempotency, problems, keys) is added from the routes' own table.
pub fn openapi() -> String {
    let (_, api) = routes().split_for_parts();
    let mut api = serde_json::to_value(&api).unwrap_or_default();
    api["info"] = json!({ "title": "Tidegate control", "version": env!("CARGO_PKG_VERSION"),
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } });
    let limit = |(name, value, about): (&str, u64, &str)| {
        (name.to_owned(), json!({ "value": value, "description": about }))
    };
    // Inclusive: the value passes, one more does not.
    api["x-limits"] = pages::limits().map(limit).collect::<serde_json::Map<_, _>>().into();
    api["components"]["securitySchemes"] = json!({
        "admin": { "type": "http", "scheme": "bearer", "description": "tg_admin_…" },
        "edge": { "type": "http", "scheme": "bearer", "description": "tg_edge_…" } });
    api["components"]["schemas"]["Problem"] = json!({
        "type": "object", "description": "RFC 9457",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string" }, "title": { "type": "string" },
            "status": { "type": "integer" }, "detail": { "type": "string" },
            "current": { "description": "of 412: the state that won" },
            "verdict": { "description": "of policy-refused: which rule refused the module, at \
                which byte, and how its vectors ran" },
            "errors": { "type": "array", "items": { "type": "object",
                "required": ["pointer", "message"],
                "properties": { "pointer": { "type": "string", "description": "RFC 6901" },
                    "message": { "type": "string" } } } } } });
    let header = |name: &str, description: &str| {
        json!({ "name": name, "in": "header", "required": false, "description": description,
            "schema": { "type": "string" } })
    };
    for (path, methods) in api["paths"].as_object_mut().into_iter().flatten() {
        let places: Vec<Value> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
            })
            .collect();
        for (method, operation) in methods.as_object_mut().into_iter().flatten() {
            let mut parameters = places.clone();
            parameters.extend(operation["parameters"].as_array().cloned().unwrap_or_default());
            let permission = routes::permission(&method.to_uppercase(), path);
            let is_admin = !matches!(permission, Some(Permission::Edge | Permission::Public));
            if is_admin && method != "get" {
                parameters.push(header("Idempotency-Key", "the same request again is done once"));
                parameters.extend(waiting());
            }
            if matches!(method.as_str(), "put" | "patch" | "delete") {
                parameters.push(header("If-Match", "the ETag that the change is made on, or *"));
            }
            operation["parameters"] = Value::Array(parameters);
            operation["security"] = match permission {
                Some(Permission::Public) => json!([]),
                Some(Permission::Edge) => json!([{ "edge": [] }]),
                _ => json!([{ "admin": [] }]),
            };
            operation["responses"]["default"] = json!({ "description": "a problem",
                "content": { "application/problem+json": {
                    "schema": { "$ref": "#/components/schemas/Problem" } } } });
        }
    }
    format!("{api:#}\n")
}
