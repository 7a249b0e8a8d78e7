//! TLS on the ports for clients, below native frames and WebSockets, against clients of rustls, OpenSSL and Python.

use crate::cluster_support::Fleet;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command, with_each_gateway, with_gateway};
use crate::support::http;
use crate::support::names::metric;
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::tls::{Identity, TlsClient, pem, stream, trusting};
use crate::support::websocket::WebSocketClient;
use crate::support::wire::{self, Login, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, PATIENCE, SHARD_COUNTS, wait_for};
use crate::websocket::{LibraryClient, own_talks_and_comes_back};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use trunkline_client::{Dial, Event, Reason, Ws};

/// What the gateway says until it closes, to these bytes.
fn answer(gateway: &Gateway, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    for piece in pieces {
        stream.write_all(piece).expect("write to the gateway");
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer, and the end of it");
    answer
}

fn closed(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().sum(metric::CLOSED, &[("reason", reason)])
}

fn handshakes(gateway: &Gateway, outcome: &str) -> u64 {
    gateway.metrics().sum("trunkline_tls_handshakes_total", &[("outcome", outcome)])
}

#[test]
fn a_session_over_tls_is_like_any_other() {
    let identity = Identity::new();
    with_each_gateway(SHARD_COUNTS, &identity.flags(), |gateway| {
        let mut native = Client::login(gateway, 1);
        for user in 2..10 {
            let version = if user % 2 == 0 { &TLS13 } else { &TLS12 };
            let alpn: &[&str] = if user % 3 == 0 { &["trunkline/1"] } else { &[] };
            let config = identity.config(&[version], alpn);
            let (mut client, login_ok) = TlsClient::login_with(gateway, &config, &Login::of(user));
            assert_eq!(login_ok.max_frame, wire::FRAME_BYTES_MAX as u64);
            for (id, size) in [(1, 0), (2, 90), (3, 20_000), (4, 60_000)] {
                let body = vec![user as u8; size];
                client.write(&wire::send(id, 1, flag::ACK, &body));
                let deliver = native.recv_deliver();
                assert_eq!((deliver.id, deliver.peer, &deliver.body), (id, user, &body));
                native.ack(&deliver);
                let sent = client.recv_kind(kind::SENT);
                assert_eq!((sent.id, sent.peer, sent.aux), (id, 1, outcome::DELIVERED));
                let id = native.send(user, flag::ACK, &body);
                let deliver = client.recv_kind(kind::DELIVER);
                assert_eq!((deliver.id, deliver.peer, &deliver.body), (id, 1, &body));
                client.write(&wire::ack(&deliver));
                native.expect_sent(id, user, outcome::DELIVERED);
            }
            client.ping();
            client.write(&wire::logout());
            assert_eq!(client.next(), None, "the end is said");
        }
        assert_eq!(handshakes(gateway, "full"), 8);
        let metrics = gateway.metrics();
        for version in ["1.2", "1.3"] {
            let labels = [("version", version), ("cipher", "aes_128_gcm")];
            assert_eq!(metrics.sum("trunkline_tls_connections_total", &labels), 4);
        }
        assert_eq!(metrics.sum("trunkline_tls_handshakes_under_way", &[]), 0);
    });
}

#[test]
fn what_comes_with_the_end_of_the_handshake_and_behind_login_is_not_lost() {
    let identity = Identity::new();
    with_each_gateway(ONE_AND_MANY, &identity.flags(), |gateway| {
        for user in 1..9 {
            let mut client = TlsClient::connect(gateway, &identity.any());
            // rustls sends this with its Finished, in records of its own, and the last one ends in another segment.
            let mut bytes = Login::of(user).frame().encode();
            for aux in 0..20 {
                bytes.extend_from_slice(&wire::ping(aux).encode());
            }
            bytes.extend_from_slice(&wire::send(7, user + 100, 0, &vec![1; 40_000]).encode());
            bytes.extend_from_slice(&wire::ping(20).encode());
            client.stream.write_all(&bytes).expect("write to the gateway");
            client.stream.conn.send_close_notify();
            client.stream.flush().expect("write to the gateway");
            client.recv_kind(kind::LOGIN_OK);
            for aux in 0..=20 {
                assert_eq!(client.recv_kind(kind::PONG).aux, aux);
            }
            assert_eq!(client.next(), None, "its end is answered");
        }
        assert_eq!(closed(gateway, "peer_closed"), 8);
    });
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let identity = Identity::new();
    with_gateway(2, &identity.flags(), |gateway| {
        for version in [&TLS12, &TLS13] {
            let mut client = TlsClient::connect(gateway, &identity.config(&[version], &[]));
            while client.stream.conn.is_handshaking() {
                let mut bytes = Vec::new();
                while client.stream.conn.wants_write() {
                    client.stream.conn.write_tls(&mut bytes).expect("bytes to send");
                }
                bytes.iter().for_each(|byte| client.stream.sock.write_all(&[*byte]).expect("write to the gateway"));
                if client.stream.conn.is_handshaking() {
                    client.stream.conn.read_tls(&mut client.stream.sock).expect("read from the gateway");
                    client.stream.conn.process_new_packets().expect("what it understands");
                }
            }
            client.write(&Login::of(1).frame());
            client.recv_kind(kind::LOGIN_OK);
            client.ping();
        }
    });
}

#[test]
fn websockets_go_over_tls() {
    let identity = Identity::new();
    with_each_gateway(ONE_AND_MANY, &identity.flags(), |gateway| {
        let mut native = Client::login(gateway, 1);
        for user in 2..6 {
            let alpn: &[&str] = if user % 2 == 0 { &["http/1.1"] } else { &[] };
            let tls = stream(&identity.config(rustls::ALL_VERSIONS, alpn), gateway.client_address());
            let mut client =
                WebSocketClient::over(tls, format!("wss://localhost:{}/ws", gateway.client_address().port()));
            client.write(&Login::of(user).frame());
            client.recv_kind(kind::LOGIN_OK);
            for size in [0, 90, 60_000] {
                let id = native.send(user, flag::ACK, &vec![7; size]);
                let deliver = client.recv_kind(kind::DELIVER);
                assert_eq!((deliver.id, deliver.body.len()), (id, size));
                client.write(&wire::ack(&deliver));
                native.expect_sent(id, user, outcome::DELIVERED);
            }
            gateway.post(&format!("/v1/users/{user}/kick"));
            assert_eq!(client.recv_kind(kind::BYE).aux, code::KICKED);
            assert_eq!(client.recv_close().0, 4000 + code::KICKED);
        }
    });
    for script in ["with_websockets.py", "with_ws.mjs"] {
        with_gateway(4, &[&identity.flags()[..], &["--drain-secs", "0"]].concat(), |gateway| {
            let mut client = LibraryClient::start_over_tls(gateway, script, identity.cert.path());
            assert_eq!(client.line(), "talked", "{script}");
            assert_eq!(gateway.post("/v1/node/drain").status, 202);
            for _ in 0..2 {
                assert_eq!(client.line(), "bye 12 4012", "{script}");
            }
            let status = client.child.wait().expect("the client's status");
            assert!(status.success(), "{script}: {status}");
            assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
        });
    }
}

/// `openssl s_client`, whose output is gathered.
struct OpenSsl {
    child: std::process::Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl OpenSsl {
    fn start(gateway: &Gateway, identity: &Identity, flags: &[&str]) -> Self {
        OpenSsl::start_with(gateway, identity.cert.path(), flags)
    }

    fn start_with(gateway: &Gateway, cert: &str, flags: &[&str]) -> Self {
        let address = gateway.client_address().to_string();
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &address, "-CAfile", cert, "-verify_return_error"])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start openssl");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let said = Arc::new(Mutex::new(Vec::new()));
        let gathered = said.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                gathered.lock().expect("nobody panics with it").extend_from_slice(&buffer[..length]);
            }
        });
        OpenSsl { child, said }
    }

    fn write(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("write to openssl");
    }

    fn wait_for(&self, what: &[u8]) {
        wait_for(&format!("openssl shows {}", what.escape_ascii()), || {
            let said = self.said.lock().expect("nobody panics with it");
            said.windows(what.len()).any(|bytes| bytes == what).then_some(())
        });
    }
}

