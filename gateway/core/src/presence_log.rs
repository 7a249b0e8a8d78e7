//! How a shard tells the control thread of its sessions: a bounded queue for each shard.
//!
//! Architecture Invariant: all that is said of a shard's sessions goes through its one queue, what happens and what is
//! asked for again ([`Control::Sessions`](crate::control::Control::Sessions)) alike. So a session that has ended is
//! never told of again behind its end.
//!
//! Nobody is woken by a push: the control thread looks every 20 ms. A shard pays no system call for a login, a burst is
//! taken as one batch, and what comes behind, a round trip to Redis, takes a good part of that time anyway.

use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use trunkline_router_core::presence::{DEFAULT_DEVICE, Entry};

/// Events that wait for the control thread, for each shard: 20,000 logins a second leave it 400 ms.
pub const PRESENCE_LOG_LEN: usize = 8_192;
/// Places that sessions told of again leave to what happens.
const PLACES_KEPT: usize = PRESENCE_LOG_LEN / 2;
/// Bits of a version below its milliseconds.
const VERSION_COUNTER_BITS: u32 = 20;
/// A version that lies further ahead than this is no clock that is a little fast, but garbage: one day, in
/// milliseconds.
const VERSION_AHEAD_MS_MAX: u64 = 24 * 3_600 * 1_000;

/// A session that began, ended, or is told of again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceEvent {
    /// Whether the session is there; false: it has ended.
    pub online: bool,
    /// User id.
    pub user: u64,
    /// Session id, which orders the logins of one shard.
    pub session: u64,
    /// When it began: milliseconds since the Unix epoch, in whole seconds.
    pub since_ms: u64,
    /// Orders the logins of a device in the whole cluster; see [`PresenceWriter`].
    pub version: u64,
    /// Device name, empty for the default device.
    device: Box<str>,
    /// Device class, may be empty.
    pub class: Box<str>,
}

/// Bytes of the queue of one shard and of the longest texts of its events, and of the versions of so many slots. For
/// the memory budget.
pub const fn log_bytes(slots: u64, text_bytes_max: usize) -> u64 {
    // A place of the queue has a stamp besides the event.
    let place = size_of::<PresenceEvent>() + 8 + text_bytes_max;
    (PRESENCE_LOG_LEN * place) as u64 + slots * size_of::<u64>() as u64
}

impl PresenceEvent {
    /// The device's name, never empty.
    pub fn device(&self) -> &str {
        if self.device.is_empty() { DEFAULT_DEVICE } else { &self.device }
    }
}

/// The queue of one shard. One thread pushes and one takes.
#[derive(Debug)]
pub struct PresenceLog {
    events: ArrayQueue<PresenceEvent>,
    overflowed: AtomicBool,
    dropped: AtomicU64,
}

impl Default for PresenceLog {
    fn default() -> Self {
        PresenceLog::new()
    }
}

impl PresenceLog {
    /// An empty queue of [`PRESENCE_LOG_LEN`] places.
    pub fn new() -> Self {
        PresenceLog {
            events: ArrayQueue::new(PRESENCE_LOG_LEN),
            overflowed: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        }
    }

    /// The next event.
    pub fn take(&self) -> Option<PresenceEvent> {
        self.events.pop()
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether an event was dropped since this was last asked.
    pub fn take_overflowed(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }

    /// Events dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn push(&self, event: PresenceEvent) {
        if self.events.push(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.overflowed.store(true, Ordering::Release);
        }
    }
}

/// The shard's end of its queue, and the versions of its sessions.
///
/// The version of a session is its id, which the user's home gave it: milliseconds since the Unix epoch, shifted left
/// by 20 bits, and a counter, above the id of whatever session the device had. So versions order the logins of a device
/// in the whole cluster; only homes that could not know of each other, while the cluster was cut, can get it wrong, by
/// as much as their clocks differ. A session that has to outbid a stored one that does not count gets a version above
/// that.
#[derive(Debug)]
pub struct PresenceWriter {
    log: Arc<PresenceLog>,
    /// The version of the session in each slot.
    versions: Vec<u64>,
}

impl PresenceWriter {
    /// For a shard of `slots` slots; memory is touched as they come into use.
    pub fn new(log: Arc<PresenceLog>, slots: u32) -> Self {
        PresenceWriter { log, versions: vec![0; slots as usize] }
    }

    /// A login has been registered.
    pub(crate) fn began(&mut self, user: u64, entry: &Entry) {
        self.tell_as(user, entry, entry.session);
    }

