//! The questions about nodes and users that every node of a cluster answers, over a real Redis Cluster.

use crate::cluster_support::Member;
use crate::cluster_support::redis_cluster::RedisCluster;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::support::wire::{Login, code};
use serde_json::{Value, json};

/// Asks for what is documented as this; fails when the answer is not as the document of the same gateway says.
fn ask(gateway: &Gateway, path: &str, schema: &str) -> Value {
    let answer = gateway.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    assert_is(gateway, schema, &answer.json());
    answer.json()
}

fn assert_is(gateway: &Gateway, schema: &str, value: &Value) {
    let document = gateway.get("/v1/openapi.json").json();
    let described = &document["components"]["schemas"][schema];
    assert!(described.is_object(), "no {schema} in the document");
    crate::support::conforms::assert_conforms(&document, described, value, schema);
}

#[test]
fn every_node_answers_about_all_nodes_and_users() {
    let mut cluster = RedisCluster::start();
    let names = ["a", "b"];
    let gateways = names.map(|name| Member::new(&cluster, name).start(&cluster, &["--lease-secs", "5"]));
    for gateway in &gateways {
        let nodes = wait_for("both are in the ring, and linked", || {
            let nodes = ask(gateway, "/v1/nodes", "Nodes");
            let in_ring =
                |node: &Value| node["in_ring"] == true && node["state"] == "active" && node["reachable"] == true;
            let all = nodes["nodes"].as_array().expect("nodes");
            (all.len() == 2 && all.iter().all(in_ring)).then_some(nodes)
        });
        assert_eq!([&nodes["nodes"][0]["name"], &nodes["nodes"][1]["name"]], ["a", "b"], "{nodes}");
        assert_eq!((&nodes["degraded"], nodes["points"].as_u64()), (&json!(false), Some(3_200)), "{nodes}");
        assert_eq!(nodes["digest"], gateway.get("/v1/node").json()["cluster"]["digest"]);
        assert_is(gateway, "OwnNode", &gateway.get("/v1/node").json());
        assert_is(gateway, "Readiness", &gateway.get("/readyz").json());
    }

    // Whichever node is asked, it is the sessions of the cluster that count, and the homes are the same.
    let (mut phone, phone_ok) = Client::login_with(&gateways[0], &Login::of(11).device("phone"));
    let (mut desk, desk_ok) = Client::login_with(&gateways[1], &Login::of(11).device("desk"));
    let answers = gateways.each_ref().map(|gateway| {
        wait_for("both devices are online", || {
            let user = ask(gateway, "/v1/users/11", "User");
            (user["devices"].as_array().map(Vec::len) == Some(2)).then_some(user)
        })
    });
    assert_eq!(answers[0], answers[1]);
    let shown = |at: usize| {
        let device = &answers[0]["devices"][at];
        (device["device"].clone(), device["node"].clone(), device["shard"].clone(), device["session"].clone())
    };
    assert_eq!(shown(0), (json!("desk"), json!("b"), json!(desk_ok.shard), json!(desk_ok.session.to_string())));
    assert_eq!(shown(1), (json!("phone"), json!("a"), json!(phone_ok.shard), json!(phone_ok.session.to_string())));
    for gateway in &gateways {
        let explained = ask(gateway, "/v1/explain/11?from=b", "Explanation");
        assert_eq!(explained["home"], answers[0]["home"], "{explained}");
        assert_eq!(explained["path"][0]["node"], "b", "{explained}");
        assert_eq!(explained["presence"]["devices"], answers[0]["devices"], "{explained}");
        wait_for("the load of both is known", || {
            let online = ask(gateway, "/v1/online", "Online");
            (online["connections"] == 2 && online["users"] == 2).then_some(())
        });
        let preview = gateway.post_json("/v1/ring/preview", &json!({"add": [{"name": "c"}], "remove": ["a"]}));
        assert_eq!(preview.status, 200, "{}", preview.body);
        assert_is(gateway, "Preview", &preview.json());
        assert_eq!(gateway.post_json("/v1/ring/preview", &json!({"remove": ["c"]})).status, 409);
        assert_eq!(gateway.get("/v1/users/0").status, 400);
        assert_eq!(gateway.get("/v1/explain/1?from=nobody").status, 404);
    }

    // One device, at the node that does not have it; then whatever is left.
    assert_eq!(gateways[1].post("/v1/users/11/kick?device=phone").json(), json!({"kicked": 1}));
    phone.expect_bye(code::KICKED);
    desk.ping();
    wait_for("the phone is offline everywhere", || {
        let user = ask(&gateways[1], "/v1/users/11", "User");
        (user["devices"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(gateways[0].post("/v1/users/11/kick?device=phone").status, 404);
    assert_eq!(gateways[0].post("/v1/users/11/kick").json(), json!({"kicked": 1}));
    desk.expect_bye(code::KICKED);

    // Without Redis the nodes are known on, and nobody says where a user is.
    cluster.stop_all();
    for gateway in &gateways {
        wait_for("it is degraded", || (ask(gateway, "/v1/nodes", "Nodes")["degraded"] == true).then_some(()));
        let unknown = gateway.get("/v1/users/11");
        assert_eq!(unknown.status, 503, "{}", unknown.body);
        assert!(unknown.body.contains("Redis"), "{}", unknown.body);
        let explained = ask(gateway, "/v1/explain/11", "Explanation");
        assert_eq!((&explained["presence"], &explained["degraded"]), (&Value::Null, &json!(true)), "{explained}");
        assert!(explained["home"].is_string(), "{explained}");
    }
}
