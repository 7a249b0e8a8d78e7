//! What outlives a connection, and what happens to it while there is none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use trunkline_proto::HEADER_LONG;

use crate::calls::CallRequest;
use crate::follow::Follows;
use crate::group_asks::{Act, GroupAsk, PageAsk};
use crate::ids::MessageIds;
use crate::outlet::Outlet;
use crate::presence::{WatchAsk, Watched};
use crate::recall::Recall;
use crate::sync::Ask;
use crate::unsettled::Unsettled;
use crate::window::Window;
use crate::{Error, Event, Message, Outbox, Reason, Resume, SessionInfo, is_live_room};

/// What the handles ask of the task that owns the connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// At most once; to a user, or to a group.
    Send { id: u64, to: u64, group: bool, payload: Bytes },
    /// At least once: the message with this serial, if it has not been given up meanwhile.
    SendTracked { serial: u64 },
    /// Measure the round trip.
    Ping { answer: oneshot::Sender<Result<Duration, Error>> },
    /// Ask a service.
    Call(CallRequest),
    /// A page of the inbox.
    History(Ask),
    /// Join or leave a group.
    Group(GroupAsk),
    /// A page of a group.
    GroupPage(PageAsk),
    /// The application has a group up to there, and wants what lies behind.
    Follow { group: u64, after: u64 },
    /// This user has read a group up to there.
    Mark { group: u64, stamp: u64 },
    /// Watch who is online, or no more.
    Watch(WatchAsk),
    /// Log out and end.
    Close,
}

/// The application is done with this message, or has let go of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) stamp: u64,
    /// It is to be acknowledged; or else to be delivered again.
    pub(crate) is_done: bool,
}

impl Taken {
    pub(crate) fn of(message: &Message) -> Self {
        Self { from: message.from, id: message.id, stamp: message.stamp, is_done: true }
    }
}

/// What the handles can see without asking the task.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ids: MessageIds,
    pub(crate) unsettled: Unsettled,
    connected: AtomicBool,
    frame_bytes_max: AtomicU32,
    info: Mutex<SessionInfo>,
    /// The gateway's ticket to go on with this session.
    ticket: Mutex<Vec<u8>>,
    /// Highest stamp that the application is done with.
    last_stamp: AtomicU64,
    /// The same for each group: as many as [`Follows`] keeps account of.
    group_stamps: Mutex<BTreeMap<u64, u64>>,
    ended: OnceLock<Reason>,
}

