//! What a store is asked, and what it answers.

use crate::{GroupAsk, GroupReply, Page, Record};

/// Who asks: the number of a shard, or of another part of the node. Answers come back with it.
pub type Source = u16;

/// What a store is asked. `token` is the asker's own and comes back in the [`Answer`]; there is exactly one for each
/// request that has a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Store a message. Answered [`Reply::Stored`] or [`Reply::Refused`]. A message that was refused as
    /// [`Refusal::Unavailable`] is not in the log.
    Append {
        /// Whose log.
        user: u64,
        /// `record.stamp` is proposed; [`Reply::Stored`] tells the one it got.
        record: Record,
        /// The message may have been stored before: if one with its `from` and `id` is among the last
        /// [`Limits::retry_window`](crate::Limits::retry_window) of the log, and above this stamp, that one's stamp is
        /// the answer and nothing is stored. So it is, too, if it is above this stamp at the very one that `record`
        /// proposes, as a message is that was imported before. Senders may number their messages from 1 again after a
        /// while, so where the sender does not say that it sends again, what is older than that is not looked at. None
        /// for a message that was never stored; 0 for all of the window.
        retry: Option<u64>,
        /// Comes back in the answer.
        token: u64,
    },
    /// A device logs in: registers it unless it is known or `ephemeral`, and tells where it stands. Answered
    /// [`Reply::Opened`]; [`Reply::Refused`] if it has to be registered and cannot.
    Open {
        /// Whose device.
        user: u64,
        /// Its name, at most 64 bytes; longer ones are cut there.
        device: Box<str>,
        /// Do not register it.
        ephemeral: bool,
        /// Whoever asks is the home of the user in its view, and its [`Request::Claim`] comes first: where there is an
        /// answer the claim holds, unless that says [`Opened::unsure_claim`]. If a later home has claimed, it is
        /// answered all the same.
        claims: bool,
        /// Comes back in the answer.
        token: u64,
    },
    /// The messages after a position. Answered [`Reply::Page`] or, if the disk cannot be read, [`Reply::Refused`].
    Read {
        /// Whose log.
        user: u64,
        /// For which registered device; 0 for whoever asks. What the store knows the device to have is not given to it,
        /// and is no gap to it. Only for a store that several nodes share, where another one may have told it; others
        /// ignore it.
        device: u16,
        /// Its [`Opened::device_epoch`]: the number of a device that was forgotten is another one's. Where the store
        /// knows another epoch, this counts as read by whoever asks.
        device_epoch: u32,
        /// Only stamps above this one.
        after: u64,
        /// Only messages stamped at this time or later, milliseconds since 1970; 0 for all. The later of both counts.
        since_ms: u64,
        /// Messages at most; at least one is given if there is one, and at most
        /// [`Limits::page_max`](crate::Limits::page_max).
        limit: u32,
        /// Bytes of payload at most, apart from the first message's.
        bytes_max: u32,
        /// Comes back in the answer.
        token: u64,
    },
    /// A device has everything up to a stamp. Not answered: it is durable within 100 ms while the disk works. A cursor
    /// never goes back, nor beyond the last stamp.
    Cursor {
        /// Whose device.
        user: u64,
        /// Its number, of [`Opened::device`].
        device: u16,
        /// Its [`Opened::device_epoch`]: what comes late for a device that was forgotten is not the next one's that has
        /// got the number. Unknown devices and epochs are ignored, and counted as
        /// [`Stats::cursors_stale`](crate::Stats::cursors_stale). A LOGOUT in between does not matter.
        device_epoch: u32,
        /// What it has everything up to.
        stamp: u64,
    },
    /// A device is connected. Not answered. A device that has nothing to acknowledge and does not log in again would
    /// count as unseen however long it is connected, so whoever has the connection sends this several times within
    /// [`Limits::device_unseen_ms_max`](crate::Limits::device_unseen_ms_max). At most one in an hour is written down.
    Seen {
        /// Whose device.
        user: u64,
        /// Its number, of [`Opened::device`].
        device: u16,
        /// As in [`Request::Cursor`].
        device_epoch: u32,
    },
    /// Messages for a user up to this stamp were given up though a registered device has not got one of them: devices
    /// with less than that are told `truncated`. Not answered; durable like a cursor, and kept in memory while the disk
    /// does not work. Of no effect where no device is registered.
    Gap {
        /// Whose.
        user: u64,
        /// The position of the last that was given up. Later messages lie above it.
        stamp: u64,
    },
    /// The registered devices of a user. Answered [`Reply::Devices`].
    Devices {
        /// Whose.
        user: u64,
        /// Comes back in the answer.
        token: u64,
    },
    /// A device has logged out: what it was given to resume its session with is good no more, because it gets another
    /// [`Opened::device_epoch`]. Only for a store that several nodes share; others ignore it. Not answered.
    LogOut {
        /// Whose device.
        user: u64,
        /// Its name. Unknown ones are ignored.
        device: Box<str>,
        /// Another one for each LOGOUT of a device, and rising at each node: one that is asked for several times,
        /// because nobody knew whether it had been done, takes effect once.
        number: u64,
    },
    /// Whoever asks decides about users from now on as of this view of the cluster; all its requests that follow are
    /// of that view. Only for a store that several nodes share; others ignore it. Not answered.
    View {
        /// Numbers of views rise.
        epoch: u64,
    },
    /// Whoever asks is the home of a user in its view: what homes of earlier views would append is refused as
    /// [`Refusal::Stale`] from now on. An append claims too. Not answered, so it may be lost with a connection: who
    /// counts on it claims with [`Request::Open`] or [`Request::Inspect`]. Only for a store that several nodes share;
    /// others ignore it.
    Claim {
        /// Whose home.
        user: u64,
    },
    /// Forget a device. Answered [`Reply::Devices`] with those that are left, whether it was known or not.
    Forget {
        /// Whose.
        user: u64,
        /// Its number.
        device: u16,
        /// Its epoch: another device may have got the number.
        device_epoch: u32,
        /// Comes back in the answer.
        token: u64,
    },
    /// Delete all messages of a user and forget all devices. The next stamp is above all before. Answered
    /// [`Reply::Done`].
    Delete {
        /// Whose.
        user: u64,
        /// Comes back in the answer.
        token: u64,
    },
    /// How much a user has. Answered [`Reply::Inspected`].
    Inspect {
        /// Whose.
        user: u64,
        /// As in [`Request::Open`], but refused as [`Refusal::Unavailable`] where too few replicas have the claim.
        claims: bool,
        /// Comes back in the answer.
        token: u64,
    },
    /// About a group, its log or its members. Answered [`Reply::Group`] or [`Reply::Refused`].
    Group {
        /// The group; 0 where all groups of a user are asked for.
        group: u64,
        /// What is asked.
        ask: Box<GroupAsk>,
        /// Comes back in the answer; none if there is to be no answer.
        token: Option<u64>,
    },
}

