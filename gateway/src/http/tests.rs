//! The API over a real loopback socket, with shards that are a thread answering requests, or nobody at all.

#[path = "../../../router/tests/router/support/conforms.rs"]
mod conforms;

use super::*;
use crate::control::{CONTROL_QUEUE_LEN, Control, Kicked, Rest, SessionInfo};
use crate::reason::CloseReason;
use crate::waker::Waker;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use trunkline_router::hash::home_shard;
use trunkline_router::http::{ApiKeys, HEALTH_PLACES, Needs, NewKey, RELAYED, Scope, serve};

const SHARDS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

fn node() -> Arc<Node> {
    node_that(false)
}

fn node_that(joins: bool) -> Arc<Node> {
    node_with(joins, Access::new(None, false))
}

fn node_with(joins: bool, access: Access) -> Arc<Node> {
    Arc::new(Node::new(
        "node-1".to_owned(),
        Limits::default(),
        vec!["127.0.0.1:7700".parse().unwrap()],
        "127.0.0.1:7780".parse().unwrap(),
        joins,
        access,
    ))
}

fn handles() -> ShardHandles {
    let port = || ControlPort::new(Arc::new(Waker::new().unwrap()));
    ShardHandles { ports: (0..SHARDS).map(|_| port()).collect(), stats: (0..SHARDS).map(|_| Arc::default()).collect() }
}

/// A node whose shards have not been given to anybody.
fn running_node() -> (Arc<Node>, Vec<ControlPort>) {
    let node = node();
    let handles = handles();
    let ports = handles.ports.clone();
    node.set_running(handles);
    (node, ports)
}

/// A server on a thread of its own, which ends with the test's process.
struct Api {
    address: SocketAddr,
}

impl Api {
    fn serve(node: Arc<Node>) -> Api {
        let (places, routes) = (node.places().clone(), router(node));
        Api::serve_routes(routes, places)
    }

    fn serve_routes(routes: axum::Router, places: Arc<Places>) -> Api {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, routes, places, None, std::future::pending()).await;
            });
        });
        Api { address }
    }

    fn request(&self, method: &str, path: &str) -> Answer {
        self.request_with(method, path, "", "")
    }

    fn request_with(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        let length = body.len();
        // In one piece: a server that refuses a request before it has come to its end would break the next write.
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             {headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a header and a body");
        Answer { status: head[9..12].parse().unwrap(), head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }

    fn assert_problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&"about:blank".into(), &status.into()), "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// Answers the requests of one shard until `requests` have come.
fn answer(
    port: ControlPort,
    requests: usize,
    mut each: impl FnMut(Control) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for _ in 0..requests {
            let deadline = Instant::now() + PATIENCE;
            let request = loop {
                if let Some(request) = port.take() {
                    break request;
                }
                assert!(Instant::now() < deadline, "no request came");
                std::thread::sleep(Duration::from_millis(1));
            };
            each(request);
        }
    })
}

#[test]
fn readiness_follows_the_state_and_health_does_not() {
    let node = node();
    let api = Api::serve(node.clone());
    let expect = |status: u16, state: &str| {
        let answer = api.get("/readyz");
        assert_eq!(answer.status, status, "{answer:?}");
        let body = answer.json();
        assert_eq!((&body["ready"], &body["state"]), (&(status == 200).into(), &state.into()), "{body}");
        assert_eq!(body["reason"].is_string(), status != 200, "{body}");
        assert_eq!(api.get("/healthz").status, 200);
        assert_eq!(api.get("/v1/node").json()["state"], state);
    };
    expect(503, "starting");
    node.set_running(handles());
    expect(200, "running");
    node.drain().drain(&[]);
    expect(503, "draining");
    node.drain().call_off().unwrap();
    expect(200, "running");
    node.drain().end(&[]);
    expect(503, "draining");
}

#[test]
fn a_starting_node_has_metrics_and_no_users() {
    let api = Api::serve(node());
    assert!(api.get("/metrics").body.contains("trunkline_ready 0\n"));
    assert!(api.get("/v1/users/5").assert_problem(503).contains("starting"));
    assert_eq!(api.get("/v1/node").json()["shards"], 0);
}

