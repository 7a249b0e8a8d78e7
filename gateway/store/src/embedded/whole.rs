//! The store as a whole, for the tools.

use super::Embedded;
use crate::Record;
use crate::limits::Amount;
use crate::state::State;
use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;

impl Embedded {
    /// All users of whom anything is known, in the order of their ids.
    pub(crate) fn users(&self) -> io::Result<Vec<u64>> {
        let mut users: BTreeSet<u64> = self.recents.keys().chain(self.totals.keys()).copied().collect();
        if let Some(frozen) = &self.frozen {
            users.extend(frozen.recents.keys());
        }
        for table in &self.tables {
            for block in 0..table.blocks() {
                match table.block(block) {
                    Ok(entries) => users.extend(entries.into_iter().map(|entry| entry.user)),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(users.into_iter().collect())
    }

    /// How many tables there are.
    pub(crate) fn table_count(&self) -> usize {
        self.tables.len()
    }

    /// Shows all messages of a user. Returns its floor and devices, and how much the store believes to be there.
    pub(crate) fn look_at(&mut self, user: u64, look: &mut dyn FnMut(Record)) -> io::Result<(State, Amount)> {
        let mut at = self.locate(user)?;
        self.visit(user, &mut at, 0, |seen| {
            look(seen.to_record());
            ControlFlow::Continue(())
        })?;
        let told = Amount { messages: u64::from(at.totals.messages), bytes: u64::from(at.totals.bytes) };
        Ok((at.state, told))
    }

    /// Takes over floor and devices of a user of whom none are known. False if some are.
    pub(crate) fn adopt_state(&mut self, user: u64, state: State) -> io::Result<bool> {
        let mut at = self.locate(user)?;
        if at.state != State::default() {
            return Ok(false);
        }
        at.totals.last = at.totals.last.max(state.floor);
        at.state.devices = state.devices;
        // A floor below what is here already would be a lie about it.
        if at.totals.messages == 0 {
            at.state.floor = state.floor;
        }
        self.keep(user, &at);
        Ok(true)
    }

    /// Makes durable what is not.
    pub(crate) fn commit_now(&mut self) -> io::Result<()> {
        if self.commit() {
            return Ok(());
        }
        Err(io::Error::other(self.stats.trouble().unwrap_or_else(|| "the store is not available".to_owned())))
    }

    /// Lets jobs end, so that an import is not refused for being faster than they are.
    pub(crate) fn wait_for_tables(&mut self) {
        while let Some(done) = self.executor.wait() {
            self.finished(done);
        }
    }
}
