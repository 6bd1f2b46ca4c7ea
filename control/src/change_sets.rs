//! Change sets: several edits that are reviewed together, approved, and applied as one transaction
//! with one revision per environment.
//!
//! Every step holds the namespace's lock (`Change::begin`) and moves the row from the version that it
//! read, so of two that race one comes after the other and is judged by what it finds. Approvals are of
//! an edition, the items as they were; they are counted when the set is applied, by who may approve in
//! each environment then.
//!
//! Next: `change_sets/state.rs` (what may follow on what), `change_sets/items.rs` (what is to be
//! changed), `protection.rs` (what is demanded), `schedule.rs` (who applies what is due).

pub mod items;
pub mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use self::items::{Item, NewItem, Standing};
use self::state::{State, Step};
use crate::admission::Admission;
use crate::audit::{self, Entry};
use crate::authorize::callers::CallerKind;
use crate::authorize::{self, NamespaceScope, Permission};
use crate::change::{Change, Expected, Passage, Touches};
use crate::impact::{self, Impact};
use crate::page::{Page, Paged};
use crate::protection;
use crate::refusal::{Refusal, check_name, check_zero, stored, written};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, rfc3339};

/// Of one namespace: sets that are neither applied nor cancelled.
pub const OPEN_MAX: usize = 1_000;
/// Of one set: what was done and said about it. Steps have as many more than words as `STEPS_MAX`, and
/// what ends a set has always room.
pub const EVENTS_MAX: usize = 1_000;
const STEPS_MAX: usize = 200;
pub const TEXT_BYTES_MAX: usize = 10_000;
/// Nobody knows what they will want later than this.
const SCHEDULE_AHEAD_MAX_US: i64 = 366 * 24 * 60 * 60 * 1_000_000;

const COLUMNS_ONE: &str = "SELECT number, title, description, state, reason, author_key, author, \
    edition, version, apply_at, scheduled_key, scheduled_by, applied_at, applied_by, revisions, \
    created_at, updated_at FROM change_set WHERE namespace_id = $1 AND number = $2";
const PAGE: &str = "SELECT number, title, description, state, reason, author_key, author, edition, \
    version, apply_at, scheduled_key, scheduled_by, applied_at, applied_by, revisions, created_at, \
    updated_at FROM change_set WHERE namespace_id = $1 AND number < $2 \
    AND ($3 = '' OR state = $3) ORDER BY number DESC LIMIT $4";
const NEXT: &str = "SELECT COALESCE(MAX(number), 0) + 1 FROM change_set WHERE namespace_id = $1";
const OPEN: &str = "SELECT COUNT(*) FROM change_set WHERE namespace_id = $1 \
    AND state NOT IN ('applied', 'cancelled')";
const INSERT: &str = "INSERT INTO change_set (namespace_id, number, title, description, state, \
    author_key, author, edition, version, created_at, updated_at) \
    VALUES ($1, $2, $3, $4, 'draft', $5, $6, 1, 1, $7, $7)";
const MOVE: &str = "UPDATE change_set SET title = $4, description = $5, state = $6, reason = $7, \
    edition = $8, apply_at = $9, scheduled_key = $10, scheduled_by = $11, applied_at = $12, \
    applied_by = $13, revisions = $14, updated_at = $15, version = version + 1 \
    WHERE namespace_id = $1 AND number = $2 AND version = $3";
const EVENTS: &str = "SELECT sequence, kind, actor_key, maker_key, actor, text, edition, at \
    FROM change_set_event WHERE namespace_id = $1 AND number = $2 ORDER BY sequence";
const EVENT_INSERT: &str = "INSERT INTO change_set_event (namespace_id, number, sequence, kind, \
    actor_key, actor, text, edition, at, maker_key) SELECT $1, $2, COALESCE(MAX(sequence), 0) + 1, \
    $3, $4, $5, $6, $7, $8, $9 FROM change_set_event WHERE namespace_id = $1 AND number = $2";

#[derive(Debug, Clone, sqlx::FromRow)]
struct Row {
    number: i64,
    title: String,
    description: String,
    state: String,
    reason: Option<String>,
    author_key: String,
    author: String,
    edition: i64,
    version: i64,
    apply_at: Option<i64>,
    scheduled_key: Option<String>,
    scheduled_by: Option<String>,
    applied_at: Option<i64>,
    applied_by: Option<String>,
    revisions: Option<String>,
    created_at: i64,
    updated_at: i64,
}

