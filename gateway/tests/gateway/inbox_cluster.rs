//! Inboxes that the nodes of a cluster share: wherever a user's home is, whichever node a device comes to, and
//! whatever is killed meanwhile.

use crate::cluster_support::Fleet;
use crate::cluster_support::redis_cluster::SERVERS;
use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::random::Random;
use crate::support::wait_for;
use crate::support::wire::{self, Frame, Login, LoginOk, SyncOk, flag, kind, outcome};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["one", "two", "three"];
const FLAGS: [&str; 6] = ["--store", "redis", "--store-after-ms", "300", "--inbox-messages-max", "1000000"];

fn login(node: &Gateway, user: u64, device: &str, resume: &[u8]) -> (Client, LoginOk) {
    let login = Login { resume: resume.to_vec(), ..Login::of(user).device(device) };
    Client::login_with(node, &login)
}

/// What comes until the end of the backlog.
fn backlog(client: &mut Client) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        let frame = client.recv();
        if frame.kind == kind::SYNC_OK {
            assert!(!SyncOk::parse(&frame).truncated);
            return frames;
        }
        assert_eq!(frame.kind, kind::DELIVER, "{frame:?}");
        frames.push(frame);
    }
}

/// A session whose backlog, if any, is over.
fn online(node: &Gateway, user: u64) -> Client {
    let mut client = Client::login(node, user);
    backlog(&mut client);
    client
}

fn bodies(frames: &[Frame]) -> Vec<u8> {
    frames.iter().map(|frame| frame.body[0]).collect()
}

#[test]
fn what_is_stored_at_any_node_comes_to_a_device_at_any_other_and_is_acknowledged_there() {
    let fleet = Fleet::start(&NAMES, &FLAGS);
    // Users enough that each node is the home of some.
    for user in 101..=112_u64 {
        let (from, to, next) = (user as usize % 3, user as usize / 3 % 3, (user as usize + 1) % 3);
        let (mut first, opened) = login(fleet.node(to), user, "phone", &[]);
        assert_eq!((opened.pending, opened.resumed), (0, 0));
        assert_eq!(backlog(&mut first), []);
        // Online: as ever.
        let mut sender = online(fleet.node(from), 1_000 + user);
        let id = sender.send(user, flag::ACK, &[1]);
        let live = first.recv_deliver();
        first.ack(&live);
        sender.expect_sent(id, user, outcome::DELIVERED);
        drop(first);
        wait_for("the session has ended", || {
            let mut probe = online(fleet.node(from), 2_000 + user);
            let id = probe.send(user, flag::ACK | flag::NO_STORE, &[9]);
            let frame = probe.recv_kind(kind::SENT);
            (frame.id == id && frame.aux == outcome::OFFLINE_NOT_STORED).then_some(())
        });
        // Offline: stored, in order.
        for body in 2..=6 {
            let id = sender.send(user, flag::ACK, &[body]);
            sender.expect_sent(id, user, outcome::STORED);
        }
        let (mut second, opened) = login(fleet.node(next), user, "phone", &opened.resume);
        assert_eq!((opened.pending, opened.resumed, opened.truncated), (5, 1, 0), "user {user}");
        let got = backlog(&mut second);
        assert_eq!(bodies(&got), [2, 3, 4, 5, 6], "user {user}");
        assert!(got.is_sorted_by_key(|frame| frame.stamp) && got.iter().all(|frame| frame.flags & flag::REPLAY != 0));
        second.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&got[4]) });
        // A second device begins at the end; history is there for it at any node.
        let (mut tablet, opened) = login(fleet.node(from), user, "tablet", &[]);
        assert_eq!((opened.pending, backlog(&mut tablet)), (0, vec![]));
        // What one device acknowledges waits for the other.
        drop(tablet);
        let id = sender.send(user, flag::ACK, &[7]);
        let live = second.recv_deliver();
        second.ack(&live);
        sender.expect_sent(id, user, outcome::DELIVERED);
        second.ping();
        wait_for("it is stored for the other device", || {
            let (mut tablet, _) = login(fleet.node(to), user, "tablet", &[]);
            let got = backlog(&mut tablet);
            got.iter().for_each(|frame| tablet.ack(frame));
            tablet.ping();
            (!got.is_empty()).then(|| assert_eq!(bodies(&got), [7]))
        });
    }
    assert_eq!(fleet.sum("trunkline_store_refused_total", &[]), 0);
    fleet.finish();
}

