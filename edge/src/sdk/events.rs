//! What browsers tell: how often they used which variant, and what their app tracked. Sent with
//! `sendBeacon` when a page goes, so the key is in the body, and nobody reads the answer.
//!
//! Anybody can send this, for browser keys are public. So only flags and variants count that the key
//! may see, minutes of the last day, and no more at once than a page can have used.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use rules::model::Clients;
use rules::usage::{
    COUNT_MAX, ClientEvents, ClientTrack, ClientUse, EVENTS_BYTES_MAX, EVENTS_MAX,
    TRACK_NAME_BYTES_MAX,
};

use super::only;
use crate::auth;
use crate::ofrep::{self, Failure};
use crate::serve::{Body, Shared};
use crate::state::Served;
use crate::usage::source_of;

const LATE_MINUTES_MAX: i64 = 24 * 60;
const EARLY_MINUTES_MAX: i64 = 5;

/// What browsers may name: variants by flag. Made of a snapshot when the first of them tells something.
#[derive(Debug, Default)]
pub struct Catalog {
    flags: HashMap<Box<str>, Box<[Box<str>]>>,
}

impl Catalog {
    fn of(ruleset: &[u8]) -> Catalog {
        // It was loaded before it was served.
        let Ok(rules) = rules::blob::decode_ruleset(ruleset) else { return Catalog::default() };
        let seen = rules.flags.iter().filter(|flag| flag.clients != Clients::None);
        let flags = seen.map(|flag| {
            let start = flag.variants.start as usize;
            let variants = rules.variants.iter().skip(start).take(flag.variants.len as usize);
            let variants = variants.map(|variant| Box::from(rules.str(variant.key))).collect();
            (Box::from(rules.str(flag.key)), variants)
        });
        Catalog { flags: flags.collect() }
    }

    fn has(&self, flag: &str, variant: Option<&str>) -> bool {
        let Some(variants) = self.flags.get(flag) else { return false };
        variant.is_none_or(|variant| variants.iter().any(|known| **known == *variant))
    }
}

pub async fn take(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    only(&Method::POST, &request)?;
    let (parts, body) = request.into_parts();
    let body = ofrep::read_at_most(EVENTS_BYTES_MAX, body, shared.timeouts.body).await?;
    let events: ClientEvents = serde_json::from_slice(&body).map_err(|error| {
        Failure::bad("PARSE_ERROR", format!("the body is not what it should be: {error}"))
    })?;
    if events.usage.len() + events.tracks.len() > EVENTS_MAX {
        return Err(Failure::bad("PARSE_ERROR", format!("the limit is {EVENTS_MAX} entries")));
    }
    let grant = {
        let table = shared.state.table();
        let found =
            auth::check_text(&table, events.key.as_bytes(), &parts.headers, crate::now_ms());
        found.cloned().map_err(|denied| ofrep::denied_as(shared, &table, denied))?
    };
    ofrep::within_rate(&grant)?;
    let (served, minute) = (grant.served.clone(), crate::now_ms() / 60_000);
    with_catalog(&served).await;
    let catalog = served.catalog.get_or_init(|| Catalog::of(&served.ruleset));
    let source = source_of(grant.key.record.kind);
    let (usage, mut accepted) = (&served.tenant.usage, 0);
    for ClientUse { flag, variant, minute: at, count } in &events.usage {
        let variant = variant.as_deref().filter(|variant| !variant.is_empty());
        if is_countable(minute, *at, *count) && catalog.has(flag, variant) {
            usage.count(flag, variant, source, *at, *count);
            accepted += 1;
        }
    }
    for ClientTrack { name, minute: at, count, sum } in &events.tracks {
        let fits = (1..=TRACK_NAME_BYTES_MAX).contains(&name.len());
        let sum = sum.unwrap_or(0.0);
        if fits && sum.is_finite() && is_countable(minute, *at, *count) {
            accepted += usize::from(usage.track(name, *at, *count, sum));
        }
    }
    let refused = events.usage.len() + events.tracks.len() - accepted;
    let body = format!("{{\"accepted\":{accepted},\"refused\":{refused}}}");
    let mut answer = Response::new(Body::full(Bytes::from(body)));
    *answer.status_mut() = StatusCode::ACCEPTED;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Decoding a snapshot takes milliseconds, which would hold up requests.
async fn with_catalog(served: &std::sync::Arc<Served>) {
    if served.catalog.get().is_none() {
        let of = served.clone();
        // After a panic it is tried again in place.
        let _ = seam::blocking(move || {
            of.catalog.get_or_init(|| Catalog::of(&of.ruleset));
        })
        .await;
    }
}

fn is_countable(now: i64, minute: i64, count: u64) -> bool {
    (now - LATE_MINUTES_MAX..=now + EARLY_MINUTES_MAX).contains(&minute)
        && (1..=COUNT_MAX).contains(&count)
}
