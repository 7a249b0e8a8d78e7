//! Every route of the `router` binary on a real Redis Cluster, with node records as gateways write them.
//!
//! The tests take turns on one cluster; each leaves it without nodes.

use crate::http_support::{Nodes, Router, record};
use crate::support::generated::{assert_documented, metrics_table};
use crate::support::redis_cluster::{RedisCluster, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use trunkline_router::dispatch::Strategy;
use trunkline_router::http::{BODY_BYTES_MAX, NewKey, OPENAPI, Scope, routes};
use trunkline_router::membership::{NodeRecord, NodeState};
use trunkline_router::redis::{PresenceEntry, PresenceWrite, WriteOutcome};

fn cluster() -> MutexGuard<'static, RedisCluster> {
    static CLUSTER: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Mutex::new(RedisCluster::start()));
    let cluster = cluster.lock().unwrap_or_else(PoisonError::into_inner);
    cluster.flush_all();
    cluster
}

/// A router that sees these nodes.
fn router_with(
    cluster: &RedisCluster,
    nodes: &[&NodeRecord],
    flags: &[&str],
) -> (Router, Nodes, BTreeMap<String, u64>) {
    let plane = Nodes::new(cluster);
    let incarnations = nodes.iter().map(|node| (node.name.clone(), plane.join(node))).collect();
    let router = Router::start(&cluster.url(), flags);
    (router, plane, incarnations)
}

fn names(router: &Router) -> Vec<String> {
    let nodes = router.get("/v1/nodes").good();
    nodes["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

fn login(user: u64, device: &str, node: &str, incarnation: u64) -> PresenceWrite {
    let entry = PresenceEntry {
        device: device.into(),
        node: node.into(),
        incarnation,
        shard: 3,
        session: u64::MAX,
        since_ms: 1_700_000_000_123,
        class: "phone".into(),
        version: 1,
    };
    PresenceWrite::Login { user, entry }
}

#[test]
fn accounts_have_unique_names() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[], &[]);
    let made = router.post("/v1/accounts", &json!({"name": "ada"}));
    assert_eq!(made.status, 201);
    let user = made.good()["user"].as_str().expect("a string").to_owned();
    assert!(user.parse::<u64>().unwrap() >= 1 << 40);
    assert_eq!(router.get("/v1/accounts/ada").good(), json!({"name": "ada", "user": user}));
    let detail = router.post("/v1/accounts", &json!({"name": "ada"})).problem(409);
    assert!(detail.contains(&format!("user {user}")) && detail.contains("choose another"), "{detail}");
    let odd = "Ada Lovelace / 你好";
    let other = router.post("/v1/accounts", &json!({"name": odd})).good()["user"].clone();
    assert_ne!(other, user);
    // Characters count, however many bytes they have.
    assert_eq!(router.post("/v1/accounts", &json!({"name": "你".repeat(64)})).status, 201);
    let path = "/v1/accounts/Ada%20Lovelace%20%2F%20%E4%BD%A0%E5%A5%BD";
    assert_eq!(router.get(path).good(), json!({"name": odd, "user": other}));
    assert!(router.get("/v1/accounts/nobody").problem(404).contains("nobody has this name"));
    for name in ["", "two\nlines", &"x".repeat(65)] {
        let detail = router.post("/v1/accounts", &json!({"name": name})).problem(400);
        assert!(detail.contains("1 to 64 characters"), "{detail}");
    }
    assert!(router.get(&format!("/v1/accounts/{}", "x".repeat(65))).problem(400).contains("1 to 64 characters"));
    assert!(router.get("/v1/accounts/%ff").problem(400).contains("UTF-8"));
    router.finish();
}

#[test]
fn an_account_that_is_removed_is_gone_and_its_name_is_free() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[], &[]);
    let made = router.post("/v1/accounts", &json!({"name": "bob / 2"})).good();
    let path = "/v1/accounts/bob%20%2F%202";
    assert_eq!(router.request("DELETE", path, "", "").good(), made);
    assert!(router.get(path).problem(404).contains("nobody has this name"));
    assert!(router.request("DELETE", path, "", "").problem(404).contains("nothing to remove"));
    assert_ne!(router.post("/v1/accounts", &json!({"name": "bob / 2"})).good()["user"], made["user"]);
    let user = made["user"].as_str().unwrap();
    let parts = ["audit", &format!("DELETE {path}"), &format!("was user {user}")];
    wait_until("the audit log has it", || parts.iter().all(|part| router.said().contains(part)));
    router.finish();
}

