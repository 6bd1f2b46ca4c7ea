//! Routes of versions: lists, one with its difference from another, and the way back to one.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, Writing, answer, boxed};
use super::problem::respond;
use super::shapes;
use crate::authorize::Scope;
use crate::page::{Page, Paged};
use crate::store::rfc3339;
use crate::versions::{self, Compared, VersionRow};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_definition_versions))
        .routes(routes!(get_definition_version))
        .routes(routes!(restore_definition))
        .routes(routes!(list_config_versions))
        .routes(routes!(get_config_version))
        .routes(routes!(restore_config))
}

/// One version, without its content.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FlagVersion {
    version: i64,
    at: String,
    /// None: it is older than versions are kept.
    actor: Option<String>,
    /// Row of the audit that records it.
    audit_sequence: Option<i64>,
    /// Number of the change set that it came with.
    change_set: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FlagVersions {
    items: Vec<FlagVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One version, and what it changed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FlagVersionWithDiff {
    #[serde(flatten)]
    version: FlagVersion,
    /// The definition or the configuration as it was.
    #[schema(value_type = Object)]
    content: Value,
    /// The version that `diff` begins at; none: there is none before.
    against: Option<i64>,
    /// RFC 6902.
    diff: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Against {
    #[serde(default)]
    against: Option<i64>,
}

impl FlagVersion {
    fn of(row: &VersionRow) -> FlagVersion {
        FlagVersion {
            version: row.version,
            at: rfc3339(row.at),
            actor: Some(row.actor.clone()).filter(|actor| !actor.is_empty()),
            audit_sequence: row.audit_sequence,
            change_set: row.change_set,
        }
    }
}

pub(super) fn operations(diff: Value) -> Vec<Value> {
    match diff {
        Value::Array(operations) => operations,
        _ => Vec::new(),
    }
}

fn show_page(paged: &Paged<VersionRow>) -> Handled {
    let items = paged.items.iter().map(FlagVersion::of).collect();
    let body = FlagVersions { items, next_cursor: paged.next_cursor.clone() };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

fn show(compared: &Compared) -> Handled {
    let body = FlagVersionWithDiff {
        version: FlagVersion::of(&compared.row),
        content: compared.row.content(),
        against: compared.against.as_ref().map(|row| row.version),
        diff: operations(compared.diff()),
    };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Versions of a flag's definition, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags/{flag}/versions", tag = "versions", responses((status = 200, body = FlagVersions)))]
#[boxed]
async fn list_definition_versions(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    page: Page,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    show_page(&versions::definitions(&mut read, &scope, &at.flag, &page).await?)
}

/// One version of a flag's definition, and what it changed.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags/{flag}/versions/{version}", tag = "versions",
    params(("against" = Option<i64>, Query, description = "the version to compare with; the one before unless said")),
    responses((status = 200, body = FlagVersionWithDiff)))]
#[boxed]
async fn get_definition_version(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(asked): Asked<Against>,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    show(&versions::definition(&mut read, &scope, &at.flag, at.version, asked.against).await?)
}

/// Make a former definition the current one, as a new version. If-Match names the current version.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/flags/{flag}/versions/{version}/restore", tag = "versions",
    params(("If-Match" = String, Header, description = "the ETag that the change is made on, or *")),
    responses((status = 200, body = shapes::Flag)))]
#[boxed]
async fn restore_definition(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let row = versions::restore_definition(tx, &scope, &at.flag, at.version, expected).await?;
    write.finish(answer(StatusCode::OK, Some(row.version), &row.state())).await
}

/// Versions of what a flag does in this environment, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}/versions", tag = "versions", responses((status = 200, body = FlagVersions)))]
#[boxed]
async fn list_config_versions(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    page: Page,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    show_page(&versions::configs(&mut read, &scope, &at.environment, &at.flag, &page).await?)
}

/// One version of what a flag does in this environment, and what it changed.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}/versions/{version}", tag = "versions",
    params(("against" = Option<i64>, Query, description = "the version to compare with; the one before unless said")),
    responses((status = 200, body = FlagVersionWithDiff)))]
#[boxed]
async fn get_config_version(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(asked): Asked<Against>,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let (version, against) = (at.version, asked.against);
    let (environment, flag) = (&at.environment, &at.flag);
    show(&versions::config(&mut read, &scope, environment, flag, version, against).await?)
}

/// Make a former configuration the current one, as a new version. If-Match names the current version.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}/versions/{version}/restore", tag = "versions",
    params(("If-Match" = String, Header, description = "the ETag that the change is made on, or *")),
    responses((status = 200, body = shapes::ConfiguredFlag)))]
#[boxed]
async fn restore_config(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let (environment, flag) = (&at.environment, &at.flag);
    let row = versions::restore_config(tx, &scope, environment, flag, at.version, expected).await?;
    write.finish(answer(StatusCode::OK, Some(row.version()), &row.state())).await
}
