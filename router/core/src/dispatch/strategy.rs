//! The rules by which a node can be chosen.

use crate::balance::Policy;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// By which rule a node is chosen for a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The user's home node, so that its messages need no hop between nodes.
    Home,
    /// One after the other, by weight.
    WeightedRoundRobin,
    /// The fewest connections for each unit of weight.
    LeastConn,
    /// The less loaded of two nodes drawn by weight.
    RandomTwo,
}

impl Strategy {
    /// All strategies, in the order in which they are documented.
    pub const ALL: [Strategy; 4] =
        [Strategy::Home, Strategy::WeightedRoundRobin, Strategy::LeastConn, Strategy::RandomTwo];

    /// The name that [`FromStr`] and JSON take and that [`fmt::Display`] and JSON show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Home => "home",
            Strategy::WeightedRoundRobin => Policy::RoundRobin.name(),
            Strategy::LeastConn => Policy::LeastConn.name(),
            Strategy::RandomTwo => Policy::RandomTwo.name(),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let mut all = Strategy::ALL.into_iter();
        all.find(|strategy| strategy.name() == name).ok_or_else(|| UnknownStrategy { name: name.into() })
    }
}

/// A name that is not one of a strategy. The text lists the names that are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownStrategy {
    /// The name as given.
    pub name: Box<str>,
}

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Strategy::ALL.map(Strategy::name).join(", ");
        write!(f, "{:?} is not a strategy; use one of {names}", self.name)
    }
}

impl Error for UnknownStrategy {}
