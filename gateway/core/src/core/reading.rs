//! From the store to devices: where a device stands is asked for with its LOGIN, its backlog follows LOGIN_OK page by
//! page, and SYNC asks for pages of its own.
//!
//! A login waits for the store for [`STORE_LOGIN_MS`] at most; then it is answered without, and the backlog follows
//! when the store has said where the device stands.

use super::far;
use super::handshake::Welcome;
use super::keep::{RETRY_MS, Store};
use super::links::{Queued, ticks};
use super::route::delivery;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::desk::{Asked, Desk, NextPage, Reader, ResumeToken, WaitingLogin, look_again_tick};
use crate::directory::{Home, RemoteSession, is_remote};
use crate::head::stored_payload;
use crate::inbox::Keep;
use crate::io::ConnId;
use crate::limits::{REPLAY_WINDOW_MAX, STORE_LOGIN_MS, SYNC_PAGE, SYNC_PAGE_MAX};
use crate::mailbox::Adoptee;
use crate::mesh::wire::{Record as FarRecord, Seat};
use crate::wish::Wish;
use futures_channel::oneshot;
use trunkline_proto::prost::Message;
use trunkline_proto::{Code, Frame, Header, Kind, Sync, SyncOk, encode, encode_message, flags};
use trunkline_router_core::presence::Presence;
use trunkline_store::{Opened, Page, Record, Refusal, Reply, Request, stamp_at};

/// How often the store is told that a device is connected, at the least; it writes down no more.
pub(super) const SEEN_MS: u64 = 3_600_000;
/// Where devices are forgotten sooner than in some hours: so many times before that.
pub(super) const SEEN_PART: u64 = 4;

/// Number and epoch of the device whose session another one replaces, and how far that was.
pub(super) type Carried = Option<((u16, u32), u64)>;

/// How a session that begins reads its inbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(super) ephemeral: bool,
    /// Messages of its backlog that it may owe at a time.
    pub(super) window: u32,
    /// Where its device stands; `None` while the store has not said it.
    pub(super) opened: Option<Opened>,
    /// From the session it replaces: the store may have answered before it was told.
    pub(super) carried: Carried,
}

impl Shard {
    /// A login at its home: the store is asked where the device stands, with all that the device has acknowledged and
    /// all that waits for its user before the question.
    pub(super) fn ask_store(&mut self, slot: u32, adoptee: &Adoptee) {
        let Adoptee { user, device, class, heartbeat_secs, wish, granted, began_us, .. } = adoptee;
        self.tell_cursors(*user);
        self.store_waiting(*user, Store::CatchUp);
        let conn = self.links.slots.id(slot);
        let login = WaitingLogin {
            generation: conn.generation,
            user: *user,
            device: device.clone(),
            class: class.clone(),
            heartbeat_secs: *heartbeat_secs,
            granted: granted.clone(),
            began_us: *began_us,
            wish: wish.clone(),
            claimed: false,
        };
        let claimed = self.may_claim(*user);
        let login = WaitingLogin { claimed, ..login };
        let (user, ephemeral) = (*user, wish.ephemeral);
        if !self.ask_where(Asked::Open { conn, user }, user, device, ephemeral, claimed) {
            self.links.stats.logins_without_store.add(1);
            return self.finish_login(slot, login, None);
        }
        let deadline = self.links.tick + ticks(STORE_LOGIN_MS);
        let waiting = self.links.slots.at(slot);
        waiting.phase = Phase::Registering;
        waiting.user = user;
        self.links.wheel.arm(slot, deadline);
        if let Some(desk) = &mut self.desk {
            desk.hold_login(slot, login);
        }
    }

    /// Asks the store where a device stands. `claims`: as the user's home. False if its mailbox has no room.
    pub(super) fn ask_where(&mut self, asked: Asked, user: u64, device: &str, ephemeral: bool, claims: bool) -> bool {
        let Some(desk) = &mut self.desk else { return false };
        let name = if device.is_empty() { trunkline_router_core::presence::DEFAULT_DEVICE } else { device };
        let ask = |token| Request::Open { user, device: name.into(), ephemeral, claims, token };
        let asked = desk.ask(self.links.tick, asked, ask).is_ok();
        self.links.stats.limit_store_mail.add(u64::from(!asked));
        asked
    }

