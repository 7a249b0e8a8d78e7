//! The links of one shard: to which nodes, over which connections, and what is due on each.
//!
//! The shard's loop tells what becomes of connections, by slot, and asks what to send; nothing here touches a socket or
//! reads a clock.
//!
//! A node is *known* while it is in the view. What ends a link for good is that its node is known no more, or known
//! under another incarnation: then what was queued for it and not confirmed is given back ([`Mesh::take_given_back`]),
//! and so it is when a node that lives on has lost the stream.
//!
//! | file | what |
//! |---|---|
//! | `peers.rs` | what is queued, sent, received and given back on the links there are |
//! | `members.rs` | which nodes there are links to |
//! | `carrier.rs` | nodes to which another shard of this node has the link: what is known of that |
//! | `gather.rs` | what the shards that share a link say together |
//! | `shaking.rs` | connections from their dial or accept to a link that is up, and to their end |
//! | `strangers.rs` | who may have a place for a handshake, and who gives way when places are short |
//! | `news.rs` | what the control thread and the metrics are told of links |

mod carrier;
mod gather;
mod members;
mod news;
mod shaking;
mod strangers;
#[cfg(test)]
mod tests;

use super::handshake::{Acceptor, Dialer, Identity, Secrets};
use super::link::{DEAD_AFTER_MS, Link, LinkFull, LinkLimits, LinkStats, Outgoing};
use super::seal::Sealing;
use super::spread::Spread;
use super::wire::{Entry, Record, goodbye};
use crate::ids::NodeKey;
use carrier::Carrier;
pub(crate) use carrier::{Placed, word};
use gather::Gathered;
use hashbrown::HashMap;
pub use members::{Counted, links_needed};
use news::add_stats;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
pub use strangers::{GivenWay, STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX};

/// Links of a shard to other nodes. Nodes to which there would be more of them are left without.
pub const LINKS_MAX: usize = 256;
/// Connections of the mesh a shard has slots for: links, strangers, and as many more for what has proved itself and
/// waits for its link's shard, for what takes the place of a link's connection, and for what is being closed.
pub const CONNECTIONS_MAX: u32 = (LINKS_MAX + 2 * STRANGERS_MAX) as u32;
/// Nodes of which no view has told that wait to be told of. They come again.
pub const LATER_MAX: usize = 64;
/// What a node that joins puts before its name when it calls at one that may not know of it. A link is dialed by the
/// node whose name sorts first, and no name begins with this.
pub const CALLER_MARK: char = '!';
/// What is sealed for one send at most, beside what its link holds for the peer.
const SEALED_BYTES_MAX: usize = 128 << 10;
/// So many peers are compared one by one, which takes less than a look into a table.
const FEW_PEERS: usize = 4;
/// A link that is down for so long takes no more messages.
const UNREACHABLE_MS: u64 = DEAD_AFTER_MS;

/// Who this node is, and what its links may hold.
#[derive(Clone, Debug)]
pub(crate) struct MeshConfig {
    pub(crate) node: String,
    pub(crate) secrets: Secrets,
    pub(crate) shard: u16,
    pub(crate) shards: u16,
    /// Most links to another node, however many shards the two have; 0 for one for each shard.
    pub(crate) links_max: u16,
    /// Of a link that one shard has for itself; one that several share may hold as much as theirs might together.
    pub(crate) link: LinkLimits,
    /// Bytes all links of the shard may hold, beyond which messages are refused. Half of them is for whoever needs
    /// them, the other half in equal parts for each link: others that are slow or dead take nothing of that. Where
    /// shards share links, what all shards may hold is for the links there are.
    pub(crate) bytes_max: usize,
    /// After this time a peer that has been paused for all of it serves nobody any more, so that what it has received
    /// it does not deliver.
    pub(crate) lease_ms: u64,
}

/// Why a record was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FarError {
    /// That node is not in the view.
    Unknown,
    /// The link, or all links together, hold as much as they may.
    Full,
    /// The link has been down for a while: messages are refused rather than kept for a time that nobody knows.
    Unreachable,
    /// The record is longer than any link takes.
    TooLong,
}

