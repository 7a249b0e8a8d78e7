//! Starts the shards: a pinned glommio executor on each core, hosting the data rings of its shards.
//!
//! While there is work, a shard alone on its core waits in its data ring itself, so that a turn costs one system call.
//! Shards that share a core take turns on its one thread: those with nothing to do are skipped without a system call,
//! nobody switches threads, and what arrives for a shard while another has its turn is handled together. Only when all
//! rings of a core have been quiet for `RING_WAIT_MICROS` does the thread sleep in the executor, on the eventfd that
//! rings and control thread signal.
//!
//! A shard that panics ends alone: the panic is caught around its turn, the other shards go on and tell their clients
//! to go elsewhere, and only then does the process end.

use crate::addresses::{AddressBook, PerAddress};
use crate::auth::AuthSwitch;
use crate::cluster::{MeshNewsQueue, Secrets};
use crate::control::ControlPort;
use crate::core::{BLOCKED_WAIT_MICROS, Core, ShardCluster, ShardConfig};
use crate::cores::Cores;
use crate::desk::ShardStore;
use crate::events::EventPortals;
use crate::fence::Fence;
use crate::hook::HookPortals;
use crate::limits::Limits;
use crate::mailbox::{Mailboxes, mailboxes};
use crate::metrics::ShardStats;
use crate::nap::Nap;
use crate::portal::Portals;
use crate::presence_log::PresenceLog;
use crate::services::WorkerKeys;
use crate::services::{CallPortals, DialedServers, ServiceSpec, ServicesConfig};
use crate::transport::networks::Proxies;
use crate::transport::tls::TlsSwitch;
use crate::transport::upgrade;
use crate::waker::Waker;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use std::mem::ManuallyDrop;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::{fmt, io};
use tokio::sync::mpsc;
use trunkline_uring::{Parking, RingFds, Uring};

/// How long a core without work waits for its rings before it sleeps in the executor, which costs some microseconds to
/// enter and leave.
const RING_WAIT_MICROS: u32 = 1_000;
/// A busy core lets the executor's other tasks run after this many turns.
const TURNS_PER_YIELD: u32 = 64;
/// glommio's own rings carry one read of an eventfd; its defaults (128 entries, 10 MiB of buffers for each core) are
/// made for files.
const EXECUTOR_RING_ENTRIES: usize = 8;
const EXECUTOR_IO_BYTES: usize = 64 << 10;

pub use crate::limits::SHARDS_MAX;

/// What the shards of a node are made of.
#[derive(Debug)]
pub struct ShardsConfig {
    /// Name of the node, told to clients.
    pub node: String,
    /// Limits of each shard.
    pub limits: Limits,
    /// Who may log in; another may take its place while the shards run.
    pub auth: Arc<AuthSwitch>,
    /// Which requests become WebSockets.
    pub upgrade: Arc<upgrade::Rules>,
    /// Who says for others where they are.
    pub proxies: Arc<Proxies>,
    /// The certificates of the node; others may take their place while the shards run. `None` without TLS.
    pub tls: Option<Arc<TlsSwitch>>,
    /// Whether every connection has to begin with TLS.
    pub tls_required: bool,
    /// Bound and listening sockets, by shard; a shard without any accepts nothing. Their number is the number of shards
    /// (1 to [`SHARDS_MAX`]).
    pub listeners: Vec<Vec<OwnedFd>>,
    /// For each of a shard's sockets whether every connection has to begin with TLS there.
    pub listeners_tls_only: Arc<[bool]>,
    /// Where each shard tells of its sessions, by shard; empty when the node is alone.
    pub presence_logs: Vec<Arc<PresenceLog>>,
    /// What becomes of a login at a node that is not the user's home.
    pub placement: crate::config::Placement,
    /// How the node takes part in a cluster; `None` when it is alone.
    pub cluster: Option<ShardsCluster>,
    /// Where messages are kept for users who are offline; `None` without a store.
    pub store: Option<ShardStore>,
    /// How workers come to this node; `None` without services.
    pub services: Option<ShardsServices>,
    /// The ways to the services thread; `None` where there is none.
    pub portals: Option<Portals>,
    /// The ways of events to webhooks; `None` where there are none.
    pub events: Option<EventPortals>,
    /// The ways to the connect-time hook; `None` without one.
    pub hook: Option<HookPortals>,
}

