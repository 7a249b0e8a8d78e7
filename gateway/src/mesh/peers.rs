//! The links of one shard: to which nodes, over which connections, and what is due on each.
//!
//! The shard's loop tells what becomes of connections, by slot, and asks what to send; nothing here touches a socket or reads a clock.
//!
//! A node is *known* while it is in the view. What ends a link for good is that its node is known no more, or known under another incarnation:
//! then what was queued for it and not confirmed is given back ([`Mesh::take_given_back`]), and so it is when a node that lives on has lost the
//! stream.

#[cfg(test)]
mod tests;

use super::handshake::{
    Acceptor, AcceptorStep, ClusterSecret, DEADLINE_MS_DEFAULT, Dial, Dialer, DialerStep, Established, HandshakeError,
    Identity, Versions,
};
use super::link::{
    DEAD_AFTER_MS, HEARTBEAT_MS, Link, LinkFull, LinkLimits, LinkStats, Outgoing, RECONNECT_MS_MAX, Resumed,
};
use super::wire::{NONCE_BYTES, Record, goodbye};
use crate::directory::{NodeKey, Routing};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Connections that may be in their handshake at once, dialed ones apart; a further one is closed.
pub(crate) const HANDSHAKES_MAX: usize = 64;
/// Connections of the mesh a shard has slots for: links, those that take their place, and handshakes.
pub(crate) const CONNECTIONS_MAX: u32 = 256;
/// Nodes of which no view has told that wait to be told of. They come again.
const LATER_MAX: usize = 64;
/// What a node that joins puts before its name when it calls at one that may not know of it. A link is dialed by the node whose name sorts first,
/// and no name begins with this.
pub(crate) const CALLER_MARK: char = '!';
/// A link that is down for so long takes no more messages.
const UNREACHABLE_MS: u64 = DEAD_AFTER_MS;

/// Who this node is, and what its links may hold.
#[derive(Clone, Debug)]
pub(crate) struct MeshConfig {
    pub(crate) node: String,
    pub(crate) secret: ClusterSecret,
    pub(crate) shard: u16,
    pub(crate) shards: u16,
    pub(crate) link: LinkLimits,
    /// Bytes all links of the shard may hold, beyond which messages are refused. Half of them is for whoever needs them, the other half in
    /// equal parts for each link: others that are slow or dead take nothing of that.
    pub(crate) bytes_max: usize,
    /// After this time a peer that has been paused for all of it serves nobody any more, so that what it has received it does not deliver.
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

/// What the mesh has learned about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tiding {
    /// A link to it works.
    Heard { node: Box<str>, incarnation: u64 },
    /// No link to it works any more.
    Lost { node: Box<str>, incarnation: u64 },
}

/// A node of the view.
#[derive(Debug)]
struct Peer {
    key: NodeKey,
    name: Box<str>,
    life: u64,
    /// The latest one of this life, for what the control thread is told.
    incarnation: u64,
    address: Box<str>,
    /// `None` when the address cannot be dialed, and when it is the other side that dials.
    dial: Option<SocketAddr>,
    shards: u32,
    links: Vec<u32>,
    /// Index into `links` for each shard of the peer: one that ends there, if there is one.
    by_shard: Vec<u16>,
    was_up: bool,
    /// A walk has not told it what it should know, because it was unreachable.
    passed_over: bool,
    /// When the mesh last said that it hears this node.
    told_ms: u64,
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
    /// Handshake frames to be sent, before anything of the link.
    out: Vec<u8>,
    lent: Lent,
}

/// The links of one shard.
#[derive(Debug)]
pub(crate) struct Mesh {
    config: MeshConfig,
    life: u64,
    peers: Vec<Peer>,
    links: Vec<Option<PeerLink>>,
    wires: HashMap<u32, Wire>,
    /// Links by the token of their dial.
    dials: HashMap<u32, u32>,
    next_token: u32,
    /// What all links hold.
    bytes: usize,
    /// Links with records to give back.
    ended: VecDeque<u32>,
    /// Connections to be closed.
    closing: Vec<u32>,
    /// Nodes that live on and have lost a stream.
    restarted: Vec<NodeKey>,
    /// Nodes that were found in a later life than is known, or of which no view has told, for the control thread.
    later: Vec<(Box<str>, u64)>,
    /// Handshakes that failed, by what they failed with; and the numbers of links that are no more.
    failed: HashMap<&'static str, u64>,
    past: LinkStats,
}

