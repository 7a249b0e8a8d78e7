//! Presence in Redis compared with the truth, over and over: what Redis has lost is written again.
//!
//! Redis loses writes it has answered: in a failover, by eviction, by DEL. A session whose entry is lost would be
//! offline for others until it is written again for its time to live, half a day. So all sessions are compared within
//! `presence_audit_secs`, by reads, pipelined: a million within five minutes are 3,300 HGET a second, in seven
//! pipelines for each master.
//!
//! Comparing decides nothing: what differs is told of again by its shard, through its one presence log, if it is still
//! there. So a session that has ended meanwhile is not written behind its end, and one of an incarnation before not
//! under the next.

use crate::membership::{Page, Walk};
use crate::presence_log::PresenceEvent;
use trunkline_router::redis::{Plane, PresenceEntry};

/// The least time between two pages. With pages of 512 sessions, 5,120 are compared in a second at most; while nodes
/// write all their sessions again, the more of them the less.
const PAGE_PAUSE_MS: u64 = 100;
/// A login this young may still be on its way to Redis.
const YOUNG_MS: u64 = 30_000;

/// What came of it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditStatus {
    /// Sessions compared.
    pub compared: u64,
    /// Sessions whose entry was not as it should be, and that are told of again.
    pub mended: u64,
    /// Sessions that could not be compared because Redis did not answer.
    pub failed: u64,
    /// When all had been compared last, or the node began to: milliseconds of [`crate::clock`]; `None` before its
    /// shards run.
    pub since_ms: Option<u64>,
}

/// Where it stands.
#[derive(Debug)]
pub(super) struct Audit {
    walk: Walk,
    round_ms: u64,
    page: Option<Page>,
    next_ms: u64,
    /// Nodes that write all their sessions again just now.
    mending: u64,
    rounds: u64,
    /// Entries found lost in this round.
    lost: u64,
    status: AuditStatus,
}

/// One list, compared.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) shard: usize,
    /// The incarnation it was compared under.
    pub(super) incarnation: u64,
    compared: u64,
    failed: u64,
    /// Users and sessions that Redis does not have as they are.
    pub(super) lost: Vec<(u64, u64)>,
}

impl Audit {
    pub(super) fn new(round_ms: u64) -> Self {
        let walk = Walk::new(0, 0, round_ms);
        Audit { walk, round_ms, page: None, next_ms: 0, mending: 0, rounds: 0, lost: 0, status: AuditStatus::default() }
    }

    pub(super) fn status(&self) -> AuditStatus {
        self.status
    }

    /// The shards run.
    pub(super) fn begin(&mut self, now_ms: u64, shards: usize) {
        self.walk = Walk::new(now_ms, shards, self.round_ms);
        self.status.since_ms = Some(now_ms);
    }

    /// So many nodes write all their sessions again just now.
    pub(super) fn set_mending(&mut self, mending: u64) {
        self.mending = mending;
    }

    /// The list to ask for now; none while one is under way.
    pub(super) fn page(&mut self, now_ms: u64, sessions: u64) -> Option<Page> {
        if self.page.is_some() || now_ms < self.next_ms {
            return None;
        }
        let page = self.walk.page(now_ms, sessions)?;
        self.next_ms = now_ms + PAGE_PAUSE_MS * self.mending.max(1);
        self.page = Some(page);
        Some(page)
    }

    /// The list could not be had: it is asked for again.
    pub(super) fn failed(&mut self) {
        self.page = None;
        self.walk.failed();
    }

    /// A list has come.
    pub(super) fn listed(&mut self, sessions: usize, next_slot: Option<u32>) {
        self.walk.answered(crate::control::SessionsPage { sessions, next_slot });
    }

    /// A list has been compared; `told` of the lost ones are told of again.
    pub(super) fn compared(&mut self, now_ms: u64, compared: &Compared, told: usize) {
        self.page = None;
        self.status.compared += compared.compared;
        self.status.failed += compared.failed;
        self.status.mended += told as u64;
        self.lost += told as u64;
        if self.walk.rounds() != self.rounds {
            self.rounds = self.walk.rounds();
            self.status.since_ms = Some(now_ms);
            let lost = std::mem::take(&mut self.lost);
            if lost > 0 {
                tracing::warn!(
                    "Redis did not hold {lost} sessions of this node as they are, and they are written again: it has \
                     lost writes, by a failover, by eviction or by hand"
                );
            }
        }
    }
}

