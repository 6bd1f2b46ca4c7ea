//! Staged rollouts: a new snapshot comes to one edge first, then to a share, then to all.
//!
//! One signed head serves every edge: it names the new snapshot, the one before, and how far the
//! new one has come; an edge knows from its own name whether it is its turn (`rules::head::place`).
//! A stage ends when its time is over and every edge in it reports the new version. An edge that
//! refuses the snapshot, or was brought down by it twice, halts the rollout, and so does one that
//! says nothing. Halted it stays until the next write, which begins anew at the first stage, or until
//! an operator goes on. The edges that it has not come to keep the last snapshot that came to all.
//!
//! The state is in the database, moved by the control that leads and fenced, so another leader goes
//! on where this one stopped. The decision is `decide`, from state alone. Next: `publisher.rs`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rules::blob::Digest;
use rules::head::{Previous, Rejection, STAGE_ALL, SignedHead, Version, place};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::audit::Entry;
use crate::authorize::NamespaceScope;
use crate::change::{Change, Touches};
use crate::environments::{self, Loaded};
use crate::fleet::HEARD_US;
use crate::publisher::{PublishError, Publisher};
use crate::refusal::{Refusal, stored, written};
use crate::relay::jittered;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, now_us, rfc3339};

/// Where several edges are to be expected.
pub const DEFAULT: &str = "one:2s,25%:3s";
/// An edge asks for news at least every 45 s.
const PATIENCE_US: i64 = 60 * 1_000_000;
/// While something is rolled out, receipts are looked at this often.
const LOOK: Duration = Duration::from_millis(150);
/// Writes that replace one another's rollouts before any came to all: after so many times the
/// schedule's length they go on from the stage that was reached, or the last edges would starve.
const STARVED_AFTER: i64 = 3;
const STEPS_MAX: usize = 16;
const STEP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const ONE: &str = "SELECT generation, revision, previous, stage, step, state, reason, chain_at, \
    began_at, step_at, ended_at FROM rollout WHERE environment_id = $1";
const UNDER_WAY: &str = "SELECT environment_id FROM rollout WHERE state IN ('running', 'finishing') \
    ORDER BY environment_id";
const COUNTS: &str = "SELECT COUNT(CASE WHEN state IN ('running', 'finishing') THEN 1 END), \
    COUNT(CASE WHEN state = 'halted' THEN 1 END) FROM rollout";
const EDGES: &str = "SELECT edge, generation, revision, rejected, received_at FROM receipt \
    WHERE environment_id = $1 AND received_at >= $2 ORDER BY edge, edge_key_id";
const BEGIN: &str = "INSERT INTO rollout (environment_id, generation, revision, previous, \
    previous_generation, previous_revision, stage, step, state, reason, chain_at, began_at, step_at, \
    ended_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'running', NULL, $9, $10, $11, NULL) \
    ON CONFLICT (environment_id) DO UPDATE SET generation = excluded.generation, \
    revision = excluded.revision, previous = excluded.previous, \
    previous_generation = excluded.previous_generation, \
    previous_revision = excluded.previous_revision, stage = excluded.stage, step = excluded.step, \
    state = excluded.state, reason = excluded.reason, chain_at = excluded.chain_at, \
    began_at = excluded.began_at, step_at = excluded.step_at, ended_at = excluded.ended_at";
/// Only from the state that the decision was made on.
const MOVE: &str = "UPDATE rollout SET stage = $5, step = $6, state = $7, reason = $8, step_at = $9, \
    ended_at = $10 WHERE environment_id = $1 AND generation = $2 AND revision = $3 AND step = $4 \
    AND state IN ('running', 'finishing') AND stage <= $5";
const REPLACED: &str = "UPDATE rollout SET generation = $2, revision = $3, stage = $4, \
    state = 'done', reason = NULL, began_at = $5, step_at = $5, ended_at = $5 \
    WHERE environment_id = $1 AND state <> 'done'";
const ORDER: &str = "UPDATE rollout SET state = $2, reason = $3, step_at = $4, ended_at = $5 \
    WHERE environment_id = $1";
