//! The loop of a shard: one turn takes what the ring reports, what other shards and the control thread sent, and what
//! timers ran out; handles it; and hands everything it caused back to the ring.
//!
//! The steps of the data path are in the files below, in the order a message meets them: `handshake` (LOGIN, the move
//! to the home shard), `decode` (bytes to frames), `route` (to the recipient's shard and outboxes, and the fate back),
//! `flush` (outboxes to the ring, reads armed, connections closed). `shard` and `links` hold the state they work on.
//!
//! In a cluster there are besides: `far` (a message's way over other nodes), `guests` (sessions whose home is another
//! node), `moves` (what follows from a change of the view), `trunk` (connections to other nodes), `presence` (what the
//! control thread asks of sessions), `kicks` (ending a user's sessions wherever they are).
//!
//! Where clients are, if that has to be known, is a matter of `addresses`: PROXY headers, and limits by address.
//! Groups: `groups` (from a frame to the home of a group), `fan_out` (from there to all sessions in it), `rooms` (live
//! rooms over the nodes of a cluster).
//! Who watches whose presence: `watch`. Who may write to whom: `senders`.
//! Where there is a store: `keep` (messages to the store), `reading` (from there to devices: logins, backlogs, SYNC).
//! Pushes by HTTP come and go by `portal`, calls to HTTP servers by `upstream_calls`; `events` tells webhooks.
//!
//! Connections that are not native have a step more on either side: `wrap` and `tls` (bytes to frames),
//! `transport::outbound` (frames to bytes).

mod addresses;
mod broadcast;
mod calls;
mod carry;
mod decode;
mod ends;
mod entrance;
mod events;
mod fan_out;
mod far;
mod far_calls;
mod flush;
pub(crate) mod groups;
mod guests;
mod handovers;
mod handshake;
mod hook;
mod keep;
mod kicks;
mod links;
mod moves;
mod portal;
mod presence;
mod pushed;
mod reading;
mod resent;
mod rooms;
mod route;
mod senders;
mod service_dials;
mod service_links;
mod services_seen;
mod shard;
mod shared;
pub(crate) mod shared_groups;
mod stamps;
#[cfg(test)]
mod testing;
mod tls;
pub mod tokens;
mod trunk;
mod upstream_calls;
mod watch;
mod worker_pushes;
pub(crate) mod wrap;

use crate::conn::ConnFlags;
use crate::control::{Control, ControlPort};
use crate::io::{Completion, ConnId, HandoverToken, Io, Peer, SERVER_DIAL, errno};
use crate::limits::MAIL_TURN_BYTES;
use crate::mailbox::{Arrival, Letter};
pub use addresses::PEER_BYTES;
use flush::ReadRest;
use links::TICK_MS;
#[cfg(test)]
pub(crate) use portal::PORTAL_SLOT;
#[cfg(test)]
pub(crate) use route::Routed;
use shard::Shard;
pub use shard::{ShardCluster, ShardConfig};

/// Single accepts of a listener armed at a time, while logins are limited, slots are few, or connections come in a flood.
const ACCEPTS_MAX: u32 = 32;
/// How long connections are accepted singly after a turn that brought more than it may.
const FLOOD_MS: u64 = 1_000;
/// Accepts of other nodes armed at a time. A multishot accept would not tell who connects.
const MESH_ACCEPTS_MAX: u32 = 8;
/// A multishot accept takes a whole backlog at once (`net.core.somaxconn` is 4,096 by default), and what finds no slot
/// is closed without a word. So it is armed only while there are more free slots than that; single accepts take the
/// rest.
const MULTISHOT_SLOTS_MIN: u32 = 8_192;
/// Slots kept free of new connections, for those another shard hands over and for accepts already under way.
const SLOTS_SPARE: u32 = 16;
/// How soon a shard that could not hand something on looks again.
pub const BLOCKED_WAIT_MICROS: u32 = 100;
/// From so many completions on the length of a turn is measured, and of the others of each so many.
const TIMED_COMPLETIONS: usize = 32;
const TIMED_TURNS: u64 = 16;

/// Accepts of one listener.
#[derive(Clone, Copy, Debug, Default)]
struct Accepting {
    armed: u32,
    /// What is armed is one multishot accept.
    multishot: bool,
    cancelled: bool,
    /// An accept failed; try again at the next tick.
    backing_off: bool,
}

