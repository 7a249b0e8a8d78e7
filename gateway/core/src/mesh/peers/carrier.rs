//! Nodes to which this shard has no link, because there are fewer links than shards: another shard of this node has
//! one, its *carrier*, and tells in words what becomes of it. What this shard has for such a node goes to the carrier
//! by mailbox.
//!
//! A shard that learns of a node before its carrier does must not hand on what the carrier could not place: it holds it
//! until the first word comes.

use super::{FarError, GivenBack, Mesh, Peer, PeerLink};
use crate::ids::NodeKey;
use crate::mesh::link::LinkLimits;
use crate::mesh::spread::Spread;
use crate::mesh::wire::{Record, record_len};

/// What a carrier tells of its link, as bits.
pub(crate) mod word {
    /// There is a connection.
    pub(crate) const UP: u8 = 1;
    /// It has been down for long: messages are refused.
    pub(crate) const UNREACHABLE: u8 = 2;
    /// It holds less than half of what it may, or, after it has held more, less than a quarter.
    pub(crate) const EASY: u8 = 4;
    /// The node lives on and has lost the stream: what it is to know has to be told again.
    pub(crate) const ANEW: u8 = 8;
    /// The carrier has no place for the link.
    pub(crate) const NO_PLACE: u8 = 16;
    /// No word but a question: what of the link?
    pub(crate) const ASK: u8 = 128;
}

/// Where a record is that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// On a link, whose connection is in this slot.
    Wired(u32),
    /// On a link that is down, or held until the shard that has the link is heard.
    Waits,
    /// Nowhere yet: it is this shard's to carry.
    Carried(u16),
}

/// The shard that has the link to a node, and what it has told.
#[derive(Debug)]
pub(super) struct Carrier {
    shard: u16,
    /// Bits of [`word`]; `None` before the first.
    told: Option<u8>,
    /// Records that wait for the first word.
    held: Vec<u8>,
}

impl Carrier {
    pub(super) fn new(shard: u16) -> Self {
        Carrier { shard, told: None, held: Vec::new() }
    }

    /// Bytes that wait for the first word.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    pub(super) fn shard(&self) -> u16 {
        self.shard
    }

    fn has(&self, bits: u8) -> bool {
        self.told.is_some_and(|told| told & bits != 0)
    }

    pub(super) fn is_up(&self) -> bool {
        self.has(word::UP)
    }

    pub(super) fn is_unreachable(&self) -> bool {
        self.has(word::UNREACHABLE | word::NO_PLACE)
    }

    /// What is held for the first word is little.
    pub(super) fn is_easy(&self) -> bool {
        self.told.is_none_or(|told| told & word::EASY != 0)
    }

    /// Takes a record, or says whose it is to carry.
    pub(super) fn place(&mut self, record: &Record<'_>, limits: &LinkLimits) -> Result<Placed, FarError> {
        if self.has(word::NO_PLACE) {
            return Err(FarError::Unknown);
        }
        if self.has(word::UNREACHABLE) && !record.is_control() {
            return Err(FarError::Unreachable);
        }
        if !record.fits() {
            return Err(FarError::TooLong);
        }
        if self.told.is_some() {
            return Ok(Placed::Carried(self.shard));
        }
        let most = limits.bytes_max + if record.is_control() { limits.reserve_bytes } else { 0 };
        if self.held.len() + record.encoded_len() > most {
            return Err(FarError::Full);
        }
        record.encode(&mut self.held);
        Ok(Placed::Waits)
    }

    /// Gives back what waited for a word that does not come.
    pub(super) fn end(self, node: NodeKey, back: &mut Vec<GivenBack>) {
        give_back(node, &self.held, back);
    }
}

fn give_back(node: NodeKey, mut held: &[u8], back: &mut Vec<GivenBack>) {
    while !held.is_empty() {
        let (bytes, rest) = held.split_at(record_len(held));
        back.push(GivenBack { node, maybe_received: false, bytes: bytes.into() });
        held = rest;
    }
}

