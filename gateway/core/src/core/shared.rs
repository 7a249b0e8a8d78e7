//! Inboxes in a cluster, whose nodes have one store: which of them reads and writes a user's log, what a new home
//! does first, and how what is in the log reaches a session at another node.
//!
//! The home of a user alone adds to the log and gives what is in it to devices. It *claims* the log in its view as it
//! asks where a device stands: from then on the store refuses what an earlier home would add, and what that
//! has added until then is in the part of the log that the device is to get. So nothing is added behind a device's
//! back, whoever believes to be the home.
//!
//! A guest's own node asks the store as well, for LOGIN_OK; and for SYNC, which needs no home.

use super::carry::is_easy;
use super::far;
use super::keep::{RETRY_MS, Store};
use super::links::ticks;
use super::reading::{Carried, Reading, SEEN_MS, SEEN_PART};
use super::route::Routed;
use super::shard::Shard;
use crate::desk::{Asked, Desk, ResumeToken, WaitingLogin, look_again_tick};
use crate::directory::{Home, Registration, Routing, is_remote};
use crate::ids::NodeKey;
use crate::inbox::{Keep, Unacked};
use crate::limits::LOG_LOOKS_MAX;
use crate::wish::Wish;
use trunkline_proto::flags;
use trunkline_router_core::presence::Presence;
use trunkline_store::{Opened, Reply, Request};

impl Shard {
    /// Whether this shard may add to the log of a user now.
    pub(super) fn may_store(&self, user: u64) -> bool {
        self.alone || (self.serving && self.home(user) == Home::Here)
    }

    fn has_shared_store(&self) -> bool {
        self.desk.as_ref().is_some_and(|desk| desk.shared)
    }

    /// Whether this shard may tell the store that it is the home of a user, where others have that store, too.
    pub(super) fn may_claim(&self, user: u64) -> bool {
        !self.has_shared_store() || self.may_store(user)
    }

    /// The number of the view by which this shard decides.
    fn view_digest(&self) -> u64 {
        self.directory.routing.as_ref().map_or(0, |routing| routing.digest())
    }

    /// A message of this home is in the log, which ended at `before` then. What lies there unknown is another home's,
    /// and devices get it from the log; so do those the message itself that were not given it, where it is at another
    /// position than was proposed.
    pub(super) fn account_for(&mut self, user: u64, stamp: u64, confirmed: u64, duplicate: bool, before: u64) {
        if !self.has_shared_store() {
            return;
        }
        self.stamps.follow(before);
        let queued = self.inboxes.find(user, stamp).map(|message| message.queued).unwrap_or_default();
        let soon = self.links.tick + 1;
        let Some(desk) = &mut self.desk else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        for reader in &mut desk_of_user.readers {
            let mut behind = false;
            match (duplicate, confirmed == stamp) {
                (false, _) => behind |= reader.log_ended(before),
                // It is where this home wanted it, and its answer was lost.
                (true, true) => behind |= reader.log_ended(confirmed - 1),
                (true, false) => {}
            }
            if confirmed == stamp {
                reader.added(confirmed);
            } else if !duplicate && stamp < confirmed && queued.has(self.inboxes.seat(user, reader.session)) {
                // While it owes the ACK of that copy its cursor stays before both positions.
                reader.added(confirmed);
                reader.pass(confirmed);
            } else {
                behind |= reader.log_ended(confirmed);
            }
            if duplicate {
                behind |= reader.log_ended(before);
            }
            if behind {
                self.links.stats.logs_missed.add(1);
                desk.retries.note(user, soon);
            }
        }
    }

    /// Another node may have been the home of a user meanwhile, and have added to the log behind this one's back: it is
    /// looked at.
    pub(super) fn doubt(&mut self, user: u64) {
        let retry_tick = self.links.tick + 1;
        let Some(desk) = self.desk.as_mut().filter(|desk| desk.shared) else { return };
        desk.doubt(user, retry_tick);
    }

    /// Goes on with those who are to be looked at since the view has changed. They do not stand in the way of those who
    /// wait for what they know to be in their logs.
    pub(super) fn look_at_doubted(&mut self) {
        for _ in 0..LOG_LOOKS_MAX {
            let Some(user) = self.desk.as_mut().and_then(|desk| desk.next_doubted()) else { break };
            self.look_where_log_ends(user);
        }
        let is_behind = self.desk.as_ref().is_some_and(|desk| desk.is_behind_with_looks());
        self.links.stats.limit_log_looks.add(is_behind.into());
    }

