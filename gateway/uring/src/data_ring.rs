//! The data ring: [`Io`] on a raw io_uring with direct descriptors.

#![allow(unsafe_code)]

use crate::buffers::BUFFER_GROUP;
use crate::ring::{BULK_BUFFER, Ring, Shape};
use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{cqueue, opcode, squeue};
use rustix::rand::GetRandomFlags;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use trunkline_core::io::{
    BufId, Completion, ConnId, DIAL_TIMEOUT, GENERATION_BITS, HandoverToken, Io, IoStats, Now, OpResult, Peer, ReadOp,
    SendId,
};
use trunkline_core::limits::Limits;
use trunkline_core::waker::Waker;

/// Submissions gathered before an enter. More are flushed early, which costs one system call.
const SQ_ENTRIES: u32 = 1_024;
/// Completions the kernel can queue; a burst beyond it is kept in kernel memory, at a cost.
const CQ_ENTRIES: u32 = 16_384;

/// Enters of one turn that only take more completions: the kernel hands over about 20 at a time (since Linux 6.13), and
/// what is handled in one turn shares its sends.
const MORE_ENTERS_MAX: u32 = 16;

/// How long to leave the kernel alone that took nothing of what was submitted.
const SUBMIT_PAUSE: Duration = Duration::from_micros(200);

/// `SO_LINGER` with a time of 0: the close drops what the peer has not taken and resets the connection.
static RESET_ON_CLOSE: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// Asks `IORING_OP_FILES_UPDATE` for any free slot (`IORING_FILE_INDEX_ALLOC`, since Linux 6.0).
const ANY_SLOT: i32 = -1;

/// What an operation was, in the top 8 bits of its user data. The rest names the connection, the send, the listener or
/// the token.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    /// Nobody waits for it: cancels, closes of a slot that never was a connection, wakes that failed.
    Ignore = 0,
    Accept,
    Poll,
    Recv,
    Multishot,
    Send,
    Shutdown,
    Close,
    HandOver,
    Adopted,
    Wake,
    Tick,
    /// A dial: connecting its socket.
    Connect,
    /// A dial: putting the connected socket into the descriptor table.
    Install,
    /// A dial that failed before it reached the kernel.
    DialFailed,
    /// An accept that tells who connected.
    AcceptWithPeer,
    /// A pause, beside the tick.
    Pause,
    /// A multishot receive into large buffers, where there are some.
    Bulk,
}

const TAG_SHIFT: u32 = 56;
/// Bits of an errno in the user data of a dial that failed at once.
const DIAL_ERRNO_BITS: u32 = TAG_SHIFT - 32;
const _: () = assert!(HandoverToken::BITS <= TAG_SHIFT && GENERATION_BITS + 32 <= TAG_SHIFT);

impl Tag {
    const ALL: [Tag; 18] = [
        Tag::Ignore,
        Tag::Accept,
        Tag::Poll,
        Tag::Recv,
        Tag::Multishot,
        Tag::Send,
        Tag::Shutdown,
        Tag::Close,
        Tag::HandOver,
        Tag::Adopted,
        Tag::Wake,
        Tag::Tick,
        Tag::Connect,
        Tag::Install,
        Tag::DialFailed,
        Tag::AcceptWithPeer,
        Tag::Pause,
        Tag::Bulk,
    ];

    fn with(self, rest: u64) -> u64 {
        (self as u64) << TAG_SHIFT | rest
    }

    fn of(self, conn: ConnId) -> u64 {
        self.with(u64::from(conn.generation) << 32 | u64::from(conn.slot))
    }
}

fn conn_of(user_data: u64) -> ConnId {
    ConnId { slot: user_data as u32, generation: (user_data >> 32) as u32 & ((1 << GENERATION_BITS) - 1) }
}

/// A buffer the kernel reads from, and whose it is.
#[derive(Debug)]
struct Sending {
    conn: ConnId,
    buf: Vec<u8>,
    /// Where in `buf` the send begins.
    offset: usize,
}

