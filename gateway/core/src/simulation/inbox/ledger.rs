//! What was sent, what its senders were told, and who has got it: a model that knows the protocol and nothing of the
//! gateway.

use std::collections::{BTreeMap, BTreeSet};

/// A device: its user, and its number among the user's.
pub(super) type DeviceId = (u64, usize);

#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) from: DeviceId,
    pub(super) to: u64,
    pub(super) no_store: bool,
    /// Devices of the recipient that were registered when it was first written, the sender's own not among them.
    expected: BTreeSet<DeviceId>,
    /// What its sender was told last.
    pub(super) outcome: Option<u16>,
    /// Its position, once it is known to be stored.
    stored_at: Option<u64>,
    /// Devices it was delivered to.
    got: BTreeSet<DeviceId>,
    /// Devices that have written an ACK for it.
    acked: BTreeSet<DeviceId>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    messages: BTreeMap<u64, Message>,
    registered: BTreeSet<DeviceId>,
    /// Devices that were told that something is gone.
    truncated: BTreeSet<DeviceId>,
}

pub(super) const DELIVERED: u16 = 0;
pub(super) const STORED: u16 = 1;

impl Ledger {
    /// Notes a message; ids are unique over all senders. Returns its id.
    pub(super) fn add(&mut self, from: DeviceId, to: u64, no_store: bool) -> u64 {
        let id = self.messages.len() as u64 + 1;
        let expected = self.registered.iter().filter(|device| device.0 == to && **device != from).copied().collect();
        self.messages.insert(id, Message { from, to, no_store, expected, ..Message::default() });
        id
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn message(&self, id: u64) -> &Message {
        &self.messages[&id]
    }

    /// LOGIN_OK has told a device where it stands.
    pub(super) fn registered(&mut self, device: DeviceId, truncated: bool) {
        self.registered.insert(device);
        if truncated {
            self.truncated(device);
        }
    }

    pub(super) fn truncated(&mut self, device: DeviceId) {
        self.truncated.insert(device);
    }

    /// SENT has come.
    pub(super) fn answered(&mut self, id: u64, outcome: u16, stamp: u64) {
        let message = self.messages.get_mut(&id).expect("SENT for a message nobody has sent");
        message.outcome = Some(outcome);
        match outcome {
            DELIVERED => {
                assert!(!message.acked.is_empty(), "{id} counts as delivered and nobody acknowledged it: {message:?}")
            }
            STORED => {
                assert!(!message.no_store, "{id} was stored although it must not be");
                message.stored_at = Some(stamp);
            }
            2 => assert!(message.no_store || message.to == message.from.0, "{id} was not stored: {message:?}"),
            // A full mailbox, a store out of order, or a full inbox.
            3 | 5 => {}
            outcome => panic!("{id}: outcome {outcome}"),
        }
    }

    /// DELIVER has come to a device.
    pub(super) fn delivered(&mut self, device: DeviceId, id: u64, from: u64) {
        let message = self.messages.get_mut(&id).expect("a message nobody has sent was delivered");
        assert_eq!(
            (message.to, message.from.0),
            (device.0, from),
            "{id} was delivered to another user, or as another's"
        );
        message.got.insert(device);
    }

    /// A device writes an ACK.
    pub(super) fn acknowledged(&mut self, device: DeviceId, id: u64) {
        self.messages.get_mut(&id).expect("clients acknowledge what was delivered").acked.insert(device);
    }

    /// No cursor in the store passes a message that its device has not acknowledged.
    pub(super) fn check_cursor(&self, device: DeviceId, cursor: u64) {
        let owed = self.messages.iter().filter(|(_, message)| {
            message.stored_at.is_some_and(|stamp| stamp <= cursor)
                && message.expected.contains(&device)
                && !message.acked.contains(&device)
        });
        if self.truncated.contains(&device) {
            return;
        }
        let owed: Vec<_> = owed.collect();
        assert!(owed.is_empty(), "the cursor {cursor} of {device:?} has passed {owed:?}");
    }

    /// Every message that counts as stored has reached the devices it is for, or they were told that something is gone.
    /// With `all`, so has every other that was acknowledged.
    pub(super) fn check_complete(&self, all: bool) {
        for (id, message) in &self.messages {
            let counts =
                message.outcome == Some(STORED) || (all && !message.no_store && message.outcome == Some(DELIVERED));
            if !counts {
                continue;
            }
            for device in message.expected.difference(&self.truncated) {
                assert!(message.got.contains(device), "{id} never reached {device:?}: {message:?}");
            }
        }
    }

    /// Messages of each outcome, 0 to 5.
    pub(super) fn outcomes(&self) -> [u64; 6] {
        let mut outcomes = [0; 6];
        for outcome in self.messages.values().filter_map(|message| message.outcome) {
            outcomes[usize::from(outcome)] += 1;
        }
        outcomes
    }
}
