//! Who may do what. `Scope`, `NamespaceScope` and `EdgeScope` are proofs that only this file makes:
//! a domain function that takes one cannot be called for somebody who was not let in.
//!
//! Every route has its permission in `ROUTES`; one without does not start. For now there is one
//! kind of user, the holder of the bootstrap admin token, who may do everything; roles come later
//! and change `Scope::may`, nothing else.

use std::collections::BTreeMap;

use rules::keys::{ApiKey, KeyKind};
use subtle::ConstantTimeEq as _;

use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, now_us};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Nobody has to say who they are.
    Public,
    /// See what is in a namespace.
    Read,
    /// Change flags, their configurations and segments.
    Write,
    /// Namespaces, environments, keys.
    Manage,
    /// Of edge keys only: what `/edge/v1` serves.
    Edge,
}

use Permission::{Edge, Manage, Public, Read, Write};

const NAMESPACE: &str = "/api/v1/namespaces/{namespace}";

/// Method, path below `{NAMESPACE}` where it begins with `~`, permission.
const ROUTES: &[(&str, &str, Permission)] = &[
    ("GET", "/", Public),
    ("GET", "/healthz", Public),
    ("GET", "/readyz", Public),
    ("GET", "/metrics", Public),
    ("GET", "/api/v1/openapi.json", Public),
    ("GET", "/api/v1/limits", Public),
    ("GET", "/api/v1/namespaces", Read),
    ("POST", "/api/v1/namespaces", Manage),
    ("GET", "~", Read),
    ("PATCH", "~", Manage),
    ("DELETE", "~", Manage),
    ("GET", "~/audit", Read),
    ("GET", "~/audit/verify", Read),
    ("GET", "~/environments", Read),
    ("POST", "~/environments", Manage),
    ("GET", "~/environments/{environment}", Read),
    ("DELETE", "~/environments/{environment}", Manage),
    ("POST", "~/environments/{environment}/publish", Manage),
    ("POST", "~/environments/{environment}/rollout", Manage),
    ("GET", "~/flags", Read),
    ("POST", "~/flags", Write),
    ("GET", "~/flags/{flag}", Read),
    ("PUT", "~/flags/{flag}", Write),
    ("DELETE", "~/flags/{flag}", Write),
    ("GET", "~/environments/{environment}/flags", Read),
    ("GET", "~/environments/{environment}/flags/{flag}", Read),
    ("PUT", "~/environments/{environment}/flags/{flag}", Write),
    ("GET", "~/environments/{environment}/flags/{flag}/usage", Read),
    ("GET", "~/environments/{environment}/segments", Read),
    ("POST", "~/environments/{environment}/segments", Write),
    ("GET", "~/environments/{environment}/segments/{segment}", Read),
    ("PUT", "~/environments/{environment}/segments/{segment}", Write),
    ("DELETE", "~/environments/{environment}/segments/{segment}", Write),
    ("PUT", "~/environments/{environment}/segments/{segment}/{list}", Write),
    ("GET", "~/policies", Read),
    ("GET", "~/policies/{policy}", Read),
    ("POST", "~/policies/{policy}/versions", Write),
    ("GET", "~/policies/{policy}/versions/{digest}", Read),
    ("DELETE", "~/policies/{policy}/versions/{digest}", Write),
    ("PUT", "~/policies/{policy}/versions/{digest}/vectors", Write),
    ("GET", "~/environments/{environment}/policies", Read),
    ("PUT", "~/environments/{environment}/policies/{policy}", Write),
    ("DELETE", "~/environments/{environment}/policies/{policy}", Write),
    ("POST", "~/environments/{environment}/policies/{policy}/rollback", Write),
    ("POST", "~/environments/{environment}/policies/{policy}/promote", Write),
    ("GET", "~/environments/{environment}/keys", Read),
    ("POST", "~/environments/{environment}/keys", Manage),
    ("DELETE", "~/environments/{environment}/keys/{id}", Manage),
    ("POST", "~/environments/{environment}/import", Write),
    ("GET", "~/environments/{environment}/export", Read),
    ("POST", "~/environments/{environment}/evaluate", Read),
    ("GET", "~/environments/{environment}/edges", Read),
    ("GET", "/api/v1/edges", Read),
    ("GET", "/api/v1/drift", Read),
    ("GET", "/api/v1/edge-keys", Manage),
    ("POST", "/api/v1/edge-keys", Manage),
    ("DELETE", "/api/v1/edge-keys/{id}", Manage),
    ("GET", "/edge/v1/heads", Edge),
    ("GET", "/edge/v1/blobs/{digest}", Edge),
    ("POST", "/edge/v1/receipts", Edge),
    ("POST", "/edge/v1/usage", Edge),
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

/// Somebody who is known.
#[derive(Debug, Clone)]
pub struct Scope {
    actor: String,
    trace_context: Option<String>,
}

/// Somebody who is known, in a namespace that they may see.
#[derive(Debug, Clone)]
pub struct NamespaceScope {
    id: String,
    key: String,
    actor: String,
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
    #[error(transparent)]
    Failed(#[from] Refusal),
}

impl From<sqlx::Error> for Denied {
    fn from(error: sqlx::Error) -> Denied {
        Denied::Failed(error.into())
    }
}

const ADMIN: &str = "SELECT name, hash FROM admin_token WHERE id = $1";
const ADMIN_COUNT: &str = "SELECT COUNT(*) FROM admin_token";
const ADMIN_INSERT: &str = "INSERT INTO admin_token (id, name, hash, created_at) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (id) DO NOTHING";
const NAMESPACE_ID: &str = "SELECT id FROM namespace WHERE key = $1";
const EDGE_KEY: &str = "SELECT all_namespaces, hash FROM edge_key WHERE id = $1";
const EDGE_LOCAL: &str = "INSERT INTO edge_key (id, name, all_namespaces, hash, created_at) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING";
const EDGE_NAMESPACES: &str = "SELECT n.key, n.id FROM edge_key_namespace e \
    JOIN namespace n ON n.id = e.namespace_id WHERE e.edge_key_id = $1";

/// The caller of an admin route, from the key of its `Authorization: Bearer` header.
pub async fn admin(
    read: &mut Connection,
    bearer: Option<&str>,
    permission: Permission,
    trace_context: Option<String>,
) -> Result<Scope, Denied> {
    let key = parse(bearer)?;
    if key.kind != KeyKind::Admin || permission == Permission::Edge {
        return Err(Denied::Forbidden);
    }
    let (name, hash) = query_as::<(String, Vec<u8>)>(ADMIN)
        .bind(&key.id)
        .fetch_optional(read)
        .await?
        .ok_or(Denied::Unknown)?;
    same_hash(&key, &hash)?;
    let scope = Scope { actor: format!("{name} ({})", key.id), trace_context };
    match scope.may(permission) {
        true => Ok(scope),
        false => Err(Denied::Forbidden),
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
        .fetch_optional(&mut *read)
        .await?
        .ok_or(Denied::Unknown)?;
    let namespaces: Vec<(String, String)> =
        query_as(EDGE_NAMESPACES).bind(key_id).fetch_all(read).await?;
    Ok(EdgeScope { key_id: key_id.to_owned(), all, namespaces: namespaces.into_iter().collect() })
}

/// What control does by itself, in a namespace: the audit names it so.
pub async fn of_control(read: &mut Connection, namespace: &str) -> Result<NamespaceScope, Refusal> {
    let scope = Scope { actor: "control (by itself)".to_owned(), trace_context: None };
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

/// Whether nobody can enter yet.
pub async fn is_new(tx: &mut Connection) -> Result<bool, sqlx::Error> {
    Ok(query_scalar::<i64>(ADMIN_COUNT).fetch_one(tx).await? == 0)
}

/// The first admin token. It is kept as its hash only. Two controls may bring the same one at once.
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
    /// One kind of user for now: whoever holds an admin token may do all of the admin API.
    fn may(&self, permission: Permission) -> bool {
        permission != Permission::Edge
    }

    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// A namespace that is not there and one that is not theirs are told apart by nobody.
    pub async fn namespace(
        &self,
        read: &mut Connection,
        key: &str,
    ) -> Result<NamespaceScope, Refusal> {
        let id = query_scalar::<String>(NAMESPACE_ID)
            .bind(key)
            .fetch_optional(read)
            .await?
            .ok_or(Refusal::NotFound("namespace"))?;
        Ok(NamespaceScope {
            id,
            key: key.to_owned(),
            actor: self.actor.clone(),
            trace_context: self.trace_context.clone(),
        })
    }
}

impl NamespaceScope {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn actor(&self) -> &str {
        &self.actor
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
