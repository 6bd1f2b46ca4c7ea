//! What a refusal is over HTTP: the one file that chooses statuses and writes problem documents
//! (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderValue, StatusCode};
use rules::compile::Problem;
use serde_json::{Map, Value, json};

use crate::admission::AdmissionError;
use crate::authorize::Denied;
use crate::bus::BusError;
use crate::idempotency::Answer;
use crate::passwords::PasswordError;
use crate::refusal::Refusal;
use crate::store::{is_full, is_passing};

/// Why a handler ends before its own answer.
#[derive(Debug)]
pub enum Stop {
    Problem(Box<Document>),
    /// The request was answered before.
    Replayed(Answer),
}

#[derive(Debug)]
pub struct Document {
    status: StatusCode,
    /// Last part of the type's URN.
    kind: &'static str,
    detail: String,
    errors: Vec<Problem>,
    etag: Option<String>,
    /// State that the client needs to go on.
    current: Option<Value>,
    /// What was found about an uploaded module.
    verdict: Option<Value>,
    /// When to come again.
    retry_after_s: Option<u64>,
}

impl Stop {
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Stop {
        Stop::Problem(Box::new(Document {
            status,
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            etag: None,
            current: None,
            verdict: None,
            retry_after_s: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1),
        }))
    }

    fn with(self, change: impl FnOnce(&mut Document)) -> Stop {
        match self {
            Stop::Problem(mut document) => {
                change(&mut document);
                Stop::Problem(document)
            }
            replayed => replayed,
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        let detail = refusal.to_string();
        match refusal {
            Refusal::NotFound(_) => Stop::new(StatusCode::NOT_FOUND, "not-found", detail),
            Refusal::MayNotApprove { .. } => {
                Stop::new(StatusCode::FORBIDDEN, "may-not-approve", detail)
            }
            Refusal::Forbidden { .. } => Stop::new(StatusCode::FORBIDDEN, "forbidden", detail),
            Refusal::NoSession(_) => Stop::new(StatusCode::FORBIDDEN, "no-session", detail),
            Refusal::Last { .. } => Stop::new(StatusCode::CONFLICT, "last", detail),
            Refusal::Exists { .. } => Stop::new(StatusCode::CONFLICT, "exists", detail),
            Refusal::Archived { .. } => Stop::new(StatusCode::CONFLICT, "archived", detail),
            Refusal::InUse { .. } => Stop::new(StatusCode::CONFLICT, "in-use", detail),
            Refusal::TwoLive { .. } => Stop::new(StatusCode::CONFLICT, "two-live", detail),
            Refusal::Expired => Stop::new(StatusCode::CONFLICT, "expired", detail),
            Refusal::KeysLeft { .. } => Stop::new(StatusCode::CONFLICT, "keys-left", detail),
            Refusal::NotLive { .. } => Stop::new(StatusCode::CONFLICT, "not-live", detail),
            Refusal::ApprovalRequired { .. } | Refusal::ApprovalsLacking { .. } => {
                Stop::new(StatusCode::CONFLICT, "approval-required", detail)
            }
            Refusal::WrongState { .. } => Stop::new(StatusCode::CONFLICT, "wrong-state", detail),
            Refusal::Conflict { .. } => Stop::new(StatusCode::CONFLICT, "conflict", detail),
            // `Write::finish_unless_so` answers it with the state; here it would be a handler that forgot.
            Refusal::Already(current) => Stop::new(StatusCode::CONFLICT, "already", detail)
                .with(|document| document.current = Some(current)),
            Refusal::Inexpressible(errors) => {
                Stop::new(StatusCode::CONFLICT, "inexpressible", detail)
                    .with(|document| document.errors = errors)
            }
            Refusal::TooMany { .. } => {
                Stop::new(StatusCode::UNPROCESSABLE_ENTITY, "too-many", detail)
            }
            Refusal::VersionRequired { current } => Stop::new(
                StatusCode::PRECONDITION_REQUIRED,
                "version-required",
                "send If-Match with the ETag that the change is made on, or *",
            )
            .with(|document| document.etag = Some(format!("\"{current}\""))),
            Refusal::Stale { version, current } => {
                Stop::new(StatusCode::PRECONDITION_FAILED, "stale-version", detail).with(
                    |document| {
                        document.etag = Some(format!("\"{version}\""));
                        document.current = Some(current);
                    },
                )
            }
            Refusal::Invalid(errors) => {
                let detail = match errors.as_slice() {
                    [only] => only.message.clone(),
                    more => format!("{} things are wrong", more.len()),
                };
                Stop::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                    .with(|document| document.errors = errors)
            }
            Refusal::KeyReused => {
                Stop::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail)
            }
            Refusal::Store(error) => Stop::from(error),
            Refusal::Internal(why) => {
                tracing::error!(why, "a request failed");
                Stop::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "control failed")
            }
        }
    }
}