#[test]
fn openssl_changes_keys_both_ways_and_speaks_every_suite() {
    let identity = Identity::new();
    with_each_gateway(ONE_AND_MANY, &identity.flags(), |gateway| {
        let suites: [(&[&str], &str, &str); 6] = [
            (&["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "1.3", "aes_128_gcm"),
            (&["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], "1.3", "aes_256_gcm"),
            (&["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], "1.3", "chacha20_poly1305"),
            (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "1.2", "aes_128_gcm"),
            (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], "1.2", "aes_256_gcm"),
            (&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "1.2", "chacha20_poly1305"),
        ];
        for (user, (flags, version, cipher)) in (1..).zip(suites) {
            let mut client = OpenSsl::start(gateway, &identity, flags);
            // What it is told before it has connected it would read at once, letters that are commands and all.
            client.wait_for(b"Verify return code: 0 (ok)");
            client.write(&Login::of(user).frame().encode());
            gateway.wait_for_presence(user, true);
            client.write(&wire::ping(1).encode());
            client.wait_for(&wire::Frame { kind: kind::PONG, ..wire::ping(1) }.encode());
            if version == "1.3" {
                for (round, command) in (2..).zip(["K\n", "k\n", "K\n", "K\n"]) {
                    client.write(command.as_bytes());
                    // Commands are those at the beginning of what it reads at once.
                    std::thread::sleep(Duration::from_millis(100));
                    client.write(&wire::ping(round).encode());
                    client.wait_for(&wire::Frame { kind: kind::PONG, ..wire::ping(round) }.encode());
                }
            }
            client.write(&wire::logout().encode());
            let status = client.child.wait().expect("the status of openssl");
            assert!(status.success(), "{flags:?}: {status}");
            let labels = [("version", version), ("cipher", cipher)];
            assert_eq!(gateway.metrics().sum("trunkline_tls_connections_total", &labels), 1);
        }
        let updates = |by: &str| gateway.metrics().sum("trunkline_tls_key_updates_total", &[("by", by)]);
        assert_eq!((updates("peer"), updates("node")), (12, 9));
    });
}

#[test]
fn a_certificate_of_rsa_is_shown_to_those_who_verify_no_other() {
    let files = ScratchFolder::new("rsa");
    fs::create_dir_all(files.path()).expect("a folder");
    let (cert, key) = (format!("{}/cert.pem", files.path()), format!("{}/key.pem", files.path()));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", &key, "-out", &cert])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let identity = Identity::new();
    let flags = ["--tls-cert", &cert, "--tls-key", &key];
    with_gateway(2, &[&identity.flags()[..], &flags].concat(), |gateway| {
        let rsa = |flags: &[&str]| {
            let mut client = OpenSsl::start_with(gateway, &cert, flags);
            client.wait_for(b"Verify return code: 0 (ok)");
            client.write(&Login::of(1).frame().encode());
            gateway.wait_for_presence(1, true);
            client.write(&wire::logout().encode());
            assert!(client.child.wait().expect("the status of openssl").success(), "{flags:?}");
        };
        rsa(&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"]);
        rsa(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]);
        // Whoever verifies ECDSA gets that.
        TlsClient::login(gateway, &identity.any(), 2).ping();
    });
}

#[test]
fn a_client_that_renegotiates_is_warned_and_not_followed() {
    let identity = Identity::new();
    with_gateway(1, &identity.flags(), |gateway| {
        let mut client = OpenSsl::start(gateway, &identity, &["-tls1_2"]);
        client.wait_for(b"Verify return code: 0 (ok)");
        client.write(&Login::of(1).frame().encode());
        gateway.wait_for_presence(1, true);
        client.write(b"R\n");
        // OpenSSL takes the warning for the end.
        client.child.wait().expect("the status of openssl");
        gateway.wait_for_presence(1, false);
        assert_eq!(closed(gateway, "tls_violation"), 0);
    });
}

#[test]
fn what_is_no_handshake_gets_an_alert_and_nothing_in_clear_but_that() {
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &["--login-timeout-secs", "1"]].concat();
    with_gateway(2, &flags, |gateway| {
        for (bytes, alert) in [
            (&b"\x16garbage that goes on for a while"[..], 70),
            (b"\x16\x03\x01\xff\xff", 22),
            (b"\x16\x03\x01\0\x04\x01\0\0\0", 50),
            (b"\x16\x03\x01\0\x05hello\x17\x03\x03\0\x01x\x17\x03\x03\0\x01x\x17\x03\x03\0\x01x", 0),
            // Not finished: the time for LOGIN is over.
            (b"\x16\x03\x01\x02\0\x01", 80),
        ] {
            let answer = answer(gateway, &[bytes]);
            assert_eq!(answer.len(), 7, "{bytes:?}: {answer:?}");
            assert_eq!(answer[0], 21, "{bytes:?}");
            assert!(alert == 0 || answer[6] == alert, "{bytes:?}: {answer:?}");
        }
        assert_eq!((handshakes(gateway, "failed"), handshakes(gateway, "abandoned")), (4, 1));
        assert_eq!((closed(gateway, "tls_refused"), closed(gateway, "login_timeout")), (4, 1));
        // None of the protocols it speaks.
        let mut client = TlsClient::connect(gateway, &identity.config(rustls::ALL_VERSIONS, &["h2"]));
        let error = client.stream.write_all(b"x").and_then(|()| client.stream.flush()).expect_err("refused");
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
        let alerts = [("by", "node"), ("alert", "no_application_protocol")];
        assert_eq!(gateway.metrics().sum("trunkline_tls_alerts_total", &alerts), 1);
        // One who does not trust the certificate says so.
        let mut client = TlsClient::connect(gateway, &Identity::new().any());
        assert!(client.stream.write_all(b"x").and_then(|()| client.stream.flush()).is_err());
        gateway.wait_for_metrics("its alert is counted", |metrics| {
            metrics.sum("trunkline_tls_alerts_total", &[("by", "peer")]) == 1
        });
        // Over TLS the time for LOGIN ends with a BYE.
        let mut client = TlsClient::connect(gateway, &identity.any());
        client.stream.flush().expect("a handshake");
        client.expect_bye(code::IDLE);
    });
}

#[test]
fn what_is_not_sealed_after_a_handshake_ends_the_connection() {
    let identity = Identity::new();
    with_each_gateway(ONE_AND_MANY, &identity.flags(), |gateway| {
        for (user, bytes) in (1..).zip([
            &b"\0\0\0\x08\x02\0\0\0"[..],
            b"\x17\x03\x03\0\x20nobody has sealed these 32 bytes",
            b"\x16\x03\x03\0\x01x",
        ]) {
            let mut client = TlsClient::login(gateway, &identity.any(), user);
            client.stream.sock.write_all(bytes).expect("write to the gateway");
            let error = client.stream.read(&mut [0; 100]).expect_err("an alert");
            assert!(error.to_string().contains("received fatal alert"), "{error}");
            gateway.wait_for_presence(user, false);
        }
        assert_eq!(closed(gateway, "tls_violation"), 3);
    });
}

#[test]
fn beyond_the_limits_newcomers_hear_an_alert_and_the_oldest_handshake_gives_way() {
    let identity = Identity::new();
    with_gateway(1, &[&identity.flags()[..], &["--connections-max", "1"]].concat(), |gateway| {
        let mut first = TlsClient::login(gateway, &identity.any(), 1);
        let mut second = TlsClient::connect(gateway, &identity.any());
        let error = second.stream.flush().expect_err("an alert");
        assert!(error.to_string().contains("InternalError"), "{error}");
        first.ping();
        assert_eq!(closed(gateway, "overloaded"), 1);
    });
    with_gateway(1, &[&identity.flags()[..], &["--tls-handshakes-max", "16"]].concat(), |gateway| {
        let mut slow: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut stream = TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
                stream.write_all(b"\x16\x03\x01\x02\0\x01").expect("write to the gateway");
                stream
            })
            .collect();
        gateway.wait_for_metrics("the oldest have given way", |metrics| {
            metrics.sum("trunkline_evictions_total", &[("of", "tls_handshake")]) == 4
        });
        let mut client = TlsClient::login(gateway, &identity.any(), 1);
        client.ping();
        for stream in &mut slow[..5] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
            let mut said = Vec::new();
            stream.read_to_end(&mut said).expect("an alert, and the end");
            assert_eq!(said, [21, 3, 3, 0, 2, 2, 80]);
        }
        assert_eq!(gateway.metrics().sum("trunkline_tls_handshakes_under_way", &[]), 15);
    });
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_and_elsewhere_all_are() {
    let identity = Identity::new();
    with_gateway(2, &identity.flags(), |gateway| {
        Client::login(gateway, 1).ping();
        assert!(answer(gateway, &[b"GET /healthz HTTP/1.0\r\n\r\n"]).starts_with(b"HTTP/1.1 200"));
    });
    with_gateway(2, &[&identity.flags()[..], &["--tls-required"]].concat(), |gateway| {
        for bytes in [&b"GET /healthz HTTP/1.0\r\n\r\n"[..], &Login::of(1).frame().encode()] {
            assert_eq!(answer(gateway, &[bytes]), b"");
        }
        assert_eq!(closed(gateway, "unknown_transport"), 2);
        TlsClient::login(gateway, &identity.any(), 1).ping();
    });
}

#[test]
fn a_drain_and_a_kick_reach_clients_over_tls() {
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &["--drain-secs", "0"]].concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let config = identity.any();
        let mut clients: Vec<TlsClient> = (1..9).map(|user| TlsClient::login(gateway, &config, user)).collect();
        gateway.post("/v1/users/1/kick");
        clients.remove(0).expect_bye(code::KICKED);
        let mut replaced = clients.remove(0);
        TlsClient::login(gateway, &config, 2).ping();
        replaced.expect_bye(code::REPLACED);
        assert_eq!(gateway.post("/v1/node/drain").status, 202);
        clients.iter_mut().for_each(|client| client.expect_bye(code::DRAINING));
        assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
    });
}

