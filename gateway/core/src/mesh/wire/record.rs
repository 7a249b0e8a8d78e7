//! The records of a batch. All integers are big-endian; every record begins with the same 8 bytes:
//!
//! ```text
//! offset  size  field
//! 0       4     length   of the whole record, these 4 bytes included
//! 4       1     kind
//! 5       1     hops     nodes it has crossed; attempts in a Transfer, whether there is a device in a KickUser, status
//! in a KickDone or
//!                        UserTold, bits in a UserWatch, flags in a Call or Answer
//! 6       2     aux      flags, outcome or code, by kind
//! ```
//!
//! What follows has a fixed length for each kind, except that payloads and texts end the record.

use super::MeshViolation;
use crate::broadcast::CLASSES_BYTES_MAX as BROADCAST_CLASSES_BYTES_MAX;
use crate::io::ConnId;
use crate::watch::CLASSES_BYTES_MAX;

/// Bytes every record begins with; also the length of the shortest record.
pub(crate) const RECORD_HEAD_BYTES: usize = 8;
/// Longest record: room for the longest client frame a sane node is configured for, and short enough to be read into
/// one buffer.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
/// Longest device and longest class of a session, as in the client protocol.
pub(crate) const TEXT_BYTES_MAX: usize = trunkline_proto::DEVICE_BYTES_MAX;
/// Longest set of shards: as many as there can be.
pub(crate) const SHARD_SET_BYTES_MAX: usize = (crate::limits::SHARDS_MAX as usize).div_ceil(8);
/// The first version of the protocol in which [`Record::SettledShards`] is understood.
pub(crate) const SETTLED_SHARDS_SINCE: u32 = 3;
/// The first version in which [`Record::SettledSet`] is understood.
pub(crate) const SETTLED_SET_SINCE: u32 = 10;
/// The first version in which the records about live rooms are understood.
pub(crate) const ROOMS_SINCE: u32 = 6;
/// The first version in which the records about users who are watched are understood.
pub(crate) const WATCH_SINCE: u32 = 7;

/// The first version in which the records about durable groups are understood, and those about live rooms may be about
/// such a group.
pub(crate) const GROUPS_SINCE: u32 = 8;
/// The first version in which the records about calls to services are understood.
pub(crate) const CALLS_SINCE: u32 = 9;
/// An Answer with a body up to this is never refused for want of room: it may be the last one that its caller gets.
const SHORT_ANSWER_BYTES: usize = 256;

/// The first version in which messages have a head (a device, an end), and the records about pushes to all sessions
/// are understood.
pub(crate) const PUSH_SINCE: u32 = 9;

/// Bits of `flags`. Unknown ones are ignored.
pub(crate) mod flags {
    /// The message asks for the recipient's ACK.
    pub(crate) const ACK: u8 = 0x01;
    /// Its sender has sent it before, or its former home may have stored it.
    pub(crate) const RETRY: u8 = 0x02;
    /// It is not to be stored.
    pub(crate) const NO_STORE: u8 = 0x04;
    /// Its sender has been told of it; it is for devices that have not acknowledged it.
    pub(crate) const TOLD: u8 = 0x08;
    /// Its payload begins with a [`MessageHead`](crate::head::MessageHead). Not before [`PUSH_SINCE`].
    ///
    /// [`PUSH_SINCE`]: super::PUSH_SINCE
    pub(crate) const HEADED: u8 = 0x10;
}

/// Bits of what a UserWatch says.
pub(crate) mod watch_bits {
    /// The home is to tell of the user from now on; without it, no more.
    pub(crate) const WATCH: u8 = 0x01;
    /// From this bit on, in two bits, what the watchers were told before: a [`Status`](crate::watch::Status).
    pub(crate) const KNOWN_SHIFT: u32 = 1;
}

/// Bits of a Call's flags beside those of the client's frame.
pub(crate) mod far_call_flags {
    /// Another worker may have had it.
    pub(crate) const AGAIN: u8 = 0x40;
    /// It does not wait there for a worker with room, for it may elsewhere.
    pub(crate) const NO_WAIT: u8 = 0x80;
}

/// Bits of an Answer's flags.
pub(crate) mod answer_flags {
    /// Another one follows.
    pub(crate) const MORE: u8 = 0x01;
    /// A worker had it and has not begun.
    pub(crate) const NOT_BEGUN: u8 = 0x02;
    /// No worker had it.
    pub(crate) const UNTRIED: u8 = 0x04;
}

/// What a UserTold says where it is no [`Status`](crate::watch::Status): the home has no room for the watch.
pub(crate) const WATCH_FULL: u8 = 3;

/// What became of a KickUser.
pub(crate) mod kick_status {
    /// All sessions were asked to end; those that are left have not been heard of since.
    pub(crate) const DONE: u8 = 0;
    /// The node does not know all sessions of the user now: another may be the home, or every node has to tell of its
    /// sessions first.
    pub(crate) const UNSETTLED: u8 = 1;
}

const MESSAGE: u8 = 1;
const FATE: u8 = 2;
const DELIVER: u8 = 3;
const ACK: u8 = 4;
const REGISTER: u8 = 5;
const REGISTERED: u8 = 6;
const REGISTER_REFUSED: u8 = 7;
const UNREGISTER: u8 = 8;
const KICK: u8 = 9;
const GONE: u8 = 10;
const SETTLED: u8 = 11;
const TRANSFER: u8 = 12;
const KICK_USER: u8 = 13;
const KICK_DONE: u8 = 14;
const MEMO: u8 = 15;
const SETTLED_SHARDS: u8 = 16;
const SETTLED_SET: u8 = 17;
const HELD: u8 = 40;
const BACKLOG_OVER: u8 = 41;
const GROUP_SEND: u8 = 50;
const GROUP_COPY: u8 = 51;
const GROUP_WATCH: u8 = 52;
const GROUP_HEAD: u8 = 53;
const GROUP_REFUSED: u8 = 54;
const USER_WATCH: u8 = 60;
const USER_TOLD: u8 = 61;
const GROUP_ASK: u8 = 55;
const GROUP_ANSWER: u8 = 56;
const GROUP_MEMBER: u8 = 57;
const CALL: u8 = 62;
const ANSWER: u8 = 63;
const CALL_CANCEL: u8 = 64;
const SERVICE_HERE: u8 = 65;
const BROADCAST_BEGIN: u8 = 70;
const BROADCAST_TOLD: u8 = 71;
const BROADCAST_STOP: u8 = 72;

