//! The lines of an export that are about groups: for each group one with its settings and floor, then its messages,
//! then its members.

use crate::{GroupSettings, JoinRule, Member, MemberInfo, Record, Role};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::io;

/// Members of one line.
pub const MEMBERS_OF_LINE: usize = 512;

/// What a line of an export says of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupCopy {
    /// That it is there.
    Settings {
        /// How it is run.
        settings: GroupSettings,
        /// Messages up to this stamp may be gone.
        floor: u64,
    },
    /// A message of it.
    Message(Record),
    /// Some of its members, with how far they have read.
    Members(Vec<MemberInfo>),
}

/// Numbers that may be larger than 2^53 are strings, as in the HTTP interface.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum GroupLine {
    Message { group: String, stamp: String, from: String, id: String, flags: u8, payload: String },
    Members { group: String, members: Vec<MemberLine> },
    Settings { group: String, join: JoinWord, max: u32, muted: bool, ttl: u32, floor: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemberLine {
    user: String,
    role: RoleWord,
    muted_until: u32,
    notify: bool,
    read: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JoinWord {
    Open,
    Api,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleWord {
    Member,
    Admin,
    Owner,
}

impl GroupCopy {
    pub(crate) fn line(&self, group: u64) -> GroupLine {
        let group = group.to_string();
        match self {
            GroupCopy::Settings { settings, floor } => {
                let GroupSettings { join, members_max: max, muted, ttl_s: ttl } = *settings;
                let join = if join == JoinRule::Api { JoinWord::Api } else { JoinWord::Open };
                GroupLine::Settings { group, join, max, muted, ttl, floor: floor.to_string() }
            }
            GroupCopy::Message(record) => GroupLine::Message {
                group,
                stamp: record.stamp.to_string(),
                from: record.from.to_string(),
                id: record.id.to_string(),
                flags: record.flags,
                payload: STANDARD.encode(&record.payload),
            },
            GroupCopy::Members(members) => {
                let line = |info: &MemberInfo| MemberLine {
                    user: info.user.to_string(),
                    role: match info.member.role {
                        Role::Member => RoleWord::Member,
                        Role::Admin => RoleWord::Admin,
                        Role::Owner => RoleWord::Owner,
                    },
                    muted_until: info.member.muted_until_s,
                    notify: info.member.notify,
                    read: info.read.to_string(),
                };
                GroupLine::Members { group, members: members.iter().map(line).collect() }
            }
        }
    }

    /// The group and what is said of it. `wrong` makes an error of what makes no sense.
    pub(crate) fn read(line: GroupLine, wrong: impl Fn(String) -> io::Error) -> io::Result<(u64, Self)> {
        let word = |text: &str| text.parse::<u64>().map_err(|_| wrong(format!("{text} is not a number")));
        // Those from there on are live rooms, of which nothing is kept.
        let group_of = |text: &str| match word(text)? {
            0 | 0x8000_0000_0000_0000.. => Err(wrong(format!("{text} is not a group"))),
            group => Ok(group),
        };
        Ok(match line {
            GroupLine::Settings { group, join, max, muted, ttl, floor } => {
                let join = if matches!(join, JoinWord::Api) { JoinRule::Api } else { JoinRule::Open };
                let settings = GroupSettings { join, members_max: max, muted, ttl_s: ttl };
                (group_of(&group)?, GroupCopy::Settings { settings, floor: word(&floor)? })
            }
            GroupLine::Message { group, stamp, from, id, flags, payload } => {
                let payload = STANDARD.decode(&payload).map_err(|error| wrong(error.to_string()))?;
                let (stamp, from, id) = (word(&stamp)?, word(&from)?, word(&id)?);
                let record = Record { stamp, from, id, flags, payload: payload.into() };
                (group_of(&group)?, GroupCopy::Message(record))
            }
            GroupLine::Members { group, members } => {
                let info = |line: MemberLine| {
                    let MemberLine { user, role, muted_until, notify, read } = line;
                    let role = match role {
                        RoleWord::Member => Role::Member,
                        RoleWord::Admin => Role::Admin,
                        RoleWord::Owner => Role::Owner,
                    };
                    let member = Member { muted_until_s: muted_until, role, notify };
                    Ok(MemberInfo { user: word(&user)?, member, read: word(&read)? })
                };
                let members = members.into_iter().map(info).collect::<io::Result<_>>()?;
                (group_of(&group)?, GroupCopy::Members(members))
            }
        })
    }
}
