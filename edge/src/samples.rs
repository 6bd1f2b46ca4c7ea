//! Takes some of the contexts that are evaluated, redacted, for previews of changes in control.
//!
//! Off, this costs one load of a pointer per request. On, a bounded number a minute is taken, evenly
//! spread; of each, only what the order names leaves this process, and the targeting key as a
//! pseudonym that is the same on every edge. An order ends by itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rules::sample::{
    EnvironmentSamples, PER_MINUTE_MAX, REPORT_SAMPLES_MAX, SAMPLE_BYTES_MAX, Sample, SampleOrder,
    SampleReport,
};
use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, FeedError, jittered};
use crate::state::State;
use crate::sync::{chain, lock};

const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a control from before there were samples.
const PAUSE_UNKNOWN: Duration = Duration::from_secs(600);

/// Of one environment.
#[derive(Debug, Default)]
pub struct Sampler {
    order: ArcSwapOption<SampleOrder>,
    /// Nothing is taken before this time, so that the minute's share is spread over it.
    next_ms: AtomicI64,
    /// The newest ones: who comes late pushes out who came early.
    taken: Mutex<VecDeque<Sample>>,
}

impl Sampler {
    /// `body` is a request's body whose context was found to be one.
    pub fn offer(&self, body: &[u8], now_ms: i64, secret: &[u8; 32]) {
        let order = self.order.load();
        let Some(order) = order.as_ref() else { return };
        if now_ms > order.until_ms {
            return;
        }
        let next = self.next_ms.load(Ordering::Relaxed);
        let pause_ms = 60_000 / i64::from(order.per_minute.clamp(1, PER_MINUTE_MAX));
        let won = now_ms >= next
            && self
                .next_ms
                .compare_exchange(next, now_ms + pause_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !won {
            return;
        }
        let Some(context) = redacted(body, &order.keep, secret) else { return };
        let mut taken = lock(&self.taken);
        if taken.len() == REPORT_SAMPLES_MAX {
            taken.pop_front();
        }
        taken.push_back(Sample { at_ms: now_ms, context });
    }

    fn follow(&self, order: Option<SampleOrder>) {
        if order.is_none() {
            lock(&self.taken).clear();
        }
        if self.order.load().as_deref() != order.as_ref() {
            self.next_ms.store(0, Ordering::Relaxed);
            self.order.store(order.map(Arc::new));
        }
    }
}

/// What may leave this process of a context; None if it is too long even so.
fn redacted(body: &[u8], keep: &[String], secret: &[u8; 32]) -> Option<Value> {
    let mut body: Value = serde_json::from_slice(body).ok()?;
    let Value::Object(context) = body.get_mut("context")?.take() else { return None };
    let mut kept = Map::new();
    if let Some(Value::String(key)) = context.get("targetingKey")
        && !keep.iter().any(|path| path == "targetingKey")
    {
        kept.insert("targetingKey".to_owned(), Value::String(pseudonym(key, secret)));
    }
    let context = Value::Object(context);
    for path in keep {
        let found = path.split('.').try_fold(&context, |at, part| at.get(part));
        if let Some(found) = found {
            put(&mut kept, path, found.clone());
        }
    }
    let kept = Value::Object(kept);
    (kept.to_string().len() <= SAMPLE_BYTES_MAX).then_some(kept)
}

fn put(into: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(into.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            let below = into.entry(first).or_insert_with(|| Value::Object(Map::new()));
            // A path inside of one that is kept whole is there already.
            if let Value::Object(below) = below {
                put(below, rest, value);
            }
        }
    }
}