impl Mesh {
    pub(crate) fn new(config: MeshConfig) -> Self {
        Mesh {
            config,
            life: 0,
            peers: Vec::new(),
            links: Vec::new(),
            wires: HashMap::new(),
            dials: HashMap::new(),
            next_token: 0,
            bytes: 0,
            ended: VecDeque::new(),
            closing: Vec::new(),
            restarted: Vec::new(),
            later: Vec::new(),
            failed: HashMap::new(),
            past: LinkStats::default(),
        }
    }

    fn identity(&self) -> Identity {
        Identity { name: self.config.node.clone(), incarnation: self.life, versions: Versions::OWN }
    }

    /// There is a new view, in which this node has that life: links to nodes that are known no more end, those to new ones
    /// begin.
    pub(crate) fn set_view(&mut self, life: u64, routing: &Routing, now_ms: u64) {
        let reborn = std::mem::replace(&mut self.life, life) != life;
        for mut peer in std::mem::take(&mut self.peers) {
            let same = |member: &crate::directory::Member| {
                member.key == peer.key && member.shards == peer.shards && member.mesh == peer.address
            };
            let known = routing.others().find(|member| same(member)).filter(|_| !reborn);
            if let Some(member) = known {
                peer.incarnation = member.incarnation;
                self.peers.push(peer);
            } else {
                peer.links.iter().for_each(|id| self.end_link(*id));
            }
        }
        for member in routing.others() {
            // A record under this node's own name is an earlier incarnation of it, or a thief that the lease deals with.
            if *member.name != *self.config.node && !self.peers.iter().any(|peer| peer.key == member.key) {
                self.add_peer(member, now_ms);
            }
        }
    }

    fn add_peer(&mut self, member: &crate::directory::Member, now_ms: u64) {
        let (own_shards, shards) = (u32::from(self.config.shards), member.shards);
        let mut links = Vec::new();
        let mut numbers = Vec::new();
        for number in (u32::from(self.config.shard)..own_shards.max(shards)).step_by(own_shards as usize) {
            let link = PeerLink {
                peer: member.key,
                number: number as u16,
                link: Link::new(self.config.link),
                state: LinkState::Down { retry_ms: now_ms },
                counted: 0,
                retry_ms: now_ms,
                dead: false,
                down_ms: Some(now_ms),
                unreachable: false,
                given_up: false,
            };
            let id = self.links.iter().position(Option::is_none).unwrap_or_else(|| {
                self.links.push(None);
                self.links.len() - 1
            });
            self.links[id] = Some(link);
            links.push(id as u32);
            numbers.push(number);
        }
        let by_shard = (0..shards).map(|shard| {
            let ends_there = numbers.iter().position(|number| number % shards == shard);
            ends_there.unwrap_or(shard as usize % numbers.len()) as u16
        });
        let dials = *self.config.node < *member.name;
        let dial = match member.mesh.parse() {
            Ok(address) if dials => Some(address),
            Ok(_) => None,
            Err(_) => {
                tracing::error!(
                    "node {} gives {:?} as its mesh address, which cannot be dialed",
                    member.name,
                    member.mesh
                );
                None
            }
        };
        self.peers.push(Peer {
            key: member.key,
            name: member.name.clone(),
            life: member.life,
            incarnation: member.incarnation,
            address: member.mesh.clone(),
            dial,
            shards,
            by_shard: by_shard.collect(),
            links,
            was_up: false,
            passed_over: false,
            told_ms: 0,
            failing: None,
        });
    }

    /// The peer of a link is known no more.
    fn end_link(&mut self, id: u32) {
        let Some(link) = self.links[id as usize].as_mut() else { return };
        link.dead = true;
        if let LinkState::Wired { slot } = link.state {
            self.closing.push(slot);
        }
        link.state = LinkState::Down { retry_ms: u64::MAX };
        link.link.end_stream();
        self.dials.retain(|_, dialed| *dialed != id);
        self.ended.push_back(id);
    }