const URGENT: &str = "SELECT revision FROM rollout_urgent WHERE environment_id = $1";
const URGE: &str = "INSERT INTO rollout_urgent (environment_id, revision) VALUES ($1, $2) \
    ON CONFLICT (environment_id) DO UPDATE SET revision = excluded.revision";

/// In which stages a snapshot comes to the fleet before it comes to all; without any, to all at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule(Vec<Step>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    reach: Reach,
    /// At least so long.
    lasts: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    OneEdge,
    /// Of the edges that were heard of lately, rounded up.
    Percent(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("{0:?} is no stage: one:5s, or 25%:10s; units are ms, s and m")]
    Stage(String),
    #[error("the stages have to grow: one, then a smaller percentage before a larger one")]
    Order,
    #[error("a schedule has at most {STEPS_MAX} stages")]
    TooMany,
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    /// `one:5s,25%:10s`, or `off`.
    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        if matches!(text.trim(), "" | "off") {
            return Ok(Schedule::default());
        }
        let steps: Vec<Step> = text.split(',').map(parse_step).collect::<Result<_, _>>()?;
        let size = |step: &Step| match step.reach {
            Reach::OneEdge => 0,
            Reach::Percent(percent) => percent,
        };
        if steps.len() > STEPS_MAX {
            return Err(ScheduleError::TooMany);
        }
        match steps.is_sorted_by(|a, b| size(a) < size(b)) {
            true => Ok(Schedule(steps)),
            false => Err(ScheduleError::Order),
        }
    }
}

fn parse_step(text: &str) -> Result<Step, ScheduleError> {
    let wrong = || ScheduleError::Stage(text.trim().to_owned());
    let (reach, lasts) = text.trim().split_once(':').ok_or_else(wrong)?;
    let reach = match reach.strip_suffix('%') {
        None if reach == "one" => Reach::OneEdge,
        None => return Err(wrong()),
        Some(percent) => {
            let percent = percent.parse().ok().filter(|percent| (1..100).contains(percent));
            Reach::Percent(percent.ok_or_else(wrong)?)
        }
    };
    let digits = lasts.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let lasts = match lasts.strip_prefix(digits) {
        Some("ms") => Duration::from_millis(number),
        Some("s") => Duration::from_secs(number),
        Some("m") => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(wrong()),
    };
    if lasts > STEP_MAX {
        return Err(wrong());
    }
    Ok(Step { reach, lasts })
}

impl Schedule {
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    fn lasts_us(&self, step: usize) -> i64 {
        self.0.get(step).map_or(0, |step| micros(step.lasts))
    }

    fn is_starved(&self, rollout: &Rollout, now: i64) -> bool {
        let length: i64 = (0..self.0.len()).map(|step| self.lasts_us(step)).sum();
        rollout.chain_at < rollout.began_at && now - rollout.chain_at > length * STARVED_AFTER
    }

    /// The first step from `from` on that comes to an edge which `stage` has not come to.
    fn next(&self, from: usize, stage: u16, edges: &[Seen]) -> Option<(usize, u16)> {
        let mut places: Vec<u16> = edges.iter().map(|edge| edge.place).collect();
        places.sort_unstable();
        self.0.iter().enumerate().skip(from).find_map(|(index, step)| {
            let edges = match step.reach {
                Reach::OneEdge => 1,
                Reach::Percent(percent) => (places.len() * usize::from(percent)).div_ceil(100),
            };
            let last = places.get(edges.checked_sub(1)?)?;
            (*last >= stage).then_some((index, last + 1))
        })
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running,
    Halted,
    /// An operator has said that it shall come to all.
    Finishing,
    Done,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Halted => "halted",
            State::Finishing => "finishing",
            State::Done => "done",
        }
    }
}

/// An environment's newest one.
#[derive(Debug, Clone)]
pub struct Rollout {
    pub version: Version,
    pub previous: Previous,
    pub stage: u16,
    step: usize,
    pub state: State,
    pub reason: Option<String>,
    /// When the first of those began that were replaced before they had come to all.
    chain_at: i64,
    began_at: i64,
    step_at: i64,
    ended_at: Option<i64>,
}

