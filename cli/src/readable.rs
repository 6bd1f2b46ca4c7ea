//! Rules as sentences: what a flag does, in the words of the design's glossary.

use std::fmt::Write as _;

use rules::model::{
    Clause, Condition, FlagConfig, FlagDefinition, Lifetime, Op, Rule, Serve, Split, Units,
};
use serde_json::Value;

use crate::paint::{Paint, grouped};

/// A value on one line, cut to what a line can hold.
pub fn value(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= CHARS_MAX {
        return text;
    }
    let cut: String = text.chars().take(CHARS_MAX).collect();
    format!("{cut}…")
}

pub fn values(list: &[Value]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut text = list.iter().take(SHOWN_MAX).map(value).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN_MAX {
        let _ = write!(text, " and {} more", list.len() - SHOWN_MAX);
    }
    text
}

pub fn operator(op: &str, negated: bool) -> String {
    let words = op.replace('_', " ");
    if negated { format!("not {words}") } else { words }
}

pub fn condition(condition: &Condition) -> String {
    match condition {
        Condition::All(parts) => joined(parts, " and "),
        Condition::Any(parts) => joined(parts, " or "),
        Condition::Not(part) => format!("not {}", nested(part)),
        Condition::Clause(part) => clause(part),
        Condition::Segment(keys) => format!("in segment {}", keys.join(" or ")),
        Condition::Logic(tree) => format!("logic {}", value(tree)),
        Condition::Cel(source) => format!("cel {source:?}"),
        Condition::Always(true) => "always".to_owned(),
        Condition::Always(false) => "never".to_owned(),
    }
}

fn clause(clause: &Clause) -> String {
    let op = operator(clause.op.name(), clause.negate);
    match clause.op {
        Op::Exists | Op::IsNull if clause.values.is_empty() => format!("{} {op}", clause.attr),
        _ => format!("{} {op} {}", clause.attr, values(&clause.values)),
    }
}

fn joined(parts: &[Condition], word: &str) -> String {
    parts.iter().map(nested).collect::<Vec<_>>().join(word)
}

fn nested(part: &Condition) -> String {
    match part {
        Condition::All(parts) | Condition::Any(parts) if parts.len() > 1 => {
            format!("({})", condition(part))
        }
        _ => condition(part),
    }
}

pub fn serve(serve: &Serve) -> String {
    match serve {
        Serve::Variant(name) => name.clone(),
        Serve::Split(split) => split_text(split),
        Serve::Logic(logic) => format!("what logic {} says", value(&logic.tree)),
        Serve::CodeDefault => "the caller's default".to_owned(),
        Serve::Next => "the next rule".to_owned(),
    }
}

fn split_text(split: &Split) -> String {
    let by = match &split.by {
        Units::One(path) => path.clone(),
        Units::Many(paths) => paths.join(" or "),
    };
    let arms: Vec<String> = if split.weights.is_empty() {
        split
            .arms
            .iter()
            .map(|arm| match arm.weight {
                Some(weight) => format!("{} {weight}", serve(&arm.serve)),
                None => serve(&arm.serve),
            })
            .collect()
    } else {
        let total = f64::from(rules::limits::SPLIT_TOTAL);
        split
            .weights
            .iter()
            .map(|(name, weight)| format!("{name} {}%", f64::from(*weight) * 100.0 / total))
            .collect()
    };
    let mut text = format!("split by {by}: {}", arms.join(", "));
    if let Some(ramp) = &split.ramp {
        let _ = write!(
            text,
            " (reaching {}% to {}%, {} to {})",
            f64::from(ramp.from) / 1000.0,
            f64::from(ramp.to) / 1000.0,
            ramp.start,
            ramp.end
        );
    }
    text
}

fn rule(rule: &Rule) -> String {
    let mut text = match &rule.when {
        Some(when) => format!("if {}", condition(when)),
        None => "everybody".to_owned(),
    };
    for prerequisite in &rule.prerequisites {
        let _ = write!(
            text,
            ", while {} serves {}",
            prerequisite.flag,
            prerequisite.variants.join(" or ")
        );
    }
    if let Some(active) = &rule.active {
        let from = active.from.as_deref().unwrap_or("ever");
        let to = active.to.as_deref().unwrap_or("ever");
        let _ = write!(text, ", from {from} to {to}");
    }
    text
}

