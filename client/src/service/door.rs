//! Who is at the door of a worker that listens: strangers, who have connected and have not shown what a gateway shows,
//! and the links of gateways. It says who has to go; what that means for connections is its caller's.
//!
//! Whoever reaches the port can connect and say nothing. So strangers have places of their own, few of them for one
//! address, and the oldest gives its place to the next: a gateway needs its place for a moment only.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

/// Strangers, all together.
const STRANGERS_MAX: usize = 256;
/// Strangers of one address. A gateway dials once for each of its shards and services, all at the same time.
const STRANGERS_PER_ADDRESS_MAX: usize = 64;
/// Links of gateways.
const LINKS_MAX: usize = 1_024;
/// Links from one address where no key is asked for, so that anybody may be a gateway.
const OPEN_LINKS_PER_ADDRESS_MAX: usize = 512;

/// Strangers and links, each with a number that none has had before. `H` ends a connection.
#[derive(Debug)]
pub(super) struct Door<H> {
    strangers: BTreeMap<u64, (IpAddr, Option<H>)>,
    links: HashMap<u64, IpAddr>,
    /// Strangers that had to go, and gateways for which there was no room.
    pub(super) turned_away: u64,
}

impl<H> Default for Door<H> {
    fn default() -> Self {
        Door { strangers: BTreeMap::new(), links: HashMap::new(), turned_away: 0 }
    }
}

/// What counts as one address: of IPv6 the network of a host.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

impl<H> Door<H> {
    /// A stranger has come. Returns who has to go for that: the oldest, of its own address if there are many of that.
    pub(super) fn come(&mut self, number: u64, address: IpAddr) -> Option<H> {
        let address = source(address);
        let of_address = || self.strangers.iter().filter(|(_, (other, _))| *other == address);
        let oldest = match of_address().count() < STRANGERS_PER_ADDRESS_MAX {
            true if self.strangers.len() < STRANGERS_MAX => None,
            true => self.strangers.keys().next().copied(),
            false => of_address().map(|(number, _)| *number).next(),
        };
        let goes = oldest.and_then(|number| self.strangers.remove(&number));
        self.turned_away += u64::from(goes.is_some());
        self.strangers.insert(number, (address, None));
        goes.and_then(|(_, handle)| handle)
    }

    /// What ends the connection, should it have to go as a stranger.
    pub(super) fn note(&mut self, number: u64, handle: H) {
        if let Some((_, known)) = self.strangers.get_mut(&number) {
            *known = Some(handle);
        }
    }

    /// A stranger has shown to be a gateway, with a key or without. False if there is no room for its link: it stays a
    /// stranger until it has gone.
    pub(super) fn enter(&mut self, number: u64, with_key: bool) -> bool {
        let Some((address, _)) = self.strangers.get(&number) else { return false };
        let address = *address;
        let of_address = || self.links.values().filter(|other| **other == address).count();
        let is_full = self.links.len() >= LINKS_MAX || (!with_key && of_address() >= OPEN_LINKS_PER_ADDRESS_MAX);
        self.turned_away += u64::from(is_full);
        if !is_full {
            self.strangers.remove(&number);
            self.links.insert(number, address);
        }
        !is_full
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, number: u64) {
        self.strangers.remove(&number);
        self.links.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// A stranger comes. Returns the number of the one that has to go.
    fn come(door: &mut Door<u64>, number: u64, address: IpAddr) -> Option<u64> {
        let goes = door.come(number, address);
        door.note(number, number);
        goes
    }

    #[test]
    fn the_oldest_stranger_of_an_address_with_many_gives_way_and_else_the_oldest_of_all() {
        let mut door = Door::default();
        let per_address = STRANGERS_PER_ADDRESS_MAX as u64;
        for number in 0..per_address {
            assert_eq!(come(&mut door, number, host(1)), None);
        }
        assert_eq!(come(&mut door, 100, host(2)), None, "another address has places of its own");
        assert_eq!((come(&mut door, 101, host(1)), come(&mut door, 102, host(1))), (Some(0), Some(1)));
        let mut number = 1_000;
        while door.strangers.len() < STRANGERS_MAX {
            assert_eq!(come(&mut door, number, host((number % 100) as u8 + 3)), None);
            number += 1;
        }
        assert_eq!(come(&mut door, 9_000, host(200)), Some(2));
        assert_eq!((door.strangers.len(), door.turned_away), (STRANGERS_MAX, 3));
        // Who has entered is no stranger, and does not give way.
        assert!(door.enter(3, true));
        door.leave(4);
        assert_eq!((come(&mut door, 9_001, host(201)), come(&mut door, 9_002, host(202))), (None, None));
        assert_eq!(come(&mut door, 9_003, host(203)), Some(5));
        assert!(!door.enter(5, true), "it has gone");
    }

    #[test]
    fn links_are_bounded_and_those_of_one_address_where_anybody_may_be_a_gateway() {
        let mut door = Door::<()>::default();
        let mut number = 0;
        let mut enter = |door: &mut Door<()>, address: IpAddr, with_key: bool| {
            number += 1;
            door.come(number, address);
            let enters = door.enter(number, with_key);
            if !enters {
                door.leave(number);
            }
            enters
        };
        assert_eq!((0..600).filter(|_| enter(&mut door, host(1), false)).count(), OPEN_LINKS_PER_ADDRESS_MAX);
        assert!(enter(&mut door, host(1), true), "with a key there may be more");
        let left = LINKS_MAX - OPEN_LINKS_PER_ADDRESS_MAX - 1;
        assert_eq!((0..600).filter(|_| enter(&mut door, host(2), true)).count(), left);
        assert!(door.strangers.is_empty() && door.turned_away > 0);
        door.leave(1);
        assert!(enter(&mut door, host(3), false));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_ipv4_is_the_same_either_way() {
        let address = |text: &str| source(text.parse().expect(text));
        assert_eq!(address("fd00::1"), address("fd00::ffff:0:0:2"));
        assert_ne!(address("fd00::1"), address("fd00:0:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), host(1));
        assert_ne!(address("10.0.0.2"), host(1));
    }
}