/// The same for the same key, and of no use to whoever lacks the environment's secret.
fn pseudonym(key: &str, secret: &[u8; 32]) -> String {
    let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(b"sample\0");
    mac.update(key.as_bytes());
    let digest = mac.finalize().into_bytes();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub struct Courier {
    pub edge_id: String,
    pub every: Duration,
    pub feed: Arc<dyn Feed>,
    pub state: Arc<State>,
}

impl Courier {
    /// Until told to stop. What was taken and not brought by then is lost, which is no harm.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = self.every;
        loop {
            let until = Instant::now() + jittered(pause);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => {}
            }
            let report = self.collect();
            let asked = tokio::time::timeout(SEND_TIMEOUT, self.feed.samples(report)).await;
            pause = match asked {
                Ok(Ok(orders)) => {
                    for served in self.state.table().environments() {
                        let name = &served.tenant.name;
                        let of = |order: &&SampleOrder| {
                            order.namespace == name.0 && order.environment == name.1
                        };
                        served.tenant.sampler.follow(orders.orders.iter().find(of).cloned());
                    }
                    self.every
                }
                Ok(Err(FeedError::Status { status: 404 | 405 })) => PAUSE_UNKNOWN,
                // An order goes on until its end, or until control says something else.
                Ok(Err(error)) => {
                    tracing::debug!(reason = chain(&error), "samples were not taken");
                    self.every
                }
                Err(_) => self.every,
            };
        }
    }

    fn collect(&self) -> SampleReport {
        let mut room = REPORT_SAMPLES_MAX;
        let mut environments = Vec::new();
        for served in self.state.table().environments() {
            let mut taken = lock(&served.tenant.sampler.taken);
            let count = taken.len().min(room);
            if count == 0 {
                continue;
            }
            room -= count;
            environments.push(EnvironmentSamples {
                namespace: served.tenant.name.0.clone(),
                environment: served.tenant.name.1.clone(),
                samples: taken.drain(..count).collect(),
            });
        }
        SampleReport { edge: self.edge_id.clone(), environments }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(per_minute: u32, keep: &[&str]) -> SampleOrder {
        SampleOrder {
            namespace: "ours".to_owned(),
            environment: "production".to_owned(),
            per_minute,
            keep: keep.iter().map(|path| (*path).to_owned()).collect(),
            until_ms: 120_000,
        }
    }

    fn body(context: Value) -> Vec<u8> {
        json!({ "context": context }).to_string().into_bytes()
    }

    #[test]
    fn only_what_is_named_leaves_and_the_targeting_key_as_a_pseudonym() {
        let keep = ["country".to_owned(), "app.version".to_owned(), "none".to_owned()];
        let of = |key: &str, secret: u8| {
            let context = json!({ "targetingKey": key, "country": "DE", "email": "a@b.example",
                "app": { "version": "1.2", "token": "s3cret" } });
            redacted(&body(context), &keep, &[secret; 32]).unwrap()
        };
        let one = of("anna", 1);
        let key = one["targetingKey"].as_str().unwrap().to_owned();
        let shown = json!({ "targetingKey": key, "country": "DE", "app": { "version": "1.2" } });
        assert_eq!(one, shown);
        assert_eq!(key.len(), 16);
        assert_eq!(of("anna", 1)["targetingKey"], key);
        assert_ne!(of("bert", 1)["targetingKey"], key);
        assert_ne!(of("anna", 2)["targetingKey"], key);
        let whole = redacted(
            &body(json!({ "targetingKey": "anna" })),
            &["targetingKey".to_owned()],
            &[1; 32],
        );
        assert_eq!(whole.unwrap(), json!({ "targetingKey": "anna" }));
        let long = json!({ "country": "x".repeat(SAMPLE_BYTES_MAX) });
        assert_eq!(redacted(&body(long), &keep, &[1; 32]), None);
        assert_eq!(redacted(b"{}", &keep, &[1; 32]), None);
    }

    #[test]
    fn it_is_off_until_it_is_ordered_and_takes_its_share_and_ends() {
        let sampler = Sampler::default();
        let offer = |from: i64, to: i64| {
            for now_ms in from..to {
                sampler.offer(&body(json!({ "country": "DE" })), now_ms, &[1; 32]);
            }
            lock(&sampler.taken).drain(..).count()
        };
        assert_eq!(offer(0, 1_000), 0);
        sampler.follow(Some(order(60, &["country"])));
        assert_eq!(offer(0, 10_000), 10);
        assert_eq!(offer(119_000, 130_000), 2);
        sampler.follow(None);
        assert_eq!(offer(0, 1_000), 0);
    }

    #[test]
    fn the_newest_push_out_the_oldest() {
        let sampler = Sampler::default();
        sampler.follow(Some(order(600, &["n"])));
        let count = REPORT_SAMPLES_MAX as i64 + 5;
        for n in 0..count {
            sampler.offer(&body(json!({ "n": n })), n * 100, &[1; 32]);
        }
        let taken = lock(&sampler.taken);
        assert_eq!(taken.len(), REPORT_SAMPLES_MAX);
        assert_eq!(taken.back().unwrap().context["n"], count - 1);
    }
}