fn rule_serves(rule: &Rule) -> String {
    match (&rule.serve, &rule.policy) {
        (Some(serves), _) => serve(serves),
        (None, Some(policy)) => format!("what policy {} says", policy.name),
        (None, None) => "nothing".to_owned(),
    }
}

/// What a list says of a flag in a word: the variant for everybody, or where they come from.
pub fn serves(config: &FlagConfig) -> String {
    if !config.enabled {
        return config.off.clone().unwrap_or_else(|| "the caller's default".to_owned());
    }
    serve(&config.fallthrough)
}

/// A whole flag, as `tidegate flag get` shows it.
pub fn flag(
    paint: Paint,
    definition: &FlagDefinition,
    config: &FlagConfig,
    version: Option<u64>,
) -> String {
    let kind = serde_json::to_value(definition.kind)
        .ok()
        .and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_default();
    let state = if config.enabled { paint.good("on") } else { paint.warn("off") };
    let mut text = format!("{}  {kind}, {state}", paint.bold(&definition.key));
    if let Some(version) = version {
        let _ = write!(text, ", version {}", grouped(version));
    }
    text.push('\n');
    if !definition.description.is_empty() {
        let _ = writeln!(text, "{}", definition.description);
    }
    let mut life: Vec<String> = Vec::new();
    if definition.archived {
        life.push(paint.warn("archived"));
    }
    if !definition.owner.is_empty() {
        life.push(format!("of {}", definition.owner));
    }
    match (definition.lifetime, &definition.expected_end) {
        (Lifetime::Permanent, _) => life.push("permanent".to_owned()),
        (Lifetime::Temporary, Some(day)) => life.push(format!("until {day}")),
        (Lifetime::Temporary, None) => {}
    }
    if !definition.tags.is_empty() {
        life.push(format!("tags {}", definition.tags.join(", ")));
    }
    if !life.is_empty() {
        let _ = writeln!(text, "{}", life.join(", "));
    }
    let _ = writeln!(text, "\n{}", paint.dim("variants"));
    let width = definition.variants.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, variant) in &definition.variants {
        let _ = writeln!(text, "  {name:<width$}  {}", value(variant));
    }
    let _ = writeln!(text, "\n{}", paint.dim("serves"));
    let mut lines: Vec<(String, String)> = Vec::new();
    for prerequisite in &config.prerequisites {
        lines.push((
            format!("unless {} serves {}", prerequisite.flag, prerequisite.variants.join(" or ")),
            config.off.clone().unwrap_or_else(|| "the caller's default".to_owned()),
        ));
    }
    for one in &config.rules {
        lines.push((format!("{}: {}", one.id, rule(one)), rule_serves(one)));
    }
    lines.push(("everybody else".to_owned(), serve(&config.fallthrough)));
    lines.push((
        "while off".to_owned(),
        config.off.clone().unwrap_or_else(|| "the caller's default".to_owned()),
    ));
    for (when, then) in lines {
        let _ = writeln!(text, "  {when}  →  {then}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_reads_as_sentences() {
        let definition: FlagDefinition = serde_json::from_value(serde_json::json!({
            "key": "checkout", "type": "string",
            "variants": {"express": "one-page", "classic": "three-pages"}}))
        .unwrap();
        let config: FlagConfig = serde_json::from_value(serde_json::json!({
            "enabled": true, "off": "classic",
            "prerequisites": [{"flag": "payments-up", "variants": ["on"]}],
            "rules": [
                {"id": "staff", "when": {"attr": "email", "op": "ends_with", "value": "@example.com"},
                 "serve": {"variant": "express"}},
                {"id": "eu", "when": {"all": [
                    {"attr": "country", "op": "not_in", "value": ["DE", "FR"]},
                    {"any": [{"segment": "beta"}, {"attr": "plan", "op": "exists"}]}]},
                 "serve": {"split": {"weights": {"express": 10000, "classic": 90000}}}}],
            "fallthrough": {"variant": "classic"}}))
        .unwrap();
        assert_eq!(
            flag(Paint::plain(), &definition, &config, Some(3)),
            "checkout  string, on, version 3\n\
             \nvariants\n  express  \"one-page\"\n  classic  \"three-pages\"\n\
             \nserves\n  \
             unless payments-up serves on  →  classic\n  \
             staff: if email ends with \"@example.com\"  →  express\n  \
             eu: if country not in \"DE\", \"FR\" and (in segment beta or plan exists)  →  \
             split by targetingKey: express 10%, classic 90%\n  \
             everybody else  →  classic\n  \
             while off  →  classic\n"
        );
    }
}
