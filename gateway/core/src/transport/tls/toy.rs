//! A handshake for the simulator: the keys follow from a number the client names, so a seed gives the same run each
//! time. What comes behind it is sealed and opened like anything else.

use super::handshake::Established;
use super::keys::{Secrets, Session};
use super::suite::{IV_BYTES, KEY_BYTES_MAX, SECRET_BYTES_MAX, Suite, Version};

/// What the client says first, before its number.
const HELLO: &[u8] = b"toy hello";
/// What it hears.
const ANSWER: &[u8] = b"toy answer";
/// What it says then.
const FINISHED: &[u8] = b"toy finished";

fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 3, 0, content.len() as u8], content].concat()
}

/// The first flight of a client.
pub(crate) fn hello(number: u64) -> Vec<u8> {
    record(&[HELLO, &number.to_be_bytes()].concat())
}

/// What the gateway answers.
pub(crate) fn answer() -> Vec<u8> {
    record(ANSWER)
}

/// The second flight of a client.
pub(crate) fn finished() -> Vec<u8> {
    record(FINISHED)
}

/// The number that a hello names.
pub(super) fn number(record: &[u8]) -> Option<u64> {
    let number = record.get(5..)?.strip_prefix(HELLO)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

fn secrets(number: u64, mark: u8) -> Secrets {
    let byte = |at: usize| number.to_le_bytes()[at % 8] ^ mark ^ at as u8;
    Secrets {
        secret: std::array::from_fn::<u8, SECRET_BYTES_MAX, _>(byte),
        key: std::array::from_fn::<u8, KEY_BYTES_MAX, _>(|at| byte(at + 3)),
        iv: std::array::from_fn::<u8, IV_BYTES, _>(|at| byte(at + 5)),
        sequence: 0,
    }
}

fn kinds(number: u64) -> (Version, Suite) {
    let version = if number.is_multiple_of(4) { Version::Tls12 } else { Version::Tls13 };
    (version, Suite::ALL[(number / 4 % 3) as usize])
}

/// The keys of a client.
pub(crate) fn client(number: u64) -> Session {
    let (version, suite) = kinds(number);
    Session::new(version, suite, false, &secrets(number, 7), &secrets(number, 77))
}

/// What the gateway's side of a handshake leads to.
pub(super) fn established(number: u64) -> Established {
    let (version, suite) = kinds(number);
    let session = Session::new(version, suite, false, &secrets(number, 77), &secrets(number, 7));
    Established { session, version, suite, resumed: false, http: false, certified: None }
}
