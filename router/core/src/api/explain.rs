//! Why a user belongs where it belongs, and the way of a message to it.

use super::{Device, Known, Picture, devices, digits, home};
use crate::entry::PresenceEntry;
use crate::hash::user_hash;
use crate::membership::View;
use serde::Serialize;

/// `GET /v1/explain/{user}`.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The user.
    #[serde(serialize_with = "digits")]
    pub user: u64,
    /// The epoch of the view.
    pub epoch: u64,
    /// Redis does not answer, and the view is what was known before.
    pub degraded: bool,
    /// The home node; `null` while no node is active.
    pub home: Option<String>,
    /// The home shard on the home node; `null` likewise.
    pub shard: Option<u32>,
    /// How node and shard follow from the user; `null` likewise.
    pub why: Option<Why>,
    /// Where the user is now; `null` if the presence store could not be asked.
    pub presence: Option<Where>,
    /// The node that the message comes from, as asked for.
    pub from: Option<String>,
    /// The way of a message to this user, hop by hop; empty without a home.
    pub path: Vec<Hop>,
    /// All of it in words.
    pub sentences: Vec<String>,
}

/// How the home follows from the user.
#[derive(Debug, Clone, Serialize)]
pub struct Why {
    /// The key: the user in decimal digits.
    pub key: String,
    /// The CRC-32 (IEEE) of the key.
    pub crc32: u32,
    /// The point that owns it: the first that is not below the CRC-32.
    pub point: u32,
    /// Whether no point is at or above the CRC-32, so that the first point of all owns it.
    pub wraps: bool,
    /// The node whose point it is.
    pub node: String,
    /// Points on the ring.
    pub points: usize,
    /// Nodes on the ring.
    pub nodes: usize,
    /// The 64-bit hash of the user that chooses the shard.
    #[serde(serialize_with = "digits")]
    pub hash: u64,
    /// Shards of the node, among which jump consistent hash chooses.
    pub shards: u32,
    /// The shard chosen.
    pub shard: u32,
}

/// Where a user is.
#[derive(Debug, Clone, Serialize)]
pub struct Where {
    /// Whether any device is online; `false` also when that is not known.
    pub online: bool,
    /// Whether any device is online, offline and unknown told apart.
    pub presence: Known,
    /// The sessions that count.
    pub devices: Vec<Device>,
}

/// One hop of a message.
#[derive(Debug, Clone, Serialize)]
pub struct Hop {
    /// What happens here.
    pub kind: HopKind,
    /// Where.
    pub node: String,
    /// On which shard; `null` at the origin, where it is the sender's.
    pub shard: Option<u32>,
    /// How the message gets here; `null` at the origin, and at the home if no origin was asked for.
    pub via: Option<Via>,
    /// The sessions that are served here; empty but for a delivery.
    pub deliveries: Vec<Delivery>,
}

/// What happens at a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HopKind {
    /// The sender is connected here.
    Origin,
    /// The home shard gives the message its place in the order and decides who gets it.
    Home,
    /// Sessions of the user are connected here.
    Delivery,
}

/// How a message gets to a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// It is there already: the same shard of the same node.
    Here,
    /// A mailbox between two shards of one node, unless both are one.
    Mailbox,
    /// A link between two nodes.
    Mesh,
}

/// A session at the end of the way.
#[derive(Debug, Clone, Serialize)]
pub struct Delivery {
    /// The device.
    pub device: String,
    /// Its session.
    #[serde(serialize_with = "digits")]
    pub session: u64,
}

/// Explains `user`. `entries` is what the presence store holds of it; `None` if it could not be asked. `from` is the
/// node at which a sender is connected.
///
/// # Errors
/// If `from` is not in the view. The text says which nodes are.
pub fn explain(
    picture: &Picture,
    user: u64,
    entries: Option<Vec<PresenceEntry>>,
    from: Option<&str>,
) -> Result<Explanation, String> {
    let view = &picture.view;
    if let Some(from) = from
        && view.member(from).is_none()
    {
        let names: Vec<&str> = view.members.iter().map(|member| member.name.as_str()).collect();
        let known =
            if names.is_empty() { "there are none now".to_owned() } else { format!("use {}", names.join(", ")) };
        return Err(format!("from={from}: no such node is in the view; {known}"));
    }
    let why = why(view, user);
    let presence = entries.map(|entries| {
        let devices = devices(view, entries);
        Where { online: !devices.is_empty(), presence: Known::of(picture, &devices), devices }
    });
    let path = path(why.as_ref(), presence.as_ref(), from);
    let mut explanation = Explanation {
        user,
        epoch: view.epoch,
        degraded: picture.degraded,
        home: why.as_ref().map(|why| why.node.clone()),
        shard: why.as_ref().map(|why| why.shard),
        why,
        presence,
        from: from.map(ToOwned::to_owned),
        path,
        sentences: Vec::new(),
    };
    explanation.sentences = sentences(&explanation);
    Ok(explanation)
}

