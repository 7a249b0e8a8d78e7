//! The state of one shard: its connections, users and messages. No I/O and no clock in here or in the steps built on
//! it; [`super::Core`] feeds it completions and carries out what its connections are marked for.

use super::addresses::Addresses;
use super::broadcast::Broadcasts;
use super::entrance::Entrance;
use super::handovers::Handovers;
use super::kicks::Kicks;
use super::links::{Links, TICK_MS, ticks};
use super::stamps::Stamps;
use crate::addresses::AddressBook;
use crate::auth::{AuthReader, AuthSwitch, Refusal};
use crate::conn::{ConnFlags, Phase, Wire};
use crate::desk::{Desk, ShardStore};
use crate::directory::{AWAY_SLACK_TICKS, Directory, Home, Redelivery};
use crate::events::{EventPortals, EventsInner};
use crate::fence::Fence;
use crate::groups::Groups;
use crate::hook::{HookInner, HookPortals};
use crate::inbox::{InboxLimits, Inboxes};
use crate::io::{Now, Peer};
use crate::limits::Placement;
use crate::limits::{Limits, MESH_LINK_SHARE};
use crate::mailbox::{Mailboxes, Outgoing};
use crate::mesh::handshake::Secrets;
use crate::mesh::link::LinkLimits;
use crate::mesh::peers::{Mesh, MeshConfig};
use crate::mesh::wire::Record as FarRecord;
use crate::mesh_news::MeshNewsQueue;
use crate::metrics::ShardStats;
use crate::portal::{InnerEnd, Portals};
use crate::presence_log::{PresenceLog, PresenceWriter};
use crate::pushed::Pushed;
use crate::reason::CloseReason;
use crate::senders::Senders;
use crate::services::{Services, ServicesConfig};
use crate::transport::networks::Proxies;
use crate::transport::tls::{TlsReader, TlsSwitch};
use crate::transport::upgrade;
use crate::watch::Watches;
use std::sync::Arc;
use trunkline_proto::{Bye, Kind, encode_message};
use trunkline_router_core::hash::user_hash;
use trunkline_router_core::presence::{DEFAULT_DEVICE, Embedded, Presence};

/// How long a connection whose end is decided may take to read its last frames.
const LINGER_MS: u64 = 2_000;
/// The shard has not run for a while when so many ticks have passed since its latest turn. Each of them begins with a
/// tick that was asked for.
const JUMP_TICKS: u64 = 10;
/// Clients told to come back later spread their return over this time.
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// What a shard is made of.
pub struct ShardConfig {
    /// This shard, below `shards`.
    pub shard: u16,
    /// Shards of the node.
    pub shards: u16,
    /// Name of the node, told to clients.
    pub node: String,
    pub limits: Limits,
    pub auth: Arc<AuthSwitch>,
    /// Which requests become WebSockets.
    pub upgrade: Arc<upgrade::Rules>,
    /// Who says for others where they are.
    pub proxies: Arc<Proxies>,
    /// Counts the connections of each address; `None` where they are not limited.
    pub address_book: Option<Arc<AddressBook>>,
    /// The certificates of the node; `None` without TLS.
    pub tls: Option<Arc<TlsSwitch>>,
    /// Whether every connection has to begin with TLS.
    pub tls_required: bool,
    /// The same for what comes from each listener for clients; empty is none.
    pub listeners_tls_only: Arc<[bool]>,
    pub stats: Arc<ShardStats>,
    pub mailboxes: Mailboxes,
    /// Where sessions are told of; `None` when the node is alone.
    pub presence_log: Option<Arc<PresenceLog>>,
    pub placement: Placement,
    /// How the node takes part in a cluster; `None` when it is alone.
    pub cluster: Option<ShardCluster>,
    /// Where messages are kept for users who are offline; `None` without a store.
    pub store: Option<ShardStore>,
    /// How clients' calls come to services; `None` where there are none.
    pub services: Option<ServicesConfig>,
    /// The ways to the services thread; `None` where there is none.
    pub portals: Option<Portals>,
    /// The ways of events to webhooks; `None` where there are none.
    pub events: Option<EventPortals>,
    /// The ways to the connect-time hook; `None` without one.
    pub hook: Option<HookPortals>,
}

