//! Groups on a store of their own: requests become operations and messages, one commit makes a batch durable, and only
//! then it is answered.

mod copy;

use super::book::{Book, Group, Op, Undo};
use super::page::{Line, PIECE};
use crate::group_ask::{GroupAsk, GroupDenial, GroupReply, JoinRule};
use crate::{Answer, Clock, Limits, Page, Payload, Record, Refusal, Reply, Request, Source, Stats, Store, WhenFull};
use crate::{stamp_at, stamp_ms};
use hashbrown::HashSet;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The key of a group's book is the group with this bit.
const BOOK: u64 = 1 << 63;
/// The device whose cursor says from where on a book counts.
const READER: &str = "groups";
/// Records of a book that are read at a time.
const BOOK_PAGE: u32 = 1_000;
const BOOK_PAGE_BYTES: u32 = 4 << 20;
/// A book is begun anew when it has so many operations, and half as many as there are members besides.
const OPS_MAX: u64 = 1_024;
/// How long a read mark may wait until it is durable, milliseconds.
const MARK_DELAY_MS: u64 = 1_000;

/// Bounds of what a node keeps of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Members of a group.
    pub members_max: u32,
    /// Groups of a user.
    pub groups_per_user_max: u32,
    /// Memberships in all.
    pub memberships_max: u64,
    /// Groups in all.
    pub groups_max: u64,
}

impl Default for GroupLimits {
    fn default() -> Self {
        GroupLimits {
            members_max: 1_000_000,
            groups_per_user_max: 1_000,
            memberships_max: 2_000_000,
            groups_max: 200_000,
        }
    }
}

/// Bounds of the store that the logs are in: of each group so many messages, none older than that, the oldest give way.
pub fn group_store_limits(of: &Limits, messages_max: u32, age_ms_max: u64) -> Limits {
    Limits {
        user_messages_max: messages_max,
        user_bytes_max: 1 << 30,
        when_full: WhenFull::DropOldest,
        message_age_ms_max: age_ms_max,
        device_unseen_ms_max: u64::MAX,
        // A snapshot has pieces of some kilobytes.
        payload_bytes_max: of.payload_bytes_max.max(64 << 10),
        page_max: of.page_max.max(BOOK_PAGE),
        books_from: BOOK,
        ..of.clone()
    }
}

/// Numbers of groups.
#[derive(Debug)]
pub struct GroupStats {
    /// Those of the store that the logs are in.
    pub store: Arc<Stats>,
    /// Groups.
    pub groups: AtomicU64,
    /// Memberships.
    pub memberships: AtomicU64,
    /// Messages stored.
    pub appends: AtomicU64,
    /// Read marks taken.
    pub marks: AtomicU64,
    /// Books begun anew because they had become long.
    pub books_begun: AtomicU64,
}

/// Groups, their members and their logs. See the [module](self).
pub struct Groups<S> {
    logs: S,
    clock: Clock,
    limits: GroupLimits,
    book: Book,
    /// Operations in the book of books since that was begun.
    group_ops: u64,
    /// Marks that are not durable, and since when the first waits.
    marks: HashSet<(u64, u64)>,
    marks_since_ms: u64,
    /// Books that are too long; 0 is the one of books.
    long: Vec<u64>,
    stats: Arc<GroupStats>,
}

/// What a request has come to before the commit.
enum Staged {
    /// It is known.
    Ready(GroupReply),
    /// Not now.
    Refused,
    /// What the log says.
    Log { at: usize, ttl_s: u32 },
    /// An operation: the requests to the log that have to be done, and what is answered then.
    Changed { from: usize, to: usize, reply: GroupReply },
    /// To be answered with what is there after the commit.
    Look(Box<GroupAsk>),
}

/// One change of a batch.
struct Changed {
    group: u64,
    op: Op,
    undo: Option<Undo>,
    /// The requests to the log that make it durable.
    from: usize,
    to: usize,
}

