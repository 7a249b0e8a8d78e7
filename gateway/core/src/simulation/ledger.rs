//! What the clients have sent, and what may become of it: a model that knows the protocol and nothing of the gateway.

use std::collections::BTreeMap;
use trunkline_proto::{Frame, Outcome, flags};

/// Bytes of a payload before its padding.
pub(super) const PAYLOAD_BYTES: usize = 48;

/// A message some client has written.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) acked: bool,
    /// The session it was written on, and its place in that session.
    pub(super) sender: usize,
    pub(super) seq: u64,
    /// Sessions of the recipient that were open when it was written.
    pub(super) audience: Vec<usize>,
    /// As assigned by the recipient's home shard.
    stamp: Option<u64>,
    /// ACKs written by recipients.
    pub(super) acks: u32,
    /// SENT results, or an ERROR instead.
    answers: u32,
    /// Turned away by the rate limit.
    pub(super) refused: bool,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    messages: BTreeMap<u64, Message>,
    /// Which message holds a position in a user's inbox.
    stamps: BTreeMap<(u64, u64), u64>,
}

impl Ledger {
    /// Notes a message; ids are unique over all senders. Returns its id.
    pub(super) fn add(
        &mut self,
        from: u64,
        to: u64,
        acked: bool,
        sender: usize,
        seq: u64,
        audience: Vec<usize>,
    ) -> u64 {
        let id = self.messages.len() as u64 + 1;
        let message =
            Message { from, to, acked, sender, seq, audience, stamp: None, acks: 0, answers: 0, refused: false };
        self.messages.insert(id, message);
        id
    }

    /// Messages written so far.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.messages.iter().map(|(id, message)| (*id, message))
    }

    /// The message a DELIVER carries, if it is what the sender wrote and may be delivered to this session of `user`.
    pub(super) fn delivered(&mut self, session: usize, user: u64, frame: &Frame<'_>) -> &Message {
        let id = check_payload(frame.body);
        assert_eq!(id, frame.id, "DELIVER carries the payload of another message");
        let message = self.messages.get_mut(&id).expect("a message nobody has sent was delivered");
        assert_eq!(message.to, user, "message {id} was delivered to user {user}");
        assert_eq!(message.from, frame.peer, "message {id} came with another sender");
        assert_ne!(message.sender, session, "message {id} came back to the session that sent it");
        assert_eq!(frame.flags & flags::ACK != 0, message.acked, "ACK flag of message {id}");
        assert_eq!(frame.flags & flags::SELF != 0, message.from == message.to, "SELF flag of message {id}");
        assert!(message.acked || frame.flags & flags::AGAIN == 0, "message {id} without ACK was sent again");
        assert!(!message.refused, "message {id} was refused and delivered");
        let stamp = *message.stamp.get_or_insert(frame.stamp);
        assert_eq!(stamp, frame.stamp, "message {id} was delivered with two stamps");
        let holder = *self.stamps.entry((user, stamp)).or_insert(id);
        assert_eq!(holder, id, "two messages for user {user} with stamp {stamp}");
        message
    }

    /// A recipient writes an ACK.
    pub(super) fn acknowledged(&mut self, id: u64) {
        self.messages.get_mut(&id).expect("clients acknowledge what was delivered").acks += 1;
    }

    /// SENT reached the session.
    pub(super) fn answered(&mut self, session: usize, lossy: bool, frame: &Frame<'_>) {
        let message = self.messages.get_mut(&frame.id).expect("SENT for a message nobody has sent");
        assert_eq!(message.sender, session, "SENT of message {} reached another session", frame.id);
        assert!(message.acked, "SENT for message {} without ACK", frame.id);
        assert_eq!(message.to, frame.peer, "SENT of message {} names another recipient", frame.id);
        message.answers += 1;
        assert_eq!(message.answers, 1, "message {} was answered twice", frame.id);
        match Outcome::from_u16(frame.aux) {
            Some(Outcome::Delivered) => {
                assert!(message.acks > 0, "message {} counts as delivered and nobody acknowledged it", frame.id);
                assert_eq!(message.stamp, Some(frame.stamp), "SENT of message {} has another stamp", frame.id);
            }
            Some(Outcome::OfflineNotStored) => {}
            Some(Outcome::Overloaded) => assert!(lossy, "message {} was refused and no limit is low", frame.id),
            outcome => panic!("message {}: unexpected outcome {outcome:?}", frame.id),
        }
    }

    /// Whether a frame of the session that names this id and peer was a message.
    pub(super) fn is_from(&self, session: usize, id: u64, peer: u64) -> bool {
        self.messages.get(&id).is_some_and(|message| message.sender == session && message.to == peer)
    }

    /// An ERROR 11 reached the session instead.
    pub(super) fn rate_limited(&mut self, session: usize, id: u64) {
        let message = self.messages.get_mut(&id).expect("ERROR for a message nobody has sent");
        assert_eq!(message.sender, session, "ERROR for message {id} reached another session");
        message.refused = true;
        message.answers += 1;
        assert_eq!(message.answers, 1, "message {id} was answered twice");
    }

    /// Messages with ACK of a session that got no answer.
    pub(super) fn unanswered(&self, session: usize) -> Vec<u64> {
        let of_session = self.iter().filter(|(_, message)| message.sender == session);
        of_session.filter(|(_, message)| message.acked && message.answers == 0).map(|(id, _)| id).collect()
    }

    /// What is known of these messages, for people.
    pub(super) fn told(&self, ids: &[u64]) -> String {
        ids.iter().map(|id| format!("{id}: {:?}\n", self.messages[id])).collect()
    }
}

/// A payload that says what it is, of at least [`PAYLOAD_BYTES`].
pub(in crate::simulation) fn payload(from: u64, to: u64, id: u64, padding: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAYLOAD_BYTES + padding);
    for word in [from, to, id, padding as u64, !id] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend((0..padding).map(|at| (at as u64 ^ id) as u8));
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes
}

/// Returns the id in a payload; panics when a bit of it has changed.
pub(in crate::simulation) fn check_payload(bytes: &[u8]) -> u64 {
    let (body, sum) = bytes.split_last_chunk::<8>().expect("a payload shorter than any sent");
    assert_eq!(checksum(body), u64::from_be_bytes(*sum), "a payload was damaged");
    u64::from_be_bytes(body[16..24].try_into().expect("eight bytes"))
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}
