//! The items of change sets: as their authors write them, as they are kept, how their things stand
//! now, and how they are applied.
//!
//! An item is about one thing, which it replaces whole. It keeps what was there when it was made, so
//! what was done meanwhile is seen. Each is asked about by the right that its thing takes.
//!
//! Next: `change_sets.rs` (the sets and their steps).

use std::collections::BTreeMap;

use rules::compile::Problem;
use rules::model::{FlagConfig, FlagDefinition};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::audit::Entry;
use crate::authorize::{NamespaceScope, Permission};
use crate::change::{self, Change, Expected, pointer_segment, within};
use crate::environments::{self, Environment};
use crate::impact::Draft;
use crate::policies::{self, Move, Pin};
use crate::refusal::{Refusal, check_zero, stored};
use crate::segments;
use crate::store::query::{query, query_as};
use crate::store::{Connection, Tx};
use crate::versions::diff;
use crate::{configs, flags};

pub const ITEMS_MAX: usize = 200;
/// Of the items' values together.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;

const ITEMS: &str = "SELECT kind, environment, key, value, base_version, base FROM change_set_item \
    WHERE namespace_id = $1 AND number = $2 ORDER BY position";
const ITEM_INSERT: &str = "INSERT INTO change_set_item (namespace_id, number, position, kind, \
    environment, key, value, base_version, base) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const ITEMS_DELETE: &str = "DELETE FROM change_set_item WHERE namespace_id = $1 AND number = $2";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What a flag does in an environment.
    Config,
    /// What a flag is in all environments.
    Definition,
    /// A segment of an environment, with its ids if they are few.
    Segment,
    /// The version of a policy that an environment runs.
    PolicyPin,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Config => "config",
            Kind::Definition => "definition",
            Kind::Segment => "segment",
            Kind::PolicyPin => "policy-pin",
        }
    }

    fn parse(name: &str) -> Result<Kind, Refusal> {
        [Kind::Config, Kind::Definition, Kind::Segment, Kind::PolicyPin]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Refusal::Internal(format!("an item is stored as {name:?}")))
    }
}

/// One edit, as its author writes it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewItem {
    pub kind: Kind,
    /// Of all kinds but definitions.
    #[serde(default)]
    pub environment: Option<String>,
    /// Of the flag, the segment or the policy.
    pub key: String,
    /// What shall be there, as the body of its own PUT; null: it shall be gone (not of a config).
    #[schema(value_type = Option<Object>)]
    pub value: Value,
    /// The version that it is made on, 0 for what is not there yet; the current one unless said.
    #[serde(default)]
    pub base_version: Option<i64>,
}

#[derive(Debug, Clone)]
pub struct Item {
    pub kind: Kind,
    pub environment: Option<String>,
    pub key: String,
    pub value: Option<Value>,
    pub base_version: i64,
    pub base: Option<Value>,
}

impl Item {
    /// What has to be done to what it was made on.
    pub fn diff(&self) -> Value {
        diff(
            self.base.as_ref().unwrap_or(&Value::Null),
            self.value.as_ref().unwrap_or(&Value::Null),
        )
    }

    pub fn is_in_conflict(&self, now: &Standing) -> bool {
        self.base_version != now.version || self.base != now.content
    }

    pub(super) fn told(&self) -> String {
        match &self.environment {
            Some(environment) => format!("{} {:?} in {environment:?}", self.kind.name(), self.key),
            None => format!("{} {:?}", self.kind.name(), self.key),
        }
    }

    /// Whether some environment may answer somebody differently once it is applied.
    pub(super) fn serves_the_same(&self) -> Result<bool, Refusal> {
        if self.kind != Kind::Definition {
            return Ok(false);
        }
        let parse = |value: &Value| -> Result<FlagDefinition, Refusal> {
            stored("flag definition", &value.to_string())
        };
        Ok(match (&self.base, &self.value) {
            // As `flags::create`: it is off everywhere.
            (None, Some(_)) => true,
            (Some(base), Some(value)) => flags::serves_the_same(&parse(base)?, &parse(value)?),
            (_, None) => false,
        })
    }
}

/// What is there of an item's thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub version: i64,
    pub content: Option<Value>,
}

// --- As they are kept ----------------------------------------------------------------------------

