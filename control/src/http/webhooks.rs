//! Webhooks: whom a namespace tells of its changes, and what became of that.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Writing, answer, boxed, list, no_content};
use super::problem::respond;
use crate::authorize::Scope;
use crate::page::Page;
use crate::store::rfc3339;
use crate::webhooks::{self, Attempt, Delivery, Settings, Webhook};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(rotate_webhook))
        .routes(routes!(test_webhook))
        .routes(routes!(list_deliveries))
        .routes(routes!(get_delivery))
        .routes(routes!(redeliver))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewWebhook {
    /// https://, a public address, port 443, 4443, 8443 or 9443.
    #[schema(max_length = 2048)]
    url: String,
    #[serde(default)]
    #[schema(max_length = 256)]
    description: String,
    /// `flag.create`, or `flag.*` for all that begins so; none: all.
    #[serde(default)]
    #[schema(max_items = 100)]
    actions: Vec<String>,
    /// Keys; none: all, and what is done in none.
    #[serde(default)]
    #[schema(max_items = 100)]
    environments: Vec<String>,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// What is not named stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookPatch {
    url: Option<String>,
    description: Option<String>,
    actions: Option<Vec<String>>,
    environments: Option<Vec<String>>,
    /// `true` after it was disabled: it goes on behind what could not be delivered.
    enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotation {
    /// So long bodies are signed with the secret before too.
    #[serde(default = "day")]
    #[schema(minimum = 0, maximum = 604_800)]
    overlap_seconds: i64,
}

fn day() -> i64 {
    24 * 60 * 60
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WebhookBody {
    id: String,
    url: String,
    description: String,
    actions: Vec<String>,
    environments: Vec<String>,
    enabled: bool,
    /// Why it is not told any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_reason: Option<String>,
    /// Until when bodies are signed with the secret before too.
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap_until: Option<String>,
    version: i64,
    created_by: String,
    created_at: String,
    updated_at: String,
    /// `whsec_…`; in the answer that made it, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Webhooks {
    items: Vec<WebhookBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DeliveryBody {
    /// The header `webhook-id` of each of its attempts.
    id: String,
    /// Its place in the order of what the endpoint is sent.
    ordinal: i64,
    event: String,
    /// Of the audit row or the anchor.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<i64>,
    /// waiting, delivered or dead.
    state: String,
    attempts: i64,
    /// RFC 3339; of one that waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<String>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    /// The newest ten.
    log: Vec<Attempt>,
    /// What was sent, to the byte; where one delivery is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Deliveries {
    items: Vec<DeliveryBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

impl WebhookBody {
    fn of(row: &Webhook, secret: Option<String>) -> WebhookBody {
        WebhookBody {
            id: row.id.clone(),
            url: row.url.clone(),
            description: row.description.clone(),
            actions: row.actions(),
            environments: row.environments(),
            enabled: row.enabled,
            disabled_reason: row.disabled_reason.clone(),
            overlap_until: row.overlap_until().map(rfc3339),
            version: row.version,
            created_by: row.created_by.clone(),
            created_at: rfc3339(row.created_at),
            updated_at: rfc3339(row.updated_at),
            secret,
        }
    }
}

impl DeliveryBody {
    fn of(row: &Delivery, with_body: bool) -> DeliveryBody {
        DeliveryBody {
            id: row.id.clone(),
            ordinal: row.ordinal,
            event: row.event.clone(),
            sequence: row.sequence,
            state: row.state.clone(),
            attempts: row.attempts,
            next_attempt_at: (row.state == "waiting").then(|| rfc3339(row.next_at)),
            created_at: rfc3339(row.created_at),
            finished_at: row.finished_at.map(rfc3339),
            log: row.attempts(),
            body: with_body.then(|| row.body.clone()),
        }
    }
}

/// Whom this namespace tells of its changes.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/webhooks", tag = "webhooks",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Webhooks)))]
#[boxed]
async fn list_webhooks(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = webhooks::page(&mut read, &scope, &page).await?;
    Ok(list(paged, |row| serde_json::to_value(WebhookBody::of(row, None)).unwrap_or_default()))
}

/// Tell somebody of what is done from now on; this answer is the only one that shows the secret.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/webhooks", tag = "webhooks", request_body = NewWebhook, responses((status = 201, body = WebhookBody)))]
#[boxed]
async fn create_webhook(at: At, writing: Writing) -> Handled {
    let new: NewWebhook = writing.json()?;
    let shared = writing.shared().clone();
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let settings = Settings {
        url: new.url,
        description: new.description,
        actions: new.actions,
        environments: new.environments,
        enabled: new.enabled,
    };
    let (outgoing, vault) = (&shared.outgoing, &shared.vault);
    let (row, secret) = webhooks::create(&mut write.tx, &scope, outgoing, vault, &settings).await?;
    let version = Some(row.version);
    let shown = answer(StatusCode::CREATED, version, &WebhookBody::of(&row, Some(secret)));
    let kept = answer(StatusCode::CREATED, version, &WebhookBody::of(&row, None));
    write.finish_with_secret(shown, kept).await
}

/// One of those who are told.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}", tag = "webhooks", responses((status = 200, body = WebhookBody)))]
#[boxed]
async fn get_webhook(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = webhooks::get(&mut read, &scope, &at.webhook).await?;
    Ok(respond(answer(StatusCode::OK, Some(row.version), &WebhookBody::of(&row, None))))
}

/// Change what somebody is told, or where; or let it go on.
#[utoipa::path(patch, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}", tag = "webhooks", request_body = WebhookPatch, responses((status = 200, body = WebhookBody)))]
#[boxed]
async fn update_webhook(at: At, writing: Writing) -> Handled {
    let patch: WebhookPatch = writing.json()?;
    let shared = writing.shared().clone();
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let expected = write.expected;
    let row = webhooks::update(
        &mut write.tx,
        &scope,
        &shared.outgoing,
        expected,
        &at.webhook,
        |before| Settings {
            url: patch.url.unwrap_or(before.url),
            description: patch.description.unwrap_or(before.description),
            actions: patch.actions.unwrap_or(before.actions),
            environments: patch.environments.unwrap_or(before.environments),
            enabled: patch.enabled.unwrap_or(before.enabled),
        },
    )
    .await?;
    write.finish(answer(StatusCode::OK, Some(row.version), &WebhookBody::of(&row, None))).await
}

/// Tell somebody no more; what was delivered is forgotten.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}", tag = "webhooks", responses((status = 204)))]
#[boxed]
async fn delete_webhook(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let expected = write.expected;
    webhooks::delete(&mut write.tx, &scope, expected, &at.webhook).await?;
    write.finish(no_content()).await
}

/// Another secret, which this answer alone shows; for a while bodies are signed with both.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}/rotate", tag = "webhooks", request_body = Rotation, responses((status = 200, body = WebhookBody)))]
#[boxed]
async fn rotate_webhook(at: At, writing: Writing) -> Handled {
    let rotation: Rotation = writing.json()?;
    let shared = writing.shared().clone();
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (id, overlap) = (&at.webhook, rotation.overlap_seconds);
    let (row, secret) = webhooks::rotate(&mut write.tx, &scope, &shared.vault, id, overlap).await?;
    let version = Some(row.version);
    let shown = answer(StatusCode::OK, version, &WebhookBody::of(&row, Some(secret)));
    let kept = answer(StatusCode::OK, version, &WebhookBody::of(&row, None));
    write.finish_with_secret(shown, kept).await
}

/// Send something that says nothing, to see whether it comes.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}/test", tag = "webhooks", responses((status = 202, body = DeliveryBody)))]
#[boxed]
async fn test_webhook(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let row = webhooks::test(&mut write.tx, &scope, &at.webhook).await?;
    write.finish(answer(StatusCode::ACCEPTED, None, &DeliveryBody::of(&row, true))).await
}

/// What somebody was told, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}/deliveries", tag = "webhooks",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Deliveries)))]
#[boxed]
async fn list_deliveries(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    page: Page,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = webhooks::deliveries(&mut read, &scope, &at.webhook, &page).await?;
    Ok(list(paged, |row| serde_json::to_value(DeliveryBody::of(row, false)).unwrap_or_default()))
}

/// One delivery, with what is sent.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}/deliveries/{delivery}", tag = "webhooks", responses((status = 200, body = DeliveryBody)))]
#[boxed]
async fn get_delivery(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = webhooks::delivery(&mut read, &scope, &at.webhook, &at.delivery).await?;
    Ok(respond(answer(StatusCode::OK, None, &DeliveryBody::of(&row, true))))
}

/// Send a delivery once more, under its id, before what waits; an endpoint that rests goes on with it.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/webhooks/{webhook}/deliveries/{delivery}/redeliver", tag = "webhooks", responses((status = 202, body = DeliveryBody)))]
#[boxed]
async fn redeliver(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let row = webhooks::redeliver(&mut write.tx, &scope, &at.webhook, &at.delivery).await?;
    write.finish(answer(StatusCode::ACCEPTED, None, &DeliveryBody::of(&row, true))).await
}
