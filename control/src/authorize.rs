//! Who may do what. `Scope`, `NamespaceScope` and `EdgeScope` are proofs that only this file makes:
//! a domain function that takes one cannot be called for somebody who was not let in.
//!
//! Every route has its permission in `ROUTES`; one without does not start. `http` asks `Scope::let_in`
//! before a handler runs, with the namespace and the environment of the path, so no handler can
//! forget to. A change that reaches an environment that is not in its path asks
//! `NamespaceScope::demand_in` itself.
//!
//! A namespace that is not there and one that is not theirs are told apart by nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rules::keys::{ApiKey, KeyKind};
use subtle::ConstantTimeEq as _;

use crate::refusal::Refusal;
use crate::seen::{Seen, What};
use crate::sessions::{Device, Keys};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, now_us};
use crate::tokens;
use crate::users::User;

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

const NAMESPACE: &str = "/api/v1/namespaces/{namespace}";

/// Method, path below `{NAMESPACE}` where it begins with `~`, permission.
const ROUTES: &[(&str, &str, Permission)] = &[
    ("GET", "/", Public),
    ("GET", "/healthz", Public),
    ("GET", "/readyz", Public),
    ("GET", "/metrics", Public),
    ("GET", "/api/v1/openapi.json", Public),
    ("GET", "/api/v1/limits", Public),
    ("POST", "/api/v1/setup", Public),
    ("POST", "/api/v1/sessions", Public),
    ("POST", "/api/v1/sessions/refresh", Public),
    ("POST", "/api/v1/invitations/accept", Public),
    ("GET", "/api/v1/oidc/login", Public),
    ("GET", "/api/v1/oidc/callback", Public),
    ("GET", "/api/v1/sessions", Account),
    ("DELETE", "/api/v1/sessions/current", Account),
    ("DELETE", "/api/v1/sessions/{id}", Account),
    ("GET", "/api/v1/me", Account),
    ("PUT", "/api/v1/me/password", Account),
    ("GET", "/api/v1/me/tokens", Account),
    ("POST", "/api/v1/me/tokens", Account),
    ("DELETE", "/api/v1/me/tokens/{id}", Account),
    ("GET", "/api/v1/users", Operate),
    ("POST", "/api/v1/users", Operate),
    ("GET", "/api/v1/users/{user}", Operate),
    ("PATCH", "/api/v1/users/{user}", Operate),
    ("DELETE", "/api/v1/users/{user}", Operate),
    ("POST", "/api/v1/users/{user}/invitations", Operate),
    ("GET", "/api/v1/namespaces", Account),
    ("POST", "/api/v1/namespaces", Operate),
    ("GET", "~", Read),
    ("PATCH", "~", Administer),
    ("DELETE", "~", Own),
    ("GET", "~/members", Read),
    ("PUT", "~/members/{user}", Administer),
    ("DELETE", "~/members/{user}", Administer),
    ("GET", "~/tokens", Administer),
    ("POST", "~/tokens", Administer),
    ("DELETE", "~/tokens/{id}", Administer),
    ("GET", "~/audit", Read),
    ("GET", "~/audit/verify", Read),
    ("GET", "~/audit/export", Administer),
    ("GET", "/api/v1/events", Account),
    ("GET", "~/webhooks", Administer),
    ("POST", "~/webhooks", Administer),
    ("GET", "~/webhooks/{webhook}", Administer),
    ("PATCH", "~/webhooks/{webhook}", Administer),
    ("DELETE", "~/webhooks/{webhook}", Administer),
    ("POST", "~/webhooks/{webhook}/rotate", Administer),
    ("POST", "~/webhooks/{webhook}/test", Administer),
    ("GET", "~/webhooks/{webhook}/deliveries", Administer),
    ("GET", "~/webhooks/{webhook}/deliveries/{delivery}", Administer),
    ("POST", "~/webhooks/{webhook}/deliveries/{delivery}/redeliver", Administer),
    ("GET", "/api/v1/audit", Operate),
    ("GET", "/api/v1/audit/verify", Operate),
    ("GET", "/api/v1/audit/export", Operate),
    ("GET", "~/environments", Read),
    ("POST", "~/environments", Administer),
    ("GET", "~/environments/{environment}", Read),
    ("DELETE", "~/environments/{environment}", Administer),
    ("POST", "~/environments/{environment}/publish", Configure),
    ("POST", "~/environments/{environment}/rollout", Configure),
    ("GET", "~/environments/{environment}/protection", Read),
    ("PUT", "~/environments/{environment}/protection", Administer),
    ("GET", "~/flags", Read),
    ("POST", "~/flags", Write),
    ("GET", "~/flags/{flag}", Read),
    ("PUT", "~/flags/{flag}", Write),
    ("DELETE", "~/flags/{flag}", Write),
    ("GET", "~/flags/{flag}/compare", Read),
    ("GET", "~/flags/{flag}/versions", Read),
    ("GET", "~/flags/{flag}/versions/{version}", Read),
    ("POST", "~/flags/{flag}/versions/{version}/restore", Write),
    ("GET", "~/environments/{environment}/flags", Read),
    ("GET", "~/environments/{environment}/flags/{flag}", Read),
    ("PUT", "~/environments/{environment}/flags/{flag}", Configure),
    ("GET", "~/environments/{environment}/flags/{flag}/usage", Read),
    ("POST", "~/environments/{environment}/flags/{flag}/kill", Kill),
    ("GET", "~/environments/{environment}/flags/{flag}/versions", Read),
    ("GET", "~/environments/{environment}/flags/{flag}/versions/{version}", Read),
    ("POST", "~/environments/{environment}/flags/{flag}/versions/{version}/restore", Configure),
    ("GET", "~/environments/{environment}/segments", Read),
    ("POST", "~/environments/{environment}/segments", Configure),
    ("GET", "~/environments/{environment}/segments/{segment}", Read),
    ("PUT", "~/environments/{environment}/segments/{segment}", Configure),
    ("DELETE", "~/environments/{environment}/segments/{segment}", Configure),
    ("PUT", "~/environments/{environment}/segments/{segment}/{list}", Configure),
    ("GET", "~/policies", Read),
    ("GET", "~/policies/{policy}", Read),
    ("POST", "~/policies/{policy}/versions", Write),
    ("GET", "~/policies/{policy}/versions/{digest}", Read),
    ("DELETE", "~/policies/{policy}/versions/{digest}", Write),
    ("PUT", "~/policies/{policy}/versions/{digest}/vectors", Write),
    ("GET", "~/environments/{environment}/policies", Read),
    ("PUT", "~/environments/{environment}/policies/{policy}", Configure),
    ("DELETE", "~/environments/{environment}/policies/{policy}", Configure),
    ("POST", "~/environments/{environment}/policies/{policy}/rollback", Configure),
    ("POST", "~/environments/{environment}/policies/{policy}/promote", Configure),
    ("GET", "~/environments/{environment}/keys", Read),
    ("POST", "~/environments/{environment}/keys", Administer),
    ("DELETE", "~/environments/{environment}/keys/{id}", Administer),
    ("GET", "~/environments/{environment}/keys/{id}", Read),
    ("PATCH", "~/environments/{environment}/keys/{id}", Administer),
    ("POST", "~/environments/{environment}/keys/{id}/rotate", Administer),
    ("POST", "~/environments/{environment}/import", Write),
    ("GET", "~/environments/{environment}/export", Read),
    ("POST", "~/environments/{environment}/evaluate", Read),
    ("POST", "~/environments/{environment}/impact", Read),
    ("GET", "~/environments/{environment}/sampling", Read),
    ("PUT", "~/environments/{environment}/sampling", Administer),
    ("DELETE", "~/environments/{environment}/sampling", Administer),
    ("GET", "~/environments/{environment}/contexts", Read),
    ("GET", "~/environments/{environment}/edges", Read),
    ("GET", "~/change-sets", Read),
    ("POST", "~/change-sets", Configure),
    ("GET", "~/change-sets/{number}", Read),
    ("PATCH", "~/change-sets/{number}", Configure),
    ("POST", "~/change-sets/{number}/submit", Configure),
    ("POST", "~/change-sets/{number}/approve", Approve),
    ("POST", "~/change-sets/{number}/reject", Approve),
    ("POST", "~/change-sets/{number}/comment", Read),
    ("POST", "~/change-sets/{number}/rebase", Configure),
    ("POST", "~/change-sets/{number}/apply", Configure),
    ("POST", "~/change-sets/{number}/schedule", Configure),
    ("POST", "~/change-sets/{number}/cancel", Configure),
    ("POST", "~/promotions", Configure),
    ("GET", "/api/v1/edges", Operate),
    ("GET", "/api/v1/drift", Operate),
    ("GET", "/api/v1/edge-keys", Operate),
    ("POST", "/api/v1/edge-keys", Operate),
    ("DELETE", "/api/v1/edge-keys/{id}", Operate),
    ("GET", "/api/v1/edge-keys/{id}", Operate),
    ("PATCH", "/api/v1/edge-keys/{id}", Operate),
    ("POST", "/api/v1/edge-keys/{id}/rotate", Operate),
    ("GET", "/edge/v1/heads", Edge),
    ("GET", "/edge/v1/blobs/{digest}", Edge),
    ("POST", "/edge/v1/receipts", Edge),
    ("POST", "/edge/v1/usage", Edge),
    ("POST", "/edge/v1/samples", Edge),
];