/// What the shards of a node need to have clients call services.
#[derive(Debug)]
pub struct ShardsServices {
    /// What was said of services beforehand.
    pub specs: Arc<[ServiceSpec]>,
    /// The keys of workers.
    pub keys: Arc<dyn WorkerKeys>,
    /// Where workers connect; `None` where all services have servers.
    pub listener: Option<TcpListener>,
    /// Whether they have to begin with TLS there.
    pub tls_required: bool,
    /// The ways to the services thread for calls to HTTP servers; `None` where no service has some.
    pub portals: Option<CallPortals>,
    /// The native servers that the shards dial.
    pub servers: DialedServers,
}

/// What the shards of a node need to be some of a cluster's.
#[derive(Debug)]
pub struct ShardsCluster {
    /// Until when the node may serve.
    pub state: Arc<Fence>,
    /// Where to tell what is heard of other nodes.
    pub news: MeshNewsQueue,
    /// What the nodes of the cluster know and nobody else does.
    pub secrets: Secrets,
    /// Most links to another node, 1 to 64.
    pub links_max: u16,
    /// Where other nodes connect.
    pub listener: TcpListener,
}

/// The running shards.
#[derive(Debug)]
pub struct Shards {
    /// The control thread's end of each shard.
    pub ports: Vec<ControlPort>,
    /// The numbers of each shard.
    pub stats: Vec<Arc<ShardStats>>,
    /// Tells of each shard that ends, in whatever way.
    pub ended: mpsc::UnboundedReceiver<ShardEnd>,
    /// How many shards accept connections for all.
    pub accepting: u16,
    threads: Vec<ExecutorJoinHandle<Result<(), ShardFailure>>>,
    /// Given back when the shards are joined.
    cores: Cores,
}

/// A shard's end.
#[derive(Debug)]
pub struct ShardEnd {
    /// The shard.
    pub shard: u16,
    /// False when its thread panicked or its ring failed.
    pub orderly: bool,
}

/// A shard could not be started or failed.
#[derive(Debug)]
pub struct ShardFailure {
    /// The shard.
    pub shard: u16,
    /// What went wrong.
    pub error: String,
}

impl fmt::Display for ShardFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}: {}", self.shard, self.error)
    }
}

impl std::error::Error for ShardFailure {}

