//! Roles of people and of service tokens in a namespace and in its environments.
//!
//! Nobody gives more than they have, nor takes away what they could not have given. A namespace's last
//! owner stays.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::audit::Entry;
use crate::authorize::{NamespaceScope, Permission, Role};
use crate::change::{Change, Touches};
use crate::page::{Page, Paged};
use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id};
use crate::users::{self, Invitation, User};

const ROLES: &str = "SELECT e.key, b.role, b.kill_switch FROM role_binding b \
    LEFT JOIN environment e ON e.id = b.environment_id \
    WHERE b.namespace_id = $1 AND (b.user_id = $2 OR b.token_id = $2)";
const PAGE: &str = "SELECT id, email, name, operator, password_hash IS NOT NULL AS has_password, \
    disabled_at, version, created_at, updated_at, last_seen_at FROM user_account u \
    WHERE u.email > $2 AND EXISTS (SELECT 1 FROM role_binding b WHERE b.namespace_id = $1 \
    AND b.user_id = u.id) ORDER BY u.email LIMIT $3";
const NAMESPACES: &str = "SELECT n.key, e.key, b.role, b.kill_switch FROM role_binding b \
    JOIN namespace n ON n.id = b.namespace_id LEFT JOIN environment e ON e.id = b.environment_id \
    WHERE b.user_id = $1 OR b.token_id = $1 ORDER BY n.key";
const ENVIRONMENT: &str = "SELECT id FROM environment WHERE namespace_id = $1 AND key = $2";
const CLEAR: &str = "DELETE FROM role_binding WHERE namespace_id = $1 \
    AND (user_id = $2 OR token_id = $2)";
const INSERT: &str = "INSERT INTO role_binding (id, namespace_id, environment_id, user_id, \
    token_id, role, kill_switch, created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const OTHER_OWNERS: &str = "SELECT COUNT(*) FROM role_binding b \
    JOIN user_account u ON u.id = b.user_id WHERE b.namespace_id = $1 AND b.user_id <> $2 \
    AND b.environment_id IS NULL AND b.role = 'owner' AND u.disabled_at IS NULL";

/// Whose roles.
#[derive(Debug, Clone)]
pub enum Holder {
    User(String),
    Token(String),
}

impl Holder {
    fn id(&self) -> &str {
        match self {
            Holder::User(id) | Holder::Token(id) => id,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    pub role: Role,
    /// Turns flags off past an environment's approvals.
    pub kill_switch: bool,
}

/// All roles of somebody in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    pub everywhere: Option<Given>,
    /// By the environment's key.
    pub environments: BTreeMap<String, Given>,
}

impl Roles {
    pub fn is_none(&self) -> bool {
        *self == Roles::default()
    }

    pub fn state(&self) -> Value {
        let given =
            |given: &Given| json!({ "role": given.role.name(), "killSwitch": given.kill_switch });
        let environments: BTreeMap<&String, Value> =
            self.environments.iter().map(|(key, one)| (key, given(one))).collect();
        json!({ "everywhere": self.everywhere.as_ref().map(given), "environments": environments })
    }

