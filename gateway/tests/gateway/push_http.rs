//! Pushes by HTTP: a back-end of this test at the services' API of a real gateway.

use crate::cluster_support::Fleet;
use crate::push_targets::wait_for_end;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command, with_each_gateway, with_gateway};
use crate::support::http::{self, Response};
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::wire::{Frame, code, flag, kind, logout};
use crate::support::{PATIENCE, wait_for};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use trunkline_router::http::{NewKey, Scope};

pub(crate) const WITH_PUSHES: [&str; 2] = ["--services-http", "127.0.0.1:0"];
/// The kind of a frame that a service has pushed.
const PUSH: u8 = 0x87;
pub(crate) const SERVICE: u16 = 7;
/// A key that signs tokens, and a token of it that ends in 2100: `kid` idp, `sub` till-1.
const ISSUER: &str = "MCowBQYDK2VwAyEA6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
const TOKEN: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6ImlkcCJ9.eyJzdWIiOiJ0aWxsLTEiLCJleHAiOjQxMDI0NDQ4MDB9.G3sMqi3XvvqyDF\
    kN43bpqoDWq29ubLxPG6sncV6uLkqQVqpkkw5SNycOUWWyp71lznpnzhKd8hn55fdqo6SUAA";

/// Where back-ends push.
pub(crate) fn push_address(gateway: &Gateway) -> SocketAddr {
    wait_for("it says where back-ends push", || {
        let stdout = gateway.stdout();
        let line = stdout.lines().find_map(|line| line.strip_prefix("services http on "));
        line.map(|address| address.trim().parse().expect("an address"))
    })
}

/// One line or one push: whoever waits for an outcome waits long, so that a slow machine fails nothing.
fn patient(push: &str) -> String {
    let says = push.contains("timeout_ms") || push.contains("\"wait\"");
    if says { push.to_owned() } else { push.replacen('{', "{\"timeout_ms\":20000,", 1) }
}

pub(crate) fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> Response {
    let body = body.split_inclusive('\n').map(patient).collect::<String>();
    http::post_with(address, path, headers, &body).unwrap_or_else(|error| panic!("POST {path}: {error}"))
}

/// Pushes while the test goes on.
pub(crate) fn begin(gateway: &Gateway, headers: &str, body: &str) -> JoinHandle<Response> {
    let (address, headers, body) = (push_address(gateway), headers.to_owned(), body.to_owned());
    std::thread::spawn(move || post(address, "/v1/push", &headers, &body))
}

pub(crate) fn push(gateway: &Gateway, body: &str) -> Response {
    post(push_address(gateway), "/v1/push", "", body)
}

/// The counts of an answer that are not 0.
#[track_caller]
pub(crate) fn assert_counts(response: &Response, status: u16, counts: &[(&str, u64)]) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_line(&response.json(), counts);
}

#[track_caller]
fn assert_line(line: &serde_json::Value, counts: &[(&str, u64)]) {
    let fields = line.as_object().expect("an object");
    let found: Vec<(&str, u64)> = fields
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_u64()?)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let mut expected = counts.to_vec();
    expected.sort_unstable();
    let mut found = found;
    found.sort_unstable();
    assert_eq!(found, expected, "{line}");
    assert!(fields["id"].as_str().is_some_and(|id| id.parse::<u64>().is_ok_and(|id| id > 0)), "{line}");
}

pub(crate) fn recv_push(client: &mut Client) -> Frame {
    let frame = client.recv();
    assert_eq!((frame.kind, frame.aux), (PUSH, SERVICE), "{frame:?}");
    frame
}

/// Every push that was begun has ended in one way.
pub(crate) fn assert_books(gateway: &Gateway) {
    gateway.wait_for_metrics("pushes are accounted for", |metrics| {
        let of = |name: &str| metrics.sum(name, &[]);
        of("trunkline_http_pushes_open") == 0
            && of("trunkline_http_pushes_received_total") == of("trunkline_http_pushes_total")
            && of("trunkline_portal_bytes") == 0
    });
}

fn with_pushes(shards: u32, flags: &[&str], body: impl FnOnce(&Gateway)) {
    let flags: Vec<&str> = WITH_PUSHES.iter().chain(flags).copied().collect();
    with_gateway(shards, &flags, |gateway| {
        body(gateway);
        assert_books(gateway);
    });
}

