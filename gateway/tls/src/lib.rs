//! TLS after its handshake: the keys that either side keeps ([`keys`]), and the records that it opens ([`open`]) and
//! seals ([`seal`]) in place.
//!
//! Nothing in here does I/O, reads a clock or owns a buffer. Who has made a handshake with rustls takes its keys out of
//! it with [`secrets`] and drops it.

pub mod alert;
pub mod keys;
pub mod open;
pub mod record;
pub mod seal;
pub mod secrets;
pub mod sessions;
pub mod suite;
