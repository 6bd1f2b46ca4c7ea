//! The admin API's routes for flags and what they do in each environment.
//! Each handler parses, calls one domain function, shows.

use axum::extract::State;
use http::StatusCode;
use rules::model::{FlagConfig, FlagDefinition, Lifetime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, Writing, answer, boxed, list, no_content};
use super::problem::respond;
use super::shapes;
use crate::authorize::Scope;
use crate::authorize::callers::CallerKind;
use crate::lifecycle::{Ages, Archived, DAYS_MAX, Filter, Known, Reason, Stale};
use crate::page::Page;
use crate::references::References;
use crate::refusal::Refusal;
use crate::store::rfc3339;
use crate::{configs, flags, lifecycle, references};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_flags, create_flag))
        .routes(routes!(get_flag, update_flag, delete_flag))
        .routes(routes!(archive_flag))
        .routes(routes!(unarchive_flag))
        .routes(routes!(get_flag_references))
        .routes(routes!(list_configs))
        .routes(routes!(get_config, set_config))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedFlags {
    limit: Option<usize>,
    cursor: Option<String>,
    archived: Option<Archived>,
    owner: Option<String>,
    tag: Option<String>,
    lifetime: Option<Lifetime>,
    stale: Option<StaleFor>,
    unused_days: Option<i64>,
    old_days: Option<i64>,
    settled_days: Option<i64>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StaleFor {
    Any,
    Ended,
    Old,
    Unused,
    Settled,
}

impl WantedFlags {
    fn filter(self) -> Result<Filter, Refusal> {
        let days = |place: &str, given: Option<i64>, unless: i64| match given.unwrap_or(unless) {
            days @ 1..=DAYS_MAX => Ok(days),
            _ => Err(Refusal::invalid(place, format!("1 to {DAYS_MAX} days"))),
        };
        let unless = Ages::default();
        let ages = Ages {
            unused_days: days("/unused_days", self.unused_days, unless.unused_days)?,
            old_days: days("/old_days", self.old_days, unless.old_days)?,
            settled_days: days("/settled_days", self.settled_days, unless.settled_days)?,
        };
        let stale = self.stale.map(|stale| match stale {
            StaleFor::Any => None,
            StaleFor::Ended => Some(Reason::Ended),
            StaleFor::Old => Some(Reason::Old),
            StaleFor::Unused => Some(Reason::Unused),
            StaleFor::Settled => Some(Reason::Settled),
        });
        Ok(Filter {
            archived: self.archived.unwrap_or(Archived::No),
            owner: self.owner,
            tag: self.tag,
            lifetime: self.lifetime,
            stale,
            ages,
        })
    }
}

/// A flag's state and, beside its fields:
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownFlag<'f> {
    #[serde(flatten)]
    state: Value,
    stale: &'f [Stale],
    #[serde(skip_serializing_if = "Option::is_none")]
    last_evaluated_at: Option<String>,
}

fn show_flag(flag: &Known) -> Value {
    let shown = ShownFlag {
        state: flag.row.state(),
        stale: &flag.stale,
        last_evaluated_at: flag.last_evaluated_at.map(rfc3339),
    };
    json!(shown)
}

/// Flags of a namespace, by key, each with why it may be stale; those that are archived only if asked.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags", tag = "flags",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
        ("archived" = Option<Archived>, Query, description = "`no` unless given"),
        ("owner" = Option<String>, Query, description = "of this owner"),
        ("tag" = Option<String>, Query, description = "that has this tag"),
        ("lifetime" = Option<String>, Query, description = "`temporary` or `permanent`"),
        ("stale" = Option<StaleFor>, Query, description = "that look as if nobody needed them, for this reason or for `any`"),
        ("unused_days" = Option<i64>, Query, description = "after how many days without evaluation a flag is `unused`, 1 to 3650; 30 unless given"),
        ("old_days" = Option<i64>, Query, description = "how many days after it was made a temporary flag without an expected end is `old`; 90 unless given"),
        ("settled_days" = Option<i64>, Query, description = "after how many days without a change a temporary flag that gives everybody the same is `settled`; 30 unless given")),
    responses((status = 200, body = shapes::FlagPage)))]
#[boxed]
async fn list_flags(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(wanted): Asked<WantedFlags>,
) -> Handled {
    let page = Page::new(wanted.limit, wanted.cursor.as_deref())?;
    let filter = wanted.filter()?;
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = lifecycle::page(&mut read, &scope, &page, &filter).await?;
    Ok(list(paged, show_flag))
}

