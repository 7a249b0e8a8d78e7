//! A shard's own sessions in each group, and frames on their way through them.
//!
//! What a part is to do stands in a queue: give frames to all, take a session in, tell all that something is missing.
//! It is done in order, so a session gets what was sent after it came in and nothing from before, and the walk of a
//! large group is spread over turns, by turns with other groups.
//!
//! A session that is in no group costs nothing but 4 B for its slot, once there are groups at all. A membership takes
//! an entry of 12 B and 4 B in the part.
//!
//! Of a large group only those sessions get frames that pay attention. They are in a part of their own beside the
//! group's, its *attention*, whatever the size of the group, and a session is in one of the two. What the others are
//! told is in `passive`.
//!
//! Frames of a live room are gathered for a while after some have begun their walk, and go together then: a session of
//! a busy room gets as many sends as there are walks. Those of a room that was quiet go at once, and so does what has
//! grown to a run, or to a half of what all parts may hold: to wait longer would save no sends, and take the room of
//! others.

mod passive;

use super::is_room;
use crate::io::ConnId;
use crate::limits::ROOM_GATHER_BYTES_MAX;
use hashbrown::{HashMap, HashSet};
pub(crate) use passive::News;
use passive::{Place, Rounds};
use std::collections::{BTreeSet, VecDeque};

/// No entry.
const NONE: u32 = u32::MAX;
/// Sessions of one part that are walked before it is another part's turn.
const STRETCH: usize = 128;
/// Bytes that count as one session more of a walk: a turn of 256 sessions copies 4 MiB at most.
const BYTES_PER_SESSION: usize = 16_384;
/// Frames are put together to be given at once, until they are so many bytes: a fraction of any outbox.
const RUN_BYTES: usize = ROOM_GATHER_BYTES_MAX;

/// A session in a part.
#[derive(Clone, Copy, Debug)]
struct Entry {
    part: u32,
    /// Its place among the sessions of the part.
    position: u32,
    /// The next entry of the same session, or of the free ones.
    next: u32,
}

const _: () = assert!(size_of::<Entry>() == 12);

/// A frame of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameOf {
    /// Where it ends.
    pub(crate) end: usize,
    /// Who sent it.
    pub(crate) from: u64,
    /// On which session, if that is here.
    pub(crate) origin: Option<ConnId>,
}

/// Frames that are given together.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: Vec<FrameOf>,
}

#[derive(Debug)]
enum Item {
    Run(Run),
    Add(ConnId),
    News,
}

/// The sessions of one group.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) group: u64,
    /// The stamp and number of the last message that came, or that the home told of.
    pub(crate) last: u64,
    pub(crate) number: u64,
    /// The home has not said yet how far the group is.
    pub(crate) unheard: bool,
    /// It has left a number out since the last message, and not said what for.
    left_out: bool,
    /// Their slots.
    live: Vec<u32>,
    queue: VecDeque<Item>,
    /// Who is to be taken in by it.
    waiting: HashSet<ConnId>,
    /// Bytes of frames in it.
    queued: usize,
    /// How many of them have had the first of the queue.
    cursor: usize,
    /// It is on the list of those with something to do, or of those that gather.
    active: bool,
    /// When the next walk with frames of a live room may begin. It does not change while the part gathers.
    next_walk_ms: u64,
    /// So much of the queue has waited and does not wait again.
    free: usize,
    /// The group is large: frames go to those only that pay attention.
    pub(crate) passive: bool,
    /// Where in the rounds of HEADS the latest message came that the sessions were not given, and how far that was.
    news: Place,
    news_stamp: u64,
    news_number: u64,
    /// What was in the queue when they came and is still on its way: sessions get that before they are told.
    before_news: usize,
    /// The part of those that pay attention.
    attention: Option<u32>,
    /// This is that part, of the group's other one.
    of: Option<u32>,
    /// The group has ended: nobody finds this part any more, and its sessions are taken out by and by.
    ended: bool,
}

