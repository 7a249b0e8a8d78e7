//! Connections on their way between the shards of a node: those that this shard sends off, and those that others have
//! announced to it.
//!
//! A hand-over has two halves that come by different ways: the particulars of a connection by mailbox, its descriptor
//! by the ring. Whichever comes first waits here, at the shard that sends as well as at the one that takes.
//!
//! | table | bound | for how long |
//! |---|---|---|
//! | departing | connections of this shard, one each | until its operations have ended and the mailbox has room |
//! | arriving | connections that the other shards hand over | until the descriptor has come, or word that it will not |

use crate::io::HandoverToken;
use crate::mailbox::{Adoptee, Arrival};
use hashbrown::HashMap;

/// Both halves of one shard.
#[derive(Debug, Default)]
pub(super) struct Handovers {
    /// Connections that logged in here and belong elsewhere, by slot, until they are sent off.
    departing: HashMap<u32, Box<Adoptee>>,
    /// Connections announced by other shards whose descriptor has not come.
    arriving: HashMap<HandoverToken, Arrival>,
}

impl Handovers {
    /// The connection in a slot is to be sent off. Also where the mailbox was full, and it has to wait on.
    pub(super) fn depart(&mut self, slot: u32, adoptee: Box<Adoptee>) {
        let before = self.departing.insert(slot, adoptee);
        debug_assert!(before.is_none(), "a connection departs once: slot {slot}");
    }

    /// The particulars of the connection in a slot: it is sent off now, or ends here.
    pub(super) fn take_departing(&mut self, slot: u32) -> Option<Box<Adoptee>> {
        self.departing.remove(&slot)
    }

    /// Another shard has announced a connection.
    pub(super) fn announce(&mut self, token: HandoverToken, arrival: Arrival) {
        self.arriving.insert(token, arrival);
    }

    /// Whether the particulars that belong to this descriptor are there.
    pub(super) fn is_announced(&self, token: HandoverToken) -> bool {
        self.arriving.contains_key(&token)
    }

    /// The particulars that belong to a descriptor: it has come, or will not.
    pub(super) fn take_arrival(&mut self, token: HandoverToken) -> Option<Arrival> {
        self.arriving.remove(&token)
    }

    /// Connections that were announced and have not come.
    pub(super) fn arriving(&self) -> usize {
        self.arriving.len()
    }

    /// Connections that have not been sent off.
    #[cfg(test)]
    pub(super) fn departing(&self) -> usize {
        self.departing.len()
    }
}