/// Make a flag; it is off in every environment at first. It is its maker's, unless it says whose.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/flags", tag = "flags", request_body = shapes::FlagDefinition, responses((status = 201, body = shapes::Flag)))]
#[boxed]
async fn create_flag(at: At, writing: Writing) -> Handled {
    let mut definition: FlagDefinition = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    if definition.owner.is_empty() && scope.caller().kind == CallerKind::User {
        definition.owner.clone_from(&scope.caller().name);
    }
    let made = flags::create(&mut write.tx, &scope, &definition).await?;
    write.finish(answer(StatusCode::CREATED, Some(made.version), &made.state())).await
}

/// One flag's definition, with why it may be stale.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags/{flag}", tag = "flags", responses((status = 200, body = shapes::Flag)))]
#[boxed]
async fn get_flag(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let flag = lifecycle::one(&mut read, &scope, &at.flag, Ages::default()).await?;
    Ok(respond(answer(StatusCode::OK, Some(flag.row.version), &show_flag(&flag))))
}

/// Change a flag's definition, in every environment.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/flags/{flag}", tag = "flags", request_body = shapes::FlagDefinition, responses((status = 200, body = shapes::Flag)))]
#[boxed]
async fn update_flag(at: At, writing: Writing) -> Handled {
    let definition: FlagDefinition = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let row = flags::update(&mut write.tx, &scope, &at.flag, write.expected, &definition).await?;
    write.finish(answer(StatusCode::OK, Some(row.version), &row.state())).await
}

/// Delete a flag that no other flag needs, for good: its key is not used again. What may have to come
/// back is archived.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/flags/{flag}", tag = "flags", responses((status = 204)))]
#[boxed]
async fn delete_flag(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    flags::delete(&mut write.tx, &scope, &at.flag, write.expected).await?;
    write.finish(no_content()).await
}

/// Put a flag away that no other flag needs: to callers it does not exist then, as if it were deleted,
/// but it can be taken back.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/flags/{flag}/archive", tag = "flags", responses((status = 200, body = shapes::Flag)))]
#[boxed]
async fn archive_flag(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let done = flags::archive(&mut write.tx, &scope, &at.flag, write.expected).await;
    write.finish_unless_so(done.map(|row| row.state())).await
}

/// Take an archived flag back: each environment has it as it had it before.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/flags/{flag}/unarchive", tag = "flags", responses((status = 200, body = shapes::Flag)))]
#[boxed]
async fn unarchive_flag(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let done = flags::unarchive(&mut write.tx, &scope, &at.flag, write.expected).await;
    write.finish_unless_so(done.map(|row| row.state())).await
}

/// What refers to a flag: flags that need it, and change sets that would change it.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/flags/{flag}/references", tag = "flags", responses((status = 200, body = References)))]
#[boxed]
async fn get_flag_references(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    flags::get(&mut read, &scope, &at.flag).await?;
    let found = references::of_flag(&mut read, &scope, &at.flag).await?;
    Ok(respond(answer(StatusCode::OK, None, &found)))
}

/// Every flag with its definition and what it does in this environment.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags", tag = "configurations", responses((status = 200, body = shapes::ConfiguredFlagPage)))]
#[boxed]
async fn list_configs(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = configs::page(&mut read, &scope, &at.environment, &page).await?;
    Ok(list(paged, configs::Configured::state))
}

/// What a flag does in this environment.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}", tag = "configurations", responses((status = 200, body = shapes::ConfiguredFlag)))]
#[boxed]
async fn get_config(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let row = configs::get(&mut read, &scope, &at.environment, &at.flag).await?;
    Ok(respond(answer(StatusCode::OK, Some(row.version()), &row.state())))
}

/// Say what a flag does in this environment.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/flags/{flag}", tag = "configurations", request_body = shapes::FlagConfig, responses((status = 200, body = shapes::ConfiguredFlag)))]
#[boxed]
async fn set_config(at: At, writing: Writing) -> Handled {
    let config: FlagConfig = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, expected) = (&mut write.tx, write.expected);
    let row = configs::set(tx, &scope, &at.environment, &at.flag, expected, &config).await?;
    write.finish(answer(StatusCode::OK, Some(row.version()), &row.state())).await
}
