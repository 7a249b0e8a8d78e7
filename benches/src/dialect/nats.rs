//! NATS: CONNECT, SUB of the client's own subject, PUB to another's, MSG.
//! Source: the client protocol of docs.nats.io.

use std::io::Write as _;

use super::{Dialect, Event, Subjects, line};

pub(crate) struct Nats;

impl Dialect for Nats {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        self.enter_for(user, user, out);
    }

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB u.{to} {}\r\n", payload.len()).expect("a vector takes all");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let Some((head, head_bytes)) = line(bytes) else { return Ok(None) };
        let text = String::from_utf8_lossy(head);
        let event = match text.split(' ').next().unwrap_or_default() {
            "MSG" => {
                let length: usize = text
                    .rsplit(' ')
                    .next()
                    .and_then(|length| length.parse().ok())
                    .ok_or_else(|| format!("a MSG without length: {text}"))?;
                let end = head_bytes + length;
                if bytes.len() < end + 2 {
                    return Ok(None);
                }
                return Ok(Some((Event::Message(&bytes[head_bytes..end]), end + 2)));
            }
            "PONG" => Event::Ready,
            "PING" => Event::Answer(b"PONG\r\n"),
            "INFO" | "+OK" => Event::Nothing,
            "-ERR" => Event::Refused(text.into_owned()),
            _ => return Err(format!("an unknown line: {text}")),
        };
        Ok(Some((event, head_bytes)))
    }
}

impl Subjects for Nats {
    fn enter_for(&self, _: u64, subject: u64, out: &mut Vec<u8>) {
        let login = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"rust","version":"1"}"#;
        // The PONG comes after the subscription is known.
        write!(out, "{login}\r\nSUB u.{subject} 1\r\nPING\r\n").expect("a vector takes all");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_splits, events};
    use super::*;

    const HEARD: &[u8] = b"INFO {\"a\":1}\r\nPONG\r\nMSG u.7 1 5\r\n\r\nabc\r\nPING\r\n-ERR 'no'\r\n";

    #[test]
    fn every_line_is_understood_however_it_is_cut() {
        let seen = events(&Nats, HEARD);
        assert_eq!(seen.len(), 5);
        assert_eq!(Nats.next(b"MSG u.7 1 5\r\n\r\nabc\r\n"), Ok(Some((Event::Message(b"\r\nabc"), 20))));
        assert_splits(&Nats, HEARD);
        assert!(Nats.next(b"WHAT\r\n").is_err() && Nats.next(b"MSG u.7\r\n").is_err());
    }
}
