//! The OpenAPI document against the routes and the answers, and the questions over a source that is made up.

#[path = "../../tests/router/support/conforms.rs"]
mod conforms;

use super::*;
use crate::api::{self, PreviewRequest};
use crate::dispatch::Strategy;
use crate::membership::{Membership, NodeRecord, NodeState};
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use conforms::assert_conforms;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

#[test]
fn every_route_is_documented_and_nothing_else() {
    let document = document();
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())))
        .collect();
    let served: BTreeSet<(String, String)> =
        routes().into_iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    assert_eq!(documented, served);
    for route in routes() {
        let line = format!("{:<4} {} ", route.method.to_uppercase(), route.path);
        assert!(operations::INDEX.lines().any(|shown| shown.starts_with(&line)), "no {line:?} in the index");
    }
}

#[test]
fn every_reference_of_the_document_leads_somewhere_and_every_schema_is_used() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str().filter(|_| key == "$ref") {
                        Some(reference) => {
                            found.insert(reference.strip_prefix("#/components/schemas/").unwrap().to_owned());
                        }
                        None => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let defined: BTreeSet<String> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(found, defined);
}

fn assert_is(schema: &str, value: &Value) {
    let document = document();
    let schema = &document["components"]["schemas"][schema];
    assert!(schema.is_object(), "a schema");
    assert_conforms(&document, schema, value, "answer");
}

pub(super) fn record(name: &str, state: NodeState) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation: u64::MAX,
        state,
        weight: 2,
        shards: 4,
        mesh: "127.0.0.1:7790".into(),
        advertise: "127.0.0.1:7700".into(),
        http: String::new(),
        protocol: 1,
        connections: 5,
        users: 4,
        started_ms: 1,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}

fn entry(device: &str, node: &str) -> PresenceEntry {
    PresenceEntry {
        device: device.into(),
        node: node.into(),
        incarnation: u64::MAX,
        shard: 1,
        session: u64::MAX,
        since_ms: 1_700_000_000_000,
        class: "".into(),
        version: 1,
    }
}

/// A gateway, as far as the questions are concerned.
struct Gateway {
    picture: Option<Picture>,
    store_fails: bool,
}

impl Gateway {
    fn new() -> Self {
        let mut membership = Membership::new(Some("a"), 5_000);
        let records =
            vec![record("a", NodeState::Active), record("b", NodeState::Active), record("c", NodeState::Draining)];
        membership.polled(0, records);
        let picture = Picture { view: membership.view(), age_ms: 5, degraded: false };
        Gateway { picture: Some(picture), store_fails: false }
    }
}

impl Source for Gateway {
    fn picture(&self) -> Result<Picture, String> {
        self.picture.clone().ok_or_else(|| "nothing is known yet".to_owned())
    }

    fn preview_weight_max(&self) -> u32 {
        4_096
    }

    async fn entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        if self.store_fails {
            return Err("the store does not answer".to_owned());
        }
        Ok(if user == 1 { vec![entry("desk", "a"), entry("phone", "b"), entry("old", "z")] } else { Vec::new() })
    }

    async fn entries_of(&self, users: &[u64]) -> Vec<Option<Vec<PresenceEntry>>> {
        let mut all = Vec::new();
        for user in users {
            // As where the master of some users' keys is away.
            all.push(if *user == 9 { None } else { self.entries(*user).await.ok() });
        }
        all
    }

    fn reachable(&self, node: &str) -> Option<bool> {
        Some(node != "b")
    }
}