#[derive(Debug, Clone)]
pub struct ChangeSet {
    pub number: i64,
    pub title: String,
    pub description: String,
    pub state: State,
    pub reason: Option<String>,
    pub author_key: String,
    pub author: String,
    /// Counts what its items were; approvals are of one.
    pub edition: i64,
    /// The ETag.
    pub version: i64,
    /// Microseconds, by the database's clock.
    pub apply_at: Option<i64>,
    pub scheduled_key: Option<String>,
    pub scheduled_by: Option<String>,
    pub applied_at: Option<i64>,
    pub applied_by: Option<String>,
    /// What it raised each environment to.
    pub revisions: BTreeMap<String, i64>,
    pub created_at: i64,
    pub updated_at: i64,
}

impl TryFrom<Row> for ChangeSet {
    type Error = Refusal;

    fn try_from(row: Row) -> Result<ChangeSet, Refusal> {
        let revisions = row.revisions.map(|text| stored("list of revisions", &text)).transpose()?;
        Ok(ChangeSet {
            number: row.number,
            title: row.title,
            description: row.description,
            state: State::parse(&row.state)?,
            reason: row.reason,
            author_key: row.author_key,
            author: row.author,
            edition: row.edition,
            version: row.version,
            apply_at: row.apply_at,
            scheduled_key: row.scheduled_key,
            scheduled_by: row.scheduled_by,
            applied_at: row.applied_at,
            applied_by: row.applied_by,
            revisions: revisions.unwrap_or_default(),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    pub sequence: i64,
    pub kind: String,
    pub actor_key: String,
    /// Of a service token's: who made that token.
    pub maker_key: Option<String>,
    pub actor: String,
    pub text: String,
    pub edition: i64,
    pub at: i64,
}

/// What one environment demands of a set, and what it has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approvals {
    pub environment: String,
    pub required: i64,
    /// Who approved this edition and may approve there now.
    pub by: Vec<String>,
}

impl Approvals {
    fn given(&self) -> i64 {
        i64::try_from(self.by.len()).unwrap_or(i64::MAX)
    }

    fn are_enough(&self) -> bool {
        self.given() >= self.required
    }
}

/// A set with all that belongs to it.
#[derive(Debug, Clone)]
pub struct Whole {
    pub set: ChangeSet,
    /// Each with how its thing stands now.
    pub items: Vec<(Item, Standing)>,
    /// Of protected environments that it touches.
    pub approvals: Vec<Approvals>,
    pub events: Vec<Event>,
}

// --- What is asked for ---------------------------------------------------------------------------

async fn find(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
) -> Result<ChangeSet, Refusal> {
    let row: Option<Row> =
        query_as(COLUMNS_ONE).bind(scope.id()).bind(number).fetch_optional(read).await?;
    row.ok_or(Refusal::NotFound("change set"))?.try_into()
}

async fn events(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
) -> Result<Vec<Event>, Refusal> {
    Ok(query_as(EVENTS).bind(scope.id()).bind(number).fetch_all(read).await?)
}

/// Newest first; of one state if it is said.
pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
    state: Option<State>,
) -> Result<Paged<ChangeSet>, Refusal> {
    let rows: Vec<Row> = query_as(PAGE)
        .bind(scope.id())
        .bind(page.number_before()?)
        .bind(state.map_or("", State::name))
        .bind(page.fetch())
        .fetch_all(read)
        .await?;
    let sets = rows.into_iter().map(ChangeSet::try_from).collect::<Result<Vec<_>, _>>()?;
    Ok(page.cut(sets, |set| set.number.to_string()))
}

pub async fn get(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
) -> Result<Whole, Refusal> {
    let set = find(read, scope, number).await?;
    let items = items::of(read, scope, number).await?;
    let events = events(read, scope, number).await?;
    let approvals = approvals(read, scope, &set, &items, &events).await?;
    let mut with_standing = Vec::with_capacity(items.len());
    for item in items {
        let standing = match items::environments_of(read, scope, &item).await? {
            Ok(environment) => items::standing(read, scope, &item, environment.as_ref()).await?,
            // Its environment is gone, and with it whatever was there.
            Err(_) => Standing { version: 0, content: None },
        };
        with_standing.push((item, standing));
    }
    Ok(Whole { set, items: with_standing, approvals, events })
}

/// The environment that a preview of a set is of: what was said, or the only one that it names.
pub async fn previewed(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
    said: Option<String>,
) -> Result<String, Refusal> {
    find(read, scope, number).await?;
    let items = items::of(read, scope, number).await?;
    let mut named: Vec<&String> =
        items.iter().filter_map(|item| item.environment.as_ref()).collect();
    named.sort();
    named.dedup();
    match (said, named.as_slice()) {
        (Some(said), named) => {
            let everywhere = items.iter().any(|item| item.environment.is_none());
            match everywhere || named.contains(&&said) {
                true => Ok(said),
                false => {
                    let message = format!("the change set changes nothing in {said:?}");
                    Err(Refusal::invalid("/environment", message))
                }
            }
        }
        (None, [one]) => Ok((*one).clone()),
        (None, _) => Err(Refusal::invalid("/environment", "say which: it is not of one alone")),
    }
}

/// Who a set would change in one environment, were it applied now: all of its items together.
pub async fn impact(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
    environment: &str,
    (contexts, now_ms): (Vec<Value>, i64),
    admission: &Arc<Admission>,
) -> Result<Impact, Refusal> {
    let items = items::of(read, scope, number).await?;
    let draft = items::drafted(&items, environment)?;
    let asked = impact::Asked { draft, contexts, now_ms };
    let compared = impact::preview(read, scope, environment, asked, admission).await;
    compared.map_err(|refusal| items::placed_all(refusal, &items, environment))
}

/// Which protected environments a set needs approval in, and who has approved this edition and may
/// do so there now. People alone: a token that somebody made for a machine is not a second pair of
/// eyes.
async fn approvals(
    read: &mut Connection,
    scope: &NamespaceScope,
    set: &ChangeSet,
    items: &[Item],
    events: &[Event],
) -> Result<Vec<Approvals>, Refusal> {
    let mut everywhere = false;
    for item in items.iter().filter(|item| item.environment.is_none()) {
        everywhere |= !item.serves_the_same()?;
    }
    let touched = |key: &String| items.iter().any(|item| item.environment.as_ref() == Some(key));
    let mut approvals = Vec::new();
    for (id, key, required) in protection::of_all(read, scope).await? {
        if required == 0 || !everywhere && !touched(&key) {
            continue;
        }
        let mut by: Vec<String> = Vec::new();
        let mut counted: Vec<&str> = Vec::new();
        for event in events {
            let is_one = event.kind == "approved" && event.edition == set.edition;
            let actor_key = event.actor_key.as_str();
            if !is_one
                || !is_of_person(actor_key)
                || counted.contains(&actor_key)
                || has_written(events, actor_key)
            {
                continue;
            }
            let (namespace, there) = (scope.id(), Some(id.as_str()));
            if authorize::may_now(read, namespace, actor_key, Permission::Approve, there).await? {
                counted.push(actor_key);
                by.push(event.actor.clone());
            }
        }
        approvals.push(Approvals { environment: key, required, by });
    }
    Ok(approvals)
}

/// Whether some of it is theirs, or a service token's that they made: who wrote does not approve.
fn has_written(events: &[Event], person_key: &str) -> bool {
    events.iter().any(|event| {
        event.maker_key.as_ref().unwrap_or(&event.actor_key) == person_key
            && matches!(event.kind.as_str(), "created" | "edited" | "rebased")
    })
}

/// Whether somebody has an account. Whoever else asks may be anybody: a program, or who holds the
/// bootstrap token.
fn is_of_person(actor_key: &str) -> bool {
    let kind = actor_key.split_once(':').map(|(kind, _)| kind);
    kind == Some(CallerKind::User.name())
}

// --- Steps ---------------------------------------------------------------------------------------

async fn note(
    tx: &mut Connection,
    scope: &NamespaceScope,
    set: &ChangeSet,
    (kind, text): (&str, &str),
    at: i64,
) -> Result<(), Refusal> {
    query(EVENT_INSERT)
        .bind(scope.id())
        .bind(set.number)
        .bind(kind)
        .bind(scope.caller().key())
        .bind(scope.actor())
        .bind(text)
        .bind(set.edition)
        .bind(at)
        .bind(&scope.caller().maker)
        .execute(tx)
        .await?;
    Ok(())
}

fn check_text(pointer: &str, text: &str) -> Result<(), Refusal> {
    check_zero(pointer, text)?;
    match text.len() > TEXT_BYTES_MAX {
        true => {
            let message = format!("{} bytes, the limit is {TEXT_BYTES_MAX}", text.len());
            Err(Refusal::invalid(pointer, message))
        }
        false => Ok(()),
    }
}

fn check_title(title: &str) -> Result<(), Refusal> {
    check_zero("/title", title)?;
    match title.trim().is_empty() {
        true => Err(Refusal::invalid("/title", "it needs a title")),
        false => check_name("/title", title),
    }
}

/// What the audit says of a set: what it is about, not what is in it; that comes with its items when it
/// is applied.
fn told(set: &ChangeSet, items: Option<&[Item]>, text: &str) -> Value {
    let mut told = json!({ "title": set.title, "state": set.state.name(), "edition": set.edition });
    if let Some(items) = items {
        told["items"] = items.iter().map(Item::told).collect();
    }
    if !text.is_empty() {
        told["text"] = json!(text);
    }
    if let Some(at) = set.apply_at {
        told["applyAt"] = json!(rfc3339(at));
    }
    told
}

fn entry(action: &'static str, before: Option<&ChangeSet>, number: i64, after: Value) -> Entry {
    Entry {
        action,
        target: number.to_string(),
        environment: None,
        before: before.map(|set| json!({ "state": set.state.name(), "edition": set.edition })),
        after: Some(after),
    }
}

pub async fn create(
    tx: &mut Tx,
    scope: &NamespaceScope,
    title: &str,
    description: &str,
    new: Vec<NewItem>,
) -> Result<Whole, Refusal> {
    check_title(title)?;
    check_text("/description", description)?;
    let mut change = Change::begin(tx, scope, Touches::Nothing).await?;
    let open: i64 = query_scalar(OPEN).bind(scope.id()).fetch_one(tx).await?;
    if open >= OPEN_MAX as i64 {
        return Err(Refusal::TooMany { what: "open change sets", max: OPEN_MAX });
    }
    let items = items::take_in(tx, scope, new).await?;
    let number: i64 = query_scalar(NEXT).bind(scope.id()).fetch_one(tx).await?;
    query(INSERT)
        .bind(scope.id())
        .bind(number)
        .bind(title)
        .bind(description)
        .bind(scope.caller().key())
        .bind(scope.actor())
        .bind(change.at)
        .execute(tx)
        .await?;
    items::keep(tx, scope, number, &items).await?;
    change.of_change_set(&number.to_string());
    let set = find(tx, scope, number).await?;
    note(tx, scope, &set, ("created", ""), change.at).await?;
    let after = told(&set, Some(&items), "");
    change.finish(tx, entry("change-set.create", None, number, after)).await?;
    get(tx, scope, number).await
}

/// A step under way: the namespace's lock is held, and the set is as nobody else can change it.
struct Stepping {
    change: Change,
    before: ChangeSet,
    set: ChangeSet,
    items: Vec<Item>,
    events: Vec<Event>,
}

impl Stepping {
    async fn begin(
        tx: &mut Tx,
        scope: &NamespaceScope,
        number: i64,
        expected: Expected,
    ) -> Result<Stepping, Refusal> {
        let change = Change::begin(tx, scope, Touches::Nothing).await?;
        Stepping::on(tx, scope, number, expected, change).await
    }

