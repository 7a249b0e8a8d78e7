//! The proxies in front of a node, and the limits of each client address.

use super::resolve::{Judge, RATE_MAX, known};
use super::services::has_addressed;
use super::{ConfigError, Settings};
use crate::limits::Limits;
use crate::transport::networks::{Network, NoNetwork, Proxies};
use crate::transport::upgrade::Forwarding;

/// Stands for whoever connects by a Unix socket.
const UNIX: &str = "unix";
/// Addresses that are counted besides those with open connections: who has opened some lately and closed them.
const RECENT_ADDRESSES_MAX: u64 = 65_536;

/// Judges `proxy_from`.
pub(super) fn proxies(all: &Settings, judge: &Judge) -> Result<Proxies, ConfigError> {
    let (networks, unix) = networks("proxy_from", all.proxy_from.as_deref(), judge)?;
    Ok(Proxies { networks, unix })
}

/// Judges `forwarded_from` and `forwarded_field`.
pub(super) fn forwarding(all: &Settings, judge: &Judge) -> Result<Forwarding, ConfigError> {
    let (networks, unix) = networks("forwarded_from", all.forwarded_from.as_deref(), judge)?;
    Ok(Forwarding { networks, unix, field: known(all.forwarded_field) })
}

/// The networks, and whether Unix sockets are among them.
fn networks(key: &'static str, texts: Option<&[String]>, judge: &Judge) -> Result<(Vec<Network>, bool), ConfigError> {
    let (mut networks, mut unix) = (Vec::new(), false);
    for text in texts.unwrap_or_default() {
        match text.parse() {
            _ if text == UNIX => unix = true,
            Ok(network) => networks.push(network),
            Err(error) => return judge.refuse(key, format!("{text:?}"), NoNetwork::to_string(&error)),
        }
    }
    Ok((networks, unix))
}

/// Judges the limits of each address. They are the whole node's, whatever its shards.
pub(super) fn per_address(limits: &mut Limits, all: &Settings, shards: u64, judge: &Judge) -> Result<(), ConfigError> {
    let limit = |key, value: Option<u64>| judge.count(key, known(value), 0..=RATE_MAX).map(|value| value as u32);
    limits.address_connections_max = limit("address_connections_max", all.address_connections_max)?;
    limits.address_connections_per_sec = limit("address_connections_per_sec", all.address_connections_per_sec)?;
    limits.address_handshakes_per_sec = limit("address_handshakes_per_sec", all.address_handshakes_per_sec)?;
    let rates = limits.address_connections_per_sec > 0 || limits.address_handshakes_per_sec > 0;
    let limited = limits.address_connections_max > 0 || rates;
    let addresses = u64::from(limits.slots()).saturating_mul(shards) + RECENT_ADDRESSES_MAX;
    limits.addresses_max = if limited { u32::try_from(addresses).unwrap_or(u32::MAX) } else { 0 };
    let told = [&all.proxy_from, &all.forwarded_from];
    limits.addresses_known = limited || told.into_iter().flatten().any(|from| !from.is_empty());
    limits.addresses_known |= has_addressed(all);
    Ok(())
}
