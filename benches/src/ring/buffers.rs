//! Provided buffers: memory the kernel picks from when bytes arrive.

use std::{
    alloc::{self, Layout},
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::types::BufRingEntry;

/// The kernel wants the ring of entries on a page boundary.
const PAGE_BYTES: usize = 4_096;

/// A buffer with received bytes, taken out of the kernel's reach until it is recycled.
#[derive(Debug)]
#[must_use = "a buffer that is not recycled is lost to the pool"]
pub(crate) struct Buffer {
    id: u16,
    len: u32,
}

/// A ring of buffer entries shared with the kernel, and the buffers themselves.
///
/// Invariant: a buffer is either in the kernel's hand (its entry is published) or in exactly one [`Buffer`].
pub(super) struct BufferPool {
    entries: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    count: u16,
    buffer_bytes: u32,
    /// Entries written so far, published or not.
    tail: u16,
}

impl BufferPool {
    /// `count` is a power of two. All buffers start in the kernel's hand.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> BufferPool {
        assert!(count.is_power_of_two() && count <= 1 << 15, "a buffer ring has a power of two of entries");
        assert!(buffer_bytes > 0, "a buffer holds something");
        let mut pool = BufferPool {
            entries: allocate(Self::entries_layout(count)).cast(),
            bytes: allocate(Self::bytes_layout(count, buffer_bytes)),
            count,
            buffer_bytes,
            tail: 0,
        };
        for id in 0..count {
            pool.write_entry(id);
        }
        pool.publish();
        pool
    }

    fn entries_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), PAGE_BYTES)
            .expect("at most 32,768 entries of 16 bytes")
    }

    fn bytes_layout(count: u16, buffer_bytes: u32) -> Layout {
        Layout::from_size_align(usize::from(count) * buffer_bytes as usize, PAGE_BYTES)
            .expect("a pool is far smaller than the address space")
    }

    pub(super) fn entries_address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// The kernel has filled `len` bytes of buffer `id` and let go of it.
    pub(super) fn taken(&self, id: u16, len: u32) -> Buffer {
        assert!(id < self.count && len <= self.buffer_bytes, "the kernel reports a buffer it was given");
        Buffer { id, len }
    }

    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        // SAFETY: the pool owns the memory until it is dropped; the kernel gave this buffer up when it reported it and
        // gets it back only through `recycle`, which consumes the `Buffer` borrowed here. `taken` checked id and
        // length.
        unsafe { slice::from_raw_parts(self.start(buffer.id).as_ptr(), buffer.len as usize) }
    }

    fn start(&self, id: u16) -> NonNull<u8> {
        // SAFETY: `id < count`, so the offset lies inside the allocation the pool owns until it is dropped.
        unsafe { self.bytes.add(usize::from(id) * self.buffer_bytes as usize) }
    }

    /// Writes the entry of a buffer that goes back; the kernel sees it after [`BufferPool::publish`].
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        self.write_entry(buffer.id);
    }

    fn write_entry(&mut self, id: u16) {
        let address = self.start(id).as_ptr() as u64;
        let index = self.tail & (self.count - 1);
        // SAFETY: the masked index lies inside the entries the pool owns until it is dropped. The kernel reads only
        // entries before the published tail, and this one is not: at most `count` buffers exist.
        let entry = unsafe { self.entries.add(usize::from(index)).as_mut() };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel every entry written so far.
    pub(super) fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, inside the memory the pool owns until it is dropped; both sides
        // access it atomically (entry fields written above never cover it).
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `new` with these layouts; the ring that knew them is closed before (field
        // order of its owner), and no `Buffer` can be read without the pool.
        unsafe {
            alloc::dealloc(self.entries.as_ptr().cast(), Self::entries_layout(self.count));
            alloc::dealloc(self.bytes.as_ptr(), Self::bytes_layout(self.count, self.buffer_bytes));
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout of a pool has size zero, `new` asserts it.
    let memory = unsafe { alloc::alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| alloc::handle_alloc_error(layout))
}
