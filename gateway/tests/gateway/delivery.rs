//! SEND, DELIVER, ACK and SENT between users.

use crate::support::bystanders::Bystanders;
use crate::support::client::Client;
use crate::support::gateway::{with_each_gateway, with_gateway};
use crate::support::names::{metric, outcome_label};
use crate::support::random::Random;
use crate::support::wire::{self, FRAME_BYTES_MAX, Frame, HEADER_LONG, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, SHARD_COUNTS};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[test]
fn a_message_without_ack_is_delivered_and_not_answered() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 1_000);
        for user in 1..=8 {
            let mut sender = Client::login(gateway, user);
            sender.write(&wire::send(user * 7, 1_000, 0, b"hello"));
            let deliver = recipient.recv_deliver();
            let expected = Frame {
                kind: kind::DELIVER,
                id: user * 7,
                peer: user,
                stamp: deliver.stamp,
                body: b"hello".to_vec(),
                ..Frame::default()
            };
            assert_eq!(deliver, expected);
            recipient.send_barrier(&mut sender, user);
            sender.ping();
        }
        recipient.ping();
    });
}

#[test]
fn an_ack_becomes_exactly_one_sent() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 1_000);
        for user in 1..=8 {
            let mut sender = Client::login(gateway, user);
            let id = u64::MAX - user;
            sender.write(&wire::send(id, 1_000, flag::ACK, b"with ACK"));
            let deliver = recipient.recv_deliver();
            let expected = Frame {
                kind: kind::DELIVER,
                flags: flag::ACK,
                id,
                peer: user,
                stamp: deliver.stamp,
                body: b"with ACK".to_vec(),
                ..Frame::default()
            };
            assert_eq!(deliver, expected);
            // No SENT before the ACK, however often the recipient is heard of.
            recipient.send_barrier(&mut sender, user);
            recipient.ack(&deliver);
            recipient.ack(&deliver);
            sender.expect_sent(id, 1_000, outcome::DELIVERED);
            recipient.send_barrier(&mut sender, user);
            sender.ping();
        }
        gateway.wait_for_metrics("eight acknowledged messages", |metrics| {
            metrics.outcome(outcome_label::ACKNOWLEDGED) == 8
        });
    });
}

#[test]
fn an_ack_of_nothing_does_no_harm() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let id = sender.send(2, flag::ACK, b"real");
        let deliver = recipient.recv_deliver();
        let wrong = [
            Frame { stamp: deliver.stamp + 1, ..deliver.clone() },
            Frame { stamp: 0, ..deliver.clone() },
            Frame { stamp: u64::MAX, ..deliver.clone() },
        ];
        for frame in &wrong {
            recipient.ack(frame);
        }
        let answers = recipient.recv_until_pong();
        assert!(
            answers.iter().all(|answer| answer.kind == kind::ERROR && answer.aux == code::BAD_REQUEST),
            "{answers:?}"
        );
        recipient.send_barrier(&mut sender, 1);
        sender.ping();
        recipient.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        // The ACK of somebody it was not sent to.
        let other = sender.send(2, flag::ACK, b"mine to acknowledge");
        let deliver = recipient.recv_deliver();
        let mut stranger = Client::login(gateway, 3);
        stranger.ack(&deliver);
        stranger.recv_until_pong();
        stranger.send_barrier(&mut sender, 1);
        sender.ping();
        recipient.ack(&deliver);
        sender.expect_sent(other, 2, outcome::DELIVERED);
    });
}

#[test]
fn deliver_carries_no_flag_of_the_sender_but_ack() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        for flags in (0..=u8::MAX).filter(|flags| flags & flag::ACK == 0) {
            sender.send(2, flags, b"no ACK");
            assert_eq!(recipient.recv_deliver().flags, 0, "SEND with flags {flags:#04x}");
        }
        // Of what may have been sent before (RETRY) nobody knows whether an earlier life of the gateway has given it.
        let again = flag::ACK | flag::AGAIN;
        for (flags, given) in [(flag::ACK, flag::ACK), (flag::ACK | flag::NO_STORE, flag::ACK), (0xff, again)] {
            let id = sender.send(2, flags, b"ACK");
            let deliver = recipient.recv_deliver();
            assert_eq!(deliver.flags, given, "SEND with flags {flags:#04x}");
            recipient.ack(&deliver);
            sender.expect_sent(id, 2, outcome::DELIVERED);
        }
    });
}

