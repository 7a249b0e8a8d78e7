//! Where clients are: PROXY headers of trusted proxies and of others, and limits by address.

use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::scratch::ScratchFile;
use crate::support::tls::{Identity, TlsClient};
use crate::support::websocket::WebSocketClient;
use crate::support::wire::{Login, kind};
use crate::support::{ONE_AND_MANY, PATIENCE, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const REFUSED: &str = "trunkline_proxy_refused_total";
const HEADERS: &str = "trunkline_proxy_headers_total";

/// Headers of both versions for a client at 198.51.100.`last`, and those that tell of none.
fn headers(last: u8) -> [Vec<u8>; 4] {
    let sign = b"\r\n\r\n\0\r\nQUIT\n";
    let addresses = [198, 51, 100, last, 192, 0, 2, 1, 0x9C, 0x40, 0x1E, 0x14];
    [
        format!("PROXY TCP4 198.51.100.{last} 192.0.2.1 40000 7700\r\n").into_bytes(),
        [&sign[..], b"\x21\x11\0\x0C", &addresses].concat(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        [&sign[..], b"\x20\0\0\0"].concat(),
    ]
}

fn refused(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().sum(REFUSED, &[("reason", reason)])
}

/// A client behind a proxy: the header, then whatever the client sends.
fn behind(gateway: &Gateway, header: &[u8]) -> Client {
    let mut client = Client::connect(gateway);
    client.write_bytes(header);
    client
}

fn login_behind(gateway: &Gateway, header: &[u8], user: u64) -> Client {
    let mut client = behind(gateway, &[header, &Login::of(user).frame().encode()].concat());
    client.expect_login_ok();
    client
}

#[test]
fn behind_a_trusted_proxy_clients_are_served_however_the_header_comes() {
    with_each_gateway(ONE_AND_MANY, &["--proxy-from", "127.0.0.0/8"], |gateway| {
        let mut clients: Vec<Client> =
            headers(7).iter().zip(1..).map(|(header, user)| login_behind(gateway, header, user)).collect();
        let (first, others) = clients.split_first_mut().expect("four clients");
        for (other, user) in others.iter_mut().zip(2..) {
            first.exchange(other, user, b"through a proxy");
        }
        // Byte by byte, and a request behind it.
        for (header, at) in headers(8).iter().zip(0..) {
            let mut stream = TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
            stream.set_nodelay(true).expect("a socket");
            stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
            let request =
                if at % 2 == 0 { &b"GET /healthz HTTP/1.0\r\n\r\n"[..] } else { b"GET /nowhere HTTP/1.1\r\n\r\n" };
            for byte in header.iter().chain(request) {
                stream.write_all(&[*byte]).expect("write to the gateway");
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer, and the end of it");
            let status = if at % 2 == 0 { "200 OK" } else { "404 Not Found" };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
        assert_eq!(gateway.metrics().sum(HEADERS, &[]), 8);
    });
}

#[test]
fn behind_a_proxy_that_passes_tls_through_a_handshake_follows_the_header_wherever_they_are_split() {
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &["--proxy-from", "127.0.0.1", "--tls-required"]].concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        // The whole of it in one segment, then split within the header, between both, and within the ClientHello.
        let lengths = headers(7).map(|header| header.len());
        let mut user = 0;
        for (header, length) in headers(7).iter().zip(lengths) {
            for split in (0..length + 12).chain([length + 100, length + 200]) {
                user += 1;
                let mut client = TlsClient::connect_behind(gateway, &identity.any(), header, split);
                client.write(&Login::of(user).frame());
                client.recv_kind(kind::LOGIN_OK);
            }
        }
        let metrics = gateway.metrics();
        assert_eq!(metrics.sum(HEADERS, &[]), user);
        assert_eq!(metrics.sum("trunkline_tls_handshakes_total", &[("outcome", "full")]), user);
        // A header in front of nothing sealed is no way around TLS, and one within TLS is none.
        behind(gateway, &[&headers(7)[0][..], &Login::of(1).frame().encode()].concat()).expect_closed();
        let mut stream = TlsClient::connect_behind(gateway, &identity.any(), &headers(7)[1], 0).stream;
        stream.write_all(&headers(7)[0]).expect("write to the gateway");
        let mut end = Vec::new();
        stream.read_to_end(&mut end).expect("an end that is said");
        assert_eq!(end, b"");
        gateway.wait_for_metrics("both are counted", |metrics| metrics.closed("unknown_transport") == 2);
    });
}

#[test]
fn a_websocket_over_tls_comes_through_a_proxy() {
    let identity = Identity::new();
    with_gateway(2, &[&identity.flags()[..], &["--proxy-from", "127.0.0.1"]].concat(), |gateway| {
        for (header, user) in headers(9).iter().zip(1..) {
            let tls = TlsClient::connect_behind(gateway, &identity.any_of_http(), header, 20).stream;
            let url = format!("wss://localhost:{}/ws", gateway.client_address().port());
            let mut client = WebSocketClient::over(tls, url);
            client.write(&Login::of(user).frame());
            client.recv_kind(kind::LOGIN_OK);
        }
    });
}

#[test]
fn a_trusted_proxy_has_to_say_for_whom_it_speaks() {
    with_gateway(2, &["--proxy-from", "127.0.0.1", "--login-timeout-secs", "1"], |gateway| {
        let login = Login::of(1).frame().encode();
        let mut too_long = b"PROXY UNKNOWN ".to_vec();
        too_long.resize(200, b'x');
        let mut damaged = headers(7)[1].clone();
        damaged[13] = 0x41;
        for (bytes, reason) in [
            (&login[..], "missing"),
            (b"GET /healthz HTTP/1.0\r\n\r\n", "missing"),
            (b"PROXY TCP4 198.51.100.7 192.0.2.1 40000\r\n", "malformed"),
            (&damaged, "malformed"),
            (&too_long, "too_long"),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0C", "unsupported"),
        ] {
            let before = refused(gateway, reason);
            behind(gateway, bytes).expect_closed();
            assert_eq!(refused(gateway, reason), before + 1, "{}", bytes.escape_ascii());
        }
        // Who says nothing, or not all of it, is closed in the end, and told nothing: there is nobody to tell.
        for bytes in [&b""[..], b"PROXY TCP4 198"] {
            behind(gateway, bytes).expect_closed();
        }
        gateway.wait_for_metrics("all are counted", |metrics| {
            metrics.closed("proxy_refused") == 6 && metrics.closed("login_timeout") == 2
        });
    });
}

#[test]
fn what_others_say_about_themselves_is_refused() {
    let flags: [&[&str]; 2] = [&["--proxy-from", "192.0.2.0/24,2001:db8::/32"], &[]];
    for flags in flags {
        with_gateway(2, flags, |gateway| {
            for header in headers(7) {
                behind(gateway, &header).expect_closed();
                // In pieces, so that it could yet have been something else.
                let mut client = behind(gateway, &header[..1]);
                client.write_while_open(&header[1..]);
                client.expect_closed();
            }
            // Version 2 begins with a byte that can begin nothing else.
            wait_for("all are counted", || (refused(gateway, "untrusted") == 8).then_some(()));
            let mut client = Client::login(gateway, 1);
            let mut other = Client::login(gateway, 2);
            client.exchange(&mut other, 2, b"without a proxy");
        });
    }
}

#[test]
fn the_log_tells_from_where_a_token_was_refused_that_came_through_a_proxy() {
    let secret = ScratchFile::new("secret", b"a secret of the tests, long enough for HS256");
    let flags = ["--proxy-from", "127.0.0.1", "--auth", "jwt", "--jwt-hs256-secret-file", secret.path()];
    with_gateway(2, &flags, |gateway| {
        let login = Login::of(1).token("no token").frame().encode();
        let mut client = behind(gateway, &[&headers(77)[1][..], &login].concat());
        client.expect_bye(6);
        wait_for("the line is in the log", || gateway.stderr().contains("peer=198.51.100.77:40000").then_some(()));
    });
}

/// Whether a connection stays: one that is over the limit is closed without a word.
fn stays(client: &mut Client) -> bool {
    match client.read_event(Duration::from_millis(200)) {
        Event::TimedOut => true,
        Event::Closed => false,
        Event::Frame(frame) => panic!("{frame:?} without a LOGIN"),
    }
}

#[test]
fn an_address_has_as_many_connections_as_it_may_whatever_shard_they_are_on() {
    with_each_gateway(ONE_AND_MANY, &["--address-connections-max", "4"], |gateway| {
        let mut clients: Vec<Client> = (1..=4).map(|user| Client::login(gateway, user)).collect();
        for _ in 0..3 {
            Client::connect(gateway).expect_closed();
        }
        gateway.wait_for_metrics("three hits", |metrics| {
            metrics.limit_hits("address_connections") == 3 && metrics.closed("address_limit") == 3
        });
        let (first, others) = clients.split_first_mut().expect("four clients");
        for (other, user) in others.iter_mut().zip(2..) {
            first.exchange(other, user, b"unharmed");
        }
        // Each that leaves makes room for one.
        for user in 5..8 {
            drop(clients.remove(0));
            let newcomer = wait_for("a place is free again", || {
                let mut client = Client::connect(gateway);
                client.write_while_open(&Login::of(user).frame().encode());
                matches!(client.read_event(PATIENCE), Event::Frame(_)).then_some(client)
            });
            clients.push(newcomer);
        }
    });
}

#[test]
fn an_address_opens_no_more_connections_in_a_second_than_it_may() {
    const PER_SEC: usize = 5;
    with_each_gateway(ONE_AND_MANY, &["--address-connections-per-sec", "5"], |gateway| {
        let start = Instant::now();
        let mut clients: Vec<Client> = (0..30).map(|_| Client::connect(gateway)).collect();
        gateway.wait_for_metrics("all are accepted", |metrics| {
            metrics.sum("trunkline_connections_accepted_total", &[]) == 30
        });
        let allowed = PER_SEC + start.elapsed().as_secs() as usize * PER_SEC + PER_SEC;
        let stay = clients.iter_mut().filter_map(|client| stays(client).then_some(())).count();
        assert!((PER_SEC..=allowed).contains(&stay), "{stay} stay, {allowed} may");
        assert_eq!(gateway.metrics().limit_hits("address_connections_per_sec"), 30 - stay as u64);
    });
}

#[test]
fn an_address_begins_no_more_handshakes_in_a_second_than_it_may_and_is_told_nothing_of_further_ones() {
    const PER_SEC: u64 = 5;
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &["--address-handshakes-per-sec", "5"]].concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let start = Instant::now();
        // The first bytes of a ClientHello.
        let begin = |_| {
            let mut client = Client::connect(gateway);
            client.write_bytes(&[0x16, 3, 1, 2, 0, 1]);
            client
        };
        let _clients: Vec<Client> = (0..30).map(begin).collect();
        let counted = |under_way: u64, refused: u64| {
            let allowed = PER_SEC + (start.elapsed().as_secs() + 1) * PER_SEC;
            under_way + refused == 30 && (PER_SEC..=allowed).contains(&under_way)
        };
        gateway.wait_for_metrics("all have begun or were refused", |metrics| {
            let under_way = metrics.sum("trunkline_tls_handshakes_under_way", &[]);
            let refused = metrics.limit_hits("address_handshakes_per_sec");
            counted(under_way, refused) && metrics.closed("address_limit") == refused
        });
        // Who comes in clear is not limited by it.
        let mut clients: Vec<Client> = (1..=10).map(|user| Client::login(gateway, user)).collect();
        let (first, others) = clients.split_first_mut().expect("ten clients");
        first.exchange(&mut others[0], 2, b"unharmed");
    });
}

