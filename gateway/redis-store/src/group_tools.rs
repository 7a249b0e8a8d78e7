//! Groups in an operator's copy of everything, and their way back.

use crate::group;
use crate::part::Part;
use crate::script::id;
use crate::tools::{Tool, ToolError, Tries};
use trunkline_router::redis::Value;
use trunkline_store::{
    CopyLine, GroupAsk, GroupCopy, GroupInfo, GroupReply, Imported, MEMBERS_OF_LINE, Member, MemberInfo, Record, Reply,
};

/// Messages that are read or written at a time.
const PAGE: u32 = 256;
const PAGE_BYTES: u32 = 4 << 20;

impl Tool {
    /// Groups of which anything is known, in the order of their ids.
    async fn groups(&self) -> Result<Vec<u64>, ToolError> {
        let mut groups = Vec::new();
        let group = |key: &String| key.strip_prefix("tl:g:{")?.strip_suffix('}')?.parse::<u64>().ok();
        self.batches.scan("tl:g:{*}", |keys| groups.extend(keys.iter().filter_map(group))).await?;
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    /// Asks one thing of a group that writes nothing.
    async fn look(&self, group: u64, ask: GroupAsk) -> Result<GroupReply, ToolError> {
        let mut replies = self.of_group(group, &[ask]).await?;
        replies.pop().flatten().ok_or(ToolError::Group(group))
    }

    /// Asks a group, in nobody's view.
    async fn of_group(&self, group: u64, asks: &[GroupAsk]) -> Result<Vec<Option<GroupReply>>, ToolError> {
        let call = self.road.group_call(group, asks.iter().map(|ask| (0, ask)));
        self.answered(group, self.run(call).await?)
    }

    fn answered(&self, group: u64, value: Value) -> Result<Vec<Option<GroupReply>>, ToolError> {
        let answered = group::read(value, group, (self.settings.clock)()).ok_or(ToolError::Group(group))?;
        let reply = |reply: Option<Reply>| match reply {
            Some(Reply::Group(reply)) => Some(*reply),
            _ => None,
        };
        Ok(answered.replies.into_iter().map(reply).collect())
    }

    /// Hands out all lines about groups.
    pub(crate) async fn export_groups(
        &self,
        mut take: impl FnMut(CopyLine) -> Result<(), ToolError>,
    ) -> Result<(), ToolError> {
        for group in self.groups().await? {
            let settings = match self.look(group, GroupAsk::Get).await? {
                GroupReply::Info(GroupInfo { settings, .. }) => settings,
                // It has ended.
                _ => continue,
            };
            let (mut after, mut is_first) = (0, true);
            loop {
                let read = GroupAsk::Read { user: None, after, since_ms: 0, limit: PAGE, bytes_max: PAGE_BYTES };
                let GroupReply::Page { page, next } = self.look(group, read).await? else { break };
                if std::mem::take(&mut is_first) {
                    let floor = page.floor;
                    take(CopyLine::Group(group, GroupCopy::Settings { settings, floor }))?;
                }
                for record in page.records {
                    take(CopyLine::Group(group, GroupCopy::Message(record)))?;
                }
                if page.complete || next <= after {
                    break;
                }
                after = next;
            }
            let mut after = 0;
            loop {
                let members = GroupAsk::Members { after, limit: MEMBERS_OF_LINE as u32 };
                let GroupReply::Members { members, more } = self.look(group, members).await? else { break };
                let Some(last) = members.last().map(|member| member.user) else { break };
                take(CopyLine::Group(group, GroupCopy::Members(members)))?;
                if !more {
                    break;
                }
                after = last;
            }
        }
        Ok(())
    }

    /// Takes in what a line says of a group, but for messages.
    pub(crate) async fn import_group(
        &self,
        group: u64,
        copy: GroupCopy,
        imported: &mut Imported,
    ) -> Result<(), ToolError> {
        match copy {
            GroupCopy::Settings { settings, floor } => {
                if matches!(self.look(group, GroupAsk::Get).await?, GroupReply::Info(_)) {
                    // It stays as it is.
                    return Ok(());
                }
                // Both at once: what is there already stays as it is.
                let mut words = Vec::new();
                group::put(&mut words, &GroupAsk::Put { settings }, 0, &self.settings.limits);
                words.extend(["floor".into(), id(floor).into()]);
                self.put_words(group, words).await?;
                imported.groups += 1;
            }
            GroupCopy::Members(members) => {
                for MemberInfo { user, member, .. } in &members {
                    match self.join(group, *user, *member).await? {
                        GroupReply::Joined { news, .. } => imported.members += u64::from(news),
                        _ => imported.refused += 1,
                    }
                }
                let mark = |info: &MemberInfo| GroupAsk::Mark { user: info.user, stamp: info.read };
                let marks: Vec<GroupAsk> = members.iter().filter(|info| info.read > 0).map(mark).collect();
                if !marks.is_empty() {
                    self.of_group(group, &marks).await?;
                }
            }
            GroupCopy::Message(record) => self.import_of_group(group, &Part::new(""), &[record], imported).await?,
        }
        Ok(())
    }

    /// A member, on both sides.
    async fn join(&self, group: u64, user: u64, member: Member) -> Result<GroupReply, ToolError> {
        let ask = GroupAsk::Join { user, member, added: true, create: false };
        let tries = Tries::begin();
        loop {
            match self.road.travel(group, &ask, 0, self.sync).await {
                (Reply::Group(reply), None) => return Ok(*reply),
                (_, Some(why)) => tries.next(ToolError::Undone(why)).await?,
                _ => return Err(ToolError::Group(group)),
            }
        }
    }

    /// Stores messages of a group, whoever sent them.
    pub(crate) async fn import_of_group(
        &self,
        group: u64,
        part: &Part,
        records: &[Record],
        imported: &mut Imported,
    ) -> Result<(), ToolError> {
        let mut words = Vec::new();
        part.put(&mut words);
        records.iter().for_each(|record| group::put_import(&mut words, record));
        for reply in self.put_words(group, words).await? {
            match reply {
                Some(GroupReply::Stored { duplicate: false, .. }) => imported.group_messages += 1,
                Some(GroupReply::Stored { duplicate: true, .. }) => imported.duplicates += 1,
                _ => imported.refused += 1,
            }
        }
        Ok(())
    }

    /// Requests that nobody but an import makes.
    async fn put_words(&self, group: u64, words: Vec<Value>) -> Result<Vec<Option<GroupReply>>, ToolError> {
        let call = self.road.words_call(group, words);
        self.answered(group, self.run(call).await?)
    }
}
