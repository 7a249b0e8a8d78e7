//! Which nodes there are links to: what a view begins and ends.

use super::carrier::{Carrier, word};
use super::{LINKS_MAX, LinkState, Mesh, Peer, PeerLink};
use crate::directory::{Member, Routing};
use crate::ids::NodeKey;
use crate::mesh::link::{Link, LinkLimits};
use crate::mesh::spread::{Side, Spread};
use std::net::SocketAddr;

impl Mesh {
    /// There is a new view, in which this node has that life: links to nodes that are known no more end, those to new
    /// ones begin.
    pub(crate) fn set_view(&mut self, life: u64, routing: &Routing, now_ms: u64) {
        let reborn = std::mem::replace(&mut self.life, life) != life;
        for mut peer in std::mem::take(&mut self.peers) {
            let same =
                |member: &Member| member.key == peer.key && member.shards == peer.shards && member.mesh == peer.address;
            let known = routing.others().find(|member| same(member)).filter(|_| !reborn);
            if let Some(member) = known {
                peer.incarnation = member.incarnation;
                self.peers.push(peer);
            } else {
                peer.links.iter().for_each(|id| self.end_link(*id));
                if let Some(carrier) = peer.carrier {
                    carrier.end(peer.key, &mut self.held_back);
                }
            }
        }
        let left_out_before = std::mem::take(&mut self.left_out);
        for member in routing.others() {
            // A record under this node's own name is an earlier incarnation of it, or a thief that the lease deals
            // with.
            if *member.name != *self.config.node && !self.peers.iter().any(|peer| peer.key == member.key) {
                let was_left_out = left_out_before.iter().any(|(before, _)| *before == member.key);
                self.add_peer(member, was_left_out, now_ms);
            }
        }
        self.places = self.peers.iter().map(|peer| peer.key).zip(0..).collect();
        self.words_due = true;
        self.reckon_budget();
        for (key, links) in &self.left_out {
            let Some(member) =
                routing.member(*key).filter(|_| !left_out_before.iter().any(|(before, _)| before == key))
            else {
                continue;
            };
            tracing::error!(
                "shard {}: no link to node {}, which takes {links} of the {LINKS_MAX} mesh links a shard has places \
                 for, and those are taken: give all nodes about as many --shards, or have fewer nodes",
                self.config.shard,
                member.name
            );
        }
    }

    /// The shards of a node, in one set for each link that leads to some of them; see
    /// [`Record::SettledShards`](crate::mesh::wire::Record::SettledShards).
    pub(crate) fn shard_sets(&self, node: NodeKey) -> Vec<Vec<u8>> {
        let Some(peer) = self.peer(node) else { return Vec::new() };
        // A carrier's link leads to all of them.
        let links = peer.links.len().max(usize::from(peer.carrier.is_some()));
        let mut sets = vec![vec![0; peer.by_shard.len().div_ceil(8)]; links];
        for (shard, link) in peer.by_shard.iter().enumerate() {
            sets[usize::from(*link)][shard / 8] |= 1 << (shard % 8);
        }
        sets
    }

    /// Whether a node of the view has no links for want of places.
    pub(crate) fn is_left_out(&self, node: NodeKey) -> bool {
        self.left_out.iter().any(|(key, _)| *key == node)
    }

    /// Links there would be more of, were there places for them.
    pub(crate) fn links_missing(&self) -> usize {
        self.left_out.iter().map(|(_, links)| links).sum()
    }

