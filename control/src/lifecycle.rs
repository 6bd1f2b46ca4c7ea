//! How flags grow old: which of them nobody seems to need any more, and what says so.
//!
//! Only told, never acted upon: what becomes of a flag is for people to decide. Computed from what is
//! stored when somebody asks, so it is never behind. A flag that is archived is not stale; it is gone.

use std::collections::{BTreeMap, HashMap};

use rules::date;
use rules::model::{Condition, FlagConfig, FlagDefinition, Lifetime, Serve};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::authorize::NamespaceScope;
use crate::flags::{self, FlagRow};
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, stored};
use crate::store::query::{query_as, query_scalar};
use crate::store::{Connection, now_us, rfc3339};

const MINUTE_US: i64 = 60 * 1_000_000;
const DAY_US: i64 = 24 * 60 * MINUTE_US;
pub const DAYS_MAX: i64 = 3_650;
/// Flags that are looked at together.
const BATCH: i64 = 200;

/// Of the flags between two keys, in all environments; none of where nobody has said anything.
const CONFIGS: &str = "SELECT f.key, e.key, c.config, c.updated_at FROM flag f \
    JOIN environment e ON e.namespace_id = f.namespace_id \
    LEFT JOIN flag_config c ON c.flag_id = f.id AND c.environment_id = e.id \
    WHERE f.namespace_id = $1 AND f.key >= $2 AND f.key <= $3 ORDER BY f.key, e.key";
const LAST_USES: &str = "SELECT u.flag, MAX(u.last_minute) FROM usage_flag u \
    JOIN environment e ON e.id = u.environment_id \
    WHERE e.namespace_id = $1 AND u.flag >= $2 AND u.flag <= $3 GROUP BY u.flag";
const LAST_REPORT: &str = "SELECT MAX(u.last_minute) FROM usage_flag u \
    JOIN environment e ON e.id = u.environment_id WHERE e.namespace_id = $1";

/// After how many days something is remarkable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    pub unused_days: i64,
    pub old_days: i64,
    pub settled_days: i64,
}

impl Default for Ages {
    fn default() -> Ages {
        Ages { unused_days: 30, old_days: 90, settled_days: 30 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It is temporary, and the day that it was meant to be gone by is past.
    Ended,
    /// It is temporary, nobody has said until when, and it was made long ago.
    Old,
    /// No edge and no browser has evaluated it for long, while others were evaluated.
    Unused,
    /// It is temporary, and in each environment everybody has had the same for long.
    Settled,
}

/// Why a flag looks as if nobody needed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stale {
    pub reason: Reason,
    /// RFC 3339: since when it is so, which is before it became remarkable.
    pub since: String,
    /// For people.
    pub detail: String,
}

/// A flag with what is known of its life.
#[derive(Debug, Clone)]
pub struct Known {
    pub row: FlagRow,
    pub definition: FlagDefinition,
    pub stale: Vec<Stale>,
    /// Microseconds; to the minute, of all environments.
    pub last_evaluated_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Archived {
    No,
    Yes,
    Any,
}

/// What of a flag has to be so, to be listed.
#[derive(Debug, Clone)]
pub struct Filter {
    pub archived: Archived,
    pub owner: Option<String>,
    pub tag: Option<String>,
    pub lifetime: Option<Lifetime>,
    /// The inner None: for whatever reason.
    pub stale: Option<Option<Reason>>,
    pub ages: Ages,
}

impl Filter {
    fn takes(&self, flag: &Known) -> bool {
        let definition = &flag.definition;
        let archived = match self.archived {
            Archived::No => !definition.archived,
            Archived::Yes => definition.archived,
            Archived::Any => true,
        };
        archived
            && self.owner.as_ref().is_none_or(|owner| definition.owner == *owner)
            && self.tag.as_ref().is_none_or(|tag| definition.tags.contains(tag))
            && self.lifetime.is_none_or(|lifetime| definition.lifetime == lifetime)
            && self.stale.is_none_or(|wanted| {
                flag.stale.iter().any(|stale| wanted.is_none_or(|wanted| stale.reason == wanted))
            })
    }
}

/// Flags that the filter takes, by key. Call it in one transaction.
pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
    filter: &Filter,
) -> Result<Paged<Known>, Refusal> {
    let mut taken = Vec::new();
    let mut after = page.after.clone();
    // Mostly the page is among the first; a filter may take few.
    let mut batch = page.fetch();
    loop {
        let rows = flags::after(read, scope, &after, batch).await?;
        let is_last = (rows.len() as i64) < batch;
        batch = BATCH;
        if let Some(last) = rows.last() {
            after.clone_from(&last.key);
        }
        let known = known(read, scope, rows, filter.ages, now_us()).await?;
        taken.extend(known.into_iter().filter(|flag| filter.takes(flag)));
        if is_last || taken.len() as i64 >= page.fetch() {
            return Ok(page.cut(taken, |flag| flag.row.key.clone()));
        }
    }
}

pub async fn one(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
    ages: Ages,
) -> Result<Known, Refusal> {
    let row = flags::get(read, scope, key).await?;
    let mut known = known(read, scope, vec![row], ages, now_us()).await?;
    known.pop().ok_or(Refusal::NotFound("flag"))
}

/// What is known of flags that come in the order of their keys.
async fn known(
    read: &mut Connection,
    scope: &NamespaceScope,
    rows: Vec<FlagRow>,
    ages: Ages,
    now: i64,
) -> Result<Vec<Known>, Refusal> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
    let (first, last) = (&first.key, &last.key);
    let configs = query_as(CONFIGS).bind(scope.id()).bind(first).bind(last);
    let configs: Vec<(String, String, Option<String>, Option<i64>)> =
        configs.fetch_all(&mut *read).await?;
    let uses = query_as(LAST_USES).bind(scope.id()).bind(first).bind(last);
    let uses: Vec<(String, i64)> = uses.fetch_all(&mut *read).await?;
    let uses: HashMap<String, i64> = uses.into_iter().collect();
    let report = query_scalar::<Option<i64>>(LAST_REPORT).bind(scope.id());
    let last_report = report.fetch_one(&mut *read).await?.map(|minute| minute * MINUTE_US);

