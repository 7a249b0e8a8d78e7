//! The sysctl profiles of `tuning/sysctl`, which this program carries, and how a host differs from one.

use crate::host_tree::{Found, Root};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt;

/// A profile: settings for a number of mostly idle connections on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Profile {
    /// 100,000 connections.
    #[value(name = "100k")]
    K100,
    /// 1,000,000 connections.
    #[value(name = "1m")]
    M1,
    /// 10,000,000 connections.
    #[value(name = "10m")]
    M10,
}

impl Profile {
    /// All of them, smallest first.
    pub const ALL: [Profile; 3] = [Profile::K100, Profile::M1, Profile::M10];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::K100 => "100k",
            Profile::M1 => "1m",
            Profile::M10 => "10m",
        }
    }

    /// Connections it is made for.
    pub fn connections(self) -> u64 {
        match self {
            Profile::K100 => 100_000,
            Profile::M1 => 1_000_000,
            Profile::M10 => 10_000_000,
        }
    }

    /// The smallest that is made for this many connections, or the largest there is.
    pub fn covering(connections: u64) -> Self {
        Profile::ALL.into_iter().find(|profile| profile.connections() >= connections).unwrap_or(Profile::M10)
    }

    /// Its file.
    pub fn text(self) -> &'static str {
        match self {
            Profile::K100 => include_str!("../../../tuning/sysctl/trunkline-100k.conf"),
            Profile::M1 => include_str!("../../../tuning/sysctl/trunkline-1m.conf"),
            Profile::M10 => include_str!("../../../tuning/sysctl/trunkline-10m.conf"),
        }
    }

    /// What the file says.
    pub fn settings(self) -> Vec<Setting> {
        parse(self.text()).expect("the profiles of this program are tested")
    }
}

/// One line of a sysctl file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name with dots.
    pub key: String,
    /// Value, its fields with one space between.
    pub value: String,
    /// Written with a minus sign: the kernel may lack it.
    pub optional: bool,
}

/// A line that is none of a sysctl file; holds its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLine(pub usize);

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: it must be name = value, or a comment with # or ;", self.0)
    }
}

/// Reads the syntax of sysctl.d(5), without its patterns.
///
/// # Errors
/// The first line that is neither empty, nor a comment, nor `name = value`.
pub fn parse(text: &str) -> Result<Vec<Setting>, BadLine> {
    let mut settings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (optional, line) = line.strip_prefix('-').map_or((false, line), |rest| (true, rest));
        let (key, value) = line.split_once('=').ok_or(BadLine(at + 1))?;
        let (key, value) = (key.trim(), fields(value));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        // A name that climbs out of /proc/sys is none.
        if key.is_empty() || value.is_empty() || key.contains("..") || !key.chars().all(is_name) {
            return Err(BadLine(at + 1));
        }
        settings.push(Setting { key: key.replace('/', "."), value, optional });
    }
    Ok(settings)
}

/// The fields with one space between: the kernel writes tabs.
pub(super) fn fields(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The file of a sysctl.
pub(super) fn sysctl_file(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// In which direction a value may be off without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// More is as good.
    AtLeast,
    /// Less is as good.
    AtMost,
}

/// What is known about a setting besides its value: its name, its rule, and what goes wrong without it.
struct Knowledge(&'static str, Rule, &'static str);

const KNOWLEDGE: [Knowledge; 15] = [
    Knowledge("fs.nr_open", Rule::AtLeast, "no limit on open files, and so no shard's table, can be larger"),
    Knowledge("fs.file-max", Rule::AtLeast, "each connection is a file; beyond it accepts fail with ENFILE"),
    Knowledge(
        "net.core.somaxconn",
        Rule::AtLeast,
        "a burst of logins beyond it is dropped and comes again after a second",
    ),
    Knowledge("net.ipv4.tcp_max_syn_backlog", Rule::AtLeast, "where SYN cookies are off, SYNs beyond it are dropped"),
    Knowledge("net.core.netdev_max_backlog", Rule::AtLeast, "packets steered to a busy CPU are dropped beyond it"),
    Knowledge("net.ipv4.tcp_mem", Rule::AtLeast, "beyond it the kernel drops data and refuses sends on all sockets"),
    Knowledge("net.ipv4.tcp_rmem", Rule::AtMost, "peers may pin more memory by sending what is not read"),
    Knowledge("net.ipv4.tcp_wmem", Rule::AtMost, "peers may pin more memory by not reading"),
    Knowledge(
        "net.ipv4.tcp_max_tw_buckets",
        Rule::AtLeast,
        "closed connections skip TIME_WAIT, and the kernel complains",
    ),
    Knowledge("net.ipv4.tcp_max_orphans", Rule::AtLeast, "a drain resets stalled peers, which then miss their BYE"),
    Knowledge("vm.min_free_kbytes", Rule::AtLeast, "a burst of logins finds no free page and its packets are dropped"),
    Knowledge("net.netfilter.nf_conntrack_max", Rule::AtLeast, "with connection tracking, SYNs beyond it are dropped"),
    Knowledge("net.netfilter.nf_conntrack_buckets", Rule::AtLeast, "tracking each packet walks a long chain"),
    Knowledge("kernel.io_uring_disabled", Rule::AtMost, "the gateway does not start"),
    // The default range is as good as any; it is known so that a file of an operator's own may set it.
    Knowledge("net.ipv4.ip_local_port_range", Rule::AtLeast, "outgoing connections to one address run out of ports"),
];

fn knowledge(key: &str) -> Option<&'static Knowledge> {
    KNOWLEDGE.iter().find(|known| known.0 == key)
}

