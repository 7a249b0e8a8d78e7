//! WebSocket on the wire: RFC 6455.

mod golden;
mod inbound;
mod oracle;
mod properties;
mod seal;
mod violations;

use trunkline_proto::websocket::{Decoder, Opcode, Part, Role, Rules, Violation, put_frame};

pub(crate) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A server that reads text, too.
pub(crate) const SERVER: Rules = Rules { role: Role::Server, text: true, message_bytes_max: 1 << 20 };
pub(crate) const CLIENT: Rules = Rules { role: Role::Client, ..SERVER };

/// Opcode and payload of a message, or of a control frame.
pub(crate) type Whole = (Opcode, Vec<u8>);

/// Feeds pieces, and puts together what comes out of them.
pub(crate) struct Reader {
    decoder: Decoder,
    rules: Rules,
    message: Vec<u8>,
    control: Vec<u8>,
    pub(crate) wholes: Vec<Whole>,
}

impl Reader {
    pub(crate) fn new(rules: Rules) -> Self {
        Reader { decoder: Decoder::default(), rules, message: Vec::new(), control: Vec::new(), wholes: Vec::new() }
    }

    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<(), Violation> {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while at < piece.len() {
            let step = self.decoder.step(&self.rules, &mut piece[at..])?;
            match step.part {
                Some(Part::Data { range, text, end }) => {
                    self.message.extend_from_slice(&piece[at..][range]);
                    if end {
                        let opcode = if text { Opcode::Text } else { Opcode::Binary };
                        self.wholes.push((opcode, std::mem::take(&mut self.message)));
                    }
                }
                Some(Part::Control { opcode, range, end, .. }) => {
                    self.control.extend_from_slice(&piece[at..][range]);
                    if end {
                        self.wholes.push((opcode, std::mem::take(&mut self.control)));
                    }
                }
                None => assert_eq!(at + step.consumed, piece.len()),
            }
            at += step.consumed;
        }
        Ok(())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.decoder.is_idle()
    }
}

/// All that a stream holds, read in one piece.
pub(crate) fn read(rules: Rules, stream: &[u8]) -> Result<Vec<Whole>, Violation> {
    let mut reader = Reader::new(rules);
    reader.feed(stream)?;
    Ok(reader.wholes)
}

/// A client's frame.
pub(crate) fn masked(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, opcode, fin, Some(MASK), payload);
    bytes
}

/// Fragmented messages of both kinds, with control frames between the fragments, lengths of all three forms, empty
/// frames.
pub(crate) fn mixed() -> (Vec<u8>, Vec<Whole>) {
    let long = vec![0xa5; 300];
    let longer: Vec<u8> = (0..70_000u32).map(|at| at as u8).collect();
    let text = "Gruß, 世界 🚀";
    let (first, rest) = text.as_bytes().split_at(4);
    let stream = [
        masked(Opcode::Ping, true, b"are you there?"),
        masked(Opcode::Binary, true, &long),
        masked(Opcode::Text, false, first),
        masked(Opcode::Pong, true, b""),
        masked(Opcode::Continuation, false, b""),
        masked(Opcode::Ping, true, &[7; 125]),
        masked(Opcode::Continuation, true, rest),
        masked(Opcode::Binary, true, b""),
        masked(Opcode::Binary, false, &longer),
        masked(Opcode::Continuation, true, b"end"),
        masked(Opcode::Close, true, b"\x03\xe8bye"),
    ];
    let wholes = vec![
        (Opcode::Ping, b"are you there?".to_vec()),
        (Opcode::Binary, long),
        (Opcode::Pong, vec![]),
        (Opcode::Ping, vec![7; 125]),
        (Opcode::Text, text.into()),
        (Opcode::Binary, vec![]),
        (Opcode::Binary, [&longer[..], b"end"].concat()),
        (Opcode::Close, b"\x03\xe8bye".to_vec()),
    ];
    (stream.concat(), wholes)
}
