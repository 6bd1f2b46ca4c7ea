//! Who a change would change: contexts are evaluated against what is live and against a draft of it,
//! side by side, by the evaluator that edges run.
//!
//! Nothing is written. What is compared is the answer (variant, value, error), not the way to it; the
//! way is told for each kind of difference, as the rule that decided before and after.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use rules::compile::{FlagState, SegmentState};
use rules::context::ContextBuf;
use rules::eval::Scratch;
use rules::model::{FlagConfig, FlagDefinition, Segment};
use rules::references::{self, Reference, Target};
use rules::trace::{Step, Trace};
use serde_json::Value;

use crate::admission::Admission;
use crate::authorize::NamespaceScope;
use crate::change::{pointer_segment, within};
use crate::environments::{self, absent_config};
use crate::evaluate::{self, NewLists, Ready};
use crate::parsed::State;
use crate::policies::{self, Pin};
use crate::refusal::Refusal;
use crate::segments::{self, Ids};
use crate::store::Connection;

pub const CONTEXTS_MAX: usize = 1_000;
/// Of a draft.
pub const FLAGS_MAX: usize = 200;
/// That are in no draft and are compared, because they need something that is.
const AFFECTED_MAX: usize = 1_000;
/// Of one answer and flag; what is rarer is counted together.
const TRANSITIONS_MAX: usize = 20;
/// Of one transition.
const EXAMPLES_MAX: usize = 3;
/// Of all examples of an answer; a context can have 64 KiB, and be an example for each flag.
const EXAMPLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Policies can take milliseconds a call. What was compared by then is told, as far as it came.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What would be there, by its key; what is not named stays as it is.
#[derive(Debug, Default)]
pub struct Draft {
    pub flags: IndexMap<String, FlagDraft>,
    /// None: it would be gone.
    pub segments: IndexMap<String, Option<(Segment, Ids)>>,
    /// None: its pin would be gone.
    pub policies: IndexMap<String, Option<Pin>>,
}

/// What is None stays as it is.
#[derive(Debug, Default)]
pub struct FlagDraft {
    pub definition: Option<FlagDefinition>,
    pub config: Option<FlagConfig>,
    pub gone: bool,
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty() && self.segments.is_empty() && self.policies.is_empty()
    }
}

#[derive(Debug)]
pub struct Asked {
    pub draft: Draft,
    pub contexts: Vec<Value>,
    pub now_ms: i64,
}

/// What a context got.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Served {
    /// None where the caller's own default is served, and of errors.
    pub variant: Option<String>,
    /// JSON.
    pub value: Option<String>,
    pub reason: Option<String>,
    pub error_code: Option<String>,
    /// The rule that decided; None of a flag's off variant and fallthrough.
    pub rule: Option<String>,
}

#[derive(Debug)]
pub struct Transition {
    pub from: Served,
    pub to: Served,
    pub contexts: usize,
    /// Some of them, the first ones.
    pub examples: Vec<Value>,
}

#[derive(Debug)]
pub struct FlagImpact {
    pub flag: String,
    /// It is in the draft; or it is not, and needs one that is.
    pub in_draft: bool,
    pub changed: usize,
    /// The most frequent first.
    pub transitions: Vec<Transition>,
    /// Contexts of transitions that are not listed.
    pub others: usize,
}

#[derive(Debug)]
pub struct Impact {
    /// How many were compared; fewer than were given if the time was over.
    pub contexts: usize,
    pub complete: bool,
    /// Those for which at least one flag changes.
    pub changed: usize,
    pub flags: Vec<FlagImpact>,
    /// That need something of the draft and were not compared: there are too many.
    pub flags_left_out: usize,
}

/// A draft that would not load at an edge is refused as the write would be.
pub async fn preview(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    asked: Asked,
    admission: &Arc<Admission>,
) -> Result<Impact, Refusal> {
    check(&asked)?;
    let environment = environments::get(read, scope, environment).await?;
    let live = environments::load_afresh(read, &environment.id).await?;
    let mut changed = live.clone();
    apply(&mut changed.state, &asked.draft.flags)?;
    let lists = apply_segments(&mut changed.state, &asked.draft.segments)?;
    apply_policies(read, scope, &mut changed, &asked.draft.policies).await?;
    let mut flags = affected(&live.state, &changed.state, &asked.draft);
    let max = asked.draft.flags.len() + AFFECTED_MAX;
    let left_out = flags.len().saturating_sub(max);
    flags.truncate(max);
    let live = evaluate::ready(read, live, admission).await?;
    let draft = evaluate::ready_with(read, changed, lists, admission).await?;
    let compared = tokio::task::spawn_blocking(move || compare(&live, &draft, &flags, &asked))
        .await
        .map_err(|error| Refusal::Internal(format!("evaluating failed: {error}")))??;
    Ok(Impact { flags_left_out: left_out, ..compared })
}