/// A dial under way, and the memory the kernel reads and writes for it. Boxed, so that it stays where it is.
#[derive(Debug)]
struct Dialing {
    token: u32,
    /// Held open until the table holds it too.
    socket: Socket,
    address: SockAddr,
    /// The socket's descriptor; the kernel writes the slot it found in its place.
    place: RawFd,
}

/// An accept under way, and the memory into which the kernel writes who connected. Boxed, so that it stays where it is.
#[derive(Debug)]
struct Accepting {
    listener: u16,
    address: SockAddrStorage,
    len: libc::socklen_t,
}

/// Ring descriptors of all shards of the process, by shard; filled while they start.
pub type RingFds = Arc<Vec<OnceLock<RawFd>>>;

/// The data ring of one shard. Fields are dropped in this order: the ring first, then the memory the kernel knew
/// through it.
pub struct Uring {
    ring: Ring,
    sends: Vec<Option<Sending>>,
    sends_free: Vec<u32>,
    /// Sends that the next enter hands over, by their place in `sends`: the kernel does not know of them.
    sends_next: Vec<u32>,
    /// Those that it shall not hand over, until they are reported.
    sends_withdrawn: VecDeque<u32>,
    /// A few at a time, one for each node of a cluster at most.
    dials: Vec<Option<Box<Dialing>>>,
    /// Accepts that tell who connected: some dozens at a time.
    accepts: Vec<Option<Box<Accepting>>>,
    /// `None` once closed.
    listeners: Vec<Option<OwnedFd>>,
    /// Its eventfd is registered with the ring.
    _waker: Arc<Waker>,
    ring_fds: RingFds,
    /// Completions taken from the kernel's queue and not yet from here.
    batch: VecDeque<cqueue::Entry>,
    tick: Box<Timespec>,
    pause: Box<Timespec>,
    sq_full: u64,
    submit_retries: u64,
    cq_overflow: u64,
}

impl Uring {
    /// Sets up the ring on the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// The step that failed, and the kernel's error.
    pub fn new(
        shard: u16,
        limits: &Limits,
        listeners: Vec<OwnedFd>,
        waker: Arc<Waker>,
        ring_fds: RingFds,
    ) -> io::Result<Self> {
        let mut ring = Ring::new(&Shape {
            submissions: SQ_ENTRIES,
            completions: CQ_ENTRIES,
            slots: limits.slots(),
            buffers: limits.recv_buffers - limits.buffers_in_bulk(),
            buffer_bytes: limits.recv_buffer_bytes,
        })?;
        if limits.bulk_buffers() > 0 {
            ring.add_bulk(limits.bulk_buffers(), limits.bulk_bytes())?;
        }
        ring.signal_to(&*waker)
            .map_err(|error| io::Error::new(error.kind(), format!("registering the eventfd: {error}")))?;
        ring_fds[usize::from(shard)].set(ring.as_raw_fd()).expect("each shard sets its own ring once");
        Ok(Uring {
            ring,
            sends: Vec::new(),
            sends_free: Vec::new(),
            sends_next: Vec::new(),
            sends_withdrawn: VecDeque::new(),
            dials: Vec::new(),
            accepts: Vec::new(),
            listeners: listeners.into_iter().map(Some).collect(),
            _waker: waker,
            ring_fds,
            batch: VecDeque::with_capacity(CQ_ENTRIES as usize / 16),
            tick: Box::new(Timespec::new()),
            pause: Box::new(Timespec::new()),
            sq_full: 0,
            submit_retries: 0,
            cq_overflow: 0,
        })
    }

