//! The store of a simulated node: in memory, late, sometimes out of order, and cut off from its node by a crash.

use super::super::node::Node;
use super::super::planted::{Bug, planted};
use crate::desk::{ShardStore, StoreAnswers};
use crate::io::sim::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trunkline_store::{
    Answer, Clock, DeviceInfo, GroupAsk, GroupLimits, GroupReply, Groups, Limits, Memory, Reply, Request, Source,
    Store, StoreMail, WithGroups, group_store_limits,
};

const REQUESTS_MAX: usize = 4_096;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Asks for itself, and for no shard.
const CHECKER: Source = Source::MAX;
/// How long a commit takes that takes long.
const SLOW_US: u64 = 5_000_000;

pub(in crate::simulation) struct SimStore {
    both: WithGroups<Memory, Memory>,
    groups: Arc<trunkline_store::GroupStats>,
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
    pub(in crate::simulation) failures: u64,
    pub(in crate::simulation) slow_commits: u64,
}

impl SimStore {
    pub(in crate::simulation) fn new(seed: u64, limits: Limits, slow: u32, mail_bytes_max: usize) -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let time = Arc::clone(&clock);
        let time: Clock = Arc::new(move || time.load(Ordering::Relaxed));
        let logs = Memory::new(group_store_limits(&limits, 10_000, u64::MAX), time.clone(), seed | 1);
        let groups = open(logs, &clock);
        let inboxes = Memory::new(limits, time, seed | 1);
        let inboxes = if planted(Bug::PulledBack) { inboxes.shared() } else { inboxes };
        SimStore {
            groups: groups.stats().clone(),
            both: WithGroups::new(inboxes, Some(groups)),
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
    pub(in crate::simulation) fn serve(&mut self, shards: u16, wall_ms: u64) -> ShardStore {
        self.clock.store(wall_ms, Ordering::Relaxed);
        self.mail = StoreMail::new(self.mail_bytes_max);
        self.answers = StoreAnswers::new(shards);
        self.commit_us = None;
        let of_groups = self.both.groups().map_or(0, |groups| groups.logs().high());
        let highest_stamp = self.both.inboxes().high().max(of_groups);
        let (mail, answers, stats) = (self.mail.clone(), self.answers.clone(), self.both.stats().clone());
        let groups = Some(self.groups.clone());
        ShardStore { mail, answers, highest_stamp, key: self.rng.bits(), stats, groups, shared: false }
    }

    /// Its node is killed: what was not committed is gone, and so are answers on their way.
    pub(in crate::simulation) fn crash(&mut self) {
        self.both.inboxes().crash();
        if let Some(groups) = self.both.take_groups() {
            let mut logs = groups.into_logs();
            logs.crash();
            let groups = open(logs, &self.clock);
            self.groups = groups.stats().clone();
            self.both.set_groups(groups);
        }
        self.commit_us = None;
        self.broken_until_us = 0;
    }

    /// It cannot write for a while.
    pub(in crate::simulation) fn fail(&mut self, until_us: u64) {
        self.failures += 1;
        self.broken_until_us = until_us;
        self.set_available(false);
    }

    fn set_available(&mut self, available: bool) {
        self.both.inboxes().set_available(available);
        if let Some(groups) = self.both.groups() {
            groups.logs_mut().set_available(available);
        }
    }

    /// It neither commits nor answers for a while.
    pub(in crate::simulation) fn stall(&mut self, until_us: u64) {
        self.stalled_until_us = until_us;
    }

    /// From now on nothing goes wrong.
    pub(in crate::simulation) fn mend(&mut self) {
        self.slow = 0;
        self.broken_until_us = 0;
        self.set_available(true);
    }

    /// When it has something to do.
    pub(in crate::simulation) fn next_due_us(&self) -> u64 {
        self.commit_us.map_or(u64::MAX, |commit_us| commit_us.max(self.stalled_until_us))
    }

    /// Commits what is due, and begins with what has come meanwhile.
    pub(in crate::simulation) fn step(&mut self, now_us: u64, wall_ms: u64, node: &mut Node) {
        self.clock.store(wall_ms, Ordering::Relaxed);
        if self.broken_until_us != 0 && self.broken_until_us <= now_us {
            self.broken_until_us = 0;
            self.set_available(true);
        }
        if now_us < self.stalled_until_us {
            return;
        }
        if self.commit_us.is_some_and(|commit_us| commit_us <= now_us) {
            self.commit_us = None;
            let mut batch = Vec::new();
            self.mail.take(&mut batch, REQUESTS_MAX, BATCH_BYTES_MAX);
            let mut by_source: Vec<(Source, Vec<Answer>)> = Vec::new();
            self.both.apply(&mut batch, &mut |source, answer| match by_source
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
        self.both.tick();
        if self.commit_us.is_none() && self.mail.bytes() > 0 {
            let slow = self.rng.chance(self.slow);
            self.slow_commits += u64::from(slow);
            let after_us = if slow { self.rng.within(100_000, SLOW_US) } else { self.rng.within(100, 8_000) };
            self.commit_us = Some(now_us + after_us);
        }
    }

    /// The devices of a user, as they would be after a crash now.
    pub(in crate::simulation) fn devices(&mut self, user: u64) -> Vec<DeviceInfo> {
        let mut batch = vec![(CHECKER, Request::Devices { user, token: 0 })];
        let mut devices = Vec::new();
        self.both.apply(&mut batch, &mut |_, answer| {
            if let Reply::Devices(found) = answer.reply {
                devices = found;
            }
        });
        devices
    }

    fn of_group(&mut self, group: u64, ask: GroupAsk) -> Option<GroupReply> {
        let mut batch = vec![(CHECKER, Request::Group { group, ask: Box::new(ask), token: Some(0) })];
        let mut found = None;
        self.both.apply(&mut batch, &mut |_, answer| {
            if let Reply::Group(reply) = answer.reply {
                found = Some(*reply);
            }
        });
        found
    }

    /// Ids and stamps of the messages of a group.
    pub(in crate::simulation) fn group_log(&mut self, group: u64) -> Vec<(u64, u64)> {
        let mut log = Vec::new();
        let mut after = 0;
        loop {
            let ask = GroupAsk::Read { user: None, after, since_ms: 0, limit: 1_000, bytes_max: u32::MAX };
            let Some(GroupReply::Page { page, next }) = self.of_group(group, ask) else { return log };
            log.extend(page.records.iter().map(|record| (record.id, record.stamp)));
            if page.complete {
                return log;
            }
            after = next;
        }
    }

    /// The members of a group.
    pub(in crate::simulation) fn group_members(&mut self, group: u64) -> Vec<u64> {
        match self.of_group(group, GroupAsk::Members { after: 0, limit: 1_000 }) {
            Some(GroupReply::Members { members, .. }) => members.iter().map(|member| member.user).collect(),
            _ => Vec::new(),
        }
    }
}

fn open(logs: Memory, clock: &Arc<AtomicU64>) -> Groups<Memory> {
    let time = Arc::clone(clock);
    let time: Clock = Arc::new(move || time.load(Ordering::Relaxed));
    Groups::open(logs, GroupLimits::default(), time).expect("memory can be read")
}