#[test]
fn messages_between_devices_that_acknowledge_cost_redis_nothing() {
    let fleet = Fleet::start(&NAMES[..2], &FLAGS);
    let mut pairs: Vec<(Client, Client, u64)> = (1..=8_u64)
        .map(|at| {
            let a = online(fleet.node(at as usize % 2), 10 + at);
            let b = online(fleet.node(at as usize / 2 % 2), 50 + at);
            (a, b, 50 + at)
        })
        .collect();
    // Behind each batch of the store is a WAIT, whatever the batch is about. Leases and presence need none.
    let calls = || ["wait", "xadd", "xrange", "xtrim"].map(|command| fleet.redis.calls_of(command));
    let before = calls();
    assert!(before[0] > 0, "logins have asked the store");
    for round in 0..500 {
        for (a, b, user) in &mut pairs {
            a.exchange(b, *user, &[round as u8]);
        }
    }
    // As long as it takes until what is not acknowledged would be stored, and positions would be told.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(calls(), before, "of 4,000 messages");
    // The same counts tell of one that is stored.
    let (sender, ..) = &mut pairs[0];
    let id = sender.send(99, flag::ACK, b"nobody is there");
    sender.expect_sent(id, 99, outcome::STORED);
    assert!(calls().iter().zip(before).take(2).all(|(after, before)| *after > before));
    drop(pairs);
    fleet.finish();
}

#[test]
fn while_redis_is_gone_messages_are_refused_and_others_delivered_and_all_is_well_afterwards() {
    let fleet = Fleet::start(&NAMES[..2], &FLAGS);
    let mut sender = online(fleet.node(0), 1);
    let mut recipient = online(fleet.node(1), 2);
    let id = sender.send(3, flag::ACK, &[1]);
    sender.expect_sent(id, 3, outcome::STORED);
    // Only the masters' answers are missing: leases and views have a time of their own.
    for server in 0..SERVERS {
        fleet.redis.pause(server);
    }
    let lost = sender.send(3, flag::ACK, &[2]);
    let frame = sender.recv_kind(kind::SENT);
    assert_eq!((frame.id, frame.aux), (lost, outcome::OVERLOADED));
    // Who is online is not concerned.
    sender.exchange(&mut recipient, 2, b"live");
    for server in 0..SERVERS {
        fleet.redis.resume(server);
    }
    fleet.redis.wait_ok();
    fleet.redis.wait_replicated();
    wait_for("the store is well", || {
        let again = sender.send(3, flag::ACK, &[3]);
        let frame = loop {
            let frame = sender.recv_kind(kind::SENT);
            if frame.id == again {
                break frame;
            }
        };
        (frame.aux == outcome::STORED).then_some(())
    });
    wait_for("nothing is degraded", || {
        fleet.running().all(|node| node.metrics().sum("trunkline_store_available", &[]) == 1).then_some(())
    });
    drop((sender, recipient));
    fleet.finish();
}

/// Who sends, and what is known of each message.
#[derive(Default)]
struct Sender {
    last_id: u64,
    unsettled: BTreeMap<u64, u64>,
    settled: BTreeMap<u64, BTreeSet<u64>>,
}

const RECIPIENTS: std::ops::RangeInclusive<u64> = 10..=21;
const IN_FLIGHT: usize = 100;

impl Sender {
    /// Sends for a while; what failed is sent again. Ends early when its connection does.
    fn run(&mut self, client: &mut Client, time: Duration, sends: bool) {
        let until = Instant::now() + time;
        for (&id, &to) in &self.unsettled {
            client.write_while_open(&wire::send(id, to, flag::ACK | flag::RETRY, &id.to_be_bytes()).encode());
        }
        while Instant::now() < until && (sends || !self.unsettled.is_empty()) {
            while sends && self.unsettled.len() < IN_FLIGHT {
                self.last_id += 1;
                let to = RECIPIENTS.start() + self.last_id % RECIPIENTS.count() as u64;
                self.unsettled.insert(self.last_id, to);
                let send = wire::send(self.last_id, to, flag::ACK, &self.last_id.to_be_bytes());
                client.write_while_open(&send.encode());
            }
            match client.read_event(Duration::from_millis(200)) {
                Event::Frame(frame) if frame.kind == kind::SENT => {
                    let Some(&to) = self.unsettled.get(&frame.id) else { continue };
                    match frame.aux {
                        outcome::STORED | outcome::DELIVERED => {
                            self.unsettled.remove(&frame.id);
                            self.settled.entry(to).or_default().insert(frame.id);
                        }
                        _ => {
                            std::thread::sleep(Duration::from_millis(2));
                            let send = wire::send(frame.id, to, flag::ACK | flag::RETRY, &frame.id.to_be_bytes());
                            client.write_while_open(&send.encode());
                        }
                    }
                }
                Event::Closed => return,
                _ => {}
            }
        }
    }
}

