//! Numbers of the HTTP server itself, for whoever writes metrics.

/// One metric, with its samples by one label or with one sample without any.
#[derive(Debug, Clone)]
pub struct HttpMetric {
    /// Its name.
    pub name: &'static str,
    /// Whether it only grows.
    pub is_counter: bool,
    /// One sentence about it.
    pub help: &'static str,
    /// The label of its samples; empty when there is one sample, without a label.
    pub label: &'static str,
    /// The samples, by the value of the label.
    pub samples: Vec<(&'static str, u64)>,
}

impl HttpMetric {
    /// A metric with one sample.
    pub(super) fn plain(name: &'static str, is_counter: bool, help: &'static str, value: u64) -> Self {
        HttpMetric { name, is_counter, help, label: "", samples: vec![("", value)] }
    }
}
