//! The server below the routes: how many connections, how long each may take for what, and an orderly end.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Connections served at a time; further ones wait in the backlog. With the sockets to Redis that is well below the 1,024
/// descriptors that a process may have by default.
pub const CONNECTIONS_MAX: usize = 512;
/// Longest request header, bytes. It bounds what a connection holds, together with the limit of bodies.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How long a request header may take to arrive, an idle connection's next one included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection lives; then it is closed behind the answer under way. So one that reads nothing cannot stay for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long the last answer may take after that.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// Pause after a failed accept: it fails for want of descriptors or memory, and trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `end` is ready, then finishes the answers under way.
pub async fn serve(listener: TcpListener, router: Router, end: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (ending, ended) = watch::channel(false);
    tokio::select! {
        () = accept(&listener, &router, &places, &ended) => {}
        () = end => {}
    }
    // Nobody is let in any more, not even from the backlog.
    drop(listener);
    let _ = ending.send(true);
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    if timeout(LAST_ANSWER_TIMEOUT, places.acquire_many(all)).await.is_err() {
        tracing::warn!("some HTTP connections did not take their last answer in time");
    }
}

async fn accept(listener: &TcpListener, router: &Router, places: &Arc<Semaphore>, ended: &watch::Receiver<bool>) {
    // Never closed, so there is always another place.
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (router, ended) = (router.clone(), ended.clone());
                tokio::spawn(async move {
                    serve_connection(stream, router, ended).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an HTTP connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until its lifetime is over or the server ends, and then its last answer.
async fn serve_connection(stream: TcpStream, router: Router, mut ended: watch::Receiver<bool>) {
    // An answer is written at once and whole; waiting to fill a packet would only delay it.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let over = async { drop(timeout(CONNECTION_LIFETIME, ended.wait_for(|ended| *ended)).await) };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = over => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}
