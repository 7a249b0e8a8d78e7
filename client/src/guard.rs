//! A message in the hands of somebody who may fail.

use std::ops::Deref;

use tokio::sync::mpsc::OwnedPermit;

use crate::Message;
use crate::state::Taken;

/// A message that is acknowledged by what becomes of its guard: [`Guard::ack`] when the work on it is done. A guard
/// that is dropped before, with the task that held it or by a panic, gives the message back: it is delivered again
/// after some seconds, or after the next login, and then it is an event as the first time.
///
/// It is made by [`crate::Client::guard`], and is for applications that work on several messages at a time
/// ([`crate::Acknowledge::Manually`]); it may be sent to another task or thread.
///
/// ```no_run
/// # use trunkline_client::{Acknowledge, Client, Config, Event};
/// # async fn work_on(_body: &[u8]) {}
/// # async fn example() -> Result<(), trunkline_client::Error> {
/// let config = Config { user: 1, acknowledge: Acknowledge::Manually, ..Config::default() };
/// let (client, mut events) = Client::connect(config).await?;
/// while let Some(event) = events.next().await {
///     if let Event::Message(message) = event {
///         let guard = client.guard(message).await?;
///         tokio::spawn(async move {
///             work_on(&guard.body).await;
///             guard.ack();
///         });
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a guard that is dropped gives its message back"]
pub struct Guard {
    message: Message,
    /// Room for what becomes of it; `None` for a message that wants no acknowledgement.
    slot: Option<OwnedPermit<Taken>>,
}

impl Guard {
    pub(crate) fn new(message: Message, slot: Option<OwnedPermit<Taken>>) -> Self {
        Self { message, slot }
    }

    /// Acknowledges the message: the sender is told "delivered", and no gateway delivers it again. Never waits.
    pub fn ack(mut self) -> Message {
        self.settle(true);
        self.message.clone()
    }

    fn settle(&mut self, is_done: bool) {
        if let Some(slot) = self.slot.take() {
            slot.send(Taken { is_done, ..Taken::of(&self.message) });
        }
    }
}

impl Deref for Guard {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.settle(false);
    }
}
