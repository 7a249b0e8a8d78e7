//! Connections over TLS: handshakes, so many a turn; records into what lies above them; and the ends that TLS has of
//! its own.
//!
//! Keys lie in [`TlsLinks`]. What has to be remembered besides, a handshake under way or a record of which the rest has
//! not come, is in [`Wrappings`](super::wrap::Wrappings), so a quiet connection has nothing but its keys.

use super::decode::Flow;
use super::links::{Links, TICK_MS};
use super::shard::Shard;
use crate::conn::{Conn, ConnFlags, Phase, Wire};
use crate::io::ConnId;
use crate::metrics::TlsOutcome;
use crate::reason::CloseReason;
use crate::transport::outbound::put_layer;
use crate::transport::tls::{Alert, Bounds, ContentType, End, Established, Handshake, Progress, Sessions};
use crate::transport::tls::{open, whole_record};
use std::collections::VecDeque;

/// Ticks of a minute, within which the changes of a peer's keys are counted.
const MINUTE_TICKS: u32 = (60_000 / TICK_MS) as u32;
/// Bytes that a record has at least beside its data: header, type and tag.
const RECORD_BYTES_BESIDE: usize = 22;

/// TLS of a shard's connections.
#[derive(Debug, Default)]
pub(crate) struct TlsLinks {
    /// The keys of those whose handshake is over.
    pub(crate) sessions: Sessions,
    /// Handshakes under way.
    shaking: u32,
    /// They, the oldest first, and some that were.
    order: VecDeque<ConnId>,
    /// Those of them that can go on, in the order in which they do.
    ready: VecDeque<ConnId>,
}

impl TlsLinks {
    /// Handshakes under way.
    pub(crate) fn shaking(&self) -> u32 {
        self.shaking
    }

