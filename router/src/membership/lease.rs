//! The node's own lease: may it serve?
//!
//! Others take over what a node had as soon as they see it gone, so it must stop before that, without being told. It
//! cannot know whether it was paused; it can know how old the last proof is that it still counts. Each proof lasts for one
//! lease time. When the proofs have run out, the node is fenced until it has a new incarnation, however good the news that
//! come later: they may have waited in a socket while it slept.

/// Why the node must not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// It never had a lease.
    NotAcquired,
    /// Redis said that the lease is gone or another's.
    Lost,
    /// The lease ran out, and nothing said that Redis was failing: the node was paused.
    Silent,
    /// The lease ran out while Redis was failing, and no peer confirmed this node in time: it is cut off.
    Isolated,
}

/// The state of this node's lease. Its rules:
///
/// - it may serve while the lease is valid, counted from when the renewal was **sent**;
/// - while Redis is known to be failing, because a renewal failed within the last lease time, it may also serve for a
///   lease time from the last moment at which peers confirmed this incarnation, or from the last failure if it is alone;
/// - when neither holds it is fenced, and stays so until [`Lease::acquired`] with a higher incarnation.
///
/// Every method takes a time and fences first if the time has run out by then, so the order in which things are noticed
/// after a pause does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    incarnation: u64,
    ttl_ms: u64,
    valid_until_ms: u64,
    failed_at_ms: Option<u64>,
    confirmed_at_ms: Option<u64>,
    alone: bool,
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
            valid_until_ms: 0,
            failed_at_ms: None,
            confirmed_at_ms: None,
            alone: false,
            fenced: Some(Fenced::NotAcquired),
        }
    }

    /// Redis granted `incarnation` for `ttl_ms` to a request sent at `sent_at_ms`. Lifts the fence. Without effect, and
    /// `false`, unless the incarnation is higher than the one before.
    pub fn acquired(&mut self, sent_at_ms: u64, incarnation: u64, ttl_ms: u64) -> bool {
        if incarnation <= self.incarnation {
            return false;
        }
        *self = Lease {
            incarnation,
            ttl_ms,
            valid_until_ms: sent_at_ms.saturating_add(ttl_ms),
            failed_at_ms: None,
            confirmed_at_ms: None,
            alone: self.alone,
            fenced: None,
        };
        true
    }

    /// Redis renewed the lease for `ttl_ms` to a request sent at `sent_at_ms`.
    pub fn renewed(&mut self, sent_at_ms: u64, ttl_ms: u64) {
        if self.runs_out(sent_at_ms) {
            return;
        }
        self.ttl_ms = ttl_ms;
        self.valid_until_ms = self.valid_until_ms.max(sent_at_ms.saturating_add(ttl_ms));
        // An answer to a request from before the failure says nothing about now.
        if self.failed_at_ms.is_some_and(|failed_at_ms| failed_at_ms <= sent_at_ms) {
            self.failed_at_ms = None;
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

    /// At least one mesh peer said, to a question asked within the last heartbeat, that it treats this incarnation as live.
    pub fn peers_confirmed(&mut self, now_ms: u64) {
        if !self.runs_out(now_ms) {
            self.confirmed_at_ms = Some(now_ms);
        }
    }

    /// Whether the last view from Redis had no other node, so that nobody can confirm this one or take over from it.
    pub fn set_alone(&mut self, now_ms: u64, alone: bool) {
        if !self.runs_out(now_ms) {
            self.alone = alone;
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
        if self.fenced.is_some() {
            return 0;
        }
        let Some(failed_at_ms) = self.failed_at_ms else {
            return self.valid_until_ms;
        };
        let witnessed_at_ms = match self.confirmed_at_ms {
            Some(confirmed_at_ms) if !self.alone => failed_at_ms.min(confirmed_at_ms),
            _ if self.alone => failed_at_ms,
            _ => return self.valid_until_ms,
        };
        self.valid_until_ms.max(witnessed_at_ms.saturating_add(self.ttl_ms))
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