    async fn on(
        tx: &mut Tx,
        scope: &NamespaceScope,
        number: i64,
        expected: Expected,
        mut change: Change,
    ) -> Result<Stepping, Refusal> {
        change.of_change_set(&number.to_string());
        let before = find(tx, scope, number).await?;
        // A step may leave the version unsaid: then it is on whatever is there.
        if expected != Expected::Unsaid {
            expected.check(before.version, || summary(&before))?;
        }
        let items = items::of(tx, scope, number).await?;
        let events = events(tx, scope, number).await?;
        let set = before.clone();
        Ok(Stepping { change, before, set, items, events })
    }

    /// Where the step leads; refused if it leads nowhere.
    fn step(&mut self, step: Step) -> Result<(), Refusal> {
        let max = match step {
            Step::Comment => EVENTS_MAX,
            Step::Apply | Step::Collide | Step::Fail | Step::Cancel => usize::MAX,
            Step::Edit
            | Step::Rebase
            | Step::Submit { .. }
            | Step::Approve { .. }
            | Step::Reject
            | Step::Schedule
            | Step::Unschedule => EVENTS_MAX + STEPS_MAX,
        };
        if self.events.len() >= max {
            return Err(Refusal::TooMany { what: "events of a change set", max });
        }
        let (state, step) = (self.set.state, step);
        self.set.state = state
            .after(step)
            .ok_or(Refusal::WrongState { state: state.name(), step: step.name() })?;
        Ok(())
    }