    /// A login has waited long enough for the store. False if it waits for something else.
    pub(super) fn stop_waiting_for_store(&mut self, slot: u32) -> bool {
        let Some(login) = self.desk.as_mut().and_then(|desk| desk.take_login(slot)) else { return false };
        self.links.stats.logins_without_store.add(1);
        self.finish_login(slot, login, None);
        true
    }

    /// The store has said where a device stands, or that it cannot.
    pub(super) fn store_opened(&mut self, conn: ConnId, user: u64, reply: Reply) {
        let gap = self.desk.as_ref().map_or(0, |desk| desk.recent_gap(user));
        let opened = match reply {
            Reply::Opened(opened) => Some(Opened { floor: opened.floor.max(gap), ..opened }),
            _ => None,
        };
        if let Some(opened) = &opened {
            // Positions given out from now on are behind all that is stored.
            self.stamps.follow(opened.last);
        }
        let Some(desk) = &mut self.desk else { return };
        if let Some(login) = desk.take_login_of(conn) {
            self.links.stats.logins_without_store.add(u64::from(opened.is_none()));
            return self.finish_login(conn.slot, login, opened);
        }
        self.opened_late(conn, user, opened);
    }

    fn finish_login(&mut self, slot: u32, login: WaitingLogin, opened: Option<Opened>) {
        if !self.alone && self.home(login.user) != Home::Here {
            return self.finish_login_of_guest(slot, login, opened);
        }
        let WaitingLogin { user, device, class, heartbeat_secs, granted, began_us, wish, claimed, .. } = login;
        self.remember_wish(slot, &wish);
        let (ephemeral, window, carried) = (wish.ephemeral, self.window(&wish), None);
        // What was asked when another node was the home may be out of date.
        let reading = Reading { ephemeral, window, opened: opened.filter(|_| claimed), carried };
        let pending = self.inboxes.len(user) as u64;
        let welcome = Welcome { pending, reading: Some(reading), ..Welcome::default() };
        let welcome = match &opened {
            Some(opened) => Welcome { reading: Some(reading), ..self.standing(user, &wish, opened) },
            None => welcome,
        };
        let waited = self.links.slots.at(slot).phase == Phase::Registering;
        let last_stamp = wish.last_stamp;
        let entry = self.new_entry(slot, user, &device, &class);
        self.open(slot, user, entry, heartbeat_secs, granted, welcome);
        self.login_done(slot, began_us);
        if !claimed {
            // Its reader does not know yet.
            self.try_again(user);
        }
        if self.links.slots.at(slot).phase == Phase::Open {
            self.begin_groups(self.links.slots.id(slot), user, Some(last_stamp));
        }
        if waited {
            self.go_on_reading(slot);
        }
    }

    /// What LOGIN_OK says of a device that stands there.
    pub(super) fn standing(&self, user: u64, wish: &Wish, opened: &Opened) -> Welcome {
        let Opened { known, device, device_epoch, store_epoch, cursor, floor, last, pending, .. } = *opened;
        let token = ResumeToken { user, device, device_epoch, issued: self.stamps.last() };
        let registered = device != 0 && !wish.ephemeral;
        let logged_out = |issued| self.desk.as_ref().is_some_and(|desk| desk.logouts.is_since(user, device, issued));
        let fits = token.issued(store_epoch, &wish.resume).is_some_and(|issued| !logged_out(issued));
        Welcome {
            pending,
            resume: if registered { token.seal(store_epoch) } else { Vec::new() },
            resumed: registered && known && cursor >= floor && fits,
            floor,
            last,
            // A device that the store knew and has lost is told likewise.
            truncated: (known && cursor < floor) || self.was_lost(user, known, store_epoch, &wish.resume),
            reading: None,
        }
    }

