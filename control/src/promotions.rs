//! What differs between two environments, and taking it over from one into the other: as one change,
//! or as a change set for others to approve.

use std::collections::BTreeMap;
use std::sync::Arc;

use rules::compile::{FlagState, Problem};
use rules::model::FlagConfig;
use serde_json::{Value, json};

use crate::authorize::{NamespaceScope, Permission};
use crate::change::{Change, Expected, Touches, pointer_segment};
use crate::change_sets::items::{ITEMS_MAX, Kind, NewItem};
use crate::change_sets::{self, Whole};
use crate::configs::{self, Configured};
use crate::environments::{self, Environment, absent_config};
use crate::flags;
use crate::refusal::{Refusal, stored};
use crate::store::{Connection, Tx};
use crate::versions::diff;

/// One flag in two environments.
#[derive(Debug, Clone)]
pub struct Compared {
    pub from: Configured,
    pub to: Configured,
    pub from_config: FlagConfig,
    pub to_config: FlagConfig,
    /// Of its configuration in `to`, if it were promoted.
    pub problems: Vec<Problem>,
}

impl Compared {
    pub fn differs(&self) -> bool {
        self.from_config != self.to_config
    }

    /// What promoting it does to `to`.
    pub fn diff(&self) -> Value {
        diff(&json!(self.to_config), &json!(self.from_config))
    }
}

/// What a promotion would do.
#[derive(Debug, Clone)]
pub struct Preview {
    pub flags: Vec<Compared>,
    /// Of no flag of it in particular.
    pub problems: Vec<Problem>,
}

impl Preview {
    pub fn changes(&self) -> impl Iterator<Item = &Compared> {
        self.flags.iter().filter(|flag| flag.differs())
    }
}

pub async fn compare(
    read: &mut Connection,
    scope: &NamespaceScope,
    from: &str,
    to: &str,
    flag: &str,
) -> Result<Compared, Refusal> {
    let mut preview = preview(read, scope, from, to, &[flag.to_owned()]).await?;
    preview.flags.pop().ok_or(Refusal::NotFound("flag"))
}

/// Call it in one transaction.
pub async fn preview(
    read: &mut Connection,
    scope: &NamespaceScope,
    from: &str,
    to: &str,
    keys: &[String],
) -> Result<Preview, Refusal> {
    if !(1..=ITEMS_MAX).contains(&keys.len()) {
        let message = format!("1 to {ITEMS_MAX} flags");
        return Err(Refusal::invalid("/flags", message));
    }
    let from = environments::get(read, scope, from).await?;
    let to = environments::get(read, scope, to).await?;
    if from.id == to.id {
        return Err(Refusal::invalid("/to", "it is the environment that is promoted from"));
    }
    let mut compared: Vec<Compared> = Vec::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        if keys.iter().take(index).any(|other| other == key) {
            return Err(Refusal::invalid(format!("/flags/{index}"), "it is named twice"));
        }
        let flag = flags::get(read, scope, key).await?;
        let parse = |of: &Configured| match &of.config {
            Some(config) => stored("flag configuration", config),
            None => Ok(absent_config()),
        };
        let from = configs::with_config(read, &from.id, flag.clone()).await?;
        let to = configs::with_config(read, &to.id, flag).await?;
        let (from_config, to_config) = (parse(&from)?, parse(&to)?);
        compared.push(Compared { from, to, from_config, to_config, problems: Vec::new() });
    }
    let mut preview = Preview { flags: compared, problems: Vec::new() };
    check(read, &to, &mut preview).await?;
    Ok(preview)
}

