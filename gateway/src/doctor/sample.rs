//! A made-up host that is in order, for tests to spoil in one place.

use crate::config::{Config, ConfigFile, Host, Sources};
use crate::host_tree::Root;
use crate::host_tree::tests::Tree;
use std::path::Path;

pub(super) const LIMITS: &str = "/proc/self/limits";
pub(super) const GIB_8: &str = "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\n";

pub(super) fn limits(nofile: &str, memlock: &str) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            1024                 {nofile}                files     \n\
         Max locked memory         65536                {memlock}                bytes     \n"
    )
}

/// Two CPUs, 8 GiB, 20,000 descriptors, everything of the smallest profile.
pub(super) fn healthy() -> Tree {
    let tree = Tree::new();
    for setting in super::Profile::K100.settings() {
        if !setting.optional {
            tree.file(&super::profile::sysctl_file(&setting.key), &format!("{}\n", setting.value.replace(' ', "\t")));
        }
    }
    tree.file(LIMITS, &limits("20000", "8388608"))
        .file("/proc/meminfo", GIB_8)
        .file(
            "/proc/self/status",
            "Name:\tgateway\nGid:\t5\t5\t5\t5\nGroups:\t7 8 \nCapEff:\t0000000000000000\nSeccomp:\t0\n",
        )
        .file("/proc/self/cgroup", "0::/gateway\n")
        .file("/sys/fs/cgroup/gateway/memory.max", "max\n")
        .file("/sys/fs/cgroup/gateway/memory.current", "1000000\n")
        .file("/proc/sys/kernel/osrelease", "6.12.3-amd64\n")
        .file("/proc/sys/kernel/io_uring_disabled", "0\n")
        .file("/proc/sys/fs/file-max", "9223372036854775807\n")
        .file("/proc/sys/fs/file-nr", "1200\t200\t200000\n")
        .file("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
        .file("/proc/sys/net/ipv4/ip_local_reserved_ports", "\n")
        .file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        .file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
        .file("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n")
        .file("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
        .file("/proc/sys/net/ipv4/tcp_ehash_entries", "1048576\n")
        .file("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n")
        .file("/sys/class/net/lo/queues/rx-0/rps_cpus", "0\n")
        .file("/proc/interrupts", INTERRUPTS);
    tree
}

pub(super) const INTERRUPTS: &str = "           CPU0       CPU1       
 24:          1          0  IO-APIC   5-edge      ACPI:Ged
 36:          0     327587  PCI-MSI   1-edge      nvme0q1
 40:       3172          0  PCI-MSI   1-edge      eth0-TxRx-0
 41:          5       4534  PCI-MSI   2-edge      eth0-TxRx-1
NMI:          0          0   Non-maskable interrupts
ERR:          0
";

/// What this file of configuration comes to on the host.
pub(super) fn config_on(root: &Root, text: &str) -> (Host, Config) {
    let host = Host::below(root);
    let file = ConfigFile::parse(Path::new("some.toml"), text).unwrap();
    let config = Config::resolve(Sources { file: Some(file), ..Sources::default() }, &host).unwrap();
    (host, config)
}
