//! The receive buffers the kernel picks from: io_uring's provided-buffer ring.
//!
//! All memory is one page-aligned allocation, the ring's entries first, the buffers behind them. It is touched once at
//! start, so that its size is known from the beginning and no page fault falls on the data path.

#![allow(unsafe_code)]

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

const PAGE_BYTES: usize = 4_096;
/// The buffer group of a ring that every receive may pick from, and the one of large buffers.
pub const BUFFER_GROUP: u16 = 0;
pub(crate) const BULK_GROUP: u16 = 1;

/// Buffers that belong to the kernel until a completion names one, and again from its release on.
#[derive(Debug)]
pub(crate) struct BufferRing {
    memory: NonNull<u8>,
    layout: Layout,
    /// Of the ring: a power of two, and no fewer than there are buffers.
    entries: u16,
    buffers: u16,
    buffer_bytes: u32,
    /// Entries published so far, modulo 2^16; the kernel sees it at the next [`BufferRing::publish`].
    tail: u16,
}

impl BufferRing {
    /// Allocates so many buffers, 32,768 at most, and registers them with the ring as that group.
    ///
    /// # Errors
    /// Those of `IORING_REGISTER_PBUF_RING`: `EINVAL` on a kernel before 5.19, `ENOMEM`.
    pub(crate) fn register(ring: &IoUring, group: u16, buffers: u16, buffer_bytes: u32) -> io::Result<Self> {
        assert!((1..=1 << 15).contains(&buffers), "no ring has more entries");
        assert!(buffer_bytes > 0, "a buffer holds something");
        // The kernel indexes the ring with a mask.
        let entries = buffers.next_power_of_two();
        let ring_bytes = usize::from(entries) * size_of::<BufRingEntry>();
        let bytes = ring_bytes.next_multiple_of(PAGE_BYTES) + usize::from(buffers) * buffer_bytes as usize;
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).map_err(io::Error::other)?;
        // SAFETY: the layout has a size other than zero.
        let Some(memory) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        for page in (0..bytes).step_by(PAGE_BYTES) {
            // SAFETY: `page` lies within the allocation, which nobody else has seen yet.
            unsafe { memory.as_ptr().add(page).write_volatile(0) };
        }
        let mut ready = BufferRing { memory, layout, entries, buffers, buffer_bytes, tail: 0 };
        // SAFETY: the entries lie at the page-aligned start of `memory`, which this BufferRing owns. Its owner drops
        // the ring, and with it the registration, before the BufferRing (field order in `Ring`), so the kernel never
        // sees freed memory.
        unsafe { ring.submitter().register_buf_ring_with_flags(memory.as_ptr() as u64, entries, group, 0)? };
        for id in 0..buffers {
            ready.release(id);
        }
        ready.publish();
        Ok(ready)
    }

    /// The first `len` bytes of a buffer that a completion has named and that has not been released since.
    pub(crate) fn bytes(&self, buf: u16, len: usize) -> &[u8] {
        assert!(buf < self.buffers && len <= self.buffer_bytes as usize);
        // SAFETY: in range by the assert, initialised at allocation. The kernel does not write to it: it gave the
        // buffer away with the completion and gets it back with `release`, which needs `&mut self` and so cannot happen
        // while the slice lives. Nor could it for a buffer of its own: it writes inside an enter of this thread only
        // (`DEFER_TASKRUN`), and that needs `&mut Ring`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(self.offset(buf)), len) }
    }

    /// The same bytes, to be changed where they lie.
    pub(crate) fn bytes_mut(&mut self, buf: u16, len: usize) -> &mut [u8] {
        assert!(buf < self.buffers && len <= self.buffer_bytes as usize);
        // SAFETY: in range by the assert, initialised at allocation. The kernel neither writes to it nor reads it: it
        // gave the buffer away with the completion and gets it back with `release`. No other slice lives, since this
        // borrows the whole BufferRing.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(self.offset(buf)), len) }
    }

    /// Gives a buffer back; the kernel sees it at the next `publish`.
    pub(crate) fn release(&mut self, buf: u16) {
        assert!(buf < self.buffers);
        let index = usize::from(self.tail & (self.entries - 1));
        // SAFETY: the index is below `entries`, so the entry lies within the allocation. The kernel reads entries below
        // the published tail only, and this one is above it. The entry is written field by field because its last field
        // in entry 0 is the shared tail.
        unsafe {
            let entry = &mut *self.memory.as_ptr().cast::<BufRingEntry>().add(index);
            entry.set_addr(self.memory.as_ptr().add(self.offset(buf)) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(buf);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was released since the last call.
    pub(crate) fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, at the page-aligned start of the allocation, and is two-byte
        // aligned; the kernel only reads it. Release order makes the entries visible before the tail.
        unsafe {
            let tail = BufRingEntry::tail(self.memory.as_ptr().cast::<BufRingEntry>()) as *mut u16;
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn offset(&self, buf: u16) -> usize {
        let ring_bytes = usize::from(self.entries) * size_of::<BufRingEntry>();
        ring_bytes.next_multiple_of(PAGE_BYTES) + usize::from(buf) * self.buffer_bytes as usize
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `register`; the ring that knew the memory is gone by now (field order
        // in `Ring`).
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}