    let mut places: HashMap<String, Vec<Place>> = HashMap::new();
    for (key, environment, config, changed_at) in configs {
        let served = match config {
            None => Some(Served::Off),
            Some(config) => everybody(&stored("flag configuration", &config)?),
        };
        let place = Place { environment, served, changed_at };
        places.entry(key).or_default().push(place);
    }
    rows.into_iter()
        .map(|row| {
            let definition = row.definition()?;
            let last_evaluated_at = uses.get(&row.key).map(|minute| minute * MINUTE_US);
            let life = Life {
                created_at: row.created_at,
                updated_at: row.updated_at,
                last_evaluated_at,
                last_report,
                places: places.remove(&row.key).unwrap_or_default(),
            };
            let stale = life.stale(&definition, ages, now);
            Ok(Known { row, definition, stale, last_evaluated_at })
        })
        .collect()
}

/// What a flag does in one environment, as far as it matters here.
#[derive(Debug)]
struct Place {
    environment: String,
    /// None: it depends on who asks.
    served: Option<Served>,
    changed_at: Option<i64>,
}

/// What everybody has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Served {
    Off,
    Variant(String),
    CodeDefault,
}

/// Times are microseconds.
#[derive(Debug)]
struct Life {
    created_at: i64,
    updated_at: i64,
    last_evaluated_at: Option<i64>,
    /// When some flag of the namespace was evaluated last.
    last_report: Option<i64>,
    places: Vec<Place>,
}

impl Life {
    fn stale(&self, definition: &FlagDefinition, ages: Ages, now: i64) -> Vec<Stale> {
        if definition.archived {
            return Vec::new();
        }
        let mut stale = Vec::new();
        let mut say = |reason, since: i64, detail: String| {
            stale.push(Stale { reason, since: rfc3339(since), detail });
        };
        let days = |since: i64| (now - since).div_euclid(DAY_US);
        let is_temporary = definition.lifetime == Lifetime::Temporary;
        let end = definition.expected_end.as_deref().and_then(date::day_ms);
        match (end, &definition.expected_end) {
            (Some(end_ms), Some(day)) if is_temporary => {
                // The day itself is still its own.
                let ended = end_ms * 1_000 + DAY_US;
                if now >= ended {
                    say(Reason::Ended, ended, format!("it was expected to be gone by {day}"));
                }
            }
            _ if is_temporary && days(self.created_at) >= ages.old_days => {
                let days = days(self.created_at);
                let detail = format!("made {days} days ago, temporary, and nobody said until when");
                say(Reason::Old, self.created_at, detail);
            }
            _ => {}
        }
        let since = self.last_evaluated_at.unwrap_or(self.created_at);
        // Where nobody reports, or the reports have stopped, no use says nothing.
        let is_told = self.last_report.is_some_and(|at| days(at) < ages.unused_days);
        if is_told && days(since) >= ages.unused_days {
            let detail = match self.last_evaluated_at {
                Some(_) => format!("not evaluated anywhere for {} days", days(since)),
                None => format!("never evaluated since it was made, {} days ago", days(since)),
            };
            say(Reason::Unused, since, detail);
        }
        if is_temporary && let Some((since, served)) = self.settled() {
            let days = days(since);
            if days >= ages.settled_days {
                say(Reason::Settled, since, format!("{served}, unchanged for {days} days"));
            }
        }
        stale
    }

