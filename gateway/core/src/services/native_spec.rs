//! What is said of the native servers of a service: those that the gateway dials.

use super::http_spec::{ServerOptions, Target, judge_servers};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Most calls that a server may be allowed at once.
const CALLS_AT_ONCE_MAX: u64 = 1_048_560;

/// One server: a host and a port, whose name may stand for several addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeServer {
    /// A name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The share of each of its addresses, 1 to 65,535.
    pub weight: u32,
    /// It gets calls only while all others are unavailable.
    pub backup: bool,
    /// It is not dialed.
    pub down: bool,
    /// Calls that each of its addresses has at once from this node; 0 leaves it to the windows that it says itself.
    pub max_conns: u32,
    /// As of nginx's `server`.
    pub max_fails: u32,
    /// As of nginx's `server`, milliseconds.
    pub fail_timeout_ms: u64,
    /// As of nginx's `server`, milliseconds.
    pub slow_start_ms: u64,
    /// Its name is looked up again and again.
    pub resolve: bool,
}

impl NativeServer {
    /// Host and port as they were given.
    #[must_use]
    pub fn authority(&self) -> String {
        let NativeServer { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Its address, where that is what was given.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// What is said of a service whose servers the gateway dials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeSpec {
    /// The servers, at least one.
    pub servers: Vec<NativeServer>,
    /// A file with the key that is shown to them.
    pub key_file: Option<PathBuf>,
}

impl NativeSpec {
    /// What is wrong with all of it together.
    pub(super) fn judge(&self) -> Result<(), String> {
        if self.servers.is_empty() {
            return Err(
                "key_file= is what is shown to servers that are dialed, and there is none: add server=HOST:PORT"
                    .to_owned(),
            );
        }
        judge_servers(&self.servers, |server| (server.host.as_str(), server.port), NativeServer::authority)
    }
}

impl FromStr for NativeServer {
    type Err = String;

    /// `orders.internal:9000 weight=5 max_conns=64 backup`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let place = words.next().unwrap_or("");
        if place.contains('/') {
            return Err(format!(
                "server={place:?}: a native server is HOST:PORT; for one that speaks HTTP add transport=http"
            ));
        }
        let wrong = |error: String| match place.contains('@') {
            true => error,
            false => format!("server={place:?}: it must be HOST:PORT"),
        };
        let Target { host, port, .. } = place.parse().map_err(wrong)?;
        let said = ServerOptions::read(words, 0, 0..=CALLS_AT_ONCE_MAX)?;
        Ok(NativeServer {
            host,
            port,
            weight: said.weight,
            backup: said.backup,
            down: said.down,
            max_conns: said.max_conns,
            max_fails: said.max_fails,
            fail_timeout_ms: said.fail_timeout_ms,
            slow_start_ms: said.slow_start_ms,
            resolve: said.resolve,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::services::ServiceSpec;

    #[test]
    fn a_service_of_workers_may_have_servers_that_are_dialed() {
        let text = "7:orders,policy=least-conn,server=Orders.internal:9000 weight=5 max_conns=9 max_fails=1 \
                    fail_timeout_secs=2 slow_start_secs=3 resolve,key_file=/etc/key,server=[::1]:9001 backup down,\
                    max_fails=7";
        for text in [text.to_owned(), text.replace("7:orders,", "7:orders,transport=native,")] {
            let spec: ServiceSpec = text.parse().unwrap();
            assert_eq!(
                (spec.http, spec.max_fails),
                (None, 7),
                "what is said of the service is of workers that dial in"
            );
            let native = spec.native.expect("servers");
            assert_eq!(native.key_file.as_deref(), Some(std::path::Path::new("/etc/key")));
            let [first, second] = &native.servers[..] else { panic!("{:?}", native.servers) };
            assert_eq!((first.authority().as_str(), first.literal()), ("orders.internal:9000", None));
            assert_eq!((first.weight, first.max_conns, first.max_fails, first.resolve), (5, 9, 1, true));
            assert_eq!((first.fail_timeout_ms, first.slow_start_ms), (2_000, 3_000));
            assert_eq!((second.authority().as_str(), second.backup, second.down), ("[::1]:9001", true, true));
            assert_eq!(second.literal(), Some("[::1]:9001".parse().unwrap()));
            assert_eq!((second.max_conns, second.max_fails, second.resolve), (0, 3, false));
        }
        assert_eq!("8,transport=native".parse::<ServiceSpec>().unwrap().native, None);
    }

    #[test]
    fn what_is_wrong_with_a_server_is_told_with_what_would_be_right() {
        for (bad, why) in [
            ("7,server=h", "HOST:PORT"),
            ("7,server=:9000", "HOST:PORT"),
            ("7,server=h:0", "HOST:PORT"),
            ("7,server=http://h:1", "add transport=http"),
            ("7,server=h:1/calls", "add transport=http"),
            ("7,server=me:secret@h:1", "leave it out"),
            ("7,server=h:1 speed=3", "nothing that can be said of a server"),
            ("7,server=h:1 weight=0", "1 to"),
            ("7,server=h:1,server=H:1 weight=2", "twice"),
            ("7,key_file=/etc/key", "add server="),
            ("7,server=h:1,keepalive_secs=1", "add transport=http"),
            ("7,transport=http,server=h:1,key_file=/etc/key", "native"),
        ] {
            let error = bad.parse::<ServiceSpec>().expect_err(bad).to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