/// One shard, on some I/O.
pub struct Core<I: Io> {
    pub io: I,
    pub(crate) shard: Shard,
    control: ControlPort,
    listeners: Vec<Accepting>,
    /// Connections that may be accepted now, in thousandths; used while logins are limited.
    login_allowance: u64,
    login_allowance_ms: u64,
    /// Connections that this turn has brought, and until when they are accepted singly. A multishot accept takes all
    /// that wait, and while it is at it no session is served: each turn of a flood would be longer than the one before.
    accepts: u32,
    flood_until_ms: u64,
    /// Departing connections whose mailbox was full.
    waiting: Vec<u32>,
    /// Withdrawn hand-overs whose mailbox was full.
    withdrawals: Vec<(u16, HandoverToken)>,
    due: Vec<u32>,
    /// The listener behind the clients' is for other nodes, and open.
    listening_to_nodes: bool,
    /// Accepts of other nodes that are armed.
    mesh_accepts: u32,
    /// The listener behind the clients' is for other nodes.
    has_mesh_listener: bool,
    /// The listener for workers, behind all others.
    services_listener: Option<u16>,
    /// Accepts of workers that are armed.
    service_accepts: u32,
    /// Other nodes are being told that this shard ends.
    leaving: bool,
    /// Links that have ended have more to give back than there was room for.
    gives_back_on: bool,
    /// Something could not be handed on, or there is more to do; look again soon.
    blocked: bool,
    /// Input, or mail, waits for its turn: the next one must not wait.
    behind: bool,
    /// A pause of the ring is asked for, behind which frames for live rooms go that are gathered.
    pausing: bool,
    only_waits: bool,
}

impl<I: Io> Core<I> {
    /// A shard that accepts from `listeners` listeners; one more, behind them, is for other nodes if `config` says so.
    /// The first turn starts it.
    pub fn new(mut io: I, config: ShardConfig, control: ControlPort, listeners: u16) -> Self {
        let mut shard = Shard::new(config);
        shard.set_now(io.now());
        io.tick_after(TICK_MS as u32);
        let mut core = Core {
            io,
            shard,
            control,
            listeners: vec![Accepting::default(); usize::from(listeners)],
            login_allowance: 0,
            login_allowance_ms: 0,
            accepts: 0,
            flood_until_ms: 0,
            waiting: Vec::new(),
            withdrawals: Vec::new(),
            due: Vec::new(),
            listening_to_nodes: false,
            mesh_accepts: 0,
            has_mesh_listener: false,
            services_listener: None,
            service_accepts: 0,
            leaving: false,
            gives_back_on: false,
            blocked: false,
            behind: false,
            pausing: false,
            only_waits: false,
        };
        core.drive_accepts();
        if core.shard.cluster.as_ref().is_some_and(|cluster| cluster.listens) {
            core.listening_to_nodes = true;
            core.has_mesh_listener = true;
            core.arm_mesh_accepts();
        }
        if core.shard.services.as_ref().is_some_and(|services| services.config.listens) {
            core.services_listener = Some(listeners + u16::from(core.has_mesh_listener));
            core.arm_service_accepts();
        }
        core
    }

