//! The check of OFREP answers can fail.

use e2e::ofrep_schema::{BULK, OfrepSchema};
use serde_json::{Value, json};

fn one(status: u16, body: Value) -> Result<(), String> {
    OfrepSchema::shared().check(
        "/ofrep/v1/evaluate/flags/a",
        "POST",
        status,
        body.to_string().as_bytes(),
    )
}

fn bulk(status: u16, body: Value) -> Result<(), String> {
    OfrepSchema::shared().check(BULK, "POST", status, body.to_string().as_bytes())
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
    let schema = OfrepSchema::shared();
    assert_eq!(schema.check(BULK, "POST", 304, b""), Ok(()));
    assert!(schema.check(BULK, "POST", 304, b"{}").is_err());
    assert!(schema.check("/ofrep/v1/evaluate/flags/a/b", "POST", 304, b"").is_err());
}

#[test]
fn what_the_document_does_not_foresee_is_an_error_with_details() {
    let schema = OfrepSchema::shared();
    let failed = br#"{"errorDetails":"x","metadata":{}}"#;
    assert_eq!(schema.check(BULK, "GET", 405, failed), Ok(()));
    assert_eq!(schema.check(BULK, "POST", 503, failed), Ok(()));
    assert_eq!(schema.check("/ofrep/v1/nothing", "POST", 404, failed), Ok(()));
    assert_eq!(schema.check(BULK, "OPTIONS", 204, b""), Ok(()));
    for (method, status, body) in [
        ("POST", 405, failed.as_slice()),
        ("GET", 200, failed),
        ("GET", 405, b""),
        ("GET", 405, b"[]"),
        ("GET", 405, br#"{"errorDetails":1}"#),
        ("POST", 503, b"busy"),
    ] {
        assert!(schema.check(BULK, method, status, body).is_err(), "{method} {status}");
    }
}

#[test]
fn events_need_a_type() {
    let schema = OfrepSchema::shared();
    assert_eq!(
        schema.check_event(r#"{"type":"refetchEvaluation","etag":"x","lastModified":1}"#),
        Ok(())
    );
    assert!(schema.check_event(r#"{"etag":"x"}"#).is_err());
    assert!(schema.check_event("ping").is_err());
}
