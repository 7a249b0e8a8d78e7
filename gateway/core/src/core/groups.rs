//! Groups: from the frames of clients to the home of a group, and from there to the store. How what it has taken comes
//! to sessions is in `fan_out`, what a cluster adds in `rooms`.
//!
//! What a session is told of a group is in the order in which the home has decided it: joins, messages and leaves go
//! through the same mailboxes.

use super::decode::Flow;
use super::fan_out::{Numbered, SENDER_BYTES, encode_delivery};
use super::far::Path;
use super::keep::CURSOR_MS;
use super::links::{TICK_MS, ticks};
use super::resent::Before;
use super::rooms::ToRoom;
use super::shard::Shard;
use crate::auth::Auth;
use crate::conn::Phase;
use crate::desk::Asked;
use crate::directory::{Home, is_remote};
use crate::groups::asked::{Asker, Effect, GroupAsked, Sending};
use crate::groups::home::Rate;
use crate::groups::interest::Joining;
use crate::groups::mail::{GroupMail, NUMBER_UNKNOWN};
use crate::groups::part::Moved;
use crate::groups::{Groups, Manner, group_home, is_room};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::io::ConnId;
use crate::limits::{STORE_ANSWER_MS, SYNC_PAGE, SYNC_PAGE_MAX};
use crate::mailbox::{Record, Room};
use crate::mesh::wire::member_change;
use futures_channel::oneshot;
use std::collections::BTreeMap;
use trunkline_proto::{
    Code, Frame, HEADER_LONG, Head, Header, Kind, Outcome, SERVICE_USERS, Sync, SyncOk, encode, encode_message, flags,
};
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::presence::Presence;
use trunkline_store::{
    GroupAsk, GroupDenial, GroupReply, Member, Page, Payload, Record as Stored, Refusal, Reply, Request, stamp_at,
};

/// After LOGIN a session is told of what is newer than this before the last stamp that it says it has: stamps of
/// different logs are not of one clock.
const HEADS_SLACK: u64 = stamp_at(10_000);
/// Sessions whose groups are asked for again in a tick, because the store did not say.
const ASKED_AGAIN_PER_TICK: usize = 1_024;
/// Read marks that go to the store in a tick.
const MARKS_PER_TICK: usize = 4_096;
const _: () = assert!(TICK_MS == 100);

/// Whether what is said behind a join does not wait for its answer: a bug, planted.
fn said_too_soon() -> bool {
    #[cfg(test)]
    return crate::simulation::planted(crate::simulation::Bug::SaidTooSoon);
    #[cfg(not(test))]
    false
}

/// What a client is told of a refusal.
pub(super) fn code_of(denial: GroupDenial) -> Code {
    match denial {
        GroupDenial::NoGroup | GroupDenial::NotAMember | GroupDenial::NotOpen => Code::NotAMember,
        GroupDenial::Muted => Code::Muted,
        GroupDenial::Full | GroupDenial::TooManyGroups | GroupDenial::NodeFull => Code::LimitReached,
        GroupDenial::RateLimited => Code::RateLimited,
    }
}

impl Shard {
    /// GROUP_SEND, GROUP_JOIN, GROUP_LEAVE, MARK.
    pub(super) fn group_frame(&mut self, slot: u32, kind: Kind, frame: &Frame<'_>) -> Flow {
        let served = if is_room(frame.peer) { self.speaks_rooms() } else { self.serves_groups() };
        if !served {
            self.links.error(slot, Code::Unsupported, frame.id, frame.peer);
            return Flow::On;
        }
        if frame.peer == 0 {
            self.links.error(slot, Code::BadRequest, frame.id, frame.peer);
            return Flow::On;
        }
        match kind {
            Kind::GroupSend => self.group_send(slot, frame),
            Kind::GroupJoin | Kind::GroupLeave if frame.aux != 0 => {
                let conn = self.links.slots.id(slot);
                self.group_attention(conn, frame.id, frame.peer, kind == Kind::GroupJoin);
                Flow::On
            }
            Kind::GroupJoin => self.group_join(slot, frame, false),
            Kind::GroupLeave => self.group_join(slot, frame, true),
            _ => {
                self.group_mark(slot, frame);
                Flow::On
            }
        }
    }

    /// A session wants to get the messages of a group however large it is, or does not any more.
    fn group_attention(&mut self, conn: ConnId, id: u64, group: u64, attends: bool) {
        // A live room has no passive sessions.
        let moved = match is_room(group) && self.groups.parts.is_in(conn, group) {
            true => Moved::Yes,
            false => self.groups.parts.attend(conn, group, attends),
        };
        if moved == Moved::NotIn {
            // It may be, and the store has not said so since its LOGIN.
            let user = self.links.slots.at(conn.slot).user;
            let code = match self.groups.asking.get_mut(&user) {
                Some(asking) if attends => match asking.wish(conn, group, id) {
                    true => return,
                    false => {
                        self.links.stats.limit_group_wishes.add(1);
                        Code::Overloaded
                    }
                },
                Some(asking) => {
                    let withdrawn = asking.withdraw(conn, group);
                    if !withdrawn.is_empty() {
                        // It is as passive as it was, and as it wants to be from now on.
                        for wish in withdrawn {
                            self.links.error(conn.slot, Code::Overloaded, wish, group);
                        }
                        return self.group_ok(conn, id, group, 0);
                    }
                    Code::Overloaded
                }
                // Its groups are among those that the store has not named yet.
                None if self.groups.later.waits(conn.slot) => Code::Overloaded,
                None => Code::NotAMember,
            };
            return self.links.error(conn.slot, code, id, group);
        }
        if moved == Moved::Missed {
            self.groups.behind.note(conn, group);
        }
        let stamp = self.groups.parts.get(group).map_or(0, |part| part.last);
        self.group_ok(conn, id, group, stamp);
    }

