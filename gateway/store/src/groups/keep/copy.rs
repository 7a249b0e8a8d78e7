//! Groups of a store that is not in use, written out as lines and taken in again.

use super::Groups;
use crate::copy::CopyLine;
use crate::embedded::Embedded;
use crate::group_ask::{GroupAsk, GroupReply, MemberInfo};
use crate::group_copy::{GroupCopy, MEMBERS_OF_LINE};
use crate::imported::{IMPORT_BATCH, Imported};
use crate::state::State;
use crate::{Refusal, Reply, Request, Source, Store};
use std::io::{self, Write};

impl Groups<Embedded> {
    /// Writes all groups as lines of JSON: for each one with settings and floor, then its messages, then its members.
    ///
    /// # Errors
    /// Those of the file system and of `out`.
    pub fn export(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut ids: Vec<u64> = self.book.ids().collect();
        ids.sort_unstable();
        for group in ids {
            let Some(known) = self.book.group(group) else { continue };
            let settings = known.settings;
            let info = |(user, member, read)| MemberInfo { user, member, read };
            let members: Vec<MemberInfo> = known.entries().map(info).collect();
            let (State { floor, .. }, _) = self.logs.look_at(group, &mut |_| {})?;
            CopyLine::Group(group, GroupCopy::Settings { settings, floor }).write(out)?;
            let mut written = Ok(());
            self.logs.look_at(group, &mut |record| {
                if written.is_ok() {
                    written = CopyLine::Group(group, GroupCopy::Message(record)).write(out);
                }
            })?;
            written?;
            for members in members.chunks(MEMBERS_OF_LINE) {
                CopyLine::Group(group, GroupCopy::Members(members.to_vec())).write(out)?;
            }
        }
        out.flush()
    }

    /// Takes in what a line says of a group. Messages are held in `held` until there are many.
    pub(crate) fn import(
        &mut self,
        group: u64,
        copy: GroupCopy,
        held: &mut Vec<(Source, Request)>,
        imported: &mut Imported,
    ) -> io::Result<()> {
        match copy {
            GroupCopy::Settings { settings, floor } if self.book.group(group).is_none() => {
                self.import_held(held, imported)?;
                match self.import_batch(vec![(group, GroupAsk::Put { settings })])?.first() {
                    Some(GroupReply::Put { .. }) => {
                        imported.groups += 1;
                        self.logs.adopt_state(group, State { floor, ..State::default() })?;
                    }
                    _ => imported.refused += 1,
                }
            }
            // It stays as it is.
            GroupCopy::Settings { .. } => {}
            // There was no room for the group.
            GroupCopy::Message(_) if self.book.group(group).is_none() => imported.refused += 1,
            GroupCopy::Message(record) => {
                let token = held.len() as u64;
                held.push((0, Request::Append { user: group, record, retry: Some(0), token }));
                if held.len() >= IMPORT_BATCH {
                    self.import_held(held, imported)?;
                }
            }
            GroupCopy::Members(members) => {
                // How far they have read is bound by the end of the log.
                self.import_held(held, imported)?;
                let join = |info: &MemberInfo| {
                    let MemberInfo { user, member, .. } = *info;
                    (group, GroupAsk::Join { user, member, added: true, create: false })
                };
                for reply in self.import_batch(members.iter().map(join).collect())? {
                    match reply {
                        GroupReply::Joined { news, .. } => imported.members += u64::from(news),
                        _ => imported.refused += 1,
                    }
                }
                for MemberInfo { user, read, .. } in members {
                    if self.book.mark(group, user, read).is_some() {
                        self.marks.insert((group, user));
                    }
                }
                self.write_marks();
            }
        }
        Ok(())
    }

    /// What is left of an import: all of it is durable then.
    pub(crate) fn end_import(&mut self, held: &mut Vec<(Source, Request)>, imported: &mut Imported) -> io::Result<()> {
        self.import_held(held, imported)?;
        self.logs.commit_now()
    }

    /// Stores the messages that are held.
    fn import_held(&mut self, held: &mut Vec<(Source, Request)>, imported: &mut Imported) -> io::Result<()> {
        let group_of = |(_, request): &(Source, Request)| match request {
            Request::Append { user, .. } => *user,
            _ => 0,
        };
        let groups: Vec<u64> = held.iter().map(group_of).collect();
        let mut unavailable = false;
        let book = &mut self.book;
        self.logs.apply(held, &mut |_, answer| match answer.reply {
            Reply::Stored { stamp, duplicate, .. } => {
                match duplicate {
                    true => imported.duplicates += 1,
                    false => imported.group_messages += 1,
                }
                let group = groups.get(answer.token as usize).copied().unwrap_or(0);
                if let Some(known) = book.group_mut(group) {
                    known.last = known.last.max(stamp);
                }
            }
            Reply::Refused(Refusal::Unavailable) => unavailable = true,
            _ => imported.refused += 1,
        });
        held.clear();
        if unavailable {
            return Err(self.not_available());
        }
        self.logs.wait_for_tables();
        Ok(())
    }

    /// Carries out requests by one commit, and gives what they came to.
    fn import_batch(&mut self, asks: Vec<(u64, GroupAsk)>) -> io::Result<Vec<GroupReply>> {
        let mut replies = Vec::with_capacity(asks.len());
        let asked = asks.len();
        let batch = asks.into_iter().map(|(group, ask)| (0, group, ask, Some(0))).collect();
        self.apply(batch, &mut |_, answer| {
            if let Reply::Group(reply) = answer.reply {
                replies.push(*reply);
            }
        });
        self.logs.wait_for_tables();
        // Each is answered, but for those that the log did not take.
        if replies.len() == asked { Ok(replies) } else { Err(self.not_available()) }
    }

    fn not_available(&self) -> io::Error {
        let trouble = self.logs.stats().trouble();
        io::Error::other(trouble.unwrap_or_else(|| "the store of groups is not available".to_owned()))
    }
}
