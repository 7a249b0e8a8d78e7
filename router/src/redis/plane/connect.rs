//! Making the connection, with an error that fits when it cannot be made.

use super::super::config::RedisConfig;
use super::super::error::PlaneError;
use super::hosts_text;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, Server, ServerConfig,
    TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, ClusterHash, CustomCommand};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// The most commands that wait to be written to a socket: four pipelines of the write-behind and a poll of 2,048 nodes
/// fit twice. What comes on top fails at once instead of growing in memory while Redis is away.
const COMMANDS_WAITING_MAX: usize = 8_192;

/// How often one command is tried when its connection breaks, and how often it follows MOVED or ASK. Each redirection is an
/// attempt, so attempts are one more. During a failover or a resharding one or two are the rule; more is a cluster whose
/// nodes disagree, and then the caller's own retry with its back-off is better than a loop.
const REDIRECTIONS_MAX: u32 = 3;

/// The first and the longest pause before connecting again, and the random part of it, in milliseconds. The longest is a
/// fraction of a lease's renewal period, so a Redis that is back is soon noticed; the random part keeps all nodes of a cluster
/// from arriving together.
const RECONNECT_MIN_MS: u32 = 50;
const RECONNECT_MAX_MS: u32 = 250;
const RECONNECT_JITTER_MS: u32 = 50;

/// Slots of a Redis Cluster.
const SLOTS: &str = "16384";

pub(super) async fn connect(config: &RedisConfig) -> Result<Client, PlaneError> {
    let deadline = Instant::now() + config.connect_timeout;
    let late = |_| PlaneError::TimedOut { after: config.connect_timeout };
    timeout_at(deadline, probe_any(config)).await.map_err(late)??;
    let hosts = config.hosts.iter().map(|(host, port)| Server::new(host.as_str(), *port)).collect();
    // The hosts of the configuration may all have been replaced by the time of a reconnect.
    let server = ServerConfig::Clustered { hosts, policy: ClusterDiscoveryPolicy::UseCache };
    let client = client(config, server, Some(reconnect_policy()))?;
    match timeout_at(deadline, client.init()).await {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(error)) => Err(PlaneError::from_fred(&error, config.connect_timeout)),
        Err(elapsed) => {
            // It would go on trying in the background.
            drop(tokio::spawn(async move { client.quit().await }));
            Err(late(elapsed))
        }
    }
}

/// Asks all hosts at once for the state of the cluster. One that is well is enough; if there is none, the error is the one
/// that tells most.
async fn probe_any(config: &RedisConfig) -> Result<(), PlaneError> {
    let mut probes = JoinSet::new();
    for (host, port) in &config.hosts {
        let (config, host, port) = (config.clone(), host.clone(), *port);
        probes.spawn(async move { probe(&config, &host, port).await });
    }
    let mut worst: Option<PlaneError> = None;
    while let Some(result) = probes.join_next().await {
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(error) => PlaneError::Redis { detail: error.to_string() },
        };
        if worst.as_ref().is_none_or(|worst| telling(&error) > telling(worst)) {
            worst = Some(error);
        }
    }
    Err(worst.unwrap_or_else(|| PlaneError::Unreachable { detail: "no host was given".into() }))
}

/// How much an error tells about what is wrong: the further a probe came, the more.
fn telling(error: &PlaneError) -> u8 {
    match error {
        PlaneError::Unreachable { .. } | PlaneError::Busy => 0,
        PlaneError::TimedOut { .. } => 1,
        PlaneError::Redis { .. } | PlaneError::Invalid { .. } => 2,
        PlaneError::ClusterDown { .. } => 3,
        PlaneError::NotACluster { .. } => 4,
        PlaneError::AuthRefused { .. } => 5,
    }
}

async fn probe(config: &RedisConfig, host: &str, port: u16) -> Result<(), PlaneError> {
    let address = hosts_text(&[(host.to_owned(), port)]);
    let fail = |error: &fred::error::Error| match PlaneError::from_fred(error, config.connect_timeout) {
        PlaneError::NotACluster { .. } => PlaneError::NotACluster { host: address.clone() },
        PlaneError::Unreachable { detail } => PlaneError::Unreachable { detail: format!("{address}: {detail}") },
        PlaneError::AuthRefused { detail } => PlaneError::AuthRefused { detail: format!("{address}: {detail}") },
        other => other,
    };
    let client = client(config, ServerConfig::new_centralized(host, port), None)?;
    let task = client.init().await.map_err(|error| fail(&error))?;
    let info = CustomCommand::new_static("CLUSTER", ClusterHash::Random, false);
    let answer = client.custom::<String, _>(info, vec!["INFO"]).await;
    task.abort();
    let info = answer.map_err(|error| fail(&error))?;
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("?");
    let (state, slots_ok) = (value("cluster_state"), value("cluster_slots_ok"));
    if state != "ok" || slots_ok != SLOTS {
        let detail = format!("{address} says cluster_state:{state}, {slots_ok} of {SLOTS} slots are served");
        return Err(PlaneError::ClusterDown { detail });
    }
    Ok(())
}

fn reconnect_policy() -> ReconnectPolicy {
    // 0 attempts at most: without limit. Each pause is twice the last one.
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    policy
}

/// A client that has not connected yet. Every limit is set here: the library's defaults are none, or ten seconds.
fn client(config: &RedisConfig, server: ServerConfig, policy: Option<ReconnectPolicy>) -> Result<Client, PlaneError> {
    let mut builder = Builder::from_config(Config {
        // An error at the start is the operator's to see. Later ones are retried.
        fail_fast: true,
        server,
        username: config.username.clone(),
        password: config.password.clone(),
        ..Config::default()
    });
    builder.set_connection_config(ConnectionConfig {
        connection_timeout: config.connect_timeout,
        // CLUSTER SLOTS, AUTH and the like hold up everything else, so they get no more time than a command.
        internal_command_timeout: config.command_timeout,
        max_command_attempts: REDIRECTIONS_MAX + 1,
        max_redirections: REDIRECTIONS_MAX,
        max_command_buffer_len: COMMANDS_WAITING_MAX,
        // It would be waited for again with every MOVED, one after the other.
        cluster_cache_update_delay: Duration::ZERO,
        unresponsive: UnresponsiveConfig {
            // A connection on which nothing has come back for twice a command's time is dead, not slow.
            max_timeout: Some(config.command_timeout * 2),
            interval: config.command_timeout / 2,
        },
        tcp: TcpConfig {
            // Commands are gathered before they are written; the kernel must not wait for more.
            nodelay: Some(true),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    });
    builder.set_performance_config(PerformanceConfig {
        // A command that times out before it was written is never written.
        default_command_timeout: config.command_timeout,
        ..PerformanceConfig::default()
    });
    if let Some(policy) = policy {
        builder.set_policy(policy);
    }
    builder.build().map_err(|error| PlaneError::from_fred(&error, config.connect_timeout))
}
