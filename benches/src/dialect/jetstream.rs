//! NATS JetStream: one stream over the subjects of all users; each message is published with a reply subject that names
//! it, and the stream's acknowledgement comes there.
//! Source: the client protocol and the JetStream API of docs.nats.io.

use std::io::Write as _;

use super::{Keeper, Word, line};

/// The stream. Every client asks for it; whoever comes later finds it made.
const STREAM: &str = "KEPT";
/// What stands in its reply subjects in place of a message's id when the stream is asked for.
const CREATED: &str = "made";

pub(crate) struct JetStream;

impl Keeper for JetStream {
    fn enter(&self, connection: u32, _: u64, out: &mut Vec<u8>) {
        let login = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"rust","version":"1"}"#;
        let kept = r#""retention":"limits","storage":"file","num_replicas":1,"discard":"old""#;
        let stream = format!(r#"{{"name":"{STREAM}","subjects":["u.*"],{kept}}}"#);
        let length = stream.len();
        write!(out, "{login}\r\nSUB _I.{connection}.* 1\r\n").expect("a vector takes all");
        write!(out, "PUB $JS.API.STREAM.CREATE.{STREAM} _I.{connection}.{CREATED} {length}\r\n{stream}\r\n")
            .expect("a vector takes all");
    }

    fn put(&self, connection: u32, _: u64, to: u64, id: u64, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB u.{to} _I.{connection}.{id} {}\r\n", payload.len()).expect("a vector takes all");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn next(&self, bytes: &[u8]) -> Result<Option<(Word, usize)>, String> {
        let Some((head, head_bytes)) = line(bytes) else { return Ok(None) };
        let text = String::from_utf8_lossy(head);
        let word = match text.split(' ').next().unwrap_or_default() {
            "MSG" => {
                let length = text.rsplit(' ').next().and_then(|length| length.parse::<usize>().ok());
                let end = head_bytes + length.ok_or_else(|| format!("a MSG without length: {text}"))?;
                if bytes.len() < end + 2 {
                    return Ok(None);
                }
                return Ok(Some((answer(&text, &bytes[head_bytes..end])?, end + 2)));
            }
            "PING" => Word::Answer(b"PONG\r\n"),
            "INFO" | "+OK" | "PONG" => Word::Nothing,
            "-ERR" => Word::Refused(text.into_owned()),
            _ => return Err(format!("an unknown line: {text}")),
        };
        Ok(Some((word, head_bytes)))
    }
}

/// What the server says to a message, or about the stream.
fn answer(head: &str, body: &[u8]) -> Result<Word, String> {
    let body = String::from_utf8_lossy(body);
    let what = head.split(' ').nth(1).and_then(|subject| subject.rsplit('.').next()).unwrap_or_default();
    let is_error = body.contains(r#""error""#);
    if what == CREATED {
        return Ok(if is_error { Word::Refused(body.into_owned()) } else { Word::Ready });
    }
    let id = what.parse().map_err(|_| format!("an answer to nothing: {head}"))?;
    Ok(if is_error { Word::NotKept(Some(id), body.into_owned()) } else { Word::Kept(Some(id)) })
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    #[test]
    fn the_stream_is_made_once_and_each_message_has_its_answer() {
        let heard = b"INFO {}\r\nMSG _I.3.made 1 10\r\n{\"type\":1}\r\nPING\r\n\
            MSG _I.3.77 1 25\r\n{\"stream\":\"KEPT\",\"seq\":1}\r\n\
            MSG _I.3.78 1 12\r\n{\"error\":{}}\r\n-ERR 'no'\r\n";
        let expected = [
            Word::Nothing,
            Word::Ready,
            Word::Answer(b"PONG\r\n"),
            Word::Kept(Some(77)),
            Word::NotKept(Some(78), "{\"error\":{}}".to_owned()),
            Word::Refused("-ERR 'no'".to_owned()),
        ];
        assert_eq!(words(&JetStream, heard), expected);
        assert!(JetStream.next(b"WHAT\r\n").is_err() && JetStream.next(b"MSG _I.1.x 1 0\r\n\r\n").is_err());
    }

    #[test]
    fn a_message_names_its_reply() {
        let mut out = Vec::new();
        JetStream.put(3, 1, 9, 77, b"abc", &mut out);
        assert_eq!(out, b"PUB u.9 _I.3.77 3\r\nabc\r\n");
    }
}