    fn add(&mut self, environment: Option<String>, role: &str, kill_switch: bool) {
        // A role that this build does not know gives nothing, and so is none.
        let Some(role) = Role::parse(role) else { return };
        let given = Given { role, kill_switch };
        match environment {
            None => self.everywhere = Some(given),
            Some(key) => drop(self.environments.insert(key, given)),
        }
    }
}

pub async fn roles(
    read: &mut Connection,
    scope: &NamespaceScope,
    holder: &Holder,
) -> Result<Roles, Refusal> {
    let rows: Vec<(Option<String>, String, bool)> =
        query_as(ROLES).bind(scope.id()).bind(holder.id()).fetch_all(read).await?;
    let mut roles = Roles::default();
    for (environment, role, kill_switch) in rows {
        roles.add(environment, &role, kill_switch);
    }
    Ok(roles)
}

/// By the key of each namespace that somebody has a role in.
pub async fn everywhere(
    read: &mut Connection,
    holder: &str,
) -> Result<BTreeMap<String, Roles>, Refusal> {
    let rows: Vec<(String, Option<String>, String, bool)> =
        query_as(NAMESPACES).bind(holder).fetch_all(read).await?;
    let mut all: BTreeMap<String, Roles> = BTreeMap::new();
    for (namespace, environment, role, kill_switch) in rows {
        all.entry(namespace).or_default().add(environment, &role, kill_switch);
    }
    Ok(all)
}

pub async fn page(
    read: &mut Connection,
    scope: &NamespaceScope,
    page: &Page,
) -> Result<Paged<(User, Roles)>, Refusal> {
    let paged = page.of(read, PAGE, scope.id(), |row: &User| row.email.clone()).await?;
    let mut items = Vec::with_capacity(paged.items.len());
    for user in paged.items {
        let roles = roles(read, scope, &Holder::User(user.id.clone())).await?;
        items.push((user, roles));
    }
    Ok(Paged { items, next_cursor: paged.next_cursor })
}

/// Gives somebody exactly these roles. An address that has no account gets one. Its invitation is for
/// operators alone: who holds it is that person from then on, in other namespaces too.
pub async fn set(
    tx: &mut Tx,
    scope: &NamespaceScope,
    who: &str,
    roles: &Roles,
    may_invite: bool,
) -> Result<(User, Option<Invitation>), Refusal> {
    if roles.is_none() {
        return Err(Refusal::invalid("/role", "name a role, here or in an environment"));
    }
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let (user, invitation) = match users::find(tx, who).await? {
        Some(user) => (user, None),
        None if who.contains('@') => {
            let caller = scope.caller().clone();
            let user = users::create(tx, &caller, who, "", false).await?;
            let invitation = match may_invite {
                true => Some(users::invite(tx, &caller, &user).await?),
                false => None,
            };
            (user, invitation)
        }
        None => return Err(Refusal::NotFound("user")),
    };
    let holder = Holder::User(user.id.clone());
    let before = self::roles(tx, scope, &holder).await?;
    give(tx, scope, &holder, &before, roles, change.at).await?;
    let entry = Entry {
        action: "member.set",
        target: user.email.clone(),
        environment: None,
        before: (!before.is_none()).then(|| before.state()),
        after: Some(roles.state()),
    };
    change.finish(tx, entry).await?;
    Ok((user, invitation))
}

pub async fn remove(tx: &mut Tx, scope: &NamespaceScope, who: &str) -> Result<(), Refusal> {
    let change = Change::begin(tx, scope, Touches::Nothing).await?;
    let user = users::find(tx, who).await?.ok_or(Refusal::NotFound("member"))?;
    let holder = Holder::User(user.id.clone());
    let before = roles(tx, scope, &holder).await?;
    if before.is_none() {
        return Err(Refusal::NotFound("member"));
    }
    give(tx, scope, &holder, &before, &Roles::default(), change.at).await?;
    let entry = Entry {
        action: "member.remove",
        target: user.email,
        environment: None,
        before: Some(before.state()),
        after: None,
    };
    change.finish(tx, entry).await?;
    Ok(())
}

/// Writes the roles, if each that is given, changed or taken is one that the caller may give.
pub(crate) async fn give(
    tx: &mut Tx,
    scope: &NamespaceScope,
    holder: &Holder,
    before: &Roles,
    after: &Roles,
    at: i64,
) -> Result<(), Refusal> {
    if before.everywhere != after.everywhere {
        for given in [before.everywhere, after.everywhere].into_iter().flatten() {
            may_give(scope, given, None)?;
        }
    }
    let owns = |roles: &Roles| roles.everywhere.is_some_and(|given| given.role == Role::Owner);
    if owns(before) && !owns(after) && matches!(holder, Holder::User(_)) {
        let others: i64 =
            query_scalar(OTHER_OWNERS).bind(scope.id()).bind(holder.id()).fetch_one(tx).await?;
        if others == 0 {
            return Err(Refusal::Last { what: "owner" });
        }
    }
    let mut ids = BTreeMap::new();
    for key in before.environments.keys().chain(after.environments.keys()) {
        let id: Option<String> =
            query_scalar(ENVIRONMENT).bind(scope.id()).bind(key).fetch_optional(tx).await?;
        let Some(id) = id else {
            let pointer = format!("/environments/{}", key.replace('~', "~0").replace('/', "~1"));
            return Err(Refusal::invalid(pointer, "there is no such environment"));
        };
        let (was, is) = (before.environments.get(key), after.environments.get(key));
        if was != is {
            for given in [was, is].into_iter().flatten() {
                if given.role == Role::Owner {
                    let pointer = format!("/environments/{key}/role");
                    return Err(Refusal::invalid(pointer, "an owner is of a whole namespace"));
                }
                may_give(scope, *given, Some(&id))?;
            }
        }
        ids.insert(key.clone(), id);
    }
    query(CLEAR).bind(scope.id()).bind(holder.id()).execute(tx).await?;
    let everywhere = after.everywhere.iter().map(|given| (None, given));
    let there = after.environments.iter().map(|(key, given)| (ids.get(key).cloned(), given));
    let (user, token) = match holder {
        Holder::User(id) => (Some(id.as_str()), None),
        Holder::Token(id) => (None, Some(id.as_str())),
    };
    for (environment, given) in everywhere.chain(there) {
        query(INSERT)
            .bind(new_id())
            .bind(scope.id())
            .bind(environment)
            .bind(user)
            .bind(token)
            .bind(given.role.name())
            .bind(given.kill_switch)
            .bind(scope.actor())
            .bind(at)
            .execute(tx)
            .await?;
    }
    Ok(())
}

fn may_give(
    scope: &NamespaceScope,
    given: Given,
    environment_id: Option<&str>,
) -> Result<(), Refusal> {
    match environment_id {
        None => scope.demand(Permission::Administer)?,
        Some(id) => scope.demand_in(Permission::Administer, id)?,
    }
    let mut gives = given.role.permissions();
    if given.kill_switch {
        gives = gives.and(crate::authorize::Permissions::of(&[Permission::Kill]));
    }
    scope.demand_all(gives, environment_id)
}
