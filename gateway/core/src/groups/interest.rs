//! Live rooms of which this node has sessions and another node is the home: that one is asked for copies, and asked
//! again until it has confirmed it, and whenever it may have forgotten. No I/O; times are ticks of the shard.
//!
//! Views change at each node by itself, and may change back. So who was asked and is not the home any more is told that
//! no copies are wanted, and does not forget it otherwise: it may be the home again in its own view while this node has
//! had no other.
//!
//! A copy counts from the confirmation on, and only from the node that has confirmed. What a former home still sends,
//! or this one sent before it lost its stream, is not taken: numbers would go back. Each interest in a home has a token
//! of its own, so that a late confirmation does not count for the next one.

use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::io::ConnId;
use crate::limits::ROOM_JOINS_WAITING_MAX;
use hashbrown::HashMap;
use std::collections::{BTreeSet, VecDeque};

/// A home that does not confirm is asked again after so many ticks: it may not have the view yet that makes it one.
const AGAIN_TICKS: u32 = 5;
/// A join waits so many ticks for the home, then it is refused.
const JOIN_TICKS: u32 = 30;

/// A session that wants to be in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joining {
    pub(crate) origin: Origin,
    pub(crate) user: u64,
    /// As in its frame.
    pub(crate) id: u64,
}

/// What a home is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) group: u64,
    pub(crate) node: NodeKey,
    pub(crate) shard: u16,
    pub(crate) token: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The home is to be asked; nobody, while there is none.
    Untold,
    Asked {
        tick: u32,
    },
    Confirmed,
}

/// One room.
#[derive(Debug)]
struct Interest {
    /// Node and shard; `None` while no node is the home of anything.
    home: Option<(NodeKey, u16)>,
    token: u64,
    stage: Stage,
    /// The home was asked, and may send copies whether it has confirmed that or not.
    told: bool,
    /// Joins that wait for the confirmation, with the ticks by which they are refused.
    joins: Vec<(u32, Joining)>,
}

/// All of a shard: those rooms whose copies for this node come here.
#[derive(Debug, Default)]
pub(crate) struct Interests {
    rooms: HashMap<u64, Interest>,
    /// Rooms whose home is to be asked. Some may be gone, or asked already.
    untold: VecDeque<u64>,
    /// Rooms whose home was asked, by when.
    asked: VecDeque<(u32, u64)>,
    /// Rooms with joins that wait, by when those are refused.
    overdue: BTreeSet<(u32, u64)>,
    /// Homes that are to be told that no copies are wanted any more.
    goodbyes: VecDeque<Word>,
    waiting: usize,
    next_token: u64,
}

impl Interests {
    /// Rooms whose home is another node.
    pub(crate) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Joins that wait for a home.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn contains(&self, group: u64) -> bool {
        self.rooms.contains_key(&group)
    }

