//! What is asked of the home of a durable group on another node, and its answers, as bytes. Part of the protocol
//! between nodes: all integers are big-endian.
//!
//! ```text
//! ask     kind u8, flags u8, user u64, id u64, role u8, muted until u32, payload
//! answer  kind u8, flags u8, stamp or count u64
//! ```

use trunkline_store::{GroupAsk, GroupDenial, GroupReply, Member, Payload, Record, Refusal, Reply, Role};

const JOIN: u8 = 1;
const LEAVE: u8 = 2;
const DELETE: u8 = 3;
const APPEND: u8 = 4;

const ADDED: u8 = 1;
const CREATE: u8 = 2;
const NOTIFY: u8 = 4;
const RETRY: u8 = 1;

const JOINED: u8 = 1;
const LEFT: u8 = 2;
const DELETED: u8 = 3;
const STORED: u8 = 4;
const DENIED: u8 = 5;
const REFUSED: u8 = 6;

/// Bytes of an ask before its payload.
const ASK_BYTES: usize = 23;
const ANSWER_BYTES: usize = 10;

const DENIALS: [GroupDenial; 8] = [
    GroupDenial::NoGroup,
    GroupDenial::NotAMember,
    GroupDenial::Muted,
    GroupDenial::NotOpen,
    GroupDenial::Full,
    GroupDenial::TooManyGroups,
    GroupDenial::NodeFull,
    GroupDenial::RateLimited,
];

/// Whether it is for the home of a group: it changes who gets messages, or is one.
pub(crate) fn is_for_home(ask: &GroupAsk) -> bool {
    matches!(
        ask,
        GroupAsk::Join { .. } | GroupAsk::Leave { .. } | GroupAsk::Delete | GroupAsk::Append { .. } | GroupAsk::Claim
    )
}

