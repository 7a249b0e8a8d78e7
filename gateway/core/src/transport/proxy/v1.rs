//! Version 1: one line of text.

use super::{Header, V1_SIGN, Violation};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest line in bytes, its end included: what UNKNOWN with two IPv6 addresses takes.
const LINE_BYTES_MAX: usize = 107;

/// Reads a header that begins with [`V1_SIGN`], as far as that is there.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let near = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = near.windows(2).position(|pair| pair == b"\r\n") else {
        return if near.len() == LINE_BYTES_MAX { Err(Violation::TooLong) } else { Ok(None) };
    };
    let line = near.get(V1_SIGN.len()..end).ok_or(Violation::Malformed)?;
    Ok(Some((read_line(line)?, end + 2)))
}

/// The line without its sign and its end.
fn read_line(line: &[u8]) -> Result<Header, Violation> {
    let line = std::str::from_utf8(line).map_err(|_| Violation::Malformed)?;
    let mut fields = line.split(' ');
    let family = fields.next();
    if family == Some("UNKNOWN") {
        // Whatever follows is to be ignored.
        return Ok(Header::Own);
    }
    let mut address = || -> Option<IpAddr> {
        let field = fields.next()?;
        match family {
            Some("TCP4") => field.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            Some("TCP6") => field.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let addresses = address().zip(address());
    let mut port = || fields.next().and_then(port);
    let ports = port().zip(port());
    match (addresses, ports, fields.next()) {
        (Some((source, destination)), Some((source_port, destination_port)), None) => Ok(Header::Client {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
        }),
        _ => Err(Violation::Malformed),
    }
}

/// A decimal number without sign and leading zeros.
fn port(field: &str) -> Option<u16> {
    let plain = field == "0" || !field.starts_with(['0', '+']);
    plain.then(|| field.parse().ok())?
}
