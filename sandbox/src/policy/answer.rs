//! What a policy's answer means; used by admission. An edge reads answers in `rules`.

use rules::limits::POLICY_REASON_BYTES_MAX;
use serde_json::Value;

/// What the flag would accept.
pub(crate) struct Wanted<'a> {
    pub(crate) kind: &'a str,
    pub(crate) variants: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn of(input: &'a Value) -> Wanted<'a> {
        let kind = input.get("type").and_then(Value::as_str).unwrap_or_default();
        let variants = input.get("variants").and_then(Value::as_array);
        let variants = variants.map_or(&[][..], Vec::as_slice);
        Wanted { kind, variants: variants.iter().filter_map(Value::as_str).collect() }
    }
}

/// Whether the answer is one of the three that the ABI knows, and fits the flag.
pub(crate) fn check(bytes: &[u8], wanted: &Wanted<'_>) -> Result<Value, String> {
    let answer: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let Some(fields) = answer.as_object() else {
        return Err("it is not a JSON object".to_owned());
    };
    let mut said = 0u32;
    for (field, value) in fields {
        match (field.as_str(), value) {
            ("variant", Value::String(name)) => {
                said = said.saturating_add(1);
                if !wanted.variants.contains(&name.as_str()) {
                    return Err(format!("the flag has no variant {name:?}"));
                }
            }
            ("value", value) => {
                said = said.saturating_add(1);
                if !fits(value, wanted.kind) {
                    return Err(format!("its value is not of the flag's type ({})", wanted.kind));
                }
            }
            ("abstain", Value::Bool(true)) => said = said.saturating_add(1),
            ("reason", Value::String(text)) if text.len() <= POLICY_REASON_BYTES_MAX => {}
            ("reason", Value::String(text)) => {
                let (found, allowed) = (text.len(), POLICY_REASON_BYTES_MAX);
                return Err(format!("its reason has {found} bytes; {allowed} are allowed"));
            }
            (field, _) => {
                let field: String = field.chars().take(40).collect();
                return Err(format!("its field {field:?} is unknown or of the wrong type"));
            }
        }
    }
    if said == 1 {
        Ok(answer)
    } else {
        Err("it has to be one of variant, value and abstain".to_owned())
    }
}

fn fits(value: &Value, kind: &str) -> bool {
    match kind {
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "float" => value.is_number(),
        "object" => value.is_object(),
        _ => false,
    }
}
