//! Who refers to a flag, a segment or a policy: what would break, or change its meaning, if it went.
//!
//! Read from what is stored, each time: there is no second list of it that could be wrong. What is
//! archived refers to nothing, as it is compiled into nothing; it is told, and blocks nothing, and
//! comes back only if what it refers to is there.

use rules::model::{FlagConfig, FlagDefinition, Segment};
use rules::references::{self, Target};
use serde::Serialize;
use utoipa::ToSchema;

use crate::authorize::NamespaceScope;
use crate::environments::Environment;
use crate::refusal::{Refusal, stored};
use crate::store::Connection;
use crate::store::query::query_as;

/// Of one answer; how many more there are is not counted.
pub const SHOWN_MAX: usize = 500;
/// Named by a refusal.
const NAMED_MAX: usize = 20;
/// Configurations that are read at once.
const BATCH: i64 = 1_000;

/// The text is only a sieve, and one that lets too much through: what is read decides. All
/// environments, unless `$3` names one.
const CONFIGS: &str = "SELECT f.key, e.key, f.definition, c.config FROM flag_config c \
    JOIN flag f ON f.id = c.flag_id JOIN environment e ON e.id = c.environment_id \
    WHERE f.namespace_id = $1 AND c.config LIKE $2 ESCAPE '\\' AND ($3 = '' OR e.id = $3) \
    AND (f.key > $4 OR (f.key = $4 AND e.key > $5)) ORDER BY f.key, e.key LIMIT $6";
const SEGMENTS: &str = "SELECT key, definition FROM segment WHERE environment_id = $1 AND key <> $2 \
    AND definition LIKE $3 ESCAPE '\\' ORDER BY key";
const PINS: &str = "SELECT e.key FROM policy_pin n JOIN policy p ON p.id = n.policy_id \
    JOIN environment e ON e.id = n.environment_id WHERE p.namespace_id = $1 AND p.name = $2 \
    ORDER BY e.key";
