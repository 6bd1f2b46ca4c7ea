//! Values and answers' parts as JSON text, written once here so that no evaluator ever formats a
//! number, and all hosts answer the same bytes.

use std::fmt::Write as _;

use serde_json::{Number, Value};

use crate::limits::{NESTING_MAX, STRING_BYTES_MAX, VALUE_BYTES_MAX};
use crate::model::{FlagType, Metadata, Scalar};

/// The largest integer that every JSON reader keeps exactly (2^53 - 1).
pub const INTEGER_MAX: u64 = 9_007_199_254_740_991;

/// `{"key":"…"`
pub fn head(flag: &str) -> String {
    format!("{{\"key\":{}", quoted(flag))
}

/// `,"value":…,"variant":"…"`
pub fn variant(value: &str, key: &str) -> String {
    format!(",\"value\":{value},\"variant\":{}", quoted(key))
}

/// `,"metadata":{…}}`, later layers over earlier ones.
pub fn tail(layers: &[&Metadata]) -> String {
    format!(",\"metadata\":{}}}", metadata(layers))
}

pub fn metadata(layers: &[&Metadata]) -> String {
    let mut merged = indexmap::IndexMap::new();
    for layer in layers {
        merged.extend(layer.iter());
    }
    let mut out = String::from("{");
    for (index, (key, value)) in merged.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&quoted(key));
        out.push(':');
        let _ = match value {
            Scalar::Bool(value) => write!(out, "{value}"),
            Scalar::Number(number) => write!(out, "{number}"),
            Scalar::String(text) => write!(out, "{}", quoted(text)),
        };
    }
    out.push('}');
    out
}

pub fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A variant's value as a flag of type `kind` answers it.
pub fn value(kind: FlagType, value: &Value) -> Result<String, String> {
    let mismatch = || {
        Err(format!(
            "the flag's type is {}, this is {}",
            type_name(kind),
            match value {
                Value::Null => "null".to_owned(),
                Value::Bool(value) => format!("the boolean {value}"),
                Value::Number(number) => format!("the number {number}"),
                Value::String(_) => "a string".to_owned(),
                Value::Array(_) => "an array".to_owned(),
                Value::Object(_) => "an object".to_owned(),
            }
        ))
    };
    match (kind, value) {
        (FlagType::Boolean, Value::Bool(value)) => Ok(value.to_string()),
        (FlagType::String, Value::String(text)) => match text.len() {
            bytes if bytes > STRING_BYTES_MAX => {
                Err(format!("{bytes} bytes of text, the limit is {STRING_BYTES_MAX}"))
            }
            _ => Ok(quoted(text)),
        },
        (FlagType::Integer, Value::Number(number)) => {
            check_number(number)?;
            match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Ok(integer.to_string()),
                // `3.0` is three, wherever it was written.
                (None, Some(float)) if float.fract() == 0.0 && exact(float) => {
                    Ok((float as i64).to_string())
                }
                _ => Err(format!("the flag's type is integer, {number} is none")),
            }
        }
        (FlagType::Float, Value::Number(number)) => {
            check_number(number)?;
            let float = number.as_f64().and_then(Number::from_f64);
            float
                .map(|float| float.to_string())
                .ok_or_else(|| format!("{number} is beyond what a float can hold"))
        }
        (FlagType::Object, Value::Object(_) | Value::Array(_)) => {
            check_nested(value, 1)?;
            let text = value.to_string();
            match text.len() {
                bytes if bytes > VALUE_BYTES_MAX => {
                    Err(format!("{bytes} bytes of JSON, the limit is {VALUE_BYTES_MAX}"))
                }
                _ => Ok(text),
            }
        }
        _ => mismatch(),
    }
}

fn exact(float: f64) -> bool {
    float.abs() <= INTEGER_MAX as f64
}

/// An integer beyond 2^53 - 1 would reach JavaScript as another one.
pub fn check_number(number: &Number) -> Result<(), String> {
    let size = match (number.as_u64(), number.as_i64()) {
        (Some(size), _) => size,
        (None, Some(integer)) => integer.unsigned_abs(),
        (None, None) => return Ok(()),
    };
    match size > INTEGER_MAX {
        true => Err(format!(
            "{number} is beyond ±{INTEGER_MAX}, the largest integer that JSON readers keep \
             exactly; write it as a string"
        )),
        false => Ok(()),
    }
}

pub fn check_nested(value: &Value, depth: usize) -> Result<(), String> {
    let inner = depth.saturating_add(1);
    match value {
        Value::Array(_) | Value::Object(_) if depth > NESTING_MAX => {
            Err(format!("the value is nested deeper than {NESTING_MAX} levels"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_nested(item, inner)),
        Value::Object(entries) => entries.values().try_for_each(|item| check_nested(item, inner)),
        Value::Number(number) => check_number(number),
        _ => Ok(()),
    }
}

pub fn type_name(kind: FlagType) -> &'static str {
    match kind {
        FlagType::Boolean => "boolean",
        FlagType::String => "string",
        FlagType::Integer => "integer",
        FlagType::Float => "float",
        FlagType::Object => "object",
    }
}

/// JSON with sorted keys, so that equal values are equal texts. The caller has bounded the depth.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(entries) => {
            let mut sorted: Vec<(&String, &Value)> = entries.iter().collect();
            sorted.sort_by_key(|(key, _)| key.as_bytes());
            let entries: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", quoted(key), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        scalar => scalar.to_string(),
    }
}
