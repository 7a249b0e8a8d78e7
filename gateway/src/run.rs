//! `gateway run`: from a configuration to running shards, and to their orderly end.

use crate::{Failure, print};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use trunkline_gateway::auth::AuthSwitch;
use trunkline_gateway::budget::Budget;
use trunkline_gateway::cluster::Cluster;
use trunkline_gateway::config::{AuthConfig, ClusterConfig, ClusterSecret, Config, Placement};
use trunkline_gateway::drain::{Drainer, Wanted};
use trunkline_gateway::early::turn_away;
use trunkline_gateway::http::{self, Node, ShardHandles, VERSION};
use trunkline_gateway::listeners::{Listeners, listen_alone};
use trunkline_gateway::shard::{self, ShardEnd, ShardsCluster, ShardsConfig};
use trunkline_gateway::startup::{StartupError, checks};
use trunkline_router::command::{Signals, init_log, near};
use trunkline_router::http::{Access, serve};

pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    init_log(&config.log, config.log_format);
    let auth = config.auth.load()?;
    let access = config.http_access.load()?;
    let secret = config.cluster.as_ref().map(ClusterConfig::load_secret).transpose()?;
    tracing::info!("Trunkline gateway {VERSION}, node {}, {} shards, auth {auth}", config.node, config.shards);
    let auth = AuthSwitch::new(auth);
    for check in checks(config) {
        let found = check.outcome?;
        tracing::info!("{}: {found}", check.name);
    }
    let budget = Budget::of(config);
    say(&format!("{budget}\n"));
    budget.check()?;
    if let Some(word) = budget.overcommitted() {
        tracing::warn!("{word}");
    }
    let http_listener = listen_alone(config.http)?;
    let listeners = Listeners::bind(&config.listen, config.shards, config.limits())?;
    let mesh_listener = config.cluster.as_ref().map(|cluster| listen_alone(cluster.mesh)).transpose()?;
    let mesh = secret.zip(mesh_listener);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("starting the control thread: {error}")))?;
    runtime.block_on(control(config, auth, access, listeners, http_listener, mesh))
}

