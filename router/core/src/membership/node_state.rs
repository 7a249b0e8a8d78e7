//! Where a node is in its life.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;

/// The longest word for a state, in bytes. Versions to come keep to it: a longer one is cut where it is read, and then
/// two versions may have different digests of one view.
pub const STATE_BYTES_MAX: usize = 23;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Has its lease and builds its links; no user's home yet.
    Joining,
    /// In the ring.
    Active,
    /// Out of the ring, still serving the sessions it has.
    Draining,
    /// Ended on purpose. Such a record leaves the view at once.
    Gone,
    /// A state that only newer versions know. Such a node is a member and no user's home.
    Other(StateWord),
}

/// The word for a state that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StateWord {
    length: u8,
    bytes: [u8; STATE_BYTES_MAX],
}

impl StateWord {
    /// As much of `text` as fits.
    fn new(text: &str) -> Self {
        let length = text.floor_char_boundary(STATE_BYTES_MAX);
        let mut bytes = [0; STATE_BYTES_MAX];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        StateWord { length: length as u8, bytes }
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // It was cut between characters, so it is one text from beginning to end.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for StateWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl NodeState {
    /// The states this version knows.
    const KNOWN: [NodeState; 4] = [NodeState::Joining, NodeState::Active, NodeState::Draining, NodeState::Gone];

    /// The word for it in a record.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            NodeState::Joining => "joining",
            NodeState::Active => "active",
            NodeState::Draining => "draining",
            NodeState::Gone => "gone",
            NodeState::Other(word) => word.as_str(),
        }
    }

    /// A number for this state that never changes: part of the view's digest. States that come later get none: their
    /// words are digested, since only those are known to versions that do not know the state.
    pub(super) const fn code(self) -> Option<u8> {
        match self {
            NodeState::Joining => Some(1),
            NodeState::Active => Some(2),
            NodeState::Draining => Some(3),
            NodeState::Gone => Some(4),
            NodeState::Other(_) => None,
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for NodeState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for NodeState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor;

        impl Visitor<'_> for WordVisitor {
            type Value = NodeState;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word for a state")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<NodeState, E> {
                let known = NodeState::KNOWN.into_iter().find(|state| state.word() == text);
                Ok(known.unwrap_or_else(|| NodeState::Other(StateWord::new(text))))
            }
        }

        deserializer.deserialize_str(WordVisitor)
    }
}