    /// One turn: wait, take completions, mail and requests, expire timers, flush. Returns whether there was anything to
    /// do.
    pub fn turn(&mut self, wait_micros: u32) -> bool {
        // What gets rid of a jam in this turn queues operations too, so such a turn must be followed by another.
        let (was_blocked, was_behind) = (self.blocked, self.behind);
        let mut ticked = !self.shard.alone && self.look();
        let wait_micros = match (was_behind, was_blocked) {
            (true, _) => 0,
            (false, true) => wait_micros.min(BLOCKED_WAIT_MICROS),
            (false, false) => wait_micros,
        };
        let waits = wait_micros > 0 && !self.shard.has_answers() && self.may_wait();
        let completions = self.io.enter(if waits { wait_micros } else { 0 });
        self.shard.outgoing.own().awake();
        ticked |= self.look();
        self.shard.links.begin_budgets();
        self.accepts = 0;
        while let Some(completion) = self.io.next() {
            self.dispatch(completion);
        }
        self.look_for_flood();
        self.shard.links.look_at_flights();
        // What has just come was read first: who waits for a turn has more than one turn's worth.
        let waited = self.catch_up();
        let shook = self.shard.step_handshakes();
        let letters = self.drain_mailbox(MAIL_TURN_BYTES);
        let requests = self.drain_control() + if self.shard.desk.is_some() { self.shard.take_answers() } else { 0 };
        let pushes = self.shard.take_pushes() + self.shard.take_upstream_answers() + self.shard.take_kept();
        let verdicts = self.shard.take_verdicts();
        if ticked {
            let mut due = std::mem::take(&mut self.due);
            self.shard.expire(&mut due);
            self.due = due;
            self.drive_accepts();
            self.arm_service_accepts();
            self.tick_nodes();
            self.tick_dials();
            self.shard.set_tick_gauges();
        }
        self.follow_links();
        let leaves = self.shard.drain.is_some() && self.shard.drained();
        // It may be another shard that was waited for, and nothing has come from this one's ring.
        let begins_to_leave = leaves && !std::mem::replace(&mut self.leaving, true);
        if leaves && (begins_to_leave || ticked) {
            self.leave_nodes();
        }
        let walks = self.shard.walk_on();
        self.shard.look_at_settling();
        self.shard.redeliver_where_room();
        // The time of some may have come, which is to be followed by a turn as all else that queues operations.
        let walked = self.shard.has_frames_for_groups();
        let fans_out = self.shard.walk_groups() | self.shard.walk_broadcasts();
        // One that is under way is over before any that would begin here, unless a reload has shortened the time: what
        // is gathered then waits once for as long as it did before.
        if !self.pausing
            && let Some(ms) = self.shard.gathered_in_ms()
        {
            self.pausing = true;
            self.io.pause(ms);
        }
        self.flush();
        self.shard.hand_on_waiting();
        self.post();
        // Those that wait for another shard come again soon; those that have had their part of this turn at once.
        self.blocked |= walks || self.gives_back_on || self.shard.links.anybody_waits();
        self.blocked |= self.shard.waits_for_carriers();
        let behind = self.shard.links.is_behind() || self.shard.links.tls.is_behind();
        let brought = self.shard.has_pushes() || self.shard.has_upstream_answers() || self.shard.has_kept();
        let brought = brought || self.shard.has_verdicts();
        self.behind = self.shard.outgoing.own().len() > 0 || behind || fans_out || brought;
        let asked = shook
            || walked
            || letters > 0
            || requests + pushes + verdicts > 0
            || begins_to_leave
            || (waited && !self.shard.links.anybody_waits());
        let acted = completions > 0 || asked || ticked || self.behind;
        self.only_waits = !acted && self.blocked;
        let worked = acted || was_blocked || self.blocked;
        if worked {
            self.count_turn(completions, letters);
            // A look at the clock costs a few percent of a short turn, and nothing of a long one.
            if completions >= TIMED_COMPLETIONS || self.shard.links.stats.turns.get().is_multiple_of(TIMED_TURNS) {
                let took_us = self.io.now().mono_us.saturating_sub(self.shard.now.mono_us);
                self.shard.links.stats.turn_time.observe(took_us);
            }
        }
        worked
    }

    /// Looks at clock and lease. A node that was paused since the last look, and has lost its lease meanwhile, must not
    /// send what it was about to: others have its users by now. Returns whether a tick has passed.
    fn look(&mut self) -> bool {
        let (looked_ms, served, now) = (self.shard.now.mono_ms, self.shard.serving, self.io.now());
        let ticked = self.shard.set_now(now);
        if served && !self.shard.serving && now.mono_ms - looked_ms > TICK_MS {
            self.withdraw();
        }
        ticked
    }

    /// Whether the turn before did nothing but look whether something can be handed on now, in vain.
    pub fn only_waits(&self) -> bool {
        self.only_waits
    }

    /// Whether a turn is due although nothing has come from the ring: another shard or the control thread asks, or
    /// something could not be handed on.
    pub fn is_due(&self) -> bool {
        let asked = self.control.is_asked() || self.shard.has_answers();
        self.blocked || self.behind || asked || self.shard.outgoing.own().len() > 0
    }

