//! Nodes that join a cluster through a real Redis Cluster, leave it, die and are paused.
//!
//! The tests take turns on one Redis Cluster: nodes of two tests at the same time would be one cluster, and users of
//! one test at home on a node that the other kills.

use crate::cluster_support::redis_cluster::{RedisAlone, RedisCluster};
use crate::cluster_support::{LEASE_SECS, Member, lease, live, redis, stored, user_key, wait_live};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::scratch::ScratchFile;
use crate::support::wait_for;
use crate::support::wire::{self, Login, code, kind};
use rustix::process::Signal;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn cluster() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(RedisCluster::start)
}

/// Waits until no other test's nodes are left.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    wait_for("no node is left", || redis(cluster(), &["ZRANGE", "tl:nodes", "0", "-1"]).is_empty().then_some(()));
    turn
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// Runs a gateway that must refuse to start; returns what it says.
fn refused(mut command: Command, status: i32) -> String {
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    // A gateway that starts although it should not would run for ever: `timeout` ends it, with status 124.
    let mut bounded = Command::new("timeout");
    bounded.arg("20").arg(command.get_program()).args(command.get_args());
    let output = bounded.output().expect("run the gateway");
    let stderr = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(!stderr.contains("panicked at"), "{stderr}");
    stderr
}

#[test]
fn a_node_joins_is_shown_and_leaves() {
    let _turn = turn();
    let member = Member::new(cluster(), "joins");
    let before_ms = wall_ms();
    let mut gateway = member.start(cluster(), &["--weight", "3", "--drain-secs", "1"]);
    let mut client = Client::login(&gateway, 1_001);
    wait_for("the record shows the load", || {
        let record = lease(cluster(), "joins")?.record;
        (record["connections"] == 1 && record["users"] == 1).then_some(())
    });
    let held = lease(cluster(), "joins").expect("a lease");
    for (field, value) in [
        ("name", serde_json::Value::from("joins")),
        ("state", "active".into()),
        ("weight", 3.into()),
        ("shards", 2.into()),
        ("mesh", member.mesh.as_str().into()),
        ("advertise", "gate.example.org:7700".into()),
    ] {
        assert_eq!(held.record[field], value, "{field} in {}", held.record);
    }
    let protocols = ["protocol_oldest", "protocol"].map(|field| held.record[field].as_u64().unwrap_or_default());
    assert!(1 <= protocols[0] && protocols[0] <= protocols[1], "{}", held.record);
    assert!(held.record["started_ms"].as_u64().is_some_and(|at| (before_ms..=wall_ms()).contains(&at)));
    assert!(!redis(cluster(), &["ZSCORE", "tl:nodes", "joins"]).is_empty());
    assert_ne!(redis(cluster(), &["PTTL", "tl:node:{joins}"]), "-1", "a lease runs out");

    wait_for("the view has reached every shard", || {
        let metrics = gateway.metrics();
        let epoch = metrics.sum("trunkline_cluster_view_epoch", &[]);
        ["0", "1"]
            .iter()
            .all(|shard| epoch > 0 && metrics.sum("trunkline_view_epoch", &[("shard", shard)]) == epoch)
            .then_some(())
    });
    let metrics = gateway.metrics();
    assert!(metrics.sum("trunkline_cluster_members", &[("state", "active")]) >= 1);
    assert_eq!(metrics.sum("trunkline_cluster_fenced", &[]), 0);
    assert_eq!(metrics.sum("trunkline_cluster_redis_up", &[]), 1);
    assert_eq!(metrics.sum("trunkline_cluster_incarnation", &[]), held.incarnation);
    let shown = gateway.get("/v1/node").json();
    let shown = &shown["cluster"];
    assert_eq!((&shown["name"], &shown["state"]), (&"joins".into(), &"active".into()), "{shown}");
    assert_eq!(
        (&shown["incarnation"], &shown["lease"]["valid"]),
        (&held.incarnation.to_string().into(), &true.into()),
        "{shown}"
    );
    assert_eq!((&shown["redis"]["ok"], shown["digest"].as_str().map(str::len)), (&true.into(), Some(16)), "{shown}");
    let ready = gateway.get("/readyz");
    assert_eq!((ready.status, ready.json()["degraded"].is_null()), (200, true), "{}", ready.body);

    gateway.signal(Signal::TERM);
    wait_for("it is out of the ring first", || {
        lease(cluster(), "joins").filter(|lease| lease.record["state"] == "draining").map(drop)
    });
    client.expect_bye(code::DRAINING);
    drop(client);
    assert!(gateway.wait_for_exit().success());
    assert!(lease(cluster(), "joins").is_none(), "the lease was given up");
    assert_eq!(redis(cluster(), &["ZSCORE", "tl:nodes", "joins"]), "");
    assert_eq!(stored(cluster(), 1_001), [], "the logout was written");

    let again = member.start(cluster(), &[]);
    assert!(lease(cluster(), "joins").expect("a lease").incarnation > held.incarnation);
    again.finish();
}

