//! A shard's own sessions in each group, and frames on their way through them.
//!
//! What a part is to do stands in a queue: give frames to all, take a session in, tell all that something is missing.
//! It is done in order, so a session gets what was sent after it came in and nothing from before, and the walk of a
//! large group is spread over turns, by turns with other groups.
//!
//! A session that is in no group costs nothing but 4 B for its slot, once there are groups at all. A membership takes
//! an entry of 12 B and 4 B in the part.

use crate::io::ConnId;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// No entry.
const NONE: u32 = u32::MAX;
/// Sessions of one part that are walked before it is another part's turn.
const STRETCH: usize = 512;
/// Frames are put together to be given at once, until they are so many bytes: a fraction of any outbox.
const RUN_BYTES: usize = 16 << 10;

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
    /// Their slots.
    live: Vec<u32>,
    queue: VecDeque<Item>,
    /// How many of them have had the first of the queue.
    cursor: usize,
    /// It is on the list of those with something to do.
    active: bool,
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
    queued_bytes: usize,
}

impl Parts {
    /// Sessions in groups, one for each of both.
    pub(crate) fn memberships(&self) -> usize {
        self.in_use
    }

    pub(crate) fn len(&self) -> usize {
        self.by_group.len()
    }

    /// Whether nothing is on its way through sessions.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
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
        let waits = |item: &Item| matches!(item, Item::Add(waiting) if *waiting == conn);
        self.find(conn.slot, at).is_some()
            || self.parts[at as usize].as_ref().is_some_and(|part| part.queue.iter().any(waits))
    }

    /// Groups that a session is in.
    pub(crate) fn groups_of(&self, slot: u32) -> impl Iterator<Item = u64> {
        let mut at = self.head(slot);
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.next;
            self.parts[entry.part as usize].as_ref().map(|part| part.group)
        })
    }

    /// Takes a session into a group. Returns whether the shard had no part of it.
    pub(crate) fn join(&mut self, conn: ConnId, group: u64, last: u64, number: u64) -> bool {
        let known = self.by_group.get(&group).copied();
        let at = known.unwrap_or_else(|| self.begin(group, last, number));
        let Some(part) = &mut self.parts[at as usize] else { return false };
        if part.queue.is_empty() {
            self.attach(at, conn.slot);
        } else {
            part.queue.push_back(Item::Add(conn));
        }
        known.is_none()
    }

    fn begin(&mut self, group: u64, last: u64, number: u64) -> u32 {
        let (live, queue) = (Vec::new(), VecDeque::new());
        let part = Some(Part { group, last, number, live, queue, cursor: 0, active: false });
        let at = match self.free_parts.pop() {
            Some(at) => {
                self.parts[at as usize] = part;
                at
            }
            None => {
                self.parts.push(part);
                self.parts.len() as u32 - 1
            }
        };
        self.by_group.insert(group, at);
        at
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
    }

    /// Takes a session's entry out of its part. The entry is out of the session's list already.
    fn detach(&mut self, place: u32) -> u32 {
        let Entry { part: at, position, .. } = self.entries[place as usize];
        self.entries[place as usize] = Entry { part: NONE, position: 0, next: self.free_entry.unwrap_or(NONE) };
        self.free_entry = Some(place);
        self.in_use -= 1;
        let Some(part) = &mut self.parts[at as usize] else { return at };
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

    /// Ends a part that nobody is in any more and nobody waits to be. Returns its group.
    fn end_if_empty(&mut self, at: u32) -> Option<u64> {
        let part = self.parts[at as usize].as_ref()?;
        if !part.live.is_empty() || part.queue.iter().any(|item| matches!(item, Item::Add(_))) {
            return None;
        }
        let part = self.parts[at as usize].take()?;
        self.queued_bytes -= part.queue.iter().map(Item::bytes).sum::<usize>();
        self.by_group.remove(&part.group);
        // One that is on the list of active ones is free when it comes off.
        if !part.active {
            self.free_parts.push(at);
        } else {
            self.active.retain(|active| *active != at);
            self.free_parts.push(at);
        }
        Some(part.group)
    }

    /// Takes a session out of a group. Returns whether the shard has no part of it any more.
    pub(crate) fn leave(&mut self, conn: ConnId, group: u64) -> bool {
        let Some(at) = self.by_group.get(&group).copied() else { return false };
        if let Some(part) = &mut self.parts[at as usize] {
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
        self.end_if_empty(at).is_some()
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

    /// All sessions are out of a group, which has ended.
    pub(crate) fn end(&mut self, group: u64) {
        let Some(at) = self.by_group.get(&group).copied() else { return };
        while let Some(slot) = self.parts[at as usize].as_ref().and_then(|part| part.live.last().copied()) {
            self.leave(ConnId { slot, generation: 0 }, group);
        }
        if let Some(part) = &mut self.parts[at as usize] {
            part.queue.retain(|item| !matches!(item, Item::Add(_)));
        }
        self.end_if_empty(at);
    }

    /// A frame for all sessions of a group. False if there was no room for it: they are told that something is missing.
    pub(crate) fn push(
        &mut self,
        group: u64,
        from: u64,
        origin: Option<ConnId>,
        bytes: &[u8],
        bytes_max: usize,
    ) -> bool {
        let Some(at) = self.by_group.get(&group).copied() else { return true };
        if self.queued_bytes > 0 && self.queued_bytes + bytes.len() > bytes_max {
            self.miss(group);
            return false;
        }
        let Some(part) = &mut self.parts[at as usize] else { return true };
        self.queued_bytes += bytes.len();
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
        self.activate(at);
        true
    }

    /// All sessions of a group are to be told that something is missing, behind what is on its way to them.
    pub(crate) fn miss(&mut self, group: u64) {
        let Some(at) = self.by_group.get(&group).copied() else { return };
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

    /// Goes on with what is on its way, for so many sessions. Returns the groups of which the shard has no part any
    /// more.
    pub(crate) fn walk(&mut self, sessions_max: usize, sink: &mut impl Sink) -> Vec<u64> {
        let mut ended = Vec::new();
        let mut left = sessions_max;
        while left > 0
            && let Some(at) = self.active.pop_front()
        {
            left = left.saturating_sub(self.walk_part(at, left.min(STRETCH), sink).max(1));
            let Some(part) = &mut self.parts[at as usize] else { continue };
            if part.queue.is_empty() {
                part.active = false;
                ended.extend(self.end_if_empty(at));
            } else {
                self.active.push_back(at);
            }
        }
        ended
    }

    /// The same for one part. Returns how many sessions that took.
    fn walk_part(&mut self, at: u32, sessions_max: usize, sink: &mut impl Sink) -> usize {
        let mut walked = 0;
        while walked < sessions_max {
            let Some(part) = &mut self.parts[at as usize] else { break };
            let Part { group, live, cursor, queue, .. } = part;
            let Some(item) = queue.front() else { break };
            if let Item::Add(conn) = *item {
                queue.pop_front();
                walked += 1;
                if sink.is_open(conn) {
                    self.attach(at, conn.slot);
                }
                continue;
            }
            let end = live.len().min(*cursor + (sessions_max - walked));
            for slot in &live[*cursor..end] {
                match item {
                    Item::Run(run) => sink.give(*slot, *group, run),
                    Item::News => sink.miss(*slot, *group),
                    Item::Add(_) => {}
                }
            }
            walked += end - *cursor;
            *cursor = end;
            if end == live.len() {
                *cursor = 0;
                if let Some(done) = queue.pop_front() {
                    self.queued_bytes -= done.bytes();
                }
                walked += usize::from(live.is_empty());
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