    /// To be called before waiting for anything: from then on other shards wake this one. Returns whether they have
    /// left nothing for it.
    pub fn may_wait(&self) -> bool {
        self.shard.outgoing.own().may_wait()
    }

    /// Whether the shard was drained and may stop.
    pub fn finished(&self) -> bool {
        self.shard.drained()
            && (self.shard.mesh.as_ref().is_none_or(|mesh| mesh.has_left()) || self.shard.drain_is_late())
    }

    fn dispatch(&mut self, completion: Completion) {
        match completion {
            Completion::Recv { conn, result, buf, more, nonempty } => {
                self.on_recv(conn, result, buf, ReadRest { more, nonempty });
            }
            Completion::Sent { conn, result, buf } => self.on_sent(conn, result, buf),
            Completion::Readable { conn, result } => self.on_readable(conn, result),
            Completion::Accept { listener, result, peer, .. }
                if self.has_mesh_listener && usize::from(listener) == self.listeners.len() =>
            {
                self.on_mesh_accept(result, peer);
            }
            Completion::Accept { listener, result, peer, .. } if Some(listener) == self.services_listener => {
                self.on_service_accept(result, peer);
            }
            Completion::Accept { listener, result, more, peer } => self.on_accept(listener, result, more, peer),
            Completion::ShutDown { conn } => self.on_shut_down(conn),
            Completion::Closed { slot } => self.shard.closed(slot),
            Completion::HandedOver { conn, result } => {
                if let Some(withdrawal) = self.shard.handed_over(conn, result.is_ok()) {
                    self.withdrawals.push(withdrawal);
                }
            }
            Completion::Adopted { token, slot } => {
                if !self.shard.handovers.is_announced(token) {
                    // Its particulars are in the mailbox, behind whatever is there.
                    self.drain_mailbox(usize::MAX);
                }
                match self.shard.handovers.take_arrival(token) {
                    Some(Arrival::Node(acceptor)) => self.on_node_adopted(slot, acceptor),
                    Some(Arrival::Client(adoptee)) => self.shard.adopted(slot, Some(adoptee)),
                    None => self.shard.adopted(slot, None),
                }
            }
            Completion::Dialed { token, result } if token & SERVER_DIAL != 0 => self.on_server_dialed(token, result),
            Completion::Dialed { token, result } => self.on_dialed(token, result),
            Completion::Tick => self.io.tick_after(TICK_MS as u32),
            Completion::Paused => self.pausing = false,
            Completion::Wake => {}
        }
    }

    fn on_accept(&mut self, listener: u16, result: Result<u32, i32>, more: bool, peer: Option<Peer>) {
        let accepting = &mut self.listeners[usize::from(listener)];
        if !more {
            accepting.armed -= 1;
            accepting.cancelled &= accepting.armed > 0;
        }
        match result {
            Ok(slot) => {
                self.accepts += 1;
                self.login_allowance = self.login_allowance.saturating_sub(1_000);
                self.shard.accepted(slot, peer);
                if self.shard.entrance.is_tls_only(listener) {
                    self.shard.links.slots.at(slot).flags.set(ConnFlags::TLS_ONLY);
                }
            }
            Err(errno::ECANCELED) => {}
            Err(_) => {
                accepting.backing_off = true;
                self.shard.links.stats.accept_errors.add(1);
            }
        }
        if !more {
            self.drive_accepts();
        }
    }

    /// Has connections accepted singly when this turn has brought more than it may, and for as long as that many come.
    fn look_for_flood(&mut self) {
        let (now_ms, most) = (self.shard.now.mono_ms, self.shard.links.limits.accepts_per_turn);
        let in_flood = now_ms < self.flood_until_ms;
        if in_flood && self.accepts >= most.min(ACCEPTS_MAX) {
            self.flood_until_ms = now_ms + FLOOD_MS;
        } else if !in_flood && self.accepts > most {
            self.shard.links.stats.limit_accepts.add(1);
            self.flood_until_ms = now_ms + FLOOD_MS;
            self.drive_accepts();
        }
    }