/// A batch while it is made up.
#[derive(Default)]
struct Draft {
    requests: Vec<(Source, Request)>,
    changes: Vec<Changed>,
    /// Groups that end with this batch. Their logs are emptied behind it: what a store has deleted it does not take
    /// back.
    ended: Vec<u64>,
}

impl Draft {
    /// Adds a request. Returns its place, which is its token.
    fn ask(&mut self, request: impl FnOnce(u64) -> Request) -> usize {
        let at = self.requests.len();
        self.requests.push((0, request(at as u64)));
        at
    }

    fn line(&mut self, book: u64, line: &Line, stamp: u64) -> usize {
        let record = Record { stamp, from: 0, id: 0, flags: 0, payload: Payload::from(line.encode()) };
        self.ask(|token| Request::Append { user: BOOK | book, record, retry: None, token })
    }
}

impl<S: Store> Groups<S> {
    /// Reads the books. `logs` has the bounds of [`group_store_limits`].
    ///
    /// # Errors
    /// When the store cannot read them.
    pub fn open(logs: S, limits: GroupLimits, clock: Clock) -> io::Result<Self> {
        let stats = Arc::new(GroupStats {
            store: logs.stats().clone(),
            groups: AtomicU64::new(0),
            memberships: AtomicU64::new(0),
            appends: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            books_begun: AtomicU64::new(0),
        });
        let mut groups = Groups {
            logs,
            clock,
            limits,
            book: Book::default(),
            group_ops: 0,
            marks: HashSet::new(),
            marks_since_ms: 0,
            long: Vec::new(),
            stats,
        };
        let mut known = std::collections::BTreeSet::new();
        let mut begun: Option<std::collections::BTreeSet<u64>> = None;
        let (mut pieces, mut ops) = (0, 0);
        groups.read_book(0, &mut |line| {
            ops += 1;
            match line {
                Line::Group(group, true) => drop(known.insert(group)),
                Line::Group(group, false) => drop(known.remove(&group)),
                Line::Begin(_) => (begun, pieces) = (Some(Default::default()), 0),
                Line::Groups(piece) => {
                    pieces += 1;
                    begun.get_or_insert_default().extend(piece);
                }
                Line::End(all) if all == pieces => (known, ops) = (begun.take().unwrap_or_default(), 0),
                _ => {}
            }
        })?;
        groups.group_ops = ops;
        for group in known {
            groups.read_group(group)?;
        }
        groups.publish();
        Ok(groups)
    }

    /// The highest stamp of any log is the store's to say; this is the store.
    pub fn logs(&self) -> &S {
        &self.logs
    }

    /// The store, when the groups have ended.
    pub fn into_logs(self) -> S {
        self.logs
    }

    /// The same, for those who make it fail.
    pub fn logs_mut(&mut self) -> &mut S {
        &mut self.logs
    }

    /// The numbers.
    pub fn stats(&self) -> &Arc<GroupStats> {
        &self.stats
    }

    fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// Asks the store one thing.
    fn ask(&mut self, request: Request) -> Reply {
        let mut reply = Reply::Refused(Refusal::Unavailable);
        self.logs.apply(&mut vec![(0, request)], &mut |_, answer| reply = answer.reply);
        reply
    }

    fn read_book(&mut self, group: u64, take: &mut dyn FnMut(Line)) -> io::Result<()> {
        let mut after = 0;
        loop {
            let (limit, bytes_max) = (BOOK_PAGE, BOOK_PAGE_BYTES);
            let read = Request::Read {
                user: BOOK | group,
                device: 0,
                device_epoch: 0,
                after,
                since_ms: 0,
                limit,
                bytes_max,
                token: 0,
            };
            let Reply::Page(Page { records, complete, .. }) = self.ask(read) else {
                return Err(io::Error::other(format!("the members of group {group} cannot be read")));
            };
            after = records.last().map_or(after, |record| record.stamp);
            // What makes no sense was counted as damage, or was written by a later version.
            records.iter().filter_map(|record| Line::decode(&record.payload)).for_each(&mut *take);
            if complete {
                return Ok(());
            }
        }
    }

