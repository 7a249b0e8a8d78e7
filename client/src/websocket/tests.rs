//! The WebSocket of a client against servers in memory, good and bad.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use trunkline_proto::websocket::{self as codec, Control, Opcode, Role, close_code, put_close, put_control, put_frame};
use trunkline_proto::{Code, Header, Kind, decode, encode};

use super::upgrade::{self, HEAD_BYTES_MAX, read_answer};
use super::{UpgradeRefused, Ws, WsStream, open};
use crate::addrs::WebSocketUrl;
use crate::error::ByeInClose;
use crate::login::Advice;
use crate::{Dial, Reason};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn frame(id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header { kind: Kind::Deliver, flags: 0, aux: 0, id, peer: 1, stamp: 0 };
    encode(&mut bytes, &header, body);
    bytes
}

/// The answer of a gateway, with these lines in place of some of its own.
fn answer_with(change: impl Fn(&str) -> Option<String>) -> Vec<u8> {
    let accept = format!("Sec-WebSocket-Accept: {}", upgrade::accept(KEY));
    let lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        &accept,
        "Sec-WebSocket-Protocol: trunkline.v1",
        "",
        "",
    ];
    let lines: Vec<String> =
        lines.iter().filter_map(|line| if line.is_empty() { Some(String::new()) } else { change(line) }).collect();
    lines.join("\r\n").into_bytes()
}

fn answer() -> Vec<u8> {
    answer_with(|line| Some(line.to_owned()))
}

/// The answer with this in place of the line that begins so.
fn answer_but(begin: &str, instead: Option<&str>) -> Vec<u8> {
    answer_with(|line| if line.starts_with(begin) { instead.map(str::to_owned) } else { Some(line.to_owned()) })
}

/// A connection to a server in memory, whose end is given to the test.
struct ToMemory(Option<DuplexStream>);

impl Dial for ToMemory {
    type Stream = DuplexStream;

    async fn dial(&mut self, addr: &str) -> io::Result<DuplexStream> {
        assert_eq!(addr, "ws://chat.example.com:80");
        Ok(self.0.take().expect("dialed once"))
    }
}

/// Reads a request to its end, and returns it with the key in it.
async fn request(server: &mut DuplexStream) -> (String, String) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert_ne!(server.read_buf(&mut bytes).await.expect("memory"), 0);
    }
    let text = String::from_utf8(bytes).expect("text");
    let key = text.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).expect("a key").to_owned();
    (text, key)
}

