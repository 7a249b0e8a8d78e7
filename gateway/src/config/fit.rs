//! Defaults that fit: how much there is to share out, and what helps when even the least does not fit.
//!
//! What a setting that nobody set comes to follows from the bytes that are shared out, its [`Room`]. That begins with
//! all of memory_max and is taken back until the sum of the budget fits, so a new term of the budget, fixed or growing
//! with anything, never makes the defaults contradict it.

use super::resolve::{Judge, computed_defaults, known, limits, memory_max_default};
use super::{Config, ConfigError, Host, Settings, Size};
use crate::budget::Budget;
use crate::limits::{Limits, SHARDS_MAX};

const MIB: u64 = 1 << 20;
/// Of memory_max, as a divisor, what the number of shards leaves to be shared out by default.
const SHARED_LEAST: u64 = 4;

/// What the defaults share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes of this process.
    pub(crate) bytes: u64,
    /// Bytes the kernel may hold for idle connections.
    pub(crate) kernel_bytes: u64,
    /// Sessions a shard has room for, for each connection: in a cluster a home has as many on other nodes as here.
    pub(crate) homes: u64,
}

impl Budget {
    /// The budget of a configuration.
    pub fn of(config: &Config) -> Self {
        let queue = config.cluster.as_ref().map(|cluster| cluster.presence_queue_max as u64);
        let mut budget = Budget {
            memory_available: config.memory_available,
            remedies: config.remedies.clone(),
            ..Budget::of_limits(config.limits(), config.shards, queue, config.memory_max)
        };
        if config.http_tls.is_some() {
            budget.add_http_tls(config.services_http.is_some());
        }
        budget
    }
}

/// Settings that fit, or the least there are.
pub(super) struct Fitted {
    pub(super) all: Settings,
    pub(super) limits: Limits,
    pub(super) room: Room,
    /// What the budget comes to.
    pub(super) total: u64,
}

/// The defaults for so many shards, as large as they fit memory_max.
pub(super) fn fitted(given: &Settings, shards: u64, host: &Host, judge: &Judge) -> Result<Fitted, ConfigError> {
    let memory_max = given.memory_max.map_or_else(|| memory_max_default(host), |size| size.0);
    let mut bytes = memory_max;
    loop {
        let room = room(given, bytes, memory_max, host);
        let fitted = with_room(given, shards, host, room, judge)?;
        let excess = fitted.total.saturating_sub(memory_max);
        if excess == 0 || bytes == 0 {
            return Ok(fitted);
        }
        bytes = bytes.saturating_sub(excess.max(memory_max / 64));
    }
}

/// The least that so many shards need.
fn least(given: &Settings, shards: u64, host: &Host, judge: &Judge) -> Result<u64, ConfigError> {
    let memory_max = given.memory_max.map_or_else(|| memory_max_default(host), |size| size.0);
    with_room(given, shards, host, room(given, 0, memory_max, host), judge).map(|fitted| fitted.total)
}

fn room(given: &Settings, bytes: u64, memory_max: u64, host: &Host) -> Room {
    Room {
        bytes,
        // Whoever gives all there is to the process still gets connections, and a word at start.
        kernel_bytes: host.memory_available.saturating_sub(memory_max).max(host.memory_available / 16),
        homes: if given.redis.is_some() { 2 } else { 1 },
    }
}

fn with_room(given: &Settings, shards: u64, host: &Host, room: Room, judge: &Judge) -> Result<Fitted, ConfigError> {
    let all = computed_defaults(given.clone(), shards, host, room);
    let limits = limits(&all, shards, room, judge)?;
    let queue = all.redis.as_ref().and(all.presence_queue_max);
    let mut budget = Budget::of_limits(&limits, shards as u16, queue, known(all.memory_max).0);
    if all.http_tls_cert.is_some() {
        budget.add_http_tls(all.services_http.is_some());
    }
    Ok(Fitted { all, limits, room, total: budget.total() })
}

/// One shard for each core, as long as what they need at least leaves a quarter of memory_max to be shared out.
pub(super) fn shards_default(given: &Settings, host: &Host, judge: &Judge) -> Result<u64, ConfigError> {
    let memory_max = given.memory_max.map_or_else(|| memory_max_default(host), |size| size.0);
    let mut shards = host.cores.clamp(1, SHARDS_MAX.into());
    while shards > 1 && least(given, shards, host, judge)? > memory_max - memory_max / SHARED_LEAST {
        shards -= 1;
    }
    Ok(shards)
}

