//! Who asks: a session, a personal or a service token, in development the bootstrap token, an edge's
//! key, control itself.
//!
//! What is believed is read from the database with each request, so what is revoked is so at once.
//! Keys and tokens are compared by their hashes, in constant time.
//!
//! Next: `authorize.rs` (what they may).

use std::net::IpAddr;
use std::sync::Arc;

use rules::keys::{ApiKey, KeyKind};
use subtle::ConstantTimeEq as _;

use super::{ADMIN, Denied, EdgeScope, NamespaceScope, Permissions, Principal, Scope};
use crate::refusal::Refusal;
use crate::seen::{Seen, What};
use crate::sessions::{Device, Keys};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, now_us};
use crate::tokens;
use crate::users::User;

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
    /// Of a service token: who made it, by their `key`; never another service token.
    pub maker: Option<String>,
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
            maker: None,
            address: None,
            user_agent: None,
        }
    }

    /// Apart from every other caller.
    pub fn key(&self) -> String {
        format!("{}:{}", self.kind.name(), self.id)
    }

    /// Who answers for what they do, by their key: whoever has a token made for a program can use it, so
    /// what a service token does counts as done by its maker.
    pub fn responsible(&self) -> String {
        self.maker.clone().unwrap_or_else(|| self.key())
    }
}

const SESSION: &str = "SELECT s.revoked_at, s.expires_at, u.id, u.email, u.operator, u.disabled_at, \
    u.last_seen_at FROM session s JOIN user_account u ON u.id = s.user_id WHERE s.id = $1";
const TOKEN: &str = "SELECT t.hash, t.name, t.scopes, t.expires_at, t.last_used_at, t.maker_key, \
    t.user_id, u.email, u.operator, u.disabled_at FROM access_token t \
    LEFT JOIN user_account u ON u.id = t.user_id WHERE t.id = $1";
const ADMIN_COUNT: &str = "SELECT COUNT(*) FROM admin_token";
const ADMIN_INSERT: &str = "INSERT INTO admin_token (id, name, hash, created_at) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (id) DO NOTHING";
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

impl Asking<'_> {
    fn caller(&self, kind: CallerKind, id: String, name: String, via: Option<String>) -> Caller {
        let (address, user_agent) = (self.address, self.program());
        Caller { kind, id, name, via, maker: None, address, user_agent }
    }

    /// As their program calls itself, cut.
    pub fn program(&self) -> Option<String> {
        self.user_agent.map(|text| {
            let end = (0..=USER_AGENT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
            text.get(..end.unwrap_or(0).min(text.len())).unwrap_or(text).to_owned()
        })
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
    maker_key: Option<String>,
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
            let caller = asking.caller(CallerKind::Service, id.clone(), name, None);
            (Principal::Bound(id), Caller { maker: row.maker_key, ..caller })
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
