//! Which nodes there are links to: what a view begins and ends.

use super::{LinkState, Mesh, Peer, PeerLink};
use crate::directory::{Member, Routing};
use crate::mesh::link::Link;

impl Mesh {
    /// There is a new view, in which this node has that life: links to nodes that are known no more end, those to new ones
    /// begin.
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
        for member in routing.others() {
            // A record under this node's own name is an earlier incarnation of it, or a thief that the lease deals with.
            if *member.name != *self.config.node && !self.peers.iter().any(|peer| peer.key == member.key) {
                self.add_peer(member, now_ms);
            }
        }
    }

    fn add_peer(&mut self, member: &Member, now_ms: u64) {
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
}
