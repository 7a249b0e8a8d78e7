//! What this client has of each group, over all connections: so that the application is given each message once and in
//! order, or is told that some are gone.
//!
//! Messages of a group have numbers on a connection, and positions (stamps) for ever. A number that is skipped, a
//! position in HEADS that is further than what came, and a message that the application was too slow for make the group
//! *behind*: its log is fetched from the last whole position, page by page, and what comes meanwhile is held, so that
//! the order stays. A live room has no log: there the number of missed messages is told.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use trunkline_proto::{Code, Head, Sync, SyncOk};

use crate::group_asks::PageMessages;
use crate::{Event, GroupHead, GroupMessage, is_live_room};

/// Groups and rooms at most; a gateway allows a user 1,000 groups and a session as many rooms, if it is not told
/// otherwise. What comes of further groups is passed on as it comes.
const GROUPS_MAX: usize = 4_096;

/// Messages held, and their bytes, at most, over all groups that are behind. Those beyond are fetched in their turn. As
/// many as may be read ahead of a full queue of events.
const HELD_LEN_MAX: usize = 256;
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Messages whose name is remembered, to know one that comes twice.
const RECENT_MAX: usize = 8_192;

/// Messages of a connection after which its first one of a group is not doubted any more.
const DOUBT_MAX: usize = 256;

/// Positions of own messages remembered until the next message of others.
const OWN_MAX: usize = 128;

/// Messages sent whose SENT is awaited for its position. The number of one beyond looks like a gap, and is fetched.
const SENT_MAX: usize = 65_536;

/// Most messages of a page.
const PAGE_LEN: u32 = 256;

/// How long after a refusal the gateway is asked again.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// How long after finding no room for a page in the queue of events that is looked at again.
const ROOM_WAIT: Duration = Duration::from_millis(50);

/// Numbers go from 1 to here, and then begin again.
const NUMBERS: u64 = 65_535;

/// A message's name: group, sender, the sender's id.
type Name = (u64, u64, u64);

/// Stands for this user, whose id a client that the gateway tells who it is does not know.
const OWN: u64 = 0;

fn name_of(message: &GroupMessage) -> Name {
    let from = if message.is_own() { OWN } else { message.from };
    (message.group, from, message.id)
}

/// The number on the wire of the `seq`th message.
fn number_of(seq: u64) -> u16 {
    ((seq - 1) % NUMBERS + 1) as u16
}

/// The last messages by name, forgetting the oldest.
#[derive(Debug, Default)]
struct Recent {
    /// With a serial, which tells a name from an earlier one that was removed and whose place in `order` remains.
    names: HashMap<Name, u64>,
    order: VecDeque<(Name, u64)>,
    serial_next: u64,
}

impl Recent {
    /// Notes a message; false if it is known.
    fn insert(&mut self, name: Name) -> bool {
        if self.names.contains_key(&name) {
            return false;
        }
        if self.order.len() == RECENT_MAX
            && let Some((oldest, serial)) = self.order.pop_front()
            && self.names.get(&oldest) == Some(&serial)
        {
            self.names.remove(&oldest);
        }
        self.names.insert(name, self.serial_next);
        self.order.push_back((name, self.serial_next));
        self.serial_next += 1;
        true
    }

    /// The message was not given to the application after all.
    fn remove(&mut self, name: Name) {
        self.names.remove(&name);
    }
}

/// The first message of a group on a connection has nothing to compare its number with. The gateway tells with HEADS if
/// it was not the first: then what lies behind `from` is fetched, without what was told since.
#[derive(Debug)]
struct Doubt {
    from: u64,
    told: HashSet<u64>,
}

/// One group or live room.
#[derive(Debug, Default)]
struct Track {
    /// Up to here the application has been given everything.
    whole: u64,
    /// Number and position of the last message on this connection.
    number: Option<(u16, u64)>,
    /// Positions of own messages since then, which do not come back.
    own: VecDeque<u64>,
    /// How many more of them there are, before those.
    own_earlier: u64,
    /// Own messages whose SENT nobody wanted: which numbers they have had is not known.
    own_unacked: u64,
    doubt: Option<Doubt>,
    /// It is behind: the position that has to be reached, 0 for the end of the log.
    behind: Option<u64>,
    /// Where the next page begins, while it is behind.
    cursor: u64,
    /// The session is to get its messages however large it is.
    open: bool,
    /// What came meanwhile, by position, sender and id.
    held: BTreeMap<(u64, u64, u64), GroupMessage>,
}

