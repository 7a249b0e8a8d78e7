//! Bytes no honest client sends. The connection they come on gets the documented code; everybody else goes on.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::{metric, outcome_label};
use crate::support::random::Random;
use crate::support::wire::{self, FRAME_BYTES_MAX, Frame, HEADER_LONG, HEADER_SHORT, Login, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, PATIENCE, SHARD_COUNTS};

/// A frame header that says this length.
fn header(length: u32, frame_kind: u8) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend([frame_kind, 0, 0, 0]);
    bytes
}

/// A length no frame may have, and the code it earns.
fn bad_lengths() -> Vec<(u32, u16)> {
    let too_small = (0..HEADER_SHORT as u32).map(|length| (length, code::MALFORMED_FRAME));
    let too_large = [FRAME_BYTES_MAX as u32 + 1, 0x00ff_ffff, 0x0100_0000, 0x7fff_ffff, u32::MAX]
        .map(|length| (length, code::FRAME_TOO_LARGE));
    too_small.chain(too_large).collect()
}

/// What the server may say before it closes a connection that never logged in: one BYE with one of these reasons.
fn assert_closed_by_one_bye_at_most(client: &mut Client, reasons: &[u16]) {
    let frames = client.recv_until_closed();
    assert!(frames.len() <= 1, "{frames:?}");
    for frame in frames {
        assert_eq!(frame.kind, kind::BYE);
        assert!(reasons.contains(&frame.aux), "{frame:?}, expected one of {reasons:?}");
    }
}

#[test]
fn impossible_lengths_after_login_end_the_connection() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for (length, reason) in bad_lengths() {
            // The length alone is enough to judge.
            let mut client = Client::login(gateway, 1);
            client.write_bytes(&length.to_be_bytes());
            client.expect_bye(reason);
            // And what follows it changes nothing.
            let mut client = Client::login(gateway, 1);
            client.write_while_open(&header(length, kind::SEND));
            client.write_while_open(&[0; 1_000]);
            client.expect_bye(reason);
        }
        bystanders.talk();
    });
}

#[test]
fn impossible_lengths_before_login_end_the_connection() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for (length, reason) in bad_lengths() {
            for further in [0, 4, 1_000] {
                let mut client = Client::connect(gateway);
                client.write_while_open(&length.to_be_bytes());
                client.write_while_open(&vec![kind::LOGIN; further]);
                if length >> 24 == 0 {
                    client.expect_bye(reason);
                } else {
                    // Such a first byte is no native frame: the server may close without a word.
                    assert_closed_by_one_bye_at_most(&mut client, &[reason]);
                }
            }
        }
        bystanders.talk();
    });
}

#[test]
fn frames_shorter_than_the_header_of_their_kind_are_malformed() {
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let long_kinds =
            [kind::SEND, kind::ACK, kind::CALL, kind::GROUP_SEND, kind::GROUP_JOIN, kind::GROUP_LEAVE, kind::CLAIM];
        for frame_kind in long_kinds {
            for length in [HEADER_SHORT, HEADER_SHORT + 1, 24, HEADER_LONG - 1] {
                let mut client = Client::login(gateway, 1);
                let mut bytes = header(length as u32, frame_kind);
                bytes.resize(length, 0x55);
                client.write_bytes(&bytes);
                client.expect_bye(code::MALFORMED_FRAME);
            }
        }
        bystanders.talk();
    });
}

#[test]
fn what_came_before_a_bad_frame_still_counts() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        for user in 11..=16 {
            let mut client = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            segment.extend(wire::send(1, 2, 0, b"good").encode());
            segment.extend(wire::ping(5).encode());
            segment.extend(header(3, kind::PING));
            segment.extend(wire::send(2, 2, 0, b"behind the bad one").encode());
            client.write_bytes(&segment);
            client.expect_login_ok();
            assert_eq!(client.recv_kind(kind::PONG).aux, 5);
            client.expect_bye(code::MALFORMED_FRAME);
            let deliver = recipient.recv_deliver();
            assert_eq!((deliver.peer, deliver.body.as_slice()), (user, b"good".as_slice()));
        }
        recipient.ping();
    });
}

