//! Redis streams: XADD to the stream of each user; answers come in the order of the commands.
//! Source: the RESP specification and the page of XADD of redis.io.

use std::io::Write as _;

use super::{Keeper, Word, line, resp::value_len};

pub(crate) struct Streams;

impl Keeper for Streams {
    fn enter(&self, _: u32, _: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    }

    fn put(&self, _: u32, from: u64, to: u64, id: u64, payload: &[u8], out: &mut Vec<u8>) {
        // Sender and id are needed to tell a message that comes again: every keeper has them.
        let (key, from, id) = (format!("u:{to}"), from.to_string(), id.to_string());
        let (key_len, from_len, id_len) = (key.len(), from.len(), id.len());
        write!(out, "*9\r\n$4\r\nXADD\r\n${key_len}\r\n{key}\r\n$1\r\n*\r\n$1\r\nf\r\n${from_len}\r\n{from}\r\n")
            .expect("a vector takes all");
        write!(out, "$1\r\ni\r\n${id_len}\r\n{id}\r\n$1\r\nm\r\n${}\r\n", payload.len()).expect("a vector takes all");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn next(&self, bytes: &[u8]) -> Result<Option<(Word, usize)>, String> {
        let Some(length) = value_len(bytes, 0)? else { return Ok(None) };
        let head = line(bytes).map_or(&[][..], |(head, _)| head);
        let word = match head.first() {
            Some(b'$') => Word::Kept(None),
            Some(b'-') => Word::NotKept(None, String::from_utf8_lossy(&head[1..]).into_owned()),
            Some(b'+') if head == b"+PONG" => Word::Ready,
            _ => return Err(format!("an unknown answer: {}", String::from_utf8_lossy(head))),
        };
        Ok(Some((word, length)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    #[test]
    fn answers_come_in_order() {
        let heard = b"+PONG\r\n$3\r\n1-0\r\n-OOM no room\r\n";
        assert_eq!(
            words(&Streams, heard),
            [Word::Ready, Word::Kept(None), Word::NotKept(None, "OOM no room".to_owned())]
        );
        assert!(Streams.next(b":1\r\n").is_err());
    }

    #[test]
    fn a_message_is_one_command() {
        let mut out = Vec::new();
        Streams.put(0, 1, 22, 3, b"\r\nx", &mut out);
        let expected = "*9\r\n$4\r\nXADD\r\n$4\r\nu:22\r\n$1\r\n*\r\n\
            $1\r\nf\r\n$1\r\n1\r\n$1\r\ni\r\n$1\r\n3\r\n$1\r\nm\r\n$3\r\n\r\nx\r\n";
        assert_eq!(String::from_utf8(out).as_deref(), Ok(expected));
    }
}
