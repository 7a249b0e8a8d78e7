//! The thread that owns a store.

use crate::{Answer, Request, Source, Stats, Store, StoreMail};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Requests of one batch at most; the rest is in the next. Bounds the time of a commit, and with it how long the others
/// wait.
const BATCH_REQUESTS_MAX: usize = 16_384;
/// About the bytes of one batch at most.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// A store on a thread of its own. All that comes while one batch is made durable is the next batch: there is no timer,
/// and so an idle store answers at once and a busy one in large batches.
#[derive(Debug)]
pub struct StoreThread {
    mail: Arc<StoreMail>,
    stats: Arc<Stats>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts the thread, named `store`. `answers` is called on it, once for each source that a batch has answers for,
    /// in the order of that source's requests; it must not block. Every request that `try_send` took is answered unless
    /// the thread panics.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<S: Store + Send + 'static>(
        store: S,
        mail: Arc<StoreMail>,
        answers: impl FnMut(Source, Vec<Answer>) + Send + 'static,
    ) -> io::Result<Self> {
        let stats = store.stats().clone();
        let inbox = mail.clone();
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || run(store, &inbox, answers))?;
        let sleeper = thread.thread().clone();
        mail.set_reader(move || sleeper.unpark());
        // The thread may have gone to sleep before anybody could wake it.
        thread.thread().unpark();
        Ok(StoreThread { mail, stats, thread: Some(thread) })
    }

    /// A sender for one source.
    pub fn sender(&self, source: Source) -> crate::MailSender {
        self.mail.sender(source)
    }

    /// The store's numbers.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Whether the thread runs. It ends before `stop` only by a panic.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Takes no more requests, answers those that were taken, makes everything durable and waits for the thread.
    /// Dropping does the same. False if it had panicked.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        self.mail.close();
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut store: impl Store, mail: &StoreMail, mut answers: impl FnMut(Source, Vec<Answer>)) {
    let mut batch: Vec<(Source, Request)> = Vec::new();
    let mut by_source: Vec<Vec<Answer>> = Vec::new();
    loop {
        mail.take(&mut batch, BATCH_REQUESTS_MAX, BATCH_BYTES_MAX);
        if !batch.is_empty() {
            store.apply(&mut batch, &mut |source, answer| {
                let source = usize::from(source);
                if by_source.len() <= source {
                    by_source.resize_with(source + 1, Vec::new);
                }
                by_source[source].push(answer);
            });
            for (source, ready) in by_source.iter_mut().enumerate() {
                if !ready.is_empty() {
                    answers(source as Source, std::mem::take(ready));
                }
            }
        } else if mail.is_closed() {
            if mail.is_drained() {
                break;
            }
            // A sender is between counting its request and sending it.
            std::thread::yield_now();
        }
        let next = store.tick();
        if mail.may_sleep() {
            match next {
                Some(next) => std::thread::park_timeout(next),
                None => std::thread::park(),
            }
            mail.awake();
        }
    }
    store.close();
}
