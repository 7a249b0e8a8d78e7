//! What the home shard of a group knows of it while it has sessions anywhere on the node, or messages on their way to
//! the store.

use hashbrown::HashMap;

/// A second, in which rates are counted.
const WINDOW_TICKS: u32 = 10;

/// Whether a message is within the rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    Within,
    /// The group has had its messages of this second.
    Group,
    /// The member has.
    Member,
}

/// One group at its home.
#[derive(Debug, Default)]
pub(crate) struct Home {
    /// The number of the last message that was passed on; they begin with 1 when the first session comes.
    pub(crate) number: u64,
    /// Its stamp.
    pub(crate) last: u64,
    /// Shards that have a part of it.
    pub(crate) shards: Vec<u16>,
    /// Messages that the store has not answered.
    pub(crate) asked: u32,
    /// Messages in this second.
    sent: u32,
}

/// The groups whose home a shard is.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    homes: HashMap<u64, Home>,
    /// Messages of each member in this second.
    members: HashMap<(u64, u64), u32>,
    window_tick: u32,
    /// Shards whose mailbox had no room for a copy: they are told how far the group is.
    pub(crate) owed: Vec<(u16, u64)>,
}

impl Homes {
    /// The group, which is remembered from now on.
    pub(crate) fn at(&mut self, group: u64) -> &mut Home {
        self.homes.entry(group).or_default()
    }

    pub(crate) fn get(&self, group: u64) -> Option<&Home> {
        self.homes.get(&group)
    }

    /// A shard has a part of the group.
    pub(crate) fn watch(&mut self, group: u64, shard: u16) -> &mut Home {
        let home = self.at(group);
        if !home.shards.contains(&shard) {
            home.shards.push(shard);
        }
        home
    }

    /// A shard has none any more.
    pub(crate) fn unwatch(&mut self, group: u64, shard: u16) {
        if let Some(home) = self.homes.get_mut(&group) {
            home.shards.retain(|known| *known != shard);
        }
        self.forget_if_idle(group);
    }

    /// A message to the store is answered.
    pub(crate) fn answered(&mut self, group: u64) {
        if let Some(home) = self.homes.get_mut(&group) {
            home.asked = home.asked.saturating_sub(1);
        }
    }

    /// Nobody has to be remembered of a group without sessions.
    pub(crate) fn forget_if_idle(&mut self, group: u64) {
        let idle = |home: &Home| home.shards.is_empty() && home.asked == 0 && home.sent == 0;
        if self.homes.get(&group).is_some_and(idle) {
            self.homes.remove(&group);
        }
    }

    /// The group has ended. Returns the shards that have a part of it.
    pub(crate) fn end(&mut self, group: u64) -> Vec<u16> {
        self.homes.get_mut(&group).map(|home| std::mem::take(&mut home.shards)).unwrap_or_default()
    }

    /// Counts a message of a member; 0 is no limit.
    pub(crate) fn count(&mut self, group: u64, from: u64, group_max: u32, member_max: u32) -> Rate {
        let sent = self.at(group).sent;
        if group_max > 0 && sent >= group_max {
            return Rate::Group;
        }
        if member_max > 0 {
            let of_member = self.members.entry((group, from)).or_default();
            if *of_member >= member_max {
                return Rate::Member;
            }
            *of_member += 1;
        }
        self.at(group).sent += 1;
        Rate::Within
    }

    /// Begins a new second, if one has passed.
    pub(crate) fn pass(&mut self, tick: u32) {
        if tick.wrapping_sub(self.window_tick) < WINDOW_TICKS {
            return;
        }
        self.window_tick = tick;
        self.members.clear();
        self.members.shrink_to(1_024);
        self.homes.retain(|_, home| {
            home.sent = 0;
            !home.shards.is_empty() || home.asked > 0
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.homes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_messages_of_a_group_and_of_a_member() {
        let mut homes = Homes::default();
        let send = |homes: &mut Homes, from| homes.count(7, from, 3, 2);
        assert_eq!([1, 1, 1].map(|from| send(&mut homes, from)), [Rate::Within, Rate::Within, Rate::Member]);
        assert_eq!([2, 3].map(|from| send(&mut homes, from)), [Rate::Within, Rate::Group]);
        homes.pass(WINDOW_TICKS);
        assert_eq!(send(&mut homes, 1), Rate::Within);
        assert!((0..100).all(|_| homes.count(8, 1, 0, 0) == Rate::Within), "0 is off");
    }

    #[test]
    fn a_group_without_sessions_and_messages_is_forgotten() {
        let mut homes = Homes::default();
        homes.watch(7, 1).number = 5;
        homes.watch(7, 1);
        homes.unwatch(7, 1);
        assert_eq!(homes.len(), 0);
        homes.at(7).asked = 1;
        homes.unwatch(7, 1);
        assert_eq!(homes.len(), 1);
        homes.answered(7);
        homes.forget_if_idle(7);
        assert_eq!(homes.len(), 0);
    }
}
