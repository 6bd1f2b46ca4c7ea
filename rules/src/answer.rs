//! OFREP answers as bytes, from parts that the compiler rendered (INTEROP 1.3).
//!
//! Success `{key, value, variant, reason, metadata}`; the caller's default is the same without
//! `value`, `variant` empty; errors `{key, errorCode, errorDetails, metadata}`.

use alloc::vec::Vec;
use core::mem;

use crate::eval::{ErrorCode, Evaluator, FlagId, Input, Outcome, Reason, Scratch};
use crate::model::Clients;

/// Which flags a caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A server key: every flag.
    Server,
    /// A browser key: flags whose `clients` is not `none`; the others do not exist.
    Browser,
    /// As `Browser`, without the flags that browsers evaluate themselves.
    BrowserAtEdge,
}

/// What the HTTP status of a single answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    Ok = 200,
    BadRequest = 400,
    NotFound = 404,
    Failed = 500,
}

/// Evaluates one flag and appends the OFREP body to `out`.
pub fn write_one(
    evaluator: &Evaluator,
    key: &str,
    audience: Audience,
    input: &Input<'_>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Status {
    match evaluator.flag(key).filter(|flag| audience.sees(evaluator, *flag)) {
        Some(flag) => {
            let outcome = evaluator.evaluate(flag, input, scratch);
            write_outcome(evaluator, flag, &outcome, out)
        }
        None => write_error(key, ErrorCode::FlagNotFound, "the flag does not exist", out),
    }
}

/// Evaluates every flag that the audience may see, in key order, and appends
/// `{"flags":[…],"metadata":{…}}` to `out`. A flag that fails is an error inside of `flags`.
pub fn write_all(
    evaluator: &Evaluator,
    audience: Audience,
    input: &Input<'_>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"flags\":[");
    scratch.begin_many(evaluator.rules());
    let mut first = true;
    for flag in evaluator.flags().filter(|flag| audience.sees(evaluator, *flag)) {
        if !mem::take(&mut first) {
            out.push(b',');
        }
        let outcome = evaluator.evaluate_again(flag, input, scratch);
        write_outcome(evaluator, flag, &outcome, out);
    }
    out.extend_from_slice(b"],\"metadata\":");
    let metadata = evaluator.rules().str(evaluator.rules().metadata);
    out.extend_from_slice(if metadata.is_empty() { b"{}" } else { metadata.as_bytes() });
    out.push(b'}');
}

/// Appends the answer for an outcome that is already there.
pub fn write_outcome(
    evaluator: &Evaluator,
    id: FlagId,
    outcome: &Outcome,
    out: &mut Vec<u8>,
) -> Status {
    let rules = evaluator.rules();
    let Some(flag) = rules.flags.get(id.0 as usize) else {
        return write_error("", ErrorCode::General, "no such flag index", out);
    };
    let mut add = |text: &str| append(text, out);
    let status = match outcome {
        Outcome::Variant { variant, reason } => {
            let Some(variant) = rules.variants.get(*variant as usize) else {
                return write_error(
                    rules.str(flag.key),
                    ErrorCode::General,
                    "no such variant index",
                    out,
                );
            };
            add(rules.str(flag.json_head));
            add(rules.str(variant.json));
            add(reason_json(*reason));
            Status::Ok
        }
        // A policy's own value: no variant has it.
        Outcome::Value { value, reason } => {
            add(rules.str(flag.json_head));
            add(",\"value\":");
            add(value);
            add(",\"variant\":\"\"");
            add(reason_json(*reason));
            Status::Ok
        }
        Outcome::CodeDefault { reason } => {
            add(rules.str(flag.json_head));
            add(",\"variant\":\"\"");
            add(reason_json(*reason));
            Status::Ok
        }
        Outcome::Error { code, details } => {
            add(rules.str(flag.json_head));
            write_failure(*code, details, out);
            status_of(*code)
        }
    };
    append(rules.str(flag.json_tail), out);
    status
}

/// `out.extend_from_slice(text)`, sixteen bytes at a time where the text is short, as most parts of an
/// answer are: in the guest a copy of a length that nobody knew at compile time is a call of the host,
/// and four of them were half of what a plain flag's answer took.
#[inline]
fn append(text: &str, out: &mut Vec<u8>) {
    const COPIED_AT_ONCE: usize = 256;
    let bytes = text.as_bytes();
    if bytes.len() > COPIED_AT_ONCE {
        return out.extend_from_slice(bytes);
    }
    out.reserve(bytes.len().next_multiple_of(16));
    let (chunks, rest) = bytes.as_chunks::<16>();
    for chunk in chunks {
        out.extend_from_slice(chunk);
    }
    // What is left ends where the text does: the bytes before it are written a second time.
    let again = |out: &mut Vec<u8>, bytes: usize| out.truncate(out.len().saturating_sub(bytes));
    match (rest.len(), bytes.last_chunk::<16>(), rest.first_chunk::<8>(), rest.last_chunk::<8>()) {
        (0, ..) => {}
        (len, Some(last), ..) => {
            again(out, 16usize.saturating_sub(len));
            out.extend_from_slice(last);
        }
        (len, None, Some(first), Some(last)) => {
            out.extend_from_slice(first);
            again(out, 16usize.saturating_sub(len));
            out.extend_from_slice(last);
        }
        _ => rest.iter().for_each(|byte| out.push(*byte)),
    }
}

