//! flagd's flag document in and out (INTEROP 2.1 and 2.2).
//!
//! **In.** A flag's `targeting` becomes one rule that serves by its tree, untouched but for
//! `$ref`s, which are replaced by their evaluators. Whatever cannot be taken over refuses its
//! flag, with the place and the reason; the others are imported. Fields that flagd does not know
//! either are left behind and listed in `ignored`; `$schema` and `$evaluators` go silently, since
//! nothing depends on them any more.
//!
//! **Out.** A document that serves the same values. Flags that came from flagd give back their
//! tree. Native flags are translated as far as JSONLogic reaches; the rest is refused. These
//! differences are known and accepted, because flagd has no words for them:
//!
//! - Reasons: flagd says TARGETING_MATCH of a split, STATIC of an off variant.
//! - A disabled flag with an off variant is written as an enabled one that always serves it.
//! - A split whose unit is missing is TARGETING_KEY_MISSING here. In flagd it names a variant of
//!   that name, which does not exist: an error too, GENERAL, and the caller's default either way.
//! - Units that are no strings are hashed as their text, of whatever type they are.
//! - Versions are compared by flagd's rules, which take no pre-release of a partial version.

use std::borrow::Borrow;
use std::cell::Cell;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::compile::{FlagState, Problem, SegmentState, duplicates};
use crate::date;
use crate::limits;
use crate::logic::{self, escape};
use crate::model::{
    Clause, ClausePolicy, Condition, FlagConfig, FlagDefinition, FlagType, Fractional, LogicServe,
    Metadata, MissingUnit, OnError, Op, Origin, Rule, Scalar, Serve, Split, Units, Window,
};
use crate::ruleset::Ruleset;

const SCHEMA: &str = "https://flagd.dev/schema/v0/flags.json";
/// `Origin::format` of what is imported here.
pub const FORMAT: &str = "flagd";
/// The one rule of a flag with targeting.
const RULE: &str = "targeting";

#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// What `fractional` means in this document; stored with each rule.
    pub fractional: Fractional,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// In the document's order.
    pub flags: Vec<FlagState>,
    /// Where each of `flags` stands in the document.
    pub sources: Vec<Source>,
    /// Flags that cannot be taken over, and why. The others can.
    pub refused: Vec<Refused>,
    /// The flag set's metadata.
    pub metadata: Metadata,
    /// Fields that mean nothing to flagd and were left behind.
    pub ignored: Ignored,
}

/// Where a flag stands in the document that it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The flag itself: `/flags/checkout`, or `/flags/3` in an array.
    pub pointer: String,
    /// Where its key is given.
    key: String,
    /// Its targeting, if it has references: what is in an evaluator stands there.
    targeting: Option<Value>,
}

impl Source {
    /// The place of what the compiler says of this flag, at `/definition/…` or `/config/…`.
    pub fn place_of(&self, compiled: &str) -> String {
        let below = |prefix: &str| {
            let rest = compiled.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(rest)
        };
        let own = |field: &str, rest: &str| format!("{}/{field}{rest}", self.pointer);
        if compiled.is_empty() {
            self.key.clone()
        } else if let Some(rest) = below("/definition/variants") {
            own("variants", rest)
        } else if below("/definition/description").is_some() {
            own("description", "")
        } else if let Some(rest) = below("/config/origin/metadata") {
            own("metadata", rest)
        } else if let Some(rest) = below("/config/rules/0/serve/logic/tree") {
            self.in_targeting(rest)
        } else if below("/config/rules").is_some() {
            own("targeting", "")
        } else if below("/config/fallthrough").is_some() {
            own("defaultVariant", "")
        } else {
            self.pointer.clone()
        }
    }

    /// The place of a node of the tree without references.
    fn in_targeting(&self, pointer: &str) -> String {
        let of_evaluator =
            self.targeting.as_ref().and_then(|written| in_evaluator(written, pointer));
        of_evaluator.unwrap_or_else(|| format!("{}/targeting{pointer}", self.pointer))
    }
}

/// The place that `pointer` leads to if it leads through a reference.
fn in_evaluator(written: &Value, pointer: &str) -> Option<String> {
    let (mut node, mut rest) = (written, pointer);
    loop {
        if let Some(name) = node.as_object().and_then(reference) {
            return Some(format!("/$evaluators/{}{rest}", escape(name)));
        }
        let below = rest.strip_prefix('/')?;
        let end = below.find('/').unwrap_or(below.len());
        let (segment, after) = below.split_at_checked(end)?;
        node = match node {
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?)?,
            node => node.get(segment.replace("~1", "/").replace("~0", "~"))?,
        };
        rest = after;
    }
}

/// Fields that nothing was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Pointers to the first of them, `IGNORED_MAX` at most: a document may have a great many.
    pub first: Vec<String>,
    /// How many there are beyond these.
    pub more: usize,
}

/// Ignored fields that are told with their place.
pub const IGNORED_MAX: usize = 100;