/// An edge that was heard of lately.
#[derive(Debug, Clone)]
pub struct Seen {
    edge: String,
    place: u16,
    version: Version,
    rejected: Option<Rejection>,
    received_at: i64,
}

#[derive(Debug, Clone, PartialEq)]
enum Next {
    Wait,
    Halt(String),
    Stage { step: usize, stage: u16 },
    Done,
}

fn decide(schedule: &Schedule, rollout: &Rollout, edges: &[Seen], now: i64) -> Next {
    let wanted = rollout.version;
    if rollout.state == State::Finishing {
        return Next::Done;
    }
    for Seen { edge, rejected, .. } in edges {
        if let Some(Rejection { version, reason, unfetched: false }) = rejected
            && *version == wanted
        {
            return Next::Halt(format!("edge {edge} refused it: {reason}"));
        }
    }
    let waited = now - rollout.step_at;
    if waited < schedule.lasts_us(rollout.step) {
        return Next::Wait;
    }
    let starved = schedule.is_starved(rollout, now);
    let serves = |edge: &&Seen| match starved {
        // What it served was replaced before it could say so.
        true => edge.version > rollout.previous.version,
        false => edge.version >= wanted,
    };
    let (done, late): (Vec<&Seen>, Vec<&Seen>) =
        edges.iter().filter(|edge| edge.place < rollout.stage).partition(serves);
    if !late.is_empty() {
        if waited < PATIENCE_US {
            return Next::Wait;
        }
        let seconds = PATIENCE_US / 1_000_000;
        if let Some(edge) = late.iter().find(|edge| edge.received_at > rollout.step_at) {
            let Version { generation, revision } = edge.version;
            return Next::Halt(format!(
                "edge {} still serves {generation}.{revision} after {seconds} s",
                edge.edge
            ));
        }
        if let (Some(edge), true) = (late.first(), done.is_empty()) {
            let edge = &edge.edge;
            return Next::Halt(format!(
                "edge {edge} got it first and was not heard of for {seconds} s"
            ));
        }
        // Gone without a word while others serve it: fleets shrink.
    }
    match schedule.next(rollout.step + 1, rollout.stage, edges) {
        Some((step, stage)) => Next::Stage { step, stage },
        None => Next::Done,
    }
}

/// Decides how a new snapshot begins, in the transaction that stores it. None: it comes to all.
pub async fn begin(
    tx: &mut Connection,
    schedule: &Schedule,
    loaded: &Loaded,
    published: Option<&SignedHead>,
    digest: Digest,
) -> Result<Option<Previous>, Refusal> {
    let id = loaded.environment_id.as_str();
    let version = version(loaded.generation, loaded.revision);
    let urgent: Option<i64> = query_scalar(URGENT).bind(id).fetch_optional(tx).await?;
    if schedule.is_off() || urgent.is_some_and(|revision| revision >= loaded.revision) {
        return Ok(None);
    }
    let open = one(tx, id).await?.filter(|rollout| rollout.state != State::Done);
    let previous = match &open {
        // It was stored, and its head is not out.
        Some(same) if same.version == version => return Ok(Some(same.as_previous())),
        Some(open) => Some(open.previous.clone()),
        None => published.and_then(SignedHead::claims).map(|head| Previous {
            version: head.version,
            snapshot: head.snapshot,
            client: head.client,
            stage: 0,
        }),
    };
    let Some(mut previous) = previous else { return Ok(None) };
    let now = tx.clock_us().await?;
    let edges = seen(tx, (&loaded.namespace, &loaded.environment), id).await?;
    let Some((step, stage)) = schedule.next(0, 0, &edges) else { return Ok(None) };
    if previous.snapshot.digest == digest || previous.version >= version {
        return Ok(None);
    }
    let replaced = open.filter(|open| open.state == State::Running);
    let chain_at = replaced.as_ref().map_or(now, |open| open.chain_at);
    let (step, stage, step_at) = match replaced {
        Some(open) if schedule.is_starved(&Rollout { began_at: now, ..open.clone() }, now) => {
            (open.step, open.stage, open.step_at)
        }
        _ => (step, stage, now),
    };
    previous.stage = stage;
    query(BEGIN)
        .bind(id)
        .bind(loaded.generation)
        .bind(loaded.revision)
        .bind(written("previous snapshot", &previous)?)
        .bind(signed(previous.version.generation))
        .bind(signed(previous.version.revision))
        .bind(i64::from(stage))
        .bind(i64::try_from(step).unwrap_or(i64::MAX))
        .bind(chain_at)
        .bind(now)
        .bind(step_at)
        .execute(tx)
        .await?;
    Ok(Some(previous))
}