#[test]
fn a_node_that_cannot_speak_with_the_others_refuses_to_join() {
    let _turn = turn();
    let record = serde_json::json!({
        "name": "future", "incarnation": 7, "state": "active", "weight": 1, "shards": 1, "mesh": "127.0.0.1:1",
        "advertise": "127.0.0.1:2", "protocol": 9_000, "protocol_oldest": 8_000,
        "connections": 0, "users": 0, "started_ms": 1, "reach": [],
    });
    redis(cluster(), &["SET", "tl:node:{future}", &format!("7\n00\n{record}"), "PX", "60000"]);
    redis(cluster(), &["ZADD", "tl:nodes", &(wall_ms() + 60_000).to_string(), "future"]);
    let member = Member::new(cluster(), "present");
    let message = refused(member.command(&[]), 1);
    assert!(
        message.contains("node future speaks versions 8000 to 9000") && message.contains("one release"),
        "{message}"
    );
    assert!(lease(cluster(), "present").is_none(), "it took no place in the ring");
    redis(cluster(), &["DEL", "tl:node:{future}"]);
    redis(cluster(), &["ZREM", "tl:nodes", "future"]);
}

#[test]
fn a_weight_is_changed_by_the_api_and_by_a_reload_without_a_restart() {
    let _turn = turn();
    let member = Member::new(cluster(), "weighed");
    let file = ScratchFile::new("weighed.toml", "weight = 10\n");
    let gateway = member.start(cluster(), &["--config", file.path(), "--drain-secs", "0"]);
    let wait_weight = |weight: u64| {
        wait_for(&format!("the others are told {weight}"), || {
            (lease(cluster(), "weighed")?.record["weight"] == weight).then_some(())
        });
        // 160 points for each unit.
        wait_for("its own ring has it", || (gateway.get("/v1/nodes").json()["points"] == 160 * weight).then_some(()));
    };
    wait_weight(10);
    let answer = gateway.post_json("/v1/node/weight", &serde_json::json!({"weight": 25}));
    assert_eq!((answer.status, answer.json()["weight"].as_u64()), (200, Some(25)), "{}", answer.body);
    wait_weight(25);
    let audited = |line: &str| line.contains("audit") && line.contains("/v1/node/weight") && line.contains("weight 25");
    wait_for("the audit log has it", || gateway.stderr().lines().any(audited).then_some(()));
    for weight in ["0", "65536", "-1", "\"x\""] {
        let body = serde_json::from_str(&format!("{{\"weight\":{weight}}}")).expect("JSON");
        assert_eq!(gateway.post_json("/v1/node/weight", &body).status, 400, "{weight}");
    }
    // A reload that changes something else leaves it alone.
    let reload = |text: &str, said: &str| {
        std::fs::write(file.path(), text).expect("write the configuration");
        gateway.signal(Signal::HUP);
        wait_for("the reload is done", || gateway.stderr().contains(said).then_some(()));
    };
    reload("weight = 10\nlogin_timeout_secs = 9\n", "reload: login_timeout_secs = 9");
    wait_weight(25);
    reload("weight = 4\nlogin_timeout_secs = 9\n", "reload: weight = 4");
    wait_weight(4);
    gateway.finish();
}