impl Ignored {
    fn push(&mut self, at: &str, field: &str) {
        match self.first.len() < IGNORED_MAX {
            true => self.first.push(format!("{at}/{}", escape(field))),
            false => self.more = self.more.saturating_add(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub flag: String,
    /// Into the document, RFC 6901.
    pub pointer: String,
    pub reason: String,
}

/// The document as a whole cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} (at {pointer:?})")]
pub struct ImportError {
    pub pointer: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    pub document: Value,
    /// Flags that flagd cannot express (a regular expression, an id list …). Their pointers lead
    /// into the native configuration: `/rules/0/when`.
    pub refused: Vec<Refused>,
    /// What `fractional` means in the document.
    pub fractional: Fractional,
}

pub fn import(document: &[u8], options: ImportOptions) -> Result<Imported, ImportError> {
    let fail =
        |pointer: &str, message: String| Err(ImportError { pointer: pointer.to_owned(), message });
    if document.len() > limits::IMPORT_BYTES_MAX {
        let limit = limits::IMPORT_BYTES_MAX;
        return fail("", format!("the document is longer than the limit of {limit} bytes"));
    }
    if let Some(Problem { pointer, message }) = duplicates::first(document) {
        return fail(&pointer, message);
    }
    let document: Value = match serde_json::from_slice(document) {
        Ok(document) => document,
        Err(error) => return fail("", format!("the document is not valid JSON: {error}")),
    };
    let Value::Object(document) = document else {
        return fail("", format!("the document must be an object, not {}", kind_of(&document)));
    };
    let mut imported = Imported::default();
    for key in document.keys() {
        if !["$schema", "flags", "$evaluators", "metadata"].contains(&key.as_str()) {
            imported.ignored.push("", key);
        }
    }
    if let Some(metadata) = document.get("metadata") {
        imported.metadata = read_metadata(metadata, "/metadata")
            .map_err(|(pointer, message)| ImportError { pointer, message })?;
    }
    let evaluators = match document.get("$evaluators") {
        None => Evaluators(None),
        Some(Value::Object(evaluators)) => Evaluators(Some(evaluators)),
        Some(other) => {
            let message = format!("$evaluators must be an object, not {}", kind_of(other));
            return fail("/$evaluators", message);
        }
    };
    let flags: Vec<(Source, Option<&str>, &Value)> = match document.get("flags") {
        Some(Value::Object(flags)) => flags
            .iter()
            .map(|(key, flag)| {
                let pointer = format!("/flags/{}", escape(key));
                let source = Source { key: pointer.clone(), pointer, targeting: None };
                (source, Some(key.as_str()), flag)
            })
            .collect(),
        Some(Value::Array(flags)) => flags
            .iter()
            .enumerate()
            .map(|(index, flag)| {
                let pointer = format!("/flags/{index}");
                let source = Source { key: format!("{pointer}/key"), pointer, targeting: None };
                (source, flag.get("key").and_then(Value::as_str), flag)
            })
            .collect(),
        Some(other) => {
            let message = format!("flags must be an object or an array, not {}", kind_of(other));
            return fail("/flags", message);
        }
        None => return fail("", "the document has no flags".to_owned()),
    };
    let mut seen = std::collections::HashSet::new();
    for (mut source, key, flag) in flags {
        let read = match key {
            None => Err((source.pointer.clone(), "a flag of an array needs a key".to_owned())),
            Some(key) if !seen.insert(key) => {
                Err((source.key.clone(), format!("there is another flag {key:?} before")))
            }
            Some(key) => {
                read_flag(key, flag, &mut source, &evaluators, options, &mut imported.ignored)
            }
        };
        match read {
            Ok(flag) => {
                imported.flags.push(flag);
                imported.sources.push(source);
            }
            Err((pointer, reason)) => {
                let flag = key.unwrap_or_default().to_owned();
                imported.refused.push(Refused { flag, pointer, reason });
            }
        }
    }
    Ok(imported)
}

/// What is wrong: a pointer and a reason.
type Wrong = (String, String);

fn read_flag(
    key: &str,
    flag: &Value,
    source: &mut Source,
    evaluators: &Evaluators<'_>,
    options: ImportOptions,
    ignored: &mut Ignored,
) -> Result<FlagState, Wrong> {
    let at = source.pointer.clone();
    let wrong = |field: &str, reason: String| Err((format!("{at}{field}"), reason));
    let Value::Object(flag) = flag else {
        return wrong("", format!("a flag must be an object, not {}", kind_of(flag)));
    };
    check_key(key, "the flag's key").map_err(|reason| (source.key.clone(), reason))?;
    let enabled = match flag.get("state") {
        Some(Value::String(state)) if state == "ENABLED" => true,
        Some(Value::String(state)) if state == "DISABLED" => false,
        Some(other) => {
            return wrong("/state", format!("state must be ENABLED or DISABLED, not {other}"));
        }
        None => return wrong("", "the flag has no state".to_owned()),
    };
    let (kind, variants) = match flag.get("variants") {
        Some(variants) => read_variants(variants, &format!("{at}/variants"))?,
        None => return wrong("", "the flag has no variants".to_owned()),
    };
    let fallthrough = match flag.get("defaultVariant") {
        None | Some(Value::Null) => Serve::CodeDefault,
        // The daemon cannot tell an empty name from none.
        Some(Value::String(name)) if name.is_empty() => Serve::CodeDefault,
        Some(Value::String(name)) if variants.contains_key(name) => Serve::Variant(name.clone()),
        Some(Value::String(name)) => {
            return wrong("/defaultVariant", format!("there is no variant {name:?}"));
        }
        Some(other) => {
            let reason = format!("defaultVariant must be a string or null, not {}", kind_of(other));
            return wrong("/defaultVariant", reason);
        }
    };
    let mut rules = Vec::new();
    if let Some(written) = flag.get("targeting") {
        let pointer = format!("{at}/targeting");
        let tree = evaluators.resolve(written, &pointer, &Cell::new(limits::LOGIC_NODES_MAX))?;
        source.targeting = refers(written).map(|_| written.clone());
        match tree {
            Value::Null => {}
            Value::Object(tree) if tree.is_empty() => {}
            Value::Object(_) => {
                let fractional = options.fractional;
                logic::lower(&tree, fractional, &mut Ruleset::default())
                    .map_err(|p| (source.in_targeting(&p.pointer), p.message))?;
                rules.push(targeting_rule(LogicServe { tree, fractional }));
            }
            other => {
                let reason = format!("targeting must be an object, not {}", kind_of(&other));
                return Err((source.in_targeting(""), reason));
            }
        }
    }
    let metadata = match flag.get("metadata") {
        Some(metadata) => read_metadata(metadata, &format!("{at}/metadata"))?,
        None => Metadata::default(),
    };
    let description = match flag.get("description") {
        Some(Value::String(text)) if text.len() <= limits::STRING_BYTES_MAX => text.clone(),
        Some(Value::String(_)) => {
            let limit = limits::STRING_BYTES_MAX;
            return wrong("/description", format!("the limit of a text is {limit} bytes"));
        }
        Some(other) => {
            let reason = format!("description must be a string, not {}", kind_of(other));
            return wrong("/description", reason);
        }
        None => String::new(),
    };
    const KNOWN: [&str; 8] = [
        "key",
        "state",
        "variants",
        "defaultVariant",
        "targeting",
        "metadata",
        "description",
        "$schema",
    ];
    for field in flag.keys().filter(|field| !KNOWN.contains(&field.as_str())) {
        ignored.push(&at, field);
    }
    Ok(FlagState {
        definition: FlagDefinition {
            description,
            ..FlagDefinition::new(key.to_owned(), kind, variants)
        },
        config: FlagConfig {
            enabled,
            off: None,
            prerequisites: Vec::new(),
            rules,
            fallthrough,
            origin: Some(Origin { format: FORMAT.to_owned(), metadata }),
        },
    })
}

fn targeting_rule(serve: LogicServe) -> Rule {
    Rule {
        id: RULE.to_owned(),
        description: String::new(),
        when: None,
        active: None,
        prerequisites: Vec::new(),
        serve: Some(Serve::Logic(serve)),
        policy: None,
        on_error: OnError::Fail,
        reason: None,
    }
}

fn check_key(key: &str, what: &str) -> Result<(), String> {
    let limit = limits::KEY_BYTES_MAX;
    match key.len() {
        0 => Err(format!("{what} is empty")),
        len if len > limit => Err(format!("{what} is {len} bytes long, the limit is {limit}")),
        _ => Ok(()),
    }
}

fn read_variants(variants: &Value, at: &str) -> Result<(FlagType, IndexMap<String, Value>), Wrong> {
    let Value::Object(variants) = variants else {
        let reason = format!("variants must be an object, not {}", kind_of(variants));
        return Err((at.to_owned(), reason));
    };
    let Some(first) = variants.values().next() else {
        return Err((at.to_owned(), "a flag needs at least one variant".to_owned()));
    };
    if variants.len() > limits::VARIANTS_PER_FLAG_MAX {
        let (have, limit) = (variants.len(), limits::VARIANTS_PER_FLAG_MAX);
        return Err((at.to_owned(), format!("the flag has {have} variants, the limit is {limit}")));
    }
    for (name, value) in variants {
        let at = format!("{at}/{}", escape(name));
        check_key(name, "the variant's name").map_err(|reason| (at.clone(), reason))?;
        if matches!(value, Value::Null | Value::Array(_)) {
            let kind = kind_of(value);
            let reason = format!("a variant is a boolean, string, number or object, not {kind}");
            return Err((at, reason));
        }
        if kind_of(value) != kind_of(first) {
            let (one, other) = (kind_of(first), kind_of(value));
            return Err((at, format!("variants must be of one type: {one} before, {other} here")));
        }
        if value.is_string() && value.as_str().map_or(0, str::len) > limits::STRING_BYTES_MAX {
            let limit = limits::STRING_BYTES_MAX;
            return Err((at, format!("the limit of a text is {limit} bytes")));
        }
        if value.is_object() && value.to_string().len() > limits::VALUE_BYTES_MAX {
            let limit = limits::VALUE_BYTES_MAX;
            return Err((at, format!("the limit of an object is {limit} bytes")));
        }
        if deeper_than(value, limits::NESTING_MAX) {
            let limit = limits::NESTING_MAX;
            return Err((at, format!("the object is nested deeper than {limit} levels")));
        }
    }
    let kind = match first {
        Value::Bool(_) => FlagType::Boolean,
        Value::String(_) => FlagType::String,
        Value::Number(_) if variants.values().all(is_whole) => FlagType::Integer,
        Value::Number(_) => FlagType::Float,
        _ => FlagType::Object,
    };
    Ok((kind, variants.iter().map(|(name, value)| (name.clone(), value.clone())).collect()))
}

/// Whether it is written as an integer, of whatever size.
fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64()
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    let below = |child: &Value| match levels.checked_sub(1) {
        Some(levels) => deeper_than(child, levels),
        None => true,
    };
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(below),
        Value::Object(entries) => levels == 0 || entries.values().any(below),
        _ => false,
    }
}

fn read_metadata(metadata: &Value, at: &str) -> Result<Metadata, Wrong> {
    let Value::Object(metadata) = metadata else {
        let reason = format!("metadata must be an object, not {}", kind_of(metadata));
        return Err((at.to_owned(), reason));
    };
    let scalar = |(key, value): (&String, &Value)| {
        let scalar = match value {
            Value::Bool(value) => Scalar::Bool(*value),
            Value::Number(number) => Scalar::Number(number.clone()),
            Value::String(text) if text.len() <= limits::STRING_BYTES_MAX => {
                Scalar::String(text.clone())
            }
            Value::String(_) => {
                let limit = limits::STRING_BYTES_MAX;
                let reason = format!("the limit of a text is {limit} bytes");
                return Err((format!("{at}/{}", escape(key)), reason));
            }
            other => {
                let kind = kind_of(other);
                let reason = format!("metadata is a boolean, number or string, not {kind}");
                return Err((format!("{at}/{}", escape(key)), reason));
            }
        };
        Ok((key.clone(), scalar))
    };
    metadata.iter().map(scalar).collect()
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

struct Evaluators<'a>(Option<&'a Map<String, Value>>);

impl Evaluators<'_> {
    /// The tree with every `{"$ref": name}` replaced. flagd replaces text, so also in data; and
    /// only once, so an evaluator that refers to another cannot be used.
    /// Evaluators take from `nodes_left`, or many references to a large one would fill memory.
    fn resolve(&self, tree: &Value, at: &str, nodes_left: &Cell<usize>) -> Result<Value, Wrong> {
        match tree {
            Value::Object(entries) => {
                if let Some(name) = reference(entries) {
                    let Some(evaluator) = self.0.and_then(|all| all.get(name)) else {
                        let reason = format!("$ref {name:?} names no evaluator");
                        return Err((format!("{at}/$ref"), reason));
                    };
                    let place = format!("/$evaluators/{}", escape(name));
                    if let Some(inner) = refers(evaluator) {
                        let reason = format!(
                            "evaluators do not refer to evaluators; this one does, to {inner:?}"
                        );
                        return Err((place, reason));
                    }
                    let Some(left) = nodes_left.get().checked_sub(nodes(evaluator)) else {
                        let limit = limits::LOGIC_NODES_MAX;
                        let reason =
                            format!("with its evaluators the tree has more than {limit} nodes");
                        return Err((at.to_owned(), reason));
                    };
                    nodes_left.set(left);
                    return Ok(evaluator.clone());
                }
                let entry = |(key, value): (&String, &Value)| {
                    let value =
                        self.resolve(value, &format!("{at}/{}", escape(key)), nodes_left)?;
                    Ok((key.clone(), value))
                };
                entries.iter().map(entry).collect::<Result<_, _>>().map(Value::Object)
            }
            Value::Array(items) => {
                let item = |(index, item)| self.resolve(item, &format!("{at}/{index}"), nodes_left);
                items.iter().enumerate().map(item).collect::<Result<_, _>>().map(Value::Array)
            }
            other => Ok(other.clone()),
        }
    }
}