type Lowered = (&'static str, fn(&mut Settings) -> Option<&mut u64>);

/// Settings that make the budget smaller when they are lowered.
const LOWERED: [Lowered; 26] = [
    ("--connections-max", |all| all.connections_max.as_mut()),
    ("--outbox-total-bytes-max", |all| all.outbox_total_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--outbox-bytes-max", |all| all.outbox_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--unacked-total-bytes-max", |all| all.unacked_total_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--partial-bytes-max", |all| all.partial_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--mailbox-bytes-max", |all| all.mailbox_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--recv-buffer-bytes", |all| all.recv_buffer_bytes.as_mut().map(|size| &mut size.0)),
    ("--mesh-bytes-max", |all| all.mesh_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--frame-bytes-max", |all| all.frame_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--presence-queue-max", |all| all.presence_queue_max.as_mut()),
    ("--store-bytes-max", |all| all.store_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--store-users-max", |all| all.store_users_max.as_mut()),
    ("--store-recent-bytes-max", |all| all.store_recent_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--group-memberships-max", |all| all.group_memberships_max.as_mut()),
    ("--group-queue-bytes-max", |all| all.group_queue_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--send-bytes-max", |all| all.send_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--watch-bytes-max", |all| all.watch_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--portal-bytes-max", |all| all.portal_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--upstream-bytes-max", |all| all.upstream_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--upstream-conns-max", |all| all.upstream_conns_max.as_mut()),
    ("--webhook-bytes-max", |all| all.webhook_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--connect-hook-waiting-max", |all| all.connect_hook_waiting_max.as_mut()),
    ("--connect-hook-requests-max", |all| all.connect_hook_requests_max.as_mut()),
    ("--connect-hook-cache-bytes-max", |all| all.connect_hook_cache_bytes_max.as_mut().map(|size| &mut size.0)),
    ("--pushes-open-max", |all| all.pushes_open_max.as_mut()),
    ("--shards", |all| all.shards.as_mut()),
];

/// What helps when the budget of `given` does not fit: flags and values, each of which is enough by itself and was
/// tried here.
pub(super) fn remedies(asked: &Settings, given: &Settings, shards: u64, host: &Host, judge: &Judge) -> Vec<String> {
    let fits = |given: &Settings| {
        let shards = match given.shards {
            Some(shards) => shards,
            None => shards_default(given, host, judge).ok()?,
        };
        let memory_max = given.memory_max.map_or_else(|| memory_max_default(host), |size| size.0);
        fitted(given, shards, host, judge).ok().map(|fitted| fitted.total <= memory_max)
    };
    let mut remedies = Vec::new();
    let mut smaller = given.clone();
    for (flag, place) in LOWERED {
        // Only what somebody set: what nobody set is as small as it gets already.
        if place(&mut asked.clone()).is_none() {
            continue;
        }
        let mut trial = given.clone();
        while let Some(value) = place(&mut trial).filter(|value| **value > 1) {
            *value = lower(*value);
            let lowered = *value;
            // Below what is allowed nothing helps any more.
            let Some(fits) = fits(&trial) else { break };
            if fits {
                let sized = flag.ends_with("bytes-max") || flag.ends_with("buffer-bytes");
                let value = if sized { Size(lowered).to_string() } else { lowered.to_string() };
                remedies.push(format!("{flag} {value}"));
                break;
            }
        }
        if let (Some(value), Some(least)) = (place(&mut smaller), place(&mut trial)) {
            *value = *least;
        }
    }
    let mut larger = given.clone();
    if let Ok(needed) = least(given, shards, host, judge) {
        let needed = needed.div_ceil(MIB).saturating_mul(MIB);
        larger.memory_max = Some(Size(needed));
        if needed <= host.memory_available && fits(&larger) == Some(true) {
            remedies.push(format!("--memory-max {}", Size(needed)));
        }
        if remedies.is_empty() {
            // Of what is available the process gets three quarters.
            remedies.push(format!(
                "a machine or a control group with {}",
                Size((needed / 3).div_ceil(MIB).saturating_mul(4 * MIB))
            ));
        }
    }
    remedies
}

/// The next smaller value to try: a quarter less, whole in its unit, so that it is written as a short number.
fn lower(value: u64) -> u64 {
    let less = value / 4 * 3;
    let unit = if less >= 16 * MIB {
        MIB
    } else if less >= 16 << 10 {
        1 << 10
    } else {
        1
    };
    if value < 8 { value - 1 } else { less / unit * unit }
}

#[cfg(test)]
mod tests;
