//! Bytes to frames, and frames to the step that handles them.

use super::links::frame_units;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase, Wire};
use crate::limits::LOGIN_FRAME_BYTES_MAX;
use crate::reason::CloseReason;
use trunkline_proto::{Code, Frame, Header, Kind, Violation, decode, encode, frame_len};

/// Whether a frame was handled, or has to wait with all that comes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    On,
    /// What it is for has no room at the moment: again in the next turn.
    Wait,
    /// Whether it may be said depends on an answer that is under way: again when that has come, see
    /// [`Links::go_on`](super::links::Links::go_on).
    Hold,
}

/// Frames handled between two looks at what the connection may bring: their answers are far less than an outbox holds.
const BATCH_FRAMES: u64 = 16;

/// What ends a batch of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchEnd {
    /// There may be more to handle: look again.
    Parted,
    /// What is left is no whole frame.
    NoFrame,
    /// The next frame is for a later turn, for that reason.
    Behind(Flow),
}

impl Shard {
    /// Bytes came in. Whole frames are handled in place, as many as the turn's budget allows; the rest is kept, and the
    /// connection is not read until that has had its turn.
    pub(crate) fn received(&mut self, slot: u32, bytes: &[u8]) {
        self.links.stats.bytes_in.add(bytes.len() as u64);
        self.take_in(slot, bytes);
    }

    /// Handles bytes that were counted when they came in.
    pub(crate) fn take_in(&mut self, slot: u32, mut bytes: &[u8]) {
        let conn = self.links.slots.at(slot);
        // In a message of a WebSocket such a byte is the length of a frame, as it is everywhere later.
        let opens = conn.phase == Phase::Handshake && conn.partial.is_none() && conn.wire.kind() == Wire::NATIVE;
        if opens {
            let in_clear = !conn.wire.has(Wire::TLS) && self.entrance.needs_tls(conn);
            if bytes.first().is_some_and(|first| *first != 0 || in_clear) {
                return self.open_otherwise(slot, bytes);
            }
        }
        if conn.flags.has(ConnFlags::BEHIND) || conn.flags.has(ConnFlags::PAUSED) {
            // What came before has not had its turn, or the answers to it have not been taken.
            self.keep(slot, bytes);
            return self.links.fall_behind(slot, Flow::On);
        }
        if conn.partial.is_some() {
            bytes = match self.complete_partial(slot, bytes) {
                Some(rest) => rest,
                None => return,
            };
        }
        let Some(taken) = self.take_frames(slot, bytes) else { return };
        self.keep(slot, &bytes[taken..]);
    }

    /// Goes on with what waited for its turn.
    pub(crate) fn catch_up(&mut self, slot: u32) {
        let conn = self.links.slots.at(slot);
        if !conn.flags.has(ConnFlags::BEHIND) || conn.flags.has(ConnFlags::PAUSED) || conn.phase != Phase::Open {
            return;
        }
        // It may be that control frames of its WebSocket alone made it wait.
        if let Some(mut bytes) = self.links.take_partial(slot) {
            let Some(taken) = self.take_frames(slot, &bytes) else { return };
            if taken < bytes.len() {
                bytes.drain(..taken);
                self.put_back(slot, bytes);
            }
        }
        self.end_wrapped(slot);
        let conn = self.links.slots.at(slot);
        if conn.flags.has(ConnFlags::EOF) && !conn.flags.has(ConnFlags::BEHIND) {
            // The peer had closed its side behind what waited.
            self.close(slot, CloseReason::PeerClosed);
        }
        self.links.mark_dirty(slot);
    }

    /// Handles whole frames while the connection wants them and the turn's budget lasts. Returns the bytes they took;
    /// `None` when the connection ends by them. What is left of whole frames makes the connection wait for its turn.
    fn take_frames(&mut self, slot: u32, bytes: &[u8]) -> Option<usize> {
        let mut taken = 0;
        while self.wants_frames(slot) {
            let (used, end) = self.take_batch_of_frames(slot, &bytes[taken..])?;
            taken += used;
            match end {
                BatchEnd::Parted => {}
                BatchEnd::NoFrame => break,
                BatchEnd::Behind(flow) => {
                    self.links.pause_if_full(slot);
                    self.links.fall_behind(slot, flow);
                    return Some(taken);
                }
            }
        }
        self.links.pause_if_full(slot);
        // Behind a LOGIN that another shard or node has to answer, whole frames too wait for that answer.
        let phase = self.links.slots.at(slot).phase;
        matches!(phase, Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open).then_some(taken)
    }