    fn tell_as(&mut self, user: u64, entry: &Entry, version: u64) {
        if let Some(place) = self.versions.get_mut(entry.slot as usize) {
            *place = version;
        }
        self.log.push(self.event(true, user, entry));
    }

    /// A session has been removed. One that was replaced by another login of its device is not told of: that login
    /// takes its place.
    pub(crate) fn ended(&mut self, user: u64, entry: &Entry) {
        self.log.push(self.event(false, user, entry));
    }

    /// Tells of a session again. False, and nothing done, if what happens could need the room.
    pub(crate) fn again(&mut self, user: u64, entry: &Entry) -> bool {
        let room = self.log.len() < PRESENCE_LOG_LEN - PLACES_KEPT;
        if room {
            self.log.push(self.event(true, user, entry));
        }
        room
    }

    /// A session as it would be told of.
    pub fn described(&self, user: u64, entry: &Entry) -> PresenceEvent {
        self.event(true, user, entry)
    }

    /// Gives a session a version above this one, and tells of it again: something that does not count holds its place.
    /// False if `above` is too far ahead of the clock to be a version.
    pub(crate) fn outbid(&mut self, wall_ms: u64, user: u64, entry: &Entry, above: u64) -> bool {
        if above >> VERSION_COUNTER_BITS > wall_ms.saturating_add(VERSION_AHEAD_MS_MAX) {
            return false;
        }
        self.tell_as(user, entry, above + 1);
        true
    }

    fn event(&self, online: bool, user: u64, entry: &Entry) -> PresenceEvent {
        let device = match entry.device() {
            DEFAULT_DEVICE => "",
            device => device,
        };
        PresenceEvent {
            online,
            user,
            session: entry.session,
            since_ms: u64::from(entry.since_s) * 1_000,
            version: self.versions.get(entry.slot as usize).copied().unwrap_or(0),
            device: device.into(),
            class: entry.class().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL_MS: u64 = 1_800_000_000_123;

    fn entry(session: u64, slot: u32, device: &str) -> Entry {
        Entry::new(session, slot, 1_800_000_000, device, "phone")
    }

    fn writer() -> (Arc<PresenceLog>, PresenceWriter) {
        let log = Arc::new(PresenceLog::new());
        (log.clone(), PresenceWriter::new(log, 16))
    }

    #[test]
    fn a_session_keeps_its_version_from_its_login_to_its_end() {
        let (log, mut writer) = writer();
        writer.began(5, &entry(1, 0, "default"));
        writer.began(6, &entry(2, 1, "desk"));
        assert!(writer.again(5, &entry(1, 0, "default")));
        writer.ended(5, &entry(1, 0, "default"));
        let events: Vec<PresenceEvent> = std::iter::from_fn(|| log.take()).collect();
        let told: Vec<_> =
            events.iter().map(|event| (event.online, event.user, event.session, event.device())).collect();
        assert_eq!(
            told,
            [(true, 5, 1, "default"), (true, 6, 2, "desk"), (true, 5, 1, "default"), (false, 5, 1, "default")]
        );
        assert_eq!((events[0].version, events[1].version), (1, 2));
        assert_eq!((events[2].version, events[3].version), (events[0].version, events[0].version));
        assert_eq!((events[0].since_ms, &*events[0].class), (1_800_000_000_000, "phone"));
    }

    #[test]
    fn an_outbid_session_is_above_what_held_its_place() {
        let (log, mut writer) = writer();
        let above = (WALL_MS + 60_000) << 20;
        assert!(writer.outbid(WALL_MS, 5, &entry(1, 0, ""), above));
        assert!(log.take().unwrap().version > above);
        assert!(!writer.outbid(WALL_MS, 5, &entry(1, 0, ""), u64::MAX));
        assert!(log.is_empty());
    }

    #[test]
    fn a_full_queue_is_told_and_counted() {
        let (log, mut writer) = writer();
        let mut again = 0;
        while writer.again(5, &entry(1, 0, "")) {
            again += 1;
        }
        assert_eq!(again, PRESENCE_LOG_LEN - PLACES_KEPT);
        for _ in 0..PLACES_KEPT {
            writer.ended(5, &entry(1, 0, ""));
        }
        assert!(!log.take_overflowed());
        writer.ended(5, &entry(1, 0, ""));
        assert_eq!((log.len(), log.dropped()), (PRESENCE_LOG_LEN, 1));
        assert!(log.take_overflowed() && !log.take_overflowed());
    }
}
