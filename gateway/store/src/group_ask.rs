//! What is asked about groups, and what is answered.

use crate::{Page, Record};

/// Who may join a group by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JoinRule {
    /// Every user.
    #[default]
    Open,
    /// Nobody: members are added over the HTTP interface.
    Api,
}

/// How a group is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// Who may join by itself.
    pub join: JoinRule,
    /// Members at most; 0 leaves it to the limit of the node.
    pub members_max: u32,
    /// Only admins and owners may send.
    pub muted: bool,
    /// Messages older than this are not given out, seconds; 0 for as long as the log keeps them.
    pub ttl_s: u32,
}

impl Default for GroupSettings {
    fn default() -> Self {
        GroupSettings { join: JoinRule::Open, members_max: 0, muted: false, ttl_s: 0 }
    }
}

/// What a member is in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May send unless it or the group is muted.
    #[default]
    Member,
    /// May send in a muted group.
    Admin,
    /// As an admin; the application decides what else.
    Owner,
}

/// A membership, besides who and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Until when the member may not send, seconds since 1970; 0 for not muted.
    pub muted_until_s: u32,
    /// What it is in the group.
    pub role: Role,
    /// Whether it wants to be notified: kept for the application, which reads it over HTTP.
    pub notify: bool,
}

impl Default for Member {
    fn default() -> Self {
        Member { muted_until_s: 0, role: Role::Member, notify: true }
    }
}

/// What changes of a membership; what is none stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberChange {
    /// Its role.
    pub role: Option<Role>,
    /// Until when it may not send, seconds since 1970.
    pub muted_until_s: Option<u32>,
    /// Whether it wants to be notified.
    pub notify: Option<bool>,
}

/// What is asked about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupAsk {
    /// Store a message of a member. Answered [`GroupReply::Stored`] or [`GroupReply::Denied`].
    Append {
        /// `record.from` is the member; `record.stamp` is proposed.
        record: Record,
        /// It may have been stored before, as in [`Request::Append`](crate::Request::Append).
        retry: Option<u64>,
    },
    /// Whether a member may send now; nothing is stored. Answered [`GroupReply::Admitted`] or [`GroupReply::Denied`].
    Admit {
        /// The member.
        from: u64,
        /// The position that the message is to have. It gets this one, or the one behind all that the log and earlier
        /// ones of this kind have; so a store that may lose what it has written knows which positions were never in
        /// the log. Others ignore it.
        stamp: u64,
    },
    /// A user becomes a member; without effect if it is one. Answered [`GroupReply::Joined`] or
    /// [`GroupReply::Denied`].
    Join {
        /// Who.
        user: u64,
        /// What it is, if it was no member.
        member: Member,
        /// It was added over the HTTP interface: whether the group is open does not matter.
        added: bool,
        /// A group that is not there is made.
        create: bool,
    },
    /// A member leaves; without effect if it is none. Answered [`GroupReply::Left`].
    Leave {
        /// Who.
        user: u64,
    },
    /// A membership changes. Answered [`GroupReply::Member`] or [`GroupReply::Denied`].
    Change {
        /// Whose.
        user: u64,
        /// What changes.
        change: MemberChange,
    },
    /// The group is made, or its settings change. Answered [`GroupReply::Put`] or [`GroupReply::Denied`].
    Put {
        /// Its settings from now on.
        settings: GroupSettings,
    },
    /// The group ends: members and messages are gone. Answered [`GroupReply::Deleted`].
    Delete,
    /// Whoever asks is the home of the group in its view: what homes of earlier views would append or change is refused
    /// as [`Refusal::Stale`](crate::Refusal::Stale) from now on, where several nodes share the store. An append, a
    /// join and a leave claim too. Answered [`GroupReply::Claimed`].
    Claim,
    /// How the group is. Answered [`GroupReply::Info`] or [`GroupReply::Denied`].
    Get,
    /// Members in the order of their ids. Answered [`GroupReply::Members`] or [`GroupReply::Denied`].
    Members {
        /// Only ids above this one.
        after: u64,
        /// At most so many, and at most [`GroupAsk::MEMBERS_MAX`].
        limit: u32,
    },
    /// Messages after a position. Answered [`GroupReply::Page`] or [`GroupReply::Denied`].
    Read {
        /// The member who reads; none over the HTTP interface.
        user: Option<u64>,
        /// As in [`Request::Read`](crate::Request::Read).
        after: u64,
        /// As in [`Request::Read`](crate::Request::Read).
        since_ms: u64,
        /// As in [`Request::Read`](crate::Request::Read).
        limit: u32,
        /// As in [`Request::Read`](crate::Request::Read).
        bytes_max: u32,
    },
    /// A member has read up to a stamp. It never goes back, nor beyond the last message. Not answered; durable within a
    /// second or two.
    Mark {
        /// Who.
        user: u64,
        /// Up to where.
        stamp: u64,
    },
    /// How many members have read up to a stamp or further. Answered [`GroupReply::Reads`] or [`GroupReply::Denied`].
    Reads {
        /// The stamp.
        stamp: u64,
    },
    /// The groups of a user, whatever the group of the request. Answered [`GroupReply::Of`],
    /// or [`GroupReply::OfSome`].
    Of {
        /// Whose.
        user: u64,
    },
}

