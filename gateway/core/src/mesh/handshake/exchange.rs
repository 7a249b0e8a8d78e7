//! The key exchange that goes with a handshake, and what both sides know behind it.

use super::super::seal::Sealing;
use super::{HandshakeError, NONCE_BYTES, Role, Transcript, Versions};
use crate::mesh::wire::SEALED_SINCE;
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;

/// Whether what nodes say to each other is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshEncryption {
    /// With every node that can, that is from version 5 of the protocol on.
    On,
    /// Other nodes are refused.
    Required,
    /// Never.
    Off,
}

impl Versions {
    /// What this code speaks with that choice.
    pub(crate) fn of(encryption: MeshEncryption) -> Versions {
        match encryption {
            MeshEncryption::On => Versions::OWN,
            MeshEncryption::Required => Versions { min: SEALED_SINCE, ..Versions::OWN },
            MeshEncryption::Off => Versions { max: SEALED_SINCE - 1, ..Versions::OWN },
        }
    }
}

/// This side's half of the exchange; `None` where the version has none.
#[derive(Default)]
pub(super) struct Exchange(Option<PrivateKey>);

impl Exchange {
    /// Draws a key pair from 32 random bytes that were never used before. Returns the nonce for this side's Hello as
    /// well: the public key, or, where there is none, those bytes.
    pub(super) fn new(version: u16, random: &[u8; NONCE_BYTES]) -> (Self, [u8; NONCE_BYTES]) {
        if version < SEALED_SINCE {
            return (Exchange(None), *random);
        }
        let private = PrivateKey::from_private_key(&X25519, random).expect("any 32 bytes are a key of X25519");
        let public = private.compute_public_key().expect("every key of X25519 has a public one");
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(public.as_ref());
        (Exchange(Some(private)), nonce)
    }

    /// The keys for what follows the handshake; `None` if the version agreed on has none. To be asked once both sides
    /// have proved themselves.
    ///
    /// # Errors
    /// The other side's nonce is no public key that this side may agree with: both would know a secret that is none.
    pub(super) fn sealing(
        &self,
        transcript: &Transcript,
        secret: &Hmac<Sha256>,
        role: Role,
    ) -> Result<Option<Box<Sealing>>, HandshakeError> {
        let Some(private) = self.0.as_ref().filter(|_| transcript.version >= SEALED_SINCE) else { return Ok(None) };
        let theirs = match role {
            Role::Dialer => transcript.acceptor_nonce(),
            Role::Acceptor => transcript.dialer_nonce(),
        };
        let theirs = UnparsedPublicKey::new(&X25519, theirs.ok_or(HandshakeError::OutOfTurn)?);
        // Both Hellos, and so both public keys, are part of what the secret signs.
        let salt = transcript.salt(secret);
        agreement::agree(private, theirs, HandshakeError::OutOfTurn, |shared| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&salt).expect("HMAC takes keys of every length");
            mac.update(shared);
            let known: [u8; 32] = mac.finalize().into_bytes().into();
            Ok(Some(Box::new(Sealing::new(&known, matches!(role, Role::Dialer)))))
        })
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange(…)")
    }
}
