//! Reads the conformance corpus (`rules/tests/cases/*.json`): data that every host of the evaluator
//! runs. The native runner compares with what the data expects; the other hosts compare their bytes
//! with the native bytes. Included by path, so it uses nothing but `rules` and `serde_json`.
//!
//! `state` may have `policies: {name: {attributes, answer | fault, input?}}`: a host that plays a policy
//! answers the text of `answer` or the fault; if it is asked with another text than `input`, it traps.
//!
//! A file is `{description, state | flagd (+ fractional), cases: [{name, flag, context, now,
//! audience, status, expect, text?}]}`. In `expect` of an error `errorDetails` is left out: its text is
//! ours to word, and the runner asks only that there is one. `text` must occur in the body verbatim,
//! for what a JSON comparison does not see, like `3.0`.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rules::answer::Audience;
use rules::blob::Digest;
use rules::cel::{At, Mistake, Tree};
use rules::compile::{
    Compiled, EnvironmentState, FlagState, ListKind, PolicyState, SegmentState, compile_with,
};
use rules::eval::Host;
use rules::flagd::ImportOptions;
use rules::policy::PolicyFault;
use serde_json::{Map, Value, json};

/// One file: an environment and what is asked of it.
pub struct File {
    pub name: String,
    pub state: EnvironmentState,
    /// The framed ruleset, as a host loads it.
    pub ruleset: Vec<u8>,
    pub host: Played,
    pub cases: Vec<Case>,
    /// The file as written.
    pub document: Value,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub file: String,
    pub name: String,
    pub flag: String,
    /// The context's JSON text.
    pub context: Vec<u8>,
    pub now_ms: i64,
    pub audience: Audience,
    pub status: u16,
    pub expect: Value,
    pub text: Option<String>,
}

/// The ids of each list and the part of each policy, by the index that the compiled ruleset uses.
#[derive(Debug, Clone, Default)]
pub struct Played {
    ids: Vec<HashSet<String>>,
    policies: Vec<Policy>,
}

/// What a policy of the corpus does.
#[derive(Debug, Clone)]
pub struct Policy {
    pub name: String,
    /// The one input that it takes; any, unless given.
    pub input: Option<String>,
    pub answer: Result<String, PolicyFault>,
}

impl Played {
    /// Each list, by its index.
    pub fn ids(&self) -> impl Iterator<Item = &HashSet<String>> {
        self.ids.iter()
    }

    /// Each policy, by its index.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }
}

impl Host for Played {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        self.ids.get(list as usize).is_some_and(|ids| ids.contains(id))
    }

    fn policy(&self, policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        let policy = self.policies.get(policy as usize).ok_or(PolicyFault::Unavailable)?;
        if policy.input.as_ref().is_some_and(|wanted| wanted.as_bytes() != input) {
            out.extend_from_slice(b"another input: ");
            out.extend_from_slice(input);
            return Err(PolicyFault::Trap);
        }
        out.extend_from_slice(policy.answer.as_ref().map_err(|fault| *fault)?.as_bytes());
        Ok(())
    }
}

/// Every file of the corpus, in the order of their names. Panics with the file and the place where
/// one cannot be read or compiled: the corpus is part of the tests.
pub fn load() -> Vec<File> {
    documents().into_iter().map(|(name, document)| open(&name, document)).collect()
}

/// The files as JSON, not compiled.
pub fn documents() -> Vec<(String, Value)> {
    // Every crate of the workspace lies beside `rules`.
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rules/tests/cases");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            let document = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, document)
        })
        .collect()
}

/// Instead of a parser of CEL, which only control has: the trees of what the corpus says. A test of
/// control proves that its parser gives these.
fn tree(source: &str) -> Result<Arc<Tree>, Vec<Mistake>> {
    static TREES: LazyLock<HashMap<String, Arc<Tree>>> = LazyLock::new(|| {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rules/tests/data/cel-trees.json");
        let text = std::fs::read_to_string(&path).expect("the trees of CEL");
        let trees: HashMap<String, Tree> = serde_json::from_str(&text).expect("trees of CEL");
        trees.into_iter().map(|(source, tree)| (source, Arc::new(tree))).collect()
    });
    let found = TREES.get(source).cloned();
    found.ok_or_else(|| vec![Mistake::new(At { line: 1, column: 1 }, "no tree of it is recorded")])
}

