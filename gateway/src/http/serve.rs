//! The server below the routes: how many connections, how long each may take for what.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections served at a time; further ones wait in the backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// Longest request header, bytes. No route reads a body, so this bounds what a connection holds.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How long a request header may take to arrive, an idle connection's next one included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection lives; then it is closed behind the answer under way. So one that reads nothing cannot stay for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long the last answer may take after that.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: it fails for want of descriptors or memory, and trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves the API for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(stream, router, CONNECTION_LIFETIME, LAST_ANSWER_TIMEOUT).await;
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

/// Serves one connection, for `lifetime` and then `last_answer` at most.
pub(super) async fn serve_connection(stream: TcpStream, router: Router, lifetime: Duration, last_answer: Duration) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let outcome = match timeout(lifetime, connection.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            timeout(last_answer, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}