    fn group_send(&mut self, slot: u32, frame: &Frame<'_>) -> Flow {
        let Frame { id, peer: group, body, .. } = *frame;
        // Whoever gets it gets the sender's id besides.
        if id == 0 || HEADER_LONG + SENDER_BYTES + body.len() > self.links.limits.frame_bytes_max as usize {
            self.links.error(slot, Code::BadRequest, id, group);
            return Flow::On;
        }
        let origin = self.links.slots.id(slot);
        let from = self.links.slots.at(slot).user;
        let is_member = self.groups.parts.is_in(origin, group);
        let is_stranger = !is_room(group) && !is_member && !self.may_be_member(slot, from, group);
        if is_stranger && !self.groups.demands.may_send_as_stranger(slot) {
            self.links.stats.group_messages_in.add(1);
            self.links.stats.limit_group_member_sends.add(1);
            self.links.stats.group_rate_limited.add(1);
            self.links.error(slot, Code::RateLimited, id, group);
            return Flow::On;
        }
        // Of a durable group the store knows more than this shard.
        let is_in = !is_room(group) || is_member;
        let joins = !is_in && self.groups.joins.has(slot, group);
        if joins && !self.alone && !said_too_soon() {
            // The home of the room may be another node, which may not answer: the join may be refused, and this then too.
            self.groups.joins.hold(slot);
            return Flow::Hold;
        }
        // On a node by itself what is said behind a join goes the way that went, and gets there later.
        if !is_in && !joins {
            self.links.stats.group_messages_in.add(1);
            self.group_denied(Origin::own(self.shard, origin), id, group, frame.flags, Code::NotAMember);
            return Flow::On;
        }
        // At the group's shard of this node the sender can wait. From another one the message comes there by itself,
        // and waits with what that shard has for the node.
        if group_home(group, self.shards) == self.shard
            && let Home::There { node, .. } = self.room_home(group)
            && self.waits_for_carrier(node, body.len())
        {
            self.links.stats.mailbox_waits.add(1);
            return Flow::Wait;
        }
        let mail = GroupMail::Send { group, origin, from, id, flags: frame.flags, payload: body };
        let sent = self.send_group_home(group, &mail);
        if is_stranger && sent != Room::Wait {
            // One that waits comes here again.
            self.groups.demands.sent_as_stranger(slot);
        }
        match sent {
            Room::Wait => return Flow::Wait,
            Room::Yes => self.links.stats.group_messages_in.add(1),
            Room::No => {
                self.links.stats.group_messages_in.add(1);
                self.group_overloaded(Origin::own(self.shard, origin), id, group, frame.flags);
            }
        }
        Flow::On
    }

    /// Whether the shard cannot know yet that a session is not in a durable group: its join is under way, or the store
    /// has not named the user's groups, as behind each LOGIN.
    fn may_be_member(&self, slot: u32, user: u64, group: u64) -> bool {
        let Groups { asking, later, demands, .. } = &self.groups;
        asking.contains_key(&user) || later.waits(slot) || demands.is_asked(slot, group)
    }

    fn group_join(&mut self, slot: u32, frame: &Frame<'_>, leave: bool) -> Flow {
        let (group, id) = (frame.peer, frame.id);
        let origin = self.links.slots.id(slot);
        let user = self.links.slots.at(slot).user;
        let most = self.links.limits.groups;
        if !leave && !self.groups.parts.is_in(origin, group) {
            // How many durable groups a user has the store knows.
            let has_many = is_room(group) && self.rooms_of(slot, group) >= most.per_user_max;
            if has_many || self.groups.parts.memberships() as u64 >= most.memberships_max {
                self.links.stats.limit_group_memberships.add(1);
                self.links.error(slot, Code::LimitReached, id, group);
                return Flow::On;
            }
        }
        if !self.groups.demands.begin(slot, group, id) {
            // One session takes no room from others: it goes on with the next answer.
            self.links.stats.limit_group_joins.add(1);
            self.groups.joins.hold(slot);
            return Flow::Hold;
        }
        if is_room(group) && !leave && !self.groups.joins.begin(slot, group, id) {
            // It is asked for all the same, and what is said behind it is refused.
            self.links.stats.limit_group_joins.add(1);
        }
        let sent = self.send_group_home(group, &GroupMail::Join { group, origin, user, id, leave });
        match sent {
            Room::Yes if leave => self.groups.joins.leave(slot, group),
            Room::Yes => {}
            Room::Wait | Room::No if !leave => self.groups.joins.over(slot, group, id),
            Room::Wait | Room::No => {}
        }
        if sent != Room::Yes {
            self.groups.demands.over(slot, group, id);
        }
        match sent {
            Room::Wait => return Flow::Wait,
            Room::Yes => {}
            Room::No => self.links.error(slot, Code::Overloaded, id, group),
        }
        Flow::On
    }

    /// Rooms that a session is in, or has asked to join, but for one.
    fn rooms_of(&self, slot: u32, but_for: u64) -> u64 {
        let here = self.groups.parts.groups_of(slot).filter(|group| is_room(*group));
        let joining = self.groups.joins.of(slot).iter().map(|(room, _)| *room);
        let mut rooms: Vec<u64> = here.chain(joining).filter(|room| *room != but_for).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms.len() as u64
    }

    fn group_mark(&mut self, slot: u32, frame: &Frame<'_>) {
        let user = self.links.slots.at(slot).user;
        // Of a live room there is nothing to mark.
        if is_room(frame.peer) || self.desk.is_none() {
            return;
        }
        self.links.stats.group_marks.add(1);
        let due_tick = self.links.tick + ticks(CURSOR_MS);
        if !self.groups.marks.note(frame.peer, user, frame.stamp, due_tick)
            && !self.tell_mark(frame.peer, user, frame.stamp)
        {
            // The next mark says as much.
            self.links.stats.limit_store_mail.add(1);
        }
    }

