//! What a context would get, with the explanation: against what is there or against a draft.

use std::cell::RefCell;
use std::sync::Arc;

use rules::answer;
use rules::blob::Digest;
use rules::compile::FlagState;
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Host, Input, Scratch};
use rules::model::{FlagConfig, FlagDefinition};
use rules::policy::{PolicyFault, Told};
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

struct Loaded {
    lists: Vec<rules::blob::lists::IdList>,
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
    let ids = loaded.lists.clone();
    let compiled = environments::try_compile(Arc::default(), &environment.id, loaded.state).await?;
    let compiled = compiled.map_err(Refusal::Invalid)?;
    let mut lists = Vec::new();
    for list in &compiled.lists {
        let kind = match list.kind {
            rules::compile::ListKind::Included => "included",
            rules::compile::ListKind::Excluded => "excluded",
        };
        let stored = ids.iter().find(|one| one.key == list.segment && one.kind == kind);
        let digest = stored.map(|stored| stored.digest.clone()).unwrap_or_default();
        let bytes: Vec<u8> = query_scalar(LIST).bind(digest).fetch_one(&mut *read).await?;
        let decoded = rules::blob::lists::IdList::decode(&bytes);
        lists.push(decoded.map_err(|error| Refusal::Internal(error.to_string()))?);
    }
    let mut modules = Vec::new();
    for name in &compiled.policies {
        let pinned = loaded.policies.iter().find(|pinned| pinned.state.name == *name);
        let digest = pinned.map(|pinned| pinned.state.digest);
        let digest = digest.ok_or_else(|| Refusal::Internal(format!("{name:?} is not pinned")))?;
        let bytes: Vec<u8> =
            query_scalar(LIST).bind(digest.to_string()).fetch_one(&mut *read).await?;
        modules.push((digest, bytes));
    }
    let admission = admission.clone();
    let work = move || {
        let context = ContextBuf::from_json(asked.context.to_string().as_bytes())
            .map_err(|error| Refusal::invalid("/context", error.to_string()))?;
        let evaluator = Evaluator::new(Arc::unwrap_or_clone(compiled).ruleset)
            .map_err(|error| Refusal::Internal(error.to_string()))?;
        let host = Loaded { lists, policies: modules, admission, told: RefCell::default() };
        let input = Input { context: context.view(), now_ms: asked.now_ms, host: &host };
        let mut scratch = Scratch::default();
        let chosen = match &asked.flag {
            Some(key) => vec![evaluator.flag(key).ok_or(Refusal::NotFound("flag"))?],
            None => evaluator.flags().collect(),
        };
        let mut results = Vec::with_capacity(chosen.len());
        for flag in chosen {
            let (outcome, trace) = evaluator.explain(flag, &input, &mut scratch);
            let mut body = Vec::new();
            answer::write_outcome(&evaluator, flag, &outcome, &mut body);
            let mut result: Value = serde_json::from_slice(&body)
                .map_err(|error| Refusal::Internal(error.to_string()))?;
            result["trace"] = json!(trace);
            results.push(result);
        }
        Ok(results)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::Internal(format!("evaluating failed: {error}")))?
}
