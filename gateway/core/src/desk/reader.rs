//! What one registered device that is online has of its user's inbox: what it owes an ACK for, and how far it is in the
//! log.
//!
//! Two ways lead to a device. What comes while it is online is *given* to it at once. What came before is its
//! *backlog*: the part of the log from its cursor to the position at its LOGIN, read page by page. Where a message
//! cannot be given, because there is no room or too much waits for ACKs already, the reader is *held*: from that
//! position on nothing is given, and when there is room again that part of the log becomes its backlog. So no position
//! reaches a device both ways, and none neither.
//!
//! Where nodes share the store, another one may have been the home in a view that this one has missed, and have added
//! to the log. So a reader knows up to where the log is accounted for ([`Reader::knows`]), and what turns out to lie
//! between that and the end of the log as the store tells it is *missed* ([`Reader::log_ended`]): it is read like a
//! backlog, and until then the cursor stays before it.

use std::collections::VecDeque;

/// Messages that are not kept of which it is remembered when they were given.
const UNKEPT_MAX: usize = 64;
/// Parts of the log that were missed and are not read yet. Further ones become one with the last, so that something
/// between them may come twice.
const MISSED_MAX: usize = 16;
/// Positions remembered that were given to it and that the log may have. Of older ones it may get a second copy.
const UNSURE_MAX: usize = 64;

/// A part of the log that a device is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Read up to here.
    pub(crate) after: u64,
    /// The last position of it.
    pub(crate) until: u64,
    /// A page of it is asked for.
    pub(crate) reading: bool,
    /// Its end is told with SYNC_OK: it is that of a LOGIN.
    pub(crate) announced: bool,
    /// Something of it is gone.
    pub(crate) truncated: bool,
}

/// A page to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextPage {
    /// The number of the device in the store.
    pub(crate) device: u16,
    /// It is no other one that has got the number since.
    pub(crate) device_epoch: u32,
    pub(crate) after: u64,
    pub(crate) limit: u32,
}

/// A message that is not kept and was given to a device.
#[derive(Clone, Copy, Debug)]
struct Unkept {
    stamp: u64,
    /// That of its first copy among all that was given: nobody can tell which copy an ACK is of, and it is of that one
    /// or of a later one. What came between the copies has ACKs of its own.
    number: u32,
    copies: u32,
    /// It is in the log, and was given because the device asked for a page.
    paged: bool,
}

/// One registered device that is online.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) session: u64,
    pub(crate) slot: u32,
    /// Its number in the store; 0 while the store has not said it.
    pub(crate) device: u16,
    /// What tells it from others that have had, or will get, that number.
    device_epoch: u32,
    /// When the store was last told that it is connected, if only by its LOGIN.
    pub(crate) seen_tick: u32,
    /// The view, by its digest, in which this was found to be the home.
    pub(crate) view: u64,
    /// Messages of its backlog that it may owe at a time.
    window: u32,
    /// Positions given to it and not acknowledged, rising; each with its number among all that was given.
    owed: VecDeque<(u64, u32)>,
    /// What was given so far, counted.
    numbered: u32,
    /// The latest messages that ask for an ACK and are not kept, in the order in which they were given first. An ACK of
    /// one may be for all before it.
    unkept: VecDeque<Unkept>,
    /// Up to here pages may have had messages of which it is not remembered any more.
    pages_forgotten: u64,
    /// The highest position that was given to it, or is not for it.
    given: u64,
    /// The cursor that the store knows, and the one it knew before.
    told: u64,
    told_before: u64,
    /// The latest position when its session began.
    began: u64,
    pub(crate) backlog: Option<Backlog>,
    /// Nothing behind this position is given.
    held_from: Option<u64>,
    /// Up to here all of the log was given to it, is not for it, or lies in what is still to be read. Above all
    /// positions where nobody else adds to the log.
    sure: u64,
    /// What others have added unseen, and was not read yet: behind the first and up to the second position. Rising.
    missed: Vec<(u64, u64)>,
    /// Messages that were given to it, for which the store has not said whether the log has them: position, sender and
    /// id. Another home may have given the position to another message.
    unsure: VecDeque<(u64, u64, u64)>,
    /// The end of the backlog of its LOGIN is told with that of the next one, and that something of it is gone.
    announces: bool,
    truncates: bool,
}

