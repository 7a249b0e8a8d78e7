//! Who may have a place for a handshake, and who gives way when places are short.
//!
//! Whoever reaches the mesh port can connect, and needs no secret to say nothing. A connection is a *stranger* until
//! its peer has proved that it knows the secret. Places for strangers are few, so
//!
//! - a connection that does not go on to the next step of its handshake is ended soon
//!   ([`STEP_MS_MAX`](crate::mesh::handshake::STEP_MS_MAX));
//! - strangers of one address have a quarter of the places; a further one takes the place of the oldest of that
//!   address. An address where a member's mesh listens may have all of them;
//! - when all places are taken the newcomer gets that of a stranger that has got least far, the oldest of those: first
//!   of one whose address is no member's. A newcomer from elsewhere never takes the place of one from a member's
//!   address.
//!
//! A node that dials says its Hello at once and is no stranger a round trip later, so it comes through unless as many
//! strangers as there are places come within that time.

use super::{Mesh, Stage, Wire};
use crate::mesh::handshake::{HandshakeError, Progress};
use std::net::IpAddr;

/// Connections whose peer has not proved that it knows the secret.
pub const STRANGERS_MAX: usize = 64;
/// Those of one address where no member's mesh listens.
pub const STRANGERS_PER_ADDRESS_MAX: usize = STRANGERS_MAX / 4;

/// How often strangers had to give way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenWay {
    /// Because all places were taken; a newcomer that was turned away for it is counted too.
    pub(crate) to_all: u64,
    /// Because their address had as many as one may have.
    pub(crate) to_address: u64,
}

/// A connection that may have to give way. The least gives way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stranger {
    from_member: bool,
    progress: Progress,
    came: u64,
    slot: u32,
}

impl Mesh {
    /// Makes room for a connection from this address. False if there is none: it is to be closed.
    pub(super) fn make_place(&mut self, from: Option<IpAddr>) -> bool {
        let from_member = from.is_some_and(|from| self.is_of_member(from));
        if from.is_some() && !from_member {
            let of_address = |stranger: &Stranger| self.wires.get(&stranger.slot).is_some_and(|wire| wire.from == from);
            let of_address: Vec<Stranger> = self.strangers().filter(of_address).collect();
            if of_address.len() >= STRANGERS_PER_ADDRESS_MAX {
                self.given_way.to_address += 1;
                let oldest = of_address.iter().min_by_key(|stranger| stranger.came);
                oldest.into_iter().for_each(|stranger| self.gives_way(stranger.slot));
                return true;
            }
        }
        if self.strangers().count() < STRANGERS_MAX {
            return true;
        }
        let least = self.strangers().min().filter(|stranger| from_member || !stranger.from_member);
        self.given_way.to_all += 1;
        least.into_iter().for_each(|stranger| self.gives_way(stranger.slot));
        least.is_some()
    }

    fn strangers(&self) -> impl Iterator<Item = Stranger> {
        self.wires.iter().filter_map(|(slot, wire)| self.stranger(*slot, wire))
    }

    fn stranger(&self, slot: u32, wire: &Wire) -> Option<Stranger> {
        let Stage::Accepting(acceptor) = &wire.stage else { return None };
        let progress = acceptor.progress();
        let from_member = wire.from.is_some_and(|from| self.is_of_member(from));
        (progress < Progress::Proved).then_some(Stranger { from_member, progress, came: wire.came, slot })
    }

    /// Whether the mesh of a node of the view listens at this address.
    fn is_of_member(&self, from: IpAddr) -> bool {
        self.peers.iter().any(|peer| peer.host == Some(from))
    }

    fn gives_way(&mut self, slot: u32) {
        self.refused(slot, &HandshakeError::GaveWay);
        self.closing.push(slot);
    }
}
