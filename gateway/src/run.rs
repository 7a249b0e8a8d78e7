//! `gateway run`: from a configuration to running shards, and to their orderly end.

use crate::{Failure, variable_names};
use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use trunkline_gateway::auth::AuthSwitch;
use trunkline_gateway::budget::Budget;
use trunkline_gateway::clock::wall_s;
use trunkline_gateway::cluster::{Cluster, HttpPlace, Secrets};
use trunkline_gateway::config::{
    AuthConfig, ClusterConfig, ClusterSecret, Config, Host, MeshEncryptionKind, Origin, Placement, SETTINGS,
    StorePlace, TlsMaterial, strange_variables,
};
use trunkline_gateway::control::{Control, ControlPort};
use trunkline_gateway::drain::{Drainer, Wanted};
use trunkline_gateway::early::turn_away;
use trunkline_gateway::events::{EventPortals, Wants};
use trunkline_gateway::hook::HookPortals;
use trunkline_gateway::http::demo::Demo;
use trunkline_gateway::http::{self, Node, ShardHandles, VERSION};
use trunkline_gateway::listeners::{Listeners, listen_alone, listen_for_workers};
use trunkline_gateway::metrics::ShardStats;
use trunkline_gateway::portal::Portals;
use trunkline_gateway::reload::{Read, Reloader, Targets};
use trunkline_gateway::reload_request::Reload;
use trunkline_gateway::serve_keys::ServeKeys;
use trunkline_gateway::services::{CallPortals, DialedServers};
use trunkline_gateway::services_thread::{
    CONNECTIONS_MAX as SERVICES_CONNECTIONS_MAX, CallsConfig, HookPart, PushConfig, ServicesThread,
    ServicesThreadConfig, WebhooksPart,
};
use trunkline_gateway::shard::{self, ShardEnd, ShardsCluster, ShardsConfig, ShardsServices};
use trunkline_gateway::startup::{StartupError, checks, forbid_core_dumps};
use trunkline_gateway::store::{NodeStore, events_in_redis};
use trunkline_gateway::transport::tls::{TicketSecret, TlsSwitch};
use trunkline_router::command::{Hangups, Signals, near};
use trunkline_router::http::{Access, HttpTls, Places, serve};
use trunkline_router::log;

/// What a node that ends because of a bug may take beyond its drain: connections linger for two seconds, and the
/// machine may be busy.
const DRAIN_SLACK: Duration = Duration::from_secs(10);
/// How long giving up the lease may take then; it runs out by itself.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether everybody has gone, where nobody tells.
const RESCUE_STEP: Duration = Duration::from_millis(20);

pub(crate) fn run(config: Config, host: Host, read: Read) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("starting the control thread: {error}")))?;
    // Before anything is written: a file that has reached its limit raises a signal.
    let signals = {
        let _context = runtime.enter();
        Signals::new().and_then(|signals| Ok((signals, Hangups::new()?)))
    };
    let signals = signals.map_err(|error| Failure::Other(format!("waiting for signals: {error}")))?;
    log::init(&config.log, config.log_format).map_err(|error| Failure::Other(format!("starting the log: {error}")))?;
    let rescue = Rescue::default();
    let node = || {
        let start = Start::new(&config)?;
        let reloader = Reloader::new(config.clone(), host, read);
        runtime.block_on(control(&config, start, signals, reloader, &rescue))
    };
    // Nothing of what unwound is looked at again.
    let outcome = catch_unwind(AssertUnwindSafe(node)).unwrap_or_else(|_| {
        rescue.drain();
        Err(bug())
    });
    // Whatever still waits for a file or a name must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// What is set up before the control thread begins to turn.
struct Start {
    auth: Arc<AuthSwitch>,
    /// `None` without TLS.
    tls: Option<Arc<TlsSwitch>>,
    /// `None` for an HTTP API in clear.
    http_tls: Option<Arc<HttpTls>>,
    access: Access,
    listeners: Listeners,
    http_listener: std::net::TcpListener,
    /// With TLS to Redis set up.
    cluster: Option<ClusterConfig>,
    mesh: Option<(ClusterSecret, std::net::TcpListener)>,
    store: Option<NodeStore>,
    services_listener: Option<std::net::TcpListener>,
    services_http: Option<std::net::TcpListener>,
    /// What servers that are dialed are shown, by service.
    server_keys: HashMap<u16, Arc<str>>,
}

