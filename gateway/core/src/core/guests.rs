//! Sessions and the homes of their users: a login whose home is another node asks that home; a home keeps the sessions
//! that others have told it of beside its own, and decides which of two sessions of a device stays.
//!
//! A home takes every session that it is told of, also of a user whose home it is not (yet): views differ for a while,
//! and what should be somewhere else is forgotten, and told of there, with the next view.

use super::far;
use super::handshake::Welcome;
use super::links::ticks;
use super::shard::Shard;
use crate::conn::Phase;
use crate::directory::{Home, Registration, RemoteSession, is_remote};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::inbox::Unacked;
use crate::io::ConnId;
use crate::mailbox::Adoptee;
use crate::mesh::wire::{Record as FarRecord, Seat};
use crate::reason::CloseReason;
use crate::wish::Wish;
use std::collections::VecDeque;
use trunkline_proto::{Code, Outcome};
use trunkline_router_core::presence::{Entry, LoginOutcome, Presence};

/// A login whose home cannot say now asks again after this time.
const ASK_AGAIN_MS: u64 = 300;

impl Shard {
    /// A logged-in connection, at the shard of this node that its user has: a session if the user's home is here, else
    /// its home is asked.
    pub(crate) fn open_session(&mut self, slot: u32, adoptee: &Adoptee) {
        if !self.serving {
            self.links.stats.fenced.add(1);
            return self.close(slot, CloseReason::Overloaded);
        }
        let home = self.home(adoptee.user);
        if home == Home::Here || self.desk.is_some() {
            return self.open_here(slot, adoptee);
        }
        let registration = Registration {
            generation: self.links.slots.id(slot).generation,
            user: adoptee.user,
            device: adoptee.device.clone(),
            class: adoptee.class.clone(),
            heartbeat_secs: adoptee.heartbeat_secs,
            granted: adoptee.granted.clone(),
            began_us: adoptee.began_us,
            home: NodeKey::OWN,
            again_tick: None,
            wish: adoptee.wish.clone(),
            opened: None,
        };
        self.register_guest(slot, registration);
    }

    /// Asks the home of a login's user for a session.
    pub(super) fn register_guest(&mut self, slot: u32, registration: Registration) {
        let user = registration.user;
        let deadline = self.links.tick + ticks(self.links.limits.login_timeout_ms);
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::Registering;
        conn.user = user;
        self.links.wheel.arm(slot, deadline);
        self.directory.registrations.add(slot, registration);
        // While no node is active, as when this one has just started, the login waits until one is.
        if let Home::There { node, shard } = self.home(user) {
            self.ask_home(slot, node, shard);
        }
    }

    /// Whether nobody can say when a home will answer: a login had better try another node.
    fn is_cut_off_from(&self, node: NodeKey, shard: u16) -> bool {
        self.mesh.as_ref().is_some_and(|mesh| mesh.is_unreachable(node, shard))
    }

    fn open_here(&mut self, slot: u32, adoptee: &Adoptee) {
        if self.desk.is_some() {
            return self.ask_store(slot, adoptee);
        }
        let pending = self.inboxes.len(adoptee.user) as u64;
        let Adoptee { user, device, class, heartbeat_secs, granted, .. } = adoptee;
        let entry = self.new_entry(slot, *user, device, class);
        self.open(slot, *user, entry, *heartbeat_secs, granted.clone(), Welcome { pending, ..Welcome::default() });
        self.login_done(slot, adoptee.began_us);
    }

    /// The entry of a session that begins here and now.
    pub(super) fn new_entry(&mut self, slot: u32, user: u64, device: &str, class: &str) -> Entry {
        let session = self.next_session(user, device);
        let since_s = (self.now.wall_ms / 1_000) as u32;
        Entry::new(session, slot, since_s, device, class)
    }

    /// The home of a login that waits in a slot is asked again after a while.
    pub(super) fn ask_home_later(&mut self, slot: u32) {
        let again_tick = self.links.tick + ticks(ASK_AGAIN_MS);
        if let Some(waiting) = self.directory.registrations.at(slot) {
            waiting.again_tick = Some(again_tick);
        }
    }