#[test]
fn nodes_and_who_is_online() {
    let cluster = cluster();
    let draining = NodeRecord { state: NodeState::Draining, connections: 3, users: 2, ..record("c") };
    let (router, plane, incarnations) = router_with(&cluster, &[&record("a"), &record("b"), &draining], &[]);
    let nodes = router.get("/v1/nodes").good();
    assert_eq!((&nodes["degraded"], &nodes["points"]), (&json!(false), &json!(320)));
    assert!(nodes["epoch"].as_u64().unwrap() >= 1);
    let of_a = &nodes["nodes"][0];
    assert_eq!((&of_a["name"], &of_a["lease"], &of_a["reachable"]), (&json!("a"), &json!("live"), &Value::Null));
    assert_eq!(
        (&of_a["advertise"], &of_a["incarnation"]),
        (&json!("a.example:7700"), &json!(incarnations["a"].to_string()))
    );
    let of_c = &nodes["nodes"][2];
    assert_eq!((&of_c["state"], &of_c["in_ring"], &of_c["share"]), (&json!("draining"), &json!(false), &json!(0.0)));

    let online = router.get("/v1/online").good();
    assert_eq!((&online["users"], &online["connections"]), (&json!(18), &json!(23)));
    assert_eq!(online["nodes"][2], json!({"node": "c", "state": "draining", "users": 2, "connections": 3}));

    // A node that leaves is gone with the next poll, one that comes is there; the epoch grows.
    let epoch = nodes["epoch"].as_u64().unwrap();
    plane.leave("b", incarnations["b"]);
    plane.join(&record("d"));
    wait_until("the view follows", || names(&router) == ["a", "c", "d"]);
    assert!(router.get("/v1/nodes").good()["epoch"].as_u64().unwrap() > epoch);
    router.finish();
}

