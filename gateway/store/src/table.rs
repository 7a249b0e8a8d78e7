//! Tables: what left the log, sorted by user.
//!
//! A table is written once and never changed. It has the messages of some users, those of a user together in the order
//! of their stamps, then a block with one entry for each of these users, and so on; then a list of the blocks, and a
//! footer. In memory are the list of blocks, the footer and a filter of the users, so a table costs two bytes of memory
//! for a user.
//!
//! Tables are numbered by the generations of the log that they hold. Stamps of a user rise, so a user's messages in one
//! table all come before those in the next: a user's log is read table by table, and merging tables is putting ranges
//! side by side.

mod filter;
mod write;

pub(crate) use write::TableWriter;

use crate::codec::{Put, Reader, Totals};
use crate::disk::{Disk, File};
use crate::limits::Amount;
use crate::state::State;
use crate::{Payload, Record};
use filter::Filter;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The last character is the version of the format.
const MAGIC: &[u8; 8] = b"tlstabl1";
/// Length, checksum, stamp, sender, id, flags.
const RECORD_HEADER_BYTES: usize = 4 + 4 + 8 + 8 + 8 + 1;
/// A block is closed when it has so many bytes of entries: some tens of users, one read.
const BLOCK_BYTES: usize = 4096;
/// A place within a user's messages is noted every so many bytes, so that reading can begin there.
const MARK_BYTES: u64 = 64 << 10;
/// Messages are read in pieces of this size.
const READ_BYTES: usize = 64 << 10;
/// No block, and no record, is longer. A length beyond it is damage.
const LENGTH_MAX: usize = 64 << 20;
/// Reads of a table that may fail before what can't be read counts as damaged.
const READ_ERRORS_MAX: u32 = 32;
const FOOTER_BYTES: usize = 8 + 13 * 8 + 4 + 4;

const HAS_STATE: u8 = 1;
const HAS_RANGE: u8 = 2;

/// The name of a table of those generations.
pub(crate) fn table_name(first: u64, last: u64) -> String {
    format!("table-{first:016x}-{last:016x}")
}

/// The generations of the table of that name.
pub(crate) fn table_generations(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_prefix("table-")?.split_once('-')?;
    let (first, last) = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    (table_name(first, last) == name && first <= last).then_some((first, last))
}

/// What a table says about itself and the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) first_generation: u64,
    pub(crate) last_generation: u64,
    pub(crate) store_epoch: u64,
    /// Segments of the log before this one are in this table or earlier ones.
    pub(crate) log_from: u64,
    /// So are batches before this one.
    pub(crate) batch_from: u64,
    /// The highest stamp of any user when the table's last generation ended.
    pub(crate) high: u64,
    /// Messages of any user up to this stamp may be lost.
    pub(crate) gap: u64,
    /// Tables up to this generation that are missing are known to be, and `gap` says so.
    pub(crate) missed: u64,
    /// Users of whom no table knows anything had no message after this stamp.
    pub(crate) dropped_high: u64,
    /// The lowest stamp in the table.
    pub(crate) oldest: u64,
    /// Users in the table.
    pub(crate) users: u64,
    /// Where the list of blocks is, and how many there are; set by the writer.
    pub(crate) blocks_at: u64,
    pub(crate) blocks: u64,
}

impl Footer {
    fn encode(&self, blocks_crc: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(MAGIC);
        for value in [
            self.first_generation,
            self.last_generation,
            self.store_epoch,
            self.log_from,
            self.batch_from,
            self.high,
            self.gap,
            self.missed,
            self.dropped_high,
            self.oldest,
            self.users,
            self.blocks_at,
            self.blocks,
        ] {
            out.put_u64(value);
        }
        out.put_u32(blocks_crc);
        out.put_u32(crc32fast::hash(&out));
        out
    }

    fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let (head, crc) = bytes.split_at_checked(FOOTER_BYTES - 4)?;
        if crc32fast::hash(head).to_le_bytes() != crc {
            return None;
        }
        let mut reader = Reader(head);
        reader.bytes(MAGIC.len())?;
        let footer = Footer {
            first_generation: reader.u64()?,
            last_generation: reader.u64()?,
            store_epoch: reader.u64()?,
            log_from: reader.u64()?,
            batch_from: reader.u64()?,
            high: reader.u64()?,
            gap: reader.u64()?,
            missed: reader.u64()?,
            dropped_high: reader.u64()?,
            oldest: reader.u64()?,
            users: reader.u64()?,
            blocks_at: reader.u64()?,
            blocks: reader.u64()?,
        };
        Some((footer, reader.u32()?))
    }
}

