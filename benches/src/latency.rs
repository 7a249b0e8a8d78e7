//! Latencies and how they are reported.

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
