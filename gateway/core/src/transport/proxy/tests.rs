//! Headers of both versions: as balancers write them, cut anywhere, damaged.

use super::crc32c::Crc32c;
use super::{HEADER_BYTES_MAX, Header, V2_SIGN, Violation, read};
use crate::transport::fuzz;
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::SocketAddr;

fn client(source: &str, destination: &str) -> Header {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Header::Client { source: address(source), destination: address(destination) }
}

/// A header of version 2; `fields` follow the addresses.
fn v2(version_command: u8, family: u8, addresses: &[u8], fields: &[u8]) -> Vec<u8> {
    let length = (addresses.len() + fields.len()) as u16;
    [V2_SIGN, &[version_command, family], &length.to_be_bytes(), addresses, fields].concat()
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

const TCP4_ADDRESSES: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xC0, 0x01, 0x1E, 0x14];

/// The header is read at its last byte and not before, whatever follows.
fn assert_read(header: &[u8], wanted: Header) {
    for there in 0..header.len() {
        assert_eq!(read(&header[..there]), Ok(None), "{there} bytes");
    }
    for behind in [&b""[..], b"\0\0\0\x08", &[0xFF; 300]] {
        assert_eq!(read(&[header, behind].concat()), Ok(Some((wanted, header.len()))));
    }
}

/// The header is refused from `from` bytes on, and not before.
fn assert_refused(header: &[u8], from: usize, wanted: Violation) {
    for there in 0..=header.len() {
        let told = read(&header[..there]);
        assert_eq!(told, if there < from { Ok(None) } else { Err(wanted) }, "{there} bytes of {header:?}");
    }
    assert_eq!(read(&[header, &[b'x'; 300]].concat()), Err(wanted));
}

#[test]
fn lines_of_version_1_are_read_at_every_split_point() {
    assert_read(b"PROXY TCP4 192.0.2.7 198.51.100.1 49153 7700\r\n", client("192.0.2.7:49153", "198.51.100.1:7700"));
    assert_read(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", {
        client("255.255.255.255:65535", "255.255.255.255:0")
    });
    assert_read(b"PROXY TCP6 2001:db8::7 ::1 49153 7700\r\n", client("[2001:db8::7]:49153", "[::1]:7700"));
    assert_read(b"PROXY UNKNOWN\r\n", Header::Own);
    let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let line = format!("PROXY UNKNOWN {long} {long} 65535 65535\r\n");
    assert_eq!(line.len(), 107, "the longest line there is");
    assert_read(line.as_bytes(), Header::Own);
    assert_eq!(long.len(), 39);
}

#[test]
fn lines_that_are_not_as_version_1_asks_are_refused_at_their_end() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
        "PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
        "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP4 localhost 198.51.100.1 1 2\r\n",
    ] {
        assert_refused(line.as_bytes(), line.len(), Violation::Malformed);
    }
    let not_utf8 = b"PROXY TCP4 \xff 198.51.100.1 1 2\r\n";
    assert_refused(not_utf8, not_utf8.len(), Violation::Malformed);
}

#[test]
fn a_line_without_end_is_refused_at_107_bytes() {
    let endless = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
    assert_refused(&endless, 107, Violation::TooLong);
    let late = [b"PROXY UNKNOWN ", &[b'x'; 92][..], b"\r\n"].concat();
    assert_eq!(late.len(), 108);
    assert_refused(&late, 107, Violation::TooLong);
}

#[test]
fn headers_of_version_2_are_read_at_every_split_point() {
    let tcp4 = client("192.0.2.7:49153", "198.51.100.1:7700");
    assert_read(&v2(0x21, 0x11, &TCP4_ADDRESSES, &[]), tcp4);
    let mut tcp6_addresses = [0; 36];
    tcp6_addresses[..2].copy_from_slice(&[0x20, 0x01]);
    tcp6_addresses[15] = 7;
    tcp6_addresses[31] = 1;
    tcp6_addresses[32..].copy_from_slice(&[0xC0, 0x01, 0x1E, 0x14]);
    assert_read(&v2(0x21, 0x21, &tcp6_addresses, &[]), client("[2001::7]:49153", "[::1]:7700"));
    // Fields that nobody here asks about: ALPN, authority, no operation, TLS, one of an unknown type.
    let fields = [
        field(0x01, b"h2"),
        field(0x02, b"example.com"),
        field(0x04, &[0; 50]),
        field(0x20, b"\x01\0\0\0\0"),
        field(0xEE, &[]),
    ];
    assert_read(&v2(0x21, 0x11, &TCP4_ADDRESSES, &fields.concat()), tcp4);
    // No address of the client, or none that it has: a Unix socket, no family, the balancer's own connection.
    assert_read(&v2(0x21, 0x31, &[b'/'; 216], &[]), Header::Own);
    assert_read(&v2(0x21, 0x00, &[], &[]), Header::Own);
    assert_read(&v2(0x21, 0x00, &[], b"no field"), Header::Own);
    assert_read(&v2(0x20, 0x00, &[], &[]), Header::Own);
    assert_read(&v2(0x20, 0x11, &TCP4_ADDRESSES, &[]), Header::Own);
    assert_read(&v2(0x20, 0x12, &[], &[]), Header::Own);
}

