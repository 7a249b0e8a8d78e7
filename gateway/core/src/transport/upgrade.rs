//! A request to become a WebSocket (RFC 6455, section 4), or one for health: from the bytes of its head to what it is
//! answered with.

mod fields;
mod forwarded;
mod origin;
mod refusal;
#[cfg(test)]
mod tests;

pub use forwarded::{ForwardedField, Forwarding, Told};
pub use refusal::{REFUSALS, Refusal};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fields::Fields;
use sha1::{Digest, Sha1};

/// Longest head of a request in bytes, its last empty line included.
pub const HEAD_BYTES_MAX: usize = 8_192;
/// Most fields of a head.
pub const FIELDS_MAX: usize = 64;
/// The subprotocol that is native frames in binary messages.
pub const SUBPROTOCOL: &str = "trunkline.v1";

/// Where a WebSocket is to be had, and where health is told.
const PATH_WEBSOCKET: &str = "/ws";
const PATH_HEALTHZ: &str = "/healthz";
const PATH_READYZ: &str = "/readyz";
/// RFC 6455, section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const ACCEPT_BYTES: usize = 28;

/// Whom a listener serves. The default serves pages of the host that was asked, and everything that is no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Longest head in bytes.
    pub head_bytes_max: usize,
    /// Most fields of a head, at most [`FIELDS_MAX`].
    pub fields_max: usize,
    /// Origins of pages that are served, besides those whose host is the one asked: `https://example.com`, `null`, or
    /// `*` for all.
    pub origins: Vec<String>,
    /// Pages of the host that is asked are served only if that is named as loopback is: any other name may be a
    /// stranger's, who leads it here for a browser on this machine (DNS rebinding). For a node that lets in whoever
    /// reaches it, and is to be reached from this machine alone.
    pub loopback_names: bool,
    /// The cookie whose value is the token where there is no `Authorization`.
    pub cookie: Option<String>,
    /// Whose word is taken on where the client is.
    pub forwarding: Forwarding,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            head_bytes_max: HEAD_BYTES_MAX,
            fields_max: FIELDS_MAX,
            origins: Vec::new(),
            loopback_names: false,
            cookie: None,
            forwarding: Forwarding::default(),
        }
    }
}

/// What was asked for, and may be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// To become a WebSocket.
    Upgrade(Upgrade),
    /// Whether the process works.
    Healthz,
    /// Whether it is to get new connections.
    Readyz,
}

/// A connection that becomes a WebSocket.
#[derive(Clone, PartialEq, Eq)]
pub struct Upgrade {
    accept: [u8; ACCEPT_BYTES],
    /// It was asked for a subprotocol, so it is told the one that is spoken.
    subprotocol: bool,
    /// The token of `Authorization: Bearer`, or of the cookie: what counts where LOGIN has none.
    pub token: Option<String>,
    /// Where the client is by what the request says: for a peer whose word is taken.
    pub told: Told,
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upgrade { accept, subprotocol, token, told } = self;
        // A token is a secret.
        let token = token.as_ref().map(|token| token.len());
        let head = format_args!("accept: {accept:?}, subprotocol: {subprotocol}, told: {told:?}");
        write!(f, "Upgrade {{ {head}, token of bytes: {token:?} }}")
    }
}

