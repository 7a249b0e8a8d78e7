//! Start-up checks: what the machine must offer, judged before anything starts, so that a failure is one sentence that
//! names the fix.

use crate::bounds::HTTP_CONNECTIONS_MAX;
use crate::budget::{Budget, Term};
use crate::config::{Config, Size};
use crate::events::LANES;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use trunkline_router::command::listen_error;
use trunkline_uring::RingError;

/// The first kernel with everything the data ring uses: single-issuer rings and deferred task work came with 6.1.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// The executor refuses to start with less locked memory.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// Descriptors of a shard besides its listeners: the data ring, the executor's three rings, eventfds.
const DESCRIPTORS_PER_SHARD: u64 = 10;
/// Descriptors of the process besides: standard streams, the control thread's, HTTP connections.
const DESCRIPTORS_PROCESS: u64 = 32 + HTTP_CONNECTIONS_MAX as u64;

/// Why the gateway does not start. Each message is one sentence that says how to fix it.
#[derive(Debug)]
pub enum StartupError {
    /// The kernel is too old; holds its release.
    Kernel(String),
    /// The sysctl `kernel.io_uring_disabled` forbids io_uring; holds its value.
    IoUringDisabled(u32),
    /// A ring cannot be set up although the kernel is new enough.
    IoUringRefused(io::Error),
    /// A ring can be set up but not entered, so nothing can be done with it.
    IoUringEnter(io::Error),
    /// An operation or feature of io_uring is missing; holds its name.
    IoUringFeature(&'static str, Option<io::Error>),
    /// The hard limit on open files is below what the descriptor table of a shard needs.
    DescriptorTable {
        /// The hard limit.
        hard: u64,
        /// Connections of each shard.
        connections_max: u32,
        /// What that needs.
        slots: u64,
        /// Connections of each shard for which the limit is enough; 0 if it is for none.
        fitting: u64,
    },
    /// The hard limit on open files is below what the process itself needs.
    Descriptors {
        /// The hard limit.
        hard: u64,
        /// What is needed.
        needed: u64,
        /// Shards it is needed for.
        shards: u16,
        /// Shards for which the limit is enough; 0 if it is for none.
        fitting: u64,
    },
    /// A limit of the process cannot be read or set.
    Limit(&'static str, io::Error),
    /// The hard limit on locked memory is too low; holds it.
    LockedMemory(u64),
    /// The store cannot be used; holds its folder.
    Store(PathBuf, String),
    /// The memory budget does not fit.
    MemoryBudget {
        /// Its sum, bytes.
        total: u64,
        /// What it may come to.
        memory_max: u64,
        /// Its largest terms.
        largest: Vec<(&'static str, u64)>,
        /// Flags and values, each of which makes the sum fit.
        remedies: Vec<String>,
    },
    /// An address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// A Unix socket cannot be listened on.
    ListenUnix(PathBuf, io::Error),
    /// The same, with the setting that names the address and where that comes from.
    ListenFor(SocketAddr, io::Error, String),
    /// The node could not join the cluster; holds why, and what to do.
    Cluster(String),
    /// A shard could not be set up.
    Shard(String),
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = KERNEL_MIN;
        match self {
            StartupError::Kernel(release) => {
                write!(f, "Linux {release} is too old: run a kernel {major}.{minor} or later (Debian 12 has 6.1)")
            }
            StartupError::IoUringDisabled(value) => write!(
                f,
                "io_uring is disabled (kernel.io_uring_disabled = {value}): enable it with sysctl -w \
                 kernel.io_uring_disabled=0, and for good in /etc/sysctl.d/"
            ),
            StartupError::IoUringRefused(error) => write!(
                f,
                "io_uring cannot be set up ({error}): allow the system calls io_uring_setup, io_uring_enter and \
                 io_uring_register; a container needs a seccomp profile that lists them, for Docker --security-opt \
                 seccomp=FILE, or seccomp=unconfined for a trial"
            ),
            StartupError::IoUringEnter(error) => write!(
                f,
                "io_uring can be set up and not used ({error}): a seccomp filter denies the system call \
                 io_uring_enter; allow it beside io_uring_setup and io_uring_register (SystemCallFilter= in systemd; \
                 for Docker --security-opt seccomp=FILE with a profile that lists all three, or seccomp=unconfined for \
                 a trial)"
            ),
            StartupError::IoUringFeature(name, error) => {
                write!(f, "io_uring here lacks {name}")?;
                if let Some(error) = error {
                    write!(f, " ({error})")?;
                }
                write!(f, ": run an unrestricted kernel {major}.{minor} or later")
            }
            StartupError::DescriptorTable { hard, connections_max, slots, fitting } => {
                write!(
                    f,
                    "the hard limit on open files (RLIMIT_NOFILE) is {hard}, and connections_max = {connections_max} \
                     needs {slots} in each shard: raise it to {slots} (LimitNOFILE={slots} in systemd, nofile in \
                     /etc/security/limits.conf, --ulimit nofile={slots} for Docker)"
                )?;
                match fitting {
                    0 => Ok(()),
                    fitting => write!(f, ", or lower --connections-max to {fitting} and use more --shards"),
                }
            }
            StartupError::Descriptors { hard, needed, shards, fitting } => {
                write!(
                    f,
                    "the hard limit on open files (RLIMIT_NOFILE) is {hard}, and {shards} shards need {needed} \
                     descriptors for themselves: raise it to {needed} (LimitNOFILE={needed} in systemd, nofile in \
                     /etc/security/limits.conf, --ulimit nofile={needed} for Docker)"
                )?;
                match fitting {
                    0 => Ok(()),
                    fitting => write!(f, ", or lower --shards to {fitting}"),
                }
            }
            StartupError::Limit(name, error) => {
                write!(
                    f,
                    "the limit {name} cannot be read or raised ({error}): allow the system call prlimit64 to this \
                     process"
                )
            }
            StartupError::LockedMemory(bytes) => write!(
                f,
                "the hard limit on locked memory is {}, and {} is needed: raise it (LimitMEMLOCK=8M in systemd, \
                 memlock in /etc/security/limits.conf, --ulimit memlock=8388608 for Docker)",
                Size(*bytes),
                Size(MEMLOCK_BYTES_MIN)
            ),
            StartupError::MemoryBudget { total, memory_max, largest, remedies } => {
                write!(f, "the memory budget does not fit: at its limits this node needs {}", Size(*total).rounded())?;
                write!(f, " and memory_max allows {}; the largest terms are ", Size(*memory_max).rounded())?;
                for (at, (name, bytes)) in largest.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{name} {}", Size(*bytes).rounded())?;
                }
                let or = if remedies.is_empty() { "raise --memory-max".to_owned() } else { remedies.join(", or ") };
                write!(f, ": each of these makes it fit: {or}")
            }
            StartupError::ListenUnix(path, error) => {
                write!(f, "cannot listen on unix:{} (--listen): {error}", path.display())
            }
            StartupError::Listen(address, error) => f.write_str(&listen_error(*address, error, "--listen or --http")),
            StartupError::ListenFor(address, error, setting) => f.write_str(&listen_error(*address, error, setting)),
            StartupError::Cluster(error) => f.write_str(error),
            StartupError::Store(folder, error) => {
                write!(f, "the store in {} (data_dir) cannot be used: {error}", folder.display())
            }
            StartupError::Shard(error) => {
                write!(f, "a shard could not be set up, {error}: gateway doctor checks what it needs")
            }
        }
    }
}

impl std::error::Error for StartupError {}

impl Budget {
    /// Whether the sum fits.
    ///
    /// # Errors
    /// When it does not; the message names the largest terms and the flags that lower them.
    pub fn check(&self) -> Result<(), StartupError> {
        if self.total() <= self.memory_max {
            return Ok(());
        }
        let mut terms: Vec<&Term> = self.terms.iter().collect();
        terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
        Err(StartupError::MemoryBudget {
            total: self.total(),
            memory_max: self.memory_max,
            largest: terms.iter().take(3).map(|term| (term.name, term.bytes)).collect(),
            remedies: self.remedies.clone(),
        })
    }
}

/// One check, as `gateway doctor` shows it.
#[derive(Debug)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found, or what is wrong and how to fix it.
    pub outcome: Result<String, StartupError>,
}

