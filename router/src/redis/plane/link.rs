//! The connection to one server of the cluster: made by itself, made anew when it breaks, and torn down when it is
//! silent.
//!
//! Each server has a client of its own. The library's client for a whole cluster stops sending to all masters while it
//! reconnects to one of them, which takes until the failover has ended.
//!
//! Architecture Invariant: nothing is sent twice here. What was on its way when a connection broke fails, and its
//! owner, who knows whether it may be repeated, is told.

use super::super::config::RedisConfig;
use super::super::error::PlaneError;
use super::connect;
use super::slots::Address;
use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use rand::RngExt as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// The longest time for making a connection, login included. A server that is well takes milliseconds; one that drops
/// packets must not keep the first callers longer than half of a command's time.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(500);

/// The first and the longest pause before connecting again. The longest is a fraction of a lease's renewal period, so a
/// Redis that is back is soon noticed. Half of each is random, which keeps all nodes from arriving together.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(300);

/// A connection that broke sooner than this is not made anew at once: the server closes it for a reason.
const LASTING: Duration = Duration::from_secs(1);

/// A command: its name and arguments.
pub(super) type Command = (&'static str, Vec<Value>);

/// Ends its task when dropped.
#[derive(Debug)]
pub(super) struct Running<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server, connected or not. Ends everything it has begun when dropped.
pub(super) struct Link {
    address: Address,
    state: watch::Receiver<State>,
    _task: Running<()>,
}

#[derive(Clone)]
enum State {
    /// For the first time, or after a connection that lasted. Callers wait for it.
    Connecting,
    Up(Arc<Connection>),
    /// The last attempt failed so; others follow.
    Down(PlaneError),
}

/// One connection, which breaks once.
pub(super) struct Connection {
    client: Client,
    began: Instant,
    /// When the last answer came, in milliseconds since `began`.
    answered_ms: AtomicU64,
    silent: Notify,
    /// Its sender goes with the connection.
    alive: watch::Receiver<()>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = &self.address;
        write!(f, "Link({host}:{port})")
    }
}

impl Link {
    /// Begins to connect. `changed` is notified each time the link comes up or goes down.
    pub(super) fn start(config: &Arc<RedisConfig>, address: Address, changed: &Arc<Notify>) -> Self {
        let (sender, state) = watch::channel(State::Connecting);
        let task = keep_connected(Arc::clone(config), address.clone(), sender, Arc::clone(changed));
        Link { address, state, _task: Running(tokio::spawn(task)) }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// The connection, if there is one now.
    pub(super) fn up(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            State::Up(connection) => Some(Arc::clone(connection)),
            _ => None,
        }
    }

    /// The connection, as soon as it is known whether there is one.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, PlaneError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        match known.as_deref() {
            Ok(State::Up(connection)) => Ok(Arc::clone(connection)),
            Ok(State::Down(error)) => Err(error.clone()),
            Ok(State::Connecting) | Err(_) => {
                Err(PlaneError::Unreachable { detail: "the connection was closed".into() })
            }
        }
    }
}

impl Connection {
    /// Sends the commands one after the other and nothing in between, and waits for all answers. One result for each.
    pub(super) async fn send(self: &Arc<Self>, commands: Vec<Command>) -> Vec<Result<Value, FredError>> {
        let count = commands.len();
        let sent_ms = self.age_ms();
        let pipeline = self.client.pipeline();
        for (name, args) in commands {
            // Of a custom command only the name and the arguments matter on a connection to one server. It is only
            // queued.
            let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
            if let Err(error) = pipeline.custom::<Value, _>(command, args).await {
                return vec![Err(error); count];
            }
        }
        let mut alive = self.alive.clone();
        let broken = async move { while alive.changed().await.is_ok() {} };
        let results = tokio::select! {
            biased;
            results = pipeline.try_all::<Value>() => results,
            () = broken => vec![Err(FredError::new(ErrorKind::IO, "the connection broke"))],
        };
        if results.len() == count && !matches!(&results[..], [Err(error)] if is_local(error)) {
            self.answered_ms.fetch_max(self.age_ms(), Ordering::Relaxed);
            return results;
        }
        // One error that stands for all.
        let error = match results.into_iter().next() {
            Some(Err(error)) => error,
            _ => FredError::new(ErrorKind::Protocol, "the number of answers is not the number of commands"),
        };
        // While others are answered it was only slow. The library's own check begins anew with each command sent.
        if matches!(error.kind(), ErrorKind::Timeout) && self.answered_ms.load(Ordering::Relaxed) <= sent_ms {
            self.silent.notify_one();
        }
        vec![Err(error); count]
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whether the error is of this side, and no answer of Redis.
fn is_local(error: &FredError) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Backpressure)
}

async fn keep_connected(
    config: Arc<RedisConfig>,
    address: Address,
    sender: watch::Sender<State>,
    changed: Arc<Notify>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        match connect::one(&config, &address, CONNECT_TIME_MAX.min(config.command_timeout)).await {
            Ok((client, mut task)) => {
                let (_alive, alive) = watch::channel(());
                let connection = Arc::new(Connection {
                    client,
                    began: Instant::now(),
                    answered_ms: AtomicU64::new(0),
                    silent: Notify::new(),
                    alive,
                });
                sender.send_replace(State::Up(Arc::clone(&connection)));
                changed.notify_one();
                tokio::select! {
                    _ = &mut task.0 => {}
                    () = connection.silent.notified() => {}
                }
                if connection.began.elapsed() > LASTING {
                    pause = PAUSE_MIN;
                    sender.send_replace(State::Connecting);
                    changed.notify_one();
                    continue;
                }
                let (host, port) = &address;
                let detail = format!("{host}:{port} closed the connection");
                sender.send_replace(State::Down(PlaneError::Unreachable { detail }));
            }
            Err(error) => {
                sender.send_replace(State::Down(error));
            }
        }
        changed.notify_one();
        let part = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(part)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