impl Part {
    fn new(group: u64, last: u64, number: u64, of: Option<u32>) -> Self {
        Part {
            group,
            last,
            number,
            unheard: false,
            left_out: false,
            live: Vec::new(),
            queue: VecDeque::new(),
            waiting: HashSet::new(),
            queued: 0,
            cursor: 0,
            active: false,
            next_walk_ms: 0,
            free: 0,
            passive: false,
            news: Place::default(),
            news_stamp: 0,
            news_number: 0,
            before_news: 0,
            attention: None,
            of,
            ended: false,
        }
    }

    /// The message of that number comes next. Returns whether something may be missing before it: a session that has
    /// had none before has nothing to compare its number with.
    pub(crate) fn is_gap_before(&mut self, number: u64) -> bool {
        let is_doubtful = std::mem::take(&mut self.unheard) | std::mem::take(&mut self.left_out);
        // Who is in a live room has missed nothing of what was said before.
        let begins = is_room(self.group) && self.number == 0;
        is_doubtful || !(begins || number == self.number.wrapping_add(1))
    }

    /// The home has said how far the group is. Returns whether that is further than what came.
    pub(crate) fn hear(&mut self, last: u64, number: u64) -> bool {
        let is_news = last > self.last;
        let has_heard = !std::mem::take(&mut self.unheard);
        // Something is in the log, or may be, at a position that nobody knows: all are told with the next message.
        self.left_out |= has_heard && !is_news && number > self.number && !is_room(self.group);
        (self.last, self.number) = (self.last.max(last), self.number.max(number));
        is_news
    }

    /// Sessions that pay no attention.
    pub(crate) fn inattentive(&self) -> usize {
        self.live.len()
    }

    fn waits(&self, conn: ConnId) -> bool {
        self.waiting.contains(&conn)
    }

    /// Whether the next thing to do is to wait until frames of a room may go.
    fn gathers(&self, now_ms: u64) -> bool {
        let waits = self.free == 0 && now_ms < self.next_walk_ms && self.queued < RUN_BYTES;
        waits && self.cursor == 0 && matches!(self.queue.front(), Some(Item::Run(_)))
    }

    /// The first of the queue has had its way.
    fn shift(&mut self) -> Option<Item> {
        self.before_news = self.before_news.saturating_sub(1);
        let item = self.queue.pop_front()?;
        if let Item::Add(conn) = &item {
            self.waiting.remove(conn);
        }
        self.queued -= item.bytes();
        self.free = self.free.saturating_sub(1).min(self.queue.len());
        Some(item)
    }

    fn is_empty(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty()
    }
}

/// What has come of a session's wish to pay attention, or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It is not in the group.
    NotIn,
    /// It is as it was, or has missed nothing by it.
    Yes,
    /// What was on its way to it does not come.
    Missed,
}

/// When a walk takes place, and for how long frames of a live room are gathered behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) now_ms: u64,
    pub(crate) room_gather_ms: u64,
}

impl Pace {
    /// Nothing is held back.
    pub(crate) const AT_ONCE: Pace = Pace { now_ms: u64::MAX, room_gather_ms: 0 };
}

/// What has become of frames of live rooms since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Walks that have begun, and frames that went with them.
    pub(crate) walks: u64,
    pub(crate) frames: u64,
    /// Rooms whose frames did not wait any longer because there were too many bytes.
    pub(crate) early: u64,
}

/// Where frames go, and what else a walk has to do with sessions.
pub(crate) trait Sink {
    /// Whether the connection is that session still.
    fn is_open(&mut self, conn: ConnId) -> bool;
    /// Gives frames to a session.
    fn give(&mut self, slot: u32, group: u64, run: &Run);
    /// Tells a session that something of a group is missing.
    fn miss(&mut self, slot: u32, group: u64);
}

