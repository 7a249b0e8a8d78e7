//! Connections that are not native: the request by which one becomes a WebSocket, messages into frames, and the ends
//! that each transport has of its own.

use super::decode::Flow;
use super::links::{Links, TICK_MS};
use super::shard::Shard;
use crate::conn::{Conn, ConnFlags, Phase, Wire};
use crate::limits::UNIT_BYTES;
use crate::reason::CloseReason;
use crate::transport::outbound::put_raw;
use crate::transport::tls::{End as TlsEnd, Handshake};
use crate::transport::upgrade::{self, Refusal, Request};
use crate::transport::{Opening, TLS_HANDSHAKE, opening};
use crate::wrappings::{Wrapped, Wrapping};
use trunkline_proto::websocket::{Control, End, Inbound, Opcode, Role, close_code, put_close, put_control};

/// Bytes of Pongs that a connection whose LOGIN has not come, or was not answered, may leave unread.
const PONGS_BEFORE_LOGIN_BYTES_MAX: usize = 4_096;

impl Links {
    /// How the messages of a connection have ended, if they have.
    fn wrapped_end(&mut self, slot: u32) -> Option<End> {
        let remembered = self.slots.at(slot).wire.has(Wire::REMEMBERED);
        remembered.then(|| self.wrapping(slot)?.inbound.end()).flatten()
    }

    /// The token that came with the request of a connection.
    pub(crate) fn take_wrapped_token(&mut self, slot: u32) -> Option<String> {
        let mut wrapping = self.take_wrapping(slot)?;
        let token = wrapping.token.take();
        self.put_wrapping(slot, wrapping);
        token
    }

    /// Changes what is remembered of a connection.
    fn remember(&mut self, slot: u32, change: impl FnOnce(&mut Wrapping)) {
        let mut wrapping = self.take_wrapping(slot).unwrap_or_default();
        change(&mut wrapping);
        self.put_wrapping(slot, wrapping);
    }

    /// Takes the handshake of a connection.
    pub(crate) fn take_handshake(&mut self, slot: u32) -> Option<Box<Handshake>> {
        let mut wrapping = self.take_wrapping(slot)?;
        let handshake = wrapping.handshake.take();
        self.put_wrapping(slot, wrapping);
        handshake
    }

    /// Keeps the handshake of a connection.
    pub(crate) fn put_handshake(&mut self, slot: u32, handshake: Box<Handshake>) {
        self.remember(slot, |wrapping| wrapping.handshake = Some(handshake));
    }

    /// Takes the beginning of a record.
    pub(crate) fn take_record(&mut self, slot: u32) -> Option<Vec<u8>> {
        let mut wrapping = self.take_wrapping(slot)?;
        let record = std::mem::take(&mut wrapping.record);
        self.put_wrapping(slot, wrapping);
        (!record.is_empty()).then_some(record)
    }

    /// Keeps the beginning of a record.
    pub(crate) fn put_record(&mut self, slot: u32, record: Vec<u8>) {
        self.remember(slot, |wrapping| wrapping.record = record);
        self.note_held(slot);
    }

    /// How the records of a connection have ended, if they have.
    pub(crate) fn tls_end(&mut self, slot: u32) -> Option<TlsEnd> {
        let remembered = self.slots.at(slot).wire.has(Wire::REMEMBERED);
        remembered.then(|| self.wrapping(slot)?.tls_end).flatten()
    }

    /// Notes how the records of a connection have ended.
    pub(crate) fn put_tls_end(&mut self, slot: u32, end: TlsEnd) {
        self.remember(slot, |wrapping| wrapping.tls_end = Some(end));
    }

    /// Keeps the user whom a certificate names, until LOGIN.
    pub(crate) fn put_certified(&mut self, slot: u32, certified: (u64, u64)) {
        self.remember(slot, |wrapping| wrapping.certified = Some(certified));
    }

    /// Takes the user whom the certificate of a connection names, and the last second in which that holds.
    pub(crate) fn take_certified(&mut self, slot: u32) -> Option<(u64, u64)> {
        let mut wrapping = self.take_wrapping(slot)?;
        let certified = wrapping.certified.take();
        self.put_wrapping(slot, wrapping);
        certified
    }

    /// Takes what lies between the bytes and the frames of a connection that goes to another shard; `None` where
    /// nothing does.
    pub(crate) fn take_wrapped(&mut self, slot: u32) -> Option<Box<Wrapped>> {
        let wire = self.slots.at(slot).wire.layers();
        (!wire.is_native()).then(|| {
            let session = self.tls.sessions.take(slot);
            Box::new(Wrapped { wire, wrapping: self.take_wrapping(slot), session })
        })
    }

