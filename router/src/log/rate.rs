//! A bound on how many lines each kind of message may write, so that strangers who cause it cannot fill a disk.
//!
//! A kind is a place in the source that logs. Each has a bucket of its own (GCRA, ITU-T I.371): [`BURST`] lines at
//! once, [`PER_SEC`] a second for good. What is left out is counted, and the log says how much that was at most once in
//! [`SUMMARY_PERIOD`].

use std::fmt::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

/// Lines of one kind that may come at once: more than there are nodes in most clusters, so that a view change is logged
/// in full.
pub const BURST: u64 = 100;
/// Lines of one kind in a second, for good: some 40 MB a day at the most.
pub const PER_SEC: u64 = 5;
/// How often the log says what was left out of one kind.
pub const SUMMARY_PERIOD: Duration = Duration::from_secs(10);
/// Milliseconds that one line costs.
const COST_MS: u64 = 1_000 / PER_SEC;
/// Kinds told apart. Those beyond share the last place. This project and what it is made of log in some hundred places.
const KINDS_MAX: usize = 1_024;
/// How much of a message is quoted.
const EXAMPLE_CHARS_MAX: usize = 160;

/// The buckets of all kinds.
pub(super) struct RateLimit {
    kinds: Box<[Kind]>,
    started: Instant,
    /// Lines left out that no summary has told of.
    untold: AtomicU64,
    suppressed: AtomicU64,
}

#[derive(Default)]
struct Kind {
    /// Where in the source it is; unset for a place that is free.
    meta: OnceLock<&'static Metadata<'static>>,
    /// When the bucket is empty again, milliseconds since `started`.
    empty_at_ms: AtomicU64,
    untold: AtomicU64,
    /// When a summary may be written, milliseconds since `started`.
    summary_at_ms: AtomicU64,
    /// The first message left out.
    example: OnceLock<Box<str>>,
}

/// What was left out of one kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) level: Level,
    pub(super) target: &'static str,
    pub(super) lines: u64,
    pub(super) example: String,
}

impl RateLimit {
    pub(super) fn new() -> Self {
        RateLimit {
            kinds: (0..KINDS_MAX).map(|_| Kind::default()).collect(),
            started: Instant::now(),
            untold: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether this event may be written; counts it if not.
    pub(super) fn allows(&self, event: &Event<'_>) -> bool {
        self.allows_at(self.now_ms(), event.metadata(), || {
            let mut example = Example(String::new());
            event.record(&mut example);
            example.0
        })
    }

    fn allows_at(&self, now_ms: u64, meta: &'static Metadata<'static>, example: impl FnOnce() -> String) -> bool {
        let kind = self.kind(meta);
        let take = |empty_at_ms: u64| {
            let empty_at_ms = empty_at_ms.max(now_ms) + COST_MS;
            (empty_at_ms <= now_ms + BURST * COST_MS).then_some(empty_at_ms)
        };
        if kind.empty_at_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return true;
        }
        kind.example.get_or_init(|| example().into());
        // Before the kind's own, so that whoever takes that never takes more than this holds.
        self.untold.fetch_add(1, Ordering::Release);
        if kind.untold.fetch_add(1, Ordering::AcqRel) == 0 {
            kind.summary_at_ms.store(now_ms + SUMMARY_PERIOD.as_millis() as u64, Ordering::Relaxed);
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Open addressing by the address of the metadata, of which there is one for each place in the source.
    fn kind(&self, meta: &'static Metadata<'static>) -> &Kind {
        let home = (std::ptr::from_ref(meta) as usize >> 4).wrapping_mul(0x9E37_79B9) % KINDS_MAX;
        let mut places = (home..KINDS_MAX).chain(0..home).map(|at| &self.kinds[at]);
        places.find(|kind| std::ptr::eq(*kind.meta.get_or_init(|| meta), meta)).unwrap_or(&self.kinds[KINDS_MAX - 1])
    }

    /// Lines left out since the start.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed.load(Ordering::Relaxed)
    }

    /// Whether something was left out that no summary has told of.
    pub(super) fn has_untold(&self) -> bool {
        self.untold.load(Ordering::Acquire) > 0
    }

    /// Takes the summaries that are due; all there are, with `all`.
    pub(super) fn take_summaries(&self, all: bool) -> Vec<Summary> {
        self.take_summaries_at(self.now_ms(), all)
    }

    fn take_summaries_at(&self, now_ms: u64, all: bool) -> Vec<Summary> {
        if !self.has_untold() {
            return Vec::new();
        }
        let due = |kind: &&Kind| all || kind.summary_at_ms.load(Ordering::Relaxed) <= now_ms;
        let mut summaries = Vec::new();
        for kind in self.kinds.iter().filter(due) {
            let Some(meta) = kind.meta.get() else { continue };
            let lines = kind.untold.swap(0, Ordering::AcqRel);
            if lines > 0 {
                self.untold.fetch_sub(lines, Ordering::Relaxed);
                let example = kind.example.get().map(|example| example.to_string()).unwrap_or_default();
                summaries.push(Summary { level: *meta.level(), target: meta.target(), lines, example });
            }
        }
        summaries
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// The beginning of an event's message.
struct Example(String);

impl Visit for Example {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // It fails when it has enough.
            let _ = write!(Bounded(&mut self.0), "{value:?}");
        }
    }
}

/// Takes as many characters as are quoted, and then fails. Control characters become spaces.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.chars().count() >= EXAMPLE_CHARS_MAX {
                return Err(fmt::Error);
            }
            self.0.push(if c.is_control() { ' ' } else { c });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Callsite;
    use tracing::callsite::DefaultCallsite;
    use tracing::callsite::Identifier;
    use tracing::metadata::Kind as MetaKind;