    /// Since when, and what everybody has where.
    fn settled(&self) -> Option<(i64, String)> {
        let mut by_served: BTreeMap<&Served, Vec<&str>> = BTreeMap::new();
        for place in &self.places {
            by_served.entry(place.served.as_ref()?).or_default().push(&place.environment);
        }
        let changes = self.places.iter().filter_map(|place| place.changed_at);
        let since = changes.fold(self.updated_at, i64::max);
        let one = |(served, places): (&Served, Vec<&str>)| {
            let what = match served {
                Served::Off => "off".to_owned(),
                Served::Variant(variant) => format!("{variant:?} for everybody"),
                Served::CodeDefault => "the caller's default for everybody".to_owned(),
            };
            let more = if places.len() > 5 { " and more" } else { "" };
            let first: Vec<&str> = places.into_iter().take(5).collect();
            format!("{what} in {}{more}", first.join(", "))
        };
        let told: Vec<String> = by_served.into_iter().map(one).collect();
        (!told.is_empty()).then(|| (since, told.join("; ")))
    }
}

/// None: it depends on who asks, or when.
fn everybody(config: &FlagConfig) -> Option<Served> {
    if !config.enabled {
        return Some(Served::Off);
    }
    if !config.prerequisites.is_empty() {
        return None;
    }
    let serve = match config.rules.first() {
        None => &config.fallthrough,
        Some(rule) => {
            let is_for_all = matches!(rule.when, None | Some(Condition::Always(true)))
                && rule.active.is_none()
                && rule.prerequisites.is_empty();
            rule.serve.as_ref().filter(|_| is_for_all)?
        }
    };
    match serve {
        Serve::Variant(variant) => Some(Served::Variant(variant.clone())),
        Serve::CodeDefault => Some(Served::CodeDefault),
        Serve::Split(split) => {
            // One that takes everybody, as a rollout is at its end.
            let mut with_weight = split.weights.iter().filter(|(_, weight)| **weight > 0);
            let (variant, _) = with_weight.next()?;
            let is_whole = with_weight.next().is_none()
                && split.ramp.is_none()
                && split.all_of.is_empty()
                && split.arms.is_empty();
            is_whole.then(|| Served::Variant(variant.clone()))
        }
        Serve::Logic(_) | Serve::Next => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// 2026-06-01T00:00:00Z
    const NOW: i64 = 1_780_272_000_000_000;

    fn definition(extra: Value) -> FlagDefinition {
        let mut definition = json!({ "key": "f", "type": "boolean",
            "variants": { "on": true, "off": false } });
        if let (Value::Object(fields), Value::Object(extra)) = (&mut definition, extra) {
            fields.extend(extra);
        }
        serde_json::from_value(definition).unwrap()
    }

    fn served(config: Value) -> Option<Served> {
        everybody(&serde_json::from_value(config).unwrap())
    }

    fn place(served: Option<Served>, changed_days_ago: i64) -> Place {
        let changed_at = Some(NOW - changed_days_ago * DAY_US);
        Place { environment: "production".to_owned(), served, changed_at }
    }

    fn life(made_days_ago: i64) -> Life {
        Life {
            created_at: NOW - made_days_ago * DAY_US,
            updated_at: NOW - made_days_ago * DAY_US,
            last_evaluated_at: Some(NOW - DAY_US),
            last_report: Some(NOW - DAY_US),
            places: vec![place(None, 1)],
        }
    }

    fn reasons(life: &Life, definition: &FlagDefinition) -> Vec<Reason> {
        let stale = life.stale(definition, Ages::default(), NOW);
        stale.iter().map(|stale| stale.reason).collect()
    }

    #[test]
    fn a_temporary_flag_is_stale_when_its_day_is_past_and_not_on_it() {
        let ends = |day: &str| definition(json!({ "expectedEnd": day }));
        assert_eq!(reasons(&life(400), &ends("2026-06-01")), []);
        assert_eq!(reasons(&life(400), &ends("2026-05-31")), [Reason::Ended]);
        assert_eq!(reasons(&life(89), &definition(json!({}))), []);
        assert_eq!(reasons(&life(90), &definition(json!({}))), [Reason::Old]);
        let permanent = definition(json!({ "lifetime": "permanent" }));
        assert_eq!(reasons(&life(400), &permanent), []);
        let archived = definition(json!({ "expectedEnd": "2020-01-01", "archived": true }));
        assert_eq!(reasons(&life(400), &archived), []);
    }

    #[test]
    fn what_is_not_evaluated_is_unused_only_where_others_are_seen() {
        let flag = definition(json!({ "lifetime": "permanent" }));
        let mut life = life(100);
        life.last_evaluated_at = Some(NOW - 29 * DAY_US);
        assert_eq!(reasons(&life, &flag), []);
        life.last_evaluated_at = Some(NOW - 30 * DAY_US);
        assert_eq!(reasons(&life, &flag), [Reason::Unused]);
        life.last_evaluated_at = None;
        assert_eq!(reasons(&life, &flag), [Reason::Unused]);
        life.last_report = Some(NOW - 31 * DAY_US);
        assert_eq!(reasons(&life, &flag), []);
        life.last_report = None;
        assert_eq!(reasons(&life, &flag), []);
        // Made a moment ago: nobody can have asked for it for long.
        let young = Life { last_evaluated_at: None, ..self::life(3) };
        assert_eq!(reasons(&young, &flag), []);
    }

    #[test]
    fn a_flag_that_gives_everybody_the_same_everywhere_has_settled() {
        let flag = definition(json!({ "expectedEnd": "2026-12-31" }));
        let on = Some(Served::Variant("on".to_owned()));
        let mut life = life(100);
        life.places = vec![place(on.clone(), 31), place(Some(Served::Off), 50)];
        let stale = life.stale(&flag, Ages::default(), NOW);
        assert_eq!(stale.len(), 1, "{stale:?}");
        assert_eq!(
            stale[0].detail,
            "off in production; \"on\" for everybody in production, unchanged for 31 days"
        );
        life.places.push(place(None, 50));
        assert_eq!(reasons(&life, &flag), []);
        life.places.pop();
        life.places.push(place(on, 3));
        assert_eq!(reasons(&life, &flag), []);
        life.places.pop();
        assert_eq!(reasons(&life, &definition(json!({ "lifetime": "permanent" }))), []);
    }

    #[test]
    fn whether_everybody_has_the_same_is_read_off_the_configuration() {
        let on = Some(Served::Variant("on".to_owned()));
        let fall = |more: Value| {
            let mut config = json!({ "enabled": true, "fallthrough": { "variant": "off" } });
            if let (Value::Object(fields), Value::Object(more)) = (&mut config, more) {
                fields.extend(more);
            }
            served(config)
        };
        let rule = |rule: Value| fall(json!({ "rules": [rule] }));
        assert_eq!(fall(json!({ "fallthrough": { "variant": "on" } })), on);
        assert_eq!(fall(json!({ "enabled": false })), Some(Served::Off));
        assert_eq!(fall(json!({ "fallthrough": "codeDefault" })), Some(Served::CodeDefault));
        assert_eq!(rule(json!({ "id": "r", "serve": { "variant": "on" } })), on);
        assert_eq!(
            rule(json!({ "id": "r", "when": { "always": true }, "serve": { "variant": "on" } })),
            on
        );
        let whole = json!({ "split": { "weights": { "on": 100_000, "off": 0 } } });
        assert_eq!(fall(json!({ "fallthrough": whole })), on);
        for depends in [
            json!({ "id": "r", "when": { "segment": ["s"] }, "serve": { "variant": "on" } }),
            json!({ "id": "r", "active": { "to": "2027-01-01T00:00:00Z" },
                "serve": { "variant": "on" } }),
            json!({ "id": "r", "prerequisites": [ { "flag": "g", "variants": ["on"] } ],
                "serve": { "variant": "on" } }),
            json!({ "id": "r", "policy": { "name": "p" } }),
            json!({ "id": "r", "serve": { "split": { "weights": { "on": 1, "off": 99_999 } } } }),
        ] {
            assert_eq!(rule(depends.clone()), None, "{depends}");
        }
        let needed = json!({ "prerequisites": [ { "flag": "g", "variants": ["on"] } ] });
        assert_eq!(fall(needed), None);
    }
}
