//! Bytes for the gateway, coalesced into as few writes as possible.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use trunkline_proto::{Header, Kind, Login, Sync, Watch, call_flags, encode, encode_message, flags};

use crate::acks::Due;
use crate::calls::Call;

/// Messages are appended while fewer bytes wait. What is appended at once is at most a frame, so messages fill the
/// buffer up to this and one frame of the largest size.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Room for answers (ACK, PING, SYNC, RENEW) beyond what messages fill, 2,048 ACKs. Messages cannot take it: the
/// connection is read on however much waits to be sent.
const ANSWER_BYTES: usize = 64 * 1024;

/// The send buffer of one connection.
#[derive(Debug)]
pub(crate) struct Outbound {
    bytes: Vec<u8>,
    /// Bytes before it are written.
    written: usize,
    /// Answers are appended while fewer bytes wait: [`ANSWER_BYTES`] above the highest level that the messages in the
    /// buffer have reached.
    answers_below: usize,
    /// A stream that buffers (TLS) has bytes to push on.
    unflushed: bool,
}

impl Default for Outbound {
    fn default() -> Self {
        let answers_below = MESSAGE_BYTES_MAX + ANSWER_BYTES;
        Self { bytes: Vec::new(), written: 0, answers_below, unflushed: false }
    }
}

impl Outbound {
    /// Whether one more message may be appended.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting() < MESSAGE_BYTES_MAX
    }

    /// Whether one more answer may be appended.
    pub(crate) fn has_room_for_answers(&self) -> bool {
        self.waiting() < self.answers_below
    }

    /// Bytes that are not written yet.
    fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.written < self.bytes.len() || self.unflushed
    }

    /// Appends a SEND.
    pub(crate) fn message(&mut self, flags: u8, id: u64, to: u64, payload: &[u8]) {
        self.append(Kind::Send, flags, 0, id, to, 0, payload);
        self.answers_below = self.waiting().max(MESSAGE_BYTES_MAX) + ANSWER_BYTES;
    }

    /// Appends a GROUP_SEND.
    pub(crate) fn group_message(&mut self, flags: u8, id: u64, group: u64, payload: &[u8]) {
        self.append(Kind::GroupSend, flags, 0, id, group, 0, payload);
        self.answers_below = self.waiting().max(MESSAGE_BYTES_MAX) + ANSWER_BYTES;
    }

    /// Appends a GROUP_JOIN, GROUP_LEAVE or MARK: frames about a group that have no body.
    pub(crate) fn about_group(&mut self, kind: Kind, aux: u16, id: u64, group: u64, stamp: u64) {
        self.append(kind, 0, aux, id, group, stamp, &[]);
        self.answers_below = self.waiting().max(MESSAGE_BYTES_MAX) + ANSWER_BYTES;
    }

    /// Appends a CALL.
    pub(crate) fn call(&mut self, id: u64, call: &Call) {
        let flags = if call.safe { call_flags::SAFE } else { 0 };
        self.append(Kind::Call, flags, call.service, id, call.key, 0, &call.payload);
        self.answers_below = self.waiting().max(MESSAGE_BYTES_MAX) + ANSWER_BYTES;
    }

    /// Appends an ACK.
    pub(crate) fn ack(&mut self, Due { key: (from, id), stamp, cumulative }: Due) {
        let flags = if cumulative { flags::CUMULATIVE } else { 0 };
        self.append(Kind::Ack, flags, 0, id, from, stamp, &[]);
    }

    /// Appends a SYNC.
    pub(crate) fn sync(&mut self, aux: u16, sync: &Sync) {
        self.make_room();
        encode_message(&mut self.bytes, Kind::Sync, aux, sync);
    }

    /// Appends a WATCH or UNWATCH.
    pub(crate) fn watch(&mut self, kind: Kind, watch: &Watch) {
        self.make_room();
        encode_message(&mut self.bytes, kind, 0, watch);
        self.answers_below = self.waiting().max(MESSAGE_BYTES_MAX) + ANSWER_BYTES;
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
        if self.written >= MESSAGE_BYTES_MAX {
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
            self.answers_below = MESSAGE_BYTES_MAX + ANSWER_BYTES;
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
        assert!(out.bytes.len() <= 3 * MESSAGE_BYTES_MAX, "{}", out.bytes.len());
    }

    #[test]
    fn messages_leave_room_for_answers_and_both_are_bounded() {
        for payload_bytes in [100, 65_000, 1 << 20] {
            let mut out = Outbound::default();
            let payload = vec![0; payload_bytes];
            while out.has_room() {
                out.message(0, 1, 2, &payload);
            }
            let messages = out.waiting();
            assert!(messages < MESSAGE_BYTES_MAX + payload_bytes + 32, "{messages}");
            let mut answers = 0;
            while out.has_room_for_answers() {
                out.ack(Due { key: (2, 1), stamp: 1, cumulative: false });
                answers += 1;
            }
            assert_eq!(answers, ANSWER_BYTES / 32, "behind messages of {payload_bytes} bytes");
            assert!(out.waiting() <= messages + ANSWER_BYTES);
        }
    }
}