impl Start {
    fn new(config: &Config) -> Result<Self, Failure> {
        // Before there is a secret in memory.
        if !config.core_dumps
            && let Err(error) = forbid_core_dumps()
        {
            tracing::warn!("core dumps, which hold keys and messages, cannot be ruled out: {error}");
        }
        let auth = config.load_auth()?;
        let access = config.load_access()?;
        config.check_webhooks()?;
        config.check_connect_hook()?;
        let server_keys = config.load_server_keys()?;
        let secret = config.load_secret()?;
        let cluster = config.load_cluster()?;
        let tls = config.load_tls()?;
        let http_tls = config.load_http_tls()?.map(HttpTls::new);
        tracing::info!("Trunkline gateway {VERSION}, node {}, {} shards, auth {auth}", config.node, config.shards);
        for word in strange_variables(variable_names()) {
            tracing::warn!("{word}");
        }
        let auth = AuthSwitch::new(auth);
        let tls = tls.map(|material| begin_tls(&material, secret.as_ref())).transpose()?;
        for check in checks(config) {
            let found = check.outcome?;
            tracing::info!("{}: {found}", check.name);
        }
        let budget = Budget::of(config);
        log::say(&format!("{budget}\n"));
        budget.check()?;
        if let Some(word) = budget.overcommitted() {
            tracing::warn!("{word}");
        }
        let start = |store| NodeStore::start(store, config.limits(), config.shards, cluster.as_ref());
        let store = config.store.as_ref().map(start).transpose()?;
        if let Some(StorePlace::Folder(folder)) = config.store.as_ref().map(|store| &store.place) {
            tracing::info!("messages for users who are offline are kept in {}", folder.display());
        }
        let of = |key: &'static str| move |error: StartupError| listening(config, key, error);
        let http_listener = listen_alone(config.http).map_err(of("http"))?;
        let listeners = Listeners::bind(&config.listen, config.shards, config.limits()).map_err(of("listen"))?;
        let mesh_listener =
            config.cluster.as_ref().map(|cluster| listen_alone(cluster.mesh)).transpose().map_err(of("mesh"))?;
        let services = config.services.as_ref();
        let services_listener = services
            .and_then(|services| services.listen)
            .map(listen_for_workers)
            .transpose()
            .map_err(of("services_listen"))?;
        let services_http = config.services_http.map(listen_alone).transpose().map_err(of("services_http"))?;
        Ok(Start {
            services_listener,
            services_http,
            server_keys,
            auth,
            tls,
            http_tls,
            access,
            listeners,
            http_listener,
            cluster,
            mesh: secret.zip(mesh_listener),
            store,
        })
    }
}

/// TLS with these certificates. Tickets follow from the first secret of the cluster as of the start, so that they are
/// good at each of its nodes; while the secret is being changed a client that comes with the other kind has a full
/// handshake.
fn begin_tls(material: &TlsMaterial, secret: Option<&ClusterSecret>) -> Result<Arc<TlsSwitch>, Failure> {
    let tickets = match secret {
        Some(secret) => secret.all().next().map(TicketSecret::shared),
        None => TicketSecret::random(),
    };
    let Some(tickets) = tickets else { return Err(Failure::Other("this machine has no random numbers".to_owned())) };
    let switch = TlsSwitch::new(material.certificates.clone(), material.client_ca.as_ref(), tickets);
    let switch = switch.map_err(|error| Failure::Other(format!("setting up TLS: {error}")))?;
    switch.current().certificates().tell(wall_s());
    Ok(switch)
}

/// An address that cannot be listened on, with the setting that names it and where that comes from.
fn listening(config: &Config, key: &'static str, error: StartupError) -> StartupError {
    let StartupError::Listen(address, error) = error else { return error };
    let flag = SETTINGS.iter().find(|setting| setting.key == key).map(|setting| setting.flag()).unwrap_or_default();
    let setting = match config.origin(key) {
        Origin::Flag(_) | Origin::Default => flag,
        origin => format!("{flag} (it comes from {origin})"),
    };
    StartupError::ListenFor(address, error, setting)
}

/// What is needed to send all clients elsewhere when the control thread itself has panicked.
#[derive(Default)]
struct Rescue(OnceLock<(Vec<ControlPort>, Vec<Arc<ShardStats>>, u64)>);

