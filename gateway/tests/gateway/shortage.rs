//! Who causes a shortage pays for it, and a turn is fair: bursts, floods, readers that never read, users who never
//! acknowledge, strangers who never finish.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::{limit_label, metric, outcome_label, reason_label};
use crate::support::wire::{self, Frame, Login, code, flag, kind, outcome};
use crate::support::{PATIENCE, wait_for};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Writes these bytes on a thread of its own while `read` is called with the client, so that neither waits for the
/// other.
fn write_and_read<T>(client: &mut Client, bytes: &[u8], read: impl FnOnce(&mut Client) -> T) -> T {
    let mut writer = client.stream().try_clone().expect("a second handle of the connection");
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).expect("the gateway reads on"));
        read(client)
    })
}

fn burst(to: u64, count: u64, flags: u8, payload_bytes: usize) -> Vec<u8> {
    (1..=count).flat_map(|id| wire::send(id, to, flags, &vec![id as u8; payload_bytes]).encode()).collect()
}

#[test]
fn a_burst_to_a_reader_that_reads_arrives_whole_and_in_order() {
    for (count, payload_bytes) in [(2_000, 1_000), (2_000, 64)] {
        with_each_gateway(&[1, 2, 54], &[], |gateway| {
            let mut sender = Client::login(gateway, 1);
            let mut reader = Client::login(gateway, 2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for id in 1..=count {
                        let frame = reader.recv_deliver();
                        assert_eq!((frame.id, frame.body.len()), (id, payload_bytes));
                    }
                });
                sender.write_bytes(&burst(2, count, 0, payload_bytes));
            });
            let metrics = gateway.metrics();
            assert_eq!(metrics.outcome(outcome_label::DELIVERED), count);
            // It was more than one turn's worth.
            assert!(metrics.sum("trunkline_reads_behind_total", &[]) > 0);
        });
    }
}

#[test]
fn a_client_that_pipelines_and_reads_gets_every_answer() {
    const MESSAGES: u64 = 17_000;
    with_each_gateway(&[1, 2], &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        write_and_read(&mut client, &burst(999, MESSAGES, flag::ACK, 0), |client| {
            for id in 1..=MESSAGES {
                client.expect_sent(id, 999, outcome::OFFLINE_NOT_STORED);
            }
        });
        assert_eq!(gateway.metrics().closed(reason_label::TOO_SLOW), 0);
    });
}

#[test]
fn one_connection_has_its_part_of_a_turn_and_no_more() {
    const FRAMES: u64 = 100_000;
    const PER_TURN: u64 = 128;
    with_gateway(1, &["--frames-per-turn", "128"], |gateway| {
        let mut flooder = Client::login(gateway, 1);
        let turns_before = gateway.metrics().sum("trunkline_turns_total", &[]);
        flooder.write_bytes(&burst(999, FRAMES, 0, 0));
        flooder.ping();
        let metrics = gateway.metrics();
        assert_eq!(metrics.outcome(outcome_label::OFFLINE_DROPPED), FRAMES);
        let turns = metrics.sum("trunkline_turns_total", &[]) - turns_before;
        assert!(turns >= FRAMES / PER_TURN, "{FRAMES} frames of one connection in {turns} turns");
        assert!(metrics.limit_hits("turn_units") > 0);
    });
}

#[test]
fn what_a_client_sent_before_it_closed_is_handled_before_the_end() {
    const FRAMES: u64 = 20_000;
    with_each_gateway(&[1, 2], &["--frames-per-turn", "64"], |gateway| {
        let mut client = Client::login(gateway, 1);
        client.write_bytes(&burst(999, FRAMES, 0, 0));
        client.shutdown_write();
        client.expect_closed();
        gateway.wait_for_metrics("every message has its fate", |metrics| {
            metrics.outcome(outcome_label::OFFLINE_DROPPED) == FRAMES
        });
    });
}

/// Bytes that the kernel holds to be sent on each connection of this port, whatever its state: what it has not sent,
/// and what is not acknowledged.
fn kernel_send_queues(port: u16) -> Vec<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table of connections");
    let local = format!("0100007F:{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = rows.filter(|row| row[1] == local && row[3] != "0A");
    own.map(|row| usize::from_str_radix(row[4].split(':').next().expect("two queues"), 16).expect("hexadecimal"))
        .collect()
}

