//! Nodes that are started before what they need is there: Redis, its data, its password, or their own name.

use crate::cluster_support::redis_cluster::{RedisAlone, RedisCluster, SERVERS, free_ports};
use crate::cluster_support::{Member, lease, redis};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::names::metric;
use crate::support::wait_for;
use crate::support::wire::{Login, code, kind};
use rustix::process::Signal;
use std::net::SocketAddr;

/// A node at addresses that are known before it says them.
fn unready(member: &Member, flags: &[&str]) -> Gateway {
    let [client, http] = [0, 1].map(|at| SocketAddr::from(([127, 0, 0, 1], free_ports(2)[at])));
    Gateway::start_unready(member.command(flags), client, http)
}

/// Waits until `/readyz` is 503 with a reason that holds this.
fn wait_for_reason(gateway: &Gateway, part: &str) {
    wait_for(&format!("/readyz says {part:?}"), || {
        gateway.assert_running();
        let ready = gateway.get("/readyz");
        assert_ne!(ready.status, 200, "{}", ready.body);
        ready.json()["reason"].as_str().is_some_and(|reason| reason.contains(part)).then_some(())
    });
    assert_eq!(gateway.get("/healthz").status, 200);
}

#[test]
fn a_node_waits_for_a_redis_that_comes_late_and_joins_by_itself() {
    let mut cluster = RedisCluster::start();
    cluster.stop_all();
    let member = Member::new(&cluster, "early");
    let gateway = unready(&member, &[]);
    wait_for_reason(&gateway, "waiting for Redis");
    // Whoever comes early is told so, and when to come back.
    for user in 1..=3 {
        let mut client = Client::connect(&gateway);
        client.write_while_open(&Login::of(user).frame().encode());
        let bye = client.recv();
        assert_eq!((bye.kind, bye.aux), (kind::BYE, code::OVERLOADED), "{bye:?}");
        assert!(crate::support::wire::bye_reconnect_after_ms(&bye) >= 1_000, "{bye:?}");
        client.expect_closed();
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("trunkline_connections_turned_away_total", &[]), 3);
    assert_eq!(metrics.sum("trunkline_ready", &[]), 0);

    cluster.start_all_empty();
    gateway.wait_until_ready();
    wait_for("it is active", || lease(&cluster, "early").filter(|lease| lease.record["state"] == "active").map(drop));
    let mut client = Client::login(&gateway, 1);
    client.ping();
    drop(client);
    let said = gateway.stderr();
    let waits = said.lines().filter(|line| line.contains("waiting for Redis")).count();
    assert!((1..=6).contains(&waits), "{waits} lines while nothing changed: {said}");
    wait_for("the client has gone", || (gateway.metrics().sum(metric::OPEN, &[]) == 0).then_some(()));
    gateway.finish();
}

#[test]
fn a_node_that_waits_ends_with_a_signal() {
    let nowhere = Member::with_url(&format!("redis-cluster://127.0.0.1:{}", free_ports(1)[0]), "waits");
    let mut gateway = unready(&nowhere, &[]);
    wait_for_reason(&gateway, "cannot be reached");
    gateway.signal(Signal::TERM);
    assert!(gateway.wait_for_exit().success());
}

#[test]
fn a_password_that_is_refused_is_said_loudly_and_waited_for() {
    let cluster = RedisCluster::start();
    let allow = |password: &str| {
        for server in 0..SERVERS {
            let set = ["ACL", "SETUSER", "trunk", "on", password, "~*", "+@all"];
            cluster.ask(server, &set).expect("a server takes the password");
        }
    };
    allow(">before");
    let url = cluster.url().replace("redis-cluster://", "redis-cluster://trunk:after@");
    let member = Member::with_url(&url, "rotated");
    let gateway = unready(&member, &[]);
    wait_for_reason(&gateway, "refuses user or password");
    let loud = |line: &str| line.contains("ERROR") && line.contains("--redis is wrong");
    wait_for("the log says so as an error", || gateway.stderr().lines().any(loud).then_some(()));
    allow(">after");
    gateway.wait_until_ready();
    gateway.finish();
}

#[test]
fn a_node_that_was_killed_waits_for_its_own_lease_to_run_out() {
    let cluster = RedisCluster::start();
    let member = Member::new(&cluster, "again");
    let mut first = member.start(&cluster, &["--lease-secs", "8"]);
    let before = lease(&cluster, "again").expect("a lease").incarnation;
    first.signal(Signal::KILL);
    first.wait_for_exit();
    let second = unready(&member, &["--lease-secs", "8"]);
    wait_for_reason(&second, "the lease of its last life");
    second.wait_until_ready();
    assert!(lease(&cluster, "again").is_some_and(|lease| lease.incarnation > before));
    second.finish();
    assert_eq!(redis(&cluster, &["ZSCORE", "tl:nodes", "again"]), "");
}

#[test]
fn a_cluster_without_slots_is_waited_for() {
    let server = RedisAlone::start(true, &[]);
    let member = Member::with_url(&format!("redis-cluster://127.0.0.1:{}", server.port()), "slots");
    let mut gateway = unready(&member, &[]);
    wait_for_reason(&gateway, "does not serve all slots");
    gateway.signal(Signal::TERM);
    assert!(gateway.wait_for_exit().success());
}
