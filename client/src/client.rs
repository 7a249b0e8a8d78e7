//! The handles of the application.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use trunkline_proto::Outcome;

use crate::outlet::Outlet;
use crate::state::{Command, Shared, State, Taken, Unacked};
use crate::window::Window;
use crate::{Config, Dial, Error, Event, Message, Tcp, driver};

/// Room for acknowledgements beyond one for each event in the queue: what an application takes while there is no connection
/// never has to wait.
const TAKEN_SPARE: usize = 16;

/// What the gateway said at the last login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Address of the connection, after redirections.
    pub addr: String,
    /// The session's number, unique on its node.
    pub session: u64,
    /// Name of the node.
    pub node: String,
    /// The shard that serves this user there.
    pub shard: u32,
    /// The heartbeat the gateway chose; after two of them without a byte from it the connection counts as dead.
    pub heartbeat: Duration,
    /// Largest frame in both directions, header included, in bytes.
    pub frame_bytes_max: u32,
    /// When the session ends with its token, unless that is renewed: milliseconds since the Unix epoch by the gateway's
    /// clock; 0 never.
    pub expires_ms: u64,
}

/// The sending side. Clones share the connection; when the last of them and [`Events`] are dropped, the client logs out.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    taken: mpsc::Sender<Taken>,
    shared: Arc<Shared>,
    unacked_max: usize,
}

impl Client {
    /// Connects over TCP and logs in. Later reconnects happen by themselves; this first attempt is made once at each of
    /// [`Config::addrs`], until one takes it, so that wrong addresses or a wrong token are reported and not repeated.
    ///
    /// Must be called within a tokio runtime, which then runs the task that owns the connection.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Token`], [`Error::Connect`], [`Error::Timeout`], [`Error::LoginRefused`],
    /// [`Error::LoginCut`], [`Error::Protocol`]; of several addresses that of the last one tried.
    pub async fn connect(config: Config) -> Result<(Self, Events), Error> {
        Self::connect_with(config, Tcp).await
    }

    /// As [`Self::connect`], over connections made by `dial`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with<D: Dial>(config: Config, mut dial: D) -> Result<(Self, Events), Error> {
        config.validate().map_err(Error::Config)?;
        let (link, route) = driver::first_login(&mut dial, &config).await?;

