//! Watching who is online, as a shard sees it. No I/O and no clock: times are ticks of the shard.
//!
//! A shard has two sides. As the shard of *watchers* it knows which of its sessions watch which users, and what was
//! last heard of each. As the *home* of users it knows which shards, of this node or another, watch them. A shard asks
//! the home once for all of its watchers; the home answers with a snapshot, then tells of changes: online at once,
//! offline after [`OFFLINE_TICKS`], and at most one change of a user in [`CHANGE_TICKS`]. What a session is to be told
//! is no queue but a mark at its watch, so the latest state wins and nothing grows.
//!
//! | file | what |
//! |---|---|
//! | `watchers` | users to sessions and back; what each session is still to be told |
//! | `homes` | users to shards; which change is due when |
//! | `table` | users by number and by place, for both |
//! | `lists`, `class_lists` | what there is for each user besides: sessions, and classes of devices |
//! | `mail` | what shards of a node say to each other about it |
//!
//! `core/watch.rs` brings them together with frames, presence, mailboxes and other nodes.

mod class_lists;
pub(crate) mod homes;
mod lists;
pub(crate) mod mail;
mod table;
pub(crate) mod watchers;

use crate::auth::Whom;
use crate::ids::NodeKey;
use hashbrown::{HashMap, HashSet};
use homes::Homes;
use watchers::Watchers;

/// A user counts as offline when the last session has been gone for this long, ticks: 10 s.
pub(crate) const OFFLINE_TICKS: u32 = 100;
/// Between two changes of a user that watchers are told of, ticks: 5 s.
pub(crate) const CHANGE_TICKS: u32 = 50;
/// Between two PRESENCE frames of a session, ticks: 1 s.
pub(crate) const FRAME_TICKS: u32 = 10;
/// Users of one PRESENCE frame.
pub(crate) const FRAME_USERS_MAX: usize = 256;
/// How long an answer to WATCH waits for the homes of all its users, ticks.
pub(crate) const HOLD_TICKS: u32 = 3;
/// A watcher is told *unknown* when a home has not answered for this long, ticks: 3 s.
pub(crate) const FRESH_TICKS: u32 = 30;
/// A state that was known counts for so long without a home that confirms it, ticks: 10 s, which is more than a new
/// home takes to know.
pub(crate) const STALE_TICKS: u32 = 100;
/// A home that did not get the question is asked again after so many ticks.
pub(crate) const AGAIN_TICKS: u32 = 10;
/// A home whose table is full is asked again after so many ticks.
pub(crate) const FULL_TICKS: u32 = 300;

/// Whether a user is online, as far as anybody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Status {
    /// Nobody can say at the moment.
    Unknown = 0,
    /// No device is connected, and none has been for a while.
    Offline = 1,
    /// At least one device is connected, or was until shortly.
    Online = 2,
}

impl Status {
    /// The status of this number; `None` for a number of no status.
    pub(crate) fn from_u8(number: u8) -> Option<Self> {
        [Status::Unknown, Status::Offline, Status::Online].get(usize::from(number)).copied()
    }
}

/// What is said of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State<'a> {
    pub(crate) status: Status,
    /// Since when, seconds since the Unix epoch; 0 if that is not known.
    pub(crate) since_s: u32,
    /// The class of each device, see [`push_class`]; empty for a user none of whose devices tells one.
    pub(crate) classes: &'a [u8],
}

#[cfg(test)]
impl State<'_> {
    pub(crate) const UNKNOWN: State<'static> = State { status: Status::Unknown, since_s: 0, classes: &[] };
}

/// Longest list of classes: those of as many devices as a user may have.
pub(crate) const CLASSES_BYTES_MAX: usize =
    trunkline_router_core::presence::DEVICES_PER_USER_LIMIT * (1 + crate::limits::CLASS_BYTES_MAX);

/// Appends the class of a device to a list of them: a byte of length, then the text. One that is empty is no news.
pub(crate) fn push_class(classes: &mut Vec<u8>, class: &str) {
    let class = class.as_bytes();
    if let (Ok(length @ 1..), true) = (u8::try_from(class.len()), classes.len() + 1 + class.len() <= CLASSES_BYTES_MAX)
    {
        classes.push(length);
        classes.extend_from_slice(class);
    }
}

