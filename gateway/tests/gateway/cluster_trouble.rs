//! Nodes that die, sleep, are cut off and lose their Redis below traffic: nothing is lost in silence, nobody is online
//! twice, all heals.
//!
//! The times are shorter than those of an operator's worst day; `TRUNKLINE_TROUBLE_SECS` makes them longer (`make
//! soak-cluster`).

use crate::cluster_support::traffic::{Traffic, Wander};
use crate::cluster_support::{Fleet, LEASE_SECS, lease, live};
use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::support::wire::{flag, kind, outcome};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const USERS: u64 = 45;

/// How long a pause or an outage lasts: well above a lease.
fn trouble() -> Duration {
    let secs = std::env::var("TRUNKLINE_TROUBLE_SECS").ok();
    Duration::from_secs(secs.map_or(3 * LEASE_SECS, |secs| secs.parse().expect("TRUNKLINE_TROUBLE_SECS is a number")))
}

/// A few seconds of whole traffic, then the books of all nodes.
fn check_whole(fleet: &Fleet, traffic: &mut Traffic) {
    fleet.wait_joined();
    traffic.run_whole(fleet, Duration::from_secs(1));
    for fault in ["trunkline_ring_stale_completions_total", "trunkline_mesh_misrouted_total"] {
        assert_eq!(fleet.sum(fault, &[]), 0, "{fault}");
    }
}

/// Each user is online once, where its client is.
fn check_online_once(fleet: &Fleet, users: u64) {
    for user in 1..=users {
        wait_for("the user is online once", || (live(&fleet.redis, user).len() == 1).then_some(()));
    }
}

#[test]
fn a_node_that_is_killed_takes_its_users_offline_and_nothing_else() {
    let mut fleet = Fleet::start(&["a", "b", "c"], &[]);
    let mut traffic = Traffic::start(&fleet, USERS, 1);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    let before = lease(&fleet.redis, "c").expect("a lease").incarnation;
    let gone = traffic.users_of(2);

    let mut node = fleet.nodes[2].take().expect("it runs");
    node.signal(Signal::KILL);
    let killed = Instant::now();
    node.wait_for_exit();
    let delivered = traffic.delivered;
    traffic.run(&fleet, Duration::from_secs(LEASE_SECS + 2).saturating_sub(killed.elapsed()));
    assert!(traffic.delivered > delivered + 100, "the others' messages go on");
    // Within a lease and 2 s they are offline for everybody: in the store of presence, and for a sender on each node.
    for user in &gone {
        assert_eq!(live(&fleet.redis, *user), []);
    }
    for at in 0..2 {
        let mut sender = Client::login(fleet.node(at), 1_000 + at as u64);
        for user in &gone {
            let id = sender.send(*user, flag::ACK, b"is anybody there");
            let sent = sender.recv_kind(kind::SENT);
            assert_eq!((sent.id, sent.aux), (id, outcome::OFFLINE_NOT_STORED), "user {user} for node {at}");
        }
    }
    traffic.settle(&fleet, Duration::from_secs(10));
    assert_eq!(traffic.online(), USERS as usize - gone.len(), "nobody else has lost a connection");

    fleet.start_node(2);
    assert!(lease(&fleet.redis, "c").expect("a lease").incarnation > before);
    traffic.wander = Wander::To(&[0, 1, 2]);
    traffic.settle(&fleet, Duration::from_secs(10));
    check_whole(&fleet, &mut traffic);
    check_online_once(&fleet, USERS);
    drop(traffic);
    fleet.finish();
}

#[test]
fn a_node_that_was_paused_comes_back_as_another_and_serves_nobody_meanwhile() {
    let fleet = Fleet::start(&["a", "b", "c"], &[]);
    let mut traffic = Traffic::start(&fleet, USERS, 2);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    let before = lease(&fleet.redis, "c").expect("a lease").incarnation;
    fleet.node(2).signal(Signal::STOP);
    let stopped = Instant::now();
    traffic.run(&fleet, Duration::from_secs(LEASE_SECS + 2));
    // Some of its users do not wait for it. Their connections there are left open, as by a phone that has changed its
    // network.
    let users = traffic.users_of(2);
    let (moved, _) = users.split_at(users.len() / 2);
    let left = traffic.move_users(&fleet, moved, 0);
    traffic.run(&fleet, trouble().saturating_sub(stopped.elapsed()));
    fleet.node(2).signal(Signal::CONT);
    wait_for("it has a lease again", || lease(&fleet.redis, "c").filter(|lease| lease.incarnation > before).map(drop));
    traffic.wander = Wander::To(&[0, 1, 2]);
    traffic.settle(&fleet, Duration::from_secs(15));
    check_whole(&fleet, &mut traffic);
    check_online_once(&fleet, USERS);
    for mut client in left {
        let last = client.recv_until_closed().pop().map(|frame| (frame.kind, frame.aux));
        assert_eq!(last, Some((kind::BYE, crate::support::wire::code::REPLACED)), "the old connection is ended");
    }
    assert!(fleet.node(2).metrics().sum("trunkline_fenced_total", &[]) > 0 || traffic.byes.is_empty());
    drop(traffic);
    fleet.finish();
}

