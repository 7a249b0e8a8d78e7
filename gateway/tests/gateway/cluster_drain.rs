//! Draining one node of several: out of the ring first, then each client is sent to the home that its user has then.
//!
//! The tests take turns on one cluster, since the nodes of each are the whole ring.

use crate::cluster_support::redis_cluster::RedisCluster;
use crate::cluster_support::{Member, lease};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::support::wire::{self, Login, code, kind};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const DRAIN: &str = "/v1/node/drain";

fn cluster() -> MutexGuard<'static, RedisCluster> {
    static CLUSTER: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| Mutex::new(RedisCluster::start())).lock().unwrap_or_else(PoisonError::into_inner)
}

fn address_of(node: &str) -> String {
    format!("{node}.example.org:7700")
}

/// Starts nodes of these names, and waits until each knows all of them as active.
fn start<const N: usize>(cluster: &RedisCluster, names: [&'static str; N], flags: &[&str]) -> [Gateway; N] {
    let gateways = names.map(|name| {
        let address = address_of(name);
        let flags = [&["--advertise", &address, "--lease-secs", "5"], flags].concat();
        Member::new(cluster, name).start(cluster, &flags)
    });
    wait_for("all know all", || gateways.iter().all(|gateway| ring_of(gateway) == names).then_some(()));
    gateways
}

/// The names of the nodes in the ring, as a node sees it.
fn ring_of(gateway: &Gateway) -> Vec<String> {
    let answer = gateway.get("/v1/nodes").json();
    let in_ring = |node: &&Value| node["in_ring"] == true;
    let nodes = answer["nodes"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    nodes.filter(in_ring).map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
}

/// The next BYE 12 of a client, which must be its last frame: where it is sent.
fn sent_to(client: &mut Client) -> String {
    let bye = client.recv_kind(kind::BYE);
    assert_eq!(bye.aux, code::DRAINING);
    assert!(wire::bye_reconnect_after_ms(&bye) >= 500);
    client.expect_closed();
    wire::bye_redirect(&bye)
}

fn home_of(gateway: &Gateway, user: u64) -> String {
    let explained = gateway.get(&format!("/v1/explain/{user}")).json();
    explained["home"].as_str().unwrap_or_else(|| panic!("{explained}")).to_owned()
}

#[test]
fn a_client_of_a_node_that_drains_is_sent_to_its_next_home() {
    let cluster = cluster();
    let [a, b, c] = start(&cluster, ["a", "b", "c"], &["--drain-secs", "1"]);
    let users = 1..=60;
    let mut clients: Vec<(u64, Client)> = users.clone().map(|user| (user, Client::login(&a, user))).collect();
    assert!(users.clone().any(|user| home_of(&b, user) == "a"), "60 users, and none at home at a");
    assert_eq!(a.post(DRAIN).status, 202);
    let mut homes = std::collections::BTreeSet::new();
    let addresses: Vec<String> = clients.iter_mut().map(|(_, client)| sent_to(client)).collect();
    assert_eq!(ring_of(&a), ["b", "c"], "it knew before it sent the first one away");
    wait_for("the others know", || [&b, &c].iter().all(|node| ring_of(node) == ["b", "c"]).then_some(()));
    for ((user, _), address) in clients.iter().zip(addresses) {
        assert_eq!(address, address_of(&home_of(&b, *user)), "user {user}");
        homes.insert(address);
    }
    assert_eq!(homes.into_iter().collect::<Vec<_>>(), [address_of("b"), address_of("c")]);
    assert_eq!(lease(&cluster, "a").expect("it lives").record["state"], "draining");
    assert_eq!(a.get("/readyz").status, 503);
    let drain = a.get("/v1/node").json()["drain"].clone();
    assert_eq!((&drain["moved"], &drain["sessions_left"]), (&60.into(), &0.into()), "{drain}");

    // Who comes all the same is sent on at once.
    let mut late = Client::connect(&a);
    late.write(&Login::of(7).frame());
    assert_eq!(sent_to(&mut late), address_of(&home_of(&b, 7)));
    // The others serve.
    Client::login(&b, 7).ping();

    let resumed = a.request("DELETE", DRAIN);
    assert_eq!(resumed.status, 200, "{}", resumed.body);
    wait_for("it is in the ring again", || [&a, &b, &c].iter().all(|node| ring_of(node).len() == 3).then_some(()));
    assert_eq!(a.get("/readyz").status, 200);
    Client::login(&a, 7).ping();
    for gateway in [a, b, c] {
        gateway.finish();
    }
}

#[test]
fn a_node_that_ends_sends_its_clients_to_their_next_homes() {
    let cluster = cluster();
    let [mut d, e] = start(&cluster, ["d", "e"], &["--drain-secs", "1", "--placement", "redirect"]);
    let mut clients: Vec<Client> =
        (1..=100).filter(|user| home_of(&e, *user) == "d").map(|user| Client::login(&d, user)).collect();
    assert!(!clients.is_empty());
    d.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(sent_to(client), address_of("e"));
    }
    drop(clients);
    assert!(d.wait_for_exit().success());
    assert!(lease(&cluster, "d").is_none());
    e.finish();
}

#[test]
fn a_node_without_another_sends_its_clients_nowhere() {
    let cluster = cluster();
    let [f] = start(&cluster, ["f"], &["--drain-secs", "0"]);
    let mut client = Client::login(&f, 1);
    f.post(DRAIN);
    assert_eq!(sent_to(&mut client), "");
    assert!(ring_of(&f).is_empty());
    // Called off while it is under way, whatever it has done by then.
    for _ in 0..5 {
        assert_eq!(f.request("DELETE", DRAIN).status, 200);
        assert_eq!(f.post(DRAIN).status, 202);
    }
    wait_for("it is out of the ring", || ring_of(&f).is_empty().then_some(()));
    assert_eq!(f.request("DELETE", DRAIN).status, 200);
    // The ring may be seen before the node's shards have heard of it.
    wait_for("it is in the ring again, and its users are let in and stay", || {
        let mut client = Client::connect(&f);
        client.write(&Login::of(1).frame());
        client.write_while_open(&wire::ping(1).encode());
        let stays = client.recv().kind == kind::LOGIN_OK && client.recv().kind == kind::PONG;
        (stays && ring_of(&f) == ["f"]).then_some(())
    });
    f.finish();
}

#[test]
fn without_redis_a_drain_goes_on() {
    let mut cluster = cluster();
    let [g, h] = start(&cluster, ["g", "h"], &["--drain-secs", "0"]);
    let users: Vec<u64> = (1..=40).collect();
    let mut clients: Vec<(u64, Client)> = users.iter().map(|user| (*user, Client::login(&g, *user))).collect();
    let homes: Vec<String> = users.iter().map(|user| home_of(&g, *user)).collect();
    cluster.stop_all();
    assert_eq!(g.post(DRAIN).status, 202);
    for ((_, client), home) in clients.iter_mut().zip(&homes) {
        // Nobody can be told that it is out of the ring, itself included: its own users are sent nowhere in particular.
        let expected = if home == "g" { String::new() } else { address_of(home) };
        assert_eq!(sent_to(client), expected);
    }
    cluster.start_all_empty();
    wait_for("the others know", || (ring_of(&h) == ["h"]).then_some(()));
    g.finish();
    h.finish();
}

#[test]
fn what_is_announced_knows_the_homes_of_users() {
    let cluster = cluster();
    let [first] = start(&cluster, ["i"], &[]);
    for round in 0..3 {
        // Its first login, right behind the announcement, is judged by the ring with both nodes in it.
        let address = address_of("j");
        let flags = ["--advertise", &address, "--placement", "redirect", "--lease-secs", "5"];
        let second = Gateway::start_command(Member::new(&cluster, "j").command(&flags));
        let mut served = 0;
        for user in 1..=40 {
            let mut client = Client::connect(&second);
            client.write(&Login::of(user).frame());
            let answer = client.recv();
            match (answer.kind, answer.aux) {
                (kind::LOGIN_OK, _) => served += 1,
                (kind::BYE, code::MOVED) => assert_eq!(wire::bye_redirect(&answer), address_of("i")),
                other => panic!("{other:?}"),
            }
        }
        assert!((1..40).contains(&served), "round {round}: {served} of 40 users are at home at a new node");
        second.finish();
    }
    first.finish();
}
