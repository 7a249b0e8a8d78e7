//! The services thread: what back-ends ask by HTTP, off the shards and off the control thread, so that a burst of
//! requests delays no message and no renewal of the lease.
//!
//! It runs on the cores that no shard has, and where there are none with a lower priority. It reaches the shards by
//! their portals ([`crate::portal`]) alone, and never the mesh.

use crate::limits::Limits;
use crate::metrics::ShardStats;
use crate::portal::Portals;
use crate::push::api::{PushApi, router};
use crate::push::desk::Desk;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::future::pending;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};
use tokio::sync::watch;
use trunkline_router::http::{Access, HttpTls, Places, serve};

/// Connections served at a time: each request may wait for its users' devices. They have their place in the memory
/// budget.
pub const CONNECTIONS_MAX: u32 = 512;
/// What a connection takes: the header of a request, its answer, what waits for outcomes. Bodies, and the answers of
/// batches, are counted apart.
pub(crate) const CONNECTION_BYTES: u64 = 24 << 10;
/// How much it yields to shards of its core, where it has none for itself.
const NICE: i32 = 5;

/// What the thread needs of its node.
#[derive(Debug)]
pub struct ServicesThreadConfig {
    /// Where back-ends connect.
    pub listener: TcpListener,
    /// The ways to the shards.
    pub portals: Portals,
    /// The numbers of each shard, by shard.
    pub stats: Vec<Arc<ShardStats>>,
    /// The limits of the node.
    pub limits: Limits,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// Who has a connection.
    pub places: Arc<Places>,
    /// The certificate it shows, that of the HTTP API; `None` where that is in clear.
    pub tls: Option<Arc<HttpTls>>,
    /// The cores that the shards run on.
    pub shard_cores: Vec<usize>,
    /// For what is to differ from run to run.
    pub seed: u64,
}

/// How far the node is with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    /// Nobody is let in any more; requests under way go on.
    Ending,
    /// The shards have ended, so nothing more is heard of what is open.
    Alone,
}

/// The running thread.
#[derive(Debug)]
pub struct ServicesThread {
    phase: watch::Sender<Phase>,
    api: Arc<PushApi>,
    thread: JoinHandle<()>,
}

impl ServicesThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread for it, or what a runtime needs.
    pub fn start(config: ServicesThreadConfig) -> io::Result<Self> {
        let ServicesThreadConfig { listener, portals, stats, limits, access, places, tls, shard_cores, seed } = config;
        listener.set_nonblocking(true)?;
        let bell = portals.bell().clone();
        let desk = Desk::new(portals.outer(limits.portal_bytes_max), stats, &limits, seed);
        let api = Arc::new(PushApi::new(desk, bell.clone(), &limits));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (phase, mut phases) = watch::channel(Phase::Serving);
        let served = api.clone();
        let run = move || {
            place(&shard_cores);
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return tracing::error!("the listener of services_http cannot be used by the services thread");
                };
                let mut ends = phases.clone();
                let routes = router(served.clone(), access);
                let serving = serve(listener, routes, places, tls, async move {
                    drop(ends.wait_for(|at| *at >= Phase::Ending).await)
                });
                let turns = async {
                    loop {
                        bell.notified().await;
                        served.desk().turn();
                    }
                };
                let end = async {
                    drop(phases.wait_for(|at| *at == Phase::Alone).await);
                    served.desk().give_up();
                    pending::<()>().await;
                };
                tokio::select! {
                    () = serving => {}
                    () = turns => {}
                    () = end => {}
                }
            });
        };
        let thread = thread::Builder::new().name("services".to_owned()).spawn(run)?;
        Ok(ServicesThread { phase, api, thread })
    }

    /// Lets nobody in any more. Requests under way go on.
    pub fn end(&self) {
        self.api.desk().end();
        self.phase.send_replace(Phase::Ending);
    }

    /// The shards have ended: whoever still waits is told what is known. Returns when all have their answers.
    pub fn join(self) {
        self.phase.send_replace(Phase::Alone);
        // Its panic is in the log, and has ended the node.
        let _ = self.thread.join();
    }
}

/// Puts this thread onto cores that no shard has, or below the shards.
fn place(shard_cores: &[usize]) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let free = cores.iter().map(|core| core.id).filter(|core| !shard_cores.contains(core) && *core < CpuSet::MAX_CPU);
    let free: Vec<usize> = free.collect();
    let mut set = CpuSet::new();
    free.iter().for_each(|core| set.set(*core));
    if !free.is_empty() && !shard_cores.is_empty() && sched_setaffinity(None, &set).is_ok() {
        return tracing::info!("services thread: on the cores {free:?}, which no shard has");
    }
    match rustix::process::nice(NICE) {
        Ok(nice) => tracing::info!("services thread: on the cores of the shards, at nice {nice}"),
        Err(error) => tracing::warn!(%error, "services thread: on the cores of the shards, and at their priority"),
    }
}
