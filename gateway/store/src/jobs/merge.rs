//! Merging tables: each is read once from its beginning to its end.

use super::Merged;
use crate::codec::Totals;
use crate::disk::{Disk, Window};
use crate::state::State;
use crate::table::{self, Entry, Footer, Table, TableWriter};
use std::collections::VecDeque;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is read of a table at a time, and so the memory that it takes while it is merged. It holds some tens of blocks
/// with the messages of their users.
const WINDOW_BYTES: u64 = 256 << 10;
/// A block whose users have more messages than this is not read in one piece with them.
const GROUP_BYTES_MAX: u64 = 1 << 20;

/// A table that is read from its beginning to its end.
struct Input<'a> {
    table: &'a Table,
    next_block: usize,
    entries: VecDeque<Entry>,
    blocks_damaged: u64,
    window: Window,
}

impl<'a> Input<'a> {
    fn new(table: &'a Table) -> Self {
        Input { table, next_block: 0, entries: VecDeque::new(), blocks_damaged: 0, window: Window::default() }
    }

    /// Lets the first entry be there, if there is one.
    fn fill(&mut self) -> io::Result<()> {
        while self.entries.is_empty() && self.next_block < self.table.blocks() {
            let at = self.next_block;
            self.next_block += 1;
            self.read_on(self.table.group_place(at));
            let read = match self.window.get(&self.table.block_place(at)) {
                Some(bytes) => table::entries(bytes),
                None => self.table.block(at),
            };
            match read {
                Ok(entries) => self.entries = entries.into(),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => self.blocks_damaged += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lets a group be in the window, if it is not too long and can be read. If it is not there, what is asked for is
    /// read by itself, so that a bad sector hurts no more than it has to.
    fn read_on(&mut self, group: Range<u64>) {
        if group.end - group.start <= GROUP_BYTES_MAX {
            let end = self.table.footer.blocks_at;
            let read = |bytes: &mut [u8], offset| self.table.read_uncounted(bytes, offset);
            let _ = self.window.read_on(&group, WINDOW_BYTES, end, read);
        }
    }
}

/// Merges tables that follow each other.
///
/// `drop_before`: of users who have nothing, and had no message since that stamp, nothing is kept. 0 unless the first
/// of the inputs is the first table of all: what an earlier one knows would come to light again.
pub(super) fn merge(
    disk: &Arc<dyn Disk>,
    footer: Footer,
    tables: &[Arc<Table>],
    drop_before: u64,
    stop: &AtomicBool,
) -> io::Result<Merged> {
    let users_max = tables.iter().map(|table| table.footer.users).sum();
    let mut writer = TableWriter::new(disk.clone(), footer, users_max)?;
    let mut damaged = Vec::new();
    let mut inputs: Vec<Input<'_>> = tables.iter().map(|table| Input::new(table)).collect();
    let mut ranges = Vec::new();
    loop {
        for input in &mut inputs {
            input.fill()?;
        }
        let next = inputs.iter().filter_map(|input| input.entries.front()).map(|entry| entry.user).min();
        let Some(user) = next else { break };
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // From the oldest table to the newest: what comes later is nearer to the truth.
        let (mut totals, mut state) = (Totals::default(), None);
        for (at, input) in inputs.iter_mut().enumerate() {
            let Some(entry) = input.entries.pop_front_if(|entry| entry.user == user) else { continue };
            totals = entry.totals;
            state = entry.state.or(state);
            ranges.extend(entry.range.map(|range| (at, range)));
        }
        let floor = state.as_ref().map_or(0, |state: &State| state.floor);
        let mut kept = false;
        for (at, range) in ranges.drain(..).filter(|(_, range)| range.last > floor) {
            let input = &inputs[at];
            let bytes = input.window.get(&(range.offset..range.offset + range.bytes));
            if let Some(bytes) = bytes.filter(|bytes| table::is_whole(user, bytes)) {
                for (stamp, record) in table::records(bytes).filter(|(stamp, _)| *stamp > floor) {
                    writer.encoded(stamp, record)?;
                    kept = true;
                }
                continue;
            }
            let mut result = Ok(());
            let scanned = input.table.scan(user, &range, floor, |seen| {
                kept = true;
                result = writer.message(user, &seen);
                if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            result?;
            if scanned.damaged > floor {
                damaged.push((user, scanned.damaged));
            }
        }
        let nothing = !kept && totals.messages == 0;
        let unknown = state.as_ref().is_none_or(|state| state.devices.is_empty() && state.gap < drop_before);
        if nothing && unknown && totals.last < drop_before {
            writer.dropped(totals.last);
        } else {
            writer.user(user, totals, state)?;
        }
    }
    let blocks_damaged = inputs.iter().map(|input| input.blocks_damaged).sum();
    Ok(Merged { table: writer.finish()?, damaged, blocks_damaged })
}
