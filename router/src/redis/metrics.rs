//! What happened between this process and Redis, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! metrics {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Counters and gauges, shared by [`Plane`](super::Plane) and [`WriteBehind`](super::WriteBehind).
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(pub(super) $name: AtomicU64,)+
        }

        /// All of [`Metrics`] at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct MetricsSnapshot {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Metrics {
            /// The numbers now. Each is exact; together they may be a moment apart.
            #[must_use]
            pub fn snapshot(&self) -> MetricsSnapshot {
                MetricsSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

metrics! {
    /// Commands sent, scripts included.
    commands,
    /// Commands that ended in an error or a time-out.
    command_errors,
    /// Writes in the queue now, those on their way included.
    queued,
    /// Memory of the queue now, in bytes.
    queued_bytes,
    /// Writes that Redis has executed.
    written,
    /// Of these, logins that lost against a newer session.
    stale,
    /// Attempts to write that failed and were queued again.
    failed,
    /// Writes refused because the queue was full, or because a text in them was out of its range.
    refused,
    /// The age of the oldest write in the queue, in milliseconds.
    oldest_age_ms,
    /// Node records and presence entries found in Redis that cannot be read.
    garbage,
    /// Names on the list of nodes at the last poll, [`NAMES_MAX`](super::NAMES_MAX) at most: nodes that live, and those
    /// that ended within a minute.
    names,
    /// Names taken off the list of nodes because it was full.
    names_dropped,
    /// Names taken off the list of nodes that were here within the day because it was full.
    past_names_dropped,
    /// Times the list of nodes could not be updated with a lease; done again with the next renewal.
    unregistered,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
