//! Accounts: people by their e-mail address, the invitations that they choose a password with, and the
//! first owner of an installation.
//!
//! Operators run the installation; there is always one who can. Whoever is disabled keeps nothing that
//! lets them in. Roles in namespaces are `members.rs`.

use rules::keys::{ApiKey, KeyKind};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use crate::audit::{self, Entry};
use crate::authorize::callers::Caller;
use crate::change::Expected;
use crate::page::{Page, Paged};
use crate::refusal::{Refusal, check_name};
use crate::sessions::{self, Device};
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Store, Tx, new_id, now_us, rfc3339};

/// Whose turn it is to make, issue anew or use up what lets the first person in.
pub const FIRST_TOKENS: &str = "first tokens";
const USERS_MAX: i64 = 100_000;
const EMAIL_BYTES_MAX: usize = 254;
/// An invitation that nobody took up.
const INVITATION_US: i64 = 7 * 24 * 60 * 60 * 1_000_000;

const BY_ID: &str = "SELECT id, email, name, operator, password_hash IS NOT NULL AS has_password, \
    disabled_at, version, created_at, updated_at, last_seen_at FROM user_account WHERE id = $1";
const BY_EMAIL: &str = "SELECT id, email, name, operator, \
    password_hash IS NOT NULL AS has_password, disabled_at, version, created_at, updated_at, \
    last_seen_at FROM user_account WHERE email = $1";
const PAGE: &str = "SELECT id, email, name, operator, password_hash IS NOT NULL AS has_password, \
    disabled_at, version, created_at, updated_at, last_seen_at FROM user_account \
    WHERE email > $1 ORDER BY email LIMIT $2";
const COUNT: &str = "SELECT COUNT(*) FROM user_account";
const OWNERS: &str = "SELECT COUNT(*) FROM user_account WHERE operator";
const INSERT: &str = "INSERT INTO user_account (id, email, name, operator, password_hash, version, \
    created_at, updated_at) VALUES ($1, $2, $3, $4, $5, 1, $6, $6) ON CONFLICT (email) DO NOTHING";
const UPDATE: &str = "UPDATE user_account SET name = $2, operator = $3, disabled_at = $4, \
    version = version + 1, updated_at = $5 WHERE id = $1";
const PASSWORD: &str = "UPDATE user_account SET password_hash = $2, version = version + 1, \
    updated_at = $3 WHERE id = $1";
const CREDENTIALS: &str =
    "SELECT id, password_hash, disabled_at FROM user_account WHERE email = $1";
const HASH: &str = "SELECT password_hash FROM user_account WHERE id = $1";
const OTHER_OPERATORS: &str = "SELECT COUNT(*) FROM user_account \
    WHERE operator AND disabled_at IS NULL AND id <> $1";
const TOKENS_OF: &str = "DELETE FROM access_token WHERE user_id = $1";

const INVITE: &str = "INSERT INTO invitation (id, kind, user_id, hash, expires_at, created_at) \
    VALUES ($1, $2, $3, $4, $5, $6)";
const INVITED: &str =
    "SELECT user_id, hash, expires_at FROM invitation WHERE id = $1 AND kind = $2";
const TAKE: &str = "DELETE FROM invitation WHERE id = $1 AND kind = $2";
const UNINVITE: &str = "DELETE FROM invitation WHERE user_id = $1";
const SETUPS: &str = "SELECT COUNT(*) FROM invitation WHERE kind = 'setup'";
const SETUPS_END: &str = "DELETE FROM invitation WHERE kind = 'setup'";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct User {
    pub id: String,
    pub email: String,
    pub name: String,
    pub operator: bool,
    pub has_password: bool,
    pub disabled_at: Option<i64>,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
    pub last_seen_at: Option<i64>,
}

impl User {
    /// As the audit has it.
    fn state(&self) -> Value {
        json!({ "id": self.id, "email": self.email, "name": self.name, "operator": self.operator,
            "disabled": self.disabled_at.is_some(), "version": self.version,
            "createdAt": rfc3339(self.created_at) })
    }
}

/// Shown once.
#[derive(Debug)]
pub struct Invitation {
    pub key: ApiKey,
    pub expires_at: i64,
}

