//! From a command line to a router that serves, and to its orderly end.

use crate::cli::Cli;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use trunkline_router::command::{Signals, init_log, listen_error, near};
use trunkline_router::http::{self, Access, ApiKeys, Places, Service, ServiceConfig};
use trunkline_router::redis::Plane;

/// HTTP connections served at a time. With the sockets to Redis that is well below the 1,024 descriptors that a process may have by default.
const CONNECTIONS_MAX: u32 = 512;

/// Of the file of a key, so many bytes are read: more than any key has.
const NODE_KEY_BYTES_MAX: u64 = 256;

/// Runs until a signal. The error is a sentence that says what to do.
pub(crate) fn run(cli: &Cli) -> Result<(), String> {
    init_log(&cli.log, cli.log_format);
    let access = Arc::new(access(cli)?);
    let node_key = cli.node_key_file.as_deref().map(node_key).transpose()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting: {error}"))?
        .block_on(serve(cli, access, node_key))
}

async fn serve(cli: &Cli, access: Arc<Access>, node_key: Option<String>) -> Result<(), String> {
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
    let places = Places::new(CONNECTIONS_MAX);
    let config = ServiceConfig {
        lease_secs: cli.lease_secs,
        strategy: cli.strategy,
        access,
        places: Arc::clone(&places),
        node_key,
    };
    let service = Service::new(plane.clone(), config).map_err(|error| error.to_string())?;
    let service = Arc::new(service);
    let mut watch = tokio::spawn(Arc::clone(&service).watch());
    announce(cli, address);

    let (tell, told) = oneshot::channel::<()>();
    // A sender that is dropped tells as well.
    let serving = http::serve(listener, http::router(Arc::clone(&service)), places, async move { drop(told.await) });
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

/// Who may use the API. Without keys it is for this host alone, unless it is said that it is not.
fn access(cli: &Cli) -> Result<Access, String> {
    let Some(path) = &cli.api_keys_file else {
        if !cli.http.ip().is_loopback() && !cli.http_insecure_open {
            return Err(format!(
                "--http {} is not loopback, and without keys whoever reaches it may make accounts and end sessions: give --api-keys-file \
                 FILE (gateway api-key makes a key), or say --http-insecure-open if that is what you want",
                cli.http
            ));
        }
        return Ok(Access::new(None, cli.http_insecure_open));
    };
    if cli.http_insecure_open {
        return Err(
            "--http-insecure-open is for an API without keys, and --api-keys-file is given: leave one of them out"
                .to_owned(),
        );
    }
    let keys = ApiKeys::load(path).map_err(|error| format!("--api-keys-file {}: {error}", path.display()))?;
    Ok(Access::new(Some(keys), false))
}

/// The key in a file, of one line.
fn node_key(path: &Path) -> Result<String, String> {
    let refused = |error: &str| format!("--node-key-file {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(|error| refused(&error.to_string()))?;
    file.take(NODE_KEY_BYTES_MAX).read_to_string(&mut text).map_err(|error| refused(&error.to_string()))?;
    let key = text.trim();
    if !key.starts_with("tlk_") || key.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(refused("it does not hold a key, tlk_…, as gateway api-key prints it"));
    }
    Ok(key.to_owned())
}

/// Says where the API is and what to try next.
fn announce(cli: &Cli, address: SocketAddr) {
    if !address.ip().is_loopback() && cli.api_keys_file.is_none() {
        tracing::warn!(
            "whoever reaches the HTTP API on {address} may make accounts, end sessions and ask where users are (http_insecure_open)"
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