fn reference(entries: &Map<String, Value>) -> Option<&str> {
    match entries.iter().next() {
        Some((key, Value::String(name))) if key == "$ref" && entries.len() == 1 => Some(name),
        _ => None,
    }
}

/// The first evaluator that a tree refers to.
fn refers(tree: &Value) -> Option<&str> {
    match tree {
        Value::Object(entries) => reference(entries).or_else(|| entries.values().find_map(refers)),
        Value::Array(items) => items.iter().find_map(refers),
        _ => None,
    }
}

/// A document that serves the same values, but for the differences above.
pub fn export<F: Borrow<FlagState>>(
    flags: &[F],
    segments: &[SegmentState],
    metadata: &Metadata,
) -> Exported {
    let flags = flags.iter().map(Borrow::borrow);
    let flags: Vec<&FlagState> = flags.filter(|flag| !flag.definition.archived).collect();
    let fractional = document_fractional(&flags);
    let mut refused = Vec::new();
    let mut out = Map::new();
    for flag in flags {
        let conditions_left = Cell::new(limits::LOGIC_NODES_MAX);
        let translation = Translation { flag, segments, fractional, conditions_left };
        match translation.flag() {
            Ok(written) => {
                out.insert(flag.definition.key.clone(), written);
            }
            Err((pointer, reason)) => {
                refused.push(Refused { flag: flag.definition.key.clone(), pointer, reason });
            }
        }
    }
    let mut document = Map::new();
    document.insert("$schema".to_owned(), json!(SCHEMA));
    document.insert("flags".to_owned(), Value::Object(out));
    if !metadata.is_empty() {
        document.insert("metadata".to_owned(), json!(metadata));
    }
    Exported { document: Value::Object(document), refused, fractional }
}