impl Rescue {
    /// Ends all connections in the usual way, as far as the shards still turn.
    fn drain(&self) {
        let Some((ports, stats, drain_ms)) = self.0.get() else { return };
        tracing::error!("the control thread has panicked: draining without it, then the end");
        for port in ports {
            // A full queue is one of a shard that does not turn.
            let _ = port.send(Control::Drain { ends: true });
        }
        let until = Instant::now() + Duration::from_millis(*drain_ms) + DRAIN_SLACK;
        while stats.iter().any(|stats| stats.open.get() > 0) && Instant::now() < until {
            std::thread::sleep(RESCUE_STEP);
        }
    }
}

/// The life of the control thread.
async fn control(
    config: &Config,
    start: Start,
    (mut signals, hangups): (Signals, Hangups),
    (reloader, reload): (Reloader, Reload),
    rescue: &Rescue,
) -> Result<(), Failure> {
    let step = |what: &'static str| move |error: io::Error| Failure::Other(format!("{what}: {error}"));
    let Start {
        auth, tls, http_tls, access, mut listeners, http_listener, cluster: cluster_config, mesh, store, ..
    } = start;
    let (services_listener, services_http) = (start.services_listener, start.services_http);
    let services_http_address = services_http.as_ref().map(std::net::TcpListener::local_addr).transpose();
    let services_http_address = services_http_address.map_err(step("asking for the address of services_http"))?;
    let portals = services_http.as_ref().map(|_| Portals::new(config.shards));
    let upstreams = config.services.as_ref().filter(|services| services.has_upstreams());
    let event_portals = config.webhooks.as_ref().map(|webhooks| {
        let wants = webhooks.specs.iter().fold(Wants::default(), |all, spec| all.or(spec.wants));
        EventPortals::new(config.shards, wants, webhooks.keeps())
    });
    let hook_portals = config.connect_hook.as_ref().map(|_| HookPortals::new(config.shards));
    let servers = match &config.services {
        Some(services) => {
            let key = |service: u16| start.server_keys.get(&service).cloned().unwrap_or_default();
            DialedServers::new(&services.specs, key)
        }
        None => DialedServers::default(),
    };
    let call_portals = upstreams.map(|_| CallPortals::new(config.shards));
    let services_address = services_listener.as_ref().map(std::net::TcpListener::local_addr).transpose();
    let services_address = services_address.map_err(step("asking for the address for workers"))?;
    let http_address = http_listener.local_addr().map_err(step("asking for the HTTP address"))?;
    http_listener.set_nonblocking(true).map_err(step("setting up HTTP"))?;
    let http_listener = tokio::net::TcpListener::from_std(http_listener).map_err(step("setting up HTTP"))?;
    let (addresses, places) = (listeners.addresses.clone(), listeners.places.clone());
    // Removed when this node has ended.
    let _socket_files = std::mem::take(&mut listeners.files);
    let (name, limits, joins) = (config.node.clone(), config.limits().clone(), config.cluster.is_some());
    let node = Arc::new(Node::new(name, limits, addresses.clone(), http_address, joins, access));
    node.set_reload(reload.clone());
    if http_tls.is_some() {
        node.set_https();
    }
    if let Some(store) = &store {
        node.set_store(store.watch());
    }
    if let Some(tls) = &tls {
        node.set_tls(tls.clone());
    }
    tokio::spawn(reload_on_hangup(hangups, reload));
    let (mut routes, mut upgrade) = (http::router(node.clone()), config.upgrade.clone());
    // Its page connects in clear.
    let reached = listeners.in_clear.first().filter(|_| config.demo);
    let demo = reached.map(|first| Demo::new(*first, http_address, config.auth != AuthConfig::Open));
    if let Some(demo) = &demo {
        upgrade.origins.extend(demo.origins());
        routes = routes.merge(demo.clone().router());
    }
    // It ends with the process, so that metrics and progress are shown to the last.
    tokio::spawn(serve(http_listener, routes, node.places().clone(), http_tls.clone(), pending()));
    tokio::spawn(node.clone().watch_shards());

    let http_place = HttpPlace { address: http_address, tls: http_tls.is_some() };
    let secrets = mesh.as_ref().zip(cluster_config.as_ref()).map(|((secret, _), cluster)| {
        Secrets::new(secret.all()).map(|secrets| secrets.with_encryption(cluster.mesh_encryption.into()))
    });
    let secrets = secrets.transpose().map_err(StartupError::Cluster)?;
    let tls_required = config.tls.as_ref().is_some_and(|tls| tls.required);
    let cluster = match cluster_config.as_ref().zip(mesh.as_ref()).zip(secrets.clone()) {
        Some(((cluster, (secret, _)), secrets)) => Some(tokio::select! {
            joined = Cluster::join(cluster, secret, secrets, &config.node, config.shards, http_place, |reason| node.set_waiting(reason)) => joined?,
            failed = turn_away(&listeners, tls_required, node.turned_away().clone()) => match failed {
                Ok(never) => match never {},
                Err(error) => return Err(step("answering those who come early")(error)),
            },
            name = signals.next() => end_at_once(name),
            () = log::panicked() => return Err(bug()),
        }),
        None => None,
    };
    listeners.set_blocking().map_err(step("setting up the ports for clients"))?;
    if let Some(cluster) = &cluster {
        node.set_cluster(cluster.reader().clone(), cluster.place().clone());
    }

    let shards_config = ShardsConfig {
        node: config.node.clone(),
        limits: config.limits().clone(),
        auth: auth.clone(),
        upgrade: Arc::new(upgrade),
        proxies: Arc::new(config.proxies.clone()),
        tls: tls.clone(),
        tls_required,
        listeners: listeners.by_shard,
        listeners_tls_only: listeners.tls_only.into(),
        placement: config.cluster.as_ref().map_or(Placement::Accept, |cluster| cluster.placement),
        cluster: cluster.as_ref().zip(mesh).zip(secrets.clone()).map(|((cluster, (_, listener)), secrets)| {
            let links_max = cluster_config.as_ref().map_or(0, |config| config.mesh_links);
            let state = cluster.reader().state().fence().clone();
            ShardsCluster { state, news: cluster.news(), secrets, links_max, listener }
        }),
        store: store.as_ref().map(NodeStore::shards),
        services: config.services.as_ref().map(|services| ShardsServices {
            specs: services.specs.clone(),
            keys: Arc::new(ServeKeys(node.access().clone())),
            listener: services_listener,
            tls_required: services.tls_required,
            portals: call_portals.clone(),
            servers: servers.clone(),
        }),
        portals: portals.clone(),
        events: event_portals.clone(),
        hook: hook_portals.clone(),
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
    let pushes = services_http.zip(portals).map(|(listener, portals)| {
        let places = Places::new(SERVICES_CONNECTIONS_MAX);
        node.set_services_places(places.clone());
        PushConfig { listener, portals, access: node.access().clone(), places, tls: http_tls.clone() }
    });
    let calls = upstreams.zip(call_portals);
    let calls = calls.map(|(services, portals)| CallsConfig { specs: services.specs.clone(), portals });
    let webhooks = config.webhooks.as_ref().zip(event_portals).map(|(webhooks, portals)| WebhooksPart {
        specs: webhooks.specs.clone(),
        portals,
        folder: webhooks.folder.clone(),
        in_redis: cluster_config.as_ref().filter(|_| webhooks.in_redis).map(|cluster| events_in_redis(config, cluster)),
        node: config.node.clone(),
    });
    let hook = config.connect_hook.clone().zip(hook_portals);
    let hook = hook.map(|(spec, portals)| HookPart { spec, portals, node: config.node.clone() });
    let has_names = servers.names().next().is_some();
    let names = has_names.then_some(servers);
    let needed = pushes.is_some() || calls.is_some() || webhooks.is_some() || hook.is_some() || names.is_some();
    let services_thread = match needed {
        true => {
            let config = ServicesThreadConfig {
                pushes,
                calls,
                webhooks,
                hook,
                names,
                stats: stats.clone(),
                limits: config.limits().clone(),
                shard_cores: shards.core_ids(),
                seed: node.started_ms(),
            };
            // It may have to read a log of events, and a lease is to be renewed meanwhile.
            let starting = tokio::task::spawn_blocking(move || ServicesThread::start(config));
            let started = starting.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            Some(started.map_err(step("starting the services thread"))?)
        }
        false => None,
    };
    // Nobody else sets it.
    let _ = rescue.0.set((ports.clone(), stats.clone(), config.limits().drain_ms));
    let drain_ms = Arc::new(config.limits().drain_ms.into());
    tokio::spawn(reloader.run(Targets {
        ports: ports.clone(),
        accepting: shards.accepting,
        drain_ms: Arc::clone(&drain_ms),
        auth,
        secrets,
        tls,
        http_tls,
        node: node.clone(),
    }));
    let place = cluster.as_ref().map(|cluster| cluster.place().clone());
    let switch = node.drain().clone();
    let trap = panic_when_asked(ports.clone());
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
            let of_services = [("services", services_address), ("services http", services_http_address)];
            announce(config, &addresses, &places, http_address, of_services, demo.as_ref());
        }
        Drainer { switch, place, ports, drain_ms: Arc::clone(&drain_ms) }.run().await
    };
    let mut serving = pin!(serving);
    let mut left = config.shards;
    let (why, mut failure) = tokio::select! {
        never = serving.as_mut() => match never {},
        name = signals.next() => (name, None),
        end = shards.ended.recv() => {
            left -= 1;
            ("a shard has failed", Some(shard_failed(end)))
        }
        () = log::panicked() => ("a bug (panic)", Some(bug())),
        () = trap => ("a test", None),
    };
    tracing::info!("{why}: draining, then the end; a second signal ends it at once");
    if let Some(services) = &services_thread {
        // Before the shards: what comes later is refused, and not lost.
        services.end();
    }
    node.drain().end(&shards.stats);
    let slack = Duration::from_millis(drain_ms.load(std::sync::atomic::Ordering::Relaxed)) + DRAIN_SLACK;
    // A shard that hangs because another has failed must not keep the process from ending.
    let patience = if failure.is_some() { slack } else { Duration::MAX };
    let ended = tokio::select! {
        never = serving => match never {},
        ended = tokio::time::timeout(patience, all_ended(left, &mut shards.ended)) => ended,
        name = signals.next() => match failure {
            None => end_at_once(name),
            Some(failure) => return Err(failure),
        },
    };
    let have_ended = ended.is_ok();
    failure = failure.or(ended.ok().flatten());
    if have_ended {
        let joined = tokio::task::spawn_blocking(move || shards.join()).await;
        let joined = joined.map_err(|error| Failure::Other(format!("ending the shards: {error}")));
        let of_shards =
            |failed: Result<_, shard::ShardFailure>| failed.map_err(|error| Failure::Other(error.to_string()));
        failure = failure.or(joined.and_then(of_shards).err());
        tracing::info!("all connections have ended");
        if let Some(services) = services_thread {
            let joined = tokio::task::spawn_blocking(move || services.join()).await;
            let joined = joined.map_err(|error| Failure::Other(format!("ending the services thread: {error}")));
            failure = failure.or(joined.err());
        }
    }
    if let Some(store) = store {
        let stopped = tokio::task::spawn_blocking(move || store.stop()).await;
        if !stopped.unwrap_or(false) {
            failure = failure.or_else(|| Some(Failure::Other("the store has failed; the log has more".to_owned())));
        }
    }
    if let Some(cluster) = cluster {
        let patience = if failure.is_some() { LEAVE_MAX } else { Duration::MAX };
        tokio::select! {
            _ = tokio::time::timeout(patience, cluster.leave()) => {}
            name = signals.next() => match failure {
                None => end_at_once(name),
                Some(failure) => return Err(failure),
            },
        }
    }
    match failure {
        Some(failure) => Err(failure),
        // In the drain.
        None if log::panics() > 0 => Err(bug()),
        None => Ok(()),
    }
}