/// How many messages are missing before one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missed {
    /// All of which the client has nothing.
    all: u64,
    /// Those that are not known to be this client's own.
    others: u64,
}

impl Track {
    /// How far a number at a position is from the last one; `None` for one of before.
    fn step(&self, number: u16, stamp: u64) -> Option<u64> {
        let (before, at) = self.number?;
        let step = (u64::from(number) + NUMBERS - u64::from(before)) % NUMBERS;
        let is_ahead = (1..=NUMBERS / 2).contains(&step) || stamp > at;
        is_ahead.then_some(step)
    }

    fn set_number(&mut self, number: u16, stamp: u64) {
        let at = self.number.map_or(0, |(_, at)| at);
        self.number = Some((number, at.max(stamp)));
    }

    /// Notes the number of a message.
    fn count(&mut self, number: u16, stamp: u64) -> Missed {
        if self.number.is_none() {
            self.take_own(stamp, true);
            self.set_number(number, stamp);
            return Missed::default();
        }
        // What is of before was on its way when the gateway said how far the group is.
        let Some(step) = self.step(number, stamp) else { return Missed::default() };
        let step = if step == 0 { NUMBERS } else { step };
        let own = self.take_own(stamp, true);
        self.set_number(number, stamp);
        self.missed(step.saturating_sub(own + 1))
    }

    /// Notes how far the group is. `None` if the numbers do not say whether something is missing.
    fn count_head(&mut self, number: u16, stamp: u64) -> Option<Missed> {
        if self.number.is_none() {
            self.set_number(number, stamp);
            return None;
        }
        let Some(step) = self.step(number, stamp) else { return Some(Missed::default()) };
        self.set_number(number, stamp);
        if step == 0 {
            // There is a message that has no number yet.
            return None;
        }
        let own = self.take_own(stamp, false);
        Some(self.missed(step.saturating_sub(own)))
    }

    fn missed(&mut self, all: u64) -> Missed {
        let unacked = all.min(self.own_unacked);
        self.own_unacked -= unacked;
        Missed { all, others: all - unacked }
    }

    /// How many own messages lie before a position, or at it if that is not of a message of others.
    fn take_own(&mut self, stamp: u64, is_message: bool) -> u64 {
        let before = self.own.iter().take_while(|own| **own < stamp || (!is_message && **own == stamp)).count();
        self.own.drain(..before);
        before as u64 + std::mem::take(&mut self.own_earlier)
    }

    fn own_sent(&mut self, stamp: u64) {
        if self.own.len() == OWN_MAX {
            self.own.pop_front();
            self.own_earlier += 1;
        }
        self.own.push_back(stamp);
    }

    /// The connection is gone, and its numbers with it.
    fn disconnected(&mut self) {
        self.number = None;
        self.own.clear();
        (self.own_earlier, self.own_unacked) = (0, 0);
    }

    /// A message goes to the application.
    fn told(&mut self, stamp: u64) {
        self.whole = self.whole.max(stamp);
        if let Some(doubt) = &mut self.doubt {
            doubt.told.insert(stamp);
            if doubt.told.len() > DOUBT_MAX {
                self.doubt = None;
            }
        }
    }
}

/// A page of the log that is on its way.
#[derive(Debug)]
struct Pull {
    group: u64,
    /// What the group was behind when it was asked for.
    target: u64,
    messages: PageMessages,
    /// The group has been set to another position meanwhile.
    stale: bool,
}

/// What this client has of its groups.
#[derive(Debug, Default)]
pub(crate) struct Follows {
    tracks: HashMap<u64, Track>,
    recent: Recent,
    /// Messages with ACK that were sent on this connection, for the first time.
    sent: HashSet<u64>,
    /// Groups that are behind and have no page on its way, in their turn.
    due: VecDeque<u64>,
    /// The next page is not asked for before then.
    not_before: Option<Instant>,
    running: Option<Pull>,
    held_len: usize,
    held_bytes: usize,
}

impl Follows {
    /// Goes on from these positions.
    pub(crate) fn new(positions: &[(u64, u64)]) -> Self {
        let mut follows = Self::default();
        for (group, stamp) in positions.iter().copied().filter(|(group, _)| !is_live_room(*group)).take(GROUPS_MAX) {
            follows.tracks.insert(group, Track { whole: stamp, ..Track::default() });
        }
        follows
    }