#[test]
fn the_node_sums_up_its_shards() {
    let (node, _ports) = running_node();
    let stats = node.stats();
    stats[0].open.set(5);
    stats[2].open.set(2);
    stats[1].sessions.set(4);
    let shown = Api::serve(node).get("/v1/node").json();
    for (field, value) in [
        ("node", Value::from("node-1")),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("shards", 3.into()),
        ("listen", vec!["127.0.0.1:7700"].into()),
        ("http", "127.0.0.1:7780".into()),
        ("connections", 7.into()),
        ("sessions", 4.into()),
    ] {
        assert_eq!(shown[field], value, "{field} in {shown}");
    }
    assert_eq!(shown["limits"]["outbox_bytes"], 262_144, "{shown}");
    assert!(shown["uptime_secs"].is_u64());
}

#[test]
fn metrics_have_the_process_the_limits_and_every_shard() {
    let (node, _ports) = running_node();
    node.stats()[1].count_close(CloseReason::Idle);
    let answer = Api::serve(node).get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "trunkline_ready 1",
        "trunkline_limit_bytes{limit=\"frame_bytes\"} 65536",
        "trunkline_connections_closed_total{shard=\"1\",reason=\"idle\"} 1",
        "trunkline_mailbox_batches{shard=\"2\"} 0",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE trunkline_uptime_seconds gauge",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "no {line} in\n{}", answer.body);
    }
    assert!(answer.body.contains(&format!("trunkline_build_info{{version=\"{VERSION}\",node=\"node-1\"}} 1\n")));
    let resident = answer.body.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
    assert!(resident.parse::<u64>().unwrap() > 1 << 20, "{resident}");
}

#[test]
fn a_user_is_asked_for_at_the_home_shard() {
    let (node, ports) = running_node();
    let api = Api::serve(node);
    for user in [1, 2, 77, u64::MAX] {
        let shard = home_shard(user, SHARDS);
        let session = SessionInfo {
            device: "ph\"one".to_owned(),
            class: "mobile".to_owned(),
            session: 9 << 33,
            since: 1_800_000_000,
        };
        let sent = session.clone();
        let shard_thread = answer(ports[shard as usize].clone(), 1, move |request| match request {
            Control::User { user: asked, answer } if asked == user => answer.send(vec![sent.clone()]).unwrap(),
            other => panic!("{other:?}"),
        });
        let shown = api.get(&format!("/v1/users/{user}"));
        assert_eq!(shown.status, 200);
        let SessionInfo { device, class, session, since } = session;
        let device = serde_json::json!({
            "device": device, "class": class, "node": "node-1", "shard": shard,
            "session": session.to_string(), "since": since,
        });
        let expected = serde_json::json!({
            "user": user.to_string(), "online": true, "presence": "online", "home": "node-1", "shard": shard,
            "devices": [device],
        });
        assert_eq!(shown.json(), expected);
        shard_thread.join().unwrap();
    }
}

