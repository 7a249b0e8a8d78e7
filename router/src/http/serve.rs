//! The server below the routes: how many connections, how long each may take for what, and an orderly end.

use super::access::Peer;
use super::places::{Place, Places};
use super::tls::{CertifiedKey, HttpTls, certified_key};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Longest request header, bytes. It bounds what a connection holds, together with the limit of bodies.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How long a request header may take to arrive, an idle connection's next one included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection lives; then it is closed behind the answer under way. So one that reads nothing cannot stay
/// for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long the last answer may take after that.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// Pause after a failed accept: it fails for want of descriptors or memory, and trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a connection may live.
#[derive(Clone, Copy)]
struct Bounds {
    lifetime: Duration,
    last_answer: Duration,
}

const BOUNDS: Bounds = Bounds { lifetime: CONNECTION_LIFETIME, last_answer: LAST_ANSWER_TIMEOUT };

/// Serves until `end` is ready, then finishes the answers under way. When all places are taken, a further connection
/// gets that of the one that has been without a request for longest. With `tls` all of them have to speak it.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    places: Arc<Places>,
    tls: Option<Arc<HttpTls>>,
    end: impl Future<Output = ()>,
) {
    serve_within(listener, Served { router, tls }, places, BOUNDS, end).await;
}

/// What all connections of a server have in common.
#[derive(Clone)]
struct Served {
    router: Router,
    tls: Option<Arc<HttpTls>>,
}

async fn serve_within(
    listener: TcpListener,
    served: Served,
    places: Arc<Places>,
    bounds: Bounds,
    end: impl Future<Output = ()>,
) {
    let (ending, ended) = watch::channel(false);
    tokio::select! {
        () = accept(&listener, &served, &places, bounds, &ended) => {}
        () = end => {}
    }
    // Nobody is let in any more, not even from the backlog.
    drop(listener);
    let _ = ending.send(true);
    if timeout(bounds.last_answer, places.all_left()).await.is_err() {
        tracing::warn!("some HTTP connections did not take their last answer in time");
    }
}

async fn accept(
    listener: &TcpListener,
    served: &Served,
    places: &Arc<Places>,
    bounds: Bounds,
    ended: &watch::Receiver<bool>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let place = places.take().await;
                tokio::spawn(serve_connection(stream, peer, served.clone(), bounds, ended.clone(), place));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an HTTP connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until its lifetime is over or the server ends, and then its last answer.
async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    served: Served,
    bounds: Bounds,
    ended: watch::Receiver<bool>,
    place: Place,
) {
    // An answer is written at once and whole; waiting to fill a packet would only delay it.
    let _ = stream.set_nodelay(true);
    let Some(tls) = served.tls else {
        return serve_stream(stream, (peer, None), served.router, bounds, ended, place).await;
    };
    let mut over = ended.clone();
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        () = place.evicted() => return,
        // Nothing has been asked yet, so there is nothing to answer. An error is the end of the server, too.
        _ = over.wait_for(|ended| *ended) => return,
    };
    match accepted {
        Ok(stream) => {
            let caller = (peer, certified_key(&stream));
            serve_stream(stream, caller, served.router, bounds, ended, place).await;
        }
        Err(error) => {
            place.places().count_failed_handshake();
            tracing::debug!(%error, "a handshake of TLS failed on the HTTP API");
        }
    }
}

/// The same, of what requests and answers go over.
async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    (peer, certified): (SocketAddr, Option<CertifiedKey>),
    router: Router,
    bounds: Bounds,
    mut ended: watch::Receiver<bool>,
    place: Place,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        if let Some(certified) = &certified {
            request.extensions_mut().insert(certified.clone());
        }
        request.extensions_mut().insert(Arc::clone(place.places()));
        let (router, place) = (router.clone(), &place);
        async move {
            place.work();
            let answered = router.call(request).await;
            place.rest();
            answered
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let over = async { drop(timeout(bounds.lifetime, ended.wait_for(|ended| *ended)).await) };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = place.evicted() => Ok(()),
        () = over => {
            connection.as_mut().graceful_shutdown();
            timeout(bounds.last_answer, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::{Access, Needs};
    use super::super::routes::Routes;
    use super::*;
    use axum::routing::get;
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::net::TcpStream as Client;

    const PATIENCE: Duration = Duration::from_secs(20);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    /// A server on a thread of its own, which ends with the test's process or with the sender.
    fn served(places: u32, bounds: Bounds) -> (SocketAddr, watch::Sender<bool>, std::thread::JoinHandle<()>) {
        served_by(Router::new().route("/", get(async || "here")), places, bounds)
    }

    fn served_by(
        router: Router,
        places: u32,
        bounds: Bounds,
    ) -> (SocketAddr, watch::Sender<bool>, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (end, mut ended) = watch::channel(false);
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let end = async move { drop(ended.wait_for(|ended| *ended).await) };
                serve_within(listener, Served { router, tls: None }, Places::new(places), bounds, end).await;
            });
        });
        (address, end, thread)
    }

    fn connect(address: SocketAddr) -> Client {
        let stream = Client::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn rest(stream: &mut Client) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_connection_has_an_end_even_if_it_never_asks() {
        let short = Bounds { lifetime: Duration::from_millis(50), last_answer: Duration::from_millis(50) };
        let (address, _end, _thread) = served(16, short);
        let mut silent = connect(address);
        let mut half = connect(address);
        half.write_all(&REQUEST[..REQUEST.len() - 2]).unwrap();
        assert_eq!([rest(&mut silent), rest(&mut half)], ["", ""]);
    }

    #[test]
    fn when_all_places_are_taken_the_idle_ones_give_way() {
        let (address, _end, _thread) = served(16, BOUNDS);
        let mut idle: Vec<Client> = (0..16).map(|_| connect(address)).collect();
        // Each of them has its request served before the others have to wait for the time-out of a header.
        for _ in 0..40 {
            let mut newcomer = connect(address);
            newcomer.write_all(REQUEST).unwrap();
            assert!(rest(&mut newcomer).ends_with("here"));
        }
        assert_eq!(rest(&mut idle[0]), "", "it was ended");
    }

    #[test]
    fn health_is_answered_while_as_many_requests_are_under_way_as_may_be() {
        let router = Routes::<()>::new()
            .get("/health", Needs::Nothing, async || "well")
            .get("/slow", Needs::AnyKey, async || std::future::pending::<&str>().await)
            .into_router("", Arc::new(Access::new(None, false)));
        let (address, _end, _thread) = served_by(router.with_state(Arc::new(())), 16, BOUNDS);
        let ask = |path: &str| {
            let mut stream = connect(address);
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream
        };
        let mut under_way = Vec::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            assert!(std::time::Instant::now() < deadline);
            assert!(rest(&mut ask("/health")).ends_with("well"));
            let mut slow = ask("/slow");
            slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut text = String::new();
            match slow.read_to_string(&mut text) {
                Ok(_) if text.contains("as many requests are under way") => break,
                _ => under_way.push(slow),
            }
        }
        assert!(under_way.len() >= 8);
        assert!(rest(&mut ask("/health")).ends_with("well"));
    }

    #[test]
    fn an_end_closes_what_is_idle_and_lets_nobody_in() {
        let (address, end, thread) = served(16, BOUNDS);
        let mut idle = connect(address);
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0; 1];
        idle.read_exact(&mut first).unwrap();
        end.send(true).unwrap();
        assert!(rest(&mut idle).ends_with("here"));
        thread.join().unwrap();
        assert!(Client::connect(address).is_err());
    }
}
