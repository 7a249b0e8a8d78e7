//! The Prometheus text format, and the books that must balance.

use super::names::metric;
use std::collections::{BTreeMap, BTreeSet};

/// One reading of `/metrics`.
pub(crate) struct Metrics {
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: u64,
}

impl Metrics {
    /// Parses a reading and checks its form: HELP and TYPE once for each name and before its samples, the samples of a
    /// name together, no series twice.
    pub(crate) fn parse(text: &str) -> Self {
        let mut samples: Vec<Sample> = Vec::new();
        let mut helped = BTreeSet::new();
        let mut typed = BTreeSet::new();
        let mut series = BTreeSet::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().expect("HELP has a name");
                assert!(helped.insert(name.to_owned()), "two HELP lines for {name}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, metric_type) = rest.split_once(' ').expect("TYPE has a name and a type");
                assert!(typed.insert(name.to_owned()), "two TYPE lines for {name}");
                assert!(matches!(metric_type, "counter" | "gauge" | "histogram" | "summary"), "{line}");
            } else if !line.starts_with('#') {
                let Some(sample) = parse_sample(line) else {
                    continue;
                };
                // The series of a histogram stand under its name.
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| {
                    let family = sample.name.strip_suffix(part)?;
                    typed.contains(family).then(|| family.to_owned())
                });
                if family.is_some() {
                    assert!(series.insert((sample.name.clone(), sample.labels.clone())), "series twice: {line}");
                    samples.push(sample);
                    continue;
                }
                assert!(
                    typed.contains(&sample.name) && helped.contains(&sample.name),
                    "{line}: no HELP or TYPE before it"
                );
                assert!(series.insert((sample.name.clone(), sample.labels.clone())), "series twice: {line}");
                let seen = samples.iter().any(|other| other.name == sample.name);
                let together = samples.last().is_none_or(|last| last.name == sample.name);
                assert!(together || !seen, "{line}: samples of one name are not together");
                samples.push(sample);
            }
        }
        Metrics { samples }
    }

    /// Sum of all series of a name whose labels include these. Fails when there is none, so that a renamed metric
    /// cannot read as 0.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut found = false;
        let mut sum = 0u64;
        for sample in self.samples.iter().filter(|sample| sample.matches(name, labels)) {
            found = true;
            sum += sample.value;
        }
        assert!(found, "no series {name} {labels:?}");
        sum
    }

    /// The values of a label that a metric has.
    pub(crate) fn label_values(&self, name: &str, label: &str) -> BTreeSet<String> {
        let of_name = self.samples.iter().filter(|sample| sample.name == name);
        of_name.filter_map(|sample| sample.labels.get(label).cloned()).collect()
    }

    pub(crate) fn outcome(&self, outcome: &str) -> u64 {
        self.sum(metric::MESSAGES, &[("outcome", outcome)])
    }

    pub(crate) fn closed(&self, reason: &str) -> u64 {
        self.sum(metric::CLOSED, &[("reason", reason)])
    }

    pub(crate) fn limit_hits(&self, limit: &str) -> u64 {
        self.sum(metric::LIMIT_HITS, &[("limit", limit)])
    }

    /// What does not add up, in words; `None` when the books balance: every connection is open or closed with one
    /// reason, on every shard for itself once hand-overs are counted, and every message has one fate or waits for its
    /// ACK.
    pub(crate) fn imbalance(&self) -> Option<String> {
        let shards = self.label_values(metric::ACCEPTED, "shard");
        for shard in &shards {
            let of = |name: &str| self.sum(name, &[("shard", shard)]);
            let came = of(metric::ACCEPTED) + of(metric::MOVED_IN);
            let went = of(metric::OPEN) + of(metric::CLOSED) + of(metric::MOVED_OUT);
            if came != went {
                return Some(format!(
                    "shard {shard}: {} accepted + {} moved in, but {} open + {} closed + {} moved out",
                    of(metric::ACCEPTED),
                    of(metric::MOVED_IN),
                    of(metric::OPEN),
                    of(metric::CLOSED),
                    of(metric::MOVED_OUT)
                ));
            }
        }
        let total = |name: &str| self.sum(name, &[]);
        let (moved_out, moved_in) = (total(metric::MOVED_OUT), total(metric::MOVED_IN));
        if moved_out != moved_in {
            return Some(format!("{moved_out} connections moved out, {moved_in} moved in"));
        }
        let received = total(metric::MESSAGES_RECEIVED);
        let accounted = total(metric::MESSAGES) + total(metric::UNACKED);
        if received != accounted {
            return Some(format!(
                "{received} messages received, but {} with a fate + {} unacknowledged",
                total(metric::MESSAGES),
                total(metric::UNACKED)
            ));
        }
        None
    }
}

impl Sample {
    fn matches(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name && labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|label| label == value))
    }
}

/// A sample with a whole, non-negative value; `None` for others, which no test asks for.
fn parse_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let number: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
    let value = (number >= 0.0 && number.fract() == 0.0).then_some(number as u64)?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("no closing brace: {line}"))),
    };
    let labels = labels
        .split(',')
        .filter(|label| !label.is_empty())
        .map(|label| {
            let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("bad label: {line}"));
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or_else(|| panic!("label without quotes: {line}"));
            (key.to_owned(), value.to_owned())
        })
        .collect();
    Some(Sample { name: name.to_owned(), labels, value })
}