fn why(view: &View, user: u64) -> Option<Why> {
    let ring = view.ring.as_ref()?;
    let placement = ring.placement(user);
    let (home, shard) = home(view, user)?;
    Some(Why {
        key: user.to_string(),
        crc32: placement.hash,
        point: placement.point,
        wraps: placement.wraps,
        node: placement.node.name().to_owned(),
        points: ring.points().len(),
        nodes: ring.nodes().len(),
        hash: user_hash(user),
        shards: home.shards,
        shard,
    })
}

fn path(why: Option<&Why>, presence: Option<&Where>, from: Option<&str>) -> Vec<Hop> {
    let Some(why) = why else {
        return Vec::new();
    };
    let hop = |kind, node: &str, shard, via| Hop { kind, node: node.to_owned(), shard, via, deliveries: Vec::new() };
    let mut path = Vec::new();
    if let Some(from) = from {
        path.push(hop(HopKind::Origin, from, None, None));
    }
    let to_home = from.map(|from| if from == why.node { Via::Mailbox } else { Via::Mesh });
    path.push(hop(HopKind::Home, &why.node, Some(why.shard), to_home));
    let deliveries_begin = path.len();
    for device in presence.map_or(&[][..], |presence| &presence.devices) {
        let delivery = Delivery { device: device.device.clone(), session: device.session };
        let is_there = |hop: &&mut Hop| hop.node == device.node && hop.shard == Some(device.shard);
        if let Some(hop) = path[deliveries_begin..].iter_mut().find(is_there) {
            hop.deliveries.push(delivery);
            continue;
        }
        let via = match (device.node == why.node, device.shard == why.shard) {
            (true, true) => Via::Here,
            (true, false) => Via::Mailbox,
            (false, _) => Via::Mesh,
        };
        let hop = hop(HopKind::Delivery, &device.node, Some(device.shard), Some(via));
        path.push(Hop { deliveries: vec![delivery], ..hop });
    }
    path
}

fn sentences(explanation: &Explanation) -> Vec<String> {
    let user = explanation.user;
    let Some(why) = &explanation.why else {
        return vec![format!("No node is active in epoch {}, so user {user} has no home now.", explanation.epoch)];
    };
    let mut sentences = Vec::new();
    if explanation.degraded {
        sentences.push("Redis does not answer: this is what was known when it last did.".to_owned());
    }
    let rule = if why.wraps {
        "no point of the ring is at or above it, so it belongs to the first point of all,"
    } else {
        "the first point of the ring that is not below it is"
    };
    sentences.push(format!(
        "The CRC-32 of the key \"{}\" is {}; {rule} {}, one of node {} ({} points, {}, epoch {}).",
        why.key,
        why.crc32,
        why.point,
        why.node,
        why.points,
        counted(why.nodes, "node"),
        explanation.epoch
    ));
    sentences.push(format!(
        "Jump consistent hash of {} over the {} of node {} gives shard {}, the home shard of user {user}.",
        why.hash,
        counted(why.shards as usize, "shard"),
        why.node,
        why.shard
    ));
    sentences.push(match &explanation.presence {
        None => format!("Where user {user} is cannot be said now, because the presence store does not answer."),
        Some(Where { presence: Known::Unknown, .. }) => format!(
            "Whether user {user} is online is not known: no session of it is found, and not all sessions can be found \
             now."
        ),
        Some(presence) if !presence.online => format!("User {user} is offline."),
        Some(presence) => {
            let places: Vec<String> = presence
                .devices
                .iter()
                .map(|device| {
                    format!("with device \"{}\" at node {}, shard {}", device.device, device.node, device.shard)
                })
                .collect();
            format!("User {user} is online {}.", places.join(", "))
        }
    });
    sentences.extend(explanation.path.iter().map(|hop| sentence_of_hop(hop, user)));
    if explanation.presence.as_ref().is_some_and(|presence| presence.presence == Known::Offline) {
        sentences.push(
            "There it ends: the home shard tells the sender that nobody got it, or keeps it for later.".to_owned(),
        );
    }
    sentences
}

fn sentence_of_hop(hop: &Hop, user: u64) -> String {
    let at = match hop.shard {
        Some(shard) => format!("node {}, shard {shard}", hop.node),
        None => format!("node {}", hop.node),
    };
    match (hop.kind, hop.via) {
        (HopKind::Origin, _) => format!("A message to user {user} enters at {at}, from whoever is connected there."),
        (HopKind::Home, None) => format!("A message to user {user} goes to {at}, wherever it enters."),
        (HopKind::Home, Some(Via::Mesh)) => format!("It goes over the mesh to the home: {at}."),
        (HopKind::Home, Some(_)) => format!("It goes to the home shard of the same node: {at}."),
        (HopKind::Delivery, via) => {
            let how = match via {
                Some(Via::Mesh) => "From the home it goes over the mesh to",
                Some(Via::Mailbox) => "From the home it goes through a mailbox to",
                _ => "It is delivered where it is,",
            };
            let devices: Vec<String> = hop
                .deliveries
                .iter()
                .map(|delivery| format!("\"{}\" (session {})", delivery.device, delivery.session))
                .collect();
            format!("{how} {at}, for device {}.", devices.join(", "))
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