    /// Other nodes are few, and are accepted as long as the shard runs.
    fn on_mesh_accept(&mut self, result: Result<u32, i32>, peer: Option<Peer>) {
        self.mesh_accepts -= 1;
        match result {
            Ok(slot) => {
                let from = match peer {
                    Some(Peer::Address(address)) => Some(address.ip().to_canonical()),
                    Some(Peer::Unix) | None => None,
                };
                self.on_node_accepted(slot, from);
                self.arm_mesh_accepts();
            }
            Err(errno::ECANCELED) => {}
            // The next tick tries again.
            Err(_) => self.shard.links.stats.accept_errors.add(1),
        }
    }

    /// Sees to it that as many accepts of other nodes are armed as are to be.
    fn arm_mesh_accepts(&mut self) {
        while self.listening_to_nodes && self.mesh_accepts < MESH_ACCEPTS_MAX {
            self.mesh_accepts += 1;
            self.io.accept_with_peer(self.listeners.len() as u16);
        }
    }

    /// Arms or cancels accepts, so that connections beyond a limit wait in the backlog rather than being taken and
    /// dropped.
    fn drive_accepts(&mut self) {
        let limits = &self.shard.links.limits;
        // Other nodes have slots of their own.
        let nodes = self.shard.mesh.as_ref().map_or(0, |mesh| mesh.connections()).min(limits.mesh_slots);
        let clients = self.shard.links.slots.in_use() - nodes;
        let free = limits.slots().saturating_sub(clients + SLOTS_SPARE + limits.mesh_slots);
        let wanted = free > 0 && !self.shard.ends();
        let many = free > MULTISHOT_SLOTS_MIN;
        let logins_per_sec = u64::from(limits.logins_per_sec);
        let now_ms = self.shard.now.mono_ms;
        let earned = (now_ms - std::mem::replace(&mut self.login_allowance_ms, now_ms)) * logins_per_sec;
        // The bucket holds what one tick brings, and the part of one login that was left over before.
        self.login_allowance = (self.login_allowance + earned).min(logins_per_sec * TICK_MS + 999);
        // A multishot accept cannot tell who connects.
        let with_peer = self.shard.addresses.are_needed();
        let multishot = logins_per_sec == 0 && many && !with_peer && now_ms >= self.flood_until_ms;
        let most = limits.accepts_per_turn.min(ACCEPTS_MAX);
        let singles = match logins_per_sec {
            0 => most,
            _ => ((self.login_allowance / 1_000) as u32).min(most),
        };
        let mut limited = false;
        // Each accept that is armed may take a slot.
        let mut armed: u32 = self.listeners.iter().map(|accepting| accepting.armed).sum();
        for (listener, accepting) in self.listeners.iter_mut().enumerate() {
            let listener = listener as u16;
            if accepting.backing_off && accepting.armed == 0 {
                // The next tick tries again: what failed was a lack of descriptors or memory.
                accepting.backing_off = false;
                continue;
            }
            if !wanted || (accepting.multishot && !multishot) {
                if accepting.armed > 0 && !accepting.cancelled {
                    accepting.cancelled = true;
                    self.io.accept_cancel(listener);
                }
                if accepting.armed > 0 || !wanted {
                    continue;
                }
            }
            if accepting.cancelled {
                // Armed again once the cancelled ones have ended.
            } else if multishot {
                // Single accepts that are still armed take what comes first.
                if accepting.armed == 0 {
                    accepting.armed = 1;
                    accepting.multishot = true;
                    self.io.accept(listener, true);
                }
            } else {
                accepting.multishot = false;
                limited |= singles == 0;
                while accepting.armed < singles && armed < free {
                    accepting.armed += 1;
                    armed += 1;
                    if with_peer {
                        self.io.accept_with_peer(listener);
                    } else {
                        self.io.accept(listener, false);
                    }
                }
            }
        }
        if limited {
            self.shard.links.stats.limit_logins.add(1);
        }
    }

    /// Lets the sessions go on that have more than one turn's worth, each once. Returns whether there were any.
    fn catch_up(&mut self) -> bool {
        let behind = self.shard.links.take_behind();
        for slot in &behind {
            self.shard.catch_up(*slot);
        }
        !behind.is_empty()
    }

