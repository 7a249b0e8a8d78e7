//! Which nodes there are links to: what a view begins and ends.

use super::{LINKS_MAX, LinkState, Mesh, Peer, PeerLink};
use crate::directory::{Member, NodeKey, Routing};
use crate::mesh::link::Link;
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
        for (key, links) in &self.left_out {
            let Some(member) =
                routing.member(*key).filter(|_| !left_out_before.iter().any(|(before, _)| before == key))
            else {
                continue;
            };
            tracing::error!(
                "shard {}: no link to node {}, which takes {links} of the {LINKS_MAX} mesh links a shard has places for, and those are taken: \
                 give all nodes about as many --shards, or have fewer nodes",
                self.config.shard,
                member.name
            );
        }
    }

    /// The shards of a node, in one set for each link that leads to some of them; see
    /// [`Record::SettledShards`](crate::mesh::wire::Record::SettledShards).
    pub(crate) fn shard_sets(&self, node: NodeKey) -> Vec<Vec<u8>> {
        let Some(peer) = self.peers.iter().find(|peer| peer.key == node) else { return Vec::new() };
        let mut sets = vec![vec![0; peer.by_shard.len().div_ceil(8)]; peer.links.len()];
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
        let (own_shards, shards) = (u32::from(self.config.shards), member.shards);
        let needed = links_between(own_shards, shards);
        if self.links.iter().flatten().filter(|link| !link.dead).count() + needed > LINKS_MAX {
            return self.left_out.push((member.key, needed));
        }
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
            by_shard: by_shard.collect(),
            links,
            was_up: false,
            came_up: false,
            // One for which there was no place before knows nothing of what walks have told.
            passed_over: was_left_out,
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
}

/// How many links a shard of a node has to another node.
fn links_between(own_shards: u32, shards: u32) -> usize {
    own_shards.max(shards).div_ceil(own_shards.max(1)) as usize
}

/// Of nodes with so many shards, the links that a shard of a node with `own_shards` would have to all of them; `Err` if
/// it has not so many places.
pub(crate) fn links_needed(own_shards: u32, others: impl Iterator<Item = u32>) -> Result<usize, usize> {
    let needed = others.map(|shards| links_between(own_shards, shards)).sum();
    if needed <= LINKS_MAX { Ok(needed) } else { Err(needed) }
}
