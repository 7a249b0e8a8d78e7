//! What a node says about itself.

use super::fnv::Fnv;
use super::node_state::NodeState;
use crate::ring::{NAME_BYTES_MAX, Node, RingError};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;

/// The largest record, in bytes of JSON. Ours take about 1 KiB at their worst; the rest is room for fields of newer
/// nodes.
pub const RECORD_BYTES_MAX: usize = 4_096;

/// The most shards a node may have: what fits the 16 bits in which a session names its shard.
pub const SHARDS_MAX: u32 = 65_535;

/// The longest name of a zone, in characters.
pub const ZONE_CHARS_MAX: usize = 64;

/// The longest mark of a secret.
const MARK_BYTES_MAX: usize = 64;

/// The most findings a record may hold: as many nodes hardly join at a time, and the record stays well below its bound.
pub const REACH_MAX: usize = 16;

/// The most active members a record may name as not heard; see [`NodeRecord::silent`].
pub const SILENT_MAX: usize = 256;

/// What a record may grow by between [`NodeRecord::trim`] and its being written: a number gets a digit, a flag is set.
const TRIM_SLACK: usize = 128;

/// Characters of one mark, of 6 bits each.
const SIGN_CHARS: usize = 8;

/// Which characters stand for 0 … 63.
const SIGNS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

/// What a node found when it dialed the mesh address of one that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The node that joins.
    pub name: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Whether that very node answered there.
    pub ok: bool,
}

