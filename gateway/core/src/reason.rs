//! Why a connection ended. A closed set: every accepted connection ends with exactly one of these, and each is a metric
//! label.

use trunkline_proto::Code;

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal, $code:expr;)*) => {
        /// The one reason a connection ended with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CloseReason { $($(#[$doc])* $name,)* }

        impl CloseReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[CloseReason] = &[$(CloseReason::$name,)*];

            /// The value of the metric label `reason`.
            pub const fn label(self) -> &'static str {
                match self { $(CloseReason::$name => $label,)* }
            }

            /// The code of the BYE that tells the client, or `None` where the connection ends without one.
            pub const fn code(self) -> Option<Code> {
                match self { $(CloseReason::$name => $code,)* }
            }
        }
    };
}

close_reasons! {
    /// The client closed its side.
    PeerClosed => "peer_closed", None;
    /// The connection was reset, or the kernel reported another error on it.
    PeerReset => "peer_reset", None;
    /// The client sent LOGOUT.
    Logout => "logout", None;
    /// The first byte belongs to a transport that this listener does not speak.
    UnknownTransport => "unknown_transport", None;
    /// A PROXY header that was missing or wrong, or came from somebody who is no trusted proxy: see the metric of
    /// refused headers.
    ProxyRefused => "proxy_refused", None;
    /// Its address has as many connections as it may, or opened too many in this second.
    AddressLimit => "address_limit", None;
    /// HTTP that was no way to a WebSocket: see the metric of refused requests.
    HttpRefused => "http_refused", None;
    /// A question for health, answered.
    HttpAnswered => "http_answered", None;
    /// The client broke RFC 6455, or sent text.
    WebSocketViolation => "websocket_violation", None;
    /// A handshake of TLS failed: see the metric of alerts.
    TlsRefused => "tls_refused", None;
    /// The client broke TLS after the handshake.
    TlsViolation => "tls_violation", None;
    /// The keys of a connection with TLS 1.2, which cannot be changed, have been used for as long as they may.
    TlsWornOut => "tls_worn_out", Some(Code::Draining);
    /// No LOGIN within the login time-out.
    LoginTimeout => "login_timeout", Some(Code::Idle);
    /// Silent for two heartbeats.
    Idle => "idle", Some(Code::Idle);
    /// The outbox stayed full, or replies no longer fit.
    TooSlow => "too_slow", Some(Code::TooSlow);
    /// A frame whose header contradicts its length.
    MalformedFrame => "malformed_frame", Some(Code::MalformedFrame);
    /// A frame longer than `frame_bytes_max`.
    FrameTooLarge => "frame_too_large", Some(Code::FrameTooLarge);
    /// The first frame was not LOGIN.
    NotLoggedIn => "not_logged_in", Some(Code::NotLoggedIn);
    /// The token was refused.
    BadCredentials => "bad_credentials", Some(Code::BadCredentials);
    /// The session's token has expired, and no RENEW came before.
    TokenExpired => "token_expired", Some(Code::BadCredentials);
    /// LOGIN asked for another protocol version.
    UnsupportedVersion => "unsupported_version", Some(Code::UnsupportedVersion);
    /// LOGIN could not be read, or a field was out of range.
    BadLogin => "bad_login", Some(Code::BadRequest);
    /// A newer login of the same user and device took over.
    Replaced => "replaced", Some(Code::Replaced);
    /// A limit of the node was reached: connections, devices of the user, memory.
    Overloaded => "overloaded", Some(Code::Overloaded);
    /// The node is shutting down.
    Draining => "draining", Some(Code::Draining);
    /// The user's home is another node, and this one does not serve guests.
    Moved => "moved", Some(Code::Moved);
    /// An operator ended the session.
    Kicked => "kicked", Some(Code::Kicked);
}

/// Number of reasons, for tables indexed by them.
pub const CLOSE_REASONS: usize = CloseReason::ALL.len();