#[test]
fn a_message_that_failed_because_a_node_was_paused_is_not_sent_again_by_it() {
    let fleet = Fleet::start(&["a", "b", "c"], &["--redeliver-secs", "2", "--redeliver-attempts-max", "100"]);
    let before = lease(&fleet.redis, "c").expect("a lease").incarnation;
    let mut sender = Client::login(fleet.node(0), 1);
    let mut recipients: Vec<Client> = (100..112).map(|user| Client::login(fleet.node(2), user)).collect();
    for (recipient, user) in recipients.iter_mut().zip(100..) {
        sender.send(user, flag::ACK, b"never acknowledged");
        recipient.recv_deliver();
    }
    fleet.node(2).signal(Signal::STOP);
    let fates: Vec<u16> = recipients.iter().map(|_| sender.recv_kind(kind::SENT).aux).collect();
    assert!(fates.contains(&outcome::OVERLOADED), "users whose home is the paused node: {fates:?}");
    for recipient in &mut recipients {
        while let Event::Frame(_) = recipient.poll_event() {}
    }
    fleet.node(2).signal(Signal::CONT);
    wait_for("it has a lease again", || lease(&fleet.redis, "c").filter(|lease| lease.incarnation > before).map(drop));
    fleet.wait_joined();
    std::thread::sleep(Duration::from_secs(5));
    for recipient in &mut recipients {
        recipient.write_while_open(&crate::support::wire::ping(1).encode());
        let frame = recipient.recv();
        assert_eq!(frame.kind, kind::PONG, "sent again after its sender was told that it failed: {frame:?}");
    }
    fleet.finish();
}

#[test]
fn messages_between_nodes_go_on_while_all_of_redis_is_down() {
    let mut fleet = Fleet::start(&["a", "b", "c"], &["--lease-secs", "3"]);
    let mut traffic = Traffic::start(&fleet, USERS, 3);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    fleet.redis.stop_all();
    let stopped = Instant::now();
    while stopped.elapsed() < trouble() + Duration::from_secs(3) {
        traffic.run_whole(&fleet, Duration::from_secs(1));
        let mut guest = Client::login(fleet.node(1), 2_000);
        guest.ping();
    }
    for node in fleet.running() {
        let ready = node.get("/readyz");
        assert_eq!((ready.status, ready.json()["degraded"].is_array()), (200, true), "{}", ready.body);
    }
    fleet.redis.start_all_empty();
    // Before they have new leases they all work with the view of old, and one that is first does not find the others.
    let has_lease = |name: &&str| lease(&fleet.redis, name).is_some();
    wait_for("all have leases again", || ["a", "b", "c"].iter().all(has_lease).then_some(()));
    check_whole(&fleet, &mut traffic);
    check_online_once(&fleet, USERS);
    drop(traffic);
    fleet.finish();
}

#[test]
fn a_redis_master_that_dies_costs_no_message() {
    // A lease outlasts the failover.
    let mut fleet = Fleet::start(&["a", "b", "c"], &["--lease-secs", "5"]);
    let mut traffic = Traffic::start(&fleet, USERS, 4);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    fleet.redis.kill(0);
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(6) {
        traffic.run_whole(&fleet, Duration::from_secs(1));
    }
    check_online_once(&fleet, USERS);
    drop(traffic);
    fleet.finish();
}

