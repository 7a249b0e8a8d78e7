//! What the home shard of a group knows of it while it has sessions anywhere on the node, or messages on their way to
//! the store.

use crate::ids::NodeKey;
use hashbrown::{HashMap, HashSet};

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

/// How far a live room is, as a node has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Under which home the number was counted; 0 is none that another node knows of.
    pub(crate) reign: u64,
    /// Number and stamp of the last message; 0 before the first.
    pub(crate) number: u64,
    pub(crate) last: u64,
}

impl Seen {
    /// Nobody here was in the room before.
    pub(crate) const NOTHING: Seen = Seen { reign: 0, number: 0, last: 0 };

    /// Numbers that count. Who names a higher one is mistaken or lies: no group has had so many messages, and behind
    /// the last number of all there would be none for further ones.
    pub(crate) const NUMBERS_END: u64 = 1 << 48;
}

/// Whether the home of a durable group in a cluster has told the store that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It has not.
    #[default]
    Untold,
    /// The store has not answered.
    Asked,
    /// Nobody else adds to the log unnoticed, and this home knows its end.
    Done,
}

/// One group at its home; in a cluster also at the shard of each other node that takes copies of a live room.
#[derive(Debug, Default)]
pub(crate) struct Home {
    /// The number of the last message that was passed on; they begin with 1 when the first session comes.
    pub(crate) number: u64,
    /// Its stamp.
    pub(crate) last: u64,
    /// Shards that have a part of it.
    pub(crate) shards: Vec<u16>,
    /// Other nodes that get copies of a live room, while this one is its home.
    pub(crate) nodes: Vec<NodeKey>,
    /// Under which home the number of a live room is counted, see [`Seen`].
    reign: u64,
    /// This node has been the home since that began.
    pub(crate) reigns: bool,
    /// Of a durable group, while this node is its home.
    pub(crate) claim: Claim,
    /// How often it was claimed: only the answer to the latest claim counts.
    pub(crate) claim_number: u64,
    /// Nodes that want copies of a durable group and wait for the store to answer the claim, each with its token and
    /// what it has seen: at most one for each node.
    pub(crate) waiting: Vec<(NodeKey, u64, Seen)>,
    /// Messages that the store has not answered.
    pub(crate) asked: u32,
    /// Messages that went to the log since this home claimed it.
    pub(crate) added: u32,
    /// Up to there this home knows the log, since it has claimed it.
    known: u64,
    /// Another home has said how far the group is, since this one has claimed its log.
    learned: bool,
    /// Messages in this second.
    sent: u32,
    /// It is large.
    passive: bool,
}

impl Home {
    /// The group has so many members. Returns whether it is large: with more than `above` (0 is never), and then until
    /// there are a tenth fewer.
    pub(crate) fn is_large(&mut self, members: u32, above: u64) -> bool {
        let members = u64::from(members);
        self.passive = above > 0 && (members > above || (self.passive && members > above - above / 10));
        self.passive
    }

    /// How far the room is.
    pub(crate) fn seen(&self) -> Seen {
        Seen { reign: self.reign, number: self.number, last: self.last }
    }

    /// Another node wants copies from now on, and has seen so much of the room. `reign` names this home if it has had
    /// no name so far. Returns how far the room is: the next message that this node gets has a higher number.
    ///
    /// What was counted under another home is not known here to the end. So a number is left out: whoever missed
    /// something sees that.
    pub(crate) fn register(&mut self, node: NodeKey, seen: Seen, reign: u64) -> Seen {
        if !self.reigns {
            self.begin_reign(reign);
        }
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
        let is_strange = seen.number > 0 && seen.reign != self.reign;
        self.number = self.number.max(seen.number);
        if is_strange {
            self.leave_one_out();
        }
        self.last = self.last.max(seen.last);
        self.seen()
    }

    /// This node is the home from now on, and was not before.
    pub(crate) fn begin_reign(&mut self, reign: u64) {
        (self.reign, self.reigns) = (reign, true);
        if self.number > 0 {
            self.leave_one_out();
        }
    }

    /// The store says where the log ends. Returns whether other nodes may not know: that is behind what this home knew,
    /// and it leaves a number out then, or it has learned it from another home.
    pub(crate) fn claimed(&mut self, last: u64) -> bool {
        self.claim = Claim::Done;
        self.known = self.known.max(last);
        let is_news = last > self.last;
        if is_news {
            self.last = last;
            if self.number > 0 {
                self.leave_one_out();
            }
        }
        is_news | std::mem::take(&mut self.learned)
    }

    /// Another node is the home and has passed a message on.
    pub(crate) fn copied(&mut self, number: u64, stamp: u64) {
        (self.number, self.last, self.learned) = (number, self.last.max(stamp), true);
    }

    /// Something is in the log, or may be, that was not passed on: a number is left out.
    pub(crate) fn passed_over(&mut self, stamp: u64) {
        self.last = self.last.max(stamp);
        self.leave_one_out();
    }

