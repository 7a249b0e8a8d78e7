//! Sessions that are not given the messages of large groups, but told by HEADS that there are some: each at most once
//! in a round of five seconds, for all its groups together.
//!
//! A round goes through all slots in steps, one a tick. What a session is to be told needs no place of its own: a part
//! knows where in the rounds its latest news came, and a session has been told since if its slot was looked at later.
//! A tick looks at so many memberships only; with more the rounds take longer, and nobody is looked at sooner.

use super::{NONE, Parts};

/// Ticks of a round.
pub(crate) const ROUND_STEPS: u64 = 50;
/// Slots that are looked at one after another, so that they are in memory together.
const BLOCK: u32 = 64;
/// Memberships and slots that are looked at in a tick.
const LOOKS_PER_TICK: usize = 65_536;
/// Sessions that are told in a tick.
const TOLD_PER_TICK: usize = 4_096;

/// A place in the rounds: the step, and the slot that is looked at next in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    step: u64,
    slot: u32,
}

/// Where the rounds are.
#[derive(Debug)]
pub(super) struct Rounds {
    at: Place,
    /// Where the latest news of any group came.
    latest: Place,
}

impl Default for Rounds {
    fn default() -> Self {
        // Nothing has come in a round before.
        Rounds { at: Place { step: ROUND_STEPS, slot: 0 }, latest: Place::default() }
    }
}

impl Rounds {
    /// Something has come for sessions that have not been looked at since.
    pub(super) fn note(&mut self) -> Place {
        self.latest = self.at;
        self.at
    }

    /// Whether a slot that is looked at now was looked at last before that place.
    fn is_due(&self, news: Place, slot: u32) -> bool {
        news > Place { step: self.at.step - ROUND_STEPS, slot }
    }

    /// The next slot to look at in this step, of so many.
    fn slot(&self, slots: u32) -> Option<u32> {
        let first = (self.at.step % ROUND_STEPS) as u32 * BLOCK;
        Some(self.at.slot.max(first)).filter(|slot| *slot < slots)
    }

    /// It was looked at.
    fn pass(&mut self, slot: u32) {
        let next = slot + 1;
        self.at.slot = if next.is_multiple_of(BLOCK) { next + BLOCK * (ROUND_STEPS as u32 - 1) } else { next };
    }

    fn next_step(&mut self) {
        self.at = Place { step: self.at.step + 1, slot: 0 };
    }
}

/// How far a group is, for sessions that were not given its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) group: u64,
    /// The last message that was not given.
    pub(crate) stamp: u64,
    pub(crate) number: u64,
}

impl Parts {
    /// Sessions that are not given what comes, one for each of their large groups.
    pub(crate) fn passive(&self) -> usize {
        self.passive
    }

    /// The group is large from now on, or is not: what comes is given to those that pay attention, or to all.
    pub(crate) fn set_passive(&mut self, group: u64, passive: bool) {
        let Some(part) = self.get_mut(group).filter(|part| part.passive != passive) else { return };
        part.passive = passive;
        let sessions = part.live.len();
        self.passive = if passive { self.passive + sessions } else { self.passive - sessions };
    }

    /// The sessions of a large group that pay no attention are to be told how far it is.
    pub(crate) fn note_news(&mut self, group: u64) {
        let place = self.rounds.note();
        if let Some(part) = self.get_mut(group) {
            (part.news, part.news_stamp, part.news_number) = (place, part.last, part.number);
            part.before_news = part.queue.len();
        }
    }

    /// Whether a session that has come in late may have been looked at since the news came. It is told by itself: to
    /// tell all once more would never end where sessions come all the time.
    pub(super) fn may_have_missed_news(&self, at: u32) -> bool {
        let news = self.parts[at as usize].as_ref().map_or(Place::default(), |part| part.news);
        news > Place::default() && news.step + ROUND_STEPS >= self.rounds.at.step
    }

    /// A tick has passed: the next step. Returns whom to tell of what.
    pub(crate) fn next_step(&mut self) -> Vec<(u32, Vec<News>)> {
        let mut told = Vec::new();
        // Nothing came in the last round.
        if self.rounds.latest.step + ROUND_STEPS < self.rounds.at.step {
            self.rounds.next_step();
            return told;
        }
        let mut looks = 0;
        while let Some(slot) = self.rounds.slot(self.heads.len() as u32) {
            // The rest of the step comes with the next tick.
            if looks >= LOOKS_PER_TICK || told.len() >= TOLD_PER_TICK {
                return told;
            }
            let (news, looked) = self.news_of(slot);
            looks += 1 + looked;
            if !news.is_empty() {
                told.push((slot, news));
            }
            self.rounds.pass(slot);
        }
        self.rounds.next_step();
        told
    }

    /// What a session is to be told, and how many memberships it has.
    fn news_of(&mut self, slot: u32) -> (Vec<News>, usize) {
        let (mut news, mut looked) = (Vec::new(), 0);
        let mut at = self.head(slot);
        while at != NONE {
            let entry = self.entries[at as usize];
            (at, looked) = (entry.next, looked + 1);
            let Some(part) = &mut self.parts[entry.part as usize] else { continue };
            if !self.rounds.is_due(part.news, slot) {
                continue;
            }
            // Some of it may have been taken back.
            part.before_news = part.before_news.min(part.queue.len());
            if part.before_news == 0 {
                news.push(News { group: part.group, stamp: part.news_stamp, number: part.news_number });
            } else {
                // Frames from before are on their way to it: it is told in the next round, and so are all behind it.
                // What came after the news, since the group is not large any more, is no reason to wait.
                part.news = Place { step: self.rounds.at.step, slot: slot + 1 };
                self.rounds.latest = self.rounds.latest.max(part.news);
            }
        }
        (news, looked)
    }
}
