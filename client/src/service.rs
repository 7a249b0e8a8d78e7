//! The other side of calls: a worker that serves what clients call, and pushes to users.
//!
//! ```no_run
//! use trunkline_client::service::{Answer, Request, Service};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let service = Service::connect("127.0.0.1:7791", "orders-1")
//!     .serve(7, |request: Request| async move { Answer::ok(request.body) })
//!     .start()
//!     .await?;
//! let outcome = service.push(7, 42, "your order is on its way").await?;
//! println!("user 42: {outcome:?}");
//! service.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! Over TLS, with the feature `tls`: [`ServiceBuilder::tls`] and an address `trunkline+tls://…`.
//!
//! A gateway can also be configured to dial its workers: then they are servers, which listen with
//! [`Service::listen`], and all else is the same.
//!
//! [`Service::push_with`] pushes to several users, one device, a group or a live room. A handler pushes with
//! [`ServiceBuilder::pusher`], since it is there before the worker is; and [`ServiceBuilder::on_error`] hears of links
//! that break.
//!
//! A handler of [`ServiceBuilder::serve_in_parts`] answers in [`Parts`], each of which its caller gets at once.
//!
//! A worker has one link for each shard of its gateway, 16 at most, so that no call needs a step between shards; a link
//! that breaks is made again. A request whose caller is gone is given up: the future of its handler is dropped at the
//! next await. One that runs when its link breaks goes on, and its answer finds nobody: its caller has been told that
//! the outcome is unknown, or another worker has it by now.

mod door;
mod parts;
mod push;
mod shares;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{
    Bye, Code, Frame, Header, Invite, Kind, Offer, Outcome, Serve, ServeOk, VERSION, call_flags, decode, encode,
    encode_message,
};

pub use parts::Parts;
pub use push::{Push, Pusher};
pub use trunkline_proto::{CallHead, PushReport};

use push::Fate;

use crate::ids::MessageIds;
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::{Backoff, Dial as _, Payload, Tcp, random};
use door::Door;
use shares::{Share, Shares};

/// Links of one worker.
const LINKS_MAX: u32 = 16;
/// Requests that a worker works on at a time, unless it says otherwise.
const WINDOW: u32 = 256;
/// Time for a connection and for SERVE_OK.
const START_WAIT: Duration = Duration::from_secs(10);
/// Answers and pushes that wait to be written on one link.
const OUT_MAX: usize = 1_024;
/// How much longer than what a worker may send a REQUEST can be.
const HEAD_BYTES_MAX: u32 = 1_024;
/// Time for the INVITE of a gateway, which speaks first.
const INVITE_WAIT: Duration = Duration::from_secs(3);
/// How long a worker which listens waits before it looks for connections again, after the system had none for it.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Number of the PING behind WINDOW 0; those that keep the link alive have 0.
const DRAIN_PING: u16 = 1;
/// Longest frame before the gateway has said what it sends.
const FIRST_BYTES_MAX: u32 = 1 << 20;
/// The longest INVITE that is read: it comes from whoever reaches the port.
const INVITE_BYTES_MAX: u32 = 8 << 10;
/// The longest heartbeat that is believed, in seconds.
const HEARTBEAT_SECS_MAX: u32 = 3_600;

/// A call of a client.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// The service that was called.
    pub service: u16,
    /// Who calls.
    pub user: u64,
    /// The caller's own id for it. With the user it names the call wherever it is sent again.
    pub id: u64,
    /// Another worker may have carried it out.
    pub is_again: bool,
    /// Device, session and time left of the caller, where [`ServiceBuilder::with_heads`] asks for them.
    pub head: Option<CallHead>,
    /// The payload.
    pub body: Bytes,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    flags: u8,
    body: Bytes,
}

impl Answer {
    /// Done: status 0.
    #[must_use]
    pub fn ok(body: impl Into<Payload>) -> Self {
        Self { status: 0, flags: 0, body: body.into().into() }
    }

    /// A status of the service's own, 256 and more; what is less counts as 256.
    #[must_use]
    pub fn status(status: u16, body: impl Into<Payload>) -> Self {
        Self { status: status.max(256), flags: 0, body: body.into().into() }
    }

    /// Nothing was begun: another worker may have the call, or the caller hears that it was not carried out.
    #[must_use]
    pub fn not_begun() -> Self {
        Self { status: 0, flags: call_flags::NOT_BEGUN, body: Bytes::new() }
    }
}

