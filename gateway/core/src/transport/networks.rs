//! Networks, as those whose word on a client's address is taken.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One network in the form of RFC 4632 and RFC 4291: `10.0.0.0/8`, `fd00::/8`; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Leading bits that all addresses of the network share, at most 32 or 128.
    prefix: u8,
}

/// What is no [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNetwork {
    /// No address, or the length of the prefix is no number, or too large.
    Unreadable,
    /// The address has bits behind its prefix, so it may be that another network was meant.
    BitsBehindPrefix,
}

impl fmt::Display for NoNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoNetwork::Unreadable => {
                "a network is an address and the length of its prefix: 10.0.0.0/8, fd00::/8, 192.0.2.7"
            }
            NoNetwork::BitsBehindPrefix => {
                "the address has bits set behind its prefix: write 10.0.0.0/8, not 10.0.0.1/8"
            }
        })
    }
}

impl std::error::Error for NoNetwork {}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NoNetwork::Unreadable)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            // "+8" is a number to the parser.
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse::<u8>().ok().filter(|prefix| *prefix <= bits).ok_or(NoNetwork::Unreadable)?
            }
            Some(_) => return Err(NoNetwork::Unreadable),
            None => bits,
        };
        if wide(address) & !wide_mask(prefix) != 0 {
            return Err(NoNetwork::BitsBehindPrefix);
        }
        Ok(Network { address, prefix })
    }
}

/// The address as a number whose highest bit is the address's first; that of IPv4 takes the upper 32 bits.
fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The upper `bits` bits.
fn wide_mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl Network {
    /// Whether the address is of this network. An IPv4 address in the form of an IPv6 one (`::ffff:192.0.2.7`) counts
    /// as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let own = self.address.to_canonical();
        // A network within ::ffff:0:0/96 is one of IPv4.
        let prefix = match (self.address, own) {
            (IpAddr::V6(_), IpAddr::V4(_)) => self.prefix.saturating_sub(96),
            _ => self.prefix,
        };
        own.is_ipv4() == address.is_ipv4() && (wide(own) ^ wide(address)) & wide_mask(prefix) == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Whether an address is of one of these networks.
pub fn trusted(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// Whose word on a client's address is taken: the proxies in front of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Their networks.
    pub networks: Vec<Network>,
    /// Also whoever connects to a Unix socket.
    pub unix: bool,
}

impl Proxies {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether one may be at this address.
    pub fn trust(&self, address: IpAddr) -> bool {
        trusted(&self.networks, address)
    }

    /// Whether those behind Unix sockets are.
    pub fn trust_unix(&self) -> bool {
        self.unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a_network_holds_the_addresses_that_share_its_prefix() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.128/25", "192.0.2.255", "192.0.2.127"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "2001:db8::1", "192.0.2.7"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
        ] {
            let network = network(text);
            assert!(network.contains(inside.parse().expect("an address")), "{inside} in {text}");
            assert!(!network.contains(outside.parse().expect("an address")), "{outside} in {text}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/8/8", "localhost", " ::1"]
        {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork::Unreadable), "{text}");
        }
        for text in ["10.0.0.1/8", "192.0.2.1/31", "fd00::1/64", "1.0.0.0/0"] {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork::BitsBehindPrefix), "{text}");
        }
        assert_eq!(network("10.0.0.0/8").to_string(), "10.0.0.0/8");
        assert_eq!(network("::1").to_string(), "::1/128");
    }
}