/// A snapshot that came to all at once is what the one under way is replaced by.
pub async fn replaced(tx: &mut Connection, loaded: &Loaded) -> Result<(), sqlx::Error> {
    let now = tx.clock_us().await?;
    let replaced = query(REPLACED).bind(&loaded.environment_id);
    let replaced = replaced.bind(loaded.generation).bind(loaded.revision);
    replaced.bind(i64::from(STAGE_ALL)).bind(now).execute(tx).await?;
    Ok(())
}

/// Of an operator who cannot wait: this revision comes to all at once.
pub async fn urge(tx: &mut Connection, id: &str, revision: i64) -> Result<(), sqlx::Error> {
    query(URGE).bind(id).bind(revision).execute(tx).await?;
    Ok(())
}

/// What has to become of an environment's rollout, if anything.
pub struct Due {
    rollout: Rollout,
    next: Next,
    now: i64,
}

pub async fn due(
    read: &mut Connection,
    schedule: &Schedule,
    name: (&str, &str),
    id: &str,
) -> Result<Option<Due>, Refusal> {
    let Some(rollout) = one(read, id).await? else { return Ok(None) };
    if !matches!(rollout.state, State::Running | State::Finishing) {
        return Ok(None);
    }
    let edges = seen(read, name, id).await?;
    let now = read.clock_us().await?;
    let next = decide(schedule, &rollout, &edges, now);
    Ok((next != Next::Wait).then_some(Due { rollout, next, now }))
}

impl Due {
    pub fn version(&self) -> Version {
        self.rollout.version
    }

    /// What the head says from now on; none if it stays as it is.
    pub fn head(&self) -> Option<Option<Previous>> {
        match &self.next {
            Next::Wait | Next::Halt(_) => None,
            Next::Stage { stage, .. } => {
                Some(Some(Previous { stage: *stage, ..self.rollout.previous.clone() }))
            }
            Next::Done => Some(None),
        }
    }

    /// False if somebody else has moved it meanwhile.
    pub async fn write(&self, tx: &mut Connection, id: &str) -> Result<bool, sqlx::Error> {
        let Rollout { version, stage, step, .. } = self.rollout;
        let now = self.now;
        let (stage, to, state, reason, ended) = match &self.next {
            Next::Wait => return Ok(false),
            Next::Halt(reason) => (stage, step, State::Halted, Some(reason), Some(now)),
            Next::Stage { step, stage } => (*stage, *step, State::Running, None, None),
            Next::Done => (STAGE_ALL, step, State::Done, None, Some(now)),
        };
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let moved = query(MOVE)
            .bind(id)
            .bind(signed(version.generation))
            .bind(signed(version.revision))
            .bind(number(step))
            .bind(i64::from(stage))
            .bind(number(to))
            .bind(state.word())
            .bind(reason.cloned())
            .bind(now)
            .bind(ended)
            .execute(tx)
            .await?;
        Ok(moved > 0)
    }

