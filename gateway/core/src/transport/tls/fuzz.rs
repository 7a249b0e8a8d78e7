//! The body of the fuzz target for records, beside the code it attacks.

use super::keys::{Secrets, Session};
use super::open::{End, open};
use super::record::{Bounds, ContentType};
use super::seal::{seal_owed, seal_records};
use super::suite::{IV_BYTES, KEY_BYTES_MAX, SECRET_BYTES_MAX, Suite, Version};

/// Bounds that a short input reaches.
const BOUNDS: Bounds = Bounds { empties_max: 3, updates_per_minute: 3, own_update_records: 20, tls12_records_max: 40 };

fn secrets(mark: u8) -> Secrets {
    Secrets { secret: [mark; SECRET_BYTES_MAX], key: [mark ^ 1; KEY_BYTES_MAX], iv: [mark ^ 2; IV_BYTES], sequence: 1 }
}

/// Two ends of a connection.
pub(super) fn pair(version: Version, suite: Suite) -> (Session, Session) {
    let (one, other) = (secrets(7), secrets(77));
    (Session::new(version, suite, false, &one, &other), Session::new(version, suite, false, &other, &one))
}

/// What an end makes of a stream that comes in pieces of `step` bytes.
fn received(session: &mut Session, stream: &[u8], step: usize) -> (Vec<u8>, Option<End>) {
    let (mut data, mut begun) = (Vec::new(), Vec::new());
    for piece in stream.chunks(step) {
        begun.extend_from_slice(piece);
        let opened = open(&mut session.view(), &BOUNDS, &mut begun, 0);
        data.extend_from_slice(&begun[..opened.data]);
        begun.drain(..opened.taken);
        if opened.end.is_some() {
            return (data, opened.end);
        }
    }
    (data, None)
}

/// Byte 0 picks version and suite, byte 1 the length of the pieces; then follow operations: what is sealed, a
/// KeyUpdate, or bytes that nobody has sealed. The other end gets the same whatever the pieces, nothing but what was
/// sealed, and all of it unless it says what was wrong.
pub fn tls_records(input: &[u8]) {
    let [first, step, rest @ ..] = input else { return };
    let suite = Suite::ALL[usize::from(first % 3)];
    let version = if first & 64 == 0 { Version::Tls13 } else { Version::Tls12 };
    let (mut sender, mut receiver) = pair(version, suite);
    let (_, mut other_receiver) = pair(version, suite);
    let (mut stream, mut sent, mut well) = (Vec::new(), Vec::new(), true);
    let mut rest = rest;
    while let [operation, length, behind @ ..] = rest {
        // Some records are long enough to be cut.
        let repeat = if operation & 128 == 0 { 1 } else { 300 };
        let (bytes, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        let bytes = bytes.repeat(repeat);
        rest = behind;
        let view = &mut sender.view();
        let from = stream.len();
        match operation % 6 {
            0..=2 => {
                seal_owed(view, &BOUNDS, &mut stream);
                sent.extend_from_slice(&bytes);
                let from = stream.len();
                stream.extend_from_slice(&bytes);
                seal_records(view, ContentType::Data, &mut stream, from);
            }
            3 => {
                well = false;
                stream.extend_from_slice(&bytes);
                seal_records(view, ContentType::Handshake, &mut stream, from);
            }
            4 => {
                well = false;
                stream.extend_from_slice(&bytes);
                seal_records(view, ContentType::Alert, &mut stream, from);
            }
            _ => {
                well = false;
                stream.extend_from_slice(&bytes);
            }
        }
    }
    let whole = received(&mut receiver, &stream, usize::MAX);
    let pieces = received(&mut other_receiver, &stream, usize::from(*step) + 1);
    assert_eq!(whole, pieces, "the pieces changed what was received");
    let (data, end) = whole;
    assert!(sent.starts_with(&data), "what nobody has sealed was opened");
    if well && end.is_none() {
        assert!(data == sent, "{} bytes of {}", data.len(), sent.len());
    }
    if well {
        assert!(matches!(end, None | Some(End::WornOut | End::Violated(_))), "{end:?}");
    }
}