    /// The rooms, in no order.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = u64> {
        self.rooms.keys().copied()
    }

    /// Whether a home has confirmed that copies come.
    pub(crate) fn is_confirmed(&self, group: u64) -> bool {
        self.rooms.get(&group).is_some_and(|room| room.stage == Stage::Confirmed)
    }

    /// Whether a copy from this node counts.
    pub(crate) fn takes_from(&self, group: u64, node: NodeKey) -> bool {
        self.is_confirmed(group) && self.is_home(group, node)
    }

    /// Copies of a room are wanted from that home: it is to be asked unless it was.
    pub(crate) fn want(&mut self, group: u64, home: Option<(NodeKey, u16)>) {
        let is_known = self.rooms.get(&group).is_some_and(|room| room.home == home);
        if !is_known {
            let joins = self.remove(group).unwrap_or_default().into_iter().collect();
            self.rooms.insert(group, Interest { home, token: 0, stage: Stage::Untold, told: false, joins });
            self.begin_anew(group);
        }
    }

    /// Forgets a room, whose home is to be told so if it was asked. Returns the joins that wait for it.
    fn remove(&mut self, group: u64) -> Option<Vec<(u32, Joining)>> {
        let Interest { home, token, told, joins, .. } = self.rooms.remove(&group)?;
        if let Some((node, shard)) = home.filter(|_| told) {
            self.say_goodbye(Word { group, node, shard, token });
        }
        Some(joins)
    }

    /// Whether the home of a room, as far as this node is concerned, is that node.
    pub(crate) fn is_home(&self, group: u64, node: NodeKey) -> bool {
        self.rooms.get(&group).is_some_and(|room| room.home.is_some_and(|(home, _)| home == node))
    }

    fn begin_anew(&mut self, group: u64) {
        self.next_token += 1;
        let Some(room) = self.rooms.get_mut(&group) else { return };
        (room.token, room.stage) = (self.next_token, Stage::Untold);
        self.untold.push_back(group);
        if self.untold.len() > 2 * self.rooms.len() + 64 {
            let rooms = &self.rooms;
            self.untold.retain(|group| rooms.get(group).is_some_and(|room| room.stage == Stage::Untold));
        }
    }

    /// Lets a join wait for the home of its room. False if too many wait.
    pub(crate) fn wait(&mut self, group: u64, join: Joining, tick: u32) -> bool {
        let has_room = self.waiting < ROOM_JOINS_WAITING_MAX;
        let Some(room) = self.rooms.get_mut(&group).filter(|_| has_room) else { return false };
        room.joins.push((tick + JOIN_TICKS, join));
        self.waiting += 1;
        self.overdue.insert((tick + JOIN_TICKS, group));
        true
    }

    /// Takes the joins of a session back that wait for the home of a room.
    pub(crate) fn take_joins_of(&mut self, group: u64, conn: ConnId, shard: u16) -> Vec<Joining> {
        let Some(room) = self.rooms.get_mut(&group) else { return Vec::new() };
        let is_of = |(_, join): &mut (u32, Joining)| (join.origin.conn, join.origin.shard) == (conn, shard);
        let taken: Vec<(u32, Joining)> = room.joins.extract_if(.., is_of).collect();
        self.waiting -= taken.len();
        for (due, _) in &taken {
            // They are in the order in which they came.
            if room.joins.binary_search_by_key(due, |(due, _)| *due).is_err() {
                self.overdue.remove(&(*due, group));
            }
        }
        taken.into_iter().map(|(_, join)| join).collect()
    }

    /// The next home to ask, which counts as asked from now on.
    pub(crate) fn next_ask(&mut self, tick: u32) -> Option<Word> {
        while let Some(group) = self.untold.pop_front() {
            let Some(room) = self.rooms.get_mut(&group).filter(|room| room.stage == Stage::Untold) else { continue };
            // Without a home there is nobody to ask; with one it is put here again.
            let Some((node, shard)) = room.home else { continue };
            (room.stage, room.told) = (Stage::Asked { tick }, true);
            self.asked.push_back((tick, group));
            return Some(Word { group, node, shard, token: room.token });
        }
        None
    }

    /// A home has confirmed. Returns the joins that waited for it; `None` if it is not what is waited for.
    pub(crate) fn confirm(&mut self, group: u64, node: NodeKey, token: u64) -> Option<Vec<Joining>> {
        let is_home = self.is_home(group, node);
        let room = self.rooms.get_mut(&group)?;
        if !is_home || room.token != token || room.stage == Stage::Confirmed {
            return None;
        }
        room.stage = Stage::Confirmed;
        let joins = std::mem::take(&mut room.joins);
        Some(self.no_more_wait(group, joins))
    }

    /// Joins of a room wait no more.
    fn no_more_wait(&mut self, group: u64, joins: Vec<(u32, Joining)>) -> Vec<Joining> {
        self.waiting -= joins.len();
        let ended = joins.into_iter().map(|(due, join)| {
            self.overdue.remove(&(due, group));
            join
        });
        ended.collect()
    }

    /// What a home was asked did not get there.
    pub(crate) fn was_lost(&mut self, group: u64, token: u64) {
        let lost = |room: &&mut Interest| room.token == token && room.stage != Stage::Confirmed;
        if let Some(room) = self.rooms.get_mut(&group).filter(lost) {
            room.stage = Stage::Untold;
            self.untold.push_back(group);
        }
    }

    /// Nodes have lost what was told to them: those of them that are homes are asked again.
    pub(crate) fn were_lost(&mut self, nodes: &[NodeKey]) {
        self.ask_again_if(|home| nodes.contains(&home));
    }

    /// This node counts as another one from now on, of which no home knows.
    pub(crate) fn all_were_lost(&mut self) {
        self.ask_again_if(|_| true);
    }

    fn ask_again_if(&mut self, which: impl Fn(NodeKey) -> bool) {
        let is_of = |room: &Interest| room.home.is_some_and(|(home, _)| which(home));
        let mut groups: Vec<u64> = self.rooms.iter().filter(|(_, room)| is_of(room)).map(|(group, _)| *group).collect();
        // Not in the order of a table.
        groups.sort_unstable();
        groups.into_iter().for_each(|group| self.begin_anew(group));
    }

    /// Nobody here is in the room any more, or waits to be. Returns whether it is forgotten now; then its home is to be
    /// told.
    pub(crate) fn release(&mut self, group: u64) -> bool {
        if self.rooms.get(&group).is_none_or(|room| !room.joins.is_empty()) {
            return false;
        }
        self.remove(group);
        true
    }

    /// A home is to be told that no copies are wanted.
    pub(crate) fn say_goodbye(&mut self, word: Word) {
        if self.goodbyes.len() >= ROOM_JOINS_WAITING_MAX {
            // That home is told when it sends the next copy.
            self.goodbyes.pop_front();
        }
        self.goodbyes.push_back(word);
    }

    /// The next home to tell so. One that is asked again meanwhile is not told.
    pub(crate) fn next_goodbye(&mut self) -> Option<Word> {
        while let Some(word) = self.goodbyes.pop_front() {
            let again = self.rooms.get(&word.group).is_some_and(|room| room.home == Some((word.node, word.shard)));
            if !again {
                return Some(word);
            }
        }
        None
    }

    /// This node is the home of the room from now on. Returns the joins that waited for another; `None` if this node
    /// was the home before, or nobody here knew of the room.
    pub(crate) fn take(&mut self, group: u64) -> Option<Vec<Joining>> {
        let joins = self.remove(group)?;
        Some(self.no_more_wait(group, joins))
    }

    /// Lets time pass: homes that have not confirmed are to be asked again. Returns the joins whose time is over.
    pub(crate) fn expire(&mut self, tick: u32) -> Vec<(u64, Joining)> {
        while let Some((since, group)) = self.asked.pop_front_if(|(since, _)| *since + AGAIN_TICKS <= tick) {
            let waits = |room: &&mut Interest| room.stage == Stage::Asked { tick: since };
            if let Some(room) = self.rooms.get_mut(&group).filter(waits) {
                room.stage = Stage::Untold;
                self.untold.push_back(group);
            }
        }
        let mut over = Vec::new();
        while self.overdue.first().is_some_and(|(due, _)| *due <= tick)
            && let Some((_, group)) = self.overdue.pop_first()
        {
            let Some(room) = self.rooms.get_mut(&group) else { continue };
            let late = room.joins.extract_if(.., |(due, _)| *due <= tick);
            over.extend(late.map(|(_, join)| (group, join)));
        }
        self.waiting -= over.len();
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeKey = NodeKey(1);
    const B: NodeKey = NodeKey(2);

    fn join(slot: u32) -> Joining {
        Joining { origin: Origin::own(3, ConnId { slot, generation: 1 }), user: 5, id: slot.into() }
    }

    fn asks(interests: &mut Interests, tick: u32) -> Vec<(u64, NodeKey, u64)> {
        let asks = std::iter::from_fn(|| interests.next_ask(tick));
        asks.map(|word| (word.group, word.node, word.token)).collect()
    }

    #[test]
    fn a_join_waits_for_the_home_and_copies_count_from_the_confirmation_on() {
        let mut interests = Interests::default();
        interests.want(7, Some((A, 1)));
        interests.want(7, Some((A, 1)));
        assert!(interests.wait(7, join(1), 10) && interests.wait(7, join(2), 10));
        assert_eq!(asks(&mut interests, 10), [(7, A, 1)], "once");
        assert!(!interests.takes_from(7, A));
        assert_eq!(interests.confirm(7, B, 1), None, "another node");
        assert_eq!(interests.confirm(7, A, 9), None, "of another time");
        assert_eq!(interests.confirm(7, A, 1), Some(vec![join(1), join(2)]));
        assert_eq!(interests.confirm(7, A, 1), None, "a second time");
        assert!(interests.takes_from(7, A) && !interests.takes_from(7, B) && !interests.takes_from(8, A));
        assert_eq!((interests.waiting(), interests.expire(1_000)), (0, Vec::new()));
        assert_eq!(asks(&mut interests, 1_000), []);
    }

    #[test]
    fn a_home_that_does_not_confirm_is_asked_again_and_who_waits_is_refused_in_time() {
        let mut interests = Interests::default();
        interests.want(7, Some((A, 1)));
        interests.wait(7, join(1), 0);
        assert_eq!(asks(&mut interests, 0), [(7, A, 1)]);
        assert_eq!(interests.expire(AGAIN_TICKS - 1), []);
        assert_eq!(asks(&mut interests, AGAIN_TICKS - 1), []);
        assert_eq!(interests.expire(AGAIN_TICKS), []);
        assert_eq!(asks(&mut interests, AGAIN_TICKS), [(7, A, 1)]);
        interests.was_lost(7, 1);
        assert_eq!(asks(&mut interests, AGAIN_TICKS), [(7, A, 1)]);
        interests.wait(7, join(2), 4);
        assert!(!interests.release(7), "somebody waits");
        assert_eq!(interests.expire(JOIN_TICKS), [(7, join(1))]);
        assert_eq!(interests.expire(JOIN_TICKS + 4), [(7, join(2))]);
        assert!(interests.release(7) && interests.len() == 0);
        let goodbye = interests.next_goodbye().map(|word| (word.group, word.node, word.shard));
        assert_eq!(goodbye, Some((7, A, 1)), "it may know of the interest");
    }

    #[test]
    fn another_home_is_asked_and_a_late_word_of_the_first_one_does_not_count() {
        let mut interests = Interests::default();
        interests.want(7, Some((A, 1)));
        interests.wait(7, join(1), 0);
        let [(_, _, first)] = asks(&mut interests, 0)[..] else { panic!("one") };
        interests.want(7, Some((B, 0)));
        interests.want(7, Some((A, 1)));
        let [(7, A, third)] = asks(&mut interests, 0)[..] else { panic!("one") };
        assert_eq!(interests.confirm(7, A, first), None, "it was asked in another view");
        assert_eq!(interests.confirm(7, A, third), Some(vec![join(1)]));
        let goodbyes = std::iter::from_fn(|| interests.next_goodbye()).map(|word| word.node);
        assert_eq!(goodbyes.collect::<Vec<_>>(), [], "B was not asked, and A is the home again");
        interests.were_lost(&[B]);
        assert!(interests.takes_from(7, A));
        interests.were_lost(&[A, B]);
        assert!(!interests.takes_from(7, A), "what comes now may lie behind what was lost");
        assert_eq!(asks(&mut interests, 1).len(), 1);
        interests.all_were_lost();
        assert_eq!(asks(&mut interests, 1).len(), 1);
        interests.want(7, None);
        assert_eq!(asks(&mut interests, 2), [], "there is nobody to ask");
        interests.want(7, Some((B, 0)));
        assert_eq!(asks(&mut interests, 2).len(), 1);
        assert_eq!(interests.next_goodbye().map(|word| word.node), Some(A), "it was asked, and is not the home");
        assert_eq!(interests.next_goodbye(), None);
    }

    #[test]
    fn who_leaves_before_the_confirmation_does_not_come_in_with_it() {
        let mut interests = Interests::default();
        interests.want(7, Some((A, 1)));
        assert!([1, 2, 1].iter().all(|slot| interests.wait(7, join(*slot), 0)));
        let [(7, A, token)] = asks(&mut interests, 0)[..] else { panic!("one") };
        assert_eq!(interests.take_joins_of(7, join(1).origin.conn, 2), [], "a session of another shard");
        assert_eq!(interests.take_joins_of(7, join(1).origin.conn, 3), [join(1), join(1)]);
        assert_eq!(interests.confirm(7, A, token), Some(vec![join(2)]));
        assert!(interests.release(7));
        interests.want(7, Some((A, 1)));
        assert_eq!(interests.next_goodbye(), None, "behind the new question it would end what that began");
        assert_eq!(interests.take(7), Some(Vec::new()), "this node is the home");
        assert_eq!(interests.take(7), None);
        assert_eq!(interests.next_goodbye(), None, "nobody was asked");
    }

    #[test]
    fn so_many_joins_wait_and_no_more() {
        let mut interests = Interests::default();
        interests.want(7, Some((A, 1)));
        assert!((0..ROOM_JOINS_WAITING_MAX as u32).all(|slot| interests.wait(7, join(slot), 0)));
        assert!(!interests.wait(7, join(9), 0));
        assert_eq!(interests.take_joins_of(7, join(5).origin.conn, 3), [join(5)]);
        assert!(interests.wait(7, join(9), 0), "one that was taken back takes no room");
        assert_eq!(interests.expire(JOIN_TICKS).len(), ROOM_JOINS_WAITING_MAX);
        assert!(interests.wait(7, join(9), 0) && interests.overdue.len() == 1);
        interests.take_joins_of(7, join(9).origin.conn, 3);
        assert!(interests.overdue.is_empty() && interests.waiting() == 0);
    }
}
