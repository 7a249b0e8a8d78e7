//! The gateway's own counters, read from its `/metrics`.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::failure::Failure;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Some kilobytes for each shard; more than this is no answer of a gateway.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Counters of all shards together, by name and labels without the shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Reads them. Errors: the address does not answer as a gateway does.
    pub(crate) fn read(http: SocketAddr) -> Result<Counters, Failure> {
        let failed = |error| Failure::system(&format!("reading http://{http}/metrics"), error);
        let mut stream = TcpStream::connect_timeout(&http, TIMEOUT).map_err(failed)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n").map_err(failed)?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).map_err(failed)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(Counters::parsed(body)),
            _ => Err(Failure::Setup(format!("http://{http}/metrics does not answer as a gateway does"))),
        }
    }

    /// What /metrics says.
    pub(crate) fn parsed(text: &str) -> Counters {
        Counters(parse(text))
    }

    /// A counter, for example `trunkline_messages_total{outcome="delivered"}`; 0 when there is none.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0.0) as u64
    }

    /// A counter over all its labels.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let labelled = |key: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.0.iter().filter(|(key, _)| labelled(key)).map(|(_, value)| *value as u64).sum()
    }

    /// By how much the counter has grown since `earlier`.
    pub(crate) fn grown(&self, earlier: &Counters, name: &str) -> u64 {
        self.get(name).saturating_sub(earlier.get(name))
    }
}

fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split(',');
        let kept: Vec<&str> = labels.filter(|label| !label.is_empty() && !label.starts_with("shard=")).collect();
        let key = if kept.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", kept.join(",")) };
        // A chunk's length stands on lines of its own and is no series.
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(key).or_insert(0.0) += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_added_up_and_labels_kept() {
        let counters = Counters(parse(
            "# TYPE a counter\na{shard=\"0\"} 2\na{shard=\"1\"} 3\nb{outcome=\"x\",shard=\"0\"} 4\n\
             b{shard=\"1\",outcome=\"x\"} 1\nc 7\n",
        ));
        assert_eq!(counters.get("a"), 5);
        assert_eq!(counters.get("b{outcome=\"x\"}"), 5);
        assert_eq!(counters.get("c"), 7);
        assert_eq!((counters.sum("b"), counters.sum("c")), (5, 7));
        assert_eq!(counters.get("d"), 0);
    }
}
