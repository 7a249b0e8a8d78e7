//! The secrets of the cluster, which others may take the place of while links are up.

use super::{ClusterSecret, MeshEncryption, SecretError, Versions};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all who dial or are dialed. A handshake goes on with what was in force when it began; links that are up
/// are not asked.
#[derive(Clone, Debug)]
pub struct Secrets {
    known: Arc<Mutex<Known>>,
    encryption: MeshEncryption,
}

/// Those in force at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The one that is proved to others.
    pub(crate) first: ClusterSecret,
    /// Those that others may prove.
    pub(crate) all: Arc<[ClusterSecret]>,
}

impl Known {
    fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Result<Self, SecretError> {
        let all: Vec<ClusterSecret> = secrets.map(ClusterSecret::new).collect::<Result<_, _>>()?;
        let first = all.first().cloned().ok_or(SecretError::TooShort { length: 0 })?;
        Ok(Known { first, all: all.into() })
    }
}

impl Secrets {
    /// The secrets of a cluster, first the one that is proved, with encryption on.
    ///
    /// # Errors
    /// When there is none, or one is too short or too long.
    pub fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Result<Self, String> {
        let known = Known::new(secrets).map_err(|error| error.to_string())?;
        Ok(Secrets { known: Arc::new(Mutex::new(known)), encryption: MeshEncryption::On })
    }

    /// The same with another choice of encryption.
    pub fn with_encryption(self, encryption: MeshEncryption) -> Self {
        Secrets { encryption, ..self }
    }

    /// The versions of the protocol that follow from that choice.
    pub fn versions(&self) -> Versions {
        Versions::of(self.encryption)
    }

    /// Puts others in their place, for every handshake that begins from now on.
    ///
    /// # Errors
    /// As [`Secrets::new`]; those in force stay.
    pub fn replace<'a>(&self, secrets: impl Iterator<Item = &'a [u8]>) -> Result<(), String> {
        let known = Known::new(secrets).map_err(|error| error.to_string())?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    /// The one that is proved to others.
    pub fn first(&self) -> ClusterSecret {
        self.known().first
    }

    /// All of them.
    pub(crate) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
