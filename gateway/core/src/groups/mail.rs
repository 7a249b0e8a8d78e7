//! What the shards of a node say to each other about groups. The bytes are this process's own.

use crate::groups::Manner;
use crate::io::ConnId;

/// In a word about a membership: what number the home is at is not known where that comes from.
pub(crate) const NUMBER_UNKNOWN: u64 = u64::MAX;

/// One word about a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupMail<'a> {
    /// To the home: a message.
    Send { group: u64, origin: ConnId, from: u64, id: u64, flags: u8, payload: &'a [u8] },
    /// To the home: a user wants to join, or to leave.
    Join { group: u64, origin: ConnId, user: u64, id: u64, leave: bool },
    /// To the home: the shard has a part of the group from now on, or none.
    Watch { group: u64, watch: bool },
    /// From the home: a message for the part. `origin` is the session that sent it, if `shard` is the one that gets
    /// this.
    Copy {
        group: u64,
        shard: u16,
        origin: ConnId,
        from: u64,
        id: u64,
        stamp: u64,
        number: u64,
        manner: Manner,
        payload: &'a [u8],
    },
    /// From the home: how far the group is.
    Head { group: u64, last: u64, number: u64 },
    /// From the home: a user is a member, or is none. `session` is the only one that it concerns, of a live room.
    Member { group: u64, user: u64, joined: bool, last: u64, number: u64, session: Option<ConnId> },
    /// From the home, for a session: it has joined or left.
    Ok { group: u64, conn: ConnId, id: u64, stamp: u64, joined: bool },
    /// From the home, for a session: it was refused, with a code of the client protocol.
    Refused { group: u64, conn: ConnId, id: u64, code: u16 },
    /// From the home: there is no such group any more.
    Ended { group: u64 },
    /// Changes of memberships may have been missed: what the store says of all sessions counts.
    Missed,
}

const SEND: u8 = 1;
const JOIN: u8 = 2;
const WATCH: u8 = 3;
const COPY: u8 = 4;
const HEAD: u8 = 5;
const MEMBER: u8 = 6;
const OK: u8 = 7;
const REFUSED: u8 = 8;
const ENDED: u8 = 9;
const MISSED: u8 = 10;

/// All words have the same head: kind, a small number, a shard or code, the generation and slot of a connection, and
/// six numbers.
pub(crate) const HEAD_BYTES: usize = 16 + 6 * 8;

const NOBODY: ConnId = ConnId { slot: u32::MAX, generation: 0 };

impl<'a> GroupMail<'a> {
    pub(crate) fn payload(&self) -> &'a [u8] {
        match *self {
            GroupMail::Send { payload, .. } | GroupMail::Copy { payload, .. } => payload,
            _ => &[],
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        HEAD_BYTES + self.payload().len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, small, half, conn, words) = match *self {
            GroupMail::Send { group, origin, from, id, flags, .. } => {
                (SEND, flags, 0, origin, [group, from, id, 0, 0, 0])
            }
            GroupMail::Join { group, origin, user, id, leave } => {
                (JOIN, u8::from(leave), 0, origin, [group, user, id, 0, 0, 0])
            }
            GroupMail::Watch { group, watch } => (WATCH, u8::from(watch), 0, NOBODY, [group, 0, 0, 0, 0, 0]),
            GroupMail::Copy { group, shard, origin, from, id, stamp, number, manner, .. } => {
                (COPY, manner.bits(), shard, origin, [group, from, id, stamp, number, 0])
            }
            GroupMail::Head { group, last, number } => (HEAD, 0, 0, NOBODY, [group, last, number, 0, 0, 0]),
            GroupMail::Member { group, user, joined, last, number, session } => {
                let small = u8::from(joined) | u8::from(session.is_some()) << 1;
                (MEMBER, small, 0, session.unwrap_or(NOBODY), [group, user, last, number, 0, 0])
            }
            GroupMail::Ok { group, conn, id, stamp, joined } => {
                (OK, u8::from(joined), 0, conn, [group, id, stamp, 0, 0, 0])
            }
            GroupMail::Refused { group, conn, id, code } => (REFUSED, 0, code, conn, [group, id, 0, 0, 0, 0]),
            GroupMail::Ended { group } => (ENDED, 0, 0, NOBODY, [group, 0, 0, 0, 0, 0]),
            GroupMail::Missed => (MISSED, 0, 0, NOBODY, [0; 6]),
        };
        let mut head = [0; HEAD_BYTES];
        (head[0], head[1]) = (kind, small);
        head[2..4].copy_from_slice(&half.to_ne_bytes());
        head[4..8].copy_from_slice(&conn.slot.to_ne_bytes());
        head[8..12].copy_from_slice(&conn.generation.to_ne_bytes());
        for (word, place) in words.iter().zip(head[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&head);
        out.extend_from_slice(self.payload());
    }