    /// Asks the home for the session of a login that waits in a slot.
    fn ask_home(&mut self, slot: u32, node: NodeKey, shard: u16) {
        if self.is_cut_off_from(node, shard) {
            return self.close(slot, CloseReason::Overloaded);
        }
        let seat = Seat { shard: self.shard, conn: self.links.slots.id(slot) };
        let tick = self.links.tick;
        let Some(waiting) = self.directory.registrations.at(slot) else { return };
        waiting.home = node;
        waiting.again_tick = None;
        let Registration { user, device, class, wish, .. } = &*waiting;
        let wish = wish.packed();
        let since_s = (self.now.wall_ms / 1_000) as u32;
        let record = FarRecord::Register { user: *user, seat, session: 0, since_s, device, class, hops: 0, wish };
        if far::queue(&mut self.mesh, &mut self.links, &mut self.outgoing, node, shard, &record).is_err() {
            waiting.again_tick = Some(tick + ticks(ASK_AGAIN_MS));
        }
    }

    /// Asks again for those logins whose home is another one now, or could not say.
    pub(crate) fn ask_again(&mut self) {
        let tick = self.links.tick;
        if self.directory.registrations.len() == 0 {
            return;
        }
        let routing = self.directory.routing.clone();
        let is_due = |waiting: &Registration| {
            let moved = match routing.as_ref().map_or(Home::Nowhere, |routing| routing.home(waiting.user)) {
                Home::There { node, .. } => node != waiting.home,
                Home::Here => true,
                Home::Nowhere => false,
            };
            moved || waiting.again_tick.is_some_and(|again| again <= tick)
        };
        for slot in self.directory.registrations.find(is_due) {
            let Some(user) = self.directory.registrations.at(slot).map(|waiting| waiting.user) else { continue };
            match self.home(user) {
                Home::There { node, shard } => self.ask_home(slot, node, shard),
                Home::Here => {
                    let Some(waiting) = self.directory.registrations.forget(slot) else { continue };
                    let Registration { user, device, class, heartbeat_secs, granted, began_us, wish, .. } = waiting;
                    let (bytes, wrapped, known) = (Vec::new(), None, None);
                    let adoptee = Adoptee {
                        user,
                        device,
                        class,
                        heartbeat_secs,
                        wish,
                        granted,
                        began_us,
                        bytes,
                        wrapped,
                        known,
                        serve: None,
                    };
                    self.open_here(slot, &adoptee);
                    self.go_on_reading(slot);
                }
                Home::Nowhere => {}
            }
        }
    }

    /// Handles what came behind the LOGIN of a connection that had to wait for its home.
    pub(super) fn go_on_reading(&mut self, slot: u32) {
        if self.links.slots.at(slot).phase != Phase::Open {
            return;
        }
        if let Some(bytes) = self.links.take_partial(slot) {
            self.take_in(slot, &bytes);
        }
        self.end_wrapped(slot);
        self.links.mark_dirty(slot);
    }

    /// The home has a session of this node.
    pub(crate) fn registered(
        &mut self,
        node: NodeKey,
        conn: ConnId,
        user: u64,
        session: u64,
        since_s: u32,
        pending: u64,
    ) {
        // A home of an earlier view may answer too: the session would be one the present home knows nothing of.
        if self.is_asked(node, conn, user)
            && let Some(waiting) = self.directory.registrations.take(conn.slot, conn.generation, user)
        {
            let entry = Entry::new(session, conn.slot, since_s, &waiting.device, &waiting.class);
            self.remember_wish(conn.slot, &waiting.wish);
            let welcome = match &waiting.opened {
                Some(opened) => self.standing(user, &waiting.wish, opened),
                None => Welcome { pending, ..Welcome::default() },
            };
            self.open(conn.slot, user, entry, waiting.heartbeat_secs, waiting.granted, welcome);
            self.login_done(conn.slot, waiting.began_us);
            if self.links.slots.at(conn.slot).phase == Phase::Open {
                self.begin_groups(conn, user, Some(waiting.wish.last_stamp));
            }
            return self.go_on_reading(conn.slot);
        }
        let known =
            self.presence.sessions(user).iter().any(|entry| entry.session == session && entry.slot == conn.slot);
        if !known {
            // The connection ended meanwhile, and the home does not know it yet.
            self.answer_far(node, user, &FarRecord::Unregister { user, session, hops: 0 });
        }
    }

