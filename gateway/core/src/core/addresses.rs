//! Where clients are, on shards that have to know: which of them a proxy speaks for, and how many one address may have.

use super::shard::Shard;
use crate::addresses::{AddressBook, Known, TooMany};
use crate::conn::{Phase, Wire};
use crate::io::Peer;
use crate::reason::CloseReason;
use crate::transport::networks::Proxies;
use crate::transport::proxy::{self, Header, Violation};
use crate::transport::upgrade::{Refusal, Rules, Told};
use hashbrown::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Bytes for one connection whose address is known, free room of the table included.
pub const PEER_BYTES: u64 = 2 * (size_of::<(u32, Known)>() + 1) as u64;

/// The other ends of the connections of a shard, by slot. Empty, and never looked at, where nobody asks for addresses.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    proxies: Arc<Proxies>,
    rules: Arc<Rules>,
    book: Option<Arc<AddressBook>>,
    known: HashMap<u32, Known>,
    /// The application is told where clients are that log in, or calls are balanced by that.
    told: bool,
}

impl Addresses {
    pub(crate) fn new(proxies: Arc<Proxies>, rules: Arc<Rules>, book: Option<Arc<AddressBook>>) -> Self {
        Addresses { proxies, rules, book, known: HashMap::new(), told: false }
    }

    /// The same where others need addresses too.
    pub(crate) fn for_others(self, told: bool) -> Self {
        Addresses { told, ..self }
    }

    /// Whether accepts have to tell who connects.
    pub(crate) fn are_needed(&self) -> bool {
        self.told || self.book.is_some() || !self.proxies.is_empty() || !self.rules.forwarding.is_empty()
    }

    /// Where the client of a connection is, if that is known.
    pub(crate) fn of(&self, slot: u32) -> Option<SocketAddr> {
        self.known.get(&slot)?.address
    }

    /// What is known of a connection, for the shard it goes to. It stays known here until it has gone.
    pub(crate) fn known(&self, slot: u32) -> Option<Known> {
        self.known.get(&slot).copied()
    }

    /// Goes on with a connection that came from another shard, where it was counted.
    pub(crate) fn adopt(&mut self, slot: u32, known: Option<Known>) {
        self.known.extend(known.map(|known| (slot, known)));
    }

    /// A connection has gone to another shard.
    pub(crate) fn moved(&mut self, slot: u32) {
        self.known.remove(&slot);
    }

    /// A connection has ended.
    pub(crate) fn left(&mut self, slot: u32) {
        let Some(known) = self.known.remove(&slot) else { return };
        if let (Some(book), true, Some(address)) = (&self.book, known.counted, known.address) {
            book.leave(address.ip());
        }
    }

    /// Whether a handshake of TLS may begin on a connection. One that is not counted, as a trusted proxy's, always may.
    fn begin_handshake(&self, slot: u32, now_ms: u64) -> bool {
        let Some(book) = &self.book else { return true };
        let counted = self.known.get(&slot).filter(|known| known.counted).and_then(|known| known.address);
        counted.is_none_or(|address| book.begin_handshake(address.ip(), now_ms))
    }

    /// Whether the word of a connection's other end is taken on where the client of its request is.
    fn forwards(&self, slot: u32) -> bool {
        let known = self.known.get(&slot).filter(|known| !known.counted);
        known.is_some_and(|known| self.rules.forwarding.trusts(known.address.map(|address| address.ip())))
    }

    /// Notes where a client is, and enters it.
    fn enter(&mut self, slot: u32, address: SocketAddr, now_ms: u64) -> Result<(), TooMany> {
        let entered = self.book.as_ref().map_or(Ok(()), |book| book.enter(address.ip(), now_ms));
        // Nobody is turned away because there are too many others.
        if matches!(entered, Ok(()) | Err(TooMany::Addresses)) {
            let counted = entered.is_ok() && self.book.is_some();
            self.known.insert(slot, Known { address: Some(address), counted });
        }
        entered
    }
}

impl Shard {
    /// A connection was accepted from this peer: a proxy has to say first for whom it speaks, others are counted.
    pub(super) fn meet(&mut self, slot: u32, peer: Peer) {
        let trusted = match peer {
            Peer::Address(address) => self.addresses.proxies.trust(address.ip()),
            Peer::Unix => self.addresses.proxies.trust_unix(),
        };
        if trusted {
            let conn = self.links.slots.at(slot);
            conn.wire.change_kind(Wire::PROXIED);
            let address = match peer {
                Peer::Address(address) => Some(address),
                Peer::Unix => None,
            };
            self.addresses.known.insert(slot, Known { address, counted: false });
        } else {
            match peer {
                Peer::Address(address) => _ = self.count_address(slot, address),
                Peer::Unix if self.addresses.rules.forwarding.trusts(None) => {
                    self.addresses.known.insert(slot, Known { address: None, counted: false });
                }
                Peer::Unix => {}
            }
        }
    }