#[test]
fn a_send_may_be_split_at_any_byte() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let bytes_of = |id: usize| wire::send(id as u64, 1_000, 0, b"split here").encode();
        let length = bytes_of(0).len();
        let mut recipient = Client::login(gateway, 1_000);
        let mut senders: Vec<Client> = (1..length).map(|split| Client::login(gateway, split as u64)).collect();
        for (split, sender) in (1..length).zip(&mut senders) {
            sender.write_bytes(&bytes_of(split)[..split]);
        }
        // Long enough for the server to take up the first parts; only what is covered depends on it.
        std::thread::sleep(Duration::from_millis(20));
        for (split, sender) in (1..length).zip(&mut senders) {
            sender.write_bytes(&bytes_of(split)[split..]);
        }
        let mut seen = HashSet::new();
        for _ in 1..length {
            let deliver = recipient.recv_deliver();
            assert_eq!((deliver.id, deliver.body.as_slice()), (deliver.peer, b"split here".as_slice()));
            assert!(seen.insert(deliver.peer), "two messages from {}", deliver.peer);
        }
        recipient.ping();
    });
}

#[test]
fn a_stream_cut_at_random_places_is_understood() {
    const FRAMES: u64 = 300;
    // The sender does not wait for the recipient, so the outbox must hold all of it.
    let flags = ["--outbox-bytes-max", "4194304"];
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let mut random = Random::seeded(4);
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let bodies: Vec<Vec<u8>> = (0..FRAMES)
            .map(|_| {
                let length = if random.below(10) == 0 { random.below(20_000) } else { random.below(200) };
                random.bytes(length)
            })
            .collect();
        let stream: Vec<u8> =
            (1..=FRAMES).zip(&bodies).flat_map(|(id, body)| wire::send(id, 2, 0, body).encode()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = stream.as_slice();
                while !rest.is_empty() {
                    let longest = if random.below(4) == 0 { 30_000 } else { 40 };
                    let (part, after) = rest.split_at((1 + random.below(longest)).min(rest.len()));
                    sender.write_bytes(part);
                    rest = after;
                }
            });
            for (id, body) in (1..=FRAMES).zip(&bodies) {
                let deliver = recipient.recv_deliver();
                assert_eq!(deliver.id, id);
                assert!(deliver.body == *body, "the body of message {id} has changed");
            }
        });
    });
}

#[test]
fn the_longest_frame_passes_and_one_byte_more_does_not() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut random = Random::seeded(5);
        let mut bystanders = Bystanders::new(gateway);
        let mut recipient = Client::login(gateway, 1_000);
        for user in 1..=3 {
            let mut sender = Client::login(gateway, user);
            let longest = random.bytes(FRAME_BYTES_MAX - HEADER_LONG);
            // Two behind each other: the second does not start where a buffer starts.
            for id in [1, 2] {
                sender.write(&wire::send(id, 1_000, flag::ACK, &longest));
            }
            for id in [1, 2] {
                let deliver = recipient.recv_deliver();
                assert!(deliver.id == id && deliver.body == longest, "message {id} has changed");
                recipient.ack(&deliver);
                sender.expect_sent(id, 1_000, outcome::DELIVERED);
            }
            let too_long = vec![0; FRAME_BYTES_MAX - HEADER_LONG + 1];
            sender.write_while_open(&wire::send(3, 1_000, flag::ACK, &too_long).encode());
            sender.expect_bye(code::FRAME_TOO_LARGE);
        }
        recipient.ping();
        bystanders.talk();
    });
}