/// Starts all shards and returns when every one of them accepts connections.
///
/// # Errors
/// The first shard that could not be set up; the others have ended by then.
pub fn start(config: ShardsConfig) -> Result<Shards, ShardFailure> {
    let count = config.listeners.len() as u16;
    let mail = mailboxes(count);
    let ring_fds: RingFds = Arc::new((0..count).map(|_| OnceLock::new()).collect());
    let cores = Cores::claim(count.into());
    let executors = cores.ids.len().max(1);
    let gate = Arc::new(Gate { barrier: Barrier::new(executors + 1), failed: AtomicBool::new(false) });
    let (end_sender, ended) = mpsc::unbounded_channel();
    let accepting = config.listeners.iter().filter(|listeners| !listeners.is_empty()).count() as u16;
    let mut shards = Shards { ports: Vec::new(), stats: Vec::new(), ended, accepting, threads: Vec::new(), cores };
    let fail = |shard: u16, error: String| ShardFailure { shard, error };
    let mut wakers = Vec::new();
    for core in 0..executors {
        let waker = Waker::new().map_err(|error| fail(core as u16, format!("making an eventfd: {error}")))?;
        wakers.push(Arc::new(waker));
    }
    let mut seats: Vec<Vec<Seat>> = wakers.iter().map(|_| Vec::new()).collect();
    let mut mesh_listener = None;
    let cluster = match config.cluster {
        Some(ShardsCluster { state, news, secrets, links_max, listener }) => {
            mesh_listener = Some(listener);
            Some(ShardCluster { state, news, secrets, links_max, listens: false })
        }
        None => None,
    };
    let (services, mut services_listener) = match config.services {
        Some(ShardsServices { specs, keys, listener, tls_required, portals, servers }) => {
            (Some(ServicesConfig { specs, keys, listens: false, tls_required, portals, servers }), listener)
        }
        None => (None, None),
    };
    let limits = config.limits.with_accepting(accepting, count);
    let address_book = AddressBook::new(PerAddress {
        open_max: limits.address_connections_max,
        per_sec: limits.address_connections_per_sec,
        handshakes_per_sec: limits.address_handshakes_per_sec,
        addresses_max: limits.addresses_max,
    });
    let address_book = address_book.map(Arc::new);
    for (shard, mut listeners) in (0..count).zip(config.listeners) {
        let client_listeners = listeners.len() as u16;
        let mut cluster = cluster.clone();
        if let (Some(cluster), Some(listener)) = (&mut cluster, mesh_listener.take()) {
            // One shard is enough: it hands each connection to the shard that has the link.
            cluster.listens = true;
            listeners.push(listener.into());
        }
        let mut services = services.clone();
        if let (Some(services), Some(listener)) = (&mut services, services_listener.take()) {
            services.listens = true;
            listeners.push(listener.into());
        }
        let core = usize::from(shard) % executors;
        let stats = Arc::new(ShardStats::default());
        let port = ControlPort::new(wakers[core].clone());
        if let Some(store) = &config.store {
            store.answers.set_waker(shard, wakers[core].clone());
        }
        if let Some(portals) = &config.portals {
            portals.set_waker(shard, wakers[core].clone());
        }
        if let Some(events) = &config.events {
            events.set_waker(shard, wakers[core].clone());
        }
        if let Some(hook) = &config.hook {
            hook.set_waker(shard, wakers[core].clone());
        }
        if let Some(portals) = services.as_ref().and_then(|services| services.portals.as_ref()) {
            portals.set_waker(shard, wakers[core].clone());
        }
        shards.ports.push(port.clone());
        shards.stats.push(stats.clone());
        seats[core].push(Seat {
            port,
            listeners,
            client_listeners,
            end: EndSignal { shard, orderly: false, sender: end_sender.clone() },
            config: ShardConfig {
                shard,
                shards: count,
                node: config.node.clone(),
                limits: limits.clone(),
                auth: config.auth.clone(),
                upgrade: config.upgrade.clone(),
                proxies: config.proxies.clone(),
                address_book: address_book.clone(),
                tls: config.tls.clone(),
                tls_required: config.tls_required,
                listeners_tls_only: config.listeners_tls_only.clone(),
                stats,
                mailboxes: Mailboxes::clone(&mail),
                presence_log: config.presence_logs.get(usize::from(shard)).cloned(),
                placement: config.placement,
                cluster,
                store: config.store.clone(),
                services,
                portals: config.portals.clone(),
                events: config.events.clone(),
                hook: config.hook.clone(),
            },
        });
    }
    for ((core, waker), seats) in wakers.into_iter().enumerate().zip(seats) {
        let placement = match shards.cores.ids.get(core) {
            Some(core) => Placement::Fixed(core.id),
            None => Placement::Unbound,
        };
        let (ring_fds, gate) = (ring_fds.clone(), gate.clone());
        let thread = LocalExecutorBuilder::new(placement)
            .name(&format!("core-{core}"))
            .ring_depth(EXECUTOR_RING_ENTRIES)
            .io_memory(EXECUTOR_IO_BYTES)
            .spawn(move || run_core(seats, waker, ring_fds, gate))
            .map_err(|error| fail(core as u16, format!("starting its executor: {error}")))?;
        shards.threads.push(thread);
    }
    gate.barrier.wait();
    if gate.failed.load(Ordering::SeqCst) {
        return Err(shards.join().err().unwrap_or_else(|| fail(0, "set-up failed".to_owned())));
    }
    Ok(shards)
}