    /// Asks for the completion of that tag, tick or pause, after so many milliseconds.
    fn complete_after(&mut self, ms: u32, tag: Tag) {
        let time = if tag == Tag::Pause { &mut self.pause } else { &mut self.tick };
        **time = Timespec::new().sec(u64::from(ms / 1_000)).nsec(ms % 1_000 * 1_000_000);
        let entry = opcode::Timeout::new(&**time).flags(TimeoutFlags::empty()).build();
        // SAFETY: the kernel copies the time when the entry is submitted; both times are boxed, live as long as the
        // ring, and are written again only after their completion, which comes after the submission.
        unsafe { self.push(&entry.user_data(tag.with(0))) };
    }

    /// Queues one submission.
    ///
    /// # Safety
    /// Whatever the entry points to must stay valid until its completion (or, for data the kernel copies at submission,
    /// until the next enter).
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller keeps what the entry points to alive.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.sq_full += 1;
            self.submit();
        }
    }

    fn submissions_free(&mut self) -> usize {
        let submissions = self.ring.submission();
        submissions.capacity() - submissions.len()
    }

    fn push_plain(&mut self, entry: &squeue::Entry) {
        // SAFETY: callers pass entries without pointers: a descriptor, flags and user data.
        unsafe { self.push(entry) };
    }

    fn submit(&mut self) {
        match self.ring.submitter().submit() {
            Ok(_) => {}
            // EBUSY and EAGAIN: the kernel wants completions taken, or memory, before it takes more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                self.submit_retries += 1;
                std::thread::sleep(SUBMIT_PAUSE);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => panic!("io_uring_enter failed, the ring is unusable: {error}"),
        }
        // What was submitted may have completed at once. More of that than the kernel's queue holds goes through a list
        // in kernel memory, and is lost when there is none; taken here, it never comes to that.
        self.take_completions();
    }

    /// Whether a turn would do anything: something to submit or to take. Costs no system call.
    pub fn has_work(&mut self) -> bool {
        let sends = !self.sends_next.is_empty() || !self.sends_withdrawn.is_empty();
        sends || !self.batch.is_empty() || self.ring.has_work()
    }

    /// Whether what happens in the ring shall signal the eventfd: see [`Ring::signal`].
    pub fn signal(&mut self, on: bool) {
        self.ring.signal(on);
    }

    /// Hands over what was queued and takes what is there; waits for one completion, at most so long.
    fn enter_once(&mut self, wait_micros: u32) {
        let timeout = Timespec::new().nsec(wait_micros.min(999_999) * 1_000);
        let want = usize::from(wait_micros > 0);
        match self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout)) {
            Ok(_) => {}
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => panic!("io_uring_enter failed, the ring is unusable: {error}"),
        }
        self.take_completions();
    }

    fn take_completions(&mut self) {
        self.batch.extend(self.ring.completion());
        self.cq_overflow = self.ring.completion().overflow().into();
    }

    fn decode(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let user_data = entry.user_data();
        let result = entry.result();
        let more = cqueue::more(entry.flags());
        let unit = || if result < 0 { Err(-result) } else { Ok(()) };
        let count = || -> OpResult<usize> { if result < 0 { Err(-result) } else { Ok(result as usize) } };
        let tag = *Tag::ALL.get((user_data >> TAG_SHIFT) as usize)?;
        Some(match tag {
            Tag::Ignore => return None,
            Tag::Accept => {
                let result = count().map(|slot| slot as u32);
                Completion::Accept { listener: user_data as u16, result, more, peer: None }
            }
            Tag::AcceptWithPeer => {
                let accept = self.accepts[user_data as u32 as usize].take().expect("a single accept completes once");
                let (result, listener) = (count().map(|slot| slot as u32), accept.listener);
                let peer = result.is_ok().then(|| accept.peer());
                Completion::Accept { listener, result, more: false, peer }
            }
            Tag::Poll => Completion::Readable { conn: conn_of(user_data), result: unit() },
            Tag::Recv | Tag::Multishot | Tag::Bulk => {
                let large = if tag == Tag::Bulk && self.ring.bulk_group().is_some() { BULK_BUFFER } else { 0 };
                Completion::Recv {
                    conn: conn_of(user_data),
                    result: count(),
                    buf: cqueue::buffer_select(entry.flags()).map(|buf| BufId(buf | large)),
                    more,
                    nonempty: cqueue::sock_nonempty(entry.flags()),
                }
            }
            Tag::Send => self.sent(user_data as u32, count()),
            Tag::Shutdown => Completion::ShutDown { conn: conn_of(user_data) },
            Tag::Close => Completion::Closed { slot: user_data as u32 },
            Tag::HandOver => Completion::HandedOver { conn: conn_of(user_data), result: unit() },
            Tag::Adopted => Completion::Adopted {
                token: HandoverToken(user_data & ((1 << HandoverToken::BITS) - 1)),
                slot: result as u32,
            },
            Tag::Wake => Completion::Wake,
            Tag::Tick => Completion::Tick,
            Tag::Pause => Completion::Paused,
            Tag::Connect => match unit() {
                Ok(()) => return self.install(user_data as u32),
                Err(errno) => self.dial_failed(user_data as u32, errno),
            },
            Tag::Install => {
                // The table holds the connection from here on; dropping the dial closes the plain descriptor.
                let dial = self.end_dial(user_data as u32);
                let result = match count() {
                    Ok(1) => Ok(dial.place as u32),
                    Ok(_) => Err(libc::ENFILE),
                    Err(errno) => Err(errno),
                };
                Completion::Dialed { token: dial.token, result }
            }
            Tag::DialFailed => Completion::Dialed {
                token: user_data as u32,
                result: Err((user_data >> 32) as i32 & ((1 << DIAL_ERRNO_BITS) - 1)),
            },
        })
    }

    /// Puts the sends gathered since the last time into the submission queue.
    fn queue_sends(&mut self) {
        for at in 0..self.sends_next.len() {
            let index = self.sends_next[at];
            let Sending { conn, buf, offset } = self.sends[index as usize].as_ref().expect("a send completes once");
            let bytes = &buf[*offset..];
            let entry = opcode::Send::new(Fixed(conn.slot), bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_NOSIGNAL)
                .build()
                .user_data(Tag::Send.with(index.into()));
            // SAFETY: the bytes are the heap memory of `buf`, which `sends` owns, untouched and unmoved, until the
            // completion of this very send takes it out in `sent`. A ring that is dropped first (field order) has no
            // operation left.
            unsafe { self.push(&entry) };
        }
        self.sends_next.clear();
    }

    /// A send is over: its buffer is the caller's again.
    fn sent(&mut self, index: u32, result: OpResult<usize>) -> Completion {
        let Sending { conn, buf, .. } = self.sends[index as usize].take().expect("a send completes once");
        self.sends_free.push(index);
        Completion::Sent { conn, result, buf }
    }

    /// Puts the connected socket of a dial into the descriptor table. Returns the dial's end if that cannot be.
    fn install(&mut self, index: u32) -> Option<Completion> {
        let dial = self.dials[index as usize].as_mut().expect("a dial ends with its last step");
        // It was for the dial. From here on it would also break a connection whose peer lives and does not read for
        // that long.
        if let Err(error) = dial.socket.set_tcp_user_timeout(None) {
            return Some(self.dial_failed(index, error.raw_os_error().unwrap_or(libc::EIO)));
        }
        let entry = opcode::FilesUpdate::new(&raw mut dial.place, 1)
            .offset(ANY_SLOT)
            .build()
            .user_data(Tag::Install.with(index.into()));
        // SAFETY: the kernel reads and writes `place` of a boxed dial that `dials` owns, unmoved and untouched until
        // the completion of this very operation takes it out in `decode`. A ring that is dropped first (field order)
        // has no operation left.
        unsafe { self.push(&entry) };
        None
    }

    fn dial_failed(&mut self, index: u32, errno: i32) -> Completion {
        Completion::Dialed { token: self.end_dial(index).token, result: Err(errno) }
    }

    fn end_dial(&mut self, index: u32) -> Box<Dialing> {
        self.dials[index as usize].take().expect("a dial ends once")
    }
}

