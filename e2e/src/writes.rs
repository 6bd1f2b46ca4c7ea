//! A load of numbered writes, and what an edge says meanwhile: it must never go back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::http::Ofrep;

/// Serves the number of the write that made it.
pub fn flag(n: u64) -> Value {
    json!({ "key": "n", "type": "integer", "variants": { "n": n } })
}

/// Asks the edge all the time and keeps what it said.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    seen: tokio::task::JoinHandle<Vec<i64>>,
}

impl Watcher {
    pub fn of(ofrep: &Ofrep) -> Watcher {
        let (stop, ofrep) = (Arc::new(AtomicBool::new(false)), ofrep.clone());
        let stopped = stop.clone();
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let answer = ofrep.one("n", &json!({})).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
                seen.push(answer.json()["value"].as_i64().expect("a value"));
            }
            seen
        });
        Watcher { stop, seen }
    }

    pub async fn finish(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.await.expect("every answer was one")
    }
}