/// Raises the soft limits of this process and looks at everything the data path needs, in the order in which later
/// checks rely on earlier ones.
pub fn checks(config: &Config) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let check = |name, outcome| Check { name, outcome };
    vec![
        check("kernel", judge_kernel(&release).map(|()| format!("Linux {release}"))),
        check(
            "open files",
            raise_nofile()
                .and_then(|hard| judge_descriptors(hard, config))
                .map(|hard| format!("{hard}, raised to the hard limit")),
        ),
        check("locked memory", raise_memlock().and_then(judge_memlock)),
        check(
            "io_uring",
            judge_disabled(disabled.as_deref())
                .and_then(|()| probe_ring(config))
                .map(|()| "every operation it needs".to_owned()),
        ),
    ]
}

pub(crate) fn judge_kernel(release: &str) -> Result<(), StartupError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL_MIN => Ok(()),
        _ => Err(StartupError::Kernel(release.to_owned())),
    }
}

/// Value 2 forbids io_uring to all, 1 to those without privileges or membership in a group; whether that hits this
/// process the ring shows. Kernels before 6.6 have no such sysctl.
pub(crate) fn judge_disabled(sysctl: Option<&str>) -> Result<(), StartupError> {
    match sysctl.map(|value| value.trim().parse::<u32>()) {
        Some(Ok(value)) if value >= 2 => Err(StartupError::IoUringDisabled(value)),
        _ => Ok(()),
    }
}

