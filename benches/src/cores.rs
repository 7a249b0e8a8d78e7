//! What the cores of a machine did in some time, as the kernel tells in `/proc/stat`.
//!
//! The kernel handles packets in a context of its own (softirq), but on somebody's time: on loopback it runs within the
//! system call that sends, so the receiver's share of TCP is done by the sender, and a process's CPU time contains what
//! its core spent so. Whether it does is told by [`CoreUse::is_in_processes`]; how much it was, by
//! [`CoreUse::softirq`].

use std::{collections::BTreeMap, fs};

use serde::Serialize;

use crate::{affinity::kernel_number, failure::Failure};

/// Ticks of each core since the machine booted, by kind.
#[derive(Clone, Debug)]
pub(crate) struct CoreTimes(BTreeMap<usize, [u64; KINDS]>);

/// user nice system idle iowait irq softirq steal
const KINDS: usize = 8;

/// Shares of a core's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CoreUse {
    /// Programs.
    pub(crate) user: f64,
    /// System calls.
    pub(crate) system: f64,
    /// Hardware interrupts.
    pub(crate) irq: f64,
    /// Packets and timers, whoever's they are.
    pub(crate) softirq: f64,
    /// The host of a virtual machine ran something else.
    pub(crate) stolen: f64,
    /// Nothing.
    pub(crate) idle: f64,
}

impl CoreTimes {
    /// So far.
    pub(crate) fn now() -> Result<CoreTimes, Failure> {
        let text = fs::read_to_string("/proc/stat").map_err(|error| Failure::system("reading /proc/stat", error))?;
        Ok(CoreTimes::parse(&text))
    }

    fn parse(text: &str) -> CoreTimes {
        let core = |line: &str| {
            let mut fields = line.strip_prefix("cpu")?.split_whitespace();
            let number = fields.next()?.parse().ok()?;
            let mut ticks = [0; KINDS];
            for (tick, field) in ticks.iter_mut().zip(fields) {
                *tick = field.parse().ok()?;
            }
            Some((number, ticks))
        };
        // The first line is of all cores together and has no number.
        CoreTimes(text.lines().filter(|line| !line.starts_with("cpu ")).filter_map(core).collect())
    }

    /// How one of this process's cores, counted from 0, has been used since.
    pub(crate) fn since(&self, earlier: &CoreTimes, core: usize) -> CoreUse {
        kernel_number(core).map_or(CoreUse::default(), |number| self.of(earlier, number))
    }

    /// How many of the machine's cores had nothing to do since.
    pub(crate) fn idle_since(&self, earlier: &CoreTimes) -> f64 {
        self.0.keys().map(|number| self.of(earlier, *number).idle).sum()
    }

    fn of(&self, earlier: &CoreTimes, number: usize) -> CoreUse {
        let (Some(now), Some(before)) = (self.0.get(&number), earlier.0.get(&number)) else {
            return CoreUse::default();
        };
        let spent: Vec<f64> = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before) as f64).collect();
        let all = spent.iter().sum::<f64>().max(1.0);
        let share = |kind: usize| spent[kind] / all;
        CoreUse {
            user: share(0) + share(1),
            system: share(2),
            irq: share(5),
            softirq: share(6),
            stolen: share(7),
            idle: share(3) + share(4),
        }
    }
}

/// How far a process's cores and its core's time may be apart, which are counted in different ways.
const FIT_MAX: f64 = 0.03;

impl CoreUse {
    /// Whether softirq time is within the time of the processes that it interrupted, of which the only one on this core
    /// used so many cores. A kernel may also keep it apart (CONFIG_IRQ_TIME_ACCOUNTING), and then no process's CPU time
    /// shows it.
    /// `None` where the two do not fit either way: something else ran on the core.
    pub(crate) fn is_in_processes(&self, cores: f64) -> Option<bool> {
        let apart = self.user + self.system;
        let within = apart + self.softirq + self.irq;
        let [apart, within] = [apart, within].map(|expected| (cores - expected).abs());
        (apart.min(within) <= FIT_MAX).then_some(within <= apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_between_two_looks() {
        let before = CoreTimes::parse(
            "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 10 0 10 100 0 0 5 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n",
        );
        let after = CoreTimes::parse(
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 30 0 60 110 0 0 25 0 0 0\ncpu1 1 0 0 0 0 0 0 0 0 0\nintr 6\n",
        );
        let used = after.of(&before, 0);
        assert_eq!((used.user, used.system, used.softirq, used.idle), (0.2, 0.5, 0.2, 0.1));
        assert_eq!(used.is_in_processes(0.9), Some(true), "the process has it all");
        assert_eq!(used.is_in_processes(0.7), Some(false), "the process has what its own code and its calls took");
        assert_eq!(used.is_in_processes(0.2), None, "somebody else was there");
        assert_eq!(after.of(&before, 7), CoreUse::default());
        assert_eq!(after.idle_since(&before), 0.1, "of both cores");
    }

    #[test]
    fn this_machine_has_cores() {
        let now = CoreTimes::now().expect("there");
        assert!(!now.0.is_empty());
    }
}