/// What came of bytes in a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More are needed, or what has to be sent comes first.
    Wait,
    /// The link is up; so many of the bytes were the handshake's.
    Up { consumed: usize },
    /// The connection is for another shard of this node: to be handed over once it is quiet.
    HandOver { shard: u16 },
    /// To be closed, after what is to be sent.
    Refused,
}

/// A record that was queued for a node and not confirmed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenBack {
    pub(crate) node: NodeKey,
    /// The peer may have received it all the same.
    pub(crate) maybe_received: bool,
    pub(crate) bytes: Vec<u8>,
}

/// A node of the view.
#[derive(Debug)]
struct Peer {
    key: NodeKey,
    name: Arc<str>,
    life: u64,
    /// The latest one of this life, for what the control thread is told.
    incarnation: u64,
    address: Box<str>,
    /// Where that is, whoever dials.
    host: Option<IpAddr>,
    /// `None` when the address cannot be dialed, and when it is the other side that dials.
    dial: Option<SocketAddr>,
    shards: u32,
    /// The newest version of the mesh protocol that it speaks.
    protocol: u32,
    spread: Spread,
    /// The shard that has the link, where this one has none.
    carrier: Option<Carrier>,
    /// What the shards that share this one's link were told of it; `None` before the first word.
    told: Option<u8>,
    links: Vec<u32>,
    /// Index into `links` for each shard of the peer: one that ends there, if there is one.
    by_shard: Vec<u16>,
    was_up: bool,
    /// A link to it has come up, of which the control thread is to be told at once.
    came_up: bool,
    /// A walk has not told it what it should know, because it was unreachable.
    passed_over: bool,
    /// What the last handshake failed with, so that a peer that tries for ever is told of once.
    failing: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    /// To be dialed at this time, or waiting for the other side.
    Down {
        retry_ms: u64,
    },
    Dialing,
    /// There is a connection in this slot.
    Wired {
        slot: u32,
    },
}

#[derive(Debug)]
struct PeerLink {
    peer: NodeKey,
    number: u16,
    link: Link,
    state: LinkState,
    /// What it holds, as counted in the sum of all.
    counted: usize,
    /// When it may be dialed again if the present connection comes to nothing.
    retry_ms: u64,
    /// Its peer is known no more.
    dead: bool,
    /// Since when it has been down, and whether that is long.
    down_ms: Option<u64>,
    unreachable: bool,
    /// It has been down for so long that its stream has been given up.
    given_up: bool,
    /// Its stream has begun anew, of which the shards that share it are to be told.
    anew: bool,
    /// It holds little, see [`Link::stays_easy`].
    easy: bool,
    /// Shards of this node that say over it what they have for the peer, this one included.
    sharers: u16,
    /// What they say together, if they do.
    gathered: Option<Gathered>,
}

impl PeerLink {
    /// Counts what it holds now in the sum of all. Returns whether it is easy and was not, or the other way round.
    #[inline]
    fn count(&mut self, sum: &mut usize) -> bool {
        let held = self.link.bytes();
        *sum = *sum + held - self.counted;
        self.counted = held;
        let easy = self.link.stays_easy(self.easy);
        std::mem::replace(&mut self.easy, easy) != easy
    }
}

/// How far a connection is.
#[derive(Debug)]
enum Stage {
    Accepting(Box<Acceptor>),
    /// It is for another shard.
    Claimed {
        acceptor: Box<Acceptor>,
        shard: u16,
    },
    Dialing {
        dialer: Box<Dialer>,
        link: u32,
    },
    Up {
        link: u32,
    },
    /// To be closed once everything has been sent.
    Ended,
}

/// Whose buffer the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Nothing,
    /// The handshake's.
    Out,
    Link(u32),
}

/// A connection of the mesh.
#[derive(Debug)]
struct Wire {
    stage: Stage,
    /// Handshake frames to be sent, before anything of the link; behind them, on a link that is sealed, what it says.
    out: Vec<u8>,
    /// What was sealed last, all of it sent: memory for the next, with what it held.
    sealed: Vec<u8>,
    lent: Lent,
    /// The keys of a link that is up, unless it is in clear. What it sends goes through `sealed`, and what the kernel
    /// leaves of that through `out`.
    sealing: Option<Box<Sealing>>,
    /// It is read into large buffers.
    bulk: bool,
    /// Who connected; `None` for what was dialed, or has come from another shard.
    from: Option<IpAddr>,
    /// Grows with each connection.
    came: u64,
}