impl Reader {
    /// A device whose session begins when `now` is the latest position.
    pub(crate) fn new(session: u64, slot: u32, window: u32, now: u64) -> Self {
        Reader {
            session,
            slot,
            device: 0,
            device_epoch: 0,
            seen_tick: 0,
            view: 0,
            window: window.max(1),
            owed: VecDeque::new(),
            numbered: 0,
            unkept: VecDeque::new(),
            pages_forgotten: 0,
            given: now,
            told: 0,
            told_before: 0,
            began: now,
            backlog: None,
            held_from: None,
            sure: u64::MAX,
            missed: Vec::new(),
            unsure: VecDeque::new(),
            announces: false,
            truncates: false,
        }
    }

    /// The log ended at `last` when the store said where the device stands, and others may add to it.
    pub(crate) fn knows(&mut self, last: u64) {
        self.sure = last;
    }

    /// This home has added a message, of which the device knows, behind all else that the log had.
    pub(crate) fn added(&mut self, stamp: u64) {
        self.sure = self.sure.max(stamp);
    }

    /// The log ended at `last`, when all that this home had added until then was told by [`Reader::added`]: the rest is
    /// another home's. Returns whether there is something to be read now.
    pub(crate) fn log_ended(&mut self, last: u64) -> bool {
        if last <= self.sure {
            return false;
        }
        let after = std::mem::replace(&mut self.sure, last);
        match self.backlog.filter(|backlog| !backlog.reading) {
            // What lies in there is read anyway.
            Some(backlog) => {
                self.miss(after, last.min(backlog.after));
                self.miss(after.max(backlog.until), last);
            }
            // A page that is on its way may have been read before that was added.
            None => self.miss(after, last),
        }
        !self.missed.is_empty()
    }

    /// The store was asked to keep a message that was given to the device, and nobody knows whether it has it. If so,
    /// it comes to light when the log turns out to be longer, and the device needs no copy of it.
    pub(crate) fn may_be_in_log(&mut self, stamp: u64, from: u64, id: u64) {
        self.unsure.retain(|(unsure, ..)| *unsure > self.sure);
        if self.unsure.len() >= UNSURE_MAX {
            self.unsure.pop_front();
        }
        self.unsure.push_back((stamp, from, id));
    }

    fn miss(&mut self, after: u64, until: u64) {
        // The rest comes with what it is held before.
        let until = until.min(self.held_from.unwrap_or(u64::MAX));
        if after >= until {
            return;
        }
        let is_full = self.missed.len() >= MISSED_MAX;
        match self.missed.last_mut() {
            Some((_, end)) if is_full || *end >= after => *end = until.max(*end),
            _ => self.missed.push((after, until)),
        }
    }

    /// Whether something is to be read that others have added.
    pub(crate) fn has_missed(&self) -> bool {
        !self.missed.is_empty()
    }

    /// Begins to read what others have added, unless something else is being read. Nobody is told of its end.
    pub(crate) fn read_missed(&mut self) {
        if self.backlog.is_some() || self.missed.is_empty() {
            return;
        }
        let (after, until) = self.missed.remove(0);
        self.backlog = Some(Backlog { after, until, reading: false, announced: false, truncated: false });
    }

    /// The store says where the device stands. What lies between that and the session's beginning is its backlog; and
    /// what others have added to the log until then, up to `last`. `device`: its number and epoch.
    pub(crate) fn opened(&mut self, device: (u16, u32), cursor: u64, last: u64, truncated: bool) {
        (self.device, self.device_epoch) = device;
        self.told = cursor;
        let until = self.began.max(cursor).max(last);
        let truncated = truncated | std::mem::take(&mut self.truncates);
        self.backlog = Some(Backlog { after: cursor, until, reading: false, announced: true, truncated });
        if let Some(held) = self.held_from.take() {
            self.hold(held.max(cursor));
        }
    }

    /// A message that it was not given was given up, and is in the log by no way: that is told with the end of what it
    /// reads, or is to read.
    pub(crate) fn lost(&mut self, stamp: u64) {
        if self.has(stamp) {
            return;
        }
        match &mut self.backlog {
            Some(backlog) => backlog.truncated = true,
            None => self.truncates |= self.is_held() || self.device == 0,
        }
    }