/// What a route asks for; none if nobody said, and then nobody gets in.
pub fn permission(method: &str, path: &str) -> Option<Permission> {
    ROUTES.iter().find_map(|(of, route, permission)| {
        let same = match route.strip_prefix('~') {
            Some(below) => path.strip_prefix(NAMESPACE) == Some(below),
            None => path == *route,
        };
        (*of == method && same).then_some(*permission)
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    User,
    /// A service token.
    Service,
    /// The token of `tidegate dev` and of tests.
    Bootstrap,
    /// Control, by itself.
    Control,
    /// A command on control's own machine, beside the database.
    CommandLine,
}

impl CallerKind {
    pub fn name(self) -> &'static str {
        match self {
            CallerKind::User => "user",
            CallerKind::Service => "service",
            CallerKind::Bootstrap => "bootstrap",
            CallerKind::Control => "control",
            CallerKind::CommandLine => "command-line",
        }
    }
}

/// Who asks, and from where: what the audit says of them.
#[derive(Debug, Clone)]
pub struct Caller {
    pub kind: CallerKind,
    /// Of the account or the service token; unique among callers of its kind, also later.
    pub id: String,
    /// As people read it: an e-mail address, a token's name with its id.
    pub name: String,
    /// The personal token or the session that they came with, by its id.
    pub via: Option<String>,
    pub address: Option<IpAddr>,
    /// As their program calls itself, cut to 256 bytes.
    pub user_agent: Option<String>,
}

impl Caller {
    fn control() -> Caller {
        Caller::here(CallerKind::Control, "control (by itself)")
    }

    /// Whoever runs a command beside the database.
    pub(crate) fn command_line() -> Caller {
        Caller::here(CallerKind::CommandLine, "operator (command line)")
    }

    /// Somebody who has just said who they are.
    pub fn person(user: &User, from: &Device) -> Caller {
        Caller {
            id: user.id.clone(),
            name: user.email.clone(),
            address: from.address,
            user_agent: from.user_agent.clone(),
            ..Caller::here(CallerKind::User, "")
        }
    }

    /// An identity provider, by which somebody comes in for the first time.
    pub fn provider(issuer: &str, device: &Device) -> Caller {
        Caller {
            address: device.address,
            user_agent: device.user_agent.clone(),
            via: Some(issuer.to_owned()),
            ..Caller::here(CallerKind::Control, "control (identity provider)")
        }
    }

    fn here(kind: CallerKind, name: &str) -> Caller {
        Caller {
            kind,
            id: kind.name().to_owned(),
            name: name.to_owned(),
            via: None,
            address: None,
            user_agent: None,
        }
    }

    /// Apart from every other caller.
    pub fn key(&self) -> String {
        format!("{}:{}", self.kind.name(), self.id)
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

const SESSION: &str = "SELECT s.revoked_at, s.expires_at, u.id, u.email, u.operator, u.disabled_at, \
    u.last_seen_at FROM session s JOIN user_account u ON u.id = s.user_id WHERE s.id = $1";
const TOKEN: &str = "SELECT t.hash, t.name, t.scopes, t.expires_at, t.last_used_at, \
    t.user_id, u.email, u.operator, u.disabled_at FROM access_token t \
    LEFT JOIN user_account u ON u.id = t.user_id WHERE t.id = $1";
const ADMIN: &str = "SELECT name, hash FROM admin_token WHERE id = $1";
const ADMIN_COUNT: &str = "SELECT COUNT(*) FROM admin_token";
const ADMIN_INSERT: &str = "INSERT INTO admin_token (id, name, hash, created_at) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (id) DO NOTHING";
const NAMESPACE_ID: &str = "SELECT id FROM namespace WHERE key = $1";
const ENVIRONMENT_ID: &str = "SELECT id FROM environment WHERE namespace_id = $1 AND key = $2";
const BINDINGS: &str = "SELECT environment_id, role, kill_switch FROM role_binding \
    WHERE namespace_id = $1 AND (user_id = $2 OR token_id = $2)";
const EDGE_KEY: &str = "SELECT all_namespaces, hash FROM edge_key \
    WHERE id = $1 AND (expires_at IS NULL OR expires_at > $2)";
const EDGE_LOCAL: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING";
const EDGE_NAMESPACES: &str = "SELECT n.key, n.id FROM edge_key_namespace e \
    JOIN namespace n ON n.id = e.namespace_id WHERE e.edge_key_id = $1";

/// What a request says about who asks.
#[derive(Debug, Clone, Default)]
pub struct Asking<'a> {
    /// Of the header `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    pub address: Option<IpAddr>,
    pub user_agent: Option<&'a str>,
    /// W3C `traceparent`.
    pub trace_context: Option<String>,
}

const USER_AGENT_BYTES_MAX: usize = 256;

/// Whom this control believes.
pub struct Authority {
    /// Whether the token of `tidegate dev` and of tests is taken.
    pub bootstrap: bool,
    pub sessions: Keys,
    pub seen: Seen,
}

impl Authority {
    pub fn new(bootstrap: bool, sessions: Keys) -> Authority {
        Authority { bootstrap, sessions, seen: Seen::default() }
    }
}

/// The caller of an admin route: by a session, a personal token or a service token.
pub async fn caller(
    read: &mut Connection,
    authority: &Authority,
    asking: Asking<'_>,
) -> Result<Scope, Denied> {
    let text = asking.bearer.ok_or(Denied::Unnamed)?;
    // No key of ours has a dot, and a session's token has two.
    if text.contains('.') {
        return by_session(read, authority, &asking, text).await;
    }
    let key = parse(Some(text))?;
    match key.kind {
        KeyKind::Personal | KeyKind::Service => by_token(read, authority, &asking, &key).await,
        KeyKind::Admin if authority.bootstrap => by_bootstrap(read, &asking, &key).await,
        // Whatever a database still holds of them.
        KeyKind::Admin => Err(Denied::Unknown),
        _ => Err(Denied::Forbidden),
    }
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    revoked_at: Option<i64>,
    expires_at: i64,
    id: String,
    email: String,
    operator: bool,
    disabled_at: Option<i64>,
    last_seen_at: Option<i64>,
}

/// Read each time, so that a session that is ended and an account that is disabled are so at once.
async fn by_session(
    read: &mut Connection,
    authority: &Authority,
    asking: &Asking<'_>,
    token: &str,
) -> Result<Scope, Denied> {
    let claimed = authority.sessions.claimed(token).map_err(|_| Denied::Unknown)?;
    let row: Option<SessionRow> =
        query_as(SESSION).bind(&claimed.session_id).fetch_optional(read).await?;
    let stands = |row: &SessionRow| {
        row.id == claimed.user_id
            && row.revoked_at.is_none()
            && row.disabled_at.is_none()
            && row.expires_at > now_us()
    };
    let row = row.filter(stands).ok_or(Denied::Unknown)?;
    authority.seen.note(What::User, &row.id, row.last_seen_at);
    let principal = match row.operator {
        true => Principal::Everything,
        false => Principal::Bound(row.id.clone()),
    };
    let via = Some(claimed.session_id.clone());
    let caller = asking.caller(CallerKind::User, row.id, row.email, via);
    let session = Some(claimed.session_id);
    Ok(Scope { session, ..Scope::of(caller, principal, Permissions::ALL, asking) })
}

#[derive(sqlx::FromRow)]
struct TokenRow {
    hash: Vec<u8>,
    name: String,
    scopes: String,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    user_id: Option<String>,
    email: Option<String>,
    operator: Option<bool>,
    disabled_at: Option<i64>,
}

async fn by_token(
    read: &mut Connection,
    authority: &Authority,
    asking: &Asking<'_>,
    key: &ApiKey,
) -> Result<Scope, Denied> {
    let row: Option<TokenRow> = query_as(TOKEN).bind(&key.id).fetch_optional(read).await?;
    let row = row.ok_or(Denied::Unknown)?;
    same_hash(key, &row.hash)?;
    let over = row.expires_at.is_some_and(|at| at <= now_us());
    let personal = key.kind == KeyKind::Personal;
    if over || row.disabled_at.is_some() || personal != row.user_id.is_some() {
        return Err(Denied::Unknown);
    }
    authority.seen.note(What::Token, &key.id, row.last_used_at);
    let most = tokens::allowed(&row.scopes)?;
    let (principal, caller) = match (row.user_id, row.email) {
        (Some(id), Some(email)) => {
            let principal = match row.operator {
                Some(true) => Principal::Everything,
                _ => Principal::Bound(id.clone()),
            };
            (principal, asking.caller(CallerKind::User, id, email, Some(key.id.clone())))
        }
        _ => {
            let name = format!("{} ({})", row.name, key.id);
            let id = key.id.clone();
            (Principal::Bound(id.clone()), asking.caller(CallerKind::Service, id, name, None))
        }
    };
    Ok(Scope::of(caller, principal, most, asking))
}

async fn by_bootstrap(
    read: &mut Connection,
    asking: &Asking<'_>,
    key: &ApiKey,
) -> Result<Scope, Denied> {
    let (name, hash) = query_as::<(String, Vec<u8>)>(ADMIN)
        .bind(&key.id)
        .fetch_optional(read)
        .await?
        .ok_or(Denied::Unknown)?;
    same_hash(key, &hash)?;
    let name = format!("{name} ({})", key.id);
    let caller = asking.caller(CallerKind::Bootstrap, key.id.clone(), name, None);
    Ok(Scope::of(caller, Principal::Everything, Permissions::ALL, asking))
}

impl Asking<'_> {
    fn caller(&self, kind: CallerKind, id: String, name: String, via: Option<String>) -> Caller {
        Caller { kind, id, name, via, address: self.address, user_agent: self.program() }
    }

    /// As their program calls itself, cut.
    pub fn program(&self) -> Option<String> {
        self.user_agent.map(|text| {
            let end = (0..=USER_AGENT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
            text.get(..end.unwrap_or(0).min(text.len())).unwrap_or(text).to_owned()
        })
    }
}

/// The caller of an edge route.
pub async fn edge(read: &mut Connection, bearer: Option<&str>) -> Result<EdgeScope, Denied> {
    let key = parse(bearer)?;
    if key.kind != KeyKind::Edge {
        return Err(Denied::Forbidden);
    }
    let (all, hash) = query_as::<(bool, Vec<u8>)>(EDGE_KEY)
        .bind(&key.id)
        .bind(now_us())
        .fetch_optional(&mut *read)
        .await?
        .ok_or(Denied::Unknown)?;
    same_hash(&key, &hash)?;
    let namespaces: Vec<(String, String)> =
        query_as(EDGE_NAMESPACES).bind(&key.id).fetch_all(read).await?;
    Ok(EdgeScope { key_id: key.id, all, namespaces: namespaces.into_iter().collect() })
}

/// The edge in this very process. Its key has a hash that no key has, so nobody can come with it.
pub async fn local_edge(tx: &mut Connection) -> Result<EdgeScope, Denied> {
    const LOCAL: &str = "local";
    let mut hash = vec![0u8; 32];
    seam::random(&mut hash)
        .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    query(EDGE_LOCAL)
        .bind(LOCAL)
        .bind("the edge in control's own process")
        .bind(true)
        .bind(hash)
        .bind(now_us())
        .execute(tx)
        .await?;
    edge_by_broker(tx, LOCAL).await
}

/// The scope of an edge key that somebody else has checked: the broker, whose permissions let
/// only the edges of this key say what is said with its id.
pub async fn edge_by_broker(read: &mut Connection, key_id: &str) -> Result<EdgeScope, Denied> {
    let (all, _) = query_as::<(bool, Vec<u8>)>(EDGE_KEY)
        .bind(key_id)
        .bind(now_us())
        .fetch_optional(&mut *read)
        .await?
        .ok_or(Denied::Unknown)?;
    let namespaces: Vec<(String, String)> =
        query_as(EDGE_NAMESPACES).bind(key_id).fetch_all(read).await?;
    Ok(EdgeScope { key_id: key_id.to_owned(), all, namespaces: namespaces.into_iter().collect() })
}

/// What control does by itself, in a namespace: the audit names it so.
pub async fn of_control(read: &mut Connection, namespace: &str) -> Result<NamespaceScope, Refusal> {
    let scope = Scope {
        caller: Arc::new(Caller::control()),
        principal: Principal::Everything,
        most: Permissions::ALL,
        session: None,
        trace_context: None,
    };
    scope.namespace(read, namespace).await
}

fn parse(bearer: Option<&str>) -> Result<ApiKey, Denied> {
    ApiKey::parse(bearer.ok_or(Denied::Unnamed)?).map_err(|_| Denied::Unknown)
}

fn same_hash(key: &ApiKey, stored: &[u8]) -> Result<(), Denied> {
    match bool::from(key.hash().as_slice().ct_eq(stored)) {
        true => Ok(()),
        false => Err(Denied::Unknown),
    }
}

/// Whether there is no bootstrap token.
pub async fn is_without_bootstrap(tx: &mut Connection) -> Result<bool, sqlx::Error> {
    Ok(query_scalar::<i64>(ADMIN_COUNT).fetch_one(tx).await? == 0)
}

/// The bootstrap token. It is kept as its hash only.
pub async fn begin(tx: &mut Connection, key: &ApiKey) -> Result<(), Refusal> {
    query(ADMIN_INSERT)
        .bind(&key.id)
        .bind("bootstrap")
        .bind(key.hash().to_vec())
        .bind(now_us())
        .execute(tx)
        .await?;
    Ok(())
}

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

/// Every method and path that has a permission.
pub fn guarded() -> impl Iterator<Item = (String, String)> {
    ROUTES.iter().map(|(method, route, _)| {
        let path = match route.strip_prefix('~') {
            Some(below) => format!("{NAMESPACE}{below}"),
            None => (*route).to_owned(),
        };
        ((*method).to_owned(), path)
    })
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