/// Appends `{key, errorCode, errorDetails, metadata:{}}` for a flag that could not be evaluated
/// (unknown, or the sandbox failed: that is what GENERAL means here, so its status is 500).
pub fn write_error(key: &str, code: ErrorCode, details: &str, out: &mut Vec<u8>) -> Status {
    out.extend_from_slice(b"{\"key\":");
    write_json_string(key, out);
    write_failure(code, details, out);
    out.extend_from_slice(b",\"metadata\":{}}");
    match code {
        ErrorCode::General => Status::Failed,
        code => status_of(code),
    }
}

impl Audience {
    fn sees(self, evaluator: &Evaluator, flag: FlagId) -> bool {
        let clients = || evaluator.rules().flags.get(flag.0 as usize).map(|flag| flag.clients);
        match self {
            Audience::Server => true,
            Audience::Browser => clients().is_some_and(|clients| clients != Clients::None),
            Audience::BrowserAtEdge => clients() == Some(Clients::Edge),
        }
    }
}

fn status_of(code: ErrorCode) -> Status {
    match code {
        ErrorCode::FlagNotFound => Status::NotFound,
        ErrorCode::ParseError
        | ErrorCode::TargetingKeyMissing
        | ErrorCode::InvalidContext
        | ErrorCode::TypeMismatch
        | ErrorCode::General => Status::BadRequest,
    }
}

fn write_failure(code: ErrorCode, details: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"errorCode\":\"");
    out.extend_from_slice(code.name().as_bytes());
    out.extend_from_slice(b"\",\"errorDetails\":");
    write_json_string(details, out);
}

fn reason_json(reason: Reason) -> &'static str {
    match reason {
        Reason::Static => ",\"reason\":\"STATIC\"",
        Reason::Default => ",\"reason\":\"DEFAULT\"",
        Reason::TargetingMatch => ",\"reason\":\"TARGETING_MATCH\"",
        Reason::Split => ",\"reason\":\"SPLIT\"",
        Reason::Disabled => ",\"reason\":\"DISABLED\"",
    }
}

/// As serde_json writes it, so that every host and the compiler agree on the bytes.
pub(crate) fn write_json_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0..0x20 => {
                let hex = |digit: u8| match digit {
                    0..10 => digit | b'0',
                    _ => digit.wrapping_sub(10).wrapping_add(b'a'),
                };
                out.extend_from_slice(b"\\u00");
                out.push(hex(byte >> 4));
                out.push(hex(byte & 0x0f));
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(key: &str, code: ErrorCode, details: &str) -> (Status, String) {
        let mut out = Vec::new();
        let status = write_error(key, code, details, &mut out);
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn errors_have_every_field_and_the_status_that_ofrep_gives_them() {
        let (status, body) = error("a/\"b\"", ErrorCode::FlagNotFound, "no such flag");
        assert_eq!(status, Status::NotFound);
        let wanted = r#"{"key":"a/\"b\"","errorCode":"FLAG_NOT_FOUND","errorDetails":"no such flag","metadata":{}}"#;
        assert_eq!(body, wanted);
        assert_eq!(error("a", ErrorCode::InvalidContext, "x").0, Status::BadRequest);
        assert_eq!(error("a", ErrorCode::ParseError, "x").0, Status::BadRequest);
        assert_eq!(error("a", ErrorCode::TargetingKeyMissing, "x").0, Status::BadRequest);
        assert_eq!(error("a", ErrorCode::General, "the sandbox failed").0, Status::Failed);
    }

    #[test]
    fn parts_of_every_length_are_appended_whole() {
        let text: String = (0..600).map(|place| char::from(b'a' + (place % 23) as u8)).collect();
        for len in 0..text.len() {
            for before in [0, 1, 7, 16, 33] {
                let mut out = text.as_bytes()[..before].to_vec();
                append(&text[..len], &mut out);
                assert_eq!(out, [&text[..before], &text[..len]].concat().as_bytes(), "{len}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_key_and_text_are_escaped_as_serde_json_does(key in any::<String>(), text in any::<String>()) {
            let wanted = format!(
                r#"{{"key":{},"errorCode":"GENERAL","errorDetails":{},"metadata":{{}}}}"#,
                serde_json::to_string(&key).unwrap(),
                serde_json::to_string(&text).unwrap(),
            );
            prop_assert_eq!(error(&key, ErrorCode::General, &text).1, wanted);
        }

        #[test]
        fn control_characters_are_escaped_too(text in "[\\x00-\\x20\"\\\\\\x7f]{0,8}") {
            let wanted = serde_json::to_string(&text).unwrap();
            let mut out = Vec::new();
            write_json_string(&text, &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
    }
}