    /// Goes on with a connection that came from another shard.
    pub(crate) fn put_wrapped(&mut self, slot: u32, wrapped: Wrapped) {
        self.slots.at(slot).wire = wrapped.wire;
        self.put_back_wrapped(slot, wrapped);
    }

    /// A connection that was to go to another shard stays, to be ended here.
    pub(crate) fn put_back_wrapped(&mut self, slot: u32, wrapped: Wrapped) {
        if let Some(wrapping) = wrapped.wrapping {
            self.put_wrapping(slot, wrapping);
        }
        if let Some(session) = wrapped.session {
            self.tls.sessions.put(slot, &session);
        }
    }

    /// The connection is gone.
    pub(crate) fn forget_wrapped(&mut self, slot: u32) {
        self.take_wrapping(slot);
        self.tls.sessions.remove(slot);
    }

    /// Lets go of what is remembered of a connection that gives way: it is ended, and needs none of it any more.
    pub(crate) fn drop_wrapping(&mut self, slot: u32) {
        self.take_wrapping(slot);
    }

    /// Queues bytes that are no frame, whatever the outbox holds: for the last words of a connection, and the answer to
    /// its request.
    fn append_raw(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.slots.at(slot).wire.set(Wire::RAW);
        self.append(slot, |out| put_raw(out, write));
    }
}

// A Ping has some ticks until its answer counts: half of the shortest heartbeat.
const _: () = assert!(TICK_MS * 4 <= 1_000 / 2);

impl Shard {
    /// The first bytes of a connection are no frame, or have to be those of TLS.
    pub(crate) fn open_otherwise(&mut self, slot: u32, bytes: &[u8]) {
        let Conn { wire, flags, .. } = *self.links.slots.at(slot);
        let within_tls = wire.has(Wire::TLS);
        let native = within_tls && self.links.tls.sessions.view(slot).is_some_and(|view| view.facts.is_native());
        match opening(bytes) {
            // One that was dialed has to answer with SERVE.
            Some(Opening::Tls) if !within_tls && !flags.has(ConnFlags::DIALED) => self.open_tls(slot, bytes),
            // A worker speaks frames, and over TLS frames too.
            _ if flags.has(ConnFlags::SERVICE) => self.close(slot, CloseReason::UnknownTransport),
            Some(Opening::Http) | None if !native && (within_tls || !self.needs_tls(slot)) => {
                self.links.slots.at(slot).wire.change_kind(Wire::HTTP);
                self.received_head(slot, bytes);
            }
            Some(Opening::Proxy) if !within_tls => self.refuse_header(slot, None),
            _ => self.close(slot, CloseReason::UnknownTransport),
        }
    }

    /// Bytes came over a connection that is not native. They may be changed in place.
    pub(crate) fn received_wrapped(&mut self, slot: u32, bytes: &mut [u8]) {
        self.links.stats.bytes_in.add(bytes.len() as u64);
        if self.links.slots.at(slot).wire.awaits_header() {
            return self.received_header(slot, bytes);
        }
        self.received_layered(slot, bytes);
    }

    /// The first bytes behind a PROXY header, as if nothing had come before them.
    pub(crate) fn received_first(&mut self, slot: u32, bytes: &mut [u8]) {
        if self.links.slots.at(slot).wire.is_native() {
            self.take_in(slot, bytes);
        } else {
            self.received_layered(slot, bytes);
        }
    }

    fn received_layered(&mut self, slot: u32, bytes: &mut [u8]) {
        let Conn { phase, wire, .. } = *self.links.slots.at(slot);
        if phase == Phase::Handshake && wire == Wire::NATIVE.and(Wire::TURNED_AWAY) {
            return self.received_without_room(slot, bytes);
        }
        match (phase, wire.kind()) {
            (Phase::Handshake, _) if wire.is_shaking() => self.received_handshake(slot, bytes),
            (Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open, _) if wire.has(Wire::TLS) => {
                self.received_records(slot, bytes);
            }
            (Phase::Handshake, Wire::HTTP) => self.received_head(slot, bytes),
            (Phase::Handshake | Phase::HandingOver | Phase::Registering | Phase::Open, Wire::WEBSOCKET) => {
                self.received_messages(slot, bytes);
            }
            // What comes behind an end is dropped.
            _ => {}
        }
    }