    /// Whether a login waits for the answer of this node.
    pub(crate) fn is_asked(&mut self, node: NodeKey, conn: ConnId, user: u64) -> bool {
        let waiting = self.directory.registrations.at(conn.slot);
        waiting.is_some_and(|waiting| (waiting.home, waiting.generation, waiting.user) == (node, conn.generation, user))
    }

    /// The home does not take a session of this node.
    pub(crate) fn register_refused(&mut self, node: NodeKey, conn: ConnId, user: u64, code: u16) {
        let asked = self.is_asked(node, conn, user);
        if code == Code::ServiceUnavailable.as_u16() {
            // It has no place in the cluster at the moment; a login waits, and a session is told of again with the next
            // view.
            let again_tick = self.links.tick + ticks(ASK_AGAIN_MS);
            if let Some(waiting) = self.directory.registrations.at(conn.slot).filter(|_| asked) {
                waiting.again_tick = Some(again_tick);
            }
            return;
        }
        let waited = asked && self.directory.registrations.take(conn.slot, conn.generation, user).is_some();
        let is_home = matches!(self.home(user), Home::There { node: home, .. } if home == node);
        let session = self.links.slots.get(conn).filter(|conn| conn.phase == Phase::Open && conn.user == user);
        let open = is_home && session.is_some();
        if waited || open {
            self.close(conn.slot, CloseReason::Overloaded);
        }
    }

    /// The home ends a session of this node.
    pub(crate) fn kicked_by_home(&mut self, conn: ConnId, user: u64, session: u64, code: u16) {
        let reason = match Code::from_u16(code) {
            Some(Code::Kicked) => CloseReason::Kicked,
            Some(Code::Replaced) => CloseReason::Replaced,
            _ => CloseReason::Overloaded,
        };
        let known =
            self.presence.sessions(user).iter().any(|entry| entry.session == session && entry.slot == conn.slot);
        if known && self.links.slots.get(conn).is_some() {
            self.close(conn.slot, reason);
        }
    }

