//! Answers in parts.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Out, ServiceError};
use crate::Payload;

/// What comes of an answer before the last part of it, which is what the handler returns: for a handler of
/// [`ServiceBuilder::serve_in_parts`](super::ServiceBuilder::serve_in_parts). The caller gets each part as it is sent.
///
/// The first part has to come within the time of the call, and the last one within 60 s of the first; else the caller
/// hears that nobody knows what was done. A call that has had a part goes to no other worker.
#[derive(Debug)]
pub struct Parts {
    pub(super) id: u64,
    pub(super) out: mpsc::Sender<Out>,
    /// The longest part that fits into a frame.
    pub(super) bytes_max: usize,
}

impl Parts {
    /// Sends one part. Waits while the link has as much to write as it takes, so a handler that makes parts faster than
    /// they leave is held back. What is sent after the handler has returned is nobody's.
    ///
    /// # Errors
    /// [`ServiceError::NotConnected`] when the link has ended, and with it the call;
    /// [`ServiceError::AnswerTooLarge`] for a part that does not fit into a frame, of which nothing is sent.
    pub async fn send(&self, part: impl Into<Payload>) -> Result<(), ServiceError> {
        let body: Bytes = part.into().into();
        if body.len() > self.bytes_max {
            return Err(ServiceError::AnswerTooLarge { bytes: body.len(), bytes_max: self.bytes_max });
        }
        let part = Out::Part { id: self.id, body };
        self.out.send(part).await.map_err(|_ended| ServiceError::NotConnected)
    }
}