    /// Keeps what the step made of the set: a compare-and-set on its version.
    async fn keep(&self, tx: &mut Tx, scope: &NamespaceScope) -> Result<(), Refusal> {
        let set = &self.set;
        let revisions = match set.revisions.is_empty() {
            true => None,
            false => Some(written("list of revisions", &set.revisions)?),
        };
        let done = query(MOVE)
            .bind(scope.id())
            .bind(set.number)
            .bind(self.before.version)
            .bind(&set.title)
            .bind(&set.description)
            .bind(set.state.name())
            .bind(&set.reason)
            .bind(set.edition)
            .bind(set.apply_at)
            .bind(&set.scheduled_key)
            .bind(&set.scheduled_by)
            .bind(set.applied_at)
            .bind(&set.applied_by)
            .bind(revisions)
            .bind(self.change.at)
            .execute(tx)
            .await?;
        match done {
            1 => Ok(()),
            _ => Err(Refusal::Internal("a change set moved under its lock".to_owned())),
        }
    }

    async fn finish(
        self,
        tx: &mut Tx,
        scope: &NamespaceScope,
        step: Step,
        text: &str,
    ) -> Result<Whole, Refusal> {
        self.keep(tx, scope).await?;
        note(tx, scope, &self.set, (step.name(), text), self.change.at).await?;
        let items = matches!(step, Step::Edit | Step::Rebase).then_some(self.items.as_slice());
        let after = told(&self.set, items, text);
        let number = self.set.number;
        let entry = entry(step.action(), Some(&self.before), number, after);
        // Steps raise nothing, but the application, which has checked what it raised.
        self.change.finish_checked(tx, entry).await?;
        get(tx, scope, number).await
    }

