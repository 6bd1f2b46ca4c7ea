//! The admin API's routes for what edges report.

use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, answer, list};
use super::problem::respond;
use crate::authorize::Scope;
use crate::fleet::{self, Report};
use crate::page::{Page, Paged};
use crate::reconciler;
use crate::refusal::Refusal;
use crate::store::now_us;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_edges))
        .routes(routes!(list_environment_edges))
        .routes(routes!(list_drift))
}

/// Edges and what each serves. An environment's `status` is live, behind (an older revision than
/// the published one), rejected (it refused the newest snapshot) or silent (not heard of lately).
#[utoipa::path(get, path = "/api/v1/edges", tag = "edges", responses((status = 200, body = Value)))]
async fn list_edges(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let paged = fleet::edges(&mut read, &scope, &page).await?;
    let now = now_us();
    let mut items = Vec::with_capacity(paged.items.len());
    for (edge, reports) in &paged.items {
        let last_seen = reports.iter().map(|report| report.received_at).max().unwrap_or(0);
        items.push(json!({ "edge": edge, "lastSeen": crate::store::rfc3339(last_seen),
            "environments": show(reports, now)? }));
    }
    Ok(listed(items, paged.next_cursor))
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
    let Paged { items, next_cursor } =
        fleet::of_environment(&mut read, &scope, &at.environment, &page).await?;
    Ok(listed(show(&items, now_us())?, next_cursor))
}

/// What was found to differ between database, bus and edges, newest first, and when it was mended.
#[utoipa::path(get, path = "/api/v1/drift", tag = "edges", responses((status = 200, body = Value)))]
async fn list_drift(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(list(reconciler::page(&mut read, &scope, &page).await?, reconciler::Drift::state))
}

fn show(reports: &[Report], now_us: i64) -> Result<Vec<Value>, Refusal> {
    reports.iter().map(|report| report.state(now_us)).collect()
}

fn listed(items: Vec<Value>, next_cursor: Option<String>) -> axum::response::Response {
    let mut body = json!({ "items": items });
    if let (Some(cursor), Value::Object(fields)) = (next_cursor, &mut body) {
        fields.insert("nextCursor".to_owned(), json!(cursor));
    }
    respond(answer(StatusCode::OK, None, &body))
}
