//! Routes of wasm policies: uploads, verdicts, and what an environment pins.
//!
//! A module comes as it is (`application/wasm`), its author's vectors after it as JSON: they are run
//! against the version that is there, in the place of what admission runs without any.

use axum::extract::State;
use http::StatusCode;
use rules::blob::Digest;
use sandbox::policy::Vector;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Write, Writing, answer, boxed, no_content};
use super::policy_bodies::{
    PolicyPage, PolicyPins, PolicyVectors, PolicyVersion, PolicyWithVersions,
};
use super::problem::{Stop, respond};
use crate::admission::Asking;
use crate::authorize::Scope;
use crate::blobs;
use crate::page::Page;
use crate::policies::{self, Move, Pin, PinRow, PinState};
use crate::references::{self, References};
use crate::refusal::{Refusal, check_slug};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_policies))
        .routes(routes!(get_policy))
        .routes(routes!(get_policy_references))
        .routes(routes!(upload_version))
        .routes(routes!(get_version, delete_version))
        .routes(routes!(run_vectors))
        .routes(routes!(list_pins))
        .routes(routes!(pin_policy, unpin_policy))
        .routes(routes!(roll_back_policy))
        .routes(routes!(promote_policy))
}

/// Policies of a namespace, by name.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/policies", tag = "policies", responses((status = 200, body = PolicyPage)))]
#[boxed]
async fn list_policies(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = policies::page(&mut read, &scope, &page).await?;
    Ok(respond(answer(StatusCode::OK, None, &PolicyPage::of(paged))))
}

/// One policy: its versions, newest first, and where they are pinned.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/policies/{policy}", tag = "policies", responses((status = 200, body = PolicyWithVersions)))]
#[boxed]
async fn get_policy(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let shown = policies::shown(&mut read, &scope, &at.policy).await?;
    Ok(respond(answer(StatusCode::OK, None, &PolicyWithVersions::of(&shown)?)))
}

/// What refers to a policy: environments that run it, flags that call it, and change sets that would
/// pin it.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/policies/{policy}/references", tag = "policies", responses((status = 200, body = References)))]
#[boxed]
async fn get_policy_references(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    policies::shown(&mut read, &scope, &at.policy).await?;
    let found = references::of_policy(&mut read, &scope, &at.policy).await?;
    Ok(respond(answer(StatusCode::OK, None, &found)))
}

/// Upload a module, at most 256 KiB. It is admitted before it is kept: its shape is checked, and it
/// is compiled and run in a process of its own. The same bytes again are the version that is there.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/policies/{policy}/versions", tag = "policies", request_body(content = Vec<u8>, content_type = "application/wasm"), responses((status = 201, body = PolicyVersion), (status = 200, body = PolicyVersion)))]
#[boxed]
async fn upload_version(at: At, writing: Writing) -> Handled {
    check_slug("/policy", &at.policy)?;
    writing.expect_type(&["application/wasm"])?;
    let (shared, wasm) = (writing.shared().clone(), writing.body());
    let digest = Digest::of(&wasm).to_string();
    let (namespace, known) = {
        let mut read = shared.store.read().await?;
        writing.end_if_answered(&mut read).await?;
        let scope = at.scope(&mut read, &writing.scope).await?;
        let known = match policies::version(&mut read, &scope, &at.policy, &digest).await {
            Ok(row) => Some(row),
            Err(Refusal::NotFound(_)) => None,
            Err(refusal) => return Err(refusal.into()),
        };
        (scope.id().to_owned(), known)
    };
    // No connection and no lock is held while the helper works.
    let verdict = match known {
        Some(_) => None,
        None => {
            let admission = &shared.admission;
            Some(admission.admit(&namespace, Asking::Upload, wasm.clone(), Vec::new()).await?)
        }
    };
    if let Some(verdict) = verdict.as_ref().filter(|verdict| !verdict.admitted) {
        return Err(Stop::not_admitted(verdict));
    }
    let mut write = writing.begin().await?;
    let (row, status) = match (known, verdict) {
        (Some(row), _) => (row, StatusCode::OK),
        (None, verdict) => {
            let scope = at.scope(&mut write.tx, &write.scope).await?;
            let verdict = verdict.unwrap_or_default();
            let kept = policies::upload(&mut write.tx, &scope, &at.policy, &wasm, &verdict).await?;
            (kept.0, if kept.1 { StatusCode::CREATED } else { StatusCode::OK })
        }
    };
    write.finish(answer(status, None, &PolicyVersion::of(&row)?)).await
}

