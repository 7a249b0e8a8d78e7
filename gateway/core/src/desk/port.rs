//! The way from a shard to the store's thread and back.
//!
//! There: the store's bounded mailbox, which wakes its thread when that sleeps. Back: a queue for each shard, as long
//! as what it has asked; the store's thread wakes the shard's core through its eventfd, once a batch.

use crate::waker::Waker;
use crossbeam_queue::SegQueue;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use trunkline_store::{Answer, GroupStats, MailSender, Request, Source, Stats, StoreMail};

/// What the shards of a node need to reach its store.
#[derive(Clone, Debug)]
pub struct ShardStore {
    /// The way there.
    pub mail: Arc<StoreMail>,
    /// The way back.
    pub answers: StoreAnswers,
    /// The highest position of all that is stored: those given out from now on are above.
    pub highest_stamp: u64,
    /// A secret of this life of the process.
    pub key: u64,
    /// The store's numbers.
    pub stats: Arc<Stats>,
    /// The other nodes of the cluster have the same store.
    pub shared: bool,
    /// Those of groups; `None` where it keeps none.
    pub groups: Option<Arc<GroupStats>>,
}

/// Answers on their way to one shard.
#[derive(Debug, Default)]
struct AnswerBox {
    answers: SegQueue<Vec<Answer>>,
    waker: OnceLock<Arc<Waker>>,
}

/// Answers on their way to the shards of a node. The store's thread puts them in, each shard takes its own.
#[derive(Clone, Debug)]
pub struct StoreAnswers(Arc<[AnswerBox]>);

impl StoreAnswers {
    /// For so many shards.
    pub fn new(shards: u16) -> Self {
        StoreAnswers((0..shards).map(|_| AnswerBox::default()).collect())
    }

    /// Hands a batch of answers to the shard that asked, and wakes it. Called by the store's thread.
    pub fn put(&self, source: Source, answers: Vec<Answer>) {
        let Some(place) = self.0.get(usize::from(source)) else { return };
        place.answers.push(answers);
        if let Some(waker) = place.waker.get() {
            waker.wake();
        }
    }

    /// How a shard is woken.
    pub fn set_waker(&self, shard: u16, waker: Arc<Waker>) {
        if let Some(place) = self.0.get(usize::from(shard)) {
            // A shard has one core for as long as it lives.
            let _ = place.waker.set(waker);
        }
    }
}

impl ShardStore {
    /// A shard's end.
    pub(crate) fn port(&self, shard: u16) -> StorePort {
        let ShardStore { mail, answers, stats, groups, .. } = self;
        let (answers, stats, groups) = (answers.clone(), stats.clone(), groups.clone());
        StorePort { shard, answers, sender: mail.sender(shard), stats, groups, view: 0, told_view: Cell::new(0) }
    }
}

/// A shard's end of the way.
#[derive(Debug)]
pub(crate) struct StorePort {
    shard: u16,
    answers: StoreAnswers,
    sender: MailSender,
    stats: Arc<Stats>,
    /// The view of the cluster by which the shard decides, and the one the store knows of.
    view: u64,
    told_view: Cell<u64>,
    groups: Option<Arc<GroupStats>>,
}

/// The part of the mailbox, as a divisor, that messages leave to everything else: while the store is late, devices
/// still log in and say how far they are.
const OTHERS_SHARE: usize = 8;

impl StorePort {
    /// Sends a request; never waits.
    ///
    /// # Errors
    /// The request, when the mailbox is full or the store has ended.
    pub(crate) fn send(&self, request: Request) -> Result<(), Request> {
        if self.told_view.get() != self.view {
            // Before anything that was decided by it.
            if self.sender.try_send(Request::View { epoch: self.view }).is_err() {
                return Err(request);
            }
            self.told_view.set(self.view);
        }
        let mail = self.sender.mail();
        let for_messages = mail.bytes_max() - mail.bytes_max() / OTHERS_SHARE;
        let pending = mail.bytes();
        // An empty mailbox takes anything.
        if matches!(request, Request::Append { .. }) && pending > 0 && pending + request.bytes() > for_messages {
            return Err(request);
        }
        self.sender.try_send(request)
    }

    /// The view by which the shard decides.
    pub(crate) fn view(&self) -> u64 {
        self.view
    }

    /// What is sent from now on is decided by this view.
    pub(crate) fn set_view(&mut self, epoch: u64) {
        self.view = epoch;
    }

    /// Users for whom messages wait in the store, or lately did.
    pub(crate) fn users(&self) -> u64 {
        self.stats.users.load(Ordering::Relaxed)
    }

    /// Memberships in groups.
    pub(crate) fn memberships(&self) -> u64 {
        self.groups.as_ref().map_or(0, |groups| groups.memberships.load(Ordering::Relaxed))
    }

    /// The next batch of answers.
    pub(crate) fn take(&self) -> Option<Vec<Answer>> {
        self.answers.0[usize::from(self.shard)].answers.pop()
    }

    /// Whether answers wait.
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.0[usize::from(self.shard)].answers.is_empty()
    }
}