/// Compares a list with what Redis holds.
pub(super) async fn compare(
    plane: Plane,
    shard: usize,
    sessions: Vec<PresenceEvent>,
    node: String,
    incarnation: u64,
    wall_ms: u64,
) -> Compared {
    let old: Vec<&PresenceEvent> =
        sessions.iter().filter(|session| session.since_ms.saturating_add(YOUNG_MS) <= wall_ms).collect();
    let devices: Vec<(u64, &str)> = old.iter().map(|session| (session.user, session.device())).collect();
    let stored = plane.stored(&devices).await;
    let mut compared = Compared { shard, incarnation, compared: 0, failed: 0, lost: Vec::new() };
    for (session, stored) in old.iter().zip(stored) {
        match stored {
            Ok(stored) => {
                compared.compared += 1;
                if !is_as_it_should_be(session, stored.as_ref(), &node, incarnation) {
                    compared.lost.push((session.user, session.session));
                }
            }
            Err(_) => compared.failed += 1,
        }
    }
    compared
}

fn is_as_it_should_be(session: &PresenceEvent, stored: Option<&PresenceEntry>, node: &str, incarnation: u64) -> bool {
    stored.is_some_and(|stored| {
        *stored.node == *node && stored.incarnation == incarnation && stored.session == session.session
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence_log::{PresenceLog, PresenceWriter};
    use std::sync::Arc;
    use trunkline_router::presence::Entry;

    fn session(user: u64, session: u64) -> PresenceEvent {
        let writer = PresenceWriter::new(Arc::new(PresenceLog::new()), 4);
        writer.described(user, &Entry::new(session, 0, 1_800_000_000, "desk", ""))
    }

    fn stored(node: &str, incarnation: u64, session: u64) -> PresenceEntry {
        PresenceEntry {
            device: "desk".into(),
            node: node.into(),
            incarnation,
            shard: 0,
            session,
            since_ms: 0,
            class: "".into(),
            version: session,
        }
    }

    #[test]
    fn only_this_session_of_this_incarnation_is_as_it_should_be() {
        let own = session(5, 9);
        let judged = |stored: Option<PresenceEntry>| is_as_it_should_be(&own, stored.as_ref(), "a", 7);
        assert!(judged(Some(stored("a", 7, 9))));
        assert!(!judged(None));
        assert!(!judged(Some(stored("a", 6, 9))));
        assert!(!judged(Some(stored("a", 7, 8))));
        assert!(!judged(Some(stored("b", 7, 9))));
    }

    #[test]
    fn a_million_sessions_are_compared_within_five_minutes_and_few_at_a_time() {
        const SESSIONS: [u32; 4] = [400_000, 0, 350_000, 250_000];
        let mut audit = Audit::new(300_000);
        audit.begin(0, SESSIONS.len());
        let (mut now_ms, mut pages) = (0, 0);
        while audit.rounds == 0 {
            now_ms += 20;
            let Some(page) = audit.page(now_ms, 1_000_000) else { continue };
            let end = SESSIONS[page.shard].min(page.from_slot + page.max as u32);
            let sessions = u64::from(end - page.from_slot);
            assert!(sessions <= 512);
            pages += 1;
            audit.listed(sessions as usize, (end < SESSIONS[page.shard]).then_some(end));
            let lost = Vec::new();
            audit.compared(
                now_ms,
                &Compared { shard: page.shard, incarnation: 7, compared: sessions, failed: 0, lost },
                0,
            );
        }
        assert_eq!(audit.status().compared, 1_000_000);
        assert!(now_ms <= 310_000, "{now_ms} ms");
        assert!(pages <= 10 * now_ms / 1_000 + 10, "{pages} pipelines for each master");
    }

    #[test]
    fn a_round_is_over_when_all_shards_have_been_compared() {
        let mut audit = Audit::new(1_000);
        assert_eq!((audit.page(5_000, 10), audit.status().since_ms), (None, None), "no shards yet");
        audit.begin(5_000, 2);
        let mut now_ms = 5_000;
        let mut asked = Vec::new();
        while audit.rounds == 0 {
            now_ms += 1_000;
            let Some(page) = audit.page(now_ms, 4) else { continue };
            assert_eq!(audit.page(now_ms, 4), None, "one at a time");
            asked.push(page.shard);
            audit.listed(2, None);
            let lost = if page.shard == 0 { vec![(1, 1)] } else { Vec::new() };
            let compared = Compared { shard: page.shard, incarnation: 7, compared: 2, failed: 0, lost };
            audit.compared(now_ms, &compared, compared.lost.len());
        }
        assert_eq!(asked, [0, 1]);
        let status = audit.status();
        assert_eq!((status.compared, status.mended, status.since_ms), (4, 1, Some(now_ms)));
        assert_eq!(audit.lost, 0, "told of in the log");
    }
}
