//! Messages with ACK where there is a store: given to the devices that are online, and brought to the store for those
//! that are not or do not acknowledge.
//!
//! | a message | goes to the store |
//! |---|---|
//! | for a user who is offline | at once |
//! | that no device has acknowledged | `store_after_ms` after it came |
//! | that was acknowledged, and owed to a registered device that is offline or has not acknowledged | likewise; its sender has been told |
//! | of a user one of whose devices logs in | at once, so that all the device has to catch up on is in the log |
//!
//! All older ones of the user go with it, so that the log has them in order. What the store refuses because it is out
//! of order waits on while there is hope for an ACK; then its sender gets SENT 3.

use super::far;
use super::links::{Queued, ticks};
use super::portal::PORTAL_SLOT;
use super::route::{Routed, again_if, delivery};
use super::shard::Shard;
use crate::desk::{Asked, Desk, Known};
use crate::directory::is_remote;
use crate::head::to_store;
use crate::inbox::{Adopted, Keep, Seats, Unacked};
use crate::limits::{DUPLICATES_MS, STORE_ANSWER_MS, STORE_ANSWERS_PER_TURN};
use std::collections::VecDeque;
use trunkline_proto::{Outcome, flags};
use trunkline_router_core::presence::Presence;
use trunkline_store::{Record, Refusal, Reply, Request, stamp_at};

/// How soon the store is told that a device has got further.
pub(super) const CURSOR_MS: u64 = 200;
/// How soon a device is looked at again that could not go on.
pub(super) const RETRY_MS: u64 = 1_000;
/// Users looked at again in one tick.
const RETRIES_MAX: usize = 256;

/// Which of a user's messages go to the store, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// Those whose time is over, and those before them.
    Due,
    /// All, because nobody is online any more.
    Offline,
    /// All, because a device is to find them in the log.
    CatchUp,
}

impl Shard {
    /// Queues a message that is kept for all devices of its recipient.
    pub(super) fn deliver_kept(&mut self, message: &Routed<'_>, until_s: u32) {
        let Routed { origin, from, to, id, extra, payload, .. } = *message;
        let retry = extra & flags::RETRY != 0;
        let is_offline = self.presence.sessions(to).is_empty();
        if is_offline && !self.inboxes.admits_offline(payload.len()) {
            self.links.stats.limit_unacked_bytes.add(1);
            self.links.stats.out_overloaded.add(1);
            return self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        }
        if !self.admit(to, payload.len()) {
            self.links.stats.out_overloaded.add(1);
            return self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        }
        let stamp = self.next_stamp();
        let to_self = from == to;
        let flags = flags::ACK | if to_self { flags::SELF } else { 0 } | again_if(retry);
        let header = delivery(flags, id, from, stamp);
        let Some(desk) = &mut self.desk else { return };
        let owed_max = self.links.limits.unacked_per_user_max;
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let mut user = desk.users.get_mut(&to);
        let mut absent = user.as_ref().is_none_or(|user| user.has_absent());
        let (mut devices, mut owed, mut copies) = (0, Seats::default(), Seats::default());
        for session in self.presence.sessions(to) {
            let reader = user.as_mut().and_then(|user| user.reader(session.session));
            if to_self && far::may_be_origin(&self.directory, &self.links.slots, self.shard, session.slot, &origin) {
                if let Some(reader) = reader {
                    reader.pass(stamp);
                }
                continue;
            }
            devices += 1;
            let takes = reader.as_ref().is_none_or(|reader| reader.takes(owed_max));
            let queued = match takes {
                true => {
                    let (directory, mesh) = (&self.directory, &mut self.mesh);
                    far::give(directory, mesh, &mut self.links, &mut self.outgoing, session.slot, &header, payload)
                }
                false => Queued::OutboxFull,
            };
            match (queued, reader) {
                (Queued::Yes, reader) => {
                    // A copy for another node is counted there.
                    self.links.stats.deliveries.add(u64::from(!is_remote(session.slot)));
                    let seat = self.inboxes.seat(to, session.session);
                    owed.add(seat);
                    copies.add(seat);
                    if let Some(reader) = reader {
                        reader.gave(stamp);
                    }
                }
                (Queued::OutboxFull, Some(reader)) => {
                    // It gets this one, and what follows, from the log.
                    self.links.stats.readers_held.add(u64::from(!reader.is_held()));
                    reader.hold(stamp - 1);
                    absent = true;
                    self.links.owe_redelivery(session.slot);
                    desk.retries.note(to, retry_tick);
                }
                (Queued::OutboxFull, None) => {
                    owed.add(self.inboxes.seat(to, session.session));
                    self.links.owe_redelivery(session.slot);
                }
            }
        }
        if devices == 0 && to_self && !absent {
            // Only the sender is there, and nobody else will ever come for it.
            self.links.stats.out_offline_refused.add(1);
            return self.tell_fate(origin, id, to, Outcome::OfflineNotStored, 0);
        }
        if desk.duplicates.turn_over(self.links.tick) {
            self.links.stats.limit_duplicates.add(1);
        }
        desk.duplicates.note_new(from, id, to, stamp, retry);
        self.note_pushed(message, stamp, Known::Open);
        let sent_tick = self.links.tick;
        let Some(desk) = &mut self.desk else { return };
        desk.due.note(to, sent_tick + ticks(self.links.limits.store_after_ms));
        let waiting = Unacked::waiting(stamp, from, id, origin, sent_tick, 0, payload.into());
        let kept = Unacked { owed, queued: copies, keep: Keep::Waiting, absent, retry, until_s, ..waiting };
        self.inboxes.push(to, kept);
        self.note_end(to, until_s);
        if devices == 0 {
            self.store_waiting(to, Store::Offline);
        }
    }

