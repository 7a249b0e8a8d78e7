//! Redis, RESP3: SUBSCRIBE to the client's own channel, PUBLISH to another's, on one connection.
//! Source: the RESP3 specification and the Pub/Sub pages of redis.io.

use std::io::Write as _;

use super::{Dialect, Event, Subjects, line};

/// Values inside each other; the replies read here have two levels.
const DEPTH_MAX: u32 = 8;

pub(crate) struct Resp;

impl Dialect for Resp {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        self.enter_for(user, user, out);
    }

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        let channel = format!("u:{to}");
        write!(out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), payload.len())
            .expect("a vector takes all");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let Some(length) = value_len(bytes, 0)? else { return Ok(None) };
        let event = match bytes[0] {
            b'>' => match strings(&bytes[..length])?.as_slice() {
                [b"message", _, payload] => Event::Message(payload),
                [b"subscribe", ..] => Event::Ready,
                _ => Event::Nothing,
            },
            b'-' => Event::Refused(String::from_utf8_lossy(&bytes[1..length - 2]).into_owned()),
            _ => Event::Nothing,
        };
        Ok(Some((event, length)))
    }
}

impl Subjects for Resp {
    fn enter_for(&self, _: u64, subject: u64, out: &mut Vec<u8>) {
        let channel = format!("u:{subject}");
        write!(out, "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{channel}\r\n", channel.len())
            .expect("a vector takes all");
    }
}

fn number(head: &[u8]) -> Result<usize, String> {
    let text = String::from_utf8_lossy(&head[1..]);
    text.parse().map_err(|_| format!("no length: {text}"))
}

/// Bytes of the value that `bytes` begin with; `None` when it is not whole.
pub(super) fn value_len(bytes: &[u8], depth: u32) -> Result<Option<usize>, String> {
    if depth > DEPTH_MAX {
        return Err("values too deep inside each other".to_owned());
    }
    let Some((head, head_bytes)) = line(bytes) else { return Ok(None) };
    let Some(kind) = head.first() else { return Err("an empty line".to_owned()) };
    let parts = match kind {
        b'$' => {
            let end = head_bytes + number(head)? + 2;
            return Ok((bytes.len() >= end).then_some(end));
        }
        b'*' | b'>' | b'~' => number(head)?,
        b'%' => 2 * number(head)?,
        b'+' | b'-' | b':' | b'_' | b'#' | b',' => return Ok(Some(head_bytes)),
        _ => return Err(format!("a value of kind {}", char::from(*kind))),
    };
    let mut at = head_bytes;
    for _ in 0..parts {
        match value_len(&bytes[at..], depth + 1)? {
            Some(length) => at += length,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// The strings of a whole push; other values are empty.
fn strings(push: &[u8]) -> Result<Vec<&[u8]>, String> {
    let (head, mut at) = line(push).ok_or("a push without a line")?;
    let mut strings = Vec::new();
    for _ in 0..number(head)? {
        let length = value_len(&push[at..], 1)?.ok_or("a push that is not whole")?;
        let value = &push[at..at + length];
        let text = match line(value) {
            Some((head, head_bytes)) if head.first() == Some(&b'$') => &value[head_bytes..length - 2],
            _ => &[],
        };
        strings.push(text);
        at += length;
    }
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use super::super::{assert_splits, events};
    use super::*;

    const HEARD: &[u8] = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n\
        >3\r\n$9\r\nsubscribe\r\n$3\r\nu:7\r\n:1\r\n:1\r\n>3\r\n$7\r\nmessage\r\n$3\r\nu:7\r\n$4\r\n\r\nab\r\n\
        -ERR no\r\n";

    #[test]
    fn every_value_is_understood_however_it_is_cut() {
        let seen = events(&Resp, HEARD);
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert_eq!(seen[1], "Ready");
        assert_eq!(seen[3], format!("{:?}", Event::Message(b"\r\nab")));
        assert_splits(&Resp, HEARD);
        assert!(Resp.next(b"!x\r\n").is_err() && Resp.next(b"$x\r\n").is_err());
        assert!(Resp.next(&b"*1\r\n".repeat(20)).is_err());
    }
}
