//! What every store does.

use crate::{Answer, Request, Source, Stats};
use std::sync::Arc;
use std::time::Duration;

/// Milliseconds since 1970. A store reads no other clock for what it decides.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A store of messages. See the [crate] for what its words mean.
pub trait Store {
    /// Carries out the requests in their order, makes durable what they changed by one commit, and only then answers.
    /// The batch is empty afterwards, and each request with a token has got exactly one answer. It blocks while the
    /// disk works.
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer));

    /// Does what is due without a request: cursors that are to be made durable, tables to be written, a disk to be
    /// tried again. Returns when it wants to be called again at the latest; none if nothing is to be done before the
    /// next batch.
    fn tick(&mut self) -> Option<Duration>;

    /// Makes durable what is not, and waits for work under way. The store refuses everything afterwards.
    fn close(&mut self);

    /// Its numbers.
    fn stats(&self) -> &Arc<Stats>;
}

/// How long a cursor may wait until it is durable, milliseconds.
pub(crate) const CURSOR_DELAY_MS: u64 = 100;
/// Where nodes share a store, a proposed stamp further ahead of the clock than this counts as being that far ahead:
/// else the wrong clock of one node would push a log to the end of all stamps.
const STAMP_AHEAD_MS_MAX: u64 = 24 * 3_600 * 1_000;

/// The stamp of a message: what was proposed, or one above the last. The store of one node gives what its own shards
/// propose, however far the clock has been set back since: to them a message that got an earlier position would count
/// as acknowledged with those before it.
pub(crate) fn confirmed_stamp(proposed: u64, last: u64) -> u64 {
    proposed.max(last.saturating_add(1))
}

/// What a store that several nodes share takes for the stamp that one of them has proposed.
pub(crate) fn believable_stamp(proposed: u64, now_ms: u64) -> u64 {
    proposed.min(crate::stamp_at(now_ms.saturating_add(STAMP_AHEAD_MS_MAX)))
}
