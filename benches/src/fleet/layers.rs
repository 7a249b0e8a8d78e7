//! What lies between the frames of a connection and its socket: TLS, and WebSockets.

use std::io;

use trunkline_proto::websocket::{Control, End as StreamEnd, Inbound, Opcode, Role, put_frame};
use trunkline_tls::{
    open::{End as RecordsEnd, open_with},
    record::{Bounds, ContentType},
    seal::{seal_owed, seal_records},
};

use super::{Arm, Driver, End, lane::Lane, ring_failed};
use crate::{
    clock::now_ns,
    failure::Failure,
    tls::{Greeting, Handshake, Progress, is_ticket},
    transport::Wire,
    websocket,
};

impl Lane {
    /// Whatever frames were staged from `start` on belong to `slot`.
    pub(super) fn staged_since(&mut self, slot: u32, start: usize) {
        if self.wire != Wire::Native {
            let staged = self.ring.staged();
            self.scratch.clear();
            self.scratch.extend(staged.drain(start..));
            match self.wire {
                Wire::OtherWebSocket(_) => self.masks.put_whole(&self.scratch, staged),
                _ => self.masks.put_each(&self.scratch, staged),
            }
        }
        self.sealed_since(slot, start);
    }

    /// Whatever was staged from `start` on belongs to `slot` and goes out as it is; keeps a connection's bytes
    /// together.
    pub(super) fn sealed_since(&mut self, slot: u32, start: usize) {
        let staged = self.ring.staged();
        let added = staged.len() - start;
        let connection = &mut self.connections[slot as usize];
        if added == 0 || connection.closed {
            return;
        }
        let (earlier, earlier_len) = (connection.start as usize, connection.len as usize);
        if earlier_len == 0 {
            if !connection.unblocked {
                self.dirty.push(slot);
            }
            connection.start = start as u32;
        } else if earlier + earlier_len != start {
            connection.start = staged.len() as u32;
            staged.extend_from_within(earlier..earlier + earlier_len);
            staged.extend_from_within(start..start + added);
        }
        connection.len += added as u32;
    }

