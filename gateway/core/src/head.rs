//! What a message says besides its payload: the one device it is for, and when it is of no use any more.
//!
//! Such a message has [`HEADED`] among its further flags, and its payload begins with a [`MessageHead`] all the way to
//! the recipient's home, through mailboxes, across the mesh and while it is parked. The home takes the head off.
//! Only pushes of services have one. What is kept in the store has [`STORED_UNTIL`] in the flags of its record and its
//! end in front of the payload, see [`until`].

use trunkline_proto::{DEVICE_BYTES_MAX, flags};
use trunkline_router_core::presence::DEFAULT_DEVICE;
use trunkline_store::{Payload, Record};

/// Bit of a message's further flags: its payload begins with a [`MessageHead`]. No flag of a client's frame.
pub const HEADED: u8 = 0x80;
const _: () = assert!(HEADED & (flags::ACK | flags::NO_STORE | flags::RETRY) == 0);

/// Bit of the flags of a stored message: its payload begins with the second in which it ends, 4 bytes.
pub(crate) const STORED_UNTIL: u8 = 0x01;
/// Bytes in front of the payload of such a message.
pub const UNTIL_BYTES: usize = 4;
/// Bytes that a head takes at most.
pub(crate) const HEAD_BYTES_MAX: usize = UNTIL_BYTES + 1 + DEVICE_BYTES_MAX;
/// In place of a device's length: the message is for all devices.
const ALL_DEVICES: u8 = u8::MAX;
const _: () = assert!(DEVICE_BYTES_MAX < ALL_DEVICES as usize);

/// What goes before the payload of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageHead<'a> {
    /// It is over when this second since the Unix epoch begins; 0 for never.
    pub until_s: u32,
    /// The only device it is for, at most [`DEVICE_BYTES_MAX`] bytes; empty is the default device.
    pub device: Option<&'a str>,
}

impl<'a> MessageHead<'a> {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == MessageHead::default()
    }

    /// Appends it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.until_s.to_be_bytes());
        match self.device {
            None => out.push(ALL_DEVICES),
            Some(device) => {
                debug_assert!(device.len() <= DEVICE_BYTES_MAX);
                out.push(device.len() as u8);
                out.extend_from_slice(device.as_bytes());
            }
        }
    }

    /// A payload behind it.
    pub fn before(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_MAX + payload.len());
        self.encode(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Takes it off a payload; `None` if that does not begin with one.
    pub fn split(payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (until, rest) = payload.split_first_chunk()?;
        let (len, rest) = rest.split_first()?;
        let until_s = u32::from_be_bytes(*until);
        if *len == ALL_DEVICES {
            return Some((MessageHead { until_s, device: None }, rest));
        }
        let (device, rest) = rest.split_at_checked((*len).into())?;
        let device = std::str::from_utf8(device).ok().filter(|device| device.len() <= DEVICE_BYTES_MAX)?;
        Some((MessageHead { until_s, device: Some(device) }, rest))
    }
}

/// The name of a device as presence has it.
pub(crate) fn device_name(device: &str) -> &str {
    if device.is_empty() { DEFAULT_DEVICE } else { device }
}

/// Whether what ends then is over.
pub(crate) fn is_over(until_s: u32, now_ms: u64) -> bool {
    until_s != 0 && u64::from(until_s) * 1_000 <= now_ms
}

/// The second in which something ends that has so many seconds from now on: never before they are over.
pub fn until(ttl_secs: u32, now_ms: u64) -> u32 {
    u32::try_from(now_ms.div_ceil(1_000)).unwrap_or(u32::MAX).saturating_add(ttl_secs)
}

/// What of a stored message is for devices; `None` once it is over.
pub(crate) fn stored_payload(record: &Record, now_ms: u64) -> Option<&[u8]> {
    if record.flags & STORED_UNTIL == 0 {
        return Some(&record.payload);
    }
    // It was written with that by a node of this cluster.
    let (until, payload) = record.payload.split_first_chunk::<UNTIL_BYTES>()?;
    (!is_over(u32::from_be_bytes(*until), now_ms)).then_some(payload)
}

/// What is stored of a message that ends then: the flags of its record, and its payload.
pub(crate) fn to_store(until_s: u32, payload: &[u8]) -> (u8, Payload) {
    if until_s == 0 {
        return (0, payload.into());
    }
    (STORED_UNTIL, [&until_s.to_be_bytes(), payload].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_comes_off_as_it_was_put_before_a_payload() {
        for device in [None, Some(""), Some("phone"), Some(&*"x".repeat(DEVICE_BYTES_MAX))] {
            for until_s in [0, 1, u32::MAX] {
                let head = MessageHead { until_s, device };
                let mut bytes = Vec::new();
                head.encode(&mut bytes);
                assert!(bytes.len() <= HEAD_BYTES_MAX);
                bytes.extend_from_slice(b"payload");
                assert_eq!(MessageHead::split(&bytes), Some((head, &b"payload"[..])));
                assert_eq!(head.is_empty(), until_s == 0 && device.is_none());
            }
        }
    }

    #[test]
    fn a_message_lives_as_long_as_it_was_given_and_a_second_more_at_most() {
        for now_ms in [0, 1, 999, 1_000, 1_234_567_890_123] {
            let end = until(5, now_ms);
            assert!(!is_over(end, now_ms + 4_999) && is_over(end, now_ms + 6_000), "{now_ms}");
        }
        assert!(!is_over(0, u64::MAX), "without an end it has none");
        assert_eq!(until(u32::MAX, u64::MAX), u32::MAX);
    }

    #[test]
    fn what_is_stored_with_an_end_is_for_devices_until_then() {
        let record = |until_s| {
            let (flags, payload) = to_store(until_s, b"hi");
            Record { stamp: 1, from: 2, id: 3, flags, payload }
        };
        assert_eq!(stored_payload(&record(0), u64::MAX), Some(&b"hi"[..]));
        assert_eq!(stored_payload(&record(7), 6_999), Some(&b"hi"[..]));
        assert_eq!(stored_payload(&record(7), 7_000), None);
        let cut = Record { payload: (*b"hi").into(), ..record(7) };
        assert_eq!(stored_payload(&cut, 0), None, "damaged: nobody gets it");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some((head, payload)) = MessageHead::split(&bytes) {
                let mut again = Vec::new();
                head.encode(&mut again);
                again.extend_from_slice(payload);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
