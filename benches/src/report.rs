//! Tables on standard output and everything in a JSON file.

use std::{fs, path::Path};

use serde::Serialize;

use crate::failure::Failure;

/// The machine a report was made on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_mib: u64,
}

impl Machine {
    /// This machine.
    pub(crate) fn this() -> Machine {
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal");
        Machine {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024,
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { kernel, cpu, cores, memory_mib } = self;
        write!(f, "Linux {kernel}, {cores} cores ({cpu}), {memory_mib} MiB")
    }
}

/// Writes a report as JSON. Errors: the file cannot be written.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).expect("reports hold numbers, strings and lists only");
    fs::write(path, text + "\n").map_err(|error| Failure::system(&format!("writing {}", path.display()), error))
}

/// A table for people: the first column is aligned left, the others right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let (before, after) = if column == 0 { ("", pad.as_str()) } else { (pad.as_str(), "") };
            text += &format!("{before}{cell}{after}  ");
        }
        text.trim_end().to_owned() + "\n"
    };
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    rows.iter().fold(line(&head), |text, row| text + &line(row))
}

/// The middle one of some values; of an even number the mean of the two middle ones. 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 1 => values[middle],
        (_, middle) => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// The median of some values, and where the median of all there could be lies.
///
/// The bounds are order statistics, so nothing is presumed about how the values are distributed: of `n` independent
/// ones the k-th smallest and the k-th largest have the median between them unless fewer than k lie on one side of it,
/// whose probability is twice that of fewer than k heads in n throws of a coin (H. A. David and H. N. Nagaraja, Order
/// Statistics, section 7.1). k is the largest one with 95 % or more; fewer than six values do not reach that, and then
/// the bounds are their smallest and largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Median {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The probability that the bounds have the true median between them.
    pub(crate) confidence: f64,
}

impl Median {
    /// Of values that are independent of each other; all 0 of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Median {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let mut best = match (values.first(), values.last()) {
            (Some(&low), Some(&high)) => Median { median: median(values.iter().copied()), low, high, confidence: 0.0 },
            _ => return Median::default(),
        };
        // Fewer than k heads in n throws; the binomial coefficient grows along.
        let (mut coefficient, mut fewer) = (1.0, 0.0);
        for k in 1..=count.div_ceil(2) {
            fewer += coefficient * 0.5_f64.powi(count as i32);
            coefficient *= (count - k + 1) as f64 / k as f64;
            let confidence = (1.0 - 2.0 * fewer).max(0.0);
            if k > 1 && confidence < CONFIDENCE_MIN {
                break;
            }
            best = Median { low: values[k - 1], high: values[count - k], confidence, ..best };
        }
        best
    }
}

/// What an interval is to hold the median with.
const CONFIDENCE_MIN: f64 = 0.95;

impl std::fmt::Display for Median {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Median { median, low, high, confidence } = self;
        write!(f, "{median:.2} ({low:.2} to {high:.2}, {:.0} %)", confidence * 100.0)
    }
}

/// Printed below ratios with their intervals.
pub(crate) const INTERVALS: &str = "\
a ratio is the median of the rounds' own; in brackets the interval of the median (order statistics, no distribution \
presumed) and how probable it is that the true one lies in it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn the_interval_of_a_median_is_that_of_the_binomial_distribution() {
        // Tables of the distribution-free interval, for example for 9 values: the second and the eighth, 0.9609.
        let nine = Median::of((1..=9).map(f64::from));
        assert_eq!((nine.median, nine.low, nine.high), (5.0, 2.0, 8.0));
        assert!((nine.confidence - 0.9609).abs() < 1e-4, "{nine:?}");
        let fifteen = Median::of((1..=15).rev().map(f64::from));
        assert_eq!((fifteen.low, fifteen.high), (4.0, 12.0));
        assert!((fifteen.confidence - 0.9648).abs() < 1e-4, "{fifteen:?}");
        // Too few for 95 %: all there is, and how little that says.
        let five = Median::of([1.0, 9.0, 2.0, 3.0, 4.0]);
        assert_eq!((five.median, five.low, five.high, five.confidence), (3.0, 1.0, 9.0, 0.9375));
        assert_eq!(Median::of([7.0]), Median { median: 7.0, low: 7.0, high: 7.0, confidence: 0.0 });
        assert_eq!(Median::of([]), Median::default());
        assert_eq!(five.to_string(), "3.00 (1.00 to 9.00, 94 %)");
    }

    #[test]
    fn columns_of_a_table_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "12,345".to_owned()]];
        assert_eq!(table(&["name", "µs"], &rows), "name      µs\na          1\nlong  12,345\n");
    }
}
