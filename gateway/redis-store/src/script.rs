//! The script of an inbox: what it is asked, and what it answers.

use std::sync::Arc;
use trunkline_router::redis::Value;
use trunkline_store::{
    DeviceInfo, Inbox, Limits, Opened, Page, Record, Refusal, Reply, Request, STAMP_COUNTER_BITS, WhenFull, stamp_at,
};

/// Its source.
pub(crate) const SOURCE: &str = include_str!("inbox.lua");

/// Bytes of a stored message before its payload: sender, id and flags.
const HEAD_BYTES: usize = 17;
/// Longest name of a device, bytes; the rest is cut.
const DEVICE_NAME_BYTES_MAX: usize = 64;
/// How much longer the keys of a user are kept than what is in them may matter, milliseconds.
const SLACK_MS: u64 = 24 * 3_600 * 1_000;

/// Redis takes no time that is far beyond its own.
const TTL_MS_MAX: u64 = 100 * 365 * 24 * 3_600 * 1_000;

/// The keys of a user: one hash slot.
pub(crate) fn keys(user: u64) -> [String; 2] {
    [format!("tl:inbox:{{{user}}}"), format!("tl:inbox:{{{user}}}:m")]
}

/// A stamp as the id of a stream.
pub(crate) fn id(stamp: u64) -> String {
    let counter = stamp & ((1 << STAMP_COUNTER_BITS) - 1);
    format!("{}-{counter}", stamp >> STAMP_COUNTER_BITS)
}

/// The stamp that an id stands for; 0 for what is none.
pub(crate) fn stamp(id: &str) -> u64 {
    let parts = id.split_once('-').and_then(|(ms, counter)| Some((ms.parse().ok()?, counter.parse::<u64>().ok()?)));
    parts.map_or(0, |(ms, counter)| stamp_at(ms).saturating_add(counter))
}

/// After which time without a write the keys of a user end by themselves.
pub(crate) fn ttl_ms(limits: &Limits) -> u64 {
    limits.message_age_ms_max.max(limits.device_unseen_ms_max).saturating_add(SLACK_MS).min(TTL_MS_MAX)
}

/// What every call begins with. `now_ms`: 0 for the time of the server; `ttl_ms`: as of [`ttl_ms`].
pub(crate) fn preamble(limits: &Limits, now_ms: u64, ttl_ms: u64) -> Vec<Value> {
    let drops = u64::from(limits.when_full == WhenFull::DropOldest);
    [
        now_ms,
        limits.user_messages_max.into(),
        limits.user_bytes_max.into(),
        drops,
        limits.message_age_ms_max,
        limits.device_unseen_ms_max,
        limits.devices_per_user_max.max(1).into(),
        limits.retry_window.into(),
        ttl_ms,
    ]
    .map(|number| number.to_string().into())
    .into()
}

/// The part of a device's name that counts.
pub(crate) fn device_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(DEVICE_NAME_BYTES_MAX)]
}

pub(crate) fn bit(set: bool) -> Value {
    if set { "1" } else { "0" }.into()
}

/// A message as it is stored.
pub(crate) fn message(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + record.payload.len());
    bytes.extend_from_slice(&record.from.to_be_bytes());
    bytes.extend_from_slice(&record.id.to_be_bytes());
    bytes.push(record.flags);
    bytes.extend_from_slice(&record.payload);
    bytes
}

/// The message of a stored one.
pub(crate) fn record(stamp: u64, bytes: &[u8]) -> Option<Record> {
    let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let word = |at: usize| head[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Some(Record { stamp, from: word(0), id: word(8), flags: head[16], payload: Arc::from(payload) })
}

/// Adds a request that is about a user, of an asker in that view.
pub(crate) fn put(args: &mut Vec<Value>, request: &Request, view: u64, limits: &Limits) {
    // The view to claim in; empty for none.
    let claim = |claims: bool| Value::from(if claims { view.to_string() } else { String::new() });
    match request {
        Request::Append { record, retry, .. } => {
            args.extend(["append".into(), view.to_string().into(), id(record.stamp).into()]);
            // Messages up to that one are not looked at; nothing is looked for without.
            args.push(retry.map_or_else(String::new, id).into());
            args.push(message(record)[..].into());
        }
        Request::Open { device, ephemeral, claims, .. } => {
            args.extend(["open".into(), device_name(device).into(), bit(*ephemeral), claim(*claims)]);
        }
        Request::Read { device, device_epoch, after, since_ms, limit, bytes_max, .. } => {
            let after = (*after).max(stamp_at(*since_ms).saturating_sub(1));
            let limit = (*limit).clamp(1, limits.page_max);
            args.extend(["read".into(), device.to_string().into(), device_epoch.to_string().into()]);
            args.extend([id(after).into(), limit.to_string().into(), bytes_max.to_string().into()]);
        }
        Request::Cursor { device, device_epoch, stamp, .. } => {
            args.extend(["cursor".into(), device.to_string().into(), device_epoch.to_string().into()]);
            args.push(id(*stamp).into());
        }
        Request::Seen { device, device_epoch, .. } => {
            args.extend(["cursor".into(), device.to_string().into(), device_epoch.to_string().into(), "0-0".into()]);
        }
        Request::Gap { stamp, .. } => args.extend(["gap".into(), id(*stamp).into()]),
        Request::Claim { .. } => args.extend(["claim".into(), claim(true)]),
        Request::LogOut { device, number, .. } => {
            args.extend(["logout".into(), device_name(device).into(), number.to_string().into()]);
        }
        Request::Devices { .. } => args.push("devices".into()),
        Request::Forget { device, device_epoch, .. } => {
            args.extend(["forget".into(), device.to_string().into(), device_epoch.to_string().into()]);
        }
        Request::Delete { .. } => args.push("delete".into()),
        Request::Inspect { claims, .. } => args.extend(["inspect".into(), claim(*claims)]),
        // They are of no user.
        Request::View { .. } | Request::Group { .. } => {}
    }
}

/// What a call came to.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// Something was written.
    pub(crate) wrote: bool,
    /// Messages acknowledged, expired and dropped, devices forgotten, and positions of devices that are not known.
    pub(crate) counts: [u64; 5],
    /// One for each request; `None` where there is no answer.
    pub(crate) replies: Vec<Option<Reply>>,
}

