//! From what the sources say to a [`Config`]: merge, compute what nobody set, judge.

use super::addresses::{per_address, proxies};
use super::cluster::cluster;
use super::fit::{Fitted, Room, fitted, remedies, shards_default};
use super::groups::{MEMBERSHIPS_LEAST, MEMBERSHIPS_MOST, group_limits};
use super::hook::{connect_hook, hook_limits};
use super::listen::{At, Endpoint, listen};
use super::send::{SEND_BYTES_LEAST, send_limits};
use super::services::{
    PUSHES_OPEN, PUSHES_OPEN_LEAST, call_limits, portal_bytes_least, push_limits, services, services_http,
};
use super::settings::{fixed_defaults, flag};
use super::store::{
    STORE_BYTES_LEAST, STORE_RECENT_LEAST, STORE_USERS_LEAST, STORE_USERS_MOST, store, store_kind, store_limits,
};
use super::tls::{http_tls, tls};
use super::watch::{WATCH_BYTES_LEAST, watch_default, watch_limits};
use super::webhooks::{WEBHOOK_BYTES, WEBHOOK_BYTES_LEAST, webhook_limits, webhooks};
use super::websocket::upgrade;
use super::{
    AuthConfig, AuthKind, ClusterConfig, Config, ConfigError, Host, HttpAccess, NODE_NAME_CHARS_MAX, Origin, Origins,
    SETTINGS, Settings, Size, Sources, is_node_name_char,
};
use crate::auth::KEYS_MAX;
use crate::budget::{
    AWAY_BYTES, KERNEL_BYTES_PER_CONNECTION, MEMBERSHIP_STORED_BYTES, PRESENCE_WRITE_BYTES, connections_bytes,
};
use crate::limits::{Limits, MESH_LINK_SHARE, SHARDS_MAX, SLOTS_RESERVED};
use crate::mesh::wire::RECORD_BYTES_MAX;
use crate::push::OPEN_BYTES;
use crate::services::CALL_BYTES;
use crate::store_memory::STORE_USER_BYTES;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use trunkline_proto::{FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT};
use trunkline_router::log::judge_filter;
use trunkline_router::presence::DEVICES_PER_USER_LIMIT;

/// Entries io_uring allows in a descriptor table (`IORING_MAX_FIXED_FILES`).
pub(crate) const RING_SLOTS_MAX: u64 = 1 << 20;
/// The part of what is shared out that connections get by default, as a divisor.
const CONNECTIONS_SHARE: u64 = 4;
/// Connections of a shard that the defaults do not go below, however little memory there is.
const CONNECTIONS_LEAST: u64 = 64;
/// Most connections a shard can hold.
const CONNECTIONS_LIMIT: u64 = RING_SLOTS_MAX - SLOTS_RESERVED as u64;
const SECS_MAX: u64 = 3_600;
/// Clocks that are further apart are to be set, not tolerated.
const LEEWAY_SECS_MAX: u64 = 300;
/// Longest issuer or audience demanded of tokens, bytes.
const CLAIM_BYTES_MAX: usize = 256;
pub(super) const RATE_MAX: u64 = 1_000_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Size of one receive buffer: what most reads take fits, and the waste of a small frame stays small.
const RECV_BUFFER_BYTES: u64 = 4 * KIB;
const RECV_BUFFERS_MIN: u64 = 64;
const RECV_BUFFERS_MAX: u64 = 32_768;
/// A message's own room in a mailbox or among the unacknowledged ones, its payload aside: a little more than both need.
const MESSAGE_OVERHEAD_BYTES: u64 = 128;
/// From so much available memory on, memory_max is three quarters of it.
const SMALL_MEMORY_MAX: u64 = 96 * MIB;
/// Presence writes that wait for Redis, by default: as many as memory allows between these.
const PRESENCE_QUEUE_LEAST: u64 = 4_096;
pub(super) const PRESENCE_QUEUE_MOST: u64 = 1_000_000;
/// Messages that other nodes are to answer, in each shard, by default: never fewer than this.
const SENT_AWAY_LEAST: u64 = 1_024;
/// Open calls of a shard, by default: as many as memory allows between these.
const CALLS_LEAST: u64 = 1_024;
const CALLS_MOST: u64 = 65_536;

/// Settings being judged, and where they come from.
pub(super) struct Judge {
    pub(super) origins: Origins,
}

impl Judge {
    pub(super) fn refuse<T>(
        &self,
        key: &'static str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Result<T, ConfigError> {
        Err(ConfigError::Value { key, value: value.to_string(), origin: self.origins.of(key), allowed: allowed.into() })
    }

