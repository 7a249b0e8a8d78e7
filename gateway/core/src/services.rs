//! Calls of clients to services, as far as one shard has to do with them: which workers there are ([`Pool`]), which
//! calls are open ([`Calls`]), and what the shards of a node tell each other of them ([`ServiceRecord`]). No I/O and no
//! clock; what happens on connections is in `core::calls` and `core::service_links`.
//!
//! A call is held in two places, which may be on two shards. The shard of the caller's session counts it and remembers
//! where it went; it gives exactly one last REPLY, unless the session ends first. The shard of the worker's link picks
//! the worker, keeps the window and the time, and gives exactly one last answer to the caller's shard.

mod aside;
mod budget;
mod call_portal;
mod calls;
mod dials;
mod http_spec;
mod ledgers;
mod native_spec;
mod nodes;
mod pick_key;
mod pool;
mod record;
mod seen;
mod servers;
mod spec;

pub use aside::{ASIDE_MAX, ASIDE_MS};
pub use budget::RETRIES_PER_SEC;
pub(crate) use budget::RetryBudget;
pub use call_portal::CallPortals;
pub use call_portal::{CallsInner, CallsOuter};
pub use calls::{At, CALL_BYTES, Call, CallKey, Caller, Calls, Fifo, Kept};
pub use dials::{DIALED_MAX, DIALS_AT_ONCE_MAX, LINKS_PER_SERVER_MAX};
pub(crate) use dials::{Dials, Greeting, Placing};
pub use http_spec::{HealthSpec, HttpServer, HttpSpec, Target};
pub use native_spec::{NativeServer, NativeSpec};
pub(crate) use nodes::Nodes;
pub use nodes::PLACES_MAX;
pub use pick_key::{HashKey, PickKey};
pub(crate) use pool::{Instance, Pool, Room};
pub use record::ServiceRecord;
pub use seen::{Changed, InstanceChange, InstanceSeen, ServerFailure, ServerSeen, ServerState, ServiceSeen};
pub use servers::{DialedServer, DialedServers};
pub use spec::{ServiceSpec, SpecError};

use crate::ids::NodeKey;
use crate::io::ConnId;
use crate::push::Ledger;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::fmt;
use std::sync::Arc;
use trunkline_proto::Serve;
use trunkline_router_core::balance::ServerId;

/// Requests that a link takes at once where its SERVE does not say.
pub const WINDOW_DEFAULT: u32 = 256;
/// Services of one worker.
pub(crate) const OFFERS_MAX: usize = 64;
/// Links that a shard takes. Each has a connection's slot besides.
pub const LINKS_MAX: usize = 1_024;
/// Recipients of pushes with a head that may be open at a shard.
pub const PUSHES_OPEN_MAX: usize = 8_192;
/// Empty lists of open calls that are kept, and the longest of them.
const SPARE_LISTS_MAX: usize = 64;
const SPARE_CALLS_MAX: usize = 32;
/// How long a call may go on after the first answer with MORE; then it ends with 24.
pub const MORE_MS: u64 = 60_000;
/// How often a call is given to a worker, all together.
pub(crate) const TRIES_MAX: u8 = 2;

/// Whether a character may stand in the name of a node or of a worker.
pub fn is_node_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Which services a worker may serve by the key that it shows.
pub trait WorkerKeys: fmt::Debug + Send + Sync {
    /// Whether workers need keys.
    fn are_needed(&self) -> bool;
    /// Whether this key may serve all of these; `None` if it is not a key.
    fn may_serve(&self, key: &str, services: &mut dyn Iterator<Item = u32>) -> Option<bool>;
    /// Whether who serves with this key may also push to groups.
    fn may_push_to_groups(&self, key: &str) -> bool;
}

/// How a shard takes part in services.
#[derive(Clone, Debug)]
pub struct ServicesConfig {
    /// What was said of services beforehand.
    pub specs: Arc<[ServiceSpec]>,
    /// The keys of workers.
    pub keys: Arc<dyn WorkerKeys>,
    /// Whether this shard has the workers' listener, the last of its listeners.
    pub listens: bool,
    /// Whether workers have to begin with TLS.
    pub tls_required: bool,
    /// The ways to the services thread for calls to HTTP servers; `None` where no service has some.
    pub portals: Option<CallPortals>,
    /// The native servers that the shards dial.
    pub servers: DialedServers,
}

/// A worker that has been let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// What it has said, without its key.
    pub(crate) serve: Serve,
    /// Its key has the scope for that, or it needs none.
    pub(crate) pushes_to_groups: bool,
    /// How a server that was dialed takes part; `None` for a worker that has dialed in.
    pub(crate) placing: Option<Placing>,
}

/// A worker's link to this shard.
#[derive(Debug)]
pub(crate) struct ServiceLink {
    pub(crate) name: Box<str>,
    /// The services it serves.
    pub(crate) services: Box<[u16]>,
    /// Requests it takes at once; 0 while it drains.
    pub(crate) window: u32,
    /// What it says itself of that.
    pub(crate) wants: u32,
    /// The most it is given at once, whatever it says of its window.
    pub(crate) cap: u32,
    /// Requests it has, and has not answered.
    pub(crate) in_flight: u32,
    /// Its requests begin with a head.
    pub(crate) heads: bool,
    /// It may push to groups.
    pub(crate) pushes_to_groups: bool,
}

