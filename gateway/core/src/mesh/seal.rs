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
/// Bytes of data in one record of a long send: sealed, four of them fill a large receive buffer, and none lies in two.
pub(super) const SEND_BYTES: usize = RECORD_BYTES_MAX - HEAD_BYTES - TAG_BYTES;
const IV_BYTES: usize = 12;
/// Records under one key.
const RECORDS_PER_KEY: u64 = 1 << 22;

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

    /// Opens a whole record where it lies.
    fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<&'r [u8], Forged> {
        let (head, sealed) = record.split_first_chunk_mut::<HEAD_BYTES>().ok_or(Forged)?;
        let nonce = self.next_nonce();
        self.key.open_in_place(nonce, Aad::from(*head), sealed).map(|data| &*data).map_err(|_| Forged)
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

    /// Fills `sealed` with the records of these bytes. What it held before is written over: a buffer that comes again
    /// with its old bytes has to be made longer and not to be cleared first.
    pub(crate) fn seal(&mut self, bytes: &[u8], sealed: &mut Vec<u8>) {
        sealed.resize(bytes.len() + bytes.len().div_ceil(SEND_BYTES) * (HEAD_BYTES + TAG_BYTES), 0);
        let mut rest = &mut sealed[..];
        for data in bytes.chunks(SEND_BYTES) {
            let (record, behind) = rest.split_at_mut(HEAD_BYTES + data.len() + TAG_BYTES);
            rest = behind;
            let head = ((data.len() + TAG_BYTES) as u16).to_be_bytes();
            let (at, content) = record.split_at_mut(HEAD_BYTES);
            at.copy_from_slice(&head);
            let (sealed, tag) = content.split_at_mut(data.len());
            let nonce = self.out.next_nonce();
            // From where it is kept to where it is sent from: copied first and sealed there it would be gone through
            // twice.
            let done = self.out.key.seal_out_of_place_scatter(nonce, Aad::from(head), data, sealed, &[], tag);
            // It fails for more bytes than a record ever has.
            done.expect("a record is short enough for AES-GCM");
        }
    }

    /// Takes bytes that have come, and hands out what was in the records that are whole, one after the other. A record
    /// that lies whole in these bytes is opened where it lies.
    ///
    /// # Errors
    /// [`Forged`], or what `each` returns: the connection is to be closed; what was handed out before is genuine.
    pub(crate) fn open<E: From<Forged>>(
        &mut self,
        mut bytes: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.partial.is_empty()
                && let Some(length) = record_bytes(bytes)?.filter(|length| *length <= bytes.len())
            {
                let (record, behind) = bytes.split_at_mut(length);
                bytes = behind;
                each(self.inward.open(record)?)?;
                continue;
            }
            // First the length, so that nothing of the next record is taken along.
            let wanted = record_bytes(&self.partial)?.unwrap_or(HEAD_BYTES);
            let (piece, behind) = bytes.split_at_mut(bytes.len().min(wanted.saturating_sub(self.partial.len())));
            bytes = behind;
            self.partial.extend_from_slice(piece);
            if record_bytes(&self.partial)?.is_some_and(|length| length == self.partial.len()) {
                let mut record = std::mem::take(&mut self.partial);
                each(self.inward.open(&mut record)?)?;
                record.clear();
                self.partial = record;
            }
        }
        Ok(())
    }
}

/// How long the record at the beginning of some bytes is; `None` before that can be told.
fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Forged> {
    let Some(&head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(head));
    match (TAG_BYTES + 1..=RECORD_BYTES_MAX + TAG_BYTES).contains(&length) {
        true => Ok(Some(HEAD_BYTES + length)),
        false => Err(Forged),
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

    fn sealed(side: &mut Sealing, data: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0xA5; 40];
        side.seal(data, &mut sealed);
        sealed
    }

    fn opened(side: &mut Sealing, bytes: &[u8]) -> Result<Vec<u8>, Forged> {
        let mut heard = Vec::new();
        side.open(&mut bytes.to_vec(), |data| {
            heard.extend_from_slice(data);
            Ok::<(), Forged>(())
        })?;
        Ok(heard)
    }

    #[test]
    fn what_one_side_seals_the_other_opens_at_every_split() {
        let said: Vec<u8> = (0..100).collect();
        let (mut dialer, _) = pair();
        let mut bytes = sealed(&mut dialer, &said[..60]);
        bytes.extend_from_slice(&sealed(&mut dialer, &said[60..]));
        for split in 0..=bytes.len() {
            let (_, mut acceptor) = pair();
            let mut heard = opened(&mut acceptor, &bytes[..split]).unwrap();
            heard.extend_from_slice(&opened(&mut acceptor, &bytes[split..]).unwrap());
            assert_eq!(heard, said, "split at {split}");
            assert!(acceptor.partial.is_empty());
        }
        // Byte by byte.
        let (_, mut acceptor) = pair();
        let heard: Vec<u8> = bytes.iter().flat_map(|byte| opened(&mut acceptor, &[*byte]).unwrap()).collect();
        assert_eq!(heard, said);
    }

    #[test]
    fn who_takes_the_records_can_end_it() {
        let (mut dialer, mut acceptor) = pair();
        let mut bytes = sealed(&mut dialer, b"one");
        bytes.extend_from_slice(&sealed(&mut dialer, b"two"));
        let mut taken = 0;
        let ended = acceptor.open(&mut bytes, |_| {
            taken += 1;
            Err(Forged)
        });
        assert_eq!((ended, taken), (Err(Forged), 1));
    }

    #[test]
    fn long_sends_are_cut_and_take_no_more_than_a_record_to_open() {
        let said = vec![7; 3 * RECORD_BYTES_MAX + 1];
        let (mut dialer, mut acceptor) = pair();
        let bytes = sealed(&mut acceptor, &said);
        let mut heard = Vec::new();
        assert_eq!(bytes.len(), said.len() + 4 * (HEAD_BYTES + TAG_BYTES));
        for piece in bytes.chunks(1_000) {
            heard.extend_from_slice(&opened(&mut dialer, piece).unwrap());
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
            let bytes = sealed(&mut dialer, &[number]);
            assert_eq!(opened(&mut acceptor, &bytes), Ok(vec![number]));
        }
        assert_ne!(dialer.out.secret, first);
        assert_eq!(dialer.out.secret, acceptor.inward.secret);
    }

    #[test]
    fn nothing_that_was_changed_left_out_or_said_again_opens() {
        let (mut dialer, _) = pair();
        let (one, two) = (sealed(&mut dialer, b"one"), sealed(&mut dialer, b"two"));
        for bit in 0..one.len() * 8 {
            let (_, mut acceptor) = pair();
            let mut changed = one.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            changed.extend_from_slice(&[0; RECORD_BYTES_MAX + TAG_BYTES]);
            let heard = acceptor.open(&mut changed, |_| -> Result<(), Forged> { panic!("bit {bit}: it was heard") });
            assert_eq!(heard, Err(Forged), "bit {bit}");
        }
        let (_, mut acceptor) = pair();
        assert_eq!(opened(&mut acceptor, &two), Err(Forged), "the first was left out");
        let (_, mut acceptor) = pair();
        opened(&mut acceptor, &one).unwrap();
        assert_eq!(opened(&mut acceptor, &one), Err(Forged), "it was said again");
        let (mut reflected, _) = pair();
        assert_eq!(opened(&mut reflected, &one), Err(Forged), "it came back to its sender");
        let mut other = Sealing::new(b"what others know", false);
        assert_eq!(opened(&mut other, &one), Err(Forged));
    }
}