/// What the control thread does about SIGHUP. What comes of it is logged by the reloader.
async fn reload_on_hangup(mut hangups: Hangups, reload: Reload) {
    loop {
        hangups.next().await;
        tracing::info!("SIGHUP: reading the configuration again");
        // Refused or done, the reloader has logged it.
        let _ = reload.ask().await;
    }
}

/// For ever.
#[cfg(not(debug_assertions))]
async fn panic_when_asked(_: Vec<ControlPort>) {
    pending().await
}

/// For ever, but in a test: then the part named by the variable panics as soon as the file named behind it exists, so
/// that the test sees what a panic costs the others.
#[cfg(debug_assertions)]
async fn panic_when_asked(ports: Vec<ControlPort>) {
    let Ok(trap) = std::env::var("TRUNKLINE_DEBUG_PANIC") else { return pending().await };
    let Some((part, file)) = trap.split_once(':') else { return pending().await };
    while !std::path::Path::new(file).exists() {
        tokio::time::sleep(RESCUE_STEP).await;
    }
    match (part, ports.first()) {
        ("shard", Some(port)) => drop(port.send(Control::Panic)),
        ("task", _) => drop(tokio::spawn(async { panic!("a test asked for it") })),
        _ => panic!("a test asked for it"),
    }
    pending().await
}

