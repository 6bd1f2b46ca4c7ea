//! Who may do what. `Scope`, `NamespaceScope` and `EdgeScope` are proofs that only this module makes:
//! a domain function that takes one cannot be called for somebody who was not let in.
//!
//! Every route has its permission in `authorize/routes.rs`; one without does not start. `http` asks
//! `Scope::let_in` before a handler runs, with the namespace and the environment of the path, so no
//! handler can forget to. A change that reaches an environment that is not in its path asks
//! `NamespaceScope::demand_in` itself.
//!
//! A namespace that is not there and one that is not theirs are told apart by nobody.
//!
//! Next: `authorize/callers.rs` (who asks), `authorize/routes.rs` (what each route takes).

pub mod callers;
pub mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::callers::{Asking, Caller, CallerKind};
use crate::refusal::Refusal;
use crate::store::query::{query_as, query_scalar};
use crate::store::{Connection, now_us};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Nobody has to say who they are.
    Public,
    /// Whoever is known: their own account, and lists of what is theirs.
    Account,
    /// See what is in a namespace.
    Read,
    /// What all environments of a namespace share: definitions of flags, policies.
    Write,
    /// What an environment serves: configurations, segments, pins.
    Configure,
    /// Say yes or no to somebody else's change.
    Approve,
    /// Turn a flag off past an environment's approvals.
    Kill,
    /// Environments, keys, members, webhooks, what needs approval.
    Administer,
    /// The namespace itself, and who else owns it.
    Own,
    /// The installation: namespaces, accounts, edge keys.
    Operate,
    /// Of edge keys only: what `/edge/v1` serves.
    Edge,
}

use Permission::{
    Account, Administer, Approve, Configure, Edge, Kill, Operate, Own, Public, Read, Write,
};

impl Permission {
    const ALL: [Permission; 11] =
        [Public, Account, Read, Write, Configure, Approve, Kill, Administer, Own, Operate, Edge];

    /// As problem documents name it.
    pub fn name(self) -> &'static str {
        match self {
            Public => "public",
            Account => "account",
            Read => "read",
            Write => "write",
            Configure => "configure",
            Approve => "approve",
            Kill => "kill",
            Administer => "administer",
            Own => "own",
            Operate => "operate",
            Edge => "edge",
        }
    }

    /// Whether an environment's own roles can give it.
    fn is_of_environments(self) -> bool {
        matches!(self, Configure | Approve | Kill | Administer)
    }
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u16);

impl Permissions {
    pub const NONE: Permissions = Permissions(0);
    pub const ALL: Permissions = Permissions(u16::MAX);

    pub fn of(permissions: &[Permission]) -> Permissions {
        permissions
            .iter()
            .fold(Permissions::NONE, |set, one| set.and(Permissions(1 << *one as u16)))
    }

    pub fn and(self, more: Permissions) -> Permissions {
        Permissions(self.0 | more.0)
    }

    pub fn within(self, most: Permissions) -> Permissions {
        Permissions(self.0 & most.0)
    }

    pub fn has(self, permission: Permission) -> bool {
        self.0 & 1 << permission as u16 != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Owner,
    Admin,
    Editor,
    Approver,
    Viewer,
}

impl Role {
    pub const ALL: [Role; 5] =
        [Role::Owner, Role::Admin, Role::Editor, Role::Approver, Role::Viewer];

    pub fn name(self) -> &'static str {
        match self {
            Role::Owner => "owner",
            Role::Admin => "admin",
            Role::Editor => "editor",
            Role::Approver => "approver",
            Role::Viewer => "viewer",
        }
    }

    pub fn parse(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }

    pub fn permissions(self) -> Permissions {
        match self {
            Role::Viewer => Permissions::of(&[Account, Read]),
            Role::Approver => Permissions::of(&[Account, Read, Approve]),
            Role::Editor => Permissions::of(&[Account, Read, Write, Configure]),
            Role::Admin => {
                Permissions::of(&[Account, Read, Write, Configure, Approve, Kill, Administer])
            }
            Role::Owner => Role::Admin.permissions().and(Permissions::of(&[Own])),
        }
    }
}

/// What their roles are looked up by.
#[derive(Debug, Clone)]
enum Principal {
    /// Operators, the bootstrap token, control itself.
    Everything,
    /// By the id of the account or of the service token.
    Bound(String),
}

/// Somebody who is known.
#[derive(Debug, Clone)]
pub struct Scope {
    caller: Arc<Caller>,
    principal: Principal,
    /// What their token allows at most.
    most: Permissions,
    /// The session that they came with, if they came with one.
    session: Option<String>,
    trace_context: Option<String>,
}

/// What somebody may do in one namespace.
#[derive(Debug, Clone, Default)]
struct Rights {
    namespace: Permissions,
    /// By the environment's id: what their roles there add.
    environments: BTreeMap<String, Permissions>,
}

/// Somebody who is known, in a namespace that they may see.
#[derive(Debug, Clone)]
pub struct NamespaceScope {
    id: String,
    key: String,
    caller: Arc<Caller>,
    rights: Arc<Rights>,
    trace_context: Option<String>,
}

