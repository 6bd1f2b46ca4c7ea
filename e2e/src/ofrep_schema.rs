//! Holds OFREP answers against the protocol's OpenAPI document (`data/openapi.yaml`, a copy of the
//! published one with its three faults mended; see `data/README.md`).
//!
//! Beyond the document: every answer with a body is a JSON object (INTEROP 1.2: Java clients parse
//! before they look at the status), and no success carries `value: null`. Answers that the document
//! does not foresee (405, 408, 503 of a cold
//! edge, a path that is none) look like its 500.
//!
//! The tests of `edge` and `cli` include this file by its path: they may not depend on `e2e`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Value, json};

/// What OFREP says about one endpoint's answers.
pub struct OfrepSchema {
    /// By path template, method and status.
    answers: BTreeMap<(String, String, u16), Option<jsonschema::Validator>>,
    event: jsonschema::Validator,
}

pub const SINGLE: &str = "/ofrep/v1/evaluate/flags/{key}";
pub const BULK: &str = "/ofrep/v1/evaluate/flags";

impl OfrepSchema {
    pub fn load() -> OfrepSchema {
        let document: Value = serde_norway::from_str(include_str!("../data/openapi.yaml"))
            .expect("data/openapi.yaml is YAML");
        let components = document["components"].clone();
        let validator = |schema: &Value| {
            // References point to `#/components/…`, so the components travel with each schema.
            let mut whole = json!({ "allOf": [schema] });
            whole["components"] = components.clone();
            jsonschema::draft202012::new(&whole).expect("the OpenAPI document's schemas are valid")
        };
        let mut answers = BTreeMap::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    let schema = &response["content"]["application/json"]["schema"];
                    let status = status.parse().expect("a status is a number");
                    answers.insert(
                        (path.clone(), method.clone(), status),
                        (!schema.is_null()).then(|| validator(schema)),
                    );
                }
            }
        }
        let event = validator(&json!({ "$ref": "#/components/schemas/sseEventData" }));
        OfrepSchema { answers, event }
    }

    /// The path template of a request's path: the key may hold slashes, escaped or not.
    pub fn template(path: &str) -> Option<&'static str> {
        let rest = path.split('?').next()?.strip_prefix(BULK)?;
        match rest {
            "" | "/" => Some(BULK),
            _ => rest.starts_with('/').then_some(SINGLE),
        }
    }

    /// One for the whole process.
    pub fn shared() -> &'static OfrepSchema {
        static SHARED: OnceLock<OfrepSchema> = OnceLock::new();
        SHARED.get_or_init(OfrepSchema::load)
    }

    /// Why this answer is not OFREP, if it is not.
    pub fn check(&self, path: &str, method: &str, status: u16, body: &[u8]) -> Result<(), String> {
        let answer = |template: &str, method: &str, status: u16| {
            self.answers.get(&(template.to_owned(), method.to_lowercase(), status))
        };
        let known = match (Self::template(path), method, status) {
            (_, "OPTIONS", 204) if body.is_empty() => return Ok(()),
            (Some(_), "POST", 408 | 503) | (None, _, 401 | 403 | 404 | 503) => {
                answer(BULK, "POST", 500)
            }
            (Some(template), "POST", _) => answer(template, method, status),
            (Some(_) | None, _, 405) if method != "POST" => answer(BULK, "POST", 500),
            _ => None,
        };
        let known =
            known.ok_or_else(|| format!("{method} {path} has no answer with status {status}"))?;
        if status == 304 {
            return if body.is_empty() { Ok(()) } else { Err("a 304 has no body".to_owned()) };
        }
        let text = String::from_utf8_lossy(body);
        let json: Value = serde_json::from_slice(body).map_err(|error| {
            format!("status {status} has a body that is no JSON: {error}: {text}")
        })?;
        if !json.is_object() {
            return Err(format!("status {status} has a body that is no object: {text}"));
        }
        if let Some(schema) = known {
            let faults: Vec<String> = schema
                .iter_errors(&json)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            if !faults.is_empty() {
                return Err(format!("status {status}: {}: {text}", faults.join("; ")));
            }
        }
        let flags = json["flags"].as_array().map_or(std::slice::from_ref(&json), Vec::as_slice);
        match flags.iter().find(|flag| flag.get("value").is_some_and(Value::is_null)) {
            Some(flag) => Err(format!("a value is null, which clients take for a type: {flag}")),
            None => Ok(()),
        }
    }

    /// Why this `data` of an event is not OFREP's, if it is not.
    pub fn check_event(&self, data: &str) -> Result<(), String> {
        let json: Value =
            serde_json::from_str(data).map_err(|error| format!("an event is no JSON: {error}"))?;
        self.event.validate(&json).map_err(|error| format!("{error}: {data}"))
    }
}