    fn add_peer(&mut self, member: &Member, was_left_out: bool, now_ms: u64) {
        let (shard, own_shards, shards) = (self.config.shard, self.config.shards, member.shards);
        let own = Side { shards: own_shards.into(), links_max: self.config.links_max };
        let spread = Spread::between(own, Side { shards, links_max: member.mesh_links });
        let mut links = Vec::new();
        let numbers: Vec<u16> = spread.numbers(shard, own_shards, member.key).collect();
        let needed = numbers.len();
        if self.links.iter().flatten().filter(|link| !link.dead).count() + needed > LINKS_MAX {
            if matches!(spread, Spread::Few { .. }) {
                self.words.push((member.key, word::NO_PLACE));
            }
            return self.left_out.push((member.key, needed));
        }
        let limits = self.link_limits(spread);
        let shares = |other: u16| other == shard || spread.carrier(other, own_shards, member.key) == Some(shard);
        let sharers = (0..own_shards).filter(|other| shares(*other)).count() as u16;
        for number in numbers.iter().copied() {
            let link = PeerLink {
                peer: member.key,
                number,
                link: Link::new(limits),
                state: LinkState::Down { retry_ms: now_ms },
                counted: 0,
                retry_ms: now_ms,
                dead: false,
                down_ms: Some(now_ms),
                unreachable: false,
                given_up: false,
                anew: false,
                easy: true,
                sharers,
                gathered: None,
            };
            let id = self.links.iter().position(Option::is_none).unwrap_or_else(|| {
                self.links.push(None);
                self.links.len() - 1
            });
            self.links[id] = Some(link);
            links.push(id as u32);
        }
        // A shard with a link of a few says all over that one.
        let by_shard = (0..shards).map(|shard| {
            let ends_there = numbers.iter().position(|number| u32::from(*number) % shards == shard);
            ends_there.unwrap_or(shard as usize % numbers.len().max(1)) as u16
        });
        let carrier = spread.carrier(shard, own_shards, member.key).map(Carrier::new);
        if let Some(carrier) = &carrier {
            // It may know of that node already, and have told of it before this shard could understand.
            self.asks.push((carrier.shard(), member.key));
        }
        let dials = *self.config.node < *member.name;
        let address: Result<SocketAddr, _> = member.mesh.parse();
        let host = address.as_ref().ok().map(|address| address.ip().to_canonical());
        let dial = match address {
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
            name: (*member.name).into(),
            life: member.life,
            incarnation: member.incarnation,
            address: member.mesh.clone(),
            host,
            dial,
            shards,
            protocol: member.protocol,
            spread,
            carrier,
            told: None,
            by_shard: by_shard.collect(),
            links,
            was_up: false,
            came_up: false,
            // One for which there was no place before knows nothing of what walks have told.
            passed_over: was_left_out,
            failing: None,
        });
    }

    /// What a link may hold: one that several shards share as much as they might with one each.
    fn link_limits(&self, spread: Spread) -> LinkLimits {
        let LinkLimits { bytes_max, reserve_bytes } = self.config.link;
        let Spread::Few { links } = spread else { return self.config.link };
        let sharers = usize::from(self.config.shards.max(1).div_ceil(links.max(1)));
        LinkLimits { bytes_max: bytes_max * sharers, reserve_bytes: reserve_bytes * sharers }
    }

    /// Where shards share links, those that have some of them may hold what the others do not need: all but what may
    /// wait at those for room in their mailboxes.
    fn reckon_budget(&mut self) {
        self.carries = self.peers.iter().any(Peer::is_shared);
        self.has_carriers = self.peers.iter().any(|peer| peer.carrier.is_some());
        let shared = self.peers.iter().any(|peer| matches!(peer.spread, Spread::Few { .. }));
        let all: usize = self.peers.iter().map(|peer| peer.spread.links() as usize).sum();
        let own: usize = self.peers.iter().map(|peer| peer.links.len()).sum();
        let waiting = 2 * self.config.link.reserve_bytes;
        let node = self.config.bytes_max.saturating_sub(waiting) as u128 * u128::from(self.config.shards);
        self.budget = match shared {
            true => (node * own as u128 / all.max(1) as u128) as usize,
            false => self.config.bytes_max,
        };
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
}

/// A node, as far as it matters for how many links there are to it.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub(crate) key: NodeKey,
    pub(crate) side: Side,
}

/// The most links that a shard of `at` would have to all `others`; `Err` if it has not so many places.
pub fn links_needed(at: Side, others: impl Iterator<Item = Counted>) -> Result<usize, usize> {
    let shards = at.shards.clamp(1, u16::MAX.into()) as u16;
    let mut counts = vec![0; usize::from(shards)];
    for Counted { key, side } in others {
        let spread = Spread::between(at, side);
        match spread {
            // Shard 0 has at least as many of them as any other.
            Spread::Each { links } => counts.iter_mut().zip(0..).for_each(|(count, shard)| {
                *count += (links.saturating_sub(shard) as usize).div_ceil(usize::from(shards));
            }),
            Spread::Few { links } => (0..links)
                .filter_map(|number| spread.shard_of(number, shards, key))
                .for_each(|shard| counts[usize::from(shard)] += 1),
        }
    }
    let needed = counts.into_iter().max().unwrap_or(0);
    if needed <= LINKS_MAX { Ok(needed) } else { Err(needed) }
}
