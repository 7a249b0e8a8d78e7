//! What is said of a service whose calls go to HTTP servers.

use http::Uri;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use trunkline_router_core::balance::{MAX_FAILS_LIMIT, PERIOD_MS_MAX};
use trunkline_router_core::ring::WEIGHT_MAX;

/// Servers of one service.
const SERVERS_MAX: usize = 64;
/// Most connections to one address of a server, and as many as there are without a word.
const CONNS_MAX: u64 = 4_096;
const CONNS_DEFAULT: u32 = 128;
/// Longest time in which a connection has to be made, milliseconds.
const CONNECT_MS_MAX: u64 = 60_000;
/// How long a connection may be idle before it is closed, milliseconds; the default is below what common servers allow,
/// so that they seldom close one just as a call is written to it.
const KEEPALIVE_SECS_MAX: u64 = 3_600;
const KEEPALIVE_MS: u64 = 4_000;

/// A server's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Over TLS.
    pub tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What calls are posted to: a path, and a query if there is one.
    pub path: String,
}

impl Target {
    /// Host and port as they stand in a request.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// One server: a URL, whose name may stand for several addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// Where it is.
    pub target: Target,
    /// Its share, 1 to 65,535.
    pub weight: u32,
    /// It gets calls only while all others are unavailable.
    pub backup: bool,
    /// It gets no calls, and keeps its place among the others.
    pub down: bool,
    /// Connections to each of its addresses, idle ones included.
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

/// How servers are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    /// Time from one request to the next, milliseconds.
    pub interval_ms: u64,
    /// What is asked for, by GET.
    pub path: String,
}

/// What is said of a service with the transport `http`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpSpec {
    /// Time in which a connection has to be made, milliseconds.
    pub connect_timeout_ms: u64,
    /// How long a connection may be idle, milliseconds; with 0 each call has one of its own.
    pub keepalive_ms: u64,
    /// Who signs for servers over TLS; without it those whom this system trusts.
    pub ca_file: Option<PathBuf>,
    /// The servers, at least one.
    pub servers: Vec<HttpServer>,
    /// Active checks; without them a server is well until calls fail.
    pub health: Option<HealthSpec>,
}

/// What may be said of a service over HTTP alone.
pub(super) const HTTP_OPTIONS: &str =
    "server, connect_timeout_ms, keepalive_secs, ca_file, health_interval_secs, health_path";

/// A whole number of a range, or what is wrong with it.
pub(super) fn number(key: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{key}={value}: it must be {least} to {most}")),
    }
}

/// True or false, or what is wrong with it.
pub(super) fn truth(key: &str, value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("{key}={value}: true or false"))
}

/// What may be said of a server of either kind behind its address.
pub(super) struct ServerOptions {
    pub(super) weight: u32,
    pub(super) backup: bool,
    pub(super) down: bool,
    pub(super) max_conns: u32,
    pub(super) max_fails: u32,
    pub(super) fail_timeout_ms: u64,
    pub(super) slow_start_ms: u64,
    pub(super) resolve: bool,
}

impl ServerOptions {
    /// Reads `weight=5 max_conns=64 backup`. `max_conns` is what that is without a word, `allowed` what it may be.
    pub(super) fn read<'a>(
        words: impl Iterator<Item = &'a str>,
        max_conns: u32,
        allowed: RangeInclusive<u64>,
    ) -> Result<Self, String> {
        let mut said = ServerOptions {
            weight: 1,
            backup: false,
            down: false,
            max_conns,
            max_fails: 3,
            fail_timeout_ms: 10_000,
            slow_start_ms: 0,
            resolve: false,
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, "true"));
            match key {
                "weight" => said.weight = number(key, value, 1, WEIGHT_MAX.into())? as u32,
                "backup" => said.backup = truth(key, value)?,
                "down" => said.down = truth(key, value)?,
                "max_conns" => said.max_conns = number(key, value, *allowed.start(), *allowed.end())? as u32,
                "max_fails" => said.max_fails = number(key, value, 0, MAX_FAILS_LIMIT.into())? as u32,
                "fail_timeout_secs" => said.fail_timeout_ms = number(key, value, 1, PERIOD_MS_MAX / 1_000)? * 1_000,
                "slow_start_secs" => said.slow_start_ms = number(key, value, 0, PERIOD_MS_MAX / 1_000)? * 1_000,
                "resolve" => said.resolve = truth(key, value)?,
                _ => {
                    let known =
                        "weight, backup, down, max_conns, max_fails, fail_timeout_secs, slow_start_secs, resolve";
                    return Err(format!("{key:?} is nothing that can be said of a server; there are {known}"));
                }
            }
        }
        Ok(said)
    }
}

/// What is wrong with so many servers of one service: each place, a host and a port, may be there once.
pub(super) fn judge_servers<S>(
    servers: &[S],
    place: impl Fn(&S) -> (&str, u16),
    authority: impl Fn(&S) -> String,
) -> Result<(), String> {
    if servers.len() > SERVERS_MAX {
        return Err(format!("{} servers: at most {SERVERS_MAX}", servers.len()));
    }
    for (at, server) in servers.iter().enumerate() {
        if servers[..at].iter().any(|other| place(other) == place(server)) {
            let authority = authority(server);
            return Err(format!("server={authority} stands there twice: leave one out and give the other weight=2"));
        }
    }
    Ok(())
}

impl HttpSpec {
    /// Nothing said but that it is one.
    pub(super) fn new() -> Self {
        HttpSpec { connect_timeout_ms: 1_000, keepalive_ms: KEEPALIVE_MS, ..HttpSpec::default() }
    }