#[test]
fn random_bytes_before_login_end_the_connection() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut random = Random::seeded(7);
        let mut bystanders = Bystanders::new(gateway);
        for round in 0..300 {
            let length = 1 + random.below(3_000);
            let mut bytes = random.bytes(length);
            // Half of them begin like a native frame of a possible length.
            if round % 2 == 0 {
                bytes.splice(..1.min(length), [0, 0]);
            }
            let mut client = Client::connect(gateway);
            client.write_while_open(&bytes);
            // The server may also wait for the rest of a frame; this is the end of it.
            client.shutdown_write_while_open();
            let reasons = [
                code::MALFORMED_FRAME,
                code::FRAME_TOO_LARGE,
                code::NOT_LOGGED_IN,
                code::UNSUPPORTED_VERSION,
                code::BAD_REQUEST,
            ];
            assert_closed_by_one_bye_at_most(&mut client, &reasons);
        }
        bystanders.talk();
    });
}

#[test]
fn random_bytes_after_login_end_the_connection() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut random = Random::seeded(8);
        let mut bystanders = Bystanders::new(gateway);
        for user in 1..=60 {
            let mut client = Client::login(gateway, user);
            let length = 4 + random.below(3_000);
            let bytes = random.bytes(length);
            let first_length = u32::from_be_bytes(*bytes.first_chunk().expect("at least four"));
            client.write_while_open(&bytes);
            assert!(first_length > FRAME_BYTES_MAX as u32, "choose another seed");
            client.expect_bye(code::FRAME_TOO_LARGE);
        }
        bystanders.talk();
    });
}

#[test]
fn random_frames_are_answered_frame_by_frame() {
    // Well-formed lengths around random kinds, flags, ids and bodies: each is understood, refused or skipped, and none
    // ends the connection but those the protocol says.
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut random = Random::seeded(9);
        let mut bystanders = Bystanders::new(gateway);
        for user in 1..=20 {
            let mut client = Client::login(gateway, user);
            let mut expected_errors = Vec::new();
            let mut stream = Vec::new();
            for _ in 0..100 {
                let frame = Frame {
                    kind: random.next() as u8,
                    flags: random.next() as u8 & !flag::ACK,
                    aux: random.next() as u16,
                    id: random.next(),
                    peer: random.next() | 1 << 63,
                    stamp: random.next(),
                    body: {
                        let length = 24 + random.below(300);
                        random.bytes(length)
                    },
                };
                let (id, peer) =
                    if wire::header_len(frame.kind) == HEADER_LONG { (frame.id, frame.peer) } else { (0, 0) };
                match frame.kind {
                    kind::LOGOUT => continue,
                    // These peers are live rooms, whose answers come from other shards; see `groups`.
                    kind::GROUP_SEND | kind::GROUP_JOIN | kind::GROUP_LEAVE | kind::MARK => continue,
                    // Whether such a body is a list of users is a matter of chance; see `watch`.
                    kind::WATCH | kind::UNWATCH => continue,
                    // A RENEW without a readable body is a bad request, and those are not looked at below.
                    kind::PING | kind::SEND | kind::ACK | kind::RENEW => {}
                    kind::LOGIN => expected_errors.push((code::ALREADY_LOGGED_IN, 0, 0)),
                    0x04..=0x0c => expected_errors.push((code::UNSUPPORTED, id, peer)),
                    // An unknown kind may have an id and a peer or not: they are not looked at below.
                    _ => expected_errors.push((code::UNKNOWN_KIND, 0, 0)),
                }
                stream.extend(frame.encode());
            }
            client.write_bytes(&stream);
            let answers = client.recv_until_pong();
            let errors: Vec<_> = answers
                .iter()
                .filter(|frame| frame.kind == kind::ERROR)
                // An ACK of nothing may be called a bad request.
                .filter(|frame| frame.aux != code::BAD_REQUEST)
                .map(|frame| match frame.aux {
                    code::UNKNOWN_KIND => (frame.aux, 0, 0),
                    _ => (frame.aux, frame.id, frame.peer),
                })
                .collect();
            assert_eq!(errors, expected_errors);
            assert!(answers.iter().all(|frame| matches!(frame.kind, kind::ERROR | kind::PONG)), "{answers:?}");
        }
        bystanders.talk();
    });
}