    pub fn tell(&self, (namespace, environment): (&str, &str)) {
        let Version { generation, revision } = self.rollout.version;
        let seconds = (self.now - self.rollout.began_at) as f64 / 1e6;
        match &self.next {
            Next::Wait => {}
            Next::Halt(reason) => {
                metrics::counter!("tidegate_control_rollouts_halted_total").increment(1);
                tracing::error!(
                    namespace,
                    environment,
                    generation,
                    revision,
                    reason,
                    "a rollout is halted; the edges that it has not come to keep what they serve"
                );
            }
            Next::Stage { stage, .. } => {
                tracing::info!(namespace, environment, revision, stage, seconds, "the next stage");
            }
            Next::Done => {
                metrics::histogram!("tidegate_control_rollout_seconds").record(seconds);
                tracing::info!(
                    namespace,
                    environment,
                    revision,
                    seconds,
                    "rolled out to all edges"
                );
            }
        }
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    generation: i64,
    revision: i64,
    previous: String,
    stage: i64,
    step: i64,
    state: String,
    reason: Option<String>,
    chain_at: i64,
    began_at: i64,
    step_at: i64,
    ended_at: Option<i64>,
}

/// The newest one of an environment, under way or not.
pub async fn one(read: &mut Connection, id: &str) -> Result<Option<Rollout>, Refusal> {
    let row: Option<Row> = query_as(ONE).bind(id).fetch_optional(read).await?;
    let Some(row) = row else { return Ok(None) };
    let state = match row.state.as_str() {
        "running" => State::Running,
        "halted" => State::Halted,
        "finishing" => State::Finishing,
        _ => State::Done,
    };
    Ok(Some(Rollout {
        version: version(row.generation, row.revision),
        previous: stored("previous snapshot", &row.previous)?,
        stage: u16::try_from(row.stage).unwrap_or(STAGE_ALL),
        step: usize::try_from(row.step).unwrap_or(usize::MAX),
        state,
        reason: row.reason,
        chain_at: row.chain_at,
        began_at: row.began_at,
        step_at: row.step_at,
        ended_at: row.ended_at,
    }))
}

async fn seen(
    read: &mut Connection,
    (namespace, environment): (&str, &str),
    id: &str,
) -> Result<Vec<Seen>, Refusal> {
    type Row = (String, i64, i64, Option<String>, i64);
    let since = now_us() - HEARD_US;
    let rows: Vec<Row> = query_as(EDGES).bind(id).bind(since).fetch_all(read).await?;
    let seen = rows.into_iter().map(|(edge, generation, revision, rejected, received_at)| {
        let rejected = rejected.map(|text| stored("rejection", &text)).transpose()?;
        let place = place(namespace, environment, &edge);
        Ok(Seen { edge, place, version: version(generation, revision), rejected, received_at })
    });
    seen.collect()
}

impl Rollout {
    fn as_previous(&self) -> Previous {
        Previous { stage: self.stage, ..self.previous.clone() }
    }

    /// As the API shows it.
    pub fn show(&self) -> Value {
        let version = |version: Version| json!({ "generation": version.generation, "revision": version.revision });
        let until = self.ended_at.unwrap_or_else(now_us);
        json!({ "state": self.state.word(), "generation": self.version.generation,
            "revision": self.version.revision, "previous": version(self.previous.version),
            "stagePercent": f64::from(self.stage) / 100.0, "reason": self.reason,
            "beganAt": rfc3339(self.began_at), "endedAt": self.ended_at.map(rfc3339),
            "seconds": (until - self.began_at).max(0) as f64 / 1e6 })
    }
}

/// What an operator says to one that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stops where it is.
    Halt,
    /// The stage is tried again, and what follows it.
    Resume,
    /// To all edges now, whatever some have refused.
    Finish,
}

pub async fn order(
    tx: &mut Tx,
    scope: &NamespaceScope,
    environment: &str,
    order: Order,
) -> Result<Rollout, Refusal> {
    let of = environments::get(tx, scope, environment).await?;
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let before = one(tx, &of.id).await?.filter(|rollout| rollout.state != State::Done);
    let before = before.ok_or(Refusal::NotFound("rollout under way"))?;
    let now = tx.clock_us().await?;
    let (state, reason, ended, action) = match order {
        Order::Halt => {
            let reason = format!("halted by {}", scope.actor());
            (State::Halted, Some(reason), Some(now), "rollout.halt")
        }
        Order::Resume => (State::Running, None, None, "rollout.resume"),
        Order::Finish => (State::Finishing, None, None, "rollout.finish"),
    };
    let order = query(ORDER).bind(&of.id).bind(state.word()).bind(reason);
    order.bind(now).bind(ended).execute(tx).await?;
    let entry = Entry {
        action,
        target: environment.to_owned(),
        environment: Some(environment.to_owned()),
        before: Some(json!({ "state": before.state.word(), "reason": before.reason,
            "revision": before.version.revision })),
        after: Some(json!({ "state": state.word() })),
    };
    change.finish(tx, entry).await?;
    one(tx, &of.id).await?.ok_or(Refusal::NotFound("rollout"))
}

