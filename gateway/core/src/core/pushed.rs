//! Pushes that come again, at the home of whom they are for: a retry through another node finds here what became of
//! the first try, with a store or without.

use super::route::Routed;
use super::shard::Shard;
use crate::desk::Known;
use crate::pushed::PushName;
use trunkline_proto::{SERVICE_USERS, flags};
use trunkline_router_core::hash::user_hash;

/// The name of a push that may come again; `None` for any other message.
fn name_of(message: &Routed<'_>) -> Option<PushName> {
    let Routed { from, to, id, acked, extra, .. } = *message;
    (from >= SERVICE_USERS && extra & flags::RETRY != 0).then_some(PushName { id, to, from, acked })
}

impl Shard {
    /// Whether a push to a user was taken before. Then its fate is told, or will be, to who has sent it now.
    #[inline]
    pub(super) fn was_pushed(&mut self, message: &Routed<'_>) -> bool {
        match name_of(message) {
            Some(name) => self.is_pushed_again(message, &name),
            None => false,
        }
    }

    #[cold]
    fn is_pushed_again(&mut self, message: &Routed<'_>, name: &PushName) -> bool {
        let Some((stamp, known)) = self.pushed.find(name) else { return false };
        if message.acked {
            return self.comes_again(message, stamp, known);
        }
        self.links.stats.out_duplicate.add(1);
        true
    }

    /// A push to a user was taken.
    #[inline]
    pub(super) fn note_pushed(&mut self, message: &Routed<'_>, stamp: u64, known: Known) {
        if let Some(name) = name_of(message) {
            self.note_push(name, stamp, known);
        }
    }

    #[cold]
    fn note_push(&mut self, name: PushName, stamp: u64, known: Known) {
        self.links.stats.limit_pushes_remembered.add(u64::from(self.pushed.turn_over(self.links.tick)));
        self.pushed.note(name, stamp, known);
    }

    /// A message with ACK has come to its end: if it is a push that may come again, that is remembered.
    #[inline]
    pub(super) fn settle_pushed(&mut self, (from, id, to): (u64, u64, u64), stamp: u64, known: Known) {
        if from >= SERVICE_USERS {
            self.pushed.settle(PushName { id, to, from, acked: true }, stamp, known);
        }
    }

    /// A push that waited for an ACK at a former home comes to wait here, and may come again.
    pub(super) fn note_transferred_push(&mut self, (from, id, to): (u64, u64, u64), stamp: u64) {
        if from >= SERVICE_USERS {
            self.note_push(PushName { id, to, from, acked: true }, stamp, Known::Open);
        }
    }

    /// Whether a message of a service to a live room whose home this is was passed on before; if not, it is now.
    pub(super) fn was_pushed_to_room(&mut self, room: u64, from: u64, id: u64, of_message: u8) -> bool {
        if from < SERVICE_USERS || of_message & flags::RETRY == 0 {
            return false;
        }
        let name = PushName { id, to: room, from, acked: of_message & flags::ACK != 0 };
        let was = self.pushed.find(&name).is_some();
        if !was {
            self.note_push(name, 0, Known::Delivered);
        }
        was
    }

    /// Whether this shard has begun to give a push to all its sessions before; if not, it does now.
    pub(super) fn was_pushed_to_all(&mut self, service: u16, id: u64, payload: &[u8]) -> bool {
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let to = payload.chunks(8).fold(payload.len() as u64, |hash, bytes| user_hash(hash ^ word(bytes)));
        let name = PushName { id, to, from: SERVICE_USERS + u64::from(service), acked: false };
        let was = self.pushed.find(&name).is_some();
        if !was {
            self.note_push(name, 0, Known::Delivered);
        }
        was
    }
}
