//! The message store that the nodes of a cluster share, in a Redis Cluster: the requests and answers of
//! [`trunkline_store`], on a thread of its own.
//!
//! | file | what |
//! |---|---|
//! | `inbox.lua` | everything that is done to an inbox, on the two keys of its user |
//! | `script` | requests for it, and its answers |
//! | `group.lua` | everything that is done to a group, on the five keys of it |
//! | `group` | requests for it, and its answers |
//! | `of_user.lua` | the list of a user's groups |
//! | `journey` | joins, leaves and the groups of a user, which are in two hash slots |
//! | `known` | where logs of groups end, for a master that knows less |
//! | `lanes` | what waits for each server, in batches by user |
//! | `owed` | what has no answer, and is kept until Redis has it |
//! | `work` | the thread: mail, batches under way, what is tried again |
//! | `tools`, `group_tools` | an operator's export and import |
//! | `part` | which part of an export messages are of, so that none is taken twice |
//!
//! What came for a user is one call of the script, what came for a server is one pipeline with one WAIT behind it.
//! While that is under way the next batch gathers; so an idle store answers at once and a busy one in large batches.
//! A server that does not answer holds up nobody but its own users.
//!
//! Architecture Invariant: a message is answered [`Reply::Stored`](trunkline_store::Reply::Stored) only when Redis
//! has confirmed what [`StoreSync`](trunkline_router::redis::StoreSync) asks for. One that was refused as unavailable
//! may be in the log all the same; who asks again says `retry`.

mod group;
mod group_tools;
mod journey;
mod known;
mod lanes;
mod owed;
mod part;
mod script;
mod tools;
mod work;

pub use tools::{Tool, ToolError};
pub use trunkline_router::redis::StoreSync;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use trunkline_router::redis::RedisConfig;
use trunkline_store::{Answer, Clock, Limits, Source, Stats, StoreMail};

/// Where the store is, and how safe it has to be.
#[derive(Clone)]
pub struct Settings {
    /// The Redis Cluster.
    pub redis: RedisConfig,
    /// When a message counts as stored; `None`: [`StoreSync::Replica`] where each master has a replica when the store
    /// connects, [`StoreSync::Master`] otherwise.
    pub sync: Option<StoreSync>,
    /// Bounds of inboxes. Those of files and memory do not matter here.
    pub limits: Limits,
    /// Bounds of groups.
    pub groups: GroupBounds,
    /// Milliseconds since 1970.
    pub clock: Clock,
    /// The time by which messages and devices get old; `None`: each server's own, so that the wrong clock of one
    /// gateway does not empty the inboxes of all.
    pub time: Option<Clock>,
}

impl Settings {
    /// The time as scripts are told it: 0 if they are to look themselves.
    fn time_ms(&self) -> u64 {
        self.time.as_ref().map_or(0, |time| time())
    }
}

/// Bounds of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBounds {
    /// Messages in the log of a group; beyond it the oldest go.
    pub messages_max: u32,
    /// How long they are kept, milliseconds.
    pub age_ms_max: u64,
    /// Members of a group.
    pub members_max: u32,
    /// Groups of a user.
    pub groups_per_user_max: u32,
}

impl Default for GroupBounds {
    fn default() -> Self {
        GroupBounds {
            messages_max: 10_000,
            age_ms_max: 7 * 24 * 3_600 * 1_000,
            members_max: 1_000_000,
            groups_per_user_max: 1_000,
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("redis", &self.redis).field("sync", &self.sync).finish_non_exhaustive()
    }
}

/// The store on a thread of its own.
#[derive(Debug)]
pub struct RedisStore {
    mail: Arc<StoreMail>,
    stats: Arc<Stats>,
    thread: Option<JoinHandle<()>>,
}

impl RedisStore {
    /// Starts the thread, named `store`, which connects by itself, however long that takes; until then everything is
    /// refused as unavailable. `answers` is called on it, with the answers for one source; it must not block. Every
    /// request that the mailbox took is answered unless the thread panics.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        settings: Settings,
        mail: Arc<StoreMail>,
        answers: impl FnMut(Source, Vec<Answer>) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stats = Arc::<Stats>::default();
        let (of_thread, inbox) = (stats.clone(), mail.clone());
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            runtime.block_on(work::Work::new(settings, inbox, of_thread, Box::new(answers)).run());
        })?;
        Ok(RedisStore { mail, stats, thread: Some(thread) })
    }

    /// The store's numbers. Messages, users and bytes in all are not among them: no node knows them.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Takes no more requests, answers those that were taken and waits for the thread. Dropping does the same. False
    /// if it had panicked.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        self.mail.close();
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.end();
    }
}
