//! What the control threads of two nodes tell each other over the mesh: JSON, in a record of its own.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use trunkline_router_core::entry::{PresenceEntry, PresenceWrite, WriteOutcome};
use trunkline_router_core::membership::NodeRecord;
use trunkline_router_core::membership::Renewal;

/// The longest memo taken, bytes of JSON: the view of 200 nodes with every field at its longest.
pub(crate) const MEMO_BYTES_MAX: usize = 1 << 20;

/// Changes of presence in one memo.
pub const WRITES_MAX: usize = 512;

/// A word of one control thread to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memo {
    /// Renew the lease of the sender, which cannot do so itself, or vouch for it.
    Ask {
        /// Comes back with the answer.
        number: u64,
        /// What to write into the lease.
        record: Box<NodeRecord>,
        /// Write it also if Redis has lost it.
        restore: bool,
        /// The digest of the view that the sender was told of.
        digest: u64,
    },
    /// Redis was asked to renew the lease.
    Renewed {
        /// As asked.
        number: u64,
        /// What Redis said.
        renewal: Outcome,
        /// The answering node keeps the one that asked in its view for a lease time.
        keeps: bool,
        /// The digest of the view that it was told of.
        digest: u64,
        /// The view that the answering node has from Redis.
        seen: Option<Seen>,
    },
    /// Redis could not be asked; the answering node keeps the one that asked in its view for a lease time.
    Vouched {
        /// As asked.
        number: u64,
        /// The answering node has no Redis itself.
        without: bool,
        /// The digest of the view that it was told of.
        digest: u64,
        /// That view, or that it is the one of the node that asked.
        seen: Option<Seen>,
    },
    /// Write these changes of presence of the sender's sessions to Redis.
    Write {
        /// Comes back with the answer.
        number: u64,
        /// What to write, [`WRITES_MAX`] at most.
        writes: Vec<Change>,
    },
    /// The sender drains, and Redis knows it: the view is to be asked for at once, and not with the next beat. A node
    /// that does not know this word asks then.
    Look,
    /// What became of them, in their order.
    Wrote {
        /// As asked.
        number: u64,
        /// One for each.
        ends: Vec<End>,
    },
}

/// A change of presence. Whose node it is says who sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    user: u64,
    device: Box<str>,
    incarnation: u64,
    session: u64,
    version: u64,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Login { shard: u32, since_ms: u64, class: Box<str> },
    Logout { fence: bool },
}

impl Change {
    pub fn of(write: &PresenceWrite) -> Self {
        match write {
            PresenceWrite::Login { user, entry } => Change {
                user: *user,
                device: entry.device.clone(),
                incarnation: entry.incarnation,
                session: entry.session,
                version: entry.version,
                kind: Kind::Login { shard: entry.shard, since_ms: entry.since_ms, class: entry.class.clone() },
            },
            PresenceWrite::Logout { user, device, incarnation, session, version, fence, .. } => Change {
                user: *user,
                device: device.clone(),
                incarnation: *incarnation,
                session: *session,
                version: *version,
                kind: Kind::Logout { fence: *fence },
            },
        }
    }

    /// The change as one of the sessions of `node`.
    pub fn of_node(self, node: &Arc<str>) -> PresenceWrite {
        let Change { user, device, incarnation, session, version, kind } = self;
        let node = Arc::clone(node);
        match kind {
            Kind::Login { shard, since_ms, class } => {
                let entry = PresenceEntry { device, node, incarnation, shard, session, since_ms, class, version };
                PresenceWrite::Login { user, entry }
            }
            Kind::Logout { fence } => {
                PresenceWrite::Logout { user, device, node, incarnation, session, version, fence }
            }
        }
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// See [`WriteOutcome`].
    Written,
    /// See [`WriteOutcome`].
    Stale(u64),
    /// See [`WriteOutcome`].
    Absent,
    /// Redis did not answer well; it may have been written.
    Failed,
}

impl End {
    pub fn outcome(self) -> Option<WriteOutcome> {
        match self {
            End::Written => Some(WriteOutcome::Written),
            End::Stale(version) => Some(WriteOutcome::Stale { version }),
            End::Absent => Some(WriteOutcome::Absent),
            End::Failed => None,
        }
    }
}

impl From<Option<WriteOutcome>> for End {
    fn from(outcome: Option<WriteOutcome>) -> Self {
        match outcome {
            Some(WriteOutcome::Written) => End::Written,
            Some(WriteOutcome::Stale { version }) => End::Stale(version),
            Some(WriteOutcome::Absent) => End::Absent,
            None => End::Failed,
        }
    }
}

/// A view that came from Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How long ago Redis was asked for it, milliseconds.
    pub(crate) age_ms: u64,
    /// Its digest.
    pub(crate) digest: u64,
    /// Its members; `None` if it is the one that the sender has.
    pub(crate) members: Option<Vec<NodeRecord>>,
}

