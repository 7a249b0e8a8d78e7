//! Connections from their dial or accept to a link that is up, and to their end.

use super::{CALLER_MARK, CONNECTIONS_MAX, LATER_MAX, Lent, LinkState, Mesh, MeshConfig, Peer, Stage, Step, Wire};
use crate::io::SERVER_DIAL;
use crate::mesh::handshake::{
    Acceptor, AcceptorStep, Claim, DEADLINE_MS_DEFAULT, Dial, Dialer, DialerStep, Established, HandshakeError,
};
use crate::mesh::link::{RECONNECT_MS_MAX, Resumed};
use crate::mesh::wire::NONCE_BYTES;
use std::net::{IpAddr, SocketAddr};

impl Mesh {
    /// A connection was accepted, from that address. False: there is no place for it, and it is to be closed.
    pub(crate) fn accepted(&mut self, slot: u32, from: Option<IpAddr>, now_ms: u64, nonce: [u8; NONCE_BYTES]) -> bool {
        if self.wires.len() >= CONNECTIONS_MAX as usize || !self.make_place(from) {
            *self.failed.entry("too_many").or_default() += 1;
            return false;
        }
        let (known, me) = (self.config.secrets.known(), self.identity());
        let acceptor = Acceptor::new(known, me, nonce, now_ms, DEADLINE_MS_DEFAULT);
        self.add_wire(slot, Stage::Accepting(Box::new(acceptor)), Vec::new(), from);
        true
    }

    /// A connection that proved itself at another shard has come to this one.
    pub(crate) fn adopted(&mut self, slot: u32, acceptor: Box<Acceptor>, now_ms: u64, random: [u8; 32]) -> Step {
        self.add_wire(slot, Stage::Accepting(acceptor), Vec::new(), None);
        self.admit(slot, now_ms, random)
    }

