//! What the defaults depend on: facts about the machine and the limits of this process.

use crate::host_tree::{MemoryGroup, Root};
use rustix::process::{Resource, getrlimit};

/// Facts the computed defaults are made from. Tests make them up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores this process may run on.
    pub cores: u64,
    /// Hard limit on open files (RLIMIT_NOFILE); `u64::MAX` when there is none.
    pub nofile_hard: u64,
    /// Memory that may be taken without swapping, bytes: the machine's, or what the control group has left when that is
    /// less.
    pub memory_available: u64,
    /// Host name.
    pub name: String,
}

/// What is assumed where the kernel does not tell: small, so that a wrong guess does no harm.
const MEMORY_UNKNOWN: u64 = 1 << 30;

impl Host {
    /// Asks the kernel of this machine.
    pub fn read() -> Self {
        Host::below(&Root::system())
    }

    /// The facts a tree of /proc and /sys tells; what it does not tell, and this machine is asked for, comes from
    /// system calls.
    pub fn below(root: &Root) -> Self {
        let machine = root.memory_available().unwrap_or(MEMORY_UNKNOWN);
        let group = root.memory_groups().iter().map(MemoryGroup::left).min();
        Host {
            cores: cores(root),
            nofile_hard: nofile_hard(root),
            memory_available: machine.min(group.unwrap_or(u64::MAX)),
            name: node_name(&rustix::system::uname().nodename().to_string_lossy()),
        }
    }
}

fn cores(root: &Root) -> u64 {
    let shown = root.cpus();
    if !root.is_system() && shown > 0 {
        return shown as u64;
    }
    // Knows the affinity mask and the quota of the control group too.
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

fn nofile_hard(root: &Root) -> u64 {
    let told = if root.is_system() { None } else { root.hard_limit("Max open files") };
    told.unwrap_or_else(|| getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))
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
    use crate::host_tree::tests::Tree;

    #[test]
    fn the_tightest_of_machine_and_control_groups_is_what_is_available() {
        let tree = Tree::new();
        tree.file("/proc/meminfo", "MemAvailable:   21000000 kB\n")
            .file("/proc/self/limits", "Max open files            1024                 5000                 files\n")
            .file("/sys/devices/system/cpu/cpu0/uevent", "")
            .file("/proc/self/cgroup", "0::/a/b\n")
            .file("/sys/fs/cgroup/a/b/memory.max", "max\n");
        let host = Host::below(&tree.root());
        assert_eq!((host.cores, host.nofile_hard, host.memory_available), (1, 5_000, 21_000_000 * 1_024));
        tree.file("/sys/fs/cgroup/a/memory.max", "1000000\n").file("/sys/fs/cgroup/a/memory.current", "400000\n");
        assert_eq!(Host::below(&tree.root()).memory_available, 600_000);
        tree.file("/proc/self/cgroup", "3:memory:/c\n0::/\n")
            .file("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9000000\n")
            .file("/sys/fs/cgroup/memory/c/memory.usage_in_bytes", "1000000\n");
        assert_eq!(Host::below(&tree.root()).memory_available, 8_000_000);
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
