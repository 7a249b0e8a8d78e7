//! Numbers and states as bytes: little-endian, fixed length. A reader gives none where bytes are missing or make no
//! sense; nothing read from disk panics.

use crate::limits::Amount;
use crate::state::{Device, State};

/// Reads from bytes.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Appends numbers to bytes.
pub(crate) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}

/// How much waits for a user, and the end of the log. It is kept in memory for each user for whom something waits, so
/// its size counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The last stamp of the log.
    pub(crate) last: u64,
    /// Messages above the floor.
    pub(crate) messages: u32,
    /// Their bytes, as in the limits.
    pub(crate) bytes: u32,
}

const _: () = assert!(size_of::<(u64, Totals)>() == 24);

impl Totals {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(self.last);
        out.put_u32(self.messages);
        out.put_u32(self.bytes);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Totals { last: reader.u64()?, messages: reader.u32()?, bytes: reader.u32()? })
    }

    /// Another message.
    pub(crate) fn add(&mut self, stamp: u64, bytes: usize) {
        self.last = self.last.max(stamp);
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes as u32);
    }

    /// Messages have gone.
    pub(crate) fn subtract(&mut self, gone: Amount) {
        self.messages = self.messages.saturating_sub(gone.messages as u32);
        self.bytes = self.bytes.saturating_sub(gone.bytes as u32);
    }
}

impl State {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.floor);
        out.put_u64(self.gap);
        out.put_u16(self.devices.len() as u16);
        for device in &self.devices {
            out.put_u16(device.number);
            out.put_u32(device.epoch);
            out.put_u64(device.cursor);
            out.put_u64(device.seen_ms);
            out.put_u8(device.name.len() as u8);
            out.extend_from_slice(device.name.as_bytes());
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let (floor, gap, count) = (reader.u64()?, reader.u64()?, reader.u16()?);
        let mut devices = Vec::with_capacity(usize::from(count.min(64)));
        for _ in 0..count {
            let (number, epoch, cursor, seen_ms) = (reader.u16()?, reader.u32()?, reader.u64()?, reader.u64()?);
            let len = usize::from(reader.u8()?);
            let name = std::str::from_utf8(reader.bytes(len)?).ok()?.into();
            devices.push(Device { number, epoch, cursor, seen_ms, name, epoch_before: 0 });
        }
        Some(State { floor, gap, devices })
    }
}