/// Starts a gateway that must refuse its configuration; what it says.
fn refusal(flags: &[&str]) -> String {
    let output = gateway_command()
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .args(flags)
        .output()
        .expect("run the gateway");
    assert_eq!(output.status.code(), Some(2), "{flags:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_at_start_with_the_reason() {
    let (good, expired) = (Identity::new(), Identity::expired());
    let said = refusal(&expired.flags());
    assert!(said.contains(expired.cert.path()) && said.contains("the certificate expired"), "{said}");
    let said = refusal(&["--tls-cert", good.cert.path(), "--tls-key", expired.key.path()]);
    assert!(said.contains(expired.key.path()) && said.contains("belongs to another certificate"), "{said}");
    let said = refusal(&["--tls-cert", good.key.path(), "--tls-key", good.key.path()]);
    assert!(said.contains("holds no certificate"), "{said}");
    let said = refusal(&["--tls-cert", good.cert.path()]);
    assert!(said.contains("tls_cert (--tls-cert) names 1 files and tls_key"), "{said}");
    let said = refusal(&["--tls-required"]);
    assert!(said.contains("gateway dev-cert"), "{said}");
}

#[test]
fn certificates_change_below_open_connections_and_broken_ones_do_not() {
    let (old, new) = (Identity::new(), Identity::new());
    let mut command = gateway_command();
    command.args(["--shards", "2", "--drain-secs", "0"]).args(old.flags());
    let gateway = Gateway::start_command(command);
    let old_config = old.any();
    let mut before: Vec<TlsClient> = (1..5).map(|user| TlsClient::login(&gateway, &old_config, user)).collect();
    let (old_cert, old_key) = (fs::read(old.cert.path()).expect("a file"), fs::read(old.key.path()).expect("a file"));
    let reload = |ends: &str| {
        gateway.signal(Signal::HUP);
        wait_for(ends, || gateway.log().contains(ends).then_some(()));
    };
    // Half of a change, as a program that renews certificates leaves it for a moment.
    fs::copy(new.cert.path(), old.cert.path()).expect("a copy");
    reload("reload: refused, the configuration in force stays");
    assert!(gateway.log().contains("the key belongs to another certificate"), "{}", gateway.log());
    TlsClient::login(&gateway, &old_config, 5).ping();
    fs::copy(new.key.path(), old.key.path()).expect("a copy");
    wait_for("it is noticed without a signal", || {
        gateway.log().contains("the certificates have changed: the new ones are in force").then_some(())
    });
    reload("reload: nothing has changed");
    let new_config = new.any();
    for user in 6..10 {
        TlsClient::login(&gateway, &new_config, user).ping();
    }
    let mut stranger = TlsClient::connect(
        &gateway,
        &Identity { cert: ScratchFile::new("c", old_cert), key: ScratchFile::new("k", old_key) }.any(),
    );
    assert!(stranger.stream.flush().is_err(), "the old one is shown no more");
    before.iter_mut().for_each(TlsClient::ping);
    let expiry = gateway.metrics().sum("trunkline_tls_certificate_expiry_timestamp_seconds", &[("name", "localhost")]);
    assert_eq!(expiry, 4_102_444_800);
    drop((before, stranger));
    gateway.audit();
    gateway.finish();
}

#[test]
fn a_ticket_is_good_at_every_node_of_a_cluster() {
    let identity = Identity::new();
    let fleet = Fleet::start(&["a", "b"], &identity.flags());
    let configs = [&TLS12, &TLS13].map(|version| identity.config(&[version], &["trunkline/1"]));
    for (round, node) in [0, 1, 1, 0].into_iter().enumerate() {
        // Also for guests, whose home is the other node.
        for user in 1..5 {
            let config = &configs[user as usize % 2];
            let mut client = TlsClient::login(fleet.node(node), config, user);
            client.ping();
            let resumed = client.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, round > 0 || user > 2, "round {round}, user {user}");
        }
    }
    fleet.finish();
}

