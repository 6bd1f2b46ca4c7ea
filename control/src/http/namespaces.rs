//! The admin API's routes for namespaces and their environments.
//! Each handler parses, calls one domain function, shows.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Writing, answer, boxed, list, no_content};
use super::problem::respond;
use super::shapes;
use crate::authorize::Scope;
use crate::environments::Environment;
use crate::namespaces::Namespace;
use crate::page::Page;
use crate::store::rfc3339;
use crate::{environments, fleet, namespaces, rollout};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_namespaces, create_namespace))
        .routes(routes!(get_namespace, rename_namespace, delete_namespace))
        .routes(routes!(list_environments, create_environment))
        .routes(routes!(get_environment, delete_environment))
        .routes(routes!(publish_environment))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct New {
    /// 1 to 64 of a-z, 0-9, '-', '_' and '.'
    key: String,
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rename {
    name: String,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Publish {
    /// Past the gate that holds up a snapshot which more than doubles or halves.
    #[serde(default)]
    allow_growth: bool,
}

fn show_namespace(row: &Namespace) -> Value {
    json!({ "key": row.key, "name": row.name, "version": row.version,
        "createdAt": rfc3339(row.created_at), "updatedAt": rfc3339(row.updated_at) })
}

fn show_environment(row: &Environment) -> Value {
    let published = row.published_revision.map(|revision| {
        json!({ "generation": row.published_generation, "revision": revision,
            "at": row.published_at.map(rfc3339) })
    });
    let mut shown = json!({ "key": row.key, "name": row.name, "generation": row.generation,
        "revision": row.revision, "published": published,
        "createdAt": rfc3339(row.created_at), "updatedAt": rfc3339(row.updated_at) });
    if let (Some(rejected), Value::Object(fields)) = (&row.rejected, &mut shown) {
        fields.insert("rejected".to_owned(), json!(rejected));
    }
    shown
}

/// Namespaces, by key.
#[utoipa::path(get, path = "/api/v1/namespaces", tag = "namespaces", responses((status = 200, body = shapes::NamespacePage)))]
#[boxed]
async fn list_namespaces(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(list(namespaces::page(&mut read, &scope, &page).await?, show_namespace))
}

/// Make a namespace.
#[utoipa::path(post, path = "/api/v1/namespaces", tag = "namespaces", request_body = New, responses((status = 201, body = shapes::Namespace)))]
#[boxed]
async fn create_namespace(writing: Writing) -> Handled {
    let new: New = writing.json()?;
    let mut write = writing.begin().await?;
    let made = namespaces::create(&mut write.tx, &write.scope, &new.key, &new.name).await?;
    write.finish(answer(StatusCode::CREATED, Some(made.version), &show_namespace(&made))).await
}

/// One namespace.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}", tag = "namespaces", responses((status = 200, body = shapes::Namespace)))]
#[boxed]
async fn get_namespace(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = namespaces::get(&mut read, &scope).await?;
    Ok(respond(answer(StatusCode::OK, Some(row.version), &show_namespace(&row))))
}

/// Change a namespace's name.
#[utoipa::path(patch, path = "/api/v1/namespaces/{namespace}", tag = "namespaces", request_body = Rename, responses((status = 200, body = shapes::Namespace)))]
#[boxed]
async fn rename_namespace(at: At, writing: Writing) -> Handled {
    let body: Rename = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let row = namespaces::rename(&mut write.tx, &scope, write.expected, &body.name).await?;
    write.finish(answer(StatusCode::OK, Some(row.version), &show_namespace(&row))).await
}

/// Delete a namespace with everything in it.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}", tag = "namespaces", responses((status = 204)))]
#[boxed]
async fn delete_namespace(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    namespaces::delete(&mut write.tx, &scope, write.expected).await?;
    write.finish(no_content()).await
}

/// Environments of a namespace, by key.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments", tag = "environments", responses((status = 200, body = shapes::EnvironmentPage)))]
#[boxed]
async fn list_environments(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    page: Page,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    Ok(list(environments::page(&mut read, &scope, &page).await?, show_environment))
}

/// Make an environment; every flag is off in it at first.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments", tag = "environments", request_body = New, responses((status = 201, body = shapes::Environment)))]
#[boxed]
async fn create_environment(at: At, writing: Writing) -> Handled {
    let new: New = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let made = environments::create(&mut write.tx, &scope, &new.key, &new.name).await?;
    write.finish(answer(StatusCode::CREATED, Some(made.revision), &show_environment(&made))).await
}

/// One environment: its revision, the one that is published, and how its newest staged rollout goes.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}", tag = "environments", responses((status = 200, body = shapes::Environment)))]
#[boxed]
async fn get_environment(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = environments::get(&mut read, &scope, &at.environment).await?;
    let live = fleet::live(&mut read, &row.id, row.generation, row.revision).await?;
    let mut shown = show_environment(&row);
    if let Value::Object(fields) = &mut shown {
        let live = json!({ "everywhere": live.everywhere(), "edges": live.edges,
            "serving": live.serving, "rejected": live.rejected });
        fields.insert("live".to_owned(), live);
        if let Some(rollout) = rollout::one(&mut read, &row.id).await? {
            fields.insert("rollout".to_owned(), rollout.show());
        }
    }
    Ok(respond(answer(StatusCode::OK, Some(row.revision), &shown)))
}

/// Delete an environment with its configurations, segments and keys.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/environments/{environment}", tag = "environments", responses((status = 204)))]
#[boxed]
async fn delete_environment(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    environments::delete(&mut write.tx, &scope, &at.environment, write.expected).await?;
    write.finish(no_content()).await
}

/// Publish an environment anew, if need be past the growth gate.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/publish", tag = "environments", request_body = Publish, responses((status = 202, body = shapes::Environment)))]
#[boxed]
async fn publish_environment(at: At, writing: Writing) -> Handled {
    let body: Publish = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, environment) = (&mut write.tx, &at.environment);
    let row = environments::publish(tx, &scope, environment, body.allow_growth).await?;
    write.finish(answer(StatusCode::ACCEPTED, Some(row.revision), &show_environment(&row))).await
}
