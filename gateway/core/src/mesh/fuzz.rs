//! The bodies of the fuzz targets in `gateway/fuzz`, beside the code they attack. Tests run them over random bytes.
//!
//! Each takes any bytes at all and panics when a property does not hold.

use super::handshake::{
    Acceptor, AcceptorStep, DEADLINE_MS_DEFAULT, Dial, Dialer, DialerStep, HandshakeError, Identity, ResumeState,
    Secrets, Versions,
};
use super::link::{Link, LinkLimits};
use super::wire::{Inbound, MeshViolation, Unit};

/// What a stream comes to.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    units: Vec<String>,
    violation: Option<MeshViolation>,
}

/// Byte 0 says how the pieces begin, the rest is a stream from a peer: it comes to the same in one piece and in many,
/// and what a record encodes to is what it was read from.
pub fn wire_stream(data: &[u8]) {
    let Some((&pieces, stream)) = data.split_first() else { return };
    let whole = decode(std::iter::once(stream));
    let mut step = usize::from(pieces);
    let mut unread = stream;
    let split = decode(std::iter::from_fn(|| {
        if unread.is_empty() {
            return None;
        }
        let (piece, rest) = unread.split_at(unread.len().min(step % 41 + 1));
        unread = rest;
        step = (step * 5 + 3) % (1 << 16);
        Some(piece)
    }));
    assert_eq!(whole, split, "the split changed the meaning");

    let mut link = Link::new(LinkLimits { bytes_max: 1 << 20, reserve_bytes: 0 });
    link.connected(0, ResumeState { stream: 1, expected: 0 }).expect("a new stream");
    let mut records = 0;
    let result = link.received(stream, 1, |_| records += 1);
    assert_eq!(link.is_connected(), result.is_ok());
    assert_eq!(link.stats().records_in, records);
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let mut inbound = Inbound::default();
    let mut units = Vec::new();
    let mut violation = None;
    for piece in pieces {
        let result = inbound.feed(piece, |unit| {
            if let Unit::Record(record) = unit {
                let mut bytes = Vec::new();
                record.encode(&mut bytes);
                assert_eq!(bytes.len(), record.encoded_len());
                let again = super::wire::Record::decode(&bytes).expect("what was encoded violates nothing");
                assert_eq!(again, Some(record));
            }
            units.push(format!("{unit:?}"));
            Ok(())
        });
        if let Err(error) = result {
            violation = Some(error);
            break;
        }
    }
    Decoded { units, violation }
}

fn identity(name: &str) -> Identity {
    Identity { name: name.into(), incarnation: 1, versions: Versions::OWN }
}

/// Byte 0 picks the machine and how far it has come with an honest peer, the rest is what comes then: it never
/// authenticates anybody, and an end is final.
pub fn handshake(data: &[u8]) {
    let Some((&pick, bytes)) = data.split_first() else { return };
    let secrets = Secrets::new([&[7; 32][..]].into_iter()).expect("long enough");
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let dial =
        Dial { peer: "b".into(), peer_incarnation_known: 0, link: 0, resume: ResumeState { stream: 1, expected: 0 } };
    let mut dialer =
        Dialer::new(secrets.first(), identity("a"), dial, &[1; 32], 0, DEADLINE_MS_DEFAULT, &mut to_acceptor);
    let mut acceptor = Acceptor::new(secrets.known(), identity("b"), [2; 32], 0, DEADLINE_MS_DEFAULT);
    for _ in 0..pick / 2 % 2 {
        acceptor.received(&std::mem::take(&mut to_acceptor), &mut to_dialer).expect("an honest peer");
        dialer.received(&std::mem::take(&mut to_dialer), &mut to_acceptor).expect("an honest peer");
    }
    let mut out = Vec::new();
    let refused: Option<HandshakeError> = if pick % 2 == 0 {
        match acceptor.received(bytes, &mut out) {
            Ok(AcceptorStep::More) => None,
            Ok(AcceptorStep::Claimed(claim)) => panic!("{claim:?} without the secret"),
            Err(error) => Some(error),
        }
    } else {
        match dialer.received(bytes, &mut out) {
            Ok(DialerStep::More) => None,
            Ok(step) => panic!("{step:?} without the secret"),
            Err(error) => Some(error),
        }
    };
    if let Some(error) = refused {
        assert!(!error.to_string().is_empty());
        assert!(acceptor.admit(0, ResumeState { stream: 1, expected: 0 }, &mut out).is_err());
    }
}
