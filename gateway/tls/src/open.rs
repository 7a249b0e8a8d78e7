//! Opening records: what came is decrypted where it lies, and the data of all records moved together to the front.

use crate::alert::Alert;
use crate::keys::{Facts, View, nonce};
use crate::record::{Bounds, ContentType, HEADER_BYTES, RECORD_BYTES_MAX, RECORD_VERSION, whole_record};
use crate::suite::{IV_BYTES, Suite, TAG_BYTES, Version};
use aws_lc_rs::aead::{Aad, LessSafeKey};
use std::ops::Range;

/// Bytes of the nonce that stand in a record of TLS 1.2 with AES-GCM (RFC 5288, section 3).
pub const EXPLICIT_NONCE_BYTES: usize = 8;
/// A KeyUpdate up to its last byte, which says whether one is asked for in return: type and length.
const UPDATE_HEAD: [u8; 4] = [24, 0, 0, 1];
/// How a client of TLS 1.2 asks for another handshake.
const CLIENT_HELLO: u8 = 1;
const ALERT_WARNING: u8 = 1;

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of data, at the front now.
    pub data: usize,
    /// Bytes that were taken; behind them stands a record of which the rest has not come. All, where it has ended.
    pub taken: usize,
    /// Keys the peer has changed.
    pub updates: u32,
    /// How it has ended, if it has.
    pub end: Option<End>,
}

/// How the records of a peer end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It says that no more will come.
    Closed,
    /// It gives up, and says why.
    Alerted(Alert),
    /// It broke the protocol, and is told so.
    Violated(Alert),
    /// The keys of TLS 1.2 have been used as long as they may be.
    WornOut,
}

/// Opens all whole records that `bytes` begins with. `minute` is any clock's.
pub fn open(view: &mut View<'_>, bounds: &Bounds, bytes: &mut [u8], minute: u32) -> Opened {
    open_with(view, bounds, bytes, minute, |_| false)
}

/// The same. `other` gets what a record of a handshake holds after the handshake, before that is taken for a KeyUpdate,
/// and tells whether it was something else that is welcome: to a client its server's tickets are, whole in one record.
pub fn open_with(
    view: &mut View<'_>,
    bounds: &Bounds,
    bytes: &mut [u8],
    minute: u32,
    mut other: impl FnMut(&[u8]) -> bool,
) -> Opened {
    let mut opened = Opened { data: 0, taken: 0, updates: 0, end: None };
    let mut cipher = None;
    let end = loop {
        let length = match whole_record(&bytes[opened.taken..]) {
            Ok(Some(length)) => length,
            Ok(None) => return opened,
            Err(alert) => break End::Violated(alert),
        };
        let record = opened.taken..opened.taken + length;
        let key = cipher.get_or_insert_with(|| view.rx.cipher(view.suite));
        let (kind, content) = match open_record(view, bounds, key, bytes, record.clone()) {
            Ok(content) => content,
            Err(end) => break end,
        };
        opened.taken = record.end;
        let empty = content.is_empty();
        let told = match kind {
            _ if kind != ContentType::Handshake && view.facts.of_update > 0 => {
                Err(End::Violated(Alert::UnexpectedMessage))
            }
            ContentType::Data => {
                bytes.copy_within(content.clone(), opened.data);
                opened.data += content.len();
                Ok(!empty)
            }
            ContentType::Handshake if view.facts.of_update == 0 && other(&bytes[content.clone()]) => Ok(true),
            ContentType::Handshake => match handshake(view, bounds, &bytes[content], minute) {
                Ok(true) => {
                    view.rx.update(view.suite);
                    cipher = None;
                    opened.updates += 1;
                    Ok(true)
                }
                Ok(false) => Ok(true),
                Err(alert) => Err(End::Violated(alert)),
            },
            ContentType::Alert => alert(view.facts.version(), &bytes[content]).map(|()| false),
            ContentType::ChangeCipherSpec => Err(End::Violated(Alert::UnexpectedMessage)),
        };
        match told {
            Ok(true) => view.facts.empties = 0,
            Ok(false) if view.facts.empties < bounds.empties_max => view.facts.empties += 1,
            Ok(false) => break End::Violated(Alert::UnexpectedMessage),
            Err(end) => break end,
        }
    };
    opened.taken = bytes.len();
    opened.end = Some(end);
    opened
}

