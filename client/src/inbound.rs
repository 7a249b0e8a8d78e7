//! Bytes from the gateway, cut into frames.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use trunkline_proto::{Frame, Violation, decode, frame_len};

/// Room for one read: many small frames at once, little memory for a quiet client.
const READ_BYTES: usize = 16 * 1024;

/// The receive buffer. It never holds more than one frame of the largest size and one read.
#[derive(Debug)]
pub(crate) struct Inbound {
    bytes: Vec<u8>,
    /// Bytes before it belong to frames already handed out.
    start: usize,
    frame_bytes_max: u32,
}

impl Inbound {
    pub(crate) fn new(frame_bytes_max: u32) -> Self {
        Self { bytes: Vec::new(), start: 0, frame_bytes_max }
    }

    pub(crate) fn set_frame_bytes_max(&mut self, frame_bytes_max: u32) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, Violation> {
        match decode(&self.bytes[self.start..], self.frame_bytes_max)? {
            Some((frame, consumed)) => {
                self.start += consumed;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }

    /// Reads once; 0 means the other side has closed. To be called when [`Self::next`] has nothing left, so what is
    /// moved to the front is less than a frame. Cancelling it loses nothing.
    pub(crate) async fn fill(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.bytes.drain(..self.start);
        self.start = 0;
        // An unusable length is reported by `next`, which sees the same bytes.
        let frame_bytes = frame_len(&self.bytes, self.frame_bytes_max).ok().flatten().unwrap_or(0);
        let missing = frame_bytes.saturating_sub(self.bytes.len());
        self.bytes.reserve(missing.max(READ_BYTES));
        reader.read_buf(&mut self.bytes).await
    }
}
