use super::super::sample::{LIMITS, config_on, healthy, limits};
use super::super::{Goal, Report, examine};
use super::*;
use crate::host_tree::tests::Tree;

fn report(tree: &Tree, text: &str) -> Report {
    let (host, config) = config_on(&tree.root(), text);
    examine(&tree.root(), &host, &config, Goal::default())
}

/// The check of this name must have this status, and found, why and fix together must contain every part.
fn assert_check(tree: &Tree, text: &str, name: &str, status: Status, parts: &[&str]) {
    let report = report(tree, text);
    let check = report.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(check.status, status, "{check:?}");
    let said = format!("{} {} {} {}", check.found, check.wanted, check.why, check.fix);
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    if status != Status::Ok {
        assert!(!check.why.is_empty() && !check.fix.is_empty(), "{check:?}");
    }
    assert_eq!(report.ready, report.checks.iter().all(|check| check.status != Status::Fail));
}

#[test]
fn a_host_in_order_passes_every_check() {
    let report = report(&healthy(), "shards = 2\n");
    let off: Vec<&Check> = report.checks.iter().filter(|check| check.status != Status::Ok).collect();
    assert!(off.is_empty() && report.ready, "{off:?}");
    assert!(!report.profile_diff.iter().any(|one| one.is_warning()), "{:?}", report.profile_diff);
    assert_eq!(report.target, 39_872);
}

#[test]
fn what_keeps_the_gateway_from_starting_fails() {
    let fails = |file: &str, content: &str, text: &str, name: &str, parts: &[&str]| {
        let tree = healthy();
        tree.file(file, content);
        assert_check(&tree, text, name, Status::Fail, parts);
    };
    let one = "shards = 1\n";
    let (release, disabled) = ("/proc/sys/kernel/osrelease", "/proc/sys/kernel/io_uring_disabled");
    fails(release, "5.15.0\n", one, "kernel", &["5.15.0", "6.1 or later"]);
    fails(disabled, "2\n", one, "io_uring", &["sysctl -w"]);
    fails(disabled, "1\n", one, "io_uring", &["= 1", "sysctl -w"]);
    fails(LIMITS, &limits("20000", "65536"), one, "locked memory", &["64KiB", "LimitMEMLOCK"]);
    let many = "shards = 1\nconnections_max = 9000\n";
    fails(LIMITS, &limits("5000", "8388608"), many, "open files", &["5000", "LimitNOFILE"]);
    fails(disabled, "0\n", "shards = 1\nmemory_max = \"8MiB\"\n", "memory budget", &["8.0 MiB", "--memory-max"]);
}

#[test]
fn io_uring_for_a_group_is_enough_for_its_members() {
    let tree = healthy();
    tree.file("/proc/sys/kernel/io_uring_disabled", "1\n").file("/proc/sys/kernel/io_uring_group", "8\n");
    assert_check(&tree, "shards = 1\n", "io_uring", Status::Ok, &[]);
    tree.file("/proc/sys/kernel/io_uring_group", "9\n");
    assert_check(&tree, "shards = 1\n", "io_uring", Status::Fail, &["= 1"]);
}

#[test]
fn each_limit_below_the_target_fails_with_its_arithmetic_and_fix() {
    let tree = healthy();
    let (host, config) = config_on(&tree.root(), "shards = 2\n");
    let goal = Goal { connections: Some(50_000), ..Goal::default() };
    let report = examine(&tree.root(), &host, &config, goal);
    let failed: Vec<&Check> = report.checks.iter().filter(|check| check.status == Status::Fail).collect();
    assert_eq!(failed.iter().map(|check| check.name).collect::<Vec<_>>(), ["the hard limit on open files"]);
    assert_eq!((failed[0].found.as_str(), failed[0].wanted.as_str()), ("39,872 connections", "50,000"));
    assert!(failed[0].fix.contains("LimitNOFILE") && failed[0].why.contains("20,000"), "{:?}", failed[0]);
    assert!(!report.ready);

    tree.file("/proc/sys/fs/nr_open", "20000\n");
    let report = examine(&tree.root(), &host, &config, goal);
    let nr_open = report.checks.iter().find(|check| check.name == "fs.nr_open").unwrap();
    assert_eq!((nr_open.status, nr_open.wanted.as_str()), (Status::Warn, "25064"));
}