/// Opens one record. Returns what it holds, and where that lies.
fn open_record(
    view: &mut View<'_>,
    bounds: &Bounds,
    key: &LessSafeKey,
    bytes: &mut [u8],
    record: Range<usize>,
) -> Result<(ContentType, Range<usize>), End> {
    let header: [u8; HEADER_BYTES] = std::array::from_fn(|at| bytes[record.start + at]);
    let outer = ContentType::of(header[0]).ok_or(End::Violated(Alert::UnexpectedMessage))?;
    let content = record.start + HEADER_BYTES..record.end;
    let opened = match view.facts.version() {
        Version::Tls13 if outer != ContentType::Data => return Err(End::Violated(Alert::UnexpectedMessage)),
        Version::Tls13 => {
            let data = key.open_in_place(nonce(view.rx.nonce()), Aad::from(header), &mut bytes[content.clone()]);
            let data = data.map_err(|_| End::Violated(Alert::BadRecordMac))?;
            if data.len() > RECORD_BYTES_MAX + 1 {
                return Err(End::Violated(Alert::RecordOverflow));
            }
            // Behind the content stand its type and any number of zeros.
            let last = data.iter().rposition(|byte| *byte != 0).ok_or(End::Violated(Alert::UnexpectedMessage))?;
            let kind = ContentType::of(data[last]).ok_or(End::Violated(Alert::UnexpectedMessage))?;
            if last == 0 && kind != ContentType::Data {
                return Err(End::Violated(Alert::UnexpectedMessage));
            }
            (kind, content.start..content.start + last)
        }
        Version::Tls12 => {
            if *view.rx.sequence >= bounds.tls12_records_max {
                return Err(End::WornOut);
            }
            let explicit = explicit_nonce_bytes(view.suite);
            let begin = content.start + explicit;
            let Some(length) = content.len().checked_sub(explicit + TAG_BYTES) else {
                return Err(End::Violated(Alert::BadRecordMac));
            };
            let mut number = view.rx.nonce();
            if explicit > 0 {
                number[..IV_BYTES - EXPLICIT_NONCE_BYTES]
                    .copy_from_slice(&view.rx.iv[..IV_BYTES - EXPLICIT_NONCE_BYTES]);
                number[IV_BYTES - EXPLICIT_NONCE_BYTES..].copy_from_slice(&bytes[content.start..begin]);
            }
            let aad = tls12_aad(*view.rx.sequence, outer, length);
            let data = key.open_in_place(nonce(number), Aad::from(aad), &mut bytes[begin..content.end]);
            let data = data.map_err(|_| End::Violated(Alert::BadRecordMac))?;
            if data.len() > RECORD_BYTES_MAX {
                return Err(End::Violated(Alert::RecordOverflow));
            }
            if data.is_empty() && outer != ContentType::Data {
                return Err(End::Violated(Alert::UnexpectedMessage));
            }
            (outer, begin..begin + length)
        }
    };
    *view.rx.sequence += 1;
    Ok(opened)
}

/// Bytes of a record's nonce that stand in the record.
pub fn explicit_nonce_bytes(suite: Suite) -> usize {
    match suite {
        Suite::Aes128 | Suite::Aes256 => EXPLICIT_NONCE_BYTES,
        Suite::ChaCha20 => 0,
    }
}

/// What is authenticated with a record of TLS 1.2 (RFC 5246, section 6.2.3.3).
pub fn tls12_aad(sequence: u64, kind: ContentType, length: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&sequence.to_be_bytes());
    aad[8] = kind as u8;
    aad[9..11].copy_from_slice(&RECORD_VERSION);
    aad[11..].copy_from_slice(&(length as u16).to_be_bytes());
    aad
}

/// Messages of a handshake after the handshake. Returns whether the peer uses its next key from now on.
fn handshake(view: &mut View<'_>, bounds: &Bounds, content: &[u8], minute: u32) -> Result<bool, Alert> {
    let facts = &mut *view.facts;
    if facts.version() == Version::Tls12 {
        // One that asks for another handshake is warned, and may go on without.
        if content.first() != Some(&CLIENT_HELLO) {
            return Err(Alert::UnexpectedMessage);
        }
        facts.set(Facts::OWES_WARNING);
        return count_update(facts, bounds, minute).map(|()| false);
    }
    let mut rest = content;
    while let Some((byte, behind)) = rest.split_first() {
        match UPDATE_HEAD.get(usize::from(facts.of_update)) {
            Some(wanted) if byte == wanted => facts.of_update += 1,
            Some(_) => return Err(Alert::UnexpectedMessage),
            None => {
                // The next record is under another key, so nothing may stand behind it.
                if !behind.is_empty() {
                    return Err(Alert::UnexpectedMessage);
                }
                facts.of_update = 0;
                match byte {
                    0 => {}
                    1 => facts.set(Facts::OWES_UPDATE),
                    _ => return Err(Alert::IllegalParameter),
                }
                return count_update(facts, bounds, minute).map(|()| true);
            }
        }
        rest = behind;
    }
    Ok(false)
}

fn count_update(facts: &mut Facts, bounds: &Bounds, minute: u32) -> Result<(), Alert> {
    if facts.minute != minute {
        facts.minute = minute;
        facts.updates = 0;
    }
    if facts.updates >= bounds.updates_per_minute {
        return Err(Alert::UnexpectedMessage);
    }
    facts.updates += 1;
    Ok(())
}

/// An alert of the peer; `Ok` for one that ends nothing.
fn alert(version: Version, content: &[u8]) -> Result<(), End> {
    let [level, number] = *content else { return Err(End::Violated(Alert::DecodeError)) };
    match Alert::of(number) {
        Alert::CloseNotify => Err(End::Closed),
        Alert::UserCanceled => Ok(()),
        _ if version == Version::Tls12 && level == ALERT_WARNING => Ok(()),
        alert => Err(End::Alerted(alert)),
    }
}