fn check(asked: &Asked) -> Result<(), Refusal> {
    if asked.draft.is_empty() {
        return Err(Refusal::invalid("/flags", "name at least one flag that would change"));
    }
    if asked.draft.flags.len() > FLAGS_MAX {
        return Err(Refusal::invalid("/flags", format!("the limit is {FLAGS_MAX} flags")));
    }
    if asked.contexts.len() > CONTEXTS_MAX {
        let message = format!("the limit is {CONTEXTS_MAX} contexts");
        return Err(Refusal::invalid("/contexts", message));
    }
    Ok(())
}

fn apply(state: &mut State, draft: &IndexMap<String, FlagDraft>) -> Result<(), Refusal> {
    for (key, FlagDraft { definition, config, gone }) in draft {
        if *gone {
            state.flags.retain(|flag| flag.definition.key != *key);
            continue;
        }
        let pointer = |part: &str| format!("/flags/{}{part}", pointer_segment(key));
        if definition.as_ref().is_some_and(|definition| definition.key != *key) {
            let message = format!("a flag keeps its key, {key:?}");
            return Err(Refusal::invalid(pointer("/definition/key"), message));
        }
        match state.flags.iter_mut().find(|flag| flag.definition.key == *key) {
            Some(flag) => {
                let flag = Arc::make_mut(flag);
                flag.definition = definition.clone().unwrap_or_else(|| flag.definition.clone());
                flag.config = config.clone().unwrap_or_else(|| flag.config.clone());
            }
            None => state.flags.push(Arc::new(FlagState {
                definition: definition.clone().ok_or_else(|| {
                    let message = "there is no such flag; a new one needs its definition";
                    Refusal::invalid(pointer(""), message)
                })?,
                config: config.clone().unwrap_or_else(absent_config),
            })),
        }
    }
    // The compiler takes flags in the order of their keys, as they are stored.
    state.flags.sort_by(|one, next| one.definition.key.cmp(&next.definition.key));
    Ok(())
}

/// The lists that are in the draft itself.
fn apply_segments(
    state: &mut State,
    draft: &IndexMap<String, Option<(Segment, Ids)>>,
) -> Result<NewLists, Refusal> {
    let mut lists = NewLists::new();
    for (key, draft) in draft {
        let before = state.segments.iter().find(|one| one.segment.key == *key);
        let (mut has_included, mut has_excluded) =
            before.map_or((false, false), |one| (one.has_included, one.has_excluded));
        state.segments.retain(|one| one.segment.key != *key);
        let Some((segment, ids)) = draft else { continue };
        for (kind, ids, has) in [
            ("included", &ids.included, &mut has_included),
            ("excluded", &ids.excluded, &mut has_excluded),
        ] {
            let Some(ids) = ids else { continue };
            *has = !ids.is_empty();
            let place = format!("/segments/{}", pointer_segment(key));
            let list = segments::id_list(kind, ids).map_err(|refusal| within(refusal, &place))?;
            lists.insert((key.clone(), kind), list);
        }
        let segment = segment.clone();
        state.segments.push(SegmentState { segment, has_included, has_excluded });
    }
    // As they are stored.
    state.segments.sort_by(|one, next| one.segment.key.cmp(&next.segment.key));
    Ok(lists)
}

async fn apply_policies(
    read: &mut Connection,
    scope: &NamespaceScope,
    loaded: &mut environments::Loaded,
    draft: &IndexMap<String, Option<Pin>>,
) -> Result<(), Refusal> {
    for (name, pin) in draft {
        loaded.policies.retain(|pinned| pinned.state.name != *name);
        if let Some(pin) = pin {
            let place = format!("/policies/{}", pointer_segment(name));
            let pinned = policies::would_pin(read, scope, name, pin).await;
            loaded.policies.push(pinned.map_err(|refusal| match refusal {
                Refusal::NotFound(_) => Refusal::invalid(place, refusal.to_string()),
                refusal => within(refusal, &place),
            })?);
        }
    }
    loaded.policies.sort_by(|one, next| one.state.name.cmp(&next.state.name));
    loaded.state.policies = loaded.policies.iter().map(|pinned| pinned.state.clone()).collect();
    Ok(())
}

/// The flags of the draft, and those that need one of them, or a segment or a policy of it, through
/// however many others.
fn affected(live: &State, draft: &State, changed: &Draft) -> Vec<String> {
    let mut segments: BTreeSet<&str> = changed.segments.keys().map(String::as_str).collect();
    loop {
        let before = segments.len();
        for of in live.segments.iter().chain(&draft.segments) {
            if references::of_segment(&of.segment).iter().any(|key| segments.contains(key)) {
                segments.insert(&of.segment.key);
            }
        }
        if segments.len() == before {
            break;
        }
    }
    let mut flags: BTreeSet<&str> = changed.flags.keys().map(String::as_str).collect();
    loop {
        let before = flags.len();
        for flag in live.flags.iter().chain(&draft.flags) {
            let is_needed = |reference: &Reference<'_>| match reference.to {
                Target::Flag(key) => flags.contains(key),
                Target::Segment(key) => segments.contains(key),
                Target::Policy(name) => changed.policies.contains_key(name),
            };
            if references::of_config(&flag.config).iter().any(is_needed) {
                flags.insert(&flag.definition.key);
            }
        }
        if flags.len() == before {
            break;
        }
    }
    let more = flags.into_iter().filter(|key| !changed.flags.contains_key(*key));
    changed.flags.keys().map(String::as_str).chain(more).map(str::to_owned).collect()
}

