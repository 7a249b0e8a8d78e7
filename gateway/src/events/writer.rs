//! The thread that writes the log of events: the services thread never waits for a disk, or for Redis.

use super::log::{EventLog, Job, Recovered};
use super::redis_log::{EventsInRedis, RedisLog};
use std::thread::JoinHandle;
use std::{io, thread};
use tokio::sync::{mpsc, oneshot};

/// What became of a job: the bytes of the whole log.
pub(super) type Written = io::Result<u64>;

type Asked = (Job, oneshot::Sender<Written>);

/// The running thread. It has one job at a time.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` when it is to end.
    jobs: Option<mpsc::UnboundedSender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it for a log in files.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn start(mut log: EventLog) -> io::Result<Self> {
        Self::spawn(move |mut asked| {
            while let Some((job, done)) = asked.blocking_recv() {
                let written = log.write(&job).map(|()| log.bytes());
                // Who asked may have ended.
                let _ = done.send(written);
            }
        })
    }

    /// Opens the log of a node in Redis, and starts the thread for it. Waits for Redis.
    ///
    /// # Errors
    /// When Redis does not work, or the system has no thread for it.
    pub(super) fn start_in_redis(
        place: EventsInRedis,
        node: &str,
        owner: u64,
        keys: Vec<u64>,
    ) -> io::Result<(Self, Recovered)> {
        let (opened, waits) = std::sync::mpsc::sync_channel(1);
        let node = node.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let writer = Self::spawn(move |mut asked| {
            // The connections need the runtime all the time, not for jobs alone.
            runtime.block_on(async {
                let mut log = match RedisLog::open(&place, &node, owner, &keys).await {
                    Ok((log, recovered)) => {
                        // Whoever starts it waits.
                        let _ = opened.send(Ok(recovered));
                        log
                    }
                    Err(error) => return drop(opened.send(Err(error))),
                };
                while let Some((job, done)) = asked.recv().await {
                    let _ = done.send(log.write(&job).await);
                }
                log.close();
            });
        })?;
        let ended = |_| io::Error::other("its thread has ended");
        let recovered = waits.recv().map_err(ended)??;
        Ok((writer, recovered))
    }

    fn spawn(run: impl FnOnce(mpsc::UnboundedReceiver<Asked>) + Send + 'static) -> io::Result<Self> {
        let (jobs, asked) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name("event-log".to_owned()).spawn(move || run(asked))?;
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
