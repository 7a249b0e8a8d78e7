//! What the control thread may ask of a shard, and how the answers come back.

use crossbeam_queue::ArrayQueue;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Requests the control thread may have waiting at one shard; beyond it the HTTP API answers 503.
pub const CONTROL_QUEUE_LEN: usize = 256;

/// A request to a shard. A dropped answer channel is not an error: the caller has gone.
#[derive(Debug)]
pub enum Control {
    /// Sessions of a user whose home is this shard.
    User {
        /// User id.
        user: u64,
        /// Receives the sessions; empty when the user is offline.
        answer: oneshot::Sender<Vec<SessionInfo>>,
    },
    /// Ends the sessions of a user with BYE 15.
    Kick {
        /// User id.
        user: u64,
        /// Only this device, or all of them.
        device: Option<String>,
        /// Receives the number of sessions ended.
        answer: oneshot::Sender<usize>,
    },
    /// Stops accepting and ends every connection with BYE 12, paced over `drain_ms`; the shard's loop then returns.
    Drain,
}

/// One session as the HTTP API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    /// Device name; `default` when the client gave none.
    pub device: String,
    /// Device class as the client gave it, possibly empty.
    pub class: String,
    /// Session id.
    pub session: u64,
    /// Login time, seconds since the Unix epoch.
    pub since: u32,
}

/// The control thread's end of one shard.
#[derive(Clone, Debug)]
pub struct ControlPort {
    queue: Arc<ArrayQueue<Control>>,
    waker: Arc<crate::waker::Waker>,
}

impl ControlPort {
    /// A queue of `CONTROL_QUEUE_LEN` requests that wakes the shard through `waker`.
    pub fn new(waker: Arc<crate::waker::Waker>) -> Self {
        ControlPort { queue: Arc::new(ArrayQueue::new(CONTROL_QUEUE_LEN)), waker }
    }

    /// Queues a request and wakes the shard. Gives the request back when the queue is full.
    pub fn send(&self, request: Control) -> Result<(), Control> {
        self.queue.push(request)?;
        self.waker.wake();
        Ok(())
    }

    /// The shard's side: whether a request waits.
    pub fn is_asked(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The shard's side: the next request.
    pub fn take(&self) -> Option<Control> {
        self.queue.pop()
    }
}