// Bytes of the fixed part of each kind, head included.
pub(crate) const MESSAGE_BYTES: usize = 50;
const FATE_BYTES: usize = 50;
const DELIVER_BYTES: usize = 58;
const ACK_BYTES: usize = 48;
const REGISTER_BYTES: usize = 40;
const REGISTERED_BYTES: usize = 46;
const REGISTER_REFUSED_BYTES: usize = 26;
const UNREGISTER_BYTES: usize = 24;
const KICK_BYTES: usize = 34;
const GONE_BYTES: usize = 24;
const HELD_BYTES: usize = 32;
const BACKLOG_OVER_BYTES: usize = 50;
const SETTLED_BYTES: usize = 18;
const SETTLED_SHARDS_BYTES: usize = 16;
const SETTLED_SET_BYTES: usize = 16;
const TRANSFER_BYTES: usize = 58;
const KICK_USER_BYTES: usize = 25;
const KICK_DONE_BYTES: usize = 24;
const GROUP_SEND_BYTES: usize = 50;
const GROUP_COPY_BYTES: usize = 66;
const GROUP_WATCH_BYTES: usize = 48;
const GROUP_HEAD_BYTES: usize = 48;
const GROUP_REFUSED_BYTES: usize = 42;
const USER_WATCH_BYTES: usize = 16;
const USER_TOLD_BYTES: usize = 20;
const GROUP_ASK_BYTES: usize = 24;
const GROUP_ANSWER_BYTES: usize = 24;
const GROUP_MEMBER_BYTES: usize = 32;
const CALL_BYTES: usize = 44;
const ANSWER_BYTES: usize = 26;
const CALL_CANCEL_BYTES: usize = 26;
const SERVICE_HERE_BYTES: usize = 16;
const BROADCAST_BEGIN_BYTES: usize = 34;
const BROADCAST_TOLD_BYTES: usize = 30;
const BROADCAST_STOP_BYTES: usize = 14;

/// A connection of a node, as that node counts it. What a peer sends is looked up, never taken for an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(crate) shard: u16,
    pub(crate) conn: ConnId,
}

/// A session anywhere in the cluster, so that a message's fate reaches it and no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// The node and its incarnation, see [`node_key`](super::node_key).
    pub(crate) node: u64,
    pub(crate) seat: Seat,
}

/// The shards of a set, see [`Record::SettledShards`] and [`Record::SettledSet`].
pub(crate) fn shards_of(set: &[u8]) -> impl Iterator<Item = u16> {
    (0..).zip(set).flat_map(|(at, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| 8 * at + bit))
}

