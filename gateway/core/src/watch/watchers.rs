//! A shard's own sessions that watch users: which session watches whom, what was last heard of each user, and what each
//! session is still to be told.
//!
//! A watch is an edge between a session and a user. The session's list of edges is in the order of the users' places,
//! and each edge knows the low bits of its place in the user's list of sessions, so both ends of a watch are found
//! without a search through the crowd that watches a popular user.

use super::class_lists::ClassLists;
use super::lists::{List, Lists};
use super::table::{Entry, Table};
use super::{AGAIN_TICKS, FRAME_TICKS, FRAME_USERS_MAX, FRESH_TICKS, FULL_TICKS, HOLD_TICKS, STALE_TICKS};
use super::{Place, Places, State, Status};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// The number of no home.
const NO_HOME: u16 = u16::MAX;
/// Sessions that are marked at once where a user changes; of one whom more watch the others are marked by and by, so
/// that a popular user holds nobody up.
const MARKS_AT_ONCE: usize = 4_096;
/// Sessions that are marked so in a tick.
const MARKS_PER_TICK: usize = 65_536;
/// Users looked at in a tick of whom a home may know nothing any more.
const LOST_PER_TICK: usize = 65_536;

/// The session is to be told of the user.
const DIRTY: u32 = 1 << 31;
/// The watch ends with the first answer.
const ONCE: u32 = 1 << 30;
/// The watcher may not watch the user, who looks offline to it.
const REFUSED: u32 = 1 << 29;
const PLACE: u32 = (1 << 29) - 1;

/// A watch, at its session.
#[derive(Clone, Copy, Debug)]
struct Edge {
    /// Place of the user, and bits: the upper half, and the lower.
    target: [u16; 2],
    /// Where in the user's list the session is: the low bits.
    position: u16,
}

const _: () = assert!(size_of::<Edge>() == 6);

impl Edge {
    fn new(target: u32, position: usize) -> Self {
        Edge { target: [(target >> 16) as u16, target as u16], position: position as u16 }
    }

    fn target(self) -> u32 {
        u32::from(self.target[0]) << 16 | u32::from(self.target[1])
    }

    fn place(self) -> u32 {
        self.target() & PLACE
    }

    fn has(self, bits: u32) -> bool {
        self.target() & bits != 0
    }

    fn set(&mut self, bit: u32) {
        *self = Edge::new(self.target() | bit, self.position.into());
    }

    fn clear(&mut self, bit: u32) {
        *self = Edge::new(self.target() & !bit, self.position.into());
    }
}

/// A session with watches.
#[derive(Debug, Default)]
struct Session {
    /// In the order of the users' places.
    edges: Vec<Edge>,
    /// Edges that are dirty.
    dirty: u32,
    /// Not before this tick comes the next frame.
    next_tick: u32,
    /// Until this tick an answer waits for users of whom nothing is known.
    hold_tick: u32,
    /// It is among those to be told something.
    listed: bool,
    /// Of the edges before this one something is known. Once that is so it stays.
    known_before: usize,
}

impl Session {
    fn find(&self, place: u32) -> Result<usize, usize> {
        self.edges.binary_search_by_key(&place, |edge| edge.place())
    }
}

/// A user who is watched.
#[derive(Debug, Default)]
struct Target {
    user: u64,
    /// Slots of the sessions that watch.
    watchers: List,
    /// The number of the list of classes.
    classes: u32,
    since_s: u32,
    /// Number of the home that was asked.
    home: u16,
    /// Bits, and in the two highest the status.
    bits: u8,
    /// The low bits of the tick at which the state becomes unknown, if it is late.
    late: u8,
}

const _: () = assert!(size_of::<Target>() == 24);

/// Watchers may be told of the user: something is known, or has not become known in time.
const SHOWN: u8 = 1;
/// What is known comes from the present home.
const CURRENT: u8 = 2;
/// The home has been asked, and that was not lost.
const ASKED: u8 = 4;
/// It is known when the state becomes unknown.
const LATE: u8 = 8;
const STATUS_SHIFT: u32 = 6;

impl Entry for Target {
    fn user(&self) -> u64 {
        self.user
    }
}

