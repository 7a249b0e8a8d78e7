//! Requests through a router to nodes that are threads with a socket.

use super::super::access::Access;
use super::super::keys::{ApiKeys, NewKey};
use super::super::places::Places;
use super::super::service::ServiceConfig;
use super::super::tests::record;
use super::super::{router, routes};
use super::*;
use crate::dispatch::Strategy;
use crate::membership::{Membership, NodeState};
use crate::redis::{Plane, RedisConfig};
use axum::body::to_bytes;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

/// What a node does with a request.
#[derive(Clone)]
enum Does {
    Answers(String),
    /// It ends the connection without an answer.
    Dies,
    /// It takes the request and never says a word.
    Hangs,
}

/// A node of the tests: where it is, and what it was asked.
struct Node {
    address: String,
    asked: Receiver<String>,
}

impl Node {
    fn that(does: Does) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, asked) = channel();
        std::thread::spawn(move || {
            let mut hanging = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(&stream);
                let (mut head, mut length) = (String::new(), 0);
                while let Ok(1..) = reader.read_line(&mut head)
                    && !head.ends_with("\r\n\r\n")
                {
                    let last = head.lines().next_back().unwrap_or_default().to_ascii_lowercase();
                    length = last.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap());
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let _ = tell.send(head + &String::from_utf8(body).unwrap());
                if let Does::Answers(answer) = &does {
                    // A router that waits no longer is none of its business.
                    let _ = (&stream).write_all(answer.as_bytes());
                }
                drop(reader);
                if let Does::Hangs = &does {
                    hanging.push(stream);
                }
            }
        });
        Node { address, asked }
    }

    fn answering(status: &str, headers: &str, body: &str) -> Node {
        let length = body.len();
        Node::that(Does::Answers(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")))
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

/// A router that knows these nodes by their addresses; their names are those of letters.
fn service(access: Access, addresses: &[&str]) -> Arc<Service> {
    let config = ServiceConfig {
        lease_secs: 5,
        strategy: Strategy::Home,
        zone: String::new(),
        slow_start_secs: 0,
        access: Arc::new(access),
        places: Places::new(16),
        node_key: None,
        node_tls: Err("no TLS here".to_owned()),
    };
    let plane = Plane::unconnected(&RedisConfig::parse("redis-cluster://127.0.0.1:1").unwrap());
    let service = Service::new(plane, config).unwrap();
    let mut membership = Membership::new(None, 5_000);
    let nodes = ["a", "b"].into_iter().zip(addresses);
    let records =
        nodes.map(|(name, address)| NodeRecord { http: address.to_string(), ..record(name, NodeState::Active) });
    membership.polled(0, records.collect());
    service.see(membership.view());
    Arc::new(service)
}

fn open() -> Access {
    Access::new(None, false)
}

/// A group whose home is the node of that name.
fn group_at(service: &Service, name: &str) -> u64 {
    let view = service.picture().unwrap().view;
    (1..).find(|group| nodes_to_ask(&view, *group)[0].name == name).unwrap()
}

/// The status, the header and the body of an answer.
fn ask_from(service: &Arc<Service>, peer: &str, mut request: Request) -> (u16, HeaderMap, String) {
    request.extensions_mut().insert(Peer(peer.parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let response = TowerToHyperService::new(router(Arc::clone(service))).call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 64 << 20).await.unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while service.relays().under_way() > 0 {
            assert!(Instant::now() < until, "it is not over with its answer");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
    })
}

fn ask(service: &Arc<Service>, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (status, _, body) = ask_from(service, "127.0.0.1:5", request.body(Body::from(body.to_owned())).unwrap());
    (status, body)
}

fn outcomes(service: &Service) -> Vec<(&'static str, u64)> {
    service.relays().outcomes().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_request_comes_to_the_home_as_it_was_made_and_the_answer_back() {
    let long = "x".repeat(3 << 20);
    let nodes = [&long, "{}"].map(|body| {
        let headers = "Content-Type: application/x-its-own\r\nRetry-After: 7\r\nX-Internal: 1\r\n";
        Node::answering("201 Created", headers, body)
    });
    let service = service(open(), &[&nodes[0].address, &nodes[1].address]);
    let group = group_at(&service, "a");
    let path = format!("/v1/groups/{group}/messages?after=5&x=%20%C3%A4");
    let request = Request::post(&path)
        .header("content-type", "application/json")
        .header("authorization", "Bearer tlk_ops_1")
        .header("cookie", "secret")
        .body(Body::from("{\"from\":1}"))
        .unwrap();
    let (status, headers, body) = ask_from(&service, "127.0.0.1:5", request);
    assert_eq!((status, body.len()), (201, long.len()));
    assert_eq!(headers["content-type"], "application/x-its-own");
    assert_eq!(headers["retry-after"], "7");
    assert!(!headers.contains_key("x-internal"));
    let asked = nodes[0].asked();
    assert_eq!(asked.len(), 1);
    let asked = asked[0].to_ascii_lowercase();
    assert!(asked.starts_with(&format!("post {} http/1.1\r\n", path.to_ascii_lowercase())), "{asked}");
    for line in ["authorization: bearer tlk_ops_1", "content-type: application/json", "content-length: 10"] {
        assert!(asked.lines().any(|found| found == line), "no {line} in {asked}");
    }
    assert!(asked.contains(&format!("host: {}\r\n", nodes[0].address)) && asked.ends_with("{\"from\":1}"), "{asked}");
    assert!(!asked.contains("cookie") && !asked.contains("via:"), "{asked}");
    assert!(nodes[1].asked().is_empty());
    assert_eq!(outcomes(&service), [("answered", 1)]);
}

#[test]
fn every_route_on_the_list_is_passed_on_with_its_method() {
    let node = Node::answering("200 OK", "Content-Type: application/json\r\n", "{}");
    let service = service(open(), &[&node.address]);
    for Route { method, path, .. } in RELAYED {
        let path = path.replace("{group}", "5").replace("{user}", "7").replace("{device}", "my%20phone");
        assert_eq!(ask(&service, &method.to_uppercase(), &path, &[], "").0, 200, "{method} {path}");
        let asked = node.asked().concat();
        assert!(asked.starts_with(&format!("{} {path} HTTP/1.1\r\n", method.to_uppercase())), "{asked}");
    }
    assert!(RELAYED.iter().all(|route| routes().contains(route)));
}

#[test]
fn another_node_is_asked_where_none_can_have_done_anything() {
    let well = Node::answering("200 OK", "", "{}");
    let dies = Node::that(Does::Dies);
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let with_gone = service(open(), &[&gone, &well.address]);
    let path = format!("/v1/groups/{}", group_at(&with_gone, "a"));
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(ask(&with_gone, method, &path, &[], "").0, 200, "{method}");
    }
    assert_eq!((well.asked().len(), outcomes(&with_gone)), (3, vec![("answered", 3)]));

    let with_dying = service(open(), &[&dies.address, &well.address]);
    assert_eq!(ask(&with_dying, "GET", &path, &[], "").0, 200, "a question changes nothing");
    assert_eq!((dies.asked().len(), well.asked().len()), (1, 1));
    for method in ["PUT", "DELETE"] {
        let (status, problem) = ask(&with_dying, method, &path, &[], "");
        assert!(status == 502 && problem.contains("node a at") && problem.contains("may have been done"), "{problem}");
    }
    assert_eq!((dies.asked().len(), well.asked().len()), (2, 0), "nobody else does it a second time");
    assert_eq!(outcomes(&with_dying), [("answered", 1), ("lost", 2)]);

    let both_die = service(open(), &[&dies.address, &dies.address]);
    let (status, problem) = ask(&both_die, "GET", &path, &[], "");
    assert!(status == 502 && problem.contains("node a at") && problem.contains("node b at"), "{problem}");
    let both_gone = service(open(), &[&gone, &gone]);
    let (status, problem) = ask(&both_gone, "PUT", &path, &[], "");
    assert!(status == 503 && problem.contains("no node could be asked: node a at"), "{problem}");
    let nobody = service(open(), &[]);
    let (status, problem) = ask(&nobody, "GET", &path, &[], "");
    assert!(status == 503 && problem.contains("no node is known"), "{problem}");
    assert_eq!((outcomes(&both_gone), outcomes(&nobody)), (vec![("unreachable", 1)], vec![("unreachable", 1)]));
}

#[test]
fn what_became_of_a_change_is_told_before_the_bound_of_all_requests_ends_it() {
    for millis in 0..=20_000 {
        let left = Duration::from_millis(millis);
        let within = answer_timeout(left);
        assert!(within.is_none_or(|within| within < left && within <= ANSWER_TIMEOUT), "{left:?}: {within:?}");
        assert_eq!(within.is_some(), left >= TIME_TO_TELL + ANSWER_TIMEOUT_LEAST, "{left:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (hangs, well) = (Node::that(Does::Hangs), Node::answering("200 OK", "", "{}"));
    let service = service(open(), &[&hangs.address, &well.address]);
    let change = |left: Duration| {
        let path = format!("/v1/groups/{}", group_at(&service, "a"));
        let mut request = Request::put(path).body(Body::empty()).unwrap();
        runtime.block_on(async {
            // As if body and connections had taken the rest of it.
            let deadline = tokio::time::Instant::now() + left;
            request.extensions_mut().insert(Deadline(deadline));
            let answer = tokio::time::timeout_at(deadline, relay(State(Arc::clone(&service)), request)).await;
            let problem = answer.expect("it is told in time").expect_err("nobody has answered").into_response();
            let status = problem.status().as_u16();
            (status, String::from_utf8(to_bytes(problem.into_body(), 4_096).await.unwrap().to_vec()).unwrap())
        })
    };
    let (status, problem) = change(TIME_TO_TELL + ANSWER_TIMEOUT_LEAST + Duration::from_millis(200));
    assert!(status == 502 && problem.contains("may have been done"), "{problem}");
    let (status, problem) = change(TIME_TO_TELL + ANSWER_TIMEOUT_LEAST / 2);
    assert!(status == 503 && problem.contains("too little time left"), "{problem}");
    assert_eq!((hangs.asked().len(), well.asked().len()), (1, 0), "the second one was given to nobody");
}

#[test]
fn the_router_judges_the_caller_first_and_a_node_that_refuses_it_is_told_apart() {
    let node = Node::answering("401 Unauthorized", "", "{}");
    let key = NewKey::make("ops", &[Scope::AccountsWrite]).unwrap();
    let keys = || Access::new(Some(ApiKeys::parse(&key.line).unwrap()), false);
    let service = service(keys(), &[&node.address]);
    let bearer = format!("Bearer {}", key.key);
    let with_key = [("authorization", bearer.as_str())];
    for (method, path, headers, expected) in [
        ("PUT", "/v1/groups/5", &[][..], 401),
        ("POST", "/v1/groups/5/messages", &with_key, 403),
        ("GET", "/v1/users/5/inbox", &with_key, 403),
    ] {
        assert_eq!(ask(&service, method, path, headers, "").0, expected, "{method} {path}");
    }
    assert!(node.asked().is_empty(), "who may not ask the router asks no node");
    let (status, problem) = ask(&service, "PUT", "/v1/groups/5", &with_key, "");
    assert!(status == 401 && problem.contains("node a does not take the key that this router takes"), "{problem}");
    let (status, problem) = ask(&service, "GET", "/v1/groups/5", &[("host", "localhost")], "");
    assert!(status == 401 && problem.contains("none in the request to pass on"), "{problem}");
    assert_eq!(outcomes(&service), [("refused", 2)]);
    // With keys, who comes from elsewhere has shown one; without, it may be anybody.
    let node = Node::answering("200 OK", "", "{}");
    for (access, headers, via) in [
        (keys(), &with_key[..], false),
        (Access::new(None, true), &[], true),
        (Access::new(None, true), &with_key, true),
    ] {
        let service = super::tests::service(access, &[&node.address]);
        let mut request = Request::delete("/v1/groups/5");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        assert_eq!(ask_from(&service, "192.0.2.7:5", request).0, 200);
        assert_eq!(node.asked().concat().contains("via: 1.1 trunkline-router\r\n"), via);
    }
}

#[test]
fn requests_that_are_passed_on_are_bounded_in_number_and_size() {
    let node = Node::answering("200 OK", "", "{}");
    let service = service(open(), &[&node.address]);
    let long = " ".repeat(super::super::BODY_BYTES_MAX + 1);
    assert_eq!(ask(&service, "PUT", "/v1/groups/5", &[], &long).0, 413);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = u32::try_from(RELAYS_MAX).unwrap();
    let taken = runtime.block_on(Arc::clone(&service.relays().room).acquire_many_owned(all)).unwrap();
    let mut request = Request::get("/v1/groups/5").body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer("127.0.0.1:5".parse().unwrap()));
    let refused = runtime.block_on(TowerToHyperService::new(router(Arc::clone(&service))).call(request)).unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(node.asked().is_empty());
    drop(taken);
    assert_eq!(ask(&service, "GET", "/v1/groups/5", &[], "").0, 200);
    assert_eq!(outcomes(&service), [("answered", 1), ("busy", 1)]);
}
