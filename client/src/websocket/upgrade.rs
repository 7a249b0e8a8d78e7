//! From HTTP to a WebSocket (RFC 6455, section 4.1): the request, and what may be an answer to it.

use std::fmt;
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Response, Status};
use sha1::{Digest, Sha1};

use crate::addrs::WebSocketUrl;

/// Random bytes in a request.
pub(super) const NONCE_BYTES: usize = 16;
/// Longest head of an answer in bytes, and most fields in it: what a gateway takes of a request.
pub(super) const HEAD_BYTES_MAX: usize = 8_192;
const FIELDS_MAX: usize = 64;

/// Native frames in binary messages.
const SUBPROTOCOL: &str = "trunkline.v1";
/// RFC 6455, section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const SWITCHING_PROTOCOLS: u16 = 101;

/// The server answered the request for a WebSocket with another HTTP status: the source of [`crate::Error::Connect`],
/// in its [`io::Error::get_ref`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpgradeRefused {
    /// HTTP status of the answer.
    pub status: u16,
    /// `Retry-After`, if the answer has one in seconds. A client that reconnects waits for that long besides its own
    /// wait, a minute at most: it may come from a proxy, which knows nothing of other addresses.
    pub retry_after: Option<Duration>,
}

impl UpgradeRefused {
    /// What is the matter with most servers that answer so.
    fn hint(&self) -> &'static str {
        match self.status {
            300..=399 => "it sends this client elsewhere, where it does not go by itself",
            400 => "it does not understand the request; is that a gateway?",
            401 => "it wants a login of its own, which this client has not got",
            403 => "it does not let this client in",
            404 => "it has no WebSocket at this path",
            408 => "the request came too slowly",
            426 => "it wants another version of WebSocket or HTTP",
            429 => "too many connections come from here",
            502 | 504 => "the gateway behind it does not answer",
            503 => "it takes no connections at the moment",
            _ => "it makes no WebSocket of the connection",
        }
    }
}

impl fmt::Display for UpgradeRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered the request for a WebSocket with HTTP status {}: {}", self.status, self.hint())
    }
}

impl std::error::Error for UpgradeRefused {}

/// The key of a request.
pub(super) fn key(nonce: &[u8; NONCE_BYTES]) -> String {
    STANDARD.encode(nonce)
}

/// What a server answers a key with.
pub(super) fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize())
}

/// The request. It has no `Origin`: this is no page of a browser.
pub(super) fn request(url: &WebSocketUrl<'_>, key: &str) -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        url.path(),
        url.host_field()
    )
}

/// Reads the head of the answer at the front of `bytes` and returns its length; `None` while it is not whole.
///
/// # Errors
/// [`UpgradeRefused`] for another status than 101, and a sentence for what makes no WebSocket for Trunkline.
pub(super) fn read_answer(bytes: &[u8], key: &str) -> io::Result<Option<usize>> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut answer = Response::new(&mut fields);
    match answer.parse(head) {
        Ok(Status::Complete(end)) => check(&answer, key).map(|()| Some(end)),
        Ok(Status::Partial) if head.len() < HEAD_BYTES_MAX => Ok(None),
        Ok(Status::Partial) => Err(unusable("the head of its answer has more than 8192 bytes")),
        Err(httparse::Error::TooManyHeaders) => Err(unusable("the head of its answer has more than 64 fields")),
        Err(_) => Err(unusable("its answer is no HTTP")),
    }
}

fn check(answer: &Response<'_, '_>, key: &str) -> io::Result<()> {
    let status = answer.code.unwrap_or_default();
    if status != SWITCHING_PROTOCOLS {
        let seconds = only(answer.headers, "Retry-After").and_then(|text| text.parse().ok());
        let refused = UpgradeRefused { status, retry_after: seconds.map(Duration::from_secs) };
        let kind = match status {
            401 | 403 => io::ErrorKind::PermissionDenied,
            404 => io::ErrorKind::NotFound,
            _ => io::ErrorKind::ConnectionRefused,
        };
        return Err(io::Error::new(kind, refused));
    }
    let says = |name, value: &str| only(answer.headers, name).is_some_and(|said| said.eq_ignore_ascii_case(value));
    let mut connection = only(answer.headers, "Connection").unwrap_or_default().split(',');
    if answer.version != Some(1)
        || !says("Upgrade", "websocket")
        || !connection.any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
    {
        return Err(unusable("it switches to another protocol than WebSocket"));
    }
    // Both are compared as they are: case counts in base64, and in names of subprotocols.
    if only(answer.headers, "Sec-WebSocket-Accept") != Some(&accept(key)) {
        return Err(unusable("its answer is not one to this request (Sec-WebSocket-Accept)"));
    }
    if only(answer.headers, "Sec-WebSocket-Protocol") != Some(SUBPROTOCOL) {
        return Err(unusable("its WebSocket is not for Trunkline (Sec-WebSocket-Protocol is not trunkline.v1)"));
    }
    if answer.headers.iter().any(|field| field.name.eq_ignore_ascii_case("Sec-WebSocket-Extensions")) {
        return Err(unusable("it uses an extension of WebSocket that it was not asked for"));
    }
    Ok(())
}

/// The value of a field that stands there once, and is text.
fn only<'a>(fields: &[Header<'a>], name: &str) -> Option<&'a str> {
    let mut found = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let (value, None) = (found.next()?.value, found.next()) else { return None };
    std::str::from_utf8(value).ok().map(str::trim)
}

fn unusable(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server is no gateway: {why}"))
}