#[test]
fn what_is_slower_or_risky_is_a_warning() {
    let warns = |file: &str, text: &str, name: &str, parts: &[&str]| {
        let tree = healthy();
        tree.file(file, text);
        assert_check(&tree, "shards = 2\n", name, Status::Warn, parts);
        assert!(report(&tree, "shards = 2\n").ready);
    };
    let cpu = "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
    warns(cpu, "powersave\n", "frequency governor", &["performance, powersave", "cpupower"]);
    let chains = "/proc/sys/net/ipv4/tcp_ehash_entries";
    warns(
        chains,
        "-1024\n",
        "table of established connections",
        &["1,024 chains", "thash_entries=", "tcp_child_ehash_entries"],
    );
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    warns(clock, "hpet\n", "clock source", &["hpet", "tsc", "available_clocksource"]);
    let huge = "/sys/kernel/mm/transparent_hugepage/enabled";
    warns(huge, "[always] madvise never\n", "transparent huge pages", &["always", "echo madvise"]);
    let ports = "/proc/sys/net/ipv4/ip_local_port_range";
    warns(ports, "1024\t65535\n", "port range", &["64,512", "ip_local_reserved_ports=7700,7780"]);
}

#[test]
fn reserved_ports_are_no_risk() {
    let tree = healthy();
    tree.file("/proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n")
        .file("/proc/sys/net/ipv4/ip_local_reserved_ports", "80,7700-7780\n");
    assert_check(&tree, "shards = 1\n", "port range", Status::Ok, &["1024 to 65535"]);
}

#[test]
fn connection_tracking_at_work_is_a_warning() {
    let tree = healthy();
    tree.file("/proc/sys/net/netfilter/nf_conntrack_max", "262144\n")
        .file("/proc/sys/net/netfilter/nf_conntrack_count", "0\n");
    assert_check(&tree, "shards = 1\n", "connection tracking", Status::Ok, &["tracks nothing"]);
    tree.file("/proc/sys/net/netfilter/nf_conntrack_count", "10\n");
    assert_check(&tree, "shards = 1\n", "connection tracking", Status::Warn, &["10 of 262,144", "notrack"]);
}

#[test]
fn network_interrupts_on_one_cpu_are_a_warning() {
    let name = "network interrupts";
    let table = |rows: &[(u32, u32, &str)]| {
        let rows: String =
            rows.iter().map(|(one, two, name)| format!(" 40: {one} {two} PCI-MSI 1-edge {name}\n")).collect();
        format!("  CPU0 CPU1\n{rows}")
    };
    let tree = healthy();
    tree.file("/proc/interrupts", &table(&[(5, 0, "eth0-TxRx-0"), (5, 1, "eth0-TxRx-1"), (0, 9, "nvme0q1")]));
    assert_check(&tree, "shards = 1\n", name, Status::Warn, &["queues at work: 2, on 1 of 2", "nic-affinity.sh"]);
    tree.file("/proc/interrupts", &table(&[(5, 0, "virtio2-input.0"), (0, 5, "virtio2-output.0")]));
    assert_check(&tree, "shards = 1\n", name, Status::Ok, &["2 of 2"]);
    tree.file("/proc/interrupts", &table(&[(5, 0, "eth0")]));
    assert_check(&tree, "shards = 1\n", name, Status::Ok, &["no queues"]);
    tree.file("/proc/interrupts", &table(&[(5, 0, "eth0-rx-0")]));
    assert_check(&tree, "shards = 1\n", name, Status::Warn, &["queues at work: 1,"]);
    tree.file("/sys/class/net/eth0/queues/rx-0/rps_cpus", "3\n");
    assert_check(&tree, "shards = 1\n", name, Status::Ok, &[]);
}

#[test]
fn a_control_group_and_a_filter_are_told() {
    let tree = healthy();
    tree.file("/sys/fs/cgroup/gateway/memory.max", "2147483648\n");
    assert_check(&tree, "shards = 1\n", "control group", Status::Ok, &["2.0 GiB", "/gateway/memory.max"]);
    tree.file("/proc/self/status", "Seccomp:\t2\n");
    assert_check(&tree, "shards = 1\n", "system call filter", Status::Ok, &["in force"]);
}

#[test]
fn a_tree_with_nothing_in_it_is_judged_without_a_panic() {
    let tree = Tree::new();
    let report = report(&tree, "shards = 1\nconnections_max = 100\n");
    let failed: Vec<&str> =
        report.checks.iter().filter(|check| check.status == Status::Fail).map(|check| check.name).collect();
    assert_eq!(failed, ["kernel"]);
    assert!(report.to_string().contains("not present"));
}
