//! The bounded mailbox of a store.

use crate::{Request, Source};
use crossbeam_queue::SegQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Wakes the one that reads a mailbox.
type Wake = Box<dyn Fn() + Send>;

/// Requests on their way to a store. Bounded by their bytes; who finds it full gets the request back at once. Senders
/// wait for nobody: neither for the store nor for each other.
pub struct StoreMail {
    requests: SegQueue<(Source, Request)>,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Requests given back because the mailbox was full or closed.
    full: AtomicU64,
    closed: AtomicBool,
    /// The store's thread sleeps, or is about to: whoever sends next wakes it.
    asleep: AtomicBool,
    reader: Mutex<Option<Wake>>,
}

impl StoreMail {
    /// Bytes that may wait unless told otherwise.
    pub const BYTES_MAX: usize = 32 << 20;

    /// An empty mailbox.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(StoreMail {
            requests: SegQueue::new(),
            bytes: AtomicUsize::new(0),
            bytes_max,
            full: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            reader: Mutex::new(None),
        })
    }

    /// A sender for one source.
    pub fn sender(self: &Arc<Self>, source: Source) -> MailSender {
        MailSender { mail: self.clone(), source }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may wait.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Requests given back because the mailbox was full or closed.
    pub fn refused(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// Lets nothing more in.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether nothing more is let in.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nothing waits and nobody is about to send, once it is closed.
    pub fn is_drained(&self) -> bool {
        // Senders count their bytes before they look whether it is closed, so one that found it open has been counted
        // here.
        self.bytes.load(Ordering::SeqCst) == 0
    }

    /// How the reader is woken when it sleeps. It must not block.
    pub fn set_reader(&self, wake: impl Fn() + Send + 'static) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(wake));
    }

    /// Moves what waits to `batch`, at most so many requests and about so many bytes.
    pub fn take(&self, batch: &mut Vec<(Source, Request)>, requests_max: usize, bytes_max: usize) {
        let mut bytes = 0;
        while batch.len() < requests_max
            && bytes < bytes_max
            && let Some((source, request)) = self.requests.pop()
        {
            bytes += request.bytes();
            batch.push((source, request));
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Announces that the reader is about to sleep. False if it must not: something waits, or the mailbox has been
    /// closed.
    ///
    /// This store and look at the queue are sequentially consistent with the push and the swap in `wake`: either the
    /// reader sees the request, or the sender sees that the reader sleeps.
    pub fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.requests.is_empty() && !self.is_closed() {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The reader does not sleep any more.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    fn wake(&self) {
        // The lock is taken only by the one sender that finds the reader asleep, and nobody holds it for longer than an
        // unpark.
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(reader) = &*self.reader.lock().unwrap_or_else(PoisonError::into_inner)
        {
            reader();
        }
    }
}

impl std::fmt::Debug for StoreMail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreMail").field("bytes", &self.bytes()).field("bytes_max", &self.bytes_max).finish()
    }
}

/// Sends requests of one source.
#[derive(Clone, Debug)]
pub struct MailSender {
    mail: Arc<StoreMail>,
    source: Source,
}

impl MailSender {
    /// Sends a request; never waits.
    ///
    /// # Errors
    /// The request itself, when the mailbox is full or the store has been closed.
    pub fn try_send(&self, request: Request) -> Result<(), Request> {
        let mail = &*self.mail;
        let bytes = request.bytes();
        let before = mail.bytes.fetch_add(bytes, Ordering::SeqCst);
        // An empty mailbox takes anything.
        if (before > 0 && before + bytes > mail.bytes_max) || mail.is_closed() {
            mail.bytes.fetch_sub(bytes, Ordering::SeqCst);
            mail.full.fetch_add(1, Ordering::Relaxed);
            return Err(request);
        }
        mail.requests.push((self.source, request));
        mail.wake();
        Ok(())
    }

    /// The mailbox it sends to.
    pub fn mail(&self) -> &Arc<StoreMail> {
        &self.mail
    }
}