#[test]
fn presence_follows_logins_and_logouts() {
    let _turn = turn();
    let member = Member::new(cluster(), "presence");
    let gateway = member.start(cluster(), &[]);
    let before_ms = wall_ms();
    for user in 2_001..2_009 {
        let (client, login_ok) = Client::login_with(&gateway, &Login::of(user));
        wait_live(cluster(), user, &[("default", login_ok.session)]);
        let entry = &live(cluster(), user)[0];
        assert_eq!((entry.node.as_str(), u64::from(entry.shard)), ("presence", login_ok.shard));
        assert_eq!(Some(entry.incarnation), lease(cluster(), "presence").map(|lease| lease.incarnation));
        assert!((before_ms / 1_000 * 1_000..=wall_ms()).contains(&entry.since_ms), "{entry:?}");
        assert!((before_ms..=wall_ms()).contains(&(entry.version >> 20)), "{entry:?}");
        drop(client);
        wait_live(cluster(), user, &[]);
        assert_eq!(stored(cluster(), user), [], "nothing is left behind");
    }
    gateway.finish();
}

#[test]
fn each_device_has_a_session_and_a_new_login_replaces_the_old_one() {
    let _turn = turn();
    let member = Member::new(cluster(), "devices");
    let gateway = member.start(cluster(), &[]);
    let user = 3_001;
    let (desk, desk_ok) = Client::login_with(&gateway, &Login::of(user).device("desk"));
    let (mut phone, phone_ok) = Client::login_with(&gateway, &Login::of(user).device("phone"));
    wait_live(cluster(), user, &[("desk", desk_ok.session), ("phone", phone_ok.session)]);
    let before = live(cluster(), user);

    let (_newer, newer_ok) = Client::login_with(&gateway, &Login::of(user).device("phone"));
    phone.expect_bye(code::REPLACED);
    wait_live(cluster(), user, &[("desk", desk_ok.session), ("phone", newer_ok.session)]);
    let after = live(cluster(), user);
    assert!(after[1].version > before[1].version);
    assert_eq!(after[0], before[0]);

    drop(desk);
    wait_live(cluster(), user, &[("phone", newer_ok.session)]);
    gateway.finish();
}

/// `None` when the node serves the user, or where it sends the client.
fn log_in_or_redirect(gateway: &Gateway, user: u64) -> Option<String> {
    let mut client = Client::connect(gateway);
    client.write(&Login::of(user).frame());
    let answer = client.recv();
    if answer.kind == kind::LOGIN_OK {
        return None;
    }
    assert_eq!((answer.kind, answer.aux), (kind::BYE, code::MOVED));
    client.expect_closed();
    Some(wire::bye_redirect(&answer))
}

#[test]
fn a_node_that_takes_no_guests_sends_each_user_home() {
    let _turn = turn();
    let names = ["east", "west"];
    let addresses = names.map(|name| format!("{name}.example.org:7700"));
    let members = names.map(|name| Member::new(cluster(), name));
    let gateways: [_; 2] = std::array::from_fn(|at| {
        members[at].start(cluster(), &["--placement", "redirect", "--advertise", &addresses[at]])
    });
    // The two may be of different views for a moment.
    let mut homes = [0; 2];
    for user in 7_001..7_101 {
        let home = wait_for("one node serves the user and the other names it", || {
            match [0, 1].map(|at| log_in_or_redirect(&gateways[at], user)) {
                [None, Some(elsewhere)] => (elsewhere == addresses[0]).then_some(Some(0)),
                [Some(elsewhere), None] => (elsewhere == addresses[1]).then_some(Some(1)),
                [Some(one), Some(other)] => (one == other && !addresses.contains(&one)).then_some(None),
                [None, None] => None,
            }
        });
        if let Some(at) = home {
            homes[at] += 1;
        }
    }
    assert!(homes.iter().all(|users| *users > 0), "{homes:?}");
    let moved: u64 = gateways.iter().map(|gateway| gateway.metrics().closed("moved")).sum();
    assert!(moved >= 100, "{moved} connections were sent elsewhere");
    for gateway in gateways {
        gateway.finish();
    }
}

