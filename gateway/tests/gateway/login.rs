//! LOGIN: what it answers, what it refuses, and that it makes no difference how its bytes arrive.

use crate::support::bystanders::Bystanders;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::reason_label;
use crate::support::wire::{self, FRAME_BYTES_MAX, Frame, Login, LoginOk, USER_MAX, code, flag, kind};
use crate::support::{ONE_AND_MANY, SHARD_COUNTS};
use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Long enough for the server to take up what has arrived. Only what a test covers depends on it, never its result.
const SEGMENT_PAUSE: Duration = Duration::from_millis(20);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    since.as_millis() as u64
}

#[test]
fn login_ok_describes_the_session() {
    for &shards in SHARD_COUNTS {
        with_gateway(shards, &[], |gateway| {
            let mut sessions = HashSet::new();
            for user in 1..=20 {
                let before_ms = now_ms();
                let (mut client, login_ok) = Client::login_with(gateway, &Login::of(user));
                let clock = before_ms - 1_000..=now_ms() + 1_000;
                assert!(clock.contains(&login_ok.time_ms), "{login_ok:?}, clock {clock:?}");
                assert_ne!(login_ok.session, 0);
                assert!(sessions.insert(login_ok.session), "session {} twice", login_ok.session);
                assert!(!login_ok.node.is_empty());
                assert!(login_ok.shard < u64::from(shards), "{login_ok:?}");
                assert_eq!(login_ok.max_frame, FRAME_BYTES_MAX as u64);
                assert_eq!(login_ok.pending, 0);
                assert_eq!(login_ok.resumed, 0);
                assert!((1..=600).contains(&login_ok.heartbeat_secs), "{login_ok:?}");
                client.ping();
            }
        });
    }
}

#[test]
fn a_user_always_has_the_same_home_shard() {
    with_gateway(4, &[], |gateway| {
        let mut shards = HashSet::new();
        for user in 1..=40 {
            let (_first, first_ok) = Client::login_with(gateway, &Login::of(user).device("a"));
            let (_second, second_ok) = Client::login_with(gateway, &Login::of(user).device("b"));
            assert_eq!(first_ok.shard, second_ok.shard, "devices of user {user}");
            shards.insert(first_ok.shard);
        }
        assert_eq!(shards.len(), 4, "40 users live on the shards {shards:?}");
    });
}

#[test]
fn login_may_be_split_at_any_byte() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let bytes_of = |user: u64| {
            let login = Login { agent: "split".to_owned(), ..Login::of(user).device("phone") };
            login.frame().encode()
        };
        let length = bytes_of(100).len();
        let mut clients: Vec<Client> = (1..length).map(|_| Client::connect(gateway)).collect();
        for (split, client) in (1..length).zip(&mut clients) {
            client.write_bytes(&bytes_of(100 + split as u64)[..split]);
        }
        std::thread::sleep(SEGMENT_PAUSE);
        for (split, client) in (1..length).zip(&mut clients) {
            client.write_bytes(&bytes_of(100 + split as u64)[split..]);
        }
        for client in &mut clients {
            client.expect_login_ok();
            client.ping();
        }
        Bystanders::new(gateway);
    });
}

#[test]
fn a_conversation_may_arrive_byte_by_byte() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let mut sender = Client::connect(gateway);
        let mut stream = Login::of(1).frame().encode();
        stream.extend(wire::send(7, 2, flag::ACK, b"byte by byte").encode());
        stream.extend(wire::ping(99).encode());
        for byte in stream {
            sender.write_bytes(&[byte]);
            std::thread::sleep(Duration::from_micros(500));
        }
        sender.expect_login_ok();
        let deliver = recipient.recv_deliver();
        assert_eq!(deliver.body, b"byte by byte");
        assert_eq!(sender.recv_kind(kind::PONG).aux, 99);
        recipient.ack(&deliver);
        sender.expect_sent(7, 2, wire::outcome::DELIVERED);
    });
}

#[test]
fn login_and_send_may_share_a_segment() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 1_000);
        // Many users, so that with several shards some are handed over and some stay.
        for user in 1..=12 {
            let mut sender = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            segment.extend(wire::send(user, 1_000, flag::ACK, b"behind LOGIN").encode());
            sender.write_bytes(&segment);
            let deliver = recipient.recv_deliver();
            assert_eq!((deliver.peer, deliver.id), (user, user));
            recipient.ack(&deliver);
            sender.expect_login_ok();
            sender.expect_sent(user, 1_000, wire::outcome::DELIVERED);
        }
    });
}

