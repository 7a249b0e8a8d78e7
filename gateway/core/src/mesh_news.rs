//! The way from the shards to the control thread for what the mesh tells.

use crate::bell::Bell;
use crate::membership::MeshNews;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

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