/// Everything that waits for a user, who acknowledges it; `None` if the node ends it before that.
fn take_all(node: &Gateway, user: u64) -> Option<BTreeSet<u64>> {
    let (mut client, login_ok) = login(node, user, "phone", &[]);
    assert_eq!(login_ok.truncated, 0, "nothing is gone");
    let mut ids = BTreeSet::new();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match client.read_event(Duration::from_secs(10)) {
            Event::Frame(frame) if frame.kind == kind::SYNC_OK => break,
            Event::Frame(frame) if frame.kind == kind::DELIVER => {
                assert_eq!(&frame.body[..], &frame.id.to_be_bytes()[..]);
                client.write_while_open(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&frame) }.encode());
                ids.insert(frame.id);
            }
            Event::Frame(_) => {}
            _ => return None,
        }
        assert!(Instant::now() < until, "user {user}: no end of the backlog");
    }
    client.ping();
    Some(ids)
}

#[test]
fn what_counts_as_stored_outlives_nodes_and_masters_that_are_killed() {
    let rounds = std::env::var("TRUNKLINE_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let roomy = [&FLAGS[..], &["--inbox-bytes-max", "1GiB"]].concat();
    let mut fleet = Fleet::start(&NAMES, &roomy);
    let mut random = Random::seeded(71);
    let mut sender = Sender::default();
    let mut got: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for round in 0..rounds {
        let at = random.below(3);
        {
            let mut client = Client::login(fleet.node(at), 1);
            let kills_node = round % 2 == 0;
            sender.run(&mut client, Duration::from_millis(300 + random.below(500) as u64), true);
            if kills_node {
                let victim = random.below(3);
                fleet.node(victim).signal(Signal::KILL);
                if victim != at {
                    sender.run(&mut client, Duration::from_millis(500), true);
                }
                if let Some(mut node) = fleet.nodes[victim].take() {
                    node.wait_for_exit();
                }
                fleet.start_node(victim);
                fleet.wait_joined();
            } else {
                let slot = fleet.redis.slot_of(&format!("tl:inbox:{{{}}}", RECIPIENTS.start() + round as u64));
                let master = fleet.redis.master_of_slot(slot);
                fleet.redis.kill(master);
                sender.run(&mut client, Duration::from_millis(1_500), true);
                wait_for("a replica is promoted", || fleet.redis.master_of_slot_after(master, slot).then_some(()));
                fleet.redis.restart(master);
                fleet.redis.wait_ok();
                fleet.redis.wait_replicated();
                fleet.wait_joined();
            }
        }
        // One of the recipients comes, takes all there is and goes.
        let user = RECIPIENTS.start() + random.below(RECIPIENTS.count()) as u64;
        if let Some(taken) = take_all(fleet.node(random.below(3)), user) {
            got.entry(user).or_default().extend(taken);
        }
        let settled: usize = sender.settled.values().map(BTreeSet::len).sum();
        eprintln!("round {round}: {settled} settled, {} without an answer", sender.unsettled.len());
    }
    let mut client = Client::login(fleet.node(0), 1);
    sender.run(&mut client, Duration::from_secs(30), false);
    assert!(sender.unsettled.is_empty(), "{} messages got no answer that counts", sender.unsettled.len());
    for user in RECIPIENTS {
        let taken = take_all(fleet.node(user as usize % 3), user).expect("the backlog comes");
        got.entry(user).or_default().extend(taken);
        let sent = sender.settled.get(&user).cloned().unwrap_or_default();
        let missing: Vec<_> = sent.difference(&got[&user]).collect();
        assert!(missing.is_empty(), "user {user} misses {missing:?} of {}", sent.len());
    }
    drop(client);
    fleet.finish();
}
