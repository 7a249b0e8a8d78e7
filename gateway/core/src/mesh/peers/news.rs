//! What the control thread and the metrics are told of links.

use super::Stage;
use super::{GivenWay, Mesh, UNREACHABLE_MS};
use crate::mesh::link::{HEARTBEAT_MS, LinkStats};
use crate::mesh_news::{LinkNews, LinkWord};

impl Mesh {
    /// What the control thread should know: of all nodes each half a second, and of those in between of which it has
    /// changed; the flag tells which. Finds out which links are down for long.
    pub(crate) fn news(&mut self, now_ms: u64) -> (bool, Vec<LinkNews>) {
        self.words_due = true;
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
                link.give_gathered_back(&mut self.held_back);
                self.ended.push_back(id as u32);
            }
            if given_up && !std::mem::replace(&mut link.given_up, given_up) && link.link.has_streamed() {
                // The peer has had the rest, or never will: it may not come again when its senders have been told that
                // it failed.
                link.link.end_stream();
                link.give_gathered_back(&mut self.held_back);
                self.ended.push_back(id as u32);
            }
        }
        self.ask_again();
        let later = self.later.drain(..);
        let mut news: Vec<LinkNews> =
            later.map(|(node, incarnation)| LinkNews::of(&node, incarnation, LinkWord::Heard)).collect();
        let all = now_ms >= self.told_ms + HEARTBEAT_MS;
        if all {
            self.told_ms = now_ms;
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.carrier.is_none()) {
            let links = peer.links.iter().filter_map(|id| self.links[*id as usize].as_ref());
            let up = links.clone().filter(|link| link.link.is_connected()).count() as u32;
            let came_up = std::mem::take(&mut peer.came_up) && up > 0;
            let lost = up == 0 && std::mem::take(&mut peer.was_up);
            if !all && !came_up && !lost {
                continue;
            }
            let word = match (up, lost) {
                (1.., _) => LinkWord::Heard,
                (0, true) => LinkWord::Lost,
                (0, false) => LinkWord::Silent,
            };
            news.push(LinkNews {
                node: peer.name.clone(),
                incarnation: peer.incarnation,
                word,
                links: peer.links.len() as u32,
                up,
                held_bytes: links.clone().map(|link| link.link.bytes() as u64).sum(),
                rtt_us: links.clone().map(|link| link.link.stats().rtt_us).max().unwrap_or(0),
                down_since_ms: links.filter_map(|link| link.down_ms).min(),
            });
        }
        (all, news)
    }

    /// Links of this shard, and those that are up.
    pub(crate) fn link_counts(&self) -> (u64, u64) {
        let links = self.links.iter().flatten().filter(|link| !link.dead);
        let up = links.clone().filter(|link| link.link.is_connected()).count();
        (links.count() as u64, up as u64)
    }

    /// Links that are up and not sealed.
    pub(crate) fn links_in_clear(&self) -> usize {
        self.wires.values().filter(|wire| matches!(wire.stage, Stage::Up { .. }) && wire.sealing.is_none()).count()
    }

    /// Nodes that were found in a later life than is known, or that nobody knows, and of which there was no room to
    /// tell; they come again.
    pub(crate) fn later_dropped(&self) -> u64 {
        self.later_dropped
    }

    /// How often strangers had to give way.
    pub(crate) fn given_way(&self) -> GivenWay {
        self.given_way
    }

    /// Bytes all links hold, and those that wait for word of another shard's, or for room in its mailbox.
    pub(crate) fn bytes(&self) -> usize {
        let carriers = self.peers.iter().filter_map(|peer| peer.carrier.as_ref());
        self.bytes + carriers.map(|carrier| carrier.held_bytes()).sum::<usize>()
    }

    /// Bytes of streams that have ended and that have not been given back yet.
    pub(crate) fn ended_bytes(&self) -> usize {
        self.links.iter().flatten().map(|link| link.link.ended_bytes()).sum()
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

pub(super) fn add_stats(sum: &mut LinkStats, one: &LinkStats) {
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
