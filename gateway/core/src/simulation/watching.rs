//! What one session sees of the users whom it watches, and what is legal: a model that knows the protocol and nothing
//! of shards and nodes.
//!
//! 1. Frames of a session are a second apart, and have 256 users at most.
//! 2. It is told of nobody whom it has not asked for, and an answer for one time comes once.
//! 3. Between two changes of a user from online to offline or back are five seconds, unless links between nodes may
//!    have kept one of them.
//! 4. Once it is quiet, the last state that it was told of each user whom it follows is true.

use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Frame, Kind, Presence, Watch, encode_message};

/// Frames are this far apart, less what the ways of two of them may differ by.
const FRAMES_APART_US: u64 = 700_000;
/// Changes are five seconds apart at the home of a user; a frame may hold one of them back for a second and a bit.
const CHANGES_APART_US: u64 = 3_700_000;

/// Where a user stands for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Online,
    Offline,
    Unknown,
}

/// A session's view of others.
#[derive(Debug, Default)]
pub(super) struct Watching {
    follows: BTreeSet<u64>,
    /// Users whose state was asked for, and who may therefore come in a frame.
    asked: BTreeSet<u64>,
    seen: BTreeMap<u64, Seen>,
    /// When a user was last seen to change, and whether it was since then known without a break.
    changed_us: BTreeMap<u64, u64>,
    last_frame_us: Option<u64>,
    /// Changes may come late, over links that are cut for a while.
    late: bool,
    /// States that came, by what they say.
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Watching {
    /// Of a session in a cluster whose links may be cut.
    pub(super) fn over_links() -> Self {
        Watching { late: true, ..Watching::default() }
    }

    /// Appends a request to follow these users, or to be told of them once.
    pub(super) fn watch(&mut self, out: &mut Vec<u8>, users: &[u64], follow: bool) {
        self.asked.extend(users);
        for user in users.iter().filter(|_| follow) {
            if self.follows.insert(*user) {
                self.seen.remove(user);
                self.changed_us.remove(user);
            }
        }
        encode_message(out, Kind::Watch, 0, &Watch { users: users.to_vec(), follow });
    }

    /// Appends a request to be told of these users no more.
    pub(super) fn unwatch(&mut self, out: &mut Vec<u8>, users: &[u64]) {
        for user in users {
            self.follows.remove(user);
            self.seen.remove(user);
        }
        encode_message(out, Kind::Unwatch, 0, &Watch { users: users.to_vec(), follow: false });
    }

    /// PRESENCE came.
    pub(super) fn frame(&mut self, frame: &Frame<'_>, now_us: u64) {
        let presence = Presence::decode(frame.body).expect("PRESENCE has a body");
        if let Some(last_us) = self.last_frame_us.replace(now_us) {
            let apart_us = now_us - last_us;
            assert!(apart_us >= FRAMES_APART_US, "two PRESENCE frames {apart_us} µs apart");
        }
        assert!((1..=256).contains(&presence.users.len()), "{} users in a frame", presence.users.len());
        for state in presence.users {
            let user = state.user;
            assert!(self.asked.contains(&user), "told of {user}, for whom nobody has asked");
            let seen = match (state.online, state.unknown) {
                (true, false) => Seen::Online,
                (false, false) => Seen::Offline,
                (false, true) => Seen::Unknown,
                (true, true) => panic!("{user} is online, and nobody knows"),
            };
            let count = match seen {
                Seen::Online => "told online",
                Seen::Offline => "told offline",
                Seen::Unknown => "told unknown",
            };
            *self.counts.entry(count).or_default() += 1;
            if !self.follows.contains(&user) {
                continue;
            }
            let before = self.seen.insert(user, seen);
            let flips =
                matches!((before, seen), (Some(Seen::Online), Seen::Offline) | (Some(Seen::Offline), Seen::Online));
            if seen == Seen::Unknown {
                self.changed_us.remove(&user);
            }
            if flips && let Some(last_us) = self.changed_us.insert(user, now_us) {
                let apart_us = now_us - last_us;
                assert!(self.late || apart_us >= CHANGES_APART_US, "{user} changed twice within {apart_us} µs");
            }
        }
    }

    /// What the session was told last and is not so; `None` if all of it is.
    pub(super) fn wrong(&self, is_online: impl Fn(u64) -> bool) -> Option<String> {
        let is_wrong = |user: &u64| {
            let expected = if is_online(*user) { Seen::Online } else { Seen::Offline };
            let seen = self.seen.get(user);
            (seen != Some(&expected)).then(|| format!("{user} is {expected:?}, and was told as {seen:?}"))
        };
        self.follows.iter().find_map(is_wrong)
    }

    /// Panics unless what the session was told last is what is so. Returns how many users it follows.
    pub(super) fn check(&self, name: &str, is_online: impl Fn(u64) -> bool) -> u64 {
        if let Some(wrong) = self.wrong(is_online) {
            panic!("{name}: {wrong}");
        }
        self.follows.len() as u64
    }
}
