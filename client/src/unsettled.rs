//! Messages whose fate is not known: what is sent again after each login.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};
use trunkline_proto::Outcome;

use crate::{Error, Outbox, Outgoing, Payload, Reason};

pub(crate) type Fate = Result<Outcome, Error>;

/// Shared by the handles, which put messages in and give them up, and the task that sends them and hears of their
/// fates.
#[derive(Debug)]
pub(crate) struct Unsettled {
    messages: Mutex<Messages>,
    permits: Arc<Semaphore>,
    /// The earliest deadline has changed.
    deadline_moved: Notify,
    outbox: Option<Arc<dyn Outbox>>,
}

#[derive(Debug, Default)]
struct Messages {
    /// By serial, which is the order of sending.
    by_serial: BTreeMap<u64, Entry>,
    /// The serial of each id.
    serials: HashMap<u64, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    serial_next: u64,
    /// No fate will come any more.
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    to: u64,
    group: bool,
    payload: Payload,
    /// It may have gone out before: on an earlier connection, or from an earlier process.
    is_retry: bool,
    no_store: bool,
    timeout: Duration,
    /// `None` for a time that is never over.
    deadline: Option<Instant>,
    /// Whoever waits; `None` for a message of an earlier process.
    fate: Option<oneshot::Sender<Fate>>,
    /// Counts against [`crate::Config::unacked_max`] until dropped.
    _permit: OwnedSemaphorePermit,
}

/// A message as it goes out.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) serial: u64,
    pub(crate) id: u64,
    pub(crate) to: u64,
    pub(crate) group: bool,
    pub(crate) payload: Payload,
    pub(crate) is_retry: bool,
    pub(crate) no_store: bool,
}

/// Why a message is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Another one with this id is under way.
    Duplicate,
    /// The client has ended.
    Closed,
}

impl Messages {
    fn remove(&mut self, serial: u64) -> Option<Entry> {
        let entry = self.by_serial.remove(&serial)?;
        self.serials.remove(&entry.id);
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, serial));
        }
        Some(entry)
    }

    fn insert(&mut self, entry: Entry) -> u64 {
        let serial = self.serial_next;
        self.serial_next += 1;
        self.serials.insert(entry.id, serial);
        if let Some(deadline) = entry.deadline {
            self.deadlines.insert((deadline, serial));
        }
        self.by_serial.insert(serial, entry);
        serial
    }
}

