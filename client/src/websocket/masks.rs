//! Masks of a client's frames (RFC 6455, section 5.3): nobody but the system's random source knows the next one, so
//! that no page and no message can choose the bytes that a proxy on the way sees.

use std::io;

/// Random bytes fetched at a time: 64 masks.
const POOL_BYTES: usize = 256;

const MASK_BYTES: usize = 4;

/// A source of masks.
#[derive(Debug)]
pub(super) struct Masks {
    pool: [u8; POOL_BYTES],
    /// Bytes of it that have been used.
    used: usize,
}

impl Default for Masks {
    fn default() -> Self {
        Masks { pool: [0; POOL_BYTES], used: POOL_BYTES }
    }
}

impl Masks {
    /// A mask that no frame had before, as far as chance goes.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn next(&mut self) -> io::Result<[u8; MASK_BYTES]> {
        if self.used == POOL_BYTES {
            fill(&mut self.pool)?;
            self.used = 0;
        }
        let mut mask = [0; MASK_BYTES];
        mask.copy_from_slice(&self.pool[self.used..self.used + MASK_BYTES]);
        self.used += MASK_BYTES;
        Ok(mask)
    }
}

/// Random bytes of the system.
///
/// # Errors
/// When it has none.
pub(super) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(format!("no random numbers for a WebSocket: {error}")))
}
