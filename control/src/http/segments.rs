//! Routes of segments and their id lists.

use axum::extract::State;
use http::StatusCode;
use rules::model::Segment;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Write, Writing, answer, boxed, list, no_content};
use super::problem::{Stop, respond};
use super::shapes;
use crate::authorize::Scope;
use crate::environments;
use crate::page::Page;
use crate::references::{self, References};
use crate::refusal::Refusal;
use crate::segments::{self, Ids, SegmentRow};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_segments, create_segment))
        .routes(routes!(get_segment, update_segment, delete_segment))
        .routes(routes!(get_segment_references))
        .routes(routes!(set_segment_list))
}

fn split(writing: &Writing) -> Result<(Segment, Ids), Stop> {
    Ok(segments::parse(writing.json()?)?)
}

async fn finish(mut write: Write, status: StatusCode, row: SegmentRow) -> Handled {
    let shown = segments::shown(&mut write.tx, &row).await?;
    write.finish(answer(status, Some(row.version), &shown)).await
}

/// Segments of an environment, by key, without their ids.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments", tag = "segments", responses((status = 200, body = shapes::SegmentPage)))]
#[boxed]
async fn list_segments(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = segments::page(&mut read, &scope, &at.environment, &page).await?;
    Ok(list(paged, SegmentRow::state))
}

/// Make a segment.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments", tag = "segments", request_body = shapes::SegmentDefinition, responses((status = 201, body = shapes::Segment)))]
#[boxed]
async fn create_segment(at: At, writing: Writing) -> Handled {
    let (segment, ids) = split(&writing)?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, environment) = (&mut write.tx, &at.environment);
    let row = segments::put(tx, &scope, environment, None, &segment, &ids).await?;
    finish(write, StatusCode::CREATED, row).await
}

/// What refers to a segment: flags and segments that need it, and change sets that would change it.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments/{segment}/references", tag = "segments", responses((status = 200, body = References)))]
#[boxed]
async fn get_segment_references(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let environment = environments::get(&mut read, &scope, &at.environment).await?;
    segments::find(&mut read, &environment.id, &at.segment).await?;
    let found = references::of_segment(&mut read, &scope, &environment, &at.segment).await?;
    Ok(respond(answer(StatusCode::OK, None, &found)))
}

/// One segment, with its ids if they are few.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments/{segment}", tag = "segments", responses((status = 200, body = shapes::Segment)))]
#[boxed]
async fn get_segment(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = segments::get(&mut read, &scope, &at.environment, &at.segment).await?;
    let shown = segments::shown(&mut read, &row).await?;
    Ok(respond(answer(StatusCode::OK, Some(row.version), &shown)))
}

/// Change a segment; lists that are not named stay.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments/{segment}", tag = "segments", request_body = shapes::SegmentDefinition, responses((status = 200, body = shapes::Segment)))]
#[boxed]
async fn update_segment(at: At, writing: Writing) -> Handled {
    let (segment, ids) = split(&writing)?;
    if segment.key != at.segment {
        return Err(Refusal::invalid("/key", "a segment keeps its key").into());
    }
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, Some(write.expected));
    let row = segments::put(tx, &scope, &at.environment, expected, &segment, &ids).await?;
    finish(write, StatusCode::OK, row).await
}

/// Delete a segment that no flag needs.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments/{segment}", tag = "segments", responses((status = 204)))]
#[boxed]
async fn delete_segment(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    segments::delete(tx, &scope, &at.environment, &at.segment, expected).await?;
    write.finish(no_content()).await
}

/// Replace a list of ids (`included` or `excluded`): text, one id a line.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/segments/{segment}/{list}", tag = "segments", request_body(content = String, content_type = "text/plain"), responses((status = 200, body = shapes::Segment)))]
#[boxed]
async fn set_segment_list(at: At, writing: Writing) -> Handled {
    let kind = match at.list.as_str() {
        "included" => "included",
        "excluded" => "excluded",
        _ => return Err(Refusal::NotFound("list").into()),
    };
    writing.expect_type(&["text/plain"])?;
    let body = writing.body();
    let text =
        std::str::from_utf8(&body).map_err(|_| Refusal::invalid("", "the list is not UTF-8"))?;
    let ids: Vec<String> =
        text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect();
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let (environment, segment) = (&at.environment, &at.segment);
    let row = segments::put_list(tx, &scope, environment, segment, expected, kind, &ids).await?;
    finish(write, StatusCode::OK, row).await
}
