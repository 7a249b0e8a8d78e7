//! Making the connection, with an error that fits when it cannot be made.

use super::super::config::RedisConfig;
use super::super::error::PlaneError;
use super::cluster::Cluster;
use super::hosts_text;
use super::link::{Command, Running};
use super::slots::Address;
use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig, TcpConfig, TlsConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The most pipelines and commands that wait to be written to one socket: a poll of 2,048 nodes fits four times. What
/// comes on top fails at once instead of growing in memory while Redis is slow.
const COMMANDS_WAITING_MAX: usize = 8_192;

/// What TLS finds wrong comes as an I/O error of this kind, and the library passes on its text alone.
const FAULT_OF_TLS: &str = "InvalidData";

/// Slots of a Redis Cluster, as CLUSTER INFO writes them.
const SLOTS: &str = "16384";

/// Looks whether a cluster is there that works, and connects to it.
pub(in super::super) async fn connect(config: &RedisConfig, cluster: &Cluster) -> Result<(), PlaneError> {
    let connected = timeout(config.connect_timeout, async {
        probe_any(config).await?;
        cluster.connect().await
    });
    connected.await.unwrap_or(Err(PlaneError::TimedOut { after: config.connect_timeout }))
}

/// Connects to one server, and logs in, within `time_max`. The task is the connection: it ends when that breaks, and
/// ends it when dropped.
pub(super) async fn one(
    config: &RedisConfig,
    (host, port): &Address,
    time_max: Duration,
) -> Result<(Client, Running<Result<(), FredError>>), PlaneError> {
    let client = client(config, host, *port, time_max)?;
    let mut task = Running(client.connect());
    let error = tokio::select! {
        biased;
        ended = &mut task.0 => match ended {
            Ok(Err(error)) => error,
            _ => FredError::new(ErrorKind::Canceled, "the connection was closed"),
        },
        connected = timeout(time_max, client.wait_for_connect()) => match connected {
            Ok(Ok(())) => return Ok((client, task)),
            Ok(Err(error)) => error,
            Err(_) => return Err(PlaneError::TimedOut { after: time_max }),
        },
    };
    let error = match PlaneError::from_fred(&error, time_max) {
        PlaneError::Unreachable { detail } if config.wants_tls && detail.contains(FAULT_OF_TLS) => {
            PlaneError::Tls { detail }
        }
        error => error,
    };
    Err(named(error, host, *port))
}

/// What a server that is not connected says about who serves what.
pub(super) async fn ask_slots(config: &RedisConfig, address: &Address) -> Option<Value> {
    let (client, _task) = one(config, address, config.command_timeout).await.ok()?;
    let (name, args) = slots_command();
    client.custom(CustomCommand::new_static(name, ClusterHash::FirstKey, false), args).await.ok()
}

pub(super) fn slots_command() -> Command {
    ("CLUSTER", vec!["SLOTS".into()])
}

/// Asks all hosts at once for the state of the cluster. One that is well is enough; if there is none, the error is the
/// one that tells most.
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
        PlaneError::Tls { .. } | PlaneError::AuthRefused { .. } => 5,
    }
}

async fn probe(config: &RedisConfig, host: &str, port: u16) -> Result<(), PlaneError> {
    let address = hosts_text(&[(host.to_owned(), port)]);
    let (client, _task) = one(config, &(host.to_owned(), port), config.connect_timeout).await?;
    let info = CustomCommand::new_static("CLUSTER", ClusterHash::FirstKey, false);
    let answer = client.custom::<String, _>(info, vec!["INFO"]).await;
    let info = answer.map_err(|error| named(PlaneError::from_fred(&error, config.command_timeout), host, port))?;
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("?");
    let (state, slots_ok) = (value("cluster_state"), value("cluster_slots_ok"));
    if state != "ok" || slots_ok != SLOTS {
        let detail = format!("{address} says cluster_state:{state}, {slots_ok} of {SLOTS} slots are served");
        return Err(PlaneError::ClusterDown { detail });
    }
    Ok(())
}

/// The error with the server it is about.
fn named(error: PlaneError, host: &str, port: u16) -> PlaneError {
    let address = hosts_text(&[(host.to_owned(), port)]);
    match error {
        PlaneError::NotACluster { .. } => PlaneError::NotACluster { host: address },
        PlaneError::Unreachable { detail } => PlaneError::Unreachable { detail: format!("{address}: {detail}") },
        PlaneError::AuthRefused { detail } => PlaneError::AuthRefused { detail: format!("{address}: {detail}") },
        PlaneError::Tls { detail } => PlaneError::Tls { detail: format!("{address}: {detail}") },
        other => other,
    }
}

/// A client of one server that has not connected yet. Every limit is set here: the library's defaults are none, or ten
/// seconds.
fn client(config: &RedisConfig, host: &str, port: u16, connect_time_max: Duration) -> Result<Client, PlaneError> {
    let tls = match (&config.tls, config.wants_tls) {
        (Some(tls), true) => Some(TlsConfig::from(tls.config())),
        (None, true) => return Err(PlaneError::Invalid { detail: "TLS was asked for and not set up".into() }),
        (_, false) => None,
    };
    let mut builder = Builder::from_config(Config {
        fail_fast: true,
        server: ServerConfig::new_centralized(host, port),
        username: config.username.clone(),
        password: config.password.clone(),
        tls,
        ..Config::default()
    });
    builder.set_connection_config(ConnectionConfig {
        connection_timeout: connect_time_max,
        // AUTH and the like, while connecting.
        internal_command_timeout: connect_time_max.min(config.command_timeout),
        // Nothing is sent twice, and nobody reconnects but the link.
        max_command_attempts: 1,
        max_command_buffer_len: COMMANDS_WAITING_MAX,
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
    builder.build().map_err(|error| PlaneError::from_fred(&error, config.connect_timeout))
}