/// One node, as its lease in Redis describes it. Fields that are not known here are skipped: a newer node may have
/// more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name: unique, valid for [`Node::new`], and without braces, which would move its keys to other hash
    /// slots.
    pub name: String,
    /// Grows with every start of this node and every new lease; entries of presence count for one incarnation only.
    pub incarnation: u64,
    /// Where the node is in its life.
    pub state: NodeState,
    /// Its weight in the ring, as in [`Node::new`].
    pub weight: u32,
    /// Its shards, 1 … [`SHARDS_MAX`].
    pub shards: u32,
    /// Where its mesh listens: `host:port`.
    pub mesh: String,
    /// The address that clients dial.
    pub advertise: String,
    /// Where its HTTP API is: `host:port`. Empty for a node of an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub http: String,
    /// The newest version of the mesh protocol it speaks.
    pub protocol: u32,
    /// The oldest one; see [`NodeRecord::protocols`]. 0 for a node of an earlier version, which does not tell.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub protocol_oldest: u32,
    /// Connections it holds now.
    pub connections: u64,
    /// Users online whose session lives here.
    pub users: u64,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The incarnation in which the node last began to serve: at its start, or after it was fenced. Later ones that
    /// only mend what the store of presence holds are the same life, and links and directories go on. 0 stands for the
    /// present incarnation.
    #[serde(default)]
    pub life: u64,
    /// Grows with each renewal of the lease, so that others know since when it is as old as it is. 0 for a version that
    /// does not count them.
    #[serde(default)]
    pub renewals: u64,
    /// What tells the secret of its cluster from others, and is not the secret: nodes with different ones cannot link
    /// up. May be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub secret_mark: String,
    /// What it found when it dialed nodes that join, [`REACH_MAX`] at most; `None` for a version that does not dial
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Vec<Reach>>,
    /// Where it stands, such as a rack or a data centre; see [`dispatch`](crate::dispatch). May be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Its HTTP API speaks TLS.
    #[serde(default, skip_serializing_if = "is_false")]
    pub https: bool,
    /// It is writing all its sessions to the presence store again, so what the store holds of them is not all.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mending: bool,
    /// Most mesh links it keeps to another node, however many shards the two have; 0 for a version that keeps one for
    /// each shard. Of two nodes that tell, the smaller number counts for both.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mesh_links: u32,
    /// How often the node has changed its state in this life: a node that is in a state again has not been in it all
    /// the time.
    #[serde(default)]
    pub turns: u64,
    /// The digest of the view its shards were told of last, so that others see whether it sees what they do; 0 for a
    /// node that does not tell.
    #[serde(default, skip_serializing_if = "is_none")]
    pub view: u64,
    /// The active members that it does not hear over the mesh, as [`NodeRecord::set_silent`] writes them. Nodes of
    /// versions that do not know this read those that are among [`NodeRecord::reach`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub silent: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_none(digest: &u64) -> bool {
    *digest == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl NodeRecord {
    /// Reads a record that somebody else has written.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`] for more than [`RECORD_BYTES_MAX`] bytes, [`RecordError::Syntax`] for what is no
    /// record, and those of [`NodeRecord::check`].
    pub fn parse(json: &[u8]) -> Result<Self, RecordError> {
        if json.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge { bytes: json.len() });
        }
        let record: Self = serde_json::from_slice(json).map_err(|error| RecordError::Syntax(error.to_string()))?;
        record.check()?;
        Ok(record)
    }

    /// The life the node is in: what other nodes know it by.
    #[must_use]
    pub const fn life(&self) -> u64 {
        if self.life == 0 { self.incarnation } else { self.life }
    }

    /// The versions of the mesh protocol it speaks, from the oldest to the newest; `None` if it does not tell, and then
    /// only the handshake of a link does.
    #[must_use]
    pub const fn protocols(&self) -> Option<RangeInclusive<u32>> {
        if self.protocol_oldest == 0 { None } else { Some(self.protocol_oldest..=self.protocol) }
    }

    /// Says which active members this node does not hear, [`SILENT_MAX`] at most: the first ones. As many as there is
    /// room for are said as findings of [`NodeRecord::reach`] too.
    pub fn set_silent(&mut self, silent: &[Reach]) {
        let silent = &silent[..silent.len().min(SILENT_MAX)];
        let reach = self.reach.get_or_insert_default();
        reach.truncate(REACH_MAX);
        reach.extend(silent.iter().take(REACH_MAX - reach.len()).cloned());
        self.silent = silent.iter().map(|reach| sign(mark(&reach.name, reach.incarnation))).collect();
    }

    /// The marks of the active members that it does not hear, as [`mark`] makes them. What is no mark is skipped.
    pub(super) fn silent_marks(&self) -> impl Iterator<Item = u64> {
        self.silent.as_bytes().chunks_exact(SIGN_CHARS).take(SILENT_MAX).filter_map(|chars| {
            let digit = |mark: u64, char: &u8| {
                let digit = SIGNS.iter().position(|sign| sign == char)?;
                Some(mark << 6 | digit as u64)
            };
            chars.iter().try_fold(0, digit)
        })
    }

    /// Takes off what it says of other nodes until it is short enough to be written: what is said twice, then whom it
    /// does not hear, then what it found of those that join, each time the last ones first. A lease with less in it is
    /// better than none.
    pub fn trim(&mut self) {
        // How long it is now is asked for again, since names are of any length.
        while let Ok(json) = serde_json::to_string(self) {
            let over = json.len().saturating_sub(RECORD_BYTES_MAX - TRIM_SLACK);
            if over == 0 {
                return;
            }
            let last = self.reach.iter().flatten().next_back();
            let twice = last.is_some_and(|last| {
                let last_mark = mark(&last.name, last.incarnation);
                !last.ok && self.silent_marks().any(|mark| mark == last_mark)
            });
            if twice || self.silent.is_empty() {
                if self.reach.as_mut().is_none_or(|reach| reach.pop().is_none()) {
                    return;
                }
            } else {
                let marks = over.div_ceil(SIGN_CHARS) * SIGN_CHARS;
                self.silent.truncate(self.silent.len().saturating_sub(marks));
            }
        }
    }

    /// Whether there may be a version of the mesh protocol that both speak.
    #[must_use]
    pub fn speaks_with(&self, other: &NodeRecord) -> bool {
        match (self.protocols(), other.protocols()) {
            (Some(one), Some(two)) => one.start() <= two.end() && two.start() <= one.end(),
            _ => true,
        }
    }

    /// The record as JSON, for [`NodeRecord::parse`].
    ///
    /// # Errors
    /// Those of [`NodeRecord::check`], so that what is written can be read.
    pub fn to_json(&self) -> Result<String, RecordError> {
        self.check()?;
        let json = serde_json::to_string(self).map_err(|error| RecordError::Syntax(error.to_string()))?;
        if json.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge { bytes: json.len() });
        }
        Ok(json)
    }

    /// Whether all fields are in their ranges.
    ///
    /// # Errors
    /// The first field that is not.
    pub fn check(&self) -> Result<(), RecordError> {
        check_name(&self.name)?;
        Node::new(&self.name, self.weight).map_err(RecordError::Node)?;
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return Err(RecordError::BadShards { shards: self.shards });
        }
        if !has_port(&self.mesh) {
            return Err(RecordError::BadMesh { mesh: self.mesh.clone() });
        }
        if self.protocol_oldest > self.protocol {
            return Err(RecordError::BadProtocols { oldest: self.protocol_oldest, newest: self.protocol });
        }
        if !is_zone(&self.zone) {
            return Err(RecordError::BadZone { zone: self.zone.clone() });
        }
        for reach in self.reach.iter().flatten() {
            check_name(&reach.name)?;
        }
        if self.secret_mark.len() > MARK_BYTES_MAX || !self.secret_mark.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(RecordError::BadMark);
        }
        if !self.http.is_empty() && !has_port(&self.http) {
            return Err(RecordError::BadHttp { http: self.http.clone() });
        }
        if !is_address(&self.advertise) {
            return Err(RecordError::BadAdvertise { advertise: self.advertise.clone() });
        }
        Ok(())
    }
}

