//! What a hash is made of: of a service as it is configured, and of one call.

use std::net::IpAddr;
use std::str::FromStr;
use trunkline_router_core::hash::user_hash;

/// What the hash of a service is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashKey {
    /// The user who calls.
    #[default]
    User,
    /// The `peer` of the CALL, and the user where that is 0.
    Peer,
    /// The address of the caller, and the user where that is not known.
    Address,
}

impl FromStr for HashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "user" => Ok(HashKey::User),
            "peer" => Ok(HashKey::Peer),
            "address" => Ok(HashKey::Address),
            _ => Err(format!("key={text}: user, peer (the routing key of the call) or address (of the caller)")),
        }
    }
}

/// What the hash of one call is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickKey {
    /// A user, or a routing key.
    Number(u64),
    /// Where the caller is.
    Address(IpAddr),
}

impl PickKey {
    /// A number that stands for it; of an address a scrambled one.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            PickKey::Number(number) => number,
            PickKey::Address(IpAddr::V4(address)) => user_hash(address.to_bits().into()),
            PickKey::Address(IpAddr::V6(address)) => {
                let bits = address.to_bits();
                user_hash((bits >> 64) as u64 ^ user_hash(bits as u64))
            }
        }
    }
}

impl From<u64> for PickKey {
    fn from(number: u64) -> Self {
        PickKey::Number(number)
    }
}
