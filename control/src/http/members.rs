//! Routes of a namespace's members and service tokens.

use std::collections::BTreeMap;

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{At, Handled, Shared, Writing, answer, boxed, no_content};
use super::identity::{InvitationBody, TokenBody};
use super::problem::{Stop, respond};
use crate::authorize::{Role, Scope};
use crate::members::{self, Given, Roles};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::tokens;
use crate::users::User;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_members))
        .routes(routes!(set_member, remove_member))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(delete_token))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    Owner,
    Admin,
    Editor,
    Approver,
    Viewer,
}

impl RoleName {
    fn of(role: Role) -> RoleName {
        match role {
            Role::Owner => RoleName::Owner,
            Role::Admin => RoleName::Admin,
            Role::Editor => RoleName::Editor,
            Role::Approver => RoleName::Approver,
            Role::Viewer => RoleName::Viewer,
        }
    }

    fn role(self) -> Role {
        match self {
            RoleName::Owner => Role::Owner,
            RoleName::Admin => Role::Admin,
            RoleName::Editor => Role::Editor,
            RoleName::Approver => Role::Approver,
            RoleName::Viewer => Role::Viewer,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleThere {
    role: RoleName,
    /// May turn flags off past the environment's approvals.
    #[serde(default)]
    kill_switch: bool,
}

/// All roles of somebody in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolesBody {
    /// In the whole namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<RoleName>,
    /// May turn flags off past approvals, in the whole namespace.
    #[serde(default)]
    kill_switch: bool,
    /// By the environment's key: what is added there.
    #[serde(default)]
    environments: BTreeMap<String, RoleThere>,
}

impl RolesBody {
    pub fn of(roles: &Roles) -> RolesBody {
        let there = |(key, given): (&String, &Given)| {
            let there =
                RoleThere { role: RoleName::of(given.role), kill_switch: given.kill_switch };
            (key.clone(), there)
        };
        RolesBody {
            role: roles.everywhere.map(|given| RoleName::of(given.role)),
            kill_switch: roles.everywhere.is_some_and(|given| given.kill_switch),
            environments: roles.environments.iter().map(there).collect(),
        }
    }

    fn roles(&self) -> Result<Roles, Stop> {
        let everywhere = match (self.role, self.kill_switch) {
            (Some(role), kill_switch) => Some(Given { role: role.role(), kill_switch }),
            (None, false) => None,
            (None, true) => {
                let message = "the kill switch of a whole namespace goes with a role there";
                return Err(Refusal::invalid("/killSwitch", message).into());
            }
        };
        let there = |(key, there): (&String, &RoleThere)| {
            (key.clone(), Given { role: there.role.role(), kill_switch: there.kill_switch })
        };
        Ok(Roles { everywhere, environments: self.environments.iter().map(there).collect() })
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MemberBody {
    id: String,
    email: String,
    name: String,
    disabled: bool,
    /// Has no password yet; may still sign in with an identity provider.
    invited: bool,
    /// In the whole namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<RoleName>,
    kill_switch: bool,
    environments: BTreeMap<String, RoleThere>,
    /// Of an account that this very request made, if an operator asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    invitation: Option<InvitationBody>,
}

impl MemberBody {
    fn of(user: &User, roles: &Roles, invitation: Option<InvitationBody>) -> MemberBody {
        let RolesBody { role, kill_switch, environments } = RolesBody::of(roles);
        MemberBody {
            id: user.id.clone(),
            email: user.email.clone(),
            name: user.name.clone(),
            disabled: user.disabled_at.is_some(),
            invited: !user.has_password,
            role,
            kill_switch,
            environments,
            invitation,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MemberList {
    items: Vec<MemberBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewServiceToken {
    /// What it is for.
    name: String,
    /// In the whole namespace.
    #[serde(default)]
    role: Option<RoleName>,
    /// May turn flags off past approvals, in the whole namespace.
    #[serde(default)]
    kill_switch: bool,
    /// By the environment's key: what is added there.
    #[serde(default)]
    environments: BTreeMap<String, RoleThere>,
    /// 1 to 366; 90 if nothing is said.
    #[schema(minimum = 1, maximum = 366)]
    expires_in_days: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ServiceTokenBody {
    #[serde(flatten)]
    token: TokenBody,
    /// In the whole namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<RoleName>,
    kill_switch: bool,
    environments: BTreeMap<String, RoleThere>,
}

impl ServiceTokenBody {
    fn of(token: TokenBody, roles: &Roles) -> ServiceTokenBody {
        let RolesBody { role, kill_switch, environments } = RolesBody::of(roles);
        ServiceTokenBody { token, role, kill_switch, environments }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ServiceTokenList {
    items: Vec<ServiceTokenBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Who has a role in the namespace, by e-mail address.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/members", tag = "members", responses((status = 200, body = MemberList)))]
#[boxed]
async fn list_members(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = members::page(&mut read, &scope, &page).await?;
    let show = |(user, roles): &(User, Roles)| MemberBody::of(user, roles, None);
    let items = paged.items.iter().map(show).collect();
    let body = MemberList { items, next_cursor: paged.next_cursor };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Give somebody exactly these roles, by the account's id or e-mail address; an address without an
/// account gets one. Nobody gives more than they have.
#[utoipa::path(put, path = "/api/v1/namespaces/{namespace}/members/{user}", tag = "members", request_body = RolesBody, responses((status = 200, body = MemberBody)))]
#[boxed]
async fn set_member(at: At, writing: Writing) -> Handled {
    let body: RolesBody = writing.json()?;
    let roles = body.roles()?;
    let mut write = writing.begin().await?;
    let operates = write.scope.operates();
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (user, invitation) =
        members::set(&mut write.tx, &scope, &at.user, &roles, operates).await?;
    let shown = MemberBody::of(&user, &roles, invitation.as_ref().map(InvitationBody::of));
    let kept = MemberBody::of(&user, &roles, None);
    let (shown, kept) = (answer(StatusCode::OK, None, &shown), answer(StatusCode::OK, None, &kept));
    write.finish_with_secret(shown, kept).await
}

/// Take all of somebody's roles in the namespace.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/members/{user}", tag = "members", responses((status = 204)))]
#[boxed]
async fn remove_member(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    members::remove(&mut write.tx, &scope, &at.user).await?;
    write.finish(no_content()).await
}

/// Service tokens of the namespace, without the tokens themselves.
#[utoipa::path(get, path = "/api/v1/namespaces/{namespace}/tokens", tag = "members", responses((status = 200, body = ServiceTokenList)))]
#[boxed]
async fn list_tokens(State(shared): State<Shared>, scope: Scope, at: At, page: Page) -> Handled {
    let mut read = shared.store.read().await?;
    let scope = at.scope(&mut read, &scope).await?;
    let paged = tokens::service_page(&mut read, &scope, &page).await?;
    let show = |(token, roles): &(tokens::Token, Roles)| {
        ServiceTokenBody::of(TokenBody::of(token, None), roles)
    };
    let items = paged.items.iter().map(show).collect();
    let body = ServiceTokenList { items, next_cursor: paged.next_cursor };
    Ok(respond(answer(StatusCode::OK, None, &body)))
}

/// Make a token with roles of its own, for a program; this answer is the only one that shows it.
#[utoipa::path(post, path = "/api/v1/namespaces/{namespace}/tokens", tag = "members", request_body = NewServiceToken, responses((status = 201, body = ServiceTokenBody)))]
#[boxed]
async fn create_token(at: At, writing: Writing) -> Handled {
    let new: NewServiceToken = writing.json()?;
    let NewServiceToken { name, role, kill_switch, environments, expires_in_days } = new;
    let roles = RolesBody { role, kill_switch, environments }.roles()?;
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    let (key, row) = tokens::service(&mut write.tx, &scope, &name, &roles, expires_in_days).await?;
    let body = |key| ServiceTokenBody::of(TokenBody::of(&row, key), &roles);
    let shown = answer(StatusCode::CREATED, None, &body(Some(&key)));
    let kept = answer(StatusCode::CREATED, None, &body(None));
    write.finish_with_secret(shown, kept).await
}

/// Delete a service token, at once.
#[utoipa::path(delete, path = "/api/v1/namespaces/{namespace}/tokens/{id}", tag = "members", responses((status = 204)))]
#[boxed]
async fn delete_token(at: At, writing: Writing) -> Handled {
    let mut write = writing.begin().await?;
    let scope = at.scope(&mut write.tx, &write.scope).await?;
    tokens::service_delete(&mut write.tx, &scope, &at.id).await?;
    write.finish(no_content()).await
}
