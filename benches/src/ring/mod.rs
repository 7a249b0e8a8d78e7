//! A ring as both ends of the benches drive it: direct descriptors only, receives into provided buffers, sends that are
//! over when the kernel returns. Set-up, table, buffers and signal are those of the gateway's rings: see
//! [`trunkline_uring`].
//!
//! This folder holds all `unsafe` code of the package; what it hands out is safe to use.
//!
//! **Sends never outlive the enter that submits them.** Every send carries `MSG_DONTWAIT`, so io_uring marks it
//! as not to be parked: it either copies its bytes into the socket at submission or fails there. `MSG_WAITALL` turns a
//! short count into a failure, and a failure posts a completion even under `IOSQE_CQE_SKIP_SUCCESS`. So a send
//! that worked costs no completion at all, and its bytes may be reused as soon as the enter has returned.
//!
//! **The kernel writes into provided buffers only inside an enter of this thread**, because the ring is set up with
//! `DEFER_TASKRUN`. Nobody writes while the owner reads.

#![allow(unsafe_code)] // raw submission entries carry addresses; see the invariants above

pub(crate) mod os;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io, mem,
    net::SocketAddrV4,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use io_uring::{cqueue, opcode, squeue, types};
use trunkline_uring::BUFFER_GROUP;
pub(crate) use trunkline_uring::Shape as RingShape;

/// `IORING_RECVSEND_POLL_FIRST`: waits before it tries, for what cannot be there yet.
const POLL_FIRST: u16 = 1;

/// A buffer with received bytes, taken out of the kernel's reach until it is recycled.
#[derive(Debug)]
#[must_use = "a buffer that is not recycled is lost to the ring"]
pub(crate) struct Buffer {
    id: u16,
    len: u32,
}

/// What a call to [`Ring::turn`] waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Take what is there.
    No,
    /// Sleep until one completion is there, without end.
    One,
    /// Sleep until that many completions are there or the time is over. Since Linux 6.13 one enter handles at most
    /// `max(20, completions)` events, so a large number with no time at all takes a larger batch.
    AtMost {
        /// How many completions end the wait.
        completions: u32,
        /// How long it lasts.
        timeout: Duration,
    },
}

/// One thing the kernel has reported.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A listener has put a connection into `slot`.
    Accepted { slot: u32 },
    /// The accept has ended with this error number; with 0 it has to be armed again.
    AcceptEnded { errno: i32 },
    /// The connect on `slot` is over; 0 means connected.
    Connected { slot: u32, errno: i32 },
    /// Bytes have arrived. `armed` tells whether the receive goes on.
    Received { slot: u32, buffer: Buffer, armed: bool },
    /// The receive on `slot` has ended without bytes.
    ReceiveEnded { slot: u32, end: ReceiveEnd },
    /// The peer takes no more for now (`errno` 0 or `EAGAIN`), or is gone (any other): `rest` could not be sent.
    SendStopped { slot: u32, errno: i32, rest: Vec<u8> },
    /// A connection that took no more may take some again.
    Writable { slot: u32 },
    /// A slot is free again.
    Closed { slot: u32 },
    /// The watched descriptor is readable or hung up.
    Watched,
}

/// Why a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveEnd {
    /// The peer has closed its side.
    Eof,
    /// No provided buffer was free: a normal state, arm again.
    OutOfBuffers,
    /// An error number.
    Errno(i32),
}

/// Counters of a ring since it was made.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct RingCounters {
    /// System calls `io_uring_enter`.
    pub(crate) enters: u64,
    /// Completions taken.
    pub(crate) completions: u64,
    /// Receives that ended because every buffer was in use.
    pub(crate) out_of_buffers: u64,
    /// Sends that did not go out whole at once.
    pub(crate) short_sends: u64,
    /// Completions the kernel had to keep aside because the queue was full.
    pub(crate) completion_overflows: u64,
}

/// Where the bytes of a send lie until the completions of its enter have been taken.
enum SendSource {
    Staged { start: usize, len: usize },
    Provided(Buffer),
}

/// An io_uring ring with its direct descriptors, provided buffers and send bytes. It stays on the thread that made it.
pub(crate) struct Ring {
    // Fields are dropped in this order: the ring is closed before the memory it was told about is freed.
    io: trunkline_uring::Ring,
    /// Addresses connected to, for the kernel to read; a ring has as many as there are servers.
    targets: Vec<(SocketAddrV4, Box<libc::sockaddr_in>)>,
    /// Bytes of the sends of the last enter.
    sending: Vec<u8>,
    /// Bytes of the sends of the next one.
    staged: Vec<u8>,
    sends: Vec<SendSource>,
    pending: VecDeque<(u64, i32, u32)>,
    counters: RingCounters,
}

