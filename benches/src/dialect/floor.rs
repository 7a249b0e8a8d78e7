//! The floor: frames of Trunkline's size come back as they were sent.

use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Header, Kind, decode, encode};

use super::{Dialect, Event};

pub(crate) struct Echo;

impl Dialect for Echo {
    fn is_ready_at_once(&self) -> bool {
        true
    }

    fn enter(&self, _: u64, _: &mut Vec<u8>) {}

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        encode(out, &Header { kind: Kind::Send, flags: 0, aux: 0, id: 1, peer: to, stamp: 0 }, payload);
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).map_err(|violation| violation.to_string())?;
        Ok(decoded.map(|(frame, taken)| (Event::Message(frame.body), taken)))
    }
}
