//! A node whose Redis speaks TLS.

use crate::cluster_support::Member;
use crate::cluster_support::certificates::{Signer, text};
use crate::cluster_support::redis_cluster::{RedisAlone, free_ports};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use std::net::SocketAddr;

#[test]
fn a_node_joins_by_a_redis_that_speaks_tls_and_says_nothing_of_its_password() {
    let signer = Signer::new();
    let server = signer.sign("server", "IP:127.0.0.1");
    let port = free_ports(1)[0].to_string();
    let ca = signer.ca();
    let redis = RedisAlone::start(
        true,
        &[
            ["--tls-port", &port],
            ["--tls-cert-file", text(&server.cert)],
            ["--tls-key-file", text(&server.key)],
            ["--tls-ca-cert-file", text(&ca)],
            ["--tls-auth-clients", "no"],
            ["--tls-cluster", "yes"],
            ["--requirepass", "hush"],
        ]
        .concat(),
    );
    redis.serve_all_slots("hush");
    let member = Member::with_url(&format!("rediss-cluster://:hush@127.0.0.1:{port}"), "secure");
    let [client, http] = [0, 1].map(|at| SocketAddr::from(([127, 0, 0, 1], free_ports(2)[at])));
    let unready = |flags: &[&str]| Gateway::start_unready(member.command(flags), client, http);

    // Nobody whom this system trusts has signed for that server.
    let gateway = unready(&[]);
    wait_for("/readyz says why", || gateway.get("/readyz").body.contains("no TLS with Redis").then_some(()));
    assert!(!gateway.stderr().contains("hush") && !gateway.get("/readyz").body.contains("hush"));
    drop(gateway);

    let gateway = unready(&["--redis-ca-file", text(&ca)]);
    gateway.wait_until_ready();
    let _client = Client::login(&gateway, 7);
    wait_for("presence is written", || (gateway.get("/v1/users/7").json()["presence"] == "online").then_some(()));
    assert!(!gateway.stderr().contains("hush"), "{}", gateway.stderr());
    gateway.finish();
}
