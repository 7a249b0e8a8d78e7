//! Nodes that others cannot dial do not become active; those that they can, do.

use crate::cluster_support::redis_cluster::{RedisCluster, free_ports};
use crate::cluster_support::{Member, lease, redis};
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use serde_json::json;
use std::net::SocketAddr;

fn state(cluster: &RedisCluster, name: &str) -> String {
    let state = lease(cluster, name).map(|lease| lease.record["state"].clone());
    state.and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Starts a node that need not become active.
fn start(member: &Member) -> Gateway {
    let [client, http] = [0, 1].map(|_| SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0])));
    Gateway::start_unready(member.command(&[]), client, http)
}

/// Puts a node into Redis that does not run: of this state, at this mesh address, having found this.
fn pretend(cluster: &RedisCluster, name: &str, state: &str, mesh: &str, reach: serde_json::Value) {
    let incarnation = 7;
    let record = json!({
        "name": name, "incarnation": incarnation, "state": state, "weight": 1, "shards": 1, "mesh": mesh,
        "advertise": "gate.example.org:7700", "protocol": 1, "connections": 0, "users": 0, "started_ms": 1,
        "reach": reach,
    });
    let held = format!("{incarnation}\nabcdef\n{record}");
    redis(cluster, &["SET", &format!("tl:node:{{{name}}}"), &held, "PX", "120000"]);
    redis(cluster, &["ZADD", "tl:nodes", "9999999999999", name]);
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_ports(1)[0])
}

#[test]
fn a_node_that_its_peer_cannot_dial_stays_joining_until_it_can() {
    let cluster = RedisCluster::start();
    let peer_mesh = free_address();
    pretend(&cluster, "peer", "active", &peer_mesh, json!([]));
    let member = Member::new(&cluster, "new");
    let gateway = start(&member);
    let reason = |part: &str| {
        wait_for(&format!("/readyz says {part:?}"), || {
            let ready = gateway.get("/readyz");
            assert_eq!(ready.status, 503, "{}", ready.body);
            ready.json()["reason"].as_str().is_some_and(|reason| reason.contains(part)).then_some(())
        });
        assert_eq!(state(&cluster, "new"), "joining");
    };
    reason("waiting until peer have dialed this node at");
    let incarnation = lease(&cluster, "new").expect("a lease").incarnation;
    let found = |ok: bool| json!([{"name": "new", "incarnation": incarnation, "ok": ok}]);
    pretend(&cluster, "peer", "active", &peer_mesh, found(false));
    reason("peer cannot dial it");
    wait_for("the log says so as an error", || {
        let loud = |line: &str| line.contains("ERROR") && line.contains(&member.mesh) && line.contains("--mesh");
        gateway.stderr().lines().any(loud).then_some(())
    });
    pretend(&cluster, "peer", "active", &peer_mesh, found(true));
    gateway.wait_until_ready();
    wait_for("it is active", || (state(&cluster, "new") == "active").then_some(()));
    gateway.finish();
}

#[test]
fn a_node_says_of_each_that_joins_whether_that_very_node_answers_at_its_address() {
    let cluster = RedisCluster::start();
    let member = Member::new(&cluster, "first");
    let gateway = member.start(&cluster, &[]);
    // Nobody is there; and where 127.0.0.1 leads on another machine, another node answers: here the one that dials.
    pretend(&cluster, "nobody", "joining", &free_address(), json!([]));
    pretend(&cluster, "elsewhere", "joining", &member.mesh, json!([]));
    let found = |name: &str| {
        let record = lease(&cluster, "first")?.record;
        let reach = record["reach"].as_array()?.iter().find(|reach| reach["name"] == name)?.clone();
        (reach["incarnation"] == 7).then(|| reach["ok"].as_bool()).flatten()
    };
    for name in ["nobody", "elsewhere"] {
        let ok = wait_for("it has been dialed", || found(name));
        assert!(!ok, "{name} was found where it is not");
    }
    let second = Member::new(&cluster, "second");
    let other = start(&second);
    other.wait_until_ready();
    other.finish();
    // Those who join no more are of no interest.
    redis(&cluster, &["DEL", "tl:node:{nobody}"]);
    wait_for("it is forgotten", || {
        let record = lease(&cluster, "first")?.record;
        let left: Vec<&str> = record["reach"].as_array()?.iter().filter_map(|reach| reach["name"].as_str()).collect();
        (left == ["elsewhere"]).then_some(())
    });
    gateway.finish();
}

#[test]
fn a_mesh_address_on_loopback_beside_a_real_one_is_refused() {
    let cluster = RedisCluster::start();
    pretend(&cluster, "real", "active", "192.0.2.7:7790", json!([]));
    let member = Member::new(&cluster, "loopback");
    let mut command = member.command(&["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let output = command.output().expect("run the gateway");
    let stderr = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("192.0.2.7:7790") && stderr.contains("--mesh"), "{stderr}");
    assert_eq!(state(&cluster, "loopback"), "", "it took nobody's place");
    // As far as the configuration tells it, it is refused before anything is asked.
    let output = member.command(&["--advertise", "192.0.2.1:7700"]).output().expect("run the gateway");
    let stderr = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("give --mesh an address"), "{stderr}");
}

#[test]
fn nodes_that_are_started_together_all_become_active() {
    let cluster = RedisCluster::start();
    let members = ["c", "a", "b", "d"].map(|name| Member::new(&cluster, name));
    let gateways: Vec<Gateway> = members.iter().map(start).collect();
    for (member, gateway) in members.iter().zip(&gateways) {
        gateway.wait_until_ready();
        wait_for("it is active", || (state(&cluster, member.name) == "active").then_some(()));
    }
    for gateway in gateways {
        gateway.finish();
    }
}

#[test]
fn a_crashed_node_keeps_nobody_out_for_longer_than_its_lease() {
    let cluster = RedisCluster::start();
    let first = Member::new(&cluster, "first");
    let mut gateway = first.start(&cluster, &[]);
    gateway.signal(rustix::process::Signal::KILL);
    gateway.wait_for_exit();
    let second = Member::new(&cluster, "second");
    let other = start(&second);
    other.wait_until_ready();
    assert_eq!((state(&cluster, "first").as_str(), state(&cluster, "second").as_str()), ("", "active"));
    other.finish();
}