impl Request {
    /// The user, or the group, asked about.
    pub fn user(&self) -> u64 {
        match *self {
            Request::Append { user, .. }
            | Request::Open { user, .. }
            | Request::Read { user, .. }
            | Request::Cursor { user, .. }
            | Request::Seen { user, .. }
            | Request::Gap { user, .. }
            | Request::Devices { user, .. }
            | Request::LogOut { user, .. }
            | Request::Claim { user }
            | Request::Forget { user, .. }
            | Request::Delete { user, .. }
            | Request::Inspect { user, .. } => user,
            // Of no user.
            Request::View { .. } => 0,
            Request::Group { group, .. } => group,
        }
    }

    /// The token that comes back in the answer; none if there is no answer.
    pub fn token(&self) -> Option<u64> {
        match *self {
            Request::Append { token, .. }
            | Request::Open { token, .. }
            | Request::Read { token, .. }
            | Request::Devices { token, .. }
            | Request::Forget { token, .. }
            | Request::Delete { token, .. }
            | Request::Inspect { token, .. } => Some(token),
            Request::Cursor { .. }
            | Request::Seen { .. }
            | Request::Gap { .. }
            | Request::LogOut { .. }
            | Request::View { .. }
            | Request::Claim { .. } => None,
            Request::Group { token, .. } => token,
        }
    }

