//! What a shard tells webhooks of: its users, sessions and messages. Where nobody wants a type, that costs a look at a
//! bit.

use super::links::ticks;
use super::shard::Shard;
use crate::directory::{Home, Member, Routing};
use crate::events::{Event, EventKind, HeldFate, KEPT_MS};
use crate::ids::Origin;
use crate::reason::CloseReason;
use trunkline_proto::Outcome;
use trunkline_router_core::membership::NodeState;
use trunkline_router_core::presence::{Entry, Presence};

impl Shard {
    /// Whether anybody wants events of this type.
    #[inline]
    pub(super) fn tells(&self, kind: EventKind) -> bool {
        self.events.as_ref().is_some_and(|events| events.wants(kind))
    }

    /// Tells of something. Its place among this shard's events; `None` if there was no room for it, and it was counted.
    pub(super) fn tell_event(&mut self, event: &Event<'_>) -> Option<u64> {
        let put = self.events.as_mut()?.put(event);
        if put.is_none() {
            self.links.stats.limit_event_portal.add(1);
        }
        put
    }

    /// A session of this shard's connections has begun.
    pub(super) fn tell_login(&mut self, slot: u32, user: u64, session: u64) {
        if !self.tells(EventKind::SessionLogin) {
            return;
        }
        let address = self.addresses.known(slot).and_then(|known| known.client());
        let place = address.map(|address| address.to_string()).unwrap_or_default();
        let Some(entry) = self.presence.sessions(user).iter().find(|entry| entry.session == session).cloned() else {
            return;
        };
        self.tell_session(EventKind::SessionLogin, 0, user, &entry, &place);
    }

    /// A session of this shard's connections has ended.
    pub(super) fn tell_logout(&mut self, user: u64, entry: &Entry, reason: CloseReason) {
        if self.tells(EventKind::SessionLogout) {
            self.tell_session(EventKind::SessionLogout, reason as u16, user, entry, "");
        }
    }

    fn tell_session(&mut self, kind: EventKind, aux: u16, user: u64, entry: &Entry, place: &str) {
        let event = Event {
            aux,
            id: entry.session,
            device: entry.device(),
            class: entry.class(),
            place,
            ..Event::new(kind, self.now.wall_ms, user)
        };
        self.tell_event(&event);
    }

    /// A user whose home is here has logged in, and had no session before.
    pub(super) fn tell_online(&mut self, user: u64) {
        let (online, offline) = (self.tells(EventKind::UserOnline), self.tells(EventKind::UserOffline));
        if !(online || offline) || self.home(user) != Home::Here {
            return;
        }
        let was_away = self.events.as_mut().is_some_and(|events| events.is_back(user));
        if online && !was_away {
            self.tell_event(&Event::new(EventKind::UserOnline, self.now.wall_ms, user));
        }
    }

    /// The last session of a user has ended.
    pub(super) fn tell_offline(&mut self, user: u64) {
        let wanted = self.tells(EventKind::UserOnline) || self.tells(EventKind::UserOffline);
        if !wanted || self.home(user) != Home::Here {
            return;
        }
        let (tick, since_ms) = (self.links.tick, self.now.wall_ms);
        if self.events.as_mut().is_some_and(|events| !events.goes(user, since_ms, tick)) {
            self.links.stats.limit_events_going.add(1);
            self.tell_gone(user, since_ms);
        }
    }

    fn tell_gone(&mut self, user: u64, since_ms: u64) {
        if self.tells(EventKind::UserOffline) {
            self.tell_event(&Event { peer: since_ms, ..Event::new(EventKind::UserOffline, self.now.wall_ms, user) });
        }
    }

    /// A client has sent a message to a user.
    pub(super) fn tell_sent(&mut self, from: u64, to: u64, id: u64, bytes: usize, acked: bool) {
        let event = Event {
            aux: acked.into(),
            size: bytes as u32,
            peer: to,
            id,
            ..Event::new(EventKind::MessageSent, self.now.wall_ms, from)
        };
        self.tell_event(&event);
    }

