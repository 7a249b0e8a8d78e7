//! The sending side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use trunkline_proto::Outcome;

use crate::calls::{Call, CallRequest, Reply};
use crate::group_asks::{Act, GroupAsk, PageAsk};
use crate::presence::{WatchAsk, checked};
use crate::receipt::OnlyWaiter;
use crate::state::{Command, Shared, Taken};
use crate::sync::Ask;
use crate::unsettled::{InsertError, NotTaken};
use crate::{
    Error, GroupPage, Guard, History, Message, Outgoing, Page, Payload, Receipt, Resume, SessionInfo, is_live_room,
};

#[cfg(doc)]
use crate::Config;

/// The sending side. Clones share the connection; when the last of them and the [`crate::Events`] are dropped, the
/// client logs out.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) taken: mpsc::Sender<Taken>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) unacked_max: usize,
    pub(crate) fate_timeout: Duration,
}

impl Client {
    /// Queues a message to user `to`, delivered at most once, and returns its id. Waits while the queue is full. The
    /// gateway reports nothing about it but what [`crate::Event::ServerError`] carries; a recipient who is offline
    /// never gets it.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Closed`].
    pub async fn send(&self, to: u64, payload: impl Into<Payload>) -> Result<u64, Error> {
        self.send_once(to, false, Bytes::from(payload.into())).await
    }

    async fn send_once(&self, to: u64, group: bool, payload: Bytes) -> Result<u64, Error> {
        self.check(to, group, &payload)?;
        let slot = self.slot().await?;
        if !self.shared.is_connected() {
            return Err(Error::NotConnected);
        }
        let id = self.shared.ids.next();
        slot.send(Command::Send { id, to, group, payload });
        Ok(id)
    }

    /// Sends a message to user `to`, delivered at least once (exactly once to a recipient that removes duplicates), and
    /// waits for its fate. Works without a connection, too: then it waits for the next one.
    ///
    /// Dropping the future gives the message up: nobody else knows of it. It is not sent any more and no longer counts
    /// against [`Config::unacked_max`]; it may have been delivered before.
    ///
    /// # Errors
    /// [`Error::TooManyUnacked`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Outbox`],
    /// [`Error::Refused`], [`Error::UnknownOutcome`], [`Error::NoFate`], [`Error::Closed`].
    pub async fn send_acked(&self, to: u64, payload: impl Into<Payload>) -> Result<Outcome, Error> {
        let mut waiter = OnlyWaiter(self.send_tracked(to, payload).await?);
        (&mut waiter.0).await
    }

    /// The first half of [`Self::send_acked`]: returns as soon as the message is queued. Messages are sent in the order
    /// of these calls, and their fates can be awaited in any order, or not at all.
    ///
    /// # Errors
    /// [`Error::TooManyUnacked`], [`Error::NoSuchUser`], [`Error::PayloadTooLarge`], [`Error::Outbox`],
    /// [`Error::Closed`].
    pub async fn send_tracked(&self, to: u64, payload: impl Into<Payload>) -> Result<Receipt, Error> {
        self.submit(Outgoing::new(to, payload)).await
    }

    /// [`Self::send_tracked`] with all there is to choose: an id of the application's own, and how long the fate is
    /// waited for. After a crash the same message under the same id is recognised by its recipient.
    ///
    /// With [`Config::outbox`] the message is kept over a crash from the moment on in which this returns. Then
    /// [`Error::DuplicateId`] is good news to an application that does a piece of work again after a crash: the message
    /// is under way already, if it is one of [`Self::unsettled`] to the same user.
    ///
    /// Every [`Outcome`] settles it, those that did not bring it to anybody, too; sending it again is up to the
    /// application.
    ///
    /// # Errors
    /// As [`Self::send_tracked`], and [`Error::ZeroId`], [`Error::DuplicateId`].
    pub async fn submit(&self, message: Outgoing) -> Result<Receipt, Error> {
        let permit = self.shared.unsettled.reserve().ok_or(Error::TooManyUnacked { max: self.unacked_max })?;
        self.submit_with(permit, message).await
    }

    /// [`Self::submit`] that waits while [`Config::unacked_max`] messages have no known fate, where that fails. For
    /// whoever has more to send than may be under way at a time: memory stays bounded, and the speed is that of the
    /// recipients. When the future is dropped, the message has not been taken.
    ///
    /// ```no_run
    /// # use trunkline_client::{Client, Error, Outgoing};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// for user in 1..=10_000 {
    ///     client.submit_when_room(Outgoing::new(user, "maintenance at noon")).await?.detach();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::submit`], without [`Error::TooManyUnacked`].
    pub async fn submit_when_room(&self, message: Outgoing) -> Result<Receipt, Error> {
        let permit = tokio::select! {
            permit = self.shared.unsettled.reserve_when_room() => permit,
            // What is left when the client ends keeps its place, so that there may never be room again.
            () = self.commands.closed() => None,
        };
        self.submit_with(permit.ok_or_else(|| self.shared.closed())?, message).await
    }