#[test]
fn each_shard_is_asked_once_for_the_presence_of_its_users_and_one_that_is_silent_makes_nobody_offline() {
    let (node, ports) = running_node();
    let silent = home_shard(1, SHARDS);
    let users: Vec<u64> = (1..=40).chain([2]).collect();
    let shard_threads: Vec<_> = (0..SHARDS)
        .map(|shard| {
            let here: Vec<u64> = users.iter().copied().filter(|user| home_shard(*user, SHARDS) == shard).collect();
            answer(ports[shard as usize].clone(), 1, move |request| match request {
                // Nothing is heard of it any more.
                Control::Users { .. } if shard == silent => {}
                Control::Users { users, answer } => {
                    assert_eq!(users, here);
                    let session = |class: &str| SessionInfo {
                        device: class.to_owned(),
                        class: class.to_owned(),
                        session: 1,
                        since: 1,
                    };
                    let sessions = |user: &u64| match user % 2 {
                        0 => vec![session("tv"), session(""), session("phone"), session("tv")],
                        _ => Vec::new(),
                    };
                    answer.send(users.iter().map(sessions).collect()).unwrap();
                }
                other => panic!("{other:?}"),
            })
        })
        .collect();
    let body = serde_json::json!({ "users": users }).to_string();
    let told =
        Api::serve(node).request_with("POST", "/v1/presence", "Content-Type: application/json\r\n", &body).json();
    assert_is("Presences", &told);
    assert_eq!(told["users"].as_array().map(Vec::len), Some(users.len()));
    for (user, shown) in users.iter().zip(told["users"].as_array().unwrap()) {
        let (presence, classes) = match (home_shard(*user, SHARDS) == silent, user % 2) {
            (true, _) => ("unknown", serde_json::json!([])),
            (false, 0) => ("online", serde_json::json!(["phone", "tv"])),
            (false, _) => ("offline", serde_json::json!([])),
        };
        let expected = serde_json::json!({ "user": user.to_string(), "presence": presence, "device_classes": classes });
        assert_eq!(*shown, expected);
    }
    shard_threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_user_without_sessions_is_offline() {
    let (node, ports) = running_node();
    let shard_thread = answer(ports[home_shard(5, SHARDS) as usize].clone(), 1, |request| match request {
        Control::User { answer, .. } => answer.send(Vec::new()).unwrap(),
        other => panic!("{other:?}"),
    });
    let shown = Api::serve(node).get("/v1/users/5").json();
    assert_eq!((&shown["online"], &shown["devices"]), (&false.into(), &Value::Array(Vec::new())));
    shard_thread.join().unwrap();
}

#[test]
fn a_kick_names_the_device_or_means_all() {
    let (node, ports) = running_node();
    let api = Api::serve(node);
    for (query, expected, sessions) in
        [("", None, 2), ("?device=phone", Some("phone"), 1), ("?device=my%20phone", Some("my phone"), 1)]
    {
        let shard_thread = answer(ports[home_shard(5, SHARDS) as usize].clone(), 1, move |request| match request {
            Control::Kick { user: 5, device, answer } if device.as_deref() == expected => {
                answer.send(Kicked { ended: sessions, rest: Rest::Nothing }).unwrap();
            }
            other => panic!("{other:?}"),
        });
        let kicked = api.request("POST", &format!("/v1/users/5/kick{query}"));
        assert_eq!((kicked.status, kicked.json()), (200, serde_json::json!({ "kicked": sessions })));
        assert_is("Kicked", &kicked.json());
        shard_thread.join().unwrap();
    }
    let long = "x".repeat(256);
    assert!(api.request("POST", &format!("/v1/users/5/kick?device={long}")).assert_problem(404).contains("of device"));
    assert!(ports.iter().all(|port| port.take().is_none()), "no device has such a name");
}

#[test]
fn a_kick_that_may_have_left_sessions_is_no_success() {
    let (node, ports) = running_node();
    let api = Api::serve(node);
    let busy = |rest| vec![Kicked { ended: 2, rest }];
    for (answers, status, hint) in [
        (vec![Kicked { ended: 0, rest: Rest::Nothing }], 404, "no session on any node"),
        (busy(Rest::Unconfirmed(3)), 503, "2 sessions were ended; 3 on other nodes"),
        (busy(Rest::Unreachable), 503, "2 sessions were ended; the user's home node could not be asked"),
        (busy(Rest::Busy), 503, "too many kicks"),
    ] {
        let mut answers = answers.into_iter();
        let shard_thread = answer(ports[home_shard(5, SHARDS) as usize].clone(), 1, move |request| match request {
            Control::Kick { answer, .. } => answer.send(answers.next().unwrap()).unwrap(),
            other => panic!("{other:?}"),
        });
        let detail = api.request("POST", "/v1/users/5/kick").assert_problem(status);
        assert!(detail.contains(hint), "{detail}");
        shard_thread.join().unwrap();
    }
    // While the home changes it is asked again, and what was ended before counts.
    let mut answers = [(1, Rest::Unsettled), (0, Rest::Unsettled), (1, Rest::Nothing)].into_iter();
    let shard_thread = answer(ports[home_shard(5, SHARDS) as usize].clone(), 3, move |request| match request {
        Control::Kick { answer, .. } => {
            let (ended, rest) = answers.next().unwrap();
            answer.send(Kicked { ended, rest }).unwrap();
        }
        other => panic!("{other:?}"),
    });
    let kicked = api.request("POST", "/v1/users/5/kick");
    assert_eq!((kicked.status, kicked.json()), (200, serde_json::json!({ "kicked": 2 })));
    shard_thread.join().unwrap();
}

#[test]
fn a_shard_that_does_not_turn_is_not_ready() {
    let (node, _ports) = running_node();
    let api = Api::serve(node.clone());
    let sample = |turning: &[usize]| {
        turning.iter().for_each(|shard| node.stats()[*shard].turns.add(1));
        node.sample_shards();
        api.get("/readyz")
    };
    for _ in 0..6 {
        assert_eq!(sample(&[0, 1, 2]).status, 200);
    }
    for _ in 0..5 {
        assert_eq!(sample(&[0, 2]).status, 200);
    }
    let stuck = sample(&[0, 2]);
    assert_eq!((stuck.status, &stuck.json()["ready"]), (503, &false.into()));
    assert!(
        stuck.json()["reason"].as_str().is_some_and(|reason| reason.contains("shard 1 does not turn")),
        "{stuck:?}"
    );
    let metrics = api.get("/metrics").body;
    assert!(metrics.contains("trunkline_shards_stuck 1\n") && metrics.contains("trunkline_ready 0\n"));
    assert_eq!(sample(&[1]).status, 200, "it turns again, and one missed sample of the others is nothing");
}

#[test]
fn changes_need_a_key_with_the_scope_when_there_are_keys() {
    let made = NewKey::make("ops", &[Scope::Drain]).unwrap();
    let node = node_with(false, Access::new(Some(ApiKeys::parse(&made.line).unwrap()), false));
    node.set_running(handles());
    let api = Api::serve(node.clone());
    let with_key = |method: &str, path: &str, key: &str| {
        api.request_with(method, path, &format!("Authorization: Bearer {key}\r\n"), "")
    };
    for (method, path) in [("POST", "/v1/node/drain"), ("DELETE", "/v1/node/drain"), ("POST", "/v1/users/5/kick")] {
        let refused = api.request(method, path);
        assert!(refused.assert_problem(401).contains("Authorization: Bearer"));
        assert!(refused.head.contains("www-authenticate: bearer"), "{}", refused.head);
        with_key(method, path, "tlk_ops_0").assert_problem(401);
    }
    assert!(with_key("POST", "/v1/users/5/kick", &made.key).assert_problem(403).contains("scope kick"));
    assert_eq!(node.state(), NodeState::Running, "nothing has happened");
    assert_eq!(with_key("POST", "/v1/node/drain", &made.key).status, 202);
    assert_eq!(node.state(), NodeState::Draining);
    assert_eq!(api.get("/v1/node").status, 200, "who is here may ask");
    let other = NewKey::make("ops", &[Scope::Drain]).unwrap();
    node.access().set_keys(ApiKeys::parse(&other.line).unwrap());
    with_key("DELETE", "/v1/node/drain", &made.key).assert_problem(401);
    assert_eq!(with_key("DELETE", "/v1/node/drain", &other.key).status, 200);
    let metrics = api.get("/metrics").body;
    for line in [
        "trunkline_http_denied_total{reason=\"no_key\"} 3",
        "trunkline_http_denied_total{reason=\"unknown_key\"} 4",
        "trunkline_http_denied_total{reason=\"scope\"} 1",
        "trunkline_http_keys 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
}

#[test]
fn each_route_is_refused_without_its_scope_and_let_through_with_it() {
    // It does not run, so that whatever is let through is answered at once.
    let first = NewKey::make("first", &[Scope::Call]).unwrap();
    let node = node_with(false, Access::new(Some(ApiKeys::parse(&first.line).unwrap()), false));
    let api = Api::serve(node.clone());
    let ask = |method: &str, path: &str, scopes: &[Scope]| {
        let made = NewKey::make("some", scopes).unwrap();
        node.access().set_keys(ApiKeys::parse(&made.line).unwrap());
        // As from another host, where questions need a key as well.
        let headers = format!("Authorization: Bearer {}\r\nX-Forwarded-For: 192.0.2.1\r\n", made.key);
        api.request_with(method, path, &headers, "")
    };
    let mut scopes_seen = BTreeSet::new();
    for route in api::routes().listed() {
        let (method, path) = (route.method.to_ascii_uppercase(), route.path.replace(['{', '}'], ""));
        let needed = match route.needs {
            Needs::Nothing | Needs::AnyKey => Vec::new(),
            Needs::Read(scope) | Needs::Change(scope) => vec![scope],
            Needs::ChangeOfOne(scopes) => scopes.to_vec(),
        };
        let others: Vec<Scope> = Scope::all().filter(|scope| !needed.contains(scope)).collect();
        let refused = ask(&method, &path, &others);
        if needed.is_empty() {
            assert!(![401, 403].contains(&refused.status), "{method} {path}: {}", refused.body);
        } else {
            assert!(refused.assert_problem(403).contains("scope"), "{method} {path}: {}", refused.body);
        }
        for scope in needed {
            let let_through = ask(&method, &path, &[scope]);
            assert!(![401, 403].contains(&let_through.status), "{method} {path} with {scope}: {}", let_through.body);
            scopes_seen.insert(scope.to_string());
        }
    }
    assert!(scopes_seen.len() >= 6, "{scopes_seen:?}");
}

#[test]
fn no_web_page_drains_a_node() {
    let (node, _ports) = running_node();
    let api = Api::serve(node.clone());
    for header in ["Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n", "Host: evil.example:7780\r\n"] {
        api.request_with("POST", "/v1/node/drain", header, "").assert_problem(403);
        api.request_with("GET", "/v1/nodes", header, "").assert_problem(403);
    }
    assert_eq!(node.state(), NodeState::Running);
    assert_eq!(api.request("POST", "/v1/node/drain").status, 202, "curl does");
}

#[test]
fn wrong_requests_are_the_callers_fault() {
    let (node, ports) = running_node();
    let api = Api::serve(node);
    for user in ["0", "00", "abc", "-1", "+1", "1.5", "%00", "%ff", "%31%2f", "18446744073709551616", "5%20"] {
        api.get(&format!("/v1/users/{user}")).assert_problem(400);
        api.request("POST", &format!("/v1/users/{user}/kick")).assert_problem(400);
    }
    for query in ["?devise=x", "?device=a&device=b", "?device=a&all=1"] {
        assert!(api.request("POST", &format!("/v1/users/5/kick{query}")).assert_problem(400).contains("device"));
    }
    assert!(api.get("/v1/nothing").assert_problem(404).contains("/v1/nothing"));
    api.get("/").assert_problem(404);
    api.get("/v1/users/").assert_problem(404);
    let refused = api.get("/v1/users/5/kick");
    refused.assert_problem(405);
    assert!(refused.head.contains("allow: post"), "{}", refused.head);
    assert!(api.request("DELETE", "/v1/users/5").head.contains("allow: get"));
    api.request("POST", "/metrics").assert_problem(405);
    assert!(ports.iter().all(|port| port.take().is_none()), "no shard was bothered");
}

#[test]
fn a_full_control_queue_is_503() {
    let (node, ports) = running_node();
    let port = &ports[home_shard(5, SHARDS) as usize];
    for _ in 0..CONTROL_QUEUE_LEN {
        port.send(Control::Resume).unwrap();
    }
    assert!(Api::serve(node).get("/v1/users/5").assert_problem(503).contains("too many requests"));
}

#[test]
fn a_shard_that_drops_the_request_is_503() {
    let (node, ports) = running_node();
    let shard_thread = answer(ports[home_shard(5, SHARDS) as usize].clone(), 1, drop);
    assert!(Api::serve(node).get("/v1/users/5").assert_problem(503).contains("ended"));
    shard_thread.join().unwrap();
}

#[test]
fn a_shard_that_does_not_answer_is_504() {
    let (node, _ports) = running_node();
    let api = Api::serve(node);
    let asked = std::thread::scope(|scope| {
        let kick = scope.spawn(|| api.request("POST", "/v1/users/5/kick").assert_problem(504));
        let user = api.get("/v1/users/5").assert_problem(503);
        [user, kick.join().unwrap()]
    });
    assert!(asked.iter().all(|detail| detail.contains("did not answer")), "{asked:?}");
}

/// Fails unless the answer is as the document says.
fn assert_is(schema: &str, value: &Value) {
    let document = document::document();
    let schema = &document["components"]["schemas"][schema];
    assert!(schema.is_object(), "a schema");
    conforms::assert_conforms(&document, schema, value, "answer");
}

#[test]
fn every_route_is_documented_and_nothing_else() {
    let document = document::document();
    let served: BTreeSet<(&str, &str)> =
        api::routes().listed().iter().map(|route| (route.path, route.method)).collect();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (path.as_str(), method.as_str())))
        .collect();
    assert_eq!(documented, served);
    let mut referred = BTreeSet::new();
    document::references(&document, &mut referred);
    let defined: BTreeSet<String> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(referred, defined);
    let (node, _ports) = running_node();
    assert_eq!(Api::serve(node).get("/v1/openapi.json").json(), document);
}