    /// Whether one more group or room can be kept account of.
    pub(crate) fn has_room(&self) -> bool {
        self.tracks.len() < GROUPS_MAX
    }

    /// The live rooms that this client is in.
    pub(crate) fn rooms(&self) -> Vec<u64> {
        let mut rooms: Vec<u64> = self.tracks.keys().copied().filter(|group| is_live_room(*group)).collect();
        rooms.sort_unstable();
        rooms
    }

    /// A connection begins: the numbers of the one before say nothing any more, and a page on its way does not come.
    pub(crate) fn connected(&mut self) {
        self.sent.clear();
        self.tracks.values_mut().for_each(Track::disconnected);
        if let Some(pull) = self.running.take() {
            self.due.push_front(pull.group);
        }
        self.not_before = None;
    }

    /// GROUP_OK of a join: what comes lies behind `stamp`.
    /// `again`: to a room that an earlier connection was in. Returns whether account of a group begins with it.
    pub(crate) fn joined(&mut self, group: u64, stamp: u64, again: bool, out: &mut Vec<Event>) -> bool {
        let is_new = !self.tracks.contains_key(&group);
        if is_new && !self.has_room() {
            return false;
        }
        let track = self.tracks.entry(group).or_default();
        let is_further = stamp > track.whole;
        if is_live_room(group) {
            if again && is_further {
                out.push(Event::GroupGap { group, missed: 0 });
            }
            track.whole = stamp;
        } else if is_new {
            track.whole = stamp;
        } else if is_further {
            // It was a member before.
            self.fall_behind(group, stamp);
        }
        is_new && !is_live_room(group)
    }

    /// The groups that are open.
    pub(crate) fn open_groups(&self) -> Vec<u64> {
        let open = self.tracks.iter().filter(|(_, track)| track.open);
        let mut groups: Vec<u64> = open.map(|(group, _)| *group).collect();
        groups.sort_unstable();
        groups
    }

    /// A group is open, or is not.
    pub(crate) fn set_open(&mut self, group: u64, open: bool) {
        if let Some(track) = self.tracks.get_mut(&group) {
            track.open = open;
        }
    }

    /// The client is not in this group any more.
    pub(crate) fn left(&mut self, group: u64) {
        if let Some(track) = self.tracks.remove(&group) {
            self.held_len -= track.held.len();
            self.held_bytes -= track.held.values().map(|message| message.body.len()).sum::<usize>();
        }
        self.forget_page(group);
    }

    /// A page of this group that is on its way is not what is wanted any more.
    fn forget_page(&mut self, group: u64) {
        if let Some(pull) = self.running.as_mut().filter(|pull| pull.group == group) {
            pull.stale = true;
        }
    }

    /// The application has everything up to there, and wants what lies behind. False for a live room, and where no
    /// further group can be kept account of.
    pub(crate) fn follow(&mut self, group: u64, after: u64) -> bool {
        if is_live_room(group) || (!self.tracks.contains_key(&group) && !self.has_room()) {
            return false;
        }
        self.forget_page(group);
        let track = self.tracks.entry(group).or_default();
        (track.whole, track.doubt) = (after, None);
        self.fall_behind(group, 0);
        if let Some(track) = self.tracks.get_mut(&group) {
            track.cursor = after;
        }
        true
    }

    fn fall_behind(&mut self, group: u64, target: u64) {
        let Some(track) = self.tracks.get_mut(&group) else { return };
        if let Some(behind) = &mut track.behind {
            *behind = target.max(*behind);
            return;
        }
        track.behind = Some(target);
        track.cursor = track.doubt.as_ref().map_or(track.whole, |doubt| doubt.from);
        // A page that was asked for before the group was behind is not for it.
        if !self.due.contains(&group) {
            self.due.push_back(group);
        }
    }

    /// A message of this client goes out. What comes back of it with a page is no news.
    pub(crate) fn sending(&mut self, group: u64, id: u64, acked: bool, is_retry: bool) {
        self.recent.insert((group, OWN, id));
        if acked && !is_retry {
            if self.sent.len() < SENT_MAX {
                self.sent.insert(id);
            }
        } else if !acked && let Some(track) = self.tracks.get_mut(&group) {
            track.own_unacked += 1;
        }
    }

    /// SENT of a message, with its position in the group; or its refusal, with 0.
    pub(crate) fn sent(&mut self, group: u64, id: u64, stamp: u64) {
        if self.sent.remove(&id)
            && stamp != 0
            && let Some(track) = self.tracks.get_mut(&group)
        {
            track.own_sent(stamp);
        }
    }

