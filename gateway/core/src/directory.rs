//! What a shard knows about users whose home and sessions are on different nodes. No I/O and no clock: times are ticks
//! of the shard.
//!
//! A user's *home shard*, found by the ring of the present view, decides about the user's sessions wherever they are. A
//! session on another node than its user's home is a *guest* there; the home has a *remote session* for it. One view
//! and seven tables, each bounded:
//!
//! | file | at | question it answers |
//! |---|---|---|
//! | `routing` | every shard | whose home is this user, and what changed with the view? |
//! | `remote` | the home shard | where is the session behind this entry of presence? |
//! | `registrations` | the guest's shard | which logins wait for their home's answer? |
//! | `sent_away` | the sender's shard | which messages with ACK are another node's to answer? |
//! | `parked` | a new home shard | which messages wait until the user's sessions are known here? |
//! | `settling` | a new home shard | has every node told of all its sessions for this view? |
//! | `former` | a new home shard | was another node the home of this user a moment ago? |
//! | `redelivery` | the home shard | when are messages for users with remote sessions only sent again? |

mod departed;
mod former;
mod known_homes;
mod parked;
mod redelivery;
mod registrations;
mod remote;
mod routing;
mod sent_away;
mod settling;
mod view_change;

pub(crate) use departed::Departed;
use former::FormerViews;
use known_homes::KnownHomes;
pub(crate) use parked::Parked;
pub(crate) use redelivery::Redelivery;
pub(crate) use registrations::{Registration, Registrations};
pub use remote::{RemoteSession, RemoteSessions, is_remote};
#[cfg(test)]
pub(crate) use routing::tests as test_views;
pub(crate) use routing::{Home, Member, Routing};
pub(crate) use sent_away::{Away, SentAway};
pub(crate) use settling::Settling;

use crate::ids::{NodeKey, Origin};
use hashbrown::HashSet;
use std::sync::Arc;

/// How long a message with ACK may be another node's, in ticks of 100 ms behind the time in which its home gives it up:
/// so long it may have waited for a home to be known, at the former one and at the new one.
pub(crate) const AWAY_SLACK_TICKS: u32 = 150;

/// ACKs kept that came before their message. One that finds no place costs a redelivery.
const EARLY_ACKS_MAX: usize = 16_384;

/// Of the bytes that may wait for a home this part, as a divisor, is for messages to live rooms and groups.
const PARKED_ROOMS_SHARE: usize = 4;

/// A message that waits until its recipient's home is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) origin: Origin,
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) acked: bool,
    /// Nodes it has crossed, and the last of them.
    pub(crate) hops: u8,
    pub(crate) via: NodeKey,
    pub(crate) deadline_tick: u32,
    pub(crate) payload: Box<[u8]>,
    /// NO_STORE and RETRY.
    pub(crate) extra: u8,
    /// It waited for its recipient's ACK at a former home.
    pub(crate) transfer: Option<Transferred>,
}

/// What of a message that waited for an ACK a former home tells besides the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transferred {
    /// Its place in the recipient's inbox.
    pub(crate) stamp: u64,
    pub(crate) attempts: u8,
}

/// What a shard does, piece by piece, after a change of the view; see `core/moves.rs`.
#[derive(Debug)]
pub(crate) struct ViewWalk {
    /// The view before; `None` when every session has to be told of again.
    pub(crate) before: Option<Arc<Routing>>,
    pub(crate) step: WalkStep,
}

/// The steps of a walk, in their order.
#[derive(Debug)]
pub(crate) enum WalkStep {
    /// Sessions of this shard are registered with their new homes, from this slot on.
    Sessions { slot: u32 },
    /// What waits for the ACK of these users goes to their new homes.
    Inboxes { users: Vec<u64> },
    /// Remote sessions of users whose home is elsewhere now, and of nodes that are gone, are forgotten, from this place
    /// on.
    Remotes { from: usize },
    /// These nodes are told that this was all.
    Settled { nodes: Vec<NodeKey> },
    /// When all others have said so too: what they had told of for earlier views is forgotten, from this place on.
    Sweep { from: usize },
}

