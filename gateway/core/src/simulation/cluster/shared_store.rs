//! The store that the simulated nodes share: in memory, with a fence for each group and each inbox, late at each node
//! by itself, and cut off from a node by its crash, so that what a node asked may be done without anybody hearing of
//! it.

use super::super::node::Node;
use super::super::{Bug, planted};
use crate::desk::{ShardStore, StoreAnswers};
use crate::io::sim::Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trunkline_store::{
    Answer, Clock, GroupAsk, GroupLimits, GroupReply, Groups, Limits, Memory, Opened, Refusal, Reply, Request, Source,
    Store, StoreMail, WithGroups, group_store_limits,
};

/// Sources of one node.
const SOURCES: Source = 100;
/// Asks for itself, and for no shard.
const CHECKER: Source = Source::MAX;

/// A node's way to it.
struct Way {
    mail: Arc<StoreMail>,
    answers: StoreAnswers,
    /// When the requests that wait are carried out.
    commit_us: Option<u64>,
    /// Answers on their way, and when they arrive: in order, as from one server.
    under_way: Vec<(u64, Source, Vec<Answer>)>,
}

pub(super) struct SharedStore {
    both: WithGroups<Memory, Memory>,
    clock: Arc<AtomicU64>,
    ways: BTreeMap<usize, Way>,
    /// The view of each source, and the latest in which each group had a home.
    views: BTreeMap<Source, u64>,
    claimed: BTreeMap<u64, u64>,
    /// The latest view in which each user had a home.
    homes: BTreeMap<u64, u64>,
    rng: Rng,
    pub(super) stale: u64,
    /// What its clock shows when a run begins, milliseconds since the Unix epoch.
    pub(super) begins_ms: u64,
    /// Of a thousand messages that it stores, how many it seems to have refused: the answer was lost with a connection.
    pub(super) unheard_permille: u32,
    pub(super) unheard: u64,
    /// Times at which the master that has the groups is lost and a replica takes its place, microseconds. What is asked
    /// of groups meanwhile is refused: of that some has been done, and is in the replica, and some not.
    pub(super) fail_overs: Vec<Range<u64>>,
    now_us: u64,
    /// Messages that it has although it seems to have refused them, and all else that it refused for that reason.
    pub(super) done_unheard: u64,
    pub(super) not_done: u64,
    /// Of a thousand batches of a node, how many take seconds; and of a thousand claims, how many too few replicas
    /// have.
    pub(super) late_permille: u32,
    pub(super) unsure_permille: u32,
    pub(super) unsure: u64,
    /// The latest view in which a home has claimed a log, or added to it, noted besides what refuses the others; and
    /// what was added in an earlier one.
    acted: BTreeMap<Log, u64>,
    pub(super) stale_taken: Vec<String>,
}

/// A log: of a group, or of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Log {
    Group(u64),
    User(u64),
}

/// What is added to a log, or who claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Appends(Log),
    Claims(Log),
}