impl Upgrade {
    /// Appends the answer after which frames follow.
    pub fn put_response(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        out.extend_from_slice(b"Sec-WebSocket-Accept: ");
        out.extend_from_slice(&self.accept);
        if self.subprotocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(SUBPROTOCOL.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// Appends the answer to a question for health; the connection is closed behind it.
pub fn put_health(well: bool, out: &mut Vec<u8>) {
    let (status, text) = if well { ("200 OK", "ok\n") } else { ("503 Service Unavailable", "not ready\n") };
    refusal::put_answer(out, status, refusal::CLOSE, text);
}

/// Reads the request at the front of `bytes`, and the bytes its head takes up; `None` while that is not whole. `looked`
/// is how many of the bytes were there the last time, so that none is looked at again and again while a head comes in
/// small pieces.
///
/// # Errors
///
/// What the request is refused with, see [`Refusal`].
pub fn read(rules: &Rules, bytes: &[u8], looked: usize) -> Result<Option<(Request, usize)>, Refusal> {
    let Some(end) = end_of_head(&bytes[..bytes.len().min(rules.head_bytes_max)], looked) else {
        return if bytes.len() < rules.head_bytes_max { Ok(None) } else { Err(Refusal::TooLarge) };
    };
    read_head(rules, &bytes[..end]).map(|request| Some((request, end)))
}

/// Where the empty line behind a head ends. A line may end with LF alone (RFC 9112, section 2.2).
fn end_of_head(bytes: &[u8], looked: usize) -> Option<usize> {
    // The end may have begun in what was looked at.
    let mut at = looked.saturating_sub(2);
    while let Some(line) = bytes.get(at..)?.iter().position(|byte| *byte == b'\n') {
        at += line + 1;
        match &bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn read_head(rules: &Rules, head: &[u8]) -> Result<Request, Refusal> {
    let mut space = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let fields_max = rules.fields_max.min(FIELDS_MAX);
    let mut request = httparse::Request::new(&mut space[..fields_max]);
    match request.parse(head) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(Refusal::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooManyFields),
        Err(_) => return Err(Refusal::Malformed),
    }
    let fields = Fields::new(request.headers);
    if fields.has("transfer-encoding") || fields.get("content-length").is_some_and(|length| length != b"0") {
        return Err(Refusal::Body);
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match path {
        // Of HTTP/1.0 too: that is how balancers ask.
        PATH_HEALTHZ => Ok(Request::Healthz),
        PATH_READYZ => Ok(Request::Readyz),
        PATH_WEBSOCKET => upgrade(rules, &fields, request.version == Some(1)).map(Request::Upgrade),
        _ => Err(Refusal::Path),
    }
}

/// Decides on a request to become a WebSocket: RFC 6455, section 4.2.1.
fn upgrade(rules: &Rules, fields: &Fields<'_>, http_1_1: bool) -> Result<Upgrade, Refusal> {
    let upgrades = fields.lists("upgrade", "websocket") && fields.lists("connection", "upgrade");
    if !http_1_1 || !upgrades {
        return Err(Refusal::NoUpgrade);
    }
    let host = fields.get_once("host").map_err(|_| Refusal::Host)?.filter(|host| !host.is_empty());
    let host = host.ok_or(Refusal::Host)?;
    if fields.get_once("sec-websocket-version") != Ok(Some(b"13")) {
        return Err(Refusal::WebSocketVersion);
    }
    let key = fields.get_once("sec-websocket-key").ok().flatten().filter(|key| is_key(key)).ok_or(Refusal::Key)?;
    match fields.get_once("origin") {
        Ok(None) => {}
        Ok(Some(origin)) if origin::is_served(origin, host, rules) => {}
        _ => return Err(Refusal::Origin),
    }
    let subprotocol = fields.has("sec-websocket-protocol");
    if subprotocol && !fields.lists_exactly("sec-websocket-protocol", SUBPROTOCOL) {
        return Err(Refusal::Subprotocol);
    }
    let cookie = || rules.cookie.as_ref().and_then(|name| fields.cookie(name));
    let token = fields.bearer().or_else(cookie);
    let told = if rules.forwarding.is_empty() { Told::Nothing } else { rules.forwarding.told(fields) };
    Ok(Upgrade { accept: accept(key), subprotocol, token: token.map(str::to_owned), told })
}

/// Whether a key is 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    key.len() == 24 && STANDARD.decode_slice(key, &mut nonce) == Ok(16)
}

/// What proves that the request was understood.
fn accept(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(ACCEPT_BYTES));
    accept
}