/// Of what is not over yet.
const CHANGE_SETS: &str = "SELECT DISTINCT s.number, i.environment FROM change_set_item i \
    JOIN change_set s ON s.namespace_id = i.namespace_id AND s.number = i.number \
    WHERE i.namespace_id = $1 AND i.kind IN ($2, $3) AND i.key = $4 \
    AND ($5 = '' OR i.environment = $5) AND s.state NOT IN ('applied', 'cancelled') \
    ORDER BY s.number, i.environment LIMIT $6";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Referrer {
    /// A flag's configuration: its prerequisites, or its rules.
    Flag,
    /// A rule of a segment.
    Segment,
    /// An environment runs a version of the policy.
    PolicyPin,
    /// A change set that is not over yet would change it; if it goes, that one is in conflict.
    ChangeSet,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    pub kind: Referrer,
    /// Of the flag or the segment; the change set's number; the policy's name.
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Ids of a flag's rules that refer to it; none: the flag as a whole does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Whether it has to be gone before what it refers to can go.
    pub blocks: bool,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct References {
    pub items: Vec<Reference>,
    /// Whether there are more of them than these.
    pub more: bool,
}

impl Reference {
    /// `flag "a" in "production" (rule "r")`
    fn told(&self) -> String {
        let mut told = match self.kind {
            Referrer::Flag => format!("flag {:?}", self.key),
            Referrer::Segment => format!("segment {:?}", self.key),
            Referrer::PolicyPin => format!("a pin of policy {:?}", self.key),
            Referrer::ChangeSet => format!("change set {}", self.key),
        };
        if let Some(environment) = &self.environment {
            told.push_str(&format!(" in {environment:?}"));
        }
        if let Some(rule) = self.rules.first() {
            let more = if self.rules.len() > 1 { " and others" } else { "" };
            told.push_str(&format!(" (rule {rule:?}{more})"));
        }
        told
    }
}

impl References {
    fn push(&mut self, reference: Reference) -> bool {
        match self.items.len() < SHOWN_MAX {
            true => self.items.push(reference),
            false => self.more = true,
        }
        !self.more
    }

    /// Refused while something refers to it that would not load without it.
    pub fn refuse_if_needed(&self) -> Result<(), Refusal> {
        let needed = self.items.iter().filter(|reference| reference.blocks);
        let by: Vec<String> = needed.take(NAMED_MAX).map(Reference::told).collect();
        match by.is_empty() {
            true => Ok(()),
            false => Err(Refusal::InUse { by }),
        }
    }
}

/// Does not say whether there is such a flag.
pub async fn of_flag(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<References, Refusal> {
    let mut found = needing_flag(read, scope, key).await?;
    change_sets(read, scope, ["config", "definition"], key, "", &mut found).await?;
    Ok(found)
}

/// As `of_flag`, without change sets, which block nothing.
pub async fn needing_flag(
    read: &mut Connection,
    scope: &NamespaceScope,
    key: &str,
) -> Result<References, Refusal> {
    let mut found = References::default();
    flags(read, scope, Target::Flag(key), "", &mut found).await?;
    Ok(found)
}

pub async fn of_segment(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &Environment,
    key: &str,
) -> Result<References, Refusal> {
    let mut found = needing_segment(read, scope, environment, key).await?;
    change_sets(read, scope, ["segment", "segment"], key, &environment.key, &mut found).await?;
    Ok(found)
}

/// As `of_segment`, without change sets, which block nothing.
pub async fn needing_segment(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &Environment,
    key: &str,
) -> Result<References, Refusal> {
    let mut found = References::default();
    flags(read, scope, Target::Segment(key), &environment.id, &mut found).await?;
    let rows: Vec<(String, String)> = query_as(SEGMENTS)
        .bind(&environment.id)
        .bind(key)
        .bind(naming(key)?)
        .fetch_all(read)
        .await?;
    for (other, definition) in rows {
        let segment: Segment = stored("segment", &definition)?;
        let reference = Reference {
            kind: Referrer::Segment,
            key: other,
            environment: Some(environment.key.clone()),
            rules: Vec::new(),
            blocks: true,
        };
        if references::of_segment(&segment).contains(&key) && !found.push(reference) {
            break;
        }
    }
    Ok(found)
}

pub async fn of_policy(
    read: &mut Connection,
    scope: &NamespaceScope,
    name: &str,
) -> Result<References, Refusal> {
    let mut found = References::default();
    let pins: Vec<(String,)> =
        query_as(PINS).bind(scope.id()).bind(name).fetch_all(&mut *read).await?;
    for (environment,) in pins {
        let reference = Reference {
            kind: Referrer::PolicyPin,
            key: name.to_owned(),
            environment: Some(environment),
            rules: Vec::new(),
            blocks: true,
        };
        found.push(reference);
    }
    flags(read, scope, Target::Policy(name), "", &mut found).await?;
    change_sets(read, scope, ["policy-pin", "policy-pin"], name, "", &mut found).await?;
    Ok(found)
}

/// What would not load in an environment that pins no version of it.
pub async fn needing_pin(
    read: &mut Connection,
    scope: &NamespaceScope,
    environment: &Environment,
    name: &str,
) -> Result<References, Refusal> {
    let mut found = References::default();
    flags(read, scope, Target::Policy(name), &environment.id, &mut found).await?;
    Ok(found)
}

async fn flags(
    read: &mut Connection,
    scope: &NamespaceScope,
    target: Target<'_>,
    environment_id: &str,
    found: &mut References,
) -> Result<(), Refusal> {
    let (Target::Flag(name) | Target::Segment(name) | Target::Policy(name)) = target;
    let naming = naming(name)?;
    let (mut flag, mut environment) = (String::new(), String::new());
    loop {
        let rows: Vec<(String, String, String, String)> = query_as(CONFIGS)
            .bind(scope.id())
            .bind(&naming)
            .bind(environment_id)
            .bind(&flag)
            .bind(&environment)
            .bind(BATCH)
            .fetch_all(&mut *read)
            .await?;
        let is_last = (rows.len() as i64) < BATCH;
        for (key, place, definition, config) in rows {
            let config: FlagConfig = stored("flag configuration", &config)?;
            let definition: FlagDefinition = stored("flag definition", &definition)?;
            (flag, environment) = (key, place);
            let references = references::of_config(&config);
            let mut to_it = references.iter().filter(|one| one.to == target).peekable();
            if to_it.peek().is_none() {
                continue;
            }
            let mut rules: Vec<String> =
                to_it.filter_map(|one| one.rule.map(str::to_owned)).collect();
            rules.dedup();
            let reference = Reference {
                kind: Referrer::Flag,
                key: flag.clone(),
                environment: Some(environment.clone()),
                rules,
                blocks: !definition.archived,
            };
            if !found.push(reference) {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn change_sets(
    read: &mut Connection,
    scope: &NamespaceScope,
    [kind, or]: [&str; 2],
    key: &str,
    environment: &str,
    found: &mut References,
) -> Result<(), Refusal> {
    let rows: Vec<(i64, Option<String>)> = query_as(CHANGE_SETS)
        .bind(scope.id())
        .bind(kind)
        .bind(or)
        .bind(key)
        .bind(environment)
        .bind(SHOWN_MAX as i64 + 1)
        .fetch_all(read)
        .await?;
    for (number, environment) in rows {
        let (kind, key) = (Referrer::ChangeSet, number.to_string());
        let reference = Reference { kind, key, environment, rules: Vec::new(), blocks: false };
        if !found.push(reference) {
            break;
        }
    }
    Ok(())
}

/// A pattern of JSON texts that have this string in them.
fn naming(key: &str) -> Result<String, Refusal> {
    let text = crate::refusal::written("key", &key)?;
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for char in text.chars() {
        if matches!(char, '\\' | '%' | '_') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern.push('%');
    Ok(pattern)
}