/// [`Renewal`] on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// See there.
    Renewed,
    /// See there.
    LostToNobody,
    /// See there.
    LostToAnother,
}

impl From<Renewal> for Outcome {
    fn from(renewal: Renewal) -> Self {
        match renewal {
            Renewal::Renewed => Outcome::Renewed,
            Renewal::LostToNobody => Outcome::LostToNobody,
            Renewal::LostToAnother => Outcome::LostToAnother,
        }
    }
}

impl From<Outcome> for Renewal {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Renewed => Renewal::Renewed,
            Outcome::LostToNobody => Renewal::LostToNobody,
            Outcome::LostToAnother => Renewal::LostToAnother,
        }
    }
}

impl Memo {
    /// As bytes; `None` if it would be longer than any node takes.
    pub fn encode(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok().filter(|bytes| bytes.len() <= MEMO_BYTES_MAX)
    }

    /// Reads what a peer has sent; `None` for what this version does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Memo> {
        if bytes.len() > MEMO_BYTES_MAX {
            return None;
        }
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_presence_are_written_as_the_senders() {
        let entry = PresenceEntry {
            device: "desk".into(),
            node: "a".into(),
            incarnation: u64::MAX,
            shard: 3,
            session: 1 << 60,
            since_ms: 5,
            class: "phone".into(),
            version: u64::MAX - 1,
        };
        let node: Arc<str> = "b".into();
        for write in [PresenceWrite::logout_of(9, &entry), PresenceWrite::Login { user: 9, entry }] {
            let memo = Memo::Write { number: 1, writes: vec![Change::of(&write)] };
            let Some(Memo::Write { writes, .. }) = Memo::decode(&memo.encode().unwrap()) else { panic!("lost") };
            let as_b = writes.into_iter().next().unwrap().of_node(&node);
            let expected = match write {
                PresenceWrite::Login { user, entry } => {
                    PresenceWrite::Login { user, entry: PresenceEntry { node: node.clone(), ..entry } }
                }
                PresenceWrite::Logout { user, device, incarnation, session, version, fence, .. } => {
                    let node = node.clone();
                    PresenceWrite::Logout { user, device, node, incarnation, session, version, fence }
                }
            };
            assert_eq!(as_b, expected);
        }
        for outcome in [
            Some(WriteOutcome::Written),
            Some(WriteOutcome::Stale { version: u64::MAX }),
            Some(WriteOutcome::Absent),
            None,
        ] {
            assert_eq!(End::from(outcome).outcome(), outcome);
        }
    }

    #[test]
    fn a_memo_survives_its_bytes_and_what_is_none_is_dropped() {
        let seen = Some(Seen { age_ms: 7, digest: u64::MAX, members: Some(Vec::new()) });
        for memo in [
            Memo::Renewed {
                number: u64::MAX,
                renewal: Outcome::LostToNobody,
                keeps: true,
                digest: 9,
                seen: seen.clone(),
            },
            Memo::Vouched { number: 1, without: true, digest: 9, seen: None },
            Memo::Look,
        ] {
            assert_eq!(Memo::decode(&memo.encode().unwrap()), Some(memo));
        }
        for bytes in [&b""[..], b"{}", b"\xff", br#"{"Later":{"number":1}}"#] {
            assert_eq!(Memo::decode(bytes), None);
        }
        assert_eq!(Memo::decode(&vec![b' '; MEMO_BYTES_MAX + 1]), None);
    }
}