/// One entry of a batch. It borrows from the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A SEND on its way to the recipient's home.
    Message { origin: Address, from: u64, to: u64, id: u64, hops: u8, flags: u8, payload: &'a [u8] },
    /// The fate of a message, for its sender.
    Fate { origin: Address, id: u64, peer: u64, outcome: u16, stamp: u64 },
    /// From the home to the node that holds a session of the user. `flags` are those of the client's frame.
    Deliver { seat: Seat, user: u64, session: u64, id: u64, from: u64, stamp: u64, flags: u8, payload: &'a [u8] },
    /// A guest's ACK, for its home, with the session that acknowledges.
    /// `cumulative`: and for all that this session was given before.
    Ack { user: u64, id: u64, peer: u64, stamp: u64, session: u64, hops: u8, cumulative: bool },
    /// A guest's session, for its home. Session 0 asks for a new one. `wish` is how it reads its inbox, see
    /// [`Wish::packed`](crate::wish::Wish::packed).
    Register { user: u64, seat: Seat, session: u64, since_s: u32, device: &'a str, class: &'a str, hops: u8, wish: u16 },
    /// The home has the session; so many messages wait for the user.
    Registered { seat: Seat, user: u64, session: u64, since_s: u32, pending: u64 },
    /// The home does not take the session. `code` as in the client protocol.
    RegisterRefused { seat: Seat, user: u64, code: u16 },
    /// The session has ended.
    Unregister { user: u64, session: u64, hops: u8 },
    /// The home ends the session. `code` as in the client protocol.
    Kick { seat: Seat, user: u64, session: u64, code: u16 },
    /// A Deliver found no such session.
    Gone { user: u64, session: u64 },
    /// A Deliver found no room: the session gets that message from the log, when there is some.
    Held { user: u64, session: u64, stamp: u64 },
    /// The session has all that waited for it, as SYNC_OK tells it.
    BacklogOver { seat: Seat, user: u64, next_stamp: u64, truncated: bool, floor: u64, last: u64 },
    /// From shard `from` for shard `to`: all that moves between the two with the view of this digest has been sent.
    Settled { from: u16, to: u16, digest: u64 },
    /// The same for all shards of this set at once: those to which the link leads. Bit `n % 8` of byte `n / 8` stands
    /// for shard `n`.
    SettledShards { from: u16, digest: u64, shards: &'a [u8] },
    /// The same from all shards of this set at once, which share the link, for all shards of the node at its other end.
    SettledSet { digest: u64, from: &'a [u8] },
    /// A message that waits for its ACK moves to the user's new home.
    Transfer { user: u64, stamp: u64, origin: Address, from: u64, id: u64, attempts: u8, flags: u8, payload: &'a [u8] },
    /// An operator ends the sessions of a user, or that of one device; for the home, which answers shard `shard` with a
    /// KickDone of the same number.
    KickUser { user: u64, shard: u16, ask: u64, device: Option<&'a str> },
    /// What became of it: sessions ended, and those that may be left.
    KickDone { shard: u16, ask: u64, ended: u32, left: u32, status: u8 },
    /// From one control thread to the other, see `crate::membership`.
    Memo { body: &'a [u8] },
    /// A GROUP_SEND on its way to the home of a live room. `flags` are those of the client's frame.
    GroupSend { origin: Address, from: u64, group: u64, id: u64, hops: u8, flags: u8, payload: &'a [u8] },
    /// From the home of a live room: the copy for all sessions of a node that are in it. `manner` are the bits of
    /// [`Manner`](crate::groups::Manner); nodes that do not know them take them for 0.
    GroupCopy {
        group: u64,
        origin: Address,
        from: u64,
        id: u64,
        stamp: u64,
        number: u64,
        manner: u8,
        payload: &'a [u8],
    },
    /// For the home of a live room: the node wants copies from now on, or none. It has seen the room up to this number
    /// and stamp, counted under the home that this reign names.
    GroupWatch { group: u64, token: u64, reign: u64, number: u64, last: u64, watch: bool },
    /// From the home of a live room, in answer to a GroupWatch with that token: copies come, and so far the room is.
    GroupHead { group: u64, token: u64, reign: u64, number: u64, last: u64 },
    /// A message to a live room, or a join, was refused. `code` as in the client protocol.
    GroupRefused { origin: Address, group: u64, id: u64, code: u16 },
    /// For the home of a user: shard `from` wants to hear of the user from now on, or no more, see [`watch_bits`].
    UserWatch { user: u64, from: u16, bits: u8 },
    /// From the home of a user, for shard `to`: what is so of the user by now, or [`WATCH_FULL`]. `classes` as
    /// [`push_class`](crate::watch::push_class) makes them.
    UserTold { user: u64, to: u16, status: u8, since_s: u32, classes: &'a [u8] },
    /// Something is asked of the home of a durable group, for shard `shard`; see `crate::groups::ask`.
    GroupAsk { group: u64, shard: u16, ask: u64, body: &'a [u8] },
    /// Its answer.
    GroupAnswer { group: u64, shard: u16, ask: u64, body: &'a [u8] },
    /// From the home of a durable group: what has become of the membership of a user. Without a group and a user: the
    /// node has missed some of it.
    GroupMember { group: u64, user: u64, last: u64, change: u16 },
    /// A CALL for a worker of shard `to`, see [`FarCall`].
    Call { to: u16, seat: Seat, call: FarCall<'a> },
    /// An answer to the Call of that seat; `status` as in REPLY, `flags` see [`answer_flags`].
    Answer { seat: Seat, id: u64, status: u16, flags: u8, body: &'a [u8] },
    /// Nobody waits any more for the answer to the Call of that seat, at shard `to`.
    CallCancel { to: u16, seat: Seat, id: u64 },
    /// The workers of a service at shard `shard` of the sending node have this weight together; 0: there are none.
    ServiceHere { service: u16, shard: u16, weight: u32 },
    /// For shard `to`: push this to the sessions there, and tell shard `from` how far that is. `percent`, `group` and
    /// `classes` are a [`Condition`](crate::broadcast::Condition)'s.
    BroadcastBegin {
        to: u16,
        from: u16,
        token: u32,
        service: u16,
        id: u64,
        percent: u8,
        group: u64,
        classes: &'a [u8],
        payload: &'a [u8],
    },
    /// For shard `to`, which has asked for that: how far shard `from` is, and whether it has ended, see
    /// [`End`](crate::broadcast::End).
    BroadcastTold { to: u16, from: u16, token: u32, delivered: u64, overloaded: u64, end: u8 },
    /// For shard `to`: stop what shard `from` has asked for.
    BroadcastStop { to: u16, from: u16, token: u32 },
}

/// A [`Record::Message`] by itself. It is what links carry most of, and to put it into what could be any record, and
/// find out again and again which it is, takes longer than all else about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) origin: Address,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) id: u64,
    pub(crate) hops: u8,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

impl<'a> From<Message<'a>> for Record<'a> {
    #[inline(always)]
    fn from(message: Message<'a>) -> Self {
        let Message { origin, from, to, id, hops, flags, payload } = message;
        Record::Message { origin, from, to, id, hops, flags, payload }
    }
}

/// A [`Record::Deliver`] by itself, for the same reason: most of what goes to a node with guests are these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deliver<'a> {
    pub(crate) seat: Seat,
    pub(crate) user: u64,
    pub(crate) session: u64,
    pub(crate) id: u64,
    pub(crate) from: u64,
    pub(crate) stamp: u64,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

impl<'a> From<Deliver<'a>> for Record<'a> {
    #[inline(always)]
    fn from(copy: Deliver<'a>) -> Self {
        let Deliver { seat, user, session, id, from, stamp, flags, payload } = copy;
        Record::Deliver { seat, user, session, id, from, stamp, flags, payload }
    }
}

/// What is queued on a link: any record, or one of which it is known which it is.
pub(crate) trait Entry {
    /// It as a record.
    fn record(&self) -> Record<'_>;
    /// See [`Record::encoded_len`].
    fn encoded_len(&self) -> usize;
    /// See [`Record::fits`].
    fn fits(&self) -> bool;
    /// See [`Record::is_control`].
    fn is_control(&self) -> bool;
    /// Appends it.
    ///
    /// # Panics
    /// If it does not fit.
    fn encode(&self, out: &mut Vec<u8>);
}

impl Entry for Record<'_> {
    #[inline]
    fn record(&self) -> Record<'_> {
        *self
    }
    #[inline]
    fn encoded_len(&self) -> usize {
        Record::encoded_len(self)
    }
    #[inline]
    fn fits(&self) -> bool {
        Record::fits(self)
    }
    #[inline]
    fn is_control(&self) -> bool {
        Record::is_control(self)
    }
    #[inline]
    fn encode(&self, out: &mut Vec<u8>) {
        Record::encode(self, out);
    }
}

impl Entry for Message<'_> {
    #[inline(always)]
    fn record(&self) -> Record<'_> {
        (*self).into()
    }
    #[inline(always)]
    fn encoded_len(&self) -> usize {
        MESSAGE_BYTES + self.payload.len()
    }
    #[inline(always)]
    fn fits(&self) -> bool {
        self.encoded_len() <= RECORD_BYTES_MAX
    }
    #[inline(always)]
    fn is_control(&self) -> bool {
        false
    }
    #[inline(always)]
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.fits(), "a record of {} bytes cannot be encoded", self.encoded_len());
        let Message { origin, from, to, id, hops, flags, payload } = *self;
        let bytes = put_head::<MESSAGE_BYTES>(out, self.encoded_len(), MESSAGE, hops, flags.into());
        put_address(bytes, 8, origin);
        put_words(bytes, 26, [from, to, id]);
        out.extend_from_slice(payload);
    }
}

impl Entry for Deliver<'_> {
    #[inline(always)]
    fn record(&self) -> Record<'_> {
        (*self).into()
    }
    #[inline(always)]
    fn encoded_len(&self) -> usize {
        DELIVER_BYTES + self.payload.len()
    }
    #[inline(always)]
    fn fits(&self) -> bool {
        self.encoded_len() <= RECORD_BYTES_MAX
    }
    #[inline(always)]
    fn is_control(&self) -> bool {
        false
    }
    #[inline(always)]
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.fits(), "a record of {} bytes cannot be encoded", self.encoded_len());
        let Deliver { seat, user, session, id, from, stamp, flags, payload } = *self;
        let bytes = put_head::<DELIVER_BYTES>(out, self.encoded_len(), DELIVER, 0, flags.into());
        put_seat(bytes, 8, seat);
        put_words(bytes, 18, [user, session, id, from, stamp]);
        out.extend_from_slice(payload);
    }
}

/// What a [`Record::Call`] carries. `flags` are those of the client's frame and [`far_call_flags`], `id` is its id; so
/// much time is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FarCall<'a> {
    pub(crate) service: u16,
    pub(crate) flags: u8,
    pub(crate) id: u64,
    pub(crate) user: u64,
    pub(crate) timeout_ms: u32,
    pub(crate) head: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// The change of a [`Record::GroupMember`].
pub(crate) mod member_change {
    /// The user is no member any more.
    pub(crate) const LEFT: u16 = 0;
    /// The user is a member.
    pub(crate) const JOINED: u16 = 1;
    /// There is no such group any more.
    pub(crate) const ENDED: u16 = 2;
    /// What the store says of all users counts; some changes could not be told.
    pub(crate) const MISSED: u16 = 3;
}