    /// Tells the store how far a user has read a group. False if it has no room.
    fn tell_mark(&mut self, group: u64, user: u64, stamp: u64) -> bool {
        let ask = Box::new(GroupAsk::Mark { user, stamp });
        let request = Request::Group { group, ask, token: None };
        self.desk.as_mut().is_some_and(|desk| desk.port.send(request).is_ok())
    }

    /// Read marks go to the store.
    fn tell_marks(&mut self) {
        if !self.groups.marks.are_due(self.links.tick) && self.drain.is_none() {
            return;
        }
        for _ in 0..MARKS_PER_TICK {
            let Some((group, user, stamp)) = self.groups.marks.take() else { return };
            if !self.tell_mark(group, user, stamp) {
                self.links.stats.limit_store_mail.add(1);
                return self.groups.marks.put_back((group, user, stamp), self.links.tick + ticks(CURSOR_MS));
            }
        }
    }

    /// Hands a word to the home of a group, by way of the mailbox if that is another shard.
    pub(super) fn send_group_home(&mut self, group: u64, mail: &GroupMail<'_>) -> Room {
        let home = group_home(group, self.shards);
        if home == self.shard {
            self.take_group_mail(self.shard, mail);
            return Room::Yes;
        }
        let record = Record::Group(*mail);
        let room = self.outgoing.room(home, record.encoded_len(), self.links.tick);
        match room {
            Room::Yes => self.outgoing.put(home, &record),
            Room::Wait => self.links.stats.mailbox_waits.add(1),
            Room::No => self.links.stats.limit_mailbox.add(1),
        }
        room
    }

    /// Says something to a shard that must not get lost. Each such word answers one, or there is at most one for each
    /// part.
    pub(super) fn tell_group(&mut self, shard: u16, mail: &GroupMail<'_>) {
        if shard == self.shard {
            self.take_group_mail(shard, mail);
        } else {
            self.outgoing.put(shard, &Record::Group(*mail));
        }
    }

    /// Takes a word about a group from a shard, perhaps this one.
    pub(super) fn take_group_mail(&mut self, from_shard: u16, mail: &GroupMail<'_>) {
        match *mail {
            GroupMail::Send { group, origin, from, id, flags, payload } => {
                let origin = Origin::own(from_shard, origin);
                self.group_arrived(group, origin, from, id, flags, payload);
            }
            GroupMail::Join { group, origin, user, id, leave } => {
                self.group_join_arrived(group, Origin::own(from_shard, origin), user, id, leave);
            }
            GroupMail::Watch { group, watch: true } => {
                self.groups.homes.watch(group, from_shard);
                self.room_watched(group);
                let home = self.groups.homes.at(group);
                let head = GroupMail::Head { group, last: home.last, number: home.number };
                // What another node counts is told when that has said where it is.
                if is_room(group) || self.numbers_group(group) || self.groups.interests.is_confirmed(group) {
                    self.tell_group(from_shard, &head);
                }
            }
            GroupMail::Watch { group, watch: false } => {
                self.groups.homes.unwatch(group, from_shard);
                self.room_unwatched(group);
            }
            GroupMail::Copy { group, shard, origin, from, id, stamp, number, manner, payload } => {
                let origin = (shard == self.shard).then_some(origin);
                self.group_copy(group, origin, from, id, stamp, number, manner, payload);
            }
            GroupMail::Head { group, last, number } => self.group_head(group, last, number),
            GroupMail::Member { group, user, joined, last, number, session } => {
                self.group_member(group, user, joined, last, number, session);
            }
            // Others have come before it since it asked.
            GroupMail::Ok { group, conn, id, joined: true, .. } if self.has_no_place(conn, group) => {
                self.group_refused(group, conn, id, Code::LimitReached);
            }
            GroupMail::Ok { group, conn, id, stamp, .. } => self.group_ok(conn, id, group, stamp),
            GroupMail::Refused { group, conn, id, code } => {
                if let Some(code) = Code::from_u16(code) {
                    self.group_refused(group, conn, id, code);
                }
            }
            GroupMail::Ended { group } => self.groups.parts.end(group),
            GroupMail::Missed => self.look_again_at_groups(),
        }
    }

    /// Whether a session is in no part, and there is no place for it.
    fn has_no_place(&self, conn: ConnId, group: u64) -> bool {
        let most = self.links.limits.groups.memberships_max;
        self.groups.parts.memberships() as u64 >= most && !self.groups.parts.is_in(conn, group)
    }

