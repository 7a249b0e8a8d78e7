//! The state of one shard: its connections, users and messages. No I/O and no clock in here or in the steps built on it; [`super::Core`] feeds it
//! completions and carries out what its connections are marked for.

use super::links::{Links, TICK_MS, ticks};
use crate::auth::Auth;
use crate::config::Placement;
use crate::conn::{ConnFlags, Phase};
use crate::inbox::Inboxes;
use crate::io::{HandoverToken, Now};
use crate::limits::Limits;
use crate::mailbox::{Adoptee, Mailboxes, Origin, Outgoing};
use crate::metrics::ShardStats;
use crate::presence_log::{PresenceLog, PresenceWriter};
use crate::reason::CloseReason;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use trunkline_proto::{Bye, Kind, Outcome, encode_message};
use trunkline_router::membership::View;
use trunkline_router::presence::{Embedded, Presence};

/// How long a connection whose end is decided may take to read its last frames.
const LINGER_MS: u64 = 2_000;
/// Clients told to come back later spread their return over this time.
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// What a shard is made of.
pub(crate) struct ShardConfig {
    /// This shard, below `shards`.
    pub(crate) shard: u16,
    /// Shards of the node.
    pub(crate) shards: u16,
    /// Name of the node, told to clients.
    pub(crate) node: String,
    pub(crate) limits: Limits,
    pub(crate) auth: Arc<Auth>,
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) mailboxes: Mailboxes,
    /// Where sessions are told of; `None` when the node is alone.
    pub(crate) presence_log: Option<Arc<PresenceLog>>,
    pub(crate) placement: Placement,
}

/// State of one shard.
pub(crate) struct Shard {
    pub(crate) shard: u16,
    pub(crate) shards: u16,
    pub(crate) node: String,
    pub(crate) auth: Arc<Auth>,
    pub(crate) links: Links,
    pub(crate) presence: Embedded,
    /// Tells the cluster of sessions; `None` when the node is alone.
    pub(crate) presence_log: Option<PresenceWriter>,
    pub(crate) placement: Placement,
    /// The nodes that count, as last heard; `None` when the node is alone, or has just started.
    pub(crate) view: Option<Arc<View>>,
    pub(crate) inboxes: Inboxes,
    pub(crate) outgoing: Outgoing,
    /// Connections that logged in here and belong elsewhere, until they are sent off.
    pub(crate) departing: HashMap<u32, Box<Adoptee>>,
    /// Connections announced by other shards whose descriptor has not come.
    pub(crate) arriving: HashMap<HandoverToken, Box<Adoptee>>,
    pub(crate) now: Now,
    /// The latest session id; 0 before the first.
    last_session: u64,
    last_stamp: u64,
    pub(crate) drain: Option<Drain>,
}

/// Progress of a drain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    /// The shard ends with it.
    ends: bool,
    /// Slots that were in use when it began; what comes later is ended when it comes.
    slots: u32,
    /// The next of them to end.
    cursor: u32,
    begun_tick: u32,
    /// Ticks over which they are spread.
    spread: u32,
    /// When the shard gives up on connections that do not close.
    pub(crate) deadline_tick: u32,
}

impl Shard {
    pub(crate) fn new(config: ShardConfig) -> Self {
        let limits = &config.limits;
        Shard {
            presence: Embedded::new(limits.devices_per_user_max, limits.connections_max as usize),
            presence_log: config.presence_log.map(|log| PresenceWriter::new(log, limits.slots())),
            view: None,
            placement: config.placement,
            inboxes: Inboxes::new(limits.unacked_per_user_max, limits.unacked_total_bytes_max),
            outgoing: Outgoing::new(config.shard, config.mailboxes, limits.mailbox_bytes_max),
            departing: HashMap::new(),
            arriving: HashMap::new(),
            now: Now::default(),
            last_session: 0,
            last_stamp: 0,
            drain: None,
            shard: config.shard,
            shards: config.shards,
            node: config.node,
            auth: config.auth,
            links: Links::new(config.limits, config.stats),
        }
    }

    /// Takes the time of this turn. Returns whether a tick has passed.
    pub(crate) fn set_now(&mut self, now: Now) -> bool {
        self.now = now;
        let tick = (now.mono_ms / TICK_MS) as u32;
        std::mem::replace(&mut self.links.tick, tick) != tick
    }

    /// The next position in the inboxes of this shard's users: milliseconds since the epoch in the high 44 bits, a counter in the low 20,
    /// strictly increasing even if the wall clock goes back.
    pub(crate) fn next_stamp(&mut self) -> u64 {
        self.last_stamp = (self.now.wall_ms << 20).max(self.last_stamp + 1);
        self.last_stamp
    }

    /// The next session id. They begin at the second of the shard's first login, in the upper half, and go up by the number of shards: unique on
    /// the node, over restarts too, unless its clock is set back by more than it was up.
    pub(crate) fn next_session(&mut self) -> u64 {
        if self.last_session == 0 {
            self.last_session = (self.now.wall_ms / 1_000) << 32 | u64::from(self.shard);
        }
        self.last_session += u64::from(self.shards);
        self.last_session
    }