/// The links of one shard.
#[derive(Debug)]
pub(crate) struct Mesh {
    config: MeshConfig,
    life: u64,
    peers: Vec<Peer>,
    /// Where each of them is.
    places: HashMap<NodeKey, u16>,
    /// Nodes of the view to which there are no links for want of places, and how many it would take.
    left_out: Vec<(NodeKey, usize)>,
    links: Vec<Option<PeerLink>>,
    wires: HashMap<u32, Wire>,
    /// Connections so far, and those that had to give way.
    came: u64,
    given_way: GivenWay,
    /// Links by the token of their dial.
    dials: HashMap<u32, u32>,
    next_token: u32,
    /// What all links hold.
    bytes: usize,
    /// What they may hold.
    budget: usize,
    /// Links with records to give back.
    ended: VecDeque<u32>,
    /// Whether other shards share some of this one's links, and whether this one shares some of theirs.
    carries: bool,
    has_carriers: bool,
    /// Something for another node may wait for room in the mailbox of the shard with the link; and how often something
    /// did.
    has_waiting: bool,
    carry_waits: u64,
    /// What they are to be told beside what becomes of links, and whether something may have become of one.
    words: Vec<(NodeKey, u8)>,
    words_due: bool,
    /// Shards that are to tell of their links to nodes that are new here.
    asks: Vec<(u16, NodeKey)>,
    /// What waited for word of another shard's link that does not come, or to be said together on one that is down.
    held_back: Vec<GivenBack>,
    /// Records that said for several shards that all had been told.
    settled_sets: u64,
    /// Connections to be closed.
    closing: Vec<u32>,
    /// Nodes that live on and have lost a stream.
    restarted: Vec<NodeKey>,
    /// Nodes that were found in a later life than is known, or of which no view has told, for the control thread.
    later: Vec<(Arc<str>, u64)>,
    /// Those for which there was no room.
    later_dropped: u64,
    /// When the control thread was told of all links last.
    told_ms: u64,
    /// Handshakes that failed, by what they failed with; and the numbers of links that are no more.
    failed: HashMap<&'static str, u64>,
    past: LinkStats,
}

impl Mesh {
    pub(crate) fn new(config: MeshConfig) -> Self {
        Mesh {
            budget: config.bytes_max,
            config,
            life: 0,
            peers: Vec::new(),
            places: HashMap::new(),
            left_out: Vec::new(),
            links: Vec::new(),
            wires: HashMap::new(),
            came: 0,
            given_way: GivenWay::default(),
            dials: HashMap::new(),
            next_token: 0,
            bytes: 0,
            ended: VecDeque::new(),
            carries: false,
            has_carriers: false,
            has_waiting: false,
            carry_waits: 0,
            words: Vec::new(),
            words_due: false,
            asks: Vec::new(),
            held_back: Vec::new(),
            settled_sets: 0,
            closing: Vec::new(),
            restarted: Vec::new(),
            later: Vec::new(),
            later_dropped: 0,
            told_ms: 0,
            failed: HashMap::new(),
            past: LinkStats::default(),
        }
    }

    fn identity(&self) -> Identity {
        Identity { name: self.config.node.clone(), incarnation: self.life, versions: self.config.secrets.versions() }
    }

    /// Where a node is among the peers. A view of a hundred nodes is not gone through for each message.
    #[inline]
    fn place_of(&self, node: NodeKey) -> Option<usize> {
        match self.peers.len() {
            0..=FEW_PEERS => self.peers.iter().position(|peer| peer.key == node),
            _ => self.places.get(&node).map(|place| usize::from(*place)),
        }
    }

    #[inline]
    fn peer(&self, node: NodeKey) -> Option<&Peer> {
        self.place_of(node).map(|place| &self.peers[place])
    }

    /// The link whose connection this is, if it is up.
    #[inline]
    pub(crate) fn link_of(&self, slot: u32) -> Option<u32> {
        match self.wires.get(&slot)?.stage {
            Stage::Up { link } => Some(link),
            _ => None,
        }
    }