/// What changes; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    pub name: Option<String>,
    pub operator: Option<bool>,
    pub disabled: Option<bool>,
}

/// In the installation's own audit: accounts, operators, sessions, personal tokens.
pub async fn record(
    tx: &mut Tx,
    caller: &Caller,
    action: &'static str,
    target: &str,
    before: Option<Value>,
    after: Option<Value>,
) -> Result<(), Refusal> {
    let target = target.to_owned();
    let entry = Entry { action, target, environment: None, before, after };
    audit::record_instance(tx, caller, entry).await
}

/// As it is stored: in lower case, without space around it.
pub fn email(pointer: &str, text: &str) -> Result<String, Refusal> {
    let email = text.trim().to_lowercase();
    let parts = email.split_once('@');
    let fits = parts
        .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    let odd = |letter: char| {
        letter.is_whitespace() || letter.is_control() || "<>\"\\,;/".contains(letter)
    };
    match fits && email.len() <= EMAIL_BYTES_MAX && !email.contains(odd) {
        true => Ok(email),
        false => Err(Refusal::invalid(pointer, "not an e-mail address")),
    }
}

pub async fn page(read: &mut Connection, page: &Page) -> Result<Paged<User>, Refusal> {
    let rows = query_as(PAGE).bind(&page.after).bind(page.fetch()).fetch_all(read).await?;
    Ok(page.cut(rows, |row: &User| row.email.clone()))
}

/// By id or by e-mail address.
pub async fn find(read: &mut Connection, who: &str) -> Result<Option<User>, Refusal> {
    Ok(match who.contains('@') {
        true => query_as(BY_EMAIL).bind(who.trim().to_lowercase()).fetch_optional(read).await?,
        false => query_as(BY_ID).bind(who).fetch_optional(read).await?,
    })
}

pub async fn get(read: &mut Connection, who: &str) -> Result<User, Refusal> {
    find(read, who).await?.ok_or(Refusal::NotFound("user"))
}

/// An account that waits for its password.
pub async fn create(
    tx: &mut Tx,
    caller: &Caller,
    address: &str,
    name: &str,
    operator: bool,
) -> Result<User, Refusal> {
    let address = email("/email", address)?;
    check_name("/name", name)?;
    insert(tx, &address, name, operator, None).await?;
    let made = get(tx, &address).await?;
    record(tx, caller, "user.create", &made.email, None, Some(made.state())).await?;
    Ok(made)
}

async fn insert(
    tx: &mut Tx,
    email: &str,
    name: &str,
    operator: bool,
    hash: Option<&str>,
) -> Result<(), Refusal> {
    let count: i64 = query_scalar(COUNT).fetch_one(tx).await?;
    if count >= USERS_MAX {
        return Err(Refusal::TooMany { what: "users", max: USERS_MAX as usize });
    }
    let done = query(INSERT)
        .bind(new_id())
        .bind(email)
        .bind(name)
        .bind(operator)
        .bind(hash)
        .bind(now_us())
        .execute(tx)
        .await?;
    match done {
        0 => Err(Refusal::Exists { what: "user", key: email.to_owned() }),
        _ => Ok(()),
    }
}

/// One token to choose a password with; those before it are void.
pub async fn invite(tx: &mut Tx, caller: &Caller, user: &User) -> Result<Invitation, Refusal> {
    let key = crate::keys::random(KeyKind::Invite)?;
    let now = now_us();
    let expires_at = now + INVITATION_US;
    query(UNINVITE).bind(&user.id).execute(tx).await?;
    query(INVITE)
        .bind(&key.id)
        .bind("invite")
        .bind(&user.id)
        .bind(key.hash().to_vec())
        .bind(expires_at)
        .bind(now)
        .execute(tx)
        .await?;
    record(tx, caller, "user.invite", &user.email, None, None).await?;
    Ok(Invitation { key, expires_at })
}