#[test]
fn the_client_library_talks_over_tls() {
    let identity = Identity::new();
    with_each_gateway(ONE_AND_MANY, &identity.flags(), |gateway| {
        let pem = fs::read(identity.cert.path()).expect("a file");
        let tls = trunkline_client::Tls::trusting(&pem).expect("a certificate");
        library_talks(gateway, &gateway.client_address().to_string(), tls);
    });
}

#[test]
fn the_client_library_talks_through_websockets_and_comes_back_after_a_drain() {
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &["--drain-secs", "0"]].concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let pem = fs::read(identity.cert.path()).expect("a file");
        let tls = || trunkline_client::Tls::trusting(&pem).expect("a certificate");
        let address = gateway.client_address();
        library_talks(gateway, &format!("ws://{address}"), Ws::over(trunkline_client::Tcp));
        library_talks(gateway, &format!("wss://{address}/ws"), Ws::over(tls()));
        library_talks(gateway, &address.to_string(), Ws::over(tls()));
        assert_eq!(gateway.metrics().sum("trunkline_websockets_total", &[]), 2);
        assert_eq!(handshakes(gateway, "full") + handshakes(gateway, "resumed"), 2);

        on_runtime(async {
            let connect = |path: &str| library_connects(format!("wss://{address}{path}"), 3, Ws::over(tls()));
            let refused = connect("/elsewhere").await.expect_err("there is nothing");
            assert!(refused.to_string().contains("HTTP status 404"), "{refused}");
            let downgrade = library_connects(format!("ws://{address}"), 3, Ws::over(tls())).await;
            assert!(downgrade.expect_err("no TLS").to_string().contains("without TLS"));

            let (client, mut events) = connect("/ws").await.expect("a session");
            assert_eq!(gateway.post("/v1/node/drain").status, 202);
            let lost = events.next().await.expect("an event");
            let Event::Disconnected { reason: Reason::Bye { code: 12, .. }, .. } = lost else { panic!("{lost:?}") };
            assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
            loop {
                match events.next().await.expect("an event") {
                    Event::Reconnected { .. } => break,
                    Event::ReconnectFailed { .. } | Event::Disconnected { retry_in: Some(_), .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            client.ping().await.expect("it is there");
            client.close().await;
        });
    });
}

