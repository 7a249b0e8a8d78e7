//! Where a node listens for clients: how it is written, and what that means on this host.

use super::resolve::{Judge, known};
use super::{ConfigError, Settings};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// Stands before an address where every connection has to begin with TLS.
const TLS_ONLY: &str = "tls://";
/// Stands before the path of a Unix socket.
const UNIX: &str = "unix:";
/// The kernel's bound on the path of a Unix socket (`sun_path`), without the zero behind it.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Longest name of a host (RFC 1035).
const HOST_CHARS_MAX: usize = 253;

/// A place to listen on, as it is written: `127.0.0.1:7700`, `[::1]:7700`, `:7700`, `chat.example.com:7700`,
/// `unix:/run/trunkline.sock`, and each of them with `tls://` in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    tls_only: bool,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Ip(SocketAddr),
    /// All addresses of both families.
    Both(u16),
    /// Whatever addresses a name has when the configuration is read.
    Name(String, u16),
    Unix(PathBuf),
}

/// What is no [`Listen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoListen {
    /// It is of no form that is known.
    Unreadable,
    /// The path of a Unix socket is not absolute, or too long for the kernel.
    BadPath,
}

impl fmt::Display for NoListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoListen::Unreadable => f.write_str(
                "an address to listen on is ADDR:PORT, [ADDR]:PORT, :PORT (both families), NAME:PORT or unix:/PATH, \
                 behind tls:// if it is to take TLS only",
            ),
            NoListen::BadPath => {
                write!(f, "the path of a Unix socket is absolute and has at most {UNIX_PATH_BYTES_MAX} bytes")
            }
        }
    }
}

impl std::error::Error for NoListen {}

impl FromStr for Listen {
    type Err = NoListen;

    fn from_str(text: &str) -> Result<Self, NoListen> {
        let rest = text.strip_prefix(TLS_ONLY);
        Ok(Listen { tls_only: rest.is_some(), place: place(rest.unwrap_or(text))? })
    }
}

fn place(text: &str) -> Result<Place, NoListen> {
    if let Some(path) = text.strip_prefix(UNIX) {
        let is_good = path.starts_with('/') && path.len() <= UNIX_PATH_BYTES_MAX && !path.contains('\0');
        return if is_good { Ok(Place::Unix(path.into())) } else { Err(NoListen::BadPath) };
    }
    if let Ok(address) = text.parse() {
        return Ok(Place::Ip(address));
    }
    let (host, port) = text.rsplit_once(':').ok_or(NoListen::Unreadable)?;
    // "+7700" is a number to the parser.
    let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port = port.and_then(|port| port.parse().ok()).ok_or(NoListen::Unreadable)?;
    if host.is_empty() {
        return Ok(Place::Both(port));
    }
    let is_name = host.len() <= HOST_CHARS_MAX
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        // An address that is not one, such as 256.0.0.1.
        && host.chars().any(|c| c.is_ascii_alphabetic());
    if is_name { Ok(Place::Name(host.to_owned(), port)) } else { Err(NoListen::Unreadable) }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls_only { TLS_ONLY } else { "" })?;
        f.write_str(&self.reached())
    }
}

impl Listen {
    /// It without what says that it is for TLS: what a client is told.
    pub(super) fn reached(&self) -> String {
        match &self.place {
            Place::Ip(address) => address.to_string(),
            Place::Both(port) => format!(":{port}"),
            Place::Name(name, port) => format!("{name}:{port}"),
            Place::Unix(path) => format!("{UNIX}{}", path.display()),
        }
    }

    /// The sockets it means.
    fn endpoints(&self) -> Result<Vec<Endpoint>, String> {
        let of = |at| Endpoint { at, tls_only: self.tls_only };
        Ok(match &self.place {
            Place::Ip(address) => vec![of(At::Ip(*address))],
            Place::Both(port) => vec![of(At::BothFamilies(*port))],
            Place::Unix(path) => vec![of(At::Unix(path.clone()))],
            Place::Name(name, port) => {
                let found = (name.as_str(), *port).to_socket_addrs().map_err(|error| error.to_string())?;
                let mut endpoints: Vec<Endpoint> = Vec::new();
                for address in found {
                    let endpoint = of(At::Ip(address));
                    if !endpoints.contains(&endpoint) {
                        endpoints.push(endpoint);
                    }
                }
                if endpoints.is_empty() {
                    return Err("it has no address".to_owned());
                }
                endpoints
            }
        })
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format_args!("\"{text}\": {error}")))
    }
}

