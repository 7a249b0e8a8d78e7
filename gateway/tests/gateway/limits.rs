//! Every limit a client can run into: what it is told, what is counted, and that nobody else notices.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::{with_each_gateway, with_gateway};
use crate::support::names::{limit_label, outcome_label, reason_label};
use crate::support::wire::{self, Frame, HEADER_LONG, Login, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, PATIENCE, wait_for};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_silent_connection_is_idle_after_two_heartbeats() {
    let flags = ["--heartbeat-secs-min", "1", "--heartbeat-secs", "1"];
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut pinging = Client::login(gateway, 1);
        let mut sending = Client::login(gateway, 2);
        let start = Instant::now();
        let mut silent = Client::login(gateway, 3);
        let bye = loop {
            match silent.read_event(Duration::from_millis(300)) {
                Event::TimedOut => {}
                // What it receives is no sign of life of its own.
                Event::Frame(frame) if frame.kind == kind::DELIVER => {}
                Event::Frame(frame) => break frame,
                Event::Closed => panic!("closed without a BYE"),
            }
            assert!(start.elapsed() < PATIENCE, "a silent connection is still open");
            pinging.ping();
            sending.send(3, 0, b"are you there?");
        };
        // The server's clock has ticks; a tenth of a second is above them.
        assert!(start.elapsed() >= Duration::from_millis(1_900), "after {:?}", start.elapsed());
        assert_eq!((bye.kind, bye.aux), (kind::BYE, code::IDLE));
        silent.expect_closed();
        // The others have been there for longer, each alive in its own way.
        pinging.ping();
        sending.ping();
        gateway.wait_for_metrics("one idle connection", |metrics| metrics.closed(reason_label::IDLE) == 1);
        gateway.wait_for_presence(3, false);
        bystanders.talk();
    });
}

#[test]
fn a_frame_that_is_never_finished_is_no_sign_of_life() {
    let flags = ["--heartbeat-secs-min", "1", "--heartbeat-secs", "1"];
    with_gateway(2, &flags, |gateway| {
        let mut client = Client::login(gateway, 1);
        let frame = wire::send(1, 2, 0, &[0; 10_000]).encode();
        let mut bytes = frame.iter();
        let start = Instant::now();
        let bye = loop {
            assert!(start.elapsed() < PATIENCE, "kept alive by single bytes");
            match client.read_event(Duration::from_millis(100)) {
                Event::TimedOut => client.write_while_open(&[*bytes.next().expect("enough bytes")]),
                Event::Frame(frame) => break frame,
                Event::Closed => panic!("closed without a BYE"),
            }
        };
        assert_eq!((bye.kind, bye.aux), (kind::BYE, code::IDLE));
    });
}

#[test]
fn connections_that_do_not_log_in_are_closed() {
    const CONNECTIONS: usize = 200;
    with_each_gateway(ONE_AND_MANY, &["--login-timeout-secs", "1"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let start = Instant::now();
        let mut waiting: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(gateway)).collect();
        // Some have begun: half a LOGIN is none.
        let login = Login::of(1).frame().encode();
        for client in waiting.iter_mut().step_by(2) {
            client.write_bytes(&login[..login.len() - 1]);
        }
        bystanders.talk();
        for client in &mut waiting {
            for frame in client.recv_until_closed() {
                assert_eq!((frame.kind, frame.aux), (kind::BYE, code::IDLE));
            }
        }
        assert!(start.elapsed() >= Duration::from_millis(900), "after {:?}", start.elapsed());
        gateway.wait_for_metrics("all closed for the time-out", |metrics| {
            metrics.closed(reason_label::LOGIN_TIMEOUT) == CONNECTIONS as u64
        });
        bystanders.talk();
    });
}