/// The parts of a shard.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    by_group: HashMap<u64, u32>,
    parts: Vec<Option<Part>>,
    free_parts: Vec<u32>,
    /// The first entry of each slot's session.
    heads: Vec<u32>,
    entries: Vec<Entry>,
    free_entry: Option<u32>,
    in_use: usize,
    active: VecDeque<u32>,
    /// Parts that gather, by when their frames may go.
    gathering: BTreeSet<(u64, u32)>,
    /// Parts of groups that have ended, with sessions to be taken out.
    ending: Vec<u32>,
    tally: Tally,
    queued_bytes: usize,
    /// Sessions in large groups that pay no attention, and those that pay attention to any, one for each of both.
    passive: usize,
    attentive: usize,
    rounds: Rounds,
}

impl Parts {
    /// Sessions in groups, one for each of both.
    pub(crate) fn memberships(&self) -> usize {
        self.in_use
    }

    pub(crate) fn len(&self) -> usize {
        self.by_group.len()
    }

    /// Whether there is nothing to do before some time has passed.
    pub(crate) fn is_idle(&self, now_ms: u64) -> bool {
        self.active.is_empty() && self.ending.is_empty() && self.gathered_ms().is_none_or(|due_ms| now_ms < due_ms)
    }

    /// When frames that are gathered may go.
    pub(crate) fn gathered_ms(&self) -> Option<u64> {
        self.gathering.first().map(|(due_ms, _)| *due_ms)
    }

    /// Takes what was counted of live rooms.
    pub(crate) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// No part gathers for longer than until then. It looks at all parts, and is for a change of how long they do.
    pub(crate) fn gather_until(&mut self, due_ms: u64) {
        for (at, part) in (0..).zip(&mut self.parts) {
            let Some(part) = part.as_mut().filter(|part| part.next_walk_ms > due_ms) else { continue };
            if self.gathering.remove(&(part.next_walk_ms, at)) {
                self.gathering.insert((due_ms, at));
            }
            part.next_walk_ms = due_ms;
        }
    }

    /// What a part has gathered goes now.
    fn release(&mut self, at: u32) {
        let Some(part) = &mut self.parts[at as usize] else { return };
        if self.gathering.remove(&(part.next_walk_ms, at)) {
            part.free = part.queue.len();
            self.active.push_back(at);
            self.tally.early += 1;
        }
    }