/// From what, to what; for how many contexts, and which of them are shown.
type Found = HashMap<(Served, Served), (usize, Vec<usize>)>;

fn compare(
    live: &Ready,
    draft: &Ready,
    flags: &[String],
    asked: &Asked,
) -> Result<Impact, Refusal> {
    let until = Instant::now() + TIME_MAX;
    let (mut before, mut after) = (Scratch::default(), Scratch::default());
    let mut found: Vec<Found> = flags.iter().map(|_| HashMap::new()).collect();
    let (mut contexts, mut changed) = (0, 0);
    for (index, context) in asked.contexts.iter().enumerate() {
        if Instant::now() > until {
            break;
        }
        let read = ContextBuf::from_json(context.to_string().as_bytes())
            .map_err(|error| Refusal::invalid(format!("/contexts/{index}"), error.to_string()))?;
        let mut differs = false;
        for (flag, found) in flags.iter().zip(&mut found) {
            let from = serve(live, flag, &read, asked.now_ms, &mut before)?;
            let to = serve(draft, flag, &read, asked.now_ms, &mut after)?;
            let answer =
                |of: &Served| (of.variant.clone(), of.value.clone(), of.error_code.clone());
            if answer(&from) == answer(&to) {
                continue;
            }
            differs = true;
            let (count, examples) = found.entry((from, to)).or_default();
            *count += 1;
            if examples.len() < EXAMPLES_MAX {
                examples.push(index);
            }
        }
        contexts += 1;
        changed += usize::from(differs);
    }
    let mut example_bytes = 0usize;
    let mut of_flag = |(flag, found): (&String, Found)| {
        let changed = found.values().map(|(count, _)| count).sum();
        let mut transitions: Vec<Transition> = found
            .into_iter()
            .map(|((from, to), (contexts, examples))| Transition {
                from,
                to,
                contexts,
                examples: examples
                    .into_iter()
                    .filter_map(|index| asked.contexts.get(index).cloned())
                    .collect(),
            })
            .collect();
        // The same question gets the same answer: hash maps have no order.
        let order = |of: &Transition| {
            let text = |of: &Served| (of.variant.clone(), of.value.clone(), of.rule.clone());
            (usize::MAX - of.contexts, text(&of.from), text(&of.to))
        };
        transitions.sort_by_cached_key(order);
        let others = transitions.iter().skip(TRANSITIONS_MAX).map(|of| of.contexts).sum();
        transitions.truncate(TRANSITIONS_MAX);
        for transition in &mut transitions {
            transition.examples.retain(|context| {
                let bytes = context.to_string().len();
                let fits = example_bytes + bytes <= EXAMPLE_BYTES_MAX;
                example_bytes += if fits { bytes } else { 0 };
                fits
            });
        }
        let in_draft = asked.draft.flags.contains_key(flag);
        FlagImpact { flag: flag.clone(), in_draft, changed, transitions, others }
    };
    let flags = flags.iter().zip(found).map(&mut of_flag).collect();
    let complete = contexts == asked.contexts.len();
    Ok(Impact { contexts, complete, changed, flags, flags_left_out: 0 })
}

fn serve(
    ready: &Ready,
    flag: &str,
    context: &ContextBuf,
    now_ms: i64,
    scratch: &mut Scratch,
) -> Result<Served, Refusal> {
    let Some(id) = ready.evaluator.flag(flag) else {
        // Not there yet: as an edge answers for it.
        return Ok(Served {
            variant: None,
            value: None,
            reason: None,
            error_code: Some("FLAG_NOT_FOUND".to_owned()),
            rule: None,
        });
    };
    let (answer, trace) = ready.explain(id, &ready.input(context, now_ms), scratch)?;
    let text = |name: &str| answer[name].as_str().filter(|text| !text.is_empty());
    Ok(Served {
        variant: text("variant").map(str::to_owned),
        value: answer.get("value").map(Value::to_string),
        reason: text("reason").map(str::to_owned),
        error_code: text("errorCode").map(str::to_owned),
        rule: decided(trace),
    })
}

/// The rule that matched last is the one that decided, unless the fallthrough was reached after it.
fn decided(trace: Trace) -> Option<String> {
    trace.steps.into_iter().rev().find_map(|step| match step {
        Step::Fallthrough | Step::Disabled => Some(None),
        Step::RuleEnd { id, matched: true, .. } => Some(Some(id)),
        _ => None,
    })?
}
