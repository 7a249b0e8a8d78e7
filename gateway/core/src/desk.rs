//! What a shard knows of the store: the way there and back, what it has asked, and where the devices of its users
//! stand. No I/O and no clock.
//!
//! | file | what |
//! |---|---|
//! | `port` | the mailbox of the store's thread, and the answers that come back |
//! | `reader` | what one device that is online has of its inbox |
//! | `token` | what a device shows to resume its session |
//! | `logouts` | devices that have logged out lately |
//! | `duplicates` | what became of messages that were sent lately |
//! | `waiting` | connections that wait for the store |
//! | `doubts` | in a cluster: logs that others may have added to |
//!
//! `core/keep.rs` brings messages to the store, `core/reading.rs` brings them from there to devices.

mod doubts;
mod duplicates;
mod logouts;
mod port;
mod reader;
mod token;
mod waiting;

pub(crate) use doubts::look_again_tick;
pub use duplicates::{DUPLICATES_BYTES, Duplicates, Known};
pub use logouts::{LOGOUTS_BYTES, Logouts};
pub(crate) use port::StorePort;
pub use port::{ShardStore, StoreAnswers};
pub(crate) use reader::{NextPage, Reader};
pub(crate) use token::ResumeToken;

use crate::auth::Granted;
use crate::directory::Redelivery;
use crate::groups::asked::GroupAsked;
use crate::io::ConnId;
use crate::wish::Wish;
use doubts::Doubts;
use futures_channel::oneshot;
use hashbrown::{HashMap, HashSet};
use std::collections::VecDeque;
use trunkline_store::{Answer, Reply, Request};

/// Pages of backlogs that a shard has asked for at a time; further devices wait. Each is at most half an outbox.
pub const PAGES_MAX: usize = 64;
/// Users of a shard of whom it is remembered that something was given up.
pub const GAPS_MAX: usize = 4_096;
/// For how many ticks of 100 ms, once the store was told: what it was asked before that is answered by then.
const GAP_TICKS: u32 = 60;
/// What a device that is online takes: a user's place in a table that may be half empty, its reader, and what it
/// usually owes.
pub const READER_BYTES: u64 =
    2 * (size_of::<(u64, UserDesk)>() as u64 + 1) + size_of::<Reader>() as u64 + 2 * 8 * OWED_USUALLY;
/// Messages that a device that reads and acknowledges owes at a time.
const OWED_USUALLY: u64 = 16;

/// A login that waits for the store.
#[derive(Debug)]
pub(crate) struct WaitingLogin {
    pub(crate) generation: u32,
    pub(crate) user: u64,
    pub(crate) device: String,
    pub(crate) class: String,
    pub(crate) heartbeat_secs: u16,
    pub(crate) granted: Granted,
    pub(crate) began_us: u64,
    pub(crate) wish: Wish,
    /// The store was told that this is the user's home: nobody else adds to the log since then.
    pub(crate) claimed: bool,
}

/// A request that is to be answered, and for whom.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The store is to have the message that waits at this position.
    Append { user: u64, stamp: u64 },
    /// Where a device stands: for a login that waits, or a session that began without knowing it.
    Open { conn: ConnId, user: u64 },
    /// Where the device of a session stands that began without knowing it, here or at another node.
    Where { user: u64, session: u64 },
    /// A page of the backlog of a session.
    Page { user: u64, session: u64 },
    /// Where the log of a user ends, who was in doubt since change `doubts` of the view at the latest.
    Look { user: u64, doubts: u32 },
    /// A page that a client asked for.
    Sync { conn: ConnId, aux: u16, after: u64 },
    /// Something about a group.
    Group(GroupAsked),
    /// A question of the control thread. `forgets`: number and epoch of the device that is forgotten with it, number 0
    /// all of them.
    Control { user: u64, forgets: Option<(u16, u32)>, answer: oneshot::Sender<Reply> },
}

impl Asked {
    /// Whether it is a message that is owed to somebody.
    fn is_message(&self) -> bool {
        matches!(self, Asked::Append { .. } | Asked::Group(GroupAsked::Send(_)))
    }
}

/// A user with sessions here.
#[derive(Debug, Default)]
pub(crate) struct UserDesk {
    /// Registered devices that are online.
    pub(crate) readers: Vec<Reader>,
    /// Registered devices; `None` while the store has not said how many.
    pub(crate) registered: Option<u32>,
    /// The last position of the log.
    pub(crate) last: u64,
    /// Another node may have been the user's home meanwhile and have added to the log: the store is to be asked.
    pub(crate) in_doubt: bool,
}

impl UserDesk {
    /// The reader of a session, if its device is registered.
    pub(crate) fn reader(&mut self, session: u64) -> Option<&mut Reader> {
        self.readers.iter_mut().find(|reader| reader.session == session)
    }