/// What a shard needs to be one of several nodes'.
#[derive(Clone, Debug)]
pub struct ShardCluster {
    /// Until when the node may serve.
    pub state: Arc<Fence>,
    /// Where to tell what is heard of other nodes.
    pub news: MeshNewsQueue,
    pub secrets: Secrets,
    /// Most links to another node; 0 for one for each shard.
    pub links_max: u16,
    /// Whether this shard has the listener for other nodes, as the one behind those for clients.
    pub listens: bool,
}

/// State of one shard: what it is in its node, and the owners of what it knows. Each owner has its own state and
/// changes it by its own verbs; a step of the shard brings several of them together. Nothing outside of this module and
/// the steps built on it sees any of them.
pub(crate) struct Shard {
    pub(super) shard: u16,
    pub(super) shards: u16,
    pub(super) node: String,
    pub(super) auth: AuthReader,
    pub(super) entrance: Entrance,
    pub(super) addresses: Addresses,
    pub(super) tls: Option<TlsReader>,
    pub(super) links: Links,
    pub(super) presence: Embedded,
    /// Tells the cluster of sessions; `None` when the node is alone.
    pub(super) presence_log: Option<PresenceWriter>,
    /// The node is no member of a cluster: it is everybody's home, and nothing of what follows is used.
    pub(super) alone: bool,
    /// Whether the node may serve in this turn: it is alone, or has its lease.
    pub(super) serving: bool,
    /// The life of the node that this shard knows of.
    pub(super) life: u64,
    pub(super) cluster: Option<ShardCluster>,
    pub(super) mesh: Option<Mesh>,
    pub(super) directory: Directory,
    pub(super) kicks: Kicks,
    /// The store; `None` without one.
    pub(super) desk: Option<Desk>,
    pub(super) groups: Groups,
    pub(super) watches: Watches,
    /// To whom sessions may write, where that is for tokens to say.
    pub(super) senders: Senders,
    /// Calls to services, and the workers' links; `None` where there are none.
    pub(super) services: Option<Box<Services>>,
    /// The way to the services thread; `None` where there is none.
    pub(super) portal: Option<Box<InnerEnd>>,
    /// What is told to webhooks; `None` where there are none.
    pub(super) events: Option<Box<EventsInner>>,
    /// Logins that the application is asked about; `None` where it is not.
    pub(super) hook: Option<Box<HookInner>>,
    pub(super) inboxes: Inboxes,
    /// Pushes that were taken lately, for those that come again.
    pub(super) pushed: Pushed,
    /// Pushes to all sessions that go through those of this shard.
    pub(super) broadcasts: Broadcasts,
    /// When messages of a user may be over.
    pub(super) ends: Redelivery,
    pub(super) outgoing: Outgoing,
    pub(super) handovers: Handovers,
    pub(super) now: Now,
    /// The latest tick of the monotonic clock that was seen.
    mono_tick: u64,
    pub(super) stamps: Stamps,
    pub(super) drain: Option<Drain>,
}

/// Progress of a drain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
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
    deadline_tick: u32,
}

/// How long a connection for which there is no room has for its first bytes, and for a request of HTTP.
const TURN_AWAY_MS: u64 = 1_000;