/// Why a ring was refused, given what the sysctl says.
fn judge_refusal(error: io::Error, sysctl: Option<&str>) -> StartupError {
    match sysctl.map(|value| value.trim().parse::<u32>()) {
        Some(Ok(value)) if value > 0 && error.kind() == io::ErrorKind::PermissionDenied => {
            StartupError::IoUringDisabled(value)
        }
        _ => StartupError::IoUringRefused(error),
    }
}

/// Returns the hard limit when it is enough. What the errors advise passes this check.
pub(crate) fn judge_descriptors(hard: u64, config: &Config) -> Result<u64, StartupError> {
    let limits = config.limits();
    let addresses = config.listen.len();
    let needed = descriptors(config.shards, addresses) + of_services_thread(config);
    // Both read the same limit, so what is named must be enough for both.
    let slots = u64::from(limits.slots());
    let both = slots.max(needed);
    if slots > hard {
        let connections_max = limits.connections_max;
        let besides = slots - u64::from(connections_max);
        let fitting = if needed > hard { 0 } else { hard.saturating_sub(besides) };
        return Err(StartupError::DescriptorTable { hard, connections_max, slots: both, fitting });
    }
    if needed > hard {
        let each = descriptors(1, addresses) - descriptors(0, addresses);
        let fitting = hard.saturating_sub(descriptors(0, addresses) + of_services_thread(config)) / each;
        return Err(StartupError::Descriptors { hard, needed: both, shards: config.shards, fitting });
    }
    Ok(hard)
}

/// Ordinary descriptors the process needs. Connections of clients take none: they live in the rings' own tables.
fn descriptors(shards: u16, addresses: usize) -> u64 {
    DESCRIPTORS_PROCESS + u64::from(shards) * (DESCRIPTORS_PER_SHARD + addresses as u64)
}

/// Those of the services thread: its runtime, its listener and its connections, both ways.
fn of_services_thread(config: &Config) -> u64 {
    let connections = u64::from(crate::services_thread::CONNECTIONS_MAX);
    let limits = config.limits();
    let of_http = if config.services_http.is_some() { connections } else { 0 };
    // A look-up of a name, or a check, has one besides.
    let of_upstreams = u64::from(limits.upstream_conns_max) + if limits.upstream_conns_max > 0 { 64 } else { 0 };
    // A connection for each lane, and the files of the log.
    let of_webhooks = u64::from(limits.webhooks) * LANES as u64 + if limits.webhooks > 0 { 4 } else { 0 };
    let of_hook = u64::from(limits.hook_requests_max) + if limits.hook_requests_max > 0 { 4 } else { 0 };
    // The names of servers are looked up there; the shards dial them.
    let of_servers = config.services.as_ref().map_or(0, |services| services.dials_at_once(config.shards));
    let all = of_http + of_upstreams + of_webhooks + of_hook + of_servers;
    if all > 0 { 8 + all } else { 0 }
}