/// The 24 bits of an operation's name that tell one send of a turn from another.
const SENDS_MAX: usize = 1 << 24;
/// Enters in a row that may leave submissions behind before the ring is declared broken.
const SUBMIT_TRIES_MAX: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Connect,
    Receive,
    Send,
    Writable,
    Close,
    Watch,
    Cancel,
}

impl Op {
    const ALL: [Op; 8] =
        [Op::Accept, Op::Connect, Op::Receive, Op::Send, Op::Writable, Op::Close, Op::Watch, Op::Cancel];

    fn from_user_data(user_data: u64) -> Option<Op> {
        Self::ALL.get(((user_data >> 56) as usize).checked_sub(1)?).copied()
    }
}

/// Operation in the top byte, then 24 bits that name a send, then the slot.
fn user_data(op: Op, index: usize, slot: u32) -> u64 {
    (op as u64) << 56 | (index as u64) << 32 | u64::from(slot)
}

impl Ring {
    /// Sets up a ring for the calling thread. Errors: what the kernel says, `EMFILE` when `slots` is above the limit
    /// of open files.
    pub(crate) fn new(shape: RingShape) -> io::Result<Ring> {
        Ok(Ring {
            io: trunkline_uring::Ring::new(&shape)?,
            targets: Vec::new(),
            sending: Vec::new(),
            staged: Vec::new(),
            sends: Vec::new(),
            pending: VecDeque::new(),
            counters: RingCounters::default(),
        })
    }

    /// Counters so far.
    pub(crate) fn counters(&mut self) -> RingCounters {
        self.counters.completion_overflows = u64::from(self.io.completion().overflow());
        self.counters
    }

    /// Whether a turn would do anything: something to submit, or something that has happened. Costs no system call.
    pub(crate) fn has_work(&mut self) -> bool {
        self.io.has_work()
    }

    /// Makes `event` signal whenever completions may be waiting, while that is switched on.
    pub(crate) fn signal_to(&mut self, event: &OwnedFd) -> io::Result<()> {
        self.io.signal_to(event)
    }

    /// Switches those signals on or off; who has switched them on looks for work once more before it sleeps.
    pub(crate) fn signal(&mut self, on: bool) {
        self.io.signal(on);
    }

    /// Puts open sockets into the slots from `first` on. The caller may close its own descriptors afterwards.
    pub(crate) fn install(&mut self, first: u32, sockets: &[RawFd]) -> io::Result<()> {
        let installed = self.io.submitter().register_files_update(first, sockets)?;
        if installed == sockets.len() { Ok(()) } else { Err(io::Error::other("the file table took only a part")) }
    }