impl Stop {
    /// Who comes again after so many seconds is listened to.
    pub fn too_often(detail: impl Into<String>, seconds: u64) -> Stop {
        Stop::new(StatusCode::TOO_MANY_REQUESTS, "too-often", detail)
            .with(|document| document.retry_after_s = Some(seconds.max(1)))
    }

    /// A module that may not become a version; the problem names the rule and the byte.
    pub fn not_admitted(verdict: &sandbox::policy::Verdict) -> Stop {
        let detail = match &verdict.refused {
            Some(refused) => refused.to_string(),
            None => "it was not admitted".to_owned(),
        };
        Stop::new(StatusCode::UNPROCESSABLE_ENTITY, "policy-refused", detail)
            .with(|document| document.verdict = Some(json!(verdict)))
    }
}

impl From<AdmissionError> for Stop {
    fn from(error: AdmissionError) -> Stop {
        match &error {
            AdmissionError::Busy => {
                Stop::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string())
            }
            AdmissionError::TooOften { seconds, .. } => {
                let seconds = *seconds;
                Stop::new(StatusCode::TOO_MANY_REQUESTS, "too-often", error.to_string())
                    .with(|document| document.retry_after_s = Some(seconds))
            }
            AdmissionError::Helper(_) | AdmissionError::Broken(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "no admission");
                let detail = "the module could not be looked at";
                Stop::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
            }
        }
    }
}

impl From<PasswordError> for Stop {
    fn from(error: PasswordError) -> Stop {
        match &error {
            PasswordError::Busy => {
                Stop::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string())
            }
            PasswordError::Failed(_) => Refusal::Internal(error.to_string()).into(),
        }
    }
}

/// The store's own words may hold data of others; they go to the log.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> Stop {
    tracing::error!(error, "a request failed");
    Stop::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the store cannot answer just now")
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Stop {
        if is_full(&error) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the database's disk is full"
            );
            let detail = "the database's disk is full, so nothing was written and what is published stays; \
                          make room on it, then send this again";
            return Stop::new(StatusCode::INSUFFICIENT_STORAGE, "storage-full", detail);
        }
        if is_passing(&error) {
            return unavailable(&error);
        }
        tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
        Stop::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "control failed")
    }
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Stop {
        unavailable(&error)
    }
}

impl From<Denied> for Stop {
    fn from(denied: Denied) -> Stop {
        let detail = denied.to_string();
        match denied {
            Denied::Unnamed | Denied::Unknown => {
                Stop::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            }
            Denied::Forbidden | Denied::Lacking { .. } => {
                Stop::new(StatusCode::FORBIDDEN, "forbidden", detail)
            }
            Denied::Failed(refusal) => refusal.into(),
        }
    }
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        match self {
            Stop::Problem(document) => document.into_response(),
            Stop::Replayed(answer) => {
                let mut response = respond(answer);
                response
                    .headers_mut()
                    .insert("idempotency-replayed", HeaderValue::from_static("true"));
                response
            }
        }
    }
}

impl Document {
    fn into_response(self) -> Response {
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("type", json!(format!("urn:tidegate:problem:{}", self.kind)));
        set("title", json!(self.status.canonical_reason().unwrap_or("error")));
        set("status", json!(self.status.as_u16()));
        set("detail", json!(self.detail));
        if !self.errors.is_empty() {
            let each =
                |error: &Problem| json!({ "pointer": error.pointer, "message": error.message });
            set("errors", self.errors.iter().map(each).collect());
        }
        if let Some(current) = self.current {
            set("current", current);
        }
        if let Some(verdict) = self.verdict {
            set("verdict", verdict);
        }
        let mut response = (self.status, Value::Object(body).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(etag) = self.etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
            headers.insert(ETAG, etag);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            // The rest of the body is not read, so the connection ends here; who is not told so would
            // send the next request into the end.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            // axum adds the list itself where it knows it.
            headers.remove(ALLOW);
        }
        response
    }
}

/// An answer of a write, new or kept.
pub fn respond(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    match status {
        StatusCode::NO_CONTENT => drop(headers.remove(CONTENT_TYPE)),
        _ => drop(headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"))),
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut set = |name, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(name, value);
        }
    };
    set(ETAG, answer.etag);
    set(LOCATION, answer.location);
    response
}