    /// A connection was accepted. False: there are too many in their handshake, and it is to be closed.
    pub(crate) fn accepted(&mut self, slot: u32, now_ms: u64, nonce: [u8; NONCE_BYTES]) -> bool {
        let shaking = self.wires.values().filter(|wire| matches!(wire.stage, Stage::Accepting(_))).count();
        if shaking >= HANDSHAKES_MAX {
            *self.failed.entry("too_many").or_default() += 1;
            return false;
        }
        let (secret, me) = (self.config.secret.clone(), self.identity());
        let acceptor = Acceptor::new(secret, me, nonce, now_ms, DEADLINE_MS_DEFAULT);
        self.add_wire(slot, Stage::Accepting(Box::new(acceptor)), Vec::new());
        true
    }

    /// A connection that proved itself at another shard has come to this one.
    pub(crate) fn adopted(&mut self, slot: u32, acceptor: Box<Acceptor>, now_ms: u64, random: [u8; 32]) -> Step {
        self.add_wire(slot, Stage::Accepting(acceptor), Vec::new());
        self.admit(slot, now_ms, random)
    }

    fn add_wire(&mut self, slot: u32, stage: Stage, out: Vec<u8>) {
        self.wires.insert(slot, Wire { stage, out, lent: Lent::Nothing });
    }

    /// What is to be dialed now, each with a token.
    pub(crate) fn take_due_dials(&mut self, now_ms: u64) -> Vec<(u32, SocketAddr)> {
        let mut due = Vec::new();
        for peer in &self.peers {
            let Some(address) = peer.dial else { continue };
            for id in &peer.links {
                let Some(link) = self.links[*id as usize].as_mut() else { continue };
                if matches!(link.state, LinkState::Down { retry_ms } if retry_ms <= now_ms) {
                    link.state = LinkState::Dialing;
                    self.next_token = self.next_token.wrapping_add(1);
                    self.dials.insert(self.next_token, *id);
                    due.push((self.next_token, address));
                }
            }
        }
        due
    }

