//! `gateway doctor` on made-up hosts: what it says, what it exits with, and that it changes nothing unless asked to.

use crate::support::gateway::gateway_command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A made-up root folder.
struct HostTree(PathBuf);

impl HostTree {
    /// Two CPUs, 8 GiB, 20,000 descriptors.
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{}-{number}", std::process::id()));
        let tree = HostTree(folder);
        tree.limit_open_files(20_000);
        tree.file("/proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\n");
        tree.file("/proc/self/status", "Name:\tgateway\nCapEff:\t0000000000000000\n");
        tree.file("/proc/sys/kernel/osrelease", "6.12.3\n");
        tree.file("/proc/sys/fs/file-max", "9223372036854775807\n");
        tree.file("/proc/sys/fs/nr_open", "1048576\n");
        tree.file("/proc/sys/net/core/somaxconn", "4096\n");
        tree.file("/proc/sys/net/ipv4/tcp_mem", "90000\t120000\t180000\n");
        tree.file("/sys/devices/system/cpu/cpu0/uevent", "");
        tree.file("/sys/devices/system/cpu/cpu1/uevent", "");
        tree
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    fn file(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write a file");
    }

    fn limit_open_files(&self, hard: u32) {
        let lines = format!(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 {hard}                files\n\
             Max locked memory         8388608              8388608              bytes\n"
        );
        self.file("/proc/self/limits", &lines);
    }

    /// Every file with its text, white space between fields made equal.
    fn everything(&self) -> BTreeMap<PathBuf, String> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("list a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = fs::read_to_string(&path).expect("read a file");
                    files.insert(path, text.replace('\t', " "));
                }
            }
        }
        files
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let root = self.0.to_str().expect("cargo's test folder has a UTF-8 path");
        gateway_command().args(["doctor", "--root", root]).args(arguments).output().expect("run the doctor")
    }

    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.doctor(&[arguments, &["--json"]].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (output.status.code().expect("it was not killed"), value)
    }
}

impl Drop for HostTree {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("it speaks UTF-8")
}

#[test]
fn a_host_that_will_do_is_ready_and_nothing_is_changed() {
    let tree = HostTree::new();
    let before = tree.everything();
    let output = tree.doctor(&[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("This host will hold about 39,872 connections with 2 shards"), "{text}");
    assert!(text.trim_end().lines().last().unwrap().starts_with("Ready for 39,872 connections"), "{text}");
    for arguments in [vec!["--profile", "10m"], vec!["--json"], vec!["--conns", "5k", "--shards", "1"]] {
        tree.doctor(&arguments);
    }
    assert_eq!(tree.everything(), before);
}

#[test]
fn a_goal_out_of_reach_is_not_ready_and_names_the_limit_and_the_fix() {
    let tree = HostTree::new();
    tree.limit_open_files(5_000);
    let (status, report) = tree.json(&["--conns", "10k"]);
    assert_eq!((status, &report["ready"]), (1, &Value::Bool(false)));
    assert_eq!(report["prediction"]["connections"], 9_872);
    assert_eq!(report["prediction"]["binds_first"], "the hard limit on open files");
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "fail").collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["fix"].as_str().unwrap().contains("LimitNOFILE="), "{failed:?}");
    let (status, report) = tree.json(&["--conns", "10k", "--shards", "4"]);
    assert_eq!((status, &report["prediction"]["connections"]), (0, &19_744.into()));
}

