//! A client's end of a WebSocket: the request, and frames as messages.

use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, frame_len,
    websocket::{Control, Decoder, Opcode, Part, Role, Rules, put_frame},
};

/// Appends the request of a client. The key need not be secret or random: it keeps caches from answering, of which
/// there are none here.
pub(crate) fn put_request(subprotocol: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    );
    if !subprotocol.is_empty() {
        out.extend_from_slice(format!("Sec-WebSocket-Protocol: {subprotocol}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The answer to that key: RFC 6455, section 1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A longer answer is none of a gateway.
const ANSWER_BYTES_MAX: usize = 4_096;

/// Bytes of the answer that accepts the request; `None` while it is not whole.
///
/// # Errors
///
/// The answer is another one: a sentence for a person.
pub(crate) fn accepted(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        let is_long = bytes.len() > ANSWER_BYTES_MAX;
        return if is_long {
            Err("the server's answer to the WebSocket's request has no end".to_owned())
        } else {
            Ok(None)
        };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let accept = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-accept").then(|| value.trim())
    });
    if status.starts_with("HTTP/1.1 101 ") && accept == Some(ACCEPT) {
        return Ok(Some(end + 4));
    }
    Err(format!("the server answered the WebSocket's request with {status:?}"))
}

/// Where masks come from. They keep intermediaries from being deceived, of which there are none here; but a server has
/// to undo one that is not zero.
#[derive(Debug)]
pub(crate) struct Masks(u64);

impl Masks {
    /// A sequence of its own for each seed.
    pub(crate) fn new(seed: u64) -> Masks {
        Masks(seed)
    }

    /// SplitMix64, see [`crate::payload`].
    pub(crate) fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((word >> 32) as u32).to_be_bytes()
    }

    /// Appends what is said at once as one message.
    pub(crate) fn put_whole(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if !bytes.is_empty() {
            put_frame(out, Opcode::Binary, true, Some(self.next()), bytes);
        }
    }

    /// Appends each of some whole frames as a message of its own.
    pub(crate) fn put_each(&mut self, mut frames: &[u8], out: &mut Vec<u8>) {
        while !frames.is_empty() {
            // Only whole frames are written here.
            let length = frame_len(frames, FRAME_BYTES_MAX_LIMIT).ok().flatten().unwrap_or(frames.len());
            let (frame, rest) = frames.split_at(length.min(frames.len()));
            put_frame(out, Opcode::Binary, true, Some(self.next()), frame);
            frames = rest;
        }
    }
}

/// Takes the messages of another server's WebSocket out of `bytes`: what they hold comes to lie at its front. Returns
/// how many bytes that are.
///
/// # Errors
///
/// The server has closed it, or it is no WebSocket: a sentence for a person.
pub(crate) fn take_other(
    decoder: &mut Decoder,
    bytes: &mut [u8],
    mut on_control: impl FnMut(Control<'_>),
) -> Result<usize, String> {
    const RULES: Rules = Rules { role: Role::Client, text: false, message_bytes_max: FRAME_BYTES_MAX_LIMIT };
    let (mut at, mut taken) = (0, 0);
    while at < bytes.len() {
        let step = decoder.step(&RULES, &mut bytes[at..]).map_err(|why| format!("its WebSocket is none: {why:?}"))?;
        match step.part {
            Some(Part::Data { range, .. }) => {
                bytes.copy_within(at + range.start..at + range.end, taken);
                taken += range.len();
            }
            Some(Part::Control { opcode: Opcode::Ping, range, before: 0, end: true }) => {
                on_control(Control::Ping(&bytes[at + range.start..at + range.end]));
            }
            Some(Part::Control { opcode: Opcode::Pong, .. }) | None => {}
            Some(Part::Control { opcode, .. }) => {
                return Err(format!("it sent a {opcode:?} that is not expected here"));
            }
        }
        at += step.consumed;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_proto::{Header, Kind, encode, websocket::Inbound};

    #[test]
    fn messages_of_other_servers_may_be_cut_anywhere() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Opcode::Binary, false, None, b"MSG u.7 ");
        put_frame(&mut bytes, Opcode::Ping, true, None, b"?");
        put_frame(&mut bytes, Opcode::Continuation, true, None, b"1 5");
        put_frame(&mut bytes, Opcode::Binary, true, None, &[b'x'; 200]);
        for cut in 0..=bytes.len() {
            let (mut decoder, mut heard, mut pings) = (Decoder::default(), Vec::new(), 0);
            for piece in [&bytes[..cut], &bytes[cut..]] {
                let mut piece = piece.to_vec();
                let taken = take_other(&mut decoder, &mut piece, |_| pings += 1).expect("valid");
                heard.extend_from_slice(&piece[..taken]);
            }
            assert_eq!((heard, pings), ([&b"MSG u.7 1 5"[..], &[b'x'; 200]].concat(), 1), "cut at {cut}");
        }
        let mut close = Vec::new();
        put_frame(&mut close, Opcode::Close, true, None, b"");
        assert!(take_other(&mut Decoder::default(), &mut close, |_| ()).is_err());
    }

    #[test]
    fn a_request_names_a_subprotocol_if_there_is_one() {
        let of = |subprotocol| {
            let mut request = Vec::new();
            put_request(subprotocol, &mut request);
            String::from_utf8(request).expect("ASCII")
        };
        assert!(of("mqtt").ends_with("\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"));
        assert!(!of("").contains("Protocol") && of("").ends_with("==\r\n\r\n"));
    }

    #[test]
    fn the_answer_is_found_wherever_it_is_cut() {
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        let bytes = [answer.as_bytes(), &[0x82, 0]].concat();
        for end in 0..answer.len() {
            assert_eq!(accepted(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(accepted(&bytes), Ok(Some(answer.len())));
        let refused = accepted(b"HTTP/1.1 403 Forbidden\r\n\r\n").expect_err("refused");
        assert!(refused.contains("403 Forbidden"), "{refused}");
        assert!(accepted(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n").is_err());
        assert!(accepted(&[b'x'; ANSWER_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn frames_become_masked_messages_that_a_server_reads_back() {
        let mut frames = Vec::new();
        for bytes in [0, 64, 200, 70_000] {
            let header = Header { kind: Kind::Send, flags: 0, aux: 0, id: 1, peer: 2, stamp: 0 };
            encode(&mut frames, &header, &vec![7; bytes]);
        }
        let mut out = Vec::new();
        Masks::new(1).put_each(&frames, &mut out);
        assert!(!out.windows(40).any(|part| part == [7; 40]), "it is masked");
        let mut inbound = Inbound::default();
        let taken = inbound.take(Role::Server, &mut out, |_| ());
        assert_eq!((&out[..taken.native], taken.end), (&frames[..], None));
        assert!(inbound.is_idle());
    }
}
