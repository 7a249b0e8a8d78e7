//! What two nodes say to each other once a handshake is over, sealed: nobody on the way reads it or changes it.
//!
//! Each side draws a key pair of X25519 for the connection; the public halves are the nonces of the two Hellos, which
//! every mac of the handshake covers. What both then know, mixed with the cluster's secret, gives a key for each
//! direction. So whoever learns the secret later does not read what was recorded before, and whoever breaks X25519
//! still lacks the secret.
//!
//! ```text
//! record  length u16 (what follows, tag included), ciphertext, tag [16]
//! ```
//!
//! AES-256-GCM; the nonce is the direction's initialization vector, and over its end the number of the record; the
//! length is authenticated with it. After [`RECORDS_PER_KEY`] records the direction goes on with the next key, which
//! both sides derive from the one before: at 2^24.5 full records AES-GCM begins to give something away (RFC 8446,
//! section 5.5).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use zeroize::Zeroize;

/// Bytes of data in one record at most: what a receiver has to hold before it can open any of it.
const RECORD_BYTES_MAX: usize = 1 << 14;
const HEAD_BYTES: usize = 2;
const TAG_BYTES: usize = 16;
const IV_BYTES: usize = 12;
/// Records under one key.
const RECORDS_PER_KEY: u64 = 1 << 22;
/// Memory beyond this that a burst took for its records is given back after it.
const PARTIAL_BYTES_KEPT: usize = 64 << 10;

/// A record that its key does not open, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged;

fn derive(secret: &[u8], label: &[u8]) -> [u8; 32] {
    // A key of any length is taken.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    mac.update(label);
    mac.finalize().into_bytes().into()
}

/// One direction of a connection.
struct Direction {
    secret: [u8; 32],
    key: LessSafeKey,
    iv: [u8; IV_BYTES],
    sequence: u64,
    /// [`RECORDS_PER_KEY`], but in tests.
    records_per_key: u64,
}

impl Direction {
    fn new(secret: [u8; 32]) -> Self {
        let (key, iv) = Direction::keys(&secret);
        Direction { secret, key, iv, sequence: 0, records_per_key: RECORDS_PER_KEY }
    }

    fn keys(secret: &[u8; 32]) -> (LessSafeKey, [u8; IV_BYTES]) {
        let mut bytes = derive(secret, b"key");
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 has keys of 32 bytes");
        bytes.zeroize();
        let mut iv = [0; IV_BYTES];
        iv.copy_from_slice(&derive(secret, b"iv")[..IV_BYTES]);
        (LessSafeKey::new(key), iv)
    }

