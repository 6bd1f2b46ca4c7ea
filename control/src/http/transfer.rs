//! Routes for documents in and out, and for trying an evaluation.

use axum::extract::{Request, State};
use http::{HeaderValue, StatusCode};
use rules::model::{FlagConfig, FlagDefinition, Fractional};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Asked, At, Handled, Shared, Writing, answer, boxed, moment, parse, read};
use super::problem::respond;
use super::shapes;
use crate::authorize::Scope;
use crate::evaluate;
use crate::imports::{self, Became, Format};
use crate::store::now_us;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(import)).routes(routes!(export)).routes(routes!(try_out))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct How {
    format: Format,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    fractional: Fractional,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    format: Format,
    #[serde(default)]
    partial: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluate {
    #[serde(default)]
    flag: Option<String>,
    context: Value,
    #[serde(default)]
    now: Option<String>,
    #[serde(default)]
    draft: Option<Draft>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    #[serde(default)]
    definition: Option<FlagDefinition>,
    #[serde(default)]
    config: Option<FlagConfig>,
}

/// Take flags over from a document; with dry_run, only say what would become of them.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/import", tag = "documents",
    params(("format" = String, Query), ("dry_run" = Option<bool>, Query), ("fractional" = Option<String>, Query)),
    request_body = Value, responses((status = 200, body = shapes::Imported)))]
#[boxed]
async fn import(at: At, Asked(how): Asked<How>, writing: Writing) -> Handled {
    let incoming = imports::parse(&writing.body(), how.format, how.fractional)?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (tx, environment) = (&mut write.tx, &at.environment);
    let done = imports::import(tx, &scope, environment, incoming).await?;
    let show = |(key, became): &(String, Became)| match became {
        Became::Created => json!({ "flag": key, "result": "created" }),
        Became::Changed => json!({ "flag": key, "result": "changed" }),
        Became::Unchanged => json!({ "flag": key, "result": "unchanged" }),
        Became::Refused { reason, pointer } => {
            json!({ "flag": key, "result": "refused", "reason": reason, "pointer": pointer })
        }
    };
    let flags: Vec<Value> = done.flags.iter().map(show).collect();
    let mut body = json!({ "dryRun": how.dry_run, "flags": flags,
        "ignored": done.ignored.first, "ignoredMore": done.ignored.more });
    if let Some(revision) = done.revision.filter(|_| !how.dry_run) {
        body["revision"] = json!(revision);
    }
    let answered = answer(StatusCode::OK, None, &body);
    if how.dry_run || done.revision.is_none() {
        // Dropped without a commit: nothing was done.
        return Ok(respond(answered));
    }
    write.finish(answered).await
}

/// The environment's flags as a document.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/environments/{environment}/export", tag = "documents",
    params(("format" = String, Query), ("partial" = Option<bool>, Query)),
    responses((status = 200, body = Value, headers(
        ("tidegate-refused" = u64, description = "Flags that were left out, since the format cannot express them."),
        ("tidegate-fractional" = String, description = "Of flagd's format: what `fractional` means in the document, `v1`, `v2` or `v3`. An import has to be told: `?fractional=`."))),
        (status = 409)))]
#[boxed]
async fn export(
    State(shared): State<Shared>,
    scope: Scope,
    at: At,
    Asked(which): Asked<Which>,
) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let (format, partial) = (which.format, which.partial);
    let done = imports::export(&mut read, &scope, &at.environment, format, partial).await?;
    let mut response = respond(answer(StatusCode::OK, None, &done.document));
    let headers = response.headers_mut();
    headers.insert("tidegate-refused", HeaderValue::from(done.left_out));
    if let Some(fractional) = done.fractional {
        headers.insert("tidegate-fractional", HeaderValue::from_static(fractional.name()));
    }
    Ok(response)
}

/// Evaluate one flag or all, with the explanation, against what is there or a draft.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/environments/{environment}/evaluate", tag = "evaluation",
    request_body = shapes::TryOut, responses((status = 200, body = shapes::TriedOut)))]
#[boxed]
async fn try_out(State(shared): State<Shared>, scope: Scope, at: At, request: Request) -> Handled {
    let body =
        read(request.into_body(), rules::limits::ADMIN_BODY_BYTES_MAX, shared.body_timeout).await?;
    let asked: Evaluate = parse(&body)?;
    let now_ms = moment("/now", asked.now.as_deref())?.unwrap_or_else(now_us) / 1_000;
    let asked = evaluate::Asked {
        flag: asked.flag,
        context: asked.context,
        now_ms,
        draft: asked.draft.map(|draft| (draft.definition, draft.config)),
    };
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let (environment, admission) = (&at.environment, &shared.admission);
    let results = evaluate::evaluate(&mut read, &scope, environment, asked, admission).await?;
    Ok(respond(answer(StatusCode::OK, None, &json!({ "results": results }))))
}