#[test]
fn any_payload_arrives_unchanged() {
    with_gateway(2, &[], |gateway| {
        let mut random = Random::seeded(6);
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        // Around the sizes of a receive buffer and of a page, where a mistake in assembling frames shows.
        let sizes = (0..70).chain([1_000, 2_047, 2_048, 4_063, 4_064, 4_065, 4_095, 4_096, 4_097]);
        for size in sizes.chain([8_160, 8_192, 16_384, 32_768, 65_503, 65_504]) {
            let body = random.bytes(size);
            let id = sender.send(2, 0, &body);
            let deliver = recipient.recv_deliver();
            assert!(deliver.id == id && deliver.body == body, "a payload of {size} bytes has changed");
        }
    });
}

#[test]
fn messages_of_one_sender_stay_in_order() {
    const SENDERS: u64 = 5;
    const MESSAGES: u64 = 400;
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 1_000);
        let mut senders: Vec<Client> = (1..=SENDERS).map(|user| Client::login(gateway, user)).collect();
        for (user, sender) in (1..=SENDERS).zip(&mut senders) {
            // With and without ACK in one stream: they share the order.
            let stream: Vec<u8> = (1..=MESSAGES)
                .flat_map(|id| wire::send(id, 1_000, (id % 10 == 0).into(), &user.to_be_bytes()).encode())
                .collect();
            sender.write_bytes(&stream);
        }
        let mut next_ids: HashMap<u64, u64> = (1..=SENDERS).map(|user| (user, 1)).collect();
        let mut stamp = 0;
        for _ in 0..SENDERS * MESSAGES {
            let deliver = recipient.recv_deliver();
            assert!(deliver.stamp > stamp, "stamp {} after {stamp}", deliver.stamp);
            stamp = deliver.stamp;
            assert_eq!(deliver.body, deliver.peer.to_be_bytes());
            let next_id = next_ids.get_mut(&deliver.peer).expect("one of the senders");
            assert_eq!(deliver.id, *next_id, "from {}", deliver.peer);
            *next_id += 1;
            if deliver.flags & flag::ACK != 0 {
                recipient.ack(&deliver);
            }
        }
        for sender in &mut senders {
            for id in (10..=MESSAGES).step_by(10) {
                sender.expect_sent(id, 1_000, outcome::DELIVERED);
            }
            sender.ping();
        }
    });
}

#[test]
fn stamps_grow_over_reconnects_and_tell_the_time() {
    with_gateway(2, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut last = 0;
        for _ in 0..10 {
            let mut recipient = Client::login(gateway, 2);
            for _ in 0..10 {
                sender.send(2, 0, b"tick");
                let stamp = recipient.recv_deliver().stamp;
                assert!(stamp > last, "stamp {stamp} after {last}");
                last = stamp;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        let distance_ms = (last >> 20).abs_diff(now.as_millis() as u64);
        assert!(distance_ms < 60_000, "the last stamp is {distance_ms} ms from now");
    });
}

#[test]
fn everybody_reaches_everybody() {
    for (shards, users) in [(1, 12), (2, 12), (4, 24), (56, 40)] {
        with_gateway(shards, &[], |gateway| {
            let mut clients: Vec<Client> = (1..=users).map(|user| Client::login(gateway, user)).collect();
            for client in &mut clients {
                for user in 1..=users {
                    client.send(user, 0, b"to all");
                }
            }
            for (user, client) in (1..=users).zip(&mut clients) {
                let others = (1..=users).filter(|other| *other != user);
                let heard: HashSet<u64> = others.clone().map(|_| client.recv_deliver().peer).collect();
                assert_eq!(heard, others.collect(), "user {user} heard of");
                client.ping();
            }
        });
    }
}

#[test]
fn a_message_with_ack_to_an_offline_user_is_refused() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        for user in 2..=9 {
            let id = sender.send(user, flag::ACK, b"anyone?");
            sender.expect_sent(id, user, outcome::OFFLINE_NOT_STORED);
        }
        sender.ping();
        gateway
            .wait_for_metrics("eight refused messages", |metrics| metrics.outcome(outcome_label::OFFLINE_REFUSED) == 8);
    });
}