/// An edge node.
#[derive(Debug, Clone)]
pub struct EdgeScope {
    key_id: String,
    all: bool,
    /// Key to id.
    namespaces: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("the request names no key")]
    Unnamed,
    #[error("the key is not valid")]
    Unknown,
    #[error("the key is not for this")]
    Forbidden,
    #[error("this takes the permission {:?}, which {who} does not have here", .needed.name())]
    Lacking { needed: Permission, who: String },
    #[error(transparent)]
    Failed(#[from] Refusal),
}

impl From<sqlx::Error> for Denied {
    fn from(error: sqlx::Error) -> Denied {
        Denied::Failed(error.into())
    }
}

const ADMIN: &str = "SELECT name, hash FROM admin_token WHERE id = $1";
const NAMESPACE_ID: &str = "SELECT id FROM namespace WHERE key = $1";
const ENVIRONMENT_ID: &str = "SELECT id FROM environment WHERE namespace_id = $1 AND key = $2";
const BINDINGS: &str = "SELECT environment_id, role, kill_switch FROM role_binding \
    WHERE namespace_id = $1 AND (user_id = $2 OR token_id = $2)";

impl Scope {
    fn of(caller: Caller, principal: Principal, most: Permissions, asking: &Asking<'_>) -> Scope {
        let trace_context = asking.trace_context.clone();
        Scope { caller: Arc::new(caller), principal, most, session: None, trace_context }
    }

    /// Whether a route may be taken, by its permission and the places in its path. Not theirs is not
    /// there; theirs and not allowed is said so.
    pub async fn let_in(
        &self,
        read: &mut Connection,
        permission: Permission,
        namespace: Option<&str>,
        environment: Option<&str>,
    ) -> Result<(), Denied> {
        let lacking = || Denied::Lacking { needed: permission, who: self.caller.name.clone() };
        let Some(namespace) = namespace else {
            let everywhere = matches!(self.principal, Principal::Everything);
            let may = permission == Account || everywhere && permission != Edge;
            return match may && self.most.has(permission) {
                true => Ok(()),
                false => Err(lacking()),
            };
        };
        let scope = self.namespace(&mut *read, namespace).await?;
        let may = match environment {
            Some(environment) => {
                let id = query_scalar::<String>(ENVIRONMENT_ID)
                    .bind(scope.id())
                    .bind(environment)
                    .fetch_optional(read)
                    .await?;
                match id {
                    Some(id) => scope.may_in(permission, &id),
                    // Who may not do it anywhere is told so, whether it is there or not.
                    None => scope.may(permission),
                }
            }
            None if permission.is_of_environments() => scope.may_somewhere(permission),
            None => scope.may(permission),
        };
        match may {
            true => Ok(()),
            false => Err(lacking()),
        }
    }

    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    pub fn actor(&self) -> &str {
        &self.caller.name
    }

    /// The account of whoever is a person.
    pub fn user(&self) -> Result<&str, Refusal> {
        match self.caller.kind {
            CallerKind::User => Ok(&self.caller.id),
            _ => Err(Refusal::NoSession("an account")),
        }
    }

    /// Their account and their session: what a token may not do, or one that was lost could make others
    /// that outlive it.
    pub fn signed_in(&self) -> Result<(&str, &str), Refusal> {
        match &self.session {
            Some(session) => Ok((&self.caller.id, session)),
            None => Err(Refusal::NoSession("a session")),
        }
    }

    /// Whether they may do everything everywhere.
    pub fn operates(&self) -> bool {
        matches!(self.principal, Principal::Everything) && self.most.has(Operate)
    }

    /// Whose roles decide what they see; none for whoever sees everything.
    pub fn bound_to(&self) -> Option<&str> {
        match &self.principal {
            Principal::Everything => None,
            Principal::Bound(id) => Some(id),
        }
    }

    /// A namespace that is not there and one that is not theirs are told apart by nobody.
    pub async fn namespace(
        &self,
        read: &mut Connection,
        key: &str,
    ) -> Result<NamespaceScope, Refusal> {
        let id = query_scalar::<String>(NAMESPACE_ID)
            .bind(key)
            .fetch_optional(&mut *read)
            .await?
            .ok_or(Refusal::NotFound("namespace"))?;
        let rights = match &self.principal {
            Principal::Everything => Rights { namespace: self.most, environments: BTreeMap::new() },
            Principal::Bound(principal) => {
                let bindings: Vec<(Option<String>, String, bool)> =
                    query_as(BINDINGS).bind(&id).bind(principal).fetch_all(read).await?;
                Rights::of(&bindings, self.most).ok_or(Refusal::NotFound("namespace"))?
            }
        };
        Ok(NamespaceScope {
            id,
            key: key.to_owned(),
            caller: self.caller.clone(),
            rights: Arc::new(rights),
            trace_context: self.trace_context.clone(),
        })
    }
}

