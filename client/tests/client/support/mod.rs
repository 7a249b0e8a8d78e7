//! The gateway's side of the protocol, for tests: a [`Peer`] that a test moves frame by frame over memory or TCP.

pub(crate) mod gateway;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::Instant;
use trunkline_client::{Acknowledge, Client, Config, Dial, Events};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Bye, Code, Header, Kind, Login, LoginOk, Outcome, decode, encode, encode_message, flags};

/// Heartbeat the peers offer, in seconds.
pub(crate) const HEARTBEAT_SECS: u32 = 30;

/// Bytes in flight in each direction of a connection in memory.
const PIPE_BYTES: usize = 64 * 1024;

/// A frame that owns its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnedFrame {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) aux: u16,
    pub(crate) id: u64,
    pub(crate) peer: u64,
    pub(crate) stamp: u64,
    pub(crate) body: Vec<u8>,
}

/// The gateway's end of one connection.
#[derive(Debug)]
pub(crate) struct Peer<S> {
    stream: S,
    bytes: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn new(stream: S) -> Self {
        let bytes = Vec::new();
        Self { stream, bytes }
    }

    /// The next frame; `None` when the client has closed. Cancelling it loses nothing.
    pub(crate) async fn frame(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.whole_frame() {
                return Some(frame);
            }
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame, over a link that carries so many bytes a second: bytes come in pieces of a hundredth of a
    /// second.
    pub(crate) async fn frame_at(&mut self, bytes_per_sec: usize) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.whole_frame() {
                return Some(frame);
            }
            let mut piece = vec![0; bytes_per_sec / 100];
            let count = match self.stream.read(&mut piece).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => count,
            };
            tokio::time::sleep(Duration::from_secs(1).mul_f64(count as f64 / bytes_per_sec as f64)).await;
            self.bytes.extend_from_slice(&piece[..count]);
        }
    }

    /// A frame that has come already.
    fn whole_frame(&mut self) -> Option<OwnedFrame> {
        let (frame, consumed) = decode(&self.bytes, 1 << 20).expect("the client frames well")?;
        let owned = OwnedFrame {
            kind: frame.known().expect("the client sends known kinds"),
            flags: frame.flags,
            aux: frame.aux,
            id: frame.id,
            peer: frame.peer,
            stamp: frame.stamp,
            body: frame.body.to_vec(),
        };
        self.bytes.drain(..consumed);
        Some(owned)
    }

    /// The next frame, which must be of this kind.
    pub(crate) async fn expect(&mut self, kind: Kind) -> OwnedFrame {
        let frame = self.frame().await;
        let frame = frame.unwrap_or_else(|| panic!("expected {}, the client closed", kind.name()));
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// The next SEND with this body.
    pub(crate) async fn expect_send(&mut self, body: &str) -> OwnedFrame {
        let frame = self.expect(Kind::Send).await;
        assert_eq!(String::from_utf8_lossy(&frame.body), body);
        frame
    }

    /// Nothing may come for `time`, heartbeats apart.
    pub(crate) async fn expect_quiet(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(frame) = tokio::time::timeout_at(end, self.frame()).await {
            let frame = frame.expect("the client stays");
            assert_eq!(frame.kind, Kind::Ping, "{frame:?}");
            self.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await;
        }
    }

    /// The next RENEW; heartbeats before it are answered.
    pub(crate) async fn expect_renewal(&mut self) -> Login {
        loop {
            let frame = self.frame().await.expect("the client stays");
            match frame.kind {
                Kind::Ping => self.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await,
                Kind::Renew => return Login::decode(&frame.body[..]).expect("a Login"),
                other => panic!("expected RENEW, got {other:?}"),
            }
        }
    }

    pub(crate) async fn expect_login(&mut self) -> Login {
        let frame = self.expect(Kind::Login).await;
        Login::decode(&frame.body[..]).expect("a Login")
    }

    /// Reads LOGIN and answers with LOGIN_OK.
    pub(crate) async fn admit(&mut self) -> Login {
        self.admit_with(|_| ()).await
    }

    /// As `admit`, with changes to the LOGIN_OK.
    pub(crate) async fn admit_with(&mut self, change: impl FnOnce(&mut LoginOk)) -> Login {
        let login = self.expect_login().await;
        self.welcome_with(change).await;
        login
    }

    /// Writes LOGIN_OK.
    pub(crate) async fn welcome(&mut self) {
        self.welcome_with(|_| ()).await;
    }

    /// As `welcome`, with changes to the LOGIN_OK.
    pub(crate) async fn welcome_with(&mut self, change: impl FnOnce(&mut LoginOk)) {
        let mut answer = LoginOk {
            session: 1,
            node: "test".into(),
            heartbeat_secs: HEARTBEAT_SECS,
            max_frame: 65_536,
            ..LoginOk::default()
        };
        change(&mut answer);
        let mut out = Vec::new();
        encode_message(&mut out, Kind::LoginOk, 0, &answer);
        self.raw(&out).await;
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    pub(crate) async fn write(&mut self, kind: Kind, flags: u8, aux: u16, id: u64, peer: u64, stamp: u64, body: &[u8]) {
        let mut out = Vec::new();
        let header = Header { kind, flags, aux, id, peer, stamp };
        encode(&mut out, &header, body);
        self.raw(&out).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.try_raw(bytes).await.expect("the client reads");
    }

    /// As `raw`, for a client that may have gone.
    pub(crate) async fn try_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// A message from `from` with acknowledgement.
    pub(crate) async fn deliver(&mut self, from: u64, id: u64, stamp: u64, body: &str) {
        self.write(Kind::Deliver, flags::ACK, 0, id, from, stamp, body.as_bytes()).await;
    }

    /// The same message once more.
    pub(crate) async fn deliver_again(&mut self, from: u64, id: u64, stamp: u64, body: &str) {
        let both = flags::ACK | flags::AGAIN;
        self.write(Kind::Deliver, both, 0, id, from, stamp, body.as_bytes()).await;
    }

    /// The fate of `message`.
    pub(crate) async fn sent(&mut self, message: &OwnedFrame, outcome: Outcome) {
        self.write(Kind::Sent, 0, outcome.as_u16(), message.id, message.peer, 0, &[]).await;
    }

    pub(crate) async fn bye(&mut self, code: Code, bye: Bye) {
        let mut out = Vec::new();
        encode_message(&mut out, Kind::Bye, code.as_u16(), &bye);
        self.raw(&out).await;
    }
}

/// A connection that a client has made.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) addr: String,
    pub(crate) at: Instant,
    pub(crate) peer: Peer<DuplexStream>,
}

