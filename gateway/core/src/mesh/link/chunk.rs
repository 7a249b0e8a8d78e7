//! A chunk: consecutive records in one buffer, which is both what is sent and what is kept to be sent again.

use super::CHUNK_BYTES_MAX;
use crate::mesh::wire::{BATCH_HEADER_BYTES, Entry, Record, len_at, put_batch_header};

/// Records `first..end` of a stream.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Number of the first record that is in the buffer from `start` on.
    pub(super) first: u64,
    /// How many records there are from there.
    records: u32,
    /// Where the frame begins: 0 until records at its front were confirmed.
    start: usize,
    /// Header and records; empty while the ring has it.
    buf: Vec<u8>,
    lent: bool,
    /// It was lent to the ring at least once: no more records come into it, and the peer may have it.
    pub(super) sent: bool,
    /// Bytes of the buffer, known while the ring has it.
    bytes: usize,
    /// In a stream that has ended: records before this were confirmed.
    confirmed: u64,
}

impl Chunk {
    /// What a chunk costs besides its records.
    pub(super) const OVERHEAD_BYTES: usize = size_of::<Chunk>() + BATCH_HEADER_BYTES;

    /// An empty chunk with room for so many bytes of records, in a buffer that was one before or is empty.
    pub(super) fn new(first: u64, mut buf: Vec<u8>, records_bytes: usize) -> Self {
        buf.clear();
        buf.reserve(BATCH_HEADER_BYTES + records_bytes);
        buf.extend_from_slice(&[0; BATCH_HEADER_BYTES]);
        let bytes = buf.len();
        Chunk { first, records: 0, start: 0, buf, lent: false, sent: false, bytes, confirmed: 0 }
    }

    /// Whether a record of that length may be added.
    #[inline]
    pub(super) fn takes(&self, len: usize) -> bool {
        !self.sent && self.bytes - BATCH_HEADER_BYTES + len <= CHUNK_BYTES_MAX
    }

    #[inline]
    pub(super) fn push(&mut self, record: &impl Entry) {
        record.encode(&mut self.buf);
        self.records += 1;
        self.bytes = self.buf.len();
    }

    /// Number of the record behind the last.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.records)
    }

    /// Bytes of header and records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the chunk counts for the link's bound.
    pub(super) fn cost(&self) -> usize {
        self.bytes + size_of::<Chunk>()
    }

    pub(super) fn into_buf(self) -> Vec<u8> {
        self.buf
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Lends the buffer to the ring as a batch of the records from `confirmed` on; returns it and where the frame
    /// begins.
    pub(super) fn lend(&mut self, confirmed: u64, ack: u64) -> (Vec<u8>, usize) {
        self.cut(confirmed);
        put_batch_header(&mut self.buf[self.start..], self.first, ack);
        self.lent = true;
        self.sent = true;
        (std::mem::take(&mut self.buf), self.start)
    }

    pub(super) fn put_back(&mut self, buf: Vec<u8>) {
        self.buf = buf;
        self.lent = false;
    }

    /// The chunk of a stream that has ended with the records before `confirmed` confirmed.
    pub(super) fn ended(self, confirmed: u64) -> Self {
        Chunk { confirmed, ..self }
    }

    /// Takes confirmed records off the front. Their bytes stay in the buffer: the header moves over them, which it can
    /// because a record and the former header are longer than it.
    fn cut(&mut self, confirmed: u64) {
        while self.first < confirmed && self.records > 0 {
            self.start += len_at(&self.buf, self.start + BATCH_HEADER_BYTES);
            self.first += 1;
            self.records -= 1;
        }
    }

    /// Hands out the records that were not confirmed when the stream ended, until they have so many bytes, and takes
    /// them off the front. Returns how many they are, and their bytes.
    pub(super) fn take_unconfirmed(&mut self, bytes_max: usize, mut each: impl FnMut(Record<'_>)) -> (u64, usize) {
        let (mut given, mut bytes) = (0, 0);
        while self.records > 0 && bytes < bytes_max {
            let at = self.start + BATCH_HEADER_BYTES;
            let len = len_at(&self.buf, at);
            if self.first >= self.confirmed
                && let Ok(Some(record)) = Record::decode(&self.buf[at..at + len])
            {
                given += 1;
                bytes += len;
                each(record);
            }
            self.start += len;
            self.first += 1;
            self.records -= 1;
        }
        (given, bytes)
    }

    /// Whether no record is left in it.
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }
}
