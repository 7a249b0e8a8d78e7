//! The HTTP API: health, metrics, the node, users, and kicking them.

use crate::support::bystanders::Bystanders;
use crate::support::client::Client;
use crate::support::gateway::{with_each_gateway, with_gateway};
use crate::support::names::{json, metric, outcome_label, reason_label};
use crate::support::scratch::ScratchFile;
use crate::support::wire::{Login, USER_MAX, code, flag, outcome};
use crate::support::{ONE_AND_MANY, SHARD_COUNTS, http, wait_for};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use trunkline_router::http::{NewKey, Scope};

#[test]
fn health_and_readiness_are_200_while_it_serves() {
    with_gateway(1, &[], |gateway| {
        assert_eq!(gateway.get("/healthz").status, 200);
        assert_eq!(gateway.get("/readyz").status, 200);
    });
}

#[test]
fn the_node_describes_itself() {
    with_each_gateway(SHARD_COUNTS, &["--node", "node-of-the-tests"], |gateway| {
        let (_client, login_ok) = Client::login_with(gateway, &Login::of(1));
        let response = gateway.get("/v1/node");
        assert_eq!(response.status, 200);
        let node = response.json();
        assert_eq!(node[json::NODE], "node-of-the-tests", "{node}");
        assert_eq!(login_ok.node, "node-of-the-tests");
        let shards = gateway.metrics().label_values(metric::ACCEPTED, "shard").len();
        assert_eq!(node[json::SHARDS], shards, "{node}");
        assert!(login_ok.shard < shards as u64);
    });
}

#[test]
fn a_user_is_shown_with_its_shard_and_devices() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        for user in [1, 2, 3, USER_MAX] {
            let path = format!("/v1/users/{user}");
            let login = Login {
                device_class: "mobile".to_owned(),
                agent: "tests".to_owned(),
                ..Login::of(user).device("phone \"1\"")
            };
            let (phone, phone_ok) = Client::login_with(gateway, &login);
            let (unnamed, unnamed_ok) = Client::login_with(gateway, &Login::of(user));
            let response = gateway.get(&path);
            assert_eq!(response.status, 200);
            let shown = response.json();
            assert_eq!(shown[json::ONLINE], true, "{shown}");
            assert_eq!(shown[json::SHARD], phone_ok.shard, "{shown}");
            let devices = shown[json::DEVICES].as_array().expect("a list of devices");
            assert_eq!(devices.len(), 2, "{shown}");
            let named = |name: &str| {
                let mut found = devices.iter().filter(|device| device[json::DEVICE] == name);
                found.next().unwrap_or_else(|| panic!("no device {name:?}: {shown}"))
            };
            assert_eq!(named("phone \"1\"")[json::CLASS], "mobile");
            assert_eq!(named("phone \"1\"")[json::SESSION], phone_ok.session.to_string());
            assert_eq!(named("default")[json::SESSION], unnamed_ok.session.to_string());
            drop((phone, unnamed));
            gateway.wait_for_presence(user, false);
        }
    });
}

#[test]
fn a_user_who_was_never_there_is_offline() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let response = gateway.get("/v1/users/12345");
        assert_eq!(response.status, 200);
        let shown = response.json();
        assert_eq!(shown[json::ONLINE], false, "{shown}");
        assert_eq!(shown[json::DEVICES].as_array().map(Vec::len), Some(0), "{shown}");
    });
}

#[test]
fn a_kick_ends_every_session_of_the_user() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut sender = Client::login(gateway, 1);
        for user in 11..=14 {
            let mut devices =
                ["phone", "desk"].map(|name| Client::login_with(gateway, &Login::of(user).device(name)).0);
            let id = sender.send(user, flag::ACK, b"unacknowledged");
            for device in &mut devices {
                device.recv_deliver();
            }
            let response = gateway.post(&format!("/v1/users/{user}/kick"));
            assert_eq!(response.status, 200, "{}", response.body);
            assert_eq!(response.json()[json::KICKED], 2, "{}", response.body);
            for device in &mut devices {
                device.expect_bye(code::KICKED);
            }
            sender.expect_sent(id, user, outcome::OFFLINE_NOT_STORED);
            gateway.wait_for_presence(user, false);
            // Kicked is not banned.
            Client::login(gateway, user).ping();
        }
        sender.ping();
        gateway.wait_for_metrics("eight kicked sessions", |metrics| metrics.closed(reason_label::KICKED) == 8);
        bystanders.talk();
    });
}

#[test]
fn a_kick_of_nobody_ends_nothing() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let response = gateway.post("/v1/users/5/kick");
        assert_eq!(response.status, 404, "{}", response.body);
        bystanders.talk();
    });
}

#[test]
fn wrong_requests_are_the_callers_fault() {
    with_gateway(2, &[], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        for user in ["abc", "-1", "18446744073709551616", "1.5", "%00", "0"] {
            for (method, path) in [("GET", format!("/v1/users/{user}")), ("POST", format!("/v1/users/{user}/kick"))] {
                let status = gateway.request(method, &path).status;
                assert!((400..500).contains(&status), "{method} {path}: {status}");
            }
        }
        assert_eq!(gateway.get("/v1/nothing").status, 404);
        assert_eq!(gateway.get("/").status, 404);
        assert_eq!(gateway.get("/v1/users/5/kick").status, 405, "a kick is no question");
        assert_eq!(gateway.post("/metrics").status, 405);
        bystanders.talk();
    });
}