#[test]
fn a_name_that_is_in_use_is_refused() {
    let _turn = turn();
    let member = Member::new(cluster(), "twice");
    let gateway = member.start(cluster(), &[]);
    let held = lease(cluster(), "twice").expect("a lease").incarnation;
    let other = Member::new(cluster(), "twice");
    let message = refused(other.command(&[]), 1);
    assert!(message.contains("name is in use") && message.contains("--node"), "{message}");
    assert!(message.contains(&member.mesh), "{message}");
    assert_eq!(lease(cluster(), "twice").map(|lease| lease.incarnation), Some(held), "the first is unharmed");
    gateway.finish();
}

#[test]
fn a_redis_that_is_no_cluster_is_refused_with_the_fix() {
    let _turn = turn();
    let server = RedisAlone::start(false, &[]);
    let member = Member::with_url(&format!("redis-cluster://127.0.0.1:{}", server.port()), "alone");
    let message = refused(member.command(&[]), 1);
    assert!(message.contains("not part of a cluster") && message.contains("--cluster-enabled yes"), "{message}");
}

#[test]
fn a_secret_that_is_too_short_is_a_fault_of_the_configuration() {
    let _turn = turn();
    let secret = crate::support::scratch::ScratchFile::new("short-secret", "short\n");
    let member = Member::new(cluster(), "secret");
    let message = refused(member.command(&["--cluster-secret-file", secret.path()]), 2);
    assert!(message.contains(secret.path()) && message.contains("16 to 1024"), "{message}");
}

#[test]
fn the_users_of_a_node_that_is_killed_are_offline_with_its_lease() {
    let _turn = turn();
    let member = Member::new(cluster(), "killed");
    let mut gateway = member.start(cluster(), &[]);
    let _clients: Vec<Client> = (4_001..4_011).map(|user| Client::login(&gateway, user)).collect();
    for user in 4_001..4_011 {
        wait_for("the user is online", || (live(cluster(), user).len() == 1).then_some(()));
    }
    let before = lease(cluster(), "killed").expect("a lease").incarnation;
    gateway.signal(Signal::KILL);
    let killed = Instant::now();
    gateway.wait_for_exit();
    wait_for("all are offline", || (4_001..4_011).all(|user| live(cluster(), user).is_empty()).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(LEASE_SECS + 2), "{:?}", killed.elapsed());
    assert_eq!(stored(cluster(), 4_001).len(), 1, "its entries are there and do not count");

    let gateway = member.start(cluster(), &[]);
    let after = lease(cluster(), "killed").expect("a lease").incarnation;
    assert!(after > before);
    assert_eq!(live(cluster(), 4_001), [], "old entries stay dead");
    let (_client, login_ok) = Client::login_with(&gateway, &Login::of(4_001));
    wait_live(cluster(), 4_001, &[("default", login_ok.session)]);
    gateway.finish();
}

#[test]
fn a_node_that_was_paused_writes_its_sessions_again_under_a_new_incarnation() {
    let _turn = turn();
    let member = Member::new(cluster(), "paused");
    let gateway = member.start(cluster(), &[]);
    let mut clients: Vec<(u64, Client, u64)> = (5_001..5_031)
        .map(|user| {
            let (client, login_ok) = Client::login_with(&gateway, &Login::of(user));
            (user, client, login_ok.session)
        })
        .collect();
    for (user, _, session) in &clients {
        wait_live(cluster(), *user, &[("default", *session)]);
    }
    let before = lease(cluster(), "paused").expect("a lease").incarnation;
    let stopped = Instant::now();
    gateway.signal(Signal::STOP);
    wait_for("the lease has run out and 8 s have passed", || {
        let gone = lease(cluster(), "paused").is_none();
        (gone && stopped.elapsed() >= Duration::from_secs(8)).then_some(())
    });
    assert_eq!(live(cluster(), 5_001), []);
    gateway.signal(Signal::CONT);
    let held = wait_for("it has a lease again", || lease(cluster(), "paused"));
    assert!(held.incarnation > before);
    for (user, _, session) in &clients {
        wait_live(cluster(), *user, &[("default", *session)]);
        assert_eq!(stored(cluster(), *user)[0].incarnation, held.incarnation);
    }
    wait_for("it is ready", || (gateway.get("/readyz").status == 200).then_some(()));
    assert!(gateway.metrics().sum("trunkline_presence_resyncs_total", &[]) >= 1);
    let (_, mut client, _) = clients.pop().expect("thirty clients");
    client.ping();
    drop((client, clients));
    wait_live(cluster(), 5_001, &[]);
    gateway.finish();
}