    pub(super) fn count(
        &self,
        key: &'static str,
        value: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        if allowed.contains(&value) {
            return Ok(value);
        }
        self.refuse(key, value, format!("it must be {} to {}", allowed.start(), allowed.end()))
    }

    pub(super) fn size(
        &self,
        key: &'static str,
        value: Size,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        if allowed.contains(&value.0) {
            return Ok(value.0);
        }
        self.refuse(key, value, format!("it must be {} to {}", Size(*allowed.start()), Size(*allowed.end())))
    }

    /// Shares a size of the node out to its shards; each needs `least`, for the reason given.
    pub(super) fn share(
        &self,
        key: &'static str,
        value: Size,
        shards: u64,
        least: u64,
        why: &str,
    ) -> Result<usize, ConfigError> {
        let share = value.0 / shards;
        if share < least {
            let needed = Size(least.saturating_mul(shards));
            return self.refuse(key, value, format!("with {shards} shards it must be {needed} or more, so that {why}"));
        }
        Ok(usize::try_from(share).unwrap_or(usize::MAX))
    }
}

/// The value of a setting that has a default, and so is there by the time it is judged.
pub(super) fn known<T>(value: Option<T>) -> T {
    value.expect("every setting but those about keys of tokens and Redis has a default")
}

pub(super) fn resolve(sources: Sources, host: &Host) -> Result<Config, ConfigError> {
    let judge = Judge { origins: sources.origins.clone().unwrap_or_else(|| origins(&sources)) };
    let Sources { command, file, mut faults, .. } = sources;
    let (mut is_whole, mut path, mut in_file) = (true, None, Settings::default());
    if let Some(file) = file {
        faults.extend(file.faults);
        (is_whole, path, in_file) = (file.is_toml, Some(file.path), file.settings);
    }
    let mut given = command.or(in_file);
    // After a mistake in the form of the file, a setting that is missed may just stand behind it.
    loop {
        if !is_whole {
            break;
        }
        let error = match judged(&given, path.clone(), &judge, host) {
            Ok(config) if faults.is_empty() => return Ok(config),
            Ok(_) => break,
            Err(error) => error,
        };
        // Look on without what is refused, so that all faults are told at once.
        let keys = refused(&error, &given, &judge.origins);
        faults.push(error);
        if keys.is_empty() {
            break;
        }
        for key in keys {
            given = given.without(key);
            // What follows from a fault is none of its own.
            match key {
                "redis" => given.redis = Some("redis-cluster://127.0.0.1:1".into()),
                "auth" => (given.insecure_open, given.send) = (Some(true), None),
                "connect_hook" => given.send = None,
                _ => {}
            }
        }
    }
    Err(ConfigError::unless_none(faults).expect_err("it is left with a fault or by the return above"))
}

/// Keys that were given and that this error refuses.
fn refused(error: &ConfigError, given: &Settings, origins: &Origins) -> Vec<&'static str> {
    let keys = given.keys();
    match error {
        ConfigError::Value { key, .. } => keys.into_iter().filter(|given| given == key).collect(),
        // Conflicts name both sides. With Redis in it, it is about having a cluster or none, on which all the rest
        // depends.
        ConfigError::Conflict(message) => {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            // The path of the file names nothing, whatever its folders are called.
            let files = origins.0.values().filter(|origin| matches!(origin, Origin::File(..)));
            let message = files.fold(message.clone(), |message, file| message.replace(&format!("({file})"), ""));
            let words: Vec<&str> = message.split(|c| !is_word(c)).collect();
            let named: Vec<&str> = keys.into_iter().filter(|key| words.contains(key)).collect();
            if named.contains(&"redis") { Vec::new() } else { named }
        }
        _ => Vec::new(),
    }
}