    /// Asks the store where the log of a user ends, if that is in doubt.
    pub(super) fn look_where_log_ends(&mut self, user: u64) {
        if !self.desk.as_ref().is_some_and(|desk| desk.is_in_doubt(user)) {
            return;
        }
        let claims = self.may_claim(user);
        let (tick, retry_tick) = (self.links.tick, self.links.tick + ticks(RETRY_MS));
        let Some(desk) = &mut self.desk else { return };
        if !claims {
            desk.retries.note(user, retry_tick);
        } else if !desk.look(tick, user) {
            desk.retries.note(user, look_again_tick(tick, user));
        }
    }

    /// The store has said where the log of a user ends.
    pub(super) fn log_ends(&mut self, user: u64, doubts: u32, reply: &Reply) {
        let (tick, soon, retry_tick) = (self.links.tick, self.links.tick + 1, self.links.tick + ticks(RETRY_MS));
        // What is on its way there may have come in already, and its answer tells what it lies behind.
        let adds = self.inboxes.of(user).any(|message| message.keep == Keep::Storing);
        if let Reply::Inspected(inbox) = reply {
            self.stamps.follow(inbox.last);
        }
        let Some(desk) = &mut self.desk else { return };
        let is_latest = desk.looked(doubts);
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        let Reply::Inspected(inbox) = reply else { return desk.retries.note(user, look_again_tick(tick, user)) };
        if adds {
            return desk.retries.note(user, retry_tick);
        }
        desk_of_user.in_doubt &= !is_latest;
        desk_of_user.last = desk_of_user.last.max(inbox.last);
        for reader in &mut desk_of_user.readers {
            if reader.log_ended(inbox.last) {
                self.links.stats.logs_missed.add(1);
                desk.retries.note(user, soon);
            }
        }
    }

    /// Notes how a session here reads its inbox, for the home of a guest.
    pub(super) fn remember_wish(&mut self, slot: u32, wish: &Wish) {
        let generation = self.links.slots.id(slot).generation;
        let Some(desk) = self.desk.as_mut().filter(|desk| desk.shared) else { return };
        desk.note_wish(slot, generation, wish.packed());
    }

    /// What was noted of the session in a slot.
    pub(super) fn wish_in(&self, slot: u32) -> u16 {
        let generation = self.links.slots.id(slot).generation;
        self.desk.as_ref().map_or(0, |desk| desk.wish(slot, generation))
    }

    /// Whether a device that the store does not know comes with what the store gave out to it: it was forgotten, or
    /// lost with what Redis had. What came for it until then is not kept for it.
    pub(super) fn was_lost(&self, user: u64, known: bool, store_epoch: u64, resume: &[u8]) -> bool {
        self.desk.is_some() && !known && ResumeToken::is_of(user, store_epoch, resume)
    }

    /// Asks where the device of a session stands, as its home. False if that cannot be asked now.
    pub(super) fn ask_again_where(&mut self, user: u64, session: u64, device: &str, ephemeral: bool) -> bool {
        self.may_claim(user) && self.ask_where(Asked::Where { user, session }, user, device, ephemeral, true)
    }

    /// The store has said where the device of a session stands, or that it cannot.
    pub(super) fn where_it_stands(&mut self, user: u64, session: u64, reply: Reply) {
        let tick = self.links.tick;
        let retry_tick = tick + ticks(RETRY_MS);
        if let Reply::Opened(opened) = &reply {
            // Positions given out from now on are behind all that is stored.
            self.stamps.follow(opened.last);
        }
        let Some(desk) = &mut self.desk else { return };
        let (shared, gap) = (desk.shared, desk.recent_gap(user));
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        let Reply::Opened(opened) = reply else { return desk.retries.note(user, retry_tick) };
        desk_of_user.registered = Some(opened.devices);
        desk_of_user.last = desk_of_user.last.max(opened.last);
        if opened.unsure_claim {
            // The end of the log is looked at again until the claim holds.
            desk_of_user.in_doubt = true;
            desk.retries.note(user, look_again_tick(tick, user));
        }
        let mut readers = desk_of_user.readers.iter_mut();
        let Some(reader) = readers.find(|reader| reader.session == session && reader.device == 0) else { return };
        let last = if shared { opened.last } else { 0 };
        if shared {
            reader.knows(last);
        }
        let device = (opened.device, opened.device_epoch);
        reader.opened(device, opened.cursor, last, opened.known && opened.cursor < opened.floor.max(gap));
        self.go_on_with(user, session);
    }

