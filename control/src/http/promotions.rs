//! Routes that compare environments and take over from one into the other.

use std::collections::BTreeMap;

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, Writing, answer, boxed};
use super::problem::respond;
use super::versions::operations;
use crate::authorize::Scope;
use crate::promotions::{self, Compared, Preview};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(compare_flag)).routes(routes!(promote_flags))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    from: String,
    to: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Promotion {
    /// Key of the environment that is taken over from.
    from: String,
    /// Key of the environment that changes.
    to: String,
    /// Keys of 1 to 200 flags.
    flags: Vec<String>,
    /// Only say what would change.
    #[serde(default)]
    dry_run: bool,
    /// Make a draft of it, which others may approve.
    #[serde(default)]
    as_change_set: bool,
    /// Of the change set.
    #[serde(default)]
    title: Option<String>,
    /// Versions, by flag, that configurations in `to` must still have, as a dry run gave them.
    #[serde(default)]
    base_versions: BTreeMap<String, i64>,
}

/// What is wrong with a flag where it would go.
#[derive(Debug, Serialize, ToSchema)]
struct PromotionProblem {
    /// RFC 6901, in the configuration.
    pointer: String,
    message: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FlagPromotion {
    flag: String,
    /// Whether the two differ.
    changed: bool,
    /// Of its configuration in `from`; 0: it has none, and is off.
    from_version: i64,
    /// Of its configuration in `to`, that the difference is from; 0: it has none, and is off.
    base_version: i64,
    /// What is done to the configuration in `to`: RFC 6902.
    diff: Vec<Value>,
    problems: Vec<PromotionProblem>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PromotionDone {
    from: String,
    to: String,
    dry_run: bool,
    flags: Vec<FlagPromotion>,
    /// Of no flag in particular.
    problems: Vec<PromotionProblem>,
    /// What the environment was raised to; null: nothing was changed.
    revision: Option<i64>,
    /// Number of the change set that was made.
    change_set: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Comparison {
    from: String,
    to: String,
    #[serde(flatten)]
    promotion: FlagPromotion,
    #[schema(value_type = Object)]
    from_config: Value,
    #[schema(value_type = Object)]
    to_config: Value,
}

fn show_problems(problems: &[rules::compile::Problem]) -> Vec<PromotionProblem> {
    let show = |problem: &rules::compile::Problem| PromotionProblem {
        pointer: problem.pointer.clone(),
        message: problem.message.clone(),
    };
    problems.iter().map(show).collect()
}

fn show(compared: &Compared) -> FlagPromotion {
    FlagPromotion {
        flag: compared.to.flag.key.clone(),
        changed: compared.differs(),
        from_version: compared.from.version(),
        base_version: compared.to.version(),
        diff: operations(compared.diff()),
        problems: show_problems(&compared.problems),
    }
}

/// What a flag does in one environment, and what it would take to do the same in another.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags/{flag}/compare", tag = "promotions",
    params(("from" = String, Query), ("to" = String, Query)), responses((status = 200, body = Comparison)))]
#[boxed]
async fn compare_flag(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(Between { from, to }): Asked<Between>,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let compared = promotions::compare(&mut read, &scope, &from, &to, &at.flag).await?;
    let body = Comparison {
        from,
        to,
        promotion: show(&compared),
        from_config: json!(compared.from_config),
        to_config: json!(compared.to_config),
    };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Take over what flags do from one environment into another: as one change, or as a change set.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/promotions", tag = "promotions", request_body = Promotion, responses((status = 200, body = PromotionDone)))]
#[boxed]
async fn promote_flags(at: At, writing: Writing) -> Handled {
    let body: Promotion = writing.json()?;
    let Promotion { from, to, flags, dry_run, as_change_set, title, base_versions } = body;
    let done = |preview: &Preview, revision: Option<i64>, change_set: Option<i64>| {
        let body = PromotionDone {
            from: from.clone(),
            to: to.clone(),
            dry_run,
            flags: preview.flags.iter().map(show).collect(),
            problems: show_problems(&preview.problems),
            revision,
            change_set,
        };
        answer(StatusCode::OK, None, &body)
    };
    if dry_run {
        let mut read = writing.shared().store.read().await?;
        let scope = at.scope(&mut read, &writing.scope).await?;
        let preview = promotions::preview(&mut read, &scope, &from, &to, &flags).await?;
        return Ok(respond(done(&preview, None, None)));
    }
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let tx = &mut write.tx;
    if as_change_set {
        let title = title.as_deref();
        let made = promotions::as_change_set(tx, &scope, &from, &to, &flags, title).await?;
        let number = made.1.map(|whole| whole.set.number);
        return match number {
            Some(_) => write.finish(done(&made.0, None, number)).await,
            None => Ok(respond(done(&made.0, None, None))),
        };
    }
    match promotions::apply(tx, &scope, &from, &to, &flags, &base_versions).await? {
        (preview, None) => Ok(respond(done(&preview, None, None))),
        (preview, revision) => write.finish(done(&preview, revision, None)).await,
    }
}
