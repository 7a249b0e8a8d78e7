//! How many connections a host will hold with a configuration, and which limit binds first.

use super::facts::Facts;
use super::report::grouped;
use crate::budget::Budget;
use crate::config::{Config, Origin, RING_SLOTS_MAX, Size, connections_default};
use crate::limits::SLOTS_RESERVED;
use crate::shard::SHARDS_MAX;
use serde::Serialize;

/// What the kernel takes for an idle connection, measured 3,973 to 4,100 B: the budget takes the most, a prediction
/// what is usual.
const KERNEL_BYTES: u64 = 4_000;
/// What the process takes for one, measured 140 to 200 B: slot, timer, user, and the allocator's share.
const PROCESS_BYTES: u64 = 170;
/// The socket proper, which kernels and groups that charge sockets to nobody leave out of a group's account: 1,638 B a
/// connection were measured in a group of version 1.
const SOCKET_BYTES: u64 = 2_368;
/// What the process takes before the first connection, and each of its shards besides receive buffers, rings in the
/// kernel included. Measured with 1 to 8 shards: 14, 18, 28 and 47 MiB with 4 MiB of buffers in each.
const IDLE_PROCESS_BYTES: u64 = (9 << 20) + (512 << 10);
const IDLE_SHARD_BYTES: u64 = 1 << 20;
/// From here on the limit on open files of the system is none; systemd sets it to the largest number there is.
const FILES_NO_LIMIT: u64 = 1 << 60;
/// The kernel's table of direct descriptors: a pointer and a bit for each slot.
const TABLE_BYTES_PER_SLOT: u64 = 9;

/// What one limit allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Term {
    /// The limit.
    pub limit: &'static str,
    /// Connections it allows this node.
    pub connections: u64,
    /// The arithmetic.
    pub how: String,
    /// How it is raised so that the target fits.
    pub raise: String,
}

/// What all limits allow together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Connections this host will hold.
    pub connections: u64,
    /// The limit that binds first.
    pub binds_first: &'static str,
    /// Every limit, the one that binds first in front.
    pub terms: Vec<Term>,
}

/// Predicts from what the host tells and what the configuration came to. The target is only for the advice how to raise
/// each limit.
pub fn predict(facts: &Facts, config: &Config, target: u64) -> Prediction {
    let mut terms = vec![ring_table(config, target), open_files(facts, config, target), budget(config)];
    terms.push(if config.origin("connections_max") == Origin::Default {
        share(config)
    } else {
        connections_max(config, target)
    });
    terms.extend(system_files(facts, target));
    terms.extend(machine_memory(facts, config, target));
    terms.extend(group_memory(facts, config, target));
    terms.extend(conntrack(facts, target));
    terms.sort_by_key(|term| term.connections);
    Prediction { connections: terms[0].connections, binds_first: terms[0].limit, terms }
}

fn shards(config: &Config) -> u64 {
    config.shards.into()
}

/// Slots each shard's table needs for the target; none when no table is that large.
fn each_wanted(config: &Config, target: u64) -> Option<u64> {
    Some(target.div_ceil(shards(config)) + u64::from(SLOTS_RESERVED)).filter(|wanted| *wanted <= RING_SLOTS_MAX)
}

fn more_shards(target: u64) -> String {
    let least = target.div_ceil(RING_SLOTS_MAX - u64::from(SLOTS_RESERVED));
    format!("--shards {least}, with LimitNOFILE=1048576")
}

fn open_files(facts: &Facts, config: &Config, target: u64) -> Term {
    let reserved = u64::from(SLOTS_RESERVED);
    let each = facts.nofile_hard.min(u64::MAX / 1_024).saturating_sub(reserved).min(RING_SLOTS_MAX - reserved);
    let hard = if facts.nofile_hard == u64::MAX { "none".to_owned() } else { grouped(facts.nofile_hard) };
    Term {
        limit: "the hard limit on open files",
        connections: each * shards(config),
        how: format!("{} shards x ({hard} - {reserved} spare slots, 2^20 slots at most)", config.shards),
        raise: match each_wanted(config, target) {
            Some(wanted) => {
                let more = if each == 0 { u64::MAX } else { target.div_ceil(each) };
                let shards = if more <= SHARDS_MAX.into() { format!("; or --shards {more}") } else { String::new() };
                format!("LimitNOFILE={wanted} in the systemd unit, nofile {wanted} in /etc/security/limits.d/{shards}")
            }
            None => more_shards(target),
        },
    }
}

fn ring_table(config: &Config, target: u64) -> Term {
    let each = RING_SLOTS_MAX - u64::from(SLOTS_RESERVED);
    Term {
        limit: "the descriptor tables of io_uring",
        connections: each * shards(config),
        how: format!("{} shards x (2^20 - {SLOTS_RESERVED} spare slots)", config.shards),
        raise: more_shards(target),
    }
}