pub(crate) fn judge_memlock(hard: u64) -> Result<String, StartupError> {
    if hard < MEMLOCK_BYTES_MIN {
        return Err(StartupError::LockedMemory(hard));
    }
    Ok(if hard == u64::MAX { "unlimited".to_owned() } else { Size(hard).to_string() })
}

fn raise_nofile() -> Result<u64, StartupError> {
    raise(Resource::Nofile).map_err(|error| StartupError::Limit("RLIMIT_NOFILE", error))
}

fn raise_memlock() -> Result<u64, StartupError> {
    raise(Resource::Memlock).map_err(|error| StartupError::Limit("RLIMIT_MEMLOCK", error))
}

/// The soft limit RLIMIT_CORE that the kernel takes for "no dump at all": a file would have to be larger, and a program
/// that takes dumps is not called with it, which it is with 0.
const NO_CORE_DUMPS: u64 = 1;

/// Sees to it that no core dump of this process is written. A debugger still sees it, /proc tells of it as before, and
/// the soft limit can be raised while it runs. Where the hard limit leaves no room for that one, the process is marked
/// as not to be dumped, which hides it from debuggers and from others of its user too.
///
/// # Errors
/// What the kernel says.
pub fn forbid_core_dumps() -> io::Result<()> {
    match getrlimit(Resource::Core).maximum {
        Some(maximum) if maximum < NO_CORE_DUMPS => set_dumpable_behavior(DumpableBehavior::NotDumpable),
        maximum => setrlimit(Resource::Core, Rlimit { current: Some(NO_CORE_DUMPS), maximum }),
    }
    .map_err(io::Error::from)
}