    /// A link, and the node at its other end.
    #[inline]
    pub(crate) fn link(&mut self, id: u32) -> Option<(NodeKey, &mut Link)> {
        self.links[id as usize].as_mut().map(|link| (link.peer, &mut link.link))
    }

    /// Takes the inbound half of a link back after bytes of its connection. A violation ends the connection.
    pub(crate) fn end_receive(
        &mut self,
        slot: u32,
        id: u32,
        inbound: super::wire::Inbound,
        result: Result<(), super::wire::MeshViolation>,
    ) -> bool {
        if let Some(link) = self.links[id as usize].as_mut() {
            link.link.end_receive(inbound, &result);
        }
        self.recount(id);
        let Err(violation) = result else { return true };
        *self.failed.entry("violation").or_default() += 1;
        tracing::warn!("a link is closed because its peer broke the protocol: {violation}");
        self.ended.push_back(id);
        self.end_wire(slot);
        false
    }

    /// What to send on a connection now.
    pub(crate) fn take_send(&mut self, slot: u32, now_ms: u64) -> Option<Outgoing> {
        let wire = self.wires.get_mut(&slot)?;
        if wire.lent != Lent::Nothing {
            return None;
        }
        if !wire.out.is_empty() {
            wire.lent = Lent::Out;
            return Some(Outgoing { buf: std::mem::take(&mut wire.out), offset: 0 });
        }
        let Stage::Up { link: id } = wire.stage else { return None };
        let link = &mut self.links[id as usize].as_mut()?.link;
        let sending = link.take_send(now_ms)?;
        let Some(sealing) = &mut wire.sealing else {
            wire.lent = Lent::Link(id);
            return Some(sending);
        };
        // The link keeps what it has said until the peer has confirmed it; what the kernel is given is a sealed copy.
        let Outgoing { buf, offset } = sending;
        let taken = (buf.len() - offset).min(SEALED_BYTES_MAX);
        let mut sealed = std::mem::take(&mut wire.sealed);
        sealing.seal(&buf[offset..offset + taken], &mut sealed);
        wire.lent = Lent::Out;
        link.sent(buf, taken);
        self.recount(id);
        Some(Outgoing { buf: sealed, offset: 0 })
    }

    /// Takes the keys of a link that is up, to open what has come on its connection; `None` for one in clear. They go
    /// back with [`Mesh::put_sealing`] before anything is sent: what is in the records is handled meanwhile, and that
    /// needs all of this.
    pub(crate) fn take_sealing(&mut self, slot: u32) -> Option<Box<Sealing>> {
        self.wires.get_mut(&slot).and_then(|wire| wire.sealing.take())
    }

    /// See [`Mesh::take_sealing`].
    pub(crate) fn put_sealing(&mut self, slot: u32, sealing: Box<Sealing>) {
        if let Some(wire) = self.wires.get_mut(&slot) {
            wire.sealing = Some(sealing);
        }
    }

    /// Somebody on the way has changed what came on a connection, which is to be closed. The stream lives on.
    pub(crate) fn note_forged(&mut self) {
        *self.failed.entry("forged").or_default() += 1;
        tracing::warn!("a link is closed: what came on it was not sealed by its peer, or was changed on the way");
    }

    /// Takes the buffer of a send back, of which the kernel took `taken` bytes from `offset` on.
    pub(crate) fn sent(&mut self, slot: u32, mut buf: Vec<u8>, offset: usize, taken: usize) {
        let Some(wire) = self.wires.get_mut(&slot) else { return };
        match std::mem::replace(&mut wire.lent, Lent::Nothing) {
            Lent::Nothing => {}
            Lent::Out if offset + taken == buf.len() && wire.out.is_empty() && wire.sealing.is_some() => {
                wire.sealed = buf;
            }
            Lent::Out => {
                // Cut in two by a full socket buffer; or a handshake's.
                buf.drain(..offset + taken);
                buf.append(&mut wire.out);
                wire.out = buf;
                if matches!(wire.stage, Stage::Ended) && taken == 0 {
                    wire.out.clear();
                }
            }
            Lent::Link(id) => {
                if let Some(link) = self.links[id as usize].as_mut() {
                    link.link.sent(buf, taken);
                }
                self.recount(id);
            }
        }
    }

