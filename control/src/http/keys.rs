//! Keys of environments and of edges: made, shown once, changed, rotated, deleted.

use axum::extract::State;
use http::StatusCode;
use rules::keys::{ApiKey, KeyKind};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{
    At, Handled, Shared, Write, Writing, answer, boxed, list, moment, no_content,
};
use super::problem::respond;
use crate::authorize::Scope;
use crate::keys::{self, EdgeKeyRow, KeyChanges, KeyRow, NewKey, Rotation, Sees};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::{now_us, rfc3339};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key, change_key, delete_key))
        .routes(routes!(rotate_key))
        .routes(routes!(list_edge_keys, create_edge_key))
        .routes(routes!(get_edge_key, change_edge_key, delete_edge_key))
        .routes(routes!(rotate_edge_key))
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum NewKeyKind {
    Server,
    Browser,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyToMake {
    kind: NewKeyKind,
    #[serde(default)]
    name: String,
    /// Of browser keys: exact origins; none allows every origin.
    #[serde(default)]
    origins: Vec<String>,
    /// RFC 3339; from then on edges refuse it. None: valid until it is deleted.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Requests in a second at each edge, instead of what that edge allows every key.
    #[schema(minimum = 1, maximum = 1_000_000)]
    rate_per_second: Option<u32>,
}

/// What is left out stays; null takes it away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyToChange {
    name: Option<String>,
    origins: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000)]
    rate_per_second: Option<Option<u32>>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotate {
    /// For how long the old key stays valid; 0 ends it at once.
    #[serde(default = "overlap_default")]
    #[schema(minimum = 0, maximum = 7_776_000, default = 86_400)]
    overlap_seconds: i64,
    /// Of the new key, RFC 3339. Unless given, it is valid for as long as the old one was made for.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

fn overlap_default() -> i64 {
    keys::OVERLAP_SECONDS_DEFAULT
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EdgeKeyToMake {
    /// A list of namespace keys, or "all".
    #[schema(value_type = Value)]
    namespaces: EdgeNamespaces,
    #[serde(default)]
    name: String,
    /// RFC 3339; from then on control refuses it.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum EdgeNamespaces {
    Named(Vec<String>),
    Word(String),
}

/// What is left out stays; null takes it away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EdgeKeyToChange {
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<String>>,
}

/// A field that is there, also where it is null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// A key without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    /// `server` or `browser`
    kind: String,
    name: String,
    origins: Vec<String>,
    created_at: String,
    expires_at: Option<String>,
    expired: bool,
    rate_per_second: Option<i64>,
    /// To the minute, as edges reported it; none: never.
    last_used_at: Option<String>,
    /// The key that this one was made from.
    replaces: Option<String>,
    /// The key itself, in the answer that makes it and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what `list` writes")]
struct Keys {
    items: Vec<Key>,
    next_cursor: Option<String>,
}

/// An edge's key without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct EdgeKey {
    id: String,
    name: String,
    /// A list of namespace keys, or "all".
    namespaces: Value,
    created_at: String,
    expires_at: Option<String>,
    expired: bool,
    /// To the minute, by its edges' receipts and reports of usage; none: never.
    last_used_at: Option<String>,
    /// The key that this one was made from.
    replaces: Option<String>,
    /// The key itself, in the answer that makes it and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what `list` writes")]
struct EdgeKeys {
    items: Vec<EdgeKey>,
    next_cursor: Option<String>,
}

fn show(row: &KeyRow) -> Key {
    Key {
        id: row.id.clone(),
        kind: row.kind.clone(),
        name: row.name.clone(),
        origins: keys::origins(row),
        created_at: rfc3339(row.created_at),
        expires_at: row.expires_at.map(rfc3339),
        expired: row.expires_at.is_some_and(|at| at <= now_us()),
        rate_per_second: row.per_second,
        last_used_at: row.last_minute.map(|minute| rfc3339(minute * 60_000_000)),
        replaces: row.replaces.clone(),
        key: None,
    }
}

fn show_of_edge(row: &EdgeKeyRow, namespaces: &[String]) -> EdgeKey {
    EdgeKey {
        id: row.id.clone(),
        name: row.name.clone(),
        namespaces: match row.all_namespaces {
            true => "all".into(),
            false => namespaces.into(),
        },
        created_at: rfc3339(row.created_at),
        expires_at: row.expires_at.map(rfc3339),
        expired: row.expires_at.is_some_and(|at| at <= now_us()),
        last_used_at: row.last_used_at.map(rfc3339),
        replaces: row.replaces.clone(),
        key: None,
    }
}

fn value(shown: &impl Serialize) -> Value {
    serde_json::to_value(shown).unwrap_or_default()
}

/// The key in the answer, and not in what is kept of it for a repeated request.
async fn made(write: Write, key: &ApiKey, shown: impl Serialize) -> Handled {
    let kept = value(&shown);
    let mut shown = kept.clone();
    if let Value::Object(fields) = &mut shown {
        fields.insert("key".to_owned(), key.reveal().into());
    }
    let answer = |body: &Value| answer(StatusCode::CREATED, None, body);
    write.finish_with_secret(answer(&shown), answer(&kept)).await
}

impl Rotate {
    fn rotation(&self) -> Result<Rotation, Refusal> {
        let expires_at = moment("/expiresAt", self.expires_at.as_deref())?;
        Ok(Rotation { overlap_seconds: self.overlap_seconds, expires_at })
    }
}

/// A time that is given, or null.
fn moment_or_null(given: &Option<Option<String>>) -> Result<Option<Option<i64>>, Refusal> {
    match given {
        None => Ok(None),
        Some(text) => Ok(Some(moment("/expiresAt", text.as_deref())?)),
    }
}

/// API keys of an environment, without their secrets.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys", tag = "keys", responses((status = 200, body = Keys)))]
#[boxed]
async fn list_keys(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = keys::page(&mut read, &scope, &at.environment, &page).await?;
    Ok(list(paged, |row| value(&show(row))))
}

/// Make an API key; this answer is the only one that shows it.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys", tag = "keys", request_body = KeyToMake, responses((status = 201, body = Key)))]
#[boxed]
async fn create_key(at: At, writing: Writing) -> Handled {
    let new: KeyToMake = writing.json()?;
    let new_key = NewKey {
        kind: match new.kind {
            NewKeyKind::Server => KeyKind::Server,
            NewKeyKind::Browser => KeyKind::Browser,
        },
        name: &new.name,
        origins: &new.origins,
        expires_at: moment("/expiresAt", new.expires_at.as_deref())?,
        per_second: new.rate_per_second,
    };
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (key, row) = keys::create(&mut write.tx, &scope, &at.environment, new_key).await?;
    made(write, &key, show(&row)).await
}

/// One API key, without its secret.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys/{id}", tag = "keys", responses((status = 200, body = Key)))]
#[boxed]
async fn get_key(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = keys::get(&mut read, &scope, &at.environment, &at.id).await?;
    Ok(respond(answer(StatusCode::OK, None, &show(&row))))
}

/// Change an API key's name, origins, expiry or rate.
#[utoipa::path(patch, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys/{id}", tag = "keys", request_body = KeyToChange, responses((status = 200, body = Key)))]
#[boxed]
async fn change_key(at: At, writing: Writing) -> Handled {
    let body: KeyToChange = writing.json()?;
    let changes = KeyChanges {
        expires_at: moment_or_null(&body.expires_at)?,
        name: body.name,
        origins: body.origins,
        per_second: body.rate_per_second,
    };
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let row = keys::change(&mut write.tx, &scope, &at.environment, &at.id, &changes).await?;
    write.finish(answer(StatusCode::OK, None, &show(&row))).await
}

/// Make an API key's successor with the same settings; the old one is valid for the overlap.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys/{id}/rotate", tag = "keys", request_body = Rotate, responses((status = 201, body = Key)))]
#[boxed]
async fn rotate_key(at: At, writing: Writing) -> Handled {
    let rotation = writing.json::<Rotate>()?.rotation()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, environment) = (&mut write.tx, &at.environment);
    let (key, row) = keys::rotate(tx, &scope, environment, &at.id, rotation).await?;
    made(write, &key, show(&row)).await
}