    fn read_group(&mut self, group: u64) -> io::Result<()> {
        let mut lines = Vec::new();
        self.read_book(group, &mut |line| lines.push(line))?;
        // The last snapshot that is whole, and what came after it.
        let mut begin = None;
        let mut whole = 0;
        for (at, line) in lines.iter().enumerate() {
            match line {
                Line::Begin(_) => begin = Some(at),
                Line::End(pieces) if begin.is_some_and(|begin| at - begin == *pieces as usize + 1) => {
                    whole = begin.unwrap_or(0);
                }
                _ => {}
            }
        }
        let mut ops = 0;
        self.book.apply(group, &Op::Settings(Default::default()));
        for line in lines.drain(whole..) {
            match line {
                Line::Op(Op::Deleted) => {
                    self.book.apply(group, &Op::Deleted);
                    self.book.apply(group, &Op::Settings(Default::default()));
                    ops += 1;
                }
                Line::Op(op) => {
                    self.book.apply(group, &op);
                    ops += 1;
                }
                Line::Begin(settings) => drop(self.book.apply(group, &Op::Settings(settings))),
                Line::Members(members) => {
                    for (user, member, read) in members {
                        self.book.apply(group, &Op::Member { user, member });
                        if read > 0 {
                            self.book.apply(group, &Op::Marks(vec![(user, read)]));
                        }
                    }
                }
                Line::Group(..) | Line::Groups(_) | Line::End(_) => {}
            }
        }
        let read = Request::Read {
            user: group,
            device: 0,
            device_epoch: 0,
            after: u64::MAX,
            since_ms: 0,
            limit: 1,
            bytes_max: 0,
            token: 0,
        };
        let last = match self.ask(read) {
            Reply::Page(page) => page.last,
            _ => return Err(io::Error::other(format!("the log of group {group} cannot be read"))),
        };
        if let Some(known) = self.book.group_mut(group) {
            (known.last, known.ops) = (last, ops);
        }
        Ok(())
    }

    /// Carries out requests in their order, by one commit, and answers them in their order.
    pub(super) fn apply(
        &mut self,
        batch: Vec<(Source, u64, GroupAsk, Option<u64>)>,
        out: &mut dyn FnMut(Source, Answer),
    ) {
        let mut draft = Draft::default();
        let mut staged = Vec::with_capacity(batch.len());
        for (source, group, ask, token) in batch {
            let outcome = self.stage(group, ask, &mut draft);
            if let (Some(outcome), Some(token)) = (outcome, token) {
                staged.push((source, group, token, outcome));
            }
        }
        let Draft { mut requests, changes, ended } = draft;
        let mut replies: Vec<Option<Reply>> = vec![None; requests.len()];
        if !requests.is_empty() {
            self.logs.apply(&mut requests, &mut |_, answer| replies[answer.token as usize] = Some(answer.reply));
        }
        self.settle(changes, &replies);
        for group in ended.into_iter().filter(|group| self.book.group(*group).is_none()).collect::<Vec<_>>() {
            // What is left of them if that fails is deleted before there is such a group again.
            let deletes = [group, BOOK | group].map(|user| (0, Request::Delete { user, token: 0 }));
            self.logs.apply(&mut deletes.into(), &mut |_, _| {});
        }
        self.publish();
        for (source, group, token, outcome) in staged {
            let reply = self.reply(group, outcome, &mut replies);
            out(source, Answer { token, reply });
        }
    }

    fn publish(&self) {
        Stats::set(&self.stats.groups, self.book.len());
        Stats::set(&self.stats.memberships, self.book.memberships());
    }