    /// Frames that are on their way are given to nobody any more, who is told instead that something is missing.
    pub(crate) fn drop_frames(&mut self) {
        while let Some((_, at)) = self.gathering.pop_first() {
            self.active.push_back(at);
        }
        for at in &self.active {
            let Some(part) = &mut self.parts[*at as usize] else { continue };
            self.queued_bytes -= std::mem::take(&mut part.queued);
            for item in &mut part.queue {
                if matches!(item, Item::Run(_)) {
                    *item = Item::News;
                }
            }
        }
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Sessions that pay attention, one for each of their groups.
    pub(crate) fn attentive(&self) -> usize {
        self.attentive
    }

    /// Whether anybody gets frames of a group.
    pub(crate) fn gets_frames(&self, group: u64) -> bool {
        self.get(group).is_some_and(|part| !part.passive || part.attention.is_some())
    }

    pub(crate) fn get(&self, group: u64) -> Option<&Part> {
        self.parts[*self.by_group.get(&group)? as usize].as_ref()
    }

    pub(crate) fn get_mut(&mut self, group: u64) -> Option<&mut Part> {
        self.parts[*self.by_group.get(&group)? as usize].as_mut()
    }

    /// Whether a session is in a group, or about to be.
    pub(crate) fn is_in(&self, conn: ConnId, group: u64) -> bool {
        let Some(at) = self.by_group.get(&group).copied() else { return false };
        self.is_at(conn, at) || self.attention(at).is_some_and(|attention| self.is_at(conn, attention))
    }

    fn is_at(&self, conn: ConnId, at: u32) -> bool {
        self.find(conn.slot, at).is_some() || self.parts[at as usize].as_ref().is_some_and(|part| part.waits(conn))
    }

    fn attention(&self, at: u32) -> Option<u32> {
        self.parts[at as usize].as_ref()?.attention
    }

    /// Groups that a session is in.
    pub(crate) fn groups_of(&self, slot: u32) -> impl Iterator<Item = u64> {
        let mut at = self.head(slot);
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.next;
            Some(self.parts[entry.part as usize].as_ref().filter(|part| !part.ended).map(|part| part.group))
        })
        .flatten()
    }

    /// Takes a session into a group. Returns whether the shard had no part of it.
    pub(crate) fn join(&mut self, conn: ConnId, group: u64, last: u64, number: u64) -> bool {
        let known = self.by_group.get(&group).copied();
        let at = known.unwrap_or_else(|| {
            let at = self.begin(Part::new(group, last, number, None));
            self.by_group.insert(group, at);
            at
        });
        let is_attentive = self.attention(at).is_some_and(|attention| self.is_at(conn, attention));
        if !is_attentive {
            self.take_in(at, conn);
        }
        known.is_none()
    }

    fn begin(&mut self, part: Part) -> u32 {
        match self.free_parts.pop() {
            Some(at) => {
                self.parts[at as usize] = Some(part);
                at
            }
            None => {
                self.parts.push(Some(part));
                self.parts.len() as u32 - 1
            }
        }
    }

    /// A session is in a part, from behind what is on its way there.
    fn take_in(&mut self, at: u32, conn: ConnId) {
        if self.is_at(conn, at) {
            return;
        }
        let Some(part) = &mut self.parts[at as usize] else { return };
        if part.queue.is_empty() {
            self.attach(at, conn.slot);
        } else {
            part.waiting.insert(conn);
            part.queue.push_back(Item::Add(conn));
        }
    }

    /// A session is to get the messages of a group however large it is, or is not.
    pub(crate) fn attend(&mut self, conn: ConnId, group: u64, attends: bool) -> Moved {
        let Some(at) = self.by_group.get(&group).copied() else { return Moved::NotIn };
        let attention = self.attention(at);
        let (from, to) = if attends { (Some(at), attention) } else { (attention, Some(at)) };
        if to.is_some_and(|to| self.is_at(conn, to)) {
            return Moved::Yes;
        }
        let Some(from) = from.filter(|from| self.is_at(conn, *from)) else { return Moved::NotIn };
        let to = to.unwrap_or_else(|| {
            let attention = self.begin(Part::new(group, 0, 0, Some(at)));
            if let Some(part) = &mut self.parts[at as usize] {
                part.attention = Some(attention);
            }
            attention
        });
        let missed = self.parts[from as usize].as_ref().is_some_and(|part| !part.queue.is_empty());
        self.take_out(from, conn);
        self.take_in(to, conn);
        self.end_if_empty(from);
        if missed { Moved::Missed } else { Moved::Yes }
    }

    fn head(&self, slot: u32) -> u32 {
        self.heads.get(slot as usize).copied().unwrap_or(NONE)
    }

    /// The entry of a session in a part, and the one before it.
    fn find(&self, slot: u32, part: u32) -> Option<(u32, Option<u32>)> {
        let (mut at, mut before) = (self.head(slot), None);
        while let Some(entry) = self.entries.get(at as usize) {
            if entry.part == part {
                return Some((at, before));
            }
            (before, at) = (Some(at), entry.next);
        }
        None
    }

    fn attach(&mut self, at: u32, slot: u32) {
        if self.find(slot, at).is_some() {
            return;
        }
        let Some(part) = &mut self.parts[at as usize] else { return };
        let position = part.live.len() as u32;
        part.live.push(slot);
        if self.heads.len() <= slot as usize {
            self.heads.resize(slot as usize + 1, NONE);
        }
        let entry = Entry { part: at, position, next: self.heads[slot as usize] };
        let place = match self.free_entry {
            Some(free) => {
                let next = self.entries[free as usize].next;
                self.free_entry = (next != NONE).then_some(next);
                self.entries[free as usize] = entry;
                free
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.heads[slot as usize] = place;
        self.in_use += 1;
        self.passive += usize::from(part.passive);
        self.attentive += usize::from(part.of.is_some());
    }

    /// Takes a session's entry out of its part. The entry is out of the session's list already.
    fn detach(&mut self, place: u32) -> u32 {
        let Entry { part: at, position, .. } = self.entries[place as usize];
        self.entries[place as usize] = Entry { part: NONE, position: 0, next: self.free_entry.unwrap_or(NONE) };
        self.free_entry = Some(place);
        self.in_use -= 1;
        let Some(part) = &mut self.parts[at as usize] else { return at };
        self.passive -= usize::from(part.passive);
        self.attentive -= usize::from(part.of.is_some());
        let mut hole = position as usize;
        let last = part.live.len() - 1;
        let mut moved = Vec::with_capacity(2);
        // Who has had the first of the queue stays before the cursor, who has not behind it.
        if hole < part.cursor {
            part.cursor -= 1;
            part.live[hole] = part.live[part.cursor];
            moved.push((part.live[hole], hole as u32));
            hole = part.cursor;
        }
        part.live[hole] = part.live[last];
        moved.push((part.live[hole], hole as u32));
        part.live.pop();
        if part.live.len() < part.live.capacity() / 4 {
            part.live.shrink_to(part.live.len() * 2);
        }
        let length = part.live.len() as u32;
        for (slot, position) in moved.into_iter().filter(|(_, position)| *position < length) {
            if let Some((place, _)) = self.find(slot, at) {
                self.entries[place as usize].position = position;
            }
        }
        at
    }

    /// Ends a part that nobody is in any more and nobody waits to be. Returns its group if the shard has no part of it
    /// then.
    fn end_if_empty(&mut self, at: u32) -> Option<u64> {
        let part = self.parts[at as usize].as_ref()?;
        if !part.is_empty() || part.attention.is_some() || part.ended {
            return None;
        }
        let part = self.parts[at as usize].take()?;
        self.queued_bytes -= part.queue.iter().map(Item::bytes).sum::<usize>();
        // One that is on the list of active ones is free when it comes off.
        if !part.active {
            self.free_parts.push(at);
        } else {
            if !self.gathering.remove(&(part.next_walk_ms, at)) {
                self.active.retain(|active| *active != at);
            }
            self.free_parts.push(at);
        }
        if let Some(of) = part.of {
            if let Some(part) = &mut self.parts[of as usize] {
                part.attention = None;
            }
            return self.end_if_empty(of);
        }
        self.by_group.remove(&part.group);
        Some(part.group)
    }

    /// Takes a session out of a group. Returns whether the shard has no part of it any more.
    pub(crate) fn leave(&mut self, conn: ConnId, group: u64) -> bool {
        let Some(at) = self.by_group.get(&group).copied() else { return false };
        if let Some(attention) = self.attention(at) {
            self.take_out(attention, conn);
            if let Some(group_ended) = self.end_if_empty(attention) {
                return group_ended == group;
            }
        }
        self.take_out(at, conn);
        self.end_if_empty(at).is_some()
    }

    fn take_out(&mut self, at: u32, conn: ConnId) {
        if let Some(part) = &mut self.parts[at as usize]
            && part.waiting.remove(&conn)
        {
            // The first of the queue may be walked already, and is no one to come in then.
            part.queue.retain(|item| !matches!(item, Item::Add(waiting) if *waiting == conn));
        }
        if let Some((place, before)) = self.find(conn.slot, at) {
            let next = self.entries[place as usize].next;
            match before {
                Some(before) => self.entries[before as usize].next = next,
                None => self.heads[conn.slot as usize] = next,
            }
            self.detach(place);
        }
    }

    /// The session in a slot has ended. Returns the groups of which the shard has no part any more.
    pub(crate) fn leave_all(&mut self, slot: u32) -> Vec<u64> {
        let mut ended = Vec::new();
        let mut place = self.head(slot);
        if place == NONE {
            return ended;
        }
        self.heads[slot as usize] = NONE;
        while place != NONE {
            let next = self.entries[place as usize].next;
            let at = self.detach(place);
            ended.extend(self.end_if_empty(at));
            place = next;
        }
        ended
    }

    /// All sessions are out of a group, which has ended. The places of many are given back by and by.
    pub(crate) fn end(&mut self, group: u64) {
        let Some(at) = self.by_group.remove(&group) else { return };
        for at in self.attention(at).into_iter().chain([at]) {
            let Some(part) = &mut self.parts[at as usize] else { continue };
            (part.ended, part.attention, part.news) = (true, None, Place::default());
            self.queued_bytes -= std::mem::take(&mut part.queued);
            part.queue.clear();
            part.waiting.clear();
            (part.cursor, part.before_news, part.free) = (0, 0, 0);
            if std::mem::take(&mut part.active) && !self.gathering.remove(&(part.next_walk_ms, at)) {
                self.active.retain(|active| *active != at);
            }
            self.ending.push(at);
        }
        self.end_some(STRETCH);
    }

    /// Takes so many sessions out of groups that have ended. Returns how many.
    fn end_some(&mut self, sessions_max: usize) -> usize {
        let mut taken = 0;
        while taken < sessions_max
            && let Some(at) = self.ending.last().copied()
        {
            taken += 1;
            match self.parts[at as usize].as_ref().and_then(|part| part.live.last().copied()) {
                Some(slot) => self.take_out(at, ConnId { slot, generation: 0 }),
                None => {
                    self.ending.pop();
                    self.parts[at as usize] = None;
                    self.free_parts.push(at);
                }
            }
        }
        taken
    }

    /// A frame for the sessions of a group: all of them, or those that pay attention if it is large. False if there was
    /// no room for it: they are told that something is missing.
    pub(crate) fn push(
        &mut self,
        group: u64,
        from: u64,
        origin: Option<ConnId>,
        bytes: &[u8],
        bytes_max: usize,
    ) -> bool {
        let Some(at) = self.by_group.get(&group).copied() else { return true };
        let attention = self.attention(at);
        let all = self.parts[at as usize].as_ref().filter(|part| !part.passive && !part.is_empty()).map(|_| at);
        let queued = bytes.len() * (usize::from(all.is_some()) + usize::from(attention.is_some()));
        if self.queued_bytes > 0 && self.queued_bytes + queued > bytes_max {
            self.miss(group);
            return false;
        }
        for at in all.into_iter().chain(attention) {
            self.push_to(at, from, origin, bytes);
        }
        // What waits must not take the room of what does not.
        while self.queued_bytes > bytes_max / 2
            && let Some((_, at)) = self.gathering.first().copied()
        {
            self.release(at);
        }
        true
    }

    fn push_to(&mut self, at: u32, from: u64, origin: Option<ConnId>, bytes: &[u8]) {
        let Some(part) = &mut self.parts[at as usize] else { return };
        self.queued_bytes += bytes.len();
        part.queued += bytes.len();
        let is_much = part.queued >= RUN_BYTES;
        let untouched = part.queue.len() > 1 || part.cursor == 0;
        match part.queue.back_mut() {
            Some(Item::Run(run)) if untouched && run.bytes.len() + bytes.len() <= RUN_BYTES => {
                run.bytes.extend_from_slice(bytes);
                run.frames.push(FrameOf { end: run.bytes.len(), from, origin });
            }
            _ => {
                let frames = vec![FrameOf { end: bytes.len(), from, origin }];
                part.queue.push_back(Item::Run(Run { bytes: bytes.to_vec(), frames }));
            }
        }
        if is_much {
            self.release(at);
        }
        self.activate(at);
    }

    /// All sessions of a group are to be told that something is missing, behind what is on its way to them; of a large
    /// one those in their turn that pay no attention.
    pub(crate) fn miss(&mut self, group: u64) {
        let Some(at) = self.by_group.get(&group).copied() else { return };
        if self.parts[at as usize].as_ref().is_some_and(|part| part.passive) {
            self.note_news(group);
        } else {
            self.miss_at(at);
        }
        if let Some(attention) = self.attention(at) {
            self.miss_at(attention);
        }
    }

    fn miss_at(&mut self, at: u32) {
        let Some(part) = &mut self.parts[at as usize] else { return };
        let untouched = part.queue.len() > 1 || part.cursor == 0;
        if !(untouched && matches!(part.queue.back(), Some(Item::News))) {
            part.queue.push_back(Item::News);
        }
        self.activate(at);
    }

    fn activate(&mut self, at: u32) {
        if let Some(part) = &mut self.parts[at as usize]
            && !part.active
        {
            part.active = true;
            self.active.push_back(at);
        }
    }

    /// Goes on with what is on its way, for so many sessions, at that time. Returns the groups of which the shard has
    /// no part any more.
    pub(crate) fn walk(&mut self, sessions_max: usize, pace: Pace, sink: &mut impl Sink) -> Vec<u64> {
        let mut ended = Vec::new();
        let mut left = sessions_max - self.end_some(sessions_max / 2);
        while self.gathered_ms().is_some_and(|due_ms| due_ms <= pace.now_ms)
            && let Some((_, at)) = self.gathering.pop_first()
        {
            if let Some(part) = &mut self.parts[at as usize] {
                part.free = part.queue.len();
                self.active.push_back(at);
            }
        }
        while left > 0
            && let Some(at) = self.active.pop_front()
        {
            left = left.saturating_sub(self.walk_part(at, left.min(STRETCH), pace, sink).max(1));
            let Some(part) = &mut self.parts[at as usize] else { continue };
            if part.queue.is_empty() {
                part.active = false;
                ended.extend(self.end_if_empty(at));
            } else if part.gathers(pace.now_ms) {
                self.gathering.insert((part.next_walk_ms, at));
            } else {
                self.active.push_back(at);
            }
        }
        ended
    }

    /// The same for one part. Returns how many sessions that took.
    fn walk_part(&mut self, at: u32, sessions_max: usize, pace: Pace, sink: &mut impl Sink) -> usize {
        let mut walked = 0;
        while walked < sessions_max {
            let Some(part) = self.parts[at as usize].as_mut().filter(|part| !part.gathers(pace.now_ms)) else { break };
            if let Some(Item::Add(conn)) = part.queue.front() {
                let (conn, group) = (*conn, part.group);
                part.shift();
                walked += 1;
                if sink.is_open(conn) {
                    self.attach(at, conn.slot);
                    if self.may_have_missed_news(at) {
                        sink.miss(conn.slot, group);
                    }
                }
                continue;
            }
            let Part { group, live, cursor, queue, next_walk_ms, .. } = part;
            let Some(item) = queue.front() else { break };
            if let (0, true, Item::Run(run)) = (*cursor, is_room(*group), item) {
                let gathers = pace.room_gather_ms > 0;
                *next_walk_ms = if gathers { pace.now_ms + pace.room_gather_ms } else { 0 };
                self.tally.walks += 1;
                self.tally.frames += run.frames.len() as u64;
            }
            let weight = (item.bytes() / BYTES_PER_SESSION).max(1);
            let end = live.len().min(*cursor + ((sessions_max - walked) / weight).max(1));
            for slot in &live[*cursor..end] {
                match item {
                    Item::Run(run) => sink.give(*slot, *group, run),
                    Item::News => sink.miss(*slot, *group),
                    Item::Add(_) => {}
                }
            }
            walked += (end - *cursor) * weight;
            *cursor = end;
            if end == live.len() {
                *cursor = 0;
                walked += usize::from(live.is_empty());
                if let Some(done) = part.shift() {
                    self.queued_bytes -= done.bytes();
                }
            }
        }
        walked
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Item::Run(run) => run.bytes.len(),
            Item::Add(_) | Item::News => 0,
        }
    }
}

#[cfg(test)]
mod tests;
