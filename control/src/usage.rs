//! How often which variant of which flag was used, by the minute for two days and by the hour for a
//! quarter: what edges counted.
//!
//! A report is counted once, however often it comes. Its numbers are believed like the rest of what
//! an edge says, but only for environments that its key may see and flags that there are.

use std::collections::{BTreeMap, HashMap};

use rules::limits::KEYS_MAX;
use rules::usage::{COUNT_MAX, REPORT_ENTRIES_MAX, TRACK_NAME_BYTES_MAX, UsageReport};
use serde_json::{Value, json};

use crate::authorize::{EdgeScope, NamespaceScope};
use crate::environments;
use crate::keys;
use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, now_us, rfc3339};

const MINUTE_US: i64 = 60 * 1_000_000;
const MINUTES_KEPT: i64 = 2 * 24 * 60;
const HOURS_KEPT: i64 = 90 * 24;
/// A report may have waited for so long, or its edge's clock be ahead.
const LATE_MINUTES_MAX: i64 = 26 * 60;
const EARLY_MINUTES_MAX: i64 = 10;
const RUN_AGE_US: i64 = 7 * 24 * 60 * MINUTE_US;
/// Edges that one key may name, as in receipts.
const EDGES_PER_KEY_MAX: i64 = 10_000;
/// Of one entry, which may add up what many browsers told.
const ENTRY_COUNT_MAX: u64 = COUNT_MAX * 1_000;
/// Of one answer.
const BUCKETS_MAX: i64 = 20_000;

/// Changes nothing where the number was taken before; edges send the next one only then.
const TAKE: &str = "INSERT INTO usage_run (edge_key_id, edge, run, sequence, received_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (edge_key_id, edge) DO UPDATE SET run = excluded.run, \
    sequence = excluded.sequence, received_at = excluded.received_at \
    WHERE usage_run.run <> excluded.run OR usage_run.sequence < excluded.sequence";
const EDGES: &str = "SELECT COUNT(*) FROM usage_run WHERE edge_key_id = $1 AND edge <> $2";
const FORGET_RUNS: &str = "DELETE FROM usage_run WHERE received_at < $1";
const FORGET_MINUTES: &str = "DELETE FROM usage_minute WHERE minute < $1";
const FORGET_HOURS: &str = "DELETE FROM usage_hour WHERE hour < $1";
const FORGET_TRACKS: &str = "DELETE FROM track_hour WHERE hour < $1";
const ENVIRONMENT: &str = "SELECT e.id, e.namespace_id FROM environment e \
    JOIN namespace n ON n.id = e.namespace_id WHERE n.key = $1 AND e.key = $2";
const FLAG: &str = "SELECT id FROM flag WHERE namespace_id = $1 AND key = $2";
const ADD_MINUTE: &str = "INSERT INTO usage_minute (environment_id, flag, variant, source, minute, \
    count) VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (environment_id, flag, minute, variant, source) DO UPDATE SET \
    count = usage_minute.count + excluded.count";
const ADD_HOUR: &str = "INSERT INTO usage_hour (environment_id, flag, variant, source, hour, count) \
    VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (environment_id, flag, hour, variant, source) DO UPDATE SET \
    count = usage_hour.count + excluded.count";
const SEEN: &str = "INSERT INTO usage_flag (environment_id, flag, last_minute) VALUES ($1, $2, $3) \
    ON CONFLICT (environment_id, flag) DO UPDATE SET last_minute = excluded.last_minute \
    WHERE usage_flag.last_minute < excluded.last_minute";
const ADD_TRACK: &str = "INSERT INTO track_hour (environment_id, name, hour, count, sum_milli) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (environment_id, name, hour) DO UPDATE SET \
    count = track_hour.count + excluded.count, \
    sum_milli = track_hour.sum_milli + excluded.sum_milli";
const KEY_USED: &str = "INSERT INTO api_key_use (api_key_id, last_minute) \
    SELECT id, $3 FROM api_key WHERE id = $1 AND environment_id = $2 \
    ON CONFLICT (api_key_id) DO UPDATE SET last_minute = excluded.last_minute \
    WHERE api_key_use.last_minute < excluded.last_minute";
const LAST: &str = "SELECT last_minute FROM usage_flag WHERE environment_id = $1 AND flag = $2";
const MINUTES: &str = "SELECT minute, variant, source, count FROM usage_minute \
    WHERE environment_id = $1 AND flag = $2 AND minute >= $3 AND minute < $4 \
    ORDER BY minute, variant, source LIMIT $5";
const HOURS: &str = "SELECT hour, variant, source, count FROM usage_hour \
    WHERE environment_id = $1 AND flag = $2 AND hour >= $3 AND hour < $4 \
    ORDER BY hour, variant, source LIMIT $5";

