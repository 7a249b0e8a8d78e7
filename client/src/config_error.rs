//! The ranges of a configuration, and what is out of them.

use std::fmt;
use std::time::Duration;

use trunkline_proto::DEVICE_BYTES_MAX;

/// Addresses to begin with: a list by hand has fewer.
pub(crate) const ADDRS_MAX: usize = 64;

/// Longest queue that can be asked for; it bounds what a wrong unit in a configuration can cost.
pub(crate) const QUEUE_LEN_MAX: usize = 1_000_000;

/// Shortest and longest ceiling of a wait before a reconnect: below, a client would hammer a gateway that is down, and
/// above it would not notice on the same day that it is back.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(1);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Messages of a backlog that a gateway gives ahead at most.
pub(crate) const REPLAY_WINDOW_MAX: u32 = 1_024;

/// What is wrong with a [`crate::Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// `user` is 0.
    NoUser,
    /// `addrs` is empty, or has more than 64 addresses.
    AddrCount {
        /// How many it has.
        count: usize,
    },
    /// One of `addrs` is not `host:port`.
    Addr {
        /// That address.
        addr: String,
    },
    /// `device` is longer than 64 bytes.
    DeviceTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A queue length is 0 or above 1,000,000.
    QueueLen {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        len: usize,
    },
    /// `replay_window` is 0 or above 1,024.
    ReplayWindow {
        /// Its value.
        len: u32,
    },
    /// `dedup_window_len` is below `event_queue_len`: messages would be forgotten while they wait in the queue, and
    /// those that are delivered again would come twice.
    DedupWindow {
        /// `dedup_window_len`.
        len: usize,
        /// `event_queue_len`.
        len_min: usize,
    },
    /// A ceiling of `backoff` is below 1 ms or above 24 h.
    Backoff {
        /// Name of the field within `backoff`.
        field: &'static str,
        /// Its value.
        ceiling: Duration,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser => write!(f, "user must be set; user 0 is for a token by which the gateway is told who it is"),
            Self::AddrCount { count } => write!(f, "addrs has {count} addresses, but must have 1 to {ADDRS_MAX}"),
            Self::Addr { addr } => {
                let forms = "host:port, such as localhost:7700 or [::1]:7700, or wss://host/path";
                write!(f, "{addr:?} is no address; it must be {forms}")
            }
            Self::DeviceTooLong { bytes } => {
                write!(f, "device has {bytes} bytes, at most {DEVICE_BYTES_MAX} are allowed")
            }
            Self::QueueLen { field, len } => {
                write!(f, "{field} is {len}, but must be 1 to {QUEUE_LEN_MAX}")
            }
            Self::ReplayWindow { len } => {
                write!(f, "replay_window is {len}, but must be 1 to {REPLAY_WINDOW_MAX}")
            }
            Self::DedupWindow { len, len_min } => {
                write!(f, "dedup_window_len is {len}, but must be at least event_queue_len, which is {len_min}")
            }
            Self::Backoff { field, ceiling } => {
                write!(f, "backoff.{field} is {ceiling:?}, but must be {BACKOFF_MIN:?} to {BACKOFF_MAX:?}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}