    /// A connection is there, and begins with a handshake of TLS.
    pub(super) fn begin_handshake(&mut self, base: u32, slot: u32, driver: &mut impl Driver) -> Result<(), Failure> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let greeting = tls.client.greeting();
        let handshake = Handshake::new(&tls.client).map_err(Failure::Setup)?;
        let connection = &mut self.connections[slot as usize];
        connection.shaking = Some(Box::new(handshake));
        connection.awaited = Some(greeting).filter(|greeting| *greeting != Greeting::None);
        self.records_received(base, slot, Vec::new(), false, driver)
    }

    /// Bytes of TLS: those of a handshake, or records, and what was there of the first before. What records hold is
    /// handed on.
    pub(super) fn records_received(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        if let Some(greeting) = self.connections[slot as usize].awaited {
            let Some(behind) = greeting.behind(&bytes) else {
                self.connections[slot as usize].record = bytes;
                return self.ring.receive_one(slot).map_err(ring_failed);
            };
            bytes = behind.to_vec();
            self.connections[slot as usize].awaited = None;
        }
        if let Some(handshake) = &mut self.connections[slot as usize].shaking {
            let start = self.ring.staged().len();
            let progress = handshake.step(&mut bytes, self.ring.staged());
            self.sealed_since(slot, start);
            let connection = &mut self.connections[slot as usize];
            match progress {
                Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
                Ok(Progress::Waits) => {
                    connection.record = bytes;
                    return self.ring.receive_one(slot).map_err(ring_failed);
                }
                Ok(Progress::Done(session, taker)) => {
                    connection.shaking = None;
                    connection.taker = taker;
                    // What was said so far is sent as it is, what follows is sealed.
                    connection.raw = connection.len;
                    if let Some(tls) = &mut self.tls {
                        tls.sessions.put(slot, &session);
                    }
                    self.begin(base, slot, driver)?;
                    // From here on it is armed.
                    return if bytes.is_empty() {
                        Ok(())
                    } else {
                        self.records_opened(base, slot, bytes, true, driver)
                    };
                }
            }
        }
        self.records_opened(base, slot, bytes, armed, driver)
    }

    /// Opens records and hands on what they hold.
    pub(super) fn records_opened(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        const NS_PER_MINUTE: u64 = 60_000_000_000;
        let minute = (now_ns() / NS_PER_MINUTE) as u32;
        let connection = &mut self.connections[slot as usize];
        let Some(mut view) = self.tls.as_mut().and_then(|tls| tls.sessions.view(slot)) else { return Ok(()) };
        let taker = &mut connection.taker;
        let opened = open_with(&mut view, &Bounds::STANDARD, &mut bytes, minute, |content| {
            let is_ticket = is_ticket(content);
            if let (true, Some(mut taker)) = (is_ticket, taker.take()) {
                taker.take(content);
            }
            is_ticket
        });
        if opened.taken < bytes.len() {
            connection.record = bytes[opened.taken..].to_vec();
        }
        bytes.truncate(opened.data);
        let armed = armed || opened.end.is_some();
        let begun = connection.partial.len();
        let mut whole = std::mem::take(&mut connection.partial);
        whole.append(&mut bytes);
        match self.wire {
            Wire::Native => {
                let (now_ns, start) = (now_ns(), self.ring.staged().len());
                let taken = driver.received(base + slot, &whole, now_ns, self.ring.staged())?;
                self.staged_since(slot, start);
                self.connections[slot as usize].partial = whole[taken.bytes..].to_vec();
                self.receive_on(slot, armed, taken.frames)?;
            }
            Wire::WebSocket | Wire::WebSocketEcho | Wire::OtherWebSocket(_) => {
                self.messages_received(base, slot, whole, begun, armed, driver)?;
            }
        }
        match opened.end {
            None => Ok(()),
            Some(_) if self.connections[slot as usize].closed => Ok(()),
            Some(RecordsEnd::Closed) => self.ended(base, slot, End::Closed, driver),
            Some(end) => {
                let error = io::Error::other(format!("its records ended: {end:?}"));
                self.ended(base, slot, End::Broken(error), driver)
            }
        }
    }

    /// The same for bytes of WebSockets behind `begun` ones that were there before: what their messages hold is handed
    /// on.
    pub(super) fn messages_received(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        begun: usize,
        mut armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        let now_ns = now_ns();
        let mut wants_more = true;
        // Native frames of which only the beginning has come are parted from what is still in messages.
        let mut messages_at = begun;
        if self.wire.subprotocol().is_some() && !self.connections[slot as usize].upgraded {
            match websocket::accepted(&bytes) {
                Ok(Some(length)) => {
                    bytes.drain(..length);
                    messages_at = 0;
                    let start = self.ring.staged().len();
                    let arm = driver.connected(base + slot, self.ring.staged())?;
                    self.staged_since(slot, start);
                    let connection = &mut self.connections[slot as usize];
                    connection.upgraded = true;
                    connection.always = arm == Arm::Always;
                    wants_more = arm != Arm::Nothing;
                    armed = false;
                }
                Ok(None) => {
                    self.connections[slot as usize].partial = bytes;
                    return if armed { Ok(()) } else { self.ring.receive_one(slot).map_err(ring_failed) };
                }
                Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
            }
        }
        let native = match self.wire {
            Wire::OtherWebSocket(_) => self.take_other_messages(slot, &mut bytes[messages_at..]),
            _ => self.take_messages(slot, &mut bytes[messages_at..]),
        };
        let native = match native {
            Ok(native) => native,
            Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
        };
        bytes.truncate(messages_at + native);
        let start = self.ring.staged().len();
        let taken = driver.received(base + slot, &bytes, now_ns, self.ring.staged())?;
        self.staged_since(slot, start);
        bytes.drain(..taken.bytes);
        let connection = &mut self.connections[slot as usize];
        if !bytes.is_empty() {
            connection.partial = bytes;
        }
        self.receive_on(slot, armed || !wants_more, taken.frames)
    }

    /// Takes native frames out of messages, to the front of `bytes`, and answers Pings. Returns their bytes, or why the
    /// connection is to end.
    pub(super) fn take_messages(&mut self, slot: u32, bytes: &mut [u8]) -> Result<usize, String> {
        let role = if self.wire == Wire::WebSocketEcho { Role::Server } else { Role::Client };
        let mut inbound =
            self.connections[slot as usize].inbound.take().map_or_else(Inbound::default, |inbound| *inbound);
        let pongs_at = self.ring.staged().len();
        let (staged, masks) = (self.ring.staged(), &mut self.masks);
        let unsealed = inbound.take(role, bytes, |control| {
            if let Control::Ping(payload) = control {
                put_frame(staged, Opcode::Pong, true, Some(masks.next()), payload);
            }
        });
        self.sealed_since(slot, pongs_at);
        if !inbound.is_idle() {
            self.connections[slot as usize].inbound = Some(Box::new(inbound));
        }
        match unsealed.end {
            Some(StreamEnd::Violated(_) | StreamEnd::FrameUnfinished) => {
                Err(format!("the server's WebSocket is none: {:?}", unsealed.end))
            }
            Some(StreamEnd::Closed(_)) | None => Ok(unsealed.native),
        }
    }

    /// The same of another server, whose messages hold something else.
    pub(super) fn take_other_messages(&mut self, slot: u32, bytes: &mut [u8]) -> Result<usize, String> {
        let mut decoder = self.connections[slot as usize].decoder.take().unwrap_or_default();
        let pongs_at = self.ring.staged().len();
        let (staged, masks) = (self.ring.staged(), &mut self.masks);
        let taken = websocket::take_other(&mut decoder, bytes, |control| {
            if let Control::Ping(payload) = control {
                put_frame(staged, Opcode::Pong, true, Some(masks.next()), payload);
            }
        });
        self.sealed_since(slot, pongs_at);
        if !decoder.is_idle() {
            self.connections[slot as usize].decoder = Some(decoder);
        }
        taken
    }

    /// Seals what the connections say in this turn: one record for each, unless it is long.
    pub(super) fn seal(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        for &slot in &self.dirty {
            let connection = &mut self.connections[slot as usize];
            let (start, len) = (connection.start as usize, connection.len as usize);
            // During the handshake there are no keys, and nothing is sealed.
            let Some(mut view) = tls.sessions.view(slot).filter(|_| len > 0) else { continue };
            let data = start + std::mem::take(&mut connection.raw) as usize;
            let staged = self.ring.staged();
            let sealed = staged.len();
            staged.extend_from_within(start..data);
            seal_owed(&mut view, &Bounds::STANDARD, staged);
            let from = staged.len();
            staged.extend_from_within(data..start + len);
            seal_records(&mut view, ContentType::Data, staged, from);
            connection.start = sealed as u32;
            connection.len = (staged.len() - sealed) as u32;
        }
    }
}