/// Connects in memory: with a paused clock everything is deterministic.
#[derive(Debug)]
pub(crate) struct MemoryDial {
    arrivals: mpsc::UnboundedSender<Arrival>,
    refuse: Arc<AtomicUsize>,
    gone: Arc<Mutex<HashSet<String>>>,
}

impl Dial for MemoryDial {
    type Stream = DuplexStream;

    async fn dial(&mut self, addr: &str) -> io::Result<DuplexStream> {
        if self.gone.lock().expect("no panic").contains(addr) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let refuse = self.refuse.load(Ordering::Relaxed);
        if refuse > 0 {
            self.refuse.store(refuse - 1, Ordering::Relaxed);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = duplex(PIPE_BYTES);
        let arrival = Arrival { addr: addr.to_owned(), at: Instant::now(), peer: Peer::new(far) };
        self.arrivals.send(arrival).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(near)
    }
}

/// Where the connections of a [`MemoryDial`] come out.
#[derive(Debug)]
pub(crate) struct Switchboard {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    refuse: Arc<AtomicUsize>,
    gone: Arc<Mutex<HashSet<String>>>,
}

impl Switchboard {
    pub(crate) fn new() -> (MemoryDial, Self) {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let refuse = Arc::new(AtomicUsize::new(0));
        let gone = Arc::new(Mutex::new(HashSet::new()));
        let dial = MemoryDial { arrivals: sender, refuse: refuse.clone(), gone: gone.clone() };
        (dial, Self { arrivals, refuse, gone })
    }

    /// Nobody answers at this address any more.
    pub(crate) fn remove(&self, addr: &str) {
        self.gone.lock().expect("no panic").insert(addr.to_owned());
    }

    /// Somebody answers at this address again.
    pub(crate) fn restore(&self, addr: &str) {
        self.gone.lock().expect("no panic").remove(addr);
    }

    /// The next `count` connections are refused.
    pub(crate) fn refuse(&self, count: usize) {
        self.refuse.store(count, Ordering::Relaxed);
    }

    /// How many refusals are left.
    pub(crate) fn refusals_left(&self) -> usize {
        self.refuse.load(Ordering::Relaxed)
    }

    pub(crate) async fn arrival(&mut self) -> Arrival {
        self.arrivals.recv().await.expect("the client connects")
    }

    /// The next connection, logged in.
    pub(crate) async fn admitted(&mut self) -> Peer<DuplexStream> {
        let mut peer = self.arrival().await.peer;
        peer.admit().await;
        peer
    }

    /// Nobody connects for `time`.
    pub(crate) async fn expect_nobody(&mut self, time: Duration) {
        if let Ok(Some(arrival)) = tokio::time::timeout(time, self.arrivals.recv()).await {
            panic!("a connection to {} came", arrival.addr);
        }
    }
}

/// User 1, for changes. A message is acknowledged when it is taken, so that a test need not ask for the next one.
pub(crate) fn config() -> Config {
    Config { user: 1, acknowledge: Acknowledge::OnTake, ..Config::default() }
}

/// A client that is logged in, and its gateway.
pub(crate) async fn pair(config: Config) -> (Client, Events, Peer<DuplexStream>, Switchboard) {
    let (dial, mut switchboard) = Switchboard::new();
    let (connected, peer) = tokio::join!(Client::connect_with(config, dial), switchboard.admitted());
    let (client, events) = connected.expect("logged in");
    (client, events, peer, switchboard)
}