#[test]
fn the_prediction_follows_each_limit_that_is_lowered() {
    let tree = HostTree::new();
    tree.limit_open_files(1_048_576);
    let binds = |arguments: &[&str], limit: &str| {
        let (_, report) = tree.json(arguments);
        assert_eq!(report["prediction"]["binds_first"], limit, "{report}");
        report["prediction"]["connections"].as_u64().expect("a number")
    };
    assert_eq!(binds(&["--connections-max", "300"], "connections_max"), 600);
    let small = binds(&["--memory-max", "256MiB"], "memory_max");
    assert!(small < binds(&["--memory-max", "512MiB"], "memory_max"));
    tree.file("/proc/self/cgroup", "0::/g\n");
    tree.file("/sys/fs/cgroup/g/memory.current", "0\n");
    tree.file("/sys/fs/cgroup/g/memory.max", "104857600\n");
    let group = binds(&["--memory-max", "1GiB", "--connections-max", "60000"], "the memory of the control group");
    // (100 MiB - about 20 MiB for the process) / 4,170 B.
    assert!((18_000..22_000).contains(&group), "{group}");
    tree.file("/sys/fs/cgroup/g/memory.max", "max\n");
    tree.file("/proc/sys/fs/file-max", "2500\n");
    assert_eq!(binds(&[], "fs.file-max"), 2_500);
}

#[test]
fn apply_writes_the_profile_and_rollback_restores_the_first_state() {
    let tree = HostTree::new();
    let before = tree.everything();
    let (status, report) = tree.json(&["--conns", "20k", "--profile", "100k", "--apply"]);
    assert_eq!(status, 0, "{report}");
    let changed: Vec<&str> = report["applied"]["changed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["what"].as_str().unwrap())
        .collect();
    assert_eq!(changed, ["net.core.somaxconn", "/etc/sysctl.d/90-trunkline.conf"]);
    let somaxconn = tree.path("/proc/sys/net/core/somaxconn");
    assert_eq!(fs::read_to_string(&somaxconn).unwrap(), "6000\n");

    let output = tree.doctor(&["--conns", "20k", "--profile", "1m", "--apply"]);
    assert!(stdout(&output).contains("changed  net.core.somaxconn: 6000 -> 20000"), "{output:?}");
    let output = tree.doctor(&["--rollback"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains("changed  net.core.somaxconn: 20000 -> 4096"), "{output:?}");
    assert_eq!(tree.everything(), before);

    let output = tree.doctor(&["--rollback"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to roll back"), "{output:?}");
}

#[test]
fn a_write_that_fails_is_named_with_status_1_and_can_be_rolled_back() {
    let tree = HostTree::new();
    // A sysctl that the kernel lets nobody write.
    let nr_open = tree.path("/proc/sys/fs/nr_open");
    fs::remove_file(&nr_open).expect("remove a file");
    std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", &nr_open).expect("make a link");
    let before = tree.everything();
    let output = tree.doctor(&["--conns", "10k", "--apply"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("fs.nr_open"), "{output:?}");
    assert!(stdout(&output).contains("changed  net.core.somaxconn: 4096 -> 6000"), "{output:?}");
    assert_eq!(tree.doctor(&["--rollback"]).status.code(), Some(0));
    assert_eq!(tree.everything(), before);
}

#[test]
fn a_host_that_lacks_what_a_start_needs_is_not_ready() {
    let tree = HostTree::new();
    tree.file("/proc/sys/kernel/io_uring_disabled", "2\n");
    let output = tree.doctor(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("sysctl -w kernel.io_uring_disabled=0"), "{output:?}");
    assert!(stdout(&output).contains("As it is the gateway does not start: io_uring."), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not ready: 1 check failed"), "{output:?}");
}

#[test]
fn usage_and_configuration_are_refused_with_status_2() {
    let tree = HostTree::new();
    for arguments in [
        &["--apply", "--rollback"][..],
        &["--profile", "2m"],
        &["--conns", "many"],
        &["--conns", "0"],
        &["--rollback", "--conns", "5"],
        &["--shards", "0"],
    ] {
        let output = tree.doctor(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn the_machine_this_runs_on_is_told_without_a_panic() {
    let output = gateway_command().args(["doctor", "--shards", "1", "--conns", "10"]).output().expect("run the doctor");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains("every operation it needs"), "{output:?}");
}