impl WalkStep {
    /// How far it is: equal before and after a turn in which nothing could be done.
    pub(crate) fn mark(&self) -> (u8, usize) {
        match self {
            WalkStep::Sessions { slot } => (0, *slot as usize),
            WalkStep::Inboxes { users } => (1, users.len()),
            WalkStep::Remotes { from } => (2, *from),
            WalkStep::Settled { nodes } => (3, nodes.len()),
            WalkStep::Sweep { from } => (4, *from),
        }
    }
}

/// All of it. When a node is alone the tables are empty and take no memory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// `None` when the node is alone, or has just started.
    pub(crate) routing: Option<Arc<Routing>>,
    /// What it said of whom it was asked for last.
    known: KnownHomes,
    /// While new homes are settling: the last view that has settled, and those between it and the present one; empty
    /// when nobody's sessions are known to be here.
    before: Vec<Arc<Routing>>,
    /// The views that have ended lately, where nodes share a store.
    former: FormerViews,
    walk: Option<ViewWalk>,
    pub(crate) settling: Settling,
    /// When the present view came, microseconds of the shard's clock, until all have been told of this shard's
    /// sessions.
    telling_since_us: Option<u64>,
    /// The same until all have told of theirs.
    settling_since_us: Option<u64>,
    /// The change of the view has not been ended, see [`Directory::settle`].
    unsettled: bool,
    pub(crate) remotes: RemoteSessions,
    /// Users with remote sessions and none here.
    remote_only_users: usize,
    pub(crate) registrations: Registrations,
    pub(crate) sent_away: SentAway,
    pub(crate) parked: Parked<Held>,
    /// The same of messages to live rooms and groups.
    pub(crate) parked_rooms: Parked<Held>,
    /// Users for whom a former home has sent messages and whose sessions nobody has told of.
    orphans: HashSet<u64>,
    pub(crate) redelivery: Redelivery,
    /// Lives of nodes that are over; what comes from them, or waits here for them, is refused.
    pub(crate) departed: Departed,
    /// ACKs that came here before the message did, from its former home: user and stamp.
    early_acks: HashSet<(u64, u64)>,
}

impl Directory {
    /// `away_ticks`: how long another node may take to answer for a message with ACK.
    pub(crate) fn new(limits: &crate::limits::Limits, away_ticks: u32) -> Self {
        Directory {
            routing: None,
            known: KnownHomes::new(),
            before: Vec::new(),
            former: FormerViews::default(),
            walk: None,
            settling: Settling::new(),
            telling_since_us: None,
            settling_since_us: None,
            unsettled: false,
            remotes: RemoteSessions::new(limits.remote_sessions_max as usize),
            remote_only_users: 0,
            registrations: Registrations::default(),
            sent_away: SentAway::new(limits.sent_away_max, away_ticks),
            parked: Parked::new(limits.parked_bytes_max - limits.parked_bytes_max / PARKED_ROOMS_SHARE),
            parked_rooms: Parked::new(limits.parked_bytes_max / PARKED_ROOMS_SHARE),
            orphans: HashSet::new(),
            redelivery: Redelivery::default(),
            departed: Departed::default(),
            early_acks: HashSet::new(),
        }
    }

    /// Bytes of messages that wait for a home to be known.
    pub(crate) fn parked_bytes(&self) -> usize {
        self.parked.bytes() + self.parked_rooms.bytes()
    }

    /// Nothing is left of sessions, logins and messages that are gone.
    #[cfg(test)]
    pub(crate) fn assert_empty(&self, node: &str, shard: u16) {
        let mut remotes = Vec::new();
        self.remotes.find(0, usize::MAX, |_| true, &mut remotes);
        let remotes: Vec<_> = remotes.iter().map(|slot| self.remotes.get(*slot)).collect();
        assert!(remotes.is_empty(), "{node} shard {shard}: sessions on other nodes: {remotes:?}");
        assert_eq!(self.registrations.len(), 0, "shard {shard}: logins that wait for their home");
        assert_eq!(self.sent_away.len(), 0, "shard {shard}: messages other nodes are to answer");
        assert_eq!(self.parked_bytes(), 0, "shard {shard}: messages that wait for a home");
        assert_eq!(self.redelivery.len(), 0, "shard {shard}: users to send to again");
        assert!(self.orphans.is_empty(), "shard {shard}: users nobody has told of");
        assert!(self.walk.is_none() && self.settling.is_settled(), "shard {shard}: not settled");
    }
}
