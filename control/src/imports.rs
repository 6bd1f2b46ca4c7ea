//! Documents in and out: flagd's flag document, and Tidegate's own, which is
//! `{metadata?, flags: {key: {definition, config}}}`.
//!
//! All or nothing per request, but for flags that are refused one by one with the reason and the
//! place. A dry run does the same and is not committed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;
use rules::compile::{self, FlagState, Problem};
use rules::flagd::{self, Ignored, ImportOptions, Refused};
use rules::model::{FlagConfig, FlagDefinition, FlagType, Fractional, Metadata};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Passage, Touches, pointer_segment};
use crate::refusal::Refusal;
use crate::store::{Connection, Tx};
use crate::{configs, environments, flags, references};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Flagd,
    Tidegate,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Key and what became of it, in the document's order; the refused last.
    pub flags: Vec<(String, Became)>,
    /// Fields of the document that nothing was made of.
    pub ignored: Ignored,
    /// The environment's, if anything changed.
    pub revision: Option<i64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Became {
    Created,
    Changed,
    Unchanged,
    Refused { reason: String, pointer: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    metadata: Metadata,
    flags: IndexMap<String, Flag>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flag {
    definition: Value,
    config: FlagConfig,
}

/// A flag of a document, and where it stands there.
struct Wanted {
    flag: FlagState,
    source: Source,
}

enum Source {
    Flagd(flagd::Source),
    /// `/flags/{key}`, with the parts that the compiler has too.
    Native(String),
}

impl Source {
    fn pointer(&self) -> &str {
        match self {
            Source::Flagd(source) => &source.pointer,
            Source::Native(pointer) => pointer,
        }
    }

    /// The place of what the compiler says, `rest` being below the flag.
    fn place_of(&self, rest: &str) -> String {
        match self {
            Source::Flagd(source) => source.place_of(rest),
            Source::Native(pointer) => format!("{pointer}{rest}"),
        }
    }
}

/// The flag that a compiler's pointer is about, and the part below it.
fn about(pointer: &str) -> Option<(String, &str)> {
    let rest = pointer.strip_prefix("/flags/")?;
    let (key, below) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
    Some((key.replace("~1", "/").replace("~0", "~"), below))
}

/// A document that was read, and is compared with nothing yet.
pub struct Incoming {
    format: Format,
    flags: Vec<Wanted>,
    refused: Vec<Refused>,
    metadata: Metadata,
    /// Of a native document none: what it does not know, it refuses.
    ignored: Ignored,
}

/// Takes long for a large one, so it is done before any transaction begins.
pub fn parse(document: &[u8], format: Format, fractional: Fractional) -> Result<Incoming, Refusal> {
    if format == Format::Flagd {
        let read = flagd::import(document, ImportOptions { fractional })
            .map_err(|error| Refusal::invalid(error.pointer, error.message))?;
        let flagd::Imported { flags, sources, refused, metadata, ignored } = read;
        let wanted = |(flag, source)| Wanted { flag, source: Source::Flagd(source) };
        let flags = flags.into_iter().zip(sources).map(wanted).collect();
        return Ok(Incoming { format, flags, refused, metadata, ignored });
    }
    let document: Document =
        compile::parse(document).map_err(|problem| Refusal::Invalid(vec![problem]))?;
    let (mut states, mut refused) = (Vec::new(), Vec::new());
    for (key, flag) in document.flags {
        let mut definition = flag.definition;
        if let Value::Object(fields) = &mut definition {
            fields.insert("key".to_owned(), json!(key));
        }
        let at = format!("/flags/{}", pointer_segment(&key));
        match compile::parse(definition.to_string().as_bytes()) {
            Ok(definition) => {
                let flag = FlagState { definition, config: flag.config };
                states.push(Wanted { flag, source: Source::Native(at) });
            }
            Err(Problem { pointer, message }) => refused.push(Refused {
                pointer: format!("{at}/definition{pointer}"),
                flag: key,
                reason: message,
            }),
        }
    }
    let ignored = Ignored::default();
    Ok(Incoming { format, flags: states, refused, metadata: document.metadata, ignored })
}

pub async fn import(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    mut read: Incoming,
) -> Result<Done, Refusal> {
    let format = read.format;
    let environment = environments::get(tx, scope, environment).await?;
    // The namespace's lock first, as always; every environment's, as definitions belong to all.
    let change = Change::begin_by(tx, scope, Touches::All, Passage::Judged).await?;
    let parsed = tx.parsed();
    let loaded = environments::load(tx, &parsed, environments::Read::Own, &environment.id).await?;
    let mut refused = std::mem::take(&mut read.refused);
    let mut wanted: Vec<Wanted> = Vec::new();
    for Wanted { mut flag, source } in std::mem::take(&mut read.flags) {
        let key = flag.definition.key.clone();
        let refuse = |reason: String| Refused {
            pointer: source.pointer().to_owned(),
            flag: key.clone(),
            reason,
        };
        let is_same = |other: &&Arc<FlagState>| other.definition.key == key;
        if let Some(there) = loaded.state.flags.iter().find(is_same) {
            if format == Format::Flagd {
                keep_number_type(&mut flag.definition, &there.definition);
            }
            if there.definition.kind != flag.definition.kind {
                refused.push(refuse("a flag keeps its type: callers rely on it".to_owned()));
                continue;
            }
            if format == Format::Flagd && there.definition.archived {
                refused.push(refuse(Refusal::Archived { flag: key.clone() }.to_string()));
                continue;
            }
            if flag.definition.archived && !there.definition.archived {
                let needed = references::needing_flag(tx, scope, &key).await?;
                if let Err(needed) = needed.refuse_if_needed() {
                    refused.push(refuse(needed.to_string()));
                    continue;
                }
            }
            if format == Format::Flagd {
                // What flagd has no word for stays as it is here.
                flag.definition = FlagDefinition {
                    variants: flag.definition.variants,
                    metadata: flag.definition.metadata,
                    ..there.definition.clone()
                };
            }
        } else if let Some(reason) = flags::used_before(tx, scope, &key).await? {
            refused.push(refuse(reason));
            continue;
        }
        wanted.push(Wanted { flag, source });
    }
    refuse_what_does_not_compile(&loaded, &mut wanted, &mut refused).await?;

    let mut done = Done { flags: Vec::new(), ignored: read.ignored, revision: None };
    for Wanted { flag, .. } in &wanted {
        let key = &flag.definition.key;
        let there = loaded.state.flags.iter().find(|other| other.definition.key == *key);
        let became = match there {
            None => Became::Created,
            Some(there) if **there == *flag => Became::Unchanged,
            Some(_) => Became::Changed,
        };
        if became != Became::Unchanged {
            match flags::find(tx, scope, key).await? {
                None => drop(flags::insert(tx, scope, &change, &flag.definition).await?),
                Some(row) if there.is_some_and(|there| there.definition != flag.definition) => {
                    let serves_the_same = there.is_some_and(|there| {
                        flags::serves_the_same(&there.definition, &flag.definition)
                    });
                    if !serves_the_same {
                        change.gate_all(tx).await?;
                    }
                    flags::replace(tx, &change, &row.id, &flag.definition).await?;
                }
                Some(_) => {}
            }
            let row = flags::get(tx, scope, key).await?;
            if there.is_none_or(|there| there.config != flag.config) {
                change.gate(tx, &environment.id).await?;
                configs::put(tx, &change, &environment.id, &row.id, &flag.config).await?;
            }
        }
        done.flags.push((key.clone(), became));
    }
    let changes = done.flags.iter().filter(|(_, became)| *became != Became::Unchanged).count();
    let metadata = !read.metadata.is_empty() && read.metadata != loaded.state.metadata;
    if metadata {
        change.gate(tx, &environment.id).await?;
        environments::set_metadata(tx, &environment.id, &read.metadata).await?;
    }
    for Refused { flag, reason, pointer } in refused {
        done.flags.push((flag, Became::Refused { reason, pointer }));
    }
    if changes > 0 || metadata {
        let entry = Entry {
            action: "import",
            target: environment.key.clone(),
            environment: Some(environment.key.clone()),
            before: None,
            after: Some(json!({ "flagsCreatedOrChanged": changes })),
        };
        let raised = change.finish(tx, entry).await.map_err(|refusal| placed(refusal, &wanted))?;
        let own = raised.iter().find(|raised| raised.environment_id == environment.id);
        done.revision = own.map(|raised| raised.revision);
    }
    Ok(done)
}

/// flagd has one type of number, and which one a flag has is guessed from how they are written: the
/// flag that is there knows better. A number that is the same stays as it is written there, so that
/// what serves the same is no change.
fn keep_number_type(read: &mut FlagDefinition, there: &FlagDefinition) {
    let is_whole = |value: &Value| value.as_f64().is_some_and(|number| number.fract() == 0.0);
    match (there.kind, read.kind) {
        (FlagType::Float, FlagType::Float | FlagType::Integer) => {}
        (FlagType::Integer, FlagType::Integer) => {}
        (FlagType::Integer, FlagType::Float) if read.variants.values().all(is_whole) => {}
        _ => return,
    }
    read.kind = there.kind;
    for (name, value) in &mut read.variants {
        match there.variants.get(name) {
            Some(same) if same.as_f64() == value.as_f64() => *value = same.clone(),
            _ => {}
        }
    }
}

/// Problems with the places that they have in the document; what is elsewhere in the environment has
/// none, and the message says where it is.
fn placed(refusal: Refusal, wanted: &[Wanted]) -> Refusal {
    let Refusal::Invalid(problems) = refusal else { return refusal };
    let place = |Problem { pointer, message }: Problem| {
        let own = about(&pointer).and_then(|(key, below)| {
            let one = wanted.iter().find(|one| one.flag.definition.key == key)?;
            Some(one.source.place_of(below))
        });
        match own {
            Some(pointer) => Problem { pointer, message },
            None if pointer == "/metadata" || pointer.starts_with("/metadata/") => {
                Problem { pointer, message }
            }
            None => Problem {
                message: format!("at {pointer} of the environment: {message}"),
                pointer: String::new(),
            },
        }
    };
    Refusal::Invalid(problems.into_iter().map(place).collect())
}

/// Takes the flags out that would not compile beside what is there, until the rest does.
async fn refuse_what_does_not_compile(
    loaded: &environments::Loaded,
    wanted: &mut Vec<Wanted>,
    refused: &mut Vec<Refused>,
) -> Result<(), Refusal> {
    loop {
        let mut trial = loaded.state.clone();
        let keys: HashSet<&str> =
            wanted.iter().map(|one| one.flag.definition.key.as_str()).collect();
        trial.flags.retain(|flag| !keys.contains(flag.definition.key.as_str()));
        trial.flags.extend(wanted.iter().map(|one| Arc::new(one.flag.clone())));
        let compiled =
            environments::try_compile(Arc::default(), &loaded.environment_id, trial).await?;
        let Err(problems) = compiled else { return Ok(()) };
        // Of each flag the first: mending it shows the next.
        let mut faults = HashMap::new();
        for problem in &problems {
            if let Some((key, below)) = about(&problem.pointer) {
                faults.entry(key).or_insert((below, &problem.message));
            }
        }
        let before = wanted.len();
        let mut rest = Vec::new();
        for one in wanted.drain(..) {
            match faults.get(&one.flag.definition.key) {
                None => rest.push(one),
                Some((below, reason)) => refused.push(Refused {
                    pointer: one.source.place_of(below),
                    flag: one.flag.definition.key,
                    reason: (*reason).clone(),
                }),
            }
        }
        *wanted = rest;
        // Nothing of the document is to blame: the check before the commit decides.
        if wanted.len() == before {
            return Ok(());
        }
    }
}

/// A document, and what does not stand in it.
pub struct Exported {
    pub document: Value,
    /// Flags that its format has no words for.
    pub left_out: usize,
    /// What `fractional` means in it: an import has to be told, since flagd's document cannot say.
    pub fractional: Option<Fractional>,
}

/// Flags that flagd has no words for are left out if `partial`, else a refusal that lists them.
pub async fn export(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    format: Format,
    partial: bool,
) -> Result<Exported, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let state = environments::load_afresh(read, &environment.id).await?.state;
    if format == Format::Flagd {
        let exported = flagd::export(&state.flags, &state.segments, &state.metadata);
        let left_out = exported.refused.len();
        if left_out > 0 && !partial {
            let place = |one: Refused| Problem {
                pointer: format!("/flags/{}{}", pointer_segment(&one.flag), one.pointer),
                message: one.reason,
            };
            return Err(Refusal::Inexpressible(exported.refused.into_iter().map(place).collect()));
        }
        let fractional = Some(exported.fractional);
        return Ok(Exported { document: exported.document, left_out, fractional });
    }
    let mut flags = serde_json::Map::new();
    for flag in &state.flags {
        let mut definition = serde_json::to_value(&flag.definition).unwrap_or_default();
        if let Value::Object(fields) = &mut definition {
            fields.remove("key");
        }
        let shown = json!({ "definition": definition, "config": flag.config });
        flags.insert(flag.definition.key.clone(), shown);
    }
    let document = json!({ "metadata": state.metadata, "flags": flags });
    // Every tree says its version itself.
    Ok(Exported { document, left_out: 0, fractional: None })
}
