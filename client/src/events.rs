//! The receiving side.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::mpsc::error::TrySendError;

use crate::state::{Shared, Taken};
use crate::{Acknowledge, Client, Event, is_live_room};

type Reserving = Pin<Box<dyn Future<Output = Option<OwnedPermit<Taken>>> + Send + Sync>>;

/// The receiving side. With the feature `stream` (on by default) it is a [`futures_core::Stream`], too.
///
/// When it is dropped, arriving messages are discarded without acknowledgement; sending goes on working. A program that
/// does this from the start should be [`crate::Config::ephemeral`]: otherwise a gateway with a store keeps for it what
/// it never takes. To get messages and to send meanwhile, take events in one task and send with clones of [`Client`] in
/// others.
#[must_use = "messages that nobody takes are not acknowledged, and after a while dropped"]
pub struct Events {
    pub(crate) queue: mpsc::Receiver<Event>,
    /// Keeps the session for as long as anybody listens.
    pub(crate) client: Client,
    pub(crate) shared: Arc<Shared>,
    pub(crate) acknowledge: Acknowledge,
    /// The application works on this message; it is acknowledged when the next event is asked for.
    pub(crate) at_work: Option<Taken>,
    /// The application works on a message of this group, at this position.
    pub(crate) group_at_work: Option<(u64, u64)>,
    pub(crate) slot: Slot,
    /// The last event has been returned.
    pub(crate) ended: bool,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("acknowledge", &self.acknowledge).field("ended", &self.ended).finish()
    }
}

impl Events {
    /// The next event; `None` after the last, which is always [`Event::Disconnected`] with no `retry_in`.
    ///
    /// With [`Acknowledge::OnNext`], the message before it is acknowledged by this call; with [`Acknowledge::OnTake`],
    /// the message it returns.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next_event(cx)).await
    }

    fn poll_next_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(taken) = self.at_work {
            // Without a slot the client has ended: the message comes again after the next login.
            if let Some(slot) = ready!(self.slot.poll(&self.client, cx)) {
                slot.send(taken);
            }
            self.at_work = None;
        }
        if let Some((group, stamp)) = self.group_at_work.take() {
            self.shared.note_group(group, stamp);
        }
        if self.acknowledge == Acknowledge::OnTake {
            // Held before the event is taken, so that there is no point in between where cancelling could lose either.
            ready!(self.slot.poll_held(&self.client, cx));
        }
        let event = ready!(self.queue.poll_recv(cx)).or_else(|| self.missing_end());
        if let Some(Event::Message(message)) = &event
            && message.wants_ack()
        {
            match self.acknowledge {
                Acknowledge::OnNext => self.at_work = Some(Taken::of(message)),
                Acknowledge::OnTake => self.slot.send(Taken::of(message)),
                Acknowledge::Manually => {}
            }
        }
        if let Some(Event::GroupMessage(message)) = &event
            && !is_live_room(message.group)
        {
            let place = (message.group, message.stamp);
            match self.acknowledge {
                Acknowledge::OnTake => self.shared.note_group(place.0, place.1),
                Acknowledge::OnNext | Acknowledge::Manually => self.group_at_work = Some(place),
            }
        }
        self.ended |= matches!(event, Some(Event::Disconnected { retry_in: None, .. }));
        Poll::Ready(event)
    }

    /// The task that owns the connection could not say that it has ended, since it was torn down.
    fn missing_end(&self) -> Option<Event> {
        (!self.ended).then(|| Event::Disconnected { reason: self.shared.end_reason(), retry_in: None })
    }
}

#[cfg(feature = "stream")]
impl futures_core::Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_next_event(cx)
    }
}

/// Room for one acknowledgement on its way to the task that owns the connection, reserved ahead.
#[derive(Default)]
pub(crate) struct Slot {
    held: Option<OwnedPermit<Taken>>,
    reserving: Option<Reserving>,
}

impl Slot {
    /// Waits for a slot; `None` when the client has ended.
    fn poll(&mut self, client: &Client, cx: &mut Context<'_>) -> Poll<Option<OwnedPermit<Taken>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(held));
        }
        if self.reserving.is_none() {
            match client.taken.clone().try_reserve_owned() {
                Ok(slot) => return Poll::Ready(Some(slot)),
                Err(TrySendError::Closed(_)) => return Poll::Ready(None),
                Err(TrySendError::Full(taken)) => {
                    self.reserving = Some(Box::pin(async move { taken.reserve_owned().await.ok() }));
                }
            }
        }
        let Some(reserving) = &mut self.reserving else {
            return Poll::Ready(None);
        };
        let slot = ready!(reserving.as_mut().poll(cx));
        self.reserving = None;
        Poll::Ready(slot)
    }

    /// Waits until a slot is held, or the client has ended.
    fn poll_held(&mut self, client: &Client, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.is_none() {
            self.held = ready!(self.poll(client, cx));
        }
        Poll::Ready(())
    }

    /// Uses the slot that is held. Without one the client has ended, and nothing can be acknowledged any more.
    fn send(&mut self, taken: Taken) {
        if let Some(slot) = self.held.take() {
            slot.send(taken);
        }
    }
}