/// What the shards that share a link are to know of it.
fn word_of(link: &PeerLink) -> u8 {
    let bit = |is: bool, bit: u8| if is { bit } else { 0 };
    bit(link.link.is_connected(), word::UP) | bit(link.unreachable, word::UNREACHABLE) | bit(link.easy, word::EASY)
}

impl Peer {
    /// Whether other shards share this one's link to the node.
    pub(super) fn is_shared(&self) -> bool {
        self.carrier.is_none() && matches!(self.spread, Spread::Few { .. })
    }
}

impl Mesh {
    /// What is to be told to the shards that share this one's links: of a node each, bits of [`word`]. Only what has
    /// changed.
    pub(crate) fn take_words(&mut self) -> Vec<(NodeKey, u8)> {
        let mut words = std::mem::take(&mut self.words);
        // All peers are not gone through in each turn.
        if !self.carries || !std::mem::take(&mut self.words_due) {
            return words;
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.is_shared()) {
            let Some(link) = peer.links.first().and_then(|id| self.links[*id as usize].as_mut()) else { continue };
            let now = word_of(link);
            let anew = std::mem::take(&mut link.anew);
            if anew || peer.told != Some(now) {
                peer.told = Some(now);
                words.push((peer.key, now | if anew { word::ANEW } else { 0 }));
            }
        }
        words
    }

    /// Whether other shards have the links to some nodes.
    #[inline]
    pub(crate) fn has_carriers(&self) -> bool {
        self.has_carriers
    }

    /// The shard that carries what this one has for a node; `None` if this one has a link.
    pub(crate) fn carrier_of(&self, node: NodeKey) -> Option<u16> {
        self.peer(node)?.carrier.as_ref().map(|carrier| carrier.shard)
    }

    /// Whether other shards share this one's link to a node.
    pub(crate) fn is_shared(&self, node: NodeKey) -> bool {
        self.peer(node).is_some_and(Peer::is_shared)
    }

    /// Asks again for the words that have not come: what a shard says in another life of the node than the one that
    /// hears it does not count.
    pub(super) fn ask_again(&mut self) {
        for peer in &self.peers {
            if let Some(carrier) = peer.carrier.as_ref().filter(|carrier| carrier.told.is_none()) {
                self.asks.push((carrier.shard, peer.key));
            }
        }
    }

    /// Shards that are to be asked for word of their link to a node.
    pub(crate) fn take_asks(&mut self) -> Vec<(u16, NodeKey)> {
        std::mem::take(&mut self.asks)
    }

    /// What there is to say of this shard's link to a node, if it has one that others share, or no place for it.
    pub(crate) fn word_on(&self, node: NodeKey) -> Option<u8> {
        if self.is_left_out(node) {
            return Some(word::NO_PLACE);
        }
        let peer = self.peer(node).filter(|peer| peer.is_shared())?;
        // What has never been told is told to all in this turn.
        peer.told
    }

    /// Shard `from` has told of its link to a node. Returns what waited for that, as records one behind the other: they
    /// are its to carry, before anything else.
    pub(crate) fn take_word(&mut self, from: u16, node: NodeKey, bits: u8) -> Vec<u8> {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == node) else { return Vec::new() };
        let Some(carrier) = peer.carrier.as_mut().filter(|carrier| carrier.shard == from) else { return Vec::new() };
        carrier.told = Some(bits & !word::ANEW);
        let held = std::mem::take(&mut carrier.held);
        if bits & word::NO_PLACE != 0 {
            peer.passed_over = true;
            give_back(node, &held, &mut self.held_back);
            return Vec::new();
        }
        let again = bits & word::ANEW != 0 || (bits & word::UP != 0 && std::mem::take(&mut peer.passed_over));
        if again {
            self.restarted.push(node);
        }
        held
    }
}
