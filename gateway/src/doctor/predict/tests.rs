use super::super::sample::{LIMITS, config_on, healthy, limits};
use super::*;
use crate::host_tree::tests::Tree;

fn predicted(tree: &Tree, text: &str) -> Prediction {
    let (host, config) = config_on(&tree.root(), text);
    predict(&Facts::read(&tree.root(), host.nofile_hard), &config, 50_000)
}

fn term<'a>(prediction: &'a Prediction, limit: &str) -> &'a Term {
    prediction.terms.iter().find(|term| term.limit == limit).unwrap_or_else(|| panic!("no {limit}: {prediction:?}"))
}

#[test]
fn the_limit_on_open_files_binds_at_the_tables_of_all_shards() {
    let tree = healthy();
    tree.file(LIMITS, &limits("5000", "unlimited"));
    for (shards, connections) in [(1, 4_936), (2, 9_872), (4, 19_744)] {
        let prediction = predicted(&tree, &format!("shards = {shards}\n"));
        assert_eq!((prediction.binds_first, prediction.connections), ("the hard limit on open files", connections));
        assert!(prediction.terms[0].how.contains("5,000 - 64"), "{}", prediction.terms[0].how);
    }
}

#[test]
fn without_a_limit_on_open_files_the_ring_bounds_a_shard() {
    let tree = healthy();
    tree.file(LIMITS, &limits("unlimited", "unlimited"))
        .file("/proc/meminfo", "MemAvailable: 838860800 kB\n")
        .file("/proc/sys/fs/file-max", "9223372036854775807\n");
    let prediction = predicted(&tree, "shards = 2\n");
    assert_eq!(prediction.connections, 2 * ((1 << 20) - 64));
    assert_eq!(term(&prediction, "the hard limit on open files").connections, 2 * ((1 << 20) - 64));
}

#[test]
fn a_configured_maximum_binds_and_names_its_source() {
    let prediction = predicted(&healthy(), "shards = 3\nconnections_max = 700\n");
    assert_eq!((prediction.binds_first, prediction.connections), ("connections_max", 2_100));
    assert!(prediction.terms[0].how.contains("some.toml, line 2"), "{}", prediction.terms[0].how);
}

#[test]
fn a_small_memory_max_binds_at_the_connections_the_configuration_allows() {
    let tree = healthy();
    tree.file(LIMITS, &limits("1048576", "unlimited"));
    let text = "shards = 2\nmemory_max = \"256MiB\"\n";
    let prediction = predicted(&tree, text);
    let (_, config) = config_on(&tree.root(), text);
    assert_eq!(prediction.binds_first, "memory_max");
    assert_eq!(prediction.connections, 2 * u64::from(config.limits().connections_max));
}

#[test]
fn the_budget_binds_a_maximum_that_does_not_fit() {
    let tree = healthy();
    tree.file(LIMITS, &limits("1048576", "unlimited"));
    let prediction = predicted(&tree, "shards = 1\nmemory_max = \"512MiB\"\nconnections_max = 1000000\n");
    assert_eq!(prediction.binds_first, "the memory budget");
    assert!(prediction.connections > 100_000 && prediction.connections < 1_000_000, "{prediction:?}");
}

#[test]
fn file_max_binds_a_process_without_privileges_only() {
    let tree = healthy();
    tree.file("/proc/sys/fs/file-max", "9000\n");
    let prediction = predicted(&tree, "shards = 1\n");
    assert_eq!((prediction.binds_first, prediction.connections), ("fs.file-max", 9_000 - 1_000));
    tree.file("/proc/self/status", "CapEff:\t000001ffffffffff\n");
    assert_eq!(predicted(&tree, "shards = 1\n").binds_first, "the hard limit on open files");
}

#[test]
fn the_memory_of_the_machine_binds() {
    let tree = healthy();
    tree.file(LIMITS, &limits("1048576", "unlimited")).file("/proc/meminfo", "MemAvailable: 1048576 kB\n");
    // What is asked for by hand is more than the machine holds.
    let text = "shards = 1\nconnections_max = 900000\nmemory_max = \"64GiB\"\n";
    let prediction = predicted(&tree, text);
    assert_eq!(prediction.binds_first, "the memory of the machine");
    let (_, config) = config_on(&tree.root(), text);
    let base = (9 << 20) + (512 << 10) + (1 << 20) + (4 << 20) + 900_064 * 9;
    assert_eq!(base_bytes(&config), base);
    assert_eq!(prediction.connections, ((1 << 30) - base) / 4_170);
}

