//! The cluster at a glance, for programs and for people.

use super::{NodeAnswer, Picture, nodes};
use crate::membership::NodeState;
use serde::Serialize;
use std::fmt::Write;

/// `GET /v1/cluster`.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// The epoch of the view.
    pub epoch: u64,
    /// The digest of the view, 16 hexadecimal digits: equal wherever the same is seen.
    pub digest: String,
    /// Redis does not answer, and this is what was known before.
    pub degraded: bool,
    /// How long ago Redis was last asked with success, in milliseconds.
    pub age_ms: u64,
    /// Nodes that users may have their home at.
    pub active: usize,
    /// The sum over all nodes. Who is online at two nodes counts twice.
    pub users: u64,
    /// The sum over all nodes.
    pub connections: u64,
    /// What somebody should look into, in words; empty when all is well.
    pub troubles: Vec<String>,
    /// The nodes, in the order of their names.
    pub nodes: Vec<NodeAnswer>,
    /// The links of the asked process to each other node; absent from what has none, such as a router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<PeerLinks>>,
}

/// The links of a node to another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PeerLinks {
    /// The other node.
    pub node: String,
    /// How many links there are.
    pub links: u32,
    /// How many of them are up.
    pub up: u32,
    /// Bytes held for the other node until it confirms them.
    pub held_bytes: u64,
    /// The longest smoothed round trip of a link, microseconds; 0 until one was measured.
    pub round_trip_us: u64,
    /// For how long no link has been up, milliseconds; absent while one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable_ms: Option<u64>,
}

/// All of the view, with what is wrong in it. `reachable` and `links` say what the asked process knows of its links.
#[must_use]
pub fn overview(
    picture: &Picture,
    reachable: impl Fn(&str) -> Option<bool>,
    links: Option<Vec<PeerLinks>>,
) -> Overview {
    let view = &picture.view;
    let nodes = nodes(picture, reachable).nodes;
    // Anybody may have written the records, so the sums may be anything.
    let sum = |number: fn(&NodeAnswer) -> u64| nodes.iter().map(number).fold(0, u64::saturating_add);
    let digest = format!("{:016x}", view.digest);
    let mut troubles = Vec::new();
    if picture.degraded {
        troubles.push(format!("Redis does not answer; this is what was known {} ago", seconds(picture.age_ms)));
    }
    if view.ring.is_none() {
        troubles.push("no node is active, so nobody has a home".to_owned());
    }
    for name in &view.left_out {
        troubles.push(format!(
            "node {name} is active and has no place in the ring: its name, its weight or its version does not go with \
             the others"
        ));
    }
    for node in &nodes {
        if node.mending {
            troubles
                .push(format!("node {} is writing all its sessions again; who seems offline may be there", node.name));
        }
        if node.reachable == Some(false) {
            troubles.push(format!("there is no link to node {}", node.name));
        }
        if node.in_ring && !node.view.is_empty() && node.view != digest {
            troubles.push(format!(
                "node {} works with another view (digest {}); views differ for a moment whenever nodes come or go",
                node.name, node.view
            ));
        }
        if let NodeState::Other(word) = node.state {
            troubles.push(format!("node {} is {}, which this version does not know", node.name, word.as_str()));
        }
    }
    Overview {
        epoch: view.epoch,
        digest,
        degraded: picture.degraded,
        age_ms: picture.age_ms,
        active: nodes.iter().filter(|node| node.in_ring).count(),
        users: sum(|node| node.users),
        connections: sum(|node| node.connections),
        troubles,
        nodes,
        links,
    }
}

impl Overview {
    /// As a page of text for a terminal.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = format!(
            "epoch {}, digest {}, {} old: {} of {} nodes active, {} users, {} connections\n",
            self.epoch,
            self.digest,
            seconds(self.age_ms),
            self.active,
            self.nodes.len(),
            self.users,
            self.connections
        );
        for trouble in &self.troubles {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "! {trouble}");
        }
        let rows = self.nodes.iter().map(row);
        page.push('\n');
        page.push_str(&table(std::iter::once(HEAD.map(str::to_owned)).chain(rows).collect(), NUMBERS));
        if let Some(links) = &self.links {
            let rows = links.iter().map(link_row);
            page.push('\n');
            page.push_str(&table(std::iter::once(LINK_HEAD.map(str::to_owned)).chain(rows).collect(), LINK_NUMBERS));
        }
        page
    }
}

const COLUMNS: usize = 11;
const HEAD: [&str; COLUMNS] =
    ["NODE", "STATE", "ZONE", "WEIGHT", "SHARE", "USERS", "CONNS", "SHARDS", "PROTOCOL", "ADDRESS", "MESH"];
/// Columns of numbers are set to the right.
const NUMBERS: [bool; COLUMNS] = [false, false, false, true, true, true, true, true, false, false, false];

fn row(node: &NodeAnswer) -> [String; COLUMNS] {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let state = if node.mending { format!("{}+mending", node.state) } else { node.state.to_string() };
    let protocol = match node.protocol_oldest {
        0 => node.protocol.to_string(),
        oldest if oldest == node.protocol => oldest.to_string(),
        oldest => format!("{oldest}-{}", node.protocol),
    };
    [
        node.name.clone(),
        state,
        or_dash(&node.zone),
        node.weight.to_string(),
        format!("{:.1}%", node.share * 100.0),
        node.users.to_string(),
        node.connections.to_string(),
        node.shards.to_string(),
        protocol,
        or_dash(&node.advertise),
        or_dash(&node.mesh),
    ]
}

const LINK_COLUMNS: usize = 5;
const LINK_HEAD: [&str; LINK_COLUMNS] = ["LINKS TO", "UP", "ROUND TRIP", "HELD", "UNREACHABLE"];
const LINK_NUMBERS: [bool; LINK_COLUMNS] = [false, true, true, true, true];

fn link_row(peer: &PeerLinks) -> [String; LINK_COLUMNS] {
    let millis = |us: u64| format!("{}.{} ms", us / 1_000, us % 1_000 / 100);
    [
        peer.node.clone(),
        format!("{}/{}", peer.up, peer.links),
        if peer.round_trip_us == 0 { "-".to_owned() } else { millis(peer.round_trip_us) },
        format!("{} B", peer.held_bytes),
        peer.unreachable_ms.map_or_else(|| "-".to_owned(), seconds),
    ]
}

/// The cells in columns, each as wide as its widest cell.
fn table<const COLUMNS: usize>(rows: Vec<[String; COLUMNS]>, numbers: [bool; COLUMNS]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, width), is_number) in row.iter().zip(widths).zip(numbers) {
            let _ = if is_number { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}
