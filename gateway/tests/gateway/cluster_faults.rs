//! A Redis that stops, forgets and comes back below real gateways: they serve on, and presence is whole again.
//!
//! The tests take turns on one cluster, since each breaks all of it.

use crate::cluster_support::redis_cluster::{RedisCluster, SERVERS};
use crate::cluster_support::{Member, lease, live, wait_live};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::support::wire::Login;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

fn cluster() -> MutexGuard<'static, RedisCluster> {
    static CLUSTER: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| Mutex::new(RedisCluster::start())).lock().unwrap_or_else(PoisonError::into_inner)
}

fn logins(gateway: &Gateway, users: std::ops::Range<u64>) -> Vec<(u64, Client, u64)> {
    users
        .map(|user| {
            let (client, login_ok) = Client::login_with(gateway, &Login::of(user));
            (user, client, login_ok.session)
        })
        .collect()
}

fn wait_all_live(cluster: &RedisCluster, clients: &[(u64, Client, u64)]) {
    for (user, _, session) in clients {
        wait_live(cluster, *user, &[("default", *session)]);
    }
}

#[test]
fn a_node_serves_on_without_redis_and_presence_is_whole_when_it_is_back_empty() {
    let mut cluster = cluster();
    let gateway = Member::new(&cluster, "outage").start(&cluster, &["--lease-secs", "5"]);
    let mut clients = logins(&gateway, 101..131);
    wait_all_live(&cluster, &clients);
    let before = lease(&cluster, "outage").expect("a lease").incarnation;

    cluster.stop_all();
    let degraded = wait_for("it says that Redis fails", || {
        let ready = gateway.get("/readyz");
        assert_eq!(ready.status, 200, "{}", ready.body);
        ready.json()["degraded"][0].as_str().map(str::to_owned)
    });
    assert!(degraded.contains("Redis"), "{degraded}");
    clients.extend(logins(&gateway, 131..141));
    let (gone, client, _) = clients.remove(0);
    drop(client);
    wait_for("ten seconds without Redis, two leases", || {
        assert_eq!(gateway.get("/readyz").status, 200);
        let shown = gateway.get("/v1/node").json();
        assert_eq!(shown["cluster"]["lease"]["valid"], true, "{shown}");
        (shown["cluster"]["redis"]["failing_ms"].as_u64()? >= 10_000).then_some(())
    });
    let (_, mut sender, _) = clients.pop().expect("clients");
    let (peer, receiver, _) = clients.last_mut().expect("clients");
    sender.exchange(receiver, *peer, b"without Redis");
    assert_eq!(gateway.metrics().sum("trunkline_cluster_redis_up", &[]), 0);
    drop(sender);

    cluster.start_all_empty();
    wait_all_live(&cluster, &clients);
    let after = lease(&cluster, "outage").expect("a lease").incarnation;
    assert_eq!(after, before, "it may serve all the time, so its lease is written again as it was");
    assert_eq!(live(&cluster, gone), []);
    wait_for("nothing is degraded", || gateway.get("/readyz").json()["degraded"].is_null().then_some(()));
    drop(clients);
    gateway.finish();
}

#[test]
fn what_redis_forgot_is_written_again() {
    let cluster = cluster();
    let gateway = Member::new(&cluster, "forgets").start(&cluster, &[]);
    let clients = logins(&gateway, 201..231);
    wait_all_live(&cluster, &clients);
    let before = lease(&cluster, "forgets").expect("a lease").incarnation;
    cluster.flush_all();
    wait_all_live(&cluster, &clients);
    assert_eq!(lease(&cluster, "forgets").expect("a lease").incarnation, before);
    assert_eq!(gateway.get("/readyz").status, 200);
    drop(clients);
    gateway.finish();
}

#[test]
fn a_queue_that_overflowed_is_made_up_for() {
    let cluster = cluster();
    // Its lease outlasts the pause, so nothing but the overflow makes it write all again.
    let flags = ["--presence-queue-max", "1000", "--lease-secs", "30"];
    let gateway = Member::new(&cluster, "overflow").start(&cluster, &flags);
    let before = lease(&cluster, "overflow").expect("a lease").incarnation;
    (0..SERVERS).for_each(|server| cluster.pause(server));
    // Two writes each that make no difference in the end, but wait; then those that have to be there.
    let passing = 1_001..1_601;
    logins(&gateway, passing.clone());
    let clients = logins(&gateway, 2_001..2_201);
    gateway.wait_for_metrics("writes are refused", |metrics| metrics.sum("trunkline_presence_refused_total", &[]) > 0);
    (0..SERVERS).for_each(|server| cluster.resume(server));
    cluster.wait_ok();
    wait_for("it has a new incarnation", || {
        lease(&cluster, "overflow").filter(|lease| lease.incarnation > before).map(drop)
    });
    wait_all_live(&cluster, &clients);
    gateway.wait_for_metrics("all is written", |metrics| {
        metrics.sum("trunkline_presence_queued", &[]) == 0 && metrics.sum("trunkline_presence_resyncing", &[]) == 0
    });
    let ghosts: Vec<u64> = passing.filter(|user| !live(&cluster, *user).is_empty()).collect();
    assert!(ghosts.is_empty(), "{ghosts:?}");
    drop(clients);
    gateway.finish();
}
