//! Writing sessions again: which shard is asked next, from which slot on, and for how many.

use crate::control::SessionsPage;

/// Sessions that all nodes together write again in a second after incarnations are new: a million take 50 s, and Redis
/// has room for what else happens. Those that do so share it.
const RESYNC_PER_SEC: u64 = 20_000;
/// Most sessions of one page: what a shard tells of within some hundred microseconds.
const PAGE_MAX: u64 = 512;
/// What an allowance may come to: a tenth of a second's worth of a resync.
const ALLOWANCE_MAX: u64 = RESYNC_PER_SEC / 10 * PER_SESSION;
/// An allowance is counted in sessions times milliseconds in a day, so that no rate rounds to nothing.
const PER_SESSION: u64 = 24 * 3_600 * 1_000;

/// A page to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub shard: usize,
    pub from_slot: u32,
    pub max: usize,
}

/// A walk through the sessions of all shards, over and over. In a hurry after an incarnation is new; otherwise such
/// that one round takes half of the time after which Redis drops an entry that was not written again.
#[derive(Debug)]
pub struct Walk {
    shards: usize,
    round_ms: u64,
    shard: usize,
    slot: u32,
    /// It has to get round in a hurry.
    resync: bool,
    allowance: u64,
    earned_ms: u64,
    asked: bool,
    rounds: u64,
    /// Other nodes that are in a hurry too.
    others: u64,
}

impl Walk {
    /// Through `shards` shards, with a round in `round_ms` while there is no hurry.
    pub fn new(now_ms: u64, shards: usize, round_ms: u64) -> Self {
        let round_ms = round_ms.max(1);
        Walk {
            shards,
            round_ms,
            shard: 0,
            slot: 0,
            resync: false,
            allowance: 0,
            earned_ms: now_ms,
            asked: false,
            rounds: 0,
            others: 0,
        }
    }

    /// Begins again from the first session, in a hurry.
    pub fn resync(&mut self) {
        (self.shard, self.slot, self.resync) = (0, 0, true);
        // What was asked for may still come, and is not the page asked for next.
        self.asked = false;
    }

    /// So many other nodes write their sessions again just now.
    pub fn set_others(&mut self, others: u64) {
        self.others = others;
    }

    /// How often it has got round.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Whether a resync is under way.
    pub fn is_resync(&self) -> bool {
        self.resync
    }

    /// The page to ask for now, when there are `sessions` in all; there is none while another was asked for.
    pub fn page(&mut self, now_ms: u64, sessions: u64) -> Option<Page> {
        if self.asked || self.shards == 0 {
            return None;
        }
        let passed_ms = now_ms.saturating_sub(self.earned_ms);
        let per_ms = if self.resync {
            RESYNC_PER_SEC * (PER_SESSION / 1_000) / (1 + self.others)
        } else {
            u64::try_from(u128::from(sessions.max(1)) * u128::from(PER_SESSION) / u128::from(self.round_ms))
                .unwrap_or(u64::MAX)
        };
        self.earned_ms = now_ms;
        self.allowance = passed_ms.saturating_mul(per_ms).saturating_add(self.allowance).min(ALLOWANCE_MAX);
        let max = (self.allowance / PER_SESSION).min(PAGE_MAX) as usize;
        self.asked = max > 0;
        (max > 0).then_some(Page { shard: self.shard, from_slot: self.slot, max })
    }

    /// The page could not be asked for, or its shard did not answer: it is asked for again.
    pub fn failed(&mut self) {
        self.asked = false;
    }

