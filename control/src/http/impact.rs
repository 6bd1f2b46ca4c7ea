//! Who a change would change, before it is made.

use axum::extract::{Request, State};
use http::StatusCode;
use indexmap::IndexMap;
use rules::model::{FlagConfig, FlagDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{
    At, Handled, Shared, Writing, answer, boxed, moment, no_content, parse, read,
};
use super::problem::respond;
use crate::authorize::{NamespaceScope, Scope};
use crate::change_sets;
use crate::impact::{self, FlagDraft, FlagImpact, Impact, Served, Transition};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::samples::{self, Sampling};
use crate::store::{Connection, now_us, rfc3339};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(preview))
        .routes(routes!(preview_change_set))
        .routes(routes!(get_sampling, set_sampling, unset_sampling))
        .routes(routes!(list_contexts))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Preview {
    /// By the flag's key; 1 to 200.
    flags: IndexMap<String, Draft>,
    /// Evaluation contexts, at most 1,000; or `recent`.
    #[serde(default)]
    #[schema(max_items = 1000)]
    contexts: Vec<IndexMap<String, Value>>,
    /// So many of the newest contexts that edges sampled (`PUT …/sampling`), at most 1,000.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    recent: Option<u32>,
    /// RFC 3339; the present unless given.
    #[serde(default)]
    now: Option<String>,
}

/// What would be there; what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Draft {
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    definition: Option<FlagDefinition>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config: Option<FlagConfig>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ShownImpact {
    /// How many contexts were compared.
    contexts: usize,
    /// False if there was no time for all of them.
    complete: bool,
    /// Contexts for which at least one flag changes.
    changed: usize,
    flags: Vec<ShownFlag>,
    /// Flags that need something of the draft and were not compared: there are more than 1,000.
    #[serde(skip_serializing_if = "is_none")]
    flags_left_out: usize,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ShownFlag {
    flag: String,
    /// False of a flag that changes because one changes that it needs.
    in_draft: bool,
    changed: usize,
    transitions: Vec<ShownTransition>,
    /// Contexts of transitions that are not listed.
    others: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownTransition {
    from: ShownServed,
    to: ShownServed,
    contexts: usize,
    examples: Vec<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ShownServed {
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
}

fn show_served(of: Served) -> ShownServed {
    let value = of.value.and_then(|json| serde_json::from_str(&json).ok());
    let Served { variant, reason, error_code, rule, .. } = of;
    ShownServed { variant, value, reason, error_code, rule }
}

fn show_transition(of: Transition) -> ShownTransition {
    let Transition { from, to, contexts, examples } = of;
    ShownTransition { from: show_served(from), to: show_served(to), contexts, examples }
}

fn show_flag(of: FlagImpact) -> ShownFlag {
    let FlagImpact { flag, in_draft, changed, transitions, others } = of;
    let transitions = transitions.into_iter().map(show_transition).collect();
    ShownFlag { flag, in_draft, changed, transitions, others }
}

/// What a draft would change, for which contexts and by which rules, beside what is live.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/impact", tag = "evaluation",
    request_body = Preview, responses((status = 200, body = ShownImpact)))]
#[boxed]
async fn preview(State(shared): State<Shared>, scope: Scope, at: At, request: Request) -> Handled {
    let max = rules::limits::ADMIN_BODY_BYTES_MAX;
    let body = read(request.into_body(), max, shared.body_timeout).await?;
    let asked: Preview = parse(&body)?;
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let contexts =
        contexts_of(&mut read, &scope, &at.environment, asked.contexts, asked.recent).await?;
    let flags = asked.flags.into_iter().map(|(key, draft)| {
        let Draft { definition, config } = draft;
        (key, FlagDraft { definition, config, gone: false })
    });
    let asked = impact::Asked {
        draft: impact::Draft { flags: flags.collect(), ..impact::Draft::default() },
        contexts,
        now_ms: moment("/now", asked.now.as_deref())?.unwrap_or_else(now_us) / 1_000,
    };
    let (environment, admission) = (&at.environment, &shared.admission);
    let impact = impact::preview(&mut read, &scope, environment, asked, admission).await?;
    Ok(respond(answer(StatusCode::OK, None, &show(impact))))
}

fn show(impact: Impact) -> ShownImpact {
    let Impact { contexts, complete, changed, flags, flags_left_out } = impact;
    let flags = flags.into_iter().map(show_flag).collect();
    ShownImpact { contexts, complete, changed, flags, flags_left_out }
}

async fn contexts_of(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    contexts: Vec<IndexMap<String, Value>>,
    recent: Option<u32>,
) -> Result<Vec<Value>, Refusal> {
    match recent {
        None => {
            let contexts = contexts.into_iter();
            Ok(contexts.map(|context| Value::Object(context.into_iter().collect())).collect())
        }
        Some(_) if !contexts.is_empty() => {
            Err(Refusal::invalid("/recent", "either contexts, or recent ones, not both"))
        }
        Some(recent) if (1..=impact::CONTEXTS_MAX).contains(&(recent as usize)) => {
            let recent = i64::from(recent);
            let found = samples::newest(read, scope, environment, recent).await?;
            Ok(found.into_iter().map(|(_, context)| context).collect())
        }
        Some(_) => {
            let message = format!("1 to {} contexts", impact::CONTEXTS_MAX);
            Err(Refusal::invalid("/recent", message))
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PreviewChangeSet {
    /// In which; the only one that its items name, unless said.
    #[serde(default)]
    environment: Option<String>,
    /// Evaluation contexts, at most 1,000; or `recent`.
    #[serde(default)]
    #[schema(max_items = 1000)]
    contexts: Vec<IndexMap<String, Value>>,
    /// So many of the newest contexts that edges sampled there, at most 1,000.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    recent: Option<u32>,
    /// RFC 3339; the present unless given.
    #[serde(default)]
    now: Option<String>,
}

/// What a change set would change in one environment, were all of it applied now.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/change-sets/{number}/impact", tag = "change sets",
    request_body = PreviewChangeSet, responses((status = 200, body = ShownImpact)))]
#[boxed]
async fn preview_change_set(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    request: Request,
) -> Handled {
    let max = rules::limits::ADMIN_BODY_BYTES_MAX;
    let body = read(request.into_body(), max, shared.body_timeout).await?;
    let asked: PreviewChangeSet = parse(&body)?;
    let now_ms = moment("/now", asked.now.as_deref())?.unwrap_or_else(now_us) / 1_000;
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let environment =
        change_sets::previewed(&mut read, &scope, at.number, asked.environment).await?;
    let contexts =
        contexts_of(&mut read, &scope, &environment, asked.contexts, asked.recent).await?;
    let (asked, admission) = ((contexts, now_ms), &shared.admission);
    let impact =
        change_sets::impact(&mut read, &scope, at.number, &environment, asked, admission).await?;
    Ok(respond(answer(StatusCode::OK, None, &show(impact))))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewSampling {
    /// Contexts that each edge may take.
    #[schema(minimum = 1, maximum = 600)]
    per_minute: i64,
    /// Dotted paths of the attributes that may leave the edge; at most 50. The targeting key is a
    /// pseudonym unless `targetingKey` is among them.
    #[schema(max_items = 50)]
    keep: Vec<String>,
    /// From now on; at most a day.
    #[schema(minimum = 1, maximum = 1440)]
    minutes: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ShownSampling {
    /// Whether edges take contexts just now.
    on: bool,
    /// Contexts that are there, at most 1,000.
    kept: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_minute: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Vec<String>>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set_at: Option<String>,
}

fn show_sampling((of, kept): (Option<Sampling>, i64)) -> ShownSampling {
    let on = of.as_ref().is_some_and(|of| of.until > now_us());
    let (mut per_minute, mut keep, mut until, mut set_by, mut set_at) =
        (None, None, None, None, None);
    if let Some(of) = of {
        per_minute = Some(of.per_minute);
        keep = Some(of.keep);
        until = Some(rfc3339(of.until));
        set_by = Some(of.set_by);
        set_at = Some(rfc3339(of.set_at));
    }
    ShownSampling { on, kept, per_minute, keep, until, set_by, set_at }
}

/// Whether edges sample contexts of an environment, and what of them.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/sampling", tag = "evaluation",
    responses((status = 200, body = ShownSampling)))]
#[boxed]
async fn get_sampling(State(shared): State<Shared>, scope: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let shown = show_sampling(samples::get(&mut read, &scope, &at.environment).await?);
    Ok(respond(answer(StatusCode::OK, None, &shown)))
}

/// Let edges sample contexts for a while, for previews of changes. Attributes that are not named stay
/// at the edge.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/environments/{environment}/sampling", tag = "evaluation",
    request_body = NewSampling, responses((status = 200, body = ShownSampling)))]