/// Compiles `to` as it would be; what is wrong with it already is nobody's fault here.
async fn check(
    read: &mut Connection,
    to: &Environment,
    preview: &mut Preview,
) -> Result<(), Refusal> {
    let now = environments::load_afresh(read, &to.id).await?.state;
    let mut then = now.clone();
    for flag in preview.flags.iter().filter(|flag| flag.differs()) {
        let key = &flag.to.flag.key;
        for there in then.flags.iter_mut().filter(|there| there.definition.key == *key) {
            let definition = there.definition.clone();
            *there = Arc::new(FlagState { definition, config: flag.from_config.clone() });
        }
    }
    let problems = |compiled: Result<_, Vec<Problem>>| compiled.err().unwrap_or_default();
    let then = environments::try_compile(Arc::default(), &to.id, then).await?;
    let then = problems(then.map(drop));
    if then.is_empty() {
        return Ok(());
    }
    let now = problems(environments::try_compile(Arc::default(), &to.id, now).await?.map(drop));
    for mut problem in then.into_iter().filter(|problem| !now.contains(problem)) {
        let of = preview.flags.iter_mut().find_map(|flag| {
            let prefix = format!("/flags/{}/config", pointer_segment(&flag.to.flag.key));
            let rest = problem.pointer.strip_prefix(&prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| (rest.to_owned(), flag))
        });
        match of {
            Some((rest, flag)) => {
                problem.pointer = rest;
                flag.problems.push(problem);
            }
            None => preview.problems.push(problem),
        }
    }
    Ok(())
}

/// All of it or nothing, as one revision; None: nothing differs, and nothing of this is to be kept.
/// `bases` are versions that flags must still have in `to`.
pub async fn apply(
    tx: &mut Tx,
    scope: &NamespaceScope,
    from: &str,
    to: &str,
    keys: &[String],
    bases: &BTreeMap<String, i64>,
) -> Result<(Preview, Option<i64>), Refusal> {
    let place = environments::get(tx, scope, to).await?;
    scope.demand_in(Permission::Configure, &place.id)?;
    // Said before whether it is protected: a flag or an environment that is not there.
    let first = preview(tx, scope, from, to, keys).await?;
    if first.changes().next().is_none() {
        return Ok((first, None));
    }
    let mut change = Change::begin(tx, scope, Touches::One(&place.id)).await?;
    let preview = preview(tx, scope, from, to, keys).await?;
    let mut changed = 0usize;
    for flag in preview.changes() {
        let key = &flag.to.flag.key;
        let expected = bases.get(key).map_or(Expected::Any, |base| Expected::Version(*base));
        let config = &flag.from_config;
        let (_, entry) =
            configs::set_within(tx, scope, &change, &place, key, expected, config).await?;
        change.record(tx, entry).await?;
        changed += 1;
    }
    let entry = crate::audit::Entry {
        action: "environment.promote",
        target: place.key.clone(),
        environment: Some(place.key.clone()),
        before: None,
        after: Some(json!({ "from": from, "flags": changed })),
    };
    let raised = change.finish(tx, entry).await?;
    let revision = raised.first().map(|raised| raised.revision);
    Ok((preview, revision))
}

/// The same as a draft; None: nothing differs.
pub async fn as_change_set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    from: &str,
    to: &str,
    keys: &[String],
    title: Option<&str>,
) -> Result<(Preview, Option<Whole>), Refusal> {
    let preview = preview(tx, scope, from, to, keys).await?;
    let items: Vec<NewItem> = preview
        .changes()
        .map(|flag| NewItem {
            kind: Kind::Config,
            environment: Some(to.to_owned()),
            key: flag.to.flag.key.clone(),
            value: json!(flag.from_config),
            base_version: Some(flag.to.version()),
        })
        .collect();
    if items.is_empty() {
        return Ok((preview, None));
    }
    let made_up = format!(
        "Promote {} of {from} to {to}",
        match items.as_slice() {
            [one] => format!("{:?}", one.key),
            more => format!("{} flags", more.len()),
        }
    );
    // A key may be longer than a title.
    let end = (0..=256).rev().find(|at| made_up.is_char_boundary(*at)).unwrap_or(0);
    let made_up = made_up.get(..end.min(made_up.len())).unwrap_or("Promote");
    let title = title.unwrap_or(made_up);
    let whole = change_sets::create(tx, scope, title, "", items).await?;
    Ok((preview, Some(whole)))
}
