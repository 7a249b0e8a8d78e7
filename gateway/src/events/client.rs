//! One HTTP request to a webhook's receiver, or to the application's connect-time hook.

use crate::services::Target;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Request, Uri};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use trunkline_router::redis::{Tls, TlsFiles};

/// Header fields of an answer, and the bytes of all of them.
const FIELDS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// A connection whose answer is longer is not used again.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long a connection may be idle: less than receivers allow by default.
const KEEP: Duration = Duration::from_secs(4);

/// A connection. Its task reads and writes, and ends with it.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    task: JoinHandle<()>,
    until: Instant,
}

impl Connection {
    /// Whether it may still be used.
    pub(crate) fn is_fresh(&self) -> bool {
        self.until > Instant::now() && !self.sender.is_closed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an answer says: its status, for how many seconds the receiver wants to hear nothing, and its body where that is
/// wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after_s: Option<u64>,
    /// `None` if it is longer than 64 KiB, or broke off; empty if it is not wanted.
    pub(crate) body: Option<Vec<u8>>,
}

/// What is posted.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) timestamp_s: u64,
    /// Empty without a secret.
    pub(crate) signature: String,
    pub(crate) body: Bytes,
}

/// To whom is posted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) target: Target,
    /// Who signs for it over TLS; without it those whom this system trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// Time for one request, connecting included.
    pub(crate) timeout_ms: u64,
    pub(crate) content_type: &'static str,
    /// Whether the bodies of its answers are wanted.
    pub(crate) wants_bodies: bool,
    /// What errors name.
    pub(crate) name: String,
}

/// Who posts to one receiver.
pub(crate) struct Client {
    receiver: Receiver,
    path: PathAndQuery,
    tls: Option<TlsConnector>,
    /// A look-up takes a thread for as long as it lasts; all webhooks together have one.
    lookups: Arc<Semaphore>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.receiver.name)
    }
}

impl Client {
    /// # Errors
    /// When the certificates of those who sign for the receiver cannot be read.
    pub(crate) fn new(receiver: Receiver, lookups: Arc<Semaphore>) -> io::Result<Self> {
        let said = |error: String| io::Error::other(format!("{}: {error}", receiver.name));
        let tls = receiver.target.tls.then(|| {
            let files = TlsFiles { ca: receiver.ca_file.clone(), ..TlsFiles::default() };
            Tls::load(&files).map(|tls| TlsConnector::from(tls.shared()))
        });
        let tls = tls.transpose().map_err(|error| said(format!("ca_file: {error}")))?;
        let path = receiver.target.path.parse().map_err(|error| said(format!("its path: {error}")))?;
        Ok(Client { receiver, path, tls, lookups })
    }

    /// Posts, by a connection that is idle or a new one. The connection comes back if it can be used again.
    ///
    /// # Errors
    /// Why there was no answer in time.
    pub(crate) async fn post(
        &self,
        letter: &Letter,
        idle: Option<Connection>,
    ) -> (Result<Answer, String>, Option<Connection>) {
        let within = Duration::from_millis(self.receiver.timeout_ms);
        match timeout(within, self.exchange(letter, idle)).await {
            Ok(Ok((answer, connection))) => (Ok(answer), connection),
            Ok(Err(error)) => (Err(error.to_string()), None),
            Err(_) => (Err(format!("no answer within {} ms", self.receiver.timeout_ms)), None),
        }
    }

    async fn exchange(&self, letter: &Letter, idle: Option<Connection>) -> io::Result<(Answer, Option<Connection>)> {
        // The receiver may close an idle connection just now; whoever is sent something twice knows it by its id.
        if let Some(idle) = idle.filter(Connection::is_fresh)
            && let Ok(done) = self.exchange_by(letter, idle).await
        {
            return Ok(done);
        }
        self.exchange_by(letter, self.dial().await?).await
    }

    async fn exchange_by(&self, letter: &Letter, mut by: Connection) -> io::Result<(Answer, Option<Connection>)> {
        by.sender.ready().await.map_err(io::Error::other)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(Uri::from(self.path.clone()))
            .header(HOST, self.receiver.target.authority())
            .header(USER_AGENT, concat!("trunkline/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, self.receiver.content_type)
            .header("webhook-id", &letter.id)
            .header("webhook-timestamp", letter.timestamp_s);
        if !letter.signature.is_empty() {
            request = request.header("webhook-signature", &letter.signature);
        }
        let request = request.body(Body::from(letter.body.clone()));
        let response = by.sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)?;
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after_s = after.and_then(|after| after.trim().parse().ok());
        let status = response.status().as_u16();
        let body = read(response.into_body(), self.receiver.wants_bodies).await;
        let is_read = body.is_some();
        let answer = Answer { status, retry_after_s, body };
        by.until = Instant::now() + KEEP;
        Ok((answer, Some(by).filter(|by| is_read && !by.sender.is_closed())))
    }

    async fn dial(&self) -> io::Result<Connection> {
        let target = &self.receiver.target;
        let mut refused = io::Error::from(io::ErrorKind::NotFound);
        for address in self.addresses().await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let Some(tls) = &self.tls else { return handshake(stream).await };
                    let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
                    return handshake(tls.connect(name, stream).await?).await;
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = (self.receiver.target.host.clone(), self.receiver.target.port);
        if let Ok(ip) = host.parse() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let permit = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let found = spawn_blocking(move || {
            // Until the thread is free again, whoever waits for it.
            let _permit = permit;
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
        });
        found.await.map_err(io::Error::other)?
    }
}

/// Reads an answer to its end, and keeps it if it is wanted. `None` if it is too long, or broke off.
async fn read(mut body: Incoming, is_wanted: bool) -> Option<Vec<u8>> {
    let (mut seen, mut kept) = (0, Vec::new());
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.ok()?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen > ANSWER_BYTES_MAX {
            return None;
        }
        if is_wanted {
            kept.extend_from_slice(data);
        }
    }
    Some(kept)
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Connection> {
    let mut builder = http1::Builder::new();
    builder.max_headers(FIELDS_MAX).max_buf_size(HEADER_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let task = tokio::spawn(async move {
        // Whoever has sent a request hears of it.
        let _ = connection.await;
    });
    Ok(Connection { sender, task, until: Instant::now() + KEEP })
}
