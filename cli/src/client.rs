//! The admin API over HTTP, and what its answers mean for a person: problem documents (RFC 9457)
//! become a `Failure` with the exit code that the help promises.

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde_json::Value;

use crate::failure::{Exit, Failure, Place};
use crate::session;

/// Between two bytes of an answer; a whole import may take longer.
const IDLE_SECONDS_MAX: u64 = 60;
const CONNECT_SECONDS_MAX: u64 = 5;
/// Reads of a list: pages, so that a server that never ends its list does not keep us for ever.
const PAGES_MAX: usize = 1_000;

pub struct Client {
    http: reqwest::Client,
    url: String,
    known: Known,
}

/// Who asks.
enum Known {
    Nobody,
    Token(header::HeaderValue),
    /// Whoever has signed in here; a request first takes a token that is good for a while.
    Session,
}

/// An answer of 2xx, or of 412.
pub struct Answer {
    pub status: StatusCode,
    pub etag: Option<String>,
    /// How far a write that waited has come.
    pub live: Option<String>,
    /// What `fractional` means in a flagd document.
    pub fractional: Option<String>,
    pub body: Value,
}

impl Client {
    pub fn new(url: String, token: &str) -> Result<Client, Failure> {
        Ok(Client { http: http(&url)?, url, known: Known::Token(bearer(token)?) })
    }

    /// As whoever has signed in with `tidegate login`.
    pub fn of_session(url: String) -> Result<Client, Failure> {
        Ok(Client { http: http(&url)?, url, known: Known::Session })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is the session of `tidegate login`.
    pub fn is_session(&self) -> bool {
        matches!(self.known, Known::Session)
    }

    /// For what nobody has to be known for.
    pub fn anonymous(url: String) -> Result<Client, Failure> {
        Ok(Client { http: http(&url)?, url, known: Known::Nobody })
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let authorization = match &self.known {
            Known::Nobody => return Ok(request),
            Known::Token(authorization) => authorization.clone(),
            Known::Session => bearer(&session::access_token(&self.url).await?)?,
        };
        Ok(request.header(header::AUTHORIZATION, authorization))
    }

    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.send(Method::GET, path, None, None).await.and_then(|answer| self.accept(answer))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        let body = body.to_string().into_bytes();
        self.post_bytes(path, body).await
    }

    /// A module as it is.
    pub async fn post_wasm(&self, path: &str, wasm: Vec<u8>) -> Result<Answer, Failure> {
        let request = self
            .request(Method::POST, path)
            .await?
            .header(header::CONTENT_TYPE, "application/wasm")
            .body(wasm);
        self.answered(request).await.and_then(|answer| self.accept(answer))
    }

    /// Whatever the version is now.
    pub async fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.send(Method::DELETE, path, None, Some("*"))
            .await
            .and_then(|answer| self.accept(answer))
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        self.send(Method::POST, path, Some(body), None).await.and_then(|answer| self.accept(answer))
    }

    /// A step on the version `etag`.
    pub async fn post_over(&self, path: &str, body: &Value, etag: &str) -> Result<Answer, Failure> {
        let body = body.to_string().into_bytes();
        self.send(Method::POST, path, Some(body), Some(etag))
            .await
            .and_then(|answer| self.accept(answer))
    }

    /// A write over the version `etag`; a 412 is an answer here, not a failure.
    pub async fn put(
        &self,
        path: &str,
        body: &Value,
        etag: Option<&str>,
    ) -> Result<Answer, Failure> {
        let body = body.to_string().into_bytes();
        let raw = self.send(Method::PUT, path, Some(body), etag).await?;
        if raw.status == StatusCode::PRECONDITION_FAILED {
            return Ok(raw.answer());
        }
        self.accept(raw)
    }

    /// Every item of a list, page by page.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let sign = if path.contains('?') { '&' } else { '?' };
            let mut page = format!("{path}{sign}limit=200");
            if let Some(cursor) = &cursor {
                page.push_str("&cursor=");
                page.push_str(&crate::connection::percent_encoded(cursor));
            }
            let mut body = self.get(&page).await?.body;
            if let Some(Value::Array(more)) = body.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            cursor = body.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() {
                return Ok(items);
            }
        }
        Err(Failure::new(Exit::Failed, format!("{path} has more than {PAGES_MAX} pages")))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        etag: Option<&str>,
    ) -> Result<Raw, Failure> {
        let mut request = self.request(method, path).await?;
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        self.answered(request).await
    }

    async fn answered(&self, request: reqwest::RequestBuilder) -> Result<Raw, Failure> {
        let answer = request.send().await.map_err(|error| unreachable(&self.url, &error))?;
        let status = answer.status();
        let text = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (etag, live) = (text("etag"), text("tidegate-live"));
        let fractional = text("tidegate-fractional");
        let body = answer.bytes().await.map_err(|error| unreachable(&self.url, &error))?;
        Ok(Raw { status, etag, live, fractional, body: body.to_vec() })
    }

    fn accept(&self, raw: Raw) -> Result<Answer, Failure> {
        if raw.status.is_success() {
            return Ok(raw.answer());
        }
        Err(problem(raw.status, &raw.body, &self.url))
    }
}