/// The life of the control thread.
async fn control(
    config: &Config,
    auth: Arc<AuthSwitch>,
    access: Access,
    listeners: Listeners,
    http_listener: std::net::TcpListener,
    mesh: Option<(ClusterSecret, std::net::TcpListener)>,
) -> Result<(), Failure> {
    let step = |what: &'static str| move |error: io::Error| Failure::Other(format!("{what}: {error}"));
    let mut signals = Signals::new().map_err(step("waiting for signals"))?;
    let http_address = http_listener.local_addr().map_err(step("asking for the HTTP address"))?;
    http_listener.set_nonblocking(true).map_err(step("setting up HTTP"))?;
    let http_listener = tokio::net::TcpListener::from_std(http_listener).map_err(step("setting up HTTP"))?;
    let addresses = listeners.addresses.clone();
    let (name, limits, joins) = (config.node.clone(), config.limits().clone(), config.cluster.is_some());
    let node = Arc::new(Node::new(name, limits, addresses.clone(), http_address, joins, access));
    // It ends with the process, so that metrics and progress are shown to the last.
    tokio::spawn(serve(http_listener, http::router(node.clone()), node.places().clone(), pending()));
    tokio::spawn(node.clone().watch_shards());

    let cluster = match config.cluster.as_ref().zip(mesh.as_ref()) {
        Some((cluster, (secret, _))) => Some(tokio::select! {
            joined = Cluster::join(cluster, secret, &config.node, config.shards, http_address, |reason| node.set_waiting(reason)) => joined?,
            failed = turn_away(&listeners, node.turned_away().clone()) => match failed {
                Ok(never) => match never {},
                Err(error) => return Err(step("answering those who come early")(error)),
            },
            name = signals.next() => end_at_once(name),
        }),
        None => None,
    };
    listeners.set_blocking().map_err(step("setting up the ports for clients"))?;
    if let Some(cluster) = &cluster {
        node.set_cluster(cluster.reader().clone());
    }

    let shards_config = ShardsConfig {
        node: config.node.clone(),
        limits: config.limits().clone(),
        auth,
        listeners: listeners.by_shard,
        placement: config.cluster.as_ref().map_or(Placement::Accept, |cluster| cluster.placement),
        cluster: cluster.as_ref().zip(mesh).map(|(cluster, (secret, listener))| ShardsCluster {
            state: cluster.reader().state().clone(),
            news: cluster.news(),
            secret,
            listener,
        }),
        presence_logs: cluster.as_ref().map(|cluster| cluster.logs().to_vec()).unwrap_or_default(),
    };
    let starting = tokio::task::spawn_blocking(move || shard::start(shards_config));
    let started = tokio::select! {
        started = starting => started,
        name = signals.next() => end_at_once(name),
    };
    let mut shards = started
        .map_err(|error| Failure::Other(format!("starting the shards: {error}")))?
        .map_err(|failure| StartupError::Shard(failure.to_string()))?;
    let (ports, stats) = (shards.ports.clone(), shards.stats.clone());
    let place = cluster.as_ref().map(|cluster| cluster.place().clone());
    let (switch, drain_ms) = (node.drain().clone(), config.limits().drain_ms);
    let serving = async {
        if let Some(place) = &place {
            tokio::select! {
                // Before that, this node does not know the homes of users.
                () = place.serve(ports.clone(), stats.clone()) => {}
                () = switch.is_asked() => {}
            }
        }
        node.set_running(ShardHandles { ports: ports.clone(), stats: stats.clone() });
        if switch.wanted() == Wanted::Serve {
            announce(config, &addresses, http_address);
        }
        Drainer { switch, place, ports, drain_ms }.run().await
    };
    let mut serving = pin!(serving);
    let name = tokio::select! {
        never = serving.as_mut() => match never {},
        name = signals.next() => name,
        end = shards.ended.recv() => return Err(shard_failed(end)),
    };
    tracing::info!("{name}: draining, then the end; a second signal ends it at once");
    node.drain().end(&shards.stats);
    tokio::select! {
        never = serving => match never {},
        ended = all_ended(config.shards, &mut shards.ended) => ended?,
        name = signals.next() => end_at_once(name),
    }
    let joined = tokio::task::spawn_blocking(move || shards.join()).await;
    joined
        .map_err(|error| Failure::Other(format!("ending the shards: {error}")))?
        .map_err(|failure| Failure::Other(failure.to_string()))?;
    tracing::info!("all connections have ended");
    if let Some(cluster) = cluster {
        tokio::select! {
            () = cluster.leave() => {}
            name = signals.next() => end_at_once(name),
        }
    }
    Ok(())
}

/// Says where the node is reached and what to try next.
fn announce(config: &Config, addresses: &[SocketAddr], http_address: SocketAddr) {
    if !http_address.ip().is_loopback() && config.http_access.keys_file.is_none() {
        tracing::warn!(
            "whoever reaches the HTTP API on {http_address} may read metrics, end sessions and drain the node (http_insecure_open)"
        );
    }
    if let Some(cluster) = config.cluster.as_ref().filter(|cluster| !cluster.mesh.ip().is_loopback()) {
        tracing::warn!(
            "links to other nodes ({}) are authenticated and not encrypted: they belong on a network of your own",
            cluster.mesh
        );
    }
    if config.auth == AuthConfig::Open && addresses.iter().any(|address| !address.ip().is_loopback()) {
        tracing::warn!("whoever reaches this node may log in as anybody (insecure_open)");
    }
    let mut text: String = addresses.iter().map(|address| format!("listening on {address}\n")).collect();
    text.push_str(&format!("http on {http_address}\n"));
    text.push_str(&next_step(config, addresses[0], http_address));
    say(&text);
}

/// Writes to stdout. A node goes on when nobody reads that.
fn say(text: &str) {
    if let Err(Failure::Other(error)) = print(text) {
        tracing::warn!("{error}");
    }
}

