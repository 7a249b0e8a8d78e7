//! Accounts, and where to log in.

use super::access::{AuditNote, Needs};
use super::body::{Body, NameInPath, Parameters, UserInPath};
use super::keys::Scope;
use super::problem::Problem;
use super::routes::Routes;
use super::service::Service;
use crate::api::{UserId, digits, present};
use crate::dispatch::Strategy;
use crate::membership::{ZONE_CHARS_MAX, is_zone};
use crate::redis::AccountError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) fn add(routes: Routes<Service>) -> Routes<Service> {
    routes
        .post("/v1/accounts", Needs::Change(Scope::AccountsWrite), create_account)
        .get("/v1/accounts/{name}", Needs::Read(Scope::UsersRead), describe_account)
        .delete("/v1/accounts/{name}", Needs::Change(Scope::AccountsWrite), remove_account)
        .post("/v1/login", Needs::Read(Scope::Login), login)
        .post("/v1/users/{user}/kick", Needs::Change(Scope::Kick), kick)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountRequest {
    name: String,
}

#[derive(Serialize)]
pub(super) struct Account {
    pub(super) name: String,
    #[serde(serialize_with = "digits")]
    pub(super) user: u64,
}

async fn create_account(
    State(service): State<Arc<Service>>,
    Body(AccountRequest { name }): Body<AccountRequest>,
) -> Result<(StatusCode, Extension<AuditNote>, Json<Account>), Problem> {
    match service.plane().create_account(&name).await {
        Ok(user) => {
            let note = Extension(AuditNote(format!("account {name:?} is user {user}")));
            Ok((StatusCode::CREATED, note, Json(Account { name, user })))
        }
        Err(AccountError::Plane(error)) => Err(Problem::unavailable(format!(
            "{error}. The account may have been made all the same: ask for /v1/accounts/{{name}} before trying again"
        ))),
        Err(error) => Err(error.into()),
    }
}

async fn describe_account(
    State(service): State<Arc<Service>>,
    NameInPath(name): NameInPath,
) -> Result<Json<Account>, Problem> {
    match service.plane().account(&name).await? {
        Some(user) => Ok(Json(Account { name, user })),
        None => Err(Problem::not_found("nobody has this name; POST /v1/accounts makes an account")),
    }
}

/// The sessions of the user go on: to end them is a request of its own, with a scope of its own.
async fn remove_account(
    State(service): State<Arc<Service>>,
    NameInPath(name): NameInPath,
) -> Result<(Extension<AuditNote>, Json<Account>), Problem> {
    match service.plane().remove_account(&name).await {
        Ok(Some(user)) => {
            let note = Extension(AuditNote(format!("account {name:?} was user {user}")));
            Ok((note, Json(Account { name, user })))
        }
        Ok(None) => Err(Problem::not_found("nobody has this name, so there is nothing to remove")),
        Err(AccountError::Plane(error)) => Err(Problem::unavailable(format!(
            "{error}. The account may be gone all the same: ask for it, or remove it again, which does no harm"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The most nodes that a login may name as failed. Who could reach none of so many has a network that is down.
const FAILED_MAX: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginRequest {
    pub(super) user: UserId,
    #[serde(default, deserialize_with = "present")]
    pub(super) strategy: Option<Strategy>,
    /// Where the client is.
    #[serde(default, deserialize_with = "present")]
    pub(super) zone: Option<String>,
    /// Names of nodes that it was sent to and could not reach.
    #[serde(default)]
    pub(super) failed: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Login {
    #[serde(serialize_with = "digits")]
    pub(super) user: u64,
    /// The node to connect to.
    pub(super) node: String,
    /// The address to dial.
    pub(super) address: String,
    /// Where that node stands; may be empty.
    pub(super) zone: String,
    /// For how long the address may be used for new connections, in seconds: what a node may be gone without anybody
    /// noticing.
    pub(super) ttl_secs: u64,
    pub(super) strategy: Strategy,
    pub(super) epoch: u64,
    pub(super) degraded: bool,
}

async fn login(State(service): State<Arc<Service>>, Body(request): Body<LoginRequest>) -> Result<Json<Login>, Problem> {
    if request.failed.len() > FAILED_MAX {
        let detail = format!("`failed` names {} nodes; name the last {FAILED_MAX} at most", request.failed.len());
        return Err(Problem::bad_request(detail));
    }
    if request.zone.as_deref().is_some_and(|zone| !is_zone(zone)) {
        return Err(Problem::bad_request(format!(
            "a zone has at most {ZONE_CHARS_MAX} characters, none of them a control character"
        )));
    }
    service.login(&request).map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KickQuery {
    device: Option<String>,
}

/// The sessions end at the nodes that hold them; see [`forward`](super::forward).
async fn kick(
    State(service): State<Arc<Service>>,
    UserInPath(user): UserInPath,
    Parameters(KickQuery { device }): Parameters<KickQuery>,
) -> Response {
    service.kick(user, device.as_deref()).await
}