impl Accepting {
    /// Who connected. To be called when the kernel has written that.
    fn peer(self) -> Peer {
        // SAFETY: the kernel has written a socket's address of `len` bytes, or left the zeroes it found; both are valid
        // for the storage.
        let address = unsafe { SockAddr::new(self.address, self.len) };
        address.as_socket().map_or(Peer::Unix, Peer::Address)
    }
}

impl Io for Uring {
    fn enter(&mut self, wait_micros: u32) -> usize {
        self.queue_sends();
        self.ring.publish();
        self.enter_once(if self.sends_withdrawn.is_empty() { wait_micros } else { 0 });
        for _ in 0..MORE_ENTERS_MAX {
            if !self.ring.submission().taskrun() {
                break;
            }
            self.enter_once(0);
        }
        self.batch.len() + self.sends_withdrawn.len()
    }

    fn next(&mut self) -> Option<Completion> {
        if let Some(index) = self.sends_withdrawn.pop_front() {
            return Some(self.sent(index, Err(libc::ECANCELED)));
        }
        while let Some(entry) = self.batch.pop_front() {
            if let Some(completion) = self.decode(&entry) {
                return Some(completion);
            }
        }
        None
    }

    fn now(&self) -> Now {
        let mono_us = crate::clock::now_us();
        Now { mono_ms: mono_us / 1_000, mono_us, wall_ms: crate::clock::wall_ms() }
    }

