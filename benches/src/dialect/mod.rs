//! What the load engine says to each server: one file for each protocol.

mod floor;
mod mqtt;
mod nats;
mod resp;
mod trunkline;

pub(crate) use floor::Echo;
pub(crate) use mqtt::Mqtt;
pub(crate) use nats::Nats;
pub(crate) use resp::Resp;
pub(crate) use trunkline::Trunkline;

/// Something a server has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// The client is in and will receive what is sent to it.
    Ready,
    /// A message for the client.
    Message(&'a [u8]),
    /// The server wants to hear these bytes.
    Answer(&'static [u8]),
    /// Nothing that matters here.
    Nothing,
    /// The server refuses the client or what it said.
    Refused(String),
}

/// A protocol, as far as a client needs it that sends messages to other clients by their number.
pub(crate) trait Dialect: Sync {
    /// Whether a connection is ready as soon as it is there.
    fn is_ready_at_once(&self) -> bool {
        false
    }

    /// What a client says first.
    fn enter(&self, user: u64, out: &mut Vec<u8>);

    /// A message to a user.
    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>);

    /// The first thing in `bytes`, and how many bytes it takes; `None` when it is not whole. Errors: the bytes are not
    /// of this protocol.
    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String>;
}

/// The first line of `bytes` without its end, and the length with it.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

#[cfg(test)]
fn events(dialect: &dyn Dialect, mut bytes: &[u8]) -> Vec<String> {
    let mut events = Vec::new();
    while let Some((event, taken)) = dialect.next(bytes).expect("valid") {
        events.push(format!("{event:?}"));
        bytes = &bytes[taken..];
    }
    assert!(bytes.is_empty(), "left over: {bytes:?}");
    events
}

/// However the bytes are cut in two, nothing is taken before it is whole, and then the same comes of it.
#[cfg(test)]
fn assert_splits(dialect: &dyn Dialect, bytes: &[u8]) {
    let whole = events(dialect, bytes);
    for cut in 0..bytes.len() {
        let (mut seen, mut at) = (Vec::new(), 0);
        for end in [cut, bytes.len()] {
            while let Some((event, taken)) = dialect.next(&bytes[at..end]).expect("valid") {
                seen.push(format!("{event:?}"));
                at += taken;
            }
        }
        assert_eq!(seen, whole, "cut at {cut}");
    }
}