/// Why a worker does not serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServiceError {
    /// No connection could be made, or it broke.
    Io(io::Error),
    /// The gateway said BYE.
    Refused {
        /// Number of the reason; [`crate::Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words.
        text: String,
    },
    /// The other side does not speak the protocol.
    Protocol(String),
    /// There is no link at the moment.
    NotConnected,
    /// This worker does not serve the service, and so may not push for it: [`ServiceBuilder::serve`].
    NotServed {
        /// That service.
        service: u16,
    },
    /// An answer, or a part of one, does not fit into a frame of this gateway, and was left out. Of a whole answer
    /// only [`ServiceBuilder::on_error`] hears; its caller is told when the time for the call is over that nobody knows
    /// what was done ([`crate::Error::Call`] with 24).
    AnswerTooLarge {
        /// Its size.
        bytes: usize,
        /// What fits.
        bytes_max: usize,
    },
    /// The link broke before the fate of the push was known: it may have been delivered.
    FateUnknown,
    /// The payload does not fit into a frame of this gateway.
    PayloadTooLarge,
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the connection to the gateway: {error}"),
            Self::Refused { code, text } => write!(f, "the gateway refused with {code}: {text}"),
            Self::Protocol(what) => write!(f, "the other side is no gateway: {what}"),
            Self::NotConnected => f.write_str("there is no connection to the gateway at the moment"),
            Self::NotServed { service } => {
                write!(f, "this worker does not serve service {service}, and may not push for it")
            }
            Self::AnswerTooLarge { bytes, bytes_max } => {
                write!(f, "an answer of {bytes} bytes was left out: the gateway takes {bytes_max}")
            }
            Self::FateUnknown => f.write_str("the connection broke before the fate of the push was known"),
            Self::PayloadTooLarge => f.write_str("the payload does not fit into a frame of this gateway"),
        }
    }
}

impl std::error::Error for ServiceError {}

impl From<io::Error> for ServiceError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type OnError = Arc<dyn Fn(&ServiceError) + Send + Sync>;
type Handler = Arc<dyn Fn(Request, Parts) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// A worker to be started.
pub struct ServiceBuilder {
    addr: String,
    /// Gateways dial it.
    listens: bool,
    name: String,
    token: String,
    gateway_key: Option<String>,
    window: u32,
    heads: bool,
    weight: u32,
    backup: bool,
    backoff: Backoff,
    handlers: HashMap<u16, Handler>,
    on_error: Option<OnError>,
    pusher: Pusher,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl fmt::Debug for ServiceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceBuilder").field("addr", &self.addr).field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServiceBuilder {
    /// An API key with the scope `serve:<number>` of each service; needed where the gateway has a keys file.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// Connects over TLS, which the services' port takes where the gateway has certificates. The address may then be
    /// `trunkline+tls://services.internal:7791`, which without this is refused.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Both halves of a new connection.
    async fn dial(&self) -> io::Result<(Reader, Writer)> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let (reader, writer) = tokio::io::split(tls.clone().dial(&self.addr).await?);
            return Ok((Box::new(reader), Box::new(writer)));
        }
        let (reader, writer) = Tcp.dial(&self.addr).await?.into_split();
        Ok((Box::new(reader), Box::new(writer)))
    }

    /// Serves those gateways alone that show this key, for a worker that listens. Without it whoever reaches its port is
    /// served, and is shown the [token](Self::token).
    #[must_use]
    pub fn gateway_key(mut self, key: impl Into<String>) -> Self {
        self.gateway_key = Some(key.into());
        self
    }

    /// Calls that are worked on at a time, over all links; of a worker that listens, over those of one gateway, for all
    /// services together; 256 unless it is said. Each link takes one at least.
    #[must_use]
    pub fn window(mut self, window: u32) -> Self {
        self.window = window.max(1);
        self
    }

    /// This worker's share of the calls against the other workers'; 1 unless it is said.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// It is called only while no other worker can be.
    #[must_use]
    pub fn backup(mut self) -> Self {
        self.backup = true;
        self
    }

    /// Requests tell device, session, time left and trace: [`Request::head`].
    #[must_use]
    pub fn with_heads(mut self) -> Self {
        self.heads = true;
        self
    }

    /// Is told of what goes wrong on the way and is mended without the application: a link that broke or could not be
    /// made again, each time, and an answer that was left out. It should return at once. Without it nobody is told; a
    /// worker whose key was withdrawn, say, goes on trying in silence.
    ///
    /// ```
    /// use trunkline_client::service::Service;
    ///
    /// let builder = Service::connect("127.0.0.1:7791", "orders-1").on_error(|error| eprintln!("orders: {error}"));
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn on_error(mut self, on_error: impl Fn(&ServiceError) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Arc::new(on_error));
        self
    }

    /// Pushes for the worker that this becomes, for its handlers.
    #[must_use]
    pub fn pusher(&self) -> Pusher {
        self.pusher.clone()
    }

    /// Serves calls of this service, 1 … 65,535. The handler of a call runs as a task of its own.
    #[must_use]
    pub fn serve<H, F>(mut self, service: u16, handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        self.handlers.insert(service, Arc::new(move |request, _parts| Box::pin(handler(request))));
        self
    }

    /// [`Self::serve`] with answers in parts: those that the handler sends, and what it returns as the last one.
    ///
    /// ```
    /// use trunkline_client::service::{Answer, Parts, Request, Service};
    ///
    /// async fn words(request: Request, parts: Parts) -> Answer {
    ///     for word in request.body.split(|byte| *byte == b' ') {
    ///         if parts.send(word.to_vec()).await.is_err() {
    ///             break;
    ///         }
    ///     }
    ///     Answer::ok("that is all")
    /// }
    /// let builder = Service::connect("127.0.0.1:7791", "words-1").serve_in_parts(7, words);
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn serve_in_parts<H, F>(mut self, service: u16, handler: H) -> Self
    where
        H: Fn(Request, Parts) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        self.handlers.insert(service, Arc::new(move |request, parts| Box::pin(handler(request, parts))));
        self
    }

    fn as_serve(&self, services: Vec<u16>, shard: u32, window: u32) -> Serve {
        let offer = |service: u16| Offer { service: service.into(), weight: self.weight, backup: self.backup };
        Serve {
            version: VERSION,
            name: self.name.clone(),
            token: self.token.clone(),
            offers: services.into_iter().map(offer).collect(),
            shard,
            window,
            heads: self.heads,
        }
    }

    /// Connects, with one link for each shard. The first attempt is made once, so that a wrong address or key is
    /// reported. A worker that listens does so from here on, whether a gateway comes or not.
    ///
    /// Must be called within a tokio runtime, which then runs links and handlers.
    ///
    /// # Errors
    /// [`ServiceError::Io`], [`ServiceError::Refused`], [`ServiceError::Protocol`].
    pub async fn start(self) -> Result<Service, ServiceError> {
        let (stop, stopped) = watch::channel(Stop::No);
        let shared = Arc::new(Shared {
            ids: MessageIds::new(),
            links: Mutex::default(),
            door: Mutex::default(),
            shares: Mutex::default(),
            stopped,
            builder: self,
        });
        shared.builder.pusher.begin(&shared);
        if shared.builder.listens {
            let listener = TcpListener::bind(&shared.builder.addr).await?;
            let local_addr = Some(listener.local_addr()?);
            let tasks = vec![tokio::spawn(run_listener(shared.clone(), listener))];
            return Ok(Service { shared, stop, node: String::new(), local_addr, tasks });
        }
        // The first link says how many there are to be; its window is made smaller then.
        let first = Link::connect(&shared, 1, shared.builder.window).await?;
        let links = first.ok.shards.clamp(1, LINKS_MAX);
        let window = shared.builder.window.div_ceil(links).min(u16::MAX.into());
        let (ok, mut tasks) = (first.ok.clone(), Vec::new());
        tasks.push(tokio::spawn(run_link(shared.clone(), 1, window, Some(first))));
        for shard in 2..=links {
            tasks.push(tokio::spawn(run_link(shared.clone(), shard, window, None)));
        }
        Ok(Service { shared, stop, node: ok.node, local_addr: None, tasks })
    }
}

