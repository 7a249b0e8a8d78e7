//! What the kernel tells about a process and about its own memory.

use std::{collections::BTreeMap, fs, io, time::Duration};

use serde::Serialize;

use crate::failure::Failure;

/// CPU time of a process, or of several.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime {
    /// Time on a core, user and system, of all threads alive; nanosecond resolution, brought up to date at each
    /// scheduler tick.
    alive: Duration,
    /// The same in ticks, also of threads that have ended, with the part spent in user mode, which the kernel samples
    /// at each tick.
    user_ticks: u64,
    system_ticks: u64,
    processes: u32,
}

/// What rounding to ticks can make of the time of one process between two looks: two counters, each rounded at both
/// ends.
const ROUNDING_TICKS: u32 = 4;

impl CpuTime {
    /// Reads the CPU time of several processes together.
    pub(crate) fn of_all(pids: &[u32]) -> Result<CpuTime, Failure> {
        pids.iter().try_fold(CpuTime::default(), |sum, pid| {
            let CpuTime { alive, user_ticks, system_ticks, processes } = CpuTime::of(*pid)?;
            Ok(CpuTime {
                alive: sum.alive + alive,
                user_ticks: sum.user_ticks + user_ticks,
                system_ticks: sum.system_ticks + system_ticks,
                processes: sum.processes + processes,
            })
        })
    }

    /// Reads the CPU time of all threads of a process.
    pub(crate) fn of(pid: u32) -> Result<CpuTime, Failure> {
        Self::read(pid).map_err(|error| Failure::ServerGone(format!("process {pid} cannot be read any more: {error}")))
    }

    fn read(pid: u32) -> io::Result<CpuTime> {
        let mut alive = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedstat = match fs::read_to_string(thread?.path().join("schedstat")) {
                // The thread has ended since the listing; the process goes on, or else its `stat` is gone below.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
                schedstat => schedstat?,
            };
            let nanoseconds = schedstat.split_whitespace().next().and_then(|field| field.parse().ok());
            alive += Duration::from_nanos(nanoseconds.ok_or_else(|| malformed("schedstat"))?);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command's name may contain spaces; it ends at the last parenthesis. Fields 14 and 15 count from the
        // first.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
        Ok(CpuTime {
            alive,
            processes: 1,
            user_ticks: ticks(11).ok_or_else(|| malformed("stat"))?,
            system_ticks: ticks(12).ok_or_else(|| malformed("stat"))?,
        })
    }

    /// What has been spent since `earlier`, also by threads that have ended meanwhile, and which share of it in user
    /// mode.
    pub(crate) fn since(&self, earlier: &CpuTime) -> (Duration, f64) {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64;
        let user_share = if user + system > 0.0 { user / (user + system) } else { 0.0 };
        let tick = Duration::from_secs(1) / rustix::param::clock_ticks_per_second() as u32;
        let in_ticks = tick.mul_f64(user + system);
        let alive = self.alive.saturating_sub(earlier.alive);
        // Threads that have ended took their nanoseconds with them; the ticks have theirs.
        let ended = in_ticks > alive + tick * ROUNDING_TICKS * self.processes.max(1);
        (if ended { in_ticks } else { alive }, user_share)
    }

    /// Cores in use since `earlier`, which was so long ago.
    pub(crate) fn cores_since(&self, earlier: &CpuTime, length: Duration) -> f64 {
        self.since(earlier).0.as_secs_f64() / length.as_secs_f64().max(1e-9)
    }
}

/// CPU time of the threads of a process that have this name.
pub(crate) fn cpu_of_threads(pid: u32, name: &str) -> Result<Duration, Failure> {
    let read = || {
        let mut spent = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path();
            // A thread that has ended since the listing has no name any more.
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
                let schedstat = fs::read_to_string(path.join("schedstat"))?;
                let nanoseconds = schedstat.split_whitespace().next().and_then(|field| field.parse().ok());
                spent += Duration::from_nanos(nanoseconds.ok_or_else(|| malformed("schedstat"))?);
            }
        }
        Ok(spent)
    };
    read().map_err(|error: io::Error| Failure::system(&format!("reading the threads of process {pid}"), error))
}

/// Bytes that processes have made the kernel write to disks so far; `None` where it does not tell, as of processes of
/// somebody else.
pub(crate) fn written_bytes(pids: &[u32]) -> Option<u64> {
    let of = |pid: &u32| {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse::<u64>().ok()
    };
    pids.iter().map(of).sum()
}

