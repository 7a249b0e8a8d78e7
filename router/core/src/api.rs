//! The answers of the HTTP API, computed from a view.
//!
//! Pure: a [`View`] and what the presence store said go in, a structure that serialises to the JSON of the answer comes
//! out. So the `router` binary and every gateway give the same answers; the module `http` of the router puts them on
//! the wire, and `GET /v1/openapi.json` describes them field by field.
//!
//! **Numbers.** Users, sessions, incarnations and hashes have 64 bits and stand in JSON as strings of decimal digits:
//! many JSON libraries (that of JavaScript among them) read numbers as doubles, which lose the last digits beyond 2^53.
//! In a request a user may be either. What is counted or measured is a number. The digest of a view is a string of 16
//! hexadecimal digits.

mod explain;
mod overview;
mod presence;
mod preview;

pub use explain::{Delivery, Explanation, Hop, HopKind, Via, Where, Why, explain};
pub use overview::{Overview, PeerLinks, overview};
pub use presence::{PRESENCE_USERS_MAX, PresenceRequest, Presences, UserPresence, presences};
pub use preview::{
    Preview, PreviewError, PreviewNode, PreviewRequest, SAMPLE_DEFAULT, SAMPLE_MAX, WeightedName, preview,
};

use crate::entry::PresenceEntry;
use crate::hash::home_shard;
use crate::membership::{NodeRecord, NodeState, View};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// The text of the error for what is no user.
pub const NO_USER: &str = "a user is a number from 1 to 18446744073709551615";

/// What is known of the cluster at the time of a request.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The view that counts.
    pub view: Arc<View>,
    /// How long ago Redis was last asked with success, in milliseconds.
    pub age_ms: u64,
    /// Redis does not answer, so the view may be out of date.
    pub degraded: bool,
}

/// A user id, 1 … 2^64 - 1. In JSON a number, or a string of decimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserId(pub u64);

impl UserId {
    /// Reads decimal digits; no sign, no white space, no zero before them: each user is written in one way.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        // Not even a sign: parse would take "+5".
        if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().map(UserId)
    }
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UserVisitor;

        impl Visitor<'_> for UserVisitor {
            type Value = UserId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NO_USER)
            }
            fn visit_u64<E: de::Error>(self, user: u64) -> Result<UserId, E> {
                if user == 0 { Err(E::custom(NO_USER)) } else { Ok(UserId(user)) }
            }
            fn visit_f64<E: de::Error>(self, user: f64) -> Result<UserId, E> {
                whole(user).filter(|user| *user != 0).map(UserId).ok_or_else(|| E::custom(NO_USER))
            }
            fn visit_str<E: de::Error>(self, digits: &str) -> Result<UserId, E> {
                UserId::parse(digits).ok_or_else(|| E::custom(NO_USER))
            }
        }

        deserializer.deserialize_any(UserVisitor)
    }
}

/// Writes a number of 64 bits as a string of decimal digits; for `#[serde(serialize_with)]`.
///
/// # Errors
/// Those of the serialiser.
pub fn digits<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The whole number that 5.0 is, as JSON Schema has it; `None` for what is none, and beyond 2^53, where a double may
/// have lost digits.
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
}

/// A whole number in a request, 5.0 among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole(pub(crate) u32);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;

        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {}", u32::MAX)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
                u32::try_from(number).map(Whole).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
                let fits = whole(number).and_then(|number| u32::try_from(number).ok());
                fits.map(Whole).ok_or_else(|| E::invalid_value(de::Unexpected::Float(number), &self))
            }
        }

        deserializer.deserialize_any(WholeVisitor)
    }
}

/// Reads a field that may be missing but not `null`, which the document does not allow; with `#[serde(default)]`.
///
/// # Errors
/// What the type of the field says of its value.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How sure it is that a node's lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Redis held it at the last poll.
    Live,
    /// Redis does not answer; it was live when it last did, or the mesh says so.
    Assumed,
}

