//! The way between shards and the services thread for questions to the hook.
//!
//! What a shard asks in a turn is handed over at its end, and verdicts come back likewise, by [`Lanes`]. Bound: those
//! who wait are counted for the whole node, from the question until the shard has its verdict; whoever finds no room is
//! not let in. Word that nobody waits any more is never refused: there is one for each question at most.

use super::{FailurePolicy, Grant};
use crate::auth::Granted;
use crate::io::ConnId;
use crate::lanes::{Lanes, ShardEnd, ThreadEnd};
use crate::mailbox::Adoptee;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub conn: ConnId,
    /// It is RENEW that asks, not LOGIN.
    pub renews: bool,
    /// The user that LOGIN names; 0 is for the hook to say.
    pub user: u64,
    pub token: String,
    pub device: String,
    pub class: String,
    pub address: Option<IpAddr>,
    pub websocket: bool,
    pub tls: bool,
}

/// What is decided of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is let in, with this.
    In(Arc<Grant>),
    /// The hook cannot say, and the node lets in then.
    Allowed,
    /// It is refused, with these words.
    Refused(Arc<str>),
    /// The hook cannot say, and the node lets nobody in then.
    Down,
    /// Nobody waits for it any more.
    Gone,
}

impl Decision {
    /// What is decided where the hook cannot say.
    pub fn of_failure(policy: FailurePolicy) -> Self {
        match policy {
            FailurePolicy::Allow => Decision::Allowed,
            FailurePolicy::Refuse => Decision::Down,
        }
    }

    /// Bytes of what hangs on it.
    pub fn bytes(&self) -> usize {
        match self {
            Decision::In(grant) => grant.bytes(),
            Decision::Refused(words) => words.len(),
            Decision::Allowed | Decision::Down | Decision::Gone => 0,
        }
    }
}

/// What shards tell the services thread.
#[derive(Debug)]
pub enum Word {
    Ask(Box<Ask>),
    Cancel(ConnId),
}

/// Verdicts for a shard.
type Verdicts = Vec<(ConnId, Decision)>;
/// Questions whose verdict no shard has taken.
type WaitingCount = AtomicUsize;

/// The ways of a node's questions, one for each shard.
pub type HookPortals = Lanes<Verdicts, Vec<Word>, WaitingCount>;

impl HookPortals {
    /// For so many shards.
    pub fn new(shards: u16) -> Self {
        Lanes::with(shards, WaitingCount::new(0))
    }

    /// A shard's end.
    pub fn inner(&self, shard: u16) -> HookInner {
        HookInner { end: self.shard_end(shard), waiting: HashMap::new(), at_hand: Vec::new() }
    }

    /// The services thread's end.
    pub fn outer(&self) -> HookOuter {
        self.thread_end()
    }

    /// Questions whose verdict no shard has taken.
    pub fn waiting(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }
}

/// Who waits for a verdict.
#[derive(Debug)]
pub enum Waiting {
    /// A connection that has sent LOGIN.
    Login(Box<Adoptee>),
    /// A session that has sent RENEW: the user that it named, which need not be the session's, and what its token
    /// grants.
    Renew { asked: u64, granted: Granted },
}

/// A shard's end of its portal, and who waits there.
#[derive(Debug)]
pub struct HookInner {
    end: ShardEnd<Verdicts, Vec<Word>, WaitingCount>,
    /// By slot, with the generation of its connection.
    waiting: HashMap<u32, (u32, Waiting)>,
    /// Verdicts that are being worked off, the last one first.
    at_hand: Vec<(ConnId, Decision)>,
}

impl HookInner {
    fn waiting_of_node(&self) -> &WaitingCount {
        &self.end.lanes.own
    }

    /// Gathers a question. Gives back who asks if so many wait already.
    pub fn ask(&mut self, ask: Ask, who: Waiting, waiting_max: usize) -> Result<(), Waiting> {
        if self.waiting_of_node().fetch_add(1, Ordering::Relaxed) >= waiting_max {
            self.waiting_of_node().fetch_sub(1, Ordering::Relaxed);
            return Err(who);
        }
        self.waiting.insert(ask.conn.slot, (ask.conn.generation, who));
        self.end.gathered.push(Word::Ask(Box::new(ask)));
        Ok(())
    }