    /// Takes back what could not be made durable.
    fn settle(&mut self, mut changes: Vec<Changed>, replies: &[Option<Reply>]) {
        let is_done = |changed: &Changed| {
            replies[changed.from..changed.to].iter().all(|reply| !matches!(reply, Some(Reply::Refused(_)) | None))
        };
        if !changes.iter().all(is_done) {
            for changed in changes.iter_mut().rev() {
                if let Some(undo) = changed.undo.take() {
                    self.book.undo(changed.group, undo);
                }
            }
            for changed in changes.iter().filter(|changed| is_done(changed)) {
                self.book.apply(changed.group, &changed.op);
            }
        }
        for changed in changes.iter().filter(|changed| is_done(changed)) {
            let Some(known) = self.book.group_mut(changed.group) else { continue };
            known.ops += 1;
            if known.ops > OPS_MAX + known.members.len() as u64 / 2 && !self.long.contains(&changed.group) {
                self.long.push(changed.group);
            }
        }
        if self.group_ops > OPS_MAX + 2 * self.book.len() && !self.long.contains(&0) {
            self.long.push(0);
        }
    }

    fn change(&mut self, group: u64, op: Op, draft: &mut Draft) -> (usize, usize) {
        let from = draft.requests.len();
        let stamp = stamp_at(self.now_ms());
        let is_there = self.book.group(group).is_some();
        match op {
            Op::Deleted => {
                self.group_ops += 1;
                draft.line(0, &Line::Group(group, false), stamp);
                draft.ended.push(group);
            }
            _ => {
                if !is_there {
                    self.group_ops += 1;
                    // A crash may have left something of an earlier one.
                    draft.ask(|token| Request::Delete { user: group, token });
                    draft.ask(|token| Request::Delete { user: BOOK | group, token });
                    draft.line(0, &Line::Group(group, true), stamp);
                }
                draft.line(group, &Line::Op(op.clone()), stamp);
            }
        }
        let to = draft.requests.len();
        let undo = Some(self.book.apply(group, &op));
        draft.changes.push(Changed { group, op, undo, from, to });
        (from, to)
    }