    /// Queues a record for a shard of another node, or says which shard of this node has the link to it.
    ///
    /// # Errors
    /// [`FarError`]; what becomes of the record is the caller's to decide and to count.
    #[inline]
    pub(crate) fn queue(&mut self, node: NodeKey, shard: u16, record: &impl Entry) -> Result<Placed, FarError> {
        let place = self.place_of(node).ok_or(FarError::Unknown)?;
        let peer = &mut self.peers[place];
        let at = peer.by_shard.get(usize::from(shard)).ok_or(FarError::Unknown)?;
        if let Some(carrier) = &mut peer.carrier {
            if carrier.has_waiting() {
                return self.wait_for_room(node, &record.record());
            }
            return carrier.place(&record.record(), &self.config.link);
        }
        let id = peer.links[usize::from(*at)];
        match record.record() {
            Record::SettledShards { from, digest, .. } if peer.gathers() => return self.gather(id, from, digest),
            Record::Register { seat, .. } => self.say_before(id, seat.shard)?,
            _ => {}
        }
        let places = self.links.len().max(1);
        let link = self.links[id as usize].as_mut().ok_or(FarError::Unknown)?;
        if !record.is_control() {
            if link.unreachable {
                return Err(FarError::Unreachable);
            }
            let len = record.encoded_len();
            let half = self.budget / 2;
            if self.bytes + len > half && link.link.bytes() + len > half / places {
                return Err(FarError::Full);
            }
        }
        link.link.queue(record).map_err(|full| match full {
            LinkFull::Bytes => FarError::Full,
            LinkFull::RecordTooLong => FarError::TooLong,
        })?;
        self.words_due |= link.count(&mut self.bytes);
        Ok(match link.state {
            LinkState::Wired { slot } => Placed::Wired(slot),
            LinkState::Down { .. } | LinkState::Dialing => Placed::Waits,
        })
    }

    /// A shard of a node to which there is a connection now.
    pub(crate) fn shard_in_touch(&self, node: NodeKey) -> Option<u16> {
        let peer = self.peer(node)?;
        if let Some(carrier) = &peer.carrier {
            return carrier.is_up().then_some(0);
        }
        let is_wired = |at: &u16| {
            let link = self.links[peer.links[usize::from(*at)] as usize].as_ref();
            link.is_some_and(|link| link.link.is_connected())
        };
        peer.by_shard.iter().position(is_wired).map(|shard| shard as u16)
    }

    /// Whether the link to a shard of a node has been down for long.
    pub(crate) fn is_unreachable(&self, node: NodeKey, shard: u16) -> bool {
        let peer = self.peer(node);
        if let Some(carrier) = peer.and_then(|peer| peer.carrier.as_ref()) {
            return carrier.is_unreachable();
        }
        let at = peer.and_then(|peer| Some(peer.links[usize::from(*peer.by_shard.get(usize::from(shard))?)]));
        let link = at.and_then(|id| self.links[id as usize].as_ref());
        link.map_or_else(|| self.is_left_out(node), |link| link.unreachable)
    }

    /// Whether no shard of a node has been reached for long.
    pub(crate) fn is_silent(&self, node: NodeKey) -> bool {
        let Some(peer) = self.peer(node) else { return true };
        if let Some(carrier) = &peer.carrier {
            return carrier.is_unreachable();
        }
        let mut links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
        links.all(|link| link.unreachable)
    }

