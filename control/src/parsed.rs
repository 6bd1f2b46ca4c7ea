//! What this process has read, parsed and compiled before, so that a change of one flag costs parsing
//! one flag, what a write has compiled to be checked is not compiled again to be published, and a
//! snapshot that was just stored is not read back for each edge that asks for it.
//!
//! Nothing here can be wrong, only missing. A parsed flag is found by its row's id, versions and
//! times, which a committed change never leaves as they were, and comes in from committed reads
//! only; a compiled ruleset is found by comparing the whole state that it was compiled from; a blob
//! by its digest.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cel::Trees;
use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use rules::blob::Digest;
use rules::compile::{self, Compiled, EnvironmentState, FlagState, Problem};

/// Flags of all environments together: some 5 kB each.
const FLAGS_KEPT_MAX: u64 = 50_000;
/// Of all environments' last states, which share their flags with what was parsed.
const COMPILED_FLAGS_KEPT_MAX: u64 = 50_000;
const BLOB_BYTES_KEPT_MAX: u64 = 64 << 20;

/// An environment's state, whose flags others have too.
pub type State = EnvironmentState<Arc<FlagState>>;

/// Versions and times of a flag's definition and of its configuration.
pub type Stamp = (i64, i64, i64, i64);
pub type Flags = HashMap<String, (Stamp, Arc<FlagState>)>;

#[derive(Debug)]
pub struct Parsed {
    /// By environment.
    flags: Cache<String, Arc<Flags>>,
    /// Of each environment what was compiled last.
    compiled: Cache<String, Arc<(State, Arc<Compiled>)>>,
    blobs: Cache<Digest, Bytes>,
    pub cel: Trees,
}

impl Default for Parsed {
    fn default() -> Parsed {
        let weight = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).max(1);
        // Whatever came last is likely asked for next; how often the rest was does not matter.
        let lru = EvictionPolicy::lru;
        Parsed {
            flags: Cache::builder()
                .max_capacity(FLAGS_KEPT_MAX)
                .weigher(move |_, flags: &Arc<Flags>| weight(flags.len()))
                .eviction_policy(lru())
                .build(),
            compiled: Cache::builder()
                .max_capacity(COMPILED_FLAGS_KEPT_MAX)
                .weigher(move |_, of: &Arc<(State, Arc<Compiled>)>| weight(of.0.flags.len()))
                .eviction_policy(lru())
                .build(),
            blobs: Cache::builder()
                .max_capacity(BLOB_BYTES_KEPT_MAX)
                .weigher(move |_, bytes: &Bytes| weight(bytes.len()))
                .eviction_policy(lru())
                .build(),
            cel: Trees::default(),
        }
    }
}

impl Parsed {
    pub fn flags(&self, environment_id: &str) -> Arc<Flags> {
        self.flags.get(environment_id).unwrap_or_default()
    }

    /// What a committed read has seen.
    pub fn keep(&self, environment_id: &str, flags: Flags) {
        self.flags.insert(environment_id.to_owned(), Arc::new(flags));
    }

    /// As `compile::compile`, CEL included.
    pub fn compile(
        &self,
        environment_id: &str,
        state: &State,
    ) -> Result<Arc<Compiled>, Vec<Problem>> {
        if let Some(last) = self.compiled.get(environment_id)
            && is_same(&last.0, state)
        {
            return Ok(last.1.clone());
        }
        let parse = |source: &str| self.cel.parse(source);
        let compiled = Arc::new(compile::compile_with(state, &parse)?);
        let last = Arc::new((state.clone(), compiled.clone()));
        self.compiled.insert(environment_id.to_owned(), last);
        Ok(compiled)
    }

    pub fn blob(&self, digest: Digest) -> Option<Bytes> {
        self.blobs.get(&digest)
    }

    pub fn keep_blob(&self, digest: Digest, bytes: Bytes) {
        self.blobs.insert(digest, bytes);
    }
}

fn is_same(one: &State, other: &State) -> bool {
    let same_flags = |(one, other): (&Arc<FlagState>, &Arc<FlagState>)| {
        // Mostly they are the very same.
        Arc::ptr_eq(one, other) || one == other
    };
    one.flags.len() == other.flags.len()
        && one.flags.iter().zip(&other.flags).all(same_flags)
        && one.segments == other.segments
        && one.policies == other.policies
        && one.metadata == other.metadata
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flag(key: &str, on: bool) -> Arc<FlagState> {
        let definition = json!({ "key": key, "type": "boolean",
            "variants": { "on": true, "off": false } });
        let variant = if on { "on" } else { "off" };
        let config = json!({ "enabled": true, "fallthrough": { "variant": variant } });
        Arc::new(FlagState {
            definition: serde_json::from_value(definition).unwrap(),
            config: serde_json::from_value(config).unwrap(),
        })
    }

    fn state(flags: &[Arc<FlagState>]) -> State {
        State { flags: flags.to_vec(), ..State::default() }
    }

    #[test]
    fn an_equal_state_is_compiled_once_and_another_is_not_taken_for_it() {
        let parsed = Parsed::default();
        let first = parsed.compile("e", &state(&[flag("a", true), flag("b", true)])).unwrap();
        let equal = parsed.compile("e", &state(&[flag("a", true), flag("b", true)])).unwrap();
        assert!(Arc::ptr_eq(&first, &equal));
        let others = [
            state(&[flag("a", true), flag("b", false)]),
            state(&[flag("a", true)]),
            State {
                policies: vec![rules::compile::PolicyState {
                    name: "guard".to_owned(),
                    digest: Digest([1; 32]),
                    attributes: Vec::new(),
                }],
                ..state(&[flag("a", true), flag("b", true)])
            },
            State {
                metadata: serde_json::from_value(json!({ "team": "shop" })).unwrap(),
                ..state(&[flag("a", true), flag("b", true)])
            },
        ];
        for other in others {
            let compiled = parsed.compile("e", &other).unwrap();
            assert_eq!(*compiled, compile::compile(&other).unwrap());
            assert!(!Arc::ptr_eq(&compiled, &first));
        }
    }

    #[test]
    fn no_more_is_kept_than_the_bounds_say() {
        let parsed = Parsed::default();
        let flags = |count: u64| -> Flags {
            let one = flag("a", true);
            (0..count).map(|n| (n.to_string(), ((1, 1, 1, 1), one.clone()))).collect()
        };
        for environment in ["a", "b", "c"] {
            parsed.keep(environment, flags(FLAGS_KEPT_MAX / 2));
            parsed.flags.run_pending_tasks();
        }
        assert!(parsed.flags("a").is_empty() && !parsed.flags("c").is_empty());
        parsed.keep("d", flags(FLAGS_KEPT_MAX + 1));
        parsed.flags.run_pending_tasks();
        assert!(parsed.flags("d").is_empty());
    }
}
