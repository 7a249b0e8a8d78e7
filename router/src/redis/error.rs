//! What can go wrong between a node and Redis. Every text says what to do.

use crate::membership::RecordError;
use fred::error::{Error as FredError, ErrorKind};
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why Redis could not be reached or did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneError {
    /// Nobody listens at any of the hosts.
    Unreachable {
        /// The hosts, and what the system said.
        detail: String,
    },
    /// A Redis that is not part of a cluster.
    NotACluster {
        /// Which.
        host: String,
    },
    /// A cluster that does not serve all slots.
    ClusterDown {
        /// Who said so, and what.
        detail: String,
    },
    /// User or password is wrong, missing or not asked for, or the user may not do this.
    AuthRefused {
        /// What Redis said.
        detail: String,
    },
    /// No TLS with the server that was found there.
    Tls {
        /// Which, and what is wrong.
        detail: String,
    },
    /// No answer in time.
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// Too many commands wait already.
    Busy,
    /// What was to be written is out of its ranges. The fault is ours.
    Invalid {
        /// What is wrong.
        detail: String,
    },
    /// An error, or an answer that makes no sense.
    Redis {
        /// What Redis or the client said.
        detail: String,
    },
}

impl PlaneError {
    /// From an error of a command that may take `after`.
    pub(super) fn from_fred(error: &FredError, after: Duration) -> Self {
        let detail = error.details().to_owned();
        match error.kind() {
            ErrorKind::Timeout => PlaneError::TimedOut { after },
            ErrorKind::Tls => PlaneError::Tls { detail },
            ErrorKind::Auth => PlaneError::AuthRefused { detail },
            ErrorKind::Backpressure => PlaneError::Busy,
            ErrorKind::IO | ErrorKind::Canceled => PlaneError::Unreachable { detail },
            ErrorKind::Cluster => PlaneError::ClusterDown { detail },
            _ if detail.contains("cluster support disabled") => PlaneError::NotACluster { host: String::new() },
            _ if ["NOPERM", "ERR AUTH", "ERR invalid password"].iter().any(|prefix| detail.starts_with(prefix)) => {
                PlaneError::AuthRefused { detail }
            }
            _ => PlaneError::Redis { detail },
        }
    }

    /// Whether it may pass without a change of the configuration. A password that is refused may: where passwords are
    /// changed while all runs, a process that starts in between must not be lost for it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, PlaneError::NotACluster { .. } | PlaneError::Invalid { .. })
    }

    /// A word for its kind; the details of two errors of a kind may differ.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            PlaneError::Unreachable { .. } => "unreachable",
            PlaneError::NotACluster { .. } => "not_a_cluster",
            PlaneError::ClusterDown { .. } => "cluster_down",
            PlaneError::AuthRefused { .. } => "auth_refused",
            PlaneError::TimedOut { .. } => "timed_out",
            PlaneError::Tls { .. } => "tls",
            PlaneError::Busy => "busy",
            PlaneError::Invalid { .. } => "invalid",
            PlaneError::Redis { .. } => "redis",
        }
    }

    /// An answer of another kind than the script or command gives.
    pub(super) fn answer(what: &str) -> Self {
        PlaneError::Redis { detail: format!("the answer to {what} makes no sense") }
    }
}

impl fmt::Display for PlaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlaneError::Unreachable { detail } => {
                write!(f, "Redis cannot be reached ({detail}); is it running, and are host and port of --redis right?")
            }
            PlaneError::NotACluster { host } => write!(
                f,
                "the Redis at {host} is not part of a cluster; start it with --cluster-enabled yes and form a cluster \
                 with 'redis-cli --cluster create host:port … --cluster-replicas 1'"
            ),
            PlaneError::ClusterDown { detail } => write!(
                f,
                "the Redis Cluster does not serve all slots ({detail}); look at it with 'redis-cli --cluster check \
                 host:port' and mend it with 'redis-cli --cluster fix host:port'"
            ),
            PlaneError::AuthRefused { detail } => {
                write!(
                    f,
                    "Redis refuses user or password ({detail}); write them as redis-cluster://user:password@host:port"
                )
            }
            PlaneError::Tls { detail } => write!(
                f,
                "no TLS with Redis ({detail}); is --redis-ca-file the one who signed its certificate, does that name \
                 the host of --redis, and does it ask for a certificate (--redis-cert-file, --redis-key-file)?"
            ),
            PlaneError::TimedOut { after } => write!(
                f,
                "Redis did not answer within {} ms; is it overloaded, or does a firewall drop packets on the way?",
                after.as_millis()
            ),
            PlaneError::Busy => write!(f, "too many commands wait for Redis"),
            PlaneError::Invalid { detail } => write!(f, "not written to Redis: {detail}"),
            PlaneError::Redis { detail } => write!(f, "Redis: {detail}"),
        }
    }
}

impl Error for PlaneError {}

impl From<RecordError> for PlaneError {
    fn from(error: RecordError) -> Self {
        PlaneError::Invalid { detail: error.to_string() }
    }
}

/// Why a lease was not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcquireError {
    /// Another process holds the name, or the one before this held it and its lease has not run out yet.
    NameTaken {
        /// The address it advertises; empty if its record cannot be read.
        advertise: String,
        /// Its mesh address; empty likewise.
        mesh: String,
        /// When its lease ends unless it renews it, in milliseconds.
        ttl_ms_left: u64,
    },
    /// Redis did not work.
    Plane(PlaneError),
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcquireError::NameTaken { advertise, mesh, ttl_ms_left } => write!(
                f,
                "the node name is in use by a node at {advertise} (mesh {mesh}); give this one another name with \
                 --node, or, if that node has ended, wait {ttl_ms_left} ms for its lease to run out"
            ),
            AcquireError::Plane(error) => write!(f, "{error}"),
        }
    }
}

impl Error for AcquireError {}

impl From<PlaneError> for AcquireError {
    fn from(error: PlaneError) -> Self {
        AcquireError::Plane(error)
    }
}

/// Why an account was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountError {
    /// Somebody has this name.
    NameTaken {
        /// Who.
        user: u64,
    },
    /// Not 1 … 64 characters, or control characters among them.
    BadName,
    /// Redis did not work.
    Plane(PlaneError),
}

impl fmt::Display for AccountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccountError::NameTaken { user } => write!(f, "the name belongs to user {user}; choose another one"),
            AccountError::BadName => write!(f, "a name has 1 to 64 characters and no control characters"),
            AccountError::Plane(error) => write!(f, "{error}"),
        }
    }
}

impl Error for AccountError {}

impl From<PlaneError> for AccountError {
    fn from(error: PlaneError) -> Self {
        AccountError::Plane(error)
    }
}