impl Target {
    fn status(&self) -> Status {
        Status::from_u8(self.bits >> STATUS_SHIFT).unwrap_or(Status::Unknown)
    }

    fn set_status(&mut self, status: Status) {
        self.bits = self.bits & ((1 << STATUS_SHIFT) - 1) | (status as u8) << STATUS_SHIFT;
    }

    fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }
}

/// Why a WATCH is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The session would watch more users than it may.
    Session,
    /// The table has no room.
    Table,
}

/// What a home is to be told of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Ask the present home. `home` is the number of the one that was asked before, `known` what watchers were told.
    Ask { user: u64, known: Status },
    /// Nobody here watches any more, or another home is asked.
    Forget { user: u64, place: Place },
}

/// A user whom a session is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown<'a> {
    pub(crate) user: u64,
    pub(crate) state: State<'a>,
}

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    targets: Table<Target>,
    /// Who watches each of them, and the classes of their devices.
    lists: Lists,
    classes: ClassLists,
    /// The homes of users who are watched.
    places: Places,
    sessions: HashMap<u32, Session>,
    /// Slots of sessions that are to be told something, each once.
    listed: VecDeque<u32>,
    /// What homes are to be told.
    words: VecDeque<Word>,
    /// Users whose home did not get the question, or had no room, and when it is asked again.
    again: VecDeque<(u32, u64)>,
    full: VecDeque<(u32, u64)>,
    /// Users of whom nothing is known, and those whose state is no home's any more, by when that is told.
    fresh: VecDeque<(u32, u64)>,
    stale: VecDeque<(u32, u64)>,
    /// Watches.
    edges: usize,
    /// Bytes of lists of edges.
    list_bytes: usize,
    /// Where the walk is that looks for homes again.
    walk: Option<u32>,
    /// Users whose watchers are still to be marked, by place: who it is, and up to which position of the list.
    marking: HashMap<u32, (u64, usize)>,
    /// The same places, in order.
    marking_order: VecDeque<u32>,
    /// Numbers of homes that have lost what was told to them, and up to which place that was looked for.
    lost: Vec<u16>,
    lost_walk: Option<u32>,
}

const EDGE_BYTES: usize = size_of::<Edge>();
/// What a session takes in their table, of which seven eighths are in use at most.
const SESSION_BYTES: usize = (size_of::<(u32, Session)>() + 1) * 8 / 7;
/// What one more watch may take: its edge, its user, and the place in the index of users.
const WATCH_BYTES_MOST: usize = EDGE_BYTES + Lists::NUMBER_BYTES_MOST + size_of::<Target>() + 16;
/// Tables of which much is not in use may hold so much more than there may be in use: a quarter.
const HELD_PART: usize = 4;
/// Words that there is room for all the time.
const WORDS_KEPT: usize = 1_024;

impl Watchers {
    /// Watches.
    pub(crate) fn len(&self) -> usize {
        self.edges
    }