    /// The items are something else now: whatever was approved or scheduled was not this.
    fn renew(&mut self) {
        self.set.edition += 1;
        self.set.reason = None;
        self.unschedule();
    }

    fn unschedule(&mut self) {
        self.set.apply_at = None;
        self.set.scheduled_key = None;
        self.set.scheduled_by = None;
    }

    async fn enough(&self, tx: &mut Tx, scope: &NamespaceScope) -> Result<bool, Refusal> {
        let approvals = approvals(tx, scope, &self.set, &self.items, &self.events).await?;
        Ok(approvals.iter().all(Approvals::are_enough))
    }
}

/// What a list shows of a set.
pub fn summary(set: &ChangeSet) -> Value {
    json!({ "number": set.number, "title": set.title, "state": set.state.name(),
        "edition": set.edition, "version": set.version, "author": set.author,
        "updatedAt": rfc3339(set.updated_at) })
}

/// What an edit says; None leaves as it is.
#[derive(Debug, Default)]
pub struct Edit {
    pub title: Option<String>,
    pub description: Option<String>,
    pub items: Option<Vec<NewItem>>,
}

pub async fn edit(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    edit: Edit,
) -> Result<Whole, Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    if expected == Expected::Unsaid {
        return Err(Refusal::VersionRequired { current: stepping.before.version });
    }
    stepping.step(Step::Edit)?;
    items::demand_items(tx, scope, &stepping.items).await?;
    if let Some(title) = edit.title {
        check_title(&title)?;
        stepping.set.title = title;
    }
    if let Some(description) = edit.description {
        check_text("/description", &description)?;
        stepping.set.description = description;
    }
    if let Some(new) = edit.items {
        stepping.items = items::take_in(tx, scope, new).await?;
        items::keep(tx, scope, number, &stepping.items).await?;
    }
    stepping.renew();
    stepping.finish(tx, scope, Step::Edit, "").await
}