    /// The first bytes of a connection for which there is no room: they say how it is told. A request is read all the
    /// same, since a balancer may ask how this process is.
    fn received_without_room(&mut self, slot: u32, bytes: &[u8]) {
        let is_service = self.links.slots.at(slot).flags.has(ConnFlags::SERVICE);
        match bytes.first() {
            Some(b'G') if !self.needs_tls(slot) && !is_service => {
                self.links.slots.at(slot).wire = Wire::HTTP.and(Wire::TURNED_AWAY);
                self.received_head(slot, bytes);
            }
            Some(0) if !self.needs_tls(slot) => self.turn_away(slot),
            Some(&TLS_HANDSHAKE) => self.turn_tls_away(slot),
            _ => self.close(slot, CloseReason::UnknownTransport),
        }
    }

    /// Bytes of a request's head; the bounds of half-received frames are its too.
    pub(crate) fn received_head(&mut self, slot: u32, bytes: &[u8]) {
        let conn = self.links.slots.at(slot);
        let room = !conn.wire.has(Wire::TURNED_AWAY);
        let looked = conn.partial.as_ref().map_or(0, |partial| partial.len());
        self.keep(slot, bytes);
        if self.links.slots.at(slot).phase != Phase::Handshake {
            return;
        }
        let Some(head) = self.links.slots.at(slot).partial.as_deref() else { return };
        let told = match opening(head) {
            Some(Opening::Http) => upgrade::read(self.entrance.upgrade(), head, looked),
            None => Ok(None),
            Some(Opening::Proxy) => return self.refuse_header(slot, None),
            Some(_) => return self.close(slot, CloseReason::UnknownTransport),
        };
        if told == Ok(None) {
            return;
        }
        let Some(mut head) = self.links.take_partial(slot) else { return };
        match told {
            Ok(None) => {}
            Ok(Some((Request::Upgrade(upgrade), end))) => {
                if self.ends() || !room {
                    return self.refuse_request(slot, Refusal::Unavailable);
                }
                if let Err(refusal) = self.forwarded(slot, upgrade.told) {
                    return self.refuse_request(slot, refusal);
                }
                self.links.stats.websockets.add(1);
                self.links.append_raw(slot, |out| upgrade.put_response(out));
                self.links.slots.at(slot).wire.change_kind(Wire::WEBSOCKET);
                if upgrade.token.is_some() {
                    self.links.remember(slot, |wrapping| wrapping.token = upgrade.token);
                    self.bound_partials(slot);
                    if self.links.slots.at(slot).phase != Phase::Handshake {
                        return;
                    }
                }
                self.received_messages(slot, &mut head[end..]);
            }
            Ok(Some((request, _))) => {
                let well = request == Request::Healthz || (room && self.serving && self.drain.is_none());
                self.links.append_raw(slot, |out| upgrade::put_health(well, out));
                self.close(slot, CloseReason::HttpAnswered);
            }
            Err(refusal) => self.refuse_request(slot, refusal),
        }
    }

    fn refuse_request(&mut self, slot: u32, refusal: Refusal) {
        self.links.stats.count_request_refused(refusal);
        self.links.append_raw(slot, |out| refusal.put_response(out));
        self.close(slot, CloseReason::HttpRefused);
    }

    /// Bytes of a WebSocket: the frames in its messages are handled like those of a native connection, control frames
    /// are answered.
    pub(crate) fn received_messages(&mut self, slot: u32, bytes: &mut [u8]) {
        // Where nothing is remembered and nothing will have to be, nothing is allocated.
        let mut fresh = Inbound::default();
        let mut wrapping = self.links.take_wrapping(slot);
        let inbound = wrapping.as_mut().map_or(&mut fresh, |wrapping| &mut wrapping.inbound);
        let (mut pongs, mut controls) = (Vec::new(), 0);
        let taken = inbound.take(Role::Server, bytes, |control| {
            // A Close is the end, and no work of this turn.
            controls += u32::from(!matches!(control, Control::Close(_)));
            if let Control::Ping(payload) = control {
                put_control(&mut pongs, Opcode::Pong, payload);
            }
        });
        if wrapping.is_none() && !fresh.is_idle() {
            wrapping = Some(Box::new(Wrapping { inbound: fresh, ..Wrapping::default() }));
        }
        if let Some(wrapping) = wrapping {
            self.links.put_wrapping(slot, wrapping);
        }
        if controls > 0 || taken.native > 0 {
            self.links.slots.at(slot).wire.clear(Wire::PINGED);
        }
        if controls > 0 {
            self.took_controls(slot, controls, &pongs);
        }
        // What stands between native frames takes its part of a turn too: else fragments without content would cost
        // nothing.
        let between = (bytes.len() - taken.native) / UNIT_BYTES;
        if between > 0 {
            self.links.spend_units(slot, between as u32);
            if self.links.allowance(slot) == 0 {
                self.links.fall_behind(slot, Flow::On);
            }
        }
        if taken.native > 0 {
            self.take_in(slot, &bytes[..taken.native]);
        }
        if taken.end.is_some() {
            self.end_wrapped(slot);
        }
    }

