//! Routes of people: the first owner, signing in, one's own account and tokens, and accounts as
//! operators see them.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rules::keys::{ApiKey, KeyKind};
use rules::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::cookies;
use super::extract::{At, Handled, Said, Shared, Writing, answer, boxed, cookie, no_content};
use super::members::RolesBody;
use super::problem::{Stop, respond};
use crate::authorize::Scope;
use crate::authorize::callers::CallerKind;
use crate::members;
use crate::page::{Page, Paged};
use crate::passwords;
use crate::refusal::Refusal;
use crate::sessions::{self, ACCESS_S, How, Refreshed, Session, Started};
use crate::store::{Connection, rfc3339};
use crate::tokens::{self, Token, TokenScope};
use crate::users::{self, Invitation, Patch, User};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(set_up))
        .routes(routes!(list_sessions, sign_in))
        .routes(routes!(refresh_session))
        .routes(routes!(sign_out))
        .routes(routes!(end_session))
        .routes(routes!(accept_invitation))
        .routes(routes!(get_me))
        .routes(routes!(set_password))
        .routes(routes!(list_my_tokens, create_my_token))
        .routes(routes!(delete_my_token))
        .routes(routes!(list_users, create_user))
        .routes(routes!(get_user, change_user, disable_user))
        .routes(routes!(invite_user))
}

/// A password or a token in a body. Its Debug prints stars.
fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

