//! How the links between two nodes are spread over their shards.
//!
//! Both sides reckon this from what the view says of the two, so nothing of it has to be agreed on in the handshake:
//! how many links there are is the same on both sides, and where a link is on a side is that side's own affair.
//!
//! - Where no side has more shards than links are wanted, or one does not know of the setting, each shard has a link of
//!   its own: link k joins shard k mod S of either side.
//! - Where there are fewer links than shards, link k is on the k-th shard from one on that the peer's key gives, so
//!   that the links to many peers are spread over all shards. Every shard says all it has for that peer over one and
//!   the same link, so the order between any two shards is that of the link; a shard that has none hands what it has to
//!   the one that has it, its *carrier*.

use crate::ids::NodeKey;

/// What a node's record says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub(crate) shards: u32,
    /// Most links it keeps to another node; 0 for a version that does not tell.
    pub(crate) links_max: u16,
}

/// How many links two nodes have, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// As many as the one with more shards has shards: link k joins shard k mod S of either side.
    Each { links: u32 },
    /// So many, fewer than one of the two has shards.
    Few { links: u16 },
}

impl Spread {
    /// The same whichever of the two is `own`.
    pub(crate) fn between(own: Side, other: Side) -> Spread {
        let most = own.shards.max(other.shards).max(1);
        let few = own.links_max.min(other.links_max);
        if few == 0 || most <= u32::from(few) {
            return Spread::Each { links: most };
        }
        let links = u32::from(few).min(own.shards).min(other.shards).max(1);
        Spread::Few { links: links as u16 }
    }

    /// Links of the two nodes together.
    pub(crate) fn links(self) -> u32 {
        match self {
            Spread::Each { links } => links,
            Spread::Few { links } => links.into(),
        }
    }

    /// The links that a shard of a node with `shards` of them has to the peer of that key.
    pub(crate) fn numbers(self, shard: u16, shards: u16, peer: NodeKey) -> impl Iterator<Item = u16> + use<> {
        let shards = shards.max(1);
        let (first, step, end) = match self {
            Spread::Each { links } => (u32::from(shard), usize::from(shards), links),
            Spread::Few { links } => {
                let at = place(shard, shards, peer);
                (at.into(), usize::MAX, if at < links { u32::from(at) + 1 } else { 0 })
            }
        };
        (first..end).step_by(step).map(|number| number as u16)
    }

    /// The shard of a node with `shards` of them that has a link to the peer of that key; `None` for a number that no
    /// link has.
    pub(crate) fn shard_of(self, number: u16, shards: u16, peer: NodeKey) -> Option<u16> {
        let shards = u64::from(shards.max(1));
        match self {
            Spread::Each { links } => (u32::from(number) < links).then_some((u64::from(number) % shards) as u16),
            Spread::Few { links } => {
                (number < links).then_some(((peer.0 % shards + u64::from(number)) % shards) as u16)
            }
        }
    }

    /// The shard that a shard without links hands to what it has for the peer; `None` for one that has links.
    pub(crate) fn carrier(self, shard: u16, shards: u16, peer: NodeKey) -> Option<u16> {
        let Spread::Few { links } = self else { return None };
        let at = place(shard, shards.max(1), peer);
        if at < links {
            return None;
        }
        self.shard_of(at % links, shards, peer)
    }
}

/// How far a shard is behind the one that has the first link.
fn place(shard: u16, shards: u16, peer: NodeKey) -> u16 {
    let shards = u64::from(shards);
    ((u64::from(shard) + shards - peer.0 % shards) % shards) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::node_key;

    fn side(shards: u32, links_max: u16) -> Side {
        Side { shards, links_max }
    }

    #[test]
    fn both_sides_reckon_the_same_number() {
        for (own, other, links) in [
            (side(64, 4), side(64, 4), Spread::Few { links: 4 }),
            (side(64, 4), side(64, 2), Spread::Few { links: 2 }),
            (side(64, 4), side(3, 8), Spread::Few { links: 3 }),
            (side(64, 64), side(64, 64), Spread::Each { links: 64 }),
            (side(4, 4), side(4, 4), Spread::Each { links: 4 }),
            (side(4, 4), side(2, 4), Spread::Each { links: 4 }),
            (side(5, 4), side(1, 4), Spread::Few { links: 1 }),
            (side(64, 4), side(64, 0), Spread::Each { links: 64 }),
            (side(0, 0), side(0, 0), Spread::Each { links: 1 }),
        ] {
            assert_eq!((Spread::between(own, other), Spread::between(other, own)), (links, links), "{own:?} {other:?}");
        }
    }

    #[test]
    fn each_link_is_on_one_shard_and_each_shard_has_or_knows_one() {
        for shards in 1..=9_u16 {
            for few in 0..=9_u16 {
                let spread = Spread::between(side(shards.into(), few), side(7, few));
                for peer in (0..40).map(NodeKey) {
                    let mut found: Vec<(u16, u16)> = Vec::new();
                    for shard in 0..shards {
                        let own: Vec<u16> = spread.numbers(shard, shards, peer).collect();
                        found.extend(own.iter().map(|number| (*number, shard)));
                        match spread.carrier(shard, shards, peer) {
                            None => assert!(!own.is_empty(), "shard {shard} of {shards}, {spread:?}"),
                            Some(carrier) => {
                                assert!(own.is_empty() && spread.carrier(carrier, shards, peer).is_none());
                            }
                        }
                    }
                    found.sort_unstable();
                    let all = (0..spread.links() as u16).map(|number| (number, spread.shard_of(number, shards, peer)));
                    let all: Vec<(u16, u16)> = all.map(|(number, shard)| (number, shard.unwrap())).collect();
                    assert_eq!(found, all, "{shards} shards, {spread:?}");
                    assert_eq!(spread.shard_of(spread.links() as u16, shards, peer), None);
                }
            }
        }
    }

    /// 99 peers with four links each are 396 for 64 shards: 6.2 a shard.
    #[test]
    fn the_links_to_many_peers_are_spread_over_all_shards() {
        let spread = Spread::between(side(64, 4), side(64, 4));
        let peers = (1..100).map(|number| NodeKey(node_key(&format!("node-{number:03}"), number)));
        let mut counts = [0; 64];
        for peer in peers {
            (0..64).for_each(|shard| counts[usize::from(shard)] += spread.numbers(shard, 64, peer).count());
        }
        assert_eq!(counts.iter().sum::<usize>(), 99 * 4);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*most <= 18, "{least} to {most}: {counts:?}");
    }
}