impl<'a> Record<'a> {
    /// Bytes the record takes in a batch.
    #[inline]
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Record::Message { payload, .. } => MESSAGE_BYTES + payload.len(),
            Record::Fate { .. } => FATE_BYTES,
            Record::Deliver { payload, .. } => DELIVER_BYTES + payload.len(),
            Record::Ack { .. } => ACK_BYTES,
            Record::Register { device, class, .. } => REGISTER_BYTES + device.len() + class.len(),
            Record::Registered { .. } => REGISTERED_BYTES,
            Record::RegisterRefused { .. } => REGISTER_REFUSED_BYTES,
            Record::Unregister { .. } => UNREGISTER_BYTES,
            Record::Kick { .. } => KICK_BYTES,
            Record::Gone { .. } => GONE_BYTES,
            Record::Held { .. } => HELD_BYTES,
            Record::BacklogOver { .. } => BACKLOG_OVER_BYTES,
            Record::Settled { .. } => SETTLED_BYTES,
            Record::SettledShards { shards, .. } => SETTLED_SHARDS_BYTES + shards.len(),
            Record::SettledSet { from, .. } => SETTLED_SET_BYTES + from.len(),
            Record::Transfer { payload, .. } => TRANSFER_BYTES + payload.len(),
            Record::KickUser { device, .. } => KICK_USER_BYTES + device.map_or(0, str::len),
            Record::KickDone { .. } => KICK_DONE_BYTES,
            Record::Memo { body } => RECORD_HEAD_BYTES + body.len(),
            Record::GroupSend { payload, .. } => GROUP_SEND_BYTES + payload.len(),
            Record::GroupCopy { payload, .. } => GROUP_COPY_BYTES + payload.len(),
            Record::GroupWatch { .. } => GROUP_WATCH_BYTES,
            Record::GroupHead { .. } => GROUP_HEAD_BYTES,
            Record::GroupRefused { .. } => GROUP_REFUSED_BYTES,
            Record::UserWatch { .. } => USER_WATCH_BYTES,
            Record::UserTold { classes, .. } => USER_TOLD_BYTES + classes.len(),
            Record::GroupAsk { body, .. } => GROUP_ASK_BYTES + body.len(),
            Record::GroupAnswer { body, .. } => GROUP_ANSWER_BYTES + body.len(),
            Record::GroupMember { .. } => GROUP_MEMBER_BYTES,
            Record::Call { call, .. } => CALL_BYTES + call.head.len() + call.body.len(),
            Record::Answer { body, .. } => ANSWER_BYTES + body.len(),
            Record::CallCancel { .. } => CALL_CANCEL_BYTES,
            Record::ServiceHere { .. } => SERVICE_HERE_BYTES,
            Record::BroadcastBegin { classes, payload, .. } => BROADCAST_BEGIN_BYTES + classes.len() + payload.len(),
            Record::BroadcastTold { .. } => BROADCAST_TOLD_BYTES,
            Record::BroadcastStop { .. } => BROADCAST_STOP_BYTES,
        }
    }

    /// Whether the record may be encoded: no peer takes a longer one.
    #[inline]
    pub(crate) fn fits(&self) -> bool {
        let texts = match self {
            Record::Register { device, class, .. } => device.len().max(class.len()),
            Record::KickUser { device, .. } => device.map_or(0, str::len),
            _ => 0,
        };
        if let Record::UserTold { classes, .. } = self {
            return classes.len() <= CLASSES_BYTES_MAX;
        }
        if let Record::BroadcastBegin { classes, .. } = self
            && classes.len() > BROADCAST_CLASSES_BYTES_MAX
        {
            return false;
        }
        let set = match self {
            Record::SettledShards { shards: set, .. } | Record::SettledSet { from: set, .. } => set.len(),
            _ => 0,
        };
        texts <= TEXT_BYTES_MAX && set <= SHARD_SET_BYTES_MAX && self.encoded_len() <= RECORD_BYTES_MAX
    }

    /// Whether the record carries no message: an answer, or an entry of the directory. These pass when messages are
    /// refused.
    #[inline]
    pub(crate) fn is_control(&self) -> bool {
        if let Record::Answer { body, .. } = self {
            return body.len() <= SHORT_ANSWER_BYTES;
        }
        !matches!(
            self,
            Record::Message { .. }
                | Record::Deliver { .. }
                | Record::Transfer { .. }
                | Record::GroupSend { .. }
                | Record::GroupCopy { .. }
                | Record::GroupAsk { .. }
                | Record::Call { .. }
                | Record::BroadcastBegin { .. }
        )
    }

    /// Whether the record is about a group or a live room.
    pub(crate) fn is_of_room(&self) -> bool {
        matches!(
            self,
            Record::GroupSend { .. }
                | Record::GroupCopy { .. }
                | Record::GroupWatch { .. }
                | Record::GroupHead { .. }
                | Record::GroupRefused { .. }
                | Record::GroupAsk { .. }
                | Record::GroupAnswer { .. }
                | Record::GroupMember { .. }
        )
    }

    /// Appends the record.
    ///
    /// # Panics
    /// If it does not fit, see [`Record::fits`].
    #[inline]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.fits(), "a record of {} bytes cannot be encoded", self.encoded_len());
        let len = self.encoded_len();
        match *self {
            Record::Message { origin, from, to, id, hops, flags, payload } => {
                Message { origin, from, to, id, hops, flags, payload }.encode(out);
            }
            Record::Fate { origin, id, peer, outcome, stamp } => {
                let mut bytes = head::<FATE_BYTES>(len, FATE, 0, outcome);
                put_address(&mut bytes, 8, origin);
                put_words(&mut bytes, 26, [id, peer, stamp]);
                out.extend_from_slice(&bytes);
            }
            Record::Deliver { seat, user, session, id, from, stamp, flags, payload } => {
                Deliver { seat, user, session, id, from, stamp, flags, payload }.encode(out);
            }
            Record::Ack { user, id, peer, stamp, session, hops, cumulative } => {
                let mut bytes = head::<ACK_BYTES>(len, ACK, hops, cumulative.into());
                put_words(&mut bytes, 8, [user, id, peer, stamp, session]);
                out.extend_from_slice(&bytes);
            }
            Record::Register { user, seat, session, since_s, device, class, hops, wish } => {
                let mut bytes = head::<REGISTER_BYTES>(len, REGISTER, hops, wish);
                put_words(&mut bytes, 8, [user, session]);
                put_seat(&mut bytes, 24, seat);
                bytes[34..38].copy_from_slice(&since_s.to_be_bytes());
                bytes[38] = device.len() as u8;
                bytes[39] = class.len() as u8;
                out.reserve(len);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(device.as_bytes());
                out.extend_from_slice(class.as_bytes());
            }
            Record::Registered { seat, user, session, since_s, pending } => {
                let mut bytes = head::<REGISTERED_BYTES>(len, REGISTERED, 0, 0);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [user, session, pending]);
                bytes[42..46].copy_from_slice(&since_s.to_be_bytes());
                out.extend_from_slice(&bytes);
            }
            Record::RegisterRefused { seat, user, code } => {
                let mut bytes = head::<REGISTER_REFUSED_BYTES>(len, REGISTER_REFUSED, 0, code);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [user]);
                out.extend_from_slice(&bytes);
            }
            Record::Unregister { user, session, hops } => {
                let mut bytes = head::<UNREGISTER_BYTES>(len, UNREGISTER, hops, 0);
                put_words(&mut bytes, 8, [user, session]);
                out.extend_from_slice(&bytes);
            }
            Record::Kick { seat, user, session, code } => {
                let mut bytes = head::<KICK_BYTES>(len, KICK, 0, code);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [user, session]);
                out.extend_from_slice(&bytes);
            }
            Record::Gone { user, session } => {
                let mut bytes = head::<GONE_BYTES>(len, GONE, 0, 0);
                put_words(&mut bytes, 8, [user, session]);
                out.extend_from_slice(&bytes);
            }
            Record::Held { user, session, stamp } => {
                let mut bytes = head::<HELD_BYTES>(len, HELD, 0, 0);
                put_words(&mut bytes, 8, [user, session, stamp]);
                out.extend_from_slice(&bytes);
            }
            Record::BacklogOver { seat, user, next_stamp, truncated, floor, last } => {
                let mut bytes = head::<BACKLOG_OVER_BYTES>(len, BACKLOG_OVER, 0, truncated.into());
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [user, next_stamp, floor, last]);
                out.extend_from_slice(&bytes);
            }
            Record::Settled { from, to, digest } => {
                let mut bytes = head::<SETTLED_BYTES>(len, SETTLED, 0, to);
                put_words(&mut bytes, 8, [digest]);
                bytes[16..18].copy_from_slice(&from.to_be_bytes());
                out.extend_from_slice(&bytes);
            }
            Record::SettledShards { from, digest, shards } => {
                let mut bytes = head::<SETTLED_SHARDS_BYTES>(len, SETTLED_SHARDS, 0, from);
                put_words(&mut bytes, 8, [digest]);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(shards);
            }
            Record::SettledSet { digest, from } => {
                let mut bytes = head::<SETTLED_SET_BYTES>(len, SETTLED_SET, 0, 0);
                put_words(&mut bytes, 8, [digest]);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(from);
            }
            Record::Transfer { user, stamp, origin, from, id, attempts, flags, payload } => {
                let mut bytes = head::<TRANSFER_BYTES>(len, TRANSFER, attempts, flags.into());
                put_words(&mut bytes, 8, [user, stamp]);
                put_address(&mut bytes, 24, origin);
                put_words(&mut bytes, 42, [from, id]);
                out.reserve(len);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(payload);
            }
            Record::KickUser { user, shard, ask, device } => {
                let mut bytes = head::<KICK_USER_BYTES>(len, KICK_USER, u8::from(device.is_some()), shard);
                put_words(&mut bytes, 8, [user, ask]);
                bytes[24] = device.map_or(0, str::len) as u8;
                out.extend_from_slice(&bytes);
                out.extend_from_slice(device.unwrap_or_default().as_bytes());
            }
            Record::KickDone { shard, ask, ended, left, status } => {
                let mut bytes = head::<KICK_DONE_BYTES>(len, KICK_DONE, status, shard);
                put_words(&mut bytes, 8, [ask, u64::from(ended) << 32 | u64::from(left)]);
                out.extend_from_slice(&bytes);
            }
            Record::Memo { body } => {
                out.extend_from_slice(&head::<RECORD_HEAD_BYTES>(len, MEMO, 0, 0));
                out.extend_from_slice(body);
            }
            Record::GroupSend { origin, from, group, id, hops, flags, payload } => {
                let mut bytes = head::<GROUP_SEND_BYTES>(len, GROUP_SEND, hops, flags.into());
                put_address(&mut bytes, 8, origin);
                put_words(&mut bytes, 26, [from, group, id]);
                out.reserve(len);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(payload);
            }
            Record::GroupCopy { group, origin, from, id, stamp, number, manner, payload } => {
                let mut bytes = head::<GROUP_COPY_BYTES>(len, GROUP_COPY, manner, 0);
                put_address(&mut bytes, 8, origin);
                put_words(&mut bytes, 26, [group, from, id, stamp, number]);
                out.reserve(len);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(payload);
            }
            Record::GroupWatch { group, token, reign, number, last, watch } => {
                let mut bytes = head::<GROUP_WATCH_BYTES>(len, GROUP_WATCH, 0, watch.into());
                put_words(&mut bytes, 8, [group, token, reign, number, last]);
                out.extend_from_slice(&bytes);
            }
            Record::GroupHead { group, token, reign, number, last } => {
                let mut bytes = head::<GROUP_HEAD_BYTES>(len, GROUP_HEAD, 0, 0);
                put_words(&mut bytes, 8, [group, token, reign, number, last]);
                out.extend_from_slice(&bytes);
            }
            Record::GroupRefused { origin, group, id, code } => {
                let mut bytes = head::<GROUP_REFUSED_BYTES>(len, GROUP_REFUSED, 0, code);
                put_address(&mut bytes, 8, origin);
                put_words(&mut bytes, 26, [group, id]);
                out.extend_from_slice(&bytes);
            }
            Record::UserWatch { user, from, bits } => {
                let mut bytes = head::<USER_WATCH_BYTES>(len, USER_WATCH, bits, from);
                put_words(&mut bytes, 8, [user]);
                out.extend_from_slice(&bytes);
            }
            Record::UserTold { user, to, status, since_s, classes } => {
                let mut bytes = head::<USER_TOLD_BYTES>(len, USER_TOLD, status, to);
                put_words(&mut bytes, 8, [user]);
                bytes[16..20].copy_from_slice(&since_s.to_be_bytes());
                out.extend_from_slice(&bytes);
                out.extend_from_slice(classes);
            }
            Record::GroupAsk { group, shard, ask, body } => {
                let mut bytes = head::<GROUP_ASK_BYTES>(len, GROUP_ASK, 0, shard);
                put_words(&mut bytes, 8, [group, ask]);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(body);
            }
            Record::GroupAnswer { group, shard, ask, body } => {
                let mut bytes = head::<GROUP_ANSWER_BYTES>(len, GROUP_ANSWER, 0, shard);
                put_words(&mut bytes, 8, [group, ask]);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(body);
            }
            Record::GroupMember { group, user, last, change } => {
                let mut bytes = head::<GROUP_MEMBER_BYTES>(len, GROUP_MEMBER, 0, change);
                put_words(&mut bytes, 8, [group, user, last]);
                out.extend_from_slice(&bytes);
            }
            Record::Call { to, seat, call } => {
                let mut bytes = head::<CALL_BYTES>(len, CALL, call.flags, call.service);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [call.id, call.user]);
                bytes[34..38].copy_from_slice(&call.timeout_ms.to_be_bytes());
                bytes[38..42].copy_from_slice(&(call.head.len() as u32).to_be_bytes());
                bytes[42..44].copy_from_slice(&to.to_be_bytes());
                out.reserve(len);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(call.head);
                out.extend_from_slice(call.body);
            }
            Record::Answer { seat, id, status, flags, body } => {
                let mut bytes = head::<ANSWER_BYTES>(len, ANSWER, flags, status);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [id]);
                out.extend_from_slice(&bytes);
                out.extend_from_slice(body);
            }
            Record::CallCancel { to, seat, id } => {
                let mut bytes = head::<CALL_CANCEL_BYTES>(len, CALL_CANCEL, 0, to);
                put_seat(&mut bytes, 8, seat);
                put_words(&mut bytes, 18, [id]);
                out.extend_from_slice(&bytes);
            }
            Record::ServiceHere { service, shard, weight } => {
                let mut bytes = head::<SERVICE_HERE_BYTES>(len, SERVICE_HERE, 0, service);
                put_words(&mut bytes, 8, [u64::from(shard) << 32 | u64::from(weight)]);
                out.extend_from_slice(&bytes);
            }
            Record::BroadcastBegin { to, from, token, service, id, percent, group, classes, payload } => {
                let mut bytes = head::<BROADCAST_BEGIN_BYTES>(len, BROADCAST_BEGIN, percent, to);
                bytes[8..12].copy_from_slice(&token.to_be_bytes());
                bytes[12..14].copy_from_slice(&from.to_be_bytes());
                bytes[14..16].copy_from_slice(&service.to_be_bytes());
                put_words(&mut bytes, 16, [id, group]);
                bytes[32..34].copy_from_slice(&(classes.len() as u16).to_be_bytes());
                out.extend_from_slice(&bytes);
                out.extend_from_slice(classes);
                out.extend_from_slice(payload);
            }
            Record::BroadcastTold { to, from, token, delivered, overloaded, end } => {
                let mut bytes = head::<BROADCAST_TOLD_BYTES>(len, BROADCAST_TOLD, end, to);
                bytes[8..12].copy_from_slice(&token.to_be_bytes());
                bytes[12..14].copy_from_slice(&from.to_be_bytes());
                put_words(&mut bytes, 14, [delivered, overloaded]);
                out.extend_from_slice(&bytes);
            }
            Record::BroadcastStop { to, from, token } => {
                let mut bytes = head::<BROADCAST_STOP_BYTES>(len, BROADCAST_STOP, 0, to);
                bytes[8..12].copy_from_slice(&token.to_be_bytes());
                bytes[12..14].copy_from_slice(&from.to_be_bytes());
                out.extend_from_slice(&bytes);
            }
        }
    }

    /// Reads one whole record, of exactly the length its first 4 bytes tell. `None` for a kind this version does not
    /// know.
    #[inline]
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Option<Record<'a>>, MeshViolation> {
        let Some(&[_, _, _, _, kind, hops, aux_high, aux_low]) = bytes.first_chunk() else {
            return Err(MeshViolation::RecordTooShort { length: bytes.len() as u32 });
        };
        let aux = u16::from_be_bytes([aux_high, aux_low]);
        let flags = aux_low;
        let record = match kind {
            MESSAGE => {
                let (at, payload) = open::<MESSAGE_BYTES>("Message", bytes)?;
                Record::from(message(at, payload))
            }
            FATE => {
                let at = exactly::<FATE_BYTES>("Fate", bytes)?;
                let [id, peer, stamp] = words(at, 26);
                Record::Fate { origin: address(at, 8), id, peer, outcome: aux, stamp }
            }
            DELIVER => {
                let (at, payload) = open::<DELIVER_BYTES>("Deliver", bytes)?;
                Record::from(deliver(at, payload))
            }
            ACK => {
                let [user, id, peer, stamp, session] = words(exactly::<ACK_BYTES>("Ack", bytes)?, 8);
                Record::Ack { user, id, peer, stamp, session, hops, cumulative: flags & 1 == 1 }
            }
            REGISTER => {
                let (at, texts) = open::<REGISTER_BYTES>("Register", bytes)?;
                let [user, session] = words(at, 8);
                let (device_len, class_len) = (usize::from(at[38]), usize::from(at[39]));
                if device_len > TEXT_BYTES_MAX || class_len > TEXT_BYTES_MAX {
                    return Err(MeshViolation::TextTooLong { length: device_len.max(class_len) as u32 });
                }
                if device_len + class_len != texts.len() {
                    return Err(MeshViolation::RecordLength { record: "Register", length: bytes.len() as u32 });
                }
                let (device, class) = texts.split_at(device_len);
                let (device, class) = (text("device", device)?, text("class", class)?);
                let (seat, since_s) = (seat(at, 24), half(at, 34));
                Record::Register { user, seat, session, since_s, device, class, hops, wish: aux }
            }
            REGISTERED => {
                let at = exactly::<REGISTERED_BYTES>("Registered", bytes)?;
                let [user, session, pending] = words(at, 18);
                Record::Registered { seat: seat(at, 8), user, session, since_s: half(at, 42), pending }
            }
            REGISTER_REFUSED => {
                let at = exactly::<REGISTER_REFUSED_BYTES>("RegisterRefused", bytes)?;
                let [user] = words(at, 18);
                Record::RegisterRefused { seat: seat(at, 8), user, code: aux }
            }
            UNREGISTER => {
                let [user, session] = words(exactly::<UNREGISTER_BYTES>("Unregister", bytes)?, 8);
                Record::Unregister { user, session, hops }
            }
            KICK => {
                let at = exactly::<KICK_BYTES>("Kick", bytes)?;
                let [user, session] = words(at, 18);
                Record::Kick { seat: seat(at, 8), user, session, code: aux }
            }
            GONE => {
                let [user, session] = words(exactly::<GONE_BYTES>("Gone", bytes)?, 8);
                Record::Gone { user, session }
            }
            HELD => {
                let [user, session, stamp] = words(exactly::<HELD_BYTES>("Held", bytes)?, 8);
                Record::Held { user, session, stamp }
            }
            BACKLOG_OVER => {
                let at = exactly::<BACKLOG_OVER_BYTES>("BacklogOver", bytes)?;
                let [user, next_stamp, floor, last] = words(at, 18);
                let truncated = flags & 1 == 1;
                Record::BacklogOver { seat: seat(at, 8), user, next_stamp, truncated, floor, last }
            }
            SETTLED_SHARDS => {
                let (at, shards) = open::<SETTLED_SHARDS_BYTES>("SettledShards", bytes)?;
                if shards.len() > SHARD_SET_BYTES_MAX {
                    return Err(MeshViolation::RecordLength { record: "SettledShards", length: bytes.len() as u32 });
                }
                let [digest] = words(at, 8);
                Record::SettledShards { from: aux, digest, shards }
            }
            SETTLED_SET => {
                let (at, from) = open::<SETTLED_SET_BYTES>("SettledSet", bytes)?;
                if from.len() > SHARD_SET_BYTES_MAX {
                    return Err(MeshViolation::RecordLength { record: "SettledSet", length: bytes.len() as u32 });
                }
                let [digest] = words(at, 8);
                Record::SettledSet { digest, from }
            }
            SETTLED => {
                let at = exactly::<SETTLED_BYTES>("Settled", bytes)?;
                let [digest] = words(at, 8);
                Record::Settled { from: u16::from_be_bytes([at[16], at[17]]), to: aux, digest }
            }
            TRANSFER => {
                let (at, payload) = open::<TRANSFER_BYTES>("Transfer", bytes)?;
                let [user, stamp] = words(at, 8);
                let [from, id] = words(at, 42);
                Record::Transfer { user, stamp, origin: address(at, 24), from, id, attempts: hops, flags, payload }
            }
            KICK_USER => {
                let (at, name) = open::<KICK_USER_BYTES>("KickUser", bytes)?;
                let [user, ask] = words(at, 8);
                let device_len = usize::from(at[24]);
                if device_len > TEXT_BYTES_MAX {
                    return Err(MeshViolation::TextTooLong { length: device_len as u32 });
                }
                // Without a device there is no name.
                if device_len != name.len() || (hops == 0 && device_len > 0) {
                    return Err(MeshViolation::RecordLength { record: "KickUser", length: bytes.len() as u32 });
                }
                let device = if hops == 0 { None } else { Some(text("device", name)?) };
                Record::KickUser { user, shard: aux, ask, device }
            }
            KICK_DONE => {
                let [ask, counts] = words(exactly::<KICK_DONE_BYTES>("KickDone", bytes)?, 8);
                let (ended, left) = ((counts >> 32) as u32, counts as u32);
                Record::KickDone { shard: aux, ask, ended, left, status: hops }
            }
            MEMO => Record::Memo { body: &bytes[RECORD_HEAD_BYTES..] },
            GROUP_SEND => {
                let (at, payload) = open::<GROUP_SEND_BYTES>("GroupSend", bytes)?;
                let [from, group, id] = words(at, 26);
                Record::GroupSend { origin: address(at, 8), from, group, id, hops, flags, payload }
            }
            GROUP_COPY => {
                let (at, payload) = open::<GROUP_COPY_BYTES>("GroupCopy", bytes)?;
                let [group, from, id, stamp, number] = words(at, 26);
                Record::GroupCopy { group, origin: address(at, 8), from, id, stamp, number, manner: hops, payload }
            }
            GROUP_WATCH => {
                let [group, token, reign, number, last] = words(exactly::<GROUP_WATCH_BYTES>("GroupWatch", bytes)?, 8);
                Record::GroupWatch { group, token, reign, number, last, watch: flags & 1 == 1 }
            }
            GROUP_HEAD => {
                let [group, token, reign, number, last] = words(exactly::<GROUP_HEAD_BYTES>("GroupHead", bytes)?, 8);
                Record::GroupHead { group, token, reign, number, last }
            }
            GROUP_REFUSED => {
                let at = exactly::<GROUP_REFUSED_BYTES>("GroupRefused", bytes)?;
                let [group, id] = words(at, 26);
                Record::GroupRefused { origin: address(at, 8), group, id, code: aux }
            }
            USER_WATCH => {
                let [user] = words(exactly::<USER_WATCH_BYTES>("UserWatch", bytes)?, 8);
                Record::UserWatch { user, from: aux, bits: hops }
            }
            USER_TOLD => {
                let (at, classes) = open::<USER_TOLD_BYTES>("UserTold", bytes)?;
                if classes.len() > CLASSES_BYTES_MAX {
                    return Err(MeshViolation::RecordLength { record: "UserTold", length: bytes.len() as u32 });
                }
                let [user] = words(at, 8);
                Record::UserTold { user, to: aux, status: hops, since_s: half(at, 16), classes }
            }
            GROUP_ASK => {
                let (at, body) = open::<GROUP_ASK_BYTES>("GroupAsk", bytes)?;
                let [group, ask] = words(at, 8);
                Record::GroupAsk { group, shard: aux, ask, body }
            }
            GROUP_ANSWER => {
                let (at, body) = open::<GROUP_ANSWER_BYTES>("GroupAnswer", bytes)?;
                let [group, ask] = words(at, 8);
                Record::GroupAnswer { group, shard: aux, ask, body }
            }
            GROUP_MEMBER => {
                let [group, user, last] = words(exactly::<GROUP_MEMBER_BYTES>("GroupMember", bytes)?, 8);
                Record::GroupMember { group, user, last, change: aux }
            }
            CALL => {
                let (at, rest) = open::<CALL_BYTES>("Call", bytes)?;
                let [id, user] = words(at, 18);
                let Some((head, body)) = rest.split_at_checked(half(at, 38) as usize) else {
                    return Err(MeshViolation::RecordLength { record: "Call", length: bytes.len() as u32 });
                };
                let to = u16::from_be_bytes([at[42], at[43]]);
                let call = FarCall { service: aux, flags: hops, id, user, timeout_ms: half(at, 34), head, body };
                Record::Call { to, seat: seat(at, 8), call }
            }
            ANSWER => {
                let (at, body) = open::<ANSWER_BYTES>("Answer", bytes)?;
                let [id] = words(at, 18);
                Record::Answer { seat: seat(at, 8), id, status: aux, flags: hops, body }
            }
            CALL_CANCEL => {
                let at = exactly::<CALL_CANCEL_BYTES>("CallCancel", bytes)?;
                let [id] = words(at, 18);
                Record::CallCancel { to: aux, seat: seat(at, 8), id }
            }
            SERVICE_HERE => {
                let [word] = words(exactly::<SERVICE_HERE_BYTES>("ServiceHere", bytes)?, 8);
                let (shard, weight) = ((word >> 32) as u16, word as u32);
                Record::ServiceHere { service: aux, shard, weight }
            }
            BROADCAST_BEGIN => {
                let (at, rest) = open::<BROADCAST_BEGIN_BYTES>("BroadcastBegin", bytes)?;
                let wrong = MeshViolation::RecordLength { record: "BroadcastBegin", length: bytes.len() as u32 };
                let classes_len = usize::from(short(at, 32));
                if classes_len > BROADCAST_CLASSES_BYTES_MAX {
                    return Err(wrong);
                }
                let (classes, payload) = rest.split_at_checked(classes_len).ok_or(wrong)?;
                let (token, from, service) = (half(at, 8), short(at, 12), short(at, 14));
                let [id, group] = words(at, 16);
                Record::BroadcastBegin { to: aux, from, token, service, id, percent: hops, group, classes, payload }
            }
            BROADCAST_TOLD => {
                let at = exactly::<BROADCAST_TOLD_BYTES>("BroadcastTold", bytes)?;
                let [delivered, overloaded] = words(at, 14);
                let (token, from) = (half(at, 8), short(at, 12));
                Record::BroadcastTold { to: aux, from, token, delivered, overloaded, end: hops }
            }
            BROADCAST_STOP => {
                let at = exactly::<BROADCAST_STOP_BYTES>("BroadcastStop", bytes)?;
                Record::BroadcastStop { to: aux, from: short(at, 12), token: half(at, 8) }
            }
            _ => return Ok(None),
        };
        Ok(Some(record))
    }
}

