//! The names of the policies.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// By which rule a server is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Smooth weighted round robin, nginx's default.
    RoundRobin,
    /// The fewest connections for each unit of weight, nginx's `least_conn`.
    LeastConn,
    /// The owner of a key on a ketama ring, nginx's `hash KEY consistent`.
    ConsistentHash,
    /// The less loaded of two servers drawn by weight, nginx's `random two least_conn`.
    RandomTwo,
    /// The least of response time × connections for each unit of weight, after nginx Plus's `least_time`.
    LeastTime,
}

impl Policy {
    /// All policies, in the order in which they are documented.
    pub const ALL: [Policy; 5] =
        [Policy::RoundRobin, Policy::LeastConn, Policy::ConsistentHash, Policy::RandomTwo, Policy::LeastTime];

    /// The name that [`FromStr`] takes and [`fmt::Display`] writes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Policy::RoundRobin => "weighted-round-robin",
            Policy::LeastConn => "least-conn",
            Policy::ConsistentHash => "consistent-hash",
            Policy::RandomTwo => "random-two",
            Policy::LeastTime => "least-time",
        }
    }

    /// Whether `slow_start` has an effect. As nginx documents: not with hash and random.
    pub(super) fn ramps(self) -> bool {
        matches!(self, Policy::RoundRobin | Policy::LeastConn | Policy::LeastTime)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| UnknownPolicy { name: name.into() })
    }
}

/// A name that is not one of a policy. The text lists the names that are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPolicy {
    /// The name as given.
    pub name: Box<str>,
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a balancing policy; use one of", self.name)?;
        for (n, policy) in Policy::ALL.into_iter().enumerate() {
            write!(f, "{}{policy}", if n == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

impl Error for UnknownPolicy {}