    fn accept(&mut self, listener: u16, multishot: bool) {
        let fd = Fd(self.listeners[usize::from(listener)]
            .as_ref()
            .expect("nobody accepts from a closed listener")
            .as_raw_fd());
        let entry = if multishot {
            opcode::AcceptMulti::new(fd).allocate_file_index(true).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .file_index(Some(DestinationSlot::auto_target()))
                .build()
        };
        self.push_plain(&entry.user_data(Tag::Accept.with(listener.into())));
    }

    fn accept_with_peer(&mut self, listener: u16) {
        let fd = Fd(self.listeners[usize::from(listener)]
            .as_ref()
            .expect("nobody accepts from a closed listener")
            .as_raw_fd());
        let index = self.accepts.iter().position(Option::is_none).unwrap_or_else(|| {
            self.accepts.push(None);
            self.accepts.len() - 1
        });
        let address = SockAddrStorage::zeroed();
        let len = address.size_of();
        let accept = self.accepts[index].insert(Box::new(Accepting { listener, address, len }));
        let entry = opcode::Accept::new(fd, (&raw mut accept.address).cast(), &raw mut accept.len)
            .file_index(Some(DestinationSlot::auto_target()))
            .build()
            .user_data(Tag::AcceptWithPeer.with(index as u64));
        // SAFETY: the kernel writes address and length of a boxed accept that `accepts` owns, unmoved and untouched
        // until the completion of this very operation takes it out in `decode`. A ring that is dropped first (field
        // order) has no operation left.
        unsafe { self.push(&entry) };
    }

    fn accept_cancel(&mut self, listener: u16) {
        let all = CancelBuilder::user_data(Tag::Accept.with(listener.into())).all();
        self.push_plain(&opcode::AsyncCancel2::new(all).build().user_data(Tag::Ignore.with(0)));
        for index in 0..self.accepts.len() {
            if self.accepts[index].as_ref().is_some_and(|accept| accept.listener == listener) {
                let target = Tag::AcceptWithPeer.with(index as u64);
                self.push_plain(&opcode::AsyncCancel::new(target).build().user_data(Tag::Ignore.with(0)));
            }
        }
    }

    fn stop_listening(&mut self, listener: u16) {
        self.listeners[usize::from(listener)] = None;
    }

