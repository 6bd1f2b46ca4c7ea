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

use super::extract::{At, Handled, Shared, answer, moment, parse, read};
use super::problem::respond;
use crate::authorize::Scope;
use crate::impact::{self, FlagImpact, Impact, Served, Transition};
use crate::store::now_us;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(preview))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Preview {
    /// By the flag's key; 1 to 200.
    flags: IndexMap<String, Draft>,
    /// Evaluation contexts, at most 1,000.
    #[schema(max_items = 1000)]
    contexts: Vec<IndexMap<String, Value>>,
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
struct ShownImpact {
    /// How many contexts were compared.
    contexts: usize,
    /// False if there was no time for all of them.
    complete: bool,
    /// Contexts for which at least one flag changes.
    changed: usize,
    flags: Vec<ShownFlag>,
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
async fn preview(State(shared): State<Shared>, scope: Scope, at: At, request: Request) -> Handled {
    let max = rules::limits::ADMIN_BODY_BYTES_MAX;
    let body = read(request.into_body(), max, shared.body_timeout).await?;
    let asked: Preview = parse(&body)?;
    let asked = impact::Asked {
        draft: asked
            .flags
            .into_iter()
            .map(|(key, draft)| (key, (draft.definition, draft.config)))
            .collect(),
        contexts: asked
            .contexts
            .into_iter()
            .map(|context| Value::Object(context.into_iter().collect()))
            .collect(),
        now_ms: moment("/now", asked.now.as_deref())?.unwrap_or_else(now_us) / 1_000,
    };
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let (environment, admission) = (&at.environment, &shared.admission);
    let impact = impact::preview(&mut read, &scope, environment, asked, admission).await?;
    let Impact { contexts, complete, changed, flags } = impact;
    let flags = flags.into_iter().map(show_flag).collect();
    let shown = ShownImpact { contexts, complete, changed, flags };
    Ok(respond(answer(StatusCode::OK, None, &shown)))
}