fn on_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
}

async fn library_connects<D: Dial>(
    addr: String,
    user: u64,
    dial: D,
) -> Result<(trunkline_client::Client, trunkline_client::Events), trunkline_client::Error> {
    let config = trunkline_client::Config { addrs: vec![addr], user, ..trunkline_client::Config::default() };
    trunkline_client::Client::connect_with(config, dial).await
}

/// User 2 talks to user 1 through the client library.
fn library_talks<D: Dial>(gateway: &Gateway, addr: &str, dial: D) {
    let mut native = Client::login(gateway, 1);
    on_runtime(async {
        let (client, _events) = library_connects(addr.to_owned(), 2, dial).await.expect("a session");
        let acknowledging = tokio::task::spawn_blocking(move || {
            let deliver = native.recv_deliver();
            assert_eq!((deliver.peer, deliver.body.len()), (2, 30_000));
            native.ack(&deliver);
            native
        });
        let outcome = client.send_acked(1, vec![5; 30_000]).await;
        assert_eq!(outcome.expect("a fate"), trunkline_client::Outcome::Delivered);
        acknowledging.await.expect("the other client");
        client.close().await;
    });
}

#[test]
fn the_javascript_client_talks_over_tls_with_a_certificate_to_try() {
    let folder = ScratchFolder::new("dev-cert");
    fs::create_dir(folder.path()).expect("a folder");
    let made = gateway_command().args(["dev-cert", "--out", folder.path()]).stdout(Stdio::null()).status();
    assert!(made.expect("run the gateway").success());
    let [cert, key] = ["dev-cert.pem", "dev-key.pem"].map(|name| Path::new(folder.path()).join(name));
    let flags = ["--tls-cert", cert.to_str().expect("UTF-8"), "--tls-key", key.to_str().expect("UTF-8")];
    with_gateway(4, &[&flags[..], &["--drain-secs", "0"]].concat(), |gateway| {
        own_talks_and_comes_back(gateway, LibraryClient::start_own_over_tls(gateway, &cert));
        let metrics = gateway.metrics();
        let (websockets, connections) =
            (metrics.sum("trunkline_websockets_total", &[]), metrics.sum("trunkline_tls_connections_total", &[]));
        assert!(websockets >= 8 && websockets <= connections, "{websockets} of {connections}");
    });
}

