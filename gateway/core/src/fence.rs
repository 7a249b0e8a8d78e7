//! Until when a node may serve: what the control thread has found out, for the shards to look at without asking.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes of memos of other nodes that may wait for the control thread. It takes them at once; what does not fit is
/// asked again.
const MEMOS_BYTES_MAX: usize = 16 << 20;

/// Shared by all threads. Written by the control thread, read without a lock. A node may serve until a moment, not for
/// as long as a flag says so: one that was paused is fenced before anybody has looked.
#[derive(Debug)]
pub struct Fence {
    lease_ms: u64,
    serve_until_ms: AtomicU64,
    incarnation: AtomicU64,
    life: AtomicU64,
    epoch: AtomicU64,
    /// Bytes of memos that wait for the control thread.
    memos: AtomicUsize,
}

impl Fence {
    /// That of a node that may not serve yet.
    pub fn new(lease_ms: u64) -> Self {
        Fence {
            lease_ms,
            serve_until_ms: AtomicU64::new(0),
            incarnation: AtomicU64::new(0),
            life: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            memos: AtomicUsize::new(0),
        }
    }

    /// How long a lease lasts, milliseconds.
    pub fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// Until when, exclusive, the node may serve if nothing more is heard: milliseconds of the shards' own clock. 0
    /// while it is fenced.
    #[inline]
    pub fn serve_until_ms(&self) -> u64 {
        self.serve_until_ms.load(Ordering::Acquire)
    }

    /// Whether the node may serve at that time.
    #[inline]
    pub fn may_serve(&self, now_ms: u64) -> bool {
        now_ms < self.serve_until_ms()
    }

    /// The incarnation of this node.
    #[inline]
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// The incarnation since which the node has not been fenced.
    #[inline]
    pub fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// The epoch of the view.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes room for a memo of so many bytes that is to wait for the control thread; whether there is some.
    pub fn hold_memo(&self, bytes: usize) -> bool {
        let fits = self.memos.fetch_add(bytes, Ordering::Relaxed) + bytes <= MEMOS_BYTES_MAX;
        if !fits {
            self.release_memo(bytes);
        }
        fits
    }

    /// Gives the room of a memo back.
    pub fn release_memo(&self, bytes: usize) {
        self.memos.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What the control thread has found out.
    pub fn publish(&self, serve_until_ms: u64, incarnation: u64, life: u64, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.incarnation.store(incarnation, Ordering::Release);
        self.life.store(life, Ordering::Release);
        // Last, so that whoever finds a lease of a new life finds the life too.
        self.serve_until_ms.store(serve_until_ms, Ordering::Release);
    }
}