/// Raises a soft limit to the hard one and returns that; `u64::MAX` when there is none.
fn raise(resource: Resource) -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current != maximum {
        setrlimit(resource, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Sets up a ring as a shard does, and takes it down again.
fn probe_ring(config: &Config) -> Result<(), StartupError> {
    let limits = config.limits();
    trunkline_uring::probe(limits.slots(), limits.recv_buffers, limits.recv_buffer_bytes).map_err(|error| match error {
        RingError::Setup(error) => {
            judge_refusal(error, fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().as_deref())
        }
        RingError::Feature(name, error) => StartupError::IoUringFeature(name, error),
        RingError::Enter(error) => StartupError::IoUringEnter(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Host, Settings, Sources};

    fn config(shards: u64, connections_max: u64) -> Config {
        let host = Host { cores: 2, nofile_hard: 20_000, memory_available: 16 << 30, name: "h".to_owned() };
        let command = Settings { shards: Some(shards), connections_max: Some(connections_max), ..Settings::default() };
        Config::resolve(Sources { command, ..Sources::default() }, &host).unwrap()
    }

    fn assert_names(error: &StartupError, parts: &[&str]) {
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
        assert!(!message.contains('\n'), "more than a sentence: {message}");
    }

    #[test]
    fn kernels_from_6_1_are_taken() {
        for release in ["6.1.0-18-amd64", "6.1", "6.10.3", "6.18.44-fc", "7.0.0-rc1", "10.0"] {
            assert!(judge_kernel(release).is_ok(), "{release}");
        }
        for release in ["6.0.19", "5.15.0-91-generic", "4.18", "6", "", "x.y", "six.one"] {
            let error = judge_kernel(release).unwrap_err();
            assert_names(&error, &[release, "6.1 or later"]);
        }
    }

    #[test]
    fn a_disabled_io_uring_names_the_sysctl() {
        for sysctl in [None, Some("0\n"), Some("1\n"), Some("")] {
            assert!(judge_disabled(sysctl).is_ok(), "{sysctl:?}");
        }
        assert_names(&judge_disabled(Some("2\n")).unwrap_err(), &["kernel.io_uring_disabled = 2", "sysctl -w"]);
    }

    #[test]
    fn a_refused_ring_is_explained_by_the_sysctl_or_else_by_seccomp() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        assert_names(&judge_refusal(refused(), Some("1\n")), &["kernel.io_uring_disabled = 1", "sysctl -w"]);
        for sysctl in [None, Some("0\n")] {
            assert_names(&judge_refusal(refused(), sysctl), &["seccomp", "io_uring_setup"]);
        }
        assert_names(&judge_refusal(io::Error::from_raw_os_error(libc::ENOSYS), Some("1")), &["seccomp"]);
    }

    #[test]
    fn a_missing_operation_is_named() {
        let error = StartupError::IoUringFeature("multishot accept", None);
        assert_names(&error, &["io_uring here lacks multishot accept", "6.1 or later"]);
    }

    #[test]
    fn the_descriptor_table_must_fit_the_hard_limit() {
        let config = config(2, 10_000);
        assert_eq!(judge_descriptors(10_064, &config).unwrap(), 10_064);
        let error = judge_descriptors(10_063, &config).unwrap_err();
        assert_names(
            &error,
            &["10063", "10064 in each shard", "LimitNOFILE=10064", "--connections-max to 9999", "--shards"],
        );
    }

    #[test]
    fn advice_about_descriptors_can_be_followed() {
        for hard in [0, 1, 64, 65, 96, 120, 200, 1_024] {
            for (shards, connections) in [(1, 1), (1, 100_000), (2, 936), (1_024, 100)] {
                let mut advised = (hard, shards, connections);
                // Each advice is followed in turn, and is always of use.
                for _ in 0..4 {
                    let (hard, shards, connections) = advised;
                    match judge_descriptors(hard, &config(shards, connections)) {
                        Ok(_) => break,
                        Err(
                            error @ (StartupError::DescriptorTable { fitting: 0, slots: needed, .. }
                            | StartupError::Descriptors { fitting: 0, needed, .. }),
                        ) => {
                            assert_names(&error, &[&format!("raise it to {needed}"), "RLIMIT_NOFILE"]);
                            assert!(!error.to_string().contains("lower"), "{error}");
                            advised.0 = needed;
                        }
                        Err(StartupError::DescriptorTable { fitting, .. }) => advised.2 = fitting,
                        Err(StartupError::Descriptors { fitting, .. }) => advised.1 = fitting,
                        Err(error) => panic!("{error}"),
                    }
                }
                let (hard_now, shards_now, connections_now) = advised;
                let outcome = judge_descriptors(hard_now, &config(shards_now, connections_now));
                assert!(outcome.is_ok(), "{hard} {shards} {connections}: {advised:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn the_process_needs_descriptors_for_itself() {
        let config = config(56, 100);
        let needed = descriptors(56, 1);
        assert!(judge_descriptors(needed, &config).is_ok());
        let error = judge_descriptors(needed - 1, &config).unwrap_err();
        assert_names(&error, &["56 shards", &format!("LimitNOFILE={needed}"), "lower --shards to 55"]);
    }

    #[test]
    fn locked_memory_must_be_enough_for_the_executor() {
        assert_eq!(judge_memlock(512 << 10).unwrap(), "512KiB");
        assert_eq!(judge_memlock(u64::MAX).unwrap(), "unlimited");
        assert_names(&judge_memlock((512 << 10) - 1).unwrap_err(), &["locked memory", "512KiB", "LimitMEMLOCK=8M"]);
    }

    #[test]
    fn an_address_that_cannot_be_listened_on_is_named_with_the_fix() {
        let address: SocketAddr = "127.0.0.1:7700".parse().unwrap();
        for (errno, part) in [
            (libc::EADDRINUSE, "in use"),
            (libc::EACCES, "1024"),
            (libc::EADDRNOTAVAIL, "ip addr"),
            (libc::ENOBUFS, "--listen"),
        ] {
            let error = StartupError::Listen(address, io::Error::from_raw_os_error(errno));
            assert_names(&error, &["127.0.0.1:7700", part]);
        }
    }

    #[test]
    fn this_machine_passes() {
        for check in checks(&config(1, 100)) {
            if let Err(error) = check.outcome {
                panic!("{}: {error}", check.name);
            }
        }
    }
}
