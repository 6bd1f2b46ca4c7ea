//! The admin API's routes for what edges report.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Writing, answer, boxed, list};
use super::shapes;
use crate::authorize::Scope;
use crate::page::Page;
use crate::store::{now_us, rfc3339};
use crate::{fleet, reconciler, rollout};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_edges))
        .routes(routes!(list_environment_edges))
        .routes(routes!(list_drift))
        .routes(routes!(order_rollout))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RolloutOrder {
    action: Action,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Stop where it is.
    Halt,
    /// Try the stage again, and go on.
    Resume,
    /// To all edges now, whatever some have refused.
    Finish,
}

/// Halt a staged rollout that is under way, go on with one that is halted, or let it come to all
/// edges at once. What edges have is never taken back: to undo a change, write again.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/rollout", tag = "environments", request_body = RolloutOrder, responses((status = 202, body = shapes::StagedRollout)))]
#[boxed]
async fn order_rollout(at: At, writing: Writing) -> Handled {
    let RolloutOrder { action } = writing.json()?;
    let order = match action {
        Action::Halt => rollout::Order::Halt,
        Action::Resume => rollout::Order::Resume,
        Action::Finish => rollout::Order::Finish,
    };
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let ordered = rollout::order(&mut write.tx, &scope, &at.environment, order).await?;
    write.finish(answer(StatusCode::ACCEPTED, None, &ordered.show())).await
}

/// Edges and what each serves. With etcd, `registration` says whether an edge has registered there,
/// or since when it has not; it is null without etcd, and while that cannot be read. An
/// environment's `status` is live, behind (an older revision than the published one), waiting (so,
/// because a staged rollout has not come to it), rejected (it refused the newest snapshot) or silent
/// (not heard of lately).
#[utoipa::path(get, path = "/api/v1/edges", tag = "edges", responses((status = 200, body = shapes::EdgePage)))]
#[boxed]
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
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/edges", tag = "edges", responses((status = 200, body = shapes::EdgeReportPage)))]
#[boxed]
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
#[utoipa::path(get, path = "/api/v1/drift", tag = "edges", responses((status = 200, body = shapes::DriftPage)))]
#[boxed]
async fn list_drift(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(list(reconciler::page(&mut read, &scope, &page).await?, reconciler::Drift::state))
}
