//! The thread that writes the log of events: the services thread never waits for a disk.

use super::log::{EventLog, Job};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::{io, thread};
use tokio::sync::oneshot;

/// What became of a job: the bytes of all files.
pub(super) type Written = io::Result<u64>;

/// The running thread. It has one job at a time.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` when it is to end.
    jobs: Option<mpsc::Sender<(Job, oneshot::Sender<Written>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn start(mut log: EventLog) -> io::Result<Self> {
        let (jobs, asked) = mpsc::channel::<(Job, oneshot::Sender<Written>)>();
        let run = move || {
            while let Ok((job, done)) = asked.recv() {
                let written = log.write(&job).map(|()| log.bytes());
                // Who asked may have ended.
                let _ = done.send(written);
            }
        };
        let thread = thread::Builder::new().name("event-log".to_owned()).spawn(run)?;
        Ok(Writer { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Hands it a job. The answer comes when that is done.
    pub(super) fn write(&self, job: Job) -> oneshot::Receiver<Written> {
        let (done, written) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // A thread that has panicked has ended the node.
            let _ = jobs.send((job, done));
        }
        written
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // Its panic is in the log of the node.
            let _ = thread.join();
        }
    }
}