    /// GROUP_DELIVER that is not of a page. Returns whether account of a group begins with it.
    pub(crate) fn delivered(&mut self, message: GroupMessage, out: &mut Vec<Event>) -> bool {
        let (group, stamp) = (message.group, message.stamp);
        let is_known = self.tracks.contains_key(&group);
        if !is_known && is_live_room(group) {
            // It was on its way when this client left.
            return false;
        }
        if !is_known && !self.has_room() {
            if self.recent.insert(name_of(&message)) {
                out.push(Event::GroupMessage(message));
            }
            return false;
        }
        let track = self.tracks.entry(group).or_default();
        let is_first = track.number.is_none();
        let missed = if message.number == 0 { Missed::default() } else { track.count(message.number, stamp) };
        if missed.others > 0 {
            out.push(Event::GroupGap { group, missed: missed.others });
        }
        if is_live_room(group) {
            track.whole = track.whole.max(stamp);
        } else if missed.all > 0 {
            self.fall_behind(group, stamp);
        } else if is_first && is_known && track.behind.is_none() {
            let from = track.whole;
            track.doubt.get_or_insert_with(|| Doubt { from, told: HashSet::new() });
        }
        let is_news = self.recent.insert(name_of(&message));
        let Some(track) = self.tracks.get_mut(&group) else { return false };
        if track.behind.is_some() {
            if is_news {
                self.hold(message);
            }
            return false;
        }
        track.told(stamp);
        if is_news {
            out.push(Event::GroupMessage(message));
        }
        !is_known
    }

    fn hold(&mut self, message: GroupMessage) {
        let Some(track) = self.tracks.get_mut(&message.group) else { return };
        let bytes = message.body.len();
        if self.held_len == HELD_LEN_MAX || self.held_bytes + bytes > HELD_BYTES_MAX {
            // A page will have it.
            track.behind = track.behind.map(|target| target.max(message.stamp));
            self.recent.remove(name_of(&message));
            return;
        }
        self.held_len += 1;
        self.held_bytes += bytes;
        track.held.insert((message.stamp, message.from, message.id), message);
    }

    /// HEADS. Returns the positions from which this client follows groups that it did not know of.
    pub(crate) fn heads(&mut self, heads: &[Head], out: &mut Vec<Event>) -> Vec<(u64, u64)> {
        let (mut begun, mut unknown) = (Vec::new(), Vec::new());
        for &Head { group, stamp, read, seq, .. } in heads {
            let Some(track) = self.tracks.get_mut(&group) else {
                if !is_live_room(group) {
                    unknown.push(GroupHead { group, stamp, read });
                }
                if !is_live_room(group) && self.has_room() {
                    let number = (seq != 0).then(|| (number_of(seq), stamp));
                    self.tracks.insert(group, Track { whole: stamp, number, ..Track::default() });
                    begun.push((group, stamp));
                }
                continue;
            };
            let missed = if seq == 0 { None } else { track.count_head(number_of(seq), stamp) };
            if seq == 0 {
                // What has come is not what the next number follows.
                track.number = None;
            }
            if let Some(Missed { others: missed @ 1.., .. }) = missed {
                out.push(Event::GroupGap { group, missed });
            }
            if is_live_room(group) {
                track.whole = track.whole.max(stamp);
            } else if missed.is_some_and(|missed| missed.all == 0) && track.doubt.is_none() {
                // Everything has come, or is this client's own.
                if track.behind.is_none() {
                    track.whole = track.whole.max(stamp);
                }
            } else if stamp > track.whole || track.doubt.is_some() {
                self.fall_behind(group, stamp);
            }
        }
        if !unknown.is_empty() {
            out.push(Event::GroupHeads(unknown));
        }
        begun
    }

    // Pages

