//! From a command line to a router that serves, and to its orderly end.

use crate::cli::Cli;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use trunkline_router::command::{Signals, init_log, listen_error, near};
use trunkline_router::http::{self, Service};
use trunkline_router::redis::Plane;

/// HTTP connections served at a time. With the sockets to Redis that is well below the 1,024 descriptors that a process may have by default.
const CONNECTIONS_MAX: u32 = 512;

/// Runs until a signal. The error is a sentence that says what to do.
pub(crate) fn run(cli: &Cli) -> Result<(), String> {
    init_log(&cli.log, cli.log_format);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting: {error}"))?
        .block_on(serve(cli))
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
    let listener = TcpListener::bind(cli.http).await.map_err(|error| listen_error(cli.http, &error, "--http"))?;
    let address = listener.local_addr().map_err(|error| listen_error(cli.http, &error, "--http"))?;
    let plane = Plane::unconnected(&cli.redis);
    let service = Service::new(plane.clone(), cli.lease_secs, cli.strategy).map_err(|error| error.to_string())?;
    let service = Arc::new(service);
    let mut watch = tokio::spawn(Arc::clone(&service).watch());
    announce(address);

    let (tell, told) = oneshot::channel::<()>();
    // A sender that is dropped tells as well.
    let serving =
        http::serve(listener, http::router(Arc::clone(&service)), CONNECTIONS_MAX, async move { drop(told.await) });
    let mut serving = pin!(serving);
    let name = tokio::select! {
        () = serving.as_mut() => return Err("the HTTP API ended by itself; what it said last stands above".to_owned()),
        name = signals.next() => name,
        ended = &mut watch => return Err(match ended {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("asking Redis ended by itself: {error}"),
        }),
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
    let near = near(address);
    // Whether anybody reads it does not matter.
    let mut stdout = io::stdout().lock();
    let _ = writeln!(
        stdout,
        "http on {address}\nnext: curl http://{near}/v1/nodes   or curl http://{near}/v1/login --json '{{\"user\":1}}'"
    );
    let _ = stdout.flush();
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