#[test]
fn a_node_whose_name_was_taken_meanwhile_is_fenced_until_it_is_free() {
    let _turn = turn();
    let member = Member::new(cluster(), "stolen");
    let gateway = member.start(cluster(), &[]);
    let (_client, login_ok) = Client::login_with(&gateway, &Login::of(6_001));
    wait_live(cluster(), 6_001, &[("default", login_ok.session)]);
    gateway.signal(Signal::STOP);
    wait_for("the lease has run out", || lease(cluster(), "stolen").is_none().then_some(()));
    let thief = Member::new(cluster(), "stolen");
    let other = thief.start(cluster(), &[]);
    gateway.signal(Signal::CONT);
    let unready = wait_for("it is fenced and says by whom", || {
        let response = gateway.get("/readyz");
        (response.status == 503 && response.body.contains(&thief.mesh)).then_some(response)
    });
    assert!(unready.json()["reason"].as_str().is_some_and(|reason| reason.contains("fenced")), "{}", unready.body);
    let shown = gateway.get("/v1/node").json();
    assert_eq!(shown["cluster"]["lease"]["valid"], false, "{shown}");
    assert!(shown["cluster"]["lease"]["fenced"].is_string(), "{shown}");
    assert_eq!(gateway.metrics().sum("trunkline_cluster_fenced", &[]), 1);
    assert_eq!(live(cluster(), 6_001), [], "its sessions do not count");
    other.finish();
    wait_for("it is ready again", || (gateway.get("/readyz").status == 200).then_some(()));
    wait_live(cluster(), 6_001, &[("default", login_ok.session)]);
    gateway.finish();
}

#[test]
fn of_two_logins_of_a_device_that_no_home_shard_has_seen_the_one_that_counts_stays() {
    let _turn = turn();
    let (first, second) = (Member::new(cluster(), "rival-a"), Member::new(cluster(), "rival-b"));
    let (gateway, other) = (first.start(cluster(), &[]), second.start(cluster(), &[]));
    wait_for("they see the same nodes", || {
        let digest = |gateway: &Gateway| gateway.get("/v1/node").json()["cluster"]["digest"].clone();
        (digest(&gateway) == digest(&other)).then_some(())
    });
    let ahead = (wall_ms() + 3_600_000) << 20;
    let forge = |user: u64, incarnation: u64| {
        let value = format!("{ahead:020}\t{incarnation:020}\t77\trival-b\t0\t1\t");
        redis(cluster(), &["HSET", &user_key(user), "default", &value]);
    };
    // One that lives: the login here gives way.
    forge(7_001, lease(cluster(), "rival-b").expect("a lease").incarnation);
    let mut loser = Client::login(&gateway, 7_001);
    loser.expect_bye(code::REPLACED);
    wait_live(cluster(), 7_001, &[("default", 77)]);
    // One of an incarnation before: it does not count, whatever its version.
    forge(7_002, 1);
    let (mut winner, winner_ok) = Client::login_with(&gateway, &Login::of(7_002));
    wait_live(cluster(), 7_002, &[("default", winner_ok.session)]);
    assert!(stored(cluster(), 7_002)[0].version > ahead);
    winner.ping();
    assert_eq!(gateway.metrics().sum("trunkline_presence_rivals_total", &[]), 2);
    gateway.finish();
    other.finish();
}
