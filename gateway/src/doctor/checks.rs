//! The checks: what was found, what is wanted, why, and the fix.

mod irq;

use super::facts::Facts;
use super::predict::{Prediction, Term};
use super::report::grouped;
use crate::budget::Budget;
use crate::config::{Config, Endpoint, RING_SLOTS_MAX, Size};
use crate::host_tree::{Found, Root};
use crate::limits::SLOTS_RESERVED;
use crate::startup::{self, StartupError};
use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// The gateway does not start, or the target is out of reach.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Heading it stands under.
    pub group: &'static str,
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What is wanted; empty where the finding says it all.
    pub wanted: String,
    /// Why, one sentence; empty when it is in order.
    pub why: String,
    /// A command, or a file and what belongs into it; empty when it is in order.
    pub fix: String,
}

impl Check {
    pub(super) fn ok(group: &'static str, name: &'static str, found: impl Into<String>) -> Self {
        let none = String::new;
        Check { group, name, status: Status::Ok, found: found.into(), wanted: none(), why: none(), fix: none() }
    }

    pub(super) fn bad(
        mut self,
        status: Status,
        wanted: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        (self.status, self.wanted, self.why, self.fix) = (status, wanted.into(), why.into(), fix.into());
        self
    }
}

pub(super) const START: &str = "start-up";
const LIMITS: &str = "limits";
const NETWORK: &str = "network";
const MEMORY: &str = "memory";
const PROCESSOR: &str = "processor";

/// All checks, in the order they are shown.
pub(super) fn all(root: &Root, facts: &Facts, config: &Config, prediction: &Prediction, target: u64) -> Vec<Check> {
    let mut checks = start_up(root, facts, config);
    checks.extend(prediction.terms.iter().map(|term| limit(term, target)));
    checks.push(nr_open(root, config, target));
    checks.push(port_range(root, config));
    checks.push(conntrack(facts));
    checks.push(established_table(root, target));
    checks.push(control_group(facts));
    checks.push(huge_pages(root));
    checks.push(governor(root));
    checks.push(clock_source(root));
    checks.push(irq::check(root));
    checks
}

/// What the gateway checks before it starts. The live probes are about this process, so a made-up tree is judged from
/// its files alone.
fn start_up(root: &Root, facts: &Facts, config: &Config) -> Vec<Check> {
    let outcomes = if root.is_system() {
        startup::checks(config).into_iter().map(|check| (check.name, check.outcome)).collect()
    } else {
        from_files(root, facts, config)
    };
    let mut checks: Vec<Check> = outcomes.into_iter().map(|(name, outcome)| of_start(name, outcome)).collect();
    checks.push(seccomp(root));
    checks.push(core_dumps(root, config));
    let budget = Budget::of(config);
    let fits = format!("the budget fits, {} of {}", Size(budget.total()).rounded(), Size(config.memory_max).rounded());
    let budget_check = of_start("memory budget", budget.check().map(|()| fits));
    checks.push(match budget.overcommitted() {
        Some(word) if budget_check.status == Status::Ok => {
            let (found, fix) = word.rsplit_once(": ").unwrap_or((&word, ""));
            Check::ok(START, "memory budget", found).bad(
                Status::Warn,
                "",
                "memory runs out before the limits are reached",
                fix,
            )
        }
        _ => budget_check,
    });
    checks
}

fn from_files(root: &Root, facts: &Facts, config: &Config) -> Vec<(&'static str, Result<String, StartupError>)> {
    let disabled = root.text("/proc/sys/kernel/io_uring_disabled");
    let io_uring = match disabled.as_deref() {
        Some("1") if !may_use_io_uring(root, facts) => Err(StartupError::IoUringDisabled(1)),
        sysctl => startup::judge_disabled(sysctl).map(|()| "not disabled; not tried on another root".to_owned()),
    };
    let memlock = root.hard_limit("Max locked memory").unwrap_or(u64::MAX);
    vec![
        ("kernel", startup::judge_kernel(&facts.kernel).map(|()| format!("Linux {}", facts.kernel))),
        ("open files", startup::judge_descriptors(facts.nofile_hard, config).map(|hard| hard.to_string())),
        ("locked memory", startup::judge_memlock(memlock)),
        ("io_uring", io_uring),
    ]
}