/// Moves what is under way, while this control leads, until told to stop.
pub async fn run(publisher: Arc<Publisher>, tick: Duration, stop: CancellationToken) {
    let mut published = publisher.bus.changed();
    loop {
        published.borrow_and_update();
        let busy = match pass(&publisher).await {
            Ok(under_way) => under_way > 0,
            Err(PublishError::NotLeading) => false,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "rollouts stand still; the next pass tries again");
                false
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = published.changed(), if !busy => {}
            () = tokio::time::sleep(if busy { LOOK } else { jittered(tick) }) => {}
        }
    }
}

/// How many are under way.
pub async fn pass(publisher: &Publisher) -> Result<usize, PublishError> {
    if publisher.lead.epoch().is_none() {
        return Err(PublishError::NotLeading);
    }
    let under_way: Vec<String> = {
        let mut read = publisher.store.read().await?;
        let (running, halted): (i64, i64) = query_as(COUNTS).fetch_one(&mut read).await?;
        metrics::gauge!("tidegate_control_rollouts", "state" => "running").set(running as f64);
        metrics::gauge!("tidegate_control_rollouts", "state" => "halted").set(halted as f64);
        query_scalar(UNDER_WAY).fetch_all(&mut read).await?
    };
    for id in &under_way {
        publisher.move_rollout(id).await?;
    }
    Ok(under_way.len())
}