/// How the host stands to one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// As good as wanted.
    Satisfied,
    /// Worse than wanted.
    Differs,
    /// The kernel has no such setting, or its module is not loaded.
    NotPresent,
    /// It cannot be read.
    Unreadable,
}

/// One setting of a profile and what the host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Name of the sysctl.
    pub setting: String,
    /// What the host has; empty when it has none.
    pub found: String,
    /// What the profile says.
    pub wanted: String,
    /// What `--apply` makes it: the better of the two in each field.
    pub target: String,
    /// How the host stands to it.
    pub standing: Standing,
    /// What goes wrong without it.
    pub without: &'static str,
    /// Whether the kernel may lack it.
    #[serde(skip)]
    pub optional: bool,
}

/// Compares a host with a profile, setting by setting.
pub fn compare(root: &Root, profile: Profile) -> Vec<Difference> {
    profile.settings().into_iter().map(|setting| difference(root, setting)).collect()
}

fn difference(root: &Root, setting: Setting) -> Difference {
    let Setting { key, value: wanted, optional } = setting;
    let (rule, without) = knowledge(&key).map_or((Rule::AtLeast, ""), |known| (known.1, known.2));
    let (found, standing) = match root.look(&sysctl_file(&key)) {
        Found::Text(found) => (fields(&found), None),
        Found::Absent => (String::new(), Some(Standing::NotPresent)),
        Found::Unreadable(_) => (String::new(), Some(Standing::Unreadable)),
    };
    let target = better(&found, &wanted, rule);
    let standing = standing.unwrap_or(if target == found { Standing::Satisfied } else { Standing::Differs });
    Difference { setting: key, found, wanted, target, standing, without, optional }
}