/// The same items on what is there now.
pub async fn rebase(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
) -> Result<Whole, Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    stepping.step(Step::Rebase)?;
    items::demand_items(tx, scope, &stepping.items).await?;
    for item in &mut stepping.items {
        let environment = items::environments_of(tx, scope, item).await??;
        let now = items::standing(tx, scope, item, environment.as_ref()).await?;
        (item.base_version, item.base) = (now.version, now.content);
    }
    // What was to be taken away and is gone already is done.
    stepping.items.retain(|item| item.value.is_some() || item.base_version > 0);
    if stepping.items.is_empty() {
        return Err(Refusal::invalid("", "nothing is left of it to be done; cancel it"));
    }
    items::keep(tx, scope, number, &stepping.items).await?;
    stepping.renew();
    stepping.finish(tx, scope, Step::Rebase, "").await
}

/// Hands it in for review; where nobody has to approve, it can be applied. What could not be applied as
/// things are is not taken.
pub async fn submit(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
) -> Result<Whole, Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    items::demand_items(tx, scope, &stepping.items).await?;
    let enough = stepping.enough(tx, scope).await?;
    let step = Step::Submit { enough };
    stepping.step(step)?;
    rehearse(tx, scope, &stepping.items).await?;
    stepping.set.reason = None;
    stepping.finish(tx, scope, step, "").await
}

/// Does all that applying it would do, and takes it back: what is wrong with it is said to whoever wrote
/// it, before others look at it. Under the namespace's lock, so it is said of what is handed in.
async fn rehearse(tx: &mut Tx, scope: &NamespaceScope, items: &[Item]) -> Result<(), Refusal> {
    let conflicts = items::conflicts(tx, scope, items).await?;
    if !conflicts.is_empty() {
        return Err(Refusal::Conflict { of: conflicts });
    }
    let mark = tx.mark().await?;
    let done = match begin_applying(tx, scope, items).await {
        Ok(mut change) => items::carry_out(tx, scope, &mut change, items).await,
        Err(refusal) => Err(refusal),
    };
    tx.back_to(mark).await?;
    done
}

/// A change that has raised all environments that the items touch.
async fn begin_applying(
    tx: &mut Tx,
    scope: &NamespaceScope,
    items: &[Item],
) -> Result<Change, Refusal> {
    let all = items::environments_touched(tx, scope, items).await?;
    let touches = match &all {
        None => Touches::All,
        Some(ids) => Touches::Some(ids),
    };
    Change::begin_by(tx, scope, touches, Passage::Approved).await
}

/// Of this very version: it must be said.
pub async fn approve(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    text: &str,
) -> Result<Whole, Refusal> {
    check_text("/text", text)?;
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    if expected == Expected::Unsaid {
        return Err(Refusal::VersionRequired { current: stepping.before.version });
    }
    stepping.step(Step::Approve { enough: false })?;
    let caller = scope.caller();
    let key = caller.key();
    let refused = |why: &str| Refusal::MayNotApprove { why: why.to_owned() };
    if has_written(&stepping.events, &caller.responsible()) {
        let why = "whoever made or edited a change does not approve it, nor who made the service \
            token that did";
        return Err(refused(why));
    }
    if !is_of_person(&key) {
        let why = "approvals are given by people with accounts, not by service tokens nor with the \
            bootstrap token";
        return Err(refused(why));
    }
    let needed = approvals(tx, scope, &stepping.set, &stepping.items, &stepping.events).await?;
    let mut may = false;
    for (id, key, _) in protection::of_all(tx, scope).await? {
        let is_needed = needed.iter().any(|approvals| approvals.environment == key);
        may |= is_needed && scope.may_in(Permission::Approve, &id);
    }
    if !may {
        return Err(refused("it touches no environment whose changes you may approve"));
    }
    let again = |event: &Event| {
        event.kind == "approved" && event.edition == stepping.set.edition && event.actor_key == key
    };
    if stepping.events.iter().any(again) {
        // Said already; saying it again changes nothing.
        return get(tx, scope, number).await;
    }
    stepping.events.push(Event {
        sequence: 0,
        kind: "approved".to_owned(),
        actor_key: key,
        maker_key: None,
        actor: scope.actor().to_owned(),
        text: text.to_owned(),
        edition: stepping.set.edition,
        at: stepping.change.at,
    });
    stepping.set.state = stepping.before.state;
    let step = Step::Approve { enough: stepping.enough(tx, scope).await? };
    stepping.step(step)?;
    stepping.finish(tx, scope, step, text).await
}