#[test]
fn a_reader_that_never_reads_pins_little_of_the_kernel_and_nothing_after_its_end() {
    const KERNEL_BYTES_MAX: usize = 200 << 10;
    with_gateway(1, &["--outbox-full-secs", "2"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut feeder = Client::login(gateway, 1);
        let port = gateway.client_address().port();
        let deaf: Vec<Client> = (100..110).map(|user| Client::login(gateway, user)).collect();
        for user in 100..110 {
            for _ in 0..40 {
                feeder.send(user, 0, &[7; 60_000]);
            }
            feeder.ping();
        }
        let queues = kernel_send_queues(port);
        assert!(queues.iter().any(|bytes| *bytes > 0), "nothing is in the way of it: {queues:?}");
        assert!(queues.iter().all(|bytes| *bytes <= KERNEL_BYTES_MAX), "{queues:?}");
        gateway.wait_for_metrics("all of them are too slow", |metrics| metrics.closed(reason_label::TOO_SLOW) == 10);
        wait_for("the kernel holds nothing for them", || {
            kernel_send_queues(port).iter().all(|bytes| *bytes == 0).then_some(())
        });
        bystanders.talk();
        drop(deaf);
    });
}

#[test]
fn readers_that_never_read_do_not_block_the_others_when_all_outboxes_are_full() {
    // Nobody is closed for the time alone here.
    let flags = ["--outbox-total-bytes-max", "2MiB", "--outbox-full-secs", "3600", "--unsent-bytes-max", "4KiB"];
    with_gateway(1, &flags, |gateway| {
        let mut feeder = Client::login(gateway, 1);
        let mut speaker = Client::login(gateway, 2);
        let mut listener = Client::login(gateway, 3);
        let deaf: Vec<Client> = (100..140).map(|user| Client::login(gateway, user)).collect();
        wait_for("all outboxes are full", || {
            for user in 100..140 {
                feeder.send(user, 0, &[7; 20_000]);
            }
            feeder.ping();
            (gateway.metrics().limit_hits("outbox_total_bytes") > 0).then_some(())
        });
        wait_for("ten messages in a row reach one who reads", || {
            let first = (0..10).map(|_| speaker.send(3, 0, &[9; 60_000])).min().expect("ten ids");
            speaker.ping();
            let mut arrived = 0;
            listener.write(&wire::ping(77));
            loop {
                let frame = listener.recv();
                match frame.kind {
                    kind::DELIVER => arrived += usize::from(frame.id >= first),
                    kind::PONG => break,
                    other => panic!("a frame of kind {other:#x}"),
                }
            }
            (arrived == 10).then_some(())
        });
        let metrics = gateway.metrics();
        assert!(metrics.sum("trunkline_evictions_total", &[("of", "outbox")]) > 0);
        drop(deaf);
    });
}

#[test]
fn half_logins_of_strangers_cost_strangers_and_no_session() {
    let half_login = || {
        let mut login = wire::login_with_body(vec![0; 7_000]).encode();
        login.truncate(6_500);
        login
    };
    with_gateway(1, &["--partial-bytes-max", "256KiB", "--login-timeout-secs", "600"], |gateway| {
        let mut sessions: Vec<Client> = (1..=10).map(|user| Client::login(gateway, user)).collect();
        let frame = wire::send(1, 999, 0, &[5; 20_000]).encode();
        for session in &mut sessions {
            session.write_bytes(&frame[..10_000]);
        }
        let mut strangers: Vec<Client> = (0..100).map(|_| Client::connect(gateway)).collect();
        for stranger in &mut strangers {
            stranger.write_while_open(&half_login());
        }
        gateway.wait_for_metrics("strangers give way", |metrics| {
            metrics.sum("trunkline_evictions_total", &[("of", "partial")]) >= 60
        });
        strangers[0].expect_bye(code::OVERLOADED);
        for session in &mut sessions {
            session.write_bytes(&frame[10_000..]);
            session.ping();
        }
        assert_eq!(gateway.metrics().outcome(outcome_label::OFFLINE_DROPPED), 10);
        // A LOGIN has no reason to be longer than this.
        let mut long = Client::connect(gateway);
        long.write_bytes(&wire::login_with_body(vec![0; 8_200]).encode()[..8]);
        long.expect_bye(code::FRAME_TOO_LARGE);
    });
}

