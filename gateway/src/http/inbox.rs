//! The inboxes of users, as an operator sees them: how much waits, who has got how far, and the end of both.

use super::Node;
use super::api::ask_store;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Serialize;
use std::sync::Arc;
use trunkline_router::http::{AuditNote, Problem, UserInPath};
use trunkline_store::{DeviceInfo, Inbox, Reply, Request};

#[derive(Serialize)]
pub(super) struct InboxDescription {
    user: String,
    messages: u64,
    bytes: u64,
    /// Positions are larger than what a number in JSON holds.
    floor: String,
    last: String,
    devices: Vec<DeviceDescription>,
}

#[derive(Serialize)]
struct DeviceDescription {
    device: String,
    cursor: String,
    /// Seconds since the Unix epoch, exact to an hour.
    seen: u64,
}

#[derive(Serialize)]
pub(super) struct Emptied {
    messages: u64,
    devices: u32,
}

#[derive(Serialize)]
pub(super) struct Forgotten {
    device: String,
}

/// What the store answers when it does not do what it was asked.
fn refused(reply: Reply) -> Problem {
    match reply {
        Reply::Refused(refusal) => Problem::unavailable(format!("the store refuses it: {}", refusal.label())),
        _ => Problem::unavailable("the store answered something else; try again in a moment"),
    }
}

async fn inspect(node: &Node, user: u64) -> Result<Inbox, Problem> {
    match ask_store(node, user, None, |user, _, token| Request::Inspect { user, claims: false, token }).await? {
        Reply::Inspected(inbox) => Ok(inbox),
        reply => Err(refused(reply)),
    }
}

async fn devices(node: &Node, user: u64) -> Result<Vec<DeviceInfo>, Problem> {
    match ask_store(node, user, None, |user, _, token| Request::Devices { user, token }).await? {
        Reply::Devices(devices) => Ok(devices),
        reply => Err(refused(reply)),
    }
}

pub(super) async fn show(
    State(node): State<Arc<Node>>,
    UserInPath(user): UserInPath,
) -> Result<Json<InboxDescription>, Problem> {
    let Inbox { messages, bytes, floor, last, .. } = inspect(&node, user).await?;
    let devices = devices(&node, user).await?.into_iter().map(|info| DeviceDescription {
        device: info.name.into(),
        cursor: info.cursor.to_string(),
        seen: info.seen_ms / 1_000,
    });
    let (floor, last) = (floor.to_string(), last.to_string());
    Ok(Json(InboxDescription { user: user.to_string(), messages, bytes, floor, last, devices: devices.collect() }))
}

/// Deletes what waits, and forgets the devices: they begin anew with their next LOGIN.
pub(super) async fn empty(
    State(node): State<Arc<Node>>,
    UserInPath(user): UserInPath,
) -> Result<(Extension<AuditNote>, Json<Emptied>), Problem> {
    let Inbox { messages, devices, .. } = inspect(&node, user).await?;
    match ask_store(&node, user, Some((0, 0)), |user, _, token| Request::Delete { user, token }).await? {
        Reply::Done => {
            let note = AuditNote(format!("{messages} messages and {devices} devices"));
            Ok((Extension(note), Json(Emptied { messages, devices })))
        }
        reply => Err(refused(reply)),
    }
}

pub(super) async fn forget(
    State(node): State<Arc<Node>>,
    Path((user, device)): Path<(String, String)>,
) -> Result<(Extension<AuditNote>, Json<Forgotten>), Problem> {
    let user = user.parse().ok().filter(|user| *user != 0);
    let user = user.ok_or_else(|| Problem::bad_request("a user is a number from 1 to 18446744073709551615"))?;
    let known = devices(&node, user).await?;
    let is_it = |info: &&DeviceInfo| *info.name == *device;
    let Some(which) = known.iter().find(is_it).map(|info| (info.device, info.device_epoch)) else {
        return Err(Problem::not_found(format!("user {user} has no registered device {device:?}")));
    };
    let forget = |user, (device, device_epoch), token| Request::Forget { user, device, device_epoch, token };
    match ask_store(&node, user, Some(which), forget).await? {
        Reply::Devices(_) => {
            let note = AuditNote(format!("device {device:?}"));
            Ok((Extension(note), Json(Forgotten { device })))
        }
        reply => Err(refused(reply)),
    }
}

/// What a node without a store says.
pub(super) fn no_store() -> Problem {
    Problem::new(StatusCode::CONFLICT, "this node keeps no messages: give --data-dir DIR")
}
