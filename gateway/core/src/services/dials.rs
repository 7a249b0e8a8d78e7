//! One shard's links to the servers that it dials: which there are, when each is dialed, and what became of it. No I/O
//! and no clock; what happens on connections is in `core::service_dials`.
//!
//! ```text
//! Down ── its time has come ──▶ Dialing ── connected ──▶ Opening ── SERVE taken ──▶ Serving
//!   ▲                             │                        │                          │
//!   └──────── after a pause ──────┴── refused, no answer ──┴── silent, wrong, BYE ────┴── its end
//! ```
//!
//! The pause doubles from one failure to the next and is spread by chance. A link that has served for a while begins
//! anew with the shortest one. There is one link to each address, so what a shard holds is bounded by their number.

use super::servers::DialedServers;
use super::{InstanceChange, NativeServer, ServerFailure, ServerSeen, ServerState};
use crate::io::SERVER_DIAL;
use crate::reason::CloseReason;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Addresses that a shard dials. Those beyond are left out.
pub const DIALED_MAX: usize = 256;
/// Dials of a shard that are under way at a time.
pub const DIALS_AT_ONCE_MAX: usize = 16;
/// Shards that dial: so many links a node makes to a server at most.
pub const LINKS_PER_SERVER_MAX: u16 = 16;
/// The shortest and the longest pause before a server is dialed again, milliseconds.
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 5_000;
/// A link that has served for so long was well.
const WELL_MS: u64 = 10_000;

/// As of nginx's `server`: what takes an instance out after failures, and how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) max_fails: u32,
    pub(crate) fail_timeout_ms: u64,
    pub(crate) slow_start_ms: u64,
}

/// How a link to a server takes part in balancing, whatever it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placing {
    /// The name of the instance: its address.
    pub(crate) name: Arc<str>,
    pub(crate) service: u16,
    pub(crate) weight: u32,
    pub(crate) backup: bool,
    pub(crate) rules: Rules,
    /// Requests that the link takes at once at most.
    pub(crate) cap: u32,
    /// It has served this shard before, so its weight climbs.
    pub(crate) is_back: bool,
    /// What an operator has said of it.
    pub(crate) set: InstanceChange,
}

/// What is said to a server first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) service: u16,
    pub(crate) key: Arc<str>,
}

/// Links by where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standings {
    pub(crate) down: u64,
    pub(crate) dialing: u64,
    pub(crate) opening: u64,
    pub(crate) serving: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down { retry_ms: u64 },
    Dialing { token: u32 },
    Opening { slot: u32 },
    Serving { slot: u32, since_ms: u64 },
}

/// One address.
#[derive(Debug)]
struct Link {
    /// Which of the servers it is of.
    server: usize,
    address: SocketAddr,
    name: Arc<str>,
    state: State,
    attempts: u32,
    has_served: bool,
    /// Why it does not serve; `None` while it does, and before the first try has ended.
    failure: Option<ServerFailure>,
    /// Its name stands for it no more: it ends when its calls have.
    leaves: bool,
    /// What an operator has said of it. It is of the address, and outlives the connections to it.
    set: InstanceChange,
}

impl Link {
    fn slot(&self) -> Option<u32> {
        match self.state {
            State::Opening { slot } | State::Serving { slot, .. } => Some(slot),
            State::Down { .. } | State::Dialing { .. } => None,
        }
    }
}

/// The links of one shard to servers.
#[derive(Debug)]
pub(crate) struct Dials {
    servers: DialedServers,
    seen: u64,
    /// Those of each server, as they were told last.
    addresses: Vec<Vec<SocketAddr>>,
    /// An address waits for the end of a link to it.
    looks_again: bool,
    links: Vec<Link>,
    /// Slots of links whose addresses were gone and are there again, each with the requests that it takes at most.
    returned: Vec<(u32, u32)>,
    next_token: u32,
    shard: u16,
    /// Links that the node makes to each address.
    per_server: u16,
    /// Addresses that were left out because there were too many.
    pub(crate) left_out: u64,
}

