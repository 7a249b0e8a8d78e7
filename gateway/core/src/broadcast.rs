//! Pushes to all sessions, as services thread and shards speak of them.
//!
//! | who | what |
//! |---|---|
//! | the services thread (`push/broadcasts.rs`) | begins and stops them, and adds up what it is told |
//! | a shard (`core/broadcast.rs`) | walks the sessions it has, and says how far it is |
//! | the first shard of the node that was asked | brings it to the other nodes, and passes on what they say |
//!
//! A session belongs to the shard that has its connection, whoever its user's home is: so each is met once.

use std::sync::Arc;
use trunkline_proto::DEVICE_BYTES_MAX;

/// Pushes to all that one node may have under way.
pub const BROADCASTS_MAX: usize = 16;
/// Bytes of their payloads, at a node that was asked and at each shard for other nodes; one always may be under way.
pub const BROADCAST_BYTES_MAX: usize = 256 << 10;
/// Classes that a condition may name.
pub const CLASSES_MAX: usize = 16;
/// Bytes of classes, each behind its length.
pub const CLASSES_BYTES_MAX: usize = CLASSES_MAX * (1 + DEVICE_BYTES_MAX);

/// Which sessions a push is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Of one of these classes; empty is any.
    pub classes: Vec<Box<str>>,
    /// Of so many in a hundred users, 1 to 100; which ones that are depends on the push.
    pub percent: u8,
    /// In this group or live room; 0 is no matter which.
    pub group: u64,
}

impl Condition {
    /// None: all sessions.
    pub fn all() -> Self {
        Condition { classes: Vec::new(), percent: 100, group: 0 }
    }

    /// The classes as bytes: each behind its length.
    pub fn class_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for class in &self.classes {
            bytes.push(class.len() as u8);
            bytes.extend_from_slice(class.as_bytes());
        }
        bytes
    }

    /// What another node has said; `None` if that makes no sense.
    pub fn of_bytes(mut classes: &[u8], percent: u8, group: u64) -> Option<Self> {
        let mut condition = Condition { classes: Vec::new(), percent: percent.clamp(1, 100), group };
        while let Some((len, rest)) = classes.split_first() {
            let (class, rest) = rest.split_at_checked((*len).into())?;
            if condition.classes.len() == CLASSES_MAX {
                return None;
            }
            condition.classes.push(std::str::from_utf8(class).ok()?.into());
            classes = rest;
        }
        Some(condition)
    }
}

/// A push to all, as it was asked for.
#[derive(Debug)]
pub struct Spec {
    /// The services thread's number for it.
    pub token: u32,
    pub service: u16,
    /// The message's id, not 0.
    pub id: u64,
    pub condition: Condition,
    pub payload: Box<[u8]>,
}

/// What a shard is told.
#[derive(Clone, Debug)]
pub enum Word {
    /// Walk the sessions; the first shard sees to the other nodes, too.
    Begin(Arc<Spec>),
    /// Stop that, everywhere.
    Stop(u32),
}

/// A shard of the cluster: of the node with this key, 0 for the node that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    pub node: u64,
    pub shard: u16,
}

/// How far a shard is. Each session met counts as delivered or as overloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Copies queued.
    pub delivered: u64,
    /// Copies that found no room in their session's outbox, and are gone.
    pub overloaded: u64,
}

/// How the walk of a shard has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has met all sessions for which the condition holds.
    Done,
    /// It was stopped before.
    Stopped,
    /// It was not begun, or nobody knows: its node has ended, cannot be reached, has no room, or is of an earlier
    /// version.
    Lost,
}

impl End {
    /// Its number between nodes.
    pub fn as_u8(self) -> u8 {
        match self {
            End::Done => 1,
            End::Stopped => 2,
            End::Lost => 3,
        }
    }

    /// The end with that number; what a later version may know counts as unknown.
    pub fn from_u8(number: u8) -> Option<End> {
        match number {
            0 => None,
            1 => Some(End::Done),
            2 => Some(End::Stopped),
            _ => Some(End::Lost),
        }
    }
}

/// What a shard tells the services thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// So many shards of other nodes were asked.
    Asked { token: u32, parts: u32 },
    /// How far a shard is, and whether that was all.
    Told { token: u32, part: Part, tally: Tally, end: Option<End> },
}

/// Bytes that broadcasts take at most: at the services thread, and at each shard for this node and for others.
pub const fn bytes_of(shards: u64, frame_bytes_max: u64) -> u64 {
    let at_a_time =
        if frame_bytes_max > BROADCAST_BYTES_MAX as u64 { frame_bytes_max } else { BROADCAST_BYTES_MAX as u64 };
    at_a_time * (1 + 2 * shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_come_back_and_no_bytes_make_it_panic(
            classes in prop::collection::vec(".{0,16}", 0..CLASSES_MAX),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let classes = classes.into_iter().map(Box::from).collect();
            let condition = Condition { classes, percent: 7, group: 9 };
            prop_assert_eq!(Condition::of_bytes(&condition.class_bytes(), 7, 9), Some(condition));
            let _ = Condition::of_bytes(&bytes, 0, 0);
        }
    }

    #[test]
    fn ends_have_numbers_and_later_ones_are_unknown() {
        for end in [End::Done, End::Stopped, End::Lost] {
            assert_eq!(End::from_u8(end.as_u8()), Some(end));
        }
        assert_eq!((End::from_u8(0), End::from_u8(200)), (None, Some(End::Lost)));
    }
}
