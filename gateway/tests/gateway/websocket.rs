//! Clients that speak through WebSockets on the port for all clients: as sessions they are like any other.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::{metric, reason_label};
use crate::support::scratch::ScratchFile;
use crate::support::signing::encode;
use crate::support::websocket::WebSocketClient;
use crate::support::wire::{self, Login, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, PATIENCE, SHARD_COUNTS, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame as RawFrame};

/// The whole answer to a request, until the gateway closes.
fn answer(gateway: &Gateway, request: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream.write_all(request.as_bytes()).expect("write to the gateway");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and the end of it");
    answer
}

/// A request with all that is needed, and these further lines.
fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

#[test]
fn requests_that_lead_nowhere_are_answered_and_counted() {
    with_gateway(2, &["--login-timeout-secs", "1", "--ws-origin", "https://app.example"], |gateway| {
        let refused = [
            ("not_found", request("/", ""), "404 Not Found", "path"),
            ("no upgrade", "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426 Upgrade Required", "no_upgrade"),
            ("another page", request("/ws", "Origin: https://evil.example\r\n"), "403 Forbidden", "origin"),
            ("another protocol", request("/ws", "Sec-WebSocket-Protocol: mqtt\r\n"), "400 Bad Request", "subprotocol"),
            ("a body", request("/ws", "Content-Length: 5\r\n"), "400 Bad Request", "body"),
            ("no HTTP", "GET /ws\r\n\r\n".to_owned(), "400 Bad Request", "malformed"),
            (
                "too many",
                request("/ws", &"X: y\r\n".repeat(70)),
                "431 Request Header Fields Too Large",
                "too_many_fields",
            ),
            (
                "too large",
                request("/ws", &format!("X: {}\r\n", "y".repeat(9_000))),
                "431 Request Header Fields Too Large",
                "too_large",
            ),
            ("too late", "GET /ws HTT".to_owned(), "408 Request Timeout", "timeout"),
        ];
        for (what, request, status, label) in &refused {
            let answer = answer(gateway, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{what}: {answer}");
            assert_eq!(gateway.metrics().sum("trunkline_requests_refused_total", &[("reason", label)]), 1, "{what}");
        }
        // A page of the host that it asks, whose name somebody may have led to this machine.
        let led_here = answer(gateway, &request("/ws", "Origin: http://example.com\r\n"));
        assert!(led_here.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{led_here}");
        for (path, status) in [("/healthz", "200 OK"), ("/readyz", "200 OK")] {
            let answer = answer(gateway, &format!("GET {path} HTTP/1.0\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        }
        // Other transports are told nothing.
        for other in
            ["POST /ws HTTP/1.1\r\n\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "\x16\x03\x01", "SSH-2.0-x\r\n"]
        {
            assert_eq!(answer(gateway, other), "");
        }
        WebSocketClient::connect_with(gateway, &[("Origin", "https://app.example")]);
    });
}

#[test]
fn beyond_the_limit_of_connections_a_request_is_answered_as_one() {
    with_gateway(1, &["--connections-max", "1"], |gateway| {
        let mut first = Client::login(gateway, 1);
        for (path, status) in
            [("/ws", "503 Service Unavailable"), ("/readyz", "503 Service Unavailable"), ("/healthz", "200 OK")]
        {
            let answer = answer(gateway, &request(path, ""));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
        }
        let refused = [("reason", "unavailable")];
        assert_eq!(gateway.metrics().sum("trunkline_requests_refused_total", &refused), 1);
        assert_eq!(answer(gateway, "\x16\x03\x01"), "", "TLS is told nothing");
        first.ping();
    });
}

#[test]
fn a_session_over_a_websocket_is_like_any_other() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut native = Client::login(gateway, 1);
        for user in 2..10 {
            let (mut client, login_ok) = WebSocketClient::login_with(gateway, &Login::of(user));
            assert_eq!(login_ok.max_frame, wire::FRAME_BYTES_MAX as u64);
            // Both ways, with and without ACK, small and large.
            for (id, size) in [(1, 0), (2, 90), (3, 200), (4, 60_000)] {
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
            client.write(&wire::ping(7));
            assert_eq!(client.recv_kind(kind::PONG).aux, 7);
            client.write(&wire::logout());
            assert_eq!(client.recv_close(), (1000, String::new()));
        }
        assert_eq!(gateway.metrics().sum("trunkline_websockets_total", &[]), 8);
    });
}

/// A frame as it is, for fragments.
fn fragment(opcode: Data, fin: bool, payload: &[u8]) -> Message {
    Message::Frame(RawFrame::message(payload.to_vec(), OpCode::Data(opcode), fin))
}

#[test]
fn a_message_may_hold_many_frames_and_be_fragmented_anywhere() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut client = WebSocketClient::login(gateway, 1);
        let mut other = Client::login(gateway, 2);
        let many: Vec<u8> = (1..=50).flat_map(|id| wire::send(id, 2, 0, &[id as u8; 20]).encode()).collect();
        client.write_message(Message::binary(many.clone()));
        for cut in [1, 3, 4, 51, many.len() - 1] {
            client.write_message(fragment(Data::Binary, false, &many[..cut]));
            client.write_message(Message::Ping(vec![cut as u8; 3].into()));
            client.write_message(fragment(Data::Continue, false, b""));
            client.write_message(fragment(Data::Continue, true, &many[cut..]));
        }
        for id in (1..=50).cycle().take(6 * 50) {
            let deliver = other.recv_deliver();
            assert_eq!((deliver.id, deliver.body), (id, vec![id as u8; 20]));
        }
        for cut in [1, 3, 4, 51, many.len() - 1] {
            assert_eq!(client.socket.read().expect("a Pong"), Message::Pong(vec![cut as u8; 3].into()));
        }
    });
}

#[test]
fn what_comes_with_the_request_and_behind_login_is_not_lost() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        for user in 1..9 {
            let mut client = Client::connect(gateway);
            let mut bytes = request("/ws", "").into_bytes();
            for frame in [Login::of(user).frame(), wire::ping(1), wire::ping(2)] {
                let payload = frame.encode();
                bytes.extend_from_slice(&[0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
                bytes.extend_from_slice(&payload);
            }
            // A Ping of the WebSocket, a Close, and something no one will look at.
            bytes.extend_from_slice(b"\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8rest");
            client.write_bytes(&bytes);
            let mut all = Vec::new();
            client.stream().set_read_timeout(Some(PATIENCE)).expect("a read timeout");
            client.stream().read_to_end(&mut all).expect("all until the end");
            let head = all.windows(4).position(|end| end == b"\r\n\r\n").expect("an answer") + 4;
            assert!(all.starts_with(b"HTTP/1.1 101 "), "{}", all.escape_ascii());
            let contains = |wanted: &[u8]| all[head..].windows(wanted.len()).any(|window| window == wanted);
            assert!(contains(&[0, 0, 0, 8, kind::PONG, 0, 0, 2]), "{}", all.escape_ascii());
            assert!(contains(b"\x8a\x00"), "the Pong is missing: {}", all.escape_ascii());
            assert!(all.ends_with(b"\x88\x02\x03\xe8"), "{}", all.escape_ascii());
        }
    });
}

