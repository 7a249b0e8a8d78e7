//! Against tungstenite, whose authors have not read this code: each reads what the other writes.

use super::{CLIENT, SERVER, Whole, read};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{Cursor, Read, Write};
use trunkline_proto::websocket::{Opcode, put_frame};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

/// A stream of which one end reads what it is given, and another writes to a vector.
struct Halves {
    read: Cursor<Vec<u8>>,
    written: Vec<u8>,
}

impl Halves {
    fn new(read: Vec<u8>) -> Self {
        Halves { read: Cursor::new(read), written: Vec::new() }
    }
}

impl Read for Halves {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self.read.read(buf)? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Halves {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.written.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn any_whole() -> impl Strategy<Value = Whole> {
    prop_oneof![
        "\\PC{0,60}".prop_map(|text| (Opcode::Text, text.into_bytes())),
        vec(any::<u8>(), 0..400).prop_map(|bytes| (Opcode::Binary, bytes)),
        vec(any::<u8>(), 0..=125).prop_map(|bytes| (Opcode::Ping, bytes)),
        vec(any::<u8>(), 0..=125).prop_map(|bytes| (Opcode::Pong, bytes)),
    ]
}

fn message(whole: &Whole) -> Message {
    let payload = whole.1.clone();
    match whole.0 {
        Opcode::Text => Message::text(String::from_utf8(payload).expect("text")),
        Opcode::Ping => Message::Ping(payload.into()),
        Opcode::Pong => Message::Pong(payload.into()),
        _ => Message::binary(payload),
    }
}

/// Bytes of a client's frame that holds all of a message.
fn frame_bytes(message: &Message) -> usize {
    let mut frame = Vec::new();
    put_frame(&mut frame, Opcode::Binary, true, Some([0; 4]), &message.clone().into_data());
    frame.len()
}

/// What tungstenite reads in `role`, and whether it found fault with the stream.
fn read_by_tungstenite(role: Role, stream: Vec<u8>) -> (Vec<Message>, bool) {
    let config = WebSocketConfig::default();
    let mut socket = WebSocket::from_raw_socket(Halves::new(stream), role, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(tungstenite::Error::Io(_)) => return (messages, false),
            Err(_) => return (messages, true),
        }
    }
}

fn written_by_tungstenite(role: Role, wholes: &[Whole]) -> Vec<u8> {
    let mut socket = WebSocket::from_raw_socket(Halves::new(Vec::new()), role, None);
    for whole in wholes {
        socket.write(message(whole)).expect("a vector takes everything");
    }
    socket.flush().expect("a vector takes everything");
    socket.get_ref().written.clone()
}

proptest! {
    #[test]
    fn what_tungstenite_writes_is_read(wholes in vec(any_whole(), 0..8)) {
        prop_assert_eq!(read(SERVER, &written_by_tungstenite(Role::Client, &wholes)), Ok(wholes.clone()));
        prop_assert_eq!(read(CLIENT, &written_by_tungstenite(Role::Server, &wholes)), Ok(wholes));
    }

    #[test]
    fn tungstenite_reads_what_is_written(wholes in vec(any_whole(), 0..8), mask in any::<[u8; 4]>()) {
        for (role, mask) in [(Role::Server, Some(mask)), (Role::Client, None)] {
            let mut stream = Vec::new();
            for (opcode, payload) in &wholes {
                put_frame(&mut stream, *opcode, true, mask, payload);
            }
            let wanted: Vec<Message> = wholes.iter().map(message).collect();
            prop_assert_eq!(read_by_tungstenite(role, stream), (wanted, false));
        }
    }

    /// Of damaged streams both read the same messages up to the damage, and both find fault or neither does; except
    /// where tungstenite is more lenient than the RFC, with lengths that could be shorter, and where it waits for the
    /// rest of a frame of which the decoder has seen enough.
    #[test]
    fn damage_is_judged_as_tungstenite_judges_it(
        wholes in vec(any_whole(), 1..6),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut stream = Vec::new();
        for (opcode, payload) in &wholes {
            put_frame(&mut stream, *opcode, true, Some([1, 2, 3, 4]), payload);
        }
        let at = at.index(stream.len());
        stream[at] = byte;
        let (theirs, fault) = read_by_tungstenite(Role::Server, stream.clone());
        let ours = read(SERVER, &stream);
        let lenient = matches!(ours, Err(trunkline_proto::websocket::Violation::BadLength));
        // A Close ends the stream for tungstenite, while the decoder leaves its meaning to others.
        let closed = theirs.iter().any(|message| message.is_close());
        if !lenient && !closed && !ours.as_ref().is_ok_and(|wholes| wholes.iter().any(|(op, _)| *op == Opcode::Close)) {
            let waits = theirs.iter().map(frame_bytes).sum::<usize>() < stream.len();
            prop_assert!(ours.is_err() == fault || ours.is_err() && waits, "{:?} {:?}", ours, theirs);
            if let Ok(ours) = ours {
                prop_assert_eq!(ours.iter().map(message).collect::<Vec<_>>(), theirs);
            }
        }
    }
}
