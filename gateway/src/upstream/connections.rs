//! Connections to HTTP servers: made, kept while they are idle, and used for one request at a time.

use super::request::{Whole, check, request};
use super::{End, Parts, Run, Splitter, status_of_parts};
use crate::metrics::ShardStats;
use crate::services::{CallPortals, MORE_MS, ServiceSpec, Target};
use axum::body::Bytes;
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hashbrown::HashMap;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use trunkline_router::redis::{Tls, TlsFiles};

/// Header fields of an answer, and the bytes of all of them.
const FIELDS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Checks under way at a time.
const CHECKS_MAX: usize = 64;
/// How long a part of an answer waits before it looks again for room.
const ROOM_AGAIN: Duration = Duration::from_millis(10);
/// How much sooner than the server says an idle connection is closed, so that the server does not do so just as a call
/// is written to it.
const KEEPALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Room for calls and answers, bytes.
#[derive(Debug)]
pub(super) struct Room {
    max: usize,
    /// Of answers that are being read or were not handed over yet.
    answers: AtomicUsize,
    /// Of calls.
    calls: AtomicUsize,
    /// Those in them count as well.
    portals: CallPortals,
}

impl Room {
    pub(super) fn new(max: usize, portals: CallPortals) -> Self {
        Room { max, answers: AtomicUsize::new(0), calls: AtomicUsize::new(0), portals }
    }

    /// Calls take so much now.
    pub(super) fn set_calls(&self, bytes: usize) {
        self.calls.store(bytes, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        let (answers, calls) = (self.answers.load(Ordering::Relaxed), self.calls.load(Ordering::Relaxed));
        answers + calls + self.portals.answer_bytes()
    }

    /// Bytes that there is room for.
    pub(super) fn free(&self) -> usize {
        self.max.saturating_sub(self.used())
    }
}

/// Room that an answer takes, until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Room>,
    bytes: usize,
}

impl Held {
    fn take(&mut self, bytes: usize) -> bool {
        let has_room = bytes <= self.room.free();
        if has_room {
            self.room.answers.fetch_add(bytes, Ordering::Relaxed);
            self.bytes += bytes;
        }
        has_room
    }