impl Shards {
    /// The cores that the shards run on; none where the system does not tell.
    pub fn core_ids(&self) -> Vec<usize> {
        self.cores.ids.iter().map(|core| core.id).collect()
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first shard that failed.
    pub fn join(self) -> Result<(), ShardFailure> {
        let mut outcome = Ok(());
        for (core, thread) in (0u16..).zip(self.threads) {
            // A core's first shard has its number.
            let executor_failed =
                |error| Err(ShardFailure { shard: core, error: format!("its executor failed: {error}") });
            outcome = outcome.and(thread.join().unwrap_or_else(executor_failed));
        }
        outcome
    }
}

/// Holds the shards back until all rings exist, and lets none go on if one failed.
struct Gate {
    barrier: Barrier,
    failed: AtomicBool,
}

/// Tells the control thread that the shard's thread is over, also when it panics.
struct EndSignal {
    shard: u16,
    orderly: bool,
    sender: mpsc::UnboundedSender<ShardEnd>,
}

impl Drop for EndSignal {
    fn drop(&mut self) {
        // Nobody listens any more when the process is ending anyway.
        let _ = self.sender.send(ShardEnd { shard: self.shard, orderly: self.orderly });
    }
}

/// Everything a shard starts with.
struct Seat {
    config: ShardConfig,
    port: ControlPort,
    listeners: Vec<OwnedFd>,
    /// How many of them are for clients; what is behind them is for other nodes.
    client_listeners: u16,
    end: EndSignal,
}

/// A shard in operation.
struct Running {
    /// Never dropped: other shards may still send to this ring, and the kernel may still read and write what a
    /// connection that did not close had under way. All of it stays until the process ends, which is next, however the
    /// shard ends.
    core: ManuallyDrop<Core<Uring>>,
    stats: Arc<ShardStats>,
    end: EndSignal,
}

impl Running {
    fn new(seat: Seat, waker: &Arc<Waker>, ring_fds: &RingFds) -> Result<Self, ShardFailure> {
        let Seat { config, port, listeners, client_listeners, end } = seat;
        let (shard, stats) = (config.shard, config.stats.clone());
        let uring = Uring::new(shard, &config.limits, listeners, waker.clone(), ring_fds.clone())
            .map_err(|error| ShardFailure { shard, error: error.to_string() })?;
        Ok(Running { core: ManuallyDrop::new(Core::new(uring, config, port, client_listeners)), stats, end })
    }

    /// Whether a turn would find anything, without a system call.
    fn has_work(&mut self) -> bool {
        self.core.io.has_work() || self.core.is_due()
    }

    fn end(mut self) {
        self.end.orderly = true;
    }

    /// A turn, see [`Core::turn`]. `None` when it has panicked, and nothing of the shard may be used again.
    fn turn(&mut self, wait_micros: u32) -> Option<bool> {
        catch_unwind(AssertUnwindSafe(|| self.core.turn(wait_micros))).ok()
    }
}

/// The thread of a core: sets up its shards and turns them until all are drained. A panic in it that is not a shard's
/// own ends all its shards.
async fn run_core(seats: Vec<Seat>, waker: Arc<Waker>, ring_fds: RingFds, gate: Arc<Gate>) -> Result<(), ShardFailure> {
    let first = seats.first().map_or(0, |seat| seat.config.shard);
    let panicked = move || ShardFailure { shard: first, error: "its thread panicked; the log has more".to_owned() };
    let fail =
        |what: &'static str| move |error: io::Error| ShardFailure { shard: first, error: format!("{what}: {error}") };
    let set_up = || -> Result<_, ShardFailure> {
        let running =
            seats.into_iter().map(|seat| Running::new(seat, &waker, &ring_fds)).collect::<Result<Vec<_>, _>>()?;
        let making = fail("making its eventfd");
        Ok((running, Parking::new(&waker).map_err(making)?, Nap::new(&waker).map_err(making)?))
    };
    // The others wait at the gate, so it must be reached.
    let set_up = catch_unwind(AssertUnwindSafe(set_up)).unwrap_or_else(|_| Err(panicked()));
    if set_up.is_err() {
        gate.failed.store(true, Ordering::SeqCst);
    }
    gate.barrier.wait();
    let (mut shards, parking, nap) = set_up?;
    if gate.failed.load(Ordering::SeqCst) {
        return Ok(());
    }
    let mut outcome = Ok(());
    let mut turns = 0u32;
    while !shards.is_empty() {
        let worked = turn_all(&mut shards, &mut outcome);
        if worked != Worked::Nothing {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_PER_YIELD) {
                glommio::yield_if_needed().await;
            }
            if worked == Worked::Waits {
                // The shards of another core have to take something first.
                nap.take(BLOCKED_WAIT_MICROS).map_err(fail("waiting for other shards"))?;
            }
            continue;
        }
        // A ring signals only while its core is about to sleep: signals nobody waits for took 2 to 3 % of the time of a
        // login. The same holds for other shards that wake one of these; `has_work` looks at the mailboxes after it.
        shards.iter_mut().for_each(|shard| {
            shard.core.io.signal(true);
            shard.core.may_wait();
        });
        if !shards.iter_mut().any(Running::has_work)
            && (shards.len() == 1 || !nap.take(RING_WAIT_MICROS).map_err(fail("waiting for its rings"))?)
        {
            shards.iter().for_each(|shard| shard.stats.parks.add(1));
            parking.sleep().await.map_err(fail("reading its eventfd"))?;
        }
        shards.iter_mut().for_each(|shard| shard.core.io.signal(false));
    }
    outcome.and(parking.close().await.map_err(fail("closing its eventfd")))
}