/// Says no, and why. Approvals that were given before do not count any more.
pub async fn reject(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    text: &str,
) -> Result<Whole, Refusal> {
    check_text("/text", text)?;
    if text.trim().is_empty() {
        return Err(Refusal::invalid("/text", "say why"));
    }
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    stepping.step(Step::Reject)?;
    stepping.renew();
    stepping.set.reason = Some(text.to_owned());
    stepping.finish(tx, scope, Step::Reject, text).await
}

pub async fn cancel(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    text: &str,
) -> Result<Whole, Refusal> {
    check_text("/text", text)?;
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    stepping.step(Step::Cancel)?;
    items::demand_items(tx, scope, &stepping.items).await?;
    stepping.unschedule();
    stepping.finish(tx, scope, Step::Cancel, text).await
}

/// Raises no version: nobody's approval is of another's words.
pub async fn comment(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    text: &str,
) -> Result<Whole, Refusal> {
    check_text("/text", text)?;
    if text.trim().is_empty() {
        return Err(Refusal::invalid("/text", "say something"));
    }
    let mut stepping = Stepping::begin(tx, scope, number, Expected::Any).await?;
    stepping.step(Step::Comment)?;
    note(tx, scope, &stepping.set, (Step::Comment.name(), text), stepping.change.at).await?;
    let entry = entry(Step::Comment.action(), None, number, json!({ "text": text }));
    stepping.change.finish(tx, entry).await?;
    get(tx, scope, number).await
}

/// Applies it later: `at` is by the database's clock, in microseconds. None: not any more.
pub async fn schedule(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    at: Option<i64>,
) -> Result<Whole, Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, expected).await?;
    items::demand_items(tx, scope, &stepping.items).await?;
    let step = if at.is_some() { Step::Schedule } else { Step::Unschedule };
    stepping.step(step)?;
    stepping.unschedule();
    stepping.set.reason = None;
    let mut text = String::new();
    if let Some(at) = at {
        let now = tx.clock_us().await?;
        if !(now..=now.saturating_add(SCHEDULE_AHEAD_MAX_US)).contains(&at) {
            let message = "a time that is to come, within a year";
            return Err(Refusal::invalid("/applyAt", message));
        }
        demand_approvals(tx, scope, &stepping).await?;
        rehearse(tx, scope, &stepping.items).await?;
        stepping.set.apply_at = Some(at);
        stepping.set.scheduled_key = Some(scope.caller().key());
        stepping.set.scheduled_by = Some(scope.actor().to_owned());
        text = rfc3339(at);
    }
    stepping.finish(tx, scope, step, &text).await
}

async fn demand_approvals(
    tx: &mut Tx,
    scope: &NamespaceScope,
    stepping: &Stepping,
) -> Result<(), Refusal> {
    let approvals = approvals(tx, scope, &stepping.set, &stepping.items, &stepping.events).await?;
    match approvals.iter().find(|approvals| !approvals.are_enough()) {
        None => Ok(()),
        Some(lacking) => Err(Refusal::ApprovalsLacking {
            environment: lacking.environment.clone(),
            needed: lacking.required,
            given: lacking.given(),
        }),
    }
}

/// What became of a set that was to be applied.
#[derive(Debug)]
pub enum Outcome {
    Applied(Box<Whole>),
    /// It is in conflict now, and says so; that has to be committed too.
    Conflict(Vec<String>),
}

/// By whose right it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The caller's.
    Caller,
    /// That of whoever scheduled it.
    Schedule,
}

pub async fn apply(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
) -> Result<Outcome, Refusal> {
    apply_by(tx, scope, number, expected, By::Caller).await
}