    /// The room of a part that goes its own way.
    fn split(&mut self, bytes: usize) -> Held {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Held { room: self.room.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.answers.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A part of an answer that comes before its end.
#[derive(Debug)]
pub(super) struct Part {
    /// The status of the REPLY.
    pub(super) status: u16,
    pub(super) body: Bytes,
    /// The room that it takes until it is handed over.
    pub(super) held: Held,
}

/// An answer of which the head is there, and that comes in parts.
#[derive(Debug)]
struct InParts {
    http: u16,
    own: Option<Box<[u8]>>,
    status: u16,
    parts: Parts,
    body: Incoming,
    /// How long its connection may be idle afterwards.
    keeps: Duration,
}

/// What has come of a request.
#[derive(Debug)]
enum Come {
    End(End),
    Parts(InParts),
}

impl From<End> for Come {
    fn from(end: End) -> Self {
        Come::End(end)
    }
}

/// A connection. Its task reads and writes, and ends with it.
struct Connection {
    sender: SendRequest<Whole>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Closes it. The server has no such connection any more when this returns.
    async fn close(self) {
        self.task.abort();
        // It was cancelled, or had ended.
        let _ = self.task.await;
    }
}

/// Whose connections those are.
type Whose = (u16, SocketAddr);

struct IdleConnection {
    whose: Whose,
    connection: Connection,
    until: Instant,
}

/// All connections to HTTP servers of a node.
pub(super) struct Connections {
    /// Idle ones; the one that was used last is at the end.
    idle: Mutex<VecDeque<IdleConnection>>,
    tls: HashMap<u16, TlsConnector>,
    room: Arc<Room>,
    answer_bytes_max: usize,
    conns_max: usize,
    /// Those that requests have.
    active: AtomicUsize,
    checks: Semaphore,
    /// See [`super::desk::Desk`].
    stats: Arc<ShardStats>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl Connections {
    /// None yet. Reads the certificates of those who sign for servers over TLS.
    ///
    /// # Errors
    /// When those cannot be read; the message names the file.
    pub(super) fn new(
        specs: &[ServiceSpec],
        room: Arc<Room>,
        answer_bytes_max: usize,
        conns_max: u32,
        stats: Arc<ShardStats>,
    ) -> io::Result<Self> {
        let mut by_file: HashMap<Option<PathBuf>, TlsConnector> = HashMap::new();
        let mut tls = HashMap::new();
        for spec in specs {
            let Some(http) = spec.http.as_ref().filter(|http| http.servers.iter().any(|one| one.target.tls)) else {
                continue;
            };
            let connector = match by_file.get(&http.ca_file) {
                Some(connector) => connector.clone(),
                None => {
                    let files = TlsFiles { ca: http.ca_file.clone(), ..TlsFiles::default() };
                    let said = |error| io::Error::other(format!("service {}: ca_file: {error}", spec.service));
                    let connector = TlsConnector::from(Tls::load(&files).map_err(said)?.shared());
                    by_file.insert(http.ca_file.clone(), connector.clone());
                    connector
                }
            };
            tls.insert(spec.service, connector);
        }
        Ok(Connections {
            idle: Mutex::default(),
            tls,
            room,
            answer_bytes_max,
            conns_max: conns_max as usize,
            active: AtomicUsize::new(0),
            checks: Semaphore::new(CHECKS_MAX),
            stats,
        })
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that no call has.
    pub(super) fn idle_count(&self) -> usize {
        self.idle().len()
    }

    /// Closes those that have been idle for long enough, or that their servers have closed.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.idle().retain(|idle| {
            let keeps = idle.until > now && !idle.connection.sender.is_closed();
            if !keeps {
                idle.connection.task.abort();
            }
            keeps
        });
    }

    fn take_idle(&self, whose: Whose) -> Option<Connection> {
        let now = Instant::now();
        let mut idle = self.idle();
        loop {
            let at = idle.iter().rposition(|idle| idle.whose == whose)?;
            let found = idle.remove(at)?;
            if found.until > now && !found.connection.sender.is_closed() {
                return Some(found.connection);
            }
            found.connection.task.abort();
        }
    }

    /// Carries out one request, for as long as there is time left for it and nobody says `abort`. Parts of its answer
    /// go to `tell`. When this returns, its connection is idle or closed.
    pub(super) async fn carry_out(
        &self,
        run: &Run,
        left: Duration,
        abort: oneshot::Receiver<()>,
        tell: impl Fn(Part),
    ) -> (End, Held) {
        let mut held = Held { room: self.room.clone(), bytes: 0 };
        let deadline = Instant::now() + left;
        let mut used = Used { connection: None, sent: false, keeps: None };
        self.active.fetch_add(1, Ordering::Relaxed);
        let whole = async {
            match timeout(left, self.exchange(run, deadline, &mut used, &mut held)).await {
                Ok(Come::End(end)) => end,
                Ok(Come::Parts(parts)) => self.read_parts(parts, deadline, &mut used, &mut held, tell).await,
                Err(_) if used.sent => End::TimedOut,
                Err(_) => End::NotSent,
            }
        };
        let end = tokio::select! {
            biased;
            end = whole => end,
            _ = abort => End::Aborted,
        };
        match (used.connection.take(), used.keeps) {
            (Some(connection), Some(keeps)) if !keeps.is_zero() && !connection.sender.is_closed() => {
                let whose = (run.at.service, run.at.address);
                self.idle().push_back(IdleConnection { whose, connection, until: Instant::now() + keeps });
            }
            (Some(connection), _) => connection.close().await,
            (None, _) => {}
        }
        self.active.fetch_sub(1, Ordering::Relaxed);
        (end, held)
    }

    async fn exchange(&self, run: &Run, deadline: Instant, used: &mut Used, held: &mut Held) -> Come {
        loop {
            let (connection, is_reused) = match self.take_idle((run.at.service, run.at.address)) {
                Some(connection) => (connection, true),
                None => {
                    let dial = self.dial(run.at.service, &run.target, run.at.address);
                    match timeout(Duration::from_millis(run.connect_ms), dial).await {
                        Ok(Ok(connection)) => (connection, false),
                        Ok(Err(_)) | Err(_) => return End::NotSent.into(),
                    }
                }
            };
            let sender = &mut used.connection.insert(connection).sender;
            if sender.ready().await.is_ok() {
                let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
                let mut request = request(&run.target, &run.letter, left_ms);
                if run.keepalive_ms == 0 {
                    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                // From here on nobody can say that nothing was handed over, unless hyper gives the request back.
                used.sent = true;
                match sender.try_send_request(request).await {
                    Ok(response) => return self.read(run, response, used, held).await,
                    Err(error) if error.message().is_none() => return End::Broken.into(),
                    Err(_) => used.sent = false,
                }
            }
            if let Some(connection) = used.connection.take() {
                connection.close().await;
            }
            // A server may close an idle connection at any time. One that was just made is another matter.
            if !is_reused {
                return End::NotSent.into();
            }
        }
    }

    /// Reads an answer to its end, unless it comes in parts.
    async fn read(&self, run: &Run, response: Response<Incoming>, used: &mut Used, held: &mut Held) -> Come {
        let (parts, mut body) = response.into_parts();
        let is_wanted = parts.status.is_success();
        let own: Option<Box<[u8]>> = parts.headers.get("trunkline-status").map(|value| value.as_bytes().into());
        let http = parts.status.as_u16();
        if let Some(kind) = parts.headers.get("trunkline-parts").and_then(|value| Parts::of(value.as_bytes()))
            && let Some(status) = status_of_parts(http, own.as_deref())
        {
            let keeps = keeps(run.keepalive_ms, &parts.headers);
            return Come::Parts(InParts { http, own, status, parts: kind, body, keeps });
        }
        if is_wanted && body.size_hint().lower() > self.answer_bytes_max as u64 {
            return End::TooLarge.into();
        }
        let (mut bytes, mut seen) = (Vec::new(), 0);
        let answered = |bytes: Vec<u8>| Come::End(End::Answered { http, own, body: bytes.into() });
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let Ok(frame) = frame else {
                // A status without its body is a status all the same, unless the body is what is wanted.
                return if is_wanted { End::Broken.into() } else { answered(bytes) };
            };
            let Ok(data) = frame.into_data() else { continue };
            seen += data.len();
            if seen > self.answer_bytes_max {
                return if is_wanted { End::TooLarge.into() } else { answered(bytes) };
            }
            if is_wanted {
                if !held.take(data.len()) {
                    return End::NoRoom.into();
                }
                bytes.extend_from_slice(&data);
            }
        }
        if parts.status >= StatusCode::OK {
            used.keeps = Some(keeps(run.keepalive_ms, &parts.headers));
        }
        answered(bytes)
    }

    /// Reads an answer that comes in parts to its end: the first part has until `deadline`, all of it a minute from
    /// then on. Where there is no room for what has come, the server waits.
    async fn read_parts(
        &self,
        answer: InParts,
        mut deadline: Instant,
        used: &mut Used,
        held: &mut Held,
        tell: impl Fn(Part),
    ) -> End {
        let InParts { http, own, status, parts, mut body, keeps } = answer;
        let mut splitter = Splitter::new(parts, self.answer_bytes_max);
        let mut has_begun = false;
        loop {
            let next = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let Ok(frame) = timeout_at(deadline, next).await else { return End::TimedOut };
            let (whole, is_last) = match frame.map(|frame| frame.map(|frame| frame.into_data())) {
                // Trailers say nothing here.
                Some(Ok(Err(_))) => continue,
                Some(Ok(Ok(data))) => {
                    while !held.take(data.len()) {
                        if Instant::now() >= deadline {
                            return End::NoRoom;
                        }
                        sleep(ROOM_AGAIN).await;
                    }
                    let Ok(whole) = splitter.push(&data) else { return End::TooLarge };
                    (whole, false)
                }
                Some(Err(_)) => return End::Broken,
                None => (Vec::from_iter(splitter.end()), true),
            };
            for body in whole {
                if !std::mem::replace(&mut has_begun, true) {
                    deadline = Instant::now() + Duration::from_millis(MORE_MS);
                }
                let held = held.split(body.len());
                tell(Part { status, body, held });
            }
            // What ended lines was room for nothing.
            drop(held.split(held.bytes.saturating_sub(splitter.waiting())));
            if is_last {
                used.keeps = Some(keeps);
                return End::Answered { http, own, body: Bytes::new() };
            }
        }
    }

    async fn dial(&self, service: u16, target: &Target, address: SocketAddr) -> io::Result<Connection> {
        self.make_room();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.stats.upstream_connects.add(1);
        if !target.tls {
            return handshake(stream).await;
        }
        let Some(connector) = self.tls.get(&service) else { return Err(io::ErrorKind::Unsupported.into()) };
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        handshake(connector.connect(name, stream).await?).await
    }

    /// Closes the connection that has been idle for longest, if there are as many as may be.
    fn make_room(&self) {
        let mut idle = self.idle();
        if self.active.load(Ordering::Relaxed) + idle.len() > self.conns_max
            && let Some(oldest) = idle.pop_front()
        {
            oldest.connection.task.abort();
        }
    }

    /// Whether a server answers a GET with a status of 2xx within this time.
    pub(super) async fn is_well(
        &self,
        service: u16,
        target: &Target,
        address: SocketAddr,
        path: &str,
        within: Duration,
    ) -> bool {
        // Nobody closes it.
        let Ok(_permit) = self.checks.acquire().await else { return false };
        let ask = async {
            let mut connection = self.dial(service, target, address).await.ok()?;
            let mut request: Request<Whole> = check(target, path);
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            let status = connection.sender.send_request(request).await.map(|response| response.status());
            connection.close().await;
            status.ok()
        };
        timeout(within, ask).await.ok().flatten().is_some_and(|status| status.is_success())
    }
}

/// What a request has to do with a connection.
struct Used {
    connection: Option<Connection>,
    /// Some of it may have been handed over.
    sent: bool,
    /// The connection may be used again, and may be idle for so long until then.
    keeps: Option<Duration>,
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Connection> {
    let mut builder = http1::Builder::new();
    builder.max_headers(FIELDS_MAX).max_buf_size(HEADER_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let task = tokio::spawn(async move {
        // Whoever has sent a request hears of it.
        let _ = connection.await;
    });
    Ok(Connection { sender, task })
}

/// How long a connection may be idle: as long as it may by the configuration, but not until its server closes it, as
/// far as that says when.
fn keeps(keepalive_ms: u64, headers: &HeaderMap) -> Duration {
    let ours = Duration::from_millis(keepalive_ms);
    let said = headers.get("keep-alive").and_then(|value| value.to_str().ok());
    let secs = said.and_then(|said| {
        let timeout = said.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
        timeout.parse::<u64>().ok()
    });
    secs.map_or(ours, |secs| ours.min(Duration::from_secs(secs).saturating_sub(KEEPALIVE_MARGIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::upstream::Letter;
    use crate::upstream::RunId;
    use base64::Engine;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use trunkline_proto::CallHead;
    use trunkline_router::{Balancer, Policy, Server, ServerOptions};

    fn connections(spec: &ServiceSpec, conns_max: u32) -> Connections {
        let room = Arc::new(Room::new(1 << 20, CallPortals::new(1)));
        Connections::new(std::slice::from_ref(spec), room, 1_000, conns_max, Arc::default()).expect("connections")
    }

    fn run(spec: &ServiceSpec, address: SocketAddr) -> Run {
        let http = spec.http.as_ref().expect("a service over HTTP");
        let servers = vec![Server::new("a:1", ServerOptions::default()).expect("a server")];
        let balancer = Balancer::new(Policy::RoundRobin, servers).expect("a balancer");
        let server = balancer.id_of("a:1").expect("its id");
        Run {
            at: RunId { token: 1, service: spec.service, server, address },
            target: Arc::new(http.servers[0].target.clone()),
            letter: Letter {
                service: spec.service,
                user: 1,
                id: 1,
                head: CallHead::default(),
                body: "hello".into(),
                again: false,
            },
            deadline_ms: 0,
            connect_ms: http.connect_timeout_ms,
            keepalive_ms: http.keepalive_ms,
        }
    }

    async fn carry_out(connections: &Connections, run: &Run) -> End {
        let (_abort, aborted) = oneshot::channel();
        connections.carry_out(run, Duration::from_secs(20), aborted, |_| panic!("no part")).await.0
    }

    /// Answers each request on a connection with this, and closes it after so many.
    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str, requests: usize) {
        let mut seen = Vec::new();
        for _ in 0..requests {
            while !seen.ends_with(b"hello") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            seen.clear();
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
    }

    const DONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";

    fn done() -> End {
        End::Answered { http: 200, own: None, body: "done".into() }
    }

    #[tokio::test]
    async fn a_connection_that_its_server_has_closed_costs_no_call() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = tokio::spawn(async move {
            for requests in [2, 1] {
                answer(listener.accept().await.expect("a connection").0, DONE, requests).await;
            }
        });
        let spec: ServiceSpec = format!("7,transport=http,keepalive_secs=600,server={address}").parse().expect("one");
        let (connections, run) = (connections(&spec, 8), run(&spec, address));
        assert_eq!(carry_out(&connections, &run).await, done());
        assert_eq!(connections.idle_count(), 1);
        assert_eq!(carry_out(&connections, &run).await, done());
        while connections.idle_count() > 0 {
            tokio::task::yield_now().await;
            connections.sweep();
        }
        assert_eq!(carry_out(&connections, &run).await, done());
        served.await.expect("the server");
        // Nobody listens any more.
        while connections.idle_count() > 0 {
            tokio::task::yield_now().await;
            connections.sweep();
        }
        assert_eq!(carry_out(&connections, &run).await, End::NotSent);
        assert_eq!(connections.stats.upstream_connects.get(), 2);
    }

    #[tokio::test]
    async fn the_connection_that_was_idle_for_longest_makes_room_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addresses = [&listener, &other].map(|listener| listener.local_addr().expect("an address"));
        for listener in [listener, other] {
            tokio::spawn(async move { answer(listener.accept().await.expect("a connection").0, DONE, 9).await });
        }
        let spec: ServiceSpec = format!("7,transport=http,server={}", addresses[0]).parse().expect("a service");
        let connections = connections(&spec, 1);
        for address in addresses {
            assert_eq!(carry_out(&connections, &run(&spec, address)).await, done());
            assert_eq!(connections.idle_count(), 1);
        }
    }

    #[tokio::test]
    async fn an_answer_that_says_so_comes_in_parts_and_its_connection_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let chunks = "3\r\none\r\n5\r\n\ntwo\n\r\n5\r\nthree\r\n0\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nTrunkline-Status: 300\r\nTransfer-Encoding: chunked\r\nTrunkline-Parts: lines";
        let long = format!("{head}\r\n\r\n5dc\r\n{}\r\n0\r\n\r\n", "x".repeat(1_500));
        let answers = [format!("{head}\r\n\r\n{chunks}"), DONE.to_owned(), long];
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            for one in answers {
                answer(&mut stream, &one, 1).await;
            }
        });
        let spec: ServiceSpec = format!("7,transport=http,server={address}").parse().expect("a service");
        let (connections, run) = (connections(&spec, 8), run(&spec, address));
        let parts = Mutex::new(Vec::new());
        let tell = |part: Part| {
            assert_eq!((part.status, part.held.bytes), (300, part.body.len()));
            parts.lock().expect("parts").push(part.body);
        };
        let (_abort, aborted) = oneshot::channel();
        let (end, held) = connections.carry_out(&run, Duration::from_secs(20), aborted, &tell).await;
        assert_eq!(end, End::Answered { http: 200, own: Some(b"300"[..].into()), body: Bytes::new() });
        assert_eq!(*parts.lock().expect("parts"), ["one", "two", "three"]);
        assert_eq!((held.bytes, connections.room.used()), (0, 0));
        assert_eq!(carry_out(&connections, &run).await, done());
        let (_abort, aborted) = oneshot::channel();
        assert_eq!(connections.carry_out(&run, Duration::from_secs(20), aborted, &tell).await.0, End::TooLarge);
        assert_eq!(connections.stats.upstream_connects.get(), 1);
        assert_eq!(connections.room.used(), 0);
    }

    #[tokio::test]
    async fn over_tls_only_a_server_that_is_who_it_says_gets_a_call() {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a certificate");
        let certificate = params.self_signed(&key).expect("a certificate");
        let secret = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], secret).expect("a certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, DONE, 1).await;
                }
            }
        });
        let file = std::env::temp_dir().join(format!("trunkline-upstream-ca-{}.pem", std::process::id()));
        let base64 = base64::engine::general_purpose::STANDARD.encode(certificate.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        std::fs::write(&file, pem).expect("a file");
        for (host, end) in [("localhost", done()), ("127.0.0.1", End::NotSent)] {
            let text = format!("7,transport=http,ca_file={},server=https://{host}:{}", file.display(), address.port());
            let spec: ServiceSpec = text.parse().expect("a service");
            assert_eq!(carry_out(&connections(&spec, 8), &run(&spec, address)).await, end, "{host}");
        }
        std::fs::remove_file(&file).expect("the file");
        let text = format!("7,transport=http,ca_file={},server=https://localhost:1", file.display());
        let room = Arc::new(Room::new(1, CallPortals::new(1)));
        let error = Connections::new(&[text.parse().expect("a service")], room, 1, 1, Arc::default()).unwrap_err();
        assert!(error.to_string().contains("service 7") && error.to_string().contains("upstream-ca"), "{error}");
    }

    #[test]
    fn an_idle_connection_is_closed_before_its_server_closes_it() {
        let of = |keepalive_ms, said: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert("keep-alive", HeaderValue::from_static(said));
            }
            keeps(keepalive_ms, &headers).as_millis()
        };
        assert_eq!(
            (of(4_000, None), of(4_000, Some("timeout=5, max=100")), of(4_000, Some("max=3, timeout=3"))),
            (4_000, 4_000, 2_000)
        );
        assert_eq!(
            (of(4_000, Some("timeout=1")), of(0, Some("timeout=9")), of(4_000, Some("timeout=soon"))),
            (0, 0, 4_000)
        );
    }

    #[test]
    fn what_answers_take_is_given_back_and_never_more_than_there_is() {
        let room = Arc::new(Room::new(100, CallPortals::new(1)));
        room.set_calls(30);
        let mut held = Held { room: room.clone(), bytes: 0 };
        assert!(held.take(50) && !held.take(21) && held.take(20));
        assert_eq!((room.free(), room.used()), (0, 100));
        drop(held);
        assert_eq!(room.free(), 70);
    }
}