/// False if it was counted before.
pub async fn receive(
    tx: &mut Connection,
    scope: &EdgeScope,
    report: &UsageReport,
) -> Result<bool, Refusal> {
    if report.edge.is_empty() || report.edge.len() > 128 {
        return Err(Refusal::invalid("/edge", "an edge's id is 1 to 128 bytes"));
    }
    let parts = report.environments.iter();
    let entries: usize = parts.map(|of| of.uses.len() + of.tracks.len()).sum();
    if entries > 2 * REPORT_ENTRIES_MAX {
        let max = 2 * REPORT_ENTRIES_MAX;
        return Err(Refusal::invalid("/environments", format!("the limit is {max} entries")));
    }
    let now = now_us();
    let this_minute = now / MINUTE_US;
    for (forget, before) in [
        (FORGET_RUNS, now - RUN_AGE_US),
        (FORGET_MINUTES, this_minute - MINUTES_KEPT),
        (FORGET_HOURS, this_minute / 60 - HOURS_KEPT),
        (FORGET_TRACKS, this_minute / 60 - HOURS_KEPT),
    ] {
        query(forget).bind(before).execute(&mut *tx).await?;
    }
    let others = query_scalar(EDGES).bind(scope.key_id()).bind(&report.edge);
    let others: i64 = others.fetch_one(&mut *tx).await?;
    if others >= EDGES_PER_KEY_MAX {
        return Err(Refusal::TooMany { what: "edges", max: EDGES_PER_KEY_MAX as usize });
    }
    let taken = query(TAKE)
        .bind(scope.key_id())
        .bind(&report.edge)
        .bind(report.run)
        .bind(signed(report.sequence))
        .bind(now)
        .execute(&mut *tx)
        .await?;
    if taken == 0 && !seam::planted("usage-counted-again") {
        return Ok(false);
    }
    keys::edge_used(tx, scope.key_id()).await?;
    let counts = admit(tx, scope, report, this_minute).await?;
    counts.write(tx).await?;
    Ok(true)
}

/// What of a report is of environments, flags and times that it may speak of.
async fn admit(
    tx: &mut Connection,
    scope: &EdgeScope,
    report: &UsageReport,
    this_minute: i64,
) -> Result<Counts, Refusal> {
    let minutes = this_minute - LATE_MINUTES_MAX..=this_minute + EARLY_MINUTES_MAX;
    let mut counts = Counts::default();
    let mut flags: HashMap<(String, &str), bool> = HashMap::new();
    for of in report.environments.iter().filter(|of| scope.sees(&of.namespace)) {
        let found = query_as(ENVIRONMENT).bind(&of.namespace).bind(&of.environment);
        let found: Option<(String, String)> = found.fetch_optional(&mut *tx).await?;
        let Some((environment, namespace)) = found else { continue };
        for used in of.uses.iter().filter(|used| minutes.contains(&used.minute)) {
            let at = (namespace.clone(), used.flag.as_str());
            let known = match flags.get(&at) {
                Some(known) => *known,
                None => {
                    let flag = query_scalar(FLAG).bind(&namespace).bind(&used.flag);
                    let flag: Option<String> = flag.fetch_optional(&mut *tx).await?;
                    flags.insert(at, flag.is_some());
                    flag.is_some()
                }
            };
            let variant = used.variant.as_deref().unwrap_or_default();
            if known && variant.len() <= rules::limits::KEY_BYTES_MAX {
                let by = signed(used.count.min(ENTRY_COUNT_MAX));
                let what = (used.flag.as_str(), variant, used.source.name());
                counts.add(&environment, what, used.minute, by);
            }
        }
        for used in of.keys.iter().take(KEYS_MAX).filter(|used| minutes.contains(&used.minute)) {
            let key = (used.id.clone(), environment.clone());
            let minute = used.minute.min(this_minute);
            let last = counts.keys.entry(key).or_insert(minute);
            *last = minute.max(*last);
        }
        for track in of.tracks.iter().filter(|track| minutes.contains(&track.minute)) {
            if (1..=TRACK_NAME_BYTES_MAX).contains(&track.name.len()) {
                let key = (environment.clone(), track.name.clone(), track.minute / 60);
                let (count, sum) = counts.tracks.entry(key).or_default();
                *count += signed(track.count.min(ENTRY_COUNT_MAX));
                // Bounded, so that no number of reports overflows the column.
                let milli = (track.sum * 1_000.0).round().clamp(-1e12, 1e12);
                *sum += milli as i64;
            }
        }
    }
    Ok(counts)
}