    /// A page is on its way.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The group whose page is on its way.
    pub(crate) fn running(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.group)
    }

    /// When the next page is to be asked for; `None` if no group is behind.
    pub(crate) fn pull_due(&self) -> Option<Instant> {
        let is_due = self.running.is_none() && !self.due.is_empty();
        is_due.then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    /// The next page to ask for, if it is time and the application has `room` for so many events. To be called when no
    /// question is on its way.
    pub(crate) fn next_page(&mut self, room: usize) -> Option<Sync> {
        let now = Instant::now();
        if self.running.is_some() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        while let Some(group) = self.due.pop_front() {
            let Some((target, cursor)) = self.tracks.get(&group).and_then(|track| Some((track.behind?, track.cursor)))
            else {
                continue;
            };
            if room == 0 {
                self.due.push_front(group);
                self.not_before = Some(now + ROOM_WAIT);
                return None;
            }
            self.running = Some(Pull { group, target, messages: PageMessages::default(), stale: false });
            let limit = PAGE_LEN.min(u32::try_from(room).unwrap_or(PAGE_LEN));
            return Some(Sync { after_stamp: cursor, since_ms: 0, limit, group });
        }
        None
    }

    /// A replayed message of the page on its way. False if that is more than there can be.
    pub(crate) fn replayed(&mut self, message: GroupMessage) -> bool {
        match &mut self.running {
            Some(pull) if pull.group == message.group => pull.messages.push(message),
            _ => true,
        }
    }

    /// SYNC_OK of the page on its way.
    pub(crate) fn page_over(&mut self, sync_ok: &SyncOk, out: &mut Vec<Event>) {
        let SyncOk { next_stamp, complete, truncated, group, floor, .. } = *sync_ok;
        let Some(Pull { target, messages, stale, .. }) = self.running.take_if(|pull| pull.group == group) else {
            return;
        };
        let Some(track) = self.tracks.get_mut(&group) else { return };
        if stale {
            self.due.push_back(group);
            return;
        }
        if truncated {
            out.push(Event::GroupTruncated { group, floor });
        }
        let next = next_stamp.max(track.cursor);
        let is_over = complete && track.behind.is_none_or(|behind| behind <= target);
        if !is_over && next == track.cursor {
            // Nothing has come of it; the rest is on its way to the log.
            self.not_before = Some(Instant::now() + REFUSED_WAIT);
        }
        let mut page = BTreeMap::new();
        for message in messages.list {
            let is_told = track.doubt.as_ref().is_some_and(|doubt| doubt.told.contains(&message.stamp));
            if !is_told && self.recent.insert(name_of(&message)) {
                page.insert((message.stamp, message.from, message.id), message);
            }
        }
        let later = track.held.split_off(&(next.saturating_add(1), 0, 0));
        for (place, message) in std::mem::replace(&mut track.held, later) {
            self.held_len -= 1;
            self.held_bytes -= message.body.len();
            page.insert(place, message);
        }
        track.cursor = next;
        track.whole = track.whole.max(next);
        if is_over {
            (track.behind, track.doubt) = (None, None);
            for (place, message) in std::mem::take(&mut track.held) {
                track.whole = track.whole.max(message.stamp);
                self.held_len -= 1;
                self.held_bytes -= message.body.len();
                page.insert(place, message);
            }
        } else {
            self.due.push_back(group);
        }
        out.extend(page.into_values().map(Event::GroupMessage));
    }

    /// The page on its way is refused. The group whose messages cannot be had any more, if that is final.
    pub(crate) fn refused(&mut self, code: u16, text: String, out: &mut Vec<Event>) -> Option<u64> {
        let group = self.running.take()?.group;
        let may_change =
            matches!(Code::from_u16(code), Some(Code::RateLimited | Code::Overloaded | Code::ServiceUnavailable));
        if may_change {
            self.due.push_back(group);
            self.not_before = Some(Instant::now() + REFUSED_WAIT);
            return None;
        }
        let held = self.tracks.get_mut(&group).map(|track| track.held.values().cloned().collect::<Vec<_>>());
        out.extend(held.into_iter().flatten().map(Event::GroupMessage));
        self.left(group);
        out.push(Event::GroupLost { group, code, text });
        Some(group)
    }

    /// The application was too slow for this message, and has not got it: it is fetched again, unless it was of a room.
    pub(crate) fn dropped(&mut self, message: &GroupMessage) {
        let (group, before) = (message.group, message.stamp.saturating_sub(1));
        self.recent.remove(name_of(message));
        if is_live_room(group) {
            return;
        }
        let Some(track) = self.tracks.get_mut(&group) else { return };
        track.whole = track.whole.min(before);
        if let Some(doubt) = &mut track.doubt {
            // What may be missing before it is still to be fetched.
            doubt.told.remove(&message.stamp);
        }
        self.fall_behind(group, 0);
        if let Some(track) = self.tracks.get_mut(&group) {
            track.cursor = track.cursor.min(before);
        }
        self.forget_page(group);
    }
}

#[cfg(test)]
mod tests;
