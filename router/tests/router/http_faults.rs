//! The `router` binary when something is wrong: flags, Redis at the start, Redis while serving, signals.

use crate::http_support::{Answer, Nodes, Router, record, router_command, run};
use crate::support::redis_cluster::{RedisAlone, RedisCluster, free_ports, wait_until};
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn bad_flags_end_with_a_sentence_and_status_2() {
    let redis = "redis-cluster://127.0.0.1:1";
    for (arguments, hint) in [
        (&[][..], "--redis"),
        (&["--redis", "127.0.0.1:7000"], "begin with redis-cluster://"),
        (&["--redis", "redis://127.0.0.1:7000"], "redis-cluster://host:port"),
        (&["--redis", redis, "--strategy", "fastest"], "use one of home, weighted-round-robin, least-conn, random-two"),
        (&["--redis", redis, "--lease-secs", "0"], "--lease-secs"),
        (&["--redis", redis, "--http", "localhost"], "--http"),
        (&["--redis", redis, "--log-format", "xml"], "text, plain, json"),
        (&["--redis", redis, "--log", "loudly=maybe"], "--log"),
        (&["--redis", redis, "--rediss"], "--rediss"),
    ] {
        let (status, stdout, stderr) = run(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains(hint), "{arguments:?}: {stderr}");
    }
}

#[test]
fn flags_come_from_the_environment_too_and_a_password_is_not_shown() {
    let mut command = router_command(&[]);
    command
        .env("TRUNKLINE_ROUTER_REDIS", "redis-cluster://me:hunter2@127.0.0.1:1")
        .env("TRUNKLINE_ROUTER_STRATEGY", "random-two");
    // It would wait for that Redis for ever.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = taken.local_addr().unwrap().to_string();
    let output = command.env("TRUNKLINE_ROUTER_HTTP", http).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "the address is in use: {said}");
    assert!(said.contains("logins by random-two") && !said.contains("hunter2"), "{said}");
    let help =
        router_command(&["--help"]).env("TRUNKLINE_ROUTER_REDIS", "redis-cluster://me:hunter2@127.0.0.1:1").output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(
        help.contains("Examples:") && help.contains("TRUNKLINE_ROUTER_LEASE_SECS") && !help.contains("hunter2"),
        "{help}"
    );
}

#[test]
fn a_redis_that_is_no_cluster_ends_the_start_with_status_1_and_the_fix() {
    let alone = RedisAlone::start(false, &[]);
    let url = format!("redis-cluster://127.0.0.1:{}", alone.port());
    let (status, _, said) = run(&["--http", "127.0.0.1:0", "--redis", &url]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is not part of a cluster") && said.contains("--cluster create"), "{said}");
}

/// It serves meanwhile, is not ready, and says why.
#[test]
fn a_redis_that_does_not_work_yet_is_waited_for() {
    let nobody = free_ports(1)[0];
    let down = RedisAlone::start(true, &[]);
    let locked = RedisAlone::start(true, &["--requirepass", "right"]);
    for (port, hint) in [
        (nobody, "cannot be reached"),
        (down.port(), "does not serve all slots"),
        (locked.port(), "refuses user or password"),
    ] {
        let router = Router::start_unready(&format!("redis-cluster://127.0.0.1:{port}"), &[]);
        wait_until("/readyz says why", || {
            let ready = router.get("/readyz");
            assert_eq!(ready.status, 503, "{ready:?}");
            ready.json()["reason"].as_str().is_some_and(|reason| reason.contains(hint))
        });
        assert_eq!(router.get("/healthz").status, 200);
        assert!(router.get("/v1/nodes").problem(503).contains("no node is known"));
        router.finish();
    }
    let mut cluster = RedisCluster::start();
    cluster.stop_all();
    let router = Router::start_unready(&cluster.url(), &[]);
    wait_until("it waits", || {
        router.get("/readyz").json()["reason"].as_str().is_some_and(|why| why.contains("waiting"))
    });
    cluster.start_all_empty();
    wait_until("it knows that there is no node", || router.get("/readyz").json()["state"] == "empty");
    Nodes::new(&cluster).join(&record("a"));
    wait_until("it is ready by itself", || router.get("/readyz").status == 200);
    router.finish();
}

#[test]
fn an_address_in_use_ends_the_start_with_the_fix() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, _, said) = run(&["--http", &address, "--redis", "redis-cluster://127.0.0.1:1"]);
    assert!(status == Some(1) && said.contains(&address) && said.contains("--http"), "{said}");
}

