//! Which groups there are and who is in them, in memory. Pure: what is durable is for `keep`.

use crate::group_ask::{GroupDenial, GroupInfo, GroupSettings, Member, MemberInfo, Membership, Role};
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// Users from this id on are services, see `SERVICE_USERS` of the protocol: the node has judged whether one may send.
const SERVICES_FROM: u64 = u64::MAX - 0xFFFF;

/// A change of a group: how something is from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// The group is there, with these settings.
    Settings(GroupSettings),
    /// A user is a member.
    Member { user: u64, member: Member },
    /// A user is no member.
    Gone { user: u64 },
    /// Users have read up to there.
    Marks(Vec<(u64, u64)>),
    /// The group is not there.
    Deleted,
}

/// How something was before a change.
pub(super) enum Undo {
    Nothing,
    Settings(GroupSettings),
    NotThere,
    Member { user: u64, before: Option<(Member, u64)> },
    Whole(Box<Group>),
}

/// One group.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) settings: GroupSettings,
    pub(super) members: BTreeMap<u64, Member>,
    /// Of members who have marked something as read.
    reads: HashMap<u64, u64>,
    /// The last stamp of its log.
    pub(super) last: u64,
    /// Operations in its book since that was begun.
    pub(super) ops: u64,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Book {
    groups: HashMap<u64, Group>,
    /// User and group of each membership.
    of_user: BTreeSet<(u64, u64)>,
}

impl Book {
    pub(super) fn group(&self, group: u64) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(super) fn group_mut(&mut self, group: u64) -> Option<&mut Group> {
        self.groups.get_mut(&group)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.groups.keys().copied()
    }

    pub(super) fn len(&self) -> u64 {
        self.groups.len() as u64
    }

    pub(super) fn memberships(&self) -> u64 {
        self.of_user.len() as u64
    }

    /// Makes a change. What it gives back takes it back.
    pub(super) fn apply(&mut self, group: u64, op: &Op) -> Undo {
        match op {
            Op::Settings(settings) => match self.groups.get_mut(&group) {
                Some(known) => Undo::Settings(std::mem::replace(&mut known.settings, *settings)),
                None => {
                    self.groups.insert(group, Group { settings: *settings, ..Group::default() });
                    Undo::NotThere
                }
            },
            Op::Member { user, member } => {
                let Some(known) = self.groups.get_mut(&group) else { return Undo::Nothing };
                let before = known.members.insert(*user, *member);
                self.of_user.insert((*user, group));
                let read = known.reads.get(user).copied().unwrap_or(0);
                Undo::Member { user: *user, before: before.map(|before| (before, read)) }
            }
            Op::Gone { user } => {
                let Some(known) = self.groups.get_mut(&group) else { return Undo::Nothing };
                let read = known.reads.remove(user).unwrap_or(0);
                let before = known.members.remove(user);
                self.of_user.remove(&(*user, group));
                Undo::Member { user: *user, before: before.map(|before| (before, read)) }
            }
            Op::Marks(marks) => {
                if let Some(known) = self.groups.get_mut(&group) {
                    for (user, stamp) in marks.iter().filter(|(user, _)| known.members.contains_key(user)) {
                        let read = known.reads.entry(*user).or_default();
                        *read = (*read).max(*stamp);
                    }
                }
                Undo::Nothing
            }
            Op::Deleted => {
                let Some(gone) = self.groups.remove(&group) else { return Undo::Nothing };
                for user in gone.members.keys() {
                    self.of_user.remove(&(*user, group));
                }
                Undo::Whole(Box::new(gone))
            }
        }
    }

    /// Takes a change back. Those that came after it have been taken back before.
    pub(super) fn undo(&mut self, group: u64, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::NotThere => drop(self.groups.remove(&group)),
            Undo::Settings(settings) => {
                if let Some(known) = self.groups.get_mut(&group) {
                    known.settings = settings;
                }
            }
            Undo::Member { user, before } => {
                let Some(known) = self.groups.get_mut(&group) else { return };
                match before {
                    Some((member, read)) => {
                        known.members.insert(user, member);
                        self.of_user.insert((user, group));
                        if read > 0 {
                            known.reads.insert(user, read);
                        }
                    }
                    None => {
                        known.members.remove(&user);
                        self.of_user.remove(&(user, group));
                    }
                }
            }
            Undo::Whole(gone) => {
                self.of_user.extend(gone.members.keys().map(|user| (*user, group)));
                self.groups.insert(group, *gone);
            }
        }
    }

    /// Whether a user may send to a group at this time, seconds since 1970. A service need not be a member.
    pub(super) fn may_send(&self, group: u64, user: u64, now_s: u64) -> Result<(), GroupDenial> {
        let known = self.groups.get(&group).ok_or(GroupDenial::NotAMember)?;
        if user >= SERVICES_FROM {
            return Ok(());
        }
        let member = known.members.get(&user).ok_or(GroupDenial::NotAMember)?;
        let muted = u64::from(member.muted_until_s) > now_s || (known.settings.muted && member.role == Role::Member);
        if muted { Err(GroupDenial::Muted) } else { Ok(()) }
    }

    pub(super) fn groups_of(&self, user: u64) -> impl Iterator<Item = u64> {
        self.of_user.range((user, 0)..=(user, u64::MAX)).map(|(_, group)| *group)
    }

    pub(super) fn of(&self, user: u64) -> Vec<Membership> {
        let membership = |group: u64| {
            let known = self.groups.get(&group)?;
            let read = known.reads.get(&user).copied().unwrap_or(0);
            Some(Membership { group, member: *known.members.get(&user)?, last: known.last, read })
        };
        self.groups_of(user).filter_map(membership).collect()
    }

    pub(super) fn info(&self, group: u64) -> Option<GroupInfo> {
        self.groups.get(&group).map(Group::info)
    }

    /// Notes how far a member has read. Returns where it is now, if that is news.
    pub(super) fn mark(&mut self, group: u64, user: u64, stamp: u64) -> Option<u64> {
        let known = self.groups.get_mut(&group)?;
        if !known.members.contains_key(&user) {
            return None;
        }
        let stamp = stamp.min(known.last);
        let before = known.reads.get(&user).copied().unwrap_or(0);
        if stamp <= before {
            return None;
        }
        known.reads.insert(user, stamp);
        Some(stamp)
    }
}

impl Group {
    pub(super) fn info(&self) -> GroupInfo {
        GroupInfo { settings: self.settings, members: self.members.len() as u32, last: self.last }
    }

    /// Members above an id, at most so many, and whether there are more.
    pub(super) fn members(&self, after: u64, limit: usize) -> (Vec<MemberInfo>, bool) {
        let mut behind = self.members.range((Excluded(after), Unbounded));
        let info = |(user, member): (&u64, &Member)| {
            let read = self.reads.get(user).copied().unwrap_or(0);
            MemberInfo { user: *user, member: *member, read }
        };
        let members = behind.by_ref().take(limit).map(info).collect();
        (members, behind.next().is_some())
    }

    /// How many have read up to a stamp or further.
    pub(super) fn read_up_to(&self, stamp: u64) -> u32 {
        if stamp == 0 {
            return self.members.len() as u32;
        }
        self.reads.values().filter(|read| **read >= stamp).count() as u32
    }

    /// All members with what they have read, for a snapshot.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, Member, u64)> {
        self.members.iter().map(|(user, member)| (*user, *member, self.reads.get(user).copied().unwrap_or(0)))
    }

    pub(super) fn read_of(&self, user: u64) -> u64 {
        self.reads.get(&user).copied().unwrap_or(0)
    }
}