fn judged(asked: &Settings, file: Option<PathBuf>, judge: &Judge, host: &Host) -> Result<Config, ConfigError> {
    let given = asked.clone().or(fixed_defaults());
    let shards = match given.shards {
        Some(shards) => judge.count("shards", shards, 1..=SHARDS_MAX.into())?,
        None => shards_default(&given, host, judge)?,
    };
    let Fitted { all, limits, room, total } = fitted(&given, shards, host, judge)?;
    let memory_max = known(all.memory_max).0;
    let remedies = if total > memory_max { remedies(asked, &given, shards, host, judge) } else { Vec::new() };

    let listen = listen(&all, judge)?;
    let reached: Vec<SocketAddr> = listen.iter().flat_map(Endpoint::addresses).collect();
    let http = known(all.http);
    let node = known(all.node.clone());
    if node.is_empty() || node.len() > NODE_NAME_CHARS_MAX || !node.chars().all(is_node_name_char) {
        return judge.refuse("node", format!("{node:?}"), "it must be 1 to 64 letters, digits, '.', '_' or '-'");
    }
    let log = known(all.log.clone());
    if let Err(error) = judge_filter(&log) {
        return judge.refuse("log", format!("{log:?}"), error);
    }
    let auth = auth(&all, &reached, judge)?;
    let cluster = cluster(&all, &fixed_defaults(), judge)?;
    let store = store(&all, judge)?;
    let services = services(&all, judge)?;
    let services_http = services_http(&all, judge)?;
    let webhooks = webhooks(&all, judge)?;
    let connect_hook = connect_hook(&all, judge)?;
    let mut upgrade = upgrade(&all, judge)?;
    let proxies = proxies(&all, judge)?;
    // Nothing but its address keeps anybody out of such a node, and no proxy's name leads to it.
    upgrade.loopback_names = auth == AuthConfig::Open
        && connect_hook.is_none()
        && proxies.is_empty()
        && upgrade.forwarding.is_empty()
        && listen.iter().all(|endpoint| matches!(endpoint.at, At::Ip(address) if address.ip().is_loopback()));
    let tls = tls(&all, judge)?;
    let http_tls = http_tls(&all, judge)?;
    apart(&reached, http, cluster.as_ref().map(|cluster| cluster.mesh), judge)?;
    let of_services =
        [("services_listen", services.as_ref().and_then(|services| services.listen)), ("services_http", services_http)];
    apart_from_services(&reached, http, &cluster, of_services, judge)?;
    let demo = demo(&all, http, &listen, judge)?;
    Ok(Config {
        auth,
        upgrade,
        proxies,
        tls,
        http_tls,
        cluster,
        store,
        services,
        services_http,
        webhooks,
        connect_hook,
        listen,
        http_access: http_access(&all, http, judge)?,
        demo,
        core_dumps: known(all.core_dumps),
        http,
        node,
        shards: shards as u16,
        memory_max,
        memory_available: host.memory_available,
        remedies,
        room,
        log,
        log_format: known(all.log_format),
        file,
        limits,
        asked: asked.clone(),
        effective: all,
        origins: judge.origins.clone(),
    })
}

/// Clients, the HTTP API and other nodes each need an address of their own.
fn apart(listen: &[SocketAddr], http: SocketAddr, mesh: Option<SocketAddr>, judge: &Judge) -> Result<(), ConfigError> {
    let taken = |key: &'static str, address: SocketAddr, others: &[SocketAddr], by: &'static str| match others
        .iter()
        .find(|other| overlap(address, **other))
    {
        Some(other) => {
            let allowed =
                format!("that is where {by} = {other} ({}) listens: choose another port", judge.origins.of(by));
            judge.refuse(key, address, allowed)
        }
        None => Ok(()),
    };
    taken("http", http, listen, "listen")?;
    if let Some(mesh) = mesh {
        taken("mesh", mesh, listen, "listen")?;
        taken("mesh", mesh, &[http], "http")?;
    }
    Ok(())
}

