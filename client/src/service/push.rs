//! Pushes: to whom they go, and what becomes of them.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::oneshot;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Frame, Outcome, PushHead, PushReport, call_flags, flags};

use super::{PushTo, ServiceError, Shared};
use crate::Payload;

/// A push with all there is to choose, for [`super::Service::push_with`].
///
/// ```
/// use std::time::Duration;
/// use trunkline_client::service::Push;
///
/// // Nobody sees a code that is no longer worth anything.
/// let code = Push::to_device(42, "phone", "your code is 1234").with_ttl(Duration::from_secs(60));
/// let all = Push::to_group(77, "we close in ten minutes").without_store();
/// # drop((code, all));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    head: PushHead,
    payload: Bytes,
    id: Option<u64>,
    no_store: bool,
}

impl Push {
    fn new(head: PushHead, payload: impl Into<Payload>) -> Self {
        Self { head, payload: payload.into().into(), id: None, no_store: false }
    }

    /// To a user, on all devices.
    pub fn to_user(user: u64, payload: impl Into<Payload>) -> Self {
        Self::to_users([user], payload)
    }

    /// To several users, 1 to 1,000; one that is named twice gets it once.
    pub fn to_users(users: impl IntoIterator<Item = u64>, payload: impl Into<Payload>) -> Self {
        Self::new(PushHead { users: users.into_iter().collect(), ..PushHead::default() }, payload)
    }

    /// To the device of this name alone, while it is there: nothing is stored for one device.
    pub fn to_device(user: u64, device: impl Into<String>, payload: impl Into<Payload>) -> Self {
        Self::new(PushHead { users: vec![user], device: device.into(), ..PushHead::default() }, payload)
    }

    /// To a group, or a live room (ids from 2^63 on), which counts as one recipient: stored in a group, accepted in a
    /// room. The service need not be a member. Where the gateway has a keys file, the worker's key needs the scope
    /// `push:group`.
    pub fn to_group(group: u64, payload: impl Into<Payload>) -> Self {
        Self::new(PushHead { group, ..PushHead::default() }, payload)
    }

    /// The same with an id of the application's own, never 0: a user's device gets one that is pushed again under the
    /// same id once.
    #[must_use]
    pub fn with_id(self, id: u64) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The same, kept for nobody who is offline.
    #[must_use]
    pub fn without_store(self) -> Self {
        Self { no_store: true, ..self }
    }

    /// The same with an end: nobody gets it later, and who has not got it by then ends as expired. Whole seconds, begun
    /// ones count; 30 days at most. Not for a group.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        let begun = u64::from(ttl.subsec_nanos() > 0);
        self.head.ttl_secs = u32::try_from(ttl.as_secs().saturating_add(begun)).unwrap_or(u32::MAX).max(1);
        self
    }

    /// Whose pushes it keeps its order with.
    pub(super) fn first_recipient(&self) -> u64 {
        self.head.users.first().copied().unwrap_or(self.head.group)
    }

    /// What goes out, and where its report comes back; `next_id` makes an id where there is none.
    pub(super) fn encode(self, service: u16, next_id: impl FnOnce() -> u64) -> (PushTo, Told<PushReport>) {
        let head = self.head.encode_to_vec();
        let mut body = BytesMut::with_capacity(2 + head.len() + self.payload.len());
        // A longer one, of more users than may be, is refused: here if it does not fit into a frame, else there.
        body.put_u16(u16::try_from(head.len()).unwrap_or(u16::MAX));
        body.put(&head[..]);
        body.put(self.payload);
        let no_store = if self.no_store { flags::NO_STORE } else { 0 };
        let (waits, told) = oneshot::channel();
        let push = PushTo {
            id: self.id.unwrap_or_else(next_id),
            service,
            user: 0,
            flags: flags::ACK | call_flags::HEAD | no_store,
            body: body.freeze(),
            fate: Some(Fate::Report(waits)),
        };
        (push, told)
    }
}

/// Where what became of a push comes back.
pub(super) type Told<T> = oneshot::Receiver<Result<T, ServiceError>>;

/// Whoever waits for what becomes of a push.
#[derive(Debug)]
pub(super) enum Fate {
    Outcome(oneshot::Sender<Result<Outcome, ServiceError>>),
    Report(oneshot::Sender<Result<PushReport, ServiceError>>),
}

impl Fate {
    /// PUSHED has come. Whoever no longer waits misses nothing.
    pub(super) fn told(self, frame: &Frame<'_>) {
        match self {
            Self::Outcome(waits) => {
                let unknown = || ServiceError::Protocol(format!("fate {}", frame.aux));
                drop(waits.send(Outcome::from_u16(frame.aux).ok_or_else(unknown)));
            }
            Self::Report(waits) => {
                let report = PushReport::decode(frame.body);
                drop(waits.send(report.map_err(|error| ServiceError::Protocol(error.to_string()))));
            }
        }
    }

    /// It was refused, or nothing will be heard of it.
    pub(super) fn failed(self, error: ServiceError) {
        match self {
            Self::Outcome(waits) => drop(waits.send(Err(error))),
            Self::Report(waits) => drop(waits.send(Err(error))),
        }
    }
}