    /// A message that its sender says it has sent before: whether it is known, and then its fate is told, or will be,
    /// to the session that has sent it now.
    pub(super) fn is_known(&mut self, message: &Routed<'_>) -> bool {
        let Routed { from, to, id, .. } = *message;
        match self.desk.as_ref().and_then(|desk| desk.duplicates.find(from, id, to)) {
            Some((stamp, known)) => self.comes_again(message, stamp, known),
            None => false,
        }
    }

    /// A message with ACK comes again of which this is remembered. False if nothing of it waits any more, and it is to
    /// be taken anew.
    pub(super) fn comes_again(&mut self, message: &Routed<'_>, stamp: u64, known: Known) -> bool {
        let Routed { origin, to, id, .. } = *message;
        let before = self.inboxes.find(to, stamp).map(|message| message.origin);
        let outcome = match known {
            Known::Open => match self.inboxes.adopt(to, stamp, origin, self.links.tick) {
                Adopted::No => return false,
                Adopted::Yes => {
                    // A session that sends again has gone from where it was. A push that is open elsewhere waits on, and
                    // would for ever: whoever sent it again has the answer.
                    if let Some(before) = before.filter(|before| before.conn.slot == PORTAL_SLOT && *before != origin) {
                        self.tell_fate(before, id, to, Outcome::Overloaded, 0);
                    }
                    None
                }
                Adopted::Again => {
                    if let Some(desk) = &mut self.desk {
                        desk.due.note(to, self.links.tick + ticks(self.links.limits.store_after_ms));
                    }
                    // Its fate is counted when it is told.
                    return true;
                }
            },
            Known::Delivered => Some(Outcome::Delivered),
            Known::Stored => Some(Outcome::Stored),
        };
        self.links.stats.out_duplicate.add(1);
        if let Some(outcome) = outcome {
            self.tell_fate(origin, id, to, outcome, stamp);
        }
        true
    }

    /// A message that does not say that it was sent before: whether one that did has overtaken it, over another node or
    /// after its sender was told that this one had failed. It is the same message then. Who sent it last waits for the
    /// answer, and this sender, who has gone or has been told that it failed, is told that, unless the fate is known.
    #[inline]
    pub(super) fn is_late(&mut self, message: &Routed<'_>) -> bool {
        let Routed { from, to, id, .. } = *message;
        match self.desk.as_ref().and_then(|desk| desk.duplicates.find_retried(from, id, to)) {
            Some((stamp, known)) => self.comes_late(message, stamp, known),
            None => false,
        }
    }

