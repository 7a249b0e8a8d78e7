//! The store of a simulated node: in memory, late, sometimes out of order, and cut off from its node by a crash.

use super::super::node::Node;
use crate::desk::{ShardStore, StoreAnswers};
use crate::io::sim::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trunkline_store::{Answer, DeviceInfo, Limits, Memory, Reply, Request, Source, Store, StoreMail};

const REQUESTS_MAX: usize = 4_096;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Asks for itself, and for no shard.
const CHECKER: Source = Source::MAX;
/// How long a commit takes that takes long.
const SLOW_US: u64 = 5_000_000;

pub(super) struct SimStore {
    memory: Memory,
    clock: Arc<AtomicU64>,
    mail: Arc<StoreMail>,
    answers: StoreAnswers,
    rng: Rng,
    /// When the batch that is being committed is.
    commit_us: Option<u64>,
    /// Until when it cannot write.
    broken_until_us: u64,
    /// Until when it neither commits nor answers.
    stalled_until_us: u64,
    /// Commits that take long, of a thousand.
    slow: u32,
    mail_bytes_max: usize,
    pub(super) failures: u64,
    pub(super) slow_commits: u64,
}

impl SimStore {
    pub(super) fn new(seed: u64, limits: Limits, slow: u32, mail_bytes_max: usize) -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let time = Arc::clone(&clock);
        let memory = Memory::new(limits, Arc::new(move || time.load(Ordering::Relaxed)), seed | 1);
        SimStore {
            memory,
            clock,
            mail: StoreMail::new(mail_bytes_max),
            answers: StoreAnswers::new(0),
            rng: Rng::new(seed ^ 0x0057_04E5),
            commit_us: None,
            broken_until_us: 0,
            stalled_until_us: 0,
            slow,
            mail_bytes_max,
            failures: 0,
            slow_commits: 0,
        }
    }

    /// A node starts and has it from now on.
    pub(super) fn serve(&mut self, shards: u16, wall_ms: u64) -> ShardStore {
        self.clock.store(wall_ms, Ordering::Relaxed);
        self.mail = StoreMail::new(self.mail_bytes_max);
        self.answers = StoreAnswers::new(shards);
        self.commit_us = None;
        let highest_stamp = self.memory.high();
        let (mail, answers, stats) = (self.mail.clone(), self.answers.clone(), self.memory.stats().clone());
        ShardStore { mail, answers, highest_stamp, key: self.rng.bits(), stats, shared: false }
    }

    /// Its node is killed: what was not committed is gone, and so are answers on their way.
    pub(super) fn crash(&mut self) {
        self.memory.crash();
        self.commit_us = None;
        self.broken_until_us = 0;
    }

    /// It cannot write for a while.
    pub(super) fn fail(&mut self, until_us: u64) {
        self.failures += 1;
        self.broken_until_us = until_us;
        self.memory.set_available(false);
    }

    /// It neither commits nor answers for a while.
    pub(super) fn stall(&mut self, until_us: u64) {
        self.stalled_until_us = until_us;
    }

    /// From now on nothing goes wrong.
    pub(super) fn mend(&mut self) {
        self.slow = 0;
        self.broken_until_us = 0;
        self.memory.set_available(true);
    }

    /// When it has something to do.
    pub(super) fn next_due_us(&self) -> u64 {
        self.commit_us.map_or(u64::MAX, |commit_us| commit_us.max(self.stalled_until_us))
    }

    /// Commits what is due, and begins with what has come meanwhile.
    pub(super) fn step(&mut self, now_us: u64, wall_ms: u64, node: &mut Node) {
        self.clock.store(wall_ms, Ordering::Relaxed);
        if self.broken_until_us != 0 && self.broken_until_us <= now_us {
            self.broken_until_us = 0;
            self.memory.set_available(true);
        }
        if now_us < self.stalled_until_us {
            return;
        }
        if self.commit_us.is_some_and(|commit_us| commit_us <= now_us) {
            self.commit_us = None;
            let mut batch = Vec::new();
            self.mail.take(&mut batch, REQUESTS_MAX, BATCH_BYTES_MAX);
            let mut by_source: Vec<(Source, Vec<Answer>)> = Vec::new();
            self.memory.apply(&mut batch, &mut |source, answer| match by_source
                .iter_mut()
                .find(|(known, _)| *known == source)
            {
                Some((_, answers)) => answers.push(answer),
                None => by_source.push((source, vec![answer])),
            });
            for (source, answers) in by_source {
                self.answers.put(source, answers);
                node.signal(usize::from(source));
            }
        }
        self.memory.tick();
        if self.commit_us.is_none() && self.mail.bytes() > 0 {
            let slow = self.rng.chance(self.slow);
            self.slow_commits += u64::from(slow);
            let after_us = if slow { self.rng.within(100_000, SLOW_US) } else { self.rng.within(100, 8_000) };
            self.commit_us = Some(now_us + after_us);
        }
    }

    /// The devices of a user, as they would be after a crash now.
    pub(super) fn devices(&mut self, user: u64) -> Vec<DeviceInfo> {
        let mut batch = vec![(CHECKER, Request::Devices { user, token: 0 })];
        let mut devices = Vec::new();
        self.memory.apply(&mut batch, &mut |_, answer| {
            if let Reply::Devices(found) = answer.reply {
                devices = found;
            }
        });
        devices
    }
}