    /// Handles some whole frames, and counts them together: what is counted once for sixteen frames is counted at a
    /// sixteenth of the cost. Returns the bytes they took and what ended the batch; `None` when the connection ends by
    /// them.
    #[inline]
    fn take_batch_of_frames(&mut self, slot: u32, bytes: &[u8]) -> Option<(usize, BatchEnd)> {
        let conn = self.links.slots.at(slot);
        let open = conn.phase == Phase::Open;
        let is_service = conn.flags.has(ConnFlags::SERVICE);
        let max = self.frame_bytes_max(slot)?;
        let allowed = self.links.allowance(slot);
        let (mut used, mut units, mut frames) = (0, 0, 0);
        let mut traffic = false;
        let end = loop {
            if frames == BATCH_FRAMES {
                break BatchEnd::Parted;
            }
            match decode(&bytes[used..], max) {
                Ok(Some((frame, len))) => {
                    if units >= allowed {
                        break BatchEnd::Behind(Flow::On);
                    }
                    if open {
                        let kind = frame.known();
                        traffic |= !matches!(kind, None | Some(Kind::Ping | Kind::Renew));
                        let flow = match is_service {
                            false => self.session_frame(slot, kind, &frame),
                            true => self.service_frame(slot, kind, &frame),
                        };
                        if flow != Flow::On {
                            break BatchEnd::Behind(flow);
                        }
                    } else {
                        self.first_frame(slot, &frame);
                    }
                    used += len;
                    units += frame_units(len);
                    frames += 1;
                    if !open || self.links.slots.at(slot).phase != Phase::Open {
                        break BatchEnd::Parted;
                    }
                }
                Ok(None) => break BatchEnd::NoFrame,
                Err(violation) => {
                    self.links.spend(slot, units, frames);
                    self.violated(slot, violation);
                    return None;
                }
            }
        };
        self.links.spend(slot, units, frames);
        if traffic {
            self.note_traffic(slot);
        }
        Some((used, end))
    }

    /// The longest frame that the connection may send where it stands; `None` when it may send none.
    fn frame_bytes_max(&mut self, slot: u32) -> Option<u32> {
        let max = self.links.limits.frame_bytes_max;
        match self.links.slots.at(slot).phase {
            Phase::Open => Some(max),
            Phase::Handshake => Some(max.min(LOGIN_FRAME_BYTES_MAX)),
            Phase::HandingOver | Phase::Registering => Some(max),
            Phase::Free | Phase::Mesh | Phase::Closing | Phase::Finishing | Phase::Closed => None,
        }
    }

    /// Keeps bytes of a connection for later.
    pub(crate) fn keep(&mut self, slot: u32, bytes: &[u8]) {
        self.links.keep_partial(slot, bytes);
        self.bound_partials(slot);
    }

    #[allow(clippy::box_collection)]
    fn put_back(&mut self, slot: u32, bytes: Box<Vec<u8>>) {
        let behind = self.links.slots.at(slot).flags.has(ConnFlags::BEHIND);
        self.links.put_partial(slot, bytes);
        debug_assert_eq!(behind, self.links.slots.at(slot).flags.has(ConnFlags::BEHIND));
        self.bound_partials(slot);
    }

    /// Sees to it that not more is kept than may be: whoever is to give way is closed.
    pub(super) fn bound_partials(&mut self, asker: u32) {
        while self.links.has_too_many_partials() {
            self.links.stats.limit_partial.add(1);
            let victim = self.links.partial_victim(asker);
            self.links.stats.evicted_partial.add(u64::from(victim != asker));
            self.close(victim, CloseReason::Overloaded);
            self.links.take_partial(victim);
            self.links.drop_wrapping(victim);
            if victim == asker {
                break;
            }
        }
    }