/// Runs a command of iproute2 in the network of this process.
fn ip(arguments: &str) {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// In a network of its own, where ports can be dropped and nobody else notices.
#[test]
fn a_mesh_that_is_cut_between_two_of_three_nodes_heals() {
    let test = std::env::current_exe().expect("the path of this test");
    let status = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(test)
        .args(["--exact", "the_mesh_between_two_nodes_is_cut", "--ignored", "--nocapture"])
        .status()
        .expect("run unshare, of util-linux");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "it changes the network of its process: the test above runs it in one of its own"]
fn the_mesh_between_two_nodes_is_cut() {
    ip("link set lo up");
    // The rule for local addresses comes first and cannot be preceded; so it is moved behind those of this test.
    ip("rule add pref 100 lookup local");
    ip("rule del pref 0");
    let fleet = Fleet::start(&["a", "b", "c"], &[]);
    let mut traffic = Traffic::start(&fleet, USERS, 6);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    // Nodes whose name sorts first dial: to the mesh port of b comes only a.
    let port = fleet.members[1].mesh.rsplit_once(':').expect("host:port").1.to_owned();
    for side in ["dport", "sport"] {
        ip(&format!("rule add pref 50 ipproto tcp {side} {port} blackhole"));
    }
    traffic.run(&fleet, Duration::from_secs(5));
    // Now both know. What c is the home of, and all that goes by c, goes on; the rest is refused at once, and nobody is
    // let in twice.
    let (refused, delivered) = (traffic.outcomes.get(&outcome::OVERLOADED).copied().unwrap_or(0), traffic.delivered);
    traffic.run(&fleet, trouble());
    assert!(
        traffic.outcomes[&outcome::OVERLOADED] > refused,
        "messages that cannot go are refused: {:?}",
        traffic.outcomes
    );
    assert!(traffic.delivered > delivered + 100, "those that can go, go");
    assert_eq!(traffic.online(), USERS as usize, "nobody lost a connection");
    assert_eq!(fleet.sum("trunkline_cluster_fenced", &[]), 0, "Redis sees all of them");
    check_online_once(&fleet, USERS);
    for side in ["dport", "sport"] {
        ip(&format!("rule del pref 50 ipproto tcp {side} {port} blackhole"));
    }
    traffic.straggler = Duration::from_secs(60);
    fleet.wait_joined();
    traffic.settle(&fleet, Duration::from_secs(20));
    check_whole(&fleet, &mut traffic);
    check_online_once(&fleet, USERS);
    drop(traffic);
    fleet.finish();
}

/// Whose home each of some users is, as a node sees it.
fn homes(gateway: &Gateway) -> Vec<String> {
    let home = |user: u64| gateway.get(&format!("/v1/explain/{user}")).json()["home"].as_str().map(str::to_owned);
    (10_001..10_601).map(|user| home(user).expect("a node is the home")).collect()
}

#[test]
fn nodes_come_and_go_and_messages_to_users_who_move_arrive() {
    let mut fleet = Fleet::start(&["a", "b", "c"], &["--drain-secs", "1"]);
    let mut traffic = Traffic::start(&fleet, USERS, 5);
    traffic.wander = Wander::To(&[0, 1]);
    traffic.run_whole(&fleet, Duration::from_secs(1));
    let before = homes(fleet.node(0));
    let share = before.iter().filter(|home| *home == "c").count() as f64 / before.len() as f64;
    assert!((share * 3.0 - 1.0).abs() < 0.2, "{share} of the users are at home on one of three nodes");
    for _ in 0..2 {
        // Out of the ring while its users are still there, then they are sent away; with the others' traffic going on.
        let mut node = fleet.nodes[2].take().expect("it runs");
        node.signal(Signal::TERM);
        traffic.run(&fleet, Duration::from_secs(3));
        assert!(node.wait_for_exit().success());
        traffic.settle(&fleet, Duration::from_secs(10));
        check_whole(&fleet, &mut traffic);
        // Just the users of the node that has gone have moved, and they come back with it.
        let without = homes(fleet.node(0));
        assert!(before.iter().zip(&without).all(|(before, after)| (before == "c") == (before != after)));
        fleet.start_node(2);
        traffic.run_whole(&fleet, Duration::from_secs(2));
        fleet.wait_joined();
        assert_eq!(homes(fleet.node(0)), before);
    }
    let unrouted = fleet.sum("trunkline_messages_total", &[("outcome", "unrouted_dropped")]);
    assert_eq!(unrouted, 0, "messages without ACK that found no way");
    drop(traffic);
    fleet.finish();
}
