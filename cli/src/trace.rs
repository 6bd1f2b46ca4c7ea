//! The explanation of an evaluation as a person reads it: the answer first, then every step that
//! led to it, in order, each with what was there and what was wanted.
//!
//! Reads the JSON that the admin API gives (`rules::trace`), leniently: a step of a newer server
//! that is unknown here is shown as it came rather than left out.

use std::fmt::Write as _;

use serde_json::Value;

use crate::paint::{Paint, grouped};
use crate::readable;

/// One result of `POST …/evaluate`.
pub fn answer(paint: Paint, result: &Value) -> String {
    let text = |name: &str| result.get(name).and_then(Value::as_str).unwrap_or_default();
    let key = paint.bold(text("key"));
    if let Some(code) = result.get("errorCode").and_then(Value::as_str) {
        let details = text("errorDetails");
        return format!("{key}  {}  {details}", paint.bad(code));
    }
    let value = match result.get("value") {
        Some(value) => paint.bold(&value.to_string()),
        None => "the caller's default".to_owned(),
    };
    let variant = match text("variant") {
        "" => String::new(),
        variant => format!("  variant {variant}"),
    };
    format!("{key} = {value}{variant}  reason {}", text("reason"))
}

/// The answer and its steps.
pub fn explained(paint: Paint, result: &Value) -> String {
    let mut out = answer(paint, result);
    out.push('\n');
    let steps = result.pointer("/trace/steps").and_then(Value::as_array);
    let Some(steps) = steps else {
        out.push_str("  (no trace)\n");
        return out;
    };
    let lines = lines(steps);
    let width = lines
        .iter()
        .filter(|line| !line.right.is_empty())
        .map(|line| line.depth * 2 + line.left.chars().count())
        .max()
        .unwrap_or(0);
    for line in &lines {
        let mark = match line.mark {
            Some(ok) => paint.mark(ok),
            None => paint.dim("·"),
        };
        let _ = write!(out, "  {:indent$}{mark} {}", "", line.left, indent = line.depth * 2);
        if !line.right.is_empty() {
            let missing = width.saturating_sub(line.depth * 2 + line.left.chars().count());
            let _ = write!(out, "{:missing$}   {}", "", paint.dim(&line.right));
        }
        out.push('\n');
    }
    if let Some(metadata) = result.get("metadata").and_then(Value::as_object)
        && !metadata.is_empty()
    {
        let _ = writeln!(out, "  {}", paint.dim(&format!("metadata {}", result["metadata"])));
    }
    out
}

struct Line {
    depth: usize,
    /// A tick, a cross, or neither.
    mark: Option<bool>,
    left: String,
    right: String,
}

