//! The metrics of real nodes, alone and in a cluster, as Prometheus's own tool judges them.

use crate::cluster_support::Fleet;
use crate::push_http::WITH_PUSHES;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::generated::{assert_documented, metrics_table};
use crate::support::scratch::ScratchFolder;
use crate::support::tls::Identity;
use crate::support::wait_for;
use crate::support::wire::flag;
use std::io::Write;
use std::process::{Command, Stdio};

/// `promtool check metrics` has nothing to say.
fn lint(gateway: &Gateway) -> String {
    let body = gateway.get("/metrics").body;
    let mut tool = Command::new("promtool");
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tool.spawn().expect("promtool has to be installed: scripts/setup.sh does it");
    child.stdin.take().expect("it is piped").write_all(body.as_bytes()).expect("write to promtool");
    let output = child.wait_with_output().expect("wait for promtool");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.is_empty(), "{said}");
    body
}

fn value(body: &str, series: &str) -> f64 {
    let line = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in {body}"))
}

#[test]
fn the_metrics_of_a_node_alone_are_clean_and_whole() {
    with_gateway(2, &[], |gateway| {
        let mut clients = [1, 2].map(|user| Client::login(gateway, user));
        for round in 0..200_u32 {
            let [first, second] = &mut clients;
            first.exchange(second, 2, &round.to_be_bytes());
        }
        let body = lint(gateway);
        assert_eq!(value(&body, "trunkline_login_duration_seconds_count"), 2.0);
        assert!(value(&body, "trunkline_turn_duration_seconds_count") >= 1.0);
        assert!(value(&body, "trunkline_turn_duration_seconds_sum") > 0.0);
        for (series, least) in [
            ("process_open_fds", 3.0),
            ("process_max_fds", 64.0),
            ("process_start_time_seconds", 1e9),
            ("process_cpu_seconds_total", 0.0),
            ("process_resident_memory_bytes", 1e6),
        ] {
            assert!(value(&body, series) >= least, "{series}");
        }
        assert!(body.contains("trunkline_build_info{version=\""), "{body}");
        assert_eq!(value(&body, "trunkline_limit_seconds{limit=\"login_timeout\"}"), 10.0);
        assert_eq!(value(&body, "trunkline_limit_bytes{limit=\"frame_bytes\"}"), 65_536.0);
        for name in ["microsecond", "millisecond"] {
            let named = body.lines().find(|line| !line.starts_with('#') && line.contains(name));
            assert_eq!(named, None);
        }
    });
}

#[test]
fn the_metrics_are_clean_and_whole_with_a_store() {
    let folder = ScratchFolder::new("store");
    with_gateway(1, &["--data-dir", folder.path()], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let id = sender.send(2, flag::ACK, b"kept");
        wait_for("it is stored", || {
            let frame = sender.recv();
            (frame.id == id).then_some(())
        });
        let body = lint(gateway);
        assert_eq!(value(&body, "trunkline_store_available"), 1.0);
        assert_eq!(value(&body, "trunkline_store_appends_total"), 1.0);
        assert!(value(&body, "trunkline_store_commit_duration_seconds_count") >= 1.0);
        let of_store = |line: &&str| {
            line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with("trunkline_store_")
        };
        let lines: Vec<&str> = body.lines().filter(of_store).collect();
        assert_documented("metrics.md", "store", &metrics_table(&lines.join("\n")));
    });
}

#[test]
fn the_metrics_are_clean_and_whole_with_pushes_by_http() {
    with_gateway(1, &WITH_PUSHES, |gateway| {
        let body = lint(gateway);
        assert_eq!(value(&body, "trunkline_limit{limit=\"pushes_open\"}"), 65_536.0);
        let of_services = |line: &&str| {
            line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with("trunkline_services_http_")
        };
        let lines: Vec<&str> = body.lines().filter(of_services).collect();
        assert_documented("metrics.md", "services http", &metrics_table(&lines.join("\n")));
    });
}

#[test]
fn the_metrics_of_nodes_in_a_cluster_are_clean_and_whole() {
    let identity = Identity::new();
    let fleet = Fleet::start(&["a", "b"], &identity.flags());
    let mut clients: Vec<Client> = (1..=20).map(|user| Client::login(fleet.node(user as usize % 2), user)).collect();
    for at in 0..20_u64 {
        let to = (at + 1) % 20 + 1;
        clients[at as usize].send(to, flag::ACK, b"over there");
    }
    for node in [0, 1] {
        let body = wait_for("links have been measured", || {
            let body = lint(fleet.node(node));
            (value(&body, "trunkline_mesh_delivery_duration_seconds_count") >= 1.0).then_some(body)
        });
        assert!(value(&body, "trunkline_redis_commands_total") > 0.0);
        assert!(!body.contains("trunkline_cluster_redis_commands"), "one name for one number");
        assert!(value(&body, "trunkline_presence_audit_age_seconds") >= 0.0);
    }
    assert_documented("metrics.md", "gateway", &metrics_table(&lint(fleet.node(0))));
    let logins: f64 = (0..2)
        .map(|node| value(&fleet.node(node).get("/metrics").body, "trunkline_login_duration_seconds_count"))
        .sum();
    assert_eq!(logins, 20.0);
    drop(clients);
    fleet.finish();
}