    /// The store has a message. Its place among this shard's events, if its sender is to be told only when the event
    /// is kept.
    pub(super) fn tell_stored(&mut self, to: u64, from: u64, id: u64, stamp: u64, bytes: usize) -> Option<u64> {
        if !self.tells(EventKind::MessageStored) {
            return None;
        }
        let event = Event {
            size: bytes as u32,
            peer: from,
            id,
            stamp,
            ..Event::new(EventKind::MessageStored, self.now.wall_ms, to)
        };
        let put = self.tell_event(&event);
        put.filter(|_| self.events.as_ref().is_some_and(|events| events.keeps()))
    }

    /// Tells a sender that its message is stored, as soon as the event of it is kept.
    pub(super) fn tell_stored_fate(&mut self, event: Option<u64>, origin: Origin, id: u64, user: u64, stamp: u64) {
        let tick = self.links.tick;
        if let (Some(event), Some(events)) = (event, &mut self.events) {
            if events.hold(HeldFate { event, origin, id, user, stamp, tick }) {
                return;
            }
            self.links.stats.limit_events_held.add(1);
        }
        self.tell_fate(origin, id, user, Outcome::Stored, stamp);
    }

    /// Tells the senders whose events are kept by now. Returns how many.
    pub(crate) fn take_kept(&mut self) -> usize {
        let mut told = 0;
        while let Some(held) = self.events.as_mut().and_then(|events| events.take_kept()) {
            told += 1;
            self.tell_fate(held.origin, held.id, held.user, Outcome::Stored, held.stamp);
        }
        told
    }

    /// Whether senders wait until events are kept.
    pub(crate) fn holds_fates(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.held() > 0)
    }

    /// Whether senders can be told that could not before.
    pub(crate) fn has_kept(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.has_kept())
    }

    /// What became of a push by HTTP.
    pub(super) fn tell_outcome(&mut self, id: u64, user: u64, outcome: Outcome) {
        if self.tells(EventKind::PushOutcome) && outcome != Outcome::Accepted {
            let event = Event::new(EventKind::PushOutcome, self.now.wall_ms, user);
            self.tell_event(&Event { aux: outcome.as_u16(), id, ..event });
        }
    }

    /// Nodes have gone without a word. Of those that are left, the one whose key is the lowest tells of it, and of its
    /// shards the first.
    pub(super) fn tell_lost(&mut self, lost: &[Member], next: &Routing) {
        let is_first = next.others().all(|member| member.key.0 > next.own().0);
        if self.shard != 0 || !is_first || !self.tells(EventKind::NodeLost) {
            return;
        }
        for member in lost.iter().filter(|member| member.state != NodeState::Draining) {
            let event = Event::new(EventKind::NodeLost, self.now.wall_ms, 0);
            self.tell_event(&Event { place: &member.name, ..event });
        }
    }

    /// What is due about events in this tick.
    pub(super) fn expire_events(&mut self) {
        let tick = self.links.tick;
        let ends = self.ends();
        while let Some(going) = self.events.as_mut().and_then(|events| events.take_gone(tick, ends)) {
            if !self.presence.sessions(going.user).is_empty() || self.home(going.user) != Home::Here {
                continue;
            }
            // Other nodes may still tell of a session: then it has waited too little.
            let waits = !ends && self.is_unsettled(going.user);
            let waits_on =
                waits && self.events.as_mut().is_some_and(|events| events.goes(going.user, going.since_ms, tick));
            if !waits_on {
                self.tell_gone(going.user, going.since_ms);
            }
        }
        let Some(before) = tick.checked_sub(ticks(KEPT_MS)) else { return };
        while let Some(late) = self.events.as_mut().and_then(|events| events.take_late(before)) {
            self.links.stats.limit_event_kept.add(1);
            self.tell_fate(late.origin, late.id, late.user, Outcome::Stored, late.stamp);
        }
    }

    /// Hands this turn's events to the services thread.
    pub(crate) fn post_events(&mut self) {
        // A shard that ends has no tick after the one in which its last session went.
        if self.ends() {
            self.expire_events();
        }
        if let Some(events) = &mut self.events {
            events.post();
        }
    }
}