impl Dials {
    pub(crate) fn new(servers: DialedServers, shard: u16, shards: u16) -> Self {
        let per_server = shards.min(LINKS_PER_SERVER_MAX);
        Dials {
            servers,
            seen: 0,
            addresses: Vec::new(),
            looks_again: false,
            links: Vec::new(),
            returned: Vec::new(),
            next_token: 0,
            shard,
            per_server,
            left_out: 0,
        }
    }

    /// Takes the addresses that there are now, if they have changed. Returns the slots of links whose addresses are no
    /// more: they get no more calls.
    pub(crate) fn look(&mut self, now_ms: u64) -> Vec<u32> {
        if self.shard >= self.per_server {
            return Vec::new();
        }
        let changed = self.servers.changed(&mut self.seen);
        let is_news = changed.is_some();
        if let Some(addresses) = changed {
            self.addresses = addresses;
        } else if !std::mem::take(&mut self.looks_again) {
            return Vec::new();
        }
        let servers = self.servers.clone();
        let service_of = |server: usize| servers.all()[server].service;
        let mut wanted: BTreeMap<(u16, SocketAddr), usize> = BTreeMap::new();
        for (at, (dialed, addresses)) in servers.all().iter().zip(&self.addresses).enumerate() {
            for address in addresses.iter().filter(|_| !dialed.server.down) {
                if wanted.len() < DIALED_MAX {
                    // Two names may stand for one address: then the first one has it.
                    wanted.entry((dialed.service, *address)).or_insert(at);
                } else {
                    self.left_out += u64::from(is_news);
                }
            }
        }
        let mut leaving = Vec::new();
        let (shard, per_server) = (self.shard, self.per_server);
        self.links.retain_mut(|link| {
            let key = (service_of(link.server), link.address);
            if wanted.get(&key) == Some(&link.server) {
                wanted.remove(&key);
                if std::mem::take(&mut link.leaves)
                    && let Some(slot) = link.slot()
                {
                    let cap = cap_of(&servers.all()[link.server].server, shard, per_server);
                    self.returned.push((slot, cap));
                }
                return true;
            }
            link.leaves = true;
            leaving.extend(link.slot());
            // A dial that is under way finds nobody who waits for it.
            link.slot().is_some()
        });
        for ((service, address), server) in wanted {
            // One that leaves has its place until it has gone.
            if self.links.iter().any(|link| link.address == address && service_of(link.server) == service) {
                self.looks_again = true;
                continue;
            }
            self.links.push(Link {
                server,
                address,
                name: address.to_string().into(),
                state: State::Down { retry_ms: now_ms },
                attempts: 0,
                has_served: false,
                failure: None,
                leaves: false,
                set: InstanceChange::default(),
            });
        }
        leaving
    }