    /// The store has answered a login whose home is another node, which is asked for the session now.
    pub(super) fn finish_login_of_guest(&mut self, slot: u32, login: WaitingLogin, opened: Option<Opened>) {
        let WaitingLogin { generation, user, device, class, heartbeat_secs, granted, began_us, wish, .. } = login;
        self.register_guest(
            slot,
            Registration {
                generation,
                user,
                device,
                class,
                heartbeat_secs,
                granted,
                began_us,
                home: NodeKey::OWN,
                again_tick: None,
                wish,
                opened,
            },
        );
    }

    /// Whether a page may be asked for a session: it is at most half an outbox.
    pub(super) fn has_room_for_page(&mut self, slot: u32) -> bool {
        match self.directory.remotes.get(slot) {
            Some(remote) => self.mesh.as_ref().is_some_and(|mesh| is_easy(mesh, &self.outgoing, remote.node)),
            None if is_remote(slot) => false,
            None => self.links.slots.at(slot).outbox_bytes() <= self.links.limits.outbox_bytes_max / 2,
        }
    }

    /// Tells the store now and then that devices at other nodes are connected.
    pub(super) fn note_guests_seen(&mut self, user: u64) {
        let tick = self.links.tick;
        let after = self.seen_ticks();
        let Some(Desk { users, port, retries, .. }) = &mut self.desk else { return };
        let readers = users.get_mut(&user).into_iter().flat_map(|user| &mut user.readers);
        for reader in readers.filter(|reader| is_remote(reader.slot)) {
            let (device, device_epoch) = reader.device();
            if device != 0
                && reader.seen_tick + after <= tick
                && port.send(Request::Seen { user, device, device_epoch }).is_ok()
            {
                reader.seen_tick = tick;
            }
            retries.note(user, tick + after);
        }
    }

    fn seen_ticks(&self) -> u32 {
        let age_ms = self.links.limits.device_age_secs.saturating_mul(1_000);
        ticks((age_ms / SEEN_PART).min(SEEN_MS))
    }

    /// A session of a user whose home this is begins to read, or goes on in another place.
    pub(super) fn read_for(&mut self, user: u64, session: u64, slot: u32, wish: &Wish, carried: Carried) {
        let digest = self.view_digest();
        let seen_tick = self.links.tick + self.seen_ticks();
        let Some(desk) = &mut self.desk else { return };
        match desk.reader(user, session) {
            Some(reader) if reader.view == digest => {
                reader.slot = slot;
                return;
            }
            Some(_) => self.end_reader(user, session),
            None => {}
        }
        let window = self.window(wish);
        let reading = Reading { ephemeral: wish.ephemeral, window, opened: None, carried };
        self.begin_reading(slot, user, session, reading);
        if is_remote(slot)
            && let Some(desk) = &mut self.desk
        {
            desk.retries.note(user, seen_tick);
        }
        let entry = self.presence.sessions(user).iter().find(|entry| entry.session == session);
        let Some(device) = entry.map(|entry| entry.device().to_owned()) else { return };
        self.ask_again_where(user, session, &device, wish.ephemeral);
    }

    /// What is known of the device of a session is out of date.
    pub(super) fn end_reading(&mut self, user: u64, session: u64) {
        if self.has_shared_store() {
            self.end_reader(user, session);
        }
    }

    /// With a new view: the home of a session at another node is here, and nobody reads for it. Another node was the
    /// home for so short a time that the session's own node did not see it.
    pub(super) fn read_for_guest(&mut self, slot: u32) {
        let Some(remote) = self.directory.remotes.get(slot).copied().filter(|_| self.has_shared_store()) else {
            return;
        };
        let wish = Wish::unpacked(remote.wish);
        let reads = self.desk.as_mut().is_some_and(|desk| desk.reader(remote.user, remote.session).is_some());
        if !reads && !wish.ephemeral {
            self.read_for(remote.user, remote.session, slot, &wish, None);
        }
    }