/// A document has one meaning of `fractional`: that of the first tree which uses it. A native
/// split is version 2.
fn document_fractional(flags: &[&FlagState]) -> Fractional {
    let trees =
        flags.iter().flat_map(|flag| &flag.config.rules).filter_map(|rule| match &rule.serve {
            Some(Serve::Logic(logic)) if uses_fractional(&logic.tree) => Some(logic.fractional),
            _ => None,
        });
    trees.into_iter().next().unwrap_or_default()
}

fn uses_fractional(tree: &Value) -> bool {
    match tree {
        Value::Object(entries) => {
            entries.contains_key("fractional") || entries.values().any(uses_fractional)
        }
        Value::Array(items) => items.iter().any(uses_fractional),
        _ => false,
    }
}

struct Translation<'a> {
    flag: &'a FlagState,
    segments: &'a [SegmentState],
    fractional: Fractional,
    /// Segments in segments multiply; the translation of one flag ends.
    conditions_left: Cell<usize>,
}

/// What is left to decide after a rule, as the arguments of an `if`: condition, result, …, with
/// or without a last "otherwise".
type Rest = Vec<Value>;

impl Translation<'_> {
    fn flag(&self) -> Result<Value, Wrong> {
        let FlagState { definition, config } = self.flag;
        if definition.kind == FlagType::Object
            && !definition.variants.values().all(Value::is_object)
        {
            return wrong("/variants", "flagd's variants are objects, never arrays or null");
        }
        let mut out = Map::new();
        let off = config.off.as_ref().filter(|_| !config.enabled);
        let state = if config.enabled || off.is_some() { "ENABLED" } else { "DISABLED" };
        out.insert("state".to_owned(), json!(state));
        if !definition.description.is_empty() {
            out.insert("description".to_owned(), json!(definition.description));
        }
        out.insert("variants".to_owned(), json!(written_variants(definition)));
        let mut default = match &config.fallthrough {
            Serve::Variant(name) => Some(name),
            _ => None,
        };
        if let Some(off) = off {
            default = Some(off);
        } else if let Some(targeting) = self.targeting()? {
            out.insert("targeting".to_owned(), targeting);
        }
        if let Some(name) = default {
            out.insert("defaultVariant".to_owned(), json!(name));
        }
        let mut metadata = definition.metadata.clone();
        if let Some(origin) = &config.origin {
            let own = origin.metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
            metadata.extend(own);
        }
        if !metadata.is_empty() {
            out.insert("metadata".to_owned(), json!(metadata));
        }
        Ok(Value::Object(out))
    }

    fn targeting(&self) -> Result<Option<Value>, Wrong> {
        let config = &self.flag.config;
        if !config.prerequisites.is_empty() {
            return wrong("/prerequisites", "flagd has no prerequisites");
        }
        let mut rest: Rest = match &config.fallthrough {
            Serve::Variant(_) | Serve::CodeDefault | Serve::Next => Vec::new(),
            Serve::Split(split) => self.split(split, "/fallthrough/split", OnError::Fail, &[])?,
            Serve::Logic(_) => {
                return wrong("/fallthrough", "flagd has no tree for the fallthrough");
            }
        };
        let last = config.rules.len().saturating_sub(1);
        for (index, rule) in config.rules.iter().enumerate().rev() {
            let at = format!("/rules/{index}");
            rest = self.rule(rule, &at, rest, index == last)?;
            // A split may repeat what is left: without this, rules would multiply it.
            let nodes: usize = rest.iter().map(nodes).sum();
            if nodes > limits::LOGIC_NODES_MAX {
                let limit = limits::LOGIC_NODES_MAX;
                return wrong(at, format!("a tree that says the same has more than {limit} nodes"));
            }
        }
        let tree = match rest.as_slice() {
            [] => return Ok(None),
            // The tree as it came.
            [one @ Value::Object(_)] => one.clone(),
            _ => json!({ "if": rest }),
        };
        if let Err(problem) = logic::lower(&tree, self.fractional, &mut Ruleset::default()) {
            let reason = format!("the tree that says the same cannot be used: {}", problem.message);
            return Err(("/rules".to_owned(), reason));
        }
        Ok(Some(tree))
    }

    fn rule(&self, rule: &Rule, at: &str, rest: Rest, last: bool) -> Result<Rest, Wrong> {
        if !rule.prerequisites.is_empty() {
            return wrong(format!("{at}/prerequisites"), "flagd has no prerequisites");
        }
        let mut conditions = Vec::new();
        if let Some(window) = &rule.active {
            conditions.extend(window_conditions(window, &format!("{at}/active"))?);
        }
        if let Some(when) = &rule.when {
            conditions.push(self.condition(when, &format!("{at}/when"), 0)?);
        }
        let serve_at = format!("{at}/serve");
        let result: Rest = match &rule.serve {
            None => return wrong(format!("{at}/policy"), "flagd runs no policies"),
            Some(Serve::Next) => return Ok(rest),
            Some(Serve::Variant(name)) => vec![json!(name)],
            Some(Serve::CodeDefault) => vec![self.code_default(&serve_at)?],
            Some(Serve::Split(split)) => {
                let at = format!("{serve_at}/split");
                self.split(split, &at, rule.on_error, &rest)?
            }
            Some(Serve::Logic(logic)) => {
                if rule.on_error == OnError::Skip {
                    let reason = "flagd does not go on after a tree that fails";
                    return wrong(format!("{at}/onError"), reason);
                }
                if !last || !rest.is_empty() {
                    let reason = "flagd does not go on after a tree: its rule must be the last";
                    return wrong(serve_at, reason);
                }
                if uses_fractional(&logic.tree) && logic.fractional != self.fractional {
                    let reason = format!(
                        "its fractional is {:?}, this document's is {:?}",
                        logic.fractional, self.fractional
                    );
                    return wrong(format!("{serve_at}/logic/fractional"), reason);
                }
                if !logic.tree.is_object() && conditions.is_empty() {
                    vec![json!({ "if": [true, logic.tree] })]
                } else {
                    vec![logic.tree.clone()]
                }
            }
        };
        let condition = match (conditions.pop(), conditions.is_empty()) {
            (None, _) => None,
            (Some(one), true) => Some(one),
            (Some(one), false) => {
                conditions.push(one);
                Some(json!({ "and": conditions }))
            }
        };
        Ok(match condition {
            // What follows is never reached.
            None => result,
            Some(condition) => {
                let mut all = vec![condition, expression(&result)];
                all.extend(rest);
                all
            }
        })
    }

    /// What leaves the value to the caller: null, in flags without a default variant.
    fn code_default(&self, at: &str) -> Result<Value, Wrong> {
        match self.flag.config.fallthrough {
            Serve::CodeDefault => Ok(Value::Null),
            _ => wrong(at, "flagd leaves the value to the caller in all rules or in none"),
        }
    }

    /// A native split as `fractional` over the same text, which hashes the same.
    fn split(
        &self,
        split: &Split,
        at: &str,
        on_error: OnError,
        rest: &[Value],
    ) -> Result<Rest, Wrong> {
        if split.hash.is_some() || split.seed.is_some() {
            return wrong(format!("{at}/hash"), "flagd's hash is its own");
        }
        if !split.all_of.is_empty() {
            return wrong(format!("{at}/allOf"), "flagd has no shards");
        }
        if split.ramp.is_some() {
            return wrong(format!("{at}/ramp"), "flagd has no ramps");
        }
        if self.fractional != Fractional::V2 {
            let reason = "the native split is fractional v2, and other trees need another version";
            return wrong(at, reason);
        }
        let otherwise = expression(rest);
        let mut entries: Vec<(Value, u32)> = Vec::new();
        for (name, weight) in &split.weights {
            entries.push((json!(name), *weight));
        }
        for (index, arm) in split.arms.iter().enumerate() {
            let at = format!("{at}/arms/{index}");
            let weight = match arm.weight {
                Some(weight)
                    if weight.fract() == 0.0 && (0.0..=f64::from(i32::MAX)).contains(&weight) =>
                {
                    weight as u32
                }
                _ => return wrong(at, "flagd's weights are whole numbers"),
            };
            let serve = match &arm.serve {
                Serve::Variant(name) => json!(name),
                Serve::Next => otherwise.clone(),
                Serve::CodeDefault => self.code_default(&at)?,
                _ => return wrong(at, "flagd's arms serve variants"),
            };
            entries.push((serve, weight));
        }
        let first = entries.iter().find(|(_, weight)| *weight > 0).map(|(serve, _)| serve.clone());
        let Some(first) = first else { return wrong(at, "the split has no weight") };
        let paths = match &split.by {
            Units::One(path) => std::slice::from_ref(path),
            Units::Many(paths) => paths.as_slice(),
        };
        let Some((last, before)) = paths.split_last() else {
            return wrong(at, "the split has no unit");
        };
        let unit = before.iter().rev().fold(
            json!({ "var": last }),
            |unit, path| json!({ "if": [{ "missing": [path] }, unit, { "var": path }] }),
        );
        let missing = match before {
            [] => json!({ "missing": [last] }),
            _ => json!({ "missing_some": [1, paths] }),
        };
        let definition = &self.flag.definition;
        let salt = split.salt.as_ref().or(definition.salt.as_ref()).unwrap_or(&definition.key);
        let mut args = vec![json!({ "cat": [salt, ":", unit] })];
        args.extend(entries.into_iter().map(|(serve, weight)| json!([serve, weight])));
        let fractional = json!({ "fractional": args });
        let nobody = match (split.missing_unit, on_error) {
            (MissingUnit::BucketZero, _) => first,
            (MissingUnit::Skip, _) | (MissingUnit::Error, OnError::Skip) => otherwise,
            (MissingUnit::Error, OnError::Fail) => json!("TARGETING_KEY_MISSING"),
        };
        Ok(vec![missing, nobody, fractional])
    }

    fn condition(&self, condition: &Condition, at: &str, depth: usize) -> Result<Value, Wrong> {
        if depth > limits::NESTING_MAX {
            return wrong(at, "the condition is nested too deep");
        }
        match self.conditions_left.get().checked_sub(1) {
            Some(left) => self.conditions_left.set(left),
            None => return wrong(at, "its conditions are too many for one tree"),
        }
        let depth = depth.saturating_add(1);
        let each = |conditions: &[Condition], name: &str| -> Result<Vec<Value>, Wrong> {
            let one = |(index, condition)| {
                self.condition(condition, &format!("{at}/{name}/{index}"), depth)
            };
            conditions.iter().enumerate().map(one).collect()
        };
        Ok(match condition {
            Condition::All(all) if all.is_empty() => json!({ "!": [false] }),
            Condition::Any(any) if any.is_empty() => json!({ "!": [true] }),
            Condition::All(all) => json!({ "and": each(all, "all")? }),
            Condition::Any(any) => json!({ "or": each(any, "any")? }),
            Condition::Not(inner) => {
                json!({ "!": [self.condition(inner, &format!("{at}/not"), depth)?] })
            }
            Condition::Clause(clause) => self.clause(clause, at)?,
            Condition::Segment(keys) => {
                let mut any = Vec::new();
                for key in keys {
                    any.extend(self.segment(key, at, depth)?);
                }
                if any.is_empty() { json!({ "!": [true] }) } else { json!({ "or": any }) }
            }
            Condition::Logic(tree) => {
                if uses_fractional(tree) && self.fractional != Fractional::V2 {
                    return wrong(at, "its fractional is V2, this document's is another");
                }
                tree.clone()
            }
            Condition::Cel(_) => return wrong(at, "CEL is not translated to JSONLogic"),
            Condition::Always(always) => json!({ "!": [!always] }),
        })
    }

    fn segment(&self, key: &str, at: &str, depth: usize) -> Result<Vec<Value>, Wrong> {
        let Some(state) = self.segments.iter().find(|state| state.segment.key == key) else {
            return wrong(at, format!("there is no segment {key:?}"));
        };
        if state.has_included || state.has_excluded {
            return wrong(at, format!("flagd has no id lists, and segment {key:?} has"));
        }
        state.segment.rules.iter().map(|rule| self.condition(rule, at, depth)).collect()
    }

    fn clause(&self, clause: &Clause, at: &str) -> Result<Value, Wrong> {
        if clause.policy != ClausePolicy::default() {
            return wrong(at, "a clause with a policy of its own is not translated");
        }
        if clause.attr == "$flagd" || clause.attr.starts_with("$flagd.") {
            return wrong(at, "flagd gives $flagd a meaning of its own");
        }
        let var = json!({ "var": clause.attr });
        let there = json!({ "!==": [var, null] });
        let negate = |test: Value| if clause.negate { json!({ "!": [test] }) } else { test };
        match clause.op {
            Op::Exists => return Ok(negate(there)),
            Op::IsNull | Op::TypeIs | Op::Size => {
                let name = clause.op.name();
                return wrong(at, format!("flagd cannot tell types or sizes, as {name} does"));
            }
            _ => {}
        }
        let tests = |x: Value| -> Result<Value, Wrong> {
            match clause.op {
                Op::Eq | Op::In => {
                    if clause.values.iter().any(|v| v.is_null() || v.is_array() || v.is_object()) {
                        return wrong(at, "flagd compares strings, numbers and booleans only");
                    }
                    Ok(json!({ "in": [x, clause.values] }))
                }
                _ => {
                    let one = |value: &Value| test(clause.op, &x, value, at);
                    let mut any = clause.values.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                    match any.len() {
                        1 => Ok(any.swap_remove(0)),
                        _ => Ok(json!({ "or": any })),
                    }
                }
            }
        };
        // An array matches if any of its elements does.
        let matched = json!({ "or": [
            tests(var.clone())?,
            { "some": [var, tests(json!({ "var": "" }))?] },
        ] });
        Ok(if clause.negate { json!({ "and": [there, { "!": [matched] }] }) } else { matched })
    }
}