/// Pushes for a worker, for whoever else is to: its handlers above all, which are there before the worker is. Clones
/// are cheap, and none of them keeps the worker from ending.
///
/// ```no_run
/// use trunkline_client::service::{Answer, Request, Service};
///
/// # async fn example() -> Result<(), trunkline_client::service::ServiceError> {
/// let builder = Service::connect("127.0.0.1:7791", "orders-1");
/// let pusher = builder.pusher();
/// let service = builder
///     .serve(7, move |request: Request| {
///         let pusher = pusher.clone();
///         async move {
///             tokio::spawn(async move {
///                 match pusher.push(7, request.user, "your order is on its way").await {
///                     Ok(outcome) => println!("user {}: {outcome:?}", request.user),
///                     Err(error) => eprintln!("user {}: {error}", request.user),
///                 }
///             });
///             Answer::ok("order taken")
///         }
///     })
///     .start()
///     .await?;
/// # service.drain().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Pusher(Arc<OnceLock<Weak<Shared>>>);

impl Pusher {
    /// Of a worker that has not started.
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// The worker has started.
    pub(super) fn begin(&self, shared: &Arc<Shared>) {
        // A builder is used up when it starts, so this is the first time.
        let _first = self.0.set(Arc::downgrade(shared));
    }

    fn shared(&self) -> Result<Arc<Shared>, ServiceError> {
        self.0.get().and_then(Weak::upgrade).ok_or(ServiceError::NotConnected)
    }

    /// [`super::Service::push`].
    ///
    /// # Errors
    /// As there; [`ServiceError::NotConnected`] before the worker has started and after it has ended.
    pub async fn push(&self, service: u16, user: u64, payload: impl Into<Payload>) -> Result<Outcome, ServiceError> {
        let shared = self.shared()?;
        shared.push_as(shared.ids.next(), service, user, payload.into()).await
    }

    /// [`super::Service::push_with`].
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn push_with(&self, service: u16, push: Push) -> Result<PushReport, ServiceError> {
        self.shared()?.push_with(service, push).await
    }
}

impl Shared {
    pub(super) async fn push_as(
        &self,
        id: u64,
        service: u16,
        user: u64,
        payload: Payload,
    ) -> Result<Outcome, ServiceError> {
        let (waits, told) = oneshot::channel();
        let fate = Some(Fate::Outcome(waits));
        self.queue_push(user, PushTo { id, service, user, flags: flags::ACK, body: payload.into(), fate }).await?;
        told.await.unwrap_or(Err(ServiceError::FateUnknown))
    }

    pub(super) async fn push_with(&self, service: u16, push: Push) -> Result<PushReport, ServiceError> {
        let first = push.first_recipient();
        let (push, told) = push.encode(service, || self.ids.next());
        self.queue_push(first, push).await?;
        told.await.unwrap_or(Err(ServiceError::FateUnknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;

    fn head(push: &Push) -> PushHead {
        let (push, _told) = push.clone().encode(7, || 9);
        let len = usize::from(u16::from_be_bytes([push.body[0], push.body[1]]));
        PushHead::decode(&push.body[2..2 + len]).expect("a head")
    }

    #[test]
    fn a_push_says_in_its_head_whom_it_is_for_and_keeps_its_payload() {
        let users = |users: &[u64]| PushHead { users: users.to_vec(), ..PushHead::default() };
        assert_eq!(head(&Push::to_user(42, "x")), users(&[42]));
        assert_eq!(head(&Push::to_users(1..=3, "x")), users(&[1, 2, 3]));
        assert_eq!(head(&Push::to_device(42, "phone", "x")), PushHead { device: "phone".into(), ..users(&[42]) });
        assert_eq!(head(&Push::to_group(77, "x")), PushHead { group: 77, ..PushHead::default() });
        for (push, id, store) in [
            (Push::to_group(77, "hello"), 9, 0),
            (Push::to_group(77, "hello").with_id(4).without_store(), 4, flags::NO_STORE),
        ] {
            let (push, _told) = push.encode(7, || 9);
            assert_eq!((push.id, push.service, push.user), (id, 7, 0));
            assert_eq!(push.flags, flags::ACK | call_flags::HEAD | store);
            assert!(push.body.ends_with(b"hello"));
        }
    }

    #[test]
    fn a_time_to_live_is_whole_seconds_and_never_none() {
        for (ttl, secs) in [
            (Duration::ZERO, 1),
            (Duration::from_millis(1), 1),
            (Duration::from_secs(60), 60),
            (Duration::from_millis(60_001), 61),
            (Duration::MAX, u32::MAX),
        ] {
            assert_eq!(head(&Push::to_user(42, "x").with_ttl(ttl)).ttl_secs, secs, "{ttl:?}");
        }
    }

    #[tokio::test]
    async fn before_it_starts_and_after_it_has_ended_a_worker_pushes_nothing() {
        let pusher = Service::connect("127.0.0.1:1", "w").pusher();
        assert!(matches!(pusher.push(7, 1, "x").await, Err(ServiceError::NotConnected)));
        assert!(matches!(pusher.push_with(7, Push::to_user(1, "x")).await, Err(ServiceError::NotConnected)));
    }
}
