//! What the clients of a cluster see of live rooms, and what is legal: a model that knows the protocol and nothing of
//! nodes.
//!
//! 1. No message reaches a session twice, and none comes back to the session that sent it.
//! 2. On a session numbers and positions of a room rise.
//! 3. Two sessions that got a message with the number before it in front got the same message with that number: who
//!    missed one sees a larger step.
//! 4. After the answer to its leave a session gets nothing, until it asks to join again.
//! 5. A message with ACK has one answer at most, and by the end one: accepted, or SENT 3.
//! 6. What was said right behind a join that is refused is refused too, and nobody gets it.
//! 7. When all is well, each session that is in a room gets the next message to it.

use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, encode, flags};

/// The rooms, with more than one home among them.
pub(super) const ROOMS: [u64; 4] = [1 << 63, (1 << 63) + 1, (1 << 63) + 2, u64::MAX];

/// A message to a room.
#[derive(Debug)]
pub(super) struct RoomMessage {
    pub(super) room: u64,
    from: u64,
    /// The client that wrote it.
    pub(super) sender: usize,
    pub(super) acked: bool,
    pub(super) outcome: Option<Outcome>,
    /// It was refused: its member has sent more than it may in a second, or is not in the room.
    refused: bool,
    /// The join that it was written right behind, by a session that was not in the room.
    behind: Option<u64>,
    /// That join was refused.
    void: bool,
    /// Somebody got it.
    delivered: bool,
    /// Written when all was well, for those.
    pub(super) proves_for: Option<Vec<usize>>,
}

impl RoomMessage {
    /// Whether its sender has its answer.
    pub(super) fn is_answered(&self) -> bool {
        self.outcome.is_some() || self.refused
    }
}

/// Messages of all rooms.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    pub(super) messages: BTreeMap<u64, RoomMessage>,
    /// The message before each one, for whoever was given both with no number between.
    before: BTreeMap<u64, u64>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Rooms {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Notes a message, and appends its frame.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, message: NewRoomMessage) {
        let NewRoomMessage { room, from, sender, acked, behind, proves_for } = message;
        let id = self.messages.len() as u64 + 1;
        let (outcome, refused, void, delivered) = (None, false, false, false);
        let message = RoomMessage { room, from, sender, acked, outcome, refused, behind, void, delivered, proves_for };
        self.messages.insert(id, message);
        let flags = if acked { flags::ACK } else { 0 };
        let header = Header { kind: Kind::GroupSend, flags, aux: 0, id, peer: room, stamp: 0 };
        encode(out, &header, &id.to_be_bytes());
    }

    /// SENT of a message to a room reached a client.
    pub(super) fn answered(&mut self, client: usize, frame: &Frame<'_>) {
        let message = self.messages.get_mut(&frame.id).expect("SENT for a message nobody has sent");
        assert_eq!((message.sender, message.room), (client, frame.peer), "SENT of room message {}", frame.id);
        assert!(message.acked && !message.refused, "SENT for room message {}", frame.id);
        let outcome = Outcome::from_u16(frame.aux).expect("a known outcome");
        let before = message.outcome.replace(outcome);
        assert_eq!(before, None, "room message {} was answered twice, the second time {outcome:?}", frame.id);
        assert!(!message.void || outcome == Outcome::Denied, "room message {}: {outcome:?}, {message:?}", frame.id);
        let void = message.void;
        match outcome {
            Outcome::Accepted => self.count("room messages accepted"),
            Outcome::Overloaded => self.count("room messages failed"),
            Outcome::Denied if void => self.count("room messages behind refused joins"),
            _ => panic!("room message {}: unexpected outcome {outcome:?}", frame.id),
        }
    }
}

/// A message about to be written.
pub(super) struct NewRoomMessage {
    pub(super) room: u64,
    pub(super) from: u64,
    pub(super) sender: usize,
    pub(super) acked: bool,
    pub(super) behind: Option<u64>,
    pub(super) proves_for: Option<Vec<usize>>,
}

/// Where a session stands in a room.
#[derive(Debug, Default)]
struct Membership {
    /// The latest requests to join and to leave, 0 before the first.
    join_id: u64,
    leave_id: u64,
    /// The latest request that was answered with GROUP_OK.
    answered_id: u64,
    /// Requests without an answer, and whether they are to join.
    open: BTreeMap<u64, bool>,
    /// Number, position and id of the latest message.
    last: Option<(u16, u64, u64)>,
}

impl Membership {
    /// The session is in, as far as it was told, and waits for nothing.
    fn is_in(&self) -> bool {
        self.open.is_empty() && self.answered_id == self.join_id && self.join_id > self.leave_id
    }

    /// The session was told that it has left, and has not asked to join again.
    fn is_out(&self) -> bool {
        self.join_id == 0 || (self.leave_id > self.join_id && self.answered_id == self.leave_id)
    }
}

/// The rooms of one session.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    rooms: BTreeMap<u64, Membership>,
    next_id: u64,
    got: BTreeSet<u64>,
    /// The node does not serve rooms.
    pub(super) unsupported: bool,
}

impl Memberships {
    /// Rooms that the session is in, as far as it was told.
    pub(super) fn rooms(&self) -> impl Iterator<Item = u64> {
        self.rooms.iter().filter(|(_, room)| room.is_in()).map(|(room, _)| *room)
    }

    pub(super) fn is_in(&self, room: u64) -> bool {
        self.rooms.get(&room).is_some_and(Membership::is_in)
    }

    /// Whether the session waits for no answer about the room.
    pub(super) fn is_quiet(&self, room: u64) -> bool {
        self.rooms.get(&room).is_none_or(|room| room.open.is_empty())
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.got.contains(&id)
    }