/// The better of two values in each field; what is wanted where they cannot be compared.
pub(super) fn better(found: &str, wanted: &str, rule: Rule) -> String {
    let numbers = |text: &str| text.split(' ').map(str::parse::<u64>).collect::<Result<Vec<_>, _>>();
    match (numbers(found), numbers(wanted)) {
        (Ok(found), Ok(wanted)) if found.len() == wanted.len() => {
            let pick = |(found, wanted): (u64, u64)| match rule {
                Rule::AtLeast => found.max(wanted).to_string(),
                Rule::AtMost => found.min(wanted).to_string(),
            };
            found.into_iter().zip(wanted).map(pick).collect::<Vec<_>>().join(" ")
        }
        _ => wanted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_tree::tests::Tree;

    #[test]
    fn every_profile_parses_and_every_setting_is_known() {
        for profile in Profile::ALL {
            let settings = parse(profile.text()).unwrap();
            assert!(settings.len() >= 12, "{}", profile.name());
            for setting in &settings {
                assert!(knowledge(&setting.key).is_some(), "{}", setting.key);
                assert_eq!(settings.iter().filter(|other| other.key == setting.key).count(), 1, "{}", setting.key);
            }
        }
    }

    #[test]
    fn a_larger_profile_never_asks_for_less() {
        for pair in Profile::ALL.windows(2) {
            let (smaller, larger) = (pair[0].settings(), pair[1].settings());
            assert_eq!(smaller.len(), larger.len());
            for (small, large) in smaller.iter().zip(&larger) {
                assert_eq!(small.key, large.key);
                if knowledge(&small.key).unwrap().1 == Rule::AtLeast {
                    assert_eq!(better(&small.value, &large.value, Rule::AtLeast), large.value, "{}", small.key);
                }
            }
        }
    }

    #[test]
    fn the_profiles_follow_their_arithmetic() {
        for profile in Profile::ALL {
            let value = |key: &str| {
                let setting = profile.settings().into_iter().find(|setting| setting.key == key).unwrap();
                setting.value.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
            };
            let n = profile.connections();
            assert_eq!(value("fs.file-max"), 2 * n);
            assert_eq!(value("net.ipv4.tcp_max_orphans"), n / 10);
            assert_eq!(value("net.ipv4.tcp_max_tw_buckets"), n / 600 * 60 + (n % 600) / 10);
            assert_eq!(value("net.ipv4.tcp_mem"), n.min(200_000) + n / 10 * 4);
            assert_eq!(value("net.netfilter.nf_conntrack_max"), n + n / 5);
            assert!(value("net.ipv4.tcp_max_syn_backlog") >= value("net.core.somaxconn") * 4 / 3);
        }
    }

    #[test]
    fn the_smallest_profile_that_covers_is_chosen() {
        for (connections, name) in
            [(1, "100k"), (100_000, "100k"), (100_001, "1m"), (1_000_001, "10m"), (50_000_000, "10m")]
        {
            assert_eq!(Profile::covering(connections).name(), name);
        }
    }

    #[test]
    fn the_syntax_of_sysctl_files_is_read() {
        let text = "# a\n; b\n\n a.b = 1\t2  3 \n-c.d=0\nnet/core/x = y\n";
        let setting = |key: &str, value: &str, optional| Setting { key: key.into(), value: value.into(), optional };
        assert_eq!(
            parse(text).unwrap(),
            [setting("a.b", "1 2 3", false), setting("c.d", "0", true), setting("net.core.x", "y", false)]
        );
        for (text, line) in [("a", 1), ("\na =", 2), ("= 5", 1), ("a = 1\n../b = 2", 2), ("a b = 1", 1)] {
            assert_eq!(parse(text), Err(BadLine(line)), "{text:?}");
        }
    }

    #[test]
    fn the_better_value_is_taken_in_each_field() {
        assert_eq!(better("4096", "6000", Rule::AtLeast), "6000");
        assert_eq!(better("8192", "6000", Rule::AtLeast), "8192");
        assert_eq!(better("1 900 5", "2 3 4", Rule::AtLeast), "2 900 5");
        assert_eq!(better("4096 131072 33554432", "4096 32768 262144", Rule::AtMost), "4096 32768 262144");
        assert_eq!(better("", "5", Rule::AtLeast), "5");
        assert_eq!(better("1 2", "5", Rule::AtLeast), "5");
        assert_eq!(better("9223372036854775807", "5", Rule::AtLeast), "9223372036854775807");
    }

    #[test]
    fn a_host_is_compared_setting_by_setting() {
        let tree = Tree::new();
        tree.file("/proc/sys/net/core/somaxconn", "4096\n")
            .file("/proc/sys/fs/file-max", "9223372036854775807\n")
            .file("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n")
            .file("/proc/sys/fs/nr_open/x", "");
        let all = compare(&tree.root(), Profile::K100);
        let of = |key: &str| all.iter().find(|difference| difference.setting == key).unwrap();
        assert_eq!(
            (of("net.core.somaxconn").standing, of("net.core.somaxconn").target.as_str()),
            (Standing::Differs, "6000")
        );
        assert_eq!(of("fs.file-max").standing, Standing::Satisfied);
        assert_eq!(of("net.ipv4.tcp_rmem").found, "4096 131072 6291456");
        assert_eq!(of("net.ipv4.tcp_rmem").standing, Standing::Differs);
        assert_eq!(of("net.netfilter.nf_conntrack_max").standing, Standing::NotPresent);
        assert_eq!(of("fs.nr_open").standing, Standing::Unreadable);
    }
}