/// Delete an API key; edges refuse it once they have the next snapshot.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/environments/{environment}/keys/{id}", tag = "keys", responses((status = 204)))]
#[boxed]
async fn delete_key(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    keys::delete(&mut write.tx, &scope, &at.environment, &at.id).await?;
    write.finish(no_content()).await
}

/// Keys of edges, without their secrets.
#[utoipa::path(get, path = "/api/v1/edge-keys", tag = "edge keys", responses((status = 200, body = EdgeKeys)))]
#[boxed]
async fn list_edge_keys(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let paged = keys::edge_page(&mut read, &scope, &page).await?;
    Ok(list(paged, |(row, namespaces)| value(&show_of_edge(row, namespaces))))
}

/// Make a key for an edge node; this answer is the only one that shows it.
#[utoipa::path(post, path = "/api/v1/edge-keys", tag = "edge keys", request_body = EdgeKeyToMake, responses((status = 201, body = EdgeKey)))]
#[boxed]
async fn create_edge_key(writing: Writing) -> Handled {
    let new: EdgeKeyToMake = writing.json()?;
    let sees = match new.namespaces {
        EdgeNamespaces::Named(keys) => Sees::Namespaces(keys),
        EdgeNamespaces::Word(word) if word == "all" => Sees::All,
        EdgeNamespaces::Word(_) => {
            let message = "a list of namespace keys, or \"all\"";
            return Err(Refusal::invalid("/namespaces", message).into());
        }
    };
    let expires_at = moment("/expiresAt", new.expires_at.as_deref())?;
    let mut write = writing.begin().await?;
    let (tx, scope) = (&mut write.tx, &write.scope);
    let (key, row) = keys::edge_create(tx, scope, &new.name, &sees, expires_at).await?;
    let named = match sees {
        Sees::All => Vec::new(),
        Sees::Namespaces(keys) => keys,
    };
    made(write, &key, show_of_edge(&row, &named)).await
}

