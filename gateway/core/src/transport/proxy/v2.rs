//! Version 2: binary.

use super::crc32c::Crc32c;
use super::{HEADER_BYTES_MAX, Header, V2_SIGN, Violation};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes before the addresses: the sign, version and command, family, length of what follows.
const FIXED_BYTES: usize = V2_SIGN.len() + 4;
const VERSION: u8 = 2;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
/// Family in the upper half, transport in the lower.
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;
/// Bytes that the addresses of a family take.
const TCP4_BYTES: usize = 12;
const TCP6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;
/// The type of the field that holds the checksum over the whole header, in which its own four bytes count as 0.
const TYPE_CRC32C: u8 = 0x03;

/// Reads a header that begins with [`V2_SIGN`], as far as that is there.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&version_command) = bytes.get(V2_SIGN.len()) else { return Ok(None) };
    let command = version_command & 0x0F;
    if version_command >> 4 != VERSION || !matches!(command, LOCAL | PROXY) {
        return Err(Violation::Unsupported);
    }
    let Some(&family) = bytes.get(V2_SIGN.len() + 1) else { return Ok(None) };
    let address_bytes = match family {
        // The addresses of a LOCAL header mean nothing, of whatever family.
        _ if command == LOCAL => 0,
        UNSPECIFIED => 0,
        TCP4 => TCP4_BYTES,
        TCP6 => TCP6_BYTES,
        UNIX_STREAM => UNIX_BYTES,
        // Datagrams do not come over a connection, and other families do not exist.
        _ => return Err(Violation::Malformed),
    };
    let Some(length) = bytes.get(FIXED_BYTES - 2..FIXED_BYTES) else { return Ok(None) };
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if end > HEADER_BYTES_MAX {
        return Err(Violation::TooLong);
    }
    if end < FIXED_BYTES + address_bytes {
        return Err(Violation::Malformed);
    }
    let Some(header) = bytes.get(..end) else { return Ok(None) };
    // What follows an address of no family, or of the balancer's own connection, need not be fields.
    if address_bytes > 0 {
        check_fields(header, FIXED_BYTES + address_bytes)?;
    }
    Ok(Some((addresses(&header[FIXED_BYTES..FIXED_BYTES + address_bytes], family), end)))
}

/// Both addresses, then both ports.
fn addresses(bytes: &[u8], family: u8) -> Header {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (source, destination) = match (family, bytes.len()) {
        (TCP4, TCP4_BYTES) => {
            let ip = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
            (SocketAddr::from((ip(0), port(8))), SocketAddr::from((ip(4), port(10))))
        }
        (TCP6, TCP6_BYTES) => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&bytes[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            (SocketAddr::from((ip(0), port(32))), SocketAddr::from((ip(16), port(34))))
        }
        _ => return Header::Own,
    };
    Header::Client { source, destination }
}

/// Walks over the fields from `at` on: a type, a length of two bytes, a value. None but the checksum is looked at.
fn check_fields(header: &[u8], mut at: usize) -> Result<(), Violation> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(Violation::Malformed) };
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        at = value.end;
        let Some(bytes) = header.get(value.clone()) else { return Err(Violation::Malformed) };
        if kind == TYPE_CRC32C {
            let wanted: [u8; 4] = bytes.try_into().map_err(|_| Violation::Malformed)?;
            let mut crc = Crc32c::default();
            crc.push(&header[..value.start]);
            crc.push(&[0; 4]);
            crc.push(&header[value.end..]);
            if crc.value() != u32::from_be_bytes(wanted) {
                return Err(Violation::WrongChecksum);
            }
        }
    }
    Ok(())
}
