//! Sealing records: what is to be sent is encrypted where it lies.

use crate::alert::Alert;
use crate::keys::{Facts, View, nonce};
use crate::open::{EXPLICIT_NONCE_BYTES, explicit_nonce_bytes, tls12_aad};
use crate::record::{Bounds, ContentType, HEADER_BYTES, RECORD_BYTES_MAX, RECORD_VERSION};
use crate::suite::{IV_BYTES, Suite, TAG_BYTES, Version};
use aws_lc_rs::aead::Aad;

/// A KeyUpdate that asks for none in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Bytes a record has before its data and behind.
fn around(version: Version, suite: Suite) -> (usize, usize) {
    match version {
        // Behind the data the type of the record stands too.
        Version::Tls13 => (HEADER_BYTES, 1 + TAG_BYTES),
        Version::Tls12 => (HEADER_BYTES + explicit_nonce_bytes(suite), TAG_BYTES),
    }
}

/// Where the record ends that holds the byte before `end`, when data is sealed in which that is so many bytes from its
/// beginning, and `all` is its length.
pub fn sealed_end(view: &View<'_>, all: usize, end: usize) -> usize {
    let (front, back) = around(view.facts.version(), view.suite);
    let records = end.div_ceil(RECORD_BYTES_MAX);
    (records * RECORD_BYTES_MAX).min(all) + records * (front + back)
}

/// Makes records of the bytes behind `from`, in place. Nothing is made of nothing.
pub fn seal_records(view: &mut View<'_>, kind: ContentType, out: &mut Vec<u8>, from: usize) {
    let length = out.len() - from;
    if length == 0 {
        return;
    }
    let version = view.facts.version();
    let (front, back) = around(version, view.suite);
    let records = length.div_ceil(RECORD_BYTES_MAX);
    // No more than it takes: the buffer is used again, and doubled it would be too large to be kept.
    out.reserve_exact(records * (front + back));
    out.resize(out.len() + records * (front + back), 0);
    let data = |record: usize| record * RECORD_BYTES_MAX..((record + 1) * RECORD_BYTES_MAX).min(length);
    let place = |record: usize| from + record * (RECORD_BYTES_MAX + front + back);
    // The last one first, so that none is overwritten before it has moved.
    for record in (0..records).rev() {
        let data = data(record);
        out.copy_within(from + data.start..from + data.end, place(record) + front);
    }
    let key = view.tx.cipher(view.suite);
    for record in 0..records {
        let length = data(record).len();
        let sealed = &mut out[place(record)..place(record) + front + length + back];
        let number = view.tx.nonce();
        let (outer, protected, aad_of_12) = match version {
            Version::Tls13 => (ContentType::Data, length + back, None),
            Version::Tls12 => {
                (kind, front - HEADER_BYTES + length + back, Some(tls12_aad(*view.tx.sequence, kind, length)))
            }
        };
        sealed[0] = outer as u8;
        sealed[1..3].copy_from_slice(&RECORD_VERSION);
        sealed[3..HEADER_BYTES].copy_from_slice(&(protected as u16).to_be_bytes());
        let header: [u8; HEADER_BYTES] = std::array::from_fn(|at| sealed[at]);
        if front > HEADER_BYTES {
            sealed[HEADER_BYTES..front].copy_from_slice(&number[IV_BYTES - EXPLICIT_NONCE_BYTES..]);
        }
        let (content, tag) = sealed[front..].split_at_mut(length + back - TAG_BYTES);
        if version == Version::Tls13 {
            content[length] = kind as u8;
        }
        let made = match aad_of_12 {
            Some(aad) => key.seal_in_place_separate_tag(nonce(number), Aad::from(aad), content),
            None => key.seal_in_place_separate_tag(nonce(number), Aad::from(header), content),
        };
        tag.copy_from_slice(made.expect("a record is far shorter than what a cipher takes").as_ref());
        *view.tx.sequence += 1;
    }
}

impl View<'_> {
    /// Whether this version has changes of keys.
    pub fn may_update(&self) -> bool {
        self.facts.version() == Version::Tls13
    }

    /// Goes on with the next own key.
    pub fn update_own(&mut self) {
        self.tx.update(self.suite);
    }

    /// Whether something has to be sent before anything else.
    pub fn owes(&self, bounds: &Bounds) -> bool {
        self.facts.owes() || self.is_worn(bounds)
    }

    /// Whether the own key has sealed as much as it may, and can be changed.
    fn is_worn(&self, bounds: &Bounds) -> bool {
        self.facts.version() == Version::Tls13 && *self.tx.sequence >= bounds.own_update_records
    }

    /// Whether the own key has sealed as much as it may, and cannot be changed.
    pub fn is_worn_out(&self, bounds: &Bounds) -> bool {
        self.facts.version() == Version::Tls12 && *self.tx.sequence >= bounds.tls12_records_max
    }
}

/// Appends what has to be sent before anything else: an answer to a KeyUpdate, a KeyUpdate because the key is worn, a
/// word about renegotiation. Returns how many keys of this side have changed by it.
pub fn seal_owed(view: &mut View<'_>, bounds: &Bounds, out: &mut Vec<u8>) -> u32 {
    if view.facts.has(Facts::OWES_WARNING) {
        view.facts.clear(Facts::OWES_WARNING);
        let from = out.len();
        out.extend_from_slice(&Alert::NoRenegotiation.body());
        seal_records(view, ContentType::Alert, out, from);
    }
    if !view.is_worn(bounds) && !view.facts.has(Facts::OWES_UPDATE) {
        return 0;
    }
    view.facts.clear(Facts::OWES_UPDATE);
    let from = out.len();
    out.extend_from_slice(&KEY_UPDATE);
    seal_records(view, ContentType::Handshake, out, from);
    view.tx.update(view.suite);
    1
}