impl ServiceLink {
    /// Whether it takes one more request.
    pub(crate) fn has_window(&self) -> bool {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::WindowIgnored) {
            return self.window > 0;
        }
        self.in_flight < self.window
    }
}

/// A call at the shard of its caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenCall {
    pub(crate) id: u64,
    pub(crate) peer: u64,
    pub(crate) no_reply: bool,
    pub(crate) place: Place,
}

/// Where the link is that a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here(CallKey),
    Shard(u16),
    /// The services thread, for an HTTP server.
    Upstream,
}

/// What one shard knows of services.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) config: ServicesConfig,
    pub(crate) pools: HashMap<u16, Pool>,
    pub(crate) calls: Calls,
    /// Workers' links, by slot.
    pub(crate) links: HashMap<u32, ServiceLink>,
    /// Open calls of sessions, by slot. A session without any is not in it.
    pub(crate) callers: HashMap<u32, Vec<OpenCall>>,
    /// Empty ones, for sessions that begin to call.
    spare_lists: Vec<Vec<OpenCall>>,
    /// Calls that came from other shards, of this node or others, by caller.
    foreign: HashMap<(NodeKey, u16, ConnId, u64), CallKey>,
    /// Where other nodes have workers.
    pub(crate) nodes: Nodes,
    /// Instances that take calls at other shards, by service: the shards that have some, with their number.
    elsewhere: HashMap<u16, Vec<(u16, u16)>>,
    /// Calls that have had an answer with MORE.
    streams: Fifo,
    /// Where the next call for another shard goes, and the next link that asks for no shard.
    turn: usize,
    link_turn: u16,
    pub(crate) rng: SmallRng,
    /// Bytes of calls that are kept because they may have to be sent, or sent again.
    kept_bytes: usize,
    /// Calls that wait for room at a worker.
    queued: usize,
    /// Links whose requests begin with a head.
    pub(crate) heads: usize,
    /// Room for one request's head and body.
    pub(crate) scratch: Vec<u8>,
    /// Pushes of workers with a head whose outcome is not known yet, each with the link that is told.
    pub(crate) pushes: Ledger<ConnId>,
    /// Services whose calls go to HTTP servers, and the way there.
    upstreams: HashSet<u16>,
    /// Services that are balanced by the address of the caller.
    addressed: HashSet<u16>,
    pub(crate) portal: Option<CallsInner>,
    /// Servers that this shard dials.
    pub(crate) dials: Dials,
}

impl ServicesConfig {
    /// Whether it has to be known where clients are.
    pub(crate) fn needs_addresses(&self) -> bool {
        self.specs.iter().any(|spec| spec.key == HashKey::Address)
    }
}

impl Services {
    pub(crate) fn new(config: ServicesConfig, shard: u16, shards: u16) -> Self {
        let mut pools = HashMap::new();
        let mut upstreams = HashSet::new();
        let is_addressed = |spec: &&ServiceSpec| spec.key == HashKey::Address;
        let addressed = config.specs.iter().filter(is_addressed).map(|spec| spec.service).collect();
        for spec in config.specs.iter() {
            if spec.http.is_some() {
                upstreams.insert(spec.service);
                continue;
            }
            pools.insert(spec.service, Pool::new(spec.clone()));
        }
        let portal = config.portals.as_ref().map(|portals| portals.inner(shard));
        let dials = Dials::new(config.servers.clone(), shard, shards);
        Services {
            upstreams,
            addressed,
            portal,
            dials,
            config,
            pools,
            calls: Calls::default(),
            links: HashMap::new(),
            callers: HashMap::new(),
            spare_lists: Vec::new(),
            foreign: HashMap::new(),
            nodes: Nodes::default(),
            elsewhere: HashMap::new(),
            streams: Fifo::default(),
            turn: 0,
            link_turn: 0,
            // Which of two workers is drawn is no secret.
            rng: SmallRng::seed_from_u64(0x5345_5256 ^ u64::from(shard)),
            kept_bytes: 0,
            queued: 0,
            heads: 0,
            scratch: Vec::new(),
            pushes: Ledger::new(PUSHES_OPEN_MAX),
        }
    }

    /// Whether anybody has ever served it, here or at another shard, or it is configured.
    pub(crate) fn is_known(&self, service: u16) -> bool {
        self.pools.contains_key(&service) || self.elsewhere.contains_key(&service) || self.nodes.is_known(service)
    }

    /// Whether the calls of a service go to HTTP servers. A worker that serves such a service may push, and gets no
    /// calls.
    pub(crate) fn is_upstream(&self, service: u16) -> bool {
        self.upstreams.contains(&service)
    }

    /// Whether a service is balanced by the address of the caller.
    pub(crate) fn is_addressed(&self, service: u16) -> bool {
        !self.addressed.is_empty() && self.addressed.contains(&service)
    }

