//! Pushes by HTTP to one device, with an end, to groups and to all sessions: at a real gateway.

use crate::push_http::{SERVICE, WITH_PUSHES, assert_books, assert_counts, begin, post, push, push_address, recv_push};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::http::{self, Response};
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::wait_for;
use crate::support::wire::{Frame, Login, flag, kind};
use trunkline_router::http::{NewKey, Scope};

/// Who services are in a group.
const SENDER: u64 = u64::MAX - 0xFFFF + SERVICE as u64;
const ROOM: u64 = (1 << 63) + 5;

fn device(gateway: &Gateway, user: u64, device: &str, class: &str) -> Client {
    let login = Login { device_class: class.to_owned(), ..Login::of(user).device(device) };
    let mut client = Client::login_with(gateway, &login).0;
    // With a store the end of its backlog is told.
    client.recv_until_pong();
    client
}

fn recv_group(client: &mut Client, group: u64) -> Vec<u8> {
    let frame = client.recv_kind(kind::GROUP_DELIVER);
    let (from, payload) = frame.body.split_first_chunk::<8>().expect("who sent it");
    assert_eq!((frame.peer, u64::from_be_bytes(*from)), (group, SENDER));
    payload.to_vec()
}

/// Nothing comes to it.
fn assert_quiet(client: &mut Client) {
    let frames = client.recv_until_pong();
    assert!(frames.is_empty(), "{frames:?}");
}