/// Environment, flag, variant, source, minute or hour.
type Place = (String, String, String, &'static str, i64);

/// Summed before it is written, and written in one order, so that reports never wait for each other
/// in a circle.
#[derive(Default)]
struct Counts {
    minutes: BTreeMap<Place, i64>,
    hours: BTreeMap<Place, i64>,
    seen: BTreeMap<(String, String), i64>,
    tracks: BTreeMap<(String, String, i64), (i64, i64)>,
    /// By key and environment.
    keys: BTreeMap<(String, String), i64>,
}

impl Counts {
    fn add(
        &mut self,
        environment: &str,
        (flag, variant, source): (&str, &str, &'static str),
        minute: i64,
        by: i64,
    ) {
        let at =
            |time: i64| (environment.to_owned(), flag.to_owned(), variant.to_owned(), source, time);
        *self.minutes.entry(at(minute)).or_default() += by;
        *self.hours.entry(at(minute / 60)).or_default() += by;
        let seen = self.seen.entry((environment.to_owned(), flag.to_owned())).or_insert(minute);
        *seen = minute.max(*seen);
    }

    async fn write(&self, tx: &mut Connection) -> Result<(), Refusal> {
        for (statement, all) in [(ADD_MINUTE, &self.minutes), (ADD_HOUR, &self.hours)] {
            for ((environment, flag, variant, source, time), count) in all {
                let add = query(statement).bind(environment).bind(flag).bind(variant);
                add.bind(*source).bind(*time).bind(*count).execute(&mut *tx).await?;
            }
        }
        for ((environment, flag), minute) in &self.seen {
            query(SEEN).bind(environment).bind(flag).bind(*minute).execute(&mut *tx).await?;
        }
        for ((key, environment), minute) in &self.keys {
            let used = query(KEY_USED).bind(key).bind(environment).bind(*minute);
            used.execute(&mut *tx).await?;
        }
        for ((environment, name, hour), (count, sum)) in &self.tracks {
            let add = query(ADD_TRACK).bind(environment).bind(name).bind(*hour);
            add.bind(*count).bind(*sum).execute(&mut *tx).await?;
        }
        Ok(())
    }
}

/// How long a bucket of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    Minute,
    Hour,
}

/// One flag's in an environment: the buckets that begin from `from` on and before `to` (microseconds).
pub async fn of_flag(
    read: &mut Connection,
    scope: &NamespaceScope,
    (environment, flag): (&str, &str),
    (from, to): (i64, i64),
    bucket: Bucket,
) -> Result<Value, Refusal> {
    let of = environments::get(read, scope, environment).await?;
    let known = query_scalar(FLAG).bind(scope.id()).bind(flag);
    let known: Option<String> = known.fetch_optional(&mut *read).await?;
    known.ok_or(Refusal::NotFound("flag"))?;
    let last = query_scalar(LAST).bind(&of.id).bind(flag);
    let last: Option<i64> = last.fetch_optional(&mut *read).await?;
    let (statement, unit, name) = match bucket {
        Bucket::Minute => (MINUTES, MINUTE_US, "minute"),
        Bucket::Hour => (HOURS, 60 * MINUTE_US, "hour"),
    };
    let bucket_from = |at: i64| at.saturating_add(unit - 1).div_euclid(unit);
    // The bucket that `from` is in, too: whoever asks for a day means the hour that it began in.
    let (first, end) = (from.div_euclid(unit), bucket_from(to));
    let rows: Vec<(i64, String, String, i64)> = query_as(statement)
        .bind(&of.id)
        .bind(flag)
        .bind(first)
        .bind(end)
        .bind(BUCKETS_MAX + 1)
        .fetch_all(&mut *read)
        .await?;
    if rows.len() > BUCKETS_MAX as usize {
        let message = format!("more than {BUCKETS_MAX} buckets; ask for less time, or for hours");
        return Err(Refusal::invalid("/from", message));
    }
    let variant = |variant: &str| (!variant.is_empty()).then(|| variant.to_owned());
    let mut totals: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (_, of, source, count) in &rows {
        *totals.entry((of, source)).or_default() += count;
    }
    let totals: Vec<Value> = totals
        .into_iter()
        .map(|((of, source), count)| {
            json!({ "variant": variant(of), "source": source, "count": count })
        })
        .collect();
    let buckets: Vec<Value> = rows
        .iter()
        .map(|(at, of, source, count)| {
            json!({ "at": rfc3339(at * unit), "variant": variant(of), "source": source,
                "count": count })
        })
        .collect();
    Ok(json!({ "flag": flag, "environment": environment, "bucket": name, "from": rfc3339(from),
        "to": rfc3339(to), "lastEvaluatedAt": last.map(|minute| rfc3339(minute * MINUTE_US)),
        "totals": totals, "buckets": buckets }))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
