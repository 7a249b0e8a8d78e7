//! From a command line to a router that serves, and to its orderly end.

use crate::cli::Cli;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use trunkline_router::command::{Hangups, Signals, listen_error, near};
use trunkline_router::http::{self, Access, ApiKeys, HttpIdentity, HttpTls, Places, Service, ServiceConfig};
use trunkline_router::log;
use trunkline_router::redis::{Plane, Tls, TlsFiles};

/// HTTP connections served at a time. With the sockets to Redis that is well below the 1,024 descriptors that a process
/// may have by default.
const CONNECTIONS_MAX: u32 = 512;

/// How long reading files again may take.
const READ_MAX: Duration = Duration::from_secs(10);

/// Of the file of a key, so many bytes are read: more than any key has.
const NODE_KEY_BYTES_MAX: u64 = 256;

/// Of a certificate with its signers, and of its key, so many bytes are read.
const IDENTITY_BYTES_MAX: u64 = 1 << 20;

/// Runs until a signal. The error is a sentence that says what to do.
pub(crate) fn run(cli: &Cli) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting: {error}"))?;
    // Before anything is written: a file that has reached its limit raises a signal.
    let signals = {
        let _context = runtime.enter();
        Signals::new().and_then(|signals| Ok((signals, Hangups::new()?)))
    };
    let signals = signals.map_err(|error| format!("waiting for signals: {error}"))?;
    let access = Arc::new(access(cli)?);
    let node_key = cli.node_key_file.as_deref().map(node_key).transpose()?;
    log::init(&cli.log, cli.log_format).map_err(|error| format!("starting the log: {error}"))?;
    runtime.block_on(serve(cli, signals, access, node_key))
}

async fn serve(
    cli: &Cli,
    (mut signals, hangups): (Signals, Hangups),
    access: Arc<Access>,
    node_key: Option<String>,
) -> Result<(), String> {
    let tls = identity(cli)?.map(HttpTls::new);
    let files = Reloadable { keys: cli.api_keys_file.clone(), identity: identity_files(cli) };
    tokio::spawn(reload_on_hangup(hangups, files, Arc::clone(&access), tls.clone()));
    let node_tls = Tls::load(&TlsFiles { ca: cli.node_ca_file.clone(), ..TlsFiles::default() });
    let node_tls = match (node_tls, &cli.node_ca_file) {
        (Err(error), Some(_)) => return Err(format!("--node-ca-file: {error}")),
        (node_tls, _) => node_tls.map_err(|error| error.to_string()),
    };
    let mut redis = cli.redis.config().map_err(|error| error.to_string())?;
    redis.load_tls(&tls_files(cli)).map_err(|error| format!("TLS to Redis: {error}"))?;
    let hosts: Vec<String> = redis.hosts.iter().map(|(host, port)| host_and_port(host, *port)).collect();
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
    let plane = Plane::unconnected(&redis);
    let places = Places::new(CONNECTIONS_MAX);
    let config = ServiceConfig {
        lease_secs: cli.lease_secs,
        strategy: cli.strategy,
        zone: cli.zone.clone(),
        slow_start_secs: cli.slow_start_secs,
        access,
        places: Arc::clone(&places),
        node_key,
        node_tls,
    };
    let service = Service::new(plane.clone(), config).map_err(|error| error.to_string())?;
    let service = Arc::new(service);
    let mut watch = tokio::spawn(Arc::clone(&service).watch());
    announce(cli, address);

    let (tell, told) = oneshot::channel::<()>();
    // A sender that is dropped tells as well.
    let end = async move { drop(told.await) };
    let serving = http::serve(listener, http::router(Arc::clone(&service)), places, tls, end);
    let mut serving = pin!(serving);
    let (why, outcome) = tokio::select! {
        () = serving.as_mut() => return Err("the HTTP API ended by itself; what it said last stands above".to_owned()),
        ended = &mut watch => match ended {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => return Err(error.to_string()),
            // It has panicked, which nothing here outlives.
            Err(_) => ("a bug (panic)", Err(bug())),
        },
        name = signals.next() => (name, Ok(())),
        () = log::panicked() => ("a bug (panic)", Err(bug())),
    };
    tracing::info!("{why}: finishing the answers under way; a second signal ends it at once");
    service.set_ending();
    drop(tell);
    tokio::select! {
        () = serving => {}
        name = signals.next() => {
            tracing::info!("{name}: ended at once");
            return outcome;
        }
    }
    watch.abort();
    plane.close().await;
    tracing::info!("all answers have been given");
    outcome
}

fn bug() -> String {
    "a bug has ended it; the line of the log that says panicked has more".to_owned()
}

/// Files that are read again when somebody asks for it.
#[derive(Clone)]
struct Reloadable {
    keys: Option<PathBuf>,
    identity: Option<IdentityFiles>,
}

