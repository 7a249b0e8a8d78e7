//! What an operator has said of workers of one service that have no link to this shard: it holds when they come back.
//! No I/O and no clock.
//!
//! A drain is for a worker, not for its connections: one that reconnects, or is started again under its name, is as
//! drained as it was. What is said of a worker that never comes back is forgotten after [`ASIDE_MS`].

use super::InstanceChange;
use std::collections::BTreeMap;

/// How long what was said of a worker is kept while it has no link to the shard.
pub const ASIDE_MS: u64 = 24 * 3_600_000;
/// Workers of one service of which something is kept at a shard, those with links and those without. An operator is
/// refused a further one.
pub const ASIDE_MAX: usize = 256;

/// What was said of one worker, and until when that holds.
#[derive(Clone, Copy, Debug)]
struct Kept {
    change: InstanceChange,
    until_ms: u64,
}

/// Workers of one service without a link to this shard of which something was said.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    by_name: BTreeMap<Box<str>, Kept>,
}

impl Aside {
    fn forget_old(&mut self, now_ms: u64) {
        self.by_name.retain(|_, kept| kept.until_ms > now_ms);
    }

    /// Workers of which something is kept.
    pub(crate) fn len(&self, now_ms: u64) -> usize {
        self.by_name.values().filter(|kept| kept.until_ms > now_ms).count()
    }

    /// Adds what is said now to what was said before. A worker that is neither drained nor has a weight of the
    /// operator's is forgotten.
    pub(crate) fn note(&mut self, name: &str, change: InstanceChange, now_ms: u64) {
        self.forget_old(now_ms);
        let before = self.by_name.get(name).map(|kept| kept.change).unwrap_or_default();
        let change = InstanceChange {
            drained: change.drained.or(before.drained).filter(|drained| *drained),
            weight: change.weight.or(before.weight),
        };
        if change == InstanceChange::default() {
            self.by_name.remove(name);
        } else {
            self.by_name.insert(name.into(), Kept { change, until_ms: now_ms.saturating_add(ASIDE_MS) });
        }
    }

    /// A worker is there: what was said of it is its own from now on.
    pub(crate) fn take(&mut self, name: &str, now_ms: u64) -> InstanceChange {
        let kept = self.by_name.remove(name).filter(|kept| kept.until_ms > now_ms);
        kept.map(|kept| kept.change).unwrap_or_default()
    }

    /// Whether something is kept of a worker.
    pub(crate) fn has(&self, name: &str, now_ms: u64) -> bool {
        self.by_name.get(name).is_some_and(|kept| kept.until_ms > now_ms)
    }

    /// All of them, by name.
    pub(crate) fn all(&self, now_ms: u64) -> impl Iterator<Item = (&str, InstanceChange)> {
        let kept = self.by_name.iter().filter(move |(_, kept)| kept.until_ms > now_ms);
        kept.map(|(name, kept)| (&**name, kept.change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: InstanceChange = InstanceChange { drained: Some(true), weight: None };

    #[test]
    fn what_was_said_holds_for_a_day_and_is_added_to() {
        let mut aside = Aside::default();
        aside.note("a", DRAIN, 0);
        aside.note("a", InstanceChange { drained: None, weight: Some(5) }, 1_000);
        aside.note("b", DRAIN, 2_000);
        assert_eq!((aside.len(2_000), aside.has("a", 2_000), aside.has("c", 2_000)), (2, true, false));
        let both = InstanceChange { drained: Some(true), weight: Some(5) };
        assert_eq!(aside.all(2_000).collect::<Vec<_>>(), [("a", both), ("b", DRAIN)]);
        // The day begins anew with each word.
        assert!(aside.has("a", ASIDE_MS) && !aside.has("a", ASIDE_MS + 1_000));
        assert_eq!(aside.take("b", ASIDE_MS + 2_000), InstanceChange::default());
        assert_eq!(aside.take("a", 3_000), both);
        assert_eq!(aside.take("a", 3_000), InstanceChange::default());
    }

    #[test]
    fn what_is_as_it_was_is_not_kept() {
        let mut aside = Aside::default();
        aside.note("a", DRAIN, 0);
        aside.note("a", InstanceChange { drained: Some(false), weight: None }, 1);
        aside.note("b", InstanceChange { drained: Some(false), weight: None }, 1);
        assert_eq!(aside.len(1), 0);
    }
}