    /// Takes the links whose addresses are there again, before their calls had ended: slots, and how many requests each
    /// takes at most.
    pub(crate) fn take_returned(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.returned)
    }

    /// What an operator says of the instance of that name. It holds as long as the address is dialed, whatever becomes
    /// of connections. False if no such address is.
    pub(crate) fn change(&mut self, service: u16, name: &str, change: InstanceChange) -> bool {
        let servers = &self.servers;
        let of_name = |link: &&mut Link| *link.name == *name && servers.all()[link.server].service == service;
        let Some(link) = self.links.iter_mut().find(of_name) else { return false };
        link.set.drained = change.drained.or(link.set.drained);
        link.set.weight = change.weight.or(link.set.weight);
        true
    }

    /// Addresses of a service of which an operator has said something and that do not serve now: name, what was said,
    /// and the server.
    pub(crate) fn set_aside(&self, service: u16) -> impl Iterator<Item = (&str, InstanceChange, &NativeServer)> {
        let of_service = move |link: &&Link| self.servers.all()[link.server].service == service;
        let is_set = |link: &&Link| link.set != InstanceChange::default();
        let is_away = |link: &&Link| !matches!(link.state, State::Serving { .. });
        let links = self.links.iter().filter(of_service).filter(is_set).filter(is_away);
        links.map(|link| (&*link.name, link.set, &self.servers.all()[link.server].server))
    }

    /// What is to be dialed now, each with a token; not more than there is `room` for.
    pub(crate) fn due(&mut self, now_ms: u64, room: usize) -> Vec<(u32, SocketAddr)> {
        let under_way = self.links.iter().filter(|link| matches!(link.state, State::Dialing { .. })).count();
        let mut due = Vec::new();
        for link in &mut self.links {
            if due.len() >= room || under_way + due.len() >= DIALS_AT_ONCE_MAX {
                break;
            }
            if matches!(link.state, State::Down { retry_ms } if retry_ms <= now_ms) {
                self.next_token = (self.next_token + 1) & (SERVER_DIAL - 1);
                let token = self.next_token | SERVER_DIAL;
                link.state = State::Dialing { token };
                due.push((token, link.address));
            }
        }
        due
    }

    /// Those that are still due are not dialed, because this node has no room for them: they wait as after any failure.
    /// Returns how many those are.
    pub(crate) fn put_off(&mut self, now_ms: u64, mut random: impl FnMut() -> u64) -> u64 {
        let is_due = |link: &Link| matches!(link.state, State::Down { retry_ms } if retry_ms <= now_ms);
        let due: Vec<usize> = (0..self.links.len()).filter(|at| is_due(&self.links[*at])).collect();
        for at in &due {
            self.down(*at, ServerFailure::NoRoom, now_ms, random());
        }
        due.len() as u64
    }

    /// A dial has ended well: what is said to the server. `None`: nobody waits for it any more.
    pub(crate) fn connected(&mut self, token: u32, slot: u32) -> Option<Greeting> {
        let link = self.links.iter_mut().find(|link| link.state == State::Dialing { token })?;
        link.state = State::Opening { slot };
        let dialed = &self.servers.all()[link.server];
        Some(Greeting { service: dialed.service, key: dialed.key.clone() })
    }

    /// A dial has failed. Returns why, if somebody waited for it.
    pub(crate) fn not_connected(&mut self, token: u32, errno: i32, now_ms: u64, random: u64) -> Option<ServerFailure> {
        let at = self.links.iter().position(|link| link.state == State::Dialing { token })?;
        let failure = match errno {
            libc::ECONNREFUSED => ServerFailure::Refused,
            libc::ETIMEDOUT => ServerFailure::Unanswered,
            _ => ServerFailure::Unreachable,
        };
        self.down(at, failure, now_ms, random);
        Some(failure)
    }

    /// How the server in a slot takes part, if it has been dialed and its SERVE is what is waited for.
    pub(crate) fn placing(&self, slot: u32) -> Option<Placing> {
        let link = self.links.iter().find(|link| link.state == State::Opening { slot })?;
        let dialed = &self.servers.all()[link.server];
        let server = &dialed.server;
        let cap = cap_of(server, self.shard, self.per_server);
        Some(Placing {
            name: link.name.clone(),
            service: dialed.service,
            weight: server.weight,
            backup: server.backup,
            rules: Rules {
                max_fails: server.max_fails,
                fail_timeout_ms: server.fail_timeout_ms,
                slow_start_ms: server.slow_start_ms,
            },
            cap: if link.leaves { 0 } else { cap },
            is_back: link.has_served,
            set: link.set,
        })
    }

    /// The server in a slot serves.
    pub(crate) fn serves(&mut self, slot: u32, now_ms: u64) {
        let shard = self.shard;
        let servers = self.servers.clone();
        let Some(link) = self.links.iter_mut().find(|link| link.state == State::Opening { slot }) else { return };
        link.state = State::Serving { slot, since_ms: now_ms };
        (link.has_served, link.failure) = (true, None);
        let service = servers.all()[link.server].service;
        // One shard's word is enough.
        if shard == 0 {
            tracing::info!(service, server = %link.name, "a server that is dialed takes calls");
        } else {
            tracing::debug!(service, server = %link.name, shard, "a server that is dialed takes calls");
        }
    }

    /// The connection in a slot is about to end. Returns why the server does not serve, if it was one that was dialed.
    pub(crate) fn ended(&mut self, slot: u32, reason: CloseReason, now_ms: u64, random: u64) -> Option<ServerFailure> {
        let at = self.links.iter().position(|link| link.slot() == Some(slot))?;
        let link = &mut self.links[at];
        let failure = match (link.state, reason) {
            (State::Serving { since_ms, .. }, _) => {
                if now_ms.saturating_sub(since_ms) >= WELL_MS {
                    link.attempts = 0;
                }
                match reason {
                    CloseReason::Logout => ServerFailure::LoggedOut,
                    _ => ServerFailure::Lost,
                }
            }
            (_, CloseReason::LoginTimeout) => ServerFailure::Silent,
            (_, CloseReason::BadCredentials) => ServerFailure::Key,
            (_, CloseReason::PeerClosed | CloseReason::PeerReset) => ServerFailure::Closed,
            (_, CloseReason::Logout) => ServerFailure::TurnedAway,
            (_, CloseReason::Overloaded | CloseReason::Draining | CloseReason::TooSlow) => ServerFailure::NoRoom,
            _ => ServerFailure::Strange,
        };
        if link.leaves {
            self.links.remove(at);
        } else {
            if reason == CloseReason::Draining {
                // This node ends, which is told by others.
                link.failure = Some(failure);
            }
            self.down(at, failure, now_ms, random);
        }
        Some(failure)
    }

    /// Whether the link in a slot gets no more calls because its address is no more.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = u32> {
        self.links.iter().filter(|link| link.leaves).filter_map(Link::slot)
    }

    fn down(&mut self, at: usize, failure: ServerFailure, now_ms: u64, random: u64) {
        let link = &mut self.links[at];
        let most = ((2 * RETRY_MS_MIN) << link.attempts.min(16)).min(RETRY_MS_MAX);
        let least = most / 2;
        link.attempts = link.attempts.saturating_add(1);
        link.state = State::Down { retry_ms: now_ms + least + random % (most - least + 1) };
        if link.failure.replace(failure) == Some(failure) {
            return;
        }
        let (service, reason) = (self.servers.all()[link.server].service, failure.text());
        if self.shard == 0 {
            tracing::warn!(service, server = %link.name, reason, "a server that is dialed takes no calls; trying on");
        } else {
            let shard = self.shard;
            tracing::debug!(service, server = %link.name, shard, reason, "a server that is dialed takes no calls");
        }
    }

    /// How many links there are, by where they stand.
    pub(crate) fn standings(&self) -> Standings {
        let mut all = Standings::default();
        for link in &self.links {
            match link.state {
                State::Down { .. } => all.down += 1,
                State::Dialing { .. } => all.dialing += 1,
                State::Opening { .. } => all.opening += 1,
                State::Serving { .. } => all.serving += 1,
            }
        }
        all
    }

    /// The servers of a service, as an operator sees them: each address, and those that have none.
    pub(crate) fn seen(&self, service: u16) -> Vec<ServerSeen> {
        let mut seen = Vec::new();
        if self.shard >= self.per_server {
            return seen;
        }
        for (at, dialed) in self.servers.all().iter().enumerate().filter(|(_, dialed)| dialed.service == service) {
            let server = dialed.server.authority();
            let before = seen.len();
            for link in self.links.iter().filter(|link| link.server == at) {
                let state = match (link.state, link.failure) {
                    (State::Serving { .. }, _) => ServerState::Serving,
                    (_, Some(_)) => ServerState::Failing,
                    (_, None) => ServerState::Connecting,
                };
                seen.push(ServerSeen {
                    server: server.clone(),
                    instance: link.name.to_string(),
                    state,
                    links: usize::from(state == ServerState::Serving),
                    failure: link.failure,
                });
            }
            if seen.len() == before {
                let state = if dialed.server.down { ServerState::Down } else { ServerState::Unknown };
                seen.push(ServerSeen { server, instance: String::new(), state, links: 0, failure: None });
            }
        }
        seen
    }
}

/// Requests that the link of a shard to a server takes at most: what it may have at once is shared out exactly, so that
/// the links have no more together.
fn cap_of(server: &NativeServer, shard: u16, per_server: u16) -> u32 {
    match server.max_conns {
        0 => u32::MAX,
        all => {
            let (each, more) = (all / u32::from(per_server), all % u32::from(per_server));
            each + u32::from(u32::from(shard) < more)
        }
    }
}

#[cfg(test)]
mod tests;