    /// A connection was accepted into a slot.
    pub(crate) fn accepted(&mut self, slot: u32) {
        if self.links.slots.occupy(slot, Phase::Handshake).is_none() {
            self.links.stats.ring_stale.add(1);
            return;
        }
        let stats = &self.links.stats;
        stats.accepted.add(1);
        stats.open.add(1);
        let deadline = self.links.tick + ticks(self.links.limits.login_timeout_ms);
        self.links.wheel.arm(slot, deadline);
        self.links.mark_dirty(slot);
        if self.ends() {
            self.close(slot, CloseReason::Draining);
        } else if self.links.stats.open.get() > u64::from(self.links.limits.connections_max) {
            self.links.stats.limit_connections.add(1);
            self.close(slot, CloseReason::Overloaded);
        }
    }

    /// Decides and counts the end of a connection. What is queued for it is still sent, then the reason's BYE; a connection whose end is
    /// decided already keeps its first reason.
    pub(crate) fn close(&mut self, slot: u32, reason: CloseReason) {
        self.close_towards(slot, reason, String::new());
    }

    /// The same, with the address the client is to connect to instead.
    pub(crate) fn close_towards(&mut self, slot: u32, reason: CloseReason, redirect: String) {
        let tick = self.links.tick;
        let conn = self.links.slots.at(slot);
        let phase = conn.phase;
        if !matches!(phase, Phase::Handshake | Phase::HandingOver | Phase::Open) {
            return;
        }
        let user = conn.user;
        conn.reason = Some(reason);
        conn.phase = if reason == CloseReason::PeerReset { Phase::Finishing } else { Phase::Closing };
        self.links.stats.count_close(reason);
        self.links.stats.open.sub(1);
        self.links.take_partial(slot);
        if reason == CloseReason::TooSlow {
            // What it did not take so far it will not take now; only the BYE is worth a try.
            self.links.discard_pending(slot);
        }
        if let Some(code) = reason.code() {
            let bye = self.bye(reason, slot, redirect);
            self.links.append(slot, |out| encode_message(out, Kind::Bye, code.as_u16(), &bye));
        }
        self.links.wheel.arm(slot, tick + ticks(LINGER_MS));
        self.links.mark_dirty(slot);
        match phase {
            Phase::Open => self.session_ended(slot, user),
            // It has not been sent off yet, and will not be.
            Phase::HandingOver => drop(self.departing.remove(&slot)),
            _ => {}
        }
    }

    /// The parting words: when to come back where that helps, spread so that not all come at once.
    fn bye(&self, reason: CloseReason, slot: u32, redirect: String) -> Bye {
        let spread = trunkline_router::hash::user_hash(u64::from(slot) << 44 | self.now.wall_ms) % RECONNECT_SPREAD_MS;
        let reconnect_after_ms = match reason {
            CloseReason::Draining | CloseReason::Overloaded => 500 + spread as u32,
            _ => 0,
        };
        let text = match reason {
            CloseReason::LoginTimeout => "no LOGIN came in time",
            _ => reason.code().map_or("", |code| code.text()),
        };
        Bye { reconnect_after_ms, redirect, text: text.to_owned() }
    }

    /// Removes a session from presence. With the last one gone, what waits for the user's ACK is given up; with one left, what that one sent.
    fn session_ended(&mut self, slot: u32, user: u64) {
        let mut sessions = self.presence.sessions(user).iter();
        let Some(session) = sessions.find(|entry| entry.slot == slot).map(|entry| entry.session) else {
            // A newer session of the device took its place; whatever waits, waits for that one.
            return;
        };
        let ended = self.presence.logout(user, session);
        if let (Some(log), Some(entry)) = (&mut self.presence_log, &ended) {
            log.ended(user, entry);
        }
        let left = match self.presence.sessions(user) {
            [] => self.inboxes.take_all(user),
            [last] => {
                // A session is no recipient of what it sent itself.
                let last = self.links.slots.id(last.slot);
                self.inboxes.take_sent_by(user, Origin { shard: self.shard, conn: last })
            }
            _ => VecDeque::new(),
        };
        if let Some(other) = self.presence.sessions(user).first()
            && self.inboxes.len(user) > 0
        {
            self.links.wheel.arm_earlier(other.slot, self.links.tick + 1);
        }
        for message in left {
            self.links.stats.out_offline_refused.add(1);
            self.tell_fate(message.origin, message.id, user, Outcome::OfflineNotStored, 0);
        }
    }

    /// The slot's connection is gone.
    pub(crate) fn closed(&mut self, slot: u32) {
        self.links.wheel.disarm(slot);
        self.links.take_partial(slot);
        self.links.slots.vacate(slot);
    }

    /// Deals with the timers that have run out.
    pub(crate) fn expire(&mut self, due: &mut Vec<u32>) {
        let tick = self.links.tick;
        self.links.wheel.advance(tick, due);
        for slot in due.drain(..) {
            self.expired(slot);
        }
        self.drain_some();
    }