/// One version with the verdict of its last admission.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/policies/{policy}/versions/{digest}", tag = "policies", responses((status = 200, body = PolicyVersion)))]
#[boxed]
async fn get_version(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = policies::version(&mut read, &scope, &at.policy, &at.digest).await?;
    Ok(respond(answer(StatusCode::OK, None, &PolicyVersion::of(&row)?)))
}

/// Delete a version that no environment pins or runs as a shadow.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/policies/{policy}/versions/{digest}", tag = "policies", responses((status = 204)))]
#[boxed]
async fn delete_version(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    policies::delete_version(&mut write.tx, &scope, &at.policy, &at.digest).await?;
    write.finish(no_content()).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    vectors: Vec<Vector>,
}

/// Run the author's vectors against a version, each twice under the budget of production. The
/// verdict takes the place of the one before, unless a vector does not pass.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/policies/{policy}/versions/{digest}/vectors", tag = "policies", request_body = PolicyVectors, responses((status = 200, body = PolicyVersion)))]
#[boxed]
async fn run_vectors(at: At, writing: Writing) -> Handled {
    let Vectors { vectors } = writing.json()?;
    let shared = writing.shared().clone();
    let digest: Digest = at.digest.parse().map_err(|_| Stop::from(Refusal::NotFound("version")))?;
    let (namespace, wasm) = {
        let mut read = shared.store.read().await?;
        writing.end_if_answered(&mut read).await?;
        let scope = at.scope(&mut read, &writing.scope).await?;
        policies::version(&mut read, &scope, &at.policy, &at.digest).await?;
        let wasm = blobs::find(&mut read, shared.store.parsed(), digest).await?;
        (scope.id().to_owned(), wasm)
    };
    let wasm = wasm.ok_or(Refusal::NotFound("version"))?;
    let verdict = shared.admission.admit(&namespace, Asking::Vectors, wasm, vectors).await?;
    if !verdict.admitted {
        return Err(Stop::not_admitted(&verdict));
    }
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, name) = (&mut write.tx, &at.policy);
    let row = policies::set_verdict(tx, &scope, name, &at.digest, &verdict).await?;
    write.finish(answer(StatusCode::OK, None, &PolicyVersion::of(&row)?)).await
}

/// What an environment pins, by name, with what its edges counted.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/policies", tag = "policies", responses((status = 200, body = PolicyPins)))]
#[boxed]
async fn list_pins(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let items = policies::pins(&mut read, &scope, &at.environment).await?;
    Ok(respond(answer(StatusCode::OK, None, &PolicyPins::of(items))))
}

async fn moved(at: At, writing: Writing, to: Move) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let row = policies::pin(tx, &scope, &at.environment, &at.policy, expected, to).await?;
    finish(write, &at.policy, &row).await
}

async fn finish(write: Write, name: &str, row: &PinRow) -> Handled {
    write.finish(answer(StatusCode::OK, Some(row.version), &row.state(name))).await
}

/// Pin a version, `{digest, shadow?: {digest, share}}`; a shadow runs beside it on a share (of
/// 100,000) of its calls, and nothing that it says is served.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/policies/{policy}", tag = "policies", request_body = Pin, responses((status = 200, body = PinState)))]
#[boxed]
async fn pin_policy(at: At, writing: Writing) -> Handled {
    let pin: Pin = writing.json()?;
    moved(at, writing, Move::To(pin)).await
}

/// Unpin a policy that no rule calls.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/environments/{environment}/policies/{policy}", tag = "policies", responses((status = 204)))]
#[boxed]
async fn unpin_policy(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    policies::unpin(tx, &scope, &at.environment, &at.policy, expected).await?;
    write.finish(no_content()).await
}

/// Pin the version that was pinned before.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/policies/{policy}/rollback", tag = "policies", responses((status = 200, body = PinState)))]
#[boxed]
async fn roll_back_policy(at: At, writing: Writing) -> Handled {
    moved(at, writing, Move::Back).await
}

/// Pin the version that runs as the shadow.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/policies/{policy}/promote", tag = "policies", responses((status = 200, body = PinState)))]
#[boxed]
async fn promote_policy(at: At, writing: Writing) -> Handled {
    moved(at, writing, Move::Promote).await
}
