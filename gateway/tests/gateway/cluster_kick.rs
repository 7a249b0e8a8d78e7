//! Ending a user's sessions: from any node and from a router, wherever the sessions are.

use crate::cluster_support::Fleet;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::http::{self, Response};
use crate::support::names::reason_label;
use crate::support::scratch::ScratchFile;
use crate::support::tls::Identity;
use crate::support::wait_for;
use crate::support::wire::{Login, code};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_router::dispatch::Strategy;
use trunkline_router::http::{Access, ApiKeys, NewKey, Places, Scope, Service, ServiceConfig};
use trunkline_router::redis::{Plane, RedisConfig, Tls, TlsFiles};

/// The API of a router on a thread of its own, until the end of the test's process.
fn router(redis_url: &str, access: Access, node_key: Option<String>) -> SocketAddr {
    router_with(redis_url, access, node_key, Err("this test has none".to_owned()))
}

/// The same, with TLS to nodes.
fn router_with(redis_url: &str, access: Access, node_key: Option<String>, node_tls: Result<Tls, String>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    listener.set_nonblocking(true).expect("a socket for tokio");
    let redis = RedisConfig::parse(redis_url).expect("the URL of the cluster");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let plane = Plane::connect(&redis).await.expect("Redis works");
            let (access, places) = (Arc::new(access), Places::new(64));
            let config = ServiceConfig {
                lease_secs: 2,
                strategy: Strategy::Home,
                zone: String::new(),
                slow_start_secs: 0,
                access,
                places: places.clone(),
                node_key,
                node_tls,
            };
            let service = Arc::new(Service::new(plane, config).expect("a router"));
            tokio::spawn(service.clone().watch());
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let routes = trunkline_router::http::router(service);
            trunkline_router::http::serve(listener, routes, places, None, std::future::pending()).await;
        });
    });
    wait_for("the router knows the nodes", || {
        let nodes = http::request(address, "GET", "/v1/nodes").ok().filter(|answer| answer.status == 200)?;
        (!nodes.json()["nodes"].as_array()?.is_empty()).then_some(())
    });
    address
}

fn kick(address: SocketAddr, user: u64, query: &str) -> Response {
    http::request(address, "POST", &format!("/v1/users/{user}/kick{query}")).expect("an answer")
}