impl Shared {
    pub(crate) fn new(unacked_max: usize, outbox: Option<Arc<dyn Outbox>>, info: SessionInfo, resume: Resume) -> Self {
        Self {
            ids: MessageIds::new(),
            unsettled: Unsettled::new(unacked_max, outbox),
            connected: AtomicBool::new(true),
            frame_bytes_max: AtomicU32::new(info.frame_bytes_max),
            info: Mutex::new(info),
            ticket: Mutex::new(resume.token),
            last_stamp: AtomicU64::new(resume.last_stamp),
            group_stamps: Mutex::new(resume.groups.into_iter().collect()),
            ended: OnceLock::new(),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn info(&self) -> SessionInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the next login goes on with.
    pub(crate) fn resume(&self) -> Resume {
        let token = self.ticket.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let groups = self.lock_groups().iter().map(|(group, stamp)| (*group, *stamp)).collect();
        Resume { token, last_stamp: self.last_stamp.load(Ordering::Relaxed), groups }
    }

    fn lock_groups(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.group_stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The application is done with the messages of a group up to there, if that group is kept account of.
    pub(crate) fn note_group(&self, group: u64, stamp: u64) {
        self.note_stamp(stamp);
        if let Some(known) = self.lock_groups().get_mut(&group) {
            *known = stamp.max(*known);
        }
    }

    /// A group is kept account of from this position on, or again from there.
    pub(crate) fn begin_group(&self, group: u64, stamp: u64) {
        self.lock_groups().insert(group, stamp);
    }

    /// A group is no longer kept account of.
    pub(crate) fn end_group(&self, group: u64) {
        self.lock_groups().remove(&group);
    }

    /// The application is done with the message at this position.
    pub(crate) fn note_stamp(&self, stamp: u64) {
        self.last_stamp.fetch_max(stamp, Ordering::Relaxed);
    }

    /// Why the task has ended.
    pub(crate) fn end_reason(&self) -> Reason {
        self.ended.get().cloned().unwrap_or(Reason::Aborted)
    }

    /// The error of a call that comes after the end.
    pub(crate) fn closed(&self) -> Error {
        Error::Closed(self.end_reason())
    }

    /// The end; the first reason counts.
    fn end(&self, reason: Reason) {
        self.connected.store(false, Ordering::Relaxed);
        let reason = self.ended.get_or_init(|| reason);
        self.unsettled.close(reason);
    }

    /// Whether a payload of this size fits into a frame of the present, or else last, connection.
    pub(crate) fn check_payload(&self, bytes: usize) -> Result<(), Error> {
        let bytes_max = self.frame_bytes_max.load(Ordering::Relaxed) as usize - HEADER_LONG;
        if bytes > bytes_max {
            return Err(Error::PayloadTooLarge { bytes, bytes_max });
        }
        Ok(())
    }
}

impl Shared {
    /// The same for a message to a user or to a group; a group's members get the sender's id in front of it.
    pub(crate) fn check_payload_to(&self, group: bool, bytes: usize) -> Result<(), Error> {
        let spare = if group { size_of::<u64>() } else { 0 };
        self.check_payload(bytes + spare).map_err(|error| match error {
            Error::PayloadTooLarge { bytes, bytes_max } => {
                Error::PayloadTooLarge { bytes: bytes - spare, bytes_max: bytes_max.saturating_sub(spare) }
            }
            other => other,
        })
    }
}

/// Ends what is shared when the task is torn down, by a panic or with its runtime, before it could do so itself.
#[derive(Debug)]
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end(Reason::Aborted);
    }
}

/// Owned by the task.
#[derive(Debug)]
pub(crate) struct State {
    /// Dropped before the queues are: who finds one closed finds the reason, too.
    _end: EndGuard,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) taken: mpsc::Receiver<Taken>,
    pub(crate) outlet: Outlet,
    pub(crate) window: Window,
    /// What this session was given and the application has not got.
    pub(crate) recall: Recall,
    /// What this client has of its groups.
    pub(crate) groups: Follows,
    /// Who is watched.
    pub(crate) watched: Watched,
    /// Tracked messages with smaller serials are no longer in the queue of commands: they are sent after each login.
    pub(crate) announced_below: u64,
    pub(crate) shared: Arc<Shared>,
}

impl State {
    pub(crate) fn new(
        commands: mpsc::Receiver<Command>,
        taken: mpsc::Receiver<Taken>,
        outlet: Outlet,
        window: Window,
        shared: Arc<Shared>,
    ) -> Self {
        // What an outbox has kept was never in the queue.
        let announced_below = shared.unsettled.serial_next();
        let (end, recall) = (EndGuard(shared.clone()), Recall::default());
        let groups = Follows::new(&shared.resume().groups);
        let watched = Watched::default();
        Self { _end: end, commands, taken, outlet, window, recall, groups, watched, announced_below, shared }
    }

    /// A connection is lost.
    pub(crate) fn go_offline(&self) {
        self.shared.connected.store(false, Ordering::Relaxed);
    }

    /// A connection is made: callers may send again, in frames of the size that this one takes. A login that the
    /// gateway answered without its store has no ticket; then the one from before is kept.
    pub(crate) fn go_online(&mut self, info: &SessionInfo, ticket: &[u8]) {
        if !ticket.is_empty() {
            *self.shared.ticket.lock().unwrap_or_else(PoisonError::into_inner) = ticket.to_vec();
        }
        self.shared.frame_bytes_max.store(info.frame_bytes_max, Ordering::Relaxed);
        *self.shared.info.lock().unwrap_or_else(PoisonError::into_inner) = info.clone();
        self.shared.connected.store(true, Ordering::Relaxed);
    }

    /// The session has another token: until then it lasts.
    pub(crate) fn set_expires_ms(&self, expires_ms: u64) {
        self.shared.info.lock().unwrap_or_else(PoisonError::into_inner).expires_ms = expires_ms;
    }