#[test]
fn a_stream_with_one_flipped_bit_harms_nobody() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut random = Random::seeded(10);
        let mut bystanders = Bystanders::new(gateway);
        let mut good = Login::of(1).device("phone").frame().encode();
        good.extend(wire::send(1, 2, flag::ACK, b"one flipped bit").encode());
        good.extend(wire::ping(1).encode());
        good.extend(wire::logout().encode());
        for _ in 0..300 {
            let mut bytes = good.clone();
            let bit = random.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut client = Client::connect(gateway);
            client.write_while_open(&bytes);
            client.shutdown_write_while_open();
            client.recv_until_closed();
        }
        bystanders.talk();
    });
}

#[test]
fn frames_cut_short_by_the_end_of_the_connection_do_nothing() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut recipient = Client::login(gateway, 1_000);
        let message = wire::send(1, 1_000, 0, b"cut short").encode();
        for cut in 1..message.len() {
            let mut client = Client::login(gateway, cut as u64);
            client.write_bytes(&message[..cut]);
            client.shutdown_write();
            client.expect_closed();
        }
        let login = Login::of(1).frame().encode();
        for cut in 0..login.len() {
            let mut client = Client::connect(gateway);
            client.write_bytes(&login[..cut]);
            client.shutdown_write();
            client.expect_closed();
        }
        recipient.ping();
        bystanders.talk();
    });
}

#[test]
fn a_half_open_connection_is_served_what_is_due() {
    const PINGS: u16 = 200;
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut recipient = Client::login(gateway, 1_000);
        for user in 1..=8 {
            let mut client = Client::connect(gateway);
            let mut segment = Login::of(user).frame().encode();
            segment.extend(wire::send(1, 1_000, 0, b"then silence").encode());
            segment.extend((0..PINGS).flat_map(|aux| wire::ping(aux).encode()));
            client.write_bytes(&segment);
            client.shutdown_write();
            client.expect_login_ok();
            for aux in 0..PINGS {
                assert_eq!(client.recv_kind(kind::PONG).aux, aux);
            }
            client.expect_closed();
            assert_eq!(recipient.recv_deliver().peer, user);
            gateway.wait_for_presence(user, false);
        }
        recipient.ping();
    });
}

#[test]
fn a_recipient_that_half_closes_has_left() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let id = sender.send(2, flag::ACK, b"no answer can come");
        recipient.recv_deliver();
        recipient.shutdown_write();
        recipient.expect_closed();
        sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
    });
}

/// Connections that end with a reset, each at another point of its life.
fn reset_everywhere(gateway: &Gateway, round: u64) {
    Client::connect(gateway).reset();
    let login = Login::of(10 + round).frame().encode();
    let mut in_login = Client::connect(gateway);
    in_login.write_bytes(&login[..login.len() / 2]);
    in_login.reset();
    // The reset races with the hand-over to the home shard.
    let mut behind_login = Client::connect(gateway);
    behind_login.write_bytes(&login);
    behind_login.reset();
    let mut with_message = Client::connect(gateway);
    let mut segment = Login::of(20 + round).frame().encode();
    segment.extend(wire::send(1, 900, flag::ACK, b"gone at once").encode());
    with_message.write_bytes(&segment);
    with_message.reset();
    Client::login(gateway, 30 + round).reset();
    let mut within_frame = Client::login(gateway, 40 + round);
    within_frame.write_bytes(&wire::send(1, 900, 0, &[0; 60_000]).encode()[..30_000]);
    within_frame.reset();
    let mut with_unread = Client::login(gateway, 50 + round);
    for _ in 0..20 {
        with_unread.write(&wire::ping(1));
    }
    with_unread.reset();
}

