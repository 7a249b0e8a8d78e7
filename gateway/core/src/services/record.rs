//! What shards tell each other of calls. The bytes are this process's own.

use crate::directory::NodeKey;
use crate::io::ConnId;

/// One entry of a batch between shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceRecord<'a> {
    /// A CALL for a service that the receiving shard has a worker of.
    Call { conn: ConnId, service: u16, flags: u8, id: u64, user: u64, head: &'a [u8], body: &'a [u8] },
    /// An answer for a caller of the receiving shard.
    Answer { conn: ConnId, id: u64, status: u16, flags: u8, body: &'a [u8] },
    /// Nobody waits for that call any more.
    Cancel { conn: ConnId, id: u64 },
    /// So many instances of a service take calls at the sending shard.
    Serves { service: u16, instances: u16 },
    /// A shard of another node has told the sending shard what its workers of a service weigh.
    NodeServes { node: NodeKey, shard: u16, service: u16, weight: u32 },
}

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const CANCEL: u8 = 3;
const SERVES: u8 = 4;
const NODE_SERVES: u8 = 5;

/// Kind, flags, two small numbers, slot, generation, lengths of head and body, and three words.
const FIXED_BYTES: usize = 8 + 8 + 8 + 24;

impl<'a> ServiceRecord<'a> {
    /// Bytes the record takes.
    pub(crate) fn encoded_len(&self) -> usize {
        FIXED_BYTES
            + match self {
                ServiceRecord::Call { head, body, .. } => head.len() + body.len(),
                ServiceRecord::Answer { body, .. } => body.len(),
                ServiceRecord::Cancel { .. } | ServiceRecord::Serves { .. } | ServiceRecord::NodeServes { .. } => 0,
            }
    }

    /// Appends the record.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let nobody = ConnId { slot: 0, generation: 0 };
        let none: &[u8] = &[];
        let (kind, flags, small, other, conn, words, head, body) = match *self {
            ServiceRecord::Call { conn, service, flags, id, user, head, body } => {
                (CALL, flags, service, 0, conn, [id, user, 0], head, body)
            }
            ServiceRecord::Answer { conn, id, status, flags, body } => {
                (ANSWER, flags, status, 0, conn, [id, 0, 0], none, body)
            }
            ServiceRecord::Cancel { conn, id } => (CANCEL, 0, 0, 0, conn, [id, 0, 0], none, none),
            ServiceRecord::Serves { service, instances } => (SERVES, 0, service, instances, nobody, [0; 3], none, none),
            ServiceRecord::NodeServes { node, shard, service, weight } => {
                (NODE_SERVES, 0, service, shard, nobody, [node.0, weight.into(), 0], none, none)
            }
        };
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&small.to_ne_bytes());
        out.extend_from_slice(&other.to_ne_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&conn.slot.to_ne_bytes());
        out.extend_from_slice(&conn.generation.to_ne_bytes());
        out.extend_from_slice(&(head.len() as u32).to_ne_bytes());
        out.extend_from_slice(&(body.len() as u32).to_ne_bytes());
        words.iter().for_each(|word| out.extend_from_slice(&word.to_ne_bytes()));
        out.extend_from_slice(head);
        out.extend_from_slice(body);
    }

    /// The first record of `bytes` and its length. `None` if this process did not write it.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let fixed = bytes.first_chunk::<FIXED_BYTES>()?;
        let small = |at: usize| u16::from_ne_bytes([fixed[at], fixed[at + 1]]);
        let half = |at: usize| u32::from_ne_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
        let word = |at: usize| u64::from_ne_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
        let conn = ConnId { slot: half(8), generation: half(12) };
        let (head_len, body_len) = (half(16) as usize, half(20) as usize);
        let len = FIXED_BYTES + head_len + body_len;
        let (head, body) = bytes.get(FIXED_BYTES..len)?.split_at(head_len);
        let (flags, id) = (fixed[1], word(24));
        let record = match fixed[0] {
            CALL => ServiceRecord::Call { conn, service: small(2), flags, id, user: word(32), head, body },
            ANSWER => ServiceRecord::Answer { conn, id, status: small(2), flags, body },
            CANCEL => ServiceRecord::Cancel { conn, id },
            SERVES => ServiceRecord::Serves { service: small(2), instances: small(4) },
            NODE_SERVES => ServiceRecord::NodeServes {
                node: NodeKey(word(24)),
                shard: small(4),
                service: small(2),
                weight: word(32) as u32,
            },
            _ => return None,
        };
        Some((record, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_as_they_went_in() {
        let conn = ConnId { slot: 9, generation: 77 };
        let records = [
            ServiceRecord::Call { conn, service: 7, flags: 5, id: 1, user: 3, head: b"he", body: b"body" },
            ServiceRecord::Answer { conn, id: 4, status: 500, flags: 1, body: b"" },
            ServiceRecord::Cancel { conn, id: 5 },
            ServiceRecord::Serves { service: 65_535, instances: 3 },
            ServiceRecord::NodeServes { node: NodeKey(9), shard: 2, service: 7, weight: u32::MAX },
        ];
        let mut bytes = Vec::new();
        for record in &records {
            let before = bytes.len();
            record.encode(&mut bytes);
            assert_eq!(bytes.len() - before, record.encoded_len());
        }
        let mut rest = &bytes[..];
        for record in records {
            let (decoded, len) = ServiceRecord::decode(rest).expect("a record");
            assert_eq!(decoded, record);
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
    }
}