    /// Enters a client's connection, or ends it: without a word, since it has not said in which language. Returns
    /// whether it goes on.
    fn count_address(&mut self, slot: u32, address: SocketAddr) -> bool {
        if self.addresses.rules.forwarding.trusts(Some(address.ip())) {
            // It is not one client, and its requests will say for whom they are.
            self.addresses.known.insert(slot, Known { address: Some(address), counted: false });
            return true;
        }
        if self.enter_address(slot, address) {
            return true;
        }
        self.close(slot, CloseReason::AddressLimit);
        false
    }

    /// Enters a client's connection; whether it may stay.
    fn enter_address(&mut self, slot: u32, address: SocketAddr) -> bool {
        let stats = &self.links.stats;
        match self.addresses.enter(slot, address, self.now.mono_ms) {
            Ok(()) => return true,
            Err(TooMany::Addresses) => {
                stats.limit_addresses.add(1);
                return true;
            }
            Err(TooMany::Open) => stats.limit_address_open.add(1),
            Err(TooMany::PerSec) => stats.limit_address_per_sec.add(1),
        }
        false
    }

    /// A handshake of TLS is about to begin: ends the connection if its address has begun as many as it may. Returns
    /// whether it goes on.
    pub(super) fn count_handshake(&mut self, slot: u32) -> bool {
        let may = self.addresses.begin_handshake(slot, self.now.mono_ms);
        if !may {
            self.links.stats.limit_address_handshakes.add(1);
            self.close(slot, CloseReason::AddressLimit);
        }
        may
    }

    /// A request has come, and says where its client is: enters that where the other end is one whose word is taken.
    ///
    /// # Errors
    /// What the request is to be refused with.
    pub(super) fn forwarded(&mut self, slot: u32, told: Told) -> Result<(), Refusal> {
        if !self.addresses.forwards(slot) {
            return Ok(());
        }
        match told {
            Told::Nothing => Ok(()),
            Told::Unreadable => Err(Refusal::Forwarded),
            Told::At(address) => {
                // Ports are not told.
                let entered = self.enter_address(slot, SocketAddr::new(address, 0));
                if entered { Ok(()) } else { Err(Refusal::Address) }
            }
        }
    }

    /// Bytes of a connection that a proxy has to open with a header. What comes behind that is taken as if it were the
    /// first.
    pub(super) fn received_header(&mut self, slot: u32, bytes: &mut [u8]) {
        if self.links.slots.at(slot).phase != Phase::Handshake {
            return;
        }
        if self.links.slots.at(slot).partial.is_none()
            && let Ok(Some((header, end))) = proxy::read(bytes)
        {
            // As it is nearly always: in one piece.
            return self.introduced(slot, header, &mut bytes[end..]);
        }
        self.keep(slot, bytes);
        if self.links.slots.at(slot).phase != Phase::Handshake {
            return;
        }
        let Some(there) = self.links.slots.at(slot).partial.as_deref() else { return };
        match proxy::read(there) {
            Ok(None) => {}
            Ok(Some((header, end))) => {
                let Some(mut there) = self.links.take_partial(slot) else { return };
                self.introduced(slot, header, &mut there[end..]);
            }
            Err(violation) => self.refuse_header(slot, Some(violation)),
        }
    }

    /// A proxy has said for whom it speaks.
    fn introduced(&mut self, slot: u32, header: Header, behind: &mut [u8]) {
        self.links.stats.proxy_headers.add(1);
        self.links.slots.at(slot).wire.change_kind(Wire::NATIVE);
        let goes_on = match header {
            Header::Client { source, .. } => self.count_address(slot, source),
            // The proxy itself, which looks whether there is anybody, or a client of whom it does not tell. It is not
            // limited.
            Header::Own => true,
        };
        if goes_on && !behind.is_empty() {
            self.received_first(slot, behind);
        }
    }

    /// A PROXY header is missing, wrong, or comes from somebody whose word does not count (`None`).
    pub(super) fn refuse_header(&mut self, slot: u32, violation: Option<Violation>) {
        let stats = &self.links.stats;
        let refused = match violation {
            None => &stats.proxy_untrusted,
            Some(Violation::Missing) => &stats.proxy_missing,
            Some(Violation::TooLong) => &stats.proxy_too_long,
            Some(Violation::Malformed) => &stats.proxy_malformed,
            Some(Violation::Unsupported) => &stats.proxy_unsupported,
            Some(Violation::WrongChecksum) => &stats.proxy_wrong_checksum,
        };
        refused.add(1);
        self.close(slot, CloseReason::ProxyRefused);
    }
}