/// What they held.
type Reread = (Option<ApiKeys>, Option<HttpIdentity>);

/// SIGHUP: keys and certificate are read again, on a thread of its own, because a file may take as long as it likes.
/// Everything else a router is told is fixed when it starts.
async fn reload_on_hangup(mut hangups: Hangups, files: Reloadable, access: Arc<Access>, tls: Option<Arc<HttpTls>>) {
    loop {
        hangups.next().await;
        if files.keys.is_none() && files.identity.is_none() {
            tracing::warn!(
                "SIGHUP: nothing to reload, because all settings are flags and variables: start the router again to \
                 change one"
            );
            continue;
        }
        match reread(files.clone()).await {
            Ok((keys, identity)) => {
                if let (Some(keys), Some(file)) = (keys, &files.keys) {
                    access.set_keys(keys);
                    tracing::info!(
                        "SIGHUP: the keys of {} are in force; other settings need a restart",
                        file.display()
                    );
                }
                if let (Some(identity), Some(tls), Some(IdentityFiles { cert: file, .. })) =
                    (identity, &tls, &files.identity)
                {
                    tls.replace(identity);
                    tracing::info!("SIGHUP: the certificate of {} is in force", file.display());
                }
            }
            Err(error) => tracing::error!("SIGHUP: what is in force stays: {error}"),
        }
    }
}

async fn reread(files: Reloadable) -> Result<Reread, String> {
    let (answer, answered) = oneshot::channel();
    let reading = std::thread::Builder::new().name("reload".to_owned());
    let read = move || {
        let keys = files
            .keys
            .as_deref()
            .map(|file| ApiKeys::load(file).map_err(|error| format!("--api-keys-file {}: {error}", file.display())));
        let identity = files.identity.as_ref().map(read_identity);
        Ok((keys.transpose()?, identity.transpose()?))
    };
    reading
        .spawn(move || {
            // Nobody waits any more when it took too long.
            let _ = answer.send(read());
        })
        .map_err(|error| format!("no thread to read the files with: {error}"))?;
    match tokio::time::timeout(READ_MAX, answered).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => Err("reading the files has failed; the log has more".to_owned()),
        Err(_) => Err(format!("the files could not be read within {} s", READ_MAX.as_secs())),
    }
}

/// The files of TLS.
#[derive(Clone)]
struct IdentityFiles {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

fn identity_files(cli: &Cli) -> Option<IdentityFiles> {
    let (cert, key) = cli.http_tls_cert.clone().zip(cli.http_tls_key.clone())?;
    Some(IdentityFiles { cert, key, client_ca: cli.http_tls_client_ca.clone() })
}

fn identity(cli: &Cli) -> Result<Option<HttpIdentity>, String> {
    identity_files(cli).map(|files| read_identity(&files)).transpose()
}

fn read_identity(IdentityFiles { cert, key, client_ca }: &IdentityFiles) -> Result<HttpIdentity, String> {
    let read = |flag: &str, path: &Path| {
        let mut bytes = Vec::new();
        let file = File::open(path).and_then(|file| file.take(IDENTITY_BYTES_MAX).read_to_end(&mut bytes));
        file.map(|_| bytes).map_err(|error| format!("{flag} {}: {error}", path.display()))
    };
    let (chain, secret) = (read("--http-tls-cert", cert)?, read("--http-tls-key", key)?);
    let client_ca = client_ca.as_ref().map(|path| read("--http-tls-client-ca", path)).transpose()?;
    HttpIdentity::parse(&chain, &secret, client_ca.as_deref())
        .map_err(|error| format!("--http-tls-cert {} with --http-tls-key {}: {error}", cert.display(), key.display()))
}

/// Who may use the API. Without keys it is for this host alone, unless it is said that it is not.
fn access(cli: &Cli) -> Result<Access, String> {
    let Some(path) = &cli.api_keys_file else {
        if !cli.http.ip().is_loopback() && !cli.http_insecure_open {
            return Err(format!(
                "--http {} is not loopback, and without keys whoever reaches it may make accounts and end sessions: \
                 give --api-keys-file FILE (gateway api-key makes a key), or say --http-insecure-open if that is what \
                 you want",
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

fn tls_files(cli: &Cli) -> TlsFiles {
    TlsFiles { ca: cli.redis_ca_file.clone(), cert: cli.redis_cert_file.clone(), key: cli.redis_key_file.clone() }
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
            "whoever reaches the HTTP API on {address} may make accounts, end sessions and ask where users are \
             (http_insecure_open)"
        );
    }
    let (near, scheme) = (near(address), if cli.http_tls_cert.is_some() { "https" } else { "http" });
    log::say(&format!(
        "{scheme} on {address}\nnext: curl {scheme}://{near}/v1/nodes   or curl {scheme}://{near}/v1/login --json \
         '{{\"user\":1}}'\n"
    ));
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