impl Shard {
    pub(crate) fn new(config: ShardConfig) -> Self {
        let limits = &config.limits;
        let users_max = limits.connections_max as usize + limits.remote_sessions_max as usize;
        let redeliveries = u32::from(limits.redeliver_attempts_max) + 1;
        let away_ticks = ticks(limits.redeliver_ms) * redeliveries + AWAY_SLACK_TICKS;
        let mesh = config.cluster.as_ref().map(|cluster| {
            Mesh::new(MeshConfig {
                node: config.node.clone(),
                secrets: cluster.secrets.clone(),
                shard: config.shard,
                shards: config.shards,
                links_max: cluster.links_max,
                link: LinkLimits {
                    bytes_max: limits.mesh_bytes_max / MESH_LINK_SHARE,
                    reserve_bytes: limits.mesh_bytes_max / MESH_LINK_SHARE / 4,
                },
                bytes_max: limits.mesh_bytes_max,
                lease_ms: cluster.state.lease_ms(),
            })
        });
        let entrance =
            Entrance::new(config.upgrade.clone(), config.tls_required, config.listeners_tls_only, config.placement);
        let of_services = config.services.as_ref().is_some_and(ServicesConfig::needs_addresses);
        Shard {
            presence: Embedded::new(limits.devices_per_user_max, users_max),
            alone: config.cluster.is_none(),
            serving: config.cluster.is_none(),
            life: 0,
            mesh,
            directory: Directory::new(limits, away_ticks),
            kicks: Kicks::default(),
            stamps: Stamps::new(config.store.as_ref().map_or(0, |store| store.highest_stamp)),
            desk: config.store.map(|store| Desk::new(store.port(config.shard), store.key, store.shared)),
            portal: config.portals.map(|portals| Box::new(portals.inner(config.shard))),
            events: config.events.map(|events| Box::new(events.inner(config.shard))),
            addresses: Addresses::new(config.proxies, config.upgrade, config.address_book)
                .for_others(config.hook.is_some() || of_services),
            hook: config.hook.map(|hook| Box::new(hook.inner(config.shard))),
            services: config.services.map(|services| Box::new(Services::new(services, config.shard, config.shards))),
            cluster: config.cluster,
            presence_log: config.presence_log.map(|log| PresenceWriter::new(log, limits.slots())),
            inboxes: Inboxes::new(InboxLimits {
                per_user_max: limits.unacked_per_user_max,
                user_bytes_max: limits.unacked_bytes_per_user_max,
                bytes_max: limits.unacked_total_bytes_max,
            }),
            pushed: Pushed::default(),
            broadcasts: Broadcasts::default(),
            ends: Redelivery::default(),
            groups: Groups::default(),
            watches: Watches::default(),
            senders: Senders::new(limits.slots()),
            outgoing: Outgoing::new(config.shard, config.mailboxes, limits.mailbox_bytes_max),
            handovers: Handovers::default(),
            now: Now::default(),
            mono_tick: 0,
            drain: None,
            shard: config.shard,
            shards: config.shards,
            node: config.node,
            auth: config.auth.reader(),
            entrance,
            tls: config.tls.map(|tls| tls.reader()),
            links: Links::new(config.limits, config.stats),
        }
    }

    /// Takes the time of this turn. Returns whether a tick has passed.
    pub(crate) fn set_now(&mut self, now: Now) -> bool {
        self.now = now;
        self.links.tokens.set_now(now.wall_ms);
        if let Some(cluster) = &self.cluster {
            // With a new life comes a new view. Before that, what came over the links of the life before must not be
            // served.
            let may_serve = cluster.state.may_serve(now.mono_ms);
            self.serving = may_serve && (self.directory.routing.is_none() || cluster.state.life() == self.life);
            self.outgoing.set_life(self.life);
        }
        self.pass(now.mono_ms / TICK_MS)
    }

    /// Lets the shard's clock pass to this tick of the monotonic one. Time in which the shard did not run, because the
    /// process was stopped or had no core, is not counted: what its connections sent meanwhile waits in their sockets,
    /// and no timer of theirs may run out before that is read. Returns whether a tick has passed.
    fn pass(&mut self, mono_tick: u64) -> bool {
        let passed = mono_tick.saturating_sub(self.mono_tick);
        if passed == 0 {
            return false;
        }
        self.mono_tick = mono_tick;
        let jumped = passed >= JUMP_TICKS;
        self.links.stats.clock_jumps.add(u64::from(jumped && self.links.tick > 0));
        self.links.tick += if jumped { 1 } else { passed as u32 };
        true
    }