/// A rule's steps stand under it; its own mark comes from its end, which comes last.
fn lines(steps: &[Value]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut open: Option<usize> = None;
    for step in steps {
        let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
        let yes = |name: &str| step.get(name).and_then(Value::as_bool).unwrap_or(false);
        let depth = usize::from(open.is_some());
        let mut push = |mark: Option<bool>, left: String, right: String| {
            lines.push(Line { depth, mark, left, right });
        };
        match text("step") {
            "disabled" => push(Some(false), "the flag is off here".to_owned(), String::new()),
            "prerequisite" => {
                let wanted = names(step.get("wanted"));
                let got = match step.get("got").and_then(Value::as_str) {
                    Some(got) => format!("it serves {got} ({})", text("reason")),
                    None => format!("it serves nothing ({})", text("reason")),
                };
                let left = format!("prerequisite {} serves {wanted}", text("flag"));
                push(Some(yes("satisfied")), left, got);
            }
            "rule" => {
                push(None, format!("rule {}", text("id")), String::new());
                open = Some(lines.len() - 1);
            }
            "inactive" => {
                let times = [("from", step.get("fromMs")), ("until", step.get("toMs"))];
                let window: Vec<String> = times
                    .iter()
                    .filter_map(|(word, at)| {
                        Some(format!("{word} {}", time_text(at.and_then(Value::as_i64)?)))
                    })
                    .collect();
                push(Some(false), "inside its window".to_owned(), window.join(" "));
            }
            "clause" => {
                let attribute = text("attribute");
                let op = readable::operator(text("op"), yes("negated"));
                let expected = step.get("expected").and_then(Value::as_array);
                let expected = expected.map(|list| readable::values(list)).unwrap_or_default();
                let left = format!("{attribute} {op} {expected}").trim_end().to_owned();
                let right = match step.get("actual") {
                    Some(actual) => format!("it is {}", readable::value(actual)),
                    None => "the context has none".to_owned(),
                };
                push(Some(yes("result")), left, right);
            }
            "segment" => {
                let right = match text("by") {
                    "excluded" => "on its list of excluded ids",
                    "included" => "on its list of included ids",
                    "rule" => "one of its rules matches",
                    _ => "on no list, and no rule matches",
                };
                push(Some(yes("result")), format!("in segment {}", text("key")), right.to_owned());
            }
            "cel" => {
                let read = |(name, value): (&String, &Value)| {
                    format!("{name} is {}", readable::value(value))
                };
                let attributes = step.get("attributes").and_then(Value::as_object);
                let mut right: Vec<String> = attributes.into_iter().flatten().map(read).collect();
                if let Some(error) = step.get("error").and_then(Value::as_str) {
                    right.push(format!("error: {error}"));
                }
                push(Some(yes("result")), text("expression").to_owned(), right.join(", "));
            }
            "policy" => {
                let answer = step.get("answer");
                let given = |field: &str| answer.and_then(|answer| answer.get(field));
                let left = match (given("variant"), given("value"), given("abstain")) {
                    (Some(variant), ..) => {
                        format!("gives {}", variant.as_str().unwrap_or_default())
                    }
                    (_, Some(value), _) => format!("gives {}", readable::value(value)),
                    (.., Some(_)) => "abstains".to_owned(),
                    _ => "gives nothing".to_owned(),
                };
                let fault = step.get("fault").and_then(Value::as_str);
                let said = match fault {
                    Some(fault) => format!("{fault}: {}", text("details")),
                    None => text("reason").to_owned(),
                };
                let fuel = step.get("fuel").and_then(Value::as_u64);
                let fuel = fuel.map(|fuel| format!("{} fuel", grouped(fuel)));
                let log = (!text("log").is_empty()).then(|| format!("log: {}", text("log")));
                let right = [Some(said), fuel, log].into_iter().flatten();
                let right: Vec<String> = right.filter(|part| !part.is_empty()).collect();
                let right = right.join(", ");
                push(Some(fault.is_none()), format!("policy {} {left}", text("name")), right);
            }
            "logic" => {
                let result = step.get("result").unwrap_or(&Value::Null);
                push(None, format!("logic gives {}", readable::value(result)), String::new());
            }
            "split" => {
                let by = step.get("by").and_then(Value::as_str).unwrap_or("nothing");
                let unit = match step.get("unit").and_then(Value::as_str) {
                    Some(unit) => format!("{by} {unit:?}"),
                    None => format!("{by}, which the context has not"),
                };
                let total = step.get("total").and_then(Value::as_u64).unwrap_or(0);
                let mut right = match step.get("bucket") {
                    Some(Value::Number(bucket)) if total > 0 => {
                        let whole = bucket.as_f64().unwrap_or(0.0) as u64;
                        format!("bucket {} of {}", grouped(whole), grouped(total))
                    }
                    Some(bucket) => format!("bucket {bucket}"),
                    None => String::new(),
                };
                if let Some(ramp) = step.get("ramp").and_then(Value::as_u64) {
                    let _ = write!(right, ", {} of 100,000 reached so far", grouped(ramp));
                }
                match step.get("arm").and_then(Value::as_u64) {
                    Some(arm) => {
                        let _ = write!(right, ", arm {}", arm + 1);
                        push(Some(true), format!("split by {unit}"), right);
                    }
                    None => push(Some(false), format!("split by {unit}"), right),
                }
            }
            "ruleEnd" => {
                let error = step.get("error").and_then(Value::as_str);
                if let Some(line) = open.take().and_then(|at| lines.get_mut(at)) {
                    line.mark = Some(yes("matched"));
                    if let Some(error) = error {
                        line.mark = Some(false);
                        line.left.push_str(&format!(": {error}"));
                    }
                }
            }
            "fallthrough" => {
                push(Some(true), "everybody else (fallthrough)".to_owned(), String::new());
            }
            _ => push(None, step.to_string(), String::new()),
        }
    }
    lines
}

