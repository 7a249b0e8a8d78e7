//! The write-ahead log: what the answers of a batch wait for.
//!
//! The log is a series of segments. A segment is a header and batches, each of which begins at a multiple of
//! [`PAGE_BYTES`] and is made durable by one sync before the next is written. So a page that holds a durable batch is
//! never written again, and a write that fails can't hurt what was answered.
//!
//! After a write or sync that failed nothing more is written to that segment: the kernel may have dropped the pages and
//! call the next sync a success, as PostgreSQL found in 2018 ("fsyncgate"). The next segment says from which batch on
//! it holds the log, and with that takes back whatever the failed one left on disk. Batches are numbered, so that a
//! missing one is noticed.
//!
//! A batch that is followed by another one in its segment was made durable, for its writer went on. So what is read
//! back after a start is known to be on disk, except for the last batch: its sync may have failed, and the page cache
//! may show what the disk does not have. It is written again as the first batch of the next segment, whose header says
//! that it was not sure (`sure`), before anybody is told of it. Taking it twice does no harm.

mod replay;

pub(crate) use replay::{Take, replay, segments, store_epoch};

use crate::codec::{Put, Reader, Totals};
use crate::disk::{Disk, File};
use crate::state::State;
use crate::{Payload, Record};
use std::io;
use std::sync::Arc;

/// Where batches begin: at a multiple of the largest unit in which disks write and the page cache keeps count of what
/// is written.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Headers of segments. The last character is the version of the format.
const SEGMENT_MAGIC: &[u8; 8] = b"tlstlog1";
const BATCH_MAGIC: u32 = 0x3142_4C54;
/// Magic, length, batch, segment, highest stamp before, checksum of the body, checksum of the header.
const BATCH_HEADER_BYTES: usize = 4 + 4 + 8 + 8 + 8 + 4 + 4;
/// A buffer that has grown beyond this for one batch is given back. It is more than the largest usual batch, or under
/// load a buffer would grow from nothing for each.
const BUFFER_BYTES_MAX: usize = 32 << 20;

const PUT: u8 = 1;
const STATE: u8 = 2;
const GAP: u8 = 3;

/// The name of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("log-{number:016x}")
}

/// The number of the segment of that name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("log-")?, 16).ok().filter(|number| segment_name(*number) == name)
}

/// One change, as the log has it.
#[derive(Debug)]
pub(crate) enum Change {
    /// A message was added.
    Put { user: u64, record: Record },
    /// What is known of a user, in place of what was known before. Messages up to its floor are gone.
    State { user: u64, totals: Totals, state: State },
    /// Messages of any user up to this stamp may be lost.
    Gap { stamp: u64 },
}

impl Change {
    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(match reader.u8()? {
            PUT => {
                let user = reader.u64()?;
                let (stamp, from, id, flags) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u8()?);
                let len = reader.u32()? as usize;
                let payload = Payload::from(reader.bytes(len)?);
                Change::Put { user, record: Record { stamp, from, id, flags, payload } }
            }
            STATE => {
                let user = reader.u64()?;
                Change::State { user, totals: Totals::decode(reader)?, state: State::decode(reader)? }
            }
            GAP => Change::Gap { stamp: reader.u64()? },
            _ => return None,
        })
    }
}

/// The end of the log, to which batches are written.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    store_epoch: u64,
    /// None after a failure, until there is a new segment.
    segment: Option<Segment>,
    /// The number of the next segment.
    next_segment: u64,
    /// The number of the next batch.
    next_batch: u64,
    /// Header and changes of the batch that is gathered.
    batch: Vec<u8>,
    /// Sizes of the segments on disk, oldest first.
    sizes: Vec<(u64, u64)>,
    /// The last batch that was read back, if it may be in the page cache alone.
    unsure: Option<Unsure>,
}

/// A batch of which it is not known whether it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsure {
    number: u64,
    body: Vec<u8>,
}

struct Segment {
    number: u64,
    file: Arc<dyn File>,
    end: u64,
}

impl Log {
    /// A log that goes on after others: it has no segment yet. `sizes` are those of the segments on disk.
    pub(crate) fn new(disk: Arc<dyn Disk>, store_epoch: u64, sizes: Vec<(u64, u64)>, next_segment: u64) -> Self {
        let (batch, unsure) = (Vec::new(), None);
        let mut log = Log { disk, store_epoch, segment: None, next_segment, next_batch: 1, batch, sizes, unsure };
        log.clear();
        log
    }

    /// Lets it go on with this batch, since that is what was found on disk.
    pub(crate) fn go_on_with(&mut self, next_batch: u64, unsure: Option<Unsure>) {
        self.next_batch = next_batch;
        self.unsure = unsure;
    }