    async fn submit_with(&self, permit: OwnedSemaphorePermit, message: Outgoing) -> Result<Receipt, Error> {
        self.check(message.to, message.group, &message.payload)?;
        let id = match message.id {
            Some(0) => return Err(Error::ZeroId),
            Some(id) => id,
            None => self.shared.ids.next(),
        };
        let slot = self.slot().await?;
        let announce = |serial| slot.send(Command::SendTracked { serial });
        let taken = self.shared.unsettled.insert(id, message, self.fate_timeout, permit, announce);
        let (serial, answer) = taken.map_err(|error| match error {
            InsertError::NotTaken(NotTaken::Duplicate) => Error::DuplicateId { id },
            InsertError::NotTaken(NotTaken::Closed) => self.shared.closed(),
            InsertError::Outbox(error) => Error::Outbox(error),
        })?;
        let shared = self.shared.clone();
        Ok(Receipt { id, serial, answer, shared })
    }

    /// The messages whose fate is not known, in the order of sending. After the end of the client: those that were
    /// left, for another client to send with their ids, or for the application to keep.
    #[must_use]
    pub fn unsettled(&self) -> Vec<Outgoing> {
        self.shared.unsettled.list()
    }

    /// A receipt for a message that is on its way and that nobody waits for: its receipt was dropped, or it comes from
    /// [`Config::outbox`]. `None` when there is no such message.
    #[must_use]
    pub fn receipt(&self, id: u64) -> Option<Receipt> {
        let (serial, answer) = self.shared.unsettled.attach(id)?;
        Some(Receipt { id, serial, answer, shared: self.shared.clone() })
    }

