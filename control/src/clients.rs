//! The client snapshot: what browsers get of an environment, beside what edges get.
//!
//! It is published with the snapshot, in the same head. Its own head says when its digest first came,
//! not when it was last published, or browsers would see that flags change which they may not see.
//! What is in it: `rules::compile::client_state`; how it is laid out: `rules::client`.

use std::sync::Arc;

use rules::blob;
use rules::client::{self, ClientHead, ClientManifest};
use rules::compile::{FlagState, client_state, compile_clients_with};
use rules::eval::Evaluator;
use rules::head::{SignedHead, Version};
use rules::model::Clients;

use crate::environments::Loaded;
use crate::parsed::Parsed;
use crate::publisher::Made;

/// What browsers get, proved by the loader that their evaluator has.
pub fn make(parsed: &Parsed, loaded: &Loaded) -> Result<Vec<u8>, String> {
    let state = client_state(&loaded.state);
    // Beside the whole: a change of hidden flags then compiles nothing here.
    let compiled = match parsed.compile(&format!("{}/clients", loaded.environment_id), &state) {
        Ok(compiled) => compiled,
        Err(_) => {
            let parse = |source: &str| parsed.cel.parse(source);
            let lenient = compile_clients_with(&state, &parse);
            Arc::new(lenient.map_err(|problems| {
                let first = problems.first().map_or("", |problem| problem.message.as_str());
                format!("the browsers' part does not compile: {first}")
            })?)
        }
    };
    if !compiled.lists.is_empty() || !compiled.policies.is_empty() {
        return Err("the browsers' part names an id list or a policy".to_owned());
    }
    let is_at_edge = |flag: &Arc<FlagState>| {
        flag.definition.clients == Clients::Edge && !flag.definition.archived
    };
    let manifest = ClientManifest {
        namespace: loaded.namespace.clone(),
        environment: loaded.environment.clone(),
        tier: compiled.ruleset.tier().name().to_owned(),
        flags: u32::try_from(state.flags.len()).unwrap_or(u32::MAX),
        edge: loaded.state.flags.iter().any(is_at_edge),
        boundaries_ms: compiled.boundaries_ms.clone(),
    };
    let ruleset = blob::encode_ruleset(&compiled.ruleset);
    let bytes = client::encode_blob(&manifest, &ruleset).map_err(|error| error.to_string())?;
    let (_, framed) = client::decode_blob(&bytes).map_err(|error| error.to_string())?;
    Evaluator::load(framed).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Under the version that its digest came with. A new generation begins anew: what a browser has from
/// before a restore may be newer than what was restored.
pub fn head(
    loaded: &Loaded,
    version: Version,
    made: &Made,
    published: Option<&SignedHead>,
    now_ms: i64,
) -> ClientHead {
    let published = published.and_then(SignedHead::claims).and_then(|head| head.client);
    let published = published.and_then(|client| client.claims());
    let stays = published.filter(|head| {
        head.digest == made.client_digest && head.version.generation == version.generation
    });
    stays.unwrap_or_else(|| ClientHead {
        namespace: loaded.namespace.clone(),
        environment: loaded.environment.clone(),
        version,
        digest: made.client_digest,
        bytes: made.client.len() as u64,
        issued_at_ms: now_ms,
    })
}