/// The command that talks to this node.
fn next_step(config: &Config, address: SocketAddr, http_address: SocketAddr) -> String {
    let mut flags = String::new();
    if near(address).to_string() != "127.0.0.1:7700" {
        flags.push_str(&format!(" --addr {}", near(address)));
    }
    if near(http_address).to_string() != "127.0.0.1:7780" {
        flags.push_str(&format!(" --http {}", near(http_address)));
    }
    match config.auth {
        AuthConfig::Open => format!("next: chat --user 1{flags}   and in another terminal: chat --user 2{flags}\n"),
        AuthConfig::Jwt { .. } => {
            format!("next: TRUNKLINE_TOKEN=… chat --user 1{flags}   with a token whose sub is 1\n")
        }
    }
}

/// Waits until every shard has ended, in an orderly way.
async fn all_ended(shards: u16, ended: &mut UnboundedReceiver<ShardEnd>) -> Result<(), Failure> {
    for _ in 0..shards {
        match ended.recv().await {
            Some(ShardEnd { orderly: true, .. }) => {}
            end => return Err(shard_failed(end)),
        }
    }
    Ok(())
}

/// A node without one of its shards would fail a part of its users and look well to the others, so it ends as a whole.
fn shard_failed(end: Option<ShardEnd>) -> Failure {
    Failure::Other(match end {
        Some(ShardEnd { shard, .. }) => {
            format!("shard {shard} has failed, so this node ends; what it said last stands above")
        }
        None => "the shards have ended by themselves, so this node ends".to_owned(),
    })
}

fn end_at_once(name: &str) -> ! {
    tracing::info!("{name}: ended at once");
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc::unbounded_channel;
    use trunkline_gateway::config::{ConfigFile, Host, Sources};

    fn message(failure: Failure) -> String {
        match failure {
            Failure::Other(message) => message,
            Failure::Config(_) | Failure::Startup(_) => panic!("neither configuration nor start"),
        }
    }

    #[tokio::test]
    async fn the_end_waits_for_every_shard() {
        let (ends, mut ended) = unbounded_channel();
        let mut all = std::pin::pin!(all_ended(3, &mut ended));
        for shard in [2, 0, 1] {
            let waiting = tokio::time::timeout(Duration::ZERO, all.as_mut()).await;
            assert!(waiting.is_err(), "it ended before shard {shard}");
            ends.send(ShardEnd { shard, orderly: true }).unwrap();
        }
        assert!(all.await.is_ok());
    }

    #[tokio::test]
    async fn a_shard_that_fails_in_the_drain_fails_the_node() {
        let (ends, mut ended) = unbounded_channel();
        ends.send(ShardEnd { shard: 0, orderly: true }).unwrap();
        ends.send(ShardEnd { shard: 1, orderly: false }).unwrap();
        let failure = all_ended(2, &mut ended).await.expect_err("shard 1 failed");
        assert!(message(failure).contains("shard 1 has failed"));
    }

    #[test]
    fn a_failed_shard_is_named() {
        assert!(message(shard_failed(Some(ShardEnd { shard: 7, orderly: false }))).contains("shard 7"));
        assert!(message(shard_failed(None)).contains("shards"));
    }

    #[test]
    fn the_next_step_reaches_this_node() {
        let host = Host { cores: 1, nofile_hard: 20_000, memory_available: 4 << 30, name: "h".to_owned() };
        let config = |text: &str| {
            let file = ConfigFile::parse(std::path::Path::new("x"), text).unwrap();
            Config::resolve(Sources { file: Some(file), ..Sources::default() }, &host).unwrap()
        };
        let step = |text: &str, address: &str, http: &str| {
            next_step(&config(text), address.parse().unwrap(), http.parse().unwrap())
        };
        assert!(step("", "127.0.0.1:7700", "127.0.0.1:7780").starts_with("next: chat --user 1   and"));
        let elsewhere = step("", "0.0.0.0:7701", "[::]:7780");
        assert!(elsewhere.contains("chat --user 1 --addr 127.0.0.1:7701 --http [::1]:7780 "), "{elsewhere}");
        let jwt = step("auth = \"jwt\"\njwt_hs256_secret_file = \"s\"\n", "127.0.0.1:7700", "127.0.0.1:7780");
        assert!(jwt.contains("TRUNKLINE_TOKEN=") && jwt.contains("chat --user 1 "), "{jwt}");
    }
}
