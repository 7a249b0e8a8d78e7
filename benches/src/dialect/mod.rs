//! What the load engine says to each server: one file for each protocol.

mod calls;
mod floor;
mod jetstream;
mod mqtt;
mod nats;
mod resp;
mod streams;
mod trunkline;

pub(crate) use calls::{Calls, NatsRequests};
pub(crate) use floor::Echo;
pub(crate) use jetstream::JetStream;
pub(crate) use mqtt::Mqtt;
pub(crate) use nats::Nats;
pub(crate) use resp::Resp;
pub(crate) use streams::Streams;
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

/// A protocol in which many clients can receive what is sent once.
pub(crate) trait Subjects: Dialect {
    /// What a client says first that receives what is sent to `subject`, and nothing that is sent to itself.
    fn enter_for(&self, user: u64, subject: u64, out: &mut Vec<u8>);
}

/// Something a server has said that is to keep messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The client is in and may send.
    Ready,
    /// The server has the message with this id, as safe as it is set to make it; without one the oldest message of the
    /// connection that it has not answered for.
    Kept(Option<u64>),
    /// It does not keep that message.
    NotKept(Option<u64>, String),
    /// It wants to hear these bytes.
    Answer(&'static [u8]),
    /// Nothing that matters here.
    Nothing,
    /// It refuses the client or what it said.
    Refused(String),
}

/// A protocol, as far as a client needs it that gives messages to a server to keep them for users who are not there,
/// and waits for the server's word for each.
pub(crate) trait Keeper: Sync {
    /// What a client says first; `connection` is its number.
    fn enter(&self, connection: u32, user: u64, out: &mut Vec<u8>);

    /// A message from a user to another one, with an id that is unique for the connection and never 0.
    fn put(&self, connection: u32, from: u64, to: u64, id: u64, payload: &[u8], out: &mut Vec<u8>);

    /// The first thing in `bytes`, and how many bytes it takes; `None` when it is not whole. Errors: the bytes are not
    /// of this protocol.
    fn next(&self, bytes: &[u8]) -> Result<Option<(Word, usize)>, String>;
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

/// However the bytes are cut in two, nothing is taken before it is whole, and then the same comes of it. Returns that.
#[cfg(test)]
fn words(keeper: &dyn Keeper, bytes: &[u8]) -> Vec<Word> {
    let heard = |cut: usize| {
        let (mut words, mut at) = (Vec::new(), 0);
        for end in [cut, bytes.len()] {
            while let Some((word, taken)) = keeper.next(&bytes[at..end]).expect("valid") {
                words.push(word);
                at += taken;
            }
        }
        assert_eq!(at, bytes.len(), "left over");
        words
    };
    let whole = heard(bytes.len());
    (0..bytes.len()).for_each(|cut| assert_eq!(heard(cut), whole, "cut at {cut}"));
    whole
}
