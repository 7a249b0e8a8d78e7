//! What an operator does with a store that is not in use: check, export, import.

use crate::copy::{CopyLine, UserCopy};
use crate::embedded::Embedded;
use crate::groups::Groups;
use crate::imported::{IMPORT_BATCH, Imported};
use crate::limits::Amount;
use crate::state::{Device, State};
use crate::{Record, Reply, Request, Store};
use serde::Serialize;
use std::io::{self, BufRead, Write};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Users of whom anything is known.
    pub users: u64,
    /// Messages that wait, each of which was read.
    pub messages: u64,
    /// Their bytes, as in the limits.
    pub bytes: u64,
    /// Registered devices.
    pub devices: u64,
    /// Tables on disk.
    pub tables: u64,
    /// Users whose count of messages was not that of the messages there are.
    pub miscounted: u64,
    /// Damaged places, those found at opening included.
    pub damages: u64,
}

impl Checked {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.miscounted == 0 && self.damages == 0
    }
}

impl Embedded {
    /// Reads everything there is, and compares.
    ///
    /// # Errors
    /// Those of the file system. Damage is no error.
    pub fn check(&mut self) -> io::Result<Checked> {
        let mut checked = Checked { tables: self.table_count() as u64, ..Checked::default() };
        for user in self.users()? {
            let (state, told, found) = self.survey(user, |_| Ok(()))?;
            checked.users += 1;
            checked.messages += found.messages;
            checked.bytes += found.bytes;
            checked.devices += state.devices.len() as u64;
            checked.miscounted += u64::from(told != found);
        }
        checked.damages = self.stats().damages.load(std::sync::atomic::Ordering::Relaxed);
        Ok(checked)
    }

    /// Writes everything as lines of JSON: for each user one with floor and devices, then its messages.
    ///
    /// # Errors
    /// Those of the file system and of `out`.
    pub fn export(&mut self, out: &mut dyn Write) -> io::Result<()> {
        for user in self.users()? {
            let (state, ..) = self.survey(user, |_| Ok(()))?;
            let device =
                |device: &Device| (device.number, device.epoch, device.name.to_string(), device.cursor, device.seen_ms);
            let devices = state.devices.iter().map(device).collect();
            CopyLine::User(UserCopy { user, floor: state.floor, devices }).write(out)?;
            self.survey(user, |record| CopyLine::Message(user, record).write(out))?;
        }
        out.flush()
    }

    /// Takes in what `export` wrote. What is there already stays, and messages that are there already are not stored
    /// again, as long as they have their positions, or are among the last of their log.
    ///
    /// # Errors Of kind `InvalidData` for a line that makes no sense, with its number; otherwise those of the file
    /// system and of `input`. What came before is stored.
    pub fn import(&mut self, input: &mut dyn BufRead) -> io::Result<Imported> {
        self.import_with(None, input)
    }

    /// The same, with lines about groups, which these take in. Without groups such lines make no sense.
    ///
    /// # Errors
    /// As [`Embedded::import`].
    pub fn import_with(
        &mut self,
        mut groups: Option<&mut Groups<Embedded>>,
        input: &mut dyn BufRead,
    ) -> io::Result<Imported> {
        let mut imported = Imported::default();
        let (mut batch, mut of_groups) = (Vec::new(), Vec::new());
        for (at, line) in input.lines().enumerate() {
            match CopyLine::read(&line?, at + 1)? {
                CopyLine::Group(group, copy) => match &mut groups {
                    Some(groups) => groups.import(group, copy, &mut of_groups, &mut imported)?,
                    None => {
                        let what = format!("line {}: it is about a group, and none are imported", at + 1);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                },
                CopyLine::Message(user, record) => {
                    batch.push((0, Request::Append { user, record, retry: Some(0), token: 0 }));
                    if batch.len() >= IMPORT_BATCH {
                        self.import_batch(&mut batch, &mut imported)?;
                    }
                }
                CopyLine::User(copy) => {
                    self.import_batch(&mut batch, &mut imported)?;
                    let mut state = State { floor: copy.floor, ..State::default() };
                    for (number, epoch, name, cursor, seen_ms) in copy.devices {
                        let name = crate::state::device_name(&name).into();
                        let epoch_before = 0;
                        state.devices.push(Device { number, epoch, cursor, seen_ms, name, epoch_before });
                    }
                    imported.users += u64::from(self.adopt_state(copy.user, state)?);
                }
            }
        }
        self.import_batch(&mut batch, &mut imported)?;
        self.commit_now()?;
        if let Some(groups) = groups {
            groups.end_import(&mut of_groups, &mut imported)?;
        }
        Ok(imported)
    }

    fn import_batch(&mut self, batch: &mut Vec<(u16, Request)>, imported: &mut Imported) -> io::Result<()> {
        let mut unavailable = false;
        self.apply(batch, &mut |_, answer| match answer.reply {
            Reply::Stored { duplicate: false, .. } => imported.messages += 1,
            Reply::Stored { duplicate: true, .. } => imported.duplicates += 1,
            Reply::Refused(crate::Refusal::Unavailable) => unavailable = true,
            _ => imported.refused += 1,
        });
        if unavailable {
            let trouble = self.stats().trouble().unwrap_or_else(|| "the store is not available".to_owned());
            return Err(io::Error::other(trouble));
        }
        self.wait_for_tables();
        Ok(())
    }

    fn survey(
        &mut self,
        user: u64,
        mut look: impl FnMut(Record) -> io::Result<()>,
    ) -> io::Result<(State, Amount, Amount)> {
        let mut found = Amount::default();
        let mut result = Ok(());
        let (state, told) = self.look_at(user, &mut |record| {
            found.add(record.bytes());
            if result.is_ok() {
                result = look(record);
            }
        })?;
        result?;
        Ok((state, told, found))
    }
}