fn bearer(token: &str) -> Result<header::HeaderValue, Failure> {
    let mut value = header::HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failure::usage("the token holds bytes that no header may hold"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A client that has its ends, and trusts the system's certificates if `url` needs any.
pub fn http(url: &str) -> Result<reqwest::Client, Failure> {
    // reqwest is built without a TLS provider of its own; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .read_timeout(Duration::from_secs(IDLE_SECONDS_MAX))
        // A token must not follow a redirect to somewhere else.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("http://") {
        // Without this a machine that has no root certificates could not even speak HTTP.
        builder = builder.tls_certs_only([]);
    }
    builder
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot set up HTTP: {error}")))
}

struct Raw {
    status: StatusCode,
    etag: Option<String>,
    live: Option<String>,
    fractional: Option<String>,
    body: Vec<u8>,
}

impl Raw {
    fn answer(self) -> Answer {
        let body = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        let Raw { status, etag, live, fractional, .. } = self;
        Answer { status, etag, live, fractional, body }
    }
}

pub fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Failure::new(Exit::Unreachable, format!("cannot reach {url}: {cause}"))
        .mend("is it running? `tidegate dev` starts one here; --url or TIDEGATE_URL names another")
}

/// A problem document as a person reads it.
pub fn problem(status: StatusCode, body: &[u8], url: &str) -> Failure {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let message = match (text("detail"), text("title"), text("errorDetails")) {
        (Some(detail), _, _) => detail.to_owned(),
        (None, Some(title), _) => title.to_owned(),
        (None, None, Some(details)) => details.to_owned(),
        (None, None, None) => format!("{url} answered {status} without saying why"),
    };
    let places = body
        .get("errors")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|error| {
            let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
            let message = ["message", "detail"].map(text).into_iter().find(|text| !text.is_empty());
            Place {
                pointer: text("pointer").to_owned(),
                message: message.unwrap_or_default().to_owned(),
            }
        })
        .collect();
    let (exit, mend) = match status {
        StatusCode::UNAUTHORIZED => (
            Exit::Failed,
            Some("the token is missing, mistyped or revoked; see TIDEGATE_TOKEN and --token-file"),
        ),
        StatusCode::FORBIDDEN => (Exit::Failed, Some("this token may not do that")),
        StatusCode::NOT_FOUND => (Exit::NotFound, None),
        StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE => (Exit::Refused, None),
        StatusCode::CONFLICT
        | StatusCode::PRECONDITION_FAILED
        | StatusCode::PRECONDITION_REQUIRED => (Exit::Conflict, None),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => (Exit::Unreachable, None),
        _ => (Exit::Failed, None),
    };
    let failure = Failure { exit, message, places, mend: None };
    match mend {
        Some(mend) => failure.mend(mend),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_every_place_in_columns() {
        let body = br#"{"title":"refused","detail":"the configuration is refused","errors":[
            {"pointer":"/rules/0/when/op","message":"unknown operator \"ist\""},
            {"pointer":"/off","message":"no variant \"of\""}]}"#;
        let failure = problem(StatusCode::UNPROCESSABLE_ENTITY, body, "http://x");
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(
            failure.to_string(),
            "error: the configuration is refused\n  \
             /rules/0/when/op  unknown operator \"ist\"\n  \
             /off              no variant \"of\""
        );
    }

    #[test]
    fn an_answer_that_is_no_problem_document_still_says_who_answered_what() {
        let failure = problem(StatusCode::SERVICE_UNAVAILABLE, b"<html>", "http://x");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("http://x answered 503"), "{}", failure.message);
    }
}