    fn stage(&mut self, group: u64, ask: GroupAsk, draft: &mut Draft) -> Option<Staged> {
        let denied = |denial| Some(Staged::Ready(GroupReply::Denied(denial)));
        let now_s = self.now_ms() / 1_000;
        match ask {
            // Its logs are emptied first.
            GroupAsk::Join { .. } | GroupAsk::Put { .. } if draft.ended.contains(&group) => Some(Staged::Refused),
            GroupAsk::Append { record, retry } => {
                if let Err(denial) = self.book.may_send(group, record.from, now_s) {
                    return denied(denial);
                }
                let at = draft.ask(|token| Request::Append { user: group, record, retry, token });
                Some(Staged::Log { at, ttl_s: 0 })
            }
            GroupAsk::Admit { from, .. } => match self.book.may_send(group, from, now_s) {
                Ok(()) => {
                    let members = self.book.group(group).map_or(0, |known| known.members.len() as u32);
                    Some(Staged::Ready(GroupReply::Admitted { members }))
                }
                Err(denial) => denied(denial),
            },
            GroupAsk::Join { user, member, added, create } => {
                let known = self.book.group(group);
                if known.is_some_and(|known| known.members.contains_key(&user)) {
                    return Some(Staged::Look(Box::new(GroupAsk::Join { user, member, added, create })));
                }
                if let Err(denial) = self.may_join(group, user, added, create) {
                    return denied(denial);
                }
                let from = draft.requests.len();
                if self.book.group(group).is_none() {
                    self.change(group, Op::Settings(Default::default()), draft);
                }
                let last = self.book.group(group).map_or(0, |known| known.last);
                let (_, to) = self.change(group, Op::Member { user, member }, draft);
                Some(Staged::Changed { from, to, reply: GroupReply::Joined { news: true, last } })
            }
            GroupAsk::Leave { user } => {
                let Some(known) = self.book.group(group).filter(|known| known.members.contains_key(&user)) else {
                    return Some(Staged::Look(Box::new(GroupAsk::Leave { user })));
                };
                let last = known.last;
                let (from, to) = self.change(group, Op::Gone { user }, draft);
                Some(Staged::Changed { from, to, reply: GroupReply::Left { news: true, last } })
            }
            GroupAsk::Change { user, change } => {
                let Some(known) = self.book.group(group) else { return denied(GroupDenial::NoGroup) };
                let Some(mut member) = known.members.get(&user).copied() else {
                    return denied(GroupDenial::NotAMember);
                };
                member.role = change.role.unwrap_or(member.role);
                member.muted_until_s = change.muted_until_s.unwrap_or(member.muted_until_s);
                member.notify = change.notify.unwrap_or(member.notify);
                let (from, to) = self.change(group, Op::Member { user, member }, draft);
                Some(Staged::Changed { from, to, reply: GroupReply::Member(member) })
            }
            GroupAsk::Put { settings } => {
                let created = self.book.group(group).is_none();
                if created && self.book.len() >= self.limits.groups_max {
                    return denied(GroupDenial::NodeFull);
                }
                let (from, to) = self.change(group, Op::Settings(settings), draft);
                let info = self.book.info(group)?;
                Some(Staged::Changed { from, to, reply: GroupReply::Put { created, info } })
            }
            GroupAsk::Delete => {
                let Some(known) = self.book.group(group) else {
                    return Some(Staged::Look(Box::new(GroupAsk::Delete)));
                };
                let members = known.members.len() as u32;
                let (from, to) = self.change(group, Op::Deleted, draft);
                Some(Staged::Changed { from, to, reply: GroupReply::Deleted { news: true, members } })
            }
            GroupAsk::Read { user, after, since_ms, limit, bytes_max } => {
                let Some(known) = self.book.group(group) else {
                    return denied(user.map_or(GroupDenial::NoGroup, |_| GroupDenial::NotAMember));
                };
                if user.is_some_and(|user| !known.members.contains_key(&user)) {
                    return denied(GroupDenial::NotAMember);
                }
                let ttl_s = known.settings.ttl_s;
                let read = |token| Request::Read {
                    user: group,
                    device: 0,
                    device_epoch: 0,
                    after,
                    since_ms,
                    limit,
                    bytes_max,
                    token,
                };
                Some(Staged::Log { at: draft.ask(read), ttl_s })
            }
            GroupAsk::Mark { user, stamp } => {
                if self.book.mark(group, user, stamp).is_some() {
                    Stats::add(&self.stats.marks, 1);
                    if self.marks.is_empty() {
                        self.marks_since_ms = self.now_ms();
                    }
                    self.marks.insert((group, user));
                }
                None
            }
            look @ (GroupAsk::Get
            | GroupAsk::Claim
            | GroupAsk::Members { .. }
            | GroupAsk::Reads { .. }
            | GroupAsk::Of { .. }) => Some(Staged::Look(Box::new(look))),
        }
    }

    fn may_join(&self, group: u64, user: u64, added: bool, create: bool) -> Result<(), GroupDenial> {
        let limits = &self.limits;
        match self.book.group(group) {
            None if !create => return Err(GroupDenial::NoGroup),
            None if self.book.len() >= limits.groups_max => return Err(GroupDenial::NodeFull),
            None => {}
            Some(known) => {
                if known.settings.join == JoinRule::Api && !added {
                    return Err(GroupDenial::NotOpen);
                }
                let most = match known.settings.members_max {
                    0 => limits.members_max,
                    most => most.min(limits.members_max),
                };
                if known.members.len() as u64 >= u64::from(most) {
                    return Err(GroupDenial::Full);
                }
            }
        }
        if self.book.groups_of(user).count() >= limits.groups_per_user_max as usize {
            return Err(GroupDenial::TooManyGroups);
        }
        if self.book.memberships() >= limits.memberships_max {
            return Err(GroupDenial::NodeFull);
        }
        Ok(())
    }