    /// Acknowledges a message, where [`Config::acknowledge`] leaves that to the application. Nothing happens for a
    /// message that wants no acknowledgement. It may be called on another connection than the one the message came on.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn ack(&self, message: &Message) -> Result<(), Error> {
        if !message.wants_ack() {
            return Ok(());
        }
        let sent = self.taken.send(Taken::of(message)).await;
        sent.map_err(|_closed| self.shared.closed())
    }

    /// Holds a message whose acknowledgement is up to what becomes of the [`Guard`], where [`Config::acknowledge`]
    /// leaves that to the application. Waits while [`Config::event_queue_len`] and 16 others are held.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn guard(&self, message: Message) -> Result<Guard, Error> {
        if !message.wants_ack() {
            return Ok(Guard::new(message, None));
        }
        let slot = self.taken.clone().reserve_owned().await.map_err(|_closed| self.shared.closed())?;
        Ok(Guard::new(message, Some(slot)))
    }

    /// Calls a service, and waits for its answer. The gateway gives one in any case while the connection holds.
    ///
    /// # Errors
    /// [`Error::Call`], also when the connection breaks meanwhile; [`Error::NotConnected`], [`Error::PayloadTooLarge`],
    /// [`Error::Closed`].
    pub async fn call(&self, service: u16, payload: impl Into<Payload>) -> Result<Reply, Error> {
        self.call_with(Call::new(service, payload)).await
    }

    /// [`Self::call`] with all there is to choose.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with(&self, call: Call) -> Result<Reply, Error> {
        self.shared.check_payload(call.payload.len())?;
        let slot = self.slot().await?;
        if !self.shared.is_connected() {
            return Err(Error::NotConnected);
        }
        let (answer, reply) = oneshot::channel();
        slot.send(Command::Call(CallRequest { id: self.shared.ids.next(), call, answer }));
        reply.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
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

    /// A page of what the gateway holds of this user's inbox: messages that some registered device has not acknowledged
    /// yet. Pages are got one after the other, whoever asks; the events should be taken meanwhile, since the page comes
    /// behind those that are on their way.
    ///
    /// ```no_run
    /// # use trunkline_client::{Client, Error, History};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let mut request = History::all();
    /// loop {
    ///     let page = client.history(request).await?;
    ///     for message in &page.messages {
    ///         println!("{} at {}: {:?}", message.from, message.time_ms(), message.text());
    ///     }
    ///     if page.complete {
    ///         break;
    ///     }
    ///     request = History::after(page.next);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotConnected`], also when the connection breaks meanwhile; [`Error::Refused`], with 21 where the
    /// gateway keeps nothing; [`Error::Closed`].
    pub async fn history(&self, history: History) -> Result<Page, Error> {
        let (answer, page) = oneshot::channel();
        self.slot().await?.send(Command::History(Ask { history, answer }));
        page.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
    }

    /// Joins a group, or this session a live room (ids from 2^63 on, see [`is_live_room`]), and returns the position of
    /// its last message: what comes as an event lies behind it. It changes nothing for a member. A membership of a
    /// group is the user's, on all devices, until [`Self::leave_group`]; one of a live room is this client's, which
    /// joins the room again after each reconnect.
    ///
    /// # Errors
    /// [`Error::NotConnected`], also when the connection breaks meanwhile: the join may have taken effect then, and
    /// asking again does no harm. [`Error::Refused`], with 19 where this user cannot join by itself, 22 at a limit, and
    /// 21 where the gateway keeps no groups. [`Error::NoSuchUser`] for group 0; [`Error::Closed`].
    pub async fn join_group(&self, group: u64) -> Result<u64, Error> {
        self.ask_group(group, Act::Join).await
    }

    /// Leaves a group or a live room: no message of it comes once this has returned. It changes nothing for one who is
    /// not in it.
    ///
    /// # Errors
    /// As [`Self::join_group`]; without a connection a live room is left already.
    pub async fn leave_group(&self, group: u64) -> Result<(), Error> {
        self.ask_group(group, Act::Leave).await.map(|_stamp| ())
    }

    /// Opens a group whose messages are to come as they are sent, however large it is: in a group with more members
    /// than the gateway is set to (10,000) a session is told otherwise only now and then, within 5 s, that there are
    /// some, and fetches them then; [`crate::Event::GroupGap`] says so. What came before is fetched. It holds over
    /// reconnects, until [`Self::close_group`] or [`Self::leave_group`], and changes nothing for a small group or a
    /// live room.
    ///
    /// # Errors
    /// As [`Self::join_group`]: [`Error::Refused`] with 19 for one who is no member; with 14 where the gateway cannot
    /// say yet, after it has been asked several times within some 15 s. After a reconnect it is asked until it can.
    pub async fn open_group(&self, group: u64) -> Result<(), Error> {
        self.attend(group, Act::Open).await
    }

    /// The opposite of [`Self::open_group`].
    ///
    /// # Errors
    /// As [`Self::open_group`].
    pub async fn close_group(&self, group: u64) -> Result<(), Error> {
        self.attend(group, Act::Close).await
    }

    async fn attend(&self, group: u64, act: Act) -> Result<(), Error> {
        if is_live_room(group) {
            return Ok(());
        }
        self.ask_group(group, act).await.map(|_stamp| ())
    }

    async fn ask_group(&self, group: u64, act: Act) -> Result<u64, Error> {
        self.check(group, true, &[])?;
        let (answer, done) = oneshot::channel();
        let slot = self.slot().await?;
        slot.send(Command::Group(GroupAsk { group, id: self.shared.ids.next(), act, answer }));
        done.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
    }

    /// Queues a message to a group or live room, sent at most once, and returns its id: [`Self::send`] to a group.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_to_group(&self, group: u64, payload: impl Into<Payload>) -> Result<u64, Error> {
        self.send_once(group, true, Bytes::from(payload.into())).await
    }

    /// Sends a message to a group or live room and waits for its fate: [`Outcome::Stored`] in a group, where it is on
    /// the gateway's disk before a member sees it, [`Outcome::Accepted`] in a live room; [`Outcome::Denied`] to one who
    /// is not in it or is muted, and [`Outcome::Overloaded`] where the group has had its messages of this second. It is
    /// sent again after a reconnect, and is in the group once. [`Self::submit`] with [`Outgoing::to_group`] has all
    /// there is to choose.
    ///
    /// The own message does not come back as an event; the user's other devices get it
    /// ([`crate::GroupMessage::is_own`]).
    ///
    /// # Errors
    /// As [`Self::send_acked`]; [`Error::Refused`] with 11 for more messages than a member may send in a second.
    pub async fn send_to_group_acked(&self, group: u64, payload: impl Into<Payload>) -> Result<Outcome, Error> {
        let mut waiter = OnlyWaiter(self.submit(Outgoing::to_group(group, payload)).await?);
        (&mut waiter.0).await
    }

    /// Fetches what a group has behind a position, as [`crate::Event::GroupMessage`]s, and goes on from there: for an
    /// application that has a history of its own, or that wants more than what comes from now on after
    /// [`crate::Event::GroupHeads`]. Not needed where [`Config::resume`] says where the groups stand. Without effect
    /// for a live room.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn follow_group(&self, group: u64, after_stamp: u64) -> Result<(), Error> {
        self.slot().await?.send(Command::Follow { group, after: after_stamp });
        Ok(())
    }

    /// Watches whether these users are online: the gateway tells of each with [`crate::Event::Presence`], and of every
    /// change from then on. It tells that a user has come at once, that one has gone after ten seconds, and of no user
    /// more often than every five. After a reconnect they are watched again. A gateway allows a session 1,000 users if
    /// it is not told otherwise; beyond that it takes none of them and says so with [`crate::Event::ServerError`] 22,
    /// and with 21 where nobody may be watched.
    ///
    /// # Errors
    /// [`Error::NoSuchUser`] if user 0 is among them, [`Error::Closed`].
    pub async fn watch(&self, users: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        self.ask_watch(WatchAsk::Follow(checked(users)?)).await
    }

    /// Asks once whether these users are online; the answer is an [`crate::Event::Presence`].
    ///
    /// # Errors
    /// [`Error::NotConnected`]; [`Error::NoSuchUser`] if user 0 is among them; [`Error::Closed`].
    pub async fn ask_presence(&self, users: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        if !self.shared.is_connected() {
            return Err(Error::NotConnected);
        }
        self.ask_watch(WatchAsk::Once(checked(users)?)).await
    }

    /// Watches these users no more.
    ///
    /// # Errors
    /// [`Error::NoSuchUser`] if user 0 is among them, [`Error::Closed`].
    pub async fn unwatch(&self, users: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        let users = checked(users)?;
        if users.is_empty() {
            return Ok(());
        }
        self.ask_watch(WatchAsk::Stop(users)).await
    }

    /// Watches nobody any more.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn unwatch_all(&self) -> Result<(), Error> {
        self.ask_watch(WatchAsk::Stop(Vec::new())).await
    }

    async fn ask_watch(&self, ask: WatchAsk) -> Result<(), Error> {
        self.slot().await?.send(Command::Watch(ask));
        Ok(())
    }

    /// Marks a group as read by this user up to a position, [`crate::GroupMessage::stamp`]. It never goes back; others
    /// see it with `GET /v1/groups/{id}/reads`. Nothing is answered. Without effect for a live room.
    ///
    /// # Errors
    /// [`Error::NotConnected`], [`Error::NoSuchUser`] for group 0, [`Error::Closed`].
    pub async fn mark_read(&self, group: u64, stamp: u64) -> Result<(), Error> {
        self.check(group, true, &[])?;
        let slot = self.slot().await?;
        if !self.shared.is_connected() {
            return Err(Error::NotConnected);
        }
        if !is_live_room(group) {
            slot.send(Command::Mark { group, stamp });
        }
        Ok(())
    }

    /// A page of what the gateway holds of a group, without any effect on what comes as an event: for looking back. The
    /// next page is [`History::after`] of [`GroupPage::next`], until [`GroupPage::complete`].
    ///
    /// # Errors
    /// As [`Self::history`]; [`Error::Refused`] with 19 for one who is no member, and with 21 for a live room.
    pub async fn group_history(&self, group: u64, history: History) -> Result<GroupPage, Error> {
        // Group 0 would be the inbox.
        self.check(group, true, &[])?;
        let (answer, page) = oneshot::channel();
        self.slot().await?.send(Command::GroupPage(PageAsk { group, history, answer }));
        page.await.unwrap_or_else(|_ended| Err(self.shared.closed()))
    }

    /// Where this device stands, for [`Config::resume`] of a later process.
    #[must_use]
    pub fn resume(&self) -> Resume {
        self.shared.resume()
    }

    /// Sends what is queued, logs out and waits for the end. Messages whose fate is still unknown end with
    /// [`Error::Closed`] and are returned, as [`Self::unsettled`] does from then on. Calling it again, on any clone, is
    /// harmless.
    pub async fn close(&self) -> Vec<Outgoing> {
        if let Ok(slot) = self.commands.reserve().await {
            slot.send(Command::Close);
        }
        self.commands.closed().await;
        self.unsettled()
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

    fn check(&self, to: u64, group: bool, payload: &[u8]) -> Result<(), Error> {
        if to == 0 {
            return Err(Error::NoSuchUser);
        }
        self.shared.check_payload_to(group, payload.len())
    }

    async fn slot(&self) -> Result<mpsc::Permit<'_, Command>, Error> {
        self.commands.reserve().await.map_err(|_closed| self.shared.closed())
    }
}