/// What a table has about a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) user: u64,
    pub(crate) totals: Totals,
    /// None if nothing about floor and devices was known to change since an earlier table.
    pub(crate) state: Option<State>,
    /// None if the table has no message of the user.
    pub(crate) range: Option<Range>,
}

/// Where a user's messages are in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) messages: u32,
    /// The first and the last stamp.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Places within the range, in order.
    pub(crate) marks: Vec<Mark>,
}

/// A place within a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The stamp of the message that begins there.
    pub(crate) stamp: u64,
    /// From the beginning of the range.
    pub(crate) offset: u64,
    /// Messages before it in the range.
    pub(crate) before: u32,
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        // The length, so that whoever looks for another user passes over it.
        out.put_u32(0);
        out.put_u64(self.user);
        let state = if self.state.is_some() { HAS_STATE } else { 0 };
        let range = if self.range.is_some() { HAS_RANGE } else { 0 };
        out.put_u8(state | range);
        self.totals.encode(out);
        if let Some(state) = &self.state {
            state.encode(out);
        }
        if let Some(range) = &self.range {
            out.put_u64(range.offset);
            out.put_u64(range.bytes);
            out.put_u32(range.messages);
            out.put_u64(range.first);
            out.put_u64(range.last);
            out.put_u32(range.marks.len() as u32);
            for mark in &range.marks {
                out.put_u64(mark.stamp);
                out.put_u64(mark.offset);
                out.put_u32(mark.before);
            }
        }
        let len = (out.len() - begin - 4) as u32;
        out[begin..begin + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// The bytes of the next entry, which begin with its user.
    fn next_bytes<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
        let len = reader.u32()? as usize;
        reader.bytes(len)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let reader = &mut Reader(bytes);
        let (user, has) = (reader.u64()?, reader.u8()?);
        let totals = Totals::decode(reader)?;
        let state = if has & HAS_STATE != 0 { Some(State::decode(reader)?) } else { None };
        let range = if has & HAS_RANGE != 0 { Some(Range::decode(reader)?) } else { None };
        Some(Entry { user, totals, state, range })
    }
}

impl Range {
    /// How much it is.
    pub(crate) fn amount(&self) -> Amount {
        limit_amount(self.messages, self.bytes)
    }

    /// The last mark at or before the first message after a stamp; the range begins with one that is not written down.
    fn mark_before(&self, after: u64) -> Mark {
        let at = self.marks.partition_point(|mark| mark.stamp <= after.saturating_add(1)).checked_sub(1);
        at.map_or(Mark { stamp: self.first, offset: 0, before: 0 }, |at| self.marks[at])
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let (offset, bytes, messages) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let (first, last, count) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let mut marks = Vec::with_capacity((count as usize).min(1024));
        for _ in 0..count {
            marks.push(Mark { stamp: reader.u64()?, offset: reader.u64()?, before: reader.u32()? });
        }
        Some(Range { offset, bytes, messages, first, last, marks })
    }
}

/// What messages count for in the limits, by their number and their bytes in a table.
fn limit_amount(messages: u32, bytes: u64) -> Amount {
    const MORE: u64 = (Record::OVERHEAD_BYTES - RECORD_HEADER_BYTES) as u64;
    Amount { messages: u64::from(messages), bytes: bytes + MORE * u64::from(messages) }
}

/// A message as it is read, before anybody has decided to keep it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) stamp: u64,
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
    /// The payload, if it is in memory.
    pub(crate) shared: Option<&'a Payload>,
}

impl<'a> Seen<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let Record { stamp, from, id, flags, ref payload } = *record;
        Seen { stamp, from, id, flags, payload, shared: Some(payload) }
    }

    pub(crate) fn to_record(self) -> Record {
        let payload = self.shared.cloned().unwrap_or_else(|| Payload::from(self.payload));
        Record { stamp: self.stamp, from: self.from, id: self.id, flags: self.flags, payload }
    }

    pub(crate) fn bytes(&self) -> usize {
        Record::OVERHEAD_BYTES + self.payload.len()
    }
}