    /// Whether handshakes can go on in the next turn.
    pub(crate) fn is_behind(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Links {
    /// Queues what stands between records of data, whatever the outbox holds.
    fn append_layer(&mut self, slot: u32, kind: Option<ContentType>, bytes: &[u8]) {
        self.slots.at(slot).wire.set(Wire::LAYERED);
        self.append(slot, |out| put_layer(out, kind, bytes));
    }

    /// Queues an alert under the keys of a connection, and counts it if it is more than a farewell.
    fn append_alert(&mut self, slot: u32, alert: Alert) {
        if alert != Alert::CloseNotify {
            self.stats.count_alert_sent(alert);
        }
        self.append_layer(slot, Some(ContentType::Alert), &alert.body());
    }

    /// Takes the handshake of a connection, which is over in one way or another.
    fn end_handshake(&mut self, slot: u32, outcome: TlsOutcome) -> Option<Box<Handshake>> {
        let handshake = self.take_handshake(slot)?;
        self.tls.shaking -= 1;
        self.stats.count_handshake(outcome);
        Some(handshake)
    }

    /// The handshake that began first of those that wait for their peers.
    fn oldest_handshake(&mut self) -> Option<u32> {
        let mut at = 0;
        while let Some(id) = self.tls.order.get(at).copied() {
            let conn = self.slots.get(id).map(|conn| (conn.phase, conn.wire.is_shaking(), conn.flags));
            match conn {
                // It can go on, and has waited for this shard.
                Some((Phase::Handshake, true, flags)) if flags.has(ConnFlags::BEHIND) => at += 1,
                Some((Phase::Handshake, true, _)) => {
                    self.tls.order.remove(at);
                    return Some(id.slot);
                }
                _ => _ = self.tls.order.remove(at),
            }
        }
        None
    }
}

impl Shard {
    /// The first bytes of a connection are those of a handshake.
    pub(crate) fn open_tls(&mut self, slot: u32, bytes: &[u8]) {
        // Whoever begins too many is refused before anything is reckoned, and takes nobody's place.
        if self.tls.is_some() && !self.count_handshake(slot) {
            return;
        }
        if self.tls.is_some() && !self.make_handshake_room() {
            self.links.slots.at(slot).wire = Wire::SHAKING;
            return self.close(slot, CloseReason::Overloaded);
        }
        let handshake = self.tls.as_mut().and_then(|tls| Handshake::new(tls.get()));
        let Some(handshake) = handshake else { return self.close(slot, CloseReason::UnknownTransport) };
        self.links.slots.at(slot).wire = Wire::SHAKING;
        self.links.tls.shaking += 1;
        let id = self.links.slots.id(slot);
        let tls = &mut self.links.tls;
        tls.order.push_back(id);
        // Those that are over are forgotten from time to time.
        if tls.order.len() >= 64 && tls.order.len() > 2 * tls.shaking as usize {
            let slots = &mut self.links.slots;
            tls.order.retain(|id| slots.get(*id).is_some_and(|conn| conn.wire.is_shaking()));
        }
        self.links.put_handshake(slot, Box::new(handshake));
        self.received_handshake(slot, bytes);
    }

    /// Sees to it that there is room for another handshake. Returns whether there is.
    ///
    /// When as many as may be are under way, and half of them or more wait for this shard, it is behind, and the
    /// newcomer is refused before anything is reckoned for it. Else of those that wait for their peers the one that has
    /// had most time gives way. If those that the shard has just answered always gave way, none would come to its end
    /// while more come than it can answer.
    fn make_handshake_room(&mut self) -> bool {
        let most = self.links.limits.tls_handshakes_max;
        if self.links.tls.shaking < most {
            return true;
        }
        self.links.stats.limit_tls_handshakes.add(1);
        let behind = self.links.tls.ready.len() >= most.div_ceil(2) as usize;
        let Some(oldest) = (!behind).then(|| self.links.oldest_handshake()).flatten() else { return false };
        self.links.stats.evicted_handshakes.add(1);
        self.close(oldest, CloseReason::Overloaded);
        true
    }

    /// The first bytes of a connection for which there is no room, and they are those of a handshake.
    pub(crate) fn turn_tls_away(&mut self, slot: u32) {
        if self.tls.is_none() {
            return self.close(slot, CloseReason::UnknownTransport);
        }
        self.links.slots.at(slot).wire = Wire::SHAKING;
        self.turn_away(slot);
    }

    /// Bytes of a handshake. The bounds of half-received frames are theirs too.
    pub(crate) fn received_handshake(&mut self, slot: u32, bytes: &[u8]) {
        self.keep(slot, bytes);
        let conn = self.links.slots.at(slot);
        if conn.phase != Phase::Handshake || conn.flags.has(ConnFlags::BEHIND) {
            return;
        }
        if self.links.handshake_has_something(slot) {
            // It is not read on before that.
            let id = self.links.slots.id(slot);
            self.links.slots.at(slot).flags.set(ConnFlags::BEHIND);
            self.links.tls.ready.push_back(id);
            self.links.mark_dirty(slot);
        }
    }

    /// Lets handshakes go on, so many that a flood of them is not felt by sessions. Returns whether there were any.
    pub(crate) fn step_handshakes(&mut self) -> bool {
        let mut steps = self.links.limits.tls_handshakes_per_turn;
        let any = !self.links.tls.ready.is_empty();
        while let Some(id) = self.links.tls.ready.pop_front() {
            if self.links.slots.get(id).is_some_and(|conn| conn.phase == Phase::Handshake && conn.wire.is_shaking()) {
                if steps == 0 {
                    self.links.tls.ready.push_front(id);
                    self.links.stats.limit_tls_steps.add(1);
                    break;
                }
                steps -= 1;
                self.step_handshake(id.slot);
            }
        }
        any
    }

    fn step_handshake(&mut self, slot: u32) {
        let mut input = self.links.take_partial(slot).unwrap_or_default();
        let Some(mut handshake) = self.links.take_handshake(slot) else { return };
        if self.links.slots.at(slot).flags.has(ConnFlags::EOF) && !handshake.has_spoken() {
            // It cannot answer any more, so nothing is reckoned for it.
            self.links.put_handshake(slot, handshake);
            return self.close(slot, CloseReason::PeerClosed);
        }
        let mut out = Vec::new();
        let progress = handshake.step(&mut input, &mut out, self.now.wall_ms / 1_000);
        self.links.put_handshake(slot, handshake);
        if !out.is_empty() {
            self.links.append_layer(slot, None, &out);
        }
        self.links.mark_dirty(slot);
        match progress {
            Progress::Waits => {
                if !input.is_empty() {
                    self.links.put_partial(slot, input);
                    self.bound_partials(slot);
                }
                self.end_if_eof(slot);
            }
            Progress::Done(established) => {
                self.established(slot, *established);
                if !input.is_empty() {
                    self.received_records(slot, &mut input);
                }
                self.end_if_eof(slot);
            }
            Progress::Closed => self.close(slot, CloseReason::PeerClosed),
            Progress::Failed(failure) => {
                let stats = &self.links.stats;
                if failure.by_peer {
                    stats.count_alert_received(failure.alert);
                } else {
                    stats.count_alert_sent(failure.alert);
                }
                self.links.end_handshake(slot, TlsOutcome::Failed);
                self.close(slot, CloseReason::TlsRefused);
            }
        }
    }

    /// The peer had closed its side behind what waited for its turn.
    fn end_if_eof(&mut self, slot: u32) {
        let conn = self.links.slots.at(slot);
        if conn.phase == Phase::Handshake && conn.flags.has(ConnFlags::EOF) && !conn.flags.has(ConnFlags::BEHIND) {
            self.close(slot, CloseReason::PeerClosed);
        }
    }

    /// A handshake is over: what comes from now on is under its keys.
    fn established(&mut self, slot: u32, established: Established) {
        let Established { session, version, suite, resumed, http, certified } = established;
        self.links.end_handshake(slot, if resumed { TlsOutcome::Resumed } else { TlsOutcome::Full });
        self.links.stats.count_tls(version, suite);
        self.links.tls.sessions.put(slot, &session);
        let Conn { wire, flags, .. } = self.links.slots.at(slot);
        // A worker speaks frames whatever was agreed on, and is known by its key.
        let is_service = flags.has(ConnFlags::SERVICE);
        wire.change_kind(if http && !is_service { Wire::HTTP } else { Wire::NATIVE });
        if let Some(certified) = certified.filter(|_| !is_service) {
            self.links.put_certified(slot, certified);
        }
    }

    /// Bytes that are records, or parts of some. They are changed in place.
    pub(crate) fn received_records(&mut self, slot: u32, bytes: &mut [u8]) {
        match self.links.take_record(slot) {
            None => self.open_records(slot, bytes),
            Some(mut record) => {
                record.extend_from_slice(bytes);
                if matches!(whole_record(&record), Ok(None)) {
                    // Nothing is copied again and again while a record comes in small pieces.
                    self.links.put_record(slot, record);
                    return self.bound_partials(slot);
                }
                self.open_records(slot, &mut record);
            }
        }
    }

    fn open_records(&mut self, slot: u32, bytes: &mut [u8]) {
        if self.links.tls_end(slot).is_some() {
            // Behind its end there is nothing.
            return;
        }
        let minute = self.links.tick / MINUTE_TICKS;
        let Some(mut view) = self.links.tls.sessions.view(slot) else { return };
        let owed = view.facts.owes();
        let opened = open(&mut view, &Bounds::STANDARD, bytes, minute);
        let owes = view.facts.owes() && !owed;
        self.links.stats.tls_updates_in.add(opened.updates.into());
        if owes {
            self.links.append_layer(slot, Some(ContentType::Handshake), &[]);
        }
        match opened.end {
            Some(end) => self.links.put_tls_end(slot, end),
            None if opened.taken < bytes.len() => {
                self.links.put_record(slot, bytes[opened.taken..].to_vec());
                self.bound_partials(slot);
            }
            None => {}
        }
        // A record takes its part of a turn as a short frame does, whatever is in it: else a flood of records of a byte
        // each, which are parts of frames, would cost nothing.
        let records = (opened.taken - opened.data) / RECORD_BYTES_BESIDE;
        if records > 1 {
            self.links.spend_units(slot, records as u32);
            if self.links.allowance(slot) == 0 {
                self.links.fall_behind(slot, Flow::On);
            }
        }
        if opened.data > 0 {
            self.received_within(slot, &mut bytes[..opened.data]);
        }
        if opened.end.is_some() {
            self.end_wrapped(slot);
        }
    }

    /// What came in records: as on a connection without them.
    fn received_within(&mut self, slot: u32, bytes: &mut [u8]) {
        let Conn { phase, wire, .. } = *self.links.slots.at(slot);
        match (phase, wire.kind()) {
            (Phase::Handshake, Wire::HTTP) => self.received_head(slot, bytes),
            (Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open, Wire::WEBSOCKET) => {
                self.received_messages(slot, bytes);
            }
            (Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open, Wire::NATIVE) => {
                self.take_in(slot, bytes);
            }
            _ => {}
        }
    }

    /// The records of a connection have ended, and all that was in them has been handled.
    pub(crate) fn end_tls(&mut self, slot: u32, end: End) {
        match end {
            End::Closed => self.close(slot, CloseReason::PeerClosed),
            End::Alerted(alert) => {
                self.links.stats.count_alert_received(alert);
                self.close(slot, CloseReason::PeerReset);
            }
            End::Violated(alert) => {
                self.links.append_alert(slot, alert);
                self.close(slot, CloseReason::TlsViolation);
            }
            End::WornOut => self.close(slot, CloseReason::TlsWornOut),
        }
    }

    /// Queues the last words of TLS, behind those of what lies above it.
    pub(crate) fn say_goodbye_tls(&mut self, slot: u32, reason: CloseReason) {
        if self.links.slots.at(slot).wire.is_shaking() {
            let spoke = self.links.end_handshake(slot, TlsOutcome::Abandoned).is_some_and(|gone| gone.has_spoken());
            // There are no keys, so after the first flight nothing can be said that the peer would believe.
            let told = matches!(reason, CloseReason::Overloaded | CloseReason::Draining | CloseReason::LoginTimeout);
            if told && !spoke {
                self.links.stats.count_alert_sent(Alert::InternalError);
                self.links.append_layer(slot, None, &Alert::InternalError.clear_record());
            }
            return;
        }
        // After a violation an alert has said it all.
        if !matches!(reason, CloseReason::PeerReset | CloseReason::TlsViolation) {
            self.links.append_alert(slot, Alert::CloseNotify);
        }
    }
}