#[boxed]
async fn set_sampling(at: At, writing: Writing) -> Handled {
    let asked: NewSampling = writing.json()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, environment) = (&mut write.tx, &at.environment);
    let (per_minute, minutes) = (asked.per_minute, asked.minutes);
    samples::set(tx, &scope, environment, per_minute, &asked.keep, minutes).await?;
    let shown = show_sampling(samples::get(tx, &scope, environment).await?);
    write.finish(answer(StatusCode::OK, None, &shown)).await
}

/// End sampling and forget what was sampled.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/environments/{environment}/sampling", tag = "evaluation",
    responses((status = 204)))]
#[boxed]
async fn unset_sampling(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    samples::unset(&mut write.tx, &scope, &at.environment).await?;
    write.finish(no_content()).await
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownContexts {
    items: Vec<ShownContext>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ShownContext {
    /// RFC 3339, by the edge's clock.
    at: String,
    #[schema(value_type = Object)]
    context: Value,
}

/// The newest contexts that edges sampled, redacted as they were asked to.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/contexts", tag = "evaluation",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 200)),
    responses((status = 200, body = ShownContexts)))]
#[boxed]
async fn list_contexts(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let limit = page.fetch() - 1;
    let found = samples::newest(&mut read, &scope, &at.environment, limit).await?;
    let shown = |(at, context)| ShownContext { at: rfc3339(at), context };
    let shown = ShownContexts { items: found.into_iter().map(shown).collect() };
    Ok(respond(answer(StatusCode::OK, None, &shown)))
}
