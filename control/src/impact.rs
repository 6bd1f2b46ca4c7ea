//! Who a change would change: contexts are evaluated against what is live and against a draft of it,
//! side by side, by the evaluator that edges run.
//!
//! Nothing is written. What is compared is the answer (variant, value, error), not the way to it; the
//! way is told for each kind of difference, as the rule that decided before and after.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use rules::compile::FlagState;
use rules::context::ContextBuf;
use rules::eval::Scratch;
use rules::model::{FlagConfig, FlagDefinition};
use rules::trace::{Step, Trace};
use serde_json::Value;

use crate::admission::Admission;
use crate::authorize::NamespaceScope;
use crate::environments::{self, absent_config};
use crate::evaluate::{self, Ready};
use crate::parsed::State;
use crate::refusal::Refusal;
use crate::store::Connection;

pub const CONTEXTS_MAX: usize = 1_000;
pub const FLAGS_MAX: usize = 200;
/// Of one answer and flag; what is rarer is counted together.
const TRANSITIONS_MAX: usize = 20;
/// Of one transition.
const EXAMPLES_MAX: usize = 3;
/// Policies can take milliseconds a call. What was compared by then is told, as far as it came.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What would be there, by the flag's key: what is None stays as it is.
pub type Draft = IndexMap<String, (Option<FlagDefinition>, Option<FlagConfig>)>;

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
    apply(&mut changed.state, &asked.draft)?;
    let flags = affected(&live.state, &changed.state, &asked.draft);
    let live = evaluate::ready(read, live, admission).await?;
    let draft = evaluate::ready(read, changed, admission).await?;
    tokio::task::spawn_blocking(move || compare(&live, &draft, &flags, &asked))
        .await
        .map_err(|error| Refusal::Internal(format!("evaluating failed: {error}")))?
}

fn check(asked: &Asked) -> Result<(), Refusal> {
    if asked.draft.is_empty() {
        return Err(Refusal::invalid("/flags", "name at least one flag that would change"));
    }
    if asked.draft.len() > FLAGS_MAX {
        return Err(Refusal::invalid("/flags", format!("the limit is {FLAGS_MAX} flags")));
    }
    if asked.contexts.len() > CONTEXTS_MAX {
        let message = format!("the limit is {CONTEXTS_MAX} contexts");
        return Err(Refusal::invalid("/contexts", message));
    }
    Ok(())
}

fn apply(state: &mut State, draft: &Draft) -> Result<(), Refusal> {
    for (key, (definition, config)) in draft {
        let pointer = |part: &str| format!("/flags/{}{part}", crate::change::pointer_segment(key));
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

/// The flags of the draft, and those that need one of them, through however many others.
fn affected(live: &State, draft: &State, changed: &Draft) -> Vec<String> {
    let mut reached: BTreeSet<&str> = changed.keys().map(String::as_str).collect();
    loop {
        let before = reached.len();
        for flag in live.flags.iter().chain(&draft.flags) {
            let of_rules = flag.config.rules.iter().flat_map(|rule| &rule.prerequisites);
            let needs = flag.config.prerequisites.iter().chain(of_rules);
            if needs.into_iter().any(|needed| reached.contains(needed.flag.as_str())) {
                reached.insert(&flag.definition.key);
            }
        }
        if reached.len() == before {
            break;
        }
    }
    let mut flags: Vec<String> = changed.keys().cloned().collect();
    let more = reached.into_iter().filter(|key| !changed.contains_key(*key));
    flags.extend(more.map(str::to_owned));
    flags
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
    let of_flag = |(flag, found): (&String, Found)| {
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
        let in_draft = asked.draft.contains_key(flag);
        FlagImpact { flag: flag.clone(), in_draft, changed, transitions, others }
    };
    let flags = flags.iter().zip(found).map(of_flag).collect();
    Ok(Impact { contexts, complete: contexts == asked.contexts.len(), changed, flags })
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