    /// Takes what other shards have sent, until that is `bytes_max` bytes. Returns the number of letters.
    fn drain_mailbox(&mut self, bytes_max: usize) -> usize {
        // No more than are there now, so that a busy neighbour cannot hold this turn for ever.
        let letters = self.shard.outgoing.own().len();
        let mut taken = 0;
        for _ in 0..letters {
            if taken >= bytes_max {
                break;
            }
            match self.shard.outgoing.own().take() {
                Some(Letter::Batch { from, life, bytes, .. }) => {
                    taken += bytes.len();
                    self.shard.take_batch(from, life, &bytes);
                    self.shard.outgoing.recycle(bytes);
                }
                Some(Letter::Adopt(token, arrival)) => {
                    self.shard.handovers.announce(token, arrival);
                }
                Some(Letter::AdoptFailed(token)) => {
                    self.shard.handovers.take_arrival(token);
                }
                None => break,
            }
        }
        letters
    }

    /// Answers the control thread. An answer nobody waits for any more is dropped.
    fn drain_control(&mut self) -> usize {
        let mut requests = 0;
        while let Some(request) = self.control.take() {
            requests += 1;
            match request {
                Control::User { user, answer } => {
                    let _ = answer.send(self.shard.described_sessions(user));
                }
                Control::Users { users, answer } => {
                    let sessions = users.into_iter().map(|user| self.shard.described_sessions(user));
                    let _ = answer.send(sessions.collect());
                }
                Control::Kick { user, device, answer } => self.shard.kick_user(user, device, answer),
                Control::View { view, life } => self.shard.set_view(view, life),
                Control::Memo { node, life, body } => self.shard.send_memo(&node, life, &body),
                Control::Sessions { from_slot, max, answer } => {
                    let _ = answer.send(self.shard.sessions_page(from_slot, max));
                }
                Control::List { from_slot, max, answer } => drop(answer.send(self.shard.sessions_list(from_slot, max))),
                Control::Tell { sessions } => self.shard.tell_again(&sessions),
                Control::End { user, session, reason } => self.shard.end_session(user, session, reason),
                Control::Outbid { user, session, above } => self.shard.outbid(user, session, above),
                Control::Drain { ends } => {
                    self.shard.begin_drain(ends);
                    if ends {
                        self.drive_accepts();
                        for listener in 0..self.listeners.len() {
                            self.io.stop_listening(listener as u16);
                        }
                        self.stop_service_accepts();
                    }
                }
                Control::Resume => self.shard.call_off_drain(),
                Control::Store { user, forgets, ask, answer } => self.shard.ask_for_control(user, forgets, ask, answer),
                Control::Group { group, ask, answer } => self.shard.ask_group(group, *ask, answer),
                Control::Services { answer } => drop(answer.send(self.shard.services_seen())),
                Control::Instance { service, name, change, is_known, answer } => {
                    let _ = answer.send(self.shard.change_instance(service, &name, change, is_known));
                }
                Control::Reload { limits } => self.shard.reload(&limits),
                #[cfg(debug_assertions)]
                Control::Panic => panic!("a test asked for it"),
            }
        }
        requests
    }

    /// Hands the turn's records to the other shards, and whatever waited for room in a mailbox.
    fn post(&mut self) {
        let Core { io, shard, withdrawals, .. } = self;
        if let Some(portal) = &mut shard.portal {
            portal.post();
        }
        shard.post_upstream_calls();
        shard.post_events();
        shard.post_questions();
        let outgoing = &mut shard.outgoing;
        let mut blocked = outgoing.post(|to| io.wake(to));
        withdrawals.retain(|(to, token)| {
            let posted = outgoing.put_adopt_failed(*to, *token);
            if posted && outgoing.must_wake(*to) {
                io.wake(*to);
            }
            !posted
        });
        blocked |= !withdrawals.is_empty() || !self.waiting.is_empty();
        self.blocked = blocked;
    }

    fn count_turn(&mut self, completions: usize, letters: usize) {
        self.shard.set_gauges();
        let io = self.io.stats();
        let stats = &self.shard.links.stats;
        stats.turns.add(1);
        stats.ring_completions.add(completions as u64);
        stats.ring_cq_overflow.set(io.cq_overflow);
        stats.ring_sq_full.set(io.sq_full);
        stats.ring_submit_retries.set(io.submit_retries);
        stats.mailbox_depth.set(letters as u64);
        stats.arriving.set(self.shard.handovers.arriving() as u64);
    }

    fn count_stale(&self, _conn: ConnId) {
        self.shard.links.stats.ring_stale.add(1);
    }
}
