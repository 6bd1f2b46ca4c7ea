//! Two versions of a policy side by side: what admission found out about each.

use serde_json::Value;

use crate::paint::{Paint, grouped, table};

/// What differs, a row each; nothing if all of it is the same.
pub fn table_of(before: &Value, after: &Value) -> Option<String> {
    let rows: Vec<Vec<String>> = facts(before)
        .into_iter()
        .zip(facts(after))
        .filter(|((_, before), (_, after))| before != after)
        .map(|((name, before), (_, after))| vec![name.to_owned(), before, after])
        .collect();
    let head =
        ["", super::short(&before["digest"]).as_str(), super::short(&after["digest"]).as_str()]
            .map(str::to_owned);
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    (!rows.is_empty()).then(|| table(Paint::of_stdout(), &head, &rows))
}

fn facts(version: &Value) -> Vec<(&'static str, String)> {
    let number = |value: &Value| value.as_u64().map(grouped).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attributes = version["attributes"].as_array().into_iter().flatten();
    let mut attributes: Vec<String> = attributes.map(text).collect();
    attributes.sort();
    let verdict = &version["verdict"];
    let vectors = verdict["vectors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let passed = vectors.iter().filter(|vector| vector["passed"] == true).count();
    let most = vectors.iter().filter_map(|vector| vector["fuel"].as_u64()).max();
    vec![
        ("reads", attributes.join(", ")),
        ("bytes", number(&version["bytes"])),
        ("bytes compiled", number(&verdict["code_bytes"])),
        ("vectors passed", format!("{passed} of {}", vectors.len())),
        ("most fuel of a vector", most.map(grouped).unwrap_or_default()),
        ("admitted with", text(&verdict["engine"])),
        ("uploaded by", text(&version["uploadedBy"])),
        ("uploaded", text(&version["uploadedAt"])),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let version = |digest: &str, reads: &[&str], fuel: u64| {
            json!({ "digest": digest, "bytes": 1200, "attributes": reads, "verdict":
                { "vectors": [{ "passed": true, "fuel": 5 }, { "passed": true, "fuel": fuel }] } })
        };
        let before = version("aaaa", &["country", "age"], 9_000);
        let told =
            table_of(&before, &version("bbbb", &["age", "country", "plan"], 12_000)).unwrap();
        assert!(told.contains("age, country  ") && told.contains("age, country, plan"), "{told}");
        assert!(told.contains("9,000") && told.contains("12,000"), "{told}");
        assert!(!told.contains("bytes"), "{told}");
        assert_eq!(table_of(&before, &version("cccc", &["age", "country"], 9_000)), None);
    }
}