    /// A message went to the log, behind the one at `before`. A number is left out if nobody here knows of that.
    pub(crate) fn logged(&mut self, before: u64, stamp: u64) {
        if before > self.known {
            self.leave_one_out();
        }
        self.known = self.known.max(stamp);
    }

    /// Others may have written to the log since it was claimed: it is claimed again. Nodes that wait go on waiting.
    pub(crate) fn doubt(&mut self) {
        (self.claim, self.added) = (Claim::Untold, 0);
    }

    /// A node waits for the claim; a later word of it counts for the one before.
    pub(crate) fn wait(&mut self, node: NodeKey, token: u64, seen: Seen) {
        self.waiting.retain(|(waiting, ..)| *waiting != node);
        self.waiting.push((node, token, seen));
    }

    /// This node is not the home, or has to claim the log again.
    pub(crate) fn unclaim(&mut self) {
        self.claim = Claim::Untold;
        self.added = 0;
        self.waiting.clear();
    }

    fn leave_one_out(&mut self) {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::NoneLeftOut) {
            return;
        }
        // A peer may say any number.
        self.number = self.number.saturating_add(1);
    }

    /// Another node is the home and says how far it is.
    pub(crate) fn follow(&mut self, seen: Seen) {
        (self.reign, self.learned) = (seen.reign, true);
        self.number = self.number.max(seen.number);
        self.last = self.last.max(seen.last);
    }

    fn is_idle(&self) -> bool {
        self.shards.is_empty() && self.nodes.is_empty() && self.asked == 0
    }
}

/// The groups whose home a shard is.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    homes: HashMap<u64, Home>,
    /// Messages of each member in this second.
    members: HashMap<(u64, u64), u32>,
    window_tick: u32,
    /// Shards whose mailbox had no room for a copy: they are told how far the group is.
    pub(crate) owed: HashSet<(u16, u64)>,
}

impl Homes {
    /// The group, which is remembered from now on.
    pub(crate) fn at(&mut self, group: u64) -> &mut Home {
        self.homes.entry(group).or_default()
    }

    pub(crate) fn get(&self, group: u64) -> Option<&Home> {
        self.homes.get(&group)
    }

    pub(crate) fn get_mut(&mut self, group: u64) -> Option<&mut Home> {
        self.homes.get_mut(&group)
    }

    /// The groups, in no order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u64> {
        self.homes.keys().copied()
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
        let idle = |home: &Home| home.is_idle() && home.sent == 0;
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
            !home.is_idle()
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
    fn a_group_is_large_above_a_limit_and_until_a_tenth_of_it_is_gone() {
        let mut home = Home::default();
        let sizes = [100, 101, 100, 91, 90, 91, 100, 101];
        let large = sizes.map(|members| home.is_large(members, 100));
        assert_eq!(large, [false, true, true, true, false, false, false, true]);
        assert!(!home.is_large(u32::MAX, 0), "0 is never");
        let mut home = Home::default();
        assert_eq!([1, 2, 1].map(|members| home.is_large(members, 1)), [false, true, false]);
    }

    #[test]
    fn a_home_leaves_a_number_out_when_it_does_not_know_what_another_has_passed_on() {
        let seen = |reign, number| Seen { reign, number, last: 10 * number };
        let mut home = Home::default();
        assert_eq!(home.register(NodeKey(1), Seen::NOTHING, 77), seen(77, 0), "nothing can be missing");
        assert!(home.reigns);
        home.number = 5;
        assert_eq!(
            home.register(NodeKey(1), seen(77, 3), 78).number,
            5,
            "of its own it knows that 4 and 5 are missing"
        );
        assert_eq!(home.register(NodeKey(2), seen(9, 5), 78).number, 6, "another 5 than this one, perhaps");
        assert_eq!(home.register(NodeKey(2), seen(9, 20), 78), seen(77, 21).with_last(200));
        assert_eq!(home.nodes, [NodeKey(1), NodeKey(2)]);
        home.begin_reign(80);
        assert_eq!(home.seen(), seen(80, 22).with_last(200));
        home.follow(seen(81, 30));
        home.follow(seen(82, 25));
        assert_eq!(home.seen(), seen(82, 30), "numbers never go back");
        home.register(NodeKey(3), seen(9, u64::MAX / 10).with_last(u64::MAX), 90);
        home.register(NodeKey(3), Seen { reign: 10, number: u64::MAX, last: u64::MAX }, 90);
        assert_eq!(home.seen().number, u64::MAX, "whatever a peer says");
        let mut fresh = Home::default();
        fresh.begin_reign(1);
        assert_eq!(fresh.number, 0, "the first message is number 1");
    }

    impl Seen {
        fn with_last(self, last: u64) -> Self {
            Seen { last, ..self }
        }
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
