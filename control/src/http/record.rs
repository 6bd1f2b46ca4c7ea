//! What was done, and by whom: the audit of namespaces and of the installation.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::moment;
use super::extract::{Asked, At, Handled, Shared, answer, boxed, list};
use super::problem::respond;
use crate::anchors::{self, SignedAnchor};
use crate::audit::{self, Filter, INSTANCE, Row, hex};
use crate::authorize::{Permission, Scope};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::{Connection, rfc3339};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_audit))
        .routes(routes!(verify_audit))
        .routes(routes!(export_audit))
        .routes(routes!(list_instance_audit))
        .routes(routes!(verify_instance_audit))
        .routes(routes!(export_instance_audit))
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
    /// Signed ends that the chain agrees with.
    #[serde(skip_serializing_if = "is_zero")]
    anchors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// Rows beyond this one.
    #[serde(default)]
    #[param(minimum = 0)]
    after: i64,
}

/// A row with all that its hash is of. `before` and `after` are texts, since the hash is of these.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportedRow {
    /// The namespace's id, or "instance".
    pub chain: String,
    pub sequence: i64,
    /// Which fields the hash is of.
    pub form: i64,
    /// Microseconds since 1970.
    pub at: i64,
    pub actor: String,
    pub actor_kind: Option<String>,
    pub actor_id: Option<String>,
    pub via: Option<String>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
    pub change_set: Option<String>,
    pub action: String,
    pub target: String,
    pub environment: Option<String>,
    /// JSON
    pub before: Option<String>,
    /// JSON
    pub after: Option<String>,
    /// Hexadecimal, as the hash.
    pub previous: String,
    pub hash: String,
}

/// A part of a chain: rows until there are none, and the anchors of those.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditExport {
    /// The namespace's id, or "instance".
    pub chain: String,
    /// The namespace's key, or "instance".
    pub name: String,
    /// The number of the chain's newest row, and its hash.
    pub sequence: i64,
    pub hash: String,
    /// What anchors are signed with now. Pin it elsewhere: here it is only said.
    pub public_key: String,
    pub rows: Vec<ExportedRow>,
    pub anchors: Vec<SignedAnchor>,
}

impl ExportedRow {
    fn of(row: Row) -> ExportedRow {
        ExportedRow {
            chain: row.namespace_id,
            sequence: row.sequence,
            form: row.form,
            at: row.at,
            actor: row.actor,
            actor_kind: row.actor_kind,
            actor_id: row.actor_id,
            via: row.via,
            address: row.address,
            user_agent: row.user_agent,
            change_set: row.change_set,
            action: row.action,
            target: row.target,
            environment: row.environment,
            before: row.before,
            after: row.after,
            previous: hex(&row.previous),
            hash: hex(&row.hash),
        }
    }

    /// None if its hashes are none.
    pub fn row(self) -> Option<Row> {
        Some(Row {
            namespace_id: self.chain,
            sequence: self.sequence,
            form: self.form,
            at: self.at,
            actor: self.actor,
            actor_kind: self.actor_kind,
            actor_id: self.actor_id,
            via: self.via,
            address: self.address,
            user_agent: self.user_agent,
            change_set: self.change_set,
            action: self.action,
            target: self.target,
            environment: self.environment,
            before: self.before,
            after: self.after,
            previous: unhex(&self.previous)?,
            hash: unhex(&self.hash)?,
        })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Of one answer; a row can be as long as the body that it came with, twice.
const EXPORT_ROWS: i64 = 100;

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

async fn verdict(shared: &Shared, chain: &str) -> Handled {
    let mut read = shared.store.read().await?;
    let key = [shared.publisher.public_key()];
    let anchors = anchors::trusted(&mut read, chain, &shared.anchors_file, &key).await?;
    let verdict = match audit::verify_with(&mut read, chain, &anchors).await? {
        Ok(walked) => AuditVerdict {
            valid: true,
            rows: walked.rows,
            first_bad: None,
            anchors: walked.anchors,
            problem: None,
        },
        Err(broken) => AuditVerdict {
            valid: false,
            rows: broken.first_bad() - 1,
            first_bad: Some(broken.first_bad()),
            anchors: 0,
            problem: Some(broken.to_string()),
        },
    };
    Ok(respond(answer(StatusCode::OK, None, &verdict)))
}

async fn part(shared: &Shared, chain: &str, name: &str, after: i64) -> Handled {
    if after < 0 {
        return Err(Refusal::invalid("/after", "rows are numbered from 1").into());
    }
    let mut read = shared.store.read().await?;
    let (sequence, hash) = audit::end(&mut read, chain).await?;
    let rows = audit::after(&mut read, chain, after, EXPORT_ROWS).await?;
    let anchors = match rows.last() {
        Some(last) => {
            let anchors = anchors::of_chain(&mut read, chain, after, EXPORT_ROWS).await?;
            let is_within = |signed: &SignedAnchor| {
                signed.claims().is_some_and(|anchor| anchor.sequence <= last.sequence)
            };
            anchors.into_iter().filter(is_within).collect()
        }
        // Those of rows that are not there any more.
        None => anchors::of_chain(&mut read, chain, after, EXPORT_ROWS).await?,
    };
    let export = AuditExport {
        chain: chain.to_owned(),
        name: name.to_owned(),
        sequence,
        hash: hex(&hash),
        public_key: shared.publisher.public_key().to_string(),
        rows: rows.into_iter().map(ExportedRow::of).collect(),
        anchors,
    };
    Ok(respond(answer(StatusCode::OK, None, &export)))
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditRows)))]
#[boxed]
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

/// Whether the audit log's chain of hashes holds, and is what was signed.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/audit/verify", tag = "audit", responses((status = 200, body = AuditVerdict)))]
#[boxed]
async fn verify_audit(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let scope = {
        let mut read = shared.store.read().await?;
        at.scope(&mut read, &scope).await?
    };
    verdict(&shared, scope.id()).await
}

/// The audit log with all that its hashes are of, oldest first, a hundred rows at a time, and what was
/// signed of it.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/audit/export", tag = "audit", params(ExportQuery), responses((status = 200, body = AuditExport)))]
#[boxed]
async fn export_audit(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(asked): Asked<ExportQuery>,
) -> Handled {
    let scope = {
        let mut read = shared.store.read().await?;
        at.scope(&mut read, &scope).await?
    };
    part(&shared, scope.id(), scope.key(), asked.after).await
}

/// Who changed what of the installation: accounts, operators, namespaces, keys of edges; newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditRows)))]
#[boxed]
async fn list_instance_audit(
    State(shared): State<Shared>,
    Asked(asked): Asked<AuditQuery>,
) -> Handled {
    let mut read = shared.store.read().await?;
    page(&mut read, INSTANCE, asked, true).await
}

/// Whether the chain of hashes of the installation's audit log holds, and is what was signed.
#[utoipa::path(get, path = "/api/v1/audit/verify", tag = "audit", responses((status = 200, body = AuditVerdict)))]
#[boxed]
async fn verify_instance_audit(State(shared): State<Shared>) -> Handled {
    verdict(&shared, INSTANCE).await
}

/// The installation's audit log with all that its hashes are of, oldest first.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit", params(ExportQuery), responses((status = 200, body = AuditExport)))]
#[boxed]
async fn export_instance_audit(
    State(shared): State<Shared>,
    Asked(asked): Asked<ExportQuery>,
) -> Handled {
    part(&shared, INSTANCE, INSTANCE, asked.after).await
}