fn connections_max(config: &Config, target: u64) -> Term {
    let each = config.limits().connections_max;
    Term {
        limit: "connections_max",
        connections: u64::from(each) * shards(config),
        how: format!(
            "{} shards x {}, set by {}",
            config.shards,
            grouped(each.into()),
            config.origin("connections_max")
        ),
        raise: format!("--connections-max {}, or leave it out", target.div_ceil(shards(config))),
    }
}

/// What the default of connections_max allows where open files do not bind.
fn share(config: &Config) -> Term {
    // The default is found in steps from the limit on open files, so another start may end a little lower.
    let each = connections_default(u64::MAX, config.room(), shards(config)).max(config.limits().connections_max.into());
    Term {
        limit: "memory_max",
        connections: each * shards(config),
        how: format!(
            "{} shards x {} whose slots and users fit a quarter of {}, and which the kernel holds in the {} beside \
             memory_max",
            config.shards,
            grouped(each),
            Size(config.room().bytes).rounded(),
            Size(config.room().kernel_bytes).rounded()
        ),
        raise: "a larger --memory-max, or --connections-max".to_owned(),
    }
}

fn budget(config: &Config) -> Term {
    let each = Budget::of(config).connections_fitting(config.limits(), config.cluster.is_some());
    Term {
        limit: "the memory budget",
        connections: each * shards(config),
        how: format!(
            "{} shards x {} before the sum of all bounds passes memory_max, {}",
            config.shards,
            grouped(each),
            Size(config.memory_max).rounded()
        ),
        raise: "a larger --memory-max, or a smaller --outbox-total-bytes-max".to_owned(),
    }
}

/// A process with CAP_SYS_ADMIN is not held to it.
fn system_files(facts: &Facts, target: u64) -> Option<Term> {
    let max = facts.file_max.filter(|max| !facts.sys_admin && *max < FILES_NO_LIMIT)?;
    Some(Term {
        limit: "fs.file-max",
        connections: max.saturating_sub(facts.files_open),
        how: format!("{} - {} open files of the whole system", grouped(max), grouped(facts.files_open)),
        raise: format!("sysctl -w fs.file-max={}, and for good in /etc/sysctl.d/", target + facts.files_open),
    })
}

/// Bytes taken before the first connection, in the process and in the kernel for it.
pub(super) fn base_bytes(config: &Config) -> u64 {
    let limits = config.limits();
    let buffers = u64::from(limits.recv_buffers) * u64::from(limits.recv_buffer_bytes);
    let table = u64::from(limits.slots()) * TABLE_BYTES_PER_SLOT;
    IDLE_PROCESS_BYTES + shards(config) * (IDLE_SHARD_BYTES + buffers + table)
}

fn memory_term(limit: &'static str, left: u64, each: u64, config: &Config, raise: String) -> Term {
    let base = base_bytes(config);
    Term {
        limit,
        connections: left.saturating_sub(base) / each,
        how: format!(
            "({} left - {} for the process) / {} B each",
            Size(left).rounded(),
            Size(base).rounded(),
            grouped(each)
        ),
        raise,
    }
}

fn machine_memory(facts: &Facts, config: &Config, target: u64) -> Option<Term> {
    let each = KERNEL_BYTES + PROCESS_BYTES;
    let needed = base_bytes(config).saturating_add(target.saturating_mul(each));
    let raise = format!("{} for the gateway: more memory, or fewer other processes", Size(needed).rounded());
    Some(memory_term("the memory of the machine", facts.memory_available? + facts.own_bytes, each, config, raise))
}

fn group_memory(facts: &Facts, config: &Config, target: u64) -> Option<Term> {
    let group = facts.tightest_group()?;
    let uncharged = if facts.charges_sockets(group.version) { 0 } else { SOCKET_BYTES };
    let each = KERNEL_BYTES - uncharged + PROCESS_BYTES;
    let needed = group.used.saturating_add(base_bytes(config)).saturating_add(target.saturating_mul(each));
    let mib = needed.div_ceil(1 << 20);
    let raise =
        format!("MemoryMax={mib}M at least in the systemd unit, --memory {mib}m for Docker; see {}", group.file);
    Some(memory_term("the memory of the control group", group.left() + facts.own_bytes, each, config, raise))
}

/// The module may be loaded and track nothing: rules make it track. Then no connection is counted, however many there
/// are.
fn conntrack(facts: &Facts, target: u64) -> Option<Term> {
    let (max, count) = facts.conntrack.filter(|(_, count)| *count > 0)?;
    Some(Term {
        limit: "net.netfilter.nf_conntrack_max",
        connections: max.saturating_sub(count),
        how: format!("{} - {} tracked now", grouped(max), grouped(count)),
        raise: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}, or a notrack rule for the gateway's port",
            target + count
        ),
    })
}

#[cfg(test)]
mod tests;