    /// A walk passes over this node, which is unreachable: the node is told all when there is a link to it again.
    pub(crate) fn pass_over(&mut self, node: NodeKey) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == node) {
            peer.passed_over = true;
        }
    }

    /// Whether a node's links have less than half of what they may hold, so that the pace of what can wait need not be
    /// slowed.
    pub(crate) fn is_easy(&self, node: NodeKey) -> bool {
        let Some(peer) = self.peer(node) else { return true };
        if let Some(carrier) = &peer.carrier {
            return carrier.is_easy();
        }
        let mut links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
        links.all(|link| link.link.is_easy())
    }

    fn recount(&mut self, id: u32) {
        if let Some(link) = self.links[id as usize].as_mut() {
            self.words_due |= link.count(&mut self.bytes);
        }
    }

    /// Connections of links on which a heartbeat or a confirmation is due.
    pub(crate) fn due_sends(&self, now_ms: u64, due: &mut Vec<u32>) {
        for link in self.links.iter().flatten() {
            if let LinkState::Wired { slot } = link.state
                && link.link.next_deadline(now_ms).is_some_and(|deadline| deadline <= now_ms)
            {
                due.push(slot);
            }
        }
    }

    /// Connections that were given up and are to be closed.
    pub(crate) fn take_closing(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.closing)
    }

    /// Nodes that live on and have lost a stream: what they are to know has to be told again.
    pub(crate) fn take_restarted(&mut self) -> Vec<NodeKey> {
        std::mem::take(&mut self.restarted)
    }

    /// Records that were queued for a node and will not be confirmed, oldest first: of all of them so many bytes, and
    /// the rest of the last one. What is left counts for its link until it has been given back.
    pub(crate) fn take_given_back(&mut self, bytes_max: usize) -> Vec<GivenBack> {
        let mut room = bytes_max;
        let fits = self.held_back.iter().position(|back| {
            let full = room == 0;
            room = room.saturating_sub(back.bytes.len());
            full
        });
        let fits = fits.unwrap_or(self.held_back.len());
        let mut back: Vec<GivenBack> = self.held_back.drain(..fits).collect();
        for id in std::mem::take(&mut self.ended) {
            let Some(link) = self.links[id as usize].as_mut() else { continue };
            let node = link.peer;
            let taken = link.link.take_some_unconfirmed(room, |record, maybe_received| {
                let mut bytes = Vec::with_capacity(record.encoded_len());
                record.encode(&mut bytes);
                back.push(GivenBack { node, maybe_received, bytes });
            });
            room = room.saturating_sub(taken);
            let (dead, lent) = (link.dead, link.link.is_lent());
            let more = link.link.has_unconfirmed();
            self.recount(id);
            if lent || more {
                // The ring has a buffer of it still, or there is more than may be given back now.
                self.ended.push_back(id);
            } else if dead && let Some(gone) = self.links[id as usize].take() {
                self.bytes -= gone.counted;
                add_stats(&mut self.past, &gone.link.stats());
            }
        }
        back
    }

    /// Whether [`Mesh::take_given_back`] may have something.
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty() || !self.held_back.is_empty()
    }

    /// Whether there is more to give back as soon as there is room for it.
    pub(crate) fn gives_on(&self) -> bool {
        let more = |id: &u32| self.links[*id as usize].as_ref().is_some_and(|link| link.link.has_unconfirmed());
        !self.held_back.is_empty() || self.ended.iter().any(more)
    }

    /// Says goodbye on all links once everything queued has been sent.
    pub(crate) fn say_goodbye(&mut self) {
        for link in self.links.iter_mut().flatten() {
            link.link.say_goodbye(goodbye::SHUTDOWN);
        }
    }

    /// Whether goodbye has been said on all links that are up.
    pub(crate) fn has_left(&self) -> bool {
        let said = |wire: &Wire| wire.sealing.is_none() || (wire.out.is_empty() && wire.lent == Lent::Nothing);
        let links = self.links.iter().flatten().all(|link| link.link.has_left());
        links && self.wires.values().all(|wire| !matches!(wire.stage, Stage::Up { .. }) || said(wire))
    }

    /// Whether the connection of a link that is up is to be read into large buffers, of which there are enough for so
    /// many: the first ones that come, for as long as they last.
    pub(crate) fn takes_bulk(&mut self, slot: u32, most: usize) -> bool {
        let taken = self.wires.values().filter(|wire| wire.bulk).count();
        let Some(wire) = self.wires.get_mut(&slot) else { return false };
        wire.bulk |= taken < most;
        wire.bulk
    }

    /// Slots of all connections.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = self.wires.keys().copied().collect();
        slots.sort_unstable();
        slots
    }

    /// Connections of the mesh, in whatever stage.
    pub(crate) fn connections(&self) -> u32 {
        self.wires.len() as u32
    }
}
