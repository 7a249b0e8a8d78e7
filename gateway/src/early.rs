//! Connections that come before the node serves, because it waits to join its cluster.
//!
//! They are accepted and get BYE 14 with a time to come back, or 503 where they ask by HTTP, rather than being refused
//! or left to wait: the ports are held from the start on, so nobody else can take them meanwhile; a client is told that
//! this node will serve, by the frame it understands anyway; and clients come back spread over some seconds, not all at
//! the moment the node joins. A load balancer goes by `/readyz`. Where no such words would be understood they are
//! closed without any: a client behind a proxy that sends PROXY headers may be within TLS.

use crate::listeners::Listeners;
use crate::transport::tls::Alert;
use crate::transport::upgrade::{Refusal, put_health};
use crate::transport::{Opening, opening};
use socket2::{Domain, SockRef};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use trunkline_proto::{Bye, Code, Kind, encode_message};
use trunkline_router::hash::user_hash;

/// Connections answered at a time; further ones wait in the backlog, which costs the node nothing.
const ANSWERED_MAX: usize = 256;
/// How long a client has to take its BYE and close.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client has for its first bytes, which say in which language it is told.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_millis(200);
/// How a request begins that asks whether the process is well.
const HEALTHZ: &[u8] = b"GET /healthz ";
/// A client may send a LOGIN before it reads; what comes beyond this is cut off.
const READ_BYTES_MAX: u64 = 64 << 10;
/// Pause after a failed accept: it fails for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// When clients are to come back: at this time at the earliest, and spread over as much again.
const RECONNECT_MS: u64 = 2_000;

/// Answers whoever connects, until it is dropped; then [`Listeners::set_blocking`] has to be called before a shard
/// accepts. `tls_required`: everywhere everything has to begin with TLS.
///
/// # Errors
/// When the sockets cannot be set up for it.
pub async fn turn_away(
    listeners: &Listeners,
    tls_required: bool,
    turned_away: Arc<AtomicU64>,
) -> io::Result<Infallible> {
    let places = Arc::new(Semaphore::new(ANSWERED_MAX));
    let mut accepting = JoinSet::new();
    for (listener, tls_only) in listeners.by_shard.iter().flat_map(|sockets| sockets.iter().zip(&listeners.tls_only)) {
        let tls_only = *tls_only || tls_required;
        let listener = listener.try_clone()?;
        let socket = SockRef::from(&listener);
        socket.set_nonblocking(true)?;
        let listener = if socket.domain()? == Domain::UNIX {
            Listener::Unix(UnixListener::from_std(listener.into())?)
        } else {
            Listener::Tcp(TcpListener::from_std(listener.into())?)
        };
        accepting.spawn(accept(listener, tls_only, places.clone(), turned_away.clone()));
    }
    // The tasks end with this future, since the set does.
    pending().await
}

/// A socket to accept from, of either kind.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection.
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

/// A connection of either kind.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn accept(listener: Listener, tls_only: bool, places: Arc<Semaphore>, turned_away: Arc<AtomicU64>) {
    // Never closed, so there is always another place.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok(stream) => {
                let number = turned_away.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    // A client that does not take its answer is closed all the same.
                    let _ = timeout(ANSWER_TIMEOUT, async {
                        match stream {
                            Accepted::Tcp(stream) => answer(stream, tls_only, number).await,
                            Accepted::Unix(stream) => answer(stream, tls_only, number).await,
                        }
                    })
                    .await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, tls_only: bool, number: u64) -> io::Result<()> {
    let answer = answer_to(&first_bytes(&mut stream).await?, tls_only, number);
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    // A close with unread input would reset the connection, and the answer might be lost.
    let mut input = stream.take(READ_BYTES_MAX);
    tokio::io::copy(&mut input, &mut tokio::io::sink()).await?;
    Ok(())
}