#[test]
fn login_split_behind_which_a_message_is_split_too() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let stream_of = |user: u64| {
            let mut stream = Login::of(user).frame().encode();
            stream.extend(wire::send(user, 1_000, 0, b"two parts").encode());
            stream
        };
        let length = stream_of(100).len();
        let mut recipient = Client::login(gateway, 1_000);
        let mut clients: Vec<Client> = (1..length).map(|_| Client::connect(gateway)).collect();
        for (split, client) in (1..length).zip(&mut clients) {
            client.write_bytes(&stream_of(100 + split as u64)[..split]);
        }
        std::thread::sleep(SEGMENT_PAUSE);
        for (split, client) in (1..length).zip(&mut clients) {
            client.write_bytes(&stream_of(100 + split as u64)[split..]);
        }
        let mut senders = HashSet::new();
        for _ in 1..length {
            let deliver = recipient.recv_deliver();
            assert_eq!((deliver.id, deliver.body.as_slice()), (deliver.peer, b"two parts".as_slice()));
            assert!(senders.insert(deliver.peer), "two messages from {}", deliver.peer);
        }
        for client in &mut clients {
            client.expect_login_ok();
            client.ping();
        }
        recipient.ping();
    });
}

#[test]
fn two_thousand_frames_behind_login_arrive_in_order() {
    const FRAMES: u64 = 2_000;
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        // Two senders, so that with several shards it is unlikely that neither is handed over.
        for user in [1, 2] {
            let mut recipient = Client::login(gateway, 1_000);
            let mut sender = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            for id in 1..=FRAMES {
                segment.extend(wire::send(id, 1_000, 0, b"").encode());
            }
            // Loopback has a maximum segment of 65,483 bytes, so this is one.
            assert!(segment.len() < 65_000);
            sender.write_bytes(&segment);
            let mut stamp = 0;
            for id in 1..=FRAMES {
                let deliver = recipient.recv_deliver();
                assert_eq!((deliver.id, deliver.peer), (id, user));
                assert!(deliver.stamp > stamp, "stamp {} after {stamp}", deliver.stamp);
                stamp = deliver.stamp;
            }
            sender.expect_login_ok();
            sender.ping();
            recipient.ping();
        }
    });
}

#[test]
fn the_heartbeat_is_the_wish_within_the_limits() {
    let flags = ["--heartbeat-secs-min", "10", "--heartbeat-secs-max", "40", "--heartbeat-secs", "20"];
    with_gateway(1, &flags, |gateway| {
        let granted = |wish: u32| {
            let login = Login::of(1).heartbeat_secs(wish);
            Client::login_with(gateway, &login).1.heartbeat_secs
        };
        assert_eq!(granted(0), 20, "no wish");
        assert_eq!(granted(9), 10);
        assert_eq!(granted(10), 10);
        assert_eq!(granted(33), 33);
        assert_eq!(granted(40), 40);
        assert_eq!(granted(41), 40);
        assert_eq!(granted(u32::MAX), 40);
    });
}

fn assert_refused(gateway: &Gateway, first_frame: &Frame, reason: u16) {
    let mut client = Client::connect(gateway);
    client.write(first_frame);
    client.expect_bye(reason);
}

#[test]
fn another_version_is_refused() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for version in [0, 2, 3, u32::MAX] {
            let login = Login { version, ..Login::of(1) };
            assert_refused(gateway, &login.frame(), code::UNSUPPORTED_VERSION);
        }
        bystanders.talk();
    });
}

#[test]
fn a_login_with_a_field_out_of_range_is_refused() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        assert_refused(gateway, &Login::of(0).frame(), code::BAD_REQUEST);
        let device_of_65_bytes = "d".repeat(65);
        assert_refused(gateway, &Login::of(1).device(&device_of_65_bytes).frame(), code::BAD_REQUEST);
        // The bound is in bytes, not characters.
        let device_of_66_bytes = "語".repeat(22);
        assert_refused(gateway, &Login::of(1).device(&device_of_66_bytes).frame(), code::BAD_REQUEST);
        bystanders.talk();
    });
}

#[test]
fn fields_at_the_edge_of_their_range_are_accepted() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut longest_device = Client::login_with(gateway, &Login::of(1).device(&"d".repeat(64))).0;
        let mut largest_user = Client::login(gateway, USER_MAX);
        longest_device.exchange(&mut largest_user, USER_MAX, b"edge to edge");
        largest_user.exchange(&mut longest_device, 1, b"and back");
    });
}

