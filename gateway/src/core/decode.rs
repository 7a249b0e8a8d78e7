//! Bytes to frames, and frames to the step that handles them.

use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::reason::CloseReason;
use trunkline_proto::{Code, Frame, Header, Kind, Violation, decode, encode, frame_len};

/// First bytes of other transports. They are told apart only so that they get no BYE, which their clients could not read: HTTP's "GET ", TLS, and
/// the PROXY protocol, versions 1 and 2.
const OTHER_TRANSPORTS: [u8; 4] = [b'G', 0x16, b'P', 0x0D];

impl Shard {
    /// Bytes came in. Whole frames are handled in place; the beginning of a further one is kept.
    pub(crate) fn received(&mut self, slot: u32, mut bytes: &[u8]) {
        self.links.stats.bytes_in.add(bytes.len() as u64);
        let conn = self.links.slots.at(slot);
        if conn.phase == Phase::Handshake && conn.partial.is_none() && bytes.first().is_some_and(|first| *first != 0) {
            let other = OTHER_TRANSPORTS.contains(&bytes[0]);
            return self.close(slot, if other { CloseReason::UnknownTransport } else { CloseReason::FrameTooLarge });
        }
        if conn.partial.is_some() {
            bytes = match self.complete_partial(slot, bytes) {
                Some(rest) => rest,
                None => return,
            };
        }
        let frame_bytes_max = self.links.limits.frame_bytes_max;
        while self.wants_frames(slot) {
            match decode(bytes, frame_bytes_max) {
                Ok(Some((frame, len))) => {
                    self.frame(slot, &frame);
                    bytes = &bytes[len..];
                }
                Ok(None) => break,
                Err(violation) => return self.violated(slot, violation),
            }
        }
        // Behind a LOGIN that another shard or node has to answer, whole frames too wait for that answer.
        let waits = matches!(
            self.links.slots.at(slot).phase,
            Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open
        );
        if waits && !self.links.keep_partial(slot, bytes) {
            self.close(slot, CloseReason::Overloaded);
        }
        self.links.pause_if_full(slot);
    }

    /// Adds to a frame begun earlier and handles it when it is whole. Returns what is left, or `None` when there is nothing more to do.
    fn complete_partial<'a>(&mut self, slot: u32, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let mut partial = self.links.take_partial(slot)?;
        let max = self.links.limits.frame_bytes_max;
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
            Ok(Some((frame, _))) => {
                self.frame(slot, &frame);
                Some(rest)
            }
            Ok(None) => {
                if self.links.partial_bytes + partial.len() > self.links.limits.partial_total_bytes_max {
                    self.links.stats.limit_partial.add(1);
                    self.close(slot, CloseReason::Overloaded);
                    return None;
                }
                self.links.partial_bytes += partial.len();
                self.links.slots.at(slot).partial = Some(partial);
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

    /// One whole frame.
    #[inline]
    fn frame(&mut self, slot: u32, frame: &Frame<'_>) {
        let tick = self.links.tick;
        self.links.stats.frames_in.add(1);
        let conn = self.links.slots.at(slot);
        conn.alive_tick = tick;
        if conn.phase == Phase::Handshake {
            return match frame.known() {
                Some(Kind::Login) => self.login(slot, frame),
                _ => self.close(slot, CloseReason::NotLoggedIn),
            };
        }
        if self.links.limits.frames_per_sec != 0 && !self.frame_allowed(slot) {
            self.links.stats.limit_frames.add(1);
            return self.links.error(slot, Code::RateLimited, frame.id, frame.peer);
        }
        let Some(kind) = frame.known() else {
            return self.links.error(slot, Code::UnknownKind, 0, 0);
        };
        if !matches!(kind, Kind::Ping | Kind::Renew) {
            self.note_traffic(slot);
        }
        match kind {
            Kind::Send => self.send(slot, frame),
            Kind::Ack => self.ack(slot, frame),
            Kind::Ping => {
                let pong = Header { kind: Kind::Pong, flags: 0, aux: frame.aux, id: 0, peer: 0, stamp: 0 };
                self.links.reply(slot, |out| encode(out, &pong, &[]));
            }
            Kind::Renew => self.renew(slot, frame),
            Kind::Logout => self.close(slot, CloseReason::Logout),
            Kind::Login => self.links.error(slot, Code::AlreadyLoggedIn, 0, 0),
            kind if kind.from_client() => self.links.error(slot, Code::Unsupported, frame.id, frame.peer),
            _ => self.links.error(slot, Code::UnknownKind, frame.id, frame.peer),
        }
    }

    /// Traffic, as against heartbeats, makes a connection hot.
    fn note_traffic(&mut self, slot: u32) {
        let tick = self.links.tick;
        let hot_ticks = super::links::ticks(self.links.limits.hot_idle_ms);
        let conn = self.links.slots.at(slot);
        conn.traffic_tick = tick;
        if !conn.flags.has(ConnFlags::HOT) {
            conn.flags.set(ConnFlags::HOT);
            self.links.wheel.arm_earlier(slot, tick + hot_ticks);
        }
    }

    /// Takes one frame out of the connection's token bucket, which holds what one second allows.
    fn frame_allowed(&mut self, slot: u32) -> bool {
        const MILLIFRAMES: u32 = 1_000;
        let per_sec = self.links.limits.frames_per_sec;
        let now_ms = self.now.mono_ms as u32;
        let conn = self.links.slots.at(slot);
        let earned = u64::from(now_ms.wrapping_sub(conn.rate_ms)) * u64::from(per_sec);
        let full = u64::from(per_sec) * u64::from(MILLIFRAMES);
        conn.rate_milliframes = (u64::from(conn.rate_milliframes) + earned).min(full) as u32;
        conn.rate_ms = now_ms;
        let allowed = conn.rate_milliframes >= MILLIFRAMES;
        if allowed {
            conn.rate_milliframes -= MILLIFRAMES;
        }
        allowed
    }
}