    /// The next position in the inboxes of this shard's users: strictly increasing, whatever the clock does.
    pub(crate) fn next_stamp(&mut self) -> u64 {
        let salt = self.salt();
        self.stamps.next(self.now.wall_ms, salt)
    }

    /// Ten bits that other shards of the cluster hardly ever have; 0 when the node is alone.
    fn salt(&self) -> u64 {
        if self.alone {
            return 0;
        }
        user_hash(self.own_key().0 ^ u64::from(self.shard)) & 0x3FF
    }

    /// The next session id for a device: in a cluster above that of the session which the device has anywhere.
    pub(crate) fn next_session(&mut self, user: u64, device: &str) -> u64 {
        if self.alone {
            return self.stamps.next_session(self.now.wall_ms, self.shard, self.shards);
        }
        let device = if device.is_empty() { DEFAULT_DEVICE } else { device };
        let known = self.presence.sessions(user).iter().find(|entry| entry.device() == device);
        let known = known.map_or(0, |entry| entry.session);
        let salt = self.salt();
        self.stamps.next_session_above(known, self.now.wall_ms, salt)
    }

    /// A connection was accepted into a slot, from a peer if that had to be known.
    pub(crate) fn accepted(&mut self, slot: u32, peer: Option<Peer>) {
        if self.links.slots.occupy(slot, Phase::Handshake).is_none() {
            self.links.stats.ring_stale.add(1);
            return;
        }
        let stats = &self.links.stats;
        stats.accepted.add(1);
        stats.open.add(1);
        let full = self.links.stats.open.get() > u64::from(self.links.limits.connections_max);
        let wait_ms = if self.ends() || full {
            self.links.stats.limit_connections.add(u64::from(!self.ends()));
            self.links.slots.at(slot).wire.set(Wire::TURNED_AWAY);
            TURN_AWAY_MS
        } else {
            self.links.limits.login_timeout_ms
        };
        self.links.wheel.arm(slot, self.links.tick + ticks(wait_ms));
        self.links.mark_dirty(slot);
        if let Some(peer) = peer {
            self.meet(slot, peer);
        }
    }

    /// Whether the connection has to begin with TLS.
    pub(crate) fn needs_tls(&mut self, slot: u32) -> bool {
        self.entrance.needs_tls(self.links.slots.at(slot))
    }

    /// Ends a connection for which there was no room when it was accepted.
    pub(crate) fn turn_away(&mut self, slot: u32) {
        self.close(slot, if self.ends() { CloseReason::Draining } else { CloseReason::Overloaded });
    }

    /// Decides and counts the end of a connection. What is queued for it is still sent, then the reason's BYE; a
    /// connection whose end is decided already keeps its first reason.
    pub(crate) fn close(&mut self, slot: u32, reason: CloseReason) {
        self.close_towards(slot, reason, String::new());
    }

    /// The same, with the address the client is to connect to instead.
    pub(crate) fn close_towards(&mut self, slot: u32, reason: CloseReason, redirect: String) {
        let text = match reason {
            CloseReason::LoginTimeout => "no LOGIN came in time",
            CloseReason::TokenExpired => Refusal::Expired.text(),
            _ => reason.code().map_or("", |code| code.text()),
        };
        self.close_with(slot, reason, redirect, text);
    }