impl Rights {
    /// None for whoever has no role in the namespace.
    fn of(bindings: &[(Option<String>, String, bool)], most: Permissions) -> Option<Rights> {
        let mut rights = Rights::default();
        for (environment, role, kill_switch) in bindings {
            // A role that this build does not know gives nothing.
            let Some(role) = Role::parse(role) else { continue };
            let mut gives = role.permissions();
            if *kill_switch {
                gives = gives.and(Permissions::of(&[Kill]));
            }
            // A role in one environment shows the whole namespace, and changes that environment.
            let seen = Role::Viewer.permissions();
            match environment {
                None => rights.namespace = rights.namespace.and(gives),
                Some(id) => {
                    rights.namespace = rights.namespace.and(seen);
                    let there = rights.environments.entry(id.clone()).or_default();
                    *there = there.and(gives);
                }
            }
        }
        if rights.namespace == Permissions::NONE {
            return None;
        }
        rights.namespace = rights.namespace.within(most);
        for gives in rights.environments.values_mut() {
            *gives = gives.within(most);
        }
        Some(rights)
    }
}

impl NamespaceScope {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    pub fn actor(&self) -> &str {
        &self.caller.name
    }

    /// In the whole namespace.
    pub fn may(&self, permission: Permission) -> bool {
        self.rights.namespace.has(permission)
    }

    /// In one environment, by its id.
    pub fn may_in(&self, permission: Permission, environment_id: &str) -> bool {
        let there = self.rights.environments.get(environment_id).copied().unwrap_or_default();
        self.may(permission) || permission.is_of_environments() && there.has(permission)
    }

    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.may(permission)
            || permission.is_of_environments()
                && self.rights.environments.values().any(|there| there.has(permission))
    }

    pub fn demand(&self, permission: Permission) -> Result<(), Refusal> {
        match self.may(permission) {
            true => Ok(()),
            false => Err(self.lacking(permission)),
        }
    }

    pub fn demand_in(&self, permission: Permission, environment_id: &str) -> Result<(), Refusal> {
        match self.may_in(permission, environment_id) {
            true => Ok(()),
            false => Err(self.lacking(permission)),
        }
    }

    /// All of them, in one environment or everywhere; of those that are not an environment's own only
    /// what the namespace gives counts, and there they are not asked for.
    pub fn demand_all(
        &self,
        needed: Permissions,
        environment_id: Option<&str>,
    ) -> Result<(), Refusal> {
        for permission in Permission::ALL.into_iter().filter(|one| needed.has(*one)) {
            match environment_id {
                None => self.demand(permission)?,
                Some(id) if permission.is_of_environments() => self.demand_in(permission, id)?,
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn lacking(&self, needed: Permission) -> Refusal {
        Refusal::Forbidden { needed: needed.name(), who: self.caller.name.clone() }
    }

    /// W3C `traceparent` of the request.
    pub fn trace_context(&self) -> Option<&str> {
        self.trace_context.as_deref()
    }
}

impl EdgeScope {
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub fn sees_all(&self) -> bool {
        self.all
    }

    pub fn sees(&self, namespace_key: &str) -> bool {
        self.all || self.namespaces.contains_key(namespace_key)
    }
}

const SERVICE_VALID: &str = "SELECT created_at FROM access_token WHERE id = $1 \
    AND namespace_id IS NOT NULL AND (expires_at IS NULL OR expires_at > $2)";
const ACCOUNT: &str = "SELECT operator, disabled_at FROM user_account WHERE id = $1";

/// Whether somebody who did something before, known by `Caller::key`, may do this now: in one
/// environment by its id, or in the whole namespace. What they did it with (a session, a token) does
/// not matter any more.
pub async fn may_now(
    read: &mut Connection,
    namespace_id: &str,
    caller_key: &str,
    permission: Permission,
    environment_id: Option<&str>,
) -> Result<bool, Refusal> {
    let Some((kind, id)) = caller_key.split_once(':') else { return Ok(false) };
    if kind == CallerKind::Bootstrap.name() {
        return Ok(query_as::<(String, Vec<u8>)>(ADMIN)
            .bind(id)
            .fetch_optional(read)
            .await?
            .is_some());
    }
    if kind == CallerKind::User.name() {
        let account: Option<(bool, Option<i64>)> =
            query_as(ACCOUNT).bind(id).fetch_optional(&mut *read).await?;
        match account {
            None | Some((_, Some(_))) => return Ok(false),
            Some((true, None)) => return Ok(true),
            Some((false, None)) => {}
        }
    } else if kind == CallerKind::Service.name() {
        let valid: Option<i64> =
            query_scalar(SERVICE_VALID).bind(id).bind(now_us()).fetch_optional(&mut *read).await?;
        if valid.is_none() {
            return Ok(false);
        }
    } else {
        return Ok(false);
    }
    let bindings: Vec<(Option<String>, String, bool)> =
        query_as(BINDINGS).bind(namespace_id).bind(id).fetch_all(read).await?;
    let Some(rights) = Rights::of(&bindings, Permissions::ALL) else { return Ok(false) };
    let there = environment_id.and_then(|id| rights.environments.get(id)).copied();
    Ok(rights.namespace.has(permission)
        || permission.is_of_environments() && there.unwrap_or_default().has(permission))
}