    fn expired(&mut self, slot: u32) {
        let tick = self.links.tick;
        let hot_ticks = ticks(self.links.limits.hot_idle_ms);
        let full_ticks = ticks(self.links.limits.outbox_full_ms_max);
        let conn = self.links.slots.at(slot);
        match conn.phase {
            Phase::Handshake => {
                self.links.stats.limit_login_timeout.add(1);
                self.close(slot, CloseReason::LoginTimeout);
            }
            Phase::Open => {
                let full = conn.outbox.as_ref().and_then(|outbox| outbox.full_since);
                if full.is_some_and(|since| since + full_ticks <= tick) {
                    self.links.stats.limit_outbox_full_time.add(1);
                    return self.close(slot, CloseReason::TooSlow);
                }
                if super::links::idle_tick(conn) <= tick && !conn.flags.has(ConnFlags::PAUSED) {
                    self.links.stats.limit_heartbeat.add(1);
                    return self.close(slot, CloseReason::Idle);
                }
                let user = conn.user;
                if conn.flags.has(ConnFlags::HOT) && conn.traffic_tick + hot_ticks <= tick {
                    conn.flags.clear(ConnFlags::HOT);
                    self.links.mark_dirty(slot);
                }
                self.redeliver_due(user);
                self.links.arm_session(slot, &mut self.inboxes);
            }
            Phase::Closing => {
                conn.phase = Phase::Finishing;
                self.links.mark_dirty(slot);
            }
            // A hand-over and a close end by themselves.
            Phase::Free | Phase::HandingOver | Phase::Finishing | Phase::Closed => {}
        }
    }

    /// Begins to end all sessions, and with `ends` all connections.
    pub(crate) fn begin_drain(&mut self, ends: bool) {
        if self.drain.is_none_or(|drain| ends && !drain.ends) {
            let spread = ticks(self.links.limits.drain_ms);
            self.drain = Some(Drain {
                ends,
                slots: self.links.slots.high_water(),
                cursor: 0,
                begun_tick: self.links.tick,
                spread,
                deadline_tick: self.links.tick + spread + ticks(2 * LINGER_MS),
            });
        }
    }

    /// Keeps the sessions that are left, unless the shard ends.
    pub(crate) fn call_off_drain(&mut self) {
        self.drain.take_if(|drain| !drain.ends);
    }

    fn drain_some(&mut self) {
        let Some(drain) = self.drain else { return };
        let passed = u64::from((self.links.tick - drain.begun_tick).min(drain.spread));
        let end = (u64::from(drain.slots) * passed).div_ceil(drain.spread.into()) as u32;
        for slot in drain.cursor..end {
            let conn = self.links.slots.at(slot);
            match (conn.phase, conn.user) {
                (Phase::Open, user) => {
                    self.links.stats.sessions_drained.add(1);
                    self.send_away(slot, user);
                }
                (Phase::Handshake, _) if drain.ends => self.close(slot, CloseReason::Draining),
                // Whoever logs in is sent away then.
                _ => {}
            }
        }
        self.drain = Some(Drain { cursor: end, ..drain });
    }

    /// Ends a connection of a draining node: its user goes on at home, as the present view has it.
    pub(crate) fn send_away(&mut self, slot: u32, user: u64) {
        let home = self.other_home(user).unwrap_or_default();
        self.close_towards(slot, CloseReason::Draining, home);
    }

    /// Whether the shard takes no connections any more and will end.
    pub(crate) fn ends(&self) -> bool {
        self.drain.is_some_and(|drain| drain.ends)
    }

    /// Whether a drain that ends the shard has come to its end.
    pub(crate) fn drained(&self) -> bool {
        self.drain.filter(|drain| drain.ends).is_some_and(|drain| {
            let empty = self.links.slots.in_use() == 0 && self.arriving.is_empty();
            (empty && self.outgoing.own().close_to_adoptees()) || self.links.tick >= drain.deadline_tick
        })
    }

    /// Closes the connections whose answers no longer fit.
    pub(crate) fn close_overflowed(&mut self) {
        while let Some(slot) = self.links.overflowed.pop() {
            self.close(slot, CloseReason::TooSlow);
        }
    }

    /// Where messages of a connection of this shard come from.
    pub(crate) fn origin(&self, slot: u32) -> Origin {
        Origin { shard: self.shard, conn: self.links.slots.id(slot) }
    }

    /// Brings the gauges up to date.
    pub(crate) fn set_gauges(&self) {
        let stats = &self.links.stats;
        stats.sessions.set(self.presence.session_count() as u64);
        stats.users.set(self.presence.users() as u64);
        stats.view_epoch.set(self.view.as_ref().map_or(0, |view| view.epoch));
        stats.messages_pending.set(self.inboxes.messages() as u64);
        stats.unacked_bytes.set(self.inboxes.bytes() as u64);
        stats.outbox_bytes.set(self.links.outbox_bytes as u64);
        stats.partial_bytes.set(self.links.partial_bytes as u64);
    }
}