/// What `scan` found besides messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Messages up to this stamp could not be read, because they are damaged; 0 if all could.
    pub(crate) damaged: u64,
    /// Whoever looked had enough.
    pub(crate) stopped: bool,
}

/// A table that can be read.
pub(crate) struct Table {
    pub(crate) footer: Footer,
    pub(crate) bytes: u64,
    file: Arc<dyn File>,
    blocks: Vec<Block>,
    filter: Filter,
    /// Reads that failed.
    errors: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    first_user: u64,
    offset: u64,
    len: u32,
}

/// Bytes in which a block is listed.
const BLOCK_LISTED_BYTES: usize = 8 + 8 + 4;

impl Table {
    /// Memory that it takes while it is open, bytes.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Table>() + self.blocks.capacity() * size_of::<Block>() + self.filter.memory()
    }

    /// Opens a table. None if it is not whole.
    pub(crate) fn open(disk: &dyn Disk, name: &str) -> io::Result<Option<Self>> {
        let file = disk.open(name)?;
        let bytes = file.size()?;
        let Some(footer_at) = bytes.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
        let mut footer = vec![0; FOOTER_BYTES];
        file.read_at(&mut footer, footer_at)?;
        let Some((footer, blocks_crc)) = Footer::decode(&footer) else { return Ok(None) };
        let mut magic = [0; MAGIC.len()];
        file.read_at(&mut magic, footer_at)?;
        if magic != *MAGIC {
            let text = format!("{name} has a format that this version does not know");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let listed_bytes = footer.blocks.saturating_mul(BLOCK_LISTED_BYTES as u64);
        if footer.blocks_at.checked_add(listed_bytes) != Some(footer_at) {
            return Ok(None);
        }
        let mut listed = vec![0; listed_bytes as usize];
        file.read_at(&mut listed, footer.blocks_at)?;
        if crc32fast::hash(&listed) != blocks_crc {
            return Ok(None);
        }
        let mut reader = Reader(&listed);
        let block = |_| Some(Block { first_user: reader.u64()?, offset: reader.u64()?, len: reader.u32()? });
        let blocks = (0..footer.blocks).map_while(block).collect();
        let mut filter = Filter::new(0);
        filter.add_anybody();
        Ok(Some(Table { footer, bytes, file, blocks, filter, errors: AtomicU32::new(0) }))
    }

    /// Shows all entries of a table that was opened, and from then on passes over users that are not among them.
    /// `unreadable` is told of blocks that can't be read.
    pub(crate) fn read_entries(&mut self, mut look: impl FnMut(Entry), mut unreadable: impl FnMut(usize, io::Error)) {
        // No entry is that short, whatever a footer says.
        let mut filter = Filter::new(self.footer.users.min(self.bytes / 16));
        for at in 0..self.blocks() {
            match self.block(at) {
                Ok(entries) => entries.into_iter().for_each(|entry| {
                    filter.add(entry.user);
                    look(entry);
                }),
                Err(error) => {
                    filter.add_anybody();
                    unreadable(at, error);
                }
            }
        }
        self.filter = filter;
    }

    /// The name of its file.
    pub(crate) fn name(&self) -> String {
        table_name(self.footer.first_generation, self.footer.last_generation)
    }

    /// How many blocks of entries it has.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Where a block is in the file.
    pub(crate) fn block_place(&self, at: usize) -> std::ops::Range<u64> {
        let block = self.blocks[at];
        block.offset..block.offset.saturating_add(u64::from(block.len))
    }

    /// Where a block and the messages of its users, which come before it, are in the file.
    pub(crate) fn group_place(&self, at: usize) -> std::ops::Range<u64> {
        let block = self.block_place(at);
        let begin = at.checked_sub(1).map_or(0, |before| self.block_place(before).end);
        begin.min(block.start)..block.end
    }

    /// The entries of a block.
    ///
    /// # Errors
    /// Of kind `InvalidData` if it is damaged; otherwise those of the file system.
    pub(crate) fn block(&self, at: usize) -> io::Result<Vec<Entry>> {
        entries(&self.block_bytes(at)?)
    }

    /// The bytes of a block, its checksum at the end.
    fn block_bytes(&self, at: usize) -> io::Result<Vec<u8>> {
        let block = self.blocks[at];
        if block.len as usize > LENGTH_MAX {
            return Err(damaged());
        }
        let mut bytes = vec![0; block.len as usize];
        self.read(&mut bytes, block.offset)?;
        Ok(bytes)
    }

    /// Reads from the file, as the first attempt at more than is needed: failures do not count as damage.
    pub(crate) fn read_uncounted(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(bytes, offset)
    }

    /// Reads from the file. A disk that does not give a part of it again and again will not any more: that is damage,
    /// or a few bad sectors would stop the merging of tables for ever.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self.file.read_at(bytes, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged()),
            Err(_) if self.errors.fetch_add(1, Ordering::Relaxed) >= READ_ERRORS_MAX => Err(damaged()),
            Err(error) => Err(error),
        }
    }

    /// What the table has about a user.
    ///
    /// # Errors
    /// Of kind `InvalidData` if it is damaged; otherwise those of the file system.
    pub(crate) fn entry(&self, user: u64) -> io::Result<Option<Entry>> {
        if !self.filter.may_have(user) {
            return Ok(None);
        }
        let Some(at) = self.blocks.partition_point(|block| block.first_user <= user).checked_sub(1) else {
            return Ok(None);
        };
        let bytes = self.block_bytes(at)?;
        let mut reader = Reader(checked(&bytes)?);
        while !reader.0.is_empty() {
            let entry = Entry::next_bytes(&mut reader).ok_or_else(damaged)?;
            let its_user = Reader(entry).u64().ok_or_else(damaged)?;
            if its_user > user {
                break;
            }
            if its_user == user {
                return Entry::decode(entry).map(Some).ok_or_else(damaged);
            }
        }
        Ok(None)
    }

    /// Shows the messages of a user's range after a stamp, in order, until `look` has had enough. Damaged messages are
    /// passed over up to the next mark.
    ///
    /// # Errors
    /// Those of the file system; some messages may have been shown.
    pub(crate) fn scan(
        &self,
        user: u64,
        range: &Range,
        after: u64,
        mut look: impl FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> io::Result<Scanned> {
        if range.last <= after {
            return Ok(Scanned::default());
        }
        let mark = range.mark_before(after);
        self.scan_from(user, range, mark.offset, |seen| {
            if seen.stamp > after { look(seen) } else { ControlFlow::Continue(()) }
        })
    }

    /// How much of a user's range has stamps up to this one, and the last stamp of it. Reads no more than what is
    /// between two marks.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn prefix(&self, user: u64, range: &Range, upto: u64) -> io::Result<(Amount, u64)> {
        if range.last <= upto {
            return Ok((range.amount(), range.last));
        }
        if range.first > upto {
            return Ok((Amount::default(), 0));
        }
        let mark = range.mark_before(upto);
        let mut amount = limit_amount(mark.before, mark.offset);
        let mut last = 0;
        self.scan_from(user, range, mark.offset, |seen| {
            if seen.stamp > upto {
                return ControlFlow::Break(());
            }
            amount.add(seen.bytes());
            last = seen.stamp;
            ControlFlow::Continue(())
        })?;
        Ok((amount, last))
    }

    /// Shows at least the last `count` messages of a user's range, or all there are.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn tail(
        &self,
        user: u64,
        range: &Range,
        count: u32,
        look: impl FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> io::Result<Scanned> {
        let before = range.messages.saturating_sub(count);
        let mark = range.marks.partition_point(|mark| mark.before <= before).checked_sub(1);
        self.scan_from(user, range, mark.map_or(0, |mark| range.marks[mark].offset), look)
    }

    fn scan_from(
        &self,
        user: u64,
        range: &Range,
        mut place: u64,
        mut look: impl FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> io::Result<Scanned> {
        let mut scanned = Scanned::default();
        let mut buffer: Vec<u8> = Vec::new();
        // What of the buffer has been shown.
        let mut shown = 0;
        while place < range.bytes {
            let record = match decode_record(user, &buffer[shown..]) {
                Ok(record) => Some(record),
                Err(Unreadable::Short(wanted)) => {
                    let left = range.bytes - place;
                    let wanted = wanted.max(READ_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX));
                    if wanted > buffer.len() - shown {
                        buffer.resize(wanted, 0);
                        shown = 0;
                        match self.read(&mut buffer, range.offset + place) {
                            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                            result => {
                                result?;
                                continue;
                            }
                        }
                    } else {
                        None
                    }
                }
                Err(Unreadable::Damaged) => None,
            };
            let Some((seen, taken)) = record else {
                let next = range.marks.iter().find(|mark| mark.offset > place);
                scanned.damaged = next.map_or(range.last, |mark| mark.stamp - 1);
                place = next.map_or(range.bytes, |mark| mark.offset);
                buffer.clear();
                shown = 0;
                continue;
            };
            if look(seen).is_break() {
                scanned.stopped = true;
                break;
            }
            place += taken as u64;
            shown += taken;
        }
        Ok(scanned)
    }
}