/// The Message in the bytes of a whole record, if it is one. It is what a link carries most of, and made where it is
/// used: to be copied from where it was just written, a record costs more than all else about it.
#[inline(always)]
pub(super) fn message_in(bytes: &[u8]) -> Option<Message<'_>> {
    match bytes.split_first_chunk::<MESSAGE_BYTES>() {
        Some((at, payload)) if at[4] == MESSAGE => Some(message(at, payload)),
        _ => None,
    }
}

#[inline(always)]
fn message<'a>(at: &[u8; MESSAGE_BYTES], payload: &'a [u8]) -> Message<'a> {
    let [from, to, id] = words(at, 26);
    Message { origin: address(at, 8), from, to, id, hops: at[5], flags: at[7], payload }
}

/// The Deliver in the bytes of a whole record, if it is one, as [`message_in`].
#[inline(always)]
pub(super) fn deliver_in(bytes: &[u8]) -> Option<Deliver<'_>> {
    match bytes.split_first_chunk::<DELIVER_BYTES>() {
        Some((at, payload)) if at[4] == DELIVER => Some(deliver(at, payload)),
        _ => None,
    }
}

#[inline(always)]
fn deliver<'a>(at: &[u8; DELIVER_BYTES], payload: &'a [u8]) -> Deliver<'a> {
    let [user, session, id, from, stamp] = words(at, 18);
    Deliver { seat: seat(at, 8), user, session, id, from, stamp, flags: at[7], payload }
}