    /// Another shard says how many of its instances take calls of a service.
    pub(crate) fn serves(&mut self, shard: u16, service: u16, instances: u16) {
        let shards = self.elsewhere.entry(service).or_default();
        shards.retain(|(known, _)| *known != shard);
        if instances > 0 {
            shards.push((shard, instances));
            shards.sort_unstable();
        }
    }

    /// The shard for a link that asks for none: one after the other.
    pub(crate) fn next_shard(&mut self, shards: u16) -> u16 {
        self.link_turn = self.link_turn.wrapping_add(1);
        (self.link_turn - 1) % shards
    }

    /// Whether a call may be carried out more than once, so that it is kept for another worker.
    pub(crate) fn keeps(&mut self, key: CallKey) -> bool {
        let Some(call) = self.calls.get(key) else { return false };
        call.keeps(self.pools.get(&call.service).is_some_and(|pool| pool.spec.idempotent))
    }

    /// Notes an open call of the session in a slot.
    pub(crate) fn note_open(&mut self, slot: u32, call: OpenCall) {
        let Services { callers, spare_lists, .. } = self;
        callers.entry(slot).or_insert_with(|| spare_lists.pop().unwrap_or_default()).push(call);
    }

    /// A call of the session in a slot is answered, for the last time if it `ends`. `None` if it is not open.
    pub(crate) fn answered(&mut self, slot: u32, id: u64, ends: bool) -> Option<OpenCall> {
        let Entry::Occupied(mut entry) = self.callers.entry(slot) else { return None };
        let open = entry.get_mut();
        let at = open.iter().position(|call| call.id == id)?;
        let call = open[at];
        if ends {
            open.swap_remove(at);
            if open.is_empty() {
                let list = entry.remove();
                // A session with one call at a time would have memory allocated for each.
                if self.spare_lists.len() < SPARE_LISTS_MAX && list.capacity() <= SPARE_CALLS_MAX {
                    self.spare_lists.push(list);
                }
            }
        }
        Some(call)
    }

    /// A call leaves the worker that has it; returns which that was.
    pub(crate) fn leave_link(&mut self, key: CallKey) -> Option<ServerId> {
        let call = self.calls.get(key)?;
        if let At::Node { .. } = call.at {
            call.at = At::Nowhere;
        }
        let At::Link { slot, server } = call.at else { return None };
        call.at = At::Nowhere;
        if let Some(link) = self.links.get_mut(&slot) {
            link.in_flight -= 1;
        }
        if let Some(pool) = self.pools.get_mut(&call.service) {
            pool.released(server);
        }
        Some(server)
    }

    /// Takes a call out of all that knows of it at this shard, `own`, but its caller. It says where it was, for who has
    /// to be told.
    pub(crate) fn take_out(&mut self, key: CallKey, own: u16) -> Option<Call> {
        let call = self.calls.get(key)?;
        let (has_begun, at) = (call.has_begun, call.at);
        let pool = self.pools.get_mut(&call.service)?;
        if let At::Link { slot, server } = at {
            if let Some(link) = self.links.get_mut(&slot) {
                link.in_flight -= 1;
            }
            pool.released(server);
        }
        let fifo = if has_begun { &mut self.streams } else { &mut pool.fifo };
        let mut call = self.calls.remove(fifo, key)?;
        if at == At::Queue {
            pool.waiting -= 1;
            self.queued -= 1;
            let calls = &mut self.calls;
            pool.sweep_queue(|key| calls.get(key).is_some_and(|call| call.at == At::Queue));
        }
        if let Some(kept) = call.kept.take() {
            self.kept_bytes -= kept.bytes();
        }
        let Caller { node, shard, conn } = call.caller;
        if call.caller.is_far() || shard != own {
            self.foreign.remove(&(node, shard, conn, call.id));
        }
        Some(call)
    }

    /// Another shard for a call of a service that no worker serves here: in turn, by the number of instances.
    pub(crate) fn other_shard(&mut self, service: u16) -> Option<u16> {
        let shards = self.elsewhere.get(&service)?;
        let all: usize = shards.iter().map(|(_, instances)| usize::from(*instances)).sum();
        let mut at = self.turn % all.max(1);
        self.turn = self.turn.wrapping_add(1);
        shards.iter().find_map(|(shard, instances)| {
            let here = at < usize::from(*instances);
            at = at.saturating_sub(usize::from(*instances));
            here.then_some(*shard)
        })
    }

    /// Nothing is left of calls and workers that are gone.
    #[cfg(test)]
    pub(crate) fn assert_empty(&self, shard: u16) {
        let left = (self.calls.len(), self.links.len(), self.callers.len(), self.foreign.len());
        assert_eq!(left, (0, 0, 0, 0), "shard {shard}: calls, links, callers, calls of other shards");
        assert_eq!((self.kept_bytes, self.queued, self.heads), (0, 0, 0), "shard {shard}");
        for pool in self.pools.values() {
            assert_eq!((pool.waiting, pool.instances.len()), (0, 0), "shard {shard}: {}", pool.spec.service);
        }
    }
}