/// What of a block its checksum covers, if that is right.
fn checked(block: &[u8]) -> io::Result<&[u8]> {
    let (covered, crc) = block.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32fast::hash(covered).to_le_bytes() == *crc { Ok(covered) } else { Err(damaged()) }
}

/// The entries of a block whose bytes these are.
///
/// # Errors
/// Of kind `InvalidData` if it is damaged.
pub(crate) fn entries(block: &[u8]) -> io::Result<Vec<Entry>> {
    let mut reader = Reader(checked(block)?);
    let mut entries = Vec::with_capacity(64);
    while !reader.0.is_empty() {
        let entry = Entry::next_bytes(&mut reader).and_then(Entry::decode);
        entries.push(entry.ok_or_else(damaged)?);
    }
    Ok(entries)
}

/// Whether these bytes are messages of a user, and all of them are sound.
pub(crate) fn is_whole(user: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match decode_record(user, bytes) {
            Ok((_, taken)) => bytes = &bytes[taken..],
            Err(_) => return false,
        }
    }
    true
}

/// The messages in bytes of which `is_whole` is true: the stamp and the bytes of each.
pub(crate) fn records(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let mut reader = Reader(bytes);
        let (len, _crc, stamp) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let (record, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES + len as usize)?;
        bytes = rest;
        Some((stamp, record))
    })
}

