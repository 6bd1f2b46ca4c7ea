//! What was done, and by whom: the audit of namespaces and of the installation.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::moment;
use super::extract::{Asked, At, Handled, Shared, answer, list};
use super::problem::respond;
use crate::audit::{self, Filter, INSTANCE, Row};
use crate::authorize::{Permission, Scope};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::{Connection, rfc3339};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_audit))
        .routes(routes!(verify_audit))
        .routes(routes!(list_instance_audit))
        .routes(routes!(verify_instance_audit))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    cursor: Option<String>,
    /// Who: their name as the audit has it, or their id.
    actor: Option<String>,
    /// What was done: `flag.create`, or `flag.*` for all that begins so.
    action: Option<String>,
    /// On what: the key or the id of a flag, a segment, a key …
    object: Option<String>,
    /// Key of the environment.
    environment: Option<String>,
    /// RFC 3339; from this time on.
    from: Option<String>,
    /// RFC 3339; before this time.
    to: Option<String>,
    /// The change set that it was a part of.
    change_set: Option<String>,
}

/// One change. It is never altered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// 1, 2, 3 … without a gap, in the order in which changes were committed.
    sequence: i64,
    /// RFC 3339
    at: String,
    /// Who did it, as people read it.
    actor: String,
    /// user, service, bootstrap, control or command-line; none in rows from before there were accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_id: Option<String>,
    /// The session or personal token that they came with; shown to administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    /// Where the request came from; shown to administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Their program, as it calls itself; shown to administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    /// The change set that it was a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    change_set: Option<String>,
    action: String,
    target: String,
    environment: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
    /// SHA-256 of the row before and this one, hexadecimal.
    hash: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditRows {
    items: Vec<AuditRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditVerdict {
    valid: bool,
    /// That are as they were written, from the first on.
    rows: i64,
    /// The first that is not as it was written, or is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_bad: Option<i64>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl AuditRow {
    fn of(row: &Row, to_administrators: bool) -> AuditRow {
        let json = |text: &Option<String>| {
            text.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok())
        };
        let guarded = |text: &Option<String>| text.clone().filter(|_| to_administrators);
        AuditRow {
            sequence: row.sequence,
            at: rfc3339(row.at),
            actor: row.actor.clone(),
            actor_kind: row.actor_kind.clone(),
            actor_id: row.actor_id.clone(),
            via: guarded(&row.via),
            address: guarded(&row.address),
            user_agent: guarded(&row.user_agent),
            change_set: row.change_set.clone(),
            action: row.action.clone(),
            target: row.target.clone(),
            environment: row.environment.clone(),
            before: json(&row.before),
            after: json(&row.after),
            hash: hex(&row.hash),
        }
    }
}

async fn page(
    read: &mut Connection,
    chain: &str,
    asked: AuditQuery,
    to_administrators: bool,
) -> Handled {
    let page = Page::new(asked.limit, asked.cursor.as_deref())?;
    let before = match page.after.as_str() {
        "" => i64::MAX,
        cursor => {
            cursor.parse().map_err(|_| Refusal::invalid("/cursor", "not a cursor of this list"))?
        }
    };
    let filter = Filter {
        actor: asked.actor,
        action: asked.action,
        target: asked.object,
        environment: asked.environment,
        from: moment("/from", asked.from.as_deref())?,
        to: moment("/to", asked.to.as_deref())?,
        change_set: asked.change_set,
    };
    // A database that counts characters to their first NUL, or refuses them, is asked nothing odd.
    let texts = [&filter.actor, &filter.action, &filter.target, &filter.environment];
    if texts.into_iter().chain([&filter.change_set]).flatten().any(|text| text.contains('\0')) {
        return Err(Refusal::invalid("", "there is no such text").into());
    }
    let rows = audit::page(read, chain, &filter, before, page.fetch()).await?;
    let paged = page.cut(rows, |row| row.sequence.to_string());
    Ok(list(paged, |row| {
        serde_json::to_value(AuditRow::of(row, to_administrators)).unwrap_or_default()
    }))
}

async fn verdict(read: &mut Connection, chain: &str) -> Handled {
    let verdict = match audit::verify(read, chain).await? {
        Ok(rows) => AuditVerdict { valid: true, rows, first_bad: None },
        Err(bad) => AuditVerdict { valid: false, rows: bad - 1, first_bad: Some(bad) },
    };
    Ok(respond(answer(StatusCode::OK, None, &verdict)))
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditRows)))]
async fn list_audit(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(asked): Asked<AuditQuery>,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    page(&mut read, scope.id(), asked, scope.may(Permission::Administer)).await
}

/// Whether the audit log's chain of hashes holds.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/audit/verify", tag = "audit", responses((status = 200, body = AuditVerdict)))]
async fn verify_audit(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    verdict(&mut read, scope.id()).await
}

/// Who changed what of the installation: accounts, operators, namespaces, keys of edges; newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditRows)))]
async fn list_instance_audit(
    State(shared): State<Shared>,
    Asked(asked): Asked<AuditQuery>,
) -> Handled {
    let mut read = shared.store.read().await?;
    page(&mut read, INSTANCE, asked, true).await
}

/// Whether the chain of hashes of the installation's audit log holds.
#[utoipa::path(get, path = "/api/v1/audit/verify", tag = "audit", responses((status = 200, body = AuditVerdict)))]
async fn verify_instance_audit(State(shared): State<Shared>) -> Handled {
    let mut read = shared.store.read().await?;
    verdict(&mut read, INSTANCE).await
}