/// CPU time of the calling thread.
pub(crate) fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of all threads of this process, those that have ended included.
pub(crate) fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The kernel's threads that handle packets and timers, one for each core, when there are more than the interrupted
/// programs are burdened with. Theirs is time that no program's CPU time has.
pub(crate) fn softirq_threads() -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is_one =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with("ksoftirqd/"));
    numbers.filter(is_one).collect()
}

/// CPU time that the host has taken away from this virtual machine since it booted, all cores together; zero on bare
/// metal.
pub(crate) fn stolen() -> Result<Duration, Failure> {
    let stat = fs::read_to_string("/proc/stat").map_err(|error| Failure::system("reading /proc/stat", error))?;
    // cpu user nice system idle iowait irq softirq steal …
    let ticks: u64 = stat.split_whitespace().nth(8).and_then(|field| field.parse().ok()).unwrap_or(0);
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Memory that nothing uses, page cache included in what is used, in bytes.
pub(crate) fn free_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.freeram * u64::from(info.mem_unit)
}

/// Whether a process exists and has not ended.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command's name in parentheses; Z and X are processes that have ended.
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(|state| !matches!(state, 'Z' | 'X')))
}

/// User memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct UserMemory {
    /// Every resident page: heap, stacks, code, ring memory shared with the kernel.
    pub(crate) rss: i64,
    /// Private pages that belong to no file: heap, stacks, anonymous maps.
    pub(crate) anonymous: i64,
    /// Resident pages, those shared with other processes divided among them.
    pub(crate) pss: i64,
    /// The kernel's page tables for this process.
    pub(crate) page_tables: i64,
}

impl UserMemory {
    /// Reads that of several processes together.
    pub(crate) fn of_all(pids: &[u32]) -> Result<UserMemory, Failure> {
        pids.iter().try_fold(UserMemory::default(), |sum, pid| {
            let UserMemory { rss, anonymous, pss, page_tables } = UserMemory::of(*pid)?;
            Ok(UserMemory {
                rss: sum.rss + rss,
                anonymous: sum.anonymous + anonymous,
                pss: sum.pss + pss,
                page_tables: sum.page_tables + page_tables,
            })
        })
    }

    /// Reads `/proc/PID/smaps_rollup` and `/proc/PID/status`.
    pub(crate) fn of(pid: u32) -> Result<UserMemory, Failure> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let mut fields = read_fields(&path)?;
        fields.extend(read_fields(&format!("/proc/{pid}/status"))?);
        let field = |name: &str| fields.get(name).copied().ok_or_else(|| Failure::system(&path, malformed(name)));
        Ok(UserMemory {
            rss: field("Rss")?,
            anonymous: field("Anonymous")?,
            pss: field("Pss")?,
            page_tables: field("VmPTE")?,
        })
    }
}

/// Memory the kernel has in use for itself, machine-wide, in bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct KernelMemory {
    /// Pages of all slab caches (`Slab` in `/proc/meminfo`). Room left over from earlier objects is used up first, so
    /// this grows by more or less than the objects do.
    pub(crate) slab_pages: i64,
    /// Objects in use in all slab caches (`/proc/slabinfo`).
    pub(crate) slab_objects: i64,
    /// Areas made by vmalloc: large tables, kernel stacks.
    pub(crate) vmalloc: i64,
    /// All memory that is neither free nor page cache, that of processes included: a check on the sum of the rest.
    pub(crate) machine_used: i64,
    /// Objects in use by cache.
    pub(crate) caches: BTreeMap<String, i64>,
    /// Whether it had come to rest.
    pub(crate) settled: bool,
}

impl KernelMemory {
    /// Reads `/proc/meminfo` and, where it may (it takes root), `/proc/slabinfo`.
    pub(crate) fn now() -> Result<KernelMemory, Failure> {
        let fields = read_fields("/proc/meminfo")?;
        let field = |name: &str| fields.get(name).copied().unwrap_or(0);
        let caches = slab_caches()?;
        Ok(KernelMemory {
            slab_pages: field("Slab"),
            slab_objects: caches.values().sum(),
            vmalloc: field("VmallocUsed"),
            machine_used: field("MemTotal") - field("MemFree") - field("Buffers") - field("Cached"),
            caches,
            settled: false,
        })
    }