    /// Takes one option. False if it is none of those over HTTP.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let health = || HealthSpec { interval_ms: 5_000, path: "/".to_owned() };
        match key {
            "server" => self.servers.push(value.parse()?),
            "connect_timeout_ms" => self.connect_timeout_ms = number(key, value, 10, CONNECT_MS_MAX)?,
            "keepalive_secs" => self.keepalive_ms = number(key, value, 0, KEEPALIVE_SECS_MAX)? * 1_000,
            "ca_file" => self.ca_file = Some(value.into()),
            "health_interval_secs" => {
                let interval_ms = number(key, value, 1, PERIOD_MS_MAX / 1_000)? * 1_000;
                self.health.get_or_insert_with(health).interval_ms = interval_ms;
            }
            "health_path" => {
                let path = value.starts_with('/').then(|| value.parse::<Uri>()).and_then(Result::ok);
                let path = path.ok_or(format!("health_path={value}: a path such as /healthz"))?;
                self.health.get_or_insert_with(health).path = path.to_string();
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is wrong with all of it together.
    pub(super) fn judge(&self) -> Result<(), String> {
        if self.servers.is_empty() {
            return Err("transport=http without a server: add server=http://HOST:PORT/PATH".to_owned());
        }
        judge_servers(
            &self.servers,
            |server| (server.target.host.as_str(), server.target.port),
            |server| server.target.authority(),
        )?;
        if self.ca_file.is_some() && !self.servers.iter().any(|server| server.target.tls) {
            return Err(
                "ca_file= means something for https:// servers only, and there is none: leave it out".to_owned()
            );
        }
        Ok(())
    }
}

impl std::str::FromStr for HttpServer {
    type Err = String;

    /// `http://orders.internal:9000/calls weight=5 max_conns=64 backup`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let target: Target = words.next().unwrap_or("").parse()?;
        let said = ServerOptions::read(words, CONNS_DEFAULT, 1..=CONNS_MAX)?;
        Ok(HttpServer {
            target,
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

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("server={text:?}: it must be HOST:PORT, http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")
        };
        let has_scheme = text.contains("://");
        let whole = if has_scheme { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(format!("server={:?}: a login cannot stand in it; leave it out", uri.host().unwrap_or("")));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let has_port = authority.port_u16();
        if host.is_empty() || (!has_scheme && has_port.is_none()) || has_port == Some(0) {
            return Err(wrong());
        }
        let port = has_port.unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Target { tls, host: host.to_ascii_lowercase(), port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{HashKey, ServiceSpec};
    use trunkline_router_core::Policy;

    #[test]
    fn a_service_over_http_is_its_servers_and_what_is_said_of_each() {
        let text = "7:orders,transport=http,policy=least-conn,key=peer,connect_timeout_ms=200,keepalive_secs=0,\
                    server=https://Orders.internal/calls?v=2 weight=5 max_conns=9 max_fails=1 fail_timeout_secs=2 \
                    slow_start_secs=3 resolve,server=[::1]:9000 backup down,health_interval_secs=2,health_path=/up";
        let spec: ServiceSpec = text.parse().unwrap();
        assert_eq!((spec.policy, spec.queue, spec.key), (Policy::LeastConn, 1_024, HashKey::Peer));
        let http = spec.http.expect("a service over HTTP");
        assert_eq!((http.connect_timeout_ms, http.keepalive_ms), (200, 0));
        assert_eq!(http.health, Some(HealthSpec { interval_ms: 2_000, path: "/up".to_owned() }));
        let [first, second] = &http.servers[..] else { panic!("{:?}", http.servers) };
        assert_eq!(first.target.to_string(), "https://orders.internal/calls?v=2");
        assert_eq!((first.weight, first.max_conns, first.max_fails), (5, 9, 1));
        assert_eq!((first.fail_timeout_ms, first.slow_start_ms, first.resolve), (2_000, 3_000, true));
        assert_eq!((second.target.to_string(), second.backup), ("http://[::1]:9000/".to_owned(), true));
        assert_eq!((first.down, second.down), (false, true));
        assert_eq!((second.max_conns, second.max_fails, second.resolve), (128, 3, false));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (bad, why) in [
            ("7,transport=smoke", "native or http"),
            ("7,transport=http", "add server="),
            ("7,server=http://h:1", "add transport=http"),
            ("7,transport=native,keepalive_secs=1", "add transport=http"),
            ("7,transport=http,server=h", "HOST:PORT"),
            ("7,transport=http,server=ftp://h", "HOST:PORT"),
            ("7,transport=http,server=http://me:secret@h", "leave it out"),
            ("7,transport=http,server=h:1 weight=0", "1 to"),
            ("7,transport=http,server=h:1 speed=3", "nothing that can be said of a server"),
            ("7,transport=http,server=h:1 max_conns=0", "1 to 4096"),
            ("7,transport=http,server=h:1,server=http://h:1/x", "twice"),
            ("7,transport=http,server=h:1,key=device", "user, peer"),
            ("7,transport=http,server=h:1,ca_file=x.pem", "leave it out"),
            ("7,transport=http,server=h:1,health_path=up", "/healthz"),
            ("7,transport=http,server=h:1,max_fails=2", "behind the address of a server"),
            ("7,transport=http,server=h:1,speed=2", "keepalive_secs"),
        ] {
            let error = bad.parse::<ServiceSpec>().expect_err(bad).to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
