//! What the doctor needs to know about a host, read once.

use crate::host_tree::{MemoryGroup, Root, Version};

/// Bit of CAP_SYS_ADMIN in a mask of capabilities.
const CAP_SYS_ADMIN: u32 = 21;
/// From this kernel on a socket is charged to the control group that accepts it; before, its largest part stayed with
/// nobody because it is made while no process runs.
const SOCKETS_CHARGED: (u64, u64) = (6, 12);

/// Facts about a host that several checks and the prediction rest on. `None` is what it does not tell.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel.
    pub kernel: String,
    /// Hard limit on open files; `u64::MAX` when there is none.
    pub nofile_hard: u64,
    /// Most open files of the whole system.
    pub file_max: Option<u64>,
    /// Open files of the whole system.
    pub files_open: u64,
    /// Whether this process has CAP_SYS_ADMIN, which may exceed `file_max`.
    pub sys_admin: bool,
    /// Memory of this process, bytes: it is free again when the doctor has ended.
    pub own_bytes: u64,
    /// Memory that may be taken without swapping, bytes.
    pub memory_available: Option<u64>,
    /// Control groups that limit the memory of this process.
    pub groups: Vec<MemoryGroup>,
    /// Most tracked connections and their number now, where the module is loaded.
    pub conntrack: Option<(u64, u64)>,
}

impl Facts {
    /// Reads them. `nofile_hard` is what the configuration was resolved with.
    pub fn read(root: &Root, nofile_hard: u64) -> Self {
        let file_nr = root.text("/proc/sys/fs/file-nr").unwrap_or_default();
        let mut file_nr = file_nr.split_whitespace().map(str::parse::<u64>);
        // Open files, and those that wait to be used again.
        let (allocated, unused) = (file_nr.next(), file_nr.next());
        let number = |part: Option<Result<u64, _>>| part.and_then(Result::ok).unwrap_or(0);
        let conntrack_max = root.number("/proc/sys/net/netfilter/nf_conntrack_max");
        Facts {
            kernel: root.text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            nofile_hard,
            file_max: root.number("/proc/sys/fs/file-max"),
            files_open: number(allocated).saturating_sub(number(unused)),
            sys_admin: has_sys_admin(root.status("CapEff").as_deref()),
            own_bytes: own_bytes(root.status("RssAnon").as_deref()),
            memory_available: root.memory_available(),
            groups: root.memory_groups(),
            conntrack: conntrack_max
                .map(|max| (max, root.number("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0))),
        }
    }

    /// The control group that allows least.
    pub fn tightest_group(&self) -> Option<&MemoryGroup> {
        self.groups.iter().min_by_key(|group| group.left())
    }

    /// Whether a group is charged for the sockets its processes accept.
    pub fn charges_sockets(&self, version: Version) -> bool {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        version == Version::V2 && release >= SOCKETS_CHARGED
    }
}

/// `RssAnon` of /proc/self/status, such as `5120 kB`.
fn own_bytes(rss: Option<&str>) -> u64 {
    let kib = rss.and_then(|rss| rss.strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1_024)
}

fn has_sys_admin(mask: Option<&str>) -> bool {
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask >> CAP_SYS_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_tree::tests::Tree;

    #[test]
    fn capabilities_are_read_from_the_mask() {
        assert!(has_sys_admin(Some("000001ffffffffff")) && has_sys_admin(Some("0000000000200000")));
        assert!(!has_sys_admin(Some("0000000000000000")) && !has_sys_admin(Some("nonsense")) && !has_sys_admin(None));
    }

    #[test]
    fn the_doctors_own_memory_is_read_in_kib() {
        assert_eq!((own_bytes(Some("5120 kB")), own_bytes(Some("5120")), own_bytes(None)), (5 << 20, 0, 0));
    }

    #[test]
    fn an_empty_tree_gives_facts_that_say_nothing() {
        let facts = Facts::read(&Tree::new().root(), 5);
        assert_eq!((facts.file_max, facts.memory_available, facts.conntrack), (None, None, None));
        assert!(facts.groups.is_empty() && !facts.sys_admin);
    }

    #[test]
    fn sockets_are_charged_to_groups_of_version_2_from_6_12() {
        let mut facts = Facts::read(&Tree::new().root(), 5);
        for (kernel, charges) in
            [("6.12.1", true), ("6.18.44-x", true), ("7.0", true), ("6.11.9", false), ("6.1.0", false), ("", false)]
        {
            facts.kernel = kernel.to_owned();
            assert_eq!(facts.charges_sockets(Version::V2), charges, "{kernel}");
            assert!(!facts.charges_sockets(Version::V1));
        }
    }
}