    /// Whether the connection in a slot waits.
    pub fn waits(&self, slot: u32) -> bool {
        self.waiting.contains_key(&slot)
    }

    /// The connection in a slot waits no more.
    pub fn cancel(&mut self, slot: u32) {
        if let Some((generation, _)) = self.waiting.remove(&slot) {
            self.end.gathered.push(Word::Cancel(ConnId { slot, generation }));
        }
    }

    /// Hands over what was gathered in this turn.
    pub fn post(&mut self) {
        self.end.post();
    }

    /// Whether verdicts wait.
    pub fn has_verdicts(&self) -> bool {
        !self.at_hand.is_empty() || self.end.has_any()
    }

    /// The next verdict, with whom it is for, unless nobody waits for it any more.
    pub fn take(&mut self) -> Option<(ConnId, Decision, Option<Waiting>)> {
        if self.at_hand.is_empty() {
            self.at_hand = self.end.take()?;
            self.at_hand.reverse();
        }
        let (conn, decision) = self.at_hand.pop()?;
        self.waiting_of_node().fetch_sub(1, Ordering::Relaxed);
        let is_same = self.waiting.get(&conn.slot).is_some_and(|(generation, _)| *generation == conn.generation);
        let who = if is_same { self.waiting.remove(&conn.slot).map(|(_, who)| who) } else { None };
        Some((conn, decision, who))
    }
}

/// The services thread's end of all portals.
pub type HookOuter = ThreadEnd<Verdicts, Vec<Word>, WaitingCount>;

impl HookOuter {
    /// Gathers a verdict for a shard.
    pub fn put(&mut self, shard: u16, conn: ConnId, decision: Decision) {
        if let Some(gathered) = self.gathered(usize::from(shard)) {
            gathered.push((conn, decision));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::ask;
    use super::*;

    fn renew() -> Waiting {
        Waiting::Renew { asked: 7, granted: Granted::default() }
    }

    #[test]
    fn who_waits_is_counted_for_the_node_until_the_verdict_is_taken_also_after_its_end() {
        let portals = HookPortals::new(2);
        let (mut first, mut second, mut outer) = (portals.inner(0), portals.inner(1), portals.outer());
        assert!(first.ask(ask(3, 1, "a"), renew(), 2).is_ok());
        assert!(second.ask(ask(3, 1, "a"), renew(), 2).is_ok());
        assert!(second.ask(ask(4, 1, "a"), renew(), 2).is_err() && !second.waits(4));
        assert!(outer.take().is_none(), "the turn has not ended");
        first.post();
        second.post();
        let mut asked = Vec::new();
        while let Some((shard, words)) = outer.take() {
            for word in words {
                let Word::Ask(ask) = word else { panic!("nobody has gone") };
                asked.push((shard, ask.conn));
            }
        }
        assert_eq!(asked.len(), 2);
        // The connection goes, and another takes its slot.
        second.cancel(3);
        second.cancel(3);
        second.post();
        let words = outer.take().map(|(_, words)| words).expect("word of it");
        assert!(matches!(*words, [Word::Cancel(ConnId { slot: 3, generation: 1 })]));
        assert_eq!(portals.waiting(), 2);
        outer.put(1, ConnId { slot: 3, generation: 1 }, Decision::Gone);
        outer.post();
        assert!(second.has_verdicts() && !first.has_verdicts());
        assert!(second.ask(ask(3, 2, "b"), renew(), 3).is_ok());
        let (conn, decision, who) = second.take().expect("a verdict");
        assert_eq!((conn.generation, decision, who.is_none()), (1, Decision::Gone, true), "not for the newer one");
        assert!(second.waits(3) && portals.waiting() == 2 && second.take().is_none());
    }
}