/// Value 1 leaves io_uring to CAP_SYS_ADMIN and to the members of a group.
fn may_use_io_uring(root: &Root, facts: &Facts) -> bool {
    let allowed = root.text("/proc/sys/kernel/io_uring_group");
    let groups = ["Gid", "Groups"].map(|name| root.status(name).unwrap_or_default()).join(" ");
    facts.sys_admin || allowed.is_some_and(|allowed| groups.split_whitespace().any(|group| group == allowed))
}

/// A message of a failed start says what is wrong, a colon, and the fix.
fn of_start(name: &'static str, outcome: Result<String, StartupError>) -> Check {
    let error = match outcome {
        Ok(found) => return Check::ok(START, name, found),
        Err(error) => error.to_string(),
    };
    let (found, fix) = error.rsplit_once(": ").unwrap_or((&error, ""));
    Check::ok(START, name, found).bad(Status::Fail, "", "the gateway does not start", fix)
}

fn seccomp(root: &Root) -> Check {
    match root.status("Seccomp").as_deref() {
        None => Check::ok(START, "system call filter", "not told"),
        Some("0") => Check::ok(START, "system call filter", "none"),
        Some(_) => Check::ok(
            START,
            "system call filter",
            "one is in force; whether it lets io_uring pass the check above shows",
        ),
    }
}

fn core_dumps(root: &Root, config: &Config) -> Check {
    if !config.core_dumps {
        return Check::ok(START, "core dumps", "none are written (core_dumps)");
    }
    let goes_to = match root.text("/proc/sys/kernel/core_pattern").unwrap_or_default() {
        pattern if pattern.is_empty() => "allowed".to_owned(),
        pattern => format!("allowed, to {pattern}"),
    };
    let why = "a core dump holds keys, tokens and messages of everybody who is connected";
    Check::ok(START, "core dumps", goes_to).bad(Status::Warn, "none", why, "leave out --core-dumps")
}

fn limit(term: &Term, target: u64) -> Check {
    let check = Check::ok(LIMITS, term.limit, format!("{} connections", grouped(term.connections)));
    if term.connections >= target {
        return check;
    }
    check.bad(Status::Fail, grouped(target), term.how.clone(), term.raise.clone())
}

fn nr_open(root: &Root, config: &Config, target: u64) -> Check {
    let name = "fs.nr_open";
    let each = target.div_ceil(config.shards.into()) + u64::from(SLOTS_RESERVED);
    let wanted = each.min(RING_SLOTS_MAX);
    match root.look("/proc/sys/fs/nr_open") {
        Found::Text(found) if found.parse().is_ok_and(|found: u64| found < wanted) => Check::ok(LIMITS, name, found)
            .bad(
                Status::Warn,
                wanted.to_string(),
                "the hard limit on open files cannot be raised beyond it",
                format!("sysctl -w fs.nr_open={wanted}, and for good in /etc/sysctl.d/"),
            ),
        found => Check::ok(LIMITS, name, told(found)),
    }
}

/// Ports of outgoing connections: one of them may take the port the gateway wants to listen on at its next start.
fn port_range(root: &Root, config: &Config) -> Check {
    let name = "port range";
    let Some(text) = root.text("/proc/sys/net/ipv4/ip_local_port_range") else {
        return Check::ok(NETWORK, name, "not told");
    };
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else {
        return Check::ok(NETWORK, name, text);
    };
    let count = u64::from(high.saturating_sub(low)) + 1;
    let check =
        Check::ok(NETWORK, name, format!("{low} to {high}, {} outgoing connections to one address", grouped(count)));
    let reserved = root.text("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let clients = config.listen.iter().flat_map(Endpoint::addresses);
    let ports = clients.chain([config.http]).map(|address| address.port());
    let taken: Vec<String> = ports
        .filter(|port| (low..=high).contains(port) && !is_reserved(&reserved, *port))
        .map(|port| port.to_string())
        .collect();
    if taken.is_empty() {
        return check;
    }
    let taken = taken.join(",");
    check.bad(
        Status::Warn,
        format!("without {taken}"),
        "an outgoing connection may hold the port when the gateway starts again",
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={taken}, and for good in /etc/sysctl.d/"),
    )
}

fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let bounds = (low.trim().parse::<u16>(), high.trim().parse::<u16>());
        matches!(bounds, (Ok(low), Ok(high)) if (low..=high).contains(&port))
    })
}