    /// Accepts connections into free slots until it ends; `listener` has to stay open as long.
    pub(crate) fn accept_many(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).allocate_file_index(true).build();
        self.push(entry.user_data(user_data(Op::Accept, 0, 0)))
    }

    /// Accepts one connection into a free slot.
    pub(crate) fn accept_one(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let fd = types::Fd(listener.as_raw_fd());
        let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .file_index(Some(types::DestinationSlot::auto_target()))
            .build();
        self.push(entry.user_data(user_data(Op::Accept, 0, 0)))
    }

    /// Connects the socket in `slot`. The calls of one ring name a few addresses only: each is kept.
    pub(crate) fn connect(&mut self, slot: u32, target: SocketAddrV4) -> io::Result<()> {
        let known = self.targets.iter().position(|(known, _)| *known == target);
        let at = known.unwrap_or_else(|| {
            self.targets.push((target, Box::new(os::socket_address(target))));
            self.targets.len() - 1
        });
        let address: &libc::sockaddr_in = &self.targets[at].1;
        let entry = opcode::Connect::new(
            types::Fixed(slot),
            std::ptr::from_ref::<libc::sockaddr_in>(address).cast(),
            mem::size_of::<libc::sockaddr_in>() as u32,
        )
        .build();
        self.push(entry.user_data(user_data(Op::Connect, 0, slot)))
    }

    /// Receives from `slot` until the receive ends.
    pub(crate) fn receive_many(&mut self, slot: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(types::Fixed(slot), BUFFER_GROUP).build();
        self.push(entry.user_data(user_data(Op::Receive, 0, slot)))
    }

    /// Receives from `slot` once.
    pub(crate) fn receive_one(&mut self, slot: u32) -> io::Result<()> {
        // A null pointer and length 0: the kernel picks a buffer of the group and uses its whole length.
        let entry = opcode::Recv::new(types::Fixed(slot), std::ptr::null_mut(), 0)
            .buf_group(BUFFER_GROUP)
            .ioprio(POLL_FIRST)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(user_data(Op::Receive, 0, slot)))
    }

    /// Ends the receive on `slot`, if one is armed; nothing is reported about that.
    pub(crate) fn stop_receiving(&mut self, slot: u32) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(user_data(Op::Receive, 0, slot)).build();
        self.push(cancel.user_data(user_data(Op::Cancel, 0, slot)))
    }

    /// Reports once when `slot` takes bytes again.
    pub(crate) fn wait_writable(&mut self, slot: u32) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fixed(slot), libc::POLLOUT as u32).build();
        self.push(entry.user_data(user_data(Op::Writable, 0, slot)))
    }

    /// Reports once when `fd` is readable or hung up; it has to stay open as long.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), (libc::POLLIN | libc::POLLHUP) as u32).build();
        self.push(entry.user_data(user_data(Op::Watch, 0, 0)))
    }

    /// Ends whatever is still armed on `slot`, then closes it.
    pub(crate) fn close(&mut self, slot: u32) -> io::Result<()> {
        // By name, which the kernel finds at once; by the descriptor it would search all operations of the ring.
        for op in [Op::Receive, Op::Writable, Op::Connect] {
            let cancel = opcode::AsyncCancel::new(user_data(op, 0, slot)).build();
            self.push(cancel.flags(squeue::Flags::IO_HARDLINK).user_data(user_data(Op::Cancel, 0, slot)))?;
        }
        let close = opcode::Close::new(types::Fixed(slot)).build();
        self.push(close.user_data(user_data(Op::Close, 0, slot)))
    }

    /// The bytes of a received buffer, and where to append bytes for the next sends.
    pub(crate) fn received(&mut self, buffer: &Buffer) -> (&[u8], &mut Vec<u8>) {
        (self.io.bytes(buffer.id, buffer.len as usize), &mut self.staged)
    }

    /// Where to append bytes for the next sends.
    pub(crate) fn staged(&mut self) -> &mut Vec<u8> {
        &mut self.staged
    }

    /// Gives a received buffer back to the kernel.
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        self.io.release(buffer.id);
    }

    /// Opens the sends of the next enter: what was staged so far can be sent by its position. Every completion of the
    /// last turn has to have been taken, because those of its sends refer to the bytes given up here.
    pub(crate) fn begin_sends(&mut self) {
        assert!(self.pending.is_empty(), "completions of the last turn are still to be taken");
        for source in self.sends.drain(..) {
            if let SendSource::Provided(buffer) = source {
                self.io.release(buffer.id);
            }
        }
        self.sending.clear();
        mem::swap(&mut self.sending, &mut self.staged);
        self.io.publish();
    }

    /// Sends staged bytes; `start` is the position they had in [`Ring::staged`] before [`Ring::begin_sends`].
    /// At most one send for each slot between two turns: a second one could overtake the rest of the first.
    pub(crate) fn send_staged(&mut self, slot: u32, start: usize, len: usize) -> io::Result<()> {
        let bytes = &self.sending[start..start + len];
        let (address, length) = (bytes.as_ptr(), bytes.len() as u32);
        self.push_send(slot, address, length, SendSource::Staged { start, len })
    }

    /// Sends back what a buffer holds; the buffer returns to the kernel afterwards. One for each slot and turn.
    pub(crate) fn send_buffer(&mut self, slot: u32, buffer: Buffer) -> io::Result<()> {
        let bytes = self.io.bytes(buffer.id, buffer.len as usize);
        let (address, length) = (bytes.as_ptr(), bytes.len() as u32);
        self.push_send(slot, address, length, SendSource::Provided(buffer))
    }

    fn push_send(&mut self, slot: u32, address: *const u8, length: u32, source: SendSource) -> io::Result<()> {
        let index = self.sends.len();
        assert!(index < SENDS_MAX, "more sends in one turn than an operation can name");
        self.sends.push(source);
        let entry = opcode::Send::new(types::Fixed(slot), address, length)
            .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(user_data(Op::Send, index, slot)))
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the addresses an entry carries point into `targets` (each boxed, never replaced), into `sending`,
            // which stays untouched from `begin_sends` to the next one, or into receive buffers of `io`; all three are
            // owned by this ring and outlive the submission. Receives write to buffers the kernel owns until it reports
            // them.
            if unsafe { self.io.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.submit_all()?;
        }
    }

    /// Submits until the queue is empty.
    fn submit_all(&mut self) -> io::Result<()> {
        for _ in 0..SUBMIT_TRIES_MAX {
            if self.io.submission().is_empty() {
                return Ok(());
            }
            // Without it a receive that is armed again and again in one turn would never see the buffers given back
            // since.
            self.io.publish();
            self.enter(Wait::No)?;
            self.take_completions();
        }
        Err(io::Error::other("the kernel leaves submissions of the ring unread"))
    }

    /// Submits what is queued, waits as told, and makes the completions available to [`Ring::next`].
    /// Returns how many there are.
    pub(crate) fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        self.io.publish();
        self.enter(wait)?;
        self.take_completions();
        self.submit_all()?;
        Ok(self.pending.len())
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        use io_uring::EnterFlags;
        self.counters.enters += 1;
        let to_submit = self.io.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: `to_submit` counts entries pushed through `push`; the argument of an extended enter lives on this
        // stack frame for the whole call.
        let result = unsafe {
            match wait {
                Wait::No => self.io.submitter().enter::<libc::sigset_t>(to_submit, 0, flags, None),
                Wait::One => self.io.submitter().enter::<libc::sigset_t>(to_submit, 1, flags, None),
                Wait::AtMost { completions, timeout } => {
                    let time = types::Timespec::from(timeout);
                    let argument = types::SubmitArgs::new().timespec(&time);
                    let flags = flags | EnterFlags::EXT_ARG.bits();
                    self.io.submitter().enter(to_submit, completions, flags, Some(&argument))
                }
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A wait that ran out, a signal, or completions that must be taken before more is submitted.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn take_completions(&mut self) {
        let before = self.pending.len();
        self.pending.extend(self.io.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        self.counters.completions += (self.pending.len() - before) as u64;
    }

    /// The next completion of the last turn.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let (user_data, result, flags) = self.pending.pop_front()?;
            let slot = user_data as u32;
            let errno = (-result).max(0);
            let completion = match Op::from_user_data(user_data)? {
                Op::Accept if result >= 0 => Completion::Accepted { slot: result as u32 },
                Op::Accept => Completion::AcceptEnded { errno },
                Op::Connect => Completion::Connected { slot, errno },
                Op::Send => self.send_stopped(slot, (user_data >> 32) as usize & (SENDS_MAX - 1), result),
                // The slot was closed under it.
                Op::Receive | Op::Writable if errno == libc::ECANCELED => continue,
                Op::Receive => self.receive_completed(slot, result, flags),
                Op::Writable => Completion::Writable { slot },
                Op::Close => Completion::Closed { slot },
                Op::Watch => Completion::Watched,
                Op::Cancel => continue,
            };
            return Some(completion);
        }
    }

    fn receive_completed(&mut self, slot: u32, result: i32, flags: u32) -> Completion {
        let buffer = cqueue::buffer_select(flags).map(|id| Buffer { id, len: result.max(0) as u32 });
        match (result, buffer) {
            (1.., Some(buffer)) => Completion::Received { slot, buffer, armed: cqueue::more(flags) },
            (result, buffer) => {
                if let Some(buffer) = buffer {
                    self.io.release(buffer.id);
                }
                let end = match -result {
                    0 => ReceiveEnd::Eof,
                    libc::ENOBUFS => {
                        self.counters.out_of_buffers += 1;
                        ReceiveEnd::OutOfBuffers
                    }
                    errno => ReceiveEnd::Errno(errno),
                };
                Completion::ReceiveEnded { slot, end }
            }
        }
    }

    fn send_stopped(&mut self, slot: u32, index: usize, result: i32) -> Completion {
        self.counters.short_sends += 1;
        let bytes = match &self.sends[index] {
            SendSource::Staged { start, len } => &self.sending[*start..*start + *len],
            SendSource::Provided(buffer) => self.io.bytes(buffer.id, buffer.len as usize),
        };
        let rest = bytes[(result.max(0) as usize).min(bytes.len())..].to_vec();
        let errno = match -result {
            ..=0 | libc::EAGAIN => 0,
            errno => errno,
        };
        Completion::SendStopped { slot, errno, rest }
    }
}
