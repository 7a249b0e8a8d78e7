//! From a command line to a router that serves, and to its orderly end.

use crate::cli::{Cli, LogFormat};
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;
use trunkline_router::http::{self, Service};
use trunkline_router::redis::Plane;

/// Runs until a signal. The error is a sentence that says what to do.
pub(crate) fn run(cli: &Cli) -> Result<(), String> {
    init_log(cli);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting: {error}"))?
        .block_on(serve(cli))
}

fn init_log(cli: &Cli) {
    let filter = EnvFilter::builder().parse_lossy(&cli.log);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Plain => log.with_ansi(false).without_time().init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(cli: &Cli) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| format!("waiting for signals: {error}"))?;
    let hosts: Vec<String> = cli.redis.hosts.iter().map(|(host, port)| host_and_port(host, *port)).collect();
    tracing::info!(
        "Trunkline router {}, Redis Cluster at {}, leases of {} s, logins by {}",
        env!("CARGO_PKG_VERSION"),
        hosts.join(", "),
        cli.lease_secs,
        cli.strategy
    );
    // Before Redis: a second router on this address should not have to wait to hear of it.
    let listener = TcpListener::bind(cli.http).await.map_err(|error| listen_error(cli.http, &error))?;
    let address = listener.local_addr().map_err(|error| listen_error(cli.http, &error))?;
    let plane = tokio::select! {
        plane = Plane::connect(&cli.redis) => plane.map_err(|error| error.to_string())?,
        name = signals.next() => {
            tracing::info!("{name}: ended before Redis was reached");
            return Ok(());
        }
    };
    let service = Service::new(plane.clone(), cli.lease_secs, cli.strategy).map_err(|error| error.to_string())?;
    let service = Arc::new(service);
    let watch = tokio::spawn(Arc::clone(&service).watch());
    announce(address);

    let (tell, told) = oneshot::channel::<()>();
    // A sender that is dropped tells as well.
    let serving = http::serve(listener, http::router(Arc::clone(&service)), async move { drop(told.await) });
    let mut serving = pin!(serving);
    let name = tokio::select! {
        () = serving.as_mut() => return Err("the HTTP API ended by itself; what it said last stands above".to_owned()),
        name = signals.next() => name,
    };
    tracing::info!("{name}: finishing the answers under way; a second signal ends it at once");
    service.set_ending();
    drop(tell);
    tokio::select! {
        () = serving => {}
        name = signals.next() => {
            tracing::info!("{name}: ended at once");
            return Ok(());
        }
    }
    watch.abort();
    plane.close().await;
    tracing::info!("all answers have been given");
    Ok(())
}

/// Says where the API is and what to try next.
fn announce(address: SocketAddr) {
    if !address.ip().is_loopback() {
        tracing::warn!(
            "the HTTP API on {address} is not on loopback, and whoever reaches it may make accounts and ask where users are"
        );
    }
    let near = reachable(address);
    // Whether anybody reads it does not matter.
    let mut stdout = io::stdout().lock();
    let _ = writeln!(
        stdout,
        "http on {address}\nnext: curl http://{near}/v1/nodes   or curl http://{near}/v1/login --json '{{\"user\":1}}'"
    );
    let _ = stdout.flush();
}

/// Somebody on this machine reaches a router that listens everywhere by loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn listen_error(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is already in use: stop what listens there (ss -ltnp shows it), or choose another port with --http"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "listening on {address} is not permitted: choose a port from 1024, or give the capability CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine: choose one that ip addr shows, or 0.0.0.0 for all")
        }
        _ => format!("listening on {address} failed ({error}): check the address given with --http"),
    }
}

/// The signals that end a router.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_reaches_this_router() {
        let near = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(near("0.0.0.0:7781"), "127.0.0.1:7781");
        assert_eq!(near("[::]:7781"), "[::1]:7781");
        assert_eq!(near("10.0.0.9:7781"), "10.0.0.9:7781");
    }

    #[test]
    fn addresses_that_cannot_be_listened_on_are_explained() {
        let address = "127.0.0.1:7781".parse().unwrap();
        for (kind, hint) in [
            (io::ErrorKind::AddrInUse, "another port with --http"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "ip addr"),
            (io::ErrorKind::OutOfMemory, "--http"),
        ] {
            let text = listen_error(address, &kind.into());
            assert!(text.contains(hint) && text.contains("127.0.0.1:7781"), "{text}");
        }
    }
}
