//! Numbers of this process under the names that every Prometheus client gives them, from /proc.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Ticks of the clock in which /proc counts time, in a second: the same on every Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// What /proc tells; `None` where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// User and system time, seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory that is not swapped out, bytes.
    pub resident_bytes: Option<u64>,
    /// Open descriptors. Those that live in a ring's own table are not among them.
    pub open_fds: Option<u64>,
    /// The most there may be.
    pub max_fds: Option<u64>,
    /// When the process started, seconds since the Unix epoch.
    pub start_seconds: Option<f64>,
}

impl Process {
    /// Reads it.
    #[must_use]
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
        let statm = fs::read_to_string("/proc/self/status").ok();
        let uptime = fs::read_to_string("/proc/uptime").ok();
        let uptime = uptime.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Process {
            cpu_seconds: stat.map(|stat| stat.cpu_ticks as f64 / TICKS_PER_SEC),
            resident_bytes: statm.and_then(|text| kib(&text, "VmRSS:")).map(|kib| kib * 1_024),
            // One is that of the look itself.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
            max_fds: fs::read_to_string("/proc/self/limits").ok().and_then(|text| soft_limit(&text, "Max open files")),
            start_seconds: stat
                .zip(uptime)
                .map(|(stat, uptime)| now - uptime + stat.start_ticks as f64 / TICKS_PER_SEC),
        }
    }

    /// Name, type, help and value of each.
    #[must_use]
    pub fn series(&self) -> Vec<(&'static str, &'static str, &'static str, f64)> {
        let whole = |number: Option<u64>| number.map(|number| number as f64);
        [
            ("process_cpu_seconds_total", "counter", "User and system time of all threads.", self.cpu_seconds),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Memory of the process that is not swapped out, in bytes.",
                whole(self.resident_bytes),
            ),
            (
                "process_open_fds",
                "gauge",
                "Open descriptors; connections of clients in a ring's own table are not among them.",
                whole(self.open_fds),
            ),
            ("process_max_fds", "gauge", "Most descriptors the process may have open.", whole(self.max_fds)),
            (
                "process_start_time_seconds",
                "gauge",
                "When the process started, in seconds since the Unix epoch.",
                self.start_seconds,
            ),
        ]
        .into_iter()
        .filter_map(|(name, kind, help, value)| Some((name, kind, help, value?)))
        .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// The name of the program stands in parentheses and may hold anything, so the fields are counted behind the last
    /// one.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        // The first behind it is number 3.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)? })
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// `None` for a limit that is none: the largest number there is would not be one that anybody looks at.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "42 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 17 18 777 20 21";
        assert_eq!(Stat::parse(stat), Some(Stat { cpu_ticks: 300, start_ticks: 777 }));
        for broken in ["", "1 (x", "1 (x) S 1 2", "1 (x) S a b c d e f g h i j k l m n o p q r s t u v"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
        assert_eq!(kib("VmSize:  9 kB\nVmRSS:\t    5120 kB\n", "VmRSS:"), Some(5_120));
        assert_eq!(
            soft_limit("Max open files            1024       20000      files\n", "Max open files"),
            Some(1_024)
        );
        assert_eq!(
            soft_limit("Max open files            unlimited       unlimited      files\n", "Max open files"),
            None
        );
    }

    #[test]
    fn this_process_tells_all() {
        let process = Process::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(process.start_seconds.is_some_and(|start| start > 1e9 && start < now + 5.0), "{process:?}");
        assert!(
            process.open_fds.is_some_and(|open| open >= 3) && process.resident_bytes.is_some_and(|bytes| bytes > 0)
        );
        assert!(process.series().len() >= 4, "{process:?}");
    }
}