/// A worker that serves.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    stop: watch::Sender<Stop>,
    node: String,
    local_addr: Option<SocketAddr>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Service {
    /// A worker called `name` at the services' port of a gateway, `host:port`, with or without `trunkline://` in front.
    pub fn connect(addr: impl Into<String>, name: impl Into<String>) -> ServiceBuilder {
        Self::at(addr.into(), name.into(), false)
    }

    /// A worker called `name` that gateways dial at this address: those that have it as a server of the service. What
    /// they say of its weight counts, not what the worker says.
    pub fn listen(addr: impl Into<String>, name: impl Into<String>) -> ServiceBuilder {
        Self::at(addr.into(), name.into(), true)
    }

    fn at(addr: String, name: String, listens: bool) -> ServiceBuilder {
        ServiceBuilder {
            addr,
            listens,
            name,
            token: String::new(),
            gateway_key: None,
            window: WINDOW,
            heads: false,
            weight: 1,
            backup: false,
            backoff: Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) },
            handlers: HashMap::new(),
            on_error: None,
            pusher: Pusher::new(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Name of the gateway's node; empty for a worker that listens, which may have several.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where a worker that listens does so.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Links that are connected.
    #[must_use]
    pub fn links(&self) -> usize {
        locked(&self.shared.links).len()
    }

    /// Connections to a worker that listens which had to go before they had shown an INVITE, because others came, and
    /// gateways for which it had no room.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        locked(&self.shared.door).turned_away
    }

    /// Pushes to a user, at least once, and waits for the fate. `service` is one that this worker serves.
    ///
    /// # Errors
    /// [`ServiceError::NotServed`], [`ServiceError::NotConnected`], [`ServiceError::PayloadTooLarge`],
    /// [`ServiceError::Refused`], [`ServiceError::FateUnknown`].
    pub async fn push(&self, service: u16, user: u64, payload: impl Into<Payload>) -> Result<Outcome, ServiceError> {
        self.shared.push_as(self.shared.ids.next(), service, user, payload.into()).await
    }

    /// [`Self::push`] with an id of the application's own, never 0: a user's device gets one that is pushed again under
    /// the same id once.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn push_as(
        &self,
        id: u64,
        service: u16,
        user: u64,
        payload: impl Into<Payload>,
    ) -> Result<Outcome, ServiceError> {
        self.shared.push_as(id, service, user, payload.into()).await
    }

    /// Pushes to several users, one device, a group or a live room, at least once, and waits until each recipient has a
    /// fate: the report counts them.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn push_with(&self, service: u16, push: Push) -> Result<PushReport, ServiceError> {
        self.shared.push_with(service, push).await
    }

    /// Pushes for this worker, for whoever is to while somebody else [drains](Self::drain) it.
    #[must_use]
    pub fn pusher(&self) -> Pusher {
        self.shared.builder.pusher()
    }

    /// Pushes to a user at most once, and nothing is heard of it.
    ///
    /// # Errors
    /// [`ServiceError::NotServed`], [`ServiceError::NotConnected`], [`ServiceError::PayloadTooLarge`].
    pub async fn push_unacked(&self, service: u16, user: u64, payload: impl Into<Payload>) -> Result<(), ServiceError> {
        let id = self.shared.ids.next();
        let body = payload.into().into();
        self.shared.queue_push(user, PushTo { id, service, user, flags: 0, body, fate: None }).await
    }

    /// Takes no new calls, answers those it has, and ends. None is lost. Handlers have the time they take: with
    /// `tokio::time::timeout` around it, those that take longer end with the runtime. A worker that is dropped does the
    /// same by itself, as long as its runtime lasts.
    pub async fn drain(self) {
        self.stop.send_replace(Stop::Drain);
        for task in self.tasks {
            // A task that panicked has ended as well.
            drop(task.await);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    Drain,
}

/// Whether the worker is to end: it was told to drain, or nobody has it any more.
fn is_over(stopped: &watch::Receiver<Stop>) -> bool {
    *stopped.borrow() == Stop::Drain || stopped.has_changed().is_err()
}

/// A push as it goes out.
#[derive(Debug)]
struct PushTo {
    id: u64,
    service: u16,
    /// 0 where the body says whom it is for.
    user: u64,
    flags: u8,
    body: Bytes,
    /// `None` for one of which nothing is heard.
    fate: Option<Fate>,
}

/// What goes out on one link.
#[derive(Debug)]
enum Out {
    Answer {
        id: u64,
        answer: Answer,
    },
    /// A part of an answer, before the last one.
    Part {
        id: u64,
        body: Bytes,
    },
    /// A handler has panicked.
    Gone {
        id: u64,
    },
    Push(PushTo),
}

#[derive(Debug)]
struct Shared {
    builder: ServiceBuilder,
    ids: MessageIds,
    /// The connected links, in the order of their numbers.
    links: Mutex<Vec<Place>>,
    /// Of a worker that listens: who has connected, and how the window is shared out.
    door: Mutex<Door<AbortHandle>>,
    shares: Mutex<Shares>,
    stopped: watch::Receiver<Stop>,
}

/// What a lock guards. Nobody panics while having it.
fn locked<T>(guarded: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connected link takes what goes out.
#[derive(Clone, Debug)]
struct Place {
    /// The shard, or the number of one that was accepted.
    number: u64,
    /// What is served there, and may push there; in order.
    services: Vec<u16>,
    out: mpsc::Sender<Out>,
    payload_max: usize,
}

/// The link of a push: of those on which its service may push, always the same one for a user, so that the user's
/// pushes come in order.
fn place_of(links: &[Place], service: u16, user: u64) -> Option<&Place> {
    let able = || links.iter().filter(|place| place.services.contains(&service));
    let count = able().count() as u64;
    able().nth(usize::try_from(user.checked_rem(count)?).unwrap_or_default())
}

impl Shared {
    fn put_link(&self, place: Place) {
        let mut links = locked(&self.links);
        links.retain(|other| other.number != place.number);
        links.push(place);
        links.sort_by_key(|place| place.number);
    }

    fn drop_link(&self, number: u64) {
        locked(&self.links).retain(|other| other.number != number);
    }

    fn tell(&self, error: &ServiceError) {
        if let Some(on_error) = &self.builder.on_error {
            on_error(error);
        }
    }

    /// On one link after the other. Pushes of one recipient stay on one, so that they come in order.
    async fn queue_push(&self, recipient: u64, push: PushTo) -> Result<(), ServiceError> {
        if !self.builder.handlers.contains_key(&push.service) {
            return Err(ServiceError::NotServed { service: push.service });
        }
        let place = {
            let links = locked(&self.links);
            place_of(&links, push.service, recipient).cloned()
        };
        let Place { out, payload_max, .. } = place.ok_or(ServiceError::NotConnected)?;
        if push.body.len() > payload_max {
            return Err(ServiceError::PayloadTooLarge);
        }
        out.send(Out::Push(push)).await.map_err(|_ended| ServiceError::NotConnected)
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection on which SERVE was answered.
struct Link {
    reader: Reader,
    writer: Writer,
    inbound: Vec<u8>,
    services: Vec<u16>,
    ok: ServeOk,
}

impl Link {
    async fn connect(shared: &Shared, shard: u32, window: u32) -> Result<Self, ServiceError> {
        let builder = &shared.builder;
        let begun = async {
            let (reader, writer) = builder.dial().await?;
            let mut services: Vec<u16> = builder.handlers.keys().copied().collect();
            services.sort_unstable();
            Self::serve(reader, writer, Vec::new(), &builder.as_serve(services, shard, window)).await
        };
        timeout(START_WAIT, begun).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }

    /// Sends SERVE and waits for its answer. `inbound` is what has been read of the connection already.
    async fn serve(
        mut reader: Reader,
        mut writer: Writer,
        mut inbound: Vec<u8>,
        serve: &Serve,
    ) -> Result<Self, ServiceError> {
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Serve, 0, serve);
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        let ok = first_frame(&mut reader, &mut inbound, FIRST_BYTES_MAX, first_answer).await?;
        let services = serve.offers.iter().filter_map(|offer| u16::try_from(offer.service).ok()).collect();
        Ok(Link { reader, writer, inbound, services, ok })
    }

    /// The link that a gateway has dialed, and its part of the window.
    async fn accept(visit: &mut Visit, stream: TcpStream) -> Result<(Share, Self), ServiceError> {
        let shared = visit.shared.clone();
        let builder = &shared.builder;
        let begun = async {
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            let (mut reader, mut writer): (Reader, Writer) = (Box::new(reader), Box::new(writer));
            let mut inbound = Vec::new();
            let first = first_frame(&mut reader, &mut inbound, INVITE_BYTES_MAX, |frame| match frame.known() {
                Some(Kind::Invite) => Invite::decode(frame.body).map_err(|error| protocol(&error)),
                _ => Err(ServiceError::Protocol(format!("kind {} is no INVITE", frame.kind))),
            });
            let invite = timeout(INVITE_WAIT, first).await.unwrap_or_else(|_elapsed| Err(late().into()))?;
            let service = u16::try_from(invite.service).ok().filter(|service| builder.handlers.contains_key(service));
            let judged = match (&builder.gateway_key, service) {
                _ if invite.version != VERSION => Err((Code::UnsupportedVersion, "another version")),
                (Some(key), _) if !is_same(key, &invite.token) => Err((Code::BadCredentials, "another key")),
                (_, None) => Err((Code::UnknownService, "it does not serve this")),
                (key, Some(service)) => match locked(&shared.door).enter(visit.number, key.is_some()) {
                    true => Ok(service),
                    false => Err((Code::Overloaded, "it has as many links as it takes")),
                },
            };
            let service = match judged {
                Ok(service) => service,
                Err((code, text)) => {
                    let mut bytes = Vec::new();
                    let bye = Bye { text: text.to_owned(), ..Bye::default() };
                    encode_message(&mut bytes, Kind::Bye, code.as_u16(), &bye);
                    writer.write_all(&bytes).await?;
                    writer.shutdown().await?;
                    return Err(ServiceError::Refused { code: code.as_u16(), text: text.to_owned() });
                }
            };
            let mut share = visit.take_share(invite.node, service, invite.links.clamp(1, LINKS_MAX));
            let serve = builder.as_serve(vec![service], 0, share.window().into());
            Ok((share, Self::serve(reader, writer, inbound, &serve).await?))
        };
        timeout(START_WAIT, begun).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }
}

/// A connection to a worker that listens. What it had is free again when it ends, however it does.
struct Visit {
    shared: Arc<Shared>,
    number: u64,
    /// The node and the service of its link.
    link: Option<(String, u16)>,
}

impl Visit {
    fn take_share(&mut self, node: String, service: u16, links: u32) -> Share {
        let share = locked(&self.shared.shares).join(&node, service, links, self.shared.builder.window);
        self.link = Some((node, service));
        share
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        locked(&self.shared.door).leave(self.number);
        if let Some((node, service)) = self.link.take() {
            locked(&self.shared.shares).leave(&node, service);
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn protocol(error: &impl fmt::Display) -> ServiceError {
    ServiceError::Protocol(error.to_string())
}

/// Whether two keys are the same; it takes as long whatever differs.
fn is_same(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    one.len() == other.len() && differences == 0
}

/// What the first whole frame of a connection says.
async fn first_frame<T>(
    reader: &mut Reader,
    inbound: &mut Vec<u8>,
    most: u32,
    says: impl Fn(&Frame<'_>) -> Result<T, ServiceError>,
) -> Result<T, ServiceError> {
    loop {
        if let Some((frame, len)) = decode(inbound, most).map_err(|violation| protocol(&violation))? {
            let said = says(&frame)?;
            inbound.drain(..len);
            return Ok(said);
        }
        if reader.read_buf(inbound).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

fn first_answer(frame: &Frame<'_>) -> Result<ServeOk, ServiceError> {
    let unreadable = |error: trunkline_proto::prost::DecodeError| ServiceError::Protocol(error.to_string());
    match frame.known() {
        Some(Kind::ServeOk) => ServeOk::decode(frame.body).map_err(unreadable),
        Some(Kind::Bye) => {
            let text = Bye::decode(frame.body).map_err(unreadable)?.text;
            Err(ServiceError::Refused { code: frame.aux, text })
        }
        _ => Err(ServiceError::Protocol(format!("SERVE was answered with kind {}", frame.kind))),
    }
}

/// Waits until a link has another part of its worker's window.
async fn next_window(share: &mut Option<Share>) -> u16 {
    match share {
        Some(share) => share.changed().await,
        None => std::future::pending().await,
    }
}

/// Writes some of the bytes; where there are none, sees to it that those written before leave: records of TLS that the
/// socket did not take at once wait in what has sealed them. Nothing is lost by giving it up.
async fn write_on(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    writer.write(bytes).await
}

/// Takes the links of gateways until the worker is drained, and waits for their ends then.
async fn run_listener(shared: Arc<Shared>, listener: TcpListener) {
    let mut stopped = shared.stopped.clone();
    let (mut links, mut number) = (JoinSet::new(), 0_u64);
    while !is_over(&stopped) {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    number += 1;
                    let goes = take_in(&shared, &mut links, number, stream, address.ip());
                    if let Some(stranger) = goes {
                        stranger.abort();
                    }
                }
                // The system is short of something; those that wait are not lost.
                Err(_) => sleep(ACCEPT_AGAIN).await,
            },
            // A link that panicked has ended as well.
            Some(_) = links.join_next() => {}
            _ = stopped.changed() => {}
        }
    }
    drop(listener);
    while links.join_next().await.is_some() {}
}

/// Begins with a connection. Returns the one that has to go for it, if one has to.
fn take_in(
    shared: &Arc<Shared>,
    links: &mut JoinSet<()>,
    number: u64,
    stream: TcpStream,
    address: IpAddr,
) -> Option<AbortHandle> {
    // It is a stranger from its first step on.
    let goes = locked(&shared.door).come(number, address);
    let visit = Visit { shared: shared.clone(), number, link: None };
    let handle = links.spawn(run_accepted(visit, stream));
    locked(&shared.door).note(number, handle);
    goes
}

/// One link that a gateway has made, until it ends; the gateway makes it again.
async fn run_accepted(mut visit: Visit, stream: TcpStream) {
    let mut stopped = visit.shared.stopped.clone();
    let accepted = tokio::select! {
        accepted = Link::accept(&mut visit, stream) => accepted,
        _ = stopped.changed() => return,
    };
    // Who was not let in may be anybody, and could keep the application busy.
    if let Ok((mut share, link)) = accepted {
        let window = share.window();
        let served = serve_link(&visit.shared, visit.number, window, Some(share), link).await;
        visit.shared.drop_link(visit.number);
        if let Err(error) = served {
            visit.shared.tell(&error);
        }
    }
}

/// Keeps one link until the worker is drained: made again whenever it breaks.
async fn run_link(shared: Arc<Shared>, shard: u32, window: u32, mut first: Option<Link>) {
    let mut stopped = shared.stopped.clone();
    let mut attempt = 0;
    while !is_over(&stopped) {
        let link = match first.take() {
            Some(link) => Ok(link),
            None => tokio::select! {
                link = Link::connect(&shared, shard, window) => link,
                _ = stopped.changed() => return,
            },
        };
        let began = Instant::now();
        let served = match link {
            Ok(link) => {
                let window = window.min(u16::MAX.into()) as u16;
                let served = serve_link(&shared, shard.into(), window, None, link).await;
                shared.drop_link(shard.into());
                if began.elapsed() > shared.builder.backoff.max {
                    attempt = 0;
                }
                served
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            shared.tell(&error);
        }
        let wait = shared.builder.backoff.delay(attempt, random::share());
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = sleep(wait) => {}
            _ = stopped.changed() => {}
        }
    }
}

/// One link, until it ends.
async fn serve_link(
    shared: &Arc<Shared>,
    number: u64,
    window: u16,
    share: Option<Share>,
    link: Link,
) -> Result<(), ServiceError> {
    let Link { reader, writer, inbound, services, ok } = link;
    let (out, queue) = mpsc::channel(OUT_MAX);
    let max_frame = ok.max_frame.min(trunkline_proto::FRAME_BYTES_MAX_LIMIT);
    let payload_max = (max_frame as usize).saturating_sub(trunkline_proto::HEADER_LONG);
    let mut session = LinkSession {
        shared: shared.clone(),
        out: out.downgrade(),
        inbound,
        max_frame: max_frame.saturating_add(HEAD_BYTES_MAX),
        running: HashMap::new(),
        pushes: HashMap::new(),
        outbound: Vec::new(),
        drained: false,
    };
    session.put(Kind::Window, 0, window, 0, 0, &[]);
    shared.put_link(Place { number, services, out: out.clone(), payload_max });
    let heartbeat = Duration::from_secs(ok.heartbeat_secs.clamp(1, HEARTBEAT_SECS_MAX).into());
    let ended = session.run(reader, writer, queue, share, heartbeat).await;
    for (_, fate) in session.pushes.drain() {
        fate.failed(ServiceError::FateUnknown);
    }
    drop(out);
    ended
}

/// One link that is connected.
struct LinkSession {
    shared: Arc<Shared>,
    /// For the handlers of this link's requests; the link does not wait for itself.
    out: mpsc::WeakSender<Out>,
    inbound: Vec<u8>,
    max_frame: u32,
    /// Handlers, by the gateway's number of their call.
    running: HashMap<u64, AbortHandle>,
    pushes: HashMap<(u64, u64), Fate>,
    outbound: Vec<u8>,
    /// No request comes any more.
    drained: bool,
}

impl LinkSession {
    async fn run(
        &mut self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
        mut queue: mpsc::Receiver<Out>,
        mut share: Option<Share>,
        heartbeat: Duration,
    ) -> Result<(), ServiceError> {
        let mut stopped = self.shared.stopped.clone();
        let (mut drains, mut unflushed) = (false, false);
        let (mut heard, mut pinged) = (Instant::now(), Instant::now());
        loop {
            if !drains && is_over(&stopped) {
                drains = true;
                // Behind the answer to this PING no request comes any more.
                self.put(Kind::Window, 0, 0, 0, 0, &[]);
                self.put(Kind::Ping, 0, DRAIN_PING, 0, 0, &[]);
            }
            let is_idle = self.running.is_empty() && self.pushes.is_empty() && self.outbound.is_empty();
            if self.drained && is_idle && queue.is_empty() {
                self.put(Kind::Logout, 0, 0, 0, 0, &[]);
                writer.write_all(&self.outbound).await?;
                writer.flush().await?;
                writer.shutdown().await?;
                return Ok(());
            }
            let written = self.outbound.len();
            tokio::select! {
                read = reader.read_buf(&mut self.inbound) => {
                    if read? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    heard = Instant::now();
                    self.take_frames()?;
                }
                wrote = write_on(&mut writer, &self.outbound), if written > 0 || unflushed => {
                    self.outbound.drain(..wrote?);
                    unflushed = written > 0;
                }
                Some(out) = queue.recv(), if written < 64 << 10 => {
                    self.send(out);
                    // What has gathered goes in one write.
                    while self.outbound.len() < 64 << 10 && let Ok(out) = queue.try_recv() {
                        self.send(out);
                    }
                }
                _ = stopped.changed(), if !drains => {}
                window = next_window(&mut share), if !drains => self.put(Kind::Window, 0, window, 0, 0, &[]),
                () = sleep(heartbeat / 2) => {
                    if heard.elapsed() > 2 * heartbeat {
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    }
                }
            }
            if pinged.elapsed() >= heartbeat {
                pinged = Instant::now();
                self.put(Kind::Ping, 0, 0, 0, 0, &[]);
            }
        }
    }

    fn put(&mut self, kind: Kind, flags: u8, aux: u16, id: u64, peer: u64, body: &[u8]) {
        encode(&mut self.outbound, &Header { kind, flags, aux, id, peer, stamp: 0 }, body);
    }

    /// The longest answer, or part of one, that fits into a frame of this gateway.
    fn answer_bytes_max(&self) -> usize {
        let frame_bytes_max = self.max_frame.saturating_sub(HEAD_BYTES_MAX) as usize;
        frame_bytes_max.saturating_sub(trunkline_proto::HEADER_LONG)
    }

    fn send(&mut self, out: Out) {
        match out {
            Out::Answer { id, answer: Answer { status, flags, body } } => {
                // What was cancelled meanwhile is nobody's.
                if self.running.remove(&id).is_none() {
                    return;
                }
                let bytes_max = self.answer_bytes_max();
                if body.len() <= bytes_max {
                    self.put(Kind::Answer, flags, status, id, 0, &body);
                } else {
                    // An empty one would look like an answer. This call, too, is left to the gateway's clock.
                    self.shared.tell(&ServiceError::AnswerTooLarge { bytes: body.len(), bytes_max });
                }
            }
            Out::Part { id, body } => {
                // What was cancelled meanwhile is nobody's.
                if self.running.contains_key(&id) {
                    self.put(Kind::Answer, call_flags::MORE, 0, id, 0, &body);
                }
            }
            // Its call is left to the gateway's clock, which tells the truth: nobody knows what was done.
            Out::Gone { id } => drop(self.running.remove(&id)),
            Out::Push(PushTo { id, service, user, flags, body, fate }) => {
                self.put(Kind::PushTo, flags, service, id, user, &body);
                if let Some(fate) = fate {
                    self.pushes.insert((id, user), fate);
                }
            }
        }
    }

    fn take_frames(&mut self) -> Result<(), ServiceError> {
        let inbound = std::mem::take(&mut self.inbound);
        let mut at = 0;
        loop {
            let whole = decode(&inbound[at..], self.max_frame);
            let whole = whole.map_err(|violation| ServiceError::Protocol(violation.to_string()))?;
            let Some((frame, len)) = whole else { break };
            at += len;
            self.handle(&frame)?;
        }
        self.inbound = inbound;
        self.inbound.drain(..at);
        Ok(())
    }

    fn handle(&mut self, frame: &Frame<'_>) -> Result<(), ServiceError> {
        match frame.known() {
            Some(Kind::Request) => self.begin(frame),
            Some(Kind::Cancel) => {
                if let Some(handler) = self.running.remove(&frame.id) {
                    handler.abort();
                }
            }
            Some(Kind::Pushed) => {
                if let Some(fate) = self.pushes.remove(&(frame.id, frame.peer)) {
                    fate.told(frame);
                }
            }
            Some(Kind::Error) => {
                if let Some(fate) = self.pushes.remove(&(frame.id, frame.peer)) {
                    let text = String::from_utf8_lossy(frame.body).into_owned();
                    fate.failed(ServiceError::Refused { code: frame.aux, text });
                }
            }
            Some(Kind::Pong) => self.drained |= frame.aux == DRAIN_PING,
            Some(Kind::Bye) => {
                let text = Bye::decode(frame.body).unwrap_or_default().text;
                return Err(ServiceError::Refused { code: frame.aux, text });
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, frame: &Frame<'_>) {
        let (head, body) = match frame.flags & call_flags::HEAD {
            0 => (None, frame.body),
            _ => split_head(frame.body),
        };
        let request = Request {
            service: frame.aux,
            user: frame.peer,
            id: frame.stamp,
            is_again: frame.flags & call_flags::AGAIN != 0,
            head,
            body: Bytes::copy_from_slice(body),
        };
        let handler = self.shared.builder.handlers.get(&frame.aux).cloned();
        let (Some(handler), Some(out)) = (handler, self.out.upgrade()) else {
            return self.put(Kind::Answer, call_flags::NOT_BEGUN, 0, frame.id, 0, &[]);
        };
        let id = frame.id;
        let parts = Parts { id, out: out.clone(), bytes_max: self.answer_bytes_max() };
        let task = tokio::spawn(async move {
            let mut owed = Owed { id, out: Some(out) };
            let answer = handler(request, parts).await;
            if let Some(out) = owed.out.take() {
                // Without its link nobody waits for it.
                drop(out.send(Out::Answer { id, answer }).await);
            }
        });
        self.running.insert(id, task.abort_handle());
    }
}

/// The answer that a handler owes.
struct Owed {
    id: u64,
    out: Option<mpsc::Sender<Out>>,
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // A full queue is one of a link that is about to end.
            drop(out.try_send(Out::Gone { id: self.id }));
        }
    }
}

fn split_head(body: &[u8]) -> (Option<CallHead>, &[u8]) {
    let Some((len, rest)) = body.split_first_chunk::<2>() else { return (None, body) };
    match rest.split_at_checked(u16::from_be_bytes(*len).into()) {
        Some((head, payload)) => (CallHead::decode(head).ok(), payload),
        None => (None, body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers a worker's SERVE, and closes.
    async fn admit_and_close(listener: &TcpListener, answer: impl FnOnce(&mut Vec<u8>)) {
        let (mut stream, _) = listener.accept().await.expect("a worker");
        let mut inbound = Vec::new();
        while decode(&inbound, FIRST_BYTES_MAX).expect("a frame").is_none() {
            assert_ne!(stream.read_buf(&mut inbound).await.expect("read"), 0);
        }
        let mut bytes = Vec::new();
        answer(&mut bytes);
        stream.write_all(&bytes).await.expect("written");
        // What the worker says meanwhile is read, so that the close does not become a reset before its time.
        stream.shutdown().await.expect("shut down");
        while stream.read_buf(&mut inbound).await.is_ok_and(|count| count > 0) {}
    }

    #[tokio::test]
    async fn a_link_that_breaks_and_one_that_is_refused_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let gateway = async {
            let ok = ServeOk { shards: 1, heartbeat_secs: 30, max_frame: 65_536, ..ServeOk::default() };
            admit_and_close(&listener, |out| encode_message(out, Kind::ServeOk, 0, &ok)).await;
            let bye = Bye { text: "withdrawn".to_owned(), ..Bye::default() };
            let code = Code::BadCredentials.as_u16();
            admit_and_close(&listener, |out| encode_message(out, Kind::Bye, code, &bye)).await;
        };
        let (tell, mut told) = mpsc::unbounded_channel();
        let worker = async {
            let builder = Service::connect(addr.clone(), "w").on_error(move |error| drop(tell.send(error.to_string())));
            let service = builder.serve(7, |_| async { Answer::ok("") }).start().await.expect("started");
            let broken = told.recv().await.expect("a word");
            assert!(broken.starts_with("the connection to the gateway: "), "{broken}");
            let refused = told.recv().await.expect("a word");
            assert_eq!(refused, "the gateway refused with 6: withdrawn");
            service
        };
        let ((), service) = tokio::join!(gateway, worker);
        drop(listener);
        service.drain().await;
    }

    #[test]
    fn a_push_goes_where_its_service_may_push_and_those_of_a_user_go_one_way() {
        let place = |number, services: &[u16]| Place {
            number,
            services: services.to_vec(),
            out: mpsc::channel(1).0,
            payload_max: 1,
        };
        let links = [place(1, &[7]), place(2, &[8]), place(3, &[7, 8]), place(4, &[8])];
        for user in 0..20 {
            for service in [7, 8] {
                let found = place_of(&links, service, user).expect("a link");
                assert!(found.services.contains(&service), "user {user}: {found:?}");
                assert_eq!(found.number, place_of(&links, service, user).expect("a link").number);
            }
            assert!(place_of(&links, 9, user).is_none());
        }
        let used: std::collections::BTreeSet<u64> =
            (0..20).filter_map(|user| place_of(&links, 8, user)).map(|place| place.number).collect();
        assert_eq!(used.len(), 3, "all that can take them do");
        assert!(place_of(&[], 7, 1).is_none());
    }
}
