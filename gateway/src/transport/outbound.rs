//! From an outbox to what is sent. An outbox holds native frames, whatever the transport, so that what it holds is counted and bounded alike; here,
//! once for each send, they become what the transport carries.

use crate::conn::Wire;
use trunkline_proto::websocket::{put_messages, seal as seal_messages, sealed_frames};
use trunkline_proto::{Frame, HEADER_SHORT, Kind, decode, flags};

/// Kind of a frame that stands in an outbox only: its body is sent as it is, between messages. No kind of the protocol has the number 0.
const RAW: u8 = 0;
const _: () = assert!(Kind::from_u8(RAW).is_none());

/// Queues bytes that are no frame: an answer of HTTP, a control frame of a WebSocket. [`Wire::RAW`] has to be set with it.
pub(crate) fn put_raw(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; HEADER_SHORT]);
    out[begin + 4] = RAW;
    write(out);
    let length = (out.len() - begin) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
}

/// Makes of an outbox's frames what is sent over `wire`. Without `raw` there are none of [`put_raw`] among them.
pub(crate) fn seal(frames: &mut Vec<u8>, wire: Wire, raw: bool) {
    if !raw && wire == Wire::WEBSOCKET {
        return seal_messages(frames);
    }
    let mut sealed = Vec::with_capacity(frames.len());
    let (mut run, mut at) = (0, 0);
    while let Ok(Some((Frame { kind, body, .. }, len))) = decode(&frames[at..], u32::MAX) {
        if kind == RAW {
            put_messages(&mut sealed, &frames[run..at]);
            sealed.extend_from_slice(body);
            run = at + len;
        }
        at += len;
    }
    put_messages(&mut sealed, &frames[run..at]);
    *frames = sealed;
}

/// As [`unsent_messages`](crate::outbox::unsent_messages), of what [`seal`] has made.
pub(crate) fn unsent_sealed_messages(sealed: &[u8], taken: usize) -> u64 {
    // The answer to a request may come before the first message.
    let head = if sealed.starts_with(b"HTTP/") {
        let end = sealed.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        end.map_or(sealed.len(), |end| end + 4)
    } else {
        0
    };
    let lost = |frame: &Frame<'_>, end: usize| {
        head + end > taken && frame.kind == Kind::Deliver as u8 && frame.flags & flags::ACK == 0
    };
    sealed_frames(&sealed[head..]).filter(|(frame, end)| lost(frame, *end)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::unsent_messages;
    use trunkline_proto::websocket::{Opcode, put_control, put_frame};
    use trunkline_proto::{Header, encode};

    fn deliver(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind: Kind::Deliver, flags, aux: 0, id: 1, peer: 2, stamp: 3 }, body);
        bytes
    }

    fn message(frames: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Opcode::Binary, true, None, frames);
        bytes
    }

    fn pong(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_control(&mut bytes, Opcode::Pong, payload);
        bytes
    }

    fn raw(bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_raw(&mut frame, |out| out.extend_from_slice(bytes));
        frame
    }

    fn sealed(frames: &[u8], raw: bool) -> Vec<u8> {
        let mut frames = frames.to_vec();
        seal(&mut frames, Wire::WEBSOCKET, raw);
        frames
    }

    #[test]
    fn frames_are_one_message_and_what_is_raw_stands_between_messages() {
        let (first, second) = (deliver(0, b"first"), deliver(0, b"second"));
        let both = [&first[..], &second].concat();
        assert_eq!(sealed(&both, false), message(&both));
        assert_eq!(sealed(&both, true), message(&both), "nothing is raw, though it was said");
        let pongs = [raw(&pong(b"1")), raw(&pong(b"2"))].concat();
        let queued = [&pongs[..], &first, &raw(&pong(b"3")), &second, &raw(b"\x88\0")].concat();
        let wanted =
            [&pong(b"1")[..], &pong(b"2"), &message(&first), &pong(b"3"), &message(&second), b"\x88\0"].concat();
        assert_eq!(sealed(&queued, true), wanted);
        assert_eq!(sealed(&raw(b"HTTP/1.1 404"), true), b"HTTP/1.1 404");
        assert_eq!(sealed(b"", true), b"");
    }

    #[test]
    fn messages_that_were_not_taken_are_counted_as_in_a_native_outbox() {
        let frames = [deliver(0, b"a"), deliver(flags::ACK, b"b"), deliver(0, b"c")].concat();
        let upgrade = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let queued = [&raw(upgrade)[..], &raw(&pong(b"x")), &frames].concat();
        let sent = sealed(&queued, true);
        let before = sent.len() - frames.len();
        assert_eq!(unsent_messages(&queued, 0), 2);
        for taken in 0..=sent.len() {
            let of_frames = taken.saturating_sub(before);
            assert_eq!(unsent_sealed_messages(&sent, taken), unsent_messages(&frames, of_frames), "{taken} bytes");
        }
        assert_eq!(unsent_sealed_messages(&upgrade[..20], 0), 0);
    }
}