/// `GET /v1/nodes`.
#[derive(Debug, Clone, Serialize)]
pub struct Nodes {
    /// The epoch of the view.
    pub epoch: u64,
    /// The digest of the view, 16 hexadecimal digits.
    pub digest: String,
    /// Redis does not answer, and this is what was known before.
    pub degraded: bool,
    /// How long ago Redis was last asked with success, in milliseconds.
    pub age_ms: u64,
    /// Points on the ring; 0 without a ring.
    pub points: usize,
    /// The nodes, in the order of their names.
    pub nodes: Vec<NodeAnswer>,
}

/// One node of [`Nodes`].
#[derive(Debug, Clone, Serialize)]
pub struct NodeAnswer {
    /// Its name.
    pub name: String,
    /// Grows with every start of it and every new lease.
    #[serde(serialize_with = "digits")]
    pub incarnation: u64,
    /// Where it is in its life.
    pub state: NodeState,
    /// Its weight in the ring.
    pub weight: u32,
    /// Its shards.
    pub shards: u32,
    /// Where other nodes reach it.
    pub mesh: String,
    /// The address that clients dial.
    pub advertise: String,
    /// Where its HTTP API is; empty for a node of an earlier version.
    pub http: String,
    /// The newest version of the mesh protocol it speaks.
    pub protocol: u32,
    /// The oldest one; 0 if it does not tell.
    pub protocol_oldest: u32,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Its HTTP API speaks TLS.
    pub https: bool,
    /// It is writing all its sessions to the presence store again.
    pub mending: bool,
    /// The digest of the view it works with, as that of the answer; empty if it does not tell.
    pub view: String,
    /// Connections it holds.
    pub connections: u64,
    /// Users online whose session lives there.
    pub users: u64,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The incarnation in which it last began to serve.
    #[serde(serialize_with = "digits")]
    pub life: u64,
    /// Whether its lease lives.
    pub lease: LeaseState,
    /// Whether the asked process has a link to it, as a node has to itself; `null` from one that has no links, such as
    /// a router.
    pub reachable: Option<bool>,
    /// Whether users may have their home there: it is active, and the ring can hold it.
    pub in_ring: bool,
    /// The share of the ring that it owns, 0.0 … 1.0.
    pub share: f64,
}

/// The view, node by node. `reachable` says what the asked process knows of its links.
#[must_use]
pub fn nodes(picture: &Picture, reachable: impl Fn(&str) -> Option<bool>) -> Nodes {
    let view = &picture.view;
    let shares = view.ring.as_ref().map(|ring| ring.shares()).unwrap_or_default();
    let share = |name: &str| view.ring.as_ref()?.index_of(name).and_then(|index| shares.get(index).copied());
    let answer = |record: &NodeRecord| NodeAnswer {
        name: record.name.clone(),
        incarnation: record.incarnation,
        state: record.state,
        weight: record.weight,
        shards: record.shards,
        mesh: record.mesh.clone(),
        advertise: record.advertise.clone(),
        http: record.http.clone(),
        protocol: record.protocol,
        protocol_oldest: record.protocol_oldest,
        zone: record.zone.clone(),
        https: record.https,
        mending: record.mending,
        view: if record.view == 0 { String::new() } else { format!("{:016x}", record.view) },
        connections: record.connections,
        users: record.users,
        started_ms: record.started_ms,
        life: record.life(),
        lease: if picture.degraded { LeaseState::Assumed } else { LeaseState::Live },
        reachable: reachable(&record.name),
        in_ring: share(&record.name).is_some(),
        share: share(&record.name).unwrap_or(0.0),
    };
    Nodes {
        epoch: view.epoch,
        digest: format!("{:016x}", view.digest),
        degraded: picture.degraded,
        age_ms: picture.age_ms,
        points: view.ring.as_ref().map_or(0, |ring| ring.points().len()),
        nodes: view.members.iter().map(answer).collect(),
    }
}

/// `GET /v1/online`.
#[derive(Debug, Clone, Serialize)]
pub struct Online {
    /// The epoch of the view.
    pub epoch: u64,
    /// Redis does not answer, and this is what was known before.
    pub degraded: bool,
    /// The sum over all nodes. Who is online at two nodes counts twice.
    pub users: u64,
    /// The sum over all nodes.
    pub connections: u64,
    /// By node, in the order of their names.
    pub nodes: Vec<OnlineNode>,
}