/// One place where each accepting shard has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The place.
    pub at: At,
    /// Whether every connection has to begin with TLS there.
    pub tls_only: bool,
}

/// Where that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// One address. That of IPv6 takes IPv6 only.
    Ip(SocketAddr),
    /// All addresses of this host, of IPv6 and of IPv4.
    BothFamilies(u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// A free port of loopback.
    #[cfg(test)]
    pub(crate) fn free() -> Endpoint {
        Endpoint { at: At::Ip(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)), tls_only: false }
    }

    /// The addresses by which a network reaches it.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let both = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        match self.at {
            At::Ip(address) => vec![address],
            At::BothFamilies(port) => both.map(|ip| SocketAddr::new(ip, port)).to_vec(),
            At::Unix(_) => Vec::new(),
        }
    }

    /// Whether the second of two could not be listened on.
    fn excludes(&self, other: &Endpoint) -> bool {
        match (&self.at, &other.at) {
            (At::Unix(path), At::Unix(other)) => path == other,
            _ => other.addresses().iter().any(|address| address.port() != 0 && self.addresses().contains(address)),
        }
    }
}

/// Judges `listen`. Names are looked up here, so what they mean is known to whatever else is judged.
pub(super) fn listen(all: &Settings, judge: &Judge) -> Result<Vec<Endpoint>, ConfigError> {
    let written = known(all.listen.clone());
    if written.is_empty() {
        return judge.refuse("listen", "[]", "it must name one address at least, such as 127.0.0.1:7700");
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for one in &written {
        if one.tls_only && all.tls_cert.as_ref().is_none_or(Vec::is_empty) {
            return judge.refuse(
                "listen",
                one,
                "it is for TLS only, and tls_cert is not set: give --tls-cert FILE and --tls-key FILE \
                 (gateway dev-cert makes a pair to try it with), or leave tls:// out",
            );
        }
        let found = match one.endpoints() {
            Ok(found) => found,
            Err(error) => return judge.refuse("listen", one, format!("the name cannot be looked up here: {error}")),
        };
        for endpoint in found {
            if endpoints.iter().any(|other| other.excludes(&endpoint)) {
                return judge.refuse("listen", one, "it is named twice");
            }
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let all = [
            "127.0.0.1:7700",
            "[::1]:0",
            ":7700",
            "localhost:7700",
            "unix:/run/t.sock",
            "tls://0.0.0.0:443",
            "tls://:443",
            "tls://chat.example.com:443",
            "tls://unix:/run/t.sock",
        ];
        for text in all {
            let read: Listen = text.parse().expect(text);
            assert_eq!((read.to_string(), read.tls_only), (text.to_owned(), text.starts_with("tls://")));
        }
        for text in ["", "nowhere", "7700", ":", ":+7", "::1:7700", "256.0.0.1:7", "http://x:7", "a b:7", "x:70000"] {
            assert_eq!(text.parse::<Listen>(), Err(NoListen::Unreadable), "{text:?}");
        }
        for text in ["unix:", "unix:run/t.sock", &format!("unix:/{}", "x".repeat(107))] {
            assert_eq!(text.parse::<Listen>(), Err(NoListen::BadPath), "{text:?}");
        }
    }

    #[test]
    fn a_name_means_its_addresses_and_both_families_mean_two() {
        let named: Listen = "tls://localhost:7700".parse().unwrap();
        let endpoints = named.endpoints().unwrap();
        assert!(endpoints.iter().all(|one| one.tls_only && one.addresses()[0].ip().is_loopback()), "{endpoints:?}");
        let [both] = &":7700".parse::<Listen>().unwrap().endpoints().unwrap()[..] else { panic!("one socket") };
        assert_eq!(both.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(), ["[::]:7700", "0.0.0.0:7700"]);
        let four: Listen = "0.0.0.0:7700".parse().unwrap();
        assert!(both.excludes(&four.endpoints().unwrap()[0]));
        // A label this long is in no name, so nobody is asked for it.
        let nowhere = format!("{}.invalid:7", "x".repeat(64));
        assert!(nowhere.parse::<Listen>().unwrap().endpoints().is_err());
    }
}
