//! Failures of one server, and when it may be picked again.
//!
//! The rule is nginx's documented one for `max_fails` and `fail_timeout`, to the millisecond: that many failures within
//! that time make the server unavailable for that time. When it has passed, the server is probed with a live pick: the
//! first pick goes through, further ones wait for its outcome, at most another `fail_timeout`. A success makes it
//! available again, a failure suspends it anew.

use super::server::ServerOptions;
use std::collections::VecDeque;

/// Whether failures keep a server from being picked. Times are monotonic milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It may be picked.
    Up,
    /// It has failed too often and is not picked before `until_ms`; the next pick from there on is its probe.
    Failed {
        /// The first millisecond at which it may be picked.
        until_ms: u64,
    },
    /// It has been picked as a probe, whose outcome is not known. Without one it is probed once more at `until_ms`.
    Probing {
        /// The first millisecond at which it may be picked.
        until_ms: u64,
    },
}

/// The record from which [`Health`] follows.
#[derive(Debug, Clone)]
pub(super) struct HealthRecord {
    health: Health,
    /// When the last failures were, oldest first, at most `max_fails` of them. All of them have to be kept: a count
    /// with the time of the first one would miss failures that come close together across the end of its period.
    failed_at_ms: VecDeque<u64>,
}

impl HealthRecord {
    pub(super) fn new() -> Self {
        HealthRecord { health: Health::Up, failed_at_ms: VecDeque::new() }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// The first millisecond at which the server may be picked, if failures have suspended it.
    pub(super) fn unavailable_until_ms(&self) -> Option<u64> {
        match self.health {
            Health::Up => None,
            Health::Failed { until_ms } | Health::Probing { until_ms } => Some(until_ms),
        }
    }

    pub(super) fn is_available(&self, now_ms: u64) -> bool {
        self.unavailable_until_ms().is_none_or(|until_ms| now_ms >= until_ms)
    }

    /// Failures that count at `now_ms`: those younger than `fail_timeout`.
    pub(super) fn fails(&self, now_ms: u64, options: &ServerOptions) -> u32 {
        let old = self.failed_at_ms.partition_point(|&at_ms| is_past(at_ms, now_ms, options));
        (self.failed_at_ms.len() - old) as u32
    }

    /// The server was picked while available; if it had been suspended, that is its probe.
    pub(super) fn picked(&mut self, now_ms: u64, options: &ServerOptions) {
        if self.health != Health::Up {
            self.health = Health::Probing { until_ms: now_ms.saturating_add(options.fail_timeout_ms) };
        }
    }

    /// Counts a failure. A server that is suspended or probed needs no second one: its period starts again.
    pub(super) fn failed(&mut self, now_ms: u64, options: &ServerOptions) {
        if options.max_fails == 0 {
            return;
        }
        self.forget_past(now_ms, options);
        // A caller whose clock went back must not break the order of the times.
        let at_ms = self.failed_at_ms.back().map_or(now_ms, |&last_ms| last_ms.max(now_ms));
        self.failed_at_ms.push_back(at_ms);
        self.forget_beyond(options);
        if self.health != Health::Up || self.failed_at_ms.len() == options.max_fails as usize {
            self.health = Health::Failed { until_ms: now_ms.saturating_add(options.fail_timeout_ms) };
        }
    }

    /// Whether this success ends a suspension. Only that of a probe does: others were begun before the server failed. A
    /// server that is up keeps its failures, which expire by age.
    pub(super) fn succeeded(&mut self) -> bool {
        let recovered = matches!(self.health, Health::Probing { .. });
        if recovered {
            *self = HealthRecord::new();
        }
        recovered
    }

    /// Takes new options over. A suspension stays, unless failures no longer count at all; a failure that has expired
    /// stays so, even if the new `fail_timeout` is longer.
    pub(super) fn update(&mut self, now_ms: u64, old: &ServerOptions, new: &ServerOptions) {
        if new.max_fails == 0 {
            *self = HealthRecord::new();
        }
        self.forget_past(now_ms, old);
        self.forget_beyond(new);
    }

    fn forget_past(&mut self, now_ms: u64, options: &ServerOptions) {
        while self.failed_at_ms.front().is_some_and(|&at_ms| is_past(at_ms, now_ms, options)) {
            self.failed_at_ms.pop_front();
        }
    }

    fn forget_beyond(&mut self, options: &ServerOptions) {
        while self.failed_at_ms.len() > options.max_fails as usize {
            self.failed_at_ms.pop_front();
        }
    }
}

fn is_past(at_ms: u64, now_ms: u64, options: &ServerOptions) -> bool {
    now_ms.saturating_sub(at_ms) >= options.fail_timeout_ms
}
