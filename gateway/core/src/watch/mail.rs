//! What the shards of a node say to each other about watches. The bytes are this process's own.

use super::{State, Status};

/// One word about a user who is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchMail<'a> {
    /// To the home: tell of this user from now on. `known` is what the watchers were told before.
    Ask { user: u64, known: Status },
    /// To the home: nobody here watches the user any more.
    Forget { user: u64 },
    /// From the home: what is so of the user, by now or again.
    Told { user: u64, state: State<'a> },
    /// From the home: it has no room for the watch.
    Full { user: u64 },
}

const ASK: u8 = 1;
const FORGET: u8 = 2;
const TOLD: u8 = 3;
const FULL: u8 = 4;

/// All words have the same head: kind, a small number, two bytes of nothing, four bytes of time, and the user.
pub(crate) const HEAD_BYTES: usize = 16;

impl<'a> WatchMail<'a> {
    fn classes(&self) -> &'a [u8] {
        match *self {
            WatchMail::Told { state, .. } => state.classes,
            _ => &[],
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        HEAD_BYTES + self.classes().len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, small, since_s, user) = match *self {
            WatchMail::Ask { user, known } => (ASK, known as u8, 0, user),
            WatchMail::Forget { user } => (FORGET, 0, 0, user),
            WatchMail::Told { user, state } => (TOLD, state.status as u8, state.since_s, user),
            WatchMail::Full { user } => (FULL, 0, 0, user),
        };
        let mut head = [0; HEAD_BYTES];
        (head[0], head[1]) = (kind, small);
        head[4..8].copy_from_slice(&u32::to_ne_bytes(since_s));
        head[8..16].copy_from_slice(&user.to_ne_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(self.classes());
    }

    /// Of a whole word.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, classes) = bytes.split_at_checked(HEAD_BYTES)?;
        let since_s = u32::from_ne_bytes(head[4..8].try_into().expect("four bytes"));
        let user = u64::from_ne_bytes(head[8..16].try_into().expect("eight bytes"));
        Some(match head[0] {
            ASK => WatchMail::Ask { user, known: Status::from_u8(head[1])? },
            FORGET => WatchMail::Forget { user },
            TOLD => {
                let status = Status::from_u8(head[1])?;
                WatchMail::Told { user, state: State { status, since_s, classes } }
            }
            FULL => WatchMail::Full { user },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_was_written() {
        let state = State { status: Status::Online, since_s: 7, classes: b"\x01a" };
        for mail in [
            WatchMail::Ask { user: u64::MAX, known: Status::Online },
            WatchMail::Ask { user: 1, known: Status::Unknown },
            WatchMail::Forget { user: 2 },
            WatchMail::Told { user: 3, state },
            WatchMail::Told { user: 3, state: State::UNKNOWN },
            WatchMail::Full { user: 4 },
        ] {
            let mut bytes = Vec::new();
            mail.encode(&mut bytes);
            assert_eq!(bytes.len(), mail.encoded_len());
            assert_eq!(WatchMail::decode(&bytes), Some(mail));
        }
        assert_eq!(WatchMail::decode(&[0; HEAD_BYTES]), None);
    }
}
