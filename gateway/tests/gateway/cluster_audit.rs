//! Presence that Redis has lost is found and written again, and what has ended stays away.

use crate::cluster_support::redis_cluster::{RedisCluster, SERVERS};
use crate::cluster_support::{Member, live, redis, stored, user_key, wait_live};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::wait_for;
use crate::support::wire::Login;

/// Sessions are compared once they are half a minute old.
const YOUNG_SECS: u64 = 30;

fn logins(gateway: &Gateway, users: std::ops::Range<u64>) -> Vec<(u64, Client, u64)> {
    let login = |user| {
        let (client, login_ok) = Client::login_with(gateway, &Login::of(user).heartbeat_secs(600));
        (user, client, login_ok.session)
    };
    users.map(login).collect()
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    gateway.metrics().sum(name, &[])
}

#[test]
fn entries_that_redis_lost_are_mended_and_ended_sessions_stay_away() {
    let cluster = RedisCluster::start();
    let gateway = Member::new(&cluster, "audit").start(&cluster, &["--presence-audit-secs", "5"]);
    let mut clients = logins(&gateway, 1..101);
    for (user, _, session) in &clients {
        wait_live(&cluster, *user, &[("default", *session)]);
    }
    let begun = std::time::Instant::now();
    // Nothing is lost, so nothing is mended, however often it is compared.
    crate::support::wait_for_within("all are compared", std::time::Duration::from_secs(YOUNG_SECS + 60), || {
        (metric(&gateway, "trunkline_presence_compared_total") >= 200).then_some(())
    });
    assert!(begun.elapsed().as_secs() >= YOUNG_SECS - 2, "too young to be compared");
    assert_eq!(metric(&gateway, "trunkline_presence_mended_total"), 0);
    let resyncs = metric(&gateway, "trunkline_presence_resyncs_total");

    // A part is deleted as by eviction; one is replaced by what does not count; one session ends right behind it.
    let lost: Vec<u64> = (1..=13).collect();
    for user in &lost {
        assert_eq!(redis(&cluster, &["DEL", &user_key(*user)]), "1");
    }
    let garbage = user_key(20);
    redis(&cluster, &["HSET", &garbage, "default", "what is this"]);
    let ended = clients.remove(0);
    assert_eq!(ended.0, 1);
    drop(ended.1);
    for (user, _, session) in clients.iter().filter(|(user, ..)| lost.contains(user) || *user == 20) {
        wait_live(&cluster, *user, &[("default", *session)]);
    }
    wait_for("it is counted", || (metric(&gateway, "trunkline_presence_mended_total") >= 13).then_some(()));
    assert_eq!(
        metric(&gateway, "trunkline_presence_resyncs_total"),
        resyncs,
        "it did not take a new incarnation for that"
    );
    // It has ended and stays away, also after the next round.
    let compared = metric(&gateway, "trunkline_presence_compared_total");
    wait_for("another round", || {
        (metric(&gateway, "trunkline_presence_compared_total") >= compared + 200).then_some(())
    });
    assert_eq!(stored(&cluster, 1), []);
    // Nothing more is mended than was lost.
    assert!(metric(&gateway, "trunkline_presence_mended_total") <= 14);
    let body = gateway.get("/metrics").body;
    let age = body.lines().find_map(|line| line.strip_prefix("trunkline_presence_audit_age_seconds "));
    let age: f64 = age.and_then(|age| age.parse().ok()).expect("the age of the last round");
    assert!(age >= 0.0, "{age}");
    assert_eq!(live(&cluster, 50).len(), 1);
    drop(clients);
    gateway.finish();
}

#[test]
fn eviction_and_missing_replicas_are_named_at_start_and_by_the_doctor() {
    let mut cluster = RedisCluster::start();
    let member = Member::new(&cluster, "risks");
    let doctor = |member: &Member| {
        let mut command = gateway_command();
        command.args(["doctor", "--redis", &member.url, "--cluster-secret-file", member.secret_file()]);
        command.args(["--advertise", "gate.example.org:7700"]);
        let output = command.output().expect("run the doctor");
        String::from_utf8(output.stdout).expect("it speaks UTF-8")
    };
    let said = doctor(&member);
    assert!(said.contains("3 masters answer") && !said.contains("maxmemory-policy"), "{said}");
    redis(&cluster, &["GET", "any"]);
    for server in 0..SERVERS {
        cluster.ask(server, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).expect("a server takes it");
    }
    // The replica of the first master.
    cluster.kill(3);
    wait_for("the replica is missed", || {
        let info = cluster.ask(0, &["INFO", "replication"]).ok()?;
        info.contains("connected_slaves:0").then_some(())
    });
    let said = doctor(&member);
    assert!(said.contains("maxmemory-policy allkeys-lru") && said.contains("has no replica"), "{said}");
    assert!(said.contains("CONFIG SET maxmemory-policy noeviction"), "{said}");
    let gateway = member.start(&cluster, &[]);
    wait_for("the log names both", || {
        let said = gateway.stderr();
        let warned = |part: &str| said.lines().any(|line| line.contains("WARN") && line.contains(part));
        (warned("maxmemory-policy allkeys-lru") && warned("has no replica")).then_some(())
    });
    gateway.finish();
    let nowhere = Member::with_url("redis-cluster://127.0.0.1:1", "nowhere");
    let said = doctor(&nowhere);
    assert!(said.contains("cannot be reached"), "{said}");
}
