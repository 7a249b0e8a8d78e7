//! What the commands of this project do alike: signals, the log, and words about the addresses they listen on.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, in colour on a terminal.
    Text,
    /// Like text without time and colour, for a log that adds the time itself, such as the journal.
    Plain,
    /// One JSON object for each line.
    Json,
}

/// Sends the log of this process to stderr. What of `filter` cannot be read is left out, so it should have been judged before.
///
/// # Panics
/// When it is called twice in a process.
pub fn init_log(filter: &str, format: LogFormat) {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::builder().parse_lossy(filter));
    let log = log.with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Plain => log.with_ansi(false).without_time().init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The signals that end a process in an orderly way.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes them over: from now on they end nothing by themselves. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one; returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Where somebody on this machine reaches what listens on `address`: loopback, for one that listens everywhere.
#[must_use]
pub fn near(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Why `address` cannot be listened on, and what to do. `flags` are those that choose it.
#[must_use]
pub fn listen_error(address: SocketAddr, error: &io::Error, flags: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is already in use: stop what listens there (ss -ltnp shows it), or choose another port with {flags}"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "listening on {address} is not permitted: choose a port from 1024, or give the capability CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine: choose one that ip addr shows, or 0.0.0.0 for all")
        }
        _ => format!("listening on {address} failed ({error}): check the address given with {flags}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_near_on_loopback() {
        let near = |address: &str| near(address.parse().unwrap()).to_string();
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
            let text = listen_error(address, &kind.into(), "--http");
            assert!(text.contains(hint) && text.contains("127.0.0.1:7781"), "{text}");
        }
    }
}
