//! Clients behind a proxy: what it writes in front of their first byte.

use crate::io::sim::Rng;
use crate::transport::networks::Proxies;

/// The proxies of a node all of whose simulated clients come through one, see
/// [`World::client_address`](crate::io::sim::World::client_address).
pub(super) fn all_clients() -> Proxies {
    Proxies { networks: vec!["11.0.0.0/8".parse().expect("a network")], unix: false }
}

/// A header of either version, for one of a few clients, or for none that is known.
pub(super) fn header(rng: &mut Rng) -> Vec<u8> {
    let last = rng.below(4) as u8;
    match rng.below(4) {
        0 => format!("PROXY TCP4 198.51.100.{last} 192.0.2.1 40000 7700\r\n").into_bytes(),
        1 => {
            let addresses = [198, 51, 100, last, 192, 0, 2, 1, 0x9C, 0x40, 0x1E, 0x14];
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C"[..], &addresses].concat()
        }
        2 => b"PROXY UNKNOWN\r\n".to_vec(),
        _ => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(),
    }
}