#[test]
fn each_end_has_its_bye_and_its_close() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let ended = |client: &mut WebSocketClient, reason: u16| {
            let bye = client.recv_kind(kind::BYE);
            let (close, text) = client.recv_close();
            assert_eq!((bye.aux, close, text), (reason, 4000 + reason, wire::bye_text(&bye)));
        };
        let mut client = WebSocketClient::login(gateway, 1);
        let mut newer = WebSocketClient::login(gateway, 1);
        ended(&mut client, code::REPLACED);
        assert_eq!(gateway.post("/v1/users/1/kick").status, 200);
        ended(&mut newer, code::KICKED);

        let mut client = WebSocketClient::connect(gateway);
        client.write(&wire::ping(1));
        ended(&mut client, code::NOT_LOGGED_IN);
        let mut client = WebSocketClient::login(gateway, 2);
        let ping = wire::ping(1).encode();
        client.write_message(Message::binary(ping[..7].to_vec()));
        ended(&mut client, code::MALFORMED_FRAME);
        let mut client = WebSocketClient::login(gateway, 2);
        client.write_message(Message::binary(vec![0xff; 4]));
        ended(&mut client, code::FRAME_TOO_LARGE);

        let mut client = WebSocketClient::login(gateway, 3);
        client.write_message(Message::text("hello"));
        assert_eq!(client.recv_close().0, 1003);
        let mut client = WebSocketClient::login(gateway, 3);
        client.socket.get_mut().write_all(&[0x82, 0x01, 0x00]).expect("write to the gateway");
        assert_eq!(client.recv_close().0, 1002);
        let close = CloseFrame { code: 4321.into(), reason: "enough".into() };
        for sent in [Some(close), None] {
            let mut client = WebSocketClient::login(gateway, 4);
            let code = sent.as_ref().map_or(1005, |close| close.code.into());
            client.socket.close(sent).expect("write to the gateway");
            assert_eq!(client.recv_close().0, code);
        }
        let closed = |label: &str| gateway.metrics().sum(metric::CLOSED, &[("reason", label)]);
        assert_eq!((closed("websocket_violation"), closed("peer_closed")), (2, 2));
        assert_eq!(closed(reason_label::KICKED), 1);
    });
}

