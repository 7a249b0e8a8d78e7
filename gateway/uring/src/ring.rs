//! A ring with its table of direct descriptors and its receive buffers: what every driver has below it.

use crate::buffers::{BUFFER_GROUP, BULK_GROUP, BufferRing};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::{error, fmt, io};

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Entries of the submission queue, a power of two. What a turn has beyond them takes several enters.
    pub submissions: u32,
    /// Entries of the completion queue, a power of two, at most 65,536. A burst beyond them is kept in kernel memory, at
    /// a cost.
    pub completions: u32,
    /// Direct descriptors; the kernel allows at most the process's limit of open files.
    pub slots: u32,
    /// Receive buffers, at most 32,768.
    pub buffers: u16,
    /// Bytes of each receive buffer, not 0.
    pub buffer_bytes: u32,
}

/// Set in the number of a large receive buffer.
pub(crate) const BULK_BUFFER: u16 = 1 << 15;

/// What the kernel refuses of a ring.
#[derive(Debug)]
pub enum RingError {
    /// To set it up at all: `EPERM` where that is forbidden, `ENOSYS` by some filters of system calls, `ENOMEM`.
    Setup(io::Error),
    /// Something that it lacks, by name, with its answer if it was asked by doing it: `EMFILE` for a table that is
    /// larger than the limit of open files, `EINVAL` for what it does not know, `ENOMEM`.
    Feature(&'static str, Option<io::Error>),
    /// To enter it, although it is set up: filters judge that call by itself.
    Enter(io::Error),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Setup(error) => write!(f, "io_uring_setup: {error}"),
            RingError::Feature(name, Some(error)) => write!(f, "{name}: {error}"),
            RingError::Feature(name, None) => write!(f, "io_uring here lacks {name}"),
            RingError::Enter(error) => write!(f, "io_uring_enter: {error}"),
        }
    }
}

impl error::Error for RingError {}

impl From<RingError> for io::Error {
    fn from(error: RingError) -> Self {
        let kind = match &error {
            RingError::Setup(error) | RingError::Feature(_, Some(error)) | RingError::Enter(error) => error.kind(),
            RingError::Feature(_, None) => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error.to_string())
    }
}

/// A ring, its table of direct descriptors and its receive buffers. It stays on the thread that made it: only that one
/// may enter it (`SINGLE_ISSUER`).
///
/// Whoever pushes entries answers for the memory they point to. Everything else is safe.
pub struct Ring {
    // Fields are dropped in this order: the ring is closed before the buffers it was told about are freed.
    io: IoUring,
    buffers: BufferRing,
    bulk: Option<BufferRing>,
}

impl Ring {
    /// Sets up a ring on the calling thread. Its buffers are the kernel's from the beginning.
    ///
    /// # Errors
    /// The step that failed, and the kernel's answer.
    pub fn new(shape: &Shape) -> Result<Self, RingError> {
        let io: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(shape.completions)
            .build(shape.submissions)
            .map_err(RingError::Setup)?;
        let lacks = |name| move |error| RingError::Feature(name, Some(error));
        io.submitter()
            .register_files_sparse(shape.slots)
            .map_err(lacks("a table of direct descriptors of that size"))?;
        let buffers = BufferRing::register(&io, BUFFER_GROUP, shape.buffers, shape.buffer_bytes)
            .map_err(lacks("provided-buffer rings"))?;
        Ok(Ring { io, buffers, bulk: None })
    }

    /// Adds so many large receive buffers, for reads that ask for one.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn add_bulk(&mut self, buffers: u16, buffer_bytes: u32) -> io::Result<()> {
        self.bulk = Some(BufferRing::register(&self.io, BULK_GROUP, buffers, buffer_bytes)?);
        Ok(())
    }

    /// The group of large receive buffers, if there is one.
    #[inline]
    pub fn bulk_group(&self) -> Option<u16> {
        self.bulk.as_ref().map(|_| BULK_GROUP)
    }

    /// Where a receive buffer is, and its number there.
    #[inline]
    fn place(&mut self, buffer: u16) -> (&mut BufferRing, u16) {
        match &mut self.bulk {
            Some(bulk) if buffer & BULK_BUFFER != 0 => (bulk, buffer & !BULK_BUFFER),
            _ => (&mut self.buffers, buffer),
        }
    }

    /// Where entries are queued.
    #[inline]
    pub fn submission(&mut self) -> SubmissionQueue<'_> {
        self.io.submission()
    }

    /// What the kernel has reported.
    #[inline]
    pub fn completion(&mut self) -> CompletionQueue<'_> {
        self.io.completion()
    }

    /// Enters the ring, and registers what it is to know. Mutable, so that no bytes of a buffer are looked at
    /// meanwhile: the kernel may write to any buffer of its own inside an enter.
    #[inline]
    pub fn submitter(&mut self) -> Submitter<'_> {
        self.io.submitter()
    }

    /// Makes the ring signal an eventfd when something has happened, while that is switched on ([`Ring::signal`]).
    ///
    /// # Errors
    /// `EBUSY` when it has one already, `EBADF` when that is no eventfd.
    pub fn signal_to(&mut self, event: impl AsFd) -> io::Result<()> {
        self.io.submitter().register_eventfd(event.as_fd().as_raw_fd())
    }

    /// Switches the signal on or off: only who is about to sleep needs it. Look for work after switching it on.
    pub fn signal(&mut self, on: bool) {
        let completions = self.io.completion();
        if on {
            completions.enable_eventfd();
        } else {
            completions.disable_eventfd();
        }
        drop(completions);
        // The kernel publishes work and then looks at the switch; here it is the other way round, and one of both sees
        // the other.
        fence(Ordering::SeqCst);
    }

    /// Whether an enter would do anything: something to submit or to take. Costs no system call.
    #[inline]
    pub fn has_work(&mut self) -> bool {
        let submissions = self.io.submission();
        let waiting = !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow();
        drop(submissions);
        waiting || !self.io.completion().is_empty()
    }

    /// The first `len` bytes of a receive buffer that a completion has named and that has not been released since.
    ///
    /// # Panics
    /// If there is no such buffer, or it is shorter.
    #[inline]
    pub fn bytes(&self, buffer: u16, len: usize) -> &[u8] {
        match &self.bulk {
            Some(bulk) if buffer & BULK_BUFFER != 0 => bulk.bytes(buffer & !BULK_BUFFER, len),
            _ => self.buffers.bytes(buffer, len),
        }
    }

    /// The same bytes, to be changed where they lie.
    ///
    /// # Panics
    /// As [`Ring::bytes`].
    #[inline]
    pub fn bytes_mut(&mut self, buffer: u16, len: usize) -> &mut [u8] {
        let (buffers, number) = self.place(buffer);
        buffers.bytes_mut(number, len)
    }

    /// Gives a receive buffer back, once for each completion that has named it. The kernel sees it after
    /// [`Ring::publish`].
    ///
    /// # Panics
    /// If there is no such buffer.
    #[inline]
    pub fn release(&mut self, buffer: u16) {
        let (buffers, number) = self.place(buffer);
        buffers.release(number);
    }

    /// Shows the kernel which buffers were released. To be called before an enter.
    #[inline]
    pub fn publish(&mut self) {
        self.buffers.publish();
        if let Some(bulk) = &mut self.bulk {
            bulk.publish();
        }
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }
}