/// What the shards of a core did in a round of turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worked {
    Nothing,
    /// All that is left to do waits for shards of other cores.
    Waits,
    Something,
}

/// One turn of each shard that has something to do; those that are drained or have panicked end.
fn turn_all(shards: &mut Vec<Running>, outcome: &mut Result<(), ShardFailure>) -> Worked {
    let mut worked = Worked::Nothing;
    let mut panicked = None;
    if let [alone] = &mut **shards {
        // It waits in its ring.
        match alone.turn(RING_WAIT_MICROS) {
            Some(true) => worked = Worked::Something,
            Some(false) => {}
            None => panicked = Some(0),
        }
    } else {
        for (at, shard) in shards.iter_mut().enumerate() {
            if shard.has_work() {
                match shard.turn(0) {
                    Some(true) => {
                        let waits = shard.core.only_waits();
                        worked = worked.max(if waits { Worked::Waits } else { Worked::Something });
                    }
                    Some(false) => {}
                    None => {
                        panicked = Some(at);
                        break;
                    }
                }
            }
        }
    }
    if let Some(at) = panicked {
        let shard = shards.remove(at);
        let error = "it panicked; the log has more".to_owned();
        *outcome = std::mem::replace(outcome, Ok(())).and(Err(ShardFailure { shard: shard.end.shard, error }));
        drop(shard);
        // Whoever is left may have had no turn.
        return Worked::Something;
    }
    for ended in shards.extract_if(.., |shard| shard.core.finished()) {
        ended.end();
        // The last one must not leave the thread asleep, with nobody to wake it.
        worked = Worked::Something;
    }
    worked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use crate::listeners::Listeners;

    /// With two shards for each core, so that one panics beside another in its thread and one in another thread.
    #[test]
    fn a_shard_that_panics_takes_no_other_with_it() {
        let count = 2 * core_affinity::get_core_ids().map_or(1, |cores| cores.len()) as u16;
        let listeners = Listeners::bind(&[crate::config::Endpoint::free()], count, &Limits::default()).unwrap();
        let mut shards = start(ShardsConfig {
            node: "n".to_owned(),
            limits: Limits { connections_max: 64, drain_ms: 0, ..Limits::default() },
            auth: crate::auth::AuthSwitch::new(crate::auth::Auth::Open),
            upgrade: Arc::default(),
            proxies: Arc::default(),
            tls: None,
            tls_required: false,
            listeners: listeners.by_shard,
            listeners_tls_only: listeners.tls_only.into(),
            presence_logs: Vec::new(),
            placement: crate::config::Placement::Accept,
            cluster: None,
            store: None,
            services: None,
            portals: None,
            events: None,
            hook: None,
        })
        .unwrap();
        let panicking = count - 1;
        assert!(shards.ports[usize::from(panicking)].send(Control::Panic).is_ok());
        let end = shards.ended.blocking_recv().unwrap();
        assert_eq!((end.shard, end.orderly), (panicking, false));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // The others answer, the one on the same core too.
        for (shard, port) in shards.ports.iter().enumerate().filter(|(shard, _)| *shard != usize::from(panicking)) {
            let (answer, answered) = futures_channel::oneshot::channel();
            assert!(port.send(Control::User { user: 1, answer }).is_ok());
            assert!(runtime.block_on(answered).is_ok_and(|sessions| sessions.is_empty()), "shard {shard}");
        }
        for port in &shards.ports {
            let _ = port.send(Control::Drain { ends: true });
        }
        for _ in 1..count {
            assert!(shards.ended.blocking_recv().unwrap().orderly);
        }
        let failure = shards.join().unwrap_err();
        assert!(failure.shard == panicking && failure.error.contains("panicked"), "{failure}");
    }
}
