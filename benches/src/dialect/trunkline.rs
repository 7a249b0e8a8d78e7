//! Trunkline: LOGIN and LOGIN_OK, then SEND and DELIVER.

use trunkline_proto::{
    Code, FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, Outcome, VERSION, decode, encode, encode_message, flags,
};

use super::{Dialect, Event, Keeper, Word};

/// Longer than any phase, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;

pub(crate) struct Trunkline;

impl Dialect for Trunkline {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        let login = Login { version: VERSION, user, heartbeat_secs: HEARTBEAT_SECS, ..Login::default() };
        encode_message(out, Kind::Login, 0, &login);
    }

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        encode(out, &Header { kind: Kind::Send, flags: 0, aux: 0, id: 1, peer: to, stamp: 0 }, payload);
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).map_err(|violation| violation.to_string())?;
        Ok(decoded.map(|(frame, taken)| {
            let event = match frame.known() {
                Some(Kind::LoginOk) => Event::Ready,
                Some(Kind::Deliver) => Event::Message(frame.body),
                Some(Kind::Bye | Kind::Error) => {
                    Event::Refused(Code::from_u16(frame.aux).map_or("unknown reason", Code::text).to_owned())
                }
                _ => Event::Nothing,
            };
            (event, taken)
        }))
    }
}

impl Keeper for Trunkline {
    fn enter(&self, _: u32, user: u64, out: &mut Vec<u8>) {
        // Nothing is kept for those who send.
        let login =
            Login { version: VERSION, user, heartbeat_secs: HEARTBEAT_SECS, ephemeral: true, ..Login::default() };
        encode_message(out, Kind::Login, 0, &login);
    }

    fn put(&self, _: u32, _: u64, to: u64, id: u64, payload: &[u8], out: &mut Vec<u8>) {
        encode(out, &Header { kind: Kind::Send, flags: flags::ACK, aux: 0, id, peer: to, stamp: 0 }, payload);
    }

    fn next(&self, bytes: &[u8]) -> Result<Option<(Word, usize)>, String> {
        let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).map_err(|violation| violation.to_string())?;
        let Some((frame, taken)) = decoded else { return Ok(None) };
        let word = match frame.known() {
            Some(Kind::LoginOk) => Word::Ready,
            // The end of the backlog, which is empty.
            Some(Kind::SyncOk) => Word::Nothing,
            Some(Kind::Sent) => match Outcome::from_u16(frame.aux) {
                Some(Outcome::Stored) => Word::Kept(Some(frame.id)),
                Some(known) => Word::NotKept(Some(frame.id), format!("SENT {} ({known:?})", frame.aux)),
                None => Word::NotKept(Some(frame.id), format!("SENT {}", frame.aux)),
            },
            Some(kind @ (Kind::Bye | Kind::Error)) => {
                let reason = Code::from_u16(frame.aux).map_or("unknown reason", Code::text);
                Word::Refused(format!("{} {} ({reason})", kind.name(), frame.aux))
            }
            _ => return Err(format!("a frame of kind {:#04x}", frame.kind)),
        };
        Ok(Some((word, taken)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    #[test]
    fn the_outcome_of_each_message_is_understood() {
        let mut heard = Vec::new();
        for (kind, aux, id) in [(Kind::LoginOk, 0, 0), (Kind::SyncOk, 0, 0), (Kind::Bye, 14, 0)] {
            encode(&mut heard, &Header { kind, flags: 0, aux, id, peer: 0, stamp: 0 }, &[]);
        }
        for (aux, id) in [(1, 7), (3, 8)] {
            encode(&mut heard, &Header { kind: Kind::Sent, flags: 0, aux, id, peer: 9, stamp: 0 }, &[]);
        }
        let heard = words(&Trunkline, &heard);
        assert_eq!(heard[..2], [Word::Ready, Word::Nothing]);
        assert!(matches!(&heard[2], Word::Refused(why) if why.contains("14")), "{heard:?}");
        assert_eq!(heard[3], Word::Kept(Some(7)));
        assert!(matches!(&heard[4], Word::NotKept(Some(8), why) if why.contains("Overloaded")), "{heard:?}");
    }
}
