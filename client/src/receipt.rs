//! A message on its way, as its sender sees it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use trunkline_proto::Outcome;

use crate::Error;
use crate::state::Shared;
use crate::unsettled::Fate;

/// A message on its way. It is a future, too: `tokio::time::timeout(limit, &mut receipt)` waits for a while and leaves
/// the message alone.
///
/// Dropping it changes nothing about the message, as [`Receipt::detach`]; only [`Receipt::cancel`] gives it up.
#[derive(Debug)]
#[must_use = "await `outcome`, or say what becomes of the message with `detach` or `cancel`"]
pub struct Receipt {
    pub(crate) id: u64,
    pub(crate) serial: u64,
    pub(crate) answer: oneshot::Receiver<Fate>,
    pub(crate) shared: Arc<Shared>,
}

impl Receipt {
    /// The message's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the message's fate, over reconnects if need be. When the future is dropped, the message goes on
    /// without anybody waiting.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::PayloadTooLarge`] if a later gateway takes smaller frames,
    /// [`Error::UnknownOutcome`],
    /// [`Error::NoFate`] after [`crate::Config::fate_timeout`], [`Error::Closed`].
    pub async fn outcome(self) -> Result<Outcome, Error> {
        self.await
    }

    /// Lets the message go on without anybody waiting: it is sent again after each reconnect, and counts against
    /// [`crate::Config::unacked_max`], until its fate is known or its time is over.
    pub fn detach(self) {
        drop(self);
    }

    /// Gives the message up, at once: it is not sent any more, and no longer counts against
    /// [`crate::Config::unacked_max`]. What was sent before may have been delivered. Returns whether the fate was still
    /// open.
    pub fn cancel(self) -> bool {
        self.shared.unsettled.settle(self.serial, Err(Error::Cancelled))
    }
}

impl Future for Receipt {
    type Output = Result<Outcome, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let fate = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(fate.unwrap_or_else(|_ended| Err(self.shared.closed())))
    }
}

/// A receipt whose message is given up with it: nobody else knows of the message.
#[derive(Debug)]
pub(crate) struct OnlyWaiter(pub(crate) Receipt);

impl Drop for OnlyWaiter {
    fn drop(&mut self) {
        self.0.shared.unsettled.settle(self.0.serial, Err(Error::Cancelled));
    }
}