    /// Another node tells of a session of a user whose home this is; session 0 asks for a new one.
    pub(crate) fn register_remote(&mut self, at: RemoteSession, since_s: u32, device: &str, class: &str) {
        let RemoteSession { node, shard, conn, user, session, wish, .. } = at;
        let seat = Seat { shard, conn };
        if !self.serving {
            self.links.stats.fenced.add(1);
            let code = Code::ServiceUnavailable.as_u16();
            return self.answer_at(node, shard, &FarRecord::RegisterRefused { seat, user, code });
        }
        let new = session == 0;
        // A login that was asked for here before, when this was its home too: it has a session then, or was opened
        // elsewhere meanwhile.
        let before = self.session_at(user, node, seat);
        if let Some(before) = before.filter(|before| !new && *before != session) {
            self.presence_logout(user, before);
        }
        let session = match before {
            Some(before) if new => before,
            _ if new => self.next_session(user, device),
            _ => session,
        };
        // A session that is told of again may be known already, in another place.
        let known = self.presence.sessions(user).iter().find(|entry| entry.session == session).map(|entry| entry.slot);
        let refused = FarRecord::RegisterRefused { seat, user, code: Code::Overloaded.as_u16() };
        let Some(slot) = self.directory.remotes.add(RemoteSession { session, ..at }) else {
            self.links.stats.limit_remote_sessions.add(1);
            return self.answer_at(node, shard, &refused);
        };
        let first = self.presence.sessions(user).is_empty();
        let replaced = match self.presence_login(user, Entry::new(session, slot, since_s, device, class)) {
            LoginOutcome::Added => None,
            LoginOutcome::Refreshed => {
                if let Some(known) = known {
                    self.directory.remotes.remove(known);
                }
                None
            }
            LoginOutcome::Replaced(old) => Some(old),
            LoginOutcome::Stale(_) => {
                self.directory.remotes.remove(slot);
                let code = Code::Replaced.as_u16();
                return self.answer_at(node, shard, &FarRecord::Kick { seat, user, session, code });
            }
            LoginOutcome::TooManyDevices => {
                self.links.stats.limit_devices.add(1);
                self.directory.remotes.remove(slot);
                return self.answer_at(node, shard, &refused);
            }
            LoginOutcome::Full => {
                self.links.stats.limit_remote_sessions.add(1);
                self.directory.remotes.remove(slot);
                return self.answer_at(node, shard, &refused);
            }
        };
        self.links.stats.registrations.add(1);
        // A session that is told of again was online before.
        if new && first {
            self.tell_online(user);
        }
        let pending = self.inboxes.len(user) as u64;
        self.answer_at(node, shard, &FarRecord::Registered { seat, user, session, since_s, pending });
        if let Some(old) = &replaced {
            self.end_replaced(user, old);
        }
        let carried = replaced.as_ref().and_then(|old| self.stop_reading(user, old.session));
        if let Some(old) = &replaced {
            self.inboxes.replace(user, old.session, session);
        }
        let wish = Wish::unpacked(wish);
        if new && (first || replaced.is_some()) {
            let from_log = self.desk.is_some() && !wish.ephemeral;
            self.redeliver_to(user, slot, session, first, from_log);
        }
        if known.is_some() {
            // Its node took another one for the home meanwhile, which may have given messages to it and taken ACKs.
            self.end_reading(user, session);
        }
        self.read_for(user, session, slot, &wish, carried);
        self.look_after(user);
    }

    /// The session of a user that is known to be in a seat of another node.
    fn session_at(&self, user: u64, node: NodeKey, seat: Seat) -> Option<u64> {
        let at = |slot| self.directory.remotes.get(slot);
        let is_there =
            |remote: &RemoteSession| (remote.node, remote.shard, remote.conn) == (node, seat.shard, seat.conn);
        let sessions = self.presence.sessions(user).iter();
        sessions.filter(|entry| at(entry.slot).is_some_and(is_there)).map(|entry| entry.session).next()
    }

