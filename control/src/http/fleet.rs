//! The admin API's routes for what edges report.

use axum::extract::State;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, list};
use crate::authorize::Scope;
use crate::page::Page;
use crate::store::{now_us, rfc3339};
use crate::{fleet, reconciler};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_edges))
        .routes(routes!(list_environment_edges))
        .routes(routes!(list_drift))
}

/// Edges and what each serves. With etcd, `registration` says whether an edge has registered there,
/// or since when it has not; it is null without etcd, and while that cannot be read. An environment's `status` is live, behind (an older revision than
/// the published one), rejected (it refused the newest snapshot) or silent (not heard of lately).
#[utoipa::path(get, path = "/api/v1/edges", tag = "edges", responses((status = 200, body = Value)))]
async fn list_edges(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let paged = fleet::edges(&mut read, &scope, &shared.registrations, &page).await?;
    let now = now_us();
    Ok(list(paged, |(edge, reports)| {
        let last_seen = reports.iter().map(|report| report.received_at).max().map(rfc3339);
        let environments: Vec<Value> = reports.iter().map(|report| report.state(now)).collect();
        json!({ "edge": edge.0, "edgeKey": edge.1, "lastSeen": last_seen,
            "registration": shared.registrations.state(edge), "environments": environments })
    }))
}

/// The edges that serve an environment.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/edges", tag = "edges", responses((status = 200, body = Value)))]
async fn list_environment_edges(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    page: Page,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = fleet::of_environment(&mut read, &scope, &at.environment, &page).await?;
    let now = now_us();
    Ok(list(paged, |report| report.state(now)))
}

/// What was found to differ between database, bus and edges, newest first, and when it was mended.
#[utoipa::path(get, path = "/api/v1/drift", tag = "edges", responses((status = 200, body = Value)))]
async fn list_drift(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(list(reconciler::page(&mut read, &scope, &page).await?, reconciler::Drift::state))
}