    /// Its number and epoch in the store; the number is 0 while the store has not said them.
    pub(crate) fn device(&self) -> (u16, u32) {
        (self.device, self.device_epoch)
    }

    /// Whether a message that comes now is to be given to the device, as far as it is concerned.
    pub(crate) fn takes(&self, owed_max: usize) -> bool {
        self.held_from.is_none() && self.owed.len() < owed_max
    }

    /// A message was given to it as it came.
    pub(crate) fn gave(&mut self, stamp: u64) {
        self.owe(stamp);
        self.given = self.given.max(stamp);
    }

    /// A message that is not kept was given to it, and asks for an ACK. `again`: it was given to it before.
    pub(crate) fn gave_unkept(&mut self, stamp: u64, again: bool) {
        self.numbered = self.numbered.wrapping_add(1);
        if let Some(unkept) = self.unkept.iter_mut().find(|unkept| unkept.stamp == stamp) {
            unkept.copies = unkept.copies.saturating_add(1);
            return;
        }
        // When its first copy came is forgotten: its ACK is for itself alone.
        if again {
            return;
        }
        self.remember(Unkept { stamp, number: self.numbered, copies: 1, paged: false });
    }

    /// Remembers when a message was given, in place of the one that was given first.
    fn remember(&mut self, unkept: Unkept) {
        if self.unkept.len() >= UNKEPT_MAX
            && let Some(first) = self.unkept.pop_front().filter(|first| first.paged)
        {
            self.pages_forgotten = self.pages_forgotten.max(first.stamp);
        }
        self.unkept.push_back(unkept);
    }

    /// A message of the log is given to it because it asked for a page. Returns whether that copy is to be
    /// acknowledged. One that it owes already is not: its ACK may be on its way, and would count for what came between
    /// the copies, which the device may never get. The same holds for one that may have been on a page before when it
    /// is forgotten when that was.
    pub(crate) fn gives_page(&mut self, stamp: u64) -> bool {
        if self.find(stamp).is_ok() {
            return false;
        }
        let known = self.unkept.iter_mut().find(|unkept| unkept.stamp == stamp);
        if known.is_none() && stamp <= self.pages_forgotten {
            return false;
        }
        self.numbered = self.numbered.wrapping_add(1);
        match known {
            Some(unkept) => unkept.copies = unkept.copies.saturating_add(1),
            None => self.remember(Unkept { stamp, number: self.numbered, copies: 1, paged: true }),
        }
        true
    }

    /// A message that came is not for this device.
    pub(crate) fn pass(&mut self, stamp: u64) {
        self.given = self.given.max(stamp);
    }

    /// Nothing behind this position is given from now on.
    pub(crate) fn hold(&mut self, after: u64) {
        self.held_from = Some(self.held_from.map_or(after, |held| held.min(after)));
        self.missed.retain_mut(|(begin, end)| {
            *end = (*end).min(after);
            *begin < *end
        });
        if let Some(backlog) = self.backlog.as_mut().filter(|backlog| backlog.after <= after && after < backlog.until) {
            // What lies behind comes with the rest, in order, and the end is told then.
            backlog.until = after;
            self.announces |= std::mem::take(&mut backlog.announced);
        }
    }

    /// Whether the device has said before that it has everything up to a position.
    pub(crate) fn has(&self, stamp: u64) -> bool {
        stamp <= self.told
    }

    /// What was given to it has not reached it: it gets that from the log, and what follows.
    pub(crate) fn bounced(&mut self, stamp: u64) {
        if let Ok(at) = self.find(stamp) {
            self.owed.remove(at);
        }
        self.unsure.retain(|(unsure, ..)| *unsure != stamp);
        self.unkept.retain_mut(|unkept| {
            unkept.copies -= u32::from(unkept.stamp == stamp);
            unkept.copies > 0
        });
        self.hold(stamp.saturating_sub(1));
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held_from.is_some()
    }