    /// Tells the application; a message that cannot be told must count as new when it comes again.
    pub(crate) fn tell(&mut self, event: Event) {
        if let Err(dropped) = self.outlet.push(event) {
            self.forget([dropped]);
        }
    }

    pub(crate) fn forget(&mut self, dropped: impl IntoIterator<Item = Event>) {
        for event in dropped {
            match event {
                Event::Message(message) => {
                    self.window.forget((message.from, message.id));
                    // Without a listener it waits for one that logs in.
                    if message.wants_ack() && !self.outlet.is_abandoned() {
                        self.recall.note(message.stamp);
                    }
                }
                Event::GroupMessage(message) if !self.outlet.is_abandoned() => self.groups.dropped(&message),
                _ => {}
            }
        }
    }

    /// The application is done with a message, or has given it back. Returns the stamp to acknowledge, if that is due.
    pub(crate) fn settle_taken(&mut self, Taken { from, id, stamp, is_done }: Taken) -> Option<u64> {
        if is_done {
            self.shared.note_stamp(stamp);
            // What is acknowledged already was so by the application itself, and is now for the second time.
            return self.window.take((from, id), stamp);
        }
        if let Some(stamp) = self.window.put_back((from, id)) {
            self.recall.note(stamp);
        }
        None
    }

    /// Serves the handles while there is no connection. Returns when the client is to end. Cancelling it loses nothing.
    pub(crate) async fn serve_offline(&mut self) {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None | Some(Command::Close) => return,
                    Some(Command::Ping { answer }) => drop(answer.send(Err(Error::NotConnected))),
                    Some(Command::Call(call)) => call.refuse(Error::NotConnected),
                    Some(Command::History(ask)) => drop(ask.answer.send(Err(Error::NotConnected))),
                    Some(Command::Group(ask)) => self.ask_group_offline(ask),
                    Some(Command::GroupPage(ask)) => drop(ask.answer.send(Err(Error::NotConnected))),
                    Some(Command::Follow { group, after }) => self.follow(group, after),
                    Some(Command::Watch(ask)) => self.watched.note(&ask),
                    Some(Command::SendTracked { serial }) => self.announced_below = serial + 1,
                    // At most once: it was queued before the connection broke and goes with it.
                    Some(Command::Send { .. } | Command::Mark { .. }) => {}
                },
                Some(taken) = self.taken.recv() => {
                    // Acknowledged when the gateway delivers it again.
                    self.settle_taken(taken);
                }
                dropped = self.outlet.settle() => self.forget(dropped),
            }
        }
    }

    /// A session is in a live room, so that without one this client has left.
    fn ask_group_offline(&mut self, GroupAsk { group, act, answer, .. }: GroupAsk) {
        let has_left = act == Act::Leave && is_live_room(group);
        if has_left {
            self.groups.left(group);
        }
        // A caller that no longer waits has no interest in the answer.
        drop(answer.send(if has_left { Ok(0) } else { Err(Error::NotConnected) }));
    }

    /// The application has a group up to there, and wants what lies behind.
    pub(crate) fn follow(&mut self, group: u64, after: u64) {
        if self.groups.follow(group, after) {
            self.shared.begin_group(group, after);
        }
    }

    /// The end: every waiting caller hears of it, then the application.
    pub(crate) async fn finish(mut self, reason: Reason) {
        self.shared.end(reason.clone());
        self.commands.close();
        self.taken.close();
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Ping { answer } => drop(answer.send(Err(self.shared.closed()))),
                Command::Call(call) => call.refuse(self.shared.closed()),
                Command::History(ask) => drop(ask.answer.send(Err(self.shared.closed()))),
                Command::Group(ask) => drop(ask.answer.send(Err(self.shared.closed()))),
                Command::GroupPage(ask) => drop(ask.answer.send(Err(self.shared.closed()))),
                Command::Send { .. }
                | Command::SendTracked { .. }
                | Command::Follow { .. }
                | Command::Mark { .. }
                | Command::Watch(_)
                | Command::Close => {}
            }
        }
        let retry_in = None;
        self.outlet.finish(Event::Disconnected { reason, retry_in }).await;
    }
}
