//! The proxies in front of a node, and the limits of each client address.

use super::resolve::{Judge, RATE_MAX, known};
use super::{ConfigError, Settings};
use crate::limits::Limits;
use crate::transport::networks::{Network, Proxies};

/// Stands for whoever connects by a Unix socket, in `proxy_from`.
const UNIX: &str = "unix";
/// Addresses that are counted besides those with open connections: who has opened some lately and closed them.
const RECENT_ADDRESSES_MAX: u64 = 65_536;

/// Judges `proxy_from`.
pub(super) fn proxies(all: &Settings, judge: &Judge) -> Result<Proxies, ConfigError> {
    let mut proxies = Proxies::default();
    for text in all.proxy_from.iter().flatten() {
        if text == UNIX {
            proxies.unix = true;
            continue;
        }
        match text.parse::<Network>() {
            Ok(network) => proxies.networks.push(network),
            Err(error) => return judge.refuse("proxy_from", format!("{text:?}"), error.to_string()),
        }
    }
    Ok(proxies)
}

/// Judges the limits of each address. They are the whole node's, whatever its shards.
pub(super) fn per_address(limits: &mut Limits, all: &Settings, shards: u64, judge: &Judge) -> Result<(), ConfigError> {
    let limit = |key, value: Option<u64>| judge.count(key, known(value), 0..=RATE_MAX).map(|value| value as u32);
    limits.address_connections_max = limit("address_connections_max", all.address_connections_max)?;
    limits.address_connections_per_sec = limit("address_connections_per_sec", all.address_connections_per_sec)?;
    let limited = limits.address_connections_max > 0 || limits.address_connections_per_sec > 0;
    let addresses = u64::from(limits.slots()).saturating_mul(shards) + RECENT_ADDRESSES_MAX;
    limits.addresses_max = if limited { u32::try_from(addresses).unwrap_or(u32::MAX) } else { 0 };
    limits.addresses_known = limited || all.proxy_from.as_ref().is_some_and(|from| !from.is_empty());
    Ok(())
}
