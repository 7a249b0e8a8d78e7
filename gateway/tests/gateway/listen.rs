//! Places to listen on: for TLS only, both families, names, and Unix sockets.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command, with_gateway};
use crate::support::names::metric;
use crate::support::scratch::ScratchFolder;
use crate::support::tls::{Identity, TlsClient};
use crate::support::wire::{Login, flag, kind, outcome};
use crate::support::{PATIENCE, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// What is answered until the end.
fn answer(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).expect("write to the gateway");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer, and the end of it");
    answer
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream
}

fn unix(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream
}

/// One whole frame.
fn frame(stream: &mut impl Read) -> Vec<u8> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).expect("the length of a frame");
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    frame.resize(length, 0);
    stream.read_exact(&mut frame[4..]).expect("the rest of a frame");
    frame
}

#[test]
fn a_place_for_tls_only_answers_nothing_else_and_others_answer_all() {
    let identity = Identity::new();
    let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().expect("an address");
    let place = format!("tls://{address}");
    with_gateway(3, &[&identity.flags()[..], &["--listen", &place]].concat(), |gateway| {
        for bytes in [&b"GET /healthz HTTP/1.0\r\n\r\n"[..], &Login::of(1).frame().encode()] {
            assert_eq!(answer(tcp(address), bytes), b"");
        }
        assert_eq!(gateway.metrics().sum(metric::CLOSED, &[("reason", "unknown_transport")]), 2);
        let mut over_tls = TlsClient::connect_to(address, &identity.any());
        over_tls.write(&Login::of(1).frame());
        over_tls.recv_kind(kind::LOGIN_OK);
        // The other place takes both, and they talk.
        let mut native = Client::login(gateway, 2);
        let id = native.send(1, flag::ACK, b"hello");
        let deliver = over_tls.recv_kind(kind::DELIVER);
        over_tls.write(&crate::support::wire::ack(&deliver));
        native.expect_sent(id, 1, outcome::DELIVERED);
        TlsClient::login(gateway, &identity.any(), 3).ping();
    });
}

#[test]
fn a_name_and_both_families_lead_to_one_gateway() {
    let (named, both) = (free_port(), free_port());
    let flags = ["--listen", &format!("localhost:{named}"), "--listen", &format!(":{both}"), "--insecure-open"];
    with_gateway(2, &flags, |_| {
        for address in [format!("127.0.0.1:{named}"), format!("127.0.0.1:{both}"), format!("[::1]:{both}")] {
            let said = answer(tcp(address.parse().expect("an address")), b"GET /healthz HTTP/1.0\r\n\r\n");
            assert!(said.starts_with(b"HTTP/1.1 200"), "{address}");
        }
    });
}

#[test]
fn clients_connect_by_a_unix_socket_which_goes_with_the_gateway_or_the_next_one_takes_over() {
    let folder = ScratchFolder::new("unix-socket");
    fs::create_dir_all(folder.path()).expect("a folder");
    let path = format!("{}/clients.sock", folder.path());
    let place = format!("unix:{path}");
    for shards in [1, 3] {
        // With limits by address, which such a connection has none of.
        let flags = ["--listen", &place, "--address-connections-max", "1"];
        with_gateway(shards, &flags, |gateway| {
            let mut clients: Vec<UnixStream> = (1..6).map(|_| unix(&path)).collect();
            for (user, client) in (1..).zip(&mut clients) {
                client.write_all(&Login::of(user).frame().encode()).expect("write to the gateway");
                assert_eq!(frame(client)[4], kind::LOGIN_OK);
            }
            // Messages come over, whatever shard each lives on.
            let mut native = Client::login(gateway, 9);
            for (user, client) in (1..).zip(&mut clients) {
                native.send(user, 0, b"hello");
                assert_eq!(frame(client)[4], kind::DELIVER);
            }
            assert!(answer(unix(&path), b"GET /readyz HTTP/1.0\r\n\r\n").starts_with(b"HTTP/1.1 200"));
        });
        assert!(!fs::exists(&path).expect("a folder"), "the socket outlives its gateway");
    }
    Gateway::start(1, &["--listen", &place]).kill();
    assert!(fs::exists(&path).expect("a folder"), "somebody has removed what a killed one leaves");
    let first = Gateway::start(1, &["--listen", &place]);
    let second = gateway_command().args(["--listen", &place, "--http", "127.0.0.1:0"]).output().expect("it runs");
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains(&place), "{words}");
    wait_for("the first one still listens", || UnixStream::connect(&path).ok());
    first.finish();
}

#[test]
fn behind_a_unix_socket_that_is_trusted_stands_a_proxy() {
    let folder = ScratchFolder::new("unix-proxy");
    fs::create_dir_all(folder.path()).expect("a folder");
    let path = format!("{}/clients.sock", folder.path());
    let place = format!("unix:{path}");
    let flags = ["--listen", &place, "--proxy-from", "unix", "--address-connections-max", "1"];
    with_gateway(2, &flags, |gateway| {
        let login = |user: u64, source: &str| {
            let mut client = unix(&path);
            // In one piece: whoever is refused for the header alone is gone before a second one could be written.
            let mut bytes = format!("PROXY TCP4 {source} 192.0.2.1 4000 7700\r\n").into_bytes();
            bytes.extend(Login::of(user).frame().encode());
            client.write_all(&bytes).expect("write");
            client
        };
        let mut one = login(1, "192.0.2.7");
        assert_eq!(frame(&mut one)[4], kind::LOGIN_OK);
        assert_eq!(frame(&mut login(2, "192.0.2.8"))[4], kind::LOGIN_OK);
        // A second one of the same client is one too many, and one without a header is none of the proxy's.
        let mut rest = Vec::new();
        let ended = login(3, "192.0.2.7").read_to_end(&mut rest);
        assert!(rest.is_empty(), "{ended:?} {rest:?}");
        assert_eq!(answer(unix(&path), &Login::of(4).frame().encode()), b"");
        let metrics = gateway.metrics();
        assert_eq!(metrics.sum(metric::CLOSED, &[("reason", "address_limit")]), 1);
        assert_eq!(metrics.sum(metric::CLOSED, &[("reason", "proxy_refused")]), 1);
        // From a network that is not trusted a header is refused, and frames are taken.
        Client::login(gateway, 5).ping();
    });
}

#[test]
fn places_that_cannot_be_are_refused_with_the_reason() {
    // A label this long is in no name, so nobody is asked for it.
    let nowhere = format!("{}.invalid:7700", "x".repeat(64));
    for (place, reason) in [
        ("tls://127.0.0.1:7700", "tls_cert is not set"),
        (&nowhere, "cannot be looked up"),
        ("unix:relative", "absolute"),
        ("127.0.0.1", "ADDR:PORT"),
        (":7700", "--insecure-open"),
    ] {
        let output = gateway_command().args(["--listen", place]).output().expect("the gateway runs");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains(reason) && words.contains(place), "{place}: {words}");
    }
}