#[test]
fn a_control_group_of_either_version_binds_with_what_it_is_charged() {
    let tree = healthy();
    tree.file(LIMITS, &limits("1048576", "unlimited"));
    let text = "shards = 1\nconnections_max = 200000\nmemory_max = \"64GiB\"\n";
    let left = (256 << 20) - 1_000_000;
    let base = (9 << 20) + (512 << 10) + (1 << 20) + (4 << 20) + 200_064 * 9;
    tree.file("/sys/fs/cgroup/gateway/memory.max", "268435456\n");
    let group = |tree: &Tree| {
        let prediction = predicted(tree, text);
        assert_eq!(prediction.binds_first, "the memory of the control group");
        prediction.connections
    };
    assert_eq!(group(&tree), (left - base) / 4_170);
    // Before 6.12 nobody was charged for the socket proper.
    tree.file("/proc/sys/kernel/osrelease", "6.1.0\n");
    assert_eq!(group(&tree), (left - base) / (4_170 - 2_368));
    tree.file("/proc/sys/kernel/osrelease", "6.18.0\n")
        .file("/proc/self/cgroup", "4:memory:/g\n0::/\n")
        .file("/sys/fs/cgroup/memory/g/memory.limit_in_bytes", "268435456\n")
        .file("/sys/fs/cgroup/memory/g/memory.usage_in_bytes", "1000000\n");
    assert_eq!(group(&tree), (left - base) / (4_170 - 2_368));
}

#[test]
fn connection_tracking_binds_only_where_it_tracks() {
    let tree = healthy();
    tree.file("/proc/sys/net/netfilter/nf_conntrack_max", "4000\n")
        .file("/proc/sys/net/netfilter/nf_conntrack_count", "0\n");
    assert_eq!(predicted(&tree, "shards = 1\n").binds_first, "the hard limit on open files");
    tree.file("/proc/sys/net/netfilter/nf_conntrack_count", "100\n");
    let prediction = predicted(&tree, "shards = 1\n");
    assert_eq!((prediction.binds_first, prediction.connections), ("net.netfilter.nf_conntrack_max", 3_900));
}

#[test]
fn terms_are_sorted_and_every_one_says_how_it_is_computed_and_raised() {
    let tree = healthy();
    tree.file("/sys/fs/cgroup/gateway/memory.max", "4000000000\n");
    let prediction = predicted(&tree, "shards = 2\n");
    assert!(prediction.terms.is_sorted_by_key(|term| term.connections));
    assert_eq!(prediction.terms.len(), 6, "{prediction:?}");
    assert!(prediction.terms.iter().all(|term| !term.how.is_empty() && !term.raise.is_empty()));
}

#[test]
fn a_host_that_tells_nothing_still_gets_a_prediction() {
    let tree = Tree::new();
    let facts = Facts::read(&tree.root(), 100);
    let (_, config) = config_on(&healthy().root(), "shards = 1\n");
    assert_eq!(predict(&facts, &config, 50_000).connections, 36);
}

#[test]
fn the_advice_says_how_far_each_limit_must_be_raised() {
    let tree = healthy();
    tree.file("/proc/sys/fs/file-max", "9000\n")
        .file("/sys/fs/cgroup/gateway/memory.max", "104857600\n")
        .file("/proc/sys/net/netfilter/nf_conntrack_max", "4000\n")
        .file("/proc/sys/net/netfilter/nf_conntrack_count", "100\n");
    let prediction = predicted(&tree, "shards = 2\nconnections_max = 700\nmemory_max = \"1GiB\"\n");
    for (limit, part) in [
        ("the hard limit on open files", "LimitNOFILE=25064 "),
        ("the hard limit on open files", "--shards 3"),
        ("connections_max", "--connections-max 25000"),
        ("fs.file-max", "fs.file-max=51000"),
        ("net.netfilter.nf_conntrack_max", "nf_conntrack_max=50100"),
        // 1,000,000 B are taken, 19.5 MiB and two small tables are the base.
        ("the memory of the control group", "MemoryMax=220M"),
    ] {
        assert!(term(&prediction, limit).raise.contains(part), "no {part:?} in {}", term(&prediction, limit).raise);
    }
    let (host, config) = config_on(&tree.root(), "shards = 1\n");
    let prediction = predict(&Facts::read(&tree.root(), host.nofile_hard), &config, 10_000_000);
    assert!(term(&prediction, "the hard limit on open files").raise.contains("--shards 10,"));
}