#[test]
fn a_login_in_drips_does_not_outlive_the_time_out() {
    with_gateway(2, &["--login-timeout-secs", "1"], |gateway| {
        let mut client = Client::connect(gateway);
        let login = wire::login_with_body(vec![0; 8_000]).encode();
        let start = Instant::now();
        for byte in login {
            match client.read_event(Duration::from_millis(100)) {
                Event::TimedOut => client.write_while_open(&[byte]),
                Event::Closed => return,
                Event::Frame(frame) => {
                    assert_eq!((frame.kind, frame.aux), (kind::BYE, code::IDLE));
                    client.expect_closed();
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "kept alive by single bytes");
        }
    });
}

#[test]
fn the_connection_limit_refuses_and_recovers() {
    with_gateway(1, &["--connections-max", "8"], |gateway| {
        let mut inside: Vec<Client> = (1..=8).map(|user| Client::login(gateway, user)).collect();
        for _ in 0..5 {
            let mut refused = Client::connect(gateway);
            refused.expect_bye(code::OVERLOADED);
        }
        gateway.wait_for_metrics("five hits of the limit", |metrics| {
            metrics.limit_hits(limit_label::CONNECTIONS) == 5 && metrics.closed(reason_label::OVERLOADED) == 5
        });
        let (first, others) = inside.split_first_mut().expect("eight clients");
        for (other, user) in others.iter_mut().zip(2..) {
            first.exchange(other, user, b"unharmed");
        }
        inside.pop();
        let mut newcomer = wait_for("a place is free again", || {
            let mut client = Client::connect(gateway);
            client.write_while_open(&Login::of(9).frame().encode());
            match client.recv() {
                frame if frame.kind == kind::LOGIN_OK => Some(client),
                frame => {
                    assert_eq!((frame.kind, frame.aux), (kind::BYE, code::OVERLOADED));
                    None
                }
            }
        });
        newcomer.ping();
    });
}

#[test]
fn a_full_home_shard_refuses_and_nobody_is_left_hanging() {
    const CONNECTIONS: u64 = 80;
    with_gateway(4, &["--connections-max", "8"], |gateway| {
        let mut clients: Vec<Client> = (1..=CONNECTIONS)
            .map(|user| {
                let mut client = Client::connect(gateway);
                client.write_while_open(&Login::of(user).frame().encode());
                client
            })
            .collect();
        let mut inside = Vec::new();
        for (user, client) in (1..=CONNECTIONS).zip(&mut clients) {
            match client.recv() {
                frame if frame.kind == kind::LOGIN_OK => inside.push((user, client)),
                frame => {
                    assert_eq!((frame.kind, frame.aux), (kind::BYE, code::OVERLOADED));
                    client.expect_closed();
                }
            }
        }
        assert!((2..=32).contains(&inside.len()), "{} connections for 32 places", inside.len());
        let ((_, first), others) = inside.split_first_mut().expect("some are inside");
        for (user, other) in others {
            first.exchange(other, *user, b"unharmed");
        }
    });
}

#[test]
fn logins_above_the_rate_wait_and_are_not_refused() {
    const LOGINS: u64 = 14;
    with_gateway(1, &["--logins-per-sec", "5"], |gateway| {
        let start = Instant::now();
        let mut clients: Vec<Client> = (0..LOGINS).map(|_| Client::connect(gateway)).collect();
        for (client, user) in clients.iter_mut().zip(1..) {
            client.write(&Login::of(user).frame());
        }
        for client in &mut clients {
            client.expect_login_ok();
        }
        // At most 5 at once and 5 a second after: the last of 14 waits for more than a second.
        assert!(start.elapsed() >= Duration::from_secs(1), "all within {:?}", start.elapsed());
        assert!(gateway.metrics().limit_hits(limit_label::LOGINS_PER_SEC) > 0);
        for client in &mut clients {
            client.ping();
        }
    });
}

#[test]
fn frames_above_the_rate_are_refused_one_by_one() {
    const FRAMES: u64 = 300;
    with_each_gateway(ONE_AND_MANY, &["--frames-per-sec", "20"], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let mut sender = Client::login(gateway, 1);
        let burst: Vec<u8> = (1..=FRAMES).flat_map(|id| wire::send(id, 2, 0, b"hurry").encode()).collect();
        sender.write_bytes(&burst);
        // Each frame is either refused, with its id and peer, or delivered.
        let mut refused = BTreeSet::new();
        let mut delivered = BTreeSet::new();
        let deadline = Instant::now() + PATIENCE;
        while refused.len() + delivered.len() < FRAMES as usize {
            assert!(Instant::now() < deadline, "{refused:?} refused, {delivered:?} delivered");
            if let Event::Frame(error) = sender.read_event(Duration::from_millis(20)) {
                assert_eq!((error.kind, error.aux, error.peer), (kind::ERROR, code::RATE_LIMITED, 2));
                assert!(refused.insert(error.id), "{} refused twice", error.id);
            }
            while let Event::Frame(deliver) = recipient.read_event(Duration::from_millis(20)) {
                assert!(delivered.insert(deliver.id), "{} delivered twice", deliver.id);
            }
        }
        assert!(refused.is_disjoint(&delivered));
        assert!(delivered.contains(&1), "the first frame of all is within the rate");
        assert!(refused.len() > FRAMES as usize / 2, "only {} refused", refused.len());
        assert_eq!(gateway.metrics().limit_hits(limit_label::FRAMES_PER_SEC), refused.len() as u64);
        // With time the allowance comes back.
        wait_for("a PING within the rate", || {
            sender.write(&wire::ping(1));
            match sender.recv() {
                frame if frame.kind == kind::PONG => Some(()),
                error => {
                    assert_eq!((error.kind, error.aux), (kind::ERROR, code::RATE_LIMITED));
                    None
                }
            }
        });
    });
}