#[test]
fn behind_a_proxy_each_client_has_its_own_limit() {
    with_gateway(2, &["--proxy-from", "127.0.0.1", "--address-connections-max", "2"], |gateway| {
        let at = |last: u8, user| login_behind(gateway, &headers(last)[0], user);
        let _inside = [at(1, 1), at(1, 2), at(2, 3), at(2, 4), at(3, 5)];
        for last in [1, 2] {
            behind(gateway, &headers(last)[1]).expect_closed();
        }
        // The proxy itself has none.
        for user in 10..14 {
            login_behind(gateway, &headers(0)[3], user);
        }
        assert_eq!(gateway.metrics().limit_hits("address_connections"), 2);
    });
}

/// The status of the answer to a request for a WebSocket with this field, and the connection.
fn upgrade_with(gateway: &Gateway, field: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{field}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("write to the gateway");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the head of an answer");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    (head.split(' ').nth(1).expect("a status").to_owned(), stream)
}

#[test]
fn a_client_is_where_the_request_says_that_a_trusted_proxy_has_passed_on() {
    let flags = ["--forwarded-from", "127.0.0.1,10.0.0.0/8", "--address-connections-max", "2"];
    with_gateway(2, &flags, |gateway| {
        let ask = |list: &str| upgrade_with(gateway, &format!("X-Forwarded-For: {list}"));
        // What stands in front of it the client may have made up; what stands behind it is of a proxy.
        let inside = ["198.51.100.1", "203.0.113.1, 198.51.100.1, 10.0.0.9", "198.51.100.2"].map(ask);
        assert_eq!(inside.each_ref().map(|(status, _)| status.as_str()), ["101"; 3]);
        assert_eq!(ask("203.0.113.2, 198.51.100.1").0, "429");
        assert_eq!(ask("198.51.100.1, unknown").0, "400");
        // The other field is the client's own, and the proxy itself is not counted.
        let own = [(); 4].map(|()| upgrade_with(gateway, "Forwarded: for=198.51.100.1").0);
        assert_eq!(own, ["101"; 4]);
        let refused = |reason| gateway.metrics().sum("trunkline_requests_refused_total", &[("reason", reason)]);
        assert_eq!((refused("address"), refused("forwarded")), (1, 1));
        assert_eq!(gateway.metrics().limit_hits("address_connections"), 1);
        // Who leaves makes room.
        drop(inside);
        wait_for("a place is free again", || (ask("198.51.100.1").0 == "101").then_some(()));
    });
    with_gateway(1, &["--address-connections-max", "2"], |gateway| {
        let ask = |list: &str| upgrade_with(gateway, &format!("X-Forwarded-For: {list}"));
        let inside = ["198.51.100.1", "198.51.100.2"].map(ask);
        assert_eq!(inside.each_ref().map(|(status, _)| status.as_str()), ["101"; 2]);
        // Nobody's word is taken, so all of them are at one address.
        Client::connect(gateway).expect_closed();
    });
}
