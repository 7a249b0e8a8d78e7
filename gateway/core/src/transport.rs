//! What a connection is made of below its frames: which transport a peer speaks, and the beginnings of those that are
//! not native.
//!
//! Everything in here works on bytes alone: it does no I/O and reads no clock.

#[cfg(test)]
mod corpus;
#[doc(hidden)]
pub mod fuzz;
pub mod networks;
pub(crate) mod outbound;
pub mod proxy;
pub mod tls;
pub mod upgrade;

/// What the first bytes of a connection say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Native frames: a frame is always shorter than 16 MiB, so its first byte is 0.
    Native,
    /// HTTP, that is `GET `: no other method is served.
    Http,
    /// A TLS handshake.
    Tls,
    /// A PROXY header of either version.
    Proxy,
    /// Nothing that is served here.
    Unknown,
}

const GET: &[u8] = b"GET ";
/// The first byte of a handshake of TLS.
pub const TLS_HANDSHAKE: u8 = 0x16;

/// Tells what the first bytes of a connection say it is; `None` while they could become several things.
pub fn opening(bytes: &[u8]) -> Option<Opening> {
    let (&first, _) = bytes.split_first()?;
    match first {
        0 => Some(Opening::Native),
        TLS_HANDSHAKE => Some(Opening::Tls),
        _ => {
            for (sign, opening) in
                [(GET, Opening::Http), (proxy::V1_SIGN, Opening::Proxy), (proxy::V2_SIGN, Opening::Proxy)]
            {
                let there = bytes.len().min(sign.len());
                if bytes[..there] == sign[..there] {
                    return (there == sign.len()).then_some(opening);
                }
            }
            Some(Opening::Unknown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_told_by_as_few_bytes_as_tell_it() {
        let openings: [(&[u8], usize, Opening); 8] = [
            (b"\0\0\0\x2a", 1, Opening::Native),
            (b"\x16\x03\x01", 1, Opening::Tls),
            (b"GET /ws HTTP/1.1\r\n", 4, Opening::Http),
            (b"PROXY TCP4 ", 6, Opening::Proxy),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", 12, Opening::Proxy),
            (b"POST /", 2, Opening::Unknown),
            (b"GEX", 3, Opening::Unknown),
            (b"\x80", 1, Opening::Unknown),
        ];
        for (bytes, needed, wanted) in openings {
            for there in 0..=bytes.len() {
                let told = (there >= needed).then_some(wanted);
                assert_eq!(opening(&bytes[..there]), told, "{there} bytes of {bytes:?}");
            }
        }
    }
}