    fn some_meta() -> &'static Metadata<'static> {
        static CALLSITE: DefaultCallsite = {
            static META: Metadata<'static> = Metadata::new(
                "event",
                "some::target",
                Level::WARN,
                Some("some.rs"),
                Some(7),
                None,
                tracing::field::FieldSet::new(&["message"], Identifier(&CALLSITE)),
                MetaKind::EVENT,
            );
            DefaultCallsite::new(&META)
        };
        CALLSITE.metadata()
    }

    fn other_meta() -> &'static Metadata<'static> {
        let meta = Metadata::new(
            "event",
            "other::target",
            Level::INFO,
            None,
            None,
            None,
            tracing::field::FieldSet::new(&["message"], some_meta().callsite()),
            MetaKind::EVENT,
        );
        Box::leak(Box::new(meta))
    }

    fn allowed(limit: &RateLimit, now_ms: u64, meta: &'static Metadata<'static>, tries: u64) -> u64 {
        (0..tries).filter(|_| limit.allows_at(now_ms, meta, || "what\u{1b}\nit says".to_owned())).count() as u64
    }

    #[test]
    fn each_kind_has_a_burst_and_a_rate_of_its_own() {
        let limit = RateLimit::new();
        assert_eq!(allowed(&limit, 0, some_meta(), 1_000_000), BURST);
        assert_eq!(allowed(&limit, 0, other_meta(), 10), 10, "another kind does not pay for it");
        assert_eq!(allowed(&limit, 1_000, some_meta(), 1_000), PER_SEC);
        assert_eq!(allowed(&limit, 3_600_000, some_meta(), 1_000), BURST, "a bucket holds no more than a burst");
        assert_eq!(limit.suppressed(), 1_000_000 - BURST + 1_000 - PER_SEC + 1_000 - BURST);
    }

    #[test]
    fn what_was_left_out_is_told_once_in_a_period() {
        let limit = RateLimit::new();
        let period_ms = SUMMARY_PERIOD.as_millis() as u64;
        allowed(&limit, 0, some_meta(), BURST);
        assert!(!limit.has_untold() && limit.take_summaries_at(period_ms, true).is_empty());
        allowed(&limit, 0, some_meta(), 40);
        assert!(limit.has_untold() && limit.take_summaries_at(period_ms - 1, false).is_empty());
        let summary = |lines| Summary {
            level: Level::WARN,
            target: "some::target",
            lines,
            example: "what\u{1b}\nit says".to_owned(),
        };
        assert_eq!(limit.take_summaries_at(period_ms, false), [summary(40)]);
        assert!(!limit.has_untold() && limit.take_summaries_at(2 * period_ms, false).is_empty());
        let more = 1_000 - allowed(&limit, 2 * period_ms, some_meta(), 1_000);
        assert!(limit.take_summaries_at(3 * period_ms - 1, false).is_empty());
        assert_eq!(limit.take_summaries_at(3 * period_ms - 1, true), [summary(more)]);
    }

    #[test]
    fn more_kinds_than_there_are_places_share_the_last_one() {
        let limit = RateLimit::new();
        for _ in 0..KINDS_MAX + 10 {
            assert!(limit.allows_at(0, other_meta(), String::new) || limit.suppressed() > 0);
        }
        assert!(limit.kinds.iter().all(|kind| kind.meta.get().is_some()));
    }

    #[test]
    fn an_example_is_short_and_holds_no_control_characters() {
        let mut text = String::new();
        assert!(write!(Bounded(&mut text), "a\u{1b}[31m\nb").is_ok());
        assert_eq!(text, "a [31m b");
        assert!(write!(Bounded(&mut text), "{}", "é".repeat(1_000)).is_err());
        assert_eq!(text.chars().count(), EXAMPLE_CHARS_MAX);
    }
}