    /// The same, with words of its own.
    pub(crate) fn close_with(&mut self, slot: u32, reason: CloseReason, redirect: String, text: &str) {
        let tick = self.links.tick;
        let conn = self.links.slots.at(slot);
        let phase = conn.phase;
        if !matches!(phase, Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open) {
            return;
        }
        let user = conn.user;
        // In front of a PROXY header there is nobody who could be told anything.
        let mute = conn.wire.awaits_header();
        if mute {
            conn.wire.change_kind(Wire::NATIVE);
        }
        if phase == Phase::HandingOver
            && let Some(wrapped) = self.handovers.take_departing(slot).and_then(|mut adoptee| adoptee.wrapped.take())
        {
            // It has not been sent off yet, and will not be: it is told so in the language it speaks.
            self.links.put_back_wrapped(slot, *wrapped);
        }
        if phase == Phase::Open && self.services.is_some() {
            self.calls_end(slot);
        }
        if self.links.slots.at(slot).flags.has(ConnFlags::DIALED) {
            self.dialed_ends(slot, reason);
        }
        self.forget_hook(slot);
        let conn = self.links.slots.at(slot);
        conn.wire.clear(Wire::TURNED_AWAY);
        conn.reason = Some(reason);
        conn.phase = if reason == CloseReason::PeerReset { Phase::Finishing } else { Phase::Closing };
        self.links.stats.count_close(reason);
        self.links.stats.open.sub(1);
        self.addresses.left(slot);
        self.links.take_partial(slot);
        self.links.forget_flood(slot);
        if reason == CloseReason::TooSlow {
            // What it did not take so far it will not take now; only the BYE is worth a try.
            self.links.discard_pending(slot);
            self.links.slots.at(slot).flags.set(ConnFlags::RESET);
        }
        let wire = self.links.slots.at(slot).wire;
        let kind = wire.kind();
        // Where everything is to go over TLS nothing is said without it.
        let in_clear = self.needs_tls(slot) && !wire.has(Wire::TLS);
        if let Some(code) = reason.code()
            && kind != Wire::HTTP
            && !wire.is_shaking()
            && !in_clear
            && !mute
        {
            let bye = self.bye(reason, slot, redirect, text);
            self.links.append(slot, |out| encode_message(out, Kind::Bye, code.as_u16(), &bye));
        }
        if kind != Wire::NATIVE && !wire.is_shaking() {
            self.say_goodbye(slot, reason, text);
        }
        if wire.has(Wire::TLS) {
            self.say_goodbye_tls(slot, reason);
        }
        self.links.wheel.arm(slot, tick + ticks(LINGER_MS));
        self.links.mark_dirty(slot);
        match phase {
            Phase::Open => {
                self.leave_parts(slot);
                self.watches_end(slot);
                self.senders.forget(slot);
                self.session_ended(slot, user, reason);
            }
            // Should the home have taken the session by now, its answer finds nobody and is taken back.
            Phase::Registering => {
                drop(self.directory.registrations.forget(slot));
                if let Some(desk) = &mut self.desk {
                    desk.take_login(slot);
                }
            }
            _ => {}
        }
    }

    /// The parting words: when to come back where that helps, spread so that not all come at once.
    fn bye(&self, reason: CloseReason, slot: u32, redirect: String, text: &str) -> Bye {
        // Slots of different shards have the same numbers.
        let of_shard = user_hash(self.shard.into());
        let spread = user_hash(of_shard ^ (u64::from(slot) << 44 | self.now.wall_ms)) % RECONNECT_SPREAD_MS;
        let reconnect_after_ms = match reason {
            CloseReason::Draining | CloseReason::Overloaded => 500 + spread as u32,
            _ => 0,
        };
        Bye { reconnect_after_ms, redirect, text: text.to_owned() }
    }