/// Says where the node is reached and what to try next.
fn announce(
    config: &Config,
    addresses: &[SocketAddr],
    places: &[String],
    http_address: SocketAddr,
    of_services: [(&str, Option<SocketAddr>); 2],
    demo: Option<&Demo>,
) {
    if !http_address.ip().is_loopback() && config.http_access.keys_file.is_none() {
        tracing::warn!(
            "whoever reaches the HTTP API on {http_address} may read metrics, end sessions and drain the node \
             (http_insecure_open)"
        );
    }
    if let Some(cluster) = config.cluster.as_ref().filter(|cluster| !cluster.mesh.ip().is_loopback()) {
        let word = match cluster.mesh_encryption {
            MeshEncryptionKind::Off => Some("are authenticated and not encrypted (mesh_encryption = off)"),
            MeshEncryptionKind::On => Some(
                "are encrypted unless the other node is of a version that cannot; --mesh-encryption required refuses \
                 that",
            ),
            MeshEncryptionKind::Required => None,
        };
        if let Some(word) = word {
            tracing::warn!("links to other nodes ({}) {word}", cluster.mesh);
        }
    }
    if config.auth == AuthConfig::Open && addresses.iter().any(|address| !address.ip().is_loopback()) {
        tracing::warn!("whoever reaches this node may log in as anybody (insecure_open)");
    }
    let mut text: String = places.iter().map(|place| format!("listening on {place}\n")).collect();
    let scheme = if config.http_tls.is_some() { "https" } else { "http" };
    text.push_str(&format!("{scheme} on {http_address}\n"));
    for (what, address) in of_services {
        text.extend(address.map(|address| format!("{what} on {address}\n")));
    }
    text.extend(demo.map(|demo| format!("{demo}\n")));
    if let Some(first) = addresses.first() {
        text.push_str(&next_step(config, *first, http_address));
    }
    log::say(&text);
}

