//! Error codes and message outcomes: the numbers `aux` carries.

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $number:literal, $text:literal;)*) => {
        /// Why a frame was refused (`aux` of ERROR) or a connection ended (`aux` of BYE): one numbering for both. Later
        /// versions have more.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $code = $number,)*
        }

        impl Code {
            /// Every code, by rising number.
            pub const ALL: &[Code] = &[$(Code::$code),*];

            /// The code with this number on the wire, if there is one.
            pub const fn from_u16(number: u16) -> Option<Code> {
                match number {
                    $($number => Some(Code::$code),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[inline]
            pub const fn as_u16(self) -> u16 {
                self as u16
            }

            /// A short sentence for a person: the body of ERROR and `Bye.text` where there is nothing better to say.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Code::$code => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The bytes are no frame, or a body is not what its kind asks for. Ends the connection.
    MalformedFrame = 1, "The frame is malformed.";
    /// The frame is longer than the server accepts. Ends the connection.
    FrameTooLarge = 2, "The frame is too large.";
    /// The kind is none a client may send. The frame is skipped.
    UnknownKind = 3, "This kind of frame is unknown.";
    /// A frame came before LOGIN. Ends the connection.
    NotLoggedIn = 4, "Log in first.";
    /// A second LOGIN on one connection.
    AlreadyLoggedIn = 5, "This connection is already logged in.";
    /// The token does not prove the user. Ends the connection.
    BadCredentials = 6, "The credentials were not accepted.";
    /// The server does not speak the version asked for. Ends the connection.
    UnsupportedVersion = 7, "This protocol version is not supported.";
    /// The same user and device logged in elsewhere.
    Replaced = 8, "A newer login of this device replaced the session.";
    /// Nothing was heard for two heartbeats.
    Idle = 9, "Nothing was heard for two heartbeats.";
    /// The client reads too slowly: its outbox stayed full.
    TooSlow = 10, "The client reads too slowly and its outbox is full.";
    /// More frames than allowed.
    RateLimited = 11, "Too many frames; slow down.";
    /// The node is being shut down.
    Draining = 12, "The node is shutting down; connect again.";
    /// The connection belongs elsewhere: see `Bye.redirect`.
    Moved = 13, "Connect to the address given instead.";
    /// The node has no room for this now.
    Overloaded = 14, "The server is overloaded; try again later.";
    /// An operator ended the session.
    Kicked = 15, "An operator ended the session.";
    /// A fault of the server.
    Internal = 16, "The server failed internally.";
    /// No service has this number.
    UnknownService = 17, "This service is unknown.";
    /// The service has no backend that answers.
    ServiceUnavailable = 18, "The service is unavailable; try again later.";
    /// The user is not a member of the group.
    NotAMember = 19, "You are not a member of this group.";
    /// A field has a value that is not allowed. In LOGIN it ends the connection.
    BadRequest = 20, "The request is not valid.";
    /// The kind exists, but this server does not serve it.
    Unsupported = 21, "This is not supported here.";
    /// As many members, groups or rooms as there may be.
    LimitReached = 22, "A limit is reached; nothing more fits.";
    /// The member, or the whole group, may not send.
    Muted = 23, "You may not send to this group now.";
    /// The service did not answer in its time. The call may have been carried out.
    TimedOut = 24, "The service did not answer in time.";
    /// The worker that had the call is gone. The call may have been carried out.
    OutcomeUnknown = 25, "The service is gone; whether it did this is unknown.";
    /// The credentials do not allow this.
    NotAllowed = 26, "You are not allowed to do this.";
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $outcome:ident = $number:literal, $text:literal;)*) => {
        /// What became of a message that asked for an answer: `aux` of SENT. Later versions have more.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Outcome {
            $($(#[$doc])* $outcome = $number,)*
        }

        impl Outcome {
            /// Every outcome, by its number: they count up from 0.
            pub const ALL: &[Outcome] = &[$(Outcome::$outcome),*];

            /// The outcome with this number on the wire, if there is one.
            pub const fn from_u16(number: u16) -> Option<Outcome> {
                match number {
                    $($number => Some(Outcome::$outcome),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[inline]
            pub const fn as_u16(self) -> u16 {
                self as u16
            }

            /// What it says to a person, in a few words.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Outcome::$outcome => $text,)*
                }
            }
        }

        impl std::fmt::Display for Outcome {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.text())
            }
        }
    };
}

outcomes! {
    /// The recipient acknowledged it.
    Delivered = 0, "delivered";
    /// The offline store has it.
    Stored = 1, "stored";
    /// The recipient is offline and the message was not kept.
    OfflineNotStored = 2, "offline, not stored";
    /// A limit was hit; try again.
    Overloaded = 3, "overloaded";
    /// The sender may not send this to this recipient.
    Denied = 4, "denied";
    /// The recipient's inbox holds as much as it may.
    InboxFull = 5, "inbox full";
    /// A message to a group was numbered and passed on, and is not kept.
    Accepted = 6, "accepted";
    /// Its time was over before anybody had it: a push with a time to live.
    Expired = 7, "expired";
}

const _: () = {
    let mut number = 0;
    while number < Outcome::ALL.len() {
        assert!(Outcome::ALL[number].as_u16() as usize == number);
        number += 1;
    }
};
