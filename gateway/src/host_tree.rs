//! What the kernel tells in /proc and /sys, read below a root folder, so that tests hand in made-up trees.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where /proc, /sys, /etc and /var are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

/// What a file of the tree came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its text without the white space around it.
    Text(String),
    /// There is no such file: the kernel lacks the feature, or the module is not loaded.
    Absent,
    /// It is there and cannot be read; holds why.
    Unreadable(String),
}

/// Limits this large stand for none: version 1 rounds `u64::MAX / 2` down to whole pages, and pages differ in size.
const MEMORY_LIMIT_NONE: u64 = 1 << 62;
/// Where control groups are mounted.
const GROUPS_V2: &str = "/sys/fs/cgroup";
const GROUPS_V1: &str = "/sys/fs/cgroup/memory";

impl Root {
    /// The machine this runs on.
    pub fn system() -> Self {
        Root(PathBuf::from("/"))
    }

    /// A tree below this folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Root(folder.into())
    }

    /// Whether it is the machine this runs on.
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where a file with this absolute name lies.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// Reads a file.
    pub fn look(&self, absolute: &str) -> Found {
        match fs::read_to_string(self.path(absolute)) {
            Ok(text) => Found::Text(text.trim().to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Found::Absent
            }
            Err(error) => Found::Unreadable(error.to_string()),
        }
    }

    /// The text of a file that is there and can be read.
    pub fn text(&self, absolute: &str) -> Option<String> {
        match self.look(absolute) {
            Found::Text(text) => Some(text),
            Found::Absent | Found::Unreadable(_) => None,
        }
    }

    /// A file that holds one number.
    pub fn number(&self, absolute: &str) -> Option<u64> {
        self.text(absolute)?.parse().ok()
    }

    /// Names in a folder, sorted; empty when there is none.
    pub fn names(&self, absolute: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(absolute)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// CPUs the machine shows; none when it does not tell.
    pub fn cpus(&self) -> usize {
        let is_cpu = |name: &String| {
            name.strip_prefix("cpu").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        };
        self.names("/sys/devices/system/cpu").iter().filter(|name| is_cpu(name)).count()
    }

    /// The hard limit of this name in /proc/self/limits; `u64::MAX` when there is none.
    pub fn hard_limit(&self, name: &str) -> Option<u64> {
        let limits = self.text("/proc/self/limits")?;
        let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
        match rest.split_whitespace().nth(1)? {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        }
    }

    /// A line of /proc/self/status, such as `CapEff`.
    pub fn status(&self, name: &str) -> Option<String> {
        let status = self.text("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    }

    /// `MemAvailable`: what may be taken without swapping, bytes.
    pub fn memory_available(&self) -> Option<u64> {
        meminfo_bytes(&self.text("/proc/meminfo")?, "MemAvailable")
    }

    /// The control groups above this process that limit its memory, its own first.
    pub fn memory_groups(&self) -> Vec<MemoryGroup> {
        let Some(groups) = self.text("/proc/self/cgroup") else { return Vec::new() };
        let mut limited = Vec::new();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if controllers.is_empty() {
                self.collect_groups(GROUPS_V2, path, Version::V2, &mut limited);
            } else if controllers.split(',').any(|controller| controller == "memory") {
                self.collect_groups(GROUPS_V1, path, Version::V1, &mut limited);
            }
        }
        limited
    }

    /// Walks from a group up to the mount: every level bounds those below it.
    fn collect_groups(&self, mount: &str, path: &str, version: Version, limited: &mut Vec<MemoryGroup>) {
        let mut path = path.trim_end_matches('/');
        // In a container the file may name the path outside while the mount shows only the inside.
        if !self.path(&format!("{mount}{path}")).is_dir() {
            path = "";
        }
        loop {
            limited.extend(self.memory_group(&format!("{mount}{path}"), version));
            let Some((parent, _)) = path.rsplit_once('/') else { return };
            path = parent;
        }
    }

    fn memory_group(&self, folder: &str, version: Version) -> Option<MemoryGroup> {
        let (limits, current, caches): (&[&str], _, _) = match version {
            // Above the first a group is stalled until it gives memory back, which serves nobody.
            Version::V2 => (&["memory.high", "memory.max"], "memory.current", ["inactive_file", "active_file"]),
            Version::V1 => {
                (&["memory.limit_in_bytes"], "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
            }
        };
        // "max" is no number, and so no limit.
        let limit_in = |name: &&str| {
            let file = format!("{folder}/{name}");
            let limit = self.number(&file).filter(|limit| *limit < MEMORY_LIMIT_NONE)?;
            Some((limit, file))
        };
        let (limit, file) = limits.iter().filter_map(limit_in).min()?;
        let used = self.number(&format!("{folder}/{current}")).unwrap_or(0);
        let stat = self.text(&format!("{folder}/memory.stat")).unwrap_or_default();
        let cached = |name: &str| -> u64 {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
            value.unwrap_or(0)
        };
        let cached: u64 = caches.into_iter().map(cached).sum();
        Some(MemoryGroup { file, version, limit, used: used.saturating_sub(cached) })
    }
}

/// Version of the control groups' interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
}

/// A control group with a limit on memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryGroup {
    /// The file that holds the limit.
    pub file: String,
    /// Version of its interface.
    pub version: Version,
    /// The limit, bytes.
    pub limit: u64,
    /// What is taken, bytes, without the page cache, which the kernel gives up first.
    pub used: u64,
}