#[tokio::test]
async fn the_request_asks_for_what_a_gateway_wants_and_each_has_a_key_of_its_own() {
    let mut keys = Vec::new();
    for _ in 0..2 {
        let (client, mut server) = duplex(1_024);
        let mut dial = Ws::over(ToMemory(Some(client)));
        let (opened, ()) = tokio::join!(dial.dial("ws://chat.example.com/x?y=z"), async {
            let (text, key) = request(&mut server).await;
            assert!(text.starts_with("GET /x?y=z HTTP/1.1\r\nHost: chat.example.com\r\n"), "{text}");
            for line in [
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Protocol: trunkline.v1",
            ] {
                assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
            }
            assert!(!text.contains("Origin"), "{text}");
            let answer = String::from_utf8(answer()).expect("text");
            let answer = answer.replace(&upgrade::accept(KEY), &upgrade::accept(&key));
            server.write_all(answer.as_bytes()).await.expect("memory");
            keys.push(key);
        });
        opened.expect("a WebSocket");
    }
    assert_ne!(keys[0], keys[1]);
    // RFC 6455, section 1.3.
    assert_eq!(upgrade::accept(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

/// What a gateway sends after its answer: a message in fragments with Pings in between, one of several frames, one that
/// is long, its last words. And the native frames that this is.
fn all_of_a_session() -> (Vec<u8>, Vec<u8>) {
    let (mut bytes, mut native) = (Vec::new(), Vec::new());
    let first = frame(1, b"fragments");
    put_frame(&mut bytes, Opcode::Binary, false, None, &first[..3]);
    put_control(&mut bytes, Opcode::Ping, b"one");
    put_frame(&mut bytes, Opcode::Continuation, false, None, &first[3..30]);
    put_control(&mut bytes, Opcode::Pong, b"");
    put_frame(&mut bytes, Opcode::Continuation, true, None, &first[30..]);
    native.extend_from_slice(&first);
    let several = [frame(2, b""), frame(3, b"of one message")].concat();
    put_frame(&mut bytes, Opcode::Binary, true, None, &several);
    native.extend_from_slice(&several);
    put_control(&mut bytes, Opcode::Ping, &[7; 125]);
    let long = frame(4, &[9; 300]);
    put_frame(&mut bytes, Opcode::Binary, true, None, &long);
    native.extend_from_slice(&long);
    put_close(&mut bytes, Some(close_code::BYE_BASE + 12), "the node is shutting down");
    (bytes, native)
}

#[tokio::test]
async fn what_a_server_sends_may_be_cut_anywhere_and_its_close_stands_for_a_bye() {
    let (session, native) = all_of_a_session();
    let bytes = [&answer()[..], &session].concat();
    for cut in 0..=bytes.len() {
        // The head is taken for what it is wherever it is cut, and never before it is whole.
        let head = bytes.len() - session.len();
        let early = read_answer(&bytes[..cut], KEY).expect("a WebSocket");
        assert_eq!(early, (cut >= head).then_some(head), "cut at {cut}");
        if cut < head {
            continue;
        }
        let (stream, mut server) = duplex(4_096);
        let mut client = WsStream::websocket(stream, bytes[head..cut].to_vec());
        let rest = bytes[cut..].to_vec();
        let ((heard, end), ()) = tokio::join!(
            async {
                let mut heard = Vec::new();
                // Small reads, so that what came early takes several.
                let mut room = [0; 40];
                let end = loop {
                    match client.read(&mut room).await {
                        Ok(0) => panic!("the end is a BYE"),
                        Ok(count) => heard.extend_from_slice(&room[..count]),
                        Err(error) => break error,
                    }
                };
                (heard, end)
            },
            async {
                // All of the rest, or byte after byte.
                for piece in rest.chunks(if cut % 2 == 0 { 1 } else { bytes.len() }) {
                    tokio::task::yield_now().await;
                    server.write_all(piece).await.expect("memory");
                }
            }
        );
        assert_eq!(heard, native, "cut at {cut}");
        let text = "the node is shutting down".to_owned();
        assert_eq!(Reason::of(end), Reason::Bye { code: Code::Draining.as_u16(), text }, "cut at {cut}");
        assert!(client.write(b"x").await.is_err(), "nothing follows the Close");
        drop(client);
        let mut answers = Vec::new();
        server.read_to_end(&mut answers).await.expect("memory");
        let (mut inbound, mut pings) = (codec::Inbound::default(), Vec::new());
        let taken = inbound.take(Role::Server, &mut answers, |control| match control {
            Control::Ping(_) => panic!("the client asks nothing"),
            Control::Pong => pings.push(()),
            Control::Close(reason) => assert_eq!(reason, ""),
        });
        assert_eq!(taken.native, 0);
        assert!(matches!(taken.end, Some(codec::End::Closed(close)) if close.code == Some(4_012)), "{taken:?}");
        // Each alone, or the last one for both.
        assert!(matches!(pings.len(), 1 | 2), "{} Pongs", pings.len());
    }
}

#[tokio::test]
async fn what_a_client_sends_arrives_however_it_is_written_and_read() {
    for (pipe, piece) in [(64, 1), (64, 7), (1_024, 50), (100_000, 40_000), (100_000, 100_000)] {
        let (stream, mut server) = duplex(pipe);
        let mut client = WsStream::websocket(stream, Vec::new());
        let frames: Vec<u8> =
            (1..40).flat_map(|id| frame(id, &vec![id as u8; if id % 13 == 0 { 1_500 } else { id as usize }])).collect();
        let (mut heard, frames) = tokio::join!(
            async {
                let mut heard = Vec::new();
                server.read_to_end(&mut heard).await.expect("memory");
                heard
            },
            async {
                for piece in frames.chunks(piece) {
                    client.write_all(piece).await.expect("memory");
                    client.flush().await.expect("memory");
                }
                client.shutdown().await.expect("memory");
                drop(client);
                frames
            }
        );
        let mut inbound = codec::Inbound::default();
        let taken = inbound.take(Role::Server, &mut heard, |control| assert_eq!(control, Control::Close("")));
        assert_eq!(&heard[..taken.native], frames, "in pieces of {piece} bytes");
        let closed = matches!(taken.end, Some(codec::End::Closed(close)) if close.code == Some(close_code::NORMAL));
        assert!(closed, "{taken:?}");
    }
}

#[tokio::test]
async fn whole_frames_are_whole_messages_under_masks_of_their_own() {
    let (stream, mut server) = duplex(4_096);
    let mut client = WsStream::websocket(stream, Vec::new());
    let mut masks = Vec::new();
    for id in 1..200 {
        let frame = frame(id, b"");
        client.write_all(&frame).await.expect("memory");
        client.flush().await.expect("memory");
        let mut bytes = vec![0; 2 + 4 + frame.len()];
        server.read_exact(&mut bytes).await.expect("memory");
        assert_eq!(bytes[..2], [0x82, 0x80 | frame.len() as u8]);
        masks.push(<[u8; 4]>::try_from(&bytes[2..6]).expect("four bytes"));
    }
    masks.sort_unstable();
    masks.dedup();
    // That of 199 random ones two are alike comes once in 200,000 runs, that it is five never.
    assert!(masks.len() > 194, "{} masks", masks.len());
}

#[tokio::test]
async fn pings_that_nobody_takes_the_answers_of_fill_no_memory() {
    let (stream, mut server) = duplex(256);
    let mut client = WsStream::websocket(stream, Vec::new());
    let mut pings = Vec::new();
    for _ in 0..1_000 {
        put_control(&mut pings, Opcode::Ping, &[1; 125]);
    }
    put_control(&mut pings, Opcode::Ping, b"the last");
    put_frame(&mut pings, Opcode::Binary, true, None, &frame(1, b"on"));
    // The server reads nothing, so the client's answers are stuck after the first ones; it reads on all the same.
    let mut heard = vec![0; frame(1, b"on").len()];
    let (read, written) = tokio::join!(client.read_exact(&mut heard), server.write_all(&pings));
    read.expect("memory");
    written.expect("memory");
    assert_eq!(heard, frame(1, b"on"));
    let (end, answers) = tokio::join!(
        async {
            let end = client.shutdown().await;
            drop(client);
            end
        },
        async {
            let mut answers = Vec::new();
            server.read_to_end(&mut answers).await.map(|_| answers)
        }
    );
    end.expect("memory");
    let answers = answers.expect("memory");
    // What fills the pipe, one that waited to be written, the last, and the Close.
    assert!(answers.len() < 256 + 2 * 131 + CLOSE_BYTES, "{} bytes of answers", answers.len());
    assert!(ends_with_pong(&answers[..answers.len() - CLOSE_BYTES], b"the last"), "{}", answers.escape_ascii());
}

/// A client's Close with a code and no reason.
const CLOSE_BYTES: usize = 2 + 4 + 2;

/// Whether a masked Pong of this payload is the last that came.
fn ends_with_pong(bytes: &[u8], payload: &[u8]) -> bool {
    let Some(begin) = bytes.len().checked_sub(6 + payload.len()) else { return false };
    let (header, masked) = bytes[begin..].split_at(6);
    header[..2] == [0x8A, 0x80 | payload.len() as u8]
        && masked.iter().enumerate().all(|(at, byte)| byte ^ header[2 + at % 4] == payload[at])
}

/// Why a stream of these bytes ends.
async fn end_of(bytes: &[u8]) -> io::Result<usize> {
    let (stream, mut server) = duplex(4_096);
    let mut client = WsStream::websocket(stream, Vec::new());
    server.write_all(bytes).await.expect("memory");
    drop(server);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_told_from_one_that_ends() {
    let good = frame(1, b"good");
    for (what, opcode, mask, payload, why) in [
        ("masked", Opcode::Binary, Some([1, 2, 3, 4]), &good[..], "not masked"),
        ("text", Opcode::Text, None, b"hello", "Messages are binary"),
        ("a lone continuation", Opcode::Continuation, None, &good, "no message to continue"),
        ("half a frame", Opcode::Binary, None, &good[..9], "ended within a frame"),
    ] {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Opcode::Binary, true, None, &good);
        put_frame(&mut bytes, opcode, true, mask, payload);
        let error = end_of(&bytes).await.expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
        assert!(error.to_string().contains(why), "{what}: {error}");
    }
    for (code, expected) in
        [(None, None), (Some(1_000), None), (Some(1_001), None), (Some(1_011), Some("with 1011: x"))]
    {
        let mut bytes = Vec::new();
        put_close(&mut bytes, code, "x");
        match (end_of(&bytes).await, expected) {
            (Ok(0), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().ends_with(words), "{error}"),
            (end, _) => panic!("after {code:?}: {end:?}"),
        }
    }
    assert_eq!(end_of(&[]).await.expect("the end"), 0);
    // A BYE in the midst of a frame cannot be one of the stream, and is told all the same.
    let mut bytes = Vec::new();
    put_frame(&mut bytes, Opcode::Binary, false, None, &good[..9]);
    put_close(&mut bytes, Some(4_008), "");
    let error = end_of(&bytes).await.expect_err("a BYE");
    assert!(!Reason::of(error).allows_reconnect());
}

#[test]
fn answers_that_make_no_websocket_are_refused_each_in_its_words() {
    let refused = |bytes: &[u8]| read_answer(bytes, KEY).expect_err("refused");
    assert_eq!(read_answer(&answer(), KEY).expect("a WebSocket"), Some(answer().len()));
    let wrong_accept = format!("Sec-WebSocket-Accept: {}", upgrade::accept("another key"));
    for (what, bytes, words) in [
        ("a wrong accept", answer_but("Sec-WebSocket-A", Some(&wrong_accept)), "Sec-WebSocket-Accept"),
        ("no accept", answer_but("Sec-WebSocket-A", None), "Sec-WebSocket-Accept"),
        ("two accepts", answer_but("Upgrade", Some(&format!("{wrong_accept}\r\nUpgrade: websocket"))), "Accept"),
        ("h2c", answer_but("Upgrade", Some("Upgrade: h2c")), "another protocol"),
        ("no upgrade", answer_but("Connection", Some("Connection: close")), "another protocol"),
        ("HTTP/1.0", answer_but("HTTP", Some("HTTP/1.0 101 Switching Protocols")), "another protocol"),
        ("another subprotocol", answer_but("Sec-WebSocket-P", Some("Sec-WebSocket-Protocol: mqtt")), "Trunkline"),
        ("no subprotocol", answer_but("Sec-WebSocket-P", None), "not for Trunkline"),
        (
            "an extension",
            answer_but("Upgrade", Some("Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate")),
            "extension",
        ),
        ("a BYE", vec![0, 0, 0, 8, 0x88, 0, 0, 9], "no HTTP"),
        ("another protocol", b"SSH-2.0-OpenSSH\r\n".to_vec(), "no HTTP"),
        ("many fields", answer_but("Upgrade", Some(&"X: y\r\n".repeat(70))), "64 fields"),
        ("an endless head", answer_but("Upgrade", Some(&"X".repeat(HEAD_BYTES_MAX))), "8192 bytes"),
        ("an endless line", [&b"HTTP/1.1 101 "[..], &[b'x'; HEAD_BYTES_MAX]].concat(), "8192 bytes"),
    ] {
        let error = refused(&bytes);
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
    }
    for (status, words) in [
        (200, "no WebSocket of"),
        (301, "elsewhere"),
        (400, "a gateway?"),
        (401, "a login of its own"),
        (403, "not let this client in"),
        (404, "no WebSocket at this path"),
        (426, "another version"),
        (503, "no connections at the moment"),
    ] {
        let head = format!("HTTP/1.1 {status} Whatever\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n");
        let error = refused(head.as_bytes());
        let said = error.to_string();
        assert!(said.contains(&format!("HTTP status {status}")) && said.contains(words), "{said}");
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<UpgradeRefused>()).expect("what it is");
        assert_eq!((inner.status, inner.retry_after), (status, Some(Duration::from_secs(5))));
        assert_eq!(Advice::of_failed_dial(&error).after, Duration::from_secs(5));
    }
    for (text, waited) in [("Fri, 31 Dec 1999 23:59:59 GMT", 0), ("-1", 0), ("60", 60), ("18446744073709551615", 60)] {
        let error = refused(format!("HTTP/1.1 503 x\r\nRetry-After: {text}\r\n\r\n").as_bytes());
        assert_eq!(Advice::of_failed_dial(&error).after, Duration::from_secs(waited), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_closes_or_sends_without_end_makes_an_error_and_fills_no_memory() {
    let url = WebSocketUrl::read("ws://a/ws").expect("an address");
    let (client, mut server) = duplex(1_024);
    let (opened, ()) = tokio::join!(open(client, &url), async {
        request(&mut server).await;
        server.write_all(b"HTTP/1.1 101 ").await.expect("memory");
        drop(server);
    });
    assert_eq!(opened.expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);

    let (client, mut server) = duplex(1_024);
    let (opened, written) = tokio::join!(open(client, &url), async {
        request(&mut server).await;
        server.write_all(b"HTTP/1.1 101 x\r\n").await.expect("memory");
        let mut written = 0;
        while server.write_all(b"X: y\r\nY").await.is_ok() {
            written += 7;
        }
        written
    });
    let error = opened.expect_err("no end");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(written < 2 * HEAD_BYTES_MAX, "{written} bytes");
}

#[test]
fn the_error_of_a_close_reads_as_the_bye() {
    let error = ByeInClose { code: 12, text: "restart".into() };
    assert!(error.to_string().ends_with("(code 12): restart"), "{error}");
    assert!(decode(&frame(1, b""), 64).is_ok());
}