    /// Whether the session is not in the room for sure: the next join makes the difference.
    pub(super) fn is_out(&self, room: u64) -> bool {
        self.is_quiet(room) && self.rooms.get(&room).is_none_or(Membership::is_out)
    }

    /// The latest request.
    pub(super) fn latest(&self) -> u64 {
        self.next_id
    }

    /// Appends a request to join a room, or to leave it.
    pub(super) fn ask(&mut self, out: &mut Vec<u8>, room: u64, join: bool) {
        self.next_id += 1;
        let id = self.next_id;
        let membership = self.rooms.entry(room).or_default();
        membership.open.insert(id, join);
        let kind = if join { Kind::GroupJoin } else { Kind::GroupLeave };
        *(if join { &mut membership.join_id } else { &mut membership.leave_id }) = id;
        encode(out, &Header { kind, flags: 0, aux: 0, id, peer: room, stamp: 0 }, &[]);
    }

    /// A frame about a room came to this client.
    pub(super) fn frame(&mut self, client: usize, user: u64, kind: Kind, frame: &Frame<'_>, ledger: &mut Rooms) {
        match kind {
            Kind::GroupOk => self.joined_or_left(client, frame),
            Kind::GroupDeliver => self.delivered(client, user, frame, ledger),
            Kind::Error => self.refused(client, frame, ledger),
            // Some number was missing, which is seen without it.
            _ => {}
        }
    }

    fn joined_or_left(&mut self, client: usize, frame: &Frame<'_>) {
        let membership = self.rooms.get_mut(&frame.peer).expect("GROUP_OK of a room that was asked for");
        let asked = membership.open.remove(&frame.id);
        let joined = asked.unwrap_or_else(|| panic!("client {client}: GROUP_OK {} twice, or unasked", frame.id));
        let is_later = frame.id > membership.answered_id;
        assert!(is_later, "client {client}: GROUP_OK {} behind {}", frame.id, membership.answered_id);
        membership.answered_id = frame.id;
        if !joined {
            // With the last member a room ends, and begins anew with number 1: also when a request to join again is
            // under way.
            membership.last = None;
        }
    }

    fn refused(&mut self, client: usize, frame: &Frame<'_>, ledger: &mut Rooms) {
        let code = Code::from_u16(frame.aux).expect("ERROR has a known code");
        match code {
            Code::RateLimited => {
                let message = ledger.messages.get_mut(&frame.id).expect("a message somebody has sent");
                assert_eq!((message.sender, message.room), (client, frame.peer), "ERROR 11 of {}", frame.id);
                assert!(!std::mem::replace(&mut message.refused, true) && message.outcome.is_none(), "{message:?}");
                ledger.count("room messages rate-limited");
            }
            Code::Overloaded | Code::Unsupported => {
                let membership = self.rooms.get_mut(&frame.peer).expect("a room that was asked for");
                let asked = membership.open.remove(&frame.id);
                assert!(asked.is_some(), "client {client}: request {} was refused twice", frame.id);
                self.unsupported |= code == Code::Unsupported;
                let is_behind =
                    |message: &&mut RoomMessage| (message.sender, message.behind) == (client, Some(frame.id));
                for message in ledger.messages.values_mut().filter(is_behind) {
                    assert!(!message.delivered && !message.is_answered(), "request {}: {message:?}", frame.id);
                    message.void = true;
                }
                ledger.count("joins of rooms refused");
            }
            Code::NotAMember => {
                let message = ledger.messages.get_mut(&frame.id).expect("a message somebody has sent");
                assert_eq!((message.sender, message.room), (client, frame.peer), "ERROR 19 of {}", frame.id);
                assert!(message.void && !message.acked, "{message:?}");
                assert!(!std::mem::replace(&mut message.refused, true), "{message:?}");
                ledger.count("room messages behind refused joins");
            }
            _ => panic!("client {client}: {code:?} for nothing that was asked"),
        }
    }

    fn delivered(&mut self, client: usize, user: u64, frame: &Frame<'_>, ledger: &mut Rooms) {
        let Frame { id, peer: room, aux: number, stamp, flags: of_frame, .. } = *frame;
        let (from, body) = frame.body.split_first_chunk::<8>().expect("a sender");
        let message = ledger.messages.get_mut(&id).expect("a room message nobody has sent was delivered");
        assert!(!message.void, "room message {id} was said behind a join that was refused: {message:?}");
        message.delivered = true;
        assert_eq!(body, id.to_be_bytes(), "the payload of room message {id}");
        assert_eq!((message.room, message.from), (room, u64::from_be_bytes(*from)), "room message {id}");
        assert_ne!(message.sender, client, "room message {id} came back to the session that sent it");
        assert_eq!(of_frame & flags::SELF != 0, message.from == user, "SELF of room message {id}");
        assert!(self.got.insert(id), "room message {id} came to client {client} twice");
        let membership = self.rooms.entry(room).or_default();
        assert!(!membership.is_out(), "client {client} got room message {id} after it had left: {membership:?}");
        let last = membership.last.replace((number, stamp, id));
        ledger.count("room messages delivered");
        let Some((last_number, last_stamp, last_id)) = last else { return };
        assert!(
            number > last_number && stamp > last_stamp,
            "client {client} got number {number} at {stamp} of a room behind {last_number} at {last_stamp}"
        );
        if number == last_number + 1 {
            let before = *ledger.before.entry(id).or_insert(last_id);
            assert_eq!(
                before, last_id,
                "client {client} sees no message missing before room message {id}, others got another one there"
            );
        } else {
            ledger.count("numbers of rooms left out");
        }
    }
}