    fn dial(&mut self, token: u32, address: SocketAddr) {
        let socket = match dialing_socket(address) {
            Ok(socket) => socket,
            Err(error) => {
                // Reported like any other end, so that no caller meets a completion inside its own call.
                let errno = error.raw_os_error().unwrap_or(libc::EIO) as u64;
                let tag = Tag::DialFailed.with(errno << 32 | u64::from(token));
                return self.push_plain(&opcode::Nop::new().build().user_data(tag));
            }
        };
        let place = socket.as_raw_fd();
        let dial = Box::new(Dialing { token, socket, address: address.into(), place });
        let index = self.dials.iter().position(Option::is_none).unwrap_or_else(|| {
            self.dials.push(None);
            self.dials.len() - 1
        });
        let dial = self.dials[index].insert(dial);
        let entry = opcode::Connect::new(Fd(place), dial.address.as_ptr().cast(), dial.address.len())
            .build()
            .user_data(Tag::Connect.with(index as u64));
        // SAFETY: the kernel reads the address of a boxed dial that `dials` owns, unmoved until the completion of the
        // dial's last step takes it out in `decode`, which is not before that of this one. A ring that is dropped first
        // (field order) has no operation left.
        unsafe { self.push(&entry) };
    }

    fn poll(&mut self, conn: ConnId) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        self.push_plain(&opcode::PollAdd::new(Fixed(conn.slot), events).build().user_data(Tag::Poll.of(conn)));
    }

    fn recv(&mut self, conn: ConnId) {
        // A null pointer and length 0: the kernel picks a buffer of the group and uses its whole length.
        let entry = opcode::Recv::new(Fixed(conn.slot), std::ptr::null_mut(), 0).buf_group(BUFFER_GROUP).build();
        self.push_plain(&entry.flags(squeue::Flags::BUFFER_SELECT).user_data(Tag::Recv.of(conn)));
    }

    fn recv_multishot(&mut self, conn: ConnId) {
        let entry = opcode::RecvMulti::new(Fixed(conn.slot), BUFFER_GROUP).build();
        self.push_plain(&entry.user_data(Tag::Multishot.of(conn)));
    }

    fn recv_bulk(&mut self, conn: ConnId) {
        let group = self.ring.bulk_group().unwrap_or(BUFFER_GROUP);
        let entry = opcode::RecvMulti::new(Fixed(conn.slot), group).build();
        self.push_plain(&entry.user_data(Tag::Bulk.of(conn)));
    }

    fn read_cancel(&mut self, conn: ConnId, read: ReadOp) {
        // By user data, which the kernel finds by hash; by descriptor it would walk every armed operation of the ring.
        let target = match read {
            ReadOp::None => return,
            ReadOp::Poll => Tag::Poll,
            ReadOp::Recv => Tag::Recv,
            ReadOp::Multishot => Tag::Multishot,
            ReadOp::Bulk => Tag::Bulk,
        };
        self.push_plain(&opcode::AsyncCancel::new(target.of(conn)).build().user_data(Tag::Ignore.with(0)));
    }

    fn send(&mut self, conn: ConnId, buf: Vec<u8>, offset: usize) -> SendId {
        let index = self.sends_free.pop().unwrap_or_else(|| {
            self.sends.push(None);
            self.sends.len() as u32 - 1
        });
        self.sends[index as usize] = Some(Sending { conn, buf, offset });
        self.sends_next.push(index);
        SendId(index)
    }

    fn withdraw_sends(&mut self) {
        self.sends_withdrawn.extend(self.sends_next.drain(..));
    }

    fn send_cancel(&mut self, send: SendId) {
        // A cancel finds only what the kernel has before it.
        self.queue_sends();
        self.push_plain(
            &opcode::AsyncCancel::new(Tag::Send.with(send.0.into())).build().user_data(Tag::Ignore.with(0)),
        );
    }

    fn shutdown(&mut self, conn: ConnId) {
        let entry = opcode::Shutdown::new(Fixed(conn.slot), libc::SHUT_WR).build();
        self.push_plain(&entry.user_data(Tag::Shutdown.of(conn)));
    }

    fn close(&mut self, slot: u32, reset: bool) {
        if reset {
            let linger = (&raw const RESET_ON_CLOSE).cast();
            let len = size_of::<libc::linger>() as u32;
            let level = (libc::SOL_SOCKET as u32, libc::SO_LINGER as u32);
            let entry = opcode::SetSockOpt::new(Fixed(slot), level.0, level.1, linger, len).build();
            // Linked so that the close comes after it, and hard, so that the close comes too where the kernel does not
            // know this operation (before 6.7): that closes without a reset.
            let entry = entry.flags(squeue::Flags::IO_HARDLINK).user_data(Tag::Ignore.with(0));
            // Both in one submission: a link ends where a submission does.
            while self.submissions_free() < 2 {
                self.sq_full += 1;
                self.submit();
            }
            // SAFETY: the option's value is a static.
            unsafe { self.push(&entry) };
        }
        self.push_plain(&opcode::Close::new(Fixed(slot)).build().user_data(Tag::Close.with(slot.into())));
    }

    fn hand_over(&mut self, conn: ConnId, shard: u16, token: HandoverToken) {
        let fd = *self.ring_fds[usize::from(shard)].get().expect("all rings exist before the first turn");
        let entry = opcode::MsgRingSendFd::new(
            Fd(fd),
            Fixed(conn.slot),
            DestinationSlot::auto_target(),
            Tag::Adopted.with(token.0),
        )
        .build();
        self.push_plain(&entry.user_data(Tag::HandOver.of(conn)));
    }

    fn wake(&mut self, shard: u16) {
        let fd = *self.ring_fds[usize::from(shard)].get().expect("all rings exist before the first turn");
        let entry = opcode::MsgRingData::new(Fd(fd), 0, Tag::Wake.with(0), None).build();
        self.push_plain(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Tag::Ignore.with(0)));
    }

    fn tick_after(&mut self, ms: u32) {
        self.complete_after(ms, Tag::Tick);
    }

    fn pause(&mut self, ms: u32) {
        self.complete_after(ms, Tag::Pause);
    }

    fn buffer(&self, buf: BufId, len: usize) -> &[u8] {
        self.ring.bytes(buf.0, len)
    }

    fn buffer_mut(&mut self, buf: BufId, len: usize) -> &mut [u8] {
        self.ring.bytes_mut(buf.0, len)
    }

    fn release(&mut self, buf: BufId) {
        self.ring.release(buf.0);
    }

    fn random(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("getrandom failed, and without it nothing here is secret: {error}"),
            }
        }
        bytes
    }

    fn stats(&self) -> IoStats {
        IoStats { cq_overflow: self.cq_overflow, sq_full: self.sq_full, submit_retries: self.submit_retries }
    }
}

/// A socket that gives up connecting by itself. Blocking: on another one the connect would end at once.
fn dialing_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(DIAL_TIMEOUT))?;
    Ok(socket)
}

/// Lets the executor's task sleep until the ring or another thread signals the eventfd.
pub struct Parking {
    eventfd: glommio::io::BufferedFile,
}

impl Parking {
    /// Call it on the executor's thread.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(waker: &Waker) -> io::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(waker.as_fd(), 0)?;
        // SAFETY: the duplicate was just made, and the BufferedFile becomes its only owner.
        let eventfd = unsafe { glommio::io::BufferedFile::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) };
        Ok(Parking { eventfd })
    }

    /// Sleeps until the eventfd has been signalled since the last call.
    ///
    /// # Errors
    /// Those of reading an eventfd, which only a broken process sees.
    pub async fn sleep(&self) -> io::Result<()> {
        self.eventfd.read_at(0, 8).await.map(drop).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Closes the duplicate.
    pub async fn close(self) -> io::Result<()> {
        self.eventfd.close().await.map_err(|error| io::Error::other(error.to_string()))
    }
}