/// What a client sends first, as far as it has come after a moment.
async fn first_bytes(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut first = [0; HEALTHZ.len()];
    let looked = timeout(FIRST_BYTES_TIMEOUT, stream.read(&mut first)).await.unwrap_or(Ok(0))?;
    Ok(first[..looked].to_vec())
}

/// What a client is told, in the language of its first bytes: a request of HTTP gets an answer of HTTP.
fn answer_to(first: &[u8], tls_only: bool, number: u64) -> Vec<u8> {
    let mut answer = Vec::new();
    match (opening(first), first.first()) {
        // Whatever else were said in clear, no library of TLS would understand it.
        (Some(Opening::Tls), _) => return Alert::InternalError.clear_record().to_vec(),
        _ if tls_only => return answer,
        (Some(Opening::Http), _) | (None, Some(b'G')) => {
            match first == HEALTHZ {
                // The process is well; it is not ready.
                true => put_health(true, &mut answer),
                false => Refusal::Unavailable.put_response(&mut answer),
            }
            return answer;
        }
        (Some(Opening::Native), _) | (None, None) => {}
        // What follows a PROXY header has not come, or speaks a language that is not spoken here.
        (Some(Opening::Proxy | Opening::Unknown), _) | (None, Some(_)) => return answer,
    }
    let bye = Bye {
        reconnect_after_ms: (RECONNECT_MS + user_hash(number) % RECONNECT_MS) as u32,
        text: "this node has not joined its cluster yet".to_owned(),
        ..Bye::default()
    };
    encode_message(&mut answer, Kind::Bye, Code::Overloaded as u16, &bye);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as Client;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_comes_early_gets_bye_14_and_a_time_and_is_counted() {
        let listeners =
            Listeners::bind(&[crate::config::Endpoint::free()], 2, &crate::limits::Limits::default()).unwrap();
        let address = listeners.addresses[0];
        let counted = Arc::new(AtomicU64::new(0));
        let clients = tokio::task::spawn_blocking(move || {
            // One that sends at once, one that says nothing, requests, and those who are told nothing that they might
            // take for something else: what follows a PROXY header may be TLS.
            [
                &b"\0\0\0\x20 of a LOGIN"[..],
                b"",
                b"GET /readyz HTTP/1.1\r\n\r\n",
                b"GET /ws HTTP/1.1\r\n\r\n",
                b"GET /healthz HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01",
                b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n\x16\x03\x01",
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
                b"POST /ws HTTP/1.1\r\n\r\n",
            ]
            .map(|sent| {
                let mut client = Client::connect(address).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                client.write_all(sent).unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).unwrap();
                answer
            })
        });
        let answers = tokio::select! {
            never = turn_away(&listeners, false, counted.clone()) => panic!("{never:?}"),
            answers = clients => answers.unwrap(),
        };
        let (frames, requests) = answers.split_at(2);
        for answer in frames {
            assert_eq!((answer[4], u16::from_be_bytes([answer[6], answer[7]])), (Kind::Bye as u8, 14), "{answer:?}");
        }
        for (answer, status) in requests.iter().zip(["503", "503", "200"]) {
            assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{}", answer.escape_ascii());
        }
        let alert = Alert::InternalError.clear_record().to_vec();
        assert_eq!(requests[3..], [alert, Vec::new(), Vec::new(), Vec::new()]);
        assert_eq!(counted.load(Ordering::Relaxed), 9);
        listeners.set_blocking().unwrap();
    }

    #[test]
    fn where_everything_has_to_begin_with_tls_nothing_is_said_in_clear() {
        for first in [&b""[..], b"\0\0\0\x20", b"GET /healthz ", b"GET /ws HTTP"] {
            assert_eq!(answer_to(first, true, 1), b"", "{first:?}");
            assert_ne!(answer_to(first, false, 1), b"", "{first:?}");
        }
        assert_eq!(answer_to(b"\x16\x03", true, 1), Alert::InternalError.clear_record());
    }
}
