//! From an outbox to what is sent. An outbox holds native frames, whatever the transport, so that what it holds is
//! counted and bounded alike; here, once for each send, they become what the transport carries: messages of a
//! WebSocket, and of either the records of TLS.

use super::tls::{Bounds, ContentType, View, seal_owed, seal_records, sealed_end};
use crate::conn::Wire;
use crate::outbox::{SealedMessages, is_message};
use trunkline_proto::websocket::{put_messages, seal as seal_messages, sealed_frames};
use trunkline_proto::{Frame, HEADER_SHORT, Kind, decode, flags};

/// Kind of a frame that stands in an outbox only: its body is sent as it is, between messages. No kind of the protocol
/// has the number 0.
const RAW: u8 = 0;
const _: () = assert!(Kind::from_u8(RAW).is_none());
/// Kind of another such frame: the first byte of its body says in which records of TLS the rest is sent, or that it is
/// sent as it is.
const LAYER: u8 = 0xFF;
const _: () = assert!(Kind::from_u8(LAYER).is_none());
const IN_CLEAR: u8 = 0;

/// Queues bytes that are no frame: an answer of HTTP, a control frame of a WebSocket. [`Wire::RAW`] has to be set with
/// it.
pub(crate) fn put_raw(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    put_own(out, RAW, write);
}

/// Queues what stands between records of data: records of a handshake, which are sent as they are, or the content of a
/// record of some type. Without content it sends what is owed. [`Wire::LAYERED`] has to be set with it.
pub(crate) fn put_layer(out: &mut Vec<u8>, kind: Option<ContentType>, bytes: &[u8]) {
    put_own(out, LAYER, |out| {
        out.push(kind.map_or(IN_CLEAR, |kind| kind as u8));
        out.extend_from_slice(bytes);
    });
}

fn put_own(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; HEADER_SHORT]);
    out[begin + 4] = kind;
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

/// Makes of an outbox's frames, in records of TLS, what is sent over `wire`. `sealed` gets where messages lie. Without
/// keys only what is sent as it is can be sent. Returns how many keys of this side have changed by it.
pub(crate) fn seal_tls(
    frames: &mut Vec<u8>,
    wire: Wire,
    keys: Option<&mut View<'_>>,
    sealed: &mut Vec<SealedMessages>,
) -> u32 {
    let Some(view) = keys else {
        *frames = in_clear(frames);
        return 0;
    };
    let mut sealing = Sealing { view, wire, sealed, updates: 0 };
    if !wire.has(Wire::LAYERED) && !sealing.owes() {
        sealing.data(frames, 0);
        return 0;
    }
    let mut out = Vec::with_capacity(frames.len() + 64);
    let (mut run, mut at) = (0, 0);
    while let Ok(Some((Frame { kind, body, .. }, len))) = decode(&frames[at..], u32::MAX) {
        if kind == LAYER {
            sealing.run(&frames[run..at], &mut out);
            sealing.layer(body, &mut out);
            run = at + len;
        }
        at += len;
    }
    sealing.run(&frames[run..at], &mut out);
    *frames = out;
    sealing.updates
}

/// What of an outbox stands between records of data, as it is queued.
pub(crate) fn layers(frames: &[u8]) -> Vec<u8> {
    let (mut layers, mut at) = (Vec::new(), 0);
    while let Ok(Some((Frame { kind, .. }, len))) = decode(&frames[at..], u32::MAX) {
        if kind == LAYER {
            layers.extend_from_slice(&frames[at..at + len]);
        }
        at += len;
    }
    layers
}

/// What of an outbox is sent as it is.
fn in_clear(frames: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while let Ok(Some((Frame { kind, body, .. }, len))) = decode(&frames[at..], u32::MAX) {
        if let (LAYER, Some((&IN_CLEAR, bytes))) = (kind, body.split_first()) {
            out.extend_from_slice(bytes);
        }
        at += len;
    }
    out
}

/// An outbox on its way into records.
struct Sealing<'a, 'k> {
    view: &'a mut View<'k>,
    wire: Wire,
    sealed: &'a mut Vec<SealedMessages>,
    updates: u32,
}

impl Sealing<'_, '_> {
    fn owes(&self) -> bool {
        self.view.owes(&Bounds::STANDARD)
    }

    /// Appends frames that stand between two layers.
    fn run(&mut self, frames: &[u8], out: &mut Vec<u8>) {
        if frames.is_empty() {
            return;
        }
        self.updates += seal_owed(self.view, &Bounds::STANDARD, out);
        let mut data = frames.to_vec();
        self.data(&mut data, out.len());
        out.extend_from_slice(&data);
    }

    /// Appends what stands between records of data.
    fn layer(&mut self, body: &[u8], out: &mut Vec<u8>) {
        match body.split_first() {
            Some((&IN_CLEAR, bytes)) => out.extend_from_slice(bytes),
            Some((kind, bytes)) => {
                self.updates += seal_owed(self.view, &Bounds::STANDARD, out);
                let from = out.len();
                out.extend_from_slice(bytes);
                if let Some(kind) = ContentType::of(*kind) {
                    seal_records(self.view, kind, out, from);
                }
            }
            None => {}
        }
    }

    /// Makes records of frames in place, which are to stand at `place` of what is sent.
    fn data(&mut self, frames: &mut Vec<u8>, place: usize) {
        let websocket = self.wire.kind() != Wire::NATIVE;
        if websocket {
            seal(frames, self.wire.kind(), self.wire.has(Wire::RAW));
        }
        let all = frames.len();
        let mut note = |frame: &Frame<'_>, end: usize| {
            if is_message(frame.kind) && frame.flags & flags::ACK == 0 {
                let end = (place + sealed_end(self.view, all, end)) as u32;
                match self.sealed.last_mut().filter(|record| record.end == end) {
                    Some(record) => record.messages += 1,
                    None => self.sealed.push(SealedMessages { end, messages: 1 }),
                }
            }
        };
        if websocket {
            let head = head_bytes(frames);
            sealed_frames(&frames[head..]).for_each(|(frame, end)| note(&frame, head + end));
        } else {
            let mut at = 0;
            while let Ok(Some((frame, len))) = decode(&frames[at..], u32::MAX) {
                at += len;
                note(&frame, at);
            }
        }
        seal_records(self.view, ContentType::Data, frames, 0);
    }
}

/// Bytes before the first message: there may be the answer to a request.
fn head_bytes(sealed: &[u8]) -> usize {
    if !sealed.starts_with(b"HTTP/") {
        return 0;
    }
    let end = sealed.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    end.map_or(sealed.len(), |end| end + 4)
}

/// As [`unsent_messages`](crate::outbox::unsent_messages), of what [`seal`] has made.
pub(crate) fn unsent_sealed_messages(sealed: &[u8], taken: usize) -> u64 {
    let head = head_bytes(sealed);
    let lost =
        |frame: &Frame<'_>, end: usize| head + end > taken && is_message(frame.kind) && frame.flags & flags::ACK == 0;
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

    #[test]
    fn what_stands_between_records_is_told_from_frames() {
        let mut out = deliver(0, b"one");
        let from = out.len();
        put_layer(&mut out, None, b"a ticket");
        let between = out.len();
        out.extend(deliver(flags::ACK, b"two"));
        let behind = out.len();
        put_layer(&mut out, Some(ContentType::Alert), &[2, 10]);
        assert_eq!(layers(&out), [&out[from..between], &out[behind..]].concat());
        assert!(layers(&deliver(0, b"one")).is_empty());
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