fn ask(gateway: Gateway, mut request: Request<Body>) -> (StatusCode, header::HeaderMap, Value) {
    // As the server does it for a connection from this host.
    request.extensions_mut().insert(Peer("127.0.0.1:5".parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // As a gateway does it: among routes of its own.
        let routes = Routes::new().get("/mine", Needs::Nothing, async || "mine").reads();
        let router = routes.into_router("", Arc::new(Access::new(None, false))).with_state(Arc::new(gateway));
        let response = TowerToHyperService::new(router).call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (head.status, head.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    })
}

fn get(gateway: Gateway, path: &str) -> (StatusCode, Value) {
    let (status, _, body) = ask(gateway, Request::get(path).body(Body::empty()).unwrap());
    (status, body)
}

fn post(gateway: Gateway, path: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::post(path).header("content-type", "application/json; charset=utf-8");
    let (status, _, body) = ask(gateway, request.body(Body::from(body.to_string())).unwrap());
    (status, body)
}

#[test]
fn a_gateway_answers_the_questions_from_its_own_view() {
    let (status, nodes) = get(Gateway::new(), "/v1/nodes");
    assert_eq!(status, 200);
    assert_is("Nodes", &nodes);
    assert_eq!((&nodes["nodes"][0]["reachable"], &nodes["nodes"][1]["reachable"]), (&json!(true), &json!(false)));

    let (status, online) = get(Gateway::new(), "/v1/online");
    assert_eq!((status, &online["users"]), (StatusCode::OK, &json!(12)));
    assert_is("Online", &online);

    let (status, user) = get(Gateway::new(), "/v1/users/1");
    assert_eq!((status, user["devices"].as_array().map(Vec::len)), (StatusCode::OK, Some(2)));
    assert_is("User", &user);

    let (status, explanation) = get(Gateway::new(), "/v1/explain/1?from=c");
    assert_eq!((status, &explanation["path"][0]["node"]), (StatusCode::OK, &json!("c")));
    assert_is("Explanation", &explanation);

    let (status, preview) = post(Gateway::new(), "/v1/ring/preview", &json!({"remove": ["b"], "sample": 100.0}));
    assert_eq!((status, &preview["nodes"][1]["weight_after"]), (StatusCode::OK, &Value::Null));
    assert_is("Preview", &preview);

    assert_eq!(get(Gateway::new(), "/mine").0, 200);
}

#[test]
fn presence_is_told_user_by_user_and_nobody_is_offline_of_whom_nothing_is_known() {
    let users = json!({"users": ["1", 2, u64::MAX.to_string(), "9", 1.0]});
    let (status, told) = post(Gateway::new(), "/v1/presence", &users);
    assert_eq!(status, 200, "{told}");
    assert_is("Presences", &told);
    let shown = |told: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        told["users"].as_array().unwrap().iter().map(|user| (text(&user["user"]), text(&user["presence"]))).collect()
    };
    let pairs = |words: [&str; 5]| {
        let users = ["1", "2", "18446744073709551615", "9", "1"];
        users.into_iter().zip(words).map(|(user, word)| (user.to_owned(), word.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(shown(&told), pairs(["online", "offline", "offline", "unknown", "online"]));
    let failing = Gateway { store_fails: true, ..Gateway::new() };
    assert_eq!(shown(&post(failing, "/v1/presence", &users).1), pairs(["unknown"; 5]));
    let mut picture = Gateway::new().picture.unwrap();
    picture.degraded = true;
    let degraded = Gateway { picture: Some(picture), ..Gateway::new() };
    let (_, told) = post(degraded, "/v1/presence", &users);
    assert_eq!(shown(&told), pairs(["online", "unknown", "unknown", "unknown", "online"]));
    assert_eq!(told["degraded"], true);
    let nothing = Gateway { picture: None, ..Gateway::new() };
    assert_eq!(post(nothing, "/v1/presence", &users).0, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn presence_is_asked_of_a_bounded_number_of_users() {
    let longest = |users: usize| json!({"users": vec![u64::MAX.to_string(); users]});
    let (status, told) = post(Gateway::new(), "/v1/presence", &longest(api::PRESENCE_USERS_MAX));
    assert_eq!((status, told["users"].as_array().map(Vec::len)), (StatusCode::OK, Some(api::PRESENCE_USERS_MAX)));
    for (body, hint) in [
        (longest(api::PRESENCE_USERS_MAX + 1), "1 to 500"),
        (json!({"users": []}), "1 to 500"),
        (json!({"users": ["0"]}), "a user is a number"),
        (json!({"users": ["1"], "user": 1}), "unknown field `user`"),
        (json!({}), "missing field `users`"),
    ] {
        let (status, problem) = post(Gateway::new(), "/v1/presence", &body);
        assert_eq!(status, 400, "{problem}");
        assert_is("Problem", &problem);
        assert!(problem["detail"].as_str().unwrap().contains(hint), "{problem}");
    }
    let document = document();
    let users = &document["components"]["schemas"]["PresenceRequest"]["properties"]["users"];
    assert_eq!(users["maxItems"], api::PRESENCE_USERS_MAX);
}

#[test]
fn without_the_store_a_user_is_unknown_and_the_rest_is_explained() {
    let failing = || Gateway { store_fails: true, ..Gateway::new() };
    let (status, problem) = get(failing(), "/v1/users/1");
    assert_eq!((status, &problem["detail"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("the store does not answer")));
    assert_is("Problem", &problem);
    let (status, explanation) = get(failing(), "/v1/explain/1");
    assert_eq!((status, &explanation["presence"]), (StatusCode::OK, &Value::Null));
    assert!(explanation["home"].is_string());
    assert_is("Explanation", &explanation);
}

#[test]
fn before_the_first_view_there_is_no_answer_but_a_time_to_try_again() {
    for path in ["/v1/nodes", "/v1/online", "/v1/users/1", "/v1/explain/1"] {
        let nothing = Gateway { picture: None, ..Gateway::new() };
        let (status, headers, body) = ask(nothing, Request::get(path).body(Body::empty()).unwrap());
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(headers["retry-after"], "1");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_is("Problem", &body);
    }
}

#[test]
fn every_answer_at_its_emptiest_is_as_documented() {
    let picture = Picture { view: Membership::new(None, 1).view(), age_ms: 0, degraded: true };
    let json = |answer: Result<Value, serde_json::Error>| answer.unwrap();
    assert_is("Nodes", &json(serde_json::to_value(api::nodes(&picture, |_| None))));
    assert_is("Online", &json(serde_json::to_value(api::online(&picture))));
    assert_is(
        "Cluster",
        &json(serde_json::to_value(api::overview(&picture, |_| None, Some(vec![api::PeerLinks::default()])))),
    );
    assert_is("User", &json(serde_json::to_value(api::user(&picture, 1, Vec::new()))));
    assert_is("Presences", &json(serde_json::to_value(api::presences(&picture, vec![(1, None)]))));
    assert_is("Explanation", &json(serde_json::to_value(api::explain(&picture, 1, None, None).unwrap())));
    let request: PreviewRequest = serde_json::from_value(json!({"add": [{"name": "a"}], "sample": 1})).unwrap();
    assert_is("Preview", &json(serde_json::to_value(api::preview(&picture.view, true, &request, u32::MAX).unwrap())));
    assert_is("Account", &json(serde_json::to_value(writes::Account { name: "ada".into(), user: u64::MAX })));
    let login = writes::Login {
        user: u64::MAX,
        node: "a".into(),
        address: "a:1".into(),
        zone: String::new(),
        ttl_secs: 5,
        strategy: Strategy::RandomTwo,
        epoch: 1,
        degraded: false,
    };
    assert_is("Login", &json(serde_json::to_value(login)));
}

#[test]
fn the_examples_of_the_document_are_taken() {
    let document = document();
    let example =
        |path: &str| document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"].clone();
    assert!(serde_json::from_value::<PreviewRequest>(example("/v1/ring/preview")).is_ok());
    assert!(example("/v1/login")["user"].is_string() && example("/v1/accounts")["name"].is_string());
    let strategies: Vec<Value> = Strategy::ALL.iter().map(|strategy| json!(strategy.name())).collect();
    assert_eq!(document["components"]["schemas"]["Strategy"]["enum"], json!(strategies));
}

#[test]
fn bad_requests_are_refused_with_the_correction() {
    let mut refused = Vec::new();
    for path in [
        "/v1/users/0",
        "/v1/users/abc",
        "/v1/users/-1",
        "/v1/users/+1",
        "/v1/users/01",
        "/v1/users/18446744073709551616",
        "/v1/explain/x",
    ] {
        refused.push((path.to_owned(), get(Gateway::new(), path), "a user is a number from 1"));
    }
    for (path, hint) in [("/v1/users/%ff", "UTF-8"), ("/v1/explain/1?form=a", "unknown field `form`, expected `from`")]
    {
        refused.push((path.to_owned(), get(Gateway::new(), path), hint));
    }
    for (body, hint) in [
        (json!({"add": [], "ad": []}), "unknown field `ad`"),
        (json!({"add": [{"name": "d", "wait": 1}]}), "unknown field `wait`"),
        (json!({"add": [{"weight": 1}]}), "missing field `name`"),
        (json!({"remove": "a"}), "expected a sequence"),
        (json!({"weights": {"a": -1}}), "a whole number"),
        (json!({"weights": {"a": 1.5}}), "a whole number"),
        (json!({"sample": 4_294_967_296_u64}), "a whole number"),
        (json!({"sample": null}), "null"),
        (json!({"add": [{"name": "d".repeat(65)}]}), "64 characters"),
        (json!([1]), "JSON object"),
    ] {
        refused.push((body.to_string(), post(Gateway::new(), "/v1/ring/preview", &body), hint));
    }
    for (what, (status, problem), hint) in refused {
        assert_eq!(status, 400, "{what}: {problem}");
        assert_is("Problem", &problem);
        assert!(problem["detail"].as_str().unwrap().contains(hint), "{what}: {problem}");
    }
}

#[test]
fn what_another_cluster_would_take_is_no_bad_request() {
    let (status, problem) = get(Gateway::new(), "/v1/explain/1?from=x");
    assert_eq!(status, 404, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("use a, b, c"), "{problem}");
    for (body, hint) in [
        (json!({"remove": ["x"]}), "those that are: a, b"),
        (json!({"add": [{"name": "a"}]}), "in the ring already"),
        (json!({"remove": ["a"], "weights": {"a": 2}}), "named twice"),
        (json!({"remove": ["a", "b"]}), "keep a node"),
        (json!({"add": [{"name": "d", "weight": 4_093}]}), "come to 4097, and this process previews 4096 at most"),
    ] {
        let (status, problem) = post(Gateway::new(), "/v1/ring/preview", &body);
        assert_eq!(status, 409, "{body}: {problem}");
        assert_is("Problem", &problem);
        assert!(problem["detail"].as_str().unwrap().contains(hint), "{body}: {problem}");
    }
}

#[test]
fn bodies_are_json_and_bounded() {
    let preview = |content_type: &str, body: String| {
        let request = Request::post("/v1/ring/preview").header("content-type", content_type);
        let (status, _, problem) = ask(Gateway::new(), request.body(Body::from(body)).unwrap());
        (status.as_u16(), problem["detail"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(preview("application/json", "{}".into()).0, 200);
    let (status, detail) = preview("text/plain", "{}".into());
    assert!(status == 415 && detail.contains("Content-Type: application/json"), "{status} {detail}");
    let (status, detail) = preview("application/json", format!("{{{}}}", " ".repeat(BODY_BYTES_MAX)));
    assert!(status == 413 && detail.contains("16384 bytes"), "{status} {detail}");
    let (status, detail) = preview("application/json", "{".into());
    assert!(status == 400 && detail.contains("EOF"), "{status} {detail}");
}