#[test]
fn the_limit_of_unacknowledged_messages_refuses_and_recovers() {
    with_each_gateway(ONE_AND_MANY, &["--unacked-max", "4"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut recipient = Client::login(gateway, 1_000);
        let mut sender = Client::login(gateway, 1);
        let mut other_sender = Client::login(gateway, 2);
        let ids = [0; 4].map(|_| sender.send(1_000, flag::ACK, b"within the limit"));
        let mut delivers = ids.map(|_| recipient.recv_deliver()).into_iter();
        // The limit is the recipient's, whoever sends.
        for client in [&mut sender, &mut other_sender] {
            let id = client.send(1_000, flag::ACK, b"one too many");
            client.expect_sent(id, 1_000, outcome::OVERLOADED);
        }
        // Messages without ACK wait for nothing.
        other_sender.send(1_000, 0, b"no ACK");
        assert_eq!(recipient.recv_deliver().body, b"no ACK");
        gateway.wait_for_metrics("two refused messages", |metrics| {
            metrics.outcome(outcome_label::OVERLOADED_REFUSED) == 2 && metrics.limit_hits(limit_label::UNACKED) == 2
        });
        recipient.ack(&delivers.next().expect("four messages"));
        sender.expect_sent(ids[0], 1_000, outcome::DELIVERED);
        let id = other_sender.send(1_000, flag::ACK, b"a place is free");
        let deliver = recipient.recv_deliver();
        assert_eq!((deliver.id, deliver.peer), (id, 2));
        for (id, deliver) in ids[1..].iter().zip(delivers) {
            recipient.ack(&deliver);
            sender.expect_sent(*id, 1_000, outcome::DELIVERED);
        }
        recipient.ack(&deliver);
        other_sender.expect_sent(id, 1_000, outcome::DELIVERED);
        bystanders.talk();
    });
}

#[test]
fn the_frame_limit_is_configurable_and_announced() {
    with_gateway(2, &["--frame-bytes-max", "1024"], |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let (mut sender, login_ok) = Client::login_with(gateway, &Login::of(1));
        assert_eq!(login_ok.max_frame, 1_024);
        sender.exchange(&mut recipient, 2, &[1; 1_024 - HEADER_LONG]);
        sender.write(&wire::send(9, 2, 0, &[1; 1_025 - HEADER_LONG]));
        sender.expect_bye(code::FRAME_TOO_LARGE);
        recipient.ping();
    });
    let flags = ["--frame-bytes-max", "1048576", "--outbox-bytes-max", "4194304"];
    with_gateway(2, &flags, |gateway| {
        let mut recipient = Client::login(gateway, 2);
        let mut sender = Client::login(gateway, 1);
        let body: Vec<u8> = (0..1_048_576 - HEADER_LONG).map(|at| (at / 7) as u8).collect();
        sender.write(&wire::send(1, 2, 0, &body));
        let deliver = recipient.recv_deliver();
        assert!(deliver.body == body, "a payload of 1 MiB has changed");
    });
}

