//! What a device shows to resume its session: which registration of which user it is, under a MAC with the store's
//! secret.
//!
//! It is no credential: LOGIN is checked as ever. It says that the device's position in the store is the one that this
//! very client has worked from, which a name alone does not: a device may have been forgotten and registered anew, or
//! the store replaced by an empty one.

use hmac::{Hmac, Mac};
use sha2::Sha256;

const FACTS_BYTES: usize = 22;
const MAC_BYTES: usize = 8;

/// The registration of a device, and when it was last logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResumeToken {
    pub(crate) user: u64,
    /// Its number in the store.
    pub(crate) device: u16,
    /// Which registration of that number it is.
    pub(crate) device_epoch: u32,
    /// The latest position of all when it was given out, so that a LOGOUT ends it.
    pub(crate) issued: u64,
}

impl ResumeToken {
    fn facts(self) -> [u8; FACTS_BYTES] {
        let mut bytes = [0; FACTS_BYTES];
        bytes[..8].copy_from_slice(&self.user.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.device.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.device_epoch.to_be_bytes());
        bytes[14..].copy_from_slice(&self.issued.to_be_bytes());
        bytes
    }

    fn mac(self, store_epoch: u64) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&store_epoch.to_be_bytes()).expect("HMAC takes keys of any length");
        mac.chain_update(b"trunkline resume").chain_update(self.facts())
    }

    /// Whether these bytes were given out by this store to a device of that user, whichever registration it had.
    pub(crate) fn is_of(user: u64, store_epoch: u64, bytes: &[u8]) -> bool {
        let Some((facts, _)) = bytes.split_at_checked(FACTS_BYTES) else { return false };
        let word =
            |at: usize, len: usize| facts[at..at + len].iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        let device = word(8, 2) as u16;
        let shown = ResumeToken { user, device, device_epoch: word(10, 4) as u32, issued: 0 };
        shown.issued(store_epoch, bytes).is_some()
    }

    /// As it stands in LOGIN_OK. `store_epoch` is a number that only the store knows, another one for each store.
    pub(crate) fn seal(self, store_epoch: u64) -> Vec<u8> {
        let mac = self.mac(store_epoch).finalize().into_bytes();
        [&self.facts()[..], &mac[..MAC_BYTES]].concat()
    }

    /// When these bytes were given out, if it is what [`ResumeToken::seal`] gave out for the same registration at some
    /// time.
    pub(crate) fn issued(self, store_epoch: u64, bytes: &[u8]) -> Option<u64> {
        let (facts, mac) = bytes.split_at_checked(FACTS_BYTES)?;
        let issued = u64::from_be_bytes(facts[14..].try_into().ok()?);
        let shown = ResumeToken { issued, ..self };
        let fits = facts == shown.facts()
            && mac.len() == MAC_BYTES
            && shown.mac(store_epoch).verify_truncated_left(mac).is_ok();
        fits.then_some(issued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_its_registration_and_store_and_no_other() {
        let token = ResumeToken { user: 7, device: 3, device_epoch: 9, issued: 1_000 };
        let bytes = token.seal(55);
        assert_eq!(bytes.len(), FACTS_BYTES + MAC_BYTES);
        let later = ResumeToken { issued: 2_000, ..token };
        assert_eq!((token.issued(55, &bytes), later.issued(55, &bytes)), (Some(1_000), Some(1_000)));
        assert_eq!(token.issued(56, &bytes), None);
        for other in [
            ResumeToken { user: 8, ..token },
            ResumeToken { device: 4, ..token },
            ResumeToken { device_epoch: 10, ..token },
        ] {
            assert_eq!((other.issued(55, &bytes), token.issued(55, &other.seal(55))), (None, None));
        }
        assert!(ResumeToken::is_of(7, 55, &bytes) && !ResumeToken::is_of(8, 55, &bytes));
        assert!(!ResumeToken::is_of(7, 56, &bytes) && !ResumeToken::is_of(7, 55, &bytes[1..]));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(token.issued(55, &damaged), None, "byte {at}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(token.issued(55, &bytes[..cut]), None);
        }
        assert_eq!(token.issued(55, &[&bytes[..], &[0]].concat()), None);
    }
}
