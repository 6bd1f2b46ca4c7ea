//! What a context would get, with the explanation: against what is there or against a draft.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rules::answer;
use rules::blob::Digest;
use rules::blob::lists::IdList;
use rules::compile::FlagState;
use rules::context::ContextBuf;
use rules::eval::{Evaluator, FlagId, Host, Input, Scratch};
use rules::model::{FlagConfig, FlagDefinition};
use rules::policy::{PolicyFault, Told};
use rules::trace::Trace;
use sandbox::policy::Fault;
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::authorize::NamespaceScope;
use crate::environments;
use crate::refusal::Refusal;
use crate::store::Connection;
use crate::store::query::query_scalar;

/// An id list, or a policy.
const LIST: &str = "SELECT b.bytes FROM blob b WHERE b.digest = $1";

#[derive(Debug)]
pub struct Asked {
    pub flag: Option<String>,
    pub context: Value,
    pub now_ms: i64,
    pub draft: Option<(Option<FlagDefinition>, Option<FlagConfig>)>,
}

/// The id lists and policies of one state.
struct Loaded {
    lists: Vec<IdList>,
    /// Compiled when they are called: most dry runs ask for one flag, and an environment may have a
    /// hundred.
    policies: Vec<(Digest, Vec<u8>)>,
    admission: Arc<Admission>,
    told: RefCell<Option<Told>>,
}

impl Host for Loaded {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        self.lists.get(list as usize).is_some_and(|list| list.contains(id))
    }

    fn policy(&self, policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        self.told.take();
        let (digest, wasm) = self.policies.get(policy as usize).ok_or(PolicyFault::Unavailable)?;
        let called = self.admission.policy(*digest, wasm)?.call(input);
        let cut_off = called.outcome == Err(Fault::Deadline);
        let fuel = (!cut_off).then_some(called.fuel);
        self.told.replace(Some(Told { fuel, log: called.log }));
        let outcome = called.outcome.as_ref().map(Vec::as_slice);
        out.extend_from_slice(outcome.unwrap_or_default());
        outcome.map(drop).map_err(|fault| {
            out.extend_from_slice(fault.to_string().as_bytes());
            fault.kind()
        })
    }

    fn policy_told(&self) -> Option<Told> {
        self.told.take()
    }
}

pub async fn evaluate(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &str,
    asked: Asked,
    admission: &Arc<Admission>,
) -> Result<Vec<Value>, Refusal> {
    let environment = environments::get(read, scope, environment).await?;
    let mut loaded = environments::load_afresh(read, &environment.id).await?;
    if let Some((definition, config)) = asked.draft {
        let Some(key) = &asked.flag else {
            return Err(Refusal::invalid("/flag", "a draft needs the flag that it is of"));
        };
        let flags = &mut loaded.state.flags;
        match flags.iter_mut().find(|flag| flag.definition.key == *key) {
            Some(flag) => {
                let flag = Arc::make_mut(flag);
                flag.definition = definition.unwrap_or_else(|| flag.definition.clone());
                flag.config = config.unwrap_or_else(|| flag.config.clone());
            }
            None => flags.push(Arc::new(FlagState {
                definition: definition.ok_or(Refusal::NotFound("flag"))?,
                config: config.unwrap_or_else(environments::absent_config),
            })),
        }
    }
    let ready = ready(read, loaded, admission).await?;
    let work = move || {
        let context = ContextBuf::from_json(asked.context.to_string().as_bytes())
            .map_err(|error| Refusal::invalid("/context", error.to_string()))?;
        let input = ready.input(&context, asked.now_ms);
        let evaluator = &ready.evaluator;
        let mut scratch = Scratch::default();
        let chosen = match &asked.flag {
            Some(key) => vec![evaluator.flag(key).ok_or(Refusal::NotFound("flag"))?],
            None => evaluator.flags().collect(),
        };
        let mut results = Vec::with_capacity(chosen.len());
        for flag in chosen {
            let (mut result, trace) = ready.explain(flag, &input, &mut scratch)?;
            result["trace"] = json!(trace);
            results.push(result);
        }
        Ok(results)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::Internal(format!("evaluating failed: {error}")))?
}

/// One state of an environment, ready to be asked; on a thread that may block.
pub(crate) struct Ready {
    pub evaluator: Evaluator,
    host: Loaded,
}

impl Ready {
    pub fn input<'a>(&'a self, context: &'a ContextBuf, now_ms: i64) -> Input<'a> {
        Input { context: context.view(), now_ms, host: &self.host }
    }

    /// The answer as OFREP has it, and how it came about.
    pub fn explain(
        &self,
        flag: FlagId,
        input: &Input<'_>,
        scratch: &mut Scratch,
    ) -> Result<(Value, Trace), Refusal> {
        let (outcome, trace) = self.evaluator.explain(flag, input, scratch);
        let mut body = Vec::new();
        answer::write_outcome(&self.evaluator, flag, &outcome, &mut body);
        let answer = serde_json::from_slice(&body);
        Ok((answer.map_err(|error| Refusal::Internal(error.to_string()))?, trace))
    }
}

pub(crate) async fn ready(
    read: &mut Connection,
    loaded: environments::Loaded,
    admission: &Arc<Admission>,
) -> Result<Ready, Refusal> {
    ready_with(read, loaded, NewLists::new(), admission).await
}

/// Id lists that are not stored, by their segment and kind.
pub(crate) type NewLists = HashMap<(String, &'static str), IdList>;

/// As `ready`, with lists that take the places of stored ones.
pub(crate) async fn ready_with(
    read: &mut Connection,
    loaded: environments::Loaded,
    mut new: NewLists,
    admission: &Arc<Admission>,
) -> Result<Ready, Refusal> {
    let stored = loaded.lists;
    let compiled =
        environments::try_compile(Arc::default(), &loaded.environment_id, loaded.state).await?;
    let compiled = compiled.map_err(Refusal::Invalid)?;
    let mut lists = Vec::new();
    for list in &compiled.lists {
        let kind = match list.kind {
            rules::compile::ListKind::Included => "included",
            rules::compile::ListKind::Excluded => "excluded",
        };
        if let Some(list) = new.remove(&(list.segment.clone(), kind)) {
            lists.push(list);
            continue;
        }
        let stored = stored.iter().find(|one| one.key == list.segment && one.kind == kind);
        let digest = stored.map(|stored| stored.digest.clone()).unwrap_or_default();
        let bytes: Vec<u8> = query_scalar(LIST).bind(digest).fetch_one(&mut *read).await?;
        let decoded = IdList::decode(&bytes);
        lists.push(decoded.map_err(|error| Refusal::Internal(error.to_string()))?);
    }
    let mut policies = Vec::new();
    for name in &compiled.policies {
        let pinned = loaded.policies.iter().find(|pinned| pinned.state.name == *name);
        let digest = pinned.map(|pinned| pinned.state.digest);
        let digest = digest.ok_or_else(|| Refusal::Internal(format!("{name:?} is not pinned")))?;
        let bytes: Vec<u8> =
            query_scalar(LIST).bind(digest.to_string()).fetch_one(&mut *read).await?;
        policies.push((digest, bytes));
    }
    let evaluator = Evaluator::new(Arc::unwrap_or_clone(compiled).ruleset)
        .map_err(|error| Refusal::Internal(error.to_string()))?;
    let admission = admission.clone();
    Ok(Ready { evaluator, host: Loaded { lists, policies, admission, told: RefCell::default() } })
}
