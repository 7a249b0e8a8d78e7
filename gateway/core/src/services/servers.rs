//! The native servers that the gateway dials, and where they are: what the shards share with whoever looks up names.
//!
//! Each shard looks at each of its ticks whether something has changed, which is one load, and takes a copy if so.

use super::{NativeServer, ServiceSpec};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;
/// Look-ups in succession that an address is missing from before it is gone: many answers are a part of all addresses
/// only, another one each time.
const MISSES_MAX: u8 = 3;

/// One server as it is configured.
pub struct DialedServer {
    /// The service that it serves.
    pub service: u16,
    /// What is said of it.
    pub server: NativeServer,
    /// The key that it is shown; empty for none.
    pub(crate) key: Arc<str>,
}

impl fmt::Debug for DialedServer {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, server, .. } = self;
        f.debug_struct("DialedServer").field("service", service).field("server", server).finish_non_exhaustive()
    }
}

/// All servers that are dialed. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct DialedServers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    servers: Box<[DialedServer]>,
    /// Goes up with each change of the addresses.
    version: AtomicU64,
    /// In the order of the servers.
    addresses: Mutex<Vec<Known>>,
}

/// The addresses of one server, in their own order.
#[derive(Debug, Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// Those of them that were missing from the last look-ups, and from how many.
    missing: Vec<(SocketAddr, u8)>,
}

impl Known {
    /// A look-up has brought these, sorted and no more than there may be. Returns whether anything is another now.
    fn found(&mut self, found: Vec<SocketAddr>) -> bool {
        let missed = |address: &SocketAddr| {
            let before = self.missing.iter().find(|(missing, _)| missing == address).map_or(0, |(_, times)| *times);
            (*address, before + 1)
        };
        let absent = self.addresses.iter().filter(|address| !found.contains(address));
        let mut missing: Vec<(SocketAddr, u8)> = absent.map(missed).filter(|(_, times)| *times < MISSES_MAX).collect();
        missing.truncate(ADDRESSES_MAX - found.len());
        let mut all = found;
        all.extend(missing.iter().map(|(address, _)| *address));
        all.sort_unstable();
        self.missing = missing;
        let is_news = self.addresses != all;
        self.addresses = all;
        is_news
    }
}

impl DialedServers {
    /// Those of these services. `key` gives what the servers of a service are shown, empty for nothing. Servers that
    /// were given as addresses are known from the start.
    #[must_use]
    pub fn new(specs: &[ServiceSpec], key: impl Fn(u16) -> Arc<str>) -> Self {
        let mut servers = Vec::new();
        for spec in specs {
            let key = key(spec.service);
            let natives = spec.native.iter().flat_map(|native| &native.servers);
            servers.extend(natives.map(|server| DialedServer {
                service: spec.service,
                server: server.clone(),
                key: key.clone(),
            }));
        }
        let literal = |dialed: &DialedServer| Known {
            addresses: dialed.server.literal().into_iter().collect(),
            missing: Vec::new(),
        };
        let addresses = servers.iter().map(literal).collect();
        let version = AtomicU64::new(u64::from(!servers.is_empty()));
        DialedServers(Arc::new(Inner { servers: servers.into(), version, addresses: Mutex::new(addresses) }))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.servers.is_empty()
    }

    /// All of them, in the order of the configuration.
    #[must_use]
    pub fn all(&self) -> &[DialedServer] {
        &self.0.servers
    }

    /// Those of which a name was given that has to be looked up, by their places.
    pub fn names(&self) -> impl Iterator<Item = (usize, &NativeServer)> {
        let of_names = self.0.servers.iter().map(|dialed| &dialed.server).enumerate();
        of_names.filter(|(_, server)| server.literal().is_none() && !server.down)
    }

    /// The name of the server at a place stands for these addresses now; the first 16 in their own order count, however
    /// they were told. Without one, those of before stay; one that is missing is gone with the third look-up in
    /// succession without it, or when there are 16 others. Returns how many were left out.
    pub fn resolved(&self, at: usize, addresses: &[SocketAddr]) -> usize {
        if addresses.is_empty() {
            return 0;
        }
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let left_out = sorted.len().saturating_sub(ADDRESSES_MAX);
        sorted.truncate(ADDRESSES_MAX);
        let mut all = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get_mut(at).is_some_and(|known| known.found(sorted)) {
            self.0.version.fetch_add(1, Ordering::Release);
        }
        left_out
    }

    /// The addresses of the server at a place, as they are known now.
    #[must_use]
    pub fn addresses(&self, at: usize) -> Vec<SocketAddr> {
        let all = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(at).map(|known| known.addresses.clone()).unwrap_or_default()
    }

    /// The addresses of all servers, in their order, if they have changed since `seen`, which is 0 at first.
    pub(crate) fn changed(&self, seen: &mut u64) -> Option<Vec<Vec<SocketAddr>>> {
        let version = self.0.version.load(Ordering::Acquire);
        if std::mem::replace(seen, version) == version {
            return None;
        }
        let all = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        Some(all.iter().map(|known| known.addresses.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_once_and_whatever_the_order_of_an_answer_the_same_ones_count() {
        let spec = "7,server=10.0.0.1:9000,server=orders:9000 resolve,server=gone:1 down";
        let key = |service: u16| Arc::from(format!("key of {service}"));
        let servers = DialedServers::new(&[spec.parse().unwrap()], key);
        assert!(!format!("{servers:?}").contains("key of"), "a log never holds one");
        assert_eq!(
            servers.names().map(|(at, server)| (at, server.authority())).collect::<Vec<_>>(),
            [(1, "orders:9000".to_owned())]
        );
        let address = |last: u8| SocketAddr::from(([10, 0, 1, last], 9_000));
        let mut seen = 0;
        let first = Some(vec![vec!["10.0.0.1:9000".parse().unwrap()], Vec::new(), Vec::new()]);
        assert_eq!((servers.changed(&mut seen), servers.changed(&mut seen)), (first, None));
        let many: Vec<SocketAddr> = (0..20).map(address).collect();
        let turned: Vec<SocketAddr> = many.iter().rev().copied().chain([address(3)]).collect();
        assert_eq!(servers.resolved(1, &turned), 4);
        assert_eq!(servers.changed(&mut seen).expect("others")[1], many[..16]);
        assert_eq!((servers.resolved(1, &many), servers.resolved(1, &[]), servers.resolved(9, &many)), (4, 0, 4));
        assert_eq!(servers.changed(&mut seen), None, "the same ones, and none");
        assert!(DialedServers::new(&["8".parse().unwrap()], key).changed(&mut 0).is_none());
    }

    #[test]
    fn an_address_is_gone_with_the_third_answer_in_succession_without_it() {
        let servers = DialedServers::new(&["7,server=orders:9000 resolve".parse().unwrap()], |_| Arc::default());
        let address = |last: u8| SocketAddr::from(([10, 0, 1, last], 9_000));
        let told = |addresses: &[SocketAddr]| {
            servers.resolved(0, addresses);
            servers.addresses(0)
        };
        let (a, b) = (address(1), address(2));
        assert_eq!(told(&[a, b]), [a, b]);
        for answer in [&[b][..], &[b], &[a], &[b], &[], &[b]] {
            assert_eq!(told(answer), [a, b], "an answer without any is none");
        }
        assert_eq!(told(&[b]), [b]);
        // Sixteen others leave no place for it.
        let many: Vec<SocketAddr> = (10..26).map(address).collect();
        assert_eq!(told(&many[..15]).len(), 16);
        assert_eq!(told(&many), many);
    }
}
