//! The home of users who are watched: which shards are told of each, what they were told last, and when the next change
//! is due.
//!
//! All who watch a user have been told the same. A change goes out at once when a user comes online, and after a while
//! when a user goes: whoever is back by then was never away. Two changes are five seconds apart; what lies between them
//! is never told, the last one is. A shard that asks is told what the others were told, not what has become of the user
//! since: else it would miss that nothing has changed for them.

use super::table::{Entry, Table};
use super::{CHANGE_TICKS, OFFLINE_TICKS, Place, Places, Status};
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Numbers of places that have a bit in the entry itself.
const FEW: u16 = 64;

/// What is so of a user, by the sessions that the home knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Actual {
    pub(crate) online: bool,
    /// Since when, seconds since the Unix epoch, for one who is online.
    pub(crate) since_s: u32,
    /// Equal for equal lists of classes.
    pub(crate) classes: u32,
}

impl Actual {
    pub(crate) const OFFLINE: Actual = Actual { online: false, since_s: 0, classes: 0 };
}

/// A user who is watched.
#[derive(Debug, Default)]
struct Watched {
    user: u64,
    /// Numbers of the places that are told, below [`FEW`]. Hardly any user has others, see [`MORE`].
    few: u64,
    /// What was told of the classes.
    classes: u32,
    /// When the last change was told.
    changed_tick: u32,
    /// When the next one is to be; 0 if none is.
    due_tick: u32,
    /// Since when it has been as it was told; 0 if that is not known.
    since_s: u32,
    told: u8,
    bits: u8,
}

const _: () = assert!(size_of::<Watched>() <= 40);

/// The user is in the queue.
const QUEUED: u8 = 1;
/// Watchers know the user as online, by this home before or by another one.
const HOPED: u8 = 2;
/// Watchers know the user as offline, likewise.
const FEARED: u8 = 16;
/// What is so is to be told even if it is what was told: somebody was told something else meanwhile.
const UNEVEN: u8 = 4;
/// The last session has gone, and the wait has begun after which that is told.
const GOING: u8 = 8;
/// Places with higher numbers are told, too: they are in a list beside the table.
const MORE: u8 = 32;

impl Entry for Watched {
    fn user(&self) -> u64 {
        self.user
    }
}

impl Watched {
    fn told(&self) -> Status {
        Status::from_u8(self.told).unwrap_or(Status::Unknown)
    }

    fn is_told(&self, actual: Actual) -> bool {
        let status = if actual.online { Status::Online } else { Status::Offline };
        self.told() == status && (!actual.online || self.classes == actual.classes)
    }

    fn set_told(&mut self, actual: Actual, now_s: u32) {
        let status = if actual.online { Status::Online } else { Status::Offline };
        // Who was online until now is offline since now, as far as anybody was told; of others it is not known.
        self.since_s = match (actual.online, self.told()) {
            (true, _) => actual.since_s,
            (false, Status::Online) => now_s,
            (false, Status::Offline) => self.since_s,
            (false, Status::Unknown) => 0,
        };
        (self.told, self.classes) = (status as u8, actual.classes);
        self.bits &= !(HOPED | FEARED | UNEVEN | GOING);
    }

    fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }

    fn is_watched(&self) -> bool {
        self.few != 0 || self.has(MORE)
    }
}

/// What was told of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) status: Status,
    pub(crate) since_s: u32,
}

/// The time of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) tick: u32,
    /// Seconds since the Unix epoch.
    pub(crate) wall_s: u32,
}

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    users: Table<Watched>,
    /// Numbers of places from [`FEW`] on that are told, by the user's place in the table.
    more: HashMap<u32, Vec<u16>>,
    places: Places,
    /// Users for whom a change may be due, by when; each at most once.
    queue: BinaryHeap<Reverse<(u32, u64)>>,
    /// Users that places are still to be told of: there was no room for it.
    owed: BTreeSet<(u16, u64)>,
    /// Where the walk is that looks at all users again.
    walk: Option<u32>,
    list_bytes: usize,
}

/// What one more user may take: entry, place in the index, and in the queue.
const USER_BYTES_MOST: usize = size_of::<Watched>() + 16 + 16;