impl GroupAsk {
    /// Members of one page at most.
    pub const MEMBERS_MAX: u32 = 1_000;

    /// What it takes while it waits, besides a request.
    pub(crate) fn bytes(&self) -> usize {
        let payload = match self {
            GroupAsk::Append { record, .. } => record.payload.len(),
            _ => 0,
        };
        size_of::<GroupAsk>() + payload
    }
}

/// Why the group did not let it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupDenial {
    /// There is no such group.
    NoGroup,
    /// The user is no member.
    NotAMember,
    /// The member, or the group, is muted.
    Muted,
    /// Members are added over the HTTP interface only.
    NotOpen,
    /// The group has as many members as it may.
    Full,
    /// The user is in as many groups as one may.
    TooManyGroups,
    /// There are as many groups, or memberships, as the node may have.
    NodeFull,
    /// The group, or the member, has had its messages of this second. No store says so, but the home of the group.
    RateLimited,
}

/// A group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its settings.
    pub settings: GroupSettings,
    /// Members.
    pub members: u32,
    /// The last stamp of its log; 0 if there never was a message.
    pub last: u64,
}

/// A member, as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Who.
    pub user: u64,
    /// What it is.
    pub member: Member,
    /// Up to where it has read.
    pub read: u64,
}

/// A group, as one of its members sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Which.
    pub group: u64,
    /// What the user is in it.
    pub member: Member,
    /// The last stamp of its log; 0 if there never was a message.
    pub last: u64,
    /// Up to where the user has read.
    pub read: u64,
}

/// What came of a [`GroupAsk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupReply {
    /// The message is on disk.
    Stored {
        /// Its position.
        stamp: u64,
        /// It had been stored before, and this is where.
        duplicate: bool,
        /// How many members the group has.
        members: u32,
        /// The position of the message before it in the log; 0 of the first one, and of one that had been stored.
        before: u64,
    },
    /// The member may send.
    Admitted {
        /// How many members the group has.
        members: u32,
    },
    /// The group does not let it.
    Denied(GroupDenial),
    /// The user is a member.
    Joined {
        /// It was none before.
        news: bool,
        /// The last stamp of the group's log.
        last: u64,
    },
    /// The user is no member.
    Left {
        /// It was one before.
        news: bool,
        /// The last stamp of the group's log.
        last: u64,
    },
    /// How the membership is now.
    Member(Member),
    /// The settings are in force.
    Put {
        /// The group was made.
        created: bool,
        /// How it is now.
        info: GroupInfo,
    },
    /// There is no such group any more.
    Deleted {
        /// There was one.
        news: bool,
        /// How many members it had.
        members: u32,
    },
    /// Nobody else adds to the log of the group unnoticed.
    Claimed {
        /// The last stamp of the log; 0 if there never was a message.
        last: u64,
    },
    /// How the group is.
    Info(GroupInfo),
    /// Members.
    Members {
        /// In the order of their ids.
        members: Vec<MemberInfo>,
        /// Some come behind them.
        more: bool,
    },
    /// Messages.
    Page {
        /// The messages. Their position in the group is their stamp.
        page: Page,
        /// Where the next page begins.
        next: u64,
    },
    /// How many members have read up to a stamp.
    Reads {
        /// They.
        read: u32,
        /// All members.
        members: u32,
    },
    /// The groups of a user, in the order of their ids.
    Of(Vec<Membership>),
    /// Some of them, likewise: whether the user is in others cannot be said now. Only of a store of several servers.
    OfSome(Vec<Membership>),
}