pub(super) async fn of(
    read: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
) -> Result<Vec<Item>, Refusal> {
    type Stored = (String, Option<String>, String, Option<String>, i64, Option<String>);
    let rows: Vec<Stored> = query_as(ITEMS).bind(scope.id()).bind(number).fetch_all(read).await?;
    let json = |text: Option<String>| text.map(|text| stored("item", &text)).transpose();
    rows.into_iter()
        .map(|(kind, environment, key, value, base_version, base)| {
            let (kind, value, base) = (Kind::parse(&kind)?, json(value)?, json(base)?);
            Ok(Item { kind, environment, key, value, base_version, base })
        })
        .collect()
}

pub(super) async fn keep(
    tx: &mut Connection,
    scope: &NamespaceScope,
    number: i64,
    items: &[Item],
) -> Result<(), Refusal> {
    query(ITEMS_DELETE).bind(scope.id()).bind(number).execute(&mut *tx).await?;
    for (position, item) in items.iter().enumerate() {
        query(ITEM_INSERT)
            .bind(scope.id())
            .bind(number)
            .bind(i64::try_from(position).unwrap_or(i64::MAX))
            .bind(item.kind.name())
            .bind(&item.environment)
            .bind(&item.key)
            .bind(item.value.as_ref().map(Value::to_string))
            .bind(item.base_version)
            .bind(item.base.as_ref().map(Value::to_string))
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

// --- How their things stand ----------------------------------------------------------------------

/// An item's environment; the inner refusal: it is not there.
pub(super) async fn environments_of(
    read: &mut Connection,
    scope: &NamespaceScope,
    item: &Item,
) -> Result<Result<Option<Environment>, Refusal>, Refusal> {
    let Some(key) = &item.environment else { return Ok(Ok(None)) };
    match environments::get(read, scope, key).await {
        Ok(environment) => Ok(Ok(Some(environment))),
        Err(refusal @ Refusal::NotFound(_)) => Ok(Err(refusal)),
        Err(refusal) => Err(refusal),
    }
}

/// How an item's thing stands now.
pub(super) async fn standing(
    read: &mut Connection,
    scope: &NamespaceScope,
    item: &Item,
    environment: Option<&Environment>,
) -> Result<Standing, Refusal> {
    const NOTHING: Standing = Standing { version: 0, content: None };
    let none_if_absent = |refusal| match refusal {
        Refusal::NotFound(_) => Ok(NOTHING),
        refusal => Err(refusal),
    };
    let place = environment.map_or("", |environment| environment.id.as_str());
    match item.kind {
        Kind::Definition => match flags::find(read, scope, &item.key).await? {
            None => Ok(NOTHING),
            Some(row) => {
                let content = Some(stored("flag definition", &row.definition)?);
                Ok(Standing { version: row.version, content })
            }
        },
        Kind::Config => match flags::find(read, scope, &item.key).await? {
            None => Ok(NOTHING),
            Some(flag) => {
                let row = configs::with_config(read, place, flag).await?;
                let (version, config) = (row.version(), row.config);
                let content = config.map(|text| stored("flag configuration", &text)).transpose()?;
                Ok(Standing { version, content })
            }
        },
        Kind::Segment => match segments::find(read, place, &item.key).await {
            Ok(row) => {
                let mut content = segments::shown(read, &row).await?;
                if let Value::Object(fields) = &mut content {
                    for own in
                        ["version", "createdAt", "updatedAt", "includedCount", "excludedCount"]
                    {
                        fields.remove(own);
                    }
                }
                Ok(Standing { version: row.version, content: Some(content) })
            }
            Err(refusal) => none_if_absent(refusal),
        },
        Kind::PolicyPin => match policies::pinned(read, scope, place, &item.key).await? {
            None => Ok(NOTHING),
            Some(row) => Ok(Standing { version: row.version, content: Some(json!(row.pin())) }),
        },
    }
}

/// Items whose things are not as they were made on.
pub(super) async fn conflicts(
    read: &mut Connection,
    scope: &NamespaceScope,
    items: &[Item],
) -> Result<Vec<String>, Refusal> {
    let mut conflicts = Vec::new();
    for item in items {
        let now = match environments_of(read, scope, item).await? {
            Ok(environment) => standing(read, scope, item, environment.as_ref()).await?,
            Err(_) => {
                conflicts.push(format!("{} (the environment is gone)", item.told()));
                continue;
            }
        };
        if item.is_in_conflict(&now) {
            let (made, is) = (item.base_version, now.version);
            conflicts.push(format!("{} (made on version {made}, at {is} now)", item.told()));
        }
    }
    Ok(conflicts)
}

/// Ids of the environments, in the order of locks; None: all of the namespace.
pub(super) async fn environments_touched(
    read: &mut Connection,
    scope: &NamespaceScope,
    items: &[Item],
) -> Result<Option<Vec<String>>, Refusal> {
    let mut ids = Vec::new();
    for item in items {
        match environments_of(read, scope, item).await? {
            Ok(Some(environment)) => ids.push(environment.id),
            Ok(None) => return Ok(None),
            Err(_) => {}
        }
    }
    ids.sort();
    ids.dedup();
    Ok(Some(ids))
}

// --- As they are taken in ------------------------------------------------------------------------

/// What shall be there, read as strictly as its own route reads it.
enum Wanted {
    Config(FlagConfig),
    Definition(FlagDefinition),
    Segment(rules::model::Segment, segments::Ids),
    Pin(Pin),
    Gone,
}

fn wanted(item: &Item) -> Result<Wanted, Refusal> {
    fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
        rules::compile::parse(value.to_string().as_bytes())
            .map_err(|problem| Refusal::Invalid(vec![problem]))
    }
    let Some(value) = &item.value else {
        return match item.kind {
            Kind::Config => {
                let message = "a configuration is not taken away; turn the flag off";
                Err(Refusal::invalid("", message))
            }
            _ => Ok(Wanted::Gone),
        };
    };
    let keeps_key = |key: &str| match key == item.key {
        true => Ok(()),
        false => {
            Err(Refusal::invalid("/key", format!("it is not that of the item, {:?}", item.key)))
        }
    };
    match item.kind {
        Kind::Config => Ok(Wanted::Config(parse(value)?)),
        Kind::Definition => {
            let definition: FlagDefinition = parse(value)?;
            keeps_key(&definition.key)?;
            Ok(Wanted::Definition(definition))
        }
        Kind::Segment => {
            let (segment, ids) = segments::parse(parse(value)?)?;
            keeps_key(&segment.key)?;
            Ok(Wanted::Segment(segment, ids))
        }
        Kind::PolicyPin => Ok(Wanted::Pin(parse(value)?)),
    }
}

/// Reads items, finds what they are made on, and asks whether the caller may make them.
pub(super) async fn take_in(
    read: &mut Connection,
    scope: &NamespaceScope,
    new: Vec<NewItem>,
) -> Result<Vec<Item>, Refusal> {
    if !(1..=ITEMS_MAX).contains(&new.len()) {
        let message = format!("a change set has 1 to {ITEMS_MAX} items");
        return Err(Refusal::invalid("/items", message));
    }
    let mut items: Vec<Item> = Vec::with_capacity(new.len());
    let mut bytes = 0usize;
    for (index, new) in new.into_iter().enumerate() {
        let place = format!("/items/{index}");
        let invalid =
            |field: &str, message: &str| Refusal::invalid(format!("{place}{field}"), message);
        if (new.kind == Kind::Definition) != new.environment.is_none() {
            let message = "all kinds of items have an environment, but definitions";
            return Err(invalid("/environment", message));
        }
        check_zero(&format!("{place}/key"), &new.key)?;
        check_zero(&format!("{place}/environment"), new.environment.as_deref().unwrap_or(""))?;
        let value = Some(new.value).filter(|value| !value.is_null());
        let mut item = Item {
            kind: new.kind,
            environment: new.environment,
            key: new.key,
            value,
            base_version: 0,
            base: None,
        };
        let same = |other: &Item| {
            (other.kind, &other.environment, &other.key)
                == (item.kind, &item.environment, &item.key)
        };
        if items.iter().any(same) {
            return Err(invalid("", "another item is about the same"));
        }
        wanted(&item).map_err(|refusal| within(refusal, &format!("{place}/value")))?;
        let environment = match environments_of(read, scope, &item).await? {
            Ok(environment) => environment,
            Err(_) => return Err(invalid("/environment", "there is no such environment")),
        };
        match &environment {
            Some(environment) => scope.demand_in(Permission::Configure, &environment.id)?,
            None => scope.demand(Permission::Write)?,
        }
        let standing = standing(read, scope, &item, environment.as_ref()).await?;
        if item.value.is_none() && standing.version == 0 {
            return Err(invalid("/key", "there is nothing that could be taken away"));
        }
        item.base_version = new.base_version.unwrap_or(standing.version);
        // Made on another version than the current one, it is in conflict from the beginning, and says so.
        item.base = standing.content.filter(|_| item.base_version == standing.version);
        bytes += item.value.as_ref().map_or(0, |value| value.to_string().len());
        items.push(item);
    }
    if bytes > BYTES_MAX {
        let message = format!("{bytes} bytes, the limit is {BYTES_MAX}");
        return Err(Refusal::invalid("/items", message));
    }
    Ok(items)
}

/// Whether the caller may make these changes at all, approved or not.
pub(super) async fn demand_items(
    read: &mut Connection,
    scope: &NamespaceScope,
    items: &[Item],
) -> Result<(), Refusal> {
    for item in items {
        match environments_of(read, scope, item).await? {
            Ok(Some(environment)) => scope.demand_in(Permission::Configure, &environment.id)?,
            Ok(None) => scope.demand(Permission::Write)?,
            // Gone; what remains of it harms nobody.
            Err(_) => scope.demand(Permission::Configure)?,
        }
    }
    Ok(())
}

// --- As they are applied -------------------------------------------------------------------------

/// Carries them out, within a change that has raised all that they touch. What cannot be done and what
/// would not load afterwards is said at the item that it is of; of what would not load, all of it.
pub(super) async fn carry_out(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &mut Change,
    items: &[Item],
) -> Result<(), Refusal> {
    let (environments, mut left) = in_order(tx, scope, items).await?;
    while !left.is_empty() {
        // What others need goes once they are gone. Each round but the last lets one of them go.
        let (before, mut needed) = (left.len(), Vec::new());
        let mut refused = None;
        for index in std::mem::take(&mut left) {
            let Some(item) = items.get(index) else { continue };
            let place = item.environment.as_ref().and_then(|key| environments.get(key));
            match apply_item(tx, scope, change, item, place).await {
                Ok(row) => change.record(tx, row).await?,
                Err(refusal @ Refusal::InUse { .. }) => {
                    refused.get_or_insert(at_item(refusal, index));
                    needed.push(index);
                }
                Err(refusal) => return Err(at_item(refusal, index)),
            }
        }
        if let Some(refusal) = refused.filter(|_| needed.len() == before) {
            return Err(refusal);
        }
        left = needed;
    }
    let mut problems: Vec<Problem> = Vec::new();
    for raised in &change.raised {
        match change::check(tx, &raised.environment_id).await {
            Ok(()) => {}
            // A definition's may be the same in each environment.
            Err(Refusal::Invalid(more)) => {
                for problem in more.into_iter().map(|one| placed(one, items, &raised.key)) {
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
            Err(refusal) => return Err(refusal),
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Refusal::Invalid(problems)),
    }
}

/// Why one item cannot be done, at that item.
fn at_item(refusal: Refusal, index: usize) -> Refusal {
    let place = format!("/items/{index}");
    match refusal {
        Refusal::Invalid(_) => within(refusal, &format!("{place}/value")),
        Refusal::NotFound(_)
        | Refusal::Exists { .. }
        | Refusal::InUse { .. }
        | Refusal::Archived { .. }
        | Refusal::TooMany { .. } => Refusal::invalid(place, refusal.to_string()),
        refusal => refusal,
    }
}

/// What others need comes before them, and what is taken away goes last.
async fn in_order(
    tx: &mut Tx,
    scope: &NamespaceScope,
    items: &[Item],
) -> Result<(BTreeMap<String, Environment>, Vec<usize>), Refusal> {
    let mut environments = BTreeMap::new();
    for item in items {
        if let Some(environment) = environments_of(tx, scope, item).await?? {
            environments.insert(environment.key.clone(), environment);
        }
    }
    let archives = |item: &Item| {
        item.value.as_ref().is_some_and(|value| value["archived"] == Value::Bool(true))
    };
    let rank = |item: &Item| match (item.kind, item.value.is_some()) {
        (Kind::Definition, true) if archives(item) => 6,
        (Kind::Definition, true) => 0,
        (Kind::Segment, true) => 1,
        (Kind::PolicyPin, true) => 2,
        (Kind::Config, _) => 3,
        (Kind::PolicyPin, false) => 4,
        (Kind::Segment, false) => 5,
        (Kind::Definition, false) => 6,
    };
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|index| items.get(*index).map(rank));
    Ok((environments, order))
}

async fn apply_item(
    tx: &mut Tx,
    scope: &NamespaceScope,
    change: &Change,
    item: &Item,
    place: Option<&Environment>,
) -> Result<Entry, Refusal> {
    // The versions were compared before.
    let any = Expected::Any;
    let key = &item.key;
    let is_new = item.base_version == 0;
    match (wanted(item)?, place) {
        (Wanted::Definition(definition), None) if is_new => {
            Ok(flags::create_within(tx, scope, change, &definition).await?.1)
        }
        (Wanted::Definition(definition), None) => {
            Ok(flags::update_within(tx, scope, change, key, any, &definition).await?.1)
        }
        (Wanted::Gone, None) => flags::delete_within(tx, scope, change, key, any).await,
        (Wanted::Config(config), Some(place)) => {
            Ok(configs::set_within(tx, scope, change, place, key, any, &config).await?.1)
        }
        (Wanted::Segment(segment, ids), Some(place)) => {
            let expected = (!is_new).then_some(any);
            Ok(segments::put_within(tx, change, place, expected, &segment, &ids).await?.1)
        }
        (Wanted::Pin(pin), Some(place)) => {
            let to = Move::To(pin);
            Ok(policies::pin_within(tx, scope, change, place, key, any, to).await?.1)
        }
        (Wanted::Gone, Some(place)) if item.kind == Kind::Segment => {
            segments::delete_within(tx, scope, place, key, any).await
        }
        (Wanted::Gone, Some(place)) => policies::unpin_within(tx, scope, place, key, any).await,
        (Wanted::Definition(_), Some(_))
        | (Wanted::Config(_) | Wanted::Segment(..) | Wanted::Pin(_), None) => {
            Err(Refusal::Internal("an item is in the wrong place".to_owned()))
        }
    }
}

/// A problem of the compiler in one environment, at the item that it is of, as far as one is.
fn placed(mut problem: Problem, items: &[Item], environment: &str) -> Problem {
    for (index, item) in items.iter().enumerate() {
        if item.environment.as_ref().is_some_and(|key| key != environment) {
            continue;
        }
        let key = pointer_segment(&item.key);
        let prefix = match item.kind {
            Kind::Config => format!("/flags/{key}/config"),
            Kind::Definition => format!("/flags/{key}/definition"),
            Kind::Segment => format!("/segments/{key}"),
            Kind::PolicyPin => format!("/policies/{key}"),
        };
        if let Some(rest) = problem.pointer.strip_prefix(&prefix)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            problem.pointer = format!("/items/{index}/value{rest}");
            return problem;
        }
        // Of a flag that is not there.
        if item.kind == Kind::Config && problem.pointer == format!("/flags/{key}") {
            problem.pointer = format!("/items/{index}");
            return problem;
        }
    }
    // Elsewhere: what was there before does not go together with it.
    problem.message = format!("in {environment:?} at {}: {}", problem.pointer, problem.message);
    problem.pointer = "/items".to_owned();
    problem
}

// --- As they are previewed -----------------------------------------------------------------------

/// What they would make of one environment.
pub(super) fn drafted(items: &[Item], environment: &str) -> Result<Draft, Refusal> {
    let mut draft = Draft::default();
    for item in items {
        if item.environment.as_ref().is_some_and(|key| key != environment) {
            continue;
        }
        let key = item.key.clone();
        match (wanted(item)?, item.kind) {
            (Wanted::Definition(definition), _) => {
                draft.flags.entry(key).or_default().definition = Some(definition);
            }
            (Wanted::Config(config), _) => {
                draft.flags.entry(key).or_default().config = Some(config);
            }
            (Wanted::Segment(segment, ids), _) => {
                draft.segments.insert(key, Some((segment, ids)));
            }
            (Wanted::Pin(pin), _) => {
                draft.policies.insert(key, Some(pin));
            }
            (Wanted::Gone, Kind::Segment) => {
                draft.segments.insert(key, None);
            }
            (Wanted::Gone, Kind::PolicyPin) => {
                draft.policies.insert(key, None);
            }
            (Wanted::Gone, Kind::Definition | Kind::Config) => {
                draft.flags.entry(key).or_default().gone = true;
            }
        }
    }
    Ok(draft)
}

/// What is wrong with a preview of them, at the items.
pub(super) fn placed_all(refusal: Refusal, items: &[Item], environment: &str) -> Refusal {
    match refusal {
        Refusal::Invalid(problems) => {
            let of_state = |problem: &Problem| {
                let parts = ["/flags/", "/segments/", "/policies/"];
                parts.iter().any(|part| problem.pointer.starts_with(part))
            };
            let place = |problem| match of_state(&problem) {
                true => placed(problem, items, environment),
                // Of what was asked.
                false => problem,
            };
            Refusal::Invalid(problems.into_iter().map(place).collect())
        }
        refusal => refusal,
    }
}