    /// Users who are watched.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        self.targets.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.words.is_empty()
    }

    /// Memory held, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let queues = self.again.capacity() + self.full.capacity() + self.fresh.capacity() + self.stale.capacity();
        self.targets.bytes()
            + self.lists.bytes()
            + self.classes.bytes()
            + self.sessions.allocation_size()
            + self.list_bytes
            + queues * size_of::<(u32, u64)>()
            + self.words.capacity() * size_of::<Word>()
            + self.listed.capacity() * 4
            + self.marking.allocation_size()
            + self.marking_order.capacity() * 4
    }

    /// What of that memory is in use: that of a watch that has ended is free for others at once.
    fn used_bytes(&self) -> usize {
        let queued = self.again.len() + self.full.len() + self.fresh.len() + self.stale.len();
        let sessions = self.sessions.len() * SESSION_BYTES;
        self.targets.used_bytes()
            + self.lists.used_bytes()
            + self.classes.bytes()
            + sessions
            + self.edges * EDGE_BYTES
            + queued * size_of::<(u32, u64)>()
            + self.words.len() * size_of::<Word>()
            + self.listed.len() * 4
    }

    /// Whether there is room for so many more watches of a session.
    fn has_room(&self, new: usize, bytes_max: usize) -> bool {
        let needed = new * WATCH_BYTES_MOST + size_of::<Session>();
        // What was of another kind of watches is of no use to these.
        let held = self.targets.bytes() + self.lists.bytes() + self.list_bytes;
        new == 0
            || (self.used_bytes() + needed <= bytes_max
                && held + needed <= bytes_max.saturating_add(bytes_max / HELD_PART))
    }

    /// A session asks for these users: to be told of each change from now on, or once. `may_watch` says who does not
    /// look offline to it. All are taken, or none.
    pub(crate) fn watch(
        &mut self,
        slot: u32,
        users: &[u64],
        follow: bool,
        tick: u32,
        (per_session_max, bytes_max): (u32, usize),
        may_watch: impl Fn(u64) -> bool,
    ) -> Result<(), Denied> {
        let known = self.sessions.get(&slot);
        let is_new = |user: &&u64| {
            let place = self.targets.find(**user);
            place.is_none_or(|place| known.is_none_or(|session| session.find(place).is_err()))
        };
        let new = users.iter().filter(is_new).count();
        if known.map_or(0, |session| session.edges.len()) + new > per_session_max as usize {
            return Err(Denied::Session);
        }
        if !self.has_room(new, bytes_max) {
            return Err(Denied::Table);
        }
        let mut session = self.sessions.remove(&slot).unwrap_or_default();
        let before = session.edges.capacity();
        session.edges.reserve_exact(new);
        self.list_bytes += (session.edges.capacity() - before) * EDGE_BYTES;
        session.hold_tick = tick + HOLD_TICKS;
        session.known_before = 0;
        for user in users {
            self.watch_one(slot, &mut session, *user, follow, tick, may_watch(*user));
        }
        self.put(slot, session);
        Ok(())
    }

    fn watch_one(&mut self, slot: u32, session: &mut Session, user: u64, follow: bool, tick: u32, allowed: bool) {
        let place = match self.targets.find(user) {
            Some(place) => place,
            None => {
                let due = tick + FRESH_TICKS;
                let target = Target { user, home: NO_HOME, bits: LATE, late: due as u8, ..Target::default() };
                // The bound on bytes comes long before that on places.
                let Some(place) = self.targets.add(target) else { return };
                self.words.push_back(Word::Ask { user, known: Status::Unknown });
                self.fresh.push_back((due, user));
                place
            }
        };
        let Some(target) = self.targets.at(place) else { return };
        let tells = target.has(SHOWN) || !allowed;
        match session.find(place) {
            Ok(at) => {
                let edge = &mut session.edges[at];
                if follow {
                    edge.clear(ONCE);
                }
                // Asked again, it is answered again.
                if tells && !edge.has(DIRTY) {
                    edge.set(DIRTY);
                    session.dirty += 1;
                }
            }
            Err(at) => {
                let bit = |is: bool, bit: u32| if is { bit } else { 0 };
                let bits = bit(!follow, ONCE) | bit(!allowed, REFUSED) | bit(tells, DIRTY);
                session.edges.insert(at, Edge::new(place | bits, self.lists.len(target.watchers)));
                target.watchers = self.lists.push(target.watchers, slot);
                session.dirty += u32::from(tells);
                self.edges += 1;
            }
        }
    }

    /// Puts a session back into the table, and on the list if it is to be told something.
    fn put(&mut self, slot: u32, mut session: Session) {
        if session.dirty > 0 && !session.listed {
            session.listed = true;
            self.listed.push_back(slot);
        }
        if session.edges.is_empty() {
            self.list_bytes -= session.edges.capacity() * EDGE_BYTES;
            // A frame that it has had keeps the next one away, also for watches to come.
            session.edges = Vec::new();
        }
        self.sessions.insert(slot, session);
    }

    /// A session watches these users no more; none of them means all.
    pub(crate) fn unwatch(&mut self, slot: u32, users: &[u64]) {
        let Some(mut session) = self.sessions.remove(&slot) else { return };
        if users.is_empty() {
            self.let_go(slot, &mut session);
        } else {
            for user in users {
                let place = self.targets.find(*user);
                let Some(at) = place.and_then(|place| session.find(place).ok()) else { continue };
                let edge = session.edges.remove(at);
                session.known_before = 0;
                session.dirty -= u32::from(edge.has(DIRTY));
                self.cut(slot, edge, &mut session);
            }
        }
        self.put(slot, session);
    }

    /// The session in a slot has ended.
    pub(crate) fn session_ended(&mut self, slot: u32) {
        let Some(mut session) = self.sessions.remove(&slot) else { return };
        self.let_go(slot, &mut session);
        self.list_bytes -= session.edges.capacity() * EDGE_BYTES;
    }

    fn let_go(&mut self, slot: u32, session: &mut Session) {
        while let Some(edge) = session.edges.pop() {
            self.cut(slot, edge, session);
        }
        session.dirty = 0;
        session.known_before = 0;
    }

    /// Takes a watch that its session has let go off the user's list. `session` is not in the table meanwhile.
    fn cut(&mut self, slot: u32, edge: Edge, session: &mut Session) {
        self.edges -= 1;
        let place = edge.place();
        let Some(target) = self.targets.at(place) else { return };
        let position = self.lists.position(target.watchers, edge.position, slot);
        debug_assert!(position.is_some(), "an edge knows where it is on the user's list");
        let Some(position) = position else { return };
        target.watchers = self.lists.swap_remove(target.watchers, position);
        if let Some(moved) = self.lists.get(target.watchers, position) {
            // It has the place of the one that went. A session is on the list once, so it is another one.
            if let Some(other) = self.sessions.get_mut(&moved)
                && let Ok(at) = other.find(place)
            {
                other.edges[at].position = position as u16;
            }
        }
        debug_assert!(session.find(place).is_err());
        if target.watchers.is_empty() {
            let (user, home) = (target.user, target.home);
            self.classes.let_go(target.classes);
            self.targets.remove(place);
            if self.targets.len() == 0 {
                self.lists = Lists::default();
            }
            if let Some(place) = self.places.at(home) {
                self.words.push_back(Word::Forget { user, place });
            }
        }
    }

    /// Whom a session may watch has changed, by its token.
    pub(crate) fn allow(&mut self, slot: u32, may_watch: impl Fn(u64) -> bool) {
        let Some(mut session) = self.sessions.remove(&slot) else { return };
        for edge in &mut session.edges {
            let Some(target) = self.targets.look(edge.place()) else { continue };
            let refused = !may_watch(target.user);
            if refused == edge.has(REFUSED) {
                continue;
            }
            if refused {
                edge.set(REFUSED);
            } else {
                edge.clear(REFUSED);
            }
            if (refused || target.has(SHOWN)) && !edge.has(DIRTY) {
                edge.set(DIRTY);
                session.dirty += 1;
            }
        }
        self.put(slot, session);
    }

    /// The next word for a home. Of an Ask [`Watchers::asked`] is told, unless it cannot be asked now.
    pub(crate) fn next_word(&mut self) -> Option<Word> {
        while let Some(word) = self.words.pop_front() {
            match word {
                Word::Ask { user, .. } => {
                    let Some(place) = self.targets.find(user) else { continue };
                    let Some(target) = self.targets.look(place) else { continue };
                    return Some(Word::Ask { user, known: target.status() });
                }
                // Who is watched again by now, at the same home, would be forgotten there behind the question.
                Word::Forget { user, place } if self.home_of(user) != Some(place) => return Some(word),
                Word::Forget { .. } => {}
            }
        }
        if self.words.capacity() > WORDS_KEPT {
            // What a rush took is given back.
            self.words = VecDeque::new();
        }
        None
    }

    /// A home is to be told later that nobody watches a user: it has no room for the word now.
    pub(crate) fn forget_later(&mut self, user: u64, place: Place) {
        self.words.push_back(Word::Forget { user, place });
    }

    /// This home is asked for a user. False if it cannot be: it has no number.
    pub(crate) fn asked(&mut self, user: u64, home: Place) -> bool {
        let Some(number) = self.places.number(home) else { return false };
        if let Some(target) = self.targets.find(user).and_then(|place| self.targets.at(place)) {
            target.home = number;
            target.bits |= ASKED;
        }
        true
    }

    /// The home of a user cannot be asked now.
    pub(crate) fn ask_again(&mut self, user: u64, tick: u32) {
        if let Some(target) = self.targets.find(user).and_then(|place| self.targets.at(place)) {
            target.bits &= !ASKED;
            self.again.push_back((tick + AGAIN_TICKS, user));
        }
    }

    /// The home that was asked for a user; `None` if nobody watches the user, or none could be asked.
    pub(crate) fn home_of(&self, user: u64) -> Option<Place> {
        let target = self.targets.find(user).and_then(|place| self.targets.look(place))?;
        self.places.at(target.home)
    }

    /// The home of a user has said what is so. *Unknown* says that it has the question, and tells when it knows.
    pub(crate) fn told(&mut self, user: u64, state: State<'_>, tick: u32) {
        let Some(place) = self.targets.find(user) else { return };
        let Some(target) = self.targets.at(place) else { return };
        if state.status == Status::Unknown {
            return self.not_current(place, tick);
        }
        target.bits |= CURRENT | SHOWN;
        target.bits &= !LATE;
        let same = target.status() == state.status;
        // A new home may know that a user is online, or offline, and not since when.
        let (since_s, classes) = match same && state.since_s == 0 {
            true => (target.since_s, None),
            false => (state.since_s, Some(state.classes)),
        };
        let is_news = |new: &[u8]| new != self.classes.get(target.classes);
        let news = !same || target.since_s != since_s || classes.is_some_and(is_news);
        target.set_status(state.status);
        target.since_s = since_s;
        if let Some(classes) = classes {
            self.set_classes(place, classes);
        }
        if news {
            self.mark(place);
        }
    }

    /// The home of a user has no room for the watch.
    pub(crate) fn home_is_full(&mut self, user: u64, tick: u32) {
        let Some(place) = self.targets.find(user) else { return };
        if let Some(target) = self.targets.at(place) {
            target.bits &= !ASKED;
            self.full.push_back((tick + FULL_TICKS, user));
        }
        self.show_unknown(place);
    }

    fn set_classes(&mut self, place: u32, classes: &[u8]) {
        let Some(target) = self.targets.at(place) else { return };
        let before = std::mem::replace(&mut target.classes, self.classes.number(classes));
        self.classes.let_go(before);
    }

    /// What is known of a user is no home's any more. It counts for a while, until a home says something.
    fn not_current(&mut self, place: u32, tick: u32) {
        let Some(target) = self.targets.at(place) else { return };
        target.bits &= !CURRENT;
        if target.has(LATE) || target.has(SHOWN) && target.status() == Status::Unknown {
            return;
        }
        let (user, due) = (target.user, tick + STALE_TICKS);
        target.bits |= LATE;
        target.late = due as u8;
        self.stale.push_back((due, user));
    }

    fn show_unknown(&mut self, place: u32) {
        let Some(target) = self.targets.at(place) else { return };
        target.bits &= !(CURRENT | LATE);
        let news = !target.has(SHOWN) || target.status() != Status::Unknown;
        target.bits |= SHOWN;
        target.set_status(Status::Unknown);
        target.since_s = 0;
        self.set_classes(place, &[]);
        if news {
            self.mark(place);
        }
    }

    /// Everybody who watches a user is to be told.
    fn mark(&mut self, place: u32) {
        let Some((user, watchers)) = self.targets.look(place).map(|target| (target.user, target.watchers)) else {
            return;
        };
        let length = self.lists.len(watchers);
        // From the end on: whoever takes the place of one who goes has been marked then, and who comes sees the state.
        let left = self.mark_some(place, length, MARKS_AT_ONCE);
        if left > 0 && self.marking.insert(place, (user, left)).is_none() {
            self.marking_order.push_back(place);
        }
    }

    /// Goes on with those of whom there are many.
    fn go_on_marking(&mut self) {
        let mut most = MARKS_PER_TICK;
        while most > 0
            && let Some(place) = self.marking_order.pop_front()
        {
            let Some((user, left)) = self.marking.remove(&place) else { continue };
            // The place may be another user's by now.
            let is_user = |target: &Target| target.user == user && target.has(SHOWN);
            let Some(watchers) = self.targets.look(place).filter(|it| is_user(it)).map(|it| it.watchers) else {
                continue;
            };
            let upto = left.min(self.lists.len(watchers));
            let still_left = self.mark_some(place, upto, most);
            most -= upto - still_left;
            if still_left > 0 {
                self.marking.insert(place, (user, still_left));
                self.marking_order.push_front(place);
            }
        }
    }

    /// Marks so many of those who watch a user, the last ones before a position. Returns before which position others
    /// are left.
    fn mark_some(&mut self, place: u32, upto: usize, most: usize) -> usize {
        let left = upto.saturating_sub(most);
        let Some(watchers) = self.targets.look(place).map(|target| target.watchers) else { return 0 };
        for position in (left..upto).rev() {
            let Some(slot) = self.lists.get(watchers, position) else { break };
            let Some(session) = self.sessions.get_mut(&slot) else { continue };
            let Ok(at) = session.find(place) else { continue };
            let edge = &mut session.edges[at];
            if edge.has(DIRTY | REFUSED) {
                continue;
            }
            edge.set(DIRTY);
            session.dirty += 1;
            if !session.listed {
                session.listed = true;
                self.listed.push_back(slot);
            }
        }
        left
    }

    /// Lets time pass: homes are asked again, and what nobody has confirmed becomes unknown.
    pub(crate) fn expire(&mut self, tick: u32) {
        self.look_for_lost(tick);
        self.go_on_marking();
        let due = |queue: &mut VecDeque<(u32, u64)>| queue.pop_front_if(|(due, _)| *due <= tick);
        while let Some((_, user)) = due(&mut self.again).or_else(|| due(&mut self.full)) {
            let unasked = |target: &Target| !target.has(ASKED);
            if self.targets.find(user).and_then(|place| self.targets.look(place)).is_some_and(unasked) {
                self.words.push_back(Word::Ask { user, known: Status::Unknown });
            }
        }
        while let Some((due, user)) = due(&mut self.fresh).or_else(|| due(&mut self.stale)) {
            let Some(place) = self.targets.find(user) else { continue };
            // It may be known since, and late again by another tick.
            if self.targets.look(place).is_some_and(|target| target.has(LATE) && target.late == due as u8) {
                self.show_unknown(place);
            }
        }
        for queue in [&mut self.again, &mut self.full, &mut self.fresh, &mut self.stale] {
            if queue.is_empty() {
                // What a rush took is given back.
                *queue = VecDeque::new();
            }
        }
    }

    /// Begins to look for the homes of all users again.
    pub(crate) fn begin_walk(&mut self) {
        self.walk = Some(0);
    }

    /// Whether a walk is under way.
    pub(crate) fn walks(&self) -> bool {
        self.walk.is_some()
    }

    /// Goes on with a walk, for `most` places. `is_home` says whether the home that was asked is the user's. Those for
    /// whom it is not are asked for again, and the home of before is told. At the end homes are forgotten for which
    /// `keeps` is false.
    pub(crate) fn walk_on(
        &mut self,
        most: usize,
        tick: u32,
        is_home: impl Fn(u64, Place) -> bool,
        keeps: impl Fn(Place) -> bool,
    ) {
        let Some(from) = self.walk else { return };
        let end = self.targets.places().min(from as usize + most) as u32;
        for place in from..end {
            let Some(target) = self.targets.at(place) else { continue };
            let (user, home) = (target.user, self.places.at(target.home));
            let Some(home) = home.filter(|home| !is_home(user, *home)) else { continue };
            target.home = NO_HOME;
            target.bits &= !ASKED;
            self.words.push_back(Word::Forget { user, place: home });
            self.words.push_back(Word::Ask { user, known: Status::Unknown });
            self.not_current(place, tick);
        }
        self.walk = ((end as usize) < self.targets.places()).then_some(end);
        if self.walk.is_none() {
            // Nobody refers to the others any more.
            let gone = self.places.retain(keeps);
            self.lost.retain(|number| !gone.contains(number));
        }
    }

    /// The question for a user was lost on its way to the home.
    pub(crate) fn ask_was_lost(&mut self, user: u64, tick: u32) {
        let Some(place) = self.targets.find(user) else { return };
        self.ask_again(user, tick);
        self.not_current(place, tick);
    }

    /// Homes have lost what was told to them, or are not reached any more: what is known of their users counts for a
    /// while, and they are asked again.
    pub(crate) fn homes_lost(&mut self, which: impl Fn(Place) -> bool, tick: u32) {
        let homes = self.places.numbers(which);
        if homes.is_empty() {
            return;
        }
        for number in homes {
            if !self.lost.contains(&number) {
                self.lost.push(number);
            }
        }
        self.lost_walk = Some(0);
        self.look_for_lost(tick);
    }

    /// Goes on looking for users of homes that have lost what was told to them.
    fn look_for_lost(&mut self, tick: u32) {
        let Some(from) = self.lost_walk else { return };
        let homes = std::mem::take(&mut self.lost);
        let end = self.targets.places().min(from as usize + LOST_PER_TICK) as u32;
        for place in from..end {
            let Some(target) = self.targets.at(place).filter(|target| homes.contains(&target.home)) else { continue };
            let user = target.user;
            target.bits &= !ASKED;
            self.words.push_back(Word::Ask { user, known: Status::Unknown });
            self.not_current(place, tick);
        }
        if (end as usize) < self.targets.places() {
            (self.lost, self.lost_walk) = (homes, Some(end));
        } else {
            self.lost_walk = None;
        }
    }

    /// Sessions that are to be told something.
    pub(crate) fn listed(&self) -> usize {
        self.listed.len()
    }

    /// The next session that is to be told something; it goes to the end of the list by [`Watchers::later`].
    pub(crate) fn next_listed(&mut self, tick: u32) -> Option<(u32, bool)> {
        while let Some(slot) = self.listed.pop_front() {
            let Some(session) = self.sessions.get_mut(&slot) else { continue };
            // A session of before may have been on the list in the same slot.
            if session.dirty == 0 {
                session.listed = false;
                continue;
            }
            let waits = tick < session.next_tick || (tick < session.hold_tick && self.is_pending(slot));
            return Some((slot, !waits));
        }
        None
    }

    /// Whether nothing is known yet of somebody whom the session watches.
    fn is_pending(&mut self, slot: u32) -> bool {
        let Some(session) = self.sessions.get_mut(&slot) else { return false };
        let is_unknown = |edge: &Edge| self.targets.look(edge.place()).is_some_and(|target| !target.has(SHOWN));
        let rest = session.edges.get(session.known_before..).unwrap_or_default();
        let first = rest.iter().position(is_unknown);
        session.known_before += first.unwrap_or(rest.len());
        first.is_some()
    }

    /// Puts a session back at the end of the list.
    pub(crate) fn later(&mut self, slot: u32) {
        self.listed.push_back(slot);
    }

    /// Gives `each` the users that a session is told of in its next frame, until that says that there is no room for
    /// one more. Watches for one answer end with it. The session goes back to the list if there is more.
    pub(crate) fn tell(&mut self, slot: u32, tick: u32, mut each: impl FnMut(Shown<'_>) -> bool) {
        let Some(mut session) = self.sessions.remove(&slot) else { return };
        session.listed = false;
        session.next_tick = tick + FRAME_TICKS;
        let (mut told, mut over) = (0, Vec::new());
        for edge in &mut session.edges {
            if !edge.has(DIRTY) {
                continue;
            }
            let Some(target) = self.targets.look(edge.place()) else { continue };
            let state = match edge.has(REFUSED) {
                true => State { status: Status::Offline, since_s: 0, classes: &[] },
                false => {
                    let classes = self.classes.get(target.classes);
                    State { status: target.status(), since_s: target.since_s, classes }
                }
            };
            if told == FRAME_USERS_MAX || !each(Shown { user: target.user, state }) {
                break;
            }
            told += 1;
            edge.clear(DIRTY);
            session.dirty -= 1;
            if edge.has(ONCE) {
                over.push(edge.place());
            }
        }
        for place in over {
            if let Ok(at) = session.find(place) {
                let edge = session.edges.remove(at);
                session.known_before = 0;
                self.cut(slot, edge, &mut session);
            }
        }
        self.put(slot, session);
    }
}

#[cfg(test)]
mod tests;
