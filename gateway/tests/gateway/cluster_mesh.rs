//! Messages between nodes: real gateways, a real Redis Cluster, users at home and as guests.

use crate::cluster_support::Fleet;
use crate::support::client::{Client, Event};
use crate::support::wire::{Frame, Login, code, flag, kind, outcome};
use std::collections::BTreeMap;
use std::time::Instant;

#[test]
fn users_on_different_nodes_reach_each_other() {
    let fleet = Fleet::start(&["a", "b", "c"], &[]);
    // Every pair of nodes, and homes on all of them: users 1 to 30, three on each of... the home of a user is the
    // ring's affair.
    let mut clients: Vec<(u64, Client)> =
        (1..=30).map(|user| (user, Client::login(fleet.node(user as usize % 3), user))).collect();
    let [a, b, c] = [0, 1, 2].map(|node| fleet.node(node).metrics().sum("trunkline_remote_sessions", &[]));
    assert!(a + b + c > 0, "nobody is a guest");
    for from in 0..30 {
        for to in 0..30 {
            if from == to {
                continue;
            }
            let (low, high) = clients.split_at_mut(from.max(to));
            let (sender, receiver) =
                if from < to { (&mut low[from], &mut high[0]) } else { (&mut high[0], &mut low[to]) };
            sender.1.exchange(&mut receiver.1, receiver.0, format!("{from} to {to}").as_bytes());
        }
    }
    let away: u64 = (0..3).map(|node| fleet.node(node).metrics().sum("trunkline_messages_away_total", &[])).sum();
    assert!(away > 200, "{away} of 870 messages went over the mesh");
    drop(clients);
    fleet.finish();
}

/// Reads what there is and acknowledges it. Returns it.
fn take(client: &mut Client) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Event::Frame(frame) = client.poll_event() {
        if frame.kind == kind::DELIVER && frame.flags & flag::ACK != 0 {
            client.ack(&frame);
        }
        frames.push(frame);
    }
    frames
}

#[test]
fn a_hundred_thousand_random_messages_arrive_once_and_in_order() {
    let fleet = Fleet::start(&["a", "b", "c"], &["--unacked-max", "65536", "--outbox-bytes-max", "16MiB"]);
    random_messages_arrive_once_and_in_order(fleet, 100_000);
}

/// Four shards that share two links to each other node: what two of them have for it goes by those that have one.
#[test]
fn random_messages_arrive_once_and_in_order_over_links_that_shards_share() {
    let most = ["--unacked-max", "65536", "--outbox-bytes-max", "16MiB"];
    let fleet = Fleet::start(&["a", "b", "c"], &[&most[..], &["--shards", "4", "--mesh-links", "2"]].concat());
    for node in 0..3 {
        let metrics = fleet.node(node).metrics();
        assert_eq!(metrics.sum("trunkline_mesh_links_up", &[]), 4, "two to each other node");
    }
    random_messages_arrive_once_and_in_order(fleet, 20_000);
}

fn random_messages_arrive_once_and_in_order(fleet: Fleet, messages: u64) {
    const USERS: u64 = 60;
    let mut rng = crate::support::random::Random::seeded(7);
    let mut devices: Vec<(u64, Client)> = Vec::new();
    for user in 1..=USERS {
        for device in 0..=user % 2 {
            let login = Login::of(user).device(if device == 0 { "desk" } else { "phone" });
            devices.push((user, Client::login_with(fleet.node(rng.below(3)), &login).0));
        }
    }
    let by_user: BTreeMap<u64, Vec<usize>> =
        devices.iter().enumerate().fold(BTreeMap::new(), |mut by, (at, device)| {
            by.entry(device.0).or_default().push(at);
            by
        });
    // What each device has to get, in order, from each sending device; and which messages wait for their SENT.
    let mut due: BTreeMap<(usize, usize), std::collections::VecDeque<u64>> = BTreeMap::new();
    let mut unsettled: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    let (mut delivered, mut expected, mut settled) = (0_u64, 0_u64, 0_u64);
    let mut sent = 0;
    let (begun, commands) = (Instant::now(), fleet.redis.commands_processed());
    while sent < messages || !unsettled.is_empty() || delivered < expected {
        for _ in 0..200.min(messages - sent) {
            let from = rng.below(devices.len());
            let to = 1 + rng.below(USERS as usize) as u64;
            let acked = rng.below(2) == 0 || by_user[&to].iter().all(|at| *at == from);
            if by_user[&to].len() == 1 && by_user[&to][0] == from {
                continue;
            }
            let (user, client) = &mut devices[from];
            let body = format!("{from} {sent}");
            let id = client.send(to, if acked { flag::ACK } else { 0 }, body.as_bytes());
            for device in &by_user[&to] {
                if *device != from {
                    due.entry((*device, from)).or_default().push_back(sent);
                    expected += 1;
                }
            }
            if acked {
                unsettled.insert((from, id), to);
            }
            let _ = user;
            sent += 1;
        }
        for at in 0..devices.len() {
            for frame in take(&mut devices[at].1) {
                match frame.kind {
                    kind::DELIVER => {
                        let text = String::from_utf8(frame.body.clone()).expect("as it was sent");
                        let (from, number) = text.split_once(' ').expect("two numbers");
                        let (from, number): (usize, u64) = (from.parse().unwrap(), number.parse().unwrap());
                        assert_eq!(frame.peer, devices[from].0, "{frame:?}");
                        let next = due.get_mut(&(at, from)).and_then(|due| due.pop_front());
                        assert_eq!(next, Some(number), "device {at} from {from}: {frame:?}");
                        delivered += 1;
                    }
                    kind::SENT => {
                        let to = unsettled.remove(&(at, frame.id));
                        assert_eq!((to, frame.aux), (Some(frame.peer), outcome::DELIVERED), "{frame:?}");
                        settled += 1;
                    }
                    _ => panic!("{frame:?}"),
                }
            }
        }
    }
    // Leases, polls and heartbeats of presence go on, the more the longer it takes; messages are none of Redis'
    // business.
    let (commands, secs) = (fleet.redis.commands_processed() - commands, begun.elapsed().as_secs());
    assert!(commands < sent / 10 + 200 * secs, "{commands} commands in {secs} s, with {sent} messages");
    assert!(settled > messages / 3);
    assert!(due.values().all(|due| due.is_empty()));
    let sum = |name| -> u64 { (0..3).map(|node| fleet.node(node).metrics().sum(name, &[])).sum() };
    assert_eq!(sum("trunkline_delivery_copies_dropped_total"), 0);
    assert_eq!(sum("trunkline_fates_late_total"), 0);
    assert_eq!(sum("trunkline_messages_received_total"), sum("trunkline_messages_total"));
    drop(devices);
    fleet.finish();
}

#[test]
fn a_device_that_logs_in_elsewhere_has_one_session() {
    let fleet = Fleet::start(&["a", "b", "c"], &[]);
    for user in 1..=20 {
        let mut first = Client::login_with(fleet.node(user as usize % 3), &Login::of(user).device("phone")).0;
        let mut second = Client::login_with(fleet.node((user as usize + 1) % 3), &Login::of(user).device("phone")).0;
        first.expect_bye(code::REPLACED);
        let mut sender = Client::login(fleet.node((user as usize + 2) % 3), 1_000);
        sender.exchange(&mut second, user, b"to the one that is left");
    }
    fleet.finish();
}