/// How far a push to all is, once it is over.
pub(crate) fn wait_for_end(gateway: &Gateway, id: &str) -> serde_json::Value {
    wait_for("the push to all is over", || {
        let answer = http::request(push_address(gateway), "GET", &format!("/v1/pushes/{id}")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let progress = answer.json();
        (progress["shards_done"] == progress["shards"]).then_some(progress)
    })
}

/// What is pushed comes to these, once, and to nobody else; and so it is told.
fn push_to_sessions(gateway: &Gateway, to: &str, all: &mut [(Client, bool)]) {
    let answer = push(gateway, &format!(r#"{{"to":{to},"service":7,"payload":"aGk="}}"#));
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let mut expected = 0;
    for (client, gets) in &mut *all {
        if *gets {
            expected += 1;
            let frame = recv_push(client);
            assert_eq!((frame.id.to_string(), frame.flags, &frame.body[..]), (id.clone(), 0, &b"hi"[..]));
        }
    }
    let progress = wait_for_end(gateway, &id);
    let numbers = ["delivered", "overloaded", "shards", "shards_lost"].map(|name| progress[name].as_u64());
    assert_eq!((&progress["state"], numbers), (&"done".into(), [Some(expected), Some(0), Some(2), Some(0)]));
    all.iter_mut().for_each(|(client, _)| assert_quiet(client));
}

#[test]
fn a_push_reaches_one_device_ends_in_time_and_goes_into_groups_and_to_all_who_are_there() {
    let folder = ScratchFolder::new("push-targets");
    let flags: Vec<&str> = WITH_PUSHES.iter().copied().chain(["--data-dir", folder.path()]).collect();
    with_gateway(2, &flags, |gateway| {
        let mut phone = device(gateway, 1, "phone", "phone");
        let mut tv = device(gateway, 1, "tv", "screen");
        let mut other = device(gateway, 2, "", "phone");

        // What ends: kept for a user who is offline, and given to one who does not acknowledge it.
        let keep = |id: u32, ttl_secs: u32| {
            format!(r#"{{"to":{{"user":"9"}},"service":7,"id":"{id}","ttl_secs":{ttl_secs},"payload":"aGk="}}"#)
        };
        Client::login(gateway, 9).write(&crate::support::wire::logout());
        gateway.wait_for_presence(9, false);
        for (id, ttl_secs) in [(1, 1), (2, 600)] {
            assert_counts(&push(gateway, &keep(id, ttl_secs)), 200, &[("stored", 1)]);
        }
        let mute = r#"{"to":{"user":"2"},"service":7,"ttl_secs":1,"store":false,"payload":"aGk="}"#;
        let expiring = begin(gateway, "", mute);
        recv_push(&mut other);

        // One device.
        let to_device = |device: &str| {
            let to = format!(r#"{{"device":{{"user":"1","device":"{device}"}}}}"#);
            format!(r#"{{"to":{to},"service":7,"payload":"aGk="}}"#)
        };
        let answer = begin(gateway, "", &to_device("tv"));
        let frame = recv_push(&mut tv);
        assert_ne!(frame.flags & flag::ACK, 0);
        tv.ack(&frame);
        assert_counts(&answer.join().expect("an answer"), 200, &[("delivered", 1)]);
        assert_counts(&push(gateway, &to_device("watch")), 200, &[("offline", 1)]);
        assert_quiet(&mut phone);
        // It leaves without an ACK: its fate does not wait for the other device.
        let answer = begin(gateway, "", &to_device("tv"));
        recv_push(&mut tv);
        drop(tv);
        assert_counts(&answer.join().expect("an answer"), 200, &[("offline", 1)]);
        assert_quiet(&mut phone);

        // Groups and rooms.
        let to_group =
            |group: u64| push(gateway, &format!(r#"{{"to":{{"group":"{group}"}},"service":7,"payload":"aGk="}}"#));
        assert_counts(&to_group(5), 200, &[("denied", 1)]);
        assert_eq!(gateway.request_json("PUT", "/v1/groups/5", "{}").status, 201);
        assert_eq!(gateway.request_json("POST", "/v1/groups/5/members", r#"{"users":["1"]}"#).status, 200);
        assert_counts(&to_group(5), 200, &[("stored", 1)]);
        assert_eq!(recv_group(&mut phone, 5), b"hi");
        phone.write(&Frame { kind: kind::GROUP_JOIN, id: 3, peer: ROOM, ..Frame::default() });
        phone.recv_kind(kind::GROUP_OK);
        assert_counts(&to_group(ROOM), 200, &[("accepted", 1)]);
        assert_eq!(recv_group(&mut phone, ROOM), b"hi");

        assert_counts(&expiring.join().expect("an answer"), 200, &[("expired", 1)]);
        // The other one began before, so its time is over, too.
        let mut late = Client::login(gateway, 9);
        let frame = recv_push(&mut late);
        assert_eq!((frame.id, &frame.body[..], frame.flags & flag::REPLAY), (2, &b"hi"[..], flag::REPLAY));
        late.ack(&frame);
        late.recv_until_pong();

        // All who are there, and some of them.
        let mut all = [(phone, true), (other, true), (late, true), (device(gateway, 3, "", "screen"), true)];
        push_to_sessions(gateway, r#"{"all":true}"#, &mut all);
        (all[2].1, all[3].1) = (false, false);
        push_to_sessions(gateway, r#"{"where":{"class":["phone","none"]}}"#, &mut all);
        all[1].1 = false;
        push_to_sessions(gateway, &format!(r#"{{"where":{{"group":"{ROOM}","percent":100}}}}"#), &mut all);
        assert_known_again(gateway, &mut all[0].0);
        let unknown = http::request(push_address(gateway), "GET", "/v1/pushes/77").expect("an answer");
        assert_eq!(unknown.status, 404, "{}", unknown.body);
        assert_books(gateway);
    });
}

/// A push to all under a key is begun once.
fn assert_known_again(gateway: &Gateway, client: &mut Client) {
    let (key, body) = ("Idempotency-Key: news\r\n", r#"{"to":{"all":true},"service":7,"payload":"aGk="}"#);
    let ask = |body: &str| post(push_address(gateway), "/v1/push", key, body);
    let first = ask(body);
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    wait_for_end(gateway, &id);
    let again = ask(body);
    assert_eq!((first.status, again.status, &again.json()["id"]), (202, 202, &id.clone().into()));
    assert_eq!(ask(&body.replace("aGk=", "aG8=")).status, 409);
    recv_push(client);
    assert_quiet(client);
    let stopped = http::request(push_address(gateway), "DELETE", &format!("/v1/pushes/{id}")).expect("an answer");
    assert_eq!((stopped.status, &stopped.json()["state"]), (200, &"done".into()), "it was over");
}

#[test]
fn each_target_needs_its_own_scope() {
    let scopes =
        [("user", Scope::PushUser), ("group", Scope::PushGroup), ("all", Scope::PushAll), ("ops", Scope::Kick)];
    let keys = scopes.map(|(name, scope)| NewKey::make(name, &[scope]).expect("a key"));
    let lines: String = keys.iter().map(|key| format!("{}\n", key.line)).collect();
    let file = ScratchFile::new("push-target-keys", lines);
    let flags: Vec<&str> = WITH_PUSHES.iter().copied().chain(["--api-keys-file", file.path()]).collect();
    with_gateway(1, &flags, |gateway| {
        let address = push_address(gateway);
        let ask = |key: &NewKey, to: &str| -> Response {
            let headers = format!("Authorization: Bearer {}\r\n", key.key);
            post(address, "/v1/push", &headers, &format!(r#"{{"to":{to},"service":7,"payload":""}}"#))
        };
        let targets =
            [r#"{"user":"1"}"#, r#"{"device":{"user":"1","device":"d"}}"#, r#"{"group":"5"}"#, r#"{"all":true}"#];
        let expected = [[200, 200, 403, 403], [403, 403, 200, 403], [403, 403, 403, 202], [403, 403, 403, 403]];
        for (key, statuses) in keys.iter().zip(expected) {
            assert_eq!(targets.map(|to| ask(key, to).status), statuses);
        }
        let refused = ask(&keys[0], targets[3]);
        assert!(refused.body.contains("push:all"), "{}", refused.body);
        for (key, status) in keys.iter().zip([403, 403, 404, 403]) {
            let headers = format!("Authorization: Bearer {}\r\n", key.key);
            let asked = ["GET", "DELETE"].map(|method| http::request_with(address, method, "/v1/pushes/77", &headers));
            assert_eq!(asked.map(|answer| answer.expect("an answer").status), [status; 2]);
        }
        // A line of a batch for which the key has no scope is refused by itself.
        let headers = format!("Authorization: Bearer {}\r\nContent-Type: application/x-ndjson\r\n", keys[0].key);
        let lines = targets.map(|to| format!("{{\"to\":{to},\"service\":7,\"payload\":\"\"}}\n")).concat();
        let answer = post(address, "/v1/push/batch", &headers, &lines);
        let statuses = answer.body.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let statuses: Vec<Option<u64>> = statuses.map(|line| line["error"]["status"].as_u64()).collect();
        assert_eq!(statuses, [None, None, Some(403), Some(403)]);
        assert_books(gateway);
    });
}