#[test]
fn resets_at_any_point_end_one_connection_each() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for round in 0..10 {
            reset_everywhere(gateway, round);
        }
        for user in 10..60 {
            gateway.wait_for_presence(user, false);
        }
        gateway.wait_for_metrics("only the bystanders are left", |metrics| metrics.sum(metric::OPEN, &[]) == 6);
        bystanders.talk();
    });
}

#[test]
fn a_recipient_that_is_reset_while_messages_come_leaves_nothing_behind() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut sender = Client::login(gateway, 1);
        for _ in 0..20 {
            let mut recipient = Client::login(gateway, 2);
            let ids = [0; 50].map(|_| sender.send(2, flag::ACK, &[1; 500]));
            recipient.recv_deliver();
            recipient.reset();
            // Each gets its one SENT, however the reset raced with it.
            for id in ids {
                sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
            }
            sender.ping();
        }
        gateway.wait_for_metrics("a thousand refused messages", |metrics| {
            metrics.outcome(outcome_label::OFFLINE_REFUSED) == 1_000
        });
        bystanders.talk();
    });
}

#[test]
fn other_protocols_are_closed_at_once() {
    let first_bytes: [&[u8]; 5] = [
        b"POST / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x10\x25\x00\x04MQTT\x04",
        b"\xff",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
    ];
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for bytes in first_bytes {
            let mut client = Client::connect(gateway);
            client.write_while_open(bytes);
            assert_closed_by_one_bye_at_most(&mut client, &[code::MALFORMED_FRAME, code::FRAME_TOO_LARGE]);
        }
        bystanders.talk();
    });
}

#[test]
fn a_client_that_ignores_its_bye_is_cut_off() {
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut client = Client::login(gateway, 1);
        client.write_bytes(&header(0, 0));
        assert_eq!(client.recv_kind(kind::BYE).aux, code::MALFORMED_FRAME);
        // It goes on writing, and does not close its side.
        for _ in 0..100 {
            client.write_while_open(&[0; 10_000]);
        }
        bystanders.talk();
        gateway.wait_for_metrics("only the bystanders are left", |metrics| metrics.sum(metric::OPEN, &[]) == 6);
        assert_eq!(client.read_event(PATIENCE), Event::Closed);
    });
}

#[test]
fn connections_that_come_and_go_without_a_word() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for _ in 0..5 {
            let silent: Vec<Client> = (0..100).map(|_| Client::connect(gateway)).collect();
            bystanders.talk();
            drop(silent);
        }
        gateway.wait_for_metrics("only the bystanders are left", |metrics| metrics.sum(metric::OPEN, &[]) == 6);
        bystanders.talk();
    });
}

#[test]
fn half_a_frame_of_the_longest_size_on_many_connections_is_bounded_memory() {
    const CONNECTIONS: u64 = 400;
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let before = gateway.memory_bytes("VmRSS");
        let mut clients: Vec<Client> = (1..=CONNECTIONS).map(|user| Client::login(gateway, user)).collect();
        let longest = wire::send(1, 900, 0, &vec![0; FRAME_BYTES_MAX - HEADER_LONG]).encode();
        for client in &mut clients {
            client.write_bytes(&longest[..longest.len() - 1]);
        }
        bystanders.talk();
        for client in &mut clients {
            client.write_bytes(&longest[longest.len() - 1..]);
            client.ping();
        }
        let growth = gateway.memory_bytes("VmHWM").saturating_sub(before);
        // 400 × 64 KiB, what a growing buffer leaves unused, and slack for the allocator.
        assert!(growth < 80 << 20, "grew by {growth} bytes");
        gateway.wait_for_metrics("no half frame is left", |metrics| metrics.sum(metric::PARTIAL_BYTES, &[]) == 0);
    });
}
