//! Calls to services: what is asked, what comes back, and the calls of one connection that are open.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::oneshot;
use trunkline_proto::{Code, Frame, call_flags};

use crate::{Error, Payload};

/// Calls under way at once. The gateway allows 32 by default.
const CALLS_MAX: usize = 1_024;

/// Parts of one answer before its last.
const PARTS_MAX: usize = 4_096;

/// A call of a service, for [`crate::Client::call_with`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub(crate) service: u16,
    pub(crate) payload: Bytes,
    pub(crate) safe: bool,
    pub(crate) key: u64,
}

impl Call {
    /// A call of this service, 1 … 65,535.
    #[must_use]
    pub fn new(service: u16, payload: impl Into<Payload>) -> Self {
        Self { service, payload: payload.into().into(), safe: false, key: 0 }
    }

    /// It may be carried out more than once: the gateway gives it to another worker when the first is lost.
    #[must_use]
    pub fn safe(self) -> Self {
        Self { safe: true, ..self }
    }

    /// A number that workers which ask for it are told.
    #[must_use]
    pub fn routing_key(self, key: u64) -> Self {
        Self { key, ..self }
    }
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// 0, or what the service means by 256 and more.
    pub status: u16,
    /// The last part of the answer, and mostly the only one.
    pub body: Bytes,
    /// The parts that came before it.
    pub parts: Vec<Bytes>,
}

/// What the task that owns the connection is asked.
#[derive(Debug)]
pub(crate) struct CallRequest {
    pub(crate) id: u64,
    pub(crate) call: Call,
    pub(crate) answer: oneshot::Sender<Result<Reply, Error>>,
}

impl CallRequest {
    /// It was not sent.
    pub(crate) fn refuse(self, error: Error) {
        // A caller that no longer waits has no interest in the answer.
        drop(self.answer.send(Err(error)));
    }
}

#[derive(Debug)]
struct OpenCall {
    parts: Vec<Bytes>,
    answer: oneshot::Sender<Result<Reply, Error>>,
}

/// The calls of one connection that have had no last REPLY.
#[derive(Debug, Default)]
pub(crate) struct OpenCalls(HashMap<u64, OpenCall>);

impl OpenCalls {
    /// Whether one more may be made.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < CALLS_MAX
    }

    /// A call has been sent.
    pub(crate) fn add(&mut self, id: u64, answer: oneshot::Sender<Result<Reply, Error>>) {
        self.0.insert(id, OpenCall { parts: Vec::new(), answer });
    }

    /// A REPLY. One that matches nothing belongs to a call that was given up.
    pub(crate) fn replied(&mut self, frame: &Frame<'_>) {
        let Some(open) = self.0.get_mut(&frame.id) else { return };
        let body = Bytes::copy_from_slice(frame.body);
        if frame.flags & call_flags::MORE != 0 && open.parts.len() < PARTS_MAX {
            open.parts.push(body);
            return;
        }
        let Some(OpenCall { parts, answer }) = self.0.remove(&frame.id) else { return };
        let reply = match frame.aux {
            _ if frame.flags & call_flags::MORE != 0 => {
                Err(Error::Call { code: Code::Overloaded.as_u16(), text: format!("more than {PARTS_MAX} parts") })
            }
            0 | 256.. => Ok(Reply { status: frame.aux, body, parts }),
            code => Err(Error::Call { code, text: String::from_utf8_lossy(frame.body).into_owned() }),
        };
        drop(answer.send(reply));
    }

    /// An ERROR; whether it was about a call.
    pub(crate) fn refused(&mut self, id: u64, code: u16, text: &str) -> bool {
        let Some(open) = self.0.remove(&id) else { return false };
        drop(open.answer.send(Err(Error::Call { code, text: text.to_owned() })));
        true
    }

    /// The connection has ended: whether these were carried out nobody knows.
    pub(crate) fn end(&mut self) {
        for (_, open) in self.0.drain() {
            let (code, text) = (Code::OutcomeUnknown.as_u16(), "the connection broke before the answer".to_owned());
            drop(open.answer.send(Err(Error::Call { code, text })));
        }
    }
}