impl Unsettled {
    pub(crate) fn new(len_max: usize, outbox: Option<Arc<dyn Outbox>>) -> Self {
        let permits = Arc::new(Semaphore::new(len_max));
        Self { messages: Mutex::default(), permits, deadline_moved: Notify::new(), outbox }
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more message, while there is some.
    pub(crate) fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Room for one more message, as soon as there is some; callers are served in their order. `None` never comes while
    /// this lives.
    pub(crate) async fn reserve_when_room(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// Takes over what the outbox has kept from an earlier process.
    ///
    /// # Errors
    /// [`Error::Outbox`], [`Error::TooManyUnacked`].
    pub(crate) fn load(&self, timeout: Duration, len_max: usize) -> Result<(), Error> {
        let Some(outbox) = &self.outbox else {
            return Ok(());
        };
        let kept = outbox.load().map_err(Error::Outbox)?;
        let mut messages = self.lock();
        for message in kept {
            // An outbox gives back what it was given: with an id, and each once. What has none cannot have come from
            // here.
            let Some(id) = message.id.filter(|id| *id != 0 && !messages.serials.contains_key(id)) else {
                let unusable = "it gave back a message without an id, or two with the same";
                return Err(Error::Outbox(std::io::Error::new(std::io::ErrorKind::InvalidData, unusable)));
            };
            let permit = self.reserve().ok_or(Error::TooManyUnacked { max: len_max })?;
            let timeout = message.timeout.unwrap_or(timeout);
            messages.insert(Entry {
                id,
                to: message.to,
                group: message.group,
                payload: message.payload,
                is_retry: true,
                no_store: message.no_store,
                timeout,
                deadline: Instant::now().checked_add(timeout),
                fate: None,
                _permit: permit,
            });
        }
        Ok(())
    }

    /// Keeps a message, in the outbox first if there is one; `announce` is called with its serial while no other
    /// message can come between.
    pub(crate) fn insert(
        &self,
        id: u64,
        message: Outgoing,
        timeout: Duration,
        permit: OwnedSemaphorePermit,
        announce: impl FnOnce(u64),
    ) -> Result<(u64, oneshot::Receiver<Fate>), InsertError> {
        let timeout = message.timeout.unwrap_or(timeout);
        self.check(&self.lock(), id).map_err(InsertError::NotTaken)?;
        if let Some(outbox) = &self.outbox {
            // Not under the lock: the task that owns the connection should not wait for a disk.
            outbox.put(&Outgoing { id: Some(id), ..message.clone() }).map_err(InsertError::Outbox)?;
        }
        let (fate, answer) = oneshot::channel();
        let deadline = Instant::now().checked_add(timeout);
        let mut messages = self.lock();
        if let Err(why) = self.check(&messages, id) {
            drop(messages);
            if let (NotTaken::Closed, Some(outbox)) = (&why, &self.outbox) {
                outbox.settle(id, &Err(Error::Cancelled));
            }
            return Err(InsertError::NotTaken(why));
        }
        let Outgoing { to, group, payload, retry: is_retry, no_store, .. } = message;
        let fate = Some(fate);
        let entry = Entry { id, to, group, payload, is_retry, no_store, timeout, deadline, fate, _permit: permit };
        let serial = messages.insert(entry);
        let is_earliest = deadline.is_some() && messages.deadlines.first() == deadline.map(|at| (at, serial)).as_ref();
        announce(serial);
        drop(messages);
        if is_earliest {
            self.deadline_moved.notify_one();
        }
        Ok((serial, answer))
    }

    /// Waits for the fate of a message that is here and nobody waits for.
    pub(crate) fn attach(&self, id: u64) -> Option<(u64, oneshot::Receiver<Fate>)> {
        let mut messages = self.lock();
        if messages.closed {
            return None;
        }
        let serial = *messages.serials.get(&id)?;
        let entry = messages.by_serial.get_mut(&serial)?;
        if entry.fate.as_ref().is_some_and(|waits| !waits.is_closed()) {
            return None;
        }
        let (fate, answer) = oneshot::channel();
        entry.fate = Some(fate);
        Some((serial, answer))
    }

    /// Whom the message with this id is to, if it is here, and whether that is a group.
    pub(crate) fn recipient(&self, id: u64) -> Option<(u64, bool)> {
        let messages = self.lock();
        let entry = messages.by_serial.get(messages.serials.get(&id)?)?;
        Some((entry.to, entry.group))
    }

    fn check(&self, messages: &Messages, id: u64) -> Result<(), NotTaken> {
        if messages.closed {
            return Err(NotTaken::Closed);
        }
        if messages.serials.contains_key(&id) {
            return Err(NotTaken::Duplicate);
        }
        Ok(())
    }

    /// The serial of the next message that will be put in: all that are here have smaller ones.
    pub(crate) fn serial_next(&self) -> u64 {
        self.lock().serial_next
    }

    /// The first message whose serial is in `serials`, to be sent: from then on it counts as sent before.
    pub(crate) fn take_first(&self, serials: Range<u64>) -> Option<Next> {
        let mut messages = self.lock();
        let (&serial, entry) = messages.by_serial.range_mut(serials).next()?;
        let is_retry = std::mem::replace(&mut entry.is_retry, true);
        let (payload, no_store) = (entry.payload.clone(), entry.no_store);
        Some(Next { serial, id: entry.id, to: entry.to, group: entry.group, payload, is_retry, no_store })
    }

    /// The fate of the message with this id to this recipient is known; `fate` is asked for it if there is such a
    /// message.
    pub(crate) fn settle_id(&self, id: u64, to: u64, fate: impl FnOnce() -> Fate) -> bool {
        let mut messages = self.lock();
        let serial = messages.serials.get(&id).copied();
        let serial = serial.filter(|serial| messages.by_serial.get(serial).is_some_and(|entry| entry.to == to));
        let entry = serial.and_then(|serial| messages.remove(serial));
        drop(messages);
        let found = entry.is_some();
        if let Some(entry) = entry {
            self.tell(entry, fate());
        }
        found
    }

    /// The fate of the message with this serial is known, if it is still here.
    pub(crate) fn settle(&self, serial: u64, fate: Fate) -> bool {
        let entry = self.lock().remove(serial);
        let found = entry.is_some();
        if let Some(entry) = entry {
            self.tell(entry, fate);
        }
        found
    }

    fn tell(&self, entry: Entry, fate: Fate) {
        if let Some(outbox) = &self.outbox {
            outbox.settle(entry.id, &fate);
        }
        if let Some(waits) = entry.fate {
            // A caller that no longer waits has no interest in the fate.
            drop(waits.send(fate));
        }
    }

    /// Gives up each message when its time is over. Never returns; cancelling it loses nothing.
    pub(crate) async fn expire(&self) -> Infallible {
        loop {
            let next = self.lock().deadlines.first().copied();
            let due = async {
                match next {
                    Some((deadline, _serial)) => sleep_until(deadline).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let waited = |entry: &Entry| Error::NoFate { waited: entry.timeout };
                    let entry = next.and_then(|(_deadline, serial)| self.lock().remove(serial));
                    if let Some(entry) = entry {
                        let fate = Err(waited(&entry));
                        self.tell(entry, fate);
                    }
                }
                () = self.deadline_moved.notified() => {}
            }
        }
    }

    /// What is here, in the order of sending.
    pub(crate) fn list(&self) -> Vec<Outgoing> {
        let messages = self.lock();
        let list = messages.by_serial.values().map(|entry| Outgoing {
            to: entry.to,
            group: entry.group,
            payload: entry.payload.clone(),
            id: Some(entry.id),
            timeout: Some(entry.timeout),
            retry: entry.is_retry,
            no_store: entry.no_store,
        });
        list.collect()
    }

    /// The end: everybody who waits hears of it. The messages stay, for whoever asks for them, and in the outbox.
    pub(crate) fn close(&self, reason: &Reason) {
        let mut messages = self.lock();
        messages.closed = true;
        let waiting: Vec<_> = messages.by_serial.values_mut().filter_map(|entry| entry.fate.take()).collect();
        messages.deadlines.clear();
        drop(messages);
        for waits in waiting {
            // A caller that no longer waits has no interest in the fate.
            drop(waits.send(Err(Error::Closed(reason.clone()))));
        }
    }
}

/// Why [`Unsettled::insert`] failed.
#[derive(Debug)]
pub(crate) enum InsertError {
    NotTaken(NotTaken),
    Outbox(std::io::Error),
}