    /// Whether there is something of the log that it has to get.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_held() || self.backlog.is_some() || self.has_missed()
    }

    /// Whether a held device can go on: what it got before is over, and not much of it is owed.
    pub(crate) fn may_resume(&self, owed_max: usize) -> bool {
        self.held_from.is_some() && self.device != 0 && self.backlog.is_none() && self.owed.len() <= owed_max / 2
    }

    /// Goes on from where it was held: what lies between there and `now` is in the log, and what comes later is given
    /// again.
    pub(crate) fn resume(&mut self, now: u64) {
        let Some(after) = self.held_from.take() else { return };
        let until = now.max(after);
        let announced = std::mem::take(&mut self.announces);
        let truncated = std::mem::take(&mut self.truncates);
        self.backlog = Some(Backlog { after, until, reading: false, announced, truncated });
    }

    /// The page to ask for now, if any. At most `window` of the backlog are owed.
    pub(crate) fn next_page(&mut self) -> Option<NextPage> {
        let ((device, device_epoch), window) = (self.device(), self.window);
        let backlog = self.backlog.as_mut().filter(|backlog| !backlog.reading)?;
        let owed = self.owed.partition_point(|(stamp, _)| *stamp <= backlog.until) as u32;
        #[cfg(test)]
        let owed = if crate::simulation::planted(crate::simulation::Bug::BacklogUnbounded) { 0 } else { owed };
        if owed > window / 2 {
            return None;
        }
        backlog.reading = true;
        Some(NextPage { device, device_epoch, after: backlog.after, limit: window - owed })
    }

    /// No page comes for what was asked; it may be asked for again.
    pub(crate) fn no_page(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.reading = false;
        }
    }

    /// Whether a message of a page is to be given: it is in the backlog, and was not given already.
    pub(crate) fn wants(&self, stamp: u64, from: u64, id: u64) -> bool {
        let in_backlog = self.backlog.is_some_and(|backlog| backlog.after < stamp && stamp <= backlog.until);
        #[cfg(test)]
        let in_backlog = in_backlog || crate::simulation::planted(crate::simulation::Bug::BacklogUnordered);
        in_backlog
            && match self.unsure.iter().find(|(unsure, ..)| *unsure == stamp) {
                // What was given is not in the log then, though it may be owed.
                Some(unsure) => *unsure != (stamp, from, id),
                None => self.find(stamp).is_err(),
            }
    }

    /// A message of its backlog was given to it.
    pub(crate) fn replayed(&mut self, stamp: u64) {
        self.owe(stamp);
        self.passed_over(stamp);
    }

    /// Its backlog is read up to this position.
    pub(crate) fn passed_over(&mut self, stamp: u64) {
        if let Some(backlog) = &mut self.backlog {
            if backlog.after <= self.sure {
                self.sure = self.sure.max(stamp);
            }
            backlog.after = backlog.after.max(stamp);
        }
    }

    /// A page has been dealt with. `complete`: nothing is left of the log behind it. Returns the backlog if it is over
    /// with that.
    pub(crate) fn page_over(&mut self, complete: bool) -> Option<Backlog> {
        let backlog = self.backlog.as_mut()?;
        backlog.reading = false;
        if !complete && backlog.after < backlog.until {
            return None;
        }
        let mut over = self.backlog.take()?;
        self.given = self.given.max(over.until);
        if self.announces {
            // It is told with the end.
            self.truncates |= std::mem::take(&mut over.truncated);
        }
        Some(over)
    }

    /// ACK of one message. Returns whether it owed that.
    pub(crate) fn ack(&mut self, stamp: u64) -> bool {
        if self.owed.front().is_some_and(|(front, _)| *front == stamp) {
            self.owed.pop_front();
            return true;
        }
        self.find(stamp).is_ok_and(|at| self.owed.remove(at).is_some())
    }

    /// ACK of all that was given before the message at a position, in the order in which it was given: a backlog comes
    /// beside live messages, so what lies before it may be on its way yet. Returns the positions.
    pub(crate) fn ack_earlier(&mut self, stamp: u64) -> Vec<u64> {
        let unkept = || self.unkept.iter().find(|unkept| unkept.stamp == stamp).map(|unkept| unkept.number);
        let Some(number) = self.find(stamp).ok().map(|at| self.owed[at].1).or_else(unkept) else { return Vec::new() };
        let is_earlier = |given: u32| given != number && number.wrapping_sub(given) < u32::MAX / 2;
        let earlier = self.owed.iter().filter(|(_, given)| is_earlier(*given)).map(|(stamp, _)| *stamp).collect();
        self.owed.retain(|(_, given)| !is_earlier(*given));
        earlier
    }

    fn find(&self, stamp: u64) -> Result<usize, usize> {
        self.owed.binary_search_by_key(&stamp, |(stamp, _)| *stamp)
    }

    /// The position up to which the device has everything.
    pub(crate) fn cursor(&self) -> u64 {
        let owed = self.owed.front().map(|(stamp, _)| stamp - 1);
        #[cfg(test)]
        let owed = owed.filter(|_| !crate::simulation::planted(crate::simulation::Bug::CursorAhead));
        let backlog = self.backlog.map(|backlog| backlog.after);
        let missed = self.missed.first().map(|(after, _)| *after);
        [owed, backlog, missed, self.held_from].into_iter().flatten().min().unwrap_or(self.given)
    }

    /// The cursor, if the store, whose log ends at `last`, does not know that it has got further. It counts as told
    /// then.
    pub(crate) fn take_news(&mut self, last: u64) -> Option<u64> {
        let news = self.news(last)?;
        self.told_before = std::mem::replace(&mut self.told, news);
        Some(news)
    }

    fn news(&self, last: u64) -> Option<u64> {
        // What others may have added is not skipped.
        let cursor = self.cursor().min(last).min(self.sure);
        (self.device != 0 && cursor > self.told).then_some(cursor)
    }

    /// The store could not be told what [`Reader::take_news`] gave.
    pub(crate) fn untell(&mut self) {
        self.told = self.told_before;
    }

    /// Whether [`Reader::take_news`] would give anything. What is not in the log is of no interest there.
    pub(crate) fn has_news(&self, last: u64) -> bool {
        self.news(last).is_some()
    }

    /// Positions that it owes an ACK for.
    #[cfg(test)]
    pub(crate) fn owed(&self) -> usize {
        self.owed.len()
    }

    fn owe(&mut self, stamp: u64) {
        self.numbered = self.numbered.wrapping_add(1);
        match self.owed.back() {
            Some((last, _)) if *last >= stamp => {
                if let Err(at) = self.find(stamp) {
                    self.owed.insert(at, (stamp, self.numbered));
                }
            }
            _ => self.owed.push_back((stamp, self.numbered)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWED_MAX: usize = 8;

    fn reader(cursor: u64, began: u64) -> Reader {
        let mut reader = Reader::new(1, 1, 4, began);
        reader.opened((7, 70), cursor, 0, false);
        reader
    }

    /// Gives the reader what it wants of a log, as a page does.
    fn read(reader: &mut Reader, log: &[u64]) -> Vec<u64> {
        let Some(NextPage { after, limit, .. }) = reader.next_page() else { return Vec::new() };
        let behind: Vec<u64> = log.iter().copied().filter(|stamp| *stamp > after).collect();
        let page: Vec<u64> = behind.iter().copied().take(limit as usize).collect();
        let until = reader.backlog.map_or(0, |backlog| backlog.until);
        for stamp in page.iter().take_while(|stamp| **stamp <= until) {
            if reader.wants(*stamp, 1, *stamp) {
                reader.replayed(*stamp);
            } else {
                reader.passed_over(*stamp);
            }
        }
        let is_beyond = page.last().is_some_and(|last| *last > until);
        reader.page_over(is_beyond || page.len() == behind.len());
        page
    }

    fn stamps(reader: &Reader) -> Vec<u64> {
        reader.owed.iter().map(|(stamp, _)| *stamp).collect()
    }

    #[test]
    fn a_backlog_comes_in_order_and_no_more_than_the_window_at_a_time() {
        let log: Vec<u64> = (11..=20).collect();
        let mut reader = reader(10, 20);
        assert_eq!(read(&mut reader, &log), [11, 12, 13, 14]);
        assert_eq!((read(&mut reader, &log), reader.cursor()), (vec![], 10));
        assert!(reader.ack(11));
        assert_eq!((read(&mut reader, &log), reader.cursor()), (vec![], 11));
        assert!(reader.ack(13));
        assert_eq!((read(&mut reader, &log), reader.cursor()), (vec![15, 16], 11));
        assert_eq!(reader.ack_earlier(16), [12, 14, 15]);
        assert!(reader.ack(16));
        assert_eq!((read(&mut reader, &log), reader.cursor()), (vec![17, 18, 19, 20], 16));
        reader.ack_earlier(20);
        reader.ack(20);
        assert!(read(&mut reader, &log).is_empty());
        assert_eq!((reader.cursor(), reader.backlog), (20, None));
    }

    #[test]
    fn the_cursor_stays_before_what_is_owed_whatever_else_is_acknowledged() {
        let mut reader = reader(10, 20);
        for stamp in [21, 22, 23] {
            reader.gave(stamp);
        }
        reader.ack(23);
        assert_eq!(reader.cursor(), 10, "the backlog has not been read");
        reader.next_page();
        assert_eq!(reader.page_over(true).map(|backlog| backlog.until), Some(20));
        assert_eq!(reader.cursor(), 20);
        reader.ack(21);
        assert_eq!(reader.cursor(), 21);
        assert!(!reader.ack(21), "acknowledged twice");
        reader.ack(22);
        assert_eq!(reader.cursor(), 23);
        assert_eq!((reader.take_news(22), reader.take_news(22)), (Some(22), None));
        // What was acknowledged long before it came into the log.
        assert_eq!(reader.take_news(23), Some(23));
    }

    #[test]
    fn nothing_in_the_log_is_nothing_to_tell_the_store() {
        let mut reader = reader(10, 20);
        reader.next_page();
        reader.page_over(true);
        reader.gave(25);
        reader.ack(25);
        assert!(!reader.has_news(10) && reader.take_news(10).is_none());
        assert!(reader.has_news(24));
    }

    #[test]
    fn a_held_device_gets_from_the_log_what_it_was_not_given_and_nothing_twice() {
        let mut reader = reader(10, 20);
        reader.next_page();
        reader.page_over(true);
        reader.gave(21);
        reader.hold(21);
        assert!(!reader.takes(OWED_MAX));
        reader.hold(24);
        assert!(reader.ack(21) && reader.may_resume(OWED_MAX));
        assert_eq!(reader.cursor(), 21);
        reader.resume(25);
        assert!(reader.takes(OWED_MAX));
        reader.gave(26);
        assert_eq!(read(&mut reader, &[21, 22, 25, 26]), [22, 25, 26]);
        assert_eq!(stamps(&reader), [22, 25, 26]);
        // 26 was given before the others came.
        assert!(reader.ack_earlier(26).is_empty());
        assert_eq!(reader.ack_earlier(25), [22, 26]);
        assert!(reader.ack(25));
        assert_eq!(reader.cursor(), 26);
    }

    #[test]
    fn what_was_given_up_is_told_with_the_end_of_what_is_read() {
        let truncated = |reader: &mut Reader| {
            reader.next_page();
            reader.page_over(true).map(|over| over.truncated)
        };
        let mut late = Reader::new(1, 1, 4, 20);
        late.lost(15);
        late.opened((7, 70), 10, 0, false);
        assert_eq!(truncated(&mut late), Some(true));
        late.lost(21);
        late.hold(21);
        late.lost(22);
        late.resume(30);
        assert_eq!(truncated(&mut late), Some(true));
        late.resume(31);
        late.lost(31);
        assert_eq!(truncated(&mut late), None, "it was given all of it, or it was not for it");
        let mut reading = reader(10, 20);
        reading.lost(10);
        assert_eq!(truncated(&mut reading), Some(false), "it has that");
        let mut reading = reader(10, 20);
        reading.lost(15);
        assert_eq!(truncated(&mut reading), Some(true));
    }

    #[test]
    fn what_is_missing_from_the_log_holds_a_backlog_before_it() {
        let mut reader = reader(10, 20);
        reader.hold(14);
        assert_eq!(read(&mut reader, &[12, 16, 17]), [12, 16, 17]);
        assert_eq!((stamps(&reader), reader.backlog, reader.cursor()), (vec![12], None, 11));
        reader.ack(12);
        assert!(reader.may_resume(OWED_MAX));
        reader.resume(20);
        assert!(reader.backlog.is_some_and(|backlog| backlog.announced), "its end has not been told");
        assert_eq!(read(&mut reader, &[12, 15, 16, 17]), [15, 16, 17]);
        assert_eq!(stamps(&reader), [15, 16, 17]);
    }

    #[test]
    fn an_ack_of_a_message_that_is_not_kept_may_be_for_all_before_it() {
        let mut reader = reader(10, 20);
        reader.gave(21);
        reader.gave_unkept(22, false);
        reader.gave(23);
        assert_eq!(reader.ack_earlier(22), [21]);
        assert_eq!((stamps(&reader), reader.ack_earlier(99)), (vec![23], vec![]));
        reader.gave_unkept(22, true);
        assert!(reader.ack_earlier(22).is_empty(), "it may be of the first copy, before which 23 had not come");
        assert_eq!(stamps(&reader), [23]);
        assert!(reader.ack(23));
        reader.gave(24);
        reader.gave(25);
        // A page has one that is owed, and one that is not.
        assert!(!reader.gives_page(24) && reader.gives_page(23));
        assert!(reader.ack_earlier(24).is_empty(), "25 may not have come there when 24 had");
        assert_eq!(reader.ack_earlier(23), [24, 25]);
        (0..1_000).for_each(|stamp| reader.gave_unkept(100 + stamp, false));
        assert_eq!(reader.unkept.len(), UNKEPT_MAX);
        reader.gave(2_000);
        reader.gave_unkept(100, true);
        assert!(reader.ack_earlier(100).is_empty(), "when its first copy came is forgotten");
    }

    #[test]
    fn a_long_page_that_is_asked_for_twice_has_no_first_copies_the_second_time() {
        let mut reader = reader(10, 20);
        let page = 1_000..1_000 + 3 * UNKEPT_MAX as u64;
        assert!(page.clone().all(|stamp| reader.gives_page(stamp)));
        reader.gave(5_000);
        let again: Vec<u64> = page.clone().filter(|stamp| reader.gives_page(*stamp)).collect();
        assert_eq!(again.len(), UNKEPT_MAX, "those of which it is known when they came");
        // The ACKs of the first page are on their way while the second one is.
        assert!(page.clone().all(|stamp| reader.ack_earlier(stamp).is_empty()), "none is for what came between");
        assert_eq!(stamps(&reader), [5_000]);
        // What no page has had is a first one, also where pages are asked for in between.
        assert!(reader.gives_page(page.end + 1));
        assert_eq!(reader.ack_earlier(page.end + 1), [5_000]);
        // Messages that are not kept are in no log: that they are forgotten says nothing of pages.
        (0..1_000).for_each(|stamp| reader.gave_unkept(100_000 + stamp, false));
        assert!(reader.gives_page(50_000));
    }

    #[test]
    fn a_copy_that_did_not_get_there_is_no_first_one() {
        let mut reader = reader(10, 20);
        reader.gave_unkept(21, false);
        reader.bounced(21);
        reader.gave(22);
        reader.gave_unkept(21, false);
        assert_eq!(reader.ack_earlier(21), [22], "it came but once");
        reader.gave(23);
        reader.gave_unkept(21, true);
        reader.bounced(21);
        assert!(reader.ack_earlier(21).is_empty(), "one of the two has come");
    }

    #[test]
    fn one_that_was_held_before_the_store_answered_gets_nothing_twice() {
        let mut reader = Reader::new(1, 1, 4, 20);
        reader.hold(14);
        reader.opened((7, 70), 10, 0, true);
        assert_eq!(reader.next_page(), Some(NextPage { device: 7, device_epoch: 70, after: 10, limit: 4 }));
        reader.replayed(12);
        let over = reader.page_over(true);
        assert_eq!(over.map(|backlog| (backlog.until, backlog.announced, backlog.truncated)), Some((14, false, false)));
        reader.resume(25);
        let rest = reader.backlog.map(|backlog| (backlog.after, backlog.until, backlog.announced, backlog.truncated));
        assert_eq!(rest, Some((14, 25, true, true)), "both are told with the end");
    }

    /// A device that has all up to 20, where others may add to the log.
    fn shared() -> Reader {
        let mut reader = Reader::new(1, 1, 4, 20);
        reader.knows(20);
        reader.opened((7, 70), 20, 20, false);
        reader.next_page();
        reader.page_over(true);
        reader
    }

    #[test]
    fn what_another_home_has_added_unseen_is_read_once_and_the_cursor_waits_for_it() {
        let mut reader = shared();
        reader.gave(25);
        reader.gave(26);
        reader.ack(25);
        assert_eq!(reader.take_news(30), None, "others may have added something before 25");
        assert!(reader.log_ended(23) && !reader.log_ended(23));
        reader.added(25);
        reader.read_missed();
        assert_eq!((reader.cursor(), reader.backlog.map(|backlog| backlog.until)), (20, Some(23)));
        assert_eq!(read(&mut reader, &[20, 21, 23, 25, 26]), [21, 23, 25, 26]);
        assert_eq!(stamps(&reader), [21, 23, 26]);
        assert!(!reader.is_behind());
        for stamp in [21, 23, 26] {
            reader.ack(stamp);
        }
        assert_eq!(reader.take_news(30), Some(25), "26 is not known to be in the log");
    }

    #[test]
    fn what_was_given_and_is_in_the_log_though_the_store_did_not_say_so_is_not_given_again() {
        let mut reader = shared();
        for stamp in [22, 23, 24] {
            reader.gave(stamp);
            reader.may_be_in_log(stamp, 1, stamp);
        }
        assert!(reader.ack(22) && reader.ack(24));
        reader.bounced(24);
        assert!(reader.log_ended(30));
        reader.read_missed();
        // 21 is another home's, 23 is owed, 24 has not got there.
        assert_eq!(read(&mut reader, &[21, 22, 23, 24]), [21, 22, 23]);
        assert_eq!((stamps(&reader), reader.cursor()), (vec![21, 23], 20));
        reader.resume(30);
        assert_eq!(read(&mut reader, &[21, 22, 23, 24]), [24]);
        assert_eq!(stamps(&reader), [21, 23, 24]);
        (100..1_000).for_each(|stamp| reader.may_be_in_log(stamp, 1, stamp));
        assert_eq!(reader.unsure.len(), UNSURE_MAX);
    }

    #[test]
    fn another_message_at_the_position_of_one_that_failed_is_given() {
        let mut reader = shared();
        for stamp in [21, 22] {
            reader.gave(stamp);
            reader.may_be_in_log(stamp, 1, stamp);
        }
        assert!(reader.ack(21));
        assert!(reader.log_ended(30));
        reader.read_missed();
        for stamp in [21, 22] {
            assert!(!reader.wants(stamp, 1, stamp), "it has it");
            assert!(reader.wants(stamp, 1, 9) && reader.wants(stamp, 2, stamp), "it has another one");
        }
    }

    #[test]
    fn what_is_read_anyway_is_not_read_twice_because_it_was_missed() {
        let mut reader = shared();
        reader.hold(22);
        // Nothing is given behind 22: that comes with the rest.
        assert!(reader.log_ended(30));
        assert_eq!(reader.missed, [(20, 22)]);
        reader.hold(21);
        assert_eq!((reader.missed.clone(), reader.cursor()), (vec![(20, 21)], 20));
        reader.read_missed();
        assert_eq!(read(&mut reader, &[21, 23, 30]), [21, 23, 30]);
        assert_eq!((stamps(&reader), reader.is_held()), (vec![21], true));
        reader.resume(30);
        assert!(reader.log_ended(31));
        assert_eq!(reader.missed, [(30, 31)]);
        assert_eq!(read(&mut reader, &[21, 23, 30, 31]), [23, 30, 31]);
        assert!(reader.ack(21) && reader.ack(23));
        reader.read_missed();
        assert_eq!(read(&mut reader, &[21, 23, 30, 31]), [31]);
        assert_eq!(stamps(&reader), [30, 31]);
    }

    #[test]
    fn parts_that_were_missed_are_bounded_and_none_is_left_out() {
        let mut reader = shared();
        for gap in 1..100 {
            reader.log_ended(20 + 3 * gap - 2);
            reader.added(20 + 3 * gap);
        }
        assert_eq!(reader.missed.len(), MISSED_MAX);
        assert_eq!((reader.missed[0], reader.missed[MISSED_MAX - 1].1), ((20, 21), 20 + 3 * 99 - 2));
    }

    #[test]
    fn one_that_acknowledges_nothing_is_given_no_more_than_it_may_owe() {
        let mut reader = reader(10, 20);
        reader.next_page();
        reader.page_over(true);
        let mut stamp = 20;
        while reader.takes(OWED_MAX) {
            stamp += 1;
            reader.gave(stamp);
        }
        reader.hold(stamp);
        assert_eq!((reader.owed(), reader.may_resume(OWED_MAX)), (OWED_MAX, false));
        reader.ack_earlier(stamp - 3);
        assert!(reader.may_resume(OWED_MAX));
    }
}
