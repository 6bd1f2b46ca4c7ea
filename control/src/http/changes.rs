//! Routes of changes that are reviewed: change sets, what an environment demands of them, and the kill
//! switch that comes past it.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, Write, Writing, answer, boxed};
use super::problem::respond;
use super::shapes;
use super::versions::operations;
use crate::authorize::Scope;
use crate::change_sets::items::{Item, Kind, NewItem, Standing};
use crate::change_sets::state::State as SetState;
use crate::change_sets::{self, Approvals, ChangeSet, Edit, Outcome, Whole};
use crate::configs;
use crate::page::Page;
use crate::protection::{self, NewProtection, Protection};
use crate::refusal::Refusal;
use crate::store::rfc3339;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(get_protection, set_protection))
        .routes(routes!(kill_flag))
        .routes(routes!(list_change_sets, create_change_set))
        .routes(routes!(get_change_set, edit_change_set))
        .routes(routes!(submit_change_set))
        .routes(routes!(approve_change_set))
        .routes(routes!(reject_change_set))
        .routes(routes!(comment_change_set))
        .routes(routes!(rebase_change_set))
        .routes(routes!(apply_change_set))
        .routes(routes!(schedule_change_set))
        .routes(routes!(cancel_change_set))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KillFlag {
    /// Why, in 1 to 1,024 bytes; the audit keeps it.
    reason: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewChangeSet {
    /// 1 to 256 bytes.
    title: String,
    /// At most 10,000 bytes.
    #[serde(default)]
    description: String,
    /// 1 to 200, each about something else.
    items: Vec<NewItem>,
}

/// What is not named stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeSetEdit {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    description: Option<String>,
    /// In the place of all that there are.
    #[serde(default)]
    items: Option<Vec<NewItem>>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Words {
    /// At most 10,000 bytes.
    #[serde(default)]
    text: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct When {
    /// RFC 3339, to come, within a year; null: not any more.
    apply_at: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listing {
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    state: Option<SetState>,
}

/// A change set in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChangeSetSummary {
    number: i64,
    title: String,
    description: String,
    state: SetState,
    /// Why it is rejected, in conflict or failed.
    reason: Option<String>,
    author: String,
    /// Raised when its items change, or when it is rejected: approvals are of one.
    edition: i64,
    /// The ETag.
    version: i64,
    apply_at: Option<String>,
    scheduled_by: Option<String>,
    applied_at: Option<String>,
    applied_by: Option<String>,
    /// What it raised each environment to.
    revisions: std::collections::BTreeMap<String, i64>,
    created_at: String,
    updated_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChangeSetPage {
    items: Vec<ChangeSetSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChangeSetItem {
    kind: Kind,
    environment: Option<String>,
    key: String,
    /// What shall be there; null: it shall be gone.
    value: Value,
    base_version: i64,
    /// What it was made on, as it was; null: nothing was there.
    base: Value,
    /// What it does to that: RFC 6902.
    diff: Vec<Value>,
    current_version: i64,
    /// What it was made on is not what is there now.
    conflict: bool,
    /// What was done to its base meanwhile: RFC 6902; empty if nothing, or if it is applied.
    since: Vec<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChangeSetEvent {
    sequence: i64,
    /// created, edited, rebased, submitted, approved, rejected, commented, scheduled, unscheduled,
    /// applied, conflicted, failed or cancelled.
    kind: String,
    actor: String,
    text: String,
    edition: i64,
    at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WholeChangeSet {
    #[serde(flatten)]
    summary: ChangeSetSummary,
    items: Vec<ChangeSetItem>,
    /// Of protected environments that it touches.
    approvals: Vec<Approvals>,
    events: Vec<ChangeSetEvent>,
}

impl ChangeSetSummary {
    fn of(set: &ChangeSet) -> ChangeSetSummary {
        ChangeSetSummary {
            number: set.number,
            title: set.title.clone(),
            description: set.description.clone(),
            state: set.state,
            reason: set.reason.clone(),
            author: set.author.clone(),
            edition: set.edition,
            version: set.version,
            apply_at: set.apply_at.map(rfc3339),
            scheduled_by: set.scheduled_by.clone(),
            applied_at: set.applied_at.map(rfc3339),
            applied_by: set.applied_by.clone(),
            revisions: set.revisions.clone(),
            created_at: rfc3339(set.created_at),
            updated_at: rfc3339(set.updated_at),
        }
    }
}

impl WholeChangeSet {
    fn of(whole: &Whole) -> WholeChangeSet {
        let over = matches!(whole.set.state, SetState::Applied | SetState::Cancelled);
        let item = |(item, now): &(Item, Standing)| {
            let conflict = !over && item.is_in_conflict(now);
            let null = Value::Null;
            let since = match conflict {
                true => crate::versions::diff(
                    item.base.as_ref().unwrap_or(&null),
                    now.content.as_ref().unwrap_or(&null),
                ),
                false => Value::Null,
            };
            ChangeSetItem {
                kind: item.kind,
                environment: item.environment.clone(),
                key: item.key.clone(),
                value: item.value.clone().unwrap_or_default(),
                base_version: item.base_version,
                base: item.base.clone().unwrap_or_default(),
                diff: operations(item.diff()),
                current_version: now.version,
                conflict,
                since: operations(since),
            }
        };
        let event = |event: &change_sets::Event| ChangeSetEvent {
            sequence: event.sequence,
            kind: event.kind.clone(),
            actor: event.actor.clone(),
            text: event.text.clone(),
            edition: event.edition,
            at: rfc3339(event.at),
        };
        WholeChangeSet {
            summary: ChangeSetSummary::of(&whole.set),
            items: whole.items.iter().map(item).collect(),
            approvals: whole.approvals.clone(),
            events: whole.events.iter().map(event).collect(),
        }
    }
}

async fn finish(write: Write, status: StatusCode, whole: &Whole) -> Handled {
    let body = WholeChangeSet::of(whole);
    write.finish(answer(status, Some(whole.set.version), &body)).await
}

/// What an environment demands of changes.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/protection", tag = "change sets", responses((status = 200, body = Protection)))]
#[boxed]
async fn get_protection(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let protection = protection::get(&mut read, &scope, &at.environment).await?;
    Ok(respond(answer(StatusCode::OK, Some(protection.version), &protection)))
}

/// Demand approvals of changes in an environment, or none any more.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/protection", tag = "change sets", request_body = NewProtection, responses((status = 200, body = Protection)))]
#[boxed]
async fn set_protection(at: At, writing: Writing) -> Handled {
    let new: NewProtection = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let protection = protection::set(tx, &scope, &at.environment, expected, new).await?;
    write.finish(answer(StatusCode::OK, Some(protection.version), &protection)).await
}

/// Turn a flag off in an emergency, past all approvals. A flag that is off stays as it is.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}/kill", tag = "change sets", request_body = KillFlag, responses((status = 200, body = shapes::ConfiguredFlag)))]
#[boxed]
async fn kill_flag(at: At, writing: Writing) -> Handled {
    let body: KillFlag = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let tx = &mut write.tx;
    let done = configs::kill(tx, &scope, &at.environment, &at.flag, &body.reason).await;
    write.finish_unless_so(done.map(|row| row.state())).await
}

/// Change sets, newest first.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/change-sets", tag = "change sets",
    params(("state" = Option<SetState>, Query), ("limit" = Option<i64>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = ChangeSetPage)))]
#[boxed]
async fn list_change_sets(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(listing): Asked<Listing>,
) -> Handled {
    let page = Page::new(listing.limit, listing.cursor.as_deref())?;
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = change_sets::page(&mut read, &scope, &page, listing.state).await?;
    let items = paged.items.iter().map(ChangeSetSummary::of).collect();
    let body = ChangeSetPage { items, next_cursor: paged.next_cursor };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Make a draft of several edits.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets", tag = "change sets", request_body = NewChangeSet, responses((status = 201, body = WholeChangeSet)))]
#[boxed]
async fn create_change_set(at: At, writing: Writing) -> Handled {
    let NewChangeSet { title, description, items } = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let made = change_sets::create(&mut write.tx, &scope, &title, &description, items).await?;
    finish(write, StatusCode::CREATED, &made).await
}

/// One change set: its items with their differences, its approvals, and what was done and said.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/change-sets/{number}", tag = "change sets", responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn get_change_set(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let whole = change_sets::get(&mut read, &scope, at.number).await?;
    let body = WholeChangeSet::of(&whole);
    Ok(respond(answer(StatusCode::OK, Some(whole.set.version), &body)))
}

/// Edit a change set. It is a draft again: what was approved or scheduled was something else.
#[utoipa::path(patch, path = "/api/v1/namespaces/{namespace}/change-sets/{number}", tag = "change sets", request_body = ChangeSetEdit, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn edit_change_set(at: At, writing: Writing) -> Handled {
    let ChangeSetEdit { title, description, items } = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let edit = Edit { title, description, items };
    let (tx, expected) = (&mut write.tx, write.expected);
    let whole = change_sets::edit(tx, &scope, at.number, expected, edit).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Hand a draft in for review. Where nobody has to approve, it can be applied at once.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/submit", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn submit_change_set(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let whole = change_sets::submit(&mut write.tx, &scope, at.number, write.expected).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Approve a change set as it is at the version that If-Match names. Not by those who wrote it.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/approve", tag = "change sets",
    params(("If-Match" = String, Header, description = "the ETag of what was looked at, or *")),
    request_body = Words, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn approve_change_set(at: At, writing: Writing) -> Handled {
    let body: Words = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let whole = change_sets::approve(tx, &scope, at.number, expected, &body.text).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Say no to a change set, and why. Its approvals do not count any more.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/reject", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), request_body = Words, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn reject_change_set(at: At, writing: Writing) -> Handled {
    let body: Words = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let whole = change_sets::reject(tx, &scope, at.number, expected, &body.text).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Say something about a change set.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/comment", tag = "change sets", request_body = Words, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn comment_change_set(at: At, writing: Writing) -> Handled {
    let body: Words = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let whole = change_sets::comment(&mut write.tx, &scope, at.number, &body.text).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Make the same edits on what is there now. It is a draft again.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/rebase", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn rebase_change_set(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let whole = change_sets::rebase(&mut write.tx, &scope, at.number, write.expected).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Apply a change set: all of it, as one revision of each environment, or nothing. What it was made on
/// having changed, it is in conflict (409).
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/apply", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn apply_change_set(at: At, writing: Writing) -> Handled {
    let shared = writing.shared().clone();
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    match change_sets::apply(&mut write.tx, &scope, at.number, write.expected).await? {
        Outcome::Applied(whole) => finish(write, StatusCode::OK, &whole).await,
        Outcome::Conflict(of) => {
            drop(write);
            let mut tx = shared.store.write().await?;
            change_sets::collide(&mut tx, &scope, at.number, &of).await?;
            tx.commit().await?;
            shared.doorbell.ring();
            Err(Refusal::Conflict { of }.into())
        }
    }
}

/// Apply a change set when its time comes, late rather than early, once.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/schedule", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), request_body = When, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn schedule_change_set(at: At, writing: Writing) -> Handled {
    let body: When = writing.json()?;
    let apply_at = match body.apply_at {
        None => None,
        Some(text) => {
            let at = OffsetDateTime::parse(&text, &Rfc3339)
                .map_err(|error| Refusal::invalid("/applyAt", error.to_string()))?;
            let us = i64::try_from(at.unix_timestamp_nanos() / 1_000)
                .map_err(|_| Refusal::invalid("/applyAt", "a time within a year"))?;
            Some(us)
        }
    };
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let whole = change_sets::schedule(tx, &scope, at.number, expected, apply_at).await?;
    finish(write, StatusCode::OK, &whole).await
}

/// Give a change set up.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/cancel", tag = "change sets",
    params(("If-Match" = Option<String>, Header)), request_body = Words, responses((status = 200, body = WholeChangeSet)))]
#[boxed]
async fn cancel_change_set(at: At, writing: Writing) -> Handled {
    let body: Words = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let whole = change_sets::cancel(tx, &scope, at.number, expected, &body.text).await?;
    finish(write, StatusCode::OK, &whole).await
}
