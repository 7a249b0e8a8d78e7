//! What a connection says and hears of who is online.

use trunkline_proto::prost::Message as _;
use trunkline_proto::{Frame, Kind, Presence, Watch};

use super::{Ended, Session};
use crate::presence::WatchAsk;
use crate::{Event, Reason, UserPresence};

/// Users of one WATCH: a gateway takes 1,000 if it is not told otherwise, and so many fit into a frame.
const USERS_PER_FRAME: usize = 500;

impl Session<'_> {
    /// The connection begins: what the one before watched is watched again.
    pub(super) fn begin_watching(&mut self) {
        let users = self.state.watched.users();
        self.say_watch(Kind::Watch, &users, true);
    }

    pub(super) fn watch(&mut self, ask: &WatchAsk) {
        self.state.watched.note(ask);
        match ask {
            WatchAsk::Follow(users) => self.say_watch(Kind::Watch, users, true),
            WatchAsk::Once(users) => self.say_watch(Kind::Watch, users, false),
            WatchAsk::Stop(users) if users.is_empty() => self.out.watch(Kind::Unwatch, &Watch::default()),
            WatchAsk::Stop(users) => self.say_watch(Kind::Unwatch, users, false),
        }
    }

    fn say_watch(&mut self, kind: Kind, users: &[u64], follow: bool) {
        for users in users.chunks(USERS_PER_FRAME) {
            self.out.watch(kind, &Watch { users: users.to_vec(), follow });
        }
    }

    pub(super) fn handle_presence(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        let presence = match Presence::decode(frame.body) {
            Ok(presence) => presence,
            Err(error) => return Some(Reason::Protocol(format!("its PRESENCE cannot be read: {error}")).into()),
        };
        let users: Vec<UserPresence> = presence.users.into_iter().map(UserPresence::from).collect();
        if !users.is_empty() {
            self.state.tell(Event::Presence(users));
        }
        None
    }
}
