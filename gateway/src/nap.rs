//! How the shards of a core sleep for a moment until they are woken.

use crate::waker::Waker;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::OwnedFd;

/// A short sleep on a [`Waker`], which costs one system call and leaves its counter as it is.
#[derive(Debug)]
pub(crate) struct Nap {
    epoll: OwnedFd,
}

impl Nap {
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn new(waker: &Waker) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: each signal ends one nap, and nobody has to read the counter.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, waker, epoll::EventData::new_u64(0), flags)?;
        Ok(Nap { epoll })
    }

    /// Sleeps until the waker has been signalled since the last nap, or the time is over. Returns whether it was
    /// signalled.
    ///
    /// # Errors
    /// Those of epoll_wait, which only a broken process sees.
    pub(crate) fn take(&self, micros: u32) -> io::Result<bool> {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(micros.min(999_999)) * 1_000 };
        match epoll::wait(&self.epoll, &mut ready, Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_signal_ends_one_nap() {
        let waker = Waker::new().unwrap();
        let nap = Nap::new(&waker).unwrap();
        assert!(!nap.take(1_000).unwrap(), "nobody has signalled");
        waker.wake();
        assert!(nap.take(999_999).unwrap());
        assert!(!nap.take(1_000).unwrap(), "that signal has been taken");
        waker.wake();
        assert!(nap.take(999_999).unwrap(), "although the counter was not read");
    }
}
