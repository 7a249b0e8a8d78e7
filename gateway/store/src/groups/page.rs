//! Operations, and snapshots of a whole book, as payloads of records. Nothing read from disk panics.
//!
//! A snapshot is several records that are written by one commit: a beginning, pieces, and an end that says how many
//! pieces there are. What came before it counts until its end is there, so one that is not whole costs nothing.

use super::book::Op;
use crate::codec::{Put, Reader};
use crate::group_ask::{GroupSettings, JoinRule, Member, Role};

const SETTINGS: u8 = 1;
const MEMBER: u8 = 2;
const GONE: u8 = 3;
const MARKS: u8 = 4;
const DELETED: u8 = 5;
const CREATED_GROUP: u8 = 6;
const DELETED_GROUP: u8 = 7;
const BEGIN: u8 = 8;
const MEMBERS: u8 = 9;
const GROUPS: u8 = 10;
const END: u8 = 11;

/// Members, or groups, in one piece of a snapshot; also marks in one operation.
pub(super) const PIECE: usize = 512;

/// What a record of a book says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Op(Op),
    /// Of the book of books: a group is there, or is not any more.
    Group(u64, bool),
    Begin(GroupSettings),
    Members(Vec<(u64, Member, u64)>),
    Groups(Vec<u64>),
    End(u32),
}

fn put_settings(out: &mut Vec<u8>, settings: &GroupSettings) {
    out.put_u8(u8::from(settings.join == JoinRule::Api));
    out.put_u8(u8::from(settings.muted));
    out.put_u32(settings.members_max);
    out.put_u32(settings.ttl_s);
}

fn settings(reader: &mut Reader<'_>) -> Option<GroupSettings> {
    let join = if reader.u8()? == 0 { JoinRule::Open } else { JoinRule::Api };
    Some(GroupSettings { join, muted: reader.u8()? != 0, members_max: reader.u32()?, ttl_s: reader.u32()? })
}

fn put_member(out: &mut Vec<u8>, member: &Member) {
    out.put_u8(match member.role {
        Role::Member => 0,
        Role::Admin => 1,
        Role::Owner => 2,
    });
    out.put_u8(u8::from(member.notify));
    out.put_u32(member.muted_until_s);
}

fn member(reader: &mut Reader<'_>) -> Option<Member> {
    let role = match reader.u8()? {
        0 => Role::Member,
        1 => Role::Admin,
        2 => Role::Owner,
        _ => return None,
    };
    Some(Member { role, notify: reader.u8()? != 0, muted_until_s: reader.u32()? })
}

impl Line {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Line::Op(Op::Settings(settings)) => {
                out.put_u8(SETTINGS);
                put_settings(&mut out, settings);
            }
            Line::Op(Op::Member { user, member }) => {
                out.put_u8(MEMBER);
                out.put_u64(*user);
                put_member(&mut out, member);
            }
            Line::Op(Op::Gone { user }) => {
                out.put_u8(GONE);
                out.put_u64(*user);
            }
            Line::Op(Op::Marks(marks)) => {
                out.put_u8(MARKS);
                out.put_u16(marks.len() as u16);
                for (user, stamp) in marks {
                    out.put_u64(*user);
                    out.put_u64(*stamp);
                }
            }
            Line::Op(Op::Deleted) => out.put_u8(DELETED),
            Line::Group(group, there) => {
                out.put_u8(if *there { CREATED_GROUP } else { DELETED_GROUP });
                out.put_u64(*group);
            }
            Line::Begin(settings) => {
                out.put_u8(BEGIN);
                put_settings(&mut out, settings);
            }
            Line::Members(members) => {
                out.put_u8(MEMBERS);
                out.put_u16(members.len() as u16);
                for (user, member, read) in members {
                    out.put_u64(*user);
                    put_member(&mut out, member);
                    out.put_u64(*read);
                }
            }
            Line::Groups(groups) => {
                out.put_u8(GROUPS);
                out.put_u16(groups.len() as u16);
                groups.iter().for_each(|group| out.put_u64(*group));
            }
            Line::End(pieces) => {
                out.put_u8(END);
                out.put_u32(*pieces);
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Line> {
        let mut reader = Reader(bytes);
        let kind = reader.u8()?;
        let mut times = || reader.u16().map(|count| usize::from(count).min(PIECE));
        Some(match kind {
            MARKS => {
                let count = times()?;
                let marks = (0..count).map(|_| Some((reader.u64()?, reader.u64()?))).collect::<Option<_>>()?;
                Line::Op(Op::Marks(marks))
            }
            MEMBERS => {
                let count = times()?;
                let piece = (0..count).map(|_| Some((reader.u64()?, member(&mut reader)?, reader.u64()?)));
                Line::Members(piece.collect::<Option<_>>()?)
            }
            GROUPS => {
                let count = times()?;
                Line::Groups((0..count).map(|_| reader.u64()).collect::<Option<_>>()?)
            }
            SETTINGS => Line::Op(Op::Settings(settings(&mut reader)?)),
            MEMBER => Line::Op(Op::Member { user: reader.u64()?, member: member(&mut reader)? }),
            GONE => Line::Op(Op::Gone { user: reader.u64()? }),
            DELETED => Line::Op(Op::Deleted),
            CREATED_GROUP => Line::Group(reader.u64()?, true),
            DELETED_GROUP => Line::Group(reader.u64()?, false),
            BEGIN => Line::Begin(settings(&mut reader)?),
            END => Line::End(reader.u32()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_as_it_was_written_and_no_part_of_one_is() {
        let settings = GroupSettings { join: JoinRule::Api, members_max: 7, muted: true, ttl_s: 60 };
        let member = Member { muted_until_s: 9, role: Role::Admin, notify: false };
        let lines = [
            Line::Op(Op::Settings(settings)),
            Line::Op(Op::Member { user: 3, member }),
            Line::Op(Op::Gone { user: u64::MAX }),
            Line::Op(Op::Marks(vec![(1, 2), (3, 4)])),
            Line::Op(Op::Deleted),
            Line::Group(5, true),
            Line::Group(6, false),
            Line::Begin(settings),
            Line::Members(vec![(1, member, 77), (2, Member::default(), 0)]),
            Line::Groups(vec![1, 2, 3]),
            Line::End(12),
        ];
        for line in lines {
            let bytes = line.encode();
            for cut in 0..bytes.len() {
                assert_eq!(Line::decode(&bytes[..cut]), None, "{line:?} cut at {cut}");
            }
            assert_eq!(Line::decode(&bytes).as_ref(), Some(&line));
        }
        assert_eq!(Line::decode(&[99]), None);
    }
}