/// Length of the record at the beginning of some bytes of this node's own.
#[inline]
pub(crate) fn record_len(bytes: &[u8]) -> usize {
    len_at(bytes, 0)
}

/// Length of the record that begins at `at` in a batch of this node's own.
#[inline]
pub(in crate::mesh) fn len_at(batch: &[u8], at: usize) -> usize {
    u32::from_be_bytes([batch[at], batch[at + 1], batch[at + 2], batch[at + 3]]) as usize
}

/// Appends the fixed part of a record with the head written, for the rest of it to be written in place, and makes room
/// for what follows. Written elsewhere in words and copied from there, it would be read in larger pieces than it was
/// written, for which a processor waits until all of it is in its cache.
#[inline]
fn put_head<const N: usize>(out: &mut Vec<u8>, len: usize, kind: u8, hops: u8, aux: u16) -> &mut [u8; N] {
    let at = out.len();
    out.reserve(len);
    out.extend_from_slice(&[0; N]);
    let bytes = out[at..].first_chunk_mut().expect("just appended");
    put_head_over(bytes, len, kind, hops, aux);
    bytes
}

/// An array of a kind's fixed length with the head written.
#[inline]
fn head<const N: usize>(len: usize, kind: u8, hops: u8, aux: u16) -> [u8; N] {
    let mut bytes = [0; N];
    put_head_over(&mut bytes, len, kind, hops, aux);
    bytes
}

