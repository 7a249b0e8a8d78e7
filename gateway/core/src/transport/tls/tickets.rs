//! Tickets with which a client resumes its session, at whichever node of the cluster: their keys follow from what all
//! nodes know and the time, so nothing is exchanged or stored.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use rustls::server::ProducesTickets;
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// How long tickets are made with one key; they are accepted for that long again.
const EPOCH_SECS: u64 = 6 * 3_600;
const EPOCH_BYTES: usize = size_of::<u64>();
const KEY_BYTES: usize = 32;

/// What the keys of tickets follow from.
#[derive(Clone)]
pub struct TicketSecret(Zeroizing<Vec<u8>>);

impl TicketSecret {
    /// From a secret that all nodes of a cluster share, so that a ticket is good at each of them.
    pub fn shared(secret: &[u8]) -> Self {
        TicketSecret(Zeroizing::new(secret.to_vec()))
    }

    /// One that nobody else knows, for a node that is alone: its tickets end with it. `None` where there is no
    /// randomness.
    pub fn random() -> Option<Self> {
        let mut secret = vec![0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        Some(TicketSecret(Zeroizing::new(secret)))
    }
}

impl fmt::Debug for TicketSecret {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret(…)")
    }
}

/// Makes tickets and reads them.
pub(super) struct Tickets {
    secret: TicketSecret,
    /// What a ticket is good for besides: who signs clients' certificates, since one that is resumed is not verified
    /// again.
    context: [u8; 32],
    /// Seconds since the Unix epoch.
    now_s: fn() -> u64,
}

impl fmt::Debug for Tickets {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(…)")
    }
}

struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

impl Tickets {
    pub(super) fn new(secret: TicketSecret, context: [u8; 32], now_s: fn() -> u64) -> Self {
        Tickets { secret, context, now_s }
    }

    /// The key of an epoch. Two shards, or nodes, use it at once, so its nonces are random, and the cipher one that
    /// forgives it if two should be alike.
    fn key(&self, epoch: u64) -> Option<LessSafeKey> {
        let mut key = [0; KEY_BYTES];
        let prk = Salt::new(HKDF_SHA256, b"trunkline tls tickets").extract(&self.secret.0);
        prk.expand(&[&epoch.to_be_bytes(), &self.context], KeyBytes).and_then(|okm| okm.fill(&mut key)).ok()?;
        let unbound = UnboundKey::new(&AES_256_GCM_SIV, &key).ok();
        key.zeroize();
        unbound.map(LessSafeKey::new)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        EPOCH_SECS as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = (self.now_s)() / EPOCH_SECS;
        let mut number = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut number).ok()?;
        let head = epoch.to_be_bytes();
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(number);
        self.key(epoch)?.seal_in_place_append_tag(nonce, Aad::from(head), &mut sealed).ok()?;
        Some([&head[..], &number, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = ticket.split_first_chunk::<EPOCH_BYTES>()?;
        let (number, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let epoch = u64::from_be_bytes(*head);
        // The former epoch's too, and the next one's of a node whose clock is ahead.
        let now = (self.now_s)() / EPOCH_SECS;
        if epoch.abs_diff(now) > 1 {
            return None;
        }
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*number);
        let length = self.key(epoch)?.open_in_place(nonce, Aad::from(*head), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<const EPOCH: u64>() -> u64 {
        EPOCH * EPOCH_SECS + 17
    }

    #[test]
    fn a_ticket_is_good_at_every_node_in_this_epoch_and_the_next() {
        let secret = TicketSecret::shared(b"the secret of the cluster");
        let ticket = Tickets::new(secret.clone(), [0; 32], at::<5>).encrypt(b"a session").unwrap();
        let reads = |secret: &TicketSecret, context, now| Tickets::new(secret.clone(), context, now).decrypt(&ticket);
        for now in [at::<4>, at::<5>, at::<6>] {
            assert_eq!(reads(&secret, [0; 32], now).as_deref(), Some(&b"a session"[..]));
        }
        for now in [at::<3>, at::<7>] {
            assert_eq!(reads(&secret, [0; 32], now), None);
        }
        assert_eq!(reads(&secret, [1; 32], at::<5>), None, "those who sign clients' certificates have changed");
        assert_eq!(reads(&TicketSecret::random().unwrap(), [0; 32], at::<5>), None);
    }

    #[test]
    fn a_ticket_of_which_a_bit_is_wrong_or_a_byte_missing_is_none() {
        let tickets = Tickets::new(TicketSecret::random().unwrap(), [0; 32], at::<5>);
        let ticket = tickets.encrypt(b"a session").unwrap();
        for at in 0..ticket.len() {
            let mut broken = ticket.clone();
            broken[at] ^= 1;
            assert_eq!(tickets.decrypt(&broken), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "{at} bytes");
        }
        assert_ne!(ticket, tickets.encrypt(b"a session").unwrap());
    }
}