fn secret_maybe<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetUp {
    /// tg_setup_…: control's first start made it, in its data folder.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
    email: String,
    /// 12 to 128 characters.
    #[schema(value_type = String, min_length = 12, max_length = 128)]
    #[serde(deserialize_with = "secret")]
    password: Secret<String>,
    #[serde(default)]
    name: String,
    /// Tokens go into cookies and not into the answer: for pages.
    #[serde(default)]
    cookie: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SignIn {
    email: String,
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    password: Secret<String>,
    /// Tokens go into cookies and not into the answer: for pages.
    #[serde(default)]
    cookie: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refresh {
    /// None: the one in the cookie, and the new one goes there too.
    #[schema(value_type = Option<String>)]
    #[serde(default, deserialize_with = "secret_maybe")]
    refresh_token: Option<Secret<String>>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Accept {
    /// tg_invite_…
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
    /// 12 to 128 characters.
    #[schema(value_type = String, min_length = 12, max_length = 128)]
    #[serde(deserialize_with = "secret")]
    password: Secret<String>,
    /// Tokens go into cookies and not into the answer: for pages.
    #[serde(default)]
    cookie: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewPassword {
    #[schema(value_type = String)]
    #[serde(deserialize_with = "secret")]
    current: Secret<String>,
    /// 12 to 128 characters.
    #[schema(value_type = String, min_length = 12, max_length = 128)]
    #[serde(deserialize_with = "secret")]
    new: Secret<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewUser {
    email: String,
    #[serde(default)]
    name: String,
    /// Runs the installation: may do everything everywhere.
    #[serde(default)]
    operator: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeUser {
    name: Option<String>,
    operator: Option<bool>,
    /// Ends their sessions and deletes their tokens.
    disabled: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ScopeName {
    Read,
    Write,
    Approve,
    Kill,
    Admin,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewToken {
    /// What it is for.
    name: String,
    /// What it may at most, of what its owner may: `write`, `approve` and `kill` read too, `admin` is
    /// everything.
    scopes: Vec<ScopeName>,
    /// 1 to 366; 90 if nothing is said.
    #[schema(minimum = 1, maximum = 366)]
    expires_in_days: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserBody {
    pub id: String,
    pub email: String,
    pub name: String,
    /// Runs the installation: may do everything everywhere.
    pub operator: bool,
    pub disabled: bool,
    /// Has no password yet; may still sign in with an identity provider.
    pub invited: bool,
    pub version: i64,
    pub created_at: String,
    pub updated_at: String,
    /// To the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<String>,
}

impl UserBody {
    pub fn of(user: &User) -> UserBody {
        UserBody {
            id: user.id.clone(),
            email: user.email.clone(),
            name: user.name.clone(),
            operator: user.operator,
            disabled: user.disabled_at.is_some(),
            invited: !user.has_password,
            version: user.version,
            created_at: rfc3339(user.created_at),
            updated_at: rfc3339(user.updated_at),
            last_seen_at: user.last_seen_at.map(rfc3339),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct UserList {
    items: Vec<UserBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvitationBody {
    /// tg_invite_…; this answer is the only one that shows it. To whom it is given, they choose the
    /// account's password with it.
    pub token: String,
    pub expires_at: String,
}

impl InvitationBody {
    pub fn of(invitation: &Invitation) -> InvitationBody {
        InvitationBody {
            token: invitation.key.reveal().to_owned(),
            expires_at: rfc3339(invitation.expires_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct InvitedUser {
    user: UserBody,
    /// Not in a repeated answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    invitation: Option<InvitationBody>,
}

/// A session that has begun or goes on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SessionStarted {
    session_id: String,
    /// For `Authorization: Bearer`; not where cookies were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    /// Good once, for the next pair; not where cookies were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// Seconds that the access token is good for.
    expires_in: i64,
    /// For `X-CSRF-Token` of requests that change something; where cookies were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    user: UserBody,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SessionBody {
    id: String,
    /// password, oidc, setup or invitation
    how: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    /// Whether it is the one that asks.
    current: bool,
    created_at: String,
    /// Of its last refresh.
    last_used_at: String,
    expires_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SessionList {
    items: Vec<SessionBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenBody {
    pub id: String,
    pub name: String,
    pub scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// To the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    pub created_by: String,
    pub created_at: String,
    /// The token itself, in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl TokenBody {
    pub fn of(token: &Token, key: Option<&ApiKey>) -> TokenBody {
        TokenBody {
            id: token.id.clone(),
            name: token.name.clone(),
            scopes: token.scopes(),
            expires_at: token.expires_at.map(rfc3339),
            last_used_at: token.last_used_at.map(rfc3339),
            created_by: token.created_by.clone(),
            created_at: rfc3339(token.created_at),
            token: key.map(|key| key.reveal().to_owned()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TokenList {
    items: Vec<TokenBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Me {
    /// user, service or bootstrap
    kind: &'static str,
    id: String,
    name: String,
    /// May do everything everywhere.
    operator: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserBody>,
    /// By the namespace's key; operators may act in others too.
    namespaces: BTreeMap<String, RolesBody>,
    /// For `X-CSRF-Token`, if it was asked with a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
}

fn wrong() -> Stop {
    let detail = "the e-mail address or the password is wrong";
    Stop::new(StatusCode::UNAUTHORIZED, "credentials", detail)
}

/// What a session begins or goes on with, in the way that was asked for.
fn started(
    shared: &Shared,
    status: StatusCode,
    started: &Started,
    user: &User,
    cookie: bool,
) -> Handled {
    let shown = |secret: &str| (!cookie).then(|| secret.to_owned());
    let csrf_token = match cookie {
        true => Some(cookies::csrf_token(&shared.authority, &started.session_id)?),
        false => None,
    };
    let body = SessionStarted {
        session_id: started.session_id.clone(),
        access_token: shown(started.access.reveal()),
        refresh_token: shown(started.refresh.reveal()),
        expires_in: ACCESS_S,
        csrf_token,
        user: UserBody::of(user),
    };
    let response = respond(answer(status, None, &body));
    Ok(if cookie { cookies::set(response, started) } else { response })
}

/// Make the first owner, once, with the token that control's first start made.
#[utoipa::path(post, path = "/api/v1/setup", tag = "sessions", request_body = SetUp, responses((status = 201, body = SessionStarted)))]
#[boxed]
async fn set_up(said: Said) -> Handled {
    let body: SetUp = said.json()?;
    let email = users::email("/email", &body.email)?;
    passwords::check("/password", &body.password)?;
    crate::refusal::check_name("/name", &body.name)?;
    let void = || {
        let detail = "the setup token is not valid, or was used; while nobody owns the installation \
            `tidegate control new-setup-token` makes another";
        Stop::new(StatusCode::FORBIDDEN, "void-token", detail)
    };
    let (key, _) = invited(&said, KeyKind::Setup, &body.token).await?.ok_or_else(void)?;
    let shared = &said.shared;
    let hash = shared.passwords.hash(body.password).await?;
    let mut tx = shared.store.write().await?;
    let user = users::begin(&mut tx, &key, &email, &body.name, &hash, &said.from).await?;
    let user = user.ok_or_else(void)?;
    let keys = &shared.authority.sessions;
    let session = sessions::start(&mut tx, keys, &user, How::Setup, &said.from).await?;
    tx.commit().await?;
    started(shared, StatusCode::CREATED, &session, &user, body.cookie)
}

/// The token of a stranger, looked at before anything dear is done for them.
async fn invited(
    said: &Said,
    kind: KeyKind,
    token: &Secret<String>,
) -> Result<Option<(ApiKey, Option<User>)>, Stop> {
    let attempt = said.shared.attempts.begin(None, said.from.address, Instant::now());
    let attempt = attempt.map_err(|often| Stop::too_often(often.to_string(), often.seconds))?;
    let mut read = said.shared.store.read().await?;
    let found = users::invited(&mut read, kind, token.reveal()).await?;
    if found.is_some() {
        attempt.succeeded();
    }
    Ok(found)
}

/// Sign in with an e-mail address and a password.
#[utoipa::path(post, path = "/api/v1/sessions", tag = "sessions", request_body = SignIn, responses((status = 201, body = SessionStarted)))]
#[boxed]
async fn sign_in(said: Said) -> Handled {
    let body: SignIn = said.json()?;
    let email = users::email("/email", &body.email)?;
    if body.password.reveal().chars().count() > passwords::CHARACTERS_MAX {
        return Err(wrong());
    }
    let shared = &said.shared;
    let attempt = shared.attempts.begin(Some(&email), said.from.address, Instant::now());
    let attempt = attempt.map_err(|often| Stop::too_often(often.to_string(), often.seconds))?;
    let (user_id, hash) = {
        let mut read = shared.store.read().await?;
        users::credentials(&mut read, &email).await?
    };
    let right = shared.passwords.matches(body.password, hash).await?;
    let Some(user_id) = user_id.filter(|_| right) else {
        tracing::info!(address = ?said.from.address, "a sign-in was refused");
        return Err(wrong());
    };
    attempt.succeeded();
    let mut tx = shared.store.write().await?;
    let user = users::get(&mut tx, &user_id).await?;
    if user.disabled_at.is_some() {
        return Err(wrong());
    }
    let keys = &shared.authority.sessions;
    let session = sessions::start(&mut tx, keys, &user, How::Password, &said.from).await?;
    tx.commit().await?;
    started(shared, StatusCode::CREATED, &session, &user, body.cookie)
}

/// A new pair of tokens for a refresh token, which is good once. One that comes a second time ends its
/// session.
#[utoipa::path(post, path = "/api/v1/sessions/refresh", tag = "sessions", request_body = Refresh, responses((status = 200, body = SessionStarted)))]
#[boxed]
async fn refresh_session(said: Said) -> Handled {
    let body: Refresh = said.json()?;
    let shared = &said.shared;
    let cookie = body.refresh_token.is_none();
    let over = || {
        let detail = "the session is over; sign in again";
        Stop::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    };
    let text = match &body.refresh_token {
        Some(token) => token.reveal().as_str(),
        None => cookies::refresh_token(&said.headers).ok_or_else(over)?,
    };
    let key = ApiKey::parse(text).ok().filter(|key| key.kind == KeyKind::Refresh);
    let key = key.ok_or_else(over)?;
    let mut tx = shared.store.write().await?;
    if cookie {
        // Before it is used up.
        let session = sessions::of_refresh(&mut tx, &key).await?.ok_or_else(over)?;
        cookies::check(&shared.authority, &session, &http::Uri::default(), &said.headers)?;
    }
    let refreshed =
        sessions::refresh(&mut tx, &shared.authority.sessions, &key, &said.from).await?;
    let Refreshed::Started(session) = refreshed else {
        tx.commit().await?;
        return Err(over());
    };
    let user = users::get(&mut tx, &session.user_id).await?;
    tx.commit().await?;
    started(shared, StatusCode::OK, &session, &user, cookie)
}

/// One's own sessions.
#[utoipa::path(get, path = "/api/v1/sessions", tag = "sessions", responses((status = 200, body = SessionList)))]
#[boxed]
async fn list_sessions(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let user_id = scope.user()?;
    let current = scope.signed_in().ok().map(|(_, session)| session.to_owned());
    let mut read = shared.store.read().await?;
    let paged = sessions::page(&mut read, user_id, &page).await?;
    let show = |row: &Session| SessionBody {
        id: row.id.clone(),
        how: row.how.clone(),
        address: row.address.clone(),
        user_agent: row.user_agent.clone(),
        current: current.as_ref() == Some(&row.id),
        created_at: rfc3339(row.created_at),
        last_used_at: rfc3339(row.last_used_at),
        expires_at: rfc3339(row.expires_at),
    };
    let items = paged.items.iter().map(show).collect();
    let body = SessionList { items, next_cursor: paged.next_cursor };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Sign out: ends the session that asks.
#[utoipa::path(delete, path = "/api/v1/sessions/current", tag = "sessions", responses((status = 204)))]
#[boxed]
async fn sign_out(writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = write.scope.clone();
    let (user_id, session_id) = scope.signed_in()?;
    sessions::revoke(&mut write.tx, scope.caller(), user_id, session_id).await?;
    write.finish(no_content()).await.map(cookies::clear)
}

/// End one of one's own sessions.
#[utoipa::path(delete, path = "/api/v1/sessions/{id}", tag = "sessions", responses((status = 204)))]
#[boxed]
async fn end_session(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = write.scope.clone();
    let (user_id, _) = scope.signed_in()?;
    sessions::revoke(&mut write.tx, scope.caller(), user_id, &at.id).await?;
    write.finish(no_content()).await
}

/// Choose the password that an invitation is for, and sign in.
#[utoipa::path(post, path = "/api/v1/invitations/accept", tag = "sessions", request_body = Accept, responses((status = 201, body = SessionStarted)))]
#[boxed]
async fn accept_invitation(said: Said) -> Handled {
    let body: Accept = said.json()?;
    passwords::check("/password", &body.password)?;
    let void = || {
        let detail = "the invitation is not valid, or was used, or is over";
        Stop::new(StatusCode::FORBIDDEN, "void-token", detail)
    };
    let found = invited(&said, KeyKind::Invite, &body.token).await?;
    let Some((key, Some(user))) = found else { return Err(void()) };
    let shared = &said.shared;
    let hash = shared.passwords.hash(body.password).await?;
    let mut tx = shared.store.write().await?;
    let user = users::accept(&mut tx, &key, &user.id, &hash, &said.from).await?.ok_or_else(void)?;
    let keys = &shared.authority.sessions;
    let session = sessions::start(&mut tx, keys, &user, How::Invitation, &said.from).await?;
    tx.commit().await?;
    started(shared, StatusCode::CREATED, &session, &user, body.cookie)
}

/// Who asks, and what their roles are.
#[utoipa::path(get, path = "/api/v1/me", tag = "me", responses((status = 200, body = Me)))]
#[boxed]
async fn get_me(State(shared): State<Shared>, scope: Scope, headers: HeaderMap) -> Handled {
    let mut read = shared.store.read().await?;
    let caller = scope.caller();
    let user = match caller.kind {
        CallerKind::User => Some(UserBody::of(&users::get(&mut read, &caller.id).await?)),
        _ => None,
    };
    let roles = members::everywhere(&mut read, &caller.id).await?;
    let csrf_token = match scope.signed_in() {
        Ok((_, session)) if cookie(&headers, cookies::SESSION).is_some() => {
            Some(cookies::csrf_token(&shared.authority, session)?)
        }
        _ => None,
    };
    let body = Me {
        kind: caller.kind.name(),
        id: caller.id.clone(),
        name: caller.name.clone(),
        operator: scope.operates(),
        user,
        namespaces: roles.iter().map(|(key, roles)| (key.clone(), RolesBody::of(roles))).collect(),
        csrf_token,
    };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Change one's own password. Ends one's other sessions.
#[utoipa::path(put, path = "/api/v1/me/password", tag = "me", request_body = NewPassword, responses((status = 204)))]
#[boxed]
async fn set_password(writing: Writing) -> Handled {
    let body: NewPassword = writing.json()?;
    let scope = writing.scope.clone();
    let (user_id, session_id) = scope.signed_in()?;
    passwords::check("/new", &body.new)?;
    let shared = writing.shared().clone();
    let address = scope.caller().address;
    let attempt = shared.attempts.begin(Some(scope.actor()), address, Instant::now());
    let attempt = attempt.map_err(|often| Stop::too_often(often.to_string(), often.seconds))?;
    let hash = {
        let mut read = shared.store.read().await?;
        users::hash(&mut read, user_id).await?
    };
    if !shared.passwords.matches(body.current, hash).await? {
        return Err(Refusal::invalid("/current", "not the current password").into());
    }
    attempt.succeeded();
    let hash = shared.passwords.hash(body.new).await?;
    let mut write = writing.forgetting().begin().await?;
    users::set_password(&mut write.tx, scope.caller(), user_id, &hash, session_id).await?;
    write.finish(no_content()).await
}

fn token_list(paged: &Paged<Token>) -> Response {
    let items = paged.items.iter().map(|token| TokenBody::of(token, None)).collect();
    let body = TokenList { items, next_cursor: paged.next_cursor.clone() };
    respond(answer(StatusCode::OK, None, &body))
}

/// One's own tokens, without the tokens themselves.
#[utoipa::path(get, path = "/api/v1/me/tokens", tag = "me", responses((status = 200, body = TokenList)))]
#[boxed]
async fn list_my_tokens(State(shared): State<Shared>, scope: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(token_list(&tokens::personal_page(&mut read, scope.user()?, &page).await?))
}

/// Make a token that acts as oneself, within scopes; this answer is the only one that shows it.
#[utoipa::path(post, path = "/api/v1/me/tokens", tag = "me", request_body = NewToken, responses((status = 201, body = TokenBody)))]
#[boxed]
async fn create_my_token(writing: Writing) -> Handled {
    let new: NewToken = writing.json()?;
    let scope = writing.scope.clone();
    let (user_id, _) = scope.signed_in()?;
    let scopes: Vec<TokenScope> = new
        .scopes
        .iter()
        .map(|scope| match scope {
            ScopeName::Read => TokenScope::Read,
            ScopeName::Write => TokenScope::Write,
            ScopeName::Approve => TokenScope::Approve,
            ScopeName::Kill => TokenScope::Kill,
            ScopeName::Admin => TokenScope::Admin,
        })
        .collect();
    let mut write = writing.begin().await?;
    let (tx, caller, days) = (&mut write.tx, scope.caller(), new.expires_in_days);
    let (key, row) = tokens::personal(tx, caller, user_id, &new.name, &scopes, days).await?;
    let shown = answer(StatusCode::CREATED, None, &TokenBody::of(&row, Some(&key)));
    let kept = answer(StatusCode::CREATED, None, &TokenBody::of(&row, None));
    write.finish_with_secret(shown, kept).await
}

/// Delete one of one's own tokens, at once.
#[utoipa::path(delete, path = "/api/v1/me/tokens/{id}", tag = "me", responses((status = 204)))]
#[boxed]
async fn delete_my_token(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = write.scope.clone();
    let user_id = scope.user()?;
    // A token may end itself, and no other.
    if scope.signed_in().is_err() && scope.caller().via.as_deref() != Some(at.id.as_str()) {
        scope.signed_in()?;
    }
    tokens::personal_delete(&mut write.tx, scope.caller(), user_id, &at.id).await?;
    write.finish(no_content()).await
}

/// Accounts, by e-mail address.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", responses((status = 200, body = UserList)))]
#[boxed]
async fn list_users(State(shared): State<Shared>, _: Scope, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let paged = users::page(&mut read, &page).await?;
    let items = paged.items.iter().map(UserBody::of).collect();
    let body = UserList { items, next_cursor: paged.next_cursor };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Make an account, with an invitation to choose its password.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = NewUser, responses((status = 201, body = InvitedUser)))]
#[boxed]
async fn create_user(writing: Writing) -> Handled {
    let new: NewUser = writing.json()?;
    let mut write = writing.begin().await?;
    let caller = write.scope.caller().clone();
    let tx = &mut write.tx;
    let user = users::create(tx, &caller, &new.email, &new.name, new.operator).await?;
    let invitation = users::invite(tx, &caller, &user).await?;
    let (version, show) =
        (user.version, |invitation| InvitedUser { user: UserBody::of(&user), invitation });
    let shown = show(Some(InvitationBody::of(&invitation)));
    let shown = answer(StatusCode::CREATED, Some(version), &shown);
    let kept = answer(StatusCode::CREATED, Some(version), &show(None));
    write.finish_with_secret(shown, kept).await
}

fn user_answer(user: &User) -> crate::idempotency::Answer {
    answer(StatusCode::OK, Some(user.version), &UserBody::of(user))
}

async fn user_at(read: &mut Connection, at: &At) -> Result<User, Refusal> {
    users::get(read, &at.user).await
}

/// One account, by its id or its e-mail address.
#[utoipa::path(get, path = "/api/v1/users/{user}", tag = "users", responses((status = 200, body = UserBody)))]
#[boxed]
async fn get_user(State(shared): State<Shared>, _: Scope, at: At) -> Handled {
    let mut read = shared.store.read().await?;
    Ok(respond(user_answer(&user_at(&mut read, &at).await?)))
}

/// Change an account: its name, whether it runs the installation, whether it is disabled.
#[utoipa::path(patch, path = "/api/v1/users/{user}", tag = "users", request_body = ChangeUser, responses((status = 200, body = UserBody)))]
#[boxed]
async fn change_user(at: At, writing: Writing) -> Handled {
    let body: ChangeUser = writing.json()?;
    let patch = Patch { name: body.name, operator: body.operator, disabled: body.disabled };
    let mut write = writing.begin().await?;
    let (caller, expected) = (write.scope.caller().clone(), write.expected);
    let user = users::change(&mut write.tx, &caller, &at.user, expected, &patch).await?;
    write.finish(user_answer(&user)).await
}

/// Disable an account: its sessions and tokens end at once; what it did stays in its name.
#[utoipa::path(delete, path = "/api/v1/users/{user}", tag = "users", responses((status = 204)))]
#[boxed]
async fn disable_user(at: At, writing: Writing) -> Handled {
    let patch = Patch { disabled: Some(true), ..Patch::default() };
    let mut write = writing.begin().await?;
    let (caller, expected) = (write.scope.caller().clone(), write.expected);
    users::change(&mut write.tx, &caller, &at.user, expected, &patch).await?;
    write.finish(no_content()).await
}

/// Invite an account anew, to choose a password; invitations before it are void.
#[utoipa::path(post, path = "/api/v1/users/{user}/invitations", tag = "users", responses((status = 201, body = InvitationBody)))]
#[boxed]
async fn invite_user(at: At, writing: Writing) -> Handled {
    // Not kept for a repeated request: it would be an invitation without its token.
    let mut write = writing.forgetting().begin().await?;
    let caller = write.scope.caller().clone();
    let user = user_at(&mut write.tx, &at).await?;
    if user.disabled_at.is_some() {
        return Err(Refusal::invalid("/user", "the account is disabled").into());
    }
    let invitation = users::invite(&mut write.tx, &caller, &user).await?;
    write.finish(answer(StatusCode::CREATED, None, &InvitationBody::of(&invitation))).await
}
