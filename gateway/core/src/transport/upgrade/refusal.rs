//! Why a request is refused, and what it is told.

/// Fields of an answer behind which the connection is closed.
pub(super) const CLOSE: &str = "Connection: close\r\n";
/// RFC 9110, section 7.8: who sends Upgrade says so in Connection.
const VERSION_FIELDS: &str = "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
/// About when a client that is sent away may find room, seconds.
const RETRY_FIELDS: &str = "Connection: close\r\nRetry-After: 5\r\n";

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident => $status:literal, $label:literal, $fields:expr, $text:literal;)*) => {
        /// Why a request is refused. A closed set: each is a metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every refusal, in the order of their numbers.
            pub const ALL: &[Refusal] = &[$(Refusal::$name,)*];

            /// Status code and reason phrase of the answer.
            pub const fn status(self) -> &'static str {
                match self { $(Refusal::$name => $status,)* }
            }

            /// The value of the metric label `reason`.
            pub const fn label(self) -> &'static str {
                match self { $(Refusal::$name => $label,)* }
            }

            /// A sentence for a person: the body of the answer.
            pub const fn text(self) -> &'static str {
                match self { $(Refusal::$name => $text,)* }
            }

            /// Fields that the answer has besides, each with the end of its line.
            const fn fields(self) -> &'static str {
                match self { $(Refusal::$name => $fields,)* }
            }
        }
    };
}

refusals! {
    /// It is no HTTP.
    Malformed => "400 Bad Request", "malformed", CLOSE, "The request is not valid HTTP/1.1.\n";
    /// It has a body, which nothing here reads.
    Body => "400 Bad Request", "body", CLOSE, "The request must not have a body.\n";
    /// No `Host`, or several.
    Host => "400 Bad Request", "host", CLOSE, "The request needs one Host.\n";
    /// No key, several, or one that is not 16 bytes in base64.
    Key => "400 Bad Request", "key", CLOSE, "Sec-WebSocket-Key must be 16 bytes in base64.\n";
    /// Subprotocols are offered and `trunkline.v1` is not among them.
    Subprotocol => "400 Bad Request", "subprotocol", CLOSE, "The subprotocol is trunkline.v1.\n";
    /// A trusted proxy says where the client is, in a form that is no address.
    Forwarded => "400 Bad Request", "forwarded", CLOSE, "The proxy in front does not tell the client's address.\n";
    /// The page is from elsewhere.
    Origin => "403 Forbidden", "origin", CLOSE, "Pages of this origin are not served here.\n";
    /// Nothing is there.
    Path => "404 Not Found", "path", CLOSE, "There is nothing here; the WebSocket is at /ws.\n";
    /// The head did not come in time.
    Timeout => "408 Request Timeout", "timeout", CLOSE, "The request did not come in time.\n";
    /// No request to become a WebSocket.
    NoUpgrade => "426 Upgrade Required", "no_upgrade", VERSION_FIELDS,
        "This is a WebSocket; the request has to ask for an upgrade to it.\n";
    /// Another version of the WebSocket protocol than 13, or none.
    WebSocketVersion => "426 Upgrade Required", "version", VERSION_FIELDS,
        "Version 13 of the WebSocket protocol is spoken here.\n";
    /// There are as many connections from the client's address as there may be, or they come too fast.
    Address => "429 Too Many Requests", "address", RETRY_FIELDS,
        "Too many connections come from this address.\n";
    /// The head is too long.
    TooLarge => "431 Request Header Fields Too Large", "too_large", CLOSE, "The head of the request is too large.\n";
    /// The head has too many fields.
    TooManyFields => "431 Request Header Fields Too Large", "too_many_fields", CLOSE,
        "The head of the request has too many fields.\n";
    /// No more connections are taken at the moment.
    Unavailable => "503 Service Unavailable", "unavailable", RETRY_FIELDS,
        "No more connections are taken at the moment.\n";
}

/// Number of refusals, for tables indexed by them.
pub const REFUSALS: usize = Refusal::ALL.len();

impl Refusal {
    /// Appends the answer; the connection is closed behind it.
    pub fn put_response(self, out: &mut Vec<u8>) {
        put_answer(out, self.status(), self.fields(), self.text());
    }
}

/// Appends an answer with a text for a person. `fields` are those it has besides, each with the end of its line.
pub(super) fn put_answer(out: &mut Vec<u8>, status: &str, fields: &str, text: &str) {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n{fields}\r\n"
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(text.as_bytes());
}