    /// The session of a connection of this shard has ended.
    fn session_ended(&mut self, slot: u32, user: u64, reason: CloseReason) {
        let mut sessions = self.presence.sessions(user).iter();
        let Some(session) = sessions.find(|entry| entry.slot == slot).map(|entry| entry.session) else {
            // A newer session of the device took its place; whatever waits, waits for that one.
            return;
        };
        let ended = self.remove_session(user, session);
        if let (Some(log), Some(entry)) = (&mut self.presence_log, &ended) {
            log.ended(user, entry);
        }
        if let Some(entry) = &ended {
            self.tell_logout(user, entry, reason);
        }
        if let Home::There { node, shard } = self.home(user)
            && self.send_far(node, shard, &FarRecord::Unregister { user, session, hops: 0 }).is_err()
        {
            // The home finds out when it sends something to this session.
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// The slot's connection is gone.
    pub(crate) fn closed(&mut self, slot: u32) {
        self.links.wheel.disarm(slot);
        self.links.take_partial(slot);
        self.links.forget_wrapped(slot);
        if self.links.slots.at(slot).flags.has(ConnFlags::MESH)
            && let Some(mesh) = &mut self.mesh
        {
            mesh.closed(slot);
        }
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
        if !self.alone {
            self.expire_far();
        }
        if self.desk.is_some() {
            self.expire_kept();
        }
        self.expire_ends();
        self.links.stats.limit_pushes_remembered.add(u64::from(self.pushed.turn_over(tick)));
        self.expire_broadcasts();
        self.expire_groups();
        self.expire_watches();
        if self.services.is_some() {
            self.expire_calls();
        }
        if self.events.is_some() {
            self.expire_events();
        }
    }

    /// The same for what is not a connection's.
    fn expire_far(&mut self) {
        let tick = self.links.tick;
        self.kicks_due();
        self.redeliver_remote();
        while let Some(away) = self.directory.sent_away.take_overdue(tick) {
            self.give_up_away(vec![away]);
        }
        self.ask_again();
        if self.directory.parked_bytes() > 0 {
            self.release_parked();
            self.release_parked_rooms();
        }
    }

    fn expired(&mut self, slot: u32) {
        let tick = self.links.tick;
        let hot_ticks = ticks(self.links.limits.hot_idle_ms);
        let full_ticks = ticks(self.links.limits.outbox_full_ms_max);
        if self.links.slots.at(slot).phase == Phase::Registering && self.stop_waiting_for_store(slot) {
            return;
        }
        let conn = self.links.slots.at(slot);
        match conn.phase {
            Phase::Handshake if conn.wire.has(Wire::TURNED_AWAY) => self.turn_away(slot),
            Phase::Handshake | Phase::Registering => {
                self.links.stats.limit_login_timeout.add(1);
                self.close(slot, CloseReason::LoginTimeout);
            }
            Phase::Open => {
                let full = conn.outbox.as_ref().and_then(|outbox| outbox.too_slow_since());
                if full.is_some_and(|since| since + full_ticks <= tick) {
                    self.links.stats.limit_outbox_full_time.add(1);
                    return self.close(slot, CloseReason::TooSlow);
                }
                if self.groups.joins.is_held(slot) {
                    // Who is not heard is not silent. What it is held for has a clock of its own.
                    conn.alive_tick = tick;
                }
                if super::links::idle_tick(conn) <= tick && !conn.flags.has(ConnFlags::PAUSED) {
                    self.links.stats.limit_heartbeat.add(1);
                    return self.close(slot, CloseReason::Idle);
                }
                if conn.ping_tick().is_some_and(|due| due <= tick) && !conn.flags.has(ConnFlags::PAUSED) {
                    self.ping_wrapped(slot);
                }
                if self.links.tokens.is_over(slot) {
                    return self.close(slot, CloseReason::TokenExpired);
                }
                let conn = self.links.slots.at(slot);
                let user = conn.user;
                if conn.flags.has(ConnFlags::HOT) && conn.cold_tick(hot_ticks) <= tick {
                    conn.flags.clear(ConnFlags::HOT);
                    self.links.forget_flood(slot);
                    self.links.mark_dirty(slot);
                }
                self.note_seen(slot, user);
                self.redeliver_due(user);
                self.links.arm_session(slot, &mut self.inboxes);
            }
            Phase::Closing => {
                conn.phase = Phase::Finishing;
                if conn.outbox.is_some() {
                    conn.flags.set(ConnFlags::RESET);
                }
                self.links.wheel.arm(slot, tick + ticks(LINGER_MS));
                self.links.mark_dirty(slot);
            }
            // Its operations have not ended although they were cancelled: a cancel that came before its operation was
            // known to the kernel did nothing.
            Phase::Finishing => {
                conn.flags.clear(ConnFlags::READ_CANCELLED);
                conn.flags.clear(ConnFlags::SEND_CANCELLED);
                self.links.stats.finishing_retries.add(1);
                self.links.wheel.arm(slot, tick + ticks(LINGER_MS));
                self.links.mark_dirty(slot);
            }
            // It does not take the answers it asked for before its LOGIN.
            Phase::HandingOver if !conn.flags.has(ConnFlags::OP_PENDING) => {
                self.links.stats.limit_login_timeout.add(1);
                self.close(slot, CloseReason::LoginTimeout);
            }
            // A hand-over and a close end by themselves.
            Phase::Free | Phase::HandingOver | Phase::Mesh | Phase::Closed => {}
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
                // Workers answer what is open until all sessions have gone.
                (Phase::Open, _) if conn.flags.has(ConnFlags::SERVICE) => {}
                (Phase::Open, user) => {
                    self.links.stats.sessions_drained.add(1);
                    self.dismiss(slot, user);
                }
                (Phase::Registering, user) => self.dismiss(slot, user),
                (Phase::Handshake, _) if drain.ends => self.close(slot, CloseReason::Draining),
                (Phase::HandingOver, _) if drain.ends && !conn.flags.has(ConnFlags::OP_PENDING) => {
                    self.close(slot, CloseReason::Draining);
                }
                // Whoever logs in is sent away then.
                _ => {}
            }
        }
        self.drain = Some(Drain { cursor: end, ..drain });
        // Calls of other nodes are answered as long as there is time.
        let in_time = self.links.tick + ticks(LINGER_MS) < drain.deadline_tick;
        if self.services.is_some() && passed >= u64::from(drain.spread) && !(in_time && self.has_far_calls()) {
            self.dismiss_workers();
        }
    }

    /// Ends a connection of a draining node: its user goes on at home, as the present view has it.
    pub(crate) fn dismiss(&mut self, slot: u32, user: u64) {
        let home = self.other_home(user).unwrap_or_default();
        self.close_towards(slot, CloseReason::Draining, home);
    }

    /// Whether the shard takes no connections any more and will end.
    pub(crate) fn ends(&self) -> bool {
        self.drain.is_some_and(|drain| drain.ends)
    }

    /// Bytes that this shard holds for other nodes.
    pub(super) fn mesh_bytes(&self) -> usize {
        self.mesh.as_ref().map_or(0, Mesh::bytes)
    }

    /// Whether a drain that ends the shard has come to its end: here, and at the other shards, which may still send on
    /// to this one what other nodes send to them.
    pub(crate) fn drained(&self) -> bool {
        let Some(drain) = self.drain.filter(|drain| drain.ends) else { return false };
        if self.links.tick >= drain.deadline_tick {
            return true;
        }
        let mesh_bytes = self.mesh_bytes();
        self.outgoing.set_mesh_bytes(mesh_bytes);
        let nodes = self.mesh.as_ref().map_or(0, |mesh| mesh.connections());
        let empty = self.links.slots.in_use() == nodes && self.handovers.arriving() == 0;
        // The others know the view in which this node is no home, and have confirmed what was sent on to them.
        let directory = &self.directory;
        let told = !directory.is_changing() && directory.parked_bytes() == 0;
        let confirmed = mesh_bytes == 0;
        // What is owed is committed before the end.
        let stored = self.desk.as_ref().is_none_or(Desk::is_idle) && !self.has_pushes() && !self.holds_fates();
        let stored = stored && self.groups.marks.is_empty();
        // What was handed to others for other nodes is on its way before this shard says that it has nothing more.
        let taken = self.alone || self.outgoing.has_drained() || self.outgoing.pending_bytes() == 0;
        empty
            && told
            && stored
            && confirmed
            && taken
            && self.outgoing.own().close_to_adoptees()
            && self.outgoing.all_drained()
    }

    /// Whether a drain has taken as long as it may.
    pub(crate) fn drain_is_late(&self) -> bool {
        self.drain.is_some_and(|drain| drain.ends && self.links.tick >= drain.deadline_tick)
    }

    /// Closes the connections whose answers no longer fit.
    pub(crate) fn close_overflowed(&mut self) {
        while let Some(slot) = self.links.overflowed.pop() {
            self.close(slot, CloseReason::TooSlow);
        }
    }

    /// Brings those gauges up to date that take a look at many things.
    pub(crate) fn set_tick_gauges(&mut self) {
        let slow = self.links.sweep_slow();
        let stats = &self.links.stats;
        stats.broadcast_walks.set(self.broadcast_walks() as u64);
        stats.slow_outboxes.set(slow as u64);
        stats.unsent_bytes.set(slow as u64 * u64::from(self.links.limits.unsent_bytes_max));
        stats.mailbox_pending_bytes.set(self.outgoing.pending_bytes() as u64);
    }

    /// Brings the gauges up to date.
    pub(crate) fn set_gauges(&self) {
        let stats = &self.links.stats;
        let directory = &self.directory;
        stats.sessions.set((self.presence.session_count() - directory.remotes.len()) as u64);
        stats.users.set((self.presence.users() - directory.remote_only_users()) as u64);
        stats.remote_sessions.set(directory.remotes.len() as u64);
        stats.registering.set(directory.registrations.len() as u64);
        stats.messages_owed.set(directory.sent_away.len() as u64);
        stats.parked_bytes.set(directory.parked_bytes() as u64);
        stats.redelivery_users.set(directory.redelivery.len() as u64);
        stats.settling.set(directory.is_changing().into());
        stats.pushes_remembered.set(self.pushed.len() as u64);
        stats.messages_pending.set(self.inboxes.messages() as u64);
        stats.unacked_bytes.set(self.inboxes.bytes() as u64);
        stats.outbox_bytes.set(self.links.outbox_bytes() as u64);
        stats.partial_bytes.set(self.links.partial_bytes() as u64);
        stats.websockets_within.set(self.links.wrapped() as u64);
        if let Some(services) = &self.services {
            stats.service_links.set(services.links.len() as u64);
            stats.calls_open.set(services.callers.values().map(Vec::len).sum::<usize>() as u64);
            stats.calls_waiting.set(services.queued() as u64);
            stats.calls_kept_bytes.set(services.kept_bytes() as u64);
            stats.service_places.set(services.nodes.len() as u64);
        }
        if let Some(desk) = &self.desk {
            stats.store_asked.set(desk.asked() as u64);
            stats.storing.set(desk.appends() as u64);
            stats.store_silence_us.set(u64::from(desk.silent_ticks(self.links.tick)) * TICK_MS * 1_000);
            stats.store_logins.set(desk.logins() as u64);
            stats.duplicates_known.set(desk.duplicates.len() as u64);
        }
        if let Some(events) = &self.events {
            stats.events_held.set(events.held() as u64);
        }
        self.set_group_gauges();
        self.set_watch_gauges();
        stats.send_claims.set(self.senders.len() as u64);
        stats.send_claim_bytes.set(self.senders.bytes() as u64);
        stats.tls_connections.set(self.links.tls.sessions.len().into());
        stats.tls_shaking.set(self.links.tls.shaking().into());
    }
}