/// Whether a token to set up or to join with is good; of an invitation, whose it is.
pub async fn invited(
    read: &mut Connection,
    kind: KeyKind,
    token: &str,
) -> Result<Option<(ApiKey, Option<User>)>, Refusal> {
    let Ok(key) = ApiKey::parse(token.trim()) else { return Ok(None) };
    if key.kind != kind {
        return Ok(None);
    }
    let row: Option<(Option<String>, Vec<u8>, Option<i64>)> =
        query_as(INVITED).bind(&key.id).bind(kind.name()).fetch_optional(&mut *read).await?;
    let Some((user_id, hash, expires_at)) = row else { return Ok(None) };
    let same = bool::from(key.hash().as_slice().ct_eq(&hash));
    if !same || expires_at.is_some_and(|at| at <= now_us()) {
        return Ok(None);
    }
    let user = match &user_id {
        Some(id) => Some(get(read, id).await?),
        None => None,
    };
    if user.as_ref().is_some_and(|user| user.disabled_at.is_some()) {
        return Ok(None);
    }
    Ok(Some((key, user)))
}

/// The first owner. None if the token was used meanwhile, or there is an owner already.
pub async fn begin(
    tx: &mut Tx,
    key: &ApiKey,
    email: &str,
    name: &str,
    hash: &str,
    from: &Device,
) -> Result<Option<User>, Refusal> {
    // A token that is issued anew waits for this, or the other way round.
    tx.take_turn(FIRST_TOKENS).await?;
    let taken = query(TAKE).bind(&key.id).bind("setup").execute(tx).await?;
    if taken == 0 || is_owned(tx).await? {
        return Ok(None);
    }
    // Had there been two of them, the other one is void too.
    query(SETUPS_END).execute(tx).await?;
    insert(tx, email, name, true, Some(hash)).await?;
    let made = get(tx, email).await?;
    let caller = Caller::person(&made, from);
    record(tx, &caller, "installation.setup", &made.email, None, Some(made.state())).await?;
    Ok(Some(made))
}

/// The password that an invitation was for. None if it was used meanwhile.
pub async fn accept(
    tx: &mut Tx,
    key: &ApiKey,
    user_id: &str,
    hash: &str,
    from: &Device,
) -> Result<Option<User>, Refusal> {
    if query(TAKE).bind(&key.id).bind("invite").execute(tx).await? == 0 {
        return Ok(None);
    }
    set_hash(tx, user_id, hash, None).await?;
    let user = get(tx, user_id).await?;
    record(tx, &Caller::person(&user, from), "user.accept", &user.email, None, None).await?;
    Ok(Some(user))
}

/// Whoever had signed in with the old password is out.
async fn set_hash(
    tx: &mut Tx,
    user_id: &str,
    hash: &str,
    but_session: Option<&str>,
) -> Result<(), Refusal> {
    query(PASSWORD).bind(user_id).bind(hash).bind(now_us()).execute(tx).await?;
    query(UNINVITE).bind(user_id).execute(tx).await?;
    sessions::revoke_others(tx, user_id, but_session).await
}

/// Changes one's own password; the session in which it is done goes on.
pub async fn set_password(
    tx: &mut Tx,
    caller: &Caller,
    user_id: &str,
    hash: &str,
    session_id: &str,
) -> Result<(), Refusal> {
    set_hash(tx, user_id, hash, Some(session_id)).await?;
    record(tx, caller, "user.password", &caller.name, None, None).await
}

pub async fn hash(read: &mut Connection, user_id: &str) -> Result<Option<String>, Refusal> {
    let hash: Option<Option<String>> =
        query_scalar(HASH).bind(user_id).fetch_optional(read).await?;
    Ok(hash.flatten())
}

/// What a sign-in is held against: whose it is, if they may sign in at all, and the hash.
pub async fn credentials(
    read: &mut Connection,
    email: &str,
) -> Result<(Option<String>, Option<String>), Refusal> {
    let row: Option<(String, Option<String>, Option<i64>)> =
        query_as(CREDENTIALS).bind(email).fetch_optional(read).await?;
    Ok(match row {
        Some((id, hash, None)) => (Some(id), hash),
        // Who is disabled has no password, as far as anybody can tell from outside.
        Some((_, _, Some(_))) | None => (None, None),
    })
}