    /// Control frames are life, and take their part of the turn and of the rate as frames do. Each Ping is answered
    /// though, whatever the rate: a client may take a Ping that is not for a broken connection. What does not fit the
    /// outbox ends the connection as too slow.
    fn took_controls(&mut self, slot: u32, controls: u32, pongs: &[u8]) {
        self.links.spend(slot, controls, controls.into());
        if self.links.limits.frames_per_sec != 0 {
            self.charge_frames(slot, controls);
        }
        if !pongs.is_empty() {
            self.queue_pongs(slot, pongs);
        }
        if self.links.allowance(slot) == 0 {
            self.links.fall_behind(slot, Flow::On);
        }
    }

    fn queue_pongs(&mut self, slot: u32, pongs: &[u8]) {
        let conn = self.links.slots.at(slot);
        // A login that waits for the application is read on until something has come behind it, and Pings are nothing.
        if conn.phase != Phase::Open && conn.outbox_bytes() > PONGS_BEFORE_LOGIN_BYTES_MAX {
            self.links.stats.limit_outbox.add(1);
            self.links.overflowed.push(slot);
            return;
        }
        if !matches!(conn.phase, Phase::Handshake | Phase::Open) {
            return self.links.append_raw(slot, |out| out.extend_from_slice(pongs));
        }
        conn.wire.set(Wire::RAW);
        self.links.reply(slot, |out| put_raw(out, |out| out.extend_from_slice(pongs)));
        self.links.pause_if_full(slot);
    }

    /// Ends a connection whose messages have ended, once all frames before that have had their turn.
    pub(crate) fn end_wrapped(&mut self, slot: u32) {
        let conn = self.links.slots.at(slot);
        let waits = conn.flags.has(ConnFlags::BEHIND) || !matches!(conn.phase, Phase::Handshake | Phase::Open);
        if waits {
            return;
        }
        match self.links.wrapped_end(slot) {
            None => {
                if let Some(end) = self.links.tls_end(slot) {
                    self.end_tls(slot, end);
                }
            }
            Some(End::Closed(_)) => self.close(slot, CloseReason::PeerClosed),
            Some(End::Violated(_)) => self.close(slot, CloseReason::WebSocketViolation),
            Some(End::FrameUnfinished) => self.close(slot, CloseReason::MalformedFrame),
        }
    }

    /// Queues the last words of a connection that is not native, behind its BYE if there is one.
    pub(crate) fn say_goodbye(&mut self, slot: u32, reason: CloseReason, text: &str) {
        if self.links.slots.at(slot).wire.kind() == Wire::HTTP {
            return self.say_goodbye_to_request(slot, reason);
        }
        let end = self.links.wrapped_end(slot);
        let (code, text) = match (reason, end) {
            (CloseReason::PeerClosed, Some(End::Closed(close))) => (close.code, ""),
            // The peer has gone without a word, or cannot be told any.
            (CloseReason::PeerClosed | CloseReason::PeerReset, _) => return,
            (CloseReason::WebSocketViolation, Some(End::Violated(violation))) => {
                (Some(violation.close_code()), violation.text())
            }
            _ => match reason.code() {
                Some(code) => (Some(close_code::BYE_BASE + code.as_u16()), text),
                None => (Some(close_code::NORMAL), ""),
            },
        };
        self.links.append_raw(slot, |out| put_close(out, code, text));
    }

    /// A request that was not answered is, unless its sender has gone.
    fn say_goodbye_to_request(&mut self, slot: u32, reason: CloseReason) {
        let refusal = match reason {
            CloseReason::LoginTimeout => Refusal::Timeout,
            _ if reason.code().is_some() => Refusal::Unavailable,
            _ => return,
        };
        self.links.stats.count_request_refused(refusal);
        self.links.append_raw(slot, |out| refusal.put_response(out));
    }

    /// Asks a silent client for a sign of life.
    pub(crate) fn ping_wrapped(&mut self, slot: u32) {
        self.links.stats.websocket_pings.add(1);
        self.links.slots.at(slot).wire.set(Wire::PINGED);
        self.links.append_raw(slot, |out| put_control(out, Opcode::Ping, b""));
    }
}