enum Unreadable {
    /// So many bytes are needed, at least.
    Short(usize),
    Damaged,
}

/// The message at the beginning of `bytes`, and its length there.
fn decode_record(user: u64, bytes: &[u8]) -> Result<(Seen<'_>, usize), Unreadable> {
    let mut reader = Reader(bytes);
    let (Some(len), Some(crc)) = (reader.u32(), reader.u32()) else {
        return Err(Unreadable::Short(RECORD_HEADER_BYTES));
    };
    let len = len as usize;
    if len > LENGTH_MAX {
        return Err(Unreadable::Damaged);
    }
    let taken = RECORD_HEADER_BYTES + len;
    let Some(covered) = bytes.get(8..taken) else { return Err(Unreadable::Short(taken)) };
    if record_crc(user, covered) != crc {
        return Err(Unreadable::Damaged);
    }
    let mut reader = Reader(covered);
    let seen = (|| {
        let (stamp, from, id, flags) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u8()?);
        Some(Seen { stamp, from, id, flags, payload: reader.0, shared: None })
    })();
    seen.map(|seen| (seen, taken)).ok_or(Unreadable::Damaged)
}

/// The user is part of it, so that no message is ever shown to somebody else.
fn record_crc(user: u64, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&user.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

fn encode_record(user: u64, seen: &Seen<'_>, out: &mut Vec<u8>) {
    let begin = out.len();
    out.put_u32(seen.payload.len() as u32);
    out.put_u32(0);
    for value in [seen.stamp, seen.from, seen.id] {
        out.put_u64(value);
    }
    out.put_u8(seen.flags);
    out.extend_from_slice(seen.payload);
    let crc = record_crc(user, &out[begin + 8..]);
    out[begin + 4..begin + 8].copy_from_slice(&crc.to_le_bytes());
}

/// What a damaged place is reported as.
pub(crate) fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged")
}