    /// Whether a registered device may be offline. One that waits for the store to say where it stands is not counted:
    /// the number of those that are registered may be of before.
    pub(crate) fn has_absent(&self) -> bool {
        let online = self.readers.iter().filter(|reader| reader.device != 0).count();
        self.registered.is_none_or(|registered| registered as usize > online)
    }
}

/// Something that was given up, and is not in the log.
#[derive(Clone, Copy, Debug)]
struct Gap {
    stamp: u64,
    /// When it was noted, or the store was told.
    tick: u32,
    /// The store is told; else its mailbox had no room.
    is_sent: bool,
}

/// The store, seen from one shard.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) port: StorePort,
    asked: HashMap<u64, Asked>,
    last_token: u64,
    /// What is left of the batch of answers that is being taken.
    answers: std::vec::IntoIter<Answer>,
    /// When the store has answered something for the last time, or was asked something after it had answered all.
    heard_tick: u32,
    /// Requests under way that hold the end of the shard up: messages that are being stored.
    appends: usize,
    pub(crate) users: HashMap<u64, UserDesk>,
    /// Logins that wait for the store, by slot.
    logins: HashMap<u32, WaitingLogin>,
    /// Users with messages that go to the store unless they are acknowledged by then.
    pub(crate) due: Redelivery,
    /// Users whose cursors have moved, and when the store is told.
    pub(crate) cursors: Redelivery,
    /// Users with a device that could not go on, and when it is tried again.
    pub(crate) retries: Redelivery,
    /// Up to where something was given up that a registered device has not got, by user.
    gaps: HashMap<u64, Gap>,
    /// Connections whose SYNC is being answered.
    syncs: HashSet<ConnId>,
    pages: usize,
    /// Sessions that wait for their page, with what they want.
    pages_waiting: VecDeque<(u64, u64, NextPage)>,
    pub(crate) duplicates: Duplicates,
    pub(crate) logouts: Logouts,
    /// How sessions here read their inboxes that wish for something particular, by slot and its generation; for the
    /// next home of a guest. At most one for each connection.
    wishes: HashMap<u32, (u32, u16)>,
    /// Other nodes have the same store.
    pub(crate) shared: bool,
    doubts: Doubts,
    /// What was asked as this, or before, was asked in another view.
    before_view: u64,
}

impl Desk {
    /// A desk that has asked nothing. `key` is a secret of this life of the process; `shared`: other nodes have the
    /// same store.
    pub(crate) fn new(port: StorePort, key: u64, shared: bool) -> Self {
        Desk {
            port,
            asked: HashMap::new(),
            last_token: 0,
            answers: Vec::new().into_iter(),
            heard_tick: 0,
            appends: 0,
            users: HashMap::new(),
            logins: HashMap::new(),
            due: Redelivery::default(),
            cursors: Redelivery::default(),
            retries: Redelivery::default(),
            gaps: HashMap::new(),
            syncs: HashSet::new(),
            pages: 0,
            pages_waiting: VecDeque::new(),
            duplicates: Duplicates::new(key),
            logouts: Logouts::default(),
            wishes: HashMap::new(),
            shared,
            doubts: Doubts::default(),
            before_view: 0,
        }
    }

    /// Asks the store something that is answered.
    ///
    /// # Errors
    /// What was asked, when the store's mailbox has no room.
    pub(crate) fn ask(&mut self, tick: u32, asked: Asked, request: impl FnOnce(u64) -> Request) -> Result<(), Asked> {
        let token = self.last_token + 1;
        if self.port.send(request(token)).is_err() {
            return Err(asked);
        }
        if self.asked.is_empty() {
            self.heard_tick = tick;
        }
        self.last_token = token;
        self.appends += usize::from(asked.is_message());
        self.asked.insert(token, asked);
        Ok(())
    }

    /// As what the latest question was asked.
    pub(crate) fn last_token(&self) -> u64 {
        self.last_token
    }

    /// What was asked as that, if it is not answered.
    pub(crate) fn asked_mut(&mut self, token: u64) -> Option<&mut Asked> {
        self.asked.get_mut(&token)
    }

    /// Tells the store that a message was given up that a registered device has not got. False if there is no room for
    /// that: the device is not told.
    pub(crate) fn note_gap(&mut self, tick: u32, user: u64, stamp: u64) -> bool {
        if let Some(known) = self.users.get_mut(&user) {
            // Whoever has got it gets past it.
            known.last = known.last.max(stamp);
        }
        let known = self.gaps.get(&user).copied();
        let waits = known.is_some_and(|gap| !gap.is_sent);
        let is_sent = !waits && self.port.send(Request::Gap { user, stamp }).is_ok();
        if known.is_none() && self.gaps.len() >= GAPS_MAX {
            return is_sent;
        }
        let stamp = known.map_or(stamp, |gap| gap.stamp.max(stamp));
        self.gaps.insert(user, Gap { stamp, tick, is_sent });
        true
    }

    /// Up to where something of a user was given up lately: the store may have been asked before it was told.
    pub(crate) fn recent_gap(&self, user: u64) -> u64 {
        self.gaps.get(&user).map_or(0, |gap| gap.stamp)
    }