/// Of what is for a home, but a claim; `None` for anything else.
pub(crate) fn encode_ask(ask: &GroupAsk) -> Option<Vec<u8>> {
    let bit = |set: bool, flag: u8| if set { flag } else { 0 };
    let plain = Member::default();
    let (kind, flags, user, id, member, payload): (u8, u8, u64, u64, &Member, &[u8]) = match ask {
        GroupAsk::Join { user, member, added, create } => {
            let flags = bit(*added, ADDED) | bit(*create, CREATE) | bit(member.notify, NOTIFY);
            (JOIN, flags, *user, 0, member, &[])
        }
        GroupAsk::Leave { user } => (LEAVE, 0, *user, 0, &plain, &[]),
        GroupAsk::Delete => (DELETE, 0, 0, 0, &plain, &[]),
        GroupAsk::Append { record, retry } => {
            (APPEND, bit(retry.is_some(), RETRY), record.from, record.id, &plain, &record.payload)
        }
        _ => return None,
    };
    let mut out = Vec::with_capacity(ASK_BYTES + payload.len());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&user.to_be_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.push(match member.role {
        Role::Member => 0,
        Role::Admin => 1,
        Role::Owner => 2,
    });
    out.extend_from_slice(&member.muted_until_s.to_be_bytes());
    out.extend_from_slice(payload);
    Some(out)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Of bytes from a peer; `None` if they make no sense. The stamp of a message is the home's to propose.
pub(crate) fn decode_ask(bytes: &[u8]) -> Option<GroupAsk> {
    let (head, payload) = bytes.split_first_chunk::<ASK_BYTES>()?;
    let (flags, user, id) = (head[1], word(&head[2..10]), word(&head[10..18]));
    let role = match head[18] {
        0 => Role::Member,
        1 => Role::Admin,
        2 => Role::Owner,
        _ => return None,
    };
    let muted_until_s = word(&head[19..23]) as u32;
    Some(match head[0] {
        JOIN => GroupAsk::Join {
            user,
            member: Member { muted_until_s, role, notify: flags & NOTIFY != 0 },
            added: flags & ADDED != 0,
            create: flags & CREATE != 0,
        },
        LEAVE => GroupAsk::Leave { user },
        DELETE => GroupAsk::Delete,
        APPEND => {
            let record = Record { stamp: 0, from: user, id, flags: 0, payload: Payload::from(payload) };
            GroupAsk::Append { record, retry: (flags & RETRY != 0).then_some(0) }
        }
        _ => return None,
    })
}

/// What came of an ask.
pub(crate) fn encode_reply(reply: &Reply) -> Vec<u8> {
    let (kind, flag, number) = match reply {
        Reply::Group(reply) => match **reply {
            GroupReply::Joined { news, last } => (JOINED, u8::from(news), last),
            GroupReply::Left { news, last } => (LEFT, u8::from(news), last),
            GroupReply::Deleted { news, members } => (DELETED, u8::from(news), members.into()),
            GroupReply::Stored { stamp, duplicate, .. } => (STORED, u8::from(duplicate), stamp),
            GroupReply::Denied(denial) => {
                let at = DENIALS.iter().position(|known| *known == denial).unwrap_or(0);
                (DENIED, at as u8, 0)
            }
            _ => (REFUSED, Refusal::Unavailable as u8, 0),
        },
        Reply::Refused(refusal) => (REFUSED, *refusal as u8, 0),
        _ => (REFUSED, Refusal::Unavailable as u8, 0),
    };
    let mut out = Vec::with_capacity(ANSWER_BYTES);
    out.extend_from_slice(&[kind, flag]);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// Of bytes from a peer; `None` if they make no sense.
pub(crate) fn decode_reply(bytes: &[u8]) -> Option<Reply> {
    let head: &[u8; ANSWER_BYTES] = bytes.try_into().ok()?;
    let (flag, number) = (head[1] != 0, word(&head[2..]));
    Some(Reply::Group(Box::new(match head[0] {
        JOINED => GroupReply::Joined { news: flag, last: number },
        LEFT => GroupReply::Left { news: flag, last: number },
        DELETED => GroupReply::Deleted { news: flag, members: u32::try_from(number).ok()? },
        // Who asks from afar gives the message to nobody.
        STORED => GroupReply::Stored { stamp: number, duplicate: flag, members: 0, before: 0 },
        DENIED => GroupReply::Denied(*DENIALS.get(usize::from(head[1]))?),
        REFUSED => return Some(Reply::Refused(*Refusal::ALL.get(usize::from(head[1]))?)),
        _ => return None,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ask_and_answer_is_read_as_it_was_written() {
        let member = Member { muted_until_s: 77, role: Role::Owner, notify: false };
        let record = Record { stamp: 0, from: 5, id: 6, flags: 0, payload: Payload::from(&b"hello"[..]) };
        for ask in [
            GroupAsk::Join { user: u64::MAX, member, added: true, create: false },
            GroupAsk::Join { user: 1, member: Member::default(), added: false, create: true },
            GroupAsk::Leave { user: 2 },
            GroupAsk::Delete,
            GroupAsk::Append { record, retry: Some(0) },
        ] {
            let bytes = encode_ask(&ask).expect("it is for a home");
            (0..ASK_BYTES).for_each(|cut| assert_eq!(decode_ask(&bytes[..cut]), None));
            assert_eq!(decode_ask(&bytes), Some(ask));
        }
        assert_eq!(encode_ask(&GroupAsk::Get), None);
        let replies = [
            GroupReply::Joined { news: true, last: 9 },
            GroupReply::Left { news: false, last: u64::MAX },
            GroupReply::Deleted { news: true, members: 8 },
            GroupReply::Stored { stamp: 7, duplicate: true, members: 0, before: 0 },
        ];
        let denials = DENIALS.map(GroupReply::Denied);
        let replies = replies.into_iter().chain(denials).map(|reply| Reply::Group(Box::new(reply)));
        for reply in replies.chain(Refusal::ALL.map(Reply::Refused)) {
            let bytes = encode_reply(&reply);
            assert_eq!(decode_reply(&bytes[1..]), None);
            assert_eq!(decode_reply(&bytes), Some(reply));
        }
        assert_eq!(decode_reply(&[99; ANSWER_BYTES]), None);
    }
}