#[test]
fn a_token_may_come_with_the_request() {
    let key = b"a secret of the tests, long enough for HS256";
    let secret = ScratchFile::new("hs256", key);
    let flags = ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path(), "--ws-cookie", "session"];
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let token = |user: u64| {
            let claims = serde_json::json!({ "sub": user.to_string(), "exp": get_current_timestamp() + 3_600 });
            encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(key))
        };
        let bearer = format!("Bearer {}", token(1));
        let cookie = format!("a=b; session={}", token(1));
        for field in [("Authorization", &bearer), ("Cookie", &cookie)] {
            let mut client = WebSocketClient::connect_with(gateway, &[(field.0, field.1)]);
            client.write(&Login::of(1).frame());
            client.recv_kind(kind::LOGIN_OK);
            // It is the token of one user, and what LOGIN says comes first.
            for login in [Login::of(2), Login::of(1).token("no token")] {
                let mut client = WebSocketClient::connect_with(gateway, &[(field.0, field.1)]);
                client.write(&login.frame());
                assert_eq!(client.recv_kind(kind::BYE).aux, code::BAD_CREDENTIALS);
                assert_eq!(client.recv_close().0, 4000 + code::BAD_CREDENTIALS);
            }
        }
        let mut client = WebSocketClient::connect(gateway);
        client.write(&Login::of(1).frame());
        assert_eq!(client.recv_kind(kind::BYE).aux, code::BAD_CREDENTIALS);
    });
}

#[test]
fn a_silent_client_lives_on_the_pings_it_answers_and_dies_without() {
    with_gateway(2, &["--heartbeat-secs-min", "1"], |gateway| {
        let (mut client, _) = WebSocketClient::login_with(gateway, &Login::of(1).heartbeat_secs(3));
        let (mut deaf, _) = WebSocketClient::login_with(gateway, &Login::of(2).heartbeat_secs(1));
        // tungstenite answers a Ping with the read that brings it.
        for _ in 0..2 {
            let ping = client.socket.read().expect("a Ping");
            assert!(ping.is_ping(), "{ping:?}");
            client.socket.flush().expect("write to the gateway");
        }
        // This one was not read from meanwhile, so its Ping was not answered.
        assert!(deaf.socket.read().expect("a Ping").is_ping());
        assert_eq!(deaf.recv_kind(kind::BYE).aux, code::IDLE);
        assert_eq!(deaf.recv_close().0, 4000 + code::IDLE);
        client.write(&wire::ping(1));
        client.recv_kind(kind::PONG);
    });
}

/// Where WebSockets of a gateway are.
fn url(gateway: &Gateway) -> String {
    format!("ws://{}/ws", gateway.client_address())
}

/// A client of a library, until it says it has talked.
pub(crate) struct LibraryClient {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl LibraryClient {
    /// Starts a script with the JavaScript client of this project, built by `scripts/setup.sh`, in Node or another
    /// runtime.
    pub(crate) fn start_own(gateway: &Gateway, runtime: &str, script: &str) -> Self {
        LibraryClient::spawn(LibraryClient::own_command(runtime, script), &url(gateway))
    }