/// Its size is a limit of the prediction; here stands only whether it is at work.
fn conntrack(facts: &Facts) -> Check {
    let name = "connection tracking";
    match facts.conntrack {
        None => Check::ok(NETWORK, name, "not loaded"),
        Some((_, 0)) => Check::ok(NETWORK, name, "loaded, and tracks nothing now"),
        Some((max, count)) => Check::ok(NETWORK, name, format!("{} of {} entries", grouped(count), grouped(max))).bad(
            Status::Warn,
            "none for the gateway",
            "each connection takes an entry of 320 B, and each packet a look-up",
            "nft add rule with notrack for the gateway's port in a raw prerouting and output chain",
        ),
    }
}

fn control_group(facts: &Facts) -> Check {
    match facts.tightest_group() {
        None => Check::ok(MEMORY, "control group", "no limit"),
        Some(group) => Check::ok(
            MEMORY,
            "control group",
            format!("{} of {} left, {}", Size(group.left()).rounded(), Size(group.limit).rounded(), group.file),
        ),
    }
}

fn huge_pages(root: &Root) -> Check {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let name = "transparent huge pages";
    match root.look(file) {
        Found::Text(text) if text.contains("[always]") => Check::ok(MEMORY, name, "always").bad(
            Status::Warn,
            "madvise or never",
            "the gateway turns them off for itself; other processes swell, and the kernel stalls while it compacts",
            format!("echo madvise > {file}; for good transparent_hugepage=madvise on the kernel's command line"),
        ),
        Found::Text(text) => Check::ok(MEMORY, name, chosen(&text)),
        found => Check::ok(MEMORY, name, told(found)),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(inside, _)| inside).to_owned()
}

fn governor(root: &Root) -> Check {
    let name = "frequency governor";
    let file = |cpu: &String| format!("/sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor");
    let cpus = root.names("/sys/devices/system/cpu");
    let mut governors: Vec<String> = cpus.iter().filter_map(|cpu| root.text(&file(cpu))).collect();
    governors.sort();
    governors.dedup();
    if governors.is_empty() {
        return Check::ok(PROCESSOR, name, "not present");
    }
    let check = Check::ok(PROCESSOR, name, governors.join(", "));
    if governors == ["performance"] {
        return check;
    }
    check.bad(
        Status::Warn,
        "performance",
        "a mostly idle core runs slowly when a burst arrives, which shows in the tail of the latency",
        "cpupower frequency-set -g performance",
    )
}

/// Clocks that are read without a system call.
const CLOCKS_FAST: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

fn clock_source(root: &Root) -> Check {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    match root.look(&format!("{folder}/current_clocksource")) {
        Found::Text(clock) if !CLOCKS_FAST.contains(&clock.as_str()) => Check::ok(PROCESSOR, "clock source", clock)
            .bad(
                Status::Warn,
                "tsc",
                "each look at the clock is a system call and a slow read of a device",
                format!("echo tsc > {folder}/current_clocksource, where available_clocksource beside it lists tsc"),
            ),
        found => Check::ok(PROCESSOR, "clock source", told(found)),
    }
}

/// Chains of the table in which the kernel finds a packet's socket. A network namespace without a table of its own
/// shows the shared one's as a negative number.
fn established_table(root: &Root, target: u64) -> Check {
    const NAME: &str = "table of established connections";
    let found = root.look("/proc/sys/net/ipv4/tcp_ehash_entries");
    let chains = match &found {
        Found::Text(text) => text.parse::<i64>().ok().map(i64::unsigned_abs),
        _ => None,
    };
    let wanted = target.next_power_of_two();
    match chains {
        Some(chains) if chains < target => Check::ok(NETWORK, NAME, format!("{} chains", grouped(chains))).bad(
            Status::Warn,
            format!("{} or more", grouped(wanted)),
            "each packet passes the other sockets of its chain, a cache miss each",
            format!(
                "thash_entries={wanted} on the kernel's command line, or a network namespace made after sysctl -w \
                 net.ipv4.tcp_child_ehash_entries={wanted}"
            ),
        ),
        Some(chains) => Check::ok(NETWORK, NAME, format!("{} chains", grouped(chains))),
        None => Check::ok(NETWORK, NAME, told(found)),
    }
}

fn told(found: Found) -> String {
    match found {
        Found::Text(text) => text,
        Found::Absent => "not present".to_owned(),
        Found::Unreadable(error) => format!("cannot be read ({error})"),
    }
}

#[cfg(test)]
mod tests;