fn version(generation: i64, revision: i64) -> Version {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Version { generation: unsigned(generation), revision: unsigned(revision) }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rules::head::BlobRef;

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn at(revision: u64) -> Version {
        Version { generation: 1, revision }
    }

    fn edge(name: &str, place: u16, revision: u64) -> Seen {
        let version = at(revision);
        Seen { edge: name.to_owned(), place, version, rejected: None, received_at: 1 }
    }

    fn refusing(edge: Seen, revision: u64, unfetched: bool) -> Seen {
        let reason = "it does not load".to_owned();
        Seen { rejected: Some(Rejection { version: at(revision), reason, unfetched }), ..edge }
    }

    /// 1.7 after 1.6, begun at 0, at the first step.
    fn rollout(stage: u16) -> Rollout {
        Rollout {
            version: at(7),
            previous: Previous {
                version: at(6),
                snapshot: BlobRef { digest: Digest([6; 32]), bytes: 6 },
                client: None,
                stage: 0,
            },
            stage,
            step: 0,
            state: State::Running,
            reason: None,
            chain_at: 0,
            began_at: 0,
            step_at: 0,
            ended_at: None,
        }
    }

    fn schedule() -> Schedule {
        "one:5s,25%:10s".parse().unwrap()
    }

    #[test]
    fn a_schedule_is_read_and_nonsense_is_refused() {
        let seconds = Duration::from_secs;
        let steps = vec![
            Step { reach: Reach::OneEdge, lasts: seconds(5) },
            Step { reach: Reach::Percent(25), lasts: seconds(600) },
            Step { reach: Reach::Percent(50), lasts: Duration::from_millis(250) },
        ];
        assert_eq!("one:5s, 25%:10m,50%:250ms".parse(), Ok(Schedule(steps)));
        assert_eq!("off".parse(), Ok(Schedule::default()));
        assert!(!DEFAULT.parse::<Schedule>().unwrap().is_off());
        for bad in [
            "one",
            "one:5",
            "two:5s",
            "0%:1s",
            "100%:1s",
            "25:1s",
            "one:-1s",
            "25%:9999h",
            "one:99999999m",
            "one:1s,,25%:1s",
        ] {
            assert!(matches!(bad.parse::<Schedule>(), Err(ScheduleError::Stage(_))), "{bad}");
        }
        for bad in ["25%:1s,one:1s", "25%:1s,25%:1s", "50%:1s,25%:1s"] {
            assert_eq!(bad.parse::<Schedule>(), Err(ScheduleError::Order), "{bad}");
        }
    }

    #[test]
    fn stages_are_one_edge_then_a_share_of_those_that_were_heard_of() {
        let edges: Vec<Seen> =
            (0..8u16).map(|index| edge(&format!("e{index}"), 9_000 - index * 1_000, 6)).collect();
        assert_eq!(schedule().next(0, 0, &edges), Some((0, 2_001)), "the one that stands first");
        assert_eq!(schedule().next(1, 2_001, &edges), Some((1, 3_001)), "two of eight");
        assert_eq!(schedule().next(2, 3_001, &edges), None, "then all");
        assert_eq!(schedule().next(1, 2_001, &edges[5..]), None, "a quarter of three is one");
        assert_eq!(schedule().next(0, 0, &[]), None, "nobody to try it on");
    }

    #[test]
    fn a_stage_ends_after_its_time_and_when_its_edges_serve_it() {
        let (first, others) = (edge("a", 0, 7), [edge("b", 5_000, 6), edge("c", 9_999, 6)]);
        let fleet = |first: &Seen| [&[first.clone()][..], &others].concat();
        let decide = |rollout: &Rollout, edges: &[Seen], now: i64| {
            super::decide(&schedule(), rollout, edges, now)
        };
        assert_eq!(decide(&rollout(1), &fleet(&first), 5 * SECOND - 1), Next::Wait, "time");
        assert_eq!(decide(&rollout(1), &fleet(&first), 5 * SECOND), Next::Done, "of three");
        let behind = edge("a", 0, 6);
        assert_eq!(decide(&rollout(1), &fleet(&behind), 59 * SECOND), Next::Wait, "receipts");
        let eight: Vec<Seen> = (0..8).map(|index| edge("e", index, 7)).collect();
        assert_eq!(decide(&rollout(1), &eight, 5 * SECOND), Next::Stage { step: 1, stage: 2 });
        let finishing = Rollout { state: State::Finishing, ..rollout(1) };
        assert_eq!(decide(&finishing, &fleet(&refusing(behind, 7, false)), 0), Next::Done);
    }

    #[test]
    fn a_refusal_of_this_version_halts_and_no_other_does() {
        let decide = |edge: Seen| decide(&schedule(), &rollout(1), &[edge], SECOND);
        let refused = decide(refusing(edge("a", 0, 6), 7, false));
        assert_eq!(refused, Next::Halt("edge a refused it: it does not load".to_owned()));
        // The one before, which this one may mend; and bytes that did not come.
        for harmless in [refusing(edge("a", 0, 5), 6, false), refusing(edge("a", 0, 6), 7, true)] {
            assert_eq!(decide(harmless), Next::Wait);
        }
    }

    #[test]
    fn an_edge_that_falls_silent_halts_if_it_is_all_there_is_to_go_by() {
        let decide = |edges: &[Seen]| decide(&schedule(), &rollout(2), edges, 61 * SECOND);
        let silent = Seen { received_at: 0, ..edge("a", 0, 6) };
        let talking = Seen { received_at: 9 * SECOND, ..edge("b", 1, 6) };
        assert!(matches!(decide(std::slice::from_ref(&silent)), Next::Halt(_)));
        assert!(matches!(decide(&[edge("c", 0, 7), talking]), Next::Halt(_)));
        assert_eq!(decide(&[silent, edge("b", 1, 7)]), Next::Done, "fleets shrink");
    }

    #[test]
    fn rollouts_that_replace_one_another_for_long_go_on_by_what_edges_have_of_them() {
        let often = Rollout { version: at(90), began_at: 46 * SECOND, ..rollout(1) };
        let edges = [edge("a", 0, 89), edge("b", 5_000, 6)];
        assert_eq!(decide(&schedule(), &often, &edges, 47 * SECOND), Next::Done);
        let behind = [edge("a", 0, 6), edge("b", 5_000, 6)];
        assert_eq!(decide(&schedule(), &often, &behind, 47 * SECOND), Next::Wait);
        let once = Rollout { chain_at: 46 * SECOND, step_at: 40 * SECOND, ..often };
        assert_eq!(decide(&schedule(), &once, &edges, 47 * SECOND), Next::Wait);
    }
}