    fn group_refused(&mut self, group: u64, conn: ConnId, id: u64, code: Code) {
        if self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open) {
            self.group_join_over(conn.slot, group, id);
            self.links.error(conn.slot, code, id, group);
        }
    }

    /// A join of a room is answered, if it was one: what the session has said behind it goes on.
    fn group_join_over(&mut self, slot: u32, group: u64, id: u64) {
        self.groups.joins.over(slot, group, id);
        self.groups.demands.over(slot, group, id);
        if self.groups.joins.take_held(slot) {
            self.links.go_on(slot);
        }
    }

    fn group_ok(&mut self, conn: ConnId, id: u64, group: u64, stamp: u64) {
        if self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open) {
            self.group_join_over(conn.slot, group, id);
            let header = Header { kind: Kind::GroupOk, flags: 0, aux: 0, id, peer: group, stamp };
            self.links.reply(conn.slot, |out| encode(out, &header, &[]));
            // What was passed on before the store had answered the join did not come to the session.
            let missed = !is_room(group) && self.groups.parts.get(group).is_some_and(|part| part.last > stamp);
            if missed && self.groups.parts.is_in(conn, group) {
                self.groups.behind.note(conn, group);
            }
        }
    }

    /// A message of a session is refused: SENT 4 where that was asked for, else ERROR.
    pub(super) fn group_denied(&mut self, origin: Origin, id: u64, group: u64, of_message: u8, code: Code) {
        self.links.stats.group_denied.add(1);
        if of_message & flags::ACK != 0 {
            return self.tell_fate(origin, id, group, Outcome::Denied, 0);
        }
        self.group_refuse(origin, id, group, code);
    }

    /// ERROR for a session, wherever it is.
    pub(super) fn group_refuse(&mut self, origin: Origin, id: u64, group: u64, code: Code) {
        if origin.node != NodeKey::OWN {
            return self.refuse_away(origin, id, group, code);
        }
        let code = code.as_u16();
        self.tell_group(origin.shard, &GroupMail::Refused { group, conn: origin.conn, id, code });
    }

    pub(super) fn group_overloaded(&mut self, origin: Origin, id: u64, group: u64, of_message: u8) {
        self.links.stats.group_overloaded.add(1);
        if of_message & flags::ACK != 0 {
            self.tell_fate(origin, id, group, Outcome::Overloaded, 0);
        }
    }

    /// A message is at the shard that is the home of its group, if that is this node.
    fn group_arrived(&mut self, group: u64, origin: Origin, from: u64, id: u64, of_message: u8, payload: &[u8]) {
        if !self.alone {
            let path = Path::OWN;
            return self.room_message(&ToRoom { group, origin, from, id, flags: of_message, path, payload });
        }
        if !self.is_within_rates(group, origin, from, id, of_message) {
            return;
        }
        self.take_as_home(group, origin, from, id, of_message, payload);
    }

    /// A message is at the home of its group, and within the rates.
    pub(super) fn take_as_home(
        &mut self,
        group: u64,
        origin: Origin,
        from: u64,
        id: u64,
        of_message: u8,
        payload: &[u8],
    ) {
        if is_room(group) {
            if self.was_pushed_to_room(group, from, id, of_message) {
                self.links.stats.group_duplicates.add(1);
                if of_message & flags::ACK != 0 {
                    self.tell_fate(origin, id, group, Outcome::Accepted, 0);
                }
                return;
            }
            return self.pass_on(group, origin, from, id, of_message, payload);
        }
        if !self.alone && !self.reign_over_log(group) {
            return self.group_overloaded(origin, id, group, of_message);
        }
        let acked = of_message & flags::ACK != 0;
        let (retry, no_store) = (of_message & flags::RETRY != 0, of_message & flags::NO_STORE != 0);
        let before = match no_store {
            false => self.sent_to_group_before(group, from, id, retry),
            true => Before::Unknown(None),
        };
        let retry = match before {
            Before::Stored(stamp) => {
                self.links.stats.group_duplicates.add(1);
                if acked {
                    self.tell_fate(origin, id, group, Outcome::Stored, stamp);
                }
                return;
            }
            Before::Unknown(look) => look,
        };
        let stamp = self.next_stamp();
        let payload = Payload::from(payload);
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::FannedOutEarly) {
            let (origin, manner) = (Some(origin), Manner::default());
            self.group_fan_out(Numbered { group, origin, from, id, stamp, number: 0, manner, payload: &payload });
        }
        let sending = Box::new(Sending {
            group,
            origin: Some(origin),
            from,
            id,
            stamp,
            acked,
            payload: payload.clone(),
            told: false,
            answer: None,
        });
        if self.ask_to_send(sending, retry, no_store).is_err() {
            self.group_overloaded(origin, id, group, of_message);
        }
    }

    /// Counts a message in this second. The same for all, however they come.
    pub(super) fn count_in_rates(&mut self, group: u64, from: u64) -> Rate {
        let most = self.links.limits.groups;
        let rate = self.groups.homes.count(group, from, most.sends_per_sec, most.member_sends_per_sec);
        match rate {
            Rate::Within => {}
            Rate::Group => self.links.stats.limit_group_sends.add(1),
            Rate::Member => self.links.stats.limit_group_member_sends.add(1),
        }
        rate
    }

    /// Whether a message may be taken in this second; its sender is told if not.
    pub(super) fn is_within_rates(&mut self, group: u64, origin: Origin, from: u64, id: u64, of_message: u8) -> bool {
        match self.count_in_rates(group, from) {
            Rate::Within => return true,
            Rate::Group => self.group_overloaded(origin, id, group, of_message),
            // Nobody is told but by an outcome.
            Rate::Member if from >= SERVICE_USERS => self.group_overloaded(origin, id, group, of_message),
            Rate::Member => {
                self.links.stats.group_rate_limited.add(1);
                self.group_refuse(origin, id, group, Code::RateLimited);
            }
        }
        false
    }

    /// A message to a live room gets its place in it and goes to all who are in.
    pub(super) fn pass_on(&mut self, group: u64, origin: Origin, from: u64, id: u64, of_message: u8, payload: &[u8]) {
        // What another home has passed on may be of a clock that is ahead.
        let last = self.groups.homes.get(group).map_or(0, |home| home.last);
        let stamp = self.next_stamp().max(last.saturating_add(1));
        self.links.stats.group_accepted.add(1);
        if of_message & flags::ACK != 0 {
            self.tell_fate(origin, id, group, Outcome::Accepted, stamp);
        }
        let (origin, manner) = (Some(origin), Manner::default());
        self.group_fan_out(Numbered { group, origin, from, id, stamp, number: 0, manner, payload });
    }

    /// Asks the store to keep a message, or whether its sender may send. `retry`: it may be in the log above that
    /// position.
    pub(super) fn ask_to_send(
        &mut self,
        sending: Box<Sending>,
        retry: Option<u64>,
        no_store: bool,
    ) -> Result<(), Box<Sending>> {
        let Sending { group, from, id, stamp, .. } = *sending;
        let ask = match no_store {
            true => GroupAsk::Admit { from, stamp },
            false => {
                let record = Stored { stamp, from, id, flags: 0, payload: sending.payload.clone() };
                GroupAsk::Append { record, retry }
            }
        };
        let tick = self.links.tick;
        let Some(desk) = &mut self.desk else { return Err(sending) };
        let request = |token| Request::Group { group, ask: Box::new(ask), token: Some(token) };
        match desk.ask(tick, Asked::Group(GroupAsked::Send(sending)), request) {
            Ok(()) => {
                self.groups.unanswered.push_back((tick, desk.last_token()));
                self.groups.homes.at(group).asked += 1;
                if !no_store {
                    // One that is looked for among the last minutes' alone did not say that it is sent again.
                    self.note_sent_to_group(group, from, id, stamp, retry == Some(0));
                }
                Ok(())
            }
            Err(Asked::Group(GroupAsked::Send(sending))) => {
                self.links.stats.limit_store_mail.add(1);
                Err(sending)
            }
            Err(_) => Ok(()),
        }
    }

    fn group_join_arrived(&mut self, group: u64, origin: Origin, user: u64, id: u64, leave: bool) {
        if is_room(group) {
            return self.room_join_arrived(group, Joining { origin, user, id }, leave);
        }
        let create = matches!(self.auth.get(), Auth::Open);
        let ask = match leave {
            true => GroupAsk::Leave { user },
            false => GroupAsk::Join { user, member: Member::default(), added: false, create },
        };
        let asker = Asker::Session { origin, id, user };
        self.ask_group_home(group, ask, asker);
    }

    /// What the store has answered about a group.
    pub(super) fn group_answered(&mut self, asked: GroupAsked, reply: Reply) {
        match asked {
            GroupAsked::Send(sending) => self.group_sent(*sending, reply),
            GroupAsked::Home { group, effect, asker } => {
                let done = match group_reply_of(&reply) {
                    Some(GroupReply::Joined { last, .. } | GroupReply::Left { last, .. }) => Some(*last),
                    Some(GroupReply::Deleted { news: true, .. }) => Some(0),
                    _ => None,
                };
                match (effect, done) {
                    (Effect::Joined(user), Some(last)) => self.group_changed(group, user, true, last),
                    (Effect::Left(user), Some(last)) => self.group_changed(group, user, false, last),
                    (Effect::Ended, Some(_)) => {
                        for shard in self.groups.homes.end(group) {
                            self.tell_group(shard, &GroupMail::Ended { group });
                        }
                        self.tell_nodes_of_member(group, 0, 0, member_change::ENDED);
                        self.groups.homes.forget_if_idle(group);
                    }
                    (Effect::Joined(_) | Effect::Left(_) | Effect::Ended, None)
                        if matches!(reply, Reply::Refused(Refusal::Unavailable)) =>
                    {
                        self.membership_unknown();
                    }
                    _ => {}
                }
                self.answer_asker(group, asker, reply);
            }
            GroupAsked::Claim { group, number } => self.group_claimed(group, number, reply),
            GroupAsked::Of { conn, user, last_stamp } => self.groups_of_user(conn, user, last_stamp, reply),
            GroupAsked::Sync { conn, aux, group, after, since } => {
                self.group_page(conn, aux, group, [after, since], reply);
            }
        }
    }

    /// A user has become a member of a durable group, or is none: its sessions are told.
    fn group_changed(&mut self, group: u64, user: u64, joined: bool, last: u64) {
        let shard = home_shard(user, u32::from(self.shards)) as u16;
        let mut number = 0;
        if joined {
            self.links.stats.group_joins.add(1);
            let home = self.groups.homes.watch(group, shard);
            // In a cluster the answer to a claim says it, and all are told if they do not know.
            if self.alone {
                home.last = home.last.max(last);
            }
            number = home.number;
        } else {
            self.links.stats.group_leaves.add(1);
        }
        let last = self.groups.homes.get(group).map_or(last, |home| home.last.max(last));
        self.tell_group(shard, &GroupMail::Member { group, user, joined, last, number, session: None });
        let change = if joined { member_change::JOINED } else { member_change::LEFT };
        self.tell_nodes_of_member(group, user, last, change);
    }

    /// The store has a message, or lets it pass, or does not: its sender is told, and all others get it.
    fn group_sent(&mut self, sending: Sending, reply: Reply) {
        let Sending { group, origin, from, id, stamp, acked, payload, told, answer } = sending;
        self.groups.homes.answered(group);
        if let Some(asker) = answer {
            self.answer_asker(group, asker, reply.clone());
        }
        let tells = acked && !told;
        let of_message = if tells { flags::ACK } else { 0 };
        match group_reply(reply) {
            Ok(GroupReply::Stored { stamp, duplicate, members, before }) => {
                self.stamps.follow(stamp);
                if !self.alone && !duplicate {
                    self.follow_log(group, before, stamp);
                }
                self.note_stored_in_group(group, from, id, stamp);
                match duplicate {
                    true => self.links.stats.group_duplicates.add(1),
                    false => self.links.stats.group_stored.add(1),
                }
                if let Some(origin) = origin.filter(|_| tells) {
                    self.tell_fate(origin, id, group, Outcome::Stored, stamp);
                }
                #[cfg(test)]
                let duplicate = duplicate || crate::simulation::planted(crate::simulation::Bug::FannedOutEarly);
                // What an earlier home has stored is in the end of the log that the present one is told.
                match !duplicate && self.numbers_group(group) {
                    true if self.alone || self.serving => {
                        let manner = Manner { passive: self.is_large(group, members), unkept: false };
                        let payload = &payload;
                        self.group_fan_out(Numbered { group, origin, from, id, stamp, number: 0, manner, payload });
                    }
                    true => self.pass_over(group, stamp),
                    false => {}
                }
            }
            // Its home is another node by now, which knows nothing of it.
            Ok(GroupReply::Admitted { .. }) if !(self.alone || self.serving && self.numbers_group(group)) => {
                match origin {
                    Some(origin) => self.group_overloaded(origin, id, group, of_message),
                    None => self.links.stats.group_overloaded.add(1),
                }
            }
            Ok(GroupReply::Admitted { members }) => {
                self.links.stats.group_accepted.add(1);
                let last = self.groups.homes.get(group).map_or(0, |home| home.last);
                let stamp = stamp.max(last + 1);
                self.stamps.follow(stamp);
                if let Some(origin) = origin.filter(|_| tells) {
                    self.tell_fate(origin, id, group, Outcome::Accepted, stamp);
                }
                let manner = Manner { passive: self.is_large(group, members), unkept: true };
                self.group_fan_out(Numbered { group, origin, from, id, stamp, number: 0, manner, payload: &payload });
            }
            Ok(GroupReply::Denied(denial)) if !told => match origin {
                Some(origin) => self.group_denied(origin, id, group, of_message, code_of(denial)),
                None => self.links.stats.group_denied.add(1),
            },
            Err(refusal) => {
                if refusal.is_none_or(|refusal| refusal == Refusal::Unavailable) {
                    self.log_unknown(group);
                }
                if told {
                    return self.groups.homes.forget_if_idle(group);
                }
                self.links.stats.limit_store_bytes.add(u64::from(refusal == Some(Refusal::StoreFull)));
                match origin {
                    Some(origin) => self.group_overloaded(origin, id, group, of_message),
                    None => self.links.stats.group_overloaded.add(1),
                }
            }
            _ => {}
        }
        self.groups.homes.forget_if_idle(group);
    }

    /// Whether sessions of a group with so many members are told by HEADS alone.
    fn is_large(&mut self, group: u64, members: u32) -> bool {
        self.groups.homes.at(group).is_large(members, self.links.limits.groups.passive_above)
    }

    /// A user of this shard is a member of a group from now on, or is none.
    fn group_member(&mut self, group: u64, user: u64, joined: bool, last: u64, number: u64, session: Option<ConnId>) {
        // What is of one session alone says nothing of the others.
        if let Some(asking) = self.groups.asking.get_mut(&user).filter(|_| session.is_none()) {
            asking.events.push((group, joined));
        }
        let conns: Vec<ConnId> = match session {
            Some(conn) => vec![conn],
            None => {
                let slots = self.presence.sessions(user).iter().map(|entry| entry.slot);
                let slots = slots.filter(|slot| !is_remote(*slot));
                slots.map(|slot| self.links.slots.id(slot)).collect()
            }
        };
        let conns = conns.into_iter().filter(|conn| {
            self.links.slots.get(*conn).is_some_and(|conn| conn.phase == Phase::Open && conn.user == user)
        });
        let number = (number != NUMBER_UNKNOWN).then_some(number);
        for conn in conns.collect::<Vec<_>>() {
            if joined {
                let was_in = self.groups.parts.is_in(conn, group);
                self.enter_part(conn, group, last, number);
                // What was passed on between the join and this word of it did not come to the session.
                let missed = self.groups.parts.get(group).is_some_and(|part| part.last > last);
                if missed && !was_in && !is_room(group) {
                    self.groups.behind.note(conn, group);
                }
                continue;
            }
            if session.is_some() && !is_room(group) && self.groups.parts.is_in(conn, group) {
                // What the home tells of the leave is late, or was followed by a join that it has told already.
                self.groups.later.add(conn, user, None, self.links.tick);
            }
            if self.leaves_part(conn, group) {
                self.unwatch(group);
            }
        }
        // The home has counted on this shard.
        if joined && self.groups.parts.get(group).is_none() {
            self.unwatch(group);
        }
    }

    fn leaves_part(&mut self, conn: ConnId, group: u64) -> bool {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::LeaveIgnored) {
            return false;
        }
        self.groups.parts.leave(conn, group)
    }

    /// Takes a session into a group, which has everything up to `last` or is told of it. `number` is where the home is,
    /// if it has said so with that.
    fn enter_part(&mut self, conn: ConnId, group: u64, last: u64, number: Option<u64>) {
        let most = self.links.limits.groups.memberships_max;
        if self.groups.parts.memberships() as u64 >= most {
            return self.links.stats.limit_group_memberships.add(1);
        }
        let has_more = !is_room(group) && self.groups.parts.get(group).is_some_and(|part| part.last > last);
        let is_late = has_more && !self.groups.parts.is_in(conn, group);
        if self.groups.parts.join(conn, group, last, number.unwrap_or(0)) {
            if let Some(part) = self.groups.parts.get_mut(group) {
                part.unheard = number.is_none();
            }
            let home = group_home(group, self.shards);
            self.tell_group(home, &GroupMail::Watch { group, watch: true });
        }
        if is_late {
            // That has come here before, and was given to the others.
            self.groups.behind.note(conn, group);
        }
    }

    pub(super) fn unwatch(&mut self, group: u64) {
        let home = group_home(group, self.shards);
        self.tell_group(home, &GroupMail::Watch { group, watch: false });
    }

    /// A session has begun, and said up to where it has everything: the store is asked for its groups. Without that they
    /// are looked at again, and it is told of what is news.
    pub(super) fn begin_groups(&mut self, conn: ConnId, user: u64, last_stamp: Option<u64>) {
        if !self.serves_groups() {
            return;
        }
        let tick = self.links.tick;
        let Some(desk) = &mut self.desk else { return };
        // A store that others have too does not know how many there are.
        if !desk.shared && desk.port.memberships() == 0 {
            return;
        }
        let ask = Box::new(GroupAsk::Of { user });
        let request = |token| Request::Group { group: 0, ask, token: Some(token) };
        if desk.ask(tick, Asked::Group(GroupAsked::Of { conn, user, last_stamp }), request).is_ok() {
            self.groups.asking.entry(user).or_default().questions += 1;
        } else {
            self.links.stats.limit_store_mail.add(1);
            self.ask_for_groups_later(conn, user, last_stamp);
        }
    }

    fn ask_for_groups_later(&mut self, conn: ConnId, user: u64, last_stamp: Option<u64>) {
        self.groups.later.add(conn, user, last_stamp, self.links.tick);
    }

    fn groups_of_user(&mut self, conn: ConnId, user: u64, last_stamp: Option<u64>, reply: Reply) {
        let (mut events, mut wishes) = (Vec::new(), Vec::new());
        if let Some(asking) = self.groups.asking.get_mut(&user) {
            asking.questions -= 1;
            events = asking.events.clone();
            if asking.questions == 0 {
                wishes = self.groups.asking.remove(&user).map_or(Vec::new(), |asking| asking.wishes);
            }
        }
        self.groups_looked_up(conn, user, last_stamp, reply, events);
        for (conn, group, id) in wishes {
            if self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open) {
                self.group_attention(conn, id, group, true);
            }
        }
    }

    fn groups_looked_up(
        &mut self,
        conn: ConnId,
        user: u64,
        last_stamp: Option<u64>,
        reply: Reply,
        events: Vec<(u64, bool)>,
    ) {
        let is_there = self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open && conn.user == user);
        if !is_there {
            return;
        }
        let (memberships, complete) = match group_reply(reply) {
            Ok(GroupReply::Of(memberships)) => (memberships, true),
            Ok(GroupReply::OfSome(memberships)) => (memberships, false),
            _ => return self.ask_for_groups_later(conn, user, last_stamp),
        };
        if complete {
            self.groups.later.over(conn.slot);
        } else {
            // What is known counts already. The rest is news then, whatever the session has said that it has.
            self.ask_for_groups_later(conn, user, None);
        }
        // They are newer than the answer, or say the same. Of each group the last one counts: to be taken out and in
        // again would cost a session what is on its way to it.
        let events: BTreeMap<u64, bool> = events.into_iter().collect();
        let mut heads = Vec::new();
        for membership in &memberships {
            let group = membership.group;
            if events.get(&group) == Some(&false) {
                continue;
            }
            // Some may have come here since the store has answered: the session is not given it either.
            let last = self.groups.parts.get(group).map_or(0, |part| part.last).max(membership.last);
            if last_stamp.is_none() {
                if self.groups.parts.is_in(conn, group) {
                    // Whoever was told less has missed something.
                    self.group_is_at(group, membership.last);
                    continue;
                }
                if last > 0 {
                    heads.push(Head { group, stamp: last, read: membership.read, seq: 0, unread: 0 });
                }
            }
            #[cfg(test)]
            if group % 2 == 1 && crate::simulation::planted(crate::simulation::Bug::GroupNotEntered) {
                continue;
            }
            self.enter_part(conn, group, last, None);
            let (stamp, seq) =
                self.groups.parts.get(group).map_or((membership.last, 0), |part| (part.last, part.number));
            if stamp > 0 && last_stamp.is_some_and(|last| stamp > last.saturating_sub(HEADS_SLACK)) {
                heads.push(Head { group, stamp, read: membership.read, seq, unread: 0 });
            }
        }
        let is_in = |group: u64| {
            let is_listed = || memberships.binary_search_by_key(&group, |membership| membership.group).is_ok();
            events.get(&group).copied().unwrap_or_else(is_listed)
        };
        // Nobody is out of a group because it could not be asked.
        let others = self.groups.parts.groups_of(conn.slot).filter(|_| complete);
        let others = others.filter(|group| !is_room(*group) && !is_in(*group));
        for group in others.collect::<Vec<_>>() {
            if self.leaves_part(conn, group) {
                self.unwatch(group);
            }
        }
        for (group, joined) in events {
            if joined {
                self.enter_part(conn, group, 0, None);
            } else if self.leaves_part(conn, group) {
                self.unwatch(group);
            }
        }
        self.send_heads(conn.slot, heads);
    }

    /// The session of a connection has ended.
    pub(super) fn leave_parts(&mut self, slot: u32) {
        self.groups.joins.end(slot);
        self.groups.demands.end(slot);
        self.groups.later.end(slot);
        for group in self.groups.parts.leave_all(slot) {
            self.unwatch(group);
        }
    }

    /// What is due about groups in this tick.
    pub(super) fn expire_groups(&mut self) {
        let tick = self.links.tick;
        self.groups.homes.pass(tick);
        self.groups.demands.pass(tick);
        self.tell_marks();
        let mut owed: Vec<(u16, u64)> = self.groups.homes.owed.drain().collect();
        // Not in the order of a table.
        owed.sort_unstable();
        for (shard, group) in owed {
            let Some(home) = self.groups.homes.get(group).filter(|home| home.shards.contains(&shard)) else { continue };
            let head = GroupMail::Head { group, last: home.last, number: home.number };
            if self.outgoing.has_room(shard, head.encoded_len()) {
                self.tell_group(shard, &head);
            } else {
                self.groups.homes.owed.insert((shard, group));
            }
        }
        self.expire_rooms();
        self.expire_shared_groups();
        self.tell_those_behind();
        self.tell_passive();
        self.tell_late_groups();
        let may_ask = self.serves_groups() && (self.alone || self.serving);
        for _ in 0..if may_ask { ASKED_AGAIN_PER_TICK } else { 0 } {
            let Some((conn, user, last_stamp)) = self.groups.later.take_due(tick) else { break };
            if self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open && conn.user == user) {
                self.begin_groups(conn, user, last_stamp);
            }
        }
    }

    /// Senders of messages that the store has not answered for too long are told SENT 3. It may have them all the same.
    fn tell_late_groups(&mut self) {
        let tick = self.links.tick;
        let answer = ticks(STORE_ANSWER_MS + self.links.limits.store_after_ms);
        while let Some((asked_tick, token)) = self.groups.unanswered.front().copied() {
            let Some(desk) = &mut self.desk else { return };
            let sending = match desk.asked_mut(token) {
                Some(Asked::Group(GroupAsked::Send(sending))) => Some(sending),
                _ => None,
            };
            if sending.is_some() && asked_tick + answer > tick {
                return;
            }
            self.groups.unanswered.pop_front();
            let Some(sending) = sending else { continue };
            let told = std::mem::replace(&mut sending.told, true);
            let Sending { origin: Some(origin), id, group, acked: true, .. } = **sending else { continue };
            if !told {
                self.links.stats.limit_store_answer.add(1);
                self.links.stats.group_overloaded.add(1);
                self.tell_fate(origin, id, group, Outcome::Overloaded, 0);
            }
        }
    }

    /// SYNC of a group. What it is refused for names the group: an ERROR without could be one of WATCH, or of another
    /// SYNC.
    pub(super) fn sync_group(&mut self, slot: u32, aux: u16, sync: &Sync) {
        let Sync { after_stamp, since_ms, limit, group } = *sync;
        let conn = self.links.slots.id(slot);
        let user = self.links.slots.at(slot).user;
        if is_room(group) || !self.serves_groups() {
            return self.links.error(slot, Code::Unsupported, 0, group);
        }
        let limit = if limit == 0 { SYNC_PAGE } else { limit.min(SYNC_PAGE_MAX) };
        let bytes_max = (self.links.limits.outbox_bytes_max / 2) as u32;
        let (after, since) = (after_stamp, stamp_at(since_ms).saturating_sub(1));
        let ask = Box::new(GroupAsk::Read { user: Some(user), after: after_stamp, since_ms, limit, bytes_max });
        let request = |token| Request::Group { group, ask, token: Some(token) };
        let tick = self.links.tick;
        let Some(desk) = &mut self.desk else { return };
        match desk.ask(tick, Asked::Group(GroupAsked::Sync { conn, aux, group, after, since }), request) {
            Ok(()) => desk.begin_sync(conn),
            Err(_) => {
                self.links.stats.limit_store_mail.add(1);
                self.links.error(slot, Code::Overloaded, 0, group);
            }
        }
    }

    fn group_page(&mut self, conn: ConnId, aux: u16, group: u64, [after, since]: [u64; 2], reply: Reply) {
        if let Some(desk) = &mut self.desk {
            desk.end_sync(conn);
        }
        let Some(known) = self.links.slots.get(conn).filter(|conn| conn.phase == Phase::Open) else { return };
        let (slot, user) = (conn.slot, known.user);
        let (page, next) = match group_reply(reply) {
            Ok(GroupReply::Page { page, next }) => (page, next),
            Ok(GroupReply::Denied(_)) => return self.links.error(slot, Code::NotAMember, 0, group),
            _ => return self.links.error(slot, Code::ServiceUnavailable, 0, group),
        };
        let Page { records, floor, last, complete, truncated } = page;
        for record in &records {
            let own = if record.from == user { flags::SELF } else { 0 };
            let (id, stamp, flags) = (record.id, record.stamp, flags::REPLAY | own);
            let header = Header { kind: Kind::GroupDeliver, flags, aux: 0, id, peer: group, stamp };
            self.links.reply(slot, |out| encode_delivery(out, &header, record.from, &record.payload));
        }
        self.links.stats.group_replays.add(records.len() as u64);
        // A client that comes back with it says that it has had what is there. A time may lie behind all of it.
        let next_stamp = next.max(after).max(since.min(last));
        let sync_ok = SyncOk { next_stamp, complete, truncated, group, floor, last };
        self.links.reply(slot, |out| encode_message(out, Kind::SyncOk, aux, &sync_ok));
        self.links.pause_if_full(slot);
    }

    /// Asks about a group whose home this shard is, on behalf of the control thread.
    pub(crate) fn ask_group(&mut self, group: u64, ask: GroupAsk, answer: oneshot::Sender<Reply>) {
        match self.alone {
            true => self.ask_as_home(group, ask, Asker::Control(answer)),
            false => self.ask_group_of_cluster(group, ask, answer),
        }
    }

    pub(super) fn set_group_gauges(&self) {
        let (stats, groups) = (&self.links.stats, &self.groups);
        stats.group_parts.set(groups.parts.len() as u64);
        stats.group_sessions.set(groups.parts.memberships() as u64);
        stats.group_homes.set(groups.homes.len() as u64);
        stats.group_queue_bytes.set(groups.parts.queued_bytes() as u64);
        stats.group_passive.set(groups.parts.passive() as u64);
        stats.group_attentive.set(groups.parts.attentive() as u64);
        stats.group_behind.set(groups.behind.len() as u64);
        stats.group_relays.set(groups.interests.len() as u64);
        stats.group_news_owed.set(groups.away.owed() as u64);
        stats.group_joins_waiting.set((groups.interests.waiting() + groups.away.waiting()) as u64);
    }
}

/// What came of a request about a group; the refusal if the store did nothing.
fn group_reply(reply: Reply) -> Result<GroupReply, Option<Refusal>> {
    match reply {
        Reply::Group(reply) => Ok(*reply),
        Reply::Refused(refusal) => Err(Some(refusal)),
        _ => Err(None),
    }
}

fn group_reply_of(reply: &Reply) -> Option<&GroupReply> {
    match reply {
        Reply::Group(reply) => Some(reply),
        _ => None,
    }
}