#[test]
fn metrics_count_what_happened() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let response = gateway.get("/metrics");
        let content_type = response.header("content-type").expect("a content type");
        assert!(content_type.starts_with("text/plain"), "{content_type}");

        let mut sender = Client::login(gateway, 1);
        let mut recipient = Client::login(gateway, 2);
        for _ in 0..10 {
            sender.send_barrier(&mut recipient, 2);
        }
        for _ in 0..5 {
            sender.exchange(&mut recipient, 2, b"with ACK");
        }
        let id = sender.send(2, flag::ACK, b"open");
        let deliver = recipient.recv_deliver();
        gateway.wait_for_metrics("one message unacknowledged", |metrics| metrics.sum(metric::UNACKED, &[]) == 1);
        recipient.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        gateway.wait_for_metrics("the messages by outcome", |metrics| {
            metrics.sum(metric::MESSAGES_RECEIVED, &[]) == 16
                && metrics.outcome(outcome_label::DELIVERED) == 10
                && metrics.outcome(outcome_label::ACKNOWLEDGED) == 6
                && metrics.sum(metric::UNACKED, &[]) == 0
        });
        gateway.wait_for_metrics("two connections", |metrics| {
            metrics.sum(metric::LOGINS, &[]) == 2
                && metrics.sum(metric::OPEN, &[]) == 2
                && metrics.sum(metric::ACCEPTED, &[]) == 2
                && metrics.sum(metric::CLOSED, &[]) == 0
        });
    });
}

#[test]
fn every_reason_and_every_shard_has_its_series_from_the_start() {
    with_gateway(4, &[], |gateway| {
        let metrics = gateway.metrics();
        let reasons = metrics.label_values(metric::CLOSED, "reason");
        for reason in [
            reason_label::LOGOUT,
            reason_label::LOGIN_TIMEOUT,
            reason_label::IDLE,
            reason_label::TOO_SLOW,
            reason_label::REPLACED,
            reason_label::OVERLOADED,
            reason_label::KICKED,
            reason_label::BAD_CREDENTIALS,
        ] {
            assert!(reasons.contains(reason), "{reason} is not among {reasons:?}");
        }
        let shards: Vec<String> = metrics.label_values(metric::CLOSED, "shard").into_iter().collect();
        assert_eq!(shards, ["0", "1", "2", "3"]);
        assert_eq!(metrics.sum(metric::CLOSED, &[]), 0);
    });
}

#[test]
fn no_page_gets_at_it_and_every_change_stands_in_the_audit_log() {
    let made = NewKey::make("ops", &[Scope::Kick]).expect("a key");
    let keys = ScratchFile::new("keys.toml", &made.line);
    let flags = ["--api-keys-file", keys.path(), "--log-format", "json"];
    with_gateway(2, &flags, |gateway| {
        let ask = |method: &str, path: &str, headers: &str| {
            http::request_with(gateway.http_address(), method, path, headers).expect("an answer").status
        };
        let key = format!("Authorization: Bearer {}\r\n", made.key);
        let mut client = Client::login(gateway, 5);
        assert_eq!(ask("POST", "/v1/users/5/kick", ""), 401);
        assert_eq!(ask("POST", "/v1/users/5/kick", &format!("{key}Origin: http://evil.example\r\n")), 403);
        assert_eq!(ask("POST", "/v1/node/drain", &key), 403, "another scope");
        client.ping();
        assert_eq!(ask("GET", "/v1/users/5", ""), 200);
        assert_eq!(ask("GET", "/v1/users/5", "Host: evil.example\r\n"), 403);
        assert_eq!(ask("POST", "/v1/users/5/kick?device=default", &key), 200);
        client.expect_bye(code::KICKED);
        assert_eq!(gateway.metrics().sum("trunkline_http_denied_total", &[("reason", "no_key")]), 1);
        let audit = wait_for("the change is in the log", || {
            gateway.stderr().lines().find(|line| line.contains("a change was asked for")).map(str::to_owned)
        });
        let audit: serde_json::Value = serde_json::from_str(&audit).expect("a line of JSON");
        assert_eq!(audit["target"], "audit", "{audit}");
        let fields = &audit["fields"];
        assert_eq!((&fields["key"], &fields["status"]), (&"ops".into(), &200.into()), "{audit}");
        assert_eq!(fields["what"], "POST /v1/users/5/kick?device=default", "{audit}");
        assert_eq!(fields["note"], "1 sessions ended", "{audit}");
        assert!(fields["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{audit}");
        assert!(!gateway.stderr().contains(&made.key), "keys are not logged");
        let refused = gateway.stderr().lines().filter(|line| line.contains("an HTTP request was refused")).count();
        assert!(refused >= 1, "{}", gateway.stderr());
    });
}

#[test]
fn health_is_served_while_strangers_hold_all_connections_and_a_quiet_node_stays_ready() {
    with_gateway(3, &[], |gateway| {
        let connect = || TcpStream::connect(gateway.http_address()).expect("a connection");
        let mut strangers: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
        // Longer than a shard may be without a turn, and nothing happens on any of them.
        let quiet = Instant::now() + Duration::from_secs(4);
        while Instant::now() < quiet {
            for path in ["/healthz", "/readyz"] {
                assert_eq!(gateway.get(path).status, 200);
            }
            strangers.push(connect());
            std::thread::sleep(Duration::from_millis(50));
        }
        let metrics = gateway.metrics();
        assert!(metrics.sum("trunkline_http_connections_evicted_total", &[]) > 0);
        assert_eq!(metrics.sum("trunkline_shards_stuck", &[]), 0);
    });
}
