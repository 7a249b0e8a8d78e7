//! Wakes a sleeping shard from another thread, through the eventfd its data ring also signals.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The eventfd a shard sleeps on.
#[derive(Debug)]
pub struct Waker {
    eventfd: OwnedFd,
}

impl Waker {
    /// Makes a new eventfd. It blocks on purpose: a read on a non-blocking one would not wait in a ring.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Waker { eventfd: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// Wakes the shard, now or at its next attempt to sleep.
    pub fn wake(&self) {
        // Fails only when the counter is at its maximum, and then the shard is awake already.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