/// Compiles one file; panics as `load` does.
pub fn open(name: &str, document: Value) -> File {
    let (state, ids) = match document.get("flagd") {
        Some(flagd) => (imported(name, flagd, document.get("fractional")), IdSource::default()),
        None => authored(name, &document["state"]),
    };
    let Compiled { ruleset, lists, policies, .. } =
        compile_with(&state, &tree).unwrap_or_else(|problems| {
            let lines: Vec<String> =
                problems.iter().map(|p| format!("  {} {}", p.pointer, p.message)).collect();
            panic!("{name} does not compile:\n{}", lines.join("\n"))
        });
    let lists = lists
        .iter()
        .map(|list| {
            let of = |source: &[(String, HashSet<String>)]| {
                source
                    .iter()
                    .find(|(segment, _)| *segment == list.segment)
                    .map(|(_, ids)| ids.clone())
                    .unwrap_or_default()
            };
            match list.kind {
                ListKind::Included => of(&ids.included),
                ListKind::Excluded => of(&ids.excluded),
            }
        })
        .collect();
    let policies = policies
        .into_iter()
        .map(|policy| {
            let played = &document["state"]["policies"][&policy];
            let fault = |name: &str| {
                let known = PolicyFault::ALL.into_iter().find(|fault| fault.name() == name);
                known.unwrap_or_else(|| panic!("{name} is no fault"))
            };
            Policy {
                name: policy,
                input: played["input"].as_str().map(str::to_owned),
                answer: match (played["answer"].as_str(), played["fault"].as_str()) {
                    (Some(answer), None) => Ok(answer.to_owned()),
                    (None, Some(name)) => Err(fault(name)),
                    _ => panic!("{name}: a policy has an answer or a fault: {played}"),
                },
            }
        })
        .collect();
    let cases = document["cases"].as_array().unwrap_or_else(|| panic!("{name} has no cases"));
    File {
        name: name.to_owned(),
        ruleset: rules::blob::encode_ruleset(&ruleset),
        state,
        host: Played { ids: lists, policies },
        cases: cases.iter().map(|case| read_case(name, case)).collect(),
        document,
    }
}

#[derive(Default)]
struct IdSource {
    included: Vec<(String, HashSet<String>)>,
    excluded: Vec<(String, HashSet<String>)>,
}

fn authored(name: &str, state: &Value) -> (EnvironmentState, IdSource) {
    let empty = Map::new();
    let mut ids = IdSource::default();
    let flags = state["flags"].as_object().unwrap_or(&empty);
    let flags = flags
        .iter()
        .map(|(key, flag)| {
            let mut definition = flag["definition"].clone();
            definition["key"] = json!(key);
            FlagState {
                definition: shape(name, key, definition),
                config: shape(name, key, flag["config"].clone()),
            }
        })
        .collect();
    let segments = state["segments"].as_object().unwrap_or(&empty);
    let segments = segments
        .iter()
        .map(|(key, segment)| {
            let mut shaped = segment.as_object().cloned().unwrap_or_default();
            shaped.insert("key".to_owned(), json!(key));
            let mut take = |member: &str, to: &mut Vec<(String, HashSet<String>)>| {
                let list = shaped.remove(member);
                let ids: HashSet<String> =
                    list.map(|list| shape(name, key, list)).unwrap_or_default();
                let any = !ids.is_empty();
                to.push((key.clone(), ids));
                any
            };
            let has_included = take("included", &mut ids.included);
            let has_excluded = take("excluded", &mut ids.excluded);
            SegmentState {
                segment: shape(name, key, Value::Object(shaped)),
                has_included,
                has_excluded,
            }
        })
        .collect();
    let policies = state["policies"].as_object().unwrap_or(&empty);
    let policies = policies
        .iter()
        .map(|(key, policy)| PolicyState {
            name: key.clone(),
            digest: Digest::of(key.as_bytes()),
            attributes: shape(name, key, policy["attributes"].clone()),
        })
        .collect();
    let metadata = state.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let metadata = shape(name, "metadata", metadata);
    (EnvironmentState { flags, segments, policies, metadata }, ids)
}

fn imported(name: &str, document: &Value, fractional: Option<&Value>) -> EnvironmentState {
    let fractional =
        fractional.map(|value| shape(name, "fractional", value.clone())).unwrap_or_default();
    let imported =
        rules::flagd::import(document.to_string().as_bytes(), ImportOptions { fractional })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(imported.refused.is_empty(), "{name} refuses {:?}", imported.refused);
    EnvironmentState {
        flags: imported.flags,
        metadata: imported.metadata,
        ..EnvironmentState::default()
    }
}

fn read_case(file: &str, case: &Value) -> Case {
    let text = |member: &str| case[member].as_str().map(str::to_owned);
    let name = text("name").unwrap_or_else(|| panic!("{file}: a case has no name: {case}"));
    let place = format!("{file}: {name}");
    Case {
        file: file.to_owned(),
        flag: text("flag").unwrap_or_else(|| panic!("{place} has no flag")),
        context: case.get("context").cloned().unwrap_or_else(|| json!({})).to_string().into_bytes(),
        now_ms: match text("now") {
            Some(now) => millis(&now).unwrap_or_else(|| panic!("{place}: now is {now:?}")),
            None => 0,
        },
        audience: match case["audience"].as_str() {
            None | Some("server") => Audience::Server,
            Some("browser") => Audience::Browser,
            Some(other) => panic!("{place}: audience is {other:?}"),
        },
        status: case["status"].as_u64().map_or(200, |status| status as u16),
        expect: case["expect"].clone(),
        text: text("text"),
        name,
    }
}

fn shape<T: serde::de::DeserializeOwned>(file: &str, of: &str, value: Value) -> T {
    let text = value.to_string();
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{file}, {of}: {error} in {text}"))
}

/// `2026-01-01T00:00:00Z` or `2026-01-01T00:00:00.250Z`.
pub fn millis(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let fraction = match text.get(19..)? {
        "Z" => 0,
        rest => {
            rest.strip_prefix('.')?.strip_suffix('Z').filter(|ms| ms.len() == 3)?.parse().ok()?
        }
    };
    // Days since 1970-01-01 in the proleptic Gregorian calendar, years counted from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + fraction)
}
