//! The sessions of the shards as Redis has them: written again by pages, and compared.

use super::{Answer, Task};
use crate::clock::now_ms;
use crate::cluster::audit::{Compared, compare};
use crate::control::{Control, SessionsList, SessionsPage};
use crate::membership::Page;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a shard may take to tell of a page of sessions. It does within a turn; one that does not is asked again.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// While a write has waited for Redis for longer than this nothing is compared: what it would find missing is only
/// late.
const AUDIT_QUEUE_AGE_MS: u64 = 10_000;

impl Task {
    /// Asks for the next page of sessions, if it is time and there is room for what it brings.
    pub(super) fn walk_on(&mut self) {
        if self.page.is_some() && self.page_asked.elapsed() > PAGE_TIMEOUT {
            self.page = None;
            self.walk.failed();
        }
        let queued = self.plane.metrics().snapshot().queued;
        if queued > self.queue_max / 2 || self.agent.heart().fenced().is_some() {
            return;
        }
        let sessions = self.shards.stats.iter().map(|stats| stats.sessions.get()).sum();
        let Some(Page { shard, from_slot, max }) = self.walk.page(now_ms(), sessions) else { return };
        let (answer, page) = futures_channel::oneshot::channel();
        match self.shards.ports[shard].send(Control::Sessions { from_slot, max, answer }) {
            Ok(()) => (self.page, self.page_asked) = (Some(page), Instant::now()),
            Err(_) => self.walk.failed(),
        }
    }

    pub(super) fn page_answered(&mut self, page: Option<SessionsPage>) {
        self.page = None;
        let Some(page) = page else { return self.walk.failed() };
        if self.walk.answered(page) {
            tracing::info!("all sessions have been told of again");
        }
        if self.walk.is_resync() {
            self.take_events();
            self.walk_on();
        }
    }

    /// Asks for the next list of sessions to compare, if it is time and what is written last has been written.
    pub(super) fn audit_on(&mut self) {
        let written = self.plane.metrics().snapshot();
        let busy = written.queued > self.queue_max / 2 || written.oldest_age_ms > AUDIT_QUEUE_AGE_MS;
        let failing = self.agent.heart().redis_failing_ms().is_some() || self.agent.heart().fenced().is_some();
        if busy || failing || self.walk.is_resync() {
            return;
        }
        let sessions = self.shards.stats.iter().map(|stats| stats.sessions.get()).sum();
        let Some(Page { shard, from_slot, max }) = self.audit.page(now_ms(), sessions) else { return };
        let (answer, list) = futures_channel::oneshot::channel();
        match self.shards.ports[shard].send(Control::List { from_slot, max, answer }) {
            Ok(()) => self.list = Some((shard, list)),
            Err(_) => self.audit.failed(),
        }
    }

    pub(super) fn listed(&mut self, shard: usize, list: Option<SessionsList>) {
        self.list = None;
        let Some(SessionsList { sessions, next_slot }) = list else { return self.audit.failed() };
        self.audit.listed(sessions.len(), next_slot);
        let (plane, node) = (self.plane.clone(), self.agent.name().to_owned());
        let incarnation = self.agent.heart().incarnation();
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.answers
            .spawn(async move { Answer::Compared(compare(plane, shard, sessions, node, incarnation, wall_ms).await) });
    }

    pub(super) fn compared(&mut self, now_ms: u64, compared: Compared) {
        // A new incarnation writes everything again.
        let counts = compared.incarnation == self.agent.heart().incarnation() && !self.walk.is_resync();
        let sessions = if counts { compared.lost.clone() } else { Vec::new() };
        let mut told = sessions.len();
        if let (1.., Some(port)) = (told, self.shards.ports.get(compared.shard))
            && port.send(Control::Tell { sessions }).is_err()
        {
            // A shard that is too busy now: they are found again.
            told = 0;
        }
        self.audit.compared(now_ms, &compared, told);
    }
}
