//! What the shards know of their links to other nodes, put together for people and metrics.

use crate::mesh_news::LinkNews;
use std::collections::BTreeMap;
use std::sync::Arc;
use trunkline_router::api::PeerLinks;

/// The latest words of all shards.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By shard, what it said of each node.
    shards: BTreeMap<u16, BTreeMap<Arc<str>, LinkNews>>,
}

impl Links {
    /// A shard has news: of all nodes, or of those of which it has changed.
    pub(super) fn told(&mut self, shard: u16, all: bool, news: &[LinkNews]) {
        let known = self.shards.entry(shard).or_default();
        if all {
            known.clear();
        }
        // What has no links was heard of by a call, and is no peer.
        let links = news.iter().filter(|link| link.links > 0);
        known.extend(links.map(|link| (link.node.clone(), link.clone())));
    }

    /// All links to each node, in the order of their names.
    pub(super) fn peers(&self, now_ms: u64) -> Vec<PeerLinks> {
        let mut peers: BTreeMap<&str, (PeerLinks, Option<u64>)> = BTreeMap::new();
        for link in self.shards.values().flat_map(BTreeMap::values) {
            let (peer, down_ms) = peers.entry(&link.node).or_default();
            peer.links += link.links;
            peer.up += link.up;
            peer.held_bytes += link.held_bytes;
            peer.round_trip_us = peer.round_trip_us.max(link.rtt_us);
            // The one that was lost last was up until then.
            *down_ms = (*down_ms).max(link.down_since_ms);
        }
        let summed = peers.into_iter().map(|(node, (peer, down_ms))| {
            let unreachable_ms = down_ms.filter(|_| peer.up == 0).map(|down_ms| now_ms.saturating_sub(down_ms));
            PeerLinks { node: node.to_owned(), unreachable_ms, ..peer }
        });
        summed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh_news::LinkWord;

    fn news(node: &str, up: u32, down_since_ms: Option<u64>) -> LinkNews {
        let word = if up > 0 { LinkWord::Heard } else { LinkWord::Silent };
        LinkNews {
            links: 2,
            up,
            held_bytes: 10,
            rtt_us: 300 + u64::from(up),
            down_since_ms,
            ..LinkNews::of(node, 1, word)
        }
    }

    #[test]
    fn the_links_of_all_shards_are_added_up() {
        let mut links = Links::default();
        links.told(
            0,
            true,
            &[news("a", 2, None), news("b", 0, Some(1_000)), LinkNews::of("calls", 1, LinkWord::Heard)],
        );
        links.told(1, true, &[news("a", 1, Some(3_000)), news("b", 0, Some(4_000))]);
        let peers = links.peers(9_000);
        let [a, b] = &peers[..] else { panic!("{peers:?}") };
        assert_eq!((a.links, a.up, a.held_bytes, a.round_trip_us, a.unreachable_ms), (4, 3, 20, 302, None));
        assert_eq!((&*b.node, b.up, b.unreachable_ms), ("b", 0, Some(5_000)));
        links.told(1, false, &[news("b", 1, Some(4_000))]);
        assert_eq!(links.peers(9_000)[1].unreachable_ms, None);
        links.told(0, true, &[]);
        links.told(1, true, &[news("a", 2, None)]);
        assert_eq!(links.peers(9_000).len(), 1, "b is no member any more");
    }
}