    /// Of a whole word.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, payload) = bytes.split_at_checked(HEAD_BYTES)?;
        let word = |at: usize| u64::from_ne_bytes(head[16 + 8 * at..24 + 8 * at].try_into().expect("eight bytes"));
        let four = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let conn = ConnId { slot: four(4), generation: four(8) };
        let (small, half, group) = (head[1], u16::from_ne_bytes([head[2], head[3]]), word(0));
        Some(match head[0] {
            SEND => GroupMail::Send { group, origin: conn, from: word(1), id: word(2), flags: small, payload },
            JOIN => GroupMail::Join { group, origin: conn, user: word(1), id: word(2), leave: small != 0 },
            WATCH => GroupMail::Watch { group, watch: small != 0 },
            COPY => {
                let (from, id, stamp, number) = (word(1), word(2), word(3), word(4));
                let manner = Manner::from_bits(small);
                GroupMail::Copy { group, shard: half, origin: conn, from, id, stamp, number, manner, payload }
            }
            HEAD => GroupMail::Head { group, last: word(1), number: word(2) },
            MEMBER => {
                let session = (small & 2 != 0).then_some(conn);
                let (user, last, number) = (word(1), word(2), word(3));
                GroupMail::Member { group, user, joined: small & 1 != 0, last, number, session }
            }
            OK => GroupMail::Ok { group, conn, id: word(1), stamp: word(2), joined: small != 0 },
            REFUSED => GroupMail::Refused { group, conn, id: word(1), code: half },
            ENDED => GroupMail::Ended { group },
            MISSED => GroupMail::Missed,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_was_written() {
        let conn = ConnId { slot: 7, generation: 9 };
        let (group, from, id, stamp, number) = (u64::MAX, 3, 4, 5, 6);
        for mail in [
            GroupMail::Send { group, origin: conn, from, id, flags: 7, payload: b"a payload" },
            GroupMail::Join { group, origin: conn, user: 2, id, leave: true },
            GroupMail::Watch { group, watch: true },
            GroupMail::Copy {
                group,
                shard: 11,
                origin: conn,
                from,
                id,
                stamp,
                number,
                manner: Manner { passive: true, unkept: true },
                payload: b"",
            },
            GroupMail::Head { group, last: 2, number },
            GroupMail::Member { group, user: 1, joined: true, last: 2, number, session: Some(conn) },
            GroupMail::Member { group, user: 1, joined: false, last: 2, number, session: None },
            GroupMail::Ok { group, conn, id, stamp, joined: true },
            GroupMail::Ok { group, conn, id, stamp, joined: false },
            GroupMail::Refused { group, conn, id, code: 19 },
            GroupMail::Ended { group },
            GroupMail::Missed,
        ] {
            let mut bytes = Vec::new();
            mail.encode(&mut bytes);
            assert_eq!(bytes.len(), mail.encoded_len());
            assert_eq!(GroupMail::decode(&bytes), Some(mail));
        }
        assert_eq!(GroupMail::decode(&[0; HEAD_BYTES]), None);
    }
}