#[test]
fn a_push_reaches_its_users_and_the_outcome_the_caller_whatever_shards_they_are_on() {
    with_each_gateway(&[1, 4], &WITH_PUSHES, |gateway| {
        let mut clients: Vec<Client> = (1..=5).map(|user| Client::login(gateway, user)).collect();
        let answer =
            begin(gateway, "", r#"{"to":{"users":["1","2",3,"4","5","99"]},"service":7,"id":"9001","payload":"aGk="}"#);
        for client in &mut clients {
            let frame = recv_push(client);
            assert_eq!((frame.id, frame.peer, &frame.body[..]), (9_001, 0, &b"hi"[..]));
            assert_ne!(frame.flags & flag::ACK, 0);
            client.ack(&frame);
        }
        let answer = answer.join().expect("an answer");
        assert_counts(&answer, 200, &[("delivered", 5), ("offline", 1)]);
        assert_eq!(answer.json()["id"], "9001");
        // Without ACK, and without waiting.
        let answer = push(gateway, r#"{"to":{"user":"1"},"service":7,"payload":"","ack":false}"#);
        assert_counts(&answer, 200, &[("accepted", 1)]);
        assert_eq!(recv_push(&mut clients[0]).flags & flag::ACK, 0);
        let answer = push(gateway, r#"{"to":{"user":"1"},"service":7,"payload":"","wait":"none"}"#);
        assert_counts(&answer, 202, &[("pending", 1)]);
        let frame = recv_push(&mut clients[0]);
        // One that waits for no more than that is not told more.
        let answer = push(gateway, r#"{"to":{"user":"2"},"service":7,"payload":"","timeout_ms":50}"#);
        assert_counts(&answer, 200, &[("pending", 1)]);
        clients[0].ack(&frame);
        let frame = recv_push(&mut clients[1]);
        clients[1].ack(&frame);
        gateway.wait_for_metrics("all have been delivered", |metrics| {
            metrics.sum("trunkline_http_pushes_total", &[("outcome", "delivered")]) == 7
        });
        drop(clients);
        assert_books(gateway);
    });
}

#[test]
fn what_is_sent_again_under_its_key_is_not_pushed_again() {
    with_pushes(2, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let (key, body) = ("Idempotency-Key: order-7\r\n", r#"{"to":{"user":"1"},"service":7,"payload":"aGk="}"#);
        let first = begin(gateway, key, body);
        let frame = recv_push(&mut client);
        // While it is open, and when it is over.
        let second = begin(gateway, key, body);
        gateway
            .wait_for_metrics("it is known", |metrics| metrics.sum("trunkline_http_pushes_repeated_total", &[]) == 1);
        client.ack(&frame);
        let answers = [first, second].map(|answer| answer.join().expect("an answer"));
        let third = post(push_address(gateway), "/v1/push", key, body);
        for answer in answers.iter().chain([&third]) {
            assert_counts(answer, 200, &[("delivered", 1)]);
            assert_eq!(answer.json()["id"], frame.id.to_string());
        }
        let other = post(push_address(gateway), "/v1/push", key, &body.replace("aGk=", "aG8="));
        assert_eq!(other.status, 409, "{}", other.body);
        client.ping();
    });
}

#[test]
fn a_batch_comes_in_order_and_has_a_result_for_each_line() {
    with_pushes(2, &["--pushes-per-user-per-sec", "0"], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut body = String::new();
        for id in 1..=300 {
            body += &match id {
                100 => "{\"to\":{\"all\":true},\"service\":7,\"payload\":\"\"}\r\n".to_owned(),
                200 => format!("{{\"to\":{{\"user\":\"2\"}},\"service\":7,\"id\":\"{id}\",\"payload\":\"\"}}\n"),
                _ => format!(
                    "{{\"to\":{{\"user\":\"1\"}},\"service\":7,\"id\":{id},\"payload\":\"\",\"ack\":{}}}\n",
                    id == 300
                ),
            };
        }
        let address = push_address(gateway);
        let ndjson = "Content-Type: application/x-ndjson\r\n";
        let answer = std::thread::spawn(move || post(address, "/v1/push/batch", ndjson, &body));
        for id in (1..=300).filter(|id| ![100, 200].contains(id)) {
            let frame = recv_push(&mut client);
            assert_eq!(frame.id, id);
            if id == 300 {
                client.ack(&frame);
            }
        }
        let answer = answer.join().expect("an answer");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
        let lines: Vec<serde_json::Value> =
            answer.body.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.len(), 300);
        for (line, id) in lines.iter().zip(1..) {
            match id {
                100 => {
                    assert_eq!(line["error"]["status"], 400, "{line}");
                    assert!(
                        line["error"]["detail"].as_str().is_some_and(|detail| detail.contains("no line of a batch"))
                    );
                }
                200 => assert_line(line, &[("offline", 1)]),
                300 => assert_line(line, &[("delivered", 1)]),
                _ => assert_line(line, &[("accepted", 1)]),
            }
        }
        assert_eq!(lines[299]["id"], "300");
        let too_many = "{}\n".repeat(1_001);
        assert_eq!(post(address, "/v1/push/batch", ndjson, &too_many).status, 413);
        assert_eq!(post(address, "/v1/push/batch", "", "{}").status, 415);
        assert_eq!(post(address, "/v1/push", ndjson, "{}").status, 415);
        assert_eq!(post(address, "/v1/push", "", "{").status, 400);
        let large = format!("{{\"to\":{{\"user\":1}},\"service\":7,\"payload\":\"{}\"}}", "A".repeat(1 << 20));
        assert_eq!(post(address, "/v1/push", "", &large).status, 413);
    });
}

#[test]
fn a_push_to_a_user_who_is_offline_is_stored_and_comes_with_the_login() {
    let folder = ScratchFolder::new("push-http-stored");
    with_pushes(2, &["--data-dir", folder.path()], |gateway| {
        Client::login(gateway, 1).write(&logout());
        gateway.wait_for_presence(1, false);
        let body = r#"{"to":{"user":"1"},"service":7,"id":"5","payload":"a2VwdA=="}"#;
        let answer = push(gateway, body);
        assert_counts(&answer, 200, &[("stored", 1)]);
        let answer = push(gateway, &body.replace("\"id\":\"5\"", "\"store\":false"));
        assert_counts(&answer, 200, &[("offline", 1)]);
        // The same id again is the same message.
        let answer = push(gateway, &body.replace("\"service\"", "\"retry\":true,\"service\""));
        assert_counts(&answer, 200, &[("stored", 1)]);
        let mut client = Client::login(gateway, 1);
        let frame = recv_push(&mut client);
        assert_eq!((frame.id, &frame.body[..], frame.flags & flag::REPLAY), (5, &b"kept"[..], flag::REPLAY));
        client.ack(&frame);
    });
}

#[test]
fn only_who_may_push_does_and_every_call_stands_in_the_audit_log() {
    let keys = [("shop", Scope::PushUser), ("ops", Scope::Kick)]
        .map(|(name, scope)| NewKey::make(name, &[scope]).expect("a key"));
    let other = NewKey::make("other", &[Scope::PushUser]).expect("a key");
    let other_line = other.line.replace(" }", ", services = [8], pushes_per_sec = 1000 }");
    let issuer = format!("idp = {{ ed25519 = \"{ISSUER}\", scopes = [\"push:user\"], services = [7] }}");
    let lines = [keys[0].line.as_str(), &keys[1].line, &other_line, &issuer];
    let file = ScratchFile::new("push-keys", lines.join("\n"));
    let body = r#"{"to":{"user":"1"},"service":7,"payload":"c2VjcmV0IHRleHQ="}"#;
    with_pushes(1, &["--api-keys-file", file.path(), "--log-format", "json"], |gateway| {
        let ask = |headers: &str| post(push_address(gateway), "/v1/push", headers, body).status;
        let [shop, ops] = keys.each_ref().map(|key| format!("Authorization: Bearer {}\r\n", key.key));
        let (known, last) = keys[0].key.split_at(keys[0].key.len() - 1);
        let wrong = format!("Authorization: Bearer {known}{}\r\n", if last == "0" { "1" } else { "0" });
        assert_eq!((ask(""), ask(&wrong), ask(&ops)), (401, 401, 403));
        assert_eq!(ask(&format!("{shop}Origin: http://evil.example\r\n")), 403);
        // One that may push as other services alone, and a token.
        let other = format!("Authorization: Bearer {}\r\n", other.key);
        assert_eq!((ask(&other), ask(&format!("Authorization: Bearer {}\r\n", &TOKEN[..TOKEN.len() - 4]))), (403, 401));
        let headers = format!("{other}Content-Type: application/x-ndjson\r\n");
        let batch = format!("{body}\n{}", body.replace("\"service\":7", "\"service\":8"));
        let lines = post(push_address(gateway), "/v1/push/batch", &headers, &batch);
        assert!(
            lines.body.contains("may not push as service 7") && lines.body.contains("\"offline\":1"),
            "{}",
            lines.body
        );
        assert_eq!((ask(&shop), ask(&format!("Authorization: Bearer {TOKEN}\r\n"))), (200, 200));
        let line_of = |key: &str| {
            let words = format!("\"key\":\"{key}\"");
            let is_it = |line: &&str| line.contains("a change was asked for") && line.contains(&words);
            wait_for("the push is in the log", || gateway.stderr().lines().find(is_it).map(str::to_owned))
        };
        line_of("idp:till-1");
        let audit = line_of("shop");
        let audit: serde_json::Value = serde_json::from_str(&audit).expect("a line of JSON");
        let fields = &audit["fields"];
        assert_eq!((&fields["key"], &fields["what"]), (&"shop".into(), &"POST /v1/push".into()), "{audit}");
        let note = fields["note"].as_str().expect("a note");
        assert!(note.starts_with("service 7, 1 users, id ") && note.ends_with(", 1 offline"), "{note}");
        let log = gateway.stderr();
        assert!(!log.contains("secret text") && !log.contains("c2VjcmV0"), "payloads are not logged");
    });
    // Without keys it is for this host, and for no page that is shown on it.
    with_pushes(1, &[], |gateway| {
        let ask =
            |headers: &str| http::request_with(push_address(gateway), "POST", "/v1/push", headers).unwrap().status;
        assert_eq!((ask("Origin: null\r\n"), ask("Host: evil.example\r\n")), (403, 403));
        assert_eq!(ask("Sec-Fetch-Site: cross-site\r\n"), 403);
        assert_eq!(push(gateway, body).status, 200);
    });
}

#[test]
fn who_leaves_before_the_answer_has_pushed_all_the_same() {
    with_pushes(2, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut stream = TcpStream::connect(push_address(gateway)).expect("connect");
        let body = r#"{"to":{"user":"1"},"service":7,"payload":"aGk=","timeout_ms":30000}"#;
        write!(
            stream,
            "POST /v1/push HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n\
             {body}",
            body.len()
        )
        .expect("write");
        let frame = recv_push(&mut client);
        stream.shutdown(Shutdown::Both).expect("leave");
        drop(stream);
        gateway
            .wait_for_metrics("it has left", |metrics| metrics.sum("trunkline_http_push_callers_gone_total", &[]) == 1);
        client.ack(&frame);
        gateway.wait_for_metrics("it was delivered", |metrics| {
            metrics.sum("trunkline_http_pushes_total", &[("outcome", "delivered")]) == 1
        });
        wait_for("it is told", || gateway.stderr().contains("a caller left before its answer").then_some(()));
    });
}

/// A request whose body does not come.
fn slow_request(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = "POST /v1/push HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 1048576\r\n\r\n{";
    stream.write_all(head.as_bytes()).expect("write");
    stream
}

#[test]
fn limits_are_met_with_their_policy_and_counted() {
    let flags = ["--portal-bytes-max", "160KiB", "--pushes-per-user-per-sec", "3", "--pushes-per-key-per-sec", "0"];
    with_pushes(1, &flags, |gateway| {
        let (address, ndjson) = (push_address(gateway), "Content-Type: application/x-ndjson\r\n");
        let results = |body: &str| -> Vec<serde_json::Value> {
            let answer = post(address, "/v1/push/batch", ndjson, body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            answer.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
        };
        // Lines of a batch are begun in one go, so the portal takes as many as it has room for.
        let payload = "A".repeat(1_600);
        let line = |user: u64| format!("{{\"to\":{{\"user\":{user}}},\"service\":7,\"payload\":\"{payload}\"}}\n");
        let body: String = (1..=500).map(line).collect();
        let lines = results(&body);
        let taken = lines.iter().filter(|line| line["offline"] == 1).count();
        let refused = lines.iter().filter(|line| line["error"]["status"] == 503).count();
        assert!(taken == 160 * 1_024 / (24 + 8 + 1_200) && taken + refused == 500, "{taken} and {refused}");
        // One user has three in a second, and the machine may be slow.
        let one: String = (0..20).map(|_| line(1)).collect();
        let lines = results(&one);
        let overloaded = lines.iter().filter(|line| line["overloaded"] == 1).count();
        assert!(overloaded >= 5, "{overloaded} of 20 were too many");
        gateway.wait_for_metrics("the limits were counted", |metrics| {
            metrics.limit_hits("portal_bytes") >= refused as u64
                && metrics.limit_hits("pushes_per_user_per_sec") >= overloaded as u64
        });
        // Bodies that do not come take the room of those that would, for as long as they may take.
        let (refused, mut slow) = wait_for("there is no room for another body", || {
            let slow: Vec<TcpStream> = (0..4).map(|_| slow_request(address)).collect();
            let answer = push(gateway, &line(9));
            (answer.status == 503).then_some((answer, slow))
        });
        assert!(refused.header("retry-after").is_some() && refused.body.contains("bodies"), "{}", refused.body);
        for stream in &mut slow {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).expect("an answer");
            // Those of an earlier try may have had the room.
            assert!([b"HTTP/1.1 408", b"HTTP/1.1 503"].contains(&&answer), "{answer:?}");
        }
        drop(slow);
        wait_for("there is room again", || (push(gateway, &line(10)).status == 200).then_some(()));
    });
    with_pushes(1, &["--pushes-per-key-per-sec", "1"], |gateway| {
        // A thousand at once are a thousand seconds' worth.
        let users: Vec<String> = (1..=1_000).map(|user| user.to_string()).collect();
        let body = format!("{{\"to\":{{\"users\":[{}]}},\"service\":7,\"payload\":\"\"}}", users.join(","));
        assert_counts(&push(gateway, &body), 200, &[("offline", 1_000)]);
        let limited = push(gateway, &body);
        assert_eq!((limited.status, limited.header("retry-after")), (429, Some("1")), "{}", limited.body);
    });
}

#[test]
fn a_node_that_ends_answers_what_is_open_first() {
    let mut command = gateway_command();
    command.args(["--shards", "2", "--drain-secs", "1"]).args(WITH_PUSHES);
    let mut gateway = Gateway::start_command(command);
    let mut client = Client::login(&gateway, 1);
    let answer = begin(&gateway, "", r#"{"to":{"user":"1"},"service":7,"payload":"","timeout_ms":30000}"#);
    recv_push(&mut client);
    gateway.signal(Signal::TERM);
    client.expect_bye(code::DRAINING);
    drop(client);
    assert_counts(&answer.join().expect("an answer"), 200, &[("offline", 1)]);
    assert!(gateway.wait_for_exit().success());
}

#[test]
fn a_push_at_one_node_reaches_users_of_all_and_their_outcome_comes_back() {
    let fleet = Fleet::start(&["a", "b"], &WITH_PUSHES);
    let mut clients: Vec<Client> = (1..=12).map(|user| Client::login(fleet.node(user as usize % 2), user)).collect();
    let users: Vec<String> = (1..=14).map(|user| user.to_string()).collect();
    let body = format!("{{\"to\":{{\"users\":[{}]}},\"service\":7,\"payload\":\"aGk=\"}}", users.join(","));
    for node in 0..2 {
        let answer = begin(fleet.node(node), "", &body);
        for client in &mut clients {
            let frame = recv_push(client);
            assert_eq!(frame.body, b"hi");
            client.ack(&frame);
        }
        assert_counts(&answer.join().expect("an answer"), 200, &[("delivered", 12), ("offline", 2)]);
        assert_books(fleet.node(node));
    }
    assert!(fleet.sum("trunkline_messages_away_total", &[]) > 0, "some crossed the mesh");
    // All sessions of all nodes, once, whichever node is asked.
    for node in 0..2 {
        let answer = push(fleet.node(node), r#"{"to":{"all":true},"service":7,"payload":"aGk="}"#);
        assert_eq!(answer.status, 202, "{}", answer.body);
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        for client in &mut clients {
            assert_eq!(recv_push(client).id.to_string(), id);
        }
        let progress = wait_for_end(fleet.node(node), &id);
        let numbers = ["delivered", "overloaded", "shards_lost"].map(|name| progress[name].as_u64());
        assert_eq!((&progress["state"], numbers), (&"done".into(), [Some(12), Some(0), Some(0)]), "{progress}");
        clients.iter_mut().for_each(|client| assert!(client.recv_until_pong().is_empty()));
    }
    // A room whose home is one of the nodes.
    let room = (1 << 63) + 9;
    clients[0].write(&Frame { kind: kind::GROUP_JOIN, id: 3, peer: room, ..Frame::default() });
    clients[0].recv_kind(kind::GROUP_OK);
    for node in 0..2 {
        let answer = push(fleet.node(node), &format!(r#"{{"to":{{"group":"{room}"}},"service":7,"payload":"aGk="}}"#));
        assert_counts(&answer, 200, &[("accepted", 1)]);
        assert_eq!(clients[0].recv_kind(kind::GROUP_DELIVER).peer, room);
    }
    // What is tried again through the other node comes once, without a store.
    let again = |node: usize, key: &str, body: &str| {
        let headers = format!("Idempotency-Key: {key}\r\n");
        post(push_address(fleet.node(node)), "/v1/push", &headers, body)
    };
    for user in 1..=4 {
        let (key, at) = (format!("order-{user}"), user % 2);
        let body = format!("{{\"to\":{{\"user\":\"{user}\"}},\"service\":7,\"payload\":\"aGk=\"}}");
        let answer = begin(fleet.node(at), &format!("Idempotency-Key: {key}\r\n"), &body);
        let client = &mut clients[user - 1];
        let frame = recv_push(client);
        client.ack(&frame);
        assert_counts(&answer.join().expect("an answer"), 200, &[("delivered", 1)]);
        let repeated = again(1 - at, &key, &body);
        assert_counts(&repeated, 200, &[("delivered", 1)]);
        assert_eq!(repeated.json()["id"], frame.id.to_string());
        assert!(client.recv_until_pong().is_empty(), "user {user} got it twice");
    }
    for node in 0..2 {
        let body = format!(r#"{{"to":{{"group":"{room}"}},"service":7,"payload":"aGk="}}"#);
        assert_counts(&again(node, "to-room", &body), 200, &[("accepted", 1)]);
    }
    clients[0].recv_kind(kind::GROUP_DELIVER);
    assert!(clients[0].recv_until_pong().is_empty(), "the room got it twice");
    for (node, delivered) in [(0, 12), (1, 0)] {
        let answer = again(node, "to-all", r#"{"to":{"all":true},"service":7,"payload":"aGk="}"#);
        let progress = wait_for_end(fleet.node(node), answer.json()["id"].as_str().expect("an id"));
        assert_eq!((&progress["state"], &progress["delivered"]), (&"done".into(), &delivered.into()), "{progress}");
    }
    for client in &mut clients {
        recv_push(client);
        assert!(client.recv_until_pong().is_empty());
    }
    // One device of a user whose home may be the other node.
    let to = |user: usize| {
        format!(r#"{{"to":{{"device":{{"user":"{user}","device":"default"}}}},"service":7,"payload":""}}"#)
    };
    for user in 1..=2 {
        let answer = begin(fleet.node(0), "", &to(user));
        let frame = recv_push(&mut clients[user - 1]);
        clients[user - 1].ack(&frame);
        assert_counts(&answer.join().expect("an answer"), 200, &[("delivered", 1)]);
    }
    drop(clients);
    fleet.finish();
}
