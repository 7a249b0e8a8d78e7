//! What is remembered of connections that are not native, counted with the half-received frames of all. What is done
//! with it is in `core/wrap.rs` and `core/tls.rs`.

use super::Links;
use crate::conn::Wire;
use crate::wrappings::Wrapping;

impl Links {
    /// What is remembered of a connection.
    pub(in crate::core) fn wrapping(&self, slot: u32) -> Option<&Wrapping> {
        self.wrappings.get(slot)
    }

    /// Takes what is remembered of a connection.
    pub(in crate::core) fn take_wrapping(&mut self, slot: u32) -> Option<Box<Wrapping>> {
        let wire = &mut self.slots.at(slot).wire;
        if !wire.has(Wire::REMEMBERED) {
            return None;
        }
        wire.clear(Wire::REMEMBERED);
        let wrapping = self.wrappings.take(slot)?;
        self.partial_bytes.sub(wrapping.bytes());
        Some(wrapping)
    }

    /// Remembers that of a connection, as far as it is needed.
    pub(in crate::core) fn put_wrapping(&mut self, slot: u32, wrapping: Box<Wrapping>) {
        if wrapping.is_needed() {
            self.slots.at(slot).wire.set(Wire::REMEMBERED);
            self.partial_bytes.add(wrapping.bytes());
            self.wrappings.put(slot, wrapping);
        }
    }

    /// Whether the handshake of a connection can go on with what has come of its records.
    pub(in crate::core) fn handshake_has_something(&mut self, slot: u32) -> bool {
        let Some(partial) = self.slots.at(slot).partial.as_deref() else { return false };
        self.wrappings.handshake(slot).is_some_and(|handshake| handshake.has_something(partial))
    }

    /// Connections of which something is remembered.
    pub(in crate::core) fn wrapped(&self) -> usize {
        self.wrappings.len()
    }

    /// Bytes that are kept of half-received frames and of what they come in.
    pub(in crate::core) fn partial_bytes(&self) -> usize {
        self.partial_bytes.get()
    }
}