#[test]
fn one_user_who_never_acknowledges_does_not_take_the_room_of_the_others() {
    with_gateway(1, &["--unacked-total-bytes-max", "1MiB", "--redeliver-secs", "600"], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let _hoarder = Client::login(gateway, 2);
        let mut honest = Client::login(gateway, 3);
        let refused = wait_for("the bound of one user", || {
            let id = sender.send(2, flag::ACK, &[1; 20_000]);
            sender.write(&wire::ping(5));
            let frame = sender.recv();
            if frame.kind == kind::PONG {
                return None;
            }
            assert_eq!((frame.kind, frame.id, frame.aux), (kind::SENT, id, outcome::OVERLOADED));
            assert_eq!(sender.recv().kind, kind::PONG);
            Some(id)
        });
        assert!(refused > 3, "only {refused} messages found room");
        let metrics = gateway.metrics();
        assert_eq!(metrics.limit_hits("unacked_bytes_per_user"), 1);
        assert_eq!(metrics.limit_hits("unacked_total_bytes"), 0);
        let id = sender.send(3, flag::ACK, &[2; 20_000]);
        let deliver = honest.recv_deliver();
        honest.ack(&deliver);
        sender.expect_sent(id, 3, outcome::DELIVERED);
    });
}

#[test]
fn what_finds_no_room_for_redelivery_follows_when_there_is_some() {
    const MESSAGES: u64 = 40;
    // Four of them fit an outbox, and no attempt more is made than is needed.
    let flags = ["--outbox-burst-bytes-max", "256KiB", "--redeliver-secs", "1", "--redeliver-attempts-max", "255"];
    with_gateway(1, &flags, |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut before = Client::login(gateway, 2);
        for _ in 0..MESSAGES {
            sender.send(2, flag::ACK, &[3; 60_000]);
            before.recv_deliver();
        }
        let mut after = Client::login(gateway, 2);
        let mut got = std::collections::BTreeSet::new();
        while got.len() < MESSAGES as usize {
            let frame = after.recv();
            if frame.kind == kind::DELIVER {
                assert_eq!(frame.flags, flag::ACK | flag::AGAIN);
                got.insert(frame.id);
                after.ack(&frame);
            }
        }
        for _ in 0..MESSAGES {
            let frame = sender.recv();
            assert_eq!((frame.kind, frame.aux), (kind::SENT, outcome::DELIVERED));
        }
    });
}

#[test]
fn each_device_gets_a_message_although_another_one_has_acknowledged_it() {
    let flags = ["--outbox-bytes-max", "64KiB", "--outbox-burst-bytes-max", "64KiB", "--redeliver-secs", "600"];
    with_gateway(1, &flags, |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut phone = Client::login_with(gateway, &Login { device: "phone".to_owned(), ..Login::of(2) }).0;
        let mut desk = Client::login_with(gateway, &Login { device: "desk".to_owned(), ..Login::of(2) }).0;
        // The desk does not read until its outbox is full; the phone does.
        wait_for("the desk's outbox is full", || {
            sender.send(2, 0, &[4; 20_000]);
            phone.recv_deliver();
            sender.ping();
            (gateway.metrics().sum("trunkline_delivery_copies_dropped_total", &[]) > 0).then_some(())
        });
        let id = sender.send(2, flag::ACK, &[5; 20_000]);
        let deliver = phone.recv_deliver();
        assert_eq!(deliver.id, id);
        phone.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        let late = loop {
            let frame = desk.recv_deliver();
            if frame.id == id {
                break frame;
            }
        };
        assert_eq!((late.flags, late.stamp), (flag::ACK | flag::AGAIN, deliver.stamp));
        desk.ack(&late);
        desk.ping();
        gateway.wait_for_metrics("nothing waits any more", |metrics| {
            metrics.sum("trunkline_unacked_bytes", &[]) == 0 && metrics.sum(metric::UNACKED, &[]) == 0
        });
    });
}

