//! Whether each of several users is online.

use super::{Known, Picture, UserId, devices, digits};
use crate::entry::PresenceEntry;
use serde::{Deserialize, Serialize};

/// Users that one question may name. Their ids fit the body of a request, however long they are.
pub const PRESENCE_USERS_MAX: usize = 500;

/// What `POST /v1/presence` asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresenceRequest {
    /// 1 to [`PRESENCE_USERS_MAX`] users.
    pub users: Vec<UserId>,
}

/// What it answers.
#[derive(Debug, Clone, Serialize)]
pub struct Presences {
    /// The epoch of the view.
    pub epoch: u64,
    /// Redis does not answer, and this is what was known before.
    pub degraded: bool,
    /// The users, in the order in which they were asked for.
    pub users: Vec<UserPresence>,
}

/// One user of [`Presences`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserPresence {
    /// The user.
    #[serde(serialize_with = "digits")]
    pub user: u64,
    /// Whether any device is online, offline and unknown told apart.
    pub presence: Known,
    /// The classes of the devices that are online, each once and in order. Devices that tell none add nothing.
    pub device_classes: Vec<String>,
}

/// Whether users are online: of the entries of each, those count whose node lives with the incarnation that wrote them.
/// Of who has `None` instead nothing could be found out.
#[must_use]
pub fn presences(picture: &Picture, users: Vec<(u64, Option<Vec<PresenceEntry>>)>) -> Presences {
    let answer = |(user, entries): (u64, Option<Vec<PresenceEntry>>)| {
        let Some(entries) = entries else {
            return UserPresence { user, presence: Known::Unknown, device_classes: Vec::new() };
        };
        let devices = devices(&picture.view, entries);
        let presence = Known::of(picture, &devices);
        let classes = devices.into_iter().map(|device| device.class);
        let mut device_classes: Vec<String> = classes.filter(|class| !class.is_empty()).collect();
        device_classes.sort_unstable();
        device_classes.dedup();
        UserPresence { user, presence, device_classes }
    };
    let users = users.into_iter().map(answer).collect();
    Presences { epoch: picture.view.epoch, degraded: picture.degraded, users }
}