#[inline]
fn put_head_over<const N: usize>(bytes: &mut [u8; N], len: usize, kind: u8, hops: u8, aux: u16) {
    bytes[0..4].copy_from_slice(&(len as u32).to_be_bytes());
    bytes[4] = kind;
    bytes[5] = hops;
    bytes[6..8].copy_from_slice(&aux.to_be_bytes());
}

#[inline]
fn put_words<const N: usize, const W: usize>(bytes: &mut [u8; N], at: usize, words: [u64; W]) {
    for (index, word) in words.into_iter().enumerate() {
        bytes[at + 8 * index..at + 8 * index + 8].copy_from_slice(&word.to_be_bytes());
    }
}

#[inline]
fn put_seat<const N: usize>(bytes: &mut [u8; N], at: usize, seat: Seat) {
    bytes[at..at + 2].copy_from_slice(&seat.shard.to_be_bytes());
    bytes[at + 2..at + 6].copy_from_slice(&seat.conn.slot.to_be_bytes());
    bytes[at + 6..at + 10].copy_from_slice(&seat.conn.generation.to_be_bytes());
}

#[inline]
fn put_address<const N: usize>(bytes: &mut [u8; N], at: usize, address: Address) {
    put_words(bytes, at, [address.node]);
    put_seat(bytes, at + 8, address.seat);
}

