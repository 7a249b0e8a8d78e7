//! What goes wrong, each with a sentence for a person.

use std::fmt;
use std::io;
use std::time::Duration;

use trunkline_proto::Code;

use crate::ConfigError;

/// Why a call failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    Config(ConfigError),
    /// No connection could be made.
    Connect {
        /// The address tried.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// Connecting or logging in took too long.
    Timeout {
        /// The address tried.
        addr: String,
        /// The limit.
        waited: Duration,
    },
    /// The gateway said no to the login.
    LoginRefused {
        /// Number of the reason; [`Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words, possibly none.
        text: String,
    },
    /// The connection broke before the login was answered.
    LoginCut {
        /// The address tried.
        addr: String,
    },
    /// There is no token to log in with: [`crate::Token::provider`] failed, in these words.
    Token(String),
    /// The other side does not speak the protocol.
    Protocol(String),
    /// There is no connection at the moment; the client is reconnecting.
    NotConnected,
    /// As many messages as are allowed have no known fate yet. [`crate::Client::submit_when_room`] waits instead.
    TooManyUnacked {
        /// [`crate::Config::unacked_max`].
        max: usize,
    },
    /// As many pings as are allowed are under way.
    TooManyPings {
        /// The limit.
        max: usize,
    },
    /// The payload does not fit into a frame of this gateway.
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
        /// What fits.
        bytes_max: usize,
    },
    /// The recipient is user 0 or group 0.
    NoSuchUser,
    /// The id given is 0, which no message may have.
    ZeroId,
    /// A message with the id given is still under way: handed in before, or by an earlier process and kept in
    /// [`crate::Config::outbox`]. [`crate::Client::receipt`] waits for its fate.
    DuplicateId {
        /// That id.
        id: u64,
    },
    /// [`crate::Config::outbox`] failed; the message was not sent.
    Outbox(io::Error),
    /// The gateway refused this message, join, leave or page.
    Refused {
        /// Number of the error; [`Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words, possibly none.
        text: String,
    },
    /// The call has no answer of the service. 11, 14, 17, 18, 20 and 21: it was not carried out. 24 and 25: it may have
    /// been, see
    /// [`Error::may_be_done`].
    Call {
        /// Number of the status; [`Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words, possibly none.
        text: String,
    },
    /// The gateway reported a fate that this version does not know.
    UnknownOutcome(u16),
    /// The message was given up after the time for its fate, [`crate::Config::fate_timeout`]. It may have been
    /// delivered.
    NoFate {
        /// That time.
        waited: Duration,
    },
    /// The message was given up by [`crate::Receipt::cancel`], or with the future of [`crate::Client::send_acked`].
    Cancelled,
    /// The client has ended and will not reconnect.
    Closed(Reason),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The gateway said BYE.
    Bye {
        /// Number of the reason; [`Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words, possibly none.
        text: String,
    },
    /// The gateway closed the connection without a word.
    ServerClosed,
    /// Nothing came from the gateway for two heartbeats, not even an answer to a PING.
    ServerSilent {
        /// How long nothing came.
        silence: Duration,
    },
    /// Reading or writing failed.
    Io(String),
    /// The other side broke the protocol.
    Protocol(String),
    /// [`crate::Client::close`] was called, or every handle was dropped.
    LoggedOut,
    /// The task that owned the connection was torn down: its runtime was shut down, or [`crate::Dial`],
    /// [`crate::Outbox`] or the provider of [`crate::Token`] panicked in it.
    Aborted,
}

/// An error code or BYE reason in words, with its number, and with the gateway's own words behind it where those say
/// more.
///
/// ```
/// use trunkline_client::sentence;
///
/// assert!(sentence(6, "the token has expired").ends_with("(code 6): the token has expired"));
/// assert_eq!(sentence(999, ""), "code 999, unknown to this version");
/// ```
#[must_use]
pub fn sentence(code: u16, text: &str) -> String {
    let known = Code::from_u16(code).map(Code::text);
    let name = match known {
        Some(known) => format!("{} (code {code})", known.trim_end_matches('.')),
        None => format!("code {code}, unknown to this version"),
    };
    if text.is_empty() || Some(text) == known { name } else { format!("{name}: {text}") }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "unusable configuration: {error}"),
            Self::Connect { addr, source } => write!(f, "cannot connect to {addr}: {source}"),
            Self::Timeout { addr, waited } => {
                write!(f, "no answer from {addr} within {waited:?}")
            }
            Self::LoginRefused { code, text } => {
                write!(f, "the gateway refused the login: {}", sentence(*code, text))
            }
            Self::LoginCut { addr } => {
                write!(f, "{addr} closed the connection before it answered the login")
            }
            Self::Token(why) => write!(f, "there is no token to log in with: {why}"),
            Self::Protocol(what) => write!(f, "the other side is not a usable gateway: {what}"),
            Self::NotConnected => write!(f, "not connected at the moment; reconnecting"),
            Self::TooManyUnacked { max } => {
                write!(f, "{max} messages still wait for their fate, which is the limit (unacked_max)")
            }
            Self::TooManyPings { max } => {
                write!(f, "{max} pings are under way, which is the limit")
            }
            Self::PayloadTooLarge { bytes, bytes_max } => {
                write!(f, "the payload has {bytes} bytes, this gateway takes {bytes_max}")
            }
            Self::NoSuchUser => write!(f, "there is no user or group 0"),
            Self::ZeroId => write!(f, "a message cannot have the id 0"),
            Self::DuplicateId { id } => write!(f, "a message with the id {id} is still under way"),
            Self::Outbox(error) => write!(f, "the outbox failed: {error}"),
            Self::Refused { code, text } => {
                write!(f, "the gateway refused it: {}", sentence(*code, text))
            }
            Self::Call { code, text } => write!(f, "the call has no answer: {}", sentence(*code, text)),
            Self::UnknownOutcome(outcome) => {
                write!(f, "the gateway reported outcome {outcome}, unknown to this version")
            }
            Self::NoFate { waited } => write!(f, "nothing was heard of the message within {waited:?}"),
            Self::Cancelled => write!(f, "the message was given up"),
            Self::Closed(reason) => write!(f, "the connection has ended: {reason}"),
        }
    }
}

