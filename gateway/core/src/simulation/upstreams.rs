//! HTTP servers of a service in the simulation of services: what the services thread would do, with servers that
//! answer late or never, refuse, break off, and cannot be reached. Its properties are those of `services`.

use super::node::Node;
use crate::io::sim::Rng;
use crate::metrics::ShardStats;
use crate::services::{CallPortals, CallsOuter, ServiceRecord};
use crate::upstream::{Deed, Desk, End, Run};
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_proto::call_flags;

/// The service that has HTTP servers.
pub(super) const UPSTREAM: u16 = 8;
/// It, as it is configured.
pub(super) const SPEC: &str = "8:servers,transport=http,call_timeout_ms=700,queue=4,server=127.0.0.1:9000 max_conns=2 \
                               fail_timeout_secs=1,server=127.0.0.1:9001 max_conns=1 weight=2,\
                               server=127.0.0.1:9002 backup";
/// Connections in all: fewer than the servers would take together.
const CONNS_MAX: u32 = 4;

/// A request that a server has.
struct AtWork {
    run: Run,
    done_us: u64,
    end: End,
    /// Parts of the answer that come just before its end.
    parts: u64,
}

/// A server has a call now.
pub(super) struct Begun {
    pub(super) user: u64,
    pub(super) id: u64,
    pub(super) body: Vec<u8>,
    /// It carries the call out, or may.
    pub(super) carries_out: bool,
}

pub(super) struct Upstreams {
    pub(super) portals: CallPortals,
    outer: CallsOuter,
    desk: Desk,
    at_work: Vec<AtWork>,
}

impl Upstreams {
    pub(super) fn new(shards: u16, seed: u64) -> Self {
        let portals = CallPortals::new(shards);
        let specs = [SPEC.parse().expect("a service")];
        let mut desk = Desk::new(&specs, CONNS_MAX, Arc::new(ShardStats::default()), seed);
        for at in 0..3_u16 {
            desk.resolved(UPSTREAM, at.into(), &[SocketAddr::from(([127, 0, 0, 1], 9_000 + at))], 0);
        }
        Upstreams { outer: portals.outer(), portals, desk, at_work: Vec::new() }
    }

    /// What the services thread does when it is rung for, or a request has ended.
    pub(super) fn turn(&mut self, node: &mut Node, rng: &mut Rng, now_us: u64) -> Vec<Begun> {
        let now_ms = now_us / 1_000;
        let bytes_max = 8_000_usize;
        while let Some((shard, batch)) = self.outer.take() {
            self.desk.take(shard, &batch, |calls| bytes_max.saturating_sub(calls), now_ms);
        }
        let (done, rest) = std::mem::take(&mut self.at_work).into_iter().partition(|work| work.done_us <= now_us);
        self.at_work = rest;
        let done: Vec<AtWork> = done;
        for AtWork { run, end, parts, .. } in done {
            (0..parts).for_each(|_| self.desk.part(run.at, 0, "part".into()));
            self.desk.ended(run.at, end, 1_000, now_ms);
        }
        self.desk.tick(now_ms);
        let mut begun = Vec::new();
        while let Some(deed) = self.desk.next_deed() {
            match deed {
                Deed::Start(run) => {
                    let mut done_us = now_us + rng.within(1, 300_000);
                    let answer = |http| End::Answered { http, own: None, body: "done".into() };
                    let end = match rng.below(10) {
                        0 => End::NotSent,
                        1 => End::Broken,
                        2 => answer(503),
                        3 => answer(404),
                        4 => End::TimedOut,
                        _ => answer(200),
                    };
                    let deadline_us = run.deadline_ms * 1_000;
                    let is_late = done_us > deadline_us || end == End::TimedOut;
                    let end = if is_late && end != End::NotSent { End::TimedOut } else { end };
                    if is_late {
                        done_us = deadline_us;
                    }
                    begun.push(Begun {
                        user: run.letter.user,
                        id: run.letter.id,
                        body: run.letter.body.to_vec(),
                        carries_out: !matches!(end, End::NotSent | End::Answered { http: 404 | 503, .. }),
                    });
                    let comes_in_parts = matches!(end, End::Answered { http: 200, .. } | End::Broken | End::TimedOut);
                    let parts = if comes_in_parts && rng.chance(200) { rng.within(1, 3) } else { 0 };
                    self.at_work.push(AtWork { run, done_us, end, parts });
                    assert!(self.at_work.len() <= CONNS_MAX as usize, "more connections than there may be");
                }
                Deed::Abort { token } => {
                    // It may have ended just now.
                    if let Some(work) = self.at_work.iter_mut().find(|work| work.run.at.token == token) {
                        (work.end, work.done_us) = (End::Aborted, now_us + 1_000);
                    }
                }
                Deed::Part { caller, id, status, body } => {
                    let flags = call_flags::MORE;
                    let part = ServiceRecord::Answer { conn: caller.conn, id, status, flags, body: &body };
                    self.outer.put(caller.shard, &part);
                }
                Deed::Answer { caller, id, status, body } => {
                    let answer = ServiceRecord::Answer { conn: caller.conn, id, status, flags: 0, body: &body };
                    self.outer.put(caller.shard, &answer);
                }
            }
        }
        self.outer.post();
        // A wake that nobody needs does no harm.
        (0..node.shards()).for_each(|shard| node.signal(shard));
        begun
    }

    /// Panics unless nothing is left.
    pub(super) fn check_empty(&self) {
        let left = (self.desk.bytes(), self.desk.waiting(), self.desk.running(), self.portals.answer_bytes());
        assert_eq!(left, (0, 0, 0, 0), "calls, calls that wait, requests, answers");
    }
}
