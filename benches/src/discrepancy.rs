//! What can be wrong with the messages of a run.

use std::fmt;

use trunkline_proto::{Code, Frame, Kind, Outcome};

/// A message, named for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) sender: u64,
    pub(crate) recipient: u64,
    /// Counted from 0 for each pair of sender and recipient.
    pub(crate) sequence: u64,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} from user {} to user {}", self.sequence, self.sender, self.recipient)
    }
}

/// The first thing that did not add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Discrepancy {
    /// It never came.
    Lost(Message),
    /// A later one of the same flow came in its place: it was lost or overtaken.
    Skipped { missing: Message, instead: u64 },
    /// It came once more, and not as a marked redelivery.
    Doubled(Message),
    /// It came marked as a redelivery, but for the first time.
    AgainAtFirst(Message),
    /// It came to somebody else.
    Misdelivered { message: Message, to: u64 },
    /// Header or payload are not those that were sent.
    Altered { message: Message, what: &'static str },
    /// Its stamp is not above the recipient's one before.
    StampNotIncreasing { message: Message, stamp: u64, before: u64 },
    /// It was delivered, but its sender was never told.
    Unconfirmed(Message),
    /// Its sender was told twice, or of another one in its place.
    ConfirmedTwice(Message),
    /// Its sender was told that it was not delivered.
    Refused { message: Message, outcome: u16 },
    /// The server never said that it keeps it.
    Unanswered(Message),
    /// The server said that it does not keep it, and why.
    NotKept { message: Message, why: String },
    /// The backlog was said to be over before it came.
    NotInBacklog(Message),
    /// A message arrived that no flow of this run contains.
    Foreign { user: u64, what: &'static str },
    /// The server sent something else than a message.
    Unexpected { user: u64, frame: String },
}

impl Discrepancy {
    /// A frame that has no place in this run.
    pub(crate) fn unexpected(user: u64, frame: &Frame<'_>) -> Discrepancy {
        Discrepancy::Unexpected { user, frame: describe(frame) }
    }
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Discrepancy::Lost(message) => write!(f, "{message} was never delivered"),
            Discrepancy::Skipped { missing, instead } => {
                write!(f, "{missing} was lost or overtaken: message {instead} came in its place")
            }
            Discrepancy::Doubled(message) => write!(f, "{message} was delivered twice"),
            Discrepancy::AgainAtFirst(message) => write!(f, "{message} came marked AGAIN, but for the first time"),
            Discrepancy::Misdelivered { message, to } => write!(f, "{message} was delivered to user {to}"),
            Discrepancy::Altered { message, what } => write!(f, "{message} arrived with another {what}"),
            Discrepancy::StampNotIncreasing { message, stamp, before } => {
                write!(f, "{message} has stamp {stamp:#x}, not above {before:#x} of the one before")
            }
            Discrepancy::Unconfirmed(message) => write!(f, "{message} was delivered, but its sender was never told"),
            Discrepancy::ConfirmedTwice(message) => write!(f, "{message} was confirmed twice"),
            Discrepancy::Refused { message, outcome } => match Outcome::from_u16(*outcome) {
                Some(known) => write!(f, "{message} got SENT with outcome {outcome} ({known:?})"),
                None => write!(f, "{message} got SENT with the unknown outcome {outcome}"),
            },
            Discrepancy::Unanswered(message) => {
                write!(f, "{message} was sent, but the server never said that it has it")
            }
            Discrepancy::NotKept { message, why } => write!(f, "{message} was not kept: {why}"),
            Discrepancy::NotInBacklog(message) => {
                write!(f, "{message} was kept, but the backlog was said to be over without it")
            }
            Discrepancy::Foreign { user, what } => write!(f, "user {user} received {what}"),
            Discrepancy::Unexpected { user, frame } => write!(f, "user {user} received {frame}"),
        }
    }
}

/// A frame for a person: its kind, and for a BYE or ERROR the reason.
pub(crate) fn describe(frame: &Frame<'_>) -> String {
    match frame.known() {
        Some(kind @ (Kind::Bye | Kind::Error)) => {
            let reason = Code::from_u16(frame.aux).map_or("unknown", Code::text);
            format!("{} {} ({reason})", kind.name(), frame.aux)
        }
        Some(kind) => format!("an unexpected {}", kind.name()),
        None => format!("a frame of the unknown kind {:#04x}", frame.kind),
    }
}
