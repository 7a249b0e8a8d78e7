//! What the clients have sent, and what may become of it in a cluster: a model that knows the protocol and nothing of
//! nodes.

use super::rooms::Rooms;
use crate::simulation::ledger::{check_payload, payload};
use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::{Frame, Outcome, flags};

/// What was delivered before its sender was told that it failed may reach the recipient so much later than the sender's
/// answer.
const UNDER_WAY_US: u64 = 2_000_000;

/// A message some client has written.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) acked: bool,
    /// The client it was written by, and its place among that client's messages.
    pub(super) sender: usize,
    pub(super) seq: u64,
    pub(super) sent_us: u64,
    /// Clients of the recipient that were logged in when it was written.
    pub(super) audience: Vec<usize>,
    /// Written when all was well.
    pub(super) proves: bool,
    /// The sender's token names the recipient, or needs not.
    pub(super) allowed: bool,
    /// ERROR 26 has come for it.
    refused: bool,
    /// ACKs written by recipients.
    pub(super) acks: u32,
    pub(super) outcome: Option<Outcome>,
    /// When that came.
    answered_us: u64,
    /// Devices it was delivered to; for messages without ACK.
    devices: BTreeSet<usize>,
}

impl Message {
    /// Whether its sender was told that it may not send it.
    pub(super) fn is_refused(&self) -> bool {
        self.refused || self.outcome == Some(Outcome::Denied)
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    messages: BTreeMap<u64, Message>,
    pub(super) rooms: Rooms,
}

impl Ledger {
    /// Notes a message; ids are unique over all senders. Returns its id and its payload.
    pub(super) fn add(&mut self, message: NewMessage) -> (u64, Vec<u8>) {
        let id = self.messages.len() as u64 + 1;
        let NewMessage { from, to, acked, sender, seq, sent_us, audience, proves, allowed, padding } = message;
        let (outcome, devices) = (None, BTreeSet::new());
        let message = Message {
            from,
            to,
            acked,
            sender,
            seq,
            sent_us,
            audience,
            proves,
            allowed,
            refused: false,
            acks: 0,
            outcome,
            answered_us: 0,
            devices,
        };
        self.messages.insert(id, message);
        (id, payload(from, to, id, padding))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.messages.iter().map(|(id, message)| (*id, message))
    }

    /// The message a DELIVER carries, if it is what the sender wrote and may be delivered to this client.
    pub(super) fn delivered(
        &mut self,
        client: usize,
        device: usize,
        user: u64,
        frame: &Frame<'_>,
        now_us: u64,
    ) -> &Message {
        let id = check_payload(frame.body);
        assert_eq!(id, frame.id, "DELIVER carries the payload of another message");
        let message = self.messages.get_mut(&id).expect("a message nobody has sent was delivered");
        assert_eq!(message.to, user, "message {id} was delivered to user {user}");
        assert_eq!(message.from, frame.peer, "message {id} came with another sender");
        assert_ne!(message.sender, client, "message {id} came back to the session that sent it");
        assert!(message.allowed, "message {id} was delivered, and its sender's token does not allow it");
        assert_eq!(frame.flags & flags::ACK != 0, message.acked, "ACK flag of message {id}");
        assert_eq!(frame.flags & flags::SELF != 0, message.from == message.to, "SELF flag of message {id}");
        let failed = message.outcome == Some(Outcome::Overloaded);
        let late_us = now_us.saturating_sub(message.answered_us);
        assert!(
            !failed || late_us < UNDER_WAY_US,
            "message {id} was delivered {} ms after its sender was told that it failed",
            late_us / 1_000
        );
        if !message.acked {
            assert!(frame.flags & flags::AGAIN == 0, "message {id} without ACK was sent again");
            assert!(message.devices.insert(device), "message {id} without ACK reached device {device} twice");
        }
        message
    }

    /// A recipient writes an ACK.
    pub(super) fn acknowledged(&mut self, id: u64) {
        self.messages.get_mut(&id).expect("clients acknowledge what was delivered").acks += 1;
    }

    /// SENT reached a client.
    pub(super) fn answered(&mut self, client: usize, frame: &Frame<'_>, now_us: u64) {
        let message = self.messages.get_mut(&frame.id).expect("SENT for a message nobody has sent");
        assert_eq!(message.sender, client, "SENT of message {} reached another session", frame.id);
        assert!(message.acked, "SENT for message {} without ACK", frame.id);
        assert_eq!(message.to, frame.peer, "SENT of message {} names another recipient", frame.id);
        let outcome = Outcome::from_u16(frame.aux).expect("a known outcome");
        assert!(
            match message.allowed {
                true => matches!(outcome, Outcome::Delivered | Outcome::OfflineNotStored | Outcome::Overloaded),
                false => outcome == Outcome::Denied,
            },
            "message {}: unexpected outcome {outcome:?}",
            frame.id
        );
        let acked = outcome != Outcome::Delivered || message.acks > 0;
        assert!(acked, "message {} counts as delivered and nobody acknowledged it", frame.id);
        message.answered_us = now_us;
        let before = message.outcome.replace(outcome);
        assert_eq!(before, None, "message {} was answered twice, the second time with {outcome:?}", frame.id);
    }

    /// ERROR 26 reached a client.
    pub(super) fn refused(&mut self, client: usize, frame: &Frame<'_>) {
        let message = self.messages.get_mut(&frame.id).expect("ERROR 26 for a message nobody has sent");
        assert_eq!((message.sender, message.to), (client, frame.peer), "ERROR 26 of message {}", frame.id);
        assert!(!message.acked && !message.allowed && !message.refused, "message {} is refused: {message:?}", frame.id);
        message.refused = true;
    }
}

/// A message about to be written.
pub(super) struct NewMessage {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) acked: bool,
    pub(super) sender: usize,
    pub(super) seq: u64,
    pub(super) sent_us: u64,
    pub(super) audience: Vec<usize>,
    pub(super) proves: bool,
    pub(super) allowed: bool,
    pub(super) padding: usize,
}