/// One key of edges, without its secret.
#[utoipa::path(get, path = "/api/v1/edge-keys/{id}", tag = "edge keys", responses((status = 200, body = EdgeKey)))]
#[boxed]
async fn get_edge_key(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let (row, namespaces) = keys::edge_get(&mut read, &scope, &at.id).await?;
    Ok(respond(answer(StatusCode::OK, None, &show_of_edge(&row, &namespaces))))
}

/// Change an edge key's name or expiry.
#[utoipa::path(patch, path = "/api/v1/edge-keys/{id}", tag = "edge keys", request_body = EdgeKeyToChange, responses((status = 200, body = EdgeKey)))]
#[boxed]
async fn change_edge_key(at: At, writing: Writing) -> Handled {
    let body: EdgeKeyToChange = writing.json()?;
    let expires_at = moment_or_null(&body.expires_at)?;
    let mut write = writing.begin().await?;
    let (tx, scope) = (&mut write.tx, &write.scope);
    let name = body.name.as_deref();
    let (row, namespaces) = keys::edge_change(tx, scope, &at.id, name, expires_at).await?;
    write.finish(answer(StatusCode::OK, None, &show_of_edge(&row, &namespaces))).await
}

/// Make an edge key's successor, which sees the same; the old one is valid for the overlap.
#[utoipa::path(post, path = "/api/v1/edge-keys/{id}/rotate", tag = "edge keys", request_body = Rotate, responses((status = 201, body = EdgeKey)))]
#[boxed]
async fn rotate_edge_key(at: At, writing: Writing) -> Handled {
    let rotation = writing.json::<Rotate>()?.rotation()?;
    let mut write = writing.begin().await?;
    let (tx, scope) = (&mut write.tx, &write.scope);
    let (key, row, namespaces) = keys::edge_rotate(tx, scope, &at.id, rotation).await?;
    made(write, &key, show_of_edge(&row, &namespaces)).await
}

/// Delete an edge's key, at once.
#[utoipa::path(delete, path = "/api/v1/edge-keys/{id}", tag = "edge keys", responses((status = 204)))]
#[boxed]
async fn delete_edge_key(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    keys::edge_delete(&mut write.tx, &write.scope, &at.id).await?;
    write.finish(no_content()).await
}
