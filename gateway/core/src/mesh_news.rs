//! What the mesh tells the control thread of other nodes, and the way there from the shards.

use crate::bell::Bell;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// What the mesh knows about other nodes, and brings from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshNews {
    /// What a shard knows of its links: to all nodes twice a second, and in between to those of which it has changed.
    Links {
        /// The shard.
        shard: u16,
        /// They are all there are.
        all: bool,
        /// One for each node.
        links: Vec<LinkNews>,
    },
    /// A word of another node's control thread.
    Memo {
        /// The name of that node.
        node: String,
        /// The life it is in.
        life: u64,
        /// What it says.
        body: Box<[u8]>,
    },
}

/// What a shard knows of its links to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkNews {
    /// The name of the node.
    pub node: Arc<str>,
    /// The incarnation that it is known by, or that it says it is.
    pub incarnation: u64,
    /// What that means for membership.
    pub word: LinkWord,
    /// Links of the shard to the node, and how many of them are up.
    pub links: u32,
    /// See [`LinkNews::links`].
    pub up: u32,
    /// Bytes they hold for the node.
    pub held_bytes: u64,
    /// The longest smoothed round trip of them, microseconds; 0 if none was measured.
    pub rtt_us: u64,
    /// Since when one of them has been down, milliseconds of the shards' clock.
    pub down_since_ms: Option<u64>,
}

impl LinkNews {
    /// A node that is heard, or is not any more, of which nothing else is known.
    pub fn of(node: &str, incarnation: u64, word: LinkWord) -> Self {
        LinkNews {
            node: node.into(),
            incarnation,
            word,
            links: 0,
            up: 0,
            held_bytes: 0,
            rtt_us: 0,
            down_since_ms: None,
        }
    }
}

/// Whether a node is there, as far as the links of one shard tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkWord {
    /// A link to it works.
    Heard,
    /// The last link to it has just been lost.
    Lost,
    /// There is no link to it; what was lost was told before.
    Silent,
}

/// News of the mesh that wait for the control thread. It takes them at once; what does not fit is told again with the
/// next heartbeat.
const NEWS_MAX: usize = 4_096;

/// One for a node: every shard tells, one task takes. Clones share it.
#[derive(Clone, Debug)]
pub struct MeshNewsQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: ArrayQueue<MeshNews>,
    bell: Bell,
}

impl Default for MeshNewsQueue {
    fn default() -> Self {
        MeshNewsQueue(Arc::new(Inner { queue: ArrayQueue::new(NEWS_MAX), bell: Bell::default() }))
    }
}

impl MeshNewsQueue {
    /// Tells, if there is room; whether there was. A full queue is no fault: what matters is told again.
    #[must_use]
    pub fn tell(&self, news: MeshNews) -> bool {
        let is_told = self.0.queue.push(news).is_ok();
        self.0.bell.ring();
        is_told
    }

    /// What waits, the first to come first.
    pub fn try_take(&self) -> Option<MeshNews> {
        self.0.queue.pop()
    }

    /// The next of them, as soon as there is one. One task may take at a time.
    pub async fn take(&self) -> MeshNews {
        loop {
            if let Some(news) = self.try_take() {
                return news;
            }
            self.0.bell.rung().await;
        }
    }
}
