//! Why servers are refused, and why none is picked.

use super::server::{MAX_FAILS_LIMIT, PERIOD_MS_MAX};
use crate::ring::{NAME_BYTES_MAX, NODES_MAX, RingError, WEIGHT_MAX};
use std::error::Error;
use std::fmt;

/// Why a server or a set of servers is refused. All are mistakes in the configuration, and the text says what is
/// allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BalanceError {
    /// A name that is empty, too long or has a control character.
    BadName {
        /// The name as given.
        name: Box<str>,
    },
    /// A weight that is not within 1 … [`WEIGHT_MAX`].
    BadWeight {
        /// The server's name.
        name: Box<str>,
        /// The weight as given.
        weight: u32,
    },
    /// A `max_fails` above [`MAX_FAILS_LIMIT`].
    BadMaxFails {
        /// The server's name.
        name: Box<str>,
        /// The number as given.
        max_fails: u32,
    },
    /// A period that is too short or longer than [`PERIOD_MS_MAX`].
    BadPeriod {
        /// The server's name.
        name: Box<str>,
        /// `fail_timeout` or `slow_start`.
        option: &'static str,
        /// The shortest that is allowed, in milliseconds.
        least_ms: u64,
        /// The period as given, in milliseconds.
        ms: u64,
    },
    /// More than [`NODES_MAX`] servers.
    TooManyServers {
        /// How many were given.
        count: usize,
    },
    /// Two servers have one name, by which an update could not tell them apart.
    SameName {
        /// That name.
        name: Box<str>,
    },
    /// The servers cannot be placed on a ring. Only with [`Policy::ConsistentHash`](super::Policy::ConsistentHash).
    Ring(RingError),
}

impl fmt::Display for BalanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BalanceError::BadName { name } => write!(
                f,
                "server name {name:?} is not usable: 1 to {NAME_BYTES_MAX} bytes without control characters are"
            ),
            BalanceError::BadWeight { name, weight } => {
                write!(f, "server {name:?} has weight {weight}; set it within 1 to {WEIGHT_MAX}")
            }
            BalanceError::BadMaxFails { name, max_fails } => write!(
                f,
                "server {name:?} has max_fails {max_fails}; set it to at most {MAX_FAILS_LIMIT}, or to 0 for never"
            ),
            BalanceError::BadPeriod { name, option, least_ms, ms } => {
                write!(f, "server {name:?} has a {option} of {ms} ms; set it within {least_ms} to {PERIOD_MS_MAX} ms")
            }
            BalanceError::TooManyServers { count } => {
                write!(f, "at most {NODES_MAX} servers can be balanced, {count} were given; remove some")
            }
            BalanceError::SameName { name } => {
                write!(f, "two servers are called {name:?}; remove or rename one of them")
            }
            BalanceError::Ring(error) => write!(f, "the servers have no place on a ring: {error}"),
        }
    }
}

impl Error for BalanceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BalanceError::Ring(error) => Some(error),
            _ => None,
        }
    }
}

/// Why no server is picked.
///
/// Servers may be unavailable for different reasons, and one may have several. What counts of a server is the first of
/// down, draining, failed, full; what is told is the last of these that any server has, because it is the one that
/// passes soonest: `AllFailed` thus means that each server has failed, drains or is down, and that at least one has
/// failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// There are no servers.
    NoServers,
    /// Every server is marked down.
    AllDown,
    /// Every server drains or is down.
    AllDraining,
    /// Every server has failed too often, drains or is down.
    AllFailed {
        /// When the first of them is tried again, in monotonic milliseconds.
        until_ms: u64,
    },
    /// Every server has all the connections it may have, or has failed, drains or is down.
    AllFull,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unavailable::NoServers => "there are no servers",
            Unavailable::AllDown => "all servers are down",
            Unavailable::AllDraining => "all servers are draining",
            Unavailable::AllFailed { .. } => "all servers have failed",
            Unavailable::AllFull => "all servers have all the connections they may have",
        })
    }
}

impl Error for Unavailable {}