    fn end_reader(&mut self, user: u64, session: u64) {
        self.tell_cursors(user);
        if let Some(desk_of_user) = self.desk.as_mut().and_then(|desk| desk.users.get_mut(&user)) {
            desk_of_user.readers.retain(|reader| reader.session != session);
        }
    }

    /// With a new view: the home of the session in a slot is here. Unless it was before, what this shard knows of its
    /// device is out of date, or nothing.
    pub(super) fn read_again(&mut self, user: u64, slot: u32, before: Option<&Routing>) {
        if !self.has_shared_store() {
            return;
        }
        let entry = self.presence.sessions(user).iter().find(|entry| entry.slot == slot);
        let Some(session) = entry.map(|entry| entry.session) else { return };
        let digest = self.view_digest();
        let wish = Wish::unpacked(self.wish_in(slot));
        let was_home = before.is_some_and(|before| before.home(user) == Home::Here);
        if let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)).filter(|_| was_home) {
            reader.view = digest;
        }
        self.read_for(user, session, slot, &wish, None);
    }

    /// With a new view: the home of a user is another node, which reads from now on.
    pub(super) fn leave_reading(&mut self, user: u64) {
        if !self.has_shared_store() {
            return;
        }
        self.tell_cursors(user);
        if let Some(desk) = &mut self.desk {
            desk.users.remove(&user);
        }
    }

    /// This node counts as another one from now on: where devices stand has to be asked for again.
    pub(super) fn forget_readers(&mut self) {
        if let Some(desk) = self.desk.as_mut().filter(|desk| desk.shared) {
            desk.users.clear();
        }
    }

    /// A copy of a message found no room at the node that has the session, or did not get there: the session gets it
    /// from the log.
    pub(super) fn held_there(&mut self, user: u64, session: u64, stamp: u64) {
        if self.desk.is_none() {
            return;
        }
        self.inboxes.bounced(user, session, stamp);
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let Some(desk) = &mut self.desk else { return };
        let Some(reader) = desk.reader(user, session) else { return };
        self.links.stats.readers_held.add(u64::from(!reader.is_held()));
        reader.bounced(stamp);
        desk.retries.note(user, retry_tick);
        if let Some(message) = self.inboxes.find(user, stamp) {
            message.absent |= message.keep != Keep::Never;
        }
    }

    /// A message that waited at a former home, which may have stored it: it goes to the log, and from there to those
    /// who read it. Others get it at once.
    pub(super) fn keep_transferred(&mut self, message: &Routed<'_>, stamp: u64, told: bool, until_s: u32) {
        let Routed { origin, from, to: user, id, extra, payload, .. } = *message;
        let tick = self.links.tick;
        let waiting = Unacked::waiting(stamp, from, id, origin, tick, 0, payload.into());
        let retry = extra & flags::RETRY != 0;
        let kept = Unacked { keep: Keep::Waiting, absent: true, retry, told, until_s, ..waiting };
        if !self.inboxes.insert(user, kept) {
            // It came twice, or another message has its very stamp: the sender is told to try again.
            if told {
                return self.links.stats.copies_given_up.add(1);
            }
            return self.refuse(message);
        }
        self.note_end(user, until_s);
        // Positions given out from now on lie behind those of the former home.
        self.stamps.follow_other_home(stamp, self.now.wall_ms);
        let due = tick + ticks(self.links.limits.store_after_ms);
        let Some(desk) = &mut self.desk else { return };
        if !told {
            desk.duplicates.note_new(from, id, user, stamp, retry);
        }
        desk.due.note(user, due);
        let sessions: Vec<(u64, u32)> =
            self.presence.sessions(user).iter().map(|entry| (entry.session, entry.slot)).collect();
        for &(session, slot) in &sessions {
            let reads = match self.desk.as_mut().and_then(|desk| desk.reader(user, session)) {
                Some(reader) if !reader.has(stamp) => {
                    reader.hold(stamp.saturating_sub(1));
                    true
                }
                Some(_) => true,
                None => false,
            };
            let own = from == user && far::may_be_origin(&self.directory, &self.links.slots, self.shard, slot, &origin);
            if !reads && !own {
                self.redeliver_to(user, slot, session, true, false);
            }
        }
        if let Some(desk) = &mut self.desk {
            desk.retries.note(user, tick + 1);
        }
        if sessions.is_empty() {
            match self.is_unsettled(user) {
                true => self.directory.orphan(user),
                false => self.store_waiting(user, Store::Offline),
            }
        }
    }
}