#[test]
fn a_limit_on_frames_does_not_count_what_the_server_makes_a_client_send() {
    const SENDERS: u64 = 20;
    const EACH: u64 = 3;
    with_each_gateway(&[1, 2], &["--frames-per-sec", "4", "--redeliver-secs", "600"], |gateway| {
        let mut senders: Vec<Client> = (1..=SENDERS).map(|user| Client::login(gateway, user)).collect();
        let mut recipient = Client::login(gateway, 500);
        for sender in &mut senders {
            for _ in 0..EACH {
                sender.send(500, flag::ACK, b"within its own limit");
            }
        }
        for _ in 0..SENDERS * EACH {
            let deliver = recipient.recv_deliver();
            recipient.ack(&deliver);
        }
        for sender in &mut senders {
            for _ in 0..EACH {
                let frame = sender.recv();
                assert_eq!((frame.kind, frame.aux), (kind::SENT, outcome::DELIVERED));
            }
        }
        // Its own frames count: what it brings beyond its limit is refused, and LOGOUT is not.
        let pings = SENDERS * EACH + 40;
        for aux in 0..pings {
            recipient.write(&wire::ping(aux as u16));
        }
        recipient.write(&wire::logout());
        let rest = recipient.recv_until_closed();
        let refused = rest.iter().filter(|frame| (frame.kind, frame.aux) == (kind::ERROR, code::RATE_LIMITED)).count();
        assert!(refused > 0, "{pings} PINGs were all within the limit");
        let metrics = gateway.metrics();
        assert_eq!(metrics.limit_hits(limit_label::FRAMES_PER_SEC), refused as u64);
        assert_eq!(metrics.closed(reason_label::LOGOUT), 1);
    });
}

#[test]
fn nobody_is_reaped_after_the_process_was_stopped_before_his_socket_was_read() {
    let flags = ["--heartbeat-secs-min", "2", "--heartbeat-secs", "2"];
    with_each_gateway(&[1, 2], &flags, |gateway| {
        let mut clients: Vec<Client> = (1..=50).map(|user| Client::login(gateway, user)).collect();
        for client in &mut clients {
            client.ping();
        }
        gateway.signal(Signal::STOP);
        // Longer than two heartbeats; the PINGs wait in the sockets meanwhile.
        for client in &mut clients {
            client.write(&wire::ping(7));
        }
        std::thread::sleep(Duration::from_secs(5));
        gateway.signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.recv().kind, kind::PONG);
        }
        assert_eq!(gateway.metrics().closed(reason_label::IDLE), 0);
    });
}

#[test]
fn beyond_the_limit_of_connections_each_one_is_told() {
    const INSIDE: usize = 20;
    const BEYOND: usize = 400;
    with_gateway(1, &["--connections-max", "20", "--login-timeout-secs", "600"], |gateway| {
        let connect = || TcpStream::connect_timeout(&gateway.client_address(), PATIENCE).expect("connect");
        let inside: Vec<TcpStream> = (0..INSIDE).map(|_| connect()).collect();
        gateway.wait_for_metrics("all places are taken", |metrics| metrics.sum(metric::OPEN, &[]) == INSIDE as u64);
        // All at once, and each says something before it is told.
        let mut beyond: Vec<TcpStream> = (0..BEYOND).map(|_| connect()).collect();
        for stream in &mut beyond {
            stream.write_all(&Login::of(1).frame().encode()).expect("the kernel takes it");
        }
        for stream in beyond {
            stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
            let mut bytes = vec![0; 8];
            (&stream).read_exact(&mut bytes).expect("a BYE");
            let reason = u16::from_be_bytes([bytes[6], bytes[7]]);
            assert_eq!((bytes[4], reason), (kind::BYE, code::OVERLOADED));
        }
        drop(inside);
    });
}

#[test]
fn a_message_longer_than_all_of_a_small_outbox_is_told_of() {
    // The bounds of one connection meet the longest frame exactly.
    let flags = ["--outbox-bytes-max", "64KiB", "--outbox-burst-bytes-max", "64KiB"];
    with_gateway(1, &flags, |gateway: &Gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        let longest = vec![6; wire::FRAME_BYTES_MAX - wire::HEADER_LONG];
        let id = sender.send(2, flag::ACK, &longest);
        let deliver: Frame = recipient.recv_deliver();
        recipient.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        assert!(matches!(recipient.read_event(Duration::from_millis(50)), Event::TimedOut));
    });
}