/// What stands for a node in this incarnation in 48 bits. Of a thousand nodes, two have the same mark once in a hundred
/// million clusters.
///
/// All nodes have to compute the same number, so a change here is a change of the protocol between nodes.
pub(super) fn mark(name: &str, incarnation: u64) -> u64 {
    let mut hash = Fnv::new();
    hash.text(name);
    hash.bytes(&incarnation.to_le_bytes());
    (hash.0 ^ hash.0 >> 48) & ((1 << 48) - 1)
}

/// A mark as text.
fn sign(mark: u64) -> String {
    (0..SIGN_CHARS).rev().map(|at| char::from(SIGNS[(mark >> (6 * at) & 63) as usize])).collect()
}

/// Whether `name` can be a node's name in the cluster: a name for the ring, without braces.
///
/// # Errors
/// [`RecordError::Braces`] or [`RecordError::Node`].
pub fn check_name(name: &str) -> Result<(), RecordError> {
    if name.contains(['{', '}']) {
        return Err(RecordError::Braces { name: name.into() });
    }
    Node::new(name, 1).map_err(RecordError::Node)?;
    Ok(())
}

fn has_port(address: &str) -> bool {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    matches!(port, Some(Ok(1..))) && is_address(address)
}

fn is_address(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// Whether `zone` can be the zone of a node: at most [`ZONE_CHARS_MAX`] characters, none of them a control character,
/// possibly none.
#[must_use]
pub fn is_zone(zone: &str) -> bool {
    zone.chars().count() <= ZONE_CHARS_MAX && !zone.chars().any(char::is_control)
}

/// Why a record is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// More than [`RECORD_BYTES_MAX`] bytes.
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// Not JSON, or a field is missing or of another type.
    Syntax(String),
    /// A name or a weight that the ring refuses.
    Node(RingError),
    /// A name with a brace in it.
    Braces {
        /// The name as given.
        name: String,
    },
    /// A number of shards that is not within 1 … [`SHARDS_MAX`].
    BadShards {
        /// The number as given.
        shards: u32,
    },
    /// A mesh address that is not `host:port`.
    BadMesh {
        /// The address as given.
        mesh: String,
    },
    /// An HTTP address that is not `host:port`.
    BadHttp {
        /// The address as given.
        http: String,
    },
    /// A mark of the secret that is not a few hexadecimal digits.
    BadMark,
    /// Versions of the mesh protocol that are no range.
    BadProtocols {
        /// The oldest as given.
        oldest: u32,
        /// The newest as given.
        newest: u32,
    },
    /// A zone that is longer than [`ZONE_CHARS_MAX`] or has control characters.
    BadZone {
        /// The zone as given.
        zone: String,
    },
    /// An address for clients that is empty, too long, or has white space or control characters.
    BadAdvertise {
        /// The address as given.
        advertise: String,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::TooLarge { bytes } => {
                write!(f, "a node record of {bytes} bytes; at most {RECORD_BYTES_MAX} are read")
            }
            RecordError::Syntax(detail) => write!(f, "not a node record: {detail}"),
            RecordError::Node(error) => write!(f, "{error}"),
            RecordError::Braces { name } => {
                write!(f, "node name {name:?} has a brace in it, which Redis Cluster would read; choose another name")
            }
            RecordError::BadShards { shards } => write!(f, "{shards} shards is not within 1 to {SHARDS_MAX}"),
            RecordError::BadMesh { mesh } => write!(f, "mesh address {mesh:?} is not host:port"),
            RecordError::BadHttp { http } => write!(f, "HTTP address {http:?} is not host:port"),
            RecordError::BadMark => {
                write!(f, "the mark of the cluster's secret is not up to {MARK_BYTES_MAX} hexadecimal digits")
            }
            RecordError::BadProtocols { oldest, newest } => {
                write!(f, "versions {oldest} to {newest} of the mesh protocol are no range")
            }
            RecordError::BadZone { zone } => {
                write!(f, "zone {zone:?} is not up to {ZONE_CHARS_MAX} characters, none of them a control character")
            }
            RecordError::BadAdvertise { advertise } => write!(
                f,
                "advertised address {advertise:?} is not usable: 1 to {NAME_BYTES_MAX} bytes without white space are"
            ),
        }
    }
}

impl Error for RecordError {}