fn kicked(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// A session of the user at each node, by device name.
fn sessions(fleet: &Fleet, user: u64) -> Vec<Client> {
    let devices = ["desk", "phone", "pad"];
    fleet
        .running()
        .zip(devices)
        .map(|(node, device)| Client::login_with(node, &Login::of(user).device(device)).0)
        .collect()
}

#[test]
fn any_node_and_a_router_end_the_sessions_of_a_user_everywhere() {
    let fleet = Fleet::start(&["a", "b", "c"], &[]);
    let router = router(&fleet.redis.url(), Access::new(None, false), None);
    // Homes are spread, so that each of the askers is home to some of the users and a stranger to others.
    for user in 100..112 {
        let mut clients = sessions(&fleet, user);
        let askers: Vec<SocketAddr> = fleet.running().map(Gateway::http_address).chain([router]).collect();
        let asker = askers[user as usize % askers.len()];
        assert_eq!(kicked(&kick(asker, user, "?device=phone")), json!({"kicked": 1}), "user {user}");
        clients.remove(1).expect_bye(code::KICKED);
        assert_eq!(kicked(&kick(asker, user, "")), json!({"kicked": 2}), "user {user}");
        clients.iter_mut().for_each(|client| client.expect_bye(code::KICKED));
        for asker in askers {
            let nobody = kick(asker, user, "");
            assert_eq!(nobody.status, 404, "{}", nobody.body);
        }
    }
    assert_eq!(fleet.running().map(|node| node.metrics().closed(reason_label::KICKED)).sum::<u64>(), 36);
    fleet.finish();
}

#[test]
fn a_kick_that_not_every_node_confirms_is_no_success() {
    // With long leases nobody takes the node that does not answer for gone.
    let fleet = Fleet::start_with(&["a", "b"], |_| ["--lease-secs", "60"].map(str::to_owned).to_vec());
    let [a, b] = [fleet.node(0), fleet.node(1)];
    let home = |user: u64| a.get(&format!("/v1/users/{user}")).json()["home"].as_str().expect("a home").to_owned();
    let of = |name: &str| (200..).find(|user| home(*user) == name).expect("a user of that home");
    let (here, there) = (of("a"), of("b"));
    let mut at_a: Vec<Client> =
        [here, there].map(|user| Client::login_with(a, &Login::of(user).device("desk")).0).into_iter().collect();
    let _at_b: Vec<Client> = [here, there].map(|user| Client::login_with(b, &Login::of(user).device("phone")).0).into();
    b.signal(Signal::STOP);
    for user in [here, there] {
        let part = kick(a.http_address(), user, "");
        assert_eq!(part.status, 503, "{}", part.body);
        assert!(part.body.contains("1 sessions were ended"), "{}", part.body);
        assert_eq!(part.header("retry-after"), Some("1"));
    }
    at_a.iter_mut().for_each(|client| client.expect_bye(code::KICKED));
    b.signal(Signal::CONT);
    for user in [here, there] {
        wait_for("it is asked again with success", || {
            let answer = kick(a.http_address(), user, "");
            [200, 404].contains(&answer.status).then_some(())
        });
        wait_for("no session is left", || (kick(a.http_address(), user, "").status == 404).then_some(()));
    }
    fleet.finish();
}

#[test]
fn a_router_shows_nodes_its_key() {
    let [ops, service] = ["ops", "router"].map(|id| NewKey::make(id, &[Scope::Kick]).expect("a key"));
    let keys = ScratchFile::new("keys", format!("{}\n", service.line));
    let flags = ["--api-keys-file".to_owned(), keys.path().to_owned()].to_vec();
    let fleet = Fleet::start_with(&["a", "b"], |_| flags.clone());
    let access = || Access::new(Some(ApiKeys::parse(&ops.line).expect("the line")), false);
    let with = |address, key: &str| {
        http::request_with(address, "POST", "/v1/users/7/kick", &format!("Authorization: Bearer {key}\r\n"))
            .expect("an answer")
    };
    let keyless = router(&fleet.redis.url(), access(), None);
    let refused = with(keyless, &ops.key);
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("--node-key-file"), "{}", refused.body);
    let router = router(&fleet.redis.url(), access(), Some(service.key.clone()));
    assert_eq!(kick(router, 7, "").status, 401);
    assert_eq!(with(router, &service.key).status, 401, "that is a key of the nodes");
    assert_eq!(with(router, &ops.key).status, 404);
    let mut client = Client::login(fleet.node(1), 7);
    assert_eq!(kicked(&with(router, &ops.key)), json!({"kicked": 1}));
    client.expect_bye(code::KICKED);
    fleet.finish();
}

#[test]
fn a_router_asks_over_tls_where_nodes_speak_it() {
    let identity = Identity::new();
    let flags = ["--http-tls-cert", identity.cert.path(), "--http-tls-key", identity.key.path()].map(str::to_owned);
    let fleet = Fleet::start_with(&["a"], |_| flags.to_vec());
    let open = || Access::new(None, false);
    let without = router(&fleet.redis.url(), open(), None);
    let refused = kick(without, 7, "");
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("this test has none"), "{}", refused.body);
    let strangers = Identity::new();
    for (trusted, status) in [(&strangers, 503), (&identity, 200)] {
        let mut client = Client::login(fleet.node(0), 7);
        let files = TlsFiles { ca: Some(trusted.cert.path().into()), ..TlsFiles::default() };
        let tls = Tls::load(&files).map_err(|error| error.to_string());
        let answer = kick(router_with(&fleet.redis.url(), open(), None, tls), 7, "");
        assert_eq!(answer.status, status, "{}", answer.body);
        match status {
            200 => client.expect_bye(code::KICKED),
            _ => assert!(answer.body.contains("--node-ca-file"), "{}", answer.body),
        }
    }
    fleet.finish();
}
