//! Bytes for the gateway, coalesced into as few writes as possible.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use trunkline_proto::{Header, Kind, Login, encode, encode_message};

/// Above it nothing more is taken in that can wait. What is appended at once is at most a frame, so the buffer is bounded by
/// this and one frame of the largest size.
const SOFT_BYTES_MAX: usize = 64 * 1024;

/// The send buffer of one connection.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    bytes: Vec<u8>,
    /// Bytes before it are written.
    written: usize,
    /// A stream that buffers (TLS) has bytes to push on.
    unflushed: bool,
}

impl Outbound {
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() - self.written < SOFT_BYTES_MAX
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.written < self.bytes.len() || self.unflushed
    }

    /// Appends a SEND.
    pub(crate) fn message(&mut self, flags: u8, id: u64, to: u64, payload: &[u8]) {
        self.append(Kind::Send, flags, 0, id, to, 0, payload);
    }

    /// Appends an ACK.
    pub(crate) fn ack(&mut self, from: u64, id: u64, stamp: u64) {
        self.append(Kind::Ack, 0, 0, id, from, stamp, &[]);
    }

    /// Appends a PING.
    pub(crate) fn ping(&mut self, aux: u16) {
        self.append(Kind::Ping, 0, aux, 0, 0, 0, &[]);
    }

    /// Appends a RENEW.
    pub(crate) fn renew(&mut self, login: &Login) {
        self.make_room();
        encode_message(&mut self.bytes, Kind::Renew, 0, login);
    }

    /// Appends a LOGOUT.
    pub(crate) fn logout(&mut self) {
        self.append(Kind::Logout, 0, 0, 0, 0, 0, &[]);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    fn append(&mut self, kind: Kind, flags: u8, aux: u16, id: u64, peer: u64, stamp: u64, body: &[u8]) {
        self.make_room();
        let header = Header { kind, flags, aux, id, peer, stamp };
        encode(&mut self.bytes, &header, body);
    }

    /// Without it a connection that is never quite drained would grow its buffer by what it has written.
    fn make_room(&mut self) {
        if self.written >= SOFT_BYTES_MAX {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes once, or flushes when all is written; returns the bytes written. Cancelling it loses nothing.
    pub(crate) async fn pump(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<usize> {
        if self.written == self.bytes.len() {
            writer.flush().await?;
            self.unflushed = false;
            return Ok(0);
        }
        let count = writer.write(&self.bytes[self.written..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        self.written += count;
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_buffer_that_is_never_drained_does_not_grow_with_what_was_written() {
        let mut out = Outbound::default();
        let payload = [0_u8; 1_000];
        for id in 1..10_000 {
            while out.has_room() {
                out.message(0, id, 2, &payload);
            }
            // A writer that takes 1,500 bytes at a time.
            let mut taken = [0_u8; 1_500];
            let mut writer = io::Cursor::new(&mut taken[..]);
            assert_eq!(out.pump(&mut writer).await.expect("room"), 1_500);
        }
        assert!(out.bytes.len() <= 3 * SOFT_BYTES_MAX, "{}", out.bytes.len());
    }
}