/// Applies a set that is due; None if it is not, or not any more: then nothing of this is kept.
pub async fn apply_due(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
) -> Result<Option<Outcome>, Refusal> {
    let seen = find(tx, scope, number).await?;
    if !is_due(tx, &seen).await? {
        return Ok(None);
    }
    let expected = Expected::Version(seen.version);
    match apply_by(tx, scope, number, expected, By::Schedule).await {
        Ok(outcome) => Ok(Some(outcome)),
        // Somebody was faster: the next look finds what they made of it.
        Err(Refusal::Stale { .. }) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

async fn is_due(tx: &mut Connection, set: &ChangeSet) -> Result<bool, Refusal> {
    let now = tx.clock_us().await?;
    Ok(set.state == State::Scheduled && set.apply_at.is_some_and(|at| at <= now))
}

/// Writes down why a set that was due could not be applied. Whether it did: somebody may have
/// been faster.
pub async fn fail_due(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    why: &str,
) -> Result<bool, Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, Expected::Any).await?;
    if !is_due(tx, &stepping.before).await? {
        return Ok(false);
    }
    stepping.step(Step::Fail)?;
    stepping.unschedule();
    stepping.set.reason = Some(why.to_owned());
    stepping.finish(tx, scope, Step::Fail, why).await?;
    Ok(true)
}

async fn apply_by(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    expected: Expected,
    by: By,
) -> Result<Outcome, Refusal> {
    // The namespace's lock first, as in every change: from here on the set stays as it is, and so do
    // the environments that it touches, which are locked next, in their order.
    audit::lock(tx, scope.id()).await?;
    find(tx, scope, number).await?;
    let seen_items = items::of(tx, scope, number).await?;
    let change = begin_applying(tx, scope, &seen_items).await?;
    let mut stepping = Stepping::on(tx, scope, number, expected, change).await?;
    stepping.step(Step::Apply)?;
    match by {
        By::Caller => items::demand_items(tx, scope, &stepping.items).await?,
        By::Schedule => demand_of_scheduler(tx, scope, &stepping).await?,
    }
    demand_approvals(tx, scope, &stepping).await?;
    let conflicts = items::conflicts(tx, scope, &stepping.items).await?;
    if !conflicts.is_empty() {
        return Ok(Outcome::Conflict(conflicts));
    }
    stepping.change.change_set = Some(number);
    items::carry_out(tx, scope, &mut stepping.change, &stepping.items).await?;
    let raised = &stepping.change.raised;
    stepping.set.revisions = raised.iter().map(|one| (one.key.clone(), one.revision)).collect();
    stepping.set.applied_at = Some(stepping.change.at);
    stepping.set.applied_by = Some(match &stepping.set.scheduled_by {
        Some(scheduled_by) if by == By::Schedule => {
            format!("{}, scheduled by {scheduled_by}", scope.actor())
        }
        _ => scope.actor().to_owned(),
    });
    stepping.unschedule();
    stepping.set.reason = None;
    let whole = stepping.finish(tx, scope, Step::Apply, "").await?;
    Ok(Outcome::Applied(Box::new(whole)))
}

/// Writes down that a set is in conflict, in a transaction of its own: the one that found it out had
/// raised environments.
pub async fn collide(
    tx: &mut Tx,
    scope: &NamespaceScope,
    number: i64,
    of: &[String],
) -> Result<(), Refusal> {
    let mut stepping = Stepping::begin(tx, scope, number, Expected::Any).await?;
    let conflicts = items::conflicts(tx, scope, &stepping.items).await?;
    if conflicts.is_empty() || stepping.step(Step::Collide).is_err() {
        // It was mended meanwhile, or somebody has said what becomes of it.
        return Ok(());
    }
    stepping.unschedule();
    let why = of.join(", ");
    stepping.set.reason = Some(why.clone());
    stepping.finish(tx, scope, Step::Collide, &why).await?;
    Ok(())
}

/// Whoever scheduled it has to be one who may apply it, still.
async fn demand_of_scheduler(
    tx: &mut Tx,
    scope: &NamespaceScope,
    stepping: &Stepping,
) -> Result<(), Refusal> {
    let key = stepping.set.scheduled_key.clone().unwrap_or_default();
    for item in &stepping.items {
        let environment = items::environments_of(tx, scope, item).await??;
        let (needed, place) = match &environment {
            Some(environment) => (Permission::Configure, Some(environment.id.as_str())),
            None => (Permission::Write, None),
        };
        if !authorize::may_now(tx, scope.id(), &key, needed, place).await? {
            let who = stepping.set.scheduled_by.clone().unwrap_or_default();
            return Err(Refusal::Forbidden { needed: needed.name(), who });
        }
    }
    Ok(())
}
