//! Wakes the sleeping shards of a core from another thread, through the eventfd their data rings also signal.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The eventfd the shards of a core sleep on.
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

    /// Wakes the shards, now or at their next attempt to sleep.
    pub fn wake(&self) {
        // Fails only when the counter is at its maximum, and then they are awake already.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