    /// Adds to a frame begun earlier and handles it when it is whole. Returns what is left, or `None` when there is
    /// nothing more to do.
    fn complete_partial<'a>(&mut self, slot: u32, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let max = self.frame_bytes_max(slot)?;
        let mut partial = self.links.take_partial(slot)?;
        let mut rest = bytes;
        // First the length, so that nothing of the next frame is taken along; then as much of the frame as is there.
        for _ in 0..2 {
            let target = match frame_len(&partial, max) {
                Ok(len) => len.unwrap_or(size_of::<u32>()),
                Err(violation) => {
                    self.violated(slot, violation);
                    return None;
                }
            };
            let (taken, left) = rest.split_at(rest.len().min(target.saturating_sub(partial.len())));
            partial.extend_from_slice(taken);
            rest = left;
        }
        match decode(&partial, max) {
            Ok(Some(_)) if self.wants_frames(slot) => match self.take_batch_of_frames(slot, &partial)? {
                (_, BatchEnd::Behind(flow)) => {
                    self.links.pause_if_full(slot);
                    self.links.fall_behind(slot, flow);
                    partial.extend_from_slice(rest);
                    self.put_back(slot, partial);
                    None
                }
                (_, BatchEnd::Parted | BatchEnd::NoFrame) => Some(rest),
            },
            Ok(_) => {
                partial.extend_from_slice(rest);
                self.put_back(slot, partial);
                None
            }
            Err(violation) => {
                self.violated(slot, violation);
                None
            }
        }
    }

    fn wants_frames(&mut self, slot: u32) -> bool {
        matches!(self.links.slots.at(slot).phase, Phase::Handshake | Phase::Open)
    }

    fn violated(&mut self, slot: u32, violation: Violation) {
        let reason = match violation.code() {
            Code::FrameTooLarge => {
                self.links.stats.limit_frame_bytes.add(1);
                CloseReason::FrameTooLarge
            }
            _ => CloseReason::MalformedFrame,
        };
        self.close(slot, reason);
    }

    /// The first whole frame of a connection.
    fn first_frame(&mut self, slot: u32, frame: &Frame<'_>) {
        let is_service = self.links.slots.at(slot).flags.has(ConnFlags::SERVICE);
        match frame.known() {
            Some(Kind::Login) if !is_service => self.login(slot, frame),
            Some(Kind::Serve) if is_service => self.serve(slot, frame),
            // A server that was dialed does not want to.
            Some(Kind::Bye | Kind::Logout) if self.links.slots.at(slot).flags.has(ConnFlags::DIALED) => {
                self.close(slot, CloseReason::Logout);
            }
            _ => self.close(slot, CloseReason::NotLoggedIn),
        }
    }

    /// A frame of a session, within its limit on frames.
    #[inline]
    fn session_frame(&mut self, slot: u32, kind: Option<Kind>, frame: &Frame<'_>) -> Flow {
        if self.links.limits.frames_per_sec == 0 {
            return self.open_frame(slot, kind, frame);
        }
        // The LOGOUT that spares the server a timeout is no client's choice, and neither is an ACK, for which the
        // delivery has put a frame into the bucket.
        let limited = kind != Some(Kind::Logout);
        if limited && !self.frame_allowed(slot) {
            self.links.stats.limit_frames.add(1);
            self.links.error(slot, Code::RateLimited, frame.id, frame.peer);
            return Flow::On;
        }
        let flow = self.open_frame(slot, kind, frame);
        if flow != Flow::On && limited {
            // It was not taken in, and comes again.
            self.links.grant_frame(slot);
        }
        flow
    }

    /// A frame of a session.
    #[inline]
    fn open_frame(&mut self, slot: u32, kind: Option<Kind>, frame: &Frame<'_>) -> Flow {
        let Some(kind) = kind else {
            self.links.error(slot, Code::UnknownKind, 0, 0);
            return Flow::On;
        };
        match kind {
            Kind::Send => return self.send(slot, frame),
            Kind::Ack => self.ack(slot, frame),
            Kind::Ping => {
                let pong = Header { kind: Kind::Pong, flags: 0, aux: frame.aux, id: 0, peer: 0, stamp: 0 };
                self.links.reply(slot, |out| encode(out, &pong, &[]));
            }
            Kind::Renew => self.renew(slot, frame),
            Kind::Sync => self.sync(slot, frame),
            kind @ (Kind::Watch | Kind::Unwatch) => self.watch_frame(slot, kind, frame),
            Kind::Call if self.services.is_some() => self.call(slot, frame),
            Kind::Logout => {
                self.log_out(slot);
                self.close(slot, CloseReason::Logout);
            }
            Kind::Login => self.links.error(slot, Code::AlreadyLoggedIn, 0, 0),
            kind @ (Kind::GroupSend | Kind::GroupJoin | Kind::GroupLeave | Kind::Mark) => {
                return self.group_frame(slot, kind, frame);
            }
            // Those are the services' port's.
            Kind::Serve | Kind::Answer | Kind::PushTo | Kind::Window => self.links.error(slot, Code::UnknownKind, 0, 0),
            kind if kind.from_client() => self.links.error(slot, Code::Unsupported, frame.id, frame.peer),
            _ => self.links.error(slot, Code::UnknownKind, frame.id, frame.peer),
        }
        Flow::On
    }

    /// Traffic, as against heartbeats, makes a session hot.
    fn note_traffic(&mut self, slot: u32) {
        let tick = self.links.tick;
        let conn = self.links.slots.at(slot);
        if conn.phase != Phase::Open {
            return;
        }
        if conn.note_traffic(tick) {
            self.links.wheel.arm_earlier(slot, tick + super::links::ticks(self.links.limits.hot_idle_ms));
        }
    }

    /// Takes frames out of the connection's token bucket that are answered even if it is empty.
    pub(super) fn charge_frames(&mut self, slot: u32, frames: u32) {
        for _ in 0..frames {
            if !self.frame_allowed(slot) {
                self.links.stats.limit_frames.add(1);
                return;
            }
        }
    }

    /// Takes one frame out of the connection's token bucket, which holds what one second allows. Each delivery that
    /// asks for an ACK puts one in besides, see
    /// [`Links::grant_frame`](super::links::Links::grant_frame).
    fn frame_allowed(&mut self, slot: u32) -> bool {
        let per_sec = self.links.limits.frames_per_sec;
        let now_ms = self.now.mono_ms as u32;
        self.links.slots.at(slot).take_frame(per_sec, now_ms)
    }
}