    /// A session logs out: what it was given to be resumed with is good no more.
    pub(super) fn log_out(&mut self, slot: u32) {
        let user = self.links.slots.at(slot).user;
        let stamp = self.next_stamp();
        let entry = self.presence.sessions(user).iter().find(|entry| entry.slot == slot);
        let session = entry.map(|entry| entry.session);
        if let (Some(entry), Some(desk)) = (entry, self.desk.as_ref().filter(|desk| desk.shared)) {
            let request = Request::LogOut { user, device: entry.device().into(), number: stamp };
            // Without room the shard's own memory has to do.
            self.links.stats.limit_store_mail.add(u64::from(desk.port.send(request).is_err()));
        }
        let reader = session.and_then(|session| self.desk.as_mut()?.reader(user, session));
        let Some(device) = reader.map(|reader| reader.device).filter(|device| *device != 0) else { return };
        if let Some(desk) = &mut self.desk {
            desk.logouts.note(user, device, stamp);
        }
    }

    pub(super) fn window(&self, wish: &Wish) -> u32 {
        match wish.window {
            0 => self.links.limits.replay_window,
            window => window.min(REPLAY_WINDOW_MAX),
        }
    }

    /// A session has begun, and LOGIN_OK is on its way: its backlog follows.
    pub(super) fn begin_reading(&mut self, slot: u32, user: u64, session: u64, reading: Reading) {
        let Reading { ephemeral, window, opened, carried } = reading;
        // What the session it replaces owed, and what came while the store was asked.
        self.store_waiting(user, Store::CatchUp);
        let now = self.stamps.last();
        let tick = self.links.tick;
        let view = self.directory.routing.as_ref().map_or(0, |routing| routing.digest());
        let Some(desk) = &mut self.desk else { return };
        let desk_of_user = desk.users.entry(user).or_default();
        if let Some(opened) = &opened {
            desk_of_user.registered = Some(opened.devices);
            desk_of_user.last = desk_of_user.last.max(opened.last);
            if opened.unsure_claim {
                desk_of_user.in_doubt = true;
                desk.retries.note(user, look_again_tick(tick, user));
            }
        }
        if ephemeral {
            return;
        }
        let mut reader = Reader::new(session, slot, window, now);
        (reader.seen_tick, reader.view) = (tick, view);
        let shared = desk.shared;
        if let Some(Opened { device, device_epoch, cursor, floor, last, known, .. }) = opened {
            if shared {
                reader.knows(last);
            }
            let last = if shared { last } else { 0 };
            let device = (device, device_epoch);
            let carried = carried.filter(|(carried, _)| *carried == device).map_or(0, |(_, cursor)| cursor);
            reader.opened(device, cursor.max(carried), last, known && cursor < floor);
        } else {
            desk.retries.note(user, tick + ticks(RETRY_MS));
        }
        // Most users have one device.
        desk_of_user.readers.reserve_exact(1);
        desk_of_user.readers.push(reader);
        self.inboxes.leave_to_store(user, session);
        self.hold_for_waiting(user, session);
        let empty = opened.is_some_and(|opened| opened.pending == 0)
            && !self.inboxes.of(user).any(|message| message.keep != Keep::Never);
        if empty && let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)) {
            // Nothing is there to be read.
            let (floor, last) = opened.map_or((0, 0), |opened| (opened.floor, opened.last));
            reader.next_page();
            if reader.page_over(true).is_some_and(|backlog| backlog.announced) {
                let truncated = opened.is_some_and(|opened| opened.known && opened.cursor < opened.floor);
                self.end_backlog(slot, now, truncated, floor, last);
            }
        }
        self.go_on_with(user, session);
    }

    /// Holds a reader before what waits here and was not given to it, because the store had no room for it.
    fn hold_for_waiting(&mut self, user: u64, session: u64) {
        let Some(stamp) = self.missing_in_log(user, session) else { return };
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let Some(desk) = &mut self.desk else { return };
        desk.retries.note(user, retry_tick);
        if let Some(reader) = desk.reader(user, session) {
            reader.hold(stamp - 1);
        }
    }

    /// The first message for a device that is not in the log yet, and was not given to it.
    fn missing_in_log(&mut self, user: u64, session: u64) -> Option<u64> {
        let reader = self.desk.as_mut()?.reader(user, session)?;
        let seat = self.inboxes.seat(user, session);
        let waiting =
            self.inboxes.of(user).filter(|message| message.keep == Keep::Waiting && !message.queued.has(seat));
        waiting.map(|message| message.stamp).find(|stamp| !reader.has(*stamp))
    }

    /// A session that began without knowing where its device stands learns it.
    fn opened_late(&mut self, conn: ConnId, user: u64, opened: Option<Opened>) {
        let is_open = self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open && conn.user == user);
        let tick = self.links.tick;
        let retry_tick = tick + ticks(RETRY_MS);
        let Some(desk) = self.desk.as_mut().filter(|_| is_open) else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        let Some(opened) = opened else { return desk.retries.note(user, retry_tick) };
        desk_of_user.registered = Some(opened.devices);
        desk_of_user.last = desk_of_user.last.max(opened.last);
        if opened.unsure_claim {
            desk_of_user.in_doubt = true;
            desk.retries.note(user, look_again_tick(tick, user));
        }
        let mut readers = desk_of_user.readers.iter_mut();
        let Some(reader) = readers.find(|reader| reader.slot == conn.slot && reader.device == 0) else { return };
        let session = reader.session;
        let last = if desk.shared { opened.last } else { 0 };
        if desk.shared {
            reader.knows(last);
        }
        let device = (opened.device, opened.device_epoch);
        reader.opened(device, opened.cursor, last, opened.known && opened.cursor < opened.floor);
        self.go_on_with(user, session);
    }

    /// A session has ended, or its device has another one: the store is told how far it got, and keeps what it was
    /// owed. Returns number and epoch of the device, and its cursor, if it is registered.
    pub(super) fn stop_reading(&mut self, user: u64, session: u64) -> Carried {
        self.tell_cursors(user);
        let desk = self.desk.as_mut()?;
        let desk_of_user = desk.users.get_mut(&user)?;
        let stopped = desk_of_user.readers.extract_if(.., |reader| reader.session == session).next();
        if self.presence.sessions(user).is_empty() {
            desk.users.remove(&user);
        }
        let stopped = stopped?;
        self.inboxes.leave_to_store(user, session);
        (stopped.device != 0).then(|| (stopped.device(), stopped.cursor()))
    }

    /// Goes on with a device that may get more of the log now.
    pub(super) fn go_on_with(&mut self, user: u64, session: u64) {
        let owed_max = self.links.limits.unacked_per_user_max;
        let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)) else { return };
        let slot = reader.slot;
        reader.read_missed();
        if reader.backlog.is_none() && !reader.is_held() {
            return;
        }
        // A page is half an outbox at most.
        if !self.has_room_for_page(slot) {
            let retry_tick = self.links.tick + ticks(RETRY_MS);
            if let Some(desk) = self.desk.as_mut().filter(|_| is_remote(slot)) {
                desk.retries.note(user, retry_tick);
            } else {
                self.links.owe_redelivery(slot);
            }
            return;
        }
        let may_resume = |desk: &mut Desk| desk.reader(user, session).is_some_and(|reader| reader.may_resume(owed_max));
        if self.desk.as_mut().is_some_and(may_resume) {
            self.store_waiting(user, Store::CatchUp);
            let missing = self.missing_in_log(user, session).is_some();
            let now = self.stamps.last();
            let retry_tick = self.links.tick + ticks(RETRY_MS);
            let Some(desk) = &mut self.desk else { return };
            if missing {
                return desk.retries.note(user, retry_tick);
            }
            if let Some(reader) = desk.reader(user, session) {
                reader.resume(now);
            }
        }
        let Some(desk) = &mut self.desk else { return };
        if let Some(page) = desk.reader(user, session).filter(|reader| reader.device != 0).and_then(Reader::next_page)
            && desk.take_page_place(user, session, page)
        {
            self.ask_page(user, session, page);
        }
    }

    /// Asks for a page for which there is a place.
    fn ask_page(&mut self, user: u64, session: u64, page: NextPage) {
        let bytes_max = (self.links.limits.outbox_bytes_max / 2) as u32;
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let mut next = Some((user, session, page));
        while let (Some((user, session, page)), Some(desk)) = (next.take(), &mut self.desk) {
            let NextPage { device, device_epoch, after, limit } = page;
            let ask = |token| Request::Read { user, device, device_epoch, after, since_ms: 0, limit, bytes_max, token };
            if desk.ask(self.links.tick, Asked::Page { user, session }, ask).is_ok() {
                return;
            }
            self.links.stats.limit_store_mail.add(1);
            if let Some(reader) = desk.reader(user, session) {
                reader.no_page();
                desk.retries.note(user, retry_tick);
            }
            next = desk.page_came();
            // The place of the one that failed is the next one's.
            if next.is_some() {
                desk.retake_page_place();
            }
        }
    }

    /// A page of a device's backlog has come.
    pub(super) fn page_came(&mut self, user: u64, session: u64, reply: Reply) {
        let next = self.desk.as_mut().and_then(|desk| {
            let next = desk.page_came()?;
            desk.retake_page_place();
            Some(next)
        });
        if let Some((user, session, page)) = next {
            self.ask_page(user, session, page);
        }
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let Some(desk) = &mut self.desk else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        let Some(reader) = desk_of_user.readers.iter_mut().find(|reader| reader.session == session) else { return };
        let Reply::Page(Page { records, floor, last, complete, truncated }) = reply else {
            reader.no_page();
            return desk.retries.note(user, retry_tick);
        };
        desk_of_user.last = desk_of_user.last.max(last);
        let slot = reader.slot;
        if let Some(backlog) = &mut reader.backlog {
            backlog.truncated |= truncated;
        }
        let mut complete = complete;
        #[cfg(test)]
        let records = match crate::simulation::planted(crate::simulation::Bug::BacklogUnordered) {
            true => records.into_iter().rev().collect(),
            false => records,
        };
        for record in &records {
            if reader.backlog.is_some_and(|backlog| record.stamp > backlog.until) {
                complete = true;
                break;
            }
            if !reader.wants(record.stamp, record.from, record.id) {
                reader.passed_over(record.stamp);
                continue;
            }
            let Some(payload) = stored_payload(record, self.now.wall_ms) else {
                self.links.stats.replays_expired.add(1);
                reader.passed_over(record.stamp);
                continue;
            };
            let (directory, mesh, header) = (&self.directory, &mut self.mesh, replayed(user, record));
            if far::give(directory, mesh, &mut self.links, &mut self.outgoing, slot, &header, payload)
                == Queued::OutboxFull
            {
                self.links.owe_redelivery(slot);
                desk.retries.note(user, retry_tick);
                complete = false;
                break;
            }
            self.links.stats.replays.add(1);
            reader.replayed(record.stamp);
        }
        let over = reader.page_over(complete);
        if let Some(backlog) = over.filter(|backlog| backlog.announced || backlog.truncated) {
            self.links.stats.backlogs_truncated.add(u64::from(backlog.truncated));
            self.end_backlog(slot, backlog.until, backlog.truncated, floor, last);
        }
        self.note_cursor(user, session);
        self.go_on_with(user, session);
    }

    /// SYNC_OK ends the backlog of a login; and what was lost is told, whenever that is found.
    fn end_backlog(&mut self, slot: u32, next_stamp: u64, truncated: bool, floor: u64, last: u64) {
        let Some(remote) = self.directory.remotes.get(slot).copied() else {
            return self.tell_backlog_over(slot, next_stamp, truncated, floor, last);
        };
        let RemoteSession { node, shard, conn, user, .. } = remote;
        let over = FarRecord::BacklogOver { seat: Seat { shard, conn }, user, next_stamp, truncated, floor, last };
        if self.send_far(node, shard, &over).is_err() {
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// The same, to a session here.
    pub(super) fn tell_backlog_over(&mut self, slot: u32, next_stamp: u64, truncated: bool, floor: u64, last: u64) {
        let flags = &mut self.links.slots.at(slot).flags;
        if flags.has(ConnFlags::BACKLOG_TOLD) && !truncated {
            // Another home has told it, and this one went on from where the device stood.
            return;
        }
        flags.set(ConnFlags::BACKLOG_TOLD);
        let sync_ok = SyncOk { next_stamp, complete: true, truncated, group: 0, floor, last };
        self.links.reply(slot, |out| encode_message(out, Kind::SyncOk, 0, &sync_ok));
    }

    /// A session has acknowledged all that it was given before the message at a position.
    pub(super) fn acknowledged_earlier(&mut self, user: u64, session: u64, stamp: u64) {
        let earlier = match self.desk.as_mut().and_then(|desk| desk.reader(user, session)) {
            Some(reader) => reader.ack_earlier(stamp),
            None => self.inboxes.queued_up_to(user, session, stamp.saturating_sub(1)),
        };
        let any = !earlier.is_empty();
        for stamp in earlier {
            self.acknowledged(user, session, stamp);
        }
        // The one that it was for may not be owed: its own ACK moves nothing then.
        if any {
            self.note_cursor(user, session);
            self.go_on_with(user, session);
        }
    }

    /// A device has acknowledged something: its cursor may have moved, and it may get more.
    pub(super) fn device_acknowledged(&mut self, user: u64, session: u64, stamp: u64) {
        let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)) else { return };
        if reader.ack(stamp) {
            self.note_cursor(user, session);
            self.go_on_with(user, session);
        }
    }

    /// The store is told in a moment if a device's cursor has moved over something it holds.
    fn note_cursor(&mut self, user: u64, session: u64) {
        let due = self.links.tick + ticks(super::keep::CURSOR_MS);
        let Some(desk) = &mut self.desk else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        let last = desk_of_user.last;
        if desk_of_user.reader(session).is_some_and(|reader| reader.has_news(last)) {
            desk.cursors.note(user, due);
        }
    }

    /// Looks again at the devices of a user that could not go on.
    pub(super) fn try_again(&mut self, user: u64) {
        self.look_where_log_ends(user);
        let Some(desk_of_user) = self.desk.as_ref().and_then(|desk| desk.users.get(&user)) else { return };
        let readers: Vec<(u64, bool)> =
            desk_of_user.readers.iter().map(|reader| (reader.session, reader.device == 0)).collect();
        self.note_guests_seen(user);
        for (session, is_unknown) in readers {
            if !is_unknown {
                self.go_on_with(user, session);
                if let Some(desk) = &mut self.desk
                    && desk.reader(user, session).is_some_and(|reader| reader.is_behind())
                {
                    desk.retries.note(user, self.links.tick + ticks(RETRY_MS));
                }
                continue;
            }
            let sessions = self.presence.sessions(user).iter();
            let device =
                sessions.filter(|entry| entry.session == session).map(|entry| entry.device().to_owned()).next();
            let asked = device.is_some_and(|device| self.ask_again_where(user, session, &device, false));
            if let (false, Some(desk)) = (asked, &mut self.desk) {
                desk.retries.note(user, self.links.tick + ticks(RETRY_MS));
            }
        }
    }

    /// A device of a user, by its number and epoch, or all of them (number 0), is forgotten: nothing is kept for it
    /// from now on. One that is online stays so. `left`: how many are registered now.
    pub(super) fn forgotten(&mut self, user: u64, device: (u16, u32), left: usize) {
        let Some(desk_of_user) = self.desk.as_mut().and_then(|desk| desk.users.get_mut(&user)) else { return };
        desk_of_user.readers.retain(|reader| device.0 != 0 && reader.device() != device);
        desk_of_user.registered = Some(left as u32);
    }

    /// Tells the store now and then that a device is connected: one that has nothing to acknowledge and does not log in
    /// again would be forgotten.
    pub(super) fn note_seen(&mut self, slot: u32, user: u64) {
        let tick = self.links.tick;
        let age_ms = self.links.limits.device_age_secs.saturating_mul(1_000);
        let after = ticks((age_ms / SEEN_PART).min(SEEN_MS));
        let Some(Desk { users, port, .. }) = &mut self.desk else { return };
        let readers = users.get_mut(&user).into_iter().flat_map(|user| &mut user.readers);
        for reader in readers.filter(|reader| reader.slot == slot && reader.device != 0) {
            let (device, device_epoch) = reader.device();
            // Where the mailbox has no room, the connection's next timer tries again.
            if reader.seen_tick + after <= tick && port.send(Request::Seen { user, device, device_epoch }).is_ok() {
                reader.seen_tick = tick;
            }
        }
    }

    /// Asks the store on behalf of the control thread.
    pub(crate) fn ask_for_control(
        &mut self,
        user: u64,
        forgets: Option<(u16, u32)>,
        ask: fn(u64, (u16, u32), u64) -> Request,
        answer: oneshot::Sender<Reply>,
    ) {
        let Some(desk) = &mut self.desk else { return };
        let device = forgets.unwrap_or_default();
        let asked =
            desk.ask(self.links.tick, Asked::Control { user, forgets, answer }, |token| ask(user, device, token));
        if let Err(Asked::Control { answer, .. }) = asked {
            self.links.stats.limit_store_mail.add(1);
            // Who asked may have gone.
            let _ = answer.send(Reply::Refused(Refusal::Unavailable));
        }
    }

    /// Whether the store has answered something, or pushes wait.
    pub(crate) fn has_answers(&self) -> bool {
        self.desk.as_ref().is_some_and(Desk::has_answers) || self.has_pushes()
    }

    /// SYNC: a page of the inbox, from a position or a time.
    pub(super) fn sync(&mut self, slot: u32, frame: &Frame<'_>) {
        let conn = self.links.slots.id(slot);
        let user = self.links.slots.at(slot).user;
        let sync = Sync::decode(frame.body);
        // Whose answer an ERROR is.
        let group = sync.as_ref().map_or(0, |sync| sync.group);
        let Some(desk) = &mut self.desk else { return self.links.error(slot, Code::Unsupported, 0, group) };
        let Ok(sync) = sync else { return self.links.error(slot, Code::BadRequest, 0, 0) };
        let own = desk.is_syncing(conn);
        if own || !desk.has_sync_room() {
            self.links.stats.limit_syncs.add(1);
            return self.links.error(slot, if own { Code::RateLimited } else { Code::Overloaded }, 0, group);
        }
        if sync.group != 0 {
            return self.sync_group(slot, frame.aux, &sync);
        }
        let Sync { after_stamp, since_ms, limit, .. } = sync;
        let limit = if limit == 0 { SYNC_PAGE } else { limit.min(SYNC_PAGE_MAX) };
        let bytes_max = (self.links.limits.outbox_bytes_max / 2) as u32;
        let after = after_stamp.max(stamp_at(since_ms).saturating_sub(1));
        let ask = |token| Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after: after_stamp,
            since_ms,
            limit,
            bytes_max,
            token,
        };
        match desk.ask(self.links.tick, Asked::Sync { conn, aux: frame.aux, after }, ask) {
            Ok(()) => desk.begin_sync(conn),
            Err(_) => {
                self.links.stats.limit_store_mail.add(1);
                self.links.error(slot, Code::Overloaded, 0, 0);
            }
        }
    }

    /// A page that a client asked for has come.
    pub(super) fn sync_page(&mut self, conn: ConnId, aux: u16, after: u64, reply: Reply) {
        if let Some(desk) = &mut self.desk {
            desk.end_sync(conn);
        }
        let Some(known) = self.links.slots.get(conn).filter(|conn| conn.phase == Phase::Open) else { return };
        let (slot, user) = (conn.slot, known.user);
        let Reply::Page(Page { records, floor, last, complete, truncated }) = reply else {
            return self.links.error(slot, Code::ServiceUnavailable, 0, 0);
        };
        let sessions = self.presence.sessions(user).iter();
        let session = sessions.filter(|entry| entry.slot == slot).map(|entry| entry.session).next();
        let mut reader = session.and_then(|session| self.desk.as_mut()?.reader(user, session));
        let now_ms = self.now.wall_ms;
        let mut given = 0;
        for record in &records {
            let Some(payload) = stored_payload(record, now_ms) else {
                self.links.stats.replays_expired.add(1);
                continue;
            };
            given += 1;
            let mut header = replayed(user, record);
            if reader.as_mut().is_some_and(|reader| !reader.gives_page(record.stamp)) {
                header.flags &= !flags::ACK;
            }
            self.links.reply(slot, |out| encode(out, &header, payload));
        }
        self.links.stats.replays.add(given);
        let next_stamp = records.last().map_or(after, |record| record.stamp);
        let sync_ok = SyncOk { next_stamp, complete, truncated, group: 0, floor, last };
        self.links.reply(slot, |out| encode_message(out, Kind::SyncOk, aux, &sync_ok));
        self.links.pause_if_full(slot);
    }
}

/// A stored message, as it is given to a device of `user`.
fn replayed(user: u64, record: &Record) -> Header {
    let own = if record.from == user { flags::SELF } else { 0 };
    let flags = flags::ACK | flags::REPLAY | own;
    delivery(flags, record.id, record.from, record.stamp)
}