#[test]
fn messages_with_ack_to_a_full_outbox_are_refused() {
    const MESSAGES: u64 = 600;
    with_each_gateway(ONE_AND_MANY, &["--outbox-full-secs", "60"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut recipient = Client::login(gateway, 2);
        let mut sender = Client::login(gateway, 1);
        // 36 MB: more than the kernel's buffers and the outbox take.
        let body = vec![7; 60_000];
        let ids: Vec<u64> = (0..MESSAGES).map(|_| sender.send(2, flag::ACK, &body)).collect();
        bystanders.talk();
        // The recipient has read nothing yet. Now it reads and acknowledges what was taken for it.
        let mut open: BTreeSet<u64> = ids.into_iter().collect();
        let mut refused = 0;
        let deadline = Instant::now() + 3 * PATIENCE;
        while !open.is_empty() {
            assert!(Instant::now() < deadline, "no SENT for {open:?}");
            while let Event::Frame(deliver) = recipient.read_event(Duration::from_millis(5)) {
                assert_eq!(deliver.kind, kind::DELIVER);
                recipient.ack(&deliver);
            }
            while let Event::Frame(sent) = sender.read_event(Duration::from_millis(5)) {
                assert_eq!(sent.kind, kind::SENT);
                assert!(open.remove(&sent.id), "a second SENT: {sent:?}");
                match sent.aux {
                    outcome::DELIVERED => {}
                    outcome::OVERLOADED => refused += 1,
                    _ => panic!("{sent:?}"),
                }
            }
        }
        assert!(refused > 0, "36 MB were taken for a client that did not read");
        bystanders.talk();
    });
}

#[test]
fn a_full_mailbox_lets_its_senders_wait_and_every_message_arrives() {
    with_gateway(2, &["--mailbox-bytes-max", "66000"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let (mut sender, sender_ok) = Client::login_with(gateway, &Login::of(1));
        let (mut recipient, recipient_user) = (2..)
            .find_map(|user| {
                let (client, login_ok) = Client::login_with(gateway, &Login::of(user));
                (login_ok.shard != sender_ok.shard).then_some((client, user))
            })
            .expect("a user of the other shard");
        let body = vec![3; 30_000];
        wait_for("the mailbox is full", || {
            // 3 MB in one go to the other shard, of which two messages fit its mailbox.
            let mut open: BTreeSet<u64> = BTreeSet::new();
            for _ in 0..100 {
                open.insert(sender.send(recipient_user, flag::ACK, &body));
            }
            let deadline = Instant::now() + PATIENCE;
            while !open.is_empty() {
                assert!(Instant::now() < deadline, "no SENT for {open:?}");
                while let Event::Frame(deliver) = recipient.read_event(Duration::from_millis(1)) {
                    assert_eq!(deliver.kind, kind::DELIVER);
                    recipient.ack(&deliver);
                }
                while let Event::Frame(sent) = sender.read_event(Duration::from_millis(1)) {
                    assert_eq!(sent.kind, kind::SENT);
                    assert_eq!(sent.aux, outcome::DELIVERED, "{sent:?}");
                    assert!(open.remove(&sent.id), "a second SENT: {sent:?}");
                }
            }
            let metrics = gateway.metrics();
            assert_eq!(metrics.limit_hits(limit_label::MAILBOX), 0);
            (metrics.sum("trunkline_mailbox_waits_total", &[]) > 0).then_some(())
        });
        bystanders.talk();
    });
}

#[test]
fn few_receive_buffers_delay_but_lose_nothing() {
    const SENDERS: u64 = 200;
    const MESSAGES: u64 = 10;
    // The fewest buffers there may be: 64 of 4 KiB.
    with_gateway(1, &["--recv-buffer-bytes", "262144"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut senders: Vec<Client> = (1..=SENDERS).map(|user| Client::login(gateway, user)).collect();
        wait_for("a receive that finds no buffer", || {
            // 10 KB from each at once, to the next one in the row: the gateway finds all of them when it goes on.
            gateway.signal(Signal::STOP);
            for (sender, user) in senders.iter_mut().zip(1..) {
                let segment: Vec<u8> = (1..=MESSAGES)
                    .flat_map(|id| wire::send(id, user % SENDERS + 1, 0, &[user as u8; 1_000]).encode())
                    .collect();
                sender.write_bytes(&segment);
            }
            gateway.signal(Signal::CONT);
            for (recipient, user) in senders.iter_mut().zip(1..) {
                let from = if user == 1 { SENDERS } else { user - 1 };
                for id in 1..=MESSAGES {
                    let deliver = recipient.recv_deliver();
                    assert_eq!((deliver.id, deliver.peer), (id, from));
                    assert_eq!(deliver.body, [from as u8; 1_000]);
                }
            }
            (gateway.metrics().limit_hits(limit_label::RECV_BUFFERS) > 0).then_some(())
        });
        bystanders.talk();
    });
}

