//! The servers' memory and CPU time, sampled while a scenario runs.

use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    failure::Failure,
    process::{CpuTime, stolen},
};

/// Between two samples, until there are too many.
const INTERVAL: Duration = Duration::from_millis(200);
/// Samples kept: an hour of them. Then every other one goes, and those that follow are as far apart as those that are
/// left.
const SAMPLES_MAX: usize = 18_000;

/// One sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    /// Resident bytes.
    pub(crate) rss: u64,
    cpu: CpuTime,
    /// CPU time that the host of this virtual machine took away from it, all cores, since it booted.
    stolen: Duration,
}

/// Leaves every other sample, none of the peaks of memory.
fn thin_out(samples: &mut Vec<Sample>) {
    let pairs = samples.chunks(2).map(|pair| {
        let (earlier, later) = (pair[0], pair[pair.len() - 1]);
        Sample { rss: earlier.rss.max(later.rss), ..later }
    });
    *samples = pairs.collect();
}

/// What a stretch of time has cost the server.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spent {
    /// Cores in use, on average.
    pub(crate) cores: f64,
    /// Cores in use in the busiest interval of 200 ms or more.
    pub(crate) cores_peak: f64,
    /// CPU time that the host of a virtual machine took away from it, in milliseconds over all cores: time in which
    /// nobody here ran.
    pub(crate) stolen_ms: f64,
    /// Most resident bytes.
    pub(crate) rss_peak: u64,
    /// Resident bytes at the beginning.
    pub(crate) rss_before: u64,
}

/// The sampling thread of some processes, whose figures are added up; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    pids: Vec<u32>,
    samples: Arc<Mutex<Vec<Sample>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts sampling.
    pub(crate) fn start(pids: &[u32]) -> Watch {
        let sampled = pids.to_vec();
        let pids = sampled.clone();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(AtomicBool::new(false));
        let (kept, ended) = (Arc::clone(&samples), Arc::clone(&end));
        let thread = thread::spawn(move || {
            // How many are taken for each that is kept.
            let mut apart = 1;
            let mut peak = 0;
            for number in 1_u64.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                // A process that is gone is noticed by whoever talks to it.
                let Ok(sample) = sample(&pids) else { return };
                peak = sample.rss.max(peak);
                if number.is_multiple_of(apart) {
                    let mut samples = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    samples.push(Sample { rss: peak, ..sample });
                    peak = 0;
                    if samples.len() >= SAMPLES_MAX {
                        thin_out(&mut samples);
                        apart *= 2;
                    }
                }
                thread::sleep(INTERVAL);
            }
        });
        Watch { pids: sampled, samples, end, thread: Some(thread) }
    }

    /// What was spent between two moments. The samples next to them count as well, so that nothing at an edge is left
    /// out.
    pub(crate) fn spent(&self, from: Instant, to: Instant) -> Spent {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A process that is gone is noticed by whoever talks to it.
        samples.extend(sample(&self.pids));
        let begin = samples.iter().rposition(|sample| sample.at <= from).unwrap_or(0);
        let end = samples.iter().position(|sample| sample.at >= to).map_or(samples.len(), |last| last + 1);
        let within = samples.get(begin..end).unwrap_or_default();
        let cores = |earlier: &Sample, later: &Sample| later.cpu.cores_since(&earlier.cpu, later.at - earlier.at);
        let (Some(first), Some(last)) = (within.first(), within.last()) else { return Spent::default() };
        Spent {
            cores: if within.len() > 1 { cores(first, last) } else { 0.0 },
            cores_peak: within
                .windows(2)
                .filter(|pair| pair[1].at - pair[0].at >= INTERVAL / 2)
                .map(|pair| cores(&pair[0], &pair[1]))
                .fold(0.0, f64::max),
            stolen_ms: last.stolen.saturating_sub(first.stolen).as_secs_f64() * 1e3,
            rss_peak: within.iter().map(|sample| sample.rss).max().unwrap_or(0),
            rss_before: first.rss,
        }
    }
}

impl Spent {
    /// The worse of two stretches in each figure, and the time stolen in both.
    pub(crate) fn max(self, other: Spent) -> Spent {
        Spent {
            cores: self.cores.max(other.cores),
            cores_peak: self.cores_peak.max(other.cores_peak),
            stolen_ms: self.stolen_ms + other.stolen_ms,
            rss_peak: self.rss_peak.max(other.rss_peak),
            rss_before: self.rss_before.max(other.rss_before),
        }
    }

    /// Says so when a host took time away, for that is in every latency.
    pub(crate) fn note_if_stolen(&self, what: &str) {
        if self.stolen_ms > 0.0 {
            println!(
                "note: {what}: the host of this virtual machine took {:.0} ms of CPU time away; the slowest latencies \
                 have that in them",
                self.stolen_ms
            );
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the sampler has been printed; the run does not depend on it.
            let _ = thread.join();
        }
    }
}

fn sample(pids: &[u32]) -> Result<Sample, Failure> {
    let mut pages = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/statm");
        let text = fs::read_to_string(&path).map_err(|error| Failure::system(&format!("reading {path}"), error))?;
        pages += text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0_u64);
    }
    let rss = pages * rustix::param::page_size() as u64;
    Ok(Sample { at: Instant::now(), rss, cpu: CpuTime::of_all(pids)?, stolen: stolen()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_are_thinned_out_keep_every_peak() {
        let start = Instant::now();
        let sample = |number: u32, rss| Sample {
            at: start + INTERVAL * number,
            rss,
            cpu: CpuTime::default(),
            stolen: Duration::ZERO,
        };
        let mut samples = vec![sample(0, 5), sample(1, 9), sample(2, 30), sample(3, 7), sample(4, 8)];
        thin_out(&mut samples);
        assert_eq!(samples.iter().map(|sample| sample.rss).collect::<Vec<_>>(), [9, 30, 8]);
        assert_eq!(samples[2].at, start + INTERVAL * 4);
    }

    #[test]
    fn own_process_is_sampled() {
        let watch = Watch::start(&[std::process::id()]);
        let start = Instant::now();
        let mut spent = Spent::default();
        while spent.rss_peak == 0 && start.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(5));
            spent = watch.spent(start, Instant::now());
        }
        assert!(spent.rss_peak > 0 && spent.rss_before <= spent.rss_peak);
    }
}