#[test]
fn a_client_certificate_takes_the_place_of_a_token_of_its_user() {
    let identity = Identity::new();
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca_params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    ca_params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca_params.self_signed(&ca_key).expect("a certificate");
    let ca_file = ScratchFile::new("ca.pem", pem("CERTIFICATE", ca_cert.der()));
    let secret = ScratchFile::new("hs256", "a secret of the tests, long enough for HS256");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.subject_alt_names = vec![SanType::URI("urn:trunkline:user:42".try_into().expect("ASCII"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = date_time_ymd(2100, 1, 1);
    let cert = params.signed_by(&key, &Issuer::from_params(&ca_params, &ca_key)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    let trusted = rustls::pki_types::pem::PemObject::from_pem_file(identity.cert.path()).expect("a certificate");
    roots.add(trusted).expect("one to trust");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert.der().clone()], key.serialize_der().try_into().expect("a key"))
        .expect("a certificate for a client");
    let config = Arc::new(config);
    let flags = [
        &identity.flags()[..],
        &["--tls-client-ca", ca_file.path(), "--auth", "jwt", "--jwt-hs256-secret-file", secret.path()],
    ]
    .concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        // Resumed, too.
        for round in 0..3 {
            let mut client = TlsClient::login(gateway, &config, 42);
            client.ping();
            let resumed = client.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, round > 0);
        }
        for (config, user) in [(&config, 43), (&identity.any(), 42)] {
            let mut client = TlsClient::connect(gateway, config);
            client.write(&Login::of(user).frame());
            client.expect_bye(code::BAD_CREDENTIALS);
        }
    });
}

