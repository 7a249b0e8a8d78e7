//! The PROXY protocol, versions 1 and 2: what a balancer says about the client before the client's first byte.
//! HAProxy's `proxy-protocol.txt` of 2020 is the specification.

mod crc32c;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::fmt;
use std::net::SocketAddr;

/// With this a header of version 1 begins.
pub const V1_SIGN: &[u8] = b"PROXY ";
/// With this a header of version 2 begins.
pub const V2_SIGN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header that is read, in bytes. The specification allows 64 KiB in version 2, of which only certificates'
/// particulars make use.
pub const HEADER_BYTES_MAX: usize = 4_096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The balancer's own connection, or a client whose address it does not know: the connection's own address counts.
    Own,
    /// A client, and the address it connected to.
    Client {
        /// Where the client is.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
}

/// Why a header is refused. The connection is closed then, unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// There is no header.
    Missing,
    /// It is longer than [`HEADER_BYTES_MAX`], or than 107 bytes in version 1.
    TooLong,
    /// It is not as its version asks.
    Malformed,
    /// A command or a version that is unknown.
    Unsupported,
    /// Its checksum is another.
    WrongChecksum,
}

impl Violation {
    /// The value of a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Violation::Missing => "missing",
            Violation::TooLong => "too_long",
            Violation::Malformed => "malformed",
            Violation::Unsupported => "unsupported",
            Violation::WrongChecksum => "wrong_checksum",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Violation::Missing => "there is no PROXY header",
            Violation::TooLong => "the PROXY header is too long",
            Violation::Malformed => "the PROXY header is malformed",
            Violation::Unsupported => "the PROXY header has an unknown version or command",
            Violation::WrongChecksum => "the checksum of the PROXY header is wrong",
        })
    }
}

impl std::error::Error for Violation {}

/// Reads the header at the front of `bytes`, and the bytes it takes up; `None` while it is not whole.
///
/// # Errors
///
/// A [`Violation`] as early as it shows. What follows does not change it.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let begins = |sign: &[u8]| {
        let there = bytes.len().min(sign.len());
        bytes[..there] == sign[..there]
    };
    if begins(V2_SIGN) {
        v2::read(bytes)
    } else if begins(V1_SIGN) {
        v1::read(bytes)
    } else {
        Err(Violation::Missing)
    }
}