#[test]
fn a_user_is_where_a_live_node_says() {
    let cluster = cluster();
    let (router, plane, incarnations) = router_with(&cluster, &[&record("a"), &record("b")], &[]);
    for user in [7, u64::MAX] {
        let writes = [
            login(user, "desk", "a", incarnations["a"]),
            login(user, "phone", "b", incarnations["b"]),
            login(user, "ghost", "b", incarnations["b"] + 1),
            login(user, "old", "z", 1),
        ];
        for outcome in plane.block_on(plane.plane.write(&writes)) {
            assert_eq!(outcome, Ok(WriteOutcome::Written));
        }
        let shown = router.get(&format!("/v1/users/{user}"));
        assert!(shown.body.contains(&format!("\"user\":\"{user}\",")), "all digits: {}", shown.body);
        let shown = shown.good();
        assert_eq!(shown["online"], true);
        let devices = shown["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 2, "{shown}");
        let session = u64::MAX.to_string();
        let desk = json!({
            "device": "desk", "class": "phone", "node": "a", "shard": 3, "session": session, "since": 1_700_000_000_u64,
        });
        assert_eq!(devices[0], desk);
        let home = router.post("/v1/login", &json!({"user": user})).good();
        assert_eq!((&shown["home"], &shown["shard"]), (&home["node"], &json!(trunkline_router::home_shard(user, 4))));
    }
    // Its node dies, and with it the session.
    plane.leave("b", incarnations["b"]);
    wait_until("the session of a dead node is gone", || {
        router.get("/v1/users/7").good()["devices"].as_array().map(Vec::len) == Some(1)
    });
    let presence = |users: &[u64]| -> Vec<(String, String, Value)> {
        let told = router.post("/v1/presence", &json!({ "users": users })).good();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let of = |user: &Value| (text(&user["user"]), text(&user["presence"]), user["device_classes"].clone());
        told["users"].as_array().unwrap().iter().map(of).collect()
    };
    let shown = |user: u64, presence: &str, classes: Value| (user.to_string(), presence.to_owned(), classes);
    let online = |user| shown(user, "online", json!(["phone"]));
    assert_eq!(presence(&[u64::MAX, 8, 7]), [online(u64::MAX), shown(8, "offline", json!([])), online(7)]);
    let nobody = router.get("/v1/users/8").good();
    assert_eq!((&nobody["online"], &nobody["devices"]), (&json!(false), &json!([])));
    assert_eq!(nobody["presence"], "offline");
    // While a node writes its sessions again, who is not found may be there.
    let mending = NodeRecord { incarnation: incarnations["a"], mending: true, ..record("a") };
    plane.block_on(plane.plane.renew(&mending, 600_000)).unwrap();
    wait_until("nobody is told to be offline", || router.get("/v1/users/8").good()["presence"] == "unknown");
    assert_eq!(router.get("/v1/users/7").good()["presence"], "online");
    assert_eq!(presence(&[8, 7]), [shown(8, "unknown", json!([])), online(7)]);
    for user in ["0", "-1", "abc", "1.5", "+1", "18446744073709551616"] {
        assert!(router.get(&format!("/v1/users/{user}")).problem(400).contains("1 to 18446744073709551615"), "{user}");
    }
    router.finish();
}

#[test]
fn an_explanation_names_home_place_and_path() {
    let cluster = cluster();
    let (router, plane, incarnations) = router_with(&cluster, &[&record("a"), &record("b"), &record("c")], &[]);
    let outcomes = plane.block_on(plane.plane.write(&[login(9, "desk", "b", incarnations["b"])]));
    assert_eq!(outcomes, [Ok(WriteOutcome::Written)]);
    let explained = router.get("/v1/explain/9?from=c").good();
    let home = router.post("/v1/login", &json!({"user": 9, "strategy": "home"})).good();
    assert_eq!((&explained["home"], &explained["why"]["node"]), (&home["node"], &home["node"]));
    assert_eq!(explained["why"]["key"], "9");
    assert_eq!(explained["why"]["points"], 480);
    assert_eq!(explained["presence"]["devices"][0]["node"], "b");
    let path = explained["path"].as_array().unwrap();
    let kinds: Vec<&str> = path.iter().map(|hop| hop["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["origin", "home", "delivery"]);
    assert_eq!((&path[0]["node"], &path[2]["node"], &path[2]["shard"]), (&json!("c"), &json!("b"), &json!(3)));
    assert!(explained["sentences"].as_array().is_some_and(|sentences| sentences.len() >= 6), "{explained}");
    assert!(router.get("/v1/explain/9?from=x").problem(404).contains("use a, b, c"));
    assert!(router.get("/v1/explain/9?to=a").problem(400).contains("`from`"));
    assert!(router.get("/v1/explain/me").problem(400).contains("a user is a number"));
    router.finish();
}

#[test]
fn a_preview_says_who_would_move() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[&record("a"), &record("b"), &record("c")], &[]);
    let preview = router.post("/v1/ring/preview", &json!({"add": [{"name": "d"}]})).good();
    let (moved, ideal) = (preview["moved_share"].as_f64().unwrap(), preview["ideal_share"].as_f64().unwrap());
    assert!((moved - ideal).abs() <= ideal * 0.3 && (ideal - 0.25).abs() < 1e-9, "{preview}");
    assert_eq!(preview["nodes"].as_array().map(Vec::len), Some(4));
    assert!(router.post("/v1/ring/preview", &json!({"remove": ["x"]})).problem(409).contains("a, b, c"));
    assert!(router.post("/v1/ring/preview", &json!({"sample": 2_000_000})).problem(400).contains("1000000"));
    assert!(router.post("/v1/ring/preview", &json!({"drop": ["a"]})).problem(400).contains("unknown field `drop`"));
    assert_eq!(names(&router), ["a", "b", "c"], "a preview changes nothing");
    // At the limit of weights and sample it takes its time, and everybody else is served meanwhile.
    let heavy = json!({"add": [{"name": "d", "weight": 65_533}], "sample": 1_000_000});
    std::thread::scope(|scope| {
        let previews = [(); 2].map(|()| scope.spawn(|| router.post("/v1/ring/preview", &heavy)));
        for _ in 0..50 {
            assert_eq!(router.get("/healthz").status, 200);
        }
        for preview in previews {
            let answer = preview.join().unwrap();
            assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
        }
    });
    router.finish();
}

#[test]
fn logins_follow_the_strategy() {
    let cluster = cluster();
    let heavy = NodeRecord { weight: 2, connections: 100, ..record("a") };
    let light = NodeRecord { connections: 100, ..record("b") };
    let empty = NodeRecord { connections: 90, ..record("c") };
    let draining = NodeRecord { state: NodeState::Draining, connections: 0, ..record("d") };
    let joining = NodeRecord { state: NodeState::Joining, connections: 0, ..record("e") };
    let nodes = [&heavy, &light, &empty, &draining, &joining];
    let (router, ..) = router_with(&cluster, &nodes, &["--strategy", "weighted-round-robin", "--lease-secs", "7"]);
    let counts = |strategy: Option<&str>, logins: u64| {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for user in 1..=logins {
            let mut request = json!({"user": user});
            if let Some(strategy) = strategy {
                request["strategy"] = json!(strategy);
            }
            let answer = router.post("/v1/login", &request).good();
            let node = answer["node"].as_str().unwrap().to_owned();
            assert_eq!((&answer["ttl_secs"], &answer["user"]), (&json!(7), &json!(user.to_string())));
            assert_eq!(answer["address"], format!("{node}.example:7700"));
            assert_eq!(answer["strategy"], strategy.unwrap_or("weighted-round-robin"));
            *counts.entry(node).or_default() += 1;
        }
        counts
    };
    let by_weight = BTreeMap::from([("a".to_owned(), 20), ("b".to_owned(), 10), ("c".to_owned(), 10)]);
    assert_eq!(counts(None, 40), by_weight, "the strategy of the flag, and its state is kept");
    for strategy in Strategy::ALL {
        let counts = counts(Some(strategy.name()), 30);
        assert!(counts.keys().all(|node| ["a", "b", "c"].contains(&node.as_str())), "{strategy}: {counts:?}");
    }
    // The same for each login of a user, and with all digits also as a string.
    let user = u64::MAX - 1;
    let number = router.post("/v1/login", &json!({"user": user, "strategy": "home"}));
    assert!(number.body.contains("\"user\":\"18446744073709551614\""), "{}", number.body);
    let text = router.post("/v1/login", &json!({"user": user.to_string(), "strategy": "home"}));
    assert_eq!(number.good(), text.good());
    assert!(router.metric("trunkline_router_logins_total{strategy=\"home\"}") >= 32.0);
    router.finish();
}

#[test]
fn a_burst_of_logins_spreads_over_the_least_loaded_nodes() {
    let cluster = cluster();
    let nodes =
        [("a", 1_000), ("b", 1_000), ("c", 990)].map(|(name, connections)| NodeRecord { connections, ..record(name) });
    let (router, ..) = router_with(&cluster, &[&nodes[0], &nodes[1], &nodes[2]], &["--strategy", "least-conn"]);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for user in 1..=100 {
        let answer = router.post("/v1/login", &json!({"user": user})).good();
        *counts.entry(answer["node"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    // Exact within two polls; a slow machine may see one more.
    assert!(counts.len() == 3 && counts.values().all(|count| (20..=60).contains(count)), "{counts:?}");
    router.finish();
}

#[test]
fn without_an_active_node_nobody_is_sent_anywhere() {
    let cluster = cluster();
    let (router, plane, _) = router_with(&cluster, &[], &[]);
    let joining = NodeRecord { state: NodeState::Joining, ..record("a") };
    for strategy in Strategy::ALL {
        let detail = router.post("/v1/login", &json!({"user": 1, "strategy": strategy})).problem(503);
        assert!(detail.contains("no node is active"), "{detail}");
    }
    assert_eq!(router.get("/v1/nodes").good()["nodes"], json!([]));
    let empty = router.get("/readyz");
    assert_eq!((empty.status, &empty.json()["state"]), (503, &json!("empty")), "{empty:?}");
    assert!(empty.json()["reason"].as_str().unwrap().contains("start a gateway"), "{empty:?}");
    assert_eq!(router.metric("trunkline_ready"), 0.0);
    assert_eq!(router.get("/v1/users/1").good()["presence"], "unknown");
    let incarnation = plane.join(&joining);
    wait_until("the joining node is seen", || names(&router) == ["a"]);
    assert_eq!(router.get("/readyz").status, 503, "it is nobody's home");
    router.post("/v1/login", &json!({"user": 1})).problem(503);
    assert_eq!(router.get("/v1/users/1").good()["home"], Value::Null);
    let active = NodeRecord { incarnation, ..record("a") };
    plane.block_on(plane.plane.renew(&active, 600_000)).unwrap();
    wait_until("the active node is used", || router.post("/v1/login", &json!({"user": 1})).status == 200);
    assert_eq!(router.get("/readyz").status, 200);
    router.finish();
}

#[test]
fn the_cluster_is_shown_to_programs_and_to_people() {
    let cluster = cluster();
    let east = NodeRecord { zone: "east".into(), weight: 10, ..record("a") };
    let (router, ..) = router_with(&cluster, &[&east, &record("b")], &[]);
    let shown = router.get("/v1/cluster").good();
    assert_eq!((&shown["active"], &shown["users"], &shown["troubles"]), (&json!(2), &json!(16), &json!([])));
    assert_eq!((&shown["nodes"][0]["zone"], &shown["nodes"][0]["weight"]), (&json!("east"), &json!(10)));
    let page = router.request("GET", "/v1/cluster", "Accept: text/plain\r\n", "");
    assert!(page.status == 200 && page.head.contains("content-type: text/plain; charset=utf-8"), "{page:?}");
    let line = page.body.lines().find(|line| line.starts_with("a ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((&cells[..4], cells[9]), (&["a", "active", "east", "10"][..], "a.example:7700"), "{}", page.body);
    router.finish();
}

#[test]
fn a_login_prefers_its_zone_and_leaves_out_what_it_could_not_reach() {
    let cluster = cluster();
    let in_zone = |name: &str, zone: &str| NodeRecord { zone: zone.into(), ..record(name) };
    let nodes = [in_zone("a", "east"), in_zone("b", "west"), in_zone("c", "west")];
    let (router, ..) =
        router_with(&cluster, &[&nodes[0], &nodes[1], &nodes[2]], &["--zone", "east", "--strategy", "least-conn"]);
    let login = |more: Value| {
        let mut request = json!({"user": 1});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        router.post("/v1/login", &request).good()
    };
    for _ in 0..10 {
        assert_eq!((&login(json!({}))["node"], &login(json!({}))["zone"]), (&json!("a"), &json!("east")));
        assert_eq!(login(json!({"zone": "west"}))["zone"], "west");
        assert_eq!(login(json!({"zone": "west", "failed": ["b"]}))["node"], "c");
        assert_ne!(login(json!({"failed": ["a"]}))["node"], "a");
    }
    assert!(router.metric("trunkline_router_failures_reported_total{counted=\"no\"}") >= 1.0, "one user counts once");
    let mut users = 2..;
    wait_until("three users who cannot reach the only node of the zone take it out", || {
        for user in users.by_ref().take(3) {
            router.post("/v1/login", &json!({"user": user, "failed": ["a"]})).good();
        }
        router.metric("trunkline_router_nodes_suspended") == 1.0 && login(json!({}))["zone"] == "west"
    });
    assert!(router.metric("trunkline_router_failures_reported_total{counted=\"yes\"}") >= 4.0);
    assert!(router.metric("trunkline_router_logins_spilled_total") >= 11.0);
    let many: Vec<String> = (0..9).map(|at| format!("n{at}")).collect();
    assert!(router.post("/v1/login", &json!({"user": 1, "failed": many})).problem(400).contains("8 at most"));
    let detail = router.post("/v1/login", &json!({"user": 1, "zone": "x".repeat(65)})).problem(400);
    assert!(detail.contains("64 characters"), "{detail}");
    router.finish();
}

#[test]
fn bad_logins_are_refused_with_the_correction() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[&record("a")], &[]);
    for (body, hint) in [
        (json!({}), "missing field `user`"),
        (json!({"user": 0}), "a user is a number from 1"),
        (json!({"user": -5}), "a user is a number from 1"),
        (json!({"user": 1.5}), "a user is a number from 1"),
        (json!({"user": "x"}), "a user is a number from 1"),
        (json!({"user": "01"}), "a user is a number from 1"),
        (json!({"user": null}), "a user is a number from 1"),
        (json!({"user": 1, "strategy": null}), "expected value"),
        (json!({"user": 1, "strategy": "fastest"}), "least-conn"),
        (json!({"user": 1, "strategie": "home"}), "unknown field `strategie`, expected one of `user`, `strategy`"),
        (json!([]), "JSON object"),
    ] {
        let detail = router.post("/v1/login", &body).problem(400);
        assert!(detail.contains(hint), "{body}: {detail}");
    }
    let overflow =
        router.request("POST", "/v1/login", "Content-Type: application/json\r\n", "{\"user\":18446744073709551616}");
    assert!(overflow.problem(400).contains("18446744073709551615"));
    router.finish();
}

#[test]
fn wrong_requests_are_problems_too() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[&record("a")], &[]);
    let json = "Content-Type: application/json\r\n";
    assert!(router.get("/v1/nothing").problem(404).contains("nothing at /v1/nothing"));
    assert!(router.get("/v1/users/").problem(404).contains("GET /"));
    let wrong_method = router.get("/v1/login");
    assert!(wrong_method.problem(405).contains("/v1/login does not take GET"));
    assert!(wrong_method.head.contains("allow: post"), "{wrong_method:?}");
    router.request("PUT", "/v1/accounts/ada", "", "").problem(405);
    router.post("/v1/nodes", &json!({})).problem(405);
    assert!(router.request("POST", "/v1/login", "", "{\"user\":1}").problem(415).contains("application/json"));
    assert!(router.request("POST", "/v1/login", json, "{").problem(400).contains("EOF"));
    let large = format!("{{\"user\":1{}}}", " ".repeat(BODY_BYTES_MAX));
    assert!(router.request("POST", "/v1/login", json, &large).problem(413).contains("16384"));
    let chunks = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let head = "POST /v1/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let chunked = format!("{head}{json}Transfer-Encoding: chunked\r\n\r\n{chunks}");
    assert!(router.exchange(chunked.as_bytes()).problem(413).contains("16384"));
    let slow = format!("{head}{json}Content-Length: 10\r\n\r\n{{");
    assert!(router.exchange(slow.as_bytes()).problem(408).contains("send it faster"));
    assert_eq!(router.exchange(format!("{head}X: {}\r\n\r\n", "x".repeat(20_000)).as_bytes()).status, 431);
    assert_eq!(router.exchange(b"rubbish\r\n\r\n").status, 400);
    assert_eq!(router.get("/healthz").body, "ok\n", "it still serves");
    router.finish();
}

#[test]
fn the_documents_and_the_metrics_are_served() {
    let cluster = cluster();
    let (router, ..) = router_with(&cluster, &[&record("a")], &[]);
    assert_eq!(router.get("/v1/openapi.json").good(), serde_json::from_str::<Value>(OPENAPI).unwrap());
    let index = router.get("/");
    assert!(index.status == 200 && index.head.contains("content-type: text/plain"), "{index:?}");
    for route in routes() {
        assert!(index.body.contains(route.path), "{route:?}");
    }
    let ready = router.get("/readyz");
    assert_eq!((ready.status, ready.good()), (200, json!({"ready": true, "state": "running"})));
    router.get("/v1/users/0").problem(400);
    router.get("/v1/nothing").problem(404);
    let metrics = router.get("/metrics");
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{metrics:?}");
    for (series, least) in [
        ("trunkline_ready", 1.0),
        ("trunkline_router_polls_total", 1.0),
        ("trunkline_router_view_epoch", 1.0),
        ("trunkline_router_nodes{state=\"active\"}", 1.0),
        ("trunkline_router_requests_total{route=\"/v1/users/{user}\",status=\"400\"}", 1.0),
        ("trunkline_router_requests_total{route=\"none\",status=\"404\"}", 1.0),
        ("trunkline_redis_commands_total", 3.0),
    ] {
        assert!(router.metric(series) >= least, "{series}");
    }
    for zero in ["trunkline_router_degraded", "trunkline_router_poll_failures_total", "trunkline_redis_garbage_total"] {
        assert_eq!(router.metric(zero), 0.0, "{zero}");
    }
    router.finish();
}

#[test]
fn changes_need_a_key_when_there_are_keys_and_stand_in_the_audit_log() {
    let cluster = cluster();
    let made = NewKey::make("shop", &[Scope::AccountsWrite]).unwrap();
    let path = format!("{}/router-keys-{}.toml", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&path, &made.line).unwrap();
    let (router, ..) = router_with(&cluster, &[&record("a")], &["--api-keys-file", &path]);
    std::fs::remove_file(&path).unwrap();
    let post = |path: &str, headers: &str| {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        router.request("POST", path, &headers, "{\"name\":\"keyed\"}")
    };
    let key = format!("Authorization: Bearer {}\r\n", made.key);
    assert!(post("/v1/accounts", "").problem(401).contains("Authorization: Bearer"));
    post("/v1/accounts", &format!("{key}Origin: http://evil.example\r\n")).problem(403);
    assert!(post("/v1/users/1/kick", &key).problem(403).contains("scope kick"));
    assert_eq!(router.get("/v1/accounts/keyed").status, 404, "nothing has happened, and questions are answered here");
    let user = post("/v1/accounts", &key).good()["user"].as_str().unwrap().to_owned();
    router.post("/v1/login", &json!({"user": user})).good();
    wait_until("it stands in the log", || router.said().contains("a change was asked for"));
    let said = router.said();
    let line = said.lines().find(|line| line.contains("a change was asked for")).unwrap();
    for part in ["audit", "shop", "POST /v1/accounts", "201", &format!("is user {user}"), "127.0.0.1:"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!said.contains(&made.key), "{said}");
    assert!(router.metric("trunkline_http_denied_total{reason=\"no_key\"}") >= 1.0);
    router.finish();
}

#[test]
fn two_routers_say_the_same() {
    let cluster = cluster();
    let (one, plane, _) = router_with(&cluster, &[&record("a"), &record("b")], &[]);
    let two = Router::start(&cluster.url(), &[]);
    let same = |what: &str| {
        let view = |router: &Router| {
            let nodes = router.get("/v1/nodes").good();
            (nodes["epoch"].clone(), nodes["digest"].clone(), names(router))
        };
        wait_until(what, || view(&one) == view(&two));
        view(&one)
    };
    let before = same("both have the view");
    plane.join(&record("c"));
    wait_until("one sees the new node", || names(&one).len() == 3);
    assert!(same("both have the new view").0.as_u64() > before.0.as_u64());
    for user in 1..50 {
        let login = |router: &Router| router.post("/v1/login", &json!({"user": user})).good();
        assert_eq!(login(&one), login(&two));
    }
    // Both make the same account at once: one of them does.
    for number in 0..20 {
        let body = json!({"name": format!("account-{number}")});
        let statuses = std::thread::scope(|scope| {
            let made = [&one, &two].map(|router| scope.spawn(|| router.post("/v1/accounts", &body).status));
            let mut statuses = made.map(|made| made.join().unwrap());
            statuses.sort_unstable();
            statuses
        });
        assert_eq!(statuses, [201, 409], "{body}");
    }
    one.finish();
    assert_eq!(names(&two).len(), 3, "the other goes on");
    two.finish();
}

#[test]
fn the_metrics_are_clean_as_prometheus_s_own_tool_judges_them() {
    let cluster = RedisCluster::start();
    let router = Router::start(&cluster.url(), &[]);
    router.get("/v1/nodes").good();
    let body = router.get("/metrics").body;
    assert_documented("metrics.md", "router", &metrics_table(&body));
    let mut tool = std::process::Command::new("promtool");
    let piped = std::process::Stdio::piped;
    tool.args(["check", "metrics"]).stdin(piped()).stdout(piped()).stderr(piped());
    let mut child = tool.spawn().expect("promtool has to be installed: scripts/setup.sh does it");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.is_empty(), "{said}");
    for series in ["process_open_fds ", "process_max_fds ", "process_start_time_seconds ", "process_cpu_seconds_total "]
    {
        assert!(body.lines().any(|line| line.starts_with(series)), "no {series} in {body}");
    }
    assert!(body.contains("trunkline_build_info{version="), "{body}");
    router.finish();
}