#[test]
fn a_slow_reader_over_tls_is_counted_and_ended_like_any_other() {
    let identity = Identity::new();
    let flags = [
        &identity.flags()[..],
        &["--outbox-bytes-max", "64KiB", "--outbox-full-secs", "1", "--unsent-bytes-max", "4KiB"],
    ]
    .concat();
    with_gateway(2, &flags, |gateway| {
        let slow = TlsClient::login(gateway, &identity.any(), 1);
        let mut sender = Client::login(gateway, 2);
        for _ in 0..2_000 {
            sender.send(1, 0, &[9; 16_000]);
        }
        gateway.wait_for_presence(1, false);
        assert_eq!(closed(gateway, "too_slow"), 1);
        sender.ping();
        drop(slow);
    });
}

#[test]
fn a_connection_that_is_reset_within_a_record_leaves_nothing_behind() {
    let identity = Identity::new();
    with_gateway(1, &identity.flags(), |gateway| {
        for user in 1..5 {
            let mut client = TlsClient::login(gateway, &identity.any(), user);
            // A record is announced, and half of it comes.
            client.stream.sock.write_all(&[23, 3, 3, 0x40, 0]).expect("write to the gateway");
            client.stream.sock.write_all(&vec![1; 8_000]).expect("write to the gateway");
            gateway.wait_for_metrics("it is held", |metrics| metrics.sum(metric::PARTIAL_BYTES, &[]) > 8_000);
            drop(client);
            gateway.wait_for_presence(user, false);
            gateway.wait_for_metrics("nothing is held", |metrics| metrics.sum(metric::PARTIAL_BYTES, &[]) == 0);
        }
    });
}