    /// A dial has ended. False: nobody waits for it any more, and a connection is to be closed.
    pub(crate) fn dialed(&mut self, token: u32, result: Result<u32, i32>, now_ms: u64, random: [u8; 32]) -> bool {
        let Some(id) = self.dials.remove(&token) else { return false };
        let (secret, me) = (self.config.secret.clone(), self.identity());
        let Some(link) = self.links[id as usize].as_mut() else { return false };
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == link.peer) else { return false };
        let slot = match result {
            Ok(slot) => slot,
            Err(error) => {
                link.state = LinkState::Down { retry_ms: now_ms + link.link.reconnect_delay_ms(word(&random)) };
                *self.failed.entry("not_reached").or_default() += 1;
                if peer.failing.replace("not_reached") != Some("not_reached") {
                    let error = std::io::Error::from_raw_os_error(error);
                    tracing::warn!("node {} is not reached at {}: {error}; trying on", peer.name, peer.address);
                }
                return true;
            }
        };
        let dial = Dial {
            peer: peer.name.clone().into(),
            peer_incarnation_known: peer.life,
            link: link.number,
            resume: link.link.resume_state(),
        };
        link.state = LinkState::Wired { slot };
        link.retry_ms = now_ms + link.link.reconnect_delay_ms(word(&random));
        let mut out = Vec::new();
        let dialer = Dialer::new(secret, me, dial, &random, now_ms, DEADLINE_MS_DEFAULT, &mut out);
        self.add_wire(slot, Stage::Dialing { dialer: Box::new(dialer), link: id }, out);
        true
    }

    /// Bytes came on a connection whose link is not up.
    pub(crate) fn shake(&mut self, slot: u32, bytes: &[u8], now_ms: u64, random: [u8; 32]) -> Step {
        let Some(wire) = self.wires.get_mut(&slot) else { return Step::Refused };
        match &mut wire.stage {
            Stage::Accepting(acceptor) => match acceptor.received(bytes, &mut wire.out) {
                Ok(AcceptorStep::More) => Step::Wait,
                Ok(AcceptorStep::Claimed(claim)) => {
                    let shard = claim.link % self.config.shards;
                    if shard == self.config.shard {
                        let step = self.admit(slot, now_ms, random);
                        // A dialer says no more until it is answered: these bytes were all the handshake's.
                        return if matches!(step, Step::Up { .. }) { Step::Up { consumed: bytes.len() } } else { step };
                    }
                    if let Stage::Accepting(acceptor) = std::mem::replace(&mut wire.stage, Stage::Ended) {
                        wire.stage = Stage::Claimed { acceptor, shard };
                    }
                    Step::HandOver { shard }
                }
                Err(error) => self.refused(slot, &error),
            },
            Stage::Dialing { dialer, link } => {
                let id = *link;
                match dialer.received(bytes, &mut wire.out) {
                    Ok(DialerStep::More) => Step::Wait,
                    Ok(DialerStep::Done { established, consumed }) => match self.later_life(id, &established) {
                        Some(error) => self.refused(slot, &error),
                        None => self.up(slot, id, &established, now_ms, consumed),
                    },
                    Err(error) => self.refused(slot, &error),
                }
            }
            // A dialer is silent until it has its answer, and an end is final.
            Stage::Claimed { .. } => self.refused(slot, &HandshakeError::OutOfTurn),
            Stage::Up { .. } | Stage::Ended => Step::Refused,
        }
    }

    /// Answers a claim to one of this shard's links.
    fn admit(&mut self, slot: u32, now_ms: u64, random: [u8; 32]) -> Step {
        let Some(Wire { stage: Stage::Accepting(acceptor), out, .. }) = self.wires.get_mut(&slot) else {
            return Step::Refused;
        };
        let Some(claim) = acceptor.claim().cloned() else { return self.refused(slot, &HandshakeError::OutOfTurn) };
        // It may have waited in a socket, or for its turn at another shard, while this node was fenced.
        if acceptor.incarnation() != self.life {
            let (name, known, incarnation) = (self.config.node.clone(), acceptor.incarnation(), self.life);
            let error = acceptor.refuse(HandshakeError::LaterIncarnation { name, known, incarnation }, out);
            return self.refused(slot, &error);
        }
        // A later life than the view has is not known yet: it is refused as unknown, comes again, and is known by then.
        let known = self.peers.iter().find(|peer| *peer.name == *claim.peer && peer.life >= claim.incarnation);
        let Some(peer) = known else {
            let name = claim.peer.strip_prefix(CALLER_MARK).unwrap_or(&claim.peer);
            if self.later.len() < LATER_MAX {
                self.later.push((name.into(), claim.incarnation));
            }
            let error = acceptor.refuse(HandshakeError::UnknownName { name: claim.peer }, out);
            return self.refused(slot, &error);
        };
        let links = &self.links;
        let number = |id: &&u32| links[**id as usize].as_ref().is_some_and(|link| link.number == claim.link);
        let Some(id) = peer.links.iter().find(number).copied() else {
            let links = peer.shards.max(self.config.shards.into()) as u16;
            let error = acceptor.refuse(HandshakeError::UnknownLink { link: claim.link, links }, out);
            return self.refused(slot, &error);
        };
        let Some(link) = self.links[id as usize].as_mut() else { return Step::Refused };
        if let LinkState::Wired { slot: before } = link.state {
            // The other side has given that one up.
            self.closing.push(before);
            link.link.disconnected();
            if let Some(wire) = self.wires.get_mut(&before) {
                wire.stage = Stage::Ended;
            }
        }
        link.state = LinkState::Down { retry_ms: u64::MAX };
        let Some(Wire { stage: Stage::Accepting(acceptor), out, .. }) = self.wires.get_mut(&slot) else {
            return Step::Refused;
        };
        let answer = link.link.answer(claim.resume, word(&random));
        match acceptor.admit(peer.life, answer, out) {
            Ok(established) => self.up(slot, id, &established, now_ms, 0),
            Err(error) => self.refused(slot, &error),
        }
    }

    /// Whether the node that was dialed is in a later life than the one its link is for. What the two would tell each other belongs to
    /// different nodes then; the control thread hears of it, and a new view brings a new link.
    fn later_life(&mut self, id: u32, established: &Established) -> Option<HandshakeError> {
        let node = self.links[id as usize].as_ref()?.peer;
        let peer = self.peers.iter().find(|peer| peer.key == node)?;
        let incarnation = established.peer_incarnation;
        if peer.life >= incarnation {
            return None;
        }
        self.later.push((peer.name.clone(), incarnation));
        Some(HandshakeError::LaterIncarnation { name: peer.name.clone().into(), known: peer.life, incarnation })
    }

    fn up(&mut self, slot: u32, id: u32, established: &Established, now_ms: u64, consumed: usize) -> Step {
        let Some(link) = self.links[id as usize].as_mut().filter(|link| !link.dead) else {
            self.end_wire(slot);
            return Step::Refused;
        };
        let streamed = link.link.has_streamed();
        let resumed = link.link.connected(now_ms, established.resume);
        let (node, number) = (link.peer, link.number);
        match resumed {
            Ok(resumed) => {
                link.state = LinkState::Wired { slot };
                (link.unreachable, link.given_up) = (false, false);
                if let Some(wire) = self.wires.get_mut(&slot) {
                    wire.stage = Stage::Up { link: id };
                }
                if resumed == Resumed::Anew && streamed {
                    tracing::warn!(
                        "link {number} to node {} begins anew: what was under way is sent again",
                        established.peer
                    );
                    self.restarted.push(node);
                    self.ended.push_back(id);
                }
            }
            Err(violation) => {
                self.ended.push_back(id);
                return self.refused(slot, &HandshakeError::Malformed(violation));
            }
        }
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == node) {
            peer.failing = None;
            peer.was_up = true;
            peer.told_ms = 0;
            if std::mem::take(&mut peer.passed_over) {
                self.restarted.push(node);
            }
        }
        tracing::debug!(
            "link {number} to node {}, incarnation {}, is up",
            established.peer,
            established.peer_incarnation
        );
        Step::Up { consumed }
    }

    /// A handshake has failed. What is to be sent may hold the refusal.
    fn refused(&mut self, slot: u32, error: &HandshakeError) -> Step {
        let label = error.label();
        *self.failed.entry(label).or_default() += 1;
        let link = match self.wires.get(&slot).map(|wire| &wire.stage) {
            Some(Stage::Dialing { link, .. }) => self.links[*link as usize].as_ref(),
            _ => None,
        };
        let peer = link.and_then(|link| self.peers.iter_mut().find(|peer| peer.key == link.peer));
        match peer {
            Some(peer) => {
                if peer.failing.replace(label) == Some(label) {
                    tracing::debug!("no link to node {}: {error}", peer.name);
                } else {
                    tracing::warn!("no link to node {} at {}: {error}", peer.name, peer.address);
                }
            }
            // A node that starts is refused until the view has it: no word for each try.
            None if matches!(error, HandshakeError::UnknownName { .. }) => {
                tracing::debug!("a peer was refused: {error}")
            }
            None => tracing::warn!("a peer on the mesh port was refused: {error}"),
        }
        self.end_wire(slot);
        Step::Refused
    }

    /// The connection says what it has to say and is closed.
    fn end_wire(&mut self, slot: u32) {
        let Some(wire) = self.wires.get_mut(&slot) else { return };
        if let Stage::Dialing { link, .. } | Stage::Up { link } = std::mem::replace(&mut wire.stage, Stage::Ended) {
            self.unwire(link, slot);
        }
    }

    fn unwire(&mut self, id: u32, slot: u32) {
        if let Some(link) = self.links[id as usize].as_mut()
            && link.state == (LinkState::Wired { slot })
        {
            link.link.disconnected();
            link.state = LinkState::Down { retry_ms: link.retry_ms };
        }
    }

    /// The connection is broken, or is being closed: whatever its link has goes to the next one.
    pub(crate) fn broken(&mut self, slot: u32, now_ms: u64, random: u64) {
        let Some(wire) = self.wires.get_mut(&slot) else { return };
        wire.out.clear();
        let id = match std::mem::replace(&mut wire.stage, Stage::Ended) {
            Stage::Dialing { link, .. } | Stage::Up { link } => link,
            Stage::Accepting(_) | Stage::Claimed { .. } | Stage::Ended => return,
        };
        self.unwire(id, slot);
        if let Some(link) = self.links[id as usize].as_mut() {
            let delay_ms = link.link.reconnect_delay_ms(random);
            // One that said goodbye does not come back under this incarnation; the view will tell.
            let leaves = link.link.peer_goodbye().is_some();
            link.state = LinkState::Down { retry_ms: now_ms + if leaves { RECONNECT_MS_MAX } else { delay_ms } };
        }
    }

    /// The slot is free.
    pub(crate) fn closed(&mut self, slot: u32) {
        self.wires.remove(&slot);
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

    /// The shard a connection is to be handed over to, when all of the handshake has been sent.
    pub(crate) fn claimed(&self, slot: u32) -> Option<u16> {
        match self.wires.get(&slot) {
            Some(Wire { stage: Stage::Claimed { shard, .. }, out, lent: Lent::Nothing }) if out.is_empty() => {
                Some(*shard)
            }
            _ => None,
        }
    }

    /// Whether a connection is to be handed over, now or when what it was given has been sent.
    pub(crate) fn is_claimed(&self, slot: u32) -> bool {
        self.wires.get(&slot).is_some_and(|wire| matches!(wire.stage, Stage::Claimed { .. }))
    }

    /// The machine that goes with the connection.
    pub(crate) fn take_claimed(&mut self, slot: u32) -> Option<Box<Acceptor>> {
        let wire = self.wires.get_mut(&slot)?;
        match std::mem::replace(&mut wire.stage, Stage::Ended) {
            Stage::Claimed { acceptor, .. } => Some(acceptor),
            other => {
                wire.stage = other;
                None
            }
        }
    }

    /// Puts it back: the other shard's mailbox was full.
    pub(crate) fn put_claimed(&mut self, slot: u32, acceptor: Box<Acceptor>, shard: u16) {
        if let Some(wire) = self.wires.get_mut(&slot) {
            wire.stage = Stage::Claimed { acceptor, shard };
        }
    }

    /// Whether the connection has nothing more to do than to be closed.
    pub(crate) fn is_over(&self, slot: u32) -> bool {
        match self.wires.get(&slot) {
            Some(wire) => matches!(wire.stage, Stage::Ended) && wire.out.is_empty() && wire.lent == Lent::Nothing,
            None => true,
        }
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
        let sending = self.links[id as usize].as_mut()?.link.take_send(now_ms)?;
        wire.lent = Lent::Link(id);
        Some(sending)
    }

    /// Takes the buffer of a send back, of which the kernel took `taken` bytes from `offset` on.
    pub(crate) fn sent(&mut self, slot: u32, mut buf: Vec<u8>, offset: usize, taken: usize) {
        let Some(wire) = self.wires.get_mut(&slot) else { return };
        match std::mem::replace(&mut wire.lent, Lent::Nothing) {
            Lent::Nothing => {}
            Lent::Out => {
                // Frames of a handshake that was cut in two by a full socket buffer.
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

    /// Queues a record for a shard of another node. Returns the connection that will carry it, if there is one.
    ///
    /// # Errors
    /// [`FarError`]; what becomes of the record is the caller's to decide and to count.
    #[inline]
    pub(crate) fn queue(&mut self, node: NodeKey, shard: u16, record: &Record<'_>) -> Result<Option<u32>, FarError> {
        let peer = self.peers.iter().find(|peer| peer.key == node).ok_or(FarError::Unknown)?;
        let at = peer.by_shard.get(usize::from(shard)).ok_or(FarError::Unknown)?;
        let id = peer.links[usize::from(*at)];
        let places = self.links.len().max(1);
        let link = self.links[id as usize].as_mut().ok_or(FarError::Unknown)?;
        if !record.is_control() {
            if link.unreachable {
                return Err(FarError::Unreachable);
            }
            let len = record.encoded_len();
            let half = self.config.bytes_max / 2;
            if self.bytes + len > half && link.link.bytes() + len > half / places {
                return Err(FarError::Full);
            }
        }
        link.link.queue(record).map_err(|full| match full {
            LinkFull::Bytes => FarError::Full,
            LinkFull::RecordTooLong => FarError::TooLong,
        })?;
        let held = link.link.bytes();
        self.bytes = self.bytes + held - link.counted;
        link.counted = held;
        Ok(match link.state {
            LinkState::Wired { slot } => Some(slot),
            LinkState::Down { .. } | LinkState::Dialing => None,
        })
    }

    /// A shard of a node to which there is a connection now.
    pub(crate) fn shard_in_touch(&self, node: NodeKey) -> Option<u16> {
        let peer = self.peers.iter().find(|peer| peer.key == node)?;
        let is_wired = |at: &u16| {
            let link = self.links[peer.links[usize::from(*at)] as usize].as_ref();
            link.is_some_and(|link| link.link.is_connected())
        };
        peer.by_shard.iter().position(is_wired).map(|shard| shard as u16)
    }

    /// Whether the link to a shard of a node has been down for long.
    pub(crate) fn is_unreachable(&self, node: NodeKey, shard: u16) -> bool {
        let peer = self.peers.iter().find(|peer| peer.key == node);
        let at = peer.and_then(|peer| Some(peer.links[usize::from(*peer.by_shard.get(usize::from(shard))?)]));
        at.and_then(|id| self.links[id as usize].as_ref()).is_some_and(|link| link.unreachable)
    }

    /// Whether no shard of a node has been reached for long.
    pub(crate) fn is_silent(&self, node: NodeKey) -> bool {
        let Some(peer) = self.peers.iter().find(|peer| peer.key == node) else { return true };
        let mut links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
        links.all(|link| link.unreachable)
    }

    /// A walk passes over this node, which is unreachable: the node is told all when there is a link to it again.
    pub(crate) fn pass_over(&mut self, node: NodeKey) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == node) {
            peer.passed_over = true;
        }
    }

    /// Whether a node's links have less than half of what they may hold, so that the pace of what can wait need not be slowed.
    pub(crate) fn is_easy(&self, node: NodeKey) -> bool {
        let Some(peer) = self.peers.iter().find(|peer| peer.key == node) else { return true };
        let mut links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
        links.all(|link| link.link.bytes() <= self.config.link.bytes_max / 2)
    }

    fn recount(&mut self, id: u32) {
        if let Some(link) = self.links[id as usize].as_mut() {
            let held = link.link.bytes();
            self.bytes = self.bytes + held - link.counted;
            link.counted = held;
        }
    }

    /// Connections whose time is over: a handshake that took too long, a peer that is silent.
    pub(crate) fn expired(&mut self, now_ms: u64) -> Vec<u32> {
        let mut expired = Vec::new();
        let mut silent = Vec::new();
        for (slot, wire) in &self.wires {
            match &wire.stage {
                Stage::Accepting(acceptor) | Stage::Claimed { acceptor, .. } => {
                    if let Some(error) = acceptor.expired(now_ms) {
                        silent.push((*slot, error));
                    }
                }
                Stage::Dialing { dialer, .. } => {
                    if let Some(error) = dialer.expired(now_ms) {
                        silent.push((*slot, error));
                    }
                }
                Stage::Up { link } => {
                    if self.links[*link as usize].as_ref().is_none_or(|link| link.link.is_dead(now_ms)) {
                        tracing::warn!("a link is closed: nothing has come from its peer for 3 s");
                        *self.failed.entry("dead").or_default() += 1;
                        expired.push(*slot);
                    }
                }
                Stage::Ended => {}
            }
        }
        silent.sort_unstable_by_key(|(slot, _)| *slot);
        for (slot, error) in silent {
            self.refused(slot, &error);
            expired.push(slot);
        }
        expired.sort_unstable();
        expired
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

    /// Records that were queued for a node and will not be confirmed, oldest first.
    pub(crate) fn take_given_back(&mut self) -> Vec<GivenBack> {
        let mut back = Vec::new();
        for id in std::mem::take(&mut self.ended) {
            let Some(link) = self.links[id as usize].as_mut() else { continue };
            let node = link.peer;
            link.link.take_unconfirmed(|record, maybe_received| {
                let mut bytes = Vec::with_capacity(record.encoded_len());
                record.encode(&mut bytes);
                back.push(GivenBack { node, maybe_received, bytes });
            });
            let (dead, lent) = (link.dead, link.link.is_lent());
            self.recount(id);
            if lent {
                // The ring has a buffer of it still.
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
        !self.ended.is_empty()
    }

    /// What the control thread should know, each half a second or when it changes. Finds out which links are down for long.
    pub(crate) fn tidings(&mut self, now_ms: u64) -> Vec<Tiding> {
        for (id, link) in self.links.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            if link.link.is_connected() {
                link.down_ms = None;
            } else {
                link.down_ms.get_or_insert(now_ms);
            }
            let down_for = |ms| link.down_ms.is_some_and(|since_ms| now_ms >= since_ms + ms);
            let (unreachable, given_up) = (down_for(UNREACHABLE_MS), down_for(UNREACHABLE_MS + self.config.lease_ms));
            if unreachable && !std::mem::replace(&mut link.unreachable, unreachable) {
                // Its senders hear at once that it failed, and it is not sent when the peer is back.
                link.link.withdraw_unsent();
                self.ended.push_back(id as u32);
            }
            if given_up && !std::mem::replace(&mut link.given_up, given_up) && link.link.has_streamed() {
                // The peer has had the rest, or never will: it may not come again when its senders have been told that it failed.
                link.link.end_stream();
                self.ended.push_back(id as u32);
            }
        }
        let later = self.later.drain(..).map(|(node, incarnation)| Tiding::Heard { node, incarnation });
        let mut tidings: Vec<Tiding> = later.collect();
        for peer in &mut self.peers {
            let mut links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
            let up = links.any(|link| link.link.is_connected());
            let (node, incarnation) = (peer.name.clone(), peer.incarnation);
            if up && now_ms >= peer.told_ms + HEARTBEAT_MS {
                peer.told_ms = now_ms;
                tidings.push(Tiding::Heard { node, incarnation });
            } else if !up && std::mem::take(&mut peer.was_up) {
                tidings.push(Tiding::Lost { node, incarnation });
            }
        }
        tidings
    }

    /// Says goodbye on all links once everything queued has been sent.
    pub(crate) fn say_goodbye(&mut self) {
        for link in self.links.iter_mut().flatten() {
            link.link.say_goodbye(goodbye::SHUTDOWN);
        }
    }

    /// Whether goodbye has been said on all links that are up.
    pub(crate) fn has_left(&self) -> bool {
        self.links.iter().flatten().all(|link| link.link.has_left())
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

    /// Links of this shard, and those that are up.
    pub(crate) fn link_counts(&self) -> (u64, u64) {
        let links = self.links.iter().flatten().filter(|link| !link.dead);
        let up = links.clone().filter(|link| link.link.is_connected()).count();
        (links.count() as u64, up as u64)
    }

    /// Bytes all links hold.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Handshakes and links that failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The numbers of all links of this shard, also of those that are no more. The round trip is the longest.
    pub(crate) fn stats(&self) -> LinkStats {
        let mut sum = self.past;
        sum.rtt_us = 0;
        for link in self.links.iter().flatten() {
            add_stats(&mut sum, &link.link.stats());
        }
        sum
    }
}

fn add_stats(sum: &mut LinkStats, one: &LinkStats) {
    sum.records_out += one.records_out;
    sum.bytes_out += one.bytes_out;
    sum.records_in += one.records_in;
    sum.bytes_in += one.bytes_in;
    sum.resent += one.resent;
    sum.refused += one.refused;
    sum.duplicates += one.duplicates;
    sum.unknown += one.unknown;
    sum.given_back += one.given_back;
    sum.reconnects += one.reconnects;
    sum.rtt_us = sum.rtt_us.max(one.rtt_us);
    sum.times.add(&one.times);
}

/// The first eight of some random bytes.
fn word(random: &[u8; 32]) -> u64 {
    random[..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