    /// The nonce of the next record, which is never used again under its key.
    fn next_nonce(&mut self) -> Nonce {
        if self.sequence == self.records_per_key {
            let next = derive(&self.secret, b"next");
            self.secret.zeroize();
            self.secret = next;
            (self.key, self.iv) = Direction::keys(&self.secret);
            self.sequence = 0;
        }
        let mut nonce = self.iv;
        nonce.iter_mut().skip(IV_BYTES - 8).zip(self.sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// The keys of one connection, and the beginning of a record whose rest has not come.
pub(crate) struct Sealing {
    out: Direction,
    inward: Direction,
    partial: Vec<u8>,
}

impl Sealing {
    /// The keys that follow from what both sides know, on the side that dialed or on the other one.
    pub(crate) fn new(shared: &[u8], dialed: bool) -> Self {
        let [dialer, acceptor] = [&b"dialer"[..], b"acceptor"].map(|who| Direction::new(derive(shared, who)));
        let (out, inward) = if dialed { (dialer, acceptor) } else { (acceptor, dialer) };
        Sealing { out, inward, partial: Vec::new() }
    }

    /// Appends bytes to what is to be sent.
    pub(crate) fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.reserve(bytes.len() + bytes.len().div_ceil(RECORD_BYTES_MAX) * (HEAD_BYTES + TAG_BYTES));
        for data in bytes.chunks(RECORD_BYTES_MAX) {
            let head = ((data.len() + TAG_BYTES) as u16).to_be_bytes();
            out.extend_from_slice(&head);
            let begin = out.len();
            out.extend_from_slice(data);
            let nonce = self.out.next_nonce();
            let sealed = self.out.key.seal_in_place_separate_tag(nonce, Aad::from(head), &mut out[begin..]);
            // It fails for more bytes than a record ever has.
            out.extend_from_slice(sealed.expect("a record is short enough for AES-GCM").as_ref());
        }
    }

    /// Takes bytes that have come, and appends what was in the records that are whole.
    ///
    /// # Errors
    /// [`Forged`]: the connection is to be closed; what was appended before is genuine.
    pub(crate) fn open(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Forged> {
        self.partial.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(&head) = self.partial[at..].first_chunk::<HEAD_BYTES>() {
            let length = usize::from(u16::from_be_bytes(head));
            if !(TAG_BYTES + 1..=RECORD_BYTES_MAX + TAG_BYTES).contains(&length) {
                return Err(Forged);
            }
            let begin = at + HEAD_BYTES;
            let Some(record) = self.partial.get(begin..begin + length) else { break };
            let (sealed, tag) = record.split_at(length - TAG_BYTES);
            let nonce = self.inward.next_nonce();
            // To where it is read from, and not in place and from there.
            let end = out.len();
            out.resize(end + sealed.len(), 0);
            let opened = self.inward.key.open_separate_gather(nonce, Aad::from(head), sealed, tag, &mut out[end..]);
            if opened.is_err() {
                out.truncate(end);
                return Err(Forged);
            }
            at = begin + length;
        }
        self.partial.drain(..at);
        if self.partial.is_empty() {
            self.partial.shrink_to(PARTIAL_BYTES_KEPT);
        }
        Ok(())
    }
}

impl fmt::Debug for Sealing {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealing(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealing, Sealing) {
        (Sealing::new(b"what both know", true), Sealing::new(b"what both know", false))
    }

    #[test]
    fn what_one_side_seals_the_other_opens_at_every_split() {
        let said: Vec<u8> = (0..100).collect();
        let (mut dialer, _) = pair();
        let mut sealed = Vec::new();
        dialer.seal(&said[..60], &mut sealed);
        dialer.seal(&said[60..], &mut sealed);
        for split in 0..=sealed.len() {
            let (_, mut acceptor) = pair();
            let mut heard = Vec::new();
            acceptor.open(&sealed[..split], &mut heard).unwrap();
            acceptor.open(&sealed[split..], &mut heard).unwrap();
            assert_eq!(heard, said, "split at {split}");
            assert!(acceptor.partial.is_empty());
        }
    }

    #[test]
    fn long_sends_are_cut_and_take_no_more_than_a_record_to_open() {
        let said = vec![7; 3 * RECORD_BYTES_MAX + 1];
        let (mut dialer, mut acceptor) = pair();
        let (mut sealed, mut heard) = (Vec::new(), Vec::new());
        acceptor.seal(&said, &mut sealed);
        assert_eq!(sealed.len(), said.len() + 4 * (HEAD_BYTES + TAG_BYTES));
        for piece in sealed.chunks(1_000) {
            dialer.open(piece, &mut heard).unwrap();
            assert!(dialer.partial.len() < RECORD_BYTES_MAX + HEAD_BYTES + TAG_BYTES);
        }
        assert_eq!(heard, said);
    }

    #[test]
    fn keys_change_on_both_sides_at_the_same_record() {
        let (mut dialer, mut acceptor) = pair();
        dialer.out.records_per_key = 3;
        acceptor.inward.records_per_key = 3;
        let first = dialer.out.secret;
        for number in 0..10_u8 {
            let (mut sealed, mut heard) = (Vec::new(), Vec::new());
            dialer.seal(&[number], &mut sealed);
            acceptor.open(&sealed, &mut heard).unwrap();
            assert_eq!(heard, [number]);
        }
        assert_ne!(dialer.out.secret, first);
        assert_eq!(dialer.out.secret, acceptor.inward.secret);
    }

    #[test]
    fn nothing_that_was_changed_left_out_or_said_again_opens() {
        let (mut dialer, _) = pair();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        dialer.seal(b"one", &mut one);
        dialer.seal(b"two", &mut two);
        for bit in 0..one.len() * 8 {
            let (_, mut acceptor) = pair();
            let mut changed = one.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            changed.extend_from_slice(&[0; RECORD_BYTES_MAX + TAG_BYTES]);
            let mut heard = Vec::new();
            assert_eq!(acceptor.open(&changed, &mut heard), Err(Forged), "bit {bit}");
            assert!(heard.is_empty());
        }
        let (_, mut acceptor) = pair();
        assert_eq!(acceptor.open(&two, &mut Vec::new()), Err(Forged), "the first was left out");
        let (_, mut acceptor) = pair();
        acceptor.open(&one, &mut Vec::new()).unwrap();
        assert_eq!(acceptor.open(&one, &mut Vec::new()), Err(Forged), "it was said again");
        let (mut reflected, _) = pair();
        assert_eq!(reflected.open(&one, &mut Vec::new()), Err(Forged), "it came back to its sender");
        let mut other = Sealing::new(b"what others know", false);
        assert_eq!(other.open(&one, &mut Vec::new()), Err(Forged));
    }
}