#[test]
fn a_node_serves_what_routers_pass_on_and_needs_the_same_for_it() {
    let routes = api::routes();
    for route in RELAYED {
        assert!(routes.listed().contains(&route), "{route:?}");
    }
    let groups = routes.listed().iter().filter(|route| route.path.starts_with("/v1/groups/"));
    for route in groups {
        assert!(RELAYED.contains(route), "a router does not pass on {route:?}");
    }
}

#[test]
fn a_node_that_is_alone_answers_for_itself() {
    let (node, ports) = running_node();
    let stats = node.stats();
    stats[0].open.set(5);
    stats[1].users.set(3);
    let api = Api::serve(node);
    assert_is("OwnNode", &api.get("/v1/node").json());
    assert_is("Readiness", &api.get("/readyz").json());
    let nodes = api.get("/v1/nodes").json();
    assert_is("Nodes", &nodes);
    let shown = &nodes["nodes"][0];
    assert_eq!((nodes["nodes"].as_array().map(Vec::len), &shown["name"]), (Some(1), &"node-1".into()));
    assert_eq!((&shown["state"], &shown["shards"], &shown["share"]), (&"active".into(), &3.into(), &1.0.into()));
    assert_eq!((&shown["advertise"], &shown["reachable"]), (&"127.0.0.1:7700".into(), &Value::Null));
    let online = api.get("/v1/online").json();
    assert_is("Online", &online);
    assert_eq!((&online["connections"], &online["users"]), (&5.into(), &3.into()));

    let shard = home_shard(5, SHARDS);
    let shard_thread = answer(ports[shard as usize].clone(), 1, |request| match request {
        Control::User { user: 5, answer } => answer.send(Vec::new()).unwrap(),
        other => panic!("{other:?}"),
    });
    let explained = api.get("/v1/explain/5?from=node-1").json();
    shard_thread.join().unwrap();
    assert_is("Explanation", &explained);
    assert_eq!((&explained["home"], &explained["shard"]), (&"node-1".into(), &shard.into()));
    assert_eq!(explained["presence"]["online"], false);

    let preview = |body: &str| api.request_with("POST", "/v1/ring/preview", "Content-Type: application/json\r\n", body);
    let shown = preview(r#"{"add": [{"name": "node-2"}]}"#);
    assert_is("Preview", &shown.json());
    assert!(shown.json()["moved_share"].as_f64().is_some_and(|share| share > 0.3 && share < 0.7), "{shown:?}");
    // What a router takes would not fit the memory of a gateway.
    assert!(preview(r#"{"add": [{"name": "x", "weight": 1024}]}"#).assert_problem(409).contains("ask a router"));
}

#[test]
fn a_drain_is_begun_shown_and_called_off() {
    let starting = Api::serve(node());
    assert!(starting.request("POST", "/v1/node/drain").assert_problem(503).contains("starting"));

    let (node, _ports) = running_node();
    let stats = node.stats().to_vec();
    stats[0].sessions.set(10);
    stats[1].sessions_drained.set(5);
    let api = Api::serve(node.clone());
    assert!(api.get("/v1/node").json()["drain"].is_null());
    assert_eq!(api.request("DELETE", "/v1/node/drain").json()["state"], "running", "nothing to call off");
    let begun = api.request("POST", "/v1/node/drain");
    assert_eq!(begun.status, 202);
    assert_is("OwnNode", &begun.json());
    assert_eq!(begun.json()["state"], "draining");
    assert_eq!(begun.json()["drain"], serde_json::json!({ "ends": false, "sessions_left": 10, "moved": 0 }));
    assert!(
        api.get("/readyz").json()["reason"].as_str().is_some_and(|reason| reason.contains("DELETE /v1/node/drain"))
    );
    stats[0].sessions.set(8);
    stats[1].sessions_drained.add(2);
    let drain = api.request("POST", "/v1/node/drain").json()["drain"].clone();
    assert_eq!((&drain["sessions_left"], &drain["moved"]), (&8.into(), &2.into()), "the same drain: {drain}");
    // Home to nobody any more.
    assert_eq!(api.get("/v1/nodes").json()["nodes"][0]["in_ring"], false);

    let resumed = api.request("DELETE", "/v1/node/drain");
    assert_eq!((resumed.status, &resumed.json()["state"]), (200, &"running".into()));
    assert!(resumed.json()["drain"].is_null());

    node.drain().end(&stats);
    let ending = api.get("/v1/node").json()["drain"].clone();
    assert_eq!((&ending["ends"], &ending["moved"]), (&true.into(), &0.into()), "{ending}");
    assert!(api.request("DELETE", "/v1/node/drain").assert_problem(409).contains("signal"));
    assert_eq!(api.request("POST", "/v1/node/drain").json()["drain"]["ends"], true);
}

#[test]
fn before_it_runs_a_node_knows_nobody() {
    for (node, hint) in [(node(), "starting"), (node_that(true), "not joined")] {
        let api = Api::serve(node);
        for path in ["/v1/nodes", "/v1/online", "/v1/users/5", "/v1/explain/5"] {
            let detail = api.get(path).assert_problem(503);
            assert!(detail.contains(hint), "{path}: {detail}");
        }
    }
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let (node, _ports) = running_node();
    let api = Api::serve(node);
    let answer = api.get(&format!("/v1/users/{}", "1".repeat(20_000)));
    assert!((400..500).contains(&answer.status), "{answer:?}");
    let mut stream = api.connect();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000));
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => assert!(text.starts_with("HTTP/1.1 431 "), "{text}"),
        // It closes without reading the rest, and a reset may overtake the answer.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_body_is_not_read() {
    let (node, _ports) = running_node();
    let api = Api::serve(node);
    let mut stream = api.connect();
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

#[test]
fn several_requests_share_a_connection() {
    let api = Api::serve(node());
    let mut stream = api.connect();
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
}

#[test]
fn health_is_answered_although_strangers_hold_every_place() {
    let (node, _ports) = running_node();
    let api = Api::serve(node);
    let mut idle: Vec<TcpStream> = (0..HTTP_CONNECTIONS_MAX).map(|_| api.connect()).collect();
    // Far fewer than the time-outs of their headers would let in, were they waited for.
    for _ in 0..3 * HEALTH_PLACES {
        assert_eq!(api.get("/healthz").status, 200);
        idle.push(api.connect());
    }
    let metrics = api.get("/metrics").body;
    let number = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse::<u64>().unwrap()
    };
    assert_eq!(number("trunkline_http_places"), u64::from(HTTP_CONNECTIONS_MAX));
    assert!(number("trunkline_http_connections_evicted_total") > 0);
    assert!(number("trunkline_http_connections_open") <= u64::from(HTTP_CONNECTIONS_MAX));
}

#[test]
fn the_demo_loads_what_is_there_and_nothing_from_elsewhere() {
    let page_of = |node: &Node| demo::Demo::new(node.listen[0], node.http, false);
    let (node, _ports) = running_node();
    let routes = router(node.clone()).merge(page_of(&node).router());
    let api = Api::serve_routes(routes, node.places().clone());
    // From a link on another site's page, too: there is nothing in it that a right is needed for.
    let page = api.request_with("GET", demo::PATH, "Sec-Fetch-Site: cross-site\r\n", "");
    assert_eq!(page.status, 200);
    let policy = "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                  connect-src 'self' ws://127.0.0.1:7700; ";
    assert!(page.head.contains(policy), "{}", page.head);
    let mut loaded = BTreeSet::new();
    for reference in page.body.split('"').filter(|text| text.starts_with('/') || text.contains("://")) {
        let answer = api.get(reference);
        assert_eq!(answer.status, 200, "{reference}");
        assert!(answer.head.contains("x-content-type-options: nosniff"), "{reference}: {}", answer.head);
        loaded.insert(reference);
    }
    for (path, media_type, text) in demo::FILES {
        assert!(loaded.contains(path), "{path} is not loaded by the page");
        assert!(api.get(path).head.contains(&format!("content-type: {media_type}")), "{path}");
        let own = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains("http://") && !own.contains("https://"), "{path}");
    }
    assert_eq!(api.get("/demo/config.json").body, r#"{"url":"ws://127.0.0.1:7700/ws","token":false}"#);
    assert_eq!(api.get("/demo/nothing").status, 404);
    // What it shows of users comes from the API, which answers its own pages.
    let asked = api.request_with("GET", "/v1/node", "Sec-Fetch-Site: same-origin\r\n", "");
    assert_eq!(asked.status, 200);

    let without = Api::serve(node);
    assert_eq!(without.get(demo::PATH).status, 404);
}

#[test]
fn services_are_shown_and_workers_changed_with_the_scope_alone() {
    use crate::services::{Changed, InstanceChange, InstanceSeen, ServiceSeen};
    let seen = |drained, weight| ServiceSeen {
        servers: Vec::new(),
        service: 7,
        name: "orders".to_owned(),
        policy: trunkline_router::Policy::LeastTime,
        is_http: false,
        waiting: 1,
        instances: vec![InstanceSeen {
            name: "w-1".to_owned(),
            weight,
            backup: false,
            links: 1,
            window: 4,
            calls: 2,
            drained,
            failed: false,
        }],
        nodes: vec![("node-2".to_owned(), 9)],
    };
    let made = NewKey::make("ops", &[Scope::NodesRead]).unwrap();
    let other = NewKey::make("shop", &[Scope::ServicesWrite]).unwrap();
    let keys = ApiKeys::parse(&format!("{}\n{}", made.line, other.line)).unwrap();
    let node = node_with(false, Access::new(Some(keys), false));
    let handles = handles();
    let ports = handles.ports.clone();
    node.set_running(handles);
    let api = Api::serve(node);
    let with_key = |method: &str, path: &str, key: &str, body: &str| {
        let headers = format!("Authorization: Bearer {key}\r\nContent-Type: application/json\r\n");
        api.request_with(method, path, &headers, body)
    };
    let path = "/v1/services/7/instances/w-1";
    let drain = r#"{"state":"drain","weight":5}"#;
    assert!(with_key("GET", "/v1/services", &other.key, "").assert_problem(403).contains("nodes:read"));
    assert!(with_key("PATCH", path, &made.key, drain).assert_problem(403).contains("services:write"));
    api.request_with("PATCH", path, "Content-Type: application/json\r\n", drain).assert_problem(401);
    for (path, body) in [
        ("/v1/services/0/instances/w", drain),
        ("/v1/services/x/instances/w", drain),
        (path, "{}"),
        (path, r#"{"weight":0}"#),
        (path, r#"{"weight":65536}"#),
        (path, r#"{"state":"gone"}"#),
        (path, r#"{"down":true}"#),
    ] {
        let answer = with_key("PATCH", path, &other.key, body);
        assert!((400..=422).contains(&answer.status), "{path} {body}: {answer:?}");
    }
    let answered = |changes: usize, known: bool| -> Vec<std::thread::JoinHandle<()>> {
        let shards = ports.iter().cloned().enumerate();
        let each = move |shard: usize| {
            move |request| match request {
                Control::Services { answer } => {
                    let (drained, weight) = if changes > 0 { (true, 5) } else { (false, 1) };
                    answer.send(Some(if shard == 1 { vec![seen(drained, weight)] } else { Vec::new() })).unwrap();
                }
                Control::Instance { service: 7, name, change, is_known, answer } => {
                    let expected = InstanceChange { drained: Some(true), weight: Some(5) };
                    assert_eq!((name.as_str(), change), ("w-1", expected));
                    let knows = known && (shard == 1 || is_known);
                    answer.send(if knows { Changed::Yes } else { Changed::Unknown }).unwrap();
                }
                other => panic!("{other:?}"),
            }
        };
        let requests = if changes == 0 { 1 } else { changes };
        shards.map(|(shard, port)| answer(port, requests, each(shard))).collect()
    };
    let threads = answered(0, true);
    let shown = with_key("GET", "/v1/services", &made.key, "").json();
    assert_is("Services", &shown);
    let of = &shown["services"][0];
    assert_eq!((&of["service"], &of["policy"], &of["waiting"]), (&7.into(), &"least-time".into(), &1.into()));
    assert_eq!(of["instances"][0]["state"], "active");
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let threads = answered(3, true);
    let changed = with_key("PATCH", path, &other.key, drain).json();
    assert_is("ServiceInstance", &changed);
    assert_eq!((&changed["state"], &changed["weight"]), (&"drain".into(), &5.into()));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let threads = answered(1, false);
    assert!(with_key("PATCH", path, &other.key, drain).assert_problem(404).contains("w-1"));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