/// One test for one cluster that ends: what goes on without Redis, and what comes back with it.
#[test]
fn redis_ends_while_serving_and_comes_back() {
    let mut cluster = RedisCluster::start();
    let plane = Nodes::new(&cluster);
    for name in ["a", "b"] {
        plane.join(&record(name));
    }
    let router = Router::start(&cluster.url(), &[]);
    let user = router.post("/v1/accounts", &json!({"name": "ada"})).good()["user"].clone();
    let epoch = router.get("/v1/nodes").good()["epoch"].as_u64().unwrap();
    let home = |answer: Value| answer["node"].clone();
    let before = home(router.post("/v1/login", &json!({"user": user})).good());

    cluster.stop_all();
    wait_until("the router says that it is degraded", || router.get("/readyz").json()["state"] == "degraded");
    let ready = router.get("/readyz");
    assert!(ready.status == 200 && ready.json()["reason"].as_str().unwrap().contains("Redis"), "{ready:?}");
    let nodes = router.get("/v1/nodes").good();
    assert_eq!((&nodes["degraded"], nodes["nodes"].as_array().map(Vec::len)), (&json!(true), Some(2)), "{nodes}");
    assert_eq!(nodes["nodes"][0]["lease"], "assumed");
    assert_eq!(router.get("/v1/online").good()["users"], 16);
    let login = router.post("/v1/login", &json!({"user": user})).good();
    assert_eq!((&login["degraded"], home(login.clone())), (&json!(true), before));
    router.post("/v1/login", &json!({"user": 1, "strategy": "least-conn"})).good();
    router.post("/v1/ring/preview", &json!({"remove": ["a"]})).good();
    let explained = router.get("/v1/explain/1?from=a").good();
    assert_eq!((&explained["presence"], &explained["degraded"]), (&Value::Null, &json!(true)));
    // What only Redis knows is a problem, in time.
    let asked = Instant::now();
    assert!(router.get("/v1/users/1").problem(503).contains("Redis"));
    let unknown = router.post("/v1/presence", &json!({"users": [1]})).good();
    assert_eq!((&unknown["degraded"], &unknown["users"][0]["presence"]), (&json!(true), &json!("unknown")));
    assert!(router.get("/v1/accounts/ada").problem(503).contains("Redis"));
    assert!(router.post("/v1/accounts", &json!({"name": "bob"})).problem(503).contains("before trying again"));
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert_eq!(router.metric("trunkline_router_degraded"), 1.0);
    assert!(router.metric("trunkline_router_poll_failures_total") >= 1.0);
    assert!(router.metric("trunkline_redis_command_errors_total") >= 1.0);

    // It comes back empty. The view outlasts that for a lease time, and nodes that register again are in it.
    cluster.start_all_empty();
    let plane = Nodes::new(&cluster);
    plane.join(&record("c"));
    wait_until("the router is whole again", || {
        let nodes = router.get("/v1/nodes").good();
        nodes["degraded"] == false
            && nodes["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["name"] == "c"))
    });
    assert_eq!(router.get("/readyz").json()["state"], "running");
    assert!(router.get("/v1/nodes").good()["epoch"].as_u64().unwrap() > epoch, "an epoch never falls");
    assert_eq!(router.get("/v1/users/1").good()["online"], false);
    router.finish();

    // SIGINT ends it as well; the answer under way is finished, nobody new is let in.
    let router = Router::start(&cluster.url(), &[]);
    let mut under_way = router.connect();
    let head =
        "POST /v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n";
    under_way.write_all(head.as_bytes()).unwrap();
    let idle = router.connect();
    // Both are accepted by the time an answer comes back on a later one.
    assert_eq!(router.get("/healthz").status, 200);
    router.signal("-INT");
    wait_until("nobody new is let in", || std::net::TcpStream::connect(router.address()).is_err());
    under_way.write_all(b"{\"user\":1}").unwrap();
    let answer = Answer::read(&mut under_way);
    assert_eq!(answer.good()["node"], "c");
    drop(idle);
    let (status, said) = router.wait();
    assert!(status == Some(0) && said.contains("SIGINT"), "{status:?} {said}");
    assert!(said.contains("next: curl"), "{said}");

    // A second signal does not wait.
    let router = Router::start(&cluster.url(), &[]);
    let mut under_way = router.connect();
    under_way.write_all(head.as_bytes()).unwrap();
    assert_eq!(router.get("/healthz").status, 200);
    router.signal("-TERM");
    wait_until("nobody new is let in", || std::net::TcpStream::connect(router.address()).is_err());
    let signalled = Instant::now();
    router.signal("-TERM");
    let (status, said) = router.wait();
    assert!(status == Some(0) && said.contains("ended at once"), "{status:?} {said}");
    assert!(signalled.elapsed() < Duration::from_secs(3), "{:?}", signalled.elapsed());
}

#[test]
fn an_api_beyond_loopback_needs_keys_or_a_word() {
    let redis = "redis-cluster://127.0.0.1:1";
    for (flags, hints) in [
        (&["--http", "0.0.0.0:0"][..], ["0.0.0.0:0", "--http-insecure-open"]),
        (&["--http", "127.0.0.1:0", "--api-keys-file", "/no/such/file"], ["--api-keys-file", "/no/such/file"]),
        (&["--http", "127.0.0.1:0", "--node-key-file", "/dev/null"], ["--node-key-file", "tlk_"]),
        (
            &["--http", "127.0.0.1:0", "--api-keys-file", "/dev/null", "--http-insecure-open"],
            ["--api-keys-file", "leave one of them out"],
        ),
    ] {
        let (status, stdout, stderr) = run(&[flags, &["--redis", redis]].concat());
        assert!(status == Some(1) && stdout.is_empty(), "{status:?} {stdout} {stderr}");
        assert!(hints.iter().all(|hint| stderr.contains(hint)), "{stderr}");
    }
}
