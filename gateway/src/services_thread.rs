//! The services thread: what back-ends ask by HTTP, and calls to back-ends by HTTP, off the shards and off the control
//! thread, so that a burst of requests, or a back-end that hangs, delays no message and no renewal of the lease.
//!
//! It runs on the cores that no shard has, and where there are none with a lower priority. It reaches the shards by
//! their portals ([`crate::portal`], [`CallPortals`]) alone, and never the mesh.

use crate::events::{EventPortals, EventsInRedis, WebhookDriver, WebhookDriverConfig, WebhookSpec};
use crate::hook::{HookDriver, HookDriverConfig, HookPortals, HookSpec};
use crate::limits::Limits;
use crate::metrics::ShardStats;
use crate::portal::Portals;
use crate::push::api::{PushApi, router};
use crate::push::desk::Desk;
use crate::server_names;
use crate::services::{CallPortals, DialedServers, ServiceSpec};
use crate::upstream::{Driver, DriverConfig};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::future::pending;
use std::net::TcpListener;
use std::path::PathBuf;
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

/// Threads for look-ups of names, which wait for others.
const LOOKUP_THREADS_MAX: usize = 4;

/// What the thread needs of its node. One of `pushes`, `calls`, `webhooks`, `hook` and
/// `names` at least.
#[derive(Debug)]
pub struct ServicesThreadConfig {
    /// Pushes by HTTP; `None` where nobody pushes so.
    pub pushes: Option<PushConfig>,
    /// Calls to HTTP servers; `None` where no service has some.
    pub calls: Option<CallsConfig>,
    /// Events to webhooks; `None` without any.
    pub webhooks: Option<WebhooksPart>,
    /// Questions about logins; `None` without a connect-time hook.
    pub hook: Option<HookPart>,
    /// Servers that the shards dial, of which some have names to be looked up; `None` where none has.
    pub names: Option<DialedServers>,
    /// The numbers of each shard, by shard.
    pub stats: Vec<Arc<ShardStats>>,
    /// The limits of the node.
    pub limits: Limits,
    /// The cores that the shards run on.
    pub shard_cores: Vec<usize>,
    /// For what is to differ from run to run.
    pub seed: u64,
}

/// What pushes by HTTP need of their node.
#[derive(Debug)]
pub struct PushConfig {
    /// Where back-ends connect.
    pub listener: TcpListener,
    /// The ways to the shards.
    pub portals: Portals,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// Who has a connection.
    pub places: Arc<Places>,
    /// The certificate it shows, that of the HTTP API; `None` where that is in clear.
    pub tls: Option<Arc<HttpTls>>,
}

/// What calls to HTTP servers need of their node.
#[derive(Debug)]
pub struct CallsConfig {
    /// What is said of services.
    pub specs: Arc<[ServiceSpec]>,
    /// The ways to the shards.
    pub portals: CallPortals,
}

/// What webhooks need of their node.
#[derive(Debug)]
pub struct WebhooksPart {
    /// Who is told of what.
    pub specs: Arc<[WebhookSpec]>,
    /// The ways from the shards.
    pub portals: EventPortals,
    /// Where events are kept; `None` for memory alone.
    pub folder: Option<PathBuf>,
    /// Or in Redis.
    pub in_redis: Option<EventsInRedis>,
    /// The node's name.
    pub node: String,
}

/// What the connect-time hook needs of its node.
#[derive(Debug)]
pub struct HookPart {
    /// Who is asked.
    pub spec: HookSpec,
    /// The ways from the shards.
    pub portals: HookPortals,
    /// The node's name.
    pub node: String,
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
    api: Option<Arc<PushApi>>,
    thread: JoinHandle<()>,
}