impl Homes {
    /// Users who are watched.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.users.len() == 0
    }

    /// Memory held, bytes.
    pub(crate) fn bytes(&self) -> usize {
        // An entry of the set of what is owed takes about as much again for the nodes of its tree.
        let owed = self.owed.len() * 2 * size_of::<(u16, u64)>();
        self.users.bytes()
            + self.more.allocation_size()
            + self.queue.capacity() * size_of::<(u32, u64)>()
            + owed
            + self.list_bytes
    }

    /// Whether there is room for one more user: what one took who is not watched any more is free at once.
    fn has_room(&self, bytes_max: usize) -> bool {
        let owed = self.owed.len() * 2 * size_of::<(u16, u64)>();
        let others = self.more.allocation_size() + owed + self.list_bytes;
        self.users.used_bytes() + self.queue.len() * size_of::<(u32, u64)>() + others + USER_BYTES_MOST <= bytes_max
    }

    /// A place asks for a user, of whom its watchers were told `known` before. Returns what it is to be told, and
    /// whether all others are, too, because it is only known now; `None` if there is no room.
    pub(crate) fn ask(
        &mut self,
        user: u64,
        place: Place,
        known: Status,
        actual: Option<Actual>,
        now: Moment,
        bytes_max: usize,
    ) -> Option<(Told, bool)> {
        let number = self.places.number(place)?;
        let at = match self.users.find(user) {
            Some(at) => at,
            None => {
                if !self.has_room(bytes_max) {
                    return None;
                }
                // Another home may just have told of a change, if any has told anything.
                let since = if known == Status::Unknown { CHANGE_TICKS } else { 0 };
                let changed_tick = now.tick.wrapping_sub(since);
                self.users.add(Watched { user, changed_tick, ..Watched::default() })?
            }
        };
        let entry = self.users.at(at)?;
        if number < FEW {
            entry.few |= 1 << number;
        } else {
            entry.bits |= MORE;
            let more = self.more.entry(at).or_default();
            if !more.contains(&number) {
                let before = more.capacity();
                more.reserve_exact(1);
                more.push(number);
                self.list_bytes += (more.capacity() - before) * 2;
            }
        }
        if known == Status::Online && entry.told() == Status::Unknown && !entry.has(HOPED) {
            entry.bits |= HOPED;
            entry.due_tick = now.tick + OFFLINE_TICKS;
        }
        if known == Status::Offline && entry.told() == Status::Unknown {
            entry.bits |= FEARED;
        }
        match actual {
            Some(actual) if entry.told() == Status::Unknown => {
                self.settle(at, actual, now);
                return Some((self.said(user)?, true));
            }
            // It is told of the classes that are there, and the others were told of other ones.
            Some(actual) if entry.told() == Status::Online && !entry.is_told(actual) => entry.bits |= UNEVEN,
            _ => {}
        }
        Some((self.said(user)?, false))
    }

    /// A place wants to hear of a user no more.
    pub(crate) fn forget(&mut self, user: u64, place: Place) {
        let (Some(number), Some(at)) = (self.places.find(place), self.users.find(user)) else { return };
        self.leave(at, number);
    }

    fn leave(&mut self, at: u32, number: u16) {
        let Some(entry) = self.users.at(at) else { return };
        if number < FEW {
            entry.few &= !(1 << number);
        } else if let Some(more) = self.more.get_mut(&at) {
            more.retain(|known| *known != number);
            if more.is_empty() {
                self.list_bytes -= more.capacity() * 2;
                self.more.remove(&at);
                entry.bits &= !MORE;
            }
        }
        if !entry.is_watched() {
            // What is in the queue finds nobody.
            self.users.remove(at);
        }
    }

    /// Whether a user is watched: then [`Homes::changed`] is to be told what becomes of the user's sessions.
    pub(crate) fn is_watched(&self, user: u64) -> bool {
        self.users.len() > 0 && self.users.find(user).is_some()
    }

    /// What is so of a user may be something else now; `None` if this shard cannot tell any more. Returns whether
    /// everybody is to be told at once what [`Homes::said`] gives.
    pub(crate) fn changed(&mut self, user: u64, actual: Option<Actual>, now: Moment) -> bool {
        self.users.find(user).is_some_and(|at| self.look_at(at, actual, now))
    }

    fn look_at(&mut self, at: u32, actual: Option<Actual>, now: Moment) -> bool {
        let Some(entry) = self.users.at(at) else { return false };
        let Some(actual) = actual else {
            match entry.told() {
                Status::Online => {
                    if !entry.has(GOING) {
                        entry.due_tick = now.tick + OFFLINE_TICKS;
                    }
                    entry.bits |= HOPED;
                }
                Status::Offline => entry.bits |= FEARED,
                Status::Unknown => {}
            }
            entry.told = Status::Unknown as u8;
            return false;
        };
        if entry.told() == Status::Unknown {
            self.settle(at, actual, now);
            return true;
        }
        if entry.is_told(actual) && !entry.has(UNEVEN) {
            entry.due_tick = 0;
            entry.bits &= !GOING;
            return false;
        }
        // What others were told stays so for a while, so that who is back soon was never away; that a device more or
        // less is there is no more urgent. Only that somebody is there is.
        let apart = entry.changed_tick.wrapping_add(CHANGE_TICKS);
        let is_apart = now.tick.wrapping_sub(entry.changed_tick) >= CHANGE_TICKS;
        let comes_online = actual.online && entry.told() == Status::Offline;
        if comes_online && (is_apart || planted(Planted::TooOften)) {
            entry.set_told(actual, now.wall_s);
            (entry.changed_tick, entry.due_tick) = (now.tick, 0);
            return true;
        }
        let goes_on = entry.has(GOING);
        entry.bits = if actual.online { entry.bits & !GOING } else { entry.bits | GOING };
        match actual.online {
            true if comes_online => entry.due_tick = apart,
            true if entry.due_tick == 0 => entry.due_tick = now.tick + OFFLINE_TICKS,
            // A wait that has begun is not begun again: who asks or looks does not put it off.
            false if !goes_on => entry.due_tick = now.tick + OFFLINE_TICKS,
            _ => {}
        }
        self.enqueue(at);
        false
    }

    /// It is known now what is so of a user, of whom it was not.
    fn settle(&mut self, at: u32, actual: Actual, now: Moment) {
        let Some(entry) = self.users.at(at) else { return };
        let lingers = entry.has(HOPED) && !entry.has(FEARED) && !actual.online && entry.due_tick > now.tick;
        if lingers {
            // The home of before has told that the user is online: whoever is back soon was never away.
            (entry.told, entry.classes, entry.since_s) = (Status::Online as u8, 0, 0);
            entry.bits = entry.bits & !HOPED | GOING;
            return self.enqueue(at);
        }
        let apart = entry.changed_tick.wrapping_add(CHANGE_TICKS);
        let is_apart = now.tick.wrapping_sub(entry.changed_tick) >= CHANGE_TICKS;
        let comes_online = entry.has(FEARED) && !entry.has(HOPED) && actual.online;
        if comes_online && !is_apart {
            // The home of before may just have told that the user is offline.
            (entry.told, entry.classes, entry.since_s, entry.due_tick) = (Status::Offline as u8, 0, 0, apart);
            entry.bits &= !FEARED;
            return self.enqueue(at);
        }
        if comes_online {
            entry.changed_tick = now.tick;
        }
        if entry.has(HOPED) && !actual.online {
            (entry.told, entry.changed_tick) = (Status::Online as u8, now.tick);
        }
        entry.set_told(actual, now.wall_s);
        entry.due_tick = 0;
    }

    fn enqueue(&mut self, at: u32) {
        if let Some(entry) = self.users.at(at).filter(|entry| !entry.has(QUEUED)) {
            entry.bits |= QUEUED;
            let queued = Reverse((entry.due_tick, entry.user));
            self.queue.push(queued);
        }
    }

    /// The next user for whom a change is due by this tick.
    pub(crate) fn next_due(&mut self, tick: u32) -> Option<u64> {
        while let Some(Reverse((due, user))) = self.queue.peek().copied() {
            if due > tick {
                return None;
            }
            self.queue.pop();
            let Some(at) = self.users.find(user) else { continue };
            let Some(entry) = self.users.at(at) else { continue };
            entry.bits &= !QUEUED;
            match entry.due_tick {
                0 => {}
                later if later > tick => self.enqueue(at),
                _ => return Some(user),
            }
        }
        if self.queue.is_empty() {
            self.queue = BinaryHeap::new();
        }
        None
    }

    /// The time of a change has come. Returns whether everybody is to be told what [`Homes::said`] gives.
    pub(crate) fn is_due(&mut self, user: u64, actual: Option<Actual>, now: Moment) -> bool {
        let Some(at) = self.users.find(user) else { return false };
        let Some(actual) = actual else { return self.look_at(at, None, now) };
        let Some(entry) = self.users.at(at) else { return false };
        if entry.told() == Status::Unknown {
            self.settle(at, actual, now);
            return true;
        }
        entry.due_tick = 0;
        if entry.is_told(actual) && !entry.has(UNEVEN) {
            return false;
        }
        entry.set_told(actual, now.wall_s);
        entry.changed_tick = now.tick;
        !planted(Planted::Untold)
    }

    /// What everybody who watches a user was told.
    pub(crate) fn said(&self, user: u64) -> Option<Told> {
        let entry = self.users.find(user).and_then(|at| self.users.look(at))?;
        Some(Told { status: entry.told(), since_s: entry.since_s })
    }

    /// The places that are told of a user, with their numbers, in the order of those.
    pub(crate) fn told_places(&self, user: u64) -> Vec<(u16, Place)> {
        let Some(at) = self.users.find(user) else { return Vec::new() };
        let Some(entry) = self.users.look(at) else { return Vec::new() };
        let few = (0..FEW).filter(|number| entry.few >> number & 1 == 1);
        let more = self.more.get(&at).into_iter().flatten().copied();
        few.chain(more).filter_map(|number| Some((number, self.places.at(number)?))).collect()
    }

    /// Whether the user in a place of the table is told of to the place with that number.
    fn tells(&self, at: u32, number: u16) -> bool {
        match number < FEW {
            true => self.users.look(at).is_some_and(|entry| entry.few >> number & 1 == 1),
            false => self.more.get(&at).is_some_and(|more| more.contains(&number)),
        }
    }

    /// A place could not be told of a user: there is no room for it now.
    pub(crate) fn owe(&mut self, number: u16, user: u64) {
        self.owed.insert((number, user));
    }

    /// The same, by the place itself, if it is told of the user at all.
    pub(crate) fn owe_at(&mut self, place: Place, user: u64) {
        if let (Some(number), Some(at)) = (self.places.find(place), self.users.find(user))
            && self.tells(at, number)
        {
            self.owe(number, user);
        }
    }

    /// Takes up to `most` of what is owed.
    pub(crate) fn take_owed(&mut self, most: usize) -> Vec<(u16, Place, u64)> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((number, user)) = self.owed.pop_first()
        {
            let tells = self.users.find(user).is_some_and(|at| self.tells(at, number));
            if let Some(place) = self.places.at(number).filter(|_| tells) {
                taken.push((number, place, user));
            }
        }
        taken
    }

    /// Begins to look at all users again: which of them this shard can tell of may be something else now.
    pub(crate) fn begin_walk(&mut self) {
        self.walk = Some(0);
    }

    /// Whether a walk is under way.
    pub(crate) fn walks(&self) -> bool {
        self.walk.is_some()
    }

    /// Goes on with a walk, for `most` places. Returns the users of whom everybody is to be told.
    pub(crate) fn walk_on(&mut self, most: usize, now: Moment, actual: impl Fn(u64) -> Option<Actual>) -> Vec<u64> {
        let Some(from) = self.walk else { return Vec::new() };
        let end = self.users.places().min(from as usize + most) as u32;
        let mut told = Vec::new();
        for at in from..end {
            let Some(user) = self.users.look(at).map(Entry::user) else { continue };
            if self.look_at(at, actual(user), now) {
                told.push(user);
            }
        }
        self.walk = ((end as usize) < self.users.places()).then_some(end);
        told
    }

    /// Forgets the places for which `keeps` is false: their nodes are gone.
    pub(crate) fn retain(&mut self, keeps: impl Fn(Place) -> bool) {
        let gone = self.places.retain(keeps);
        if gone.is_empty() {
            return;
        }
        self.owed.retain(|(number, _)| !gone.contains(number));
        for at in 0..self.users.places() as u32 {
            for number in &gone {
                self.leave(at, *number);
            }
        }
    }
}

/// Faults that the simulator plants here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    /// Who comes and goes is told of each time.
    TooOften,
    /// A change whose time has come is forgotten.
    Untold,
}

#[cfg(not(test))]
const fn planted(_: Planted) -> bool {
    false
}

#[cfg(test)]
fn planted(planted: Planted) -> bool {
    use crate::simulation::Bug;
    crate::simulation::planted(match planted {
        Planted::TooOften => Bug::PresenceTooOften,
        Planted::Untold => Bug::PresenceUntold,
    })
}

#[cfg(test)]
mod tests;