impl MemoryGroup {
    /// What may still be taken, bytes.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// A line of /proc/meminfo, bytes.
fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// A made-up tree in the folder for temporary files, removed at the end.
    pub(crate) struct Tree(PathBuf);

    impl Tree {
        pub(crate) fn new() -> Self {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder = std::env::temp_dir().join(format!("trunkline-tree-{}-{number}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Tree(folder)
        }

        pub(crate) fn file(&self, absolute: &str, text: &str) -> &Self {
            let path = self.root().path(absolute);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        pub(crate) fn without(&self, absolute: &str) -> &Self {
            fs::remove_file(self.root().path(absolute)).unwrap();
            self
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(&self.0)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            if let Err(error) = fs::remove_dir_all(&self.0) {
                eprintln!("{}: {error}", self.0.display());
            }
        }
    }

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:        20000000 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable"), Some(21_000_000 * 1_024));
        for broken in ["", "MemAvailable:", "MemAvailable: many kB", "MemAvailable: 5"] {
            assert_eq!(meminfo_bytes(broken, "MemAvailable"), None, "{broken:?}");
        }
    }

    #[test]
    fn absent_unreadable_and_empty_files_are_told_apart() {
        let tree = Tree::new();
        tree.file("/proc/some", " 5\n").file("/proc/empty", "");
        assert_eq!(tree.root().look("/proc/some"), Found::Text("5".to_owned()));
        assert_eq!(tree.root().look("/proc/empty"), Found::Text(String::new()));
        assert_eq!(tree.root().look("/proc/none"), Found::Absent);
        assert_eq!(tree.root().look("/proc/some/below"), Found::Absent);
        assert!(matches!(tree.root().look("/proc"), Found::Unreadable(_)));
        assert_eq!((tree.root().number("/proc/some"), tree.root().number("/proc/empty")), (Some(5), None));
    }

    #[test]
    fn hard_limits_are_the_second_number() {
        let tree = Tree::new();
        tree.file(
            "/proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            1024                 20000                files     \n\
             Max locked memory         65536                unlimited            bytes     \n",
        );
        assert_eq!(tree.root().hard_limit("Max open files"), Some(20_000));
        assert_eq!(tree.root().hard_limit("Max locked memory"), Some(u64::MAX));
        assert_eq!(tree.root().hard_limit("Max nonsense"), None);
    }

    #[test]
    fn every_group_of_version_2_on_the_way_up_counts() {
        let tree = Tree::new();
        tree.file("/proc/self/cgroup", "0::/system.slice/gateway.service\n")
            .file("/sys/fs/cgroup/system.slice/gateway.service/memory.max", "max\n")
            .file("/sys/fs/cgroup/system.slice/gateway.service/memory.current", "5000\n")
            .file("/sys/fs/cgroup/system.slice/memory.max", "8000\n")
            .file("/sys/fs/cgroup/system.slice/memory.current", "5000\n")
            .file("/sys/fs/cgroup/system.slice/memory.stat", "anon 4000\ninactive_file 700\nactive_file 300\n");
        let groups = tree.root().memory_groups();
        assert_eq!(groups.len(), 1, "{groups:?}");
        assert_eq!((groups[0].limit, groups[0].used, groups[0].left()), (8_000, 4_000, 4_000));
        assert_eq!(groups[0].file, "/sys/fs/cgroup/system.slice/memory.max");
        tree.file("/sys/fs/cgroup/system.slice/gateway.service/memory.max", "5500\n");
        let left: Vec<u64> = tree.root().memory_groups().iter().map(MemoryGroup::left).collect();
        assert_eq!(left, [500, 4_000]);
        tree.file("/sys/fs/cgroup/system.slice/memory.high", "7000\n");
        assert_eq!(tree.root().memory_groups()[1].left(), 3_000);
        assert_eq!(tree.root().memory_groups()[1].file, "/sys/fs/cgroup/system.slice/memory.high");
    }

    #[test]
    fn groups_of_version_1_count_and_their_largest_number_is_no_limit() {
        let tree = Tree::new();
        let limit = "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes";
        tree.file("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n")
            .file(limit, "9223372036854771712\n")
            .file("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "3000\n");
        assert_eq!(tree.root().memory_groups(), []);
        tree.file(limit, "10000\n");
        let groups = tree.root().memory_groups();
        assert_eq!((groups[0].version, groups[0].left()), (Version::V1, 7_000));
        tree.file(limit, "2000\n");
        assert_eq!(tree.root().memory_groups()[0].left(), 0);
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_finds_it_at_the_mount() {
        let tree = Tree::new();
        tree.file("/proc/self/cgroup", "0::/../../docker/abc\n")
            .file("/sys/fs/cgroup/memory.max", "9000\n")
            .file("/sys/fs/cgroup/memory.current", "1000\n");
        assert_eq!(tree.root().memory_groups().iter().map(MemoryGroup::left).collect::<Vec<_>>(), [8_000]);
    }

    #[test]
    fn only_numbered_cpus_count() {
        let tree = Tree::new();
        for name in ["cpu0", "cpu1", "cpu12", "cpufreq", "cpuidle", "cpu"] {
            tree.file(&format!("/sys/devices/system/cpu/{name}/uevent"), "");
        }
        assert_eq!(tree.root().cpus(), 3);
    }
}
