//! What a connection says and hears of groups.

use std::time::Duration;

use tokio::time::Instant;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Code, Frame, Heads, Outcome, SyncOk, flags};

use super::{Ended, Session};
use crate::group_asks::{Act, Asked, GroupAsk, may_refuse_page};
use crate::{Error, Event, GroupMessage, Reason, is_live_room, random};

/// How long messages wait for live rooms to be joined again. Answers come at once; without one they are sent all the
/// same.
const REJOIN_WAIT: Duration = Duration::from_secs(5);

/// Number of the SYNCs of groups: there is one at a time, and its SYNC_OK names the group.
const GROUP_PAGE: u16 = 1;

impl Session<'_> {
    /// The connection begins: a session is in no live room, so those of the one before are joined again.
    pub(super) fn begin_groups(&mut self) {
        self.state.groups.connected();
        self.rejoined_by = Instant::now() + REJOIN_WAIT;
        for group in self.state.groups.rooms() {
            let id = self.state.shared.ids.next();
            self.ask_about_group(id, Asked::new(group, Act::Rejoin, 0, None));
        }
        // Attention ends with a session too. What it is refused for, HEADS tells.
        for group in self.state.groups.open_groups() {
            let id = self.state.shared.ids.next();
            self.ask_about_group(id, Asked::new(group, Act::Open, 0, None));
        }
    }

    /// When attention is to be asked for that the gateway could not give yet, if there is room for the question.
    pub(super) fn attention_due(&self) -> Option<Instant> {
        let may_ask = self.closing.is_none() && self.out.has_room_for_answers();
        self.group_asks.attention.due().filter(|_| may_ask)
    }

    /// Asks for it.
    pub(super) fn ask_for_attention_again(&mut self, now: Instant) {
        while self.attention_due().is_some()
            && let Some(asked) = self.group_asks.attention.take_due(now)
        {
            let id = self.state.shared.ids.next();
            self.ask_about_group(id, asked);
        }
    }

    /// Live rooms are being joined again, and a message to them would be refused.
    pub(super) fn waits_for_rooms(&self) -> bool {
        self.group_asks.is_rejoining() && Instant::now() < self.rejoined_by
    }

    fn ask_about_group(&mut self, id: u64, asked: Asked) {
        let ((kind, aux), group) = (asked.act.frame(), asked.group);
        self.group_asks.ask(id, asked);
        self.out.about_group(kind, aux, id, group, 0);
    }

    pub(super) fn ask_group(&mut self, GroupAsk { group, id, act, answer }: GroupAsk) {
        let is_too_many = act == Act::Join && is_live_room(group) && !self.state.groups.has_room();
        let refusal = match () {
            () if !self.group_asks.has_room() => Some((Code::RateLimited, "too many joins and leaves are under way")),
            () if is_too_many => Some((Code::LimitReached, "this client is in as many groups as it can be")),
            () => None,
        };
        if let Some((code, text)) = refusal {
            // A caller that no longer waits has no interest in the refusal.
            drop(answer.send(Err(Error::Refused { code: code.as_u16(), text: text.into() })));
            return;
        }
        if act == Act::Leave && is_live_room(group) {
            // Even if the answer does not come: the next connection is not in it.
            self.state.groups.left(group);
        }
        if matches!(act, Act::Open | Act::Close | Act::Leave)
            && let Some(asked) = self.group_asks.outdate(group)
        {
            let text = "something else was asked for the group since".to_owned();
            asked.settle(Err(Error::Refused { code: Code::Overloaded.as_u16(), text }));
        }
        self.ask_about_group(id, Asked::new(group, act, 0, Some(answer)));
    }

    pub(super) fn handle_group_ok(&mut self, frame: &Frame<'_>) {
        let (group, stamp) = (frame.peer, frame.stamp);
        let Some(asked) = self.group_asks.answered(frame.id, group) else { return };
        let mut events = Vec::new();
        if asked.act == Act::Leave {
            self.state.groups.left(group);
            self.state.shared.end_group(group);
        } else if self.state.groups.joined(group, stamp, asked.act == Act::Rejoin, &mut events) {
            self.state.shared.begin_group(group, stamp);
        }
        if matches!(asked.act, Act::Open | Act::Close) {
            self.state.groups.set_open(group, asked.act == Act::Open);
        }
        asked.settle(Ok(stamp));
        self.tell_all(events);
    }

    /// An ERROR; whether it is about a join or leave.
    pub(super) fn is_group_ask_refused(&mut self, frame: &Frame<'_>, code: u16, text: &str) -> bool {
        // Of a message it is the end without a position.
        self.state.groups.sent(frame.peer, frame.id, 0);
        let Some(asked) = self.group_asks.answered(frame.id, frame.peer) else { return false };
        let asked = match Code::from_u16(code) {
            // A room whose home has ended has another one in a moment; all at once may be too many for a second.
            Some(Code::RateLimited) if asked.act == Act::Rejoin => {
                self.group_asks.attention.refused(asked, Instant::now(), random::share())
            }
            Some(Code::Overloaded) => self.group_asks.attention.refused(asked, Instant::now(), random::share()),
            _ => Some(asked),
        };
        let Some(asked) = asked else { return true };
        if asked.act == Act::Rejoin {
            self.state.groups.left(asked.group);
            self.state.tell(Event::GroupLost { group: asked.group, code, text: text.to_owned() });
        }
        asked.settle(Err(Error::Refused { code, text: text.to_owned() }));
        true
    }

    /// The position of an own message, which does not come back.
    pub(super) fn note_own_group_message(&mut self, frame: &Frame<'_>) {
        let has_position = matches!(Outcome::from_u16(frame.aux), Some(Outcome::Stored | Outcome::Accepted));
        self.state.groups.sent(frame.peer, frame.id, if has_position { frame.stamp } else { 0 });
    }

    pub(super) fn handle_group_deliver(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        let Some(message) = GroupMessage::read(frame) else {
            return Some(Reason::Protocol("its GROUP_DELIVER names no sender".into()).into());
        };
        if frame.flags & flags::REPLAY == 0 {
            let (group, before) = (message.group, message.stamp.saturating_sub(1));
            let mut events = Vec::new();
            if self.state.groups.delivered(message, &mut events) {
                self.state.shared.begin_group(group, before);
            }
            self.tell_all(events);
            return None;
        }
        let is_page = self.group_asks.is_running();
        let has_room = if is_page { self.group_asks.replayed(message) } else { self.state.groups.replayed(message) };
        let too_much = "it replayed more of a group than was asked for";
        (!has_room).then(|| Reason::Protocol(too_much.into()).into())
    }

    pub(super) fn handle_heads(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        let heads = match Heads::decode(frame.body) {
            Ok(Heads { heads }) => heads,
            Err(error) => return Some(Reason::Protocol(format!("its HEADS cannot be read: {error}")).into()),
        };
        let mut events = Vec::new();
        for (group, stamp) in self.state.groups.heads(&heads, &mut events) {
            self.state.shared.begin_group(group, stamp);
        }
        self.tell_all(events);
        None
    }

    // Pages

    pub(super) fn is_group_page_running(&self) -> bool {
        self.group_asks.is_running() || self.state.groups.is_running()
    }

    /// Whether an ERROR without an id answers the page on its way: one that names its group, or one that names none and
    /// may be about a page.
    pub(super) fn is_of_group_page(&self, peer: u64, code: u16) -> bool {
        match self.group_asks.running().or_else(|| self.state.groups.running()) {
            Some(group) => peer == group || (peer == 0 && may_refuse_page(code)),
            None => false,
        }
    }

    /// Groups that are behind are looked after, unless there is nobody to tell.
    pub(super) fn pulls_groups(&self) -> bool {
        self.closing.is_none() && !self.state.outlet.is_abandoned()
    }

    /// A page that somebody waits for, or else one of a group that is behind. To be called when no question is on its
    /// way.
    pub(super) fn ask_for_group_page(&mut self) {
        let room = self.state.outlet.room();
        let pulls = self.pulls_groups();
        let pull = || if pulls { self.state.groups.next_page(room) } else { None };
        let sync = self.group_asks.next_page().or_else(pull);
        if let Some(sync) = sync {
            self.out.sync(GROUP_PAGE, &sync);
        }
    }

    pub(super) fn group_page_over(&mut self, sync_ok: &SyncOk) {
        if self.group_asks.is_running() {
            return self.group_asks.page_over(sync_ok);
        }
        let mut events = Vec::new();
        self.state.groups.page_over(sync_ok, &mut events);
        self.tell_all(events);
    }

    pub(super) fn group_page_refused(&mut self, code: u16, text: String) {
        if self.group_asks.is_running() {
            return self.group_asks.page_refused(code, text);
        }
        let mut events = Vec::new();
        if let Some(group) = self.state.groups.refused(code, text, &mut events) {
            self.state.shared.end_group(group);
        }
        self.tell_all(events);
    }

    fn tell_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.state.tell(event);
        }
    }
}
