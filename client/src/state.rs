//! What outlives a connection, and what happens to it while there is none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use trunkline_proto::{HEADER_LONG, Outcome};

use crate::ids::MessageIds;
use crate::outlet::Outlet;
use crate::window::Window;
use crate::{Error, Event, Reason, SessionInfo};

/// What the handles ask of the task that owns the connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// At most once.
    Send { id: u64, to: u64, payload: Vec<u8> },
    /// At least once.
    SendAcked { id: u64, message: Unacked },
    /// Measure the round trip.
    Ping { answer: oneshot::Sender<Result<Duration, Error>> },
    /// Log out and end.
    Close,
}

/// A message whose fate is not known.
#[derive(Debug)]
pub(crate) struct Unacked {
    pub(crate) to: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) fate: oneshot::Sender<Result<Outcome, Error>>,
    /// Counts against [`crate::Config::unacked_max`] until dropped.
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Unacked {
    pub(crate) fn settle(self, fate: Result<Outcome, Error>) {
        // A caller that no longer waits has no interest in the fate.
        drop(self.fate.send(fate));
    }
}

/// The application has this message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) stamp: u64,
}

/// What the handles can see without asking the task.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ids: MessageIds,
    pub(crate) unacked: Arc<Semaphore>,
    connected: AtomicBool,
    frame_bytes_max: AtomicU32,
    info: Mutex<SessionInfo>,
    ended: OnceLock<Reason>,
}

impl Shared {
    pub(crate) fn new(unacked_max: usize, info: SessionInfo) -> Self {
        Self {
            ids: MessageIds::new(),
            unacked: Arc::new(Semaphore::new(unacked_max)),
            connected: AtomicBool::new(true),
            frame_bytes_max: AtomicU32::new(info.frame_bytes_max),
            info: Mutex::new(info),
            ended: OnceLock::new(),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn info(&self) -> SessionInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the task has ended. Before it has, a call that finds its queue closed can only have met the end itself.
    pub(crate) fn closed(&self) -> Error {
        Error::Closed(self.ended.get().cloned().unwrap_or(Reason::LoggedOut))
    }

    /// Whether a payload of this size fits into a frame of the present, or else last, connection.
    pub(crate) fn check_payload(&self, bytes: usize) -> Result<(), Error> {
        let bytes_max = self.frame_bytes_max.load(Ordering::Relaxed) as usize - HEADER_LONG;
        if bytes > bytes_max {
            return Err(Error::PayloadTooLarge { bytes, bytes_max });
        }
        Ok(())
    }
}

/// Owned by the task.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) taken: mpsc::Receiver<Taken>,
    pub(crate) outlet: Outlet,
    pub(crate) window: Window,
    /// By id, which is the order of sending.
    pub(crate) unacked: BTreeMap<u64, Unacked>,
    pub(crate) shared: Arc<Shared>,
}

impl State {
    /// A connection is lost.
    pub(crate) fn go_offline(&self) {
        self.shared.connected.store(false, Ordering::Relaxed);
    }

    /// A connection is made: callers may send again, in frames of the size that this one takes.
    pub(crate) fn go_online(&mut self, info: &SessionInfo) {
        self.shared.frame_bytes_max.store(info.frame_bytes_max, Ordering::Relaxed);
        *self.shared.info.lock().unwrap_or_else(PoisonError::into_inner) = info.clone();
        self.shared.connected.store(true, Ordering::Relaxed);
    }

    /// The session has another token: until then it lasts.
    pub(crate) fn set_expires_ms(&self, expires_ms: u64) {
        self.shared.info.lock().unwrap_or_else(PoisonError::into_inner).expires_ms = expires_ms;
    }

    /// Tells the application; a message that cannot be told must count as new when it comes again.
    pub(crate) fn tell(&mut self, event: Event) {
        if let Err(dropped) = self.outlet.push(event) {
            self.forget([dropped]);
        }
    }

    pub(crate) fn forget(&mut self, dropped: impl IntoIterator<Item = Event>) {
        for event in dropped {
            if let Event::Message(message) = event {
                self.window.forget((message.from, message.id));
            }
        }
    }

    /// Serves the handles while there is no connection. Returns when the client is to end. Cancelling it loses nothing.
    pub(crate) async fn serve_offline(&mut self) {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None | Some(Command::Close) => return,
                    Some(command) => self.keep_offline(command),
                },
                Some(taken) = self.taken.recv() => {
                    // Acknowledged when the gateway delivers it again.
                    self.window.take((taken.from, taken.id), taken.stamp);
                }
                dropped = self.outlet.settle() => self.forget(dropped),
            }
        }
    }

    fn keep_offline(&mut self, command: Command) {
        match command {
            Command::SendAcked { id, message } => {
                self.unacked.insert(id, message);
            }
            Command::Ping { answer } => drop(answer.send(Err(Error::NotConnected))),
            // At most once: it was queued before the connection broke and goes with it.
            Command::Send { .. } | Command::Close => {}
        }
    }

    /// The end: every waiting caller hears of it, then the application.
    pub(crate) async fn finish(mut self, reason: Reason) {
        self.go_offline();
        // Only this task sets it, and only here.
        self.shared.ended.get_or_init(|| reason.clone());
        self.commands.close();
        self.taken.close();
        let closed = || Error::Closed(reason.clone());
        for message in std::mem::take(&mut self.unacked).into_values() {
            message.settle(Err(closed()));
        }
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::SendAcked { message, .. } => message.settle(Err(closed())),
                Command::Ping { answer } => drop(answer.send(Err(closed()))),
                Command::Send { .. } | Command::Close => {}
            }
        }
        let retry_in = None;
        self.outlet.finish(Event::Disconnected { reason, retry_in }).await;
    }
}
