//! One server as it is configured.

use super::error::BalanceError;
use crate::ring::{Node, RingError};

/// The largest `max_fails`. A server keeps the time of that many failures, 8 bytes each.
pub const MAX_FAILS_LIMIT: u32 = 1_000;

/// The longest `fail_timeout` and `slow_start`, in milliseconds: a day. What is longer is a decision of the operator,
/// who has `down` for it.
pub const PERIOD_MS_MAX: u64 = 86_400_000;

/// What can be said of a server besides its name. The default is nginx's: weight 1, one failure suspends for 10 s,
/// nothing else is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// The share of this server against that of the others, 1 … [`WEIGHT_MAX`](crate::ring::WEIGHT_MAX).
    pub weight: u32,
    /// Connections at which the server takes no more; 0 is no limit.
    pub max_conns: u32,
    /// Failures within [`fail_timeout_ms`](Self::fail_timeout_ms) that make the server unavailable,
    /// 0 … [`MAX_FAILS_LIMIT`]; 0 is never.
    pub max_fails: u32,
    /// Milliseconds in which failures are counted, and for which the server is then unavailable, 1 … [`PERIOD_MS_MAX`].
    pub fail_timeout_ms: u64,
    /// Milliseconds over which the weight climbs after the server has come back, 0 … [`PERIOD_MS_MAX`]; 0 is at once.
    pub slow_start_ms: u64,
    /// Picked only while every server that is not a backup is unavailable.
    pub backup: bool,
    /// Never picked.
    pub down: bool,
    /// Picked only for what is bound to it, see [`Balancer::pick_bound`](super::Balancer::pick_bound).
    pub drain: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            weight: 1,
            max_conns: 0,
            max_fails: 1,
            fail_timeout_ms: 10_000,
            slow_start_ms: 0,
            backup: false,
            down: false,
            drain: false,
        }
    }
}

/// A server with a valid name and valid options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name and weight as the ring takes them.
    node: Node,
    options: ServerOptions,
}

impl Server {
    /// A server called `name`, which is unique within its balancer and follows the rules of [`Node::new`].
    ///
    /// # Errors
    /// [`BalanceError::BadName`], [`BalanceError::BadWeight`], [`BalanceError::BadMaxFails`] and
    /// [`BalanceError::BadPeriod`] for what is out of its range.
    pub fn new(name: &str, options: ServerOptions) -> Result<Self, BalanceError> {
        let node = Node::new(name, options.weight).map_err(|error| match error {
            RingError::BadName { name } => BalanceError::BadName { name },
            RingError::BadWeight { name, weight } => BalanceError::BadWeight { name, weight },
            other => BalanceError::Ring(other),
        })?;
        if options.max_fails > MAX_FAILS_LIMIT {
            return Err(BalanceError::BadMaxFails { name: name.into(), max_fails: options.max_fails });
        }
        let bad_period = |option, least_ms, ms| BalanceError::BadPeriod { name: name.into(), option, least_ms, ms };
        if !(1..=PERIOD_MS_MAX).contains(&options.fail_timeout_ms) {
            return Err(bad_period("fail_timeout", 1, options.fail_timeout_ms));
        }
        if options.slow_start_ms > PERIOD_MS_MAX {
            return Err(bad_period("slow_start", 0, options.slow_start_ms));
        }
        Ok(Server { node, options })
    }

    /// The name as given.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// The options as given.
    #[must_use]
    pub fn options(&self) -> &ServerOptions {
        &self.options
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Whether `other` has the same place among the servers: what the other options say may differ.
    pub(super) fn same_place(&self, other: &Server) -> bool {
        self.node == other.node && self.options.backup == other.options.backup
    }
}