    /// The page asked for last has come. Whether a resync has ended with it.
    pub fn answered(&mut self, page: SessionsPage) -> bool {
        if !std::mem::take(&mut self.asked) {
            return false;
        }
        self.allowance = self.allowance.saturating_sub((page.sessions as u64).saturating_mul(PER_SESSION));
        match page.next_slot {
            Some(slot) => self.slot = slot,
            None => (self.shard, self.slot) = ((self.shard + 1) % self.shards, 0),
        }
        if page.next_slot.is_none() && self.shard == 0 {
            self.rounds += 1;
        }
        let ended = page.next_slot.is_none() && self.shard == 0 && std::mem::take(&mut self.resync);
        if ended {
            // What the hurry earned is not spent on the round behind it.
            self.allowance = 0;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_HALF_MS: u64 = 12 * 3_600 * 1_000;

    /// Shards with so many sessions, one in each slot.
    struct Shards(Vec<u32>);

    impl Shards {
        fn answer(&self, page: Page) -> SessionsPage {
            let high_water = self.0[page.shard];
            let end = high_water.min(page.from_slot + page.max as u32);
            let sessions = (end - page.from_slot) as usize;
            SessionsPage { sessions, next_slot: (end < high_water).then_some(end) }
        }

        fn sessions(&self) -> u64 {
            self.0.iter().map(|&sessions| u64::from(sessions)).sum()
        }
    }

    #[test]
    fn a_resync_tells_of_every_session_at_its_pace() {
        let shards = Shards(vec![30_000, 0, 10_001]);
        let mut walk = Walk::new(0, 3, DAY_HALF_MS);
        walk.resync();
        let (mut now_ms, mut told) = (0, 0);
        while walk.is_resync() {
            now_ms += 20;
            while let Some(page) = walk.page(now_ms, shards.sessions()) {
                let answer = shards.answer(page);
                told += answer.sessions;
                walk.answered(answer);
            }
        }
        assert_eq!(told, 40_001);
        assert!((2_000..2_200).contains(&now_ms), "{now_ms} ms for 40,001 sessions");
    }

    #[test]
    fn nodes_that_write_again_at_once_share_what_one_may_write() {
        let told = |others: u64| {
            let mut walk = Walk::new(0, 1, DAY_HALF_MS);
            walk.set_others(others);
            walk.resync();
            let mut told = 0;
            for now_ms in (0..10_000).step_by(20) {
                while let Some(page) = walk.page(now_ms, 1_000_000) {
                    told += page.max;
                    walk.answered(SessionsPage { sessions: page.max, next_slot: Some(told as u32) });
                }
            }
            told
        };
        let alone = told(0);
        for others in [1, 9, 99] {
            let all = told(others) * (others as usize + 1);
            assert!(all.abs_diff(alone) <= alone / 20, "{all} of {} nodes, {alone} of one", others + 1);
        }
    }

    #[test]
    fn a_round_without_hurry_takes_half_the_time_to_live() {
        for sessions in [10, 1_000, 300_000] {
            let shards = Shards(vec![sessions / 2, sessions / 2]);
            let mut walk = Walk::new(0, 2, DAY_HALF_MS);
            let (mut now_ms, mut told) = (0, 0);
            while told < sessions as usize {
                now_ms += 1_000;
                if let Some(page) = walk.page(now_ms, shards.sessions()) {
                    let answer = shards.answer(page);
                    told += answer.sessions;
                    assert!(!walk.answered(answer));
                }
            }
            assert!(walk.rounds() <= 1);
            let late_ms = now_ms.abs_diff(DAY_HALF_MS);
            assert!(late_ms < DAY_HALF_MS / 100, "{now_ms} ms for {sessions} sessions");
        }
    }

    #[test]
    fn an_answer_from_before_a_resync_does_not_count_for_it() {
        let mut walk = Walk::new(0, 1, 1_000);
        assert!(walk.page(1_000, 100).is_some());
        walk.resync();
        assert!(!walk.answered(SessionsPage { sessions: 100, next_slot: None }));
        assert!(walk.is_resync());
    }

    #[test]
    fn a_page_that_failed_is_asked_for_again() {
        let mut walk = Walk::new(0, 2, 1_000);
        let first = walk.page(1_000, 100).unwrap();
        assert_eq!(walk.page(2_000, 100), None, "one at a time");
        walk.failed();
        let again = walk.page(2_000, 100).unwrap();
        assert_eq!((first.shard, first.from_slot), (again.shard, again.from_slot));
    }

    #[test]
    fn a_pause_is_not_made_up_for_in_one_burst() {
        let mut walk = Walk::new(0, 1, 1_000);
        walk.resync();
        let mut told = 0;
        while let Some(page) = walk.page(3_600_000, 1_000_000) {
            told += page.max;
            walk.answered(SessionsPage { sessions: page.max, next_slot: Some(told as u32) });
        }
        assert_eq!(told, 2_000);
    }

    #[test]
    fn a_node_without_shards_yet_has_nothing_to_walk() {
        assert_eq!(Walk::new(0, 0, 1_000).page(5_000, 0), None);
    }
}