    #[cold]
    fn comes_late(&mut self, message: &Routed<'_>, stamp: u64, known: Known) -> bool {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::LateTakenAnew) {
            return false;
        }
        let Routed { origin, to, id, .. } = *message;
        let (outcome, stamp) = match known {
            Known::Delivered => (Some(Outcome::Delivered), stamp),
            Known::Stored => (Some(Outcome::Stored), stamp),
            Known::Open => match self.inboxes.find(to, stamp) {
                // It went to another home meanwhile, or was given up.
                None => return false,
                // The answer for both.
                Some(waiting) if !waiting.told && waiting.origin == origin => (None, 0),
                Some(_) => (Some(Outcome::Overloaded), 0),
            },
        };
        self.links.stats.out_duplicate.add(1);
        self.links.stats.overtaken.add(1);
        if let Some(outcome) = outcome {
            self.tell_fate(origin, id, to, outcome, stamp);
        }
        true
    }

    /// Asks the store to keep what waits for a user.
    pub(super) fn store_waiting(&mut self, user: u64, why: Store) {
        if !self.may_store(user) {
            return;
        }
        let tick = self.links.tick;
        let after = ticks(self.links.limits.store_after_ms);
        let stores_ends = self.stores_ends();
        // The home before may have stored the RETRY of what comes here late. What it stored long ago is another
        // message, whose sender has begun to count anew.
        let lately_ms = self.now.wall_ms.saturating_sub(2 * DUPLICATES_MS);
        let lately = self.directory.had_other_home(user, tick).then(|| stamp_at(lately_ms));
        let Some(desk) = &mut self.desk else { return };
        // Those before the last one that is due go too: the log is in the order of positions.
        let is_due =
            |message: &Unacked| why != Store::CatchUp && (why == Store::Offline || message.sent_tick + after <= tick);
        let waits = |message: &Unacked| message.keep == Keep::Waiting;
        let all = why != Store::Due;
        let until = self.inboxes.of(user).filter(|message| waits(message) && (all || is_due(message))).last();
        let Some(until) = until.map(|message| message.stamp) else { return };
        let mut readers = Seats::default();
        let sessions = desk.users.get(&user).map(|user| user.readers.iter().map(|reader| reader.session).collect());
        let sessions: Vec<u64> = sessions.unwrap_or_default();
        sessions.iter().for_each(|session| readers.add(self.inboxes.seat(user, *session)));
        let (mut failed, mut over): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let users_max = self.links.limits.store_users_max;
        let too_many = users_max > 0 && desk.port.users() >= users_max;
        #[cfg(test)]
        let mut early = Vec::new();
        for message in self.inboxes.of(user).take_while(|message| message.stamp <= until) {
            if !waits(message) {
                continue;
            }
            if message.told && !message.absent && !message.owed.shares(readers) {
                // Nobody who is registered owes it.
                over.extend(is_due(message).then_some(message.stamp));
                continue;
            }
            let Unacked { stamp, from, id, retry, until_s, .. } = *message;
            let (flags, payload) = to_store(if stores_ends { until_s } else { 0 }, &message.payload);
            let record = Record { stamp, from, id, flags, payload };
            let retry = if retry { Some(0) } else { lately };
            let ask = |token| Request::Append { user, record, retry, token };
            // What comes behind one that found no room must not come before it in the log.
            if !too_many && failed.is_empty() && desk.ask(tick, Asked::Append { user, stamp }, ask).is_ok() {
                message.keep = Keep::Storing;
                #[cfg(test)]
                if !message.told && crate::simulation::planted(crate::simulation::Bug::StoredEarly) {
                    early.push(stamp);
                }
            } else {
                failed.push(stamp);
            }
        }
        #[cfg(test)]
        for stamp in early {
            self.stored(user, stamp, stamp, false);
        }
        for stamp in over {
            self.links.stats.copies_given_up.add(1);
            self.inboxes.take(user, stamp);
        }
        if failed.is_empty() {
            return;
        }
        let outcome = if too_many { Outcome::InboxFull } else { Outcome::Overloaded };
        match too_many {
            true => self.links.stats.limit_store_users.add(1),
            false => self.links.stats.limit_store_mail.add(1),
        }
        for stamp in failed {
            let hopeless = self.inboxes.find(user, stamp).is_some_and(|message| is_due(message));
            if hopeless {
                self.fail_kept(user, stamp, outcome);
            }
        }
    }

    /// A message that waits cannot be stored, and is given up.
    pub(super) fn fail_kept(&mut self, user: u64, stamp: u64, outcome: Outcome) {
        let Some(message) = self.inboxes.take(user, stamp) else { return };
        let Unacked { origin, from, id, told, queued, .. } = message;
        if told {
            self.links.stats.copies_given_up.add(1);
            let known = self.desk.as_ref().and_then(|desk| desk.duplicates.find(from, id, user));
            // To a sender who was told that the store is late nothing was promised.
            if known != Some((stamp, Known::Open)) {
                self.tell_gap(user, stamp, queued);
            }
            return;
        }
        if let Some(desk) = &mut self.desk {
            desk.duplicates.forget(from, id, user);
        }
        match outcome {
            Outcome::InboxFull => self.links.stats.out_inbox_full.add(1),
            Outcome::Expired => self.links.stats.out_expired.add(1),
            _ => self.links.stats.out_overloaded.add(1),
        }
        self.tell_fate(origin, id, user, outcome, 0);
    }

    /// A registered device does not get a message whose sender has been told of another one: the store is to tell it,
    /// or the end of what it is reading. `queued`: who was given the message.
    fn tell_gap(&mut self, user: u64, stamp: u64, queued: Seats) {
        let tick = self.links.tick;
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::GapUntold) {
            return;
        }
        let Some(desk) = &mut self.desk else { return };
        self.links.stats.limit_store_gaps.add(u64::from(!desk.note_gap(tick, user, stamp)));
        desk.cursors.note(user, tick + ticks(CURSOR_MS));
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        for reader in &mut desk_of_user.readers {
            if !queued.has(self.inboxes.seat(user, reader.session)) {
                reader.lost(stamp);
            }
        }
    }

    /// The last session of a user has ended: what waits is kept. Returns what is not and has to be told of.
    pub(super) fn keep_what_waits(&mut self, user: u64) -> VecDeque<Unacked> {
        let left = self.inboxes.take_if(user, |message| message.keep == Keep::Never);
        self.store_waiting(user, Store::Offline);
        self.inboxes.drop_empty(user);
        left
    }

    /// Takes what the store has answered, as much as is a turn's. Returns how many answers.
    pub(crate) fn take_answers(&mut self) -> usize {
        let tick = self.links.tick;
        for answers in 0..STORE_ANSWERS_PER_TURN {
            let Some(desk) = &mut self.desk else { return answers };
            let Some(answer) = desk.next_answer() else { return answers };
            let is_old = desk.is_before_view(answer.token);
            if let Some(asked) = desk.answered(tick, answer.token) {
                let opened = match asked {
                    Asked::Open { user, .. } | Asked::Where { user, .. } if is_old => Some(user),
                    _ => None,
                };
                self.answered(asked, answer.reply);
                if let Some(user) = opened {
                    // Others may have added to the log between the answer and this view.
                    self.doubt(user);
                }
            }
        }
        STORE_ANSWERS_PER_TURN
    }

    fn answered(&mut self, asked: Asked, reply: Reply) {
        match asked {
            Asked::Append { user, stamp } => match reply {
                Reply::Stored { stamp: confirmed, duplicate, before } => {
                    self.account_for(user, stamp, confirmed, duplicate, before);
                    self.stored(user, stamp, confirmed, duplicate);
                }
                Reply::Refused(refusal) => self.store_refused(user, stamp, refusal),
                _ => {}
            },
            Asked::Open { conn, user } => self.store_opened(conn, user, reply),
            Asked::Where { user, session } => self.where_it_stands(user, session, reply),
            Asked::Look { user, doubts } => self.log_ends(user, doubts, &reply),
            Asked::Page { user, session } => self.page_came(user, session, reply),
            Asked::Sync { conn, aux, after } => self.sync_page(conn, aux, after, reply),
            Asked::Group(asked) => self.group_answered(asked, reply),
            Asked::Control { user, forgets, answer } => {
                let left = match &reply {
                    Reply::Done => Some(0),
                    Reply::Devices(devices) => Some(devices.len()),
                    _ => None,
                };
                if let (Some(device), Some(left)) = (forgets, left) {
                    self.forgotten(user, device, left);
                }
                // Who asked may have gone.
                let _ = answer.send(reply);
            }
        }
    }

    /// The store has a message: its sender is told, unless a device was faster, and it waits here no longer.
    fn stored(&mut self, user: u64, stamp: u64, confirmed: u64, duplicate: bool) {
        self.links.stats.stored.add(1);
        self.stamps.follow(confirmed);
        let Some(desk) = &mut self.desk else { return };
        if let Some(desk_of_user) = desk.users.get_mut(&user) {
            desk_of_user.last = desk_of_user.last.max(confirmed);
            let last = desk_of_user.last;
            if desk_of_user.readers.iter().any(|reader| reader.has_news(last)) {
                desk.cursors.note(user, self.links.tick + ticks(CURSOR_MS));
            }
        }
        if let Some(message) = self.inboxes.take(user, stamp) {
            let Unacked { origin, from, id, told, .. } = message;
            let bytes = message.payload.len();
            if told && desk.duplicates.find(from, id, user) == Some((stamp, Known::Open)) {
                // Its sender was told that the store is late, and may ask again.
                desk.duplicates.note(from, id, user, confirmed, Known::Stored);
            }
            #[cfg(test)]
            let told = told && !crate::simulation::planted(crate::simulation::Bug::ToldTwice);
            if !told {
                desk.duplicates.note(from, id, user, confirmed, Known::Stored);
                match duplicate {
                    true => self.links.stats.out_duplicate.add(1),
                    #[cfg(test)]
                    false
                        if id.is_multiple_of(5)
                            && crate::simulation::planted(crate::simulation::Bug::FateUncounted) => {}
                    false => self.links.stats.out_stored.add(1),
                }
            }
            // One that was stored before is told of again: the node may have ended before it was kept.
            let event = self.tell_stored(user, from, id, confirmed, bytes);
            self.settle_pushed((from, id, user), confirmed, Known::Stored);
            if !told {
                self.tell_stored_fate(event, origin, id, user, confirmed);
            }
        }
        if self.presence.sessions(user).is_empty() {
            self.inboxes.drop_empty(user);
        }
    }

    /// The store does not take a message. Where it is out of order, the message waits on for those to whom it was
    /// given, until its time is over.
    fn store_refused(&mut self, user: u64, stamp: u64, refusal: Refusal) {
        let tick = self.links.tick;
        let after = ticks(self.links.limits.store_after_ms);
        let online = !self.presence.sessions(user).is_empty();
        // Behind one that the store has by now it would come out of order.
        let is_overtaken = self.inboxes.of(user).any(|message| message.stamp > stamp && message.keep == Keep::Storing);
        let Some(message) = self.inboxes.find(user, stamp) else { return };
        let has_time = message.sent_tick + after > tick;
        let waits_on = match refusal {
            Refusal::Unavailable => online && !is_overtaken && has_time,
            // Another node has become the home: with the next view the message goes there.
            Refusal::Stale => has_time,
            _ => false,
        };
        if refusal == Refusal::Stale {
            self.doubt(user);
        }
        let Some(message) = self.inboxes.find(user, stamp) else { return };
        if waits_on {
            message.keep = Keep::Waiting;
            // The store may have it all the same.
            message.retry = true;
            let (queued, due, until_s) = (message.queued, message.sent_tick + after, message.until_s);
            self.note_end(user, until_s);
            self.hold_those_without(user, stamp, queued);
            if let Some(desk) = &mut self.desk {
                desk.due.note(user, due);
            }
            return;
        }
        if refusal == Refusal::Unavailable {
            let (unsure, queued) = ((stamp, message.from, message.id), message.queued);
            self.may_be_in_log(user, unsure, queued);
        }
        let outcome = match refusal {
            Refusal::UserMessages | Refusal::UserBytes => {
                self.links.stats.limit_inbox.add(1);
                Outcome::InboxFull
            }
            Refusal::StoreFull => {
                self.links.stats.limit_store_bytes.add(1);
                Outcome::InboxFull
            }
            Refusal::TooLong | Refusal::Unavailable | Refusal::Stale => Outcome::Overloaded,
        };
        self.fail_kept(user, stamp, outcome);
        if !online {
            self.inboxes.drop_empty(user);
        }
    }

    /// What is given up because the store did not answer for it may be in the log all the same: those who were given it
    /// do not need it from there.
    fn may_be_in_log(&mut self, user: u64, (stamp, from, id): (u64, u64, u64), queued: Seats) {
        let Some(desk) = self.desk.as_mut().filter(|desk| desk.shared) else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        for reader in &mut desk_of_user.readers {
            if queued.has(self.inboxes.seat(user, reader.session)) {
                reader.may_be_in_log(stamp, from, id);
            }
        }
    }

    /// Senders of messages that the store has not answered for too long are told SENT 3. It may have them all the
    /// same: who sends again with RETRY is told then.
    fn tell_late(&mut self, user: u64) {
        let tick = self.links.tick;
        let answer = ticks(self.links.limits.store_after_ms + STORE_ANSWER_MS);
        let is_late =
            |message: &Unacked| message.keep == Keep::Storing && !message.told && message.sent_tick + answer <= tick;
        let late: Vec<u64> = self.inboxes.of(user).filter(|message| is_late(message)).map(|late| late.stamp).collect();
        for stamp in late {
            let Some((origin, id)) = self.inboxes.tell(user, stamp) else { continue };
            self.links.stats.limit_store_answer.add(1);
            self.links.stats.out_overloaded.add(1);
            self.tell_fate(origin, id, user, Outcome::Overloaded, 0);
        }
    }

    /// Holds those readers of a user to whom the message at a position was not given, since it is not in the log
    /// either.
    fn hold_those_without(&mut self, user: u64, stamp: u64, queued: Seats) {
        let retry_tick = self.links.tick + ticks(RETRY_MS);
        let Some(desk) = &mut self.desk else { return };
        let Some(desk_of_user) = desk.users.get_mut(&user) else { return };
        for reader in &mut desk_of_user.readers {
            if !reader.has(stamp) && !queued.has(self.inboxes.seat(user, reader.session)) {
                reader.hold(stamp - 1);
                desk.retries.note(user, retry_tick);
            }
        }
    }

    /// What is due about the store in this tick.
    pub(super) fn expire_kept(&mut self) {
        let tick = self.links.tick;
        self.directory.expire_former(tick);
        if let Some(desk) = &mut self.desk {
            self.links.stats.limit_duplicates.add(u64::from(desk.duplicates.turn_over(tick)));
        }
        while let Some(user) = self.desk.as_mut().and_then(|desk| desk.due.take_due(tick)) {
            self.store_waiting(user, Store::Due);
            self.tell_late(user);
            let after = ticks(self.links.limits.store_after_ms);
            let answer = after + ticks(STORE_ANSWER_MS);
            let due = self.inboxes.of(user).filter_map(|message| match message.keep {
                Keep::Waiting => Some(message.sent_tick + after),
                Keep::Storing if !message.told => Some(message.sent_tick + answer),
                Keep::Storing | Keep::Never => None,
            });
            if let (Some(next), Some(desk)) = (due.min(), &mut self.desk) {
                desk.due.note(user, next.max(tick + 1));
            }
        }
        if let Some(desk) = &mut self.desk {
            desk.tell_gaps(tick);
        }
        while let Some(user) = self.desk.as_mut().and_then(|desk| desk.cursors.take_due(tick)) {
            self.tell_cursors(user);
        }
        self.look_at_doubted();
        for _ in 0..RETRIES_MAX {
            let Some(user) = self.desk.as_mut().and_then(|desk| desk.retries.take_due(tick)) else { break };
            self.try_again(user);
        }
    }

    /// Tells the store how far the devices of a user are.
    pub(super) fn tell_cursors(&mut self, user: u64) {
        let retry_tick = self.links.tick + ticks(CURSOR_MS);
        let Some(desk) = &mut self.desk else { return };
        let Desk { users, port, cursors, .. } = desk;
        let Some(desk_of_user) = users.get_mut(&user) else { return };
        let last = desk_of_user.last;
        for reader in &mut desk_of_user.readers {
            let Some(stamp) = reader.take_news(last) else { continue };
            let (device, device_epoch) = reader.device();
            if port.send(Request::Cursor { user, device, device_epoch, stamp }).is_err() {
                self.links.stats.limit_store_mail.add(1);
                reader.untell();
                cursors.note(user, retry_tick);
            }
        }
    }
}
