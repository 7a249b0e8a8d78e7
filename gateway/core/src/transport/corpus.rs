//! The corpus of the fuzz targets for transports, replayed. Its seeds are written by this file: after a change to them
//! run `cargo test -p trunkline-core --lib -- --ignored write_the_seeds_of_transports`.

use super::fuzz;
use super::proxy::V2_SIGN;
use super::tls::fuzz::tls_records;
use std::fs;
use std::path::PathBuf;

struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: Vec<(&'static str, Vec<u8>)>,
}

impl Target {
    fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(self.name)
    }
}

fn targets() -> [Target; 3] {
    [
        Target { name: "proxy_header", run: fuzz::proxy_header, seeds: proxy_header_seeds() },
        Target { name: "tls_records", run: tls_records, seeds: tls_records_seeds() },
        Target { name: "upgrade_head", run: fuzz::upgrade_head, seeds: upgrade_head_seeds() },
    ]
}

fn proxy_header_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let v2 = |rest: &[u8]| [V2_SIGN, rest].concat();
    let addresses = [192, 0, 2, 7, 198, 51, 100, 1, 0xC0, 0x01, 0x1E, 0x14];
    let tcp4 = |length: u8, fields: &[u8]| v2(&[&[0x21, 0x11, 0, length], &addresses[..], fields].concat());
    vec![
        ("empty", vec![]),
        ("v1_tcp4", b"PROXY TCP4 192.0.2.7 198.51.100.1 49153 7700\r\n".to_vec()),
        ("v1_tcp6", b"PROXY TCP6 2001:db8::7 ::1 49153 7700\r\nmore".to_vec()),
        ("v1_unknown", b"PROXY UNKNOWN whatever\r\n".to_vec()),
        ("v1_endless", [&b"PROXY UNKNOWN "[..], &[b'x'; 120]].concat()),
        ("v1_bad_port", b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1\r\n".to_vec()),
        ("v2_tcp4", tcp4(12, b"")),
        ("v2_fields", tcp4(24, b"\x02\0\x03abc\x04\0\0\xEE\0\0")),
        ("v2_field_cut", tcp4(16, b"\x04\0\x09x")),
        ("v2_checksum", tcp4(19, b"\x03\0\x04\x12\x34\x56\x78")),
        ("v2_tcp6", v2(&[&b"\x21\x21\0\x24"[..], &[7; 36]].concat())),
        ("v2_unix", v2(&[&b"\x21\x31\0\xd8"[..], &[b'/'; 216]].concat())),
        ("v2_local", v2(b"\x20\0\0\0")),
        ("v2_too_long", v2(b"\x21\x11\xff\xff")),
        ("v2_too_short", v2(b"\x21\x21\0\x0c")),
        ("v2_version_3", v2(b"\x31\x11\0\x0c")),
    ]
}

/// Version and suite, the length of the pieces, then operations: what is done with how many bytes, and those.
fn tls_records_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let data = b"\x00\x04data\x01\x00\x02\x03abc";
    let update = b"\x03\x05\x18\0\0\x01\x01";
    let of = |first: u8, step: u8, parts: &[&[u8]]| [&[first, step], &parts.concat()[..]].concat();
    vec![
        ("empty", vec![]),
        ("aes_128", of(0, 3, &[data, data])),
        ("aes_256", of(1, 0, &[data, data])),
        ("chacha20", of(2, 255, &[data, data])),
        ("aes_128_of_1_2", of(66, 3, &[data, data])),
        ("aes_256_of_1_2", of(64, 9, &[data, data])),
        ("chacha20_of_1_2", of(65, 200, &[data, data])),
        ("long", of(0, 100, &[b"\x80\x50", &[7; 80], data])),
        ("many", of(0, 20, &[&data[..]; 15])),
        ("worn_out_of_1_2", of(66, 20, &[&data[..]; 30])),
        ("update_under_the_old_key", of(0, 1, &[update, data])),
        ("update_in_parts", of(0, 1, &[b"\x03\x01\x18", b"\x03\x04\0\0\x01\0"])),
        ("update_and_more", of(0, 1, &[b"\x03\x06\x18\0\0\x01\0\x18"])),
        ("renegotiation", of(64, 7, &[b"\x03\x04\x01\0\0\0", data, b"\x03\x01\x01", b"\x03\x01\x01", b"\x03\x01\x01"])),
        ("close", of(0, 7, &[data, b"\x04\x02\x01\0", data])),
        ("alert", of(64, 7, &[data, b"\x04\x02\x02\x28"])),
        ("warning_of_1_2", of(64, 7, &[b"\x04\x02\x01\x64", data])),
        ("in_clear", of(0, 7, &[data, b"\x05\x08\0\0\0\x08\x02\0\0\0"])),
        ("another_type", of(0, 7, &[b"\x05\x07\x16\x03\x03\0\x02ab"])),
        ("too_long", of(0, 7, &[b"\x05\x05\x17\x03\x03\x41\x01"])),
        ("forged", of(0, 7, &[data, b"\x05\x17\x17\x03\x03\0\x12nobody sealed this"])),
        ("cut", of(0, 7, &[b"\x05\x03\x17\x03\x03"])),
    ]
}