/// Reads the answer to a call; `None` if it makes no sense.
pub(crate) fn read(answer: Value, store_epoch: u64) -> Option<Answered> {
    let mut parts = list(answer)?.into_iter();
    let wrote = parts.next()?.as_u64()? == 1;
    let mut counts = [0; 5];
    for count in &mut counts {
        *count = parts.next()?.as_u64()?;
    }
    let replies = list(parts.next()?)?.into_iter().map(|answer| reply(answer, store_epoch));
    Some(Answered { wrote, counts, replies: replies.collect::<Option<_>>()? })
}

pub(crate) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// One answer, in an outer `None` if it makes no sense.
fn reply(answer: Value, store_epoch: u64) -> Option<Option<Reply>> {
    let mut parts = list(answer)?.into_iter();
    let kind = parts.next()?.as_string()?;
    let mut next = || parts.next();
    let position = |value: Value| value.as_string().map(|id| stamp(&id));
    Some(Some(match kind.as_str() {
        "none" => return Some(None),
        "done" => Reply::Done,
        "stale" => Reply::Refused(Refusal::Stale),
        "messages" => Reply::Refused(Refusal::UserMessages),
        "oom" => Reply::Refused(Refusal::StoreFull),
        "bytes" => Reply::Refused(Refusal::UserBytes),
        "stored" => {
            Reply::Stored { stamp: position(next()?)?, duplicate: next()?.as_u64()? == 1, before: position(next()?)? }
        }
        "opened" => Reply::Opened(Opened {
            known: next()?.as_u64()? == 1,
            device: u16::try_from(next()?.as_u64()?).ok()?,
            device_epoch: u32::try_from(next()?.as_u64()?).ok()?,
            store_epoch,
            cursor: position(next()?)?,
            floor: position(next()?)?,
            last: position(next()?)?,
            pending: next()?.as_u64()?,
            devices: u32::try_from(next()?.as_u64()?).ok()?,
            unsure_claim: false,
        }),
        "page" => {
            let (floor, last) = (position(next()?)?, position(next()?)?);
            let (complete, truncated) = (next()?.as_u64()? == 1, next()?.as_u64()? == 1);
            let records = list(next()?)?.into_iter().map(|entry| {
                let [at, bytes] = <[Value; 2]>::try_from(list(entry)?).ok()?;
                record(position(at)?, bytes.as_bytes()?)
            });
            Reply::Page(Page { records: records.collect::<Option<_>>()?, floor, last, complete, truncated })
        }
        "devices" => {
            let devices = list(next()?)?.into_iter().map(|device| {
                let mut parts = list(device)?.into_iter();
                let mut next = || parts.next();
                Some(DeviceInfo {
                    device: u16::try_from(next()?.as_u64()?).ok()?,
                    name: next()?.as_string()?.into(),
                    cursor: position(next()?)?,
                    seen_ms: next()?.as_u64()?,
                    device_epoch: u32::try_from(next()?.as_u64()?).ok()?,
                })
            });
            Reply::Devices(devices.collect::<Option<_>>()?)
        }
        "inspected" => Reply::Inspected(Inbox {
            messages: next()?.as_u64()?,
            bytes: next()?.as_u64()?,
            floor: position(next()?)?,
            last: position(next()?)?,
            devices: u32::try_from(next()?.as_u64()?).ok()?,
        }),
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_id_of_a_stream_and_back() {
        for at in [0, 1, (1 << 20) - 1, 1 << 20, stamp_at(1_760_000_000_123) + 77, u64::MAX] {
            assert_eq!(stamp(&id(at)), at);
        }
        assert_eq!(id(stamp_at(1_760_000_000_123) + 77), "1760000000123-77");
        assert_eq!((stamp(""), stamp("x-1"), stamp("5")), (0, 0, 0));
    }

    #[test]
    fn a_message_is_stored_with_its_sender_and_its_number() {
        let one = Record { stamp: 9, from: u64::MAX, id: 7, flags: 3, payload: Arc::from(&b"hello"[..]) };
        assert_eq!(record(9, &message(&one)), Some(one));
        assert_eq!(record(9, &[0; HEAD_BYTES - 1]), None);
        assert_eq!(record(9, &[0; HEAD_BYTES]).map(|record| record.payload.len()), Some(0));
    }
}