/// flagd has one type of number, and `import` takes variants that are all whole, and written so, for
/// integers. So those of a float flag are written `1.0`, and those of an integer flag `1`.
fn written_variants(definition: &FlagDefinition) -> IndexMap<&String, Value> {
    let as_floats =
        definition.kind == FlagType::Float && definition.variants.values().all(is_whole);
    let written = |value: &Value| match (definition.kind, value.as_f64()) {
        (FlagType::Float, Some(number)) if as_floats => json!(number),
        // Beyond these an integer is refused, however it is written.
        (FlagType::Integer, Some(number)) if value.is_f64() && number.abs() < 1e16 => {
            json!(number as i64)
        }
        _ => value.clone(),
    };
    definition.variants.iter().map(|(name, value)| (name, written(value))).collect()
}

/// Roughly the nodes that `lower` would count.
fn nodes(tree: &Value) -> usize {
    let below: usize = match tree {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(entries) => entries.values().map(nodes).sum(),
        _ => 0,
    };
    below.saturating_add(1)
}

/// The arguments of an `if` as one expression.
fn expression(rest: &[Value]) -> Value {
    match rest {
        [] => Value::Null,
        [one] => one.clone(),
        all => json!({ "if": all }),
    }
}

fn test(op: Op, x: &Value, value: &Value, at: &str) -> Result<Value, Wrong> {
    let text = || match value.as_str() {
        Some("") => wrong(at, "flagd finds no empty text"),
        Some(text) => Ok(text),
        None => wrong(at, format!("{} takes texts", op.name())),
    };
    let number = |name: &str| {
        if !value.is_number() {
            return wrong(at, format!("{} takes numbers", op.name()));
        }
        // JSONLogic would compare texts as numbers: only a number is its own sum.
        Ok(json!({ "and": [{ "===": [{ "+": [x] }, x] }, { name: [x, value] }] }))
    };
    let version = |name: &str| {
        let text = text()?;
        let dots = text.bytes().filter(|byte| *byte == b'.').count();
        let short = !text.contains(['-', '+']);
        // The schema asks for three parts.
        let padded = match dots {
            0 if short => format!("{text}.0.0"),
            1 if short => format!("{text}.0"),
            _ => text.to_owned(),
        };
        let padded = padded.strip_prefix('v').unwrap_or(&padded);
        // flagd would read numbers as versions: only a text is its own concatenation.
        let is_text = json!({ "===": [{ "cat": [x] }, x] });
        Ok(json!({ "and": [is_text, { "sem_ver": [x, name, padded] }] }))
    };
    match op {
        Op::StartsWith => Ok(json!({ "starts_with": [x, text()?] })),
        Op::EndsWith => Ok(json!({ "ends_with": [x, text()?] })),
        Op::Contains => Ok(json!({ "in": [text()?, x] })),
        Op::Lt => number("<"),
        Op::Lte => number("<="),
        Op::Gt => number(">"),
        Op::Gte => number(">="),
        Op::SemverEq => version("="),
        Op::SemverLt => version("<"),
        Op::SemverLte => version("<="),
        Op::SemverGt => version(">"),
        Op::SemverGte => version(">="),
        Op::Matches => wrong(at, "flagd has no regular expressions"),
        Op::Cidr => wrong(at, "flagd knows no networks"),
        Op::SemverRange => wrong(at, "flagd has no ranges of versions like npm's"),
        Op::Before | Op::After => wrong(at, "flagd reads no dates"),
        Op::Eq | Op::In | Op::Exists | Op::IsNull | Op::TypeIs | Op::Size => {
            wrong(at, format!("{} is not translated", op.name()))
        }
    }
}

/// flagd's clock has seconds: a window that begins or ends between two is refused.
fn window_conditions(window: &Window, at: &str) -> Result<Vec<Value>, Wrong> {
    let now = || json!({ "var": "$flagd.timestamp" });
    let seconds = |text: &str, field: &str| {
        let ms = date::parse_rfc3339(text);
        let whole = ms.filter(|ms| ms.checked_rem_euclid(1_000) == Some(0));
        match whole.and_then(|ms| ms.checked_div_euclid(1_000)) {
            Some(seconds) => Ok(seconds),
            None => wrong(format!("{at}/{field}"), "flagd's times are whole seconds"),
        }
    };
    let mut conditions = Vec::new();
    if let Some(from) = &window.from {
        conditions.push(json!({ ">=": [now(), seconds(from, "from")?] }));
    }
    if let Some(to) = &window.to {
        if window.inclusive {
            return wrong(format!("{at}/inclusive"), "flagd's times are whole seconds");
        }
        conditions.push(json!({ "<": [now(), seconds(to, "to")?] }));
    }
    Ok(conditions)
}

fn wrong<T>(at: impl Into<String>, reason: impl Into<String>) -> Result<T, Wrong> {
    Err((at.into(), reason.into()))
}
