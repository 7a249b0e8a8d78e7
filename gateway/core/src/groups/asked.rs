//! What the store was asked about a group, and for whom.

use crate::ids::{NodeKey, Origin};
use crate::io::ConnId;
use futures_channel::oneshot;
use trunkline_store::{Payload, Reply};

/// What the store was asked about a group, and for whom.
#[derive(Debug)]
pub(crate) enum GroupAsked {
    /// A message is stored, or may be sent without.
    Send(Box<Sending>),
    /// What the home of a group decides, or a question to it.
    Home { group: u64, effect: Effect, asker: Asker },
    /// This is the home of the group from now on. `number`: the claim's, see
    /// [`Home::claim_number`](super::home::Home::claim_number).
    Claim { group: u64, number: u64 },
    /// The groups of a user who has logged in.
    Of { conn: ConnId, user: u64, last_stamp: Option<u64> },
    /// A page that a client asked for: of what lies behind `after`, up to which it has everything, and behind `since`.
    Sync { conn: ConnId, aux: u16, group: u64, after: u64, since: u64 },
}

/// A message to a group that waits for the store.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) group: u64,
    /// `None` for one that came over HTTP.
    pub(crate) origin: Option<Origin>,
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) stamp: u64,
    pub(crate) acked: bool,
    pub(crate) payload: Payload,
    /// Its sender was told that the store is late.
    pub(crate) told: bool,
    /// Who asked for it, if no session of this node or another.
    pub(crate) answer: Option<Asker>,
}

/// What follows from an answer of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    Joined(u64),
    Left(u64),
    Ended,
}

/// Who asked the home of a group.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A session of this node, to join or to leave, and its user.
    Session { origin: Origin, id: u64, user: u64 },
    /// The control thread.
    Control(oneshot::Sender<Reply>),
    /// A shard of another node, under a number of its own.
    Node { node: NodeKey, shard: u16, ask: u64 },
}