        let shared = Arc::new(Shared::new(config.unacked_max, link.info.clone()));
        let (commands, commands_queue) = mpsc::channel(config.send_queue_len);
        let (taken, taken_queue) = mpsc::channel(config.event_queue_len + TAKEN_SPARE);
        let (events, events_queue) = mpsc::channel(config.event_queue_len);
        let client = Self { commands, taken, shared: shared.clone(), unacked_max: config.unacked_max };
        let events_handle = Events { queue: events_queue, client: client.clone(), auto_ack: config.auto_ack };
        let state = State {
            commands: commands_queue,
            taken: taken_queue,
            outlet: Outlet::new(events, config.event_wait),
            window: Window::new(config.dedup_window_len),
            unacked: BTreeMap::new(),
            shared,
        };
        tokio::spawn(driver::run(dial, config, state, route, link));
        Ok((client, events_handle))
    }

    /// Queues a message to user `to`, delivered at most once, and returns its id. Waits while the queue is full. The gateway
    /// reports nothing about it but what [`Event::ServerError`] carries; a recipient who is offline never gets it.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Closed`].
    pub async fn send(&self, to: u64, payload: impl Into<Vec<u8>>) -> Result<u64, Error> {
        let payload = payload.into();
        self.check(to, &payload)?;
        let slot = self.slot().await?;
        if !self.shared.is_connected() {
            return Err(Error::NotConnected);
        }
        let id = self.shared.ids.next();
        slot.send(Command::Send { id, to, payload });
        Ok(id)
    }

    /// Sends a message to user `to`, delivered at least once (exactly once to a recipient that removes duplicates), and
    /// waits for its fate. Works without a connection, too: then it waits for the next one.
    ///
    /// Dropping the future gives up waiting; the message may or may not be delivered.
    ///
    /// # Errors
    /// [`Error::TooManyUnacked`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Refused`],
    /// [`Error::UnknownOutcome`], [`Error::Closed`].
    pub async fn send_acked(&self, to: u64, payload: impl Into<Vec<u8>>) -> Result<Outcome, Error> {
        self.send_tracked(to, payload).await?.outcome().await
    }

    /// The first half of [`Self::send_acked`]: returns as soon as the message is queued. Messages are sent in the order of
    /// these calls, and their fates can be awaited in any order.
    ///
    /// # Errors
    /// [`Error::TooManyUnacked`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Closed`].
    pub async fn send_tracked(&self, to: u64, payload: impl Into<Vec<u8>>) -> Result<Receipt, Error> {
        let payload = payload.into();
        self.check(to, &payload)?;
        let Ok(permit) = self.shared.unacked.clone().try_acquire_owned() else {
            let max = self.unacked_max;
            return Err(Error::TooManyUnacked { max });
        };
        let (fate, answer) = oneshot::channel();
        let message = Unacked { to, payload, fate, _permit: permit };
        let slot = self.slot().await?;
        let id = self.shared.ids.next();
        slot.send(Command::SendAcked { id, message });
        let shared = self.shared.clone();
        Ok(Receipt { id, answer, shared })
    }

    /// Acknowledges a message, for clients with [`Config::auto_ack`] off. Nothing happens for a message that wants no
    /// acknowledgement. It may be called on another connection than the one the message came on.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn ack(&self, message: &Message) -> Result<(), Error> {
        if !message.wants_ack() {
            return Ok(());
        }
        let sent = self.taken.send(taken(message)).await;
        sent.map_err(|_closed| self.shared.closed())
    }

    /// Sends a PING and returns how long its answer took, waiting in this process's queue included.
    ///
    /// # Errors
    /// [`Error::NotConnected`], also when the connection breaks meanwhile; [`Error::TooManyPings`]; [`Error::Closed`].
    pub async fn ping(&self) -> Result<Duration, Error> {
        let (answer, round_trip) = oneshot::channel();
        self.slot().await?.send(Command::Ping { answer });
        round_trip.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
    }

    /// Sends what is queued, logs out and waits for the end. Messages whose fate is still unknown end with
    /// [`Error::Closed`]. Calling it again, on any clone, is harmless.
    pub async fn close(&self) {
        if let Ok(slot) = self.commands.reserve().await {
            slot.send(Command::Close);
        }
        self.commands.closed().await;
    }

    /// Whether there is a logged-in connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.is_connected()
    }

    /// What the gateway said at the last login.
    #[must_use]
    pub fn session(&self) -> SessionInfo {
        self.shared.info()
    }

    fn check(&self, to: u64, payload: &[u8]) -> Result<(), Error> {
        if to == 0 {
            return Err(Error::NoSuchUser);
        }
        self.shared.check_payload(payload.len())
    }

    async fn slot(&self) -> Result<mpsc::Permit<'_, Command>, Error> {
        self.commands.reserve().await.map_err(|_closed| self.shared.closed())
    }
}

fn taken(message: &Message) -> Taken {
    Taken { from: message.from, id: message.id, stamp: message.stamp }
}

/// A message on its way.
#[derive(Debug)]
pub struct Receipt {
    id: u64,
    answer: oneshot::Receiver<Result<Outcome, Error>>,
    shared: Arc<Shared>,
}

impl Receipt {
    /// The message's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the message's fate, over reconnects if need be.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::PayloadTooLarge`] if a later gateway takes smaller frames, [`Error::UnknownOutcome`],
    /// [`Error::Closed`].
    pub async fn outcome(self) -> Result<Outcome, Error> {
        self.answer.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
    }
}

/// The receiving side.
///
/// When it is dropped, arriving messages are discarded without acknowledgement; sending goes on working.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    client: Client,
    auto_ack: bool,
}

impl Events {
    /// The next event; `None` after the last, which is [`Event::Disconnected`] with no `retry_in`. With
    /// [`Config::auto_ack`], a message is acknowledged by being returned from here.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        if !self.auto_ack {
            return self.queue.recv().await;
        }
        // Reserved before the event is taken, so that there is no point in between where cancelling could lose either.
        let Ok(slot) = self.client.taken.reserve().await else {
            // The client has ended; what is left in the queue can no longer be acknowledged.
            return self.queue.recv().await;
        };
        let event = self.queue.recv().await;
        if let Some(Event::Message(message)) = &event
            && message.wants_ack()
        {
            slot.send(taken(message));
        }
        event
    }
}