#[test]
fn a_message_without_ack_to_an_offline_user_is_dropped_and_counted() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        for user in 2..=9 {
            sender.send(user, 0, b"anyone?");
        }
        sender.ping();
        gateway
            .wait_for_metrics("eight dropped messages", |metrics| metrics.outcome(outcome_label::OFFLINE_DROPPED) == 8);
        // It is not stored: whoever comes later does not get it.
        let mut late = Client::login(gateway, 2);
        sender.send_barrier(&mut late, 2);
        sender.ping();
    });
}

#[test]
fn a_recipient_who_leaves_before_its_ack_did_not_get_the_message() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        type Leave = fn(Client);
        let ways: [Leave; 3] = [
            drop,
            |client| client.reset(),
            |mut client| {
                client.write(&wire::logout());
                client.expect_closed();
            },
        ];
        for (user, leave) in (2..).zip(ways) {
            let mut recipient = Client::login(gateway, user);
            let ids = [0; 3].map(|_| sender.send(user, flag::ACK, b"wait for me"));
            for _ in ids {
                recipient.recv_deliver();
            }
            sender.ping();
            leave(recipient);
            for id in ids {
                sender.expect_sent(id, user, outcome::OFFLINE_NOT_STORED);
            }
            gateway.wait_for_presence(user, false);
            // It is forgotten: the next session does not get it.
            let mut again = Client::login(gateway, user);
            sender.send_barrier(&mut again, user);
            sender.ping();
        }
    });
}

#[test]
fn a_sender_who_leaves_does_not_take_its_message_along() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let mut sender = Client::login(gateway, 1);
        sender.send(2, flag::ACK, b"I am off");
        let deliver = recipient.recv_deliver();
        drop(sender);
        gateway.wait_for_presence(1, false);
        recipient.ack(&deliver);
        recipient.ping();
        // The SENT belonged to the old session.
        let mut again = Client::login(gateway, 1);
        recipient.send_barrier(&mut again, 1);
    });
}

#[test]
fn a_message_without_its_ack_is_sent_again() {
    with_each_gateway(ONE_AND_MANY, &["--redeliver-secs", "1"], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let id = sender.send(2, flag::ACK, b"once more");
        let first = recipient.recv_deliver();
        assert_eq!(first.flags, flag::ACK);
        let second = recipient.recv_deliver();
        assert_eq!(second, Frame { flags: flag::ACK | flag::AGAIN, ..first });
        recipient.ack(&second);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        recipient.send_barrier(&mut sender, 1);
        sender.ping();
        recipient.ping();
    });
}

#[test]
fn a_message_that_is_never_acknowledged_is_given_up_once() {
    with_gateway(2, &["--redeliver-secs", "1"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let id = sender.send(2, flag::ACK, b"hello?");
        let first = recipient.recv_deliver();
        sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
        for again in recipient.recv_until_pong() {
            assert_eq!(again, Frame { flags: flag::ACK | flag::AGAIN, ..first.clone() });
        }
        // Too late.
        recipient.ack(&first);
        recipient.recv_until_pong();
        recipient.send_barrier(&mut sender, 1);
        sender.ping();
        bystanders.talk();
    });
}

#[test]
fn a_send_without_id_or_peer_is_a_bad_request() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        for flags in [0, flag::ACK] {
            for (id, peer) in [(0, 2), (7, 0), (0, 0)] {
                sender.write(&wire::send(id, peer, flags, b"?"));
                sender.expect_error(code::BAD_REQUEST, id, peer);
            }
        }
        sender.exchange(&mut recipient, 2, b"the session goes on");
        gateway.wait_for_metrics("one message, for a bad request is none", |metrics| {
            metrics.sum(metric::MESSAGES_RECEIVED, &[]) == 1
        });
    });
}