    fn reply(&mut self, group: u64, staged: Staged, replies: &mut [Option<Reply>]) -> Reply {
        let refused = Reply::Refused(Refusal::Unavailable);
        let reply = match staged {
            Staged::Ready(reply) => reply,
            Staged::Refused => return refused,
            Staged::Log { at, ttl_s } => match replies[at].take() {
                Some(Reply::Stored { stamp, duplicate, .. }) => {
                    Stats::add(&self.stats.appends, u64::from(!duplicate));
                    let (mut members, mut before) = (0, 0);
                    if let Some(known) = self.book.group_mut(group) {
                        before = if duplicate { 0 } else { known.last };
                        known.last = known.last.max(stamp);
                        members = known.members.len() as u32;
                    }
                    GroupReply::Stored { stamp, duplicate, members, before }
                }
                Some(Reply::Page(page)) => self.page(page, ttl_s),
                other => return other.unwrap_or(refused),
            },
            Staged::Changed { from, to, reply } => {
                let failed = replies[from..to].iter().find(|reply| matches!(reply, Some(Reply::Refused(_)) | None));
                if let Some(failed) = failed {
                    return failed.clone().unwrap_or(refused);
                }
                // Messages of the same batch came before it: who joins behind them does not get them.
                let now = self.book.group(group).map_or(0, |known| known.last);
                match reply {
                    GroupReply::Joined { news, .. } => GroupReply::Joined { news, last: now },
                    GroupReply::Left { news, .. } => GroupReply::Left { news, last: now },
                    reply => reply,
                }
            }
            Staged::Look(ask) => match self.look(group, &ask) {
                Some(reply) => reply,
                None => return refused,
            },
        };
        Reply::Group(Box::new(reply))
    }

    /// Leaves out what is too old for the group.
    fn page(&self, mut page: Page, ttl_s: u32) -> GroupReply {
        // Behind a page that is whole nothing is left of what was before the floor, either.
        let end = if page.complete { page.floor } else { 0 };
        let next = page.records.last().map_or(0, |record| record.stamp).max(end);
        if ttl_s > 0 {
            let oldest_ms = self.now_ms().saturating_sub(u64::from(ttl_s) * 1_000);
            let before = page.records.len();
            page.records.retain(|record| stamp_ms(record.stamp) >= oldest_ms);
            page.truncated |= page.records.len() < before;
        }
        GroupReply::Page { page, next }
    }

    /// What there is after the commit. None if nothing was to be done because of what came before in the batch, and
    /// that could not be made durable.
    fn look(&self, group: u64, ask: &GroupAsk) -> Option<GroupReply> {
        let known = self.book.group(group);
        Some(match *ask {
            GroupAsk::Of { user } => GroupReply::Of(self.book.of(user)),
            GroupAsk::Join { user, .. } => {
                let known = known.filter(|known| known.members.contains_key(&user))?;
                GroupReply::Joined { news: false, last: known.last }
            }
            GroupAsk::Leave { user } if known.is_some_and(|known| known.members.contains_key(&user)) => return None,
            GroupAsk::Leave { .. } => GroupReply::Left { news: false, last: known.map_or(0, |known| known.last) },
            GroupAsk::Claim => GroupReply::Claimed { last: known.map_or(0, |known| known.last) },
            GroupAsk::Delete if known.is_some() => return None,
            GroupAsk::Delete => GroupReply::Deleted { news: false, members: 0 },
            _ => known.map_or(GroupReply::Denied(GroupDenial::NoGroup), |known| Self::look_at(known, ask)),
        })
    }

    fn look_at(known: &Group, ask: &GroupAsk) -> GroupReply {
        match *ask {
            GroupAsk::Members { after, limit } => {
                let limit = limit.clamp(1, GroupAsk::MEMBERS_MAX) as usize;
                let (members, more) = known.members(after, limit);
                GroupReply::Members { members, more }
            }
            GroupAsk::Reads { stamp } => {
                GroupReply::Reads { read: known.read_up_to(stamp), members: known.members.len() as u32 }
            }
            _ => GroupReply::Info(known.info()),
        }
    }

