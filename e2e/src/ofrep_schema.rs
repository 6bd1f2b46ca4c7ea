//! Holds OFREP answers against the protocol's OpenAPI document (`data/openapi.yaml`, a copy of the
//! published one with its three faults mended; see `data/README.md`).
//!
//! Beyond the document: every answer with a body is a JSON object (INTEROP 1.2: Java clients parse
//! before they look at the status), and no success carries `value: null`.

use std::collections::BTreeMap;

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

    /// Why this answer is not OFREP, if it is not.
    pub fn check(&self, path: &str, method: &str, status: u16, body: &[u8]) -> Result<(), String> {
        let template =
            Self::template(path).ok_or_else(|| format!("{path} is no evaluation path of OFREP"))?;
        let known = self
            .answers
            .get(&(template.to_owned(), method.to_lowercase(), status))
            .ok_or_else(|| format!("{method} {template} has no answer with status {status}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn one(status: u16, body: Value) -> Result<(), String> {
        OfrepSchema::load().check(
            "/ofrep/v1/evaluate/flags/a",
            "POST",
            status,
            body.to_string().as_bytes(),
        )
    }

    fn bulk(status: u16, body: Value) -> Result<(), String> {
        OfrepSchema::load().check(BULK, "POST", status, body.to_string().as_bytes())
    }

    #[test]
    fn ordinary_answers_are_accepted() {
        for value in [json!(true), json!("x"), json!(3), json!(1.5), json!({"a": [1]})] {
            let body = json!({"key": "a", "value": value, "variant": "v", "reason": "STATIC", "metadata": {"n": 1}});
            assert_eq!(one(200, body.clone()), Ok(()));
            assert_eq!(bulk(200, json!({"flags": [body], "metadata": {}})), Ok(()));
        }
        assert_eq!(
            one(200, json!({"key": "a", "variant": "", "reason": "DEFAULT", "metadata": {}})),
            Ok(())
        );
        assert_eq!(
            one(404, json!({"key": "a", "errorCode": "FLAG_NOT_FOUND", "metadata": {}})),
            Ok(())
        );
        assert_eq!(one(401, json!({"metadata": {}})), Ok(()));
        let stream = json!({"type": "sse", "endpoint": {"requestUri": "/ofrep/v1/events?token=x"}});
        assert_eq!(bulk(200, json!({"flags": [], "eventStreams": [stream]})), Ok(()));
    }

    #[test]
    fn answers_that_break_the_protocol_are_refused() {
        for (status, body) in [
            (200, json!({"value": true, "reason": "STATIC"})),
            (200, json!({"key": "a", "value": true})),
            (200, json!({"key": 1, "value": true, "reason": "STATIC"})),
            (200, json!({"key": "a", "value": null, "reason": "STATIC"})),
            (200, json!({"key": "a", "value": 1, "reason": "STATIC", "metadata": {"a": {}}})),
            (400, json!({"key": "a", "errorCode": "BROKEN"})),
            (400, json!({"errorCode": "GENERAL"})),
            (404, json!({"key": "a", "errorCode": "GENERAL"})),
            (401, json!([])),
            (418, json!({})),
        ] {
            assert!(one(status, body.clone()).is_err(), "{status} {body}");
        }
        for body in [
            json!({}),
            json!({"flags": [{"key": "a"}]}),
            json!({"flags": [], "eventStreams": [{"type": "sse"}]}),
            json!({"flags": [], "eventStreams": [{"type": "sse", "url": "http://a", "endpoint": {"requestUri": "/"}}]}),
            json!({"flags": [], "eventStreams": [{"type": "sse", "endpoint": {"requestUri": "no-slash"}}]}),
        ] {
            assert!(bulk(200, body.clone()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_304_has_no_body_and_exists_for_bulk_only() {
        let schema = OfrepSchema::load();
        assert_eq!(schema.check(BULK, "POST", 304, b""), Ok(()));
        assert!(schema.check(BULK, "POST", 304, b"{}").is_err());
        assert!(schema.check("/ofrep/v1/evaluate/flags/a/b", "POST", 304, b"").is_err());
    }

    #[test]
    fn events_need_a_type() {
        let schema = OfrepSchema::load();
        assert_eq!(
            schema.check_event(r#"{"type":"refetchEvaluation","etag":"x","lastModified":1}"#),
            Ok(())
        );
        assert!(schema.check_event(r#"{"etag":"x"}"#).is_err());
        assert!(schema.check_event("ping").is_err());
    }
}