#[test]
fn the_http_api_speaks_tls_and_takes_another_certificate() {
    let (first, second) = (Identity::new(), Identity::new());
    let flags = ["--http-tls-cert", first.cert.path(), "--http-tls-key", first.key.path()];
    with_gateway(1, &flags, |gateway| {
        assert!(gateway.stdout().contains("https on "), "{}", gateway.stdout());
        let plain = http::request(gateway.http_address(), "GET", "/healthz").expect("an answer");
        assert_eq!(plain.status, 400);
        assert!(plain.body.contains("https://"), "{}", plain.body);
        let refused = gateway.metrics().sum("trunkline_http_tls_handshakes_failed_total", &[]);
        assert_eq!(refused, 1, "who does not speak TLS is counted");

        let with = |identity: &Identity| {
            let config = trusting(identity.cert.path(), rustls::ALL_VERSIONS, &[]);
            http::request_over_tls(&config, gateway.http_address(), "GET", "/healthz", "").map(|answer| answer.status)
        };
        let kept = [first.cert.path(), first.key.path()].map(|path| std::fs::read(path).expect("a file"));
        let fresh = [second.cert.path(), second.key.path()].map(|path| std::fs::read(path).expect("a file"));
        let write = |[cert, key]: [&[u8]; 2]| {
            std::fs::write(first.cert.path(), cert).expect("a file");
            std::fs::write(first.key.path(), key).expect("a file");
        };
        let old = trusting(first.cert.path(), rustls::ALL_VERSIONS, &[]);
        let with_old = || http::request_over_tls(&old, gateway.http_address(), "GET", "/healthz", "");
        // A key that is not the certificate's changes nothing.
        write([&kept[0], &fresh[1]]);
        wait_for("the pair is refused", || gateway.log().contains("cannot be used together").then_some(()));
        assert_eq!(with_old().expect("an answer").status, 200);
        write([&fresh[0], &fresh[1]]);
        wait_for("the new certificate is shown", || (with(&second).ok()? == 200).then_some(()));
        assert!(with_old().is_err(), "the old one is shown no more");
        write([&kept[0], &kept[1]]);
        wait_for("the first one is shown again", || (with_old().ok()?.status == 200).then_some(()));
    });
}