/// How the pieces begin, the request.
fn upgrade_head_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let rest = "Host: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let get = |pieces: char, line: &str, more: &str| format!("{pieces}{line}\r\n{rest}{more}\r\n").into_bytes();
    let ws = |pieces, more: &str| get(pieces, "GET /ws HTTP/1.1", more);
    vec![
        ("empty", vec![]),
        ("upgrade", ws('\x07', "")),
        ("byte_by_byte", ws('\0', "Origin: https://a.example\r\n")),
        ("origin_listed", ws('A', "Origin: https://example.org\r\n")),
        ("origin_refused", ws('A', "Origin: null\r\n")),
        ("subprotocol", ws('z', "Sec-WebSocket-Protocol: x, trunkline.v1\r\n")),
        ("subprotocol_refused", ws('z', "Sec-WebSocket-Protocol: mqtt\r\n")),
        ("bearer", ws('0', "Authorization: Bearer abc.def.ghi\r\n")),
        ("cookie", ws('0', "Cookie: a=b; token=\"xyz\"\r\n")),
        ("two_hosts", ws('0', "Host: b.example\r\n")),
        ("body", ws('0', "Content-Length: 3\r\n")),
        ("folded", ws('0', "X: a\r\n b\r\n")),
        ("http_1_0", get('1', "GET /ws HTTP/1.0", "")),
        ("nowhere", get('1', "GET /x HTTP/1.1", "")),
        ("healthz", b"\x05GET /healthz HTTP/1.0\r\n\r\n".to_vec()),
        ("readyz", b"\x05GET /readyz HTTP/1.1\nHost: a\n\n".to_vec()),
        ("many_fields", ws('\x50', &"X: y\r\n".repeat(70))),
        ("too_large", ws('\x60', &format!("X: {}\r\n", "y".repeat(8_300)))),
        ("cut", ws('\x10', "")[..60].to_vec()),
        ("lines_without_end", [&b"\x20GET /ws HTTP/1.1\r\n"[..], &b"\r".repeat(50)].concat()),
    ]
}

#[test]
fn every_input_of_the_corpus_keeps_the_properties() {
    for target in targets() {
        let mut replayed = 0;
        for entry in fs::read_dir(target.folder()).expect("the folder of the corpus") {
            let path = entry.expect("an entry of the corpus").path();
            let input = fs::read(&path).expect("a file of the corpus");
            // Shown when the input fails, since the captured output of a failed test is.
            println!("{}", path.display());
            (target.run)(&input);
            replayed += 1;
        }
        assert!(replayed >= target.seeds.len(), "{}", target.name);
    }
}

#[test]
fn the_committed_seeds_are_the_ones_written_here() {
    for target in targets() {
        for (name, bytes) in &target.seeds {
            let path = target.folder().join(name);
            let committed = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(&committed == bytes, "{} is out of date", path.display());
        }
    }
}

#[test]
#[ignore = "writes the seeds of the corpus into the source tree"]
fn write_the_seeds_of_transports() {
    for target in targets() {
        let folder = target.folder();
        fs::create_dir_all(&folder).expect("the folder of the corpus");
        for (name, bytes) in &target.seeds {
            fs::write(folder.join(name), bytes).expect("a file of the corpus");
        }
    }
}
