//! The node's own lease: may it serve?
//!
//! Others take over what a node had as soon as they see it gone, so it must stop before that, without being told. It
//! cannot know whether it was paused; it can know how old the last proof is that it still counts. A proof is the time
//! at which something was *asked* that was answered well, and lasts for one lease time from then. When the proofs have
//! run out, the node is fenced until it has a new incarnation, however good the news that come later: they may have
//! waited in a socket while it slept.

/// Of this part of a lease the node makes no use, so that a clock that runs slow by as much as this does no harm: fifty
/// times what NTP bends a clock by at most.
const DRIFT_PARTS: u64 = 40;

/// Why the node must not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// It never had a lease.
    NotAcquired,
    /// Redis said that the lease is gone or another's.
    Lost,
    /// The lease ran out, and nothing said that Redis was failing: the node was paused.
    Silent,
    /// The lease ran out while Redis was failing, and no peers vouched for this node in time: it is cut off.
    Isolated,
}

/// For how long a proof lasts from when it was asked for, where the lease lasts for `ttl_ms` from when it was granted.
#[must_use]
pub const fn proof_ms(ttl_ms: u64) -> u64 {
    ttl_ms - ttl_ms / DRIFT_PARTS
}

/// For how long whoever grants something for a lease time has to keep to it, by a clock that may run fast.
#[must_use]
pub const fn promise_ms(ttl_ms: u64) -> u64 {
    ttl_ms + ttl_ms / DRIFT_PARTS
}

/// The state of this node's lease. Two things have to be proved, each within the last lease time:
///
/// - that the name is this node's: Redis renewed its lease, asked by the node itself or by a peer for it;
/// - that its view is that of the others: Redis gave the nodes, or a peer that Redis gave them to did.
///
/// Both at once are proved by peers that vouch for this node: they have promised to keep it in their views for a lease
/// time. Every method that takes the present time fences first if the time has run out by then, so the order in which
/// things are noticed after a pause does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    incarnation: u64,
    ttl_ms: u64,
    held_ms: u64,
    viewed_ms: u64,
    failed_at_ms: Option<u64>,
    fenced: Option<Fenced>,
}

impl Default for Lease {
    fn default() -> Self {
        Lease::new()
    }
}

impl Lease {
    /// No lease yet.
    #[must_use]
    pub fn new() -> Self {
        Lease {
            incarnation: 0,
            ttl_ms: 0,
            held_ms: 0,
            viewed_ms: 0,
            failed_at_ms: None,
            fenced: Some(Fenced::NotAcquired),
        }
    }

    /// Redis granted `incarnation` for `ttl_ms` to a request sent at `sent_at_ms`. Lifts the fence; the view has a
    /// lease time from then to come. Without effect, and `false`, unless the incarnation is higher than the one before.
    pub fn acquired(&mut self, sent_at_ms: u64, incarnation: u64, ttl_ms: u64) -> bool {
        if incarnation <= self.incarnation {
            return false;
        }
        let (held_ms, viewed_ms) = (sent_at_ms, sent_at_ms);
        *self = Lease { incarnation, ttl_ms, held_ms, viewed_ms, failed_at_ms: None, fenced: None };
        true
    }

    /// Redis renewed the lease for `ttl_ms` to a request sent at `sent_at_ms`.
    pub fn renewed(&mut self, sent_at_ms: u64, ttl_ms: u64) {
        if self.runs_out(sent_at_ms) {
            return;
        }
        self.ttl_ms = ttl_ms;
        self.held_ms = self.held_ms.max(sent_at_ms);
        // An answer to a request from before the failure says nothing about now.
        if self.failed_at_ms.is_some_and(|failed_at_ms| failed_at_ms <= sent_at_ms) {
            self.failed_at_ms = None;
        }
    }

    /// The view is what Redis gave to somebody who asked no earlier than `at_ms`.
    pub fn viewed(&mut self, at_ms: u64) {
        if !self.runs_out(at_ms) {
            self.viewed_ms = self.viewed_ms.max(at_ms);
        }
    }

    /// Peers that were asked at `sent_at_ms` have promised to keep this node in their views for a lease time, or there
    /// are none who could take over from it.
    pub fn vouched(&mut self, sent_at_ms: u64) {
        if !self.runs_out(sent_at_ms) {
            self.held_ms = self.held_ms.max(sent_at_ms);
            self.viewed_ms = self.viewed_ms.max(sent_at_ms);
        }
    }

    /// A renewal failed with an error or a time-out: Redis is known not to work.
    pub fn renew_failed(&mut self, now_ms: u64) {
        if !self.runs_out(now_ms) {
            self.failed_at_ms = Some(now_ms);
        }
    }

    /// Redis said that the lease is not ours any more.
    pub fn lost(&mut self, now_ms: u64) {
        if !self.runs_out(now_ms) {
            self.fenced = Some(Fenced::Lost);
        }
    }

    /// Whether the node may serve at `now_ms`.
    #[must_use]
    pub fn may_serve(&mut self, now_ms: u64) -> bool {
        !self.runs_out(now_ms)
    }

    /// Why the node was fenced when it was last looked at; `None` if it may serve.
    #[must_use]
    pub fn fenced(&self) -> Option<Fenced> {
        self.fenced
    }

    /// The incarnation last acquired; 0 if there was none.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Until when, exclusive, the node may serve if nothing more is heard; 0 if it is fenced.
    #[must_use]
    pub fn serve_until_ms(&self) -> u64 {
        match self.fenced {
            Some(_) => 0,
            None => self.held_ms.min(self.viewed_ms).saturating_add(proof_ms(self.ttl_ms)),
        }
    }

    /// Fences if the time has run out by `now_ms`; whether the node is fenced.
    fn runs_out(&mut self, now_ms: u64) -> bool {
        if self.fenced.is_none() && now_ms >= self.serve_until_ms() {
            let failing = self.failed_at_ms.is_some_and(|at_ms| now_ms < at_ms.saturating_add(self.ttl_ms));
            self.fenced = Some(if failing { Fenced::Isolated } else { Fenced::Silent });
        }
        self.fenced.is_some()
    }
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lasts for its full time again, from some moment between request and answer.
    Renewed,
    /// The lease has run out, or Redis has lost it with its data. Nobody else holds the name.
    LostToNobody,
    /// Another incarnation holds the name.
    LostToAnother,
}