    /// What has been added since `earlier`.
    pub(crate) fn since(&self, earlier: &KernelMemory) -> KernelMemory {
        let caches = self.caches.iter().map(|(name, bytes)| {
            let before = earlier.caches.get(name).copied().unwrap_or(0);
            (name.clone(), bytes - before)
        });
        KernelMemory {
            slab_pages: self.slab_pages - earlier.slab_pages,
            slab_objects: self.slab_objects - earlier.slab_objects,
            vmalloc: self.vmalloc - earlier.vmalloc,
            machine_used: self.machine_used - earlier.machine_used,
            caches: caches.filter(|(_, bytes)| *bytes != 0).collect(),
            settled: self.settled && earlier.settled,
        }
    }

    /// Slab objects in use and vmalloc areas. Page tables are left to [`UserMemory`], because those of other processes
    /// come and go.
    pub(crate) fn in_use(&self) -> i64 {
        self.slab_objects + self.vmalloc
    }
}

fn slab_caches() -> Result<BTreeMap<String, i64>, Failure> {
    let path = "/proc/slabinfo";
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::Setup(format!("kernel memory is read from {path}, which takes root: {error}")))?;
    let mut caches = BTreeMap::new();
    // Two header lines, then: name, active objects, objects, object size, …
    for line in text.lines().skip(2) {
        let mut fields = line.split_whitespace();
        let name = fields.next();
        let mut number = |skip: usize| fields.nth(skip).and_then(|field| field.parse::<i64>().ok());
        let (Some(name), Some(active), Some(size)) = (name, number(0), number(1)) else {
            return Err(Failure::system(path, malformed(line)));
        };
        caches.insert(name.to_owned(), active * size);
    }
    Ok(caches)
}

/// Lines of the form `Name:   123 kB`, in bytes.
fn read_fields(path: &str) -> Result<BTreeMap<String, i64>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::system(&format!("reading {path}"), error))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let kilobytes: i64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some((name.to_owned(), kilobytes * 1024))
        })
        .collect())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not as expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_grows_with_work() {
        let before = CpuTime::of(std::process::id()).expect("own process");
        let mut spent = Duration::ZERO;
        // Brought up to date at each tick, so some work may not show yet; it does after at most a second of it.
        for round in 0..100_000_000u64 {
            std::hint::black_box(round);
            if round % 1_000_000 == 0 {
                (spent, _) = CpuTime::of(std::process::id()).expect("own process").since(&before);
                if !spent.is_zero() {
                    break;
                }
            }
        }
        assert!(!spent.is_zero());
    }

    #[test]
    fn the_time_of_threads_that_have_ended_counts() {
        let second = |alive_ms, ticks| CpuTime {
            alive: Duration::from_millis(alive_ms),
            user_ticks: ticks,
            system_ticks: 0,
            processes: 1,
        };
        let ticks_each_second = rustix::param::clock_ticks_per_second();
        let before = second(5_000, 5 * ticks_each_second);
        // Nobody has ended: nanoseconds are exact where ticks are rounded.
        let exact = second(6_003, 6 * ticks_each_second);
        assert_eq!(exact.since(&before).0, Duration::from_millis(1_003));
        // A thread that had used four seconds has ended after one more.
        let fewer = second(1_000, 6 * ticks_each_second);
        assert_eq!(fewer.since(&before).0, Duration::from_secs(1));
        // One has begun and ended between the looks.
        let unseen = second(5_000, 7 * ticks_each_second);
        assert_eq!(unseen.since(&before).0, Duration::from_secs(2));
    }

    #[test]
    fn threads_are_counted_by_their_name() {
        let (told, over) = std::sync::mpsc::channel::<()>();
        let spinning = std::thread::Builder::new().name("spins-here".to_owned());
        let ended = Err(std::sync::mpsc::TryRecvError::Disconnected);
        let spinning = spinning.spawn(move || while over.try_recv() != ended {}).expect("a thread");
        let spent = || cpu_of_threads(std::process::id(), "spins-here").expect("own process");
        while spent().is_zero() {}
        assert_eq!(cpu_of_threads(std::process::id(), "spins-nowhere").expect("own process"), Duration::ZERO);
        drop(told);
        spinning.join().expect("it ends");
    }

    #[test]
    fn own_memory_is_resident() {
        let memory = UserMemory::of(std::process::id()).expect("own process");
        assert!(memory.rss >= memory.anonymous && memory.anonymous > 0 && memory.pss > 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // Above the largest process id Linux gives.
        assert!(matches!(CpuTime::of(1 << 23), Err(Failure::ServerGone(_))));
        assert!(!is_running(1 << 23) && is_running(std::process::id()));
    }
}
