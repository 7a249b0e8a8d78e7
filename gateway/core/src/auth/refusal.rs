//! Why a token is refused: a closed set, each told to the client in words, and each a metric label.

use std::fmt;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident => $label:literal, $text:literal;)*) => {
        /// Why a token is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every refusal, in the order of their numbers.
            pub const ALL: &[Refusal] = &[$(Refusal::$name,)*];

            /// The value of the metric label `reason`.
            pub const fn label(self) -> &'static str {
                match self { $(Refusal::$name => $label,)* }
            }

            /// What the client is told, in BYE or ERROR 6.
            pub const fn text(self) -> &'static str {
                match self { $(Refusal::$name => $text,)* }
            }
        }
    };
}

refusals! {
    /// The token is empty.
    Missing => "missing", "there is no token";
    /// The token is longer than 4 KiB.
    TooLong => "too_long", "the token cannot be read: it is longer than 4 KiB";
    /// It is no JWT of an algorithm known, it lacks `sub` or `exp` or has them of the wrong type, or it demands
    /// extensions (`crit`), of which none is known here.
    Unreadable => "unreadable", "the token cannot be read: it must be a JWT with sub and exp";
    /// No key of this node has its `kid`, or none is for its algorithm.
    UnknownKey => "unknown_key", "the token is signed with a key that is unknown here";
    /// The signature is not that of its key.
    BadSignature => "bad_signature", "the token's signature is wrong";
    /// `iss` is none of those demanded.
    WrongIssuer => "wrong_issuer", "the token is from another issuer";
    /// `aud` is none of those demanded.
    WrongAudience => "wrong_audience", "the token is for another audience";
    /// `sub` is not the user of the LOGIN, or RENEW is for another user than the session's.
    WrongSubject => "wrong_subject", "the token is another user's";
    /// `exp` has passed.
    Expired => "expired", "the token has expired";
    /// `nbf` has not come.
    NotYetValid => "not_yet_valid", "the token is not valid yet";
    /// Its claim `send` names more users than it may.
    TooManyNamed => "too_many_named", "the claim send names more users than this gateway takes";
    /// The application refuses the login, see [`crate::hook`].
    Denied => "denied", "the application does not let you in";
}

/// Number of refusals, for tables indexed by them.
pub const REFUSALS: usize = Refusal::ALL.len();

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Refusal {}
