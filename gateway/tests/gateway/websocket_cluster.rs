//! Clients of WebSocket libraries, and the client in JavaScript, go where a node that drains sends them.

use crate::cluster_support::Member;
use crate::cluster_support::redis_cluster::{RedisCluster, free_ports};
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::websocket::LibraryClient;

/// Runtimes of JavaScript, parted by commas: `make test-runtimes` names Bun and Deno besides.
const RUNTIMES: &str = "TRUNKLINE_JS_RUNTIMES";

/// Two nodes whose clients can be sent from one to the other.
fn start(cluster: &RedisCluster) -> [Gateway; 2] {
    let nodes = ["a", "b"].map(|name| {
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        Member::new(cluster, name).start(cluster, &["--listen", &address, "--advertise", &address, "--drain-secs", "0"])
    });
    wait_for("both know both", || nodes.iter().all(|node| in_ring(node) == 2).then_some(()));
    nodes
}

fn in_ring(gateway: &Gateway) -> usize {
    let answer = gateway.get("/v1/nodes").json();
    answer["nodes"].as_array().map_or(0, |nodes| nodes.iter().filter(|node| node["in_ring"] == true).count())
}

/// Has a client talk at the first node, drains that, and sees the client talk at the second one.
fn drain_below(name: &str, [from, to]: &[Gateway; 2], start: impl FnOnce(&Gateway) -> LibraryClient, told: &[&str]) {
    let mut client = start(from);
    assert_eq!(client.line(), "talked", "{name}");
    let logins = || to.metrics().sum("trunkline_logins_total", &[]);
    let before = logins();
    assert_eq!(from.post("/v1/node/drain").status, 202);
    for line in told {
        assert_eq!(client.line(), *line, "{name}");
    }
    assert_eq!(client.line(), "talked there", "{name}");
    let status = client.child.wait().expect("the client's status");
    assert!(status.success(), "{name}: {status}");
    assert!(logins() >= before + 2, "{name}: it talked, but not there");
    assert_eq!(from.request("DELETE", "/v1/node/drain").status, 200);
    wait_for("both are in the ring again", || (in_ring(from) == 2 && in_ring(to) == 2).then_some(()));
}

#[test]
fn clients_go_where_a_node_that_drains_sends_them() {
    let cluster = RedisCluster::start();
    let nodes = start(&cluster);
    for script in ["with_websockets.py", "with_websocket_client.py", "with_wsproto.py", "with_ws.mjs"] {
        let start = |gateway: &Gateway| LibraryClient::start(gateway, script);
        drain_below(script, &nodes, start, &["bye 12 4012"; 2]);
    }
    let runtimes = std::env::var(RUNTIMES).unwrap_or_else(|_| "node".to_owned());
    for runtime in runtimes.split(',') {
        let start = |gateway: &Gateway| LibraryClient::start_own(gateway, runtime, "with_cluster.mjs");
        drain_below(runtime, &nodes, start, &[]);
    }
    for node in nodes {
        node.finish();
    }
}
