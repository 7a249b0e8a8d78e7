//! What the defaults depend on: facts about the machine and the limits of this process.

use rustix::process::{Resource, getrlimit};
use std::fs;

/// Facts the computed defaults are made from. Tests make them up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores this process may run on.
    pub cores: u64,
    /// Hard limit on open files (RLIMIT_NOFILE); `u64::MAX` when there is none.
    pub nofile_hard: u64,
    /// Memory that may be taken without swapping, bytes: the machine's, or what the control group has left when that is less.
    pub memory_available: u64,
    /// Host name.
    pub name: String,
}

/// What is assumed where the kernel does not tell: small, so that a wrong guess does no harm.
const MEMORY_UNKNOWN: u64 = 1 << 30;

impl Host {
    /// Asks the kernel.
    pub fn read() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let machine = available_bytes(&meminfo).unwrap_or(MEMORY_UNKNOWN);
        Host {
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            nofile_hard: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            memory_available: machine.min(control_group_bytes().unwrap_or(u64::MAX)),
            name: node_name(&rustix::system::uname().nodename().to_string_lossy()),
        }
    }
}

/// `MemAvailable` of /proc/meminfo, bytes.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

/// What the control group (version 2) of this process may still take; `None` when it has no limit.
fn control_group_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let folder = format!("/sys/fs/cgroup{}", groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    let max = fs::read_to_string(format!("{folder}/memory.max")).ok()?;
    let current = fs::read_to_string(format!("{folder}/memory.current")).ok()?;
    group_left_bytes(&max, &current)
}

fn group_left_bytes(max: &str, current: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    Some(max.saturating_sub(current.trim().parse().ok()?))
}

/// The host name with everything a node name may not hold left out.
fn node_name(host_name: &str) -> String {
    let name: String =
        host_name.chars().filter(|c| super::is_node_name_char(*c)).take(super::NODE_NAME_CHARS_MAX).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:        20000000 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(available_bytes(meminfo), Some(21_000_000 * 1_024));
        for broken in ["", "MemAvailable:", "MemAvailable: many kB", "MemAvailable: 5"] {
            assert_eq!(available_bytes(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_control_group_without_limit_does_not_count() {
        assert_eq!(group_left_bytes("max\n", "5000\n"), None);
        assert_eq!(group_left_bytes("8000\n", "5000\n"), Some(3_000));
        assert_eq!(group_left_bytes("5000\n", "8000\n"), Some(0));
    }

    #[test]
    fn any_host_name_becomes_a_node_name() {
        assert_eq!(node_name("gate-1.example.org"), "gate-1.example.org");
        assert_eq!(node_name("a b\"c"), "abc");
        assert_eq!(node_name(""), "node");
        assert_eq!(node_name(&"x".repeat(300)).len(), 64);
    }

    #[test]
    fn this_host_has_plausible_facts() {
        let host = Host::read();
        assert!(
            host.cores >= 1 && host.nofile_hard >= 3 && host.memory_available > 0 && !host.name.is_empty(),
            "{host:?}"
        );
    }
}
