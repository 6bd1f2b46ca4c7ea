//! How often a flag was used, and when last.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, answer, boxed, moment};
use super::problem::respond;
use super::shapes;
use crate::authorize::Scope;
use crate::refusal::Refusal;
use crate::store::now_us;
use crate::usage::{self, Bucket};

const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(get_usage))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: Option<String>,
    to: Option<String>,
    bucket: Option<String>,
}

/// How often a flag was used, by variant, and by servers or browsers. Hours are kept for 90 days,
/// minutes for two.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}/usage", tag = "configurations",
    params(("from" = Option<String>, Query, description = "RFC 3339; a day before `to` unless given"),
        ("to" = Option<String>, Query, description = "RFC 3339; now unless given"),
        ("bucket" = Option<String>, Query, description = "`hour`, unless `minute` is asked for")),
    responses((status = 200, body = shapes::FlagUsage)))]
#[boxed]
async fn get_usage(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(range): Asked<Range>,
) -> Handled {
    let to = moment("/to", range.to.as_deref())?.unwrap_or_else(now_us);
    let from = moment("/from", range.from.as_deref())?.unwrap_or(to - DAY_US);
    let bucket = match range.bucket.as_deref() {
        None | Some("hour") => Bucket::Hour,
        Some("minute") => Bucket::Minute,
        Some(_) => return Err(Refusal::invalid("/bucket", "a bucket is minute or hour").into()),
    };
    if from > to {
        return Err(Refusal::invalid("/from", "it is later than `to`").into());
    }
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let of = (at.environment.as_str(), at.flag.as_str());
    let used = usage::of_flag(&mut read, &scope, of, (from, to), bucket).await?;
    Ok(respond(answer(StatusCode::OK, None, &used)))
}