// The offsets below are constants of the layout and lie within the array, whatever the peer has sent.

#[inline]
fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn short<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn words<const N: usize, const W: usize>(bytes: &[u8; N], at: usize) -> [u64; W] {
    std::array::from_fn(|index| {
        let at = at + 8 * index;
        u64::from(half(bytes, at)) << 32 | u64::from(half(bytes, at + 4))
    })
}

#[inline]
fn seat<const N: usize>(bytes: &[u8; N], at: usize) -> Seat {
    let shard = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Seat { shard, conn: ConnId { slot: half(bytes, at + 2), generation: half(bytes, at + 6) } }
}

#[inline]
fn address<const N: usize>(bytes: &[u8; N], at: usize) -> Address {
    let [node] = words(bytes, at);
    Address { node, seat: seat(bytes, at + 8) }
}

/// The fixed part of a record and what follows it.
#[inline]
fn open<'a, const N: usize>(record: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8; N], &'a [u8]), MeshViolation> {
    bytes.split_first_chunk().ok_or(MeshViolation::RecordLength { record, length: bytes.len() as u32 })
}

/// The fixed part of a record that has nothing else.
#[inline]
fn exactly<'a, const N: usize>(record: &'static str, bytes: &'a [u8]) -> Result<&'a [u8; N], MeshViolation> {
    bytes.try_into().map_err(|_| MeshViolation::RecordLength { record, length: bytes.len() as u32 })
}

fn text<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a str, MeshViolation> {
    std::str::from_utf8(bytes).map_err(|_| MeshViolation::TextNotUtf8 { field })
}
