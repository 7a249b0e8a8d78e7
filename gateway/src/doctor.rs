//! `gateway doctor`: is this host ready, how many connections will it hold, and what binds first.
//!
//! Everything is read below a [`Root`]; nothing is changed except by [`apply`] and [`rollback`].

mod apply;
mod checks;
mod facts;
mod predict;
mod profile;
mod redis;
mod redis_store;
mod report;
#[cfg(test)]
mod sample;

pub use apply::{Change, Outcome, RECORD_FILE, Refusal, SYSCTL_FILE, apply, rollback};
pub use checks::{Check, Status};
pub use facts::Facts;
pub use predict::{Prediction, Term, predict};
pub use profile::{BadLine, Difference, Profile, Rule, Setting, Standing, compare, parse};
pub use redis::check_redis;
pub use redis_store::check_redis_store;

use crate::budget::Budget;
use crate::config::{Config, Host};
use crate::host_tree::Root;
use serde::Serialize;

/// Connections a host is asked for when neither a profile nor a number is given, unless the configuration allows fewer.
const TARGET_DEFAULT: u64 = 100_000;

/// What a host is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    /// The profile to compare with.
    pub profile: Option<Profile>,
    /// Connections the host should hold.
    pub connections: Option<u64>,
}

/// Everything the doctor found. Serialized it is the output of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether the gateway starts and the host holds the target.
    pub ready: bool,
    /// Connections the host should hold.
    pub target: u64,
    /// Name of the profile compared with.
    pub profile: &'static str,
    /// Shards of the configuration.
    pub shards: u16,
    /// Connections of each shard.
    pub connections_max: u64,
    /// Most bytes the memory budget may come to.
    pub memory_max: u64,
    /// The checks.
    pub checks: Vec<Check>,
    /// The profile, setting by setting.
    pub profile_diff: Vec<Difference>,
    /// How many connections the host will hold.
    pub prediction: Prediction,
    /// What `--apply` did; none without it.
    pub applied: Option<Outcome>,
    #[serde(skip)]
    budget_text: String,
}

impl Report {
    /// Adds what was looked at besides the host.
    pub fn add(&mut self, checks: Vec<Check>) {
        self.ready &= checks.iter().all(|check| check.status != Status::Fail);
        self.checks.extend(checks);
    }
}

impl Difference {
    /// Whether it is worth a word.
    pub fn is_warning(&self) -> bool {
        matches!(self.standing, Standing::Differs | Standing::Unreadable)
    }
}

/// Profile and connections a goal comes to with this configuration.
pub fn resolve_goal(goal: Goal, config: &Config) -> (Profile, u64) {
    let allowed = u64::from(config.limits().connections_max) * u64::from(config.shards);
    let target = match (goal.connections, goal.profile) {
        (Some(connections), _) => connections,
        (None, Some(profile)) => profile.connections(),
        (None, None) => allowed.min(TARGET_DEFAULT),
    };
    (goal.profile.unwrap_or(Profile::covering(target)), target)
}

/// Looks at a host. Raises the soft limits of this process, as a start does, and changes nothing else.
pub fn examine(root: &Root, host: &Host, config: &Config, goal: Goal) -> Report {
    let (profile, target) = resolve_goal(goal, config);
    let facts = Facts::read(root, host.nofile_hard);
    let prediction = predict(&facts, config, target);
    let checks = checks::all(root, &facts, config, &prediction, target);
    Report {
        ready: checks.iter().all(|check| check.status != Status::Fail),
        target,
        profile: profile.name(),
        shards: config.shards,
        connections_max: config.limits().connections_max.into(),
        memory_max: config.memory_max,
        checks,
        profile_diff: compare(root, profile),
        prediction,
        applied: None,
        budget_text: Budget::of(config).to_string(),
    }
}

#[cfg(test)]
mod tests;