impl Act {
    fn of(request: &Request) -> Option<Self> {
        Some(match request {
            Request::Append { user, .. } => Act::Appends(Log::User(*user)),
            Request::Open { user, claims: true, .. } | Request::Inspect { user, claims: true, .. } => {
                Act::Claims(Log::User(*user))
            }
            Request::Group { group, ask, .. } => match **ask {
                GroupAsk::Append { .. } => Act::Appends(Log::Group(*group)),
                GroupAsk::Claim => Act::Claims(Log::Group(*group)),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Whether an answer says that a message is in the log now and was not before.
fn has_added(reply: &Reply) -> bool {
    match reply {
        Reply::Stored { duplicate, .. } => !duplicate,
        Reply::Group(reply) => matches!(**reply, GroupReply::Stored { duplicate: false, .. }),
        _ => false,
    }
}

impl SharedStore {
    pub(super) fn new(seed: u64) -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let time = Arc::clone(&clock);
        let time: Clock = Arc::new(move || time.load(Ordering::Relaxed));
        let limits = Limits::default();
        let logs = Memory::new(group_store_limits(&limits, 100_000, u64::MAX), time.clone(), seed | 1).shared();
        let groups = Groups::open(logs, GroupLimits::default(), time.clone()).expect("memory can be read");
        SharedStore {
            both: WithGroups::new(Memory::new(limits, time, seed | 1).shared(), Some(groups)),
            clock,
            ways: BTreeMap::new(),
            views: BTreeMap::new(),
            claimed: BTreeMap::new(),
            homes: BTreeMap::new(),
            rng: Rng::new(seed ^ 0x005A_4ED5),
            stale: 0,
            begins_ms: 0,
            unheard_permille: 0,
            unheard: 0,
            fail_overs: Vec::new(),
            now_us: 0,
            done_unheard: 0,
            not_done: 0,
            late_permille: 0,
            unsure_permille: 0,
            unsure: 0,
            acted: BTreeMap::new(),
            stale_taken: Vec::new(),
        }
    }

    /// A process of that node begins.
    pub(super) fn serve(&mut self, node: usize, shards: u16) -> ShardStore {
        let (mail, answers) = (StoreMail::new(StoreMail::BYTES_MAX), StoreAnswers::new(shards));
        let way = Way { mail: mail.clone(), answers: answers.clone(), commit_us: None, under_way: Vec::new() };
        self.ways.insert(node, way);
        let base = node as Source * SOURCES;
        self.views.retain(|source, _| !(base..base + SOURCES).contains(source));
        let stats = self.both.stats().clone();
        ShardStore { mail, answers, highest_stamp: 0, key: self.rng.bits(), stats, groups: None, shared: true }
    }

    /// The process is gone: so is what it has not asked to the end, and what it has not heard.
    pub(super) fn end(&mut self, node: usize) {
        self.ways.remove(&node);
    }

    pub(super) fn next_due_us(&self) -> u64 {
        let of_way = |way: &Way| {
            let answers = way.under_way.iter().map(|(due_us, ..)| *due_us).min().unwrap_or(u64::MAX);
            way.commit_us.unwrap_or(u64::MAX).min(answers)
        };
        self.ways.values().map(of_way).min().unwrap_or(u64::MAX)
    }

    /// Carries out what is due of a node, and hands it answers.
    pub(super) fn step(&mut self, now_us: u64, number: usize, node: &mut Node) {
        self.now_us = now_us;
        self.clock.store(self.begins_ms + now_us / 1_000, Ordering::Relaxed);
        let Some(way) = self.ways.get_mut(&number) else { return };
        let mut batch = Vec::new();
        if way.commit_us.is_some_and(|commit_us| commit_us <= now_us) {
            way.commit_us = None;
            way.mail.take(&mut batch, 4_096, 1 << 20);
        }
        let base = number as Source * SOURCES;
        let mut given: Vec<(Source, Vec<Answer>)> = Vec::new();
        for (source, request) in batch {
            self.carry_out(base + source, request, &mut |source, answer| given.push((source - base, vec![answer])));
        }
        self.both.tick();
        let after_us = self.rng.within(100, 8_000);
        let Some(way) = self.ways.get_mut(&number) else { return };
        let due_us = way.under_way.last().map_or(0, |(due_us, ..)| *due_us).max(now_us + after_us);
        way.under_way.extend(given.into_iter().map(|(source, answers)| (due_us, source, answers)));
        for (_, source, answers) in way.under_way.extract_if(.., |(due_us, ..)| *due_us <= now_us) {
            way.answers.put(source, answers);
            node.signal(usize::from(source));
        }
        if way.commit_us.is_none() && way.mail.bytes() > 0 {
            let is_late = self.late_permille > 0 && self.rng.chance(self.late_permille);
            let after_us = if is_late { self.rng.within(500_000, 5_000_000) } else { self.rng.within(100, 8_000) };
            way.commit_us = Some(now_us + after_us);
        }
    }

    /// Carries out a request, and notes what homes have done.
    fn carry_out(&mut self, source: Source, request: Request, out: &mut dyn FnMut(Source, Answer)) {
        let act = Act::of(&request);
        let view = self.views.get(&source).copied().unwrap_or(0);
        let is_unsure = matches!(act, Some(Act::Claims(_))) && self.unsure_permille > 0;
        if is_unsure && self.rng.chance(self.unsure_permille) {
            return self.claim_in_doubt(source, request, out);
        }
        let (mut added, mut refused) = (false, false);
        self.fenced(source, request, &mut |source, answer| {
            added |= has_added(&answer.reply);
            refused |= matches!(answer.reply, Reply::Refused(_));
            out(source, answer);
        });
        // Nobody acts on it.
        if refused {
            return;
        }
        let Some(Act::Appends(log) | Act::Claims(log)) = act else { return };
        let latest = self.acted.entry(log).or_default();
        if added && view < *latest {
            self.stale_taken.push(format!("{log:?}: a home of view {view} has added to it after view {latest}"));
        }
        if added || matches!(act, Some(Act::Claims(_))) {
            *latest = view.max(*latest);
        }
    }

    /// A claim that too few replicas have: it may hold, or be lost with a master.
    fn claim_in_doubt(&mut self, source: Source, request: Request, out: &mut dyn FnMut(Source, Answer)) {
        self.unsure += 1;
        let holds = self.rng.chance(500);
        let in_doubt = |answer: Answer| {
            let reply = match answer.reply {
                Reply::Opened(opened) if opened.known => Reply::Opened(Opened { unsure_claim: true, ..opened }),
                Reply::Refused(refusal) => Reply::Refused(refusal),
                _ => Reply::Refused(Refusal::Unavailable),
            };
            Answer { reply, ..answer }
        };
        let mut out = |source, answer| out(source, in_doubt(answer));
        match holds {
            true => self.fenced(source, request, &mut out),
            false => self.both.apply(&mut vec![(source, request)], &mut out),
        }
    }

    /// Carries out a request, unless it is of a home of an earlier view than another one that has claimed.
    fn fenced(&mut self, source: Source, request: Request, out: &mut dyn FnMut(Source, Answer)) {
        if let Request::View { epoch } = request {
            self.views.insert(source, epoch);
        }
        if let Request::Group { ask, token, .. } = &request
            && self.fail_overs.iter().any(|time| time.contains(&self.now_us))
        {
            let token = *token;
            // What an earlier home would write is not done in any case.
            if self.rng.chance(400) && (!is_claimed(ask) || self.claim(source, &request)) {
                self.done_unheard += u64::from(matches!(**ask, GroupAsk::Append { .. }));
                self.both.apply(&mut vec![(source, request)], &mut |_, _| {});
            } else {
                self.not_done += 1;
            }
            if let Some(token) = token {
                out(source, Answer { token, reply: Reply::Refused(Refusal::Unavailable) });
            }
            return;
        }
        if let Request::Group { ask, token, .. } = &request
            && is_claimed(ask)
            && !self.claim(source, &request)
        {
            self.stale += 1;
            if let Some(token) = *token {
                out(source, Answer { token, reply: Reply::Refused(Refusal::Stale) });
            }
            return;
        }
        if let Request::Append { user, .. }
        | Request::Open { user, claims: true, .. }
        | Request::Inspect { user, claims: true, .. } = &request
        {
            let view = self.views.get(&source).copied().unwrap_or(0);
            let home = self.homes.entry(*user).or_default();
            if view < *home && !planted(Bug::StaleTaken) {
                self.stale += 1;
                if let Request::Append { token, .. } = request {
                    return out(source, Answer { token, reply: Reply::Refused(Refusal::Stale) });
                }
                return self.both.apply(&mut vec![(source, request)], out);
            }
            *home = view.max(*home);
            if matches!(request, Request::Append { .. }) && self.rng.chance(self.unheard_permille) {
                self.unheard += 1;
                let mut lost = |source, answer: Answer| {
                    out(source, Answer { token: answer.token, reply: Reply::Refused(Refusal::Unavailable) });
                };
                return self.both.apply(&mut vec![(source, request)], &mut lost);
            }
        }
        self.both.apply(&mut vec![(source, request)], out);
    }

    /// Whether who asks about a group is of the latest view in which that had a home, which it is from now on.
    fn claim(&mut self, source: Source, request: &Request) -> bool {
        let Request::Group { group, .. } = request else { return false };
        let view = self.views.get(&source).copied().unwrap_or(0);
        let claimed = self.claimed.entry(*group).or_default();
        let is_current = view >= *claimed;
        *claimed = view.max(*claimed);
        is_current || planted(Bug::StaleHomeStores) || planted(Bug::StaleTaken)
    }

    /// Senders, ids and positions of the messages in a user's inbox.
    pub(super) fn inbox(&mut self, user: u64) -> Vec<(u64, u64, u64)> {
        let (mut inbox, mut after) = (Vec::new(), 0);
        loop {
            let mut page = None;
            let request = Request::Read {
                user,
                device: 0,
                device_epoch: 0,
                after,
                since_ms: 0,
                limit: 1_000,
                bytes_max: u32::MAX,
                token: 0,
            };
            self.both.apply(&mut vec![(CHECKER, request)], &mut |_, answer| match answer.reply {
                Reply::Page(read) => page = Some(read),
                other => panic!("a page of user {user}: {other:?}"),
            });
            let records = page.map_or(Vec::new(), |page| page.records);
            let Some(last) = records.last() else { return inbox };
            after = last.stamp;
            inbox.extend(records.iter().map(|record| (record.from, record.id, record.stamp)));
        }
    }

    fn of_group(&mut self, group: u64, ask: GroupAsk) -> Option<GroupReply> {
        let mut found = None;
        let request = Request::Group { group, ask: Box::new(ask), token: Some(0) };
        self.both.apply(&mut vec![(CHECKER, request)], &mut |_, answer| {
            if let Reply::Group(reply) = answer.reply {
                found = Some(*reply);
            }
        });
        found
    }

    /// Senders, ids and stamps of the messages of a group.
    pub(super) fn log(&mut self, group: u64) -> Vec<(u64, u64, u64)> {
        let (mut log, mut after) = (Vec::new(), 0);
        loop {
            let ask = GroupAsk::Read { user: None, after, since_ms: 0, limit: 1_000, bytes_max: u32::MAX };
            let Some(GroupReply::Page { page, next }) = self.of_group(group, ask) else { return log };
            log.extend(page.records.iter().map(|record| (record.from, record.id, record.stamp)));
            if page.complete {
                return log;
            }
            after = next;
        }
    }

    /// The members of a group.
    pub(super) fn members(&mut self, group: u64) -> Vec<u64> {
        match self.of_group(group, GroupAsk::Members { after: 0, limit: 1_000 }) {
            Some(GroupReply::Members { members, .. }) => members.iter().map(|member| member.user).collect(),
            _ => Vec::new(),
        }
    }
}

/// Whether only the home of a group may ask it.
fn is_claimed(ask: &GroupAsk) -> bool {
    matches!(
        ask,
        GroupAsk::Append { .. } | GroupAsk::Join { .. } | GroupAsk::Leave { .. } | GroupAsk::Delete | GroupAsk::Claim
    )
}