    /// What is due without a request: marks that are to be made durable, books that are to be begun anew.
    pub(super) fn tick(&mut self) -> Option<Duration> {
        let next = self.logs.tick();
        if let Some(group) = self.long.pop() {
            self.begin_book(group);
        }
        if self.marks.is_empty() {
            return next;
        }
        let due_ms = self.marks_since_ms + MARK_DELAY_MS;
        let now_ms = self.now_ms();
        // The clock may have been set back since the first one came.
        if now_ms >= due_ms || now_ms < self.marks_since_ms {
            self.write_marks();
            return next;
        }
        let due = Duration::from_millis(due_ms - now_ms);
        Some(next.map_or(due, |next| next.min(due)))
    }

    fn write_marks(&mut self) {
        let mut by_group: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for (group, user) in self.marks.drain() {
            let read = self.book.group(group).map_or(0, |known| known.read_of(user));
            if read > 0 {
                by_group.entry(group).or_default().push((user, read));
            }
        }
        let stamp = stamp_at(self.now_ms());
        let mut draft = Draft::default();
        for (group, mut marks) in by_group {
            marks.sort_unstable();
            for piece in marks.chunks(PIECE) {
                draft.line(group, &Line::Op(Op::Marks(piece.to_vec())), stamp);
                if let Some(known) = self.book.group_mut(group) {
                    known.ops += 1;
                    if known.ops > OPS_MAX + known.members.len() as u64 / 2 && !self.long.contains(&group) {
                        self.long.push(group);
                    }
                }
            }
        }
        // One that is lost with a crash costs a member that something counts as unread again.
        self.logs.apply(&mut draft.requests, &mut |_, _| {});
    }

    /// Begins a book anew: a snapshot, and what is before it may go.
    fn begin_book(&mut self, group: u64) {
        let stamp = stamp_at(self.now_ms());
        let mut draft = Draft::default();
        let mut pieces = 0;
        if group == 0 {
            draft.line(0, &Line::Begin(Default::default()), stamp);
            let mut ids: Vec<u64> = self.book.ids().collect();
            ids.sort_unstable();
            for piece in ids.chunks(PIECE) {
                draft.line(0, &Line::Groups(piece.to_vec()), stamp);
                pieces += 1;
            }
        } else {
            let Some(known) = self.book.group(group) else { return };
            draft.line(group, &Line::Begin(known.settings), stamp);
            let entries: Vec<_> = known.entries().collect();
            for piece in entries.chunks(PIECE) {
                draft.line(group, &Line::Members(piece.to_vec()), stamp);
                pieces += 1;
            }
        }
        draft.line(group, &Line::End(pieces), stamp);
        let open =
            Request::Open { user: BOOK | group, device: READER.into(), ephemeral: false, claims: false, token: 0 };
        let Reply::Opened(opened) = self.ask(open) else { return };
        let mut begins = None;
        let mut whole = true;
        self.logs.apply(&mut draft.requests, &mut |_, answer| match answer.reply {
            Reply::Stored { stamp, .. } if answer.token == 0 => begins = Some(stamp),
            Reply::Stored { .. } => {}
            _ => whole = false,
        });
        let Some(begins) = begins.filter(|_| whole) else { return };
        let (device, device_epoch, stamp) = (opened.device, opened.device_epoch, begins - 1);
        let cursor = Request::Cursor { user: BOOK | group, device, device_epoch, stamp };
        self.logs.apply(&mut vec![(0, cursor)], &mut |_, _| {});
        Stats::add(&self.stats.books_begun, 1);
        match self.book.group_mut(group) {
            Some(known) => known.ops = 0,
            None => self.group_ops = 0,
        }
    }

    /// Makes durable what is not.
    pub(super) fn close(&mut self) {
        self.write_marks();
        self.logs.close();
    }
}

impl<S> std::fmt::Debug for Groups<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups").field("groups", &self.book.len()).finish_non_exhaustive()
    }
}
