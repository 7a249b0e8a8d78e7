//! Sleeping until one of many rings has something to report.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// Events of the rings of a thread, which sleeps on all of them at once.
#[derive(Debug)]
pub(crate) struct Sleeper {
    epoll: OwnedFd,
    /// Each is registered with one ring, which signals it.
    events: Vec<OwnedFd>,
}

impl Sleeper {
    /// A sleeper that nothing wakes yet.
    pub(crate) fn new() -> io::Result<Sleeper> {
        Ok(Sleeper { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::new() })
    }

    /// An event for one more ring.
    pub(crate) fn add(&mut self) -> io::Result<&OwnedFd> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered: each signal wakes once, and nobody has to read the counter.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &event, epoll::EventData::new_u64(self.events.len() as u64), flags)?;
        self.events.push(event);
        Ok(&self.events[self.events.len() - 1])
    }

    /// Sleeps until a ring has signalled since the last call, or the time is over.
    pub(crate) fn sleep(&self, patience: Duration) -> io::Result<()> {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let timeout = Timespec::try_from(patience).map_err(|_| io::ErrorKind::InvalidInput)?;
        match epoll::wait(&self.epoll, &mut ready, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn one_signal_ends_one_sleep() {
        let mut sleeper = Sleeper::new().expect("an epoll");
        sleeper.add().expect("an event");
        let event = rustix::io::dup(sleeper.add().expect("an event")).expect("a duplicate");
        rustix::io::write(&event, &1u64.to_ne_bytes()).expect("signalled");
        let start = Instant::now();
        sleeper.sleep(Duration::from_secs(20)).expect("sleeps");
        assert!(start.elapsed() < Duration::from_secs(10), "it was signalled before");
        let start = Instant::now();
        sleeper.sleep(Duration::from_millis(20)).expect("sleeps");
        assert!(start.elapsed() >= Duration::from_millis(20), "nobody has signalled again");
    }
}