/// Senders of the flood, and the threads they share.
const FLOOD_SENDERS: u64 = 100;
const FLOOD_THREADS: u64 = 4;
/// How often the others must have talked during the flood.
const FLOOD_ROUNDS_MIN: u32 = 20;
/// Makes every buffer small that the flood can fill.
const FLOOD_FLAGS: [&str; 8] = [
    "--outbox-bytes-max",
    "131072",
    "--outbox-full-secs",
    "2",
    "--mailbox-bytes-max",
    "524288",
    "--recv-buffer-bytes",
    "1048576",
];
/// What the gateway may grow by: with four shards 12 mailboxes of 512 KiB and as much again while they grow, four times
/// 1 MiB of receive buffers, 17 MiB of rings and executors of which a quiet shard has touched little, outboxes of 128
/// KiB for the victim and of 4 KiB for the 200 others. That is 36 MiB; the rest is the allocator's.
const FLOOD_GROWTH_BYTES_MAX: u64 = 64 << 20;

#[test]
fn a_reader_that_never_reads_harms_only_itself() {
    with_each_gateway(&[1, 4], &FLOOD_FLAGS, |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let victim = Client::login(gateway, 500);
        let mut senders: Vec<Client> = (1..=FLOOD_SENDERS).map(|user| Client::login(gateway, user)).collect();
        let resident_before = gateway.memory_bytes("VmRSS");
        let stop = AtomicBool::new(false);
        let flooded = AtomicU64::new(0);
        let mut rounds = 0;
        std::thread::scope(|scope| {
            for (thread, senders) in senders.chunks_mut((FLOOD_SENDERS / FLOOD_THREADS) as usize).enumerate() {
                let (stop, flooded) = (&stop, &flooded);
                scope.spawn(move || {
                    let segment: Vec<u8> =
                        (1..=16).flat_map(|id| wire::send(id, 500, 0, &[thread as u8; 1_000]).encode()).collect();
                    while !stop.load(Ordering::Relaxed) {
                        for sender in senders.iter_mut() {
                            sender.write_bytes(&segment);
                            flooded.fetch_add(16, Ordering::Relaxed);
                        }
                        // Some hundred thousand messages a second, and some of the machine left for the others: what is
                        // shown is that the gateway stays fair, not how a machine without a free core behaves.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            // Stop the flood even when the checks fail, or the scope waits for ever.
            let stop_at_the_end = StopOnDrop(&stop);
            let start = Instant::now();
            let mut closed_after = None;
            while closed_after.is_none() || rounds < FLOOD_ROUNDS_MIN {
                assert!(
                    start.elapsed() < 2 * PATIENCE,
                    "after {rounds} rounds of the others, closed: {closed_after:?}"
                );
                bystanders.talk();
                rounds += 1;
                if closed_after.is_none() && gateway.metrics().closed(reason_label::TOO_SLOW) == 1 {
                    closed_after = Some(start.elapsed());
                }
            }
            // Two seconds, less a tick of the server's clock and what the flood took to begin.
            assert!(closed_after >= Some(Duration::from_millis(1_800)), "closed after {closed_after:?}");
            drop(stop_at_the_end);
        });
        for sender in &mut senders {
            sender.ping();
        }
        let metrics = gateway.metrics();
        assert_eq!(metrics.closed(reason_label::TOO_SLOW), 1);
        assert!(metrics.outcome(outcome_label::OUTBOX_FULL_DROPPED) > 0);
        let growth = gateway.memory_bytes("VmHWM").saturating_sub(resident_before);
        assert!(growth < FLOOD_GROWTH_BYTES_MAX, "grew by {growth} bytes");
        gateway.wait_for_presence(500, false);
        assert_reads_whole_frames_then_the_end(victim);
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the slow reader finds when it does read: messages in order, possibly BYE 10, and the end, which may cut the
/// last frame.
fn assert_reads_whole_frames_then_the_end(client: Client) {
    let mut stream = client.stream();
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let mut rest = bytes.as_slice();
    let mut stamp = 0;
    let mut delivered = 0;
    while let Some((frame, length)) = Frame::decode(rest) {
        rest = &rest[length..];
        if frame.kind == kind::BYE {
            assert_eq!(frame.aux, code::TOO_SLOW);
            assert!(rest.is_empty(), "{} bytes after BYE", rest.len());
        } else {
            assert_eq!(frame.kind, kind::DELIVER);
            assert!(frame.stamp > stamp, "stamp {} after {stamp}", frame.stamp);
            stamp = frame.stamp;
            delivered += 1;
        }
    }
    assert!(delivered > 0, "nothing was delivered before the outbox was full");
}
