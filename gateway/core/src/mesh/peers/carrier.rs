//! Nodes to which this shard has no link, because there are fewer links than shards: another shard of this node has
//! one, its *carrier*, and tells in words what becomes of it. What this shard has for such a node goes to the carrier
//! by mailbox.
//!
//! A shard that learns of a node before its carrier does must not hand on what the carrier could not place: it holds it
//! until the first word comes. What finds the mailbox of the carrier full waits here as well, and all that comes behind
//! it, so that nothing changes places on the way; what there is no room for either is refused.

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
    /// Records that wait for the first word, or for room in the carrier's mailbox.
    held: Held,
}

/// Encoded records, one behind the other.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// How many bytes of that have gone.
    gone: usize,
}

impl Held {
    fn len(&self) -> usize {
        self.bytes.len() - self.gone
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, record: &Record<'_>) {
        record.encode(&mut self.bytes);
    }

    /// The first record.
    fn first(&self) -> Option<&[u8]> {
        let rest = &self.bytes[self.gone..];
        if rest.is_empty() { None } else { Some(&rest[..record_len(rest)]) }
    }

    fn pop(&mut self) {
        self.gone += self.first().map_or(0, <[u8]>::len);
        if self.is_empty() {
            *self = Held::default();
        } else if self.gone > self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }
}

impl Carrier {
    pub(super) fn new(shard: u16) -> Self {
        Carrier { shard, told: None, held: Held::default() }
    }

    /// Bytes that wait.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Whether something waits for room in the carrier's mailbox: whatever comes waits behind it.
    pub(super) fn has_waiting(&self) -> bool {
        self.told.is_some() && !self.held.is_empty()
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

    /// What is held for the first word is little, and nothing waits for room.
    pub(super) fn is_easy(&self) -> bool {
        self.told.is_none_or(|told| told & word::EASY != 0 && self.held.is_empty())
    }

    /// Whether a record may go to the node at all.
    fn admit(&self, record: &Record<'_>) -> Result<(), FarError> {
        if self.has(word::NO_PLACE) {
            return Err(FarError::Unknown);
        }
        if self.has(word::UNREACHABLE) && !record.is_control() {
            return Err(FarError::Unreachable);
        }
        if !record.fits() {
            return Err(FarError::TooLong);
        }
        Ok(())
    }

    /// Takes a record, or says whose it is to carry.
    pub(super) fn place(&mut self, record: &Record<'_>, limits: &LinkLimits) -> Result<Placed, FarError> {
        self.admit(record)?;
        if self.told.is_some() {
            return Ok(Placed::Carried(self.shard));
        }
        let most = limits.bytes_max + if record.is_control() { limits.reserve_bytes } else { 0 };
        if self.held.len() + record.encoded_len() > most {
            return Err(FarError::Full);
        }
        self.held.push(record);
        Ok(Placed::Waits)
    }

    /// Gives back what waited for a word that does not come.
    pub(super) fn end(self, node: NodeKey, back: &mut Vec<GivenBack>) {
        give_back(node, self.held, back);
    }
}

fn give_back(node: NodeKey, held: Held, back: &mut Vec<GivenBack>) {
    let mut rest = &held.bytes[held.gone..];
    while !rest.is_empty() {
        let (bytes, behind) = rest.split_at(record_len(rest));
        back.push(GivenBack { node, maybe_received: false, bytes: bytes.into() });
        rest = behind;
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

    /// Shard `from` has told of its link to a node. What waited for that is its to carry now, before anything else.
    pub(crate) fn take_word(&mut self, from: u16, node: NodeKey, bits: u8) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == node) else { return };
        let Some(carrier) = peer.carrier.as_mut().filter(|carrier| carrier.shard == from) else { return };
        carrier.told = Some(bits & !word::ANEW);
        if bits & word::NO_PLACE != 0 {
            peer.passed_over = true;
            give_back(node, std::mem::take(&mut carrier.held), &mut self.held_back);
            return;
        }
        self.has_waiting |= carrier.has_waiting();
        let again = bits & word::ANEW != 0 || (bits & word::UP != 0 && std::mem::take(&mut peer.passed_over));
        if again {
            self.restarted.push(node);
        }
    }

    /// A record for a node waits for room in the mailbox of the shard that has the link, behind others that do.
    ///
    /// # Errors
    /// [`FarError::Full`] when as much waits as may: a record that answers may wait as long as that is twice what
    /// others may take. One that is alone waits however long it is.
    pub(crate) fn wait_for_room(&mut self, node: NodeKey, record: &Record<'_>) -> Result<Placed, FarError> {
        let waiting = self.waiting_bytes();
        let share = self.config.link.reserve_bytes;
        let most = if record.is_control() { 2 * share } else { share };
        let place = self.place_of(node).ok_or(FarError::Unknown)?;
        let carrier = self.peers[place].carrier.as_mut().ok_or(FarError::Unknown)?;
        carrier.admit(record)?;
        if waiting > 0 && waiting + record.encoded_len() > most {
            return Err(FarError::Full);
        }
        carrier.held.push(record);
        self.has_waiting |= carrier.has_waiting();
        self.carry_waits += 1;
        Ok(Placed::Waits)
    }

    /// Bytes that wait for room in mailboxes of other shards.
    fn waiting_bytes(&self) -> usize {
        if !self.has_waiting {
            return 0;
        }
        let carriers = self.peers.iter().filter_map(|peer| peer.carrier.as_ref());
        carriers.filter(|carrier| carrier.has_waiting()).map(Carrier::held_bytes).sum()
    }

    /// Whether something waits for room in the mailbox of another shard.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.has_waiting
    }

    /// Whether something for a node does.
    pub(crate) fn has_waiting_for(&self, node: NodeKey) -> bool {
        let carrier = self.peer(node).and_then(|peer| peer.carrier.as_ref());
        self.has_waiting && carrier.is_some_and(Carrier::has_waiting)
    }

    /// Records that have waited for room in the mailbox of another shard.
    pub(crate) fn carry_waits(&self) -> u64 {
        self.carry_waits
    }

    /// Hands on what waits for room, in its order. `hand_on` is given carrier, node and record, and says whether there
    /// was room.
    pub(crate) fn hand_on_waiting(&mut self, mut hand_on: impl FnMut(u16, NodeKey, &[u8]) -> bool) {
        for peer in &mut self.peers {
            let Some(carrier) = peer.carrier.as_mut().filter(|carrier| carrier.has_waiting()) else { continue };
            while let Some(first) = carrier.held.first()
                && hand_on(carrier.shard, peer.key, first)
            {
                carrier.held.pop();
            }
        }
        let mut carriers = self.peers.iter().filter_map(|peer| peer.carrier.as_ref());
        self.has_waiting = carriers.any(Carrier::has_waiting);
    }
}
