use super::*;
use crate::host_tree::tests::Tree;
use std::os::unix::fs::symlink;

const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
const FILE_MAX: &str = "/proc/sys/fs/file-max";
const TCP_MEM: &str = "/proc/sys/net/ipv4/tcp_mem";

fn host() -> Tree {
    let tree = Tree::new();
    tree.file(SOMAXCONN, "4096\n").file(FILE_MAX, "9000000\n").file(TCP_MEM, "190000\t250000\t300000\n");
    tree
}

/// Every file below the root with its text.
fn everything(root: &Root) -> BTreeMap<String, String> {
    fn walk(folder: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else {
                files.insert(path.display().to_string(), fs::read_to_string(&path).unwrap().trim().to_owned());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&root.path("/"), &mut files);
    // The kernel writes tabs between fields.
    files.into_iter().map(|(name, text)| (name, text.replace('\t', " "))).collect()
}

fn applied(root: &Root, profile: Profile) -> Outcome {
    let outcome = apply(root, profile).unwrap();
    assert_eq!(outcome.failed, []);
    outcome
}

#[test]
fn apply_writes_what_is_lacking_and_lowers_nothing() {
    let tree = host();
    let root = tree.root();
    let outcome = applied(&root, Profile::M1);
    let changed: Vec<&str> = outcome.changed.iter().map(|change| change.what.as_str()).collect();
    assert_eq!(changed, ["net.core.somaxconn", "net.ipv4.tcp_mem", SYSCTL_FILE]);
    assert_eq!(root.text(SOMAXCONN).unwrap(), "20000");
    assert_eq!(root.text(TCP_MEM).unwrap(), "300000 400000 600000");
    assert_eq!(root.text(FILE_MAX).unwrap(), "9000000");
    let file = root.text(SYSCTL_FILE).unwrap();
    for line in ["net.core.somaxconn = 20000", "fs.file-max = 9000000", "-net.netfilter.nf_conntrack_max = 1200000"] {
        assert!(file.lines().any(|other| other == line), "no {line} in {file}");
    }
    assert!(super::super::profile::parse(&file).is_ok());
}

#[test]
fn a_rollback_restores_every_byte_of_state_and_removes_the_record() {
    let tree = host();
    let root = tree.root();
    let before = everything(&root);
    applied(&root, Profile::K100);
    assert_ne!(everything(&root), before);
    assert_eq!(rollback(&root).unwrap().failed, []);
    assert_eq!(everything(&root), before);
    assert!(rollback(&root).unwrap_err().contains("nothing to roll back"));
}

#[test]
fn the_record_keeps_the_very_first_state_over_several_applies() {
    let tree = host();
    tree.file(SYSCTL_FILE, "# an operator's own\nnet.core.somaxconn = 4096\n");
    let root = tree.root();
    let before = everything(&root);
    applied(&root, Profile::K100);
    applied(&root, Profile::M1);
    applied(&root, Profile::M10);
    assert_eq!(root.text(SOMAXCONN).unwrap(), "40000");
    assert_eq!(rollback(&root).unwrap().failed, []);
    assert_eq!(everything(&root), before);
}

#[test]
fn a_second_apply_of_the_same_profile_changes_nothing() {
    let tree = host();
    let root = tree.root();
    applied(&root, Profile::M1);
    let after = everything(&root);
    assert_eq!(applied(&root, Profile::M1), Outcome::default());
    assert_eq!(everything(&root), after);
}

#[test]
fn a_write_that_fails_is_named_and_the_rest_goes_on() {
    let tree = host();
    let root = tree.root();
    // A sysctl that the kernel lets nobody write.
    tree.without(FILE_MAX);
    symlink("/proc/sys/kernel/ngroups_max", root.path(FILE_MAX)).unwrap();
    let before = root.text(FILE_MAX).unwrap();
    let outcome = apply(&root, Profile::M1).unwrap();
    let failed: Vec<&str> = outcome.failed.iter().map(|refusal| refusal.what.as_str()).collect();
    assert_eq!(failed, ["fs.file-max"]);
    assert!(!outcome.failed[0].error.is_empty());
    assert_eq!(root.text(SOMAXCONN).unwrap(), "20000");
    assert!(root.text(SYSCTL_FILE).is_some());

    assert_eq!(rollback(&root).unwrap().failed, []);
    assert_eq!((root.text(SOMAXCONN).unwrap(), root.text(FILE_MAX).unwrap()), ("4096".to_owned(), before));
    assert_eq!((root.text(SYSCTL_FILE), root.text(RECORD_FILE)), (None, None));
}

#[test]
fn a_rollback_that_fails_in_part_keeps_the_record() {
    let tree = host();
    let root = tree.root();
    applied(&root, Profile::M1);
    tree.without(SOMAXCONN);
    symlink("/proc/sys/kernel/ngroups_max", root.path(SOMAXCONN)).unwrap();
    let outcome = rollback(&root).unwrap();
    assert_eq!(outcome.failed.iter().map(|refusal| refusal.what.as_str()).collect::<Vec<_>>(), ["net.core.somaxconn"]);
    assert_eq!(root.text(TCP_MEM).unwrap(), "190000 250000 300000");
    assert!(root.text(RECORD_FILE).is_some());
    tree.without(SOMAXCONN).file(SOMAXCONN, "20000\n");
    assert_eq!(rollback(&root).unwrap().failed, []);
    assert_eq!((root.text(SOMAXCONN), root.text(RECORD_FILE)), (Some("4096".to_owned()), None));
}

#[test]
fn nothing_is_changed_when_the_record_cannot_be_written() {
    let tree = host();
    let root = tree.root();
    // A file where the record's folder would be.
    tree.file("/var/lib/trunkline", "");
    let before = everything(&root);
    assert!(apply(&root, Profile::M1).unwrap_err().contains("nothing was changed"));
    assert_eq!(everything(&root), before);
}

#[test]
fn a_record_that_is_none_is_refused_and_kept() {
    for text in [
        "",
        "{}",
        "{\"version\":2,\"sysctls\":{},\"sysctl_file\":null}",
        "{\"version\":1,\"sysctls\":{\"a/../../b\":\"1\"},\"sysctl_file\":null}",
    ] {
        let tree = host();
        let root = tree.root();
        tree.file(RECORD_FILE, text);
        let before = everything(&root);
        for refused in [apply(&root, Profile::M1), rollback(&root)] {
            assert!(refused.unwrap_err().contains(RECORD_FILE), "{text}");
        }
        assert_eq!(everything(&root), before);
    }
}