    /// Whether what was read back may be in the page cache alone: nobody may be told yet that it is stored.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure.is_some()
    }

    /// What batches before this one say is on disk elsewhere.
    pub(crate) fn sure_before(&mut self, batch: u64) {
        self.unsure.take_if(|unsure| unsure.number < batch);
    }

    /// Whether a batch can be written.
    pub(crate) fn is_up(&self) -> bool {
        self.segment.is_some()
    }

    /// The number of the next batch.
    pub(crate) fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.sizes.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Begins the next segment. `high` is the highest stamp so far. Returns its number. After a failure there may be no
    /// segment.
    pub(crate) fn begin_segment(&mut self, high: u64) -> io::Result<u64> {
        let number = self.next_segment;
        let file = self.disk.create(&segment_name(number))?;
        // Never that name again: what a failed attempt left behind is not trusted either. And from here on nothing may
        // be written to the segment before: the header of this one, once on disk, takes back what comes there.
        self.next_segment += 1;
        self.segment = None;
        let result = self.write_header(&*file, number, high);
        if result.is_ok() || self.disk.remove(&segment_name(number)).is_err() {
            self.sizes.push((number, PAGE_BYTES as u64));
        }
        result?;
        self.segment = Some(Segment { number, file, end: PAGE_BYTES as u64 });
        if let Some(unsure) = self.unsure.take() {
            self.clear();
            self.batch.extend_from_slice(&unsure.body);
            if let Err(error) = self.commit(high) {
                self.unsure = Some(unsure);
                return Err(error);
            }
        }
        Ok(number)
    }

    fn write_header(&self, file: &dyn File, number: u64, high: u64) -> io::Result<()> {
        let mut header = Vec::with_capacity(PAGE_BYTES);
        header.extend_from_slice(SEGMENT_MAGIC);
        let sure = self.unsure.as_ref().map_or(self.next_batch, |unsure| unsure.number);
        for value in [self.store_epoch, number, self.next_batch, sure, high] {
            header.put_u64(value);
        }
        header.put_u32(crc32fast::hash(&header));
        header.resize(PAGE_BYTES, 0);
        file.write_at(&header, 0)?;
        file.sync()?;
        self.disk.sync_dir()
    }

    /// Whether a change waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.len() == BATCH_HEADER_BYTES
    }

    /// Adds a message to the batch.
    pub(crate) fn put(&mut self, user: u64, record: &Record) {
        self.batch.put_u8(PUT);
        for value in [user, record.stamp, record.from, record.id] {
            self.batch.put_u64(value);
        }
        self.batch.put_u8(record.flags);
        self.batch.put_u32(record.payload.len() as u32);
        self.batch.extend_from_slice(&record.payload);
    }

    /// Adds what is known of a user to the batch.
    pub(crate) fn state(&mut self, user: u64, totals: Totals, state: &State) {
        self.batch.put_u8(STATE);
        self.batch.put_u64(user);
        totals.encode(&mut self.batch);
        state.encode(&mut self.batch);
    }

    /// Adds to the batch that messages of any user may be lost.
    pub(crate) fn gap(&mut self, stamp: u64) {
        self.batch.put_u8(GAP);
        self.batch.put_u64(stamp);
    }

    /// Drops the batch that is gathered.
    pub(crate) fn clear(&mut self) {
        self.batch.clear();
        self.batch.resize(BATCH_HEADER_BYTES, 0);
    }

    /// Writes the batch and makes it durable. If that fails it is as if it had never been gathered, and there is no
    /// segment.
    pub(crate) fn commit(&mut self, high: u64) -> io::Result<()> {
        let Some(segment) = &mut self.segment else { return Err(io::Error::other("the log has no segment")) };
        let mut header = Vec::with_capacity(BATCH_HEADER_BYTES);
        header.put_u32(BATCH_MAGIC);
        header.put_u32((self.batch.len() - BATCH_HEADER_BYTES) as u32);
        for value in [self.next_batch, segment.number, high] {
            header.put_u64(value);
        }
        header.put_u32(crc32fast::hash(&self.batch[BATCH_HEADER_BYTES..]));
        header.put_u32(crc32fast::hash(&header));
        self.batch[..BATCH_HEADER_BYTES].copy_from_slice(&header);
        self.batch.resize(self.batch.len().next_multiple_of(PAGE_BYTES), 0);
        let result = segment.file.write_at(&self.batch, segment.end).and_then(|()| segment.file.sync());
        segment.end += self.batch.len() as u64;
        if let Some(size) = self.sizes.iter_mut().find(|(number, _)| *number == segment.number) {
            size.1 = segment.end;
        }
        match result {
            Ok(()) => self.next_batch += 1,
            Err(_) => self.segment = None,
        }
        if self.batch.capacity() > BUFFER_BYTES_MAX {
            self.batch = Vec::new();
        }
        self.clear();
        result
    }

    /// Removes the segments before this one. What can't be removed now is when the next are.
    pub(crate) fn remove_before(&mut self, number: u64) {
        let disk = &self.disk;
        self.sizes.retain(|(known, _)| *known >= number || disk.remove(&segment_name(*known)).is_err());
    }
}