#[test]
fn a_login_that_is_no_message_is_refused() {
    let mut truncated = Login::of(1).device("phone").body();
    truncated.pop();
    let mut device_is_not_text = Login::of(1).body();
    device_is_not_text.extend([4 << 3 | 2, 2, 0xff, 0xfe]);
    let endless_varint = vec![0xff; 16];
    let user_is_a_string = vec![1 << 3, 1, 2 << 3 | 2, 1, b'1'];
    let length_beyond_the_end = vec![3 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let bodies = [truncated, device_is_not_text, endless_varint, user_is_a_string, length_beyond_the_end];
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for body in &bodies {
            assert_refused(gateway, &wire::login_with_body(body.clone()), code::BAD_REQUEST);
        }
        bystanders.talk();
    });
}

#[test]
fn fields_of_a_later_protocol_are_ignored() {
    with_gateway(1, &[], |gateway| {
        let mut body = Login::of(1).body();
        // Field 1000 with a string, field 1001 with a number.
        body.extend([0xc2, 0x3e, 3, b'n', b'e', b'w', 0xc8, 0x3e, 7]);
        let mut client = Client::connect(gateway);
        client.write(&Frame { flags: 0xff, aux: 0xffff, ..wire::login_with_body(body) });
        client.expect_login_ok();
        client.ping();
    });
}

#[test]
fn any_first_frame_but_login_ends_the_connection() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut recipient = Client::login(gateway, 2);
        assert_refused(gateway, &wire::send(1, 2, flag::ACK, b"early"), code::NOT_LOGGED_IN);
        for other in [kind::ACK, kind::CALL, kind::GROUP_SEND, kind::CLAIM, kind::GROUP_JOIN] {
            let frame = Frame { kind: other, id: 1, peer: 2, ..Frame::default() };
            assert_refused(gateway, &frame, code::NOT_LOGGED_IN);
        }
        for other in [kind::PING, kind::SYNC, kind::WATCH, kind::UNWATCH, kind::LOGOUT] {
            let frame = Frame { kind: other, ..Frame::default() };
            assert_refused(gateway, &frame, code::NOT_LOGGED_IN);
        }
        // LOGIN behind it does not help.
        let mut late = Client::connect(gateway);
        let mut segment = wire::ping(1).encode();
        segment.extend(Login::of(3).frame().encode());
        late.write_bytes(&segment);
        late.expect_bye(code::NOT_LOGGED_IN);
        recipient.ping();
        bystanders.talk();
    });
}

#[test]
fn a_second_login_is_an_error_and_the_session_goes_on() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut peer = Client::login(gateway, 2);
        client.write(&Login::of(1).frame());
        client.expect_error(code::ALREADY_LOGGED_IN, 0, 0);
        client.write(&Login::of(3).frame());
        client.expect_error(code::ALREADY_LOGGED_IN, 0, 0);
        client.exchange(&mut peer, 2, b"still user 1");
        peer.exchange(&mut client, 1, b"indeed");
        gateway.wait_for_presence(3, false);
    });
}

#[test]
fn two_logins_in_one_segment_make_one_session() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        for user in 1..=8 {
            let mut client = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            segment.extend(Login::of(user + 100).frame().encode());
            client.write_bytes(&segment);
            LoginOk::parse(&client.recv());
            client.expect_error(code::ALREADY_LOGGED_IN, 0, 0);
            client.ping();
        }
    });
}

#[test]
fn logout_closes_after_what_was_sent_before_it() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let mut client = Client::login(gateway, 1);
        let mut segment = wire::send(1, 2, 0, b"last words").encode();
        segment.extend(wire::logout().encode());
        segment.extend(wire::send(2, 2, 0, b"too late").encode());
        client.write_bytes(&segment);
        client.expect_closed();
        assert_eq!(recipient.recv_deliver().body, b"last words");
        recipient.ping();
        gateway.wait_for_presence(1, false);
        gateway.wait_for_metrics("one logout", |metrics| metrics.closed(reason_label::LOGOUT) == 1);
    });
}

#[test]
fn login_and_logout_in_one_segment() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        for user in 1..=8 {
            let mut client = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            segment.extend(wire::logout().encode());
            client.write_bytes(&segment);
            client.expect_login_ok();
            client.expect_closed();
            gateway.wait_for_presence(user, false);
        }
    });
}
