//! Groups and live rooms, as a shard sees them. No I/O and no clock.
//!
//! A group has a home shard, a pure function of its id, through which all of its messages go: there they are numbered,
//! and from there each shard with sessions of members gets one record. A shard has a *part* of the group: its own
//! sessions that are in it. A message is encoded once for a part and walked through it, so many sessions a turn, so
//! that others do not feel it.
//!
//! Who is a member of a durable group is known to the store's thread, which decides about each message as it stores it.
//! Of a live room (ids from 2^63 on) sessions are members, and nothing is stored.
//!
//! | file | what |
//! |---|---|
//! | `part` | a shard's own sessions in each group, and frames on their way through them |
//! | `home` | what the home of a group knows: the number, who is to get copies, rates |
//! | `interest` | in a cluster: groups and live rooms of which this node has sessions and another node is the home |
//! | `joins` | joins of live rooms that are not answered |
//! | `behind` | sessions that were not given something, and are told so |
//! | `demands` | what single sessions ask of homes and of the store |
//! | `later` | sessions whose groups the store has not named |
//! | `marks` | what users have read, on its way to the store |
//! | `budget` | what sessions are given of live rooms in a second |
//! | `mail` | what shards say to each other about groups |
//! | `ask` | in a cluster: what is asked of the home of a durable group, as bytes |
//! | `away` | such questions under way, and what a home owes to other nodes |
//!
//! `core/groups.rs` brings them together with frames, mailboxes and the store, `core/fan_out.rs` with sessions,
//! `core/rooms.rs` and `core/shared_groups.rs` with other nodes.

pub(crate) mod ask;
pub(crate) mod asked;
pub(crate) mod away;
pub(crate) mod behind;
pub(crate) mod budget;
pub(crate) mod demands;
pub(crate) mod home;
pub(crate) mod interest;
pub(crate) mod joins;
pub(crate) mod later;
pub(crate) mod mail;
pub(crate) mod marks;
pub(crate) mod part;

use crate::limits::ATTENTION_WAITING_MAX;
use away::Away;
use behind::Behind;
use budget::RoomBudget;
use demands::Demands;
use hashbrown::HashMap;
use home::Homes;
use interest::Interests;
use joins::Joins;
use later::Later;
use marks::Marks;
use part::Parts;
use std::collections::VecDeque;
use trunkline_router_core::hash::home_shard;

/// Group ids from here on are live rooms.
pub const ROOMS_FROM: u64 = 1 << 63;
/// Numbers of messages on the wire go up to here, then begin again with 1.
const NUMBERS: u64 = 65_535;
/// What group ids are mixed with before they are placed, so that a group does not follow the user of the same number.
pub(crate) const PLACE: u64 = 0xA5A5_5A5A_C3C3_3C3C;
/// What a session's membership takes: its entry, its place in the part, and as much again while both grow.
pub const MEMBERSHIP_BYTES: u64 = 2 * (12 + 4);

/// How a message goes to the members of a group, as its home says with each copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// The group is large: sessions that pay no attention are told by HEADS that there is something.
    pub(crate) passive: bool,
    /// It is not in the log, so there is nothing to ask for.
    pub(crate) unkept: bool,
}

impl Manner {
    /// As on the way to shards and nodes. A node that does not know a bit gives the message to all.
    pub(crate) fn bits(self) -> u8 {
        u8::from(self.passive) | u8::from(self.unkept) << 1
    }

    pub(crate) fn from_bits(bits: u8) -> Self {
        Manner { passive: bits & 1 != 0, unkept: bits & 2 != 0 }
    }
}

/// Whether a group is a live room.
pub(crate) fn is_room(group: u64) -> bool {
    group >= ROOMS_FROM
}

/// The home shard of a group, of so many.
pub fn group_home(group: u64, shards: u16) -> u16 {
    home_shard(group ^ PLACE, u32::from(shards)) as u16
}

/// A message's number in its group, as it is on the wire.
pub(crate) fn wire_number(number: u64) -> u16 {
    if number == 0 { 0 } else { ((number - 1) % NUMBERS + 1) as u16 }
}

/// A user whose groups the store was asked for.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Questions under way.
    pub(crate) questions: u32,
    /// What has become of its memberships meanwhile: the answer may be older.
    pub(crate) events: Vec<(u64, bool)>,
    /// Sessions that want to pay attention to a group, with the id of the frame: the answer says whether they are in it.
    pub(crate) wishes: Vec<(crate::io::ConnId, u64, u64)>,
}

impl Asking {
    /// A wish waits for the answer. False if too many do.
    pub(crate) fn wish(&mut self, conn: crate::io::ConnId, group: u64, id: u64) -> bool {
        let has_room = self.wishes.len() < ATTENTION_WAITING_MAX;
        if has_room {
            self.wishes.push((conn, group, id));
        }
        has_room
    }

    /// A session wants it no more. Returns the ids of the frames that asked for it.
    pub(crate) fn withdraw(&mut self, conn: crate::io::ConnId, group: u64) -> Vec<u64> {
        let (mut ids, is_it) = (Vec::new(), |(of, wished, _): &(_, u64, u64)| *of == conn && *wished == group);
        ids.extend(self.wishes.iter().filter(|wish| is_it(wish)).map(|(.., id)| *id));
        self.wishes.retain(|wish| !is_it(wish));
        ids
    }
}

/// What a shard knows of groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) parts: Parts,
    pub(crate) homes: Homes,
    pub(crate) interests: Interests,
    pub(crate) behind: Behind,
    pub(crate) budget: RoomBudget,
    pub(crate) joins: Joins,
    pub(crate) asking: HashMap<u64, Asking>,
    pub(crate) demands: Demands,
    pub(crate) marks: Marks,
    /// Sessions whose groups the store could not be asked for.
    pub(crate) later: Later,
    /// Of durable groups in a cluster: questions to other homes, and what is owed to other nodes.
    pub(crate) away: Away,
    /// Durable groups whose home this is, and that the store could not be told so.
    pub(crate) unclaimed: Vec<u64>,
    /// The slot from which on sessions are looked at whose groups are asked for again.
    pub(crate) look_again: Option<u32>,
    /// And all of them once more behind that.
    pub(crate) look_once_more: bool,
    /// Copies for this node were not taken while it was fenced: its sessions ask again when it is not.
    pub(crate) copies_refused: bool,
    /// When sessions of all nodes are to ask again, because it is not known what has become of a membership.
    pub(crate) unknown_due: Option<u32>,
    /// When they were last told to.
    pub(crate) unknown_told: Option<u32>,
    /// Messages that the store has not answered, the oldest first: since when, and as what they were asked.
    pub(crate) unanswered: VecDeque<(u32, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_without_a_zero() {
        let numbers = [0, 1, 2, 65_535, 65_536, 65_537, 2 * 65_535, 2 * 65_535 + 1].map(wire_number);
        assert_eq!(numbers, [0, 1, 2, 65_535, 1, 2, 65_535, 1]);
    }

    #[test]
    fn groups_are_spread_over_shards_and_do_not_follow_users() {
        let mut counts = [0; 4];
        let mut same = 0;
        for group in 1..=4_000 {
            let home = group_home(group, 4);
            counts[usize::from(home)] += 1;
            same += u32::from(u32::from(home) == home_shard(group, 4));
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
        assert!((800..1_200).contains(&same), "{same}");
    }
}