    /// Tells the store of gaps for which its mailbox had no room, and forgets those that it knows.
    pub(crate) fn tell_gaps(&mut self, tick: u32) {
        let Desk { gaps, port, .. } = self;
        let mut has_room = true;
        gaps.retain(|user, gap| {
            if !gap.is_sent && has_room {
                has_room = port.send(Request::Gap { user: *user, stamp: gap.stamp }).is_ok();
                (gap.is_sent, gap.tick) = (has_room, tick);
            }
            !gap.is_sent || tick < gap.tick + GAP_TICKS
        });
    }

    /// The next answer of the store.
    pub(crate) fn next_answer(&mut self) -> Option<Answer> {
        if self.answers.as_slice().is_empty() {
            self.answers = self.port.take()?.into_iter();
        }
        self.answers.next()
    }

    /// Whether the store has answered something that was not taken yet.
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.as_slice().is_empty() || self.port.has_answers()
    }

    /// Ticks for which the store has answered nothing although it was asked something.
    pub(crate) fn silent_ticks(&self, tick: u32) -> u32 {
        if self.asked.is_empty() { 0 } else { tick.saturating_sub(self.heard_tick) }
    }

    /// Whom an answer is for.
    pub(crate) fn answered(&mut self, tick: u32, token: u64) -> Option<Asked> {
        self.heard_tick = tick;
        let asked = self.asked.remove(&token)?;
        self.appends -= usize::from(asked.is_message());
        Some(asked)
    }

    /// A place for one more page; without one the session waits for its turn.
    pub(crate) fn take_page_place(&mut self, user: u64, session: u64, page: NextPage) -> bool {
        let free = self.pages < PAGES_MAX;
        if free {
            self.pages += 1;
        } else {
            self.pages_waiting.push_back((user, session, page));
        }
        free
    }

    /// A page has come or will not come. Returns who is next.
    pub(crate) fn page_came(&mut self) -> Option<(u64, u64, NextPage)> {
        self.pages -= 1;
        self.pages_waiting.pop_front()
    }

    /// The place of a page that has come is that of the one that waited for it.
    pub(crate) fn retake_page_place(&mut self) {
        self.pages += 1;
    }

    /// The reader of a session.
    pub(crate) fn reader(&mut self, user: u64, session: u64) -> Option<&mut Reader> {
        self.users.get_mut(&user)?.reader(session)
    }

    /// Messages that are on their way to the store.
    pub(crate) fn appends(&self) -> usize {
        self.appends
    }

    /// Whether nothing is under way whose end matters to anybody.
    pub(crate) fn is_idle(&self) -> bool {
        self.appends == 0 && self.logins.is_empty()
    }

    /// Requests that are not answered yet.
    pub(crate) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Nothing is left of users who are gone.
    #[cfg(test)]
    pub(crate) fn assert_empty(&self, shard: u16) {
        assert!(
            self.is_idle() && self.users.is_empty() && self.gaps.is_empty(),
            "shard {shard}: about the store: {self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use trunkline_store::StoreMail;

    #[test]
    fn the_store_is_told_of_gaps_when_its_mailbox_has_room_and_they_are_remembered_for_a_while() {
        // One request has room.
        let mail = StoreMail::new(1);
        let (answers, stats) = (StoreAnswers::new(1), Arc::default());
        let store =
            ShardStore { mail: mail.clone(), answers, highest_stamp: 0, key: 1, stats, shared: false, groups: None };
        let mut desk = Desk::new(store.port(0), 1, false);
        let came = || {
            let mut batch = Vec::new();
            mail.take(&mut batch, 10, 10_000);
            batch.into_iter().map(|(_, request)| request).collect::<Vec<_>>()
        };
        let gap = |user, stamp| Request::Gap { user, stamp };
        assert!(desk.note_gap(1, 7, 5) && desk.note_gap(1, 8, 6));
        desk.tell_gaps(2);
        assert_eq!(came(), [gap(7, 5)]);
        assert!(desk.note_gap(3, 8, 9));
        desk.tell_gaps(4);
        assert_eq!(came(), [gap(8, 9)], "the latest of a user, once");
        assert_eq!([7, 8, 9].map(|user| desk.recent_gap(user)), [5, 9, 0]);
        desk.tell_gaps(1 + GAP_TICKS);
        assert_eq!([7, 8].map(|user| desk.recent_gap(user)), [0, 9]);
        desk.tell_gaps(4 + GAP_TICKS);
        assert!(came().is_empty() && desk.gaps.is_empty());
        for user in 1..=GAPS_MAX as u64 {
            assert!(desk.note_gap(100, user, 1));
        }
        assert!(!desk.note_gap(100, GAPS_MAX as u64 + 1, 1), "neither room there nor here");
        assert!(desk.note_gap(100, 1, 2), "one that is known has its place");
        assert_eq!(desk.gaps.len(), GAPS_MAX);
    }
}
