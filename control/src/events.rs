//! What others are told of a change: one shape for webhooks, the event stream and the change stream.
//!
//! An event is a row of the audit, said in short. It names what was changed and by whom, and says
//! nothing of values: a receiver that may know them asks for them.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::anchors::SignedAnchor;
use crate::audit::{Row, hex};
use crate::store::rfc3339;

/// Keys and names are cut to this, so that a body stays below 20 kB.
const TEXT_BYTES_MAX: usize = 1024;

/// A change, as others are told of it. A contract; fields are only added.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The action: flag.create, config.set …; of webhooks also audit.anchor and webhook.test.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339; when it was done.
    pub timestamp: String,
    #[schema(value_type = Object)]
    pub data: Value,
}

pub fn of_row(namespace: &str, row: &Row) -> Event {
    let data = json!({
        "namespace": namespace,
        "sequence": row.sequence,
        "action": row.action,
        "target": cut(&row.target),
        "environment": row.environment.as_deref().map(cut),
        "actor": { "kind": row.actor_kind, "id": row.actor_id, "name": cut(&row.actor) },
        "changeSet": row.change_set.as_deref().map(cut),
        "hash": hex(&row.hash),
    });
    Event { kind: row.action.clone(), timestamp: rfc3339(row.at), data }
}

pub fn of_anchor(namespace: &str, signed: &SignedAnchor) -> Event {
    let claims = signed.claims();
    let at = claims.as_ref().map_or(0, |claims| claims.at);
    let data = json!({
        "namespace": namespace,
        "sequence": claims.map(|claims| claims.sequence),
        "anchor": signed.anchor,
        "keyId": signed.key_id,
        "signature": signed.signature,
    });
    Event { kind: "audit.anchor".to_owned(), timestamp: rfc3339(at), data }
}

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Whether somebody who asked for these actions (`flag.create`, `flag.*`; none: all) and these
/// environments (none: all, and what is in none) is told.
pub fn is_wanted(
    actions: &[String],
    environments: &[String],
    kind: &str,
    of: Option<&str>,
) -> bool {
    let action = actions.is_empty()
        || actions.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => kind.starts_with(prefix),
            None => wanted == kind,
        });
    let environment = environments.is_empty()
        || of.is_some_and(|of| environments.iter().any(|wanted| wanted == of));
    action && environment
}