#[test]
fn headers_that_are_not_as_version_2_asks_are_refused_as_early_as_it_shows() {
    let header = |version_command, family| v2(version_command, family, &TCP4_ADDRESSES, &[]);
    for version_command in [0x11, 0x31, 0x01, 0x22, 0x2F] {
        assert_refused(&header(version_command, 0x11), 13, Violation::Unsupported);
    }
    for family in [0x10, 0x12, 0x22, 0x32, 0x41, 0x01, 0xFF] {
        assert_refused(&header(0x21, family), 14, Violation::Malformed);
    }
    assert_refused(&v2(0x21, 0x11, &TCP4_ADDRESSES[..11], &[]), 16, Violation::Malformed);
    assert_refused(&v2(0x21, 0x21, &TCP4_ADDRESSES, &[]), 16, Violation::Malformed);
    assert_refused(&v2(0x21, 0x31, &[0; 215], &[]), 16, Violation::Malformed);
    // A field that is cut off.
    for fields in [&b"\x04"[..], b"\x04\0", b"\x04\0\x01", b"\x04\0\x05abcd"] {
        let header = v2(0x21, 0x11, &TCP4_ADDRESSES, fields);
        assert_refused(&header, header.len(), Violation::Malformed);
    }
}

#[test]
fn a_header_of_4096_bytes_is_read_and_a_longer_one_refused_before_it_came() {
    let padding = |bytes: usize| field(0x04, &vec![0; bytes - 16 - 12 - 3]);
    let longest = v2(0x21, 0x11, &TCP4_ADDRESSES, &padding(HEADER_BYTES_MAX));
    assert_eq!(longest.len(), HEADER_BYTES_MAX);
    assert!(matches!(read(&longest), Ok(Some((Header::Client { .. }, HEADER_BYTES_MAX)))));
    assert_refused(&v2(0x21, 0x11, &TCP4_ADDRESSES, &padding(HEADER_BYTES_MAX + 1)), 16, Violation::TooLong);
}

#[test]
fn a_checksum_is_verified_where_there_is_one() {
    let mut header = v2(0x21, 0x11, &TCP4_ADDRESSES, &[field(0x03, &[0; 4]), field(0x04, b"behind")].concat());
    let mut crc = Crc32c::default();
    crc.push(&header);
    header[31..35].copy_from_slice(&crc.value().to_be_bytes());
    assert_read(&header, client("192.0.2.7:49153", "198.51.100.1:7700"));
    for at in 16..header.len() {
        let mut damaged = header.clone();
        damaged[at] ^= 0x01;
        // Damage to types and lengths may hide the checksum, or part of a field.
        let hidden = (28..31).contains(&at) || (35..38).contains(&at);
        match read(&damaged) {
            Err(Violation::WrongChecksum) => {}
            Err(Violation::Malformed) | Ok(Some(_)) if hidden => {}
            told => panic!("{told:?} with damage at {at}"),
        }
    }
    let short = v2(0x21, 0x11, &TCP4_ADDRESSES, &field(0x03, &[0; 3]));
    assert_refused(&short, short.len(), Violation::Malformed);
}

#[test]
fn what_begins_otherwise_is_no_header() {
    assert_refused(b"GET / HTTP/1.1\r\n", 1, Violation::Missing);
    assert_refused(b"\0\0\0\x2a", 1, Violation::Missing);
    assert_refused(b"PROXX", 5, Violation::Missing);
    assert_refused(b"\r\n\r\n\0\r\nQUIX", 11, Violation::Missing);
}

#[test]
fn every_violation_has_a_label_and_a_sentence_of_its_own() {
    use Violation::*;
    let all = [Missing, TooLong, Malformed, Unsupported, WrongChecksum];
    for (at, violation) in all.iter().enumerate() {
        for other in &all[..at] {
            assert!(violation.label() != other.label() && violation.to_string() != other.to_string());
        }
    }
}

proptest! {
    #[test]
    fn lines_come_back_as_they_were_written(source in any::<SocketAddr>(), destination in any::<SocketAddr>()) {
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        let family = if source.is_ipv4() { 4 } else { 6 };
        let (from, to) = (source.ip(), destination.ip());
        let line = format!("PROXY TCP{family} {from} {to} {} {}\r\n", source.port(), destination.port());
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        let wanted = Header::Client { source: plain(source), destination: plain(destination) };
        prop_assert_eq!(read(line.as_bytes()), Ok(Some((wanted, line.len()))));
    }

    #[test]
    fn any_bytes_are_judged_once_and_for_all(bytes in vec(any::<u8>(), 0..300)) {
        fuzz::proxy_header(&bytes);
        fuzz::proxy_header(&[b"PROXY TCP4 ", &bytes[..]].concat());
        fuzz::proxy_header(&[V2_SIGN, &bytes[..]].concat());
        fuzz::proxy_header(&[V2_SIGN, b"\x21\x11\0\x40", &bytes[..]].concat());
    }

    /// The library's author has not read this code. It is more lenient in some places, so only what both take is
    /// compared.
    #[test]
    fn a_header_of_another_author_is_read_as_it_was_meant(
        source in any::<SocketAddr>(),
        destination in any::<SocketAddr>(),
    ) {
        use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        let (source, destination) = (plain(source), plain(destination));
        let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
        let wanted = Header::Client { source, destination };
        let (mut v1, mut v2) = (Vec::new(), Vec::new());
        header.encode_v1(&mut v1).expect("it has a form in version 1");
        header.encode_v2(&mut v2).expect("it has a form in version 2");
        for bytes in [v1, v2] {
            prop_assert_eq!(read(&bytes), Ok(Some((wanted, bytes.len()))));
            let (theirs, len) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("their own");
            prop_assert_eq!((theirs.proxied_address().map(|address| address.source), len), (Some(source), bytes.len()));
        }
    }
}