impl Error {
    /// Of a call that failed: whether the service may have carried it out all the same. Of anything else, false.
    #[must_use]
    pub fn may_be_done(&self) -> bool {
        let may = |code| matches!(Code::from_u16(code), Some(Code::TimedOut | Code::OutcomeUnknown));
        matches!(self, Self::Call { code, .. } if may(*code))
    }

    /// Of [`crate::Client::connect`]: whether the same attempt can work later, with the configuration as it is. It can
    /// where nobody listens yet, where the gateway ends or is full, and where there is no token at the moment; it
    /// cannot where the configuration or the address is wrong, or where the gateway has refused the login for good
    /// ([`Reason::allows_reconnect`]).
    #[must_use]
    pub fn allows_reconnect(&self) -> bool {
        match self {
            // What a dialer says of an address that is none of its own.
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::InvalidInput,
            Self::Timeout { .. } | Self::LoginCut { .. } | Self::Token(_) => true,
            Self::LoginRefused { code, text } => Reason::Bye { code: *code, text: text.clone() }.allows_reconnect(),
            _ => false,
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Connect { source, .. } | Self::Outbox(source) => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bye { code, text } => write!(f, "{}", sentence(*code, text)),
            Self::ServerClosed => write!(f, "the gateway closed the connection"),
            Self::ServerSilent { silence } => {
                write!(f, "nothing came from the gateway for {silence:?}")
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::Protocol(what) => write!(f, "the gateway broke the protocol: {what}"),
            Self::LoggedOut => write!(f, "logged out"),
            Self::Aborted => write!(f, "the task of the client was torn down"),
        }
    }
}

/// A Close that stands for a BYE, as an error of reading: so it comes behind all that was sent before.
#[cfg(feature = "ws")]
#[derive(Debug)]
pub(crate) struct ByeInClose {
    pub(crate) code: u16,
    pub(crate) text: String,
}

#[cfg(feature = "ws")]
impl fmt::Display for ByeInClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self.code, &self.text))
    }
}

#[cfg(feature = "ws")]
impl std::error::Error for ByeInClose {}

impl Reason {
    /// Of a connection that cannot be read from, or written to.
    pub(crate) fn of(error: io::Error) -> Self {
        #[cfg(feature = "ws")]
        let error = match error.downcast::<ByeInClose>() {
            Ok(bye) => return Self::Bye { code: bye.code, text: bye.text },
            Err(error) => error,
        };
        Self::Io(error.to_string())
    }

    /// Whether connecting again with the same token can help. It cannot where the same login would be refused again (6
    /// bad credentials, 7 unsupported version, 20 bad request), where an operator ended it (15 kicked), and where a
    /// newer login took over (8 replaced): two clients would throw each other out for ever. Nor after a logout.
    #[must_use]
    pub fn allows_reconnect(&self) -> bool {
        match self {
            Self::LoggedOut | Self::Aborted => false,
            Self::Bye { code, .. } => !matches!(
                Code::from_u16(*code),
                Some(
                    Code::BadCredentials | Code::UnsupportedVersion | Code::Replaced | Code::Kicked | Code::BadRequest
                )
            ),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_documented_reasons_forbid_a_reconnect() {
        let forbidden: Vec<u16> = (0..=u16::MAX)
            .filter(|&code| {
                let text = String::new();
                !Reason::Bye { code, text }.allows_reconnect()
            })
            .collect();
        assert_eq!(forbidden, [6, 7, 8, 15, 20]);
    }

    #[test]
    fn connecting_again_is_of_use_where_nobody_listens_yet_and_not_where_the_login_is_refused_for_good() {
        let addr = || "localhost:7700".to_owned();
        let connect = |kind: io::ErrorKind| Error::Connect { addr: addr(), source: kind.into() };
        let refused = |code: Code| Error::LoginRefused { code: code.as_u16(), text: String::new() };
        for (error, allows) in [
            (connect(io::ErrorKind::ConnectionRefused), true),
            (connect(io::ErrorKind::InvalidInput), false),
            (Error::Timeout { addr: addr(), waited: Duration::from_secs(1) }, true),
            (Error::LoginCut { addr: addr() }, true),
            (Error::Token("none".into()), true),
            (refused(Code::Draining), true),
            (refused(Code::Overloaded), true),
            (refused(Code::BadCredentials), false),
            (refused(Code::BadRequest), false),
            (Error::Config(ConfigError::NoUser), false),
            (Error::Protocol("HTTP".into()), false),
            (Error::Closed(Reason::LoggedOut), false),
        ] {
            assert_eq!(error.allows_reconnect(), allows, "{error}");
        }
    }

    #[test]
    fn sentences_name_the_number_and_keep_the_gateways_words() {
        let refused = Error::LoginRefused { code: 6, text: "token has expired".into() };
        let words = refused.to_string();
        assert!(words.contains("(code 6): token has expired"), "{words}");
        let repeated = Reason::Bye { code: 8, text: Code::Replaced.text().into() };
        assert_eq!(repeated.to_string(), sentence(8, ""));
    }
}