/// So do workers, and the back-ends that push.
fn apart_from_services(
    listen: &[SocketAddr],
    http: SocketAddr,
    cluster: &Option<ClusterConfig>,
    of_services: [(&'static str, Option<SocketAddr>); 2],
    judge: &Judge,
) -> Result<(), ConfigError> {
    let mesh = cluster.as_ref().map(|cluster| cluster.mesh);
    let mut taken = listen.iter().map(|address| ("listen", *address)).collect::<Vec<_>>();
    taken.push(("http", http));
    taken.extend(mesh.map(|mesh| ("mesh", mesh)));
    for (of_services, address) in of_services {
        let Some(own) = address else { continue };
        if let Some((key, address)) = taken.iter().find(|(_, address)| overlap(own, *address)) {
            let origin = judge.origins.of(key);
            let allowed = format!("that is where {key} = {address} ({origin}) listens: choose another port");
            return judge.refuse(of_services, own, allowed);
        }
        taken.push((of_services, own));
    }
    Ok(())
}

/// Whether the kernel would refuse the second of two sockets that listen on these.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let all = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (all || a.ip() == b.ip())
}

fn origins(sources: &Sources) -> Origins {
    let mut origins = Origins::default();
    let in_command = sources.command.keys();
    for setting in SETTINGS {
        let key = setting.key;
        let line = sources.file.as_ref().and_then(|file| Some(Origin::File(file.path.clone(), *file.lines.get(key)?)));
        let origin = if !in_command.contains(&key) {
            line
        } else if sources.from_environment.contains(&key) {
            Some(Origin::Environment(setting.env))
        } else {
            Some(Origin::Flag(flag(key)))
        };
        origins.0.extend(origin.map(|origin| (key, origin)));
    }
    origins
}

/// What memory_max is by default. The rest is for what the kernel holds for the connections, and for other processes.
pub(super) fn memory_max_default(host: &Host) -> u64 {
    let available = host.memory_available;
    // Where there is little the program itself is most of it, and there are few connections.
    (available / 4 * 3).max((available / 8 * 7).min(SMALL_MEMORY_MAX))
}

/// Fills in what nobody set and what depends on the machine or on other settings, such that the node shares out `room`
/// bytes.
pub(super) fn computed_defaults(given: Settings, shards: u64, host: &Host, room: Room) -> Settings {
    let mut all = given;
    all.memory_max.get_or_insert_with(|| Size(memory_max_default(host)));
    let frame = known(all.frame_bytes_max).0;
    let outbox = known(all.outbox_bytes_max).0;
    // Never so little that a shard could not work: a budget that does not fit is refused later, and then names this.
    let share = |part: u64, most: u64, least_per_shard: u64| {
        let per_shard = ((room.bytes / part).min(most) / shards).max(least_per_shard);
        Size((per_shard / KIB * KIB).max(least_per_shard).saturating_mul(shards))
    };
    let nofile = host.nofile_hard.saturating_sub(mesh_slots(&all).into());
    all.shards = Some(shards);
    all.store = Some(store_kind(&all));
    let message = frame + MESSAGE_OVERHEAD_BYTES;
    all.inbox_bytes_max.get_or_insert_with(|| Size((16 * MIB).max(message)));
    all.store_mail_bytes_max.get_or_insert_with(|| Size((32 * MIB).max(4 * message)));
    all.store_users_max
        .get_or_insert_with(|| (room.bytes / 32 / STORE_USER_BYTES).clamp(STORE_USERS_LEAST, STORE_USERS_MOST));
    all.store_bytes_max.get_or_insert_with(|| Size((room.bytes / MIB * MIB).clamp(STORE_BYTES_LEAST, 16 * GIB)));
    all.store_recent_bytes_max.get_or_insert_with(|| Size((room.bytes / 128).clamp(STORE_RECENT_LEAST, 64 * MIB)));
    all.group_memberships_max
        .get_or_insert_with(|| (room.bytes / 32 / MEMBERSHIP_STORED_BYTES).clamp(MEMBERSHIPS_LEAST, MEMBERSHIPS_MOST));
    all.group_queue_bytes_max.get_or_insert_with(|| {
        let each = ((room.bytes / 128).min(256 * MIB) / shards).min(4 * MIB) / KIB * KIB;
        Size(each.max(2 * frame))
    });
    all.send_bytes_max.get_or_insert_with(|| share(64, GIB, SEND_BYTES_LEAST));
    all.watch.get_or_insert_with(|| watch_default(all.auth));
    all.watch_bytes_max.get_or_insert_with(|| share(64, GIB, WATCH_BYTES_LEAST));
    all.node.get_or_insert_with(|| host.name.clone());
    if let (None, Some(first)) = (&all.advertise, all.listen.as_ref().and_then(|listen| listen.first())) {
        all.advertise = Some(first.reached());
    }
    all.connections_max.get_or_insert_with(|| connections_default(nofile, room, shards));
    all.mesh_bytes_max
        .get_or_insert_with(|| share(16, 512 * MIB, 2 * MESH_LINK_SHARE as u64 * (frame + MESSAGE_OVERHEAD_BYTES)));
    all.outbox_total_bytes_max.get_or_insert_with(|| share(8, GIB, 4 * outbox));
    let total = known(all.outbox_total_bytes_max).0 / shards;
    all.outbox_burst_bytes_max.get_or_insert_with(|| Size((total / 4).min(4 * MIB).max(outbox)));
    all.unacked_total_bytes_max.get_or_insert_with(|| share(16, 512 * MIB, 2 * (frame + MESSAGE_OVERHEAD_BYTES)));
    let total = known(all.unacked_total_bytes_max).0 / shards;
    all.unacked_bytes_max.get_or_insert_with(|| Size((total / 8).min(GIB).max(frame + MESSAGE_OVERHEAD_BYTES)));
    all.partial_bytes_max.get_or_insert_with(|| share(32, 256 * MIB, 4 * frame));
    all.mailbox_bytes_max.get_or_insert_with(|| {
        let pairs = (shards * (shards - 1)).max(1);
        let per_pair = ((room.bytes / 32).min(256 * MIB) / pairs).min(4 * MIB) / KIB * KIB;
        Size(per_pair.max(frame + MESSAGE_OVERHEAD_BYTES))
    });
    all.recv_buffer_bytes.get_or_insert_with(|| {
        let each = (64 * MIB / shards).min(room.bytes / 16 / shards).min(4 * MIB);
        let buffers = (each / RECV_BUFFER_BYTES).max(RECV_BUFFERS_MIN);
        Size((1 << buffers.ilog2()) * RECV_BUFFER_BYTES * shards)
    });
    all.calls_kept_bytes_max.get_or_insert_with(|| share(64, 64 * MIB * shards, 2 * (frame + KIB)));
    all.calls_max.get_or_insert_with(|| (room.bytes / 128 / shards / CALL_BYTES as u64).clamp(CALLS_LEAST, CALLS_MOST));
    all.portal_bytes_max.get_or_insert_with(|| share(64, 4 * MIB * shards, portal_bytes_least(frame)));
    let upstream = (room.bytes / 64).min(64 * MIB).max(4 * (frame + KIB));
    all.upstream_bytes_max.get_or_insert_with(|| Size(upstream / KIB * KIB));
    let webhooks = all.webhook.as_ref().map_or(1, Vec::len).max(1) as u64;
    let waiting = (room.bytes / 64).min(WEBHOOK_BYTES).max(WEBHOOK_BYTES_LEAST * webhooks);
    all.webhook_bytes_max.get_or_insert_with(|| Size(waiting / KIB * KIB));
    all.pushes_open_max.get_or_insert_with(|| (room.bytes / 64 / OPEN_BYTES).clamp(PUSHES_OPEN_LEAST, PUSHES_OPEN));
    let in_cluster = all.redis.is_some();
    all.presence_queue_max.get_or_insert_with(|| match in_cluster {
        true => (room.bytes / 16 / PRESENCE_WRITE_BYTES).clamp(PRESENCE_QUEUE_LEAST, PRESENCE_QUEUE_MOST),
        // It takes no memory there, and means nothing.
        false => PRESENCE_QUEUE_MOST,
    });
    all
}

/// Slots of a shard for connections to other nodes.
fn mesh_slots(all: &Settings) -> u32 {
    if all.redis.is_some() { crate::mesh::peers::CONNECTIONS_MAX } else { 0 }
}

/// The most connections of each shard that the limit on open files, the ring and what is shared out allow.
pub(crate) fn connections_default(nofile_hard: u64, room: Room, shards: u64) -> u64 {
    let bytes_max = room.bytes / CONNECTIONS_SHARE / room.homes / shards;
    let in_kernel = room.kernel_bytes / KERNEL_BYTES_PER_CONNECTION / shards;
    let allowed = nofile_hard.saturating_sub(SLOTS_RESERVED.into()).clamp(1, CONNECTIONS_LIMIT);
    let least = CONNECTIONS_LEAST.min(allowed);
    let mut connections = allowed.min(in_kernel).max(least);
    while connections > least && connections_bytes(connections) > bytes_max {
        connections -= connections.div_ceil(16);
    }
    connections.max(least)
}

pub(super) fn limits(all: &Settings, shards: u64, room: Room, judge: &Judge) -> Result<Limits, ConfigError> {
    let secs = |key, value: Option<u64>| judge.count(key, known(value), 1..=SECS_MAX);
    let frame_bytes_max = judge.size(
        "frame_bytes_max",
        known(all.frame_bytes_max),
        FRAME_BYTES_MAX_FLOOR.into()..=FRAME_BYTES_MAX_LIMIT.into(),
    )?;
    let message_bytes_max = frame_bytes_max + MESSAGE_OVERHEAD_BYTES;
    if all.redis.is_some() && message_bytes_max > RECORD_BYTES_MAX as u64 {
        let longest = Size(RECORD_BYTES_MAX as u64 - MESSAGE_OVERHEAD_BYTES);
        let allowed =
            format!("in a cluster it must be {longest} or less, so that a message fits one record between nodes");
        return judge.refuse("frame_bytes_max", Size(frame_bytes_max), allowed);
    }
    let outbox = known(all.outbox_bytes_max);
    let outbox_bytes_max = judge.size("outbox_bytes_max", outbox, frame_bytes_max..=GIB)?;
    let mailbox = known(all.mailbox_bytes_max);
    let mailbox_bytes_max = judge.size("mailbox_bytes_max", mailbox, message_bytes_max..=GIB)?;
    let share = |key, value: Option<Size>, least, why| judge.share(key, known(value), shards, least, why);
    let heartbeat_secs_min = secs("heartbeat_secs_min", all.heartbeat_secs_min)?;
    let heartbeat_secs_max = secs("heartbeat_secs_max", all.heartbeat_secs_max)?;
    if heartbeat_secs_min > heartbeat_secs_max {
        return Err(ConfigError::Conflict(format!(
            "heartbeat_secs_min = {heartbeat_secs_min} ({}) is more than heartbeat_secs_max = {heartbeat_secs_max} \
             ({})",
            judge.origins.of("heartbeat_secs_min"),
            judge.origins.of("heartbeat_secs_max"),
        )));
    }
    let heartbeat_secs = known(all.heartbeat_secs);
    if !(heartbeat_secs_min..=heartbeat_secs_max).contains(&heartbeat_secs) {
        let allowed = format!(
            "it must be heartbeat_secs_min to heartbeat_secs_max, {heartbeat_secs_min} to {heartbeat_secs_max}"
        );
        return judge.refuse("heartbeat_secs", heartbeat_secs, allowed);
    }
    let rate = |key, value: Option<u64>| judge.count(key, known(value), 0..=RATE_MAX);
    // Without a certificate there is nothing to limit.
    let has_tls = all.tls_cert.as_ref().is_some_and(|certs| !certs.is_empty());
    let of_tls = |key, value: Option<u64>, allowed| {
        judge.count(key, known(value), allowed).map(|count| if has_tls { count as u32 } else { 0 })
    };
    let mesh_slots = mesh_slots(all);
    let connections_limit = CONNECTIONS_LIMIT - u64::from(mesh_slots);
    let connections_max = judge.count("connections_max", known(all.connections_max), 1..=connections_limit)? as u32;
    let store = store_limits(all, message_bytes_max, judge)?;
    let mut limits = Limits {
        connections_max,
        login_timeout_ms: secs("login_timeout_secs", all.login_timeout_secs)? * 1_000,
        heartbeat_secs_min: heartbeat_secs_min as u32,
        heartbeat_secs_max: heartbeat_secs_max as u32,
        heartbeat_secs: heartbeat_secs as u32,
        frame_bytes_max: frame_bytes_max as u32,
        outbox_bytes_max: outbox_bytes_max as usize,
        outbox_burst_bytes_max: judge.size(
            "outbox_burst_bytes_max",
            known(all.outbox_burst_bytes_max),
            outbox_bytes_max..=GIB,
        )? as usize,
        outbox_full_ms_max: secs("outbox_full_secs", all.outbox_full_secs)? * 1_000,
        outbox_total_bytes_max: share(
            "outbox_total_bytes_max",
            all.outbox_total_bytes_max,
            outbox_bytes_max,
            "each has room for one full queue (outbox_bytes_max)",
        )?,
        mailbox_bytes_max: mailbox_bytes_max as usize,
        unacked_per_user_max: judge.count("unacked_max", known(all.unacked_max), 1..=65_536)? as usize,
        unacked_bytes_per_user_max: judge.size(
            "unacked_bytes_max",
            known(all.unacked_bytes_max),
            message_bytes_max..=GIB,
        )? as usize,
        turn_units_max: judge.count("frames_per_turn", known(all.frames_per_turn), 64..=32_768)? as u16,
        unsent_bytes_max: judge.size("unsent_bytes_max", known(all.unsent_bytes_max), 4 * KIB..=16 * MIB)? as u32,
        tcp_user_timeout_ms: secs("tcp_user_timeout_secs", all.tcp_user_timeout_secs)? * 1_000,
        unacked_total_bytes_max: share(
            "unacked_total_bytes_max",
            all.unacked_total_bytes_max,
            message_bytes_max,
            "each has room for the longest message (frame_bytes_max)",
        )?,
        redeliver_ms: secs("redeliver_secs", all.redeliver_secs)? * 1_000,
        redeliver_attempts_max: judge.count("redeliver_attempts_max", known(all.redeliver_attempts_max), 0..=255)?
            as u8,
        frames_per_sec: rate("frames_per_sec", all.frames_per_sec)? as u32,
        logins_per_sec: rate("logins_per_sec", all.logins_per_sec)? as u32,
        accepts_per_turn: judge.count("accepts_per_turn", known(all.accepts_per_turn), 1..=4_096)? as u32,
        devices_per_user_max: judge.count("devices_max", known(all.devices_max), 1..=DEVICES_PER_USER_LIMIT as u64)?
            as usize,
        recv_buffers: recv_buffers(known(all.recv_buffer_bytes), shards, judge)?,
        recv_buffer_bytes: RECV_BUFFER_BYTES as u32,
        partial_total_bytes_max: share(
            "partial_bytes_max",
            all.partial_bytes_max,
            frame_bytes_max,
            "each has room for the longest frame (frame_bytes_max)",
        )?,
        read_mode: known(all.read_mode).into(),
        hot_idle_ms: secs("hot_idle_secs", all.hot_idle_secs)? * 1_000,
        drain_ms: judge.count("drain_secs", known(all.drain_secs), 0..=SECS_MAX)? * 1_000,
        mesh_bytes_max: share(
            "mesh_bytes_max",
            all.mesh_bytes_max,
            MESH_LINK_SHARE as u64 * message_bytes_max,
            "each link has room for the longest message (frame_bytes_max)",
        )?,
        // As many as there may be sessions here: homes and sessions are spread alike.
        remote_sessions_max: if mesh_slots > 0 { connections_max } else { 0 },
        mesh_slots,
        store_after_ms: store.after_ms,
        inbox_messages_max: store.messages_max,
        inbox_bytes_max: store.bytes_max,
        inbox_age_secs: store.age_secs,
        device_age_secs: store.device_age_secs,
        store_mail_bytes_max: store.mail_bytes_max,
        store_bytes_max: store.store_bytes_max,
        store_users_max: store.users_max,
        store_recent_bytes_max: store.recent_bytes_max,
        groups: group_limits(all, frame_bytes_max, judge)?,
        send: send_limits(all, shards, judge)?,
        watch: watch_limits(all, shards, judge)?,
        tls_handshakes_max: of_tls("tls_handshakes_max", all.tls_handshakes_max, 16..=65_536)?,
        tls_handshakes_per_turn: of_tls("tls_handshakes_per_turn", all.tls_handshakes_per_turn, 1..=64)?,
        ..Limits::default()
    };
    call_limits(&mut limits, all, shards, judge)?;
    push_limits(&mut limits, all, shards, judge)?;
    webhook_limits(&mut limits, all, judge)?;
    hook_limits(&mut limits, all, judge)?;
    per_address(&mut limits, all, shards, judge)?;
    limits.parked_bytes_max = parked_bytes_max(room, shards, message_bytes_max);
    limits.sent_away_max = sent_away_max(room, shards);
    Ok(limits)
}

/// Bytes of messages that wait for a home, in each shard: a sixty-fourth of what is shared out.
fn parked_bytes_max(room: Room, shards: u64, message_bytes_max: u64) -> usize {
    let most = Limits::default().parked_bytes_max as u64;
    (room.bytes / 64 / shards).min(most).max(2 * message_bytes_max) as usize
}

/// Messages of each shard that other nodes are to answer: a thirty-second of what is shared out.
fn sent_away_max(room: Room, shards: u64) -> usize {
    let most = Limits::default().sent_away_max as u64;
    (room.bytes / 32 / shards / AWAY_BYTES).clamp(SENT_AWAY_LEAST, most) as usize
}

/// Receive buffers of each shard: its share, rounded down to a power of two.
fn recv_buffers(bytes: Size, shards: u64, judge: &Judge) -> Result<u16, ConfigError> {
    let unit = RECV_BUFFER_BYTES * shards;
    let allowed = RECV_BUFFERS_MIN * unit..=2 * RECV_BUFFERS_MAX * unit - 1;
    if !allowed.contains(&bytes.0) {
        let (least, most) = (Size(RECV_BUFFERS_MIN * unit), Size(RECV_BUFFERS_MAX * unit));
        return judge.refuse("recv_buffer_bytes", bytes, format!("with {shards} shards it must be {least} to {most}"));
    }
    Ok(1 << (bytes.0 / unit).ilog2())
}

fn http_access(all: &Settings, http: SocketAddr, judge: &Judge) -> Result<HttpAccess, ConfigError> {
    let insecure_open = known(all.http_insecure_open);
    match &all.api_keys_file {
        Some(_) if insecure_open => judge.refuse(
            "http_insecure_open",
            "true",
            "this is for an API without keys, and api_keys_file is given: leave one of them out",
        ),
        None if !http.ip().is_loopback() && !insecure_open => judge.refuse(
            "http",
            http,
            "this is not loopback, and without keys whoever reaches it may end sessions and drain the node: \
             give --api-keys-file FILE (gateway api-key makes a key), or say --http-insecure-open if that is what you \
             want",
        ),
        keys_file => Ok(HttpAccess { keys_file: keys_file.clone(), insecure_open }),
    }
}

fn demo(all: &Settings, http: SocketAddr, listen: &[Endpoint], judge: &Judge) -> Result<bool, ConfigError> {
    let ports = || listen.iter().filter(|endpoint| !endpoint.addresses().is_empty());
    if known(all.demo) && ports().next().is_none() {
        return judge.refuse("demo", "true", "its page connects to a port, and listen names Unix sockets only");
    }
    if known(all.demo) && (known(all.tls_required) || ports().all(|endpoint| endpoint.tls_only)) {
        let allowed = "its page connects with ws://, in clear, and every port takes TLS only: leave demo out, \
                       or let one port take both";
        return judge.refuse("demo", "true", allowed);
    }
    if known(all.demo) && !http.ip().is_loopback() && !known(all.http_insecure_open) {
        let allowed = format!(
            "http = {http} is not loopback, so the page would be served to whoever reaches it: \
             leave it out, or say --http-insecure-open, without keys, if that is what you want"
        );
        return judge.refuse("demo", "true", allowed);
    }
    if known(all.demo) && all.http_tls_cert.is_some() {
        let allowed = "http_tls_cert is set, and a browser lets no page that came over https connect with ws://: \
                       leave one of them out";
        return judge.refuse("demo", "true", allowed);
    }
    Ok(known(all.demo))
}

fn auth(all: &Settings, listen: &[SocketAddr], judge: &Judge) -> Result<AuthConfig, ConfigError> {
    let hs256_secret_files = all.jwt_hs256_secret_file.clone().unwrap_or_default();
    let ed25519_public_key_files = all.jwt_ed25519_public_key_file.clone().unwrap_or_default();
    let keys = !hs256_secret_files.is_empty() || !ed25519_public_key_files.is_empty();
    let leeway_s = judge.count("jwt_leeway_secs", known(all.jwt_leeway_secs), 0..=LEEWAY_SECS_MAX)?;
    let issuers = demanded("jwt_issuer", &all.jwt_issuer, judge)?;
    let audiences = demanded("jwt_audience", &all.jwt_audience, judge)?;
    let ids = || hs256_secret_files.iter().chain(&ed25519_public_key_files).filter_map(|file| file.id.as_ref());
    if let Some(id) = ids().enumerate().find_map(|(at, id)| ids().take(at).any(|other| other == id).then_some(id)) {
        return Err(ConfigError::Conflict(format!(
            "two keys have the id {id}: jwt_hs256_secret_file ({}) and jwt_ed25519_public_key_file ({}) must name each \
             kid once",
            judge.origins.of("jwt_hs256_secret_file"),
            judge.origins.of("jwt_ed25519_public_key_file"),
        )));
    }
    match known(all.auth) {
        AuthKind::Jwt if hs256_secret_files.len() + ed25519_public_key_files.len() > KEYS_MAX => {
            let key =
                if hs256_secret_files.is_empty() { "jwt_ed25519_public_key_file" } else { "jwt_hs256_secret_file" };
            let files = hs256_secret_files.len() + ed25519_public_key_files.len();
            judge.refuse(key, format!("{files} files"), format!("there may be {KEYS_MAX} keys of both kinds together"))
        }
        AuthKind::Jwt if keys => {
            Ok(AuthConfig::Jwt { hs256_secret_files, ed25519_public_key_files, issuers, audiences, leeway_s })
        }
        AuthKind::Jwt => judge.refuse(
            "auth",
            "jwt",
            "it needs a key: give --jwt-hs256-secret-file FILE or --jwt-ed25519-public-key-file FILE, or both",
        ),
        // Whoever names a key means it to be used.
        AuthKind::Open if keys => {
            judge.refuse("auth", "open", "a key for JWT is given but not used: set auth to jwt, or leave the key out")
        }
        AuthKind::Open if !issuers.is_empty() || !audiences.is_empty() => judge.refuse(
            "auth",
            "open",
            "an issuer or audience is demanded of tokens, and with auth open nobody needs one: set auth to jwt, or \
             leave it out",
        ),
        AuthKind::Open => match listen.iter().find(|address| !address.ip().is_loopback()) {
            Some(address) if all.insecure_open != Some(true) => judge.refuse(
                "listen",
                address,
                "this is not loopback, and with auth open whoever reaches it may log in as anybody: \
                 use --auth jwt, or say --insecure-open if that is what you want",
            ),
            _ => Ok(AuthConfig::Open),
        },
    }
}

/// The values one of which a token must name.
fn demanded(key: &'static str, values: &Option<Vec<String>>, judge: &Judge) -> Result<Vec<String>, ConfigError> {
    let values = values.clone().unwrap_or_default();
    match values.iter().find(|value| value.is_empty() || value.len() > CLAIM_BYTES_MAX) {
        Some(value) => judge.refuse(key, format!("{value:?}"), format!("each must have 1 to {CLAIM_BYTES_MAX} bytes")),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests;
