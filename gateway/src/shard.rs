//! Starts the shards: one pinned glommio executor each, hosting the shard's data ring.
//!
//! While there is work a shard waits in its data ring itself, so that a turn costs one system call. Only when the ring has been quiet for
//! [`RING_WAIT_MICROS`] does it sleep in the executor, on the eventfd that ring and control thread signal.

use crate::auth::Auth;
use crate::control::ControlPort;
use crate::core::{Core, ShardConfig};
use crate::io::uring::{Parking, RingFds, Uring};
use crate::limits::Limits;
use crate::mailbox::{Mailboxes, mailboxes};
use crate::metrics::ShardStats;
use crate::waker::Waker;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use std::fmt;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use tokio::sync::mpsc;

/// How long a shard without work waits in its ring before it sleeps in the executor, which costs some microseconds to enter and leave.
const RING_WAIT_MICROS: u32 = 1_000;
/// A busy shard lets the executor's other tasks run after this many turns.
const TURNS_PER_YIELD: u32 = 64;
/// glommio's own rings carry one read of an eventfd; its defaults (128 entries, 10 MiB of buffers for each shard) are made for files.
const EXECUTOR_RING_ENTRIES: usize = 8;
const EXECUTOR_IO_BYTES: usize = 64 << 10;

/// Shards a node may have; their numbers travel in 12 bits of a hand-over token.
pub const SHARDS_MAX: u16 = 1_024;

/// What the shards of a node are made of.
#[derive(Debug)]
pub struct ShardsConfig {
    /// Name of the node, told to clients.
    pub node: String,
    /// Limits of each shard.
    pub limits: Limits,
    /// Who may log in.
    pub auth: Arc<Auth>,
    /// Bound and listening sockets, by shard; their number is the number of shards (1 to [`SHARDS_MAX`]).
    pub listeners: Vec<Vec<TcpListener>>,
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
    threads: Vec<ExecutorJoinHandle<Result<(), String>>>,
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
    let gate = Arc::new(Gate { barrier: Barrier::new(usize::from(count) + 1), failed: AtomicBool::new(false) });
    let (end_sender, ended) = mpsc::unbounded_channel();
    let mut shards = Shards { ports: Vec::new(), stats: Vec::new(), ended, threads: Vec::new() };
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let fail = |shard: u16, error: String| ShardFailure { shard, error };
    for (shard, listeners) in (0..count).zip(config.listeners) {
        let waker = Arc::new(Waker::new().map_err(|error| fail(shard, format!("making an eventfd: {error}")))?);
        let stats = Arc::new(ShardStats::default());
        let port = ControlPort::new(waker.clone());
        shards.ports.push(port.clone());
        shards.stats.push(stats.clone());
        let seat = Seat {
            waker,
            port,
            listeners,
            ring_fds: ring_fds.clone(),
            gate: gate.clone(),
            end: EndSignal { shard, orderly: false, sender: end_sender.clone() },
            config: ShardConfig {
                shard,
                shards: count,
                node: config.node.clone(),
                limits: config.limits.clone(),
                auth: config.auth.clone(),
                stats,
                mailboxes: Mailboxes::clone(&mail),
            },
        };
        let placement = match cores.get(usize::from(shard) % cores.len().max(1)) {
            Some(core) => Placement::Fixed(core.id),
            None => Placement::Unbound,
        };
        let thread = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{shard}"))
            .ring_depth(EXECUTOR_RING_ENTRIES)
            .io_memory(EXECUTOR_IO_BYTES)
            .spawn(move || seat.run())
            .map_err(|error| fail(shard, format!("starting its executor: {error}")))?;
        shards.threads.push(thread);
    }
    gate.barrier.wait();
    if gate.failed.load(Ordering::SeqCst) {
        return Err(shards.join().err().unwrap_or_else(|| fail(0, "set-up failed".to_owned())));
    }
    Ok(shards)
}

impl Shards {
    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first shard that failed.
    pub fn join(self) -> Result<(), ShardFailure> {
        let mut outcome = Ok(());
        for (shard, thread) in (0u16..).zip(self.threads) {
            let result = match thread.join() {
                Ok(result) => result,
                Err(error) => Err(format!("its executor failed: {error}")),
            };
            if let Err(error) = result
                && outcome.is_ok()
            {
                outcome = Err(ShardFailure { shard, error });
            }
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

/// Everything a shard's thread starts with.
struct Seat {
    config: ShardConfig,
    waker: Arc<Waker>,
    port: ControlPort,
    listeners: Vec<TcpListener>,
    ring_fds: RingFds,
    gate: Arc<Gate>,
    end: EndSignal,
}

impl Seat {
    async fn run(self) -> Result<(), String> {
        let Seat { config, waker, port, listeners, ring_fds, gate, mut end } = self;
        let stats = config.stats.clone();
        let listener_count = listeners.len() as u16;
        let uring = Uring::new(config.shard, &config.limits, listeners, waker.clone(), ring_fds);
        let parking = Parking::new(&waker);
        if uring.is_err() || parking.is_err() {
            gate.failed.store(true, Ordering::SeqCst);
        }
        gate.barrier.wait();
        let parking = parking.map_err(|error| error.to_string())?;
        let uring = uring.map_err(|error| error.to_string())?;
        if gate.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut core = Core::new(uring, config, port, listener_count);
        let mut turns = 0u32;
        while !core.finished() {
            if core.turn(RING_WAIT_MICROS) {
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(TURNS_PER_YIELD) {
                    glommio::yield_if_needed().await;
                }
            } else {
                stats.parks.add(1);
                parking.sleep().await.map_err(|error| format!("reading its eventfd: {error}"))?;
            }
        }
        parking.close().await.map_err(|error| format!("closing its eventfd: {error}"))?;
        end.orderly = true;
        // Other shards may still send to this ring, and the kernel may still read what a connection that did not close had under way: both stay
        // until the process ends, which is next.
        std::mem::forget(core);
        Ok(())
    }
}
