//! Latencies and how they are reported.
//!
//! A latency belongs to the stretch of time in which its message was *to be sent*, whenever it arrives. Would it belong
//! to that in which it arrives, the messages that wait longest would be in none: a server that stood still at the end
//! of a measurement would look as fast as ever.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies up to one minute; a longer one counts as one minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// An empty histogram of nanoseconds, three significant digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MAX_NS, 3).expect("bounds are constant")
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Percentiles {
    /// How many were measured.
    pub(crate) count: u64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Percentiles {
    /// Of a histogram of nanoseconds; all 0 of an empty one.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }

    /// Head of the columns of [`Percentiles::cells`].
    pub(crate) const HEAD: [&'static str; 6] = ["count", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "max µs"];

    /// For a table.
    pub(crate) fn cells(&self) -> Vec<String> {
        let micros = [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us];
        [self.count.to_string()].into_iter().chain(micros.map(|micros| format!("{micros:.0}"))).collect()
    }
}

/// Histograms of one stretch of time, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// From the intended time of a message to taking it from the kernel. Of a message that was never sent, the time
    /// until that was given up: it would have taken longer.
    pub(crate) messages: Histogram<u64>,
    /// From the intended time of a message to writing it: how late the bench itself is. One for each message that was
    /// to be sent.
    pub(crate) lateness: Histogram<u64>,
    /// From PING to PONG.
    pub(crate) pongs: Histogram<u64>,
    /// Messages that were to be sent and never were, because those before them took too long.
    pub(crate) unsent: u64,
}

impl Latencies {
    /// Of a stretch in which nothing has happened.
    pub(crate) fn new() -> Latencies {
        Latencies { messages: histogram(), lateness: histogram(), pongs: histogram(), unsent: 0 }
    }

    /// Adds those of another one.
    pub(crate) fn add(&mut self, other: &Latencies) {
        let pairs = [
            (&mut self.messages, &other.messages),
            (&mut self.lateness, &other.lateness),
            (&mut self.pongs, &other.pongs),
        ];
        for (mine, others) in pairs {
            // All of them have the same range and precision, so nothing can be out of it.
            mine.add(others).unwrap_or_else(|error| unreachable!("{error}"));
        }
        self.unsent += other.unsent;
    }

    /// Messages that were to be sent.
    pub(crate) fn asked(&self) -> u64 {
        self.lateness.len()
    }

    /// Messages that have arrived.
    pub(crate) fn delivered(&self) -> u64 {
        self.messages.len() - self.unsent
    }
}

/// The stretches of a run, one after the other.
#[derive(Debug)]
pub(crate) struct Stretches {
    /// Each with the time at which it begins, on the load's clock. The first one begins before everything.
    stretches: Vec<(u64, Latencies)>,
}

impl Stretches {
    /// A first one, which nothing has happened in.
    pub(crate) fn new() -> Stretches {
        Stretches { stretches: vec![(0, Latencies::new())] }
    }

    /// What is to be sent from `at_ns` on belongs to another stretch than what was to be sent before.
    pub(crate) fn begin(&mut self, at_ns: u64) {
        self.stretches.push((at_ns, Latencies::new()));
    }

    /// The stretch to which a message belongs that was to be sent then.
    pub(crate) fn of(&mut self, intended_ns: u64) -> &mut Latencies {
        // There are a few, and the last is asked for most.
        let at = self.stretches.iter().rposition(|(from_ns, _)| *from_ns <= intended_ns).unwrap_or(0);
        &mut self.stretches[at].1
    }

    /// The stretch that began last.
    pub(crate) fn last(&self) -> &Latencies {
        self.stretches.last().map_or_else(|| unreachable!("there is always one"), |(_, latencies)| latencies)
    }

    /// All so far, oldest first. They go on with an empty one: to be called when nothing is under way any more.
    pub(crate) fn take(&mut self) -> Vec<Latencies> {
        let taken = std::mem::replace(self, Stretches::new());
        taken.stretches.into_iter().map(|(_, latencies)| latencies).collect()
    }
}

/// Latencies of a closed loop, in which the next message waits for the one before: those of the messages under way in
/// one stretch of time, whenever they were sent and arrive.
///
/// A server that stands still holds up only as many messages as are in flight, while it would have held up all that
/// open clients had sent meanwhile. [`ClosedLoop::corrected`] puts those in.
#[derive(Debug)]
pub(crate) struct ClosedLoop {
    until_ns: u64,
    messages: Histogram<u64>,
    last_ns: u64,
    silence_ns: u64,
}

impl ClosedLoop {
    /// From now on.
    pub(crate) fn from(now_ns: u64) -> ClosedLoop {
        let mut messages = histogram();
        // Its memory is there before the first message.
        messages.saturating_record(0);
        messages.reset();
        ClosedLoop { until_ns: u64::MAX, messages, last_ns: now_ns, silence_ns: 0 }
    }

    /// A message has arrived.
    pub(crate) fn record(&mut self, now_ns: u64, latency_ns: u64) {
        if now_ns.saturating_sub(latency_ns) >= self.until_ns {
            return;
        }
        self.messages.saturating_record(latency_ns);
        self.silence_ns = self.silence_ns.max(now_ns.saturating_sub(self.last_ns));
        self.last_ns = now_ns;
    }

    /// Messages that are sent from now on belong to something else; those under way are still to come.
    pub(crate) fn end(&mut self, now_ns: u64) {
        self.until_ns = now_ns;
    }

    /// The longest time in which no message arrived.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_nanos(self.silence_ns)
    }

    /// Of each message.
    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.messages)
    }

    /// As a client would see it that does not wait for the message before: for each message that took longer than the
    /// mean, those are added that would have been sent meanwhile, one for each mean (the correction for coordinated
    /// omission of HdrHistogram).
    pub(crate) fn corrected(&self) -> Percentiles {
        let interval_ns = self.messages.mean() as u64;
        Percentiles::of(&self.messages.clone_correct(interval_ns.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_where_it_was_to_be_sent_however_late_it_comes() {
        let mut stretches = Stretches::new();
        stretches.begin(1_000);
        stretches.begin(2_000);
        stretches.begin(3_000);
        for (intended_ns, latency_ns) in [(999, 7), (1_000, 4_000_000_000), (1_999, 7), (2_000, 7), (2_999, 9_000_000)]
        {
            stretches.of(intended_ns).messages.saturating_record(latency_ns);
        }
        assert_eq!(stretches.last().messages.len(), 0);
        let taken = stretches.take();
        assert_eq!(taken.iter().map(|latencies| latencies.messages.len()).collect::<Vec<_>>(), [1, 2, 2, 0]);
        assert!(taken[1].messages.max() >= 4_000_000_000);
        assert_eq!(stretches.take().len(), 1);
    }

    #[test]
    fn a_closed_loop_shows_a_server_that_stood_still_also_at_its_end() {
        const MS: u64 = 1_000_000;
        // One message at a time, 1 ms each, and a second in which the server stands.
        for stands_at in [500, 999] {
            let mut latencies = ClosedLoop::from(0);
            let mut now_ms = 0;
            for number in 0..1_000 {
                let sent_ms = now_ms;
                now_ms += if number == stands_at { 1_000 } else { 1 };
                if number == 999 {
                    latencies.end((sent_ms + 1) * MS);
                }
                latencies.record(now_ms * MS, (now_ms - sent_ms) * MS);
            }
            assert_eq!(latencies.percentiles().count, 1_000);
            assert!(latencies.percentiles().p99_us < 1_100.0, "one of a thousand");
            assert!(latencies.corrected().p99_us > 900_000.0, "{stands_at}: half of the time it stood");
            assert_eq!(latencies.silence(), Duration::from_secs(1));
        }
    }

    #[test]
    fn what_was_sent_afterwards_is_no_part_of_a_closed_loop() {
        let mut latencies = ClosedLoop::from(1_000);
        latencies.record(1_500, 600);
        latencies.end(2_000);
        latencies.record(2_100, 101);
        latencies.record(2_200, 200);
        assert_eq!(latencies.percentiles().count, 2);
    }
}