impl ServicesThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread for it, or what a runtime needs; or when a file that it needs cannot be read.
    pub fn start(config: ServicesThreadConfig) -> io::Result<Self> {
        let ServicesThreadConfig { pushes, calls, webhooks, hook, names, stats, limits, shard_cores, seed } = config;
        let of_names = names.map(|names| (names, stats[0].clone()));
        let webhooks = webhooks.map(|WebhooksPart { specs, portals, folder, in_redis, node }| {
            let (stats, limits) = (stats[0].clone(), limits.clone());
            WebhookDriver::new(WebhookDriverConfig { specs, portals, folder, in_redis, stats, limits, node, seed })
        });
        let webhooks = webhooks.transpose()?;
        let hook = hook.map(|HookPart { spec, portals, node }| {
            HookDriver::new(HookDriverConfig { spec, portals, stats: stats[0].clone(), limits: limits.clone(), node })
        });
        let hook = hook.transpose()?;
        let driver = calls.map(|calls| {
            let CallsConfig { specs, portals } = calls;
            Driver::new(DriverConfig { specs, portals, stats: stats[0].clone(), limits: limits.clone(), seed })
        });
        let driver = driver.transpose()?;
        let pushes = match pushes {
            Some(pushes) => {
                pushes.listener.set_nonblocking(true)?;
                let outer = pushes.portals.outer(limits.portal_bytes_max);
                let desk = Desk::new(outer, stats, &limits, seed);
                let api = Arc::new(PushApi::new(desk, pushes.portals.bell().clone(), &limits));
                Some((pushes, api))
            }
            None => None,
        };
        let api = pushes.as_ref().map(|(_, api)| api.clone());
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(LOOKUP_THREADS_MAX).build()?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let run = move || {
            place(&shard_cores);
            runtime.block_on(async {
                if let Some((names, stats)) = &of_names {
                    server_names::look_up(names, stats);
                }
                let pushing = async {
                    if let Some((pushes, api)) = pushes {
                        serve_pushes(pushes, api, phases.clone()).await;
                    }
                };
                let calling = async {
                    match driver {
                        Some(driver) => driver.run().await,
                        None => pending().await,
                    }
                };
                let asking = async {
                    match hook {
                        Some(hook) => hook.run().await,
                        None => pending().await,
                    }
                };
                // Sessions are told to go while their calls go on; so calls end with the shards.
                let mut ends = phases.clone();
                let alone = async { drop(ends.wait_for(|at| *at == Phase::Alone).await) };
                let mut events_end = phases.clone();
                let telling = async {
                    if let Some(webhooks) = webhooks {
                        let end = async { drop(events_end.wait_for(|at| *at == Phase::Alone).await) };
                        webhooks.run(end).await;
                    }
                };
                tokio::select! {
                    _ = async { tokio::join!(pushing, telling, alone) } => {}
                    () = calling => {}
                    () = asking => {}
                }
            });
            // A look-up of a name that still waits keeps nobody from ending.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("services".to_owned()).spawn(run)?;
        Ok(ServicesThread { phase, api, thread })
    }

    /// Lets nobody in any more. Requests under way go on.
    pub fn end(&self) {
        if let Some(api) = &self.api {
            api.desk().end();
        }
        self.phase.send_replace(Phase::Ending);
    }

    /// The shards have ended: whoever still waits is told what is known. Returns when all have their answers.
    pub fn join(self) {
        self.phase.send_replace(Phase::Alone);
        // Its panic is in the log, and has ended the node.
        let _ = self.thread.join();
    }
}

/// Serves those who push, until nobody is let in any more and all have their answers.
async fn serve_pushes(pushes: PushConfig, api: Arc<PushApi>, mut phases: watch::Receiver<Phase>) {
    let PushConfig { listener, portals, access, places, tls } = pushes;
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return tracing::error!("the listener of services_http cannot be used by the services thread");
    };
    let mut ends = phases.clone();
    let routes = router(api.clone(), access);
    let serving =
        serve(listener, routes, places, tls, async move { drop(ends.wait_for(|at| *at >= Phase::Ending).await) });
    let turns = async {
        loop {
            portals.bell().rung().await;
            api.turn();
        }
    };
    let end = async {
        drop(phases.wait_for(|at| *at == Phase::Alone).await);
        api.desk().give_up();
        pending::<()>().await;
    };
    tokio::select! {
        () = serving => {}
        () = turns => {}
        () = end => {}
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