    /// What the request takes while it waits, for the bound of the mailbox.
    pub fn bytes(&self) -> usize {
        let held = match self {
            Request::Append { record, .. } => record.payload.len(),
            Request::Open { device, .. } | Request::LogOut { device, .. } => device.len(),
            Request::Group { ask, .. } => ask.bytes(),
            _ => 0,
        };
        size_of::<Request>() + held
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the request.
    pub token: u64,
    /// What came of it.
    pub reply: Reply,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The message is on disk.
    Stored {
        /// Its position: the proposed one, or one above the last of the log.
        stamp: u64,
        /// It had been stored before, and this is where.
        duplicate: bool,
        /// The last position of the log before this request, 0 if there was none: one that the asker does not know of
        /// is another home's. Only of a store that several nodes share; others may say 0.
        before: u64,
    },
    /// Nothing was done.
    Refused(Refusal),
    /// Where a device stands.
    Opened(Opened),
    /// Messages.
    Page(Page),
    /// The registered devices.
    Devices(Vec<DeviceInfo>),
    /// How much a user has.
    Inspected(Inbox),
    /// It is done, and on disk.
    Done,
    /// What came of a request about a group.
    Group(Box<GroupReply>),
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The user has as many messages as one may.
    UserMessages,
    /// The user has as many bytes as one may.
    UserBytes,
    /// The store has reached its size.
    StoreFull,
    /// The payload is longer than any may be.
    TooLong,
    /// The disk is full, read-only, broken or too slow. Later it may go.
    Unavailable,
    /// Another node has become the user's home since. Only of a store that several nodes share.
    Stale,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Refusal; 6] = [
        Refusal::UserMessages,
        Refusal::UserBytes,
        Refusal::StoreFull,
        Refusal::TooLong,
        Refusal::Unavailable,
        Refusal::Stale,
    ];

    /// Its name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::UserMessages => "user_messages",
            Refusal::UserBytes => "user_bytes",
            Refusal::StoreFull => "store_full",
            Refusal::TooLong => "too_long",
            Refusal::Unavailable => "unavailable",
            Refusal::Stale => "stale_home",
        }
    }
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// It was registered before.
    pub known: bool,
    /// Its number among the user's devices; 0 if it is not registered.
    pub device: u16,
    /// Another one each time a name is registered, so that a token for a device that was forgotten does not fit the
    /// next of that name; 0 if it is not registered.
    pub device_epoch: u32,
    /// Another one for each store, so that a token of a store that was thrown away does not fit the next.
    pub store_epoch: u64,
    /// What the device has everything up to. A user's first device begins at the floor, further ones and those not
    /// registered at the end.
    pub cursor: u64,
    /// Messages up to this stamp may be gone.
    pub floor: u64,
    /// The last stamp of the log; 0 if there never was a message.
    pub last: u64,
    /// Messages after the cursor.
    pub pending: u64,
    /// Registered devices of the user, this one among them if it is.
    pub devices: u32,
    /// It was asked with `claims`, and too few replicas have that claim, which may be lost with its master. Whoever
    /// asked claims again, and knows the end of the log when that is answered.
    pub unsure_claim: bool,
}

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub device: u16,
    /// As [`Opened::device_epoch`].
    pub device_epoch: u32,
    /// Its name.
    pub name: Box<str>,
    /// What it has everything up to.
    pub cursor: u64,
    /// Its last sign of life, milliseconds since 1970, exact to an hour: a login, an ACK or [`Request::Seen`].
    pub seen_ms: u64,
}

/// How much a user has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inbox {
    /// Messages that wait.
    pub messages: u64,
    /// Their bytes, as in the limits.
    pub bytes: u64,
    /// Messages up to this stamp may be gone.
    pub floor: u64,
    /// The last stamp of the log; 0 if there never was a message.
    pub last: u64,
    /// Registered devices.
    pub devices: u32,
}