fn names(list: Option<&Value>) -> String {
    let names: Vec<&str> =
        list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    names.join(" or ")
}

/// RFC 3339 in UTC; the number itself if it is no time.
fn time_text(ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_trace_gives_the_answer_first_and_every_step_with_its_reason() {
        let result = json!({
            "key": "checkout", "value": "one-page", "variant": "express",
            "reason": "SPLIT", "metadata": {"team": "shop"},
            "trace": {"flag": "checkout", "nowMs": 0, "steps": [
                {"step": "prerequisite", "flag": "payments-up", "wanted": ["on"], "got": "on",
                 "reason": "STATIC", "satisfied": true},
                {"step": "rule", "id": "staff", "index": 0},
                {"step": "clause", "attribute": "email", "op": "ends_with", "negated": false,
                 "expected": ["@example.com"], "result": false},
                {"step": "ruleEnd", "id": "staff", "matched": false},
                {"step": "rule", "id": "eu", "index": 1},
                {"step": "clause", "attribute": "country", "op": "in", "negated": true,
                 "actual": "DE", "expected": ["US", "CA"], "result": true},
                {"step": "segment", "key": "beta", "by": "included", "result": true},
                {"step": "split", "by": "targetingKey", "unit": "user-1", "bucket": 43512.0,
                 "total": 100000, "arm": 0},
                {"step": "ruleEnd", "id": "eu", "matched": true}]}});
        assert_eq!(
            explained(Paint::plain(), &result),
            "checkout = \"one-page\"  variant express  reason SPLIT\n\
             \x20 ✓ prerequisite payments-up serves on   it serves on (STATIC)\n\
             \x20 ✗ rule staff\n\
             \x20   ✗ email ends with \"@example.com\"     the context has none\n\
             \x20 ✓ rule eu\n\
             \x20   ✓ country not in \"US\", \"CA\"          it is \"DE\"\n\
             \x20   ✓ in segment beta                    on its list of included ids\n\
             \x20   ✓ split by targetingKey \"user-1\"     bucket 43,512 of 100,000, arm 1\n\
             \x20 metadata {\"team\":\"shop\"}\n"
        );
    }

    #[test]
    fn a_step_of_a_newer_server_is_shown_and_not_swallowed() {
        let result = json!({"key": "x", "value": true, "variant": "on", "reason": "STATIC",
            "trace": {"steps": [{"step": "oracle", "name": "delphi"}]}});
        assert!(explained(Paint::plain(), &result).contains("\"name\":\"delphi\""));
    }

    #[test]
    fn a_policy_says_what_it_gives_or_why_its_fallback_is_served() {
        let shown = |step: Value| {
            let result = json!({"key": "x", "value": true, "variant": "on",
                "reason": "TARGETING_MATCH", "trace": {"steps": [step]}});
            explained(Paint::plain(), &result)
        };
        let gives = shown(json!({"step": "policy", "name": "fraud", "digest": "ab",
            "input": {}, "answer": {"variant": "on", "reason": "score 7"}, "reason": "score 7",
            "fuel": 6012, "log": "read it"}));
        assert!(gives.contains("✓ policy fraud gives on"), "{gives}");
        assert!(gives.contains("score 7, 6,012 fuel, log: read it"), "{gives}");
        let fails = shown(json!({"step": "policy", "name": "fraud", "digest": "ab",
            "input": {}, "fault": "fuel", "details": "it ran out of fuel"}));
        assert!(fails.contains("✗ policy fraud gives nothing"), "{fails}");
        assert!(fails.contains("fuel: it ran out of fuel"), "{fails}");
    }

    #[test]
    fn an_error_is_named_with_its_details() {
        let result = json!({"key": "x", "errorCode": "TARGETING_KEY_MISSING",
            "errorDetails": "the split needs targetingKey"});
        assert_eq!(
            answer(Paint::plain(), &result),
            "x  TARGETING_KEY_MISSING  the split needs targetingKey"
        );
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(1_772_582_399_000), "2026-03-03T23:59:59Z");
        assert_eq!(time_text(i64::MAX), i64::MAX.to_string());
    }
}