    fn answer_at(&mut self, node: NodeKey, shard: u16, record: &FarRecord<'_>) {
        if self.send_far(node, shard, record).is_err() {
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// Ends a session whose place in presence another one has taken, wherever it is.
    pub(crate) fn end_replaced(&mut self, user: u64, old: &Entry) {
        if is_remote(old.slot) {
            self.kick_remote(old.slot, user, old.session, Code::Replaced);
            self.directory.remotes.remove(old.slot);
        } else {
            self.tell_logout(user, old, CloseReason::Replaced);
            self.close(old.slot, CloseReason::Replaced);
        }
    }

    /// Asks the node that holds a session to end it.
    pub(crate) fn kick_remote(&mut self, slot: u32, user: u64, session: u64, code: Code) {
        if let Some(RemoteSession { node, shard, conn, .. }) = self.directory.remotes.get(slot).copied() {
            let seat = Seat { shard, conn };
            self.answer_at(node, shard, &FarRecord::Kick { seat, user, session, code: code.as_u16() });
        }
    }

    /// A session on another node has ended.
    pub(crate) fn forget_remote(&mut self, node: NodeKey, user: u64, session: u64) {
        let entry = self.presence.sessions(user).iter().find(|entry| entry.session == session);
        let Some(slot) = entry.map(|entry| entry.slot) else { return };
        if self.directory.remotes.get(slot).is_some_and(|remote| remote.node == node) {
            self.remove_session(user, session);
        }
    }

    /// Adds a session to presence.
    pub(crate) fn presence_login(&mut self, user: u64, entry: Entry) -> LoginOutcome {
        let before = self.is_remote_only(user);
        let outcome = self.presence.login(user, entry);
        self.count_remote_only(user, before);
        self.note_presence(user);
        outcome
    }

    /// Takes a session out of presence, and out of the table of remote ones.
    pub(crate) fn presence_logout(&mut self, user: u64, session: u64) -> Option<Entry> {
        let before = self.is_remote_only(user);
        let ended = self.presence.logout(user, session)?;
        self.directory.remotes.remove(ended.slot);
        self.count_remote_only(user, before);
        self.note_presence(user);
        if self.events.is_some() && self.presence.sessions(user).is_empty() {
            self.tell_offline(user);
        }
        Some(ended)
    }

    fn is_remote_only(&self, user: u64) -> bool {
        let sessions = self.presence.sessions(user);
        !self.alone && !sessions.is_empty() && sessions.iter().all(|entry| is_remote(entry.slot))
    }

    fn count_remote_only(&mut self, user: u64, before: bool) {
        let after = self.is_remote_only(user);
        self.directory.count_remote_only(before, after);
    }

    /// Removes a session. With the last one gone, what waits for the user's ACK is given up; with one left, what that
    /// one sent.
    pub(crate) fn remove_session(&mut self, user: u64, session: u64) -> Option<Entry> {
        let ended = self.presence_logout(user, session)?;
        if self.desk.is_some() {
            self.stop_reading(user, session);
        }
        self.inboxes.leave(user, session);
        let mut left = match self.presence.sessions(user) {
            [] if self.desk.is_some() => self.keep_what_waits(user),
            [] => self.inboxes.take_all(user),
            [last] => {
                // A session is no recipient of what it sent itself.
                let (directory, slots, shard) = (&self.directory, &self.links.slots, self.shard);
                self.inboxes.take_if(user, |message| {
                    let own = message.from == user && !message.absent;
                    own && far::may_be_origin(directory, slots, shard, last.slot, &message.origin)
                })
            }
            _ => VecDeque::new(),
        };
        left.extend(self.inboxes.take_if(user, Unacked::is_stranded));
        self.look_after(user);
        for message in left {
            self.links.stats.out_offline_refused.add(1);
            self.tell_fate(message.origin, message.id, user, Outcome::OfflineNotStored, 0);
        }
        Some(ended)
    }

    /// Sees to it that what waits for a user is sent again in time: by the timer of a session here, or, if there is
    /// none, by the queue for users with remote sessions.
    pub(crate) fn look_after(&mut self, user: u64) {
        if self.inboxes.len(user) == 0 {
            return;
        }
        let soon = self.links.tick + 1;
        let sessions = self.presence.sessions(user);
        match sessions.iter().find(|entry| !is_remote(entry.slot)) {
            Some(entry) => self.links.wheel.arm_earlier(entry.slot, soon),
            None if !sessions.is_empty() => self.directory.redelivery.note(user, soon),
            None => {}
        }
    }

    /// Sends again to users without a session here what has waited too long.
    pub(crate) fn redeliver_remote(&mut self) {
        let tick = self.links.tick;
        while let Some(user) = self.directory.redelivery.take_due(tick) {
            self.redeliver_due(user);
            let Some(sent) = self.inboxes.oldest_sent(user) else { continue };
            let next = (sent + ticks(self.links.limits.redeliver_ms)).max(tick + 1);
            let sessions = self.presence.sessions(user);
            match sessions.iter().find(|entry| !is_remote(entry.slot)) {
                Some(entry) => self.links.wheel.arm_earlier(entry.slot, next),
                None if !sessions.is_empty() => self.directory.redelivery.note(user, next),
                None => {}
            }
        }
    }

    /// Where messages of a connection of this shard come from.
    pub(crate) fn origin(&self, slot: u32) -> Origin {
        Origin::own(self.shard, self.links.slots.id(slot))
    }
}