/// One node of [`Online`].
#[derive(Debug, Clone, Serialize)]
pub struct OnlineNode {
    /// The node.
    pub node: String,
    /// Where it is in its life.
    pub state: NodeState,
    /// Users online there.
    pub users: u64,
    /// Connections it holds.
    pub connections: u64,
}

/// Who is online, as the nodes said when they last renewed their leases.
#[must_use]
pub fn online(picture: &Picture) -> Online {
    let members = &picture.view.members;
    // Anybody may have written the records, so the sums may be anything.
    let sum = |number: fn(&NodeRecord) -> u64| members.iter().map(number).fold(0, u64::saturating_add);
    let answer = |record: &NodeRecord| OnlineNode {
        node: record.name.clone(),
        state: record.state,
        users: record.users,
        connections: record.connections,
    };
    Online {
        epoch: picture.view.epoch,
        degraded: picture.degraded,
        users: sum(|record| record.users),
        connections: sum(|record| record.connections),
        nodes: members.iter().map(answer).collect(),
    }
}

/// Whether a user is online, as far as that can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Known {
    /// A session counts.
    Online,
    /// No session counts, and nothing says that one may be missing.
    Offline,
    /// No session counts, but one may be missing: Redis does not answer, no node is known, or a node is writing its
    /// sessions again.
    Unknown,
}

impl Known {
    fn of(picture: &Picture, devices: &[Device]) -> Self {
        let members = &picture.view.members;
        if !devices.is_empty() {
            Known::Online
        } else if picture.degraded || members.is_empty() || members.iter().any(|member| member.mending) {
            Known::Unknown
        } else {
            Known::Offline
        }
    }
}

/// `GET /v1/users/{user}`.
#[derive(Debug, Clone, Serialize)]
pub struct User {
    /// The user.
    #[serde(serialize_with = "digits")]
    pub user: u64,
    /// Whether any device is online; `false` also when that is not known.
    pub online: bool,
    /// Whether any device is online, offline and unknown told apart.
    pub presence: Known,
    /// The home node; `null` while no node is active.
    pub home: Option<String>,
    /// The home shard on the home node; `null` likewise.
    pub shard: Option<u32>,
    /// The sessions that count, in the order of their devices' names.
    pub devices: Vec<Device>,
}

/// One session of a user.
#[derive(Debug, Clone, Serialize)]
pub struct Device {
    /// Device name.
    pub device: String,
    /// Device class as the client gave it, possibly empty.
    pub class: String,
    /// The node that holds the session.
    pub node: String,
    /// The shard of that node.
    pub shard: u32,
    /// Session id on that node.
    #[serde(serialize_with = "digits")]
    pub session: u64,
    /// Login time, seconds since the Unix epoch.
    pub since: u64,
}

/// Where a user is: of `entries`, those whose node lives with the incarnation that wrote them.
#[must_use]
pub fn user(picture: &Picture, user: u64, entries: Vec<PresenceEntry>) -> User {
    let devices = devices(&picture.view, entries);
    let home = home(&picture.view, user);
    User {
        user,
        online: !devices.is_empty(),
        presence: Known::of(picture, &devices),
        home: home.map(|(record, _)| record.name.clone()),
        shard: home.map(|(_, shard)| shard),
        devices,
    }
}

fn devices(view: &View, entries: Vec<PresenceEntry>) -> Vec<Device> {
    let mut entries = crate::entry::live(entries, view);
    entries.sort_unstable_by(|a, b| a.device.cmp(&b.device));
    let device = |entry: PresenceEntry| Device {
        device: entry.device.into(),
        class: entry.class.into(),
        node: entry.node.as_ref().to_owned(),
        shard: entry.shard,
        session: entry.session,
        since: entry.since_ms / 1_000,
    };
    entries.into_iter().map(device).collect()
}

/// The home node of a user, and the shard there; `None` while no node is active.
#[must_use]
pub fn home(view: &View, user: u64) -> Option<(&NodeRecord, u32)> {
    let record = view.member(view.ring.as_ref()?.owner(user).name())?;
    Some((record, home_shard(user, record.shards)))
}

#[cfg(test)]
mod tests;