    /// The same in Node over TLS, as `start_over_tls`.
    pub(crate) fn start_own_over_tls(gateway: &Gateway, trusted: &Path) -> Self {
        let mut command = LibraryClient::own_command("node", "with_gateway.mjs");
        command.env("NODE_EXTRA_CA_CERTS", trusted);
        LibraryClient::spawn(command, &format!("wss://{}/ws", gateway.client_address()))
    }

    fn own_command(runtime: &str, script: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the workspace");
        let built = root.join("client/js/dist/index.js");
        assert!(built.exists(), "{} is not there: run scripts/setup.sh", built.display());
        let mut command = Command::new(runtime);
        if runtime.ends_with("deno") {
            command.args(["run", "--quiet", "--allow-all"]);
        }
        command.arg(root.join("client/js/test").join(script));
        command
    }

    /// Starts a script of the folder `websocket_clients` with what `scripts/setup.sh` has installed.
    pub(crate) fn start(gateway: &Gateway, script: &str) -> Self {
        LibraryClient::spawn(LibraryClient::command(script), &url(gateway))
    }

    /// The same over TLS; the client trusts those whose certificates are in a file.
    pub(crate) fn start_over_tls(gateway: &Gateway, script: &str, trusted: &str) -> Self {
        let mut command = LibraryClient::command(script);
        command.env("SSL_CERT_FILE", trusted).env("NODE_EXTRA_CA_CERTS", trusted);
        LibraryClient::spawn(command, &format!("wss://{}/ws", gateway.client_address()))
    }

    fn command(script: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.parent().expect("the folder of the workspace").join("target/websocket-clients");
        let python = script.ends_with(".py");
        let program = if python { installed.join("venv/bin/python") } else { "node".into() };
        let needed = if python { program.clone() } else { installed.join("node_modules/ws") };
        assert!(needed.exists(), "{} is not there: run scripts/setup.sh", needed.display());
        let path = root.join("tests/gateway/websocket_clients").join(script);
        // Node looks for packages beside a script, so it is run from a copy beside them.
        let path = if python {
            path
        } else {
            let copy = installed.join(script);
            std::fs::copy(&path, &copy).expect("a copy of the script");
            copy
        };
        let mut command = Command::new(program);
        command.arg(path);
        command
    }

    fn spawn(mut command: Command, url: &str) -> Self {
        command.arg(url).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.env("PYTHONDONTWRITEBYTECODE", "1").spawn().expect("start the client");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        LibraryClient { child, lines }
    }

    pub(crate) fn line(&mut self) -> String {
        self.lines.next().map_or_else(String::new, |line| line.expect("a line of text"))
    }
}

#[test]
fn clients_of_libraries_log_in_talk_and_are_sent_away() {
    for script in ["with_websockets.py", "with_websocket_client.py", "with_wsproto.py", "with_ws.mjs"] {
        with_gateway(4, &["--drain-secs", "0"], |gateway| {
            let mut client = LibraryClient::start(gateway, script);
            assert_eq!(client.line(), "talked", "{script}");
            assert_eq!(gateway.post("/v1/node/drain").status, 202);
            for _ in 0..2 {
                assert_eq!(client.line(), "bye 12 4012", "{script}");
            }
            let status = client.child.wait().expect("the client's status");
            assert!(status.success(), "{script}: {status}");
            wait_for("all are gone", || (gateway.get("/v1/node").json()["drain"]["sessions_left"] == 0).then_some(()));
            let ready = answer(gateway, "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
            assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
        });
    }
}

#[test]
fn the_javascript_client_talks_and_comes_back_after_a_drain() {
    with_gateway(4, &["--drain-secs", "0"], |gateway| {
        own_talks_and_comes_back(gateway, LibraryClient::start_own(gateway, "node", "with_gateway.mjs"))
    });
}

/// Follows the JavaScript client of this project over a drain to its end.
pub(crate) fn own_talks_and_comes_back(gateway: &Gateway, mut client: LibraryClient) {
    assert_eq!(client.line(), "talked");
    assert_eq!(gateway.post("/v1/node/drain").status, 202);
    assert_eq!(client.line(), "drained");
    assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
    client.child.stdin.take().expect("stdin is piped").write_all(b"go on").expect("write to the client");
    assert_eq!(client.line(), "closed");
    let status = client.child.wait().expect("the client's status");
    assert!(status.success(), "{status}");
}