/// The command that talks to this node.
fn next_step(config: &Config, address: SocketAddr, http_address: SocketAddr) -> String {
    let mut flags = String::new();
    if near(address).to_string() != "127.0.0.1:7700" {
        flags.push_str(&format!(" --addr {}", near(address)));
    }
    if config.http_tls.is_none() && near(http_address).to_string() != "127.0.0.1:7780" {
        flags.push_str(&format!(" --http {}", near(http_address)));
    }
    match config.auth {
        AuthConfig::Open => format!("next: chat --user 1{flags}   and in another terminal: chat --user 2{flags}\n"),
        AuthConfig::Jwt { .. } => {
            format!("next: TRUNKLINE_TOKEN=… chat --user 1{flags}   with a token whose sub is 1\n")
        }
    }
}

/// Waits until so many shards have ended; returns the first failure of one.
async fn all_ended(shards: u16, ended: &mut UnboundedReceiver<ShardEnd>) -> Option<Failure> {
    let mut failure = None;
    for _ in 0..shards {
        match ended.recv().await {
            Some(ShardEnd { orderly: true, .. }) => {}
            Some(end) => failure = failure.or_else(|| Some(shard_failed(Some(end)))),
            None => return failure.or_else(|| Some(shard_failed(None))),
        }
    }
    failure
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

/// Why a node ends after a panic.
fn bug() -> Failure {
    Failure::Other("a bug has ended it; the line of the log that says panicked has more".to_owned())
}

fn end_at_once(name: &str) -> ! {
    tracing::info!("{name}: ended at once");
    log::flush();
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
        assert!(all.await.is_none());
    }

    #[tokio::test]
    async fn a_shard_that_fails_in_the_drain_fails_the_node() {
        let (ends, mut ended) = unbounded_channel();
        ends.send(ShardEnd { shard: 0, orderly: true }).unwrap();
        ends.send(ShardEnd { shard: 1, orderly: false }).unwrap();
        ends.send(ShardEnd { shard: 2, orderly: true }).unwrap();
        let failure = all_ended(3, &mut ended).await.expect("shard 1 failed");
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
