//! Connecting to what is no Redis Cluster, or not one that works: each time an error that says what to do, in time.

use crate::support::redis_cluster::{RedisAlone, free_ports};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use trunkline_router::redis::{Plane, PlaneError, RedisConfig};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

fn refusal(url: &str) -> PlaneError {
    let mut config = RedisConfig::parse(url).unwrap();
    config.connect_timeout = CONNECT_TIMEOUT;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    let error = runtime.block_on(Plane::connect(&config)).expect_err("a connection");
    assert!(began.elapsed() < CONNECT_TIMEOUT + Duration::from_millis(500), "{:?}", began.elapsed());
    error
}

#[test]
fn nobody_listens() {
    let ports = free_ports(2);
    let error = refusal(&format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]));
    assert!(matches!(error, PlaneError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn a_listener_that_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = refusal(&format!("redis-cluster://{}", listener.local_addr().unwrap()));
    assert!(matches!(error, PlaneError::TimedOut { .. }), "{error:?}");
}

#[test]
fn a_name_that_does_not_resolve() {
    let error = refusal("redis-cluster://no-such-host.invalid:7000");
    assert!(matches!(error, PlaneError::Unreachable { .. } | PlaneError::TimedOut { .. }), "{error:?}");
}

#[test]
fn a_redis_that_is_not_a_cluster() {
    let redis = RedisAlone::start(false, &[]);
    let error = refusal(&format!("redis-cluster://127.0.0.1:{}", redis.port()));
    assert!(
        matches!(&error, PlaneError::NotACluster { host } if host.ends_with(&redis.port().to_string())),
        "{error:?}"
    );
    assert!(error.to_string().contains("--cluster-enabled yes"), "{error}");
    assert!(error.to_string().contains("--cluster create"), "{error}");
}

#[test]
fn a_cluster_with_slots_that_nobody_serves() {
    let redis = RedisAlone::start(true, &[]);
    let error = refusal(&format!("redis-cluster://127.0.0.1:{}", redis.port()));
    assert!(matches!(error, PlaneError::ClusterDown { .. }), "{error:?}");
    assert!(error.to_string().contains("--cluster fix"), "{error}");
}

#[test]
fn a_password_that_is_missing_or_wrong() {
    let redis = RedisAlone::start(true, &["--requirepass", "right"]);
    for login in ["", ":wrong@", "nobody:right@"] {
        let error = refusal(&format!("redis-cluster://{login}127.0.0.1:{}", redis.port()));
        assert!(matches!(error, PlaneError::AuthRefused { .. }), "{login}: {error:?}");
    }
    let error = refusal(&format!("redis-cluster://:right@127.0.0.1:{}", redis.port()));
    assert!(matches!(error, PlaneError::ClusterDown { .. }), "the password is right: {error:?}");
}

#[test]
fn a_paused_redis() {
    let redis = RedisAlone::start(true, &[]);
    redis.pause();
    let error = refusal(&format!("redis-cluster://127.0.0.1:{}", redis.port()));
    assert!(matches!(error, PlaneError::TimedOut { .. }), "{error:?}");
    redis.resume();
}