pub async fn change(
    tx: &mut Tx,
    caller: &Caller,
    who: &str,
    expected: Expected,
    patch: &Patch,
) -> Result<User, Refusal> {
    // Two operators who end each other take turns.
    tx.take_turn("operators").await?;
    let before = get(tx, who).await?;
    expected.check(before.version, || before.state())?;
    let name = patch.name.clone().unwrap_or_else(|| before.name.clone());
    check_name("/name", &name)?;
    let operator = patch.operator.unwrap_or(before.operator);
    let now = now_us();
    let disabled_at = match patch.disabled {
        None => before.disabled_at,
        Some(false) => None,
        Some(true) => before.disabled_at.or(Some(now)),
    };
    let was = before.operator && before.disabled_at.is_none();
    let is = operator && disabled_at.is_none();
    if was && !is {
        let others: i64 = query_scalar(OTHER_OPERATORS).bind(&before.id).fetch_one(tx).await?;
        if others == 0 {
            return Err(Refusal::Last { what: "operator" });
        }
    }
    query(UPDATE)
        .bind(&before.id)
        .bind(&name)
        .bind(operator)
        .bind(disabled_at)
        .bind(now)
        .execute(tx)
        .await?;
    if disabled_at.is_some() && before.disabled_at.is_none() {
        // They are refused from now on; what is ended here does not come back when they do.
        sessions::revoke_others(tx, &before.id, None).await?;
        query(TOKENS_OF).bind(&before.id).execute(tx).await?;
        query(UNINVITE).bind(&before.id).execute(tx).await?;
    }
    let after = get(tx, &before.id).await?;
    let (one, two) = (Some(before.state()), Some(after.state()));
    record(tx, caller, "user.update", &after.email, one, two).await?;
    Ok(after)
}

/// Whether there is anybody who may do everything. Others can be there before: an identity provider's
/// people, at their first sign-in.
pub async fn is_owned(read: &mut Connection) -> Result<bool, Refusal> {
    Ok(query_scalar::<i64>(OWNERS).fetch_one(read).await? > 0)
}

#[derive(Debug, thiserror::Error)]
pub enum AnewError {
    #[error("there is an owner already, who can invite others")]
    Owned,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Another setup token for one that was lost, while nobody owns the installation; the lost one is void.
/// `keep` puts it where people find it, before it is good for anything.
pub async fn begin_anew(
    store: &Store,
    keep: impl FnOnce(&ApiKey) -> Result<(), Refusal>,
) -> Result<(), AnewError> {
    let failed = |error: sqlx::Error| Refusal::from(error);
    let mut tx = store.write().await.map_err(failed)?;
    tx.take_turn(FIRST_TOKENS).await.map_err(failed)?;
    if is_owned(&mut tx).await? {
        return Err(AnewError::Owned);
    }
    let key = crate::keys::random(KeyKind::Setup)?;
    query(SETUPS_END).execute(&mut tx).await.map_err(failed)?;
    may_begin(&mut tx, &key).await?;
    let caller = Caller::command_line();
    record(&mut tx, &caller, "installation.setup-token", &key.id, None, None).await?;
    keep(&key)?;
    Ok(tx.commit().await.map_err(failed)?)
}

/// Whether there is a token that makes the first one.
pub async fn is_begun(read: &mut Connection) -> Result<bool, Refusal> {
    Ok(query_scalar::<i64>(SETUPS).fetch_one(read).await? > 0)
}

/// The token that the first owner is made with. It is kept as its hash only, until it is used.
pub async fn may_begin(tx: &mut Tx, key: &ApiKey) -> Result<(), Refusal> {
    query(INVITE)
        .bind(&key.id)
        .bind("setup")
        .bind(None::<String>)
        .bind(key.hash().to_vec())
        .bind(None::<i64>)
        .bind(now_us())
        .execute(tx)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_one_form_and_what_is_none_is_refused() {
        assert_eq!(email("/email", " Ann@Example.COM ").unwrap(), "ann@example.com");
        for bad in ["", "ann", "@x", "ann@", "a@b@c", "a b@c", "a/b@c", "<a@b>"] {
            assert!(email("/email", bad).is_err(), "{bad:?}");
        }
        assert!(email("/email", &format!("{}@x", "a".repeat(253))).is_err());
    }
}
