//! What the control thread may ask of a shard, and how the answers come back.

use crate::limits::Limits;
use crate::presence_log::PresenceEvent;
use crate::reason::CloseReason;
use crate::services::{Changed, InstanceChange, ServiceSeen};
use crossbeam_queue::ArrayQueue;
use futures_channel::oneshot;
use serde::Serialize;
use std::sync::Arc;
use trunkline_router_core::membership::View;
use trunkline_store::{GroupAsk, Reply, Request};

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
    /// Sessions of several users whose home is this shard.
    Users {
        /// User ids.
        users: Vec<u64>,
        /// Receives the sessions of each, in the order of the users.
        answer: oneshot::Sender<Vec<Vec<SessionInfo>>>,
    },
    /// Ends the sessions of a user with BYE 15, wherever in the cluster they are.
    Kick {
        /// User id.
        user: u64,
        /// Only this device, or all of them.
        device: Option<String>,
        /// Receives the number of sessions ended, once they are.
        answer: oneshot::Sender<Kicked>,
    },
    /// The nodes that count now. The latest counts, so a shard that was too busy for one before misses nothing.
    View {
        /// The nodes that count.
        view: Arc<View>,
        /// The incarnation since which it has not been fenced.
        life: u64,
    },
    /// Sends a word of the control thread to that of another node, if there is a connection to it.
    Memo {
        /// The other node.
        node: Box<str>,
        /// The life of it that is meant.
        life: u64,
        /// What is said.
        body: Box<[u8]>,
    },
    /// Tells of sessions again, through the shard's presence log.
    Sessions {
        /// The first slot to look at.
        from_slot: u32,
        /// Sessions to tell of at most.
        max: usize,
        /// Receives where the page ended.
        answer: oneshot::Sender<SessionsPage>,
    },
    /// Lists sessions, to be compared with what is stored of them. What a list says is of the past when it is read:
    /// nothing may be written that it says.
    List {
        /// The first slot to look at.
        from_slot: u32,
        /// Sessions to list at most.
        max: usize,
        /// Receives them.
        answer: oneshot::Sender<SessionsList>,
    },
    /// Tells of these sessions again, through the shard's presence log, as far as they are still there.
    Tell {
        /// User and session ids.
        sessions: Vec<(u64, u64)>,
    },
    /// Ends one session. The home shard decides which of two logins of a device stays; this is the fallback when two
    /// nodes took one each and only the presence store has seen both.
    End {
        /// User id.
        user: u64,
        /// Session id; another session of the user is not touched.
        session: u64,
        /// What the session ends with.
        reason: CloseReason,
    },
    /// Gives a session a version above that of a stored session that does not count, and tells of it again.
    Outbid {
        /// User id.
        user: u64,
        /// Session id.
        session: u64,
        /// The version stored.
        above: u64,
    },
    /// Ends every session with BYE 12 and the address of its user's home, paced over `drain_ms`; who logs in meanwhile
    /// is sent away alike.
    Drain {
        /// Whether the shard stops accepting, ends connections without a session too, and its loop returns then.
        /// Otherwise it goes on without sessions until [`Control::Resume`]; one that ends stays so.
        ends: bool,
    },
    /// Works with other limits from now on. Sessions keep what they have agreed on, such as their heartbeat.
    Reload {
        /// Limits, of which those are taken that [`Limits::reload`] takes.
        limits: Arc<Limits>,
    },
    /// Asks the store about a user whose home is this shard.
    Store {
        /// User id.
        user: u64,
        /// The device that is forgotten when it is done, by its number in the store and its epoch there; number 0 is
        /// all of them.
        forgets: Option<(u16, u32)>,
        /// The request, once it has a token.
        ask: fn(u64, (u16, u32), u64) -> Request,
        /// Receives the store's answer; nothing when its mailbox has no room.
        answer: oneshot::Sender<Reply>,
    },
    /// Asks the store about a group whose home this shard is, or for the groups of a user.
    Group {
        /// The group; 0 where a user's groups are asked for.
        group: u64,
        /// What is asked.
        ask: Box<GroupAsk>,
        /// Receives the store's answer.
        answer: oneshot::Sender<Reply>,
    },
    /// What the shard knows of services and their workers.
    Services {
        /// Receives it; `None` where there are no services.
        answer: oneshot::Sender<Option<Vec<ServiceSeen>>>,
    },
    /// An operator says something of a worker.
    Instance {
        /// The service.
        service: u16,
        /// The worker's name.
        name: String,
        /// What is to be so of it.
        change: InstanceChange,
        /// Another shard knows the worker: it is kept here too, for when it comes.
        is_known: bool,
        /// Receives what came of it.
        answer: oneshot::Sender<Changed>,
    },
    /// Panics, to test what a panic costs the others. There is none of this in a release.
    #[cfg(debug_assertions)]
    Panic,
    /// Calls a drain off: those who are still there stay, and logins are served again. Without effect on a drain that
    /// ends the shard.
    Resume,
}

/// What became of [`Control::Kick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kicked {
    /// Sessions ended.
    pub ended: u32,
    /// What may be left.
    pub rest: Rest,
}

/// What may be left of a user's sessions after a kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Nothing,
    /// So many sessions on other nodes that were asked to end and have not been heard of since.
    Unconfirmed(u32),
    /// The home of the user is just changing, so nobody knew all sessions; it is worth asking again in a moment.
    Unsettled,
    /// Whatever is on other nodes: the home of the user cannot be asked.
    Unreachable,
    /// Everything: too many kicks are under way.
    Busy,
}

/// What became of [`Control::Sessions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionsPage {
    /// Sessions told of.
    pub sessions: usize,
    /// Where the next page begins; `None` when this was the last.
    pub next_slot: Option<u32>,
}

/// What became of [`Control::List`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsList {
    /// The sessions, as they would be told of.
    pub sessions: Vec<PresenceEvent>,
    /// Where the next list begins; `None` when this was the last.
    pub next_slot: Option<u32>,
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