    fn add_wire(&mut self, slot: u32, stage: Stage, out: Vec<u8>, from: Option<IpAddr>) {
        self.came += 1;
        let (lent, sealed, came) = (Lent::Nothing, Vec::new(), self.came);
        self.wires.insert(slot, Wire { stage, out, sealed, lent, sealing: None, bulk: false, from, came });
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
                    // The upper half is that of servers of services.
                    self.next_token = self.next_token.wrapping_add(1) & (SERVER_DIAL - 1);
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
        let (secret, me) = (self.config.secrets.first(), self.identity());
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
            peer: (*peer.name).to_owned(),
            peer_incarnation_known: peer.life,
            link: link.number,
            resume: link.link.resume_state(),
        };
        link.state = LinkState::Wired { slot };
        link.retry_ms = now_ms + link.link.reconnect_delay_ms(word(&random));
        let mut out = Vec::new();
        let dialer = Dialer::new(secret, me, dial, &random, now_ms, DEADLINE_MS_DEFAULT, &mut out);
        self.add_wire(slot, Stage::Dialing { dialer: Box::new(dialer), link: id }, out, None);
        true
    }

    /// Bytes came on a connection whose link is not up.
    pub(crate) fn shake(&mut self, slot: u32, bytes: &[u8], now_ms: u64, random: [u8; 32]) -> Step {
        let Some(wire) = self.wires.get_mut(&slot) else { return Step::Refused };
        match &mut wire.stage {
            Stage::Accepting(acceptor) => match acceptor.received(bytes, &mut wire.out) {
                Ok(AcceptorStep::More) => Step::Wait,
                Ok(AcceptorStep::Claimed(claim)) => {
                    let shard = shard_for(&self.peers, &self.config, &claim).unwrap_or(claim.link % self.config.shards);
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
                    Ok(DialerStep::Done { established, consumed }) => {
                        let sealing = dialer.sealing();
                        let sealed = sealing.map(|sealing| wire.sealing = sealing);
                        match self.later_life(id, &established).map_or(sealed, Err) {
                            Ok(()) => self.up(slot, id, &established, now_ms, consumed),
                            Err(error) => self.refused(slot, &error),
                        }
                    }
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
            let name = name.to_owned();
            let error = acceptor.refuse(HandshakeError::UnknownName { name: claim.peer }, out);
            self.note_later(&name, claim.incarnation);
            return self.refused(slot, &error);
        };
        let target = peer.spread.shard_of(claim.link, self.config.shards, peer.key);
        if let Some(shard) = target.filter(|shard| *shard != self.config.shard) {
            // The shard that accepted it did not know that node, and could not tell where the link is.
            let Some(wire) = self.wires.get_mut(&slot) else { return Step::Refused };
            if let Stage::Accepting(acceptor) = std::mem::replace(&mut wire.stage, Stage::Ended) {
                wire.stage = Stage::Claimed { acceptor, shard };
            }
            return Step::HandOver { shard };
        }
        let links = &self.links;
        let number = |id: &&u32| links[**id as usize].as_ref().is_some_and(|link| link.number == claim.link);
        let Some(id) = peer.links.iter().find(number).copied() else {
            let links = peer.spread.links() as u16;
            let error = acceptor.refuse(HandshakeError::UnknownLink { link: claim.link, links }, out);
            return self.refused(slot, &error);
        };
        let Some(link) = self.links[id as usize].as_mut() else { return Step::Refused };
        if let LinkState::Wired { slot: before } = link.state {
            // The other side has given that one up.
            self.closing.push(before);
            self.words_due = true;
            link.link.disconnected();
            if let Some(wire) = self.wires.get_mut(&before) {
                wire.stage = Stage::Ended;
            }
        }
        link.state = LinkState::Down { retry_ms: u64::MAX };
        let Some(Wire { stage: Stage::Accepting(acceptor), out, sealing, .. }) = self.wires.get_mut(&slot) else {
            return Step::Refused;
        };
        let answer = link.link.answer(claim.resume, word(&random));
        // Where there are no keys nothing is admitted either.
        let admitted = acceptor.sealing().and_then(|keys| {
            *sealing = keys;
            acceptor.admit(peer.life, answer, out)
        });
        match admitted {
            Ok(established) => self.up(slot, id, &established, now_ms, 0),
            Err(error) => self.refused(slot, &error),
        }
    }

    /// Whether the node that was dialed is in a later life than the one its link is for. What the two would tell each
    /// other belongs to different nodes then; the control thread hears of it, and a new view brings a new link.
    fn later_life(&mut self, id: u32, established: &Established) -> Option<HandshakeError> {
        let node = self.links[id as usize].as_ref()?.peer;
        let peer = self.peers.iter().find(|peer| peer.key == node)?;
        let incarnation = established.peer_incarnation;
        if peer.life >= incarnation {
            return None;
        }
        let (name, known) = (peer.name.clone(), peer.life);
        self.note_later(&name, incarnation);
        Some(HandshakeError::LaterIncarnation { name: (*name).to_owned(), known, incarnation })
    }

    /// The control thread is to hear of a node, or of a life of it, that no view has told of.
    fn note_later(&mut self, name: &str, incarnation: u64) {
        if let Some((_, known)) = self.later.iter_mut().find(|(known, _)| **known == *name) {
            *known = incarnation.max(*known);
        } else if self.later.len() < LATER_MAX {
            self.later.push((name.into(), incarnation));
        } else {
            self.later_dropped += 1;
        }
    }

    fn up(&mut self, slot: u32, id: u32, established: &Established, now_ms: u64, consumed: usize) -> Step {
        let Some(link) = self.links[id as usize].as_mut().filter(|link| !link.dead) else {
            self.end_wire(slot);
            return Step::Refused;
        };
        self.words_due = true;
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
                    link.anew = true;
                    // All is told again, and said.
                    link.gathered = None;
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
            peer.came_up = true;
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
    pub(super) fn refused(&mut self, slot: u32, error: &HandshakeError) -> Step {
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
            // A node that starts is refused until the view has it: no word for each try. Nor for each stranger that
            // says nothing.
            None if matches!(
                error,
                HandshakeError::UnknownName { .. } | HandshakeError::Silent { .. } | HandshakeError::GaveWay
            ) =>
            {
                tracing::debug!("a peer was refused: {error}")
            }
            None => tracing::warn!("a peer on the mesh port was refused: {error}"),
        }
        self.end_wire(slot);
        Step::Refused
    }

    /// The connection says what it has to say and is closed.
    pub(super) fn end_wire(&mut self, slot: u32) {
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
            self.words_due = true;
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

    /// The shard a connection is to be handed over to, when all of the handshake has been sent.
    pub(crate) fn claimed(&self, slot: u32) -> Option<u16> {
        match self.wires.get(&slot) {
            Some(Wire { stage: Stage::Claimed { shard, .. }, out, lent: Lent::Nothing, .. }) if out.is_empty() => {
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

    /// Connections whose time is over: a handshake that took too long, a peer that is silent.
    pub(crate) fn expired(&mut self, now_ms: u64) -> Vec<u32> {
        let mut expired = Vec::new();
        let mut silent = Vec::new();
        for (slot, wire) in &mut self.wires {
            match &mut wire.stage {
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
}

/// The shard that has the link a dialer asks for, if this one knows that node and link.
fn shard_for(peers: &[Peer], config: &MeshConfig, claim: &Claim) -> Option<u16> {
    let peer = peers.iter().find(|peer| *peer.name == *claim.peer && peer.life >= claim.incarnation)?;
    peer.spread.shard_of(claim.link, config.shards, peer.key)
}

/// The first eight of some random bytes.
fn word(random: &[u8; 32]) -> u64 {
    random[..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
