//! Trunkline: LOGIN and LOGIN_OK, then SEND and DELIVER.

use trunkline_proto::{Code, FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, VERSION, decode, encode, encode_message};

use super::{Dialect, Event};

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