/// The classes of a list. What another node has garbled ends it.
pub(crate) fn classes_of(mut list: &[u8]) -> Vec<String> {
    let mut classes = Vec::new();
    while let Some((length, rest)) = list.split_first() {
        let Some((class, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
        let Ok(class) = std::str::from_utf8(class) else { break };
        classes.push(class.to_owned());
        list = rest;
    }
    classes
}

/// A shard of a node: one that asks a home, or one that is a home. [`NodeKey::OWN`] is this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) node: NodeKey,
    pub(crate) shard: u16,
}

/// A small table of places, so that what refers to one needs a number of two bytes.
#[derive(Debug, Default)]
pub(crate) struct Places {
    places: Vec<Option<Place>>,
}

impl Places {
    /// The number of a place, which it gets if it has none; `None` when there is no number left.
    pub(crate) fn number(&mut self, place: Place) -> Option<u16> {
        if let Some(at) = self.places.iter().position(|known| *known == Some(place)) {
            return Some(at as u16);
        }
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        // The last number stands for none.
        if free >= usize::from(u16::MAX) {
            return None;
        }
        match self.places.get_mut(free) {
            Some(at) => *at = Some(place),
            None => self.places.push(Some(place)),
        }
        Some(free as u16)
    }

    /// The place of a number.
    pub(crate) fn at(&self, number: u16) -> Option<Place> {
        self.places.get(usize::from(number)).copied().flatten()
    }

    /// The number that a place has.
    pub(crate) fn find(&self, place: Place) -> Option<u16> {
        self.places.iter().position(|known| *known == Some(place)).map(|at| at as u16)
    }

    /// The numbers of those places for which `wanted` is true.
    pub(crate) fn numbers(&self, wanted: impl Fn(Place) -> bool) -> Vec<u16> {
        let places = (0..).zip(&self.places);
        places.filter(|(_, place)| place.is_some_and(&wanted)).map(|(number, _)| number).collect()
    }

    /// Takes the numbers of those places back for which `keeps` is false, and returns them. Nothing may refer to them
    /// any more.
    pub(crate) fn retain(&mut self, keeps: impl Fn(Place) -> bool) -> Vec<u16> {
        let mut gone = Vec::new();
        for (at, place) in self.places.iter_mut().enumerate() {
            if place.is_some_and(|place| !keeps(place)) {
                *place = None;
                gone.push(at as u16);
            }
        }
        gone
    }
}

/// What a shard knows of watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    pub(crate) watchers: Watchers,
    pub(crate) homes: Homes,
    /// Nodes that were not reached at the last look.
    silent: Vec<NodeKey>,
    /// Whom sessions may watch, by slot, where tokens say so.
    pub(crate) claims: HashMap<u32, Whom>,
    /// Bytes of the lists in them.
    pub(crate) claim_bytes: usize,
    /// Slots of sessions for whose list there was no room.
    pub(crate) unkept: HashSet<u32>,
    /// The node could not serve at the last tick.
    paused: bool,
}

impl Watches {
    /// The node cannot serve in this tick: it cannot tell who is online, and must not.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    /// The node can serve. If it could not before, what it can tell of users may be another thing now.
    pub(crate) fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.homes.begin_walk();
        }
    }

    /// These nodes are not reached. Returns those of them that were at the last look.
    pub(crate) fn note_silent(&mut self, silent: Vec<NodeKey>) -> Vec<NodeKey> {
        let known = std::mem::replace(&mut self.silent, silent);
        self.silent.iter().filter(|node| !known.contains(node)).copied().collect()
    }

    /// Nobody watches, and nobody is watched.
    pub(crate) fn is_idle(&self) -> bool {
        self.watchers.is_empty() && self.homes.is_empty()
    }

    /// Memory held, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let claims = self.claims.allocation_size() + self.claim_bytes + self.unkept.allocation_size();
        self.watchers.bytes() + self.homes.bytes() + claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_come_back_and_a_garbled_list_ends() {
        let mut list = Vec::new();
        ["phone", "", "desktop"].iter().for_each(|class| push_class(&mut list, class));
        assert_eq!(classes_of(&list), ["phone", "desktop"], "an empty one is no news");
        assert_eq!(classes_of(&list[..list.len() - 1]), ["phone"]);
        assert_eq!(classes_of(&[2, 0xFF, 0xFF, 1, b'a']), Vec::<String>::new());
        let long = "x".repeat(64);
        (0..100).for_each(|_| push_class(&mut list, &long));
        assert!(list.len() <= CLASSES_BYTES_MAX && classes_of(&list).len() > 60);
    }

    #[test]
    fn a_place_keeps_its_number_until_it_is_taken_back() {
        let place = |shard| Place { node: NodeKey(u64::from(shard) % 2), shard };
        let mut places = Places::default();
        assert_eq!((0..4).map(|shard| places.number(place(shard)).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!((places.number(place(2)), places.at(2), places.at(9)), (Some(2), Some(place(2)), None));
        assert_eq!(places.retain(|place| place.node == NodeKey(1)), [0, 2]);
        assert_eq!((places.at(2), places.find(place(3))), (None, Some(3)));
        assert_eq!((places.number(place(5)), places.number(place(2))), (Some(0), Some(2)));
    }
}
