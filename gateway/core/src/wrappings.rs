//! What has to be remembered of connections that are not native; what is done with it is in `core/wrap.rs` and
//! `core/tls.rs`.

use crate::conn::Wire;
use crate::transport::tls::{End as TlsEnd, HANDSHAKE_BYTES, Handshake, Session};
use hashbrown::HashMap;
use std::fmt;
use trunkline_proto::websocket::{CONTROL_BYTES_MAX, Inbound};

/// What has to be remembered of connections that are not native, by slot. A quiet one has no entry: it costs no more
/// than a native one.
#[derive(Debug, Default)]
pub(crate) struct Wrappings(HashMap<u32, Box<Wrapping>>);

/// What has to be remembered of one.
#[derive(Default)]
pub(crate) struct Wrapping {
    /// Where its stream of messages stands, and how that ended.
    pub(crate) inbound: Inbound,
    /// The token that came with its request, until LOGIN.
    pub(crate) token: Option<String>,
    /// Its handshake of TLS.
    pub(crate) handshake: Option<Box<Handshake>>,
    /// The beginning of a record of TLS.
    pub(crate) record: Vec<u8>,
    /// How its records have ended.
    pub(crate) tls_end: Option<TlsEnd>,
    /// The user whom its certificate names, and the last second in which that holds; until LOGIN.
    pub(crate) certified: Option<(u64, u64)>,
}

impl fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(secret)");
        f.debug_struct("Wrapping")
            .field("inbound", &self.inbound)
            .field("token", &token)
            .field("handshake", &self.handshake)
            .field("record", &self.record.len())
            .field("tls_end", &self.tls_end)
            .field("certified", &self.certified)
            .finish()
    }
}

impl Wrapping {
    /// Bytes that it counts as of half-received frames, whose bound is its bound: itself, its entry, a control frame
    /// begun, the token, and what belongs to TLS.
    pub(crate) fn bytes(&self) -> usize {
        let handshake = if self.handshake.is_some() { HANDSHAKE_BYTES } else { 0 };
        WRAPPING_BYTES + self.token.as_ref().map_or(0, |token| token.len()) + handshake + self.record.len()
    }

    pub(crate) fn is_needed(&self) -> bool {
        let of_tls = self.handshake.is_some() || !self.record.is_empty() || self.tls_end.is_some();
        !self.inbound.is_idle() || self.token.is_some() || of_tls || self.certified.is_some()
    }
}

/// Bytes for one connection of which something is remembered, besides its token.
pub(crate) const WRAPPING_BYTES: usize =
    size_of::<Wrapping>() + 2 * size_of::<(u32, Box<Wrapping>)>() + CONTROL_BYTES_MAX;
/// A connection that is not native, on its way to another shard.
#[derive(Debug)]
pub(crate) struct Wrapped {
    pub(crate) wire: Wire,
    pub(crate) wrapping: Option<Box<Wrapping>>,
    /// Its keys of TLS.
    pub(crate) session: Option<Session>,
}

impl Wrappings {
    /// Connections of which something has to be remembered.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What is remembered of a connection.
    pub(crate) fn get(&self, slot: u32) -> Option<&Wrapping> {
        self.0.get(&slot).map(|wrapping| &**wrapping)
    }

    /// Takes what is remembered of a connection.
    pub(crate) fn take(&mut self, slot: u32) -> Option<Box<Wrapping>> {
        self.0.remove(&slot)
    }

    /// Remembers that of a connection, of which nothing is remembered.
    pub(crate) fn put(&mut self, slot: u32, wrapping: Box<Wrapping>) {
        let before = self.0.insert(slot, wrapping);
        debug_assert!(before.is_none(), "what was remembered of slot {slot} would be forgotten, and stay counted");
    }

    /// The handshake of a connection.
    pub(crate) fn handshake(&self, slot: u32) -> Option<&Handshake> {
        self.0.get(&slot)?.handshake.as_deref()
    }

    /// Bytes that are held for a connection.
    pub(crate) fn held(&self, slot: u32) -> usize {
        self.0.get(&slot).map_or(0, |wrapping| wrapping.bytes())
    }
}
