//! Groups over HTTP: what a backend does, and that sessions see it at once.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::scratch::ScratchFolder;
use crate::support::wire::{self, Frame, Login, code, flag, kind, outcome};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

fn login(gateway: &Gateway, user: u64) -> Client {
    let (mut client, _) = Client::login_with(gateway, &Login::of(user));
    client.recv_kind(kind::SYNC_OK);
    client
}

fn request(gateway: &Gateway, method: &str, path: &str, body: &str, status: u16) -> serde_json::Value {
    let answer = gateway.request_json(method, path, body);
    assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
    answer.json()
}

fn send(client: &mut Client, id: u64, flags: u8, text: &[u8]) {
    client.write(&Frame { kind: kind::GROUP_SEND, flags, id, peer: 9, body: text.to_vec(), ..Frame::default() });
}

#[test]
fn a_backend_makes_groups_and_sessions_are_in_them_at_once() {
    let folder = ScratchFolder::new("groups-http");
    let gateway = Gateway::start(2, &["--data-dir", folder.path(), "--group-member-sends-per-sec", "0"]);
    let (mut one, mut two, mut three) = (login(&gateway, 1), login(&gateway, 2), login(&gateway, 3));
    let group = request(&gateway, "PUT", "/v1/groups/9", r#"{"join": "api", "max": 2}"#, 201);
    assert_eq!((&group["members"], &group["join"], &group["group"]), (&0.into(), &"api".into(), &"9".into()));
    one.write(&Frame { kind: kind::GROUP_JOIN, id: 1, peer: 9, ..Frame::default() });
    one.expect_error(code::NOT_A_MEMBER, 1, 9);
    let added = request(&gateway, "POST", "/v1/groups/9/members", r#"{"users": ["1", "2", "2", "3"]}"#, 200);
    let results: Vec<&str> =
        added["results"].as_array().unwrap().iter().map(|result| result["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["joined", "joined", "member", "group_full"]);

    send(&mut one, 5, flag::ACK, b"hello");
    one.expect_sent(5, 9, outcome::STORED);
    assert_eq!(two.recv_kind(kind::GROUP_DELIVER).body, b"\0\0\0\0\0\0\0\x01hello");
    let posted =
        request(&gateway, "POST", "/v1/groups/9/messages", r#"{"from": "2", "id": "7", "payload": "aGk="}"#, 200);
    assert_eq!(posted["duplicate"], false);
    let stamp = posted["stamp"].as_str().unwrap();
    // Both have it: it was sent on no session of its sender.
    for (client, flags) in [(&mut one, 0), (&mut two, flag::SELF)] {
        let frame = client.recv_kind(kind::GROUP_DELIVER);
        assert_eq!((frame.body.as_slice(), frame.flags), (&b"\0\0\0\0\0\0\0\x02hi"[..], flags));
        assert_eq!(frame.stamp.to_string(), stamp);
    }
    request(&gateway, "POST", "/v1/groups/9/messages", r#"{"from": "3", "id": "7", "payload": "aGk="}"#, 404);
    let page = request(&gateway, "GET", "/v1/groups/9/messages?limit=1", "", 200);
    assert_eq!((page["messages"][0]["payload"].as_str(), &page["complete"]), (Some("aGVsbG8="), &false.into()));
    let next = page["next"].as_str().unwrap();
    let rest = request(&gateway, "GET", &format!("/v1/groups/9/messages?after={next}"), "", 200);
    assert_eq!((rest["messages"].as_array().map(Vec::len), &rest["complete"]), (Some(1), &true.into()));

    // Who has read how far.
    let reads = |gateway: &Gateway| request(gateway, "GET", &format!("/v1/groups/9/reads?stamp={stamp}"), "", 200);
    assert_eq!(reads(&gateway)["read"], 0);
    one.write(&Frame { kind: kind::MARK, peer: 9, stamp: u64::MAX, ..Frame::default() });
    one.ping();
    gateway.wait_for_metrics("the mark counts", |metrics| metrics.sum("trunkline_group_marks_stored_total", &[]) == 1);
    assert_eq!((&reads(&gateway)["read"], &reads(&gateway)["members"]), (&1.into(), &2.into()));
    let of_user = request(&gateway, "GET", "/v1/users/1/groups", "", 200);
    assert_eq!((&of_user["groups"][0]["group"], &of_user["groups"][0]["read"]), (&"9".into(), &stamp.into()));

    // One is muted, and then all but admins are.
    request(&gateway, "PUT", "/v1/groups/9/members/1", r#"{"muted_until": 4294967295}"#, 200);
    send(&mut one, 6, 0, b"muted");
    one.expect_error(code::MUTED, 6, 9);
    request(&gateway, "PUT", "/v1/groups/9/members/1", r#"{"muted_until": 0, "role": "admin"}"#, 200);
    request(&gateway, "PUT", "/v1/groups/9", r#"{"join": "api", "muted": true}"#, 200);
    send(&mut two, 6, flag::ACK, b"muted");
    two.expect_sent(6, 9, outcome::DENIED);
    send(&mut one, 7, flag::ACK, b"an admin");
    one.expect_sent(7, 9, outcome::STORED);
    assert_eq!(two.recv_kind(kind::GROUP_DELIVER).body, b"\0\0\0\0\0\0\0\x01an admin");

    // Who is removed gets nothing more, and nobody does of a group that has ended.
    request(&gateway, "DELETE", "/v1/groups/9/members/2", "", 200);
    request(&gateway, "DELETE", "/v1/groups/9/members/2", "", 404);
    send(&mut one, 8, flag::ACK, b"without two");
    one.expect_sent(8, 9, outcome::STORED);
    two.ping();
    let members = request(&gateway, "GET", "/v1/groups/9/members", "", 200);
    assert_eq!((&members["members"][0]["user"], &members["members"][0]["role"]), (&"1".into(), &"admin".into()));
    assert_eq!(request(&gateway, "DELETE", "/v1/groups/9", "", 200)["members"], 1);
    request(&gateway, "GET", "/v1/groups/9", "", 404);
    send(&mut one, 9, flag::ACK, b"?");
    one.expect_sent(9, 9, outcome::DENIED);
    one.write(&wire::sync_group(1, 9, 0, 0));
    one.expect_error(code::NOT_A_MEMBER, 0, 9);
    gateway.wait_for_metrics("nobody is in it", |metrics| metrics.sum("trunkline_group_sessions", &[]) == 0);
    three.ping();
    // As many at once as a request may name, of the longest ids; and the longest message of a member.
    request(&gateway, "PUT", "/v1/groups/10", r#"{"join": "api"}"#, 201);
    let users: Vec<String> = (0..1_000).map(|at| (u64::MAX - 100_000 - at).to_string()).collect();
    let added = gateway.request_json("POST", "/v1/groups/10/members", &json!({ "users": users }).to_string());
    let joined = |result: &&serde_json::Value| result["result"] == "joined";
    let results = added.json()["results"].as_array().cloned().unwrap_or_default();
    assert_eq!(results.iter().filter(joined).count(), users.len(), "{}", added.body);
    let post = |id: u32, bytes: usize| {
        let payload = BASE64.encode(vec![7; bytes]);
        let message = json!({ "from": users[0], "id": id.to_string(), "payload": payload });
        gateway.request_json("POST", "/v1/groups/10/messages", &message.to_string()).status
    };
    assert_eq!([post(1, 65_496), post(2, 65_497), post(3, 100_000)], [200, 413, 413]);
    // Services need not be members, so nobody speaks in their name; and members have their rate.
    let service = r#"{"from": "18446744073709486080", "id": "4", "payload": ""}"#;
    request(&gateway, "POST", "/v1/groups/10/messages", service, 400);
    request(&gateway, "POST", "/v1/groups/10/members", r#"{"users": ["18446744073709551615"]}"#, 400);
    for (path, status) in
        [("/v1/groups/0", 400), ("/v1/groups/9223372036854775808", 404), ("/v1/groups/x/members", 400)]
    {
        request(&gateway, "GET", path, "", status);
    }
    drop((one, two, three));
    gateway.audit();
    gateway.finish();
}

#[test]
fn messages_over_http_are_within_the_rates_of_their_sender() {
    let folder = ScratchFolder::new("groups-http-rates");
    let gateway = Gateway::start(1, &["--data-dir", folder.path(), "--group-member-sends-per-sec", "1"]);
    request(&gateway, "PUT", "/v1/groups/9", "{}", 201);
    request(&gateway, "POST", "/v1/groups/9/members", r#"{"users": ["1", "2"]}"#, 200);
    let post = |from: u32, id: u32| {
        let message = json!({ "from": from.to_string(), "id": id.to_string(), "payload": "aGk=" });
        gateway.request_json("POST", "/v1/groups/9/messages", &message.to_string()).status
    };
    // However a second begins, one of a hundred is its second one.
    let refused = (1..100).map(|id| post(1, id)).find(|status| *status != 200);
    assert_eq!(refused, Some(429));
    assert_eq!(post(2, 1), 200, "another member has its own");
    assert!(gateway.metrics().sum("trunkline_limit_hits_total", &[("limit", "group_member_sends_per_sec")]) > 0);
    gateway.finish();
}

#[test]
fn without_a_store_there_are_no_groups_to_manage() {
    with_gateway(1, &[], |gateway| {
        request(gateway, "PUT", "/v1/groups/9", "{}", 409);
        request(gateway, "GET", "/v1/users/9/groups", "", 409);
    });
}
