//! Writing a table.

use super::{
    BLOCK_BYTES, Block, Entry, Filter, Footer, MARK_BYTES, Mark, Range, Seen, Table, encode_record, table_name,
};
use crate::codec::{Put, Totals};
use crate::disk::{Disk, File};
use crate::state::State;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 1 << 20;
/// A sync after so many bytes, so that a commit of the log never has to wait behind more of them.
const SYNC_BYTES: u64 = 4 << 20;

/// A table that is being written. It has a name of its own until it is finished, and what has that name at the start is
/// left over from a crash.
pub(crate) struct TableWriter {
    disk: Arc<dyn Disk>,
    file: Arc<dyn File>,
    name: String,
    footer: Footer,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    flushed: u64,
    synced: u64,
    /// Entries of the open block. It is written behind the messages of its users, so that no more than this is in
    /// memory.
    entries: Vec<u8>,
    blocks: Vec<Block>,
    filter: Filter,
    block_user: u64,
    /// The range of the user whose messages are being added.
    range: Range,
}

impl TableWriter {
    /// The end of the name of a table that is not finished.
    pub(crate) const UNFINISHED: &str = ".new";

    /// Begins a table of at most about so many users. Of `footer`, what concerns its content is set here.
    pub(crate) fn new(disk: Arc<dyn Disk>, footer: Footer, users_max: u64) -> io::Result<Self> {
        let name = table_name(footer.first_generation, footer.last_generation);
        let file = disk.create(&format!("{name}{}", Self::UNFINISHED))?;
        Ok(TableWriter {
            disk,
            file,
            name,
            footer: Footer { oldest: u64::MAX, users: 0, ..footer },
            buffer: Vec::with_capacity(WRITE_BYTES + (64 << 10)),
            flushed: 0,
            synced: 0,
            entries: Vec::new(),
            blocks: Vec::new(),
            filter: Filter::new(users_max),
            block_user: 0,
            range: Range::default(),
        })
    }

    /// Adds a message of the user whose entry comes next. Stamps rise.
    pub(crate) fn message(&mut self, user: u64, seen: &Seen<'_>) -> io::Result<()> {
        self.begin_message(seen.stamp);
        encode_record(user, seen, &mut self.buffer);
        self.end_message(seen.stamp)
    }

    /// The same for a message as another table has it.
    pub(crate) fn encoded(&mut self, stamp: u64, record: &[u8]) -> io::Result<()> {
        self.begin_message(stamp);
        self.buffer.extend_from_slice(record);
        self.end_message(stamp)
    }

    fn begin_message(&mut self, stamp: u64) {
        let offset = self.flushed + self.buffer.len() as u64;
        if self.range.messages == 0 {
            self.range = Range { offset, first: stamp, ..Range::default() };
        }
        let within = offset - self.range.offset;
        let marked = self.range.marks.last().map_or(0, |mark| mark.offset);
        if within >= marked + MARK_BYTES {
            self.range.marks.push(Mark { stamp, offset: within, before: self.range.messages });
        }
    }

    fn end_message(&mut self, stamp: u64) -> io::Result<()> {
        self.range.messages += 1;
        self.range.last = stamp;
        self.range.bytes = self.flushed + self.buffer.len() as u64 - self.range.offset;
        self.footer.oldest = self.footer.oldest.min(self.range.first);
        self.flush_beyond(WRITE_BYTES)
    }

    /// Ends a user with what is known besides the messages that were added. Users rise.
    pub(crate) fn user(&mut self, user: u64, totals: Totals, state: Option<State>) -> io::Result<()> {
        let range = std::mem::take(&mut self.range);
        let range = (range.messages > 0).then_some(range);
        if self.entries.is_empty() {
            self.block_user = user;
        }
        Entry { user, totals, state, range }.encode(&mut self.entries);
        self.footer.users += 1;
        self.filter.add(user);
        if self.entries.len() >= BLOCK_BYTES {
            self.close_block();
        }
        self.flush_beyond(WRITE_BYTES)
    }

    /// Nothing is kept of a user, whose last stamp this was.
    pub(crate) fn dropped(&mut self, last: u64) {
        self.footer.dropped_high = self.footer.dropped_high.max(last);
    }

    fn close_block(&mut self) {
        let crc = crc32fast::hash(&self.entries);
        self.entries.put_u32(crc);
        let offset = self.flushed + self.buffer.len() as u64;
        self.blocks.push(Block { first_user: self.block_user, offset, len: self.entries.len() as u32 });
        self.buffer.append(&mut self.entries);
    }

    fn flush_beyond(&mut self, bytes: usize) -> io::Result<()> {
        if self.buffer.len() <= bytes {
            return Ok(());
        }
        self.file.write_at(&self.buffer, self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        if self.flushed - self.synced >= SYNC_BYTES {
            self.file.sync()?;
            self.synced = self.flushed;
        }
        Ok(())
    }

    /// Writes the rest, makes the table durable and gives it its name.
    pub(crate) fn finish(mut self) -> io::Result<Table> {
        if !self.entries.is_empty() {
            self.close_block();
        }
        self.footer.blocks_at = self.flushed + self.buffer.len() as u64;
        self.footer.blocks = self.blocks.len() as u64;
        let listed_begin = self.buffer.len();
        for block in &self.blocks {
            self.buffer.put_u64(block.first_user);
            self.buffer.put_u64(block.offset);
            self.buffer.put_u32(block.len);
        }
        let blocks_crc = crc32fast::hash(&self.buffer[listed_begin..]);
        self.buffer.extend_from_slice(&self.footer.encode(blocks_crc));
        self.flush_beyond(0)?;
        self.file.sync()?;
        let unfinished = format!("{}{}", self.name, Self::UNFINISHED);
        self.disk.rename(&unfinished, &self.name)?;
        self.disk.sync_dir()?;
        let TableWriter { file, footer, flushed, blocks, filter, .. } = self;
        Ok(Table { footer, bytes: flushed, file, blocks, filter, errors: AtomicU32::new(0) })
    }

    /// Removes what was written. `replaces`: the table was to have the name of one that there is.
    pub(crate) fn discard(disk: &dyn Disk, footer: &Footer, replaces: bool) {
        let name = table_name(footer.first_generation, footer.last_generation);
        // It is in nobody's way: the next attempt and the next start remove it, too. It has its name already if only
        // the folder could not be made durable.
        let _ = disk.remove(&format!("{name}{}", Self::UNFINISHED));
        if !replaces {
            let _ = disk.remove(&name);
        }
    }
}
